//! Which of several operators acts: the holder of a Lease.
//!
//! The holder measures with a clock that never jumps, and stops acting well before others may take over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, PostParams};
use parking_lot::Mutex;

/// Name of the Lease.
const LEASE_NAME: &str = "metastore-operator";
/// Others may take over when the Lease was not renewed for so long.
const LEASE_DURATION: Duration = Duration::from_secs(15);
/// How often it is renewed.
const RENEW_INTERVAL: Duration = Duration::from_secs(4);
/// The holder trusts a renewal for so long. The rest of the Lease's duration is for calls that are under way.
const TRUST_DURATION: Duration = Duration::from_secs(10);

/// What this operator knows about its Lease.
#[derive(Clone, Debug)]
pub(crate) struct Leadership {
    /// When the last renewal that succeeded was sent; `None` while another leads.
    renewed: Arc<Mutex<Option<Instant>>>,
    is_needed: bool,
}

impl Leadership {
    /// Without other operators.
    pub(crate) fn alone() -> Self {
        Self {
            renewed: Arc::default(),
            is_needed: false,
        }
    }

    /// Among others.
    pub(crate) fn contested() -> Self {
        Self {
            renewed: Arc::default(),
            is_needed: true,
        }
    }

    /// May this operator act now?
    pub(crate) fn is_held(&self) -> bool {
        !self.is_needed
            || self
                .renewed
                .lock()
                .is_some_and(|renewed| renewed.elapsed() < TRUST_DURATION)
    }
}

/// Takes and renews the Lease for ever.
pub(crate) async fn hold(api: Api<Lease>, identity: String, leadership: Leadership) {
    // What was seen of another's Lease, and since when by our clock: clocks of others are not believed.
    let mut seen: Option<(String, Instant)> = None;
    loop {
        let sent = Instant::now();
        match try_hold(&api, &identity, &mut seen).await {
            Ok(true) => {
                if leadership.renewed.lock().replace(sent).is_none() {
                    tracing::info!(identity, "this operator leads");
                }
            }
            Ok(false) => {
                if leadership.renewed.lock().take().is_some() {
                    tracing::warn!("another operator leads");
                }
            }
            Err(error) => tracing::warn!(%error, "the Lease was not renewed"),
        }
        tokio::time::sleep(RENEW_INTERVAL).await;
    }
}

/// Gives the Lease back, if this operator holds it.
pub(crate) async fn release(api: &Api<Lease>, identity: &str) -> kube::Result<()> {
    let Some(mut lease) = api.get_opt(LEASE_NAME).await? else {
        return Ok(());
    };
    let holder = lease.spec.as_mut().map(|spec| &mut spec.holder_identity);
    match holder {
        Some(holder) if holder.as_deref() == Some(identity) => *holder = None,
        _ => return Ok(()),
    }
    won(api
        .replace(LEASE_NAME, &PostParams::default(), &lease)
        .await)
    .map(|_| ())
}

/// One attempt. `Ok(false)`: another holds it.
async fn try_hold(
    api: &Api<Lease>,
    identity: &str,
    seen: &mut Option<(String, Instant)>,
) -> kube::Result<bool> {
    let now = MicroTime(Timestamp::now());
    let spec = |transitions: i32| LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
        acquire_time: Some(now.clone()),
        renew_time: Some(now.clone()),
        lease_transitions: Some(transitions),
        ..LeaseSpec::default()
    };
    let Some(mut lease) = api.get_opt(LEASE_NAME).await? else {
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(LEASE_NAME.to_owned()),
                ..ObjectMeta::default()
            },
            spec: Some(spec(0)),
        };
        return won(api.create(&PostParams::default(), &lease).await);
    };
    let old = lease.spec.take().unwrap_or_default();
    let transitions = old.lease_transitions.unwrap_or(0);
    let holder = old.holder_identity.clone().unwrap_or_default();
    if holder == identity {
        let mut renewed = old;
        renewed.renew_time = Some(now);
        lease.spec = Some(renewed);
    } else {
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let since = match seen {
            Some((known, since)) if *known == version => *since,
            _ => {
                *seen = Some((version, Instant::now()));
                Instant::now()
            }
        };
        if !holder.is_empty() && since.elapsed() < LEASE_DURATION {
            return Ok(false);
        }
        lease.spec = Some(spec(transitions + 1));
    }
    // The object carries the version that was read: a change in between makes this fail.
    won(api
        .replace(LEASE_NAME, &PostParams::default(), &lease)
        .await)
}

fn won(result: kube::Result<Lease>) -> kube::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}
