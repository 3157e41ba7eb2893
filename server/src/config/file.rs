//! The configuration file: YAML or JSON with the keys of etcd's file.

use serde_json::{Map, Value as Json};

use super::Notice;
use super::feature_gates::FeatureGates;
use super::options::{FEATURE_GATES_OPTION, FLAGS_THAT_BECAME_GATES, OPTIONS, OptionSpec, find};
use super::settings::{Settings, Target};
use super::url::ListenUrl;
use super::value::{Kind, Value};

/// Keys that hold keys of their own.
const SECTIONS: &[&str] = &[
    "client-transport-security",
    "peer-transport-security",
    "discovery-config",
    "socket-options",
];

/// Reads the text of a configuration file.
///
/// Unknown keys are skipped, as etcd does, but with a notice: a setting with a typing error should not
/// be lost in silence.
///
/// # Errors
///
/// Text that is no YAML, and values of the wrong type, with etcd's texts.
pub fn parse(text: &str, notices: &mut Vec<Notice>) -> Result<Settings, String> {
    let mut settings = Settings::default();
    if text.trim().is_empty() {
        return Ok(settings);
    }
    let document: Json = serde_saphyr::from_str(text)
        .map_err(|error| format!("error converting YAML to JSON: {error}"))?;
    let root = match document {
        Json::Null => return Ok(settings),
        Json::Object(root) => root,
        other => {
            return Err(format!(
                "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {} into Go value of type embed.configYAML",
                json_type(&other)
            ));
        }
    };
    for (key, value) in &root {
        if SECTIONS.contains(&key.as_str()) {
            apply_section(&mut settings, key, value, notices)?;
        } else {
            apply(&mut settings, key, value, notices)?;
        }
    }
    Ok(settings)
}

fn apply_section(
    settings: &mut Settings,
    section: &str,
    value: &Json,
    notices: &mut Vec<Notice>,
) -> Result<(), String> {
    let empty = Map::new();
    let keys = match value {
        Json::Null => &empty,
        Json::Object(keys) => keys,
        other => {
            return Err(format!(
                "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {} into Go struct field configYAML.configJSON.{section} of type embed.securityConfig",
                json_type(other)
            ));
        }
    };
    for (key, value) in keys {
        apply(settings, &format!("{section}.{key}"), value, notices)?;
    }
    Ok(())
}

fn apply(
    settings: &mut Settings,
    path: &str,
    json: &Json,
    notices: &mut Vec<Notice>,
) -> Result<(), String> {
    // An absent value keeps the default, as in Go's JSON decoder.
    if json.is_null() {
        return Ok(());
    }
    match target(path) {
        Some(Target::Option(option)) => {
            if let Some(value) = value(option, json)? {
                settings.set_value(option, value);
            }
            Ok(())
        }
        Some(Target::Gate(gate)) => match json {
            Json::Bool(on) => settings.set_text(Target::Gate(gate), &on.to_string()),
            other => Err(mismatch(path, Kind::Boolean, other)),
        },
        None => {
            notices.push(Notice::warn("unknown key in the configuration file").with("key", path));
            Ok(())
        }
    }
}

/// The option behind a key. Options that live in a section are not known outside of it.
fn target(path: &str) -> Option<Target> {
    if let Some(option) = OPTIONS.iter().find(|option| option.file_path() == path) {
        return Some(Target::Option(option));
    }
    if FLAGS_THAT_BECAME_GATES
        .iter()
        .any(|(flag, _)| *flag == path)
    {
        return Target::find(path);
    }
    path.starts_with("experimental-")
        .then(|| find(path))
        .flatten()
        .filter(|option| option.file_key.is_empty())
        .map(Target::Option)
}

/// Turns JSON into a value; nothing where the empty value keeps the default.
fn value(option: &OptionSpec, json: &Json) -> Result<Option<Value>, String> {
    let wrong = || mismatch(option.file_path(), option.kind, json);
    let value =
        match option.kind {
            Kind::Boolean => Value::Boolean(json.as_bool().ok_or_else(wrong)?),
            Kind::Unsigned => Value::Unsigned(json.as_u64().ok_or_else(wrong)?),
            Kind::Unsigned32 => Value::Unsigned(
                json.as_u64()
                    .filter(|number| u32::try_from(*number).is_ok())
                    .ok_or_else(wrong)?,
            ),
            Kind::Signed => Value::Signed(json.as_i64().ok_or_else(wrong)?),
            Kind::Duration => Value::Duration(json.as_i64().ok_or_else(wrong)?),
            Kind::Text => Value::Text(scalar(json).ok_or_else(wrong)?),
            Kind::Choice(words) => {
                let word = scalar(json).ok_or_else(wrong)?;
                if word.is_empty() {
                    return Ok(None);
                }
                if !words.contains(&word.as_str()) {
                    return Err(match option.name {
                        "initial-cluster-state" => format!("unexpected clusterState {word:?}"),
                        // etcd's sample file still says 'proxy' here, and etcd does not look at it.
                        name => format!("invalid value {word:?} for {name}"),
                    });
                }
                Value::Text(word)
            }
            Kind::Urls => {
                let text = scalar(json).ok_or_else(wrong)?;
                if text.is_empty() {
                    return Ok(None);
                }
                Value::Urls(ListenUrl::parse_list(&text).map_err(|error| {
                    format!("unexpected error setting up {}: {error}", option.name)
                })?)
            }
            Kind::UrlsOrStar => {
                let text = scalar(json).ok_or_else(wrong)?;
                if text.is_empty() {
                    return Ok(None);
                }
                option.kind.parse(&text).map_err(|error| {
                    format!("unexpected error setting up {}: {error}", option.name)
                })?
            }
            Kind::List | Kind::Set => Value::List(list(json).ok_or_else(wrong)?),
            Kind::FeatureGates => {
                debug_assert_eq!(option.name, FEATURE_GATES_OPTION);
                Value::Gates(FeatureGates::parse(&scalar(json).ok_or_else(wrong)?)?)
            }
            Kind::Legacy => return Ok(None),
        };
    Ok(Some(value))
}

/// A scalar as text: YAML reads `name: 1` as a number, and etcd's YAML library turns it back.
fn scalar(json: &Json) -> Option<String> {
    match json {
        Json::String(text) => Some(text.clone()),
        Json::Bool(_) | Json::Number(_) => Some(json.to_string()),
        _ => None,
    }
}

/// A list of words; a comma list in one text is accepted as well.
fn list(json: &Json) -> Option<Vec<String>> {
    match json {
        Json::Array(words) => words.iter().map(scalar).collect(),
        Json::String(text) if text.is_empty() => Some(Vec::new()),
        Json::String(text) => Some(text.split(',').map(str::to_owned).collect()),
        _ => None,
    }
}

/// Keys that etcd reads into a struct of its own, which its texts name.
const KEYS_OF_CONFIG_JSON: &[&str] = &[
    "listen-peer-urls",
    "listen-client-urls",
    "listen-client-http-urls",
    "initial-advertise-peer-urls",
    "advertise-client-urls",
    "cors",
    "host-whitelist",
    "feature-gates",
];

fn mismatch(path: &str, kind: Kind, json: &Json) -> String {
    let hint = match kind {
        Kind::Duration => " (durations are integer nanoseconds in the configuration file)",
        _ => "",
    };
    let owner = if KEYS_OF_CONFIG_JSON.contains(&path) {
        "configJSON"
    } else {
        "Config"
    };
    // Go names the number only where a number is wanted.
    let found = match (json, kind) {
        (
            Json::Number(number),
            Kind::Unsigned | Kind::Unsigned32 | Kind::Signed | Kind::Duration,
        ) => {
            format!("number {number}")
        }
        _ => json_type(json).to_owned(),
    };
    format!(
        "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {found} into Go struct field configYAML.{owner}.{path} of type {}{hint}",
        kind.go_type()
    )
}

const fn json_type(json: &Json) -> &'static str {
    match json {
        Json::Null => "null",
        Json::Bool(_) => "bool",
        Json::Number(_) => "number",
        Json::String(_) => "string",
        Json::Array(_) => "array",
        Json::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(Settings, Vec<Notice>), String> {
        let mut notices = Vec::new();
        parse(text, &mut notices).map(|settings| (settings, notices))
    }

    #[test]
    fn yaml_and_json_give_the_same() {
        for text in [
            "name: a\nheartbeat-interval: 50\nlog-outputs: [stderr, stdout]\nwatch-progress-notify-interval: 5000000000\n",
            "{\"name\": \"a\", \"heartbeat-interval\": 50, \"log-outputs\": [\"stderr\", \"stdout\"], \"watch-progress-notify-interval\": 5000000000}",
            "---\nname: 'a' # a comment\nheartbeat-interval: 50\nlog-outputs:\n- stderr\n- stdout\nexperimental-watch-progress-notify-interval: 5000000000\n",
        ] {
            let (settings, notices) = read(text).expect(text);
            assert_eq!(settings.text("name"), "a");
            assert_eq!(settings.unsigned("heartbeat-interval"), 50);
            assert_eq!(settings.list("log-outputs"), ["stderr", "stdout"]);
            assert_eq!(
                settings.nanoseconds("watch-progress-notify-interval"),
                5_000_000_000
            );
            assert!(notices.is_empty(), "{notices:?}");
        }
    }

    #[test]
    fn absent_values_keep_the_default() {
        let (settings, _) =
            read("data-dir:\ncors:\nlisten-peer-urls: ''\ninitial-cluster: null\nclient-transport-security:\n  cert-file:\n")
                .expect("valid");
        assert!(settings.changed().next().is_none());
        assert!(read("").is_ok());
        assert!(read("# nothing\n").is_ok());
    }

    #[test]
    fn scalars_become_texts_where_a_text_is_asked_for() {
        let (settings, _) = read("name: 1\nauto-compaction-retention: 5\n").expect("valid");
        assert_eq!(settings.text("name"), "1");
        assert_eq!(settings.text("auto-compaction-retention"), "5");
    }

    #[test]
    fn sections_reach_their_options() {
        let (settings, notices) = read(
            "client-transport-security:\n  cert-file: a.crt\n  allowed-hostname: [x]\npeer-transport-security:\n  auto-tls: true\nsocket-options:\n  reuse-port: true\n",
        )
        .expect("valid");
        assert_eq!(settings.text("cert-file"), "a.crt");
        assert!(settings.boolean("peer-auto-tls"));
        assert!(settings.boolean("socket-reuse-port"));
        assert!(notices.is_empty());
    }

    #[test]
    fn unknown_keys_are_skipped_with_a_notice() {
        // Outside of its section cert-file is unknown, in etcd too.
        let (settings, notices) = read("nmae: a\ncert-file: x\n").expect("valid");
        assert!(settings.changed().next().is_none());
        assert_eq!(notices.len(), 2);
    }

    #[test]
    fn wrong_types_are_refused() {
        for (text, message) in [
            (
                "heartbeat-interval: x",
                "cannot unmarshal string into Go struct field configYAML.Config.heartbeat-interval of type uint",
            ),
            (
                "watch-progress-notify-interval: 5s",
                "of type time.Duration (durations are integer nanoseconds",
            ),
            (
                "pre-vote: 1",
                "cannot unmarshal number into Go struct field configYAML.Config.pre-vote of type bool",
            ),
            (
                "listen-client-urls: localhost",
                "unexpected error setting up listen-client-urls: URL scheme",
            ),
            ("initial-cluster-state: x", "unexpected clusterState \"x\""),
            (
                "peer-transport-security: 1",
                "configYAML.configJSON.peer-transport-security of type embed.securityConfig",
            ),
            (
                "feature-gates: Nmae=true",
                "unrecognized feature gate: Nmae",
            ),
            ("- a", "cannot unmarshal array into Go value"),
            ("a: [", "error converting YAML to JSON"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(message), "{error}");
        }
    }
}
