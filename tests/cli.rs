//! The command as a process: what scripts see of it, as far as no sidecar and no HSM
//! is needed.

use std::{
    fs,
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

const NO_SIDECAR: &str = "/nonexistent/keyward.sock";

/// How a run ended.
struct Ran {
    code: i32,
    stdout: Vec<u8>,
    stderr: String,
}

impl Ran {
    fn stdout(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("text")
    }

    fn json_error(&self) -> Value {
        assert!(self.stdout.is_empty());
        serde_json::from_str(&self.stderr).unwrap_or_else(|e| panic!("{e}: {}", self.stderr))
    }
}

fn keyward(args: &[&str], stdin: &[u8]) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_keyward"))
        .args(args)
        .env_remove("KEYWARD_SOCKET")
        .env_remove("KEYWARD_CONFIG")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command runs");
    // A command that does not want its input closes it.
    let _not_wanted = child.stdin.take().expect("a pipe").write_all(stdin);
    let Output { status, stdout, stderr } = child.wait_with_output().expect("the command ends");
    let code = status.code().expect("the command is not killed by a signal");
    let stderr = String::from_utf8(stderr).expect("errors are text");
    assert!(!stderr.contains("panicked"), "{stderr}");
    Ran { code, stdout, stderr }
}

fn write(dir: &TempDir, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.path().join(name);
    fs::write(&path, content).expect("a file");
    path
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Every line has a label, and an error comes first.
fn assert_labelled(stderr: &str) {
    assert!(stderr.starts_with("error: "), "{stderr}");
    for line in stderr.lines() {
        let labelled = ["error: ", "cause: ", "fix: "].iter().any(|label| line.starts_with(label));
        assert!(labelled, "{line}");
    }
}

fn temp_dir() -> TempDir {
    TempDir::new().expect("a temporary directory")
}

// === usage ===

#[test]
fn wrong_usage_exits_with_2_and_says_error() {
    for args in [
        &["serve"][..],
        &["no-such-command"],
        &["wrap"],
        &["wrap", "--kek", "a", "--socket", "s", "--address", "https://h:1"],
        &["wrap", "--kek", "a", "--address", "https://h:1"],
        &["unwrap", "--raw"],
        &["unwrap", "--raw", "--kek", "a", "--algorithm", "RSA1_5"],
        &["generate", "--kek", "a", "--length", "15"],
        &["generate", "--kek", "a", "--length", "65"],
        &["generate", "--kek", "a"],
        &["generate", "--kek", "a", "--timeout", "10"],
        &["key", "create", "--config", "f", "--type", "des", "n"],
        &["key", "create", "--config", "f", "--size", "1024", "n"],
        &["key", "create", "--config", "f", "--type", "aes", "--public-key-out", "p", "n"],
        &["key", "create", "--config", "f", "a/b"],
        &["completions", "dos"],
        &["bench", "hot"],
        &["bench", "lukewarm", "--kek", "a"],
        &["bench", "hot", "--key", "k"],
        &["bench", "hot", "--key", "k", "--config", "f", "--socket", "s"],
        &["bench", "hot", "--kek", "a", "--backend", "b"],
        &["bench", "hot", "--kek", "a", "--callers", "0"],
        &["bench", "hot", "--kek", "a", "--max-regression", "5"],
        &["bench", "cold", "--kek", "a", "--skew", "1"],
        &["bench", "boot", "--kek", "a", "--rate", "5"],
        &["bench", "boot", "--kek", "a", "--unary", "--stream"],
    ] {
        let ran = keyward(args, b"");
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.starts_with("error: "), "{args:?}: {}", ran.stderr);
        assert!(ran.stdout.is_empty(), "{args:?}");

        let json = keyward(&[args, &["--json"]].concat(), b"");
        if json.code == 2 {
            assert!(json.json_error()["error"].is_string(), "{args:?}");
        }
    }
}

#[test]
fn help_and_version_are_no_errors() {
    for args in [&["--help"][..], &["help", "unwrap"], &["key", "create", "--help"], &["--version"]]
    {
        let ran = keyward(args, b"");
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{args:?}");
        assert!(!ran.stdout.is_empty());
    }
}

// === configuration ===

#[test]
fn the_example_is_the_one_in_the_repository_and_has_no_mistake() {
    let example = keyward(&["config", "example"], b"");
    assert_eq!(example.code, 0);
    assert_eq!(example.stdout(), include_str!("../keyward.example.toml"));
    let dir = temp_dir();
    let file = write(&dir, "keyward.toml", example.stdout);
    let check = keyward(&["config", "check", text(&file)], b"");
    assert_eq!((check.code, check.stderr.as_str()), (0, ""));
    let check = keyward(&["--json", "config", "check", text(&file)], b"");
    let said: Value = serde_json::from_str(check.stdout()).expect("JSON");
    assert_eq!(said["keks"], serde_json::json!(["orders-db"]));
}

#[test]
fn three_mistakes_are_all_told_with_file_line_and_key() {
    let dir = temp_dir();
    let bad = include_str!("../keyward.example.toml")
        .replace("\nsocket = ", "\nsokcet = ")
        .replace("\nbackend = \"hsm\"", "\nbackend = \"hms\"")
        .replace("#algorithm = \"RSA-OAEP-256\"", "algorithm = \"RSA1_5\"");
    let file = write(&dir, "keyward.toml", &bad);
    let line = |needle: &str| {
        1 + bad.lines().position(|line| line.starts_with(needle)).expect("the line is there")
    };
    let expected = [
        (line("[server]"), "server"),
        (line("sokcet"), "server.sokcet"),
        (line("backend = "), "kek[1].backend"),
        (line("algorithm"), "kek[1].algorithm"),
    ];

    for args in [&["config", "check", text(&file)][..], &["serve", "--config", text(&file)]] {
        let ran = keyward(args, b"");
        assert_eq!((ran.code, ran.stdout.len()), (1, 0));
        assert_labelled(&ran.stderr);
        for (line, key) in expected {
            let place = format!("cause: {}:{line}: {key}: ", file.display());
            assert!(ran.stderr.contains(&place), "{place}\nis not in\n{}", ran.stderr);
        }
        assert!(ran.stderr.contains("fix: did you mean socket?"), "{}", ran.stderr);
        assert!(ran.stderr.contains("fix: did you mean hsm?"), "{}", ran.stderr);
    }

    let error = keyward(&["config", "check", text(&file), "--json"], b"").json_error();
    let mistakes = error["mistakes"].as_array().expect("a list");
    let places: Vec<_> = mistakes
        .iter()
        .map(|m| {
            let line = m["line"].as_u64().expect("a line");
            (usize::try_from(line).expect("a line"), m["key"].as_str().expect("a key"))
        })
        .collect();
    assert_eq!(places, expected);
}

#[test]
fn a_file_that_cannot_be_a_configuration_is_refused_with_a_reason() {
    let dir = temp_dir();
    let cases = [
        (dir.path().join("missing"), "No such file"),
        (dir.path().to_owned(), "directory"),
        (write(&dir, "latin1", b"[server]\n# \xe4\n"), "not UTF-8 from byte 12 on"),
        (write(&dir, "huge", vec![b'\n'; 2 * 1024 * 1024]), "longer than 1048576 bytes"),
        (write(&dir, "deep", "a = ".to_owned() + &"[".repeat(100_000)), "fix: "),
        (PathBuf::from("/dev/zero"), "longer than 1048576 bytes"),
    ];
    for (file, said) in cases {
        for command in [&["config", "check"][..], &["key", "list", "--config"]] {
            let ran = keyward(&[command, &[text(&file)]].concat(), b"");
            assert_eq!(ran.code, 1, "{}", file.display());
            assert_labelled(&ran.stderr);
            assert!(ran.stderr.contains(said), "{said} is not in {}", ran.stderr);
        }
    }
}

#[test]
fn an_officer_must_name_the_backend_if_there_are_two() {
    let dir = temp_dir();
    let backend = |name| {
        format!(
            "[backend.{name}]\ntype = \"pkcs11\"\nmodule = \"m\"\ntoken = \"t\"\npin_env = \"P\"\n"
        )
    };
    let file = write(&dir, "two.toml", backend("a") + &backend("b"));
    let ran = keyward(&["key", "list", "--config", text(&file)], b"");
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("a, b"), "{}", ran.stderr);
    let ran = keyward(&["key", "list", "--config", text(&file), "--backend", "c"], b"");
    assert_eq!(ran.code, 1);
    assert_labelled(&ran.stderr);
}

// === bench ===

#[test]
fn a_bench_that_cannot_begin_leaves_nothing_and_says_why() {
    let dir = temp_dir();
    let page = dir.path().join("page.html");
    let args = ["bench", "hot", "--kek", "a", "--socket", NO_SIDECAR, "--html", text(&page)];
    let ran = keyward(&args, b"");
    assert_eq!((ran.code, ran.stdout()), (1, ""));
    assert_labelled(&ran.stderr);
    assert!(ran.stderr.contains(NO_SIDECAR), "{}", ran.stderr);
    assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 0);
}

#[test]
fn a_baseline_that_is_none_is_refused_before_anything_is_measured() {
    let dir = temp_dir();
    let no_json = write(&dir, "baseline", "p50 5");
    let args = ["bench", "hot", "--kek", "a", "--socket", NO_SIDECAR, "--compare"];
    for (file, told) in [(text(&no_json), "is not JSON"), ("/nonexistent/b.json", "cannot read")] {
        let ran = keyward(&[&args[..], &[file]].concat(), b"");
        assert_eq!(ran.code, 1);
        assert!(ran.stderr.contains(told), "{}", ran.stderr);
    }
}

// === DEKs in and out ===

#[test]
fn without_a_sidecar_the_error_names_the_socket() {
    for args in [
        &["wrap", "--kek", "a"][..],
        &["kek", "list"],
        &["kek", "show", "a"],
        &["generate", "--kek", "a", "--no-plaintext"],
    ] {
        let args = [args, &["--socket", NO_SIDECAR, "--timeout", "5s"]].concat();
        let ran = keyward(&args, &[7; 32]);
        assert_eq!((ran.code, ran.stdout.len()), (1, 0), "{args:?}");
        assert_labelled(&ran.stderr);
        assert!(ran.stderr.contains(NO_SIDECAR), "{}", ran.stderr);
        let error = keyward(&[&args[..], &["--json"]].concat(), &[7; 32]).json_error();
        assert_eq!(error["reason"], "SIDECAR_UNREACHABLE");
    }
}

#[test]
fn the_socket_comes_from_the_environment_unless_it_is_given() {
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keyward"));
        command.args(args).env("KEYWARD_SOCKET", "/nonexistent/from-env").stdin(Stdio::null());
        String::from_utf8(command.output().expect("the command runs").stderr).expect("text")
    };
    assert!(run(&["kek", "list"]).contains("/nonexistent/from-env"));
    assert!(run(&["kek", "list", "--socket", NO_SIDECAR]).contains(NO_SIDECAR));
    // Another way to the sidecar does not clash with the environment.
    let tls = ["--tls-ca", "/x", "--tls-certificate", "/x", "--tls-key", "/x"];
    let args = [&["kek", "list", "--address", "https://localhost:1"], &tls[..]].concat();
    assert!(run(&args).contains("/x"));
}

#[test]
fn input_that_cannot_be_right_is_refused_before_the_sidecar_is_asked() {
    let dir = temp_dir();
    let context = write(&dir, "context", vec![1; 4097]);
    let empty = write(&dir, "empty", b"");
    let socket = ["--socket", NO_SIDECAR];
    let cases: [(&[&str], &[u8], &str); 9] = [
        (&["wrap", "--kek", "a"], &[7; 65], "at most 64 bytes"),
        (&["wrap", "--kek", "a"], b"", "standard input is empty"),
        (&["wrap", "--kek", "a", "/dev/zero"], b"", "at most 64 bytes"),
        (&["wrap", "--kek", "a", "--context-file", text(&context)], &[7; 32], "at most 4096"),
        (&["wrap", "--kek", "a", "--context-file", text(&empty)], &[7; 32], "is empty"),
        (&["unwrap"], &[0xff; 32], "not a serialized WrappedDek"),
        (&["unwrap"], &[0; 5000], "at most 4096 bytes"),
        (&["unwrap", "--raw", "--kek", "a"], &[0; 1025], "at most 1024 bytes"),
        (&["rewrap", text(dir.path())], b"", "directory"),
    ];
    for (args, stdin, said) in cases {
        let ran = keyward(&[args, &socket].concat(), stdin);
        assert_eq!((ran.code, ran.stdout.len()), (1, 0), "{args:?}");
        assert_labelled(&ran.stderr);
        assert!(ran.stderr.contains(said), "{said} is not in {}", ran.stderr);
    }
}

/// The other end of a new terminal, and the one that keeps it open.
fn terminal() -> (fs::File, std::os::fd::OwnedFd) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&ours).expect("a terminal");
    unlockpt(&ours).expect("a terminal");
    let name = ptsname(&ours, Vec::new()).expect("its name").into_string().expect("text");
    let theirs = fs::OpenOptions::new().read(true).write(true).open(name).expect("its end");
    (theirs, ours)
}

#[test]
fn no_dek_goes_to_a_terminal_and_none_is_typed() {
    let run = |args: &[&str], stdin: Stdio| {
        let (theirs, _ours) = terminal();
        let output = Command::new(env!("CARGO_BIN_EXE_keyward"))
            .args(args)
            .args(["--socket", NO_SIDECAR])
            .stdin(stdin)
            .stdout(theirs)
            .output()
            .expect("the command runs");
        (output.status.code(), String::from_utf8(output.stderr).expect("text"))
    };
    let dek: [&[&str]; 3] = [
        &["unwrap"],
        &["unwrap", "--json"],
        &["generate", "--kek", "a", "--wrapped-out", "/dev/null"],
    ];
    for args in dek {
        let (code, stderr) = run(args, Stdio::null());
        assert_eq!(code, Some(2), "{args:?}");
        assert!(stderr.contains("a DEK is not shown on a terminal"), "{stderr}");
    }
    for args in
        [&["wrap", "--kek", "a"][..], &["rewrap"], &["generate", "--kek", "a", "--no-plaintext"]]
    {
        let (code, stderr) = run(args, Stdio::null());
        assert_eq!(code, Some(2), "{args:?}");
        assert!(stderr.contains("which a terminal does not show"), "{stderr}");
    }
    // As a file, and as standard input.
    let (theirs, ours) = terminal();
    let name = rustix::pty::ptsname(&ours, Vec::new()).expect("its name");
    let name = name.to_str().expect("text");
    let ran = keyward(&["unwrap", "--out", name, "--socket", NO_SIDECAR], b"");
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    let (code, stderr) = run(&["wrap", "--kek", "a", "--json"], theirs.into());
    assert_eq!(code, Some(2));
    assert!(stderr.contains("standard input is a terminal"), "{stderr}");
}

#[test]
fn a_failed_command_leaves_no_file_and_changes_none() {
    let dir = temp_dir();
    let old = write(&dir, "old", b"precious");
    let new = dir.path().join("new");
    for out in [&old, &new] {
        let args = ["wrap", "--kek", "a", "--socket", NO_SIDECAR, "--out", text(out)];
        assert_eq!(keyward(&args, &[7; 32]).code, 1);
    }
    assert_eq!(fs::read(&old).expect("a file"), b"precious");
    let left: Vec<_> = fs::read_dir(dir.path()).expect("a directory").collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

// === the rest ===

#[test]
fn development_certificates_are_made_once() {
    let dir = temp_dir();
    let tls = dir.path().join("tls");
    let ran = keyward(&["tls", "dev", text(&tls), "--json"], b"");
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    let made: Value = serde_json::from_str(ran.stdout()).expect("JSON");
    let key = made["client_key"].as_str().expect("a path");
    let mode = fs::metadata(key).expect("a key").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let again = keyward(&["tls", "dev", text(&tls)], b"");
    assert_eq!(again.code, 1);
    assert_labelled(&again.stderr);
}

#[test]
fn completions_are_printed_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = keyward(&["completions", shell], b"");
        assert_eq!(ran.code, 0, "{shell}");
        assert!(ran.stdout().contains("wrapped-out"), "{shell}");
    }
}

#[test]
fn manual_pages_are_printed_and_written() {
    let page = keyward(&["man"], b"");
    assert_eq!(page.code, 0);
    assert!(page.stdout().contains(".TH keyward"));
    let dir = temp_dir();
    let pages = dir.path().join("man1");
    assert_eq!(keyward(&["man", text(&pages)], b"").code, 0);
    for page in ["keyward.1", "keyward-wrap.1", "keyward-key-create.1"] {
        assert!(pages.join(page).exists(), "{page}");
    }
}

#[test]
fn a_reader_that_has_read_enough_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_keyward"))
        .args(["config", "example"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("the command ends");
    assert!(output.status.success());
    assert!(output.stderr.is_empty());
}

#[test]
fn a_full_device_is_a_failure() {
    let dir = temp_dir();
    let full = dir.path().join("full");
    symlink("/dev/full", &full).expect("a link");
    let output = Command::new(env!("CARGO_BIN_EXE_keyward"))
        .args(["config", "example"])
        .stdout(fs::OpenOptions::new().write(true).open(&full).expect("the device"))
        .output()
        .expect("the command runs");
    assert_eq!(output.status.code(), Some(1));
    assert_labelled(&String::from_utf8(output.stderr).expect("text"));
}
