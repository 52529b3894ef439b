//! Wycheproof's vectors, through the backend, with the keys that they come with.

use std::ops::RangeInclusive;

use futures_util::future::join_all;
use keyward::{
    error::Reason,
    kek::{Algorithm, OaepHash},
};
use wycheproof::{HashFunction, TestResult, keywrap, rsa_oaep};

use crate::{
    Scene, hash_of,
    support::token::{Kind, TestToken},
};

/// The lengths that a wrapped payload can have; others are refused without the token.
const WRAPPED_LENGTHS: RangeInclusive<usize> = 24..=128;

/// Every vector with a KEK of 256 bits. Each has a KEK of its own.
async fn check_key_wrap(kind: Kind, algorithm: Algorithm, usage: &[&str]) {
    let name = match algorithm {
        Algorithm::A256Kw => keywrap::TestName::AesKeyWrap,
        _ => keywrap::TestName::AesKeyWrapWithPadding,
    };
    let set = keywrap::TestSet::load(name).expect("the vectors");
    let groups = set.test_groups.into_iter().filter(|group| group.key_size == 256);
    let tests: Vec<_> = groups.flat_map(|group| group.tests).collect();
    let token = TestToken::new(kind);
    for test in tests.iter().filter(|test| WRAPPED_LENGTHS.contains(&test.ct.len())) {
        token.write_aes(&test.key, &label_of(test.tc_id), &[&["--id", "01"], usage].concat());
    }
    let of_any_length = label_of(tests.iter().find(|test| test.ct.len() == 40).unwrap().tc_id);
    let scene = Scene::new(token);
    let outcomes = join_all(tests.iter().map(async |test| {
        let possible = WRAPPED_LENGTHS.contains(&test.ct.len());
        let label = if possible { label_of(test.tc_id) } else { of_any_length.clone() };
        let info = scene.version(&label, algorithm).await;
        let unwrapped = scene.unwrap(&info, algorithm, &test.ct).await;
        let expected = match test.result {
            TestResult::Valid if possible => Ok(test.pt.to_vec()),
            _ => Err(Reason::CiphertextInvalid),
        };
        assert_eq!(unwrapped, expected, "{} {}", test.tc_id, test.comment);
        expected.is_ok()
    }));
    let valid = outcomes.await.into_iter().filter(|valid| *valid).count();
    assert!(valid >= 10 && tests.len() - valid >= 50, "{valid} of {}", tests.len());
}

fn label_of(test: usize) -> String {
    format!("vector {test}")
}

/// Every vector with the algorithm's hash for OAEP and MGF1, and a key of a size that a
/// KEK may have. Vectors with a label must not unwrap: our labels are empty.
async fn check_oaep(kind: Kind, algorithm: Algorithm) {
    use rsa_oaep::TestName::*;
    let (hash, names): (_, &[_]) = match hash_of(algorithm) {
        OaepHash::Sha1 => (HashFunction::Sha1, &[Rsa2048Sha1Mgf1Sha1]),
        OaepHash::Sha256 => (
            HashFunction::Sha2_256,
            &[Rsa2048Sha256Mgf1Sha256, Rsa3072Sha256Mgf1Sha256, Rsa4096Sha256Mgf1Sha256],
        ),
        OaepHash::Sha384 => (HashFunction::Sha2_384, &[Rsa2048Sha384Mgf1Sha384]),
        OaepHash::Sha512 => (
            HashFunction::Sha2_512,
            &[Rsa2048Sha512Mgf1Sha512, Rsa3072Sha512Mgf1Sha512, Rsa4096Sha512Mgf1Sha512],
        ),
    };
    let sets = names.iter().chain([&RsaMisc]).map(|name| rsa_oaep::TestSet::load(*name).unwrap());
    let groups: Vec<_> = sets
        .flat_map(|set| set.test_groups)
        .filter(|group| group.hash == hash && group.mgf_hash == hash)
        .filter(|group| matches!(group.key_size, 2048 | 3072 | 4096))
        .collect();
    let token = TestToken::new(kind);
    for (number, group) in groups.iter().enumerate() {
        token.write_rsa(&group.pkcs8, &label_of(number), &["--id", "01", "--usage-decrypt"]);
    }
    let scene = Scene::new(token);
    let (mut valid, mut invalid) = (0, 0);
    for (number, group) in groups.iter().enumerate() {
        let info = scene.version(&label_of(number), algorithm).await;
        assert_eq!(info.bits as usize, group.key_size);
        let outcomes = join_all(group.tests.iter().map(async |test| {
            let unwrapped = scene.unwrap(&info, algorithm, &test.ct).await;
            let expected = match test.result {
                TestResult::Valid if test.label.is_empty() => Ok(test.pt.to_vec()),
                _ => Err(Reason::CiphertextInvalid),
            };
            assert_eq!(unwrapped, expected, "{} {}", test.tc_id, test.comment);
            expected.is_ok()
        }));
        let right = outcomes.await.into_iter().filter(|valid| *valid).count();
        (valid, invalid) = (valid + right, invalid + group.tests.len() - right);
    }
    assert!(valid >= 13 && invalid >= 20, "{valid} {invalid}");
}

#[tokio::test]
async fn oaep_sha_1_on_softhsm() {
    check_oaep(Kind::SoftHsm, Algorithm::RsaOaep).await;
}

#[tokio::test]
async fn oaep_sha_1_on_kryoptic() {
    check_oaep(Kind::Kryoptic, Algorithm::RsaOaep).await;
}

#[tokio::test]
async fn oaep_sha_256_on_kryoptic() {
    check_oaep(Kind::Kryoptic, Algorithm::RsaOaep256).await;
}

#[tokio::test]
async fn oaep_sha_384_on_kryoptic() {
    check_oaep(Kind::Kryoptic, Algorithm::RsaOaep384).await;
}

#[tokio::test]
async fn oaep_sha_512_on_kryoptic() {
    check_oaep(Kind::Kryoptic, Algorithm::RsaOaep512).await;
}

#[tokio::test]
async fn key_wrap_on_softhsm() {
    check_key_wrap(Kind::SoftHsm, Algorithm::A256Kw, &["--usage-wrap"]).await;
}

#[tokio::test]
async fn key_wrap_on_kryoptic() {
    check_key_wrap(Kind::Kryoptic, Algorithm::A256Kw, &["--usage-wrap"]).await;
}

#[tokio::test]
async fn key_wrap_by_decrypting_on_kryoptic() {
    check_key_wrap(Kind::Kryoptic, Algorithm::A256Kw, &["--usage-decrypt"]).await;
}

#[tokio::test]
async fn padded_key_wrap_on_softhsm() {
    check_key_wrap(Kind::SoftHsm, Algorithm::A256Kwp, &["--usage-wrap"]).await;
}

#[tokio::test]
async fn padded_key_wrap_on_kryoptic() {
    check_key_wrap(Kind::Kryoptic, Algorithm::A256Kwp, &["--usage-wrap"]).await;
}

#[tokio::test]
async fn padded_key_wrap_by_decrypting_on_kryoptic() {
    check_key_wrap(Kind::Kryoptic, Algorithm::A256Kwp, &["--usage-decrypt"]).await;
}
