//! Security officers' work on a token. Creates and lists keys; what becomes of their versions
//! is in `upkeep.rs`.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use async_trait::async_trait;
use cryptoki::{
    object::{Attribute, AttributeType, KeyType, ObjectClass},
    types::Date,
};
use cryptoki_sys::{CK_SESSION_HANDLE, CKM_AES_KEY_GEN, CKM_RSA_PKCS_KEY_PAIR_GEN};
use time::{OffsetDateTime, Time};

use super::{
    Pkcs11Backend,
    fault::Fault,
    keys,
    notice::{self, Notice},
    raw::Mechanism,
    upkeep,
    worker::{Seat, Terms},
};
use crate::{
    backend::{ByVersion, KeyDescription, KeyKind, NewKey, Officer, Remover},
    error::{Error, Reason},
    kek::{Algorithm, KeyRef, VersionId},
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
        let version = KeyRef { label: key.label.as_str().into(), pinned: VersionId::parse(&id) };
        self.described(&version, deadline).await
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

    async fn rotate(&self, label: &str, deadline: Instant) -> Result<KeyDescription, Error> {
        let label: Arc<str> = label.into();
        let rotated = {
            let label = Arc::clone(&label);
            move |seat: &mut Seat<'_>| rotate(seat, &label)
        };
        let id = self.pool().run(terms(deadline), rotated).await.map_err(Fault::into_error)?;
        self.described(&KeyRef { label, pinned: VersionId::parse(&id) }, deadline).await
    }

    async fn set_enabled(
        &self,
        version: &KeyRef,
        enabled: bool,
        deadline: Instant,
    ) -> Result<(), Error> {
        let of = version.clone();
        let changed = move |seat: &mut Seat<'_>| {
            upkeep::writing(seat, |session| {
                upkeep::set_enabled(seat, session, &of, enabled)?;
                match enabled {
                    true => upkeep::remove_notices(seat, session, &of),
                    false => Ok(()),
                }
            })
        };
        self.pool().run(terms(deadline), changed).await.map_err(Fault::into_error)
    }

    fn remover(&self) -> Remover<'_> {
        Remover::ByVersion(self)
    }
}

#[async_trait]
impl ByVersion for Pkcs11Backend {
    async fn schedule(
        &self,
        version: &KeyRef,
        after: SystemTime,
        deadline: Instant,
    ) -> Result<(), Error> {
        let of = version.clone();
        let scheduled = move |seat: &mut Seat<'_>| {
            upkeep::writing(seat, |session| upkeep::schedule(seat, session, &of, after))
        };
        self.pool().run(terms(deadline), scheduled).await.map_err(Fault::into_error)
    }

    async fn destroy(
        &self,
        version: &KeyRef,
        now: SystemTime,
        deadline: Instant,
    ) -> Result<(), Error> {
        let of = version.clone();
        let destroyed = move |seat: &mut Seat<'_>| {
            upkeep::writing(seat, |session| upkeep::destroy(seat, session, &of, now))
        };
        self.pool().run(terms(deadline), destroyed).await.map_err(Fault::into_error)
    }
}

impl Pkcs11Backend {
    /// How a version stands now.
    async fn described(
        &self,
        version: &KeyRef,
        deadline: Instant,
    ) -> Result<KeyDescription, Error> {
        let listed = self.list(Some(&version.label), deadline).await?;
        let is_it = |found: &KeyDescription| Some(&found.info.id) == version.pinned.as_ref();
        listed.into_iter().find(is_it).ok_or_else(|| upkeep::not_there(version).into_error())
    }
}

fn terms(deadline: Instant) -> Terms {
    Terms { of_caller: false, deadline, patience: PATIENCE }
}

fn list(seat: &Seat<'_>, label: Option<&str>) -> Result<Vec<KeyDescription>, Fault> {
    let notices = notice::find(seat, label)?;
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
            let planned =
                |notice: &&Notice| notice.label == *info.key.label && notice.id == info.id;
            let destroy_after = notices.iter().find(planned).map(|notice| notice.after);
            listed.push(KeyDescription { kind, info, usage, destroy_after });
        }
    }
    listed.sort_by(|a, b| {
        a.info.key.label.cmp(&b.info.key.label).then_with(|| b.info.age_order(&a.info))
    });
    Ok(listed)
}

/// Whether there is a key of that label, or half of one. Others' objects may be called alike.
fn is_taken(seat: &Seat<'_>, label: &str) -> Result<bool, Fault> {
    for class in [ObjectClass::PRIVATE_KEY, ObjectClass::PUBLIC_KEY, ObjectClass::SECRET_KEY] {
        let label = Attribute::Label(label.as_bytes().to_vec());
        let taken = [Attribute::Class(class), label, Attribute::Token(true)];
        if !seat.library.find(seat.session, &taken, 1)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Creates the key in a session of its own that may write, and returns its version.
fn create(seat: &Seat<'_>, new: &NewKey) -> Result<String, Fault> {
    if is_taken(seat, &new.label)? {
        return Err(Fault::Refused(
            Error::new(
                Reason::RequestInvalid,
                format!("the token already has a key labelled {:?}", new.label),
            )
            .with_fix("choose another name; `keyward key show` describes what is there"),
        ));
    }
    let id = upkeep::new_id(SystemTime::now())?;
    let dated = keeps_dates(seat)?;
    upkeep::writing(seat, |session| generate(seat, session, new, &id, dated))?;
    Ok(keys::hex(&id))
}

/// Makes another version like the newest, and returns its name.
fn rotate(seat: &Seat<'_>, label: &str) -> Result<String, Fault> {
    let there = list(seat, Some(label))?;
    let newest = there.first().ok_or_else(|| {
        Error::new(Reason::KekNotFound, format!("the token has no key {label:?} that can be a KEK"))
            .with_fix("`keyward key create` makes one")
    })?;
    if there.iter().any(|other| other.kind != newest.kind) {
        return Err(Fault::Refused(
            Error::new(Reason::RequestInvalid, "keys of two kinds have this label")
                .with_fix("give one of them another label"),
        ));
    }
    let kind = KeyKind::parse(newest.kind, newest.info.bits).map_err(|why| {
        let what = format!("a {} key of {} bits is not made anew", newest.kind, newest.info.bits);
        Error::new(Reason::RequestInvalid, what).with_fix(format!("{why}: create another key"))
    })?;
    let (dated, now) = (keeps_dates(seat)?, SystemTime::now());
    let infos: Vec<_> = there.iter().map(|key| &key.info).collect();
    let start = if dated { Some(midnight(now)) } else { None };
    let id = upkeep::id_after(&infos, start, now, &upkeep::new_id(now)?)?;
    let new = NewKey { label: label.to_owned(), kind };
    upkeep::writing(seat, |session| generate(seat, session, &new, &id, dated))?;
    Ok(keys::hex(&id))
}

/// The beginning of the day, as a token's dates count.
fn midnight(now: SystemTime) -> SystemTime {
    OffsetDateTime::from(now).replace_time(Time::MIDNIGHT).into()
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
