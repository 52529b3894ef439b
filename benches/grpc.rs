//! Unwraps from memory through the real server against a bare tonic echo of the same
//! sizes: same client, same kind of socket, same run. The difference is what our listeners,
//! policy, engine, cache and log cost. Both servers share this process, so that the
//! figures are comparable with each other; `keyward bench` measures across processes.

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    hint::black_box,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use criterion::{Criterion, criterion_group, criterion_main};
use keyward::{
    load::Answering,
    wire::{self, key_wrap_client::KeyWrapClient, key_wrap_server::KeyWrapServer},
};
use support::{
    channel,
    sidecar::{Sidecar, dek},
};
use tempfile::TempDir;
use tokio::{
    net::UnixListener,
    runtime::{Builder, Runtime},
    sync::mpsc,
    task::JoinSet,
};
use tokio_stream::wrappers::{UnboundedReceiverStream, UnixListenerStream};
use tonic::transport::{Channel, Server};

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

fn echo(dir: &TempDir) -> KeyWrapClient<Channel> {
    let path = dir.path().join("echo.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let incoming = UnixListenerStream::new(listener);
    // Without a router, as fast as tonic goes.
    tokio::spawn(async {
        Server::builder().serve_with_incoming(KeyWrapServer::new(Answering), incoming).await
    });
    KeyWrapClient::new(channel::unix(&channel::endpoint(), path))
}

async fn unwrap(client: &KeyWrapClient<Channel>, request: &wire::UnwrapRequest) {
    let answer = client.clone().unwrap(request.clone()).await.expect("a DEK");
    black_box(answer);
}

/// Calls that `callers` make at once, one after another, until there were `total`.
async fn many(
    client: &KeyWrapClient<Channel>,
    request: &wire::UnwrapRequest,
    callers: usize,
    total: u64,
) -> Duration {
    let left = Arc::new(AtomicU64::new(total));
    let start = Instant::now();
    let mut calling = JoinSet::new();
    for _ in 0..callers {
        let (client, request, left) = (client.clone(), request.clone(), Arc::clone(&left));
        let took_one = move || {
            left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
        };
        calling.spawn(async move {
            while took_one().is_ok() {
                unwrap(&client, &request).await;
            }
        });
    }
    while calling.join_next().await.is_some() {}
    start.elapsed()
}

/// `total` items over one stream, with 64 outstanding.
async fn stream(
    client: &KeyWrapClient<Channel>,
    request: &wire::UnwrapRequest,
    total: u64,
) -> Duration {
    const OUTSTANDING: u64 = 64;
    let item = {
        let wire::UnwrapRequest { wrapped, context, session } = request.clone();
        move |id| wire::UnwrapStreamRequest {
            id,
            wrapped: wrapped.clone(),
            context: context.clone(),
            session: session.clone(),
            ..Default::default()
        }
    };
    let (send, items) = mpsc::unbounded_channel();
    let start = Instant::now();
    let mut sent = 0;
    while sent < total.min(OUTSTANDING) {
        send.send(item(sent)).expect("it is read");
        sent += 1;
    }
    let items = UnboundedReceiverStream::new(items);
    let mut answers = client.clone().unwrap_stream(items).await.expect("a stream").into_inner();
    for _ in 0..total {
        black_box(answers.message().await.expect("an answer"));
        if sent < total {
            send.send(item(sent)).expect("it is read");
            sent += 1;
        }
    }
    start.elapsed()
}

/// Median time of one call in turn over both, so that a noisy neighbour hits both alike.
async fn medians(
    clients: [&KeyWrapClient<Channel>; 2],
    request: &wire::UnwrapRequest,
) -> [Duration; 2] {
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..20_000 {
        for (client, times) in clients.iter().zip(&mut times) {
            let start = Instant::now();
            unwrap(client, request).await;
            times.push(start.elapsed());
        }
    }
    times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2]
    })
}

fn bench(criterion: &mut Criterion) {
    let runtime = runtime();
    let dir = TempDir::new().expect("a directory");
    let (sidecar, ours, echo, request) = runtime.block_on(async {
        let sidecar = Sidecar::start().await;
        let client = sidecar.client();
        let wrapped = client.wrap("orders", &dek(), b"").await.expect("a wrapped DEK");
        let request =
            wire::UnwrapRequest { wrapped: Some(wrapped), context: vec![], session: vec![] };
        let raw = sidecar.raw();
        (sidecar, raw, echo(&dir), request)
    });
    let mut group = criterion.benchmark_group("unary unwrap over a Unix socket");
    group.bench_function("bare tonic echo", |bencher| {
        bencher.to_async(&runtime).iter(|| unwrap(&echo, &request));
    });
    group.bench_function("keyward", |bencher| {
        bencher.to_async(&runtime).iter(|| unwrap(&ours, &request));
    });
    group.finish();
    for (name, client) in [("bare tonic echo", &echo), ("keyward", &ours)] {
        let mut group = criterion.benchmark_group("unwraps over a Unix socket, each");
        group.bench_function(format!("{name}, unary, 64 callers"), |bencher| {
            bencher.to_async(&runtime).iter_custom(|n| many(client, &request, 64, n));
        });
        group.bench_function(format!("{name}, stream, 64 outstanding"), |bencher| {
            bencher.to_async(&runtime).iter_custom(|n| stream(client, &request, n));
        });
        group.finish();
    }
    // A DEK that nobody has asked for yet, by a thousand at once.
    let cold = &sidecar;
    let client = sidecar.client();
    let mut group = criterion.benchmark_group("coalescing");
    group.sample_size(10);
    group.bench_function("1,000 callers of one cold DEK", |bencher| {
        bencher.to_async(&runtime).iter_custom(|rounds| {
            let client = client.clone();
            async move {
                let mut took = Duration::ZERO;
                for round in 0..rounds {
                    let context = [&round.to_be_bytes()[..], &cold.fake.unwraps().to_be_bytes()];
                    let context = context.concat();
                    let wrapped = client.wrap("orders", &dek(), &context).await.expect("a DEK");
                    let before = cold.fake.unwraps();
                    let start = Instant::now();
                    let mut calling = JoinSet::new();
                    for _ in 0..1000 {
                        let (client, wrapped) = (client.clone(), wrapped.clone());
                        let context = context.clone();
                        calling.spawn(async move { client.unwrap(&wrapped, &context).await });
                    }
                    while let Some(answer) = calling.join_next().await {
                        answer.expect("it ran").expect("a DEK");
                    }
                    took += start.elapsed();
                    assert_eq!(cold.fake.unwraps(), before + 1, "one operation");
                }
                took
            }
        });
    });
    group.finish();
    let work = pin!(medians([&echo, &ours], &request));
    let [bare, ours] = runtime.block_on(work);
    println!(
        "p50: bare tonic echo {:.1} us, keyward {:.1} us, ratio {:.2}",
        bare.as_secs_f64() * 1e6,
        ours.as_secs_f64() * 1e6,
        ours.as_secs_f64() / bare.as_secs_f64()
    );
    let _dir = runtime.block_on(sidecar.ended());
}

criterion_group!(benches, bench);
criterion_main!(benches);
