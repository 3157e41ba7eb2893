//! The definitions as files.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube_core::CustomResourceExt;

use crate::{MetaStoreBackup, MetaStoreBackupSchedule, MetaStoreCluster, MetaStoreTask};

/// First line of every generated file.
const HEADER: &str =
    "# Generated from operator/crates/api by `make fix`; a test fails when it is stale.\n";

/// The definitions of all kinds.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    vec![
        MetaStoreCluster::crd(),
        MetaStoreBackup::crd(),
        MetaStoreBackupSchedule::crd(),
        MetaStoreTask::crd(),
    ]
}

/// The files below `crds/`: name and text.
pub fn definition_files() -> Vec<(String, String)> {
    definitions()
        .into_iter()
        .map(|definition| {
            let value = serde_json::to_value(&definition).expect("definitions are plain data");
            let text = serde_saphyr::to_string(&value).expect("JSON is YAML");
            let name = format!("{}.yaml", definition.spec.names.plural);
            (name, format!("{HEADER}{text}"))
        })
        .collect()
}
