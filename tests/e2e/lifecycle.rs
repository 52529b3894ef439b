//! Starting, refusing to start, and stopping.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    thread,
    time::{Duration, Instant},
};

use super::{
    home::{Home, on_each_home},
    served::{KEK, Served},
};

on_each_home! {
    blocking:
        sigterm_lets_calls_finish_and_leaves_nothing_behind,
        a_second_instance_refuses_and_a_killed_ones_socket_is_taken_over,
        the_supervisor_is_told_when_it_is_ready_and_when_it_stops,
        a_kek_that_is_not_there_yet_keeps_it_up_but_not_ready;
}

#[test]
fn an_algorithm_that_the_token_lacks_is_found_out_and_the_setting_named() {
    let served = Served::prepare();
    served.configure(|config| config.replace("\"RSA-OAEP\"", "\"RSA-OAEP-256\""));
    let said = served.serve_fails();
    assert!(said.contains("the token refuses RSA-OAEP-256"), "{said}");
    assert!(said.contains("algorithm = \"RSA-OAEP\""), "{said}");
}

#[test]
fn what_keeps_it_from_starting_is_said_with_its_cure() {
    let served = Served::prepare();
    let module = served.token().module.to_string_lossy().into_owned();
    let pin = served.token().pin_file.clone();
    let text = served.file("text.so", b"no library").to_string_lossy().into_owned();

    served.configure(|config| config.replace(&module, "/nonexistent/module.so"));
    assert!(served.serve_fails().contains("/nonexistent/module.so"));
    served.configure(|config| config.replace(&module, &text));
    assert!(served.serve_fails().contains("is not a library"));
    served.configure(|config| config.replace("token = \"", "token = \"not-"));
    assert!(served.serve_fails().contains("the token is not there"));
    served.configure(|config| config);
    fs::write(&pin, "00000000").expect("a file");
    assert!(served.serve_fails().contains("PIN"));
    fs::set_permissions(&pin, fs::Permissions::from_mode(0o644)).expect("a mode");
    assert!(served.serve_fails().contains("open to others"));
}

#[test]
fn three_mistakes_in_the_file_are_told_at_once() {
    let served = Served::prepare();
    served.configure(|config| {
        config
            .replace("drain = \"3s\"", "drian = \"3s\"")
            .replace("sessions = 2", "sessions = 0")
            .replace("backend = \"hsm\"", "backend = \"hms\"")
    });
    let said = served.serve_fails();
    for mistake in ["drian", "sessions", "hms"] {
        assert!(said.contains(mistake), "{mistake} is not in\n{said}");
    }
    assert!(said.matches("keyward.toml:").count() >= 3, "{said}");
}

fn sigterm_lets_calls_finish_and_leaves_nothing_behind(home: Home) {
    let mut served = Served::start_on(home);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let client = runtime.block_on(async { served.client() });
    let load = runtime.spawn(async move {
        let mut answered = 0;
        loop {
            match client.generate(KEK, 32, b"").await {
                Ok(_) => answered += 1,
                Err(error) => return (answered, error.reason().to_owned()),
            }
        }
    });
    thread::sleep(Duration::from_millis(300));
    served.signal("-TERM");
    assert_eq!(served.wait(), Some(0), "{}", served.log());
    let (answered, reason) = runtime.block_on(load).expect("the load ends");
    assert!(answered > 0);
    assert!(["SHUTTING_DOWN", "SIDECAR_UNREACHABLE"].contains(&reason.as_str()), "{reason}");
    assert!(!served.socket().exists());
}

fn a_second_instance_refuses_and_a_killed_ones_socket_is_taken_over(home: Home) {
    let mut served = Served::start_on(home);
    let output = served.call(&["serve", "--config", &served.config_file().to_string_lossy()], b"");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("another keyward serves it"), "{said}");
    assert!(served.is_ready(), "the first one goes on");
    let mode = fs::metadata(served.socket()).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);

    served.signal("-KILL");
    served.wait();
    assert!(served.socket().exists(), "it could not tidy up");
    served.serve();
}

fn the_supervisor_is_told_when_it_is_ready_and_when_it_stops(home: Home) {
    let served = Served::prepare_on(home);
    let path = served.dir().join("notify");
    let supervisor = UnixDatagram::bind(&path).expect("a socket");
    supervisor.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    let log = fs::File::create(served.log_file()).expect("a log");
    let mut sidecar = served
        .command(&["serve", "--config"])
        .arg(served.config_file())
        .env("NOTIFY_SOCKET", &path)
        .stderr(log)
        .spawn()
        .expect("it starts");
    let heard = || {
        let mut message = [0; 256];
        let len = supervisor.recv(&mut message).expect("a message");
        String::from_utf8_lossy(&message[..len]).into_owned()
    };
    assert!(heard().contains("READY=1"));
    assert!(served.is_ready(), "READY means that the self-test has passed");
    super::token::run(std::process::Command::new("kill").arg(sidecar.id().to_string()));
    assert!(heard().contains("STOPPING=1"));
    assert!(sidecar.wait().expect("its status").success());
    served.configure(|config| config);
}

fn a_kek_that_is_not_there_yet_keeps_it_up_but_not_ready(home: Home) {
    let mut served = Served::prepare_on(home);
    let algorithm = served.house.algorithm();
    served.configure(|config| {
        format!(
            "{config}\n[[kek]]\nname = \"later\"\nbackend = \"hsm\"\nalgorithm = \"{algorithm}\"\n"
        )
    });
    served.spawn();
    let until = Instant::now() + Duration::from_secs(20);
    while !served.log().contains("not ready") {
        assert!(Instant::now() < until, "{}", served.log());
        thread::sleep(Duration::from_millis(20));
    }
    // The other KEK is served all the same.
    served.ok(&["wrap", "--kek", KEK], &[7; 32]);
    assert_eq!(served.refused(&["wrap", "--kek", "later"], &[7; 32]), "KEK_NOT_FOUND");
    assert!(!served.is_ready());
    served.house.make("later", "01");
    let until = Instant::now() + Duration::from_secs(20);
    while !served.is_ready() {
        assert!(Instant::now() < until, "{}", served.log());
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn its_command_line_and_environment_hold_no_pin() {
    let served = Served::start();
    for file in ["cmdline", "environ"] {
        let text = fs::read(format!("/proc/{}/{file}", served.pid())).expect("its own file");
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(!text.contains(super::token::PIN), "{file} holds the PIN");
    }
}
