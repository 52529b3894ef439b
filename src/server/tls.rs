//! TLS: the server's configuration from PEM files, and who a client certificate says
//! its holder is.
//!
//! Invariants: TLS 1.3 only; every client shows a certificate of a configured
//! authority; no session is resumed, so that every connection's certificate is
//! verified anew; a private key that others can read is refused.

use std::{fs::File, io::Read, os::unix::fs::MetadataExt, path::Path, sync::Arc, time::Duration};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use tokio_rustls::TlsAcceptor;
use webpki::{EndEntityCert, KeyUsage};
use zeroize::Zeroizing;

use super::{SetupError, TlsFiles};
use crate::auth::{Identity, SAN_MAX, San};

/// HTTP/2, as ALPN calls it.
pub(super) const ALPN_H2: &[u8] = b"h2";

/// The end of the year 9999, which certificates do not outlast (RFC 5280, 4.1.2.5).
const LATEST: u64 = 253_402_300_800;

/// Longest PEM file that is read.
const PEM_MAX_BYTES: u64 = 1024 * 1024;

/// What makes TLS connections of accepted TCP connections.
pub(super) fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, SetupError> {
    // Named here, so that no process-wide default decides what the server uses.
    let provider = Arc::new(aws_lc_rs::default_provider());
    Ok(TlsAcceptor::from(Arc::new(config(files, provider)?)))
}

fn config(files: &TlsFiles, provider: Arc<CryptoProvider>) -> Result<ServerConfig, SetupError> {
    let TlsFiles { certificate, key, client_ca } = files;
    let mut roots = RootCertStore::empty();
    for authority in certificates(client_ca)? {
        roots.add(authority).map_err(|error| bad(client_ca, "an authority", &error))?;
    }
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| bad(client_ca, "a list of authorities", &error))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("aws-lc-rs speaks TLS 1.3")
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(certificate)?, private_key(key)?)
        .map_err(|error| {
            bad(certificate, "the certificate of the private key", &error)
                .with_fix("set tls.certificate and tls.key to files that belong together")
        })?;
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// When a certificate is valid, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CertificateDates {
    /// Its `notBefore`.
    pub not_before: u64,
    /// Its `notAfter`.
    pub not_after: u64,
}

/// Reads the files as the server would, and tells when the server's certificate is valid.
/// `Err` says why the server would not start.
pub fn check_tls(files: &TlsFiles) -> Result<CertificateDates, SetupError> {
    config(files, Arc::new(aws_lc_rs::default_provider()))?;
    let certificates = certificates(&files.certificate)?;
    let unreadable = || bad(&files.certificate, "a certificate", &"it cannot be read");
    let leaf = certificates.first().ok_or_else(unreadable)?;
    let parsed = EndEntityCert::try_from(leaf).map_err(|_| unreadable())?;
    // The verifier tells the dates of what it looks at first, at a time that is outside
    // of them; nobody is trusted here.
    let at = |secs| {
        let time = UnixTime::since_unix_epoch(Duration::from_secs(secs));
        let usage = KeyUsage::server_auth();
        parsed.verify_for_usage(&[], &[], &[], time, usage, None, None).map(|_| ())
    };
    match (at(0), at(LATEST)) {
        (
            Err(webpki::Error::CertNotValidYet { not_before, .. }),
            Err(webpki::Error::CertExpired { not_after, .. }),
        ) => Ok(CertificateDates {
            not_before: not_before.as_secs(),
            not_after: not_after.as_secs(),
        }),
        _ => Err(bad(&files.certificate, "a certificate with dates", &"it is valid for ever")),
    }
}

fn bad(path: &Path, kind: &str, error: &dyn std::fmt::Display) -> SetupError {
    SetupError::new(format!("{} is not {kind}", path.display()), error)
}

/// The certificates of a PEM file, at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, SetupError> {
    let pem = read(path, Readers::Any)?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| bad(path, "a PEM file", &error))?;
    if found.is_empty() {
        return Err(bad(path, "a file of certificates", &"it holds none in PEM form")
            .with_fix("a PEM certificate starts with -----BEGIN CERTIFICATE-----"));
    }
    Ok(found)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, SetupError> {
    let pem = read(path, Readers::Few)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| {
        // The error names what is wrong with the form; it holds no key bytes.
        bad(path, "a private key", &error)
            .with_fix("use an unencrypted PEM key: PKCS#8, PKCS#1 or SEC1")
    })
}

/// Who may have access to a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Readers {
    /// It is public.
    Any,
    /// Its owner, and a group that can only read it.
    Few,
}

fn read(path: &Path, readers: Readers) -> Result<Zeroizing<Vec<u8>>, SetupError> {
    let cannot = |error: std::io::Error| {
        SetupError::new(format!("cannot read {}", path.display()), error)
            .with_fix("set server.tls to files that the sidecar's user can read")
    };
    let file = File::open(path).map_err(cannot)?;
    // Of the open file, not of the path: what is checked is what is read.
    let metadata = file.metadata().map_err(cannot)?;
    if readers == Readers::Few && metadata.mode() & 0o027 != 0 {
        return Err(SetupError::new(
            format!("{} holds a private key that others can reach", path.display()),
            format!("its mode is {:04o}", metadata.mode() & 0o7777),
        )
        .with_fix(format!("chmod 600 {}", path.display())));
    }
    if metadata.len() > PEM_MAX_BYTES {
        return Err(bad(path, "a PEM file", &format!("it is longer than {PEM_MAX_BYTES} bytes")));
    }
    // Room for the whole file, so that no growth leaves a copy of a key behind.
    let room = usize::try_from(metadata.len()).unwrap_or_default() + 1;
    let mut pem = Zeroizing::new(Vec::with_capacity(room));
    file.take(PEM_MAX_BYTES).read_to_end(&mut pem).map_err(cannot)?;
    Ok(pem)
}

/// The names of a certificate that the handshake verified. `Err` says why its holder
/// has no identity.
pub(super) fn identity(certificate: &CertificateDer<'_>) -> Result<Identity, &'static str> {
    let parsed = EndEntityCert::try_from(certificate)
        .map_err(|_| "the client's certificate cannot be read")?;
    let dns = parsed.valid_dns_names().map(|name| San::Dns(name.to_ascii_lowercase()));
    let uris = parsed.valid_uri_names().map(|uri| San::Uri(uri.to_owned()));
    let names: Vec<_> = dns.chain(uris).take(SAN_MAX + 1).collect();
    match names.len() {
        0 => Err("the client's certificate has no DNS name or URI as subject alternative name"),
        1..=SAN_MAX => Ok(Identity::Tls { names }),
        _ => Err("the client's certificate has too many subject alternative names"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::make_dev_tls;
    use rcgen::{CertificateParams, KeyPair, SanType};
    use std::{fs, os::unix::fs::PermissionsExt};
    use tempfile::TempDir;

    fn certificate(sans: Vec<SanType>) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = sans;
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    fn dns(name: &str) -> SanType {
        SanType::DnsName(name.try_into().unwrap())
    }

    fn uri(uri: &str) -> SanType {
        SanType::URI(uri.try_into().unwrap())
    }

    #[test]
    fn names_are_read_from_the_subject_alternative_names() {
        let certificate = certificate(vec![
            dns("Node1.Example.org"),
            uri("spiffe://example.org/node/1"),
            SanType::IpAddress("127.0.0.1".parse().unwrap()),
        ]);
        let names = vec![
            San::Dns("node1.example.org".into()),
            San::Uri("spiffe://example.org/node/1".into()),
        ];
        assert_eq!(identity(&certificate), Ok(Identity::Tls { names }));
    }

    #[test]
    fn a_certificate_without_names_is_nobody() {
        assert!(identity(&certificate(vec![])).is_err());
        let address = SanType::IpAddress("127.0.0.1".parse().unwrap());
        assert!(identity(&certificate(vec![address])).is_err());
        assert!(identity(&CertificateDer::from(vec![1, 2, 3])).is_err());
    }

    #[test]
    fn a_certificate_with_too_many_names_is_refused() {
        let names = |n: usize| (0..n).map(|i| dns(&format!("n{i}.example.org"))).collect();
        assert!(identity(&certificate(names(SAN_MAX))).is_ok());
        assert!(identity(&certificate(names(SAN_MAX + 1))).is_err());
    }

    fn files() -> (TempDir, TlsFiles) {
        let dir = TempDir::new().unwrap();
        let made = make_dev_tls(&dir.path().join("tls")).unwrap();
        let files = TlsFiles {
            certificate: made.server_certificate,
            key: made.server_key,
            client_ca: made.ca,
        };
        (dir, files)
    }

    #[test]
    fn good_files_make_an_acceptor() {
        let (_dir, files) = files();
        acceptor(&files).unwrap();
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let (_dir, files) = files();
        for mode in [0o604, 0o620, 0o644, 0o601] {
            fs::set_permissions(&files.key, fs::Permissions::from_mode(mode)).unwrap();
            let error = acceptor(&files).err().unwrap();
            assert!(error.what().contains("others can reach"), "{error}");
            assert!(error.fix().unwrap().starts_with("chmod 600"));
        }
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o640)).unwrap();
        acceptor(&files).unwrap();
    }

    #[test]
    fn bad_files_say_which_and_why() {
        let (dir, good) = files();
        let missing = dir.path().join("missing.pem");
        let error = acceptor(&TlsFiles { key: missing, ..good.clone() }).err().unwrap();
        assert!(error.to_string().contains("missing.pem"), "{error}");

        let junk = dir.path().join("junk.pem");
        fs::write(&junk, "junk").unwrap();
        let error = acceptor(&TlsFiles { client_ca: junk.clone(), ..good.clone() }).err().unwrap();
        assert!(error.what().contains("junk.pem"), "{error}");
        fs::set_permissions(&junk, fs::Permissions::from_mode(0o600)).unwrap();
        let error = acceptor(&TlsFiles { key: junk, ..good.clone() }).err().unwrap();
        assert!(error.fix().unwrap().contains("PKCS#8"), "{error}");

        let other = make_dev_tls(&dir.path().join("other")).unwrap();
        let error = acceptor(&TlsFiles { key: other.server_key, ..good }).err().unwrap();
        assert!(error.fix().unwrap().contains("belong together"), "{error}");
    }
}
