//! JSON Web Tokens: signed with a key of the fake's own, and checked against it or
//! against a certificate.
//!
//! Refuses to know: what the claims mean.

use aws_lc_rs::{
    digest,
    rand::SystemRandom,
    rsa::{KeyPair, KeySize},
    signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, UnparsedPublicKey},
};
use rustls::{SignatureScheme, crypto::aws_lc_rs::default_provider, pki_types::CertificateDer};
use serde_json::{Value, json};
use webpki::EndEntityCert;

use super::{
    message::{decode, encode},
    state::new_version_id,
};

/// What is wrong with a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flaw {
    Malformed,
    /// Signed with a key that the verifier does not know. The header, as it was sent.
    UnknownKey {
        header: String,
    },
    Signature,
}

/// A signing key of 2048 bits with a name.
pub struct Signer {
    kid: String,
    pair: KeyPair,
}

/// A token taken apart, not checked.
pub struct Parts<'a> {
    pub header: Value,
    pub claims: Value,
    signed: &'a str,
    signature: Vec<u8>,
}

impl<'a> Parts<'a> {
    pub fn of(token: &'a str) -> Option<Self> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let json = |text: &str| serde_json::from_slice(&decode(text)?).ok();
        Some(Self {
            header: json(header)?,
            claims: json(claims)?,
            signed,
            signature: decode(signature)?,
        })
    }
}

impl Signer {
    /// Takes a fraction of a second.
    pub fn new() -> Self {
        let pair = KeyPair::generate(KeySize::Rsa2048).expect("aws-lc makes RSA keys");
        Self { kid: new_version_id(), pair }
    }

    pub fn sign(&self, claims: &Value) -> String {
        let header = json!({ "typ": "JWT", "alg": "RS256", "x5t": self.kid, "kid": self.kid });
        let signed = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature)
            .expect("signing");
        format!("{signed}.{}", encode(signature))
    }

    /// The claims of a token that this key signed.
    pub fn verify(&self, token: &str) -> Result<Value, Flaw> {
        let parts = Parts::of(token).ok_or(Flaw::Malformed)?;
        if parts.header["kid"].as_str() != Some(&self.kid) {
            let header = token.split('.').next().unwrap_or_default().to_owned();
            return Err(Flaw::UnknownKey { header });
        }
        if parts.header["alg"].as_str() != Some("RS256") {
            return Err(Flaw::Signature);
        }
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, self.pair.public_key().as_ref())
            .verify(parts.signed.as_bytes(), &parts.signature)
            .map_err(|_| Flaw::Signature)?;
        Ok(parts.claims)
    }

    /// The public half as a JSON Web Key Set.
    pub fn key_set(&self) -> Value {
        let public = self.pair.public_key();
        json!({ "keys": [{
            "kty": "RSA",
            "use": "sig",
            "kid": self.kid,
            "n": encode(public.modulus().big_endian_without_leading_zero()),
            "e": encode(public.exponent().big_endian_without_leading_zero()),
        }]})
    }
}

/// The claims of a token that was signed with a certificate's key, RS256 or PS256. The
/// header must name the certificate by its SHA-1 or SHA-256.
pub fn verify_with_certificate(token: &str, certificate: &[u8]) -> Result<Value, Flaw> {
    let parts = Parts::of(token).ok_or(Flaw::Malformed)?;
    let named = |field: &str, hash| {
        let thumbprint = encode(digest::digest(hash, certificate));
        parts.header[field].as_str().map(|text| text.trim_end_matches('=') == thumbprint)
    };
    let by_sha1 = named("x5t", &digest::SHA1_FOR_LEGACY_USE_ONLY);
    let by_sha256 = named("x5t#S256", &digest::SHA256);
    if by_sha256.or(by_sha1) != Some(true) {
        let header = token.split('.').next().unwrap_or_default().to_owned();
        return Err(Flaw::UnknownKey { header });
    }
    let scheme = match parts.header["alg"].as_str() {
        Some("RS256") => SignatureScheme::RSA_PKCS1_SHA256,
        Some("PS256") => SignatureScheme::RSA_PSS_SHA256,
        _ => return Err(Flaw::Signature),
    };
    let algorithms = default_provider().signature_verification_algorithms.mapping;
    let (_, candidates) =
        algorithms.iter().find(|(known, _)| *known == scheme).ok_or(Flaw::Signature)?;
    let certificate = CertificateDer::from(certificate);
    let certificate = EndEntityCert::try_from(&certificate).map_err(|_| Flaw::Malformed)?;
    candidates
        .iter()
        .any(|algorithm| {
            certificate
                .verify_signature(*algorithm, parts.signed.as_bytes(), &parts.signature)
                .is_ok()
        })
        .then_some(parts.claims)
        .ok_or(Flaw::Signature)
}
