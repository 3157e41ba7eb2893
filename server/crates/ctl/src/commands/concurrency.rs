//! lock and elect: clientv3's recipes, so that both clients respect each other.

use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use metastore_proto::etcdserverpb as pb;
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::request_op::Request;
use tokio::signal::unix::{SignalKind, signal};

use super::lease::renew;
use super::{Command, Context, command};
use crate::client::Client;
use crate::failover::Watch;
use crate::failure::Failure;
use crate::flags::{Kind, flag};
use crate::keys::prefix_end;

/// Life of a session's lease in seconds, unless a flag says another; clientv3's.
const SESSION_TTL_SECONDS: i64 = 60;

pub(super) const COMMANDS: &[Command] = &[
    command(
        &["lock"],
        "<lockname> [exec-command arg1 arg2 ...]",
        "Acquires a named lock",
        &[flag("ttl", Kind::Signed, "10", "timeout for session")],
        |context| Box::pin(lock(context)),
    ),
    command(
        &["elect"],
        "<election-name> [proposal]",
        "Observes and participates in leader election",
        &[flag("listen", Kind::Boolean, "false", "observation mode").short('l')],
        |context| Box::pin(elect(context)),
    ),
];

/// A lease that is renewed while the session lives.
struct Session {
    lease: i64,
    renewing: tokio::task::JoinHandle<()>,
}

impl Session {
    async fn start(client: &Client, ttl: i64) -> Result<Self, Failure> {
        let request = pb::LeaseGrantRequest { ttl, id: 0 };
        let lease = client.lease().lease_grant(request).await?.into_inner();
        let client = client.clone();
        let renewing = tokio::spawn(async move {
            let third = Duration::from_secs(lease.ttl.max(3).unsigned_abs() / 3);
            loop {
                tokio::time::sleep(third).await;
                match renew(&client, lease.id).await {
                    Ok(answer) if answer.ttl > 0 => {}
                    // Another try follows before the lease is over.
                    Err(_) => {}
                    Ok(_) => return,
                }
            }
        });
        Ok(Self {
            lease: lease.id,
            renewing,
        })
    }

    /// Ends when the lease is gone.
    async fn expired(&mut self) {
        // An aborted task ends the session as well.
        let _ = (&mut self.renewing).await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

/// A key of ours below a prefix, and the revision at which it was created: who has the smallest has
/// the lock or leads.
struct Candidate {
    key: Bytes,
    create_revision: i64,
    /// Revision of the header of the answer that made it.
    header_revision: i64,
}

fn get(key: impl Into<Bytes>) -> pb::RequestOp {
    pb::RequestOp {
        request: Some(Request::RequestRange(pb::RangeRequest {
            key: key.into(),
            ..Default::default()
        })),
    }
}

/// The oldest key below a prefix.
fn first_created(prefix: &str) -> pb::RangeRequest {
    pb::RangeRequest {
        key: prefix.to_owned().into(),
        range_end: prefix_end(prefix.as_bytes()).into(),
        limit: 1,
        sort_target: pb::range_request::SortTarget::Create as i32,
        sort_order: pb::range_request::SortOrder::Ascend as i32,
        ..Default::default()
    }
}

fn created_at(key: &Bytes, revision: i64) -> pb::Compare {
    pb::Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Create as i32,
        key: key.clone(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
        ..Default::default()
    }
}

/// Puts `<prefix><lease>` unless it exists.
async fn enlist(
    client: &Client,
    prefix: &str,
    value: &str,
    lease: i64,
) -> Result<Candidate, Failure> {
    let key = Bytes::from(format!("{prefix}{lease:x}"));
    let put = pb::RequestOp {
        request: Some(Request::RequestPut(pb::PutRequest {
            key: key.clone(),
            value: value.to_owned().into(),
            lease,
            ..Default::default()
        })),
    };
    let owner = pb::RequestOp {
        request: Some(Request::RequestRange(first_created(prefix))),
    };
    let request = pb::TxnRequest {
        compare: vec![created_at(&key, 0)],
        success: vec![put, owner.clone()],
        failure: vec![get(key.clone()), owner],
    };
    let answer = client.kv().txn(request).await?.into_inner();
    let header_revision = answer.header.as_ref().map_or(0, |header| header.revision);
    let create_revision = match answer.responses.first().and_then(|op| op.response.as_ref()) {
        Some(pb::response_op::Response::ResponseRange(range)) => {
            range.kvs.first().map_or(header_revision, |pair| {
                crate::output::decode_pair(pair).create_revision
            })
        }
        _ => header_revision,
    };
    Ok(Candidate {
        key,
        create_revision,
        header_revision,
    })
}

/// Waits until all keys below the prefix that are older than `revision` are gone.
async fn wait_for_older(client: &Client, prefix: &str, revision: i64) -> Result<(), Failure> {
    loop {
        let request = pb::RangeRequest {
            key: prefix.to_owned().into(),
            range_end: prefix_end(prefix.as_bytes()).into(),
            limit: 1,
            sort_target: pb::range_request::SortTarget::Create as i32,
            sort_order: pb::range_request::SortOrder::Descend as i32,
            max_create_revision: revision - 1,
            ..Default::default()
        };
        let answer = client.kv().range(request).await?.into_inner();
        let Some(last) = answer.kvs.first() else {
            return Ok(());
        };
        let from = answer.header.as_ref().map_or(0, |header| header.revision);
        wait_for_deletion(client, crate::output::decode_pair(last).key, from).await?;
    }
}

/// Watches a key from a revision on.
fn watch_key(
    client: &Client,
    key: impl Into<Bytes>,
    range_end: Vec<u8>,
    start_revision: i64,
) -> Watch {
    let create = pb::WatchCreateRequest {
        key: key.into(),
        range_end: range_end.into(),
        start_revision,
        ..Default::default()
    };
    Watch::new(client, create)
}

async fn wait_for_deletion(client: &Client, key: Bytes, from: i64) -> Result<(), Failure> {
    let mut answers = watch_key(client, key, Vec::new(), from);
    while let Some(answer) = answers.next().await? {
        if answer.events.iter().any(|event| event.r#type == 1) {
            return Ok(());
        }
    }
    Err(Failure::error("lost watcher waiting for delete"))
}

async fn delete(client: &Client, key: &Bytes) -> Result<(), Failure> {
    let request = pb::DeleteRangeRequest {
        key: key.clone(),
        ..Default::default()
    };
    client.kv().delete_range(request).await?;
    Ok(())
}

async fn show(context: &Context, client: &Client, key: &Bytes) -> Result<bool, Failure> {
    let request = pb::RangeRequest {
        key: key.clone(),
        ..Default::default()
    };
    let answer = client.kv().range(request).await?.into_inner();
    let exists = !answer.kvs.is_empty();
    if exists {
        context.printer.range(&answer)?;
    }
    Ok(exists)
}

/// Ends with SIGINT or SIGTERM.
async fn interrupted() -> Result<(), Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

async fn lock(context: Context) -> Result<(), Failure> {
    let [name, exec @ ..] = context.arguments.positional.as_slice() else {
        return Err(Failure::arguments(
            "lock takes a lock name argument and an optional command to execute",
        ));
    };
    let client = context.client().await?;
    let mut session = Session::start(&client, context.arguments.number("ttl")).await?;
    let prefix = format!("{name}/");
    let candidate = enlist(&client, &prefix, "", session.lease).await?;
    let held = tokio::select! {
        waited = wait_for_older(&client, &prefix, candidate.create_revision) => waited.map(|()| true),
        interrupt = interrupted() => interrupt.map(|()| false),
    };
    match held {
        Ok(true) => {}
        Ok(false) => {
            delete(&client, &candidate.key).await?;
            return Err(Failure::error("context canceled"));
        }
        Err(failure) => {
            // Whatever becomes of the key, its lease ends with the session.
            let _ = delete(&client, &candidate.key).await;
            return Err(failure);
        }
    }
    if let [program, arguments @ ..] = exec {
        let ended = run_locked(program, arguments, &candidate).await;
        delete(&client, &candidate.key).await?;
        return ended;
    }
    if !show(&context, &client, &candidate.key).await? {
        return Err(Failure::error("lock lost on init"));
    }
    tokio::select! {
        interrupt = interrupted() => {
            interrupt?;
            delete(&client, &candidate.key).await
        }
        () = session.expired() => Err(Failure::error("session expired")),
    }
}

/// Runs a command that knows the lock; its exit code becomes ours.
async fn run_locked(program: &str, arguments: &[String], lock: &Candidate) -> Result<(), Failure> {
    let key = String::from_utf8_lossy(&lock.key).into_owned();
    let status = tokio::process::Command::new(program)
        .args(arguments)
        .env("ETCD_LOCK_KEY", key)
        .env("ETCD_LOCK_REV", lock.header_revision.to_string())
        .stdin(Stdio::null())
        .status()
        .await
        .map_err(|error| Failure::error(format!("exec: {program:?}: {error}")))?;
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => Err(Failure {
            code: u8::try_from(code).unwrap_or(1),
            message: format!("exit status {code}"),
        }),
        None => Err(Failure::error(status.to_string())),
    }
}

async fn elect(context: Context) -> Result<(), Failure> {
    let listens = context.arguments.boolean("listen");
    match context.arguments.positional.as_slice() {
        [_] if !listens => Err(Failure::arguments("no proposal argument but -l not set")),
        [name] => tokio::select! {
            ended = observe(&context, name) => ended,
            interrupt = interrupted() => interrupt,
        },
        [_, _] if listens => Err(Failure::arguments("proposal given but -l is set")),
        [name, proposal] => campaign(&context, name, proposal).await,
        _ => Err(Failure::arguments(
            "elect takes one election name argument and an optional proposal argument",
        )),
    }
}

async fn campaign(context: &Context, name: &str, proposal: &str) -> Result<(), Failure> {
    let client = context.client().await?;
    let mut session = Session::start(&client, SESSION_TTL_SECONDS).await?;
    let prefix = format!("{name}/");
    let candidate = enlist(&client, &prefix, proposal, session.lease).await?;
    let elected = tokio::select! {
        waited = wait_for_older(&client, &prefix, candidate.create_revision) => waited.map(|()| true),
        interrupt = interrupted() => interrupt.map(|()| false),
    }?;
    if !elected {
        delete(&client, &candidate.key).await?;
        return Err(Failure::error("context canceled"));
    }
    show(context, &client, &candidate.key).await?;
    tokio::select! {
        interrupt = interrupted() => {
            interrupt?;
            delete(&client, &candidate.key).await
        }
        () = session.expired() => Err(Failure::error("elect: session expired")),
    }
}

/// Shows who leads, and each change of it.
async fn observe(context: &Context, name: &str) -> Result<(), Failure> {
    let client = context.client().await?;
    let prefix = format!("{name}/");
    loop {
        let answer = client
            .kv()
            .range(first_created(&prefix))
            .await?
            .into_inner();
        let revision = answer.header.as_ref().map_or(0, |header| header.revision);
        let Some(leader) = answer.kvs.first().map(crate::output::decode_pair) else {
            let end = prefix_end(prefix.as_bytes());
            let mut news = watch_key(&client, prefix.clone(), end, revision + 1);
            // Somebody stands for election; who leads is looked up again.
            while let Some(answer) = news.next().await? {
                if answer.events.iter().any(|event| event.r#type == 0) {
                    break;
                }
            }
            continue;
        };
        context.printer.range(&answer)?;
        let mut news = watch_key(&client, leader.key.clone(), Vec::new(), revision + 1);
        'leads: while let Some(answer) = news.next().await? {
            for event in &answer.events {
                if event.r#type == 1 {
                    break 'leads;
                }
                let shown = pb::RangeResponse {
                    header: answer.header,
                    kvs: event.kv.clone().into_iter().collect(),
                    ..Default::default()
                };
                context.printer.range(&shown)?;
            }
        }
    }
}
