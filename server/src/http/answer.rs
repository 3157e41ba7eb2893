//! Small answers in the form of Go's `net/http`, which etcd's are.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;

/// An answer that is made at once.
pub type Answer = Response<Full<Bytes>>;

/// Plain text to Go.
pub const PLAIN_TEXT: &str = "text/plain; charset=utf-8";

/// An answer with a body of this type.
pub fn text(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Go's `http.Error`: plain text, a line break, and no guessing by browsers.
pub fn error(status: StatusCode, body: &str) -> Answer {
    let mut response = text(status, PLAIN_TEXT, format!("{body}\n"));
    response.headers_mut().insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

/// The answer where nothing is.
pub fn not_found() -> Answer {
    error(StatusCode::NOT_FOUND, "404 page not found")
}

/// The answer to a method that a path does not have.
pub fn method_not_allowed(allowed: &'static str) -> Answer {
    let mut response = error(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    response
        .headers_mut()
        .insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}
