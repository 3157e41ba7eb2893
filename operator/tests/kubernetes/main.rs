//! The operator on a real Kubernetes API server.
//!
//! Real: kube-apiserver, kube-controller-manager, their store, the operator as a process with exactly the
//! rights of its chart, the members as processes, kubectl and helm. Played by the test: the kubelet, which
//! runs Pods as processes of this machine ([`kubelet`]). Real nodes and containers are the matter of
//! `tests/kubernetes/nodes.sh`.
//!
//! `make e2e-kubernetes` runs it; `tests/kubernetes/install.sh` builds the programs once. The variable
//! `METASTORE_KUBERNETES_SERVER` says what the members and the store of the API server are: `metastore`, or a
//! real `etcd`, to tell faults of the operator from faults of the server.

#![allow(clippy::unwrap_used, reason = "in a test an unwrap is an assertion")]

mod backups;
mod charts;
mod control_plane;
mod kubelet;
mod life;
mod neighbours;
mod operators;
mod secure;
mod stage;
mod tasks;
mod writers;

use stage::Stage;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "it needs kube-apiserver: `make e2e-kubernetes` runs it"]
async fn charts_and_definitions_are_accepted_and_refuse_nonsense() {
    let stage = Stage::set().await;
    charts::charts_are_accepted(&stage);
    charts::rules_of_the_definitions(&stage);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "some minutes long, and it needs kube-apiserver: `make e2e-kubernetes` runs it"]
async fn a_cluster_grows_shrinks_rolls_heals_and_sleeps_without_losing_a_write() {
    let mut stage = Stage::set().await;
    life::life_of_a_cluster(&mut stage).await;
    stage.no_call_was_forbidden();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "some minutes long, and it needs kube-apiserver: `make e2e-kubernetes` runs it"]
async fn a_cluster_with_tls_and_users_grows_rolls_and_heals_without_losing_a_write() {
    let stage = Stage::set().await;
    secure::secure_cluster(&stage).await;
    stage.no_call_was_forbidden();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "some minutes long, and it needs kube-apiserver: `make e2e-kubernetes` runs it"]
async fn a_cluster_in_use_gets_tls_and_the_kinds_of_others_fit() {
    let stage = Stage::set().await;
    secure::cluster_that_gets_tls(&stage).await;
    neighbours::cert_manager_and_prometheus(&stage).await;
    stage.no_call_was_forbidden();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "some minutes long, and it needs kube-apiserver: `make e2e-kubernetes` runs it"]
async fn backups_are_made_verified_restored_scheduled_and_forgotten() {
    let stage = Stage::set().await;
    backups::backup_and_restore(&stage).await;
    backups::schedules(&stage).await;
    stage.no_call_was_forbidden();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "some minutes long, and it needs kube-apiserver: `make e2e-kubernetes` runs it"]
async fn tasks_alarms_and_the_loss_of_a_majority_come_to_a_good_end() {
    let stage = Stage::set().await;
    tasks::tasks(&stage).await;
    tasks::full_store(&stage).await;
    tasks::differing_data(&stage).await;
    tasks::lost_majority(&stage).await;
    stage.no_call_was_forbidden();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "some minutes long, and it needs kube-apiserver: `make e2e-kubernetes` runs it"]
async fn one_of_two_operators_acts_and_the_plugin_asks_it() {
    let mut stage = Stage::set().await;
    operators::two_operators(&mut stage).await;
    operators::plugin(&stage).await;
    stage.no_call_was_forbidden();
}
