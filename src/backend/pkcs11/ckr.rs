//! The one table of `CKR_` codes: what each says about the state of things, and so
//! what helps. Codes are from PKCS#11 v3.1, section 5.1.6 and what modules were seen to return.
//!
//! A code alone never condemns a ciphertext: SoftHSM answers a bad one with
//! `CKR_GENERAL_ERROR`, kryoptic with `CKR_DEVICE_ERROR`, opencryptoki with
//! `CKR_FUNCTION_FAILED`, and the same codes mean a dead device elsewhere. Those are
//! [`Class::Ambiguous`], and `judge.rs` finds out.

use std::borrow::Cow;

use cryptoki_sys::*;

/// What a code says about the state of things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Anything may be wrong, also the data.
    Ambiguous,
    /// The object behind a handle is not there, or not the same.
    Handle,
    /// The session is gone, and with it most likely all of them.
    Session,
    /// Nobody is logged in.
    Login,
    /// The token or the library is gone.
    Gone,
    /// The PIN was refused or cannot be used. Trying again costs a try.
    Pin,
    /// The token does not do this mechanism, or not with these parameters.
    Mechanism,
    /// The key may not be used like this.
    KeyUse,
    /// No room: memory or sessions.
    Full,
    /// The template does not suit this token.
    Template,
}

struct Row(CK_RV, &'static str, Class);

macro_rules! rows {
    ($($class:ident: $($code:ident),+;)+) => {
        const ROWS: &[Row] = &[$($(Row($code, stringify!($code), Class::$class)),+),+];
    };
}

rows! {
    Ambiguous: CKR_GENERAL_ERROR, CKR_FUNCTION_FAILED, CKR_DEVICE_ERROR, CKR_DATA_INVALID,
        CKR_DATA_LEN_RANGE, CKR_ENCRYPTED_DATA_INVALID, CKR_ENCRYPTED_DATA_LEN_RANGE,
        CKR_WRAPPED_KEY_INVALID, CKR_WRAPPED_KEY_LEN_RANGE, CKR_BUFFER_TOO_SMALL,
        CKR_FUNCTION_CANCELED, CKR_CANCEL, CKR_OPERATION_ACTIVE, CKR_OPERATION_NOT_INITIALIZED;
    Handle: CKR_OBJECT_HANDLE_INVALID, CKR_KEY_HANDLE_INVALID, CKR_UNWRAPPING_KEY_HANDLE_INVALID,
        CKR_WRAPPING_KEY_HANDLE_INVALID, CKR_KEY_CHANGED, CKR_KEY_NEEDED;
    Session: CKR_SESSION_HANDLE_INVALID, CKR_SESSION_CLOSED;
    Login: CKR_USER_NOT_LOGGED_IN, CKR_USER_TYPE_INVALID, CKR_USER_ANOTHER_ALREADY_LOGGED_IN,
        CKR_USER_TOO_MANY_TYPES;
    Gone: CKR_DEVICE_REMOVED, CKR_TOKEN_NOT_PRESENT, CKR_TOKEN_NOT_RECOGNIZED,
        CKR_SLOT_ID_INVALID, CKR_CRYPTOKI_NOT_INITIALIZED;
    Pin: CKR_PIN_INCORRECT, CKR_PIN_INVALID, CKR_PIN_LEN_RANGE, CKR_PIN_EXPIRED, CKR_PIN_LOCKED,
        CKR_USER_PIN_NOT_INITIALIZED;
    Mechanism: CKR_MECHANISM_INVALID, CKR_MECHANISM_PARAM_INVALID, CKR_ARGUMENTS_BAD,
        CKR_FUNCTION_NOT_SUPPORTED, CKR_RANDOM_NO_RNG;
    KeyUse: CKR_KEY_FUNCTION_NOT_PERMITTED, CKR_KEY_TYPE_INCONSISTENT, CKR_KEY_SIZE_RANGE,
        CKR_UNWRAPPING_KEY_SIZE_RANGE, CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT,
        CKR_WRAPPING_KEY_SIZE_RANGE, CKR_WRAPPING_KEY_TYPE_INCONSISTENT, CKR_KEY_NOT_WRAPPABLE,
        CKR_KEY_UNEXTRACTABLE, CKR_ACTION_PROHIBITED, CKR_TOKEN_WRITE_PROTECTED,
        CKR_SESSION_READ_ONLY;
    Full: CKR_HOST_MEMORY, CKR_DEVICE_MEMORY, CKR_SESSION_COUNT;
    Template: CKR_ATTRIBUTE_READ_ONLY, CKR_ATTRIBUTE_SENSITIVE, CKR_ATTRIBUTE_TYPE_INVALID,
        CKR_ATTRIBUTE_VALUE_INVALID, CKR_TEMPLATE_INCOMPLETE, CKR_TEMPLATE_INCONSISTENT;
}

/// What a code says. Codes that the table does not know, vendors' among them, may
/// mean anything.
pub(super) fn class(code: CK_RV) -> Class {
    ROWS.iter().find(|row| row.0 == code).map_or(Class::Ambiguous, |row| row.2)
}

/// The name of a code.
pub(super) fn name(code: CK_RV) -> Cow<'static, str> {
    match ROWS.iter().find(|row| row.0 == code) {
        Some(row) => Cow::Borrowed(row.1),
        None => Cow::Owned(format!("CKR 0x{code:08X}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn each_code_stands_in_the_table_once() {
        let codes: HashSet<_> = ROWS.iter().map(|row| row.0).collect();
        assert_eq!(codes.len(), ROWS.len());
    }

    #[test]
    fn what_modules_answer_to_garbage_is_ambiguous() {
        for code in [
            CKR_GENERAL_ERROR,          // SoftHSM 2.6.1
            CKR_DEVICE_ERROR,           // kryoptic 1.5.4
            CKR_FUNCTION_FAILED,        // opencryptoki 3.8.1
            CKR_ENCRYPTED_DATA_INVALID, // NSS 3.87
            0x8000_0001,                // a vendor's own
        ] {
            assert_eq!(class(code), Class::Ambiguous, "{}", name(code));
        }
    }

    #[test]
    fn unknown_codes_have_a_name() {
        assert_eq!(name(CKR_PIN_LOCKED), "CKR_PIN_LOCKED");
        assert_eq!(name(0x8000_0001), "CKR 0x80000001");
    }
}
