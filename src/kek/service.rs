//! The life of a KEK that the service owns rather than a customer: when its next version is
//! due, when a version ends, and which may be retired.
//!
//! Pure. It never destroys: that is left to a person.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{KekName, Usage, VersionId, VersionInfo};
use crate::error::{Error, Reason};

/// Who owns a KEK. Fixed when it is first used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A customer does: Keyward never creates, rotates, disables or destroys it.
    CustomerManaged,
    /// The service does, by these rules.
    ServiceManaged(ServiceRules),
}

impl Mode {
    /// The name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CustomerManaged => "customer-managed",
            Self::ServiceManaged(_) => "service-managed",
        }
    }

    /// Whether this is the mode that was recorded when `kek` was first used. `Err` explains
    /// why it may not be used in another.
    pub fn check_kept(self, kek: &KekName, recorded: &str) -> Result<(), Error> {
        let (what, fix) = match recorded {
            same if same == self.as_str() => return Ok(()),
            "customer-managed" | "service-managed" => (
                format!("KEK {kek} has been {recorded} since it was first used, and stays so"),
                format!(
                    "set mode = \"{recorded}\" again; for a key in another mode configure another KEK, and rewrap to it"
                ),
            ),
            _ => (
                format!("what is recorded of KEK {kek} does not say who owns it"),
                "have it say customer-managed or service-managed, whichever the KEK is".to_owned(),
            ),
        };
        Err(Error::new(Reason::BackendMisconfigured, what).with_fix(fix))
    }

    /// The rules, if the service owns it.
    pub fn rules(self) -> Option<ServiceRules> {
        match self {
            Self::CustomerManaged => None,
            Self::ServiceManaged(rules) => Some(rules),
        }
    }
}

/// By what rules the service keeps a KEK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceRules {
    /// Bits of an RSA key.
    pub rsa_bits: u32,
    /// How long a version is current.
    pub rotate_every: Duration,
    /// How long a version does anything at all, if that is limited. Longer than
    /// `rotate_every`.
    pub expire_after: Option<Duration>,
    /// For how long an older version must not have unwrapped to be disabled; `None` leaves
    /// them enabled. This node's census is all that is known, so it must be the only one.
    pub retire_quiet: Option<Duration>,
}

/// What is to be done for a KEK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Make its first version.
    Create,
    /// Make its next version.
    Rotate,
    /// Disable a version that nobody uses.
    Retire(VersionId),
    /// Nothing now.
    Nothing,
}

impl ServiceRules {
    /// The next task, for a KEK of these versions, newest first, of which `usage` says how
    /// they were used since the census began.
    pub fn next_task<'a>(
        &self,
        newest_first: impl IntoIterator<Item = &'a VersionInfo>,
        usage: impl Fn(&VersionId) -> Usage,
        census_since: SystemTime,
        now: SystemTime,
    ) -> Task {
        let mut versions = newest_first.into_iter();
        let Some(newest) = versions.next() else { return Task::Create };
        let age = |at| now.duration_since(at).unwrap_or_default();
        if !newest.enabled {
            // Whoever disabled it took the KEK away: a new version would give it back.
            return Task::Nothing;
        }
        if made_at(newest).is_some_and(|made| age(made) >= self.rotate_every) {
            return Task::Rotate;
        }
        let Some(quiet_for) = self.retire_quiet else { return Task::Nothing };
        let is_quiet = |info: &&VersionInfo| {
            // Not what was current until a moment ago: DEKs are still being moved.
            let used = usage(&info.id).last.unwrap_or(census_since);
            age(used) >= quiet_for && made_at(newest).is_some_and(|made| age(made) >= quiet_for)
        };
        let quiet = versions.filter(|info| info.enabled).find(is_quiet);
        quiet.map_or(Task::Nothing, |info| Task::Retire(info.id.clone()))
    }

    /// The version as it counts under these rules: it ends when they say, if its backend
    /// does not say sooner.
    #[must_use]
    pub fn limit(&self, mut info: VersionInfo) -> VersionInfo {
        let end = made_at(&info).zip(self.expire_after).map(|(made, life)| made + life);
        info.validity.not_after = match (info.validity.not_after, end) {
            (Some(there), Some(end)) => Some(there.min(end)),
            (there, end) => there.or(end),
        };
        info
    }
}

/// When a version was made: as its backend says; by its start date; or by its name, where
/// Keyward has named it after the time. `None` if nobody knows.
pub fn made_at(info: &VersionInfo) -> Option<SystemTime> {
    info.created.or(info.validity.not_before).or_else(|| named_at(&info.id))
}

/// The time in a `CKA_ID` that Keyward made: the first 48 of its last 128 bits, in
/// milliseconds.
fn named_at(id: &VersionId) -> Option<SystemTime> {
    let text = id.as_str();
    let start = text.len().checked_sub(32)?;
    let millis = u64::from_str_radix(text.get(start..start + 12)?, 16).ok()?;
    // From 2020 to 2100: what is outside of that is no time.
    let range = 1_577_836_800_000..4_102_444_800_000_u64;
    range.contains(&millis).then(|| UNIX_EPOCH + Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::{super::version::tests::info, *};
    use crate::kek::VersionSet;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn at(day: u32) -> SystemTime {
        UNIX_EPOCH + day * DAY
    }

    fn rules() -> ServiceRules {
        ServiceRules {
            rsa_bits: 3072,
            rotate_every: 90 * DAY,
            expire_after: None,
            retire_quiet: Some(30 * DAY),
        }
    }

    /// The task at day 1000, for versions made on these days, last used on those.
    fn task(rules: ServiceRules, versions: &[(u64, bool, Option<u32>)]) -> Task {
        let of = |n: usize| VersionId::parse(&format!("v{n}")).unwrap();
        let infos = versions.iter().enumerate().map(|(n, (day, enabled, _))| VersionInfo {
            id: of(n),
            enabled: *enabled,
            ..info("x", Some(*day))
        });
        let infos = VersionSet::new(infos.collect()).unwrap();
        let usage = |id: &VersionId| {
            let n: usize = id.as_str()[1..].parse().unwrap();
            Usage { last: versions[n].2.map(at), ..Usage::default() }
        };
        rules.next_task(infos.iter(), usage, at(500), at(1000))
    }

    fn retire(n: usize) -> Task {
        Task::Retire(VersionId::parse(&format!("v{n}")).unwrap())
    }

    #[test]
    fn a_version_is_made_when_the_newest_is_old() {
        assert_eq!(task(rules(), &[]), Task::Create);
        assert_eq!(task(rules(), &[(911, true, None)]), Task::Nothing);
        assert_eq!(task(rules(), &[(910, true, None)]), Task::Rotate);
        assert_eq!(task(rules(), &[(910, true, None), (999, true, None)]), Task::Nothing);
        // Made in the future, by a clock that was wrong: not old.
        assert_eq!(task(rules(), &[(1001, true, None)]), Task::Nothing);
    }

    #[test]
    fn what_was_taken_away_is_not_given_back_by_a_rotation() {
        assert_eq!(task(rules(), &[(100, false, None)]), Task::Nothing);
        assert_eq!(task(rules(), &[(100, true, None), (200, false, None)]), Task::Nothing);
    }

    #[test]
    fn a_version_is_retired_when_nobody_has_used_it_for_long_enough() {
        let newest = (960, true, Some(999));
        assert_eq!(task(rules(), &[newest, (800, true, Some(970))]), retire(1));
        assert_eq!(task(rules(), &[newest, (800, true, Some(971))]), Task::Nothing);
        assert_eq!(task(rules(), &[newest, (800, false, Some(1))]), Task::Nothing, "it is already");
        assert_eq!(task(rules(), &[newest, (800, true, None)]), retire(1), "counted for long");
        let young = (980, true, Some(999));
        assert_eq!(task(rules(), &[young, (800, true, Some(900))]), Task::Nothing);
        let never = ServiceRules { retire_quiet: None, ..rules() };
        assert_eq!(task(never, &[newest, (800, true, Some(1))]), Task::Nothing);
    }

    #[test]
    fn a_version_ends_when_the_rules_say_or_sooner() {
        let limited = ServiceRules { expire_after: Some(100 * DAY), ..rules() };
        let ends = |change: fn(&mut VersionInfo)| {
            let mut info = info("1", Some(10));
            change(&mut info);
            limited.limit(info).validity.not_after
        };
        assert_eq!(ends(|_| ()), Some(at(110)));
        assert_eq!(ends(|info| info.validity.not_after = Some(at(50))), Some(at(50)));
        assert_eq!(ends(|info| info.validity.not_after = Some(at(200))), Some(at(110)));
        assert_eq!(ends(|info| info.created = Some(at(20))), Some(at(120)));
        assert_eq!(rules().limit(info("1", Some(10))).validity.not_after, None);
    }

    #[test]
    fn the_name_that_keyward_gives_tells_when() {
        let named = |id: &str| named_at(&VersionId::parse(id).unwrap());
        // 2026-11-24T00:00:00Z in milliseconds is 0x01a20b6cf800.
        let at = UNIX_EPOCH + Duration::from_millis(0x01a2_0b6c_f800);
        assert_eq!(named("01a20b6cf800ffffffffffffffffffff"), Some(at));
        assert_eq!(named("0001a20b6cf800ffffffffffffffffffff"), Some(at), "made longer");
        assert_eq!(named("ffa20b6cf800ffffffffffffffffffff"), None);
        assert_eq!(named("a1"), None);
    }
}
