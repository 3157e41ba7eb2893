//! Lease keep-alive: a lease and a stream for each client, one request outstanding on each.

use std::sync::Arc;

use metastore_proto::etcdserverpb::{LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::recorder::{Recorder, Shared};
use super::{LoadOptions, connect, wire};
use crate::client::{BidiStream, CallError, frame};

/// Time to live of the leases, in seconds: longer than any run.
const TTL_SECONDS: i64 = 3600;

/// Grants the leases, opens the streams, and starts the clients.
pub async fn spawn(
    options: &LoadOptions,
    shared: &Arc<Shared>,
    tasks: &mut JoinSet<Recorder>,
) -> Result<(), CallError> {
    let mut connections = connect(options, options.clients).await?;
    for client in 0..options.clients {
        let index = client % connections.len();
        let connection = &mut connections[index];
        let request = LeaseGrantRequest {
            ttl: TTL_SECONDS,
            id: 0,
        };
        let granted: LeaseGrantResponse = connection
            .unary("etcdserverpb.Lease/LeaseGrant", &request)
            .await?;
        let request = frame(&LeaseKeepAliveRequest { id: granted.id });
        let stream = connection
            .stream("etcdserverpb.Lease/LeaseKeepAlive", request.clone())
            .await?;
        tasks.spawn(keep_alive(stream, request, Arc::clone(shared)));
    }
    Ok(())
}

async fn keep_alive(
    mut stream: BidiStream,
    request: bytes::Bytes,
    shared: Arc<Shared>,
) -> Recorder {
    let mut recorder = Recorder::new(&shared);
    // The first request went out with the opening of the stream.
    let mut started = Instant::now();
    while !shared.stopped() {
        let mut answered = false;
        let mut alive = false;
        let received = stream
            .receive(|message| {
                answered = true;
                // A lease that does not exist is answered with a TTL of 0.
                alive = wire::number(message, 3).cast_signed() > 0;
            })
            .await;
        let sent = match received {
            Ok(true) if !answered => continue,
            Ok(true) if alive => {
                recorder.done(1, started);
                started = Instant::now();
                stream.send(request.clone())
            }
            Ok(true) => Err(CallError::Unexpected("the lease is gone".to_owned())),
            Ok(false) => Err(CallError::Unexpected("the stream ended".to_owned())),
            Err(error) => Err(error),
        };
        if let Err(error) = sent {
            recorder.fail(&error);
            break;
        }
    }
    recorder
}
