//! The gRPC health service: the service name `""` only, as etcd has it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::body::Body;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer as Generated;
use tonic_health::server::{HealthReporter, HealthService};
use tower::Service;

use crate::node::Node;

/// The health service as a tower service.
#[derive(Clone)]
pub struct HealthServer {
    inner: Generated<HealthService>,
    // Held so that the status channel stays open.
    _reporter: HealthReporter,
}

/// A health service that answers SERVING while the process runs.
pub fn server(_node: Arc<Node>) -> HealthServer {
    // `new` registers the empty service name as SERVING.
    let reporter = HealthReporter::new();
    let service = HealthService::from_health_reporter(reporter.clone());
    debug_assert_eq!(ServingStatus::Serving as i32, 1);
    HealthServer {
        inner: Generated::new(service),
        _reporter: reporter,
    }
}

impl<B> Service<Request<B>> for HealthServer
where
    B: http_body::Body + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    type Response = Response<Body>;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Service::<Request<B>>::poll_ready(&mut self.inner, context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        Box::pin(self.inner.call(request))
    }
}
