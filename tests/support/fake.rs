//! A backend that keeps its keys in memory, counts what it is asked, and can be told to
//! hang or to fail. Its "cipher" is an XOR with a checksum: enough to tell good from bad.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use keyward::{
    backend::{Backend, Officer, Room},
    error::{Error, Reason},
    kek::{
        Algorithm, Assurance, Fingerprint, KeyRef, UsableVersion, Validity, VersionId, VersionInfo,
    },
    secret::Secret,
};
use tokio::{
    sync::watch,
    time::{sleep, timeout_at},
};
use tonic::async_trait;

pub struct Fake {
    versions: Mutex<Vec<u8>>,
    /// Those of them that are disabled.
    disabled: Mutex<Vec<u8>>,
    /// Those of them that fail their self-test.
    failing: Mutex<Vec<u8>>,
    /// From when to when they may be used.
    validity: Mutex<HashMap<u8, Validity>>,
    /// While true, what it wraps does not unwrap.
    pub garbles: AtomicBool,
    /// While true, unwraps and random bytes hang until their deadline.
    pub hold: watch::Sender<bool>,
    /// While true, proofs hang until their deadline.
    pub hold_proofs: watch::Sender<bool>,
    /// What the next unwraps fail with.
    pub failures: Mutex<VecDeque<Error>>,
    /// What proofs and looks fail with, for as long as it is set.
    denial: Mutex<Option<Error>>,
    /// What proofs alone fail with, for as long as it is set.
    pub denied_proofs: Mutex<Option<Error>>,
    /// How often in a row it must deny a key to be believed.
    pub denials: AtomicU32,
    /// How long a proof takes.
    pub proof_takes: Mutex<Duration>,
    proving: AtomicUsize,
    proving_peak: AtomicUsize,
    /// Operations at once.
    at_once: usize,
    running: AtomicUsize,
    peak: AtomicUsize,
    unwraps: AtomicUsize,
    unwrapped: Mutex<Vec<u64>>,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            versions: Mutex::new(vec![1]),
            disabled: Mutex::default(),
            failing: Mutex::default(),
            validity: Mutex::default(),
            garbles: AtomicBool::new(false),
            hold: watch::Sender::new(false),
            hold_proofs: watch::Sender::new(false),
            failures: Mutex::default(),
            denial: Mutex::default(),
            denied_proofs: Mutex::default(),
            denials: AtomicU32::new(1),
            proof_takes: Mutex::default(),
            proving: AtomicUsize::new(0),
            proving_peak: AtomicUsize::new(0),
            at_once: 1024,
            running: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            unwraps: AtomicUsize::new(0),
            unwrapped: Mutex::default(),
        }
    }
}

impl Fake {
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// One that works on no more than `at_once` operations.
    pub fn of(at_once: usize) -> Arc<Self> {
        Arc::new(Self { at_once, ..Self::default() })
    }

    /// Makes `n` the newest version.
    pub fn rotate(&self, n: u8) {
        self.versions.lock().unwrap().push(n);
    }

    pub fn disable(&self, n: u8) {
        self.disabled.lock().unwrap().push(n);
    }

    pub fn enable(&self, n: u8) {
        self.disabled.lock().unwrap().retain(|other| *other != n);
    }

    /// Has it have these versions, in no order, each good.
    pub fn hold_versions(&self, versions: impl IntoIterator<Item = u8>) {
        *self.versions.lock().unwrap() = versions.into_iter().collect();
        self.disabled.lock().unwrap().clear();
        self.failing.lock().unwrap().clear();
        self.validity.lock().unwrap().clear();
    }

    /// Has `n` fail its self-test.
    pub fn fail(&self, n: u8) {
        self.failing.lock().unwrap().push(n);
    }

    pub fn date(&self, n: u8, validity: Validity) {
        self.validity.lock().unwrap().insert(n, validity);
    }

    /// Operations in work now.
    pub fn running(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }

    /// Most operations that were in work at once.
    pub fn peak(&self) -> usize {
        self.peak.load(Ordering::SeqCst)
    }

    /// Most proofs that were in work at once.
    pub fn proving_peak(&self) -> usize {
        self.proving_peak.load(Ordering::SeqCst)
    }

    /// Unwraps that were asked for.
    pub fn unwraps(&self) -> usize {
        self.unwraps.load(Ordering::SeqCst)
    }

    /// The first eight bytes of what was unwrapped, in order: the numbers of
    /// `sidecar::wrapped_deks`.
    pub fn unwrapped(&self) -> Vec<u64> {
        self.unwrapped.lock().unwrap().clone()
    }

    /// Has proofs fail with `error` from here on, or with nothing.
    pub fn deny(&self, error: Option<Error>) {
        *self.denial.lock().unwrap() = error;
    }

    async fn wait(&self, deadline: Instant) -> Result<(), Error> {
        let mut hold = self.hold.subscribe();
        match timeout_at(deadline.into(), hold.wait_for(|hold| !*hold)).await {
            Ok(_free) => Ok(()),
            Err(_) => Err(Error::new(Reason::DeadlineExceeded, "the fake was told to hang")),
        }
    }

    fn check_denial(&self) -> Result<(), Error> {
        self.denial.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    fn info(&self, key: &KeyRef, n: u8) -> VersionInfo {
        VersionInfo {
            key: key.clone(),
            id: VersionId::parse(&format!("{n:02x}")).unwrap(),
            bits: 2048,
            fingerprint: Fingerprint::new([n; 32]),
            public_key: None,
            validity: self.validity.lock().unwrap().get(&n).copied().unwrap_or_default(),
            enabled: !self.disabled.lock().unwrap().contains(&n),
            created: None,
            assurance: Assurance { device: "fake".into(), sensitive: true, ..Default::default() },
        }
    }
}

/// Counts what is in work for as long as it lives.
struct Running<'a>(&'a Fake);

impl<'a> Running<'a> {
    fn new(fake: &'a Fake) -> Self {
        let running = fake.running.fetch_add(1, Ordering::SeqCst) + 1;
        fake.peak.fetch_max(running, Ordering::SeqCst);
        Self(fake)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

fn key_byte(version: &UsableVersion) -> u8 {
    version.info().fingerprint.as_bytes()[0]
}

fn checksum(bytes: &[u8], key: u8) -> [u8; 2] {
    let sum = bytes.iter().enumerate().fold(u16::from(key), |sum, (i, byte)| {
        sum.wrapping_mul(31).wrapping_add(u16::from(*byte) ^ i as u16)
    });
    sum.to_be_bytes()
}

#[async_trait]
impl Backend for Fake {
    fn name(&self) -> &str {
        "fake"
    }

    fn kind(&self) -> &'static str {
        "fake"
    }

    async fn versions(
        &self,
        key: &KeyRef,
        _algorithm: Algorithm,
        _deadline: Instant,
    ) -> Result<Vec<VersionInfo>, Error> {
        self.check_denial()?;
        Ok(self.versions.lock().unwrap().iter().map(|n| self.info(key, *n)).collect())
    }

    async fn prove(
        &self,
        version: &VersionInfo,
        _algorithm: Algorithm,
        deadline: Instant,
    ) -> Result<SystemTime, Error> {
        let asked = SystemTime::now();
        let proving = self.proving.fetch_add(1, Ordering::SeqCst) + 1;
        self.proving_peak.fetch_max(proving, Ordering::SeqCst);
        let takes = *self.proof_takes.lock().unwrap();
        let mut hold = self.hold_proofs.subscribe();
        let proof = async {
            drop(hold.wait_for(|hold| !*hold).await);
            sleep(takes).await;
        };
        let in_time = timeout_at(deadline.into(), proof).await;
        self.proving.fetch_sub(1, Ordering::SeqCst);
        if in_time.is_err() {
            return Err(Error::new(Reason::DeadlineExceeded, "the fake was told to take long"));
        }
        self.check_denial()?;
        if self.failing.lock().unwrap().contains(&version.fingerprint.as_bytes()[0]) {
            return Err(Error::new(Reason::BackendMisconfigured, "its self-test failed"));
        }
        self.denied_proofs.lock().unwrap().clone().map_or(Ok(asked), Err)
    }

    async fn wrap(
        &self,
        version: &UsableVersion,
        _algorithm: Algorithm,
        payload: &Secret,
        _deadline: Instant,
    ) -> Result<Vec<u8>, Error> {
        let key = key_byte(version);
        let mut out: Vec<u8> = payload.expose().iter().map(|byte| byte ^ key ^ 0x5a).collect();
        out.extend(checksum(&out, key));
        if self.garbles.load(Ordering::Relaxed) {
            out[0] ^= 1;
        }
        Ok(out)
    }

    async fn unwrap(
        &self,
        version: &UsableVersion,
        _algorithm: Algorithm,
        ciphertext: &[u8],
        deadline: Instant,
    ) -> Result<Secret, Error> {
        self.unwraps.fetch_add(1, Ordering::SeqCst);
        let _running = Running::new(self);
        self.wait(deadline).await?;
        if let Some(error) = self.failures.lock().unwrap().pop_front() {
            return Err(error);
        }
        let key = key_byte(version);
        match ciphertext.split_last_chunk::<2>() {
            Some((bytes, sum)) if checksum(bytes, key) == *sum => {
                let payload = Secret::new(bytes.iter().map(|byte| byte ^ key ^ 0x5a).collect());
                if let Some(number) = payload.expose().first_chunk() {
                    self.unwrapped.lock().unwrap().push(u64::from_be_bytes(*number));
                }
                Ok(payload)
            }
            _ => Err(Error::ciphertext_invalid()),
        }
    }

    async fn random(&self, len: usize, deadline: Instant) -> Result<Option<Secret>, Error> {
        let _running = Running::new(self);
        self.wait(deadline).await?;
        Ok(Some(Secret::zeroed(len)))
    }

    fn wraps_locally(&self, _: Algorithm) -> bool {
        true
    }

    fn units(&self, _: &VersionInfo) -> u32 {
        1
    }

    fn room(&self) -> Room {
        Room {
            at_once: self.at_once,
            waiting: 4096,
            attempts: 1,
            ceiling: None,
            shared: None,
            denials: self.denials.load(Ordering::Relaxed),
        }
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
