//! What a vault says of a version that may change: whether it may be used, and from when to
//! when; and what becomes of a deleted one.
//!
//! What is not said is not assumed.

use std::time::SystemTime;

use azure_security_keyvault_keys::models::{DeletionRecoveryLevel, KeyAttributes};

use crate::kek::Recovery;

/// What may change about a version.
#[derive(Clone, Debug, Default)]
pub(in crate::backend::keyvault) struct Attributes {
    pub(in crate::backend::keyvault) enabled: bool,
    pub(in crate::backend::keyvault) not_before: Option<SystemTime>,
    pub(in crate::backend::keyvault) expires: Option<SystemTime>,
    pub(in crate::backend::keyvault) created: Option<SystemTime>,
    pub(in crate::backend::keyvault) exportable: bool,
    pub(in crate::backend::keyvault) platform: Option<String>,
    pub(in crate::backend::keyvault) recovery: Recovery,
}

impl Attributes {
    pub(super) fn of(attributes: Option<KeyAttributes>) -> Self {
        // What is not told is not assumed: a key of which nobody says that it is enabled
        // is not.
        let Some(told) = attributes else { return Self::default() };
        let level = told.recovery_level;
        let plain =
            |text: &String| text.len() <= 16 && text.bytes().all(|b| b.is_ascii_alphanumeric());
        Self {
            enabled: told.enabled.unwrap_or(false),
            not_before: told.not_before.map(SystemTime::from),
            expires: told.expires.map(SystemTime::from),
            created: told.created.map(SystemTime::from),
            exportable: told.exportable.unwrap_or(false),
            platform: told.hsm_platform.filter(plain),
            recovery: Recovery {
                soft_delete: level.as_ref().is_some_and(is_recoverable),
                purge_protection: level.as_ref().and_then(is_protected).unwrap_or(false),
                days: told.recoverable_days.and_then(|days| u32::try_from(days).ok()),
            },
        }
    }
}

/// Whether a deleted key can be recovered.
fn is_recoverable(level: &DeletionRecoveryLevel) -> bool {
    is_protected(level).is_some() && *level != DeletionRecoveryLevel::Purgeable
}

/// Whether nobody can purge a key before its time, if that is known.
pub(super) fn is_protected(level: &DeletionRecoveryLevel) -> Option<bool> {
    use DeletionRecoveryLevel::{
        CustomizedRecoverable, CustomizedRecoverableProtectedSubscription,
        CustomizedRecoverablePurgeable, Purgeable, Recoverable, RecoverableProtectedSubscription,
        RecoverablePurgeable,
    };
    match level {
        CustomizedRecoverable
        | CustomizedRecoverableProtectedSubscription
        | Recoverable
        | RecoverableProtectedSubscription => Some(true),
        CustomizedRecoverablePurgeable | Purgeable | RecoverablePurgeable => Some(false),
        _ => None,
    }
}
