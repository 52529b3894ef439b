//! A faithful fake of Azure Key Vault and Managed HSM, with the Entra ID and the managed
//! identity endpoints that clients need around it.
//!
//! Real TLS on real sockets, real tokens, real cryptography; the state, the clock and the
//! faults are a test's to set, through the methods of [`FakeVault`]. It shares no code
//! with Keyward, and Azure's own SDKs are run against it (`make test-interop`).
//!
//! What it does not do: key release, attestation, encrypt, decrypt, sign and verify,
//! elliptic curves, rotation by itself, HTTP/2, and the speed of a real HSM.

pub mod access;
pub mod backup;
mod byok;
pub mod clock;
mod controls;
mod directory;
mod entra;
pub mod errors;
pub mod faults;
mod gate;
mod imds;
mod jwk;
pub mod jwt;
mod keys;
pub mod keywrap;
pub mod material;
pub mod message;
pub mod operation;
mod pki;
pub mod record;
mod rotation;
pub mod server;
pub mod state;
pub mod store;
pub mod throttle;
mod vault;
pub mod world;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, Mutex},
};

use tempfile::TempDir;
use tokio::{net::TcpListener, runtime::Runtime};

use access::Permissions;
use backup::Geography;
use clock::Clock;
use directory::Directory;
use faults::Faults;
use jwt::Signer;
use pki::Authority;
use record::Record;
use server::{Acceptors, Gates, Place};
use state::{Kind, Profile};
use store::Store;
use throttle::Throttle;
use world::{Ports, World};

/// What to fake.
#[derive(Clone)]
pub struct Settings {
    pub kind: Kind,
    pub permissions: Permissions,
    pub purge_protection: bool,
    /// Days for which what was deleted can be recovered, 7 to 90.
    pub retention_days: i64,
    /// Whether the documented quotas hold.
    pub throttled: bool,
    pub geography: Geography,
}

impl Settings {
    fn of(kind: Kind) -> Self {
        Self {
            kind,
            permissions: Permissions::Rbac,
            purge_protection: false,
            retention_days: 90,
            throttled: true,
            geography: Geography::new(),
        }
    }

    /// A vault for software keys.
    pub fn standard() -> Self {
        Self::of(Kind::Standard)
    }

    /// A vault for software and HSM keys.
    pub fn premium() -> Self {
        Self::of(Kind::Premium)
    }

    pub fn managed_hsm() -> Self {
        Self::of(Kind::ManagedHsm)
    }
}

/// A running fake. Ends when it is dropped.
pub struct FakeVault {
    world: Arc<World>,
    dir: TempDir,
    authority: Authority,
    /// The fake's own, so that a test's runtime may be held or blocked. Taken by Drop.
    runtime: Option<Runtime>,
}

async fn listen() -> (TcpListener, u16) {
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = TcpListener::bind(anywhere).await.expect("a port on 127.0.0.1");
    let port = listener.local_addr().expect("an address").port();
    (listener, port)
}

impl FakeVault {
    /// Starts on free ports of 127.0.0.1, empty, with nobody allowed anything.
    ///
    /// # Panics
    /// If there are no ports or no temporary directory to be had.
    pub fn start(settings: Settings) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("fake-vault")
            .enable_all()
            .build()
            .expect("a runtime");
        // Not block_on, which a test's own runtime forbids on its threads.
        let (send, bound) = std::sync::mpsc::channel();
        runtime.spawn(async move {
            let listeners = [listen().await, listen().await, listen().await];
            send.send(listeners).expect("the one who waits");
        });
        let [vault, entra, imds] = bound.recv().expect("listeners");
        let kind = settings.kind;
        let world = World {
            profile: Profile {
                kind,
                name: if kind == Kind::ManagedHsm { "hsm" } else { "kv" }.into(),
                purge_protection: settings.purge_protection,
                retention_days: settings.retention_days,
            },
            permissions: settings.permissions,
            geography: settings.geography,
            ports: Ports { vault: vault.1, entra: entra.1, imds: imds.1 },
            gates: Gates::new(),
            clock: Clock::default(),
            store: Store::default(),
            directory: Mutex::new(Directory::new()),
            signer: Signer::new(),
            cluster: LazyLock::new(Signer::new),
            throttle: Mutex::new(settings.throttled.then(Throttle::new)),
            retry_after: Mutex::new(None),
            faults: Faults::default(),
            record: Record::default(),
        };
        let dir = tempfile::tempdir().expect("a directory");
        let authority = Authority::new();
        std::fs::write(dir.path().join("ca.pem"), authority.pem()).expect("a file");
        let hosts = ["localhost".into(), "login.localhost".into(), world.host()];
        let tls = Acceptors::new(&authority, &hosts);
        let world = Arc::new(world);
        for ((listener, _), place) in
            [(vault, Place::Vault), (entra, Place::Entra), (imds, Place::Imds)]
        {
            runtime.spawn(server::serve(listener, place, Arc::clone(&world), tls.clone()));
        }
        Self { world, dir, authority, runtime: Some(runtime) }
    }

    /// The vault by its name, as `https://kv.vault.localhost:1234`: what a client that
    /// checks challenges needs. The name resolves to 127.0.0.1 (RFC 6761).
    pub fn url(&self) -> String {
        format!("https://{}:{}", self.world.host(), self.world.ports.vault)
    }

    /// The vault by its address.
    pub fn loopback_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.world.ports.vault)
    }

    /// What tokens for the vault must be for, without a slash at the end.
    pub fn audience(&self) -> String {
        self.world.audience()
    }

    /// Entra, as `https://login.localhost:1234`, without a tenant.
    pub fn authority(&self) -> String {
        self.world.authority()
    }

    /// Entra by its address.
    pub fn loopback_authority(&self) -> String {
        format!("https://127.0.0.1:{}", self.world.ports.entra)
    }

    pub fn tenant(&self) -> &'static str {
        world::TENANT
    }

    /// Where IMDS is instead of `http://169.254.169.254`.
    pub fn imds(&self) -> String {
        format!("http://127.0.0.1:{}", self.world.ports.imds)
    }

    /// App Service's IDENTITY_ENDPOINT and IDENTITY_HEADER.
    pub fn app_service(&self) -> (String, &'static str) {
        (format!("{}/msi/token", self.imds()), imds::APP_SERVICE_SECRET)
    }

    /// A file with the authority that the fake's certificates come from, PEM.
    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A directory of the fake's own, for what goes with it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The authority, PEM.
    pub fn ca_pem(&self) -> String {
        self.authority.pem()
    }
}

impl Drop for FakeVault {
    fn drop(&mut self) {
        // Does not wait: the test that drops it may itself be a runtime's.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
