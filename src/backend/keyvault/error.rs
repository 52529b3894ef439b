//! The one table of what vaults and managed HSMs answer when they do not do what they
//! were asked: status, inner code and AKV number decide, never a text.
//!
//! | answer | reason |
//! |---|---|
//! | 403 `KeyDisabled`, `KeyOperationForbidden` | `KEK_DISABLED` |
//! | 403 `ForbiddenBy…`, `AccessDenied` and what is not known | `KEK_REVOKED` |
//! | 404 `…NotFound` | `KEK_NOT_FOUND`, of a version `KEK_VERSION_NOT_FOUND` |
//! | 401 AKV10046; 408, 5xx | `BACKEND_UNREACHABLE` |
//! | 429 | `OVERLOADED`, with what the vault asks for, at most [`PATIENCE_MAX`] |
//! | 401 AKV10022, AKV10032 and other; 4xx not above | `BACKEND_MISCONFIGURED` |
//! | 400 `BadParameter` to an unwrap | `CIPHERTEXT_INVALID` |
//! | 400 of another kind to an unwrap | a suspicion: a canary decides |
//! | 409 | an officer's: `REQUEST_INVALID`, or try again |
//!
//! Pure. What a vault wrote goes nowhere but, if it is a plain word, into `detail`.

use std::time::Duration;

use serde::Deserialize;

use crate::error::{Error, Reason, Retry};

/// Longest that a vault may have itself spared. More would be an outage by its word alone.
pub(super) const PATIENCE_MAX: Duration = Duration::from_secs(30);

/// How long a vault is spared that asks for patience without saying how much: the first
/// step of what Azure advises.
const PATIENCE: Duration = Duration::from_secs(1);

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// A key or its versions, by its name.
    Key,
    /// One version of a key, or an operation of ours with it.
    Version,
    /// To unwrap what a caller sent.
    Unwrap,
    /// Random bytes.
    Random,
    /// A new key.
    Create,
}

/// What an error answer says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// The HTTP status.
    pub(super) status: u16,
    /// `error.code`.
    pub(super) outer: Option<String>,
    /// The innermost code of `error.innererror`.
    pub(super) inner: Option<String>,
    /// The number of an `AKV…` in the message of a 401.
    pub(super) akv: Option<u32>,
    /// How long the vault wants to be spared.
    pub(super) retry_after: Option<Duration>,
}

/// What to make of it.
#[derive(Debug)]
pub(super) enum Verdict {
    /// This.
    Settled(Error),
    /// The ciphertext is bad if the key still works; otherwise this.
    Suspect(Error),
}

#[derive(Deserialize)]
struct Body {
    error: Option<Detail>,
}

#[derive(Deserialize)]
struct Detail {
    code: Option<String>,
    message: Option<String>,
    #[serde(alias = "innerError")]
    innererror: Option<Box<Detail>>,
}

impl Answer {
    /// Reads an answer. A body that is none of a vault's has no codes.
    pub(super) fn read(
        status: u16,
        body: &[u8],
        challenge: Option<&str>,
        retry_after: Option<Duration>,
    ) -> Self {
        let mut answer = Self { status, retry_after, ..Self::default() };
        let parsed = serde_json::from_slice::<Body>(body).ok().and_then(|body| body.error);
        let mut message = None;
        if let Some(Detail { code, message: text, innererror }) = parsed {
            (answer.outer, message) = (code, text);
            let mut next = innererror;
            while let Some(detail) = next {
                let Detail { code, innererror, .. } = *detail;
                answer.inner = code.or(answer.inner);
                next = innererror;
            }
        }
        if status == 401 {
            answer.akv =
                message.as_deref().and_then(akv_number).or_else(|| challenge.and_then(akv_number));
        }
        answer
    }

    fn is(&self, code: &str) -> bool {
        [&self.inner, &self.outer]
            .into_iter()
            .flatten()
            .any(|found| found.eq_ignore_ascii_case(code))
    }

    /// For the log.
    fn detail(&self) -> String {
        let plain = |code: &Option<String>| match code {
            Some(code) if code.len() <= 64 && code.bytes().all(|b| b.is_ascii_alphanumeric()) => {
                format!(" {code}")
            }
            Some(_) => " (a code that is no word)".to_owned(),
            None => String::new(),
        };
        let akv = self.akv.map_or_else(String::new, |number| format!(" AKV{number}"));
        format!("HTTP {}{}{}{akv}", self.status, plain(&self.outer), plain(&self.inner))
    }
}

/// The number after the first `AKV`, if it has five digits.
fn akv_number(text: &str) -> Option<u32> {
    let (_, rest) = text.split_once("AKV")?;
    let digits = rest.get(..5)?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

/// How long to wait, by the headers that Azure's services set, in the order in which they
/// count. `None` if none of them says it in a way that is known.
pub(super) fn retry_after<'h>(
    header: impl Fn(&'static str) -> Option<&'h str>,
) -> Option<Duration> {
    let millis = |name| header(name)?.trim().parse().ok().map(Duration::from_millis);
    millis("retry-after-ms")
        .or_else(|| millis("x-ms-retry-after-ms"))
        .or_else(|| header("retry-after")?.trim().parse().ok().map(Duration::from_secs))
        .map(|asked| asked.min(PATIENCE_MAX))
}

/// The table.
pub(super) fn judge(asked: Asked, answer: &Answer) -> Verdict {
    let error = match answer.status {
        400 if asked == Asked::Unwrap && answer.is("BadParameter") => {
            // No detail: every bad ciphertext looks the same, in the log too.
            return Verdict::Settled(Error::ciphertext_invalid());
        }
        400 if asked == Asked::Unwrap => {
            return Verdict::Suspect(refused().with_detail(answer.detail()));
        }
        401 => unauthorized(answer),
        403 => forbidden(answer),
        404 | 410 => not_found(asked, answer),
        409 => conflict(asked, answer),
        429 => overloaded(answer),
        408 | 500..=599 => Error::new(Reason::BackendUnreachable, "the vault fails"),
        300..=399 => Error::new(Reason::BackendMisconfigured, "the vault sends elsewhere")
            .with_fix("see whether `vault` is the address of the vault itself"),
        _ => refused(),
    };
    Verdict::Settled(error.with_detail(answer.detail()))
}

/// What an answer to an unwrap, or to a request of ours with a version, is taken for, and
/// whether the ciphertext is suspected. From its bytes, for the fuzz target, which knows
/// nothing but them.
#[doc(hidden)]
pub fn read_and_judge<'h>(
    unwrap: bool,
    status: u16,
    body: &[u8],
    header: impl Fn(&'static str) -> Option<&'h str>,
) -> (Error, bool) {
    let asked = if unwrap { Asked::Unwrap } else { Asked::Version };
    let patience = retry_after(&header);
    match judge(asked, &Answer::read(status, body, header("www-authenticate"), patience)) {
        Verdict::Settled(error) => (error, false),
        Verdict::Suspect(error) => (error, true),
    }
}

fn refused() -> Error {
    Error::new(Reason::BackendMisconfigured, "the vault does not take what the sidecar asks")
        .with_fix("see whether `type`, `vault` and the KEK's `algorithm` fit the vault and the key")
}

fn unauthorized(answer: &Answer) -> Error {
    let misconfigured = |message| Error::new(Reason::BackendMisconfigured, message);
    match answer.akv {
        // The vault cannot look its own issuer's keys up. The token is good.
        Some(10046) => Error::new(Reason::BackendUnreachable, "the vault cannot check tokens now"),
        Some(10022) => misconfigured("the vault does not take tokens for this audience").with_fix(
            "see whether `type` and `vault` are right: each kind of vault has its own audience",
        ),
        Some(10032) => misconfigured("the vault does not take tokens of this tenant")
            .with_fix("set `identity` and `authority` to an identity of the vault's own tenant"),
        _ => misconfigured("the vault does not take the sidecar's token")
            .with_fix("see whether `identity` is one of the vault's tenant and the clock is right"),
    }
}

fn forbidden(answer: &Answer) -> Error {
    let taken = |message| Error::new(Reason::KekRevoked, message);
    if answer.is("KeyDisabled") {
        Error::new(Reason::KekDisabled, "the key is disabled in the vault")
            .with_fix("enable the version in the vault")
    } else if answer.is("KeyOperationForbidden") {
        Error::new(Reason::KekDisabled, "the key may not be used for this")
            .with_fix("set the operations wrapKey and unwrapKey on the key")
    } else if answer.is("ForbiddenByFirewall") || answer.is("ForbiddenByConnection") {
        taken("the vault's network rules keep the sidecar out")
            .with_fix("allow the sidecar's network, or its private link, in the vault's firewall")
    } else {
        taken("the vault does not let the sidecar's identity use the key").with_fix(
            "give the identity the role Key Vault Crypto Service Encryption User (in a managed HSM, Managed HSM Crypto Service Encryption User) or the permissions get, list, wrapKey and unwrapKey; a grant takes minutes",
        )
    }
}

fn not_found(asked: Asked, answer: &Answer) -> Error {
    let codes = [&answer.inner, &answer.outer];
    if !codes.into_iter().flatten().any(|code| code.ends_with("NotFound")) {
        // A vault says what it did not find. Whoever this is, is no vault.
        return Error::new(Reason::BackendMisconfigured, "what answers is no vault")
            .with_fix("see whether `vault` is the address of a vault or a managed HSM");
    }
    match asked {
        Asked::Key => Error::new(Reason::KekNotFound, "the vault has no such key")
            .with_fix("a key that was deleted can be recovered while the vault retains it"),
        _ => Error::new(Reason::KekVersionNotFound, "the vault no longer has this version")
            .with_fix("a key that was deleted can be recovered while the vault retains it"),
    }
}

fn conflict(asked: Asked, answer: &Answer) -> Error {
    if asked == Asked::Create && answer.is("ObjectIsDeletedButRecoverable") {
        return Error::new(
            Reason::RequestInvalid,
            "a deleted key of this name can be recovered still",
        )
        .with_fix("recover it, or purge it, or choose another name");
    }
    Error::new(Reason::BackendUnreachable, "the vault is busy with the same key")
}

fn overloaded(answer: &Answer) -> Error {
    Error::new(Reason::Overloaded, "the vault has been asked for more than its quota")
        .with_retry(Retry::After(answer.retry_after.unwrap_or(PATIENCE)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(status: u16, outer: &str, inner: &str) -> Answer {
        let body = match inner {
            "" => format!(r#"{{"error":{{"code":"{outer}","message":"x\r\n\"y\""}}}}"#),
            inner => format!(
                r#"{{"error":{{"code":"{outer}","message":"x\r\n","innererror":{{"code":"{inner}"}}}}}}"#
            ),
        };
        Answer::read(status, body.as_bytes(), None, None)
    }

    fn reason(asked: Asked, answer: &Answer) -> Reason {
        match judge(asked, answer) {
            Verdict::Settled(error) => error.reason(),
            Verdict::Suspect(error) => panic!("a suspicion: {error:?}"),
        }
    }

    #[test]
    fn every_row_of_the_table() {
        use Asked::*;
        use Reason::*;
        for (asked, status, outer, inner, expected) in [
            (Unwrap, 403, "Forbidden", "KeyDisabled", KekDisabled),
            (Unwrap, 403, "Forbidden", "KeyOperationForbidden", KekDisabled),
            (Unwrap, 403, "Forbidden", "ForbiddenByRbac", KekRevoked),
            (Key, 403, "Forbidden", "ForbiddenByPolicy", KekRevoked),
            (Key, 403, "Forbidden", "AccessDenied", KekRevoked),
            (Unwrap, 403, "Forbidden", "ForbiddenByFirewall", KekRevoked),
            (Unwrap, 403, "Forbidden", "ForbiddenByConnection", KekRevoked),
            (Unwrap, 403, "Forbidden", "SomethingNew", KekRevoked),
            (Unwrap, 403, "Forbidden", "", KekRevoked),
            (Key, 404, "KeyNotFound", "", KekNotFound),
            (Version, 404, "KeyNotFound", "", KekVersionNotFound),
            (Unwrap, 404, "KeyNotFound", "", KekVersionNotFound),
            (Key, 404, "VaultNotFound", "", KekNotFound),
            (Unwrap, 404, "Whatever", "", BackendMisconfigured),
            (Unwrap, 404, "", "", BackendMisconfigured),
            (Unwrap, 400, "BadParameter", "", CiphertextInvalid),
            (Key, 400, "BadParameter", "", BackendMisconfigured),
            (Version, 400, "BadParameter", "", BackendMisconfigured),
            (Unwrap, 429, "Throttled", "", Overloaded),
            (Unwrap, 408, "", "", BackendUnreachable),
            (Unwrap, 500, "InternalServerError", "", BackendUnreachable),
            (Unwrap, 502, "", "", BackendUnreachable),
            (Unwrap, 503, "", "", BackendUnreachable),
            (Unwrap, 504, "", "", BackendUnreachable),
            (Create, 409, "Conflict", "ObjectIsDeletedButRecoverable", RequestInvalid),
            (Create, 409, "Conflict", "ConflictError", BackendUnreachable),
            (Unwrap, 302, "", "", BackendMisconfigured),
            (Unwrap, 405, "", "", BackendMisconfigured),
        ] {
            let found = reason(asked, &answer(status, outer, inner));
            assert_eq!(found, expected, "{asked:?} {status} {outer} {inner}");
        }
    }

    #[test]
    fn the_number_of_a_401_decides() {
        for (message, expected) in [
            ("AKV10046: Unable to resolve the key", Reason::BackendUnreachable),
            ("AKV10022: Invalid audience", Reason::BackendMisconfigured),
            ("[TokenExpired] AKV10032: Invalid issuer", Reason::BackendMisconfigured),
            ("AKV10000: Request is missing a Bearer", Reason::BackendMisconfigured),
            ("no number", Reason::BackendMisconfigured),
        ] {
            let body = format!(r#"{{"error":{{"code":"Unauthorized","message":"{message}"}}}}"#);
            let found = Answer::read(401, body.as_bytes(), None, None);
            assert_eq!(reason(Asked::Unwrap, &found), expected, "{message}");
        }
        let challenge = r#"Bearer error="invalid_token", error_description="AKV10046: x""#;
        let found = Answer::read(401, b"", Some(challenge), None);
        assert_eq!(reason(Asked::Unwrap, &found), Reason::BackendUnreachable);
        assert_eq!(Answer::read(403, b"", Some(challenge), None).akv, None);
    }

    #[test]
    fn a_bad_ciphertext_is_told_one_way_only() {
        let Verdict::Settled(error) = judge(Asked::Unwrap, &answer(400, "BadParameter", "x"))
        else {
            panic!("a suspicion")
        };
        let plain = Error::ciphertext_invalid();
        assert_eq!((error.message(), error.detail()), (plain.message(), plain.detail()));
        // What is not known to be the ciphertext's fault may be the vault's.
        for (outer, inner) in [("BadRequest", ""), ("", "")] {
            let verdict = judge(Asked::Unwrap, &answer(400, outer, inner));
            assert!(matches!(verdict, Verdict::Suspect(_)), "{verdict:?}");
        }
    }

    #[test]
    fn inner_codes_are_read_in_either_spelling_and_at_any_depth() {
        for body in [
            r#"{"error":{"code":"Forbidden","innererror":{"code":"KeyDisabled"}}}"#,
            r#"{"error":{"code":"Forbidden","innerError":{"code":"KeyDisabled"}}}"#,
            r#"{"error":{"code":"Forbidden","innererror":{"code":"X","innererror":{"code":"KeyDisabled","innererror":null}}}}"#,
        ] {
            let found = Answer::read(403, body.as_bytes(), None, None);
            assert_eq!(reason(Asked::Unwrap, &found), Reason::KekDisabled, "{body}");
        }
    }

    #[test]
    fn patience_is_granted_within_bounds() {
        let asked = |name: &'static str, value: &'static str| {
            retry_after(|header| (header == name).then_some(value))
        };
        assert_eq!(asked("retry-after", "7"), Some(Duration::from_secs(7)));
        assert_eq!(asked("retry-after-ms", "250"), Some(Duration::from_millis(250)));
        assert_eq!(asked("x-ms-retry-after-ms", "250"), Some(Duration::from_millis(250)));
        assert_eq!(asked("retry-after", "86400"), Some(PATIENCE_MAX));
        assert_eq!(asked("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT"), None);
        assert_eq!(asked("retry-after", "-1"), None);
        let mut throttled = answer(429, "Throttled", "");
        throttled.retry_after = Some(Duration::from_secs(7));
        let Verdict::Settled(error) = judge(Asked::Unwrap, &throttled) else { panic!() };
        assert_eq!(error.retry(), Retry::After(Duration::from_secs(7)));
    }

    proptest! {
        /// Whatever is answered, no foreign text gets out, and an answer that is no bad
        /// parameter condemns no ciphertext.
        #[test]
        fn nothing_foreign_is_told(status in 300_u16..600, body in prop::collection::vec(any::<u8>(), 0..200), code in "\\PC{0,80}") {
            let quoted = serde_json::to_string(&code).unwrap();
            let nested = format!(r#"{{"error":{{"code":{quoted},"message":{quoted},"innererror":{{"code":{quoted}}}}}}}"#);
            for body in [&body[..], nested.as_bytes()] {
                let answer = Answer::read(status, body, Some(&code), None);
                for asked in [Asked::Key, Asked::Version, Asked::Unwrap, Asked::Random, Asked::Create] {
                    let (Verdict::Settled(error) | Verdict::Suspect(error)) = judge(asked, &answer);
                    let detail = error.detail().unwrap_or_default();
                    prop_assert!(detail.bytes().all(|b| b.is_ascii_alphanumeric() || b" ().-".contains(&b)), "{detail}");
                    prop_assert!(detail.len() < 256);
                    if error.reason() == Reason::CiphertextInvalid {
                        prop_assert!(answer.is("BadParameter") && status == 400);
                    }
                }
            }
        }
    }
}
