//! Calls that reach a follower or a learner instead of the leader of all.

use metastore_proto::etcdserverpb as pb;

use super::*;

/// How long a new member may take to catch up.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);

/// Clusters of both programs: `voters` members, and one learner if there is to be one.
async fn clusters(voters: usize, with_learner: bool) -> Vec<Cluster> {
    let started = [Program::Etcd, subject()].map(|program| async move {
        let mut cluster = Cluster::start_with(program, voters, &[CHEAP]).await;
        cluster.leader().await;
        cluster.members[0].client().put("r1", "v").await.unwrap();
        if !with_learner {
            return cluster;
        }
        let (learner, _) = cluster.add_member(true).await;
        let client = cluster.members[learner].client();
        client.until_it_has("r1", CHANGE_LIMIT).await;
        cluster
    });
    futures::future::join_all(started).await
}

/// The stores as clients of the member at `place` see them.
fn stores(clusters: Vec<Cluster>, places: &[usize]) -> Stores {
    Stores {
        sessions: clusters
            .iter()
            .zip(places)
            .map(|(cluster, place)| Session::new(&cluster.members[*place].endpoint()))
            .collect(),
        _members: clusters
            .into_iter()
            .flat_map(|cluster| cluster.members)
            .collect(),
        _folder: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_answers_what_etcds_learner_answers() {
    let clusters = clusters(2, true).await;
    let mut stores = stores(clusters, &[2, 2]);
    matrix::everything(&mut stores, &["none", "bad"], "none", "none: status").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_answers_what_etcds_follower_answers() {
    let clusters = clusters(3, false).await;
    let mut places = Vec::new();
    for cluster in &clusters {
        places.push((cluster.leader().await + 1) % 3);
    }
    let mut stores = stores(clusters, &places);
    matrix::tokens_of_passwords(&mut stores).await;
}

/// What leader and follower say of leadership, of the learner and of members that there are not.
#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_handed_over_as_in_etcd() {
    let mut said = Vec::new();
    for cluster in clusters(2, true).await {
        let leader = cluster.leader().await;
        let [leads, follows, learns] =
            [leader, 1 - leader, 2].map(|at| cluster.members[at].client());
        let mut ids = Vec::new();
        for client in [&leads, &follows, &learns] {
            ids.push(client.status().await.unwrap().header.unwrap().member_id);
        }
        let mut answers = Vec::new();
        let moved = async |client: &metastore_tests::Client, target: u64| {
            let request = pb::MoveLeaderRequest { target_id: target };
            let answer = client.maintenance.clone().move_leader(request).await;
            answer.map(|answer| assert_eq!(answer.into_inner().header, None))
        };
        answers.push(shown("to the learner", moved(&leads, ids[2]).await));
        answers.push(shown("to nobody", moved(&leads, 0).await));
        answers.push(shown("to a stranger", moved(&leads, 404).await));
        answers.push(shown("by the follower", moved(&follows, ids[1]).await));
        answers.push(shown("by the learner", moved(&learns, ids[1]).await));
        answers.push(shown("to itself", moved(&leads, ids[0]).await));
        let promoted = async |client: &metastore_tests::Client, id: u64| {
            let request = pb::MemberPromoteRequest { id };
            client
                .cluster
                .clone()
                .member_promote(request)
                .await
                .map(drop)
        };
        answers.push(shown("promotes a voter", promoted(&leads, ids[1]).await));
        answers.push(shown(
            "promotes a voter at the follower",
            promoted(&follows, ids[0]).await,
        ));
        answers.push(shown(
            "promotes a stranger at the follower",
            promoted(&follows, 404).await,
        ));
        answers.push(shown(
            "promotes at the learner",
            promoted(&learns, ids[2]).await,
        ));
        for (what, client) in [
            ("leader", &leads),
            ("follower", &follows),
            ("learner", &learns),
        ] {
            // etcd decides on it some moments after the cluster has formed.
            let status = eventually("the version of the storage", CHANGE_LIMIT, || async {
                let status = client.status().await.map_err(|error| error.to_string())?;
                match status.storage_version.as_str() {
                    "3.7.0" => Ok(status),
                    other => Err(other.to_owned()),
                }
            })
            .await;
            let place = ids.iter().position(|id| *id == status.leader);
            answers.push(format!(
                "{what}: leader {place:?} learner {} errors {:?} version {} storage {} quota {} downgrade {:?}",
                status.is_learner,
                status.errors,
                status.version,
                status.storage_version,
                status.db_size_quota,
                status.downgrade_info,
            ));
        }
        let before = leads.status().await.unwrap().raft_term;
        answers.push(shown("to the follower", moved(&leads, ids[1]).await));
        let term = follows.status().await.unwrap();
        answers.push(format!(
            "the follower leads: {}, terms: {}",
            term.leader == ids[1],
            term.raft_term - before
        ));
        answers.push(shown("by the old leader", moved(&leads, ids[0]).await));
        said.push(answers);
    }
    assert_eq!(said[1], said[0], "ours (left), etcd's (right)");
}

fn shown(what: &str, result: Result<(), tonic::Status>) -> String {
    match result {
        Ok(()) => format!("{what}: ok"),
        Err(status) => format!("{what}: {:?} {}", status.code(), status.message()),
    }
}
