//! The values of all options, and who set them.

use std::collections::BTreeMap;

use super::feature_gates::FeatureGates;
use super::options::{FEATURE_GATES_OPTION, FLAGS_THAT_BECAME_GATES, OPTIONS, OptionSpec, find};
use super::url::ListenUrl;
use super::value::{Kind, Value, parse_boolean};

/// Options by name; those that nobody set have their default.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    set: BTreeMap<&'static str, Value>,
}

/// What a name on the command line, in the environment or in the file stands for.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// An option.
    Option(&'static OptionSpec),
    /// A feature gate that used to be a flag.
    Gate(&'static str),
}

impl Target {
    /// Finds what a name stands for, older spellings included.
    #[must_use]
    pub fn find(name: &str) -> Option<Self> {
        FLAGS_THAT_BECAME_GATES
            .iter()
            .find(|(flag, _)| *flag == name)
            .map(|(_, gate)| Self::Gate(gate))
            .or_else(|| find(name).map(Self::Option))
    }

    /// The kind of its value.
    #[must_use]
    pub const fn kind(self) -> Kind {
        match self {
            Self::Option(option) => option.kind,
            Self::Gate(_) => Kind::Boolean,
        }
    }
}

impl Settings {
    /// Sets a value from its text on the command line or in the environment.
    ///
    /// # Errors
    ///
    /// As [`Kind::parse`].
    pub fn set_text(&mut self, target: Target, text: &str) -> Result<(), String> {
        match target {
            Target::Option(option) => {
                let keeps_default =
                    text.is_empty() && matches!(option.kind, Kind::Urls | Kind::UrlsOrStar);
                let value = if keeps_default {
                    option.default_value()
                } else if text.is_empty() && option.name == "log-outputs" {
                    // What Go's `strings.Split` makes of it: one output without a name.
                    Value::List(vec![String::new()])
                } else {
                    option.kind.parse(text)?
                };
                self.set_value(option, value);
            }
            Target::Gate(gate) => {
                let value = parse_boolean(text)?;
                let mut gates = self.gates();
                gates.set(gate, value)?;
                self.set.insert(FEATURE_GATES_OPTION, Value::Gates(gates));
            }
        }
        Ok(())
    }

    /// Sets a value. Gates are added to those that are set already.
    pub fn set_value(&mut self, option: &'static OptionSpec, value: Value) {
        self.set.insert(option.name, value);
    }

    /// True if the command line, the environment or the file set it.
    #[must_use]
    pub fn is_set(&self, name: &'static str) -> bool {
        self.set.contains_key(name)
    }

    /// The options that were set, in the order of the table.
    pub fn changed(&self) -> impl Iterator<Item = (&'static OptionSpec, &Value)> {
        OPTIONS
            .iter()
            .filter_map(|option| Some((option, self.set.get(option.name)?)))
    }

    /// The value of an option of the table.
    #[must_use]
    pub fn value(&self, name: &'static str) -> Value {
        self.set.get(name).cloned().unwrap_or_else(|| {
            find(name)
                .expect("the names in the code are those of the table")
                .default_value()
        })
    }
}

/// Typed reads. The kind of an option is a constant of the table, so a mismatch is a bug that the first
/// test finds.
impl Settings {
    pub(super) fn boolean(&self, name: &'static str) -> bool {
        match self.value(name) {
            Value::Boolean(value) => value,
            other => panic!("--{name} is not a boolean but {other:?}"),
        }
    }

    pub(super) fn text(&self, name: &'static str) -> String {
        match self.value(name) {
            Value::Text(value) => value,
            other => panic!("--{name} is not a text but {other:?}"),
        }
    }

    pub(super) fn unsigned(&self, name: &'static str) -> u64 {
        match self.value(name) {
            Value::Unsigned(value) => value,
            other => panic!("--{name} is not an unsigned integer but {other:?}"),
        }
    }

    pub(super) fn signed(&self, name: &'static str) -> i64 {
        match self.value(name) {
            Value::Signed(value) => value,
            other => panic!("--{name} is not an integer but {other:?}"),
        }
    }

    /// Nanoseconds; negative durations exist in Go.
    pub(super) fn nanoseconds(&self, name: &'static str) -> i64 {
        match self.value(name) {
            Value::Duration(value) => value,
            other => panic!("--{name} is not a duration but {other:?}"),
        }
    }

    pub(super) fn urls(&self, name: &'static str) -> Vec<ListenUrl> {
        match self.value(name) {
            Value::Urls(value) => value,
            other => panic!("--{name} is not a list of URLs but {other:?}"),
        }
    }

    pub(super) fn list(&self, name: &'static str) -> Vec<String> {
        match self.value(name) {
            Value::List(value) => value,
            other => panic!("--{name} is not a list but {other:?}"),
        }
    }

    pub(super) fn gates(&self) -> FeatureGates {
        match self.value(FEATURE_GATES_OPTION) {
            Value::Gates(value) => value,
            other => panic!("--{FEATURE_GATES_OPTION} is not a list of gates but {other:?}"),
        }
    }
}
