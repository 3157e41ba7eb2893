//! `X-HTTP-Method-Override`: a form that is to be taken for a request with another method.
//!
//! Every route is a POST, so all that a client can reach with it is "method not allowed", or a call with an
//! empty body: grpc-gateway reads the form to its end before it looks for the route.

use bytes::{Bytes, BytesMut};
use http::{HeaderName, Method, header, request};
use http_body_util::BodyExt;
use tonic::Status;

use crate::rpc::services::RequestBody;

const OVERRIDE: HeaderName = HeaderName::from_static("x-http-method-override");
const FORM: &[u8] = b"application/x-www-form-urlencoded";
/// The largest form that Go's server reads.
const FORM_BYTES_MAX: usize = 10 << 20;

/// The method that a form asks for instead of its own.
pub(super) fn method(parts: &request::Parts) -> Option<Method> {
    let is_form = parts
        .headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes() == FORM);
    if !is_form || parts.method != Method::POST {
        return None;
    }
    let asked = parts.headers.get(OVERRIDE)?;
    let asked = asked.as_bytes().to_ascii_uppercase();
    // Go takes any word for a method; one that is none leads nowhere.
    (!asked.is_empty()).then(|| Method::from_bytes(&asked).unwrap_or(Method::TRACE))
}

/// Reads the form and says what Go's `ParseForm` finds wrong with it, or with the query.
pub(super) async fn read_form<B: RequestBody>(
    parts: &request::Parts,
    mut body: B,
) -> Result<(), Status> {
    let mut form = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let data = frame
            .map_err(|error| Status::invalid_argument(error.to_string()))?
            .into_data()
            .unwrap_or_else(|_| Bytes::new());
        if form.len() + data.len() > FORM_BYTES_MAX {
            super::discard(body).await;
            return Err(Status::invalid_argument("http: POST too large"));
        }
        form.extend_from_slice(&data);
    }
    let query = parts.uri.query().unwrap_or_default().as_bytes();
    match first_mistake(&form).or_else(|| first_mistake(query)) {
        Some(text) => Err(Status::invalid_argument(text)),
        None => Ok(()),
    }
}

/// Go's `url.ParseQuery`, of which only the error matters.
fn first_mistake(query: &[u8]) -> Option<String> {
    let mut mistake = None;
    for pair in query.split(|byte| *byte == b'&') {
        if pair.contains(&b';') {
            mistake = Some("invalid semicolon separator in query".to_owned());
            continue;
        }
        let equals = pair.iter().position(|byte| *byte == b'=');
        let (key, value) = pair.split_at(equals.unwrap_or(pair.len()));
        let bad = bad_escape(key).or_else(|| bad_escape(value));
        mistake = mistake.or(bad);
    }
    mistake
}

/// Says which escape is none.
fn bad_escape(text: &[u8]) -> Option<String> {
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| *byte == b'%') {
        rest = &rest[at..];
        let digits = rest.get(1..3);
        if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
            let shown = String::from_utf8_lossy(&rest[..rest.len().min(3)]).into_owned();
            return Some(format!("invalid URL escape {shown:?}"));
        }
        rest = &rest[3..];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_in_a_form_are_named_as_by_go() {
        for (query, expected) in [
            ("", None),
            ("a=b&c", None),
            ("a=%41&%42=c", None),
            ("a=%zz", Some("invalid URL escape \"%zz\"")),
            ("%4", Some("invalid URL escape \"%4\"")),
            ("a=b;c=d", Some("invalid semicolon separator in query")),
            ("%z&a;b", Some("invalid semicolon separator in query")),
            ("a;b&%z", Some("invalid semicolon separator in query")),
        ] {
            assert_eq!(
                first_mistake(query.as_bytes()).as_deref(),
                expected,
                "{query}"
            );
        }
    }
}
