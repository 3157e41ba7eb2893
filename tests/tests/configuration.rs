//! Wrong settings, given to MetaStore's reader of options and to a real etcd: the same words, the same
//! exit status.
//!
//! Only settings that both refuse are compared, so no etcd ever comes up here: each run ends by itself.

use std::ffi::OsString;
use std::process::Command;

use metastore_server::config::{Config, ConfigError, Parsed};
use metastore_tests::programs::tool;

/// What a program said about its settings.
#[derive(Debug, PartialEq, Eq)]
struct Refusal {
    exit_code: i32,
    text: String,
}

/// Environment, arguments, and the text of a configuration file, if any.
struct Case<'a> {
    environment: &'a [(&'a str, &'a str)],
    arguments: &'a [&'a str],
    file: Option<&'a str>,
}

impl Case<'_> {
    /// Runs etcd with these settings and takes the cause out of what it printed.
    fn ask_etcd(&self, folder: &std::path::Path) -> Refusal {
        let output = Command::new(tool("etcd"))
            .args(self.arguments_with_file(folder))
            .env_clear()
            .envs(self.environment.iter().copied())
            .current_dir(folder)
            .output()
            .expect("etcd runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        let exit_code = output.status.code().expect("etcd ends by itself");
        Refusal {
            exit_code,
            text: cause(&stderr),
        }
    }

    fn ask_metastore(&self, folder: &std::path::Path) -> Refusal {
        let arguments =
            std::iter::once(OsString::from("etcd")).chain(self.arguments_with_file(folder));
        let environment = self
            .environment
            .iter()
            .map(|(k, v)| (OsString::from(k), OsString::from(v)));
        let error = match Config::from_process(arguments, environment) {
            Err(error) => error,
            Ok(Parsed::Start { config, .. }) => match config.initial_cluster() {
                Err(error) => error,
                Ok(_) => panic!("{:?} is accepted", self.arguments),
            },
            Ok(Parsed::Print { .. }) => panic!("{:?} only prints", self.arguments),
        };
        let text = match &error {
            ConfigError::Usage(text) => text.lines().next().unwrap_or_default().to_owned(),
            ConfigError::Conflict { variable } => format!("{error} {variable}"),
            ConfigError::Invalid { message } => message.clone(),
        };
        Refusal {
            exit_code: i32::from(error.exit_code()),
            text,
        }
    }

    fn arguments_with_file(&self, folder: &std::path::Path) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = self.arguments.iter().map(OsString::from).collect();
        if let Some(text) = self.file {
            let path = folder.join("settings.yml");
            std::fs::write(&path, text).expect("the file can be written");
            arguments.push("--config-file".into());
            arguments.push(path.into());
        }
        arguments
    }
}

/// The cause in etcd's output: the field `error` of the line that announces it, or the first line of plain
/// text.
fn cause(stderr: &str) -> String {
    for line in stderr.lines() {
        let Ok(line) = serde_json::from_str::<serde_json::Value>(line) else {
            return line.to_owned();
        };
        let message = line["msg"].as_str().unwrap_or_default();
        if message.starts_with("conflicting environment variable") {
            return format!(
                "{message} {}",
                line["environment-variable"].as_str().unwrap_or("?")
            );
        }
        if [
            "failed to verify flags",
            "discovery failed",
            "failed to start",
        ]
        .contains(&message)
        {
            return line["error"].as_str().unwrap_or_default().to_owned();
        }
    }
    panic!("no cause in: {stderr}")
}

#[track_caller]
fn check(cases: &[Case<'_>]) {
    let mut differences = Vec::new();
    for case in cases {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let (wanted, found) = (
            case.ask_etcd(folder.path()),
            case.ask_metastore(folder.path()),
        );
        if wanted != found {
            differences.push(format!(
                "{:?} {:?} {:?}\n     etcd: {wanted:?}\nmetastore: {found:?}",
                case.environment, case.arguments, case.file
            ));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

fn arguments<'a>(cases: &'a [&'a [&'a str]]) -> Vec<Case<'a>> {
    cases
        .iter()
        .map(|arguments| Case {
            environment: &[],
            arguments,
            file: None,
        })
        .collect()
}

#[test]
fn unreadable_command_lines_are_refused_as_etcd_refuses_them() {
    check(&arguments(&[
        &["--nmae=a"],
        &["serve"],
        &["--pre-vote", "false"],
        &["--name"],
        &["---name"],
        &["-=a"],
        &["--pre-vote=perhaps"],
        &["--snapshot-count=-1"],
        &["--snapshot-count=99999999999999999999"],
        &["--max-learners=x"],
        &["--quota-backend-bytes=1.5"],
        &["--max-concurrent-streams=99999999999"],
        &["--max-concurrent-streams=x"],
        &["--grpc-keepalive-interval=5"],
        &["--initial-cluster-state=x"],
        &["--listen-client-urls=localhost"],
        &["--listen-client-urls=http://a"],
        &["--listen-client-urls=http://127.0.0.1:1/"],
        &["--listen-client-urls=://x"],
        &["--listen-client-urls=127.0.0.1:1"],
        &["--listen-client-urls=http://a:x"],
        &["--cors=x"],
        &["--feature-gates=Nmae=true"],
        &["--feature-gates=LeaseCheckpoint=x"],
        &["--feature-gates=LeaseCheckpoint"],
    ]));
}

#[test]
fn settings_that_make_no_sense_are_refused_as_etcd_refuses_them() {
    check(&arguments(&[
        &["--listen-client-urls=http://127.0.0.1:2379"],
        &["--listen-peer-urls=http://example.com:2380"],
        &["--listen-metrics-urls=http://example.com:1"],
        &["--initial-advertise-peer-urls=http://:2380"],
        &["--heartbeat-interval=300"],
        &["--heartbeat-interval=0"],
        &["--election-timeout=0"],
        &["--election-timeout=50001"],
        &["--auto-compaction-mode=daily"],
        &["--auto-compaction-mode="],
        &["--discovery-token=x"],
        &[
            "--initial-cluster=default=http://localhost:2380",
            "--discovery-srv=example.com",
        ],
        &["--discovery-fallback=proxy"],
        &["--compact-hash-check-time=0"],
        &["--logger=capnslog"],
        &["--logger=x"],
        &["--log-outputs=default,stdout"],
        &["--log-outputs="],
        &["--log-outputs=stderr,"],
        &["--log-format=xml"],
        &["--tls-min-version=TLS1.1"],
        &["--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"],
        &["--tls-min-version=TLS1.3", "--cipher-suites=a"],
        &["--feature-gates=LeaseCheckpointPersist=true"],
        &[
            "--enable-distributed-tracing",
            "--distributed-tracing-sampling-rate=-1",
        ],
        &[
            "--enable-distributed-tracing",
            "--distributed-tracing-sampling-rate=1000001",
        ],
        &["--config-file=/no/such/file"],
    ]));
}

#[test]
fn contradictions_of_the_initial_cluster_are_refused_as_etcd_refuses_them() {
    // Ports that the system chooses: etcd binds before it looks at the initial cluster.
    let listen = [
        "--listen-peer-urls=http://127.0.0.1:0",
        "--listen-client-urls=http://127.0.0.1:0",
    ];
    let advertise = "--advertise-client-urls=http://127.0.0.1:1";
    let with_listeners = |more: &[&'static str]| {
        listen
            .iter()
            .chain([&advertise])
            .chain(more)
            .copied()
            .collect::<Vec<_>>()
    };
    let cases = [
        with_listeners(&["--name=b", "--initial-cluster=a=http://localhost:2380"]),
        with_listeners(&["--name=a", "--initial-cluster=a=http://127.0.0.1:1"]),
        with_listeners(&[
            "--name=a",
            "--initial-cluster=a=http://127.0.0.1:1",
            "--initial-advertise-peer-urls=http://127.0.0.1:1,http://127.0.0.1:2",
        ]),
        with_listeners(&[
            "--initial-cluster=default=http://localhost:2380,b=http://localhost:2380",
        ]),
        with_listeners(&["--initial-cluster=default"]),
        with_listeners(&["--initial-cluster="]),
        with_listeners(&["--auto-compaction-retention=soon"]),
        with_listeners(&[
            "--initial-cluster-state=existing",
            "--initial-cluster=a=http://x:1",
        ]),
    ];
    let cases: Vec<&[&str]> = cases.iter().map(Vec::as_slice).collect();
    check(&arguments(&cases));
}

#[test]
fn contradictions_of_the_environment_are_refused_as_etcd_refuses_them() {
    check(&[
        Case {
            environment: &[("ETCD_NAME", "x")],
            arguments: &["--name=a"],
            file: None,
        },
        Case {
            environment: &[("ETCD_ELECTION_TIMEOUT", "soon")],
            arguments: &[],
            file: None,
        },
        Case {
            environment: &[("ETCD_FEATURE_GATES", "x")],
            arguments: &[],
            file: None,
        },
        Case {
            environment: &[("ETCD_HEARTBEAT_INTERVAL", "300")],
            arguments: &[],
            file: None,
        },
    ]);
}

#[test]
fn wrong_files_are_refused_as_etcd_refuses_them() {
    let files = [
        "heartbeat-interval: x\n",
        "pre-vote: 1\n",
        "pre-vote: \"true\"\n",
        "name: [a]\n",
        "name: off\n",
        "name: 010\n",
        // What stands in front is accepted; the heartbeat is what both complain of.
        "name: a\nname: b\nheartbeat-interval: 300\n",
        "Name: a\npre-vote: no\nheartbeat-interval: 300\n",
        "snapshot-count: 1e4\nheartbeat-interval: 300\n",
        "max-txn-ops: 010\nquota-backend-bytes: 8589934592.0\nheartbeat-interval: 300\n",
        "initial-cluster-state: x\n",
        "peer-transport-security: 1\n",
        "feature-gates: Nmae=true\n",
        "heartbeat-interval: 300\n",
        "log-outputs: stderr\n",
        "log-outputs: ['']\n",
        "log-outputs: []\nheartbeat-interval: 300\n",
        "host-whitelist: [a, b]\n",
        "host-whitelist: a,b\nheartbeat-interval: 300\n",
        "cors: [a]\n",
        "cipher-suites: TLS_AES_128_GCM_SHA256\n",
        "client-transport-security:\n  allowed-hostname: a\n",
        "discovery-config:\n  client:\n    endpoints: a\n",
        "discovery: http://127.0.0.1:1\ndiscovery-proxy: 5\nheartbeat-interval: 300\n",
        "{\"election-timeout\": 50001}\n",
    ];
    let cases: Vec<_> = files
        .iter()
        .map(|file| Case {
            environment: &[],
            arguments: &[],
            file: Some(file),
        })
        .collect();
    check(&cases);
}
