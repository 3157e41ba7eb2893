//! The pages of a bbolt file.
//!
//! ```text
//! page    = id u64 ‖ kind u16 ‖ count u16 ‖ overflow u32 ‖ …       overflow: further pages it fills
//! leaf    = page ‖ { flags u32 ‖ position u32 ‖ key length u32 ‖ value length u32 }* ‖ { key ‖ value }*
//! branch  = page ‖ { position u32 ‖ key length u32 ‖ page id u64 }* ‖ { key }*
//! meta    = page ‖ magic u32 ‖ version u32 ‖ page size u32 ‖ flags u32 ‖ root bucket ‖ free list u64
//!           ‖ first unused page u64 ‖ transaction u64 ‖ FNV-1a of the meta so far u64
//! bucket  = root page u64 ‖ sequence u64, and behind it the leaf itself when the root page is 0
//! ```
//!
//! All numbers are little endian, as bbolt writes them on every machine that etcd supports. A position
//! counts from the beginning of its own element.

/// Size of a page in the files that this crate writes. Files with other sizes can be read.
pub const PAGE_BYTES: usize = 4096;

pub(crate) const HEADER_BYTES: usize = 16;
pub(crate) const ELEMENT_BYTES: usize = 16;
pub(crate) const META_BYTES: usize = 64;
/// Length of a bucket's entry without an inline leaf.
pub(crate) const BUCKET_BYTES: usize = 16;
/// A bucket whose leaf is not longer than this stands inside its entry, as bbolt does it.
pub(crate) const INLINE_BYTES_MAX: usize = PAGE_BYTES / 4;

pub(crate) const KIND_BRANCH: u16 = 0x01;
pub(crate) const KIND_LEAF: u16 = 0x02;
pub(crate) const KIND_META: u16 = 0x04;
pub(crate) const KIND_FREE_LIST: u16 = 0x10;

/// Flag of an element whose value is a bucket.
pub(crate) const FLAG_BUCKET: u32 = 0x01;
/// The free list page of a file without one.
pub(crate) const NO_FREE_LIST: u64 = u64::MAX;

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;

/// The contents of a meta page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub page_bytes: u32,
    pub root: u64,
    pub free_list: u64,
    /// The first page behind the used ones.
    pub pages: u64,
    pub transaction: u64,
}

/// Why bytes are no meta page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MetaError {
    Magic,
    Version(u32),
    Checksum,
    PageBytes(u32),
}

impl Meta {
    pub fn encode(&self) -> [u8; META_BYTES] {
        let mut bytes = [0; META_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&VERSION.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.page_bytes.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.root.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.free_list.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.pages.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.transaction.to_le_bytes());
        let checksum = fnv1a(&bytes[..56]);
        bytes[56..64].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads the part of a meta page behind the page header.
    pub fn decode(bytes: &[u8; META_BYTES]) -> Result<Self, MetaError> {
        if u32_at(bytes, 0) != MAGIC {
            return Err(MetaError::Magic);
        }
        if u32_at(bytes, 4) != VERSION {
            return Err(MetaError::Version(u32_at(bytes, 4)));
        }
        if u64_at(bytes, 56) != fnv1a(&bytes[..56]) {
            return Err(MetaError::Checksum);
        }
        let page_bytes = u32_at(bytes, 8);
        if !page_bytes.is_power_of_two() || !(512..=1 << 20).contains(&page_bytes) {
            return Err(MetaError::PageBytes(page_bytes));
        }
        Ok(Self {
            page_bytes,
            root: u64_at(bytes, 16),
            free_list: u64_at(bytes, 32),
            pages: u64_at(bytes, 40),
            transaction: u64_at(bytes, 48),
        })
    }
}

/// A page header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub id: u64,
    pub kind: u16,
    pub count: u16,
    pub overflow: u32,
}

impl Header {
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(&self.id.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.kind.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.count.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.overflow.to_le_bytes());
        bytes
    }

    /// Reads the first bytes of a page, of which there are at least [`HEADER_BYTES`].
    pub fn decode(bytes: &[u8]) -> Self {
        Self {
            id: u64_at(bytes, 0),
            kind: u16::from_le_bytes([bytes[8], bytes[9]]),
            count: u16::from_le_bytes([bytes[10], bytes[11]]),
            overflow: u32_at(bytes, 12),
        }
    }
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
