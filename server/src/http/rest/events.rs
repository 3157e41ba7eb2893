//! Changes, as server-sent events: a browser's `EventSource` reads them, and comes back where it was.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::{RangeRequest, WatchResponse};
use metastore_proto::mvccpb::event::EventType;
use prost::Message;
use serde_json::{Value, json};
use tonic::Status;

use super::list::item;
use super::problem::Problem;
use super::query::Query;
use super::{Exchange, Outcome, fields, set_revision};
use crate::rpc::in_process::Answers;
use crate::rpc::unary::ResponseBody;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// A line without meaning after so much silence, so that proxies keep the connection and a dead client
/// is noticed.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);
const HEARTBEAT: &[u8] = b": \n\n";
/// One watch of this process.
pub(super) struct Watch {
    answers: Answers,
}

impl Watch {
    /// The next answer; nothing at the end.
    pub(super) async fn next_response(&mut self) -> Result<Option<WatchResponse>, Problem> {
        let Some(message) = self.answers.next_message().await else {
            return Ok(None);
        };
        let response = WatchResponse::decode(message?)
            .map_err(|error| Problem::internal(&error.to_string()))?;
        if response.compact_revision != 0 {
            return Err(Status::from(EtcdError::Compacted).into());
        }
        if response.canceled {
            return Err(refusal(response.cancel_reason).into());
        }
        Ok(Some(response))
    }
}

/// Why a watch was refused. The reason of one that lacks permission ends with the text of an error, in
/// whose place a client without a stream would have got that error.
fn refusal(reason: String) -> Status {
    let known = EtcdError::ALL
        .iter()
        .find(|error| reason.ends_with(error.text()));
    match known {
        Some(error) => (*error).into(),
        None => Status::failed_precondition(reason),
    }
}

impl Exchange {
    pub(super) async fn watch(&self, key: Bytes, range_end: Bytes, start_revision: i64) -> Watch {
        Watch {
            answers: self.caller.watch(key, range_end, start_revision).await,
        }
    }

    /// The last revision that the client has seen.
    fn seen(&self, query: &Query) -> Result<Option<i64>, Problem> {
        match self.parts.headers.get(LAST_EVENT_ID) {
            // A browser that has seen no event sends an empty one.
            Some(id) if !id.is_empty() => id
                .to_str()
                .ok()
                .and_then(|id| id.parse().ok())
                .filter(|revision| *revision >= 0)
                .map(Some)
                .ok_or_else(|| Problem::bad_request("Last-Event-ID is not an id of ours")),
            _ => query.integer("since", 0),
        }
    }

    pub(super) async fn events(&self, key: Bytes, range_end: Bytes, query: &Query) -> Outcome {
        let seen = self.seen(query)?;
        if let Some(seen) = seen {
            self.is_still_there(&key, &range_end, seen + 1).await?;
        }
        let start = seen.map_or(0, |seen| seen + 1);
        let mut watch = self.watch(key, range_end, start).await;
        let created = watch
            .next_response()
            .await?
            .ok_or_else(|| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the server stops"))?;
        let current = created.header.map_or(0, |header| header.revision);
        // What comes next is later than this; a client that leaves now comes back here.
        let ready = event(
            "ready",
            Some(seen.unwrap_or(current)),
            &json!({ "revision": current }),
        );
        let pieces = async_stream::stream! {
            yield ready;
            loop {
                match tokio::time::timeout(HEARTBEAT_INTERVAL, watch.next_response()).await {
                    Err(_) => yield Bytes::from_static(HEARTBEAT),
                    Ok(Ok(Some(response))) => match changes(&response) {
                        Ok(changes) => yield changes,
                        Err(_) => return,
                    },
                    // The client asks again, and learns then why it cannot go on.
                    Ok(Ok(None) | Err(_)) => return,
                }
            }
        };
        let pieces = futures::StreamExt::map(pieces, |piece| {
            Ok::<_, Status>(http_body::Frame::data(piece))
        });
        let body = ResponseBody::Pieces(StreamBody::new(pieces).boxed_unsync());
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/event-stream"),
        );
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        set_revision(headers, current);
        Ok(response)
    }

    /// Fails when the history from `revision` on has been compacted: 410 before a stream that could
    /// only end.
    async fn is_still_there(
        &self,
        key: &Bytes,
        range_end: &Bytes,
        revision: i64,
    ) -> Result<(), Problem> {
        let request = RangeRequest {
            key: key.clone(),
            range_end: range_end.clone(),
            revision,
            limit: 1,
            keys_only: true,
            serializable: true,
            ..Default::default()
        };
        let read: Result<metastore_proto::etcdserverpb::RangeResponse, _> =
            self.caller.unary(super::RANGE_PATH, &request).await;
        match read {
            Err(status) if status.message() != EtcdError::FutureRev.text() => Err(status.into()),
            _ => Ok(()),
        }
    }
}

/// The events of one answer. Only the last of a revision carries its id: a client that lost the
/// connection in between gets the whole revision again.
fn changes(response: &WatchResponse) -> Result<Bytes, Problem> {
    let mut pairs = Vec::with_capacity(response.events.len());
    for event in &response.events {
        let pair = event.kv.as_ref().map(fields).transpose()?;
        pairs.extend(pair.map(|pair| (event.r#type, pair)));
    }
    let mut text = Vec::new();
    for (position, (kind, pair)) in pairs.iter().enumerate() {
        let next = pairs.get(position + 1).map(|(_, next)| next.mod_revision);
        let id = (next != Some(pair.mod_revision)).then_some(pair.mod_revision);
        let piece = if *kind == EventType::Delete as i32 {
            let gone = json!({
                "key": super::path::encode(&pair.key),
                "mod_revision": pair.mod_revision,
            });
            event("delete", id, &gone)
        } else {
            event("put", id, &item(pair, true))
        };
        text.extend_from_slice(&piece);
    }
    Ok(text.into())
}

fn event(name: &str, id: Option<i64>, data: &Value) -> Bytes {
    let id = id.map_or_else(String::new, |id| format!("id: {id}\n"));
    format!("event: {name}\n{id}data: {data}\n\n").into()
}
