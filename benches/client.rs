//! What a caller waits for with our client, against a tonic channel that calls a bare tonic
//! echo: one caller's p50, and what 64 callers get done, over a Unix socket and over mutual
//! TLS, plain and sealed. Taken in turns in one run.
//!
//! The sidecar (on SoftHSM), the echo (this binary once more) and the callers are processes of
//! their own. Callers have one thread: with a second one, the two cores of a small machine
//! would measure its scheduler. Where they run is said, for otherwise it is drawn by lot which of
//! the servers shares the caller's core: everybody on one core, which is what the software costs
//! and repeats well; or the servers on another core than the callers, where waking it is most of
//! what one caller waits for.

#[path = "../tests/support/channel.rs"]
mod channel;
#[path = "../tests/e2e/home.rs"]
#[allow(dead_code, unused_macros, unused_imports)]
mod home;
#[allow(dead_code)]
#[path = "../tests/support/keyvault/mod.rs"]
mod keyvault;
#[path = "../tests/support/pki.rs"]
#[allow(dead_code)]
mod pki;
#[path = "../tests/e2e/served.rs"]
#[allow(dead_code)]
mod served;
#[path = "../tests/support/token.rs"]
#[allow(dead_code)]
mod token;
#[path = "../tests/support/azure.rs"]
mod vaults;

use std::{
    env,
    hint::black_box,
    io,
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use keyward::{
    client::{Client, Delivery, Endpoint, TlsFiles, WrappedDek},
    load::Answering,
    secret::Secret,
    wire::{UnwrapRequest, key_wrap_client::KeyWrapClient, key_wrap_server::KeyWrapServer},
};
use rustix::{
    process::Pid,
    thread::{CpuSet, sched_setaffinity},
};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::{net::TcpStream, runtime::Builder, task::LocalSet};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::{Channel, Server};

use pki::Pki;
use served::{KEK, Served, own_uid};

/// Makes this binary the echo.
const ECHO: &str = "KEYWARD_BENCH_ECHO";
const NODE: &str = "spiffe://example.org/node/1";
const CONTEXT: &[u8] = b"tenant 7, volume 3, file 1000000";

/// One caller: calls of each contender in a turn, and turns.
const CALLS: usize = 200;
const TURNS: usize = 80;
/// 64 callers: how long each turn takes, and turns.
const CALLERS: usize = 64;
const TURN: Duration = Duration::from_millis(700);
const CROWDED_TURNS: usize = 7;

/// The echo, as a process that ends with this one.
struct EchoProcess {
    process: Child,
    socket: PathBuf,
    tcp: SocketAddr,
}

impl EchoProcess {
    fn start(dir: &Path) -> Self {
        let socket = dir.join("echo.sock");
        let tcp = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
        let tcp = tcp.expect("a port");
        let process = Command::new(env::current_exe().expect("this binary"))
            .env(ECHO, format!("{}\n{tcp}\n{}", socket.display(), dir.join("pki").display()))
            .stdin(Stdio::null())
            .spawn()
            .expect("the echo starts");
        let until = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(tcp).is_err() || !socket.exists() {
            assert!(Instant::now() < until, "the echo does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { process, socket, tcp }
    }
}

impl Drop for EchoProcess {
    fn drop(&mut self) {
        let _killed = self.process.kill();
        let _ended = self.process.wait();
    }
}

/// The echo's own process: one thread, as the sidecar has.
fn be_echo(told: &str) {
    let [socket, tcp, pki] = told.split('\n').collect::<Vec<_>>()[..] else { panic!("{told}") };
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let socket = UnixListener::bind(socket).expect("a socket");
    let tcp = TcpListener::bind(tcp).expect("a port");
    for listener in [socket.set_nonblocking(true), tcp.set_nonblocking(true)] {
        listener.expect("a mode");
    }
    let tls = TlsAcceptor::from(Arc::new(server_config(Path::new(pki))));
    runtime.block_on(async {
        let unix = UnixListenerStream::new(socket.try_into().expect("a listener"));
        let tcp = TcpListenerStream::new(tcp.try_into().expect("a listener"));
        let tcp = tcp.filter_map(move |stream| {
            let tls = tls.clone();
            async move {
                let stream: TcpStream = stream.ok()?;
                stream.set_nodelay(true).ok()?;
                Some(Ok::<_, io::Error>(tls.accept(stream).await.ok()?))
            }
        });
        let serve = || Server::builder();
        let (unix, tcp) = tokio::join!(
            serve().serve_with_incoming(KeyWrapServer::new(Answering), unix),
            serve().serve_with_incoming(KeyWrapServer::new(Answering), tcp.boxed()),
        );
        unix.and(tcp).expect("it serves");
    });
}

fn server_config(pki: &Path) -> ServerConfig {
    let certificate = |name: &str| CertificateDer::from_pem_file(pki.join(name)).expect("one");
    let key = PrivateKeyDer::from_pem_file(pki.join("server.key")).expect("a key");
    let provider = Arc::new(default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(certificate("ca.pem")).expect("an authority");
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_client_cert_verifier(verifier.build().expect("a verifier"))
        .with_single_cert(vec![certificate("server.pem")], key)
        .expect("a certificate");
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Who is measured.
enum Contender {
    Tonic(KeyWrapClient<Channel>, UnwrapRequest),
    Ours(Client, WrappedDek),
}

impl Contender {
    async fn call(&self) {
        match self {
            Self::Tonic(client, request) => {
                black_box(client.clone().unwrap(request.clone()).await.expect("a DEK"));
            }
            Self::Ours(client, wrapped) => {
                black_box(client.unwrap(wrapped, CONTEXT).await.expect("a DEK"));
            }
        }
    }
}

/// The contenders of one transport, of whom the first is the floor.
struct Field {
    transport: &'static str,
    contenders: Vec<(&'static str, Rc<Contender>)>,
}

impl Field {
    fn new(
        transport: &'static str,
        channel: Channel,
        client: &dyn Fn() -> Client,
        wrapped: &WrappedDek,
    ) -> Self {
        let request = UnwrapRequest {
            wrapped: Some(wrapped.clone()),
            context: CONTEXT.to_vec(),
            session: Vec::new(),
        };
        let ours = |client| Contender::Ours(client, wrapped.clone());
        let plain = || client().with_delivery(Delivery::Plain);
        let contenders = [
            ("tonic channel, bare echo", Contender::Tonic(KeyWrapClient::new(channel), request)),
            ("plain", ours(plain())),
            ("sealed", ours(client())),
            ("plain, calls apart", ours(plain().with_calls_apart())),
            ("sealed, calls apart", ours(client().with_calls_apart())),
        ];
        let contenders = contenders.map(|(name, contender)| (name, Rc::new(contender))).into();
        Self { transport, contenders }
    }

    /// The median of one caller's calls, with each contender.
    async fn alone(&self, where_they_run: &str) {
        let mut times = vec![Vec::with_capacity(CALLS * TURNS); self.contenders.len()];
        // The first turn warms up.
        for turn in 0..=TURNS {
            for ((_, contender), times) in self.contenders.iter().zip(&mut times) {
                for _ in 0..CALLS {
                    let start = Instant::now();
                    contender.call().await;
                    if turn > 0 {
                        times.push(start.elapsed());
                    }
                }
            }
        }
        let p50: Vec<f64> = times
            .iter_mut()
            .map(|times| {
                times.sort_unstable();
                times[times.len() / 2].as_secs_f64()
            })
            .collect();
        println!("{}, one caller, {where_they_run}, p50, and to the floor:", self.transport);
        for ((name, _), p50_of_it) in self.contenders.iter().zip(&p50) {
            println!("  {name:26} {:8.1} us {:6.2}", p50_of_it * 1e6, p50_of_it / p50[0]);
        }
    }

    /// What many callers get done, with each contender: medians of turns.
    async fn crowded(&self) {
        let mut rates = vec![Vec::new(); self.contenders.len()];
        for _ in 0..CROWDED_TURNS {
            for ((_, contender), rates) in self.contenders.iter().zip(&mut rates) {
                rates.push(rate(contender).await);
            }
        }
        let median: Vec<f64> = rates
            .iter_mut()
            .map(|rates| {
                rates.sort_by(f64::total_cmp);
                rates[rates.len() / 2]
            })
            .collect();
        println!("{}, {CALLERS} callers, calls a second, and to the floor:", self.transport);
        for ((name, _), rate) in self.contenders.iter().zip(&median) {
            println!("  {name:26} {rate:8.0}    {:6.2}", rate / median[0]);
        }
    }
}

async fn rate(contender: &Rc<Contender>) -> f64 {
    let start = Instant::now();
    let callers = (0..CALLERS).map(|_| {
        let contender = Rc::clone(contender);
        tokio::task::spawn_local(async move {
            let mut calls = 0_u32;
            while start.elapsed() < TURN {
                contender.call().await;
                calls += 1;
            }
            calls
        })
    });
    let callers: Vec<_> = callers.collect();
    let calls = stream::iter(callers).then(|caller| async { caller.await.expect("it ran") });
    let calls: u32 = calls.fold(0, |sum, calls| async move { sum + calls }).await;
    f64::from(calls) / start.elapsed().as_secs_f64()
}

/// Has processes run on one core.
fn pin(processes: &[u32], core: usize) {
    let mut cores = CpuSet::new();
    cores.set(core);
    for process in processes {
        for thread in std::fs::read_dir(format!("/proc/{process}/task")).expect("its threads") {
            let name = thread.expect("a thread").file_name();
            let thread = name.to_str().and_then(|id| id.parse().ok()).and_then(Pid::from_raw);
            // A thread may just have ended.
            let _gone = sched_setaffinity(thread, &cores);
        }
    }
}

fn main() {
    if let Ok(told) = env::var(ECHO) {
        return be_echo(&told);
    }
    let mut served = Served::prepare();
    let pki = Pki::new(&served.dir().join("pki"));
    let keyward::server::TlsFiles { certificate, key, client_ca } = pki.server();
    let files: TlsFiles = pki.client("node", vec![pki::uri(NODE)]);
    let tcp = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port");
    served.configure(|config| {
        let server = format!(
            "[server]\nlisten = \"{tcp}\"\n\
             tls = {{ certificate = {certificate:?}, key = {key:?}, client_ca = {client_ca:?} }}\n"
        );
        let rest = format!(
            "[[policy]]\nwho = [{NODE:?}, \"uid:{}\"]\nmay = [\"unwrap\"]\nkek = [\"*\"]\n",
            own_uid()
        );
        let config = config.replacen("[server]\n", &server, 1);
        config.replacen("interval = \"1s\"", "interval = \"30s\"", 1) + &rest
    });
    served.serve();
    let echo = EchoProcess::start(served.dir());
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let dek = Secret::new((0..32).collect());
        let wrapped = served.client().wrap(KEK, &dek, CONTEXT).await.expect("a wrapped DEK");
        let unix = || served.client();
        let unix = Field::new(
            "Unix socket",
            channel::unix(&channel::endpoint(), echo.socket.clone()),
            &unix,
            &wrapped,
        );
        let uri = format!("https://{tcp}");
        let tls = || {
            let endpoint = Endpoint::tls(uri.clone(), files.clone(), Some("localhost".into()));
            Client::new(&endpoint).expect("a client")
        };
        let tls = Field::new("mutual TLS", channel::tls(echo.tcp, &files), &tls, &wrapped);
        let servers = [served.pid(), echo.process.id()];
        pin(&[std::process::id()], 0);
        for (core, where_they_run) in [(0, "all on one core"), (1, "servers on another core")] {
            pin(&servers, core);
            for field in [&unix, &tls] {
                field.alone(where_they_run).await;
            }
        }
        for field in [&unix, &tls] {
            field.crowded().await;
        }
    });
}
