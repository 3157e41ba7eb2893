//! Keys, a transaction, a lock under a lease, and a watch that survives a compaction, with the crate `etcd-client`.
//!
//! Against a member on port 2379 (`make run`); `ETCDCTL_ENDPOINTS` names another one.

use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, Error, EventType, GetOptions, LockOptions, Txn,
    TxnOp, WatchOptions,
};

const PREFIX: &str = "examples/rust/";

#[tokio::main]
async fn main() -> Result<(), Error> {
    let endpoint = std::env::var("ETCDCTL_ENDPOINTS");
    let endpoint = endpoint.unwrap_or_else(|_| "http://127.0.0.1:2379".to_owned());
    let mut client = Client::connect([endpoint], None).await?;
    let all = DeleteOptions::new().with_prefix();
    client.delete(PREFIX, Some(all)).await?;

    println!("== a key is written and read");
    let colour = format!("{PREFIX}colour");
    client.put(colour.as_str(), "blue", None).await?;
    let found = client.get(colour.as_str(), None).await?;
    let pair = found.kvs().first().expect("it was just written");
    println!("{} = {}", pair.key_str()?, pair.value_str()?);

    println!("== it is changed if nobody else has changed it");
    let unchanged = Compare::mod_revision(colour.as_str(), CompareOp::Equal, pair.mod_revision());
    let change =
        Txn::new()
            .when([unchanged])
            .and_then([TxnOp::put(colour.as_str(), "green", None)]);
    assert!(client.txn(change.clone()).await?.succeeded());
    // The same once more: somebody, we, has changed it.
    assert!(!client.txn(change).await?.succeeded());

    println!("== one process at a time holds a lock, and loses it when its lease ends");
    let lease = client.lease_grant(30, None).await?.id();
    let under_lease = LockOptions::new().with_lease(lease);
    let lock = client
        .lock(format!("{PREFIX}lock"), Some(under_lease))
        .await?;
    println!("locked");
    client.unlock(lock.key()).await?;
    client.lease_revoke(lease).await?;

    println!("== a watch that comes too late for its revision begins again with a list");
    let too_old = 1;
    for value in ["red", "yellow"] {
        client.put(colour.as_str(), value, None).await?;
    }
    let newest = client.get(colour.as_str(), None).await?;
    let newest = newest.header().expect("every answer has one").revision();
    client.compact(newest, None).await?;
    let Some(compacted) = follow(&mut client, too_old).await? else {
        panic!("the history of revision {too_old} is gone");
    };
    println!("compacted up to {compacted}");
    let all = GetOptions::new().with_prefix();
    let list = client.get(PREFIX, Some(all)).await?;
    for pair in list.kvs() {
        println!("now {} = {}", pair.key_str()?, pair.value_str()?);
    }
    let seen = list.header().expect("every answer has one").revision();
    // Something changes after the list.
    client.put(colour.as_str(), "white", None).await?;
    assert_eq!(follow(&mut client, seen + 1).await?, None);
    Ok(())
}

/// Follows the keys from a revision on until one is white. Where the history is compacted already, says up to where.
async fn follow(client: &mut Client, revision: i64) -> Result<Option<i64>, Error> {
    let options = WatchOptions::new()
        .with_prefix()
        .with_start_revision(revision);
    let mut events = client.watch(PREFIX, Some(options)).await?;
    while let Some(answer) = events.message().await? {
        if answer.compact_revision() > 0 {
            return Ok(Some(answer.compact_revision()));
        }
        for event in answer.events() {
            let pair = event.kv().expect("every event has one");
            println!("{:?} {}", event.event_type(), pair.value_str()?);
            if event.event_type() == EventType::Put && pair.value() == b"white" {
                return Ok(None);
            }
        }
    }
    panic!("the watch ended")
}
