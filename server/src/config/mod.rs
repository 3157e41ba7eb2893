//! Options: from the command line, the environment or a file to a checked [`Config`].
//!
//! ```text
//! options (the table) ─► flags ─┐
//!                    ─► environment ─► Settings ─► Config ─► validate ─► the server
//!                    ─► file ───┘        (values)   (typed)
//!                    ─► help, reference page, dump at the start
//! ```
//!
//! The rules are etcd's: the configuration file replaces flags *and* environment; a setting made by
//! flag and environment is an error; validation has etcd's order and texts. It never opens a file of
//! the store, binds a socket or asks a name server.

mod bootstrap;
mod discovery;
mod environment;
mod feature_gates;
mod file;
mod flags;
mod help;
pub mod identity;
mod options;
mod settings;
mod tls;
mod typed;
mod url;
mod validate;
mod value;

use std::ffi::OsString;
use std::path::Path;

pub use bootstrap::{InitialCluster, same_addresses};
pub use discovery::DiscoverySettings;
pub use feature_gates::{FEATURE_GATES, FeatureGate, FeatureGates};
pub use help::{help_text, reference_page, usage_text};
pub use options::{Group, OPTIONS, OptionSpec, Status, is_legacy};
pub use settings::Settings;
pub use tls::{TlsSettings, TlsVersion};
pub use typed::{AutoCompaction, ClusterState, Config, Engine};
pub use url::{ListenUrl, Scheme, join};
pub use validate::METRICS_NEED_TLS;
pub use value::{Kind, Value, format_duration, parse_duration};

use crate::observe::log;

/// What the process was asked to do.
#[derive(Debug)]
pub enum Parsed {
    /// Start a member.
    Start {
        /// The checked configuration.
        config: Box<Config>,
        /// What to log once logging works.
        notices: Vec<Notice>,
    },
    /// Print and end with status 0 (`--help`, `--version`).
    Print {
        /// For the standard output.
        stdout: String,
        /// For the standard error output, written first.
        stderr: String,
    },
}

/// A log line that is due before logging is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// `info` or `warn`.
    pub level: log::Level,
    /// The message.
    pub message: String,
    /// Fields of the line.
    pub fields: Vec<(&'static str, String)>,
}

impl Notice {
    pub(crate) fn info(message: impl Into<String>) -> Self {
        Self {
            level: log::Level::Info,
            message: message.into(),
            fields: Vec::new(),
        }
    }

    pub(crate) fn warn(message: impl Into<String>) -> Self {
        Self {
            level: log::Level::Warn,
            message: message.into(),
            fields: Vec::new(),
        }
    }

    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.fields.push((name, value.to_owned()));
        self
    }

    /// Writes the line.
    pub fn log(&self) {
        let fields: Vec<_> = self
            .fields
            .iter()
            .map(|(name, value)| (*name, value.as_str().into()))
            .collect();
        log::record(self.level, log::here!(), &self.message, &fields);
    }
}

/// Why the process cannot start with these options.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The command line is not understood: exit status 2, the text goes to the standard error output as
    /// it is.
    #[error("{0}")]
    Usage(String),
    /// A value is missing, wrong or contradicts another one: exit status 1.
    #[error("{message}")]
    Invalid {
        /// Etcd's text.
        message: String,
    },
    /// Flag and environment set the same option: exit status 1.
    #[error(
        "conflicting environment variable is shadowed by corresponding command-line flag (either unset environment variable or disable flag))"
    )]
    Conflict {
        /// The environment variable.
        variable: String,
    },
}

impl ConfigError {
    fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid {
            message: message.into(),
        }
    }

    fn conflict(variable: &str) -> Self {
        Self::Conflict {
            variable: variable.to_owned(),
        }
    }

    /// The exit status with which etcd ends.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Invalid { .. } | Self::Conflict { .. } => 1,
        }
    }

    /// Says it on the standard error output: usage errors as text, others as a log line.
    pub fn report(&self) {
        match self {
            Self::Usage(text) => log::write_stderr(text),
            Self::Invalid { message } => {
                log::record(
                    log::Level::Warn,
                    log::here!(),
                    "failed to verify flags",
                    &[("error", message.as_str().into())],
                );
                if message == validate::ADVERTISE_CLIENT_URLS_REQUIRED {
                    log::record(
                        log::Level::Warn,
                        log::here!(),
                        "advertise client URLs are not set",
                        &[("error", message.as_str().into())],
                    );
                }
            }
            Self::Conflict { variable } => log::record(
                log::Level::Fatal,
                log::here!(),
                &self.to_string(),
                &[("environment-variable", variable.as_str().into())],
            ),
        }
    }
}

impl Config {
    /// Reads the whole configuration of a process: its arguments, the first of which is its own name,
    /// its environment, and the configuration file if they name one.
    ///
    /// # Errors
    ///
    /// [`ConfigError::report`] says it in etcd's words, [`ConfigError::exit_code`] is the status to end
    /// with.
    pub fn from_process(
        arguments: impl IntoIterator<Item = OsString>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Parsed, ConfigError> {
        let arguments: Vec<String> = arguments
            .into_iter()
            .map(|argument| argument.to_string_lossy().into_owned())
            .collect();
        let environment: Vec<(String, String)> = environment
            .into_iter()
            .map(|(name, value)| {
                (
                    name.to_string_lossy().into_owned(),
                    value.to_string_lossy().into_owned(),
                )
            })
            .collect();
        let (program, arguments) = match arguments.split_first() {
            Some((program, rest)) => (program.as_str(), rest),
            None => ("metastore", &[][..]),
        };
        if let Some(command) = arguments.first()
            && command == "grpc-proxy"
        {
            return Err(ConfigError::invalid(format!(
                "the sub-command {command:?} is not supported yet (docs/limitations.md)"
            )));
        }
        read(program, arguments, &environment)
    }
}

fn read(
    program: &str,
    arguments: &[String],
    environment: &[(String, String)],
) -> Result<Parsed, ConfigError> {
    let line = match flags::parse(arguments) {
        Ok(line) => line,
        Err(flags::FlagError::Help) => {
            return Ok(Parsed::Print {
                stdout: help_text(),
                stderr: usage_text(),
            });
        }
        Err(flags::FlagError::Bad(text)) => {
            return Err(ConfigError::Usage(format!("{text}\n{}", usage_text())));
        }
    };
    if let Some(argument) = line.positional {
        return Err(ConfigError::invalid(format!(
            "{argument:?} is not a valid flag"
        )));
    }
    if line.version {
        return Ok(Parsed::Print {
            stdout: crate::version::text(),
            stderr: String::new(),
        });
    }

    let mut notices = Vec::new();
    let from_environment = || {
        let (_, path) = environment
            .iter()
            .find(|(name, _)| name == environment::CONFIG_FILE_VARIABLE)?;
        Some(path.clone()).filter(|path| !path.is_empty())
    };
    let path = line
        .config_file
        .filter(|path| !path.is_empty())
        .or_else(from_environment);
    let (settings, has_file) = if let Some(path) = path {
        let settings = read_file(Path::new(&path), &mut notices)?;
        notices.push(
            Notice::info(
                "loaded server configuration, other configuration command line flags and environment variables will be ignored if provided",
            )
            .with("path", &path),
        );
        (settings, true)
    } else {
        let mut settings = line.settings;
        environment::apply(&mut settings, environment, &mut notices)?;
        (settings, false)
    };
    let config = validate::check(program, settings, has_file, &mut notices)?;
    Ok(Parsed::Start {
        config: Box::new(config),
        notices,
    })
}

fn read_file(path: &Path, notices: &mut Vec<Notice>) -> Result<Settings, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError::invalid(crate::tls::open_error(path, &error)))?;
    file::parse(&text, notices).map_err(ConfigError::invalid)
}

/// What fuzzers call: it must hold for every input.
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing {
    use std::ffi::OsString;

    use super::{Config, Parsed, file, validate};

    /// Whatever stands on the command line (one word a line) or in the environment (lines that begin with
    /// `ETCD_`) gives a configuration or a reason.
    pub fn command_line(input: &[u8]) {
        let text = String::from_utf8_lossy(input).into_owned();
        // A file that it names would be read.
        if text.contains("config-file") || text.contains("CONFIG_FILE") {
            return;
        }
        let (variables, arguments): (Vec<&str>, Vec<&str>) =
            text.split('\n').partition(|line| line.starts_with("ETCD_"));
        let environment = variables
            .iter()
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (OsString::from(name), OsString::from(value)));
        let words = ["metastore"].iter().chain(&arguments).map(OsString::from);
        match Config::from_process(words, environment) {
            Ok(Parsed::Start { config, .. }) => drop(config.effective()),
            Ok(_) => {}
            Err(error) => assert!(!error.to_string().trim().is_empty(), "no reason"),
        }
    }

    /// Whatever stands in the configuration file gives a configuration or a reason.
    pub fn file(input: &[u8]) {
        let Ok(text) = std::str::from_utf8(input) else {
            return;
        };
        let mut notices = Vec::new();
        if let Ok(settings) = file::parse(text, &mut notices) {
            // What can be read can be checked.
            let _ = validate::check("metastore", settings, true, &mut notices);
        }
    }
}

#[cfg(test)]
mod tests;
