//! How requests of Azure's SDK reach Azure: the policy at the end of every pipeline.
//!
//! It asks nobody but the origins that it was made for, over TLS but for the machine's own
//! token endpoints; follows no redirect; uses no proxy; reads no more than a bounded
//! answer; and leaves neither key nor token in a buffer ([`exchange`]). It tries nothing
//! again, with one exception: a connection that was idle, and turns out to be dead before a
//! byte of an answer came, says nothing about the other end.

mod exchange;
mod link;
mod pool;
pub(super) mod tls;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use async_trait::async_trait;
use azure_core::http::{
    AsyncRawResponse, Body, ClientOptions, Context, Request, RetryOptions, StatusCode, Transport,
    Url, UserAgentOptions,
    headers::{HeaderName, HeaderValue, Headers},
    policies::{Policy, PolicyResult},
};
use hyper::body::Bytes;
use rustls::ClientConfig;
use time::{OffsetDateTime, format_description::well_known::Rfc2822};

use self::{
    exchange::{Exchanged, Whole, exchange},
    link::Link,
    pool::Pool,
};
use super::fault::Fault;

/// Whom a request may go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// Whether over TLS.
    pub(super) tls: bool,
    /// Name or address, in lower case.
    pub(super) host: String,
    pub(super) port: u16,
}

impl Origin {
    /// Whom a URL names.
    pub(super) fn of(url: &Url) -> Option<Self> {
        let tls = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let host = url.host_str()?.trim_matches(['[', ']']).to_ascii_lowercase();
        Some(Self { tls, host, port: url.port_or_known_default()? })
    }

    fn authority(&self) -> String {
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        match (self.tls, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

/// Marks a request, in its context, that may be sent again: it leaves nothing behind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Repeatable;

/// What is told of each answer that is no success: its status and its body.
type OnRefusal = Box<dyn Fn(u16, &[u8]) + Send + Sync>;

/// The way to some origins.
pub(super) struct Wire {
    origins: Vec<Origin>,
    tls: Arc<ClientConfig>,
    pool: Pool,
    on_refusal: Option<OnRefusal>,
    /// By how many seconds the other end's clock was ahead when it last said what time it
    /// is; [`UNTOLD`] until it did.
    ahead: AtomicI64,
}

/// No number of seconds that a clock is ahead.
const UNTOLD: i64 = i64::MIN;

impl Wire {
    /// A way to these origins, over at most `idle` idle connections. More than one origin
    /// cannot share connections: then `idle` is 0.
    pub(super) fn new(origins: Vec<Origin>, tls: Arc<ClientConfig>, idle: usize) -> Self {
        debug_assert!(origins.len() == 1 || idle == 0);
        let ahead = AtomicI64::new(UNTOLD);
        Self { origins, tls, pool: Pool::new(idle), on_refusal: None, ahead }
    }

    /// Tells `listener` of answers that are no success, whatever the SDK makes of them.
    #[must_use]
    pub(super) fn telling(mut self, listener: impl Fn(u16, &[u8]) + Send + Sync + 'static) -> Self {
        self.on_refusal = Some(Box::new(listener));
        self
    }

    /// By how many seconds the other end's clock was ahead of ours when it last answered.
    pub(super) fn clock_ahead(&self) -> Option<i64> {
        Some(self.ahead.load(Ordering::Relaxed)).filter(|ahead| *ahead != UNTOLD)
    }

    /// Closes connections that are idle.
    pub(super) fn close(&self) {
        self.pool.clear();
    }

    async fn answer(
        &self,
        origin: &Origin,
        request: &Request,
        repeatable: bool,
    ) -> Result<http::Response<Vec<u8>>, Fault> {
        let outgoing = || outgoing(origin, request);
        if let Some(link) = self.pool.take().await {
            let exchanged = exchange(link, outgoing()?).await;
            let stale = exchanged.answer.is_err() && !exchanged.heard;
            if !(stale && repeatable) {
                return self.keep(exchanged);
            }
        }
        let link = Link::open(origin, &self.tls).await?;
        let exchanged = exchange(link, outgoing()?).await;
        self.keep(exchanged)
    }

    fn keep(&self, exchanged: Exchanged) -> Result<http::Response<Vec<u8>>, Fault> {
        if let Some(link) = exchanged.link {
            self.pool.put(link);
        }
        exchanged.answer
    }
}

#[async_trait]
impl Policy for Wire {
    async fn send(
        &self,
        ctx: &Context,
        request: &mut Request,
        _: &[Arc<dyn Policy>],
    ) -> PolicyResult {
        let origin = Origin::of(request.url()).filter(|origin| self.origins.contains(origin));
        let origin = origin.ok_or(Fault::Stranger)?;
        let repeatable = ctx.value::<Repeatable>().is_some();
        let (head, body) = self.answer(&origin, request, repeatable).await?.into_parts();
        let status = head.status.as_u16();
        if let Some(ahead) = ahead(&head.headers, OffsetDateTime::now_utc()) {
            self.ahead.store(ahead, Ordering::Relaxed);
        }
        if let (false, Some(tell)) = (head.status.is_success(), &self.on_refusal) {
            tell(status, &body);
        }
        let mut headers = Headers::new();
        for (name, value) in &head.headers {
            // What is not text is none of the headers that anybody asks for.
            let Ok(value) = value.to_str() else { continue };
            let name = HeaderName::from(name.as_str().to_owned());
            // The SDK keeps one of each name; a challenge may come in two.
            let value = match headers.get_optional_str(&name) {
                Some(before) => format!("{before}, {value}"),
                None => value.to_owned(),
            };
            headers.insert(name, HeaderValue::from(value));
        }
        Ok(AsyncRawResponse::from_bytes(StatusCode::from(status), headers, body))
    }
}

/// By how many seconds the clock of whoever sent these headers is ahead of `now` (RFC 9110,
/// 6.6.1).
fn ahead(headers: &http::HeaderMap, now: OffsetDateTime) -> Option<i64> {
    let date = headers.get(http::header::DATE)?.to_str().ok()?;
    let date = OffsetDateTime::parse(date, &Rfc2822).ok()?;
    Some((date - now).whole_seconds())
}

/// The SDK's request, as hyper sends it.
fn outgoing(origin: &Origin, request: &Request) -> Result<http::Request<Whole>, Fault> {
    let body = match request.body() {
        Body::Bytes(bytes) => Bytes::clone(bytes),
        // Key Vault and Entra have no requests that are streams.
        _ => return Err(Fault::Request),
    };
    let url = request.url();
    let path = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    let mut builder = http::Request::builder().method(request.method().as_str()).uri(path);
    for (name, value) in request.headers().iter() {
        builder = builder.header(name.as_str(), value.as_str());
    }
    builder
        .header(http::header::HOST, origin.authority())
        .body(Whole::new(body))
        .map_err(|_| Fault::Request)
}

/// How every pipeline of the SDK is set up: over `wire`, without retries.
pub(super) fn client_options(wire: &Arc<Wire>) -> ClientOptions {
    ClientOptions {
        transport: Some(Transport::with_policy(Arc::clone(wire) as Arc<dyn Policy>)),
        // The guard decides about those.
        retry: RetryOptions::none(),
        // At most 24 characters of those that a token may have, or the SDK panics.
        user_agent: UserAgentOptions {
            application_id: Some(concat!("keyward-", env!("CARGO_PKG_VERSION")).to_owned()),
        },
        ..ClientOptions::default()
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wire({:?}, {:?})", self.origins, self.pool)
    }
}

#[cfg(test)]
mod tests;
