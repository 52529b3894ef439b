//! Rotation policies: what is taken, and what is given back.
//!
//! Policies are kept and checked; nothing rotates by itself here.

use serde_json::{Value, json};

use super::{
    errors::{self, Refusal},
    state::{Kind, Rotation},
};

const EXPIRY_DAYS_MIN: i64 = 28;

/// The least time between rotations, days.
fn interval_days_min(kind: Kind) -> i64 {
    if kind == Kind::ManagedHsm { 28 } else { 7 }
}

/// Days of an ISO 8601 duration in years, months (of 30 days), weeks and days.
fn days(text: &str) -> Option<i64> {
    let mut rest = text.strip_prefix('P').filter(|rest| !rest.is_empty())?;
    let mut days = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let count: i64 = rest[..digits].parse().ok()?;
        let unit = match rest[digits..].chars().next()? {
            'Y' => 365,
            'M' => 30,
            'W' => 7,
            'D' => 1,
            _ => return None,
        };
        days += count.checked_mul(unit)?;
        rest = &rest[digits + 1..];
    }
    Some(days)
}

/// Checks a policy that a client sends.
pub fn parse(body: &Value, kind: Kind, created: i64, now: i64) -> Result<Rotation, Refusal> {
    let bad = |what: &str| errors::bad_parameter(format!("Invalid rotation policy: {what}"));
    let mut actions = Vec::new();
    let listed = match &body["lifetimeActions"] {
        Value::Null => &[][..],
        Value::Array(listed) => listed,
        _ => return Err(bad("lifetimeActions is no list")),
    };
    for action in listed {
        let kind_of_action = match action["action"]["type"].as_str().map(str::to_ascii_lowercase) {
            Some(word) if word == "rotate" => "Rotate",
            Some(word) if word == "notify" => "Notify",
            _ => return Err(bad("action.type is neither Rotate nor Notify")),
        };
        let trigger = &action["trigger"];
        let name = ["timeAfterCreate", "timeBeforeExpiry"]
            .into_iter()
            .find(|name| trigger[name].is_string())
            .ok_or_else(|| bad("a trigger without a time"))?;
        let text = trigger[name].as_str().unwrap_or_default();
        let interval = days(text).ok_or_else(|| bad("a time that is no ISO 8601 duration"))?;
        if kind_of_action == "Rotate"
            && name == "timeAfterCreate"
            && interval < interval_days_min(kind)
        {
            return Err(bad("it rotates too often"));
        }
        actions.push(json!({ "trigger": { name: text }, "action": { "type": kind_of_action } }));
    }
    let expiry = body["attributes"]["expiryTime"].as_str();
    let expiry_days = match expiry {
        Some(text) => {
            let days = days(text).filter(|days| *days >= EXPIRY_DAYS_MIN);
            Some(days.ok_or_else(|| bad("expiryTime is less than 28 days"))?)
        }
        None => None,
    };
    let mut policy = json!({ "lifetimeActions": actions, "attributes": {} });
    if let Some(text) = expiry {
        policy["attributes"]["expiryTime"] = json!(text);
    }
    Ok(Rotation { policy, created, updated: now, expiry_days })
}

/// The policy of a key as it is shown; without one, the service's default: a notice 30
/// days before the end.
pub fn shown(rotation: Option<&Rotation>, host: &str, name: &str, key_created: i64) -> Value {
    let mut policy = match rotation {
        Some(rotation) => rotation.policy.clone(),
        None => json!({
            "lifetimeActions": [{
                "trigger": { "timeBeforeExpiry": "P30D" },
                "action": { "type": "Notify" },
            }],
            "attributes": {},
        }),
    };
    policy["id"] = json!(format!("https://{host}/keys/{name}/rotationpolicy"));
    policy["attributes"]["created"] = json!(rotation.map_or(key_created, |set| set.created));
    policy["attributes"]["updated"] = json!(rotation.map_or(key_created, |set| set.updated));
    policy
}
