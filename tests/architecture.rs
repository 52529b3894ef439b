//! The architecture, as rules that fail.
//!
//! Reads the sources as text. It proves that imports follow the ranks of
//! ARCHITECTURE.md, that there is no circle, that `unsafe` and vendor crates stay in
//! their rooms, and that every file says what it is for.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A room: a module at the top of `src/`, its rank, and the rooms that it may import.
/// Rooms are listed so that each names only rooms above it: hence no circle.
const ROOMS: &[(&str, u8, &[&str])] = &[
    // words
    ("alloc", 0, &[]),
    ("clock", 0, &[]),
    ("secret", 0, &[]),
    ("error", 0, &[]),
    ("op", 0, &[]),
    // decisions: pure, `now` is a value
    ("kek", 1, &["secret", "error"]),
    ("auth", 1, &["error", "kek", "op"]),
    ("envelope", 1, &["secret", "error", "op", "kek"]),
    ("sealed", 1, &["secret"]),
    // recorders
    ("observe", 2, &["error", "op", "kek", "auth"]),
    ("kept", 2, &["error", "kek"]),
    // the seam
    ("backend", 3, &["clock", "secret", "error", "kek", "observe"]),
    // around it
    ("cache", 4, &["secret", "error", "op", "kek", "envelope", "observe"]),
    ("carriers", 4, &["kek"]),
    ("guard", 4, &["clock", "secret", "error", "kek", "backend"]),
    ("lease", 4, &[]),
    // use cases
    (
        "engine",
        5,
        &[
            "clock", "secret", "error", "op", "kek", "auth", "envelope", "observe", "kept",
            "backend", "cache", "carriers", "guard", "lease",
        ],
    ),
    // edges
    ("wire", 6, &[]),
    (
        "api",
        6,
        &[
            "wire", "engine", "carriers", "guard", "observe", "auth", "envelope", "sealed", "kek",
            "op", "secret", "error",
        ],
    ),
    ("server", 6, &["api", "wire", "engine", "carriers", "observe", "auth", "kek", "op", "error"]),
    ("client", 6, &["wire", "sealed", "op", "secret", "error"]),
    ("load", 6, &["client", "wire", "backend", "kek", "op", "secret", "error"]),
    // assembly: may import everything below it
    (
        "config",
        7,
        &["server", "backend", "cache", "lease", "observe", "auth", "kek", "op", "error"],
    ),
    (
        "app",
        7,
        &[
            "config", "server", "api", "engine", "backend", "cache", "observe", "auth", "kek",
            "secret", "kept", "error", "clock", "alloc",
        ],
    ),
    (
        "cli",
        7,
        &[
            "app", "config", "load", "client", "server", "wire", "engine", "backend", "cache",
            "observe", "envelope", "auth", "kek", "op", "secret", "error",
        ],
    ),
];

/// A crate, and the files or folders that alone may name it.
const VENDORS: &[(&str, &[&str])] = &[
    ("cryptoki", &["backend/pkcs11/"]),
    ("cryptoki_sys", &["backend/pkcs11/"]),
    ("prometheus_client", &["observe/"]),
    ("tonic", &["wire.rs", "api/", "server/", "client/", "load/echo.rs"]),
    ("tonic_health", &["server/", "client/sidecar.rs"]),
    ("tonic_reflection", &["server/"]),
    ("tonic_types", &["api/", "client/"]),
    ("prost", &["wire.rs", "api/", "client/", "cli/"]),
    ("rustls", &["server/", "client/", "sealed/agreement.rs", "backend/keyvault/"]),
    ("rustls_native_certs", &["backend/keyvault/transport/tls.rs"]),
    ("azure_core", &["backend/keyvault/"]),
    ("azure_identity", &["backend/keyvault/identity/"]),
    ("azure_security_keyvault_keys", &["backend/keyvault/"]),
    ("webpki", &["server/"]),
    ("rcgen", &["server/", "backend/keyvault/transport/tests.rs"]),
    ("toml", &["config/"]),
    ("clap", &["cli/"]),
    ("rsa", &["kek/public_key.rs"]),
    ("hdrhistogram", &["load/record.rs"]),
    ("sd_notify", &["app.rs"]),
    ("mimalloc", &["alloc.rs"]),
    ("libc", &["alloc.rs", "secret/region"]),
];

/// The only files that may hold `unsafe`.
const UNSAFE: &[&str] = &[
    "alloc.rs",
    "backend/pkcs11/ffi.rs",
    "secret/region.rs",
    "secret/region/tests.rs",
    "secret/scrub.rs",
];

/// Crates that nothing may name: one crypto provider, and one way to Azure: `backend/keyvault/transport/`.
const BANNED: &[&str] =
    &["ring", "openssl", "native_tls", "reqwest", "typespec", "typespec_client_core"];

/// A file past this many lines is two files.
const LINES_MAX: usize = 600;

struct Source {
    /// Below `src/`, with `/`.
    path: String,
    text: String,
}

impl Source {
    fn room(&self) -> &str {
        self.path.split(['/', '.']).next().unwrap_or_default()
    }

    /// The code, without its comments, up to the unit tests, with the line numbers.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text
            .lines()
            .enumerate()
            .take_while(|(_, line)| !line.trim_start().starts_with("#[cfg(test)]\nmod"))
            .map(|(number, line)| (number + 1, line.split("//").next().unwrap_or_default()))
    }

    /// All of the code on one line, to find imports that span lines.
    fn joined(&self) -> String {
        self.code().map(|(_, line)| line).collect::<Vec<_>>().join(" ")
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of sources") {
            let path: PathBuf = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file");
                let path = path.strip_prefix(&root).expect("below src").to_string_lossy();
                sources.push(Source { path: path.replace('\\', "/"), text });
            }
        }
    }
    assert!(sources.len() > 20, "the sources were not found");
    sources
}

/// The rooms that a file names through `crate::`, also in grouped imports.
fn imports(source: &Source) -> BTreeSet<String> {
    let text = source.joined();
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &text[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => found.extend(first_words(group)),
            None => found.extend(word(rest)),
        }
    }
    found
}

/// The first path segment of each member of a group, up to its closing brace.
fn first_words(group: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut depth = 0;
    let mut start = 0;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                words.extend(word(group[start..at].trim_start()));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                words.extend(word(group[start..at].trim_start()));
                start = at + 1;
            }
            _ => {}
        }
    }
    words
}

fn word(text: &str) -> Option<String> {
    let word: String = text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!word.is_empty() && word != "self").then_some(word)
}

fn names_crate(source: &Source, name: &str) -> bool {
    let text = source.joined();
    text.match_indices(name).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = &text[at + name.len()..];
        !before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | ':' | '.' | '"'))
            && after.starts_with("::")
    })
}

#[test]
fn the_table_has_no_circle_and_no_arrow_up() {
    let mut above: BTreeMap<&str, u8> = BTreeMap::new();
    for (room, rank, may) in ROOMS {
        for other in *may {
            let other_rank = above.get(other);
            assert!(other_rank.is_some(), "{room} names {other}, which does not stand above it");
            assert!(
                other_rank <= Some(rank),
                "{room} (rank {rank}) names {other} of a higher rank"
            );
        }
        above.insert(room, *rank);
    }
}

#[test]
fn every_room_is_in_the_table_and_in_the_picture() {
    let picture = include_str!("../ARCHITECTURE.md");
    for source in sources() {
        let room = source.room();
        if matches!(room, "lib" | "main") {
            continue;
        }
        assert!(ROOMS.iter().any(|(name, ..)| *name == room), "{room} has no rank");
        assert!(picture.contains(&format!("`{room}")), "ARCHITECTURE.md does not mention {room}");
    }
}

#[test]
fn imports_point_down() {
    let mut wrong = Vec::new();
    for source in sources() {
        let room = source.room();
        let Some((_, _, may)) = ROOMS.iter().find(|(name, ..)| *name == room) else { continue };
        for other in imports(&source) {
            let is_room = ROOMS.iter().any(|(name, ..)| *name == other);
            if is_room && other != room && !may.contains(&other.as_str()) {
                wrong.push(format!("{} imports {other}", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that the table does not allow:\n{}", wrong.join("\n"));
}

#[test]
fn vendors_stay_in_their_rooms() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (vendor, rooms) in VENDORS {
            let allowed = rooms.iter().any(|room| source.path.starts_with(room));
            if !allowed && names_crate(&source, vendor) {
                wrong.push(format!("{} names {vendor}", source.path));
            }
        }
        for banned in BANNED {
            if names_crate(&source, banned) {
                wrong.push(format!("{} names {banned}", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "vendor crates outside their rooms:\n{}", wrong.join("\n"));
}

#[test]
fn unsafe_stays_in_its_files_and_says_why_it_is_safe() {
    for source in sources() {
        let lines: Vec<_> = source.text.lines().collect();
        for (number, code) in source.code() {
            if !code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe")
            {
                continue;
            }
            assert!(
                UNSAFE.contains(&source.path.as_str()),
                "{}:{number} is unsafe outside {UNSAFE:?}",
                source.path
            );
            let near = &lines[number.saturating_sub(6)..number];
            assert!(
                near.iter().any(|line| line.contains("SAFETY:")),
                "{}:{number} is unsafe without a SAFETY comment",
                source.path
            );
        }
        let allows = source.text.contains("allow(unsafe_code)");
        assert!(
            !allows || UNSAFE.contains(&source.path.as_str()),
            "{} allows unsafe code",
            source.path
        );
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    for source in sources() {
        assert!(source.text.starts_with("//! "), "{} does not open with //!", source.path);
    }
}

#[test]
fn no_file_is_too_long() {
    for source in sources() {
        let lines = source.text.lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines: which two files is it?", source.path);
    }
}

#[test]
fn nothing_is_unfinished() {
    for source in sources() {
        for mark in ["todo!", "unimplemented!", "dbg!(", "FIXME", "XXX", "#[ignore"] {
            assert!(!source.text.contains(mark), "{} has {mark}", source.path);
        }
    }
}

/// What a storage node links.
#[test]
fn the_client_links_no_server_no_token_and_no_cloud() {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--no-default-features", "--features", "client"])
        .args(["--edges", "normal", "--prefix", "none", "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).expect("text");
    let crates: BTreeSet<&str> = tree
        .lines()
        .filter_map(|line| line.split(' ').next())
        .filter(|name| !name.is_empty())
        .collect();
    assert!(crates.contains("h2") && crates.contains("rustls"), "{crates:?}");
    let foreign =
        ["hyper", "tower", "axum", "cryptoki", "azure", "clap", "rsa", "prometheus", "toml"];
    let linked: Vec<_> = crates
        .iter()
        // tower's two crates of traits are what generated clients are made of.
        .filter(|name| !matches!(**name, "tower-service" | "tower-layer"))
        .filter(|name| foreign.iter().any(|foreign| name.starts_with(foreign)))
        .collect();
    assert!(linked.is_empty(), "the client links {linked:?}");
}

/// The rules above are only as good as the eyes of this file.
#[test]
fn the_reader_sees_what_it_should() {
    let source = |text: &str| Source { path: "kek/x.rs".into(), text: text.into() };
    let seen = |text: &str| imports(&source(text)).into_iter().collect::<Vec<_>>();
    assert_eq!(seen("use crate::api::x;"), ["api"]);
    assert_eq!(
        seen("use crate::{error::{Error, Reason}, op::Op, secret};"),
        ["error", "op", "secret"]
    );
    assert_eq!(seen("use crate::{\n    error::Error,\n    server,\n};"), ["error", "server"]);
    assert_eq!(seen("pub(crate) fn f(x: &crate::engine::Engine) {}"), ["engine"]);
    assert_eq!(seen("// use crate::api;"), Vec::<String>::new());
    assert!(names_crate(&source("use tonic::Status;"), "tonic"));
    assert!(names_crate(&source("fn f() -> tonic::Status"), "tonic"));
    assert!(!names_crate(&source("use tonic_health::x;"), "tonic"));
    assert!(!names_crate(&source("// tonic::Status"), "tonic"));
}
