//! The floor of the transport: tonic's own server, with the generated service, that
//! answers at once with 32 bytes.
//!
//! As a floor it is a process of its own, as a sidecar is: two threads of one process
//! wake each other and share their caches for less. It inherits its listening socket as
//! standard input, and dies with the process that measures.

use std::{
    env,
    error::Error,
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::DirBuilderExt, net},
    },
    path::{Path, PathBuf},
    pin::Pin,
    process::{Child, Command, Stdio},
};

use futures_util::{Stream, StreamExt};
use rustix::process::{Signal, set_parent_process_death_signal};
use tokio::net::UnixListener;
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
    server: Child,
}

impl Echo {
    /// Starts one on a socket in a directory of its own that only we may enter. `program`
    /// is run with the argument `echo`, and calls [`serve_echo`].
    pub(super) fn start(program: &Path) -> io::Result<Self> {
        let socket = Socket::create()?;
        let listener = net::UnixListener::bind(&socket.path)?;
        let server = Command::new(program)
            .arg("echo")
            .stdin(OwnedFd::from(listener))
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Self { socket, server })
    }

    pub(super) fn path(&self) -> &Path {
        &self.socket.path
    }

    /// Takes the socket's name away once a client is connected, so that nothing is left
    /// behind by a process that is killed.
    pub(super) fn unlink(&self) {
        self.socket.remove();
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ended_already = self.server.kill();
        let _it_says_nothing = self.server.wait();
    }
}

/// Answers on the listening socket that is standard input, until the parent is gone.
pub fn serve_echo() -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let listener = net::UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    // Otherwise it is something else that was given to us as standard input.
    listener.local_addr()?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(listener)).map_err(io::Error::other)
}

async fn serve(listener: net::UnixListener) -> Result<(), Box<dyn Error + Send + Sync>> {
    let incoming = UnixListenerStream::new(UnixListener::from_std(listener)?);
    Ok(Server::builder().serve_with_incoming(KeyWrapServer::new(Answering), incoming).await?)
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

/// What it answers with, for whoever serves it on other sockets.
pub struct Answering;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Answered<T> = Result<Response<T>, Status>;

fn not_here<T>() -> Answered<T> {
    Err(Status::unimplemented("an echo unwraps only"))
}

#[async_trait]
impl KeyWrap for Answering {
    async fn unwrap(&self, _: Request<wire::UnwrapRequest>) -> Answered<wire::UnwrapResponse> {
        let mut answer = wire::UnwrapResponse::default();
        answer.dek = ANSWER.to_vec();
        Ok(Response::new(answer))
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

    async fn open_session(
        &self,
        _: Request<wire::OpenSessionRequest>,
    ) -> Answered<wire::OpenSessionResponse> {
        not_here()
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

    type WatchKeksStream = Answers<wire::WatchKeksResponse>;

    async fn watch_keks(
        &self,
        _: Request<wire::WatchKeksRequest>,
    ) -> Answered<Self::WatchKeksStream> {
        not_here()
    }

    async fn list_keks(
        &self,
        _: Request<wire::ListKeksRequest>,
    ) -> Answered<wire::ListKeksResponse> {
        not_here()
    }
}

/// One in this process, for tests.
#[cfg(test)]
pub(super) struct EchoHere {
    socket: Socket,
    /// Of its own: with it end its connections.
    runtime: std::sync::Mutex<Option<tokio::runtime::Runtime>>,
}

#[cfg(test)]
impl EchoHere {
    pub(super) fn start() -> Self {
        let socket = Socket::create().unwrap();
        let listener = net::UnixListener::bind(&socket.path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(async move { serve(listener).await.unwrap() });
        Self { socket, runtime: std::sync::Mutex::new(Some(runtime)) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.socket.path
    }

    /// Closes every connection and takes no other.
    pub(super) fn stop(&self) {
        let runtime = self.runtime.lock().unwrap().take();
        runtime.into_iter().for_each(tokio::runtime::Runtime::shutdown_background);
    }
}

#[cfg(test)]
impl Drop for EchoHere {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Client, Delivery, Endpoint, WrappedDek};

    #[tokio::test]
    async fn it_answers_and_leaves_nothing_behind() {
        let echo = EchoHere::start();
        let dir = echo.path().parent().unwrap().to_owned();
        let client =
            Client::new(&Endpoint::unix(echo.path())).unwrap().with_delivery(Delivery::Plain);
        let answer = async || client.unwrap(&WrappedDek::default(), b"").await.unwrap();
        assert!(answer().await.ct_eq(&ANSWER));
        echo.socket.remove();
        assert!(!dir.exists());
        assert!(answer().await.ct_eq(&ANSWER), "the connection needs no name");
    }
}
