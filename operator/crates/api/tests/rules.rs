//! Each rule of the definitions with an object that it accepts and one that it refuses, when the object is made and
//! when it is changed. The rules are evaluated here as the API server evaluates them; that the API server itself
//! takes and follows them is shown by `make e2e-kubernetes`.

#![allow(clippy::unwrap_used, reason = "in a test an unwrap is an assertion")]

use std::collections::BTreeSet;

use kube_cel::{ErrorKind, Validator};
use metastore_operator_api::definitions;
use serde_json::{Value, json};

/// A rule and what it is about.
struct Case {
    kind: &'static str,
    /// The beginning of its message.
    words: &'static str,
    /// For rules about a change: what there was.
    old: Option<Value>,
    accepted: Value,
    refused: Value,
}

/// A rule about an object, whatever there was before.
fn always(kind: &'static str, words: &'static str, accepted: Value, refused: Value) -> Case {
    Case {
        kind,
        words,
        old: None,
        accepted,
        refused,
    }
}

/// A rule about a change.
fn change(
    kind: &'static str,
    words: &'static str,
    old: Value,
    accepted: Value,
    refused: Value,
) -> Case {
    Case {
        kind,
        words,
        old: Some(old),
        accepted,
        refused,
    }
}

const CLUSTER: &str = "MetaStoreCluster";
const BACKUP: &str = "MetaStoreBackup";
const SCHEDULE: &str = "MetaStoreBackupSchedule";
const TASK: &str = "MetaStoreTask";

fn cases() -> Vec<Case> {
    let own_authority = json!({"operatorCA": {}});
    let claim = json!({"pvc": {"claimName": "backups"}});
    let bucket = json!({"s3": {"bucket": "backups"}});
    let both = json!({"pvc": {"claimName": "backups"}, "s3": {"bucket": "backups"}});
    let a = json!({"name": "a"});
    let b = json!({"name": "b"});
    let restore = json!({"backupRef": {"name": "b"}});
    let source = json!({"store": claim, "artifact": "x"});
    let nightly = |cluster: &Value, store: &Value| json!({"clusterRef": cluster, "schedule": "0 3 * * *", "store": store});
    vec![
        always(
            CLUSTER,
            "replicas must be 1, 3, 5 or 7",
            json!({"replicas": 5}),
            json!({"replicas": 4}),
        ),
        change(
            CLUSTER,
            "bootstrap is immutable",
            json!({"bootstrap": {"new": {}}}),
            json!({"bootstrap": {"new": {}}, "replicas": 5}),
            json!({"bootstrap": {"restore": restore}}),
        ),
        change(
            CLUSTER,
            "clusterDomain is immutable",
            json!({"clusterDomain": "cluster.local"}),
            json!({"clusterDomain": "cluster.local", "replicas": 5}),
            json!({"clusterDomain": "other.local"}),
        ),
        change(
            CLUSTER,
            "replicas cannot change while the cluster hibernates",
            json!({"hibernated": true, "replicas": 3}),
            json!({"hibernated": false, "replicas": 5}),
            json!({"hibernated": true, "replicas": 5}),
        ),
        always(
            CLUSTER,
            "config.quota must not be larger than storage.size",
            json!({"config": {"quota": "10Gi"}, "storage": {"size": "10Gi"}}),
            json!({"config": {"quota": "11Gi"}, "storage": {"size": "10Gi"}}),
        ),
        always(
            CLUSTER,
            "exactly one of new and restore",
            json!({"bootstrap": {"restore": restore}}),
            json!({"bootstrap": {"new": {}, "restore": restore}}),
        ),
        always(
            CLUSTER,
            "exactly one of backupRef and source",
            json!({"bootstrap": {"restore": {"source": source}}}),
            json!({"bootstrap": {"restore": {"source": source, "backupRef": {"name": "b"}}}}),
        ),
        change(
            CLUSTER,
            "size may only grow",
            json!({"storage": {"size": "10Gi"}}),
            json!({"storage": {"size": "10240Mi"}}),
            json!({"storage": {"size": "9Gi"}}),
        ),
        change(
            CLUSTER,
            "storageClassName is immutable",
            json!({"storage": {"storageClassName": "fast"}}),
            json!({"storage": {"storageClassName": "fast", "size": "20Gi"}}),
            json!({"storage": {}}),
        ),
        always(
            CLUSTER,
            "autoGrow.maxSize must not be smaller than size",
            json!({"storage": {"size": "10Gi", "autoGrow": {"maxSize": "10Gi"}}}),
            json!({"storage": {"size": "10Gi", "autoGrow": {"maxSize": "9Gi"}}}),
        ),
        always(
            CLUSTER,
            "extraConfig must not name keys",
            json!({"config": {"extraConfig": {"max-txn-ops": "256"}}}),
            json!({"config": {"extraConfig": {"initial-cluster": "a=http://a:2380"}}}),
        ),
        always(
            CLUSTER,
            "electionTimeout must be at least five heartbeats",
            json!({"config": {"heartbeatInterval": "200ms", "electionTimeout": "1s"}}),
            json!({"config": {"heartbeatInterval": "201ms", "electionTimeout": "1s"}}),
        ),
        always(
            CLUSTER,
            "retention must be a number without a unit when mode is Revision",
            json!({"config": {"compaction": {"mode": "Revision", "retention": "10000"}}}),
            json!({"config": {"compaction": {"mode": "Revision", "retention": "1h"}}}),
        ),
        always(
            CLUSTER,
            "issuer must be set when TLS is on",
            json!({"tls": {"client": {"mode": "Required"}, "issuer": own_authority}}),
            json!({"tls": {"client": {"mode": "Required"}}}),
        ),
        change(
            CLUSTER,
            "peer.mode is immutable",
            json!({"tls": {"issuer": own_authority}}),
            json!({"tls": {"issuer": own_authority, "renewBefore": "24h"}}),
            json!({"tls": {"issuer": own_authority, "peer": {"mode": "Required"}}}),
        ),
        change(
            CLUSTER,
            "mode changes between Disabled and Required only through Permissive",
            json!({"tls": {"issuer": own_authority, "client": {"mode": "Disabled"}}}),
            json!({"tls": {"issuer": own_authority, "client": {"mode": "Permissive"}}}),
            json!({"tls": {"issuer": own_authority, "client": {"mode": "Required"}}}),
        ),
        always(
            CLUSTER,
            "exactly one of certManager, operatorCA and secrets",
            json!({"tls": {"issuer": {"certManager": {"issuerRef": a}}}}),
            json!({"tls": {"issuer": {"certManager": {"issuerRef": a}, "operatorCA": {}}}}),
        ),
        change(
            BACKUP,
            "a backup is an immutable record",
            json!({"clusterRef": a, "store": claim}),
            json!({"clusterRef": a, "store": claim, "deletionPolicy": "Delete"}),
            json!({"clusterRef": a, "store": bucket}),
        ),
        always(
            BACKUP,
            "exactly one of s3, gcs, azure and pvc",
            json!({"clusterRef": a, "store": bucket}),
            json!({"clusterRef": a, "store": {}}),
        ),
        change(
            SCHEDULE,
            "clusterRef is immutable",
            nightly(&a, &claim),
            nightly(&a, &bucket),
            nightly(&b, &claim),
        ),
        always(
            SCHEDULE,
            "exactly one of s3, gcs, azure and pvc",
            nightly(&a, &claim),
            nightly(&a, &both),
        ),
        always(
            CLUSTER,
            "exactly one of s3, gcs, azure and pvc",
            json!({"bootstrap": {"restore": {"source": source}}}),
            json!({"bootstrap": {"restore": {"source": {"store": both, "artifact": "x"}}}}),
        ),
        always(
            TASK,
            "exactly one of defrag, compact, moveLeader",
            json!({"clusterRef": a, "verifyConsistency": {}}),
            json!({"clusterRef": a, "defrag": {}, "compact": {}}),
        ),
        change(
            TASK,
            "a task is immutable",
            json!({"clusterRef": a, "compact": {"revision": 5}}),
            json!({"clusterRef": a, "compact": {"revision": 5}}),
            json!({"clusterRef": a, "compact": {"revision": 6}}),
        ),
    ]
}

fn schema(kind: &str) -> Value {
    let all = definitions();
    let definition = all.iter().find(|d| d.spec.names.kind == kind).unwrap();
    let schema = serde_json::to_value(&definition.spec.versions[0].schema).unwrap();
    schema["openAPIV3Schema"].clone()
}

/// The messages of the rules that refuse an object, or a change to it. A rule that cannot be evaluated fails the test.
fn refusals(schema: &Value, spec: &Value, old: Option<&Value>) -> Vec<String> {
    let object = |spec: &Value| json!({"spec": spec});
    let old = old.map(object);
    let Err(errors) = Validator::new().validate(schema, &object(spec), old.as_ref()) else {
        return Vec::new();
    };
    errors
        .into_vec()
        .into_iter()
        .map(|error| {
            assert_eq!(error.kind, ErrorKind::ValidationFailure, "{error}");
            error.message
        })
        .collect()
}

#[test]
fn each_rule_accepts_and_refuses_when_an_object_is_made_and_when_it_is_changed() {
    for case in cases() {
        let Case { kind, words, .. } = case;
        let schema = schema(kind);
        let is_refused = |spec: &Value, old: Option<&Value>| {
            let all = refusals(&schema, spec, old);
            all.iter().any(|message| message.starts_with(words))
        };
        match &case.old {
            Some(old) => {
                let none = Vec::<String>::new();
                assert_eq!(
                    refusals(&schema, &case.accepted, Some(old)),
                    none,
                    "{words}"
                );
                assert!(is_refused(&case.refused, Some(old)), "{kind}: {words}");
                // It is about a change: as a new object, both are good.
                assert_eq!(refusals(&schema, &case.accepted, None), none, "{words}");
                assert_eq!(refusals(&schema, &case.refused, None), none, "{words}");
            }
            None => {
                for old in [None, Some(&case.accepted)] {
                    let found = refusals(&schema, &case.accepted, old);
                    assert!(found.is_empty(), "{kind}: {words}: {found:?}");
                    assert!(is_refused(&case.refused, old), "{kind}: {words}");
                }
            }
        }
    }
}

/// A new rule needs a case above.
#[test]
fn no_rule_is_without_a_case() {
    fn collect(schema: &Value, messages: &mut BTreeSet<String>) {
        for rule in schema["x-kubernetes-validations"]
            .as_array()
            .into_iter()
            .flatten()
        {
            messages.insert(rule["message"].as_str().unwrap().to_owned());
        }
        for inner in schema["properties"].as_object().into_iter().flatten() {
            collect(inner.1, messages);
        }
        if schema["items"].is_object() {
            collect(&schema["items"], messages);
        }
    }
    let cases = cases();
    let mut rules = 0;
    for kind in [CLUSTER, BACKUP, SCHEDULE, TASK] {
        let mut messages = BTreeSet::new();
        collect(&schema(kind), &mut messages);
        rules += messages.len();
        for message in messages {
            let is_covered = cases
                .iter()
                .any(|case| case.kind == kind && message.starts_with(case.words));
            assert!(is_covered, "{kind}: {message}");
        }
    }
    assert_eq!(rules, cases.len(), "a case is about no rule");
}
