//! openssl and pkcs11-tool: what they wrap unwraps here, what is wrapped here unwraps
//! there.

use std::fs;

use keyward::kek::{Algorithm, OaepHash, VersionInfo};
use rsa::pkcs8::{DecodePublicKey, EncodePublicKey, LineEnding};

use crate::{
    Scene, assert_opens, dek, hash_of, hex, oaep_of, payloads,
    support::token::{self, Kind, TestToken},
};

async fn what_openssl_wraps_unwraps_here(kind: Kind) {
    let token = TestToken::new(kind);
    token.generate_rsa(2048, "two", "02");
    token.generate_rsa(3072, "three", "03");
    let scene = Scene::new(token);
    for label in ["two", "three"] {
        for algorithm in oaep_of(kind) {
            let info = scene.version(label, *algorithm).await;
            let public = scene.file("public.pem", public_pem(&info));
            for (context, sealed) in payloads() {
                let mut command = scene.token.command("openssl");
                command.args(["pkeyutl", "-encrypt", "-pubin", "-inkey"]).arg(&public);
                command.arg("-in").arg(scene.file("payload", &sealed));
                for option in openssl_oaep(*algorithm) {
                    command.args(["-pkeyopt", &option]);
                }
                let wrapped = token::run(&mut command);
                let payload = scene.unwrap(&info, *algorithm, &wrapped).await.expect("a payload");
                assert_opens(payload, &context, &sealed);
            }
        }
    }
}

fn public_pem(info: &VersionInfo) -> String {
    let public = info.public_key.as_ref().expect("a public key");
    let key = rsa::PublicKey::from_public_key_der(public.spki()).expect("a SubjectPublicKeyInfo");
    key.to_public_key_pem(LineEnding::LF).expect("PEM")
}

fn openssl_oaep(algorithm: Algorithm) -> [String; 3] {
    let hash = match hash_of(algorithm) {
        OaepHash::Sha1 => "sha1",
        OaepHash::Sha256 => "sha256",
        OaepHash::Sha384 => "sha384",
        OaepHash::Sha512 => "sha512",
    };
    [
        "rsa_padding_mode:oaep".to_owned(),
        format!("rsa_oaep_md:{hash}"),
        format!("rsa_mgf1_md:{hash}"),
    ]
}

async fn what_is_wrapped_here_unwraps_with_pkcs11_tool(kind: Kind) {
    let token = TestToken::new(kind);
    token.generate_rsa(2048, "kek", "0a0b");
    let scene = Scene::new(token);
    for algorithm in oaep_of(kind) {
        let info = scene.version("kek", *algorithm).await;
        let (hash, mgf) = match hash_of(*algorithm) {
            OaepHash::Sha1 => ("SHA-1", "MGF1-SHA1"),
            OaepHash::Sha256 => ("SHA256", "MGF1-SHA256"),
            OaepHash::Sha384 => ("SHA384", "MGF1-SHA384"),
            OaepHash::Sha512 => ("SHA512", "MGF1-SHA512"),
        };
        for (context, sealed) in payloads() {
            let wrapped = scene.wrap(&info, *algorithm, &sealed).await;
            let wrapped = scene.file("wrapped", wrapped);
            let unwrapped = scene.file("unwrapped", "");
            scene.token.pkcs11_tool_user(&[
                "--decrypt",
                "--mechanism",
                "RSA-PKCS-OAEP",
                "--hash-algorithm",
                hash,
                "--mgf",
                mgf,
                // The version is the key's CKA_ID: all that another tool needs to know.
                "--id",
                info.id.as_str(),
                "--input-file",
                wrapped.to_str().unwrap(),
                "--output-file",
                unwrapped.to_str().unwrap(),
            ]);
            assert_opens(fs::read(unwrapped).expect("the payload"), &context, &sealed);
        }
    }
}

/// `openssl enc` on a key: `-e` wraps, `-d` unwraps.
pub(crate) fn openssl_key_wrap(
    token: &TestToken,
    way: &str,
    cipher: &str,
    kek: &[u8],
    data: &[u8],
) -> Vec<u8> {
    // openssl wants to be told the initial value, also where the RFC fixes it.
    let iv = if cipher.ends_with("pad") { "a65959a6" } else { "a6a6a6a6a6a6a6a6" };
    let mut command = token.command("openssl");
    command.args(["enc", way, &format!("-{cipher}"), "-K", &hex(kek), "-iv", iv, "-in"]);
    token::run(command.arg(token.file("data", data)))
}

async fn aes_wrapping_agrees_with_openssl(kind: Kind) {
    let token = TestToken::new(kind);
    let kek = dek(32);
    token.write_aes(&kek, "kek", &["--id", "01", "--usage-wrap", "--usage-decrypt"]);
    let scene = Scene::new(token);
    for (algorithm, cipher) in
        [(Algorithm::A256Kw, "id-aes256-wrap"), (Algorithm::A256Kwp, "id-aes256-wrap-pad")]
    {
        let info = scene.version("kek", algorithm).await;
        for (context, sealed) in payloads() {
            let theirs = openssl_key_wrap(&scene.token, "-e", cipher, &kek, &sealed);
            let ours = scene.wrap(&info, algorithm, &sealed).await;
            assert_eq!(ours, theirs, "key wrap is deterministic");
            let payload = scene.unwrap(&info, algorithm, &theirs).await.expect("a payload");
            assert_opens(payload, &context, &sealed);
        }
    }
}

/// SoftHSM wraps multiples of 8 only, but others may have wrapped more.
async fn a_dek_of_any_length_that_openssl_wrapped_unwraps(kind: Kind) {
    let token = TestToken::new(kind);
    let kek = dek(32);
    token.write_aes(&kek, "kek", &["--id", "01", "--usage-wrap"]);
    let scene = Scene::new(token);
    let info = scene.version("kek", Algorithm::A256Kwp).await;
    for len in [17, 20, 23, 33, 63] {
        let wrapped = openssl_key_wrap(&scene.token, "-e", "id-aes256-wrap-pad", &kek, &dek(len));
        assert_eq!(scene.unwrap(&info, Algorithm::A256Kwp, &wrapped).await, Ok(dek(len)), "{len}");
    }
}

on_both! {
    what_openssl_wraps_unwraps_here;
    what_is_wrapped_here_unwraps_with_pkcs11_tool;
    aes_wrapping_agrees_with_openssl;
    a_dek_of_any_length_that_openssl_wrapped_unwraps;
}
