//! A node that is killed (-9) at any moment, of writing, of rotation, of rewrapping: every page
//! that it acknowledged reads back.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

use super::{
    operated,
    served::KEK,
    work::{Known, Work},
};

/// Kills in each of the four tests: 200 in all.
const KILLS: u32 = 50;
/// Every so many kills the KEK is rotated just before, so that data keys are being rewrapped.
const ROTATE_EVERY: u32 = 5;

fn up_to(longest: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish() >> 11;
    longest.mul_f64(random as f64 / (1_u64 << 53) as f64)
}

async fn killed_again_and_again() {
    let served = operated();
    let dir = served.dir().join("store");
    let client = served.client();
    let mut known = Known::default();
    let (mut acknowledged, mut in_rewrap, mut rewrapped) = (0, 0, 0);
    for kill in 0..KILLS {
        let node = Work::start(&served, &dir, &[]);
        known.found(&node.until("it opens", |line| line == "ready"));
        let rotates = kill % ROTATE_EVERY == ROTATE_EVERY - 1;
        if rotates {
            served.add_version(&format!("{:02x}", 0x10 + kill));
            client.reload(Some(KEK)).await.expect("the sidecar reads the token");
        }
        std::thread::sleep(up_to(Duration::from_millis(if rotates { 150 } else { 400 })));
        let said = node.kill();
        let trouble: Vec<_> = said.iter().filter(|line| line.starts_with("trouble")).collect();
        assert!(trouble.is_empty(), "{trouble:?}");
        acknowledged += known.acknowledged(&said);
        let done = said.iter().any(|line| line.starts_with("rewrapped"));
        rewrapped += usize::from(done);
        in_rewrap += usize::from(rotates && !done);
    }
    let node = Work::start(&served, &dir, &[]);
    known.found(&node.until("it opens", |line| line == "ready"));
    println!(
        "{KILLS} kills, {in_rewrap} of them while data keys were rewrapped ({rewrapped} times that \
         came to its end); {acknowledged} writes acknowledged, {} pages",
        known.pages().count()
    );
    assert!(acknowledged > 1000 && in_rewrap > 0 && rewrapped > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_page_reads_back_first() {
    killed_again_and_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_page_reads_back_second() {
    killed_again_and_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_page_reads_back_third() {
    killed_again_and_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_page_reads_back_fourth() {
    killed_again_and_again().await;
}
