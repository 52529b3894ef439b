//! `[server]` and `[limits]`: where callers reach the sidecar, and bounds.

use super::{Form, Key, Kind, Section};

pub(in crate::config) static SERVER: Section = Section {
    name: "server",
    form: Form::Single,
    shown: true,
    doc: "Where callers reach the sidecar: a Unix socket, TCP with mutual TLS, or both.",
    keys: &[
        &SOCKET,
        &SOCKET_MODE,
        &SOCKET_OWNER,
        &SOCKET_GROUP,
        &LISTEN,
        &TLS,
        &ADMIN,
        &KEY_EVENTS,
        &CONNECTION_AGE,
        &SESSION_AGE,
        &DRAIN,
        &THREADS,
        &STATE,
    ],
};

pub(in crate::config) static SOCKET: Key =
    Key::optional("socket", Kind::Path, r#""/run/keyward/keyward.sock""#)
        .shown()
        .doc("Path of the Unix socket. Callers are known by their uid and primary gid.");

pub(in crate::config) static SOCKET_MODE: Key =
    Key::default("socket_mode", Kind::Text, r#""0660""#).doc(
        "Mode of the socket, in octal. Who may connect may still do only what a policy allows.",
    );

pub(in crate::config) static SOCKET_OWNER: Key =
    Key::optional("socket_owner", Kind::Text, r#""keyward""#)
        .doc("Owner of the socket, a name or a number, if not the sidecar's own user.");

pub(in crate::config) static SOCKET_GROUP: Key =
    Key::optional("socket_group", Kind::Text, r#""database""#)
        .doc("Group of the socket, a name or a number, if not the sidecar's own.");

pub(in crate::config) static LISTEN: Key =
    Key::optional("listen", Kind::Text, r#""127.0.0.1:7443""#)
        .doc("Address and port for TCP. It needs tls: there is no plaintext TCP.");

pub(in crate::config) static TLS: Key = Key::optional(
    "tls",
    Kind::Table(&[&CERTIFICATE, &TLS_KEY, &CLIENT_CA]),
    r#"{ certificate = "tls/server.pem", key = "tls/server.key", client_ca = "tls/ca.pem" }"#,
)
.doc(
    "PEM files for TCP: the server's certificate with its intermediates, its private key, and\n\
     the authorities whose client certificates are accepted. TLS 1.3 only.\n\
     `keyward tls dev DIR` makes a set for development.",
);

pub(in crate::config) static CERTIFICATE: Key =
    Key::required("certificate", Kind::Path, r#""tls/server.pem""#);
pub(in crate::config) static TLS_KEY: Key = Key::required("key", Kind::Path, r#""tls/server.key""#);
pub(in crate::config) static CLIENT_CA: Key =
    Key::required("client_ca", Kind::Path, r#""tls/ca.pem""#);

pub(in crate::config) static ADMIN: Key = Key::optional("admin", Kind::Text, r#""127.0.0.1:9464""#)
    .doc(
        "Address and port for /metrics (Prometheus), /healthz and /readyz over plain HTTP, to\n\
     anybody who can reach it: metrics name the KEKs, and hold no secret.",
    );

pub(in crate::config) static KEY_EVENTS: Key = Key::default("key_events", Kind::Flag, "false").doc(
    "Take events of key vaults (Azure Event Grid) as POST /events there, and look at the keys that\n\
     they name at once. Whoever can reach it can have a key looked at, no more often than every\n\
     ten seconds. Put a gateway with HTTPS in front: Event Grid posts to nothing else.",
);

pub(in crate::config) static CONNECTION_AGE: Key =
    Key::default("connection_age", Kind::Duration { min: "1s", max: "24h" }, r#""10m""#).doc(
        "How long a connection lives, or up to a tenth less; calls in work get a minute more. Our\n\
         client opens another without an error; others have to send again what just missed it. It\n\
         bounds how long a DEK can stay in the buffers of a connection that it went over.",
    );

pub(in crate::config) static SESSION_AGE: Key =
    Key::default("session_age", Kind::Duration { min: "1s", max: "24h" }, r#""10m""#).doc(
        "How long a session of sealed delivery goes on. What was recorded of it cannot be opened\n\
         with any key afterwards. Our client opens another before that.",
    );

pub(in crate::config) static DRAIN: Key =
    Key::default("drain", Kind::Duration { min: "0s", max: "10m" }, r#""20s""#)
        .doc("How long calls in work may still take after SIGTERM.");

pub(in crate::config) static STATE: Key =
    Key::optional("state", Kind::Path, r#""/var/lib/keyward""#).doc(
        "Directory for what outlasts a restart: which KEKs operators revoked. Only the sidecar's\n\
     user may write there. Without it a revoked KEK is back after a restart.",
    );

pub(in crate::config) static THREADS: Key =
    Key::default("threads", Kind::Number { min: 1, max: 64 }, "1").doc(
        "Threads that serve callers; the HSM has its own. One answers more calls, sooner, than\n\
         two on a machine of two cores; more pay with many connections on many cores.",
    );

pub(in crate::config) static LIMITS: Section = Section {
    name: "limits",
    form: Form::Single,
    shown: false,
    doc: "Bounds.",
    keys: &[&CONNECTIONS, &SEALED_SESSIONS],
};

pub(in crate::config) static CONNECTIONS: Key =
    Key::default("connections", Kind::Number { min: 1, max: 65_536 }, "4096").doc(
        "Connections at once. Beyond it new ones are closed at once. Each takes an open file; so\n\
             do up to 1024 of each listener whose peer is not known yet.",
    );

pub(in crate::config) static SEALED_SESSIONS: Key =
    Key::default("sessions", Kind::Number { min: 4, max: 65_536 }, "4096").doc(
        "Sessions of sealed delivery at once; one caller has at most a quarter of them, and a new\n\
         one ends its oldest. Each takes 64 bytes of locked memory.",
    );
