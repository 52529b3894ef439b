//! The fake's certificates: an authority, and leaves, one of them right.
//!
//! Strict verifiers (Python 3.13) want key usage and key identifiers; they get them.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::{Duration, OffsetDateTime};

pub struct Authority {
    ca: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, as rustls takes them.
pub struct Leaf {
    pub certificate: CertificateDer<'static>,
    pub key: PrivateKeyDer<'static>,
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = OffsetDateTime::now_utc() - Duration::days(2);
    params.not_after = OffsetDateTime::now_utc() + Duration::days(30);
    params
}

impl Authority {
    pub fn new() -> Self {
        let mut ca = params("keyward fake authority");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        Self { ca: CertifiedIssuer::self_signed(ca, key).expect("a certificate") }
    }

    pub fn pem(&self) -> String {
        self.ca.pem()
    }

    fn issue(&self, hosts: &[String], change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let mut params = params("keyward fake");
        let loopback = std::net::Ipv4Addr::LOCALHOST;
        params.subject_alt_names = hosts
            .iter()
            .map(|host| SanType::DnsName(host.as_str().try_into().expect("a host name")))
            .collect();
        if hosts.iter().any(|host| host == "localhost") {
            params.subject_alt_names.push(SanType::IpAddress(loopback.into()));
        }
        params.use_authority_key_identifier_extension = true;
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.ca).expect("a certificate");
        Leaf {
            certificate: certificate.der().clone(),
            key: PrivateKeyDer::try_from(key.serialize_der()).expect("PKCS#8"),
        }
    }

    /// A certificate for these hosts; with `localhost` among them also for 127.0.0.1.
    pub fn leaf(&self, hosts: &[String]) -> Leaf {
        self.issue(hosts, |_| {})
    }

    /// One that ended yesterday.
    pub fn expired_leaf(&self, hosts: &[String]) -> Leaf {
        self.issue(hosts, |params| {
            params.not_after = OffsetDateTime::now_utc() - Duration::days(1);
        })
    }
}
