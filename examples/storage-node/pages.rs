//! What stands in pages here: each says which page it is and how often it was written, and the
//! rest follows from that, so that any page can be checked.

use std::hash::{BuildHasher, Hasher, RandomState};

use crate::store::{Page, format::Address};

/// The content of a page when it is written for the `version`th time.
pub fn fill(at: Address, version: u64) -> Page {
    let mut page = Page::zeroed();
    // xorshift64*, seeded with what the page is.
    let mut state =
        (at.segment << 40) ^ (u64::from(at.page) << 20) ^ version ^ 0x9e37_79b9_7f4a_7c15;
    for word in page.chunks_exact_mut(8) {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        word.copy_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    page[..8].copy_from_slice(&at.segment.to_le_bytes());
    page[8..12].copy_from_slice(&at.page.to_le_bytes());
    page[16..24].copy_from_slice(&version.to_le_bytes());
    page
}

/// How often a page was written; `None` if it is not what [`fill`] made for that place.
pub fn version(at: Address, page: &Page) -> Option<u64> {
    let version = u64::from_le_bytes(page[16..24].try_into().ok()?);
    (*fill(at, version) == **page).then_some(version)
}

/// A number to choose by, and for nothing that must not be guessed.
pub fn random(below: u64) -> u64 {
    RandomState::new().build_hasher().finish() % below.max(1)
}
