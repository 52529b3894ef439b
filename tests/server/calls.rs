//! Every unary call, over both transports, and every way to be refused.

use std::time::{Duration, Instant};

use keyward::{
    auth::Policy,
    client::{Client, Code, Endpoint, Error, KekState, WrappedDek},
    error::{self, Reason, Retry},
    op::Op,
    wire,
};
use tonic::{IntoRequest, Status};
use tonic_types::StatusExt;

use super::support::{
    pki,
    sidecar::{NODE, Sidecar, UNGRANTED, dek, eventually, grant, own_uid, wrapped_deks},
};

pub fn reason(status: &Status) -> String {
    let info = status.get_details_error_info().expect("every status carries an ErrorInfo");
    assert_eq!(info.domain, "keyward");
    info.reason
}

async fn every_call(sidecar: &Sidecar, client: &Client) {
    let context = b"tenant 7";
    let wrapped = client.wrap("orders", &dek(), context).await.unwrap();
    assert_eq!((wrapped.kek.as_str(), wrapped.version.as_str()), ("orders", "01"));
    assert_eq!(wrapped.kek_fingerprint, [1; 32]);
    let unwrapped = client.unwrap(&wrapped, context).await.unwrap();
    assert!(unwrapped.ct_eq(dek().expose()));
    let other = client.unwrap(&wrapped, b"tenant 8").await.unwrap_err();
    assert_eq!(other.reason(), "CIPHERTEXT_INVALID");

    let (made, wrapped) = client.generate("orders", 48, b"").await.unwrap();
    assert_eq!(made.len(), 48);
    assert!(client.unwrap(&wrapped, b"").await.unwrap().ct_eq(made.expose()));
    let only_wrapped = client.generate_wrapped("orders", 16, context).await.unwrap();
    assert_eq!(client.unwrap(&only_wrapped, context).await.unwrap().len(), 16);

    let same = client.rewrap(&wrapped, b"").await.unwrap();
    assert_eq!((same.changed, &same.wrapped), (false, &wrapped));
    sidecar.fake.rotate(2);
    let name = sidecar.engine.names().next().unwrap();
    sidecar.engine.verify(name, Instant::now() + Duration::from_secs(5)).await.unwrap();
    let anew = client.rewrap(&wrapped, b"").await.unwrap();
    assert_eq!((anew.changed, anew.wrapped.version.as_str()), (true, "02"));
    assert!(client.unwrap(&anew.wrapped, b"").await.unwrap().ct_eq(made.expose()));

    let kek = client.get_kek("orders").await.unwrap();
    assert_eq!((kek.current_version.as_str(), kek.versions.len()), ("02", 2));
    assert_eq!(kek.versions[0].state(), KekState::Active);
    assert!(kek.assurance.unwrap().sensitive);
    let names: Vec<_> = client.list_keks().await.unwrap().into_iter().map(|kek| kek.name).collect();
    assert_eq!(names, ["orders", "orders-2"], "what may not be described is not listed");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_works_over_the_unix_socket() {
    let sidecar = Sidecar::start().await;
    every_call(&sidecar, &sidecar.client()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_works_over_mutual_tls() {
    let sidecar = Sidecar::start().await;
    let files = sidecar.pki.client("node", vec![pki::uri(NODE)]);
    every_call(&sidecar, &sidecar.tls_client(files)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_longer_than_a_message_comes_in_pages() {
    let names: Vec<_> = (0..900).map(|n| format!("orders-{n:0>50}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let sidecar = Sidecar::start_with(|_| {}, &names).await;
    let listed = sidecar.client().list_keks().await.unwrap();
    assert!(listed.iter().map(|kek| kek.name.as_str()).eq(names));
    let first = sidecar.raw().list_keks(wire::ListKeksRequest::default()).await.unwrap();
    assert!(first.into_inner().more);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_learns_nothing_but_the_refusal() {
    let sidecar = Sidecar::start().await;
    let client = sidecar.client();
    let there = client.wrap(UNGRANTED, &dek(), b"").await.unwrap_err();
    let not_there = client.wrap("treasurf", &dek(), b"").await.unwrap_err();
    assert_eq!((there.reason(), there.code()), ("PERMISSION_DENIED", Code::PermissionDenied));
    assert_eq!(
        there.message().replace(UNGRANTED, "X"),
        not_there.message().replace("treasurf", "X")
    );
    assert_eq!(there.retry_after(), None);
    // The refusal comes before anything else is looked at.
    let request = wire::UnwrapRequest {
        wrapped: Some(wire::WrappedDek { kek: UNGRANTED.into(), ..Default::default() }),
        context: vec![0; 5000],
        session: vec![],
    };
    let status = sidecar.raw().unwrap(request).await.unwrap_err();
    assert_eq!(reason(&status), "PERMISSION_DENIED");

    let files = sidecar.pki.client("reader", vec![pki::uri("spiffe://example.org/reader/1")]);
    let reader = sidecar.tls_client(files);
    let wrapped = client.wrap("orders", &dek(), b"").await.unwrap();
    assert!(reader.unwrap(&wrapped, b"").await.is_ok());
    let refusal = reader.wrap("orders", &dek(), b"").await.unwrap_err();
    assert_eq!(refusal.reason(), "PERMISSION_DENIED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swapped_policy_holds_for_the_next_call_of_an_open_connection() {
    let sidecar = Sidecar::start().await;
    let client = sidecar.client();
    let wrapped = client.wrap("orders", &dek(), b"").await.unwrap();
    let bound = keyward::auth::Grant {
        context_required: true,
        ..grant(&format!("uid:{}", own_uid()), &[Op::Unwrap], "orders")
    };
    sidecar.policy.store(Policy::new(vec![bound]).into());
    assert_eq!(client.unwrap(&wrapped, b"").await.unwrap_err().reason(), "CONTEXT_REQUIRED");
    sidecar.policy.store(Policy::default().into());
    assert_eq!(client.unwrap(&wrapped, b"").await.unwrap_err().reason(), "PERMISSION_DENIED");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused_with_their_reason() {
    let sidecar = Sidecar::start().await;
    let mut raw = sidecar.raw();
    let good = sidecar.client().wrap("orders", &dek(), b"").await.unwrap();
    let with = |change: &dyn Fn(&mut WrappedDek)| {
        let mut wrapped = good.clone();
        change(&mut wrapped);
        Some(wrapped)
    };
    let unwraps: Vec<(Option<WrappedDek>, usize, &str, Code)> = vec![
        (None, 0, "REQUEST_INVALID", Code::InvalidArgument),
        (with(&|w| w.kek = "a b".into()), 0, "REQUEST_INVALID", Code::InvalidArgument),
        (with(&|w| w.version = "../x".into()), 0, "REQUEST_INVALID", Code::InvalidArgument),
        (with(&|w| w.version = "99".into()), 0, "KEK_VERSION_NOT_FOUND", Code::NotFound),
        (with(&|w| w.kek = "orders-9".into()), 0, "KEK_NOT_FOUND", Code::NotFound),
        (with(&|w| w.kek = "orders-2".into()), 9, "CIPHERTEXT_INVALID", Code::InvalidArgument),
        (with(&|w| w.algorithm = 0), 0, "ALGORITHM_UNSUPPORTED", Code::InvalidArgument),
        (with(&|w| w.algorithm = 99), 0, "ALGORITHM_UNSUPPORTED", Code::InvalidArgument),
        (with(&|w| w.algorithm = 6), 0, "ALGORITHM_UNSUPPORTED", Code::InvalidArgument),
        (with(&|w| w.kek_fingerprint = vec![1; 31]), 0, "REQUEST_INVALID", Code::InvalidArgument),
        (with(&|w| w.kek_fingerprint = vec![9; 32]), 0, "KEK_MISMATCH", Code::FailedPrecondition),
        (with(&|_| {}), 4097, "CONTEXT_TOO_LONG", Code::InvalidArgument),
    ];
    for (i, (wrapped, context, expected, code)) in unwraps.into_iter().enumerate() {
        let request = wire::UnwrapRequest { wrapped, context: vec![7; context], session: vec![] };
        let status = raw.unwrap(request).await.unwrap_err();
        assert_eq!((reason(&status).as_str(), status.code()), (expected, code), "case {i}");
    }
    for len in [0, 15, 65] {
        let request = wire::WrapRequest {
            kek: "orders".into(),
            dek: vec![0; len],
            context: vec![],
            sealed: None,
        };
        let status = raw.wrap(request).await.unwrap_err();
        assert_eq!(reason(&status), "DEK_LENGTH_INVALID", "{len}");
        let request = wire::GenerateDekRequest {
            kek: "orders".into(),
            length: len as u32,
            ..Default::default()
        };
        let status = raw.generate_dek(request).await.unwrap_err();
        assert_eq!(reason(&status), "DEK_LENGTH_INVALID", "{len}");
    }
    let status = raw.get_kek(wire::GetKekRequest { name: "\0".into() }).await.unwrap_err();
    assert_eq!(reason(&status), "REQUEST_INVALID");
    let mut request = wire::ListKeksRequest::default().into_request();
    request.metadata_mut().insert("grpc-timeout", "soon".parse().unwrap());
    assert!(raw.list_keks(request).await.is_err());
    assert!(raw.list_keks(wire::ListKeksRequest::default()).await.is_ok(), "still usable");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_bad_ciphertexts_look_the_same() {
    let sidecar = Sidecar::start().await;
    let mut raw = sidecar.raw();
    let good = sidecar.client().wrap("orders", &dek(), b"").await.unwrap();
    let mut flipped = good.ciphertext.clone();
    flipped[3] ^= 1;
    let truncated = good.ciphertext[..20].to_vec();
    let mut seen = Vec::new();
    for ciphertext in [vec![], truncated, flipped, vec![7; 1024], vec![7; 1025], vec![7; 9000]] {
        let wrapped = Some(WrappedDek { ciphertext, ..good.clone() });
        let status = raw
            .unwrap(wire::UnwrapRequest { wrapped, context: vec![], session: vec![] })
            .await
            .unwrap_err();
        seen.push((status.code(), status.message().to_owned(), status.details().to_vec()));
    }
    // A context where there is none, and none where there is one.
    let wrapped = Some(good);
    let status = raw
        .unwrap(wire::UnwrapRequest { wrapped, context: vec![1], session: vec![] })
        .await
        .unwrap_err();
    assert_eq!(reason(&status), "CIPHERTEXT_INVALID");
    seen.push((status.code(), status.message().to_owned(), status.details().to_vec()));
    assert!(seen.iter().all(|status| *status == seen[0]), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_ends_at_its_callers_deadline() {
    let sidecar = Sidecar::start().await;
    let client = sidecar.client();
    let wrapped = client.wrap("orders", &dek(), b"").await.unwrap();
    sidecar.fake.hold.send_replace(true);
    let started = Instant::now();
    let patient = client.clone().with_deadline(Duration::from_millis(300));
    let error = patient.unwrap(&wrapped, b"").await.unwrap_err();
    assert_eq!((error.reason(), error.code()), ("DEADLINE_EXCEEDED", Code::DeadlineExceeded));
    assert!(started.elapsed() < Duration::from_secs(3));
    eventually("the work ended too", || sidecar.fake.running() == 0).await;
    sidecar.fake.hold.send_replace(false);
    assert!(client.unwrap(&wrapped, b"").await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_tries_again_only_where_it_is_told_to() {
    let sidecar = Sidecar::start().await;
    let client = sidecar.client();
    // What is cached needs no second attempt.
    let [first, second, third] = wrapped_deks(&client, 3).await.try_into().unwrap();
    let soon = Retry::After(Duration::from_millis(5));
    let fail_with = |reason: Reason, retry: Retry, times: usize| {
        let error = error::Error::new(reason, "told to").with_retry(retry);
        sidecar.fake.failures.lock().unwrap().extend(vec![error; times]);
    };
    fail_with(Reason::Overloaded, soon, 2);
    let before = sidecar.fake.unwraps();
    assert!(client.unwrap(&first, b"").await.is_ok());
    assert_eq!(sidecar.fake.unwraps() - before, 3);

    fail_with(Reason::Overloaded, soon, 3);
    let before = sidecar.fake.unwraps();
    let error = client.unwrap(&second, b"").await.unwrap_err();
    assert_eq!((error.reason(), sidecar.fake.unwraps() - before), ("OVERLOADED", 3));
    assert_eq!(error.retry_after(), Some(Duration::from_millis(5)));

    fail_with(Reason::BackendMisconfigured, Retry::Never, 1);
    let before = sidecar.fake.unwraps();
    let error = client.unwrap(&third, b"").await.unwrap_err();
    assert_eq!((error.reason(), sidecar.fake.unwraps() - before), ("BACKEND_MISCONFIGURED", 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn detail_stays_in_the_sidecar() {
    let sidecar = Sidecar::start().await;
    let wrapped = sidecar.client().wrap("orders", &dek(), b"").await.unwrap();
    let error =
        error::Error::new(Reason::BackendUnreachable, "gone").with_detail("CKR_SECRET_DETAIL");
    sidecar.fake.failures.lock().unwrap().push_back(error);
    let request = wire::UnwrapRequest { wrapped: Some(wrapped), context: vec![], session: vec![] };
    let status = sidecar.raw().unwrap(request).await.unwrap_err();
    assert_eq!(reason(&status), "BACKEND_UNREACHABLE");
    assert!(status.get_details_retry_info().is_some());
    let all = format!("{status:?} {}", String::from_utf8_lossy(status.details()));
    assert!(!all.contains("CKR_"), "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_sidecar_the_error_says_where_it_was_looked_for() {
    let client = Client::new(&Endpoint::unix("/nonexistent/k.sock")).unwrap();
    let error = client.list_keks().await.unwrap_err();
    assert_eq!((error.reason(), error.code()), (Error::SIDECAR_UNREACHABLE, Code::Unavailable));
    assert!(error.message().contains("/nonexistent/k.sock"), "{error}");
    assert!(error.message().contains("No such file"), "{error}");
}
