//! What grpc-go refuses by the head of a request, before any service sees it.

use std::time::Duration;

use http::{HeaderName, Method, Request, Response, StatusCode};
use tonic::Status;

use crate::rpc::unary::ResponseBody;

const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// Digits of a time-out, by the protocol.
const TIMEOUT_DIGITS_MAX: usize = 8;
/// A call with less time than this is over before it began. Longer ones are ended by the client, who
/// watches the time by itself: gRPC's clients do.
const TIMEOUT_MIN: Duration = Duration::from_micros(10);

/// The answer to a gRPC request that no service gets; `None` for all others.
pub(super) fn refusal<B>(request: &Request<B>) -> Option<Response<ResponseBody>> {
    let timeout = match request.headers().get(TIMEOUT) {
        None => None,
        Some(value) => match parse(value.as_bytes()) {
            Ok(timeout) => Some(timeout),
            Err(reason) => {
                let status = Status::internal(format!("malformed grpc-timeout: {reason}"));
                return Some(early(StatusCode::BAD_REQUEST, status));
            }
        },
    };
    if request.method() != Method::POST {
        let status = Status::internal(format!(
            "Received a HEADERS frame with :method {:?} which should be POST",
            request.method().as_str()
        ));
        return Some(early(StatusCode::METHOD_NOT_ALLOWED, status));
    }
    if timeout.is_some_and(|timeout| timeout < TIMEOUT_MIN) {
        let status = Status::deadline_exceeded("context deadline exceeded");
        return Some(early(StatusCode::OK, status));
    }
    None
}

fn early(code: StatusCode, status: Status) -> Response<ResponseBody> {
    let mut response = status
        .into_http::<tonic::body::Body>()
        .map(ResponseBody::Tonic);
    *response.status_mut() = code;
    response
}

/// A time-out as gRPC writes it: up to eight digits and a unit. The error is grpc-go's text.
fn parse(value: &[u8]) -> Result<Duration, String> {
    let text = String::from_utf8_lossy(value);
    let quoted = || format!("{text:?}");
    if value.len() < 2 {
        return Err(format!(
            "transport: timeout string is too short: {}",
            quoted()
        ));
    }
    if value.len() > TIMEOUT_DIGITS_MAX + 1 {
        return Err(format!(
            "transport: timeout string is too long: {}",
            quoted()
        ));
    }
    let (digits, unit) = value.split_at(value.len() - 1);
    let unit: fn(u64) -> Duration = match unit {
        b"H" => |hours| Duration::from_secs(hours * 3600),
        b"M" => |minutes| Duration::from_secs(minutes * 60),
        b"S" => Duration::from_secs,
        b"m" => Duration::from_millis,
        b"u" => Duration::from_micros,
        b"n" => Duration::from_nanos,
        _ => {
            return Err(format!(
                "transport: timeout unit is not recognized: {}",
                quoted()
            ));
        }
    };
    let digits = String::from_utf8_lossy(digits);
    match digits.parse::<u64>() {
        // Rust's parser takes a sign that Go's does not.
        Ok(number) if !digits.starts_with('+') => Ok(unit(number)),
        Ok(_) | Err(_) => Err(format!(
            "strconv.ParseUint: parsing {digits:?}: invalid syntax"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_by_grpc_go() {
        for (text, expected) in [
            ("1n", Ok(Duration::from_nanos(1))),
            ("99999999H", Ok(Duration::from_secs(99_999_999 * 3600))),
            ("15S", Ok(Duration::from_secs(15))),
            ("2M", Ok(Duration::from_secs(120))),
            ("7m", Ok(Duration::from_millis(7))),
            ("0u", Ok(Duration::ZERO)),
            ("n", Err("transport: timeout string is too short: \"n\"")),
            ("", Err("transport: timeout string is too short: \"\"")),
            (
                "123456789n",
                Err("transport: timeout string is too long: \"123456789n\""),
            ),
            (
                "10",
                Err("transport: timeout unit is not recognized: \"10\""),
            ),
            (
                "-1S",
                Err("strconv.ParseUint: parsing \"-1\": invalid syntax"),
            ),
            (
                "+1S",
                Err("strconv.ParseUint: parsing \"+1\": invalid syntax"),
            ),
        ] {
            assert_eq!(
                parse(text.as_bytes()),
                expected.map_err(str::to_owned),
                "{text}"
            );
        }
    }
}
