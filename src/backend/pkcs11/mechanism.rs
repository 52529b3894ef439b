//! Which mechanism numbers do what on this token.
//!
//! RSA-OAEP has one number everywhere. AES key wrap with padding does not: PKCS#11 3.0
//! calls RFC 5649 `CKM_AES_KEY_WRAP_KWP` (0x210B), SoftHSM 2.6.1 calls it
//! `CKM_AES_KEY_WRAP_PAD` (0x210A), and NSS has a padding of its own under 0x210A. So a
//! number is believed only after the token wrapped a throw-away key with it just as
//! aws-lc-rs does in software.
//!
//! SoftHSM also appends zeros to a key whose length is no multiple of 8 before it wraps
//! it, so that 17 octets come back as 24. Such a token is used for multiples of 8 only.

use std::sync::Mutex;

use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap, KeyWrapPadded};
use cryptoki::object::{Attribute, KeyType, ObjectClass};
use cryptoki_sys::*;
use tracing::debug;

use super::{
    ckr::{self, Class},
    fault::Fault,
    raw::Mechanism,
    worker::Seat,
};
use crate::{
    error::{Error, Reason},
    kek::Algorithm,
    secret::Secret,
};

/// Longer than any key wrap of a payload: 104 bytes and two blocks.
pub(super) const WRAPPED_ROOM: usize = 256;

/// What was found out about a token's AES mechanisms, for one era.
#[derive(Default)]
pub(super) struct Mechanisms {
    found: Mutex<Vec<(Algorithm, Option<AesMechanism>)>>,
}

/// An AES key wrap mechanism that was seen to do what its name says.
#[derive(Clone, Copy, Debug)]
pub(super) struct AesMechanism {
    pub(super) mechanism: Mechanism,
    flags: CK_FLAGS,
    /// Whether it returns other lengths than multiples of 8 as they were.
    any_length: bool,
}

impl AesMechanism {
    /// Whether `C_Encrypt` and `C_Decrypt` work with it (not only `C_WrapKey` and
    /// `C_UnwrapKey`), which saves an object on the token for each operation.
    pub(super) fn encrypts(self) -> bool {
        self.flags & CKF_ENCRYPT != 0
    }

    pub(super) fn decrypts(self) -> bool {
        self.flags & CKF_DECRYPT != 0
    }

    /// Refuses a payload whose length the token would not give back.
    pub(super) fn check_len(self, len: usize) -> Result<(), Error> {
        if self.any_length || len.is_multiple_of(8) {
            return Ok(());
        }
        Err(Error::new(
            Reason::DekLengthInvalid,
            format!("this token wraps multiples of 8 bytes only, this DEK has {len}"),
        )
        .with_fix("use a DEK of 16, 24, 32, … 64 bytes, or a context"))
    }
}

/// The token's mechanism for an AES algorithm; `None` if it has none.
pub(super) fn aes(seat: &Seat<'_>, algorithm: Algorithm) -> Result<Option<AesMechanism>, Fault> {
    let cache = &seat.live.mechanisms.found;
    let known = |found: &[(Algorithm, Option<AesMechanism>)]| {
        found.iter().find(|(of, _)| *of == algorithm).map(|(_, mechanism)| *mechanism)
    };
    let lock = || cache.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(mechanism) = known(&lock()) {
        return Ok(mechanism);
    }
    let mechanism = probe(seat, algorithm)?;
    lock().push((algorithm, mechanism));
    Ok(mechanism)
}

/// The token's mechanism for an AES algorithm, or an error that says what to set.
pub(super) fn require_aes(seat: &Seat<'_>, algorithm: Algorithm) -> Result<AesMechanism, Fault> {
    aes(seat, algorithm)?.ok_or_else(|| {
        Fault::Refused(
            Error::new(
                Reason::BackendMisconfigured,
                format!("the token {} does not do {algorithm}", seat.live.info.label),
            )
            .with_fix("set `algorithm` to the other one of A256KW and A256KWP, or use an RSA key"),
        )
    })
}

fn probe(seat: &Seat<'_>, algorithm: Algorithm) -> Result<Option<AesMechanism>, Fault> {
    let numbers: &[CK_MECHANISM_TYPE] = match algorithm {
        Algorithm::A256Kw => &[CKM_AES_KEY_WRAP],
        Algorithm::A256Kwp => &[CKM_AES_KEY_WRAP_KWP, CKM_AES_KEY_WRAP_PAD],
        _ => &[],
    };
    for number in numbers {
        let Some(flags) = seat.library.mechanism_flags(seat.live.slot, *number)? else { continue };
        let mechanism = Mechanism::Plain(*number);
        match behaviour(seat, mechanism, algorithm) {
            Ok(Behaviour::AsNamed) => {
                return Ok(Some(AesMechanism { mechanism, flags, any_length: true }));
            }
            Ok(Behaviour::AsNamedForMultiplesOfEight) => {
                return Ok(Some(AesMechanism { mechanism, flags, any_length: false }));
            }
            Ok(Behaviour::Other) => debug!(number, %algorithm, "it does something else"),
            // A token that takes no keys from outside cannot be tested. Then only the
            // numbers whose meaning the standard fixes are believed.
            Err(Fault::Ckr(error)) if cannot_test(error.code) => {
                if *number != CKM_AES_KEY_WRAP_PAD {
                    return Ok(Some(AesMechanism { mechanism, flags, any_length: true }));
                }
            }
            Err(fault) => return Err(fault),
        }
    }
    Ok(None)
}

fn cannot_test(code: CK_RV) -> bool {
    matches!(ckr::class(code), Class::Template | Class::KeyUse | Class::Mechanism)
}

/// What a mechanism was seen to do.
enum Behaviour {
    /// As its name says.
    AsNamed,
    /// The same, for multiples of 8.
    AsNamedForMultiplesOfEight,
    /// Something else.
    Other,
}

/// Has the token wrap two throw-away keys and compares with RFC 3394 or RFC 5649.
fn behaviour(
    seat: &Seat<'_>,
    mechanism: Mechanism,
    algorithm: Algorithm,
) -> Result<Behaviour, Fault> {
    let kek = random(32)?;
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Wrap(true),
        Attribute::Unwrap(true),
    ];
    let wrapping = seat.library.create_secret(seat.session, &template, &kek)?;
    let agrees = |len: usize| {
        let payload = random(len)?;
        let wrapped = wrap_as_object(seat, mechanism, wrapping, &payload)?;
        Ok::<_, Fault>(wrapped == in_software(algorithm, &kek, &payload))
    };
    let outcome = agrees(24).and_then(|even| {
        // RFC 3394 has no other lengths.
        let odd = algorithm == Algorithm::A256Kw || !even || agrees(20)?;
        Ok(match (even, odd) {
            (true, true) => Behaviour::AsNamed,
            (true, false) => Behaviour::AsNamedForMultiplesOfEight,
            (false, _) => Behaviour::Other,
        })
    });
    let _best_effort = seat.library.destroy(seat.session, wrapping);
    outcome
}

/// Random bytes of the operating system.
pub(super) fn random(len: usize) -> Result<Secret, Error> {
    let mut bytes = Secret::zeroed(len);
    aws_lc_rs::rand::fill(bytes.expose_mut())
        .map_err(|_| Error::new(Reason::Internal, "the operating system gave no random bytes"))?;
    Ok(bytes)
}

fn in_software(algorithm: Algorithm, kek: &Secret, payload: &Secret) -> Vec<u8> {
    let kek = AesKek::new(&AES_256, kek.expose()).expect("32 bytes are an AES-256 key");
    let mut wrapped = vec![0; WRAPPED_ROOM];
    let outcome = match algorithm {
        Algorithm::A256Kw => kek.wrap(payload.expose(), &mut wrapped),
        _ => kek.wrap_with_padding(payload.expose(), &mut wrapped),
    };
    let len = outcome.expect("there is room, and the length suits the algorithm").len();
    wrapped.truncate(len);
    wrapped
}

/// Wraps a payload with `C_WrapKey`, which wants it as an object: made in the session,
/// destroyed whatever happens.
pub(super) fn wrap_as_object(
    seat: &Seat<'_>,
    mechanism: Mechanism,
    wrapping: CK_OBJECT_HANDLE,
    payload: &Secret,
) -> Result<Vec<u8>, Fault> {
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::Token(false),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ];
    let object = seat.library.create_secret(seat.session, &template, payload)?;
    let wrapped = seat.library.wrap_key(seat.session, mechanism, wrapping, object, WRAPPED_ROOM);
    let destroyed = seat.library.destroy(seat.session, object);
    let wrapped = wrapped?;
    destroyed?;
    Ok(wrapped)
}
