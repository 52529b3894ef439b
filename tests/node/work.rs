//! A storage node in a process of its own, and what it says.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    example,
    served::{KEK, Served},
    store::format::Address,
};

const PATIENCE: Duration = Duration::from_secs(60);

pub struct Work {
    process: Child,
    lines: Receiver<String>,
    reading: Option<JoinHandle<()>>,
}

impl Work {
    /// Starts a node on the store in `dir`.
    pub fn start(served: &Served, dir: &Path, more: &[&str]) -> Self {
        let mut process = Command::new(example::program("storage-node"))
            .args(["work", "--kek", KEK, "--socket"])
            .arg(served.socket())
            .arg("--dir")
            .arg(dir)
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the node starts");
        let output = BufReader::new(process.stdout.take().expect("a pipe"));
        let (tell, lines) = mpsc::channel();
        let reading = thread::spawn(move || {
            for line in output.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8(line).expect("text");
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        Self { process, lines, reading: Some(reading) }
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn say(&mut self, what: &str) {
        let stdin = self.process.stdin.as_mut().expect("a pipe");
        writeln!(stdin, "{what}").expect("it reads");
    }

    /// The lines up to one that `is_last` says, and that one.
    pub fn until(&self, what: &str, is_last: impl Fn(&str) -> bool) -> Vec<String> {
        let until = Instant::now() + PATIENCE;
        let mut lines = Vec::new();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    lines.push(line);
                    if is_last(&lines[lines.len() - 1]) {
                        return lines;
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("{what}: not within a minute"),
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("{what}: the node ended; it said {lines:#?}")
                }
            }
        }
    }

    /// The lines that were said within this time.
    pub fn within(&self, time: Duration) -> Vec<String> {
        let until = Instant::now() + time;
        let mut lines = Vec::new();
        while let Ok(line) =
            self.lines.recv_timeout(until.saturating_duration_since(Instant::now()))
        {
            lines.push(line);
        }
        lines
    }

    /// Kills it. What it had said by then, whole lines only.
    pub fn kill(mut self) -> Vec<String> {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it is dead");
        self.reading.take().map(JoinHandle::join).expect("once").expect("it was read");
        self.lines.try_iter().collect()
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _killed = self.process.kill();
        let _ended = self.process.wait();
    }
}

/// The pages that lines beginning with `word` name, and their versions.
pub fn pages<'a>(
    word: &'a str,
    lines: &'a [String],
) -> impl Iterator<Item = (Address, u64)> + use<'a> {
    lines.iter().filter_map(move |line| {
        let [said, segment, page, version] = line.split(' ').collect::<Vec<_>>()[..] else {
            return None;
        };
        if said != word {
            return None;
        }
        let at = Address { segment: segment.parse().ok()?, page: page.parse().ok()? };
        Some((at, version.parse().ok()?))
    })
}

/// What is known of pages: how often each was written, at least.
#[derive(Default)]
pub struct Known(HashMap<Address, u64>);

impl Known {
    /// Takes what a node found when it began. What was acknowledged must be there; what was on
    /// its way when the node was killed may be.
    pub fn found(&mut self, lines: &[String]) {
        let found: HashMap<Address, u64> = pages("have", lines).collect();
        for (at, version) in &found {
            let known = self.0.get(at).copied().unwrap_or_default();
            let on_its_way = *version == known + 1;
            assert!(*version == known || on_its_way, "{at:?}: {version}, acknowledged {known}");
        }
        for (at, known) in &self.0 {
            assert!(found.contains_key(at), "{at:?} is gone, acknowledged {known}");
        }
        self.0 = found;
    }

    /// Takes what a node acknowledged.
    pub fn acknowledged(&mut self, lines: &[String]) -> usize {
        let mut count = 0;
        for (at, version) in pages("ack", lines) {
            let before = self.0.insert(at, version).unwrap_or_default();
            assert_eq!(version, before + 1, "{at:?}");
            count += 1;
        }
        count
    }

    pub fn pages(&self) -> impl Iterator<Item = (Address, u64)> {
        self.0.iter().map(|(at, version)| (*at, *version))
    }
}
