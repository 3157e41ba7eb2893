//! The sub-command `gateway`.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use metastore_tests::member::free_port;
use metastore_tests::programs::subject;
use metastore_tests::{Client, Member, Program, eventually};

use crate::within;

struct Gateway(Child);

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateway_brings_clients_to_the_members_that_live() {
    within(async {
        let member = Member::start(subject()).await;
        for program in [Program::Etcd, subject()] {
            // Every second connection is tried at an address where nobody listens.
            let dead = format!("127.0.0.1:{}", free_port());
            let listen = format!("127.0.0.1:{}", free_port());
            let child = Command::new(program.path())
                .args(["gateway", "start", "--listen-addr", &listen])
                .arg(format!("--endpoints={dead},{}", member.endpoint()))
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let _gateway = Gateway(child);
            let endpoint = format!("http://{listen}");
            for _ in 0..4 {
                let client = Client::new(&endpoint);
                eventually("the gateway listens", Duration::from_secs(10), || async {
                    let put = client.put("a", program.name()).await;
                    put.map_err(|error| error.to_string())
                })
                .await;
            }
            let (pair, _) = member.client().get("a").await.unwrap();
            assert_eq!(pair.unwrap().value, program.name());
        }
    })
    .await;
}

#[test]
fn a_gateway_without_sense_is_refused() {
    for program in [Program::Etcd, subject()] {
        for (arguments, status) in [
            (&["gateway"][..], 0),
            (&["gateway", "start", "--no-such-flag"], 1),
            (&["gateway", "start", "--endpoints=nonsense"], 1),
            (&["gateway", "start", "--listen-addr=nonsense"], 1),
            (
                &[
                    "gateway",
                    "start",
                    "--listen-addr=127.0.0.1:9",
                    "--endpoints=127.0.0.1:9",
                ],
                1,
            ),
        ] {
            let output = Command::new(program.path()).args(arguments).output();
            let code = output.unwrap().status.code();
            assert_eq!(code, Some(status), "{program:?} {arguments:?}");
        }
    }
}
