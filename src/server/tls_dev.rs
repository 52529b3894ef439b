//! Development certificates: an authority, a server's and a client's, for trying TCP
//! out on one machine.
//!
//! Invariants: existing files are never overwritten, and the directory appears whole
//! or not at all: everything is written into a directory beside it and moved.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    net::{Ipv4Addr, Ipv6Addr},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

use super::SetupError;

/// How long the certificates are valid.
const VALID_DAYS: i64 = 365;

/// The files that [`make_dev_tls`] made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevTls {
    /// The authority's certificate: `tls.client_ca` of the server, `--tls-ca` of clients.
    pub ca: PathBuf,
    /// The server's certificate, for `localhost`, `127.0.0.1` and `::1`.
    pub server_certificate: PathBuf,
    /// Its key.
    pub server_key: PathBuf,
    /// A client's certificate.
    pub client_certificate: PathBuf,
    /// Its key.
    pub client_key: PathBuf,
    /// Who the client is, as a `[[policy]]` writes it.
    pub client_names: [&'static str; 2],
}

const CLIENT_URI: &str = "spiffe://keyward.dev/node/1";
const CLIENT_DNS: &str = "node1.keyward.dev";

/// Makes a development authority and certificates in the new directory `dir`. The
/// authority's own key is thrown away: nobody can make another certificate with it.
pub fn make_dev_tls(dir: &Path) -> Result<DevTls, SetupError> {
    if dir.symlink_metadata().is_ok() {
        return Err(SetupError::new(
            format!("cannot make certificates in {}", dir.display()),
            "it exists already",
        )
        .with_fix("name a directory that does not exist, or remove this one"));
    }
    let cannot = |error: io::Error| {
        SetupError::new(format!("cannot make certificates in {}", dir.display()), error)
            .with_fix("name a directory whose parent exists and is yours")
    };
    let made = Made::new().map_err(|error| SetupError::new("cannot make certificates", error))?;
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let draft = dir.with_file_name(name);
    DirBuilder::new().mode(0o700).create(&draft).map_err(cannot)?;
    let moved = made.write(&draft).and_then(|()| {
        // Fails, as it must, if somebody else has put something there in the meantime
        // (an empty directory excepted).
        fs::rename(&draft, dir)
    });
    if let Err(error) = moved {
        let _keep_the_first_error = fs::remove_dir_all(&draft);
        return Err(cannot(error));
    }
    Ok(DevTls {
        ca: dir.join(CA),
        server_certificate: dir.join(SERVER),
        server_key: dir.join(SERVER_KEY),
        client_certificate: dir.join(CLIENT),
        client_key: dir.join(CLIENT_KEY),
        client_names: [CLIENT_URI, "dns:node1.keyward.dev"],
    })
}

const CA: &str = "ca.pem";
const SERVER: &str = "server.pem";
const SERVER_KEY: &str = "server.key";
const CLIENT: &str = "client.pem";
const CLIENT_KEY: &str = "client.key";

/// In PEM form.
struct Made {
    ca: String,
    server: String,
    server_key: KeyPair,
    client: String,
    client_key: KeyPair,
}

impl Made {
    fn new() -> Result<Self, rcgen::Error> {
        let mut ca = params("Keyward development CA");
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;

        let mut server = params("Keyward development server");
        server.subject_alt_names = vec![
            SanType::DnsName("localhost".try_into()?),
            SanType::IpAddress(Ipv4Addr::LOCALHOST.into()),
            SanType::IpAddress(Ipv6Addr::LOCALHOST.into()),
        ];
        leaf(&mut server, ExtendedKeyUsagePurpose::ServerAuth);
        let server_key = KeyPair::generate()?;

        let mut client = params("Keyward development client");
        client.subject_alt_names =
            vec![SanType::URI(CLIENT_URI.try_into()?), SanType::DnsName(CLIENT_DNS.try_into()?)];
        leaf(&mut client, ExtendedKeyUsagePurpose::ClientAuth);
        let client_key = KeyPair::generate()?;

        Ok(Self {
            ca: ca.pem(),
            server: server.signed_by(&server_key, &ca)?.pem(),
            server_key,
            client: client.signed_by(&client_key, &ca)?.pem(),
            client_key,
        })
    }

    fn write(&self, dir: &Path) -> io::Result<()> {
        let Self { ca, server, server_key, client, client_key } = self;
        let key = |key: &KeyPair| zeroize::Zeroizing::new(key.serialize_pem());
        write(&dir.join(CA), ca, 0o644)?;
        write(&dir.join(SERVER), server, 0o644)?;
        write(&dir.join(SERVER_KEY), &key(server_key), 0o600)?;
        write(&dir.join(CLIENT), client, 0o644)?;
        write(&dir.join(CLIENT_KEY), &key(client_key), 0o600)
    }
}

/// Subjects are distinct: some TLS libraries take a chain whose authority and leaf
/// share one for a self-signed certificate.
fn params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    // An hour back, for clocks that are not quite right.
    params.not_before = OffsetDateTime::now_utc() - Duration::hours(1);
    params.not_after = OffsetDateTime::now_utc() + Duration::days(VALID_DAYS);
    params
}

fn leaf(params: &mut CertificateParams, purpose: ExtendedKeyUsagePurpose) {
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![purpose];
}

fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use tempfile::TempDir;

    #[test]
    fn keys_are_for_their_owner_only() {
        let dir = TempDir::new().unwrap();
        let made = make_dev_tls(&dir.path().join("tls")).unwrap();
        for key in [made.server_key, made.client_key] {
            assert_eq!(fs::metadata(key).unwrap().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn nothing_is_overwritten_and_nothing_half_written() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("tls");
        make_dev_tls(&path).unwrap();
        let before = fs::read(path.join(CA)).unwrap();
        assert_eq!(make_dev_tls(&path).unwrap_err().cause(), "it exists already");
        assert_eq!(fs::read(path.join(CA)).unwrap(), before);
        assert!(make_dev_tls(&dir.path().join("no/such/parent")).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
