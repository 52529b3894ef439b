//! What was asked, for tests to look at: counters for ever, the last requests, and the
//! tokens that were given out.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use super::operation::Operation;

/// Requests that are kept whole.
const SEEN_MAX: usize = 4096;

/// One request and the status that it got; 0 if it was cut off before one.
#[derive(Clone, Debug)]
pub struct Seen {
    pub operation: Operation,
    pub key: String,
    pub version: String,
    pub status: u16,
    /// Whether it carried an Authorization header.
    pub authorized: bool,
    /// Bytes of its body.
    pub body: usize,
    /// The `x-ms-request-id` of the answer.
    pub request_id: String,
    /// Which connection it came on, counted from 1.
    pub connection: u64,
}

#[derive(Default)]
pub struct Record {
    counts: Mutex<BTreeMap<(Operation, u16), u64>>,
    seen: Mutex<VecDeque<Seen>>,
    tokens: Mutex<Vec<String>>,
    connections: AtomicU64,
}

impl Record {
    /// Counts a connection, and gives its number.
    pub fn connected(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Notes a token that an application was given.
    pub fn issued(&self, token: &str) {
        self.tokens.lock().unwrap().push(token.to_owned());
    }

    /// Tokens of applications, oldest first.
    pub fn tokens(&self) -> Vec<String> {
        self.tokens.lock().unwrap().clone()
    }

    pub fn add(&self, seen: Seen) {
        *self.counts.lock().unwrap().entry((seen.operation, seen.status)).or_default() += 1;
        let mut last = self.seen.lock().unwrap();
        if last.len() == SEEN_MAX {
            last.pop_front();
        }
        last.push_back(seen);
    }

    /// Requests for this operation, whatever they were answered with.
    pub fn count(&self, operation: Operation) -> u64 {
        let counts = self.counts.lock().unwrap();
        counts.iter().filter(|((op, _), _)| *op == operation).map(|(_, count)| count).sum()
    }

    /// Requests for this operation that were answered with this status.
    pub fn answered(&self, operation: Operation, status: u16) -> u64 {
        self.counts.lock().unwrap().get(&(operation, status)).copied().unwrap_or_default()
    }

    /// The last requests, oldest first.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().iter().cloned().collect()
    }

    /// Forgets requests; connections are counted on, and tokens kept.
    pub fn reset(&self) {
        self.counts.lock().unwrap().clear();
        self.seen.lock().unwrap().clear();
    }
}
