//! Websockets to the gateway, as etcd wraps it: each message of the client is a line of the request's
//! body, each line of the answer a message to the client.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes, BytesMut};
use futures::stream::SplitSink;
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use sha1::{Digest, Sha1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};

use super::Gateway;
use crate::rpc::in_process::streamed;
use crate::rpc::unary::ResponseBody;

/// What RFC 6455 appends to a key to make the accept header.
const KEY_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Messages of a client that wait for the service. A client that sends more is not read from.
const WAITING_MESSAGES_MAX: usize = 16;
/// The cookie that may hold a token.
const TOKEN_COOKIE: &str = "token";

/// Marks a request whose body does not end with its message.
#[derive(Clone, Copy, Debug)]
pub struct Endless;

fn lists(headers: &HeaderMap, name: header::HeaderName, wanted: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|token| token.trim().eq_ignore_ascii_case(wanted))
}

/// Whether the client asks for a websocket.
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    lists(headers, header::CONNECTION, "upgrade") && lists(headers, header::UPGRADE, "websocket")
}

fn refused(status: StatusCode, text: &'static str) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Plain(Full::new(Bytes::from_static(
        text.as_bytes(),
    ))));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        header::SEC_WEBSOCKET_VERSION,
        HeaderValue::from_static("13"),
    );
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

/// Accepts the websocket and serves it in the background.
pub fn upgrade(gateway: Gateway, mut request: Request<Incoming>) -> Response<ResponseBody> {
    if request.method() != Method::GET {
        return refused(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
    }
    if !lists(request.headers(), header::SEC_WEBSOCKET_VERSION, "13") {
        return refused(StatusCode::BAD_REQUEST, "Bad Request\n");
    }
    let key = request
        .headers()
        .get(header::SEC_WEBSOCKET_KEY)
        .filter(|key| STANDARD.decode(key).is_ok_and(|key| key.len() == 16));
    let Some(key) = key else {
        return refused(StatusCode::BAD_REQUEST, "Bad Request\n");
    };
    let accept = Sha1::new()
        .chain_update(key.as_bytes())
        .chain_update(KEY_SUFFIX)
        .finalize();
    let accept = STANDARD.encode(accept);
    let protocol = request
        .headers()
        .get(header::SEC_WEBSOCKET_PROTOCOL)
        .is_some_and(|protocol| protocol.as_bytes().starts_with(b"Bearer"));
    let call = inner_request(&request);
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgraded.await {
            Ok(upgraded) => serve(gateway, call, upgraded).await,
            Err(error) => tracing::debug!(%error, "a websocket was not opened"),
        }
    });
    let mut response = Response::new(ResponseBody::Plain(Full::default()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    if let Ok(accept) = accept.parse() {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    if protocol {
        headers.insert(
            header::SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static("Bearer"),
        );
    }
    response
}

/// The request that the websocket stands for: a POST with the credentials of its handshake.
fn inner_request(request: &Request<Incoming>) -> Request<()> {
    let mut inner = Request::new(());
    *inner.method_mut() = Method::POST;
    *inner.uri_mut() = request.uri().clone();
    inner.extensions_mut().insert(Endless);
    let headers = request.headers();
    let protocol = headers
        .get(header::SEC_WEBSOCKET_PROTOCOL)
        .and_then(|value| value.to_str().ok())
        // `Bearer, token`; some browsers leave out the space.
        .and_then(|value| value.split_once("Bearer,"))
        .map(|(_, token)| token.trim_matches(' ').to_owned());
    let cookie = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, _)| *name == TOKEN_COOKIE)
        .map(|(_, token)| token.to_owned());
    if let Some(token) = cookie.or(protocol)
        && let Ok(value) = HeaderValue::from_str(&format!("Bearer {token}"))
    {
        inner.headers_mut().insert(header::AUTHORIZATION, value);
    }
    inner
}

type Socket = WebSocketStream<TokioIo<Upgraded>>;

async fn serve(gateway: Gateway, call: Request<()>, upgraded: Upgraded) {
    let limit = gateway.json_bytes_max();
    let config = WebSocketConfig::default()
        .max_message_size(Some(limit))
        .max_frame_size(Some(limit));
    let socket =
        WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
    let (mut outgoing, mut incoming) = socket.split();
    let (lines, requests) = mpsc::channel::<Bytes>(WAITING_MESSAGES_MAX);
    let receive = async move {
        while let Some(Ok(message)) = incoming.next().await {
            let data = match message {
                Message::Text(text) => Bytes::from(text),
                Message::Binary(data) => data,
                Message::Close(_) => return,
                // The library answers pings.
                _ => continue,
            };
            let line = Bytes::from([&data[..], b"\n"].concat());
            if lines.send(line).await.is_err() {
                // The call takes no more; the client may still read its answers.
                std::future::pending::<()>().await;
            }
        }
    };
    let respond = async {
        let body = streamed(ReceiverStream::new(requests));
        let response = gateway.call(call.map(|()| body)).await;
        send_lines(response.into_body(), &mut outgoing).await;
    };
    tokio::select! {
        () = receive => {}
        () = respond => {}
    }
    // The client may be gone already.
    let _ = outgoing.close().await;
}

/// Sends each line of the answer as a message.
async fn send_lines(mut body: ResponseBody, outgoing: &mut SplitSink<Socket, Message>) {
    let mut pending = BytesMut::new();
    loop {
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line = pending.split_to(end).freeze();
            pending.advance(1);
            if !send(outgoing, &line).await {
                return;
            }
        }
        match body.frame().await {
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    pending.extend_from_slice(&data);
                }
            }
            Some(Err(_)) => return,
            None => {
                send(outgoing, &pending).await;
                return;
            }
        }
    }
}

async fn send(outgoing: &mut SplitSink<Socket, Message>, line: &[u8]) -> bool {
    if line.is_empty() {
        return true;
    }
    let text = String::from_utf8_lossy(line).into_owned();
    outgoing.send(Message::text(text)).await.is_ok()
}
