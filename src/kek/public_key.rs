//! The public half of an RSA KEK: fingerprint and software wrap.
//!
//! `rsa` parses and encodes; aws-lc-rs does the arithmetic, because it is several
//! times faster (`benches/wrap.rs` measures both). The key is parsed once, when the
//! version is found, and pinned with it.

use std::{fmt, sync::Arc};

use aws_lc_rs::{
    digest,
    rsa::{
        OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OAEP_SHA384_MGF1SHA384, OAEP_SHA512_MGF1SHA512,
        OaepAlgorithm, OaepPublicEncryptingKey, PublicEncryptingKey,
    },
};
use rsa::{BoxedUint, pkcs8::EncodePublicKey, traits::PublicKeyParts};

use super::{Fingerprint, OaepHash};
use crate::{
    error::{Error, Reason},
    secret::Secret,
};

/// An RSA public key of 2048, 3072 or 4096 bits. Cheap to clone.
#[derive(Clone)]
pub struct PublicKey(Arc<Inner>);

struct Inner {
    spki: Vec<u8>,
    bits: u32,
    key: OaepPublicEncryptingKey,
}

impl PublicKey {
    /// A key from its modulus and public exponent, big-endian as PKCS#11 gives them.
    /// Refuses what no KEK may be: other sizes, an even modulus, an exponent that is
    /// even, 1, or beyond 33 bits.
    pub fn from_components(modulus: &[u8], exponent: &[u8]) -> Result<Self, Error> {
        let refuse = |why: String| {
            Error::new(Reason::BackendMisconfigured, format!("not a usable RSA key: {why}"))
                .with_fix(
                    "use an RSA key of 2048, 3072 or 4096 bits with the public exponent 65537",
                )
        };
        let n = BoxedUint::from_be_slice_vartime(modulus);
        let bits = n.bit_width_vartime();
        if !matches!(bits, 2048 | 3072 | 4096) {
            return Err(refuse(format!("its modulus has {bits} bits")));
        }
        let e = BoxedUint::from_be_slice_vartime(exponent);
        let key = rsa::PublicKey::new(n, e).map_err(|error| refuse(error.to_string()))?;
        debug_assert_eq!(key.size() as u32 * 8, bits);
        let spki = key.to_public_key_der().map_err(|error| refuse(error.to_string()))?.into_vec();
        let key = PublicEncryptingKey::from_der(&spki)
            .and_then(|key| OaepPublicEncryptingKey::new(key).map_err(Into::into))
            .map_err(|_| refuse("the crypto library does not take it".into()))?;
        Ok(Self(Arc::new(Inner { spki, bits, key })))
    }

    /// SubjectPublicKeyInfo (RFC 5280), DER.
    pub fn spki(&self) -> &[u8] {
        &self.0.spki
    }

    /// Modulus length in bits.
    pub fn bits(&self) -> u32 {
        self.0.bits
    }

    /// Modulus length in bytes, which is the length of every ciphertext.
    pub fn bytes(&self) -> usize {
        self.0.key.ciphertext_size()
    }

    /// SHA-256 of the SubjectPublicKeyInfo.
    pub fn fingerprint(&self) -> Fingerprint {
        let digest = digest::digest(&digest::SHA256, self.spki());
        Fingerprint::parse(digest.as_ref()).expect("SHA-256 gives 32 bytes")
    }

    /// RSAES-OAEP with an empty label.
    pub fn encrypt(&self, hash: OaepHash, payload: &Secret) -> Result<Vec<u8>, Error> {
        let algorithm: &'static OaepAlgorithm = match hash {
            OaepHash::Sha1 => &OAEP_SHA1_MGF1SHA1,
            OaepHash::Sha256 => &OAEP_SHA256_MGF1SHA256,
            OaepHash::Sha384 => &OAEP_SHA384_MGF1SHA384,
            OaepHash::Sha512 => &OAEP_SHA512_MGF1SHA512,
        };
        let mut ciphertext = vec![0; self.bytes()];
        let len = self
            .0
            .key
            .encrypt(algorithm, payload.expose(), &mut ciphertext, None)
            .map_err(|_| Error::new(Reason::Internal, "the crypto library could not encrypt"))?
            .len();
        ciphertext.truncate(len);
        Ok(ciphertext)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({} bits, {})", self.bits(), self.fingerprint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPONENT: [u8; 3] = [1, 0, 1];

    fn modulus(bytes: usize) -> Vec<u8> {
        let mut modulus = vec![0xb7; bytes];
        modulus[bytes - 1] |= 1;
        modulus
    }

    #[test]
    fn other_sizes_and_bad_exponents_are_refused() {
        for bytes in [0, 1, 128, 255, 257, 320, 1024] {
            let modulus = if bytes == 0 { vec![] } else { modulus(bytes) };
            assert!(PublicKey::from_components(&modulus, &EXPONENT).is_err(), "{bytes}");
        }
        for exponent in [&[][..], &[0], &[1], &[2], &[1, 0, 0, 0, 0, 1, 1, 1]] {
            assert!(PublicKey::from_components(&modulus(256), exponent).is_err(), "{exponent:?}");
        }
        let mut even = modulus(256);
        even[255] = 2;
        assert!(PublicKey::from_components(&even, &EXPONENT).is_err());
    }

    #[test]
    fn leading_zeros_do_not_change_the_fingerprint() {
        let plain = PublicKey::from_components(&modulus(256), &EXPONENT).unwrap();
        let padded = [vec![0, 0], modulus(256)].concat();
        let padded = PublicKey::from_components(&padded, &[0, 1, 0, 1]).unwrap();
        assert_eq!(plain.fingerprint(), padded.fingerprint());
        assert_eq!((padded.bits(), padded.bytes()), (2048, 256));
    }
}
