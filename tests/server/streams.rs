//! Streams: mixed items, flow control, cancellation.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream};
use keyward::{
    client::{ATTEMPTS_MAX, Answer, Client, Item, WrappedDek},
    op::{REWRAP_STREAM_WINDOW, UNWRAP_STREAM_WINDOW},
    wire::{self, key_wrap_client::KeyWrapClient},
};
use tokio::{
    io::{AsyncReadExt, copy_bidirectional},
    net::{UnixListener, UnixStream},
    sync::watch,
    time::{sleep, timeout},
};
use tonic::transport::Endpoint;

use super::{
    calls::reason,
    support::{
        pki,
        sidecar::{NODE, Sidecar, UNGRANTED, dek, eventually, wrapped_deks},
    },
};

const MINUTE: Duration = Duration::from_secs(60);

fn items(wrapped: Vec<WrappedDek>) -> impl stream::Stream<Item = Item> {
    let item = |(id, wrapped)| Item { id, wrapped, context: vec![] };
    stream::iter((0_u64..).zip(wrapped).map(item))
}

async fn mixed_items(client: &Client) {
    let good = client.wrap("orders", &dek(), b"").await.unwrap();
    let expected = |id: u64| match id % 4 {
        0 => None,
        1 => Some("CIPHERTEXT_INVALID"),
        2 => Some("PERMISSION_DENIED"),
        _ => Some("REQUEST_INVALID"),
    };
    let mixed: Vec<_> = (0..1000)
        .map(|id| {
            let mut wrapped = good.clone();
            match id % 4 {
                0 => {}
                1 => wrapped.ciphertext[0] ^= 1,
                2 => wrapped.kek = UNGRANTED.into(),
                _ => wrapped.version = String::new(),
            }
            Item { id, wrapped, context: vec![] }
        })
        .collect();
    let answers = client.unwrap_stream(stream::iter(mixed), MINUTE).await.unwrap();
    let answers: Vec<_> = answers.collect().await;
    assert_eq!(answers.len(), 1000);
    let mut seen = HashMap::new();
    for answer in answers {
        let Answer { id, outcome } = answer.unwrap();
        let failed = outcome.as_ref().err().map(|error| error.reason().to_owned());
        assert_eq!(failed.as_deref(), expected(id), "item {id}");
        if let Ok(unwrapped) = outcome {
            assert!(unwrapped.ct_eq(dek().expose()));
        }
        assert!(seen.insert(id, ()).is_none(), "item {id} was answered twice");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_item_is_one_answer_over_the_unix_socket() {
    let sidecar = Sidecar::start().await;
    mixed_items(&sidecar.client()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_item_is_one_answer_over_mutual_tls() {
    let sidecar = Sidecar::start().await;
    let files = sidecar.pki.client("node", vec![pki::uri(NODE)]);
    mixed_items(&sidecar.tls_client(files)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_the_window_is_in_work() {
    let sidecar = Sidecar::start().await;
    let client = sidecar.client();
    let wrapped = wrapped_deks(&client, 500).await;
    sidecar.fake.hold.send_replace(true);
    let answers = client.unwrap_stream(items(wrapped), MINUTE).await.unwrap();
    let reading = tokio::spawn(
        answers
            .filter(|answer| {
                let ok = answer.as_ref().is_ok_and(|answer| answer.outcome.is_ok());
                async move { ok }
            })
            .count(),
    );
    eventually("the window is full", || sidecar.fake.running() == UNWRAP_STREAM_WINDOW).await;
    sleep(Duration::from_millis(100)).await;
    assert_eq!(sidecar.fake.unwraps(), UNWRAP_STREAM_WINDOW);
    sidecar.fake.hold.send_replace(false);
    assert_eq!(reading.await.unwrap(), 500);
    assert_eq!(sidecar.fake.peak(), UNWRAP_STREAM_WINDOW);
}

#[tokio::test(flavor = "multi_thread")]
async fn rewraps_have_a_smaller_window() {
    let sidecar = Sidecar::start().await;
    let client = sidecar.client();
    let mut wrapped = client.wrap("orders", &dek(), b"").await.unwrap();
    // Without a fingerprint it is wrapped anew.
    wrapped.kek_fingerprint.clear();
    let answers = client.rewrap_stream(items(vec![wrapped; 100]), MINUTE).await.unwrap();
    let answers: Vec<_> = answers.collect().await;
    assert_eq!(answers.len(), 100);
    for answer in answers {
        let rewrapped = answer.unwrap().outcome.unwrap();
        assert!(rewrapped.changed);
        assert_eq!(rewrapped.wrapped.kek_fingerprint.len(), 32);
    }
    assert!(sidecar.fake.peak() <= REWRAP_STREAM_WINDOW);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_not_worked_for() {
    let sidecar = Sidecar::start().await;
    let wrapped = sidecar.client().wrap("orders", &dek(), b"").await.unwrap();
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let endless = stream::repeat(()).map(move |()| {
        counted.fetch_add(1, Ordering::Relaxed);
        wire::UnwrapStreamRequest {
            id: 1,
            wrapped: Some(wrapped.clone()),
            context: vec![],
            session: vec![],
            ..Default::default()
        }
    });
    // The window that HTTP/2 starts with; whatever a client asks for, it holds itself.
    let endpoint = Endpoint::from_static("http://localhost").initial_stream_window_size(65_535);
    let mut raw = KeyWrapClient::new(sidecar.channel_of(endpoint));
    let _unread = raw.unwrap_stream(endless).await.unwrap();
    let mut last = usize::MAX;
    for _ in 0..50 {
        sleep(Duration::from_millis(200)).await;
        let now = sent.load(Ordering::Relaxed);
        if now == last && now > 0 {
            break;
        }
        last = now;
    }
    // What fits the buffers of both ends and the client's window, at some 40 bytes each.
    assert_eq!(sent.load(Ordering::Relaxed), last, "it still goes on");
    assert!(last < 10_000, "{last} items for nobody");
    // Others are served.
    assert!(sidecar.client().list_keks().await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_takes_its_work_along() {
    let sidecar = Sidecar::start().await;
    let client = sidecar.client();
    let mut wrapped = wrapped_deks(&client, 501).await;
    let one = wrapped.remove(500);
    sidecar.fake.hold.send_replace(true);
    let answers = client.unwrap_stream(items(wrapped), MINUTE).await.unwrap();
    let unary = tokio::spawn({
        let client = client.clone();
        async move { client.unwrap(&one, b"").await }
    });
    eventually("work began", || sidecar.fake.running() == UNWRAP_STREAM_WINDOW + 1).await;
    drop(answers);
    unary.abort();
    eventually("the work is dropped", || sidecar.fake.running() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_at_its_deadline() {
    let sidecar = Sidecar::start().await;
    let client = sidecar.client();
    let wrapped = client.wrap("orders", &dek(), b"").await.unwrap();
    let forever = items(vec![wrapped]).chain(stream::pending());
    let mut answers = client.unwrap_stream(forever, Duration::from_millis(500)).await.unwrap();
    assert!(answers.next().await.unwrap().unwrap().outcome.is_ok());
    let end = timeout(Duration::from_secs(5), answers.next()).await.unwrap();
    assert_eq!(end.unwrap().unwrap_err().reason(), "DEADLINE_EXCEEDED");
    assert!(answers.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_beyond_what_a_clock_counts_to_is_a_long_one() {
    let sidecar = Sidecar::start().await;
    let client = sidecar.client().with_deadline(Duration::MAX);
    let wrapped = client.wrap("orders", &dek(), b"").await.unwrap();
    let answers = client.unwrap_stream(items(vec![wrapped]), Duration::MAX).await.unwrap();
    let answers: Vec<_> = answers.collect().await;
    assert!(answers.len() == 1 && answers[0].as_ref().unwrap().outcome.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_too_large_ends_its_stream_with_a_reason() {
    let sidecar = Sidecar::start().await;
    let wrapped = sidecar.client().wrap("orders", &dek(), b"").await.unwrap();
    let large = wire::UnwrapStreamRequest {
        id: 2,
        wrapped: Some(wrapped.clone()),
        context: vec![0; 70_000],
        session: vec![],
        ..Default::default()
    };
    let good = wire::UnwrapStreamRequest {
        id: 1,
        wrapped: Some(wrapped),
        context: vec![],
        session: vec![],
        ..Default::default()
    };
    let sent = stream::iter([good, large]).chain(stream::pending());
    let mut answers = sidecar.raw().unwrap_stream(sent).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().id, 1);
    let end = answers.message().await.unwrap_err();
    assert_eq!(
        (end.code(), reason(&end).as_str()),
        (tonic::Code::ResourceExhausted, "MESSAGE_TOO_LARGE")
    );
}

/// A way to a socket that can be cut: what was connected over it is connected no more.
struct Cuttable {
    path: PathBuf,
    cut: watch::Sender<u32>,
}

impl Cuttable {
    fn to(socket: PathBuf) -> Self {
        let path = socket.with_extension("way");
        let listener = UnixListener::bind(&path).unwrap();
        let cut = watch::Sender::new(0);
        let cuts = cut.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (socket, mut cuts) = (socket.clone(), cuts.subscribe());
                tokio::spawn(async move {
                    let mut far = UnixStream::connect(socket).await.unwrap();
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Self { path, cut }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_when_its_connection_is_cut() {
    let sidecar = Sidecar::start().await;
    let way = Cuttable::to(sidecar.socket());
    let client = Client::new(&keyward::client::Endpoint::unix(&way.path)).unwrap().failing_fast();
    let wrapped = wrapped_deks(&client, 200).await;
    for rewrap in [false, true] {
        let asked = items(wrapped.clone()).then(|item| async move {
            sleep(Duration::from_millis(2)).await;
            item
        });
        let answers = match rewrap {
            false => client.unwrap_stream(asked, MINUTE).await.unwrap().map(id_of).boxed(),
            true => client.rewrap_stream(asked, MINUTE).await.unwrap().map(id_of).boxed(),
        };
        let ids = answers.enumerate().map(|(n, id)| {
            // Three times, each with answers in between.
            if n % 50 == 25 {
                way.cut.send_modify(|cut| *cut += 1);
            }
            id
        });
        let mut ids: Vec<_> = ids.collect().await;
        ids.sort_unstable();
        assert_eq!(ids, (0..200).collect::<Vec<_>>(), "each item is answered once");
    }
}

fn id_of<T>(answer: Result<Answer<T>, keyward::client::Error>) -> u64 {
    let Answer { id, outcome } = answer.expect("the stream does not end");
    assert!(outcome.is_ok());
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_connections_bring_no_answer_is_given_up() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("k.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let accepted = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&accepted);
    // Takes connections, reads a little, and cuts them.
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            stream.read_exact(&mut [0; 100]).await.unwrap();
        }
    });
    let client = Client::new(&keyward::client::Endpoint::unix(path)).unwrap().failing_fast();
    let wrapped = WrappedDek { ciphertext: vec![1; 256], ..WrappedDek::default() };
    let opened = client.unwrap_stream(items(vec![wrapped]), MINUTE).await;
    let error = opened.err().expect("nobody is there");
    assert_eq!(error.reason(), keyward::client::Error::SIDECAR_UNREACHABLE);
    assert_eq!(accepted.load(Ordering::Relaxed), ATTEMPTS_MAX as usize);
}
