//! A sidecar process with a KEK at home on a token or in a fake vault, and the commands that
//! talk to it.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use keyward::client::{Client, Endpoint};

use super::{
    home::{Home, House},
    keyvault::FakeVault,
    token::TestToken,
    vaults::Azure,
};

pub const KEYWARD: &str = env!("CARGO_BIN_EXE_keyward");
pub const KEK: &str = "orders";

/// The first version of the KEK on a token.
pub const FIRST: &str = "0a";

/// A home of a KEK, a configuration for it, and a sidecar if one was started.
pub struct Served {
    pub house: House,
    /// What the sidecar and the commands have in their environment.
    pub environment: Vec<(&'static str, String)>,
    sidecar: Option<Child>,
}

impl Served {
    /// A token with one RSA key and a configuration that serves it to us.
    pub fn prepare() -> Self {
        Self::prepare_on(Home::SoftHsm)
    }

    /// The same, with the key at another home.
    pub fn prepare_on(home: Home) -> Self {
        Self::prepare_in(House::new(home))
    }

    pub fn prepare_in(house: House) -> Self {
        house.make(KEK, FIRST);
        let served = Self { house, environment: Vec::new(), sidecar: None };
        served.configure(|config| config);
        served
    }

    /// As [`Self::prepare`], with a sidecar that is ready.
    pub fn start() -> Self {
        Self::start_on(Home::SoftHsm)
    }

    /// As [`Self::prepare_on`], with a sidecar that is ready.
    pub fn start_on(home: Home) -> Self {
        let mut served = Self::prepare_on(home);
        served.serve();
        served
    }

    pub fn token(&self) -> &TestToken {
        self.house.token()
    }

    pub fn azure(&self) -> &Azure {
        self.house.azure()
    }

    pub fn fake(&self) -> &FakeVault {
        &self.azure().fake
    }

    pub fn dir(&self) -> &Path {
        self.house.dir()
    }

    pub fn config_file(&self) -> PathBuf {
        self.dir().join("keyward.toml")
    }

    pub fn socket(&self) -> PathBuf {
        self.dir().join("k.sock")
    }

    pub fn log_file(&self) -> PathBuf {
        self.dir().join("log")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Writes the configuration, changed by `change`.
    pub fn configure(&self, change: impl FnOnce(String) -> String) {
        let config = format!(
            r#"
[server]
socket = "{socket}"
drain = "3s"

{backend}
[lease]
interval = "1s"

[[kek]]
name = "{KEK}"
backend = "hsm"
algorithm = "{algorithm}"

[[policy]]
who = ["uid:{uid}"]
may = ["wrap", "unwrap", "generate", "rewrap", "describe"]
kek = ["*"]
"#,
            socket = self.socket().display(),
            backend = self.house.section("hsm"),
            algorithm = self.house.algorithm(),
            uid = own_uid(),
        );
        fs::write(self.config_file(), change(config)).expect("a file");
    }

    /// Starts the sidecar and waits until every KEK is proven.
    pub fn serve(&mut self) {
        self.spawn();
        let until = Instant::now() + Duration::from_secs(30);
        while !self.is_ready() {
            let ended = self.sidecar.as_mut().expect("a sidecar").try_wait().expect("its state");
            assert!(ended.is_none(), "the sidecar ended ({ended:?}):\n{}", self.log());
            assert!(Instant::now() < until, "it does not get ready:\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts the sidecar without waiting.
    pub fn spawn(&mut self) {
        assert!(self.sidecar.is_none(), "it was started already");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_file());
        let sidecar = self
            .command(&["serve", "--config"])
            .arg(self.config_file())
            .stdout(Stdio::null())
            .stderr(log.expect("a log"))
            .spawn();
        self.sidecar = Some(sidecar.expect("the sidecar starts"));
    }

    pub fn is_ready(&self) -> bool {
        let shown = self.call(&["kek", "list", "--json"], b"");
        let Ok(json) = serde_json::from_slice::<serde_json::Value>(&shown.stdout) else {
            return false;
        };
        let keks = json["keks"].as_array().cloned().unwrap_or_default();
        !keks.is_empty() && keks.iter().all(|kek| kek["usable"] == true)
    }

    /// Where metrics are, of a sidecar that was configured to let the kernel choose the port.
    pub fn admin(&self) -> SocketAddr {
        let log = self.log();
        let (_, told) = log.split_once("admin=Some(").unwrap_or_else(|| panic!("{log}"));
        let admin = told.split(')').next().and_then(|at| at.parse().ok());
        admin.unwrap_or_else(|| panic!("{log}"))
    }

    /// The whole answer to a request over HTTP.
    pub fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.admin()).expect("a connection");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }

    pub fn pid(&self) -> u32 {
        self.sidecar.as_ref().expect("a sidecar").id()
    }

    pub fn signal(&self, signal: &str) {
        super::token::run(Command::new("kill").args([signal, &self.pid().to_string()]));
    }

    /// Waits for the sidecar to end by itself and returns its exit code.
    pub fn wait(&mut self) -> Option<i32> {
        let mut sidecar = self.sidecar.take().expect("a sidecar");
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = sidecar.try_wait().expect("its state") {
                return status.code();
            }
            assert!(Instant::now() < until, "it does not end:\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// A `keyward` command that sees the token, if there is one.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.house.command(KEYWARD);
        command.args(args).env("KEYWARD_SOCKET", self.socket());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs a `keyward` command with `input` and returns what came of it.
    pub fn call(&self, args: &[&str], input: &[u8]) -> Output {
        run_with_input(&mut self.command(args), input)
    }

    /// Runs a command that must succeed and returns its standard output.
    pub fn ok(&self, args: &[&str], input: &[u8]) -> Vec<u8> {
        let output = self.call(args, input);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {}\n{stderr}{}", output.status, self.log());
        output.stdout
    }

    /// Runs a command that must fail with exit code 1 and returns the reason.
    pub fn refused(&self, args: &[&str], input: &[u8]) -> String {
        let args = [&["--json"], args].concat();
        let output = self.call(&args, input);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{args:?} wrote something though it failed");
        let error: serde_json::Value = serde_json::from_str(&stderr).expect("a JSON object");
        error["reason"].as_str().unwrap_or_else(|| panic!("{stderr}")).to_owned()
    }

    /// Runs `serve`, which must fail, and returns what it said.
    pub fn serve_fails(&self) -> String {
        let output = self.call(&["serve", "--config", &self.config_file().to_string_lossy()], b"");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        for part in ["error: ", "cause: ", "fix: "] {
            assert!(stderr.contains(part), "no {part:?} in\n{stderr}");
        }
        assert!(!self.socket().exists(), "it left its socket behind");
        stderr
    }

    pub fn client(&self) -> Client {
        Client::new(&Endpoint::unix(self.socket())).expect("a client")
    }

    /// The version of the KEK that wraps now.
    pub fn current_version(&self) -> Option<String> {
        let shown = self.ok(&["kek", "show", "--json", KEK], b"");
        let shown: serde_json::Value = serde_json::from_slice(&shown).expect("JSON");
        shown["current_version"].as_str().map(str::to_owned)
    }

    /// Another version of the KEK, made by another tool. Returns its name.
    pub fn add_version(&self, id: &str) -> String {
        self.house.make(KEK, id)
    }

    pub fn delete_version(&self, id: &str) {
        for kind in ["privkey", "pubkey"] {
            self.token().pkcs11_tool_user(&["--delete-object", "--type", kind, "--id", id]);
        }
    }

    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.dir().join(name);
        fs::write(&path, content).expect("a file");
        path
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(mut sidecar) = self.sidecar.take() {
            let _killed = sidecar.kill();
            let _ended = sidecar.wait();
        }
    }
}

pub fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

pub fn run_with_input(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("a pipe");
    let input = input.to_vec();
    let feeding = thread::spawn(move || {
        // A command that refuses early does not read all.
        let _reader_gone = stdin.write_all(&input);
    });
    let output = child.wait_with_output().expect("its output");
    feeding.join().expect("the input was fed");
    output
}

/// Reads a file as far as it goes.
pub fn read(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    fs::File::open(path).expect("a file").read_to_end(&mut bytes).expect("its bytes");
    bytes
}
