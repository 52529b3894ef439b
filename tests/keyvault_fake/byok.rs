//! BYOK packages, made here by the `rsa` crate and openssl as a customer's HSM makes them.

use rsa::{BoxedUint, pkcs1::EncodeRsaPrivateKey as _, pkcs8::EncodePrivateKey as _};
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::Sha256;

use crate::{
    client::{Client, Reply},
    crypto::{hex, openssl, openssl_rsa},
    keyvault::{
        FakeVault, Settings,
        message::{decode, encode},
    },
    scene,
};

const AES: [u8; 32] = [0x3c; 32];

/// A vault with a key exchange key; its kid and public half.
struct Exchange {
    vault: FakeVault,
    client: Client,
    kid: String,
    public: rsa::PublicKey,
}

impl Exchange {
    async fn new(settings: Settings, bits: u32) -> Self {
        let (vault, client) = scene(settings);
        let body = json!({
            "kty": "RSA-HSM", "key_size": bits, "key_ops": ["import"], "attributes": {},
        });
        let made = client.post("/keys/kek/create", body).await.ok();
        let part = |name: &str| {
            let bytes = decode(made["key"][name].as_str().unwrap()).unwrap();
            BoxedUint::from_be_slice_vartime(&bytes)
        };
        let public = rsa::PublicKey::new(part("n"), part("e")).unwrap();
        Self { vault, client, kid: made["key"]["kid"].as_str().unwrap().into(), public }
    }

    /// The two parts of a ciphertext.
    fn wrap(&self, key: &[u8]) -> Vec<u8> {
        [self.public.oaep_encrypt::<Sha1>(&AES).unwrap(), kwp(key)].concat()
    }

    fn package(&self, ciphertext: &str) -> Value {
        json!({
            "schema_version": "1.0.0",
            "header": { "kid": self.kid, "alg": "dir", "enc": "CKM_RSA_AES_KEY_WRAP" },
            "ciphertext": ciphertext,
            "generator": "a test",
        })
    }

    async fn import(&self, kty: &str, package: &Value) -> Reply {
        let body = json!({
            "key": {
                "kty": kty,
                "key_ops": ["wrapKey", "unwrapKey"],
                "key_hsm": encode(package.to_string()),
            },
            "attributes": { "enabled": true },
        });
        self.client.send("PUT", "/keys/target", Some(body)).await
    }
}

fn kwp(key: &[u8]) -> Vec<u8> {
    openssl(&["enc", "-id-aes256-wrap-pad", "-K", &hex(&AES), "-iv", "A65959A6"], key)
}

#[tokio::test]
async fn an_rsa_key_of_the_customer() {
    for kek_bits in [2048, 4096] {
        let exchange = Exchange::new(Settings::premium(), kek_bits).await;
        let target = openssl_rsa(3072);
        let pkcs8 = target.to_pkcs8_der().unwrap();
        let mut filled = pkcs8.as_bytes().to_vec();
        filled.resize(filled.len().next_multiple_of(8), 0);
        for plain in [pkcs8.as_bytes(), &filled] {
            let bare = encode(exchange.wrap(plain));
            // Some tools write the padding.
            let padded = format!("{bare:=<width$}", width = bare.len().next_multiple_of(4));
            for text in [bare, padded] {
                let package = exchange.package(&text);
                let made = exchange.import("RSA-HSM", &package).await.ok();
                assert_eq!(made["key"]["kty"], "RSA-HSM");
                assert_eq!(made["key"]["key_ops"], json!(["wrapKey", "unwrapKey"]));
            }
        }
        let dek = [8; 32];
        let wrapped = target.to_public_key().oaep_encrypt::<Sha256>(&dek).unwrap();
        let body = json!({ "alg": "RSA-OAEP-256", "value": encode(wrapped) });
        let opened = exchange.client.post("/keys/target//unwrapkey", body).await.ok();
        assert_eq!(opened["value"], encode(dek));
    }
}

#[tokio::test]
async fn an_aes_key_of_the_customer_goes_to_a_managed_hsm_only() {
    let unthrottled = |settings| Settings { throttled: false, ..settings };
    let key = [0x17; 32];
    let exchange = Exchange::new(unthrottled(Settings::managed_hsm()), 3072).await;
    let package = exchange.package(&encode(exchange.wrap(&key)));
    exchange.import("oct-HSM", &package).await.ok();
    let dek = [8; 32];
    let wrapped =
        openssl(&["enc", "-id-aes256-wrap", "-K", &hex(&key), "-iv", "A6A6A6A6A6A6A6A6"], &dek);
    let body = json!({ "alg": "A256KW", "value": encode(wrapped) });
    let opened = exchange.client.post("/keys/target//unwrapkey", body).await.ok();
    assert_eq!(opened["value"], encode(dek));
    let odd = exchange.package(&encode(exchange.wrap(&key[..31])));
    exchange.import("oct-HSM", &odd).await.is(400, "BadParameter", "");

    let exchange = Exchange::new(Settings::premium(), 2048).await;
    let package = exchange.package(&encode(exchange.wrap(&key)));
    exchange.import("oct-HSM", &package).await.is(400, "BadParameter", "");
}

#[tokio::test]
async fn packages_that_are_not_right() {
    let exchange = Exchange::new(Settings { throttled: false, ..Settings::premium() }, 2048).await;
    let target = openssl_rsa(2048);
    let pkcs8 = target.to_pkcs8_der().unwrap();
    let pkcs8 = pkcs8.as_bytes();
    let good = exchange.package(&encode(exchange.wrap(pkcs8)));
    exchange.import("RSA-HSM", &good).await.ok();
    exchange.import("RSA", &good).await.is(400, "BadParameter", "");

    let sha256 = [exchange.public.oaep_encrypt::<Sha256>(&AES).unwrap(), kwp(pkcs8)].concat();
    let pkcs1 = target.to_pkcs1_der().unwrap();
    let mut trailing = pkcs8.to_vec();
    trailing.push(1);
    let small = openssl(
        &["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024", "-outform", "DER"],
        &[],
    );
    let mut torn = exchange.wrap(pkcs8);
    *torn.last_mut().unwrap() ^= 1;
    for (what, ciphertext) in [
        ("OAEP with SHA-256", sha256),
        ("PKCS#1", exchange.wrap(pkcs1.as_bytes())),
        ("something behind the key", exchange.wrap(&trailing)),
        ("1024 bits", exchange.wrap(&small)),
        ("a flipped bit", torn),
        ("no key", vec![0; 256]),
        ("too short", vec![0; 255]),
    ] {
        let package = exchange.package(&encode(ciphertext));
        let reply = exchange.import("RSA-HSM", &package).await;
        assert_eq!(reply.codes(), (400, "BadParameter".into(), String::new()), "{what}");
    }

    let with = |pointer: &str, value: &str| {
        let mut package = good.clone();
        *package.pointer_mut(pointer).unwrap() = json!(value);
        package
    };
    let (without_version, _) = exchange.kid.rsplit_once('/').unwrap();
    for package in [
        with("/schema_version", "2.0.0"),
        with("/header/alg", "RSA-OAEP"),
        with("/header/enc", "RSA_AES_KEY_WRAP_256"),
        with("/header/kid", without_version),
        with("/header/kid", "https://other.vault.azure.net/keys/kek/0"),
        with("/ciphertext", "BASE64URL(AA)"),
    ] {
        exchange.import("RSA-HSM", &package).await.is(400, "BadParameter", "");
    }
    let unknown =
        with("/header/kid", &format!("{without_version}/{}", exchange.vault.unknown_version()));
    exchange.import("RSA-HSM", &unknown).await.is(404, "KeyNotFound", "");
    exchange.vault.disable("kek", "");
    exchange.import("RSA-HSM", &good).await.is(403, "Forbidden", "KeyDisabled");
    exchange.vault.enable("kek", "");
    exchange.vault.set_ops("kek", "", &["unwrapKey"]);
    exchange.import("RSA-HSM", &good).await.is(403, "Forbidden", "KeyOperationForbidden");
}
