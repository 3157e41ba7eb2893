//! The rules of the Watch API, one test each.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fixture;

use std::time::Duration;

use fixture::*;
use metastore_proto::etcdserverpb::WatchCreateRequest;
use metastore_proto::etcdserverpb::watch_create_request::FilterType;
use metastore_watch::{Hub, HubOptions};

fn filtered(request: WatchCreateRequest, filters: &[FilterType]) -> WatchCreateRequest {
    WatchCreateRequest {
        filters: filters.iter().map(|it| *it as i32).collect(),
        ..request
    }
}

fn from(request: WatchCreateRequest, start_revision: i64) -> WatchCreateRequest {
    WatchCreateRequest {
        start_revision,
        ..request
    }
}

fn with_previous(request: WatchCreateRequest) -> WatchCreateRequest {
    WatchCreateRequest {
        prev_kv: true,
        ..request
    }
}

fn with_id(request: WatchCreateRequest, watch_id: i64) -> WatchCreateRequest {
    WatchCreateRequest {
        watch_id,
        ..request
    }
}

#[test]
fn created_comes_first_and_then_events_as_they_happen() {
    let mut store = Fixture::new();
    store.put("k", "old");
    let mut client = store.client();
    client.stream.create(&watch("k"));
    store.put("k", "new");
    store.put("other", "x");
    store.delete("k");
    for _ in 0..3 {
        store.settle();
    }
    assert_eq!(
        client.all(),
        ["0 @2: created", "0 @3: PUT k=new (3)", "0 @5: DELETE k (5)"]
    );
}

#[test]
fn changes_that_come_one_by_one_are_answered_one_by_one() {
    let mut store = Fixture::new();
    let mut client = store.client();
    client.create(&watch_prefix("k"));
    store.put("k1", "a");
    store.settle();
    store.put("k2", "b");
    store.settle();
    assert_eq!(client.all(), ["0 @2: PUT k1=a (2)", "0 @3: PUT k2=b (3)"]);
}

/// Etcd does so for a watcher that keeps up, and clients read one answer for each of their writes.
#[test]
fn changes_that_come_together_are_answered_one_by_one_unless_they_are_many() {
    for (changes, apart) in [(1, true), (16, true), (17, false), (100, false)] {
        let mut store = Fixture::new();
        let mut client = store.client();
        client.create(&watch("k"));
        let mut events = Vec::new();
        for change in 0..changes {
            let revision = store.put("k", &change.to_string());
            events.push((revision, format!("PUT k={change} ({revision})")));
        }
        store.settle();
        let wanted: Vec<String> = if apart {
            let response = |(revision, event)| format!("0 @{revision}: {event}");
            events.into_iter().map(response).collect()
        } else {
            let last = store.revision();
            let all: Vec<_> = events.into_iter().map(|(_, event)| event).collect();
            vec![format!("0 @{last}: {}", all.join(" "))]
        };
        assert_eq!(client.all(), wanted, "{changes} changes");
    }
}

#[test]
fn what_a_client_could_read_already_is_no_news() {
    let mut store = Fixture::new();
    // Readers see a commit before it is published to the hub.
    store.commit([put("k", "2")]);
    let mut client = store.client();
    client.stream.create(&watch("k"));
    client.stream.request_progress();
    store.publish();
    store.settle();
    assert_eq!(client.all(), ["0 @2: created", "-1 @2: progress"]);
}

#[test]
fn an_empty_key_is_the_smallest_key() {
    let mut store = Fixture::new();
    let mut client = store.client();
    client.create(&WatchCreateRequest {
        range_end: "b".into(),
        ..watch("")
    });
    client.create(&watch(""));
    store.put("a", "1");
    store.put("b", "2");
    store.put("\0", "3");
    store.settle();
    assert_eq!(
        client.all(),
        [
            "0 @2: PUT a=1 (2)",
            "0 @4: PUT \0=3 (4)",
            "1 @4: PUT \0=3 (4)"
        ]
    );
}

#[test]
fn a_range_end_of_zero_is_everything_from_the_key_on() {
    let mut store = Fixture::new();
    let mut client = store.client();
    client.create(&WatchCreateRequest {
        range_end: "\0".into(),
        ..watch("b")
    });
    client.create(&WatchCreateRequest {
        range_end: "\0".into(),
        ..watch("")
    });
    store.put("a", "1");
    store.put("z", "2");
    store.settle();
    let mut all = client.all();
    all.sort();
    assert_eq!(
        all,
        [
            "0 @3: PUT z=2 (3)",
            "1 @2: PUT a=1 (2)",
            "1 @3: PUT z=2 (3)"
        ]
    );
}

#[test]
fn an_empty_range_is_refused() {
    let mut store = Fixture::new();
    let mut client = store.client();
    for end in ["b", "a"] {
        client.stream.create(&WatchCreateRequest {
            range_end: end.into(),
            ..watch("b")
        });
        assert_eq!(
            client.all(),
            ["-1 @1: created canceled mvcc: watcher range is empty"]
        );
    }
    store.put("b", "1");
    store.settle();
    assert_eq!(client.all(), Vec::<String>::new());
}

#[test]
fn ids_are_assigned_from_zero_and_skip_those_in_use() {
    let store = Fixture::new();
    let mut client = store.client();
    client.stream.create(&watch("a"));
    client.stream.create(&with_id(watch("a"), 2));
    client.stream.create(&watch("a"));
    client.stream.create(&watch("a"));
    assert_eq!(
        client.all(),
        [
            "0 @1: created",
            "2 @1: created",
            "1 @1: created",
            "3 @1: created"
        ]
    );
}

#[test]
fn a_duplicate_id_is_refused_and_free_again_after_cancel() {
    let store = Fixture::new();
    let mut client = store.client();
    client.create(&with_id(watch("a"), 7));
    client.stream.create(&with_id(watch("b"), 7));
    assert_eq!(
        client.all(),
        ["-1 @1: created canceled mvcc: duplicate watch ID provided on the WatchStream"]
    );
    client.stream.cancel(7);
    client.stream.create(&with_id(watch("b"), 7));
    assert_eq!(client.all(), ["7 @1: canceled", "7 @1: created"]);
}

#[test]
fn ids_of_different_streams_are_independent() {
    let store = Fixture::new();
    store.client().create(&watch("a"));
    let mut client = store.client();
    client.stream.create(&watch("a"));
    assert_eq!(client.all(), ["0 @1: created"]);
}

#[test]
fn a_negative_start_revision_is_refused_as_compacted() {
    let store = Fixture::new();
    let mut client = store.client();
    let refused = "-1 @1: created canceled etcdserver: mvcc: required revision has been compacted";
    client.stream.create(&from(watch("a"), -1));
    assert_eq!(client.all(), [refused]);
    // Also when the permission would have been refused.
    client.stream.reject(&from(watch("a"), -1), "no");
    assert_eq!(client.all(), [refused]);
}

#[test]
fn a_refused_permission_is_created_and_canceled() {
    let store = Fixture::new();
    let mut client = store.client();
    let reason = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
    client.stream.reject(&watch("a"), reason);
    assert_eq!(client.all(), [format!("-1 @1: created canceled {reason}")]);
    assert_eq!(store.hub.statistics().watchers, 0);
}

#[test]
fn a_watch_from_a_compacted_revision_is_canceled_after_created() {
    let mut store = Fixture::new();
    for value in ["2", "3", "4", "5"] {
        store.put("k", value);
    }
    store.compact(4);
    let mut client = store.client();
    client.stream.create(&from(watch("k"), 3));
    store.settle();
    assert_eq!(client.all(), ["0 @5: created", "0 @0: canceled compact 4"]);
    store.put("k", "6");
    store.settle();
    assert_eq!(client.all(), Vec::<String>::new());
}

#[test]
fn a_compacted_watch_can_still_be_canceled_once_as_in_etcd() {
    let mut store = Fixture::new();
    store.put("k", "2");
    store.put("k", "3");
    store.compact(3);
    let mut client = store.client();
    client.stream.create(&from(with_id(watch("k"), 5), 1));
    client.all();
    client.stream.create(&with_id(watch("k"), 5));
    client.stream.cancel(5);
    client.stream.cancel(5);
    assert_eq!(
        client.all(),
        [
            "-1 @3: created canceled mvcc: duplicate watch ID provided on the WatchStream",
            "5 @3: canceled"
        ]
    );
}

#[test]
fn a_watch_may_start_at_the_compact_revision_also_on_a_delete() {
    // etcd #18089, #19179.
    let mut store = Fixture::new();
    store.put("k", "2");
    let deleted = store.delete("k");
    store.put("k", "4");
    store.compact(deleted);
    store.collect_garbage();
    let mut client = store.client();
    client
        .stream
        .create(&with_previous(from(watch("k"), deleted)));
    store.settle();
    assert_eq!(
        client.all(),
        ["0 @4: created", "0 @4: DELETE k (3) PUT k=4 (4)"]
    );
}

#[test]
fn a_start_in_the_past_gives_the_history_and_goes_on() {
    let mut store = Fixture::new();
    store.put("k", "2");
    store.put("x", "3");
    store.put("k", "4");
    let mut client = store.client();
    client.stream.create(&from(watch("k"), 2));
    store.settle();
    store.put("k", "5");
    store.settle();
    assert_eq!(
        client.all(),
        [
            "0 @4: created",
            "0 @4: PUT k=2 (2) PUT k=4 (4)",
            "0 @5: PUT k=5 (5)"
        ]
    );
}

#[test]
fn a_start_in_the_future_is_quiet_until_then() {
    let mut store = Fixture::new();
    let mut client = store.client();
    client.create(&from(watch("k"), 4));
    for value in ["2", "3", "4", "5"] {
        client.stream.request_progress();
        store.settle();
        store.put("k", value);
    }
    store.settle();
    let mut all = client.all();
    // Progress is given once revision 4 is reached, not before.
    all.retain(|it| it != "-1 @4: progress");
    assert_eq!(all, ["0 @4: PUT k=4 (4)", "0 @5: PUT k=5 (5)"]);
}

#[test]
fn a_future_start_gets_no_progress_before_it_is_reached() {
    // etcd #20221.
    let mut store = Fixture::new();
    let mut client = store.client();
    client.create(&WatchCreateRequest {
        progress_notify: true,
        ..from(watch("k"), 10)
    });
    store.put("k", "2");
    store.settle();
    client.stream.request_progress();
    store.hub.tick(Duration::from_secs(10_000));
    assert_eq!(client.all(), Vec::<String>::new());
}

#[test]
fn nothing_comes_after_canceled_and_unknown_ids_are_ignored() {
    let mut store = Fixture::new();
    store.put("k", "2");
    let mut client = store.client();
    client.create(&watch("k"));
    client.create(&from(watch("k"), 2));
    client.stream.cancel(9);
    client.stream.cancel(0);
    client.stream.cancel(1);
    client.stream.cancel(1);
    store.put("k", "3");
    store.settle();
    assert_eq!(client.all(), ["0 @2: canceled", "1 @2: canceled"]);
    assert_eq!(store.hub.statistics().watchers, 0);
}

#[test]
fn progress_is_answered_for_the_stream_when_all_are_synced() {
    let mut store = Fixture::new();
    store.put("k", "2");
    let mut client = store.client();
    client.stream.request_progress();
    assert_eq!(client.all(), Vec::<String>::new(), "no watchers, no answer");
    client.create(&watch("k"));
    client.stream.request_progress();
    assert_eq!(client.all(), ["-1 @2: progress"]);
    client.create(&from(watch("k"), 2));
    client.stream.request_progress();
    assert_eq!(client.all(), Vec::<String>::new(), "one is behind");
    store.settle();
    client.stream.request_progress();
    assert_eq!(client.all(), ["1 @2: PUT k=2 (2)", "-1 @2: progress"]);
}

#[test]
fn progress_never_overtakes_events() {
    // etcd #15220.
    let mut store = Fixture::new();
    let mut client = store.client();
    client.create(&watch("k"));
    store.put("k", "2");
    // The hub has not seen revision 2 yet: the answer waits for it.
    client.stream.request_progress();
    assert_eq!(client.all(), Vec::<String>::new());
    store.settle();
    assert_eq!(client.all(), ["0 @2: PUT k=2 (2)", "-1 @2: progress"]);
}

#[test]
fn a_watcher_that_was_refused_or_compacted_does_not_hold_back_progress() {
    let mut store = Fixture::new();
    store.put("k", "2");
    store.put("k", "3");
    store.compact(3);
    let mut client = store.client();
    client.create(&watch("k"));
    client.stream.create(&from(watch("k"), 1));
    client.stream.reject(&watch("k"), "no");
    client.all();
    client.stream.request_progress();
    assert_eq!(client.all(), ["-1 @3: progress"]);
}

#[test]
fn periodic_progress_is_for_quiet_watchers_that_asked_for_it() {
    let mut store = Fixture::with(HubOptions {
        progress_interval: Duration::from_secs(10),
        ..HubOptions::default()
    });
    let mut client = store.client();
    let asks = |key| WatchCreateRequest {
        progress_notify: true,
        ..watch(key)
    };
    client.create(&asks("k"));
    client.create(&asks("x"));
    client.create(&watch("k"));
    store.put("k", "2");
    store.settle();
    client.all();
    store.hub.tick(Duration::from_millis(9_999));
    assert_eq!(client.all(), Vec::<String>::new());
    // The interval is at most a tenth longer.
    store.hub.tick(Duration::from_secs(11));
    assert_eq!(client.all(), ["1 @2: progress"]);
    store.hub.tick(Duration::from_secs(22));
    assert_eq!(client.all(), ["0 @2: progress", "1 @2: progress"]);
}

#[test]
fn periodic_progress_does_not_pile_up_for_a_client_that_does_not_read() {
    let store = Fixture::with(HubOptions {
        progress_interval: Duration::from_secs(1),
        ..HubOptions::default()
    });
    let client = store.client();
    for _ in 0..100 {
        client.stream.create(&WatchCreateRequest {
            progress_notify: true,
            ..watch("k")
        });
    }
    for second in 0..10_000 {
        store.hub.tick(Duration::from_secs(second));
    }
    assert!(store.hub.statistics().queued_bytes < 100_000);
}

#[test]
fn all_events_of_a_revision_come_in_one_response() {
    let mut store = Fixture::new();
    let mut client = store.client();
    client.create(&watch_prefix(""));
    store.apply(txn(&[("a", Some("1")), ("b", Some("2")), ("c", Some("3"))]));
    store.settle();
    assert_eq!(client.all(), ["0 @2: PUT a=1 (2) PUT b=2 (2) PUT c=3 (2)"]);
}

#[test]
fn a_response_has_at_most_a_thousand_revisions() {
    let mut store = Fixture::new();
    let requests: Vec<_> = (0..2_500).map(|_| put("k", "v")).collect();
    store.commit(requests);
    store.publish();
    let mut client = store.client();
    client.create(&from(watch("k"), 1));
    store.settle();
    let sizes: Vec<usize> = std::iter::from_fn(|| client.next())
        .map(|it| it.events.len())
        .collect();
    assert_eq!(sizes.iter().sum::<usize>(), 2_500);
    assert!(sizes.iter().all(|size| *size <= 1_000), "{sizes:?}");
}

#[test]
fn fragments_stay_below_the_limit_and_only_if_asked_for() {
    let mut store = Fixture::with(HubOptions {
        fragment_bytes: 10_000,
        ..HubOptions::default()
    });
    let mut client = store.client();
    client.create(&watch_prefix("k"));
    client.create(&WatchCreateRequest {
        fragment: true,
        ..watch_prefix("k")
    });
    let value = "v".repeat(3_000);
    let keys: Vec<String> = (0..7).map(|number| format!("k{number}")).collect();
    let changes: Vec<_> = keys
        .iter()
        .map(|key| (key.as_str(), Some(value.as_str())))
        .collect();
    store.apply(txn(&changes));
    store.settle();
    let responses: Vec<_> = std::iter::from_fn(|| client.next()).collect();
    let whole: Vec<_> = responses.iter().filter(|it| it.watch_id == 0).collect();
    let parts: Vec<_> = responses.iter().filter(|it| it.watch_id == 1).collect();
    assert_eq!(whole.len(), 1);
    assert!(!whole[0].fragment);
    let flags: Vec<bool> = parts.iter().map(|it| it.fragment).collect();
    assert_eq!(flags, [true, true, false]);
    assert!(
        parts
            .iter()
            .all(|it| prost::Message::encoded_len(*it) < 10_000)
    );
    let joined: Vec<_> = parts.iter().flat_map(|it| it.events.clone()).collect();
    assert_eq!(joined, whole[0].events);
}

#[test]
fn filters_drop_events_and_send_nothing_when_nothing_is_left() {
    let mut store = Fixture::new();
    let mut client = store.client();
    client.create(&filtered(watch("k"), &[FilterType::Noput]));
    client.create(&filtered(watch("k"), &[FilterType::Nodelete]));
    client.create(&filtered(
        watch("k"),
        &[FilterType::Nodelete, FilterType::Noput],
    ));
    store.put("k", "2");
    store.settle();
    store.delete("k");
    store.settle();
    assert_eq!(client.all(), ["1 @2: PUT k=2 (2)", "0 @3: DELETE k (3)"]);
}

#[test]
fn previous_values_come_if_asked_for_and_not_for_creations() {
    let mut store = Fixture::new();
    let mut client = store.client();
    client.create(&watch("k"));
    client.create(&with_previous(watch("k")));
    for step in 0..5 {
        match step {
            2 | 4 => store.delete("k"),
            _ => store.put("k", &step.to_string()),
        };
    }
    store.settle();
    assert_eq!(
        client.all(),
        [
            "0 @2: PUT k=0 (2)",
            "0 @3: PUT k=1 (3)",
            "0 @4: DELETE k (4)",
            "0 @5: PUT k=3 (5)",
            "0 @6: DELETE k (6)",
            "1 @2: PUT k=0 (2)",
            "1 @3: PUT k=1 (3) prev 0",
            "1 @4: DELETE k (4) prev 1",
            "1 @5: PUT k=3 (5)",
            "1 @6: DELETE k (6) prev 3"
        ]
    );
    // The same from the history.
    let mut client = store.client();
    client.create(&with_previous(from(watch("k"), 1)));
    store.settle();
    assert_eq!(
        client.all(),
        [
            "0 @6: PUT k=0 (2) PUT k=1 (3) prev 0 DELETE k (4) prev 1 PUT k=3 (5) DELETE k (6) prev 3"
        ]
    );
}

#[test]
fn previous_values_that_are_compacted_are_left_out() {
    let mut store = Fixture::new();
    store.put("k", "2");
    store.put("k", "3");
    store.put("k", "4");
    store.compact(3);
    // Whether the old value was deleted yet makes no difference.
    for _ in 0..2 {
        let mut client = store.client();
        client.create(&with_previous(from(watch("k"), 3)));
        store.settle();
        assert_eq!(client.all(), ["0 @4: PUT k=3 (3) PUT k=4 (4) prev 3"]);
        store.collect_garbage();
    }
}

#[test]
fn a_dropped_stream_takes_its_watchers_along() {
    let mut store = Fixture::new();
    store.put("k", "2");
    let mut client = store.client();
    client.create(&with_previous(watch("k")));
    client.create(&from(watch("k"), 1));
    let control = client.stream.control();
    drop(client);
    assert_eq!(store.hub.statistics(), Default::default());
    control.create(&watch("k"));
    control.cancel(0);
    control.request_progress();
    assert_eq!(store.hub.statistics().watchers, 0);
}

#[test]
fn a_closed_hub_ends_its_streams_and_threads() {
    let store = Fixture::new();
    let mut client = store.client();
    client.create(&watch("k"));
    let threads = [Hub::run, Hub::run_catch_up].map(|body| {
        let hub = store.hub.clone();
        std::thread::spawn(move || body(&hub))
    });
    store.hub.close();
    for thread in threads {
        thread.join().unwrap().unwrap();
    }
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(matches!(
        client.stream.poll_next(&mut context),
        std::task::Poll::Ready(None)
    ));
}

#[test]
fn a_slow_client_costs_no_memory_and_misses_nothing() {
    let mut store = Fixture::with(HubOptions {
        stream_queue_bytes_max: 20_000,
        recent_bytes_max: 50_000,
        ..HubOptions::default()
    });
    let mut client = store.client();
    client.create(&watch_prefix("k"));
    client.create(&with_previous(watch("k")));
    let value = "v".repeat(500);
    for _ in 0..2_000 {
        store.put("k", &value);
        store.settle();
        let now = store.hub.statistics();
        assert!(now.queued_bytes <= 20_000, "{now:?}");
        assert!(now.recent_bytes <= 50_000, "{now:?}");
        assert!(now.inbox_bytes <= 10_000, "{now:?}");
    }
    assert_eq!(store.hub.statistics().slow_watchers, 2);
    let mut revisions = [Vec::new(), Vec::new()];
    loop {
        let Some(response) = client.next() else {
            store.settle();
            match client.next() {
                Some(response) => note(&mut revisions, &response),
                None => break,
            }
            continue;
        };
        note(&mut revisions, &response);
    }
    let expected: Vec<i64> = (2..2_002).collect();
    assert_eq!(revisions, [expected.clone(), expected]);
    assert_eq!(store.hub.statistics().slow_watchers, 0);
}

fn note(revisions: &mut [Vec<i64>; 2], response: &metastore_proto::etcdserverpb::WatchResponse) {
    for event in &response.events {
        let pair = event.kv.as_ref().unwrap().decode().unwrap();
        revisions[response.watch_id as usize].push(pair.mod_revision);
    }
}

#[test]
fn a_slow_client_that_falls_behind_compaction_is_canceled() {
    let mut store = Fixture::with(HubOptions {
        stream_queue_bytes_max: 10_000,
        recent_bytes_max: 10_000,
        ..HubOptions::default()
    });
    let mut client = store.client();
    client.create(&watch("k"));
    let value = "v".repeat(500);
    for _ in 0..200 {
        store.put("k", &value);
        store.settle();
    }
    store.compact(190);
    let mut all = Vec::new();
    while let Some(response) = client.next() {
        all.push(response);
        store.settle();
    }
    let last = all.pop().unwrap();
    assert_eq!(show(&last), "0 @0: canceled compact 190");
    assert!(all.iter().all(|it| !it.canceled));
}

#[test]
fn an_overrun_inbox_makes_everybody_read_the_history() {
    let mut store = Fixture::with(HubOptions {
        inbox_bytes_max: 1_000,
        ..HubOptions::default()
    });
    let mut client = store.client();
    client.create(&watch("k"));
    client.create(&from(watch("k"), 30));
    client.create(&from(watch("k"), 1_000));
    for _ in 0..100 {
        store.put("k", "v");
    }
    assert!(store.hub.statistics().inbox_bytes <= 1_000);
    client.stream.request_progress();
    store.settle();
    let mut revisions = [Vec::new(), Vec::new()];
    while let Some(response) = client.next() {
        note(&mut revisions, &response);
    }
    assert_eq!(revisions[0], (2..102).collect::<Vec<i64>>());
    assert_eq!(revisions[1], (30..102).collect::<Vec<i64>>());
    store.put("k", "v");
    store.settle();
    assert_eq!(
        client.all(),
        ["0 @102: PUT k=v (102)", "1 @102: PUT k=v (102)"]
    );
}

#[test]
fn an_installed_snapshot_is_read_from_where_each_watcher_was() {
    let mut store = Fixture::new();
    let mut client = store.client();
    client.create(&watch("k"));
    client.create(&from(watch("k"), 5));
    client.create(&from(watch("k"), 100));
    store.put("k", "2");
    store.settle();
    assert_eq!(client.all(), ["0 @2: PUT k=2 (2)"]);
    // Another member wrote these; here they arrive as a snapshot.
    store.commit([put("k", "3"), put("k", "4"), put("k", "5")]);
    store.held_back.clear();
    store.hub.replace_reader(store.reader.clone());
    store.settle();
    assert_eq!(
        client.all(),
        [
            "0 @5: PUT k=3 (3) PUT k=4 (4) PUT k=5 (5)",
            "1 @5: PUT k=5 (5)"
        ]
    );
    store.put("k", "6");
    store.settle();
    assert_eq!(client.all(), ["0 @6: PUT k=6 (6)", "1 @6: PUT k=6 (6)"]);
}

#[test]
fn an_installed_snapshot_beyond_compaction_cancels() {
    let mut store = Fixture::new();
    let mut client = store.client();
    client.create(&watch("k"));
    store.commit([put("k", "2"), put("k", "3"), put("k", "4"), compaction(4)]);
    store.held_back.clear();
    store.hub.replace_reader(store.reader.clone());
    store.settle();
    assert_eq!(client.all(), ["0 @0: canceled compact 4"]);
}

#[test]
fn unread_answers_stop_further_requests() {
    let store = Fixture::new();
    let mut client = store.client();
    let mut created = 0;
    while client.stream.takes_requests() {
        client.stream.create(&watch("k"));
        created += 1;
        assert!(created < 100_000);
    }
    assert_eq!(client.all().len(), created);
    assert!(client.stream.takes_requests());
}

#[test]
fn equal_watchers_share_their_events() {
    let mut store = Fixture::new();
    let mut clients: Vec<_> = (0..100).map(|_| store.client()).collect();
    for client in &mut clients {
        client.create(&watch_prefix("k"));
    }
    let value = "v".repeat(1_000);
    store.apply(txn(&[("k1", Some(&value)), ("k2", Some(&value))]));
    store.settle();
    let mut pointers = std::collections::HashSet::new();
    for client in &mut clients {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let std::task::Poll::Ready(Some(output)) = client.stream.poll_next(&mut context) else {
            panic!("there are events");
        };
        pointers.insert(output.events.as_ptr());
        assert_eq!(output.to_response(0, 0, 0).events.len(), 2);
        // Kept, so that no address is used twice.
        std::mem::forget(output);
    }
    assert_eq!(pointers.len(), 1);
}

#[test]
fn the_threads_deliver_without_help() {
    let mut store = Fixture::new();
    let threads = [Hub::run, Hub::run_catch_up].map(|body| {
        let hub = store.hub.clone();
        std::thread::spawn(move || body(&hub))
    });
    store.put("k", "2");
    let mut client = store.client();
    client.stream.create(&from(watch("k"), 2));
    client.stream.create(&watch("k"));
    let count = 5_000;
    let reading = std::thread::spawn(move || {
        let mut last = [1, 2];
        while last != [count + 2, count + 2] {
            let response = client.wait_next(Duration::from_secs(30));
            for event in &response.events {
                let pair = event.kv.as_ref().unwrap().decode().unwrap();
                let last = &mut last[response.watch_id as usize];
                assert_eq!(pair.mod_revision, *last + 1);
                *last = pair.mod_revision;
            }
        }
    });
    for _ in 0..count {
        store.put("k", "v");
    }
    reading.join().unwrap();
    store.hub.close();
    for thread in threads {
        thread.join().unwrap().unwrap();
    }
}
