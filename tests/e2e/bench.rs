//! `keyward bench` against a real sidecar, and a real token or a fake managed HSM.

use std::{fs, path::PathBuf};

use serde_json::Value;

use super::{
    home::{Home, on_each_home},
    served::{KEK, Served},
};

on_each_home! {
    blocking:
        a_hot_run_has_figures_floors_ratios_and_a_page,
        a_boot_fetches_every_dek_once_by_stream_or_singly,
        an_open_loop_keeps_its_rate_and_a_comparison_finds_a_regression,
        what_cannot_be_measured_is_a_failure_with_a_reason;
}

/// Runs a bench that must succeed and returns its JSON.
fn bench(served: &Served, args: &[&str]) -> Value {
    let args = [&["bench"], args, &["--json"]].concat();
    let output = served.ok(&args, b"");
    serde_json::from_slice(&output).expect("one JSON object")
}

fn path(served: &Served, name: &str) -> (PathBuf, String) {
    let path = served.dir().join(name);
    let text = path.to_string_lossy().into_owned();
    (path, text)
}

fn number(value: &Value, place: &str) -> f64 {
    value.pointer(place).and_then(Value::as_f64).unwrap_or_else(|| panic!("{place} in {value}"))
}

fn assert_sane(run: &Value) {
    assert_eq!(run["errors"]["total"], 0, "{run}");
    let percentiles = ["min", "p50", "p90", "p99", "p99_9", "p99_99", "max"];
    let values: Vec<_> =
        percentiles.iter().map(|name| number(run, &format!("/latency_us/{name}"))).collect();
    assert!(values[0] > 0.0 && values.windows(2).all(|pair| pair[0] <= pair[1]), "{values:?}");
    assert!(number(run, "/throughput_per_second") > 1.0);
    let answers: u64 = run["intervals"]["operations"]
        .as_array()
        .map(|all| all.iter().filter_map(Value::as_u64).sum())
        .expect("intervals");
    assert!(answers > 0 && number(run, "/operations") > 0.0);
}

fn a_hot_run_has_figures_floors_ratios_and_a_page(home: Home) {
    let served = Served::start_on(home);
    let config = served.config_file().to_string_lossy().into_owned();
    let (page, page_path) = path(&served, "report.html");
    let args = ["hot", "--kek", KEK, "--callers", "4", "--seconds", "1", "--warm-up", "100ms"];
    // What is behind a vault's network is no floor.
    let device = home == Home::SoftHsm;
    let of_device = if device { &["--config", &config, "--key", KEK][..] } else { &[] };
    let run = bench(&served, &[&args[..], of_device, &["--html", &page_path]].concat());
    assert_sane(&run);
    assert_eq!((&run["scenario"], &run["schema"]), (&"hot".into(), &"keyward-bench/1".into()));
    assert_eq!(run["subject"]["algorithm"], served.house.algorithm());
    for ratio in ["p50_to_ping_pong_p50", "p50_to_echo_p50", "throughput_to_echo"] {
        assert!(number(&run, &format!("/ratios/{ratio}")) > 0.0);
    }
    let floors: &[&str] = match device {
        true => {
            // What is cached does not wait for the device.
            assert!(number(&run, "/ratios/p50_to_decrypt_p50") > 0.0, "{run}");
            &["ping_pong", "echo", "decrypt"]
        }
        false => &["ping_pong", "echo"],
    };
    for floor in floors {
        for when in ["before", "after"] {
            assert!(number(&run, &format!("/floors/{floor}/{when}/latency_us/p50")) > 0.0);
        }
    }
    let page = fs::read_to_string(page).expect("a page");
    assert_eq!(page.matches("<svg").count(), 2);
    assert!(page.contains("Latency by percentile") && page.contains("Throughput over time"));
    assert_eq!(page.contains("device, after"), device);
    assert!(page.ends_with("</html>\n"));
    let drafts = fs::read_dir(served.dir()).expect("a directory");
    let names = drafts.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let names: Vec<_> = names.collect();
    assert!(names.iter().all(|name| !name.ends_with(".new")), "{names:?}");
}

fn a_boot_fetches_every_dek_once_by_stream_or_singly(home: Home) {
    let served = Served::start_on(home);
    for unary in [&[][..], &["--unary"]] {
        let args = ["boot", "--kek", KEK, "--deks", "200", "--callers", "16", "--no-floors"];
        let run = bench(&served, &[&args[..], unary].concat());
        assert_sane(&run);
        assert_eq!((&run["operations"], &run["ran_out"]), (&200.into(), &true.into()));
        assert_eq!(run["settings"]["streams"].is_null(), !unary.is_empty());
        let seconds = number(&run, "/seconds");
        let rate = number(&run, "/throughput_per_second");
        assert!((rate * seconds - 200.0).abs() < 1.0, "{rate} per second for {seconds} s");
        assert!(run["floors"].is_null());
    }
}

fn an_open_loop_keeps_its_rate_and_a_comparison_finds_a_regression(home: Home) {
    let served = Served::start_on(home);
    let (baseline, baseline_path) = path(&served, "baseline.json");
    let args = ["mixed", "--kek", KEK, "--deks", "20", "--rate", "200", "--callers", "8"];
    let how = ["--seconds", "1", "--warm-up", "100ms", "--no-floors"];
    let run = bench(&served, &[&args[..], &how].concat());
    assert_sane(&run);
    // 200 were due in the second, and none was left out.
    assert_eq!(run["operations"], 200);
    let mut faster = run.clone();
    faster["latency_us"]["p50"] = 0.5.into();
    fs::write(&baseline, faster.to_string()).expect("a file");
    let compared = [&["--json", "bench"], &args[..], &how, &["--compare", &baseline_path]].concat();
    let told = served.ok(&compared, b"");
    let told: Value = serde_json::from_slice(&told).expect("JSON");
    assert!(number(&told, "/compared/changes/p50/ratio") > 1.0);
    let judged = served.call(&[&compared[..], &["--max-regression", "50"]].concat(), b"");
    assert_eq!(judged.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&judged.stderr).contains("REGRESSION"));
}

#[test]
fn a_backend_is_measured_alone_and_a_set_that_runs_out_is_told() {
    let served = Served::prepare();
    let config = served.config_file().to_string_lossy().into_owned();
    let args = ["cold", "--config", &config, "--key", KEK, "--deks", "50", "--callers", "2"];
    let run = bench(&served, &[&args[..], &["--seconds", "2", "--warm-up", "0ms"]].concat());
    assert_sane(&run);
    assert_eq!((&run["operations"], &run["ran_out"]), (&50.into(), &true.into()));
    assert_eq!(run["subject"]["kind"], "backend");
    assert!(run["notes"].to_string().contains("ran out"), "{run}");
    assert!(number(&run, "/ratios/throughput_to_decrypt") > 0.0);
    assert!(run["floors"]["echo"].is_null());
}

#[test]
fn a_vault_is_not_measured_from_here_and_what_is_instead_is_said() {
    let served = Served::prepare_on(Home::ManagedHsm);
    let config = served.config_file().to_string_lossy().into_owned();
    let refused = served.call(&["bench", "cold", "--config", &config, "--key", KEK], b"");
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("cannot be measured from here"), "{said}");
    assert!(said.contains("fix: measure the sidecar"), "{said}");
}

fn what_cannot_be_measured_is_a_failure_with_a_reason(home: Home) {
    let served = Served::start_on(home);
    let nobody = served.refused(&["bench", "hot", "--kek", "nobody", "--seconds", "1"], b"");
    assert_eq!(nobody, "KEK_NOT_FOUND");
    let (_, missing) = path(&served, "no/such/page.html");
    let args = ["bench", "hot", "--kek", KEK, "--html", &missing];
    assert_eq!(served.call(&args, b"").status.code(), Some(1), "before any work is done");
}

#[test]
fn a_page_does_not_replace_the_baseline() {
    let served = Served::prepare();
    let (baseline, baseline_path) = path(&served, "baseline.json");
    fs::write(&baseline, "{}").expect("a file");
    let (link, link_path) = path(&served, "link.json");
    std::os::unix::fs::symlink(&baseline, link).expect("a link");
    for page in [&baseline_path, &link_path] {
        let args = ["bench", "hot", "--kek", KEK, "--compare", &baseline_path, "--html", page];
        let refused = served.call(&args, b"");
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("--html would replace"));
    }
    assert_eq!(fs::read_to_string(baseline).expect("it is there"), "{}");
}
