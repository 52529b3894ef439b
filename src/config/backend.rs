//! `[backend.NAME]`: where KEKs live.

use super::{
    fields::Fields,
    mistake::{Wrong, did_you_mean, quoted},
    schema,
};
use crate::{
    backend::pkcs11::{PinSource, Settings, TokenSelector},
    kek::KekName,
};

/// A backend, by its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendConfig {
    /// A PKCS#11 token.
    Pkcs11(Settings),
}

impl BackendConfig {
    /// The name that `[[kek]]` entries refer to.
    pub fn name(&self) -> &str {
        match self {
            Self::Pkcs11(settings) => &settings.name,
        }
    }
}

/// Longest label of a token and longest serial number (`CK_TOKEN_INFO`).
const LABEL_MAX: usize = 32;
const SERIAL_MAX: usize = 16;

pub(super) fn read(name: &str, fields: &Fields<'_>) -> Option<BackendConfig> {
    // Backends are named by the rule for KEKs: their names too end up in logs.
    if KekName::parse(name).is_none() {
        fields.refuse_all(Wrong::new(
            "not a name for a backend",
            "choose 1 to 64 of a-z A-Z 0-9 . _ -, starting with a letter or a digit",
        ));
    }
    let kind = fields.parsed(&schema::TYPE, kind);
    let module = fields.path(&schema::MODULE);
    let module_args = fields.text(&schema::MODULE_ARGS);
    let token = token(fields);
    let pin = pin(fields);
    let sessions = fields.number(&schema::SESSIONS);
    let queue = fields.number(&schema::QUEUE);
    let call_timeout = fields.duration(&schema::CALL_TIMEOUT);
    let allow_final_try = fields.flag(&schema::ALLOW_FINAL_TRY);
    kind?;
    Some(BackendConfig::Pkcs11(Settings {
        name: name.to_owned(),
        module: module?,
        module_args: module_args?,
        token: token?,
        pin: pin?,
        sessions: sessions?,
        queue: queue?,
        call_timeout: call_timeout?,
        allow_final_try: allow_final_try?,
    }))
}

fn kind(text: &str) -> Result<(), Wrong> {
    match text {
        "pkcs11" => Ok(()),
        "key-vault" | "managed-hsm" => Err(Wrong::new(
            format!("{} is not in this release", quoted(text)),
            r#"use type = "pkcs11""#,
        )),
        _ => Err(Wrong::new(
            format!("{} is no kind of backend", quoted(text)),
            match did_you_mean(text, ["pkcs11"]) {
                Some(near) => format!("did you mean {near}?"),
                None => r#"use type = "pkcs11""#.to_owned(),
            },
        )),
    }
}

fn token(fields: &Fields<'_>) -> Option<TokenSelector> {
    let bounded = |max: usize| {
        move |text: &str| match text.len() {
            0 => Err(Wrong::new("empty", "write it as the token has it, without the padding")),
            len if len > max => Err(Wrong::new(
                format!("{len} bytes are longer than any token's, which have at most {max}"),
                "write it as the token has it, without the padding",
            )),
            _ => Ok(text.to_owned()),
        }
    };
    let label = fields.parsed(&schema::TOKEN, bounded(LABEL_MAX));
    let serial = fields.parsed(&schema::SERIAL, bounded(SERIAL_MAX));
    let given = fields.given(&schema::TOKEN) || fields.given(&schema::SERIAL);
    if !given {
        fields.refuse_all(Wrong::new(
            "neither token nor serial is set",
            r#"set token (its label) or serial; `pkcs11-tool --module … -L` shows both"#,
        ));
    }
    given.then_some(TokenSelector { label, serial })
}

fn pin(fields: &Fields<'_>) -> Option<PinSource> {
    let file = fields.path(&schema::PIN_FILE).map(PinSource::File);
    let env = fields.parsed(&schema::PIN_ENV, |name| match name {
        "" => Err(Wrong::new("the name is empty", "name an environment variable")),
        _ if name.contains('=') => {
            Err(Wrong::new("not a name of a variable", "give the name only, and not the PIN"))
        }
        _ => Ok(PinSource::Env(name.to_owned())),
    });
    match (fields.given(&schema::PIN_FILE), fields.given(&schema::PIN_ENV)) {
        (true, true) => fields.refuse(
            &schema::PIN_ENV,
            Wrong::new("both pin_file and pin_env are set", "remove one of them"),
        ),
        (false, false) => fields.refuse_all(Wrong::new(
            "neither pin_file nor pin_env is set",
            r#"put the user PIN into a file of mode 0600 and set pin_file = "…""#,
        )),
        _ => {}
    }
    file.or(env)
}
