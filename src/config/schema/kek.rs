//! `[[kek]]`.

use super::{Form, Key, Kind, Section};

pub(in crate::config) static KEK: Section = Section {
    name: "kek",
    form: Form::Repeated,
    shown: true,
    doc: "A key-encryption key. Repeat the section for each.",
    keys: &[
        &NAME,
        &KEK_BACKEND,
        &KEY,
        &ALGORITHM,
        &MODE,
        &NEWEST_DISABLED,
        &RSA_BITS,
        &ROTATE_EVERY,
        &EXPIRE_AFTER,
        &RETIRE_QUIET,
    ],
};

pub(in crate::config) static NAME: Key =
    Key::required("name", Kind::Text, r#""orders-db""#).doc("What callers call it.");

pub(in crate::config) static KEK_BACKEND: Key =
    Key::required("backend", Kind::Text, r#""hsm""#).doc("The backend that keeps it.");

pub(in crate::config) static KEY: Key = Key::optional("key", Kind::Text, r#""orders-db""#).doc(
    "What the backend calls it (CKA_LABEL; in a vault the key's name), if not by its name.\n\
     \"key/version\" pins one version (CKA_ID in hex).",
);

pub(in crate::config) static ALGORITHM: Key = Key::default(
    "algorithm",
    Kind::Text,
    r#""RSA-OAEP-256""#,
)
.doc(
    "How DEKs are wrapped: RSA-OAEP (SHA-1), RSA-OAEP-256, RSA-OAEP-384, RSA-OAEP-512, A256KW,\n\
     A256KWP, A128KW or A192KW. SoftHSM up to 2.6 does RSA-OAEP only; vaults do RSA-OAEP and\n\
     RSA-OAEP-256, managed HSMs also those for AES.",
);

pub(in crate::config) static MODE: Key =
    Key::default("mode", Kind::Text, r#""customer-managed""#).doc(
        "Who owns the key. \"customer-managed\": Keyward never creates, rotates, disables or\n\
         destroys it. \"service-managed\": Keyward creates it, rotates it, and retires old versions\n\
         if retire_quiet is set; it needs [server] state, and rights to create and rotate keys.\n\
         It stays what it is when the KEK is first used.",
    );

pub(in crate::config) static NEWEST_DISABLED: Key =
    Key::default("newest_disabled", Kind::Text, r#""revokes""#).doc(
        "What it means that the newest version is disabled: \"revokes\" takes the whole KEK away,\n\
         \"stops-wraps\" lets older versions unwrap. An older version that is disabled concerns\n\
         itself alone.",
    );

/// Keys that mean something to the service's own KEKs only.
pub(in crate::config) static OF_SERVICE: [&Key; 4] =
    [&RSA_BITS, &ROTATE_EVERY, &EXPIRE_AFTER, &RETIRE_QUIET];

pub(in crate::config) static RSA_BITS: Key =
    Key::default("rsa_bits", Kind::Number { min: 2048, max: 4096 }, "3072")
        .doc("service-managed: the size of an RSA key, 2048, 3072 or 4096. An AES key has 256.");

pub(in crate::config) static ROTATE_EVERY: Key = Key::default(
    "rotate_every",
    Kind::Duration { min: "24h", max: "87600h" },
    r#""2160h""#,
)
.doc(
    "service-managed: how long a version is current. In a vault its rotation policy may be sooner.",
);

pub(in crate::config) static EXPIRE_AFTER: Key = Key::optional(
    "expire_after",
    Kind::Duration { min: "48h", max: "175200h" },
    r#""17520h""#,
)
.doc(
    "service-managed: how long a version does anything at all. What is not rewrapped by then is\n\
     lost until this is raised. EXPIRING is told 30 days before.",
);

pub(in crate::config) static RETIRE_QUIET: Key = Key::optional(
    "retire_quiet",
    Kind::Duration { min: "24h", max: "87600h" },
    r#""2160h""#,
)
.doc(
    "service-managed: disable an older version that has not unwrapped here for so long. Only if\n\
     no other sidecar uses the key: what they unwrap is not known here.",
);
