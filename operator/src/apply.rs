//! Doing what was decided: one action. Every call is one that may be repeated.

use anyhow::{Context as _, anyhow};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Secret};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, PostParams, PropagationPolicy};
use metastore_operator_api::{JobPhase, MetaStoreCluster, MetaStoreTask, TaskStatus, names};
use metastore_operator_core::{
    Action, FORCED_TEMPLATE_HASH, Identity, IdentityChange, MemberObservation, MemberPhase, Start,
    TaskStep,
};
use metastore_operator_resources::{Cluster, MemberStart, claim, config_map, stateful_set};
use serde_json::json;

use crate::certificates;
use crate::identity;
use crate::kubernetes::{apply, ignore_missing, merge};
use crate::member_client::{CallError, MemberClient};
use crate::observe::{
    DEFRAGMENTED_ANNOTATION, FINALIZER, RETIRED_LABEL, Seen, bytes_text, needs_root_secret,
    random_text, wanted_objects,
};
use crate::reconcile::Context;

/// Letters of a generated password: 27 of 32 letters are more than 128 bits.
const PASSWORD_LENGTH: usize = 32;

/// One cluster, for the length of one pass.
pub(crate) struct Applier<'a> {
    pub(crate) context: &'a Context,
    pub(crate) object: &'a MetaStoreCluster,
    pub(crate) cluster: &'a Cluster<'a>,
    pub(crate) seen: &'a Seen,
    pub(crate) now: Timestamp,
}

impl Applier<'_> {
    /// Does it.
    pub(crate) async fn apply(&self, action: &Action) -> anyhow::Result<()> {
        match action {
            Action::Wait(_) => Ok(()),
            Action::CreateIdentity { seed } => self.create_identity(seed, None).await,
            Action::AdoptIdentity { cluster_id } => {
                self.create_identity("", Some(*cluster_id)).await
            }
            Action::UpdateIdentity(change) => self.update_identity(change).await,
            Action::ApplyStaticObjects => self.apply_static_objects().await,
            Action::CreateMember { name, start } => self.create_member(name, start).await,
            Action::SetStart {
                name,
                start,
                member_id,
            } => self.set_start(name, start, *member_id).await,
            Action::Roll { name } => self.roll(name).await,
            Action::ForceNewCluster { name } => self.force_new_cluster(name).await,
            Action::Scale { name, replicas } => self.scale(name, *replicas).await,
            Action::Fence { name } => self.fence(name).await,
            Action::DeleteMember {
                name,
                deletes_claim,
            } => self.delete_member(name, *deletes_claim).await,
            Action::RetireClaim {
                name,
                deletes_claim,
            } => self.retire_claim(name, *deletes_claim).await,
            Action::GrowClaim { name, bytes } => self.grow_claim(name, *bytes).await,
            Action::AddLearner { peer_url, .. } => Ok(self.leader()?.add_learner(peer_url).await?),
            Action::Promote { id, .. } => Ok(self.leader()?.promote(*id).await?),
            Action::MoveLeader { from, to } => Ok(self.client_of(*from)?.move_leader(*to).await?),
            Action::RemoveMember { id, .. } => Ok(self.leader()?.remove(*id).await?),
            Action::UpdatePeerUrl { id, peer_url, .. } => {
                Ok(self.leader()?.update_peer_url(*id, peer_url).await?)
            }
            Action::CompactForSpace { revision } => self.compact_for_space(*revision).await,
            Action::Defragment { name } => self.defragment(name).await,
            Action::Disarm(alarm) => Ok(self.leader()?.disarm(*alarm).await?),
            Action::EnableAuth => self.enable_auth().await,
            Action::DisableAuth => Ok(self.leader()?.disable_auth().await?),
            Action::Task { name, step } => self.task(name, step).await,
            Action::SetFinalizer { present } => self.set_finalizer(*present).await,
            Action::DeleteData => self.delete_data().await,
        }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        <K as kube::Resource>::DynamicType: Default,
    {
        Api::namespaced(self.context.client.clone(), self.cluster.namespace)
    }

    fn identity(&self) -> anyhow::Result<&Identity> {
        self.seen
            .observation
            .identity
            .as_ref()
            .ok_or_else(|| anyhow!("the identity is gone"))
    }

    fn member(&self, name: &str) -> Option<&MemberObservation> {
        self.seen
            .observation
            .members
            .iter()
            .find(|m| m.name == name)
    }

    /// The client of the leader, else of any member that answered.
    fn leader(&self) -> anyhow::Result<&MemberClient> {
        let answered = || {
            self.seen
                .observation
                .members
                .iter()
                .filter_map(|member| Some((member, member.probe.answer()?)))
        };
        answered()
            .find(|(_, answer)| answer.leader_id == answer.member_id)
            .or_else(|| answered().find(|(_, answer)| !answer.is_learner))
            .and_then(|(member, _)| self.seen.clients.get(&member.name))
            .ok_or_else(|| anyhow!("no member answers"))
    }

    fn client_of(&self, id: u64) -> anyhow::Result<&MemberClient> {
        self.seen
            .observation
            .members
            .iter()
            .find(|member| {
                member
                    .probe
                    .answer()
                    .is_some_and(|answer| answer.member_id == id)
            })
            .and_then(|member| self.seen.clients.get(&member.name))
            .ok_or_else(|| anyhow!("the member {id:x} does not answer"))
    }

    async fn create_identity(&self, seed: &str, cluster_id: Option<u64>) -> anyhow::Result<()> {
        let identity = Identity {
            seed: seed.to_owned(),
            token: random_text(PASSWORD_LENGTH),
            cluster_id,
            ..Identity::default()
        };
        let labels = serde_json::from_value(self.cluster.labels())?;
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(names::identity(self.cluster.name)),
                labels: Some(labels),
                ..ObjectMeta::default()
            },
            data: Some(identity::data(&identity)),
            ..ConfigMap::default()
        };
        // Creating, not applying: when there is one already, somebody else has formed the cluster.
        self.api::<ConfigMap>()
            .create(&PostParams::default(), &map)
            .await?;
        Ok(())
    }

    /// Read, change, write with the version that was read.
    async fn update_identity(&self, change: &IdentityChange) -> anyhow::Result<()> {
        self.write_identity(|identity| identity::change(identity, change, self.now))
            .await
    }

    async fn write_identity(
        &self,
        change: impl FnOnce(Identity) -> Identity,
    ) -> anyhow::Result<()> {
        let api = self.api::<ConfigMap>();
        let name = names::identity(self.cluster.name);
        let mut map = api.get(&name).await?;
        map.data = Some(identity::data(&change(identity::read(&map))));
        api.replace(&name, &PostParams::default(), &map).await?;
        Ok(())
    }

    async fn apply_static_objects(&self) -> anyhow::Result<()> {
        let client = &self.context.client;
        if certificates::is_own_authority(self.cluster) && !self.seen.stale_secrets.is_empty() {
            certificates::write(client, self.cluster, &self.seen.stale_secrets, self.now).await?;
        }
        if needs_root_secret(self.context, self.cluster).await? {
            let mut metadata = self.cluster.metadata(&self.cluster.root_secret());
            metadata["ownerReferences"] = json!([]);
            let password = random_text(PASSWORD_LENGTH);
            let texts = [("username", "root".to_owned()), ("password", password)];
            let object = certificates::secret_object(metadata, &texts);
            let secret: Secret = serde_json::from_value(object)?;
            self.api::<Secret>()
                .create(&PostParams::default(), &secret)
                .await?;
        }
        let stale = &self.seen.observation.stale_objects;
        for object in wanted_objects(self.context, self.cluster, &self.seen.observation) {
            let title = crate::kubernetes::title(&object);
            if stale.contains(&title) {
                apply(client, &object).await.context(title)?;
            }
        }
        Ok(())
    }

    fn member_start(&self, start: &Start) -> anyhow::Result<MemberStart> {
        let token = self.identity()?.token.clone();
        Ok(match start {
            Start::Form => MemberStart::Form { token },
            Start::Join(members) => MemberStart::Join {
                token,
                members: members.clone(),
            },
            Start::Run => MemberStart::Run,
        })
    }

    async fn create_member(&self, name: &str, start: &Start) -> anyhow::Result<()> {
        let client = &self.context.client;
        let (phase, restore) = match start {
            Start::Form => (MemberPhase::Forming, self.seen.restore.as_ref()),
            Start::Join(_) => (MemberPhase::Joining, None),
            Start::Run => (MemberPhase::Running, None),
        };
        // The configuration first: nothing may start before it is known what it may do. A member that only
        // runs keeps the volume that it has.
        apply(
            client,
            &config_map(self.cluster, name, &self.member_start(start)?),
        )
        .await?;
        if *start != Start::Run {
            apply(client, &claim(self.cluster, name)).await?;
        }
        let set = stateful_set(self.cluster, name, phase.as_str(), 1, restore)
            .map_err(|message| anyhow!(message))?;
        apply(client, &set).await?;
        Ok(())
    }

    async fn set_start(
        &self,
        name: &str,
        start: &Start,
        member_id: Option<u64>,
    ) -> anyhow::Result<()> {
        apply(
            &self.context.client,
            &config_map(self.cluster, name, &self.member_start(start)?),
        )
        .await?;
        let phase = match start {
            Start::Form => MemberPhase::Forming,
            Start::Join(_) => MemberPhase::Joining,
            Start::Run => MemberPhase::Running,
        };
        let mut annotations = json!({(names::PHASE_ANNOTATION): phase.as_str()});
        if let Some(id) = member_id {
            annotations[names::MEMBER_ID_ANNOTATION] = json!(format!("{id:x}"));
        }
        self.annotate(name, annotations).await
    }

    async fn annotate(&self, name: &str, annotations: serde_json::Value) -> anyhow::Result<()> {
        let change = json!({"metadata": {"annotations": annotations}});
        merge(&self.api::<StatefulSet>(), name, &change).await?;
        Ok(())
    }

    async fn roll(&self, name: &str) -> anyhow::Result<()> {
        let member = self.member(name).ok_or_else(|| anyhow!("{name} is gone"))?;
        let (start, restore) = match member.phase {
            MemberPhase::Forming => (self.member_start(&Start::Form)?, self.seen.restore.as_ref()),
            MemberPhase::Joining => (
                self.member_start(&Start::Join(member.join_list.clone()))?,
                None,
            ),
            MemberPhase::Running => (MemberStart::Run, None),
            MemberPhase::Recovering => (MemberStart::ForceNewCluster, None),
        };
        let client = &self.context.client;
        apply(client, &config_map(self.cluster, name, &start)).await?;
        let replicas = member.wanted_replicas;
        let set = stateful_set(self.cluster, name, member.phase.as_str(), replicas, restore)
            .map_err(|message| anyhow!(message))?;
        apply(client, &set).await?;
        Ok(())
    }

    async fn force_new_cluster(&self, name: &str) -> anyhow::Result<()> {
        let client = &self.context.client;
        let phase = MemberPhase::Recovering.as_str();
        // First: with this configuration each of its starts makes it go on alone, so the configuration must never
        // be there without the phase, which leads to its end.
        self.annotate(name, json!({(names::PHASE_ANNOTATION): phase}))
            .await?;
        apply(
            client,
            &config_map(self.cluster, name, &MemberStart::ForceNewCluster),
        )
        .await?;
        let mut set = stateful_set(self.cluster, name, phase, 1, None).map_err(|m| anyhow!(m))?;
        // Unlike the wanted template, so that the member restarts now, and once more without force.
        let hash = json!(FORCED_TEMPLATE_HASH);
        set["metadata"]["annotations"][names::TEMPLATE_HASH_ANNOTATION] = hash.clone();
        set["spec"]["template"]["metadata"]["annotations"][names::TEMPLATE_HASH_ANNOTATION] = hash;
        apply(client, &set).await?;
        Ok(())
    }

    async fn scale(&self, name: &str, replicas: i32) -> anyhow::Result<()> {
        let change = json!({"spec": {"replicas": replicas}});
        merge(&self.api::<StatefulSet>(), name, &change).await?;
        Ok(())
    }

    async fn fence(&self, name: &str) -> anyhow::Result<()> {
        let change = json!({
            "metadata": {"annotations": {(names::FENCED_ANNOTATION): "true"}},
            "spec": {"replicas": 0},
        });
        merge(&self.api::<StatefulSet>(), name, &change).await?;
        Ok(())
    }

    async fn delete_member(&self, name: &str, deletes_claim: bool) -> anyhow::Result<()> {
        // The claim first: after a crash the StatefulSet still says that something is left to do.
        self.retire_claim(name, deletes_claim).await?;
        ignore_missing(
            self.api::<ConfigMap>()
                .delete(name, &DeleteParams::default())
                .await,
        )?;
        let parameters = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            ..DeleteParams::default()
        };
        ignore_missing(self.api::<StatefulSet>().delete(name, &parameters).await)?;
        Ok(())
    }

    async fn retire_claim(&self, name: &str, deletes_claim: bool) -> anyhow::Result<()> {
        let api = self.api::<PersistentVolumeClaim>();
        let claim = names::claim(name);
        if deletes_claim {
            ignore_missing(api.delete(&claim, &DeleteParams::default()).await)?;
        } else {
            let change = json!({"metadata": {"labels": {(RETIRED_LABEL): "true"}}});
            ignore_missing(merge(&api, &claim, &change).await)?;
        }
        Ok(())
    }

    async fn grow_claim(&self, name: &str, bytes: u64) -> anyhow::Result<()> {
        // As the spec writes it, where it says the same.
        let size = &self.cluster.spec.storage.size;
        let size = if size.units() == Some(bytes) {
            size.0.clone()
        } else {
            bytes_text(bytes)
        };
        let change = json!({"spec": {"resources": {"requests": {"storage": size}}}});
        merge(
            &self.api::<PersistentVolumeClaim>(),
            &names::claim(name),
            &change,
        )
        .await?;
        Ok(())
    }

    async fn compact_for_space(&self, revision: i64) -> anyhow::Result<()> {
        self.leader()?.compact(revision).await?;
        let now = self.now;
        self.write_identity(|identity| Identity {
            reclaim_started: Some(now),
            ..identity
        })
        .await
    }

    async fn defragment(&self, name: &str) -> anyhow::Result<()> {
        let client = self
            .seen
            .clients
            .get(name)
            .ok_or_else(|| anyhow!("{name} has no address"))?;
        client.defragment().await?;
        let now = Timestamp::now().to_string();
        self.annotate(name, json!({(DEFRAGMENTED_ANNOTATION): now}))
            .await
    }

    async fn enable_auth(&self) -> anyhow::Result<()> {
        let password = crate::observe::root_password(self.context, self.cluster)
            .await?
            .ok_or_else(|| anyhow!("there is no password for root"))?;
        // Without a token: authentication is off.
        self.leader()?
            .with_token(None)
            .enable_auth(&password)
            .await?;
        Ok(())
    }

    async fn task(&self, name: &str, step: &TaskStep) -> anyhow::Result<()> {
        let api = self.api::<MetaStoreTask>();
        let task = api.get(name).await?;
        let mut status = task.status.clone().unwrap_or_default();
        status.observed_generation = task.metadata.generation;
        status.phase = JobPhase::Running;
        status
            .started_at
            .get_or_insert(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                self.now,
            ));
        match step {
            // Who led then: an operator that is killed after the change must not make another one.
            TaskStep::Begin if task.spec.move_leader.is_some() => {
                status.done_members = self.seen.observation.leader_name().into_iter().collect();
            }
            TaskStep::Begin => {}
            TaskStep::Defragment(member) => {
                // An operator that was killed a moment ago may have done it.
                let since = status.started_at.as_ref().map(|time| time.0);
                let done_at = self.member(member).and_then(|seen| seen.defragmented_at);
                if done_at.is_none() || done_at < since {
                    self.defragment(member).await?;
                }
                status.done_members.push(member.clone());
            }
            TaskStep::Compact(revision) => {
                let newest = self.newest_revision();
                let revision = if *revision == 0 { newest } else { *revision };
                match self.leader()?.compact(revision).await {
                    Ok(()) => self.finish(
                        &mut status,
                        JobPhase::Succeeded,
                        format!("compacted at {revision}"),
                    ),
                    Err(CallError::Refused(text)) => {
                        self.finish(&mut status, JobPhase::Failed, text)
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            TaskStep::MoveLeader { from, to } => {
                self.client_of(*from)?.move_leader(*to).await?;
                self.finish(&mut status, JobPhase::Succeeded, format!("{to:x} leads"));
            }
            TaskStep::VerifyConsistency => {
                let (phase, result) = self.compare_hashes().await?;
                self.finish(&mut status, phase, result);
            }
            TaskStep::Finish { phase, result } => self.finish(&mut status, *phase, result.clone()),
        }
        self.write_task(&api, &task, status).await
    }

    fn newest_revision(&self) -> i64 {
        let members = &self.seen.observation.members;
        let revisions = members
            .iter()
            .filter_map(|m| Some(m.probe.answer()?.revision));
        revisions.max().unwrap_or(0)
    }

    fn finish(&self, status: &mut TaskStatus, phase: JobPhase, result: String) {
        use metastore_operator_api::conditions;
        status.phase = phase;
        status.finished_at = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
            self.now,
        ));
        status.conditions = vec![metastore_operator_core::condition(
            conditions::COMPLETE,
            Some(phase == JobPhase::Succeeded),
            &format!("{phase:?}"),
            result.clone(),
            status.observed_generation.unwrap_or(0),
            &status.conditions,
            self.now,
        )];
        status.result = Some(result);
    }

    async fn write_task(
        &self,
        api: &Api<MetaStoreTask>,
        task: &MetaStoreTask,
        status: TaskStatus,
    ) -> anyhow::Result<()> {
        crate::reconcile::write_status(api, &task.name_any(), "MetaStoreTask", &status).await?;
        Ok(())
    }

    /// Hashes of all members at one revision that all of them have.
    async fn compare_hashes(&self) -> anyhow::Result<(JobPhase, String)> {
        let members = &self.seen.observation.members;
        let revision = members
            .iter()
            .filter_map(|member| Some(member.probe.answer()?.revision))
            .min()
            .ok_or_else(|| anyhow!("no member answers"))?;
        let mut hashes = Vec::new();
        for (name, client) in &self.seen.clients {
            let (hash, _) = client.hash_kv(revision).await?;
            hashes.push((name, hash));
        }
        let text: Vec<_> = hashes
            .iter()
            .map(|(name, hash)| format!("{name} {hash:08x}"))
            .collect();
        let all_equal = hashes.windows(2).all(|pair| pair[0].1 == pair[1].1);
        let phase = if all_equal {
            JobPhase::Succeeded
        } else {
            JobPhase::Failed
        };
        Ok((
            phase,
            format!("at revision {revision}: {}", text.join(", ")),
        ))
    }

    async fn set_finalizer(&self, present: bool) -> anyhow::Result<()> {
        let mut all: Vec<_> = self
            .object
            .finalizers()
            .iter()
            .filter(|name| *name != FINALIZER)
            .cloned()
            .collect();
        if present {
            all.push(FINALIZER.to_owned());
        }
        // With the version that was read: finalizers of others must not get lost.
        let change = json!({"metadata": {
            "finalizers": all,
            "resourceVersion": self.object.metadata.resource_version,
        }});
        merge(&self.api::<MetaStoreCluster>(), self.cluster.name, &change).await?;
        Ok(())
    }

    async fn delete_data(&self) -> anyhow::Result<()> {
        let api = self.api::<PersistentVolumeClaim>();
        let selector = format!("{}={}", names::CLUSTER_LABEL, self.cluster.name);
        for claim in api.list(&ListParams::default().labels(&selector)).await? {
            ignore_missing(
                api.delete(&claim.name_any(), &DeleteParams::default())
                    .await,
            )?;
        }
        let secrets = self.api::<Secret>();
        for name in [
            names::authority_secret(self.cluster.name),
            names::root_secret(self.cluster.name),
        ] {
            ignore_missing(secrets.delete(&name, &DeleteParams::default()).await)?;
        }
        let name = names::identity(self.cluster.name);
        ignore_missing(
            self.api::<ConfigMap>()
                .delete(&name, &DeleteParams::default())
                .await,
        )?;
        self.set_finalizer(false).await
    }
}
