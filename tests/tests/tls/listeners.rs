//! Sockets: of both kinds, shared, split, for metrics; and what becomes of clients that misbehave.

use std::time::Duration;

use metastore_tests::certificates::{client_config, request};
use metastore_tests::member::free_port;
use metastore_tests::programs::subject;
use metastore_tests::{Member, MemberBuilder, Program, deadline, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Certificates, LIMIT, assert_ok, etcdctl, http_get, logged, texts};

#[tokio::test]
async fn one_address_serves_tls_and_plain_text() {
    let certificates = Certificates::new();
    let builder = certificates.member();
    let address = builder.client_address();
    let urls = format!("http://{address},https://{address}");
    let member = builder
        .flag(format!("--listen-client-urls={urls}"))
        .flag(format!("--advertise-client-urls={urls}"))
        .start()
        .await;
    logged(&member, &["serving client traffic securely", &address]).await;
    logged(&member, &["serving client traffic insecurely", &address]).await;
    let plain = format!("http://{address}");
    let secure = format!("https://{address}");
    let ca = Some(certificates.ca.as_path());
    assert_ok(&etcdctl(&plain, None, None, "put a plain"));
    let got = etcdctl(&secure, ca, None, "get a");
    assert_eq!(texts(&got), "a\nplain\n");
    let tls = client_config(&[certificates.authority.pem()], None);
    for tls in [None, Some(tls)] {
        let version = http_get(&address, "/version", tls).await;
        assert!(version.contains("\"etcdserver\""), "{version}");
    }
}

#[tokio::test]
async fn http_can_have_a_port_of_its_own() {
    let certificates = Certificates::new();
    for secure in [false, true] {
        let (builder, scheme) = if secure {
            (certificates.member(), "https")
        } else {
            (MemberBuilder::new(subject()), "http")
        };
        let http = format!("127.0.0.1:{}", free_port());
        let member = builder
            .flag(format!("--listen-client-http-urls={scheme}://{http}"))
            .start()
            .await;
        let (ca, tls) = if secure {
            let config = client_config(&[certificates.authority.pem()], None);
            (Some(certificates.ca.as_path()), Some(config))
        } else {
            (None, None)
        };
        logged(&member, &["serving client traffic", "\"traffic\":\"grpc\""]).await;
        logged(&member, &["serving client traffic", "\"traffic\":\"http\""]).await;
        let version = http_get(&http, "/version", tls.clone()).await;
        assert!(version.contains("\"etcdserver\""), "{version}");
        let on_grpc = http_get(&member.address(), "/version", tls).await;
        assert!(!on_grpc.contains("etcdserver"), "{on_grpc}");
        assert_ok(&etcdctl(&member.endpoint(), ca, None, "put a b"));
        let wrong_port = format!("{scheme}://{http}");
        assert!(!etcdctl(&wrong_port, ca, None, "get a").status.success());
    }
}

#[tokio::test]
async fn health_and_metrics_can_have_ports_of_their_own() {
    let certificates = Certificates::new();
    let plain = format!("127.0.0.1:{}", free_port());
    let secure = format!("127.0.0.1:{}", free_port());
    let member = certificates
        .demanding_member()
        .flag(format!(
            "--listen-metrics-urls=http://{plain},https://{secure}"
        ))
        .start()
        .await;
    let own = certificates.client("prometheus");
    let config = client_config(&[certificates.authority.pem()], Some(&own));
    for (address, tls) in [(&plain, None), (&secure, Some(config))] {
        eventually("the metrics port answers", LIMIT, || async {
            let health = http_get(address, "/health", tls.clone()).await;
            if health.contains("{\"health\":\"true\",\"reason\":\"\"}") {
                Ok(())
            } else {
                Err(health)
            }
        })
        .await;
        let other = http_get(address, "/version", tls.clone()).await;
        assert!(other.contains("404"), "{other}");
    }
    let anonymous = client_config(&[certificates.authority.pem()], None);
    let refused = http_get(&secure, "/health", Some(anonymous)).await;
    assert!(!refused.contains("health\":"), "{refused}");
    drop(member);
}

#[tokio::test]
async fn clients_come_by_unix_sockets() {
    let certificates = Certificates::new();
    let folder = certificates.path();
    // clientv3 expects the name of the socket's file.
    let request = request("server").hosts(&["secure.sock"]);
    certificates.authority.issue(folder, "server", request);
    let plain = format!("unix://{}", folder.join("plain.sock").display());
    let secure = format!("unixs://{}", folder.join("secure.sock").display());
    let member = certificates
        .member()
        .flag(format!("--listen-client-urls={plain},{secure}"))
        .flag(format!("--advertise-client-urls={plain},{secure}"))
        .start()
        .await;
    assert_ok(&etcdctl(&plain, None, None, "put a b"));
    let ca = Some(certificates.ca.as_path());
    let got = etcdctl(&secure, ca, None, "get a");
    assert_eq!(texts(&got), "a\nb\n");
    drop(member);
}

#[tokio::test]
async fn members_meet_by_unix_sockets() {
    let folder = tempfile::tempdir().unwrap();
    let url = |index: usize| {
        format!(
            "unix://{}",
            folder.path().join(format!("{index}")).display()
        )
    };
    let all: Vec<_> = (0..3)
        .map(|index| (format!("m{index}"), url(index)))
        .collect();
    let mut members: Vec<Member> = (0..3)
        .map(|index| {
            MemberBuilder::new(Program::MetaStore)
                .name(&format!("m{index}"))
                .initial_cluster(all.clone())
                .flag(format!("--listen-peer-urls={}", url(index)))
                .flag(format!("--initial-advertise-peer-urls={}", url(index)))
                .spawn()
        })
        .collect();
    for member in &mut members {
        member.ready().await;
    }
    members[0].client().put("a", "b").await.unwrap();
    let (pair, _) = members[1].client().get("a").await.unwrap();
    assert_eq!(pair.unwrap().value, "b");
}

#[tokio::test]
async fn a_port_of_0_is_chosen_and_logged() {
    let member = MemberBuilder::new(subject())
        .flag("--listen-client-urls=http://127.0.0.1:0")
        .start()
        .await;
    let line = logged(&member, &["serving client traffic insecurely"]).await;
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    let address = line["address"].as_str().unwrap().to_owned();
    assert!(!address.ends_with(":0"), "{address}");
    let version = http_get(&address, "/version", None).await;
    assert!(version.contains("\"etcdserver\""), "{version}");
}

#[tokio::test]
async fn two_programs_can_share_a_port_when_told_to() {
    let builder = MemberBuilder::new(subject()).flag("--socket-reuse-port=true");
    let shared = format!("--listen-client-urls=http://{}", builder.client_address());
    let first = builder.start().await;
    let second = MemberBuilder::new(subject())
        .flag("--socket-reuse-port=true")
        .flag(&shared)
        .start()
        .await;
    drop((first, second));
    let first = MemberBuilder::new(subject());
    let taken = format!("--listen-client-urls=http://{}", first.client_address());
    let _first = first.start().await;
    let (status, log) = MemberBuilder::new(subject()).flag(taken).run_to_end().await;
    assert!(!status.success());
    assert!(log.contains("bind: address already in use"), "{log}");
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];

/// Begins HTTP/2 by hand.
async fn http2(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    stream.write_all(&SETTINGS).await.unwrap();
    stream
}

/// Everything until the server closes the connection.
async fn read_to_end(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let reading = stream.read_to_end(&mut bytes);
    let ended = tokio::time::timeout(deadline(LIMIT), reading).await;
    assert!(ended.is_ok(), "the server did not close the connection");
    bytes
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

#[tokio::test]
async fn clients_that_ping_too_often_are_disconnected() {
    let member = Member::start(subject()).await;
    let mut stream = http2(&member.address()).await;
    for _ in 0..6 {
        // The connection may be closed already.
        let _ = stream.write_all(&PING).await;
    }
    let answer = read_to_end(stream).await;
    // GOAWAY with ENHANCE_YOUR_CALM and the words of grpc-go.
    assert!(contains(&answer, b"\0\0\0\x0btoo_many_pings"), "{answer:?}");

    // Two that come too fast are forgiven: the first, and two strikes.
    let mut stream = http2(&member.address()).await;
    for _ in 0..3 {
        stream.write_all(&PING).await.unwrap();
    }
    let mut answers = 0;
    let mut bytes = Vec::new();
    while answers < 3 {
        let read = stream.read_buf(&mut bytes).await.unwrap();
        assert!(read > 0, "disconnected after {answers} answers");
        answers = bytes
            .windows(8)
            .filter(|window| *window == [1, 2, 3, 4, 5, 6, 7, 8])
            .count();
    }
}

#[tokio::test]
async fn clients_that_do_not_answer_pings_are_disconnected() {
    let member = MemberBuilder::new(subject())
        .flag("--grpc-keepalive-interval=1s")
        .flag("--grpc-keepalive-timeout=1s")
        .start()
        .await;
    let stream = http2(&member.address()).await;
    let started = std::time::Instant::now();
    let bytes = read_to_end(stream).await;
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert!(
        bytes.windows(4).any(|head| head == [0, 0, 8, 6]),
        "a ping came"
    );
}

#[tokio::test]
async fn a_header_bomb_costs_nothing() {
    let member = Member::start(Program::MetaStore).await;
    let mut stream = http2(&member.address()).await;
    // One long header goes into the table of the compression, and is named again and again.
    let value_bytes = 3000;
    let mut block = vec![0x40, 1, b'a', 0x7f];
    // The length in HPACK's form: 127 + (rest in groups of seven bits).
    let mut rest = value_bytes - 127;
    while rest >= 128 {
        block.push(u8::try_from(rest % 128 + 128).unwrap());
        rest /= 128;
    }
    block.push(u8::try_from(rest).unwrap());
    block.extend(std::iter::repeat_n(b'x', value_bytes));
    block.extend(std::iter::repeat_n(0xbe, 12_000));
    let length = u32::try_from(block.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], 1, 5, 0, 0, 0, 1];
    frame.extend(block);
    // The server may hang up before it has read everything.
    let _ = stream.write_all(&frame).await;
    let mut bytes = vec![0; 1024];
    let answer = tokio::time::timeout(deadline(LIMIT), async {
        loop {
            match stream.read(&mut bytes).await {
                Ok(read) if read > 0 && !contains(&bytes[..read], b":status") => {
                    // RST_STREAM, GOAWAY, or HEADERS with an error.
                    if bytes[..read]
                        .windows(4)
                        .any(|head| matches!(head[3], 3 | 7 | 1))
                    {
                        return;
                    }
                }
                _ => return,
            }
        }
    })
    .await;
    assert!(answer.is_ok(), "the server says nothing to a header bomb");
    member.client().put("a", "b").await.unwrap();
}
