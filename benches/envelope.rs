//! Building and parsing what surrounds a DEK: its payload, with and without a context,
//! and the message that a storage node keeps. The floor is a copy of as many bytes into
//! a `Secret`, measured in the same run.

use std::{hint::black_box, time::Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use keyward::{
    envelope::{self, BOUND_LEN, Context, Dek},
    secret::Secret,
    wire,
};

fn dek() -> Dek {
    Dek::parse(Secret::new(vec![0x5a; 32])).expect("a DEK")
}

fn message() -> wire::WrappedDek {
    wire::WrappedDek {
        kek: "orders-db".into(),
        version: "20260101T000000Z-0a1b2c3d".into(),
        algorithm: wire::Algorithm::RsaOaep256.into(),
        ciphertext: vec![0xa5; 384],
        kek_fingerprint: vec![7; 32],
    }
}

fn payload(criterion: &mut Criterion) {
    let (dek, none) = (dek(), Context::None);
    let bound = Context::parse(b"tenant 7, volume 3, file 12").expect("a context");
    let mut group = criterion.benchmark_group("payload");
    group.bench_function("floor: copy of a bound payload", |bencher| {
        bencher.iter(|| Secret::copy_of(black_box(&[0x5a; BOUND_LEN])));
    });
    group.bench_function("context of 27 bytes", |bencher| {
        bencher.iter(|| Context::parse(black_box(b"tenant 7, volume 3, file 12")));
    });
    for (name, context) in [("bare", none), ("bound", bound)] {
        group.bench_function(format!("build, {name}"), |bencher| {
            bencher.iter(|| envelope::seal(black_box(&dek), black_box(&context)));
        });
        let sealed = envelope::seal(&dek, &context);
        group.bench_function(format!("parse, {name}"), |bencher| {
            // `open` consumes the payload; the copy is part of what is measured.
            bencher.iter(|| {
                envelope::open(Secret::copy_of(black_box(sealed.expose())), black_box(&context))
            });
        });
    }
    group.finish();
}

fn wrapped_dek(criterion: &mut Criterion) {
    let (message, bytes) = (message(), message().to_bytes());
    let mut group = criterion.benchmark_group("wrapped DEK");
    group.bench_function("build", |bencher| bencher.iter(|| black_box(&message).to_bytes()));
    group.bench_function("parse", |bencher| {
        bencher.iter(|| wire::WrappedDek::from_bytes(black_box(&bytes)).expect("a message"));
    });
    group.finish();
}

/// Median nanoseconds of two operations, taken in turn so that a noisy neighbour hits
/// both alike. Each sample is a thousand runs, because one is shorter than the clock.
fn medians(mut one: impl FnMut(), mut other: impl FnMut()) -> [f64; 2] {
    let mut times = [Vec::new(), Vec::new()];
    let sample = |operation: &mut dyn FnMut()| {
        let start = Instant::now();
        (0..1000).for_each(|_| operation());
        start.elapsed().as_secs_f64() * 1e6
    };
    for _ in 0..501 {
        times[0].push(sample(&mut one));
        times[1].push(sample(&mut other));
    }
    times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    })
}

fn ratio(_: &mut Criterion) {
    let dek = dek();
    let bound = Context::parse(b"tenant 7, volume 3, file 12").expect("a context");
    let sealed = envelope::seal(&dek, &bound);
    let copy = || drop(black_box(Secret::copy_of(black_box(&[0x5a; BOUND_LEN]))));
    let build = || drop(black_box(envelope::seal(black_box(&dek), black_box(&bound))));
    let parse = || {
        let payload = Secret::copy_of(black_box(sealed.expose()));
        drop(black_box(envelope::open(payload, black_box(&bound))));
    };
    let [floor, time] = medians(copy, build);
    println!("build a bound payload: {time:.0} ns, {:.2} of a copy ({floor:.0} ns)", time / floor);
    let [floor, time] = medians(copy, parse);
    println!("parse a bound payload: {time:.0} ns, {:.2} of a copy ({floor:.0} ns)", time / floor);
}

criterion_group!(benches, payload, wrapped_dek, ratio);
criterion_main!(benches);
