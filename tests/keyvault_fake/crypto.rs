//! What the fake wraps and unwraps, against the `rsa` crate, openssl, and RFC 3394 and
//! RFC 5649; over the wire.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use proptest::{collection::vec, prelude::*};
use rsa::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, LineEnding};
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::Sha256;

use crate::{
    client::{Client, Reply},
    keyvault::{
        Settings, keywrap,
        material::Material,
        message::{decode, encode},
    },
    scene,
};

/// A key that openssl made, so that its sizes are not aws-lc's choice.
pub fn openssl_rsa(bits: usize) -> rsa::PrivateKey {
    let made = Command::new("openssl")
        .args(["genpkey", "-algorithm", "RSA", "-pkeyopt", &format!("rsa_keygen_bits:{bits}")])
        .output()
        .expect("openssl");
    let pem = String::from_utf8(made.stdout).unwrap();
    rsa::PrivateKey::from_pkcs8_pem(&pem).expect("a key")
}

pub fn openssl(args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("openssl")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("openssl");
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "openssl {args:?}");
    output.stdout
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| byte.is_ascii_hexdigit()).collect();
    let pairs = digits.chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

async fn crypt(client: &Client, path: &str, alg: &str, value: &[u8]) -> Reply {
    client.post(path, json!({ "alg": alg, "value": encode(value) })).await
}

fn value(answer: &Value) -> Vec<u8> {
    decode(answer["value"].as_str().unwrap()).unwrap()
}

#[tokio::test]
async fn rsa_agrees_with_the_rsa_crate() {
    let (vault, client) = scene(Settings::premium());
    for bits in [2048, 3072, 4096] {
        let key = openssl_rsa(bits);
        let name = format!("rsa-{bits}");
        let pkcs8 = key.to_pkcs8_der().unwrap();
        let version = vault.put(&name, Material::from_pkcs8(pkcs8.as_bytes()).unwrap());
        let public = key.to_public_key();
        let dek = [7; 32];
        let theirs = [
            ("RSA-OAEP", public.oaep_encrypt::<Sha1>(&dek).unwrap()),
            ("RSA-OAEP-256", public.oaep_encrypt::<Sha256>(&dek).unwrap()),
        ];
        for (alg, wrapped) in theirs {
            let path = format!("/keys/{name}/{version}");
            let answer = crypt(&client, &format!("{path}/unwrapkey"), alg, &wrapped).await.ok();
            assert_eq!(value(&answer), dek, "{alg} {bits}");
            assert_eq!(answer["kid"], vault.kid(&name, ""));
            let ours = crypt(&client, &format!("{path}/wrapkey"), alg, &dek).await.ok();
            let ours = value(&ours);
            let opened = match alg {
                "RSA-OAEP" => key.oaep_decrypt::<Sha1>(&ours),
                _ => key.oaep_decrypt::<Sha256>(&ours),
            };
            assert_eq!(opened.unwrap(), dek, "{alg} {bits}");
            // The other hash is a bad ciphertext, which is the caller's mistake.
            let other = if alg == "RSA-OAEP" { "RSA-OAEP-256" } else { "RSA-OAEP" };
            let refused = crypt(&client, &format!("{path}/unwrapkey"), other, &wrapped).await;
            refused.is(400, "BadParameter", "");
            assert!(refused.message().contains("OAEP padding"));
        }
    }
}

/// Which Keyward refuses; the service still does it.
#[tokio::test]
async fn rsa1_5_agrees_with_openssl() {
    let (vault, client) = scene(Settings::premium());
    let key = openssl_rsa(2048);
    vault.put("k", Material::from_pkcs8(key.to_pkcs8_der().unwrap().as_bytes()).unwrap());
    let pem = vault.dir().join("key.pem");
    std::fs::write(&pem, key.to_pkcs8_pem(LineEnding::LF).unwrap().as_bytes()).unwrap();
    let pem = pem.to_str().unwrap();
    let dek = [7; 32];
    let theirs = openssl(&["pkeyutl", "-encrypt", "-inkey", pem], &dek);
    let answer = crypt(&client, "/keys/k//unwrapkey", "RSA1_5", &theirs).await.ok();
    assert_eq!(value(&answer), dek);
    let ours = value(&crypt(&client, "/keys/k//wrapkey", "RSA1_5", &dek).await.ok());
    assert_eq!(openssl(&["pkeyutl", "-decrypt", "-inkey", pem], &ours), dek);
}

#[tokio::test]
async fn aes_agrees_with_openssl() {
    let (vault, client) = scene(Settings::managed_hsm());
    for bits in [128, 192, 256] {
        let key: Vec<u8> = (0..bits / 8).map(|byte| byte as u8 ^ 0x5a).collect();
        let name = format!("aes-{bits}");
        vault.put(&name, Material::from_oct(&key).unwrap());
        let by_size = format!("A{bits}KW");
        let kw = [
            (by_size.as_str(), "wrap", "A6A6A6A6A6A6A6A6", 32),
            ("CKM_AES_KEY_WRAP", "wrap", "A6A6A6A6A6A6A6A6", 16),
        ];
        let lens = [1, 7, 8, 9, 16, 31, 32, 64, 2373];
        let kwp = lens.map(|len| ("CKM_AES_KEY_WRAP_PAD", "wrap-pad", "A65959A6", len));
        for (alg, mode, iv, len) in kw.into_iter().chain(kwp) {
            let plain: Vec<u8> = (0..len).map(|byte| byte as u8).collect();
            let cipher = format!("-id-aes{bits}-{mode}");
            let base = ["enc", cipher.as_str(), "-K", &hex(&key), "-iv", iv].map(str::to_owned);
            let base: Vec<&str> = base.iter().map(String::as_str).collect();
            let theirs = openssl(&base, &plain);
            let wrapped = crypt(&client, &format!("/keys/{name}//wrapkey"), alg, &plain).await;
            assert_eq!(value(&wrapped.ok()), theirs, "{alg} {bits} {len}");
            let path = format!("/keys/{name}//unwrapkey");
            let unwrapped = crypt(&client, &path, alg, &theirs).await;
            assert_eq!(value(&unwrapped.ok()), plain, "{alg} {bits} {len}");
            let mut bad = theirs.clone();
            *bad.last_mut().unwrap() ^= 1;
            crypt(&client, &path, alg, &bad).await.is(400, "BadParameter", "");
        }
    }
}

/// Section 4 of RFC 3394, and section 6 of RFC 5649.
#[test]
fn the_vectors_of_the_rfcs() {
    let kek = |bits: usize| {
        unhex("000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F")[..bits / 8]
            .to_vec()
    };
    let data = unhex("00112233445566778899AABBCCDDEEFF0001020304050607 08090A0B0C0D0E0F");
    for (bits, len, wrapped) in [
        (128, 16, "1FA68B0A8112B447 AEF34BD8FB5A7B82 9D3E862371D2CFE5"),
        (192, 16, "96778B25AE6CA435 F92B5B97C050AED2 468AB8A17AD84E5D"),
        (256, 16, "64E8C3F9CE0F5BA2 63E9777905818A2A 93C8191E7D6E8AE7"),
        (192, 24, "031D33264E15D332 68F24EC260743EDC E1C6C7DDEE725A93 6BA814915C6762D2"),
        (256, 24, "A8F9BC1612C68B3F F6E6F4FBE30E71E4 769C8B80A32CB895 8CD5D17D6B254DA1"),
        (
            256,
            32,
            "28C9F404C4B810F4 CBCCB35CFB87F826 3F5786E2D80ED326 CBC7F0E71A99F43B FB988B9B7A02DD21",
        ),
    ] {
        let wrapped = unhex(wrapped);
        assert_eq!(keywrap::wrap(&kek(bits), &data[..len]).unwrap(), wrapped, "{bits} {len}");
        assert_eq!(keywrap::unwrap(&kek(bits), &wrapped).unwrap(), data[..len]);
        assert_eq!(keywrap::unwrap_padded(&kek(bits), &wrapped), None, "KW is not KWP");
    }
    let key = unhex("5840df6e29b02af1 ab493b705bf16ea1 ae8338f4dcc176a8");
    for (plain, wrapped) in [
        (
            "c37b7e6492584340 bed1220780894115 5068f738",
            "138bdeaa9b8fa7fc 61f97742e72248ee 5ae6ae5360d1ae6a 5f54f373fa543b6a",
        ),
        ("466f7250617369", "afbeb0f07dfbf541 9200f2ccb50bb24f"),
    ] {
        let (plain, wrapped) = (unhex(plain), unhex(wrapped));
        assert_eq!(keywrap::wrap_padded(&key, &plain).unwrap(), wrapped);
        assert_eq!(keywrap::unwrap_padded(&key, &wrapped).unwrap(), plain);
        assert_eq!(keywrap::unwrap(&key, &wrapped), None, "KWP is not KW");
    }
}

#[tokio::test]
async fn what_a_key_cannot_do_is_refused() {
    let (vault, client) = scene(Settings::managed_hsm());
    vault.create_rsa("rsa", 2048);
    vault.create_oct("aes", 256);
    let dek = [9; 32];
    for (key, alg, bytes) in [
        ("rsa", "A256KW", &dek[..]),
        ("rsa", "RSA-OAEP-512", &dek),
        ("rsa", "", &dek),
        ("aes", "RSA-OAEP-256", &dek),
        ("aes", "A128KW", &dek),
        ("aes", "A192KW", &dek),
        // Not a multiple of 8, and too short.
        ("aes", "A256KW", &dek[..31]),
        ("aes", "A256KW", &dek[..8]),
    ] {
        let path = format!("/keys/{key}/wrapkey");
        crypt(&client, &path, alg, bytes).await.is(400, "BadParameter", "");
    }
    // 2048 bits carry 190 bytes with SHA-256, and 214 with SHA-1.
    for (alg, max) in [("RSA-OAEP-256", 190), ("RSA-OAEP", 214)] {
        crypt(&client, "/keys/rsa/wrapkey", alg, &vec![1; max]).await.ok();
        let longer = crypt(&client, "/keys/rsa/wrapkey", alg, &vec![1; max + 1]).await;
        longer.is(400, "BadParameter", "");
    }
    let short = crypt(&client, "/keys/rsa/unwrapkey", "RSA-OAEP", &[1; 255]).await;
    short.is(400, "BadParameter", "");
}

#[tokio::test]
async fn values_are_base64url_with_or_without_padding() {
    let (vault, client) = scene(Settings::managed_hsm());
    vault.create_oct("aes", 256);
    let dek = [0xfb; 32];
    for text in [encode(dek), format!("{}=", encode(dek))] {
        let body = json!({ "alg": "A256KW", "value": text });
        let answer = client.post("/keys/aes/wrapkey", body).await.ok();
        let text = answer["value"].as_str().unwrap();
        assert!(!text.contains('='), "{text}");
        assert_eq!(value(&answer).len(), 40);
    }
    let standard = encode(dek).replace('-', "+").replace('_', "/");
    for bad in [standard.as_str(), "", "a b"] {
        let body = json!({ "alg": "A256KW", "value": bad });
        let refused = client.post("/keys/aes/wrapkey", body).await;
        refused.is(400, "BadParameter", "");
        assert!(refused.message().contains("not base64url"), "{}", refused.message());
    }
}

proptest! {
    #[test]
    fn key_wrap_gives_back_what_it_took_and_nothing_else(
        size in 0_usize..3,
        key in any::<[u8; 32]>(),
        plain in vec(any::<u8>(), 1..200),
        flip in any::<prop::sample::Index>(),
    ) {
        let key = &key[..[16, 24, 32][size]];
        let wrapped = keywrap::wrap_padded(key, &plain).unwrap();
        prop_assert_eq!(wrapped.len(), plain.len().next_multiple_of(8) + 8);
        prop_assert_eq!(keywrap::unwrap_padded(key, &wrapped), Some(plain.clone()));
        let mut bad = wrapped.clone();
        let bit = flip.index(bad.len() * 8);
        bad[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(keywrap::unwrap_padded(key, &bad), None);
        let whole = plain.len() >= 16 && plain.len() % 8 == 0;
        let wrapped = keywrap::wrap(key, &plain);
        prop_assert_eq!(wrapped.is_some(), whole);
        if let Some(wrapped) = wrapped {
            prop_assert_eq!(keywrap::unwrap(key, &wrapped), Some(plain));
        }
    }
}
