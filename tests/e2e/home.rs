//! Where a sidecar's KEK lives: on a fresh token, or in a fake vault or managed HSM. What
//! its owner does to it is the same wherever that is.
//!
//! Refuses to know: sidecars, callers.

use std::{ffi::OsStr, fs, path::Path, process::Command};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    object::{Attribute, ObjectClass},
    session::UserType,
    types::{AuthPin, Date},
};
use keyward::backend::keyvault::Service;

use super::{
    keyvault::{Settings, server::Place},
    token::{LABEL, PIN, TestToken},
    vaults::{Azure, SECRET},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    SoftHsm,
    KeyVault,
    ManagedHsm,
}

/// Makes a test of each function, once for each home: `on_softhsm::…` and
/// `on_a_managed_hsm::…`. The functions take the home.
macro_rules! on_each_home {
    ($(blocking: $($test:ident),+;)? $(asynchronous: $($async_test:ident),+;)?) => {
        on_each_home!(@on_softhsm SoftHsm $($($test)+)?; $($($async_test)+)?);
        on_each_home!(@on_a_managed_hsm ManagedHsm $($($test)+)?; $($($async_test)+)?);
    };
    (@ $module:ident $home:ident $($test:ident)*; $($async_test:ident)*) => {
        mod $module {
            use crate::home::Home;
            $(
                #[test]
                fn $test() {
                    super::$test(Home::$home);
                }
            )*
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $async_test() {
                    super::$async_test(Home::$home).await;
                }
            )*
        }
    };
}
pub(crate) use on_each_home;

/// What a KEK lives in.
pub enum House {
    Token(TestToken),
    Vault(Box<Azure>),
}

impl House {
    pub fn new(home: Home) -> Self {
        match home {
            Home::SoftHsm => Self::Token(TestToken::softhsm()),
            Home::KeyVault => Self::Vault(Box::new(Azure::start(Service::KeyVault))),
            Home::ManagedHsm => Self::Vault(Box::new(Azure::start(Service::ManagedHsm))),
        }
    }

    /// A key vault of these settings.
    pub fn vault(settings: Settings) -> Self {
        Self::Vault(Box::new(Azure::start_as(Service::KeyVault, settings)))
    }

    /// A directory that goes with it.
    pub fn dir(&self) -> &Path {
        match self {
            Self::Token(token) => token.dir.path(),
            Self::Vault(azure) => azure.fake.dir(),
        }
    }

    pub fn token(&self) -> &TestToken {
        let Self::Token(token) = self else { panic!("its home is no token") };
        token
    }

    pub fn azure(&self) -> &Azure {
        let Self::Vault(azure) = self else { panic!("its home is no vault") };
        azure
    }

    /// A command that sees it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        match self {
            Self::Token(token) => token.command(program),
            Self::Vault(_) => Command::new(program),
        }
    }

    /// The section of the configuration that says where it is.
    pub fn section(&self, name: &str) -> String {
        match self {
            Self::Token(token) => format!(
                "[backend.{name}]\ntype = \"pkcs11\"\nmodule = \"{module}\"\n\
                 token = \"{LABEL}\"\npin_file = \"{pin}\"\nsessions = 2\n",
                module = token.module.display(),
                pin = token.pin_file.display(),
            ),
            Self::Vault(azure) => azure.section(name, SECRET),
        }
    }

    /// An algorithm that it does with RSA keys.
    pub fn algorithm(&self) -> &'static str {
        match self {
            // SoftHSM does no other.
            Self::Token(_) => "RSA-OAEP",
            Self::Vault(_) => "RSA-OAEP-256",
        }
    }

    /// Makes a key, or another version of it, as another tool would. Returns the name of the
    /// version, which on a token is `id`.
    pub fn make(&self, key: &str, id: &str) -> String {
        match self {
            Self::Token(token) => {
                token.generate_rsa(2048, key, id);
                id.to_owned()
            }
            Self::Vault(azure) if azure.fake.has(key) => azure.fake.rotate(key),
            Self::Vault(azure) => azure.fake.create_rsa(key, 2048),
        }
    }

    /// Takes a key away for good. A token keeps the public half, as it does when somebody
    /// deletes the private one.
    pub fn delete(&self, key: &str, id: &str) {
        match self {
            Self::Token(token) => {
                token.pkcs11_tool_user(&["--delete-object", "--type", "privkey", "--id", id]);
            }
            Self::Vault(azure) => {
                azure.fake.delete(key);
                azure.fake.purge(key);
            }
        }
    }

    /// What may forbid and allow the use of a key. On a token that is a handle of our own,
    /// to be made before there are threads: the module reads its configuration from the
    /// environment.
    pub fn owner(&self) -> Owner<'_> {
        match self {
            Self::Token(token) => Owner::of(token),
            Self::Vault(azure) => Owner::Vault(azure),
        }
    }

    /// Nobody can reach it any more.
    pub fn take_away(&self) {
        match self {
            Self::Token(token) => {
                let away = token.dir.path().join("away");
                fs::rename(token.storage(), away).expect("the token goes away");
            }
            Self::Vault(azure) => azure.fake.take_offline(Place::Vault),
        }
    }

    pub fn bring_back(&self) {
        match self {
            Self::Token(token) => {
                let away = token.dir.path().join("away");
                fs::rename(away, token.storage()).expect("the token comes back");
            }
            Self::Vault(azure) => azure.fake.bring_back(Place::Vault),
        }
    }
}

/// Who decides about the use of keys.
pub enum Owner<'a> {
    Token(Pkcs11),
    Vault(&'a Azure),
}

impl Owner<'_> {
    /// Sets or clears what a key needs to be allowed to unwrap.
    pub fn allow_use(&self, key: &str, allowed: bool) {
        match self {
            Self::Token(token) => allow_use_on_token(token, key, allowed),
            Self::Vault(azure) if allowed => azure.fake.enable(key, ""),
            Self::Vault(azure) => azure.fake.disable(key, ""),
        }
    }
}

impl Owner<'_> {
    /// Of a token.
    pub fn of(token: &TestToken) -> Self {
        token.enter();
        let handle = Pkcs11::new(&token.module).expect("a module");
        let how = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
        handle.initialize(how).expect("it starts");
        Self::Token(handle)
    }

    /// Sets the dates of a key on a token, as `YYYYMMDD`.
    pub fn set_dates(&self, key: &str, start: &str, end: &str) {
        let Self::Token(token) = self else { panic!("its home is no token") };
        let date = |text: &str| {
            Date::new_from_str_slice(&text[..4], &text[4..6], &text[6..]).expect("a date")
        };
        let dates = [Attribute::StartDate(date(start)), Attribute::EndDate(date(end))];
        change_on_token(token, key, &dates);
    }
}

fn allow_use_on_token(token: &Pkcs11, key: &str, allowed: bool) {
    change_on_token(token, key, &[Attribute::Decrypt(allowed), Attribute::Unwrap(allowed)]);
}

fn change_on_token(token: &Pkcs11, key: &str, attributes: &[Attribute]) {
    let slots = token.get_slots_with_initialized_token().expect("slots");
    let session = token.open_rw_session(slots[0]).expect("a session");
    session.login(UserType::User, Some(&AuthPin::from(PIN.to_owned()))).expect("a login");
    let wanted = [Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::Label(key.into())];
    let [key] = session.find_objects(&wanted).expect("a search")[..] else { panic!("not one key") };
    session.update_attributes(key, attributes).expect("attributes that can be changed");
}
