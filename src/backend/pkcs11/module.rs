//! A loaded and initialised module, shared by every backend that names its file.
//!
//! PKCS#11 has one library state per process, so this file keeps one [`Module`] per
//! file: two of them would finalize each other's sessions away. The last one to let go
//! finalizes it.
//!
//! Invariants: nothing is called while the module is being initialised again (`Gate`),
//! and `C_Initialize` that keeps failing is tried with growing pauses.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use cryptoki_sys::{CKR_CRYPTOKI_ALREADY_INITIALIZED, CKR_CRYPTOKI_NOT_INITIALIZED};
use tracing::{info, warn};

use super::{
    ckr,
    fault::Fault,
    ffi::Library,
    gate::{Gate, NotAlone, Pass},
    raw::{Ckr, LoadError},
};
use crate::error::{Error, Reason};

/// How long a thread waits for the others to leave before it initialises again.
const ALONE_PATIENCE: Duration = Duration::from_secs(2);
/// Longest pause between two failed initialisations.
const PAUSE_MAX: Duration = Duration::from_secs(5);
const PAUSE_MIN: Duration = Duration::from_millis(100);

static MODULES: Mutex<Option<HashMap<PathBuf, Weak<Module>>>> = Mutex::new(None);

pub(super) struct Module {
    path: PathBuf,
    args: String,
    library: Library,
    gate: Gate,
    up: Mutex<Up>,
    /// When it was last initialised.
    initialized: Mutex<Instant>,
}

/// Whether the library is initialised.
#[derive(Clone, Copy)]
enum Up {
    Yes,
    /// Not since an initialisation failed; when the next may be tried.
    No {
        retry_at: Instant,
        pause: Duration,
        code: u64,
    },
}

impl Module {
    /// Loads and initialises the module, or joins whoever has already.
    pub(super) fn open(path: &Path, args: &str) -> Result<Arc<Self>, Error> {
        if args.contains('\0') {
            return Err(Error::new(
                Reason::BackendMisconfigured,
                "`module_args` holds a NUL character, which no module can be given",
            )
            .with_fix("write the module's parameters as text"));
        }
        let real = path.canonicalize().map_err(|error| {
            misconfigured(format!("the PKCS#11 module {} cannot be opened", path.display()))
                .with_detail(error.to_string())
        })?;
        let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
        let modules = modules.get_or_insert_default();
        if let Some(module) = modules.get(&real).and_then(Weak::upgrade) {
            if module.args != args {
                return Err(Error::new(
                    Reason::BackendMisconfigured,
                    format!(
                        "two backends give the module {} different module_args",
                        real.display()
                    ),
                )
                .with_fix("give them the same: a process initialises a module only once"));
            }
            return Ok(module);
        }
        let library = Library::load(&real).map_err(|error| load_error(path, &error))?;
        initialize(&library, args).map_err(|error| {
            misconfigured(format!("the PKCS#11 module {} does not initialise", path.display()))
                .with_detail(format!("{}: {}", error.function, ckr::name(error.code)))
                .with_fix("see the module's own log and its configuration (SoftHSM: SOFTHSM2_CONF)")
        })?;
        let module = Arc::new(Self {
            path: real.clone(),
            args: args.to_owned(),
            library,
            gate: Gate::new(),
            up: Mutex::new(Up::Yes),
            initialized: Mutex::new(Instant::now()),
        });
        modules.retain(|_, module| module.strong_count() > 0);
        modules.insert(real, Arc::downgrade(&module));
        Ok(module)
    }

    /// The calls. Only for holders of a pass.
    pub(super) fn library(&self, _pass: &Pass<'_>) -> &Library {
        &self.library
    }

    /// Leave to call the module. Initialises it again first if that failed earlier.
    pub(super) fn enter(&self, deadline: Instant) -> Result<Pass<'_>, Fault> {
        let pass = self.gate.enter(deadline).ok_or(Fault::TooLate)?;
        let up = *self.up();
        let Up::No { retry_at, code, .. } = up else {
            return Ok(pass);
        };
        let era = pass.era();
        drop(pass);
        if Instant::now() < retry_at {
            return Err(Fault::Ckr(Ckr { function: "C_Initialize", code }));
        }
        self.reinitialize(era)?;
        self.gate.enter(deadline).ok_or(Fault::TooLate)
    }

    /// Whether the era `seen` was ended by somebody.
    pub(super) fn era_is_over(&self, seen: u64) -> bool {
        self.gate.era() != seen
    }

    /// Whether the module was initialised so short a time ago.
    pub(super) fn initialized_within(&self, time: Duration) -> bool {
        self.initialized.lock().unwrap_or_else(PoisonError::into_inner).elapsed() < time
    }

    /// `C_Finalize` and `C_Initialize`, unless somebody already ended the era `seen`.
    pub(super) fn reinitialize(&self, seen: u64) -> Result<(), Fault> {
        let alone = match self.gate.alone(seen, ALONE_PATIENCE) {
            Ok(alone) => alone,
            Err(NotAlone::EraIsOver) => return Ok(()),
            Err(NotAlone::Occupied(threads)) => return Err(Fault::Hung(threads)),
        };
        let before = *self.up();
        if let Up::Yes = before {
            match self.library.finalize() {
                Ok(()) | Err(Ckr { code: CKR_CRYPTOKI_NOT_INITIALIZED, .. }) => {}
                Err(error) => warn!(code = %ckr::name(error.code), "C_Finalize failed"),
            }
        }
        let outcome = initialize(&self.library, &self.args);
        *self.up() = match &outcome {
            Ok(()) => {
                *self.initialized.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                Up::Yes
            }
            Err(error) => {
                let pause = match before {
                    Up::Yes => PAUSE_MIN,
                    Up::No { pause, .. } => (pause * 2).min(PAUSE_MAX),
                };
                Up::No { retry_at: Instant::now() + pause, pause, code: error.code }
            }
        };
        drop(alone);
        match outcome {
            Ok(()) => {
                info!(module = %self.path.display(), "initialised the PKCS#11 module again");
                Ok(())
            }
            Err(error) => Err(Fault::Ckr(error)),
        }
    }

    /// Ends every session on a slot, of every thread, unless that was done already. The
    /// sessions on other slots end too: they are of the era that ends here, so whoever
    /// holds one forgets it, and would leave it open for good.
    pub(super) fn end_sessions(&self, slot: u64, seen: u64) -> Result<(), Fault> {
        match self.gate.alone(seen, ALONE_PATIENCE) {
            Ok(_alone) => {
                let mut slots = self.library.slots().unwrap_or_default();
                slots.retain(|other| *other != slot);
                slots.push(slot);
                for slot in slots {
                    // Most likely there is none left; logging in again will show.
                    if let Err(error) = self.library.close_all_sessions(slot) {
                        warn!(slot, code = %ckr::name(error.code), "C_CloseAllSessions failed");
                    }
                }
                Ok(())
            }
            Err(NotAlone::EraIsOver) => Ok(()),
            Err(NotAlone::Occupied(threads)) => Err(Fault::Hung(threads)),
        }
    }

    fn up(&self) -> MutexGuard<'_, Up> {
        self.up.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // Whoever held a pass held the module alive, so nobody is inside.
        if let Err(error) = self.library.finalize() {
            warn!(code = %ckr::name(error.code), "C_Finalize failed");
        }
    }
}

/// Another user of the module in this process may have been first, which is fine.
fn initialize(library: &Library, args: &str) -> Result<(), Ckr> {
    match library.initialize(args) {
        Err(Ckr { code: CKR_CRYPTOKI_ALREADY_INITIALIZED, .. }) => Ok(()),
        other => other,
    }
}

fn load_error(path: &Path, error: &LoadError) -> Error {
    let shown = path.display();
    match error {
        LoadError::Open(text) => {
            misconfigured(format!("{shown} is not a library that can be loaded"))
                .with_detail(text.clone())
        }
        LoadError::NotPkcs11 => misconfigured(format!(
            "{shown} is a library, but not a PKCS#11 module: it has no C_GetFunctionList"
        )),
        LoadError::Refused(code) => {
            misconfigured(format!("the module {shown} gives no function list"))
                .with_detail(ckr::name(*code))
        }
    }
}

fn misconfigured(message: String) -> Error {
    Error::new(Reason::BackendMisconfigured, message)
        .with_fix("set `module` to the vendor's PKCS#11 library, built for this machine")
}
