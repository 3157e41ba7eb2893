//! Headers whose names end with `-Bin` carry bytes as base64, and are refused when they do not. Nothing here uses
//! such metadata; a client that sends it wrong hears of it as from etcd.

use http::HeaderMap;
use tonic::Status;

use super::METADATA_PREFIX;

const SUFFIX: &str = "-bin";
const PADDING: u8 = b'=';

/// Looks at every header that becomes binary metadata.
///
/// # Errors
/// grpc-gateway's `invalid binary header`, with the words of Go's decoder.
pub(super) fn check(headers: &HeaderMap) -> Result<(), Status> {
    for (name, value) in headers {
        let name = name.as_str();
        if !name.starts_with(METADATA_PREFIX) || !name.ends_with(SUFFIX) {
            continue;
        }
        if let Err(position) = decode(value.as_bytes()) {
            return Err(Status::invalid_argument(format!(
                "invalid binary header {}: illegal base64 data at input byte {position}",
                canonical(name)
            )));
        }
    }
    Ok(())
}

/// A name as Go writes it: `Grpc-Metadata-Trace-Bin`.
fn canonical(name: &str) -> String {
    let mut after_dash = true;
    name.chars()
        .map(|letter| {
            let letter = match after_dash {
                true => letter.to_ascii_uppercase(),
                false => letter,
            };
            after_dash = letter == '-';
            letter
        })
        .collect()
}

/// Whether text is base64 for Go: with padding where its length is a multiple of four, else without. Bits that
/// stand for nothing may be anything. The position is the one that Go names.
fn decode(text: &[u8]) -> Result<(), usize> {
    let is_padded = text.len().is_multiple_of(4);
    for (block, letters) in text.chunks(4).enumerate() {
        let start = 4 * block;
        let valid = letters
            .iter()
            .take_while(|letter| letter.is_ascii_alphanumeric() || matches!(letter, b'+' | b'/'))
            .count();
        match letters.get(valid) {
            None if letters.len() == 1 => return Err(start),
            None => {}
            Some(&PADDING) if is_padded && valid >= 2 => {
                let padding_end = match (valid, letters[3]) {
                    (2, PADDING) | (3, _) => start + 4,
                    _ => return Err(start + valid),
                };
                return match padding_end == text.len() {
                    true => Ok(()),
                    false => Err(padding_end),
                };
            }
            Some(_) => return Err(start + valid),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_judged_as_by_go() {
        for (text, expected) in [
            ("", Ok(())),
            ("AAAA", Ok(())),
            ("AA==", Ok(())),
            ("AAA=", Ok(())),
            ("AA", Ok(())),
            ("AAAAAAA", Ok(())),
            // Bits that stand for nothing.
            ("AB==", Ok(())),
            ("A", Err(0)),
            ("AAAAA", Err(4)),
            ("AA=", Err(2)),
            ("A===", Err(1)),
            ("====", Err(0)),
            ("AA=A", Err(2)),
            ("AA==AAAA", Err(4)),
            ("AAA=AAAA", Err(4)),
            ("AA-_", Err(2)),
            ("!!!!", Err(0)),
            ("AAAA AAA", Err(4)),
        ] {
            assert_eq!(decode(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn a_bad_header_is_named_as_by_go() {
        let headers = |name: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, "!".parse().unwrap());
            headers
        };
        let refused = check(&headers("grpc-metadata-x-trace-bin")).unwrap_err();
        assert_eq!(
            refused.message(),
            "invalid binary header Grpc-Metadata-X-Trace-Bin: illegal base64 data at input byte 0"
        );
        assert!(check(&headers("grpc-metadata-bin-x")).is_ok());
        assert!(check(&headers("x-trace-bin")).is_ok());
    }
}
