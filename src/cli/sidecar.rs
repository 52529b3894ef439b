//! A running sidecar, as commands see it: the one file here that names the client
//! library.

use std::{env, path::PathBuf, time::Duration};

use clap::Args;
use futures_util::StreamExt;
use tokio::runtime::Runtime;

pub(super) use crate::client::{
    Kek, KekEvent, KekState, KekVersion, Purged, Reloaded, Revoked, Rewrapped, WrappedDek,
};

use super::failure::Failure;
use crate::{
    client::{self, Client, Endpoint, TlsFiles},
    config::duration,
    kek::Algorithm,
    secret::Secret,
    wire,
};

const SOCKET_ENV: &str = "KEYWARD_SOCKET";
const SOCKET_DEFAULT: &str = "/run/keyward/keyward.sock";

/// Where the sidecar is.
#[derive(Args, Debug)]
pub(super) struct SidecarArgs {
    /// The sidecar's Unix socket [default: $KEYWARD_SOCKET, or /run/keyward/keyward.sock]
    #[arg(long, value_name = "PATH", conflicts_with = "address")]
    socket: Option<PathBuf>,

    /// The sidecar on TCP, https://HOST:PORT, instead of a socket
    #[arg(long, value_name = "URL", requires_all = ["tls_ca", "tls_certificate", "tls_key"])]
    address: Option<String>,

    /// The authority that signed the sidecar's certificate, PEM
    #[arg(long, value_name = "FILE", requires = "address")]
    tls_ca: Option<PathBuf>,

    /// Our certificate, followed by its intermediates, PEM
    #[arg(long, value_name = "FILE", requires = "address")]
    tls_certificate: Option<PathBuf>,

    /// Our private key, PEM
    #[arg(long, value_name = "FILE", requires = "address")]
    tls_key: Option<PathBuf>,

    /// What the sidecar's certificate is for, if not the host of the address
    #[arg(long, value_name = "NAME", requires = "address")]
    tls_server_name: Option<String>,

    /// How long the call may take, such as 10s or 500ms
    #[arg(long, value_name = "DURATION", value_parser = parse_timeout)]
    timeout: Option<Duration>,
}

/// A client that blocks.
pub(super) struct Sidecar {
    runtime: Runtime,
    client: Client,
}

impl SidecarArgs {
    /// Makes the client. It connects with the first call.
    pub(super) fn connect(&self) -> Result<Sidecar, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::new("cannot start a runtime").with_cause(error))?;
        let client = {
            let _inside = runtime.enter();
            self.client()?
        };
        Ok(Sidecar { runtime, client })
    }

    /// The client itself, for whoever has a runtime, inside which this must be called.
    pub(super) fn client(&self) -> Result<Client, Failure> {
        Ok(self.shared_client()?.with_calls_apart())
    }

    /// The same, whose callers share streams.
    pub(super) fn shared_client(&self) -> Result<Client, Failure> {
        // Who types a command wants to know at once that nobody is there.
        let client = Client::new(&self.endpoint())?.failing_fast();
        Ok(match self.timeout {
            Some(timeout) => client.with_deadline(timeout),
            None => client,
        })
    }

    /// Whether it is reached over TCP rather than a Unix socket.
    pub(super) fn is_tls(&self) -> bool {
        self.address.is_some()
    }

    /// Whether the command line says where it is.
    pub(super) fn is_given(&self) -> bool {
        self.address.is_some() || self.socket.is_some()
    }

    fn endpoint(&self) -> Endpoint {
        if let Self {
            address: Some(address),
            tls_ca: Some(ca),
            tls_certificate: Some(certificate),
            tls_key: Some(key),
            tls_server_name,
            ..
        } = self
        {
            let (ca, certificate, key) = (ca.clone(), certificate.clone(), key.clone());
            let files = TlsFiles { ca, certificate, key };
            return Endpoint::tls(address, files, tls_server_name.clone());
        }
        let from_env =
            || env::var_os(SOCKET_ENV).filter(|path| !path.is_empty()).map(PathBuf::from);
        let socket = self.socket.clone().or_else(from_env);
        Endpoint::unix(socket.unwrap_or_else(|| SOCKET_DEFAULT.into()))
    }
}

impl Sidecar {
    pub(super) fn wrap(
        &self,
        kek: &str,
        dek: &Secret,
        context: &[u8],
    ) -> Result<WrappedDek, Failure> {
        Ok(self.runtime.block_on(self.client.wrap(kek, dek, context))?)
    }

    pub(super) fn unwrap(&self, wrapped: &WrappedDek, context: &[u8]) -> Result<Secret, Failure> {
        Ok(self.runtime.block_on(self.client.unwrap(wrapped, context))?)
    }

    pub(super) fn generate(
        &self,
        kek: &str,
        len: usize,
        context: &[u8],
    ) -> Result<(Secret, WrappedDek), Failure> {
        Ok(self.runtime.block_on(self.client.generate(kek, len, context))?)
    }

    pub(super) fn generate_wrapped(
        &self,
        kek: &str,
        len: usize,
        context: &[u8],
    ) -> Result<WrappedDek, Failure> {
        Ok(self.runtime.block_on(self.client.generate_wrapped(kek, len, context))?)
    }

    pub(super) fn rewrap(
        &self,
        wrapped: &WrappedDek,
        context: &[u8],
    ) -> Result<Rewrapped, Failure> {
        Ok(self.runtime.block_on(self.client.rewrap(wrapped, context))?)
    }

    pub(super) fn kek(&self, name: &str) -> Result<Kek, Failure> {
        Ok(self.runtime.block_on(self.client.get_kek(name))?)
    }

    pub(super) fn keks(&self) -> Result<Vec<Kek>, Failure> {
        Ok(self.runtime.block_on(self.client.list_keks())?)
    }

    /// Calls `tell` with each event, for as long as it wants more.
    pub(super) fn watch(
        &self,
        names: &[&str],
        mut tell: impl FnMut(&KekEvent) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        self.runtime.block_on(async {
            let mut events = self.client.watch_keks(names).await?;
            while let Some(event) = events.next().await {
                if !tell(&event?)? {
                    break;
                }
            }
            Ok(())
        })
    }

    pub(super) fn reload(&self, kek: Option<&str>) -> Result<Vec<Reloaded>, Failure> {
        Ok(self.runtime.block_on(self.client.reload(kek))?)
    }

    pub(super) fn purge(&self, kek: Option<&str>) -> Result<Purged, Failure> {
        Ok(self.runtime.block_on(self.client.purge(kek))?)
    }

    pub(super) fn revoke(&self, kek: &str) -> Result<Revoked, Failure> {
        Ok(self.runtime.block_on(self.client.revoke(kek))?)
    }

    pub(super) fn restore(&self, kek: &str) -> Result<(), Failure> {
        Ok(self.runtime.block_on(self.client.restore(kek))?)
    }
}

impl From<client::Error> for Failure {
    fn from(error: client::Error) -> Self {
        let failure = Self::new(error.message()).with_reason(error.reason());
        match error.fix() {
            Some(fix) => failure.with_fix(fix),
            None => failure,
        }
    }
}

/// The number of an algorithm in a message.
pub(super) fn algorithm_number(algorithm: Algorithm) -> i32 {
    // The two tables name algorithms alike but for the hyphen; a test says so.
    let name = algorithm.name().replace('-', "_");
    wire::Algorithm::from_str_name(&name).unwrap_or_default().into()
}

/// The name of an algorithm in a message.
pub(super) fn algorithm_name(number: i32) -> String {
    match wire::Algorithm::try_from(number) {
        Ok(algorithm) => algorithm.as_str_name().replace('_', "-"),
        Err(_) => format!("unknown ({number})"),
    }
}

pub(super) fn parse_timeout(text: &str) -> Result<Duration, String> {
    duration::parse(text)
        .filter(|timeout| !timeout.is_zero())
        .ok_or_else(|| "write a whole number and ms, s, m or h, such as 10s".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn algorithms_are_called_alike_everywhere() {
        for algorithm in Algorithm::ALL {
            assert_eq!(algorithm_name(algorithm_number(algorithm)), algorithm.name());
        }
        assert_eq!(algorithm_name(99), "unknown (99)");
    }
}
