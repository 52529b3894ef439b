//! What goes into a module and comes out of it, in our words: return values,
//! mechanisms with their parameters, templates, what a token says of itself.
//!
//! Safe code only: it builds and reads the C forms; `ffi.rs` hands them over.

use std::ptr;

use cryptoki::object::Attribute;
use cryptoki_sys::*;

use crate::kek::OaepHash;

/// A return value that is not `CKR_OK`, and the function that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ckr {
    pub(super) function: &'static str,
    pub(super) code: CK_RV,
}

/// Why a module could not be loaded.
#[derive(Debug)]
pub(super) enum LoadError {
    /// The dynamic linker does not take it; its own words.
    Open(String),
    /// It is a library, but has no `C_GetFunctionList`.
    NotPkcs11,
    /// `C_GetFunctionList` failed.
    Refused(CK_RV),
}

/// A mechanism, with its parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mechanism {
    /// `CKM_RSA_PKCS_OAEP` with an empty label. With a label most tokens refuse.
    Oaep(OaepHash),
    /// A mechanism without parameter.
    Plain(CK_MECHANISM_TYPE),
}

/// What `C_GetTokenInfo` says, as far as it is used.
#[derive(Clone, Debug, Default)]
pub(super) struct TokenInfo {
    pub(super) label: String,
    pub(super) serial: String,
    pub(super) model: String,
    pub(super) manufacturer: String,
    pub(super) flags: CK_FLAGS,
    /// `None` if the token names no limit.
    pub(super) max_sessions: Option<u64>,
}

impl Mechanism {
    /// Lends the C form; its parameter lives on this stack frame.
    pub(super) fn with_raw<T>(self, use_it: impl FnOnce(*mut CK_MECHANISM) -> T) -> T {
        match self {
            Self::Plain(mechanism) => use_it(&mut CK_MECHANISM {
                mechanism,
                pParameter: ptr::null_mut(),
                ulParameterLen: 0,
            }),
            Self::Oaep(hash) => {
                let (hash, mgf) = match hash {
                    OaepHash::Sha1 => (CKM_SHA_1, CKG_MGF1_SHA1),
                    OaepHash::Sha256 => (CKM_SHA256, CKG_MGF1_SHA256),
                    OaepHash::Sha384 => (CKM_SHA384, CKG_MGF1_SHA384),
                    OaepHash::Sha512 => (CKM_SHA512, CKG_MGF1_SHA512),
                };
                let mut parameter = CK_RSA_PKCS_OAEP_PARAMS {
                    hashAlg: hash,
                    mgf,
                    source: CKZ_DATA_SPECIFIED,
                    pSourceData: ptr::null_mut(),
                    ulSourceDataLen: 0,
                };
                use_it(&mut CK_MECHANISM {
                    mechanism: CKM_RSA_PKCS_OAEP,
                    pParameter: ptr::from_mut(&mut parameter).cast(),
                    ulParameterLen: size_of::<CK_RSA_PKCS_OAEP_PARAMS>() as CK_ULONG,
                })
            }
        }
    }
}

/// A template in C form. It borrows from `template`, which the caller keeps alive.
pub(super) fn raw(template: &[Attribute]) -> Vec<CK_ATTRIBUTE> {
    template.iter().map(CK_ATTRIBUTE::from).collect()
}

/// A string that PKCS#11 pads with blanks (and some modules with zeros).
pub(super) fn padded(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches([' ', '\0']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_stripped() {
        assert_eq!(padded(b"keyward         "), "keyward");
        assert_eq!(padded(b"key ward\0\0"), "key ward");
        assert_eq!(padded(b"    "), "");
    }
}
