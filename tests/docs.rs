//! What the documents show, works.

use std::{path::Path, process::Command};

use keyward::config::{self, NoAccounts};

const README: &str = include_str!("../README.md");
const OTHERS: [&str; 4] = [
    include_str!("../docs/benchmarking.md"),
    include_str!("../docs/check.md"),
    include_str!("../docs/customer-managed-keys.md"),
    include_str!("../docs/keys.md"),
];

/// The fenced blocks of a language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let opening = format!("```{language}\n");
    text.split(&opening)
        .skip(1)
        .map(|rest| rest.split("\n```").next().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn the_configuration_in_the_readme_is_right() {
    let shown: Vec<_> =
        blocks(README, "toml").into_iter().filter(|block| block.contains("[server]")).collect();
    assert_eq!(shown.len(), 1);
    if let Err(mistakes) = config::parse(Path::new("README.md"), &shown[0], &NoAccounts) {
        panic!("{mistakes}");
    }
}

#[test]
fn the_commands_in_the_documents_exist() {
    let mut seen = 0;
    for block in [README].iter().chain(&OTHERS).flat_map(|text| blocks(text, "sh")) {
        for line in block.lines().filter_map(|line| line.strip_prefix("keyward ")) {
            let line = line.split(['#', '<', '>']).next().unwrap_or_default();
            let words: Vec<_> = line.split_whitespace().collect();
            // Names of commands come first; options follow in any order.
            let options: Vec<_> = words.iter().filter(|word| word.starts_with("--")).collect();
            let commands =
                words.iter().take_while(|word| word.chars().all(|c| c.is_ascii_lowercase()));
            let help = Command::new(env!("CARGO_BIN_EXE_keyward"))
                .args(commands)
                .arg("--help")
                .output()
                .expect("keyward runs");
            assert!(help.status.success(), "{line}: {help:?}");
            let help = String::from_utf8_lossy(&help.stdout).into_owned();
            for option in options {
                assert!(help.contains(*option), "{line}: no {option} in\n{help}");
            }
            seen += 1;
        }
    }
    assert!(seen >= 14, "the documents show commands");
}

#[test]
fn the_documents_name_files_that_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for document in [
        "README.md",
        "ARCHITECTURE.md",
        "SECURITY.md",
        "CONTRIBUTING.md",
        "docs/benchmarking.md",
        "docs/azure.md",
        "docs/check.md",
        "docs/customer-managed-keys.md",
        "docs/keys.md",
    ] {
        let text = std::fs::read_to_string(root.join(document)).expect("a document");
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let paths = text.split('`').skip(1).step_by(2).filter(|code| {
            ["src/", "tests/", "benches/", "fuzz/", "examples/", "scripts/", "proto/", "softhsm/"]
                .iter()
                .any(|folder| code.starts_with(folder))
        });
        for name in links.chain(paths) {
            // A link is relative to its document, a path in the text to the root.
            let beside = root.join(document).parent().map(|folder| folder.join(name));
            let there = name.starts_with("http")
                || root.join(name).exists()
                || beside.is_some_and(|path| path.exists());
            assert!(there, "{document} names {name}, which is not there");
        }
    }
}
