//! Runs scan.py, as root, and reads what it found.
//!
//! It calls nothing clean that was not read: what the kernel does not show must be known
//! and few. Secrets go to the scanner by its standard input.

use std::{
    env, fmt,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

use super::served::run_with_input;

/// A secret to look for.
pub struct Sought {
    /// For messages.
    pub name: String,
    pub bytes: Vec<u8>,
}

/// Copies of one secret, or of a half of one, in one place.
pub struct Copies {
    pub secret: String,
    /// "whole", "first" or "second".
    pub kind: String,
    pub count: u64,
    /// Name of the mapping and its range, or "core dump".
    pub mapping: String,
    pub range: String,
    /// Of the first few.
    addresses: String,
}

/// Addresses only: the secret is nobody's to read in a log.
impl fmt::Display for Copies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { secret, kind, count, mapping, range, addresses } = self;
        write!(f, "{secret}: {count} {kind} in {mapping} {range} at {addresses}")
    }
}

/// What the kernel shows to nobody, or what holds no memory of the process.
const HIDDEN: [&str; 4] = ["/secretmem", "[vvar", "[vsyscall]", "[vdso]"];

/// Looks through the memory of `pid`, which stands still meanwhile, and through a core
/// dump of it, which is made in `dir` and removed.
pub fn scan(pid: u32, sought: &[Sought], dir: &Path) -> Vec<Copies> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let input: String = sought.iter().map(|s| format!("{}={}\n", s.name, hex(&s.bytes))).collect();
    let core = dir.join("core");
    let mut command = as_root();
    command
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/memory/scan.py"))
        .arg("--stop")
        .arg("--core")
        .arg(&core)
        .arg(pid.to_string());
    let output = run_with_input(&mut command, input.as_bytes());
    // It is as large as the process, and root's.
    let _none_was_made = std::fs::remove_file(&core);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the scanner could not look: {stderr}");
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for gap in told["process"]["unreadable"].as_array().expect("a list") {
        let mapping = text(gap, "mapping");
        let hidden = HIDDEN.iter().any(|name| mapping.starts_with(name));
        assert!(hidden, "not all could be read: {gap}");
    }
    let found = ["process", "core"]
        .iter()
        .flat_map(|place| told[place]["found"].as_array().expect("a list").iter().map(copies));
    found.collect()
}

/// A line for each, for messages.
pub fn list(found: &[Copies]) -> String {
    found.iter().map(|copies| format!("{copies}\n")).collect()
}

#[track_caller]
pub fn assert_none(moment: &str, found: &[Copies]) {
    assert!(found.is_empty(), "{moment}: {} places hold copies:\n{}", found.len(), list(found));
}

fn copies(found: &Value) -> Copies {
    Copies {
        secret: text(found, "secret"),
        kind: text(found, "copy"),
        count: found["count"].as_u64().expect("a number"),
        mapping: text(found, "mapping"),
        range: found["range"].as_str().unwrap_or_default().to_owned(),
        addresses: found["addresses"].to_string(),
    }
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_else(|| panic!("no {key} in {value}")).to_owned()
}

/// A Python that runs as root: only root may read the memory of a sidecar.
fn as_root() -> Command {
    let python = env::var_os("KEYWARD_TEST_PYTHON")
        .expect("KEYWARD_TEST_PYTHON names a Python; `make test` makes it");
    if rustix::process::geteuid().is_root() {
        return Command::new(python);
    }
    let may = Command::new("sudo").args(["-n", "true"]).stdin(Stdio::null()).output();
    let may = may.is_ok_and(|output| output.status.success());
    assert!(
        may,
        "this test reads another process's memory: run it as root, or let sudo work without a password"
    );
    let mut command = Command::new("sudo");
    command.arg("-n").arg(python);
    command
}
