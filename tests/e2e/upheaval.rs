//! A sidecar that is drained and restarted, killed, and replaced by another on the same socket,
//! while sixty-four callers ask in every way: none of them is told an error.

use std::{
    fs,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use keyward::client::{Client, Delivery};
use tokio::time::sleep;

use super::{
    crowd::{Crowd, assert_unharmed},
    home::Home,
    served::{KEK, Served},
};

const LONG: Duration = Duration::from_secs(30);
/// Callers are told of a purge by GOAWAY, or that their sessions have ended.
const PURGE_EVERY: Duration = Duration::from_millis(50);

/// Another sidecar, whose socket takes the place of the first one's.
fn replace(served: &Served, log: &str) -> Child {
    let (config, socket) = (served.dir().join("other.toml"), served.dir().join("other.sock"));
    let text = fs::read_to_string(served.config_file()).expect("a configuration");
    let ours = served.socket().to_string_lossy().into_owned();
    fs::write(&config, text.replace(&ours, &socket.to_string_lossy())).expect("a file");
    let mut command = served.command(&["serve", "--config"]);
    let log = fs::File::create(served.dir().join(log)).expect("a log");
    let other = command.arg(&config).stdout(Stdio::null()).stderr(log).spawn();
    let other = other.expect("it starts");
    let until = Instant::now() + Duration::from_secs(30);
    while !socket.exists() {
        assert!(Instant::now() < until, "the other one does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    fs::rename(&socket, served.socket()).expect("it takes the socket's place");
    other
}

fn end(mut other: Child) {
    let pid = other.id().to_string();
    super::token::run(std::process::Command::new("kill").args(["-TERM", &pid]));
    other.wait().expect("it ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_caller_is_told_that_sidecars_come_and_go() {
    let mut served = Served::prepare_on(Home::SoftHsm);
    served.configure(|config| config.replace("\"describe\"]", "\"describe\", \"purge\"]"));
    served.serve();
    let sealed = served.client();
    let plain = served.client().with_delivery(Delivery::Plain);
    let crowd = Crowd::start(&[sealed, plain], KEK).await;
    let purging = tokio::spawn(purge_again_and_again(served.client()));
    let until = Instant::now() + LONG;
    let (mut other, mut upheavals): (Option<Child>, u32) = (None, 0);
    while Instant::now() < until {
        let answers = crowd.answers();
        // Whatever has the socket now goes, and something else comes.
        match upheavals % 3 {
            0 => restart(&mut served, other.take(), "-TERM"),
            1 => restart(&mut served, other.take(), "-KILL"),
            _ => {
                let next = replace(&served, &format!("other-{upheavals}.log"));
                served.signal("-TERM");
                served.wait();
                other = Some(next);
            }
        }
        upheavals += 1;
        // It is asked again before the next thing happens to it.
        while crowd.answers() < answers + 200 {
            assert!(Instant::now() < until + LONG, "nobody is answered:\n{}", served.log());
            sleep(Duration::from_millis(20)).await;
        }
        sleep(Duration::from_millis(700)).await;
    }
    let met = crowd.end().await;
    purging.abort();
    other.into_iter().for_each(end);
    println!("{upheavals} upheavals");
    assert_unharmed(&met, 5000);
    assert!(upheavals >= 6);
}

fn restart(served: &mut Served, other: Option<Child>, signal: &str) {
    match other {
        // The first one went when it was replaced.
        Some(other) => end(other),
        None => {
            served.signal(signal);
            served.wait();
        }
    }
    served.spawn();
}

async fn purge_again_and_again(client: Client) {
    loop {
        // While no sidecar is there, nothing is to be purged.
        let _none_is_there = client.purge(None).await;
        sleep(PURGE_EVERY).await;
    }
}
