//! Keyward: an HSM-backed key-wrapping sidecar.
//!
//! A database encrypts its files with data encryption keys (DEKs) and keeps each
//! DEK only *wrapped* by a key-encryption key (KEK) that lives in an HSM. This
//! crate is the sidecar that wraps and unwraps beside a storage node, and the
//! client library ([`client`]) that the node calls it with.
//!
//! Modules are listed by rank: each may import only those above it in this list.
//! ARCHITECTURE.md draws the picture and `tests/architecture.rs` holds the table.
//!
//! | feature | what it brings |
//! |---|---|
//! | `server` (default) | the sidecar, its backends and the command line |
//! | `client` | the client library alone: no server, no PKCS#11 |

#![deny(unsafe_code, missing_docs, unreachable_pub, rustdoc::broken_intra_doc_links)]

// rank 0: words
#[cfg(feature = "server")]
pub mod alloc;
#[cfg(feature = "server")]
pub mod clock;
pub mod error;
pub mod op;
pub mod secret;

// rank 1: decisions
#[cfg(feature = "server")]
pub mod auth;
#[cfg(feature = "server")]
pub mod envelope;
#[cfg(feature = "server")]
pub mod kek;
#[cfg(feature = "client")]
pub mod sealed;

// rank 2: recorders
#[cfg(feature = "server")]
pub mod kept;
#[cfg(feature = "server")]
pub mod observe;

// rank 3: the seam
#[cfg(feature = "server")]
pub mod backend;

// rank 4: around it
#[cfg(feature = "server")]
pub mod cache;
#[cfg(feature = "server")]
pub mod carriers;
#[cfg(feature = "server")]
pub mod guard;
#[cfg(feature = "server")]
pub mod lease;

// rank 5: use cases
#[cfg(feature = "server")]
pub mod engine;

// rank 6: edges
#[cfg(feature = "server")]
pub mod api;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "server")]
pub mod load;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "client")]
pub mod wire;

// rank 7: assembly
#[cfg(feature = "server")]
pub mod app;
#[cfg(feature = "server")]
pub mod cli;
#[cfg(feature = "server")]
pub mod config;
