//! Metrics and health over HTTP, of a real sidecar on a real token or a fake managed HSM.

use std::{
    net::TcpListener,
    thread::sleep,
    time::{Duration, Instant},
};

use keyward::secret::Secret;

use super::{
    home::{Home, on_each_home},
    served::{KEK, Served},
};

on_each_home! {
    blocking: metrics_tell_what_the_sidecar_and_the_backend_did;
}

/// Has the kernel choose the admin port.
fn start(home: Home, change: impl FnOnce(String) -> String) -> Served {
    let mut served = Served::prepare_on(home);
    served.configure(|config| {
        change(config.replace("[server]", "[server]\nadmin = \"127.0.0.1:0\""))
    });
    served.serve();
    served
}

fn metrics_tell_what_the_sidecar_and_the_backend_did(home: Home) {
    let served = start(home, |config| config);
    let wrapped = served.ok(&["wrap", "--kek", KEK], &[7; 32]);
    served.ok(&["unwrap"], &wrapped);
    let answer = served.get("/metrics");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
    for series in [
        r#"keyward_operations_total{kek="orders",op="wrap",outcome="OK"} 1"#,
        r#"keyward_operations_total{kek="orders",op="unwrap",outcome="OK"} 1"#,
        r#"keyward_hsm_operations_total{backend="hsm",operation="unwrap",outcome="ok"} 1"#,
        r#"keyward_build_info{version=""#,
    ] {
        assert!(answer.lines().any(|line| line.starts_with(series)), "{series} in\n{answer}");
    }
    assert!(served.get("/readyz").ends_with("\r\n\r\nready\n"));
    assert!(served.get("/healthz").ends_with("\r\n\r\nok\n"));
}

#[test]
fn refusals_are_all_counted_and_their_lines_are_bounded() {
    const REFUSALS: u64 = 500;
    let served =
        start(Home::SoftHsm, |config| config.replace(r#"kek = ["*"]"#, r#"kek = ["orders"]"#));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let began = Instant::now();
    let took = runtime.expect("a runtime").block_on(async {
        let client = served.client();
        for n in 0..REFUSALS {
            // Neither a KEK nor a name of one.
            let kek = if n % 2 == 0 { "no-such-kek" } else { "no name" };
            let dek = Secret::copy_of(&[7; 32]);
            client.wrap(kek, &dek, b"").await.expect_err("it is refused");
        }
        began.elapsed()
    });
    let refusal = |line: &&str| line.contains("outcome=\"") && !line.contains("outcome=\"OK\"");
    let left_out = |line: &str| -> Option<u64> {
        line.split("left_out=").nth(1)?.split(' ').next()?.parse().ok()
    };
    let until = Instant::now() + Duration::from_secs(10);
    let (lines, skipped) = loop {
        let log = served.log();
        let lines = log.lines().filter(refusal).count() as u64;
        let skipped: u64 = log.lines().filter_map(left_out).sum();
        // The rest is told when the connection has ended.
        if lines + skipped == REFUSALS {
            break (lines, skipped);
        }
        assert!(Instant::now() < until, "{lines} lines, {skipped} left out, in\n{log}");
        sleep(Duration::from_millis(20));
    };
    assert!(lines <= 10 * (took.as_secs() + 2) && skipped > 0, "{lines} lines in {took:?}");
    let metrics = served.get("/metrics");
    for outcome in ["PERMISSION_DENIED", "REQUEST_INVALID"] {
        let series = format!(
            r#"keyward_operations_total{{kek="-",op="wrap",outcome="{outcome}"}} {}"#,
            REFUSALS / 2
        );
        assert!(metrics.lines().any(|line| line == series), "{series} in\n{metrics}");
    }
}

#[test]
fn a_port_that_is_taken_is_said_with_its_cure() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    let served = Served::prepare();
    served.configure(|config| {
        config.replace("[server]", &format!("[server]\nadmin = \"{address}\""))
    });
    let said = served.serve_fails();
    assert!(said.contains(&format!("cannot listen on {address}")), "{said}");
    assert!(said.contains("set server.admin"), "{said}");
}
