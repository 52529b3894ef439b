//! Who is asked, and what for: a sidecar or a backend, and DEKs that were wrapped for the
//! purpose. The DEKs are random, of 32 bytes, and protect nothing.

use std::{
    fmt,
    future::Future,
    io,
    sync::Arc,
    time::{Instant, SystemTime},
};

use aws_lc_rs::rand;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::run::Gauge;
use crate::{
    backend::Backend,
    client::{self, Client, WrappedDek},
    error::{Error, Reason},
    kek::{Algorithm, KeyRef, Proof, Purpose, UsableVersion, Version, VersionInfo, VersionSet},
    op::Op,
    secret::Secret,
};

/// Length of the DEKs, in bytes.
const DEK_BYTES: usize = 32;
/// Wraps that are in work at once while the DEKs are made.
const WRAPS_AT_ONCE: usize = 32;

/// What is tried, in this order, where nobody said which algorithm.
const ALGORITHMS: [Algorithm; 4] =
    [Algorithm::RsaOaep256, Algorithm::RsaOaep, Algorithm::A256Kwp, Algorithm::A256Kw];

/// Why nothing could be measured.
#[derive(Debug)]
pub enum Trouble {
    /// The sidecar said so, or cannot be reached.
    Sidecar(client::Error),
    /// The backend said so.
    Backend(Error),
    /// The machine said so: what could not be done, and why.
    Machine(&'static str, io::Error),
}

impl From<client::Error> for Trouble {
    fn from(error: client::Error) -> Self {
        Self::Sidecar(error)
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Backend(error)
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sidecar(error) => error.fmt(f),
            Self::Backend(error) => error.fmt(f),
            Self::Machine(what, error) => write!(f, "{what}: {error}"),
        }
    }
}

impl std::error::Error for Trouble {}

/// A DEK, wrapped, and what must come back.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) wrapped: WrappedDek,
    dek: Secret,
}

impl Sample {
    /// `Err` if `answer` is not this DEK.
    pub(super) fn check(&self, answer: &Secret) -> Result<(), String> {
        match self.dek.ct_eq(answer.expose()) {
            true => Ok(()),
            false => Err("ANSWER_WRONG".to_owned()),
        }
    }
}

/// The DEKs that are asked for: at least one, all different.
#[derive(Debug)]
pub struct Deks(Vec<Sample>);

impl Deks {
    /// Makes `count` DEKs and has `target` wrap them; `gauge` counts them.
    pub async fn wrap<T: Target>(target: &T, count: usize, gauge: &Gauge) -> Result<Self, Trouble> {
        let one = |_| async {
            let mut dek = Secret::zeroed(DEK_BYTES);
            rand::fill(dek.expose_mut()).map_err(|_| {
                Error::new(Reason::Internal, "the operating system gave no random bytes")
            })?;
            let wrapped = target.wrap(&dek).await?;
            gauge.succeeded();
            Ok::<_, Trouble>(Sample { wrapped, dek })
        };
        let samples = stream::iter(0..count.max(1)).map(one).buffer_unordered(WRAPS_AT_ONCE);
        Ok(Self(samples.try_collect().await?))
    }

    /// Such as nobody wrapped, for an echo.
    #[cfg(test)]
    pub(super) fn fake(count: usize) -> Self {
        let sample = |_| Sample { wrapped: WrappedDek::default(), dek: Secret::zeroed(DEK_BYTES) };
        Self((0..count).map(sample).collect())
    }

    pub(super) fn get(&self, at: usize) -> &Sample {
        &self.0[at % self.0.len()]
    }

    /// How many.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// How long a message that asks for one is, in bytes.
    pub(super) fn request_bytes(&self) -> usize {
        // The wrapped DEK is a field of the message: a tag and a length before it.
        self.0[0].wrapped.to_bytes().len() + 3
    }

    /// How they were wrapped: the number of an algorithm in messages.
    pub fn algorithm(&self) -> i32 {
        self.0[0].wrapped.algorithm
    }

    /// The fingerprint of the KEK version that wrapped them.
    pub fn fingerprint(&self) -> &[u8] {
        &self.0[0].wrapped.kek_fingerprint
    }

    pub(super) fn ciphertexts(&self) -> Vec<Vec<u8>> {
        self.0.iter().map(|sample| sample.wrapped.ciphertext.clone()).collect()
    }
}

/// Something that wraps and unwraps.
pub trait Target: Clone + Send + Sync + 'static {
    /// Wraps a DEK.
    fn wrap(&self, dek: &Secret) -> impl Future<Output = Result<WrappedDek, Trouble>> + Send;

    /// Unwraps the DEK of that number. `Err` is a reason.
    fn unwrap(&self, deks: &Deks, number: usize)
    -> impl Future<Output = Result<(), String>> + Send;
}

/// A KEK of a sidecar, over one connection.
#[derive(Clone, Debug)]
pub struct Sidecar {
    pub(super) client: Client,
    kek: Arc<str>,
    /// The echo answers with something else.
    pub(super) echo: bool,
}

impl Sidecar {
    /// The KEK called `kek` of the sidecar that `client` talks to.
    pub fn new(client: Client, kek: &str) -> Self {
        Self { client, kek: kek.into(), echo: false }
    }

    pub(super) fn echo(client: Client) -> Self {
        Self { client, kek: "".into(), echo: true }
    }

    /// Judges an answer.
    pub(super) fn check(&self, sample: &Sample, answer: &Secret) -> Result<(), String> {
        if self.echo { Ok(()) } else { sample.check(answer) }
    }
}

impl Target for Sidecar {
    async fn wrap(&self, dek: &Secret) -> Result<WrappedDek, Trouble> {
        Ok(self.client.wrap(&self.kek, dek, b"").await?)
    }

    async fn unwrap(&self, deks: &Deks, number: usize) -> Result<(), String> {
        let sample = deks.get(number);
        match self.client.unwrap(&sample.wrapped, b"").await {
            Ok(dek) => self.check(sample, &dek),
            Err(error) => Err(error.reason().to_owned()),
        }
    }
}

/// One version of a key of a backend, without a sidecar.
#[derive(Clone)]
pub struct Direct {
    backend: Arc<dyn Backend>,
    version: Arc<Version>,
    algorithm: Algorithm,
}

impl Direct {
    /// The newest version of `key`, or the one with that fingerprint, after it proved
    /// itself. Without `algorithm` the first of a list that the key works with.
    pub async fn open(
        backend: Arc<dyn Backend>,
        key: &KeyRef,
        algorithm: Option<Algorithm>,
        fingerprint: Option<&[u8]>,
    ) -> Result<Self, Error> {
        let candidates = match &algorithm {
            Some(algorithm) => std::slice::from_ref(algorithm),
            None => &ALGORITHMS[..],
        };
        let mut why_not = None;
        for algorithm in candidates {
            match Self::try_open(&backend, key, *algorithm, fingerprint).await {
                Ok(version) => {
                    let version = Arc::new(version);
                    return Ok(Self { backend, version, algorithm: *algorithm });
                }
                Err(error) if error.reason().is_transient() => return Err(error),
                // That the key is there, and refuses, says more than that it is not there.
                Err(error) if error.reason() == Reason::KekNotFound => {
                    why_not.get_or_insert(error);
                }
                Err(error) => why_not = Some(error),
            }
        }
        Err(why_not.unwrap_or_else(|| Error::new(Reason::Internal, "no algorithm was tried")))
    }

    async fn try_open(
        backend: &Arc<dyn Backend>,
        key: &KeyRef,
        algorithm: Algorithm,
        fingerprint: Option<&[u8]>,
    ) -> Result<Version, Error> {
        let found = backend.versions(key, algorithm, deadline()).await?;
        let mut versions: Vec<VersionInfo> = found;
        if let Some(fingerprint) = fingerprint {
            versions.retain(|info| info.fingerprint.as_bytes() == fingerprint);
        }
        let versions = VersionSet::new(versions).map_err(|twin| {
            Error::new(
                Reason::BackendMisconfigured,
                format!("two versions of the key are both called {twin}"),
            )
        })?;
        let info = versions.iter().next().ok_or_else(|| {
            Error::new(
                Reason::KekMismatch,
                format!("key {key} of the backend is not the one that the sidecar's KEK is"),
            )
            .with_fix("name the key that the KEK has in the sidecar's configuration")
        })?;
        let at = backend.prove(info, algorithm, deadline()).await?;
        Ok(Version::new(Arc::new(info.clone()), Proof::Proven { at }))
    }

    /// How it wraps.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The version, if it may be used now.
    pub(super) fn usable(&self, purpose: Purpose) -> Result<UsableVersion, Error> {
        self.version.usable(purpose, SystemTime::now())
    }
}

impl fmt::Debug for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { backend, version, algorithm } = self;
        write!(f, "Direct({}: {version:?} {algorithm})", backend.name())
    }
}

impl Target for Direct {
    async fn wrap(&self, dek: &Secret) -> Result<WrappedDek, Trouble> {
        let version = self.usable(Purpose::Wrap)?;
        let ciphertext = self.backend.wrap(&version, self.algorithm, dek, deadline()).await?;
        Ok(WrappedDek { ciphertext, ..WrappedDek::default() })
    }

    async fn unwrap(&self, deks: &Deks, number: usize) -> Result<(), String> {
        let sample = deks.get(number);
        let unwrapped = async {
            let version = self.usable(Purpose::Unwrap)?;
            let ciphertext = &sample.wrapped.ciphertext;
            self.backend.unwrap(&version, self.algorithm, ciphertext, deadline()).await
        };
        match unwrapped.await {
            Ok(dek) => sample.check(&dek),
            Err(error) => Err(error.reason().as_str().to_owned()),
        }
    }
}

/// What an operation on a backend may take: what a sidecar gives it.
pub(super) fn deadline() -> Instant {
    Instant::now() + Op::Unwrap.spec().deadline
}
