//! What went wrong, as RFC 9457 (`application/problem+json`) writes it.

use http::{HeaderName, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::Full;
use metastore_proto::error_text::EtcdError;
use tonic::{Code, Status};

use crate::http::gateway::http_status;
use crate::rpc::unary::ResponseBody;

/// Seconds after which a client may ask again where a leader is missing.
const RETRY_AFTER_SECONDS: &str = "1";

/// An answer that says what went wrong.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    detail: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    /// A problem with a status of its own.
    pub fn new(status: StatusCode, detail: &str) -> Self {
        Self {
            status,
            detail: detail.to_owned(),
            headers: Vec::new(),
        }
    }

    /// The request makes no sense.
    pub fn bad_request(detail: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// Something that cannot happen did.
    pub fn internal(detail: &str) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, detail)
    }

    /// The body is larger than a request may be.
    pub fn too_large(limit_bytes: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            &format!("the body is larger than {limit_bytes} bytes (--max-request-bytes)"),
        )
    }

    /// The resource does not have this method.
    pub fn method_not_allowed(methods: &[Method]) -> Self {
        let names: Vec<_> = methods.iter().map(Method::as_str).collect();
        let mut problem = Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "the resource does not have this method",
        );
        if let Ok(value) = HeaderValue::from_str(&names.join(", ")) {
            problem.headers.push((header::ALLOW, value));
        }
        problem
    }

    /// Adds a header.
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The answer.
    pub fn into_response(self) -> Response<ResponseBody> {
        let body = serde_json::json!({
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        let mut response = Response::new(ResponseBody::Plain(Full::new(body.to_string().into())));
        *response.status_mut() = self.status;
        response.headers_mut().extend(self.headers);
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        response
    }
}

/// The errors of the API that HTTP has a better word for than their code's.
fn status_of(status: &Status) -> StatusCode {
    const SPECIAL: [(EtcdError, StatusCode); 7] = [
        (EtcdError::UserEmpty, StatusCode::UNAUTHORIZED),
        (EtcdError::AuthOldRevision, StatusCode::UNAUTHORIZED),
        (EtcdError::Compacted, StatusCode::GONE),
        (EtcdError::NoSpace, StatusCode::INSUFFICIENT_STORAGE),
        (EtcdError::RequestTooLarge, StatusCode::PAYLOAD_TOO_LARGE),
        (EtcdError::LeaseNotFound, StatusCode::NOT_FOUND),
        (
            EtcdError::RequestTooManyRequests,
            StatusCode::TOO_MANY_REQUESTS,
        ),
    ];
    SPECIAL
        .iter()
        .find(|(error, _)| error.text() == status.message())
        .map_or_else(|| http_status(status.code()), |(_, status)| *status)
}

impl From<Status> for Problem {
    fn from(status: Status) -> Self {
        let mut problem = Self::new(status_of(&status), status.message());
        if problem.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            problem.headers.push((header::WWW_AUTHENTICATE, scheme));
        }
        if status.code() == Code::Unavailable {
            let pause = HeaderValue::from_static(RETRY_AFTER_SECONDS);
            problem.headers.push((header::RETRY_AFTER, pause));
        }
        problem
    }
}
