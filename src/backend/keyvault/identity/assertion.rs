//! A client certificate as an identity: a statement of our own, signed with its key, that
//! Entra takes for a token (a JWT by PS256, as Entra documents it).
//!
//! The SDK would do this with OpenSSL, which Keyward does not link.

use std::{
    fmt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::{
    digest,
    rand::{self, SystemRandom},
    signature::RSA_PSS_SHA256,
};
use azure_core::{error::ErrorKind, http::ClientMethodOptions};
use azure_identity::ClientAssertion;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::json;

use super::read_secret;
use crate::error::{Error, Reason};

/// How long a statement is good. Entra allows ten minutes.
const GOOD_FOR: Duration = Duration::from_secs(300);

/// How far Entra's clock may be behind ours.
const SKEW: Duration = Duration::from_secs(60);

/// Longest file of a private key, in bytes.
const KEY_MAX: usize = 32 * 1024;

/// Makes statements that one application is who it says.
#[derive(Clone)]
pub(super) struct Assertion {
    key: Arc<KeyPair>,
    /// SHA-256 of the certificate, as the head of a statement names it.
    thumbprint: String,
    client: String,
    /// Whom it is for: the token endpoint.
    audience: String,
}

impl Assertion {
    /// Reads certificate and key, both PEM. Blocks.
    pub(super) fn read(
        certificate: &Path,
        key: &Path,
        client: &str,
        audience: String,
    ) -> Result<Self, Error> {
        let shown = certificate.display();
        let bad = |what: String| {
            Error::new(Reason::BackendMisconfigured, "the identity's certificate cannot be read")
                .with_fix("set `identity` to PEM files of the certificate and of its RSA key")
                .with_detail(what)
        };
        let leaf = CertificateDer::from_pem_file(certificate)
            .map_err(|error| bad(format!("{shown}: {error}")))?;
        let thumbprint = digest::digest(&digest::SHA256, &leaf);
        let shown = key.display();
        let text = read_secret(key, KEY_MAX)?;
        let key = match PrivateKeyDer::from_pem_slice(text.expose()) {
            Ok(PrivateKeyDer::Pkcs8(der)) => KeyPair::from_pkcs8(der.secret_pkcs8_der()).ok(),
            Ok(PrivateKeyDer::Pkcs1(der)) => KeyPair::from_der(der.secret_pkcs1_der()).ok(),
            _ => None,
        };
        let key = key.ok_or_else(|| bad(format!("{shown}: not a private RSA key in PEM")))?;
        Ok(Self {
            key: Arc::new(key),
            thumbprint: URL_SAFE_NO_PAD.encode(thumbprint),
            client: client.to_owned(),
            audience,
        })
    }

    /// A statement of `now`. `serial` is never used twice.
    fn state(&self, now: SystemTime, serial: [u8; 16]) -> Option<String> {
        let now = now.duration_since(UNIX_EPOCH).ok()?;
        let head = json!({ "alg": "PS256", "typ": "JWT", "x5t#S256": self.thumbprint });
        let claims = json!({
            "aud": self.audience,
            "iss": self.client,
            "sub": self.client,
            "jti": URL_SAFE_NO_PAD.encode(serial),
            "iat": now.as_secs(),
            "nbf": now.saturating_sub(SKEW).as_secs(),
            "exp": (now + GOOD_FOR).as_secs(),
        });
        let encoded = |part: serde_json::Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let text = format!("{}.{}", encoded(head), encoded(claims));
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key
            .sign(&RSA_PSS_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature)
            .ok()?;
        Some(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

#[async_trait]
impl ClientAssertion for Assertion {
    async fn secret(&self, _: Option<ClientMethodOptions<'_>>) -> azure_core::Result<String> {
        let mut serial = [0; 16];
        let random = rand::fill(&mut serial).ok();
        random.and_then(|()| self.state(SystemTime::now(), serial)).ok_or_else(|| {
            azure_core::Error::with_message(ErrorKind::Credential, "the statement was not signed")
        })
    }
}

impl fmt::Debug for Assertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Assertion({})", self.client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::rsa::KeySize;
    use aws_lc_rs::{
        encoding::AsDer,
        signature::{KeyPair as _, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey},
    };
    use std::{fs, os::unix::fs::PermissionsExt};

    fn pem(label: &str, der: &[u8]) -> String {
        let body = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
    }

    #[test]
    fn a_statement_says_what_entra_asks_for_and_verifies() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
        let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
        fs::write(&certificate, pem("CERTIFICATE", b"any bytes")).unwrap();
        fs::write(&key, pem("PRIVATE KEY", pair.as_der().unwrap().as_ref())).unwrap();
        let read = || Assertion::read(&certificate, &key, "client", "https://login/t".into());
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(read().unwrap_err().reason(), Reason::BackendMisconfigured, "open to others");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();

        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let statement = read().unwrap().state(now, [7; 16]).unwrap();
        let parts: Vec<&str> = statement.split('.').collect();
        let [head, claims, signature] = parts[..] else { panic!("{statement}") };
        let decoded = |part| URL_SAFE_NO_PAD.decode(part).unwrap();
        let json = |part| serde_json::from_slice::<serde_json::Value>(&decoded(part)).unwrap();
        assert_eq!(json(head)["alg"], "PS256");
        let thumbprint = digest::digest(&digest::SHA256, b"any bytes");
        assert_eq!(json(head)["x5t#S256"], URL_SAFE_NO_PAD.encode(thumbprint));
        let claims_read = json(claims);
        assert_eq!(claims_read["aud"], "https://login/t");
        assert_eq!(
            (&claims_read["iss"], &claims_read["sub"]),
            (&json!("client"), &json!("client"))
        );
        assert_eq!(
            (&claims_read["nbf"], &claims_read["exp"]),
            (&json!(999_940), &json!(1_000_300))
        );
        UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA256, pair.public_key().as_ref())
            .verify(format!("{head}.{claims}").as_bytes(), &decoded(signature))
            .unwrap();
    }
}
