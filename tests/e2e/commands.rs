//! The commands against a running sidecar, and other people's tools beside them.

use std::{
    env,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

use prost::Message as _;

use super::{
    home::{Home, on_each_home},
    served::{FIRST, KEK, KEYWARD, Served, own_uid, read, run_with_input},
    token::{self, LABEL, PIN},
};

on_each_home! {
    blocking:
        what_is_wrapped_unwraps,
        a_context_is_bound,
        a_generated_dek_unwraps_and_no_two_are_alike,
        a_dek_moves_to_the_new_version_and_old_ones_still_unwrap,
        keys_are_created_through_our_own_command_and_cannot_leave,
        an_aes_kek_wraps_in_the_backend,
        a_python_client_that_knows_only_the_proto_unwraps_a_dek,
        mutual_tls_lets_the_client_of_the_development_authority_in_and_nobody_else,
        an_operator_purges_what_is_cached_and_nobody_else_does;
    asynchronous: a_program_purges_over_a_client_that_carried_deks_itself;
}

const DEK: &[u8; 32] = b"0123456789abcdef0123456789ABCDEF";

fn what_is_wrapped_unwraps(home: Home) {
    let served = Served::start_on(home);
    let wrapped = served.ok(&["wrap", "--kek", KEK], DEK);
    assert_eq!(served.ok(&["unwrap"], &wrapped), DEK);
    let message = keyward::wire::WrappedDek::decode(&wrapped[..]).expect("a WrappedDek");
    let current = served.current_version().expect("a version");
    assert_eq!((message.kek.as_str(), message.version), (KEK, current));
    assert_eq!(message.ciphertext.len(), 256);
    assert_eq!(message.kek_fingerprint.len(), 32);
}

fn a_context_is_bound(home: Home) {
    let served = Served::start_on(home);
    let ours = served.file("ours", b"tenant 7").to_string_lossy().into_owned();
    let theirs = served.file("theirs", b"tenant 8").to_string_lossy().into_owned();
    let wrapped = served.ok(&["wrap", "--kek", KEK, "--context-file", &ours], DEK);
    assert_eq!(served.ok(&["unwrap", "--context-file", &ours], &wrapped), DEK);
    let other = served.refused(&["unwrap", "--context-file", &theirs], &wrapped);
    let none = served.refused(&["unwrap"], &wrapped);
    assert_eq!((other.as_str(), none.as_str()), ("CIPHERTEXT_INVALID", "CIPHERTEXT_INVALID"));
    let rewrapped = served.ok(&["rewrap", "--context-file", &ours], &wrapped);
    assert_eq!(served.ok(&["unwrap", "--context-file", &ours], &rewrapped), DEK);
}

fn a_generated_dek_unwraps_and_no_two_are_alike(home: Home) {
    let served = Served::start_on(home);
    let out = served.dir().join("wrapped").to_string_lossy().into_owned();
    let mut seen = Vec::new();
    for length in ["16", "32", "64", "64"] {
        let dek =
            served.ok(&["generate", "--kek", KEK, "--length", length, "--wrapped-out", &out], b"");
        assert_eq!(dek.len().to_string(), length);
        assert_eq!(served.ok(&["unwrap"], &read(Path::new(&out))), dek);
        assert!(!seen.contains(&dek));
        seen.push(dek);
    }
    let without =
        ["generate", "--kek", KEK, "--length", "32", "--wrapped-out", &out, "--no-plaintext"];
    assert!(served.ok(&without, b"").is_empty());
    assert_eq!(served.ok(&["unwrap"], &read(Path::new(&out))).len(), 32);
    let mode = std::fs::metadata(&out).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

fn a_dek_moves_to_the_new_version_and_old_ones_still_unwrap(home: Home) {
    let served = Served::start_on(home);
    let old = served.ok(&["wrap", "--kek", KEK], DEK);
    assert_eq!(served.ok(&["rewrap"], &old), old, "it is under the current version already");
    let second = served.add_version("0b");
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while served.current_version().as_ref() != Some(&second) {
        assert!(std::time::Instant::now() < until, "the new version is not found");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let new = served.ok(&["rewrap"], &old);
    let message = keyward::wire::WrappedDek::decode(&new[..]).expect("a WrappedDek");
    assert_eq!(message.version, second);
    assert_eq!(served.ok(&["unwrap"], &new), DEK);
    assert_eq!(served.ok(&["unwrap"], &old), DEK);
}

fn keys_are_created_through_our_own_command_and_cannot_leave(home: Home) {
    let served = Served::prepare_on(home);
    let config = served.config_file().to_string_lossy().into_owned();
    let key = |args: &[&str]| {
        let args =
            [&["key", args[0], "--config", &config, "--backend", "hsm"], &args[1..]].concat();
        served.call(&args, b"")
    };
    let created = key(&["create", "--type", "aes", "--size", "256", "--json", "vault"]);
    assert!(created.status.success(), "{created:?}");
    let again = key(&["create", "--type", "rsa", "--size", "2048", "vault"]);
    assert_eq!(again.status.code(), Some(1), "a label is created once");
    let none = key(&["show", "nothing"]);
    assert_eq!(none.status.code(), Some(1));
    let shown = key(&["show", "vault"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let line = |name: &str, value: &str| {
        shown.lines().any(|line| line.starts_with(name) && line.ends_with(value))
    };
    assert!(line("SENSITIVE", "yes") && line("EXTRACTABLE", "no"), "{shown}");
    let listed = key(&["list"]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("vault") && listed.contains(KEK), "{listed}");
    let wrong_size = key(&["create", "--type", "rsa", "--size", "1024", "small"]);
    assert_eq!(wrong_size.status.code(), Some(2));
}

fn an_aes_kek_wraps_in_the_backend(home: Home) {
    let mut served = Served::prepare_on(home);
    let config = served.config_file().to_string_lossy().into_owned();
    let create = ["key", "create", "--config", &config, "--type", "aes", "--size", "256", "vault"];
    served.ok(&create, b"");
    served.configure(|config| {
        config
            + "\n[[kek]]\nname = \"kw\"\nbackend = \"hsm\"\nkey = \"vault\"\nalgorithm = \"A256KW\"\n"
            + "\n[[kek]]\nname = \"kwp\"\nbackend = \"hsm\"\nkey = \"vault\"\nalgorithm = \"A256KWP\"\n"
    });
    served.serve();
    for kek in ["kw", "kwp"] {
        let wrapped = served.ok(&["wrap", "--kek", kek], DEK);
        assert_eq!(served.ok(&["unwrap"], &wrapped), DEK);
    }
    assert_eq!(served.refused(&["wrap", "--kek", "kw"], &DEK[..17]), "DEK_LENGTH_INVALID");
    // Whatever its length, a DEK with a context fits.
    let context = served.file("context", b"tenant").to_string_lossy().into_owned();
    let args = ["wrap", "--kek", "kw", "--context-file", &context];
    let wrapped = served.ok(&args, &DEK[..17]);
    assert_eq!(served.ok(&["unwrap", "--context-file", &context], &wrapped), &DEK[..17]);
}

#[test]
fn openssl_wraps_what_we_unwrap_and_pkcs11_tool_unwraps_what_we_wrap() {
    let served = Served::start();
    let dir = served.dir();
    let pem = dir.join("kek.pem").to_string_lossy().into_owned();
    served.ok(&["kek", "show", KEK, "--public-key-out", &pem], b"");
    let mut openssl = Command::new("openssl");
    openssl.args(["pkeyutl", "-encrypt", "-pubin", "-inkey", &pem]);
    openssl.args(["-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha1"]);
    let theirs = run_with_input(&mut openssl, DEK);
    assert!(theirs.status.success(), "{theirs:?}");
    assert_eq!(served.ok(&["unwrap", "--raw", "--kek", KEK], &theirs.stdout), DEK);

    let ours = served.ok(&["wrap", "--raw", "--kek", KEK], DEK);
    let ciphertext = served.file("ciphertext", &ours).to_string_lossy().into_owned();
    let plaintext = dir.join("plaintext").to_string_lossy().into_owned();
    served.token().pkcs11_tool_user(&[
        "--decrypt",
        "--mechanism",
        "RSA-PKCS-OAEP",
        "--hash-algorithm",
        "SHA-1",
        "--mgf",
        "MGF1-SHA1",
        "--id",
        FIRST,
        "--input-file",
        &ciphertext,
        "--output-file",
        &plaintext,
    ]);
    assert_eq!(read(Path::new(&plaintext)), DEK);
    let _the_token_is = (LABEL, PIN);
}

fn a_python_client_that_knows_only_the_proto_unwraps_a_dek(home: Home) {
    let python = env::var_os("KEYWARD_TEST_PYTHON")
        .expect("KEYWARD_TEST_PYTHON names a Python with grpcio; `make test` makes it");
    let served = Served::start_on(home);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/python/unwrap.py");
    let context = served.file("context", b"tenant 7");
    let context = context.to_string_lossy().into_owned();
    let wrapped = served.ok(&["wrap", "--kek", KEK, "--context-file", &context], DEK);
    let kek_of = ["--kek", KEK];
    let call = |verb: &str, more: &[&str], context: &str, input: &[u8]| {
        let mut command = Command::new(&python);
        command.arg(&script).arg(verb).arg("--socket").arg(served.socket()).args(more);
        command.args(["--context-file", context]);
        run_with_input(&mut command, input)
    };
    let done = |output: Output| {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let other = served.file("other", b"tenant 8").to_string_lossy().into_owned();
    // Plain, and sealed with somebody else's HPKE.
    for sealed in [&[][..], &["--sealed"]] {
        assert_eq!(done(call("unwrap", sealed, &context, &wrapped)), DEK);
        let refused = call("unwrap", sealed, &other, &wrapped);
        assert_eq!(refused.status.code(), Some(1));
        let stderr = String::from_utf8_lossy(&refused.stderr);
        assert!(stderr.contains("CIPHERTEXT_INVALID"), "{stderr}");

        let by_python = done(call("wrap", &[&kek_of, sealed].concat(), &context, DEK));
        let unwrapped = served.ok(&["unwrap", "--context-file", &context], &by_python);
        assert_eq!(unwrapped, DEK);

        let out = served.dir().join("generated").to_string_lossy().into_owned();
        let generate = [&kek_of[..], &["--length", "48", "--wrapped-out", &out], sealed].concat();
        let dek = done(call("generate", &generate, &context, b""));
        assert_eq!(dek.len(), 48);
        let generated = read(Path::new(&out));
        assert_eq!(served.ok(&["unwrap", "--context-file", &context], &generated), dek);
    }
}

fn mutual_tls_lets_the_client_of_the_development_authority_in_and_nobody_else(home: Home) {
    let mut served = Served::prepare_on(home);
    let dir = served.dir().to_path_buf();
    let ours = dir.join("tls").to_string_lossy().into_owned();
    let strangers = dir.join("strangers").to_string_lossy().into_owned();
    for at in [&ours, &strangers] {
        served.ok(&["tls", "dev", at], b"");
    }
    let port = free_port();
    served.configure(|config| {
        let tls = format!(
            "listen = \"127.0.0.1:{port}\"\ntls = {{ certificate = \"{ours}/server.pem\", key = \"{ours}/server.key\", client_ca = \"{ours}/ca.pem\" }}\n"
        );
        config.replacen("[server]\n", &format!("[server]\n{tls}"), 1)
            + "[[policy]]\nwho = [\"spiffe://keyward.dev/node/*\"]\nmay = [\"wrap\", \"unwrap\"]\nkek = [\"*\"]\n"
    });
    served.serve();
    let address = format!("https://localhost:{port}");
    let over_tls = |verb: &[&str], of: &str, input: &[u8]| {
        let file = |name: &str| format!("{of}/{name}");
        let ca = format!("{ours}/ca.pem");
        let (certificate, key) = (file("client.pem"), file("client.key"));
        let tls = [
            "--address",
            &address,
            "--tls-ca",
            &ca,
            "--tls-certificate",
            &certificate,
            "--tls-key",
            &key,
            "--timeout",
            "5s",
        ];
        let args = [verb, &tls].concat();
        let mut command = served.house.command(KEYWARD);
        run_with_input(command.args(&args), input)
    };
    let wrapped = over_tls(&["wrap", "--kek", KEK], &ours, DEK);
    assert!(wrapped.status.success(), "{}", String::from_utf8_lossy(&wrapped.stderr));
    let unwrapped = over_tls(&["unwrap"], &ours, &wrapped.stdout);
    assert_eq!(unwrapped.stdout, DEK);
    let stranger = over_tls(&["unwrap"], &strangers, &wrapped.stdout);
    assert_eq!(stranger.status.code(), Some(1));
    // What the policy does not name is refused over TLS too.
    let denied = over_tls(&["rewrap"], &ours, &wrapped.stdout);
    let stderr = String::from_utf8_lossy(&denied.stderr);
    assert!(stderr.contains("policy"), "{stderr}");
}

fn an_operator_purges_what_is_cached_and_nobody_else_does(home: Home) {
    let mut served = Served::prepare_on(home);
    let refuse = |served: &Served, args: &[&str]| {
        assert_eq!(served.refused(args, b""), "PERMISSION_DENIED", "{args:?}");
    };
    served.serve();
    let wrapped = served.ok(&["wrap", "--kek", KEK], DEK);
    served.ok(&["unwrap"], &wrapped);
    refuse(&served, &["kek", "purge", KEK]);
    refuse(&served, &["kek", "purge"]);
    refuse(&served, &["kek", "purge", "no-such-kek"]);
    served.signal("-TERM");
    assert_eq!(served.wait(), Some(0));

    served.configure(|config| {
        config
            + &format!(
                "[[policy]]\nwho = [\"uid:{}\"]\nmay = [\"purge\"]\nkek = [\"{KEK}\"]\n",
                own_uid()
            )
    });
    served.serve();
    let purge = |args: &[&str]| -> serde_json::Value {
        let args = [&["kek", "purge", "--json"], args].concat();
        serde_json::from_slice(&served.ok(&args, b"")).expect("JSON")
    };
    let nothing = serde_json::json!({ "deks": 0, "connections": 0, "left_open": 0, "sessions": 0 });
    for args in [&[KEK][..], &[]] {
        // Each command is a connection of its own, and has ended.
        served.ok(&["unwrap"], &wrapped);
        assert_eq!(purge(args)["deks"], 1);
        assert_eq!(purge(args), nothing);
    }
    served.ok(&["unwrap"], &wrapped);
    let told = String::from_utf8(served.ok(&["kek", "purge", KEK], b"")).expect("text");
    for line in [
        "wiped DEKs          1",
        "closed connections  0",
        "ended sessions      1",
        "still open          0",
    ] {
        assert!(told.lines().any(|told| told == line), "{line:?} in\n{told}");
    }
    refuse(&served, &["kek", "purge", "no-such-kek"]);
    assert_eq!(served.refused(&["kek", "purge", "/"], b""), "REQUEST_INVALID");
    assert_eq!(served.call(&["kek", "purge", ""], b"").status.code(), Some(2));
    assert_eq!(served.ok(&["unwrap"], &wrapped), DEK, "the KEK stays as it is");
}

async fn a_program_purges_over_a_client_that_carried_deks_itself(home: Home) {
    let mut served = Served::prepare_on(home);
    served.configure(|config| config.replace("\"describe\"]", "\"describe\", \"purge\"]"));
    served.serve();
    let client = served.client();
    let (dek, wrapped) = client.generate(KEK, 32, b"").await.expect("a DEK");
    client.unwrap(&wrapped, b"").await.expect("a DEK");
    let purged = client.purge(Some(KEK)).await.expect("it may");
    // No connection carried a DEK in the clear.
    let expected = keyward::client::Purged { deks: 1, connections: 0, left_open: 0, sessions: 1 };
    assert_eq!(purged, expected);
    assert!(client.unwrap(&wrapped, b"").await.expect("a DEK").ct_eq(dek.expose()));
    assert_eq!(client.purge(None).await.expect("it may"), expected);
    let plain = client.clone().with_delivery(keyward::client::Delivery::Plain);
    plain.unwrap(&wrapped, b"").await.expect("a DEK");
    let expected = keyward::client::Purged { deks: 1, connections: 1, left_open: 0, sessions: 0 };
    assert_eq!(client.purge(None).await.expect("it may"), expected);
    let empty = client.purge(Some("")).await.expect_err("no name is not every name");
    assert_eq!(empty.reason(), "REQUEST_INVALID");
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").port()
}

#[test]
fn a_fresh_token_is_set_up_by_pkcs11_tool_or_by_us_alike() {
    let served = Served::start();
    let shown = served.ok(&["kek", "show", "--json", KEK], b"");
    let shown: serde_json::Value = serde_json::from_slice(&shown).expect("JSON");
    assert_eq!(shown["usable"], true);
    assert_eq!(shown["assurance"]["sensitive"], true);
    assert_eq!(shown["assurance"]["extractable"], false);
    assert_eq!(shown["versions"][0]["state"], "ACTIVE");
    assert_eq!(shown["versions"][0]["bits"], 2048);
    let _used = token::SO_PIN;
}
