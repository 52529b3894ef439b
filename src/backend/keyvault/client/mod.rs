//! The one place that calls the SDK's `KeyClient`: each call with its deadline, its place
//! among the connections, and its answer checked against what was asked for.
//!
//! It knows keys by their names and versions and decides nothing about them. An answer
//! that names another key than the one that was asked is no answer.

mod attributes;
mod changes;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Instant,
};

use azure_core::{
    error::ErrorKind,
    http::{
        ClientMethodOptions, Context, RawResponse, StatusCode,
        headers::{HeaderName, WWW_AUTHENTICATE},
        pager::PagerOptions,
    },
};
use azure_security_keyvault_keys::{
    KeyClient, KeyClientOptions,
    models::{
        EncryptionAlgorithm, GetRandomBytesParameters, Key, KeyClientGetKeyOptions,
        KeyClientGetRandomBytesOptions, KeyClientListKeyPropertiesOptions,
        KeyClientListKeyPropertiesVersionsOptions, KeyClientUnwrapKeyOptions,
        KeyClientWrapKeyOptions, KeyOperationParameters, KeyOperationResult, KeyProperties,
    },
};
use futures_util::{Stream, TryStreamExt};
use tokio::{sync::Semaphore, time::timeout_at};

pub(super) use attributes::Attributes;

use super::{
    error::{self, Answer, Asked, Verdict, judge},
    fault::{self, Fault},
    identity::keeper::{ByKeeper, Keeper, Rejections},
    transport::{Repeatable, Wire, client_options},
    vault::VaultUrl,
};
use crate::{
    error::{Error, Reason},
    kek::VersionId,
    secret::Secret,
};

/// The version of the service's interface. Wrapping with padding needs 7.6.
const API_VERSION: &str = "2025-07-01";

/// Most versions of one key, and most keys of one vault, that are read.
pub(super) const LISTED_MAX: usize = 256;

/// A vault, through the SDK.
pub(super) struct Client {
    sdk: KeyClient,
    vault: VaultUrl,
    wire: Arc<Wire>,
    keeper: Arc<Keeper>,
    /// One for each connection.
    places: Semaphore,
    waiting: AtomicUsize,
    queue: usize,
    closed: AtomicBool,
}

/// What came of a call that did not work.
#[derive(Debug)]
pub(super) enum Trouble {
    /// This.
    Settled(Error),
    /// The ciphertext is bad if the key still works; otherwise this.
    Suspect(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Settled(error)
    }
}

impl From<Trouble> for Error {
    fn from(trouble: Trouble) -> Self {
        let (Trouble::Settled(error) | Trouble::Suspect(error)) = trouble;
        error
    }
}

/// What a list says of a version, or of a key.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    /// The key.
    pub(super) name: String,
    /// The version; `None` in a list of keys.
    pub(super) version: Option<VersionId>,
    pub(super) attributes: Attributes,
}

/// A place among those that wait, given back when it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Client {
    /// A client of `vault` over `wire`, which has `connections`.
    pub(super) fn new(
        vault: VaultUrl,
        wire: Arc<Wire>,
        keeper: Arc<Keeper>,
        connections: usize,
        queue: usize,
    ) -> Result<Self, Error> {
        let mut options = client_options(&wire);
        options.per_try_policies.push(Arc::new(Rejections(Arc::clone(&keeper))));
        let options = KeyClientOptions {
            api_version: API_VERSION.to_owned(),
            client_options: options,
            verify_challenge_resource: Some(true),
        };
        let credential = Arc::new(ByKeeper(Arc::clone(&keeper)));
        let sdk = KeyClient::new(vault.as_str(), credential, Some(options)).map_err(|_| {
            Error::new(Reason::BackendMisconfigured, "the vault's address is not one")
                .with_fix("see `vault`")
        })?;
        Ok(Self {
            sdk,
            vault,
            wire,
            keeper,
            places: Semaphore::new(connections),
            waiting: AtomicUsize::new(0),
            queue,
            closed: AtomicBool::new(false),
        })
    }

    /// By how many seconds the vault's clock was ahead of ours when it last answered.
    pub(super) fn clock_ahead(&self) -> Option<i64> {
        self.wire.clock_ahead()
    }

    /// Ends everything. Calls after it fail.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.places.close();
        self.keeper.stop();
        self.wire.close();
    }

    /// The versions of a key, in no order.
    pub(super) async fn versions(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<Vec<Listed>, Error> {
        let options = KeyClientListKeyPropertiesVersionsOptions {
            maxresults: None,
            method_options: PagerOptions { context: repeatable(), continuation: None },
        };
        let reading = async {
            let pager = self.sdk.list_key_properties_versions(name, Some(options))?;
            self.collect(pager).await
        };
        let listed = self.call(Asked::Key, deadline, reading).await?;
        match listed.iter().all(|found| found.version.is_some() && same_key(&found.name, name)) {
            true => Ok(listed),
            false => Err(Fault::Answer.into_error()),
        }
    }

    /// The keys of the vault, in no order.
    pub(super) async fn keys(&self, deadline: Instant) -> Result<Vec<Listed>, Error> {
        let options = KeyClientListKeyPropertiesOptions {
            maxresults: None,
            method_options: PagerOptions { context: repeatable(), continuation: None },
        };
        let reading = async { self.collect(self.sdk.list_key_properties(Some(options))?).await };
        Ok(self.call(Asked::Key, deadline, reading).await?)
    }

    async fn collect(
        &self,
        pager: impl Stream<Item = azure_core::Result<KeyProperties>>,
    ) -> azure_core::Result<Vec<Listed>> {
        let mut pager = std::pin::pin!(pager);
        let mut listed = Vec::new();
        while let Some(KeyProperties { kid, attributes, .. }) = pager.try_next().await? {
            let kid = kid.ok_or(Fault::Answer)?;
            let (name, version) = self.vault.key_in(&kid).ok_or(Fault::Answer)?;
            if listed.len() == LISTED_MAX {
                let many = Error::new(
                    Reason::BackendMisconfigured,
                    format!("the vault lists more than {LISTED_MAX}"),
                );
                return Err(azure_core::Error::with_error(ErrorKind::Other, many, "too many"));
            }
            let name = name.to_owned();
            listed.push(Listed { name, version, attributes: Attributes::of(attributes) });
        }
        Ok(listed)
    }

    /// A version of a key; without one, the version that the vault calls the latest.
    pub(super) async fn get(
        &self,
        name: &str,
        version: Option<&VersionId>,
        deadline: Instant,
    ) -> Result<(VersionId, Key), Error> {
        let options = KeyClientGetKeyOptions {
            key_version: version.map(|version| version.as_str().to_owned()),
            method_options: once_more(),
        };
        let getting = async { self.sdk.get_key(name, Some(options)).await?.into_model() };
        let asked = if version.is_some() { Asked::Version } else { Asked::Key };
        let key = self.call(asked, deadline, getting).await?;
        let kid = key.key.as_ref().and_then(|key| key.kid.as_deref());
        let found = kid.and_then(|kid| self.vault.version_in(kid, name));
        match (found, version) {
            (Some(found), Some(version)) if found != *version => Err(Fault::Answer.into_error()),
            (Some(found), _) => Ok((found, key)),
            (None, _) => Err(Fault::Answer.into_error()),
        }
    }

    /// Wraps in the service.
    pub(super) async fn wrap(
        &self,
        name: &str,
        version: &VersionId,
        algorithm: EncryptionAlgorithm,
        payload: &Secret,
        deadline: Instant,
    ) -> Result<Vec<u8>, Error> {
        let options = KeyClientWrapKeyOptions {
            key_version: Some(version.as_str().to_owned()),
            method_options: once_more(),
        };
        let wrapping = async {
            let parameters = parameters(algorithm, payload.expose()).try_into()?;
            self.sdk.wrap_key(name, parameters, Some(options)).await?.into_model()
        };
        let answer = self.call(Asked::Version, deadline, wrapping).await?;
        self.value(answer, name, version)
    }

    /// Unwraps. `of_caller` says whose the ciphertext is.
    pub(super) async fn unwrap(
        &self,
        name: &str,
        version: &VersionId,
        algorithm: EncryptionAlgorithm,
        ciphertext: &[u8],
        of_caller: bool,
        deadline: Instant,
    ) -> Result<Secret, Trouble> {
        let options = KeyClientUnwrapKeyOptions { method_options: once_more() };
        let unwrapping = async {
            let parameters = parameters(algorithm, ciphertext).try_into()?;
            self.sdk
                .unwrap_key(name, version.as_str(), parameters, Some(options))
                .await?
                .into_model()
        };
        let asked = if of_caller { Asked::Unwrap } else { Asked::Version };
        let answer = self.call(asked, deadline, unwrapping).await?;
        Ok(Secret::new(self.value(answer, name, version)?))
    }

    /// What an operation gave, if it was done with the very version.
    fn value(
        &self,
        answer: KeyOperationResult,
        name: &str,
        version: &VersionId,
    ) -> Result<Vec<u8>, Error> {
        let KeyOperationResult { kid, result, .. } = answer;
        // Wiped if it is not given out.
        let result = result.map(Secret::new);
        let used = kid.and_then(|kid| self.vault.version_in(&kid, name));
        match result {
            Some(result) if used.as_ref() == Some(version) => Ok(result.into_wiped_elsewhere()),
            _ => Err(Fault::Answer.into_error()),
        }
    }

    /// Random bytes, as only a managed HSM has them: at most 128.
    pub(super) async fn random(&self, len: usize, deadline: Instant) -> Result<Secret, Error> {
        let options = KeyClientGetRandomBytesOptions { method_options: once_more() };
        let drawing = async {
            let count = i32::try_from(len).map_err(|_| Fault::Request)?;
            let parameters = GetRandomBytesParameters { count: Some(count) }.try_into()?;
            self.sdk.get_random_bytes(parameters, Some(options)).await?.into_model()
        };
        let bytes = self.call(Asked::Random, deadline, drawing).await?;
        match bytes.value.map(Secret::new) {
            Some(bytes) if bytes.len() == len => Ok(bytes),
            _ => Err(Fault::Answer.into_error()),
        }
    }

    /// Makes a call when a connection is free for it, until the deadline.
    async fn call<T>(
        &self,
        asked: Asked,
        deadline: Instant,
        call: impl Future<Output = azure_core::Result<T>>,
    ) -> Result<T, Trouble> {
        let late = || Error::new(Reason::DeadlineExceeded, "the vault did not answer in time");
        let closed = || Error::new(Reason::ShuttingDown, "the backend is closed");
        if self.closed.load(Ordering::SeqCst) {
            return Err(closed().into());
        }
        if deadline <= Instant::now() {
            return Err(late().into());
        }
        let _place = self.place(deadline, late, closed).await?;
        match timeout_at(deadline.into(), call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(trouble(asked, &error)),
            Err(_) => Err(late().into()),
        }
    }

    async fn place(
        &self,
        deadline: Instant,
        late: impl Fn() -> Error,
        closed: impl Fn() -> Error,
    ) -> Result<tokio::sync::SemaphorePermit<'_>, Error> {
        if let Ok(place) = self.places.try_acquire() {
            return Ok(place);
        }
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        if before >= self.queue {
            return Err(Error::new(Reason::Overloaded, "too many operations wait for the vault"));
        }
        match timeout_at(deadline.into(), self.places.acquire()).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) => Err(closed()),
            Err(_) => Err(late()),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // The keeper's task would go on for ever.
        self.close();
    }
}

fn same_key(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
}

/// A context whose requests may be sent once more.
fn repeatable() -> Context<'static> {
    Context::new().with_value(Repeatable)
}

fn once_more() -> ClientMethodOptions<'static> {
    ClientMethodOptions { context: repeatable() }
}

fn parameters(algorithm: EncryptionAlgorithm, value: &[u8]) -> KeyOperationParameters {
    KeyOperationParameters {
        algorithm: Some(algorithm),
        value: Some(value.to_vec()),
        ..KeyOperationParameters::default()
    }
}

/// What an error of the SDK means.
fn trouble(asked: Asked, sdk: &azure_core::Error) -> Trouble {
    if let Some(fault) = fault::behind(sdk) {
        return fault.into_error().into();
    }
    if let Some(ours) = fault::find::<Error>(sdk) {
        return ours.clone().into();
    }
    match sdk.kind() {
        ErrorKind::HttpResponse { status, raw_response, .. } => {
            let answer = read(*status, raw_response.as_deref());
            match judge(asked, &answer) {
                Verdict::Settled(error) => Trouble::Settled(error),
                Verdict::Suspect(error) => Trouble::Suspect(error),
            }
        }
        // The SDK's own checks of a challenge.
        ErrorKind::Other => Error::new(
            Reason::BackendMisconfigured,
            "what answers asks for a token that is not for the vault",
        )
        .with_fix("see whether `vault` is right")
        .into(),
        // An answer that does not parse, and a token that was withdrawn at that moment.
        _ => Fault::Answer.into_error().into(),
    }
}

fn read(status: StatusCode, response: Option<&RawResponse>) -> Answer {
    let status = u16::from(status);
    let Some(response) = response else { return Answer::read(status, b"", None, None) };
    let headers = response.headers();
    let patience =
        error::retry_after(|name| headers.get_optional_str(&HeaderName::from_static(name)));
    let challenge = headers.get_optional_str(&WWW_AUTHENTICATE);
    Answer::read(status, response.body().as_ref(), challenge, patience)
}
