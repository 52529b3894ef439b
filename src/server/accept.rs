//! The accept loop: one for each listener, with one bound on all their connections.
//!
//! It ends when the drain starts and never before: an error of `accept` (no file
//! descriptors left, a client that went away in the queue) is waited out.
//!
//! Two bounds: connections whose peer is known, together; and on each listener connections
//! whose peer is not known yet. Beyond the first a new one is closed. Beyond the second the
//! one that has kept us waiting longest is, so that silent peers keep nobody out who can say
//! who he is; a flood of [`STRANGERS_MAX`] new ones in the time of a handshake still does.

use std::{future::Future, io, sync::Arc, time::Duration, time::Instant};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
    time::sleep,
};
use tracing::{debug, warn};

use super::{
    connection, drain::Drain, drain::wait_for, ends::Ends, places::Places, services::Services,
    settings::Settings,
};
use crate::{
    api::Peer,
    auth::Identity,
    carriers::Carriers,
    observe::{Metrics, Throttle},
};

/// Connections of one listener at once whose peer is not known yet. They count for
/// nothing else, so that those who cannot say who they are (silent ones on TCP, which
/// are given seconds) take no place from those who can, on this listener or another.
pub(super) const STRANGERS_MAX: usize = 1024;

const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A place where connections come in.
pub(super) trait Listener: Send + Sync + 'static {
    /// A connection whose peer is not known yet.
    type Raw: Send + 'static;
    /// A connection that speaks plain HTTP/2.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// For logs.
    fn name(&self) -> &'static str;

    /// The next connection.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Raw>> + Send;

    /// Finds out who is at the other end. `Err` says why the connection is closed. It
    /// takes a bounded time.
    fn identify(
        &self,
        raw: Self::Raw,
    ) -> impl Future<Output = Result<(Self::Io, Identity), String>> + Send;
}

/// What all listeners share.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    free: Arc<Semaphore>,
    limit: usize,
    connection_age: Duration,
    services: Arc<Services>,
    carriers: Arc<Carriers>,
    drain: Arc<Drain>,
    metrics: Arc<Metrics>,
    /// Lines about connections that were closed because of the limit.
    full: Arc<Throttle>,
    /// Lines about connections that were closed because newer ones wait to be known.
    crowded: Arc<Throttle>,
    /// Lines about connections that were closed because nobody knows whose they are.
    refused: Arc<Throttle>,
}

impl Gate {
    /// Lets as many connections in at once as the settings say.
    pub(super) fn new(
        settings: &Settings,
        services: Arc<Services>,
        carriers: Arc<Carriers>,
        drain: Arc<Drain>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let limit = settings.connections.min(Semaphore::MAX_PERMITS);
        let free = Arc::new(Semaphore::new(limit));
        let places = Arc::clone(&free);
        metrics.register_source(move |samples| {
            samples.connections = Some((limit - places.available_permits()) as u64);
        });
        Self {
            free,
            limit,
            connection_age: settings.connection_age,
            services,
            carriers,
            drain,
            metrics,
            full: Arc::default(),
            crowded: Arc::default(),
            refused: Arc::default(),
        }
    }
}

/// Accepts and serves until the drain starts. Dropping the listener at the end closes it.
pub(super) async fn run<L: Listener>(listener: L, gate: Gate) {
    let listener = Arc::new(listener);
    let strangers = Places::new(STRANGERS_MAX);
    let mut draining = gate.drain.draining();
    let mut pause = PAUSE_MIN;
    loop {
        let accepted = tokio::select! {
            () = wait_for(&mut draining) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(raw) => {
                pause = PAUSE_MIN;
                admit(&listener, raw, &strangers, &gate);
            }
            Err(error) => {
                warn!(listener = listener.name(), "cannot accept a connection: {error}");
                tokio::select! {
                    () = wait_for(&mut draining) => return,
                    () = sleep(pause) => pause = (pause * 2).min(PAUSE_MAX),
                }
            }
        }
    }
}

/// Starts the connection's task.
fn admit<L: Listener>(listener: &Arc<L>, raw: L::Raw, strangers: &Arc<Places>, gate: &Gate) {
    let (mut stranger, evicts) = strangers.take();
    if evicts && let Some(skipped) = gate.crowded.allow(Instant::now()) {
        warn!(
            listener = listener.name(),
            limit = STRANGERS_MAX,
            skipped,
            "too many connections of unknown peers: closing the one that has waited longest"
        );
    }
    // A weak reference: a connection must not keep a listener open that has ended.
    let listener = Arc::downgrade(listener);
    let mut drain = gate.drain.connection();
    let gate = gate.clone();
    tokio::spawn(async move {
        let Some(identifier) = listener.upgrade() else { return };
        let name = identifier.name();
        let identified = tokio::select! {
            () = drain.started() => return,
            () = stranger.lost() => return,
            identified = identifier.identify(raw) => identified,
        };
        drop(identifier);
        drop(stranger);
        match identified {
            Ok((io, who)) => {
                let Ok(_place) = Arc::clone(&gate.free).try_acquire_owned() else {
                    if let Some(skipped) = gate.full.allow(Instant::now()) {
                        let limit = gate.limit;
                        warn!(limit, skipped, "too many connections: closing a new one");
                    }
                    return;
                };
                debug!(listener = name, %who, "connected");
                let registration = gate.carriers.register();
                let peer = Peer::new(who, registration.carrier().clone());
                let ends = Ends::new(registration.carrier(), gate.connection_age, drain);
                let told = connection::serve(io, peer, Arc::clone(&gate.services), ends).await;
                if let Some(cause) = told {
                    gate.metrics.connection_closed(cause);
                }
            }
            Err(why) => {
                if let Some(skipped) = gate.refused.allow(Instant::now()) {
                    warn!(listener = name, skipped, "closing a connection: {why}");
                }
            }
        }
    });
}
