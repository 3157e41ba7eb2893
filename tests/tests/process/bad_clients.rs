//! Clients that mean harm, or are badly written: whatever one does, others are served.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use metastore_tests::programs::subject;
use metastore_tests::raw_http::HttpRequest;
use metastore_tests::{Client, Member, MemberBuilder, Program, deadline};

use super::bad_input::{PREFACE, connect, frame, header};
use crate::{resident_bytes, within};

/// Frames that a client sends one after the other, perhaps for ever.
type Frames = Box<dyn Iterator<Item = Vec<u8>>>;

/// The longest that a small read may take while somebody does harm, on a machine with other work.
const SERVED_WITHIN: Duration = Duration::from_secs(2);
/// What a single bad client may make the server hold.
const HELD_BYTES_MAX: u64 = 128 << 20;

async fn assert_serves(client: &Client, what: &str) {
    let start = Instant::now();
    let (pair, _) = client.get("a").await.unwrap();
    assert_eq!(pair.unwrap().value, "1", "{what}");
    let took = start.elapsed();
    assert!(
        took < deadline(SERVED_WITHIN),
        "{what}: a read took {took:?}"
    );
}

/// A request for a Range of `a` on this stream, without its end.
fn range_headers(stream: u32, flags: u8) -> Vec<u8> {
    let headers = [
        header(":method", "POST"),
        header(":scheme", "http"),
        header(":path", "/etcdserverpb.KV/Range"),
        header(":authority", "a"),
        header("content-type", "application/grpc"),
        header("te", "trailers"),
    ]
    .concat();
    frame(1, flags, stream, &headers)
}

fn hello() -> Vec<u8> {
    [PREFACE, &frame(4, 0, 0, &[])].concat()
}

/// Writes until the server closes the connection or all is written; what the server said.
fn attack(member: &Member, pieces: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut stream = connect(member);
    stream
        .set_write_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    stream.set_nonblocking(false).unwrap();
    let mut reader = stream.try_clone().unwrap();
    let answers = std::thread::spawn(move || {
        let mut answer = Vec::new();
        let _ = reader.read_to_end(&mut answer);
        answer
    });
    for piece in pieces {
        if stream.write_all(&piece).is_err() {
            break;
        }
    }
    let _ = stream.shutdown(std::net::Shutdown::Both);
    answers.join().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_frames_harm_nobody_else() {
    within(async {
        let member = Member::start(subject()).await;
        let client = member.client();
        client.put("a", "1").await.unwrap();
        let before = resident_bytes(&member);
        // CVE-2023-44487: streams that are opened and reset at once.
        let resets = (0..100_000_u32).map(|number| {
            let stream = number * 2 + 1;
            [range_headers(stream, 4), frame(3, 0, stream, &[0, 0, 0, 8])].concat()
        });
        // CVE-2024-27316: a header that never ends.
        let continuations = std::iter::once(range_headers(1, 0))
            .chain((0..20_000).map(|_| frame(9, 0, 1, &header("x-more", &"y".repeat(100)))));
        let empty_continuations =
            std::iter::once(range_headers(1, 0)).chain((0..100_000).map(|_| frame(9, 0, 1, &[])));
        // CVE-2019-9512, 9515: questions that have to be answered.
        let pings = (0..100_000).map(|_| frame(6, 0, 0, &[7; 8]));
        let settings = (0..100_000).map(|_| frame(4, 0, 0, &[]));
        // CVE-2019-9518: frames with nothing in them.
        let nothing =
            std::iter::once(range_headers(1, 4)).chain((0..100_000).map(|_| frame(0, 0, 1, &[])));
        // Many streams that are opened and never used.
        let idle = (0..50_000_u32).map(|number| range_headers(number * 2 + 1, 4));
        let floods: [(&str, Frames); 7] = [
            ("resets", Box::new(resets)),
            ("continuations", Box::new(continuations)),
            ("empty continuations", Box::new(empty_continuations)),
            ("pings", Box::new(pings)),
            ("settings", Box::new(settings)),
            ("empty data", Box::new(nothing)),
            ("idle streams", Box::new(idle)),
        ];
        for (name, flood) in floods {
            // A few frames at a time, as a network brings them.
            let mut flood = flood.peekable();
            let pieces = std::iter::once(hello()).chain(std::iter::from_fn(move || {
                flood.peek()?;
                Some(flood.by_ref().take(64).collect::<Vec<_>>().concat())
            }));
            let pieces: Vec<_> = pieces.collect();
            let attacking = {
                let address = member.address();
                std::thread::spawn(move || {
                    let Ok(mut stream) = TcpStream::connect(address) else {
                        return;
                    };
                    stream
                        .set_write_timeout(Some(Duration::from_secs(3)))
                        .unwrap();
                    for piece in pieces {
                        if stream.write_all(&piece).is_err() {
                            return;
                        }
                    }
                })
            };
            while !attacking.is_finished() {
                assert_serves(&client, name).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            attacking.join().unwrap();
            assert_serves(&member.client(), name).await;
            if subject() == Program::MetaStore {
                let held = resident_bytes(&member).saturating_sub(before);
                assert!(held < HELD_BYTES_MAX, "{name}: {} MiB more", held >> 20);
            }
        }
        member.assert_log_is_clean();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_heads_of_http1_end_with_an_error() {
    within(async {
        let member = Member::start(subject()).await;
        let client = member.client();
        client.put("a", "1").await.unwrap();
        let before = resident_bytes(&member);
        let line = format!("X-More: {}\r\n", "y".repeat(1000)).into_bytes();
        let head = b"GET /health HTTP/1.1\r\nHost: a\r\n".to_vec();
        let many_lines = std::iter::once(head.clone()).chain(std::iter::repeat_n(line, 50_000));
        let one_line = std::iter::once([head, b"X-Long: ".to_vec()].concat())
            .chain((0..50_000).map(|_| vec![b'y'; 1000]));
        let long_target =
            std::iter::once(b"GET /".to_vec()).chain((0..50_000).map(|_| vec![b'y'; 1000]));
        let small = (0..200_000).map(|_| b"A:b\r\n".to_vec());
        let small = std::iter::once(b"GET /health HTTP/1.1\r\n".to_vec()).chain(small);
        let bombs: [(&str, Frames); 4] = [
            ("many lines", Box::new(many_lines)),
            ("one line", Box::new(one_line)),
            ("a long target", Box::new(long_target)),
            ("many small lines", Box::new(small)),
        ];
        for (name, bomb) in bombs {
            let answer = attack(&member, bomb);
            let answer = String::from_utf8_lossy(&answer);
            // Whoever writes on may see a reset before the answer.
            assert!(
                answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
                "{name}: {answer}"
            );
            assert_serves(&client, name).await;
        }
        if subject() == Program::MetaStore {
            let held = resident_bytes(&member).saturating_sub(before);
            assert!(held < HELD_BYTES_MAX, "{} MiB more", held >> 20);
        }
        member.assert_log_is_clean();
    })
    .await;
}

/// Slow loris: hundreds of requests that come letter by letter, and answers that nobody reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_clients_harm_nobody_else() {
    within(async {
        const SLOW: usize = 500;
        let member = Member::start(subject()).await;
        let client = member.client();
        client.put("a", "1").await.unwrap();
        let heads: [Vec<u8>; 4] = [
            b"POST /v3/kv/range HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n{\"key\":\""
                .to_vec(),
            b"GET /health HTTP/1.1\r\nHost: a\r\nX-Slow: ".to_vec(),
            [
                hello(),
                range_headers(1, 4),
                vec![0, 0, 100, 0, 0, 0, 0, 0, 1, 0],
            ]
            .concat(),
            PREFACE[..12].to_vec(),
        ];
        let mut slow: Vec<TcpStream> = (0..SLOW)
            .map(|number| {
                let mut stream = connect(&member);
                stream.write_all(&heads[number % heads.len()]).unwrap();
                stream
            })
            .collect();
        for round in 0..20 {
            for stream in &mut slow {
                // A closed one is as good.
                let _ = stream.write_all(b"Y");
            }
            assert_serves(&client, &format!("round {round}")).await;
        }
        assert_serves(&member.client(), "a new connection").await;
        drop(slow);
        member.assert_log_is_clean();
    })
    .await;
}

/// Answers that are not read stay in the server's memory: their clients are bounded when that is asked
/// for, and others are served in any case.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_that_nobody_reads_have_their_limit() {
    within(async {
        const VALUE_BYTES: usize = 1 << 20;
        const KEYS: usize = 16;
        const LISTS: u32 = 200;
        let member = MemberBuilder::new(Program::MetaStore)
            .flag("--client-max-inflight-bytes=33554432")
            .flag("--max-list-bytes=134217728")
            .start()
            .await;
        let client = member.client();
        client.put("a", "1").await.unwrap();
        for number in 0..KEYS {
            let key = format!("large/{number}");
            client.put(key, vec![b'v'; VALUE_BYTES]).await.unwrap();
        }
        let before = resident_bytes(&member);
        let request = metastore_proto::etcdserverpb::RangeRequest {
            key: "large/".into(),
            range_end: "large0".into(),
            ..Default::default()
        };
        let message = prost::Message::encode_to_vec(&request);
        let mut body = vec![0];
        body.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
        body.extend_from_slice(&message);
        // The connection's and the streams' windows stay as they are: 64 KiB each.
        let mut bytes = hello();
        for number in 0..LISTS {
            let stream = number * 2 + 1;
            bytes.extend(range_headers(stream, 4));
            bytes.extend(frame(0, 1, stream, &body));
        }
        let mut stream = connect(&member);
        stream.write_all(&bytes).unwrap();
        let address = member.address();
        for round in 0..20 {
            let health = HttpRequest::new("GET", "/health").send(&address).await;
            assert_eq!(health.status, 200, "{}", health.text());
            // The same client, by its address: a small read passes while lists wait.
            let read = client.get("a").await;
            if let Err(status) = read {
                assert!(
                    status.message().contains("too many requests"),
                    "round {round}: {status}"
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let held = resident_bytes(&member).saturating_sub(before);
        // All lists together would be 3.2 GiB.
        assert!(held < 512 << 20, "{} MiB more", held >> 20);
        drop(stream);
        metastore_tests::eventually(
            "the limit is free again",
            Duration::from_secs(20),
            || async {
                let read = client.get("a").await;
                read.map(drop).map_err(|status| status.to_string())
            },
        )
        .await;
        member.assert_log_is_clean();
    })
    .await;
}
