//! Whatever a server says, the client errs in time: frames of HTTP/2 as they come, and, behind
//! the head of an answer, what should be messages of gRPC. Over a real Unix socket.

#![no_main]

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    sync::{LazyLock, Mutex},
    thread,
    time::{Duration, Instant},
};

use keyward::client::{Client, Delivery, Endpoint, Item, WrappedDek, blocking};
use libfuzzer_sys::{arbitrary, fuzz_target};

/// Too short for a second attempt.
const DEADLINE: Duration = Duration::from_millis(5);
/// A machine that is busy with other targets.
const AT_MOST: Duration = Duration::from_secs(5);

#[derive(arbitrary::Arbitrary, Debug, Clone)]
enum Said {
    Frame {
        kind: u8,
        flags: u8,
        stream: u8,
        payload: Vec<u8>,
    },
    Raw(Vec<u8>),
    /// The head of an answer.
    Head {
        stream: u8,
    },
    /// What is in an answer.
    Data {
        stream: u8,
        last: bool,
        payload: Vec<u8>,
    },
    /// A message of an answer.
    Message {
        stream: u8,
        message: Vec<u8>,
    },
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let payload = &payload[..payload.len().min(16_384)];
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags, 0, 0, 0, stream]);
    frame.extend(payload);
    frame
}

impl Said {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Frame { kind, flags, stream, payload } => frame(*kind, *flags, *stream, payload),
            Self::Raw(bytes) => bytes.clone(),
            // :status 200, content-type application/grpc; not in the table.
            Self::Head { stream } => {
                let grpc = [&[0x88, 0x0f, 0x10, 16][..], b"application/grpc"].concat();
                frame(1, 4, *stream | 1, &grpc)
            }
            Self::Data { stream, last, payload } => frame(0, u8::from(*last), *stream | 1, payload),
            Self::Message { stream, message } => {
                let length = (message.len() as u32).to_be_bytes();
                frame(0, 0, *stream | 1, &[&[0][..], &length, message].concat())
            }
        }
    }
}

/// What the server says now, to everybody.
static SAID: Mutex<Vec<u8>> = Mutex::new(Vec::new());

static CLIENTS: LazyLock<[blocking::Client; 2]> = LazyLock::new(|| {
    // Rust's own start does this; the fuzzer's is another.
    // SAFETY: a call of the C library that touches no memory of ours.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let path = std::env::temp_dir().join(format!("keyward-fuzz-{}.sock", std::process::id()));
    let listener = UnixListener::bind(&path).expect("a socket");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve(stream));
        }
    });
    let client = Client::new(&Endpoint::unix(&path)).expect("a client");
    let client = client.failing_fast().with_deadline(DEADLINE);
    [Delivery::Plain, Delivery::Sealed]
        .map(|delivery| client.clone().with_delivery(delivery).blocking().expect("a thread"))
});

fn serve(mut stream: UnixStream) {
    let said = SAID.lock().expect("nobody panicked").clone();
    let mut heard = [0; 4096];
    let settings = frame(4, 0, 0, &[]);
    let _cut = stream.write_all(&settings);
    // The client has asked by then, most of the time.
    let _heard = stream.read(&mut heard);
    let _cut = stream.write_all(&said);
}

fuzz_target!(|said: Vec<Said>| {
    let bytes = said.iter().flat_map(Said::bytes).collect();
    *SAID.lock().expect("nobody panicked") = bytes;
    let began = Instant::now();
    for client in &*CLIENTS {
        let wrapped = WrappedDek { ciphertext: vec![7; 256], ..Default::default() };
        // A DEK that is not sealed may be whatever the server says.
        let _any = client.unwrap(&wrapped, b"");
        let item = Item { id: 0, wrapped, context: Vec::new() };
        if let Ok(answers) = client.unwrap_stream([item], DEADLINE) {
            assert!(answers.count() <= 2, "one answer, and perhaps an error");
        }
        let _any = client.list_keks();
    }
    assert!(began.elapsed() < AT_MOST, "{:?}", began.elapsed());
});
