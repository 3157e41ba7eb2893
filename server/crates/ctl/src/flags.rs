//! Flags as Go's pflag reads them: `--name value`, `--name=value`, `-n value`, `-nvalue`, bare
//! booleans, anywhere among the arguments, until `--`.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::failure::Failure;

/// What a flag holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`; bare means `true`.
    Boolean,
    /// A text.
    Text,
    /// A signed number.
    Signed,
    /// A number.
    Unsigned,
    /// A duration in Go's form.
    Duration,
    /// Texts, separated by commas or given several times.
    List,
}

impl Kind {
    /// What `--help` calls the value.
    pub const fn value_name(self) -> &'static str {
        match self {
            Self::Boolean => "",
            Self::Text => "string",
            Self::Signed => "int",
            Self::Unsigned => "uint",
            Self::Duration => "duration",
            Self::List => "strings",
        }
    }
}

/// One flag.
#[derive(Clone, Copy, Debug)]
pub struct FlagSpec {
    /// Without dashes.
    pub name: &'static str,
    /// One letter, if it has one.
    pub short: Option<char>,
    /// What it holds.
    pub kind: Kind,
    /// Its value when nobody sets it.
    pub default: &'static str,
    /// What it is for.
    pub help: &'static str,
}

/// A flag without a letter.
pub const fn flag(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    help: &'static str,
) -> FlagSpec {
    FlagSpec {
        name,
        short: None,
        kind,
        default,
        help,
    }
}

impl FlagSpec {
    /// Gives it a letter.
    pub const fn short(mut self, letter: char) -> Self {
        self.short = Some(letter);
        self
    }

    /// The environment variable that sets it.
    pub fn environment_variable(&self) -> String {
        format!("ETCDCTL_{}", self.name.to_uppercase().replace('-', "_"))
    }
}

/// The values of flags, and the other arguments.
#[derive(Clone, Debug, Default)]
pub struct Arguments {
    values: BTreeMap<&'static str, String>,
    set: Vec<&'static str>,
    /// What is no flag, in order.
    pub positional: Vec<String>,
    /// Where in `positional` what stood behind `--` begins.
    pub separator: Option<usize>,
}

impl Arguments {
    /// Reads arguments with these flags.
    ///
    /// # Errors
    /// An unknown flag, or a value that is none.
    pub fn parse(arguments: &[String], flags: &[&FlagSpec]) -> Result<Self, Failure> {
        let mut parsed = Self {
            values: flags
                .iter()
                .map(|flag| (flag.name, flag.default.to_owned()))
                .collect(),
            ..Self::default()
        };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            if argument == "--" {
                parsed.separator = Some(parsed.positional.len());
                parsed.positional.extend(rest.cloned());
                break;
            }
            if let Some(long) = argument.strip_prefix("--") {
                let (name, value) = match long.split_once('=') {
                    Some((name, value)) => (name, Some(value.to_owned())),
                    None => (long, None),
                };
                let flag = flags
                    .iter()
                    .find(|flag| flag.name == name)
                    .ok_or_else(|| Failure::error(format!("unknown flag: --{name}")))?;
                parsed.take(flag, value, &mut rest)?;
            } else if argument.len() > 1 && argument.starts_with('-') {
                parsed.take_letters(argument, flags, &mut rest)?;
            } else {
                parsed.positional.push(argument.clone());
            }
        }
        Ok(parsed)
    }

    fn take_letters<'a>(
        &mut self,
        argument: &str,
        flags: &[&FlagSpec],
        rest: &mut impl Iterator<Item = &'a String>,
    ) -> Result<(), Failure> {
        let mut letters = argument[1..].chars();
        while let Some(letter) = letters.next() {
            let flag = flags
                .iter()
                .find(|flag| flag.short == Some(letter))
                .ok_or_else(|| {
                    Failure::error(format!("unknown shorthand flag: {letter:?} in {argument}"))
                })?;
            let attached = letters.as_str();
            if let Some(value) = attached.strip_prefix('=') {
                return self.take(flag, Some(value.to_owned()), rest);
            }
            if flag.kind == Kind::Boolean {
                self.take(flag, None, rest)?;
            } else {
                let value = (!attached.is_empty()).then(|| attached.to_owned());
                return self.take(flag, value, rest);
            }
        }
        Ok(())
    }

    fn take<'a>(
        &mut self,
        flag: &FlagSpec,
        value: Option<String>,
        rest: &mut impl Iterator<Item = &'a String>,
    ) -> Result<(), Failure> {
        let value = match value {
            Some(value) => value,
            None if flag.kind == Kind::Boolean => "true".to_owned(),
            None => rest.next().cloned().ok_or_else(|| {
                Failure::error(format!("flag needs an argument: --{}", flag.name))
            })?,
        };
        self.set(flag, value)
    }

    /// Sets a flag, as if it had been given.
    ///
    /// # Errors
    /// The value is none of its kind.
    pub fn set(&mut self, flag: &FlagSpec, value: String) -> Result<(), Failure> {
        let valid = match flag.kind {
            Kind::Text | Kind::List => true,
            Kind::Boolean => parse_boolean(&value).is_some(),
            Kind::Signed => value.parse::<i64>().is_ok(),
            Kind::Unsigned => value.parse::<u64>().is_ok(),
            Kind::Duration => parse_duration(&value).is_some(),
        };
        if !valid {
            return Err(Failure::error(format!(
                "invalid argument {value:?} for \"--{}\" flag",
                flag.name
            )));
        }
        let again = self.set.contains(&flag.name);
        let stored = self.values.entry(flag.name).or_default();
        if flag.kind == Kind::List && again {
            stored.push(',');
            stored.push_str(&value);
        } else {
            *stored = value;
        }
        self.set.push(flag.name);
        Ok(())
    }

    /// True if the flag was given.
    pub fn is_set(&self, name: &str) -> bool {
        self.set.contains(&name)
    }

    /// The value of a flag.
    ///
    /// # Panics
    /// The command has no such flag.
    pub fn text(&self, name: &str) -> &str {
        self.values
            .get(name)
            .unwrap_or_else(|| panic!("the flag --{name} is not in the command's table"))
    }

    /// The value of a boolean.
    pub fn boolean(&self, name: &str) -> bool {
        parse_boolean(self.text(name)).unwrap_or(false)
    }

    /// The value of a number.
    pub fn number(&self, name: &str) -> i64 {
        self.text(name).parse().unwrap_or(0)
    }

    /// The value of a duration.
    pub fn duration(&self, name: &str) -> Duration {
        parse_duration(self.text(name)).unwrap_or_default()
    }

    /// The values of a list, without surrounding spaces.
    pub fn list(&self, name: &str) -> Vec<String> {
        self.text(name)
            .split(',')
            .map(|part| part.trim().to_owned())
            .filter(|part| !part.is_empty())
            .collect()
    }
}

/// Go's booleans.
fn parse_boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Go's durations: `1h2m3.5s`, `300ms`; 0 needs no unit.
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut seconds = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .filter(|length| *length > 0)?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        seconds += number
            * match &rest[..unit] {
                "ns" => 1e-9,
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    (!text.is_empty()).then(|| Duration::from_secs_f64(seconds))
}

/// A duration as Go writes it.
pub fn format_duration(duration: Duration) -> String {
    let nanoseconds = duration.as_nanos();
    if nanoseconds == 0 {
        return "0s".to_owned();
    }
    for (unit, limit) in [("ns", 1_000_u128), ("µs", 1_000_000), ("ms", 1_000_000_000)] {
        if nanoseconds < limit {
            let one = limit / 1_000;
            return format!("{}{unit}", fraction(nanoseconds, one));
        }
    }
    let total_seconds = duration.as_secs();
    let (hours, minutes) = (total_seconds / 3600, total_seconds / 60 % 60);
    let rest = nanoseconds - u128::from(total_seconds / 60 * 60) * 1_000_000_000;
    let seconds = fraction(rest, 1_000_000_000);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

/// `value / one`, without zeros at the end.
fn fraction(value: u128, one: u128) -> String {
    let digits = one.ilog10() as usize;
    if digits == 0 {
        return value.to_string();
    }
    let text = format!("{}.{:0digits$}", value / one, value % one);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: &[FlagSpec] = &[
        flag("prefix", Kind::Boolean, "false", ""),
        flag("write-out", Kind::Text, "simple", "").short('w'),
        flag("endpoints", Kind::List, "127.0.0.1:2379", ""),
        flag("rev", Kind::Signed, "0", ""),
    ];

    fn parse(line: &str) -> Result<Arguments, Failure> {
        let arguments: Vec<_> = line.split(' ').map(str::to_owned).collect();
        Arguments::parse(&arguments, &FLAGS.iter().collect::<Vec<_>>())
    }

    #[test]
    fn flags_stand_anywhere_and_in_every_form() {
        for line in [
            "key --prefix -w json --rev 7",
            "--prefix=true -wjson key --rev=7",
            "-w=json --rev 7 --prefix key",
        ] {
            let parsed = parse(line).expect("valid");
            assert!(parsed.boolean("prefix"), "{line}");
            assert_eq!(parsed.text("write-out"), "json", "{line}");
            assert_eq!(parsed.number("rev"), 7, "{line}");
            assert_eq!(parsed.positional, ["key"], "{line}");
        }
        let parsed = parse("a -- --prefix b").expect("valid");
        assert_eq!(parsed.positional, ["a", "--prefix", "b"]);
        assert_eq!(parsed.separator, Some(1));
        assert!(parse("--unknown").is_err());
        assert!(parse("--rev x").is_err());
        assert_eq!(
            parse("--endpoints a,b --endpoints c")
                .expect("valid")
                .list("endpoints"),
            ["a", "b", "c"]
        );
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (nanoseconds, text) in [
            (0, "0s"),
            (900, "900ns"),
            (1_500, "1.5µs"),
            (2_030_000, "2.03ms"),
            (1_000_000_000, "1s"),
            (61_500_000_000, "1m1.5s"),
            (3_600_000_000_000, "1h0m0s"),
        ] {
            assert_eq!(format_duration(Duration::from_nanos(nanoseconds)), text);
            let parsed = parse_duration(text).expect("valid");
            assert_eq!(parsed.as_nanos(), u128::from(nanoseconds), "{text}");
        }
    }
}
