//! Key material and what the service does with it: wrap and unwrap.
//!
//! Refuses to know: names, versions, attributes, who may. Keys are made by aws-lc.

use aws_lc_rs::{
    encoding::AsDer,
    rsa::{
        KeyPair, KeyPairComponents, KeySize, OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256,
        OaepAlgorithm, OaepPrivateDecryptingKey, OaepPublicEncryptingKey,
        Pkcs1PrivateDecryptingKey, Pkcs1PublicEncryptingKey, PrivateDecryptingKey,
        PublicKeyComponents,
    },
    signature::KeyPair as _,
};

use super::keywrap;

/// Why an operation on material failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The key cannot do this algorithm.
    Algorithm,
    /// The value has a length that the algorithm does not take.
    Length,
    /// The ciphertext is not one of this key and algorithm.
    Ciphertext,
}

/// An algorithm of `wrapkey` and `unwrapkey`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrapping {
    Oaep,
    Oaep256,
    Pkcs1,
    /// RFC 3394; `Some` bits if the name says them.
    Kw(Option<usize>),
    /// RFC 5649.
    Kwp,
}

impl Wrapping {
    /// `None` for a name that the service does not know.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "RSA-OAEP" => Self::Oaep,
            "RSA-OAEP-256" => Self::Oaep256,
            "RSA1_5" => Self::Pkcs1,
            "A128KW" => Self::Kw(Some(128)),
            "A192KW" => Self::Kw(Some(192)),
            "A256KW" => Self::Kw(Some(256)),
            "CKM_AES_KEY_WRAP" => Self::Kw(None),
            "CKM_AES_KEY_WRAP_PAD" => Self::Kwp,
            _ => return None,
        })
    }
}

pub enum Material {
    Rsa(Box<Rsa>),
    /// 16, 24 or 32 bytes.
    Oct(Vec<u8>),
}

pub struct Rsa {
    pkcs8: Vec<u8>,
    private: PrivateDecryptingKey,
    /// Modulus, big-endian, without leading zeros.
    pub n: Vec<u8>,
    /// Public exponent, likewise.
    pub e: Vec<u8>,
}

/// The private parts of an RSA key as a JSON Web Key has them, big-endian.
pub struct RsaParts {
    pub n: Vec<u8>,
    pub e: Vec<u8>,
    pub d: Vec<u8>,
    pub p: Vec<u8>,
    pub q: Vec<u8>,
    pub dp: Vec<u8>,
    pub dq: Vec<u8>,
    pub qi: Vec<u8>,
}

impl Rsa {
    /// `None` unless it is an RSA key of 2048, 3072 or 4096 bits.
    fn from_pkcs8(pkcs8: Vec<u8>) -> Option<Self> {
        let pair = KeyPair::from_pkcs8(&pkcs8).ok()?;
        let public = pair.public_key();
        let strip = |bytes: &[u8]| {
            let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
            bytes[zeros..].to_vec()
        };
        let n = strip(public.modulus().big_endian_without_leading_zero());
        let e = strip(public.exponent().big_endian_without_leading_zero());
        let private = PrivateDecryptingKey::from_pkcs8(&pkcs8).ok()?;
        matches!(n.len(), 256 | 384 | 512).then_some(Self { pkcs8, private, n, e })
    }

    fn encrypt(&self, wrapping: Wrapping, plain: &[u8]) -> Result<Vec<u8>, Failure> {
        let public = self.private.public_key();
        let mut out = vec![0; self.n.len()];
        let len = match oaep(wrapping) {
            Some(algorithm) => OaepPublicEncryptingKey::new(public)
                .expect("an RSA key")
                .encrypt(algorithm, plain, &mut out, None)
                .map_err(|_| Failure::Length)?
                .len(),
            None => Pkcs1PublicEncryptingKey::new(public)
                .expect("an RSA key")
                .encrypt(plain, &mut out)
                .map_err(|_| Failure::Length)?
                .len(),
        };
        out.truncate(len);
        Ok(out)
    }

    fn decrypt(&self, wrapping: Wrapping, wrapped: &[u8]) -> Result<Vec<u8>, Failure> {
        if wrapped.len() != self.n.len() {
            return Err(Failure::Length);
        }
        let mut out = vec![0; self.n.len()];
        let len = match oaep(wrapping) {
            Some(algorithm) => OaepPrivateDecryptingKey::new(self.private.clone())
                .expect("an RSA key")
                .decrypt(algorithm, wrapped, &mut out, None)
                .map_err(|_| Failure::Ciphertext)?
                .len(),
            None => Pkcs1PrivateDecryptingKey::new(self.private.clone())
                .expect("an RSA key")
                .decrypt(wrapped, &mut out)
                .map_err(|_| Failure::Ciphertext)?
                .len(),
        };
        out.truncate(len);
        Ok(out)
    }
}

fn oaep(wrapping: Wrapping) -> Option<&'static OaepAlgorithm> {
    match wrapping {
        Wrapping::Oaep => Some(&OAEP_SHA1_MGF1SHA1),
        Wrapping::Oaep256 => Some(&OAEP_SHA256_MGF1SHA256),
        _ => None,
    }
}

impl Material {
    /// A new RSA key. `None` unless `bits` is 2048, 3072 or 4096. Takes up to seconds.
    pub fn generate_rsa(bits: usize) -> Option<Self> {
        let size = match bits {
            2048 => KeySize::Rsa2048,
            3072 => KeySize::Rsa3072,
            4096 => KeySize::Rsa4096,
            _ => return None,
        };
        let key = PrivateDecryptingKey::generate(size).expect("aws-lc makes RSA keys");
        let pkcs8 = AsDer::as_der(&key).expect("a key has an encoding");
        Self::from_pkcs8(pkcs8.as_ref())
    }

    /// A new AES key. `None` unless `bits` is 128, 192 or 256.
    pub fn generate_oct(bits: usize) -> Option<Self> {
        let mut key = vec![0; matches!(bits, 128 | 192 | 256).then_some(bits / 8)?];
        aws_lc_rs::rand::fill(&mut key).expect("random bytes");
        Some(Self::Oct(key))
    }

    /// An RSA key from PKCS#8, DER. `None` unless it has 2048, 3072 or 4096 bits.
    pub fn from_pkcs8(pkcs8: &[u8]) -> Option<Self> {
        Rsa::from_pkcs8(pkcs8.to_vec()).map(|rsa| Self::Rsa(Box::new(rsa)))
    }

    /// An RSA key from its numbers. `None` unless they belong together.
    pub fn from_parts(parts: &RsaParts) -> Option<Self> {
        let pair = KeyPair::from_components(&KeyPairComponents {
            public_key: PublicKeyComponents { n: &parts.n, e: &parts.e },
            d: &parts.d,
            p: &parts.p,
            q: &parts.q,
            dP: &parts.dp,
            dQ: &parts.dq,
            qInv: &parts.qi,
        })
        .ok()?;
        let pkcs8 = AsDer::as_der(&pair).ok()?;
        Self::from_pkcs8(pkcs8.as_ref())
    }

    /// An AES key. `None` unless it has 16, 24 or 32 bytes.
    pub fn from_oct(key: &[u8]) -> Option<Self> {
        matches!(key.len(), 16 | 24 | 32).then(|| Self::Oct(key.to_vec()))
    }

    /// What a backup keeps: PKCS#8 or the bytes of the AES key.
    pub fn to_bytes(&self) -> &[u8] {
        match self {
            Self::Rsa(rsa) => &rsa.pkcs8,
            Self::Oct(key) => key,
        }
    }

    pub fn bits(&self) -> usize {
        8 * match self {
            Self::Rsa(rsa) => rsa.n.len(),
            Self::Oct(key) => key.len(),
        }
    }

    /// A new key of the same type and size, as a rotation makes it.
    pub fn another(&self) -> Self {
        match self {
            Self::Rsa(_) => Self::generate_rsa(self.bits()),
            Self::Oct(_) => Self::generate_oct(self.bits()),
        }
        .expect("a size that was possible before")
    }

    pub fn wrap(&self, wrapping: Wrapping, plain: &[u8]) -> Result<Vec<u8>, Failure> {
        match (self, wrapping) {
            (Self::Rsa(rsa), Wrapping::Oaep | Wrapping::Oaep256 | Wrapping::Pkcs1) => {
                rsa.encrypt(wrapping, plain)
            }
            (Self::Oct(key), Wrapping::Kw(bits)) if bits.is_none_or(|bits| bits == self.bits()) => {
                keywrap::wrap(key, plain).ok_or(Failure::Length)
            }
            (Self::Oct(key), Wrapping::Kwp) => {
                keywrap::wrap_padded(key, plain).ok_or(Failure::Length)
            }
            _ => Err(Failure::Algorithm),
        }
    }

    pub fn unwrap(&self, wrapping: Wrapping, wrapped: &[u8]) -> Result<Vec<u8>, Failure> {
        match (self, wrapping) {
            (Self::Rsa(rsa), Wrapping::Oaep | Wrapping::Oaep256 | Wrapping::Pkcs1) => {
                rsa.decrypt(wrapping, wrapped)
            }
            (Self::Oct(key), Wrapping::Kw(bits)) if bits.is_none_or(|bits| bits == self.bits()) => {
                keywrap::unwrap(key, wrapped).ok_or(Failure::Ciphertext)
            }
            (Self::Oct(key), Wrapping::Kwp) => {
                keywrap::unwrap_padded(key, wrapped).ok_or(Failure::Ciphertext)
            }
            _ => Err(Failure::Algorithm),
        }
    }
}
