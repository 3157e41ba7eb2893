//! Which host names and which origins may use HTTP: `--host-whitelist` and `--cors`.

use std::collections::HashSet;

use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, header};

use super::answer::{self, Answer};
use super::gateway;
use crate::config::Config;

const EVERYONE: &str = "*";

/// The rules of one member.
pub struct AccessRules {
    origins: HashSet<String>,
    hosts: HashSet<String>,
}

impl AccessRules {
    /// The rules that the options set.
    pub fn new(config: &Config) -> Self {
        Self {
            origins: config.cors.iter().cloned().collect(),
            hosts: config.host_whitelist.iter().cloned().collect(),
        }
    }

    /// Refuses a request for a host name that is not ours: a browser that was lured by DNS
    /// (CVE-2018-5702). Over TLS the certificate does that.
    pub fn refusal<B>(&self, request: &Request<B>, secure: bool) -> Option<Answer> {
        if secure || allows(&self.hosts, None) {
            return None;
        }
        let host = host_name(request);
        if allows(&self.hosts, Some(&host)) {
            return None;
        }
        tracing::warn!(
            host,
            "rejecting HTTP request to prevent DNS rebinding attacks"
        );
        Some(answer::error(
            StatusCode::MISDIRECTED_REQUEST,
            &unknown_host(&host),
        ))
    }

    /// Tells a browser that a page of this origin may see the answer.
    pub fn allow_origin(&self, origin: Option<HeaderValue>, headers: &mut HeaderMap) {
        let everyone = HeaderValue::from_static(EVERYONE);
        let allowed = if allows(&self.origins, None) {
            everyone
        } else {
            let named = origin.filter(|origin| {
                origin
                    .to_str()
                    .is_ok_and(|origin| allows(&self.origins, Some(origin)))
            });
            match named {
                Some(origin) => origin,
                None => return,
            }
        };
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_METHODS,
            HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE"),
        );
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        // The plain HTTP API says for itself which headers it knows.
        headers
            .entry(header::ACCESS_CONTROL_ALLOW_HEADERS)
            .or_insert(HeaderValue::from_static(
                "accept, content-type, authorization",
            ));
    }
}

/// Whether a list allows a name, or everybody: an empty list, or one with a star.
fn allows(list: &HashSet<String>, name: Option<&str>) -> bool {
    list.is_empty() || list.contains(EVERYONE) || name.is_some_and(|name| list.contains(name))
}

/// The host that the request names, without port.
fn host_name<B>(request: &Request<B>) -> String {
    let named = request
        .uri()
        .authority()
        .map(ToString::to_string)
        .or_else(|| {
            let host = request.headers().get(header::HOST)?;
            Some(String::from_utf8_lossy(host.as_bytes()).into_owned())
        })
        .unwrap_or_default();
    let without_port = match named.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') && !port.contains(']') => host,
        Some((host, _)) if host.starts_with('[') && host.ends_with(']') => &host[1..host.len() - 1],
        _ => &named,
    };
    without_port.to_owned()
}

fn unknown_host(host: &str) -> String {
    format!(
        "\netcd received your request, but the Host header was unrecognized.\n\n\
         To fix this, choose one of the following options:\n\
         - Enable TLS, then any HTTPS request will be allowed.\n\
         - Add the hostname you want to use to the whitelist in settings.\n  \
         - e.g. etcd --host-whitelist {host:?}\n\n\
         This requirement has been added to help prevent \"DNS Rebinding\" attacks (CVE-2018-5702).\n"
    )
}

/// Gives requests to `/v3beta/` the path of today.
pub fn rename_beta_path<B>(request: &mut Request<B>) {
    let Some(rest) = request.uri().path().strip_prefix(gateway::BETA_PREFIX) else {
        return;
    };
    let path = format!("{}{rest}", gateway::PREFIX);
    let path = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    let mut parts = request.uri().clone().into_parts();
    parts.path_and_query = path.parse().ok();
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(host: &str) -> String {
        let request = Request::builder().header(header::HOST, host).body(());
        host_name(&request.expect("a valid request"))
    }

    #[test]
    fn the_port_is_no_part_of_a_host_name() {
        for (host, expected) in [
            ("example.com:2379", "example.com"),
            ("example.com", "example.com"),
            ("[::1]:2379", "::1"),
            ("[::1]", "[::1]"),
            ("", ""),
        ] {
            assert_eq!(named(host), expected, "{host}");
        }
    }
}
