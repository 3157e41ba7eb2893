//! Command lines, connections and bytes that no proper client sends.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use metastore_tests::programs::subject;
use metastore_tests::{Member, MemberBuilder, Program, deadline};
use prost::Message as _;

use crate::within;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Longest wait for an answer on a raw connection.
const READ_LIMIT: Duration = Duration::from_secs(5);
/// Idle connections of a large Kubernetes cluster, with room.
const IDLE_CONNECTIONS: u64 = 10_000;
/// Files that the test and the server need beside the connections.
const OTHER_FILES: u64 = 500;

#[test]
fn unknown_flags_end_with_status_2() {
    for arguments in [
        &["--no-such-flag"][..],
        &["--no-such-flag=1"],
        &["-no-such-flag", "x"],
    ] {
        let output = Command::new(subject().path())
            .args(arguments)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("no-such-flag"), "{text}");
    }
}

#[test]
fn bad_values_and_arguments_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = format!("--data-dir={}", folder.path().display());
    for arguments in [
        &["--heartbeat-interval=x"][..],
        &["positional"],
        &["--listen-client-urls=nonsense"],
        &["--listen-client-urls=http://127.0.0.1:1"],
        &["--initial-cluster=other=http://127.0.0.1:1"],
        &["--election-timeout=100", "--heartbeat-interval=100"],
        &["--initial-cluster-state=sometimes"],
        &["--config-file=/does/not/exist"],
    ] {
        let output = Command::new(subject().path())
            .arg(&data)
            .args(arguments)
            .output()
            .unwrap();
        assert!(!output.status.success(), "{arguments:?} was accepted");
        let text = String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout);
        assert!(!text.contains("panicked at"), "{arguments:?}: {text}");
        assert!(!text.trim().is_empty(), "{arguments:?}: no reason given");
    }
}

#[test]
fn the_version_is_etcds_under_both_names() {
    let folder = tempfile::tempdir().unwrap();
    let alias = folder.path().join("etcd");
    std::os::unix::fs::symlink(subject().path(), &alias).unwrap();
    for program in [subject().path(), alias] {
        let output = Command::new(&program).arg("--version").output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(
            text.lines().next(),
            Some("etcd Version: 3.7.3"),
            "{}",
            program.display()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_variable_and_a_flag_for_one_option_conflict() {
    within(async {
        let builder = MemberBuilder::new(subject()).env("ETCD_NAME", "other");
        let (status, log) = builder.run_to_end().await;
        assert!(!status.success());
        assert!(log.contains("conflicting environment variable"), "{log}");
    })
    .await;
}

pub fn connect(member: &Member) -> TcpStream {
    let stream = TcpStream::connect(member.address()).unwrap();
    stream.set_read_timeout(Some(READ_LIMIT)).unwrap();
    stream
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_http2_harms_nobody_else() {
    within(async {
        let member = Member::start(subject()).await;
        let client = member.client();
        client.put("a", "1").await.unwrap();
        let settings = frame(4, 0, 0, &[]);
        let with_preface = |frames: &[Vec<u8>]| [PREFACE, &settings, &frames.concat()].concat();
        let attacks: Vec<Vec<u8>> = vec![
            b"nonsense\r\n\r\n".to_vec(),
            vec![0; 100],
            vec![0xff; 70_000],
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            b"GET /\xff\xfe HTTP/9.9\r\nHost\r\n\r\n".to_vec(),
            format!(
                "POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n",
                "9".repeat(50)
            )
            .into_bytes(),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
            PREFACE[..10].to_vec(),
            PREFACE.to_vec(),
            // A frame that is longer than allowed, and never comes.
            with_preface(&[vec![0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]]),
            // DATA on a stream that nobody opened; HEADERS on stream 0; an odd SETTINGS length.
            with_preface(&[frame(0, 0, 1, b"x")]),
            with_preface(&[frame(1, 4, 0, &[])]),
            with_preface(&[frame(4, 0, 0, &[1, 2, 3])]),
            // HPACK that points nowhere; HEADERS without pseudo headers; CONTINUATION alone.
            with_preface(&[frame(1, 4, 1, &[0xff, 0xff, 0xff, 0xff, 0x7f])]),
            with_preface(&[frame(1, 5, 1, &[0x00, 1, b'x', 1, b'y'])]),
            with_preface(&[frame(9, 4, 1, &[0x82])]),
            // Resets and pings in heaps, a window update that overflows, a priority of itself.
            with_preface(
                &(0..2000)
                    .map(|_| frame(6, 0, 0, &[0; 8]))
                    .collect::<Vec<_>>(),
            ),
            with_preface(&[frame(8, 0, 0, &[0x7f, 0xff, 0xff, 0xff])]),
            with_preface(&[frame(8, 0, 0, &[0; 4])]),
            with_preface(&[frame(3, 0, 1, &[0; 4])]),
            with_preface(&[frame(5, 4, 1, &[0, 0, 0, 2, 0x82])]),
            with_preface(&[frame(0xee, 0xff, 7, &[9; 40])]),
        ];
        for (number, attack) in attacks.iter().enumerate() {
            let mut stream = connect(&member);
            // The server may close while we send.
            let _ = stream.write_all(attack);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut answer = Vec::new();
            let start = Instant::now();
            let ended = stream.read_to_end(&mut answer);
            assert!(
                start.elapsed() < READ_LIMIT || ended.is_err(),
                "attack {number}: the server sends for ever"
            );
            let (pair, _) = client.get("a").await.unwrap();
            assert_eq!(pair.unwrap().value, "1", "after attack {number}");
        }
        let log = member.log();
        assert!(!log.contains("panicked at"), "{log}");
    })
    .await;
}

/// A header without compression.
pub fn header(name: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).expect("short");
    [
        &[0, length(name)],
        name.as_bytes(),
        &[length(value)],
        value.as_bytes(),
    ]
    .concat()
}

/// Sends one Range with this `:authority`; returns the answer's message.
fn range_with_authority(member: &Member, authority: &str) -> Result<Vec<u8>, String> {
    let mut stream = connect(member);
    let headers = [
        header(":method", "POST"),
        header(":scheme", "http"),
        header(":path", "/etcdserverpb.KV/Range"),
        header(":authority", authority),
        header("content-type", "application/grpc"),
        header("te", "trailers"),
    ]
    .concat();
    let request = metastore_proto::etcdserverpb::RangeRequest {
        key: "a".into(),
        ..Default::default()
    };
    let message = request.encode_to_vec();
    let mut body = vec![0];
    body.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    body.extend_from_slice(&message);
    let bytes = [
        PREFACE,
        &frame(4, 0, 0, &[]),
        &frame(1, 4, 1, &headers),
        &frame(0, 1, 1, &body),
    ]
    .concat();
    stream
        .write_all(&bytes)
        .map_err(|error| error.to_string())?;
    loop {
        let mut head = [0; 9];
        stream
            .read_exact(&mut head)
            .map_err(|error| error.to_string())?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        stream
            .read_exact(&mut payload)
            .map_err(|error| error.to_string())?;
        match head[3] {
            0 if payload.len() > 5 => return Ok(payload[5..].to_vec()),
            3 => return Err(format!("RST_STREAM {payload:?}")),
            7 => return Err(format!("GOAWAY {}", payload.escape_ascii())),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_that_is_no_uri_is_accepted() {
    within(async {
        let member = Member::start(subject()).await;
        member.client().put("a", "1").await.unwrap();
        for authority in [
            "127.0.0.1:2379",
            // What clientv3 3.5.0 sent.
            "#initially=[http://127.0.0.1:2379;http://127.0.0.1:22379]",
            "etcd-endpoints://0xc000123456/#initially=[unix:///tmp/x.sock]",
            "[::1",
            "a b",
            "",
            "%zz",
        ] {
            match range_with_authority(&member, authority) {
                Ok(message) => {
                    let answer =
                        metastore_proto::etcdserverpb::RangeResponse::decode(&message[..]).unwrap();
                    assert_eq!(answer.count, 1, "{authority:?}");
                }
                Err(error) => panic!(":authority {authority:?} is refused: {error}"),
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_connections_harm_nobody() {
    within(async {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let files = limit.current.unwrap_or(u64::MAX);
        let count = IDLE_CONNECTIONS.min(files.saturating_sub(OTHER_FILES));
        if count < IDLE_CONNECTIONS {
            eprintln!("SCALED DOWN: {count} idle connections, because the limit is {files} files");
        }
        let member = Member::start(subject()).await;
        let client = member.client();
        client.put("a", "1").await.unwrap();
        let before = crate::resident_bytes(&member);
        let hello = [PREFACE, &frame(4, 0, 0, &[])].concat();
        let mut idle = Vec::new();
        for number in 0..count {
            let mut stream = connect(&member);
            // One in ten says nothing at all.
            if number % 10 != 0 {
                stream.write_all(&hello).unwrap();
            }
            idle.push(stream);
        }
        let start = Instant::now();
        let (pair, _) = client.get("a").await.unwrap();
        assert_eq!(pair.unwrap().value, "1");
        assert!(
            start.elapsed() < deadline(Duration::from_secs(2)),
            "took {:?}",
            start.elapsed()
        );
        let fresh = member.client();
        fresh.put("a", "2").await.unwrap();
        let growth = crate::resident_bytes(&member).saturating_sub(before);
        eprintln!(
            "{count} idle connections: {} KiB each",
            growth / 1024 / count.max(1)
        );
        if subject() == Program::MetaStore {
            assert!(
                growth / count < 64 * 1024,
                "{} bytes for each",
                growth / count
            );
        }
        drop(idle);
        client.put("a", "3").await.unwrap();
        member.assert_log_is_clean();
    })
    .await;
}

/// The kilobytes that a process keeps from being swapped out.
fn locked_kilobytes(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
    line.unwrap().trim_end_matches("kB").trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_locked_or_the_member_does_not_start() {
    within(async {
        let program = Program::MetaStore.path();
        let folder = tempfile::tempdir().unwrap();
        // Neither a capability nor a limit that would do.
        let output = Command::new("bash")
            .args([
                "-c",
                "ulimit -l 64; exec setpriv --bounding-set=-ipc_lock --inh-caps=-ipc_lock -- \"$@\"",
                "bash",
            ])
            .arg(&program)
            .arg("--memory-mlock")
            .arg(format!("--data-dir={}", folder.path().display()))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if said.contains("setpriv:") {
            eprintln!("half of it skipped: this user may not give capabilities up: {said}");
        } else {
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains("this process may lock 65536 bytes"), "{said}");
            assert!(said.contains("ulimit -l unlimited"), "{said}");
        }

        let member = MemberBuilder::new(Program::MetaStore).start().await;
        assert_eq!(locked_kilobytes(member.process_id().unwrap()), 0);
        let mut member = MemberBuilder::new(Program::MetaStore)
            .flag("--memory-mlock")
            .spawn();
        if !may_lock_memory() {
            let limit = Duration::from_secs(10);
            let status = member.wait_for_exit("it may not lock its memory", limit).await;
            assert_eq!(status.code(), Some(1));
            return;
        }
        member.ready().await;
        member.client().put("a", "1").await.unwrap();
        let locked = locked_kilobytes(member.process_id().unwrap());
        assert!(locked > 1024, "{locked} kB");
    })
    .await;
}

/// Whether this process and those that it starts may lock as much memory as they want.
fn may_lock_memory() -> bool {
    use rustix::process::{Resource, getrlimit};
    use rustix::thread::{CapabilitySet, capabilities};
    getrlimit(Resource::Memlock).current.is_none()
        || capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK))
}
