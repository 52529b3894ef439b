//! `keyward tls`: certificates.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{failure::Failure, output::print, show};
use crate::server::{DevTls, make_dev_tls};

/// `keyward tls …`
#[derive(Debug, Subcommand)]
pub(super) enum Tls {
    Dev(Dev),
}

/// Make certificates for development: an authority, a server's and a client's
///
/// For trying TCP out on one machine. The authority's own key is thrown away.
#[derive(Args, Debug)]
pub(super) struct Dev {
    /// The directory to make; it must not exist
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

impl Tls {
    pub(super) fn run(self, json: bool) -> Result<(), Failure> {
        match self {
            Self::Dev(command) => command.run(json),
        }
    }
}

impl Dev {
    fn run(self, json: bool) -> Result<(), Failure> {
        let made = make_dev_tls(&self.dir)?;
        let DevTls {
            ca,
            server_certificate,
            server_key,
            client_certificate,
            client_key,
            client_names,
        } = &made;
        if json {
            return print(&show::json_line(&json!({
                "ca": ca.display().to_string(),
                "server_certificate": server_certificate.display().to_string(),
                "server_key": server_key.display().to_string(),
                "client_certificate": client_certificate.display().to_string(),
                "client_key": client_key.display().to_string(),
                "client_names": client_names,
            })));
        }
        let [first, second] = client_names;
        print(&format!(
            "In keyward.toml:\n\
             \n\
             [server]\n\
             listen = \"127.0.0.1:7443\"\n\
             tls = {{ certificate = {:?}, key = {:?}, client_ca = {:?} }}\n\
             \n\
             [[policy]]\n\
             who = [\"{first}\"]    # or {second}\n\
             \n\
             On the command line:\n\
             \n\
             --address https://localhost:7443 --tls-ca {} --tls-certificate {} --tls-key {}\n",
            server_certificate.display().to_string(),
            server_key.display().to_string(),
            ca.display().to_string(),
            ca.display(),
            client_certificate.display(),
            client_key.display(),
        ))
    }
}
