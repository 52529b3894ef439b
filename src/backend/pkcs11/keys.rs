//! Key objects on the token: finding them, reading what they are, and remembering
//! their handles for a while.
//!
//! A key is known by its label, its version (`CKA_ID`) and its fingerprint. The label
//! alone is no identity: anyone may create a second object of the same label. Handles
//! are hints: some tokens give the handle of a deleted key to the next one, so a handle
//! is looked up anew after any fault and every few seconds, and each time the key
//! material is checked.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use aws_lc_rs::digest;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass};
use cryptoki_sys::{CK_OBJECT_HANDLE, CKF_LOGIN_REQUIRED, CKR_USER_NOT_LOGGED_IN};
use time::{Date, Month};
use tracing::warn;

use super::{aes_key, ckr, fault::Fault, raw::Ckr, worker::Seat};
use crate::{
    error::{Error, Reason},
    kek::{
        Algorithm, Assurance, Family, Fingerprint, KeyRef, PublicKey, Validity, VersionId,
        VersionInfo,
    },
};

/// How long a handle is believed.
const HANDLE_BELIEVED: Duration = Duration::from_secs(5);

/// Most versions of one key.
const VERSIONS_MAX: usize = 256;

/// A key object and what may be done with it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub(super) handle: CK_OBJECT_HANDLE,
    pub(super) encrypt: bool,
    pub(super) decrypt: bool,
    pub(super) wrap: bool,
    pub(super) unwrap: bool,
}

/// A key object, and what a sidecar may know of it.
pub(super) struct Found {
    pub(super) key: Key,
    pub(super) info: VersionInfo,
}

/// What a version's key is looked up by.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) label: Arc<str>,
    pub(super) id: VersionId,
    pub(super) fingerprint: Fingerprint,
    pub(super) algorithm: Algorithm,
}

impl Target {
    pub(super) fn new(info: &VersionInfo, algorithm: Algorithm) -> Self {
        Self {
            label: Arc::clone(&info.key.label),
            id: info.id.clone(),
            fingerprint: info.fingerprint,
            algorithm,
        }
    }

    fn what(&self) -> String {
        format!("version {} of key {:?}", self.id, self.label)
    }
}

/// Handles found in one session.
#[derive(Default)]
pub(super) struct KeyCache(Vec<(Fingerprint, VersionId, Key, Instant)>);

impl KeyCache {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// The key of a target: the very one, or a fault.
pub(super) fn find(seat: &mut Seat<'_>, target: &Target) -> Result<Key, Fault> {
    seat.keys.0.retain(|(.., found)| found.elapsed() < HANDLE_BELIEVED);
    let cached = seat
        .keys
        .0
        .iter()
        .find(|(fingerprint, id, ..)| *fingerprint == target.fingerprint && *id == target.id);
    if let Some((_, _, key, _)) = cached {
        return Ok(*key);
    }
    let mut named: Vec<Found> = search(seat, Some(&target.label), target.algorithm)?
        .into_iter()
        .filter(|found| found.info.id == target.id)
        .collect();
    let found = match named.pop() {
        Some(found) => found,
        None => return Err(gone(seat, target.what())),
    };
    if !named.is_empty() {
        return Err(twins(&target.label, &target.id).into());
    }
    if found.info.fingerprint != target.fingerprint {
        return Err(Fault::KeyChanged(target.what()));
    }
    let entry = (target.fingerprint, target.id.clone(), found.key, Instant::now());
    seat.keys.0.push(entry);
    Ok(found.key)
}

/// A key that is not found by one who is logged in, on a token that can still be asked.
/// Nobody else sees private keys; and SoftHSM whose directory is away finds nothing,
/// without an error.
pub(super) fn gone(seat: &Seat<'_>, what: String) -> Fault {
    let Seat { library, session, live, .. } = seat;
    if let Err(error) = library.token_info(live.slot) {
        return Fault::NoToken(format!("C_GetTokenInfo: {}", ckr::name(error.code)));
    }
    let login_required = live.info.flags & CKF_LOGIN_REQUIRED != 0;
    match library.is_logged_in(*session) {
        Ok(false) if login_required => {
            Fault::Ckr(Ckr { function: "C_FindObjects", code: CKR_USER_NOT_LOGGED_IN })
        }
        Ok(_) => Fault::KeyGone(what),
        Err(error) => error.into(),
    }
}

/// Two keys that cannot be told apart.
pub(super) fn twins(label: &str, id: &VersionId) -> Error {
    Error::new(
        Reason::BackendMisconfigured,
        format!("the token has two keys labelled {label:?} with the CKA_ID {id}: they cannot be told apart"),
    )
    .with_fix("delete one of them, or give it a CKA_ID of its own")
}

/// Every key of a label, or of any, that `algorithm` could work with. Keys that cannot
/// be a KEK are passed over with a warning, unless there are no others.
pub(super) fn search(
    seat: &Seat<'_>,
    label: Option<&str>,
    algorithm: Algorithm,
) -> Result<Vec<Found>, Fault> {
    let (class, key_type) = match algorithm.family() {
        Family::Rsa(_) => (ObjectClass::PRIVATE_KEY, KeyType::RSA),
        Family::Aes => (ObjectClass::SECRET_KEY, KeyType::AES),
    };
    let mut template = vec![Attribute::Class(class), Attribute::KeyType(key_type)];
    // Otherwise a throw-away key of another worker's probe could be taken for a KEK.
    template.push(Attribute::Token(true));
    template.extend(label.map(|label| Attribute::Label(label.as_bytes().to_vec())));
    let objects = seat.library.find(seat.session, &template, VERSIONS_MAX + 1)?;
    if objects.len() > VERSIONS_MAX {
        return Err(Fault::Refused(Error::new(
            Reason::BackendMisconfigured,
            format!("the token has more than {VERSIONS_MAX} keys of this label"),
        )));
    }
    let mut found = Vec::new();
    let mut unusable = None;
    for object in objects {
        match read(seat, object, algorithm) {
            Ok(key) => found.push(key),
            Err(Fault::Refused(error)) => {
                warn!(label = label.unwrap_or("-"), "a key is passed over: {error}");
                unusable.get_or_insert(error);
            }
            Err(fault) => return Err(fault),
        }
    }
    match unusable {
        Some(error) if found.is_empty() && label.is_some() => Err(error.into()),
        _ => Ok(found),
    }
}

const WANTED: [AttributeType; 14] = [
    AttributeType::Label,
    AttributeType::Id,
    AttributeType::Modulus,
    AttributeType::PublicExponent,
    AttributeType::ValueLen,
    AttributeType::Encrypt,
    AttributeType::Decrypt,
    AttributeType::Wrap,
    AttributeType::Unwrap,
    AttributeType::Sensitive,
    AttributeType::Extractable,
    AttributeType::AlwaysSensitive,
    AttributeType::NeverExtractable,
    AttributeType::Local,
];

/// Reads a key object. `Refused` if it cannot be a KEK.
fn read(seat: &Seat<'_>, handle: CK_OBJECT_HANDLE, algorithm: Algorithm) -> Result<Found, Fault> {
    let values = seat.library.attributes(seat.session, handle, &WANTED)?;
    let bytes = |kind| {
        let at = WANTED.iter().position(|wanted| *wanted == kind).expect("it is asked for");
        values[at].as_deref().unwrap_or_default()
    };
    let is = |kind| bytes(kind).first().is_some_and(|byte| *byte != 0);
    let key = Key {
        handle,
        encrypt: is(AttributeType::Encrypt),
        decrypt: is(AttributeType::Decrypt),
        wrap: is(AttributeType::Wrap),
        unwrap: is(AttributeType::Unwrap),
    };
    let label = String::from_utf8_lossy(bytes(AttributeType::Label)).into_owned();
    let (bits, public_key, fingerprint) = match algorithm.family() {
        Family::Rsa(_) => {
            let modulus = bytes(AttributeType::Modulus);
            let exponent = match bytes(AttributeType::PublicExponent) {
                [] => public_exponent(seat, modulus)?,
                exponent => exponent.to_vec(),
            };
            let public = PublicKey::from_components(modulus, &exponent)?;
            (public.bits(), Some(public.clone()), public.fingerprint())
        }
        Family::Aes => {
            let len = ulong(bytes(AttributeType::ValueLen));
            if len != Some(32) {
                return Err(Fault::Refused(Error::new(
                    Reason::BackendMisconfigured,
                    format!("the AES key {label:?} does not have 256 bits"),
                )));
            }
            (256, None, aes_key::check_value(seat, key)?)
        }
    };
    let info = VersionInfo {
        key: KeyRef { label: label.into(), pinned: None },
        id: version_id(bytes(AttributeType::Id), &fingerprint)?,
        bits,
        fingerprint,
        public_key,
        validity: validity(seat, handle)?,
        created: None,
        enabled: key.decrypt || key.unwrap,
        assurance: Assurance {
            device: device(seat),
            sensitive: is(AttributeType::Sensitive),
            extractable: is(AttributeType::Extractable),
            always_sensitive: is(AttributeType::AlwaysSensitive),
            never_extractable: is(AttributeType::NeverExtractable),
            local: is(AttributeType::Local),
            recovery: None,
        },
    };
    Ok(Found { key, info })
}

/// The dates of a key. A date that the token has but cannot tell may be in the past: the
/// key is refused. (SoftHSM 2.6.1 stores a date on a private object in the clear and
/// then tries to decrypt it.)
fn validity(seat: &Seat<'_>, handle: CK_OBJECT_HANDLE) -> Result<Validity, Fault> {
    let dates = [AttributeType::StartDate, AttributeType::EndDate];
    let values = match seat.library.attributes(seat.session, handle, &dates) {
        Ok(values) => values,
        Err(error) => {
            // If the token tells nothing else any more, the trouble is another one.
            seat.library.attributes(seat.session, handle, &[AttributeType::Id])?;
            return Err(Fault::Refused(
                Error::new(
                    Reason::BackendMisconfigured,
                    "the token cannot tell the key's CKA_START_DATE and CKA_END_DATE",
                )
                .with_detail(ckr::name(error.code))
                .with_fix(
                    "make the key without dates: SoftHSM 2.6.1 cannot keep them on private keys",
                ),
            ));
        }
    };
    let day = |at: usize| values[at].as_deref().and_then(date);
    Ok(Validity {
        not_before: day(0),
        // The last day of validity is valid to its end.
        not_after: day(1).map(|day| day + Duration::from_secs(86_400)),
    })
}

fn device(seat: &Seat<'_>) -> String {
    let info = &seat.live.info;
    format!("{} {} (token {})", info.manufacturer, info.model, info.label).trim().to_owned()
}

/// The public exponent from the public object of the same modulus, for tokens that do
/// not keep it with the private key. The modulus is the private key's own, so that a
/// swapped public object cannot redirect what is wrapped.
fn public_exponent(seat: &Seat<'_>, modulus: &[u8]) -> Result<Vec<u8>, Fault> {
    let template = [
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        Attribute::KeyType(KeyType::RSA),
        Attribute::Modulus(modulus.to_vec()),
    ];
    let missing = || {
        Error::new(Reason::BackendMisconfigured, "the token tells no public exponent of the key")
            .with_fix("store the public key object beside the private key")
    };
    let found = seat.library.find(seat.session, &template, 1)?;
    let object = *found.first().ok_or_else(missing)?;
    let wanted = [AttributeType::PublicExponent];
    let values = seat.library.attributes(seat.session, object, &wanted)?;
    Ok(values.into_iter().next().flatten().ok_or_else(missing)?)
}

/// The version's name: the `CKA_ID` in lower-case hex. Keys that were made without one
/// go by their fingerprint.
fn version_id(id: &[u8], fingerprint: &Fingerprint) -> Result<VersionId, Error> {
    let name = match id {
        [] => format!("fp-{:.16}", fingerprint.to_string()),
        id => hex(id),
    };
    VersionId::parse(&name).ok_or_else(|| {
        Error::new(Reason::BackendMisconfigured, "a key's CKA_ID is longer than 64 bytes")
    })
}

/// How a `CKA_ID` is written.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A `CK_DATE`: eight digits, or nothing. What is not a date is no limit that anyone
/// set; the token's own rules still hold.
fn date(bytes: &[u8]) -> Option<SystemTime> {
    let text = std::str::from_utf8(bytes).ok()?;
    if text.len() != 8 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let month = Month::try_from(text[4..6].parse::<u8>().ok()?).ok()?;
    let day = Date::from_calendar_date(text[..4].parse().ok()?, month, text[6..].parse().ok()?);
    let midnight = day.ok()?.midnight().assume_utc();
    Some(midnight.into())
}

fn ulong(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.try_into().ok()?))
}

/// SHA-256, for check values.
pub(super) fn sha256(parts: &[&[u8]]) -> Fingerprint {
    let mut context = digest::Context::new(&digest::SHA256);
    parts.iter().for_each(|part| context.update(part));
    Fingerprint::parse(context.finish().as_ref()).expect("SHA-256 gives 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_days_in_utc() {
        let secs = |text: &[u8]| {
            date(text).map(|at| at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs())
        };
        assert_eq!(secs(b"19700102"), Some(86_400));
        assert_eq!(secs(b"20261124"), Some(1_795_478_400));
        for none in [&b""[..], b"2026112", b"20261324", b"20260230", b"        ", b"2026-1-2"] {
            assert_eq!(secs(none), None, "{none:?}");
        }
    }

    #[test]
    fn versions_are_named_by_id_or_by_fingerprint() {
        let fingerprint = Fingerprint::new([0xab; 32]);
        assert_eq!(version_id(&[0x0a, 0xff], &fingerprint).unwrap().as_str(), "0aff");
        assert_eq!(version_id(&[], &fingerprint).unwrap().as_str(), "fp-abababababababab");
        assert!(version_id(&[0; 65], &fingerprint).is_err());
    }
}
