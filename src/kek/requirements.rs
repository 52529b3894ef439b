//! What is asked of a key that belongs to a customer: by the rules of managed databases for
//! keys in a vault, and by the same ideas, from attributes, for keys on a token.
//!
//! Pure. The life cycle (`lifecycle.rs`) refuses what must not be used; this says, of every
//! key, what is amiss with it and how to mend it, also where it may be used all the same.
//! Sources: Azure SQL, PostgreSQL and Cosmos DB on customer-managed keys; PKCS#11 v3.1, 4.9.

use std::time::{Duration, SystemTime};

use super::{EXPIRY_NOTICE, Recovery, VersionInfo};

/// Days for which a vault should keep what was deleted.
const RETENTION_DAYS: u32 = 90;

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Pass,
    /// It should be better.
    Warn,
    /// It must be mended.
    Fail,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Requirement {
    /// RSA of 2048, 3072 or 4096 bits, or AES of 256.
    Size,
    /// The backend lets it unwrap.
    Enabled,
    /// Its start date has come.
    Activation,
    /// Its end date has not.
    Expiration,
    /// What is deleted in the vault can be recovered.
    SoftDelete,
    /// Nobody can purge it before that.
    PurgeProtection,
    /// For ninety days.
    Retention,
    /// It cannot be read out of the token.
    Sensitive,
    /// It cannot be wrapped out of the token, and never could.
    Extractable,
    /// It was made in the token.
    Origin,
}

impl Requirement {
    /// The name, for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::Enabled => "enabled",
            Self::Activation => "activation",
            Self::Expiration => "expiration",
            Self::SoftDelete => "soft-delete",
            Self::PurgeProtection => "purge-protection",
            Self::Retention => "retention",
            Self::Sensitive => "sensitive",
            Self::Extractable => "extractable",
            Self::Origin => "origin",
        }
    }
}

/// What there is to say of a key in the light of one requirement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The requirement.
    pub requirement: Requirement,
    /// How it is met.
    pub level: Level,
    /// In words.
    pub what: String,
    /// How to mend it; empty if it is met.
    pub fix: &'static str,
}

/// One finding for each requirement that concerns this key, at `now`.
pub fn findings(info: &VersionInfo, now: SystemTime) -> Vec<Finding> {
    let mut findings =
        vec![size(info), enabled(info), activation(info, now), expiration(info, now)];
    match &info.assurance.recovery {
        Some(recovery) => findings.extend(recoverable(recovery)),
        None => findings.extend(kept_in_token(info)),
    }
    findings
}

fn finding(
    requirement: Requirement,
    level: Level,
    what: impl Into<String>,
    fix: &'static str,
) -> Finding {
    let fix = if level == Level::Pass { "" } else { fix };
    Finding { requirement, level, what: what.into(), fix }
}

fn size(info: &VersionInfo) -> Finding {
    let (kind, level, fix) = match (&info.public_key, info.bits) {
        // A disabled key in a vault may not show what it is.
        (None, 0) => ("of a kind that it does not show", Level::Warn, "enable it"),
        (None, 256) => ("AES", Level::Pass, ""),
        (None, _) => ("AES", Level::Fail, "create an AES-256 or an RSA key, and rewrap to it"),
        (Some(_), 4096) => ("RSA", Level::Pass, ""),
        (Some(_), 2048 | 3072) => ("RSA", Level::Warn, "4096 bits are recommended"),
        (Some(_), _) => ("RSA", Level::Fail, "create a key of 2048, 3072 or 4096 bits"),
    };
    let what = match info.bits {
        0 => format!("the key is {kind}"),
        bits => format!("the key is {kind} with {bits} bits"),
    };
    finding(Requirement::Size, level, what, fix)
}

fn enabled(info: &VersionInfo) -> Finding {
    let fix = "`keyward key enable`; in a vault: `az keyvault key set-attributes --enabled true`";
    match info.enabled {
        true => finding(Requirement::Enabled, Level::Pass, "it is enabled", fix),
        false => finding(Requirement::Enabled, Level::Fail, "it is disabled", fix),
    }
}

fn activation(info: &VersionInfo, now: SystemTime) -> Finding {
    let begun = info.validity.not_before.is_none_or(|start| start <= now);
    let fix = "wait for its start date, or set an earlier one";
    match begun {
        true => finding(Requirement::Activation, Level::Pass, "its start date has come", fix),
        false => finding(Requirement::Activation, Level::Fail, "its start date has not come", fix),
    }
}

fn expiration(info: &VersionInfo, now: SystemTime) -> Finding {
    let (level, what) = match info.validity.not_after {
        None => (Level::Pass, "it has no end date".to_owned()),
        Some(end) => match end.duration_since(now) {
            Ok(left) if left.is_zero() => (Level::Fail, "it has expired".to_owned()),
            Ok(left) if left <= EXPIRY_NOTICE => {
                (Level::Warn, format!("it expires within {} days", days(left)))
            }
            Ok(left) => (Level::Pass, format!("it expires in {} days", days(left))),
            Err(_) => (Level::Fail, "it has expired".to_owned()),
        },
    };
    let fix = "set a later end date, then rotate it and rewrap";
    finding(Requirement::Expiration, level, what, fix)
}

fn days(left: Duration) -> u64 {
    left.as_secs().div_ceil(24 * 3600)
}

fn recoverable(recovery: &Recovery) -> Vec<Finding> {
    let Recovery { soft_delete, purge_protection, days } = *recovery;
    let deleted = match soft_delete {
        true => (Level::Pass, "what is deleted can be recovered"),
        false => (Level::Fail, "what is deleted is lost, and its data with it"),
    };
    let purged = match purge_protection {
        true => (Level::Pass, "nobody can purge it"),
        false => (Level::Fail, "the vault has no purge protection: a purge takes the data along"),
    };
    let kept = match days {
        Some(days) if days >= RETENTION_DAYS => (Level::Pass, format!("kept for {days} days")),
        Some(days) => (Level::Warn, format!("what is deleted is kept for {days} days only")),
        None => (Level::Warn, "the vault does not say how long it keeps what is deleted".into()),
    };
    vec![
        finding(Requirement::SoftDelete, deleted.0, deleted.1, "turn soft delete on for the vault"),
        finding(
            Requirement::PurgeProtection,
            purged.0,
            purged.1,
            "`az keyvault update --enable-purge-protection true`",
        ),
        finding(
            Requirement::Retention,
            kept.0,
            kept.1,
            "90 days are recommended, and chosen when the vault is made",
        ),
    ]
}

fn kept_in_token(info: &VersionInfo) -> Vec<Finding> {
    let kept = &info.assurance;
    let sensitive = match kept.sensitive {
        true => (Level::Pass, "CKA_SENSITIVE is set"),
        false => (Level::Fail, "CKA_SENSITIVE is not set: whoever logs in can read the key"),
    };
    let leaves = match (kept.extractable, kept.never_extractable) {
        (false, true) => (Level::Pass, "CKA_NEVER_EXTRACTABLE is set"),
        (false, false) => (Level::Warn, "CKA_NEVER_EXTRACTABLE is not set: it may have left"),
        (true, _) => (Level::Fail, "CKA_EXTRACTABLE is set: the key can be wrapped out"),
    };
    let origin = match kept.local && kept.always_sensitive {
        true => (Level::Pass, "it was made in the token (CKA_LOCAL)"),
        false => (Level::Warn, "the token does not say that it was made there (CKA_LOCAL)"),
    };
    let fix = "create a key with `keyward key create` and rewrap to it";
    vec![
        finding(Requirement::Sensitive, sensitive.0, sensitive.1, fix),
        finding(Requirement::Extractable, leaves.0, leaves.1, fix),
        finding(Requirement::Origin, origin.0, origin.1, fix),
    ]
}

#[cfg(test)]
mod tests {
    use super::{super::version::tests::info, *};
    use crate::kek::Assurance;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + 20_000 * DAY
    }

    /// What is not met by an AES key of a token that was changed so, worst first.
    fn amiss(change: impl FnOnce(&mut VersionInfo)) -> Vec<(Level, Requirement)> {
        let mut info = info("1", None);
        info.bits = 256;
        info.assurance = Assurance {
            sensitive: true,
            always_sensitive: true,
            never_extractable: true,
            local: true,
            ..Assurance::default()
        };
        change(&mut info);
        let findings = findings(&info, now());
        let bad = findings.into_iter().filter(|finding| finding.level != Level::Pass);
        bad.map(|finding| {
            assert!(!finding.fix.is_empty(), "{finding:?}");
            (finding.level, finding.requirement)
        })
        .collect()
    }

    #[test]
    fn a_key_of_a_token_is_judged_by_its_attributes() {
        use Requirement::{Activation, Enabled, Expiration, Extractable, Origin, Sensitive, Size};
        assert_eq!(amiss(|_| ()), []);
        assert_eq!(amiss(|info| info.bits = 128), [(Level::Fail, Size)]);
        assert_eq!(amiss(|info| info.enabled = false), [(Level::Fail, Enabled)]);
        let start = |at| move |info: &mut VersionInfo| info.validity.not_before = Some(at);
        assert_eq!(amiss(start(now() + DAY)), [(Level::Fail, Activation)]);
        assert_eq!(amiss(start(now())), []);
        let end = |at| move |info: &mut VersionInfo| info.validity.not_after = Some(at);
        assert_eq!(amiss(end(now())), [(Level::Fail, Expiration)]);
        assert_eq!(amiss(end(now() - DAY)), [(Level::Fail, Expiration)]);
        assert_eq!(amiss(end(now() + 30 * DAY)), [(Level::Warn, Expiration)]);
        assert_eq!(amiss(end(now() + 31 * DAY)), []);
        assert_eq!(amiss(|info| info.assurance.sensitive = false), [(Level::Fail, Sensitive)]);
        assert_eq!(amiss(|info| info.assurance.extractable = true), [(Level::Fail, Extractable)]);
        let was = |info: &mut VersionInfo| info.assurance.never_extractable = false;
        assert_eq!(amiss(was), [(Level::Warn, Extractable)]);
        assert_eq!(amiss(|info| info.assurance.local = false), [(Level::Warn, Origin)]);
    }

    #[test]
    fn a_key_in_a_vault_is_judged_by_what_becomes_of_it_when_it_is_deleted() {
        use Requirement::{PurgeProtection, Retention, SoftDelete};
        let kept = |soft_delete, purge_protection, days| {
            amiss(move |info| {
                let recovery = Recovery { soft_delete, purge_protection, days };
                info.assurance = Assurance { recovery: Some(recovery), ..Assurance::default() };
            })
        };
        assert_eq!(kept(true, true, Some(90)), []);
        assert_eq!(kept(true, true, Some(7)), [(Level::Warn, Retention)]);
        assert_eq!(kept(true, true, None), [(Level::Warn, Retention)]);
        assert_eq!(kept(true, false, Some(90)), [(Level::Fail, PurgeProtection)]);
        assert_eq!(
            kept(false, false, Some(90)),
            [(Level::Fail, SoftDelete), (Level::Fail, PurgeProtection)]
        );
    }
}
