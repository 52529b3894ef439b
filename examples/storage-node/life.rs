//! The life of a storage node, told with times: it begins, works, restarts, has its key
//! rotated, is killed, goes dark, and is light again.
//!
//! What the officer and the operator do is done by the `keyward` command.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use crate::{
    Failure,
    node::{News, Node, Settings},
    options::Options,
    pages::{fill, random, version},
    store::{Error, format::Address},
};

const SEGMENTS: u64 = 16;
const PAGES: u64 = 2000;
/// The longest that anything is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn tell(options: &Options) -> Result<(), Failure> {
    let home = Home::make()?;
    let dir = home.0.join("store");
    println!("The life of a storage node: pages of 4 KiB, a data key for each segment, and one");
    println!("key in an HSM, {}, that the customer can take away.\n", options.kek);
    let mut written = HashMap::new();
    begin_and_work(options, &dir, &mut written)?;
    restart(options, &dir, &written)?;
    rotate(options, &dir, &written)?;
    crash(options, &home.0.join("crashed"))?;
    go_dark_and_light(options, &dir, &written)
}

/// A directory that goes with the story.
pub struct Home(pub PathBuf);

impl Home {
    pub fn make() -> Result<Self, Failure> {
        let home = std::env::temp_dir().join(format!("storage-node-{:016x}", random(u64::MAX)));
        std::fs::create_dir(&home)?;
        Ok(Self(home))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _gone_already = std::fs::remove_dir_all(&self.0);
    }
}

/// One line of the story.
fn told(since: Instant, what: &str, text: &str) {
    println!("{:9.3} s  {what:8} {text}", since.elapsed().as_secs_f64());
}

pub fn open(options: &Options, dir: &Path) -> Result<(Node, Receiver<News>), Failure> {
    let (tell, news) = mpsc::channel();
    let node = Node::open(dir, options.client()?, &options.kek, Settings::default(), tell)?;
    Ok((node, news))
}

/// What is waited for, out of the news.
fn wait<T>(news: &Receiver<News>, wanted: impl Fn(News) -> Option<T>) -> Result<T, Failure> {
    let until = Instant::now() + PATIENCE;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let next = news.recv_timeout(left).map_err(|_| "it did not happen within a minute")?;
        if let News::Trouble(what) = &next {
            println!("{:13}{what}", "");
        }
        if let Some(found) = wanted(next) {
            return Ok(found);
        }
    }
}

/// Runs a `keyward` command that must succeed.
pub fn keyward(options: &Options, args: &[&str]) -> Result<Vec<u8>, Failure> {
    let mut command = options.keyward();
    let output = command.args(args).stdin(Stdio::null()).output()?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => {
            Err(format!("keyward {args:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
        }
    }
}

/// Reads every page that was acknowledged. How many there are.
fn read_back(node: &Node, written: &HashMap<Address, u64>) -> Result<usize, Failure> {
    for (at, expected) in written {
        let page = node.store().read_page(*at)?.ok_or_else(|| format!("{at:?} is gone"))?;
        if version(*at, &page) != Some(*expected) {
            return Err(format!("{at:?} is not what was written").into());
        }
    }
    Ok(written.len())
}

fn begin_and_work(
    options: &Options,
    dir: &Path,
    written: &mut HashMap<Address, u64>,
) -> Result<(), Failure> {
    let since = Instant::now();
    let (node, _news) = open(options, dir)?;
    node.add_segments(SEGMENTS)?;
    told(
        since,
        "begin",
        &format!(
            "{SEGMENTS} segments, each with a fresh data key that came sealed and is kept in locked memory"
        ),
    );
    let since = Instant::now();
    for _ in 0..PAGES {
        let page = random(u64::from(node.store().pages_per_segment())) as u32;
        let at = Address { segment: random(SEGMENTS), page };
        let version = written.get(&at).copied().unwrap_or_default() + 1;
        node.store().write_page(at, &fill(at, version))?;
        written.insert(at, version);
    }
    told(since, "write", &format!("{PAGES} pages, each on the disk before it was acknowledged"));
    Ok(())
}

fn restart(options: &Options, dir: &Path, written: &HashMap<Address, u64>) -> Result<(), Failure> {
    let since = Instant::now();
    let (node, _news) = open(options, dir)?;
    told(since, "restart", &format!("{SEGMENTS} segments opened by one stream of unwraps"));
    let since = Instant::now();
    let pages = read_back(&node, written)?;
    told(since, "read", &format!("all {pages} pages are what was written"));
    Ok(())
}

fn rotate(options: &Options, dir: &Path, written: &HashMap<Address, u64>) -> Result<(), Failure> {
    let (node, news) = open(options, dir)?;
    let config = options.config.as_deref().map(Path::to_string_lossy).unwrap_or_default();
    let since = Instant::now();
    keyward(options, &["key", "rotate", "--config", &config, &options.kek])?;
    told(since, "rotate", "the officer made another version of the key in the HSM");
    let since = Instant::now();
    keyward(options, &["kek", "reload", &options.kek])?;
    let (segments, version) = wait(&news, |news| match news {
        News::Rewrapped(segments, version) => Some((segments, version)),
        _ => None,
    })?;
    let old = node.store().chosen(|_, header| header.wrapped.version != version).len();
    if old > 0 {
        return Err(format!("{old} data keys are not under the current version").into());
    }
    told(
        since,
        "rewrap",
        &format!("the node heard of it and had {segments} data keys rewrapped, which it never saw"),
    );
    let pages = read_back(&node, written)?;
    told(
        since,
        "read",
        &format!("all {pages} pages are what was written, and not one was written anew"),
    );
    Ok(())
}

/// Another node, which is killed while it writes.
fn crash(options: &Options, dir: &Path) -> Result<(), Failure> {
    let since = Instant::now();
    let mut work = Command::new(std::env::current_exe()?)
        .args(["work", "--kek", &options.kek, "--dir"])
        .arg(dir)
        .arg("--socket")
        .arg(&options.socket)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = BufReader::new(work.stdout.take().ok_or("no output")?).lines();
    let reading = thread::spawn(move || {
        let mut acknowledged = HashMap::new();
        for line in lines.map_while(Result::ok) {
            let words: Vec<&str> = line.split(' ').collect();
            if let ["ack", segment, page, version] = words[..]
                && let (Ok(segment), Ok(page), Ok(version)) =
                    (segment.parse(), page.parse(), version.parse::<u64>())
            {
                acknowledged.insert(Address { segment, page }, version);
            }
        }
        acknowledged
    });
    thread::sleep(Duration::from_millis(1500));
    work.kill()?;
    work.wait()?;
    let acknowledged = reading.join().map_err(|_| "its output could not be read")?;
    told(
        since,
        "kill -9",
        &format!(
            "another node, in the middle of its writes; {} pages were acknowledged",
            acknowledged.len()
        ),
    );
    let since = Instant::now();
    let (node, _news) = open(options, dir)?;
    for (at, expected) in &acknowledged {
        let page = node.store().read_page(*at)?.ok_or_else(|| format!("{at:?} is gone"))?;
        // What was on its way when it was killed may have arrived.
        if version(*at, &page).is_none_or(|version| version < *expected) {
            return Err(format!("{at:?} is not what was acknowledged").into());
        }
    }
    told(since, "recover", "its journal was replayed, and every acknowledged page is there");
    Ok(())
}

fn go_dark_and_light(
    options: &Options,
    dir: &Path,
    written: &HashMap<Address, u64>,
) -> Result<(), Failure> {
    let (node, news) = open(options, dir)?;
    let since = Instant::now();
    keyward(options, &["kek", "revoke", &options.kek])?;
    let why = wait(&news, |news| match news {
        News::Dark(why) => Some(why),
        _ => None,
    })?;
    told(
        since,
        "revoke",
        &format!("the customer took the key away; the node dropped its data keys: {why}"),
    );
    none_reads(&node, written)?;
    told(since, "dark", &format!("none of {} pages can be read", written.len()));
    drop(node);
    let since = Instant::now();
    let (node, news) = open(options, dir)?;
    none_reads(&node, written)?;
    told(since, "restart", "a restart does not help: still dark");
    let since = Instant::now();
    keyward(options, &["kek", "restore", &options.kek])?;
    wait(&news, |news| matches!(news, News::Light(_)).then_some(()))?;
    let pages = read_back(&node, written)?;
    told(
        since,
        "restore",
        &format!(
            "the key is back; the node opened its segments by itself, and all {pages} pages read"
        ),
    );
    Ok(())
}

fn none_reads(node: &Node, written: &HashMap<Address, u64>) -> Result<(), Failure> {
    for at in written.keys() {
        match node.store().read_page(*at) {
            Err(Error::Dark(_)) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => return Err(format!("{at:?} can be read though the key is gone").into()),
        }
    }
    Ok(())
}
