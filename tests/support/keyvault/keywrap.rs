//! AES key wrap of RFC 3394 (KW) and RFC 5649 (KWP), for keys of 128, 192 and 256 bits.
//!
//! Written out over single AES blocks, because aws-lc's own has no 192 bits, and because
//! the fake should not share the code that it is there to check.

use aws_lc_rs::cipher::{
    AES_128, AES_192, AES_256, Algorithm, DecryptingKey, DecryptionContext, EncryptingKey,
    UnboundCipherKey,
};

const KW_IV: [u8; 8] = [0xa6; 8];
const KWP_IV: [u8; 4] = [0xa6, 0x59, 0x59, 0xa6];

type Block = [u8; 16];

fn algorithm(key: &[u8]) -> &'static Algorithm {
    match key.len() {
        16 => &AES_128,
        24 => &AES_192,
        32 => &AES_256,
        other => panic!("no AES key has {other} bytes"),
    }
}

/// AES on one block after another.
struct Aes {
    encrypting: EncryptingKey,
    decrypting: DecryptingKey,
}

impl Aes {
    fn new(key: &[u8]) -> Self {
        let unbound = || UnboundCipherKey::new(algorithm(key), key).expect("an AES key");
        Self {
            encrypting: EncryptingKey::ecb(unbound()).expect("AES"),
            decrypting: DecryptingKey::ecb(unbound()).expect("AES"),
        }
    }

    fn encrypt(&self, block: &mut Block) {
        self.encrypting.encrypt(block).expect("one block");
    }

    fn decrypt(&self, block: &mut Block) {
        self.decrypting.decrypt(block, DecryptionContext::None).expect("one block");
    }
}

fn join(high: [u8; 8], low: &[u8]) -> Block {
    let mut block = [0; 16];
    block[..8].copy_from_slice(&high);
    block[8..].copy_from_slice(low);
    block
}

/// The wrapping process of RFC 3394, 2.2.1, from any initial value.
fn wrap_from(aes: &Aes, iv: [u8; 8], plain: &[u8]) -> Vec<u8> {
    let mut halves = plain.to_vec();
    let mut a = iv;
    let mut step: u64 = 0;
    for _ in 0..6 {
        for half in halves.chunks_exact_mut(8) {
            step += 1;
            let mut block = join(a, half);
            aes.encrypt(&mut block);
            a = (u64::from_be_bytes(block[..8].try_into().unwrap()) ^ step).to_be_bytes();
            half.copy_from_slice(&block[8..]);
        }
    }
    [&a[..], &halves].concat()
}

/// The reverse: the initial value that comes out, and the plaintext.
fn unwrap_to(aes: &Aes, wrapped: &[u8]) -> ([u8; 8], Vec<u8>) {
    let mut a: [u8; 8] = wrapped[..8].try_into().unwrap();
    let mut halves = wrapped[8..].to_vec();
    let mut step = 6 * (halves.len() as u64 / 8);
    for _ in 0..6 {
        for half in halves.chunks_exact_mut(8).rev() {
            let mixed = (u64::from_be_bytes(a) ^ step).to_be_bytes();
            let mut block = join(mixed, half);
            aes.decrypt(&mut block);
            a = block[..8].try_into().unwrap();
            half.copy_from_slice(&block[8..]);
            step -= 1;
        }
    }
    (a, halves)
}

/// KW. `None` unless the plaintext is a multiple of 8 bytes, 16 at least.
pub fn wrap(key: &[u8], plain: &[u8]) -> Option<Vec<u8>> {
    (plain.len() >= 16 && plain.len().is_multiple_of(8))
        .then(|| wrap_from(&Aes::new(key), KW_IV, plain))
}

/// KW. `None` if the length or the integrity check is wrong.
pub fn unwrap(key: &[u8], wrapped: &[u8]) -> Option<Vec<u8>> {
    if wrapped.len() < 24 || !wrapped.len().is_multiple_of(8) {
        return None;
    }
    let (iv, plain) = unwrap_to(&Aes::new(key), wrapped);
    (iv == KW_IV).then_some(plain)
}

/// KWP. `None` for an empty plaintext.
pub fn wrap_padded(key: &[u8], plain: &[u8]) -> Option<Vec<u8>> {
    let len = u32::try_from(plain.len()).ok().filter(|len| *len > 0)?;
    let mut iv = [0; 8];
    iv[..4].copy_from_slice(&KWP_IV);
    iv[4..].copy_from_slice(&len.to_be_bytes());
    let mut padded = plain.to_vec();
    padded.resize(plain.len().next_multiple_of(8), 0);
    let aes = Aes::new(key);
    if padded.len() == 8 {
        let mut block = join(iv, &padded);
        aes.encrypt(&mut block);
        return Some(block.to_vec());
    }
    Some(wrap_from(&aes, iv, &padded))
}

/// KWP. `None` if the length, the integrity check or the padding is wrong.
pub fn unwrap_padded(key: &[u8], wrapped: &[u8]) -> Option<Vec<u8>> {
    if wrapped.len() < 16 || !wrapped.len().is_multiple_of(8) {
        return None;
    }
    let aes = Aes::new(key);
    let (iv, mut plain) = if wrapped.len() == 16 {
        let mut block: Block = wrapped.try_into().unwrap();
        aes.decrypt(&mut block);
        (block[..8].try_into().unwrap(), block[8..].to_vec())
    } else {
        unwrap_to(&aes, wrapped)
    };
    let len = u32::from_be_bytes(iv[4..].try_into().unwrap()) as usize;
    let padding = plain.len().checked_sub(len).filter(|padding| *padding < 8)?;
    if iv[..4] != KWP_IV || plain[len..].iter().any(|byte| *byte != 0) || padding == plain.len() {
        return None;
    }
    plain.truncate(len);
    Some(plain)
}
