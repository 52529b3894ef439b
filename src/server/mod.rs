//! Listeners, TLS, readiness and drain.

mod settings;

pub use settings::{Settings, SocketSettings, TcpSettings, TlsFiles};
