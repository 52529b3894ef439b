//! Whether a listener listens, and when its connections are cut.
//!
//! Refuses to know: what is spoken on them.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// A listener follows its gate within microseconds; so long is not a wait but a bug.
const PATIENCE: Duration = Duration::from_secs(10);

pub struct Gate {
    open: watch::Sender<bool>,
    /// Whether the listener has followed.
    listens: AtomicBool,
    cuts: watch::Sender<u64>,
}

impl Gate {
    pub fn new() -> Self {
        Self {
            open: watch::Sender::new(true),
            listens: AtomicBool::new(true),
            cuts: watch::Sender::new(0),
        }
    }

    /// Stops listening or begins again on the same port, and comes back when that is done.
    pub fn set(&self, open: bool) {
        self.open.send_replace(open);
        let begun = Instant::now();
        while self.listens.load(Ordering::Acquire) != open {
            assert!(begun.elapsed() < PATIENCE, "the listener does not follow");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Closes every connection that there is.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Connections that there are.
    pub fn connections(&self) -> usize {
        self.cuts.receiver_count()
    }

    /// Changes when the connections of now are to be cut. Each has one.
    pub fn cuts(&self) -> watch::Receiver<u64> {
        self.cuts.subscribe()
    }

    /// Accepts connections for ever, as long as the gate is open.
    pub async fn accept(&self, listener: TcpListener, mut each: impl FnMut(TcpStream)) {
        let address = listener.local_addr().expect("an address");
        let mut open = self.open.subscribe();
        let mut listener = Some(listener);
        loop {
            let Some(open_listener) = &listener else {
                open.wait_for(|open| *open).await.expect("the gate outlives its listener");
                listener = Some(TcpListener::bind(address).await.expect("its own port"));
                self.listens.store(true, Ordering::Release);
                continue;
            };
            tokio::select! {
                accepted = open_listener.accept() => {
                    // An accept that fails is a client that has left again.
                    if let Ok((socket, _)) = accepted {
                        each(socket);
                    }
                }
                _ = open.wait_for(|open| !*open) => {
                    listener = None;
                    self.listens.store(false, Ordering::Release);
                }
            }
        }
    }
}
