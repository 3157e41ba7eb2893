//! Finds the JSON values of a request's body, as Go's `encoding/json` does for etcd: with its
//! verdicts on bytes that are no JSON, to the letter, because clients see and compare them.

use bytes::{Bytes, BytesMut};

/// Arrays and objects inside each other; Go's `maxNestingDepth`.
const DEPTH_MAX: usize = 10_000;

/// Why a body holds no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoValue {
    /// It has ended, and what came before were whole values.
    End,
    /// It is no JSON; Go's text.
    Malformed(String),
}

/// Cuts a stream of bytes into JSON values.
#[derive(Default)]
pub struct JsonStream {
    unread: BytesMut,
    /// Bytes of `unread` that the scanner has seen.
    scanned: usize,
    scanner: Scanner,
    failed: Option<String>,
}

impl JsonStream {
    /// Takes in more bytes.
    pub fn push(&mut self, data: &[u8]) {
        self.unread.extend_from_slice(data);
    }

    /// Bytes of values that are not complete yet.
    pub fn unread_bytes(&self) -> usize {
        self.unread.len()
    }

    /// The next value without the space around it; nothing when it is not complete yet.
    ///
    /// # Errors
    /// Go's text for what is no JSON; the same again from then on.
    pub fn next_value(&mut self) -> Result<Option<Bytes>, String> {
        if let Some(text) = &self.failed {
            return Err(text.clone());
        }
        while let Some(byte) = self.unread.get(self.scanned) {
            match self.scanner.step(*byte) {
                Step::Continue => self.scanned += 1,
                Step::EndAfter => {
                    self.scanned += 1;
                    return Ok(Some(self.cut()));
                }
                Step::EndBefore => return Ok(Some(self.cut())),
                Step::Failed(text) => {
                    self.failed = Some(text.clone());
                    return Err(text);
                }
            }
        }
        Ok(None)
    }

    /// The last value of a body that has ended, where only the end completes it.
    ///
    /// # Errors
    /// [`NoValue::End`] when nothing is left, or Go's text.
    pub fn last_value(&mut self) -> Result<Bytes, NoValue> {
        match self.next_value() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => {}
            Err(text) => return Err(NoValue::Malformed(text)),
        }
        if matches!(self.scanner.step(b' '), Step::EndBefore) {
            return Ok(self.cut());
        }
        if self.unread.iter().all(|byte| is_space(*byte)) {
            return Err(NoValue::End);
        }
        let text = "unexpected EOF".to_owned();
        self.failed = Some(text.clone());
        Err(NoValue::Malformed(text))
    }

    fn cut(&mut self) -> Bytes {
        let value = self.unread.split_to(self.scanned).freeze();
        self.scanned = 0;
        self.scanner = Scanner::default();
        let start = value
            .iter()
            .position(|byte| !is_space(*byte))
            .unwrap_or(value.len());
        value.slice(start..)
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// What one more byte means.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Continue,
    /// The value ends with this byte.
    EndAfter,
    /// The value ended before this byte.
    EndBefore,
    Failed(String),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    BeginValue,
    BeginValueOrEmpty,
    BeginString,
    BeginStringOrEmpty,
    EndValue,
    InString,
    InEscape,
    /// Hexadecimal digits still to come.
    InUnicodeEscape(u8),
    Negative,
    Zero,
    Integer,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
    /// A literal, and how much of it was seen.
    Literal(&'static str, usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inside {
    ObjectKey,
    ObjectValue,
    Array,
}

#[derive(Default)]
struct Scanner {
    state: State,
    inside: Vec<Inside>,
}

impl Scanner {
    fn step(&mut self, byte: u8) -> Step {
        match self.state {
            State::BeginValue => self.begin_value(byte),
            State::BeginValueOrEmpty if byte == b']' => self.end_value(byte),
            State::BeginValueOrEmpty => self.begin_value(byte),
            State::BeginString => self.begin_string(byte),
            State::BeginStringOrEmpty if byte == b'}' => {
                if let Some(last) = self.inside.last_mut() {
                    *last = Inside::ObjectValue;
                }
                self.end_value(byte)
            }
            State::BeginStringOrEmpty => self.begin_string(byte),
            State::EndValue => self.end_value(byte),
            State::InString | State::InEscape | State::InUnicodeEscape(_) => self.in_string(byte),
            State::Literal(word, seen) => self.in_literal(word, seen, byte),
            _ => self.in_number(byte),
        }
    }

    fn go(&mut self, state: State) -> Step {
        self.state = state;
        Step::Continue
    }

    fn begin_value(&mut self, byte: u8) -> Step {
        match byte {
            _ if is_space(byte) => Step::Continue,
            b'{' => self.open(Inside::ObjectKey, State::BeginStringOrEmpty, byte),
            b'[' => self.open(Inside::Array, State::BeginValueOrEmpty, byte),
            b'"' => self.go(State::InString),
            b'-' => self.go(State::Negative),
            b'0' => self.go(State::Zero),
            b'1'..=b'9' => self.go(State::Integer),
            b't' => self.go(State::Literal("true", 1)),
            b'f' => self.go(State::Literal("false", 1)),
            b'n' => self.go(State::Literal("null", 1)),
            _ => failed(byte, "looking for beginning of value"),
        }
    }

    fn open(&mut self, inside: Inside, state: State, byte: u8) -> Step {
        if self.inside.len() >= DEPTH_MAX {
            return failed(byte, "exceeded max depth");
        }
        self.inside.push(inside);
        self.go(state)
    }

    fn begin_string(&mut self, byte: u8) -> Step {
        match byte {
            _ if is_space(byte) => Step::Continue,
            b'"' => self.go(State::InString),
            _ => failed(byte, "looking for beginning of object key string"),
        }
    }

    fn end_value(&mut self, byte: u8) -> Step {
        let Some(inside) = self.inside.last_mut() else {
            return Step::EndBefore;
        };
        self.state = State::EndValue;
        match (*inside, byte) {
            _ if is_space(byte) => Step::Continue,
            (Inside::ObjectKey, b':') => {
                *inside = Inside::ObjectValue;
                self.go(State::BeginValue)
            }
            (Inside::ObjectKey, _) => failed(byte, "after object key"),
            (Inside::ObjectValue, b',') => {
                *inside = Inside::ObjectKey;
                self.go(State::BeginString)
            }
            (Inside::Array, b',') => self.go(State::BeginValue),
            (Inside::ObjectValue, b'}') | (Inside::Array, b']') => {
                self.inside.pop();
                if self.inside.is_empty() {
                    Step::EndAfter
                } else {
                    Step::Continue
                }
            }
            (Inside::ObjectValue, _) => failed(byte, "after object key:value pair"),
            (Inside::Array, _) => failed(byte, "after array element"),
        }
    }

    fn in_string(&mut self, byte: u8) -> Step {
        match (self.state, byte) {
            (State::InString, b'"') => self.go(State::EndValue),
            (State::InString, b'\\') => self.go(State::InEscape),
            (State::InString, 0..0x20) => failed(byte, "in string literal"),
            (State::InEscape, b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"') => {
                self.go(State::InString)
            }
            (State::InEscape, b'u') => self.go(State::InUnicodeEscape(4)),
            (State::InEscape, _) => failed(byte, "in string escape code"),
            (State::InUnicodeEscape(left), _) if byte.is_ascii_hexdigit() => self.go(if left > 1 {
                State::InUnicodeEscape(left - 1)
            } else {
                State::InString
            }),
            (State::InUnicodeEscape(_), _) => failed(byte, "in \\u hexadecimal character escape"),
            _ => Step::Continue,
        }
    }

    fn in_number(&mut self, byte: u8) -> Step {
        match (self.state, byte) {
            (State::Negative, b'0') => self.go(State::Zero),
            (State::Negative, b'1'..=b'9') => self.go(State::Integer),
            (State::Negative, _) => failed(byte, "in numeric literal"),
            (State::Integer | State::Fraction | State::ExponentDigits, b'0'..=b'9') => {
                Step::Continue
            }
            (State::Zero | State::Integer, b'.') => self.go(State::Point),
            (State::Zero | State::Integer | State::Fraction, b'e' | b'E') => {
                self.go(State::Exponent)
            }
            (State::Point, b'0'..=b'9') => self.go(State::Fraction),
            (State::Point, _) => failed(byte, "after decimal point in numeric literal"),
            (State::Exponent, b'+' | b'-') => self.go(State::ExponentSign),
            (State::Exponent | State::ExponentSign, b'0'..=b'9') => self.go(State::ExponentDigits),
            (State::Exponent | State::ExponentSign, _) => {
                failed(byte, "in exponent of numeric literal")
            }
            _ => self.end_value(byte),
        }
    }

    fn in_literal(&mut self, word: &'static str, seen: usize, byte: u8) -> Step {
        let expected = word.as_bytes()[seen];
        if byte != expected {
            let expected = char::from(expected);
            return failed(byte, &format!("in literal {word} (expecting '{expected}')"));
        }
        self.go(if seen + 1 == word.len() {
            State::EndValue
        } else {
            State::Literal(word, seen + 1)
        })
    }
}

fn failed(byte: u8, context: &str) -> Step {
    let character = match byte {
        b'\'' => r"\'".to_owned(),
        b'"' => "\"".to_owned(),
        _ => quoted_char(char::from(byte)),
    };
    Step::Failed(format!("invalid character '{character}' {context}"))
}

/// A character as Go's `strconv.Quote` writes it, without the quotes.
pub fn quoted_char(character: char) -> String {
    match character {
        '\u{7}' => r"\a".to_owned(),
        '\u{8}' => r"\b".to_owned(),
        '\u{c}' => r"\f".to_owned(),
        '\n' => r"\n".to_owned(),
        '\r' => r"\r".to_owned(),
        '\t' => r"\t".to_owned(),
        '\u{b}' => r"\v".to_owned(),
        '\\' => r"\\".to_owned(),
        '"' => "\\\"".to_owned(),
        '\0'..='\u{1f}' | '\u{7f}' => format!("\\x{:02x}", u32::from(character)),
        // Not printable for Go: the controls of Latin-1, its space and its soft hyphen.
        '\u{80}'..='\u{a0}' | '\u{ad}' => format!("\\u{:04x}", u32::from(character)),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> (Vec<String>, NoValue) {
        let mut stream = JsonStream::default();
        let mut found = Vec::new();
        // One byte at a time: a value may come in any number of pieces.
        for byte in text.as_bytes() {
            stream.push(&[*byte]);
            loop {
                match stream.next_value() {
                    Ok(Some(value)) => {
                        found.push(String::from_utf8_lossy(&value).into_owned());
                    }
                    Ok(None) => break,
                    Err(text) => return (found, NoValue::Malformed(text)),
                }
            }
        }
        loop {
            match stream.last_value() {
                Ok(value) => found.push(String::from_utf8_lossy(&value).into_owned()),
                Err(end) => return (found, end),
            }
        }
    }

    #[test]
    fn values_are_cut_where_go_cuts_them() {
        let (found, end) = values(" {\"a\":[1,{}]}\n{} 12 true\"x\"null ");
        assert_eq!(
            found,
            ["{\"a\":[1,{}]}", "{}", "12", "true", "\"x\"", "null"]
        );
        assert_eq!(end, NoValue::End);
        assert_eq!(values("").1, NoValue::End);
        assert_eq!(values("12").0, ["12"]);
    }

    #[test]
    fn errors_have_the_words_of_go() {
        for (text, expected) in [
            ("{", "unexpected EOF"),
            (
                "{]",
                "invalid character ']' looking for beginning of object key string",
            ),
            ("x", "invalid character 'x' looking for beginning of value"),
            ("{\"a\" 1}", "invalid character '1' after object key"),
            (
                "{\"a\":1 2",
                "invalid character '2' after object key:value pair",
            ),
            ("[1 2", "invalid character '2' after array element"),
            ("\"\n", "invalid character '\\n' in string literal"),
            ("\"\\x", "invalid character 'x' in string escape code"),
            (
                "\"\\u12g",
                "invalid character 'g' in \\u hexadecimal character escape",
            ),
            (
                "nul1",
                "invalid character '1' in literal null (expecting 'l')",
            ),
            ("-x", "invalid character 'x' in numeric literal"),
            (
                "1.x",
                "invalid character 'x' after decimal point in numeric literal",
            ),
            (
                "1e+x",
                "invalid character 'x' in exponent of numeric literal",
            ),
            (
                "'",
                "invalid character '\\'' looking for beginning of value",
            ),
            (
                "\u{1}",
                "invalid character '\\x01' looking for beginning of value",
            ),
        ] {
            assert_eq!(
                values(text).1,
                NoValue::Malformed(expected.into()),
                "{text}"
            );
        }
        let deep = "[".repeat(DEPTH_MAX + 1);
        assert_eq!(
            values(&deep).1,
            NoValue::Malformed("invalid character '[' exceeded max depth".into())
        );
    }
}
