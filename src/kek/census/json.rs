//! A report as JSON: what a node keeps, and what is carried from node to node.
//!
//! Invariant: what is read is bounded and whole, or nothing.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::{Map, Value, json};

use super::{Callers, Report, Usage, Usages};
use crate::kek::{KekName, VersionId};

const FORMAT: &str = "keyward-census-1";

/// Longest name of a node, in characters.
const NODE_MAX: usize = 64;

impl Report {
    /// Longest text of a report, in bytes.
    pub const TEXT_MAX: usize = 4 * 1024 * 1024;

    /// As JSON.
    pub fn to_json(&self) -> Value {
        let Self { node, since, at, usages } = self;
        let keks: Map<_, _> = usages
            .iter()
            .map(|(kek, versions)| {
                let versions: Map<_, _> = versions
                    .iter()
                    .map(|(id, usage)| (id.to_string(), usage_json(usage)))
                    .collect();
                (kek.to_string(), Value::Object(versions))
            })
            .collect();
        json!({
            "format": FORMAT,
            "node": node,
            "since": secs(*since),
            "at": secs(*at),
            "keks": keks,
        })
    }

    /// From [`Self::to_json`], as text; `None` if it is anything else.
    pub fn parse(text: &[u8]) -> Option<Self> {
        if text.len() > Self::TEXT_MAX {
            return None;
        }
        let value: Value = serde_json::from_slice(text).ok()?;
        let node = value["node"].as_str().filter(|node| is_node(node))?;
        if value["format"] != FORMAT {
            return None;
        }
        let mut usages = Usages::new();
        for (kek, versions) in bounded(&value["keks"])? {
            let mut of_kek = BTreeMap::new();
            for (id, usage) in bounded(versions)? {
                of_kek.insert(VersionId::parse(id)?, usage_of(usage)?);
            }
            usages.insert(KekName::parse(kek)?, of_kek);
        }
        let (since, at) = (time(&value["since"])?, time(&value["at"])?);
        Some(Self { node: node.to_owned(), since, at, usages })
    }
}

fn is_node(text: &str) -> bool {
    (1..=NODE_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn bounded(value: &Value) -> Option<&Map<String, Value>> {
    value.as_object().filter(|object| object.len() <= Report::ENTRIES_MAX)
}

fn usage_json(usage: &Usage) -> Value {
    let Usage { unwraps, last, callers } = usage;
    let callers: String = callers.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    json!({ "unwraps": unwraps, "last": last.map(secs), "callers": callers })
}

fn usage_of(value: &Value) -> Option<Usage> {
    let last = match &value["last"] {
        Value::Null => None,
        last => Some(time(last)?),
    };
    let text = value["callers"].as_str().filter(|text| text.len() == 2 * Callers::BYTES)?;
    let byte = |at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..text.len()).step_by(2).map(byte).collect();
    let callers = Callers::from_bytes(&bytes?)?;
    Some(Usage { unwraps: value["unwraps"].as_u64()?, last, callers })
}

fn secs(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn time(value: &Value) -> Option<SystemTime> {
    // To the year 9999, which is as far as dates are shown.
    let secs = value.as_u64().filter(|secs| *secs < 253_402_300_800)?;
    Some(UNIX_EPOCH + Duration::from_secs(secs))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::tests::any_report, *};

    proptest! {
        #[test]
        fn a_report_is_read_as_it_was_written(report in any_report()) {
            let text = report.to_json().to_string();
            prop_assert_eq!(Report::parse(text.as_bytes()), Some(report));
            prop_assert_eq!(Report::parse(&text.as_bytes()[..text.len() - 1]), None);
        }

        #[test]
        fn what_is_no_report_is_none(text in ".{0,200}") {
            prop_assert_eq!(Report::parse(text.as_bytes()), None);
        }

        #[test]
        fn no_field_can_be_missing_or_of_another_kind(
            report in any_report(), field in 0..5_usize, other in 0..3_usize,
        ) {
            let mut value = report.to_json();
            let field = ["format", "node", "since", "at", "keks"][field];
            value[field] = [Value::Null, json!(-1), json!(["x"])][other].clone();
            prop_assert_eq!(Report::parse(value.to_string().as_bytes()), None);
        }
    }
}
