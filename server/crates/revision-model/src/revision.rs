//! The position of one change in the history of the store.

/// Length of a revision key of a live record: 8 bytes main, `_`, 8 bytes sub.
pub const REVISION_KEY_LEN: usize = 17;
/// Length of a revision key of a tombstone: the same and a `t`.
pub const TOMBSTONE_KEY_LEN: usize = 18;

/// The position of one change in the history of the store.
///
/// `main` counts successful writes, `sub` the changes inside one of them. Revision 0 is "none"; a
/// fresh store is at main revision 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// Number of the write, shared by all its changes.
    pub main: i64,
    /// Number of the change inside the write, dense from 0.
    pub sub: i64,
}

/// A revision as etcd writes it in bbolt: big-endian main, `_`, big-endian sub, `t` for a tombstone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RevisionKey {
    bytes: [u8; TOMBSTONE_KEY_LEN],
    length: u8,
}

impl Revision {
    /// No revision: what a key's first record names as its predecessor.
    pub const NONE: Self = Self { main: 0, sub: 0 };

    /// A revision from its parts.
    pub const fn new(main: i64, sub: i64) -> Self {
        Self { main, sub }
    }

    /// Whether this is [`Revision::NONE`].
    pub const fn is_none(self) -> bool {
        self.main == 0
    }

    /// The stored form. Keys sort as revisions do.
    pub fn to_key(self, tombstone: bool) -> RevisionKey {
        let mut bytes = [0; TOMBSTONE_KEY_LEN];
        bytes[..8].copy_from_slice(&self.main.to_be_bytes());
        bytes[8] = b'_';
        bytes[9..17].copy_from_slice(&self.sub.to_be_bytes());
        let length = if tombstone {
            bytes[17] = b't';
            TOMBSTONE_KEY_LEN
        } else {
            REVISION_KEY_LEN
        };
        RevisionKey {
            bytes,
            length: length as u8,
        }
    }

    /// The revision and whether it is a tombstone's; `None` for bytes that are no revision key.
    pub fn from_key(key: &[u8]) -> Option<(Self, bool)> {
        let tombstone = match key.len() {
            REVISION_KEY_LEN => false,
            TOMBSTONE_KEY_LEN if key[17] == b't' => true,
            _ => return None,
        };
        if key[8] != b'_' {
            return None;
        }
        let main = i64::from_be_bytes(key[..8].try_into().ok()?);
        let sub = i64::from_be_bytes(key[9..17].try_into().ok()?);
        Some((Self { main, sub }, tombstone))
    }
}

impl RevisionKey {
    /// The bytes of the key.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl std::ops::Deref for RevisionKey {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl std::fmt::Debug for RevisionKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match Revision::from_key(self) {
            Some((revision, true)) => write!(formatter, "{revision}t"),
            Some((revision, false)) => write!(formatter, "{revision}"),
            None => formatter.write_str("invalid"),
        }
    }
}

impl std::fmt::Display for Revision {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}_{}", self.main, self.sub)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_a_round_trip_and_sort_as_revisions() {
        let revisions = [
            Revision::new(1, 0),
            Revision::new(1, 1),
            Revision::new(2, 0),
            Revision::new(256, 0),
            Revision::new(i64::MAX, 3),
        ];
        for tombstone in [false, true] {
            for revision in revisions {
                let key = revision.to_key(tombstone);
                assert_eq!(Revision::from_key(&key), Some((revision, tombstone)));
            }
        }
        assert!(
            revisions
                .windows(2)
                .all(|pair| pair[0].to_key(true) < pair[1].to_key(false))
        );
    }

    #[test]
    fn bytes_that_are_no_revision_key_are_refused() {
        for bytes in [
            &b""[..],
            b"0123456789abcdef",
            b"01234567-89abcdef",
            b"01234567_89abcdefx",
        ] {
            assert_eq!(Revision::from_key(bytes), None, "{bytes:?}");
        }
    }
}
