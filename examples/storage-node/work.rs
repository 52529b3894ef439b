//! A node at work: writes pages until it is stopped, or killed, and tells on standard output
//! what it has acknowledged, a line each:
//!
//! ```text
//! have SEGMENT PAGE VERSION      a page that was there when it began
//! ready
//! ack SEGMENT PAGE VERSION       a page that is on the disk now
//! dark SEGMENTS WHY   light SEGMENTS   rewrapped SEGMENTS VERSION   trouble WHAT
//! ```
//!
//! Standard input: `rest` has it write no more, `work` go on, its end ends the node.

use std::{
    collections::HashMap,
    io::{self, BufRead},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use crate::{
    Failure,
    node::{News, Node, Settings},
    options::Options,
    pages::{fill, random, version},
    store::{Error, format::Address},
};

const WRITERS: u64 = 4;
const PAGES_PER_SEGMENT: u32 = 16;
const SEGMENTS_AT_FIRST: u64 = 24;
const SEGMENTS_MAX: u64 = 160;

pub fn run(options: &Options) -> Result<(), Failure> {
    let dir = options.dir.as_deref().unwrap_or_else(|| Path::new("."));
    let (tell, news) = mpsc::channel();
    let settings = Settings { pages_per_segment: PAGES_PER_SEGMENT, silence: options.silence };
    let node = Node::open(dir, options.client()?, &options.kek, settings, tell)?;
    let node = Arc::new(node);
    thread::spawn({
        let node = Arc::clone(&node);
        move || news.iter().for_each(|news| told(&node, &news))
    });
    node.add_segments(SEGMENTS_AT_FIRST.saturating_sub(node.store().segments()))?;
    let mut written = read_all(&node)?;
    println!("ready");
    let resting = Arc::new(AtomicBool::new(false));
    for writer in 0..WRITERS {
        let (node, resting) = (Arc::clone(&node), Arc::clone(&resting));
        let mine = written.extract_if(|at, _| owner(*at) == writer).collect();
        thread::spawn(move || write(&node, writer, mine, &resting));
    }
    for line in io::stdin().lock().lines() {
        match line?.as_str() {
            "rest" => resting.store(true, Ordering::Release),
            "work" => resting.store(false, Ordering::Release),
            other => return Err(format!("what is {other:?}?").into()),
        }
    }
    Ok(())
}

fn told(node: &Node, news: &News) {
    match news {
        News::Dark(why) => println!("dark {} {why}", node.dark()),
        News::Light(segments) => println!("light {segments}"),
        News::Rewrapped(segments, version) => println!("rewrapped {segments} {version}"),
        News::Trouble(what) => println!("trouble {what}"),
    }
}

/// Reads every page, and tells what there is.
fn read_all(node: &Node) -> Result<HashMap<Address, u64>, Failure> {
    let mut written = HashMap::new();
    for segment in 0..node.store().segments() {
        for page in 0..node.store().pages_per_segment() {
            let at = Address { segment, page };
            let read = match node.store().read_page(at) {
                Ok(read) => read,
                Err(Error::Dark(_)) => continue,
                Err(error) => return Err(error.into()),
            };
            if let Some(read) = read {
                let version =
                    version(at, &read).ok_or_else(|| format!("{at:?} has another's page"))?;
                println!("have {segment} {page} {version}");
                written.insert(at, version);
            }
        }
    }
    Ok(written)
}

/// Each page has one writer, so that its versions follow one another.
fn owner(at: Address) -> u64 {
    (at.segment * 31 + u64::from(at.page)) % WRITERS
}

fn write(node: &Node, writer: u64, mut written: HashMap<Address, u64>, resting: &AtomicBool) {
    loop {
        if resting.load(Ordering::Acquire) {
            thread::sleep(Duration::from_millis(5));
            continue;
        }
        let segments = node.store().segments();
        if writer == 0 && segments < SEGMENTS_MAX && random(50) == 0 {
            // If it is not to be, the next one is.
            let _added = node.add_segments(1);
        }
        let page = random(u64::from(node.store().pages_per_segment())) as u32;
        let at = Address { segment: random(segments), page };
        if owner(at) != writer {
            continue;
        }
        let version = written.get(&at).copied().unwrap_or_default() + 1;
        match node.store().write_page(at, &fill(at, version)) {
            Ok(()) => {
                println!("ack {} {} {version}", at.segment, at.page);
                written.insert(at, version);
            }
            // Nothing of it was written.
            Err(Error::Dark(_)) => thread::sleep(Duration::from_millis(5)),
            Err(error) => {
                println!("trouble {error}");
                return;
            }
        }
    }
}
