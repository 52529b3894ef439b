//! Every message that a client sends. The first byte chooses one. What decodes can be
//! encoded and decodes to the same; what prints does not print a DEK.

#![no_main]

use std::fmt::Debug;

use keyward::wire;
use libfuzzer_sys::fuzz_target;
use prost::Message;

fn check<M: Message + Default + Debug + PartialEq>(bytes: &[u8]) -> Option<M> {
    let message = M::decode(bytes).ok()?;
    let encoded = message.encode_to_vec();
    assert_eq!(message.encoded_len(), encoded.len());
    let again = M::decode(encoded.as_slice()).expect("what was encoded decodes");
    assert_eq!(message, again);
    let _prints = format!("{message:?}");
    Some(message)
}

/// The only request with a DEK in it: what is printed depends on its length alone.
fn check_wrap(bytes: &[u8]) {
    let Some(mut message) = check::<wire::WrapRequest>(bytes) else { return };
    let printed = format!("{message:?}");
    message.dek.fill(0);
    assert_eq!(format!("{message:?}"), printed);
}

fuzz_target!(|bytes: &[u8]| {
    let Some((which, bytes)) = bytes.split_first() else { return };
    match which % 8 {
        0 => check_wrap(bytes),
        1 => drop(check::<wire::UnwrapRequest>(bytes)),
        2 => drop(check::<wire::UnwrapStreamRequest>(bytes)),
        3 => drop(check::<wire::GenerateDekRequest>(bytes)),
        4 => drop(check::<wire::RewrapRequest>(bytes)),
        5 => drop(check::<wire::RewrapStreamRequest>(bytes)),
        6 => drop(check::<wire::GetKekRequest>(bytes)),
        _ => drop(check::<wire::ListKeksRequest>(bytes)),
    }
});
