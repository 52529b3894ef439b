//! Sealed delivery over real gRPC: our client, and a client that does by hand what the proto
//! file says.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use keyward::{
    client::{Client, Delivery, Error, Item, Locker},
    sealed::{About, Offer, Session},
    secret::Secret,
    wire::{self, SealedDek, unwrap_stream_response::Outcome},
};
use tonic::Code;

use crate::{
    calls::reason,
    support::{
        pki,
        sidecar::{NODE, Parts, Sidecar, dek, eventually},
    },
};

fn heap(len: usize) -> Option<Secret> {
    Some(Secret::zeroed(len))
}

/// What a client does by hand.
struct ByHand {
    session: Session,
    raw: wire::key_wrap_client::KeyWrapClient<tonic::transport::Channel>,
}

impl ByHand {
    async fn open(sidecar: &Sidecar) -> Self {
        let mut raw = sidecar.raw();
        let offer = Offer::new().unwrap();
        let request = wire::OpenSessionRequest { public_key: offer.public_key().to_vec() };
        let opened = raw.open_session(request).await.unwrap().into_inner();
        assert_eq!(opened.age.unwrap().seconds, 3600);
        assert_eq!(opened.messages, 1 << 24);
        let wire::OpenSessionResponse { session, public_key, sealed_keys, .. } = opened;
        let session = offer.finish(&session, &public_key, &sealed_keys, heap).unwrap();
        Self { session, raw }
    }

    fn id(&self) -> Vec<u8> {
        self.session.id().to_vec()
    }

    fn seal(&self, about: About<'_>) -> SealedDek {
        let sealed = self.session.seal(&dek(), about).unwrap();
        SealedDek { session: self.id(), number: sealed.number, ciphertext: sealed.ciphertext }
    }

    fn opens(&self, sealed: &SealedDek, about: About<'_>) -> Secret {
        self.session.open(sealed.number, &sealed.ciphertext, about, heap).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wire_is_as_the_proto_file_says() {
    let sidecar = Sidecar::start().await;
    let mut client = ByHand::open(&sidecar).await;
    let context = b"tenant 7".to_vec();
    let sealed = client.seal(About { subject: b"orders", context: &context });
    let request = wire::WrapRequest {
        kek: "orders".into(),
        dek: vec![],
        context: context.clone(),
        sealed: Some(sealed),
    };
    let wrapped = client.raw.wrap(request).await.unwrap().into_inner().wrapped.unwrap();
    let about = About { subject: &wrapped.ciphertext, context: &context };

    let session = client.id();
    let request =
        wire::UnwrapRequest { wrapped: Some(wrapped.clone()), context: context.clone(), session };
    let mut numbers = Vec::new();
    for _ in 0..3 {
        let answer = client.raw.unwrap(request.clone()).await.unwrap().into_inner();
        assert!(answer.dek.is_empty(), "nothing in the clear");
        let sealed = answer.sealed.as_ref().unwrap();
        assert!(client.opens(sealed, about).ct_eq(dek().expose()));
        numbers.push(sealed.number);
    }
    assert_eq!(numbers, [0, 1, 2], "no number comes twice");

    let request = wire::GenerateDekRequest {
        kek: "orders".into(),
        length: 48,
        context: context.clone(),
        session: client.id(),
        ..Default::default()
    };
    let made = client.raw.generate_dek(request).await.unwrap().into_inner();
    assert!(made.dek.is_empty());
    let subject = &made.wrapped.as_ref().unwrap().ciphertext;
    let fresh = client.opens(made.sealed.as_ref().unwrap(), About { subject, context: &context });
    let plain = sidecar.plain_client();
    let unwrapped = plain.unwrap(made.wrapped.as_ref().unwrap(), &context).await.unwrap();
    assert!(fresh.len() == 48 && unwrapped.ct_eq(fresh.expose()));

    let item = wire::UnwrapStreamRequest {
        id: 9,
        wrapped: Some(wrapped.clone()),
        context: context.clone(),
        session: client.id(),
        ..Default::default()
    };
    let plain_item = wire::UnwrapStreamRequest { id: 10, session: vec![], ..item.clone() };
    let sent = stream::iter([item, plain_item]);
    let mut answers = client.raw.unwrap_stream(sent).await.unwrap().into_inner();
    for _ in 0..2 {
        let answer = answers.message().await.unwrap().unwrap();
        match (answer.id, answer.outcome.as_ref().unwrap()) {
            (9, Outcome::Sealed(sealed)) => {
                assert!(client.opens(sealed, about).ct_eq(dek().expose()));
            }
            (10, Outcome::Dek(plain)) => assert_eq!(plain, dek().expose()),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_sealed_for_this_is_refused_and_a_stranger_s_session_is_none() {
    let sidecar = Sidecar::start().await;
    let mut client = ByHand::open(&sidecar).await;
    let good = client.seal(About { subject: b"orders", context: b"" });
    let request = |kek: &str, dek: Vec<u8>, context: &[u8], sealed: SealedDek| wire::WrapRequest {
        kek: kek.into(),
        dek,
        context: context.to_vec(),
        sealed: Some(sealed),
    };
    let mut refused = async |request| reason(&client.raw.wrap(request).await.unwrap_err());
    let spoilt = |spoil: fn(&mut SealedDek)| {
        let mut sealed = good.clone();
        spoil(&mut sealed);
        sealed
    };
    let invalid = [
        request("orders-2", vec![], b"", good.clone()),
        request("orders", vec![], b"other", good.clone()),
        request("orders", dek().expose().to_vec(), b"", good.clone()),
        request("orders", vec![], b"", spoilt(|sealed| sealed.number += 1)),
        request("orders", vec![], b"", spoilt(|sealed| sealed.ciphertext[0] ^= 1)),
        request("orders", vec![], b"", spoilt(|sealed| sealed.ciphertext.clear())),
        request("orders", vec![], b"", spoilt(|sealed| _ = sealed.session.pop())),
        request("orders", vec![], b"", spoilt(|sealed| sealed.ciphertext = vec![0; 4096])),
    ];
    for (which, request) in invalid.into_iter().enumerate() {
        assert_eq!(refused(request).await, "REQUEST_INVALID", "{which}");
    }
    let none = request("orders", vec![], b"", spoilt(|sealed| sealed.session[0] ^= 1));
    assert_eq!(refused(none).await, "SESSION_NOT_FOUND");
    // An empty name of a session is not a way to send what is sealed as if it were plain.
    let unnamed = request("orders", vec![], b"", spoilt(|sealed| sealed.session.clear()));
    assert_eq!(refused(unnamed).await, "REQUEST_INVALID");

    // The same session over the other listener, where the caller is somebody else.
    let files = sidecar.pki.client("node", vec![pki::uri(NODE)]);
    let mut stranger = sidecar.tls_raw(&files);
    let status = stranger.wrap(request("orders", vec![], b"", good.clone())).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::FailedPrecondition, "SESSION_NOT_FOUND")
    );
    // Its own caller can go on with it over another connection.
    let again = sidecar.raw().wrap(request("orders", vec![], b"", good)).await;
    assert!(again.unwrap().into_inner().wrapped.is_some());

    let nobody = sidecar.pki.client("nobody", vec![pki::uri("spiffe://example.org/nobody")]);
    let offer = Offer::new().unwrap();
    let open = wire::OpenSessionRequest { public_key: offer.public_key().to_vec() };
    let status = sidecar.tls_raw(&nobody).open_session(open).await.unwrap_err();
    assert_eq!(reason(&status), "PERMISSION_DENIED");
}

/// Every operation of our client that carries a DEK.
async fn works(client: &Client) -> Result<(), Error> {
    let wrapped = client.wrap("orders", &dek(), b"c").await?;
    assert!(client.unwrap(&wrapped, b"c").await?.ct_eq(dek().expose()));
    let (made, of_it) = client.generate("orders", 64, b"c").await?;
    assert!(client.unwrap(&of_it, b"c").await?.ct_eq(made.expose()));
    let items = [wrapped, of_it].into_iter().enumerate();
    let items = items.map(|(id, wrapped)| Item { id: id as u64, wrapped, context: b"c".to_vec() });
    let timeout = Duration::from_secs(10);
    let answers = client.unwrap_stream(stream::iter(items.collect::<Vec<_>>()), timeout).await?;
    let answers: Vec<_> = answers.collect().await;
    assert_eq!(answers.len(), 2);
    for answer in answers {
        let answer = answer?;
        let expected = if answer.id == 0 { dek() } else { Secret::copy_of(made.expose()) };
        assert!(answer.outcome?.ct_eq(expected.expose()));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn our_client_seals_unless_it_is_told_not_to() {
    let sidecar = Sidecar::start().await;
    works(&sidecar.client()).await.unwrap();
    assert_eq!(sidecar.sessions.len(), 1, "one session for all");
    works(&sidecar.plain_client()).await.unwrap();
    assert_eq!(sidecar.sessions.len(), 1);
    let files = sidecar.pki.client("node", vec![pki::uri(NODE)]);
    works(&sidecar.tls_client(files)).await.unwrap();
    assert_eq!(sidecar.sessions.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_ends_sessions_is_no_error_to_a_caller() {
    let sidecar = Sidecar::start().await;
    let client = sidecar.client();
    works(&client).await.unwrap();
    let orders = keyward::kek::KekName::parse("orders").unwrap();
    for _ in 0..3 {
        let ended = sidecar.engine.sessions().close(&orders, Duration::from_secs(5)).await;
        assert_eq!((ended.told, ended.left_open), (1, 0), "it carried DEKs of the KEK");
        assert_eq!(sidecar.sessions.len(), 0);
        works(&client).await.unwrap();
    }
    let purged = client.purge(Some("orders")).await.unwrap();
    assert_eq!((purged.connections, purged.sessions, purged.left_open), (0, 1, 0));
    works(&client).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_renewed_while_callers_go_on() {
    let age = Duration::from_millis(1000);
    let sidecar = Sidecar::start_of(Parts::default(), |settings| settings.session_age = age).await;
    let client = sidecar.client();
    let wrapped = client.wrap("orders", &dek(), b"").await.unwrap();
    let callers = (0..16).map(|_| {
        let (client, wrapped) = (client.clone(), wrapped.clone());
        tokio::spawn(async move {
            let began = std::time::Instant::now();
            while began.elapsed() < age * 4 {
                assert!(client.unwrap(&wrapped, b"").await.unwrap().ct_eq(dek().expose()));
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    assert!((1..=2).contains(&sidecar.sessions.len()), "the old ones ended");
    eventually("all have ended", || sidecar.sessions.is_empty()).await;
    works(&client).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn deks_and_keys_stand_in_the_locker_and_it_may_be_full() {
    let sidecar = Sidecar::start().await;
    let locker = Locker::new(4, true).unwrap();
    let client = sidecar.client().with_locker(locker.clone());
    let wrapped = client.wrap("orders", &dek(), b"").await.unwrap();
    assert_eq!(locker.free(), 3, "the session's keys");
    let held = [(); 3].map(|()| client.unwrap(&wrapped, b""));
    let held = futures_util::future::try_join_all(held).await.unwrap();
    assert!(held.iter().all(|held| held.ct_eq(dek().expose())));
    assert_eq!(locker.free(), 0);
    for client in [client.clone(), client.clone().with_delivery(Delivery::Plain)] {
        let full = client.unwrap(&wrapped, b"").await.unwrap_err();
        assert_eq!(full.reason(), Error::LOCKER_FULL);
        assert!(full.fix().unwrap().contains("locker"));
    }
    drop(held);
    let plain = client.clone().with_delivery(Delivery::Plain);
    let held = plain.unwrap(&wrapped, b"").await.unwrap();
    assert_eq!(locker.free(), 2);
    drop((held, client, plain));
    eventually("the client's own is back", || locker.free() == 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_sessions_are_open_than_there_is_room_for() {
    let sidecar = Sidecar::start_of(Parts::default(), |settings| settings.sessions = 8).await;
    let clients: Vec<_> = (0..5).map(|_| sidecar.client()).collect();
    for client in &clients {
        works(client).await.unwrap();
    }
    assert_eq!(sidecar.sessions.len(), 2, "a quarter");
    // Those whose session was ended open another, and end somebody else's.
    for client in &clients {
        works(client).await.unwrap();
    }
    assert_eq!(sidecar.sessions.len(), 2);
}
