//! Ids of members and clusters, by etcd's rules.
//!
//! Every member of a new cluster computes the same ids from the same options, so nobody has to hand
//! them out. The rules are etcd's because tools and restored snapshots compute them too.

use sha1::{Digest, Sha1};

use super::url::ListenUrl;

/// The id of a member of a new cluster: over its sorted peer URLs and `--initial-cluster-token`.
#[must_use]
pub fn member_id(peer_urls: &[ListenUrl], token: &str) -> u64 {
    let urls: Vec<_> = peer_urls.iter().map(ToString::to_string).collect();
    member_id_of_texts(&urls, token, None)
}

/// The id of a member that is added to a running cluster.
///
/// The time, in seconds since 1970, makes the id new when the same machine is removed and added again:
/// ids are never reused.
#[must_use]
pub fn added_member_id(peer_urls: &[String], token: &str, unix_seconds: i64) -> u64 {
    member_id_of_texts(peer_urls, token, Some(unix_seconds))
}

fn member_id_of_texts(peer_urls: &[String], token: &str, unix_seconds: Option<i64>) -> u64 {
    let mut urls: Vec<&str> = peer_urls.iter().map(String::as_str).collect();
    urls.sort_unstable();
    let mut hash = Sha1::new();
    for url in urls {
        hash.update(url.as_bytes());
    }
    hash.update(token.as_bytes());
    if let Some(seconds) = unix_seconds {
        hash.update(seconds.to_string().as_bytes());
    }
    first_eight_bytes(&hash.finalize())
}

/// The id of a cluster: over the sorted ids of its first members.
#[must_use]
pub fn cluster_id(member_ids: impl IntoIterator<Item = u64>) -> u64 {
    let mut ids: Vec<u64> = member_ids.into_iter().collect();
    ids.sort_unstable();
    let mut hash = Sha1::new();
    for id in ids {
        hash.update(id.to_be_bytes());
    }
    first_eight_bytes(&hash.finalize())
}

fn first_eight_bytes(hash: &[u8]) -> u64 {
    u64::from_be_bytes(hash[..8].try_into().expect("a SHA-1 has twenty bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(text: &str) -> Vec<ListenUrl> {
        ListenUrl::parse_list(text).expect("valid")
    }

    #[test]
    fn ids_are_those_of_etcd() {
        // What an etcd with default options prints: `etcdctl member list`, cluster id in its headers.
        let id = member_id(&urls("http://localhost:2380"), "etcd-cluster");
        assert_eq!(format!("{id:x}"), "8e9e05c52164694d");
        assert_eq!(format!("{:x}", cluster_id([id])), "cdf818194e3a8c32");
    }

    #[test]
    fn the_order_of_urls_and_members_does_not_matter() {
        assert_eq!(
            member_id(&urls("http://a:1,http://b:1"), "t"),
            member_id(&urls("http://b:1,http://a:1"), "t")
        );
        assert_eq!(cluster_id([1, 2, 3]), cluster_id([3, 2, 1]));
    }

    #[test]
    fn a_member_that_comes_back_gets_a_new_id() {
        let url = ["http://localhost:2380".to_owned()];
        let first = added_member_id(&url, "etcd-cluster", 1_700_000_000);
        assert_ne!(first, added_member_id(&url, "etcd-cluster", 1_700_000_001));
        assert_ne!(
            first,
            member_id(&urls("http://localhost:2380"), "etcd-cluster")
        );
    }
}
