//! The one table of the configuration: every section and key, its type, default and
//! manual.
//!
//! The reader takes types, defaults and known names from it, the generated example
//! its text. So a key that is read is documented, and one that is documented is read
//! (a test sees to the latter). It knows nothing of TOML's syntax tree.

mod kek;
mod server;

pub(super) use kek::*;
pub(super) use server::*;

/// A table of the file.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) name: &'static str,
    pub(super) form: Form,
    /// Whether the example shows it; a section of defaults only is commented out.
    pub(super) shown: bool,
    pub(super) doc: &'static str,
    pub(super) keys: &'static [&'static Key],
}

/// How a section is written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    /// `[name]`, at most once.
    Single,
    /// `[name.NAME]`, one for each; this is the name in the example.
    Named(&'static str),
    /// `[[name]]`, any number.
    Repeated,
}

/// A key of a section.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) need: Need,
    /// Whether the example sets it rather than showing it commented out.
    pub(super) shown: bool,
    /// A TOML literal; for a key with a default, the default.
    pub(super) example: &'static str,
    pub(super) doc: &'static str,
}

/// The type of a key.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Text,
    Path,
    Texts,
    Flag,
    Number {
        min: u64,
        max: u64,
    },
    /// A string such as `"30s"`.
    Duration {
        min: &'static str,
        max: &'static str,
    },
    Table(&'static [&'static Key]),
}

/// What happens if a key is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    Required,
    Optional,
    Default,
}

impl Section {
    /// As it is written: `[server]`, `[backend.NAME]`, `[[kek]]`.
    pub(super) fn header(&self) -> String {
        match self.form {
            Form::Single => format!("[{}]", self.name),
            Form::Named(_) => format!("[{}.NAME]", self.name),
            Form::Repeated => format!("[[{}]]", self.name),
        }
    }
}

impl Key {
    const fn required(name: &'static str, kind: Kind, example: &'static str) -> Self {
        Self { name, kind, need: Need::Required, shown: true, example, doc: "" }
    }

    const fn optional(name: &'static str, kind: Kind, example: &'static str) -> Self {
        Self { name, kind, need: Need::Optional, shown: false, example, doc: "" }
    }

    const fn default(name: &'static str, kind: Kind, default: &'static str) -> Self {
        Self { name, kind, need: Need::Default, shown: false, example: default, doc: "" }
    }

    const fn shown(self) -> Self {
        Self { shown: true, ..self }
    }

    const fn doc(self, doc: &'static str) -> Self {
        Self { doc, ..self }
    }
}

/// The whole file, in the order of the example.
pub(super) static SECTIONS: [&Section; 8] =
    [&SERVER, &LOG, &BACKEND, &KEK, &CACHE, &LEASE, &LIMITS, &POLICY];

pub(super) static LOG: Section = Section {
    name: "log",
    form: Form::Single,
    shown: false,
    doc: "What the sidecar writes to standard error. Never a DEK, a context or a PIN.",
    keys: &[&FORMAT, &FILTER],
};

pub(super) static FORMAT: Key = Key::default("format", Kind::Text, r#""text""#)
    .doc(r#""text" for people, "json" for machines."#);

pub(super) static FILTER: Key = Key::default("filter", Kind::Text, r#""info""#)
    .doc(r#"How much: a tracing filter, such as "info" or "info,keyward::backend=debug"."#);

pub(super) static BACKEND: Section = Section {
    name: "backend",
    form: Form::Named("hsm"),
    shown: true,
    doc: "An HSM or a vault that keeps KEKs. The name is yours; [[kek]] entries refer to it.",
    keys: &[
        &TYPE,
        &QUEUE,
        &MODULE,
        &MODULE_ARGS,
        &TOKEN,
        &SERIAL,
        &PIN_FILE,
        &PIN_ENV,
        &SESSIONS,
        &CALL_TIMEOUT,
        &ALLOW_FINAL_TRY,
        &VAULT,
        &IDENTITY,
        &AUTHORITY,
        &CA,
        &WRAP,
        &VAULT_CONNECTIONS,
        &CEILING,
        &FLEET,
    ],
};

/// Keys of a backend that mean something to PKCS#11 only.
pub(super) static OF_PKCS11: [&Key; 9] = [
    &MODULE,
    &MODULE_ARGS,
    &TOKEN,
    &SERIAL,
    &PIN_FILE,
    &PIN_ENV,
    &SESSIONS,
    &CALL_TIMEOUT,
    &ALLOW_FINAL_TRY,
];

/// Keys of a backend that mean something to vaults and managed HSMs only.
pub(super) static OF_VAULTS: [&Key; 8] =
    [&VAULT, &IDENTITY, &AUTHORITY, &CA, &WRAP, &VAULT_CONNECTIONS, &CEILING, &FLEET];

pub(super) static TYPE: Key = Key::required("type", Kind::Text, r#""pkcs11""#)
    .doc(r#"Kind of backend: "pkcs11", or in Azure "key-vault" or "managed-hsm"."#);

pub(super) static MODULE: Key =
    Key::optional("module", Kind::Path, r#""/usr/lib/softhsm/libsofthsm2.so""#)
        .shown()
        .doc("pkcs11: the vendor's PKCS#11 module, a shared library. It must be set.");

pub(super) static MODULE_ARGS: Key = Key::default("module_args", Kind::Text, r#""""#)
    .doc("pkcs11: handed to C_Initialize as pReserved. NSS wants this; most modules want nothing.");

pub(super) static TOKEN: Key = Key::optional("token", Kind::Text, r#""keyward""#)
    .shown()
    .doc("pkcs11: label of the token. Slot numbers change; labels and serial numbers do not.");

pub(super) static SERIAL: Key = Key::optional("serial", Kind::Text, r#""0123456789abcdef""#).doc(
    "pkcs11: serial number of the token: instead of its label, or beside it if labels are not unique.",
);

pub(super) static PIN_FILE: Key = Key::optional("pin_file", Kind::Path, r#""/etc/keyward/pin""#)
    .shown()
    .doc("pkcs11: file whose first line is the user PIN. Only its owner may be able to read it.");

pub(super) static PIN_ENV: Key = Key::optional("pin_env", Kind::Text, r#""KEYWARD_PIN""#)
    .doc("pkcs11: environment variable that holds the user PIN, instead of pin_file.");

pub(super) static SESSIONS: Key = Key::default("sessions", Kind::Number { min: 1, max: 64 }, "4")
    .doc("pkcs11: sessions with the token, each with a thread. More than it does in parallel only queue.");

pub(super) static QUEUE: Key = Key::default("queue", Kind::Number { min: 1, max: 65_536 }, "1024")
    .doc("Operations that may wait for a session or a connection. Beyond it callers are refused at once.");

pub(super) static CALL_TIMEOUT: Key =
    Key::default("call_timeout", Kind::Duration { min: "100ms", max: "5m" }, r#""10s""#)
        .doc("pkcs11: how long one call into the module may take before it counts as hung.");

pub(super) static ALLOW_FINAL_TRY: Key = Key::default("allow_final_try", Kind::Flag, "false").doc(
    "pkcs11: log in although the token says that one more wrong PIN locks it. Set this only for as long\n\
     as it takes to log in once with the right PIN.",
);

pub(super) static VAULT: Key =
    Key::optional("vault", Kind::Text, r#""https://NAME.vault.azure.net""#).doc(
        "key-vault, managed-hsm: where it is. It must be set. Tokens are for its domain, here\n\
         https://vault.azure.net, and nobody else is asked.",
    );

pub(super) static IDENTITY: Key = Key::optional(
    "identity",
    Kind::Table(&[
        &ID_KIND,
        &TENANT_ID,
        &CLIENT_ID,
        &OBJECT_ID,
        &RESOURCE_ID,
        &SECRET_FILE,
        &ID_CERTIFICATE,
        &ID_KEY,
        &TOKEN_FILE,
    ]),
    r#"{ kind = "managed" }"#,
)
.doc(
    "key-vault, managed-hsm: as whom the sidecar asks.\n\
     kind = \"managed\": the machine's or app's own; client_id, object_id or resource_id names\n\
     \x20 one that was assigned to it.\n\
     kind = \"workload\": federation, as on Kubernetes; tenant_id, client_id and token_file, if\n\
     \x20 they are not in the environment.\n\
     kind = \"secret\": tenant_id, client_id and secret_file (mode 0600, first line).\n\
     kind = \"certificate\": tenant_id, client_id, certificate and key (PEM; key: mode 0600).\n\
     kind = \"cli\": whoever is logged in with `az login`; for development.",
);

pub(super) static ID_KIND: Key = Key::required("kind", Kind::Text, r#""managed""#);
pub(super) static TENANT_ID: Key =
    Key::optional("tenant_id", Kind::Text, r#""00000000-0000-0000-0000-000000000000""#);
pub(super) static CLIENT_ID: Key =
    Key::optional("client_id", Kind::Text, r#""00000000-0000-0000-0000-000000000000""#);
pub(super) static OBJECT_ID: Key =
    Key::optional("object_id", Kind::Text, r#""00000000-0000-0000-0000-000000000000""#);
pub(super) static RESOURCE_ID: Key = Key::optional(
    "resource_id",
    Kind::Text,
    r#""/subscriptions/ID/resourceGroups/NAME/providers/Microsoft.ManagedIdentity/userAssignedIdentities/NAME""#,
);
pub(super) static SECRET_FILE: Key =
    Key::optional("secret_file", Kind::Path, r#""/etc/keyward/client-secret""#);
pub(super) static ID_CERTIFICATE: Key =
    Key::optional("certificate", Kind::Path, r#""/etc/keyward/client.pem""#);
pub(super) static ID_KEY: Key = Key::optional("key", Kind::Path, r#""/etc/keyward/client.key""#);
pub(super) static TOKEN_FILE: Key = Key::optional(
    "token_file",
    Kind::Path,
    r#""/var/run/secrets/azure/tokens/azure-identity-token""#,
);

pub(super) static AUTHORITY: Key =
    Key::default("authority", Kind::Text, r#""https://login.microsoftonline.com""#).doc(
        "key-vault, managed-hsm: where tokens come from; another cloud than the public one has\n\
         another. AZURE_AUTHORITY_HOST is not heeded.",
    );

pub(super) static CA: Key = Key::optional("ca", Kind::Path, r#""/etc/keyward/azure-ca.pem""#)
    .doc("key-vault, managed-hsm: PEM file of the authorities to trust instead of the system's.");

pub(super) static WRAP: Key = Key::default("wrap", Kind::Text, r#""local""#).doc(
    "key-vault, managed-hsm: where RSA keys wrap: \"local\", with the public key that is pinned\n\
     with the version, or \"service\".",
);

pub(super) static VAULT_CONNECTIONS: Key =
    Key::default("connections", Kind::Number { min: 1, max: 64 }, "16")
        .doc("key-vault, managed-hsm: connections at once, each with one operation at a time.");

pub(super) static CEILING: Key = Key::default("ceiling", Kind::Number { min: 1, max: 100 }, "100")
    .doc(
        "key-vault, managed-hsm: how much of the service's documented quota this sidecar may use,\n\
         in percent. Everybody who uses a vault shares one quota.",
    );

pub(super) static FLEET: Key = Key::default("fleet", Kind::Number { min: 1, max: 100_000 }, "50")
    .doc(
        "key-vault, managed-hsm: how many sidecars share the vault, this one among them. Their\n\
         leases together leave more than half of its quota: in a large fleet a key proves itself\n\
         by an operation less often, and `interval` of [lease] grows (docs/fleets.md).",
    );

pub(super) static CACHE: Section = Section {
    name: "cache",
    form: Form::Single,
    shown: false,
    doc: "Unwrapped DEKs, kept in memory that is locked and wiped.",
    keys: &[&CAPACITY, &TTL, &IDLE, &OUTAGE_GRACE, &ALLOW_UNLOCKED],
};

pub(super) static CAPACITY: Key =
    Key::default("capacity", Kind::Number { min: 1, max: 16_777_216 }, "100000").doc(
        "DEKs that are kept at most. Each takes 64 bytes of locked memory: for more than about\n\
         130000 raise the limit (LimitMEMLOCK in a systemd unit, ulimit -l).",
    );

pub(super) static TTL: Key =
    Key::default("ttl", Kind::Duration { min: "1s", max: "24h" }, r#""60m""#)
        .doc("How long a DEK is kept at most, after which the HSM is asked again.");

pub(super) static IDLE: Key =
    Key::default("idle", Kind::Duration { min: "1s", max: "24h" }, r#""30m""#)
        .doc("How long a DEK is kept that nobody asks for.");

pub(super) static OUTAGE_GRACE: Key =
    Key::default("outage_grace", Kind::Duration { min: "0s", max: "60m" }, r#""10m""#)
        .doc("How long DEKs are served from memory while their backend cannot be reached.");

pub(super) static ALLOW_UNLOCKED: Key = Key::default("allow_unlocked", Kind::Flag, "false")
    .doc("Start even if the memory cannot be locked, so that DEKs may be written to swap.");

pub(super) static LEASE: Section = Section {
    name: "lease",
    form: Form::Single,
    shown: false,
    doc: "How the sidecar makes sure that its KEKs are still allowed.",
    keys: &[&INTERVAL],
};

pub(super) static INTERVAL: Key =
    Key::default("interval", Kind::Duration { min: "1s", max: "10m" }, r#""30s""#).doc(
        "How long the proof is good that a KEK is allowed. It proves itself again before that,\n\
by a private-key operation on its backend: within this time a revoked KEK is dark.",
    );

pub(super) static POLICY: Section = Section {
    name: "policy",
    form: Form::Repeated,
    shown: true,
    doc: "Who may do what. What no entry allows is refused; entries only add.",
    keys: &[&WHO, &MAY, &POLICY_KEK, &CONTEXT],
};

pub(super) static WHO: Key = Key::required(
    "who",
    Kind::Texts,
    r#"["uid:0", "spiffe://example.org/node/*", "dns:node1.example.org"]"#,
)
.doc(
    "Callers, any of these: uid:N and gid:N (primary group) on the socket; on TCP the names in\n\
     the client's certificate, dns:NAME, dns:*.DOMAIN, or a URI with * in its path.",
);

pub(super) static MAY: Key = Key::required(
    "may",
    Kind::Texts,
    r#"["wrap", "unwrap", "generate", "rewrap", "describe"]"#,
)
.doc(
    "Operations: wrap, unwrap, generate, rewrap, describe; for operators also purge, revoke,\n\
     restore, reload.",
);

pub(super) static POLICY_KEK: Key =
    Key::required("kek", Kind::Texts, r#"["orders-*"]"#).doc("KEKs; * stands for any characters.");

pub(super) static CONTEXT: Key = Key::default("context", Kind::Text, r#""optional""#)
    .doc("\"required\" allows only DEKs that are bound to a context.");

/// What a reader of the manuals may try although this release does not have it, or
/// must not try at all.
#[derive(Debug)]
pub(super) struct Refused {
    /// The section that it stands in; empty for a section of its own.
    pub(super) section: &'static str,
    pub(super) name: &'static str,
    pub(super) what: &'static str,
    pub(super) fix: &'static str,
}

/// Names that get an answer of their own instead of "unknown".
pub(super) static REFUSED: [Refused; 2] = [
    Refused {
        section: "backend",
        name: "pin",
        what: "a PIN does not belong in a configuration file",
        fix: "put it into a file of mode 0600 and set pin_file, or set pin_env; then change the PIN",
    },
    Refused {
        section: "backend",
        name: "slot",
        what: "a slot number is not a token's name: it changes",
        fix: "set token (its label) or serial",
    },
];
