//! Listeners, TLS, readiness and drain: everything between a connection and the
//! service.
//!
//! It knows who a caller is (and closes a connection that cannot say), not what the
//! caller may do. Every connection is an HTTP/2 connection in a task of its own, so
//! that whatever comes over it ends that connection and no other.
//!
//! The server runs hyper's HTTP/2 connections itself instead of tonic's `Server`,
//! because a connection must be bounded in its first seconds, closed with GOAWAY, and
//! cut at the end of a drain; the generated services are called directly.
//!
//! Invariants: a socket cannot be connected to before its mode and owner are right;
//! health says NOT_SERVING until told otherwise; every resource that a stranger can
//! take (connections, handshakes, streams, time to the first bytes) has a bound.

mod accept;
mod admin;
mod connection;
mod drain;
mod ends;
mod health;
mod key_events;
mod limits;
mod places;
mod services;
mod settings;
mod setup_error;
mod tcp;
mod tls;
mod tls_dev;
mod unix;

use std::{future::Future, net::SocketAddr, path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use tokio::{sync::watch, task::JoinSet};
use tracing::info;

pub use limits::{nofile_needed, raise_nofile_limit};
pub use settings::{Settings, SocketSettings, TcpSettings, TlsFiles};
pub use setup_error::SetupError;
pub use tls::{CertificateDates, check_tls};
pub use tls_dev::{DevTls, make_dev_tls};

use crate::{
    api::{self, Sessions},
    auth::Policy,
    engine::Engine,
    observe::Metrics,
};
use accept::Gate;
use admin::{AdminListener, Pages};
use drain::Drain;
use services::Services;
use tcp::TcpListener;
use unix::UnixListener;

/// Where the server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listening {
    /// The Unix socket.
    pub socket: Option<PathBuf>,
    /// The address and port of TCP with mutual TLS.
    pub tcp: Option<SocketAddr>,
    /// The address and port of metrics and health over HTTP.
    pub admin: Option<SocketAddr>,
}

/// What is served.
#[derive(Debug)]
pub struct Served {
    /// The use cases.
    pub engine: Arc<Engine>,
    /// Who has DEKs sealed.
    pub sessions: Arc<Sessions>,
    /// Who may do what.
    pub policy: Arc<ArcSwap<Policy>>,
    /// Where it is recorded.
    pub metrics: Arc<Metrics>,
    /// Health is SERVING while this holds true.
    pub ready: watch::Receiver<bool>,
}

/// Serves until `shutdown` resolves, then drains: health turns NOT_SERVING, no
/// connection is accepted any more, streams are ended, calls in work get
/// `settings.drain` to finish, and what is left then is cut.
///
/// `on_listening` is called once clients
/// can connect. `Err` says why the server could not start; nothing listens then.
pub async fn serve(
    settings: &Settings,
    served: Served,
    shutdown: impl Future<Output = ()>,
    on_listening: impl FnOnce(&Listening),
) -> Result<(), SetupError> {
    let drain = Arc::new(Drain::new());
    let Served { engine, sessions, policy, metrics, ready } = served;
    let carriers = Arc::clone(engine.carriers());
    let keks = health::Permitted { engine: Arc::clone(&engine), policy: Arc::clone(&policy) };
    let services = Arc::new(Services::new(
        api::services(
            Arc::clone(&engine),
            sessions,
            policy,
            Arc::clone(&metrics),
            drain.draining(),
        ),
        health::Health::new(Arc::new(keks), ready.clone(), drain.draining()),
    ));
    let gate = Gate::new(settings, services, carriers, Arc::clone(&drain), Arc::clone(&metrics));

    // Whatever can fail comes before the first listener can be connected to by a caller.
    let admin = settings.admin.map(AdminListener::bind).transpose()?;
    let tcp = match &settings.tcp {
        Some(tcp) => Some(TcpListener::bind(tcp)?),
        None => None,
    };
    let unix = match &settings.socket {
        Some(socket) => Some(UnixListener::bind(socket)?),
        None => None,
    };
    if tcp.is_none() && unix.is_none() {
        return Err(SetupError::new(
            "there is nothing to listen on",
            "neither a socket nor TCP is set",
        )
        .with_fix("set server.socket or server.listen"));
    }
    let listening = Listening {
        socket: settings.socket.as_ref().map(|socket| socket.path.clone()),
        tcp: tcp.as_ref().map(TcpListener::address),
        admin: admin.as_ref().map(AdminListener::address),
    };

    let mut watched = JoinSet::new();
    if let Some(admin) = admin {
        let doorbell = settings.key_events.then(|| Arc::clone(&engine));
        watched.spawn(admin.run(Pages::new(metrics, ready, drain.draining(), doorbell)));
    }
    let mut accepting = JoinSet::new();
    if let Some(tcp) = tcp {
        accepting.spawn(accept::run(tcp, gate.clone()));
    }
    if let Some(unix) = unix {
        accepting.spawn(accept::run(unix, gate.clone()));
    }
    drop(gate);
    on_listening(&listening);

    shutdown.await;
    info!("draining: calls in work have {} s to finish", settings.drain.as_secs());
    drain.start();
    // The listeners go first: their ends remove the socket from the file system.
    while accepting.join_next().await.is_some() {}
    drain.finish(settings.drain).await;
    // Those who watch see the drain to its end.
    watched.shutdown().await;
    Ok(())
}
