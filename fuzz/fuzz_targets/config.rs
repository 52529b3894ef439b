//! The configuration. No file makes the reader panic; what it refuses, it explains.

#![no_main]

use std::path::Path;

use keyward::config::{self, NoAccounts};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let lines = text.lines().count().max(1);
    let Err(mistakes) = config::parse(Path::new("keyward.toml"), text, &NoAccounts) else { return };
    assert!(mistakes.iter().next().is_some(), "refused without a reason");
    for mistake in mistakes.iter() {
        assert!(!mistake.what.is_empty() && !mistake.fix.is_empty(), "{mistake:?}");
        // One past the last line is where something that is missing should be.
        assert!((1..=lines + 1).contains(&mistake.line), "{mistake:?}");
        // What it repeats of the file must not reach the operator's terminal as control
        // characters.
        let shown = format!("{mistake}\n{}", mistake.fix);
        assert!(!shown.contains(|c: char| c.is_control() && c != '\n'), "{mistake:?}");
    }
});
