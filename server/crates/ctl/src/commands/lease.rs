//! lease.

use std::time::{Duration, Instant};

use metastore_proto::etcdserverpb as pb;
use metastore_proto::repeat::is_lost;
use tokio_stream::StreamExt;

use super::{Command, Context, command};
use crate::client::Client;
use crate::failure::{ExitCode, Failure, status_text};
use crate::flags::{Kind, flag};
use crate::output::Format;
use crate::terminal::say;

/// Pause before a renewal is tried at another member.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

pub(super) const COMMANDS: &[Command] = &[
    command(
        &["lease", "grant"],
        "<ttl>",
        "Creates leases",
        &[],
        |context| Box::pin(grant(context)),
    ),
    command(
        &["lease", "revoke"],
        "<leaseID>",
        "Revokes leases",
        &[],
        |context| Box::pin(revoke(context)),
    ),
    command(
        &["lease", "timetolive"],
        "<leaseID> [options]",
        "Get lease information",
        &[flag(
            "keys",
            Kind::Boolean,
            "false",
            "Get keys attached to this lease",
        )],
        |context| Box::pin(time_to_live(context)),
    ),
    command(
        &["lease", "list"],
        "",
        "List all active leases",
        &[],
        |context| Box::pin(list(context)),
    ),
    command(
        &["lease", "keep-alive"],
        "[options] <leaseID>",
        "Keeps leases alive (renew)",
        &[flag(
            "once",
            Kind::Boolean,
            "false",
            "Resets the keep-alive time to its original value and exits immediately",
        )],
        |context| Box::pin(keep_alive(context)),
    ),
];

fn parse_id(text: &str) -> Result<i64, Failure> {
    i64::from_str_radix(text, 16).map_err(|error| {
        Failure::arguments(format!("bad lease ID arg ({error}), expecting ID in Hex"))
    })
}

fn only_argument<'a>(context: &'a Context, needed: &str) -> Result<&'a str, Failure> {
    match context.arguments.positional.as_slice() {
        [argument] => Ok(argument),
        _ => Err(Failure::arguments(needed)),
    }
}

fn bad_connection(status: tonic::Status) -> Failure {
    Failure::new(ExitCode::BadConnection, status_text(&status))
}

async fn grant(context: Context) -> Result<(), Failure> {
    let ttl = only_argument(&context, "lease grant command needs TTL argument")?
        .parse()
        .map_err(|error| Failure::arguments(format!("bad TTL ({error})")))?;
    let client = context.client().await?;
    let request = pb::LeaseGrantRequest { ttl, id: 0 };
    let answer = client
        .within(client.lease().lease_grant(request))
        .await
        .map_err(|failure| {
            Failure::error(format!("failed to grant lease ({})", failure.message))
        })?;
    context.printer.lease_grant(&answer)
}

async fn revoke(context: Context) -> Result<(), Failure> {
    let id = parse_id(only_argument(
        &context,
        "lease revoke command needs 1 argument",
    )?)?;
    let client = context.client().await?;
    let request = pb::LeaseRevokeRequest { id };
    let answer = client
        .within(client.lease().lease_revoke(request))
        .await
        .map_err(|failure| {
            Failure::error(format!("failed to revoke lease ({})", failure.message))
        })?;
    context
        .printer
        .lease_revoke(&format!("lease {id:016x} revoked"), &answer)
}

async fn time_to_live(context: Context) -> Result<(), Failure> {
    let id = parse_id(only_argument(
        &context,
        "lease timetolive command needs lease ID as argument",
    )?)?;
    let keys = context.arguments.boolean("keys");
    let client = context.client().await?;
    let request = pb::LeaseTimeToLiveRequest { id, keys };
    let answer = client
        .lease()
        .lease_time_to_live(request)
        .await
        .map_err(bad_connection)?
        .into_inner();
    context.printer.lease_time_to_live(&answer, keys)
}

async fn list(context: Context) -> Result<(), Failure> {
    let client = context.client().await?;
    let answer = client
        .lease()
        .lease_leases(pb::LeaseLeasesRequest {})
        .await
        .map_err(bad_connection)?
        .into_inner();
    context.printer.leases(&answer)
}

async fn keep_alive(context: Context) -> Result<(), Failure> {
    let id = parse_id(only_argument(
        &context,
        "lease keep-alive command needs lease ID as argument",
    )?)?;
    let client = context.client().await?;
    if context.arguments.boolean("once") {
        let answer = renew(&client, id).await.map_err(bad_connection)?;
        if answer.ttl <= 0 {
            return Err(Failure::new(
                ExitCode::BadConnection,
                "etcdserver: requested lease not found",
            ));
        }
        return context.printer.lease_keep_alive(&answer);
    }
    let mut ends = None;
    loop {
        let answer = match renew(&client, id).await {
            // The lease lives on while another member is looked for.
            Err(status) if is_lost(&status) && ends.is_some_and(|end| Instant::now() < end) => {
                tokio::time::sleep(RETRY_INTERVAL).await;
                continue;
            }
            renewed => renewed.map_err(bad_connection)?,
        };
        if answer.ttl <= 0 {
            break;
        }
        ends = Some(Instant::now() + Duration::from_secs(answer.ttl.unsigned_abs()));
        context.printer.lease_keep_alive(&answer)?;
        // clientv3 renews when a third of the time is over.
        let third = f64::from(u32::try_from(answer.ttl).unwrap_or(u32::MAX)) / 3.0;
        tokio::time::sleep(Duration::from_secs_f64(third)).await;
    }
    if context.printer.format == Format::Simple {
        say(format!("lease {id:016x} expired or revoked."));
    }
    Ok(())
}

/// Renews a lease once.
///
/// # Errors
/// The call's.
pub(super) async fn renew(
    client: &Client,
    id: i64,
) -> Result<pb::LeaseKeepAliveResponse, tonic::Status> {
    let request = tokio_stream::once(pb::LeaseKeepAliveRequest { id });
    let mut answers = client
        .lease_keep_alive()
        .lease_keep_alive(request)
        .await?
        .into_inner();
    match answers.next().await {
        Some(answer) => answer,
        None => Err(tonic::Status::unavailable("the stream ended")),
    }
}
