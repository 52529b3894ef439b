//! Versions of a KEK: what a backend reports of each, and their order.

use std::{cmp::Ordering, fmt, sync::Arc, time::SystemTime};

use super::{KeyRef, PublicKey};

/// The name of a version, as its backend gives it: for PKCS#11 the `CKA_ID` in
/// lower-case hex. 1 to 128 of `a-z A-Z 0-9 . _ -`. Safe to log.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VersionId(Arc<str>);

impl VersionId {
    /// Longest name, in bytes.
    pub const MAX: usize = 128;

    /// Parses a name; `None` if it is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let ok = (1..=Self::MAX).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        ok.then(|| Self(text.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Identifies key material: SHA-256 of an RSA key's SubjectPublicKeyInfo, or a
/// check value of an AES key made in its token. Not secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// A fingerprint of these bytes.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Parses 32 bytes; `None` if there are not 32.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// When a key may be used. Both ends are optional, as on every backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Validity {
    /// First instant of validity. PKCS#11 gives a day (`CKA_START_DATE`): its 00:00 UTC.
    pub not_before: Option<SystemTime>,
    /// First instant past validity. PKCS#11 gives a day (`CKA_END_DATE`): the 00:00
    /// UTC that follows it.
    pub not_after: Option<SystemTime>,
}

/// What the backend says of how it keeps a key. `false` also stands for "not
/// reported", so that silence never looks like assurance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assurance {
    /// What the device calls itself; for people.
    pub device: String,
    /// `CKA_SENSITIVE`.
    pub sensitive: bool,
    /// `CKA_EXTRACTABLE`.
    pub extractable: bool,
    /// `CKA_ALWAYS_SENSITIVE`.
    pub always_sensitive: bool,
    /// `CKA_NEVER_EXTRACTABLE`.
    pub never_extractable: bool,
    /// `CKA_LOCAL`.
    pub local: bool,
    /// What becomes of it in a vault when it is deleted; `None` on a token, where it is gone.
    pub recovery: Option<Recovery>,
}

/// What becomes of a deleted key, by its vault's `recoveryLevel` and `recoverableDays`.
/// `false` also stands for "not reported".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// It can be recovered.
    pub soft_delete: bool,
    /// Nobody can purge it before its time.
    pub purge_protection: bool,
    /// For how many days it is kept.
    pub days: Option<u32>,
}

/// What a backend reports of one version of a key. Facts of the moment it was
/// read; nothing here says whether the version may be used (see `Version`).
#[derive(Clone, Debug)]
pub struct VersionInfo {
    /// The key that this is a version of.
    pub key: KeyRef,
    /// Its name.
    pub id: VersionId,
    /// RSA: modulus bits. AES: key bits.
    pub bits: u32,
    /// Identifies the key material.
    pub fingerprint: Fingerprint,
    /// The public half, for RSA.
    pub public_key: Option<PublicKey>,
    /// When it may be used.
    pub validity: Validity,
    /// When it was made, if the backend says: vaults do, PKCS#11 does not.
    pub created: Option<SystemTime>,
    /// Whether the backend lets it unwrap (decrypt).
    pub enabled: bool,
    /// How it is kept.
    pub assurance: Assurance,
}

impl VersionInfo {
    /// The order of versions, oldest first: by when they were made, where the backend says
    /// (whose names for versions may be random), then by start of validity (a key without
    /// one is older than any with), then by name, shorter first (so that names that are
    /// numbers, and hex of equal length, sort by value). Total and stable, so that
    /// every sidecar of a fleet picks the same current version.
    pub fn age_order(&self, other: &Self) -> Ordering {
        self.created
            .cmp(&other.created)
            .then_with(|| self.validity.not_before.cmp(&other.validity.not_before))
            .then_with(|| self.id.as_str().len().cmp(&other.id.as_str().len()))
            .then_with(|| self.id.cmp(&other.id))
    }
}

/// Versions of one KEK, newest first, no two of one name.
#[derive(Clone, Debug)]
pub struct VersionSet<T>(Vec<T>);

impl<T> Default for VersionSet<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: AsRef<VersionInfo>> VersionSet<T> {
    /// Sorts `versions`. `Err` gives a name that occurs twice: versions that cannot
    /// be told apart must not be guessed between.
    pub fn new(mut versions: Vec<T>) -> Result<Self, VersionId> {
        versions.sort_by(|a, b| b.as_ref().age_order(a.as_ref()));
        for (i, version) in versions.iter().enumerate() {
            let id = &version.as_ref().id;
            if versions[..i].iter().any(|earlier| earlier.as_ref().id == *id) {
                return Err(id.clone());
            }
        }
        Ok(Self(versions))
    }

    /// The version of that name.
    pub fn get(&self, id: &VersionId) -> Option<&T> {
        self.0.iter().find(|version| version.as_ref().id == *id)
    }

    /// Newest first.
    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }

    /// Newest first. What a version is called and how old it is must stay as it is.
    pub fn iter_mut(&mut self) -> std::slice::IterMut<'_, T> {
        self.0.iter_mut()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl AsRef<VersionInfo> for VersionInfo {
    fn as_ref(&self) -> &VersionInfo {
        self
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::time::Duration;

    /// A version for tests of decisions; no key stands behind it.
    pub(crate) fn info(id: &str, not_before_day: Option<u64>) -> VersionInfo {
        let day = |n: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(n * 86_400);
        VersionInfo {
            key: KeyRef::parse("test").unwrap(),
            id: VersionId::parse(id).unwrap(),
            bits: 2048,
            fingerprint: Fingerprint::new([1; 32]),
            public_key: None,
            validity: Validity { not_before: not_before_day.map(day), not_after: None },
            created: None,
            enabled: true,
            assurance: Assurance::default(),
        }
    }

    fn order(versions: Vec<VersionInfo>) -> Vec<String> {
        VersionSet::new(versions).unwrap().iter().map(|v| v.id.to_string()).collect()
    }

    #[test]
    fn newest_first_by_start_date_then_by_name() {
        let set = vec![
            info("09", None),
            info("aa", Some(10)),
            info("100", Some(10)),
            info("ff", Some(9)),
            info("0a", None),
        ];
        assert_eq!(order(set), ["100", "aa", "ff", "0a", "09"]);
    }

    #[test]
    fn the_one_made_last_is_the_newest_whatever_its_name_and_dates() {
        let made = |id: &str, not_before_day, secs| VersionInfo {
            created: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(secs)),
            ..info(id, not_before_day)
        };
        let set = vec![
            made("ffff", None, 10),
            made("0000", Some(1), 30),
            made("aaaa", Some(9), 20),
            made("bbbb", None, 20),
        ];
        assert_eq!(order(set), ["0000", "aaaa", "bbbb", "ffff"]);
    }

    #[test]
    fn order_does_not_depend_on_the_order_of_discovery() {
        let one = order(vec![info("1", Some(1)), info("2", Some(1)), info("3", None)]);
        let two = order(vec![info("3", None), info("2", Some(1)), info("1", Some(1))]);
        assert_eq!(one, two);
    }

    #[test]
    fn twins_are_refused() {
        let twins = VersionSet::new(vec![info("1", Some(1)), info("2", None), info("1", None)]);
        assert_eq!(twins.unwrap_err().as_str(), "1");
    }
}
