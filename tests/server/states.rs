//! The states of a KEK, as `docs/customer-managed-keys.md` has them in a table, against a model
//! that knows nothing but that table: whatever happens to a key, in whatever order and with
//! whatever time in between, the engine answers as the table says.
//!
//! The engine is whole and its clock is virtual; the backend is the fake. A look at it is a
//! step like others, so that what is known may be behind what is so.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use keyward::{
    clock,
    envelope::WrappedDek,
    error::{Error, Reason},
    kek::{Condition, NewestDisabled, Validity},
    lease::Terms,
};
use proptest::prelude::*;
use tokio::{runtime, time::advance};

use super::support::{
    bench::{Bench, HOUR},
    fake::Fake,
};

/// No sum of whole seconds comes to a boundary.
const TERMS: Terms =
    Terms { interval: Duration::from_millis(30_500), outage_grace: Duration::from_millis(120_250) };

/// Less than DEKs are cached for.
const LONGEST: Duration = Duration::from_secs(3000);

const VERSIONS: u8 = 3;
const DEKS: u8 = 2;

/// What becomes of a version.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Good,
    Disabled,
    Expired,
    Early,
    Failing,
    Deleted,
}

/// What becomes of the whole key.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Denial {
    Deleted,
    Forbidden,
    Away,
}

impl Denial {
    fn reason(self) -> Reason {
        match self {
            Self::Deleted => Reason::KekNotFound,
            Self::Forbidden => Reason::KekRevoked,
            Self::Away => Reason::BackendUnreachable,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Turn(u8, Kind),
    Deny(Option<Denial>),
    Revoke,
    Restore,
    Look,
    Unwrap(u8, u8),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        4 => Just(Kind::Good), 2 => Just(Kind::Disabled), 1 => Just(Kind::Expired),
        1 => Just(Kind::Early), 1 => Just(Kind::Failing), 1 => Just(Kind::Deleted),
    ];
    let denial = prop_oneof![
        1 => Just(Some(Denial::Deleted)), 1 => Just(Some(Denial::Forbidden)),
        2 => Just(Some(Denial::Away)), 5 => Just(None),
    ];
    prop_oneof![
        5 => (1..=VERSIONS, kind).prop_map(|(version, kind)| Step::Turn(version, kind)),
        3 => denial.prop_map(Step::Deny),
        1 => Just(Step::Revoke),
        2 => Just(Step::Restore),
        8 => Just(Step::Look),
        8 => (1..=VERSIONS, 0..DEKS).prop_map(|(version, dek)| Step::Unwrap(version, dek)),
        3 => prop_oneof![3 => 0..25_u64, 1 => 0..170_u64].prop_map(Step::Pass),
    ]
}

/// A right to be used, as the last looks left it.
#[derive(Clone, Copy, Debug)]
struct Right {
    /// Different for each that was not there the moment before.
    name: u64,
    proven: Instant,
    outage: bool,
}

/// What is released under a right.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Released {
    Everything,
    Cached,
    Nothing(Reason),
}

impl Right {
    fn released(&self, now: Instant) -> Released {
        let age = now - self.proven;
        match self.outage {
            _ if age <= TERMS.interval && !self.outage => Released::Everything,
            true if age <= TERMS.interval + TERMS.outage_grace => Released::Cached,
            true => Released::Nothing(Reason::BackendUnreachable),
            false => Released::Nothing(Reason::KekUnproven),
        }
    }
}

/// What is known of the key.
#[derive(Debug)]
enum Known {
    /// Nothing of it does anything, for this reason.
    Dark(Reason),
    /// Each version, and its right if it has one.
    Versions(BTreeMap<u8, (Kind, Option<Right>)>),
}

/// The table.
struct Model {
    rule: NewestDisabled,
    there: BTreeMap<u8, Kind>,
    denial: Option<Denial>,
    revoked: bool,
    known: Known,
    rights: u64,
    cached: BTreeSet<(u64, u8)>,
}

impl Model {
    fn new(rule: NewestDisabled) -> Self {
        Self {
            rule,
            there: BTreeMap::from([(1, Kind::Good)]),
            denial: None,
            revoked: false,
            known: Known::Dark(Reason::KekUnproven),
            rights: 0,
            cached: BTreeSet::new(),
        }
    }

    fn look(&mut self, now: Instant) {
        match (self.revoked, self.denial) {
            (true, _) => {}
            (_, Some(Denial::Away)) => {
                if let Known::Versions(versions) = &mut self.known {
                    versions.values_mut().filter_map(|(_, right)| right.as_mut()).for_each(
                        // Whoever is late anyway is not helped by an outage.
                        |right| right.outage = true,
                    );
                }
            }
            (_, Some(denial)) => self.known = Known::Dark(denial.reason()),
            (_, None) => self.read(now),
        }
    }

    fn read(&mut self, now: Instant) {
        let had = |version| match &self.known {
            Known::Versions(versions) => versions.get(version).and_then(|(_, right)| *right),
            Known::Dark(_) => None,
        };
        let mut rights = self.rights;
        let mut versions = BTreeMap::new();
        for (version, kind) in &self.there {
            let right = (*kind == Kind::Good).then(|| {
                let name = had(version).map_or_else(
                    || {
                        rights += 1;
                        rights
                    },
                    |right| right.name,
                );
                Right { name, proven: now, outage: false }
            });
            versions.insert(*version, (*kind, right));
        }
        self.rights = rights;
        let newest = newest_first(&versions).find(|(_, kind, _)| decides(*kind));
        self.known = match newest {
            Some((_, Kind::Disabled, _)) if self.rule == NewestDisabled::Revokes => {
                Known::Dark(Reason::KekDisabled)
            }
            _ => Known::Versions(versions),
        };
    }

    fn unwrap(&mut self, version: u8, dek: u8, now: Instant) -> Result<(), Reason> {
        let versions = match &self.known {
            Known::Dark(reason) => return Err(*reason),
            Known::Versions(versions) => versions,
        };
        let (kind, right) = versions.get(&version).ok_or(Reason::KekVersionNotFound)?;
        refused(*kind)?;
        let right = right.ok_or(Reason::KekUnproven)?;
        let is_cached = !self.cached.insert((right.name, dek));
        let outcome = match right.released(now) {
            Released::Everything => Ok(()),
            Released::Cached if is_cached => Ok(()),
            Released::Cached => Err(Reason::BackendUnreachable),
            Released::Nothing(reason) => Err(reason),
        };
        if outcome.is_err() && !is_cached {
            self.cached.remove(&(right.name, dek));
        }
        outcome
    }

    fn wrap(&self, now: Instant) -> Result<u8, Reason> {
        let versions = match &self.known {
            Known::Dark(reason) => return Err(*reason),
            Known::Versions(versions) => versions,
        };
        let decisive = newest_first(versions).find(|(_, kind, _)| decides(*kind));
        let (version, kind, right) =
            decisive.or_else(|| newest_first(versions).next()).expect("a key has a version");
        refused(kind)?;
        match right.ok_or(Reason::KekUnproven)?.released(now) {
            Released::Everything | Released::Cached => Ok(version),
            Released::Nothing(reason) => Err(reason),
        }
    }

    fn condition(&self, now: Instant) -> (Condition, Option<Reason>) {
        let versions = match &self.known {
            Known::Dark(reason) => return (Condition::Dark, Some(*reason)),
            Known::Versions(versions) => versions,
        };
        let of = |(_, kind, right): (u8, Kind, Option<Right>)| match (refused(kind), right) {
            (Err(reason), _) => Released::Nothing(reason),
            (Ok(()), None) => Released::Nothing(Reason::KekUnproven),
            (Ok(()), Some(right)) => right.released(now),
        };
        let released: Vec<_> = newest_first(versions).map(of).collect();
        if released.contains(&Released::Everything) {
            (Condition::Serving, None)
        } else if released.contains(&Released::Cached) {
            (Condition::Grace, Some(Reason::BackendUnreachable))
        } else {
            let Some(Released::Nothing(reason)) = released.first() else { panic!("no version") };
            (Condition::Dark, Some(*reason))
        }
    }
}

/// One that has not begun says so by its date, and so is the newest.
fn newest_first(
    versions: &BTreeMap<u8, (Kind, Option<Right>)>,
) -> impl Iterator<Item = (u8, Kind, Option<Right>)> {
    let mut versions: Vec<_> =
        versions.iter().map(|(version, (kind, right))| (*version, *kind, *right)).collect();
    versions.sort_by_key(|(version, kind, _)| (*kind == Kind::Early, *version));
    versions.into_iter().rev()
}

fn decides(kind: Kind) -> bool {
    matches!(kind, Kind::Good | Kind::Disabled | Kind::Expired)
}

fn refused(kind: Kind) -> Result<(), Reason> {
    match kind {
        Kind::Good => Ok(()),
        Kind::Disabled => Err(Reason::KekDisabled),
        Kind::Expired => Err(Reason::KekExpired),
        Kind::Early => Err(Reason::KekNotYetValid),
        Kind::Failing => Err(Reason::BackendMisconfigured),
        Kind::Deleted => unreachable!("it is not there"),
    }
}

struct Run {
    bench: Arc<Bench>,
    model: Model,
    /// By version and number; the same for every run.
    wrapped: BTreeMap<(u8, u8), WrappedDek>,
    began: Instant,
    seen: BTreeSet<&'static str>,
}

/// What each version wrapped, when it was current.
async fn wrapped_by_each() -> BTreeMap<(u8, u8), WrappedDek> {
    let bench = Bench::of(Fake::new(), TERMS);
    let mut wrapped = BTreeMap::new();
    for version in 1..=VERSIONS {
        bench.backend.hold_versions([version]);
        bench.prove().await;
        for dek in 0..DEKS {
            let number = u64::from(version * 10 + dek);
            wrapped.insert((version, dek), bench.wrap(number).await.expect("a wrapped DEK"));
        }
    }
    wrapped
}

impl Run {
    async fn new(rule: NewestDisabled) -> Self {
        let wrapped = wrapped_by_each().await;
        let bench = Bench::with_rule(Fake::new(), TERMS, rule);
        let (model, began) = (Model::new(rule), clock::now());
        Self { bench, model, wrapped, began, seen: BTreeSet::new() }
    }

    async fn take(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Turn(version, kind) => self.turn(version, kind),
            Step::Deny(denial) => {
                self.model.denial = denial;
                let error = denial.map(|denial| Error::new(denial.reason(), "as it was told"));
                self.bench.backend.deny(error);
            }
            Step::Revoke => {
                self.model.revoked = true;
                self.model.known = Known::Dark(Reason::KekRevoked);
                self.bench.revoke().await;
            }
            Step::Restore => {
                if self.model.revoked {
                    self.model.revoked = false;
                    self.model.known = Known::Dark(Reason::KekUnproven);
                }
                self.bench.restore().await;
            }
            Step::Look => self.look().await,
            Step::Unwrap(version, dek) => {
                let answer = self.bench.unwrap(&self.wrapped[&(version, dek)]).await;
                let answer = answer.map(drop).map_err(|error| error.reason());
                let expected = self.model.unwrap(version, dek, clock::now());
                self.seen.insert(expected.map_or_else(Reason::as_str, |()| "unwrapped"));
                prop_assert_eq!(answer, expected, "version {} DEK {}", version, dek);
            }
            Step::Pass(secs) => {
                let pass = Duration::from_secs(secs);
                if clock::now() + pass < self.began + LONGEST {
                    advance(pass).await;
                }
            }
        }
        self.check().await
    }

    /// Changes a version at the backend; the key keeps one at least.
    fn turn(&mut self, version: u8, kind: Kind) {
        let there = &mut self.model.there;
        match kind {
            Kind::Deleted if there.len() > 1 => _ = there.remove(&version),
            Kind::Deleted => {}
            kind => _ = there.insert(version, kind),
        }
        let backend = &self.bench.backend;
        backend.hold_versions(there.keys().copied());
        let day = Duration::from_secs(24 * 3600);
        let now = SystemTime::now();
        for (version, kind) in there {
            match kind {
                Kind::Disabled => backend.disable(*version),
                Kind::Failing => backend.fail(*version),
                Kind::Expired => backend
                    .date(*version, Validity { not_before: None, not_after: Some(now - day) }),
                Kind::Early => backend
                    .date(*version, Validity { not_before: Some(now + day), not_after: None }),
                Kind::Good | Kind::Deleted => {}
            }
        }
    }

    async fn look(&mut self) {
        // A backend that was away is not asked at once again.
        for _ in 0..30 {
            let asked = clock::now();
            let looked = self.bench.engine.verify(&self.bench.kek, asked + HOUR).await;
            let away = looked.is_err_and(|error| error.reason() == Reason::BackendUnreachable);
            if !away || self.model.denial == Some(Denial::Away) || self.model.revoked {
                return self.model.look(asked);
            }
            self.model.denial.replace(Denial::Away);
            self.model.look(asked);
            self.model.denial = None;
            advance(Duration::from_secs(1)).await;
        }
        panic!("the backend is there, and is not asked");
    }

    /// How it stands, and whether it wraps.
    async fn check(&mut self) -> Result<(), TestCaseError> {
        let stand = self.bench.stand();
        let expected = self.model.condition(clock::now());
        prop_assert_eq!((stand.condition, stand.reason), expected);
        self.seen.insert(stand.condition.as_str());
        let wrapped = self.bench.wrap(7).await;
        let wrapped = wrapped.map(|wrapped| wrapped.version.to_string());
        let expected = self.model.wrap(clock::now()).map(|version| format!("{version:02x}"));
        prop_assert_eq!(wrapped.map_err(|error| error.reason()), expected);
        Ok(())
    }
}

fn run(rule: NewestDisabled, steps: &[Step]) -> Result<BTreeSet<&'static str>, TestCaseError> {
    let runtime = runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let mut run = Run::new(rule).await;
        for step in steps {
            run.take(*step).await?;
        }
        // Whatever it came to: what is good again is served again.
        run.take(Step::Deny(None)).await?;
        run.take(Step::Restore).await?;
        run.take(Step::Turn(VERSIONS, Kind::Good)).await?;
        run.take(Step::Look).await?;
        prop_assert_eq!(run.bench.stand().condition, Condition::Serving);
        for version in 1..=VERSIONS {
            run.take(Step::Unwrap(version, 0)).await?;
        }
        Ok(run.seen)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn the_engine_answers_as_the_table_says(
        steps in prop::collection::vec(step(), 1..60),
        stops_wraps in any::<bool>(),
    ) {
        let rule = match stops_wraps {
            true => NewestDisabled::StopsWraps,
            false => NewestDisabled::Revokes,
        };
        run(rule, &steps)?;
    }
}

/// The model reaches every state, or it would prove little.
#[test]
fn every_state_of_the_table_is_reached() {
    let away = [Step::Deny(Some(Denial::Away)), Step::Look];
    let steps = [
        &[Step::Look, Step::Unwrap(1, 0)][..],
        &away,
        &[Step::Unwrap(1, 0), Step::Unwrap(1, 1), Step::Pass(160), Step::Unwrap(1, 0)],
        &[Step::Deny(None), Step::Look, Step::Pass(40), Step::Unwrap(1, 0)],
        &[Step::Turn(2, Kind::Failing), Step::Look, Step::Unwrap(2, 0), Step::Unwrap(3, 0)],
        &[Step::Turn(2, Kind::Early), Step::Look, Step::Unwrap(2, 0)],
        &[Step::Turn(2, Kind::Expired), Step::Look, Step::Unwrap(2, 0)],
        &[Step::Turn(2, Kind::Disabled), Step::Look, Step::Unwrap(1, 0)],
        &[Step::Deny(Some(Denial::Deleted)), Step::Look, Step::Unwrap(1, 0)],
        &[Step::Deny(Some(Denial::Forbidden)), Step::Look, Step::Unwrap(1, 0)],
        &[Step::Revoke, Step::Unwrap(1, 0)],
    ];
    let seen = run(NewestDisabled::Revokes, &steps.concat()).unwrap();
    let all = [
        "unwrapped",
        "SERVING",
        "GRACE",
        "DARK",
        "BACKEND_UNREACHABLE",
        "KEK_UNPROVEN",
        "BACKEND_MISCONFIGURED",
        "KEK_VERSION_NOT_FOUND",
        "KEK_NOT_YET_VALID",
        "KEK_EXPIRED",
        "KEK_DISABLED",
        "KEK_NOT_FOUND",
        "KEK_REVOKED",
    ];
    for state in all {
        assert!(seen.contains(state), "{state} of {seen:?}");
    }
}
