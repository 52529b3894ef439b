//! `[server]` and `[limits]`: listeners and bounds.

use std::net::SocketAddr;

use super::{
    accounts::Accounts,
    fields::Fields,
    mistake::{Wrong, quoted},
    schema,
};
use crate::server::{Settings, SocketSettings, TcpSettings, TlsFiles};

pub(super) fn read(
    server: &Fields<'_>,
    limits: &Fields<'_>,
    accounts: &dyn Accounts,
) -> Option<Settings> {
    if !server.given(&schema::SOCKET) && !server.given(&schema::LISTEN) {
        server.refuse_all(Wrong::new(
            "neither socket nor listen is set: nobody could call",
            r#"set socket = "/run/keyward/keyward.sock", or listen and tls"#,
        ));
    }
    // Read every part before any of them ends the reading: all mistakes are noted.
    let socket = socket(server, accounts);
    let tcp = tcp(server);
    let admin = server.parsed(&schema::ADMIN, |text| parse_address(text, schema::ADMIN.example));
    let key_events = server.flag(&schema::KEY_EVENTS);
    if key_events == Some(true) && !server.given(&schema::ADMIN) {
        let wrong = Wrong::new("there is no listener that could take them", "set admin");
        server.refuse(&schema::KEY_EVENTS, wrong);
    }
    let connection_age = server.duration(&schema::CONNECTION_AGE);
    let session_age = server.duration(&schema::SESSION_AGE);
    let drain = server.duration(&schema::DRAIN);
    let connections = limits.number(&schema::CONNECTIONS);
    let sessions = limits.number(&schema::SEALED_SESSIONS);
    Some(Settings {
        socket,
        tcp,
        admin,
        key_events: key_events?,
        connections: connections?,
        sessions: sessions?,
        connection_age: connection_age?,
        session_age: session_age?,
        drain: drain?,
    })
}

/// `None` if there is none or a mistake was noted; a mistake fails the whole file.
fn socket(server: &Fields<'_>, accounts: &dyn Accounts) -> Option<SocketSettings> {
    let path = server.path(&schema::SOCKET);
    let mode = server.parsed(&schema::SOCKET_MODE, parse_mode);
    let owner = server.parsed(&schema::SOCKET_OWNER, |name| {
        id(name, accounts.user(name)).ok_or_else(|| no_such("user", name))
    });
    let group = server.parsed(&schema::SOCKET_GROUP, |name| {
        id(name, accounts.group(name)).ok_or_else(|| no_such("group", name))
    });
    if !server.given(&schema::SOCKET) {
        for key in [&schema::SOCKET_MODE, &schema::SOCKET_OWNER, &schema::SOCKET_GROUP] {
            if server.given(key) {
                server.refuse(key, Wrong::new("there is no socket", "set socket, or remove this"));
            }
        }
    }
    Some(SocketSettings { path: path?, mode: mode?, owner, group })
}

fn tcp(server: &Fields<'_>) -> Option<TcpSettings> {
    let listen = server.parsed(&schema::LISTEN, |text| parse_address(text, schema::LISTEN.example));
    let tls = server.table(&schema::TLS).and_then(|tls| {
        let certificate = tls.path(&schema::CERTIFICATE);
        let key = tls.path(&schema::TLS_KEY);
        let client_ca = tls.path(&schema::CLIENT_CA);
        Some(TlsFiles { certificate: certificate?, key: key?, client_ca: client_ca? })
    });
    match (server.given(&schema::LISTEN), server.given(&schema::TLS)) {
        (true, false) => server.refuse(
            &schema::LISTEN,
            Wrong::new(
                "listen needs tls: there is no plaintext TCP",
                format!(
                    "set tls = {}; `keyward tls dev DIR` makes such files for development",
                    schema::TLS.example
                ),
            ),
        ),
        (false, true) => server.refuse(
            &schema::TLS,
            Wrong::new("tls does nothing without listen", "set listen, or remove tls"),
        ),
        _ => {}
    }
    Some(TcpSettings { listen: listen?, tls: tls? })
}

fn parse_address(text: &str, example: &str) -> Result<SocketAddr, Wrong> {
    text.parse().map_err(|_| {
        Wrong::new(
            format!("{} is not an IP address and a port", quoted(text)),
            format!("write for example {example}, or \"[::1]:PORT\"; names are not looked up"),
        )
    })
}

fn parse_mode(text: &str) -> Result<u32, Wrong> {
    let octal = matches!(text.len(), 3 | 4) && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    let mode = octal.then(|| u32::from_str_radix(text, 8).ok()).flatten();
    mode.filter(|mode| *mode <= 0o777).ok_or_else(|| {
        Wrong::new(
            format!("{} is not a mode from 000 to 0777", quoted(text)),
            r#"write it in octal, such as "0660""#,
        )
    })
}

/// A number is an id; anything else is a name that was looked up.
fn id(text: &str, looked_up: Option<u32>) -> Option<u32> {
    // The highest id means "no change" to chown(2).
    text.parse().ok().filter(|id| *id != u32::MAX).or(looked_up)
}

fn no_such(what: &str, name: &str) -> Wrong {
    Wrong::new(
        format!("there is no {what} {}", quoted(name)),
        format!("create the {what}, or write the number of one"),
    )
}
