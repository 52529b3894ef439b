//! A whole sidecar in this process, over a fake backend, with real listeners.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use keyward::{
    api::Sessions,
    auth::{Grant, Identity, KekPattern, Permit, Policy, WhoPattern},
    backend::{Backend, Metered},
    cache::{Cache, CacheSettings},
    client::{Client, Delivery, Endpoint, TlsFiles, WrappedDek},
    clock,
    engine::{Engine, KekSpec, Kept},
    kek::{Algorithm, KekName, KeyRef, Mode, NewestDisabled},
    lease::Terms,
    observe::Metrics,
    op::Op,
    secret::{Locker, Secret, shelves},
    server::{self, Served, Settings, SetupError, SocketSettings, TcpSettings},
    wire::key_wrap_client::KeyWrapClient,
};
use tempfile::TempDir;
use tokio::{
    sync::{oneshot, watch},
    task::{JoinHandle, JoinSet},
};
use tonic::transport::{self, Channel};

use super::{channel, fake::Fake, pki::Pki};

pub const NODE: &str = "spiffe://example.org/node/1";
/// A KEK that exists and that the policy gives to nobody.
pub const UNGRANTED: &str = "treasury";
pub const ALL_OPS: [Op; 9] = [
    Op::Wrap,
    Op::Unwrap,
    Op::Generate,
    Op::Rewrap,
    Op::Describe,
    Op::Purge,
    Op::Revoke,
    Op::Restore,
    Op::Reload,
];

pub struct Sidecar {
    pub dir: TempDir,
    pub settings: Settings,
    pub tcp: SocketAddr,
    pub admin: SocketAddr,
    pub pki: Pki,
    pub fake: Arc<Fake>,
    pub engine: Arc<Engine>,
    pub sessions: Arc<Sessions>,
    pub policy: Arc<ArcSwap<Policy>>,
    pub metrics: Arc<Metrics>,
    pub ready: watch::Sender<bool>,
    shutdown: Option<oneshot::Sender<()>>,
    /// Ends with the sidecar.
    _background: JoinSet<()>,
    served: JoinHandle<Result<(), SetupError>>,
}

pub fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

pub fn grant(who: &str, may: &[Op], kek: &str) -> Grant {
    Grant {
        who: vec![WhoPattern::parse(who).unwrap()],
        may: may.to_vec(),
        kek: vec![KekPattern::parse(kek).unwrap()],
        context_required: false,
    }
}

pub fn policy() -> Policy {
    Policy::new(vec![
        grant(&format!("uid:{}", own_uid()), &ALL_OPS, "orders*"),
        grant("spiffe://example.org/node/*", &ALL_OPS, "orders*"),
        grant("spiffe://example.org/reader/*", &[Op::Unwrap], "orders"),
    ])
}

/// What this user may do with a KEK.
pub fn permit(op: Op, kek: &KekName) -> Permit {
    let who = Arc::new(Identity::Unix { uid: own_uid(), gid: 0 });
    policy().permit(&who, op, kek).unwrap()
}

fn spec(name: &str, backend: &Arc<dyn Backend>) -> KekSpec {
    KekSpec {
        name: KekName::parse(name).unwrap(),
        backend: Arc::clone(backend),
        key: KeyRef::parse(name).unwrap(),
        algorithm: Algorithm::RsaOaep256,
        newest_disabled: NewestDisabled::default(),
        mode: Mode::CustomerManaged,
    }
}

const HOUR: Duration = Duration::from_secs(3600);

/// What a sidecar is made of, to be changed by a test.
pub struct Parts {
    pub fake: Arc<Fake>,
    pub keks: Vec<String>,
    pub cache: CacheSettings,
    pub terms: Terms,
    pub connection_age: Duration,
    /// Whether KEKs are kept proven; without it they are proven once.
    pub keep_proven: bool,
}

impl Default for Parts {
    /// DEKs and leases that last.
    fn default() -> Self {
        Self {
            fake: Fake::new(),
            keks: ["orders", "orders-2", UNGRANTED].map(str::to_owned).to_vec(),
            cache: CacheSettings { capacity: 1024, ttl: HOUR, idle: HOUR },
            terms: Terms { interval: HOUR, outage_grace: HOUR },
            connection_age: HOUR,
            keep_proven: false,
        }
    }
}

/// An engine with a cache of its own.
pub fn engine(
    keks: Vec<KekSpec>,
    cache: CacheSettings,
    terms: Terms,
    metrics: Arc<Metrics>,
) -> Arc<Engine> {
    let (count, slots) = Cache::layout(cache.capacity);
    let (shelves, _) = shelves(count, slots, true).unwrap();
    let cache = Cache::new(cache, shelves, clock::now()).unwrap();
    let engine = Arc::new(Engine::new(keks, terms, Arc::new(cache), Kept::nothing(), metrics));
    engine.be_watched();
    engine
}

impl Sidecar {
    pub async fn start() -> Self {
        Self::start_of(Parts::default(), |_| {}).await
    }

    pub async fn start_with(change: impl FnOnce(&mut Settings), keks: &[&str]) -> Self {
        let keks = keks.iter().map(|name| (*name).to_owned()).collect();
        Self::start_of(Parts { keks, ..Parts::default() }, change).await
    }

    pub async fn start_of(parts: Parts, change: impl FnOnce(&mut Settings)) -> Self {
        let Parts { fake, keks, cache, terms, connection_age, keep_proven } = parts;
        let dir = TempDir::new().unwrap();
        let pki = Pki::new(&dir.path().join("pki"));
        let mut settings = Settings {
            socket: Some(SocketSettings {
                path: dir.path().join("k.sock"),
                mode: 0o600,
                owner: None,
                group: None,
            }),
            tcp: Some(TcpSettings { listen: "127.0.0.1:0".parse().unwrap(), tls: pki.server() }),
            admin: Some("127.0.0.1:0".parse().unwrap()),
            key_events: true,
            connections: 2000,
            sessions: 1024,
            connection_age,
            session_age: HOUR,
            drain: Duration::from_secs(10),
        };
        change(&mut settings);
        let metrics = Arc::new(Metrics::new(keks.iter().map(String::as_str), [fake.name()]));
        let backend = Metered::over(Arc::clone(&fake) as _, &metrics);
        let specs = keks.iter().map(|name| spec(name, &backend)).collect();
        let engine = engine(specs, cache, terms, Arc::clone(&metrics));
        for name in engine.names() {
            engine.verify(name, clock::now() + Duration::from_secs(5)).await.unwrap();
        }
        let mut background = JoinSet::new();
        if keep_proven {
            background.spawn(keyward::engine::keep_proven(Arc::clone(&engine)));
        }
        let keys = Locker::new(settings.sessions, true).unwrap();
        let sessions = Sessions::new(keys, settings.session_age, Arc::clone(engine.sessions()));
        let policy = Arc::new(ArcSwap::from_pointee(policy()));
        let (ready, seen) = watch::channel(false);
        let (shutdown, stop) = oneshot::channel::<()>();
        let (listening, heard) = oneshot::channel();
        let served = tokio::spawn({
            let settings = settings.clone();
            let (engine, policy, metrics) = (engine.clone(), policy.clone(), metrics.clone());
            let sessions = Arc::clone(&sessions);
            let what = Served { engine, sessions, policy, metrics, ready: seen };
            async move {
                let stop = async { drop(stop.await) };
                let tell = |at: &server::Listening| drop(listening.send(at.clone()));
                server::serve(&settings, what, stop, tell).await
            }
        });
        let listening = heard.await.expect("the server starts");
        let or_nowhere = |at: Option<_>| at.unwrap_or_else(|| "127.0.0.1:1".parse().unwrap());
        let (tcp, admin) = (or_nowhere(listening.tcp), or_nowhere(listening.admin));
        Self {
            dir,
            settings,
            tcp,
            admin,
            pki,
            fake,
            engine,
            sessions,
            policy,
            metrics,
            ready,
            shutdown: Some(shutdown),
            _background: background,
            served,
        }
    }

    /// What this sidecar serves, for another server.
    pub fn served(&self) -> Served {
        Served {
            engine: Arc::clone(&self.engine),
            sessions: Arc::clone(&self.sessions),
            policy: Arc::clone(&self.policy),
            metrics: Arc::clone(&self.metrics),
            ready: self.ready.subscribe(),
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.settings.socket.as_ref().unwrap().path.clone()
    }

    /// Our client, over the Unix socket.
    pub fn client(&self) -> Client {
        Client::new(&Endpoint::unix(self.socket())).unwrap().failing_fast()
    }

    /// The same, with DEKs in the clear.
    pub fn plain_client(&self) -> Client {
        self.client().with_delivery(Delivery::Plain)
    }

    /// Our client, over TCP with these files.
    pub fn tls_client(&self, files: TlsFiles) -> Client {
        let uri = format!("https://{}", self.tcp);
        Client::new(&Endpoint::tls(uri, files, Some("localhost".into()))).unwrap().failing_fast()
    }

    /// The generated client over TCP with mutual TLS.
    pub fn tls_raw(&self, files: &TlsFiles) -> KeyWrapClient<Channel> {
        KeyWrapClient::new(channel::tls(self.tcp, files))
    }

    /// A bare channel over the Unix socket, for what our client would not send.
    pub fn channel(&self) -> Channel {
        self.channel_of(channel::endpoint())
    }

    /// A bare channel with settings of its own.
    pub fn channel_of(&self, endpoint: transport::Endpoint) -> Channel {
        channel::unix(&endpoint, self.socket())
    }

    /// The generated client over a bare channel.
    pub fn raw(&self) -> KeyWrapClient<Channel> {
        KeyWrapClient::new(self.channel())
    }

    /// Starts the drain.
    pub fn stop(&mut self) {
        let _already_stopped = self.shutdown.take().map(|shutdown| shutdown.send(()));
    }

    /// Waits for the server's end.
    pub async fn ended(mut self) -> TempDir {
        self.stop();
        self.served.await.unwrap().unwrap();
        self.dir
    }
}

pub fn dek() -> Secret {
    Secret::new((0..32).collect())
}

/// Different DEKs, wrapped: each takes an unwrap of its own.
pub async fn wrapped_deks(client: &Client, n: usize) -> Vec<WrappedDek> {
    let mut wrapped = Vec::new();
    for i in 0..n as u64 {
        let dek = Secret::new([i.to_be_bytes(), [7; 8], [8; 8], [9; 8]].concat());
        wrapped.push(client.wrap("orders", &dek, b"").await.unwrap());
    }
    wrapped
}

/// Waits, for at most five seconds, until `done`.
pub async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..500 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within five seconds: {what}");
}
