//! The definitions as files: for `kubectl`, for the chart, and as a page for people.

use std::fmt::Write as _;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube_core::CustomResourceExt;
use serde_json::Value;

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
    .into_iter()
    .map(without_unknown_formats)
    .collect()
}

/// Rust's unsigned integers have formats that Kubernetes warns about; their minimum says the same.
fn without_unknown_formats(definition: CustomResourceDefinition) -> CustomResourceDefinition {
    fn clean(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                if fields
                    .get("format")
                    .and_then(Value::as_str)
                    .is_some_and(|format| format.starts_with("uint"))
                {
                    fields.remove("format");
                }
                fields.values_mut().for_each(clean);
            }
            Value::Array(values) => values.iter_mut().for_each(clean),
            _ => {}
        }
    }
    let mut value = serde_json::to_value(&definition).expect("definitions are plain data");
    clean(&mut value);
    serde_json::from_value(value).expect("a definition without a format is one")
}

/// Every generated file: path from the root of the repository, and text.
pub fn generated_files() -> Vec<(String, String)> {
    let mut files = Vec::new();
    for definition in definitions() {
        let value = serde_json::to_value(&definition).expect("definitions are plain data");
        let text = serde_saphyr::to_string(&value).expect("JSON is YAML");
        let text = format!("{HEADER}{text}");
        let name = format!("{}.yaml", definition.spec.names.plural);
        files.push((format!("crds/{name}"), text.clone()));
        files.push((format!("charts/metastore-operator-crds/files/{name}"), text));
    }
    files.push((
        "docs/reference/metastorecluster.md".to_owned(),
        reference_page(),
    ));
    files
}

/// The reference of all kinds.
fn reference_page() -> String {
    let mut page = String::from(
        "<!-- Generated from operator/crates/api by `make fix`; a test fails when it is stale. -->

# Custom resources

The kinds of `metastore.io/v1alpha1`, field by field. `kubectl explain metastorecluster.spec` shows the same.
*Default* is what the API server fills in; fields without one may be absent, unless they are *required*.
",
    );
    for definition in definitions() {
        let schema = &definition.spec.versions[0].schema;
        let schema = serde_json::to_value(schema).expect("schemas are plain data");
        let root = &schema["openAPIV3Schema"];
        let short: Vec<_> = definition
            .spec
            .names
            .short_names
            .iter()
            .flatten()
            .cloned()
            .collect();
        let kind = &definition.spec.names.kind;
        write_line(&mut page, &format!("\n## {kind}\n"));
        write_line(
            &mut page,
            &format!(
                "{} Short name: `{}`.",
                text(root, "description"),
                short.join("`, `")
            ),
        );
        for part in ["spec", "status"] {
            let schema = &root["properties"][part];
            write_line(&mut page, &format!("\n### {kind}: {part}\n"));
            write_line(
                &mut page,
                "| Field | Type | Default | What it is |\n|---|---|---|---|",
            );
            write_fields(&mut page, schema, "");
            let rules = rules_below(schema, part);
            if !rules.is_empty() {
                write_line(
                    &mut page,
                    "\nThe API server refuses an object that breaks one of these rules:\n",
                );
                for (place, message) in rules {
                    write_line(&mut page, &format!("* `{place}`: {message}."));
                }
            }
        }
    }
    page
}

fn write_line(page: &mut String, line: &str) {
    writeln!(page, "{line}").expect("writing to a string never fails");
}

fn text<'a>(schema: &'a Value, key: &str) -> &'a str {
    schema[key].as_str().unwrap_or_default()
}

fn write_fields(page: &mut String, schema: &Value, prefix: &str) {
    let required: Vec<_> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{prefix}{name}");
        let (kind, inner) = type_of(field);
        let default = match &field["default"] {
            Value::Null if required.contains(&&Value::String(name.clone())) => {
                "*required*".to_owned()
            }
            Value::Null | Value::Object(_) => String::new(),
            value => format!("`{value}`"),
        };
        let description = text(field, "description")
            .replace('\n', " ")
            .replace('|', "\\|");
        write_line(
            page,
            &format!("| `{path}` | {kind} | {default} | {description} |"),
        );
        // Types of Kubernetes itself are explained by Kubernetes.
        let is_foreign =
            ["resources", "affinity", "tolerations", "conditions"].contains(&name.as_str());
        if let Some(inner) = inner.filter(|_| !is_foreign) {
            let separator = if text(field, "type") == "array" {
                "[]."
            } else {
                "."
            };
            write_fields(page, inner, &format!("{path}{separator}"));
        }
    }
}

/// The type for people, and the schema of what is inside.
fn type_of(field: &Value) -> (String, Option<&Value>) {
    if let Some(values) = field["enum"].as_array() {
        let names: Vec<_> = values
            .iter()
            .filter_map(Value::as_str)
            .map(|name| format!("`{name}`"))
            .collect();
        return (names.join(", "), None);
    }
    match text(field, "type") {
        "array" => {
            let (kind, inner) = type_of(&field["items"]);
            (format!("list of {kind}"), inner)
        }
        "object" if field["additionalProperties"].is_object() => ("map of texts".to_owned(), None),
        "object" => ("object".to_owned(), Some(field)),
        "string" if text(field, "pattern").contains("(ms|s|m|h)") => ("duration".to_owned(), None),
        "string" if text(field, "pattern").contains("Ki|Mi") => ("quantity".to_owned(), None),
        "string" if text(field, "format") == "date-time" => ("time".to_owned(), None),
        "string" => ("text".to_owned(), None),
        "boolean" => ("true or false".to_owned(), None),
        other => (other.to_owned(), None),
    }
}

fn rules_below(schema: &Value, place: &str) -> Vec<(String, String)> {
    let mut rules: Vec<_> = schema["x-kubernetes-validations"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|rule| (place.to_owned(), text(rule, "message").to_owned()))
        .collect();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        rules.extend(rules_below(field, &format!("{place}.{name}")));
    }
    rules
}
