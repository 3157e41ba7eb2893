//! Texts with a meaning: durations and quantities, as Kubernetes writes them.

use std::borrow::Cow;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A duration as Go writes it: `100ms`, `30s`, `5m`, `1h30m`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub struct DurationText(pub String);

impl DurationText {
    /// The duration, or `None` when the text is none. The API server refuses such a text, so it can
    /// only come from an object that is older than the rule.
    pub fn parse(&self) -> Option<Duration> {
        let mut rest = self.0.as_str();
        let mut total = Duration::ZERO;
        while !rest.is_empty() {
            let number_len = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
            let number: f64 = rest[..number_len].parse().ok()?;
            rest = &rest[number_len..];
            let unit_len = rest
                .find(|c: char| c.is_ascii_digit())
                .unwrap_or(rest.len());
            let unit_seconds = match &rest[..unit_len] {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
            total = total.checked_add(Duration::try_from_secs_f64(number * unit_seconds).ok()?)?;
            rest = &rest[unit_len..];
        }
        Some(total)
    }

    /// The duration, or `default` when the text is none.
    pub fn or(&self, default: Duration) -> Duration {
        self.parse().unwrap_or(default)
    }
}

impl From<&str> for DurationText {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl JsonSchema for DurationText {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "DurationText".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 32,
            "pattern": r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$",
        })
    }
}

/// An amount of bytes or of CPU as Kubernetes writes it: `20Gi`, `500m`, `1000000`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub struct QuantityText(pub String);

impl QuantityText {
    /// The amount in whole units (bytes), rounded up; `None` when the text is no quantity.
    pub fn units(&self) -> Option<u64> {
        quantity_units(&self.0)
    }
}

/// Reads a quantity of Kubernetes, rounded up to whole units.
pub fn quantity_units(text: &str) -> Option<u64> {
    let number_len = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let number: f64 = text[..number_len].parse().ok()?;
    let factor = match &text[number_len..] {
        "" => 1.0,
        "m" => 0.001,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "Ki" => 1024.0,
        "Mi" => 1024f64.powi(2),
        "Gi" => 1024f64.powi(3),
        "Ti" => 1024f64.powi(4),
        "Pi" => 1024f64.powi(5),
        _ => return None,
    };
    let units = (number * factor).ceil();
    // Beyond 2^53 a float skips whole numbers; nobody has such a volume.
    (0.0..9e15).contains(&units).then_some(units as u64)
}

impl From<&str> for QuantityText {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl JsonSchema for QuantityText {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "QuantityText".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 32,
            "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        let read = |text: &str| DurationText::from(text).parse();
        assert_eq!(read("100ms"), Some(Duration::from_millis(100)));
        assert_eq!(read("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(read("1.5s"), Some(Duration::from_millis(1500)));
        assert_eq!(read("5"), None);
        assert_eq!(read("5 m"), None);
        assert_eq!(read("99999999999999999999999h"), None);
    }

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        assert_eq!(quantity_units("20Gi"), Some(20 << 30));
        assert_eq!(quantity_units("1.5k"), Some(1500));
        assert_eq!(quantity_units("500m"), Some(1));
        assert_eq!(quantity_units("7"), Some(7));
        assert_eq!(quantity_units("7 Gi"), None);
        assert_eq!(quantity_units(""), None);
    }
}
