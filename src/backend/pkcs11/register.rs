//! Who owns a key, beside it on the token: a `CKO_DATA` object, for sidecars with other state
//! directories and for whoever looks at the token with another tool.
//!
//! Its `CKA_LABEL` is the key's, its `CKA_APPLICATION` is `keyward-mode`, and its `CKA_VALUE`
//! is the mode as it is written in a configuration, with the end of a line.
//!
//! Refuses to know what modes there are. Invariant: what stands there is never changed.

use std::time::Instant;

use async_trait::async_trait;
use cryptoki::object::{Attribute, AttributeType, ObjectClass};
use cryptoki_sys::{CKR_SESSION_READ_ONLY, CKR_TOKEN_WRITE_PROTECTED};

use super::{Pkcs11Backend, ckr, fault::Fault, raw::Ckr, worker::Seat};
use crate::{
    backend::Register,
    error::{Error, Reason},
    secret::Secret,
};

const APPLICATION: &[u8] = b"keyward-mode";

/// Most records of one label that are read: two sidecars may have written at once.
const RECORDS_MAX: usize = 16;

#[async_trait]
impl Register for Pkcs11Backend {
    async fn mode_of(&self, label: &str, deadline: Instant) -> Result<Option<String>, Error> {
        let label = label.to_owned();
        let read = move |seat: &mut Seat<'_>| read(seat, &label);
        self.run(deadline, read).await
    }

    async fn record_mode(
        &self,
        label: &str,
        mode: &'static str,
        deadline: Instant,
    ) -> Result<(), Error> {
        let label = label.to_owned();
        let record = move |seat: &mut Seat<'_>| match read(seat, &label)? {
            Some(_) => Ok(()),
            None => write(seat, &label, mode),
        };
        self.run(deadline, record).await
    }
}

fn template(label: &str) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::DATA),
        Attribute::Token(true),
        Attribute::Application(APPLICATION.to_vec()),
        Attribute::Label(label.as_bytes().to_vec()),
    ]
}

fn read(seat: &Seat<'_>, label: &str) -> Result<Option<String>, Fault> {
    let mut recorded: Option<String> = None;
    for object in seat.library.find(seat.session, &template(label), RECORDS_MAX)? {
        let values = seat.library.attributes(seat.session, object, &[AttributeType::Value])?;
        let value = values.into_iter().flatten().next().unwrap_or_default();
        let value = String::from_utf8_lossy(&value).trim_end().to_owned();
        if recorded.as_ref().is_some_and(|other| *other != value) {
            let what = format!("the token says two things of who owns the keys called {label}");
            return Err(Fault::Refused(Error::new(Reason::BackendMisconfigured, what).with_fix(
                "delete the CKO_DATA object of CKA_APPLICATION keyward-mode that is wrong",
            )));
        }
        recorded = Some(value);
    }
    Ok(recorded)
}

fn write(seat: &Seat<'_>, label: &str, mode: &str) -> Result<(), Fault> {
    let template = [template(label), vec![Attribute::Private(true)]].concat();
    let value = Secret::new(format!("{mode}\n").into_bytes());
    let session = seat.library.open_session(seat.live.slot, true).map_err(no_room)?;
    let written = seat.library.create_secret(session, &template, &value).map_err(no_room);
    let _best_effort = seat.library.close_session(session);
    written.map(|_| ())
}

/// A token that keeps no such object is as good as any other.
fn no_room(error: Ckr) -> Fault {
    let class = ckr::class(error.code);
    let refused = matches!(error.code, CKR_TOKEN_WRITE_PROTECTED | CKR_SESSION_READ_ONLY)
        || matches!(class, ckr::Class::Template | ckr::Class::Mechanism | ckr::Class::KeyUse);
    match refused {
        true => Fault::Refused(
            Error::new(Reason::BackendMisconfigured, "the token keeps no CKO_DATA object for us")
                .with_detail(ckr::name(error.code)),
        ),
        false => error.into(),
    }
}
