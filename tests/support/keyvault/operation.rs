//! The table of operations: what each is called in counters, permissions and RBAC, and
//! the paths that mean it.
//!
//! Refuses to know: keys, callers, bodies.

/// What can be asked of the vault and of what stands around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    Create,
    Import,
    Get,
    List,
    ListVersions,
    Update,
    Wrap,
    Unwrap,
    Rotate,
    GetRotationPolicy,
    SetRotationPolicy,
    Backup,
    Restore,
    Delete,
    GetDeleted,
    ListDeleted,
    Recover,
    Purge,
    Random,
    /// A path or method of the vault that means nothing here.
    Unknown,
    /// Entra's OpenID configuration, keys and instance discovery.
    Discovery,
    /// Entra's token endpoint.
    Token,
    /// A token from IMDS or from App Service's endpoint.
    ManagedIdentity,
}

impl Operation {
    /// The word for it in access policies and in messages about them.
    pub fn permission(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Import => "import",
            Self::Get | Self::GetDeleted => "get",
            Self::List | Self::ListVersions | Self::ListDeleted => "list",
            Self::Update => "update",
            Self::Wrap => "wrapKey",
            Self::Unwrap => "unwrapKey",
            Self::Rotate => "rotate",
            Self::GetRotationPolicy => "getrotationpolicy",
            Self::SetRotationPolicy => "setrotationpolicy",
            Self::Backup => "backup",
            Self::Restore => "restore",
            Self::Delete => "delete",
            Self::Recover => "recover",
            Self::Purge => "purge",
            Self::Random => "rng",
            Self::Unknown | Self::Discovery | Self::Token | Self::ManagedIdentity => "",
        }
    }

    /// The data action that a role must hold.
    pub fn data_action(self) -> &'static str {
        match self {
            Self::Create => "Microsoft.KeyVault/vaults/keys/create/action",
            Self::Import => "Microsoft.KeyVault/vaults/keys/import/action",
            Self::Get | Self::List | Self::ListVersions | Self::GetDeleted | Self::ListDeleted => {
                "Microsoft.KeyVault/vaults/keys/read"
            }
            Self::Update => "Microsoft.KeyVault/vaults/keys/update/action",
            Self::Wrap => "Microsoft.KeyVault/vaults/keys/wrap/action",
            Self::Unwrap => "Microsoft.KeyVault/vaults/keys/unwrap/action",
            Self::Rotate => "Microsoft.KeyVault/vaults/keys/rotate/action",
            Self::GetRotationPolicy => "Microsoft.KeyVault/vaults/keyrotationpolicies/read",
            Self::SetRotationPolicy => "Microsoft.KeyVault/vaults/keyrotationpolicies/write",
            Self::Backup => "Microsoft.KeyVault/vaults/keys/backup/action",
            Self::Restore => "Microsoft.KeyVault/vaults/keys/restore/action",
            Self::Delete => "Microsoft.KeyVault/vaults/keys/delete",
            Self::Recover => "Microsoft.KeyVault/vaults/keys/recover/action",
            Self::Purge => "Microsoft.KeyVault/vaults/keys/purge/action",
            Self::Random => "Microsoft.KeyVault/managedHsms/rng/action",
            Self::Unknown | Self::Discovery | Self::Token | Self::ManagedIdentity => "",
        }
    }

    /// Whether it changes the vault; such requests always reach the newest replica.
    pub fn writes(self) -> bool {
        matches!(
            self,
            Self::Create
                | Self::Import
                | Self::Update
                | Self::Rotate
                | Self::SetRotationPolicy
                | Self::Restore
                | Self::Delete
                | Self::Recover
                | Self::Purge
        )
    }

    pub fn in_vault(self) -> bool {
        !matches!(self, Self::Discovery | Self::Token | Self::ManagedIdentity)
    }
}

/// A request to the vault, by its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub operation: Operation,
    /// Empty if the operation has no key.
    pub key: String,
    /// Empty means the latest, where it matters.
    pub version: String,
}

/// What a method and a path mean. Takes what the SDKs send: a trailing slash for the
/// latest version, and an empty segment where the version was left out.
pub fn route(method: &str, path: &str) -> Route {
    use Operation::*;
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let (operation, key, version) = match (method, segments.as_slice()) {
        ("GET", ["keys"] | ["keys", ""]) => (List, "", ""),
        ("POST", ["keys", "restore"]) => (Restore, "", ""),
        ("POST", ["rng"]) => (Random, "", ""),
        ("GET", ["deletedkeys"] | ["deletedkeys", ""]) => (ListDeleted, "", ""),
        ("GET", ["deletedkeys", key]) => (GetDeleted, *key, ""),
        ("DELETE", ["deletedkeys", key]) => (Purge, *key, ""),
        ("POST", ["deletedkeys", key, "recover"]) => (Recover, *key, ""),
        ("GET", ["keys", key, "versions"]) => (ListVersions, *key, ""),
        ("GET", ["keys", key, "rotationpolicy"]) => (GetRotationPolicy, *key, ""),
        ("PUT", ["keys", key, "rotationpolicy"]) => (SetRotationPolicy, *key, ""),
        ("POST", ["keys", key, "create"]) => (Create, *key, ""),
        ("POST", ["keys", key, "rotate"]) => (Rotate, *key, ""),
        ("POST", ["keys", key, "backup"]) => (Backup, *key, ""),
        ("POST", ["keys", key, "wrapkey"]) => (Wrap, *key, ""),
        ("POST", ["keys", key, "unwrapkey"]) => (Unwrap, *key, ""),
        ("POST", ["keys", key, version, "wrapkey"]) => (Wrap, *key, *version),
        ("POST", ["keys", key, version, "unwrapkey"]) => (Unwrap, *key, *version),
        ("PUT", ["keys", key]) => (Import, *key, ""),
        ("DELETE", ["keys", key]) => (Delete, *key, ""),
        ("GET", ["keys", key]) => (Get, *key, ""),
        ("GET", ["keys", key, version]) => (Get, *key, *version),
        ("PATCH", ["keys", key]) => (Update, *key, ""),
        ("PATCH", ["keys", key, version]) => (Update, *key, *version),
        _ => (Unknown, "", ""),
    };
    Route { operation, key: key.into(), version: version.into() }
}
