//! As whom the sidecar asks: gets tokens for the identity in the settings.
//!
//! For each token the SDK's credential is built anew and dropped: so secrets, certificates
//! and token files are read again when they are needed, no copy of a token stays behind,
//! and a token that the vault refused does not come back from the credential's own cache.
//! When one is needed, and for how long it is kept, is [`keeper`]'s business.

mod assertion;
mod cli;
mod entra;
pub(super) mod keeper;

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use async_trait::async_trait;
use azure_core::{
    cloud::{CloudConfiguration, CustomConfiguration},
    credentials::{Secret as SdkSecret, TokenCredential},
    http::{ClientOptions, Url},
};
use azure_identity::{
    AzureCliCredential, AzureCliCredentialOptions, ClientAssertionCredential,
    ClientAssertionCredentialOptions, ClientSecretCredential, ClientSecretCredentialOptions,
    ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId,
    WorkloadIdentityCredential, WorkloadIdentityCredentialOptions,
};
use rustls::ClientConfig;

use self::{assertion::Assertion, cli::Bounded, entra::Refusal, keeper::Token};
use super::{
    fault::{self, Fault},
    settings::{Identity, UserAssigned},
    transport::{Origin, Wire, client_options},
};
use crate::{
    backend::secret_file::{self, Trouble},
    error::{Error, Reason},
    secret::Secret,
};

/// Where machines in Azure get their tokens from: the one address that is asked without
/// TLS, and that no network but the machine's own host can answer for.
const IMDS: &str = "http://169.254.169.254";

/// Longest client secret, in bytes.
const SECRET_MAX: usize = 4096;

/// Gets tokens.
#[async_trait]
pub(super) trait TokenSource: Send + Sync + 'static {
    /// A new token.
    async fn token(&self) -> Result<Token, Error>;
}

/// The identity in the settings.
pub(super) struct Source {
    pub(super) identity: Identity,
    /// `https://HOST`.
    pub(super) authority: String,
    /// What tokens are for.
    pub(super) scope: String,
    pub(super) tls: Arc<ClientConfig>,
}

#[async_trait]
impl TokenSource for Source {
    async fn token(&self) -> Result<Token, Error> {
        let refusal = Arc::new(Mutex::new(None));
        let told = Arc::clone(&refusal);
        // Nothing is kept open: a token is asked for once in an hour or less.
        let wire =
            Wire::new(self.origins()?, Arc::clone(&self.tls), 0).telling(move |status, body| {
                let refusal = Refusal::read(status, body);
                *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
            });
        let credential = self.credential(&Arc::new(wire)).await?;
        let asked = Instant::now();
        let token = credential.get_token(&[&self.scope], None).await.map_err(|error| {
            let refusal = refusal.lock().unwrap_or_else(PoisonError::into_inner).take();
            self.trouble(&error, refusal)
        })?;
        let expires = SystemTime::from(token.expires_on);
        let good_for = expires.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO);
        Ok(Token {
            secret: Secret::copy_of(token.token.secret().as_bytes()),
            got: asked,
            not_after: asked + good_for,
        })
    }
}

impl Source {
    /// Whom it may ask.
    fn origins(&self) -> Result<Vec<Origin>, Error> {
        let url = match (&self.identity, std::env::var("IDENTITY_ENDPOINT")) {
            // As the SDK decides between the two.
            (Identity::Managed(_), Ok(endpoint))
                if std::env::var_os("IDENTITY_HEADER").is_some() =>
            {
                endpoint
            }
            (Identity::Managed(_), _) => IMDS.to_owned(),
            _ => self.authority.clone(),
        };
        let origin = Url::parse(&url).ok().and_then(|url| Origin::of(&url));
        origin.map(|origin| vec![origin]).ok_or_else(|| {
            misconfigured("the address of the token endpoint is none")
                .with_fix("see `authority`, or IDENTITY_ENDPOINT in the environment")
        })
    }

    /// The SDK's credential, made anew.
    async fn credential(&self, wire: &Arc<Wire>) -> Result<Arc<dyn TokenCredential>, Error> {
        let client_options = self.client_options(wire);
        let assertion_options =
            ClientAssertionCredentialOptions { client_options: client_options.clone() };
        let made: azure_core::Result<Arc<dyn TokenCredential>> = match self.identity.clone() {
            Identity::Managed(user_assigned) => {
                let user_assigned_id = user_assigned.map(|id| match id {
                    UserAssigned::Client(id) => UserAssignedId::ClientId(id),
                    UserAssigned::Object(id) => UserAssignedId::ObjectId(id),
                    UserAssigned::Resource(id) => UserAssignedId::ResourceId(id),
                });
                let options = ManagedIdentityCredentialOptions { user_assigned_id, client_options };
                ManagedIdentityCredential::new(Some(options)).map(|made| made as _)
            }
            Identity::Workload { tenant, client, token_file } => {
                let options = WorkloadIdentityCredentialOptions {
                    credential_options: assertion_options,
                    client_id: client,
                    tenant_id: tenant,
                    token_file_path: token_file,
                };
                // It reads the file.
                blocking(move || Ok(WorkloadIdentityCredential::new(Some(options))))
                    .await?
                    .map(|made| made as _)
            }
            Identity::Secret { tenant, client, file } => {
                let secret = blocking(move || client_secret(&file)).await?;
                let options = ClientSecretCredentialOptions { client_options };
                ClientSecretCredential::new(&tenant, client, secret, Some(options))
                    .map(|made| made as _)
            }
            Identity::Certificate { tenant, client, certificate, key } => {
                let audience = format!("{}/{tenant}/oauth2/v2.0/token", self.authority);
                let name = client.clone();
                let assertion =
                    blocking(move || Assertion::read(&certificate, &key, &name, audience)).await?;
                ClientAssertionCredential::new(tenant, client, assertion, Some(assertion_options))
                    .map(|made| made as _)
            }
            Identity::Cli => {
                let options = AzureCliCredentialOptions {
                    executor: Some(Arc::new(Bounded)),
                    ..AzureCliCredentialOptions::default()
                };
                AzureCliCredential::new(Some(options)).map(|made| made as _)
            }
        };
        // What it says is about the settings: ids of the wrong form, a file that is not
        // there, a kind of machine that the SDK does not know.
        made.map_err(|error| {
            misconfigured("the sidecar's identity cannot be used")
                .with_fix("see `identity`, and what its platform sets in the environment")
                .with_detail(one_line(&error.to_string()))
        })
    }

    fn client_options(&self, wire: &Arc<Wire>) -> ClientOptions {
        // Never what AZURE_AUTHORITY_HOST says: whoever sets it would get the secrets.
        let mut cloud = CustomConfiguration::default();
        cloud.authority_host.clone_from(&self.authority);
        ClientOptions {
            cloud: Some(Arc::new(CloudConfiguration::from(cloud))),
            ..client_options(wire)
        }
    }

    /// Why there is no token.
    fn trouble(&self, error: &azure_core::Error, refusal: Option<Refusal>) -> Error {
        let away = || Error::new(Reason::BackendUnreachable, "no token can be had now");
        match (fault::behind(error), refusal) {
            (Some(Fault::Stranger), _) => {
                misconfigured("the token endpoint is not one that is configured")
                    .with_fix("see `authority` and `identity`")
            }
            (Some(fault), _) => away().with_detail(format!("asking for a token: {fault}")),
            (None, Some(refusal)) => refusal.into_error(),
            (None, None) if self.identity == Identity::Cli => {
                misconfigured("the Azure CLI gives no token")
                    .with_fix("install it and log in with `az login`; it is for development only")
            }
            (None, None) => away().with_detail("the token endpoint's answer is no token"),
        }
    }
}

/// Runs what blocks where that does no harm.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| {
        Err(Error::new(Reason::Internal, "reading the identity's files failed"))
    })
}

fn client_secret(path: &Path) -> Result<SdkSecret, Error> {
    let line = secret_file::first_line(read_secret(path, SECRET_MAX)?);
    let text = String::from_utf8(line.into_wiped_elsewhere()).ok();
    let text = text.filter(|text| (1..=SECRET_MAX).contains(&text.len()));
    text.map(SdkSecret::from).ok_or_else(|| {
        misconfigured("where the identity's secret should be is none")
            .with_fix("put the client secret alone on the first line of a file of mode 0600")
            .with_detail(path.display().to_string())
    })
}

/// A file that only its owner may read.
fn read_secret(path: &Path, max: usize) -> Result<Secret, Error> {
    let shown = path.display();
    secret_file::read(path, max).map_err(|trouble| match trouble {
        Trouble::Unreadable(error) => misconfigured("a file of the identity cannot be read")
            .with_fix("see `identity` and the file's mode and owner")
            .with_detail(format!("{shown}: {error}")),
        Trouble::Open(mode) => misconfigured("a file of the identity is open to others")
            .with_fix("give it the mode 0600")
            .with_detail(format!("{shown} has mode {mode:04o}")),
    })
}

fn misconfigured(message: &'static str) -> Error {
    Error::new(Reason::BackendMisconfigured, message)
}

/// A text of the SDK's own, fit for a line of the log.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}
