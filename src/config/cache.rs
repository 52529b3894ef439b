//! `[cache]` and `[lease]`: how long DEKs are kept, and under what proof.

use super::{fields::Fields, mistake::Wrong, schema};
use crate::{cache::CacheSettings, lease::Terms};

/// What is kept and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// How much, and for how long.
    pub settings: CacheSettings,
    /// How long the proof of a KEK is good.
    pub terms: Terms,
    /// Whether memory that cannot be locked will do.
    pub allow_unlocked: bool,
}

pub(super) fn read(cache: &Fields<'_>, lease: &Fields<'_>) -> Option<CacheConfig> {
    let capacity = cache.number(&schema::CAPACITY);
    let ttl = cache.duration(&schema::TTL);
    let idle = cache.duration(&schema::IDLE);
    let outage_grace = cache.duration(&schema::OUTAGE_GRACE);
    let allow_unlocked = cache.flag(&schema::ALLOW_UNLOCKED);
    let interval = lease.duration(&schema::INTERVAL);
    if let (Some(ttl), Some(idle)) = (ttl, idle)
        && idle > ttl
        && cache.given(&schema::IDLE)
    {
        cache.refuse(
            &schema::IDLE,
            Wrong::new("idle is longer than ttl: it would do nothing", "lower idle or raise ttl"),
        );
    }
    Some(CacheConfig {
        settings: CacheSettings { capacity: capacity?, ttl: ttl?, idle: idle? },
        terms: Terms { interval: interval?, outage_grace: outage_grace? },
        allow_unlocked: allow_unlocked?,
    })
}
