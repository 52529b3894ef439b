//! The PKCS#11 backend: any vendor's module, SoftHSM by default.
//!
//! | file | what it knows |
//! |---|---|
//! | `ffi`, `raw` | the calls into a module, the only `unsafe`; their C forms |
//! | `ckr` | the one table of `CKR_` codes |
//! | `fault`, `recover` | what went wrong; which rung of the ladder helps |
//! | `gate`, `module` | one initialised library per process, and who is inside |
//! | `token`, `pin` | the slot, the login |
//! | `worker` | threads, sessions, the queue |
//! | `keys`, `aes_key`, `mechanism` | key objects, AES wrapping, mechanism numbers |
//! | `officer` | creating and listing keys |
//! | `bare` | the token alone, for measuring |
//!
//! RSA KEKs wrap in software, with the public key read off the *private* key object.
//! Everything else is done in the token.

mod aes_key;
mod bare;
mod ckr;
mod fault;
mod ffi;
mod gate;
mod keys;
mod mechanism;
mod module;
mod notice;
mod officer;
mod pin;
mod raw;
mod recover;
mod register;
mod settings;
mod token;
mod upkeep;
mod worker;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use async_trait::async_trait;
use tracing::warn;

pub use settings::{PinSource, Settings, TokenSelector};

use crate::{
    backend::{Backend, Officer, Room, judge::Judge},
    error::{Error, Reason},
    kek::{Algorithm, Family, KeyRef, UsableVersion, VersionInfo},
    secret::Secret,
};
use fault::Fault;
use keys::Target;
use module::Module;
use raw::{Ckr, Mechanism};
use token::Token;
use worker::{Pool, Seat, Terms};

/// A token behind a PKCS#11 module.
pub struct Pkcs11Backend {
    name: String,
    patience: Duration,
    queue: usize,
    pool: Arc<Pool>,
    judge: Judge,
}

impl Pkcs11Backend {
    /// Loads the module, finds the token and logs in. Blocks for as long as the device
    /// takes. `Err` says what the operator must mend.
    pub fn open(settings: Settings) -> Result<Self, Error> {
        let module = Module::open(&settings.module, &settings.module_args)?;
        let token = Token::new(module, settings.clone());
        let workers = log_in(&token, settings.sessions).map_err(Fault::into_start_error)?;
        let Settings { name, queue, call_timeout: patience, .. } = settings;
        let pool = Arc::new(Pool::start(token, &name, workers, queue)?);
        Ok(Self { name, patience, queue, pool, judge: Judge::default() })
    }

    /// How many worker threads hang in the module at this moment.
    pub fn hung(&self) -> usize {
        self.pool.hung()
    }

    fn pool(&self) -> &Pool {
        &self.pool
    }

    fn terms(&self, deadline: Instant, of_caller: bool) -> Terms {
        Terms { of_caller, deadline, patience: self.patience }
    }

    async fn run<T: Send + 'static>(
        &self,
        deadline: Instant,
        operation: impl FnMut(&mut Seat<'_>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Error> {
        self.pool.run(self.terms(deadline, false), operation).await.map_err(Fault::into_error)
    }

    /// Unwraps what a caller sent. Two attempts, each failure followed by a canary that
    /// came back: a device that dropped one call must not condemn a good ciphertext.
    async fn unwrap_of_caller(
        &self,
        version: &VersionInfo,
        algorithm: Algorithm,
        ciphertext: &[u8],
        deadline: Instant,
    ) -> Result<Secret, Error> {
        for _attempt in 0..2 {
            let target = Target::new(version, algorithm);
            let bytes = ciphertext.to_vec();
            let terms = self.terms(deadline, true);
            let unwrap = move |seat: &mut Seat<'_>| decrypt(seat, &target, &bytes);
            let fault = match self.pool.run(terms, unwrap).await {
                Ok(payload) => return Ok(payload),
                Err(fault) => fault,
            };
            let Fault::Suspect(_) = fault else {
                return Err(not_this_algorithm(fault, algorithm));
            };
            let canary = async || self.prove(version, algorithm, deadline).await.map(|_| ());
            self.judge.alive_since(version.fingerprint, Instant::now(), deadline, canary).await?;
        }
        Err(Error::ciphertext_invalid())
    }
}

/// Logs in, and says how many sessions the token has room for beside the keeper.
fn log_in(token: &Token, wanted: usize) -> Result<usize, Fault> {
    let deadline = Instant::now() + Duration::from_secs(30);
    let first = {
        let pass = token.module.enter(deadline)?;
        token.live(&pass).map_err(|fault| (fault, pass.era()))
    };
    let live = match first {
        Ok(live) => live,
        // The module may have been initialised, by another backend, before this token
        // was there.
        Err((Fault::NoToken(_), era)) => {
            token.module.reinitialize(era)?;
            token.live(&token.module.enter(deadline)?)?
        }
        Err((fault, _)) => return Err(fault),
    };
    let max = live.info.max_sessions;
    let workers = workers_for(max, wanted).ok_or_else(|| {
        Error::new(Reason::BackendMisconfigured, "the token allows one session, two are needed")
            .with_fix("use a token that allows more sessions")
    })?;
    if workers < wanted {
        warn!(wanted, workers, "the token allows fewer sessions than `sessions` asks for");
    }
    Ok(workers)
}

/// How many workers, with a session each, a token has room for beside the keeper's
/// session; `None` if for none.
fn workers_for(max_sessions: Option<u64>, wanted: usize) -> Option<usize> {
    let room = max_sessions
        .map_or(usize::MAX, |max| usize::try_from(max).unwrap_or(usize::MAX).saturating_sub(1));
    (room > 0).then_some(wanted.min(room))
}

/// Decrypts with the key of `target`: the private half of every unwrap and canary.
fn decrypt(seat: &mut Seat<'_>, target: &Target, ciphertext: &[u8]) -> Result<Secret, Fault> {
    let key = keys::find(seat, target)?;
    match target.algorithm.family() {
        Family::Aes => aes_key::unwrap(seat, key, target.algorithm, ciphertext),
        Family::Rsa(hash) if key.decrypt || !key.unwrap => {
            let Seat { library, session, .. } = seat;
            // The plaintext is shorter than the ciphertext, which is as long as the
            // modulus.
            let room = ciphertext.len();
            Ok(library.decrypt(*session, Mechanism::Oaep(hash), key.handle, ciphertext, room)?)
        }
        Family::Rsa(hash) => {
            aes_key::unwrap_as_object(seat, Mechanism::Oaep(hash), key.handle, ciphertext)
        }
    }
}

/// Whether a ciphertext has a length that the mechanism can have produced. Others would
/// only make the token fail in its own way.
fn has_possible_length(version: &VersionInfo, algorithm: Algorithm, ciphertext: &[u8]) -> bool {
    match (algorithm.family(), &version.public_key) {
        (Family::Rsa(_), Some(public)) => ciphertext.len() == public.bytes(),
        (Family::Rsa(_), None) => false,
        (Family::Aes, _) => {
            ciphertext.len().is_multiple_of(8) && (24..=128).contains(&ciphertext.len())
        }
    }
}

/// What a token says of a mechanism that it does not do, if `fault` is that.
fn mechanism_refused(fault: &Fault) -> Option<String> {
    match fault {
        Fault::Ckr(Ckr { function, code }) if ckr::class(*code) == ckr::Class::Mechanism => {
            Some(format!("{function}: {}", ckr::name(*code)))
        }
        _ => None,
    }
}

/// A device that cannot do the algorithm of a stored DEK is not misconfigured for that.
fn not_this_algorithm(fault: Fault, algorithm: Algorithm) -> Error {
    match mechanism_refused(&fault) {
        Some(detail) => {
            Error::new(Reason::AlgorithmUnsupported, format!("the token does not do {algorithm}"))
                .with_detail(detail)
        }
        None => fault.into_error(),
    }
}

/// A device that cannot do the algorithm of its KEK is misconfigured.
fn self_test_refused(fault: Fault, algorithm: Algorithm) -> Error {
    let Some(detail) = mechanism_refused(&fault) else { return fault.into_error() };
    let fix = match algorithm {
        Algorithm::RsaOaep256 | Algorithm::RsaOaep384 | Algorithm::RsaOaep512 => {
            "set `algorithm = \"RSA-OAEP\"` for this KEK: SoftHSM 2.6.1 and some devices do OAEP with SHA-1 only"
        }
        _ => "set an `algorithm` that the token supports for this KEK",
    };
    Error::new(
        Reason::BackendMisconfigured,
        format!("the self-test failed: the token refuses {algorithm}"),
    )
    .with_fix(fix)
    .with_detail(detail)
}

#[async_trait]
impl Backend for Pkcs11Backend {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "pkcs11"
    }

    async fn versions(
        &self,
        key: &KeyRef,
        algorithm: Algorithm,
        deadline: Instant,
    ) -> Result<Vec<VersionInfo>, Error> {
        let wanted = key.clone();
        let read = move |seat: &mut Seat<'_>| {
            let found = keys::search(seat, Some(&wanted.label), algorithm)?;
            let mut versions: Vec<VersionInfo> = Vec::new();
            for info in found.into_iter().map(|found| found.info) {
                if wanted.pinned.as_ref().is_some_and(|pinned| *pinned != info.id) {
                    continue;
                }
                if versions.iter().any(|other| other.id == info.id) {
                    return Err(keys::twins(&wanted.label, &info.id).into());
                }
                versions.push(VersionInfo { key: wanted.clone(), ..info });
            }
            match versions.is_empty() {
                true => Err(keys::gone(seat, format!("key {wanted}"))),
                false => Ok(versions),
            }
        };
        match self.pool.run(self.terms(deadline, false), read).await {
            Err(Fault::KeyGone(_)) => Err(Error::new(
                Reason::KekNotFound,
                format!("the token has no {} key labelled {key}", kind_of(algorithm)),
            )
            .with_fix(
                "`keyward key list` shows the keys on the token; `keyward key create` makes one",
            )),
            other => other.map_err(Fault::into_error),
        }
    }

    async fn prove(
        &self,
        version: &VersionInfo,
        algorithm: Algorithm,
        deadline: Instant,
    ) -> Result<SystemTime, Error> {
        let target = Target::new(version, algorithm);
        let public = version.public_key.clone();
        let canary = move |seat: &mut Seat<'_>| {
            let canary = mechanism::random(32)?;
            let ciphertext = match (algorithm.family(), &public) {
                (Family::Rsa(hash), Some(public)) => public.encrypt(hash, &canary)?,
                _ => {
                    let key = keys::find(seat, &target)?;
                    aes_key::wrap(seat, key, algorithm, &canary)?
                }
            };
            let began = SystemTime::now();
            let returned = decrypt(seat, &target, &ciphertext)?;
            if !returned.ct_eq(canary.expose()) {
                return Err(Fault::Refused(Error::new(
                    Reason::KekDisabled,
                    "the self-test failed: the token decrypts to something else",
                )));
            }
            Ok(began)
        };
        let terms = self.terms(deadline, false);
        self.pool.run(terms, canary).await.map_err(|fault| self_test_refused(fault, algorithm))
    }

    async fn wrap(
        &self,
        version: &UsableVersion,
        algorithm: Algorithm,
        payload: &Secret,
        deadline: Instant,
    ) -> Result<Vec<u8>, Error> {
        let info = version.info();
        match (algorithm.family(), &info.public_key) {
            (Family::Rsa(hash), Some(public)) => public.encrypt(hash, payload),
            (Family::Rsa(_), None) => {
                Err(Error::new(Reason::Internal, "an RSA version has no public key"))
            }
            (Family::Aes, _) => {
                let target = Target::new(info, algorithm);
                let payload = Secret::copy_of(payload.expose());
                self.run(deadline, move |seat| {
                    // A handle that is another key's by now would do for wrapping, and lose
                    // the DEK: here it is looked up anew each time.
                    seat.keys.clear();
                    let key = keys::find(seat, &target)?;
                    aes_key::wrap(seat, key, algorithm, &payload)
                })
                .await
            }
        }
    }

    async fn unwrap(
        &self,
        version: &UsableVersion,
        algorithm: Algorithm,
        ciphertext: &[u8],
        deadline: Instant,
    ) -> Result<Secret, Error> {
        let info = version.info();
        if !has_possible_length(info, algorithm, ciphertext) {
            return Err(Error::ciphertext_invalid());
        }
        self.unwrap_of_caller(info, algorithm, ciphertext, deadline).await
    }

    async fn random(&self, len: usize, deadline: Instant) -> Result<Option<Secret>, Error> {
        let draw = move |seat: &mut Seat<'_>| Ok(seat.library.random(seat.session, len)?);
        match self.pool.run(self.terms(deadline, false), draw).await {
            Ok(bytes) => Ok(Some(bytes)),
            // No generator (`CKR_RANDOM_NO_RNG`), or none that may be used.
            Err(Fault::Ckr(error)) if ckr::class(error.code) == ckr::Class::Mechanism => Ok(None),
            Err(fault) => Err(fault.into_error()),
        }
    }

    fn wraps_locally(&self, algorithm: Algorithm) -> bool {
        matches!(algorithm.family(), Family::Rsa(_))
    }

    fn units(&self, _: &VersionInfo) -> u32 {
        1
    }

    fn room(&self) -> Room {
        Room {
            // One for each worker, and one more that it finds when it is done.
            at_once: 2 * self.pool.workers(),
            waiting: self.queue,
            // A worker climbs a ladder of recoveries of its own.
            attempts: 1,
            ceiling: None,
            shared: None,
            denials: 1,
        }
    }

    fn officer(&self) -> Option<&dyn Officer> {
        Some(self)
    }

    fn service(&self) -> Option<&dyn crate::backend::Service> {
        None
    }

    fn register(&self) -> Option<&dyn crate::backend::Register> {
        Some(self)
    }

    async fn close(&self) {
        let (pool, patience) = (Arc::clone(&self.pool), self.patience);
        // Joining threads blocks. If this task is cancelled, the threads end all the same.
        let _ended = tokio::task::spawn_blocking(move || pool.stop(patience)).await;
    }
}

fn kind_of(algorithm: Algorithm) -> &'static str {
    match algorithm.family() {
        Family::Rsa(_) => "RSA private",
        Family::Aes => "AES",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tokens_session_limit_is_never_passed() {
        assert_eq!(workers_for(None, 4), Some(4));
        assert_eq!(workers_for(Some(1024), 4), Some(4));
        assert_eq!(workers_for(Some(5), 4), Some(4));
        assert_eq!(workers_for(Some(4), 4), Some(3), "one is the keeper's");
        assert_eq!(workers_for(Some(2), 4), Some(1));
        assert_eq!(workers_for(Some(1), 4), None);
        assert_eq!(workers_for(Some(0), 4), None);
        assert_eq!(workers_for(Some(u64::MAX), 4), Some(4));
    }
}
