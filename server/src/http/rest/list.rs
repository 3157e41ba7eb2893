//! Many keys: GET with paging, DELETE of a prefix.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use metastore_proto::KeyValue;
use metastore_proto::etcdserverpb::{DeleteRangeRequest, DeleteRangeResponse, RangeRequest};
use serde_json::{Map, Value, json};

use super::problem::Problem;
use super::query::Query;
use super::{Exchange, Outcome, fields, path, set_revision};
use crate::rpc::concurrency::prefix_end;

const DELETE_RANGE_PATH: &str = "/etcdserverpb.KV/DeleteRange";
const PAGE_ITEMS_DEFAULT: i64 = 100;
/// Most items of a page.
const PAGE_ITEMS_MAX: i64 = 1000;
/// Most items of a page with values, which may be 1.5 MiB each.
const PAGE_VALUES_MAX: i64 = 100;

impl Exchange {
    pub(super) async fn keys(&self) -> Outcome {
        self.allow(&[Method::GET, Method::HEAD, Method::DELETE])?;
        if self.parts.method == Method::DELETE {
            return self.delete_prefix().await;
        }
        if self.wants_events() {
            let query = Query::read(&self.parts.uri, &["prefix", "since"])?;
            let (key, range_end) = prefix_range(query.bytes("prefix").unwrap_or_default());
            return self.events(key, range_end, &query).await;
        }
        self.list().await
    }

    async fn list(&self) -> Outcome {
        let known = [
            "prefix",
            "after",
            "limit",
            "revision",
            "values",
            "serializable",
        ];
        let query = Query::read(&self.parts.uri, &known)?;
        let prefix = query.bytes("prefix").unwrap_or_default();
        let values = query.flag("values")?;
        let most = if values {
            PAGE_VALUES_MAX
        } else {
            PAGE_ITEMS_MAX
        };
        let limit = query
            .integer("limit", 1)?
            .unwrap_or(PAGE_ITEMS_DEFAULT)
            .min(most);
        let (mut key, range_end) = prefix_range(prefix);
        if let Some(after) = query.bytes("after") {
            if !after.starts_with(prefix) {
                return Err(Problem::bad_request("after must begin with prefix"));
            }
            key = Bytes::from([after, b"\0"].concat());
        }
        let request = RangeRequest {
            key,
            range_end,
            limit,
            revision: query.integer("revision", 0)?.unwrap_or(0),
            serializable: query.flag("serializable")?,
            keys_only: !values,
            ..Default::default()
        };
        let response = self.range(&request).await?;
        let store_revision = response.header.map_or(0, |header| header.revision);
        // All pages show the state of the first one.
        let revision = if request.revision > 0 {
            request.revision
        } else {
            store_revision
        };
        let pairs: Vec<KeyValue> = response.kvs.iter().map(fields).collect::<Result<_, _>>()?;
        let shown = i64::try_from(pairs.len()).unwrap_or(i64::MAX);
        let mut page = Map::new();
        page.insert("revision".into(), revision.into());
        page.insert("remaining".into(), (response.count - shown).into());
        page.insert(
            "items".into(),
            pairs.iter().map(|pair| item(pair, values)).collect(),
        );
        let next = pairs
            .last()
            .filter(|_| response.more)
            .map(|last| next_page(prefix, &last.key, revision, limit, values));
        if let Some(next) = &next {
            page.insert("next".into(), next.clone().into());
        }
        let mut response = super::json(StatusCode::OK, Value::Object(page).to_string().into());
        let headers = response.headers_mut();
        set_revision(headers, store_revision);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        if let Some(next) = next
            && let Ok(link) = HeaderValue::from_str(&format!("<{next}>; rel=\"next\""))
        {
            headers.insert(header::LINK, link);
        }
        Ok(response)
    }

    async fn delete_prefix(&self) -> Outcome {
        let query = Query::read(&self.parts.uri, &["prefix"])?;
        let prefix = query.bytes("prefix").unwrap_or_default();
        if prefix.is_empty() {
            return Err(Problem::bad_request(
                "a prefix is needed: one request does not delete everything",
            ));
        }
        let (key, range_end) = prefix_range(prefix);
        let request = DeleteRangeRequest {
            key,
            range_end,
            ..Default::default()
        };
        let deleted: DeleteRangeResponse = self.caller.unary(DELETE_RANGE_PATH, &request).await?;
        let revision = deleted.header.map_or(0, |header| header.revision);
        let body = json!({ "deleted": deleted.deleted, "revision": revision });
        let mut response = super::json(StatusCode::OK, body.to_string().into());
        set_revision(response.headers_mut(), revision);
        Ok(response)
    }
}

/// The range of all keys with this prefix; of all keys for an empty one.
fn prefix_range(prefix: &[u8]) -> (Bytes, Bytes) {
    if prefix.is_empty() {
        return (Bytes::from_static(b"\0"), Bytes::from_static(b"\0"));
    }
    (Bytes::copy_from_slice(prefix), prefix_end(prefix))
}

fn next_page(prefix: &[u8], last: &[u8], revision: i64, limit: i64, values: bool) -> String {
    let mut next = format!(
        "{}?prefix={}&after={}&revision={revision}&limit={limit}",
        super::KEYS_PATH,
        path::encode(prefix),
        path::encode(last)
    );
    if values {
        next.push_str("&values=true");
    }
    next
}

/// A key in JSON; its name is as paths write it, so that `/kv/` before it is its address.
pub(super) fn item(pair: &KeyValue, value: bool) -> Value {
    let mut item = json!({
        "key": path::encode(&pair.key),
        "create_revision": pair.create_revision,
        "mod_revision": pair.mod_revision,
        "version": pair.version,
    });
    if pair.lease != 0 {
        // Ids of leases are larger than what JavaScript's numbers hold.
        item["lease"] = pair.lease.to_string().into();
    }
    if value {
        item["value"] = STANDARD.encode(&pair.value).into();
    }
    item
}
