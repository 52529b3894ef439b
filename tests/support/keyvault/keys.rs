//! What each operation on keys does, once it is known that the caller may.
//!
//! Refuses to know: tokens, quotas, sockets.

use serde_json::{Value, json};

use super::{
    byok,
    errors::{self, Refusal},
    jwk,
    material::{Failure, Material, Wrapping},
    message::{Answer, Asked, decode, encode},
    operation::{Operation, Route},
    rotation,
    state::{Deleted, Key, Kind, State, Version},
    world::World,
};

/// Versions of one key in a Managed HSM.
const HSM_VERSIONS_MAX: usize = 100;

/// Entries on a page of a list.
const PAGE_MAX: usize = 25;

/// A request that has been let in.
pub struct Request<'a> {
    pub world: &'a World,
    pub route: &'a Route,
    pub asked: &'a Asked,
    /// The body, or null if there was none.
    pub body: &'a Value,
    /// The state of the replica that answers.
    pub view: &'a State,
    /// Unix seconds.
    pub now: i64,
}

type Answered = Result<Answer, Refusal>;

impl Request<'_> {
    pub fn perform(&self) -> Answered {
        match self.route.operation {
            Operation::Create => self.create(),
            Operation::Import => self.import(),
            Operation::Get => self.get(),
            Operation::List => self.list(),
            Operation::ListVersions => self.list_versions(),
            Operation::Update => self.update(),
            Operation::Wrap | Operation::Unwrap => self.crypt(),
            Operation::Rotate => self.rotate(),
            Operation::GetRotationPolicy => self.rotation_policy(),
            Operation::SetRotationPolicy => self.set_rotation_policy(),
            Operation::Backup => self.backup(),
            Operation::Restore => self.restore(),
            Operation::Delete => self.delete(),
            Operation::GetDeleted => self.get_deleted(),
            Operation::ListDeleted => self.list_deleted(),
            Operation::Recover => self.recover(),
            Operation::Purge => self.purge(),
            Operation::Random => self.random(),
            Operation::Unknown
            | Operation::Discovery
            | Operation::Token
            | Operation::ManagedIdentity => Err(errors::no_such_path()),
        }
    }

    fn name(&self) -> &str {
        &self.route.key
    }

    fn not_found(&self) -> Refusal {
        match self.route.version.as_str() {
            "" => errors::key_not_found(self.name()),
            version => errors::key_not_found(&format!("{}/{version}", self.name())),
        }
    }

    fn key(&self) -> Result<&Key, Refusal> {
        self.view.key(self.name()).ok_or_else(|| self.not_found())
    }

    fn version(&self) -> Result<&Version, Refusal> {
        self.key()?.version(&self.route.version).ok_or_else(|| self.not_found())
    }

    fn change<T>(
        &self,
        change: impl FnOnce(&mut State) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        self.world.store.change(self.world.clock.now(), change)
    }

    fn shown(&self, version: &Version, name: &str) -> Value {
        version.bundle(&self.world.profile, self.asked.host(), name)
    }

    /// Whether a new version of this name may be made.
    fn check_name_free(&self, state: &State) -> Result<(), Refusal> {
        if state.deleted(self.name(), self.now).is_some() {
            return Err(errors::deleted_but_recoverable(self.name()));
        }
        let versions = state.key(self.name()).map_or(0, |key| key.versions.len());
        if self.world.profile.kind == Kind::ManagedHsm && versions >= HSM_VERSIONS_MAX {
            // Documented as a limit; what it looks like is not.
            return Err(errors::bad_parameter("The key has 100 versions, which is the limit"));
        }
        Ok(())
    }

    fn add(&self, version: Version) -> Answered {
        let shown = self.shown(&version, self.name());
        self.change(|state| {
            self.check_name_free(state)?;
            state.add(self.name(), version);
            Ok(())
        })?;
        Ok(Answer::json(200, &shown))
    }

    fn create(&self) -> Answered {
        self.check_name_free(self.view)?;
        let kind = self.world.profile.kind;
        let wanted = jwk::wanted(self.body["kty"].as_str(), false, kind)?;
        let material = jwk::generate(self.body, wanted)?;
        self.add(jwk::version(material, wanted, self.body, self.now)?)
    }

    fn import(&self) -> Answered {
        self.check_name_free(self.view)?;
        let (key, kind) = (&self.body["key"], self.world.profile.kind);
        let hsm = self.body["Hsm"].as_bool().unwrap_or_default();
        let wanted = jwk::wanted(key["kty"].as_str(), hsm, kind)?;
        let material = match key["key_hsm"].as_str() {
            Some(package) => byok::open(package, wanted, self.view, self.asked.host(), kind)?,
            None => jwk::import(key, wanted)?,
        };
        self.add(jwk::version(material, wanted, self.body, self.now)?)
    }

    fn get(&self) -> Answered {
        Ok(Answer::json(200, &self.shown(self.version()?, self.name())))
    }

    /// A page of a list whose entries are sorted by `id`, which is what a token to the
    /// next page names.
    fn page(&self, path: &str, entries: &[(String, Value)]) -> Answered {
        let size = match self.asked.query("maxresults") {
            None => PAGE_MAX,
            Some(text) => text
                .parse()
                .ok()
                .filter(|size| (1..=PAGE_MAX).contains(size))
                .ok_or_else(|| errors::bad_parameter("maxresults must be from 1 to 25"))?,
        };
        let after = match self.asked.query("$skiptoken") {
            None => String::new(),
            Some(token) => decode(token)
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .ok_or_else(|| errors::bad_parameter("The skip token is not one of ours"))?,
        };
        let mut rest = entries.iter().filter(|(id, _)| *id > after);
        let page: Vec<_> = rest.by_ref().take(size).collect();
        let next = rest.next().and(page.last()).map(|(last, _)| {
            format!(
                "https://{}{path}?api-version={}&$skiptoken={}&maxresults={size}",
                self.asked.host(),
                self.asked.query("api-version").unwrap_or_default(),
                encode(last),
            )
        });
        let values: Vec<&Value> = page.iter().map(|(_, value)| value).collect();
        Ok(Answer::json(200, &json!({ "value": values, "nextLink": next })))
    }

    fn entry(&self, version: &Version, kid: String) -> Value {
        let attributes = version.attributes(&self.world.profile);
        json!({ "kid": kid, "attributes": attributes, "tags": version.tags })
    }

    fn list(&self) -> Answered {
        let host = self.asked.host();
        let entry = |(name, key): (&String, &Key)| {
            (name.clone(), self.entry(key.latest(), format!("https://{host}/keys/{name}")))
        };
        let entries: Vec<_> = self.view.keys.iter().map(entry).collect();
        self.page("/keys", &entries)
    }

    /// Sorted by the versions' names, which says nothing about their age.
    fn list_versions(&self) -> Answered {
        let (host, name) = (self.asked.host(), self.name());
        let entry = |version: &Version| {
            let kid = format!("https://{host}/keys/{name}/{}", version.id);
            (version.id.clone(), self.entry(version, kid))
        };
        let mut entries: Vec<_> = self.key()?.versions.iter().map(entry).collect();
        entries.sort_by(|one, other| one.0.cmp(&other.0));
        self.page(&format!("/keys/{name}/versions"), &entries)
    }

    fn update(&self) -> Answered {
        let shown = self.change(|state| {
            let key = state.keys.get_mut(self.name()).ok_or_else(|| self.not_found())?;
            let version = key.version_mut(&self.route.version).ok_or_else(|| self.not_found())?;
            jwk::apply(version, self.body, self.now)?;
            Ok(self.shown(version, self.name()))
        })?;
        Ok(Answer::json(200, &shown))
    }

    fn crypt(&self) -> Answered {
        let (operation, version) = (self.route.operation, self.version()?);
        // Whether the service lets a disabled key wrap is disputed. Ours does not.
        if !version.enabled {
            return Err(errors::key_disabled(operation));
        }
        if operation == Operation::Wrap {
            if version.not_before.is_some_and(|not_before| self.now < not_before) {
                return Err(errors::key_out_of_date(operation, "a not yet valid"));
            }
            if version.expires.is_some_and(|expires| expires <= self.now) {
                return Err(errors::key_out_of_date(operation, "an expired"));
            }
        }
        if !version.ops.iter().any(|op| op == operation.permission()) {
            return Err(errors::operation_forbidden(operation));
        }
        let wrapping = self.body["alg"]
            .as_str()
            .and_then(Wrapping::parse)
            .ok_or_else(|| errors::bad_parameter("Property 'alg' has invalid value\r\n"))?;
        let value = decode(self.body["value"].as_str().unwrap_or_default())
            .filter(|value| !value.is_empty())
            .ok_or_else(|| errors::not_base64url("value"))?;
        let out = match operation {
            Operation::Wrap => version.material.wrap(wrapping, &value),
            _ => version.material.unwrap(wrapping, &value),
        };
        let out = out.map_err(|failure| match failure {
            Failure::Algorithm => errors::bad_parameter(format!(
                "Key and algorithm are incompatible: the key is of type '{}'",
                version.kty()
            )),
            Failure::Length => errors::bad_parameter("The parameter 'value' has a wrong length"),
            Failure::Ciphertext if matches!(*version.material, Material::Rsa(_)) => {
                errors::oaep_padding()
            }
            Failure::Ciphertext => errors::bad_parameter("The key could not be unwrapped"),
        })?;
        let kid = format!("https://{}/keys/{}/{}", self.asked.host(), self.name(), version.id);
        Ok(Answer::json(200, &json!({ "kid": kid, "value": encode(out) })))
    }

    fn rotate(&self) -> Answered {
        let key = self.key()?;
        if key.rotation.is_none() && self.world.profile.kind == Kind::ManagedHsm {
            return Err(errors::bad_parameter("The key has no rotation policy"));
        }
        let old = key.latest();
        let mut new = Version::new(old.material.another().into(), old.hsm, self.now);
        new.ops.clone_from(&old.ops);
        new.tags.clone_from(&old.tags);
        let days = key.rotation.as_ref().and_then(|rotation| rotation.expiry_days);
        new.expires = days.map(|days| self.now + days * 24 * 3600);
        self.add(new)
    }

    fn rotation_policy(&self) -> Answered {
        let key = self.key()?;
        let created = key.versions.first().map_or(self.now, |version| version.created);
        let policy =
            rotation::shown(key.rotation.as_ref(), self.asked.host(), self.name(), created);
        Ok(Answer::json(200, &policy))
    }

    fn set_rotation_policy(&self) -> Answered {
        let shown = self.change(|state| {
            let key = state.keys.get_mut(self.name()).ok_or_else(|| self.not_found())?;
            let created = key.rotation.as_ref().map_or(self.now, |rotation| rotation.created);
            let kind = self.world.profile.kind;
            let rotation = rotation::parse(self.body, kind, created, self.now)?;
            let shown = rotation::shown(Some(&rotation), self.asked.host(), self.name(), created);
            key.rotation = Some(rotation);
            Ok(shown)
        })?;
        Ok(Answer::json(200, &shown))
    }

    fn backup(&self) -> Answered {
        let blob = self.world.geography.seal(self.name(), self.key()?);
        Ok(Answer::json(200, &json!({ "value": encode(blob) })))
    }

    fn restore(&self) -> Answered {
        let blob = decode(self.body["value"].as_str().unwrap_or_default())
            .ok_or_else(|| errors::not_base64url("value"))?;
        let (name, key) =
            self.world.geography.open(&blob).ok_or_else(|| {
                errors::bad_parameter("The backup blob is not one of this geography")
            })?;
        let shown = self.shown(key.latest(), &name);
        self.change(|state| {
            if state.deleted(&name, self.now).is_some() {
                return Err(errors::deleted_but_recoverable(&name));
            }
            if state.key(&name).is_some() {
                return Err(errors::name_taken(&name));
            }
            state.keys.insert(name.clone(), key);
            Ok(())
        })?;
        Ok(Answer::json(200, &shown))
    }

    fn deleted_bundle(&self, name: &str, deleted: &Deleted) -> Value {
        let mut bundle = self.shown(deleted.key.latest(), name);
        bundle["recoveryId"] = json!(format!("https://{}/deletedkeys/{name}", self.asked.host()));
        bundle["deletedDate"] = json!(deleted.at);
        bundle["scheduledPurgeDate"] = json!(deleted.purged_at);
        bundle
    }

    fn delete(&self) -> Answered {
        let shown = self.change(|state| {
            let deleted = state.delete(self.name(), &self.world.profile, self.now);
            let deleted = deleted.ok_or_else(|| self.not_found())?;
            Ok(self.deleted_bundle(self.name(), deleted))
        })?;
        Ok(Answer::json(200, &shown))
    }

    fn get_deleted(&self) -> Answered {
        let deleted = self.view.deleted(self.name(), self.now);
        let deleted = deleted.ok_or_else(|| errors::deleted_key_not_found(self.name()))?;
        Ok(Answer::json(200, &self.deleted_bundle(self.name(), deleted)))
    }

    fn list_deleted(&self) -> Answered {
        let host = self.asked.host();
        let entry = |name: &String| {
            let deleted = self.view.deleted(name, self.now)?;
            let kid = format!("https://{host}/keys/{name}");
            let mut entry = self.entry(deleted.key.latest(), kid);
            entry["recoveryId"] = json!(format!("https://{host}/deletedkeys/{name}"));
            entry["deletedDate"] = json!(deleted.at);
            entry["scheduledPurgeDate"] = json!(deleted.purged_at);
            Some((name.clone(), entry))
        };
        let entries: Vec<_> = self.view.deleted.keys().filter_map(entry).collect();
        self.page("/deletedkeys", &entries)
    }

    fn recover(&self) -> Answered {
        let shown = self.change(|state| {
            let key = state.recover(self.name(), self.now);
            let key = key.ok_or_else(|| errors::deleted_key_not_found(self.name()))?;
            Ok(self.shown(key.latest(), self.name()))
        })?;
        Ok(Answer::json(200, &shown))
    }

    fn purge(&self) -> Answered {
        if self.world.profile.purge_protection {
            return Err(errors::purge_protected(self.name()));
        }
        self.change(|state| {
            let deleted = state.deleted.remove(self.name());
            deleted.map(|_| ()).ok_or_else(|| errors::deleted_key_not_found(self.name()))
        })?;
        Ok(Answer::empty(204))
    }

    fn random(&self) -> Answered {
        if self.world.profile.kind != Kind::ManagedHsm {
            return Err(errors::no_such_path());
        }
        let count = self.body["count"].as_u64().filter(|count| (1..=128).contains(count));
        let count = count.ok_or_else(|| errors::bad_parameter("count must be from 1 to 128"))?;
        let mut bytes = vec![0; count as usize];
        aws_lc_rs::rand::fill(&mut bytes).expect("random bytes");
        Ok(Answer::json(200, &json!({ "value": encode(bytes) })))
    }
}
