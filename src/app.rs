//! The one composition root: builds everything, in reading order, and runs it.
//!
//! Start-up fails at once on what only an operator can mend: a module that does not
//! load, a token that is not there, a wrong PIN, an algorithm that the token refuses. (A
//! supervisor starts it again.) It does not fail on a key that is gone, expired or
//! disabled: other KEKs must be served all the same, so those leave the sidecar up, not
//! ready, and trying; what is proven by then is kept so (`engine::prove`).

use std::{fmt, path::Path, pin::pin, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{oneshot, watch},
    time::timeout,
};
use tracing::{info, warn};

use crate::{
    alloc,
    api::Sessions,
    backend::{Backend, Bare, Metered, Register, keyvault::KeyVaultBackend, pkcs11::Pkcs11Backend},
    cache::Cache,
    clock,
    config::{BackendConfig, CacheConfig, Config, KekConfig},
    engine::{self, Engine, KekSpec, Kept},
    error::{Error, Reason},
    kept::{Ledger, Modes, Revocations},
    observe::{self, Metrics},
    secret::{self, Locker, Protection, SlabError},
    server::{self, Served, SetupError},
};

/// How long the census may take to be written at the end.
const LAST_WRITE: Duration = Duration::from_secs(5);

/// How long a backend may take to say who owns a key, or to record it.
const REGISTER: Duration = Duration::from_secs(10);

/// Why the sidecar could not start, or had to stop.
#[derive(Debug)]
pub struct StartError {
    /// What could not be done.
    pub what: String,
    /// Why.
    pub cause: String,
    /// How to mend it, if known.
    pub fix: Option<String>,
}

/// Opens a backend. Blocks for as long as its device takes.
pub fn build_backend(config: &BackendConfig) -> Result<Arc<dyn Backend>, Error> {
    match config {
        BackendConfig::Pkcs11(settings) => Ok(Arc::new(Pkcs11Backend::open(settings.clone())?)),
        BackendConfig::KeyVault(settings) => Ok(Arc::new(KeyVaultBackend::open(settings.clone())?)),
    }
}

/// A backend, and the way past it to its device.
pub type Measurable = (Arc<dyn Backend>, Arc<dyn Bare>);

/// Opens a backend to measure it. Blocks for as long as its device takes.
pub fn build_measurable(config: &BackendConfig) -> Result<Measurable, Error> {
    match config {
        BackendConfig::Pkcs11(settings) => {
            let backend = Arc::new(Pkcs11Backend::open(settings.clone())?);
            Ok((Arc::clone(&backend) as _, backend))
        }
        BackendConfig::KeyVault(_) => Err(Error::new(
            Reason::BackendMisconfigured,
            "what a vault is behind its network cannot be measured from here",
        )
        .with_fix("measure the sidecar: `keyward bench --kek NAME`")),
    }
}

/// Runs the sidecar until SIGTERM or SIGINT.
pub fn serve(config: Config) -> Result<(), StartError> {
    // Before there are threads or secrets.
    secret::harden().map_err(|error| StartError::new("cannot turn core dumps off", error))?;
    alloc::use_small_pages();
    let c_heap_is_overwritten = alloc::overwrite_what_c_frees();
    observe::start(config.log.format, &config.log.filter)
        .map_err(|cause| StartError::new("cannot start the log", cause))?;
    if !c_heap_is_overwritten {
        warn!("the C library cannot overwrite what a PKCS#11 module frees");
    }
    check_nofile(server::raise_nofile_limit(), server::nofile_needed(&config.server));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("keyward")
        .worker_threads(config.threads)
        // What waits must not keep a DEK in its registers or on its stack.
        .on_thread_park(secret::scrub)
        .enable_all()
        .build()
        .map_err(|error| StartError::new("cannot start the runtime", error))?;
    let outcome = runtime.block_on(run(config));
    // A thread that hangs in a module must not keep the process from ending.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

async fn run(config: Config) -> Result<(), StartError> {
    let mut shutdown = pin!(Signals::listen()?.received());
    // From here on no signal kills the process by itself, and a device may take for ever.
    let opening = tokio::task::spawn_blocking(move || open_backends(&config.backends));
    let backends = tokio::select! {
        () = shutdown.as_mut() => return Ok(()),
        opened = opening => opened
            .map_err(|error| StartError::new("cannot open the backends", error))??,
    };
    let metrics = Arc::new(Metrics::new(
        config.keks.iter().map(|kek| kek.name.as_str()),
        backends.iter().map(|backend| backend.name()),
    ));
    let backends: Vec<_> =
        backends.into_iter().map(|backend| Metered::over(backend, &metrics)).collect();
    let keks = kek_specs(&config.keks, &backends);
    let cache = Arc::new(build_cache(&config.cache)?);
    let kept = kept(config.state.as_deref())?;
    fix_modes(config.state.as_deref(), &keks).await?;
    let engine = Engine::new(keks, config.cache.terms, cache, kept, Arc::clone(&metrics));
    let engine = Arc::new(engine);
    engine.revoke_as_recorded().map_err(|error| no_state(&error))?;
    engine.be_watched();
    let sessions = build_sessions(&config.server, config.cache.allow_unlocked, &engine)?;
    sessions.be_watched(&metrics);
    let policy = Arc::new(ArcSwap::from_pointee(config.policy));
    let (ready, is_ready) = watch::channel(false);
    let (give_up, gave_up) = oneshot::channel();

    let proving = tokio::spawn({
        let engine = Arc::clone(&engine);
        async move {
            let get_ready = || {
                ready.send_replace(true);
                notify_supervisor(NotifyState::Ready);
                info!("ready");
            };
            let (kek, error) = engine::prove(engine, get_ready).await;
            let fatal = StartError::of(format!("KEK {kek} cannot be used"), &error);
            // Unless the sidecar ends already.
            drop(give_up.send(fatal));
        }
    });

    let mut fatal = None;
    let stop = async {
        tokio::select! {
            () = shutdown => {}
            Ok(error) = gave_up => fatal = Some(error),
        }
        notify_supervisor(NotifyState::Stopping);
    };
    let served = Served { engine: Arc::clone(&engine), sessions, policy, metrics, ready: is_ready };
    let ended = server::serve(&config.server, served, stop, |listening| {
        let server::Listening { socket, tcp, admin } = listening;
        info!(?socket, ?tcp, ?admin, "listening");
    })
    .await;
    proving.abort();
    // A disk that hangs must not keep the process from ending.
    let _hangs = timeout(LAST_WRITE, engine.keep_census()).await;
    for backend in &backends {
        backend.close().await;
    }
    ended?;
    match fatal {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// What outlasts a restart. Without a directory nothing does, which is a choice, but one to
/// be told of.
fn kept(state: Option<&Path>) -> Result<Kept, StartError> {
    match state {
        Some(state) => Ok(Kept {
            revocations: Revocations::open(state).map_err(|error| no_state(&error))?,
            ledger: Ledger::of(state),
        }),
        None => {
            warn!("no `state` directory: a KEK that is revoked would be back after a restart");
            Ok(Kept::nothing())
        }
    }
}

/// Records who owns each KEK, here and beside its key, or refuses to go on if that was
/// another.
async fn fix_modes(state: Option<&Path>, keks: &[KekSpec]) -> Result<(), StartError> {
    let refused = |error: Error| StartError::of("cannot tell who owns the KEKs".to_owned(), &error);
    match state {
        Some(state) => {
            let modes = Modes::open(state).map_err(refused)?;
            keks.iter().try_for_each(|kek| modes.fix(&kek.name, kek.mode)).map_err(refused)?;
        }
        None => {
            if let Some(kek) = keks.iter().find(|kek| kek.mode.rules().is_some()) {
                let what = format!("KEK {} is service-managed, and nothing is kept", kek.name);
                return Err(refused(Error::new(Reason::BackendMisconfigured, what).with_fix(
                    "set `state` in [server]: what the service owns is recorded there",
                )));
            }
        }
    }
    for kek in keks {
        fix_mode_beside(kek).await.map_err(refused)?;
    }
    Ok(())
}

/// The part of it that other sidecars see, where the backend has a place for it.
async fn fix_mode_beside(kek: &KekSpec) -> Result<(), Error> {
    let Some(register) = kek.backend.register() else { return Ok(()) };
    match fix_mode_in(register, kek).await {
        // What cannot be read may say that it is a customer's, which is left alone.
        Err(error) if error.reason().is_transient() && kek.mode.rules().is_none() => {
            let detail = error.detail().unwrap_or("-");
            warn!(kek = %kek.name, detail, "who owns the KEK cannot be read beside its key: {error}");
            Ok(())
        }
        fixed => fixed,
    }
}

async fn fix_mode_in(register: &dyn Register, kek: &KekSpec) -> Result<(), Error> {
    let (name, label, mode) = (&kek.name, &kek.key.label, kek.mode.as_str());
    let deadline = || clock::now() + REGISTER;
    let mut recorded = register.mode_of(label, deadline()).await?;
    if recorded.is_none() {
        match register.record_mode(label, mode, deadline()).await {
            Ok(()) => info!(kek = %name, mode, "who owns the KEK is recorded beside its key"),
            Err(error) => {
                let detail = error.detail().unwrap_or("-");
                info!(kek = %name, detail, "who owns the KEK is not recorded beside its key: {error}");
            }
        }
        // Another sidecar may have been quicker.
        recorded = register.mode_of(label, deadline()).await?;
    }
    recorded.map_or(Ok(()), |recorded| kek.mode.check_kept(name, &recorded)).map_err(|error| {
        error.with_detail(format!("recorded beside the key in backend {}", kek.backend.name()))
    })
}

fn no_state(error: &Error) -> StartError {
    StartError::of("cannot tell which KEKs were revoked".to_owned(), error)
}

/// Warns if connections could use up the open files. Not a reason to refuse: callers are
/// served all the same until there are so many.
fn check_nofile(limit: Option<u64>, needed: u64) {
    if limit.is_some_and(|limit| limit < needed) {
        let fix = "raise LimitNOFILE in a systemd unit (ulimit -Hn), or lower limits.connections";
        warn!(limit, needed, fix, "the limit of open files is too low for all connections");
    }
}

/// Takes the memory for cached DEKs.
fn build_cache(config: &CacheConfig) -> Result<Cache, StartError> {
    let CacheConfig { settings, allow_unlocked, .. } = *config;
    let (count, slots) = Cache::layout(settings.capacity);
    let (shelves, protection) = secret::shelves(count, slots, allow_unlocked).map_err(|error| {
        let less = "lower the capacity in [cache]; `allow_unlocked = true` there accepts that \
                        DEKs may reach swap";
        no_memory(&error, less)
    })?;
    let memory = protection.as_str();
    match protection {
        Protection::Unlocked => warn!(memory, "cached DEKs may be written to swap"),
        Protection::SecretMemory | Protection::Locked => info!(memory, "cached DEKs are locked"),
    }
    Cache::new(settings, shelves, clock::now())
        .map_err(|error| StartError::of("cannot make the DEK cache".to_owned(), &error))
}

/// Takes the memory for the keys of sessions.
fn build_sessions(
    settings: &server::Settings,
    allow_unlocked: bool,
    engine: &Engine,
) -> Result<Arc<Sessions>, StartError> {
    let keys = Locker::new(settings.sessions, allow_unlocked)
        .map_err(|error| no_memory(&error, "lower limits.sessions"))?;
    Ok(Sessions::new(keys, settings.session_age, Arc::clone(engine.sessions())))
}

/// There is no memory for secrets; `less` says how to ask for less.
fn no_memory(error: &SlabError, less: &str) -> StartError {
    StartError {
        what: error.what().to_owned(),
        cause: error.cause(),
        fix: Some(error.fix_or(less)),
    }
}

/// Blocks for as long as the devices take.
fn open_backends(configs: &[BackendConfig]) -> Result<Vec<Arc<dyn Backend>>, StartError> {
    let open = |config: &BackendConfig| {
        build_backend(config).map_err(|error| {
            StartError::of(format!("cannot open backend {}", config.name()), &error)
        })
    };
    configs.iter().map(open).collect()
}

fn kek_specs(keks: &[KekConfig], backends: &[Arc<dyn Backend>]) -> Vec<KekSpec> {
    let spec = |kek: &KekConfig| KekSpec {
        name: kek.name.clone(),
        backend: backends
            .iter()
            .find(|backend| backend.name() == kek.backend)
            .map(Arc::clone)
            .expect("the configuration was checked: every KEK names a backend"),
        key: kek.key.clone(),
        algorithm: kek.algorithm,
        newest_disabled: kek.newest_disabled,
        mode: kek.mode,
    };
    keks.iter().map(spec).collect()
}

/// Tells systemd, if it supervises us (`Type=notify`).
fn notify_supervisor(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!("cannot notify the supervisor: {error}");
    }
}

/// The signals that stop the sidecar.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    /// From here on the signals no longer kill the process.
    fn listen() -> Result<Self, StartError> {
        let on = |kind| {
            signal(kind).map_err(|error| StartError::new("cannot listen for signals", error))
        };
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            hangup: on(SignalKind::hangup())?,
        })
    }

    /// Resolves when the sidecar is to stop.
    async fn received(mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return info!("SIGTERM"),
                _ = self.interrupt.recv() => return info!("SIGINT"),
                _ = self.hangup.recv() => {
                    warn!("SIGHUP: this release does not reload its configuration; restart it");
                }
            }
        }
    }
}

impl StartError {
    fn new(what: impl Into<String>, cause: impl ToString) -> Self {
        Self { what: what.into(), cause: cause.to_string(), fix: None }
    }

    /// The operator may see the detail that callers do not.
    fn of(what: String, error: &Error) -> Self {
        let cause = match error.detail() {
            Some(detail) => format!("{error} ({detail})"),
            None => error.to_string(),
        };
        Self { what, cause, fix: error.fix().map(str::to_owned) }
    }
}

impl From<SetupError> for StartError {
    fn from(error: SetupError) -> Self {
        Self {
            what: error.what().to_owned(),
            cause: error.cause().to_owned(),
            fix: error.fix().map(str::to_owned),
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.cause)
    }
}

impl std::error::Error for StartError {}
