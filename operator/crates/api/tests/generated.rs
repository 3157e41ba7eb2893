//! What is generated is fresh, and small enough for `kubectl apply`.

#![allow(clippy::unwrap_used, reason = "in a test an unwrap is an assertion")]

use std::path::Path;

use metastore_operator_api::{definitions, generated_files};

/// Above this size a client-side `kubectl apply` fails on its annotation.
const SIZE_MAX_BYTES: usize = 200_000;

#[test]
fn generated_files_are_fresh() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    for (name, wanted) in generated_files() {
        let found = std::fs::read_to_string(root.join(&name)).unwrap_or_default();
        assert!(found == wanted, "{name} is stale: run `make fix`");
        assert!(
            wanted.len() < SIZE_MAX_BYTES,
            "{name} has {} bytes",
            wanted.len()
        );
    }
}

/// `kubectl explain` must say something about every field of a spec.
#[test]
fn every_field_is_documented() {
    fn check(schema: &serde_json::Value, path: &str, problems: &mut Vec<String>) {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            if field["description"].as_str().unwrap_or_default().is_empty() {
                problems.push(path.clone());
            }
            check(field, &path, problems);
        }
    }
    let mut problems = Vec::new();
    for definition in definitions() {
        let schema = serde_json::to_value(&definition.spec.versions[0].schema).unwrap();
        let schema = &schema["openAPIV3Schema"]["properties"]["spec"];
        check(schema, &definition.spec.names.kind, &mut problems);
    }
    assert!(
        problems.is_empty(),
        "not documented: {}",
        problems.join(", ")
    );
}
