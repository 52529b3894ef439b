//! The ladder of recovery: which rung to try after a fault. Pure; `worker.rs` climbs.
//!
//! find the key again -> log in again -> initialize the module again
//!
//! Each rung includes those below it. A fault says on which rung to begin; a fault
//! that persists moves one up; past the last one there is nothing left to do here.
//! A rung that cannot help is not tried: a wrong PIN never leads to another login.

use super::{ckr, ckr::Class, fault::Fault};

/// A rung of the ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Rung {
    /// A fresh session, and the key looked up anew.
    FindAgain,
    /// All sessions ended, and the user logged in anew.
    LogIn,
    /// `C_Finalize`, `C_Initialize`, the slot looked up anew.
    Initialize,
}

/// What to do after a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Advice {
    /// Climb to this rung and try once more.
    Climb(Rung),
    /// The ciphertext may be at fault: ask the judge.
    Judge,
    /// Give up.
    GiveUp,
}

/// `climbed` is the highest rung that this operation has tried; `of_caller` says
/// whether it works on bytes that a caller sent.
pub(super) fn advise(fault: &Fault, climbed: Option<Rung>, of_caller: bool) -> Advice {
    let first = match fault {
        Fault::Ckr(error) => match ckr::class(error.code) {
            // A token may also dislike the object that a caller's bytes unwrap to.
            Class::Ambiguous | Class::Template if of_caller => return Advice::Judge,
            Class::Ambiguous | Class::Handle => Rung::FindAgain,
            // A stale handle can name an object of another kind by now.
            Class::KeyUse if climbed.is_none() => Rung::FindAgain,
            Class::Session | Class::Login => Rung::LogIn,
            Class::Gone => Rung::Initialize,
            Class::Pin | Class::Mechanism | Class::KeyUse | Class::Full | Class::Template => {
                return Advice::GiveUp;
            }
        },
        // A token that went away and came back shows no keys, and no sign of trouble,
        // until the module is initialised again (SoftHSM).
        Fault::KeyGone(_) | Fault::NoToken(_) => Rung::Initialize,
        Fault::Suspect(_)
        | Fault::KeyChanged(_)
        | Fault::Unconfirmed(_)
        | Fault::Hung(_)
        | Fault::NoLogin(_)
        | Fault::TooLate
        | Fault::Refused(_) => return Advice::GiveUp,
    };
    let next = match climbed {
        None => first,
        Some(Rung::FindAgain) => first.max(Rung::LogIn),
        Some(Rung::LogIn) => first.max(Rung::Initialize),
        Some(Rung::Initialize) => return Advice::GiveUp,
    };
    Advice::Climb(next)
}

#[cfg(test)]
mod tests {
    use super::{super::raw::Ckr, *};
    use cryptoki_sys::*;

    fn fault(code: CK_RV) -> Fault {
        Fault::Ckr(Ckr { function: "C_Decrypt", code })
    }

    /// The rungs that an operation climbs if the same fault persists.
    fn climb(fault: &Fault, of_caller: bool) -> (Vec<Rung>, Advice) {
        let mut rungs = vec![];
        loop {
            match advise(fault, rungs.last().copied(), of_caller) {
                Advice::Climb(rung) => rungs.push(rung),
                end => return (rungs, end),
            }
            assert!(rungs.len() <= 3, "the ladder has no top");
        }
    }

    #[test]
    fn each_fault_begins_where_it_can_be_mended_and_climbs_to_the_top() {
        use Rung::*;
        for (code, rungs) in [
            (CKR_OBJECT_HANDLE_INVALID, &[FindAgain, LogIn, Initialize][..]),
            (CKR_GENERAL_ERROR, &[FindAgain, LogIn, Initialize]),
            (CKR_SESSION_HANDLE_INVALID, &[LogIn, Initialize]),
            (CKR_USER_NOT_LOGGED_IN, &[LogIn, Initialize]),
            (CKR_DEVICE_REMOVED, &[Initialize]),
            (CKR_CRYPTOKI_NOT_INITIALIZED, &[Initialize]),
            (CKR_KEY_FUNCTION_NOT_PERMITTED, &[FindAgain]),
        ] {
            assert_eq!(climb(&fault(code), false), (rungs.to_vec(), Advice::GiveUp));
        }
    }

    #[test]
    fn a_pin_is_never_tried_again() {
        for code in [CKR_PIN_INCORRECT, CKR_PIN_LOCKED, CKR_PIN_EXPIRED, CKR_PIN_LEN_RANGE] {
            assert_eq!(climb(&fault(code), false), (vec![], Advice::GiveUp));
        }
    }

    #[test]
    fn bytes_of_a_caller_cannot_move_the_ladder() {
        for code in [
            CKR_GENERAL_ERROR,
            CKR_DEVICE_ERROR,
            CKR_FUNCTION_FAILED,
            CKR_TEMPLATE_INCONSISTENT,
            0x8000_0001,
        ] {
            assert_eq!(climb(&fault(code), true), (vec![], Advice::Judge));
        }
    }

    #[test]
    fn an_ambiguous_fault_after_a_rung_is_judged_too() {
        let advice = advise(&fault(CKR_GENERAL_ERROR), Some(Rung::FindAgain), true);
        assert_eq!(advice, Advice::Judge);
    }
}
