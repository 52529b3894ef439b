//! The policy: which callers may do which operations on which KEKs.
//!
//! A policy is a list of grants. What no grant allows is refused; grants only add.
//! A caller learns nothing of KEKs that it has no grant for: the refusal is the
//! same whether the KEK exists or not.

use std::{fmt, sync::Arc};

use super::{Identity, San};
use crate::{
    error::{Error, Reason},
    kek::KekName,
    op::Op,
};

/// Matches callers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WhoPattern {
    /// `uid:N`
    Uid(u32),
    /// `gid:N`, the primary group.
    Gid(u32),
    /// `dns:NAME`, or `dns:*.DOMAIN` for exactly one label before the domain.
    Dns(String),
    /// A URI with `*` for any characters but `/` (`spiffe://example.org/node/*`).
    Uri(String),
}

impl WhoPattern {
    /// Parses a pattern; `Err` says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if let Some(id) = text.strip_prefix("uid:") {
            return id.parse().map(Self::Uid).map_err(|_| "uid: takes a number");
        }
        if let Some(id) = text.strip_prefix("gid:") {
            return id.parse().map(Self::Gid).map_err(|_| "gid: takes a number");
        }
        if let Some(name) = text.strip_prefix("dns:") {
            let domain = name.strip_prefix("*.").unwrap_or(name);
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            if domain.is_empty() || domain.starts_with('.') || !domain.chars().all(plain) {
                return Err("dns: takes a name, or *.domain");
            }
            return Ok(Self::Dns(name.to_ascii_lowercase()));
        }
        match text.split_once("://") {
            // A wildcard before the path would let anyone's trust domain in.
            Some((scheme, rest)) if !scheme.is_empty() && !rest.is_empty() => {
                let authority = rest.split('/').next().unwrap_or_default();
                if scheme.contains('*') || authority.is_empty() || authority.contains('*') {
                    return Err("a URI's * may stand in its path only");
                }
                Ok(Self::Uri(text.to_owned()))
            }
            _ => Err("a caller is uid:N, gid:N, dns:NAME or a URI such as spiffe://domain/path"),
        }
    }

    fn matches(&self, who: &Identity) -> bool {
        match (self, who) {
            (Self::Uid(id), Identity::Unix { uid, .. }) => id == uid,
            (Self::Gid(id), Identity::Unix { gid, .. }) => id == gid,
            (Self::Dns(pattern), Identity::Tls { names }) => names.iter().any(|name| match name {
                San::Dns(name) => dns_matches(pattern, name),
                San::Uri(_) => false,
            }),
            (Self::Uri(pattern), Identity::Tls { names }) => names.iter().any(|name| match name {
                San::Uri(uri) => glob(pattern, uri, Some('/')),
                San::Dns(_) => false,
            }),
            _ => false,
        }
    }
}

/// Matches KEK names: `*` stands for any characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KekPattern(String);

impl KekPattern {
    /// Parses a pattern; `Err` says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '*');
        if text.is_empty() || text.len() > KekName::MAX || !text.chars().all(plain) {
            return Err("a KEK pattern is 1 to 64 of a-z A-Z 0-9 . _ - and * for any characters");
        }
        Ok(Self(text.to_owned()))
    }

    /// Whether `name` matches.
    pub fn matches(&self, name: &KekName) -> bool {
        glob(&self.0, name.as_str(), None)
    }
}

fn dns_matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(domain) => name
            .split_once('.')
            .is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(domain)),
        None => name.eq_ignore_ascii_case(pattern),
    }
}

/// `*` matches any run of characters, also none, that does not contain `stop`.
/// Linear in `text` for each `*`: it keeps only the last one to come back to.
fn glob(pattern: &str, text: &str, stop: Option<char>) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let stop = stop.map(|c| c as u8);
    let (mut p, mut t) = (0, 0);
    let mut last_star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            last_star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            (p, t) = (p + 1, t + 1);
        } else if let Some((star, matched)) = last_star {
            if Some(text[matched]) == stop {
                return false;
            }
            last_star = Some((star, matched + 1));
            (p, t) = (star + 1, matched + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// One entry of the policy.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Whom it is for: any of these.
    pub who: Vec<WhoPattern>,
    /// What it allows.
    pub may: Vec<Op>,
    /// On which KEKs: any of these.
    pub kek: Vec<KekPattern>,
    /// Whether it allows only DEKs that are bound to a context.
    pub context_required: bool,
}

/// The whole policy. Empty, it refuses everyone.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    grants: Vec<Grant>,
}

/// Leave for one caller to do one operation on one KEK, now. Only
/// [`Policy::permit`] makes one; it cannot be cloned or kept in a message.
#[derive(Debug)]
pub struct Permit {
    op: Op,
    kek: KekName,
    who: Arc<Identity>,
    context_required: bool,
}

impl Policy {
    /// A policy of these grants.
    pub fn new(grants: Vec<Grant>) -> Self {
        Self { grants }
    }

    /// The grants, in order.
    pub fn grants(&self) -> &[Grant] {
        &self.grants
    }

    /// Whether it allows this caller anything at all.
    pub fn knows(&self, who: &Identity) -> bool {
        self.grants.iter().any(|grant| grant.who.iter().any(|pattern| pattern.matches(who)))
    }

    /// Asks whether `who` may do `op` on `kek`.
    pub fn permit(&self, who: &Arc<Identity>, op: Op, kek: &KekName) -> Result<Permit, Error> {
        let mut granted = self.grants.iter().filter(|grant| {
            grant.may.contains(&op)
                && grant.who.iter().any(|pattern| pattern.matches(who))
                && grant.kek.iter().any(|pattern| pattern.matches(kek))
        });
        let Some(first) = granted.next() else {
            return Err(Error::new(
                Reason::PermissionDenied,
                format!("the policy does not allow this caller to {op} with KEK {kek}"),
            )
            .with_fix("ask the operator for a [[policy]] entry that names this caller"));
        };
        // Grants add up: one without the condition lifts it.
        let context_required =
            first.context_required && granted.all(|grant| grant.context_required);
        Ok(Permit { op, kek: kek.clone(), who: Arc::clone(who), context_required })
    }
}

impl Permit {
    /// The operation that is allowed.
    pub fn op(&self) -> Op {
        self.op
    }

    /// The KEK that it is allowed on.
    pub fn kek(&self) -> &KekName {
        &self.kek
    }

    /// Who is allowed.
    pub fn who(&self) -> &Identity {
        &self.who
    }

    /// Refuses an operation without a context if the policy asks for one.
    pub fn check_context(&self, has_context: bool) -> Result<(), Error> {
        if self.context_required && !has_context {
            return Err(Error::new(
                Reason::ContextRequired,
                "the policy allows this caller only DEKs that are bound to a context",
            )
            .with_fix("send the context that the DEK belongs to"));
        }
        Ok(())
    }
}

impl fmt::Display for WhoPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uid(id) => write!(f, "uid:{id}"),
            Self::Gid(id) => write!(f, "gid:{id}"),
            Self::Dns(name) => write!(f, "dns:{name}"),
            Self::Uri(uri) => f.write_str(uri),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn unix(uid: u32) -> Arc<Identity> {
        Arc::new(Identity::Unix { uid, gid: 100 })
    }

    fn tls(names: &[San]) -> Arc<Identity> {
        Arc::new(Identity::Tls { names: names.to_vec() })
    }

    fn grant(who: &[&str], may: &[Op], kek: &[&str]) -> Grant {
        Grant {
            who: who.iter().map(|text| WhoPattern::parse(text).unwrap()).collect(),
            may: may.to_vec(),
            kek: kek.iter().map(|text| KekPattern::parse(text).unwrap()).collect(),
            context_required: false,
        }
    }

    fn kek(name: &str) -> KekName {
        KekName::parse(name).unwrap()
    }

    #[test]
    fn an_empty_policy_refuses_root() {
        let refusal = Policy::default().permit(&unix(0), Op::Unwrap, &kek("a")).unwrap_err();
        assert_eq!(refusal.reason(), Reason::PermissionDenied);
    }

    #[test]
    fn a_grant_allows_what_it_names_and_no_more() {
        let policy = Policy::new(vec![grant(&["uid:7"], &[Op::Unwrap], &["orders-*"])]);
        assert!(policy.permit(&unix(7), Op::Unwrap, &kek("orders-db")).is_ok());
        assert!(policy.permit(&unix(8), Op::Unwrap, &kek("orders-db")).is_err());
        assert!(policy.permit(&unix(7), Op::Wrap, &kek("orders-db")).is_err());
        assert!(policy.permit(&unix(7), Op::Unwrap, &kek("users-db")).is_err());
        assert!(
            policy
                .permit(&tls(&[San::Dns("uid:7".into())]), Op::Unwrap, &kek("orders-db"))
                .is_err()
        );
    }

    #[test]
    fn patterns_match_whole_names() {
        let cases: [(&str, San, bool); 12] = [
            ("dns:node1.example.org", San::Dns("node1.example.org".into()), true),
            ("dns:node1.example.org", San::Dns("NODE1.example.org".into()), true),
            ("dns:node1.example.org", San::Dns("xnode1.example.org".into()), false),
            ("dns:*.example.org", San::Dns("node1.example.org".into()), true),
            ("dns:*.example.org", San::Dns("a.b.example.org".into()), false),
            ("dns:*.example.org", San::Dns("example.org".into()), false),
            ("dns:*.example.org", San::Dns(".example.org".into()), false),
            ("spiffe://example.org/node/*", San::Uri("spiffe://example.org/node/7".into()), true),
            (
                "spiffe://example.org/node/*",
                San::Uri("spiffe://example.org/node/7/x".into()),
                false,
            ),
            ("spiffe://example.org/*/db", San::Uri("spiffe://example.org/a/db".into()), true),
            ("spiffe://example.org/node/*", San::Uri("spiffe://evil.org/node/7".into()), false),
            ("spiffe://example.org/a", San::Dns("spiffe://example.org/a".into()), false),
        ];
        for (pattern, san, expected) in cases {
            let matched =
                WhoPattern::parse(pattern).unwrap().matches(&tls(std::slice::from_ref(&san)));
            assert_eq!(matched, expected, "{pattern} on {san}");
        }
    }

    #[test]
    fn bad_patterns_are_refused() {
        for bad in [
            "",
            "*",
            "root",
            "uid:",
            "uid:-1",
            "uid:*",
            "gid:x",
            "dns:",
            "dns:*",
            "dns:*.",
            "dns:a b",
            "spiffe://*/node",
            "*://a/b",
            "spiffe://",
            "spiffe:///x",
        ] {
            assert!(WhoPattern::parse(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "a b", "a/b", &"x".repeat(65)] {
            assert!(KekPattern::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn one_grant_without_the_condition_lifts_it() {
        let bound = Grant { context_required: true, ..grant(&["uid:7"], &[Op::Unwrap], &["*"]) };
        let free = grant(&["uid:7"], &[Op::Unwrap], &["orders-*"]);
        let policy = Policy::new(vec![bound, free]);
        let users = policy.permit(&unix(7), Op::Unwrap, &kek("users")).unwrap();
        assert_eq!(users.check_context(false).unwrap_err().reason(), Reason::ContextRequired);
        assert!(users.check_context(true).is_ok());
        let orders = policy.permit(&unix(7), Op::Unwrap, &kek("orders-db")).unwrap();
        assert!(orders.check_context(false).is_ok());
    }

    /// The obvious definition, exponential and right.
    fn glob_by_definition(pattern: &[u8], text: &[u8], stop: Option<u8>) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len())
                .take_while(|n| !text[..*n].iter().any(|byte| Some(*byte) == stop))
                .any(|n| glob_by_definition(rest, &text[n..], stop)),
            Some((byte, rest)) => {
                text.first() == Some(byte) && glob_by_definition(rest, &text[1..], stop)
            }
        }
    }

    proptest! {
        #[test]
        fn glob_is_as_defined(pattern in "[ab*/]{0,7}", text in "[ab/]{0,9}", stopped: bool) {
            let stop = stopped.then_some('/');
            let expected =
                glob_by_definition(pattern.as_bytes(), text.as_bytes(), stop.map(|c| c as u8));
            prop_assert_eq!(glob(&pattern, &text, stop), expected);
        }
    }
}
