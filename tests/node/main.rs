//! The storage node of `examples/storage-node/`, killed and revoked: a real node, a real
//! sidecar, a real token.

#[path = "../support/example.rs"]
mod example;
#[path = "../e2e/home.rs"]
#[allow(dead_code, unused_imports, unused_macros)]
mod home;
#[allow(dead_code)]
#[path = "../support/keyvault/mod.rs"]
mod keyvault;
#[allow(dead_code)]
#[path = "../../examples/storage-node/pages.rs"]
mod pages;
#[path = "../memory/scanner.rs"]
mod scanner;
#[path = "../e2e/served.rs"]
#[allow(dead_code)]
mod served;
#[allow(dead_code, unused_imports)]
#[path = "../../examples/storage-node/store/mod.rs"]
mod store;
#[path = "../support/token.rs"]
#[allow(dead_code)]
mod token;
#[path = "../support/azure.rs"]
mod vaults;

mod killed;
mod revoked;
mod work;

use served::{Served, own_uid};

/// A sidecar whose operator we are.
fn operated() -> Served {
    let mut served = Served::prepare();
    served.configure(|config| {
        let rest = format!(
            "[[policy]]\nwho = [\"uid:{}\"]\nmay = [\"revoke\", \"restore\", \"reload\", \"purge\"]\n\
             kek = [\"*\"]\n",
            own_uid()
        );
        // Leases outlast the time for which a scanner has a process stand still.
        config.replacen("interval = \"1s\"", "interval = \"60s\"", 1) + &rest
    });
    served.serve();
    served
}
