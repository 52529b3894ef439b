//! Connections that live for 50 milliseconds, and sidecars that follow one another on one
//! socket: sixty-four callers are told no error.

use std::time::{Duration, Instant};

use keyward::client::{Client, Delivery, Endpoint};
use tokio::time::sleep;

use super::support::{
    crowd::{Crowd, assert_unharmed},
    sidecar::{Parts, Sidecar},
};

const LONG: Duration = Duration::from_secs(30);
const AGE: Duration = Duration::from_millis(50);

async fn short_lived(change: impl FnOnce(&mut keyward::server::Settings)) -> Sidecar {
    let parts = Parts { connection_age: AGE, ..Parts::default() };
    Sidecar::start_of(parts, change).await
}

#[tokio::test(flavor = "multi_thread")]
async fn goaway_every_50_milliseconds_harms_nobody() {
    let first = short_lived(|_| {}).await;
    let socket = first.socket();
    let client = || Client::new(&Endpoint::unix(&socket)).unwrap();
    let crowd = Crowd::start(&[client(), client().with_delivery(Delivery::Plain)], "orders").await;
    let until = Instant::now() + LONG;
    let (mut sidecar, mut followed, mut goodbyes) = (first, 0, 0.0);
    let mut homes = Vec::new();
    while Instant::now() < until {
        sleep(Duration::from_secs(3)).await;
        goodbyes += closed_by_age(&sidecar);
        let fake = sidecar.fake.clone();
        homes.push(sidecar.ended().await);
        let path = socket.clone();
        let parts = Parts { connection_age: AGE, fake, ..Parts::default() };
        let at = |settings: &mut keyward::server::Settings| {
            settings.socket.as_mut().unwrap().path = path;
        };
        sidecar = Sidecar::start_of(parts, at).await;
        followed += 1;
    }
    let met = crowd.end().await;
    println!("{followed} sidecars followed, {goodbyes} connections ended with GOAWAY");
    assert_unharmed(&met, 20_000);
    // Two clients, each with one connection at a time.
    assert!(goodbyes > 500.0, "{goodbyes}");
}

fn closed_by_age(sidecar: &Sidecar) -> f64 {
    let text = sidecar.metrics.render();
    let name = "keyward_connections_closed_total{cause=\"age\"} ";
    let count = text.lines().find_map(|line| line.strip_prefix(name));
    count.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().expect("a number")
}
