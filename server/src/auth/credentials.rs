//! What a request says about who sends it.

use std::sync::Arc;

use http::{Extensions, HeaderMap, HeaderValue};

use crate::listen::peer_certificate::PeerCertificate;

/// Metadata with the token, of gRPC clients and of those that come through the JSON gateway.
const TOKEN_KEYS: [&str; 2] = ["token", "authorization"];
/// Metadata by which the JSON gateway marks its requests. It calls with the server's certificate,
/// whose common name must not count as the client's.
const GATEWAY_KEY: &str = "grpcgateway-accept";

/// What a request says about who sends it, before anybody has checked it.
#[derive(Clone, Default)]
pub enum Credentials {
    /// Nothing.
    #[default]
    None,
    /// A token, perhaps behind `Bearer `.
    Token(HeaderValue),
    /// No token, but a verified certificate with this common name, perhaps empty.
    CommonName(Arc<str>),
}

/// Without the token.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => formatter.write_str("None"),
            Self::Token(_) => formatter.write_str("Token"),
            Self::CommonName(name) => formatter.debug_tuple("CommonName").field(name).finish(),
        }
    }
}

impl Credentials {
    /// Reads the credentials of a request. Allocates nothing.
    pub fn read(headers: &HeaderMap, extensions: &Extensions) -> Self {
        if let Some(token) = TOKEN_KEYS.iter().find_map(|key| headers.get(*key)) {
            return Self::Token(token.clone());
        }
        match extensions.get::<PeerCertificate>() {
            Some(certificate) if !headers.contains_key(GATEWAY_KEY) => {
                Self::CommonName(certificate.common_name.clone().unwrap_or_else(|| "".into()))
            }
            _ => Self::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(headers: &[(&'static str, &'static str)], common_name: Option<&str>) -> String {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        let mut extensions = Extensions::new();
        if let Some(name) = common_name {
            extensions.insert(PeerCertificate {
                common_name: Some(name.into()),
            });
        }
        match Credentials::read(&map, &extensions) {
            Credentials::None => "nothing".to_owned(),
            Credentials::Token(token) => format!("token {}", token.to_str().unwrap()),
            Credentials::CommonName(name) => format!("name {name}"),
        }
    }

    #[test]
    fn a_token_counts_before_a_certificate() {
        assert_eq!(read(&[], None), "nothing");
        assert_eq!(read(&[("token", "a.1")], None), "token a.1");
        let both = [("authorization", "Bearer b.2"), ("token", "a.1")];
        assert_eq!(read(&both, None), "token a.1");
        assert_eq!(read(&both[..1], Some("alice")), "token Bearer b.2");
        assert_eq!(read(&[], Some("alice")), "name alice");
        let gateway = [("grpcgateway-accept", "*/*")];
        assert_eq!(read(&gateway, Some("alice")), "nothing");
    }

    #[test]
    fn tokens_are_not_printed() {
        let credentials = Credentials::Token(HeaderValue::from_static("secret.1"));
        assert_eq!(format!("{credentials:?}"), "Token");
    }
}
