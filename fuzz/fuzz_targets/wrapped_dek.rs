//! A wrapped DEK as a storage node kept it: the serialized message, and what each of its
//! fields is read as.

#![no_main]

use keyward::{
    envelope::WrappedDek,
    error::Reason,
    kek::{Fingerprint, KekName, KeyRef, VersionId},
    wire,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some(message) = wire::WrappedDek::from_bytes(bytes) else { return };
    // An algorithm may have been written in fewer bytes than it is written in again.
    let again = message.to_bytes();
    assert!(again.len() <= bytes.len() + 5);
    if again.len() <= 4096 {
        assert_eq!(wire::WrappedDek::from_bytes(&again).as_ref(), Some(&message));
    }

    if let Some(kek) = KekName::parse(&message.kek) {
        assert_eq!(kek.as_str(), message.kek);
        assert!(is_safe_to_log(&message.kek) && message.kek.len() <= KekName::MAX);
    }
    if let Some(version) = VersionId::parse(&message.version) {
        assert_eq!(version.as_str(), message.version);
        assert!(is_safe_to_log(&message.version));
        // A version that a message may name is one that a configuration can pin.
        let pinned = KeyRef::parse(&format!("key/{version}")).expect("a reference");
        assert_eq!(pinned.pinned, Some(version));
    }
    if let Ok(algorithm) = wire::Algorithm::try_from(message.algorithm) {
        assert_eq!(wire::Algorithm::from_str_name(algorithm.as_str_name()), Some(algorithm));
    }
    match WrappedDek::check_ciphertext(&message.ciphertext) {
        Ok(()) => assert!((1..=1024).contains(&message.ciphertext.len())),
        Err(error) => assert_eq!(error.reason(), Reason::CiphertextInvalid),
    }
    if let Some(fingerprint) = Fingerprint::parse(&message.kek_fingerprint) {
        assert_eq!(fingerprint.as_bytes()[..], message.kek_fingerprint);
        assert_eq!(fingerprint.to_string().len(), 64);
    }
});

fn is_safe_to_log(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_graphic())
}
