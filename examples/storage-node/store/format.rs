//! What stands on the disk: the superblock, the header of a segment, the slot of a page, and
//! the records of the journal. Pure: bytes in, bytes out.
//!
//! ```text
//! pages    superblock (512) | segment 0 | segment 1 | ...
//! segment  header (2048) | slot 0 | slot 1 | ...            as many as the superblock says
//! slot     nonce (12) | tag (16) | zeros (484) | page, sealed (4096)
//! journal  head (64) | record | record | ...
//! record   length (4) | epoch (8) | target (8) | page (4) | bytes | SHA-256 of all that (32)
//! ```
//!
//! Numbers are little-endian. Slots begin on a sector, so that no write touches another page's.
//! What is sealed says so itself; what is not (superblock, headers, journal) has a hash, which
//! finds what was torn and stops nobody who forges it: a forged header names a wrapped DEK that
//! the sidecar does not unwrap, or a DEK that opens no page.

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use keyward::client::WrappedDek;

/// Bytes of a page.
pub const PAGE: usize = 4096;
pub const SUPERBLOCK: usize = 512;
pub const HEADER: usize = 2048;
/// What stands before a page in its slot: a sector.
const SLOT_HEAD: usize = 512;
pub const SLOT: usize = SLOT_HEAD + PAGE;
pub const NONCE: usize = 12;
pub const TAG: usize = 16;
pub const JOURNAL_HEAD: usize = 64;
const RECORD_HEAD: usize = 4 + 8 + 8 + 4;

const SUPERBLOCK_MAGIC: [u8; 8] = *b"KWPAGES1";
const HEADER_MAGIC: [u8; 8] = *b"KWSEGMT1";
const JOURNAL_MAGIC: [u8; 8] = *b"KWJOURN1";

/// Names a store; random.
pub type StoreId = [u8; 16];

/// What all segments have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    pub store: StoreId,
    pub pages_per_segment: u32,
}

impl Superblock {
    pub fn encode(&self) -> [u8; SUPERBLOCK] {
        let numbers = self.pages_per_segment.to_le_bytes();
        hashed(&[&SUPERBLOCK_MAGIC, &self.store, &numbers])
    }

    pub fn decode(block: &[u8; SUPERBLOCK]) -> Option<Self> {
        let mut rest = Rest(unhashed(block)?);
        (rest.array()? == SUPERBLOCK_MAGIC).then_some(())?;
        let (store, pages_per_segment) = (rest.array()?, u32::from_le_bytes(rest.array()?));
        (pages_per_segment > 0).then_some(Self { store, pages_per_segment })
    }

    fn segment_bytes(&self) -> u64 {
        HEADER as u64 + u64::from(self.pages_per_segment) * SLOT as u64
    }

    /// Where a segment's header stands.
    pub fn header_at(&self, segment: u64) -> u64 {
        SUPERBLOCK as u64 + segment * self.segment_bytes()
    }

    /// Where the slot of a page stands.
    pub fn slot_at(&self, at: Address) -> u64 {
        self.header_at(at.segment) + HEADER as u64 + u64::from(at.page) * SLOT as u64
    }

    /// The context that the DEK of a segment is bound to: a DEK that is copied into another
    /// header, or another store's, does not unwrap there.
    pub fn context(&self, segment: u64) -> Vec<u8> {
        let mut context = b"storage-node page store ".to_vec();
        context.extend_from_slice(&self.store);
        context.extend_from_slice(&segment.to_le_bytes());
        context
    }

    /// What a page is sealed with beside its DEK: it opens in its own slot alone.
    pub fn page_aad(&self, at: Address) -> [u8; 28] {
        let mut aad = [0; 28];
        aad[..16].copy_from_slice(&self.store);
        aad[16..24].copy_from_slice(&at.segment.to_le_bytes());
        aad[24..].copy_from_slice(&at.page.to_le_bytes());
        aad
    }
}

/// Where a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    pub segment: u64,
    pub page: u32,
}

/// The header of a segment.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// What the DEK is bound to.
    pub context: Vec<u8>,
    pub wrapped: WrappedDek,
}

/// What a header's block holds.
#[derive(Debug, PartialEq)]
pub enum HeaderBlock {
    /// Nothing was ever written there.
    Empty,
    Header(Header),
    /// Something else than a header.
    Damaged,
}

impl Header {
    /// `None` if it is longer than its block.
    pub fn encode(&self) -> Option<[u8; HEADER]> {
        let wrapped = self.wrapped.to_bytes();
        let length = |bytes: &[u8]| u16::try_from(bytes.len()).ok().map(u16::to_le_bytes);
        let (of_context, of_wrapped) = (length(&self.context)?, length(&wrapped)?);
        let parts: [&[u8]; 5] = [&HEADER_MAGIC, &of_context, &self.context, &of_wrapped, &wrapped];
        let fits = parts.iter().map(|part| part.len()).sum::<usize>() + SHA256_OUTPUT_LEN <= HEADER;
        fits.then(|| hashed(&parts))
    }

    pub fn decode(block: &[u8; HEADER]) -> HeaderBlock {
        if block.iter().all(|byte| *byte == 0) {
            return HeaderBlock::Empty;
        }
        Self::read(block).map_or(HeaderBlock::Damaged, HeaderBlock::Header)
    }

    fn read(block: &[u8; HEADER]) -> Option<Self> {
        let mut rest = Rest(unhashed(block)?);
        (rest.array()? == HEADER_MAGIC).then_some(())?;
        let length = usize::from(u16::from_le_bytes(rest.array()?));
        let context = rest.take(length)?.to_vec();
        let length = usize::from(u16::from_le_bytes(rest.array()?));
        let wrapped = WrappedDek::from_bytes(rest.take(length)?)?;
        Some(Self { context, wrapped })
    }
}

/// A page as it stands in its slot.
pub struct Slot {
    pub nonce: [u8; NONCE],
    pub tag: [u8; TAG],
    pub sealed: Box<[u8; PAGE]>,
}

impl Slot {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; SLOT];
        bytes[..NONCE].copy_from_slice(&self.nonce);
        bytes[NONCE..NONCE + TAG].copy_from_slice(&self.tag);
        bytes[SLOT_HEAD..].copy_from_slice(&*self.sealed);
        bytes
    }

    /// `None` if nothing was ever written there.
    pub fn decode(bytes: &[u8; SLOT]) -> Option<Self> {
        let mut rest = Rest(bytes);
        let (nonce, tag) = (rest.array()?, rest.array()?);
        if nonce == [0; NONCE] && tag == [0; TAG] {
            return None;
        }
        let sealed = Box::new(bytes[SLOT_HEAD..].try_into().ok()?);
        Some(Self { nonce, tag, sealed })
    }
}

/// What a record of the journal changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The slot of a page becomes this.
    Slot(Address, Vec<u8>),
    /// The header of a segment becomes this.
    Header(u64, Vec<u8>),
}

/// The page number that stands for a header.
const OF_HEADER: u32 = u32::MAX;

impl Change {
    /// Where the change is made, and what is written there.
    pub fn write(&self, superblock: &Superblock) -> (u64, &[u8]) {
        match self {
            Self::Slot(at, bytes) => (superblock.slot_at(*at), bytes),
            Self::Header(segment, bytes) => (superblock.header_at(*segment), bytes),
        }
    }

    /// Appends it as a record.
    pub fn record(&self, epoch: u64, out: &mut Vec<u8>) {
        let start = out.len();
        let (segment, page, bytes) = match self {
            Self::Slot(Address { segment, page }, bytes) => (*segment, *page, bytes),
            Self::Header(segment, bytes) => (*segment, OF_HEADER, bytes),
        };
        let length = u32::try_from(bytes.len()).expect("a slot or a header");
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&epoch.to_le_bytes());
        out.extend_from_slice(&segment.to_le_bytes());
        out.extend_from_slice(&page.to_le_bytes());
        out.extend_from_slice(bytes);
        let hash = digest(&SHA256, &out[start..]);
        out.extend_from_slice(hash.as_ref());
    }
}

/// The head of a journal of `epoch`.
pub fn journal_head(epoch: u64) -> [u8; JOURNAL_HEAD] {
    hashed(&[&JOURNAL_MAGIC, &epoch.to_le_bytes()])
}

/// The epoch of a journal, and what it holds: every record up to the first one that is not
/// whole, behind which nothing was acknowledged. `None` if it does not even have a head: it was
/// being emptied, or is new.
pub fn read_journal(bytes: &[u8]) -> Option<(u64, Vec<Change>)> {
    let (head, mut rest) = bytes.split_first_chunk::<JOURNAL_HEAD>()?;
    let mut head = Rest(unhashed(head)?);
    (head.array()? == JOURNAL_MAGIC).then_some(())?;
    let epoch = u64::from_le_bytes(head.array()?);
    let mut changes = Vec::new();
    while let Some((change, behind)) = read_record(rest, epoch) {
        changes.push(change);
        rest = behind;
    }
    Some((epoch, changes))
}

fn read_record(bytes: &[u8], epoch: u64) -> Option<(Change, &[u8])> {
    let mut rest = Rest(bytes);
    let length = usize::try_from(u32::from_le_bytes(rest.array()?)).ok()?;
    let of_epoch = u64::from_le_bytes(rest.array()?);
    let segment = u64::from_le_bytes(rest.array()?);
    let page = u32::from_le_bytes(rest.array()?);
    let wanted = if page == OF_HEADER { HEADER } else { SLOT };
    (of_epoch == epoch && length == wanted).then_some(())?;
    let content = rest.take(length)?.to_vec();
    let hash = digest(&SHA256, &bytes[..RECORD_HEAD + length]);
    (rest.take(SHA256_OUTPUT_LEN)? == hash.as_ref()).then_some(())?;
    let change = match page {
        OF_HEADER => Change::Header(segment, content),
        page => Change::Slot(Address { segment, page }, content),
    };
    Some((change, rest.0))
}

/// A block that begins with `parts` and ends with the hash of what stands before it.
fn hashed<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut block = [0; N];
    let mut at = 0;
    for part in parts {
        block[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    let (content, hash) = block.split_at_mut(N - SHA256_OUTPUT_LEN);
    hash.copy_from_slice(digest(&SHA256, content).as_ref());
    block
}

/// What such a block holds. `None` if it is not whole.
fn unhashed<const N: usize>(block: &[u8; N]) -> Option<&[u8]> {
    let (content, hash) = block.split_at(N - SHA256_OUTPUT_LEN);
    (digest(&SHA256, content).as_ref() == hash).then_some(content)
}

/// What is left to read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }
}
