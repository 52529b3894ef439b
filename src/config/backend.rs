//! `[backend.NAME]`: where KEKs live.

use super::{
    fields::Fields,
    mistake::{Wrong, did_you_mean, quoted},
    schema::{self, Key},
    vault,
};
use crate::{
    backend::{
        keyvault::{self, Service},
        pkcs11::{PinSource, Settings, TokenSelector},
    },
    kek::KekName,
};

/// A backend, by its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendConfig {
    /// A PKCS#11 token.
    Pkcs11(Settings),
    /// A vault or a managed HSM in Azure.
    KeyVault(keyvault::Settings),
}

impl BackendConfig {
    /// The name that `[[kek]]` entries refer to.
    pub fn name(&self) -> &str {
        match self {
            Self::Pkcs11(settings) => &settings.name,
            Self::KeyVault(settings) => &settings.name,
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Pkcs11,
    Vault(Service),
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
    match kind {
        Some(Kind::Vault(service)) => {
            refuse_others(fields, &schema::OF_PKCS11, "pkcs11");
            return vault::read(name, service, fields).map(BackendConfig::KeyVault);
        }
        Some(Kind::Pkcs11) => {
            refuse_others(fields, &schema::OF_VAULTS, "key-vault and managed-hsm");
        }
        // What is written may be right all the same.
        None => {}
    }
    let module = fields.demand(&schema::MODULE).then(|| fields.path(&schema::MODULE));
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
        module: module??,
        module_args: module_args?,
        token: token?,
        pin: pin?,
        sessions: sessions?,
        queue: queue?,
        call_timeout: call_timeout?,
        allow_final_try: allow_final_try?,
    }))
}

/// Notes keys that mean nothing to this type.
fn refuse_others(fields: &Fields<'_>, others: &[&'static Key], of: &str) {
    for key in others.iter().filter(|key| fields.given(key)) {
        let what = format!("means nothing to a backend of this type, only to {of}");
        fields.refuse(key, Wrong::new(what, "remove it, or change type"));
    }
}

fn kind(text: &str) -> Result<Kind, Wrong> {
    match text {
        "pkcs11" => Ok(Kind::Pkcs11),
        "key-vault" => Ok(Kind::Vault(Service::KeyVault)),
        "managed-hsm" => Ok(Kind::Vault(Service::ManagedHsm)),
        _ => Err(Wrong::new(
            format!("{} is no kind of backend", quoted(text)),
            match did_you_mean(text, ["pkcs11", "key-vault", "managed-hsm"]) {
                Some(near) => format!("did you mean {near}?"),
                None => r#"use type = "pkcs11", "key-vault" or "managed-hsm""#.to_owned(),
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
