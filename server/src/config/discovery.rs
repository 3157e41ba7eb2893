//! What the options say about discovery through another etcd.

use std::time::Duration;

use super::settings::Settings;
use super::tls::TlsSettings;
use super::typed::duration;

/// Another etcd in which the members of a new cluster find each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoverySettings {
    /// `--discovery-token`: the cluster's name there.
    pub token: String,
    /// `--discovery-endpoints`: URLs, or `host:port`.
    pub endpoints: Vec<String>,
    /// `--discovery-dial-timeout`.
    pub dial_timeout: Duration,
    /// `--discovery-request-timeout`.
    pub request_timeout: Duration,
    /// `--discovery-keepalive-time`.
    pub keepalive_time: Duration,
    /// `--discovery-keepalive-timeout`.
    pub keepalive_timeout: Duration,
    /// TLS for endpoints that do not say `http://`; nothing means plain text.
    pub tls: Option<TlsSettings>,
    /// `--discovery-insecure-skip-tls-verify`.
    pub skips_verification: bool,
    /// `--discovery-user` and `--discovery-password`.
    pub user: Option<(String, String)>,
}

impl DiscoverySettings {
    pub(super) fn new(settings: &Settings) -> Option<Self> {
        let endpoints = settings.list("discovery-endpoints");
        if endpoints.is_empty() {
            return None;
        }
        let path = |name| Some(settings.text(name)).filter(|path| !path.is_empty());
        let (cert, key, ca) = (
            path("discovery-cert"),
            path("discovery-key"),
            path("discovery-cacert"),
        );
        let is_secure = cert.is_some()
            || key.is_some()
            || ca.is_some()
            || !settings.boolean("discovery-insecure-transport");
        let time = |name| duration(settings.nanoseconds(name));
        Some(Self {
            token: settings.text("discovery-token"),
            endpoints,
            dial_timeout: time("discovery-dial-timeout"),
            request_timeout: time("discovery-request-timeout"),
            keepalive_time: time("discovery-keepalive-time"),
            keepalive_timeout: time("discovery-keepalive-timeout"),
            tls: is_secure.then(|| TlsSettings {
                cert_file: cert.map(Into::into),
                key_file: key.map(Into::into),
                trusted_ca_file: ca.map(Into::into),
                ..TlsSettings::default()
            }),
            skips_verification: settings.boolean("discovery-insecure-skip-tls-verify"),
            user: user(
                settings.text("discovery-user"),
                settings.text("discovery-password"),
            ),
        })
    }
}

/// A user and a password, which may stand in one text.
fn user(name: String, password: String) -> Option<(String, String)> {
    if name.is_empty() {
        return None;
    }
    if password.is_empty()
        && let Some((name, password)) = name.split_once(':')
    {
        return Some((name.to_owned(), password.to_owned()));
    }
    Some((name, password))
}
