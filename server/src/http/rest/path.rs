//! Keys in paths: any bytes, percent-encoded.

use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

use super::problem::Problem;

/// What a key may show as it is: RFC 3986's unreserved characters, and the slash.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'/');

/// The key that a path names.
///
/// # Errors
/// A percent sign without two hexadecimal digits.
pub fn decode(path: &str) -> Result<Bytes, Problem> {
    let bytes = path.as_bytes();
    for (at, _) in path.match_indices('%') {
        let digits = bytes.get(at + 1..at + 3);
        if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
            return Err(Problem::bad_request(
                "a percent sign must be followed by two hexadecimal digits",
            ));
        }
    }
    Ok(percent_decode_str(path).collect::<Vec<u8>>().into())
}

/// A key as a path names it.
pub fn encode(key: &[u8]) -> String {
    percent_encode(key, ENCODED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_survive_a_path() {
        for key in [&b"a/b c"[..], b"\xff\0%", "ü".as_bytes(), b"/x//y?#"] {
            assert_eq!(decode(&encode(key)).ok().as_deref(), Some(key));
        }
        assert_eq!(encode(b"a/b c?"), "a/b%20c%3F");
        assert!(decode("%4").is_err() && decode("%zz").is_err());
    }
}
