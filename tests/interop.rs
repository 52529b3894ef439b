//! Others agree with us: openssl, pkcs11-tool, softhsm2-util, the `rsa` crate, the RFCs
//! and Wycheproof's vectors.
//!
//! What another tool wraps with the same key unwraps here, what is wrapped here unwraps
//! there, and keys that other tools made are taken as they are. Everything runs on
//! SoftHSM, which does OAEP with SHA-1 only, and on kryoptic, which does the rest.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap, KeyWrapPadded};
use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    mechanism::Mechanism,
    object::Attribute,
    session::UserType,
    types::AuthPin,
};
use futures_util::future::join_all;
use keyward::{
    backend::{Backend, pkcs11::Pkcs11Backend},
    envelope::{self, Context, Dek},
    error::Reason,
    kek::{
        Algorithm, Family, KeyRef, OaepHash, Proof, PublicKey, Purpose, UsableVersion, Version,
        VersionInfo,
    },
    secret::Secret,
};
use rsa::{
    pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey, LineEnding},
    traits::PublicKeyParts,
};
use sha1::Sha1;
use sha2::{Sha256, Sha384, Sha512};
use support::token::{self, Kind, LABEL, PIN, TestToken};
use wycheproof::{HashFunction, TestResult, keywrap, rsa_oaep};

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

fn usable(info: &VersionInfo) -> UsableVersion {
    let now = SystemTime::now();
    Version::new(Arc::new(info.clone()), Proof::Proven { at: now })
        .usable(Purpose::Unwrap, now)
        .expect("the version is usable")
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

// --- openssl and pkcs11-tool ---------------------------------------------------------

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
fn openssl_key_wrap(
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

// --- the rsa crate ---------------------------------------------------------------------

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

// --- keys that other tools made ----------------------------------------------------------

async fn a_key_without_an_id_is_named_by_its_fingerprint(kind: Kind) {
    let token = TestToken::new(kind);
    let generate = ["--keypairgen", "--key-type", "rsa:2048", "--usage-decrypt", "--label"];
    token.pkcs11_tool_user(&[&generate[..], &["kek"]].concat());
    let scene = Scene::new(token);
    let info = scene.version("kek", Algorithm::RsaOaep).await;
    assert_eq!(info.id.to_string(), format!("fp-{}", &info.fingerprint.to_string()[..16]));
    let wrapped = scene.wrap(&info, Algorithm::RsaOaep, &dek(32)).await;
    assert_eq!(scene.unwrap(&info, Algorithm::RsaOaep, &wrapped).await, Ok(dek(32)));
    // A configuration can pin it by that name.
    let pinned = format!("kek/{}", info.id);
    assert_eq!(scene.version(&pinned, Algorithm::RsaOaep).await.fingerprint, info.fingerprint);
}

/// A token with the RSA key "kek", which has `CKA_UNWRAP` and not `CKA_DECRYPT`.
fn token_that_may_only_unwrap(kind: Kind) -> TestToken {
    let token = TestToken::new(kind);
    match kind {
        Kind::Kryoptic => {
            let generate = ["--keypairgen", "--key-type", "rsa:2048", "--usage-wrap", "--id", "01"];
            token.pkcs11_tool_user(&[&generate[..], &["--label", "kek"]].concat());
        }
        // Here pkcs11-tool leaves the uses that it is not asked for to the token, which
        // allows them all.
        Kind::SoftHsm => generate_unwrap_only(&token),
    }
    token
}

fn generate_unwrap_only(token: &TestToken) {
    token.enter();
    let module = Pkcs11::new(&token.module).expect("a module");
    module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).expect("it begins");
    let slots = module.get_slots_with_initialized_token().expect("slots");
    let session = module.open_rw_session(slots[0]).expect("a session");
    session.login(UserType::User, Some(&AuthPin::new(PIN.into()))).expect("a login");
    let shared = [
        Attribute::Token(true),
        Attribute::Label(b"kek".to_vec()),
        Attribute::Id(vec![1]),
        Attribute::Encrypt(false),
        Attribute::Wrap(true),
        Attribute::ModulusBits(2048.into()),
    ];
    let private = [
        Attribute::Token(true),
        Attribute::Label(b"kek".to_vec()),
        Attribute::Id(vec![1]),
        Attribute::Private(true),
        Attribute::Decrypt(false),
        Attribute::Unwrap(true),
    ];
    session.generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &shared, &private).expect("a key");
    drop(session);
    module.finalize().expect("it ends");
}

async fn a_key_that_may_only_unwrap_unwraps(kind: Kind) {
    let scene = Scene::new(token_that_may_only_unwrap(kind));
    let officer = scene.backend.officer().expect("an officer");
    let keys = officer.list(Some("kek"), soon()).await.expect("keys");
    assert!(keys[0].usage.contains(&"UNWRAP") && !keys[0].usage.contains(&"DECRYPT"));
    for algorithm in oaep_of(kind) {
        let info = scene.version("kek", *algorithm).await;
        scene.backend.prove(&info, *algorithm, soon()).await.expect("the self-test");
        for (context, sealed) in payloads() {
            let wrapped = scene.wrap(&info, *algorithm, &sealed).await;
            let payload = scene.unwrap(&info, *algorithm, &wrapped).await.expect("a payload");
            assert_opens(payload, &context, &sealed);
        }
    }
}

/// Anyone who has the public key can wrap what is no DEK. What a device says to that,
/// which may have to make an object of it, is the caller's error: never trouble of the
/// device or of its configuration.
async fn what_is_wrapped_but_is_no_dek_is_the_callers_error(kind: Kind) {
    let scene = Scene::new(token_that_may_only_unwrap(kind));
    let algorithm = Algorithm::RsaOaep;
    let info = scene.version("kek", algorithm).await;
    let good = scene.wrap(&info, algorithm, &dek(32)).await;
    for len in [0, 1, 15, 105, 128, 129, 214] {
        let wrapped = scene.wrap(&info, algorithm, &vec![7; len]).await;
        let opened = scene.unwrap(&info, algorithm, &wrapped).await.and_then(|payload| {
            let opened = envelope::open(Secret::new(payload), &Context::None);
            opened.map_err(|error| error.reason())
        });
        assert_eq!(opened.err(), Some(Reason::CiphertextInvalid), "{len}");
        assert_eq!(scene.unwrap(&info, algorithm, &good).await, Ok(dek(32)));
    }
}

/// On kryoptic, which has `C_Encrypt` with key wrap mechanisms beside `C_WrapKey`.
#[tokio::test]
async fn aes_keys_of_either_use_work() {
    let token = TestToken::kryoptic();
    token.write_aes(&dek(32), "wrap", &["--id", "01", "--usage-wrap"]);
    token.write_aes(&dek(32), "encrypt", &["--id", "02", "--usage-decrypt"]);
    let scene = Scene::new(token);
    for algorithm in [Algorithm::A256Kw, Algorithm::A256Kwp] {
        let wrap = scene.version("wrap", algorithm).await;
        let encrypt = scene.version("encrypt", algorithm).await;
        assert_eq!(wrap.fingerprint, encrypt.fingerprint, "it is the same key");
        for (info, other) in [(&wrap, &encrypt), (&encrypt, &wrap)] {
            scene.backend.prove(info, algorithm, soon()).await.expect("the self-test");
            let wrapped = scene.wrap(info, algorithm, &dek(32)).await;
            assert_eq!(scene.unwrap(other, algorithm, &wrapped).await, Ok(dek(32)));
        }
    }
}

// --- the RFCs --------------------------------------------------------------------------

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

// --- Wycheproof --------------------------------------------------------------------------

/// The lengths that a wrapped payload can have; others are refused without the token.
const WRAPPED_LENGTHS: std::ops::RangeInclusive<usize> = 24..=128;

/// Every vector with a KEK of 256 bits. Each has a KEK of its own.
async fn wycheproof_key_wrap(kind: Kind, algorithm: Algorithm, usage: &[&str]) {
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
async fn wycheproof_oaep(kind: Kind, algorithm: Algorithm) {
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

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

// --- what runs where -----------------------------------------------------------------------

macro_rules! on_both {
    ($($case:ident)+) => {
        mod on_softhsm { use super::*; $(on_both!(@ $case Kind::SoftHsm);)+ }
        mod on_kryoptic { use super::*; $(on_both!(@ $case Kind::Kryoptic);)+ }
    };
    (@ $case:ident $kind:expr) => {
        #[tokio::test]
        async fn $case() { super::$case($kind).await; }
    };
}

on_both! {
    what_openssl_wraps_unwraps_here
    what_is_wrapped_here_unwraps_with_pkcs11_tool
    aes_wrapping_agrees_with_openssl
    a_dek_of_any_length_that_openssl_wrapped_unwraps
    a_key_of_the_rsa_crate_works_both_ways
    a_key_without_an_id_is_named_by_its_fingerprint
    a_key_that_may_only_unwrap_unwraps
    what_is_wrapped_but_is_no_dek_is_the_callers_error
    rfc_3394_is_kept
}

macro_rules! wycheproof {
    ($($case:ident: $run:expr;)+) => {
        mod wycheproof_vectors {
            use super::{Algorithm::*, Kind::*, *};
            $(#[tokio::test] async fn $case() { $run.await; })+
        }
    };
}

wycheproof! {
    oaep_sha_1_on_softhsm: wycheproof_oaep(SoftHsm, RsaOaep);
    oaep_sha_1_on_kryoptic: wycheproof_oaep(Kryoptic, RsaOaep);
    oaep_sha_256_on_kryoptic: wycheproof_oaep(Kryoptic, RsaOaep256);
    oaep_sha_384_on_kryoptic: wycheproof_oaep(Kryoptic, RsaOaep384);
    oaep_sha_512_on_kryoptic: wycheproof_oaep(Kryoptic, RsaOaep512);
    key_wrap_on_softhsm: wycheproof_key_wrap(SoftHsm, A256Kw, &["--usage-wrap"]);
    key_wrap_on_kryoptic: wycheproof_key_wrap(Kryoptic, A256Kw, &["--usage-wrap"]);
    key_wrap_by_decrypting_on_kryoptic: wycheproof_key_wrap(Kryoptic, A256Kw, &["--usage-decrypt"]);
    padded_key_wrap_on_softhsm: wycheproof_key_wrap(SoftHsm, A256Kwp, &["--usage-wrap"]);
    padded_key_wrap_on_kryoptic: wycheproof_key_wrap(Kryoptic, A256Kwp, &["--usage-wrap"]);
    padded_key_wrap_by_decrypting_on_kryoptic:
        wycheproof_key_wrap(Kryoptic, A256Kwp, &["--usage-decrypt"]);
}
