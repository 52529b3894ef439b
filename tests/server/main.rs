//! The server and the client library against each other, and against what neither
//! would send: real gRPC over a Unix socket and mutual TLS, with a fake backend.

#[path = "../support/mod.rs"]
mod support;

mod admin;
mod blocking;
mod cache;
mod calls;
mod guard;
mod hostile;
mod hostile_server;
mod lifecycle;
mod purge;
mod revocation;
mod rotation;
mod rounds;
mod sealed;
mod several;
mod shared;
mod states;
mod streams;
mod tls;
mod unwraps;
mod upheaval;
mod watch;
