//! AES KEKs: wrap and unwrap in the token, and what identifies such a key.

use cryptoki::object::{Attribute, KeyType, ObjectClass};
use cryptoki_sys::CK_OBJECT_HANDLE;

use super::{
    ckr::{self, Class},
    fault::Fault,
    keys::{Key, sha256},
    mechanism::{self, WRAPPED_ROOM, wrap_as_object},
    raw::Mechanism,
    worker::Seat,
};
use crate::{
    error::{Error, Reason},
    kek::{Algorithm, Fingerprint},
    secret::Secret,
};

/// Wraps `payload` with `key`.
pub(super) fn wrap(
    seat: &Seat<'_>,
    key: Key,
    algorithm: Algorithm,
    payload: &Secret,
) -> Result<Vec<u8>, Fault> {
    let aes = mechanism::require_aes(seat, algorithm)?;
    algorithm.check_payload_len(payload.len())?;
    aes.check_len(payload.len())?;
    if aes.encrypts() && key.encrypt {
        let Seat { library, session, .. } = seat;
        return Ok(library.encrypt(*session, aes.mechanism, key.handle, payload, WRAPPED_ROOM)?);
    }
    if !key.wrap {
        return Err(usage("CKA_WRAP").into());
    }
    wrap_as_object(seat, aes.mechanism, key.handle, payload)
}

/// Unwraps `ciphertext` with `key`.
pub(super) fn unwrap(
    seat: &Seat<'_>,
    key: Key,
    algorithm: Algorithm,
    ciphertext: &[u8],
) -> Result<Secret, Fault> {
    let aes = mechanism::require_aes(seat, algorithm)?;
    if aes.decrypts() && key.decrypt {
        let Seat { library, session, .. } = seat;
        let plain =
            library.decrypt(*session, aes.mechanism, key.handle, ciphertext, WRAPPED_ROOM)?;
        return Ok(plain);
    }
    if !key.unwrap {
        return Err(usage("CKA_UNWRAP").into());
    }
    unwrap_as_object(seat, aes.mechanism, key.handle, ciphertext)
}

/// Unwraps with `C_UnwrapKey`, which makes an object: its value is read, and it is
/// destroyed whatever happens. Also for RSA keys that have `CKA_UNWRAP` only.
pub(super) fn unwrap_as_object(
    seat: &Seat<'_>,
    mechanism: Mechanism,
    unwrapping: CK_OBJECT_HANDLE,
    ciphertext: &[u8],
) -> Result<Secret, Fault> {
    // No single template works on all tokens: some want to be told that the object may
    // be read, some refuse to be told.
    let base = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::Token(false),
    ];
    let readable = [Attribute::Sensitive(false), Attribute::Extractable(true)];
    let templates = [[&base[..], &readable].concat(), base.to_vec()];
    let Seat { library, session, .. } = seat;
    let mut outcome = Err(Error::new(Reason::Internal, "no template was tried").into());
    for template in &templates {
        outcome = library
            .unwrap_key(*session, mechanism, unwrapping, ciphertext, template)
            .map_err(Fault::from);
        match &outcome {
            Err(Fault::Ckr(error)) if ckr::class(error.code) == Class::Template => {}
            _ => break,
        }
    }
    let object = outcome?;
    let value = library.secret_value(*session, object);
    let destroyed = library.destroy(*session, object);
    let value = value?;
    destroyed?;
    Ok(value)
}

/// Identifies an AES key, without its value: the SHA-256 of what it makes of sixteen
/// zero octets by RFC 3394 (by RFC 5649 if the token has only that), which is
/// deterministic. The wrapping itself never leaves this function.
pub(super) fn check_value(seat: &Seat<'_>, key: Key) -> Result<Fingerprint, Fault> {
    let algorithm = match mechanism::aes(seat, Algorithm::A256Kw)? {
        Some(_) => Algorithm::A256Kw,
        None => Algorithm::A256Kwp,
    };
    let wrapped = wrap(seat, key, algorithm, &Secret::zeroed(16))?;
    Ok(sha256(&[b"keyward/v1 check value\0", algorithm.name().as_bytes(), b"\0", &wrapped]))
}

fn usage(flag: &str) -> Error {
    Error::new(Reason::KekDisabled, format!("the AES key lacks {flag}"))
        .with_fix(format!("set {flag} on the key"))
}
