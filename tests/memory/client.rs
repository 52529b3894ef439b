//! A client in a process of its own, which holds DEKs that came and went sealed: they are in
//! its locked memory and nowhere else, and nowhere once they are dropped, while connections,
//! sessions and streams are open.

use std::{
    io::{BufRead, BufReader, Lines, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use keyward::client::{Client, Endpoint, TlsFiles, WrappedDek};

use super::{
    Sidecar, example,
    scanner::{Copies, Sought, assert_none, list, scan},
    served::KEK,
};

const CONTEXT: &[u8] = b"held by a client";
/// Ways over two transports; generating has a DEK for each of 16 calls.
const HELD: usize = 2 * (1 + 16 + 2 + 1);

struct Holder {
    process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    sought: Vec<Sought>,
    in_secret_memory: bool,
}

impl Holder {
    async fn start(sidecar: &Sidecar, files: &TlsFiles, uri: &str, more: &[&str]) -> Self {
        let mut process = Command::new(example::program("client-process"))
            .arg(KEK)
            .arg(sidecar.served.socket())
            .arg(uri)
            .args([&files.ca, &files.certificate, &files.key])
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the client starts");
        let input = process.stdin.take().expect("a pipe");
        let mut output = BufReader::new(process.stdout.take().expect("a pipe")).lines();
        let client = Client::new(&Endpoint::unix(sidecar.served.socket())).expect("a client");
        let mut sought = Vec::new();
        let protection = loop {
            let line = output.next().expect("it goes on").expect("text");
            let (way, rest) = line.split_once(' ').expect("two words");
            if way == "held" {
                break rest.to_owned();
            }
            let wrapped = WrappedDek::from_bytes(&from_hex(rest)).expect("a wrapped DEK");
            let dek = client.unwrap(&wrapped, CONTEXT).await.expect("a DEK");
            sought.push(Sought { name: way.to_owned(), bytes: dek.expose().to_vec() });
        };
        assert_eq!(sought.len(), HELD);
        let in_secret_memory = protection.contains("Secret");
        Self { process, input, output, sought, in_secret_memory }
    }

    fn scan(&self, dir: &Path) -> Vec<Copies> {
        scan(self.process.id(), &self.sought, dir)
    }

    fn drop_deks(&mut self) {
        writeln!(self.input, "drop").expect("it reads");
        let said = self.output.next().expect("it goes on").expect("text");
        assert_eq!(said, "dropped");
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _killed = self.process.kill();
        let _ended = self.process.wait();
    }
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks_exact(2).map(|two| std::str::from_utf8(two).expect("hex"));
    digits.map(|two| u8::from_str_radix(two, 16).expect("hex")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn sealed_deks_are_in_the_locked_memory_of_the_client_and_nowhere_else() {
    let (sidecar, files, uri) = Sidecar::start_with_files("", "");
    let mut holder = Holder::start(&sidecar, &files, &uri, &[]).await;
    let held = holder.scan(sidecar.served.dir());
    if holder.in_secret_memory {
        assert_none("beside its secret memory", &held);
    } else {
        // Root can read locked memory: there, once each, and not in the core dump.
        assert_eq!(held.len(), HELD, "{}", list(&held));
        for copies in &held {
            assert!(copies.kind == "whole" && copies.count == 1, "{copies}");
            assert_eq!(copies.range, held[0].range, "in one mapping: {copies}");
        }
    }
    holder.drop_deks();
    let left = holder.scan(sidecar.served.dir());
    assert_none("after they were dropped", &left);
    // Nor has the sidecar any outside its slab.
    let cached = sidecar.scan(&holder.sought);
    if sidecar.has_secret_memory() {
        assert_none("in the sidecar", &cached);
    }
}

/// The scanner sees into this process: what is not sealed is there.
#[tokio::test(flavor = "multi_thread")]
async fn deks_in_the_clear_are_in_the_buffers_of_the_client() {
    let (sidecar, files, uri) = Sidecar::start_with_files("", "");
    let mut holder = Holder::start(&sidecar, &files, &uri, &["--plain"]).await;
    holder.drop_deks();
    let left = holder.scan(sidecar.served.dir());
    for way in ["uds-generate", "uds-apart", "uds-shared", "uds-stream", "tls-generate"] {
        for in_core in [false, true] {
            let seen = left.iter().any(|copies| {
                copies.secret.starts_with(way) && (copies.mapping == "core dump") == in_core
            });
            assert!(seen, "no buffer of {way} is seen (core dump: {in_core})");
        }
    }
}
