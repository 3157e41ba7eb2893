//! `/metrics`: everything that is counted, for Prometheus.

use std::sync::Arc;

use http::StatusCode;

use super::answer::{Answer, text};
use crate::node::Node;
use crate::observe::metrics;

/// Answers a scrape. Puts the text together on the blocking pool: the engine is asked for its size,
/// and there may be many streams to look at.
pub(super) async fn answer(node: Arc<Node>) -> Answer {
    let rendered = tokio::task::spawn_blocking(move || metrics::render(&node)).await;
    match rendered {
        Ok(Ok(body)) => text(StatusCode::OK, metrics::CONTENT_TYPE, body),
        Ok(Err(error)) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            "text/plain; charset=utf-8",
            format!("{error}\n"),
        ),
        Err(_) => text(
            StatusCode::SERVICE_UNAVAILABLE,
            "text/plain; charset=utf-8",
            "the member is stopping\n",
        ),
    }
}
