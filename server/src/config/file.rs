//! The configuration file: YAML or JSON with the keys of etcd's file.

use serde_json::{Map, Value as Json};

use super::Notice;
use super::feature_gates::FeatureGates;
use super::options::{
    FEATURE_GATES_OPTION, FLAGS_THAT_BECAME_GATES, OPTIONS, OptionSpec, find, is_legacy,
};
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
    // What etcd's YAML library does too: a key twice, and numbers such as 010. Snippets of the file do
    // not belong into a log line.
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::LastWins,
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    let document: Json = serde_saphyr::from_str_with_options(text, options)
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
        if SECTIONS
            .iter()
            .any(|section| section.eq_ignore_ascii_case(key))
        {
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
        let path = format!("{section}.{key}");
        if value.is_object() && holds_keys(&path) {
            apply_section(settings, &path, value, notices)?;
        } else {
            apply(settings, &path, value, notices)?;
        }
    }
    Ok(())
}

/// True for a section in a section.
fn holds_keys(path: &str) -> bool {
    let prefix = format!("{}.", path.to_ascii_lowercase());
    OPTIONS
        .iter()
        .any(|option| option.file_path().starts_with(&prefix))
}

/// Keys that etcd has forgotten, and skips in old files. Their flags are still known, to say why they are
/// refused.
const KEYS_UNTIL_VERSION_2: &[&str] = &["discovery", "discovery-proxy"];

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
        // Older files carry them with values of any type.
        Some(Target::Option(option)) if is_legacy(option) => Ok(()),
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

/// The option behind a key, upper or lower case, as Go's JSON decoder looks for it. Options that live
/// in a section are not known outside of it.
fn target(path: &str) -> Option<Target> {
    let path = path.to_ascii_lowercase();
    if KEYS_UNTIL_VERSION_2.contains(&path.as_str()) {
        return None;
    }
    if let Some(option) = OPTIONS.iter().find(|option| option.file_path() == path) {
        return Some(Target::Option(option));
    }
    if FLAGS_THAT_BECAME_GATES
        .iter()
        .any(|(flag, _)| *flag == path)
    {
        return Target::find(&path);
    }
    path.starts_with("experimental-")
        .then(|| find(&path))
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
            Kind::Unsigned => Value::Unsigned(unsigned(json).ok_or_else(wrong)?),
            Kind::Unsigned32 => Value::Unsigned(
                unsigned(json)
                    .filter(|number| u32::try_from(*number).is_ok())
                    .ok_or_else(wrong)?,
            ),
            Kind::Signed => Value::Signed(signed(json).ok_or_else(wrong)?),
            Kind::Duration => Value::Duration(signed(json).ok_or_else(wrong)?),
            Kind::Text => Value::Text(text_of(json).ok_or_else(wrong)?),
            Kind::Choice(words) => {
                let word = text_of(json).ok_or_else(wrong)?;
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
                let text = text_of(json).ok_or_else(wrong)?;
                if text.is_empty() {
                    return Ok(None);
                }
                Value::Urls(ListenUrl::parse_list(&text).map_err(|error| {
                    format!("unexpected error setting up {}: {error}", option.name)
                })?)
            }
            Kind::UrlsOrStar => {
                let text = text_of(json).ok_or_else(wrong)?;
                if text.is_empty() {
                    return Ok(None);
                }
                option.kind.parse(&text).map_err(|error| {
                    format!("unexpected error setting up {}: {error}", option.name)
                })?
            }
            // etcd reads this one into a text.
            Kind::Set if option.name == "host-whitelist" => {
                let text = text_of(json).ok_or_else(wrong)?;
                if text.is_empty() {
                    return Ok(None);
                }
                option.kind.parse(&text)?
            }
            Kind::List | Kind::Set => Value::List(list(json).ok_or_else(wrong)?),
            Kind::FeatureGates => {
                debug_assert_eq!(option.name, FEATURE_GATES_OPTION);
                Value::Gates(FeatureGates::parse(&text_of(json).ok_or_else(wrong)?)?)
            }
            Kind::Legacy => return Ok(None),
        };
    Ok(Some(value))
}

/// An integer, also as YAML people write it: `1e4`, `8589934592.0`.
fn signed(json: &Json) -> Option<i64> {
    // Above 2^53 a float no longer tells neighbours apart.
    const LARGEST_EXACT: f64 = 9_007_199_254_740_992.0;
    json.as_i64().or_else(|| {
        let number = json.as_f64()?;
        let is_exact = number.fract() == 0.0 && number.abs() <= LARGEST_EXACT;
        // In this range the conversion keeps the value.
        is_exact.then_some(number as i64)
    })
}

fn unsigned(json: &Json) -> Option<u64> {
    json.as_u64()
        .or_else(|| signed(json).and_then(|number| u64::try_from(number).ok()))
}

/// A text. YAML reads `name: off` as a boolean and `name: 010` as a number; to turn those back would
/// give the member another name than the one written, so they are refused, as in etcd.
fn text_of(json: &Json) -> Option<String> {
    json.as_str().map(str::to_owned)
}

/// A list of words.
fn list(json: &Json) -> Option<Vec<String>> {
    match json {
        Json::Array(words) => words.iter().map(text_of).collect(),
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
    let owner = match path.split_once('.') {
        Some(("client-transport-security" | "peer-transport-security", _)) => {
            "securityConfig.configJSON"
        }
        Some(("discovery-config", _)) => "ConfigSpec.Config",
        _ if KEYS_OF_CONFIG_JSON.contains(&path) => "configYAML.configJSON",
        _ => "configYAML.Config",
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
        "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {found} into Go struct field {owner}.{path} of type {}{hint}",
        if path == "host-whitelist" {
            "string"
        } else {
            kind.go_type()
        }
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
    fn keys_and_numbers_are_read_as_etcd_reads_them() {
        let (settings, notices) = read(
            "Name: a\nname: b\nsnapshot-count: 1e4\nmax-txn-ops: 010\nquota-backend-bytes: 8589934592.0\npre-vote: off\n",
        )
        .expect("valid");
        assert_eq!(settings.text("name"), "b");
        assert_eq!(settings.unsigned("snapshot-count"), 10_000);
        assert_eq!(settings.unsigned("max-txn-ops"), 8);
        assert_eq!(settings.signed("quota-backend-bytes"), 8_589_934_592);
        assert!(!settings.boolean("pre-vote"));
        assert!(notices.is_empty());
    }

    #[test]
    fn sections_reach_their_options() {
        let (settings, notices) = read(
            "client-transport-security:\n  cert-file: a.crt\n  allowed-hostname: [x]\n  allowed-cn: [root]\npeer-transport-security:\n  auto-tls: true\nsocket-options:\n  reuse-port: true\n",
        )
        .expect("valid");
        assert_eq!(settings.text("cert-file"), "a.crt");
        assert_eq!(settings.list("client-cert-allowed-cn"), ["root"]);
        assert!(settings.boolean("peer-auto-tls"));
        assert!(settings.boolean("socket-reuse-port"));
        assert!(notices.is_empty());

        let (settings, notices) = read(
            "discovery-config:\n  token: abc\n  client:\n    endpoints: [a:1, b:2]\n    dial-timeout: 1000000000\n    secure:\n      cacert: ca.pem\n      insecure-transport: false\n    auth:\n      username: me\n",
        )
        .expect("valid");
        assert_eq!(settings.text("discovery-token"), "abc");
        assert_eq!(settings.list("discovery-endpoints"), ["a:1", "b:2"]);
        assert_eq!(
            settings.nanoseconds("discovery-dial-timeout"),
            1_000_000_000
        );
        assert_eq!(settings.text("discovery-cacert"), "ca.pem");
        assert!(!settings.boolean("discovery-insecure-transport"));
        assert_eq!(settings.text("discovery-user"), "me");
        assert!(notices.is_empty(), "{notices:?}");
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
                "name: off",
                "cannot unmarshal bool into Go struct field configYAML.Config.name of type string",
            ),
            (
                "name: 010",
                "cannot unmarshal number into Go struct field configYAML.Config.name of type string",
            ),
            (
                "snapshot-count: 1.5",
                "cannot unmarshal number 1.5 into Go struct field configYAML.Config.snapshot-count of type uint",
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
