//! Where a sidecar is and how it is connected to.
//!
//! The library connects by itself rather than through its RPC library: TLS 1.3 only,
//! with our own certificate, verified against one authority and nothing that the
//! system trusts.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::codegen::http::Uri;
use zeroize::Zeroizing;

use super::Error;

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

    pub(super) fn is_unix(&self) -> bool {
        matches!(self.0, Target::Unix(_))
    }

    /// What connects to it. `Err` if its URI or its files cannot be used.
    pub(super) fn connector(&self) -> Result<Connector, Error> {
        match &self.0 {
            Target::Unix(path) => Ok(Connector {
                way: Way::Unix(path.clone()),
                origin: Uri::from_static("http://localhost"),
            }),
            Target::Tls { uri, files, server_name } => {
                let Server { host, port, name, origin } =
                    Server::parse(uri, server_name.as_deref())?;
                let connector = TlsConnector::from(Arc::new(config(files)?));
                Ok(Connector { way: Way::Tls { host, port, name, connector }, origin })
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

/// Connects to an endpoint.
pub(super) struct Connector {
    way: Way,
    /// What calls name as scheme and authority. HTTP/2 servers refuse a path as authority.
    origin: Uri,
}

enum Way {
    Unix(PathBuf),
    Tls { host: String, port: u16, name: ServerName<'static>, connector: TlsConnector },
}

/// A connection to a sidecar.
pub(super) enum Wire {
    /// Over a Unix socket.
    Unix(UnixStream),
    /// Over TCP.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connector {
    pub(super) fn origin(&self) -> &Uri {
        &self.origin
    }

    pub(super) async fn connect(&self) -> io::Result<Wire> {
        match &self.way {
            Way::Unix(path) => Ok(Wire::Unix(UnixStream::connect(path).await?)),
            Way::Tls { host, port, name, connector } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                let stream = connector.connect(name.clone(), stream).await?;
                Ok(Wire::Tls(Box::new(stream)))
            }
        }
    }
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
        let connector = Endpoint::tls("https://a:1", files, None).connector();
        let error = connector.map(drop).unwrap_err();
        assert!(error.message().contains("/nonexistent/ca.pem"), "{error}");
    }
}
