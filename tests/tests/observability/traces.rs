//! Traces, as a collector receives them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Buf, Bytes};
use metastore_proto::etcdserverpb as pb;
use metastore_tests::{MemberBuilder, Program, eventually};
use tonic::metadata::MetadataValue;

const LIMIT: Duration = Duration::from_secs(60);
const TRACE_ID: &str = "0af7651916cd43dd8448eb211c80319c";

/// One span, as far as it is looked at.
#[derive(Clone, Debug, Default)]
struct Span {
    trace_id: String,
    name: String,
    kind: u64,
    attributes: BTreeMap<String, String>,
    events: Vec<String>,
}

/// The fields of a message: number and content.
fn fields(mut bytes: Bytes) -> Vec<(u64, Bytes)> {
    let mut found = Vec::new();
    while bytes.has_remaining() {
        let key = prost::encoding::decode_varint(&mut bytes).expect("a key");
        let content = match key & 7 {
            0 => {
                let number = prost::encoding::decode_varint(&mut bytes).expect("a number");
                Bytes::copy_from_slice(&number.to_le_bytes())
            }
            1 => bytes.split_to(8),
            2 => {
                let length = prost::encoding::decode_varint(&mut bytes).expect("a length");
                bytes.split_to(usize::try_from(length).expect("it fits"))
            }
            5 => bytes.split_to(4),
            other => panic!("wire type {other}"),
        };
        found.push((key >> 3, content));
    }
    found
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn number(bytes: &Bytes) -> u64 {
    u64::from_le_bytes(bytes.as_ref().try_into().expect("eight bytes"))
}

/// A key with any value, as text.
fn attribute(bytes: Bytes) -> (String, String) {
    let mut pair = (String::new(), String::new());
    for (tag, content) in fields(bytes) {
        match tag {
            1 => pair.0 = text(&content),
            2 => {
                for (kind, value) in fields(content) {
                    pair.1 = match kind {
                        1 => text(&value),
                        2 => (number(&value) != 0).to_string(),
                        3 => number(&value).cast_signed().to_string(),
                        _ => String::new(),
                    };
                }
            }
            _ => {}
        }
    }
    pair
}

fn span(bytes: Bytes) -> Span {
    let mut span = Span::default();
    for (tag, content) in fields(bytes) {
        match tag {
            1 => span.trace_id = content.iter().map(|byte| format!("{byte:02x}")).collect(),
            5 => span.name = text(&content),
            6 => span.kind = number(&content),
            9 => {
                let (name, value) = attribute(content);
                span.attributes.insert(name, value);
            }
            11 => span.events.extend(
                fields(content)
                    .into_iter()
                    .filter(|(tag, _)| *tag == 2)
                    .map(|(_, name)| text(&name)),
            ),
            _ => {}
        }
    }
    span
}

/// What a collector received: attributes of resources, and spans.
#[derive(Clone, Default)]
struct Received {
    resource: Arc<Mutex<BTreeMap<String, String>>>,
    spans: Arc<Mutex<Vec<Span>>>,
}

impl Received {
    fn take(&self, request: Bytes) {
        for (_, resource_spans) in fields(request) {
            for (tag, content) in fields(resource_spans) {
                match tag {
                    1 => {
                        for (tag, content) in fields(content) {
                            if tag == 1 {
                                let (name, value) = attribute(content);
                                self.resource.lock().unwrap().insert(name, value);
                            }
                        }
                    }
                    2 => {
                        for (tag, content) in fields(content) {
                            if tag == 2 {
                                self.spans.lock().unwrap().push(span(content));
                            }
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}

/// A collector: takes every unary gRPC call and answers with an empty message.
async fn collector() -> (String, Received) {
    let received = Received::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let shared = received.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let shared = shared.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let shared = shared.clone();
                    tokio::spawn(async move {
                        let mut body = request.into_body();
                        let mut message = Vec::new();
                        while let Some(Ok(chunk)) = body.data().await {
                            message.extend_from_slice(&chunk);
                            let _ = body.flow_control().release_capacity(chunk.len());
                        }
                        shared.take(Bytes::from(message).slice(5..));
                        let head = http::Response::builder()
                            .header("content-type", "application/grpc")
                            .body(())
                            .unwrap();
                        let mut stream = respond.send_response(head, false).unwrap();
                        stream
                            .send_data(Bytes::from_static(&[0; 5]), false)
                            .unwrap();
                        let mut trailers = http::HeaderMap::new();
                        trailers.insert("grpc-status", "0".parse().unwrap());
                        stream.send_trailers(trailers).unwrap();
                    });
                }
            });
        }
    });
    (address, received)
}

fn traced<T>(message: T, sampled: bool) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let parent = format!("00-{TRACE_ID}-b7ad6b7169203331-0{}", u8::from(sampled));
    let parent: MetadataValue<_> = parent.parse().unwrap();
    request.metadata_mut().insert("traceparent", parent);
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_their_clients_trace_are_traced_with_the_names_of_etcd() {
    let (address, received) = collector().await;
    let member = MemberBuilder::new(Program::MetaStore)
        .flag("--enable-distributed-tracing")
        .flag(format!("--distributed-tracing-address={address}"))
        .flag("--distributed-tracing-service-name=store")
        .flag("--distributed-tracing-instance-id=member-7")
        .start()
        .await;
    let mut kv = member.client().kv;
    let put = pb::PutRequest {
        key: "traced".into(),
        value: "1".into(),
        ..Default::default()
    };
    kv.put(traced(put.clone(), true)).await.unwrap();
    let range = pb::RangeRequest {
        key: "traced".into(),
        limit: 7,
        ..Default::default()
    };
    kv.range(traced(range, true)).await.unwrap();
    // Neither of these is wanted: by its client, and by the sampling rate of 0.
    let key = |key: &'static str| pb::PutRequest {
        key: key.into(),
        ..put.clone()
    };
    kv.put(traced(key("unwanted"), false)).await.unwrap();
    kv.put(key("rootless")).await.unwrap();

    let spans = eventually("the spans arrive", LIMIT, || async {
        let spans = received.spans.lock().unwrap().clone();
        match spans.len() {
            4 => Ok(spans),
            other => Err(format!("{other} spans")),
        }
    })
    .await;
    assert!(spans.iter().all(|span| span.trace_id == TRACE_ID));
    let named = |name: &str| {
        spans
            .iter()
            .find(|span| span.name == name)
            .unwrap_or_else(|| panic!("no span {name}: {spans:?}"))
    };
    let call = named("etcdserverpb.KV/Put");
    assert_eq!(call.kind, 2, "a server's");
    assert_eq!(call.attributes["rpc.system.name"], "grpc");
    assert_eq!(call.attributes["rpc.response.status_code"], "OK");
    let put = named("put");
    assert_eq!(put.attributes["key"], "traced");
    assert_eq!(put.events, ["Send raft proposal", "Receive raft result"]);
    named("etcdserverpb.KV/Range");
    let range = &named("range").attributes;
    for (name, value) in [
        ("range_begin", "traced"),
        ("range_end", ""),
        ("rev", "0"),
        ("limit", "7"),
        ("count_only", "false"),
        ("keys_only", "false"),
    ] {
        assert_eq!(range[name], value, "{name}");
    }
    let resource = received.resource.lock().unwrap().clone();
    assert_eq!(resource["service.name"], "store");
    assert_eq!(resource["service.instance.id"], "member-7");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_sampling_rate_is_refused_as_by_etcd() {
    let (status, log) = MemberBuilder::new(Program::MetaStore)
        .flag("--enable-distributed-tracing")
        .flag("--distributed-tracing-sampling-rate=-1")
        .run_to_end()
        .await;
    assert!(!status.success());
    assert!(
        log.contains(
            "distributed tracing configurition is not valid: (tracing sampling rate must be positive)"
        ),
        "{log}"
    );
}
