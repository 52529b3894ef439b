//! `keyward kek watch` and `kek reload` beside a sidecar whose polls are far apart: what
//! happens is told, and what is done to a key is seen when somebody says so.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, ChildStdout, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    home::{Home, on_each_home},
    keyvault::operation::Operation,
    served::{KEK, Served},
};

/// A `kek watch` that runs.
struct Watching {
    child: Child,
    lines: Receiver<Value>,
}

impl Watching {
    fn start(served: &Served) -> Self {
        let mut command = served.command(&["kek", "watch", "--json"]);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
        let out: ChildStdout = child.stdout.take().expect("its output");
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).expect("a line is JSON");
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    fn next(&self) -> Value {
        self.lines.recv_timeout(Duration::from_secs(20)).expect("an event")
    }

    /// The next event, by name, with its version and how the KEK stands.
    fn expect(&self, event: &str, version: Option<&str>, condition: &str, current: Option<&str>) {
        let line = self.next();
        assert!(line["at"].is_string(), "{line}");
        let told = ["kek", "event", "version", "condition", "current_version"];
        let told = told.map(|name| line[name].clone());
        let expected = [json!(KEK), json!(event), json!(version), json!(condition), json!(current)];
        assert_eq!(told, expected, "{line}");
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

fn what_is_done_to_a_key_is_told_and_seen_when_somebody_says_so(home: Home) {
    let mut served = Served::prepare_on(home);
    served.configure(|config| {
        config
            .replace("interval = \"1s\"", "interval = \"10m\"")
            .replace("\"describe\"]", "\"describe\", \"revoke\", \"restore\", \"reload\"]")
    });
    served.serve();
    let old = served.current_version().expect("a version");
    let watching = Watching::start(&served);
    watching.expect("STATE", None, "SERVING", Some(&old));

    let new = served.add_version("b2");
    assert_eq!(served.current_version().as_deref(), Some(&*old), "nobody has looked yet");
    let reloaded = served.ok(&["kek", "reload", "--json", KEK], b"");
    let reloaded: Value = serde_json::from_slice(&reloaded).expect("JSON");
    let expected = json!({ "keks": [{ "name": KEK, "current_version": new, "reason": null }] });
    assert_eq!(reloaded, expected);
    watching.expect("VERSION_ADDED", Some(&new), "SERVING", Some(&new));
    watching.expect("CURRENT_CHANGED", Some(&new), "SERVING", Some(&new));

    // It would be back after a restart, which the command calls a failure.
    served.call(&["kek", "revoke", KEK], b"");
    watching.expect("REVOKED", None, "DARK", None);
    let refused = served.call(&["kek", "reload", "--json", KEK], b"");
    assert_eq!(refused.status.code(), Some(1));
    let told: Value = serde_json::from_slice(&refused.stdout).expect("JSON");
    assert_eq!(told["keks"][0]["reason"], "KEK_REVOKED", "{told}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("KEK_REVOKED"));
}

on_each_home! {
    blocking: what_is_done_to_a_key_is_told_and_seen_when_somebody_says_so;
}

/// Posts `body` to the admin listener, and returns the whole answer.
fn post(served: &Served, body: &str) -> String {
    let mut stream = TcpStream::connect(served.admin()).expect("a connection");
    let head = format!(
        "POST /events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    // It may be refused before all of it is sent.
    let _refused =
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
    let mut answer = Vec::new();
    let _may_be_reset = stream.read_to_end(&mut answer);
    String::from_utf8(answer).expect("text")
}

#[test]
fn an_event_of_a_vault_has_its_key_looked_at_at_once() {
    let mut served = Served::prepare_on(Home::KeyVault);
    let on = "[server]\nadmin = \"127.0.0.1:0\"\nkey_events = true";
    served.configure(|config| {
        config.replace("interval = \"1s\"", "interval = \"10m\"").replacen("[server]", on, 1)
    });
    served.serve();
    let watching = Watching::start(&served);
    let old = served.current_version().expect("a version");
    watching.expect("STATE", None, "SERVING", Some(&old));
    let event = |key: &str| {
        json!([{
            "eventType": "Microsoft.KeyVault.KeyNewVersionCreated",
            "data": { "VaultName": "v", "ObjectType": "Key", "ObjectName": key },
        }])
        .to_string()
    };
    let new = served.add_version("-");
    // Another's key is nothing to us.
    assert!(post(&served, &event("billing")).starts_with("HTTP/1.1 200 "));
    assert_eq!(served.current_version().as_deref(), Some(&*old));
    assert!(post(&served, &event(KEK)).starts_with("HTTP/1.1 200 "));
    watching.expect("VERSION_ADDED", Some(&new), "SERVING", Some(&new));
    watching.expect("CURRENT_CHANGED", Some(&new), "SERVING", Some(&new));
    // Hints are many and cheap; the vault's quota is not.
    let looked = served.fake().count(Operation::ListVersions);
    for _ in 0..50 {
        assert!(post(&served, &event(KEK)).starts_with("HTTP/1.1 200 "));
    }
    thread::sleep(Duration::from_secs(1));
    assert_eq!(served.fake().count(Operation::ListVersions), looked);
    let proof = json!([{
        "eventType": "Microsoft.EventGrid.SubscriptionValidationEvent",
        "data": { "validationCode": "512d38b6" },
    }]);
    let answer = post(&served, &proof.to_string());
    assert!(answer.ends_with("{\"validationResponse\":\"512d38b6\"}"), "{answer}");
    assert!(post(&served, "{}").starts_with("HTTP/1.1 400 "));
    let long = format!("[{}]", " ".repeat(70_000));
    let answer = post(&served, &long);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(served.get("/healthz").contains("ok"), "it goes on");
}

#[test]
fn without_the_setting_there_are_no_events() {
    let mut served = Served::prepare_on(Home::KeyVault);
    served.configure(|config| config.replacen("[server]", "[server]\nadmin = \"127.0.0.1:0\"", 1));
    served.serve();
    assert!(post(&served, "[]").starts_with("HTTP/1.1 404 "));
}
