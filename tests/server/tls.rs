//! Who gets in over TCP, and who does not.

use std::{sync::Arc, time::Duration};

use keyward::{
    client::{Client, Endpoint, Error, TlsFiles},
    server::make_dev_tls,
};
use rcgen::SanType;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::support::{
    pki::{self, Pki},
    sidecar::{NODE, Sidecar},
};

async fn refused(sidecar: &Sidecar, files: TlsFiles) -> String {
    let error = sidecar.tls_client(files).list_keks().await.unwrap_err();
    assert_eq!(error.reason(), Error::SIDECAR_UNREACHABLE, "{error}");
    error.message().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_valid_certificates_of_our_authority_with_a_name_get_in() {
    let sidecar = Sidecar::start().await;
    let node = || vec![pki::uri(NODE)];
    let good = sidecar.pki.client("good", node());
    sidecar.tls_client(good.clone()).list_keks().await.unwrap();

    let expired = sidecar.pki.expired_client("expired", node());
    refused(&sidecar, expired).await;

    let stranger = Pki::new(&sidecar.dir.path().join("stranger")).client("node", node());
    let stranger = TlsFiles { ca: sidecar.pki.ca(), ..stranger };
    refused(&sidecar, stranger).await;

    let nameless = sidecar.pki.client("nameless", vec![]);
    refused(&sidecar, nameless).await;
    let address = SanType::IpAddress("127.0.0.1".parse().unwrap());
    refused(&sidecar, sidecar.pki.client("address", vec![address])).await;

    sidecar.tls_client(good).list_keks().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_does_not_talk_to_a_server_of_another_authority_or_name() {
    let sidecar = Sidecar::start().await;
    let good = sidecar.pki.client("good", vec![pki::uri(NODE)]);
    let other = Pki::new(&sidecar.dir.path().join("other"));
    let message = refused(&sidecar, TlsFiles { ca: other.ca(), ..good.clone() }).await;
    assert!(message.contains("certificate"), "{message}");
    let uri = format!("https://{}", sidecar.tcp);
    let client = Client::new(&Endpoint::tls(uri, good, Some("elsewhere.example".into())))
        .unwrap()
        .failing_fast();
    let error = client.list_keks().await.unwrap_err();
    assert_eq!(error.reason(), Error::SIDECAR_UNREACHABLE);
}

/// A TLS client without a certificate; `None` if the connection ended without an answer.
async fn without_certificate(
    sidecar: &Sidecar,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Option<Vec<u8>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(sidecar.pki.ca()).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(sidecar.tcp).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.ok()?;
    let _may_be_closed =
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    let mut answer = vec![0; 64];
    let read = timeout(Duration::from_secs(5), stream.read(&mut answer)).await.unwrap();
    read.ok().filter(|n| *n > 0).map(|n| answer[..n].to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_nobody_gets_in() {
    let sidecar = Sidecar::start().await;
    assert_eq!(without_certificate(&sidecar, &[&rustls::version::TLS13]).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_is_not_answered() {
    let sidecar = Sidecar::start().await;
    let mut stream = TcpStream::connect(sidecar.tcp).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut answer = Vec::new();
    let _reset = timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await.unwrap();
    // At most a TLS alert, never a SETTINGS frame.
    assert!(answer.is_empty() || answer[0] == 21, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn development_certificates_work_as_they_are() {
    let dir = tempfile::TempDir::new().unwrap();
    let made = make_dev_tls(&dir.path().join("tls")).unwrap();
    let tls = keyward::server::TlsFiles {
        certificate: made.server_certificate.clone(),
        key: made.server_key.clone(),
        client_ca: made.ca.clone(),
    };
    let sidecar =
        Sidecar::start_with(|settings| settings.tcp.as_mut().unwrap().tls = tls, &["orders"]).await;
    let files =
        TlsFiles { ca: made.ca, certificate: made.client_certificate, key: made.client_key };
    // By address, which the server's certificate is for, too.
    let client = |name: Option<String>| {
        let uri = format!("https://{}", sidecar.tcp);
        Client::new(&Endpoint::tls(uri, files.clone(), name)).unwrap().failing_fast()
    };
    for client in [client(None), client(Some("localhost".into()))] {
        let listed = client.list_keks().await.unwrap();
        assert!(listed.is_empty(), "the policy does not name this caller");
    }
    let error = client(None).get_kek("orders").await.unwrap_err();
    assert_eq!(error.reason(), "PERMISSION_DENIED");
    for name in made.client_names {
        keyward::auth::WhoPattern::parse(name).unwrap();
    }
}
