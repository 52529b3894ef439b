//! The limit of open files, which bounds the connections of a process.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{accept::STRANGERS_MAX, admin, settings::Settings};

/// Files that are open beside connections: listeners, standard streams, the runtime's, the
/// slab's, and what a PKCS#11 module has open.
const SLACK: usize = 128;

/// Raises the soft limit of open files to the hard one, as a server does that is
/// started with a shell's defaults. Returns what it is now; `None` for unlimited. A
/// refusal leaves it as it was.
pub fn raise_nofile_limit() -> Option<u64> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _refused = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    getrlimit(Resource::Nofile).current
}

/// Open files that a server with these settings may come to need. With fewer it cannot take
/// the connections that the settings allow, nor may a module find its token again.
pub fn nofile_needed(settings: &Settings) -> u64 {
    let listeners = usize::from(settings.socket.is_some()) + usize::from(settings.tcp.is_some());
    let admin = if settings.admin.is_some() { admin::CONNECTIONS_MAX } else { 0 };
    let connections = settings.connections.saturating_add(listeners * STRANGERS_MAX);
    connections.saturating_add(admin + SLACK) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::SocketSettings;
    use std::time::Duration;

    #[test]
    fn every_connection_that_may_be_needs_a_file() {
        let mut settings = Settings {
            socket: None,
            tcp: None,
            admin: None,
            key_events: false,
            connections: 10,
            sessions: 4,
            connection_age: Duration::ZERO,
            session_age: Duration::ZERO,
            drain: Duration::ZERO,
        };
        assert_eq!(nofile_needed(&settings), 10 + 128);
        let path = "/run/k.sock".into();
        settings.socket = Some(SocketSettings { path, mode: 0o600, owner: None, group: None });
        settings.admin = Some(([127, 0, 0, 1], 0).into());
        assert_eq!(nofile_needed(&settings), 10 + 1024 + 64 + 128);
        settings.connections = usize::MAX;
        assert_eq!(nofile_needed(&settings), u64::MAX);
    }

    #[test]
    fn the_limit_is_the_hard_one_afterwards() {
        assert_eq!(raise_nofile_limit(), getrlimit(Resource::Nofile).maximum);
    }
}
