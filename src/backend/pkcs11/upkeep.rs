//! What becomes of the versions of a key on a token: the next one, disabled ones, and ones
//! that are destroyed.
//!
//! "Disabled" is a convention that any tool can read and undo: neither `CKA_DECRYPT` nor
//! `CKA_UNWRAP` is set on the private or secret key.
//!
//! Invariants: nothing is destroyed that no notice was written for, or before its time; a
//! call that was interrupted is finished by calling again, because the notice goes last.

use std::time::{SystemTime, UNIX_EPOCH};

use cryptoki::object::{Attribute, AttributeType, ObjectClass};
use cryptoki_sys::{
    CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CKR_ACTION_PROHIBITED, CKR_ATTRIBUTE_READ_ONLY,
    CKR_ATTRIBUTE_TYPE_INVALID, CKR_ATTRIBUTE_VALUE_INVALID, CKR_FUNCTION_NOT_SUPPORTED,
    CKR_TEMPLATE_INCONSISTENT,
};

use super::{ckr, fault::Fault, keys, mechanism, notice, raw::Ckr, worker::Seat};
use crate::{
    error::{Error, Reason},
    kek::{Algorithm, Family, KeyRef, VersionId, VersionInfo},
};

/// Longest `CKA_ID` that can name a version, in bytes.
const ID_MAX: usize = VersionId::MAX / 2;

/// Most objects of one version: a pair, and what an earlier call left.
const OBJECTS_MAX: usize = 8;

/// Does something in a session of its own that may write.
pub(super) fn writing<T>(
    seat: &Seat<'_>,
    work: impl FnOnce(CK_SESSION_HANDLE) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let session = seat.library.open_session(seat.live.slot, true)?;
    let done = work(session);
    let _best_effort = seat.library.close_session(session);
    done
}

/// A `CKA_ID` that sorts by time, so that versions of one day have an order: 48 bits of
/// milliseconds and 80 random bits, as in a UUID of version 7.
pub(super) fn new_id(now: SystemTime) -> Result<[u8; 16], Error> {
    let mut id = [0; 16];
    id.copy_from_slice(mechanism::random(16)?.expose());
    let millis = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    id[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
    Ok(id)
}

/// A `CKA_ID` for a version that begins at `start`, if its token keeps dates, and is to be
/// newer than all of `there` whose time has come by `now`. A longer name is a newer one, so
/// `fresh` is lengthened where others' names would sort behind it. `Err` if no name helps.
pub(super) fn id_after(
    there: &[&VersionInfo],
    start: Option<SystemTime>,
    now: SystemTime,
    fresh: &[u8; 16],
) -> Result<Vec<u8>, Error> {
    let begun = |info: &&&VersionInfo| info.validity.not_before.is_none_or(|start| start <= now);
    let mut len = fresh.len();
    for info in there.iter().filter(begun) {
        if info.validity.not_before > start {
            return Err(Error::new(
                Reason::RequestInvalid,
                format!("version {} has a start date, and the token keeps none for us", info.id),
            )
            .with_fix("make the next version with the tool that made this one"));
        }
        let newer =
            info.validity.not_before < start || info.id.as_str() < keys::hex(fresh).as_str();
        let their = info.id.as_str().len();
        if their > len * 2 || (their == len * 2 && !newer) {
            len = their / 2 + 1;
        }
    }
    if len > ID_MAX {
        return Err(Error::new(
            Reason::RequestInvalid,
            "no CKA_ID sorts behind those that there are",
        )
        .with_fix("give the versions shorter CKA_IDs"));
    }
    let mut id = vec![0; len - fresh.len()];
    id.extend(fresh);
    Ok(id)
}

/// Lets a version decrypt, or not.
pub(super) fn set_enabled(
    seat: &Seat<'_>,
    session: CK_SESSION_HANDLE,
    version: &KeyRef,
    enabled: bool,
) -> Result<(), Fault> {
    let (found, family) = locate(seat, version)?.ok_or_else(|| not_there(version))?;
    let keys::Key { handle, decrypt, unwrap, .. } = found.key;
    let change: Vec<_> = match (enabled, family) {
        // The one right that is needed; others are for whoever wants them.
        (true, Family::Rsa(_)) if !decrypt => vec![Attribute::Decrypt(true)],
        (true, Family::Aes) if !unwrap => vec![Attribute::Unwrap(true)],
        (true, _) => Vec::new(),
        (false, _) => {
            let rights = [(decrypt, Attribute::Decrypt(false)), (unwrap, Attribute::Unwrap(false))];
            rights.into_iter().filter(|(has, _)| *has).map(|(_, none)| none).collect()
        }
    };
    if change.is_empty() {
        return Ok(());
    }
    seat.library.set_attributes(session, handle, &change).map_err(unchangeable)?;
    // Not every token says so if it keeps a flag as it was.
    let is_enabled = locate(seat, version)?.is_some_and(|(found, _)| found.info.enabled);
    match is_enabled == enabled {
        true => Ok(()),
        false => Err(Fault::Refused(kept_as_it_was())),
    }
}

/// Calls the destruction of a version off.
pub(super) fn remove_notices(
    seat: &Seat<'_>,
    session: CK_SESSION_HANDLE,
    version: &KeyRef,
) -> Result<(), Fault> {
    for notice in notices(seat, version)? {
        seat.library.destroy(session, notice.object)?;
    }
    Ok(())
}

/// Writes that a version may be destroyed from `after` on, and disables it.
pub(super) fn schedule(
    seat: &Seat<'_>,
    session: CK_SESSION_HANDLE,
    version: &KeyRef,
    after: SystemTime,
) -> Result<(), Fault> {
    set_enabled(seat, session, version, false)?;
    if !notices(seat, version)?.is_empty() {
        return Ok(());
    }
    let id = pinned(version)?;
    notice::write(seat, session, &version.label, id, after).map_err(|error| {
        match ckr::class(error.code) {
            ckr::Class::Template | ckr::Class::Mechanism | ckr::Class::KeyUse => Fault::Refused(
                Error::new(Reason::BackendMisconfigured, "the token keeps no CKO_DATA objects")
                    .with_detail(ckr::name(error.code))
                    .with_fix("it is disabled; destroy it with the token's own tool"),
            ),
            _ => error.into(),
        }
    })
}

/// Destroys a version whose time has come by `now`, and what is left of it.
pub(super) fn destroy(
    seat: &Seat<'_>,
    session: CK_SESSION_HANDLE,
    version: &KeyRef,
    now: SystemTime,
) -> Result<(), Fault> {
    let (notices, found) = (notices(seat, version)?, locate(seat, version)?);
    if notices.is_empty() && found.is_none() {
        return Err(not_there(version));
    }
    let refuse = |what: String, fix: &str| {
        Err(Fault::Refused(Error::new(Reason::RequestInvalid, what).with_fix(fix.to_owned())))
    };
    if notices.is_empty() {
        return refuse(format!("{version} is not to be destroyed"), "schedule it first");
    }
    if notices.iter().any(|notice| now < notice.after) {
        return refuse(format!("the grace of {version} is not over"), "wait until it is");
    }
    // Somebody who enabled it with another tool wants it back.
    if found.as_ref().is_some_and(|(found, _)| found.info.enabled) {
        return refuse(
            format!("{version} was enabled since it was to be destroyed"),
            "`keyward key enable` it, which calls that off, or disable it again",
        );
    }
    // The public half first: as long as the other is there, it is found again.
    for object in public_halves(seat, version, found.as_ref().map(|(found, _)| found.key.handle))? {
        seat.library.destroy(session, object)?;
    }
    if let Some((found, _)) = found {
        seat.library.destroy(session, found.key.handle)?;
    }
    for notice in notices {
        seat.library.destroy(session, notice.object)?;
    }
    Ok(())
}

/// The key of a version, if it is there.
fn locate(seat: &Seat<'_>, version: &KeyRef) -> Result<Option<(keys::Found, Family)>, Fault> {
    let id = pinned(version)?;
    let mut located = Vec::new();
    for algorithm in [Algorithm::RsaOaep256, Algorithm::A256Kwp] {
        let found = match keys::search(seat, Some(&version.label), algorithm) {
            Ok(found) => found,
            // No key of this label can be a KEK; there may be one of the other kind.
            Err(Fault::Refused(_)) => continue,
            Err(fault) => return Err(fault),
        };
        let named = found.into_iter().filter(|found| found.info.id == *id);
        located.extend(named.map(|found| (found, algorithm.family())));
    }
    match located.len() {
        0 | 1 => Ok(located.pop()),
        _ => Err(keys::twins(&version.label, id).into()),
    }
}

fn notices(seat: &Seat<'_>, version: &KeyRef) -> Result<Vec<notice::Notice>, Fault> {
    let id = pinned(version)?;
    let mut notices = notice::find(seat, Some(&version.label))?;
    notices.retain(|notice| notice.label == *version.label && notice.id == *id);
    Ok(notices)
}

/// The public keys of a version: those of its modulus, or, once the private one is gone, of
/// its label and `CKA_ID`.
fn public_halves(
    seat: &Seat<'_>,
    version: &KeyRef,
    private: Option<CK_OBJECT_HANDLE>,
) -> Result<Vec<CK_OBJECT_HANDLE>, Fault> {
    let mut template = vec![
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        Attribute::Token(true),
        Attribute::Label(version.label.as_bytes().to_vec()),
    ];
    match private {
        Some(private) => {
            let wanted = [AttributeType::Modulus];
            let values = seat.library.attributes(seat.session, private, &wanted)?;
            // A secret key has none, and no public half.
            let Some(modulus) = values.into_iter().flatten().next() else { return Ok(Vec::new()) };
            template.push(Attribute::Modulus(modulus));
        }
        None => {
            let Some(id) = bytes_of(pinned(version)?) else { return Ok(Vec::new()) };
            template.push(Attribute::Id(id));
        }
    }
    Ok(seat.library.find(seat.session, &template, OBJECTS_MAX)?)
}

fn pinned(version: &KeyRef) -> Result<&VersionId, Fault> {
    let none = || Error::new(Reason::Internal, "an officer named no version");
    version.pinned.as_ref().ok_or_else(none).map_err(Fault::Refused)
}

/// The `CKA_ID` that a version is named after; `None` if it has none.
fn bytes_of(id: &VersionId) -> Option<Vec<u8>> {
    let text = id.as_str();
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).ok();
    (0..text.len()).step_by(2).map(byte).collect()
}

pub(super) fn not_there(version: &KeyRef) -> Fault {
    let error = Error::new(Reason::KekVersionNotFound, format!("the token has no key {version}"));
    Fault::Refused(error.with_fix("`keyward key list` lists what there is"))
}

fn unchangeable(error: Ckr) -> Fault {
    match error.code {
        CKR_ATTRIBUTE_READ_ONLY
        | CKR_ATTRIBUTE_TYPE_INVALID
        | CKR_ATTRIBUTE_VALUE_INVALID
        | CKR_TEMPLATE_INCONSISTENT
        | CKR_ACTION_PROHIBITED
        | CKR_FUNCTION_NOT_SUPPORTED => {
            Fault::Refused(kept_as_it_was().with_detail(ckr::name(error.code)))
        }
        _ => error.into(),
    }
}

fn kept_as_it_was() -> Error {
    Error::new(
        Reason::BackendMisconfigured,
        "the token does not let CKA_DECRYPT and CKA_UNWRAP of this key be changed",
    )
    .with_fix("it may have been made with CKA_MODIFIABLE = false: `keyward kek revoke` takes it away on a sidecar")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::kek::{Assurance, Fingerprint, Validity};

    const NOW: u64 = 20_000 * 86_400;

    fn at(secs: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(secs)
    }

    fn info(id: &str, start: Option<u64>) -> VersionInfo {
        VersionInfo {
            key: KeyRef::parse("test").unwrap(),
            id: VersionId::parse(id).unwrap(),
            bits: 2048,
            fingerprint: Fingerprint::new([1; 32]),
            public_key: None,
            validity: Validity { not_before: start.map(at), not_after: None },
            created: None,
            enabled: true,
            assurance: Assurance::default(),
        }
    }

    #[test]
    fn ids_sort_by_time() {
        let made = |secs| new_id(at(secs)).unwrap();
        assert!(made(1_000_000) < made(1_000_001));
        assert!(made(1_000_001) < made(4_000_000_000));
        assert_ne!(made(5), made(5));
    }

    #[test]
    fn the_next_version_is_newer_than_those_whose_time_has_come() {
        let fresh = new_id(at(NOW)).unwrap();
        let today = Some(NOW);
        let long = "f".repeat(40);
        for (there, start) in [
            (vec![info("a1", None)], None),
            (vec![info("a1", today)], today),
            // Others' names, of random bytes: as long, and longer.
            (vec![info(&"f".repeat(32), today), info("a1", None)], today),
            (vec![info(&long, today), info(&"f".repeat(32), today)], today),
            (vec![info(&long, Some(NOW - 86_400))], today),
            (vec![info("fp-abababababababab", None)], None),
            // One that has not begun stays ahead.
            (vec![info("ff", Some(NOW + 86_400)), info("a1", None)], today),
        ] {
            let infos: Vec<_> = there.iter().collect();
            let id = id_after(&infos, start.map(at), at(NOW), &fresh).unwrap();
            let next = info(&keys::hex(&id), start);
            for other in &there {
                let begun = other.validity.not_before.is_none_or(|start| start <= at(NOW));
                assert_eq!(other.age_order(&next).is_lt(), begun, "{} {}", other.id, next.id);
            }
        }
        assert!(id_after(&[&info("a1", today)], None, at(NOW), &fresh).is_err());
        assert!(id_after(&[&info(&"f".repeat(128), None)], None, at(NOW), &fresh).is_err());
    }

    #[test]
    fn a_version_that_is_named_after_its_id_has_one() {
        let bytes = |text| bytes_of(&VersionId::parse(text).unwrap());
        assert_eq!(bytes("0aff"), Some(vec![10, 255]));
        assert_eq!(bytes("fp-abababababababab"), None);
        assert_eq!(bytes("0af"), None);
    }
}
