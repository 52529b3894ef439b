//! A process that is nothing but a client, for `client.rs` to look into.
//!
//! ```text
//! client-process KEK SOCKET URI CA CERTIFICATE KEY [--plain]
//! ```
//!
//! Over a Unix socket and over TCP it has DEKs wrapped, generated and unwrapped, by calls, by
//! shared streams and by a stream of its own, all into locked memory. It prints the name of each
//! way and the wrapped DEK in hexadecimal, and `held`. Standard input: `drop` has it drop the
//! DEKs, while connections, sessions and streams stay open; it then prints `dropped`.

use std::{
    env,
    io::{self, BufRead},
    time::Duration,
};

use futures_util::StreamExt;
use keyward::client::{
    Answers, Client, Delivery, Endpoint, Item, Locker, Secret, TlsFiles, WrappedDek,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const CONTEXT: &[u8] = b"held by a client";
const LEN: usize = 32;
const CALLS: usize = 16;
const STREAM_WITHIN: Duration = Duration::from_secs(170);

/// What stays open.
type Open = (mpsc::Sender<Item>, Answers<Secret>);

struct Holder {
    kek: String,
    locker: Locker,
    held: Vec<Secret>,
    open: Vec<(Client, Option<Open>)>,
}

impl Holder {
    fn hold(&mut self, way: &str, wrapped: &WrappedDek, dek: Secret) {
        let hex: String = wrapped.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        println!("{way} {hex}");
        self.held.push(dek);
    }

    /// Every way over one transport, each over a connection of its own.
    async fn every_way(&mut self, name: &str, connect: &dyn Fn() -> Client) -> Result<(), Failure> {
        let kek = self.kek.clone();
        let wraps = connect();
        let mut dek = self.locker.take(LEN).ok_or("the locker is full")?;
        aws_lc_rs::rand::fill(dek.expose_mut()).map_err(|_| "no random bytes")?;
        let mut wrapped = WrappedDek::default();
        for _ in 0..CALLS {
            wrapped = wraps.wrap(&kek, &dek, CONTEXT).await?;
        }
        self.hold(&format!("{name}-wrap"), &wrapped, dek);

        let generates = connect();
        for call in 0..CALLS {
            let (dek, wrapped) = generates.generate(&kek, LEN, CONTEXT).await?;
            self.hold(&format!("{name}-generate-{call}"), &wrapped, dek);
        }
        self.open.extend([(wraps, None), (generates, None)]);

        // What is unwrapped here nobody here had in the clear before.
        for way in ["apart", "shared"] {
            let client = match way {
                "apart" => connect().with_calls_apart(),
                _ => connect(),
            };
            let wrapped = client.generate_wrapped(&kek, LEN, CONTEXT).await?;
            let calls = (0..CALLS).map(|_| client.unwrap(&wrapped, CONTEXT));
            let deks = futures_util::future::try_join_all(calls).await?;
            let dek = deks.into_iter().next().ok_or("no call")?;
            self.hold(&format!("{name}-{way}"), &wrapped, dek);
            self.open.push((client, None));
        }

        let client = connect();
        let wrapped = client.generate_wrapped(&kek, LEN, CONTEXT).await?;
        let (send, items) = mpsc::channel(CALLS);
        for id in 0..CALLS as u64 {
            let item = Item { id, wrapped: wrapped.clone(), context: CONTEXT.to_vec() };
            send.send(item).await?;
        }
        let mut answers = client.unwrap_stream(ReceiverStream::new(items), STREAM_WITHIN).await?;
        let mut dek = None;
        for _ in 0..CALLS {
            dek = Some(answers.next().await.ok_or("the stream ended")??.outcome?);
        }
        self.hold(&format!("{name}-stream"), &wrapped, dek.ok_or("no answer")?);
        self.open.push((client, Some((send, answers))));
        Ok(())
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [kek, socket, uri, ca, certificate, key, more @ ..] = &args[..] else {
        return Err("usage: client-process KEK SOCKET URI CA CERTIFICATE KEY [--plain]".into());
    };
    let delivery = match more {
        [] => Delivery::Sealed,
        [plain] if plain == "--plain" => Delivery::Plain,
        _ => return Err(format!("what is {more:?}?").into()),
    };
    // An unprivileged machine may refuse to lock memory; the test reads what is protected.
    let locker = Locker::new(256, true)?;
    let files = TlsFiles { ca: ca.into(), certificate: certificate.into(), key: key.into() };
    let endpoints = [
        ("uds", Endpoint::unix(socket)),
        ("tls", Endpoint::tls(uri, files, Some("localhost".to_owned()))),
    ];
    let mut holder =
        Holder { kek: kek.clone(), locker: locker.clone(), held: Vec::new(), open: Vec::new() };
    for (name, endpoint) in &endpoints {
        let connect = || {
            let client = Client::new(endpoint).expect("an endpoint");
            client.with_locker(locker.clone()).with_delivery(delivery)
        };
        holder.every_way(name, &connect).await?;
    }
    println!("held {:?}", locker.protection());
    let orders = tokio::task::spawn_blocking(|| io::stdin().lock().lines().next());
    if let Some(Ok(order)) = orders.await? {
        assert_eq!(order, "drop");
        holder.held.clear();
        println!("dropped");
        // Connections are open until somebody has looked.
        tokio::task::spawn_blocking(|| io::stdin().lock().lines().next()).await?;
    }
    Ok(())
}
