//! The version that all members of the cluster run, and going back to the one before.
//!
//! The leader asks every member for its version and sets the cluster's: at first the lowest, later
//! a higher one when all have it, and the target of a downgrade while there is one. It ends the
//! downgrade when every member runs the target.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::downgrade_request::DowngradeAction;
use metastore_proto::etcdserverpb::{DowngradeRequest, DowngradeResponse};
use metastore_proto::internal::command::Request;
use metastore_proto::internal::{ClusterVersionSet, DowngradeInfoSet};

use crate::error::RequestError;
use crate::member_directory::Directory;
use crate::node::Node;
use crate::peer_service::Method;
use crate::version;

/// Time between two looks at the versions of the members; etcd's.
const LOOK_INTERVAL: Duration = Duration::from_secs(4);
/// Time between two looks while the members of a new cluster come up.
const FIRST_LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Time between two looks whether a new cluster is formed.
const BOOTSTRAP_LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Looks that a new cluster waits for all its members before it takes [`OLDEST`].
const FIRST_LOOKS: u32 = 5;
/// The longest wait for one member's version.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// The version of a cluster not all of whose members are known; etcd's `MinClusterVersion`.
const OLDEST: Version = Version::new(3, 0);

/// A version; the patch counts only when versions of servers are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: i64,
    minor: i64,
    patch: i64,
}

impl Version {
    /// `major.minor.0`.
    pub const fn new(major: i64, minor: i64) -> Self {
        Self {
            major,
            minor,
            patch: 0,
        }
    }

    /// Without the patch, as versions of clusters are.
    #[must_use]
    pub const fn of_cluster(self) -> Self {
        Self::new(self.major, self.minor)
    }

    /// `major.minor`, as Downgrade answers and the log says.
    pub fn short(self) -> String {
        format!("{}.{}", self.major, self.minor)
    }

    const fn one_minor_lower(self) -> Self {
        Self::new(self.major, self.minor - 1)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl FromStr for Version {
    type Err = ();

    /// Reads `major.minor.patch`; what follows a `-` or `+` is not looked at.
    fn from_str(text: &str) -> Result<Self, ()> {
        let text = text.split('+').next().unwrap_or_default();
        let text = text.split('-').next().unwrap_or_default();
        let mut parts = text.splitn(3, '.').map(str::parse::<i64>);
        let mut next = || parts.next().and_then(Result::ok).ok_or(());
        Ok(Self {
            major: next()?,
            minor: next()?,
            patch: next()?,
        })
    }
}

/// The versions of clusters that a member of this program may join: from the oldest up to its own; while
/// a downgrade goes on only the one above, whose members are being replaced by ones like it.
pub fn joinable(is_downgrading: bool) -> RangeInclusive<Version> {
    let own: Version = version::ETCD_VERSION
        .parse()
        .expect("the own version is one");
    let own = own.of_cluster();
    match is_downgrading {
        true => {
            let above = Version::new(own.major, own.minor + 1);
            above..=above
        }
        false => OLDEST..=own,
    }
}

/// Reads the target of a downgrade: `major.minor.patch` or `major.minor`; the patch is dropped.
fn parse_target(text: &str) -> Result<Version, EtcdError> {
    text.parse()
        .or_else(|()| format!("{text}.0").parse())
        .map(Version::of_cluster)
        .map_err(|()| EtcdError::WrongDowngradeVersionFormat)
}

/// What the leader decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    Keep,
    Set(Version),
    /// The target of the downgrade is none that the cluster or its members could go back to.
    BadTarget,
}

/// Decides the cluster version. `lowest` is the lowest version that a member runs; nothing when one
/// did not answer.
fn decide(cluster: Option<Version>, lowest: Option<Version>, target: Option<Version>) -> Decision {
    let Some(cluster) = cluster else {
        return Decision::Set(lowest.unwrap_or(OLDEST).of_cluster());
    };
    let Some(lowest) = lowest.map(Version::of_cluster) else {
        return Decision::Keep;
    };
    match target {
        Some(target) if target == cluster => Decision::Keep,
        Some(target)
            if target != cluster.one_minor_lower() || target != lowest.one_minor_lower() =>
        {
            Decision::BadTarget
        }
        Some(target) => Decision::Set(target),
        None if cluster.major == lowest.major && cluster < lowest => Decision::Set(lowest),
        None => Decision::Keep,
    }
}

/// Whether all members run the target of a downgrade; nothing in `members` for one that did not
/// answer.
fn is_downgraded(target: Version, members: &[Option<Version>]) -> bool {
    members
        .iter()
        .all(|member| member.is_some_and(|version| version.of_cluster() == target))
}

impl Directory {
    /// The cluster version; `None` until it was decided.
    pub fn version(&self) -> Option<Version> {
        self.cluster_version.as_deref()?.parse().ok()
    }

    fn target(&self) -> Option<Version> {
        self.downgrade_target.as_deref()?.parse().ok()
    }

    /// The version of the storage format, which follows the cluster's: a member that is to be
    /// downgraded says so by it. `None` until there is one.
    pub fn storage_version(&self) -> Option<Version> {
        self.version().filter(|version| *version != OLDEST)
    }

    /// The storage version that a copy of the store carries. etcd's tools need one, so it is this
    /// program's until the cluster has decided.
    pub fn storage_version_of_copies(&self) -> String {
        self.storage_version().map_or_else(
            || version::STORAGE_VERSION.to_owned(),
            |version| version.to_string(),
        )
    }

    /// Why a member of this program must not take part in the cluster, if it must not.
    pub fn refuses_this_program(&self) -> Option<String> {
        let own: Version = version::ETCD_VERSION.parse().ok()?;
        let cluster = self.version()?;
        (own.of_cluster() < cluster).then(|| {
            format!(
                "invalid downgrade; server version is lower than determined cluster version \
                 (server {own}, cluster {}): start the newer version, or begin a downgrade there \
                 first",
                cluster.short()
            )
        })
    }
}

impl Node {
    /// Downgrade.
    ///
    /// # Errors
    /// As etcd's Downgrade.
    pub async fn downgrade(
        &self,
        request: &DowngradeRequest,
    ) -> Result<DowngradeResponse, RequestError> {
        let result = match DowngradeAction::try_from(request.action) {
            Ok(DowngradeAction::Validate) => {
                return self.validate_downgrade(&request.version).await;
            }
            Ok(DowngradeAction::Enable) => self.enable_downgrade(&request.version).await,
            Ok(DowngradeAction::Cancel) => {
                // etcd says in its log that there was nothing to cancel, and answers as if there was.
                if let Err(error) = self.cancel_downgrade().await {
                    tracing::warn!(%error, "failed to cancel downgrade");
                }
                Ok(self.downgrade_response())
            }
            Err(_) => {
                let text = "etcdserver: unknown method".to_owned();
                return Err(RequestError::Unknown(text));
            }
        };
        if let Err(error) = &result {
            tracing::warn!(%error, "reject downgrade request");
        }
        result
    }

    async fn validate_downgrade(&self, target: &str) -> Result<DowngradeResponse, RequestError> {
        let target = parse_target(target)?;
        if self.application.directory.current().version().is_none() {
            return Err(EtcdError::ClusterVersionUnavailable.into());
        }
        self.check_downgrade(target).await?;
        Ok(self.downgrade_response())
    }

    async fn check_downgrade(&self, target: Version) -> Result<(), RequestError> {
        self.linearize().await?;
        let directory = self.application.directory.current();
        let cluster = directory
            .version()
            .ok_or(EtcdError::ClusterVersionUnavailable)?;
        if target != cluster.one_minor_lower() {
            return Err(EtcdError::InvalidDowngradeTargetVersion.into());
        }
        if directory.downgrade_target.is_some() {
            return Err(EtcdError::DowngradeInProcess.into());
        }
        Ok(())
    }

    async fn enable_downgrade(&self, target: &str) -> Result<DowngradeResponse, RequestError> {
        let target = parse_target(target)?;
        self.check_downgrade(target).await?;
        self.set_downgrade(Some(target)).await?;
        Ok(self.downgrade_response())
    }

    async fn cancel_downgrade(&self) -> Result<DowngradeResponse, RequestError> {
        self.linearize().await?;
        let directory = self.application.directory.current();
        if directory.downgrade_target.is_some() {
            self.set_downgrade(None).await?;
        } else {
            // etcd says so in its log only, and answers with success.
            tracing::warn!(
                error = EtcdError::NoInflightDowngrade.text(),
                "failed to cancel downgrade"
            );
        }
        Ok(self.downgrade_response())
    }

    async fn set_downgrade(&self, target: Option<Version>) -> Result<(), RequestError> {
        let request = DowngradeInfoSet {
            enabled: target.is_some(),
            target_version: target.map(|target| target.to_string()).unwrap_or_default(),
        };
        self.propose(Request::DowngradeInfoSet(request))
            .await
            .map(drop)
    }

    fn downgrade_response(&self) -> DowngradeResponse {
        let version = self.application.directory.current().version();
        DowngradeResponse {
            header: Some(self.header()),
            version: version.map(Version::short).unwrap_or_default(),
        }
    }

    /// The versions of all members; nothing for one that does not answer.
    async fn member_versions(&self) -> Vec<Option<Version>> {
        let directory = self.application.directory.current();
        let questions = directory.members.keys().map(|member| async move {
            if *member == self.member_id {
                return version::ETCD_VERSION.parse().ok();
            }
            let answer = self
                .consensus
                .call_peer(
                    *member,
                    Method::ServerVersion as u32,
                    Bytes::new(),
                    ANSWER_TIMEOUT,
                )
                .await
                .ok()?;
            std::str::from_utf8(&answer).ok()?.parse().ok()
        });
        futures::future::join_all(questions).await
    }

    /// Asks all members and sets the cluster version if it is not the right one. A new cluster gets
    /// one without the answers of all members only if `patience_is_over`.
    async fn look_at_versions(&self, patience_is_over: bool) {
        let members = self.member_versions().await;
        let lowest = if members.contains(&None) {
            None
        } else {
            members.into_iter().flatten().min()
        };
        let directory = self.application.directory.current();
        let cluster = directory.version();
        if cluster.is_none() && lowest.is_none() && !patience_is_over {
            return;
        }
        match decide(cluster, lowest, directory.target()) {
            Decision::Keep => {}
            Decision::Set(version) => self.set_cluster_version(cluster, version).await,
            Decision::BadTarget => tracing::error!(
                "downgrade-target" = directory.downgrade_target,
                "cluster-version" = directory.cluster_version,
                "Cannot downgrade from cluster-version to downgrade-target"
            ),
        }
    }

    async fn set_cluster_version(&self, before: Option<Version>, version: Version) {
        match before {
            None => tracing::info!(
                "cluster-version" = version.short(),
                "setting up initial cluster version using v3 API"
            ),
            Some(before) => tracing::info!(
                from = before.short(),
                to = version.short(),
                "updating cluster version using v3 API"
            ),
        }
        let set = ClusterVersionSet {
            version: version.to_string(),
        };
        match self.propose(Request::ClusterVersionSet(set)).await {
            Ok(_) => tracing::info!(
                "cluster-version" = version.short(),
                "cluster version is updated"
            ),
            Err(error) => tracing::warn!(%error, "failed to update cluster version"),
        }
    }
}

/// Keeps the cluster version right while this member leads.
pub async fn follow_versions(node: Arc<Node>) {
    let mut status = node.watch_status();
    let mut looks = 0;
    loop {
        if !node.is_leader() {
            looks = 0;
            tokio::select! {
                leads = status.wait_for(|status| status.is_leader) => {
                    if leads.is_err() {
                        return;
                    }
                }
                () = node.stopped() => return,
            }
        }
        // Before the bootstrap of a new cluster is applied there is nobody to ask.
        let is_formed = !node.application.directory.current().members.is_empty();
        if is_formed {
            looks += 1;
            node.look_at_versions(looks > FIRST_LOOKS).await;
        }
        let is_decided = node.application.directory.current().version().is_some();
        let pause = match (is_formed, is_decided) {
            (false, _) => BOOTSTRAP_LOOK_INTERVAL,
            (true, false) => FIRST_LOOK_INTERVAL,
            (true, true) => LOOK_INTERVAL,
        };
        if !node.pause(pause).await {
            return;
        }
    }
}

/// Ends a downgrade, while this member leads, when all members run its target.
pub async fn end_downgrades(node: Arc<Node>) {
    let Some(interval) = node.config.downgrade_check_time else {
        return;
    };
    while node.pause(interval).await {
        let target = node.application.directory.current().target();
        let Some(target) = target.filter(|_| node.is_leader()) else {
            continue;
        };
        if !is_downgraded(target, &node.member_versions().await) {
            continue;
        }
        tracing::info!(
            "cluster-version" = target.to_string(),
            "the cluster has been downgraded"
        );
        if let Err(error) = node.cancel_downgrade().await {
            tracing::warn!(%error, "failed to cancel downgrade");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Option<Version> {
        Some(text.parse().expect("a version"))
    }

    #[test]
    fn targets_are_read_as_etcd_reads_them() {
        for (text, wanted) in [
            ("3.6.0", "3.6.0"),
            ("3.6", "3.6.0"),
            ("3.6.9", "3.6.0"),
            ("3.6.0-alpha.0", "3.6.0"),
            ("3.6.0+build", "3.6.0"),
        ] {
            let parsed = parse_target(text).map(|version| version.to_string());
            assert_eq!(parsed, Ok(wanted.to_owned()), "{text}");
        }
        for text in ["", "3", "nonsense", "3.6.0.1", "3.x", "v3.6.0", "3..0"] {
            assert_eq!(
                parse_target(text),
                Err(EtcdError::WrongDowngradeVersionFormat),
                "{text}"
            );
        }
    }

    #[test]
    fn the_cluster_version_is_the_lowest_of_the_members() {
        assert_eq!(
            decide(None, version("3.7.3"), None),
            Decision::Set(Version::new(3, 7))
        );
        assert_eq!(decide(None, None, None), Decision::Set(OLDEST));
        assert_eq!(
            decide(version("3.0.0"), version("3.7.3"), None),
            Decision::Set(Version::new(3, 7))
        );
        assert_eq!(decide(version("3.0.0"), None, None), Decision::Keep);
        assert_eq!(
            decide(version("3.7.0"), version("3.7.3"), None),
            Decision::Keep
        );
        // It never falls without a downgrade.
        assert_eq!(
            decide(version("3.7.0"), version("3.6.9"), None),
            Decision::Keep
        );
    }

    #[test]
    fn a_downgrade_moves_the_cluster_version_one_minor_down() {
        let target = version("3.6.0");
        assert_eq!(
            decide(version("3.7.0"), version("3.7.3"), target),
            Decision::Set(Version::new(3, 6))
        );
        assert_eq!(
            decide(version("3.6.0"), version("3.7.3"), target),
            Decision::Keep
        );
        assert_eq!(
            decide(version("3.8.0"), version("3.7.3"), target),
            Decision::BadTarget
        );
        // After its cancellation the cluster version rises again.
        assert_eq!(
            decide(version("3.6.0"), version("3.7.3"), None),
            Decision::Set(Version::new(3, 7))
        );
    }

    #[test]
    fn a_downgrade_ends_when_every_member_runs_the_target() {
        let target = Version::new(3, 6);
        let old = version("3.6.9");
        assert!(is_downgraded(target, &[old, old, old]));
        assert!(!is_downgraded(target, &[old, version("3.7.3"), old]));
        assert!(!is_downgraded(target, &[old, None, old]));
    }

    #[test]
    fn an_older_program_is_refused_by_a_newer_cluster() {
        let mut directory = Directory::default();
        assert_eq!(directory.refuses_this_program(), None);
        directory.cluster_version = Some("3.7.0".to_owned());
        assert_eq!(directory.refuses_this_program(), None);
        directory.cluster_version = Some("3.8.0".to_owned());
        let text = directory.refuses_this_program().expect("refused");
        assert!(text.starts_with("invalid downgrade; server version is lower"));
    }
}
