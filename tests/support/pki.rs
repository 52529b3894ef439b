//! A certificate authority for tests, which can make what it should not.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use keyward::{client, server};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    SanType,
};
use time::{Duration, OffsetDateTime};

pub struct Pki {
    dir: PathBuf,
    ca: CertifiedIssuer<'static, KeyPair>,
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = OffsetDateTime::now_utc() - Duration::days(2);
    params.not_after = OffsetDateTime::now_utc() + Duration::days(2);
    params
}

pub fn uri(uri: &str) -> SanType {
    SanType::URI(uri.try_into().unwrap())
}

impl Pki {
    pub fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        let mut ca = params("test authority");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
        fs::write(dir.join("ca.pem"), ca.pem()).unwrap();
        Self { dir: dir.to_owned(), ca }
    }

    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    fn issue(&self, name: &str, params: CertificateParams) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.ca).unwrap();
        let paths = (self.dir.join(format!("{name}.pem")), self.dir.join(format!("{name}.key")));
        fs::write(&paths.0, certificate.pem()).unwrap();
        fs::write(&paths.1, key.serialize_pem()).unwrap();
        fs::set_permissions(&paths.1, Permissions::from_mode(0o600)).unwrap();
        paths
    }

    pub fn server(&self) -> server::TlsFiles {
        let mut params = params("test server");
        params.subject_alt_names = vec![SanType::DnsName("localhost".try_into().unwrap())];
        let (certificate, key) = self.issue("server", params);
        server::TlsFiles { certificate, key, client_ca: self.ca() }
    }

    pub fn client(&self, name: &str, sans: Vec<SanType>) -> client::TlsFiles {
        self.client_with(name, sans, |_| {})
    }

    pub fn expired_client(&self, name: &str, sans: Vec<SanType>) -> client::TlsFiles {
        self.client_with(name, sans, |params| {
            params.not_after = OffsetDateTime::now_utc() - Duration::days(1);
        })
    }

    fn client_with(
        &self,
        name: &str,
        sans: Vec<SanType>,
        change: impl FnOnce(&mut CertificateParams),
    ) -> client::TlsFiles {
        let mut params = params(name);
        params.subject_alt_names = sans;
        change(&mut params);
        let (certificate, key) = self.issue(name, params);
        client::TlsFiles { ca: self.ca(), certificate, key }
    }
}
