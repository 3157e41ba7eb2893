//! metastorectl beside etcdctl: the same commands on two equal etcds, the same output and exit code.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use metastore_proto::etcdserverpb as pb;
use metastore_tests::programs::{metastorectl, tool};
use metastore_tests::{Member, Program, deadline, eventually};
use prost::Message;

/// A command takes milliseconds; the rest is for a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Command lines and what stands in the standard input. `{lease}` is the last lease that was granted,
/// `{member}` the member's id, `{folder}` an empty folder, `{space}` a space inside of an argument.
const COMMANDS: &[(&str, &str)] = &[
    ("version", ""),
    ("put greeting hello", ""),
    ("put greeting bye --prev-kv", ""),
    ("put greeting --prev-kv -w json", "from the input"),
    ("put greeting -w fields next", ""),
    ("put --ignore-value greeting x", ""),
    ("put --ignore-value greeting", ""),
    ("put --ignore-value missing", ""),
    ("put", ""),
    ("put greeting --lease=zz x", ""),
    ("put greeting --lease=123 x", ""),
    ("put quoted a\"<b>&\\n{space}é", ""),
    ("put p/1 1", ""),
    ("put p/2 2", ""),
    ("put p/3 3", ""),
    ("get greeting", ""),
    ("get greeting --print-value-only", ""),
    ("get greeting --hex", ""),
    ("get quoted -w json", ""),
    ("get quoted -w fields", ""),
    ("get quoted -w fields --hex", ""),
    ("get greeting -w protobuf", ""),
    ("get greeting -w table", ""),
    ("get greeting -w nonsense", ""),
    ("get p/ --prefix", ""),
    ("get p/ --prefix --keys-only", ""),
    ("get p/ --prefix --limit 2 -w json", ""),
    ("get p/ --prefix --limit=2 -wjson", ""),
    ("get p/ --prefix --count-only", ""),
    ("get p/ --prefix --count-only -w fields", ""),
    ("get p/ --prefix --order=DESCEND", ""),
    ("get p/ --prefix --sort-by=VALUE --order=DESCEND", ""),
    ("get p/ --prefix --sort-by=nonsense", ""),
    ("get p/ --prefix --order=nonsense", ""),
    ("get p/2 --from-key", ""),
    ("get p/1 p/3", ""),
    ("get p/1 p/3 --prefix", ""),
    ("get --prefix {empty}", ""),
    ("get p/1 --from-key --prefix", ""),
    ("get p/1 --keys-only --count-only", ""),
    ("get p/1 --consistency=s", ""),
    ("get p/1 --consistency=x", ""),
    ("get p/1 --rev=3", ""),
    ("get p/1 --rev=1000", ""),
    ("get p/ --prefix --min-mod-rev=7", ""),
    ("get p/ --prefix --min-mod-rev=9 --max-mod-rev=8", ""),
    ("get p/ --prefix --stream", ""),
    ("get p/ --prefix --stream -w json", ""),
    ("get", ""),
    ("get p/1 --nonsense", ""),
    (
        "txn",
        "mod(\"p/1\") > \"0\"\n\nput p/1 \"over wrote\"\nget p/1\n\nput p/1 no\n\n",
    ),
    (
        "txn -w json",
        "ver(\"p/2\") = \"9\"\nval(\"p/2\") != \"2\"\n\nput p/2 no\n\ndel p/2 --prev-kv\nget p/ --prefix\n\n",
    ),
    ("txn -w fields", "\nput p/4 4\nget p/4\ndel p/4\n\n\n"),
    ("txn -i", "create(\"none\") = \"0\"\n\nput p/5 5\n\n\n"),
    ("txn", "nonsense\n\n\n\n"),
    ("txn", "mod(\"a\") > \"x\"\n\n\n\n"),
    ("txn", "\nnonsense a\n\n\n"),
    ("txn", "mod(\"p/1\") > \"0\"\n"),
    ("txn extra", ""),
    ("del p/5", ""),
    ("del p/5 -w json", ""),
    ("del p/1 --prev-kv", ""),
    ("del p/1 p/3 --range --prev-kv -w fields", ""),
    ("del --prefix p/ -w json --prev-kv", ""),
    ("del a b c", ""),
    ("del", ""),
    ("compaction 5", ""),
    ("compaction 5", ""),
    ("compaction 6 --physical", ""),
    ("compaction x", ""),
    ("compaction", ""),
    ("lease grant 1000", ""),
    ("lease grant x", ""),
    ("lease grant", ""),
    ("put leased 1 --lease={lease}", ""),
    ("get leased -w fields", ""),
    ("get leased -w json", ""),
    ("lease timetolive {lease} --keys", ""),
    ("lease timetolive {lease} -w fields --keys", ""),
    ("lease timetolive {lease} -w json --keys", ""),
    ("lease timetolive {lease} -w json", ""),
    ("lease timetolive 123", ""),
    ("lease timetolive zz", ""),
    ("lease list", ""),
    ("lease list -w json", ""),
    ("lease list -w fields", ""),
    ("lease list -w fields --hex", ""),
    ("lease list -w table", ""),
    ("lease list -w protobuf", ""),
    ("lease keep-alive {lease} --once", ""),
    ("lease keep-alive {lease} --once -w json", ""),
    ("lease keep-alive {lease} --once -w fields", ""),
    ("lease keep-alive 123 --once", ""),
    ("lease keep-alive 123", ""),
    ("lease revoke {lease}", ""),
    ("lease revoke {lease}", ""),
    ("lease revoke", ""),
    ("lease grant 60 -w json", ""),
    ("lease grant 60 -w fields", ""),
    ("member list", ""),
    ("member list -w json", ""),
    ("member list -w json --hex", ""),
    ("member list -w fields", ""),
    ("member list -w fields --hex", ""),
    ("member list -w table", ""),
    ("member list -w protobuf", ""),
    ("member list --consistency=s", ""),
    ("member add", ""),
    ("member add x", ""),
    ("member add x y", ""),
    ("member remove nonsense", ""),
    ("member remove 1", ""),
    ("member remove", ""),
    ("member promote 1", ""),
    ("member update 1 --peer-urls=http://127.0.0.1:1", ""),
    ("member update {member} --peer-urls=http://127.0.0.1:1", ""),
    (
        "member update {member} --peer-urls=http://127.0.0.1:2 -w json",
        "",
    ),
    (
        "member update {member} --peer-urls=http://127.0.0.1:4 -w protobuf",
        "",
    ),
    ("member list -w protobuf --hex", ""),
    ("member update {member}", ""),
    (
        "member add learning --learner --peer-urls=http://127.0.0.1:3",
        "",
    ),
    ("endpoint health", ""),
    ("endpoint health -w json", ""),
    ("endpoint health -w fields", ""),
    ("endpoint status", ""),
    ("endpoint status -w json", ""),
    ("endpoint status -w fields", ""),
    ("endpoint status -w table", ""),
    ("endpoint status -w protobuf", ""),
    ("endpoint hashkv", ""),
    ("endpoint hashkv -w json", ""),
    ("endpoint hashkv -w fields", ""),
    ("endpoint hashkv -w table", ""),
    ("endpoint hashkv --rev=8", ""),
    ("endpoint hashkv --rev=1000", ""),
    ("endpoint --cluster hashkv", ""),
    ("alarm list", ""),
    ("alarm list -w json", ""),
    ("alarm list -w fields", ""),
    ("alarm disarm", ""),
    ("alarm list extra", ""),
    ("move-leader {member}", ""),
    ("move-leader {member} -w json", ""),
    ("move-leader 1", ""),
    ("move-leader x", ""),
    ("move-leader", ""),
    ("downgrade validate 3.6", ""),
    ("downgrade validate 3.6 -w json", ""),
    ("downgrade validate 2.0", ""),
    ("downgrade validate", ""),
    ("downgrade cancel", ""),
    ("snapshot save {folder}/snapshot", ""),
    ("snapshot save", ""),
    ("snapshot save /nonexistent/folder/snapshot", ""),
    ("lock name echo held", ""),
    ("lock name false", ""),
    ("lock", ""),
    ("elect name", ""),
    ("elect", ""),
    ("elect -l name proposal", ""),
    ("make-mirror", ""),
    (
        "make-mirror --no-dest-prefix --dest-prefix=x 127.0.0.1:1",
        "",
    ),
    ("check perf --load=nonsense", ""),
    ("watch", ""),
    ("watch foo --", ""),
    ("watch foo bar --prefix", ""),
    ("watch -i", "watch foo --rev 8 nonsense --nonsense\n"),
    ("watch greeting --rev=3", ""),
    ("role add reader", ""),
    ("role add reader", ""),
    ("role add writer -w json", ""),
    ("role grant-permission reader read foo", ""),
    ("role grant-permission reader readwrite bar baz", ""),
    ("role grant-permission reader write pre --prefix", ""),
    (
        "role grant-permission reader read from --from-key -w json",
        "",
    ),
    ("role grant-permission reader read {empty} --prefix", ""),
    ("role grant-permission reader nonsense foo", ""),
    ("role grant-permission reader read", ""),
    ("role get reader", ""),
    ("role get reader -w json", ""),
    ("role get reader -w fields", ""),
    ("role get missing", ""),
    ("role list", ""),
    ("role list -w json", ""),
    ("role list -w fields", ""),
    ("role revoke-permission reader foo", ""),
    ("role revoke-permission reader bar baz", ""),
    ("role revoke-permission reader from --from-key", ""),
    ("role revoke-permission reader missing", ""),
    ("user add alice:secret", ""),
    ("user add bob --new-user-password=secret", ""),
    ("user add carol --no-password -w json", ""),
    ("user add dave --interactive=false", "secret\n"),
    ("user add :secret", ""),
    ("user add alice:secret", ""),
    ("user add", ""),
    ("user passwd dave --interactive=false", "other\n"),
    ("user passwd missing --interactive=false", "other\n"),
    ("user grant-role alice reader", ""),
    ("user grant-role alice missing", ""),
    ("user grant-role alice", ""),
    ("user get alice", ""),
    ("user get alice -w json", ""),
    ("user get alice --detail", ""),
    ("user get missing", ""),
    ("user list", ""),
    ("user list -w json", ""),
    ("user list -w fields", ""),
    ("user revoke-role alice reader", ""),
    ("user revoke-role alice reader", ""),
    ("user delete bob", ""),
    ("user delete missing", ""),
    ("role delete writer", ""),
    ("auth status", ""),
    ("auth status -w json", ""),
    ("auth enable", ""),
    ("user add root:secret", ""),
    ("auth enable", ""),
    ("get greeting", ""),
    ("get greeting --user=root:secret", ""),
    ("get greeting --user=root --password=secret", ""),
    ("get greeting --user=root:wrong", ""),
    ("endpoint health --user=alice:secret", ""),
    ("role get root --user=root:secret", ""),
    ("auth status --user=root:secret", ""),
    ("auth disable --user=root:secret", ""),
    ("auth disable", ""),
    ("unknown-command", ""),
    // Bytes of messages.
    ("put pb 1 -w protobuf", ""),
    ("put pb 2 --prev-kv -w protobuf", ""),
    ("put pb --ignore-value --ignore-lease -w protobuf", ""),
    ("get pb -w protobuf", ""),
    ("get pb --keys-only -w protobuf", ""),
    ("get pb --print-value-only -w protobuf", ""),
    ("get {empty} --prefix --limit=2 -w protobuf", ""),
    ("get {empty} --prefix --count-only -w protobuf", ""),
    ("get {empty} --prefix --stream -w protobuf", ""),
    ("get missing -w protobuf", ""),
    (
        "txn -w protobuf",
        "mod(\"pb\") > \"0\"\n\nput pb 3\nget pb\ndel none\ndel pb/ --prefix\n\n\n",
    ),
    ("txn -w protobuf", "mod(\"pb\") < \"0\"\n\nput pb 3\n\n\n"),
    ("del pb --prev-kv -w protobuf", ""),
    ("del pb -w protobuf", ""),
    ("compaction 20 -w protobuf", ""),
    ("lease grant 1000", ""),
    ("lease grant 60 -w protobuf", ""),
    ("lease timetolive {lease} --keys -w protobuf", ""),
    ("lease keep-alive {lease} --once -w protobuf", ""),
    ("lease list -w protobuf", ""),
    ("lease revoke {lease} -w protobuf", ""),
    ("member remove 1 -w protobuf", ""),
    ("alarm list -w protobuf", ""),
    ("alarm disarm -w protobuf", ""),
    ("move-leader {member} -w protobuf", ""),
    ("downgrade validate 3.6 -w protobuf", ""),
    ("downgrade cancel -w protobuf", ""),
    ("endpoint health -w protobuf", ""),
    ("endpoint hashkv -w protobuf", ""),
    ("snapshot save {folder}/another -w protobuf", ""),
    ("defrag -w protobuf", ""),
    ("role add messages -w protobuf", ""),
    ("role grant-permission messages read a b -w protobuf", ""),
    ("role get messages -w protobuf", ""),
    ("role get missing -w protobuf", ""),
    ("role list -w protobuf", ""),
    ("user add messenger:secret -w protobuf", ""),
    ("user grant-role messenger messages -w protobuf", ""),
    ("user get messenger -w protobuf", ""),
    ("user list -w protobuf", ""),
    (
        "user passwd messenger --interactive=false -w protobuf",
        "x\n",
    ),
    ("user revoke-role messenger messages -w protobuf", ""),
    ("user delete messenger -w protobuf", ""),
    ("role revoke-permission messages a b -w protobuf", ""),
    ("role delete messages -w protobuf", ""),
    ("auth status -w protobuf", ""),
];

/// One client at one store, and what differs between the stores.
struct Control {
    program: PathBuf,
    endpoint: String,
    folder: tempfile::TempDir,
    member: u64,
    cluster: u64,
    lease: String,
}

impl Control {
    async fn new(program: PathBuf, member: &Member) -> Self {
        let status = member.client().status().await.unwrap();
        let header = status.header.unwrap();
        Self {
            program,
            endpoint: member.address(),
            folder: tempfile::tempdir().unwrap(),
            member: header.member_id,
            cluster: header.cluster_id,
            lease: "0".into(),
        }
    }

    /// What a command shows and how it ends, with everything replaced that cannot be equal.
    fn run(&mut self, line: &str, input: &str) -> String {
        let folder = self.folder.path().display().to_string();
        let arguments = line.split(' ').map(|argument| {
            argument
                .replace("{lease}", &self.lease)
                .replace("{member}", &format!("{:x}", self.member))
                .replace("{folder}", &folder)
                .replace("{empty}", "")
                .replace("{space}", " ")
        });
        let mut child = Command::new(&self.program)
            .env("ETCDCTL_ENDPOINTS", &self.endpoint)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A command that reads nothing may have closed it.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        let output = wait(child);
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if line.starts_with("lease grant 1000")
            && let Some(id) = stdout.split(' ').nth(1)
        {
            self.lease = id.to_owned();
        }
        let code = output
            .status
            .code()
            .map_or("signal".into(), |code| code.to_string());
        let shown = match line.contains("-w protobuf") {
            true => self.message(line, &output.stdout, &folder),
            false => self.normalise(line, &stdout, &folder),
        };
        format!("{shown}exit code {code}\n")
    }

    /// An encoded answer: the revision of its header, and the other bytes with the ids and the address of
    /// the store replaced. What is no answer stays text.
    fn message(&self, line: &str, bytes: &[u8], folder: &str) -> String {
        let header = match bytes {
            [0x0a, length, rest @ ..] if rest.len() >= usize::from(*length) => {
                pb::ResponseHeader::decode(&rest[..usize::from(*length)]).ok()
            }
            _ => None,
        };
        let Some(header) = header.filter(|header| header.member_id == self.member) else {
            // All that etcdctl encodes of some answers about leases.
            return match pb::ResponseHeader::decode(bytes) {
                Ok(header) if header.member_id == self.member => {
                    format!("the header of revision {}\n", header.revision)
                }
                _ => self.normalise(line, &String::from_utf8_lossy(bytes), folder),
            };
        };
        assert_eq!(header.cluster_id, self.cluster);
        // Lengths depend on ids and ports. Lists and updates of members have the same form.
        if line.starts_with("member") {
            let decoded = pb::MemberListResponse::decode(bytes).unwrap();
            return self.normalise(line, &format!("{decoded:?}\n"), folder);
        }
        let mut rest = hex(&bytes[2 + usize::from(bytes[1])..]);
        let lease = u64::from_str_radix(&self.lease, 16).unwrap_or(0);
        for (id, name) in [(self.member, "<member>"), (lease, "<lease>")] {
            let mut encoded = Vec::new();
            prost::encoding::encode_varint(id, &mut encoded);
            if id != 0 {
                rest = rest.replace(&hex(&encoded), name);
            }
        }
        rest = rest.replace(&hex(self.endpoint.as_bytes()), "<endpoint>");
        format!("revision {} {rest}\n", header.revision)
    }

    fn normalise(&self, line: &str, stdout: &str, folder: &str) -> String {
        let lease = i64::from_str_radix(&self.lease, 16).unwrap_or(0);
        let mut text = stdout
            .replace(&format!("{:x}", self.member), "<member>")
            .replace(&self.member.to_string(), "<member>")
            .replace(&format!("{:x}", self.cluster), "<cluster>")
            .replace(&self.cluster.to_string(), "<cluster>")
            .replace(&self.endpoint, "<endpoint>")
            .replace(folder, "<folder>");
        if lease != 0 {
            text = text
                .replace(&self.lease, "<lease>")
                .replace(&lease.to_string(), "<lease>");
        }
        // Random ids, times and what depends on the length of an id or of a port.
        let shapes_only = [
            "lease grant 60",
            "lock name echo",
            "member add learning",
            "member update",
            "hashkv",
        ];
        if shapes_only.iter().any(|shape| line.contains(shape)) {
            return text
                .split_inclusive('\n')
                .map(|part| shape(&in_order_of_names(part)))
                .collect();
        }
        let fleeting = [
            "took", "Took", "dbSize", "DBSize", "peerURLs", "PeerURL", "-w table",
        ];
        text.split_inclusive('\n')
            .map(|part| {
                let is_fleeting = fleeting
                    .iter()
                    .any(|word| part.contains(word) || line.contains(word));
                if is_fleeting
                    || line.starts_with("endpoint status")
                    || line.starts_with("member list")
                {
                    shape(part)
                } else {
                    part.to_owned()
                }
            })
            .collect()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The members of a line `ETCD_INITIAL_CLUSTER="a=http://…,b=http://…"` by name: they come in the order
/// of their ids, and the id of a new one depends on the time.
fn in_order_of_names(line: &str) -> String {
    let cluster = line
        .strip_prefix("ETCD_INITIAL_CLUSTER=\"")
        .and_then(|rest| rest.strip_suffix("\"\n"));
    let Some(cluster) = cluster else {
        return line.to_owned();
    };
    let mut members: Vec<_> = cluster.split(',').collect();
    members.sort_unstable();
    format!("ETCD_INITIAL_CLUSTER=\"{}\"\n", members.join(","))
}

/// The text with its numbers and blanks as one character each: ids, times and sizes differ.
fn shape(text: &str) -> String {
    let mut shape = String::new();
    for character in text.chars() {
        let kept = match character {
            '0'..='9' | 'a'..='f' | '.' => '#',
            'µ' | 'm' | 's' | 'n' if shape.ends_with('#') => continue,
            ' ' | '─' => character,
            other => other,
        };
        if ['#', ' ', '─'].contains(&kept) && shape.ends_with(kept) {
            continue;
        }
        shape.push(kept);
    }
    shape
}

fn wait(mut child: std::process::Child) -> std::process::Output {
    let start = std::time::Instant::now();
    loop {
        if child.try_wait().unwrap().is_some() {
            return child.wait_with_output().unwrap();
        }
        if start.elapsed() > deadline(LIMIT) {
            child.kill().unwrap();
            return child.wait_with_output().unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metastorectl_shows_what_etcdctl_shows() {
    // Commands that etcdctl ends by a panic of its own or by texts of Go's parser are not compared;
    // these say something of the program itself.
    let own = BTreeMap::from([("version", "a third line"), ("unknown-command", "a hint")]);
    let members = [
        Member::start(Program::Etcd).await,
        Member::start(Program::Etcd).await,
    ];
    let mut wanted = Control::new(tool("etcdctl"), &members[0]).await;
    let mut got = Control::new(metastorectl(), &members[1]).await;
    let mut report = String::new();
    for (line, input) in COMMANDS {
        let (wanted, mut got) = (wanted.run(line, input), got.run(line, input));
        if own.contains_key(line) {
            got = got
                .lines()
                .filter(|line| !line.starts_with("metastorectl"))
                .map(|line| format!("{line}\n"))
                .collect();
        }
        if wanted != got {
            let _ = writeln!(
                report,
                "\n== {line}\netcdctl:      {wanted}\nmetastorectl: {got}"
            );
        }
    }
    assert!(report.is_empty(), "{report}");
}

/// Variables and arguments. `{store}` is the address of the store.
const ENVIRONMENTS: &[(&[(&str, &str)], &str)] = &[
    (&[("ETCDCTL_ENDPOINTS", "{store}")], "get key"),
    (&[("ETCDCTL_ENDPOINTS", "http://{store}")], "get key"),
    (&[("ETCDCTL_ENDPOINTS", "127.0.0.1:1,{store}")], "get key"),
    (
        &[("ETCDCTL_ENDPOINTS", "127.0.0.1:1")],
        "--endpoints={store} get key",
    ),
    (&[("ETCDCTL_ENDPOINTS", "")], "--endpoints={store} get key"),
    (
        &[("ETCDCTL_ENDPOINTS", "127.0.0.1:1")],
        "--endpoints={store} endpoint health",
    ),
    (
        &[("ETCDCTL_WRITE_OUT", "json")],
        "--endpoints={store} get key --write-out=fields",
    ),
    (&[("ETCDCTL_WRITE_OUT", "json")], "version -w fields"),
    (
        &[("ETCDCTL_WRITE_OUT", "json")],
        "--endpoints={store} get key",
    ),
    (
        &[("ETCDCTL_WRITE_OUT", "nonsense")],
        "--endpoints={store} get key",
    ),
    (&[("ETCDCTL_HEX", "true")], "--endpoints={store} get key"),
    (&[("ETCDCTL_API", "3")], "--endpoints={store} get key"),
    (&[("ETCDCTL_API", "2")], "--endpoints={store} get key"),
    (&[("ETCDCTL_NO_SUCH", "x")], "--endpoints={store} get key"),
    (&[("ETCDCTL_USER", "a:b")], "--endpoints={store} get key"),
    (
        &[("ETCDCTL_USER", "a"), ("ETCDCTL_PASSWORD", "b")],
        "--endpoints={store} get key",
    ),
    (&[("ETCDCTL_PASSWORD", "b")], "--endpoints={store} get key"),
    (
        &[("ETCDCTL_USER", "a:b")],
        "--endpoints={store} --user=c:d get key",
    ),
    (
        &[("ETCDCTL_COMMAND_TIMEOUT", "20s")],
        "--endpoints={store} get key",
    ),
    (&[("ETCDCTL_DEBUG", "false")], "--endpoints={store} get key"),
    (
        &[("ETCDCTL_CACERT", "/none")],
        "--endpoints=https://{store} get key",
    ),
    (
        &[("ETCDCTL_INSECURE_TRANSPORT", "true")],
        "--endpoints={store} get key",
    ),
    (&[("ETCDCTL_PREFIX", "true")], "--endpoints={store} get ke"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn variables_count_as_for_etcdctl() {
    let member = Member::start(Program::Etcd).await;
    member.client().put("key", "value").await.unwrap();
    let mut report = String::new();
    for (variables, line) in ENVIRONMENTS {
        let [wanted, got] = [tool("etcdctl"), metastorectl()].map(|program| {
            let filled = |text: &str| text.replace("{store}", &member.address());
            let child = Command::new(program)
                .envs(variables.iter().map(|(name, value)| (name, filled(value))))
                .args(line.split(' ').map(filled))
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let output = wait(child);
            let shown = String::from_utf8_lossy(&output.stdout);
            // A line of our own, and times.
            let shown: String = shown
                .lines()
                .filter(|line| !line.starts_with("metastorectl"))
                .map(|line| line.split("took").next().unwrap_or_default())
                .collect();
            format!("{:?} {shown}", output.status.code())
        });
        if wanted != got {
            let _ = writeln!(
                report,
                "\n== {variables:?} {line}\netcdctl: {wanted}\nours: {got}"
            );
        }
    }
    assert!(report.is_empty(), "{report}");
}

/// What a program that watches `key` from revision 1 on writes as the message of that revision's event.
fn watched_message(program: &Path, endpoint: &str, key: &str) -> Vec<u8> {
    let mut child = Command::new(program)
        .args([
            "--endpoints",
            endpoint,
            "watch",
            key,
            "--rev=1",
            "-w",
            "protobuf",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    let (sender, pieces) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut piece = [0; 1024];
        while let Ok(length @ 1..) = out.read(&mut piece) {
            if sender.send(piece[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    let mut message = Vec::new();
    loop {
        message.extend(pieces.recv_timeout(deadline(LIMIT)).expect("the event"));
        let decoded = pb::WatchResponse::decode(&message[..]);
        if decoded.is_ok_and(|answer| !answer.events.is_empty()) {
            break;
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    message
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metastorectl_writes_the_messages_of_watches_that_etcdctl_writes() {
    let member = Member::start(Program::Etcd).await;
    member.client().put("watched", "value").await.unwrap();
    let [wanted, got] = [tool("etcdctl"), metastorectl()]
        .map(|program| watched_message(&program, &member.address(), "watched"));
    assert_eq!(hex(&got), hex(&wanted));
}

/// A running client whose lines are collected.
struct Running {
    child: std::process::Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Running {
    fn start(endpoint: &str, arguments: &[&str]) -> Self {
        use std::io::BufRead;
        let mut child = Command::new(metastorectl())
            .env("ETCDCTL_ENDPOINTS", endpoint)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let out = child.stdout.take().unwrap();
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in std::io::BufReader::new(out).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    fn line(&self) -> String {
        self.lines
            .recv_timeout(deadline(LIMIT))
            .expect("one more line in time")
    }

    fn interrupt(&self) {
        let id = i32::try_from(self.child.id()).unwrap();
        let id = rustix::process::Pid::from_raw(id).unwrap();
        rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metastorectl_watches_locks_elects_and_keeps_alive() {
    let member = Member::start(Program::MetaStore).await;
    let endpoint = member.address();
    let client = member.client();
    client.put("w/a", "1").await.unwrap();

    let watch = Running::start(
        &endpoint,
        &["watch", "--prefix", "w/", "--rev=1", "--prev-kv"],
    );
    assert_eq!(
        [watch.line(), watch.line(), watch.line()],
        ["PUT", "w/a", "1"]
    );
    let exec = Running::start(
        &endpoint,
        &[
            "watch",
            "w/a",
            "--",
            "sh",
            "-c",
            "echo run $ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_VALUE",
        ],
    );
    let mut interactive = Running::start(&endpoint, &["watch", "-i"]);
    let stdin = interactive.child.stdin.as_mut().unwrap();
    stdin.write_all(b"watch w/a --rev 2\n").unwrap();
    let lines: Vec<_> = (0..3).map(|_| interactive.line()).collect();
    assert_eq!(lines, ["PUT", "w/a", "1"]);
    // The watch without a revision may not have begun: written until it shows something.
    eventually("the command runs", LIMIT, || async {
        client
            .put("w/a", "2")
            .await
            .map_err(|error| error.to_string())?;
        let next = exec.lines.recv_timeout(Duration::from_millis(200));
        next.map(drop).map_err(|error| error.to_string())
    })
    .await;
    while exec.line() != "run \"PUT\" \"2\"" {}
    drop((watch, exec, interactive));

    let held = Running::start(&endpoint, &["lock", "door"]);
    assert!(held.line().starts_with("door/"));
    let waits = Running::start(&endpoint, &["lock", "door"]);
    let early = waits.lines.recv_timeout(Duration::from_millis(300));
    assert!(early.is_err(), "two hold one lock");
    held.interrupt();
    assert!(waits.line().starts_with("door/"));
    drop((held, waits));

    let first = Running::start(&endpoint, &["elect", "seat", "first"]);
    assert!(first.line().starts_with("seat/"));
    assert_eq!(first.line(), "first");
    let listens = Running::start(&endpoint, &["elect", "--listen", "seat"]);
    assert!(listens.line().starts_with("seat/"));
    assert_eq!(listens.line(), "first");
    let second = Running::start(&endpoint, &["elect", "seat", "second"]);
    first.interrupt();
    assert!(second.line().starts_with("seat/"));
    assert_eq!(second.line(), "second");
    assert!(listens.line().starts_with("seat/"));
    assert_eq!(listens.line(), "second");
    drop((first, second, listens));

    let granted = Running::start(&endpoint, &["lease", "grant", "3"]).line();
    let lease = granted.split_whitespace().nth(1).unwrap().to_owned();
    let alive = Running::start(&endpoint, &["lease", "keep-alive", &lease]);
    for _ in 0..4 {
        assert!(alive.line().contains("keepalived with TTL(3)"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metastorectl_mirrors_into_another_store() {
    let source = Member::start(Program::MetaStore).await;
    let target = Member::start(Program::MetaStore).await;
    for number in 0..30 {
        let key = format!("m/{number:02}");
        source.client().put(key, number.to_string()).await.unwrap();
    }
    let _mirror = Running::start(
        &source.address(),
        &[
            "make-mirror",
            "--prefix",
            "m/",
            "--dest-prefix",
            "copy/",
            &target.address(),
        ],
    );
    let wait_for = async |key: &'static str, value: &'static str| {
        let client = target.client();
        eventually("the mirror follows", LIMIT, || async {
            let (pair, _) = client.get(key).await.map_err(|error| error.to_string())?;
            match pair {
                Some(pair) if pair.value == value => Ok(()),
                other => Err(format!("{key}: {other:?}")),
            }
        })
        .await;
    };
    wait_for("copy/29", "29").await;
    source.client().put("m/00", "changed").await.unwrap();
    wait_for("copy/00", "changed").await;
}

/// What a program says of a command.
fn help(program: &Path, command: &[String]) -> String {
    let output = Command::new(program)
        .args(command)
        .arg("--help")
        .output()
        .unwrap();
    let all = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(all).unwrap();
    assert!(
        output.status.success(),
        "{} {command:?}: {text}",
        program.display()
    );
    text
}

/// The sub-commands that a help text of etcd's tools lists.
fn subcommands(help: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut is_list = false;
    for line in help.lines() {
        if line.ends_with(" commands") || line == "Available Commands:" {
            is_list = true;
        } else if line.is_empty() {
            is_list = false;
        } else if let (true, Some(name)) = (is_list, line.split_whitespace().next()) {
            found.push(name.to_owned());
        }
    }
    found
}

fn flags(help: &str) -> BTreeSet<&str> {
    help.split_whitespace()
        .filter_map(|word| word.strip_prefix("--"))
        .map(|word| {
            word.split(['=', ',', '.', '`', ')', '['])
                .next()
                .unwrap_or(word)
        })
        .filter(|name| name.starts_with(char::is_alphabetic))
        .collect()
}

/// Walks through the commands of etcd's tool and notes what ours does not have.
fn compare_commands(etcds: &Path, ours: &Path, command: &[String], missing: &mut Vec<String>) {
    let theirs = help(etcds, command);
    let inner: Vec<_> = subcommands(&theirs)
        .into_iter()
        // Commands of the library, and one that is another one in our tool (docs/limitations.md).
        .filter(|name| !["help", "completion", "migrate"].contains(&name.as_str()))
        .collect();
    for name in &inner {
        let command = [command, std::slice::from_ref(name)].concat();
        compare_commands(etcds, ours, &command, missing);
    }
    if !inner.is_empty() {
        return;
    }
    let mine = help(ours, command);
    // Accepted without being shown: they have no effect.
    let hidden = ["help", "timeout", "initial-memory-map-size"];
    for flag in flags(&theirs).difference(&flags(&mine)) {
        // A flag stands at the beginning of its line; others are only mentioned.
        let is_own = theirs.lines().any(|line| {
            line.trim_start()
                .trim_start_matches("-w, ")
                .starts_with(&format!("--{flag}"))
        });
        if is_own && !hidden.contains(flag) {
            missing.push(format!("{} --{flag}", command.join(" ")));
        }
    }
}

#[test]
fn every_command_and_flag_of_etcds_tools_is_there() {
    let mut missing = Vec::new();
    let metastoreutl = metastorectl().with_file_name("metastoreutl");
    for (etcds, ours) in [
        (tool("etcdctl"), metastorectl()),
        (tool("etcdutl"), metastoreutl),
    ] {
        compare_commands(&etcds, &ours, &[], &mut missing);
    }
    let options = |program: &Path| {
        let output = Command::new(program).arg("options").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let (theirs, mine) = (options(&tool("etcdctl")), options(&metastorectl()));
    missing.extend(
        flags(&theirs)
            .difference(&flags(&mine))
            .map(ToString::to_string),
    );
    assert_eq!(missing, Vec::<String>::new());
}
