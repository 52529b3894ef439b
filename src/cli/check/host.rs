//! The machine: open files, core dumps, directories, memory that can be locked, the clock.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, SystemTime},
};

use rustix::fs::Access;

use super::report::{Group, Report};
use crate::{
    cache::Cache,
    config::Config,
    secret::{self, Protection},
    server,
};

/// When this was written, about: no clock that is right says less. 2026-11-01.
const PAST: Duration = Duration::from_secs(1_793_491_200);

pub(super) fn look(config: &Config, report: &mut Report) {
    open_files(config, report);
    core_dumps(report);
    socket(config, report);
    state(config, report);
    memory(config, report);
    clock(report);
}

fn open_files(config: &Config, report: &mut Report) {
    let (limit, needed) = (server::raise_nofile_limit(), server::nofile_needed(&config.server));
    match limit {
        Some(limit) if limit < needed => report.warn(
            Group::Host,
            "open files",
            format!("the limit is {limit}, and all connections may need {needed}"),
            "raise LimitNOFILE in the systemd unit (ulimit -Hn), or lower limits.connections",
        ),
        _ => report.pass(
            Group::Host,
            "open files",
            format!("{needed} may be needed, and are allowed"),
        ),
    }
}

fn core_dumps(report: &mut Report) {
    match secret::harden() {
        Ok(()) => report.pass(Group::Host, "core dumps", "can be turned off"),
        Err(error) => report.fail(
            Group::Host,
            "core dumps",
            format!("cannot be turned off: {error}"),
            "allow the sidecar prctl(PR_SET_DUMPABLE) and setrlimit, which a seccomp filter may forbid",
        ),
    }
}

fn socket(config: &Config, report: &mut Report) {
    let Some(socket) = &config.server.socket else { return };
    let directory = socket.path.parent().filter(|path| *path != Path::new(""));
    let directory = directory.unwrap_or(Path::new("."));
    let subject = "socket directory";
    match writable(directory) {
        Err(why) => report.fail(
            Group::Host,
            subject,
            format!("{}: {why}", directory.display()),
            "make it, and give it to the sidecar's user (RuntimeDirectory=keyward in a systemd unit)",
        ),
        Ok(mode) if mode & 0o002 != 0 && mode & 0o1000 == 0 => report.fail(
            Group::Host,
            subject,
            format!("{}: everybody may write there, and put a socket of their own", directory.display()),
            "chmod o-w, or name another directory in server.socket",
        ),
        Ok(_) => report.pass(Group::Host, subject, format!("{} can be used", directory.display())),
    }
}

fn state(config: &Config, report: &mut Report) {
    let subject = "state directory";
    let Some(state) = &config.state else {
        return report.warn(
            Group::Host,
            subject,
            "none is set: a KEK that is revoked would be back after a restart",
            "set `state` in [server]",
        );
    };
    if !state.exists() {
        let above = state.ancestors().skip(1).find(|path| path.exists());
        let parent = above.unwrap_or(Path::new("/"));
        return match writable(parent) {
            Ok(_) => report.pass(Group::Host, subject, format!("{} will be made", state.display())),
            Err(why) => report.fail(
                Group::Host,
                subject,
                format!("{} cannot be made: {}: {why}", state.display(), parent.display()),
                "make it, and give it to the sidecar's user (StateDirectory=keyward in a systemd unit)",
            ),
        };
    }
    let own = rustix::process::geteuid().as_raw();
    let others = |path: &Path| {
        fs::metadata(path)
            .is_ok_and(|found| found.mode() & 0o022 != 0 || ![0, own].contains(&found.uid()))
    };
    match writable(state) {
        Err(why) => report.fail(
            Group::Host,
            subject,
            format!("{}: {why}", state.display()),
            "give it to the sidecar's user, mode 0700",
        ),
        Ok(_) if others(state) || others(&state.join("revoked")) => report.fail(
            Group::Host,
            subject,
            format!("{}: others may write there, and give back what was revoked", state.display()),
            "give it to the sidecar's user, mode 0700, with all that is in it",
        ),
        Ok(_) => report.pass(Group::Host, subject, format!("{} can be used", state.display())),
    }
}

/// The mode of a directory that we may write to.
fn writable(path: &Path) -> Result<u32, String> {
    let found = fs::metadata(path).map_err(|error| error.kind().to_string())?;
    if !found.is_dir() {
        return Err("it is no directory".to_owned());
    }
    rustix::fs::access(path, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|_| "we may not write there".to_owned())?;
    Ok(found.mode())
}

fn memory(config: &Config, report: &mut Report) {
    let (count, slots) = Cache::layout(config.cache.settings.capacity);
    let subject = "cached DEKs";
    match secret::shelves(count, slots, config.cache.allow_unlocked) {
        Ok((_, protection @ (Protection::SecretMemory | Protection::Locked))) => {
            report.pass(
                Group::Memory,
                subject,
                format!("their memory can be locked ({protection})"),
            );
        }
        Ok((_, Protection::Unlocked)) => report.warn(
            Group::Memory,
            subject,
            "their memory cannot be locked: DEKs may be written to swap",
            "raise LimitMEMLOCK in the systemd unit (ulimit -l), and unset cache.allow_unlocked",
        ),
        Err(error) => {
            let fix = error.fix_or("lower cache.capacity");
            report.fail(
                Group::Memory,
                subject,
                format!("{}: {}", error.what(), error.cause()),
                &fix,
            );
        }
    }
}

fn clock(report: &mut Report) {
    let past = SystemTime::UNIX_EPOCH + PAST;
    match SystemTime::now() < past {
        true => report.fail(
            Group::Clock,
            "this host",
            "its clock is years behind: keys and certificates seem not to have begun",
            "set it, and have NTP keep it",
        ),
        false => report.pass(Group::Clock, "this host", "its clock is not years behind"),
    }
}
