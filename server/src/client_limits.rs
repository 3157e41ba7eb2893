//! What one client may use at one time: watches, streams, bytes of requests and answers; and what all
//! large lists together may use.
//!
//! A client is a user, or the address that a connection comes from where no user is known. Everything
//! is off by default, and nothing is counted then. etcd has no such limits.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::{Extensions, HeaderMap};
use metastore_proto::error_text::EtcdError;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::auth::Credentials;
use crate::config::Config;
use crate::node::Node;
use crate::observe::metrics::METRICS;

/// Bytes of a key and its value in a list of which nothing is known yet.
const FIRST_BYTES_PER_KEY: u64 = 256;

/// Who a limit counts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ClientKey {
    /// A user of authentication.
    User(Arc<str>),
    /// Whoever comes from this address.
    Address(IpAddr),
    /// Whoever comes through a Unix socket.
    Local,
}

/// The address of a client whose request goes on inside this process, in the request's extensions.
#[derive(Clone, Copy, Debug)]
pub struct ClientAddress(pub SocketAddr);

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Watches.
    Watches,
    /// Streams of gRPC.
    Streams,
    /// Bytes of requests that are being answered, and of answers that are not taken yet.
    Bytes,
}

const RESOURCES: usize = 3;
const RESOURCE_NAMES: [&str; RESOURCES] = ["watches", "streams", "bytes"];

/// The limits of each client, 0 for none.
#[derive(Debug)]
pub struct ClientLimits {
    max: [u64; RESOURCES],
    used: Mutex<HashMap<ClientKey, [u64; RESOURCES]>>,
}

impl ClientLimits {
    /// The limits that the options set; nothing when they set none.
    pub fn new(config: &Config) -> Option<Arc<Self>> {
        let max = [
            config.client_max_watches,
            config.client_max_streams,
            config.client_max_inflight_bytes,
        ];
        (max != [0; RESOURCES]).then(|| Arc::new(Self::with(max)))
    }

    fn with(max: [u64; RESOURCES]) -> Self {
        Self {
            max,
            used: Mutex::default(),
        }
    }

    /// A share of nothing yet.
    pub fn share(self: &Arc<Self>, client: ClientKey, resource: Resource) -> Share {
        Share {
            limits: Arc::clone(self),
            client,
            resource,
            amount: 0,
        }
    }

    /// Takes so much of a resource.
    ///
    /// # Errors
    /// `too many requests` when the client would have more than it may. What is larger than the limit by
    /// itself passes when the client has nothing else.
    pub fn take(
        self: &Arc<Self>,
        client: &ClientKey,
        resource: Resource,
        amount: u64,
    ) -> Result<Share, EtcdError> {
        let mut share = self.share(client.clone(), resource);
        share.grow(amount)?;
        Ok(share)
    }
}

/// What a client has of a resource; given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    limits: Arc<ClientLimits>,
    client: ClientKey,
    resource: Resource,
    amount: u64,
}

impl Share {
    /// Takes more.
    ///
    /// # Errors
    /// As [`ClientLimits::take`].
    pub fn grow(&mut self, amount: u64) -> Result<(), EtcdError> {
        let resource = self.resource as usize;
        let max = self.limits.max[resource];
        if max == 0 || amount == 0 {
            return Ok(());
        }
        let mut used = self.limits.used.lock();
        let own = used.entry(self.client.clone()).or_default();
        if own[resource] > 0 && own[resource].saturating_add(amount) > max {
            drop(used);
            METRICS
                .client_limit_refusals
                .with_label_values(&[RESOURCE_NAMES[resource]])
                .inc();
            return Err(EtcdError::RequestTooManyRequests);
        }
        own[resource] += amount;
        self.amount += amount;
        Ok(())
    }

    /// Gives some of it back.
    pub fn shrink(&mut self, amount: u64) {
        let amount = amount.min(self.amount);
        if amount == 0 {
            return;
        }
        self.amount -= amount;
        let mut used = self.limits.used.lock();
        if let Some(own) = used.get_mut(&self.client) {
            own[self.resource as usize] -= amount;
            if *own == [0; RESOURCES] {
                used.remove(&self.client);
            }
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shrink(self.amount);
    }
}

/// Bytes that hold something else until the last part of them has been sent.
pub struct HeldBytes<T> {
    bytes: Bytes,
    _held: T,
}

impl<T: Send + 'static> HeldBytes<T> {
    /// These bytes, with `held` until they are dropped.
    pub fn hold(bytes: Bytes, held: T) -> Bytes {
        Bytes::from_owner(Self { bytes, _held: held })
    }
}

impl<T> AsRef<[u8]> for HeldBytes<T> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Node {
    /// Who a request comes from. Only called when there is a limit: it looks up the token.
    pub fn client_key(
        &self,
        headers: &HeaderMap,
        extensions: &Extensions,
        remote: Option<SocketAddr>,
    ) -> ClientKey {
        if self.auth().is_enabled() {
            let credentials = Credentials::read(headers, extensions);
            if let Some(user) = self.auth().known_user(&credentials) {
                return ClientKey::User(user);
            }
        }
        let passed_on = || extensions.get::<ClientAddress>().map(|address| address.0);
        match remote.or_else(passed_on) {
            Some(address) => ClientKey::Address(address.ip()),
            None => ClientKey::Local,
        }
    }
}

/// Admission of large lists: what they all together may have in memory.
///
/// How large a list is going to be is known when it was read. Before, its keys are counted, which costs
/// little, and each is taken to be as large as the keys of the store or of the lists before, whichever
/// are larger.
pub struct ListBudget {
    /// In KiB: a semaphore counts to 2^61, a permit to 2^32.
    free_kib: Arc<Semaphore>,
    max_kib: u32,
    bytes_per_key: AtomicU64,
}

/// Part of the budget, given back when the answer has been sent.
pub type ListShare = OwnedSemaphorePermit;

fn kib(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)
}

impl ListBudget {
    /// The budget that the option sets; nothing when it sets none.
    pub fn new(config: &Config) -> Option<Self> {
        (config.max_list_bytes > 0).then(|| Self::with(config.max_list_bytes))
    }

    fn with(max_bytes: u64) -> Self {
        let max_kib = kib(max_bytes).max(1);
        Self {
            free_kib: Arc::new(Semaphore::new(max_kib as usize)),
            max_kib,
            bytes_per_key: AtomicU64::new(FIRST_BYTES_PER_KEY),
        }
    }

    /// Waits until there is room for a list of so many keys, in a store of keys of this size. One that
    /// is larger than the budget waits until it is alone.
    pub async fn admit(&self, keys: u64, bytes_per_key: u64) -> Option<ListShare> {
        let learnt = self.bytes_per_key.load(Ordering::Relaxed);
        let bytes = keys.saturating_mul(learnt.max(bytes_per_key));
        let wanted = kib(bytes).clamp(1, self.max_kib);
        // Nobody closes the semaphore.
        Arc::clone(&self.free_kib)
            .acquire_many_owned(wanted)
            .await
            .ok()
    }

    /// Sets a share to what the list turned out to be, as far as there is room, and learns from it.
    pub fn settle(&self, share: &mut ListShare, keys: u64, bytes: u64) {
        if let Some(each) = bytes.checked_div(keys) {
            let before = self.bytes_per_key.load(Ordering::Relaxed);
            let now = (before * 3 + each.max(1)).div_ceil(4);
            self.bytes_per_key.store(now, Ordering::Relaxed);
        }
        let (has, needs) = (
            share.num_permits(),
            kib(bytes).clamp(1, self.max_kib) as usize,
        );
        if has > needs {
            drop(share.split(has - needs));
        } else if let Ok(more) = u32::try_from(needs - has)
            && let Ok(more) = Arc::clone(&self.free_kib).try_acquire_many_owned(more)
        {
            share.merge(more);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(last: u8) -> ClientKey {
        ClientKey::Address(IpAddr::from([10, 0, 0, last]))
    }

    #[test]
    fn each_client_has_its_own_limit_and_gives_back_what_it_had() {
        let limits = Arc::new(ClientLimits::with([2, 0, 100]));
        let (one, two) = (client(1), client(2));
        let mut watches = limits.share(one.clone(), Resource::Watches);
        watches.grow(1).expect("the first");
        watches.grow(1).expect("the second");
        assert_eq!(watches.grow(1), Err(EtcdError::RequestTooManyRequests));
        limits
            .take(&two, Resource::Watches, 1)
            .expect("somebody else");
        watches.shrink(1);
        watches.grow(1).expect("one was given back");
        drop(watches);
        assert!(limits.used.lock().is_empty());
        // No limit for streams.
        let _streams = limits
            .take(&one, Resource::Streams, 1000)
            .expect("no limit");
        // A request that is too large by itself passes alone.
        let large = limits
            .take(&one, Resource::Bytes, 500)
            .expect("nothing else");
        limits
            .take(&one, Resource::Bytes, 1)
            .expect_err("something else");
        drop(large);
        limits.take(&one, Resource::Bytes, 1).expect("free again");
    }

    #[test]
    fn bytes_give_back_their_share_with_the_last_of_them() {
        let limits = Arc::new(ClientLimits::with([0, 0, 10]));
        let share = limits
            .take(&ClientKey::Local, Resource::Bytes, 10)
            .expect("nothing else");
        let bytes = HeldBytes::hold(Bytes::from_static(b"0123456789"), share);
        let rest = bytes.slice(5..);
        drop(bytes);
        assert!(!limits.used.lock().is_empty());
        drop(rest);
        assert!(limits.used.lock().is_empty());
    }

    #[tokio::test]
    async fn lists_wait_for_room_and_learn_their_size() {
        let budget = ListBudget::with(100 * 1024);
        let mut first = budget.admit(60, 1024).await.expect("room");
        assert_eq!(first.num_permits(), 60);
        let waiting = budget.admit(60, 1024);
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        budget.settle(&mut first, 60, 60 * 512);
        assert_eq!(budget.bytes_per_key.load(Ordering::Relaxed), 320);
        assert_eq!(first.num_permits(), 30);
        let second = waiting.await.expect("room");
        assert_eq!(second.num_permits(), 60);
        drop((first, second));
        let learnt = budget.admit(32, 1).await.expect("room");
        assert_eq!(learnt.num_permits(), 10);
        drop(learnt);
        // A list above the budget has all of it.
        let all = budget.admit(1 << 40, 1).await.expect("room");
        assert_eq!(all.num_permits(), 100);
    }
}
