//! Several members that form one cluster.

use std::time::Duration;

use metastore_proto::etcdserverpb as pb;

use crate::client::Client;
use crate::member::{Member, MemberBuilder};
use crate::patience::eventually;
use crate::programs::Program;

/// Longest wait for something that takes a cluster about a second.
const CLUSTER_LIMIT: Duration = Duration::from_secs(30);
/// A call to a member that may be paused or without a leader.
const CALL_LIMIT: Duration = Duration::from_secs(1);

/// A cluster of real processes on this machine.
#[derive(Debug)]
pub struct Cluster {
    /// The members, in the order of their start; killed ones stay in the list.
    pub members: Vec<Member>,
    program: Program,
    flags: Vec<String>,
}

impl Cluster {
    /// Starts `size` members and waits until all serve clients.
    pub async fn start(program: Program, size: usize) -> Self {
        Self::start_with(program, size, &[]).await
    }

    /// As [`start`](Self::start), with more flags for each member.
    pub async fn start_with(program: Program, size: usize, flags: &[&str]) -> Self {
        let mut builders: Vec<_> = (0..size)
            .map(|index| {
                let builder = MemberBuilder::new(program).name(&format!("m{index}"));
                flags
                    .iter()
                    .fold(builder, |builder, flag| builder.flag(*flag))
            })
            .collect();
        let all: Vec<_> = builders
            .iter()
            .map(|builder| (builder.member_name().to_owned(), builder.peer_url()))
            .collect();
        let mut members: Vec<_> = builders
            .drain(..)
            .map(|builder| builder.initial_cluster(all.clone()).spawn())
            .collect();
        for member in &mut members {
            member.ready().await;
        }
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        Self {
            members,
            program,
            flags,
        }
    }

    /// Client URLs of all members.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(Member::endpoint).collect()
    }

    /// A client for each member.
    pub fn clients(&self) -> Vec<Client> {
        self.members.iter().map(Member::client).collect()
    }

    /// Waits until the running members other than `except` agree on a leader; returns its place in
    /// `members`, and the term.
    pub async fn leader_except(&self, except: Option<usize>) -> (usize, u64) {
        let clients: Vec<_> = self
            .members
            .iter()
            .enumerate()
            .filter(|(index, member)| member.process_id().is_some() && Some(*index) != except)
            .map(|(index, member)| (index, Client::with_timeout(&member.endpoint(), CALL_LIMIT)))
            .collect();
        eventually("the members agree on a leader", CLUSTER_LIMIT, || {
            leader_of(&clients)
        })
        .await
    }

    /// Waits until all running members agree on a leader; returns its place in `members`.
    pub async fn leader(&self) -> usize {
        self.leader_except(None).await.0
    }

    /// Starts all members that do not run, at once, and waits until they serve.
    pub async fn restart_all(&mut self) {
        for member in &mut self.members {
            if member.process_id().is_none() {
                member.respawn();
            }
        }
        for member in &mut self.members {
            member.ready().await;
        }
    }

    /// Adds a member by MemberAdd and starts it; returns its place and id. A learner stays one
    /// until it is promoted.
    pub async fn add_member(&mut self, learner: bool) -> (usize, u64) {
        let index = self.members.len();
        let name = format!("m{index}");
        let mut builder = MemberBuilder::new(self.program).name(&name);
        for flag in &self.flags {
            builder = builder.flag(flag.clone());
        }
        let client = self.members[self.leader().await].client();
        let request = pb::MemberAddRequest {
            peer_ur_ls: vec![builder.peer_url()],
            is_learner: learner,
        };
        let answer = eventually("the member is added", CLUSTER_LIMIT, || async {
            client
                .cluster
                .clone()
                .member_add(request.clone())
                .await
                .map_err(|error| error.to_string())
        })
        .await
        .into_inner();
        let added = answer.member.expect("the answer names the new member");
        let all = answer
            .members
            .iter()
            .flat_map(|member| {
                let name = if member.id == added.id {
                    name.clone()
                } else {
                    member.name.clone()
                };
                member
                    .peer_ur_ls
                    .iter()
                    .map(move |url| (name.clone(), url.clone()))
            })
            .collect();
        self.members.push(builder.joining(all).start().await);
        (index, added.id)
    }

    /// Waits until all running members have the same HashKV at the same revision.
    pub async fn assert_equal_hashes(&self) {
        let clients: Vec<_> = self
            .members
            .iter()
            .filter(|member| member.process_id().is_some())
            .map(Member::client)
            .collect();
        eventually(
            "all members have the same HashKV",
            CLUSTER_LIMIT,
            || async {
                let mut seen = Vec::new();
                for client in &clients {
                    let answer = client.hash_kv(0).await.map_err(|error| error.to_string())?;
                    seen.push((answer.hash_revision, answer.compact_revision, answer.hash));
                }
                if seen.windows(2).all(|pair| pair[0] == pair[1]) {
                    Ok(())
                } else {
                    Err(format!("(revision, compact revision, hash) = {seen:?}"))
                }
            },
        )
        .await;
    }
}

async fn leader_of(clients: &[(usize, Client)]) -> Result<(usize, u64), String> {
    let mut leader = None;
    let mut found = None;
    for (index, client) in clients {
        let status = client
            .status()
            .await
            .map_err(|error| format!("member {index}: {error}"))?;
        let own_id = status.header.map_or(0, |header| header.member_id);
        if status.leader == 0 {
            return Err(format!("member {index} knows no leader"));
        }
        let view = (status.leader, status.raft_term);
        if *leader.get_or_insert(view) != view {
            return Err(format!("member {index} says {view:?}, another {leader:?}"));
        }
        if own_id == status.leader {
            found = Some((*index, status.raft_term));
        }
    }
    found.ok_or_else(|| format!("the leader {leader:?} is not among the asked members"))
}
