//! Addresses of vaults and the `kid`s that they answer with. Lines: an address, the name of
//! a key, and a `kid`, which is taken as it is and as one of that vault and key.
//!
//! Azure's SDK reads what we let through with the `url` crate: it must find the very host,
//! port and path in it, or nothing.

#![no_main]

use keyward::backend::keyvault::{VaultUrl, is_key_name};
use libfuzzer_sys::fuzz_target;
use url::Url;

fuzz_target!(|text: &str| {
    let mut lines = text.split('\n');
    let mut line = || lines.next().unwrap_or_default();
    let (address, name, kid) = (line(), line(), line());
    let Ok(vault) = VaultUrl::parse(address) else { return };
    check_vault(&vault);
    let base = vault.as_str();
    let ours = [kid.to_owned(), format!("{base}{kid}"), format!("{base}/keys/{name}/{kid}")];
    for kid in &ours {
        check_kid(&vault, kid, name);
    }
});

fn check_vault(vault: &VaultUrl) {
    let base = vault.as_str();
    assert_eq!(VaultUrl::parse(base).as_ref(), Ok(vault));
    assert_eq!(
        VaultUrl::parse(&base.to_ascii_uppercase().replace("HTTPS", "https")).as_ref(),
        Ok(vault)
    );
    assert_eq!(vault.to_string(), base);
    assert!(base.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase()));
    // The SDK may find that a name is none in other alphabets; but not another host.
    let Ok(url) = Url::parse(base) else { return };
    assert_eq!((url.path(), url.query(), url.fragment()), ("/", None, None));
    assert_eq!((url.username(), url.password()), ("", None));
    assert_eq!(url.as_str(), format!("{base}/"));
}

fn check_kid(vault: &VaultUrl, kid: &str, name: &str) {
    let key = vault.key_in(kid);
    let version = vault.version_in(kid, name);
    let Some((found, found_version)) = key else {
        assert_eq!(version, None);
        return;
    };
    assert!(is_key_name(found));
    match found.eq_ignore_ascii_case(name) {
        true => assert_eq!(version, found_version),
        false => assert_eq!(version, None),
    }
    let path = match &found_version {
        Some(version) => {
            assert!((1..=64).contains(&version.as_str().len()));
            assert!(version.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric()));
            format!("keys/{found}/{version}")
        }
        None => format!("keys/{found}"),
    };
    let Ok(base) = Url::parse(vault.as_str()) else { return };
    assert_eq!(Url::parse(kid), base.join(&path));
}
