//! Cache, lease and revocation together, on a virtual clock, against a model that knows
//! only the rules.
//!
//! The steps of one unwrap (check, look up, ask, cache, check again) are taken apart, so
//! that those of several can be put in any order with each other and with proofs, denials,
//! outages, revocations, purges, sweeps and time. [`World`] puts the real cache and the
//! real leases together as `engine/` does; [`Model`] says what may come of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use keyward::{
    cache::{Cache, CacheKey, CacheSettings, Grant, Lookup},
    envelope::{Context, Dek},
    kek::Algorithm,
    lease::{Lease, Standing, Terms},
    secret::{Secret, shelves},
};
use proptest::prelude::*;

const TERMS: Terms =
    Terms { interval: Duration::from_secs(30), outage_grace: Duration::from_secs(120) };
const TTL: Duration = Duration::from_secs(300);
const VERSIONS: usize = 3;
const DEKS: u8 = 4;

/// Versions 0 and 1 are of one KEK, version 2 is of another.
fn kek_of(version: usize) -> usize {
    version / 2
}

fn bytes(version: usize, dek: u8) -> [u8; 32] {
    let mut bytes = [dek; 32];
    bytes[0] = version as u8 + 100;
    bytes
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    Good,
    Bad,
    Unreachable,
}

#[derive(Clone, Debug)]
enum Step {
    /// An unwrap begins: first check, and lookup.
    Begin {
        version: usize,
        dek: u8,
    },
    /// The backend answers one that waits; what it says is cached.
    Answer {
        which: usize,
        answer: Answer,
    },
    /// One that has its DEK is checked a second time, and answered.
    Release {
        which: usize,
    },
    /// The version proves itself, to a question of some seconds ago.
    Prove {
        version: usize,
        asked_ago: u64,
    },
    Deny {
        version: usize,
    },
    CannotAsk {
        version: usize,
    },
    Revoke {
        kek: usize,
    },
    Restore {
        kek: usize,
    },
    Purge {
        kek: usize,
    },
    /// What `Engine::tend` does.
    Tend,
    Pass {
        secs: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let (version, kek) = (0..VERSIONS, 0..2_usize);
    let answer = prop_oneof![
        6 => Just(Answer::Good), 1 => Just(Answer::Bad), 1 => Just(Answer::Unreachable),
    ];
    prop_oneof![
        8 => (version.clone(), 0..DEKS).prop_map(|(version, dek)| Step::Begin { version, dek }),
        6 => (0..8_usize, answer).prop_map(|(which, answer)| Step::Answer { which, answer }),
        6 => (0..8_usize).prop_map(|which| Step::Release { which }),
        5 => (version.clone(), 0..8_u64)
            .prop_map(|(version, asked_ago)| Step::Prove { version, asked_ago }),
        1 => version.clone().prop_map(|version| Step::Deny { version }),
        2 => version.prop_map(|version| Step::CannotAsk { version }),
        1 => kek.clone().prop_map(|kek| Step::Revoke { kek }),
        2 => kek.clone().prop_map(|kek| Step::Restore { kek }),
        1 => kek.prop_map(|kek| Step::Purge { kek }),
        1 => Just(Step::Tend),
        3 => prop_oneof![3 => 0..20_u64, 1 => 0..400_u64].prop_map(|secs| Step::Pass { secs }),
    ]
}

/// An unwrap that has begun.
struct Pending {
    version: usize,
    dek: u8,
    key: CacheKey,
    lease: Arc<Lease>,
    /// Which right of the version it began under; the model's name for the lease.
    right: u64,
    /// How often its KEK had been purged when it began.
    purges: u64,
    /// The model's word for the same: whether a purge of it came since.
    overtaken: bool,
    got: Option<Dek>,
    /// Whether memory answered.
    hit: bool,
}

/// The real parts, put together as the engine does.
struct World {
    cache: Cache,
    leases: [Option<Arc<Lease>>; VERSIONS],
    revoked: [bool; 2],
    purges: [u64; 2],
    now: Instant,
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let settings = CacheSettings { capacity: 64, ttl: TTL, idle: TTL };
        let (count, slots) = Cache::layout(settings.capacity);
        let (shelves, _) = shelves(count, slots, true).expect("memory");
        let cache = Cache::new(settings, shelves, now).expect("a cache");
        Self { cache, leases: Default::default(), revoked: [false; 2], purges: [0; 2], now }
    }

    /// All versions have the same ciphertexts, so that nothing but the lease tells whose
    /// DEK it is.
    fn key(&self, lease: &Lease, dek: u8) -> CacheKey {
        let context = Context::parse(b"").expect("no context");
        self.cache.key(Grant(lease.id()), Algorithm::RsaOaep256, &context, &[dek; 256])
    }

    /// As `Custody::end`.
    fn end(&mut self, version: usize) {
        if let Some(lease) = self.leases[version].take() {
            lease.end();
            self.cache.purge(|Grant(id)| id == lease.id());
        }
    }

    fn ids(&self, versions: impl Iterator<Item = usize>) -> Vec<u64> {
        versions.filter_map(|version| Some(self.leases[version].as_ref()?.id())).collect()
    }

    /// The DEKs of a lease that a lookup finds.
    fn resident(&self, lease: &Lease) -> usize {
        let found = |dek: &u8| {
            let key = self.key(lease, *dek);
            matches!(self.cache.get(&key, self.now), Lookup::Hit { .. })
        };
        (0..DEKS).filter(found).count()
    }
}

/// The rules, in the plainest form.
#[derive(Default)]
struct Model {
    /// Seconds since the start.
    now: u64,
    /// Counts up with each right that is granted, so that no two are the same.
    rights: u64,
    versions: [Option<Right>; VERSIONS],
    /// When what is cached was cached, by right and DEK. May name what is past its TTL, but
    /// never lacks what is there.
    cached: BTreeMap<(u64, u8), u64>,
}

#[derive(Clone, Copy)]
struct Right {
    name: u64,
    proven: u64,
    outage: bool,
}

impl Model {
    /// Whether anything at all may be released of the version now.
    fn allows(&self, version: usize) -> bool {
        self.versions[version].is_some_and(|right| {
            let grace = if right.outage { TERMS.outage_grace.as_secs() } else { 0 };
            self.now - right.proven <= TERMS.interval.as_secs() + grace
        })
    }

    fn in_outage(&self, version: usize) -> bool {
        self.versions[version].is_some_and(|right| right.outage)
    }

    /// Whether an unwrap that began under `right` may be answered.
    fn may_release(&self, version: usize, right: u64) -> bool {
        self.allows(version) && self.versions[version].is_some_and(|now| now.name == right)
    }

    /// Whether it is cached for sure: an entry's TTL is up to a tenth shorter than what is
    /// set, and counted in ticks.
    fn must_hit(&self, right: u64, dek: u8) -> bool {
        let since = self.cached.get(&(right, dek));
        since.is_some_and(|since| self.now - since < TTL.as_secs() * 9 / 10 - 1)
    }

    fn forget(&mut self, version: usize) {
        if let Some(right) = self.versions[version] {
            self.cached.retain(|(name, _), _| *name != right.name);
        }
    }
}

struct Run {
    world: World,
    model: Model,
    pending: Vec<Pending>,
    /// Leases that have ended.
    ended: Vec<Arc<Lease>>,
    /// What happened, so that a run can show that it reached something.
    seen: BTreeSet<&'static str>,
}

impl Run {
    fn new() -> Self {
        let (world, model) = (World::new(), Model::default());
        Self { world, model, pending: vec![], ended: vec![], seen: BTreeSet::new() }
    }

    fn take(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Begin { version, dek } => self.begin(version, dek)?,
            Step::Answer { which, answer } => self.answer(which, answer)?,
            Step::Release { which } => self.release(which)?,
            Step::Prove { version, asked_ago } => self.prove(version, asked_ago),
            Step::Deny { version } => self.end(version)?,
            Step::CannotAsk { version } => {
                if let Some(lease) = &self.world.leases[version] {
                    lease.note_outage(TERMS);
                }
                if let Some(right) = &mut self.model.versions[version] {
                    right.outage = true;
                }
            }
            Step::Revoke { kek } => {
                self.world.revoked[kek] = true;
                for version in (0..VERSIONS).filter(|version| kek_of(*version) == kek) {
                    self.end(version)?;
                }
            }
            Step::Restore { kek } => self.world.revoked[kek] = false,
            Step::Purge { kek } => self.purge(kek)?,
            Step::Tend => self.tend()?,
            Step::Pass { secs } => {
                self.world.now += Duration::from_secs(secs);
                self.model.now += secs;
            }
        }
        self.check()
    }

    fn begin(&mut self, version: usize, dek: u8) -> Result<(), TestCaseError> {
        let allowed = self.model.allows(version);
        let Some(lease) = self.world.leases[version].clone() else {
            prop_assert!(!allowed, "no lease, though the version has its right");
            return Ok(());
        };
        let outage = match lease.standing(self.world.now) {
            Standing::Live => false,
            Standing::Outage => true,
            Standing::Lapsed { .. } | Standing::Ended => {
                prop_assert!(!allowed, "refused, though the version has its right");
                self.seen.insert("refused");
                return Ok(());
            }
        };
        prop_assert!(allowed, "let in, though the version has no right");
        prop_assert_eq!(outage, self.model.in_outage(version));
        let right = self.model.versions[version].map_or(0, |right| right.name);
        let key = self.world.key(&lease, dek);
        let got = match self.world.cache.get(&key, self.world.now) {
            Lookup::Hit { dek: found, .. } => {
                let since = self.model.cached.get(&(right, dek));
                prop_assert!(since.is_some(), "a hit of what was never cached, or purged");
                let age = self.model.now - since.copied().unwrap_or_default();
                prop_assert!(age < TTL.as_secs(), "a hit after its TTL");
                self.seen.insert(if outage { "hit in an outage" } else { "hit" });
                Some(found)
            }
            Lookup::Miss | Lookup::Invalid if self.model.must_hit(right, dek) => {
                return Err(TestCaseError::fail("what is cached was not found"));
            }
            Lookup::Miss if outage => {
                self.seen.insert("miss in an outage");
                return Ok(());
            }
            Lookup::Miss => None,
            Lookup::Invalid => {
                self.seen.insert("known to be bad");
                return Ok(());
            }
        };
        let hit = got.is_some();
        if self.pending.len() < 8 {
            let purges = self.world.purges[kek_of(version)];
            let call =
                Pending { version, dek, key, lease, right, purges, overtaken: false, got, hit };
            self.pending.push(call);
        }
        Ok(())
    }

    fn answer(&mut self, which: usize, answer: Answer) -> Result<(), TestCaseError> {
        let World { cache, now, purges, .. } = &self.world;
        let waiting = self.pending.iter().position(|call| call.got.is_none());
        let Some(first) = waiting else { return Ok(()) };
        // Any of those that wait, not only the oldest.
        let waiting: Vec<_> =
            (first..self.pending.len()).filter(|i| self.pending[*i].got.is_none()).collect();
        let at = waiting[which % waiting.len()];
        let call = &mut self.pending[at];
        let (grant, lease) = (Grant(call.lease.id()), Arc::clone(&call.lease));
        // As `Fetch::remember`.
        let (before, purges) = (call.purges, purges[kek_of(call.version)]);
        let alive = || before == purges && lease.standing(*now).allows_release();
        match answer {
            Answer::Good => {
                let payload = Secret::copy_of(&bytes(call.version, call.dek));
                let dek = Dek::parse(payload).expect("a DEK");
                if cache.insert(&call.key, grant, &dek, *now, alive) {
                    prop_assert!(!call.overtaken, "cached, though a purge came meanwhile");
                    self.model.cached.insert((call.right, call.dek), self.model.now);
                } else {
                    let overtaken = call.overtaken && call.lease.standing(*now).allows_release();
                    self.seen.insert(if overtaken { "overtaken by a purge" } else { "not cached" });
                }
                call.got = Some(dek);
            }
            Answer::Bad => {
                cache.insert_invalid(&call.key, grant, *now, alive);
                if alive() {
                    self.model.cached.remove(&(call.right, call.dek));
                }
                self.pending.remove(at);
            }
            Answer::Unreachable => drop(self.pending.remove(at)),
        }
        Ok(())
    }

    fn release(&mut self, which: usize) -> Result<(), TestCaseError> {
        let ready: Vec<_> =
            (0..self.pending.len()).filter(|i| self.pending[*i].got.is_some()).collect();
        if ready.is_empty() {
            return Ok(());
        }
        let call = self.pending.remove(ready[which % ready.len()]);
        let released = call.lease.standing(self.world.now).allows_release();
        prop_assert_eq!(
            released,
            self.model.may_release(call.version, call.right),
            "version {} dek {} hit {}",
            call.version,
            call.dek,
            call.hit
        );
        let again = self.model.versions[call.version].is_some();
        match (released, again) {
            (true, _) => self.seen.insert("released"),
            (false, true) => self.seen.insert("held back, though restored or lapsed"),
            (false, false) => self.seen.insert("held back"),
        };
        if let Some(dek) = &call.got {
            let expected = bytes(call.version, call.dek);
            prop_assert_eq!(dek.secret().expose(), &expected[..], "another's DEK");
        }
        Ok(())
    }

    /// As `Kek::verify` with a good answer, and `Kek::learn`: nothing of a revoked KEK.
    fn prove(&mut self, version: usize, asked_ago: u64) {
        if self.world.revoked[kek_of(version)] {
            return;
        }
        // One reading comes after the other.
        let before = self.model.versions[version].map_or(0, |right| right.proven);
        let asked_ago = asked_ago.min(self.model.now - before);
        let asked = self.world.now - Duration::from_secs(asked_ago);
        let lease = self.world.leases[version].take();
        let lease = lease.filter(|lease| lease.renew(asked, TERMS));
        let renewed = lease.is_some();
        self.world.leases[version] = Some(lease.unwrap_or_else(|| Lease::grant(asked, TERMS)));
        let proven = self.model.now - asked_ago;
        let earlier = self.model.versions[version].filter(|_| renewed);
        if !renewed {
            self.model.rights += 1;
        }
        let name = earlier.map_or(self.model.rights, |right| right.name);
        self.model.versions[version] = Some(Right { name, proven, outage: false });
    }

    fn end(&mut self, version: usize) -> Result<(), TestCaseError> {
        let lease = self.world.leases[version].clone();
        self.world.end(version);
        self.model.forget(version);
        self.model.versions[version] = None;
        if let Some(lease) = lease {
            prop_assert_eq!(self.world.resident(&lease), 0, "resident after its end");
            self.ended.push(lease);
        }
        Ok(())
    }

    /// As `Kek::purge`.
    fn purge(&mut self, kek: usize) -> Result<(), TestCaseError> {
        self.world.purges[kek] += 1;
        let of_it = self.pending.iter_mut().filter(|call| kek_of(call.version) == kek);
        of_it.for_each(|call| call.overtaken = true);
        let of_kek = || (0..VERSIONS).filter(|version| kek_of(*version) == kek);
        let ids = self.world.ids(of_kek());
        self.world.cache.purge(|Grant(id)| ids.contains(&id));
        for version in of_kek() {
            self.model.forget(version);
            if let Some(lease) = &self.world.leases[version] {
                prop_assert_eq!(self.world.resident(lease), 0, "resident after a purge");
            }
        }
        Ok(())
    }

    /// As `Engine::tend`: what expired, then what stands under a lapsed lease.
    fn tend(&mut self) -> Result<(), TestCaseError> {
        let now = self.world.now;
        self.world.cache.sweep(now);
        for version in 0..VERSIONS {
            let Some(lease) = self.world.leases[version].clone() else { continue };
            if matches!(lease.standing(now), Standing::Lapsed { .. }) {
                self.world.cache.purge(|Grant(id)| id == lease.id());
                self.model.forget(version);
                prop_assert_eq!(self.world.resident(&lease), 0);
                self.seen.insert("wiped as it lapsed");
            }
        }
        let most = self.model.cached.values();
        let most = most.filter(|since| self.model.now - **since < TTL.as_secs()).count();
        let entries = self.world.cache.stats().entries as usize;
        prop_assert!(entries <= most, "{entries} are resident after a sweep, {most} may be");
        Ok(())
    }

    /// What holds after every step.
    fn check(&self) -> Result<(), TestCaseError> {
        let entries = self.world.cache.stats().entries as usize;
        let most = self.model.cached.len();
        prop_assert!(entries <= most, "{entries} are resident, {most} may be");
        for lease in &self.ended {
            prop_assert_eq!(lease.standing(self.world.now), Standing::Ended);
            prop_assert_eq!(self.world.resident(lease), 0, "back after its end");
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn nothing_is_released_that_the_rules_do_not_allow(
        steps in prop::collection::vec(step(), 0..120)
    ) {
        let mut run = Run::new();
        for version in 0..VERSIONS {
            run.take(Step::Prove { version, asked_ago: 0 })?;
        }
        for step in steps {
            run.take(step)?;
        }
        // A revoked KEK leaves nothing, whatever was under way.
        for kek in 0..2 {
            run.take(Step::Revoke { kek })?;
        }
        for which in 0..8 {
            run.take(Step::Answer { which, answer: Answer::Good })?;
            run.take(Step::Release { which: 0 })?;
        }
        prop_assert_eq!(run.world.cache.stats().entries, 0);
    }
}

/// The generator reaches every case that the property is about.
#[test]
fn the_steps_reach_what_they_are_for() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let mut seen = BTreeSet::new();
    for _ in 0..500 {
        let steps = prop::collection::vec(step(), 120).new_tree(&mut runner).expect("steps");
        let mut run = Run::new();
        steps.current().into_iter().for_each(|step| run.take(step).expect("it holds"));
        seen.append(&mut run.seen);
    }
    for case in [
        "refused",
        "hit",
        "hit in an outage",
        "miss in an outage",
        "known to be bad",
        "not cached",
        "overtaken by a purge",
        "released",
        "held back",
        "held back, though restored or lapsed",
        "wiped as it lapsed",
    ] {
        assert!(seen.contains(case), "never reached: {case}");
    }
}
