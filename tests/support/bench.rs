//! An engine over a backend, the fake one unless a test says otherwise, with no socket in
//! between.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use keyward::{
    auth::{Identity, Permit},
    backend::Backend,
    cache::CacheSettings,
    carriers::Carrier,
    clock,
    engine::{Engine, KekSpec, Purged, Revoked, Rewrapped, Stand, Unwrapped},
    envelope::{Context, Dek, WrappedDek},
    error::Error,
    guard::Class,
    kek::{Algorithm, KekName, KeyRef, Mode, NewestDisabled},
    lease::Terms,
    observe::Metrics,
    op::Op,
    secret::Secret,
};

use super::{
    fake::Fake,
    sidecar::{engine, own_uid, policy},
};

pub const HOUR: Duration = Duration::from_secs(3600);

/// An engine, and who calls it.
pub struct Bench<B = Fake> {
    pub backend: Arc<B>,
    pub engine: Arc<Engine>,
    pub metrics: Arc<Metrics>,
    pub kek: KekName,
    who: Arc<Identity>,
}

impl Bench {
    /// Over a fake, with DEKs and leases that last, and proven.
    pub async fn new() -> Arc<Self> {
        let bench = Self::of(Fake::new(), Terms { interval: HOUR, outage_grace: HOUR });
        bench.prove().await;
        bench
    }
}

impl<B: Backend> Bench<B> {
    /// With nothing proven yet.
    pub fn of(backend: Arc<B>, terms: Terms) -> Arc<Self> {
        Self::beside(backend, terms, None)
    }

    /// The same, of which a disabled newest version means what `rule` says.
    pub fn with_rule(backend: Arc<B>, terms: Terms, rule: NewestDisabled) -> Arc<Self> {
        Self::over(backend, terms, rule, None)
    }

    /// The same, with a KEK "slow" beside it that lives in another backend.
    pub fn beside(backend: Arc<B>, terms: Terms, slow: Option<Arc<Fake>>) -> Arc<Self> {
        Self::over(backend, terms, NewestDisabled::default(), slow)
    }

    fn over(
        backend: Arc<B>,
        terms: Terms,
        newest_disabled: NewestDisabled,
        slow: Option<Arc<Fake>>,
    ) -> Arc<Self> {
        let kek = KekName::parse("orders").unwrap();
        let metrics = Arc::new(Metrics::new(["orders", "slow"], [backend.name()]));
        let spec = |name: &str, backend: Arc<dyn Backend>| KekSpec {
            name: KekName::parse(name).unwrap(),
            backend,
            key: KeyRef::parse("kek").unwrap(),
            // SoftHSM does no other; the fake takes any.
            algorithm: Algorithm::RsaOaep,
            newest_disabled,
            mode: Mode::CustomerManaged,
        };
        let mut specs = vec![spec("orders", Arc::clone(&backend) as _)];
        specs.extend(slow.map(|slow| spec("slow", slow)));
        let cache = CacheSettings { capacity: 1024, ttl: HOUR, idle: HOUR };
        let engine = engine(specs, cache, terms, Arc::clone(&metrics));
        let who = Arc::new(Identity::Unix { uid: own_uid(), gid: 0 });
        Arc::new(Self { backend, engine, metrics, kek, who })
    }

    pub async fn prove(&self) {
        self.engine.verify(&self.kek, clock::now() + HOUR).await.unwrap();
    }

    fn permit(&self, op: Op) -> Permit {
        policy().permit(&self.who, op, &self.kek).unwrap()
    }

    pub async fn wrap(&self, n: u64) -> Result<WrappedDek, Error> {
        let dek = Dek::parse(dek(n)).unwrap();
        let context = Context::parse(b"").unwrap();
        let (permit, deadline) = (self.permit(Op::Wrap), clock::now() + HOUR);
        self.engine.wrap(permit, &dek, &context, deadline).await
    }

    pub async fn unwrap(&self, wrapped: &WrappedDek) -> Result<Unwrapped, Error> {
        self.unwrap_in(Class::Foreground, wrapped).await
    }

    pub async fn unwrap_in(&self, class: Class, wrapped: &WrappedDek) -> Result<Unwrapped, Error> {
        let context = Context::parse(b"").unwrap();
        let (permit, deadline) = (self.permit(Op::Unwrap), clock::now() + HOUR);
        self.engine.unwrap(permit, wrapped, &context, class, deadline).await
    }

    pub async fn rewrap(&self, wrapped: WrappedDek) -> Result<Rewrapped, Error> {
        let context = Context::parse(b"").unwrap();
        let (permit, deadline) = (self.permit(Op::Rewrap), clock::now() + HOUR);
        self.engine.rewrap(permit, wrapped, &context, deadline).await
    }

    pub async fn purge(&self) -> Purged {
        self.engine.purge(vec![self.permit(Op::Purge)], &Carrier::new()).await.unwrap()
    }

    pub async fn revoke(&self) -> Revoked {
        self.engine.revoke(self.permit(Op::Revoke), &Carrier::new()).await.unwrap()
    }

    pub async fn restore(&self) {
        self.engine.restore(self.permit(Op::Restore)).await.unwrap();
    }

    pub fn stand(&self) -> Stand {
        self.engine.stand(self.permit(Op::Describe)).unwrap()
    }

    /// State and age of each of its leases, in seconds, by version.
    pub fn leases(&self) -> BTreeMap<String, (String, f64)> {
        let metrics = self.metrics.render();
        let of = |line: &str, label: &str| {
            let value = line.split(&format!("{label}=\"")).nth(1)?;
            Some(value.split('"').next()?.to_owned())
        };
        let mine = |line: &&str| of(line, "kek").is_some_and(|kek| kek == "orders");
        let mut leases = BTreeMap::<_, (String, f64)>::new();
        for line in metrics.lines().filter(mine) {
            let Some(version) = of(line, "version") else { continue };
            let lease = leases.entry(version).or_default();
            if let Some(state) = of(line, "state") {
                lease.0 = state;
            } else if line.starts_with("keyward_lease_age_seconds") {
                lease.1 = line.rsplit(' ').next().unwrap().parse().unwrap();
            }
        }
        leases
    }

    pub fn entries(&self) -> String {
        let metrics = self.metrics.render();
        let line = metrics.lines().find(|line| line.starts_with("keyward_cache_entries "));
        line.unwrap_or_else(|| panic!("{metrics}")).to_owned()
    }
}

/// Another one for each number.
pub fn dek(n: u64) -> Secret {
    Secret::new(n.to_be_bytes().repeat(4))
}
