//! alarm, defrag, move-leader, snapshot, downgrade.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use metastore_proto::etcdserverpb as pb;
use tokio_stream::StreamExt;

use super::endpoint::{CLUSTER_FLAG, endpoints};
use super::{Command, Context, command};
use crate::client::Client;
use crate::failure::{ExitCode, Failure};
use crate::flags::format_duration;
use crate::output::json;
use crate::terminal::say;

/// Length of the checksum at the end of a snapshot (SHA-256).
const CHECKSUM_BYTES: u64 = 32;
/// The rest of a snapshot is made of pieces of this length.
const PIECE_BYTES: u64 = 512;
/// How often a snapshot says at a terminal how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

pub(super) const COMMANDS: &[Command] = &[
    command(&["alarm", "list"], "", "Lists all alarms", &[], |context| {
        Box::pin(alarms(context, pb::alarm_request::AlarmAction::Get))
    }),
    command(
        &["alarm", "disarm"],
        "",
        "Disarms all alarms",
        &[],
        |context| Box::pin(alarms(context, pb::alarm_request::AlarmAction::Deactivate)),
    ),
    command(
        &["defrag"],
        "",
        "Defragments the storage of the members with given endpoints",
        &[CLUSTER_FLAG],
        |context| Box::pin(defrag(context)),
    ),
    command(
        &["move-leader"],
        "<transferee-member-id>",
        "Transfers leadership to another cluster member",
        &[],
        |context| Box::pin(move_leader(context)),
    ),
    command(
        &["snapshot", "save"],
        "<filename>",
        "Stores a snapshot of a member's store to a given file",
        &[],
        |context| Box::pin(save_snapshot(context)),
    ),
    command(
        &["downgrade", "validate"],
        "<TARGET_VERSION>",
        "Validate downgrade capability before starting downgrade",
        &[],
        |context| {
            Box::pin(downgrade(
                context,
                pb::downgrade_request::DowngradeAction::Validate,
            ))
        },
    ),
    command(
        &["downgrade", "enable"],
        "<TARGET_VERSION>",
        "Start a downgrade action to cluster",
        &[],
        |context| {
            Box::pin(downgrade(
                context,
                pb::downgrade_request::DowngradeAction::Enable,
            ))
        },
    ),
    command(
        &["downgrade", "cancel"],
        "",
        "Cancel the ongoing downgrade action to cluster",
        &[],
        |context| {
            Box::pin(downgrade(
                context,
                pb::downgrade_request::DowngradeAction::Cancel,
            ))
        },
    ),
];

async fn alarms(context: Context, action: pb::alarm_request::AlarmAction) -> Result<(), Failure> {
    let name = match action {
        pb::alarm_request::AlarmAction::Get => "list",
        _ => "disarm",
    };
    if context.argument_count() != 0 {
        return Err(Failure::arguments(format!(
            "alarm {name} command accepts no arguments"
        )));
    }
    let client = context.client().await?;
    let call = async |action: pb::alarm_request::AlarmAction, member_id, alarm| {
        let request = pb::AlarmRequest {
            action: action as i32,
            member_id,
            alarm,
        };
        client.within(client.maintenance().alarm(request)).await
    };
    let listed = call(pb::alarm_request::AlarmAction::Get, 0, 0).await?;
    if action == pb::alarm_request::AlarmAction::Get {
        return context.printer.alarms(&listed);
    }
    // As clientv3: one call for each alarm, one answer for all.
    let mut cleared = pb::AlarmResponse::default();
    for alarm in listed.alarms {
        let answer = call(action, alarm.member_id, alarm.alarm).await?;
        cleared.alarms.extend(answer.alarms);
    }
    context.printer.alarms(&cleared)
}

async fn defrag(context: Context) -> Result<(), Failure> {
    let mut failed = false;
    for endpoint in endpoints(&context).await? {
        let client = Client::connect(&context.options.at(&endpoint)).await?;
        let started = Instant::now();
        let answer = client
            .within(client.maintenance().defragment(pb::DefragmentRequest {}))
            .await;
        let took = format_duration(started.elapsed());
        match answer {
            Ok(_) => say(format!(
                "Finished defragmenting etcd member[{endpoint}]. took {took}"
            )),
            Err(failure) => {
                failed = true;
                eprintln!(
                    "Failed to defragment etcd member[{endpoint}]. took {took}. ({})",
                    failure.message
                );
            }
        }
    }
    match failed {
        true => Err(Failure::silent(1)),
        false => Ok(()),
    }
}

async fn move_leader(context: Context) -> Result<(), Failure> {
    let [target] = context.arguments.positional.as_slice() else {
        return Err(Failure::arguments("move-leader command needs 1 argument"));
    };
    let target_id = u64::from_str_radix(target, 16)
        .map_err(|error| Failure::arguments(format!("{target:?}: {error}")))?;
    for endpoint in &context.options.endpoints {
        let client = Client::connect(&context.options.at(endpoint)).await?;
        let status = client
            .within(client.maintenance().status(pb::StatusRequest {}))
            .await?;
        let member = status.header.as_ref().map_or(0, |header| header.member_id);
        if member != status.leader {
            continue;
        }
        let request = pb::MoveLeaderRequest { target_id };
        let answer = client
            .within(client.maintenance().move_leader(request))
            .await?;
        let json = json::response(answer.header.as_ref()).end();
        let sentence = format!("Leadership transferred from {member:x} to {target_id:x}");
        return context.printer.plain(&sentence, &answer, json);
    }
    Err(Failure::arguments(format!(
        "no leader endpoint given at [{}]",
        context.options.endpoints.join(" ")
    )))
}

/// A file that is removed unless it was kept.
struct PartFile {
    path: PathBuf,
    kept: bool,
}

impl Drop for PartFile {
    fn drop(&mut self) {
        if !self.kept {
            // It may not exist yet.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

async fn save_snapshot(context: Context) -> Result<(), Failure> {
    let [path] = context.arguments.positional.as_slice() else {
        return Err(Failure::arguments(
            "snapshot save expects one argument <filename>",
        ));
    };
    if context.options.endpoints.len() != 1 {
        return Err(Failure::new(
            ExitCode::Interrupted,
            format!(
                "snapshot must be requested to one selected node, not multiple [{}]",
                context.options.endpoints.join(" ")
            ),
        ));
    }
    let client = context.client().await?;
    let saving = save_stream(&client, Path::new(path));
    // Only a time-out that was asked for ends it: a large store takes long.
    let version = if context.arguments.is_set("command-timeout") {
        tokio::time::timeout(client.command_timeout, saving)
            .await
            .unwrap_or_else(|_| Err(Failure::error("context deadline exceeded")))
    } else {
        saving.await
    }
    .map_err(|failure| Failure::new(ExitCode::Interrupted, failure.message))?;
    say(format!("Snapshot saved at {path}"));
    if !version.is_empty() {
        say(format!("Server version {version}"));
    }
    Ok(())
}

/// Receives a snapshot into `<path>.part` and renames it when it is complete and synced.
async fn save_stream(client: &Client, path: &Path) -> Result<String, Failure> {
    let mut part_path = path.as_os_str().to_owned();
    part_path.push(".part");
    let mut part = PartFile {
        path: part_path.into(),
        kept: false,
    };
    let describe = |error: std::io::Error| {
        Failure::new(
            ExitCode::InputOutput,
            format!("could not open {} ({error})", part.path.display()),
        )
    };
    let mut file = open_private(&part.path).map_err(describe)?;
    let mut blobs = client
        .maintenance()
        .snapshot(pb::SnapshotRequest {})
        .await?
        .into_inner();
    let mut version = String::new();
    let mut progress = Progress::new();
    while let Some(blob) = blobs.next().await {
        let blob = blob?;
        file.write_all(&blob.blob)?;
        progress.received(blob.blob.len() as u64, blob.remaining_bytes);
        version = blob.version;
    }
    progress.end();
    if progress.bytes % PIECE_BYTES != CHECKSUM_BYTES {
        return Err(Failure::error(format!(
            "sha256 checksum not found [bytes: {}]",
            progress.bytes
        )));
    }
    file.sync_all()?;
    std::fs::rename(&part.path, path)?;
    part.kept = true;
    Ok(version)
}

/// A new file that only its owner can read: it holds all values.
fn open_private(path: &Path) -> std::io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
}

/// How far a snapshot is, at a terminal.
struct Progress {
    bytes: u64,
    shown: Instant,
    visible: bool,
}

impl Progress {
    fn new() -> Self {
        Self {
            bytes: 0,
            shown: Instant::now(),
            visible: std::io::stderr().is_terminal(),
        }
    }

    fn received(&mut self, bytes: u64, remaining: u64) {
        self.bytes += bytes;
        if self.visible && self.shown.elapsed() >= PROGRESS_INTERVAL {
            self.shown = Instant::now();
            let all = self.bytes + remaining;
            let percent = self.bytes * 100 / all.max(1);
            eprint!("\r{percent:3} % of {} MiB", all >> 20);
        }
    }

    fn end(&self) {
        if self.visible {
            eprint!("\r{:30}\r", "");
        }
    }
}

async fn downgrade(
    context: Context,
    action: pb::downgrade_request::DowngradeAction,
) -> Result<(), Failure> {
    use pb::downgrade_request::DowngradeAction;
    let version = match (action, context.arguments.positional.as_slice()) {
        (DowngradeAction::Cancel, _) => String::new(),
        (_, []) => return Err(Failure::arguments("TARGET_VERSION not provided")),
        (_, [version]) if version.is_empty() => {
            return Err(Failure::arguments("target version not provided"));
        }
        (_, [version]) => version.clone(),
        _ => return Err(Failure::arguments("too many arguments")),
    };
    let client = context.client().await?;
    let request = pb::DowngradeRequest {
        action: action as i32,
        version,
    };
    let answer = client
        .within(client.maintenance().downgrade(request))
        .await?;
    let name = match action {
        DowngradeAction::Validate => "validate",
        DowngradeAction::Enable => "enable",
        DowngradeAction::Cancel => "cancel",
    };
    let json = json::response(answer.header.as_ref())
        .text("version", &answer.version)
        .end();
    let sentence = format!(
        "Downgrade {name} success, cluster version {}",
        answer.version
    );
    context.printer.plain(&sentence, &answer, json)
}
