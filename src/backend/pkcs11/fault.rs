//! What can go wrong inside the backend, before it is judged; and what a caller is
//! told once it is.

use super::{
    ckr::{self, Class},
    raw::Ckr,
};
use crate::error::{Error, Reason};

/// Trouble of one attempt.
#[derive(Debug)]
pub(super) enum Fault {
    /// The module said no.
    Ckr(Ckr),
    /// An operation on a caller's ciphertext failed in a way that may be the
    /// ciphertext's fault or the device's. `judge.rs` finds out.
    Suspect(Ckr),
    /// No token fits the selector; what there is, for the operator.
    NoToken(String),
    /// The token cannot be told from another, or not be logged in to, until the operator
    /// mends what this says.
    NoLogin(Error),
    /// The key is not on the token.
    KeyGone(String),
    /// A key of that label and id is there, but it is another one.
    KeyChanged(String),
    /// The key seems to be gone, but that could not be confirmed.
    Unconfirmed(String),
    /// That many threads hang in the module.
    Hung(usize),
    /// The deadline passed before the module could be called.
    TooLate,
    /// Settled: no rung of the ladder can help.
    Refused(Error),
}

impl From<Ckr> for Fault {
    fn from(error: Ckr) -> Self {
        Self::Ckr(error)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl Fault {
    /// What to say instead when a fault that needs confirmation cannot get it.
    pub(super) fn unconfirmed(&self) -> Option<Self> {
        match self {
            Self::KeyGone(what) => Some(Self::Unconfirmed(what.clone())),
            _ => None,
        }
    }

    /// What the operator is told whose sidecar does not start for it: as
    /// [`Self::into_error`], but a login that fails is his to mend, before anything else.
    pub(super) fn into_start_error(self) -> Error {
        match self {
            Self::NoLogin(error) => error,
            other => other.into_error(),
        }
    }

    /// What a caller is told when the ladder has been climbed in vain.
    pub(super) fn into_error(self) -> Error {
        match self {
            Self::Refused(error) => error,
            Self::NoLogin(error) => cannot_ask(&error),
            Self::Ckr(error) | Self::Suspect(error) if ckr::class(error.code) == Class::Pin => {
                cannot_ask(&ckr_error(error))
            }
            Self::Ckr(error) | Self::Suspect(error) => ckr_error(error),
            Self::NoToken(detail) => {
                unreachable("the token is not there").with_detail(detail).with_fix(
                    "see that the token is plugged in or reachable, and that `token` and `serial` name it",
                )
            }
            Self::KeyGone(what) => {
                Error::new(Reason::KekVersionNotFound, format!("the token no longer has {what}"))
                    .with_fix("restore the key from the HSM's backup; DEKs under it are dark until then")
            }
            Self::KeyChanged(what) => {
                Error::new(Reason::KekMismatch, format!("the token has another key as {what}"))
                    .with_fix("the key was deleted and made again; restore the old one, or use the new version")
            }
            Self::Unconfirmed(what) => unreachable("the HSM shows no trace of the key")
                .with_detail(format!("{what} was not found; whether it is gone is not clear yet")),
            Self::Hung(threads) => unreachable("calls into the PKCS#11 module hang")
                .with_detail(format!("{threads} threads inside")),
            Self::TooLate => {
                Error::new(Reason::DeadlineExceeded, "the HSM was not free before the deadline")
            }
        }
    }
}

fn unreachable(message: &'static str) -> Error {
    Error::new(Reason::BackendUnreachable, message)
}

/// A login that fails says nothing of any key, so it must not look like a key that is
/// denied: the token cannot be asked, and for how long DEKs are released all the same is
/// bounded as in any outage. That goes for a PIN that the token itself refuses, too: PINs
/// are changed, expire and are locked by mistakes, and whoever wants a key dark can say
/// so of the key.
fn cannot_ask(error: &Error) -> Error {
    let said = Error::new(Reason::BackendUnreachable, error.message().to_owned());
    let said = match error.fix() {
        Some(fix) => said.with_fix(fix.to_owned()),
        None => said,
    };
    match error.detail() {
        Some(detail) => said.with_detail(detail),
        None => said,
    }
}

/// What a code says, in words.
pub(super) fn ckr_error(Ckr { function, code }: Ckr) -> Error {
    let detail = format!("{function}: {}", ckr::name(code));
    let misconfigured = |message| Error::new(Reason::BackendMisconfigured, message);
    let error = match ckr::class(code) {
        Class::Ambiguous | Class::Handle | Class::Session | Class::Login | Class::Gone => {
            unreachable("the HSM fails")
        }
        Class::Pin => misconfigured("the token refuses the PIN")
            .with_fix("mend the PIN in `pin_file` or `pin_env`; the same PIN is not tried again"),
        Class::Mechanism => misconfigured("the token does not do this operation")
            .with_fix("set an `algorithm` that the token supports"),
        Class::KeyUse => Error::new(Reason::KekDisabled, "the key may not be used for this")
            .with_fix("set the key's usage flags (CKA_DECRYPT or CKA_UNWRAP) on the token"),
        Class::Full => {
            Error::new(Reason::Overloaded, "the HSM has no room for more sessions or objects")
        }
        Class::Template => misconfigured("the token does not take the attributes of the object")
            .with_fix("report the token's model: its rules for templates are not known yet"),
    };
    error.with_detail(detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cryptoki_sys::*;

    #[test]
    fn a_login_that_fails_is_an_outage_unless_the_sidecar_only_starts() {
        let wrong = || {
            Error::new(Reason::BackendMisconfigured, "no PIN").with_fix("write it").with_detail("x")
        };
        let told = Fault::NoLogin(wrong()).into_error();
        assert!(told.reason().is_transient(), "{told:?}");
        assert_eq!(
            (told.message(), told.fix(), told.detail()),
            ("no PIN", Some("write it"), Some("x"))
        );
        let told = Fault::NoLogin(wrong()).into_start_error();
        assert_eq!(told.reason(), Reason::BackendMisconfigured);
        // Modules may say so in the middle of other work.
        for code in [CKR_PIN_INCORRECT, CKR_PIN_LOCKED, CKR_PIN_EXPIRED] {
            let told = Fault::Ckr(Ckr { function: "C_DecryptInit", code }).into_error();
            assert!(told.reason().is_transient(), "{told:?}");
        }
    }

    #[test]
    fn what_is_said_of_a_key_is_no_outage() {
        let said = |code| Fault::Ckr(Ckr { function: "C_Decrypt", code }).into_error();
        for fault in [
            said(CKR_KEY_FUNCTION_NOT_PERMITTED),
            said(CKR_MECHANISM_INVALID),
            Fault::KeyGone("it".into()).into_error(),
            Fault::KeyChanged("it".into()).into_error(),
        ] {
            assert!(!fault.reason().is_transient(), "{fault:?}");
        }
    }
}
