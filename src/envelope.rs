//! What is inside a wrapped DEK and what surrounds it: [`WrappedDek`], its payload,
//! and how a context is bound to a DEK.
//!
//! Reader and writer of the payload stand in this one file. Without a context the
//! payload is the bare DEK, so that any tool with the same key can read it. With a
//! context it is always [`BOUND_LEN`] octets:
//!
//! ```text
//! 0x01 ‖ SHA-256(context) ‖ length of the DEK ‖ DEK ‖ zeros
//!   1         32                   1           16..64   to 104
//! ```
//!
//! Invariant: the *length* of what was unwrapped decides which of the two it is,
//! never a flag from outside. Otherwise a caller could strip the context from a
//! stranger's DEK by claiming that it has none.
//!
//! Every failure is the one opaque `CIPHERTEXT_INVALID`. It knows no backend.

use aws_lc_rs::digest;

use crate::{
    error::{Error, Reason},
    kek::{Algorithm, Fingerprint, KekName, VersionId},
    op::{CIPHERTEXT_MAX_BYTES, CONTEXT_MAX_BYTES, DEK_MAX_BYTES, DEK_MIN_BYTES},
    secret::Secret,
};

/// Length of a payload with a context: a multiple of 8, so that RFC 3394 takes it,
/// and small enough for OAEP with SHA-512 under RSA-2048.
pub const BOUND_LEN: usize = 104;

const BOUND_TAG: u8 = 0x01;
const HASH_AT: usize = 1;
const LEN_AT: usize = 33;
const DEK_AT: usize = 34;

/// A data encryption key: 16 to 64 secret bytes.
#[derive(Debug)]
pub struct Dek(Secret);

impl Dek {
    /// Checks the length.
    pub fn parse(bytes: Secret) -> Result<Self, Error> {
        check_dek_len(bytes.len())?;
        Ok(Self(bytes))
    }

    /// The bytes.
    pub fn secret(&self) -> &Secret {
        &self.0
    }

    /// The bytes, to hand them out.
    pub fn into_secret(self) -> Secret {
        self.0
    }
}

/// Whether a DEK may have `len` bytes.
pub fn check_dek_len(len: usize) -> Result<(), Error> {
    if (DEK_MIN_BYTES..=DEK_MAX_BYTES).contains(&len) {
        return Ok(());
    }
    Err(Error::new(
        Reason::DekLengthInvalid,
        format!("a DEK is {DEK_MIN_BYTES} to {DEK_MAX_BYTES} bytes, this one has {len}"),
    ))
}

/// What a caller binds a DEK to. Only its hash is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// None: the payload is the bare DEK.
    None,
    /// The SHA-256 of one.
    Bound([u8; 32]),
}

impl Context {
    /// The context of these bytes; empty stands for none.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > CONTEXT_MAX_BYTES {
            return Err(Error::new(
                Reason::ContextTooLong,
                format!(
                    "a context is at most {CONTEXT_MAX_BYTES} bytes, this one has {}",
                    bytes.len()
                ),
            )
            .with_fix("send a hash of it"));
        }
        if bytes.is_empty() {
            return Ok(Self::None);
        }
        let hash = digest::digest(&digest::SHA256, bytes);
        Ok(Self::Bound(hash.as_ref().try_into().expect("SHA-256 gives 32 bytes")))
    }

    /// Whether there is one.
    pub fn is_bound(&self) -> bool {
        matches!(self, Self::Bound(_))
    }
}

/// The payload that a KEK wraps.
pub fn seal(dek: &Dek, context: &Context) -> Secret {
    let dek = dek.secret().expose();
    let Context::Bound(hash) = context else {
        return Secret::copy_of(dek);
    };
    let mut payload = Secret::zeroed(BOUND_LEN);
    let bytes = payload.expose_mut();
    bytes[0] = BOUND_TAG;
    bytes[HASH_AT..LEN_AT].copy_from_slice(hash);
    bytes[LEN_AT] = u8::try_from(dek.len()).expect("a DEK is at most 64 bytes");
    bytes[DEK_AT..DEK_AT + dek.len()].copy_from_slice(dek);
    payload
}

/// The DEK in a payload that a KEK unwrapped, if it is bound to exactly `context`.
pub fn open(payload: Secret, context: &Context) -> Result<Dek, Error> {
    match (payload.len(), context) {
        (BOUND_LEN, Context::Bound(hash)) => open_bound(&payload, hash),
        (DEK_MIN_BYTES..=DEK_MAX_BYTES, Context::None) => Ok(Dek(payload)),
        _ => Err(Error::ciphertext_invalid()),
    }
}

fn open_bound(payload: &Secret, hash: &[u8; 32]) -> Result<Dek, Error> {
    let bytes = payload.expose();
    let len = usize::from(bytes[LEN_AT]);
    // The hash is of public bytes; comparing it in constant time costs nothing and
    // leaves no question.
    let hash_matches = Secret::copy_of(&bytes[HASH_AT..LEN_AT]).ct_eq(hash);
    let well_formed = bytes[0] == BOUND_TAG
        && (DEK_MIN_BYTES..=DEK_MAX_BYTES).contains(&len)
        && bytes[(DEK_AT + len).min(BOUND_LEN)..].iter().fold(0, |all, byte| all | byte) == 0;
    if !(hash_matches && well_formed) {
        return Err(Error::ciphertext_invalid());
    }
    Ok(Dek(Secret::copy_of(&bytes[DEK_AT..DEK_AT + len])))
}

/// What a storage node stores of a DEK. Not secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrappedDek {
    /// The KEK that wrapped it.
    pub kek: KekName,
    /// The version of the KEK.
    pub version: VersionId,
    /// How it was wrapped.
    pub algorithm: Algorithm,
    /// What the mechanism produced: 1 to 1024 bytes.
    pub ciphertext: Vec<u8>,
    /// Of the KEK version; `None` if the tool that wrapped it did not know.
    pub fingerprint: Option<Fingerprint>,
}

impl WrappedDek {
    /// Checks the length of a ciphertext. Length is the one thing that is judged
    /// before the key is asked: an empty one and one beyond every mechanism get the
    /// same answer as any other that does not unwrap.
    pub fn check_ciphertext(ciphertext: &[u8]) -> Result<(), Error> {
        if (1..=CIPHERTEXT_MAX_BYTES).contains(&ciphertext.len()) {
            return Ok(());
        }
        Err(Error::ciphertext_invalid())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dek(len: usize) -> Dek {
        Dek::parse(Secret::new((0..len).map(|i| i as u8 ^ 0x5a).collect())).unwrap()
    }

    fn context(bytes: &[u8]) -> Context {
        Context::parse(bytes).unwrap()
    }

    #[test]
    fn the_bound_payload_is_as_documented() {
        let payload = seal(&dek(16), &context(b"tenant"));
        let bytes = payload.expose();
        assert_eq!(bytes.len(), 104);
        assert_eq!(bytes[0], 1);
        assert_eq!(&bytes[1..33], digest::digest(&digest::SHA256, b"tenant").as_ref());
        assert_eq!(bytes[33], 16);
        assert_eq!(&bytes[34..50], dek(16).secret().expose());
        assert!(bytes[50..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_context_cannot_be_stripped_added_or_swapped() {
        let bound = || seal(&dek(32), &context(b"tenant a"));
        let bare = || seal(&dek(32), &Context::None);
        assert!(open(bound(), &context(b"tenant a")).is_ok());
        assert!(open(bare(), &Context::None).is_ok());
        for (payload, wrong) in [
            (bound(), Context::None),
            (bound(), context(b"tenant b")),
            (bare(), context(b"tenant a")),
        ] {
            assert_eq!(open(payload, &wrong).unwrap_err().reason(), Reason::CiphertextInvalid);
        }
    }

    #[test]
    fn limits() {
        for len in [0, 15, 65] {
            assert!(Dek::parse(Secret::zeroed(len)).is_err(), "{len}");
        }
        assert!(Context::parse(&[0; 4096]).is_ok());
        assert_eq!(Context::parse(&[0; 4097]).unwrap_err().reason(), Reason::ContextTooLong);
        assert!(WrappedDek::check_ciphertext(&[]).is_err());
        assert!(WrappedDek::check_ciphertext(&[0; 1025]).is_err());
        assert!(WrappedDek::check_ciphertext(&[0; 1024]).is_ok());
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens(len in 16usize..=64, context in prop::collection::vec(any::<u8>(), 0..200)) {
            let context = Context::parse(&context).unwrap();
            let opened = open(seal(&dek(len), &context), &context).unwrap();
            prop_assert!(opened.secret().ct_eq(dek(len).secret().expose()));
        }

        #[test]
        fn a_bit_flipped_outside_the_dek_is_noticed(len in 16usize..=64, bit in 0usize..BOUND_LEN * 8) {
            let bound = Context::parse(b"c").unwrap();
            let mut payload = seal(&dek(len), &bound);
            payload.expose_mut()[bit / 8] ^= 1 << (bit % 8);
            // The frame has no checksum: the mechanism's own integrity protects the DEK's
            // bits, and a length that grew takes in zeros. Everything else is noticed.
            let byte = bit / 8;
            let unprotected = byte == LEN_AT || (DEK_AT..DEK_AT + len).contains(&byte);
            match open(payload, &bound) {
                Ok(_) => prop_assert!(unprotected),
                Err(error) => prop_assert_eq!(error.reason(), Reason::CiphertextInvalid),
            }
        }

        #[test]
        fn arbitrary_payloads_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), bound: bool) {
            let context = if bound { Context::parse(b"c").unwrap() } else { Context::None };
            let _ = open(Secret::new(bytes), &context);
        }
    }
}
