//! Websockets to the gateway, with frames made by hand.

use metastore_tests::raw_http::{HttpRequest, HttpStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::json::normal;
use super::*;

fn handshake(path: &str) -> HttpRequest {
    handshake_of_version(path, "13")
}

fn handshake_of_version(path: &str, version: &str) -> HttpRequest {
    HttpRequest::new("GET", path)
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", version)
        .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
}

async fn send(stream: &mut HttpStream, text: &str) {
    let length = u8::try_from(text.len()).unwrap();
    assert!(length < 126, "a short frame");
    let mask = [1, 2, 3, 4];
    let mut frame = vec![0x81, 0x80 | length];
    frame.extend(mask);
    frame.extend(
        text.bytes()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    stream.reader.write_all(&frame).await.unwrap();
}

/// The next text frame; nothing when the server closes.
async fn receive(stream: &mut HttpStream) -> Option<String> {
    let reading = async {
        let mut head = [0; 2];
        stream.reader.read_exact(&mut head).await.ok()?;
        if head[0] & 0x0f != 1 {
            return None;
        }
        let length = match head[1] {
            126 => usize::from(stream.reader.read_u16().await.ok()?),
            127 => usize::try_from(stream.reader.read_u64().await.ok()?).ok()?,
            short => usize::from(short),
        };
        let mut text = vec![0; length];
        stream.reader.read_exact(&mut text).await.ok()?;
        Some(String::from_utf8(text).unwrap())
    };
    tokio::time::timeout(deadline(Duration::from_secs(20)), reading)
        .await
        .expect("a frame in time")
}

async fn transcript(member: &Member) -> Vec<String> {
    let address = member.address();
    let mut said = Vec::new();
    let mut stream = handshake("/v3/watch").open(&address).await;
    said.push(format!(
        "{} {:?}",
        stream.status,
        stream.header("sec-websocket-accept")
    ));
    send(&mut stream, r#"{"create_request":{"key":"YQ=="}}"#).await;
    said.extend(receive(&mut stream).await);
    member.client().put("a", "1").await.unwrap();
    said.extend(receive(&mut stream).await);
    send(
        &mut stream,
        r#"{"create_request":{"key":"Yg==","watch_id":9}}"#,
    )
    .await;
    said.extend(receive(&mut stream).await);
    send(&mut stream, r#"{"cancel_request":{"watch_id":9}}"#).await;
    said.extend(receive(&mut stream).await);
    drop(stream);

    let token = handshake("/v3/lease/keepalive").header("Sec-WebSocket-Protocol", "Bearer, token");
    let mut stream = token.open(&address).await;
    said.push(format!(
        "{} {:?}",
        stream.status,
        stream.header("sec-websocket-protocol")
    ));
    send(&mut stream, r#"{"ID":"1"}"#).await;
    said.extend(receive(&mut stream).await);
    drop(stream);

    let mut stream = handshake("/v3/nothing").open(&address).await;
    said.push(stream.status.to_string());
    said.extend(receive(&mut stream).await);
    said.push(format!("closed: {}", receive(&mut stream).await.is_none()));
    let refused = handshake_of_version("/v3/watch", "12");
    said.push(format!("{:?}", refused.send(&address).await.status));
    said.iter().map(|text| normal(text, &address)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn websockets_answer_as_etcd() {
    within(async {
        let [etcd, ours] = both(&[]).await;
        assert_equal_transcripts(&transcript(&etcd).await, &transcript(&ours).await);
    })
    .await;
}
