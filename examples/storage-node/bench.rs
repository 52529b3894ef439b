//! What the keys cost a storage node: opening it, against the HSM's own rate, and its pages per
//! second against the same store with DEKs that stand in the clear. Taken in turns in one run.
//!
//! The HSM's rate is what `keyward bench` measures by itself: decryption in a loop, by as many
//! threads as do best, without the sidecar.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use aws_lc_rs::rand;
use keyward::client::{Secret, WrappedDek};

use crate::{
    Failure,
    life::{Home, keyward, open},
    options::Options,
    pages::{fill, random},
    store::{DEK, Result, Store, format::Address},
};

const COLD: usize = 3;
const WARM: usize = 5;
/// Segments of the stores whose pages are read and written.
const SEGMENTS: u64 = 16;
const TURN: Duration = Duration::from_millis(100);
const TURNS: usize = 60;

pub fn run(options: &Options) -> std::result::Result<(), Failure> {
    let home = Home::make()?;
    opening(options, &home.0.join("many"))?;
    paging(options, &home.0)
}

fn opening(options: &Options, dir: &Path) -> std::result::Result<(), Failure> {
    let segments = options.segments;
    {
        let (node, _news) = open(options, dir)?;
        node.add_segments(segments)?;
    }
    let mut raw = vec![decryptions_per_second(options)?];
    let mut cold = Vec::new();
    for _ in 0..COLD {
        keyward(options, &["kek", "purge", &options.kek])?;
        cold.push(segments as f64 / time_to_open(options, dir)?.as_secs_f64());
        raw.push(decryptions_per_second(options)?);
    }
    let mut warm = Vec::new();
    for _ in 0..WARM {
        warm.push(time_to_open(options, dir)?.as_secs_f64() * 1e3);
    }
    let (raw_rate, cold_rate) = (median(&mut raw), median(&mut cold));
    println!("opening {segments} segments:");
    println!("  by the HSM            {cold_rate:8.0} a second");
    println!("  the HSM's own rate    {raw_rate:8.0} a second");
    println!("  ratio                 {:8.3}", cold_rate / raw_rate);
    println!("  from the cache        {:8.1} ms", median(&mut warm));
    Ok(())
}

/// Opens the store, all of whose segments must be light then.
fn time_to_open(options: &Options, dir: &Path) -> std::result::Result<Duration, Failure> {
    let start = Instant::now();
    let (node, _news) = open(options, dir)?;
    let took = start.elapsed();
    match node.dark() {
        0 => Ok(took),
        dark => Err(format!("{dark} segments are dark").into()),
    }
}

/// What the HSM does by itself.
fn decryptions_per_second(options: &Options) -> std::result::Result<f64, Failure> {
    let config = options.config.as_deref().map(Path::to_string_lossy).unwrap_or_default();
    let kek = &options.kek;
    let few = ["--deks", "2000", "--seconds", "1", "--warm-up", "10ms", "--json"];
    let measured = ["bench", "cold", "--kek", kek, "--config", &config, "--key", kek];
    let told = keyward(options, &[&measured[..], &few].concat())?;
    let told = String::from_utf8(told)?;
    let floor = told.split_once("\"decrypt\":").map_or("", |(_, rest)| rest);
    let mut rates = floor.split("\"throughput_per_second\":").skip(1).map_while(|rest| {
        let end = rest.find([',', '}'])?;
        rest[..end].trim().parse::<f64>().ok()
    });
    // Before and after what is measured, which is nothing here.
    let (before, after) = rates.next().zip(rates.next()).ok_or("keyward bench told no rate")?;
    Ok(before.max(after))
}

fn paging(options: &Options, home: &Path) -> std::result::Result<(), Failure> {
    let clear = in_the_clear(&home.join("clear"))?;
    let (node, _news) = open(options, &home.join("wrapped"))?;
    node.add_segments(SEGMENTS)?;
    let stores = [&clear, node.store()];
    for store in stores {
        for segment in 0..SEGMENTS {
            for page in 0..store.pages_per_segment() {
                let at = Address { segment, page };
                store.write_page(at, &fill(at, 1))?;
            }
        }
    }
    println!("pages a second, and to the store with its DEKs in the clear:");
    in_turns("read", stores, |store, at| store.read_page(at).map(drop))?;
    let page = fill(Address { segment: 0, page: 0 }, 2);
    in_turns("written", stores, |store, at| store.write_page(at, &page))
}

/// The same store, with the DEK itself where its wrapped form should be.
fn in_the_clear(dir: &Path) -> std::result::Result<Store, Failure> {
    let store = Store::open(dir, crate::node::Settings::default().pages_per_segment)?;
    store.add_segments(SEGMENTS, |_context| {
        let mut dek = Secret::zeroed(DEK);
        rand::fill(dek.expose_mut()).expect("the system has random bytes");
        let wrapped = WrappedDek { ciphertext: dek.expose().to_vec(), ..WrappedDek::default() };
        Ok((dek, wrapped))
    })?;
    Ok(store)
}

fn in_turns(
    what: &str,
    stores: [&Store; 2],
    work: impl Fn(&Store, Address) -> Result<()>,
) -> std::result::Result<(), Failure> {
    let (mut rates, mut ratios) = (Vec::new(), Vec::new());
    // The first turn warms up.
    for turn in 0..=TURNS {
        // Who is first changes, so that neither has the better place.
        let order = if turn % 2 == 0 { [0, 1] } else { [1, 0] };
        let mut of_this_turn = [0.0; 2];
        for store in order {
            of_this_turn[store] = rate(stores[store], &work)?;
        }
        if turn > 0 {
            let [clear, wrapped] = of_this_turn;
            rates.push(wrapped);
            ratios.push(wrapped / clear);
        }
    }
    println!("  {what:8} {:10.0}   {:.3}", median(&mut rates), median(&mut ratios));
    Ok(())
}

/// Pages a second, at random places.
fn rate(store: &Store, work: &impl Fn(&Store, Address) -> Result<()>) -> Result<f64> {
    let (start, mut pages) = (Instant::now(), 0_u32);
    while start.elapsed() < TURN {
        let page = random(u64::from(store.pages_per_segment())) as u32;
        work(store, Address { segment: random(SEGMENTS), page })?;
        pages += 1;
    }
    Ok(f64::from(pages) / start.elapsed().as_secs_f64())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
