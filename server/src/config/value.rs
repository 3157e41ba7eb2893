//! The kinds of option values, and Go's rules for reading and writing them.

use std::fmt;

use super::feature_gates::FeatureGates;
use super::url::{self, ListenUrl};

/// What an option holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`; on the command line the bare flag means `true`.
    Boolean,
    /// Any text.
    Text,
    /// An integer from 0.
    Unsigned,
    /// An integer from 0 that fits into 32 bits.
    Unsigned32,
    /// An integer.
    Signed,
    /// A Go duration such as `1h30m` or `300ms`; in the configuration file integer nanoseconds.
    Duration,
    /// Comma list of URLs; the empty text keeps the default.
    Urls,
    /// Comma list of URLs, or `*`; the empty text keeps the default.
    UrlsOrStar,
    /// Comma list without order or duplicates.
    Set,
    /// Comma list.
    List,
    /// One of the given words.
    Choice(&'static [&'static str]),
    /// `Name=true,Other=false`.
    FeatureGates,
    /// A flag of old etcd versions without any meaning; never needs a value.
    Legacy,
}

impl Kind {
    /// True if the flag may stand alone on the command line.
    #[must_use]
    pub const fn is_bare(self) -> bool {
        matches!(self, Self::Boolean | Self::Legacy)
    }

    /// The word of the reference page.
    #[must_use]
    pub fn describe(self) -> String {
        match self {
            Self::Boolean => "true or false".to_owned(),
            Self::Text => "text".to_owned(),
            Self::Unsigned | Self::Unsigned32 => "integer ≥ 0".to_owned(),
            Self::Signed => "integer".to_owned(),
            Self::Duration => "duration".to_owned(),
            Self::Urls => "URLs".to_owned(),
            Self::UrlsOrStar => "URLs or `*`".to_owned(),
            Self::Set | Self::List => "comma list".to_owned(),
            Self::Choice(words) => words
                .iter()
                .map(|word| format!("`{word}`"))
                .collect::<Vec<_>>()
                .join(" or "),
            Self::FeatureGates => "`Name=true,…`".to_owned(),
            Self::Legacy => "nothing".to_owned(),
        }
    }

    /// The name of Go's type, for the error texts of the configuration file.
    #[must_use]
    pub const fn go_type(self) -> &'static str {
        match self {
            Self::Boolean => "bool",
            Self::Unsigned => "uint",
            Self::Unsigned32 => "uint32",
            Self::Signed => "int",
            Self::Duration => "time.Duration",
            Self::List | Self::Set => "[]string",
            _ => "string",
        }
    }

    /// Reads a value as the command line and the environment write it.
    ///
    /// # Errors
    ///
    /// The text that Go's flag package puts behind `invalid value "…" for flag -name: `.
    pub fn parse(self, text: &str) -> Result<Value, String> {
        Ok(match self {
            Self::Boolean => Value::Boolean(parse_boolean(text)?),
            Self::Text => Value::Text(text.to_owned()),
            Self::Unsigned => Value::Unsigned(parse_unsigned(text)?),
            // etcd's own type for this kind passes on the words of Go's parser.
            Self::Unsigned32 => {
                let fail = |error: &str| format!("strconv.ParseUint: parsing {text:?}: {error}");
                let number = parse_unsigned(text).map_err(|error| match error.as_str() {
                    "parse error" => fail("invalid syntax"),
                    other => fail(other),
                })?;
                if number > u64::from(u32::MAX) {
                    return Err(fail("value out of range"));
                }
                Value::Unsigned(number)
            }
            Self::Signed => Value::Signed(parse_signed(text)?),
            Self::Duration => Value::Duration(parse_duration(text)?),
            Self::Urls => Value::Urls(ListenUrl::parse_list(text)?),
            Self::UrlsOrStar if text == "*" => Value::List(vec![text.to_owned()]),
            Self::UrlsOrStar => Value::List(
                ListenUrl::parse_list(text)?
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
            ),
            Self::Set => {
                let mut words = split_list(text);
                words.sort();
                words.dedup();
                Value::List(words)
            }
            Self::List => Value::List(split_list(text)),
            Self::Choice(words) => {
                if !words.contains(&text) {
                    return Err("invalid value".to_owned());
                }
                Value::Text(text.to_owned())
            }
            Self::FeatureGates => Value::Gates(FeatureGates::parse(text)?),
            Self::Legacy => Value::Boolean(true),
        })
    }
}

fn split_list(text: &str) -> Vec<String> {
    if text.is_empty() {
        Vec::new()
    } else {
        text.split(',').map(str::to_owned).collect()
    }
}

/// A value of an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// See [`Kind::Boolean`].
    Boolean(bool),
    /// See [`Kind::Text`] and [`Kind::Choice`].
    Text(String),
    /// See [`Kind::Unsigned`].
    Unsigned(u64),
    /// See [`Kind::Signed`].
    Signed(i64),
    /// Nanoseconds; see [`Kind::Duration`].
    Duration(i64),
    /// See [`Kind::Urls`].
    Urls(Vec<ListenUrl>),
    /// See [`Kind::List`] and [`Kind::Set`].
    List(Vec<String>),
    /// See [`Kind::FeatureGates`].
    Gates(FeatureGates),
}

impl fmt::Display for Value {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean(value) => write!(formatter, "{value}"),
            Self::Text(value) => formatter.write_str(value),
            Self::Unsigned(value) => write!(formatter, "{value}"),
            Self::Signed(value) => write!(formatter, "{value}"),
            Self::Duration(nanoseconds) => formatter.write_str(&format_duration(*nanoseconds)),
            Self::Urls(urls) => formatter.write_str(&url::join(urls)),
            Self::List(words) => formatter.write_str(&words.join(",")),
            Self::Gates(gates) => write!(formatter, "{gates}"),
        }
    }
}

/// Go's `strconv.ParseBool`.
pub(super) fn parse_boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("parse error".to_owned()),
    }
}

/// Go's `strconv.ParseUint(text, 0, 64)`: decimal, or with the prefixes 0x, 0o, 0b, 0.
fn parse_unsigned(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let (digits, radix) = match lower.as_str() {
        number if number.starts_with("0x") => (&number[2..], 16),
        number if number.starts_with("0o") => (&number[2..], 8),
        number if number.starts_with("0b") => (&number[2..], 2),
        number if number.len() > 1 && number.starts_with('0') => (&number[1..], 8),
        number => (number, 10),
    };
    let digits = digits.replace('_', "");
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return Err("parse error".to_owned());
    }
    u64::from_str_radix(&digits, radix).map_err(|_| "value out of range".to_owned())
}

fn parse_signed(text: &str) -> Result<i64, String> {
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let magnitude = i128::from(parse_unsigned(digits)?);
    i64::try_from(if negative { -magnitude } else { magnitude })
        .map_err(|_| "value out of range".to_owned())
}

const NANOSECOND: i128 = 1;
const MICROSECOND: i128 = 1_000;
const MILLISECOND: i128 = 1_000_000;
const SECOND: i128 = 1_000_000_000;
const MINUTE: i128 = 60 * SECOND;
const HOUR: i128 = 60 * MINUTE;

/// Go's `time.ParseDuration`, in nanoseconds.
///
/// # Errors
///
/// `parse error`, which is what Go's flag package makes of any of them.
pub fn parse_duration(text: &str) -> Result<i64, String> {
    let error = || "parse error".to_owned();
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(error());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(error());
        }
        let end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        let unit = match unit {
            "ns" => NANOSECOND,
            "us" | "µs" | "μs" => MICROSECOND,
            "ms" => MILLISECOND,
            "s" => SECOND,
            "m" => MINUTE,
            "h" => HOUR,
            _ => return Err(error()),
        };
        // Eighteen digits of a whole number of hours already overflow; more would overflow i128.
        if whole.len() > 18 {
            return Err(error());
        }
        let whole: i128 = if whole.is_empty() {
            0
        } else {
            whole.parse().map_err(|_| error())?
        };
        total += whole * unit;
        let mut scale = unit;
        for digit in fraction.bytes().take(18) {
            scale /= 10;
            total += i128::from(digit - b'0') * scale;
        }
        rest = next;
    }
    i64::try_from(if negative { -total } else { total }).map_err(|_| error())
}

/// Go's `time.Duration.String`.
#[must_use]
pub fn format_duration(nanoseconds: i64) -> String {
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let magnitude = i128::from(nanoseconds.unsigned_abs());
    let text = match magnitude {
        0 => "0s".to_owned(),
        small if small < MICROSECOND => format!("{}ns", decimal(small, NANOSECOND)),
        small if small < MILLISECOND => format!("{}µs", decimal(small, MICROSECOND)),
        small if small < SECOND => format!("{}ms", decimal(small, MILLISECOND)),
        _ => {
            let seconds = decimal(magnitude % MINUTE, SECOND);
            match (magnitude / HOUR, magnitude % HOUR / MINUTE) {
                (0, 0) => format!("{seconds}s"),
                (0, minutes) => format!("{minutes}m{seconds}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    };
    format!("{sign}{text}")
}

/// `value / unit` as a decimal number without trailing zeros; `unit` is a power of ten.
fn decimal(value: i128, unit: i128) -> String {
    let (whole, fraction) = (value / unit, value % unit);
    if fraction == 0 {
        return whole.to_string();
    }
    let width = usize::try_from(unit.ilog10()).expect("a unit has at most nine zeros");
    let digits = format!("{fraction:0width$}");
    format!("{whole}.{}", digits.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, nanoseconds) in [
            ("0", 0),
            ("0s", 0),
            ("5s", 5_000_000_000),
            ("1h30m", 5_400_000_000_000),
            ("1.5s", 1_500_000_000),
            ("300ms", 300_000_000),
            ("10us", 10_000),
            ("-1m", -60_000_000_000),
            (".5s", 500_000_000),
        ] {
            assert_eq!(parse_duration(text), Ok(nanoseconds), "{text}");
        }
        for text in [
            "",
            "5",
            "s",
            "1x",
            "1.2.3s",
            "--1s",
            "99999999999999999999h",
            "1h 2m",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (nanoseconds, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (300_000_000, "300ms"),
            (1_500_000_000, "1.5s"),
            (60_000_000_000, "1m0s"),
            (600_000_000_000, "10m0s"),
            (60_500_000_000, "1m0.5s"),
            (7_200_000_000_000, "2h0m0s"),
            (-5_000_000_000, "-5s"),
        ] {
            assert_eq!(format_duration(nanoseconds), text);
            assert_eq!(parse_duration(text), Ok(nanoseconds));
        }
    }

    #[test]
    fn numbers_know_the_prefixes_of_go() {
        assert_eq!(parse_unsigned("10"), Ok(10));
        assert_eq!(parse_unsigned("0x10"), Ok(16));
        assert_eq!(parse_unsigned("010"), Ok(8));
        assert_eq!(parse_unsigned("1_000"), Ok(1000));
        assert_eq!(parse_unsigned("0"), Ok(0));
        assert_eq!(parse_signed("-1"), Ok(-1));
        for text in ["", "-1", "x", "0x", "08", "1.5"] {
            assert!(parse_unsigned(text).is_err(), "{text}");
        }
        assert_eq!(
            parse_unsigned("99999999999999999999"),
            Err("value out of range".to_owned())
        );
    }
}
