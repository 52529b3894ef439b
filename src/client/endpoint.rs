//! Where a sidecar is and how it is connected to.
//!
//! The library connects by itself rather than through its RPC library: TLS 1.3 only,
//! with our own certificate, verified against one authority and nothing that the
//! system trusts.

use std::{fmt, io, path::Path, path::PathBuf, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{self, Channel, Uri};
use tower::service_fn;
use zeroize::Zeroizing;

use super::Error;

/// How long connecting may take, with the TLS handshake.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_ANSWERED_WITHIN: Duration = Duration::from_secs(10);
/// Calls that wait for the connection to take them.
const QUEUE_MAX: usize = 1024;

const FILES_FIX: &str = "use PEM files that we can read: the authority's, ours, and our key";

/// Where a sidecar is.
#[derive(Clone)]
pub struct Endpoint(Target);

#[derive(Clone)]
enum Target {
    Unix(PathBuf),
    Tls { uri: String, files: TlsFiles, server_name: Option<String> },
}

/// PEM files of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authority that signed the sidecar's certificate.
    pub ca: PathBuf,
    /// Our certificate, followed by its intermediates.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Endpoint {
    /// A Unix socket.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self(Target::Unix(path.into()))
    }

    /// TCP with mutual TLS at `uri`, such as `https://node1:7443`. `server_name` is what
    /// the sidecar's certificate must be for, if that is not the host of `uri`.
    pub fn tls(uri: impl Into<String>, files: TlsFiles, server_name: Option<String>) -> Self {
        Self(Target::Tls { uri: uri.into(), files, server_name })
    }

    /// A connection that is opened when it is needed.
    pub(super) fn channel(&self) -> Result<Channel, Error> {
        match &self.0 {
            Target::Unix(path) => Ok(unix(path)),
            Target::Tls { uri, files, server_name } => {
                let server = Server::parse(uri, server_name.as_deref())?;
                Ok(tls(server, TlsConnector::from(Arc::new(config(files)?))))
            }
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Target::Unix(path) => write!(f, "{}", path.display()),
            Target::Tls { uri, .. } => f.write_str(uri),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self})")
    }
}

fn settings() -> transport::Endpoint {
    // The library only ever sees this one: our connectors know where to go, and HTTP/2
    // servers refuse a path as authority.
    transport::Endpoint::from_static("http://localhost")
        .connect_timeout(CONNECT_WITHIN)
        .buffer_size(QUEUE_MAX)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_ANSWERED_WITHIN)
        .keep_alive_while_idle(true)
}

fn unix(path: &Path) -> Channel {
    let path = path.to_owned();
    settings().connect_with_connector_lazy(service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    }))
}

fn tls(server: Server, connector: TlsConnector) -> Channel {
    let Server { host, port, name, origin } = server;
    let connect = service_fn(move |_: Uri| {
        let (address, name, connector) = ((host.clone(), port), name.clone(), connector.clone());
        async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok::<_, io::Error>(TokioIo::new(connector.connect(name, stream).await?))
        }
    });
    settings().origin(origin).connect_with_connector_lazy(connect)
}

/// A server on TCP.
#[derive(Debug)]
struct Server {
    host: String,
    port: u16,
    name: ServerName<'static>,
    origin: Uri,
}

impl Server {
    fn parse(uri: &str, server_name: Option<&str>) -> Result<Self, Error> {
        let invalid =
            |why: &str| Error::endpoint_invalid(format!("{uri:?} {why}"), "use https://HOST:PORT");
        let origin: Uri = uri.parse().map_err(|_| invalid("is not a URI"))?;
        if origin.scheme_str() != Some("https") {
            return Err(invalid("is not https: there is no plaintext TCP"));
        }
        if !matches!(origin.path(), "" | "/") || origin.query().is_some() {
            return Err(invalid("has a path"));
        }
        let host = origin.host().ok_or_else(|| invalid("has no host"))?;
        let port = origin.port_u16().ok_or_else(|| invalid("has no port"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(server_name.unwrap_or(&host).to_owned())
            .map_err(|_| invalid("has a host, or server name, that is not one"))?;
        Ok(Self { host, port, name, origin })
    }
}

fn config(files: &TlsFiles) -> Result<ClientConfig, Error> {
    let TlsFiles { ca, certificate, key } = files;
    let mut roots = RootCertStore::empty();
    for authority in certificates(ca)? {
        roots.add(authority).map_err(|error| bad(ca, &error))?;
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("aws-lc-rs speaks TLS 1.3")
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates(certificate)?, private_key(key)?)
        .map_err(|error| bad(certificate, &error))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = std::fs::read(path).map_err(|error| bad(path, &error))?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| bad(path, &error))?;
    if found.is_empty() {
        return Err(bad(path, &"it holds no certificate in PEM form"));
    }
    Ok(found)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let pem = Zeroizing::new(std::fs::read(path).map_err(|error| bad(path, &error))?);
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| bad(path, &error))
}

fn bad(path: &Path, cause: &dyn fmt::Display) -> Error {
    Error::endpoint_invalid(format!("cannot use {}: {cause}", path.display()), FILES_FIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_with_host_and_port_is_an_endpoint() {
        let server = Server::parse("https://node1:7443", None).unwrap();
        assert_eq!((server.host.as_str(), server.port), ("node1", 7443));
        let server = Server::parse("https://[::1]:7443/", Some("localhost")).unwrap();
        assert_eq!((server.host.as_str(), server.name.to_str()), ("::1", "localhost".into()));
        for bad in
            ["http://a:1", "a:1", "https://a", "https://a:1/x", "https://a:1/?q", "", "https://:1"]
        {
            let error = Server::parse(bad, None).unwrap_err();
            assert_eq!(error.reason(), Error::ENDPOINT_INVALID, "{bad}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let missing = PathBuf::from("/nonexistent/ca.pem");
        let files = TlsFiles { ca: missing.clone(), certificate: missing.clone(), key: missing };
        let error = Endpoint::tls("https://a:1", files, None).channel().unwrap_err();
        assert!(error.message().contains("/nonexistent/ca.pem"), "{error}");
    }
}
