//! `keyward kek watch`: what happens to KEKs, a line for each event.

use std::time::SystemTime;

use clap::Args;
use serde_json::json;

use super::{
    failure::Failure,
    output::print_on,
    show,
    sidecar::{KekEvent, SidecarArgs},
};

/// Tell what happens to KEKs, a line for each event, until it is interrupted
///
/// First comes a STATE for each KEK. Then VERSION_ADDED, CURRENT_CHANGED, EXPIRING,
/// UNREACHABLE, REVOKED and RESTORED, each with how the KEK stands since.
#[derive(Args, Debug)]
pub(super) struct Watch {
    #[command(flatten)]
    sidecar: SidecarArgs,

    /// The KEKs; without any, all that we may describe
    #[arg(value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    names: Vec<String>,
}

impl Watch {
    pub(super) fn run(self, json: bool) -> Result<(), Failure> {
        let names: Vec<_> = self.names.iter().map(String::as_str).collect();
        self.sidecar.connect()?.watch(&names, |event| {
            print_on(&match json {
                true => show::json_line(&event_json(event)),
                false => line(event),
            })
        })
    }
}

fn line(event: &KekEvent) -> String {
    let mut line = format!("{} {} {}", at(event).unwrap_or_default(), event.kek, kind(event));
    let expires = event.expires_at.and_then(moment).unwrap_or_default();
    for (name, value) in [
        ("version", event.version.as_str()),
        ("expires", &expires),
        ("reason", &event.reason),
        ("condition", condition(event)),
        ("current", &event.current_version),
    ] {
        if !value.is_empty() {
            line.push_str(&format!(" {name}={value}"));
        }
    }
    format!("{}\n", super::failure::printable(&line))
}

fn event_json(event: &KekEvent) -> serde_json::Value {
    let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    json!({
        "at": at(event),
        "kek": event.kek,
        "event": kind(event),
        "version": text(&event.version),
        "reason": text(&event.reason),
        "condition": condition(event),
        "current_version": text(&event.current_version),
        "expires_at": event.expires_at.and_then(moment),
    })
}

fn kind(event: &KekEvent) -> &'static str {
    event.kind().as_str_name()
}

fn condition(event: &KekEvent) -> &'static str {
    event.condition().as_str_name()
}

fn at(event: &KekEvent) -> Option<String> {
    event.at.and_then(moment)
}

fn moment(at: prost_types::Timestamp) -> Option<String> {
    show::date(SystemTime::try_from(at).ok()?)
}
