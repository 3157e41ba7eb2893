//! endpoint, and what else goes to each endpoint in turn.

use std::time::Instant;

use futures::future::join_all;
use metastore_proto::etcdserverpb as pb;

use super::{Command, Context, command};
use crate::client::{Client, ClientOptions};
use crate::failure::{Failure, status_text};
use crate::flags::{FlagSpec, Kind, flag, format_duration};
use crate::output::EndpointHealth;
use crate::output::simple::alarm_name;

/// The flag of commands that may ask all members.
pub(super) const CLUSTER_FLAG: FlagSpec = flag(
    "cluster",
    Kind::Boolean,
    "false",
    "use all endpoints from the cluster member list",
);

pub(super) const COMMANDS: &[Command] = &[
    command(
        &["endpoint", "health"],
        "",
        "Checks the healthiness of endpoints specified in `--endpoints` flag",
        &[CLUSTER_FLAG],
        |context| Box::pin(health(context)),
    ),
    command(
        &["endpoint", "status"],
        "",
        "Prints out the status of endpoints specified in `--endpoints` flag",
        &[CLUSTER_FLAG],
        |context| Box::pin(status(context)),
    ),
    command(
        &["endpoint", "hashkv"],
        "",
        "Prints the KV history hash for each endpoint in --endpoints",
        &[
            CLUSTER_FLAG,
            flag(
                "rev",
                Kind::Signed,
                "0",
                "maximum revision to hash (default: latest revision)",
            ),
        ],
        |context| Box::pin(hash_kv(context)),
    ),
];

/// The endpoints that were named, or with `--cluster` those of all members.
///
/// # Errors
/// Nobody tells who the members are.
pub(super) async fn endpoints(context: &Context) -> Result<Vec<String>, Failure> {
    if !context.arguments.boolean("cluster") {
        return Ok(context.options.endpoints.clone());
    }
    let client = context.client().await?;
    let request = pb::MemberListRequest { linearizable: true };
    let answer = client
        .within(client.cluster().member_list(request))
        .await
        .map_err(|failure| {
            Failure::error(format!(
                "failed to fetch endpoints from etcd cluster member list: {}",
                failure.message
            ))
        })?;
    Ok(answer
        .members
        .into_iter()
        .flat_map(|member| member.client_ur_ls)
        .collect())
}

async fn health(context: Context) -> Result<(), Failure> {
    let endpoints = endpoints(&context).await?;
    let checks = endpoints
        .iter()
        .map(|endpoint| check_health(endpoint, &context.options));
    let checked = join_all(checks).await;
    context.printer.endpoint_health(&checked)?;
    if checked.iter().any(|health| !health.error.is_empty()) {
        return Err(Failure::error("unhealthy cluster"));
    }
    Ok(())
}

async fn check_health(endpoint: &str, options: &ClientOptions) -> EndpointHealth {
    let mut health = EndpointHealth {
        endpoint: endpoint.to_owned(),
        took: String::new(),
        error: String::new(),
    };
    let client = match Client::connect(&options.at(endpoint)).await {
        Ok(client) => client,
        Err(failure) => {
            health.error = failure.message;
            return health;
        }
    };
    let started = Instant::now();
    let request = pb::RangeRequest {
        key: "health".into(),
        ..Default::default()
    };
    let read = client.within(client.kv().range(request)).await;
    health.took = format_duration(started.elapsed());
    match read {
        Ok(_) => {}
        // The read went through consensus before it was refused.
        Err(failure) if failure.message == "etcdserver: permission denied" => {}
        Err(failure) => {
            health.error = failure.message;
            return health;
        }
    }
    let alarms = client
        .within(client.maintenance().alarm(pb::AlarmRequest::default()))
        .await;
    health.error = match alarms {
        Ok(answer) if answer.alarms.is_empty() => String::new(),
        Ok(answer) => {
            let names: String = answer
                .alarms
                .iter()
                .map(|alarm| format!("{} ", alarm_name(alarm.alarm)))
                .collect();
            format!("Active Alarm(s): {names}")
        }
        Err(_) => "Unable to fetch the alarm list".to_owned(),
    };
    health
}

async fn status(context: Context) -> Result<(), Failure> {
    let mut answers = Vec::new();
    let mut failed = false;
    for endpoint in endpoints(&context).await? {
        let client = Client::connect(&context.options.at(&endpoint)).await;
        let answer = match client {
            Ok(client) => {
                client
                    .within(client.maintenance().status(pb::StatusRequest {}))
                    .await
            }
            Err(failure) => Err(failure),
        };
        match answer {
            Ok(answer) => answers.push((endpoint, answer)),
            Err(failure) => {
                failed = true;
                eprintln!(
                    "Failed to get the status of endpoint {endpoint} ({})",
                    failure.message
                );
            }
        }
    }
    context.printer.endpoint_status(&answers)?;
    match failed {
        true => Err(Failure::silent(1)),
        false => Ok(()),
    }
}

async fn hash_kv(context: Context) -> Result<(), Failure> {
    let mut answers = Vec::new();
    let mut last_failure = None;
    let revision = context.arguments.number("rev");
    for endpoint in endpoints(&context).await? {
        let client = Client::connect(&context.options.at(&endpoint)).await?;
        let request = pb::HashKvRequest { revision };
        match client.maintenance().hash_kv(request).await {
            Ok(answer) => answers.push((endpoint, answer.into_inner())),
            Err(status) => {
                eprintln!(
                    "Failed to get the hash of endpoint {endpoint} ({})",
                    status_text(&status)
                );
                last_failure = Some(Failure::from(status));
            }
        }
    }
    context.printer.endpoint_hash_kv(&answers)?;
    last_failure.map_or(Ok(()), Err)
}
