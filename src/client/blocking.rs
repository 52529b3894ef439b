//! The client for programs without an async runtime: the same calls, which wait.
//!
//! A thread of the client's own does what goes on between calls: connections, sessions, what
//! a watch hears. The thread that calls does the rest, and sleeps until its answer is there.
//!
//! It decides nothing: deadlines, retries, delivery and sidecars are those of the
//! [`Client`](super::Client) that it is made of. A call from inside a runtime does not fail,
//! but holds up whatever else that thread would do.
//!
//! ```no_run
//! use keyward::client::{Client, Endpoint};
//!
//! # fn example() -> Result<(), keyward::client::Error> {
//! let client = Client::new(&Endpoint::unix("/run/keyward/keyward.sock"))?.blocking()?;
//! let (dek, wrapped) = client.generate("orders-db", 32, b"tenant 7, volume 3")?;
//! assert!(client.unwrap(&wrapped, b"tenant 7, volume 3")?.ct_eq(dek.expose()));
//! # Ok(())
//! # }
//! ```

use std::{
    fmt,
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake},
    thread::{self, Thread},
    time::Duration,
};

use futures_util::{StreamExt, stream, stream::BoxStream};
use tokio::{
    runtime::{Builder, Runtime},
    time::timeout,
};

use super::{
    Answer, Error, Item, Kek, KekEvent, Purged, Reloaded, Revoked, Rewrapped, Secret, WrappedDek,
};

/// A client whose calls wait. Cheap to clone; clones share connections, sessions and the
/// thread, which ends with the last of them.
#[derive(Clone)]
pub struct Client {
    client: super::Client,
    background: Arc<Background>,
}

impl super::Client {
    /// The same client for threads outside a runtime. `Err` if it can have no thread.
    pub fn blocking(self) -> Result<Client, Error> {
        Ok(Client { client: self, background: Arc::new(Background::start()?) })
    }
}

impl Client {
    /// As [`wrap`](super::Client::wrap).
    pub fn wrap(&self, kek: &str, dek: &Secret, context: &[u8]) -> Result<WrappedDek, Error> {
        self.background.wait(self.client.wrap(kek, dek, context))
    }

    /// As [`unwrap`](super::Client::unwrap).
    pub fn unwrap(&self, wrapped: &WrappedDek, context: &[u8]) -> Result<Secret, Error> {
        self.background.wait(self.client.unwrap(wrapped, context))
    }

    /// As [`generate`](super::Client::generate).
    pub fn generate(
        &self,
        kek: &str,
        len: usize,
        context: &[u8],
    ) -> Result<(Secret, WrappedDek), Error> {
        self.background.wait(self.client.generate(kek, len, context))
    }

    /// As [`generate_wrapped`](super::Client::generate_wrapped).
    pub fn generate_wrapped(
        &self,
        kek: &str,
        len: usize,
        context: &[u8],
    ) -> Result<WrappedDek, Error> {
        self.background.wait(self.client.generate_wrapped(kek, len, context))
    }

    /// As [`rewrap`](super::Client::rewrap).
    pub fn rewrap(&self, wrapped: &WrappedDek, context: &[u8]) -> Result<Rewrapped, Error> {
        self.background.wait(self.client.rewrap(wrapped, context))
    }

    /// As [`unwrap_stream`](super::Client::unwrap_stream). The client's thread reads `items` as
    /// the sidecar takes them, so they should be there at once.
    pub fn unwrap_stream<I>(
        &self,
        items: I,
        within: Duration,
    ) -> Result<Stream<Answer<Secret>>, Error>
    where
        I: IntoIterator<Item = Item, IntoIter: Send + 'static>,
    {
        let answers = self.client.unwrap_stream(stream::iter(items), within);
        Ok(self.stream(self.background.wait(answers)?))
    }

    /// As [`rewrap_stream`](super::Client::rewrap_stream), with `items` as in
    /// [`Self::unwrap_stream`].
    pub fn rewrap_stream<I>(
        &self,
        items: I,
        within: Duration,
    ) -> Result<Stream<Answer<Rewrapped>>, Error>
    where
        I: IntoIterator<Item = Item, IntoIter: Send + 'static>,
    {
        let answers = self.client.rewrap_stream(stream::iter(items), within);
        Ok(self.stream(self.background.wait(answers)?))
    }

    /// As [`get_kek`](super::Client::get_kek).
    pub fn get_kek(&self, name: &str) -> Result<Kek, Error> {
        self.background.wait(self.client.get_kek(name))
    }

    /// As [`list_keks`](super::Client::list_keks).
    pub fn list_keks(&self) -> Result<Vec<Kek>, Error> {
        self.background.wait(self.client.list_keks())
    }

    /// As [`watch_keks`](super::Client::watch_keks).
    pub fn watch_keks(&self, names: &[&str]) -> Result<Stream<KekEvent>, Error> {
        Ok(self.stream(self.background.wait(self.client.watch_keks(names))?))
    }

    /// As [`purge`](super::Client::purge).
    pub fn purge(&self, kek: Option<&str>) -> Result<Purged, Error> {
        self.background.wait(self.client.purge(kek))
    }

    /// As [`revoke`](super::Client::revoke).
    pub fn revoke(&self, kek: &str) -> Result<Revoked, Error> {
        self.background.wait(self.client.revoke(kek))
    }

    /// As [`restore`](super::Client::restore).
    pub fn restore(&self, kek: &str) -> Result<(), Error> {
        self.background.wait(self.client.restore(kek))
    }

    /// As [`reload`](super::Client::reload).
    pub fn reload(&self, kek: Option<&str>) -> Result<Vec<Reloaded>, Error> {
        self.background.wait(self.client.reload(kek))
    }

    fn stream<T>(&self, next: BoxStream<'static, Result<T, Error>>) -> Stream<T> {
        Stream { next, background: Arc::clone(&self.background) }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blocking {:?}", self.client)
    }
}

/// Answers, or events, as they come: `next` waits for each. An `Err` ends it.
pub struct Stream<T> {
    next: BoxStream<'static, Result<T, Error>>,
    background: Arc<Background>,
}

impl<T> Stream<T> {
    /// The next one, if it comes within this time. If it does not, that is an `Err` with the
    /// reason `DEADLINE_EXCEEDED`, after which the stream goes on.
    pub fn next_within(&mut self, within: Duration) -> Option<Result<T, Error>> {
        let next = self.next.next();
        let next = self.background.wait(async { timeout(within, next).await });
        next.unwrap_or_else(|_elapsed| Some(Err(Error::deadline_exceeded())))
    }
}

impl<T> Iterator for Stream<T> {
    type Item = Result<T, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.background.wait(self.next.next())
    }
}

impl<T> fmt::Debug for Stream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stream")
    }
}

/// The thread, in the shape of a runtime.
struct Background(Option<Runtime>);

impl Background {
    fn start() -> Result<Self, Error> {
        let mut runtime = Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).thread_name("keyward-client").enable_all();
        Ok(Self(Some(runtime.build().map_err(|error| Error::no_thread(&error))?)))
    }

    /// What comes of some work, which this thread waits for.
    fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        // The runtime's own way to wait panics in a thread that belongs to a runtime; this one
        // cannot. What the work starts, and its timers, are the runtime's.
        let _inside = self.0.as_ref().expect("it runs until it is dropped").enter();
        let waker = Arc::new(Sleeper(thread::current())).into();
        let mut work = pin!(work);
        loop {
            match work.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(done) => return done,
                Poll::Pending => thread::park(),
            }
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Waits for nothing: what it still does ends with its connections.
        self.0.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

/// A thread that sleeps until there is something to do.
struct Sleeper(Thread);

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}
