//! Faults that are really made: tokens that go away, sessions that end, keys that are
//! replaced, calls that hang. The backend recovers or refuses; it never uses another
//! key, never calls a good ciphertext invalid, and needs no restart.

mod support;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
    ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use cryptoki_sys as ck;
use keyward::{
    backend::{
        Backend, KeyKind, NewKey,
        pkcs11::{Pkcs11Backend, Settings, TokenSelector},
    },
    engine::Source,
    error::{Error, Reason},
    kek::{Algorithm, KeyRef, VersionInfo},
    lease::Terms,
    secret::Secret,
};
use support::{
    bench::Bench,
    token::{self, Kind, LABEL, PIN, TestToken, write_pin},
    usable,
};

const ALGORITHM: Algorithm = Algorithm::RsaOaep;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

/// A backend with one RSA key and a DEK that is wrapped by it.
struct Scene {
    backend: Arc<Pkcs11Backend>,
    info: VersionInfo,
    wrapped: Vec<u8>,
    payload: [u8; 32],
}

impl Scene {
    async fn new(settings: Settings) -> Self {
        let backend = Arc::new(Pkcs11Backend::open(settings).expect("the token opens"));
        let key = KeyRef::parse("kek").expect("a label");
        if backend.versions(&key, ALGORITHM, soon()).await.is_err() {
            let new = NewKey { label: "kek".into(), kind: KeyKind::Rsa(2048) };
            backend.officer().expect("an officer").create(&new, soon()).await.expect("a key");
        }
        let info = backend.versions(&key, ALGORITHM, soon()).await.expect("a version").remove(0);
        let payload = [0x5a; 32];
        let secret = Secret::copy_of(&payload);
        let wrapped =
            backend.wrap(&usable(&info), ALGORITHM, &secret, soon()).await.expect("a ciphertext");
        Self { backend, info, wrapped, payload }
    }

    async fn on(token: &TestToken) -> Self {
        token.enter();
        Self::new(token.settings()).await
    }

    async fn unwrap(&self) -> Result<(), Error> {
        let version = usable(&self.info);
        let payload = self.backend.unwrap(&version, ALGORITHM, &self.wrapped, soon()).await?;
        assert!(payload.ct_eq(&self.payload), "another key was used");
        Ok(())
    }

    async fn assert_works(&self) {
        self.unwrap().await.expect("a payload");
    }

    async fn assert_works_within(&self, patience: Duration) {
        let until = Instant::now() + patience;
        while let Err(error) = self.unwrap().await {
            assert!(Instant::now() < until, "still {error:?}");
            assert!(error.reason().is_transient(), "{error:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A second handle on the module, as another part of the same process may have.
struct Intruder {
    list: ck::CK_FUNCTION_LIST,
    _module: ck::Pkcs11,
}

impl Intruder {
    fn new(module: &Path) -> Self {
        // SAFETY: the module is the one that the backend loaded already.
        let module = unsafe { ck::Pkcs11::new(module) }.expect("a module");
        let mut list = ptr::null_mut();
        // SAFETY: the symbol is there, and the pointer is to a place for a pointer.
        assert_eq!(unsafe { module.C_GetFunctionList(&mut list) }, ck::CKR_OK);
        // SAFETY: on CKR_OK it points to a list that lives as long as the module.
        Self { list: unsafe { *list }, _module: module }
    }

    fn slot(&self) -> ck::CK_SLOT_ID {
        let mut slots = [0; 16];
        let mut count = 16;
        let get = self.list.C_GetSlotList.expect("C_GetSlotList");
        // SAFETY: there is room for `count` slots.
        assert_eq!(unsafe { get(ck::CK_TRUE, slots.as_mut_ptr(), &mut count) }, ck::CKR_OK);
        slots[0]
    }

    fn close_all_sessions(&self) {
        let close = self.list.C_CloseAllSessions.expect("C_CloseAllSessions");
        // SAFETY: a plain call.
        assert_eq!(unsafe { close(self.slot()) }, ck::CKR_OK);
    }

    /// How many sessions there are on other slots than [`Self::slot`]. Handles are small
    /// numbers that SoftHSM gives out in order.
    fn sessions_elsewhere(&self) -> usize {
        let open = self.list.C_OpenSession.expect("C_OpenSession");
        let close = self.list.C_CloseSession.expect("C_CloseSession");
        let info = self.list.C_GetSessionInfo.expect("C_GetSessionInfo");
        let (slot, mut last) = (self.slot(), 0);
        let flags = ck::CKF_SERIAL_SESSION;
        // SAFETY: plain calls; `last` is a place for a handle.
        unsafe {
            assert_eq!(open(slot, flags, ptr::null_mut(), None, &mut last), ck::CKR_OK);
            assert_eq!(close(last), ck::CKR_OK);
        }
        let elsewhere = |session: &ck::CK_SESSION_HANDLE| {
            let mut told = ck::CK_SESSION_INFO::default();
            // SAFETY: `told` is a place for what is asked.
            unsafe { info(*session, &mut told) == ck::CKR_OK && told.slotID != slot }
        };
        (1..last).filter(elsewhere).count()
    }

    fn log_out(&self) {
        let open = self.list.C_OpenSession.expect("C_OpenSession");
        let logout = self.list.C_Logout.expect("C_Logout");
        let mut session = 0;
        let flags = ck::CKF_SERIAL_SESSION;
        // SAFETY: plain calls; `session` is a place for a handle.
        unsafe {
            assert_eq!(open(self.slot(), flags, ptr::null_mut(), None, &mut session), ck::CKR_OK);
            assert_eq!(logout(session), ck::CKR_OK);
        }
    }

    fn finalize(&self) {
        let finalize = self.list.C_Finalize.expect("C_Finalize");
        // SAFETY: a plain call.
        assert_eq!(unsafe { finalize(ptr::null_mut()) }, ck::CKR_OK);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_goes_away_under_load_and_comes_back() {
    let token = TestToken::softhsm();
    let scene = Arc::new(Scene::on(&token).await);
    let stop = Arc::new(AtomicBool::new(false));
    let (good, unreachable) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = (0..8)
        .map(|_| {
            let (scene, stop) = (Arc::clone(&scene), Arc::clone(&stop));
            let (good, unreachable) = (Arc::clone(&good), Arc::clone(&unreachable));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    match scene.unwrap().await {
                        Ok(()) => good.fetch_add(1, Ordering::Relaxed),
                        Err(error) => {
                            // Never invalid, never gone: the token is only away.
                            assert_eq!(error.reason(), Reason::BackendUnreachable, "{error:?}");
                            tokio::time::sleep(Duration::from_millis(5)).await;
                            unreachable.fetch_add(1, Ordering::Relaxed)
                        }
                    };
                }
            })
        })
        .collect();
    let away = token.dir.path().join("away");
    for _ in 0..3 {
        let before = good.load(Ordering::Relaxed);
        fs::rename(token.storage(), &away).expect("the token goes away");
        tokio::time::sleep(Duration::from_millis(800)).await;
        fs::rename(&away, token.storage()).expect("the token comes back");
        let until = Instant::now() + Duration::from_secs(15);
        while good.load(Ordering::Relaxed) < before + 200 {
            assert!(Instant::now() < until, "it did not recover");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    for task in load {
        task.await.expect("no caller saw a wrong answer");
    }
    assert!(unreachable.load(Ordering::Relaxed) > 0, "the token was never away");
}

async fn sessions_that_end_are_opened_again(kind: Kind) {
    let token = TestToken::new(kind);
    let scene = Scene::on(&token).await;
    let intruder = Intruder::new(&token.module);
    for _ in 0..3 {
        intruder.close_all_sessions();
        scene.assert_works_within(Duration::from_secs(5)).await;
        // Also while every worker is at it.
        intruder.close_all_sessions();
        let at_once = (0..16).map(|_| scene.assert_works_within(Duration::from_secs(5)));
        futures_util::future::join_all(at_once).await;
    }
}

#[tokio::test]
async fn sessions_that_end_are_opened_again_on_softhsm() {
    sessions_that_end_are_opened_again(Kind::SoftHsm).await;
}

#[tokio::test]
async fn sessions_that_end_are_opened_again_on_kryoptic() {
    sessions_that_end_are_opened_again(Kind::Kryoptic).await;
}

async fn a_logout_is_followed_by_a_login(kind: Kind) {
    let token = TestToken::new(kind);
    let scene = Scene::on(&token).await;
    let intruder = Intruder::new(&token.module);
    for _ in 0..3 {
        intruder.log_out();
        scene.assert_works_within(Duration::from_secs(5)).await;
    }
}

#[tokio::test]
async fn a_logout_is_followed_by_a_login_on_softhsm() {
    a_logout_is_followed_by_a_login(Kind::SoftHsm).await;
}

#[tokio::test]
async fn a_logout_is_followed_by_a_login_on_kryoptic() {
    a_logout_is_followed_by_a_login(Kind::Kryoptic).await;
}

#[tokio::test]
async fn a_token_that_loses_its_sessions_leaves_none_behind_on_another() {
    let token = TestToken::softhsm();
    token.init_another("other");
    let scene = Scene::on(&token).await;
    let selector = TokenSelector { label: Some("other".into()), serial: None };
    let other = Scene::new(Settings { token: selector, ..token.settings() }).await;
    let intruder = Intruder::new(&token.module);
    other.assert_works().await;
    // Of the two, the one in the first slot loses its sessions.
    let mut counts = Vec::new();
    for _ in 0..6 {
        intruder.close_all_sessions();
        scene.assert_works_within(Duration::from_secs(5)).await;
        other.assert_works_within(Duration::from_secs(5)).await;
        counts.push(intruder.sessions_elsewhere());
    }
    let most = token.settings().sessions + 1;
    assert!(counts.iter().all(|count| *count <= most), "{counts:?} of {most}");
}

async fn a_module_that_was_finalized_is_initialized(kind: Kind) {
    let token = TestToken::new(kind);
    let scene = Scene::on(&token).await;
    let intruder = Intruder::new(&token.module);
    for _ in 0..3 {
        intruder.finalize();
        scene.assert_works_within(Duration::from_secs(5)).await;
    }
}

#[tokio::test]
async fn a_module_that_was_finalized_is_initialized_on_softhsm() {
    a_module_that_was_finalized_is_initialized(Kind::SoftHsm).await;
}

#[tokio::test]
async fn a_module_that_was_finalized_is_initialized_on_kryoptic() {
    a_module_that_was_finalized_is_initialized(Kind::Kryoptic).await;
}

async fn a_deleted_key_is_refused_and_a_new_one_never_takes_its_place(kind: Kind) {
    let token = TestToken::new(kind);
    token.generate_rsa(2048, "kek", "0a");
    let scene = Scene::on(&token).await;
    assert_eq!(scene.info.id.as_str(), "0a");
    scene.assert_works().await;

    token.pkcs11_tool_user(&["--delete-object", "--type", "privkey", "--id", "0a"]);
    let gone = scene.unwrap().await.expect_err("the key is gone");
    assert_eq!(gone.reason(), Reason::KekVersionNotFound, "{gone:?}");

    token.pkcs11_tool_user(&["--delete-object", "--type", "pubkey", "--id", "0a"]);
    token.generate_rsa(2048, "kek", "0a");
    let replaced = scene.unwrap().await.expect_err("it is another key");
    assert_eq!(replaced.reason(), Reason::KekMismatch, "{replaced:?}");

    let renewed = Scene::new_on_same_backend(&scene).await;
    assert_ne!(renewed.info.fingerprint, scene.info.fingerprint);
    renewed.assert_works().await;
}

impl Scene {
    /// The key that is on the token now.
    async fn new_on_same_backend(&self) -> Self {
        let backend = Arc::clone(&self.backend);
        let key = KeyRef::parse("kek").expect("a label");
        let info = backend.versions(&key, ALGORITHM, soon()).await.expect("a version").remove(0);
        let secret = Secret::copy_of(&self.payload);
        let wrapped =
            backend.wrap(&usable(&info), ALGORITHM, &secret, soon()).await.expect("a ciphertext");
        Self { backend, info, wrapped, payload: self.payload }
    }
}

#[tokio::test]
async fn a_deleted_key_is_refused_and_a_new_one_never_takes_its_place_on_softhsm() {
    a_deleted_key_is_refused_and_a_new_one_never_takes_its_place(Kind::SoftHsm).await;
}

#[tokio::test]
async fn a_deleted_key_is_refused_and_a_new_one_never_takes_its_place_on_kryoptic() {
    a_deleted_key_is_refused_and_a_new_one_never_takes_its_place(Kind::Kryoptic).await;
}

#[tokio::test]
async fn keys_that_cannot_be_told_apart_are_refused() {
    let token = TestToken::softhsm();
    token.generate_rsa(2048, "kek", "0a");
    token.generate_rsa(2048, "kek", "0a");
    token.generate_rsa(2048, "fine", "0a");
    token.enter();
    let backend = Pkcs11Backend::open(token.settings()).expect("the token opens");
    let versions =
        async |label| backend.versions(&KeyRef::parse(label).unwrap(), ALGORITHM, soon()).await;
    let refused = versions("kek").await.expect_err("twins");
    assert_eq!(refused.reason(), Reason::BackendMisconfigured);
    assert!(refused.message().contains("cannot be told apart"), "{refused}");
    assert_eq!(versions("fine").await.expect("another label").len(), 1);
}

#[tokio::test]
async fn versions_are_told_apart_by_id() {
    let token = TestToken::softhsm();
    for id in ["0a", "0b", "0100"] {
        token.generate_rsa(2048, "kek", id);
    }
    token.enter();
    let backend = Pkcs11Backend::open(token.settings()).expect("the token opens");
    let versions =
        async |key| backend.versions(&KeyRef::parse(key).unwrap(), ALGORITHM, soon()).await;
    let mut ids: Vec<_> =
        versions("kek").await.unwrap().iter().map(|info| info.id.to_string()).collect();
    ids.sort();
    assert_eq!(ids, ["0100", "0a", "0b"]);
    let pinned = versions("kek/0b").await.unwrap();
    assert_eq!((pinned.len(), pinned[0].id.as_str()), (1, "0b"));
}

#[tokio::test]
async fn tokens_of_one_label_need_a_serial() {
    let token = TestToken::softhsm();
    token.init_another(LABEL);
    token.enter();
    let open = |serial: Option<String>| {
        let selector = TokenSelector { label: Some(LABEL.into()), serial };
        Pkcs11Backend::open(Settings { token: selector, ..token.settings() })
    };
    let refused = open(None).err().expect("two tokens fit");
    assert!(refused.fix().is_some_and(|fix| fix.contains("serial")), "{refused:?}");
    let listed = token.pkcs11_tool(&["--list-slots"]);
    let serial = listed.lines().find_map(|line| line.split("serial num").nth(1)).expect("a serial");
    let serial = serial.trim_start_matches([' ', ':']).to_owned();
    open(Some(serial)).expect("the serial tells them apart");
}

#[test]
fn what_the_operator_must_mend_is_said_at_once() {
    let token = TestToken::softhsm();
    token.enter();
    let open = |change: &dyn Fn(&mut Settings)| {
        let mut settings = token.settings();
        change(&mut settings);
        let error = Pkcs11Backend::open(settings).err().expect("it cannot be opened");
        assert!(error.fix().is_some(), "{error:?}");
        error
    };
    let text = token.dir.path().join("text.so");
    fs::write(&text, "no library").unwrap();
    let missing = open(&|settings| settings.module = "/nonexistent/module.so".into());
    assert!(missing.message().contains("cannot be opened"), "{missing}");
    let no_library = open(&|settings| settings.module = text.clone());
    assert!(no_library.message().contains("not a library"), "{no_library}");
    let no_module = open(&|settings| settings.module = libc_path());
    assert!(no_module.message().contains("not a PKCS#11 module"), "{no_module}");
    let no_token = open(&|settings| settings.token.label = Some("elsewhere".into()));
    assert_eq!(no_token.reason(), Reason::BackendUnreachable);
    assert!(no_token.detail().is_some_and(|detail| detail.contains(LABEL)), "{no_token:?}");
    fs::write(&token.pin_file, "00000000").unwrap();
    let wrong_pin = open(&|_| ());
    assert_eq!(wrong_pin.reason(), Reason::BackendMisconfigured);
    assert!(wrong_pin.detail().is_some_and(|detail| detail.contains("PIN_INCORRECT")));
}

/// A library that is certainly there, and certainly no PKCS#11 module.
fn libc_path() -> std::path::PathBuf {
    let maps = fs::read_to_string("/proc/self/maps").expect("our own maps");
    let line = maps.lines().find(|line| line.contains("libc.so")).expect("libc");
    line[line.find('/').expect("a path")..].into()
}

#[tokio::test]
async fn a_wrong_pin_is_tried_once_and_the_right_one_mends_it() {
    // Kryoptic locks the token at the tenth wrong PIN, for good.
    let token = TestToken::kryoptic();
    let scene = Scene::on(&token).await;
    let intruder = Intruder::new(&token.module);
    fs::write(&token.pin_file, "00000000").unwrap();
    intruder.close_all_sessions();
    for _ in 0..20 {
        let refused = scene.unwrap().await.expect_err("the PIN is wrong");
        assert_eq!(refused.reason(), Reason::BackendUnreachable, "{refused:?}");
        assert!(refused.detail().is_some_and(|detail| detail.contains("PIN_INCORRECT")));
    }
    fs::write(&token.pin_file, PIN).unwrap();
    scene.assert_works_within(Duration::from_secs(5)).await;
}

/// What is wrong with a login is not a word about any key: what is cached is released on.
#[tokio::test]
async fn a_login_that_fails_is_an_outage_and_no_denial() {
    let token = TestToken::softhsm();
    let scene = Scene::on(&token).await;
    let terms =
        Terms { interval: Duration::from_secs(3600), outage_grace: Duration::from_secs(3600) };
    let bench = Bench::of(Arc::clone(&scene.backend), terms);
    bench.prove().await;
    let (cached, other) = (bench.wrap(1).await.unwrap(), bench.wrap(2).await.unwrap());
    bench.unwrap(&cached).await.unwrap();
    let intruder = Intruder::new(&token.module);
    let mode = |mode| fs::Permissions::from_mode(mode);
    let troubles: [(&str, &dyn Fn()); 4] = [
        ("is nothing", &|| fs::write(&token.pin_file, "").unwrap()),
        ("open to others", &|| fs::set_permissions(&token.pin_file, mode(0o644)).unwrap()),
        ("cannot be read", &|| fs::rename(&token.pin_file, token.dir.path().join("x")).unwrap()),
        ("tokens have this label", &|| token.init_another(LABEL)),
    ];
    for (trouble, make) in troubles {
        make();
        // SoftHSM sees another token only when it is initialised.
        intruder.finalize();
        let until = soon();
        loop {
            let verified = bench.engine.verify(&bench.kek, soon()).await;
            let untold = verified.expect_err("it cannot be asked");
            assert_eq!(untold.reason(), Reason::BackendUnreachable, "{untold:?}");
            if untold.message().contains(trouble) {
                assert!(untold.fix().is_some(), "{untold:?}");
                break;
            }
            // A module is not initialised again at any time.
            assert!(Instant::now() < until, "{untold:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let answer = bench.unwrap(&cached).await.expect("it is cached, and not denied");
        assert_eq!(answer.source, Source::Cache, "{trouble}");
        let refused = bench.unwrap(&other).await.expect_err("nobody can be asked");
        assert_eq!(refused.reason(), Reason::BackendUnreachable);
        if trouble != "tokens have this label" {
            write_pin(token.dir.path(), PIN);
            bench.prove().await;
        }
    }
}

#[test]
fn a_token_at_its_final_try_is_left_alone() {
    let token = TestToken::kryoptic();
    let flags = || token.pkcs11_tool(&["--list-slots"]);
    for _ in 0..12 {
        if flags().contains("final user PIN try") {
            break;
        }
        let module = token.module.to_string_lossy().into_owned();
        let tried = token
            .command("pkcs11-tool")
            .args([
                "--module",
                &module,
                "--token-label",
                LABEL,
                "--login",
                "--pin",
                "00000000",
                "-O",
            ])
            .output()
            .expect("pkcs11-tool runs");
        assert!(!tried.status.success());
    }
    assert!(flags().contains("final user PIN try"), "{}", flags());
    token.enter();
    let refused = Pkcs11Backend::open(token.settings()).err().expect("it must not try");
    assert!(refused.message().contains("one try left"), "{refused}");
    // The try was not used: the right PIN still works, if the operator says so.
    let insist = Settings { allow_final_try: true, ..token.settings() };
    Pkcs11Backend::open(insist).expect("the right PIN clears the count");
}

/// `p11-kit server` in front of SoftHSM: a module whose calls can be made to hang.
struct P11Kit {
    server: Child,
    socket: std::path::PathBuf,
}

impl P11Kit {
    fn start(token: &TestToken) -> Self {
        let socket = token.dir.path().join("p11.sock");
        let _stale = fs::remove_file(&socket);
        let server = token
            .command("p11-kit")
            .args(["server", "--foreground", "--name"])
            .arg(&socket)
            .arg("--provider")
            .arg(&token.module)
            .arg(format!("pkcs11:token={LABEL}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("p11-kit is installed: `make test` installs it");
        let until = Instant::now() + Duration::from_secs(10);
        while !socket.exists() {
            assert!(Instant::now() < until, "p11-kit does not listen");
            thread::sleep(Duration::from_millis(10));
        }
        Self { server, socket }
    }

    /// Settings of a backend that reaches the token through the server.
    #[allow(clippy::disallowed_methods, reason = "the module reads it in this very process")]
    fn settings(&self, token: &TestToken) -> Settings {
        // SAFETY: a process of its own for each test, and no thread was started yet.
        unsafe {
            std::env::set_var(
                "P11_KIT_SERVER_ADDRESS",
                format!("unix:path={}", self.socket.display()),
            );
        }
        Settings {
            module: p11_kit_client(),
            call_timeout: Duration::from_millis(700),
            ..token.settings()
        }
    }

    /// Sends a signal to the server and to the processes that it works with.
    fn signal(&self, signal: &str) {
        let parent = self.server.id().to_string();
        let found = Command::new("pgrep").args(["-P", &parent]).output().expect("pgrep runs");
        let children = String::from_utf8_lossy(&found.stdout).into_owned();
        let mut kill = Command::new("kill");
        kill.arg(signal).arg(&parent).args(children.split_whitespace());
        token::run(&mut kill);
    }
}

impl Drop for P11Kit {
    fn drop(&mut self) {
        let parent = self.server.id().to_string();
        // Some end by themselves meanwhile.
        let _killed = Command::new("pkill").args(["-KILL", "-P", &parent]).status();
        let _killed = self.server.kill();
        let _ended = self.server.wait();
    }
}

fn p11_kit_client() -> std::path::PathBuf {
    ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"]
        .iter()
        .map(|dir| Path::new(dir).join("pkcs11/p11-kit-client.so"))
        .find(|path| path.exists())
        .expect("p11-kit-client.so is installed: `make test` installs it")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_hang_are_answered_in_time_and_counted() {
    let token = TestToken::softhsm();
    token.generate_rsa(2048, "kek", "0a");
    let p11_kit = P11Kit::start(&token);
    let scene = Scene::new(p11_kit.settings(&token)).await;
    scene.assert_works().await;

    p11_kit.signal("-STOP");
    let began = Instant::now();
    let answers = futures_util::future::join_all((0..4).map(|_| scene.unwrap())).await;
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    for answer in answers {
        let reason = answer.expect_err("the call hangs").reason();
        assert!(
            matches!(reason, Reason::BackendUnreachable | Reason::DeadlineExceeded),
            "{reason}"
        );
    }
    assert!(scene.backend.hung() > 0);
    // Once every worker hangs, nobody is kept waiting.
    let until = Instant::now() + Duration::from_secs(5);
    while scene.backend.hung() < 2 {
        assert!(Instant::now() < until);
        let _hangs = scene.unwrap().await;
    }
    let began = Instant::now();
    assert_eq!(scene.unwrap().await.unwrap_err().reason(), Reason::BackendUnreachable);
    assert!(began.elapsed() < Duration::from_millis(200));

    p11_kit.signal("-CONT");
    scene.assert_works_within(Duration::from_secs(10)).await;
    // The other thread may need a moment longer to come back from its call.
    let until = Instant::now() + Duration::from_secs(5);
    while scene.backend.hung() > 0 {
        assert!(Instant::now() < until, "{} calls hang still", scene.backend.hung());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_behind_the_module_that_is_killed_and_started_again() {
    let token = TestToken::softhsm();
    token.generate_rsa(2048, "kek", "0a");
    let p11_kit = P11Kit::start(&token);
    let scene = Scene::new(p11_kit.settings(&token)).await;
    scene.assert_works().await;
    drop(p11_kit);
    let away = scene.unwrap().await.expect_err("the server is gone");
    assert_eq!(away.reason(), Reason::BackendUnreachable, "{away:?}");
    let _back = P11Kit::start(&token);
    scene.assert_works_within(Duration::from_secs(15)).await;
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() {
    let token = TestToken::softhsm();
    token.enter();
    let scene = Scene::new(Settings { sessions: 1, queue: 1, ..token.settings() }).await;
    let answers = futures_util::future::join_all((0..64).map(|_| scene.unwrap())).await;
    let refused: Vec<_> = answers.into_iter().filter_map(Result::err).collect();
    assert!(refused.len() > 32, "{}", refused.len());
    assert!(refused.iter().all(|error| error.reason() == Reason::Overloaded), "{refused:?}");
    scene.assert_works().await;
}

#[tokio::test]
async fn callers_that_go_away_leave_the_queue() {
    let token = TestToken::softhsm();
    token.enter();
    let scene = Arc::new(Scene::new(Settings { sessions: 1, ..token.settings() }).await);
    for _ in 0..1000 {
        let scene = Arc::clone(&scene);
        let call = tokio::spawn(async move { scene.unwrap().await });
        tokio::task::yield_now().await;
        call.abort();
    }
    // A thousand RSA operations take more than half a second on any machine.
    let began = Instant::now();
    scene.assert_works().await;
    assert!(began.elapsed() < Duration::from_millis(450), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_backend_that_is_dropped_leaves_no_thread_in_the_module() {
    let token = TestToken::softhsm();
    let scene = Scene::on(&token).await;
    scene.assert_works().await;
    let workers = || {
        let tasks = fs::read_dir("/proc/self/task").expect("our own threads");
        let names =
            tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
        names.filter(|name| name.starts_with("hsm-")).count()
    };
    assert!(workers() > 0);
    // At the end of the process such a thread would race with the module's destructors.
    drop(scene);
    assert_eq!(workers(), 0);
}
