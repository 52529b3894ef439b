//! Bad input over real gRPC to a real token and a fake managed HSM: a clear status each, nothing crashed, the
//! session still usable.

use std::io::Write as _;

use keyward::client::{Algorithm, Client, Code, Error, WrappedDek};
use keyward::secret::Secret;

use super::{
    home::{Home, on_each_home},
    served::{KEK, Served},
};

on_each_home! {
    asynchronous:
        every_bad_ciphertext_gets_the_same_answer,
        what_is_wrong_beside_the_ciphertext_is_said,
        lengths_beyond_the_limits_are_refused,
        a_caller_whom_the_policy_does_not_name_learns_nothing,
        idle_connections_and_garbage_leave_room_for_others,
        logs_hold_no_secret_at_any_level;
}

const DEK: [u8; 32] = [0x42; 32];

struct Case {
    client: Client,
    good: WrappedDek,
}

impl Case {
    async fn new(served: &Served) -> Self {
        let client = served.client();
        let good = client.wrap(KEK, &Secret::copy_of(&DEK), b"").await.expect("a wrapped DEK");
        Self { client, good }
    }

    fn with(&self, change: impl FnOnce(&mut WrappedDek)) -> WrappedDek {
        let mut wrapped = self.good.clone();
        change(&mut wrapped);
        wrapped
    }

    async fn refusal(&self, wrapped: &WrappedDek) -> (Code, String, String) {
        let error = self.client.unwrap(wrapped, b"").await.expect_err("it must be refused");
        self.assert_still_works().await;
        told(&error)
    }

    async fn assert_still_works(&self) {
        let dek = self.client.unwrap(&self.good, b"").await.expect("the good one still unwraps");
        assert!(dek.ct_eq(&DEK));
    }
}

fn told(error: &Error) -> (Code, String, String) {
    (error.code(), error.reason().to_owned(), error.message().to_owned())
}

async fn every_bad_ciphertext_gets_the_same_answer(home: Home) {
    let served = Served::start_on(home);
    served.house.make("other", "0f");
    let case = Case::new(&served).await;
    let good = case.good.ciphertext.clone();
    let mut bad: Vec<Vec<u8>> = vec![
        vec![],
        vec![0],
        good[..255].to_vec(),
        [&good[..], &[0]].concat(),
        vec![0; 256],
        vec![0xff; 256],
        vec![7; 1024],
        vec![7; 1025],
        vec![7; 60_000],
    ];
    for at in [0, 1, 100, 255] {
        let mut flipped = good.clone();
        flipped[at] ^= 0x10;
        bad.push(flipped);
    }
    let mut answers = Vec::new();
    for ciphertext in bad {
        answers.push(case.refusal(&case.with(|wrapped| wrapped.ciphertext = ciphertext)).await);
    }
    // A bare DEK with a context, as if it were bound.
    let context = case.client.unwrap(&case.good, b"tenant").await.expect_err("not bound");
    answers.push(told(&context));
    assert_eq!(answers[0].0, Code::InvalidArgument);
    assert_eq!(answers[0].1, "CIPHERTEXT_INVALID");
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:#?}");
}

async fn what_is_wrong_beside_the_ciphertext_is_said(home: Home) {
    let served = Served::start_on(home);
    let case = Case::new(&served).await;
    let cases = [
        (case.with(|w| w.kek = "elsewhere".into()), "KEK_NOT_FOUND"),
        (case.with(|w| w.kek = "no name!".into()), "REQUEST_INVALID"),
        (case.with(|w| w.kek = String::new()), "REQUEST_INVALID"),
        (case.with(|w| w.version = "0f".into()), "KEK_VERSION_NOT_FOUND"),
        (case.with(|w| w.version = "x".repeat(129)), "REQUEST_INVALID"),
        (case.with(|w| w.kek_fingerprint = vec![1; 32]), "KEK_MISMATCH"),
        (case.with(|w| w.kek_fingerprint = vec![1; 31]), "REQUEST_INVALID"),
        (case.with(|w| w.algorithm = 99), "ALGORITHM_UNSUPPORTED"),
        (case.with(|w| w.algorithm = 0), "ALGORITHM_UNSUPPORTED"),
        (case.with(|w| w.algorithm = Algorithm::A256kw.into()), "ALGORITHM_UNSUPPORTED"),
        // For this kind of key, but nothing that either backend does.
        (case.with(|w| w.algorithm = Algorithm::RsaOaep512.into()), "ALGORITHM_UNSUPPORTED"),
    ];
    for (wrapped, reason) in cases {
        assert_eq!(case.refusal(&wrapped).await.1, reason, "{wrapped:?}");
    }
    // The fingerprint is optional: other tools do not know it.
    let unknown = case.with(|w| w.kek_fingerprint = vec![]);
    case.client.unwrap(&unknown, b"").await.expect("it unwraps");
}

async fn lengths_beyond_the_limits_are_refused(home: Home) {
    let served = Served::start_on(home);
    let case = Case::new(&served).await;
    let reason =
        |result: Result<WrappedDek, Error>| result.expect_err("refused").reason().to_owned();
    for len in [0, 15, 65] {
        let dek = Secret::zeroed(len);
        assert_eq!(reason(case.client.wrap(KEK, &dek, b"").await), "DEK_LENGTH_INVALID");
    }
    let dek = Secret::copy_of(&DEK);
    case.client.wrap(KEK, &dek, &[7; 4096]).await.expect("the longest context");
    assert_eq!(reason(case.client.wrap(KEK, &dek, &[7; 4097]).await), "CONTEXT_TOO_LONG");
    let huge = case.with(|w| w.ciphertext = vec![7; 5 * 1024 * 1024]);
    let refused = case.refusal(&huge).await;
    assert_eq!((refused.0, refused.1.as_str()), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"));
}

async fn a_caller_whom_the_policy_does_not_name_learns_nothing(home: Home) {
    let mut served = Served::prepare_on(home);
    served.configure(|config| {
        config.replace(&format!("uid:{}", super::served::own_uid()), "uid:4294967294")
    });
    served.spawn();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !served.log().contains("ready") {
        assert!(std::time::Instant::now() < until, "{}", served.log());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let client = served.client();
    let refused =
        |result: Result<WrappedDek, Error>| told(&result.expect_err("it must be refused"));
    let dek = Secret::copy_of(&DEK);
    let there = refused(client.wrap(KEK, &dek, b"").await);
    assert_eq!((there.0, there.1.as_str()), (Code::PermissionDenied, "PERMISSION_DENIED"));
    let not_there = refused(client.wrap("elsewhere", &dek, b"").await);
    assert_eq!(there.1, not_there.1);
    assert_eq!(there.2.replace(KEK, "X"), not_there.2.replace("elsewhere", "X"));
    assert!(client.list_keks().await.expect("an empty list").is_empty());
}

async fn idle_connections_and_garbage_leave_room_for_others(home: Home) {
    let served = Served::start_on(home);
    keyward::server::raise_nofile_limit();
    let mut idle = Vec::new();
    for i in 0..1000 {
        let mut stream = std::os::unix::net::UnixStream::connect(served.socket()).expect("room");
        if i % 3 == 0 {
            // It may be closed already, which is an answer too.
            let _closed = stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n\0\xff garbage");
        }
        idle.push(stream);
    }
    let case = Case::new(&served).await;
    case.assert_still_works().await;
    drop(idle);
    case.assert_still_works().await;
}

async fn logs_hold_no_secret_at_any_level(home: Home) {
    let mut served = Served::prepare_on(home);
    served.configure(|config| config + "\n[log]\nfilter = \"trace\"\n");
    served.serve();
    let case = Case::new(&served).await;
    let dek = Secret::copy_of(b"quick-brown-fox-jumps-over-a-dog");
    let wrapped = case.client.wrap(KEK, &dek, b"lazy-context").await.expect("a wrapped DEK");
    case.client.unwrap(&wrapped, b"lazy-context").await.expect("a DEK");
    let (generated, _) = case.client.generate(KEK, 32, b"").await.expect("a DEK");
    let log = served.log();
    assert!(log.contains("op=\"unwrap\""), "the operations are logged");
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let list = |bytes: &[u8]| format!("{bytes:?}").trim_matches(['[', ']']).to_owned();
    let key_to_backend = match home {
        Home::SoftHsm => super::token::PIN,
        Home::KeyVault | Home::ManagedHsm => super::vaults::SECRET,
    };
    for secret in [dek.expose(), generated.expose(), &DEK, key_to_backend.as_bytes()] {
        assert!(!log.contains(&hex(secret)) && !log.contains(&list(secret)), "a secret in the log");
        assert!(!log.contains(&*String::from_utf8_lossy(secret)), "a secret in the log");
    }
    for text in ["lazy-context", "Bearer", "eyJ"] {
        assert!(!log.contains(text), "{text} is in the log");
    }
}
