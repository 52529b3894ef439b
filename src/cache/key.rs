//! What a cached DEK is found by: a keyed hash of everything that decides whether two
//! unwraps have the same answer.
//!
//! Invariant: two keys are equal only if grant, algorithm, context and ciphertext are.
//! The hash is keyed with bytes that are random for each cache, so that no caller can
//! choose ciphertexts that fall into one shard, and a dump of the index tells nobody
//! whose DEKs were cached.

use std::fmt;

use aws_lc_rs::{digest, rand};
use zeroize::Zeroize;

use super::Grant;
use crate::{
    envelope::Context,
    error::{Error, Reason},
    kek::Algorithm,
    secret::Secret,
};

const SECRET_LEN: usize = 32;

/// Secret, grant, algorithm, whether there is a context. What follows, the context's hash
/// if there is one and the ciphertext, has one reading only, because these have a fixed
/// length and the last of them says what comes next.
const HEAD_LEN: usize = SECRET_LEN + 8 + 1 + 1;

const CONTEXT_LEN: usize = 32;

/// Longest ciphertext that is hashed on the stack: RSA-4096.
const USUAL_BYTES: usize = 512;

/// What a cached DEK is found by. Equal keys have equal answers.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CacheKey([u8; 32]);

impl CacheKey {
    /// Of a slot that was never used.
    pub(super) const NONE: Self = Self([0; 32]);

    /// Picks the shard.
    pub(super) fn shard_hash(&self) -> u64 {
        self.eight(0)
    }

    /// Finds the entry in its shard. Other bytes than the shard's, which are alike for
    /// all entries of one shard.
    pub(super) fn index_hash(&self) -> u64 {
        self.eight(8)
    }

    /// Remembers an entry that is gone.
    pub(super) fn print(&self) -> u32 {
        self.eight(16) as u32
    }

    /// Spreads what was cached at the same moment.
    pub(super) fn spread(&self) -> u32 {
        (self.eight(16) >> 32) as u32
    }

    fn eight(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().expect("eight bytes"))
    }

    #[cfg(test)]
    pub(super) fn of(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

/// Makes the keys of one cache.
pub(super) struct Keyer(Secret);

impl Keyer {
    pub(super) fn new() -> Result<Self, Error> {
        let mut secret = Secret::zeroed(SECRET_LEN);
        rand::fill(secret.expose_mut())
            .map_err(|_| Error::new(Reason::Internal, "the system has no random bytes"))?;
        Ok(Self(secret))
    }

    pub(super) fn key(
        &self,
        grant: Grant,
        algorithm: Algorithm,
        context: &Context,
        ciphertext: &[u8],
    ) -> CacheKey {
        // One hash of one buffer: a hash that is fed in pieces allocates its state.
        let mut short = [0; HEAD_LEN + CONTEXT_LEN + USUAL_BYTES];
        let mut long = Vec::new();
        let context: &[u8] = match context {
            Context::None => &[],
            Context::Bound(hash) => hash,
        };
        let (bound, len) = (HEAD_LEN + context.len(), HEAD_LEN + context.len() + ciphertext.len());
        let input = match short.get_mut(..len) {
            Some(short) => short,
            None => {
                long.resize(len, 0);
                &mut long
            }
        };
        input[..SECRET_LEN].copy_from_slice(self.0.expose());
        input[32..40].copy_from_slice(&grant.0.to_le_bytes());
        input[40] = algorithm as u8;
        input[41] = u8::from(!context.is_empty());
        input[HEAD_LEN..bound].copy_from_slice(context);
        input[bound..].copy_from_slice(ciphertext);
        let hash = digest::digest(&digest::SHA256, input);
        input[..SECRET_LEN].zeroize();
        CacheKey(hash.as_ref().try_into().expect("SHA-256 gives 32 bytes"))
    }
}

impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CacheKey({:08x})", self.print())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn everything_that_decides_the_answer_is_in_the_key() {
        let keyer = Keyer::new().unwrap();
        let (a, b) = (Context::parse(b"a").unwrap(), Context::Bound([0; 32]));
        let mut seen = HashSet::new();
        let mut count = 0;
        for grant in [Grant(0), Grant(1), Grant(1 << 40)] {
            for algorithm in Algorithm::ALL {
                for context in [Context::None, a, b] {
                    for ciphertext in [&b""[..], b"\0", b"x", b"xx", &[0; 1024], &[0; 1025]] {
                        seen.insert(keyer.key(grant, algorithm, &context, ciphertext));
                        count += 1;
                    }
                }
            }
        }
        assert_eq!(seen.len(), count);
        for key in &seen {
            assert!(seen.contains(&CacheKey::of(key.0)));
        }
    }

    #[test]
    fn the_same_input_has_the_same_key_in_one_cache_and_another_in_the_next() {
        let of = |keyer: &Keyer| keyer.key(Grant(7), Algorithm::A256Kw, &Context::None, b"w");
        let (one, other) = (Keyer::new().unwrap(), Keyer::new().unwrap());
        assert_eq!(of(&one), of(&one));
        assert_ne!(of(&one), of(&other));
    }
}
