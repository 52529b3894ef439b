//! The two switches of a shutdown, thrown in this order: *draining* (take no new
//! work, finish what is in work) and *closing* (let go).

use std::time::Duration;

use tokio::{sync::watch, time::timeout};
use tracing::warn;

/// How long connections get to notice that they are cut.
const CUT_WITHIN: Duration = Duration::from_secs(1);

/// Written by the server alone.
#[derive(Debug)]
pub(super) struct Drain {
    draining: watch::Sender<bool>,
    /// Only connections listen to this one, so that it also counts them.
    closing: watch::Sender<bool>,
}

/// A connection's end of the switches. The drain waits until all are dropped.
#[derive(Clone, Debug)]
pub(super) struct ConnectionDrain {
    draining: watch::Receiver<bool>,
    closing: watch::Receiver<bool>,
}

impl Drain {
    pub(super) fn new() -> Self {
        Self { draining: watch::Sender::new(false), closing: watch::Sender::new(false) }
    }

    /// Turns true when the drain starts.
    pub(super) fn draining(&self) -> watch::Receiver<bool> {
        self.draining.subscribe()
    }

    /// For a new connection.
    pub(super) fn connection(&self) -> ConnectionDrain {
        ConnectionDrain { draining: self.draining.subscribe(), closing: self.closing.subscribe() }
    }

    /// Starts the drain.
    pub(super) fn start(&self) {
        self.draining.send_replace(true);
    }

    /// Waits at most `grace` for connections to end by themselves, then cuts them.
    pub(super) async fn finish(&self, grace: Duration) {
        if timeout(grace, self.closing.closed()).await.is_ok() {
            return;
        }
        let left = self.closing.receiver_count();
        warn!(left, "connections did not end within the drain: cutting them");
        self.closing.send_replace(true);
        // Nothing can be done about one that does not notice; the process ends anyway.
        let _ = timeout(CUT_WITHIN, self.closing.closed()).await;
    }
}

impl ConnectionDrain {
    /// Resolves when the drain starts.
    pub(super) async fn started(&mut self) {
        wait_for(&mut self.draining).await;
    }

    /// Resolves when the connection is to be cut.
    pub(super) async fn cut(&mut self) {
        wait_for(&mut self.closing).await;
    }
}

/// A switch whose server is gone counts as thrown.
pub(super) async fn wait_for(switch: &mut watch::Receiver<bool>) {
    let _ = switch.wait_for(|thrown| *thrown).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_with_its_last_connection() {
        let drain = Drain::new();
        let mut connection = drain.connection();
        drain.start();
        connection.started().await;
        let before = Instant::now();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            drop(connection);
        });
        drain.finish(Duration::from_secs(60)).await;
        assert_eq!(before.elapsed().as_secs(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_does_not_end_is_cut() {
        let drain = Drain::new();
        let mut connection = drain.connection();
        drain.start();
        let cut = tokio::spawn(async move { connection.cut().await });
        let before = Instant::now();
        drain.finish(Duration::from_secs(5)).await;
        assert_eq!(before.elapsed().as_secs(), 5);
        cut.await.unwrap();
    }
}
