//! A bounded cache of what the apply thread needs to know about a key before it writes it.
//!
//! A put needs the key's version, creation and lease. Reading them from RocksDB costs 8 to 12 µs,
//! several times the rest of a put, so the metadata of recently written keys stays in memory.

use std::collections::HashMap;

use metastore_revision_model::{LatestRow, Revision};

/// Memory of one entry beside its key: the metadata, the boxed key's pointer and allocation
/// header, and the table's control byte and load factor.
const ENTRY_OVERHEAD_BYTES: usize = 120;

/// A key's newest state without its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Metadata {
    pub revision: Revision,
    pub create_revision: i64,
    pub version: i64,
    pub lease: i64,
    pub tombstone: bool,
}

impl From<&LatestRow> for Metadata {
    fn from(row: &LatestRow) -> Self {
        Self {
            revision: row.revision,
            create_revision: row.create_revision,
            version: row.version,
            lease: row.lease,
            tombstone: row.tombstone,
        }
    }
}

/// Two generations of entries: an entry that is used moves to the young one; when that is full,
/// it becomes the old one and what was left there is forgotten. Cheaper than an exact order of
/// use, and a key that is written once in a while survives.
pub(crate) struct MetadataCache {
    young: HashMap<Box<[u8]>, Metadata>,
    old: HashMap<Box<[u8]>, Metadata>,
    young_bytes: usize,
    generation_bytes_max: usize,
}

impl MetadataCache {
    /// A cache of at most `bytes_max` bytes; 0 turns it off.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
            young_bytes: 0,
            generation_bytes_max: bytes_max / 2,
        }
    }

    pub fn get(&mut self, key: &[u8]) -> Option<Metadata> {
        if let Some(found) = self.young.get(key) {
            return Some(*found);
        }
        let (key, found) = self.old.remove_entry(key)?;
        self.insert_boxed(key, found);
        Some(found)
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        self.young.contains_key(key) || self.old.contains_key(key)
    }

    pub fn insert(&mut self, key: &[u8], metadata: Metadata) {
        if let Some(entry) = self.young.get_mut(key) {
            *entry = metadata;
        } else if self.generation_bytes_max > 0 {
            let boxed = match self.old.remove_entry(key) {
                Some((boxed, _)) => boxed,
                None => key.into(),
            };
            self.insert_boxed(boxed, metadata);
        }
    }

    pub fn remove(&mut self, key: &[u8]) {
        if self.young.remove(key).is_some() {
            self.young_bytes -= key.len() + ENTRY_OVERHEAD_BYTES;
        }
        self.old.remove(key);
    }

    fn insert_boxed(&mut self, key: Box<[u8]>, metadata: Metadata) {
        self.young_bytes += key.len() + ENTRY_OVERHEAD_BYTES;
        self.young.insert(key, metadata);
        if self.young_bytes > self.generation_bytes_max {
            // Swapping keeps the tables' memory for the next generation.
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
            self.young_bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(version: i64) -> Metadata {
        Metadata {
            revision: Revision::new(version, 0),
            create_revision: 1,
            version,
            lease: 0,
            tombstone: false,
        }
    }

    #[test]
    fn the_cache_is_bounded_and_keeps_what_is_used() {
        let mut cache = MetadataCache::new(100 * (ENTRY_OVERHEAD_BYTES + 4));
        for number in 0..10_000i64 {
            cache.insert(format!("{number:04}").as_bytes(), metadata(number));
            cache.insert(b"used", metadata(number));
            assert_eq!(cache.get(b"used"), Some(metadata(number)));
            assert!(cache.young.len() + cache.old.len() <= 102);
        }
        assert_eq!(cache.get(b"0000"), None);
        assert!(cache.contains(b"9999"));
        cache.remove(b"9999");
        assert_eq!(cache.get(b"9999"), None);
    }

    #[test]
    fn a_cache_of_no_bytes_holds_nothing() {
        let mut cache = MetadataCache::new(0);
        cache.insert(b"a", metadata(1));
        assert_eq!(cache.get(b"a"), None);
    }
}
