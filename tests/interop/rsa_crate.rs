//! The `rsa` crate as an oracle that shares no code with what encrypts and decrypts here.

use std::process::Command;

use keyward::{
    backend::Backend,
    kek::{OaepHash, PublicKey},
    secret::Secret,
};
use rsa::{
    pkcs8::{DecodePrivateKey, EncodePrivateKey, EncodePublicKey, LineEnding},
    traits::PublicKeyParts,
};
use sha1::Sha1;
use sha2::{Sha256, Sha384, Sha512};

use crate::{
    OAEP, Scene, assert_opens, hash_of, oaep_of, payloads, soon,
    support::token::{self, Kind, LABEL, PIN, TestToken},
};

/// `with_hash!(hash, Hash, expression)`: the expression with the digest type that `hash`
/// means.
macro_rules! with_hash {
    ($hash:expr, $digest:ident, $expression:expr) => {
        match $hash {
            OaepHash::Sha1 => {
                type $digest = Sha1;
                $expression
            }
            OaepHash::Sha256 => {
                type $digest = Sha256;
                $expression
            }
            OaepHash::Sha384 => {
                type $digest = Sha384;
                $expression
            }
            OaepHash::Sha512 => {
                type $digest = Sha512;
                $expression
            }
        }
    };
}

fn rsa_encrypt(key: &rsa::PublicKey, hash: OaepHash, payload: &[u8]) -> Vec<u8> {
    with_hash!(hash, Hash, key.oaep_encrypt::<Hash>(payload)).expect("a ciphertext")
}

fn rsa_decrypt(key: &rsa::PrivateKey, hash: OaepHash, ciphertext: &[u8]) -> Vec<u8> {
    with_hash!(hash, Hash, key.oaep_decrypt::<Hash>(ciphertext)).expect("a payload")
}

/// A key of 3072 bits, which is what the crate makes.
fn rsa_key() -> rsa::PrivateKey {
    rsa::Generate::generate()
}

#[test]
fn what_is_encrypted_in_software_decrypts_with_the_rsa_crate() {
    let of_openssl = ["rsa_keygen_bits:2048", "rsa_keygen_bits:4096"].map(|bits| {
        let mut command = Command::new("openssl");
        command.args(["genpkey", "-algorithm", "RSA", "-pkeyopt", bits]);
        let pem = String::from_utf8(token::run(&mut command)).expect("PEM");
        rsa::PrivateKey::from_pkcs8_pem(&pem).expect("a key")
    });
    for key in [rsa_key()].into_iter().chain(of_openssl) {
        let public = PublicKey::from_components(&key.n_bytes(), &key.e_bytes()).expect("a key");
        let theirs = key.to_public_key().to_public_key_der().expect("DER");
        assert_eq!(public.spki(), theirs.as_bytes());
        for hash in OAEP.map(hash_of) {
            for (context, sealed) in payloads() {
                let wrapped = public.encrypt(hash, &Secret::copy_of(&sealed)).expect("encrypts");
                assert_opens(rsa_decrypt(&key, hash, &wrapped), &context, &sealed);
            }
        }
    }
}

async fn a_key_of_the_rsa_crate_works_both_ways(kind: Kind) {
    let token = TestToken::new(kind);
    let key = rsa_key();
    match kind {
        Kind::SoftHsm => softhsm_import(&token, &key, "kek", "77"),
        Kind::Kryoptic => {
            let pkcs8 = key.to_pkcs8_der().expect("PKCS #8");
            token.write_rsa(pkcs8.as_bytes(), "kek", &["--id", "77", "--usage-decrypt"]);
        }
    }
    let scene = Scene::new(token);
    for algorithm in oaep_of(kind) {
        let info = scene.version("kek", *algorithm).await;
        scene.backend.prove(&info, *algorithm, soon()).await.expect("the self-test");
        assert_eq!(info.id.as_str(), "77");
        for (context, sealed) in payloads() {
            let ours = scene.wrap(&info, *algorithm, &sealed).await;
            assert_opens(rsa_decrypt(&key, hash_of(*algorithm), &ours), &context, &sealed);
            let theirs = rsa_encrypt(&key.to_public_key(), hash_of(*algorithm), &sealed);
            let payload = scene.unwrap(&info, *algorithm, &theirs).await.expect("a payload");
            assert_opens(payload, &context, &sealed);
        }
    }
}

fn softhsm_import(token: &TestToken, key: &rsa::PrivateKey, label: &str, id: &str) {
    let pem = key.to_pkcs8_pem(LineEnding::LF).expect("PEM");
    let mut command = token.command("softhsm2-util");
    command.arg("--import").arg(token.file("key.pem", pem.as_bytes()));
    command.args(["--token", LABEL, "--label", label, "--id", id, "--pin", PIN]);
    token::run(&mut command);
}

on_both! {
    a_key_of_the_rsa_crate_works_both_ways;
}
