//! What sealed delivery reads: a public key, by the sidecar; the answer that opens a session, by
//! the client; and a sealed DEK, by both. What nobody sealed opens nowhere.

#![no_main]

use std::cell::LazyCell;

use keyward::{
    sealed::{About, Accepted, Offer, SESSION_KEYS_BYTES, Session, accept},
    secret::Secret,
};
use libfuzzer_sys::{arbitrary, fuzz_target};

#[derive(arbitrary::Arbitrary, Debug)]
enum Input<'a> {
    Accept(&'a [u8]),
    Finish { id: &'a [u8], public_key: &'a [u8], sealed_keys: &'a [u8] },
    Open { number: u64, ciphertext: &'a [u8], subject: &'a [u8], context: &'a [u8] },
}

fn heap(len: usize) -> Option<Secret> {
    Some(Secret::zeroed(len))
}

thread_local! {
    /// Both ends of a session.
    static BOTH: LazyCell<[Session; 2]> = const { LazyCell::new(|| {
        let offer = Offer::new().expect("a key pair");
        let Accepted { session, public_key, sealed_keys } =
            accept(offer.public_key(), Secret::zeroed(SESSION_KEYS_BYTES)).expect("a session");
        let client = offer.finish(session.id(), &public_key, &sealed_keys, heap);
        [client.expect("a session"), session]
    }) };
}

fuzz_target!(|input: Input<'_>| match input {
    Input::Accept(public_key) => {
        if let Ok(accepted) = accept(public_key, Secret::zeroed(SESSION_KEYS_BYTES)) {
            assert_eq!(public_key.len(), 32);
            assert_eq!(accepted.sealed_keys.len(), SESSION_KEYS_BYTES + 16);
        }
    }
    Input::Finish { id, public_key, sealed_keys } => {
        let offer = Offer::new().expect("a key pair");
        assert!(offer.finish(id, public_key, sealed_keys, heap).is_err());
    }
    Input::Open { number, ciphertext, subject, context } => BOTH.with(|both| {
        for session in both.iter() {
            let about = About { subject, context };
            assert!(session.open(number, ciphertext, about, heap).is_err());
        }
    }),
});
