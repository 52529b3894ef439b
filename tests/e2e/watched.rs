//! Metrics and health over HTTP, of a real sidecar on a real token.

use std::net::TcpListener;

use super::served::{KEK, Served};

/// Has the kernel choose the admin port.
fn start() -> Served {
    let mut served = Served::prepare();
    served.configure(|config| config.replace("[server]", "[server]\nadmin = \"127.0.0.1:0\""));
    served.serve();
    served
}

#[test]
fn metrics_tell_what_the_sidecar_and_the_token_did() {
    let served = start();
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
