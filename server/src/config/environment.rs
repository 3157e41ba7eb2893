//! Options from the environment: `ETCD_…` for etcd's, `METASTORE_…` for our own.

use super::options::{FLAGS_THAT_BECAME_GATES, OPTIONS};
use super::settings::{Settings, Target};
use super::{ConfigError, Notice};

/// The variable that names the configuration file.
pub const CONFIG_FILE_VARIABLE: &str = "ETCD_CONFIG_FILE";

/// Variables that begin with `ETCD_` and are no options.
const NOT_OPTIONS: &[&str] = &["ETCD_UNSUPPORTED_ARCH", CONFIG_FILE_VARIABLE];

/// Adds what the environment sets to what the command line set.
///
/// Empty variables count as unset, as in etcd.
///
/// # Errors
///
/// A bad value, or an option that command line and environment both set: etcd refuses to guess.
pub fn apply(
    settings: &mut Settings,
    environment: &[(String, String)],
    notices: &mut Vec<Notice>,
) -> Result<(), ConfigError> {
    let from_flags = settings.clone();
    for (variable, value) in environment {
        let target = target(variable);
        if value.is_empty() {
            continue;
        }
        match target {
            Some(Target::Option(option)) if from_flags.is_set(option.name) => {
                return Err(ConfigError::conflict(variable));
            }
            Some(target) => {
                settings.set_text(target, value).map_err(|error| {
                    ConfigError::invalid(format!("invalid value {value:?} for {variable}: {error}"))
                })?;
                notices.push(
                    Notice::info("recognized and used environment variable")
                        .with("variable-name", variable)
                        .with("variable-value", value),
                );
            }
            None if variable == "ETCD_VERSION" => notices.push(
                Notice::warn("cannot set special environment variable")
                    .with("key", variable)
                    .with("value", value),
            ),
            // METASTORE_ is not checked: Kubernetes gives every pod METASTORE_PORT and the like as soon
            // as a service is called metastore.
            None if variable.starts_with("ETCD_") && !NOT_OPTIONS.contains(&variable.as_str()) => {
                notices.push(
                    Notice::warn("unrecognized environment variable")
                        .with("environment-variable", variable),
                );
            }
            None => {}
        }
    }
    Ok(())
}

/// What a variable stands for, older spellings included.
fn target(variable: &str) -> Option<Target> {
    if let Some(option) = OPTIONS
        .iter()
        .find(|option| option.environment_variable() == variable)
    {
        return Some(Target::Option(option));
    }
    let name = variable
        .strip_prefix("ETCD_")?
        .to_lowercase()
        .replace('_', "-");
    let is_older_spelling = name.starts_with("experimental-")
        || FLAGS_THAT_BECAME_GATES
            .iter()
            .any(|(flag, _)| *flag == name);
    if is_older_spelling {
        Target::find(&name)
    } else {
        None
    }
}
