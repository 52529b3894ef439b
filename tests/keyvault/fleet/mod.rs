//! A fleet of sidecars on one 4096-bit key of one vault: the real engine, leases, guards
//! and caches, on a clock that is turned. What a fleet may ask of its vault, how soon all of
//! it knows that a key was taken away, and how a herd that starts at once gets through.

mod vault;

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use keyward::{
    auth::{Identity, Permit},
    backend::{
        Backend, Shared,
        keyvault::{KeyVaultBackend, Service, Settings},
    },
    cache::CacheSettings,
    clock,
    engine::{self, Engine, KekSpec},
    envelope::{Context, Dek, WrappedDek},
    error::{Error, Reason, Retry},
    guard::Class,
    kek::{Algorithm, KekName, KeyRef, Mode, NewestDisabled},
    lease::{
        Terms,
        fleet::{Pace, Quota, Toll},
    },
    observe::Metrics,
    op::Op,
};
use tokio::{task::JoinSet, time::sleep};

use self::vault::{Looks, Owner, Vault, Way};
use crate::{
    azure::Azure,
    support::{
        bench::{HOUR, dek},
        sidecar::{engine, own_uid, policy},
    },
};

const SIDECARS: u32 = 1000;
const SECOND: Duration = Duration::from_secs(1);
const TERMS: Terms =
    Terms { interval: Duration::from_secs(30), outage_grace: Duration::from_secs(600) };

/// What the real rules give such a fleet.
fn pace(real: &KeyVaultBackend) -> Pace {
    let toll = Toll { looks: 16.0, operations: 16.0 };
    let Shared { sidecars, per_second } = real.room().shared.expect("a vault is shared");
    assert_eq!(sidecars, SIDECARS);
    Pace::within(TERMS.interval, toll, Quota { sidecars, per_second })
}

/// The real backend, for the room that it has; it is asked nothing.
fn real() -> KeyVaultBackend {
    let azure = Azure::start(Service::KeyVault);
    let settings = Settings { fleet: SIDECARS, ..azure.settings() };
    KeyVaultBackend::open(settings).expect("a backend")
}

/// A sidecar, without its sockets.
struct Node {
    engine: Arc<Engine>,
    kek: KekName,
    who: Arc<Identity>,
    /// What keeps its KEK proven. Ends with it.
    keeping: JoinSet<()>,
}

impl Node {
    fn new(vault: &Arc<Vault>, real: &KeyVaultBackend) -> Self {
        let kek = KekName::parse("orders").unwrap();
        let spec = KekSpec {
            name: kek.clone(),
            backend: Way::to(vault, real),
            key: KeyRef::parse("orders").unwrap(),
            algorithm: Algorithm::RsaOaep256,
            newest_disabled: NewestDisabled::default(),
            mode: Mode::CustomerManaged,
        };
        let metrics = Arc::new(Metrics::new(["orders"], ["vault"]));
        let cache = CacheSettings { capacity: 64, ttl: HOUR, idle: HOUR };
        let engine = engine(vec![spec], cache, TERMS, metrics);
        let who = Arc::new(Identity::Unix { uid: own_uid(), gid: 0 });
        Self { engine, kek, who, keeping: JoinSet::new() }
    }

    /// Goes through its start-up and stays up.
    fn start(&mut self) {
        let engine = Arc::clone(&self.engine);
        self.keeping.spawn(async move {
            let (kek, fatal) = engine::prove(engine, || {}).await;
            panic!("{kek}: {fatal}");
        });
    }

    fn permit(&self, op: Op) -> Permit {
        policy().permit(&self.who, op, &self.kek).unwrap()
    }

    async fn wrap(&self, n: u64) -> Result<WrappedDek, Error> {
        let (dek, context) = (Dek::parse(dek(n)).unwrap(), Context::parse(b"").unwrap());
        self.engine.wrap(self.permit(Op::Wrap), &dek, &context, clock::now() + SECOND).await
    }

    async fn unwrap(&self, wrapped: &WrappedDek) -> Result<(), Error> {
        let (context, deadline) = (Context::parse(b"").unwrap(), clock::now() + 30 * SECOND);
        let permit = self.permit(Op::Unwrap);
        self.engine.unwrap(permit, wrapped, &context, Class::Foreground, deadline).await.map(drop)
    }

    /// Unwraps it however often that takes, as a client does: not before it is told to.
    async fn unwrap_at_last(&self, wrapped: &WrappedDek) {
        while let Err(error) = self.unwrap(wrapped).await {
            match error.retry() {
                Retry::After(pause) => sleep(pause.max(SECOND / 4)).await,
                // Its time was over; it has more.
                Retry::Never if error.reason() == Reason::DeadlineExceeded => {}
                Retry::Never => panic!("{error} {:?}", error.detail()),
            }
        }
    }
}

/// A fleet that is up, each of them with one DEK in its cache, and the moments of its
/// rounds spread as they are after a while.
struct Fleet {
    vault: Arc<Vault>,
    real: KeyVaultBackend,
    nodes: Vec<Node>,
    wrapped: WrappedDek,
}

impl Fleet {
    /// Watched only after `settling` intervals.
    async fn up(looks: Looks, settling: u32) -> Self {
        let (vault, real) = (Vault::new(looks), real());
        let mut nodes: Vec<_> = (0..SIDECARS).map(|_| Node::new(&vault, &real)).collect();
        // Started over ten minutes, as an orchestrator would.
        for node in &mut nodes {
            node.start();
            sleep(Duration::from_millis(600)).await;
        }
        let wrapped = nodes[0].wrap(1).await.expect("a proven KEK");
        for node in &nodes {
            node.unwrap_at_last(&wrapped).await;
        }
        // All of them have operated a moment ago; after a while they do so when it comes.
        sleep(settling * pace(&real).interval).await;
        vault.counted();
        vault.busiest();
        Self { vault, real, nodes, wrapped }
    }

    /// How many of them hand the DEK out.
    async fn serving(&self) -> usize {
        let asked = self.nodes.iter().map(|node| node.unwrap(&self.wrapped));
        join_all(asked).await.iter().filter(|answer| answer.is_ok()).count()
    }

    /// How long it takes until all of them, or none, hand the DEK out.
    async fn until(&self, serving: usize, at_most: Duration) -> Duration {
        let began = clock::now();
        loop {
            let now = self.serving().await;
            let took = clock::now() - began;
            if now == serving {
                return took;
            }
            assert!(took <= at_most, "{now} of {SIDECARS} serve after {took:?}");
            sleep(SECOND).await;
        }
    }
}

/// The part of the quota that `admitted` operations with the key are in this time.
fn share(admitted: u64, time: Duration) -> f64 {
    admitted as f64 / (25.0 * time.as_secs_f64())
}

#[tokio::test(start_paused = true)]
async fn a_thousand_sidecars_leave_their_vault_more_than_half_of_its_quota() {
    for looks in [Looks::Dear, Looks::Cheap] {
        let fleet = Fleet::up(looks, 6).await;
        let watched = 600 * SECOND;
        sleep(watched).await;
        let (admitted, refused) = fleet.vault.counted();
        let (mean, busiest) = (share(admitted, watched), fleet.vault.busiest());
        println!(
            "1000 sidecars, looks {looks:?}: {:.0} % of the quota for {watched:?}, {:.0} % in the \
             busiest ten seconds; refused {refused}",
            100.0 * mean,
            100.0 * busiest
        );
        assert_eq!(refused, 0);
        assert!(mean < 0.45 && busiest < 0.6, "{mean} {busiest}");
        assert_eq!(fleet.serving().await, SIDECARS as usize);
    }
}

#[tokio::test(start_paused = true)]
async fn all_of_a_fleet_is_dark_within_what_it_was_promised_and_light_again() {
    let fleet = Fleet::up(Looks::Dear, 1).await;
    let pace = pace(&fleet.real);
    // Dark, they hold no DEK. What it takes the vault to unwrap one for each:
    let unwraps = SECOND.mul_f64(1.2 * f64::from(SIDECARS) / 25.0);
    for (owner, promised) in [
        (Owner::Disabled, pace.interval),
        (Owner::Forbids, pace.interval),
        (Owner::ForbidsUnwrap, pace.operation_within),
    ] {
        fleet.vault.is(owner);
        let dark = fleet.until(0, promised + 2 * SECOND).await;
        fleet.vault.is(Owner::Allows);
        let light = fleet.until(SIDECARS as usize, pace.interval + unwraps).await;
        println!(
            "{owner:?}: promised {promised:?}, all dark after {dark:?}, all light after {light:?}"
        );
        assert!(dark <= promised, "{owner:?}: {dark:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_callers_use_need_not_prove_itself() {
    let (vault, real) = (Vault::new(Looks::Dear), real());
    let pace = pace(&real);
    let mut node = Node::new(&vault, &real);
    node.start();
    sleep(SECOND).await;
    assert_eq!(vault.proofs(), 1);
    // Nobody uses it: it proves itself at least once in four intervals, at most once in one.
    sleep(12 * pace.interval).await;
    let idle = vault.proofs();
    assert!((3..=12).contains(&idle), "{idle} proofs");
    for n in 0..24 {
        let wrapped = node.wrap(n).await.unwrap();
        node.unwrap(&wrapped).await.unwrap();
        if n == 0 {
            vault.proofs();
        }
        sleep(pace.interval / 2).await;
    }
    assert_eq!(vault.proofs(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_unwrap_that_is_denied_has_the_key_prove_itself_at_once() {
    let (vault, real) = (Vault::new(Looks::Dear), real());
    let mut node = Node::new(&vault, &real);
    node.start();
    sleep(60 * SECOND).await;
    let (cached, other) = (node.wrap(1).await.unwrap(), node.wrap(2).await.unwrap());
    node.unwrap(&cached).await.unwrap();
    vault.is(Owner::ForbidsUnwrap);
    sleep(60 * SECOND).await;
    node.unwrap(&cached).await.expect("no operation is due, and nobody asked for one");
    node.unwrap(&other).await.expect_err("the vault forbids it");
    sleep(10 * SECOND).await;
    node.unwrap(&cached).await.expect_err("a denied caller is a reason to look");
}

/// Fifty start at once, each for twenty DEKs, beside the rest of the fleet.
#[tokio::test(start_paused = true)]
async fn a_herd_gets_through_in_little_more_than_the_quota_allows() {
    const HERD: usize = 50;
    const DEKS: u64 = 20;
    let mut fleet = Fleet::up(Looks::Cheap, 1).await;
    let mut deks = Vec::new();
    for n in 0..DEKS {
        deks.push(fleet.nodes[0].wrap(100 + n).await.unwrap());
    }
    sleep(20 * SECOND).await;
    let others = {
        fleet.vault.counted();
        sleep(60 * SECOND).await;
        fleet.vault.counted().0 as f64 / 60.0
    };
    fleet.nodes.truncate(SIDECARS as usize - HERD);
    let herd: Vec<_> = (0..HERD).map(|_| Node::new(&fleet.vault, &fleet.real)).collect();
    let began = clock::now();
    let served = herd.into_iter().map(|mut node| {
        let deks = &deks;
        async move {
            node.start();
            join_all(deks.iter().map(|wrapped| node.unwrap_at_last(wrapped))).await;
            (clock::now(), node)
        }
    });
    let served = join_all(served).await;
    let took = served.iter().map(|(at, _)| *at - began).max().unwrap().as_secs_f64();
    let (admitted, refused) = fleet.vault.counted();
    // Each reads the key, proves it and unwraps its DEKs. Looks are not paid for here.
    let needed = (HERD as u64 * (DEKS + 2)) as f64;
    let allowed = needed / (25.0 - others);
    println!(
        "a herd of {HERD}, {DEKS} DEKs each: {took:.1} s, {:.2} times what the quota allows \
         ({allowed:.1} s); {refused} refused, {admitted} admitted",
        took / allowed
    );
    assert!(took <= 1.2 * allowed, "{took} against {allowed}");
    assert!(refused * 2 <= admitted, "a storm: {refused} refused, {admitted} admitted");
    // The rest of the fleet did not go dark for it.
    assert_eq!(fleet.serving().await, SIDECARS as usize - HERD);
}
