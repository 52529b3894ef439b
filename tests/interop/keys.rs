//! Keys as other tools make them: without a `CKA_ID`, with one use of two.

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    mechanism::Mechanism,
    object::Attribute,
    session::UserType,
    types::AuthPin,
};
use keyward::{
    backend::Backend,
    envelope::{self, Context},
    error::Reason,
    kek::Algorithm,
    secret::Secret,
};

use crate::{
    Scene, assert_opens, dek, oaep_of, payloads, soon,
    support::token::{Kind, PIN, TestToken},
};

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

on_both! {
    a_key_without_an_id_is_named_by_its_fingerprint;
    a_key_that_may_only_unwrap_unwraps;
    what_is_wrapped_but_is_no_dek_is_the_callers_error;
}
