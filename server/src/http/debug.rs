//! `/debug/vars` and, with `--enable-pprof`, `/debug/pprof/`.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, StatusCode, header};
use serde_json::json;

use super::answer::{Answer, method_not_allowed, not_found, text};
use crate::node::Node;
use crate::observe::heap_profile::{self, View};
use crate::observe::metrics::process;
use crate::observe::profile;

const PLAIN: &str = "text/plain; charset=utf-8";
const VARIABLES_PATH: &str = "/debug/vars";
pub(crate) const PROFILES_PATH: &str = "/debug/pprof/";
/// How long samples are taken when the request does not say; Go's.
const PROFILE_SECONDS: u64 = 30;
/// The longest time to take samples.
const PROFILE_SECONDS_MAX: u64 = 3600;

/// Answers what stands under `/debug/`.
pub(super) async fn answer<B>(node: &Arc<Node>, request: &Request<B>) -> Answer {
    let path = request.uri().path();
    if path == VARIABLES_PATH {
        return match *request.method() {
            Method::GET => variables(node),
            _ => method_not_allowed("GET"),
        };
    }
    match path.strip_prefix(PROFILES_PATH) {
        Some(profile) if node.config.enable_pprof => {
            profiles(profile, request.uri().query().unwrap_or_default()).await
        }
        _ => not_found(),
    }
}

/// What Go's expvar shows of etcd, as far as there is something like it.
fn variables(node: &Arc<Node>) -> Answer {
    let status = node.status();
    let entries = |last: u64| last + 1;
    let applied = node.application.applied_index();
    let committed = status.committed.map_or(0, |last| entries(last.index));
    let state = match (node.is_leader(), status.is_learner, status.leader) {
        (true, _, _) => "StateLeader",
        (_, true, _) => "StateLearner",
        (_, _, None) => "StateCandidate",
        _ => "StateFollower",
    };
    let hex = |id: u64| format!("{id:x}");
    let progress: serde_json::Map<_, _> = node
        .consensus
        .progress()
        .into_iter()
        .map(|peer| {
            let matched = peer.matched.map_or(0, |last| entries(last.index));
            (hex(peer.id), json!({ "match": matched }))
        })
        .collect();
    let body = json!({
        "cmdline": std::env::args().collect::<Vec<_>>(),
        "file_descriptor_limit": process::open_files_max(),
        "memory": { "resident_bytes": process::resident_bytes() },
        "raft.status": {
            "id": hex(node.member_id),
            "term": status.term,
            "commit": committed.max(applied),
            "lead": hex(status.leader.unwrap_or(0)),
            "raftState": state,
            "applied": applied,
            "progress": progress,
        },
    });
    text(
        StatusCode::OK,
        "application/json; charset=utf-8",
        format!("{body:#}\n"),
    )
}

/// Answers what stands under `/debug/pprof/`.
pub(crate) async fn profiles(profile: &str, query: &str) -> Answer {
    match profile {
        "" => text(StatusCode::OK, "text/html; charset=utf-8", INDEX),
        "cmdline" => {
            let arguments: Vec<_> = std::env::args().collect();
            text(StatusCode::OK, PLAIN, arguments.join("\0"))
        }
        "profile" => cpu_profile(query).await,
        "heap" => heap_profile("heap", View::Live).await,
        "allocs" => heap_profile("allocs", View::Taken).await,
        "goroutine" | "threadcreate" | "block" | "mutex" | "trace" | "symbol" => text(
            StatusCode::NOT_IMPLEMENTED,
            PLAIN,
            "only a Go program has this profile\n",
        ),
        _ => not_found(),
    }
}

async fn cpu_profile(query: &str) -> Answer {
    let seconds = url::form_urlencoded::parse(query.as_bytes())
        .find(|(name, _)| name == "seconds")
        .and_then(|(_, value)| value.parse().ok())
        .filter(|seconds| *seconds > 0)
        .unwrap_or(PROFILE_SECONDS)
        .min(PROFILE_SECONDS_MAX);
    match profile::cpu_profile(Duration::from_secs(seconds)).await {
        Ok(encoded) => attachment("profile", encoded),
        Err(error) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            PLAIN,
            format!("{error}\n"),
        ),
    }
}

async fn heap_profile(name: &'static str, view: View) -> Answer {
    match tokio::task::spawn_blocking(move || heap_profile::heap_profile(view)).await {
        Ok(Some(encoded)) => attachment(name, encoded),
        Ok(None) | Err(_) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            PLAIN,
            "allocations are not being sampled\n",
        ),
    }
}

fn attachment(name: &'static str, encoded: Vec<u8>) -> Answer {
    let mut answer = text(StatusCode::OK, "application/octet-stream", encoded);
    if let Ok(file) = format!("attachment; filename=\"{name}\"").parse() {
        answer
            .headers_mut()
            .insert(header::CONTENT_DISPOSITION, file);
    }
    answer
}

const INDEX: &str = "<html>\n<head>\n<title>/debug/pprof/</title>\n</head>\n<body>\n/debug/pprof/\n<p>\n\
<a href=\"allocs\">allocs</a>: who has taken memory since the start<br>\n\
<a href=\"cmdline\">cmdline</a>: the command line of this program<br>\n\
<a href=\"heap\">heap</a>: who holds memory<br>\n\
<a href=\"profile\">profile</a>: where the processor's time goes; ?seconds= says for how long to look<br>\n\
</body>\n</html>\n";
