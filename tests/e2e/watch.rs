//! `keyward kek watch` and `kek reload` beside a sidecar whose polls are far apart: what
//! happens is told, and what is done to a key is seen when somebody says so.

use std::{
    io::{BufRead, BufReader},
    process::{Child, ChildStdout, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    home::{Home, on_each_home},
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
