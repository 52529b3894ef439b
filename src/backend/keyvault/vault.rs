//! Names in Azure: vaults, audiences, keys, versions and their `kid`. Parses, compares
//! and refuses; knows no request.
//!
//! The SDK pastes names into paths as they are and follows whatever host an answer names.
//! So nothing goes into a request that is not a name by the rules here, and a `kid` counts
//! only if it is one of the very key and vault that was asked.
//!
//! Pure.

use std::fmt;

use super::settings::Service;
use crate::kek::VersionId;

/// Longest name of a key, in bytes.
const KEY_NAME_MAX: usize = 127;

/// Longest name of a version, in bytes. Azure's have 32.
const VERSION_MAX: usize = 64;

/// A vault or a managed HSM: `https://HOST` or `https://HOST:PORT`, in lower case.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct VaultUrl {
    /// With scheme, and with the port if it is not 443; without a slash at the end.
    base: String,
    host: String,
    port: u16,
}

impl VaultUrl {
    /// Parses the address of a vault. `Err` says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let Some(rest) = text.strip_prefix("https://") else {
            return Err("does not begin with https://");
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#', '@']) {
            return Err("is more than a scheme, a host and a port");
        }
        let (host, port) = split_port(rest).ok_or("has a port that is none")?;
        let host = host.to_ascii_lowercase();
        if !is_host_name(&host) {
            return Err("names no host (addresses of machines are not taken)");
        }
        // The audience is the host without its first label, and must be a domain still.
        if host.split('.').count() < 3 {
            return Err("names no vault in a domain such as vault.azure.net");
        }
        let base = match port {
            443 => format!("https://{host}"),
            port => format!("https://{host}:{port}"),
        };
        Ok(Self { base, host, port })
    }

    /// As requests are addressed to it, without a slash at the end.
    pub fn as_str(&self) -> &str {
        &self.base
    }

    /// What it is, by the names that Azure gives in all of its clouds; `None` if it has
    /// another.
    pub fn looks_like(&self) -> Option<Service> {
        match self.domain().split('.').next() {
            Some("vault") => Some(Service::KeyVault),
            Some("managedhsm") => Some(Service::ManagedHsm),
            _ => None,
        }
    }

    /// The name that its certificate must have.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// The domain that it is in: `vault.azure.net`, `managedhsm.azure.net`, or what another
    /// cloud has.
    fn domain(&self) -> &str {
        self.host.split_once('.').map_or("", |(_, domain)| domain)
    }

    /// The scope of its tokens: its domain. (Only a vault that is none of Azure's has a port.)
    pub(super) fn scope(&self) -> String {
        match self.port {
            443 => format!("https://{}/.default", self.domain()),
            port => format!("https://{}:{port}/.default", self.domain()),
        }
    }

    /// Whether `scope` is that of its tokens, and of nothing else's. (A port, if it is
    /// written, is the vault's.) The SDK would be content with any suffix of the host.
    pub(super) fn has_scope(&self, scope: &str) -> bool {
        let Some(audience) =
            scope.strip_suffix("/.default").and_then(|rest| rest.strip_prefix("https://"))
        else {
            return false;
        };
        match split_port(audience) {
            Some((host, port)) => {
                host.eq_ignore_ascii_case(self.domain())
                    && (port == self.port || !audience.contains(':'))
            }
            None => false,
        }
    }

    /// The version that `kid` names, if it is one of the key `name` in this vault. Azure
    /// does not tell the case of names apart.
    pub fn version_in(&self, kid: &str, name: &str) -> Option<VersionId> {
        let (found, version) = self.key_in(kid)?;
        found.eq_ignore_ascii_case(name).then_some(version?)
    }

    /// The key and the version, if there is one, that `kid` names in this vault.
    pub fn key_in<'k>(&self, kid: &'k str) -> Option<(&'k str, Option<VersionId>)> {
        let rest = kid.strip_prefix("https://")?;
        let (authority, path) = rest.split_once('/')?;
        let (host, port) = split_port(authority)?;
        if !host.eq_ignore_ascii_case(&self.host) || port != self.port {
            return None;
        }
        let path = path.strip_prefix("keys/")?;
        let (name, version) = match path.split_once('/') {
            Some((name, version)) => (name, Some(version)),
            None => (path, None),
        };
        if !is_key_name(name) {
            return None;
        }
        match version {
            Some(version) => Some((name, Some(parse_version(version)?))),
            None => Some((name, None)),
        }
    }
}

impl fmt::Display for VaultUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.base)
    }
}

impl fmt::Debug for VaultUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.base)
    }
}

/// Whether a key may be called so: 1 to 127 of `0-9 A-Z a-z -`.
pub fn is_key_name(name: &str) -> bool {
    (1..=KEY_NAME_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// A version's name, as Azure gives it: 1 to 64 of `0-9 A-Z a-z`.
pub(super) fn parse_version(text: &str) -> Option<VersionId> {
    let ok = text.len() <= VERSION_MAX && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    ok.then(|| VersionId::parse(text)).flatten()
}

/// Host and port of an authority, 443 if none is written; `None` if the port is none.
pub(super) fn split_port(authority: &str) -> Option<(&str, u16)> {
    match authority.split_once(':') {
        None => Some((authority, 443)),
        Some((host, port)) => {
            let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
            let port = port.parse().ok().filter(|port| digits && *port != 0)?;
            Some((host, port))
        }
    }
}

/// Whether it is the name of a host, in lower case, and no address.
pub(super) fn is_host_name(host: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = host.rsplit('.').next().unwrap_or_default();
    host.len() <= 253
        && host.split('.').all(is_label)
        && last.starts_with(|c: char| c.is_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vault() -> VaultUrl {
        VaultUrl::parse("https://kv.vault.azure.net").unwrap()
    }

    #[test]
    fn a_vault_is_a_host_over_https() {
        for (text, base) in [
            ("https://kv.vault.azure.net", "https://kv.vault.azure.net"),
            ("https://KV.Vault.Azure.net/", "https://kv.vault.azure.net"),
            ("https://kv.vault.azure.net:443", "https://kv.vault.azure.net"),
            ("https://kv.vault.localhost:8443/", "https://kv.vault.localhost:8443"),
        ] {
            assert_eq!(VaultUrl::parse(text).unwrap().as_str(), base, "{text}");
        }
        for bad in [
            "",
            "kv.vault.azure.net",
            "http://kv.vault.azure.net",
            "https://user@kv.vault.azure.net",
            "https://kv.vault.azure.net/keys/a",
            "https://kv.vault.azure.net?x",
            "https://kv.vault.azure.net#x",
            "https://kv.vault.azure.net:0",
            "https://kv.vault.azure.net:",
            "https://kv.vault.azure.net:+443",
            "https://kv.vault.azure.net:70000",
            "https://vault.azure",
            "https://127.0.0.1",
            "https://[::1]",
            "https://kv..azure.net",
            "https://-kv.vault.azure.net",
            "https://kv.vault.azure.net.",
            "https://kv.väult.azure.net",
        ] {
            assert!(VaultUrl::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tokens_are_for_the_domain_of_the_vault_and_no_other() {
        assert_eq!(vault().scope(), "https://vault.azure.net/.default");
        assert!(vault().has_scope(&vault().scope()));
        let other = VaultUrl::parse("https://kv.vault.localhost:8443").unwrap();
        assert!(other.has_scope("https://vault.localhost:8443/.default"));
        assert!(other.has_scope("https://vault.localhost/.default"));
        assert!(!other.has_scope("https://vault.localhost:8444/.default"));
        for bad in [
            "https://azure.net/.default",
            "https://net/.default",
            "https://kv.vault.azure.net/.default",
            "http://vault.azure.net/.default",
            "https://vault.azure.net:8443/.default",
            "https://vault.azure.net",
            "https://vault.azure.net//.default",
            "https://evil.example/https://vault.azure.net/.default",
            "",
        ] {
            assert!(!vault().has_scope(bad), "{bad}");
        }
    }

    #[test]
    fn a_kid_counts_only_for_its_key_and_vault() {
        let good = "https://kv.vault.azure.net/keys/orders/0123abcd";
        assert_eq!(vault().version_in(good, "orders").unwrap().as_str(), "0123abcd");
        assert!(vault().version_in(&good.replace("net/", "net:443/"), "orders").is_some());
        assert!(vault().version_in(good, "Orders").is_some());
        for bad in [
            "https://kv.vault.azure.net/keys/other/0123abcd",
            "https://kv.vault.azure.net/keys/orders",
            "https://kv.vault.azure.net/keys/orders/",
            "https://kv.vault.azure.net/keys/orders/01/23",
            "https://kv.vault.azure.net/secrets/orders/0123abcd",
            "https://kv.vault.azure.net:8443/keys/orders/0123abcd",
            "https://kw.vault.azure.net/keys/orders/0123abcd",
            "https://kv.vault.azure.net@evil.example/keys/orders/0123abcd",
            "http://kv.vault.azure.net/keys/orders/0123abcd",
        ] {
            assert!(vault().version_in(bad, "orders").is_none(), "{bad}");
        }
    }

    #[test]
    fn names_that_would_change_a_path_are_refused() {
        for good in ["a", "orders-db", "0", &"x".repeat(127)] {
            assert!(is_key_name(good), "{good}");
        }
        for bad in ["", "a/b", "..", "a?b", "a#b", "a.b", "a_b", "a b", "ä", &"x".repeat(128)] {
            assert!(!is_key_name(bad), "{bad}");
        }
        for bad in ["", "-", "a-b", "a/b", "..", &"a".repeat(65)] {
            assert!(parse_version(bad).is_none(), "{bad}");
        }
    }

    proptest! {
        /// Whatever an answer says, what is read from it is a name by the rules.
        #[test]
        fn nothing_else_comes_out_of_a_kid(kid in "(https://kv.vault.azure.net(:443)?/keys/)?\\PC{0,40}") {
            if let Some((name, version)) = vault().key_in(&kid) {
                prop_assert!(is_key_name(name));
                if let Some(version) = version {
                    prop_assert!(parse_version(version.as_str()).is_some());
                    prop_assert!(kid.ends_with(version.as_str()));
                }
            }
        }

        #[test]
        fn a_vault_that_parses_parses_again(text in "https://[a-zA-Z0-9.:-]{1,40}/?") {
            if let Ok(vault) = VaultUrl::parse(&text) {
                prop_assert_eq!(VaultUrl::parse(vault.as_str()), Ok(vault.clone()));
                prop_assert!(vault.has_scope(&vault.scope()));
            }
        }
    }
}
