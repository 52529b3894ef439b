//! Wire messages into what the engine takes. Strict: what is not exactly right is an
//! error, and nothing is guessed or trimmed.
//!
//! Invariant: DEK bytes move out of the message into a [`Secret`] without a copy.

use std::{mem, time::Duration};

use crate::{
    envelope::{Dek, WrappedDek, check_dek_len},
    error::{Error, Reason},
    kek::{Algorithm, Fingerprint, KekName, VersionId},
    secret::Secret,
    wire,
};

pub(super) fn not_a_kek_name() -> Error {
    Error::new(
        Reason::RequestInvalid,
        "the name of a KEK is 1 to 64 of a-z A-Z 0-9 . _ - and starts with a letter or a digit",
    )
}

/// The DEK of a request. Leaves an empty one behind.
pub(super) fn dek(bytes: &mut Vec<u8>) -> Result<Dek, Error> {
    Dek::parse(Secret::new(mem::take(bytes)))
}

/// How long an item may take.
pub(super) fn timeout(timeout: prost_types::Duration) -> Result<Duration, Error> {
    Duration::try_from(timeout)
        .map_err(|_| Error::new(Reason::RequestInvalid, "the timeout of an item is negative"))
}

/// What a request is told that has its DEK both ways.
pub(super) fn two_deks() -> Error {
    Error::new(Reason::RequestInvalid, "there is a plain DEK beside the sealed one")
}

/// The length of a DEK to make.
pub(super) fn dek_len(len: u32) -> Result<usize, Error> {
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    check_dek_len(len).map(|()| len)
}

/// A wrapped DEK of the KEK `kek`, whose name was taken out of `message` before.
pub(super) fn wrapped(kek: &KekName, message: wire::WrappedDek) -> Result<WrappedDek, Error> {
    let wire::WrappedDek { kek: _, version, algorithm, ciphertext, kek_fingerprint } = message;
    let version = VersionId::parse(&version).ok_or_else(|| {
        Error::new(
            Reason::RequestInvalid,
            "the version of a wrapped DEK is 1 to 128 of a-z A-Z 0-9 . _ -",
        )
    })?;
    let algorithm = self::algorithm(algorithm)?;
    let fingerprint = match kek_fingerprint.as_slice() {
        [] => None,
        bytes => Some(Fingerprint::parse(bytes).ok_or_else(|| {
            Error::new(Reason::RequestInvalid, "a KEK fingerprint is 32 bytes, or absent")
        })?),
    };
    WrappedDek::check_ciphertext(&ciphertext)?;
    Ok(WrappedDek { kek: kek.clone(), version, algorithm, ciphertext, fingerprint })
}

fn algorithm(number: i32) -> Result<Algorithm, Error> {
    match wire::Algorithm::try_from(number) {
        Ok(wire::Algorithm::RsaOaep) => Ok(Algorithm::RsaOaep),
        Ok(wire::Algorithm::RsaOaep256) => Ok(Algorithm::RsaOaep256),
        Ok(wire::Algorithm::RsaOaep384) => Ok(Algorithm::RsaOaep384),
        Ok(wire::Algorithm::RsaOaep512) => Ok(Algorithm::RsaOaep512),
        Ok(wire::Algorithm::A256kw) => Ok(Algorithm::A256Kw),
        Ok(wire::Algorithm::A256kwp) => Ok(Algorithm::A256Kwp),
        Ok(wire::Algorithm::A128kw) => Ok(Algorithm::A128Kw),
        Ok(wire::Algorithm::A192kw) => Ok(Algorithm::A192Kw),
        Ok(wire::Algorithm::Unspecified) => {
            Err(Error::new(Reason::AlgorithmUnsupported, "the wrapped DEK names no algorithm"))
        }
        Err(_) => Err(Error::new(
            Reason::AlgorithmUnsupported,
            format!("there is no algorithm with the number {number}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::CIPHERTEXT_MAX_BYTES;

    fn message() -> wire::WrappedDek {
        wire::WrappedDek {
            kek: String::new(),
            version: "0a".into(),
            algorithm: wire::Algorithm::RsaOaep256.into(),
            ciphertext: vec![1; 256],
            kek_fingerprint: vec![2; 32],
        }
    }

    fn reason(message: wire::WrappedDek) -> Option<Reason> {
        wrapped(&KekName::parse("orders").unwrap(), message).err().map(|error| error.reason())
    }

    #[test]
    fn a_good_message_is_taken_as_it_is() {
        let wrapped = wrapped(&KekName::parse("orders").unwrap(), message()).unwrap();
        assert_eq!(wrapped.kek.as_str(), "orders");
        assert_eq!(wrapped.algorithm, Algorithm::RsaOaep256);
        assert_eq!(wrapped.fingerprint, Some(Fingerprint::new([2; 32])));
        let without = wire::WrappedDek { kek_fingerprint: vec![], ..message() };
        assert_eq!(reason(without), None);
    }

    #[test]
    fn each_malformed_field_has_its_reason() {
        for version in ["", "a b", "../x", &"x".repeat(129)] {
            let bad = wire::WrappedDek { version: version.into(), ..message() };
            assert_eq!(reason(bad), Some(Reason::RequestInvalid), "{version:?}");
        }
        for algorithm in [0, 9, -1, i32::MAX] {
            let bad = wire::WrappedDek { algorithm, ..message() };
            assert_eq!(reason(bad), Some(Reason::AlgorithmUnsupported), "{algorithm}");
        }
        for len in [1, 31, 33] {
            let bad = wire::WrappedDek { kek_fingerprint: vec![0; len], ..message() };
            assert_eq!(reason(bad), Some(Reason::RequestInvalid), "{len}");
        }
        for len in [0, CIPHERTEXT_MAX_BYTES + 1] {
            let bad = wire::WrappedDek { ciphertext: vec![0; len], ..message() };
            assert_eq!(reason(bad), Some(Reason::CiphertextInvalid), "{len}");
        }
    }

    #[test]
    fn a_dek_moves_out_of_its_message() {
        let mut bytes = vec![7; 32];
        let address = bytes.as_ptr();
        let dek = dek(&mut bytes).unwrap();
        assert!(bytes.is_empty());
        assert_eq!(dek.secret().expose().as_ptr(), address);
        for len in [0, 15, 65] {
            let refusal = super::dek(&mut vec![0; len]).unwrap_err();
            assert_eq!(refusal.reason(), Reason::DekLengthInvalid);
            assert!(dek_len(len as u32).is_err());
        }
        assert!(dek_len(u32::MAX).is_err());
    }

    #[test]
    fn every_algorithm_goes_both_ways() {
        for algorithm in Algorithm::ALL {
            let number = crate::api::encode::algorithm(algorithm).into();
            assert_eq!(super::algorithm(number).unwrap(), algorithm);
        }
    }
}
