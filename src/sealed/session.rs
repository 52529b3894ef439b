//! DEKs sealed and opened under the keys of a session.
//!
//! It knows no HPKE. A key is expanded for one message and wiped.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use super::{Failure, KEY_BYTES, MESSAGES_MAX, SESSION_ID_BYTES, SessionId, TAG_BYTES};
use crate::secret::Secret;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
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
    pub(super) next: AtomicU64,
}

impl Session {
    pub(super) fn new(id: SessionId, keys: Secret, side: Side) -> Self {
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
