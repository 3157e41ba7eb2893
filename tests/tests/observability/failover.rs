//! metastorectl with several endpoints, of which some are lost while a command runs; and what shells make
//! of its completion scripts.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use metastore_tests::programs::metastorectl;
use metastore_tests::{Cluster, Member, Program, eventually};

/// Longest wait for what takes a member moments.
const LIMIT: Duration = Duration::from_secs(30);

/// A command that runs on while something happens.
struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Running {
    fn start(endpoints: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(metastorectl())
            .arg(format!("--endpoints={endpoints}"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        let out: BufReader<ChildStdout> = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// The next line of its output.
    async fn line(&mut self) -> String {
        eventually("the command says something", LIMIT, || async {
            self.lines.try_recv().map_err(|error| error.to_string())
        })
        .await
    }

    fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The endpoints with this member's first: that is where commands go.
fn beginning_with(cluster: &Cluster, first: usize) -> String {
    let all = cluster.endpoints();
    let others = (0..all.len()).filter(|member| *member != first);
    let mut endpoints = vec![all[first].clone()];
    endpoints.extend(others.map(|member| all[member].clone()));
    endpoints.join(",")
}

async fn put(member: &Member, key: &'static str, value: &'static str) {
    let client = member.client();
    eventually("a put is answered", LIMIT, || {
        let client = client.clone();
        async move {
            let put = client.put(key, value).await;
            put.map_err(|status| status.to_string())
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_go_on_at_another_member() {
    let mut cluster = Cluster::start(Program::MetaStore, 3).await;
    let leader = cluster.leader().await;
    let lost = (leader + 1) % 3;
    let endpoints = beginning_with(&cluster, lost);
    let mirror = Member::start(Program::MetaStore).await;
    let mut watch = Running::start(&endpoints, &["watch", "a"]);
    let mut lock = Running::start(&endpoints, &["lock", "name", "--ttl=5"]);
    let held = lock.line().await;
    assert!(held.starts_with("name/"), "{held}");
    let destination = mirror.endpoint();
    let mut mirroring = Running::start(&endpoints, &["make-mirror", &destination]);
    // The watch was created when its first event is there.
    let mut number = 0;
    let seen = loop {
        number += 1;
        put(&cluster.members[leader], "a", "before").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        if let Ok(line) = watch.lines.try_recv() {
            break line;
        }
        assert!(number < 300, "the watch sees nothing");
    };
    assert_eq!(seen, "PUT");
    cluster.members[lost].kill();
    put(&cluster.members[leader], "a", "meanwhile").await;
    // Nothing is missed: the lines end with the value that was put while the member was away.
    loop {
        let line = watch.line().await;
        if line == "meanwhile" {
            break;
        }
    }
    let copy = mirror.client();
    eventually("the mirror has followed", LIMIT, || {
        let copy = copy.clone();
        async move {
            match copy.get("a").await {
                Ok((Some(pair), _)) if pair.value == "meanwhile" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        }
    })
    .await;
    // Longer than the lease of the lock: it was renewed at another member.
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert!(lock.is_running(), "the lock is lost");
    let (key, _) = cluster.members[leader].client().get(held).await.unwrap();
    assert!(key.is_some(), "the key of the lock is gone");
    assert!(watch.is_running() && mirroring.is_running());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_is_asked_again_while_members_restart() {
    let mut cluster = Cluster::start(Program::MetaStore, 3).await;
    put(&cluster.members[0], "a", "1").await;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|first| {
            let endpoints = beginning_with(&cluster, first);
            let stop = std::sync::Arc::clone(&stop);
            std::thread::spawn(move || {
                let mut count = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let output = Command::new(metastorectl())
                        .arg(format!("--endpoints={endpoints}"))
                        .args(["--command-timeout=20s", "get", "a", "--print-value-only"])
                        .output()
                        .unwrap();
                    let said = String::from_utf8_lossy(&output.stdout).into_owned();
                    let problem = String::from_utf8_lossy(&output.stderr).into_owned();
                    assert_eq!(said, "1\n", "{problem}");
                    count += 1;
                }
                count
            })
        })
        .collect();
    for member in 0..3 {
        cluster.members[member].kill();
        cluster.members[member].restart().await;
        cluster.members[member].answers().await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for reader in readers {
        assert!(reader.join().unwrap() > 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_reason_is_told_when_no_member_answers() {
    let output = Command::new(metastorectl())
        .args(["--endpoints=127.0.0.1:1,127.0.0.1:2", "get", "a"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("cannot connect to 127.0.0.1:2: "), "{said}");
    let output = Command::new(metastorectl())
        .args(["--endpoints=nonsense", "get", "a"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(128));
}

/// What bash offers behind these words.
fn bash_offers(words: &[&str]) -> String {
    let script = Command::new(metastorectl())
        .args(["completion", "bash"])
        .output()
        .unwrap();
    let mut asking = String::from_utf8(script.stdout).unwrap();
    let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    asking += &format!(
        "COMP_WORDS=({}); COMP_CWORD={}; _metastorectl; echo \"${{COMPREPLY[@]}}\"\n",
        quoted.join(" "),
        words.len() - 1
    );
    let output = Command::new("bash").args(["-c", &asking]).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn bash_completes_commands_and_flags() {
    assert_eq!(bash_offers(&["metastorectl", "snap"]), "snapshot");
    assert_eq!(bash_offers(&["metastorectl", "lease", "g"]), "grant");
    assert_eq!(
        bash_offers(&["metastorectl", "--hex", "get", "--print-v"]),
        "--print-value-only"
    );
    assert_eq!(bash_offers(&["metastorectl", "user", "re"]), "revoke-role");
    assert_eq!(bash_offers(&["metastorectl", "nonsense", "x"]), "");
}

/// The other shells read their scripts where they are installed; everywhere they name every command.
#[test]
fn every_shell_has_a_script_with_every_command() {
    for (shell, check) in [
        ("bash", Some(("bash", "-n"))),
        ("zsh", Some(("zsh", "-n"))),
        ("fish", Some(("fish", "--no-execute"))),
        ("powershell", None),
    ] {
        let output = Command::new(metastorectl())
            .args(["completion", shell])
            .output()
            .unwrap();
        assert!(output.status.success(), "{shell}");
        let script = String::from_utf8(output.stdout).unwrap();
        for word in ["snapshot", "grant-permission", "make-mirror", "prev-kv"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &script).unwrap();
        let Some((program, flag)) = check else {
            continue;
        };
        match Command::new(program).arg(flag).arg(file.path()).output() {
            Ok(output) => assert!(
                output.status.success(),
                "{shell}: {}",
                String::from_utf8_lossy(&output.stderr)
            ),
            Err(_) => eprintln!("not read by {program}, which is not installed"),
        }
    }
    let output = Command::new(metastorectl())
        .args(["completion", "tcsh"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
}
