//! The rows of `Table::Auth`, which hold what etcd keeps in its buckets `auth`, `authUsers` and
//! `authRoles`, in the same encoding.

use bytes::Bytes;

/// Row that says whether authentication is on: one byte, 1 or 0. Missing: off.
pub const ENABLED_ROW: Bytes = Bytes::from_static(b"enabled");
/// Row of the auth revision: 8 bytes, big endian. Missing: 1.
pub const REVISION_ROW: Bytes = Bytes::from_static(b"revision");

pub(crate) const USER_PREFIX: &[u8] = b"user/";
pub(crate) const ROLE_PREFIX: &[u8] = b"role/";

/// Row of a user: an encoded `authpb.User`.
pub fn user_row(name: &str) -> Bytes {
    [USER_PREFIX, name.as_bytes()].concat().into()
}

/// Row of a role: an encoded `authpb.Role`.
pub fn role_row(name: &str) -> Bytes {
    [ROLE_PREFIX, name.as_bytes()].concat().into()
}
