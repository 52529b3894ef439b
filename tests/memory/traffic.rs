//! Every way by which a DEK goes through a sidecar, over both transports.

use std::time::Duration;

use futures_util::StreamExt;
use keyward::{
    client::{Algorithm, Answers, Client, Item, WrappedDek},
    secret::Secret,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    scanner::Sought,
    served::{KEK, Served, run_with_input},
};

/// The KEKs that DEKs go under: an RSA key for RSA-OAEP, and an AES key, whose every
/// operation is the backend's.
pub struct Keks {
    pub rsa: &'static str,
    pub aes: &'static str,
}

/// Those on the token.
pub const ON_TOKEN: Keks = Keks { rsa: KEK, aes: "vault" };
/// Ways that a DEK goes, each over a connection of its own.
pub const WAYS: [&str; 5] = ["wrap", "generate", "unwrap", "stream", "aes"];
const CALLERS: usize = 8;
const CALLS: usize = 8;
/// Streams are left open for as long as the scans of a busy machine take.
const STREAM_WITHIN: Duration = Duration::from_secs(170);

/// Connections that carried DEKs, and what those were.
pub struct Traffic {
    keks: Keks,
    pub sought: Vec<Sought>,
    /// What was unwrapped, hence is cached.
    pub cached: Vec<WrappedDek>,
    clients: Vec<Client>,
    streams: Vec<(mpsc::Sender<Item>, Answers<Secret>)>,
}

impl Traffic {
    /// Wraps, generates and unwraps over a connection of its own for each direction, by
    /// calls and by a stream, to each of `targets`, which are named for messages. Each
    /// direction has DEKs of its own. Every connection, and every stream, is left open.
    pub async fn run(served: &Served, keks: Keks, targets: &[(&str, &dyn Fn() -> Client)]) -> Self {
        let (sought, cached, clients, streams) = Default::default();
        let mut traffic = Self { keks, sought, cached, clients, streams };
        for (name, connect) in targets {
            let [wrap, generate, unwrap, stream, aes] = [(); 5].map(|()| connect());
            traffic.wrap(&format!("{name}-wrap"), &wrap).await;
            traffic.generate(&format!("{name}-generate"), traffic.keks.rsa, &generate).await;
            let wrapped = traffic.unknown(served, format!("{name}-unwrap"));
            unwrap_by_calls(&unwrap, &wrapped).await;
            let wrapped = traffic.unknown(served, format!("{name}-stream"));
            traffic.streams.push(unwrap_by_stream(&stream, &wrapped).await);
            traffic.wrap_and_unwrap_by_aes(&format!("{name}-aes"), &aes).await;
            traffic.generate(&format!("{name}-aes-generate"), traffic.keks.aes, &aes).await;
            traffic.clients.extend([wrap, generate, unwrap, stream, aes]);
        }
        traffic
    }

    /// Has every client and every stream ask for a DEK: none of them was told of an error
    /// when its connection was closed.
    pub async fn ask_again(&mut self) {
        for client in &self.clients {
            client.unwrap(&self.cached[0], b"").await.expect("it connects again");
        }
        for (items, answers) in &mut self.streams {
            let wrapped = self.cached[0].clone();
            let item = Item { id: 0, wrapped, context: Vec::new() };
            items.send(item).await.expect("somebody reads");
            let answer = answers.next().await.expect("an answer").expect("the stream goes on");
            answer.outcome.expect("a DEK");
        }
    }

    /// Closes every connection.
    pub fn disconnect(&mut self) {
        self.streams.clear();
        self.clients.clear();
    }

    async fn wrap(&mut self, name: &str, client: &Client) {
        let (dek, kek) = (random(), self.keks.rsa);
        together(|| {
            let (client, dek) = (client.clone(), Secret::copy_of(&dek));
            async move { drop(client.wrap(kek, &dek, b"").await.expect("a wrapped DEK")) }
        })
        .await;
        self.sought.push(Sought { name: name.to_owned(), bytes: dek });
    }

    /// Of what is generated, which is different each time, the last for each caller.
    async fn generate(&mut self, name: &str, kek: &'static str, client: &Client) {
        let generated = together(|| {
            let client = client.clone();
            async move { client.generate(kek, 32, b"").await.expect("a DEK").0 }
        });
        for (caller, dek) in generated.await.into_iter().enumerate() {
            let bytes = dek.expose().to_vec();
            self.sought.push(Sought { name: format!("{name}-{caller}"), bytes });
        }
    }

    async fn wrap_and_unwrap_by_aes(&mut self, name: &str, client: &Client) {
        let (dek, kek) = (random(), self.keks.aes);
        let wrapped = together(|| {
            let (client, dek) = (client.clone(), Secret::copy_of(&dek));
            async move { client.wrap(kek, &dek, b"").await.expect("a wrapped DEK") }
        });
        let wrapped = wrapped.await.remove(0);
        unwrap_by_calls(client, &wrapped).await;
        self.sought.push(Sought { name: name.to_owned(), bytes: dek });
        self.cached.push(wrapped);
    }

    /// A DEK that the sidecar has not seen, wrapped by another tool.
    fn unknown(&mut self, served: &Served, name: String) -> WrappedDek {
        let dek = random();
        let (version, ciphertext) = served.wrap_outside(self.keks.rsa, &dek);
        self.sought.push(Sought { name, bytes: dek });
        let wrapped = WrappedDek {
            kek: self.keks.rsa.into(),
            version,
            algorithm: Algorithm::RsaOaep.into(),
            ciphertext,
            kek_fingerprint: Vec::new(),
        };
        self.cached.push(wrapped.clone());
        wrapped
    }
}

async fn unwrap_by_calls(client: &Client, wrapped: &WrappedDek) {
    together(|| {
        let (client, wrapped) = (client.clone(), wrapped.clone());
        async move { drop(client.unwrap(&wrapped, b"").await.expect("a DEK")) }
    })
    .await;
}

async fn unwrap_by_stream(
    client: &Client,
    wrapped: &WrappedDek,
) -> (mpsc::Sender<Item>, Answers<Secret>) {
    let (send, items) = mpsc::channel(CALLERS * CALLS);
    for id in 0..(CALLERS * CALLS) as u64 {
        let item = Item { id, wrapped: wrapped.clone(), context: Vec::new() };
        send.send(item).await.expect("somebody reads");
    }
    let items = ReceiverStream::new(items);
    let mut answers = client.unwrap_stream(items, STREAM_WITHIN).await.expect("a stream");
    for _ in 0..CALLERS * CALLS {
        let answer = answers.next().await.expect("an answer").expect("the stream goes on");
        answer.outcome.expect("a DEK");
    }
    (send, answers)
}

/// Has each of the callers make its calls, all callers at once. Returns each one's last
/// answer.
async fn together<T, F>(call: impl Fn() -> F) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let calls: Vec<F> = (0..CALLS).map(|_| call()).collect();
        callers.spawn(async move {
            let mut last = None;
            for call in calls {
                last = Some(call.await);
            }
            last.expect("there are calls")
        });
    }
    callers.join_all().await
}

/// 32 bytes. Not sequences: those may stand in memory anyway.
pub fn random() -> Vec<u8> {
    let mut bytes = vec![0; 32];
    aws_lc_rs::rand::fill(&mut bytes).expect("random bytes");
    bytes
}

impl Served {
    /// `dek` wrapped under the current version of a KEK, as another tool does it, and that
    /// version.
    pub fn wrap_outside(&self, kek: &str, dek: &[u8]) -> (String, Vec<u8>) {
        let pem = self.dir().join("kek.pem").to_string_lossy().into_owned();
        self.ok(&["kek", "show", kek, "--public-key-out", &pem], b"");
        let shown = self.ok(&["kek", "show", kek, "--json"], b"");
        let shown: serde_json::Value = serde_json::from_slice(&shown).expect("JSON");
        let version = shown["current_version"].as_str().expect("a version").to_owned();
        let mut openssl = std::process::Command::new("openssl");
        openssl.args(["pkeyutl", "-encrypt", "-pubin", "-inkey", &pem]);
        openssl.args(["-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha1"]);
        let output = run_with_input(&mut openssl, dek);
        assert!(output.status.success(), "{output:?}");
        (version, output.stdout)
    }
}
