//! How much of the past comes in one answer of a watch, and in which term a cluster begins.

use futures::StreamExt;
use metastore_proto::etcdserverpb as pb;
use metastore_tests::client::Client;
use metastore_tests::{Cluster, deadline};
use pb::watch_request::RequestUnion;

use super::*;

/// Longest wait for the next answer of a watch.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// Puts that are on their way at once, so that many are synced together.
const PUTS_AT_ONCE: usize = 64;

async fn put_all(client: &Client, keys: impl IntoIterator<Item = String>, value_bytes: usize) {
    let value = bytes::Bytes::from(vec![b'v'; value_bytes]);
    futures::stream::iter(keys)
        .map(|key| client.put(key, value.clone()))
        .buffer_unordered(PUTS_AT_ONCE)
        .for_each(|done| async {
            done.unwrap();
        })
        .await;
}

/// Events of each answer, to a watcher of a prefix from a revision on, until there were `expected`.
async fn events_of_answers(
    client: &Client,
    prefix: &str,
    from: i64,
    expected: usize,
) -> Vec<usize> {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().unwrap() += 1;
    let create = pb::WatchCreateRequest {
        key: prefix.to_owned().into(),
        range_end: end.into(),
        start_revision: from,
        ..Default::default()
    };
    let request = pb::WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(create)),
    };
    let requests = tokio_stream::iter([request]).chain(futures::stream::pending());
    let mut answers = client
        .watch
        .clone()
        .watch(requests)
        .await
        .unwrap()
        .into_inner();
    let mut counts = Vec::new();
    while counts.iter().sum::<usize>() < expected {
        let answer = tokio::time::timeout(deadline(ANSWER_LIMIT), answers.message())
            .await
            .unwrap_or_else(|_| panic!("no more events after {counts:?}"))
            .unwrap()
            .unwrap();
        if !answer.events.is_empty() {
            counts.push(answer.events.len());
        }
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_with_the_past_hold_as_much_as_those_of_etcd() {
    metastore_tests::within(TEST_LIMIT, async {
        let mut transcripts = Vec::new();
        for program in [Program::Etcd, programs::subject()] {
            let member = Member::start(program).await;
            let client = member.client();
            // More than a megabyte, and more than 1000 revisions of a key that is one of several.
            put_all(&client, (0..1500).map(|key| format!("a{key}")), 2000).await;
            let middle = client.put("middle", "x").await.unwrap();
            let rare = (0..3600).map(|key| match key % 3 {
                0 => format!("b{key}"),
                _ => format!("c{key}"),
            });
            put_all(&client, rare, 10).await;
            transcripts.push([
                events_of_answers(&client, "a", 1, 1500).await,
                events_of_answers(&client, "a", 700, 1500 - 698).await,
                events_of_answers(&client, "b", middle, 1200).await,
                events_of_answers(&client, "b", 1, 1200).await,
                events_of_answers(&client, "c", middle + 1, 2400).await,
            ]);
        }
        assert_eq!(transcripts[1], transcripts[0], "left: ours, right: etcd");
        assert_eq!(transcripts[0][0], [1000, 500]);
    })
    .await;
}

/// gRPC's clients refuse an answer of more than 4 MiB unless they were told otherwise; those of etcd's
/// own library are told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_with_the_past_stay_below_the_default_limit_of_clients() {
    metastore_tests::within(TEST_LIMIT, async {
        let member = Member::start(Program::MetaStore).await;
        let mut client = member.client();
        put_all(&client, (0..60).map(|key| format!("a{key}")), 200_000).await;
        client.watch = pb::watch_client::WatchClient::new(client.channel.clone())
            .max_decoding_message_size(4 << 20);
        let counts = events_of_answers(&client, "a", 1, 60).await;
        assert!(counts.len() >= 3, "{counts:?}");
        assert!(counts[0] >= 15, "{counts:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_cluster_begins_in_the_term_in_which_etcd_begins() {
    metastore_tests::within(TEST_LIMIT, async {
        for program in [Program::Etcd, programs::subject()] {
            let member = Member::start(program).await;
            let status = member.client().status().await.unwrap();
            let header = status.header.unwrap();
            assert_eq!((header.raft_term, status.raft_term), (2, 2), "{program:?}");
        }
        let cluster = Cluster::start(programs::subject(), 3).await;
        let (_, term) = cluster.leader_except(None).await;
        assert!(term >= 2, "term {term} of three members");
    })
    .await;
}
