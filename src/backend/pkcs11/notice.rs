//! Notices that a key is to be destroyed: a `CKO_DATA` object beside it, for us and for
//! whoever looks at the token with another tool.
//!
//! Its `CKA_LABEL` is the key's, its `CKA_APPLICATION` is `keyward`, and its `CKA_VALUE` is
//! text: what is planned, the version, and when. It takes nothing from anybody: the key is
//! disabled by its own attributes.
//!
//! Invariant: what is no notice of ours is none, and never a reason to destroy anything.

use std::time::SystemTime;

use cryptoki::object::{Attribute, AttributeType, ObjectClass};
use cryptoki_sys::{CK_OBJECT_HANDLE, CK_SESSION_HANDLE};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{fault::Fault, raw::Ckr, worker::Seat};
use crate::{kek::VersionId, secret::Secret};

const APPLICATION: &[u8] = b"keyward";
const HEAD: &str = "to be destroyed after ";

/// Most notices that are read.
const NOTICES_MAX: usize = 256;

/// A notice on the token.
#[derive(Debug)]
pub(super) struct Notice {
    pub(super) object: CK_OBJECT_HANDLE,
    pub(super) label: String,
    pub(super) id: VersionId,
    pub(super) after: SystemTime,
}

/// Every notice about keys of a label, or of any.
pub(super) fn find(seat: &Seat<'_>, label: Option<&str>) -> Result<Vec<Notice>, Fault> {
    let mut template = vec![
        Attribute::Class(ObjectClass::DATA),
        Attribute::Token(true),
        Attribute::Application(APPLICATION.to_vec()),
    ];
    template.extend(label.map(|label| Attribute::Label(label.as_bytes().to_vec())));
    let mut notices = Vec::new();
    for object in seat.library.find(seat.session, &template, NOTICES_MAX)? {
        let wanted = [AttributeType::Label, AttributeType::Value];
        let values = seat.library.attributes(seat.session, object, &wanted)?;
        let text = |at: usize| {
            let bytes = values.get(at).and_then(Option::as_deref).unwrap_or_default();
            String::from_utf8_lossy(bytes).into_owned()
        };
        if let Some((id, after)) = parse(&text(1)) {
            notices.push(Notice { object, label: text(0), id, after });
        }
    }
    Ok(notices)
}

/// Writes a notice, in a session that may write.
pub(super) fn write(
    seat: &Seat<'_>,
    session: CK_SESSION_HANDLE,
    label: &str,
    id: &VersionId,
    after: SystemTime,
) -> Result<(), Ckr> {
    let template = [
        Attribute::Class(ObjectClass::DATA),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Application(APPLICATION.to_vec()),
        Attribute::Label(label.as_bytes().to_vec()),
    ];
    let value = Secret::new(text(id, after).into_bytes());
    seat.library.create_secret(session, &template, &value).map(|_| ())
}

fn text(id: &VersionId, after: SystemTime) -> String {
    let after = OffsetDateTime::from(after).replace_nanosecond(0).ok();
    let after = after.and_then(|after| after.format(&Rfc3339).ok()).unwrap_or_default();
    format!("{HEAD}{after}\nversion {id}\n")
}

fn parse(text: &str) -> Option<(VersionId, SystemTime)> {
    let (after, version) = text.strip_prefix(HEAD)?.strip_suffix('\n')?.split_once('\n')?;
    let after = OffsetDateTime::parse(after, &Rfc3339).ok()?;
    Some((VersionId::parse(version.strip_prefix("version ")?)?, after.into()))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_notice_is_for_people_too() {
        let id = VersionId::parse("0aff").unwrap();
        let after = UNIX_EPOCH + Duration::from_secs(1_795_478_400);
        let written = text(&id, after);
        assert_eq!(written, "to be destroyed after 2026-11-24T00:00:00Z\nversion 0aff\n");
        assert_eq!(parse(&written), Some((id, after)));
    }

    proptest! {
        #[test]
        fn what_is_no_notice_is_none(other in ".{0,80}") {
            prop_assert_eq!(parse(&other), None);
        }

        #[test]
        fn what_is_cut_off_is_none(secs in 0..4_000_000_000_u64, cut in 0..10_usize) {
            let id = VersionId::parse("0aff").unwrap();
            let after = UNIX_EPOCH + Duration::from_secs(secs);
            let written = text(&id, after);
            prop_assert_eq!(parse(&written), Some((id, after)));
            // The last octets are the version, which is then another one, or nothing.
            prop_assert_eq!(parse(&written[..written.len() - 1 - cut]), None);
        }
    }
}
