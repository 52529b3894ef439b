//! Who may call, and over what: the policy and TLS.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::report::{Group, Report};
use crate::{
    auth::Grant,
    cli::show,
    config::Config,
    kek::KekName,
    op::{OPS, Op},
    server::{self, CertificateDates},
};

/// How long before its end a certificate is told to be ending.
const CERTIFICATE_NOTICE: Duration = Duration::from_secs(30 * 24 * 3600);

pub(super) fn look(config: &Config, report: &mut Report) {
    policy(config, report);
    tls(config, report);
}

fn policy(config: &Config, report: &mut Report) {
    let grants = config.policy.grants();
    let concerns = |grant: &Grant, kek: &KekName| grant.kek.iter().any(|one| one.matches(kek));
    for (n, grant) in grants.iter().enumerate() {
        let subject = format!("policy[{}]", n + 1);
        if !config.keks.iter().any(|kek| concerns(grant, &kek.name)) {
            let fix = "name a KEK that there is, or remove the entry";
            report.warn(Group::Policy, &subject, "it concerns no KEK that is configured", fix);
        }
        if OPS.iter().all(|spec| grant.may.contains(&spec.op)) {
            let fix = "give operators an entry of their own";
            report.warn(Group::Policy, &subject, "the same callers may do everything", fix);
        }
    }
    for kek in &config.keks {
        let name = kek.name.as_str();
        let may =
            |op| grants.iter().any(|grant| grant.may.contains(&op) && concerns(grant, &kek.name));
        match (may(Op::Unwrap), may(Op::Wrap) || may(Op::Generate)) {
            (true, true) => report.pass(Group::Policy, name, "there are callers who may use it"),
            (false, _) => report.fail(
                Group::Policy,
                name,
                "nobody may unwrap with it",
                "add a [[policy]] entry with may = [\"unwrap\"] for it",
            ),
            (true, false) => report.warn(
                Group::Policy,
                name,
                "nobody may wrap or generate with it",
                "add a [[policy]] entry, unless it is only read",
            ),
        }
        match may(Op::Revoke) && may(Op::Restore) {
            true => report.pass(Group::Policy, name, "somebody may revoke it, and restore it"),
            false => report.warn(
                Group::Policy,
                name,
                "nobody may take it away on this sidecar, or give it back",
                "add a [[policy]] entry for operators with may = [\"revoke\", \"restore\"]",
            ),
        }
    }
}

fn tls(config: &Config, report: &mut Report) {
    let Some(tcp) = &config.server.tcp else {
        return report.pass(Group::Tls, "server", "there is no TCP, only the Unix socket");
    };
    let subject = "server";
    let CertificateDates { not_before, not_after } = match server::check_tls(&tcp.tls) {
        Ok(dates) => dates,
        Err(error) => {
            let what = format!("{}: {}", error.what(), error.cause());
            return report.fail(Group::Tls, subject, what, error.fix().unwrap_or("see server.tls"));
        }
    };
    let [begin, end] = [not_before, not_after].map(|secs| UNIX_EPOCH + Duration::from_secs(secs));
    let (now, fix) = (SystemTime::now(), "replace it, and restart the sidecar");
    let date = show::date(end).unwrap_or_default();
    let what = format!("the certificate belongs to the key, and ends on {date}");
    if now < begin {
        report.fail(Group::Tls, subject, "the certificate has not begun", fix);
    } else if now >= end {
        report.fail(Group::Tls, subject, format!("the certificate has expired on {date}"), fix);
    } else if end.duration_since(now).is_ok_and(|left| left <= CERTIFICATE_NOTICE) {
        report.warn(Group::Tls, subject, what, fix);
    } else {
        report.pass(Group::Tls, subject, what);
    }
}
