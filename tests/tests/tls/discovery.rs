//! Members that find each other through another etcd.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use metastore_proto::etcdserverpb::RangeRequest;
use metastore_tests::member::free_port;
use metastore_tests::programs::{metastorectl, subject, tool};
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

/// What stands behind a service's name: hosts and ports.
type Services = BTreeMap<String, Vec<(String, u16)>>;

/// Answers SRV for services and A (127.0.0.1) for their targets.
fn serve_names(socket: &std::net::UdpSocket, services: &Services) {
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
        let service = services.get(&name);
        let is_host = services.values().flatten().any(|(host, _)| *host == name);
        if let (33, Some(targets)) = (kind, service) {
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
        let code = if service.is_some() || is_host {
            0x80
        } else {
            0x83
        };
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
    let port_of = |address: String| address.rsplit_once(':').unwrap().1.to_owned();
    let port = |builder: &MemberBuilder| port_of(builder.peer_address());
    let host = |builder: &MemberBuilder| format!("{}.{DOMAIN}", builder.member_name());
    let targets = |port: &dyn Fn(&MemberBuilder) -> String| -> Vec<(String, u16)> {
        builders
            .iter()
            .map(|builder| (host(builder), port(builder).parse().unwrap()))
            .collect()
    };
    let services = Services::from([
        (format!("_etcd-server._tcp.{DOMAIN}"), targets(&port)),
        (
            format!("_etcd-client-named._tcp.{DOMAIN}"),
            targets(&|builder| port_of(builder.client_address())),
        ),
    ]);
    std::thread::spawn(move || serve_names(&socket, &services));
    let with_names = |program: &Path| {
        let mut command = std::process::Command::new("unshare");
        command
            .args(["-m", "bash", "-c"])
            .arg("mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"")
            .arg(&resolver)
            .arg(program);
        command
    };

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
        let child = with_names(&subject().path())
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
    clients_find_members_by_dns(&with_names).await;
}

/// `--discovery-srv` of etcdctl, metastorectl and both proxies.
async fn clients_find_members_by_dns(with_names: &dyn Fn(&Path) -> std::process::Command) {
    let found = [
        format!("--discovery-srv={DOMAIN}"),
        "--discovery-srv-name=named".to_owned(),
    ];
    for program in [tool("etcdctl"), metastorectl()] {
        let control = |flags: &[&str]| {
            let output = with_names(&program).args(&found).args(flags).output();
            output.unwrap()
        };
        let output = control(&["put", "found", "by dns"]);
        assert_eq!(output.stdout, b"OK\n", "{program:?}: {output:?}");
        // Plain endpoints may be left out; then those of the command line stay.
        let output = control(&[
            "--insecure-discovery=false",
            "--endpoints=127.0.0.1:9",
            "--command-timeout=300ms",
            "--dial-timeout=300ms",
            "get",
            "found",
        ]);
        assert!(!output.status.success(), "{program:?}: {output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            said.contains("ignoring discovered insecure endpoint \"http://"),
            "{program:?}: {said}"
        );
        // A domain without records is an error.
        let output = with_names(&program)
            .args(["--discovery-srv=nowhere.test", "get", "found"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{program:?}: {output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("dns lookup errors: "), "{program:?}: {said}");
    }
    for command in ["gateway", "grpc-proxy"] {
        for program in [Program::Etcd, subject()] {
            let listen = format!("127.0.0.1:{}", free_port());
            let child = with_names(&program.path())
                .args([command, "start", "--insecure-discovery"])
                .args(&found)
                .arg(format!("--listen-addr={listen}"))
                .arg("--endpoints=127.0.0.1:9")
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap();
            let _proxy = Killed(child);
            let client = Client::new(&format!("http://{listen}"));
            eventually("the proxy has found the members", LIMIT, || async {
                let (pair, _) = client
                    .get("found")
                    .await
                    .map_err(|error| error.to_string())?;
                pair.map(|_| ()).ok_or_else(|| "no key".to_owned())
            })
            .await;
        }
    }
}
