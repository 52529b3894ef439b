//! The client of these tests: one connection for each request, nothing retried.

use std::{io, net::Ipv4Addr, sync::Arc};

use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::keyvault::FakeVault;

pub const VERSION: &str = "api-version=2025-07-01";

#[derive(Clone)]
pub struct Client {
    tls: TlsConnector,
    url: String,
    token: Option<String>,
}

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    /// The JSON of a success.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        self.json()
    }

    /// Code and inner code of an error.
    pub fn codes(&self) -> (u16, String, String) {
        let error = &self.json()["error"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (self.status, text(&error["code"]), text(&error["innererror"]["code"]))
    }

    pub fn message(&self) -> String {
        self.json()["error"]["message"].as_str().unwrap_or_default().to_owned()
    }

    /// Whether it is this error.
    #[track_caller]
    pub fn is(&self, status: u16, code: &str, inner: &str) {
        assert_eq!(self.codes(), (status, code.into(), inner.into()));
    }
}

impl Client {
    pub fn new(vault: &FakeVault) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(vault.ca()).unwrap()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self { tls: TlsConnector::from(Arc::new(config)), url: vault.url(), token: None }
    }

    pub fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.into()), ..self.clone() }
    }

    pub fn without_token(&self) -> Self {
        Self { token: None, ..self.clone() }
    }

    /// The same for another place, `https://…` or `http://…`.
    pub fn at(&self, url: &str) -> Self {
        Self { url: url.into(), ..self.clone() }
    }

    pub async fn request(&self, request: Request<Full<Bytes>>) -> io::Result<Reply> {
        let (scheme, authority) = self.url.split_once("://").unwrap();
        let (host, port) = authority.split_once(':').unwrap();
        let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port.parse().unwrap())).await?;
        if scheme == "http" {
            return exchange(socket, request).await;
        }
        let name = ServerName::try_from(host.to_owned()).unwrap();
        exchange(self.tls.connect(name, socket).await?, request).await
    }

    fn build(&self, method: &str, target: &str) -> http::request::Builder {
        let authority = self.url.split_once("://").unwrap().1;
        let request = Request::builder().method(method).uri(target).header("Host", authority);
        match &self.token {
            Some(token) => request.header("Authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    /// Sends JSON, or nothing, to a path with its query.
    pub async fn try_send(
        &self,
        method: &str,
        target: &str,
        body: Option<Value>,
    ) -> io::Result<Reply> {
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let request = self.build(method, target).header("Content-Type", "application/json");
        self.request(request.body(Full::from(body)).unwrap()).await
    }

    /// The same to a path below the vault, with the api-version.
    pub async fn send(&self, method: &str, path: &str, body: Option<Value>) -> Reply {
        self.try_send(method, &format!("{path}?{VERSION}"), body).await.unwrap()
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send("GET", path, None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Reply {
        self.send("POST", path, Some(body)).await
    }

    /// GET with headers of one's own.
    pub async fn get_with(&self, target: &str, headers: &[(&str, &str)]) -> Reply {
        let mut request = self.build("GET", target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.request(request.body(Full::default()).unwrap()).await.unwrap()
    }

    /// POST of a form.
    pub async fn form(&self, path: &str, fields: &[(&str, &str)]) -> Reply {
        let escape =
            |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
        let body: Vec<_> =
            fields.iter().map(|(key, value)| format!("{key}={}", escape(value))).collect();
        let request = self
            .build("POST", path)
            .header("Content-Type", "application/x-www-form-urlencoded")
            .body(Full::from(body.join("&")))
            .unwrap();
        self.request(request).await.unwrap()
    }
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> io::Result<Reply>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // Its errors come out of the exchange, too.
    tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let (head, body) = response.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes().to_vec();
    Ok(Reply { status: head.status.as_u16(), headers: head.headers, body })
}
