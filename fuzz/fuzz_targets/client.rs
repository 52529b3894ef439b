//! Whatever a server says, the client errs in time: frames of HTTP/2 as they come, and, behind
//! the head of an answer, what should be messages of gRPC. Over a real Unix socket.
//!
//! An input is what is called (a byte) and what the server says to it: parts of a kind, a
//! stream and flags (a byte each), a length (two, big-endian) and as many bytes.

#![no_main]

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    sync::{LazyLock, Mutex},
    thread,
    time::{Duration, Instant},
};

use keyward::client::{Client, Delivery, Endpoint, Item, WrappedDek, blocking};
use libfuzzer_sys::fuzz_target;

/// Too short for a second attempt.
const DEADLINE: Duration = Duration::from_millis(5);
/// On a machine that is busy with other things.
const AT_MOST: Duration = Duration::from_secs(5);

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let payload = &payload[..payload.len().min(16_384)];
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags, 0, 0, 0, stream]);
    frame.extend(payload);
    frame
}

fn said(mut input: &[u8]) -> Vec<u8> {
    let mut said = Vec::new();
    while let [kind, stream, flags, high, low, rest @ ..] = input {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        let (part, behind) = rest.split_at(length);
        input = behind;
        // Of a stream that the client may have opened.
        let (stream, any) = (*stream % 8 | 1, *stream);
        match kind % 5 {
            0 => said.extend(frame(kind / 5 % 12, *flags, any, part)),
            1 => said.extend(part),
            // :status 200, content-type application/grpc.
            2 => {
                let grpc = [&[0x88, 0x0f, 0x10, 16][..], b"application/grpc"].concat();
                said.extend(frame(1, 4, stream, &grpc));
            }
            3 => said.extend(frame(0, *flags & 1, stream, part)),
            _ => {
                let length = (part.len() as u32).to_be_bytes();
                said.extend(frame(0, 0, stream, &[&[0][..], &length, part].concat()));
            }
        }
    }
    said
}

/// What the server says now, to everybody.
static SAID: Mutex<Vec<u8>> = Mutex::new(Vec::new());

static CLIENTS: LazyLock<[blocking::Client; 3]> = LazyLock::new(|| {
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
    let plain = client.clone().with_delivery(Delivery::Plain);
    [plain.clone(), plain.with_calls_apart(), client]
        .map(|client| client.blocking().expect("a thread"))
});

fn serve(mut stream: UnixStream) {
    let said = SAID.lock().expect("nobody panicked").clone();
    let _cut = stream.write_all(&frame(4, 0, 0, &[]));
    // The client has asked by then, most of the time.
    let mut heard = [0; 4096];
    let _heard = stream.read(&mut heard);
    let _cut = stream.write_all(&said);
}

fuzz_target!(|input: &[u8]| {
    let Some((call, input)) = input.split_first() else { return };
    *SAID.lock().expect("nobody panicked") = said(input);
    let began = Instant::now();
    let client = &CLIENTS[usize::from(call / 4) % 3];
    let wrapped = WrappedDek { ciphertext: vec![7; 256], ..Default::default() };
    match call % 4 {
        // A DEK that is not sealed may be whatever the server says.
        0 | 1 => drop(client.unwrap(&wrapped, b"")),
        2 => {
            let item = Item { id: 0, wrapped, context: Vec::new() };
            if let Ok(answers) = client.unwrap_stream([item], DEADLINE) {
                assert!(answers.count() <= 2, "one answer, and perhaps an error");
            }
        }
        _ => drop(client.list_keks()),
    }
    assert!(began.elapsed() < AT_MOST, "{:?}", began.elapsed());
});
