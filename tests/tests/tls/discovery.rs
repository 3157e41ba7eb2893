//! Members that find each other through another etcd.

use std::collections::BTreeSet;
use std::time::Duration;

use metastore_proto::etcdserverpb::RangeRequest;
use metastore_tests::programs::subject;
use metastore_tests::{Client, Member, MemberBuilder, Program, eventually};

const LIMIT: Duration = Duration::from_secs(40);

fn member(registry: &Member, name: &str, token: &str) -> MemberBuilder {
    MemberBuilder::new(subject())
        .name(name)
        .without_initial_cluster()
        .flag(format!("--discovery-token={token}"))
        .flag(format!("--discovery-endpoints={}", registry.endpoint()))
}

#[tokio::test]
async fn members_find_each_other_through_a_real_etcd() {
    let registry = Member::start(Program::Etcd).await;
    let client = registry.client();
    client
        .put("/_etcd/registry/abc/_config/size", "3")
        .await
        .unwrap();
    let mut members: Vec<_> = ["m0", "m1", "m2"]
        .map(|name| member(&registry, name, "abc").spawn())
        .into();
    for member in &mut members {
        member.ready().await;
    }
    let listed = members[0].client().members().await.unwrap();
    assert_eq!(listed.len(), 3);
    // The entries are those that etcd would have made: the id of each member, its name and URL.
    assert_eq!(entries(&client).await, {
        let entry = |member: &metastore_proto::etcdserverpb::Member| {
            let key = format!("/_etcd/registry/abc/members/{:x}", member.id);
            (key, format!("{}={}", member.name, member.peer_ur_ls[0]))
        };
        listed.iter().map(entry).collect()
    });
    members[0].client().put("a", "b").await.unwrap();
    eventually("the write is everywhere", LIMIT, || async {
        let (pair, _) = members[2]
            .client()
            .get("a")
            .await
            .map_err(|error| error.to_string())?;
        pair.map(|_| ()).ok_or_else(|| "no key".to_owned())
    })
    .await;

    // A fourth has no place, and a token that nobody made is none.
    for (name, token, reason) in [
        ("m3", "abc", "discovery: cluster is full"),
        ("m4", "xyz", "discovery: size key not found"),
    ] {
        let (status, log) = member(&registry, name, token).run_to_end().await;
        assert!(!status.success());
        assert!(log.contains(reason), "{log}");
    }
    // A restart does not ask again.
    drop(registry);
    members[1].kill();
    members[1].respawn();
    members[1].ready().await;
}

async fn entries(client: &Client) -> BTreeSet<(String, String)> {
    let request = RangeRequest {
        key: "/_etcd/registry/abc/members/".into(),
        range_end: "/_etcd/registry/abc/members0".into(),
        ..Default::default()
    };
    let answer = client.kv.clone().range(request).await.unwrap().into_inner();
    answer
        .kvs
        .iter()
        .map(|pair| {
            let pair = metastore_tests::client::decode(pair);
            (
                String::from_utf8(pair.key.to_vec()).unwrap(),
                String::from_utf8(pair.value.to_vec()).unwrap(),
            )
        })
        .collect()
}

/// What a name server needs to know here.
const DOMAIN: &str = "example.test";
/// Where it answers: the port is fixed, so it has an address that nobody else uses.
const NAME_SERVER: &str = "127.0.0.77:53";

/// Answers SRV for `_etcd-server._tcp.example.test` and A (127.0.0.1) for its targets.
fn serve_names(socket: &std::net::UdpSocket, targets: &[(String, u16)]) {
    let mut query = [0; 512];
    while let Ok((length, client)) = socket.recv_from(&mut query) {
        let query = &query[..length];
        let mut labels = Vec::new();
        let mut at = 12;
        while at < length && query[at] != 0 {
            let end = at + 1 + usize::from(query[at]);
            labels.push(String::from_utf8_lossy(&query[at + 1..end]).to_lowercase());
            at = end;
        }
        let name = labels.join(".");
        let kind = query[at + 2];
        let mut answers = Vec::new();
        let is_service = name == format!("_etcd-server._tcp.{DOMAIN}");
        let is_host = targets.iter().any(|(host, _)| *host == name);
        if kind == 33 && is_service {
            for (host, port) in targets {
                let mut data = vec![0, 0, 0, 0];
                data.extend(port.to_be_bytes());
                for label in host.split('.') {
                    data.push(u8::try_from(label.len()).unwrap());
                    data.extend(label.as_bytes());
                }
                data.push(0);
                answers.push((33, data));
            }
        } else if kind == 1 && is_host {
            answers.push((1, vec![127, 0, 0, 1]));
        }
        let code = if is_service || is_host { 0x80 } else { 0x83 };
        let mut answer = query[..2].to_vec();
        answer.extend([0x81, code, 0, 1, 0, u8::try_from(answers.len()).unwrap()]);
        answer.extend([0; 4]);
        answer.extend(&query[12..at + 5]);
        for (kind, data) in answers {
            answer.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 60, 0]);
            answer.push(u8::try_from(data.len()).unwrap());
            answer.extend(data);
        }
        let _ = socket.send_to(&answer, client);
    }
}

/// Kills a process at the end of the test.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn members_find_each_other_by_dns() {
    // The system's resolver has one configuration, so the members need a view of the files of their
    // own, and the name server port 53: both only for root.
    let may_mount = std::process::Command::new("unshare")
        .args(["-m", "true"])
        .output()
        .is_ok_and(|output| output.status.success());
    let Ok(socket) = std::net::UdpSocket::bind(NAME_SERVER) else {
        eprintln!("skipped: {NAME_SERVER} is not free, or not for this user");
        return;
    };
    if !may_mount {
        eprintln!("skipped: this user may not mount");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let resolver = folder.path().join("resolv.conf");
    std::fs::write(&resolver, "nameserver 127.0.0.77\n").unwrap();
    let builders = ["a", "b"].map(|name| MemberBuilder::new(subject()).name(name));
    let port = |builder: &MemberBuilder| {
        builder
            .peer_address()
            .rsplit_once(':')
            .unwrap()
            .1
            .to_owned()
    };
    let host = |builder: &MemberBuilder| format!("{}.{DOMAIN}", builder.member_name());
    let targets: Vec<(String, u16)> = builders
        .iter()
        .map(|builder| (host(builder), port(builder).parse().unwrap()))
        .collect();
    std::thread::spawn(move || serve_names(&socket, &targets));

    let mut running = Vec::new();
    for builder in &builders {
        let builder = builder
            .clone()
            .without_initial_cluster()
            .flag(format!("--discovery-srv={DOMAIN}"))
            .flag(format!(
                "--initial-advertise-peer-urls=http://{}:{}",
                host(builder),
                port(builder)
            ));
        let child = std::process::Command::new("unshare")
            .args(["-m", "bash", "-c"])
            .arg("mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"")
            .arg(&resolver)
            .arg(subject().path())
            .args(builder.command_line())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        running.push(Killed(child));
    }
    let client = Client::new(&format!("http://{}", builders[0].client_address()));
    let members = eventually("both members serve", LIMIT, || async {
        let members = client.members().await.map_err(|error| error.to_string())?;
        if members.iter().all(|member| !member.name.is_empty()) {
            Ok(members)
        } else {
            Err(format!("{members:?}"))
        }
    })
    .await;
    let mut names: Vec<_> = members.iter().map(|member| member.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["a", "b"]);
}
