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
//! nonce comes twice under a key; keys stand in a [`Secret`](crate::secret::Secret) and are expanded for one message
//! at a time.

mod agreement;
mod session;

use std::fmt;

pub use agreement::{Accepted, Offer, accept};
pub use session::{About, Sealed, Session};

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

#[cfg(test)]
mod tests {
    use std::{
        collections::HashSet,
        sync::{Mutex, atomic::Ordering},
    };

    use proptest::prelude::*;

    use super::*;
    use crate::secret::Secret;

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
