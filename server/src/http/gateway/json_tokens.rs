//! The tokens of one JSON value, as protobuf's Go library reads them: with positions, because its
//! errors name them.

use super::json_stream::quoted_char;

/// What the token is; positions of the brackets and names decide what may follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Nothing was read yet.
    #[default]
    Start,
    /// The end of the value.
    End,
    /// `null`
    Null,
    /// `true` or `false`
    Bool,
    /// A number.
    Number,
    /// A string that is a value.
    String,
    /// A string that names a field.
    Name,
    /// `{`
    ObjectOpen,
    /// `}`
    ObjectClose,
    /// `[`
    ArrayOpen,
    /// `]`
    ArrayClose,
    /// `,`, seen only between tokens.
    Comma,
}

impl Kind {
    fn ends_value(self) -> bool {
        matches!(
            self,
            Self::Null
                | Self::Bool
                | Self::Number
                | Self::String
                | Self::ObjectClose
                | Self::ArrayClose
        )
    }
}

/// One token.
#[derive(Clone, Debug, Default)]
pub struct Token<'a> {
    /// What it is.
    pub kind: Kind,
    /// Its first byte in the value.
    pub position: usize,
    /// Its bytes.
    pub raw: &'a [u8],
    /// What a string or a name says.
    pub text: String,
}

impl Token<'_> {
    /// Its bytes as text.
    pub fn raw_text(&self) -> String {
        String::from_utf8_lossy(self.raw).into_owned()
    }

    /// The whole number that it is, in decimal digits; nothing for another token or a fraction.
    pub fn integer(&self) -> Option<String> {
        (self.kind == Kind::Number).then(|| whole_number(self.raw))?
    }
}

/// An error of the library, without its prefix.
pub type ReadError = String;

/// Reads the tokens of one value.
pub struct Tokens<'a> {
    value: &'a [u8],
    position: usize,
    last: Kind,
    /// The brackets that are open.
    open: Vec<Kind>,
    peeked: Option<Result<Token<'a>, ReadError>>,
}

fn unexpected_end() -> ReadError {
    "unexpected EOF".to_owned()
}

impl<'a> Tokens<'a> {
    /// The tokens of `value`.
    pub fn new(value: &'a [u8]) -> Self {
        let mut tokens = Self {
            value,
            position: 0,
            last: Kind::Start,
            open: Vec::new(),
            peeked: None,
        };
        tokens.skip_space();
        tokens
    }

    /// The next token, which stays the next one.
    ///
    /// # Errors
    /// As [`Tokens::read`].
    pub fn peek(&mut self) -> Result<Token<'a>, ReadError> {
        if self.peeked.is_none() {
            self.peeked = Some(self.read_next());
        }
        self.peeked.clone().unwrap_or_else(|| Err(unexpected_end()))
    }

    /// The next token.
    ///
    /// # Errors
    /// The library's text for what is no JSON.
    pub fn read(&mut self) -> Result<Token<'a>, ReadError> {
        match self.peeked.take() {
            Some(token) => token,
            None => self.read_next(),
        }
    }

    /// Skips one value of whatever form.
    ///
    /// # Errors
    /// As [`Tokens::read`]; too many brackets inside each other.
    pub fn skip_value(&mut self, depth_max: usize) -> Result<(), ReadError> {
        let mut depth = 0_usize;
        loop {
            match self.read()?.kind {
                Kind::ObjectClose | Kind::ArrayClose => depth = depth.saturating_sub(1),
                Kind::ObjectOpen | Kind::ArrayOpen => {
                    depth += 1;
                    if depth > depth_max {
                        return Err("exceeded max recursion depth".into());
                    }
                }
                Kind::End => return Err(unexpected_end()),
                _ => {}
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }

    /// An error about the value at `position`.
    pub fn error_at(&self, position: usize, text: &str) -> ReadError {
        format!("({}): {text}", self.place(position))
    }

    /// An error about the form of the value at `position`.
    pub fn syntax_error(&self, position: usize, text: &str) -> ReadError {
        format!("syntax error ({}): {text}", self.place(position))
    }

    /// The error about a token that should not be there.
    pub fn unexpected(&self, token: &Token<'_>) -> ReadError {
        self.syntax_error(
            token.position,
            &format!("unexpected token {}", token.raw_text()),
        )
    }

    fn place(&self, position: usize) -> String {
        let before = &self.value[..position];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let start = before
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |newline| newline + 1);
        let column = String::from_utf8_lossy(&before[start..]).chars().count() + 1;
        format!("line {line}:{column}")
    }

    fn read_next(&mut self) -> Result<Token<'a>, ReadError> {
        loop {
            let mut token = self.parse()?;
            if !self.fits(&mut token)? {
                return Err(self.unexpected(&token));
            }
            match token.kind {
                Kind::ObjectOpen | Kind::ArrayOpen => self.open.push(token.kind),
                Kind::ObjectClose | Kind::ArrayClose => {
                    self.open.pop();
                }
                _ => {}
            }
            self.last = token.kind;
            if token.kind != Kind::Comma {
                return Ok(token);
            }
        }
    }

    /// Whether the token may follow the last one. A string where no value may stand becomes a name.
    fn fits(&mut self, token: &mut Token<'a>) -> Result<bool, ReadError> {
        let top = self.open.last().copied();
        Ok(match token.kind {
            Kind::End if top.is_some() || !self.last.ends_value() => {
                return Err(unexpected_end());
            }
            Kind::String if !self.value_is_next() => {
                if !matches!(self.last, Kind::ObjectOpen | Kind::Comma) {
                    return Ok(false);
                }
                self.name_ends()?;
                token.kind = Kind::Name;
                true
            }
            Kind::Null | Kind::Bool | Kind::Number | Kind::ObjectOpen | Kind::ArrayOpen => {
                self.value_is_next()
            }
            Kind::ObjectClose => {
                top == Some(Kind::ObjectOpen) && !matches!(self.last, Kind::Name | Kind::Comma)
            }
            Kind::ArrayClose => top == Some(Kind::ArrayOpen) && self.last != Kind::Comma,
            Kind::Comma => top.is_some() && self.last.ends_value(),
            _ => true,
        })
    }

    fn name_ends(&mut self) -> Result<(), ReadError> {
        let rest = &self.value[self.position..];
        match rest.first() {
            None => Err(unexpected_end()),
            Some(b':') => {
                self.position += 1;
                self.skip_space();
                Ok(())
            }
            Some(byte) => {
                let text = format!(
                    "unexpected character {}, missing \":\" after field name",
                    char::from(*byte)
                );
                Err(self.syntax_error(self.position, &text))
            }
        }
    }

    fn value_is_next(&self) -> bool {
        match self.open.last() {
            None => self.last == Kind::Start,
            Some(Kind::ObjectOpen) => self.last == Kind::Name,
            Some(_) => matches!(self.last, Kind::ArrayOpen | Kind::Comma),
        }
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.value.get(self.position) {
            self.position += 1;
        }
    }

    fn take(&mut self, kind: Kind, length: usize, text: String) -> Token<'a> {
        let token = Token {
            kind,
            position: self.position,
            raw: &self.value[self.position..self.position + length],
            text,
        };
        self.position += length;
        self.skip_space();
        token
    }

    fn parse(&mut self) -> Result<Token<'a>, ReadError> {
        let rest = &self.value[self.position..];
        let Some(first) = rest.first() else {
            return Ok(self.take(Kind::End, 0, String::new()));
        };
        let simple = match first {
            b'{' => Some((Kind::ObjectOpen, 1)),
            b'}' => Some((Kind::ObjectClose, 1)),
            b'[' => Some((Kind::ArrayOpen, 1)),
            b']' => Some((Kind::ArrayClose, 1)),
            b',' => Some((Kind::Comma, 1)),
            b'n' => word(rest, b"null").map(|length| (Kind::Null, length)),
            b't' => word(rest, b"true").map(|length| (Kind::Bool, length)),
            b'f' => word(rest, b"false").map(|length| (Kind::Bool, length)),
            b'-' | b'0'..=b'9' => number(rest).map(|length| (Kind::Number, length)),
            b'"' => {
                let (text, length) = self.string(rest)?;
                return Ok(self.take(Kind::String, length, text));
            }
            _ => None,
        };
        match simple {
            Some((kind, length)) => Ok(self.take(kind, length, String::new())),
            None => {
                let text = format!("invalid value {}", shown(rest));
                Err(self.syntax_error(self.position, &text))
            }
        }
    }

    /// What a string says, and how many bytes it takes.
    fn string(&self, rest: &[u8]) -> Result<(String, usize), ReadError> {
        let failed = |text: String| Err(self.syntax_error(self.position, &text));
        let mut text = String::new();
        let mut at = 1;
        while at < rest.len() {
            match rest[at] {
                b'"' => return Ok((text, at + 1)),
                control @ 0..0x20 => {
                    let shown = quoted_char(char::from(control));
                    return failed(format!("invalid character '{shown}' in string"));
                }
                b'\\' => {
                    let escape = *rest.get(at + 1).ok_or_else(unexpected_end)?;
                    match escape {
                        b'"' | b'\\' | b'/' => text.push(char::from(escape)),
                        b'b' => text.push('\u{8}'),
                        b'f' => text.push('\u{c}'),
                        b'n' => text.push('\n'),
                        b'r' => text.push('\r'),
                        b't' => text.push('\t'),
                        b'u' => {
                            let (character, length) = unicode_escape(&rest[at..])
                                .map_err(|error| error.into_text(self))?;
                            text.push(character);
                            at += length;
                            continue;
                        }
                        _ => return failed(bad_escape(&rest[at..at + 2])),
                    }
                    at += 2;
                }
                _ => {
                    let run = rest[at..]
                        .iter()
                        .position(|byte| matches!(byte, 0..0x20 | b'"' | b'\\'))
                        .unwrap_or(rest.len() - at);
                    match std::str::from_utf8(&rest[at..at + run]) {
                        Ok(run) => text.push_str(run),
                        Err(_) => return failed("invalid UTF-8 in string".into()),
                    }
                    at += run;
                }
            }
        }
        Err(unexpected_end())
    }
}

enum EscapeError {
    UnexpectedEnd,
    Bad(String),
}

impl EscapeError {
    fn into_text(self, tokens: &Tokens<'_>) -> ReadError {
        match self {
            Self::UnexpectedEnd => unexpected_end(),
            Self::Bad(text) => tokens.syntax_error(tokens.position, &text),
        }
    }
}

fn bad_escape(escape: &[u8]) -> String {
    let shown: String = String::from_utf8_lossy(escape)
        .chars()
        .map(quoted_char)
        .collect();
    format!("invalid escape code \"{shown}\" in string")
}

/// A `\u` escape, or two that make one character; and their length.
fn unicode_escape(rest: &[u8]) -> Result<(char, usize), EscapeError> {
    let unit = |rest: &[u8]| -> Result<Option<u32>, EscapeError> {
        let digits = rest.get(2..6).ok_or(EscapeError::UnexpectedEnd)?;
        Ok(std::str::from_utf8(digits)
            .ok()
            .and_then(|digits| u32::from_str_radix(digits, 16).ok()))
    };
    let bad = |rest: &[u8]| EscapeError::Bad(bad_escape(&rest[..6]));
    let first = unit(rest)?.ok_or_else(|| bad(rest))?;
    if let Some(character) = char::from_u32(first) {
        return Ok((character, 6));
    }
    let second = &rest[6..];
    let low = unit(second)?;
    match low {
        Some(low @ 0xdc00..=0xdfff) if first < 0xdc00 && second.starts_with(b"\\u") => {
            let code = 0x10000 + ((first - 0xd800) << 10) + (low - 0xdc00);
            Ok((char::from_u32(code).unwrap_or('\u{fffd}'), 12))
        }
        _ => Err(bad(second)),
    }
}

fn is_part_of_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.' | b'_')
}

fn word(rest: &[u8], word: &[u8]) -> Option<usize> {
    let ends = !rest.get(word.len()).copied().is_some_and(is_part_of_word);
    (rest.starts_with(word) && ends).then_some(word.len())
}

/// What an error shows of a value that is none: a word of at most 32 bytes, or one character.
fn shown(rest: &[u8]) -> String {
    let length = rest
        .iter()
        .take(32)
        .take_while(|byte| is_part_of_word(**byte))
        .count();
    if length > 0 {
        return String::from_utf8_lossy(&rest[..length]).into_owned();
    }
    String::from_utf8_lossy(rest).chars().take(1).collect()
}

fn digits(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .count()
}

/// The parts of a number: whole digits, fraction digits, exponent.
struct NumberParts<'a> {
    negative: bool,
    whole: &'a [u8],
    fraction: &'a [u8],
    exponent: &'a [u8],
    length: usize,
}

fn number_parts(bytes: &[u8]) -> Option<NumberParts<'_>> {
    let mut at = usize::from(bytes.first() == Some(&b'-'));
    let whole = match bytes.get(at)? {
        b'0' => {
            at += 1;
            &bytes[at..at]
        }
        b'1'..=b'9' => {
            let length = digits(&bytes[at..]);
            at += length;
            &bytes[at - length..at]
        }
        _ => return None,
    };
    let mut fraction = &bytes[at..at];
    if bytes.get(at) == Some(&b'.') && digits(&bytes[at + 1..]) > 0 {
        let length = digits(&bytes[at + 1..]);
        fraction = &bytes[at + 1..at + 1 + length];
        at += 1 + length;
    }
    let mut exponent = &bytes[at..at];
    if bytes.len() >= at + 2 && matches!(bytes[at], b'e' | b'E') {
        let sign = usize::from(matches!(bytes[at + 1], b'+' | b'-'));
        if sign == 1 && bytes.len() == at + 2 {
            return None;
        }
        let length = sign + digits(&bytes[at + 1 + sign..]);
        exponent = &bytes[at + 1..at + 1 + length];
        at += 1 + length;
    }
    Some(NumberParts {
        negative: bytes[0] == b'-',
        whole,
        fraction,
        exponent,
        length: at,
    })
}

fn number(rest: &[u8]) -> Option<usize> {
    let length = number_parts(rest)?.length;
    (!rest.get(length).copied().is_some_and(is_part_of_word)).then_some(length)
}

/// The most digits of a 64-bit number.
const DIGITS_MAX: usize = 20;

/// A number as decimal digits, when it has no fraction: `1.5e1` is 15.
fn whole_number(raw: &[u8]) -> Option<String> {
    let parts = number_parts(raw)?;
    let zeros = parts
        .fraction
        .iter()
        .rev()
        .take_while(|byte| **byte == b'0')
        .count();
    let fraction = &parts.fraction[..parts.fraction.len() - zeros];
    if parts.whole.is_empty() && fraction.is_empty() {
        return Some("0".into());
    }
    let exponent: i32 = match parts.exponent {
        [] => 0,
        exponent => std::str::from_utf8(exponent).ok()?.parse().ok()?,
    };
    let mut number = parts.whole.to_vec();
    if let Ok(shift) = usize::try_from(exponent) {
        if fraction.len() > shift || parts.whole.len() + shift > DIGITS_MAX {
            return None;
        }
        number.extend_from_slice(fraction);
        number.resize(parts.whole.len() + shift, b'0');
    } else {
        let kept = number
            .len()
            .checked_sub(usize::try_from(exponent.unsigned_abs()).ok()?)?;
        if !fraction.is_empty() || number[kept..].iter().any(|digit| *digit != b'0') {
            return None;
        }
        number.truncate(kept);
    }
    let sign = if parts.negative { "-" } else { "" };
    Some(format!("{sign}{}", String::from_utf8_lossy(&number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_without_fraction_are_whole() {
        for (text, expected) in [
            ("0", Some("0")),
            ("-12", Some("-12")),
            ("1.0", Some("1")),
            ("1.5e1", Some("15")),
            ("1.5", None),
            ("100e-2", Some("1")),
            ("101e-2", None),
            ("1e19", Some("10000000000000000000")),
            ("1e20", None),
        ] {
            assert_eq!(whole_number(text.as_bytes()).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn strings_are_unescaped() {
        let mut tokens = Tokens::new(br#""a\n\u00e9\ud83d\ude00""#);
        assert_eq!(tokens.read().map(|token| token.text), Ok("a\né😀".into()));
        let mut tokens = Tokens::new(br#""\ud800x12345""#);
        assert_eq!(
            tokens.read().map(|token| token.text),
            Err(r#"syntax error (line 1:1): invalid escape code "x12345" in string"#.into())
        );
    }
}
