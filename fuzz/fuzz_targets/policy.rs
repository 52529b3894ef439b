//! The policy: patterns for callers and KEKs. What is parsed prints as it was parsed, and
//! matches as the obvious definition of `*` says.

#![no_main]

use std::sync::Arc;

use keyward::{
    auth::{Grant, Identity, KekPattern, Policy, San, WhoPattern},
    kek::KekName,
    op::Op,
};
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    who: &'a str,
    kek: &'a str,
    caller: Caller<'a>,
    name: &'a str,
}

#[derive(Arbitrary, Debug)]
enum Caller<'a> {
    Unix { uid: u32, gid: u32 },
    Dns(&'a str),
    Uri(&'a str),
}

/// Whether `text` matches `pattern`, whose `*` takes anything but `stop`: the table of
/// all prefixes of the one against all of the other.
fn glob(pattern: &[u8], text: &[u8], stop: Option<u8>) -> bool {
    let mut row = vec![false; text.len() + 1];
    row[0] = true;
    for p in pattern {
        let mut next = vec![false; text.len() + 1];
        next[0] = *p == b'*' && row[0];
        for (i, t) in text.iter().enumerate() {
            next[i + 1] = match p {
                b'*' => row[i + 1] || (next[i] && Some(*t) != stop),
                _ => row[i] && p == t,
            };
        }
        row = next;
    }
    row[text.len()]
}

/// What a pattern means, said in another way than the policy says it.
fn means(who: &WhoPattern, caller: &Caller<'_>) -> bool {
    match (who, caller) {
        (WhoPattern::Uid(id), Caller::Unix { uid, .. }) => id == uid,
        (WhoPattern::Gid(id), Caller::Unix { gid, .. }) => id == gid,
        (WhoPattern::Dns(pattern), Caller::Dns(name)) => {
            let (pattern, name) = (pattern.to_ascii_lowercase(), name.to_ascii_lowercase());
            match pattern.strip_prefix('*') {
                Some(domain) => name
                    .strip_suffix(domain)
                    .is_some_and(|label| !label.is_empty() && !label.contains('.')),
                None => pattern == name,
            }
        }
        (WhoPattern::Uri(pattern), Caller::Uri(uri)) => {
            glob(pattern.as_bytes(), uri.as_bytes(), Some(b'/'))
        }
        _ => false,
    }
}

fuzz_target!(|input: Input<'_>| {
    let who = WhoPattern::parse(input.who);
    let kek = KekPattern::parse(input.kek);
    let name = KekName::parse(input.name);
    if let Ok(who) = &who {
        assert_eq!(WhoPattern::parse(&who.to_string()).as_ref(), Ok(who));
    }
    if let (Ok(kek), Some(name)) = (&kek, &name) {
        let expected = glob(input.kek.as_bytes(), name.as_str().as_bytes(), None);
        assert_eq!(kek.matches(name), expected);
    }
    let (Ok(who), Ok(kek), Some(name)) = (who, kek, name) else { return };
    let expected = means(&who, &input.caller) && kek.matches(&name);
    let caller = Arc::new(match input.caller {
        Caller::Unix { uid, gid } => Identity::Unix { uid, gid },
        Caller::Dns(name) => Identity::Tls { names: vec![San::Dns(name.to_owned())] },
        Caller::Uri(uri) => Identity::Tls { names: vec![San::Uri(uri.to_owned())] },
    });
    let grant =
        Grant { who: vec![who], may: vec![Op::Unwrap], kek: vec![kek], context_required: false };
    let policy = Policy::new(vec![grant]);
    assert_eq!(policy.permit(&caller, Op::Unwrap, &name).is_ok(), expected);
    assert!(policy.permit(&caller, Op::Wrap, &name).is_err(), "it grants what it does not name");
});
