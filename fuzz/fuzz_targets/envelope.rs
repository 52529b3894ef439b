//! The payload of a wrapped DEK, which anyone with the public key can make. What opens
//! is exactly what `seal` would have built, for that context and for no other.

#![no_main]

use keyward::{
    envelope::{self, BOUND_LEN, Context},
    error::Reason,
    secret::Secret,
};
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    context: &'a [u8],
    /// The fuzzer cannot find a hash; it may have the right one put in.
    with_hash: bool,
    payload: &'a [u8],
}

fuzz_target!(|input: Input<'_>| {
    let Ok(context) = Context::parse(input.context) else {
        assert!(input.context.len() > 4096);
        return;
    };
    let mut payload = input.payload.to_vec();
    if let Context::Bound(hash) = context
        && input.with_hash
        && payload.len() == BOUND_LEN
    {
        payload[1..33].copy_from_slice(&hash);
    }
    let other = Context::parse(&[input.context, b"."].concat()).unwrap_or(Context::None);
    for (context, expected) in [(context, true), (other, false)] {
        match envelope::open(Secret::copy_of(&payload), &context) {
            Ok(dek) => {
                assert!(expected || !context.is_bound(), "opened under another context");
                assert!((16..=64).contains(&dek.secret().len()));
                assert_eq!(envelope::seal(&dek, &context).expose(), payload);
            }
            Err(error) => assert_eq!(error.reason(), Reason::CiphertextInvalid),
        }
    }
});
