//! The calls that change keys: an officer's, and a caretaker's of a KEK that is the service's.
//!
//! Those that make a version are never tried again by themselves.

use std::time::{Instant, SystemTime};

use azure_security_keyvault_keys::models::{
    CreateKeyParameters, DeletedKey, KeyAttributes, KeyClientUpdateKeyPropertiesOptions,
    KeyOperation, KeyType, UpdateKeyPropertiesParameters,
};

use super::{Client, attributes::is_protected, once_more};
use crate::{
    backend::{Deleted, keyvault::error::Asked},
    error::Error,
    kek::VersionId,
};

impl Client {
    /// Makes a key. Never tried again: it would be another version.
    pub(in crate::backend::keyvault) async fn create(
        &self,
        name: &str,
        kind: KeyType,
        bits: u32,
        deadline: Instant,
    ) -> Result<(), Error> {
        let creating = async {
            let parameters = CreateKeyParameters {
                kty: Some(kind),
                key_size: i32::try_from(bits).ok(),
                key_ops: Some(vec![KeyOperation::WrapKey, KeyOperation::UnwrapKey]),
                ..CreateKeyParameters::default()
            };
            self.sdk.create_key(name, parameters.try_into()?, None).await?.into_model()
        };
        self.call(Asked::Create, deadline, creating).await?;
        Ok(())
    }

    /// Makes another version, as the key's rotation policy says. Never tried again: it would
    /// be one more.
    pub(in crate::backend::keyvault) async fn rotate(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<(), Error> {
        let rotating = async { self.sdk.rotate_key(name, None).await?.into_model() };
        self.call(Asked::Key, deadline, rotating).await?;
        Ok(())
    }

    /// Enables or disables a version.
    pub(in crate::backend::keyvault) async fn set_enabled(
        &self,
        name: &str,
        version: &VersionId,
        enabled: bool,
        deadline: Instant,
    ) -> Result<(), Error> {
        let options = KeyClientUpdateKeyPropertiesOptions {
            key_version: Some(version.as_str().to_owned()),
            method_options: once_more(),
        };
        let attributes = KeyAttributes { enabled: Some(enabled), ..KeyAttributes::default() };
        let changing = async {
            let parameters = UpdateKeyPropertiesParameters {
                key_attributes: Some(attributes),
                ..UpdateKeyPropertiesParameters::default()
            };
            let parameters = parameters.try_into()?;
            self.sdk.update_key_properties(name, parameters, Some(options)).await?.into_model()
        };
        self.call(Asked::Version, deadline, changing).await?;
        Ok(())
    }

    /// Deletes a key, so that it can be recovered.
    pub(in crate::backend::keyvault) async fn delete(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<Deleted, Error> {
        let deleting = async { self.sdk.delete_key(name, None).await?.into_model() };
        let DeletedKey { attributes, scheduled_purge_date, .. } =
            self.call(Asked::Key, deadline, deleting).await?;
        let level = attributes.and_then(|told| told.recovery_level);
        Ok(Deleted {
            purged_at: scheduled_purge_date.map(SystemTime::from),
            protected: level.as_ref().and_then(is_protected),
        })
    }

    /// Brings a deleted key back.
    pub(in crate::backend::keyvault) async fn recover(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<(), Error> {
        let recovering = async { self.sdk.recover_deleted_key(name, None).await?.into_model() };
        self.call(Asked::Key, deadline, recovering).await?;
        Ok(())
    }
}
