//! Events of key vaults, as Azure Event Grid posts them: which keys are worth a look.
//!
//! Pure. An event is a hint and never believed: all that comes of it is that the vault is
//! asked at once, as it would be at the next poll. So nobody is authenticated here, and what
//! is rung is bounded elsewhere. Both schemas of Event Grid are read: its own, and
//! CloudEvents 1.0.

use serde_json::{Value, json};

/// Longest body that is read, in bytes: what Event Grid sends of one event.
pub(super) const BODY_MAX: usize = 64 * 1024;

/// Most keys that one body may name.
const KEYS_MAX: usize = 64;

/// Longest code that proves a subscription.
const CODE_MAX: usize = 512;

const VALIDATION: &str = "Microsoft.EventGrid.SubscriptionValidationEvent";
const OF_KEYS: &str = "Microsoft.KeyVault.Key";

/// What a body says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// Event Grid wants to know that we want events: the answer to give it.
    Validation(String),
    /// Something happened to these keys, by name; none if it happened to something else.
    Keys(Vec<String>),
}

/// Reads a body; `None` if it is none of Event Grid's.
pub(super) fn read(body: &[u8]) -> Option<Notice> {
    let value: Value = serde_json::from_slice(body.get(..BODY_MAX.min(body.len()))?).ok()?;
    let events = match &value {
        Value::Array(events) => events.as_slice(),
        Value::Object(_) => std::slice::from_ref(&value),
        _ => return None,
    };
    let mut keys = Vec::new();
    for event in events {
        let kind = [&event["eventType"], &event["type"]].into_iter().find_map(Value::as_str)?;
        let data = &event["data"];
        if kind == VALIDATION {
            let code = data["validationCode"].as_str().filter(|code| code.len() <= CODE_MAX)?;
            return Some(Notice::Validation(json!({ "validationResponse": code }).to_string()));
        }
        if kind.starts_with(OF_KEYS)
            && keys.len() < KEYS_MAX
            && let Some(name) = data["ObjectName"].as_str()
        {
            keys.push(name.to_owned());
        }
    }
    Some(Notice::Keys(keys))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_json(value: &Value) -> Option<Notice> {
        read(value.to_string().as_bytes())
    }

    #[test]
    fn both_schemas_name_the_key() {
        let data = json!({
            "Id": "https://v.vault.azure.net/keys/orders/1", "VaultName": "v",
            "ObjectType": "Key", "ObjectName": "orders", "Version": "1",
        });
        let own = json!([
            { "eventType": "Microsoft.KeyVault.KeyNewVersionCreated", "data": data },
            { "eventType": "Microsoft.KeyVault.SecretExpired", "data": data },
        ]);
        let keys = Some(Notice::Keys(vec!["orders".into()]));
        assert_eq!(read_json(&own), keys);
        let cloud =
            json!({ "specversion": "1.0", "type": "Microsoft.KeyVault.KeyExpired", "data": data });
        assert_eq!(read_json(&cloud), keys);
        assert_eq!(read_json(&json!([])), Some(Notice::Keys(vec![])));
    }

    #[test]
    fn a_subscription_is_proven_by_its_code() {
        let event =
            |code: &str| json!([{ "eventType": VALIDATION, "data": { "validationCode": code } }]);
        let answer = Notice::Validation("{\"validationResponse\":\"512d38b6\"}".into());
        assert_eq!(read_json(&event("512d38b6")), Some(answer));
        assert_eq!(read_json(&event(&"x".repeat(CODE_MAX + 1))), None);
    }

    #[test]
    fn what_is_none_of_event_grids_is_none() {
        for other in [json!(1), json!("x"), json!([1]), json!([{}]), json!({ "type": 7 })] {
            assert_eq!(read_json(&other), None, "{other}");
        }
        let many: Vec<_> = (0..100)
            .map(|n| json!({ "eventType": "Microsoft.KeyVault.KeyExpired", "data": { "ObjectName": n.to_string() } }))
            .collect();
        let Some(Notice::Keys(keys)) = read_json(&Value::Array(many)) else { panic!("keys") };
        assert_eq!(keys.len(), KEYS_MAX);
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_calmly(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&body);
        }
    }
}
