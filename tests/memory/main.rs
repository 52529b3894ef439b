//! What a sidecar leaves in its memory of the DEKs that went through it: after their
//! connections closed, after their time, and after a purge, nothing that root can read. Nor
//! of the tokens that it asks a vault with, once they are replaced. And what a client has of
//! DEKs that were delivered sealed: nothing outside its locked memory.
//!
//! A real sidecar on a real token; a scanner in a process of its own, run by root, looks
//! for each DEK and for each half of it through all memory and through a core dump, which
//! also has the registers of all threads. It does not see what the kernel keeps, nor shorter pieces than half a DEK.

#[path = "../support/channel.rs"]
#[allow(dead_code)]
mod channel;
#[path = "../support/example.rs"]
mod example;
#[path = "../e2e/home.rs"]
#[allow(dead_code, unused_imports, unused_macros)]
mod home;
#[path = "../support/pki.rs"]
#[allow(dead_code)]
mod pki;
#[path = "../e2e/served.rs"]
#[allow(dead_code)]
mod served;
#[path = "../support/token.rs"]
#[allow(dead_code)]
mod token;

#[allow(dead_code)]
#[path = "../support/keyvault/mod.rs"]
mod keyvault;
#[path = "../support/azure.rs"]
mod vaults;

mod client;
mod scanner;
mod traffic;
mod vaulted;

use std::{
    env,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use keyward::{
    client::{Client, Delivery, Endpoint, TlsFiles},
    wire::{
        CacheOutcome, PurgeCacheRequest, PurgeCacheResponse, UnwrapRequest,
        admin_client::AdminClient, key_wrap_client::KeyWrapClient,
    },
};
use tokio::time::sleep;
use tonic::transport::Channel;

use pki::Pki;
use scanner::{Copies, Sought, assert_none, scan};
use served::{Served, own_uid};
use traffic::{Keks, ON_TOKEN, Traffic, WAYS, random};

const NODE: &str = "spiffe://example.org/node/1";
/// Connections that [`Traffic`] opens.
const CARRIERS: u64 = 2 * WAYS.len() as u64;

/// A sidecar on a Unix socket and on TCP with mutual TLS.
struct Sidecar {
    served: Served,
    admin: SocketAddr,
    tls: Endpoint,
}

impl Sidecar {
    /// `server` and `rest` go into the configuration.
    fn start(server: &str, rest: &str) -> Self {
        Self::start_with_files(server, rest).0
    }

    /// The same, and what another process needs to come by TCP.
    fn start_with_files(server: &str, rest: &str) -> (Self, TlsFiles, String) {
        let mut served = Served::prepare();
        let config = served.config_file().to_string_lossy().into_owned();
        let aes =
            ["key", "create", "--config", &config, "--type", "aes", "--size", "256", ON_TOKEN.aes];
        served.ok(&aes, b"");
        let pki = Pki::new(&served.dir().join("pki"));
        let keyward::server::TlsFiles { certificate, key, client_ca } = pki.server();
        let files: TlsFiles = pki.client("node", vec![pki::uri(NODE)]);
        let [tcp, admin] = free_addresses();
        served.configure(|config| {
            let server = format!(
                "[server]\nlisten = \"{tcp}\"\nadmin = \"{admin}\"\n\
                 tls = {{ certificate = {certificate:?}, key = {key:?}, client_ca = {client_ca:?} }}\n\
                 {server}\n"
            );
            let rest = format!(
                "[[kek]]\nname = \"{}\"\nbackend = \"hsm\"\nalgorithm = \"A256KWP\"\n\
                 [[policy]]\nwho = [{NODE:?}]\nmay = [\"wrap\", \"unwrap\", \"generate\"]\nkek = [\"*\"]\n\
                 [[policy]]\nwho = [\"uid:{}\"]\nmay = [\"purge\"]\nkek = [\"*\"]\n\
                 {rest}",
                ON_TOKEN.aes,
                own_uid()
            );
            // Leases outlast the time for which the scanner has the sidecar stand still.
            let config = config.replacen("[server]\n", &server, 1);
            config.replacen("interval = \"1s\"", "interval = \"60s\"", 1) + &rest
        });
        served.serve();
        let uri = format!("https://{tcp}");
        let tls = Endpoint::tls(&uri, files.clone(), Some("localhost".into()));
        (Self { served, admin, tls }, files, uri)
    }

    /// Sends DEKs every way in the clear, over connections that stay open.
    async fn traffic(&self, keks: Keks) -> Traffic {
        self.traffic_by(Delivery::Plain, keks).await
    }

    async fn traffic_by(&self, delivery: Delivery, keks: Keks) -> Traffic {
        let uds = || self.served.client().with_delivery(delivery);
        let tls = || Client::new(&self.tls).expect("a client").with_delivery(delivery);
        Traffic::run(&self.served, keks, &[("uds", &uds), ("tls", &tls)]).await
    }

    /// The sidecar lives on: a scan only looks.
    fn scan(&self, sought: &[Sought]) -> Vec<Copies> {
        let found = scan(self.served.pid(), sought, self.served.dir());
        let (ready, log) = (self.served.is_ready(), self.served.log());
        assert!(ready, "the sidecar does not answer after a scan; it said\n{log}");
        found
    }

    /// A bare channel over the Unix socket.
    fn channel(&self) -> Channel {
        channel::unix(&channel::endpoint(), self.served.socket())
    }

    /// A number that the sidecar tells of itself.
    fn metric(&self, name: &str) -> u64 {
        let admin = TcpStream::connect(self.admin);
        let mut admin =
            admin.unwrap_or_else(|e| panic!("{e}: the sidecar says\n{}", self.served.log()));
        admin.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("it reads");
        let mut text = String::new();
        admin.read_to_string(&mut text).expect("its answer");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}"))
            .trim_end_matches(".0")
            .parse()
            .expect("a number")
    }

    async fn until(&self, metric: &str, value: u64) {
        let until = Instant::now() + Duration::from_secs(10);
        while self.metric(metric) != value {
            assert!(Instant::now() < until, "{metric} is {}", self.metric(metric));
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn has_secret_memory(&self) -> bool {
        self.served.log().contains("memfd_secret")
    }
}

/// Free a moment ago.
fn free_addresses() -> [SocketAddr; 2] {
    let bound = [0, 0].map(|port| TcpListener::bind(("127.0.0.1", port)).expect("a port"));
    bound.map(|listener| listener.local_addr().expect("its address"))
}

#[test]
fn the_scanner_sees_a_planted_secret() {
    let dir = tempfile::tempdir().expect("a directory");
    let python = env::var_os("KEYWARD_TEST_PYTHON").expect("KEYWARD_TEST_PYTHON names a Python");
    // It has the whole of one secret and each half of another.
    let script = "import sys; held = sys.stdin.buffer.read(64); \
                  parts = [held[:32], held[32:48] + b'-', b'-' + held[48:]]; del held; \
                  print('ready', flush=True); sys.stdin.read()";
    let mut holder: Child = Command::new(python)
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Python starts");
    let [whole, halves, absent] = [random(), random(), random()];
    let mut stdin = holder.stdin.take().expect("a pipe");
    stdin.write_all(&[&whole[..], &halves[..]].concat()).expect("it reads");
    stdin.flush().expect("it reads");
    let mut ready = [0; 5];
    holder.stdout.as_mut().expect("a pipe").read_exact(&mut ready).expect("it is ready");
    let sought = [("whole", whole), ("halves", halves), ("absent", absent)]
        .map(|(name, bytes)| Sought { name: name.to_owned(), bytes });
    let found = scan(holder.id(), &sought, dir.path());
    drop(stdin);
    holder.wait().expect("it ends");
    for in_core in [false, true] {
        let seen = |secret: &str, kind: &str| {
            found.iter().any(|copies| {
                (copies.mapping == "core dump") == in_core
                    && copies.secret == secret
                    && copies.kind == kind
            })
        };
        assert!(seen("whole", "whole") && seen("halves", "first") && seen("halves", "second"));
        assert!(!["whole", "first", "second"].iter().any(|kind| seen("absent", kind)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_leaves_nothing_though_connections_and_streams_are_open() {
    let sidecar = Sidecar::start("", "");
    let mut traffic = sidecar.traffic(ON_TOKEN).await;
    assert_a_purge_leaves_nothing(&sidecar, &traffic).await;
    traffic.ask_again().await;
}

async fn assert_a_purge_leaves_nothing(sidecar: &Sidecar, traffic: &Traffic) {
    // What living connections hold shows that the scanner sees into this very sidecar.
    let found = sidecar.scan(&traffic.sought);
    for way in ["uds", "tls"].iter().flat_map(|name| WAYS.map(|way| format!("{name}-{way}"))) {
        for in_core in [false, true] {
            let seen = found.iter().any(|copies| {
                copies.secret.starts_with(&way) && (copies.mapping == "core dump") == in_core
            });
            assert!(seen, "no buffer of the connection {way} is seen (core dump: {in_core})");
        }
    }
    let mut admin = AdminClient::new(sidecar.channel());
    let request = PurgeCacheRequest { kek: String::new() };
    let purged = admin.purge_cache(request).await.expect("a purge").into_inner();
    let found = sidecar.scan(&traffic.sought);
    let deks = traffic.cached.len() as u64;
    assert_eq!(
        purged,
        PurgeCacheResponse { deks, connections: CARRIERS, left_open: 0, sessions: 0 }
    );
    assert_none("after a purge", &found);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cached_is_in_protected_memory_only() {
    let sidecar = Sidecar::start("", "");
    let mut traffic = sidecar.traffic(ON_TOKEN).await;
    sidecar.until("keyward_connections", CARRIERS).await;
    traffic.disconnect();
    sidecar.until("keyward_connections", 0).await;
    let found = sidecar.scan(&traffic.sought);
    assert_only_cached(&sidecar, &traffic, &found).await;
}

/// Connections that carried sealed DEKs are open, and so are streams: no buffer of theirs
/// holds one.
#[tokio::test(flavor = "multi_thread")]
async fn sealed_delivery_leaves_nothing_in_the_buffers_of_open_connections() {
    let sidecar = Sidecar::start("", "");
    let mut traffic = sidecar.traffic_by(Delivery::Sealed, ON_TOKEN).await;
    sidecar.until("keyward_connections", CARRIERS).await;
    let found = sidecar.scan(&traffic.sought);
    assert_only_cached(&sidecar, &traffic, &found).await;
    // Nothing is left of them after a purge, which ends sessions and no connection.
    sidecar.until("keyward_connections", CARRIERS).await;
    let mut admin = AdminClient::new(sidecar.channel());
    let request = PurgeCacheRequest { kek: String::new() };
    let purged = admin.purge_cache(request).await.expect("a purge").into_inner();
    assert_none("after a purge", &sidecar.scan(&traffic.sought));
    let deks = traffic.cached.len() as u64;
    let expected = PurgeCacheResponse { deks, connections: 0, left_open: 0, sessions: CARRIERS };
    assert_eq!(purged, expected);
    traffic.ask_again().await;
}

/// `found` is no more than what stands in the slab.
async fn assert_only_cached(sidecar: &Sidecar, traffic: &Traffic, found: &[Copies]) {
    // They were cached all the time.
    let mut client = KeyWrapClient::new(sidecar.channel());
    for wrapped in &traffic.cached {
        let request =
            UnwrapRequest { wrapped: Some(wrapped.clone()), context: Vec::new(), session: vec![] };
        let answer = client.unwrap(request).await.expect("a DEK").into_inner();
        assert_eq!(answer.cache(), CacheOutcome::Hit);
    }
    if sidecar.has_secret_memory() {
        return assert_none("while cached", found);
    }
    // Locked memory can be read by root: there, once each, and not in the core dump,
    // which leaves that region out.
    for copies in found {
        let cached = ["unwrap", "stream", "aes"].iter().any(|way| copies.secret.ends_with(way));
        assert!(cached && copies.kind == "whole" && copies.count == 1, "{copies}");
        assert_eq!(copies.range, found[0].range, "in one mapping: {copies}");
    }
    assert_eq!(found.len(), traffic.cached.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn time_leaves_nothing_though_clients_are_connected() {
    let sidecar = Sidecar::start(SHORT.0, SHORT.1);
    let mut traffic = sidecar.traffic(ON_TOKEN).await;
    assert_time_leaves_nothing(&sidecar, &traffic).await;
    traffic.ask_again().await;
}

/// Connections and DEKs that do not last.
const SHORT: (&str, &str) = ("connection_age = \"2s\"", "[cache]\nttl = \"2s\"\nidle = \"2s\"\n");

async fn assert_time_leaves_nothing(sidecar: &Sidecar, traffic: &Traffic) {
    const TTL: Duration = Duration::from_secs(2);
    const AGE: Duration = Duration::from_secs(2);
    sleep(TTL + AGE).await;
    let found = sidecar.scan(&traffic.sought);
    assert_none("after TTL and connection age", &found);
    // Memory that the scanner cannot read is empty too.
    sidecar.until("keyward_cache_entries", 0).await;
}
