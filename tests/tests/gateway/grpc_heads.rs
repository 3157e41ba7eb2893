//! What gRPC requests look like before any service sees them: method and time-out.

use bytes::Bytes;
use http::{HeaderMap, Request};

use super::*;

const RANGE: &str = "/etcdserverpb.KV/Range";
/// A range of the key `a`, framed.
const MESSAGE: &[u8] = &[0, 0, 0, 0, 3, 0x0a, 1, b'a'];

/// Sends one request on a connection of its own; shows HTTP status, gRPC status and gRPC message.
async fn ask(member: &Member, method: &str, timeout: Option<&str>) -> String {
    let stream = tokio::net::TcpStream::connect(member.address())
        .await
        .unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut request = Request::builder()
        .method(method)
        .uri(format!("http://{}{RANGE}", member.address()))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(timeout) = timeout {
        request = request.header("grpc-timeout", timeout);
    }
    let (answer, mut body) = client
        .send_request(request.body(()).unwrap(), false)
        .unwrap();
    // A refused request may be reset before its body is sent.
    let _ = body.send_data(Bytes::from_static(MESSAGE), true);
    let (head, mut body) = answer.await.unwrap().into_parts();
    let mut shown = format!("{} {:?}", head.status, head.headers.get("content-type"));
    if head.headers.contains_key("date") {
        shown.push_str(" with a date");
    }
    let mut bytes = 0;
    while let Some(Ok(data)) = body.data().await {
        bytes += data.len();
    }
    let trailers = body.trailers().await.ok().flatten().unwrap_or_default();
    shown.push_str(&format!(
        " {} answered",
        if bytes > 0 { "is" } else { "not" }
    ));
    for headers in [&head.headers, &trailers] {
        shown.push_str(&grpc_fields(headers));
    }
    connection.abort();
    shown
}

fn grpc_fields(headers: &HeaderMap) -> String {
    let mut shown = String::new();
    for name in ["grpc-status", "grpc-message"] {
        let Some(value) = headers.get(name).filter(|value| !value.is_empty()) else {
            continue;
        };
        // Which letters are escaped beside those that must be is everybody's own choice.
        let mut text = value.to_str().unwrap().to_owned();
        for (escape, letter) in [("%20", " "), ("%22", "\"")] {
            text = text.replace(escape, letter);
        }
        shown.push_str(&format!(" {name}={text}"));
    }
    shown
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn methods_and_timeouts_of_grpc_are_refused_as_by_etcd() {
    within(async {
        let members = both(&[]).await;
        let mut transcripts = Vec::new();
        for member in &members {
            let mut transcript = Vec::new();
            for method in ["POST", "GET", "PUT", "DELETE"] {
                for timeout in [
                    None,
                    Some("5S"),
                    Some("1H"),
                    Some("1n"),
                    Some("0m"),
                    Some(""),
                    Some("n"),
                    Some("123456789n"),
                    Some("10"),
                    Some("-1S"),
                    Some("1.5S"),
                    Some("one"),
                ] {
                    let answer = ask(member, method, timeout).await;
                    transcript.push(format!("{method} {timeout:?}: {answer}"));
                }
            }
            transcripts.push(transcript);
        }
        assert_equal_transcripts(&transcripts[0], &transcripts[1]);
        assert!(transcripts[0][0].contains("is answered"));
    })
    .await;
}
