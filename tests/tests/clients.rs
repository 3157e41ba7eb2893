//! etcd's own clients: etcdctl command by command, compared with what it says to a real etcd, and
//! a Go program on clientv3, against one member and three.
//!
//! `METASTORE_TEST_SUBJECT=etcd` compares etcd with etcd.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use metastore_tests::programs::{client_runner, subject, tool};
use metastore_tests::{Cluster, Member, MemberBuilder, Program, deadline, eventually};

/// Longest run of one etcdctl command.
const COMMAND_LIMIT: Duration = Duration::from_secs(20);
/// Longest run of one command of the Go program, beside the time that it is told to run.
const GO_LIMIT: Duration = Duration::from_secs(90);

/// Runs a program with a deadline and this input; returns its output, errors included.
fn run(mut command: Command, input: &str, limit: Duration) -> String {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut err = child.stderr.take().unwrap();
    let out = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = out.read_to_string(&mut text);
        text
    });
    let err = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = err.read_to_string(&mut text);
        text
    });
    let status = wait(&mut child, limit);
    format!("{}{}[{status}]", out.join().unwrap(), err.join().unwrap())
}

fn wait(child: &mut Child, limit: Duration) -> String {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.to_string();
        }
        if start.elapsed() > deadline(limit) {
            child.kill().unwrap();
            child.wait().unwrap();
            return format!("killed after {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// etcdctl's view of one store.
struct Control {
    endpoints: String,
    /// What is replaced in outputs: ids, addresses, the last lease.
    names: Vec<(String, String)>,
    lease: String,
}

impl Control {
    async fn new(member: &Member) -> Self {
        let header = member.client().status().await.unwrap().header.unwrap();
        let mut names = Vec::new();
        for (id, name) in [(header.member_id, "MEMBER"), (header.cluster_id, "CLUSTER")] {
            names.push((format!("{id:x}"), name.to_owned()));
            names.push((id.to_string(), name.to_owned()));
        }
        let peer = member.builder().peer_url();
        names.push((peer.trim_start_matches("http://").to_owned(), "PEER".into()));
        names.push((member.address(), "ENDPOINT".into()));
        Self {
            endpoints: member.endpoint(),
            names,
            lease: "0".into(),
        }
    }

    /// Runs one command; `{lease}` is the last granted lease.
    fn run(&mut self, line: &str, input: &str) -> String {
        let mut command = Command::new(tool("etcdctl"));
        command
            .arg("--endpoints")
            .arg(&self.endpoints)
            .arg("--command-timeout=10s");
        for word in line.split(' ') {
            command.arg(word.replace("{lease}", &self.lease).replace("{space}", " "));
        }
        let output = run(command, input, COMMAND_LIMIT);
        if line.starts_with("lease grant")
            && let Some(id) = output
                .strip_prefix("lease ")
                .and_then(|rest| rest.split(' ').next())
        {
            self.lease = id.to_owned();
        }
        self.normal(&output)
    }

    fn normal(&self, output: &str) -> String {
        // The client's own log has times and addresses.
        let lines = output
            .lines()
            .filter(|line| !line.starts_with("{\"level\":"));
        let mut text: String = lines.map(|line| format!("{line}\n")).collect();
        for (value, name) in &self.names {
            text = text.replace(value, name);
        }
        if self.lease != "0" {
            text = text.replace(&self.lease, "LEASE");
            let decimal = i64::from_str_radix(&self.lease, 16).unwrap_or_default();
            text = text.replace(&decimal.to_string(), "LEASE");
        }
        // Terms, sizes, indexes and times are a store's own.
        for field in [
            "raft_term\":",
            "raftTerm\":",
            "raftIndex\":",
            "raftAppliedIndex\":",
            "dbSize\":",
            "dbSizeInUse\":",
            "\"RaftTerm\" : ",
            "took = ",
            ". took ",
            "took\":\"",
            "remaining(",
            "\"TTL\" : ",
            "\"ttl\":",
        ] {
            text = replace_number_after(&text, field);
        }
        text
    }
}

/// Replaces the number after each `field` by N.
fn replace_number_after(text: &str, field: &str) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some(place) = rest.find(field) {
        let (before, after) = rest.split_at(place + field.len());
        result.push_str(before);
        result.push('N');
        rest =
            after.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.' || "µms".contains(c));
    }
    result + rest
}

/// Command lines of etcdctl whose whole output must be equal, in this order on one store.
const COMMANDS: &[(&str, &str)] = &[
    ("version", ""),
    ("endpoint health", ""),
    ("member list", ""),
    ("member list -w json", ""),
    ("member list -w table", ""),
    ("put a 1", ""),
    ("put a 2 --prev-kv", ""),
    ("put a", "from the input"),
    ("put b 1 -w json", ""),
    ("put --ignore-value b", ""),
    ("put --ignore-value missing", ""),
    ("put --ignore-lease b 2", ""),
    ("put b 3 --lease=1234", ""),
    ("get a", ""),
    ("get a -w json", ""),
    ("get a -w fields", ""),
    ("get a -w protobuf --print-value-only", ""),
    ("get a --rev=2", ""),
    ("get a --rev=100", ""),
    ("get a --hex", ""),
    ("get --prefix  --keys-only", ""),
    ("get --prefix  --count-only", ""),
    ("get --prefix  --count-only -w fields", ""),
    ("get --from-key a --limit=1", ""),
    ("get --prefix  --sort-by=VALUE --order=DESCEND", ""),
    ("get --prefix  --sort-by=MODIFY", ""),
    ("get a z", ""),
    ("get a --consistency=s", ""),
    ("get --prefix  --min-mod-rev=4 -w json", ""),
    ("get missing -w json", ""),
    ("get --prefix a --stream", ""),
    (
        "txn",
        "value(\"a\") = \"from the input\"\n\nput c yes\nget a\n\nput c no\n\n",
    ),
    (
        "txn",
        "mod(\"a\") > \"100\"\n\nput c yes\n\nput d no\nget c\n\n",
    ),
    (
        "txn -w json",
        "ver(\"a\") > \"0\"\n\ndel a --prev-kv\nget --prefix c\n\n\n\n",
    ),
    ("txn", "\n\nput x 1\nput x 2\n\n\n"),
    ("del c --prev-kv", ""),
    ("del missing", ""),
    ("del --prefix b", ""),
    ("del --from-key z -w json", ""),
    ("put p/1 1", ""),
    ("put p/2 2", ""),
    ("del p/1 p/3 -w fields", ""),
    // Before chosen lease ids make the histories differ.
    ("endpoint hashkv", ""),
    ("endpoint hashkv --rev=5 -w json", ""),
    ("lease grant 100", ""),
    ("put l 1 --lease={lease}", ""),
    ("put l2 1 --lease={lease}", ""),
    ("lease timetolive {lease}", ""),
    ("lease timetolive {lease} --keys", ""),
    ("lease timetolive {lease} --keys -w json", ""),
    ("lease list", ""),
    ("lease list -w json", ""),
    ("lease keep-alive --once {lease}", ""),
    ("get l", ""),
    ("lease revoke {lease}", ""),
    ("lease revoke {lease}", ""),
    ("lease keep-alive --once {lease}", ""),
    ("lease timetolive {lease}", ""),
    ("get l", ""),
    ("lease grant -- -5", ""),
    ("lease grant 9000000001", ""),
    ("put h 1", ""),
    ("put h 2", ""),
    ("compaction 6", ""),
    ("compaction 6", ""),
    ("compaction 1000", ""),
    ("compaction 8 --physical", ""),
    ("get a --rev=3", ""),
    ("endpoint status -w json", ""),
    ("endpoint status -w fields", ""),
    ("endpoint health -w json", ""),
    ("endpoint health --cluster", ""),
    ("alarm list", ""),
    ("alarm disarm", ""),
    ("defrag", ""),
    ("defrag --cluster", ""),
    ("downgrade validate 3.6", ""),
    ("downgrade validate 3.5", ""),
    ("downgrade validate nonsense", ""),
    ("downgrade cancel", ""),
    ("downgrade enable 3.6.0", ""),
    ("downgrade enable 3.6.0", ""),
    ("downgrade cancel", ""),
    ("move-leader 1234", ""),
    ("member remove 1234", ""),
    ("member promote 1234", ""),
    ("member update 1234 --peer-urls=http://127.0.0.1:1", ""),
    ("member add x --peer-urls=nonsense", ""),
    ("lock name echo{space}held", ""),
    ("get --prefix name --count-only -w fields", ""),
    ("unknown-command", ""),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_says_the_same_as_to_etcd() {
    let oracle = Member::start(Program::Etcd).await;
    let member = Member::start(subject()).await;
    let mut wanted = Control::new(&oracle).await;
    let mut got = Control::new(&member).await;
    let mut report = String::new();
    for (line, input) in COMMANDS {
        let (wanted, got) = (wanted.run(line, input), got.run(line, input));
        // Times and sizes that are not in a field of their own.
        let shown = |text: &str| match line.split(' ').next() {
            Some("endpoint") if line.contains("status") => status_fields(text),
            // etcd's keys of a lease come in the order of a Go map.
            Some("lease") if line.contains("--keys") => {
                let mut words: Vec<_> = text.split([' ', ',', '[', ']', '(', ')']).collect();
                words.sort_unstable();
                words.join(" ")
            }
            // An identifier may have fewer digits than another.
            _ if line.contains("-w table") => {
                let words = text.replace('─', " ");
                words.split_whitespace().collect::<Vec<_>>().join(" ")
            }
            _ => text.to_owned(),
        };
        if shown(&wanted) != shown(&got) {
            let _ = writeln!(report, "\n== etcdctl {line}\netcd: {wanted}\ngot:  {got}");
        }
    }
    drop((oracle, member));
    assert!(report.is_empty(), "{report}");
}

/// Commands about users and roles, in this order on one store that has none. The bytes of a header
/// of one or the other store differ in ids only.
const AUTH_COMMANDS: &[(&str, &str)] = &[
    ("auth status", ""),
    ("auth status -w json", ""),
    ("auth enable --user root:pw", ""),
    ("auth disable", ""),
    ("user list", ""),
    ("role list", ""),
    ("user add root --interactive=false", "pw\n"),
    ("user add alice:alicepw", ""),
    ("user add alice:alicepw", ""),
    ("user add bob --new-user-password=bobpw", ""),
    ("user add certificate --no-password", ""),
    ("user list", ""),
    ("user list -w json", ""),
    ("user get alice", ""),
    ("user get nobody", ""),
    ("role add reader", ""),
    ("role add reader", ""),
    ("role add writer", ""),
    ("role list", ""),
    ("role grant-permission reader read r", ""),
    ("role grant-permission reader read r s", ""),
    ("role grant-permission reader read --prefix p/", ""),
    ("role grant-permission reader readwrite --from-key x", ""),
    ("role grant-permission writer write w", ""),
    ("role grant-permission writer wrong w", ""),
    ("role grant-permission missing write w", ""),
    ("role get reader", ""),
    ("role get writer -w json", ""),
    ("role get missing", ""),
    ("role revoke-permission reader r", ""),
    ("role revoke-permission reader r", ""),
    ("role revoke-permission reader --from-key x", ""),
    ("role get reader", ""),
    ("user grant-role alice reader", ""),
    ("user grant-role alice writer", ""),
    ("user grant-role alice missing", ""),
    ("user grant-role missing reader", ""),
    ("user get alice", ""),
    ("user get alice --detail", ""),
    ("user revoke-role alice writer", ""),
    ("user revoke-role alice writer", ""),
    ("user passwd bob --interactive=false", "newpw\n"),
    ("put p/1 1", ""),
    // etcdctl grants the role itself.
    ("auth enable", ""),
    ("user grant-role root root", ""),
    ("auth enable", ""),
    ("auth status", ""),
    ("--user=root:pw auth status", ""),
    ("put a 1", ""),
    ("--user=root:wrong put a 1", ""),
    ("--user=root:pw put a 1", ""),
    ("--user=root --password=pw put a 1", ""),
    ("--user=alice:alicepw get p/1", ""),
    ("--user=alice:alicepw get --prefix p/", ""),
    ("--user=alice:alicepw get a", ""),
    ("--user=alice:alicepw put p/1 2", ""),
    ("--user=alice:alicepw user get alice", ""),
    ("--user=alice:alicepw role get reader", ""),
    ("--user=alice:alicepw user list", ""),
    ("--user=alice:alicepw member list", ""),
    ("--user=alice:alicepw endpoint hashkv", ""),
    ("--user=bob:bobpw get p/1", ""),
    ("--user=bob:newpw get p/1", ""),
    ("--user=certificate:x get p/1", ""),
    ("--user=root:pw user delete root", ""),
    ("--user=root:pw role delete reader", ""),
    ("--user=root:pw user get alice", ""),
    ("--user=alice:alicepw get p/1", ""),
    ("--user=root:pw user delete alice", ""),
    ("--user=root:pw member list", ""),
    ("--user=root:pw compaction 2", ""),
    ("member list", ""),
    ("--user=alice:alicepw auth disable", ""),
    ("auth disable", ""),
    ("--user=root:pw auth disable", ""),
    ("auth status", ""),
    ("get a", ""),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_manages_users_as_with_etcd() {
    let cheap = |program| MemberBuilder::new(program).flag("--bcrypt-cost=4").start();
    let oracle = cheap(Program::Etcd).await;
    let member = cheap(subject()).await;
    let mut wanted = Control::new(&oracle).await;
    let mut got = Control::new(&member).await;
    let mut report = String::new();
    for (line, input) in AUTH_COMMANDS {
        let (wanted, got) = (wanted.run(line, input), got.run(line, input));
        if wanted != got {
            let _ = writeln!(report, "\n== etcdctl {line}\netcd: {wanted}\ngot:  {got}");
        }
    }
    drop((oracle, member));
    assert!(report.is_empty(), "{report}");
}

/// The names of the fields, and the values of those that are equal on all stores.
fn status_fields(text: &str) -> String {
    text.split([',', '\n'])
        .filter(|field| !field.contains("downgradeInfo"))
        .map(|field| match field.split_once(':') {
            Some((name, value))
                if ["ersion", "evision", "uota", "earner"]
                    .iter()
                    .any(|f| name.contains(f)) =>
            {
                format!("{name}:{value}\n")
            }
            Some((name, _)) => format!("{name}\n"),
            None => String::new(),
        })
        .collect()
}

/// A running etcdctl whose lines are collected.
struct Running {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let out = child.stdout.take().unwrap();
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    fn line(&self) -> String {
        self.lines
            .recv_timeout(deadline(COMMAND_LIMIT))
            .expect("one more line in time")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn etcdctl(endpoints: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(tool("etcdctl"));
    command.arg("--endpoints").arg(endpoints).args(arguments);
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_watches_elects_and_keeps_alive() {
    let member = Member::start(subject()).await;
    let client = member.client();
    client.put("w/a", "1").await.unwrap();
    let endpoint = member.endpoint();

    let watch = Running::start(etcdctl(
        &endpoint,
        &["watch", "--prefix", "w/", "--rev=1", "--prev-kv"],
    ));
    assert_eq!(
        [watch.line(), watch.line(), watch.line()],
        ["PUT", "w/a", "1"]
    );
    client.put("w/a", "2").await.unwrap();
    let lines: Vec<_> = (0..5).map(|_| watch.line()).collect();
    assert_eq!(lines, ["PUT", "w/a", "1", "w/a", "2"]);
    let output = run(etcdctl(&endpoint, &["del", "w/a"]), "", COMMAND_LIMIT);
    assert!(output.starts_with('1'), "{output}");
    let lines: Vec<_> = (0..5).map(|_| watch.line()).collect();
    assert_eq!(lines, ["DELETE", "w/a", "2", "w/a", ""]);
    drop(watch);

    let elect = Running::start(etcdctl(&endpoint, &["elect", "seat", "first"]));
    assert!(elect.line().starts_with("seat/"));
    assert_eq!(elect.line(), "first");
    let listen = Running::start(etcdctl(&endpoint, &["elect", "--listen", "seat"]));
    assert!(listen.line().starts_with("seat/"));
    assert_eq!(listen.line(), "first");
    let second = Running::start(etcdctl(&endpoint, &["elect", "seat", "second"]));
    eventually("two candidates wait", COMMAND_LIMIT, || async {
        let request = metastore_proto::etcdserverpb::RangeRequest {
            key: "seat/".into(),
            range_end: "seat0".into(),
            ..Default::default()
        };
        let answer = client
            .kv
            .clone()
            .range(request)
            .await
            .map_err(|e| e.to_string())?;
        let count = answer.into_inner().count;
        if count == 2 {
            Ok(())
        } else {
            Err(format!("{count} candidates"))
        }
    })
    .await;
    // SIGINT makes etcdctl resign; then the second one leads.
    let id = rustix::process::Pid::from_raw(i32::try_from(elect.child.id()).unwrap()).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
    assert!(second.line().starts_with("seat/"));
    assert_eq!(second.line(), "second");
    assert!(listen.line().starts_with("seat/"));
    assert_eq!(listen.line(), "second");
    drop((elect, listen, second));

    let output = run(
        etcdctl(&endpoint, &["lease", "grant", "3"]),
        "",
        COMMAND_LIMIT,
    );
    let lease = output.split_whitespace().nth(1).unwrap().to_owned();
    let alive = Running::start(etcdctl(&endpoint, &["lease", "keep-alive", &lease]));
    for _ in 0..4 {
        assert!(alive.line().contains("keepalived with TTL(3)"));
    }
    drop(alive);

    let held = Running::start(etcdctl(&endpoint, &["lock", "door"]));
    assert!(held.line().starts_with("door/"));
    let waits = Running::start(etcdctl(&endpoint, &["lock", "door"]));
    assert!(
        waits
            .lines
            .recv_timeout(Duration::from_millis(300))
            .is_err(),
        "two hold one lock"
    );
    let id = rustix::process::Pid::from_raw(i32::try_from(held.child.id()).unwrap()).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
    assert!(waits.line().starts_with("door/"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_mirrors_into_another_store() {
    let source = Member::start(subject()).await;
    let target = Member::start(Program::Etcd).await;
    for number in 0..50 {
        source
            .client()
            .put(format!("m/{number:02}"), number.to_string())
            .await
            .unwrap();
    }
    let _mirror = Running::start(etcdctl(
        &source.endpoint(),
        &["make-mirror", "--prefix", "m/", &target.address()],
    ));
    let reads = |key: &'static str, wanted: Option<&'static str>| {
        let client = target.client();
        eventually("the mirror follows", COMMAND_LIMIT, move || {
            let client = client.clone();
            async move {
                let (pair, _) = client.get(key).await.map_err(|error| error.to_string())?;
                let value = pair.map(|pair| String::from_utf8_lossy(&pair.value).into_owned());
                if value.as_deref() == wanted {
                    Ok(())
                } else {
                    Err(format!("{key}={value:?}"))
                }
            }
        })
    };
    reads("m/49", Some("49")).await;
    source.client().put("m/00", "changed").await.unwrap();
    reads("m/00", Some("changed")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_moves_the_leader_and_sees_the_cluster() {
    let cluster = Cluster::start(subject(), 3).await;
    let endpoints = cluster.endpoints().join(",");
    let leader = cluster.leader().await;
    let target = (leader + 1) % 3;
    let id = cluster.members[target]
        .client()
        .status()
        .await
        .unwrap()
        .header
        .unwrap()
        .member_id;
    let output = run(
        etcdctl(&endpoints, &["move-leader", &format!("{id:x}")]),
        "",
        COMMAND_LIMIT,
    );
    assert!(output.contains("Leadership transferred from"), "{output}");
    assert_eq!(cluster.leader().await, target);
    // A follower is asked: it is not the leader.
    let follower = cluster.members[leader].endpoint();
    let output = run(
        etcdctl(&follower, &["move-leader", &format!("{id:x}")]),
        "",
        COMMAND_LIMIT,
    );
    assert!(output.contains("no leader endpoint given"), "{output}");

    let output = run(
        etcdctl(&endpoints, &["endpoint", "health"]),
        "",
        COMMAND_LIMIT,
    );
    assert_eq!(output.matches("is healthy").count(), 3, "{output}");
    let output = run(
        etcdctl(&follower, &["endpoint", "status", "--cluster"]),
        "",
        COMMAND_LIMIT,
    );
    assert_eq!(
        output.lines().filter(|line| line.contains("3.7.3")).count(),
        3,
        "{output}"
    );
    assert_eq!(
        output.matches(", true, false,").count(),
        1,
        "one leader: {output}"
    );
    run(etcdctl(&endpoints, &["put", "a", "1"]), "", COMMAND_LIMIT);
    cluster.assert_equal_hashes().await;
    let output = run(
        etcdctl(&follower, &["endpoint", "hashkv", "--cluster"]),
        "",
        COMMAND_LIMIT,
    );
    let mut hashes: Vec<_> = output
        .lines()
        .filter_map(|line| line.split(", ").nth(1))
        .map(str::to_owned)
        .collect();
    hashes.dedup();
    assert_eq!(hashes.len(), 1, "{output}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_changes_the_members() {
    let mut cluster = Cluster::start(subject(), 1).await;
    let endpoint = cluster.members[0].endpoint();
    let (_, id) = cluster.add_member(true).await;
    let hex = format!("{id:x}");
    let output = run(etcdctl(&endpoint, &["member", "list"]), "", COMMAND_LIMIT);
    assert_eq!(
        output.lines().filter(|line| line.ends_with("true")).count(),
        1,
        "{output}"
    );
    eventually(
        "the learner is promoted",
        Duration::from_secs(30),
        || async {
            let output = run(
                etcdctl(&endpoint, &["member", "promote", &hex]),
                "",
                COMMAND_LIMIT,
            );
            if output.contains("promoted in cluster") {
                Ok(())
            } else {
                Err(output)
            }
        },
    )
    .await;
    eventually("the member is removed", Duration::from_secs(30), || async {
        let output = run(
            etcdctl(&endpoint, &["member", "remove", &hex]),
            "",
            COMMAND_LIMIT,
        );
        if output.contains("removed from cluster") {
            Ok(())
        } else {
            Err(output)
        }
    })
    .await;
    cluster.members[1]
        .wait_for_exit("it was removed", Duration::from_secs(30))
        .await;
    let output = run(etcdctl(&endpoint, &["put", "a", "1"]), "", COMMAND_LIMIT);
    assert!(output.starts_with("OK"), "{output}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_check_perf_passes_its_throughput() {
    let member = Member::start(subject()).await;
    let endpoint = member.endpoint();
    // It runs for a minute.
    let output = tokio::task::spawn_blocking(move || {
        run(
            etcdctl(&endpoint, &["check", "perf", "--load=s"]),
            "",
            Duration::from_secs(120),
        )
    })
    .await
    .unwrap();
    // Its latency limits mean nothing while other tests use the same two cores.
    assert!(output.contains("PASS: Throughput is"), "{output}");
}

/// Runs a command of the Go program. `meanwhile` runs after it printed READY.
async fn go(endpoints: &str, command: &str, time: Duration, meanwhile: impl AsyncFnOnce()) {
    let mut program = Command::new(tool("clientv3-check"));
    program
        .args([
            "-endpoints",
            endpoints,
            "-duration",
            &format!("{}s", time.as_secs()),
            command,
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = program.spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut err = child.stderr.take().unwrap();
    if time > Duration::ZERO {
        let mut line = String::new();
        out = tokio::task::spawn_blocking(move || {
            out.read_line(&mut line).unwrap();
            out
        })
        .await
        .unwrap();
        meanwhile().await;
    }
    let command = command.to_owned();
    let result = tokio::task::spawn_blocking(move || {
        let status = wait(&mut child, GO_LIMIT + time);
        let mut text = String::new();
        let _ = out.read_to_string(&mut text);
        let _ = err.read_to_string(&mut text);
        (status, text)
    })
    .await
    .unwrap();
    assert!(
        result.0.ends_with(": 0"),
        "clientv3-check {command}: {}: {}",
        result.0,
        result.1
    );
    eprintln!("{}", result.1.trim());
}

const GO_COMMANDS: &[&str] = &[
    "kv", "txn", "lease", "session", "mutex", "election", "stm", "recipes", "members", "naming",
    "wire",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clientv3_works_against_one_member() {
    for engine in ["rocksdb", "memory"] {
        let mut builder = MemberBuilder::new(subject());
        if subject() == Program::MetaStore {
            builder = builder.flag(format!("--engine={engine}"));
        }
        let mut member = builder.start().await;
        let endpoint = member.endpoint();
        for command in GO_COMMANDS {
            go(&endpoint, command, Duration::ZERO, async || {}).await;
        }
        for command in ["watch", "keepalive"] {
            go(&endpoint, command, Duration::from_secs(8), async || {
                for _ in 0..2 {
                    member.kill();
                    member.restart().await;
                    member.answers().await;
                }
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clientv3_works_against_three_members() {
    let mut cluster = Cluster::start(subject(), 3).await;
    let endpoints = cluster.endpoints().join(",");
    for command in GO_COMMANDS {
        go(&endpoints, command, Duration::ZERO, async || {}).await;
    }
    for command in ["watch", "keepalive"] {
        go(&endpoints, command, Duration::from_secs(15), async || {
            for _ in 0..3 {
                let leader = cluster.leader().await;
                cluster.members[leader].kill();
                cluster.members[leader].restart().await;
                cluster.members[leader].answers().await;
            }
        })
        .await;
    }
    cluster.assert_equal_hashes().await;
}

/// Clients of other languages as their registries have them, each with a program that uses every
/// service which the library offers (`tests/clients`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_other_languages_work() {
    let member = Member::start(subject()).await;
    let address = member.endpoint().replace("http://", "");
    let programs = [
        ("run-python", "smoke_aetcd.py"),
        ("run-python", "smoke_etcd3.py"),
        ("run-python", "smoke_etcd3gw.py"),
        ("run-python", "smoke_patroni.py"),
        ("run-node", "smoke.js"),
        ("run-java", "Smoke"),
    ];
    let mut failures = String::new();
    for (runner, program) in programs {
        let mut command = Command::new(client_runner(runner));
        command.args([program, &address]);
        let output = tokio::task::spawn_blocking(move || run(command, "", GO_LIMIT))
            .await
            .unwrap();
        if !output.starts_with("ok\n") {
            let _ = writeln!(failures, "{runner} {program}: {output}");
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

/// The programs of `examples/` that a shell does not run; the others are run beside the gateway's tests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_examples_in_other_languages_run_as_written() {
    let member = Member::start(subject()).await;
    let python = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../examples/python/first_steps.py"
    );
    let mut failures = String::new();
    for (program, arguments) in [
        (tool("go-example"), &[][..]),
        (client_runner("run-python"), &[python]),
        (client_runner("rust-example"), &[]),
    ] {
        let mut command = Command::new(&program);
        command
            .args(arguments)
            .env("ETCDCTL_ENDPOINTS", member.endpoint());
        let output = tokio::task::spawn_blocking(move || run(command, "", GO_LIMIT))
            .await
            .unwrap();
        if !output.ends_with("[exit status: 0]") {
            let _ = writeln!(failures, "{}: {output}", program.display());
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clientv3_logs_in_and_stays_logged_in() {
    for size in [1, 3] {
        let mut cluster = Cluster::start_with(subject(), size, &["--bcrypt-cost=4"]).await;
        let endpoints = cluster.endpoints().join(",");
        go(&endpoints, "auth", Duration::ZERO, async || {}).await;
        // A member that restarts has forgotten its tokens.
        go(&endpoints, "relogin", Duration::from_secs(8), async || {
            for member in &mut cluster.members {
                member.kill();
                member.restart().await;
            }
        })
        .await;
    }
}

/// Tokens of passwords and JSON web tokens end while the client works; it logs in again by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clientv3_outlives_its_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "secret").unwrap();
    let jwt = format!(
        "--auth-token=jwt,sign-method=HS256,priv-key={},ttl=2s",
        secret.display()
    );
    for flag in ["--auth-token-ttl=1", &jwt] {
        let flags = ["--bcrypt-cost=4", flag];
        let cluster = Cluster::start_with(subject(), 1, &flags).await;
        let endpoints = cluster.endpoints().join(",");
        go(&endpoints, "expiry", Duration::ZERO, async || {}).await;
    }
}
