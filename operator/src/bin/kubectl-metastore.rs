//! The plugin `kubectl metastore`: what people do to clusters from day to day. Put it into the PATH.

use std::process::ExitCode;

use anyhow::anyhow;
use clap::{Parser, Subcommand};
use kube::api::{Api, ListParams, PostParams};
use kube::{Client, ResourceExt};
use metastore_operator_api::{
    BackupSpec, BackupStore, CompactTask, DefragTask, LocalReference, MetaStoreBackup,
    MetaStoreCluster, MetaStoreTask, MoveLeaderTask, PvcStore, ReplaceMemberTask, RetainPolicy,
    TaskSpec, VerifyConsistencyTask,
};

/// Looks at MetaStore clusters, and asks the operator for things.
#[derive(Parser)]
#[command(name = "kubectl metastore", version)]
struct Arguments {
    /// Namespace. Absent: that of the current context.
    #[arg(long, short, global = true)]
    namespace: Option<String>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Conditions and members of a cluster; all clusters without a name.
    Status {
        /// The cluster.
        cluster: Option<String>,
    },
    /// Back up now, into a volume.
    Backup {
        /// The cluster.
        cluster: String,
        /// Name of a volume claim.
        #[arg(long)]
        claim: String,
    },
    /// Reclaim space on every member, the leader last.
    Defrag {
        /// The cluster.
        cluster: String,
    },
    /// Drop the history below a revision.
    Compact {
        /// The cluster.
        cluster: String,
        /// The revision; absent: the current one.
        #[arg(default_value_t = 0)]
        revision: i64,
    },
    /// Make another member the leader.
    MoveLeader {
        /// The cluster.
        cluster: String,
        /// The member; absent: any follower.
        #[arg(default_value = "")]
        to: String,
    },
    /// Replace a member by a new one.
    Replace {
        /// The cluster.
        cluster: String,
        /// The member.
        member: String,
    },
    /// Compare the data of all members.
    Verify {
        /// The cluster.
        cluster: String,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(run(arguments)),
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let client = Client::try_default().await?;
    let namespace = arguments
        .namespace
        .unwrap_or_else(|| client.default_namespace().to_owned());
    let task = |cluster: &str| TaskSpec {
        cluster_ref: LocalReference {
            name: cluster.to_owned(),
        },
        ttl_seconds_after_finished: 86400,
        ..TaskSpec::default()
    };
    let (verb, spec) = match arguments.verb {
        Verb::Status { cluster } => return status(&client, &namespace, cluster.as_deref()).await,
        Verb::Backup { cluster, claim } => {
            return backup(&client, &namespace, &cluster, &claim).await;
        }
        Verb::Defrag { cluster } => (
            "defrag",
            TaskSpec {
                defrag: Some(DefragTask {}),
                ..task(&cluster)
            },
        ),
        Verb::Compact { cluster, revision } => (
            "compact",
            TaskSpec {
                compact: Some(CompactTask { revision }),
                ..task(&cluster)
            },
        ),
        Verb::MoveLeader { cluster, to } => (
            "move-leader",
            TaskSpec {
                move_leader: Some(MoveLeaderTask { to }),
                ..task(&cluster)
            },
        ),
        Verb::Replace { cluster, member } => (
            "replace",
            TaskSpec {
                replace_member: Some(ReplaceMemberTask { member }),
                ..task(&cluster)
            },
        ),
        Verb::Verify { cluster } => (
            "verify",
            TaskSpec {
                verify_consistency: Some(VerifyConsistencyTask {}),
                ..task(&cluster)
            },
        ),
    };
    let api: Api<MetaStoreTask> = Api::namespaced(client, &namespace);
    let mut object = MetaStoreTask::new("", spec);
    object.metadata.name = None;
    object.metadata.generate_name = Some(format!("{}-{verb}-", object.spec.cluster_ref.name));
    let made = api.create(&PostParams::default(), &object).await?;
    println!("metastoretask/{} created", made.name_any());
    Ok(())
}

async fn status(client: &Client, namespace: &str, name: Option<&str>) -> anyhow::Result<()> {
    let api: Api<MetaStoreCluster> = Api::namespaced(client.clone(), namespace);
    let clusters = match name {
        Some(name) => vec![
            api.get_opt(name)
                .await?
                .ok_or_else(|| anyhow!("there is no MetaStoreCluster {namespace}/{name}"))?,
        ],
        None => api.list(&ListParams::default()).await?.items,
    };
    for cluster in clusters {
        let status = cluster.status.clone().unwrap_or_default();
        println!(
            "{}: {:?}, {} ready, leader {}, id {}",
            cluster.name_any(),
            status.phase,
            status.ready,
            status.leader.as_deref().unwrap_or("unknown"),
            status.cluster_id.as_deref().unwrap_or("unknown"),
        );
        for member in &status.members {
            println!(
                "  {:<28} {:<9} {:<9} revision {:<12} {}",
                member.name,
                format!("{:?}", member.role),
                format!("{:?}", member.state),
                member.revision.unwrap_or(0),
                member.message.as_deref().unwrap_or(""),
            );
        }
        for condition in &status.conditions {
            println!(
                "  {:<20} {:<8} {:<24} {}",
                condition.type_, condition.status, condition.reason, condition.message
            );
        }
    }
    Ok(())
}

async fn backup(
    client: &Client,
    namespace: &str,
    cluster: &str,
    claim: &str,
) -> anyhow::Result<()> {
    let api: Api<MetaStoreBackup> = Api::namespaced(client.clone(), namespace);
    let spec = BackupSpec {
        cluster_ref: LocalReference {
            name: cluster.to_owned(),
        },
        store: BackupStore {
            pvc: Some(PvcStore {
                claim_name: claim.to_owned(),
                prefix: String::new(),
            }),
            ..BackupStore::default()
        },
        verify: true,
        deletion_policy: RetainPolicy::Retain,
    };
    let mut object = MetaStoreBackup::new("", spec);
    object.metadata.name = None;
    object.metadata.generate_name = Some(format!("{cluster}-"));
    let made = api.create(&PostParams::default(), &object).await?;
    println!("metastorebackup/{} created", made.name_any());
    Ok(())
}
