//! Channels of tonic's: what callers have who do not use our client.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc};

use hyper_util::rt::TokioIo;
use keyward::client::TlsFiles;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

/// What calls name as their authority. It may have settings of its own.
pub fn endpoint() -> Endpoint {
    Endpoint::from_static("http://localhost")
}

/// A channel over a Unix socket, opened when it is first used.
pub fn unix(endpoint: &Endpoint, path: PathBuf) -> Channel {
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    }))
}

/// A channel over TCP with mutual TLS to a server that is called localhost, opened when it is
/// first used.
pub fn tls(server: SocketAddr, files: &TlsFiles) -> Channel {
    let certificates = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .expect("certificates");
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(&files.ca).expect("a certificate");
    roots.add(authority).expect("an authority");
    let key = PrivateKeyDer::from_pem_file(&files.key).expect("a key");
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates, key)
        .expect("a certificate");
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    endpoint().connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let connector = connector.clone();
        async move {
            let stream = TcpStream::connect(server).await?;
            stream.set_nodelay(true)?;
            let name = "localhost".try_into().expect("a name");
            connector.connect(name, stream).await.map(TokioIo::new)
        }
    }))
}
