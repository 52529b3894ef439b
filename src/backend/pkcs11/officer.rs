//! Security officers' work on a token: create and list keys.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use cryptoki::{
    object::{Attribute, AttributeType, KeyType, ObjectClass},
    types::Date,
};
use cryptoki_sys::{CK_SESSION_HANDLE, CKM_AES_KEY_GEN, CKM_RSA_PKCS_KEY_PAIR_GEN};
use time::OffsetDateTime;

use super::{
    Pkcs11Backend,
    fault::Fault,
    keys, mechanism,
    raw::Mechanism,
    worker::{Seat, Terms},
};
use crate::{
    backend::{KeyDescription, KeyKind, NewKey, Officer},
    error::{Error, Reason},
    kek::{Algorithm, KeyRef},
    secret::Secret,
};

/// How long an officer waits for the device: RSA-4096 takes many seconds on a card.
const PATIENCE: Duration = Duration::from_secs(300);

#[async_trait]
impl Officer for Pkcs11Backend {
    async fn create(&self, key: &NewKey, deadline: Instant) -> Result<KeyDescription, Error> {
        if KeyRef::parse(&key.label).is_none_or(|parsed| parsed.pinned.is_some()) {
            return Err(Error::new(Reason::RequestInvalid, "not a key label")
                .with_fix("use 1 to 128 characters without `/` and control characters"));
        }
        let new = key.clone();
        let created = move |seat: &mut Seat<'_>| create(seat, &new);
        let id = self.pool().run(terms(deadline), created).await.map_err(Fault::into_error)?;
        let listed = self.list(Some(&key.label), deadline).await?;
        listed.into_iter().find(|found| found.info.id.as_str() == id).ok_or_else(|| {
            Error::new(
                Reason::BackendMisconfigured,
                "the token does not show the key that it created",
            )
        })
    }

    async fn list(
        &self,
        label: Option<&str>,
        deadline: Instant,
    ) -> Result<Vec<KeyDescription>, Error> {
        let label = label.map(str::to_owned);
        let listed = move |seat: &mut Seat<'_>| list(seat, label.as_deref());
        self.pool().run(terms(deadline), listed).await.map_err(Fault::into_error)
    }
}

fn terms(deadline: Instant) -> Terms {
    Terms { of_caller: false, deadline, patience: PATIENCE }
}

fn list(seat: &Seat<'_>, label: Option<&str>) -> Result<Vec<KeyDescription>, Fault> {
    let mut listed = Vec::new();
    for (algorithm, kind) in [(Algorithm::RsaOaep256, "rsa"), (Algorithm::A256Kwp, "aes")] {
        let found = match keys::search(seat, label, algorithm) {
            Ok(found) => found,
            // No key of this label can be a KEK; there may be one of the other kind.
            Err(Fault::Refused(_)) => continue,
            Err(fault) => return Err(fault),
        };
        for keys::Found { key, info } in found {
            let usage = [
                (key.encrypt, "ENCRYPT"),
                (key.decrypt, "DECRYPT"),
                (key.wrap, "WRAP"),
                (key.unwrap, "UNWRAP"),
            ];
            let usage = usage.into_iter().filter(|(set, _)| *set).map(|(_, name)| name).collect();
            listed.push(KeyDescription { kind, info, usage });
        }
    }
    listed.sort_by(|a, b| {
        a.info.key.label.cmp(&b.info.key.label).then_with(|| b.info.age_order(&a.info))
    });
    Ok(listed)
}

/// Creates the key in a session of its own that may write, and returns its version.
fn create(seat: &Seat<'_>, new: &NewKey) -> Result<String, Fault> {
    let taken = [Attribute::Label(new.label.as_bytes().to_vec()), Attribute::Token(true)];
    if !seat.library.find(seat.session, &taken, 1)?.is_empty() {
        return Err(Fault::Refused(
            Error::new(
                Reason::RequestInvalid,
                format!("the token already has an object labelled {:?}", new.label),
            )
            .with_fix("choose another name; `keyward key show` describes what is there"),
        ));
    }
    let id = new_id(SystemTime::now())?;
    let session = seat.library.open_session(seat.live.slot, true)?;
    let generated = generate(seat, session, new, &id, keeps_dates(seat)?);
    let _best_effort = seat.library.close_session(session);
    generated?;
    Ok(keys::hex(&id))
}

/// Whether the token keeps a date on a private object, tried on a throw-away one. A key
/// without a date is still a key, only older than any version that has one.
fn keeps_dates(seat: &Seat<'_>) -> Result<bool, Error> {
    let date = Attribute::StartDate(today()?);
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::Token(false),
        Attribute::Private(true),
        date,
    ];
    let Ok(object) = seat.library.create_secret(seat.session, &template, &Secret::zeroed(16))
    else {
        return Ok(false);
    };
    let told = seat.library.attributes(seat.session, object, &[AttributeType::StartDate]);
    let _best_effort = seat.library.destroy(seat.session, object);
    Ok(told.is_ok_and(|values| values[0].as_ref().is_some_and(|date| date.len() == 8)))
}

fn generate(
    seat: &Seat<'_>,
    session: CK_SESSION_HANDLE,
    new: &NewKey,
    id: &[u8],
    dated: bool,
) -> Result<(), Fault> {
    let named = || {
        vec![
            Attribute::Token(true),
            Attribute::Label(new.label.as_bytes().to_vec()),
            Attribute::Id(id.to_vec()),
        ]
    };
    // What makes it a KEK: it is secret, it cannot leave, and it only wraps.
    let mut kept = named();
    kept.extend([
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
    ]);
    if dated {
        kept.push(Attribute::StartDate(today()?));
    }
    match new.kind {
        KeyKind::Rsa(bits) => {
            let mut public = named();
            public.extend([
                Attribute::Class(ObjectClass::PUBLIC_KEY),
                Attribute::KeyType(KeyType::RSA),
                Attribute::ModulusBits(u64::from(bits).into()),
                Attribute::PublicExponent(vec![1, 0, 1]),
                Attribute::Encrypt(true),
                Attribute::Wrap(true),
                Attribute::Verify(false),
            ]);
            kept.extend([
                Attribute::Class(ObjectClass::PRIVATE_KEY),
                Attribute::KeyType(KeyType::RSA),
                Attribute::Decrypt(true),
                Attribute::Unwrap(true),
                Attribute::Sign(false),
            ]);
            let mechanism = Mechanism::Plain(CKM_RSA_PKCS_KEY_PAIR_GEN);
            seat.library.generate_key_pair(session, mechanism, &public, &kept)?;
        }
        KeyKind::Aes256 => {
            kept.extend([
                Attribute::Class(ObjectClass::SECRET_KEY),
                Attribute::KeyType(KeyType::AES),
                Attribute::ValueLen(32.into()),
                Attribute::Wrap(true),
                Attribute::Unwrap(true),
                Attribute::Encrypt(false),
                Attribute::Decrypt(false),
                Attribute::Sign(false),
                Attribute::Verify(false),
            ]);
            seat.library.generate_key(session, Mechanism::Plain(CKM_AES_KEY_GEN), &kept)?;
        }
    }
    Ok(())
}

/// A `CKA_ID` that sorts by time, so that versions of one day have an order: 48 bits of
/// milliseconds and 80 random bits, as in a UUID of version 7.
fn new_id(now: SystemTime) -> Result<[u8; 16], Error> {
    let mut id = [0; 16];
    id.copy_from_slice(mechanism::random(16)?.expose());
    let millis = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    id[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
    Ok(id)
}

fn today() -> Result<Date, Error> {
    let now = OffsetDateTime::now_utc();
    let (year, month, day) = (
        format!("{:04}", now.year()),
        format!("{:02}", u8::from(now.month())),
        format!("{:02}", now.day()),
    );
    Date::new_from_str_slice(&year, &month, &day)
        .map_err(|_| Error::new(Reason::Internal, "the clock is not in the years 0 to 9999"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_time() {
        let at = |secs| new_id(UNIX_EPOCH + Duration::from_secs(secs)).unwrap();
        assert!(at(1_000_000) < at(1_000_001));
        assert!(at(1_000_001) < at(4_000_000_000));
        assert_ne!(at(5), at(5));
    }
}
