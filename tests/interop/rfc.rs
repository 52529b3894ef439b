//! The vectors of RFC 3394 and RFC 5649.

use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap, KeyWrapPadded};
use keyward::kek::Algorithm;

use crate::{
    Scene, dek,
    support::token::{Kind, TestToken},
    tools::openssl_key_wrap,
    unhex,
};

/// RFC 3394, sections 4.3, 4.5 and 4.6: those with a KEK of 256 bits.
const RFC_3394: [(&str, &str); 3] = [
    ("00112233445566778899AABBCCDDEEFF", "64E8C3F9CE0F5BA263E9777905818A2A93C8191E7D6E8AE7"),
    (
        "00112233445566778899AABBCCDDEEFF0001020304050607",
        "A8F9BC1612C68B3FF6E6F4FBE30E71E4769C8B80A32CB8958CD5D17D6B254DA1",
    ),
    (
        "00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F",
        "28C9F404C4B810F4CBCCB35CFB87F8263F5786E2D80ED326CBC7F0E71A99F43BFB988B9B7A02DD21",
    ),
];
const RFC_3394_KEK: &str = "000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F";

/// RFC 5649, section 6. The RFC has no others, and none with 256 bits.
const RFC_5649: [(&str, &str); 2] = [
    (
        "c37b7e6492584340bed12207808941155068f738",
        "138bdeaa9b8fa7fc61f97742e72248ee5ae6ae5360d1ae6a5f54f373fa543b6a",
    ),
    ("466f7250617369", "afbeb0f07dfbf5419200f2ccb50bb24f"),
];
const RFC_5649_KEK: &str = "5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8";

async fn rfc_3394_is_kept(kind: Kind) {
    let token = TestToken::new(kind);
    let kek = unhex(RFC_3394_KEK);
    token.write_aes(&kek, "kek", &["--id", "01", "--usage-wrap", "--usage-decrypt"]);
    let scene = Scene::new(token);
    let info = scene.version("kek", Algorithm::A256Kw).await;
    for (key, wrapped) in RFC_3394.map(|(key, wrapped)| (unhex(key), unhex(wrapped))) {
        // What the backend judges tokens by.
        let mut room = [0; 64];
        let reference = AesKek::new(&AES_256, &kek).unwrap().wrap(&key, &mut room).unwrap();
        assert_eq!(*reference, wrapped);
        assert_eq!(scene.wrap(&info, Algorithm::A256Kw, &key).await, wrapped);
        assert_eq!(scene.unwrap(&info, Algorithm::A256Kw, &wrapped).await, Ok(key));
    }
}

/// RFC 5649 has vectors for 192 bits only, which are no KEK and which aws-lc-rs does not
/// do. So openssl is checked against them, and aws-lc-rs against openssl.
#[test]
fn rfc_5649_is_kept() {
    let token = TestToken::softhsm();
    let kek = unhex(RFC_5649_KEK);
    for (key, wrapped) in RFC_5649.map(|(key, wrapped)| (unhex(key), unhex(wrapped))) {
        let openssl = |way, data| openssl_key_wrap(&token, way, "id-aes192-wrap-pad", &kek, data);
        assert_eq!(openssl("-e", &key), wrapped);
        assert_eq!(openssl("-d", &wrapped), key);
    }
    let kek = dek(32);
    for len in 1..=104 {
        let mut room = [0; 128];
        let reference = AesKek::new(&AES_256, &kek).unwrap();
        let reference = reference.wrap_with_padding(&dek(len), &mut room).unwrap();
        let openssl = openssl_key_wrap(&token, "-e", "id-aes256-wrap-pad", &kek, &dek(len));
        assert_eq!(*reference, openssl, "{len}");
    }
}

on_both! {
    rfc_3394_is_kept;
}
