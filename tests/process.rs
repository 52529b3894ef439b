//! The sidecar as a process: what it asks of the kernel for itself, and how it does in
//! bad surroundings: nowhere to write its log to, a device that does not answer when it
//! starts.

mod support;

use std::{
    fs::{self, File},
    io::Read,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use support::token::{LABEL, TestToken};

/// A sidecar on a token of its own, killed when dropped.
struct Process {
    child: Child,
    socket: PathBuf,
    token: TestToken,
}

impl Process {
    fn start(pin_file: Option<&str>, log: Stdio) -> Self {
        let token = TestToken::softhsm();
        token.generate_rsa(2048, "kek", "01");
        let (dir, uid) = (token.dir.path(), rustix::process::geteuid().as_raw());
        let socket = dir.join("k.sock");
        let pin_file = pin_file.map_or_else(|| token.pin_file.clone(), |name| dir.join(name));
        if !pin_file.exists() {
            assert!(Command::new("mkfifo").arg(&pin_file).status().unwrap().success());
        }
        let config = dir.join("keyward.toml");
        let text = format!(
            r#"
            [server]
            socket = {socket:?}
            [backend.hsm]
            type = "pkcs11"
            module = {:?}
            token = "{LABEL}"
            pin_file = {pin_file:?}
            [[kek]]
            name = "kek"
            backend = "hsm"
            algorithm = "RSA-OAEP"
            [[policy]]
            who = ["uid:{uid}"]
            may = ["wrap", "unwrap", "describe"]
            kek = ["*"]
            "#,
            token.module
        );
        fs::write(&config, text).unwrap();
        let child = token
            .command(env!("CARGO_BIN_EXE_keyward"))
            .args(["serve", "--config"])
            .arg(config)
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, socket, token }
    }

    fn kek_show(&self) -> bool {
        let mut show = self.token.command(env!("CARGO_BIN_EXE_keyward"));
        let show = show.args(["kek", "show", "kek", "--socket"]).arg(&self.socket);
        show.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
    }

    /// Sends SIGTERM; the exit code, if it ends in time.
    fn terminate(&mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            sleep(Duration::from_millis(20));
        }
        None
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _has_ended = self.child.kill();
        let _status = self.child.wait();
    }
}

#[test]
fn a_log_that_cannot_be_written_stops_nothing() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut process = Process::start(None, full.into());
    let until = Instant::now() + Duration::from_secs(20);
    while !process.kek_show() {
        assert!(process.child.try_wait().unwrap().is_none(), "the sidecar ended");
        assert!(Instant::now() < until, "the sidecar does not serve");
        sleep(Duration::from_millis(50));
    }
    assert!(process.kek_show());
    assert_eq!(process.terminate(), Some(0));
}

#[test]
fn the_sidecar_turns_its_core_dumps_off() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    // What it would inherit otherwise: as large as this machine lets them be.
    let Rlimit { maximum, .. } = getrlimit(Resource::Core);
    setrlimit(Resource::Core, Rlimit { current: maximum, maximum }).unwrap();
    let mut process = Process::start(None, Stdio::null());
    let until = Instant::now() + Duration::from_secs(20);
    while !process.kek_show() {
        assert!(Instant::now() < until, "the sidecar does not serve");
        sleep(Duration::from_millis(50));
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", process.child.id())).unwrap();
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().collect::<Vec<_>>(), ["0", "0", "bytes"]);
    assert_eq!(process.terminate(), Some(0));
}

#[test]
fn a_limit_of_open_files_below_what_connections_may_need_is_told() {
    use rustix::process::{Resource, Rlimit, setrlimit};

    // What it inherits, and cannot raise.
    let limit = Some(512);
    setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit }).unwrap();
    let (mut reader, log) = std::io::pipe().unwrap();
    let mut process = Process::start(None, log.into());
    let until = Instant::now() + Duration::from_secs(20);
    while !process.kek_show() {
        assert!(Instant::now() < until, "the sidecar does not serve");
        sleep(Duration::from_millis(50));
    }
    assert_eq!(process.terminate(), Some(0));
    let mut log = String::new();
    reader.read_to_string(&mut log).unwrap();
    let line = log.lines().find(|line| line.contains("open files")).expect("a warning");
    // 4096 connections by default, 1024 strangers on the socket, and some.
    for part in ["WARN", "limit=512", "needed=5248", "LimitNOFILE", "limits.connections"] {
        assert!(line.contains(part), "{part} in {line}");
    }
}

#[test]
fn a_device_that_keeps_the_start_waiting_does_not_keep_the_stop_waiting() {
    // Nobody ever writes into this pipe.
    let mut process = Process::start(Some("pipe"), Stdio::null());
    sleep(Duration::from_secs(1));
    assert!(process.child.try_wait().unwrap().is_none(), "it waits for the PIN");
    assert_eq!(process.terminate(), Some(0));
}
