//! Leases: POST to make one, GET to look, POST `keepalive` to renew, DELETE to end.

use http::{Method, StatusCode, header};
use metastore_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use prost::Message;
use serde_json::{Value, json};

use super::problem::Problem;
use super::query::Query;
use super::{Exchange, Outcome, empty, path};
use crate::rpc::in_process::one_message;

const GRANT_PATH: &str = "/etcdserverpb.Lease/LeaseGrant";
const REVOKE_PATH: &str = "/etcdserverpb.Lease/LeaseRevoke";
const KEEP_ALIVE_PATH: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
const TIME_TO_LIVE_PATH: &str = "/etcdserverpb.Lease/LeaseTimeToLive";

fn no_lease() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "the lease does not exist")
}

fn ok(body: &Value) -> Outcome {
    Ok(super::json(StatusCode::OK, body.to_string().into()))
}

impl Exchange {
    pub(super) async fn leases(&self, path: &str) -> Outcome {
        let Some(rest) = path.strip_prefix(super::LEASE_PREFIX) else {
            self.allow(&[Method::POST])?;
            return self.grant().await;
        };
        let (id, action) = match rest.split_once('/') {
            Some((id, action)) => (id, Some(action)),
            None => (rest, None),
        };
        let id = id.parse::<i64>().map_err(|_| no_lease())?;
        match action {
            None => {
                self.allow(&[Method::GET, Method::HEAD, Method::DELETE])?;
                Query::read(&self.parts.uri, &[])?;
                if self.parts.method == Method::DELETE {
                    return self.revoke(id).await;
                }
                self.time_to_live(id).await
            }
            Some("keepalive") => {
                self.allow(&[Method::POST])?;
                Query::read(&self.parts.uri, &[])?;
                self.keep_alive(id).await
            }
            Some(_) => Err(Problem::new(
                StatusCode::NOT_FOUND,
                "a lease has only /keepalive",
            )),
        }
    }

    async fn grant(&self) -> Outcome {
        let query = Query::read(&self.parts.uri, &["ttl"])?;
        let ttl = query
            .integer("ttl", 1)?
            .ok_or_else(|| Problem::bad_request("query parameter \"ttl\" is needed: seconds"))?;
        let request = LeaseGrantRequest { ttl, id: 0 };
        let granted: LeaseGrantResponse = self.caller.unary(GRANT_PATH, &request).await?;
        let body = json!({ "id": granted.id.to_string(), "ttl": granted.ttl });
        let mut response = super::json(StatusCode::CREATED, body.to_string().into());
        if let Ok(location) = format!("{}{}", super::LEASE_PREFIX, granted.id).parse() {
            response.headers_mut().insert(header::LOCATION, location);
        }
        Ok(response)
    }

    async fn time_to_live(&self, id: i64) -> Outcome {
        let request = LeaseTimeToLiveRequest { id, keys: true };
        let lease: LeaseTimeToLiveResponse = self.caller.unary(TIME_TO_LIVE_PATH, &request).await?;
        if lease.ttl < 0 {
            return Err(no_lease());
        }
        let keys: Vec<String> = lease.keys.iter().map(|key| path::encode(key)).collect();
        ok(&json!({
            "id": id.to_string(),
            "ttl": lease.ttl,
            "granted_ttl": lease.granted_ttl,
            "keys": keys,
        }))
    }

    async fn keep_alive(&self, id: i64) -> Outcome {
        let request = one_message(&LeaseKeepAliveRequest { id });
        let mut answers = self.caller.call(KEEP_ALIVE_PATH, request).await;
        let message = answers.only().await?;
        let renewed = LeaseKeepAliveResponse::decode(message)
            .map_err(|error| Problem::internal(&error.to_string()))?;
        if renewed.ttl <= 0 {
            return Err(no_lease());
        }
        ok(&json!({ "id": id.to_string(), "ttl": renewed.ttl }))
    }

    async fn revoke(&self, id: i64) -> Outcome {
        let request = LeaseRevokeRequest { id };
        let _: LeaseRevokeResponse = self.caller.unary(REVOKE_PATH, &request).await?;
        Ok(empty(StatusCode::NO_CONTENT))
    }
}
