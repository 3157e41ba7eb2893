//! The commands, one file for each group, and how the one that was asked for is found.

mod auth;
mod check;
mod completion;
mod concurrency;
mod endpoint;
mod key_value;
mod lease;
mod maintenance;
mod member;
mod mirror;
mod txn;
mod watch;

use std::fmt::Write as _;

use futures::future::BoxFuture;

use crate::client::{Client, ClientOptions};
use crate::failure::Failure;
use crate::flags::{Arguments, FlagSpec, Kind, flag};
use crate::output::Printer;
use crate::terminal::{say, write_stdout};

/// The version of etcd whose etcdctl this program stands in for.
const ETCDCTL_VERSION: &str = "3.7.3";
/// The version of the API, as etcdctl tells it.
const API_VERSION: &str = "3.7";

/// What a command does.
type Run = fn(Context) -> BoxFuture<'static, Result<(), Failure>>;

/// One command.
pub struct Command {
    /// Its words: `["lease", "grant"]`.
    pub path: &'static [&'static str],
    /// What follows the words.
    pub usage: &'static str,
    /// What it does: one line.
    pub help: &'static str,
    /// Its own flags.
    pub flags: &'static [FlagSpec],
    /// Does it.
    pub run: Run,
}

impl Command {
    /// Whether it needs no server: then variables cannot contradict flags.
    fn is_offline(&self) -> bool {
        ["version", "completion", "options"].contains(&self.path[0])
    }
}

/// A command as a line of a table.
const fn command(
    path: &'static [&'static str],
    usage: &'static str,
    help: &'static str,
    flags: &'static [FlagSpec],
    run: Run,
) -> Command {
    Command {
        path,
        usage,
        help,
        flags,
        run,
    }
}

/// Groups of commands, in the order of `--help`.
const GROUPS: &[(&str, &[&[Command]])] = &[
    (
        "Key-value commands",
        &[
            key_value::COMMANDS,
            txn::COMMANDS,
            lease::COMMANDS,
            watch::COMMANDS,
        ],
    ),
    (
        "Cluster maintenance commands",
        &[member::COMMANDS, endpoint::COMMANDS, maintenance::COMMANDS],
    ),
    ("Concurrency commands", &[concurrency::COMMANDS]),
    ("Authentication commands", &[auth::COMMANDS]),
    (
        "Utility commands",
        &[
            mirror::COMMANDS,
            check::COMMANDS,
            completion::COMMANDS,
            UTILITY_COMMANDS,
        ],
    ),
];

const UTILITY_COMMANDS: &[Command] = &[
    command(
        &["version"],
        "",
        "Prints the version of metastorectl",
        &[],
        |_| Box::pin(async { version() }),
    ),
    command(
        &["options"],
        "",
        "Prints the flags that every command takes",
        &[],
        |_| Box::pin(async { options() }),
    ),
];

/// The flags that every command takes: etcdctl's, with its defaults.
pub const GLOBAL_FLAGS: &[FlagSpec] = &[
    flag("endpoints", Kind::List, "127.0.0.1:2379", "gRPC endpoints"),
    flag(
        "debug",
        Kind::Boolean,
        "false",
        "enable client-side debug logging",
    ),
    flag(
        "write-out",
        Kind::Text,
        "simple",
        "set the output format (fields, json, protobuf, simple, table)",
    )
    .short('w'),
    flag(
        "hex",
        Kind::Boolean,
        "false",
        "print byte strings as hex encoded strings",
    ),
    flag(
        "dial-timeout",
        Kind::Duration,
        "2s",
        "dial timeout for client connections",
    ),
    flag(
        "command-timeout",
        Kind::Duration,
        "5s",
        "timeout for short running command (excluding dial timeout)",
    ),
    flag(
        "keepalive-time",
        Kind::Duration,
        "2s",
        "keepalive time for client connections",
    ),
    flag(
        "keepalive-timeout",
        Kind::Duration,
        "6s",
        "keepalive timeout for client connections",
    ),
    flag(
        "max-request-bytes",
        Kind::Signed,
        "0",
        "client-side request send limit in bytes (the server has its own)",
    ),
    flag(
        "max-recv-bytes",
        Kind::Signed,
        "0",
        "client-side response receive limit in bytes (if 0, 2 GiB)",
    ),
    flag(
        "insecure-transport",
        Kind::Boolean,
        "true",
        "disable transport security for client connections",
    ),
    flag(
        "insecure-discovery",
        Kind::Boolean,
        "true",
        "accept insecure SRV records describing cluster endpoints",
    ),
    flag(
        "insecure-skip-tls-verify",
        Kind::Boolean,
        "false",
        "skip server certificate verification (CAUTION: this option should be enabled only for testing purposes)",
    ),
    flag(
        "cert",
        Kind::Text,
        "",
        "identify secure client using this TLS certificate file",
    ),
    flag(
        "key",
        Kind::Text,
        "",
        "identify secure client using this TLS key file",
    ),
    flag(
        "cacert",
        Kind::Text,
        "",
        "verify certificates of TLS-enabled secure servers using this CA bundle",
    ),
    flag(
        "auth-jwt-token",
        Kind::Text,
        "",
        "JWT token used for authentication (if this option is used, --user and --password should not be set)",
    ),
    flag(
        "user",
        Kind::Text,
        "",
        "username[:password] for authentication (prompt if password is not supplied)",
    ),
    flag(
        "password",
        Kind::Text,
        "",
        "password for authentication (if this option is used, --user option shouldn't include password)",
    ),
    flag(
        "discovery-srv",
        Kind::Text,
        "",
        "domain name to query for SRV records describing cluster endpoints",
    )
    .short('d'),
    flag(
        "discovery-srv-name",
        Kind::Text,
        "",
        "service name to query when using DNS discovery",
    ),
    flag("help", Kind::Boolean, "false", "help for this command").short('h'),
];

/// What a command gets.
pub struct Context {
    /// Flags and arguments.
    pub arguments: Arguments,
    /// Shows answers.
    pub printer: Printer,
    /// How to reach the members.
    pub options: ClientOptions,
}

impl Context {
    /// A connection to the first member that answers.
    ///
    /// # Errors
    /// None answers.
    pub async fn client(&self) -> Result<Client, Failure> {
        Client::connect(&self.options).await
    }

    /// An argument.
    ///
    /// # Panics
    /// There are fewer; the command has checked it.
    pub fn argument(&self, position: usize) -> &str {
        &self.arguments.positional[position]
    }

    /// How many arguments there are.
    pub fn argument_count(&self) -> usize {
        self.arguments.positional.len()
    }
}

fn commands() -> impl Iterator<Item = &'static Command> {
    GROUPS
        .iter()
        .flat_map(|(_, tables)| *tables)
        .flat_map(|table| *table)
}

/// Runs the command that the arguments name.
///
/// # Errors
/// With the exit code and what to say.
pub fn run(arguments: &[String]) -> Result<(), Failure> {
    let (command, rest) = match find(arguments)? {
        Found::Command(command, rest) => (command, rest),
        Found::Help(path) => {
            write_stdout(help(&path).as_bytes());
            return Ok(());
        }
    };
    let flags: Vec<&FlagSpec> = command.flags.iter().chain(GLOBAL_FLAGS).collect();
    let mut arguments = Arguments::parse(&rest, &flags)?;
    if arguments.boolean("help") {
        write_stdout(command_help(command).as_bytes());
        return Ok(());
    }
    read_environment(&mut arguments, command.is_offline())?;
    let mut context = Context {
        printer: Printer::new(arguments.text("write-out"), arguments.boolean("hex"))?,
        options: ClientOptions::from_flags(&arguments)?,
        arguments,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let result = runtime.block_on(async {
        context.options.discover(&context.arguments).await?;
        (command.run)(context).await
    });
    // A thread that waits for the standard input must not hold up the end.
    runtime.shutdown_background();
    result
}

/// Global flags that were not given are taken from `ETCDCTL_…`. As in etcdctl, nobody may be left to guess which
/// of both counts.
fn read_environment(arguments: &mut Arguments, is_offline: bool) -> Result<(), Failure> {
    for flag in GLOBAL_FLAGS {
        let variable = flag.environment_variable();
        if arguments.is_set(flag.name) && std::env::var_os(&variable).is_some() && !is_offline {
            return Err(Failure::error(format!(
                "conflicting environment variable {variable} is shadowed by corresponding command-line flag \
                 (either unset environment variable or disable flag)"
            )));
        }
        if arguments.is_set(flag.name) || flag.name == "help" {
            continue;
        }
        match std::env::var(&variable) {
            Ok(value) if !value.is_empty() => arguments.set(flag, value)?,
            _ => {}
        }
    }
    Ok(())
}

enum Found {
    Command(&'static Command, Vec<String>),
    /// The words of the group whose commands are to be listed.
    Help(Vec<&'static str>),
}

/// Finds the command: its words stand before all other arguments, but flags may stand between them.
/// A word may be cut short as long as it is unique.
fn find(arguments: &[String]) -> Result<Found, Failure> {
    let mut path: Vec<&'static str> = Vec::new();
    let mut rest = Vec::new();
    let mut remaining = arguments.iter();
    while let Some(argument) = remaining.next() {
        if argument == "--" {
            rest.push(argument.clone());
            break;
        }
        if argument.starts_with('-') && argument.len() > 1 {
            rest.push(argument.clone());
            if takes_value(argument)
                && let Some(value) = remaining.next()
            {
                rest.push(value.clone());
            }
            continue;
        }
        if argument == "help" && path.is_empty() {
            let topics: Vec<String> = remaining.cloned().collect();
            return match find(&topics)? {
                Found::Command(command, _) => Ok(Found::Command(command, vec!["-h".to_owned()])),
                help => Ok(help),
            };
        }
        match next_word(&path, argument) {
            Ok(word) => path.push(word),
            // As etcdctl: an unknown word of a group shows the group.
            Err(_) if !path.is_empty() => return Ok(Found::Help(path)),
            Err(failure) => return Err(failure),
        }
        let complete = commands().find(|command| command.path == path.as_slice());
        if let Some(command) = complete {
            rest.extend(remaining.cloned());
            return Ok(Found::Command(command, rest));
        }
    }
    Ok(Found::Help(path))
}

/// The word of a command that an argument means.
fn next_word(path: &[&str], argument: &str) -> Result<&'static str, Failure> {
    let mut candidates: Vec<&'static str> = commands()
        .filter(|command| command.path.starts_with(path))
        .filter_map(|command| command.path.get(path.len()).copied())
        .filter(|word| word.starts_with(argument))
        .collect();
    candidates.dedup();
    match candidates.as_slice() {
        [only] => Ok(only),
        several => several
            .iter()
            .find(|word| **word == argument)
            .copied()
            .ok_or_else(|| {
                Failure::error(format!(
                    "unknown command {argument:?} for \"metastorectl\"\nRun 'metastorectl --help' for usage."
                ))
            }),
    }
}

/// Whether the argument behind a flag is its value.
fn takes_value(argument: &str) -> bool {
    if argument.contains('=') {
        return false;
    }
    let all = || {
        GLOBAL_FLAGS
            .iter()
            .chain(commands().flat_map(|command| command.flags))
    };
    let found = match argument.strip_prefix("--") {
        Some(name) => all().find(|flag| flag.name == name),
        None if argument.len() == 2 => {
            let letter = argument.chars().nth(1);
            all().find(|flag| flag.short == letter)
        }
        None => None,
    };
    found.is_some_and(|flag| flag.kind != Kind::Boolean)
}

fn version() -> Result<(), Failure> {
    // Scripts read etcdctl's two lines.
    say(format!("etcdctl version: {ETCDCTL_VERSION}"));
    say(format!("API version: {API_VERSION}"));
    say(format!(
        "metastorectl version: {}",
        env!("CARGO_PKG_VERSION")
    ));
    Ok(())
}

fn options() -> Result<(), Failure> {
    say("The following options can be passed to any command:\n");
    write_stdout(flag_lines(GLOBAL_FLAGS).as_bytes());
    Ok(())
}

fn flag_lines(flags: &[FlagSpec]) -> String {
    let names: Vec<String> = flags
        .iter()
        .map(|flag| {
            let short = flag
                .short
                .map_or("    ".to_owned(), |letter| format!("-{letter}, "));
            format!("  {short}--{} {}", flag.name, flag.kind.value_name())
                .trim_end()
                .to_owned()
        })
        .collect();
    let width = names.iter().map(String::len).max().unwrap_or(0);
    let mut text = String::new();
    for (name, flag) in names.iter().zip(flags) {
        let default = match (flag.kind, flag.default) {
            (Kind::Boolean, "false") | (_, "" | "0") => String::new(),
            (Kind::Text, default) => format!(" (default \"{default}\")"),
            (Kind::List, default) => format!(" (default [{default}])"),
            (_, default) => format!(" (default {default})"),
        };
        let _ = writeln!(text, "{name:width$}   {}{default}", flag.help);
    }
    text
}

fn command_help(command: &Command) -> String {
    let mut text = format!(
        "{}\n\nUsage:\n  metastorectl {} {}\n",
        command.help,
        command.path.join(" "),
        command.usage
    );
    if !command.flags.is_empty() {
        let _ = write!(text, "\nFlags:\n{}", flag_lines(command.flags));
    }
    text.push_str("\nUse \"metastorectl options\" for a list of global command-line options (applies to all commands).\n");
    text
}

/// The list of the commands whose words begin with `path`.
fn help(path: &[&str]) -> String {
    let mut text = String::from(
        "The command line client of MetaStore and etcd.\n\nUsage:\n  metastorectl [command]\n",
    );
    for (title, tables) in GROUPS {
        let listed: Vec<_> = tables
            .iter()
            .flat_map(|table| *table)
            .filter(|command| command.path.starts_with(path))
            .collect();
        if listed.is_empty() {
            continue;
        }
        let _ = write!(text, "\n{title}:\n");
        for command in listed {
            let _ = writeln!(text, "  {:24} {}", command.path.join(" "), command.help);
        }
    }
    text.push_str("\nUse \"metastorectl options\" for a list of global command-line options (applies to all commands).\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Option<Vec<&'static str>> {
        let arguments: Vec<_> = line.split(' ').map(str::to_owned).collect();
        match find(&arguments) {
            Ok(Found::Command(command, _)) => Some(command.path.to_vec()),
            _ => None,
        }
    }

    #[test]
    fn commands_are_found_among_flags_and_by_unique_beginnings() {
        assert_eq!(words("get a"), Some(vec!["get"]));
        assert_eq!(
            words("--endpoints a:1 -w json endpoint --cluster status"),
            Some(vec!["endpoint", "status"])
        );
        assert_eq!(words("comp 5"), None, "compaction or completion");
        assert_eq!(words("compa 5"), Some(vec!["compaction"]));
        assert_eq!(words("le gr 5"), Some(vec!["lease", "grant"]));
        assert_eq!(words("nonsense"), None);
    }

    #[test]
    fn no_command_has_a_flag_twice() {
        for command in commands() {
            let names: Vec<_> = command
                .flags
                .iter()
                .chain(GLOBAL_FLAGS)
                .map(|flag| flag.name)
                .collect();
            let mut unique = names.clone();
            unique.sort_unstable();
            unique.dedup();
            assert_eq!(unique.len(), names.len(), "{:?}", command.path);
        }
    }
}
