//! How large a request is for `--max-request-bytes`: as large as in etcd's log.
//!
//! The requests that can be large are the same messages there and here, behind field numbers that take as many
//! bytes. What differs is what stands in front of them: who waits for the result, and who asks.

use metastore_proto::internal::Command;
use prost::encoding::{encoded_len_varint, key_len};

/// Field of `InternalRaftRequest` that holds the header.
const HEADER_FIELD: u32 = 100;
/// Fields of the header.
const ID_FIELD: u32 = 1;
const USERNAME_FIELD: u32 = 2;
const AUTH_REVISION_FIELD: u32 = 3;
/// An id of etcd's requests is the last two bytes of the member's id, and six bytes that count from the time of
/// the start on; the time's highest bit is set from 2022 to 2039.
const ID_COUNTER_BITS: u32 = 48;

/// Bytes of the header that etcd writes for a command.
pub fn header(command: &Command) -> usize {
    let member = command.origin_member & u64::from(u16::MAX);
    let id = member << ID_COUNTER_BITS | 1 << (ID_COUNTER_BITS - 1);
    let mut bytes = key_len(ID_FIELD) + encoded_len_varint(id);
    let username = command.username.len();
    if username > 0 {
        bytes += key_len(USERNAME_FIELD) + encoded_len_varint(username as u64) + username;
    }
    if command.auth_revision > 0 {
        bytes += key_len(AUTH_REVISION_FIELD) + encoded_len_varint(command.auth_revision);
    }
    key_len(HEADER_FIELD) + encoded_len_varint(bytes as u64) + bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_the_size_that_etcd_gives_it() {
        let of = |origin_member, username: &str, auth_revision| {
            header(&Command {
                origin_member,
                username: username.to_owned(),
                auth_revision,
                ..Command::default()
            })
        };
        // Two bytes of key, one of length, and an id of nine or ten bytes behind its key.
        assert_eq!(of(0x1234_5678_9abc_7def, "", 0), 13);
        assert_eq!(of(0x1234_5678_9abc_8def, "", 0), 14);
        assert_eq!(of(0x1234_5678_9abc_0001, "", 0), 11);
        assert_eq!(of(0x1234_5678_9abc_7def, "root", 300), 13 + 6 + 3);
    }
}
