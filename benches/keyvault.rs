//! What Keyward adds to a vault: a cold unwrap through a sidecar against the same unwrap by
//! Azure's Rust SDK, called directly; and a hot one under a KEK in the vault against one
//! under a KEK on a token. Taken in turns in one run.
//!
//! The fake vault (this binary once more), the sidecar and the caller are processes of their
//! own. The SDK has the simplest transport that there is: a connection of hyper's, kept
//! open, whose buffers nobody wipes. The vault answers at once, and then 5 ms later, which is
//! still faster than Azure's, and 25 ms later, which is not. The bar is a ratio of at most
//! 1.05 at the median.

#[path = "../tests/e2e/home.rs"]
#[allow(dead_code, unused_macros, unused_imports)]
mod home;
#[allow(dead_code)]
#[path = "../tests/support/keyvault/mod.rs"]
mod keyvault;
#[path = "../tests/e2e/served.rs"]
#[allow(dead_code)]
mod served;
#[path = "../tests/support/token.rs"]
#[allow(dead_code)]
mod token;
#[path = "../tests/support/azure.rs"]
mod vaults;

use std::{
    collections::HashMap,
    env, fs,
    hint::black_box,
    io::{self, BufRead, BufReader, Write},
    net::Ipv4Addr,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use azure_core::{
    cloud::{CloudConfiguration, CustomConfiguration},
    credentials::Secret as SdkSecret,
    error::ErrorKind,
    http::{
        AsyncRawResponse, Body, ClientOptions, HttpClient, Request, StatusCode, Transport, Url,
        headers::{HeaderName, HeaderValue, Headers},
    },
};
use azure_identity::{ClientSecretCredential, ClientSecretCredentialOptions};
use azure_security_keyvault_keys::{
    KeyClient, KeyClientOptions,
    models::{EncryptionAlgorithm, KeyOperationParameters},
};
use http_body_util::{BodyExt, Full};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use keyward::{
    client::{Client, WrappedDek},
    secret::Secret,
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{net::TcpStream, sync::Mutex};
use tokio_rustls::TlsConnector;

use keyvault::{
    FakeVault, Settings,
    access::Role,
    faults::{Fault, On, Operation, Times},
};
use served::{KEK, Served};

/// Makes this binary the fake vault.
const FAKE: &str = "KEYWARD_BENCH_FAKE";
const SECRET: &str = "a secret";
const IN_VAULT: &str = "vaulted";
/// As many as the vault's ceiling has saved up: its 400 less what the proof took.
const COLD_ROUNDS: usize = 390;
const HOT_ROUNDS: usize = 20_000;

/// The fake, and what it tells of itself: where it is, and who may use it.
struct Fake {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    told: HashMap<String, String>,
}

impl Fake {
    fn start() -> Self {
        let mut process = Command::new(env::current_exe().expect("this binary"))
            .env(FAKE, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the fake starts");
        let input = process.stdin.take().expect("a pipe");
        let output = BufReader::new(process.stdout.take().expect("a pipe"));
        let mut fake = Self { process, input, output, told: HashMap::new() };
        loop {
            let line = fake.line();
            let Some((name, value)) = line.split_once('=') else { return fake };
            fake.told.insert(name.to_owned(), value.to_owned());
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the fake says something");
        line.trim_end().to_owned()
    }

    fn told(&self, name: &str) -> &str {
        &self.told[name]
    }

    /// Has unwraps take so many milliseconds longer; tells how many there were.
    fn order(&mut self, latency: u64) -> usize {
        writeln!(self.input, "{latency}").expect("the fake reads");
        self.line().parse().expect("a number")
    }

    fn section(&self, secret_file: &Path) -> String {
        format!(
            "[backend.vault]\ntype = \"key-vault\"\nvault = \"{}\"\nauthority = \"{}\"\n\
             ca = \"{}\"\nidentity = {{ kind = \"secret\", tenant_id = \"{}\", client_id = \"{}\", \
             secret_file = {secret_file:?} }}\n\
             [[kek]]\nname = \"{IN_VAULT}\"\nbackend = \"vault\"\nalgorithm = \"RSA-OAEP\"\n",
            self.told("url"),
            self.told("authority"),
            self.told("ca"),
            self.told("tenant"),
            self.told("client"),
        )
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _killed = self.process.kill();
        let _ended = self.process.wait();
    }
}

/// The fake's own process. It ends with its standard input.
fn be_fake() -> io::Result<()> {
    let fake = FakeVault::start(Settings { throttled: false, ..Settings::standard() });
    let app = fake.add_app(SECRET);
    fake.grant(&app, Role::CryptoOfficer);
    fake.create_rsa(IN_VAULT, 2048);
    let mut out = io::stdout().lock();
    for (name, value) in [
        ("url", fake.url()),
        ("authority", fake.authority()),
        ("ca", fake.ca().display().to_string()),
        ("tenant", fake.tenant().to_owned()),
        ("client", app.client_id),
    ] {
        writeln!(out, "{name}={value}")?;
    }
    writeln!(out, "ready")?;
    for line in io::stdin().lock().lines() {
        let millis = line?.parse().map_err(io::Error::other)?;
        fake.clear_faults();
        if millis > 0 {
            let late = Fault::Latency(Duration::from_millis(millis));
            fake.inject(On::Operation(Operation::Unwrap), late, Times::Always);
        }
        writeln!(out, "{}", fake.count(Operation::Unwrap))?;
    }
    Ok(())
}

/// hyper, one connection for each host, and nothing else.
struct Plain {
    tls: TlsConnector,
    open: Mutex<HashMap<String, http1::SendRequest<Full<Bytes>>>>,
}

impl std::fmt::Debug for Plain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Plain")
    }
}

impl Plain {
    fn new(ca: &str) -> Self {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(ca).expect("a file") {
            roots.add(certificate.expect("a certificate")).expect("an authority");
        }
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("TLS")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self { tls: TlsConnector::from(Arc::new(config)), open: Mutex::default() }
    }

    async fn connect(&self, url: &Url) -> http1::SendRequest<Full<Bytes>> {
        let port = url.port_or_known_default().expect("a port");
        let tcp = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.expect("a connection");
        tcp.set_nodelay(true).expect("an option");
        let name = url.host_str().expect("a host").to_owned();
        let name = ServerName::try_from(name).expect("a name");
        let stream = self.tls.connect(name, tcp).await.expect("TLS");
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.expect("a connection");
        tokio::spawn(connection);
        sender
    }
}

#[async_trait]
impl HttpClient for Plain {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        let url = request.url();
        let mut open = self.open.lock().await;
        let authority = url.authority().to_owned();
        let mut sender = match open.remove(&authority) {
            Some(sender) => sender,
            None => self.connect(url).await,
        };
        let Body::Bytes(body) = request.body() else { panic!("a stream") };
        let path = format!("{}?{}", url.path(), url.query().unwrap_or_default());
        let mut outgoing = http::Request::builder().method(request.method().as_str()).uri(path);
        for (name, value) in request.headers().iter() {
            outgoing = outgoing.header(name.as_str(), value.as_str());
        }
        let outgoing = outgoing.header(http::header::HOST, &authority);
        let outgoing = outgoing.body(Full::new(body.clone())).expect("a request");
        let failed = |error| azure_core::Error::new(ErrorKind::Io, error);
        let (head, body) = sender.send_request(outgoing).await.map_err(failed)?.into_parts();
        let body = body.collect().await.map_err(failed)?.to_bytes();
        open.insert(authority, sender);
        let mut headers = Headers::new();
        for (name, value) in &head.headers {
            let value = value.to_str().expect("text").to_owned();
            headers.insert(HeaderName::from(name.as_str().to_owned()), HeaderValue::from(value));
        }
        let status = StatusCode::from(head.status.as_u16());
        Ok(AsyncRawResponse::from_bytes(status, headers, body))
    }
}

/// Azure's SDK, as one would use it without Keyward.
fn sdk(fake: &Fake) -> KeyClient {
    let transport = Transport::new(Arc::new(Plain::new(fake.told("ca"))));
    let options = ClientOptions { transport: Some(transport), ..ClientOptions::default() };
    let mut cloud = CustomConfiguration::default();
    cloud.authority_host = fake.told("authority").to_owned();
    let of_credential = ClientSecretCredentialOptions {
        client_options: ClientOptions {
            cloud: Some(Arc::new(CloudConfiguration::from(cloud))),
            ..options.clone()
        },
    };
    let credential = ClientSecretCredential::new(
        fake.told("tenant"),
        fake.told("client").to_owned(),
        SdkSecret::from(SECRET),
        Some(of_credential),
    );
    let options = KeyClientOptions { client_options: options, ..KeyClientOptions::default() };
    KeyClient::new(fake.told("url"), credential.expect("a credential"), Some(options))
        .expect("a client")
}

async fn unwrap_directly(sdk: &KeyClient, wrapped: &WrappedDek) -> Vec<u8> {
    let parameters = KeyOperationParameters {
        algorithm: Some(EncryptionAlgorithm::RsaOaep),
        value: Some(wrapped.ciphertext.clone()),
        ..KeyOperationParameters::default()
    };
    let parameters = parameters.try_into().expect("parameters");
    let answer = sdk.unwrap_key(IN_VAULT, &wrapped.version, parameters, None).await;
    let answer = answer.expect("an answer").into_model().expect("an answer");
    answer.result.expect("a DEK")
}

async fn timed<T>(work: impl Future<Output = T>, times: &mut Vec<Duration>) -> T {
    let began = Instant::now();
    let outcome = black_box(work.await);
    times.push(began.elapsed());
    outcome
}

fn tell(what: &str, floor: (&str, Vec<Duration>), ours: (&str, Vec<Duration>)) {
    let median = |mut times: Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64() * 1e6
    };
    let (floor_name, ours_name) = (floor.0, ours.0);
    let (floor, ours) = (median(floor.1), median(ours.1));
    let ratio = ours / floor;
    println!("{what}: {floor_name} {floor:.0} us, {ours_name} {ours:.0} us, ratio {ratio:.3}");
}

/// Each DEK once by the SDK and once through the sidecar, which has not seen it.
async fn cold(fake: &mut Fake, latency: u64, sdk: &KeyClient, client: &Client) {
    let dek = Secret::new(vec![7; 32]);
    let mut wrapped = Vec::new();
    for _ in 0..COLD_ROUNDS {
        wrapped.push(client.wrap(IN_VAULT, &dek, b"").await.expect("a wrapped DEK"));
    }
    let before = fake.order(latency);
    let (mut floor, mut ours) = (Vec::new(), Vec::new());
    for wrapped in &wrapped {
        let direct = timed(unwrap_directly(sdk, wrapped), &mut floor).await;
        let through = timed(client.unwrap(wrapped, b""), &mut ours).await.expect("a DEK");
        assert!(through.ct_eq(&direct) && dek.ct_eq(&direct), "another DEK");
    }
    let asked = fake.order(0) - before;
    assert!(asked >= 2 * COLD_ROUNDS, "the vault was asked {asked} times: that was not cold");
    let what = format!("cold unwrap, the vault {latency} ms late");
    tell(&what, ("SDK", floor), ("Keyward", ours));
}

/// One DEK from memory, under a KEK in the vault and under one on a token.
async fn hot(client: &Client) {
    let dek = Secret::new(vec![7; 32]);
    let [on_token, in_vault] = [KEK, IN_VAULT].map(|kek| client.wrap(kek, &dek, b""));
    let (on_token, in_vault) =
        (on_token.await.expect("a wrapped DEK"), in_vault.await.expect("a wrapped DEK"));
    let (mut floor, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..HOT_ROUNDS {
        timed(client.unwrap(&on_token, b""), &mut floor).await.expect("a DEK");
        timed(client.unwrap(&in_vault, b""), &mut ours).await.expect("a DEK");
    }
    tell("hot unwrap", ("PKCS#11", floor), ("key vault", ours));
}

fn main() {
    if env::var_os(FAKE).is_some() {
        return be_fake().expect("the bench reads and writes");
    }
    let mut fake = Fake::start();
    let mut served = Served::prepare();
    let secret = served.file("secret", SECRET.as_bytes());
    let mode = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o600);
    fs::set_permissions(&secret, mode).expect("its mode");
    served.configure(|config| {
        config.replacen("interval = \"1s\"", "interval = \"60s\"", 1) + &fake.section(&secret)
    });
    served.serve();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let (sdk, client) = (sdk(&fake), served.client());
        // A sidecar goes gently on a vault until it has been let go on for some seconds.
        tokio::time::sleep(Duration::from_secs(8)).await;
        for latency in [0, 5, 25] {
            cold(&mut fake, latency, &sdk, &client).await;
        }
        hot(&client).await;
    });
}
