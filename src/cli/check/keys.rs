//! Backends, the KEKs in them, and the rights that a sidecar has there.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::time::timeout;

use super::report::{Group, Report};
use crate::{
    app,
    backend::{Backend, Service},
    config::{BackendConfig, Config, KekConfig},
    error::{Error, Reason},
    kek::{
        Level, NewestDisabled, Proof, Version, VersionInfo, VersionSet, check_not_taken_away,
        current, findings,
    },
};

/// How long a backend may take to be opened, or to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Versions of one KEK that are proven, newest first.
const PROVEN_MAX: usize = 8;

/// From how far off a clock is a reason to look, and from where dates cannot be relied on.
const SKEW_WARN: i64 = 60;
const SKEW_FAIL: i64 = 300;

pub(super) async fn look(config: &Config, report: &mut Report) {
    let mut services = 0;
    for settings in &config.backends {
        let name = settings.name();
        let keks = config.keks.iter().filter(|kek| kek.backend == name);
        match open(settings).await {
            Ok(backend) => {
                report.pass(
                    Group::Hsm,
                    name,
                    format!("the {} backend can be opened", backend.kind()),
                );
                for kek in keks {
                    look_at_kek(kek, backend.as_ref(), report).await;
                }
                if let Some(service) = backend.service() {
                    services += 1;
                    look_at_clock(name, service, report);
                }
                // One that hangs is left to the end of the process.
                let _hangs = timeout(PATIENCE, backend.close()).await;
            }
            Err(error) => {
                failed(Group::Hsm, name, &error, report);
                for kek in keks {
                    let why = format!("backend {name} cannot be opened");
                    report.skip(Group::Keks, kek.name.as_str(), &why);
                    report.skip(Group::Permissions, kek.name.as_str(), &why);
                }
            }
        }
    }
    if services == 0 {
        report.skip(Group::Clock, "vaults", "there is none whose clock could be compared");
    }
}

async fn open(settings: &BackendConfig) -> Result<Arc<dyn Backend>, Error> {
    let settings = settings.clone();
    let opening = tokio::task::spawn_blocking(move || app::build_backend(&settings));
    match timeout(PATIENCE, opening).await {
        Ok(Ok(opened)) => opened,
        Ok(Err(_)) => Err(Error::new(Reason::Internal, "opening it ended early")),
        Err(_) => {
            let what = format!("it was not opened within {} s", PATIENCE.as_secs());
            Err(Error::new(Reason::BackendUnreachable, what)
                .with_fix("see whether the module, its daemon or the network hangs"))
        }
    }
}

async fn look_at_kek(kek: &KekConfig, backend: &dyn Backend, report: &mut Report) {
    let name = kek.name.as_str();
    match backend.versions(&kek.key, kek.algorithm, deadline()).await {
        Ok(found) => look_at_versions(kek, found, backend, report).await,
        Err(error) => failed(Group::Keks, name, &error, report),
    }
    if let Some(register) = backend.register() {
        let recorded = register.mode_of(&kek.key.label, deadline()).await;
        let kept = recorded.and_then(|recorded| match recorded {
            Some(recorded) => kek.mode.check_kept(&kek.name, &recorded),
            None => Ok(()),
        });
        match kept {
            Ok(()) => report.pass(Group::Keks, name, format!("it is {}", kek.mode.as_str())),
            Err(error) => failed(Group::Keks, name, &error, report),
        }
    }
    match backend.service() {
        Some(service) => {
            for right in service.try_rights(&kek.key, kek.algorithm, deadline()).await {
                match right.outcome {
                    Ok(()) => {
                        report.pass(Group::Permissions, name, format!("{} works", right.name))
                    }
                    Err(error) => {
                        let what = format!("{} does not work: {error}", right.name);
                        report.fail(Group::Permissions, name, what, fix_of(&error));
                    }
                }
            }
        }
        // A token knows one right: to be logged in, which opening it has shown.
        None => report.pass(Group::Permissions, name, "the token's user is logged in"),
    }
}

async fn look_at_versions(
    kek: &KekConfig,
    found: Vec<VersionInfo>,
    backend: &dyn Backend,
    report: &mut Report,
) {
    let name = kek.name.as_str();
    let infos = match VersionSet::new(found) {
        Ok(infos) => infos,
        Err(twin) => {
            let what = format!("two versions are both called {twin}");
            return report.fail(Group::Keks, name, what, "give each a CKA_ID of its own");
        }
    };
    let mut versions = Vec::new();
    for (n, info) in infos.iter().enumerate() {
        let proof = match n < PROVEN_MAX && info.enabled {
            true => match backend.prove(info, kek.algorithm, deadline()).await {
                Ok(at) => Proof::Proven { at },
                Err(error) => Proof::Failed(error),
            },
            false => Proof::Unproven,
        };
        versions.push(Version::new(Arc::new(info.clone()), proof));
    }
    let now = SystemTime::now();
    let taken = check_not_taken_away(versions.iter(), kek.newest_disabled, now);
    match taken.and_then(|()| current(versions.iter(), now)) {
        Ok(usable) => {
            let id = &usable.info().id;
            let what = format!("version {id} wraps and unwraps, of {} there are", versions.len());
            report.pass(Group::Keks, name, what);
            requirements(name, usable.info(), now, report);
        }
        Err(error) => {
            failed(Group::Keks, name, &error, report);
            if let Some(newest) = versions.first() {
                requirements(name, newest.info(), now, report);
            }
        }
    }
    for version in versions.iter().skip(1) {
        if let Proof::Failed(error) = version.proof() {
            let what = format!("version {} does not unwrap: {error}", version.info().id);
            report.warn(Group::Keks, name, what, fix_of(error));
        }
    }
    if kek.newest_disabled == NewestDisabled::StopsWraps {
        report.warn(
            Group::Keks,
            name,
            "disabling its newest version would not revoke it (newest_disabled = \"stops-wraps\")",
            "leave newest_disabled out, unless its owner knows",
        );
    }
}

/// What there is to say of the version that counts.
fn requirements(name: &str, info: &VersionInfo, now: SystemTime, report: &mut Report) {
    let findings = findings(info, now);
    let met = findings.iter().filter(|finding| finding.level == Level::Pass);
    let met: Vec<_> = met.map(|finding| finding.requirement.as_str()).collect();
    if !met.is_empty() {
        report.pass(Group::Keks, name, format!("meets the requirements {}", met.join(", ")));
    }
    for finding in findings.iter().filter(|finding| finding.level != Level::Pass) {
        let what = format!("{}: {}", finding.requirement.as_str(), finding.what);
        report.add(Group::Keks, name, Some(finding.level), what, finding.fix);
    }
}

fn look_at_clock(name: &str, service: &dyn Service, report: &mut Report) {
    let fix = "have NTP keep this host's clock: end dates, tokens and certificates go by it";
    match service.clock_ahead() {
        None => report.skip(Group::Clock, name, "it has not said what time it is"),
        Some(ahead) => {
            let what = format!("its clock and this host's are {} s apart", ahead.abs());
            match ahead.abs() {
                SKEW_FAIL.. => report.fail(Group::Clock, name, what, fix),
                SKEW_WARN.. => report.warn(Group::Clock, name, what, fix),
                _ => report.pass(Group::Clock, name, what),
            }
        }
    }
}

/// What an operator is told of an error: also what callers are not.
fn failed(group: Group, subject: &str, error: &Error, report: &mut Report) {
    let what = match error.detail() {
        Some(detail) => format!("{error} ({detail})"),
        None => error.to_string(),
    };
    report.fail(group, subject, what, fix_of(error));
}

fn fix_of(error: &Error) -> &str {
    error.fix().unwrap_or("see what is wrong there")
}

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}
