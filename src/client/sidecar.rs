//! One sidecar, as its client knows it: the connections, the session, and whether it is up.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::time::{Instant, timeout};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{
    Endpoint, Error,
    call::left,
    choice::{self, Standing},
    retry,
    session::{Session, Sessions},
    shared::Shared,
    transport::Transport,
};
use crate::{
    op::MESSAGE_MAX_BYTES,
    secret::Locker,
    wire::{
        UnwrapStreamRequest, UnwrapStreamResponse, admin_client::AdminClient,
        key_wrap_client::KeyWrapClient,
    },
};

/// How long a sidecar may take to say how it is.
const ASK_WITHIN: Duration = Duration::from_secs(5);

/// One sidecar.
pub(super) struct Sidecar {
    transport: Transport,
    /// Streams that callers share.
    shared: Shared,
    stub: KeyWrapClient<Transport>,
    /// Over a connection of its own, opened when it is first needed: a purge closes those
    /// that carried DEKs, and would wait for itself on one.
    admin: AdminClient<Transport>,
    health: HealthClient<Transport>,
    sessions: Arc<Sessions>,
    standing: Mutex<Standing>,
    target: Box<str>,
}

impl Sidecar {
    /// Connects when it is first called. `Err` if the endpoint's files cannot be used.
    pub(super) fn new(endpoint: &Endpoint) -> Result<Self, Error> {
        let target: Box<str> = endpoint.to_string().into();
        let transport = Transport::new(endpoint.connector()?);
        let stub = KeyWrapClient::new(transport.clone())
            .max_decoding_message_size(MESSAGE_MAX_BYTES)
            .max_encoding_message_size(MESSAGE_MAX_BYTES);
        let admin = AdminClient::new(Transport::new(endpoint.connector()?))
            .max_decoding_message_size(MESSAGE_MAX_BYTES)
            .max_encoding_message_size(MESSAGE_MAX_BYTES);
        Ok(Self {
            sessions: Arc::new(Sessions::new(stub.clone(), &target)),
            stub,
            admin,
            health: HealthClient::new(transport.clone()),
            transport,
            shared: Shared::default(),
            standing: Mutex::default(),
            target,
        })
    }

    pub(super) fn stub(&self) -> KeyWrapClient<Transport> {
        self.stub.clone()
    }

    pub(super) fn admin(&self) -> AdminClient<Transport> {
        self.admin.clone()
    }

    /// Has one item unwrapped over a stream that is shared; `None` if no place is free there.
    pub(super) async fn unwrap_shared(
        &self,
        item: UnwrapStreamRequest,
    ) -> Option<Result<UnwrapStreamResponse, Error>> {
        self.shared.ask(&self.transport, &self.target, item).await
    }

    /// For messages.
    pub(super) fn target(&self) -> &str {
        &self.target
    }

    /// The session to seal under.
    pub(super) async fn session(
        &self,
        locker: Option<&Locker>,
        deadline: Instant,
    ) -> Result<Arc<Session>, Error> {
        match self.sessions.current(locker) {
            Some(session) => Ok(session),
            // Apart, since it is seldom and large: every call would carry the room for it.
            None => self.sessions.get(locker, left(deadline)).boxed().await,
        }
    }

    /// The same, if there is one at once.
    pub(super) fn session_now(&self, locker: Option<&Locker>) -> Option<Arc<Session>> {
        self.sessions.current(locker)
    }

    /// Gives a session up that the sidecar does not know.
    pub(super) fn forget(&self, session: &Arc<Session>) {
        self.sessions.forget(session);
    }

    /// How it stands.
    pub(super) fn standing(&self) -> Standing {
        *self.standing_now()
    }

    pub(super) fn did_well(&self) {
        let mut standing = self.standing_now();
        if !standing.is_up() {
            *standing = Standing::default();
        }
    }

    /// Takes note of what a call came to.
    pub(super) fn failed_with(&self, error: &Error) {
        if error.trouble().is_of_the_sidecar() {
            let mut standing = self.standing_now();
            *standing = choice::after_failed_call(*standing, Instant::now(), retry::jitter());
        }
    }

    /// Asks a sidecar that was down how it is, if it is time and nobody does, so that no call
    /// has to find out.
    pub(super) fn ask_again(self: &Arc<Self>) {
        {
            let mut standing = self.standing_now();
            match choice::to_be_asked(*standing, Instant::now()) {
                Some(asked) => *standing = asked,
                None => return,
            }
        }
        let sidecar = Arc::clone(self);
        tokio::spawn(async move {
            let mut health = sidecar.health.clone();
            let asked = health.check(HealthCheckRequest::default());
            let serving = matches!(timeout(ASK_WITHIN, asked).await, Ok(Ok(answer))
                if answer.get_ref().status() == ServingStatus::Serving);
            let mut standing = sidecar.standing_now();
            *standing = match serving {
                true => Standing::default(),
                false => choice::after_failure(*standing, Instant::now(), retry::jitter()),
            };
        });
    }

    fn standing_now(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Sidecar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sidecar({})", self.target)
    }
}
