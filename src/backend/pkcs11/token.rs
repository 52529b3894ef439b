//! One token: which slot it is in, and being logged in to it.
//!
//! A *keeper* session that does no work holds the login, because closing the last
//! session of a process logs it out. The login is done once per era.
//!
//! Invariants: a PIN that was refused is not tried again (most tokens lock after a few
//! tries, some for good); a token that says that the next wrong PIN locks it is left
//! alone unless the operator allows it. What is wrong with the selector, the flags or the
//! PIN is [`Fault::NoLogin`]: it is about the token, never about a key.

use std::sync::{Arc, Mutex, PoisonError};

use cryptoki_sys::{
    CK_SESSION_HANDLE, CK_SLOT_ID, CKF_LOGIN_REQUIRED, CKF_PROTECTED_AUTHENTICATION_PATH,
    CKF_USER_PIN_COUNT_LOW, CKF_USER_PIN_FINAL_TRY, CKF_USER_PIN_INITIALIZED, CKF_USER_PIN_LOCKED,
    CKR_USER_ALREADY_LOGGED_IN,
};
use tracing::{info, warn};

use super::{
    Settings, TokenSelector,
    ckr::{self, Class},
    fault::{Fault, ckr_error},
    ffi::Library,
    gate::Pass,
    mechanism::Mechanisms,
    module::Module,
    pin,
    raw::{Ckr, TokenInfo},
};
use crate::{
    error::{Error, Reason},
    secret::Secret,
};

pub(super) struct Token {
    pub(super) module: Arc<Module>,
    settings: Settings,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    live: Option<Arc<Live>>,
    /// The PIN that was refused, and what the token said.
    refused: Option<(Secret, Error)>,
}

/// A token that is logged in to, for the rest of an era.
pub(super) struct Live {
    pub(super) era: u64,
    pub(super) slot: CK_SLOT_ID,
    pub(super) info: TokenInfo,
    pub(super) mechanisms: Mechanisms,
    /// Ends with the era, or with the module.
    _keeper: CK_SESSION_HANDLE,
}

impl Token {
    pub(super) fn new(module: Arc<Module>, settings: Settings) -> Self {
        Self { module, settings, state: Mutex::default() }
    }

    /// The token, logged in to. Logs in if this era has not yet.
    pub(super) fn live(&self, pass: &Pass<'_>) -> Result<Arc<Live>, Fault> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(live) = &state.live
            && live.era == pass.era()
        {
            return Ok(Arc::clone(live));
        }
        state.live = None;
        let library = self.module.library(pass);
        let (slot, info) = find(library, &self.settings.token)?;
        let keeper = library.open_session(slot, false)?;
        if let Err(fault) = self.log_in(library, keeper, &info, &mut state) {
            // Nobody else knows this session yet, so its number is ours to close.
            let _best_effort = library.close_session(keeper);
            return Err(fault);
        }
        let live = Arc::new(Live {
            era: pass.era(),
            slot,
            info,
            mechanisms: Mechanisms::default(),
            _keeper: keeper,
        });
        state.live = Some(Arc::clone(&live));
        Ok(live)
    }

    /// Ends every session on the token, and with them the login, unless the era `seen`
    /// is over already.
    pub(super) fn end_sessions(&self, seen: u64) -> Result<(), Fault> {
        let slot = {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.live.as_ref().filter(|live| live.era == seen).map(|live| live.slot)
        };
        match slot {
            Some(slot) => self.module.end_sessions(slot, seen),
            // There is no login to end: the next attempt makes one.
            None => Ok(()),
        }
    }

    fn log_in(
        &self,
        library: &Library,
        keeper: CK_SESSION_HANDLE,
        info: &TokenInfo,
        state: &mut State,
    ) -> Result<(), Fault> {
        let says = |flag| info.flags & flag != 0;
        let label = &info.label;
        if !says(CKF_LOGIN_REQUIRED) {
            return Ok(());
        }
        check_flags(info, self.settings.allow_final_try).map_err(Fault::NoLogin)?;
        if says(CKF_USER_PIN_COUNT_LOW) {
            warn!(token = %label, "a wrong PIN was tried on the token before: few tries are left");
        }
        let pin = match says(CKF_PROTECTED_AUTHENTICATION_PATH) {
            true => None,
            false => Some(pin::read(&self.settings.pin).map_err(Fault::NoLogin)?),
        };
        if let (Some(pin), Some((refused, error))) = (&pin, &state.refused)
            && refused.ct_eq(pin.expose())
        {
            return Err(Fault::NoLogin(error.clone()));
        }
        match library.login(keeper, pin.as_ref()) {
            // Logged in by another part of this process; the PIN was not looked at.
            Ok(()) | Err(Ckr { code: CKR_USER_ALREADY_LOGGED_IN, .. }) => {
                state.refused = None;
                info!(token = %label, serial = %info.serial, "logged in to the token");
                Ok(())
            }
            Err(error) if ckr::class(error.code) == Class::Pin => {
                let error = ckr_error(error);
                warn!(token = %label, detail = error.detail().unwrap_or("-"), "{error}");
                if let Some(pin) = pin {
                    state.refused = Some((pin, error.clone()));
                }
                Err(Fault::NoLogin(error))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// What the token's flags say against logging in.
fn check_flags(info: &TokenInfo, allow_final_try: bool) -> Result<(), Error> {
    let says = |flag| info.flags & flag != 0;
    let refuse = |what: &str| {
        Error::new(
            Reason::BackendMisconfigured,
            format!("the user PIN of token {} {what}", info.label),
        )
    };
    if says(CKF_USER_PIN_LOCKED) {
        return Err(refuse("is locked").with_fix("have the security officer reset it"));
    }
    if !says(CKF_USER_PIN_INITIALIZED) {
        return Err(refuse("is not set").with_fix("have the security officer set it"));
    }
    if says(CKF_USER_PIN_FINAL_TRY) && !allow_final_try {
        return Err(refuse("has one try left before it locks").with_fix(
            "log in once with another tool to clear the count, or set `allow_final_try = true` if the PIN is right",
        ));
    }
    Ok(())
}

/// The one slot whose token fits. Slots that give no information are passed over: one
/// broken reader must not hide the others.
fn find(library: &Library, wanted: &TokenSelector) -> Result<(CK_SLOT_ID, TokenInfo), Fault> {
    let mut fitting = Vec::new();
    let mut others = Vec::new();
    for slot in library.slots()? {
        match library.token_info(slot) {
            Ok(info) if fits(&info, wanted) => fitting.push((slot, info)),
            Ok(info) => others.push(format!("{:?} (serial {:?})", info.label, info.serial)),
            Err(error) => others.push(format!("slot {slot}: {}", ckr::name(error.code))),
        }
    }
    if fitting.len() > 1 {
        let serials: Vec<_> = fitting.iter().map(|(_, info)| info.serial.as_str()).collect();
        return Err(Fault::NoLogin(
            Error::new(
                Reason::BackendMisconfigured,
                format!("{} tokens have this label", fitting.len()),
            )
            .with_detail(format!("their serials are {}", serials.join(", ")))
            .with_fix("add `serial` to the backend"),
        ));
    }
    fitting.pop().ok_or_else(|| {
        let seen = if others.is_empty() { "none".into() } else { others.join(", ") };
        Fault::NoToken(format!("wanted {wanted}; tokens that are there: {seen}"))
    })
}

fn fits(info: &TokenInfo, wanted: &TokenSelector) -> bool {
    let TokenSelector { label, serial } = wanted;
    // A selector that names nothing fits nothing.
    (label.is_some() || serial.is_some())
        && label.as_ref().is_none_or(|label| *label == info.label)
        && serial.as_ref().is_none_or(|serial| *serial == info.serial)
}

impl std::fmt::Display for TokenSelector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.label, &self.serial) {
            (Some(label), Some(serial)) => write!(f, "label {label:?} with serial {serial:?}"),
            (Some(label), None) => write!(f, "label {label:?}"),
            (None, Some(serial)) => write!(f, "serial {serial:?}"),
            (None, None) => f.write_str("no token in particular"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(flags: u64) -> TokenInfo {
        TokenInfo {
            label: "keyward".into(),
            serial: "0a1b".into(),
            flags: flags | CKF_LOGIN_REQUIRED | CKF_USER_PIN_INITIALIZED,
            ..TokenInfo::default()
        }
    }

    #[test]
    fn a_token_at_its_final_try_is_left_alone() {
        assert!(check_flags(&info(0), false).is_ok());
        assert!(check_flags(&info(CKF_USER_PIN_COUNT_LOW), false).is_ok());
        assert!(check_flags(&info(CKF_USER_PIN_FINAL_TRY), false).is_err());
        assert!(check_flags(&info(CKF_USER_PIN_FINAL_TRY), true).is_ok());
        assert!(check_flags(&info(CKF_USER_PIN_LOCKED), true).is_err());
    }

    #[test]
    fn a_selector_must_fit_whole() {
        let wanted = |label: Option<&str>, serial: Option<&str>| TokenSelector {
            label: label.map(Into::into),
            serial: serial.map(Into::into),
        };
        assert!(fits(&info(0), &wanted(Some("keyward"), None)));
        assert!(fits(&info(0), &wanted(None, Some("0a1b"))));
        assert!(fits(&info(0), &wanted(Some("keyward"), Some("0a1b"))));
        assert!(!fits(&info(0), &wanted(Some("keyward"), Some("other"))));
        assert!(!fits(&info(0), &wanted(Some("keywar"), None)));
        assert!(!fits(&info(0), &wanted(None, None)));
    }
}
