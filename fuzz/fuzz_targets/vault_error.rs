//! What a vault, or whoever answers in its place, says when it does not do what it was
//! asked. Lines: status, `www-authenticate`, `retry-after`; the rest is the body.
//!
//! Nothing that was sent is told on; only a 403 takes a key away, only a 400 condemns a
//! ciphertext, and trouble of the vault's own is never the key's.

#![no_main]

use std::time::Duration;

use keyward::{
    backend::keyvault::read_and_judge,
    error::{Reason, Retry},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(4, |byte| *byte == b'\n');
    let mut part = || parts.next().unwrap_or_default();
    let [status, challenge, patience] = [(); 3].map(|()| std::str::from_utf8(part()).ok());
    let body = part();
    let Some(status) = status.and_then(|status| status.parse::<u16>().ok()) else { return };
    let header = |name| match name {
        "www-authenticate" => challenge,
        "retry-after" | "retry-after-ms" => patience,
        _ => None,
    };
    for unwrap in [true, false] {
        let (error, suspected) = read_and_judge(unwrap, status, body, header);
        let detail = error.detail().unwrap_or_default();
        assert!(detail.len() < 256, "{detail}");
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b" ().-".contains(&byte);
        assert!(detail.bytes().all(plain), "{detail}");
        assert_eq!(
            suspected,
            unwrap && status == 400 && error.reason() != Reason::CiphertextInvalid
        );
        if let Retry::After(pause) = error.retry() {
            assert!(pause <= Duration::from_secs(30), "{pause:?}");
        }
        let fits = match error.reason() {
            Reason::CiphertextInvalid => unwrap && status == 400,
            Reason::KekRevoked | Reason::KekDisabled => status == 403,
            Reason::KekVersionNotFound => matches!(status, 404 | 410),
            Reason::Overloaded => status == 429,
            Reason::BackendUnreachable => matches!(status, 401 | 408 | 409 | 500..=599),
            Reason::BackendMisconfigured => !matches!(status, 403 | 408 | 409 | 429 | 500..=599),
            _ => false,
        };
        assert!(fits, "{status}: {error:?}");
    }
});
