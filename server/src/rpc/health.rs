//! The gRPC health service: the service name `""` only, as etcd has it.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::{Stream, StreamExt, stream};
use http::{Request, Response};
use metastore_proto::codec::SmallBufferCodec;
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::{Status, async_trait};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer as Generated};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tower::{Service, service_fn};

use crate::node::Node;
use crate::observe::metrics::grpc::method;
use crate::rpc::{OnLearner, check_call, check_stream};

/// A question for the states of all services. tonic's descriptions are older than it.
#[derive(Clone, Copy, PartialEq, prost::Message)]
struct HealthListRequest {}

/// The states of all services, by name.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthListResponse {
    #[prost(map = "string, message", tag = "1")]
    statuses: HashMap<String, HealthCheckResponse>,
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status as i32,
    }
}

/// Answers SERVING while the process runs. A learner refuses it, as in etcd, so clients that ask for it go to the
/// voters.
struct HealthService {
    node: Arc<Node>,
}

#[async_trait]
impl Health for HealthService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthCheckResponse>, Status> {
        check_call(&self.node, request.metadata().as_ref(), OnLearner::Refused)?;
        match &*request.get_ref().service {
            "" => Ok(tonic::Response::new(answer(ServingStatus::Serving))),
            _ => Err(Status::not_found("unknown service")),
        }
    }

    async fn watch(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<Self::WatchStream>, Status> {
        check_stream(&self.node, request.metadata().as_ref(), OnLearner::Refused)?;
        let status = match &*request.get_ref().service {
            "" => ServingStatus::Serving,
            // It might come later, says the protocol; so the stream stays open.
            _ => ServingStatus::ServiceUnknown,
        };
        let stopped = self.node.stopped();
        let end = stream::once(async move {
            stopped.await;
            Err(Status::cancelled("Stream has ended."))
        });
        let statuses = stream::once(std::future::ready(Ok(answer(status)))).chain(end);
        Ok(tonic::Response::new(Box::pin(statuses)))
    }
}

fn list(
    node: &Arc<Node>,
    request: &tonic::Request<HealthListRequest>,
) -> Result<tonic::Response<HealthListResponse>, Status> {
    check_call(node, request.metadata().as_ref(), OnLearner::Refused)?;
    let statuses = HashMap::from([(String::new(), answer(ServingStatus::Serving))]);
    Ok(tonic::Response::new(HealthListResponse { statuses }))
}

/// The health service as a tower service.
#[derive(Clone)]
pub struct HealthServer {
    inner: Generated<HealthService>,
    node: Arc<Node>,
}

/// The health service of `node`.
pub fn server(node: Arc<Node>) -> HealthServer {
    HealthServer {
        node: Arc::clone(&node),
        inner: Generated::new(HealthService { node }),
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
        if request.uri().path() == method::HEALTH_LIST.path() {
            let node = Arc::clone(&self.node);
            return Box::pin(async move {
                let codec = SmallBufferCodec::<HealthListResponse, HealthListRequest>::default();
                let listed = service_fn(move |request| std::future::ready(list(&node, &request)));
                Ok(Grpc::new(codec).unary(listed, request).await)
            });
        }
        Box::pin(self.inner.call(request))
    }
}
