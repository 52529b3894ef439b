//! A node whose KEK is taken away: no page is readable, and nothing in its process could make
//! one so.

use std::{os::unix::fs::FileExt, path::Path, time::Duration};

use keyward::client::Client;

use super::{
    operated,
    pages::fill,
    scanner::{Copies, Sought, assert_none, list, scan},
    served::{KEK, Served},
    store::format::{Address, HEADER, Header, HeaderBlock, PAGE, SUPERBLOCK, Superblock},
    work::{Known, Work},
};

/// The wrapped DEKs of a store, unwrapped by us.
async fn deks(dir: &Path, client: &Client) -> Vec<Sought> {
    let pages = std::fs::File::open(dir.join("pages")).expect("a store");
    let mut block = [0; SUPERBLOCK];
    pages.read_exact_at(&mut block, 0).expect("a superblock");
    let superblock = Superblock::decode(&block).expect("a superblock");
    let mut deks = Vec::new();
    for segment in 0.. {
        let mut block = [0; HEADER];
        let read = pages.read_exact_at(&mut block, superblock.header_at(segment));
        let (Ok(()), HeaderBlock::Header(header)) = (read, Header::decode(&block)) else { break };
        let dek = client.unwrap(&header.wrapped, &header.context).await.expect("a DEK");
        deks.push(Sought { name: format!("dek-{segment}"), bytes: dek.expose().to_vec() });
    }
    deks
}

/// Of some pages, 32 bytes.
fn pieces(known: &Known) -> Vec<Sought> {
    let piece = |(at, version): (Address, u64)| Sought {
        name: format!("page-{}-{}", at.segment, at.page),
        bytes: fill(at, version)[PAGE / 2..PAGE / 2 + 32].to_vec(),
    };
    known.pages().take(100).map(piece).collect()
}

struct Scene {
    served: Served,
    node: Work,
    known: Known,
    sought: Vec<Sought>,
}

/// A node that has written, and rests.
async fn resting(more: &[&str]) -> Scene {
    let served = operated();
    let dir = served.dir().join("store");
    let mut node = Work::start(&served, &dir, more);
    let mut known = Known::default();
    known.found(&node.until("it opens", |line| line == "ready"));
    known.acknowledged(&node.within(Duration::from_secs(1)));
    node.say("rest");
    // What is in work comes to its end.
    known.acknowledged(&node.within(Duration::from_millis(500)));
    let mut sought = deks(&dir, &served.client()).await;
    assert!(sought.len() >= 24);
    sought.extend(pieces(&known));
    Scene { served, node, known, sought }
}

impl Scene {
    fn scan(&self) -> Vec<Copies> {
        scan(self.node.pid(), &self.sought, self.served.dir())
    }

    async fn revoke(&self) {
        self.served.client().revoke(KEK).await.expect("it is revoked");
        let said = self.node.until("it goes dark", |line| line.starts_with("dark"));
        let dark = said.last().expect("a line");
        assert!(dark.ends_with(&format!("KEK_REVOKED ({KEK})")), "{dark}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_node_holds_no_key_and_no_page() {
    // On the heap the scanner sees what there is.
    let scene = resting(&["--heap"]).await;
    let light = scene.scan();
    for sought in scene.sought.iter().filter(|sought| sought.name.starts_with("dek")) {
        let seen = light.iter().filter(|copies| copies.secret == sought.name);
        let in_memory: Vec<_> = seen.filter(|copies| copies.mapping != "core dump").collect();
        assert_eq!(in_memory.len(), 1, "{}: {}", sought.name, list(&light));
        assert_eq!((in_memory[0].kind.as_str(), in_memory[0].count), ("whole", 1));
    }
    assert!(!light.iter().any(|copies| copies.secret.starts_with("page")), "{}", list(&light));
    scene.revoke().await;
    assert_none("revoked", &scene.scan());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_light_node_holds_its_keys_in_locked_memory_alone() {
    let mut scene = resting(&[]).await;
    let light = scene.scan();
    // Where the kernel has secret memory nobody sees them. Otherwise each is there once, in one
    // mapping, which core dumps leave out.
    assert!(
        light.iter().all(|copies| copies.kind == "whole" && copies.count == 1),
        "{}",
        list(&light)
    );
    assert!(light.iter().all(|copies| copies.range == light[0].range), "{}", list(&light));
    assert!(light.iter().all(|copies| copies.secret.starts_with("dek")), "{}", list(&light));
    scene.revoke().await;
    assert_none("revoked", &scene.scan());
    // It asks, and writes nothing, until it may again.
    scene.node.say("work");
    let said = scene.node.within(Duration::from_millis(300));
    assert!(said.is_empty(), "a dark node says {said:?}");
    scene.served.client().restore(KEK).await.expect("it is restored");
    let said = scene.node.until("it goes light", |line| line.starts_with("light"));
    scene.known.acknowledged(&said);
    let said = scene.node.until("it writes", |line| line.starts_with("ack"));
    scene.known.acknowledged(&said);
    // And what it wrote before is there.
    let dir = scene.served.dir().join("store");
    let said = scene.node.kill();
    scene.known.acknowledged(&said);
    let node = Work::start(&scene.served, &dir, &[]);
    scene.known.found(&node.until("it opens", |line| line == "ready"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_hears_nothing_of_its_key_goes_dark_and_comes_back() {
    let mut served = operated();
    let dir = served.dir().join("store");
    let node = Work::start(&served, &dir, &["--silence", "2"]);
    node.until("it opens", |line| line == "ready");
    served.signal("-KILL");
    served.wait();
    let said = node.until("it goes dark", |line| line.starts_with("dark"));
    assert!(said.last().expect("a line").contains("nothing was heard"), "{said:?}");
    // What was on its way is told; then it writes no more.
    node.within(Duration::from_millis(200));
    let said = node.within(Duration::from_secs(1));
    assert!(!said.iter().any(|line| line.starts_with("ack")), "{said:?}");
    served.serve();
    node.until("it goes light", |line| line.starts_with("light"));
    node.until("it writes", |line| line.starts_with("ack"));
}
