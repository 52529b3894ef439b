//! How a DEK is wrapped: the algorithms, their names and what they can carry.
//!
//! RSAES-PKCS1-v1_5 is absent on purpose: its padding can be probed, and some
//! tokens answer a bad ciphertext with random bytes (implicit rejection).

use std::fmt;

use crate::error::{Error, Reason};

/// A wrapping algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// RSAES-OAEP with SHA-1 and MGF1-SHA-1 (RFC 8017, RFC 7518 section 4.3).
    RsaOaep,
    /// RSAES-OAEP with SHA-256 and MGF1-SHA-256.
    RsaOaep256,
    /// RSAES-OAEP with SHA-384 and MGF1-SHA-384.
    RsaOaep384,
    /// RSAES-OAEP with SHA-512 and MGF1-SHA-512.
    RsaOaep512,
    /// AES-256 key wrap (RFC 3394).
    A256Kw,
    /// AES-256 key wrap with padding (RFC 5649).
    A256Kwp,
    /// AES-128 key wrap (RFC 3394).
    A128Kw,
    /// AES-192 key wrap (RFC 3394).
    A192Kw,
}

/// What kind of key an algorithm needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// An RSA key, with this hash in OAEP and its MGF1.
    Rsa(OaepHash),
    /// An AES key of [`Algorithm::aes_bits`].
    Aes,
}

/// The hash of OAEP, used for MGF1 too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OaepHash {
    /// SHA-1. No weakness of SHA-1 is known to touch OAEP, which needs no collision
    /// resistance; it stays an explicit choice all the same.
    Sha1,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// Every algorithm.
    pub const ALL: [Self; 8] = [
        Self::RsaOaep,
        Self::RsaOaep256,
        Self::RsaOaep384,
        Self::RsaOaep512,
        Self::A256Kw,
        Self::A256Kwp,
        Self::A128Kw,
        Self::A192Kw,
    ];

    /// The name in configuration, logs and the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::RsaOaep => "RSA-OAEP",
            Self::RsaOaep256 => "RSA-OAEP-256",
            Self::RsaOaep384 => "RSA-OAEP-384",
            Self::RsaOaep512 => "RSA-OAEP-512",
            Self::A256Kw => "A256KW",
            Self::A256Kwp => "A256KWP",
            Self::A128Kw => "A128KW",
            Self::A192Kw => "A192KW",
        }
    }

    /// The algorithm of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// What kind of key it needs.
    pub fn family(self) -> Family {
        match self {
            Self::RsaOaep => Family::Rsa(OaepHash::Sha1),
            Self::RsaOaep256 => Family::Rsa(OaepHash::Sha256),
            Self::RsaOaep384 => Family::Rsa(OaepHash::Sha384),
            Self::RsaOaep512 => Family::Rsa(OaepHash::Sha512),
            Self::A256Kw | Self::A256Kwp | Self::A128Kw | Self::A192Kw => Family::Aes,
        }
    }

    /// The size of the AES key that it needs; `None` for RSA.
    pub fn aes_bits(self) -> Option<u32> {
        match self {
            Self::A128Kw => Some(128),
            Self::A192Kw => Some(192),
            Self::A256Kw | Self::A256Kwp => Some(256),
            Self::RsaOaep | Self::RsaOaep256 | Self::RsaOaep384 | Self::RsaOaep512 => None,
        }
    }

    /// Whether two algorithms work with the same key.
    pub fn same_key_kind(self, other: Self) -> bool {
        self.aes_bits() == other.aes_bits()
    }

    /// Whether a payload of `len` bytes fits the algorithm. Only RFC 3394 is choosy: it
    /// takes multiples of 8. (Every RSA key of at least 2048 bits carries
    /// the longest payload, 104 bytes, under every hash: 256 - 2 * 64 - 2 = 126.)
    pub fn check_payload_len(self, len: usize) -> Result<(), Error> {
        let choosy = matches!(self, Self::A128Kw | Self::A192Kw | Self::A256Kw);
        if choosy && !len.is_multiple_of(8) {
            return Err(Error::new(
                Reason::DekLengthInvalid,
                format!("{self} wraps multiples of 8 bytes, this DEK has {len}"),
            )
            .with_fix("use a DEK of 16, 24, 32, … 64 bytes, a context, or a KEK with A256KWP"));
        }
        Ok(())
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl OaepHash {
    /// Output length in bytes.
    pub fn len_bytes(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for algorithm in Algorithm::ALL {
            assert_eq!(Algorithm::from_name(algorithm.name()), Some(algorithm));
        }
        for unknown in ["RSA1_5", "rsa-oaep", "", "A128KWP"] {
            assert_eq!(Algorithm::from_name(unknown), None);
        }
    }

    #[test]
    fn only_rfc_3394_is_choosy_about_lengths() {
        for len in 16..=64 {
            for algorithm in Algorithm::ALL {
                let fits = algorithm.check_payload_len(len).is_ok();
                let choosy = algorithm.name().ends_with("KW");
                assert_eq!(fits, !choosy || len % 8 == 0, "{algorithm} {len}");
            }
        }
    }

    #[test]
    fn a_key_works_with_the_algorithms_of_its_kind_and_size() {
        use Algorithm::*;
        for (one, other, same) in [
            (RsaOaep, RsaOaep512, true),
            (A256Kw, A256Kwp, true),
            (A256Kw, A128Kw, false),
            (A192Kw, A128Kw, false),
            (A128Kw, RsaOaep, false),
        ] {
            assert_eq!((one.same_key_kind(other), other.same_key_kind(one)), (same, same));
        }
    }

    #[test]
    fn the_longest_payload_fits_the_smallest_key_under_every_hash() {
        for algorithm in Algorithm::ALL {
            if let Family::Rsa(hash) = algorithm.family() {
                assert!(256 - 2 * hash.len_bytes() - 2 >= 104, "{algorithm}");
            }
        }
    }
}
