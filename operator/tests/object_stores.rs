//! Backups in object stores: the work of a backup's Jobs against servers of their protocols, each started as a
//! process of this machine.
//!
//! `make e2e-object-stores` runs it; `tests/kubernetes/install-stores.sh` installs the servers once: versitygw for
//! S3, which checks signatures as Amazon does, and azurite for Azure. There is none for Google Cloud Storage:
//! fake-gcs-server does not know the part of its protocol with which objects are written.

#![allow(missing_docs)]
#![allow(clippy::unwrap_used, reason = "in a test an unwrap is an assertion")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use metastore_tests::member::free_port;
use metastore_tests::programs::subject;
use metastore_tests::{Client, Member, MemberBuilder, eventually};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// For a server of objects to start.
const LIMIT: Duration = Duration::from_secs(30);
/// Keys of random bytes: more than one part of an upload, which has ten megabytes.
const LARGE_KEYS: usize = 14;
const LARGE_BYTES: usize = 1_000_000;
/// Azurite's account and key are the ones that Microsoft publishes for its emulators.
const AZURE_ACCOUNT: &str = "devstoreaccount1";
const AZURE_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A server of objects; it ends with the test.
struct Server {
    process: Child,
    log: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

impl Server {
    /// Starts a program of the installer and waits until it accepts connections.
    async fn start(folder: &Path, port: u16, program: &str, arguments: &[&str]) -> Self {
        let log = folder.join("server.log");
        let file = fs::File::create(&log).unwrap();
        let process = Command::new(installed().join(program))
            .args(arguments)
            .current_dir(folder)
            .env("ROOT_ACCESS_KEY", "access")
            .env("ROOT_SECRET_KEY", "secret-secret")
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        let server = Self { process, log };
        eventually(&format!("{program} serves"), LIMIT, || async {
            let connected = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
            connected.map(drop).map_err(|error| error.to_string())
        })
        .await;
        server
    }
}

fn installed() -> PathBuf {
    let script =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/kubernetes/install-stores.sh");
    let output = Command::new("bash").arg(script).output().unwrap();
    assert!(
        output.status.success(),
        "install-stores.sh failed: run it by hand"
    );
    let text = String::from_utf8(output.stdout).unwrap();
    PathBuf::from(text.lines().last().unwrap())
}

/// What a Job is started with: a store, and what its Secret puts into the environment.
struct Target {
    store: Value,
    secret: Vec<(&'static str, String)>,
}

/// One Job: the program that the operator's image starts, with the same settings.
struct Work<'a> {
    target: &'a Target,
    folder: &'a Path,
    settings: Value,
}

impl Work<'_> {
    /// Runs it; returns the message that it leaves for the operator, as an error when it failed.
    fn run(&self, what: &str) -> Result<String, String> {
        let scratch = self.folder.join(format!("scratch-{what}"));
        fs::create_dir_all(&scratch).unwrap();
        let message = self.folder.join("message");
        let mut settings = self.settings.clone();
        settings["store"] = self.target.store.clone();
        settings["scratchFolder"] = json!(scratch);
        let output = Command::new(env!("CARGO_BIN_EXE_metastore-operator"))
            .args(["agent", what])
            .env("METASTORE_AGENT_SETTINGS", settings.to_string())
            .env("METASTORE_TERMINATION_LOG", &message)
            .env(
                "METASTORE_UTILITY",
                subject().path().with_file_name("metastoreutl"),
            )
            .envs(self.target.secret.iter().map(|(name, value)| (name, value)))
            .output()
            .unwrap();
        let text = fs::read_to_string(&message).unwrap_or_default();
        match output.status.success() {
            true => Ok(text),
            false => Err(text),
        }
    }
}

/// A member with small and large values; what a list of its keys says.
async fn filled() -> (Member, Vec<String>) {
    let member = Member::start(subject()).await;
    let client = member.client();
    for number in 0..20 {
        client
            .put(format!("key/{number:02}"), "small")
            .await
            .unwrap();
    }
    for number in 0..LARGE_KEYS {
        let mut value = vec![0u8; LARGE_BYTES];
        rand::fill(&mut value[..]);
        client
            .put(format!("large/{number:02}"), value)
            .await
            .unwrap();
    }
    let digests = digests(&client).await;
    (member, digests)
}

/// Names and hashes of all values.
async fn digests(client: &Client) -> Vec<String> {
    let mut all = Vec::new();
    for (prefix, count) in [("key", 20), ("large", LARGE_KEYS)] {
        for number in 0..count {
            let key = format!("{prefix}/{number:02}");
            let (pair, _) = client.get(key.clone()).await.unwrap();
            let pair = pair.unwrap_or_else(|| panic!("{key} is not there"));
            all.push(format!("{key} {:x?}", Sha256::digest(&pair.value)));
        }
    }
    all
}

/// A backup is made, compared, restored, missed and deleted, and who has no right is told so.
async fn back_up_and_restore(target: Target, wrong: Target) {
    let folder = tempfile::tempdir().unwrap();
    let (member, wanted) = filled().await;
    let mut work = Work {
        target: &target,
        folder: folder.path(),
        settings: json!({
            "artifact": "default/example/1/first.db",
            "cluster": "example",
            "endpoint": member.endpoint(),
        }),
    };
    let report: Value = serde_json::from_str(&work.run("backup").unwrap()).unwrap();
    let size = report["sizeBytes"].as_u64().unwrap();
    assert!(
        size > u64::try_from(LARGE_KEYS * LARGE_BYTES).unwrap(),
        "{report}"
    );
    assert!(report["hashKv"].is_u64(), "{report}");
    let verified = work.run("verify").unwrap();
    assert!(verified.contains("is that of the live data"), "{verified}");

    restored(&work, &wanted).await;

    // What is not there, and who may not look.
    work.settings["artifact"] = json!("default/example/1/second.db");
    let missing = work.run("verify").unwrap_err();
    assert!(missing.contains("has no manifest"), "{missing}");
    work.settings["artifact"] = json!("default/example/1/first.db");
    work.target = &wrong;
    let refused = work.run("verify").unwrap_err();
    assert!(!refused.is_empty());
    work.target = &target;
    work.run("verify")
        .expect("the right credentials are still good");

    work.run("delete").unwrap();
    work.run("delete")
        .expect("it is deleted twice after a crash");
    let gone = work.run("verify").unwrap_err();
    assert!(gone.contains("has no manifest"), "{gone}");
}

/// A new member starts with what the init container of a restored cluster makes.
async fn restored(work: &Work<'_>, wanted: &[String]) {
    let builder = MemberBuilder::new(subject());
    let data = work.folder.join("volume/data");
    fs::create_dir_all(data.parent().unwrap()).unwrap();
    let config = work.folder.join("metastore.yaml");
    fs::write(
        &config,
        "initial-cluster-state: \"new\"\ninitial-cluster-token: \"metastore-tests\"\n",
    )
    .unwrap();
    let mut settings = work.settings.clone();
    settings["dataFolder"] = json!(data);
    settings["name"] = json!(builder.member_name());
    settings["peerUrl"] = json!(builder.peer_url());
    settings["configFile"] = json!(config);
    settings["bumpRevision"] = json!(1000);
    let restore = Work { settings, ..*work };
    restore.run("restore").unwrap();
    let again = restore.run("restore").unwrap();
    assert!(again.contains("nothing is restored"), "{again}");
    let member = builder.data_folder(&data).start().await;
    assert_eq!(digests(&member.client()).await, wanted);
}

/// A folder in which each folder is a bucket.
fn buckets() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("data/backups")).unwrap();
    folder
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it needs servers of objects: `make e2e-object-stores` runs it"]
async fn backups_in_s3() {
    let folder = buckets();
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let arguments = ["--port", &address, "posix", "data"];
    let _server = Server::start(folder.path(), port, "versitygw", &arguments).await;
    let target = |secret: &str| Target {
        store: json!({"s3": {
            "bucket": "backups", "prefix": "a/b", "endpoint": format!("http://{address}"), "region": "us-east-1",
        }}),
        secret: vec![
            ("AWS_ACCESS_KEY_ID", "access".into()),
            ("AWS_SECRET_ACCESS_KEY", secret.into()),
        ],
    };
    let (right, wrong) = (target("secret-secret"), target("guessed-guess"));
    back_up_and_restore(right, wrong).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it needs servers of objects: `make e2e-object-stores` runs it"]
async fn backups_in_azure() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let port_text = port.to_string();
    let arguments = [
        "--silent",
        "--skipApiVersionCheck",
        "--blobPort",
        &port_text,
        "--location",
        "data",
    ];
    let _server = Server::start(folder.path(), port, "azurite-blob", &arguments).await;
    make_container(port, "backups").await;
    let target = |key: &str| Target {
        store: json!({"azure": {
            "account": AZURE_ACCOUNT, "container": "backups", "prefix": "a/b",
            "endpoint": format!("http://127.0.0.1:{port}/{AZURE_ACCOUNT}"),
        }}),
        secret: vec![("AZURE_STORAGE_ACCOUNT_KEY", key.into())],
    };
    let guessed = AZURE_KEY.replace("Eby8", "Ebz8");
    back_up_and_restore(target(AZURE_KEY), target(&guessed)).await;
}

/// Makes a container, with a signature as Azure wants it.
async fn make_container(port: u16, name: &str) {
    let address = format!("127.0.0.1:{port}");
    let date = http_date();
    let path = format!("/{AZURE_ACCOUNT}/{name}");
    // Verb, eleven headers that are not sent, the ones of Microsoft, the path (with the account twice, as for an
    // emulator) and the query.
    let text = format!(
        "PUT{}x-ms-date:{date}\nx-ms-version:2021-08-06\n/{AZURE_ACCOUNT}{path}\nrestype:container",
        "\n".repeat(12)
    );
    let signature = base64(&hmac_sha256(&unbase64(AZURE_KEY), text.as_bytes()));
    let mut request = format!("PUT {path}?restype=container HTTP/1.1\r\nhost: {address}\r\n");
    write!(
        request,
        "x-ms-date: {date}\r\nx-ms-version: 2021-08-06\r\ncontent-length: 0\r\nconnection: close\r\n\
         authorization: SharedKey {AZURE_ACCOUNT}:{signature}\r\n\r\n"
    )
    .unwrap();
    let answer = exchange(&address, &request).await;
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
}

async fn exchange(address: &str, request: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn http_date() -> String {
    jiff::Timestamp::now()
        .strftime("%a, %d %b %Y %H:%M:%S GMT")
        .to_string()
}

fn hmac_sha256(key: &[u8], message: &[u8]) -> Vec<u8> {
    const BLOCK_BYTES: usize = 64;
    assert!(
        key.len() <= BLOCK_BYTES,
        "longer keys would be hashed first"
    );
    let pad = |byte: u8| -> Vec<u8> {
        let mut block = key.to_vec();
        block.resize(BLOCK_BYTES, 0);
        block.iter().map(|own| own ^ byte).collect()
    };
    let inner = Sha256::digest([pad(0x36), message.to_vec()].concat());
    Sha256::digest([pad(0x5c), inner.to_vec()].concat()).to_vec()
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn unbase64(text: &str) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .unwrap()
}
