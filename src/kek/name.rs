//! What a KEK is called: by callers ([`KekName`]) and in its backend ([`KeyRef`]).

use std::{fmt, sync::Arc};

use super::VersionId;

/// What callers call a KEK: 1 to 64 of `a-z A-Z 0-9 . _ -`, starting with a letter
/// or a digit. Cheap to clone. Safe to log: no other character can be in it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KekName(Arc<str>);

impl KekName {
    /// Longest name, in bytes.
    pub const MAX: usize = 64;

    /// Parses a name; `None` if it is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let ok = text.len() <= Self::MAX
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        ok.then(|| Self(text.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KekName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for KekName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a KEK is in its backend: a key's label (PKCS#11 `CKA_LABEL`, a vault's key
/// name) and, if pinned, one version of it. Written `label` or `label/version`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyRef {
    /// The label. Never empty, at most 128 bytes, no control characters.
    pub label: Arc<str>,
    /// The only version to use, if the configuration names one.
    pub pinned: Option<VersionId>,
}

impl KeyRef {
    /// Longest label, in bytes.
    pub const LABEL_MAX: usize = 128;

    /// Parses `label` or `label/version`; `None` if it is neither.
    pub fn parse(text: &str) -> Option<Self> {
        let (label, pinned) = match text.split_once('/') {
            Some((label, version)) => (label, Some(VersionId::parse(version)?)),
            None => (text, None),
        };
        let ok = !label.is_empty()
            && label.len() <= Self::LABEL_MAX
            && !label.contains(|c: char| c.is_control());
        ok.then(|| Self { label: label.into(), pinned })
    }
}

impl fmt::Display for KeyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)?;
        match &self.pinned {
            Some(version) => write!(f, "/{version}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for good in ["orders-db", "a", "0", "A.b_c-9", &"x".repeat(64)] {
            assert!(KekName::parse(good).is_some(), "{good}");
        }
        for bad in ["", "-a", ".a", "a b", "a/b", "ä", "a\n", "a\0", &"x".repeat(65)] {
            assert!(KekName::parse(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn a_key_reference_may_pin_a_version() {
        let plain = KeyRef::parse("orders db").unwrap();
        assert_eq!((&*plain.label, plain.pinned.is_none()), ("orders db", true));
        let pinned = KeyRef::parse("orders/0a1b").unwrap();
        assert_eq!(pinned.to_string(), "orders/0a1b");
        for bad in ["", "/1", "a/", "a/b/c", "a\u{7}"] {
            assert!(KeyRef::parse(bad).is_none(), "{bad:?}");
        }
    }
}
