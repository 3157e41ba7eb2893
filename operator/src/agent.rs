//! What Jobs and init containers do: move data between members, object stores and directories.
//!
//! A backup is an artifact (the snapshot as the server sent it) and a manifest beside it. The manifest is
//! written last: an artifact without one is none.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use metastore_operator_api::BackupStore;
use metastore_operator_resources::BACKUP_VOLUME_FOLDER;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::buffered::BufWriter;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path as StorePath;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::member_client::{MemberClient, TlsFiles};
use crate::settings::AgentWork;

/// Where Kubernetes looks for the message of a container that ended.
const TERMINATION_LOG: &str = "/dev/termination-log";
/// Kubernetes keeps 4096 bytes of a message.
const MESSAGE_BYTES_MAX: usize = 4000;
/// The longest that a member may send nothing of a snapshot. It sends while it reads.
const SNAPSHOT_SILENCE: Duration = Duration::from_secs(60);
/// Bytes that are read at once.
const BUFFER_BYTES: usize = 1 << 20;

/// What a Job is told.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AgentSettings {
    store: BackupStore,
    artifact: String,
    #[serde(default)]
    cluster: String,
    #[serde(default)]
    endpoint: String,
    #[serde(default)]
    tls_folder: Option<PathBuf>,
    #[serde(default)]
    scratch_folder: PathBuf,
    #[serde(default)]
    data_folder: PathBuf,
    #[serde(default)]
    name: String,
    #[serde(default)]
    peer_url: String,
    #[serde(default)]
    config_file: PathBuf,
    #[serde(default)]
    bump_revision: i64,
}

/// What a backup Job leaves for the operator, and what stands in the manifest.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BackupReport {
    pub(crate) artifact: String,
    pub(crate) cluster: String,
    pub(crate) size_bytes: u64,
    pub(crate) sha256: String,
    pub(crate) revision: i64,
    /// HashKV at that revision, as the server counted it. Absent when the revision was compacted meanwhile.
    pub(crate) hash_kv: Option<u32>,
}

/// What a verification leaves for the operator.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VerifyReport {
    pub(crate) restore_seconds: i64,
    pub(crate) message: String,
}

/// What `snapshot status` prints.
#[derive(Clone, Debug, Deserialize)]
struct SnapshotStatus {
    revision: i64,
}

/// What `hashkv` prints.
#[derive(Clone, Debug, Deserialize)]
struct HashKv {
    hash: u32,
}

/// Does the work and leaves a message for the operator.
///
/// # Errors
///
/// In words; they are also the message of the container.
pub async fn run(work: AgentWork) -> anyhow::Result<()> {
    let outcome = work_as_told(work).await;
    let message = match &outcome {
        Ok(message) => message.clone(),
        Err(error) => format!("{error:#}"),
    };
    let message: String = message.chars().take(MESSAGE_BYTES_MAX).collect();
    let path =
        std::env::var("METASTORE_TERMINATION_LOG").unwrap_or_else(|_| TERMINATION_LOG.into());
    if let Err(error) = std::fs::write(&path, &message) {
        tracing::warn!(path, %error, "no message for the operator");
    }
    tracing::info!(message, "work ended");
    outcome.map(|_| ())
}

async fn work_as_told(work: AgentWork) -> anyhow::Result<String> {
    let text = std::env::var("METASTORE_AGENT_SETTINGS")
        .context("METASTORE_AGENT_SETTINGS is not set: this program is started by the operator")?;
    let settings: AgentSettings =
        serde_json::from_str(&text).context("METASTORE_AGENT_SETTINGS cannot be read")?;
    match work {
        AgentWork::Backup => Ok(serde_json::to_string(&backup(&settings).await?)?),
        AgentWork::Verify => Ok(serde_json::to_string(&verify(&settings).await?)?),
        AgentWork::Delete => delete(&settings).await,
        AgentWork::Restore => restore(&settings).await,
    }
}

fn open_store(store: &BackupStore) -> anyhow::Result<Arc<dyn ObjectStore>> {
    let (inner, prefix): (Arc<dyn ObjectStore>, &str) = if let Some(s3) = &store.s3 {
        let mut builder = AmazonS3Builder::from_env().with_bucket_name(&s3.bucket);
        if !s3.region.is_empty() {
            builder = builder.with_region(&s3.region);
        }
        if !s3.endpoint.is_empty() {
            builder = builder
                .with_endpoint(&s3.endpoint)
                .with_allow_http(s3.endpoint.starts_with("http://"));
        }
        (Arc::new(builder.build()?), &s3.prefix)
    } else if let Some(gcs) = &store.gcs {
        let builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(&gcs.bucket);
        (Arc::new(builder.build()?), &gcs.prefix)
    } else if let Some(azure) = &store.azure {
        let mut builder = MicrosoftAzureBuilder::from_env()
            .with_account(&azure.account)
            .with_container_name(&azure.container);
        if !azure.endpoint.is_empty() {
            builder = builder
                .with_endpoint(azure.endpoint.clone())
                .with_allow_http(azure.endpoint.starts_with("http://"));
        }
        (Arc::new(builder.build()?), &azure.prefix)
    } else if let Some(pvc) = &store.pvc {
        let folder = std::env::var("METASTORE_BACKUP_FOLDER")
            .unwrap_or_else(|_| BACKUP_VOLUME_FOLDER.into());
        (
            Arc::new(LocalFileSystem::new_with_prefix(folder)?),
            &pvc.prefix,
        )
    } else {
        bail!("the store is neither s3, gcs, azure nor pvc");
    };
    Ok(match prefix {
        "" => inner,
        prefix => Arc::new(PrefixStore::new(inner, StorePath::from(prefix))),
    })
}

fn manifest_path(artifact: &str) -> StorePath {
    StorePath::from(format!("{artifact}.manifest.json"))
}

async fn backup(settings: &AgentSettings) -> anyhow::Result<BackupReport> {
    let store = open_store(&settings.store)?;
    let client = connect(settings).await?;
    let file = settings.scratch_folder.join("snapshot.db");
    let (size_bytes, sha256) = download_snapshot(&client, &file, SNAPSHOT_SILENCE).await?;
    let status: SnapshotStatus =
        utility(&["snapshot", "status", &text(&file)?, "--write-out=json"])
            .await
            .and_then(|output| Ok(serde_json::from_str(&output)?))
            .context("the snapshot cannot be read")?;
    // Compacted in between: then there is nothing to compare with, and the checksum has to do.
    let hash_kv = client
        .hash_kv(status.revision)
        .await
        .ok()
        .map(|(hash, _)| hash);
    let path = StorePath::from(settings.artifact.as_str());
    upload(&store, &path, &file)
        .await
        .context("the artifact was not stored")?;
    let report = BackupReport {
        artifact: settings.artifact.clone(),
        cluster: settings.cluster.clone(),
        size_bytes,
        sha256,
        revision: status.revision,
        hash_kv,
    };
    let manifest = serde_json::to_vec_pretty(&report)?;
    store
        .put(&manifest_path(&settings.artifact), manifest.into())
        .await
        .context("the manifest was not stored")?;
    Ok(report)
}

async fn connect(settings: &AgentSettings) -> anyhow::Result<MemberClient> {
    let tls = match &settings.tls_folder {
        None => None,
        Some(folder) => Some(TlsFiles {
            authority: std::fs::read(folder.join("ca.crt"))?,
            certificate: std::fs::read(folder.join("tls.crt"))?,
            key: std::fs::read(folder.join("tls.key"))?,
        }),
    };
    let host = settings.endpoint.split("://").nth(1).unwrap_or_default();
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    let client = MemberClient::new(&settings.endpoint, host, tls.as_ref())?;
    let Ok(password) = std::env::var("METASTORE_ROOT_PASSWORD") else {
        return Ok(client);
    };
    let token = client.log_in("root", &password).await?;
    Ok(client.with_token(token))
}

/// Writes the stream to a file. The server ends it with a checksum of everything before, which must fit.
async fn download_snapshot(
    client: &MemberClient,
    path: &Path,
    silence: Duration,
) -> anyhow::Result<(u64, String)> {
    let mut stream = heard(silence, client.snapshot()).await??;
    let mut file = tokio::fs::File::create(path).await?;
    let mut digest = Sha256::new();
    let mut size_bytes = 0u64;
    while let Some(part) = heard(silence, stream.message())
        .await?
        .context("the snapshot broke off")?
    {
        digest.update(&part.blob);
        size_bytes += part.blob.len() as u64;
        file.write_all(&part.blob).await?;
    }
    file.sync_all().await?;
    if size_bytes == 0 {
        bail!("the snapshot is empty");
    }
    Ok((size_bytes, hex(&digest.finalize())))
}

/// A member that says nothing for so long says nothing any more: the Job is tried again, with another member.
async fn heard<T>(silence: Duration, answer: impl Future<Output = T>) -> anyhow::Result<T> {
    tokio::time::timeout(silence, answer)
        .await
        .map_err(|_| anyhow!("the member has sent nothing of the snapshot for {silence:?}"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn upload(store: &Arc<dyn ObjectStore>, path: &StorePath, file: &Path) -> anyhow::Result<()> {
    let mut reader = tokio::fs::File::open(file).await?;
    let mut writer = BufWriter::new(store.clone(), path.clone());
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = reader.read(&mut buffer).await?;
        if count == 0 {
            break;
        }
        writer.write_all(&buffer[..count]).await?;
    }
    writer.shutdown().await?;
    Ok(())
}

/// Fetches the artifact and compares it with its manifest.
async fn download(settings: &AgentSettings, target: &Path) -> anyhow::Result<BackupReport> {
    use futures::StreamExt;
    let store = open_store(&settings.store)?;
    let manifest = store
        .get(&manifest_path(&settings.artifact))
        .await
        .with_context(|| format!("{} has no manifest: it is not complete", settings.artifact))?;
    let report: BackupReport = serde_json::from_slice(&manifest.bytes().await?)?;
    let mut stream = store
        .get(&StorePath::from(settings.artifact.as_str()))
        .await?
        .into_stream();
    let mut file = tokio::fs::File::create(target).await?;
    let mut digest = Sha256::new();
    while let Some(part) = stream.next().await {
        let part = part?;
        digest.update(&part);
        file.write_all(&part).await?;
    }
    file.sync_all().await?;
    let found = hex(&digest.finalize());
    if found != report.sha256 {
        bail!(
            "{} is damaged: its checksum is {found} and should be {}",
            settings.artifact,
            report.sha256
        );
    }
    Ok(report)
}

async fn verify(settings: &AgentSettings) -> anyhow::Result<VerifyReport> {
    let file = settings.scratch_folder.join("snapshot.db");
    let report = download(settings, &file).await?;
    let started = Instant::now();
    let target = settings.scratch_folder.join("restored");
    let _ = std::fs::remove_dir_all(&target);
    utility(&[
        "snapshot",
        "restore",
        &text(&file)?,
        "--data-dir",
        &text(&target)?,
    ])
    .await
    .context("the artifact cannot be restored")?;
    let restore_seconds = i64::try_from(started.elapsed().as_secs()).unwrap_or(i64::MAX);
    // The data in it: etcd's utility reads the file of a data directory, ours the directory.
    let file_of_etcd = target.join("member").join("snap").join("db");
    let data = if file_of_etcd.exists() {
        file_of_etcd
    } else {
        target
    };
    let revision = report.revision.to_string();
    let message = match report.hash_kv {
        None => "restored; there was no hash of the live data to compare with".to_owned(),
        Some(expected) => {
            // Of what was restored, and not of the file that it came from.
            let output = utility(&[
                "hashkv",
                &text(&data)?,
                "--rev",
                &revision,
                "--write-out=json",
            ])
            .await?;
            let found: HashKv = serde_json::from_str(&output)?;
            if found.hash != expected {
                bail!(
                    "the data differs: HashKV at {revision} is {} and was {expected}",
                    found.hash
                );
            }
            format!("restored; HashKV at revision {revision} is that of the live data")
        }
    };
    Ok(VerifyReport {
        restore_seconds,
        message,
    })
}

async fn delete(settings: &AgentSettings) -> anyhow::Result<String> {
    let store = open_store(&settings.store)?;
    // The manifest first: what is left after a crash is no backup.
    for path in [
        manifest_path(&settings.artifact),
        StorePath::from(settings.artifact.as_str()),
    ] {
        match store.delete(&path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(format!("{} is deleted", settings.artifact))
}

/// Fills the empty data directory of the first member. With data there it does nothing.
async fn restore(settings: &AgentSettings) -> anyhow::Result<String> {
    let target = &settings.data_folder;
    let is_empty = std::fs::read_dir(target).map_or(true, |mut entries| entries.next().is_none());
    if !is_empty {
        return Ok("there is data already: nothing is restored".into());
    }
    let config = std::fs::read_to_string(&settings.config_file)?;
    let read = |key: &str| -> anyhow::Result<String> {
        let line = config
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{key}: ")))
            .ok_or_else(|| anyhow!("{} has no {key}", settings.config_file.display()))?;
        Ok(serde_json::from_str(line)?)
    };
    if read("initial-cluster-state")? != "new" {
        bail!(
            "this member may not form a cluster any more: its data is gone, and it must be replaced"
        );
    }
    let parent = target.parent().unwrap_or(target);
    let file = parent.join("restore.db");
    let partial = parent.join("restore.partial");
    let _ = std::fs::remove_dir_all(&partial);
    let report = download(settings, &file).await?;
    let cluster = format!("{}={}", settings.name, settings.peer_url);
    let bump = settings.bump_revision.to_string();
    let (file_text, partial_text, token) = (
        text(&file)?,
        text(&partial)?,
        read("initial-cluster-token")?,
    );
    let mut arguments = vec![
        "snapshot",
        "restore",
        &file_text,
        "--data-dir",
        &partial_text,
        "--name",
        &settings.name,
        "--initial-cluster",
        &cluster,
        "--initial-cluster-token",
        &token,
        "--initial-advertise-peer-urls",
        &settings.peer_url,
    ];
    if settings.bump_revision > 0 {
        arguments.extend(["--bump-revision", &bump, "--mark-compacted"]);
    }
    utility(&arguments)
        .await
        .context("the artifact cannot be restored")?;
    let _ = std::fs::remove_dir(target);
    std::fs::rename(&partial, target)?;
    std::fs::remove_file(&file)?;
    Ok(format!(
        "restored revision {} of {}",
        report.revision, report.artifact
    ))
}

fn text(path: &Path) -> anyhow::Result<String> {
    let text = path
        .to_str()
        .ok_or_else(|| anyhow!("{} is no text", path.display()))?;
    Ok(text.to_owned())
}

/// Runs the program that knows data directories and snapshot files; returns what it printed.
async fn utility(arguments: &[&str]) -> anyhow::Result<String> {
    let program = std::env::var("METASTORE_UTILITY").unwrap_or_else(|_| "metastoreutl".into());
    let output = tokio::process::Command::new(&program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .await
        .with_context(|| format!("{program} cannot be started"))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        let last: Vec<_> = error.lines().rev().take(3).collect();
        bail!(
            "{program} {}: {}",
            arguments[..2.min(arguments.len())].join(" "),
            last.join("; ")
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "in a test an unwrap is an assertion")]
mod tests {
    use axum::body::{Body, Bytes};
    use axum::response::IntoResponse;
    use futures::StreamExt;
    use metastore_proto::etcdserverpb::SnapshotResponse;
    use prost::Message;

    use super::*;

    const SHORT_SILENCE: Duration = Duration::from_millis(300);

    /// A member that sends a part of a snapshot, and then ends the connection or says nothing any more.
    async fn member(ends: bool) -> MemberClient {
        let answer = move || async move {
            let part = SnapshotResponse {
                remaining_bytes: 100,
                blob: Bytes::from_static(b"half"),
                ..SnapshotResponse::default()
            };
            let part = part.encode_to_vec();
            let mut frame = vec![0];
            frame.extend(u32::try_from(part.len()).unwrap().to_be_bytes());
            frame.extend(part);
            let parts = futures::stream::iter([Ok(Bytes::from(frame))]);
            let body = if ends {
                let cut = futures::stream::iter([Err(std::io::Error::other("cut"))]);
                Body::from_stream(parts.chain(cut))
            } else {
                Body::from_stream(parts.chain(futures::stream::pending()))
            };
            ([("content-type", "application/grpc")], body).into_response()
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new().fallback(answer);
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        MemberClient::new(&url, "localhost", None).unwrap()
    }

    #[tokio::test]
    async fn half_a_snapshot_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("snapshot.db");
        let client = member(true).await;
        let outcome = download_snapshot(&client, &file, SNAPSHOT_SILENCE).await;
        assert!(outcome.is_err(), "{outcome:?}");

        let client = member(false).await;
        let error = download_snapshot(&client, &file, SHORT_SILENCE)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("has sent nothing"), "{error:#}");
    }
}
