//! What a test does to a running fake: keys, rights, identities, network, time, faults;
//! and what it can look at.

use std::{collections::BTreeSet, convert::Infallible, sync::Arc, time::Duration};

use serde_json::json;

use super::{
    FakeVault,
    access::{self, Principal, Role},
    clock::{Clock, seconds},
    directory::{App, Identity, Secret},
    entra,
    faults::{Fault, On, Operation, Times, Tls},
    material::Material,
    record::Record,
    server::Place,
    state::{Kind, Network, Rotation, State, Version, new_version_id},
    store::Lag,
    world::TENANT,
};

/// Keys and their versions. An empty version is the latest.
impl FakeVault {
    fn now(&self) -> i64 {
        seconds(self.world.clock.now())
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = self
            .world
            .store
            .change(self.world.clock.now(), |state| Ok::<_, Infallible>(change(state)));
        match changed {
            Ok(outcome) => outcome,
        }
    }

    /// Adds a version with this material, and gives its name. HSM-protected unless the
    /// vault has no HSM.
    pub fn put(&self, key: &str, material: Material) -> String {
        let hsm = self.world.profile.kind != Kind::Standard;
        let version = Version::new(Arc::new(material), hsm, self.now());
        let id = version.id.clone();
        self.change(|state| state.add(key, version));
        id
    }

    /// Makes an RSA key of 2048, 3072 or 4096 bits, or another version of one. Takes up to
    /// seconds.
    pub fn create_rsa(&self, key: &str, bits: usize) -> String {
        self.put(key, Material::generate_rsa(bits).expect("2048, 3072 or 4096 bits"))
    }

    /// Makes an AES key of 128, 192 or 256 bits, or another version of one.
    pub fn create_oct(&self, key: &str, bits: usize) -> String {
        self.put(key, Material::generate_oct(bits).expect("128, 192 or 256 bits"))
    }

    /// A new version with new material of the same type and size.
    pub fn rotate(&self, key: &str) -> String {
        let material = self.version(key, "").material.another();
        self.put(key, material)
    }

    /// Gives a key a rotation policy, without which a managed HSM does not rotate it.
    pub fn set_rotation_policy(&self, key: &str, expiry_days: Option<i64>) {
        let now = self.now();
        let policy = serde_json::json!({ "lifetimeActions": [], "attributes": {} });
        self.change(|state| {
            let key = state.keys.get_mut(key).unwrap_or_else(|| panic!("no key {key}"));
            key.rotation = Some(Rotation { policy, created: now, updated: now, expiry_days });
        });
    }

    /// A version as it is.
    pub fn version(&self, key: &str, version: &str) -> Version {
        let state = self.world.store.current();
        let found = state.key(key).and_then(|key| key.version(version));
        found.unwrap_or_else(|| panic!("no version {version} of a key {key}")).clone()
    }

    /// The full name of a version, as the service gives it to those who use [`Self::url`].
    pub fn kid(&self, key: &str, version: &str) -> String {
        format!("{}/keys/{key}/{}", self.url(), self.version(key, version).id)
    }

    pub fn has(&self, key: &str) -> bool {
        self.world.store.current().key(key).is_some()
    }

    pub fn has_version(&self, key: &str, version: &str) -> bool {
        self.world.store.current().key(key).is_some_and(|key| key.version(version).is_some())
    }

    pub fn is_deleted(&self, key: &str) -> bool {
        self.world.store.current().deleted(key, self.now()).is_some()
    }

    fn with_version(&self, key: &str, version: &str, change: impl FnOnce(&mut Version)) {
        let now = self.now();
        self.change(|state| {
            let found = state.keys.get_mut(key).and_then(|key| key.version_mut(version));
            let found = found.unwrap_or_else(|| panic!("no version {version} of a key {key}"));
            change(found);
            found.updated = now;
        });
    }

    pub fn disable(&self, key: &str, version: &str) {
        self.with_version(key, version, |version| version.enabled = false);
    }

    pub fn enable(&self, key: &str, version: &str) {
        self.with_version(key, version, |version| version.enabled = true);
    }

    /// Sets `nbf` and `exp`, Unix seconds.
    pub fn set_validity(
        &self,
        key: &str,
        version: &str,
        not_before: Option<i64>,
        expires: Option<i64>,
    ) {
        self.with_version(key, version, |version| {
            (version.not_before, version.expires) = (not_before, expires);
        });
    }

    /// Sets when a version was made, Unix seconds.
    pub fn set_created(&self, key: &str, version: &str, created: i64) {
        self.with_version(key, version, |version| version.created = created);
    }

    /// Sets `key_ops`.
    pub fn set_ops(&self, key: &str, version: &str, ops: &[&str]) {
        self.with_version(key, version, |version| {
            version.ops = ops.iter().map(|op| (*op).into()).collect();
        });
    }

    /// Soft-deletes a key with all its versions.
    pub fn delete(&self, key: &str) {
        let (profile, now) = (&self.world.profile, self.now());
        self.change(|state| assert!(state.delete(key, profile, now).is_some(), "no key {key}"));
    }

    pub fn recover(&self, key: &str) {
        let now = self.now();
        self.change(|state| assert!(state.recover(key, now).is_some(), "{key} is not deleted"));
    }

    /// Takes a deleted key away for good, purge protection or not.
    pub fn purge(&self, key: &str) {
        self.change(|state| assert!(state.deleted.remove(key).is_some(), "{key} is not deleted"));
    }

    /// Soft-deletes the vault itself.
    pub fn delete_vault(&self) {
        self.change(|state| state.gone = true);
    }

    pub fn recover_vault(&self) {
        self.change(|state| state.gone = false);
    }
}

/// Who there is, and what they may.
impl FakeVault {
    /// Registers an application with a client secret.
    pub fn add_app(&self, secret: &str) -> Principal {
        let principal = Principal::new();
        let secrets = vec![Secret { value: secret.into(), expires: None }];
        self.world.directory.lock().unwrap().apps.push(App {
            principal: principal.clone(),
            secrets,
            certificates: Vec::new(),
            subjects: Vec::new(),
        });
        principal
    }

    fn with_app(&self, app: &Principal, change: impl FnOnce(&mut App)) {
        let mut directory = self.world.directory.lock().unwrap();
        change(directory.app_mut(&app.client_id).expect("an application"));
    }

    /// Gives an application another secret, which ends after `lifetime`.
    pub fn add_secret(&self, app: &Principal, secret: &str, lifetime: Option<Duration>) {
        let expires = lifetime.map(|lifetime| self.world.clock.now() + lifetime);
        self.with_app(app, |app| app.secrets.push(Secret { value: secret.into(), expires }));
    }

    pub fn remove_secret(&self, app: &Principal, secret: &str) {
        self.with_app(app, |app| app.secrets.retain(|known| known.value != secret));
    }

    /// Registers a certificate (DER) whose key may sign the application's assertions.
    pub fn add_certificate(&self, app: &Principal, der: &[u8]) {
        self.with_app(app, |app| app.certificates.push(der.to_vec()));
    }

    /// Lets the cluster's tokens for this subject stand for the application.
    pub fn trust_subject(&self, app: &Principal, subject: &str) {
        self.with_app(app, |app| app.subjects.push(subject.into()));
    }

    /// A token of the cluster for a service account, as it is put into
    /// AZURE_FEDERATED_TOKEN_FILE.
    pub fn federated_token(&self, subject: &str, lifetime: Duration) -> String {
        let now = self.now();
        self.world.cluster.sign(&json!({
            "iss": entra::cluster_issuer(&self.world),
            "sub": subject,
            "aud": entra::FEDERATION_AUDIENCE,
            "iat": now,
            "nbf": now,
            "exp": now + i64::try_from(lifetime.as_secs()).expect("a lifetime"),
        }))
    }

    /// Deletes an application. Tokens that it has stay good.
    pub fn delete_app(&self, app: &Principal) {
        self.world.directory.lock().unwrap().apps.retain(|known| known.principal != *app);
    }

    /// Gives the machine a managed identity: its own, or one assigned to it, which has
    /// this resource id.
    pub fn add_identity(&self, resource_id: Option<&str>) -> Principal {
        let principal = Principal::new();
        self.world.directory.lock().unwrap().identities.push(Identity {
            principal: principal.clone(),
            resource_id: resource_id.unwrap_or_default().into(),
            system: resource_id.is_none(),
        });
        principal
    }

    /// Deletes a managed identity. Tokens that it has stay good.
    pub fn delete_identity(&self, identity: &Principal) {
        let mut directory = self.world.directory.lock().unwrap();
        directory.identities.retain(|known| known.principal != *identity);
        directory.remembered.retain(|(object, _), _| *object != identity.object_id);
    }

    /// How long the tokens live that are made from now on: of applications, and of managed
    /// identities.
    pub fn set_token_lifetimes(&self, app: Duration, identity: Duration) {
        let whole = |time: Duration| i64::try_from(time.as_secs()).expect("a lifetime");
        let mut directory = self.world.directory.lock().unwrap();
        directory.token_lifetime = whole(app);
        directory.identity_lifetime = whole(identity);
    }

    pub fn grant(&self, who: &Principal, role: Role) {
        let id = who.object_id.clone();
        self.change(|state| state.roles.entry(id).or_default().insert(role));
    }

    pub fn remove_role(&self, who: &Principal, role: Role) {
        self.change(|state| {
            state.roles.entry(who.object_id.clone()).or_default().remove(&role);
        });
    }

    /// Sets an access policy: what this one may, and nothing else.
    pub fn set_policy(&self, who: &Principal, allowed: &[Operation]) {
        let allowed: BTreeSet<Operation> = allowed.iter().copied().collect();
        self.change(|state| state.policies.insert(who.object_id.clone(), allowed));
    }

    /// A good token, without the way over Entra.
    pub fn token(&self, who: &Principal) -> String {
        self.token_with(who, &self.audience(), TENANT, 3599)
    }

    /// A token for this audience, from this tenant, that ends in so many seconds.
    pub fn token_with(
        &self,
        who: &Principal,
        audience: &str,
        tenant: &str,
        lifetime: i64,
    ) -> String {
        let now = self.world.clock.now();
        self.world.signer.sign(&access::claims(who, audience, tenant, now, lifetime))
    }

    /// A token that is right but for its key, which the vault does not know.
    pub fn token_of_unknown_key(&self, who: &Principal) -> String {
        let now = self.world.clock.now();
        let claims = access::claims(who, &self.audience(), TENANT, now, 3599);
        self.world.cluster.sign(&claims)
    }
}

/// The network, time, quota and faults.
impl FakeVault {
    /// The firewall no longer lists the client.
    pub fn close_firewall(&self) {
        self.change(|state| state.network = Network::Firewall);
    }

    /// Private links only, and the client has none.
    pub fn disable_public_access(&self) {
        self.change(|state| state.network = Network::PrivateOnly);
    }

    pub fn open_network(&self) {
        self.change(|state| state.network = Network::Open);
    }

    /// Has every so manieth read answered by a replica that lags; 1 is every one.
    pub fn set_lag(&self, by: Duration, every: u32) {
        self.world.store.set_lag(Some(Lag { by, every: every.max(1) }));
    }

    pub fn end_lag(&self) {
        self.world.store.set_lag(None);
    }

    pub fn clock(&self) -> &Clock {
        &self.world.clock
    }

    /// What 429 says about when to come back, seconds. A real vault was seen to say nothing.
    pub fn set_retry_after(&self, seconds: Option<u32>) {
        *self.world.retry_after.lock().unwrap() = seconds;
    }

    /// Whether refused requests count against the quota, too; the documentation says both.
    pub fn set_refused_counts(&self, counts: bool) {
        if let Some(throttle) = &mut *self.world.throttle.lock().unwrap() {
            throttle.refused_counts = counts;
        }
    }

    /// How much of the quota for operations on keys was used in the last ten seconds, 1
    /// being all; 0 without a quota.
    pub fn quota_used(&self) -> f64 {
        let now = self.world.clock.now();
        self.world.throttle.lock().unwrap().as_ref().map_or(0.0, |throttle| throttle.load(now))
    }

    /// Has requests that fit go wrong. Of several faults that fit and are due, the one that
    /// was ordered first strikes.
    pub fn inject(&self, on: On, fault: Fault, times: Times) {
        self.world.faults.order(on, fault, times);
    }

    pub fn clear_faults(&self) {
        self.world.faults.clear();
    }

    /// Stops listening, so that connections are refused, and cuts those that there are.
    pub fn take_offline(&self, place: Place) {
        self.world.gates.of(place).set(false);
        self.cut_connections(place);
    }

    /// Listens again, on the same port.
    pub fn bring_back(&self, place: Place) {
        self.world.gates.of(place).set(true);
    }

    /// Closes the connections that there are, whatever is asked on them.
    pub fn cut_connections(&self, place: Place) {
        self.world.gates.of(place).cut();
    }

    /// How many connections there are.
    pub fn open_connections(&self, place: Place) -> usize {
        self.world.gates.of(place).connections()
    }

    /// What TLS does to those who connect to the vault from now on. Connections that there
    /// are live on, unless they are cut.
    pub fn set_tls(&self, tls: Tls) {
        self.world.faults.set_tls(tls);
    }

    /// What was asked.
    pub fn record(&self) -> &Record {
        &self.world.record
    }

    /// How often this was asked, whatever the answer.
    pub fn count(&self, operation: Operation) -> u64 {
        self.world.record.count(operation)
    }

    /// A name that no version has.
    pub fn unknown_version(&self) -> String {
        new_version_id()
    }
}
