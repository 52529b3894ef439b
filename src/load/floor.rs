//! What the machine does without Keyward, measured in the same run: bytes over a Unix
//! socket, a bare tonic echo, the device's own decryption. Only ratios to these mean
//! something on another machine.

use std::{
    env,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use super::{
    echo::Echo,
    plan::{Order, Plan},
    record::{Latency, latency_of},
    run::{Gauge, run_sidecar},
    target::{Deks, Direct, Sidecar, Target, Trouble, deadline},
};
use crate::{
    backend::Bare,
    client::{Client, Delivery, Endpoint},
    error::{Error, Reason},
    kek::Purpose,
};

/// A floor is measured for a fifth of a run, within these bounds.
const SHORTEST: Duration = Duration::from_millis(300);
const LONGEST: Duration = Duration::from_secs(2);
/// What comes before an echo is measured.
const WARM_UP: Duration = Duration::from_millis(200);
/// Length of the message that answers an unwrap: 32 bytes, their tag and length.
const REPLY_BYTES: usize = 34;
/// Ciphertexts that the device decrypts in turn.
const CIPHERTEXTS: usize = 16;

/// One floor.
#[derive(Clone, Debug, PartialEq)]
pub struct Floor {
    /// Of one operation.
    pub latency: Latency,
    /// Operations per second.
    pub throughput: f64,
    /// Callers, or sessions, at which the throughput was reached.
    pub callers: usize,
}

/// The floors at one moment. Those that a run has no use for are absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Floors {
    /// A message of an unwrap's size and its answer, over a Unix socket between two threads
    /// that block; one at a time.
    pub ping_pong: Option<Floor>,
    /// tonic's own server, without work, over a Unix socket; the same client, callers and
    /// pace as the run.
    pub echo: Option<Floor>,
    /// The device's decryption, in one session that nothing stands around; the throughput
    /// is that of the best number of sessions.
    pub decrypt: Option<Floor>,
}

/// How long each floor of a run of this length is measured.
fn length_for(run: Duration) -> Duration {
    (run / 5).clamp(SHORTEST, LONGEST)
}

/// The floors of a transport, for `plan` over `deks`.
pub async fn transport_floors(deks: &Arc<Deks>, plan: &Plan) -> Result<Floors, Trouble> {
    let length = length_for(plan.length);
    let request = deks.request_bytes();
    let ping_pong = tokio::task::spawn_blocking(move || ping_pong(request, REPLY_BYTES, length))
        .await
        .unwrap_or_else(|panicked| Err(io::Error::other(panicked)))
        .map_err(|error| {
            Trouble::Machine("the floor of the socket could not be measured", error)
        })?;
    let echo = echo(deks, plan, length).await?;
    Ok(Floors { ping_pong: Some(ping_pong), echo: Some(echo), decrypt: None })
}

async fn echo(deks: &Arc<Deks>, plan: &Plan, length: Duration) -> Result<Floor, Trouble> {
    let failed = |error| Trouble::Machine("the floor of gRPC could not be measured", error);
    let program = env::current_exe().map_err(failed)?;
    let server = Echo::start(&program).map_err(failed)?;
    // An echo has no keys to seal with.
    let client = Client::new(&Endpoint::unix(server.path()))?
        .with_delivery(Delivery::Plain)
        .with_calls_apart();
    let sidecar = Sidecar::echo(client);
    let connected = sidecar.unwrap(deks, 0).await;
    connected.map_err(|reason| failed(io::Error::other(reason)))?;
    server.unlink();
    let plan = Plan { order: Order::Cycle, warm_up: WARM_UP, length, ..*plan };
    let outcome = run_sidecar(&sidecar, deks, &plan, &Arc::new(Gauge::default())).await?;
    let throughput = outcome.throughput();
    let latency = outcome.latency.ok_or_else(|| failed(io::ErrorKind::TimedOut.into()))?;
    Ok(Floor { latency, throughput, callers: plan.shape.at_once() })
}

/// The floor of a device, for a run of this length. `key` wraps what is decrypted.
pub async fn device_floor(
    device: &dyn Bare,
    key: &Direct,
    run: Duration,
) -> Result<Floor, Trouble> {
    let length = length_for(run);
    let deks = Deks::wrap(key, CIPHERTEXTS, &Gauge::default()).await?;
    let ciphertexts: Arc<[Vec<u8>]> = deks.ciphertexts().into();
    let session = async |length| one_session(device, key, &ciphertexts, length).await;
    // The first ones find the key and warm the device up.
    session(WARM_UP).await?;
    let began = Instant::now();
    let times = session(length).await?;
    let mut best = (times.len() as f64 / began.elapsed().as_secs_f64(), 1);
    for sessions in numbers_of_sessions(device.sessions()) {
        let began = Instant::now();
        let all = futures_util::future::join_all((0..sessions).map(|_| session(length / 2))).await;
        let mut count = 0;
        for times in all {
            count += times?.len();
        }
        let throughput = count as f64 / began.elapsed().as_secs_f64();
        if throughput > best.0 {
            best = (throughput, sessions);
        }
    }
    let latency = latency_of(&times)
        .ok_or_else(|| Error::new(Reason::Internal, "the device decrypted nothing"))?;
    Ok(Floor { latency, throughput: best.0, callers: best.1 })
}

/// 2, 4, 8 … up to and with `most`: enough to find the best to within a little.
fn numbers_of_sessions(most: usize) -> Vec<usize> {
    let mut numbers: Vec<_> =
        std::iter::successors(Some(2), |n| Some(n * 2)).take_while(|n| *n < most).collect();
    numbers.extend((most > 1).then_some(most));
    numbers
}

/// Decrypts in one session for `length`, and says how long each took.
async fn one_session(
    device: &dyn Bare,
    key: &Direct,
    ciphertexts: &Arc<[Vec<u8>]>,
    length: Duration,
) -> Result<Vec<Duration>, Error> {
    let until = Instant::now() + length;
    let mut times = Vec::new();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let version = key.usable(Purpose::Unwrap)?;
        let ciphertexts = Arc::clone(ciphertexts);
        let timed = device.time_unwraps(&version, key.algorithm(), ciphertexts, left, deadline());
        times.extend(timed.await?);
        if Instant::now() >= until {
            return Ok(times);
        }
    }
}

/// Sends `request` bytes and receives `reply` bytes, again and again for `length`. Blocks.
fn ping_pong(request: usize, reply: usize, length: Duration) -> io::Result<Floor> {
    let (mut here, mut there) = UnixStream::pair()?;
    let server = thread::Builder::new().name("ping-pong".into()).spawn(move || {
        let (mut question, answer) = (vec![0; request], vec![7; reply]);
        // Ends when the other end is closed.
        while there.read_exact(&mut question).and_then(|()| there.write_all(&answer)).is_ok() {}
    })?;
    let (question, mut answer) = (vec![1; request], vec![0; reply]);
    let mut times = Vec::new();
    let began = Instant::now();
    let outcome = loop {
        let sent = Instant::now();
        let done = here.write_all(&question).and_then(|()| here.read_exact(&mut answer));
        times.push(sent.elapsed());
        if done.is_err() || began.elapsed() >= length {
            break done;
        }
    };
    let throughput = times.len() as f64 / began.elapsed().as_secs_f64();
    drop(here);
    let _it_says_nothing = server.join();
    outcome?;
    let latency = latency_of(&times).ok_or(io::ErrorKind::TimedOut)?;
    Ok(Floor { latency, throughput, callers: 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_to_and_fro() {
        let floor = ping_pong(500, REPLY_BYTES, Duration::from_millis(50)).unwrap();
        assert!(floor.latency.count > 10 && floor.throughput > 100.0, "{floor:?}");
        assert!(floor.latency.min > 0.0);
    }

    #[test]
    fn numbers_of_sessions_end_with_all() {
        assert_eq!(numbers_of_sessions(1), [0_usize; 0]);
        assert_eq!(numbers_of_sessions(2), [2]);
        assert_eq!(numbers_of_sessions(4), [2, 4]);
        assert_eq!(numbers_of_sessions(6), [2, 4, 6]);
    }

    #[test]
    fn floors_are_measured_for_a_bounded_time() {
        assert_eq!(length_for(Duration::from_secs(1)), SHORTEST);
        assert_eq!(length_for(Duration::from_secs(5)), Duration::from_secs(1));
        assert_eq!(length_for(Duration::from_secs(3600)), LONGEST);
    }
}
