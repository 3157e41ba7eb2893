//! A bounded cache of what the apply thread needs to know about a key before it writes it.
//!
//! A put needs the key's version, creation and lease. Reading them from RocksDB costs 8 to 12 µs,
//! several times the rest of a put, so the metadata of recently written keys stays in memory.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};

use metastore_revision_model::{LatestRow, Revision};
use siphasher::sip128::SipHasher13;

/// Memory of one slot of a generation's table: the entry and the table's control byte.
const SLOT_BYTES: usize = size_of::<(u64, Entry)>() + 1;

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
///
/// Entries stand under 128 bits of a hash of their key, whose secret is drawn at each start, and not
/// under the key: one cache line instead of three, and a third of the memory. That two of a
/// billion keys have the same hash is less likely than 1 in 10^20, and nobody can choose them so.
pub(crate) struct MetadataCache {
    hasher: SipHasher13,
    young: Generation,
    old: Generation,
    generation_entries_max: usize,
}

/// Entries under the first half of their hash.
type Generation = HashMap<u64, Entry, BuildHasherDefault<AlreadyHashed>>;

/// 128 bits that stand for a key.
#[derive(Clone, Copy)]
struct Fingerprint {
    slot: u64,
    check: u64,
}

#[derive(Clone, Copy)]
struct Entry {
    /// Second half of the hash.
    check: u64,
    metadata: PackedMetadata,
}

/// [`Metadata`] in five words.
#[derive(Clone, Copy)]
struct PackedMetadata {
    main: i64,
    /// The revision's sub and, in the lowest bit, whether it is a tombstone.
    sub_and_tombstone: u64,
    create_revision: i64,
    version: i64,
    lease: i64,
}

impl From<Metadata> for PackedMetadata {
    fn from(metadata: Metadata) -> Self {
        Self {
            main: metadata.revision.main,
            sub_and_tombstone: (metadata.revision.sub as u64) << 1 | u64::from(metadata.tombstone),
            create_revision: metadata.create_revision,
            version: metadata.version,
            lease: metadata.lease,
        }
    }
}

impl From<PackedMetadata> for Metadata {
    fn from(packed: PackedMetadata) -> Self {
        Self {
            revision: Revision::new(packed.main, (packed.sub_and_tombstone >> 1) as i64),
            create_revision: packed.create_revision,
            version: packed.version,
            lease: packed.lease,
            tombstone: packed.sub_and_tombstone & 1 == 1,
        }
    }
}

/// The identity, for keys that are hashes.
#[derive(Default)]
struct AlreadyHashed(u64);

impl Hasher for AlreadyHashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only u64 is hashed");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

impl MetadataCache {
    /// A cache of at most `bytes_max` bytes; 0 turns it off.
    pub fn new(bytes_max: usize) -> Self {
        // The standard library's source of randomness, which costs no dependency.
        let secret = RandomState::new();
        Self {
            hasher: SipHasher13::new_with_keys(secret.hash_one(0), secret.hash_one(1)),
            young: Generation::default(),
            old: Generation::default(),
            generation_entries_max: entries_in(bytes_max / 2),
        }
    }

    pub fn get(&mut self, key: &[u8]) -> Option<Metadata> {
        let fingerprint = self.fingerprint(key);
        if let Some(found) = lookup(&self.young, fingerprint) {
            return Some(found.into());
        }
        let found = lookup(&self.old, fingerprint)?;
        self.old.remove(&fingerprint.slot);
        self.insert_young(fingerprint, found);
        Some(found.into())
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        let fingerprint = self.fingerprint(key);
        lookup(&self.young, fingerprint).is_some() || lookup(&self.old, fingerprint).is_some()
    }

    pub fn insert(&mut self, key: &[u8], metadata: Metadata) {
        if self.generation_entries_max > 0 {
            // What the old generation knows is hidden by the young one until it is forgotten with it.
            self.insert_young(self.fingerprint(key), metadata.into());
        }
    }

    pub fn remove(&mut self, key: &[u8]) {
        let fingerprint = self.fingerprint(key);
        self.young.remove(&fingerprint.slot);
        self.old.remove(&fingerprint.slot);
    }

    fn fingerprint(&self, key: &[u8]) -> Fingerprint {
        let (slot, check) = self.hasher.hash(key).as_u64();
        Fingerprint { slot, check }
    }

    fn insert_young(&mut self, fingerprint: Fingerprint, metadata: PackedMetadata) {
        let Fingerprint { slot, check } = fingerprint;
        self.young.insert(slot, Entry { check, metadata });
        if self.young.len() >= self.generation_entries_max {
            // Swapping keeps the tables' memory for the next generation.
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
    }
}

/// Most entries of a table that takes at most so many bytes: tables have a power of two of slots,
/// of which an eighth stays free.
fn entries_in(bytes: usize) -> usize {
    match bytes / SLOT_BYTES {
        0 => 0,
        slots => (1 << slots.ilog2()) / 8 * 7,
    }
}

fn lookup(generation: &Generation, fingerprint: Fingerprint) -> Option<PackedMetadata> {
    let entry = generation.get(&fingerprint.slot)?;
    (entry.check == fingerprint.check).then_some(entry.metadata)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(version: i64) -> Metadata {
        Metadata {
            revision: Revision::new(version, version % 7),
            create_revision: 1,
            version,
            lease: -version,
            tombstone: version % 2 == 0,
        }
    }

    #[test]
    fn the_cache_is_bounded_and_keeps_what_is_used() {
        let mut cache = MetadataCache::new(2 * 64 * SLOT_BYTES);
        for number in 0..10_000i64 {
            cache.insert(format!("{number:04}").as_bytes(), metadata(number));
            cache.insert(b"used", metadata(number));
            assert_eq!(cache.get(b"used"), Some(metadata(number)));
            assert!(cache.young.len() + cache.old.len() <= 2 * 56);
            assert!(cache.young.capacity() <= 56 && cache.old.capacity() <= 56);
        }
        assert_eq!(cache.get(b"0000"), None);
        assert!(cache.contains(b"9999"));
        cache.remove(b"9999");
        assert_eq!(cache.get(b"9999"), None);
    }

    #[test]
    fn the_newest_state_is_found_after_a_change_of_generations() {
        let mut cache = MetadataCache::new(2 * 8 * SLOT_BYTES);
        cache.insert(b"a", metadata(1));
        for number in 0..6i64 {
            cache.insert(&[number as u8], metadata(number));
        }
        assert!(cache.young.is_empty(), "the generations have changed");
        cache.insert(b"a", metadata(2));
        assert_eq!(cache.get(b"a"), Some(metadata(2)));
        cache.remove(b"a");
        assert_eq!(cache.get(b"a"), None);
    }

    #[test]
    fn what_has_the_same_slot_and_another_check_is_another_key() {
        let mut cache = MetadataCache::new(1 << 20);
        cache.insert(b"a", metadata(1));
        let Fingerprint { slot, check } = cache.fingerprint(b"a");
        cache.young.insert(
            slot,
            Entry {
                check: !check,
                metadata: metadata(2).into(),
            },
        );
        assert_eq!(cache.get(b"a"), None);
        assert!(!cache.contains(b"a"));
    }

    #[test]
    fn a_cache_of_no_bytes_holds_nothing() {
        let mut cache = MetadataCache::new(0);
        cache.insert(b"a", metadata(1));
        assert_eq!(cache.get(b"a"), None);
    }
}
