//! A census, as a node keeps it and another reads it. What is read is written as it was, and
//! joining it with itself changes nothing.

#![no_main]

use keyward::kek::{Census, Report};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let Some(report) = Report::parse(text) else { return };
    let written = report.to_json().to_string();
    assert_eq!(Report::parse(written.as_bytes()).as_ref(), Some(&report));
    let mut census = Census::default();
    census.add(report.clone());
    let once = census.usages();
    census.add(report);
    assert_eq!(census.usages(), once);
});
