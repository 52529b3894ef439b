//! Looks after KEKs that the service owns: makes their first version and the next ones, and
//! disables old ones that nobody uses, by the rules (`kek::ServiceRules`).
//!
//! Several sidecars may share a KEK. Each waits a while of its own before it does anything,
//! looks again, and does what is still to be done: mostly one of them does it, and if two do,
//! there is one version more.
//!
//! Invariants: it touches no KEK that a customer owns, or that is revoked; it destroys nothing;
//! what fails is tried again at the next look, and told once.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::time::sleep;
use tracing::{info, warn};

use super::{
    Engine,
    catalog::{Kek, Known},
    rounds::Look,
};
use crate::{
    backend::{KeyKind, NewKey, Officer, jitter},
    clock,
    error::{Error, Reason},
    kek::{Family, KeyRef, ServiceRules, Task},
};

/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// How long until it looks again at a KEK that was not read yet.
const UNREAD: Duration = Duration::from_secs(1);

/// Longest that it waits between seeing that something is to be done and looking again. A
/// key that is not there is waited for.
const HOLD_BACK: Duration = Duration::from_secs(60);
const HOLD_BACK_CREATION: Duration = Duration::from_secs(2);

/// How long a task may take: making an RSA key takes a small HSM a minute.
const PATIENCE: Duration = Duration::from_secs(300);

/// Looks after one KEK, until it is dropped.
pub(super) async fn look_after(engine: Arc<Engine>, kek: Arc<Kek>, rules: ServiceRules) {
    let mut told = None;
    loop {
        let pause = match next(&engine, &kek, rules) {
            None => UNREAD,
            Some(Task::Nothing) => LOOK_EVERY.mul_f64(0.75 + jitter() / 2.0),
            Some(task) => {
                sleep(hold_back(&task)).await;
                let done = once_more(&engine, &kek, rules, &task).await;
                tell(&kek, &task, &mut told, done.as_ref().err());
                match done {
                    // What was made is to be found, and may be followed by something else.
                    Ok(()) => UNREAD,
                    Err(_) => LOOK_EVERY.mul_f64(jitter()).max(UNREAD),
                }
            }
        };
        sleep(pause).await;
    }
}

fn hold_back(task: &Task) -> Duration {
    match task {
        Task::Create => HOLD_BACK_CREATION.mul_f64(jitter()),
        _ => HOLD_BACK.mul_f64(jitter()),
    }
}

/// What is to be done, by what is known now; `None` if nothing is known.
fn next(engine: &Engine, kek: &Kek, rules: ServiceRules) -> Option<Task> {
    if kek.is_revoked() {
        return Some(Task::Nothing);
    }
    let known = kek.known();
    let Known { versions, trouble } = &**known;
    match trouble.as_ref().map(Error::reason) {
        None => {}
        Some(Reason::KekNotFound) => return Some(Task::Create),
        Some(Reason::KekUnproven) => return None,
        // It was taken away, or cannot be told apart.
        Some(_) => return Some(Task::Nothing),
    }
    let infos = versions.iter().map(|leased| &**leased.version.info());
    let usage = |id: &_| versions.get(id).map(|leased| leased.row.usage()).unwrap_or_default();
    Some(rules.next_task(infos, usage, engine.bookkeeper.since(), SystemTime::now()))
}

/// Does what is to be done if it still is.
async fn once_more(
    engine: &Engine,
    kek: &Kek,
    rules: ServiceRules,
    task: &Task,
) -> Result<(), Error> {
    // What it finds is in what is known, good or bad.
    let looked = kek.verify(&engine.custody, Look::AsDue, clock::now() + PATIENCE).await;
    looked.or_else(|error| match error.reason().is_transient() {
        true => Err(error),
        false => Ok(()),
    })?;
    if next(engine, kek, rules).as_ref() != Some(task) {
        return Ok(());
    }
    let backend = &kek.spec.backend;
    let officer = backend.officer().ok_or_else(|| {
        let what = format!("backend {} does not let keys be made", backend.name());
        Error::new(Reason::BackendMisconfigured, what)
            .with_fix("use mode = \"customer-managed\", and make the key with its own tools")
    })?;
    act(kek, rules, task, officer).await?;
    kek.suspicion.notify_one();
    Ok(())
}

async fn act(
    kek: &Kek,
    rules: ServiceRules,
    task: &Task,
    officer: &dyn Officer,
) -> Result<(), Error> {
    let (name, label) = (&kek.spec.name, &kek.spec.key.label);
    let deadline = Instant::now() + PATIENCE;
    match task {
        Task::Create => {
            let kind = match kek.spec.algorithm.family() {
                Family::Rsa(_) => KeyKind::Rsa(rules.rsa_bits),
                Family::Aes => KeyKind::Aes256,
            };
            let made = officer.create(&NewKey { label: label.to_string(), kind }, deadline).await?;
            info!(kek = %name, version = %made.info.id, "the KEK's first version was made");
        }
        Task::Rotate => {
            let made = officer.rotate(label, deadline).await?;
            info!(kek = %name, version = %made.info.id, "the KEK's next version was made");
        }
        Task::Retire(id) => {
            let version = KeyRef { label: Arc::clone(label), pinned: Some(id.clone()) };
            officer.set_enabled(&version, false, deadline).await?;
            info!(kek = %name, version = %id,
                "a version was retired that nobody has used; `keyward key enable` brings it back");
        }
        Task::Nothing => {}
    }
    Ok(())
}

/// Once for each new trouble, and for its end.
fn tell(kek: &Kek, task: &Task, told: &mut Option<Reason>, trouble: Option<&Error>) {
    let name = &kek.spec.name;
    if let Some(error) = trouble
        && *told != Some(error.reason())
    {
        let (detail, fix) = (error.detail().unwrap_or("-"), error.fix().unwrap_or("-"));
        let reason = error.reason().as_str();
        warn!(kek = %name, ?task, reason, detail, fix, "the KEK could not be looked after: {error}");
    }
    *told = trouble.map(Error::reason);
}
