//! Others agree with us: openssl, pkcs11-tool, softhsm2-util, the `rsa` crate, the RFCs
//! and Wycheproof's vectors.
//!
//! What another tool wraps with the same key unwraps here, what is wrapped here unwraps
//! there, and keys that other tools made are taken as they are. Everything runs on
//! SoftHSM, which does OAEP with SHA-1 only, and on kryoptic, which does the rest.

#[path = "../support/mod.rs"]
mod support;

/// Runs cases on both tokens.
macro_rules! on_both {
    ($($case:ident;)+) => {
        mod softhsm {
            $(#[tokio::test] async fn $case() { super::$case(super::Kind::SoftHsm).await; })+
        }
        mod kryoptic {
            $(#[tokio::test] async fn $case() { super::$case(super::Kind::Kryoptic).await; })+
        }
    };
}

mod keys;
mod rfc;
mod rsa_crate;
mod tools;
mod vectors;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use keyward::{
    backend::{Backend, pkcs11::Pkcs11Backend},
    envelope::{self, Context, Dek},
    error::Reason,
    kek::{Algorithm, Family, KeyRef, OaepHash, VersionInfo},
    secret::Secret,
};
use support::{
    token::{Kind, TestToken},
    usable,
};

const OAEP: [Algorithm; 4] =
    [Algorithm::RsaOaep, Algorithm::RsaOaep256, Algorithm::RsaOaep384, Algorithm::RsaOaep512];

/// The OAEP algorithms that a token does.
fn oaep_of(kind: Kind) -> &'static [Algorithm] {
    match kind {
        Kind::SoftHsm => &OAEP[..1],
        Kind::Kryoptic => &OAEP,
    }
}

fn hash_of(algorithm: Algorithm) -> OaepHash {
    match algorithm.family() {
        Family::Rsa(hash) => hash,
        Family::Aes => panic!("{algorithm} has no hash"),
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// A token that other tools put keys on, and our backend beside them.
struct Scene {
    token: TestToken,
    backend: Pkcs11Backend,
}

impl Scene {
    fn new(token: TestToken) -> Self {
        token.enter();
        let backend = Pkcs11Backend::open(token.settings()).expect("the token opens");
        Self { token, backend }
    }

    /// The only version of a key.
    async fn version(&self, label: &str, algorithm: Algorithm) -> VersionInfo {
        let key = KeyRef::parse(label).expect("a label");
        let mut versions = self.backend.versions(&key, algorithm, soon()).await.expect("a key");
        assert_eq!(versions.len(), 1);
        versions.remove(0)
    }

    async fn wrap(&self, info: &VersionInfo, algorithm: Algorithm, payload: &[u8]) -> Vec<u8> {
        let payload = Secret::copy_of(payload);
        let wrapped = self.backend.wrap(&usable(info), algorithm, &payload, soon()).await;
        wrapped.expect("a ciphertext")
    }

    async fn unwrap(
        &self,
        info: &VersionInfo,
        algorithm: Algorithm,
        ciphertext: &[u8],
    ) -> Result<Vec<u8>, Reason> {
        let unwrapped = self.backend.unwrap(&usable(info), algorithm, ciphertext, soon()).await;
        unwrapped.map(|payload| payload.expose().to_vec()).map_err(|error| error.reason())
    }

    /// A file beside the token.
    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        self.token.file(name, bytes)
    }
}

impl TestToken {
    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, bytes).expect("a file");
        path
    }

    /// Has pkcs11-tool store a key that was made elsewhere. `more` are its usage flags.
    fn write_key(&self, file: &Path, kind: &[&str], label: &str, more: &[&str]) {
        let file = file.to_str().expect("a path in UTF-8");
        let what = ["--write-object", file, "--label", label];
        self.pkcs11_tool_user(&[&what[..], kind, more].concat());
    }

    fn write_rsa(&self, pkcs8: &[u8], label: &str, more: &[&str]) {
        let file = self.file("key.der", pkcs8);
        self.write_key(&file, &["--type", "privkey"], label, more);
    }

    fn write_aes(&self, key: &[u8], label: &str, more: &[&str]) {
        let file = self.file("key.bin", key);
        self.write_key(&file, &["--type", "secrkey", "--key-type", "AES:32"], label, more);
    }
}

/// What is wrapped in practice: bare DEKs and bound ones, of the least and the greatest
/// length.
fn payloads() -> Vec<(Context, Vec<u8>)> {
    let contexts = [Context::None, Context::parse(b"tenant 7, volume 3").expect("a context")];
    let lengths = [16, 32, 64];
    let sealed = contexts.iter().flat_map(|context| {
        lengths.map(|len| {
            let dek = Dek::parse(Secret::copy_of(&dek(len))).expect("a DEK");
            (*context, envelope::seal(&dek, context).expose().to_vec())
        })
    });
    sealed.collect()
}

/// A DEK; the ends of it are zeros, which a tool that strips any would spoil.
fn dek(len: usize) -> Vec<u8> {
    let mut dek: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
    dek[len - 1] = 0;
    dek
}

fn assert_opens(payload: Vec<u8>, context: &Context, sealed: &[u8]) {
    assert_eq!(payload, sealed);
    let opened = envelope::open(Secret::new(payload), context).expect("a DEK");
    assert!(opened.secret().ct_eq(&dek(opened.secret().len())));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}
