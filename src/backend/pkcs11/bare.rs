//! The token's own unwrap, timed on a worker's thread: `C_DecryptInit` and `C_Decrypt` (or
//! what the key needs instead) one after another, without queue, hand-over between threads,
//! judge and recovery.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;

use super::{
    Pkcs11Backend, decrypt, fault::Fault, has_possible_length, keys::Target, worker::Seat,
};
use crate::{
    backend::Bare,
    error::{Error, Reason},
    kek::{Algorithm, UsableVersion},
};

#[async_trait]
impl Bare for Pkcs11Backend {
    fn sessions(&self) -> usize {
        self.pool.workers()
    }

    async fn time_unwraps(
        &self,
        version: &UsableVersion,
        algorithm: Algorithm,
        ciphertexts: Arc<[Vec<u8>]>,
        length: Duration,
        deadline: Instant,
    ) -> Result<Vec<Duration>, Error> {
        let info = version.info();
        let possible = |ciphertext: &Vec<u8>| has_possible_length(info, algorithm, ciphertext);
        if ciphertexts.is_empty() || !ciphertexts.iter().all(possible) {
            return Err(Error::new(Reason::CiphertextInvalid, "nothing that could be unwrapped"));
        }
        let target = Target::new(info, algorithm);
        // A worker counts as hung after `patience`.
        let length = length.min(self.patience / 2);
        self.run(deadline, move |seat: &mut Seat<'_>| time(seat, &target, &ciphertexts, length))
            .await
    }
}

fn time(
    seat: &mut Seat<'_>,
    target: &Target,
    ciphertexts: &[Vec<u8>],
    length: Duration,
) -> Result<Vec<Duration>, Fault> {
    let until = Instant::now() + length;
    let mut times = Vec::new();
    for ciphertext in ciphertexts.iter().cycle() {
        let began = Instant::now();
        drop(decrypt(seat, target, ciphertext)?);
        let ended = Instant::now();
        times.push(ended - began);
        if ended >= until {
            break;
        }
    }
    Ok(times)
}
