//! Calls to the Kubernetes API, on JSON objects: server-side apply, and comparing what is with what should be.

use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use metastore_operator_api::names::FIELD_MANAGER;
use serde_json::Value;

/// Plurals of the kinds that the operator writes.
const PLURALS: &[(&str, &str)] = &[
    ("ServiceAccount", "serviceaccounts"),
    ("Service", "services"),
    ("ConfigMap", "configmaps"),
    ("Secret", "secrets"),
    ("PersistentVolumeClaim", "persistentvolumeclaims"),
    ("StatefulSet", "statefulsets"),
    ("PodDisruptionBudget", "poddisruptionbudgets"),
    ("NetworkPolicy", "networkpolicies"),
    ("Job", "jobs"),
    ("Certificate", "certificates"),
    ("PodMonitor", "podmonitors"),
    ("MetaStoreBackup", "metastorebackups"),
];

/// The API for an object.
fn api_of(client: &Client, object: &Value) -> Api<DynamicObject> {
    let text = |path: &str| {
        object
            .pointer(path)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let (group, version) = text("/apiVersion")
        .split_once('/')
        .unwrap_or(("", text("/apiVersion")));
    let kind = text("/kind");
    let plural = PLURALS
        .iter()
        .find(|(known, _)| *known == kind)
        .map_or_else(
            || format!("{}s", kind.to_lowercase()),
            |(_, plural)| (*plural).to_owned(),
        );
    let resource =
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), &plural);
    Api::namespaced_with(client.clone(), text("/metadata/namespace"), &resource)
}

fn name_of(object: &Value) -> &str {
    object
        .pointer("/metadata/name")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// `Kind/name`, for people.
pub(crate) fn title(object: &Value) -> String {
    format!(
        "{}/{}",
        object["kind"].as_str().unwrap_or_default(),
        name_of(object)
    )
}

/// Makes the object as given: fields that others set and we do not name stay.
pub(crate) async fn apply(client: &Client, object: &Value) -> kube::Result<DynamicObject> {
    api_of(client, object)
        .patch(
            name_of(object),
            &PatchParams::apply(FIELD_MANAGER).force(),
            &Patch::Apply(object),
        )
        .await
}

/// Does the object exist with every field as given?
pub(crate) async fn is_as_wanted(client: &Client, object: &Value) -> kube::Result<bool> {
    let Some(found) = api_of(client, object).get_opt(name_of(object)).await? else {
        return Ok(false);
    };
    let found = serde_json::to_value(&found).map_err(kube::Error::SerdeError)?;
    Ok(contains(&found, object))
}

/// Does `found` have everything that `wanted` has? Lists must be equally long.
fn contains(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, wanted)| found.get(key).is_some_and(|found| contains(found, wanted))),
        (Value::Array(found), Value::Array(wanted)) => {
            found.len() == wanted.len()
                && found
                    .iter()
                    .zip(wanted)
                    .all(|(found, wanted)| contains(found, wanted))
        }
        _ => found == wanted,
    }
}

/// Changes some fields of an object that exists.
pub(crate) async fn merge<K>(api: &Api<K>, name: &str, change: &Value) -> kube::Result<K>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let parameters = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    api.patch(name, &parameters, &Patch::Merge(change)).await
}

/// A deletion of what is gone already is done.
pub(crate) fn ignore_missing<T>(result: kube::Result<T>) -> kube::Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_of_kubernetes_are_no_difference() {
        let wanted = json!({"spec": {"ports": [{"port": 1}], "clusterIP": "None"}});
        let found = json!({"spec": {"ports": [{"port": 1, "protocol": "TCP"}], "clusterIP": "None", "x": 1}});
        assert!(contains(&found, &wanted));
        let other =
            json!({"spec": {"ports": [{"port": 2, "protocol": "TCP"}], "clusterIP": "None"}});
        assert!(!contains(&other, &wanted));
        let more = json!({"spec": {"ports": [{"port": 1}, {"port": 2}], "clusterIP": "None"}});
        assert!(!contains(&more, &wanted));
    }
}
