//! Real tokens for tests: SoftHSM and kryoptic, each in a directory of its own.
//!
//! A token's configuration reaches its module through the environment, which the
//! module reads when it is initialised. Tests that load a module into their own process
//! call [`TestToken::enter`], and count on nextest to give every test its own process.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use keyward::backend::pkcs11::{PinSource, Settings, TokenSelector};
use tempfile::TempDir;

pub const LABEL: &str = "keyward-test";
pub const PIN: &str = "12345678";
pub const SO_PIN: &str = "87654321";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    SoftHsm,
    Kryoptic,
}

pub struct TestToken {
    pub kind: Kind,
    pub dir: TempDir,
    pub module: PathBuf,
    pub pin_file: PathBuf,
    /// What the module reads from the environment.
    pub env: (&'static str, PathBuf),
}

impl TestToken {
    /// A fresh, initialised token.
    pub fn new(kind: Kind) -> Self {
        match kind {
            Kind::SoftHsm => Self::softhsm(),
            Kind::Kryoptic => Self::kryoptic(),
        }
    }

    pub fn softhsm() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let conf = dir.path().join("softhsm2.conf");
        let tokens = dir.path().join("tokens");
        fs::create_dir(&tokens).expect("a directory");
        let text = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\nlibrary.reset_on_fork = false\n",
            tokens.display()
        );
        fs::write(&conf, text).expect("a file");
        let token = Self {
            kind: Kind::SoftHsm,
            module: softhsm_module(),
            pin_file: write_pin(dir.path(), PIN),
            env: ("SOFTHSM2_CONF", conf),
            dir,
        };
        token.init_another(LABEL);
        token
    }

    pub fn kryoptic() -> Self {
        let module = env::var_os("KEYWARD_TEST_KRYOPTIC")
            .expect("KEYWARD_TEST_KRYOPTIC names the module; `make test` builds it and sets this");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let conf = dir.path().join("token.conf");
        let text = format!(
            "[[slots]]\nslot = 42\ndbtype = \"sqlite\"\ndbargs = \"{}\"\n",
            dir.path().join("token.sql").display()
        );
        fs::write(&conf, text).expect("a file");
        let token = Self {
            kind: Kind::Kryoptic,
            module: module.into(),
            pin_file: write_pin(dir.path(), PIN),
            env: ("KRYOPTIC_CONF", conf),
            dir,
        };
        token.pkcs11_tool(&["--init-token", "--slot", "42", "--label", LABEL, "--so-pin", SO_PIN]);
        token.pkcs11_tool(&[
            "--login",
            "--login-type",
            "so",
            "--so-pin",
            SO_PIN,
            "--init-pin",
            "--pin",
            PIN,
        ]);
        token
    }

    /// Initialises another token of the same SoftHSM.
    pub fn init_another(&self, label: &str) {
        assert_eq!(self.kind, Kind::SoftHsm);
        let mut command = self.command("softhsm2-util");
        command.args([
            "--init-token",
            "--free",
            "--label",
            label,
            "--so-pin",
            SO_PIN,
            "--pin",
            PIN,
        ]);
        run(&mut command);
    }

    /// A command that sees this token.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env(self.env.0, &self.env.1).stdin(Stdio::null());
        command
    }

    /// Runs pkcs11-tool on the token and returns what it printed.
    pub fn pkcs11_tool(&self, args: &[&str]) -> String {
        let mut command = self.command("pkcs11-tool");
        command.arg("--module").arg(&self.module).args(args);
        String::from_utf8_lossy(&run(&mut command)).into_owned()
    }

    /// As [`Self::pkcs11_tool`], logged in as the user.
    pub fn pkcs11_tool_user(&self, args: &[&str]) -> String {
        let login = ["--token-label", LABEL, "--login", "--pin", PIN];
        self.pkcs11_tool(&[&login[..], args].concat())
    }

    /// Generates an RSA key with pkcs11-tool, as another tool would.
    pub fn generate_rsa(&self, bits: u32, label: &str, id: &str) {
        let kind = format!("rsa:{bits}");
        self.pkcs11_tool_user(&[
            "--keypairgen",
            "--key-type",
            &kind,
            "--label",
            label,
            "--id",
            id,
            "--usage-decrypt",
        ]);
    }

    /// Makes this process see the token.
    #[allow(clippy::disallowed_methods, reason = "a module reads it in this very process")]
    pub fn enter(&self) {
        // SAFETY: nextest runs each test in a process of its own, and this is called
        // before the test starts a thread.
        unsafe { env::set_var(self.env.0, &self.env.1) };
    }

    pub fn settings(&self) -> Settings {
        Settings {
            name: "hsm".into(),
            module: self.module.clone(),
            module_args: String::new(),
            token: TokenSelector { label: Some(LABEL.into()), serial: None },
            pin: PinSource::File(self.pin_file.clone()),
            sessions: 2,
            queue: 1024,
            call_timeout: Duration::from_secs(10),
            allow_final_try: false,
        }
    }

    /// The directory whose loss is the loss of the token.
    pub fn storage(&self) -> PathBuf {
        self.dir.path().join("tokens")
    }
}

/// Writes a PIN file as the sidecar wants it.
pub fn write_pin(dir: &Path, pin: &str) -> PathBuf {
    let path = dir.join("pin");
    fs::write(&path, pin).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a mode");
    path
}

pub fn softhsm_module() -> PathBuf {
    if let Some(path) = env::var_os("KEYWARD_TEST_SOFTHSM") {
        return path.into();
    }
    let candidates = [
        "/usr/lib/softhsm/libsofthsm2.so",
        "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
        "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
        "/usr/lib64/pkcs11/libsofthsm2.so",
    ];
    let found = candidates.iter().map(PathBuf::from).find(|path| path.exists());
    found.expect("SoftHSM is not installed: `make test` installs it")
}

/// Runs a command to its end and returns its standard output.
pub fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}
