//! A vault as a fleet sees it: one 4096-bit HSM key, the documented quota with its weights
//! (the fake's own code), a delay, and an owner who takes the key away. No sockets and no
//! cryptography: a thousand sidecars ask it in virtual time.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use keyward::{
    backend::{Backend, Officer, Room, keyvault::KeyVaultBackend},
    clock,
    error::{Error, Reason, Retry},
    kek::{
        Algorithm, Assurance, Fingerprint, KeyRef, UsableVersion, Validity, VersionId, VersionInfo,
    },
    secret::Secret,
};
use tokio::time::sleep;
use tonic::async_trait;

use crate::keyvault::{
    operation::Operation,
    state::Kind,
    throttle::{Throttle, Touched, cost},
};

/// How the vault stands to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Allows,
    /// The key is disabled.
    Disabled,
    /// The identity has no role any more.
    Forbids,
    /// The identity may read and not unwrap.
    ForbidsUnwrap,
}

/// What a look at the versions of a key counts for, which Azure does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looks {
    /// As a transaction of the vault, as `tests/support/keyvault` has it.
    Cheap,
    /// As an operation with the key.
    Dear,
}

pub struct Vault {
    begin: Instant,
    throttle: Mutex<Throttle>,
    looks: Looks,
    owner: Mutex<Owner>,
    asked: AtomicU64,
    proofs: AtomicU64,
    admitted: AtomicU64,
    refused: AtomicU64,
    busiest: Mutex<f64>,
}

const KEY: Touched = Touched { hsm: true, bits: 4096 };

impl Vault {
    pub fn new(looks: Looks) -> Arc<Self> {
        Arc::new(Self {
            begin: clock::now(),
            throttle: Mutex::new(Throttle::new()),
            looks,
            owner: Mutex::new(Owner::Allows),
            asked: AtomicU64::new(0),
            proofs: AtomicU64::new(0),
            admitted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            busiest: Mutex::new(0.0),
        })
    }

    pub fn is(&self, owner: Owner) {
        *self.owner.lock().unwrap() = owner;
    }

    /// What was admitted of operations with the key, and what was refused for the quota, since
    /// the last time.
    pub fn counted(&self) -> (u64, u64) {
        (self.admitted.swap(0, Ordering::Relaxed), self.refused.swap(0, Ordering::Relaxed))
    }

    /// Proofs by an operation, since the last time.
    pub fn proofs(&self) -> u64 {
        self.proofs.swap(0, Ordering::Relaxed)
    }

    /// The part of the quota that was in use in the busiest window since the last time.
    pub fn busiest(&self) -> f64 {
        std::mem::take(&mut *self.busiest.lock().unwrap())
    }

    fn owner(&self) -> Owner {
        *self.owner.lock().unwrap()
    }

    async fn admit(&self, operation: Operation) -> Result<(), Error> {
        let turn = self.asked.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_millis(10 + turn * 7 % 30)).await;
        let touched = match (operation, self.looks) {
            (Operation::ListVersions, Looks::Cheap) => None,
            _ => Some(KEY),
        };
        // Dear, a look is paid for as a GET of the key is.
        let paid_as = if touched.is_some() { Operation::Get } else { operation };
        let cost = cost(Kind::Premium, paid_as, touched).expect("a price");
        let now = clock::now() - self.begin;
        let mut throttle = self.throttle.lock().unwrap();
        let admitted = throttle.admit(now, cost);
        let mut busiest = self.busiest.lock().unwrap();
        *busiest = busiest.max(throttle.load(now));
        if touched.is_some() {
            let counter = if admitted { &self.admitted } else { &self.refused };
            counter.fetch_add(1, Ordering::Relaxed);
        }
        match admitted {
            true => Ok(()),
            // As the backend reads a 429 without a word about when to come back.
            false => Err(Error::new(Reason::Overloaded, "429")
                .with_retry(Retry::After(Duration::from_secs(1)))),
        }
    }
}

/// A sidecar's way to the vault.
pub struct Way {
    vault: Arc<Vault>,
    room: Room,
    /// Whether this sidecar has read what the key is made of.
    read: AtomicBool,
}

impl Way {
    /// With the room that `real` has.
    pub fn to(vault: &Arc<Vault>, real: &KeyVaultBackend) -> Arc<Self> {
        let (vault, room) = (Arc::clone(vault), real.room());
        Arc::new(Self { vault, room, read: AtomicBool::new(false) })
    }
}

fn denied(reason: Reason) -> Error {
    Error::new(reason, "403")
}

#[async_trait]
impl Backend for Way {
    fn name(&self) -> &str {
        "vault"
    }

    fn kind(&self) -> &'static str {
        "key-vault"
    }

    async fn versions(
        &self,
        key: &KeyRef,
        _: Algorithm,
        _: Instant,
    ) -> Result<Vec<VersionInfo>, Error> {
        self.vault.admit(Operation::ListVersions).await?;
        if self.vault.owner() == Owner::Forbids {
            return Err(denied(Reason::KekRevoked));
        }
        if !self.read.load(Ordering::Relaxed) {
            self.vault.admit(Operation::Get).await?;
            self.read.store(true, Ordering::Relaxed);
        }
        Ok(vec![VersionInfo {
            key: key.clone(),
            id: VersionId::parse("1").unwrap(),
            bits: 4096,
            fingerprint: Fingerprint::new([1; 32]),
            public_key: None,
            validity: Validity::default(),
            created: None,
            enabled: self.vault.owner() != Owner::Disabled,
            assurance: Assurance::default(),
        }])
    }

    async fn prove(&self, _: &VersionInfo, _: Algorithm, _: Instant) -> Result<SystemTime, Error> {
        let began = SystemTime::now();
        self.vault.proofs.fetch_add(1, Ordering::Relaxed);
        self.vault.admit(Operation::Unwrap).await?;
        match self.vault.owner() {
            Owner::Allows => Ok(began),
            Owner::Disabled => Err(denied(Reason::KekDisabled)),
            Owner::Forbids | Owner::ForbidsUnwrap => Err(denied(Reason::KekRevoked)),
        }
    }

    async fn wrap(
        &self,
        _: &UsableVersion,
        _: Algorithm,
        payload: &Secret,
        _: Instant,
    ) -> Result<Vec<u8>, Error> {
        Ok(payload.expose().iter().map(|byte| byte ^ 0x5a).collect())
    }

    async fn unwrap(
        &self,
        _: &UsableVersion,
        _: Algorithm,
        ciphertext: &[u8],
        _: Instant,
    ) -> Result<Secret, Error> {
        self.vault.admit(Operation::Unwrap).await?;
        match self.vault.owner() {
            Owner::Allows => Ok(Secret::new(ciphertext.iter().map(|byte| byte ^ 0x5a).collect())),
            Owner::Disabled => Err(denied(Reason::KekDisabled)),
            Owner::Forbids | Owner::ForbidsUnwrap => Err(denied(Reason::KekRevoked)),
        }
    }

    async fn random(&self, len: usize, _: Instant) -> Result<Option<Secret>, Error> {
        Ok(Some(Secret::zeroed(len)))
    }

    fn wraps_locally(&self, _: Algorithm) -> bool {
        true
    }

    /// As the real one counts a 4096-bit key in an HSM.
    fn units(&self, _: &VersionInfo) -> u32 {
        16
    }

    fn room(&self) -> Room {
        self.room
    }

    fn officer(&self) -> Option<&dyn Officer> {
        None
    }

    fn service(&self) -> Option<&dyn keyward::backend::Service> {
        None
    }

    fn register(&self) -> Option<&dyn keyward::backend::Register> {
        None
    }

    async fn close(&self) {}
}
