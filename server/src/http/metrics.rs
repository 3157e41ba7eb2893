//! `/metrics`: everything that is counted, for Prometheus.

use std::sync::Arc;

use http::StatusCode;

use super::answer::{Answer, text};
use crate::node::Node;
use crate::observe::metrics::{self, METRICS};

/// Answers a scrape. Puts the text together on the blocking pool: the engine is asked for its size,
/// and there may be many streams to look at.
pub(super) async fn answer(node: Arc<Node>) -> Answer {
    let in_flight = InFlight::start();
    let answer = scrape(node).await;
    drop(in_flight);
    METRICS
        .scrapes
        .with_label_values(&[answer.status().as_str()])
        .inc();
    answer
}

/// Counts a scrape as long as it lives, also one whose client goes away.
struct InFlight;

impl InFlight {
    fn start() -> Self {
        METRICS.scrapes_in_flight.inc();
        Self
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        METRICS.scrapes_in_flight.dec();
    }
}

async fn scrape(node: Arc<Node>) -> Answer {
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
