//! Go's quoted strings, and how etcdctl cuts a line into arguments.

use std::fmt::Write as _;

use crate::failure::{ExitCode, Failure};

/// Bytes as Go's `%q` writes them.
pub fn quote(bytes: &[u8]) -> String {
    let mut text = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            push_character(&mut text, character);
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text.push('"');
    text
}

fn push_character(text: &mut String, character: char) {
    match character {
        '"' => text.push_str("\\\""),
        '\\' => text.push_str("\\\\"),
        '\u{7}' => text.push_str("\\a"),
        '\u{8}' => text.push_str("\\b"),
        '\u{c}' => text.push_str("\\f"),
        '\n' => text.push_str("\\n"),
        '\r' => text.push_str("\\r"),
        '\t' => text.push_str("\\t"),
        '\u{b}' => text.push_str("\\v"),
        control if control < ' ' || control == '\u{7f}' => {
            let _ = write!(text, "\\x{:02x}", u32::from(control));
        }
        hidden if hidden.is_control() => {
            let _ = write!(text, "\\u{:04x}", u32::from(hidden));
        }
        other => text.push(other),
    }
}

/// Reads a quoted string at the begin of a text; returns its bytes and the rest.
pub fn unquote(text: &str) -> Option<(Vec<u8>, &str)> {
    let mut rest = text.strip_prefix('"')?;
    let mut bytes = Vec::new();
    loop {
        let character = rest.chars().next()?;
        rest = &rest[character.len_utf8()..];
        match character {
            '"' => return Some((bytes, rest)),
            '\\' => rest = unescape(rest, &mut bytes)?,
            other => bytes.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// Reads what stands behind a backslash.
fn unescape<'a>(rest: &'a str, bytes: &mut Vec<u8>) -> Option<&'a str> {
    let kind = rest.chars().next()?;
    let behind = &rest[kind.len_utf8()..];
    let simple = match kind {
        'a' => 7,
        'b' => 8,
        'f' => 12,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 11,
        '"' => b'"',
        '\\' => b'\\',
        'x' => {
            bytes.push(u8::from_str_radix(behind.get(..2)?, 16).ok()?);
            return Some(&behind[2..]);
        }
        'u' | 'U' => {
            let digits = if kind == 'u' { 4 } else { 8 };
            let number = u32::from_str_radix(behind.get(..digits)?, 16).ok()?;
            let character = char::from_u32(number)?;
            bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            return Some(&behind[digits..]);
        }
        '0'..='7' => {
            bytes.push(u8::from_str_radix(rest.get(..3)?, 8).ok()?);
            return Some(&rest[3..]);
        }
        _ => return None,
    };
    bytes.push(simple);
    Some(behind)
}

/// Cuts a line into arguments: words, `'as it is'`, and `"quoted as in Go"`.
///
/// # Errors
/// A quoted argument that does not end or holds a wrong escape.
pub fn split_arguments(line: &str) -> Result<Vec<String>, Failure> {
    let mut arguments = Vec::new();
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        match first {
            '"' => {
                let (bytes, behind) = unquote(rest).ok_or_else(|| {
                    Failure::new(ExitCode::InvalidInput, format!("bad quoting: {rest}"))
                })?;
                arguments.push(String::from_utf8_lossy(&bytes).into_owned());
                rest = behind;
            }
            '\'' => match rest[1..].split_once('\'') {
                Some((inner, behind)) => {
                    arguments.push(inner.to_owned());
                    rest = behind;
                }
                None => {
                    return Err(Failure::new(
                        ExitCode::InvalidInput,
                        format!("bad quoting: {rest}"),
                    ));
                }
            },
            _ => {
                let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
                arguments.push(rest[..end].to_owned());
                rest = &rest[end..];
            }
        }
        rest = rest.trim_start();
    }
    Ok(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quoted_is_unquoted_again() {
        for bytes in [
            &b"plain"[..],
            b"a\"b\\c",
            b"\x00\x01\n\t\x7f",
            b"\xff\xfe",
            "é✓".as_bytes(),
        ] {
            let quoted = quote(bytes);
            assert_eq!(unquote(&quoted), Some((bytes.to_vec(), "")), "{quoted}");
        }
        assert_eq!(quote(b"a\x01b\n\xff"), "\"a\\x01b\\n\\xff\"");
    }

    #[test]
    fn lines_are_cut_as_etcdctl_cuts_them() {
        let arguments =
            split_arguments("put key \"over\\nwrote\" 'it is' --lease=1").expect("valid");
        assert_eq!(
            arguments,
            ["put", "key", "over\nwrote", "it is", "--lease=1"]
        );
        assert!(split_arguments("put \"open").is_err());
    }
}
