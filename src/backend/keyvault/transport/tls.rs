//! TLS to vaults and token endpoints: which authorities are trusted, which versions are
//! spoken. Nothing here trusts a certificate that no authority stands for.

use std::{path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, pem::PemObject},
};

use crate::error::{Error, Reason};

/// How connections are protected. `ca` is a PEM file of authorities that stand in for the
/// system's.
pub(in super::super) fn client_config(ca: Option<&Path>) -> Result<Arc<ClientConfig>, Error> {
    let roots = match ca {
        Some(path) => roots_of(path)?,
        None => system_roots()?,
    };
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        // 1.2 too: that all of Azure's ends speak 1.3 is written nowhere.
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| misconfigured("TLS cannot be set up").with_detail(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // HTTP/2 keeps one connection, whose buffers nobody could wipe.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn roots_of(path: &Path) -> Result<RootCertStore, Error> {
    let bad = |what: String| {
        misconfigured("the authorities in `ca` cannot be read")
            .with_fix("set `ca` to a PEM file of the certificates to trust")
            .with_detail(format!("{}: {what}", path.display()))
    };
    let mut roots = RootCertStore::empty();
    for certificate in
        CertificateDer::pem_file_iter(path).map_err(|error| bad(error.to_string()))?
    {
        let certificate = certificate.map_err(|error| bad(error.to_string()))?;
        roots.add(certificate).map_err(|error| bad(error.to_string()))?;
    }
    match roots.is_empty() {
        true => Err(bad("there is no certificate in it".into())),
        false => Ok(roots),
    }
}

fn system_roots() -> Result<RootCertStore, Error> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Some systems keep certificates that are none; the others do.
    roots.add_parsable_certificates(found.certs);
    match roots.is_empty() {
        true => Err(misconfigured("the system has no certificate authorities")
            .with_fix("install ca-certificates, or set `ca`")),
        false => Ok(roots),
    }
}

fn misconfigured(message: &'static str) -> Error {
    Error::new(Reason::BackendMisconfigured, message)
}
