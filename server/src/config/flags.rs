//! The command line, in the syntax of Go's flag package.

use super::settings::{Settings, Target};

/// What the command line said.
#[derive(Debug, Default)]
pub struct CommandLine {
    /// The options that it set.
    pub settings: Settings,
    /// `--config-file`.
    pub config_file: Option<String>,
    /// `--version`.
    pub version: bool,
    /// The first argument that is not a flag.
    pub positional: Option<String>,
}

/// Why the command line could not be read.
#[derive(Debug, PartialEq, Eq)]
pub enum FlagError {
    /// `-h` or `--help`.
    Help,
    /// Anything else, with the text of Go's flag package.
    Bad(String),
}

/// Reads the arguments behind the program's name.
///
/// # Errors
///
/// For the first argument that is no flag of ours, lacks its value or has a bad one.
pub fn parse(arguments: &[String]) -> Result<CommandLine, FlagError> {
    let mut line = CommandLine::default();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let Some((name, value)) = split(argument)? else {
            // Either `--`, which ends the flags, or something that is no flag.
            line.positional = if argument == "--" {
                rest.next().cloned()
            } else {
                Some(argument.clone())
            };
            break;
        };
        let mut value = value.map(str::to_owned);
        let flag = Flag::find(name).ok_or_else(|| match name {
            "h" | "help" => FlagError::Help,
            _ => FlagError::Bad(format!("flag provided but not defined: -{name}")),
        })?;
        if !flag.is_bare() && value.is_none() {
            value = Some(
                rest.next()
                    .cloned()
                    .ok_or_else(|| FlagError::Bad(format!("flag needs an argument: -{name}")))?,
            );
        }
        flag.apply(&mut line, name, value)?;
    }
    Ok(line)
}

/// Splits `-name`, `--name` and `-name=value`; nothing for what is no flag.
fn split(argument: &str) -> Result<Option<(&str, Option<&str>)>, FlagError> {
    if argument.len() < 2 || !argument.starts_with('-') || argument == "--" {
        return Ok(None);
    }
    let text = argument.strip_prefix("--").unwrap_or(&argument[1..]);
    if text.is_empty() || text.starts_with(['-', '=']) {
        return Err(FlagError::Bad(format!("bad flag syntax: {argument}")));
    }
    Ok(Some(match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    }))
}

/// A flag: an option of the table, or one of the two that exist only on the command line.
enum Flag {
    Setting(Target),
    ConfigFile,
    Version,
}

impl Flag {
    fn find(name: &str) -> Option<Self> {
        match name {
            "config-file" => Some(Self::ConfigFile),
            "version" => Some(Self::Version),
            _ => Target::find(name).map(Self::Setting),
        }
    }

    fn is_bare(&self) -> bool {
        match self {
            Self::Setting(target) => target.kind().is_bare(),
            Self::ConfigFile => false,
            Self::Version => true,
        }
    }

    fn apply(
        self,
        line: &mut CommandLine,
        name: &str,
        value: Option<String>,
    ) -> Result<(), FlagError> {
        let text = value.unwrap_or_else(|| "true".to_owned());
        match self {
            Self::ConfigFile => line.config_file = Some(text),
            Self::Version => {
                line.version = super::value::parse_boolean(&text)
                    .map_err(|error| bad_value(name, &text, true, &error))?;
            }
            Self::Setting(target) => {
                let is_boolean = matches!(target.kind(), super::value::Kind::Boolean);
                line.settings
                    .set_text(target, &text)
                    .map_err(|error| bad_value(name, &text, is_boolean, &error))?;
            }
        }
        Ok(())
    }
}

fn bad_value(name: &str, text: &str, is_boolean: bool, error: &str) -> FlagError {
    FlagError::Bad(if is_boolean {
        format!("invalid boolean value {text:?} for -{name}: {error}")
    } else {
        format!("invalid value {text:?} for flag -{name}: {error}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str]) -> Result<CommandLine, FlagError> {
        parse(
            &arguments
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn flags_are_read_as_go_reads_them() {
        for arguments in [
            &["-name", "a"][..],
            &["--name", "a"],
            &["-name=a"],
            &["--name=a"],
            &["--name=b", "--name", "a"],
        ] {
            let line = read(arguments).expect("valid");
            assert_eq!(line.settings.text("name"), "a", "{arguments:?}");
        }
        for (arguments, value) in [
            (&["--pre-vote"][..], true),
            (&["--pre-vote=false"], false),
            (&["--pre-vote=0"], false),
            (
                &[
                    "--experimental-peer-skip-client-san-verification",
                    "--pre-vote",
                ],
                true,
            ),
        ] {
            let line = read(arguments).expect("valid");
            assert_eq!(line.settings.boolean("pre-vote"), value, "{arguments:?}");
        }
        // A boolean never takes the next argument.
        assert_eq!(
            read(&["--pre-vote", "false"])
                .expect("valid")
                .positional
                .as_deref(),
            Some("false")
        );
        assert_eq!(
            read(&["--", "-name"]).expect("valid").positional.as_deref(),
            Some("-name")
        );
        assert_eq!(
            read(&["-"]).expect("valid").positional.as_deref(),
            Some("-")
        );
        assert_eq!(
            read(&["--name", "--pre-vote"])
                .expect("valid")
                .settings
                .text("name"),
            "--pre-vote"
        );
        assert_eq!(read(&["--name="]).expect("valid").settings.text("name"), "");
        assert!(read(&["--version"]).expect("valid").version);
    }

    #[test]
    fn bad_flags_are_refused_with_the_text_of_go() {
        for (arguments, text) in [
            (&["--nmae=a"][..], "flag provided but not defined: -nmae"),
            (&["--name"], "flag needs an argument: -name"),
            (&["---name"], "bad flag syntax: ---name"),
            (&["-=a"], "bad flag syntax: -=a"),
            (
                &["--pre-vote=perhaps"],
                "invalid boolean value \"perhaps\" for -pre-vote: parse error",
            ),
            (
                &["--snapshot-count=-1"],
                "invalid value \"-1\" for flag -snapshot-count: parse error",
            ),
            (
                &["--initial-cluster-state=x"],
                "invalid value \"x\" for flag -initial-cluster-state: invalid value",
            ),
            (
                &["--listen-client-urls=localhost"],
                "invalid value \"localhost\" for flag -listen-client-urls: URL scheme must be http, https, unix, or unixs: localhost",
            ),
        ] {
            assert_eq!(
                read(arguments).expect_err(text),
                FlagError::Bad(text.to_owned())
            );
        }
        assert_eq!(read(&["--help"]).expect_err("help"), FlagError::Help);
        assert_eq!(read(&["-h"]).expect_err("help"), FlagError::Help);
    }

    #[test]
    fn older_spellings_are_accepted() {
        let line = read(&[
            "--experimental-watch-progress-notify-interval=5s",
            "--experimental-initial-corrupt-check",
            "--experimental-compact-hash-check-enabled=true",
            "-vv",
            "--proxy=off",
            "--enable-v2=true",
        ])
        .expect("valid");
        assert_eq!(
            line.settings.nanoseconds("watch-progress-notify-interval"),
            5_000_000_000
        );
        assert!(line.settings.gates().is_enabled("InitialCorruptCheck"));
        assert!(line.settings.gates().is_enabled("CompactHashCheck"));
    }
}
