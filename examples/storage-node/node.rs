//! A storage node: a page store whose DEKs Keyward unwraps.
//!
//! It opens all segments by one stream. A thread watches the KEK: when it is taken away, or the
//! version that a segment's DEK is wrapped under, the DEKs of this process are dropped at once;
//! when it is back, another thread asks for them again. That thread also rewraps what an older
//! version wrapped, while pages are read and written.
//!
//! Fail closed: a node that has heard nothing of its KEK for [`Settings::silence`], because no
//! sidecar could be reached, cannot know that it still may, and goes dark. It finds out that
//! nobody can be reached within the deadline of a call, ten seconds, which comes on top.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use keyward::client::{
    Error as KeysError, Item, KekCondition, KekEvent, KekEventKind, Secret, blocking,
};

use crate::store::{DEK, Error, Result, Store, format::Header};

/// Opening a store, or rewrapping all of it, may take as long.
const STREAM_WITHIN: Duration = Duration::from_secs(3600);
/// How often the watch looks up from what it waits for.
const LOOK_UP: Duration = Duration::from_millis(200);
/// Between attempts at what did not work.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
const DEADLINE_EXCEEDED: &str = "DEADLINE_EXCEEDED";

/// How a node is set up.
pub struct Settings {
    /// Of a store that is made.
    pub pages_per_segment: u32,
    /// How long DEKs are kept while nothing is heard of the KEK.
    pub silence: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { pages_per_segment: 64, silence: Duration::from_secs(60) }
    }
}

/// What a node tells of itself.
#[derive(Debug)]
pub enum News {
    /// DEKs were dropped, and why.
    Dark(String),
    /// So many segments were opened.
    Light(usize),
    /// The DEKs of so many segments are wrapped under this version since.
    Rewrapped(usize, String),
    /// Something that was tried, and is tried again.
    Trouble(String),
}

/// A node that is running. Dropped, it ends its threads.
pub struct Node {
    store: Arc<Store>,
    client: blocking::Client,
    kek: String,
    ending: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Node {
    /// Opens the store in `dir`, and its segments as far as the sidecar unwraps their DEKs.
    /// What happens to it is told to `news`.
    pub fn open(
        dir: &Path,
        client: blocking::Client,
        kek: &str,
        settings: Settings,
        news: Sender<News>,
    ) -> Result<Self> {
        let store = Arc::new(Store::open(dir, settings.pages_per_segment)?);
        let ending = Arc::new(AtomicBool::new(false));
        let (tell, told) = mpsc::channel();
        let keeper =
            Keeper { store: Arc::clone(&store), client: client.clone(), news: news.clone() };
        let mut watch = Watch {
            store: Arc::clone(&store),
            client: client.clone(),
            kek: kek.to_owned(),
            silence: settings.silence,
            ending: Arc::clone(&ending),
            tell,
            news,
            heard: Instant::now(),
            silent: false,
        };
        // First: a KEK that is taken away while segments are opened is not missed.
        let watching = thread::spawn(move || watch.run());
        let mut node = Self { store, client, kek: kek.to_owned(), ending, threads: vec![watching] };
        keeper.open_segments().map_err(Error::Keys)?;
        node.threads.push(thread::spawn(move || keeper.run(&told)));
        Ok(node)
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Adds so many segments, each with a fresh DEK.
    pub fn add_segments(&self, count: u64) -> Result<()> {
        let generate =
            |context: &[u8]| self.client.generate(&self.kek, DEK, context).map_err(Error::Keys);
        self.store.add_segments(count, generate)
    }

    /// Segments that are dark.
    pub fn dark(&self) -> usize {
        self.store.chosen(|segment, _| !self.store.keys().has(segment)).len()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            let _it_panicked = thread.join();
        }
    }
}

/// What the watch wants done.
enum Order {
    /// Open what is dark.
    Open,
    /// Rewrap what this version did not wrap.
    Rewrap(String),
}

/// Opens segments and rewraps their DEKs.
struct Keeper {
    store: Arc<Store>,
    client: blocking::Client,
    news: Sender<News>,
}

impl Keeper {
    /// Until the watch has ended.
    fn run(&self, orders: &Receiver<Order>) {
        let mut wanted = Wanted::default();
        loop {
            // What did not work is tried again, also if nobody asks.
            let next = match wanted.anything() {
                true => orders.recv_timeout(AGAIN_AFTER),
                false => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match next {
                Ok(order) => wanted.take(order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            orders.try_iter().for_each(|order| wanted.take(order));
            if wanted.open {
                match self.open_segments() {
                    Ok(opened) => {
                        wanted.open = false;
                        if opened > 0 {
                            self.say(News::Light(opened));
                        }
                    }
                    Err(error) => self.say(News::Trouble(error.to_string())),
                }
            }
            if let Some(version) = wanted.rewrap.take() {
                match self.rewrap(&version) {
                    Ok(0) => {}
                    Ok(rewrapped) => self.say(News::Rewrapped(rewrapped, version)),
                    Err(error) => {
                        self.say(News::Trouble(format!("not all is rewrapped: {error}")));
                        wanted.rewrap = Some(version);
                    }
                }
            }
        }
    }

    fn say(&self, news: News) {
        // If nobody listens, nobody wants to know.
        let _nobody = self.news.send(news);
    }

    /// Has the DEKs of dark segments unwrapped, in one stream. How many were.
    fn open_segments(&self) -> std::result::Result<usize, KeysError> {
        let keys = self.store.keys();
        let era = keys.era();
        let dark = self.store.chosen(|segment, _| !keys.has(segment));
        if dark.is_empty() {
            return Ok(0);
        }
        let mut opened = 0;
        for answer in self.client.unwrap_stream(items(dark), STREAM_WITHIN)? {
            let answer = answer?;
            let dek = answer.outcome.map_err(|error| error.to_string()).and_then(of_our_length);
            opened += usize::from(dek.is_ok());
            keys.put(era, answer.id, dek);
        }
        Ok(opened)
    }

    /// Has the DEKs rewrapped that `version` did not wrap, in one stream. How many there were;
    /// `Err` if there are more.
    fn rewrap(&self, version: &str) -> Result<usize> {
        let old = self.store.chosen(|_, header| header.wrapped.version != version);
        if old.is_empty() {
            return Ok(0);
        }
        let (mut rewrapped, mut failed) = (0, None);
        for answer in self.client.rewrap_stream(items(old), STREAM_WITHIN).map_err(Error::Keys)? {
            let answer = answer.map_err(Error::Keys)?;
            match answer.outcome {
                Ok(done) => self.store.rewrapped(answer.id, done.wrapped)?,
                Err(error) => failed = Some(error),
            }
            rewrapped += 1;
        }
        failed.map_or(Ok(rewrapped), |error| Err(Error::Keys(error)))
    }
}

/// What is to be done.
#[derive(Default)]
struct Wanted {
    open: bool,
    rewrap: Option<String>,
}

impl Wanted {
    fn anything(&self) -> bool {
        self.open || self.rewrap.is_some()
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Open => self.open = true,
            Order::Rewrap(version) => self.rewrap = Some(version),
        }
    }
}

fn items(segments: Vec<(u64, Header)>) -> impl Iterator<Item = Item> {
    segments.into_iter().map(|(segment, Header { context, wrapped })| Item {
        id: segment,
        wrapped,
        context,
    })
}

/// Watches the KEK.
struct Watch {
    store: Arc<Store>,
    client: blocking::Client,
    kek: String,
    silence: Duration,
    ending: Arc<AtomicBool>,
    tell: Sender<Order>,
    news: Sender<News>,
    /// When the KEK was last known to be watched.
    heard: Instant,
    /// Whether that was too long ago, and what follows was done.
    silent: bool,
}

impl Watch {
    fn run(&mut self) {
        while !self.is_ending() {
            if let Err(error) = self.watch() {
                self.say(News::Trouble(format!("the KEK is not watched: {error}")));
            }
            if self.heard.elapsed() > self.silence && !self.silent {
                self.silent = true;
                self.darken("nothing was heard of its KEK for too long", |_| true);
            }
            if !self.is_ending() {
                thread::sleep(AGAIN_AFTER);
            }
        }
    }

    /// Watches until the watch ends. No thread is needed that cuts it off: it looks up in
    /// between.
    fn watch(&mut self) -> std::result::Result<(), KeysError> {
        let mut events = self.client.watch_keks(&[&self.kek])?;
        while !self.is_ending() {
            match events.next_within(LOOK_UP) {
                Some(Ok(event)) => self.heed(&event),
                Some(Err(error)) if error.reason() == DEADLINE_EXCEEDED => {}
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            }
            (self.heard, self.silent) = (Instant::now(), false);
        }
        Ok(())
    }

    fn heed(&self, event: &KekEvent) {
        let what = || format!("{} ({})", event.reason, event.kek);
        if event.condition() == KekCondition::Dark {
            return self.darken(&what(), |_| true);
        }
        if event.kind() == KekEventKind::Revoked {
            // One version of several: what it wrapped is dark, and what others wrapped is not.
            let of_it = self.store.chosen(|_, header| header.wrapped.version == event.version);
            self.darken(&what(), |segment| of_it.iter().any(|(of_it, _)| *of_it == segment));
        }
        if matches!(event.kind(), KekEventKind::State | KekEventKind::Restored) {
            self.order(Order::Open);
        }
        if !event.current_version.is_empty() {
            self.order(Order::Rewrap(event.current_version.clone()));
        }
    }

    fn darken(&self, why: &str, chosen: impl Fn(u64) -> bool) {
        self.store.keys().darken(why, chosen);
        self.say(News::Dark(why.to_owned()));
    }

    fn order(&self, order: Order) {
        // Before the store is open, or after: then nobody has to do it.
        let _nobody = self.tell.send(order);
    }

    fn say(&self, news: News) {
        let _nobody = self.news.send(news);
    }

    fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }
}

fn of_our_length(dek: Secret) -> std::result::Result<Secret, String> {
    match dek.len() {
        DEK => Ok(dek),
        other => Err(format!("its DEK has {other} bytes")),
    }
}
