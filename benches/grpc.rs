//! A unary Unwrap through the real server, with a backend that costs nothing, against a
//! bare tonic echo of the same sizes: same client, same kind of socket, same run. The
//! difference is what our listeners, policy, engine and log cost.

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    hint::black_box,
    pin::pin,
    time::{Duration, Instant},
};

use criterion::{Criterion, criterion_group, criterion_main};
use hyper_util::rt::TokioIo;
use keyward::wire::{
    self,
    key_wrap_client::KeyWrapClient,
    key_wrap_server::{KeyWrap, KeyWrapServer},
};
use support::sidecar::{Sidecar, dek};
use tempfile::TempDir;
use tokio::{
    net::{UnixListener, UnixStream},
    runtime::{Builder, Runtime},
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{
    Request, Response, Status, Streaming, async_trait,
    transport::{Channel, Endpoint, Server, Uri},
};

/// Answers every Unwrap with the same 32 bytes.
struct Echo;

type Never<T> = tokio_stream::Empty<Result<T, Status>>;

#[async_trait]
impl KeyWrap for Echo {
    async fn unwrap(
        &self,
        _: Request<wire::UnwrapRequest>,
    ) -> Result<Response<wire::UnwrapResponse>, Status> {
        Ok(Response::new(wire::UnwrapResponse { dek: vec![7; 32], cache: 1 }))
    }

    async fn wrap(
        &self,
        _: Request<wire::WrapRequest>,
    ) -> Result<Response<wire::WrapResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    type UnwrapStreamStream = Never<wire::UnwrapStreamResponse>;

    async fn unwrap_stream(
        &self,
        _: Request<Streaming<wire::UnwrapStreamRequest>>,
    ) -> Result<Response<Self::UnwrapStreamStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn generate_dek(
        &self,
        _: Request<wire::GenerateDekRequest>,
    ) -> Result<Response<wire::GenerateDekResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn rewrap(
        &self,
        _: Request<wire::RewrapRequest>,
    ) -> Result<Response<wire::RewrapResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    type RewrapStreamStream = Never<wire::RewrapStreamResponse>;

    async fn rewrap_stream(
        &self,
        _: Request<Streaming<wire::RewrapStreamRequest>>,
    ) -> Result<Response<Self::RewrapStreamStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_kek(
        &self,
        _: Request<wire::GetKekRequest>,
    ) -> Result<Response<wire::GetKekResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_keks(
        &self,
        _: Request<wire::ListKeksRequest>,
    ) -> Result<Response<wire::ListKeksResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

fn echo(dir: &TempDir) -> KeyWrapClient<Channel> {
    let path = dir.path().join("echo.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let incoming = UnixListenerStream::new(listener);
    // Without a router, as fast as tonic goes.
    tokio::spawn(async {
        Server::builder().serve_with_incoming(KeyWrapServer::new(Echo), incoming).await
    });
    let connect = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    KeyWrapClient::new(
        Endpoint::from_static("http://localhost").connect_with_connector_lazy(connect),
    )
}

async fn unwrap(client: &KeyWrapClient<Channel>, request: &wire::UnwrapRequest) {
    let answer = client.clone().unwrap(request.clone()).await.expect("a DEK");
    black_box(answer);
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
        let request = wire::UnwrapRequest { wrapped: Some(wrapped), context: vec![] };
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
