//! A rotation while 64 callers work: none of their calls fails, new DEKs are under the new
//! version, and the old ones move to it, also when that is interrupted half way.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use keyward::{
    client::{Client, Item, WrappedDek},
    secret::Secret,
};
use tokio::time::sleep;

use super::{
    home::{Home, on_each_home},
    load::{Caller, Load, Wants, assert_only, outcomes, wrap},
    served::{KEK, Served},
};

/// DEKs that move. A debug build and SoftHSM on two cores do some hundreds in a second.
const DEKS: u64 = 1500;

fn dek(n: u64) -> Secret {
    Secret::new([n.to_be_bytes(), [7; 8], [8; 8], [9; 8]].concat())
}

/// 64 callers, half of them for what is in memory, who are not in a hurry.
fn callers() -> impl Iterator<Item = Caller> {
    (0..64).map(|n| Caller {
        kek: KEK,
        wants: if n % 2 == 0 { Wants::Cached } else { Wants::Fresh },
        rest: Duration::from_millis(400),
    })
}

async fn wrapped_deks(client: &Client) -> BTreeMap<u64, WrappedDek> {
    let each = stream::iter(0..DEKS)
        .map(|n| async move { (n, client.wrap(KEK, &dek(n), b"").await.expect("a wrapped DEK")) });
    each.buffer_unordered(16).collect().await
}

/// Has what is in `from` rewrapped, until `enough` are, and moves those to `to`.
async fn move_some(
    client: &Client,
    from: &mut BTreeMap<u64, WrappedDek>,
    to: &mut BTreeMap<u64, WrappedDek>,
    enough: usize,
) {
    let items: Vec<_> = from
        .iter()
        .map(|(id, wrapped)| Item { id: *id, wrapped: wrapped.clone(), context: vec![] })
        .collect();
    let timeout = Duration::from_secs(120);
    let answers = client.rewrap_stream(stream::iter(items), timeout).await.expect("a stream");
    let mut answers = answers.take(enough);
    while let Some(answer) = answers.next().await {
        let answer = answer.expect("the stream goes on");
        let moved = answer.outcome.expect("it is rewrapped");
        assert!(moved.changed, "it was under the old version");
        from.remove(&answer.id).expect("it was sent, and answered once");
        assert!(to.insert(answer.id, moved.wrapped).is_none());
    }
}

async fn nobody_notices_a_rotation_and_every_dek_moves(home: Home) {
    let mut served = Served::prepare_on(home);
    served.configure(|config| {
        config
            .replace("interval = \"1s\"", "interval = \"3s\"")
            .replace("\"describe\"]", "\"describe\", \"reload\"]")
    });
    served.serve();
    let client = served.client().with_deadline(Duration::from_secs(30));
    let old = served.current_version().expect("a version");
    let mut left = wrapped_deks(&client).await;
    let load = Load::start(&client, callers());
    load.served().await;
    let began = Instant::now();

    let new = served.add_version("b2");
    let rotated = Instant::now();
    // Within the poll: nobody says anything.
    let followed = loop {
        let wrapped = wrap(&client, KEK).await.expect("a wrapped DEK");
        if wrapped.version == new {
            break rotated.elapsed();
        }
        assert_eq!(wrapped.version, old);
        assert!(rotated.elapsed() < Duration::from_secs(15), "{}", served.log());
        sleep(Duration::from_millis(20)).await;
    };
    println!("{home:?}: current after {:.2} lease intervals", followed.as_secs_f64() / 3.0);
    let mut moved = BTreeMap::new();
    move_some(&client, &mut left, &mut moved, DEKS as usize / 3).await;
    load.served().await;
    let calls = load.end().await;
    assert_only(&outcomes(calls.values().flatten(), began, Instant::now()), &["OK"]);

    // Interrupted: what was answered is kept, what was not is sent again.
    served.signal("-KILL");
    served.wait();
    served.serve();
    let client = served.client().with_deadline(Duration::from_secs(30));
    assert_eq!(moved.len() + left.len(), DEKS as usize);
    move_some(&client, &mut left, &mut moved, DEKS as usize).await;
    assert!(left.is_empty() && moved.len() == DEKS as usize, "none is lost");
    for (n, wrapped) in &moved {
        assert_eq!(wrapped.version, new);
        // Each was unwrapped before it was answered; some once more, with our own eyes.
        if n % 50 == 0 {
            let unwrapped = client.unwrap(wrapped, b"").await.expect("it unwraps");
            assert!(unwrapped.ct_eq(dek(*n).expose()), "another's DEK");
        }
    }
    // Once more, nothing changes.
    let items = moved.iter().take(100);
    let items: Vec<_> = items
        .map(|(id, wrapped)| Item { id: *id, wrapped: wrapped.clone(), context: vec![] })
        .collect();
    let again = client.rewrap_stream(stream::iter(items), Duration::from_secs(60)).await;
    let again: Vec<_> = again.expect("a stream").collect().await;
    assert_eq!(again.len(), 100);
    for answer in again {
        let answer = answer.expect("an answer");
        let passed = answer.outcome.expect("it passes through");
        assert!(!passed.changed && passed.wrapped == moved[&answer.id]);
    }
}

on_each_home! {
    asynchronous: nobody_notices_a_rotation_and_every_dek_moves;
}
