//! The configuration: one TOML file, read into checked values.
//!
//! Every mistake is told at once, with its line and how to mend it; what is not told
//! is right, as far as the file alone can show (whether a token is there, is for the
//! backend to find out). Each section becomes the settings type of the module that
//! it is for, so nothing below rank 7 knows this module.
//!
//! [`parse`] does no I/O but through the [`Accounts`] that it is given.

mod accounts;
mod backend;
mod cache;
pub mod duration;
mod example;
mod fields;
mod kek;
mod log;
mod mistake;
mod policy;
mod reader;
mod schema;
mod server;
#[cfg(test)]
mod tests;
mod vault;

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

pub use accounts::{Accounts, HostAccounts, NoAccounts};
pub use backend::BackendConfig;
pub use cache::CacheConfig;
pub use example::example;
pub use kek::KekConfig;
pub use log::LogConfig;
pub use mistake::{Mistake, Mistakes};

use crate::{auth::Policy, server::Settings};
use fields::Fields;
use mistake::{Report, Wrong};
use reader::Document;

/// Longest file, in bytes.
pub const FILE_MAX_BYTES: usize = 1024 * 1024;

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Listeners and their bounds.
    pub server: Settings,
    /// Threads that serve callers.
    pub threads: usize,
    /// The directory for what outlasts a restart.
    pub state: Option<PathBuf>,
    /// How to log.
    pub log: LogConfig,
    /// At least one; names are distinct.
    pub backends: Vec<BackendConfig>,
    /// At least one, in the order of the file; names are distinct, backends exist.
    pub keks: Vec<KekConfig>,
    /// What is kept of unwrapped DEKs, and under what proof.
    pub cache: CacheConfig,
    /// Who may do what.
    pub policy: Policy,
}

/// Reads and checks a file.
pub fn load(file: &Path) -> Result<Config, Mistakes> {
    let text = read_file(file).map_err(|wrong| Mistakes::of_file(file, wrong))?;
    parse(file, &text, &HostAccounts)
}

/// Reads and checks only the backends of a file: what an officer needs who creates
/// the first keys, before there is a KEK or a caller to configure.
pub fn load_backends(file: &Path) -> Result<Vec<BackendConfig>, Mistakes> {
    let text = read_file(file).map_err(|wrong| Mistakes::of_file(file, wrong))?;
    let report = Report::new(file, &text);
    let backends = Document::parse(&text, directory(file), &report)
        .and_then(|document| read_backends(&document));
    report.finish(backends)
}

/// Checks the text of a file. `file` is what mistakes call it and what relative paths
/// are relative to; it is not opened.
pub fn parse(file: &Path, text: &str, accounts: &dyn Accounts) -> Result<Config, Mistakes> {
    let report = Report::new(file, text);
    let config = Document::parse(text, directory(file), &report)
        .and_then(|document| read(&document, accounts));
    report.finish(config)
}

/// `Some(None)` if none is set; `None` if it is set and wrong.
fn state(server: &Fields<'_>) -> Option<Option<PathBuf>> {
    let state = server.path(&schema::STATE);
    (state.is_some() || !server.given(&schema::STATE)).then_some(state)
}

fn read(document: &Document<'_>, accounts: &dyn Accounts) -> Option<Config> {
    document.check_sections();
    // Read every section before any of them ends the reading: all mistakes are noted.
    let server = document.single(&schema::SERVER);
    let threads = server.number(&schema::THREADS);
    let state = state(&server);
    let server = server::read(&server, &document.single(&schema::LIMITS), accounts);
    let log = log::read(&document.single(&schema::LOG));
    let cache = cache::read(&document.single(&schema::CACHE), &document.single(&schema::LEASE));
    let backends = each_backend(document);
    let known: Vec<_> = backends.iter().flatten().collect();
    let names = document.names(&schema::BACKEND);
    let keks = kek::read(&document.repeated(&schema::KEK), &names, &known);
    let backends: Option<Vec<_>> = backends.into_iter().collect();
    if !document.has(&schema::KEK) {
        let wrong = Wrong::new("no KEK is configured: there is nothing to serve", ADD_KEK);
        document.missing(&schema::KEK, wrong);
    }
    let policy = policy::read(&document.repeated(&schema::POLICY));
    if !document.has(&schema::POLICY) {
        let wrong = Wrong::new("no policy is configured: nobody could call", ADD_POLICY);
        document.missing(&schema::POLICY, wrong);
    }
    Some(Config {
        server: server?,
        threads: threads?,
        state: state?,
        log: log?,
        backends: backends?,
        keks: keks?,
        cache: cache?,
        policy: policy?,
    })
}

const ADD_BACKEND: &str = "add a [backend.NAME] section; `keyward config example` shows one";
const ADD_KEK: &str = "add a [[kek]] section; `keyward config example` shows one";
const ADD_POLICY: &str =
    r#"add for example [[policy]] who = ["uid:0"] may = ["wrap", "unwrap"] kek = ["*"]"#;

fn read_backends(document: &Document<'_>) -> Option<Vec<BackendConfig>> {
    each_backend(document).into_iter().collect()
}

/// `None` stands for one with a mistake.
fn each_backend(document: &Document<'_>) -> Vec<Option<BackendConfig>> {
    let sections = document.named(&schema::BACKEND);
    if !document.has(&schema::BACKEND) {
        let wrong = Wrong::new("no backend is configured: no KEK could live anywhere", ADD_BACKEND);
        document.missing(&schema::BACKEND, wrong);
    }
    sections.iter().map(|(name, fields)| backend::read(name, fields)).collect()
}

/// What relative paths are relative to.
fn directory(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new(""))
}

/// Reads a file of bounded length.
fn read_file(file: &Path) -> Result<String, Wrong> {
    let unreadable = |error: io::Error| {
        let fix = match error.kind() {
            io::ErrorKind::NotFound => "check the path; `keyward config example` writes a file",
            io::ErrorKind::PermissionDenied => "make the file readable for this user",
            io::ErrorKind::IsADirectory => "name a file, not a directory",
            _ => "see whether the file can be read",
        };
        Wrong::new(format!("cannot be read: {error}"), fix)
    };
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too long from one that just fits.
    let mut bounded = File::open(file).map_err(unreadable)?.take(FILE_MAX_BYTES as u64 + 1);
    bounded.read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > FILE_MAX_BYTES {
        return Err(Wrong::new(
            format!("longer than {FILE_MAX_BYTES} bytes"),
            "see whether this is the right file",
        ));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        Wrong::new(
            format!("not UTF-8 from byte {} on", valid + 1),
            "write the file in UTF-8, as TOML asks",
        )
    })
}
