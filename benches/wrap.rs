//! Wrapping under an RSA KEK, which is done in software: our public key (aws-lc-rs
//! beneath) against the `rsa` crate on the same key, in the same run. The ratio is why
//! `kek::PublicKey` parses with the one and computes with the other.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use keyward::{
    kek::{OaepHash, PublicKey},
    secret::Secret,
};
use rsa::pkcs8::DecodePublicKey;
use sha2::Sha256;

const SIZES: [usize; 3] = [2048, 3072, 4096];

/// The same public key twice. Its modulus is a random odd number: to encrypt, nobody
/// asks whether it has two prime factors.
fn keys(bits: usize) -> (PublicKey, rsa::PublicKey) {
    let mut modulus = vec![0; bits / 8];
    aws_lc_rs::rand::fill(&mut modulus).expect("random bytes");
    modulus[0] |= 0x80;
    modulus[bits / 8 - 1] |= 1;
    let ours = PublicKey::from_components(&modulus, &[1, 0, 1]).expect("a key");
    let theirs = rsa::PublicKey::from_public_key_der(ours.spki()).expect("a key");
    (ours, theirs)
}

fn dek() -> Secret {
    Secret::new(vec![0x5a; 32])
}

fn wrap(ours: &PublicKey, dek: &Secret) {
    black_box(ours.encrypt(OaepHash::Sha256, black_box(dek)).expect("a ciphertext"));
}

fn wrap_with_rsa(theirs: &rsa::PublicKey, dek: &Secret) {
    black_box(theirs.oaep_encrypt::<Sha256>(black_box(dek.expose())).expect("a ciphertext"));
}

fn bench(criterion: &mut Criterion) {
    let dek = dek();
    let mut group = criterion.benchmark_group("wrap in software");
    for bits in SIZES {
        let (ours, theirs) = keys(bits);
        group.bench_function(BenchmarkId::new("keyward", bits), |bencher| {
            bencher.iter(|| wrap(&ours, &dek));
        });
        group.bench_function(BenchmarkId::new("rsa crate", bits), |bencher| {
            bencher.iter(|| wrap_with_rsa(&theirs, &dek));
        });
    }
    group.finish();
}

/// Medians of one call, in turn over both, so that a noisy neighbour hits both alike.
fn ratios(_: &mut Criterion) {
    let dek = dek();
    for bits in SIZES {
        let (ours, theirs) = keys(bits);
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..2_000 {
            times[0].push(time(|| wrap(&ours, &dek)));
            times[1].push(time(|| wrap_with_rsa(&theirs, &dek)));
        }
        let [ours, theirs] = times.map(|mut times| {
            times.sort_unstable();
            times[times.len() / 2].as_secs_f64() * 1e6
        });
        let ratio = ours / theirs;
        println!("wrap, RSA-{bits}: {ours:.1} us, {ratio:.2} of the rsa crate ({theirs:.1} us)");
    }
}

fn time(operation: impl FnOnce()) -> Duration {
    let start = Instant::now();
    operation();
    start.elapsed()
}

criterion_group!(benches, bench, ratios);
criterion_main!(benches);
