//! Sealed delivery: the keys that a client and a sidecar share for a while, and DEKs sealed
//! under them, so that no buffer of gRPC, TLS or the kernel between the two holds a DEK.
//!
//! A session is opened by one message of HPKE (RFC 9180, base mode, DHKEM(X25519,
//! HKDF-SHA256), HKDF-SHA256, AES-256-GCM): the client sends a fresh public key, the sidecar
//! draws two AES-256 keys, one for each direction, and seals them to it. Both ends forget
//! what they agreed on them with, so that no key that lasts opens what was recorded.
//!
//! ```text
//! session keys   64 octets: the key of what the sidecar seals ‖ that of what the client seals
//! opening        HPKE.Seal(public key, info, aad = session id, session keys)
//! a sealed DEK   AES-256-GCM(key, nonce = 0⁴ ‖ number as 8 octets, aad, DEK) ‖ tag
//!   aad          session id ‖ length of subject as 4 octets ‖ subject ‖ context
//! ```
//!
//! The subject says which DEK it is: the ciphertext of the wrapped DEK in what the sidecar
//! seals, the name of the KEK in what the client seals. So an answer is good for the question
//! that it answers, and for no other.
//!
//! It knows no transport, no clock and no identity: who may use a session, and for how long,
//! is for others to say.
//!
//! Invariants: a number is given once in a session, and never past [`MESSAGES_MAX`], so no
//! nonce comes twice under a key; keys stand in a [`Secret`] and are expanded for one message
//! at a time.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand,
};
use rustls::crypto::{
    aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as HPKE,
    hpke::{EncapsulatedSecret, Hpke as _, HpkePrivateKey, HpkePublicKey},
};
use zeroize::Zeroizing;

use crate::secret::Secret;

/// What HPKE is told that it is used for.
const INFO: &[u8] = b"keyward.v1 sealed delivery";

/// Length of a session's id, in bytes.
pub const SESSION_ID_BYTES: usize = 16;
/// Length of an X25519 public key, in bytes.
pub const PUBLIC_KEY_BYTES: usize = 32;
/// Length of the keys of a session, in bytes: one for each direction.
pub const SESSION_KEYS_BYTES: usize = 2 * KEY_BYTES;
/// Length of what AES-GCM adds, in bytes.
pub const TAG_BYTES: usize = 16;
/// Messages that either side seals in one session, at most.
pub const MESSAGES_MAX: u64 = 1 << 24;

const KEY_BYTES: usize = 32;

/// Names a session. Drawn at random; not secret.
pub type SessionId = [u8; SESSION_ID_BYTES];

/// Why sealing, opening or agreeing failed. Says nothing of what was sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// What the other side sent to open a session is not that.
    Opening,
    /// Not sealed under this session for this purpose.
    NotSealed,
    /// The session has sealed all that it may.
    Spent,
    /// There is no memory for what was sealed.
    Memory,
    /// The machine's cryptography failed.
    Machine,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Opening => "the session cannot be opened with what was sent",
            Self::NotSealed => "it is not sealed under this session for this purpose",
            Self::Spent => "the session has sealed all that it may",
            Self::Memory => "there is no more locked memory",
            Self::Machine => "the cryptographic library failed",
        })
    }
}

impl std::error::Error for Failure {}

/// A client's half of opening a session.
pub struct Offer {
    public: HpkePublicKey,
    private: HpkePrivateKey,
}

impl Offer {
    /// Draws a key pair.
    pub fn new() -> Result<Self, Failure> {
        let (public, private) = HPKE.generate_key_pair().map_err(|_| Failure::Machine)?;
        Ok(Self { public, private })
    }

    /// What the sidecar is to be sent: [`PUBLIC_KEY_BYTES`] bytes.
    pub fn public_key(&self) -> &[u8] {
        &self.public.0
    }

    /// The session, from what the sidecar answered. `memory` gives room for the keys.
    pub fn finish(
        self,
        id: &[u8],
        public_key: &[u8],
        sealed_keys: &[u8],
        memory: impl FnOnce(usize) -> Option<Secret>,
    ) -> Result<Session, Failure> {
        let id: SessionId = id.try_into().map_err(|_| Failure::Opening)?;
        let encapsulated = EncapsulatedSecret(public_key.to_vec());
        let opened = HPKE.open(&encapsulated, INFO, &id, sealed_keys, &self.private);
        let opened = Zeroizing::new(opened.map_err(|_| Failure::Opening)?);
        if opened.len() != SESSION_KEYS_BYTES {
            return Err(Failure::Opening);
        }
        let mut keys = memory(SESSION_KEYS_BYTES).ok_or(Failure::Memory)?;
        keys.expose_mut().copy_from_slice(&opened);
        Ok(Session::new(id, keys, Side::Client))
    }
}

impl fmt::Debug for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Offer")
    }
}

/// A session that the sidecar opened, and what the client is to be answered.
#[derive(Debug)]
pub struct Accepted {
    /// The session.
    pub session: Session,
    /// The encapsulated key: [`PUBLIC_KEY_BYTES`] bytes.
    pub public_key: Vec<u8>,
    /// The keys of the session, sealed to the client: [`SESSION_KEYS_BYTES`] and
    /// [`TAG_BYTES`] bytes.
    pub sealed_keys: Vec<u8>,
}

/// The sidecar's half of opening a session. `keys` is room for [`SESSION_KEYS_BYTES`] bytes.
pub fn accept(public_key: &[u8], mut keys: Secret) -> Result<Accepted, Failure> {
    if public_key.len() != PUBLIC_KEY_BYTES || keys.len() != SESSION_KEYS_BYTES {
        return Err(Failure::Opening);
    }
    let mut id = SessionId::default();
    rand::fill(&mut id).map_err(|_| Failure::Machine)?;
    rand::fill(keys.expose_mut()).map_err(|_| Failure::Machine)?;
    let public_key = HpkePublicKey(public_key.to_vec());
    // Fails for a point of small order, with which everybody could agree on the same keys.
    let sealed = HPKE.seal(INFO, &id, keys.expose(), &public_key);
    let (EncapsulatedSecret(public_key), sealed_keys) = sealed.map_err(|_| Failure::Opening)?;
    Ok(Accepted { session: Session::new(id, keys, Side::Sidecar), public_key, sealed_keys })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Sidecar,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Client => Self::Sidecar,
            Self::Sidecar => Self::Client,
        }
    }
}

/// What a sealed DEK is good for.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// The ciphertext of the wrapped DEK in what the sidecar seals, the name of the KEK in
    /// what the client seals.
    pub subject: &'a [u8],
    /// The context that the DEK is bound to.
    pub context: &'a [u8],
}

/// A sealed DEK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Which message of its side it is.
    pub number: u64,
    /// The DEK, sealed, and [`TAG_BYTES`] bytes more.
    pub ciphertext: Vec<u8>,
}

/// Keys that a client and a sidecar share.
pub struct Session {
    id: SessionId,
    keys: Secret,
    side: Side,
    /// The number of the next message that this side seals.
    next: AtomicU64,
}

impl Session {
    fn new(id: SessionId, keys: Secret, side: Side) -> Self {
        Self { id, keys, side, next: AtomicU64::new(0) }
    }

    /// Its name.
    pub fn id(&self) -> &SessionId {
        &self.id
    }

    /// How many messages this side has sealed.
    pub fn sealed(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Seals a DEK for the other side.
    pub fn seal(&self, dek: &Secret, about: About<'_>) -> Result<Sealed, Failure> {
        let number = self.number()?;
        let dek = dek.expose();
        let mut ciphertext = vec![0; dek.len() + TAG_BYTES];
        let (sealed, tag) = ciphertext.split_at_mut(dek.len());
        // From where it stands to where it is sealed: there is no copy in the clear.
        self.key(self.side)?
            .seal_out_of_place_scatter(nonce(number), self.aad(about), dek, sealed, &[], tag)
            .map_err(|_| Failure::Machine)?;
        Ok(Sealed { number, ciphertext })
    }

    /// Opens what the other side sealed. `memory` gives room for the DEK.
    pub fn open(
        &self,
        number: u64,
        ciphertext: &[u8],
        about: About<'_>,
        memory: impl FnOnce(usize) -> Option<Secret>,
    ) -> Result<Secret, Failure> {
        let len = ciphertext.len().checked_sub(TAG_BYTES).ok_or(Failure::NotSealed)?;
        if number >= MESSAGES_MAX {
            return Err(Failure::NotSealed);
        }
        let (sealed, tag) = ciphertext.split_at(len);
        let mut dek = memory(len).ok_or(Failure::Memory)?;
        let (nonce, aad) = (nonce(number), self.aad(about));
        self.key(self.side.other())?
            .open_separate_gather(nonce, aad, sealed, tag, dek.expose_mut())
            .map_err(|_| Failure::NotSealed)?;
        Ok(dek)
    }

    /// The number of the next message. Once they are spent it stays so.
    fn number(&self) -> Result<u64, Failure> {
        let next = |number| (number < MESSAGES_MAX).then_some(number + 1);
        self.next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next)
            .map_err(|_| Failure::Spent)
    }

    /// The key of what `side` seals, expanded; the library wipes it when it is dropped.
    fn key(&self, side: Side) -> Result<LessSafeKey, Failure> {
        let (of_sidecar, of_client) = self.keys.expose().split_at(KEY_BYTES);
        let key = match side {
            Side::Sidecar => of_sidecar,
            Side::Client => of_client,
        };
        let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| Failure::Machine)?;
        Ok(LessSafeKey::new(key))
    }

    fn aad(&self, About { subject, context }: About<'_>) -> Aad<Vec<u8>> {
        let mut aad = Vec::with_capacity(SESSION_ID_BYTES + 4 + subject.len() + context.len());
        aad.extend_from_slice(&self.id);
        // No message is longer than 64 KiB.
        aad.extend_from_slice(&u32::try_from(subject.len()).unwrap_or(u32::MAX).to_be_bytes());
        aad.extend_from_slice(subject);
        aad.extend_from_slice(context);
        Aad::from(aad)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({} sealed)", self.sealed())
    }
}

fn nonce(number: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[NONCE_LEN - 8..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, sync::Mutex};

    use proptest::prelude::*;

    use super::*;

    const DEK: [u8; 32] = [7; 32];
    const ABOUT: About<'static> = About { subject: b"ciphertext", context: b"tenant 7" };

    fn heap(len: usize) -> Option<Secret> {
        Some(Secret::zeroed(len))
    }

    fn agreed() -> (Session, Session) {
        let offer = Offer::new().unwrap();
        let Accepted { session, public_key, sealed_keys } =
            accept(offer.public_key(), Secret::zeroed(SESSION_KEYS_BYTES)).unwrap();
        let client = offer.finish(session.id(), &public_key, &sealed_keys, heap).unwrap();
        (client, session)
    }

    fn unhex(text: &str) -> Vec<u8> {
        let digits = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
        digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
    }

    /// RFC 9180: appendix A.1 for AES-128-GCM, and what its test vectors
    /// (github.com/cfrg/draft-irtf-cfrg-hpke, test-vectors.json) have beside it for
    /// AES-256-GCM: base mode, KEM 0x20, KDF 1, AEAD 1 and 2, the first message.
    #[test]
    fn rfc_9180_is_kept() {
        use rustls::crypto::{
            aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_128 as AES_128, hpke::Hpke,
        };
        let vectors: [(&dyn Hpke, &str, &str, &str); 2] = [
            (
                AES_128,
                "4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8",
                "37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431",
                "f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a9\
                 6d8770ac83d07bea87e13c512a",
            ),
            (
                HPKE,
                "497b4502664cfea5d5af0b39934dac72242a74f8480451e1aee7d6a53320333d",
                "6c93e09869df3402d7bf231bf540fadd35cd56be14f97178f0954db94b7fc256",
                "e5d84cd531cfb583096e7cfa9641bd3079cf3a91cda813c52deb5f512be99319\
                 80a41de125a925cdad859d5b7a",
            ),
        ];
        for (suite, private, encapsulated, ciphertext) in vectors {
            let encapsulated = EncapsulatedSecret(unhex(encapsulated));
            let private = HpkePrivateKey::from(unhex(private));
            let (info, aad) = (b"Ode on a Grecian Urn", b"Count-0");
            let opened = suite.open(&encapsulated, info, aad, &unhex(ciphertext), &private);
            assert_eq!(opened.unwrap(), b"Beauty is truth, truth beauty");
        }
    }

    #[test]
    fn each_side_opens_what_the_other_sealed_and_not_its_own() {
        let (client, sidecar) = agreed();
        let dek = Secret::copy_of(&DEK);
        for (from, to) in [(&client, &sidecar), (&sidecar, &client)] {
            for number in 0..3 {
                let sealed = from.seal(&dek, ABOUT).unwrap();
                assert_eq!((sealed.number, sealed.ciphertext.len()), (number, DEK.len() + 16));
                let opened = to.open(number, &sealed.ciphertext, ABOUT, heap).unwrap();
                assert!(opened.ct_eq(&DEK));
                let own = from.open(number, &sealed.ciphertext, ABOUT, heap);
                assert_eq!(own.err(), Some(Failure::NotSealed));
            }
        }
    }

    #[test]
    fn an_answer_is_good_for_its_question_and_session_only() {
        let (client, sidecar) = agreed();
        let (stranger, _) = agreed();
        let Sealed { number, ciphertext } = sidecar.seal(&Secret::copy_of(&DEK), ABOUT).unwrap();
        let open = |session: &Session, number, about| {
            session.open(number, &ciphertext, about, heap).map(drop)
        };
        assert_eq!(open(&client, number, ABOUT), Ok(()));
        assert_eq!(open(&client, number + 1, ABOUT), Err(Failure::NotSealed));
        assert_eq!(open(&client, u64::MAX, ABOUT), Err(Failure::NotSealed));
        assert_eq!(open(&stranger, number, ABOUT), Err(Failure::NotSealed));
        for (subject, context) in [
            (&b"other"[..], &b"tenant 7"[..]),
            (b"ciphertext", b"tenant 8"),
            (b"ciphertextt", b"enant 7"),
            (b"", b"ciphertexttenant 7"),
        ] {
            let about = About { subject, context };
            assert_eq!(open(&client, number, about), Err(Failure::NotSealed), "{about:?}");
        }
    }

    #[test]
    fn what_was_changed_on_its_way_does_not_open() {
        let (client, sidecar) = agreed();
        let Sealed { number, ciphertext } = sidecar.seal(&Secret::copy_of(&DEK), ABOUT).unwrap();
        for bit in 0..ciphertext.len() * 8 {
            let mut changed = ciphertext.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let opened = client.open(number, &changed, ABOUT, heap);
            assert_eq!(opened.err(), Some(Failure::NotSealed), "bit {bit}");
        }
        for len in 0..ciphertext.len() {
            let opened = client.open(number, &ciphertext[..len], ABOUT, heap);
            assert_eq!(opened.err(), Some(Failure::NotSealed), "{len} bytes");
        }
    }

    /// Changes a session's name, encapsulated key or sealed keys.
    type Spoil = fn(&mut Vec<u8>, &mut Vec<u8>, &mut Vec<u8>);

    #[test]
    fn an_opening_that_was_changed_does_not_open() {
        let offer = || Offer::new().unwrap();
        let room = || Secret::zeroed(SESSION_KEYS_BYTES);
        let fresh = |spoil: Spoil| {
            let offer = offer();
            let accepted = accept(offer.public_key(), room()).unwrap();
            let (mut id, mut key, mut sealed) =
                (accepted.session.id().to_vec(), accepted.public_key, accepted.sealed_keys);
            spoil(&mut id, &mut key, &mut sealed);
            offer.finish(&id, &key, &sealed, heap).map(drop)
        };
        assert_eq!(fresh(|_, _, _| ()), Ok(()));
        let spoilt: [Spoil; 7] = [
            |id, _, _| id[0] ^= 1,
            |id, _, _| _ = id.pop(),
            |_, key, _| key[0] ^= 1,
            |_, key, _| _ = key.pop(),
            |_, key, _| key.fill(0),
            |_, _, sealed| sealed[63] ^= 1,
            |_, _, sealed| sealed.truncate(16),
        ];
        for (which, spoil) in spoilt.into_iter().enumerate() {
            assert_eq!(fresh(spoil), Err(Failure::Opening), "{which}");
        }
        // Nothing, too short, too long, points of small order.
        for bad in [&[][..], &[9; 31], &[9; 33], &[0; 32], &[&[1][..], &[0; 31]].concat()] {
            assert_eq!(accept(bad, room()).err(), Some(Failure::Opening), "{bad:?}");
        }
        let full = offer();
        let accepted = accept(full.public_key(), room()).unwrap();
        let (id, key) = (*accepted.session.id(), accepted.public_key);
        let refused = full.finish(&id, &key, &accepted.sealed_keys, |_| None);
        assert_eq!(refused.err(), Some(Failure::Memory));
    }

    #[test]
    fn no_number_is_given_twice_and_they_come_to_an_end() {
        let (client, sidecar) = agreed();
        let seen = Mutex::new(HashSet::new());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let number = sidecar.seal(&Secret::copy_of(&DEK), ABOUT).unwrap().number;
                        assert!(seen.lock().unwrap().insert(number));
                    }
                });
            }
        });
        assert_eq!((seen.lock().unwrap().len(), sidecar.sealed()), (2000, 2000));
        client.next.store(MESSAGES_MAX - 1, Ordering::Relaxed);
        assert!(client.seal(&Secret::copy_of(&DEK), ABOUT).is_ok());
        for _ in 0..3 {
            assert_eq!(client.seal(&Secret::copy_of(&DEK), ABOUT), Err(Failure::Spent));
        }
        assert_eq!(client.sealed(), MESSAGES_MAX);
    }

    #[test]
    fn nothing_prints_a_key() {
        let (client, _) = agreed();
        assert_eq!(format!("{client:?}"), "Session(0 sealed)");
        assert_eq!(format!("{:?}", Offer::new().unwrap()), "Offer");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn any_dek_comes_back(
            dek in prop::collection::vec(any::<u8>(), 16..=64),
            subject in prop::collection::vec(any::<u8>(), 0..600),
            context in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let (client, sidecar) = agreed();
            let about = About { subject: &subject, context: &context };
            let Sealed { number, ciphertext } = client.seal(&Secret::copy_of(&dek), about).unwrap();
            prop_assert!(!ciphertext.windows(dek.len()).any(|part| part == dek));
            prop_assert!(sidecar.open(number, &ciphertext, about, heap).unwrap().ct_eq(&dek));
        }

        /// Whatever a stranger sends is refused, and nothing panics.
        #[test]
        fn garbage_is_refused(
            public_key in prop::collection::vec(any::<u8>(), 0..70),
            sealed in prop::collection::vec(any::<u8>(), 0..120),
            number in any::<u64>(),
        ) {
            let _point_or_not = accept(&public_key, Secret::zeroed(SESSION_KEYS_BYTES));
            let offer = Offer::new().unwrap();
            prop_assert!(offer.finish(&[1; 16], &public_key, &sealed, heap).is_err());
            prop_assert!(agreed().0.open(number, &sealed, ABOUT, heap).is_err());
        }
    }
}
