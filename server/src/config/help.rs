//! `--help` and the reference page, written from the table.

use std::fmt::Write as _;

use super::feature_gates::FEATURE_GATES;
use super::options::{Group, OPTIONS, OptionSpec, Status, is_legacy};

/// What stands in front of `--help`, and behind an error of the command line.
#[must_use]
pub fn usage_text() -> String {
    "Usage:

  metastore [flags]
    Start a member.

  metastore --version
    Show the versions.

  metastore -h | --help
    Show all flags.

  metastore --config-file <path>
    Read the options from a YAML or JSON file; flags and environment variables are then ignored.
    Durations in the file are integer nanoseconds, for example 600000000000 for 10m.
"
    .to_owned()
}

/// The flags by group, in the layout of etcd's help.
#[must_use]
pub fn help_text() -> String {
    let mut text = String::new();
    for group in Group::ALL {
        write_line(&mut text, format_args!("\n{}:", group.title()));
        for option in of_group(*group) {
            let default = shown_default(option);
            write_line(&mut text, format_args!("  --{} '{default}'", option.name));
            write_line(&mut text, format_args!("    {}", sentence(option)));
            if option.name == super::options::FEATURE_GATES_OPTION {
                for gate in FEATURE_GATES {
                    let stage = if gate.is_alpha { "ALPHA" } else { "BETA" };
                    write_line(
                        &mut text,
                        format_args!(
                            "    {}=true|false ({stage} - default={})",
                            gate.name, gate.default
                        ),
                    );
                }
            }
        }
    }
    text.push_str("\nA flag of the group 'Unsafe feature' gives up promises of the store.\n");
    text
}

/// The page `docs/reference/configuration.md`.
#[must_use]
pub fn reference_page() -> String {
    let mut page = String::from(
        "<!-- Generated from server/src/config/options.rs by `make fix`; a test fails when it is stale. -->

# Configuration

Every option is a flag (`--name value` or `--name=value`, one dash or two), an environment variable and a
key of the configuration file.

* The environment variable of `--some-option` is `ETCD_SOME_OPTION`; that of our own options (group
  *MetaStore*) is `METASTORE_SOME_OPTION`. Empty variables count as unset. An option that is set by flag
  and environment is an error.
* `--config-file` (or `ETCD_CONFIG_FILE`) names a YAML or JSON file. With it, flags and environment are
  ignored. Durations in the file are integer nanoseconds; lists of URLs are one comma-separated text. A
  key has the name of the option unless the table gives another one; `a.b` means key `b` in section `a`.
* Options spelt `--experimental-…`, as etcd 3.5 and 3.6 had them, are accepted.
* Flags of older versions without any meaning today are accepted and ignored.

*Effect* says what an option does here: **yes**; **none**, because there is no use for it; **refused**: a value
other than the default ends the start, because running without the feature would be a bad surprise.
",
    );
    for group in Group::ALL {
        write_line(&mut page, format_args!("\n## {}\n", group.title()));
        write_line(
            &mut page,
            format_args!("| Option | Holds | Default | Effect | What it is for |"),
        );
        write_line(&mut page, format_args!("|---|---|---|---|---|"));
        for option in of_group(*group) {
            write_line(&mut page, format_args!("{}", table_row(option)));
        }
    }
    page.push_str("\n## Feature gates\n\n| Gate | Default | Effect |\n|---|---|---|\n");
    for gate in FEATURE_GATES {
        write_line(
            &mut page,
            format_args!("| `{}` | {} | {} |", gate.name, gate.default, gate.meaning),
        );
    }
    page
}

fn of_group(group: Group) -> impl Iterator<Item = &'static OptionSpec> {
    OPTIONS
        .iter()
        .filter(move |option| option.group == group && !is_legacy(option))
}

fn shown_default(option: &OptionSpec) -> &'static str {
    match option.name {
        "data-dir" => "${name}.metastore",
        _ => option.default,
    }
}

/// Help, unit, meaning of the empty value, and status, in one line.
fn sentence(option: &OptionSpec) -> String {
    let mut text = option.help.to_owned();
    if !option.unit.is_empty() {
        write!(text, " Unit: {}.", option.unit).expect("writing to a string never fails");
    }
    text.push_str(&meaning_of_empty(option));
    match option.status {
        Status::Used => {}
        Status::Ignored(_) => text.push_str(" Accepted without effect."),
        Status::Unsupported(_) => text.push_str(" Not supported yet."),
    }
    text
}

/// What 0 or the empty value means, as a sentence with a space in front; empty where it says nothing.
fn meaning_of_empty(option: &OptionSpec) -> String {
    match option.empty {
        "" => String::new(),
        // It names the value itself, for example `0 = never`.
        meaning if meaning.contains(" = ") => format!(" {meaning}."),
        meaning => format!(" Empty = {meaning}."),
    }
}

fn table_row(option: &OptionSpec) -> String {
    let mut name = format!("`--{}`", option.name);
    if !option.file_key.is_empty() {
        write!(name, "<br>file: `{}`", option.file_key).expect("writing to a string never fails");
    }
    let mut holds = option.kind.describe();
    if !option.unit.is_empty() {
        write!(holds, ", {}", option.unit).expect("writing to a string never fails");
    }
    let default = match shown_default(option) {
        "" => "(empty)".to_owned(),
        default => format!("`{default}`"),
    };
    let (effect, reason) = match option.status {
        Status::Used => ("yes", String::new()),
        Status::Ignored(reason) => ("none", format!(" *Ignored: {reason}.*")),
        Status::Unsupported(missing) => ("refused", format!(" *Missing: {missing}.*")),
    };
    let empty = meaning_of_empty(option);
    format!(
        "| {name} | {holds} | {default} | {effect} | {}{empty}{reason} |",
        option.help
    )
}

fn write_line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("writing to a string never fails");
}
