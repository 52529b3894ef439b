//! What it costs that nothing of a DEK stays behind: unwraps from memory over a Unix
//! socket with all of it and with none, in one process and in turns.
//!
//! "With" is the allocator that wipes what it frees and the scrubbing of parked threads.
//! "Without" is the same build with both switched off. Both ends of the socket are in this
//! process, so the client pays too; a sidecar's share alone is smaller. The slab is not
//! switched: reading its memory costs what reading any memory costs.

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    alloc::{GlobalAlloc, Layout},
    hint::black_box,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use keyward::{
    alloc::Wiping,
    secret,
    wire::{self, key_wrap_client::KeyWrapClient},
};
use mimalloc::MiMalloc;
use support::sidecar::{Sidecar, dek};
use tokio::runtime::Builder;
use tonic::transport::Channel;

static HYGIENE: AtomicBool = AtomicBool::new(true);

fn hygiene() -> bool {
    HYGIENE.load(Ordering::Relaxed)
}

/// The allocator of the release binary, or the one below it.
struct Switched {
    wiping: Wiping,
    plain: MiMalloc,
}

#[global_allocator]
static ALLOCATOR: Switched = Switched { wiping: Wiping::new(), plain: MiMalloc };

// SAFETY: every call goes to mimalloc in the end, whichever way it takes, so that a block
// may be freed by another way than it was allocated.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Switched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract.
        unsafe { self.plain.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract.
        unsafe { self.plain.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract.
        unsafe {
            if hygiene() {
                self.wiping.dealloc(block, layout);
            } else {
                self.plain.dealloc(block, layout);
            }
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller keeps the contract.
        unsafe {
            if hygiene() {
                self.wiping.realloc(block, layout, new_size)
            } else {
                self.plain.realloc(block, layout, new_size)
            }
        }
    }
}

/// Calls of one turn; the first tenth is not counted.
const CALLS: usize = 1_000;

/// Turns of each kind.
const TURNS: usize = 100;

async fn turn(client: &mut KeyWrapClient<Channel>, request: &wire::UnwrapRequest) -> Duration {
    let mut times = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let start = Instant::now();
        black_box(client.unwrap(request.clone()).await.expect("a DEK"));
        times.push(start.elapsed());
    }
    median(times.split_off(CALLS / 10))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn main() {
    let scrub = || {
        if hygiene() {
            secret::scrub();
        }
    };
    let threads = || {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(1).enable_all().on_thread_park(scrub).build().expect("a runtime")
    };
    let (server, client) = (threads(), threads());
    let sidecar = server.block_on(Sidecar::start());
    let mut times = [Vec::new(), Vec::new()];
    let work = async {
        let wrapped = sidecar.client().wrap("orders", &dek(), b"").await.expect("a wrapped DEK");
        let request =
            wire::UnwrapRequest { wrapped: Some(wrapped), context: vec![], session: vec![] };
        let mut calls = sidecar.raw();
        for turn_number in 0..2 * TURNS {
            HYGIENE.store(turn_number % 2 == 0, Ordering::Relaxed);
            times[turn_number % 2].push(turn(&mut calls, &request).await);
        }
    };
    client.block_on(work);
    HYGIENE.store(true, Ordering::Relaxed);
    let [with, without] = times.map(|times| median(times).as_secs_f64());
    println!(
        "memory hygiene, unwrap from memory, p50: with {:.1} us, without {:.1} us, ratio {:.3}",
        with * 1e6,
        without * 1e6,
        with / without
    );
    let _dir = server.block_on(sidecar.ended());
}
