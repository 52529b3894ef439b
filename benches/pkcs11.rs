//! What the backend adds to the HSM: one unwrap through `Pkcs11Backend` (queue, thread,
//! found key, judge at hand) against the bare `C_DecryptInit` and `C_Decrypt` of the same
//! key on the same SoftHSM, taken in turns in one run.
//!
//! The bar is a ratio of at most 1.05 at the median for RSA-2048. SoftHSM tells nothing of
//! a real HSM's latency: what the backend adds is the same there, so the ratio is smaller.

#[path = "../tests/support/token.rs"]
#[allow(dead_code)]
mod token;

use std::{
    hint::black_box,
    path::Path,
    ptr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use criterion::Criterion;
use cryptoki_sys as ck;
use keyward::{
    backend::{Backend, pkcs11::Pkcs11Backend},
    kek::{Algorithm, KeyRef, Proof, Purpose, UsableVersion, Version},
    secret::Secret,
};
use token::{LABEL, PIN, TestToken};

const ALGORITHM: Algorithm = Algorithm::RsaOaep;
const ROUNDS: usize = 600;

/// The floor: one session, one key, one call.
struct Raw {
    list: ck::CK_FUNCTION_LIST,
    session: ck::CK_SESSION_HANDLE,
    key: ck::CK_OBJECT_HANDLE,
    _module: ck::Pkcs11,
}

impl Raw {
    /// Joins the module that the backend has initialised and logged in to.
    fn join(module: &Path, id: u8) -> Self {
        let mut list = ptr::null_mut();
        let mut slots = [0; 16];
        let mut count = 16;
        let mut session = 0;
        let mut key = 0;
        let mut found = 0;
        let mut class = ck::CKO_PRIVATE_KEY;
        let mut id = [id];
        let mut template = [
            ck::CK_ATTRIBUTE {
                type_: ck::CKA_CLASS,
                pValue: ptr::from_mut(&mut class).cast(),
                ulValueLen: 8,
            },
            ck::CK_ATTRIBUTE { type_: ck::CKA_ID, pValue: id.as_mut_ptr().cast(), ulValueLen: 1 },
        ];
        // SAFETY: plain calls into a module that is initialised; every pointer is to a
        // local of the type that PKCS#11 says.
        unsafe {
            let module = ck::Pkcs11::new(module).expect("the module");
            assert_eq!(module.C_GetFunctionList(&mut list), ck::CKR_OK);
            let list = *list;
            let call = |code| assert_eq!(code, ck::CKR_OK);
            call(list.C_GetSlotList.unwrap()(ck::CK_TRUE, slots.as_mut_ptr(), &mut count));
            let open = list.C_OpenSession.unwrap();
            call(open(slots[0], ck::CKF_SERIAL_SESSION, ptr::null_mut(), None, &mut session));
            call(list.C_FindObjectsInit.unwrap()(session, template.as_mut_ptr(), 2));
            call(list.C_FindObjects.unwrap()(session, &mut key, 1, &mut found));
            call(list.C_FindObjectsFinal.unwrap()(session));
            assert_eq!(found, 1);
            Self { list, session, key, _module: module }
        }
    }

    fn decrypt(&self, ciphertext: &[u8]) -> usize {
        let mut parameter = ck::CK_RSA_PKCS_OAEP_PARAMS {
            hashAlg: ck::CKM_SHA_1,
            mgf: ck::CKG_MGF1_SHA1,
            source: ck::CKZ_DATA_SPECIFIED,
            pSourceData: ptr::null_mut(),
            ulSourceDataLen: 0,
        };
        let mut mechanism = ck::CK_MECHANISM {
            mechanism: ck::CKM_RSA_PKCS_OAEP,
            pParameter: ptr::from_mut(&mut parameter).cast(),
            ulParameterLen: size_of::<ck::CK_RSA_PKCS_OAEP_PARAMS>() as ck::CK_ULONG,
        };
        let mut plaintext = [0u8; 512];
        let mut len = 512;
        // SAFETY: as above; the lengths are those of the buffers.
        unsafe {
            let init = self.list.C_DecryptInit.unwrap();
            assert_eq!(init(self.session, &mut mechanism, self.key), ck::CKR_OK);
            let decrypt = self.list.C_Decrypt.unwrap();
            let code = decrypt(
                self.session,
                ciphertext.as_ptr().cast_mut(),
                ciphertext.len() as ck::CK_ULONG,
                plaintext.as_mut_ptr(),
                &mut len,
            );
            assert_eq!(code, ck::CKR_OK);
        }
        len as usize
    }
}

fn usable(version: &Version) -> UsableVersion {
    version.usable(Purpose::Unwrap, SystemTime::now()).expect("usable")
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn main() {
    let token = TestToken::softhsm();
    let sizes = [(2048, 1_u8), (3072, 2), (4096, 3)];
    for (bits, id) in sizes {
        token.generate_rsa(bits, &format!("rsa-{bits}"), &format!("{id:02x}"));
    }
    token.enter();
    let _pin_is_read_from_a_file = (LABEL, PIN);
    let backend = Pkcs11Backend::open(token.settings()).expect("the token opens");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let far = || Instant::now() + Duration::from_secs(60);
    let mut criterion = Criterion::default().configure_from_args().sample_size(20);
    let mut told = Vec::new();

    for (bits, id) in sizes {
        let key = KeyRef::parse(&format!("rsa-{bits}")).expect("a label");
        let info = runtime.block_on(backend.versions(&key, ALGORITHM, far())).unwrap().remove(0);
        let version = Version::new(Arc::new(info), Proof::Proven { at: SystemTime::now() });
        let payload = Secret::new(vec![7; 32]);
        let wrapping = usable(&version);
        let wrap = backend.wrap(&wrapping, ALGORITHM, &payload, far());
        let ciphertext = runtime.block_on(wrap).expect("a ciphertext");
        let raw = Raw::join(&token.module, id);
        let through = || {
            let usable = usable(&version);
            let unwrapped = backend.unwrap(&usable, ALGORITHM, &ciphertext, far());
            runtime.block_on(unwrapped).expect("a payload").len()
        };

        let mut group = criterion.benchmark_group(format!("unwrap/rsa-{bits}"));
        group.bench_function("raw", |b| b.iter(|| black_box(raw.decrypt(&ciphertext))));
        group.bench_function("backend", |b| b.iter(|| black_box(through())));
        group.finish();

        // In turns, so that a noisy neighbour meets both alike.
        let (mut floor, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS * 2048 / bits as usize {
            let began = Instant::now();
            black_box(raw.decrypt(&ciphertext));
            floor.push(began.elapsed());
            let began = Instant::now();
            black_box(through());
            ours.push(began.elapsed());
        }
        let (floor, ours) = (median(floor), median(ours));
        let ratio = ours.as_secs_f64() / floor.as_secs_f64();
        told.push(format!("RSA-{bits}: raw {floor:.0?}, backend {ours:.0?}, ratio {ratio:.3}"));
    }
    println!("\nunwrap at the median, in turns:");
    told.iter().for_each(|line| println!("  {line}"));
}
