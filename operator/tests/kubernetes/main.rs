//! The operator on a real Kubernetes API server.
//!
//! Real: kube-apiserver, kube-controller-manager, their store, the operator as a process with exactly the
//! rights of its chart, the members as processes, kubectl and helm. Played by the test: the kubelet, which
//! runs Pods as processes of this machine ([`kubelet`]). Real nodes and containers are the matter of
//! `tests/kubernetes/nodes.sh`.
//!
//! `make e2e-kubernetes` runs it; `tests/kubernetes/install.sh` builds the programs once. The variable
//! `METASTORE_KUBERNETES_SERVER` says what the members and the store of the API server are: `metastore` (the
//! default), or a real `etcd`, to tell faults of the operator from faults of the server.

#![allow(clippy::unwrap_used, reason = "in a test an unwrap is an assertion")]

mod backups;
mod bad_input;
mod charts;
mod control_plane;
mod dying;
mod kubelet;
mod life;
mod neighbours;
mod operators;
mod secure;
mod stage;
mod tasks;
mod writers;

use stage::Stage;

/// The short one: `make test` runs it, too, where kube-apiserver has been built and the machine lets it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rules_refuse_nonsense_and_a_first_cluster_serves() {
    if let Some(reason) = Stage::why_not() {
        // Whoever asks for it wants to know.
        assert!(
            std::env::var_os("METASTORE_KUBERNETES_SERVER").is_none(),
            "{reason}"
        );
        eprintln!("not run: {reason}");
        return;
    }
    let stage = Stage::set_for_one_namespace().await;
    charts::rules_of_the_definitions(&stage);
    life::first_cluster(&stage).await;
    stage.no_call_was_forbidden();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "a minute long, and it needs kube-apiserver: `make e2e-kubernetes` runs it"]
async fn charts_are_accepted() {
    let stage = Stage::set().await;
    charts::charts_are_accepted(&stage);
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
    tasks::full_store_that_grows(&stage).await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "some minutes long, and it needs kube-apiserver: `make e2e-kubernetes` runs it"]
async fn what_cannot_be_followed_is_told_and_what_others_change_is_mended() {
    let mut stage = Stage::set().await;
    bad_input::specs_that_cannot_be_followed(&stage).await;
    stage.no_call_was_forbidden();
    bad_input::actions_that_are_refused(&stage).await;
    bad_input::objects_that_others_change(&stage).await;
    bad_input::api_server_that_hangs_and_restarts(&mut stage).await;
    bad_input::cluster_that_takes_its_data_with_it(&stage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "some minutes long, and it needs kube-apiserver: `make e2e-kubernetes` runs it"]
async fn operators_that_die_after_each_change_still_get_everything_done() {
    let mut stage = Stage::set().await;
    dying::operators_that_make_one_change_each(&mut stage).await;
    stage.no_call_was_forbidden();
}
