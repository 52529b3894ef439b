//! What a lease costs on the way of every unwrap: two checks.

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{Criterion, criterion_group, criterion_main};
use keyward::lease::{Lease, Terms};

fn bench(criterion: &mut Criterion) {
    let hour = Duration::from_secs(3600);
    let terms = Terms { interval: hour, outage_grace: hour };
    let lease = Lease::grant(Instant::now(), terms);
    let mut group = criterion.benchmark_group("lease");
    let now = Instant::now();
    group.bench_function("check", |b| b.iter(|| lease.standing(black_box(now))));
    group.bench_function("check, with reading the clock", |b| {
        b.iter(|| lease.standing(Instant::now()));
    });
    group.bench_function("hold and check twice, as an unwrap does", |b| {
        b.iter(|| {
            let held = Arc::clone(black_box(&lease));
            black_box(held.standing(Instant::now()));
            black_box(held.standing(Instant::now()))
        });
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
