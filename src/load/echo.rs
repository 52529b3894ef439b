//! The floor of the transport: tonic's own server, with the generated service, that
//! answers at once with 32 bytes. It runs on a thread and a runtime of its own, as a
//! sidecar would on a core of its own.

use std::{
    env, fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    thread::{self, JoinHandle},
};

use futures_util::{Stream, StreamExt};
use tokio::{net::UnixListener, sync::Notify};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, Streaming, async_trait, transport::Server};

use crate::wire::{
    self,
    key_wrap_server::{KeyWrap, KeyWrapServer},
    unwrap_stream_response::Outcome,
};

const ANSWER: [u8; 32] = [7; 32];

/// A server that ends when it is dropped.
pub(super) struct Echo {
    socket: Socket,
    stop: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// Starts it on a socket in a directory of its own that only we may enter.
    pub(super) fn start() -> io::Result<Self> {
        let socket = Socket::create()?;
        let listener = std::os::unix::net::UnixListener::bind(&socket.path)?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new().name("echo".into()).spawn(move || {
            runtime.block_on(async {
                let Ok(listener) = UnixListener::from_std(listener) else { return };
                let serve = Server::builder().serve_with_incoming(
                    KeyWrapServer::new(Answering),
                    UnixListenerStream::new(listener),
                );
                // Whoever is connected finds out for itself.
                tokio::select! {
                    _ended = serve => {}
                    () = stopped.notified() => {}
                }
            });
        })?;
        Ok(Self { socket, stop, thread: Some(thread) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.socket.path
    }

    /// Closes every connection and takes no other.
    pub(super) fn stop(&self) {
        self.stop.notify_one();
    }

    /// Takes the socket's name away once a client is connected, so that nothing is left
    /// behind by a process that is killed.
    pub(super) fn unlink(&self) {
        self.socket.remove();
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            let _it_says_nothing = thread.join();
        }
    }
}

/// A name for a socket, removed with its directory.
struct Socket {
    path: PathBuf,
}

impl Socket {
    fn create() -> io::Result<Self> {
        let mut random = [0; 8];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| io::Error::other("no random bytes"))?;
        let name = format!("keyward-bench-{:016x}", u64::from_ne_bytes(random));
        let dir = env::temp_dir().join(name);
        // Fails if anybody was there before us.
        fs::DirBuilder::new().mode(0o700).create(&dir)?;
        Ok(Self { path: dir.join("echo.sock") })
    }

    fn remove(&self) {
        let _gone_already = fs::remove_file(&self.path);
        if let Some(dir) = self.path.parent() {
            let _gone_already = fs::remove_dir(dir);
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.remove();
    }
}

struct Answering;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Answered<T> = Result<Response<T>, Status>;

fn not_here<T>() -> Answered<T> {
    Err(Status::unimplemented("an echo unwraps only"))
}

#[async_trait]
impl KeyWrap for Answering {
    async fn unwrap(&self, _: Request<wire::UnwrapRequest>) -> Answered<wire::UnwrapResponse> {
        Ok(Response::new(wire::UnwrapResponse { dek: ANSWER.to_vec(), ..Default::default() }))
    }

    type UnwrapStreamStream = Answers<wire::UnwrapStreamResponse>;

    async fn unwrap_stream(
        &self,
        items: Request<Streaming<wire::UnwrapStreamRequest>>,
    ) -> Answered<Self::UnwrapStreamStream> {
        let answers = items.into_inner().map(|item| {
            let outcome = Some(Outcome::Dek(ANSWER.to_vec()));
            item.map(|item| {
                let id = item.id;
                wire::UnwrapStreamResponse { id, outcome, ..Default::default() }
            })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn wrap(&self, _: Request<wire::WrapRequest>) -> Answered<wire::WrapResponse> {
        not_here()
    }

    async fn generate_dek(
        &self,
        _: Request<wire::GenerateDekRequest>,
    ) -> Answered<wire::GenerateDekResponse> {
        not_here()
    }

    async fn rewrap(&self, _: Request<wire::RewrapRequest>) -> Answered<wire::RewrapResponse> {
        not_here()
    }

    type RewrapStreamStream = Answers<wire::RewrapStreamResponse>;

    async fn rewrap_stream(
        &self,
        _: Request<Streaming<wire::RewrapStreamRequest>>,
    ) -> Answered<Self::RewrapStreamStream> {
        not_here()
    }

    async fn get_kek(&self, _: Request<wire::GetKekRequest>) -> Answered<wire::GetKekResponse> {
        not_here()
    }

    async fn list_keks(
        &self,
        _: Request<wire::ListKeksRequest>,
    ) -> Answered<wire::ListKeksResponse> {
        not_here()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Client, Endpoint, WrappedDek};

    #[tokio::test]
    async fn it_answers_and_leaves_nothing_behind() {
        let echo = Echo::start().unwrap();
        let dir = echo.path().parent().unwrap().to_owned();
        let client = Client::new(&Endpoint::unix(echo.path())).unwrap();
        let answer = async || client.unwrap(&WrappedDek::default(), b"").await.unwrap();
        assert!(answer().await.ct_eq(&ANSWER));
        echo.unlink();
        assert!(!dir.exists());
        assert!(answer().await.ct_eq(&ANSWER), "the connection needs no name");
    }
}
