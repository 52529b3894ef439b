//! What Entra and the machine's own token endpoints answer when they give no token, and
//! what to make of it.
//!
//! The SDK loses what Entra says as soon as there is a line break in it, so the transport
//! tells the answer to us too. Pure. Nothing of Entra's text is told on, only its numbers
//! and its own short words.

use serde::Deserialize;

use crate::error::{Error, Reason};

/// An answer that is no token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Refusal {
    status: u16,
    error: Option<String>,
    codes: Vec<u32>,
}

#[derive(Deserialize)]
struct Body {
    error: Option<String>,
    #[serde(default)]
    error_codes: Vec<u32>,
}

impl Refusal {
    /// Reads an answer. A body that is none of Entra's has no numbers.
    pub(super) fn read(status: u16, body: &[u8]) -> Self {
        let parsed = serde_json::from_slice::<Body>(body).ok();
        let (error, mut codes) =
            parsed.map_or((None, Vec::new()), |Body { error, error_codes }| (error, error_codes));
        codes.truncate(4);
        Self { status, error, codes }
    }

    fn detail(&self) -> String {
        let word = |text: &&String| {
            text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        };
        let error = self.error.as_ref().filter(word).map(|text| format!(" {text}"));
        let codes: String = self.codes.iter().map(|code| format!(" AADSTS{code}")).collect();
        format!(
            "the token endpoint answered HTTP {}{}{codes}",
            self.status,
            error.unwrap_or_default()
        )
    }

    /// What it means. Trouble that passes is no reason to call the identity wrong.
    pub(super) fn into_error(self) -> Error {
        let error = match self.status {
            // A machine's endpoint says 404 and 410 while it is being set up.
            404 | 408 | 410 | 429 | 500..=599 => {
                Error::new(Reason::BackendUnreachable, "no token can be had now")
            }
            _ => Error::new(Reason::BackendMisconfigured, "the sidecar's identity gets no token")
                .with_fix(self.fix()),
        };
        error.with_detail(self.detail())
    }

    fn fix(&self) -> &'static str {
        let fixes = self.codes.iter().find_map(|code| match code {
            7_000_215 => Some("put the secret's value, not its id, into the file of `identity`"),
            7_000_222 => Some("the client secret has expired: make a new one, and put it into the file of `identity`"),
            700_016 => Some("there is no such application in the tenant: see `identity`"),
            700_027 => Some("the certificate is not one of the application's: add it there, or see `identity`"),
            70_021 | 700_213 => Some("the application has no federated credential for this workload: add one"),
            90_002 => Some("there is no such tenant: see `identity` and `authority`"),
            _ => None,
        });
        fixes.unwrap_or(
            "see whether `identity` names an identity that exists and that this machine may use",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_told_from_what_an_operator_must_mend() {
        for (status, expected) in [
            (400, Reason::BackendMisconfigured),
            (401, Reason::BackendMisconfigured),
            (403, Reason::BackendMisconfigured),
            (404, Reason::BackendUnreachable),
            (410, Reason::BackendUnreachable),
            (429, Reason::BackendUnreachable),
            (500, Reason::BackendUnreachable),
            (503, Reason::BackendUnreachable),
        ] {
            assert_eq!(Refusal::read(status, b"").into_error().reason(), expected, "{status}");
        }
    }

    #[test]
    fn the_number_is_found_whatever_the_text() {
        let body = br#"{"error":"invalid_client","error_description":"AADSTS7000222: expired\r\nTrace ID: \"x\" https:\/\/y","error_codes":[7000222],"timestamp":"z"}"#;
        let error = Refusal::read(401, body).into_error();
        assert!(error.fix().unwrap().contains("expired"), "{error:?}");
        let detail = error.detail().unwrap();
        assert!(detail.ends_with("HTTP 401 invalid_client AADSTS7000222"), "{detail}");
        assert!(!detail.contains("Trace"));
    }

    #[test]
    fn what_is_not_entras_tells_nothing() {
        for body in [&b"<html>"[..], b"{}", br#"{"error":{"code":"x"}}"#, br#"{"error":"a b\n"}"#] {
            let detail = Refusal::read(400, body).into_error().detail().unwrap().to_owned();
            assert!(detail.ends_with("HTTP 400"), "{detail}");
        }
    }
}
