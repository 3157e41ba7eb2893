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
