//! How a client and a sidecar come to share the keys of a session, by one message of HPKE.
//!
//! It knows no DEK. Both ends forget what they agreed with.

use std::fmt;

use aws_lc_rs::rand;
use rustls::crypto::{
    aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as HPKE,
    hpke::{EncapsulatedSecret, Hpke as _, HpkePrivateKey, HpkePublicKey},
};
use zeroize::Zeroizing;

use super::{Failure, PUBLIC_KEY_BYTES, SESSION_KEYS_BYTES, Session, SessionId, session::Side};
use crate::secret::Secret;

/// What HPKE is told that it is used for.
const INFO: &[u8] = b"keyward.v1 sealed delivery";

/// A client's half of opening a session.
pub struct Offer {
    public: HpkePublicKey,
    private: HpkePrivateKey,
}

impl Offer {
    /// Draws a key pair.
    pub fn new() -> Result<Self, Failure> {
        let (public, private) = HPKE.generate_key_pair().map_err(|_| Failure::Machine)?;
        Ok(Self { public, private })
    }

    /// What the sidecar is to be sent: [`PUBLIC_KEY_BYTES`] bytes.
    pub fn public_key(&self) -> &[u8] {
        &self.public.0
    }

    /// The session, from what the sidecar answered. `memory` gives room for the keys.
    pub fn finish(
        self,
        id: &[u8],
        public_key: &[u8],
        sealed_keys: &[u8],
        memory: impl FnOnce(usize) -> Option<Secret>,
    ) -> Result<Session, Failure> {
        let id: SessionId = id.try_into().map_err(|_| Failure::Opening)?;
        let encapsulated = EncapsulatedSecret(public_key.to_vec());
        let opened = HPKE.open(&encapsulated, INFO, &id, sealed_keys, &self.private);
        let opened = Zeroizing::new(opened.map_err(|_| Failure::Opening)?);
        if opened.len() != SESSION_KEYS_BYTES {
            return Err(Failure::Opening);
        }
        let mut keys = memory(SESSION_KEYS_BYTES).ok_or(Failure::Memory)?;
        keys.expose_mut().copy_from_slice(&opened);
        Ok(Session::new(id, keys, Side::Client))
    }
}

impl fmt::Debug for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Offer")
    }
}

/// A session that the sidecar opened, and what the client is to be answered.
#[derive(Debug)]
pub struct Accepted {
    /// The session.
    pub session: Session,
    /// The encapsulated key: [`PUBLIC_KEY_BYTES`] bytes.
    pub public_key: Vec<u8>,
    /// The keys of the session, sealed to the client: [`SESSION_KEYS_BYTES`] and
    /// [`TAG_BYTES`](super::TAG_BYTES) bytes.
    pub sealed_keys: Vec<u8>,
}

/// The sidecar's half of opening a session. `keys` is room for [`SESSION_KEYS_BYTES`] bytes.
pub fn accept(public_key: &[u8], mut keys: Secret) -> Result<Accepted, Failure> {
    if public_key.len() != PUBLIC_KEY_BYTES || keys.len() != SESSION_KEYS_BYTES {
        return Err(Failure::Opening);
    }
    let mut id = SessionId::default();
    rand::fill(&mut id).map_err(|_| Failure::Machine)?;
    rand::fill(keys.expose_mut()).map_err(|_| Failure::Machine)?;
    let public_key = HpkePublicKey(public_key.to_vec());
    // Fails for a point of small order, with which everybody could agree on the same keys.
    let sealed = HPKE.seal(INFO, &id, keys.expose(), &public_key);
    let (EncapsulatedSecret(public_key), sealed_keys) = sealed.map_err(|_| Failure::Opening)?;
    Ok(Accepted { session: Session::new(id, keys, Side::Sidecar), public_key, sealed_keys })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unhex(text: &str) -> Vec<u8> {
        let digits = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
        digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
    }

    /// RFC 9180: appendix A.1 for AES-128-GCM, and what its test vectors
    /// (github.com/cfrg/draft-irtf-cfrg-hpke, test-vectors.json) have beside it for
    /// AES-256-GCM: base mode, KEM 0x20, KDF 1, AEAD 1 and 2, the first message.
    #[test]
    fn rfc_9180_is_kept() {
        use rustls::crypto::{
            aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_128 as AES_128, hpke::Hpke,
        };
        let vectors: [(&dyn Hpke, &str, &str, &str); 2] = [
            (
                AES_128,
                "4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8",
                "37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431",
                "f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a9\
                 6d8770ac83d07bea87e13c512a",
            ),
            (
                HPKE,
                "497b4502664cfea5d5af0b39934dac72242a74f8480451e1aee7d6a53320333d",
                "6c93e09869df3402d7bf231bf540fadd35cd56be14f97178f0954db94b7fc256",
                "e5d84cd531cfb583096e7cfa9641bd3079cf3a91cda813c52deb5f512be99319\
                 80a41de125a925cdad859d5b7a",
            ),
        ];
        for (suite, private, encapsulated, ciphertext) in vectors {
            let encapsulated = EncapsulatedSecret(unhex(encapsulated));
            let private = HpkePrivateKey::from(unhex(private));
            let (info, aad) = (b"Ode on a Grecian Urn", b"Count-0");
            let opened = suite.open(&encapsulated, info, aad, &unhex(ciphertext), &private);
            assert_eq!(opened.unwrap(), b"Beauty is truth, truth beauty");
        }
    }
}
