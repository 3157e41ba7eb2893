//! Watch fan-out: writers on a prefix, many watchers of it, delivered events counted.
//!
//! The loop is closed over the delivery: a writer goes on when the events of an earlier put have
//! reached the watchers. So what is measured is what the server can deliver for long, not how deep
//! a backlog it can build up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use metastore_proto::etcdserverpb::{WatchCreateRequest, WatchRequest, watch_request};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

use super::body::{KeySpace, Template};
use super::recorder::{Recorder, Shared};
use super::wire::{self, Value, fields};
use super::{LoadOptions, connect};
use crate::client::{BidiStream, CallError, Connection, frame};

/// What is watched: apart from the other keys.
const PREFIX: &str = "watch/";

/// Of so many events one is decoded, for its latency.
const EVENTS_PER_LATENCY: u64 = 64;

/// What the writers and the watchers of a run share.
struct FanOut {
    shared: Arc<Shared>,
    epoch: Instant,
    watchers: u64,
    /// Watchers that the server has confirmed.
    created: AtomicUsize,
    all_created: Notify,
    /// Events that arrived, over all watchers.
    delivered: AtomicU64,
    /// Puts that may still be sent before more events have arrived.
    window: Semaphore,
}

/// Opens the streams, waits for the confirmation of all watchers, and starts the writers.
pub async fn spawn(
    options: &LoadOptions,
    shared: &Arc<Shared>,
    tasks: &mut JoinSet<Recorder>,
) -> Result<(), CallError> {
    let fan_out = Arc::new(FanOut {
        shared: Arc::clone(shared),
        epoch: Instant::now(),
        watchers: options.watchers as u64,
        created: AtomicUsize::new(0),
        all_created: Notify::new(),
        delivered: AtomicU64::new(0),
        window: Semaphore::new(options.clients),
    });
    let keys = KeySpace {
        prefix: PREFIX.to_owned(),
        keys: options.keys.keys,
    };
    let create = frame(&WatchRequest {
        request_union: Some(watch_request::RequestUnion::CreateRequest(
            WatchCreateRequest {
                key: PREFIX.into(),
                range_end: keys.end().into(),
                ..Default::default()
            },
        )),
    });
    let mut connections = connect(options, options.streams).await?;
    for index in 0..options.streams {
        let slot = index % connections.len();
        let mut stream = connections[slot]
            .stream("etcdserverpb.Watch/Watch", create.clone())
            .await?;
        let own = options.watchers / options.streams
            + usize::from(index < options.watchers % options.streams);
        for _ in 1..own {
            stream.send(create.clone())?;
        }
        tasks.spawn(watch(stream, Arc::clone(&fan_out)));
    }
    tokio::select! {
        () = fan_out.all_created.notified() => {}
        () = shared.until_stopped() => {}
    }
    // The writers talk to the first endpoint only: the leader, when there are several members.
    let mut writer_options = options.clone();
    writer_options.endpoints.truncate(1);
    let connections = connect(&writer_options, options.clients).await?;
    for client in 0..options.clients {
        let connection = connections[client % connections.len()].clone();
        let template = Template::put(&keys, options.value_bytes);
        tasks.spawn(write(
            connection,
            template,
            keys.clone(),
            Arc::clone(&fan_out),
        ));
    }
    Ok(())
}

async fn write(
    mut connection: Connection,
    template: Template,
    keys: KeySpace,
    fan_out: Arc<FanOut>,
) -> Recorder {
    let mut recorder = Recorder::new(&fan_out.shared);
    let method = connection.endpoint().method("etcdserverpb.KV/Put");
    let mut random = StdRng::from_os_rng();
    loop {
        tokio::select! {
            permit = fan_out.window.acquire() => {
                permit.expect("the window is never closed").forget();
            }
            () = fan_out.shared.until_stopped() => return recorder,
        }
        let number = fan_out.shared.next.fetch_add(1, Relaxed) % keys.keys;
        let body = template.fill_stamped(number, fan_out.now(), &mut random);
        if let Err(error) = connection.call(&method, body).await {
            recorder.fail(&error);
            return recorder;
        }
    }
}

async fn watch(mut stream: BidiStream, fan_out: Arc<FanOut>) -> Recorder {
    let mut recorder = Recorder::new(&fan_out.shared);
    let mut seen = 0;
    let until_stopped = fan_out.shared.until_stopped();
    tokio::pin!(until_stopped);
    loop {
        let mut events = 0;
        let mut canceled = false;
        let mut created = 0;
        let receive = stream.receive(|message| {
            for (number, value) in fields(message) {
                match (number, value) {
                    (3, Value::Varint(_)) => created += 1,
                    (4, Value::Varint(_)) => canceled = true,
                    (11, Value::Bytes(event)) => {
                        events += 1;
                        if (seen + events) % EVENTS_PER_LATENCY == 0 {
                            recorder.latency(fan_out.now().saturating_sub(stamp(event)));
                        }
                    }
                    _ => {}
                }
            }
        });
        let received = tokio::select! {
            received = receive => received,
            () = &mut until_stopped => return recorder,
        };
        recorder.count(events);
        seen += events;
        fan_out.arrived(events, created);
        let failure = match received {
            Ok(true) if !canceled => continue,
            Ok(true) => CallError::Unexpected("a watcher was cancelled".to_owned()),
            Ok(false) => CallError::Unexpected("the stream ended".to_owned()),
            Err(error) => error,
        };
        recorder.fail(&failure);
        // Without this stream the window would never open again.
        fan_out.shared.stop();
        return recorder;
    }
}

impl FanOut {
    /// Time since the beginning of the run, in nanoseconds.
    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn arrived(&self, events: u64, created: usize) {
        let before = self.delivered.fetch_add(events, Relaxed);
        let puts_delivered = (before + events) / self.watchers - before / self.watchers;
        self.window
            .add_permits(usize::try_from(puts_delivered).unwrap_or(0));
        let known = self.created.fetch_add(created, Relaxed) + created;
        if created > 0 && known as u64 >= self.watchers {
            self.all_created.notify_one();
        }
    }
}

/// The stamp in the value of a put event.
fn stamp(event: &[u8]) -> u64 {
    // Event.kv → KeyValue.value
    let value = wire::bytes(wire::bytes(event, 2), 5);
    value
        .first_chunk()
        .map_or(0, |bytes| u64::from_be_bytes(*bytes))
}
