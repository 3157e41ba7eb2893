//! The command line of `grpc-proxy start`, with etcd's names, defaults and refusals.

use std::time::Duration;

use clap::ArgAction::Set;

use crate::config::{TlsSettings, TlsVersion, parse_duration};
use crate::tls::check_cipher_suite_names;

#[derive(clap::Args)]
pub struct Options {
    /// listen address
    #[arg(long, default_value = "127.0.0.1:23790")]
    pub listen_addr: String,
    /// domain name to query for SRV records describing cluster endpoints
    #[arg(long, default_value = "")]
    pub discovery_srv: String,
    /// service name to query when using DNS discovery
    #[arg(long, default_value = "")]
    pub discovery_srv_name: String,
    /// listen for endpoint /metrics requests on an additional interface
    #[arg(long, default_value = "")]
    pub metrics_addr: String,
    /// accept insecure SRV records
    #[arg(long, action = Set, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true")]
    pub insecure_discovery: bool,
    /// comma separated etcd cluster endpoints
    #[arg(long, value_delimiter = ',', default_value = "127.0.0.1:2379")]
    pub endpoints: Vec<String>,
    /// etcd endpoints auto sync interval (disabled by default)
    #[arg(long, default_value = "0s", value_parser = parse_time)]
    pub endpoints_auto_sync_interval: Duration,
    /// keepalive time for client(grpc-proxy) connections (default 0, disable).
    #[arg(long, default_value = "0s", value_parser = parse_time)]
    pub dial_keepalive_time: Duration,
    /// keepalive timeout for client(grpc-proxy) connections (default 20s).
    #[arg(long, default_value = "20s", value_parser = parse_time)]
    pub dial_keepalive_timeout: Duration,
    /// Enable client(grpc-proxy) to send keepalive pings even with no active RPCs.
    #[arg(long, action = Set, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true")]
    pub permit_without_stream: bool,
    /// advertise address to register (must be reachable by client)
    #[arg(long, default_value = "127.0.0.1:23790")]
    pub advertise_client_url: String,
    /// prefix to use for registering proxy (must be shared with other grpc-proxy members)
    #[arg(long, default_value = "")]
    pub resolver_prefix: String,
    /// specify TTL, in seconds, when registering proxy endpoints
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    pub resolver_ttl: i64,
    /// string to prefix to all keys for namespacing requests
    #[arg(long, default_value = "")]
    pub namespace: String,
    /// Enable runtime profiling data via HTTP server. Address is at client URL + "/debug/pprof/"
    #[arg(long, action = Set, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true")]
    pub enable_pprof: bool,
    /// Data directory for persistent data
    #[arg(long, default_value = "default.proxy")]
    pub data_dir: String,
    /// message send limits in bytes (default value is 1.5 MiB)
    #[arg(long, default_value_t = 1_572_864, allow_negative_numbers = true)]
    pub max_send_bytes: i64,
    /// message receive limits in bytes (default value is math.MaxInt32)
    #[arg(long, default_value_t = 2_147_483_647, allow_negative_numbers = true)]
    pub max_recv_bytes: i64,
    /// Minimum interval duration that a client should wait before pinging proxy.
    #[arg(long, default_value = "5s", value_parser = parse_time)]
    pub grpc_keepalive_min_time: Duration,
    /// Frequency duration of server-to-client ping to check if a connection is alive (0 to disable).
    #[arg(long, default_value = "2h0m0s", value_parser = parse_time)]
    pub grpc_keepalive_interval: Duration,
    /// Additional duration of wait before closing a non-responsive connection (0 to disable).
    #[arg(long, default_value = "20s", value_parser = parse_time)]
    pub grpc_keepalive_timeout: Duration,
    /// identify secure connections with etcd servers using this TLS certificate file
    #[arg(long, default_value = "")]
    pub cert: String,
    /// identify secure connections with etcd servers using this TLS key file
    #[arg(long, default_value = "")]
    pub key: String,
    /// verify certificates of TLS-enabled secure etcd servers using this CA bundle
    #[arg(long, default_value = "")]
    pub cacert: String,
    /// skip authentication of etcd server TLS certificates (CAUTION: this option should be enabled only for testing purposes)
    #[arg(long, action = Set, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true")]
    pub insecure_skip_tls_verify: bool,
    /// identify secure connections to the proxy using this TLS certificate file
    #[arg(long, default_value = "")]
    pub cert_file: String,
    /// identify secure connections to the proxy using this TLS key file
    #[arg(long, default_value = "")]
    pub key_file: String,
    /// verify certificates of TLS-enabled secure proxy using this CA bundle
    #[arg(long, default_value = "")]
    pub trusted_ca_file: String,
    /// Comma-separated list of supported TLS cipher suites between client/proxy (empty: all).
    #[arg(long, value_delimiter = ',')]
    pub listen_cipher_suites: Vec<String>,
    /// proxy TLS using generated certificates
    #[arg(long, action = Set, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true")]
    pub auto_tls: bool,
    /// proxy client certificate revocation list file.
    #[arg(long, default_value = "")]
    pub client_crl_file: String,
    /// The validity period of the proxy certificates, unit is year
    #[arg(long, default_value_t = 1)]
    pub self_signed_cert_validity: u64,
    /// Minimum TLS version supported by grpc proxy. Possible values: TLS1.2, TLS1.3.
    #[arg(long, default_value = "TLS1.2")]
    pub tls_min_version: String,
    /// Maximum TLS version supported by grpc proxy. Possible values: TLS1.2, TLS1.3 (empty: the newest).
    #[arg(long, default_value = "")]
    pub tls_max_version: String,
    /// Ensure serializable reads have monotonically increasing store revisions across endpoints.
    #[arg(long, action = Set, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true")]
    pub experimental_serializable_ordering: bool,
    /// leasing metadata prefix for disconnected linearized reads.
    #[arg(long, default_value = "")]
    pub experimental_leasing_prefix: String,
    /// logging all grpc requests and responses, without values, passwords and tokens
    #[arg(long, action = Set, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true")]
    pub experimental_enable_grpc_logging: bool,
    /// Enable debug-level logging for grpc-proxy.
    #[arg(long, action = Set, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true")]
    pub debug: bool,
    /// Maximum concurrent streams that each client can open at a time.
    #[arg(long, default_value_t = u32::MAX)]
    pub max_concurrent_streams: u32,
}

fn parse_time(text: &str) -> Result<Duration, String> {
    // A negative time switches off what it is for, as zero does.
    let nanoseconds = parse_duration(text)?;
    Ok(Duration::from_nanos(
        u64::try_from(nanoseconds).unwrap_or(0),
    ))
}

fn path(text: &str) -> Option<std::path::PathBuf> {
    Some(text).filter(|text| !text.is_empty()).map(Into::into)
}

impl Options {
    /// Refuses what cannot be, in etcd's order and words.
    ///
    /// # Errors
    /// What to tell.
    pub fn check(&self) -> Result<(), String> {
        if !self.resolver_prefix.is_empty() && self.resolver_ttl < 1 {
            return Err(format!("invalid resolver-ttl {}", self.resolver_ttl));
        }
        if self.resolver_prefix.is_empty() && self.resolver_ttl > 0 {
            return Err(format!(
                "invalid resolver-prefix {:?}",
                self.resolver_prefix
            ));
        }
        if !self.resolver_prefix.is_empty() && self.advertise_client_url.is_empty() {
            return Err(format!(
                "invalid advertise-client-url {:?}",
                self.advertise_client_url
            ));
        }
        if self.auto_tls && self.self_signed_cert_validity == 0 {
            return Err("selfSignedCertValidity is invalid,it should be greater than 0".to_owned());
        }
        let version = |name: &str, text: &str| {
            TlsVersion::parse(text).map_err(|error| format!("{name} is invalid: {error}"))
        };
        let oldest = version("tls-min-version", &self.tls_min_version)?;
        let newest = version("tls-max-version", &self.tls_max_version)?;
        if newest.is_some() && oldest > newest {
            return Err(format!(
                "min version ({}) is greater than max version ({})",
                self.tls_min_version, self.tls_max_version
            ));
        }
        if oldest == Some(TlsVersion::Tls13) && !self.cipher_suites().is_empty() {
            return Err(
                "cipher suites cannot be configured when only TLS1.3 is enabled".to_owned(),
            );
        }
        check_cipher_suite_names(&self.cipher_suites())?;
        Ok(())
    }

    fn cipher_suites(&self) -> Vec<String> {
        let mut names = self.listen_cipher_suites.clone();
        names.retain(|name| !name.is_empty());
        names
    }

    /// TLS with clients; nothing: plain text.
    pub fn listen_tls(&self) -> Option<TlsSettings> {
        let is_given = [&self.cert_file, &self.key_file, &self.trusted_ca_file]
            .iter()
            .any(|file| !file.is_empty());
        if !is_given && !self.auto_tls {
            return None;
        }
        Some(TlsSettings {
            cert_file: path(&self.cert_file),
            key_file: path(&self.key_file),
            trusted_ca_file: path(&self.trusted_ca_file),
            crl_file: path(&self.client_crl_file),
            // `check` has refused every other text.
            min_version: TlsVersion::parse(&self.tls_min_version).unwrap_or_default(),
            max_version: TlsVersion::parse(&self.tls_max_version).unwrap_or_default(),
            cipher_suites: self.cipher_suites(),
            auto: !is_given,
            ..TlsSettings::default()
        })
    }

    /// TLS with the cluster; nothing: only for endpoints that say `https://`.
    pub fn dial_tls(&self) -> Option<TlsSettings> {
        let is_given = [&self.cacert, &self.cert, &self.key]
            .iter()
            .any(|file| !file.is_empty());
        (is_given || self.insecure_skip_tls_verify).then(|| TlsSettings {
            cert_file: path(&self.cert),
            key_file: path(&self.key),
            trusted_ca_file: path(&self.cacert),
            ..TlsSettings::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    #[command(args_override_self = true)]
    struct CommandLine {
        #[command(flatten)]
        options: Options,
    }

    fn parse(arguments: &[&str]) -> Result<Options, String> {
        let arguments = std::iter::once(&"start").chain(arguments);
        let parsed = CommandLine::try_parse_from(arguments).map_err(|error| error.to_string())?;
        parsed.options.check()?;
        Ok(parsed.options)
    }

    #[test]
    fn flags_are_written_as_for_etcd() {
        let options = parse(&[
            "--endpoints=a:1,b:2",
            "--endpoints",
            "c:3",
            "--enable-pprof",
            "--insecure-discovery=false",
            "--namespace=x",
            "--namespace=y",
            "--dial-keepalive-time=1m30s",
            "--experimental-serializable-ordering=true",
        ])
        .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(options.endpoints, ["a:1", "b:2", "c:3"]);
        assert!(options.enable_pprof && options.experimental_serializable_ordering);
        assert!(!options.insecure_discovery);
        assert_eq!(options.namespace, "y");
        assert_eq!(options.dial_keepalive_time, Duration::from_secs(90));
        assert_eq!(options.listen_tls(), None);
        assert_eq!(options.dial_tls(), None);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (arguments, reason) in [
            (&["--resolver-prefix=a"][..], "invalid resolver-ttl 0"),
            (&["--resolver-ttl=5"], "invalid resolver-prefix \"\""),
            (
                &[
                    "--resolver-prefix=a",
                    "--resolver-ttl=5",
                    "--advertise-client-url=",
                ],
                "invalid advertise-client-url \"\"",
            ),
            (
                &["--auto-tls", "--self-signed-cert-validity=0"],
                "selfSignedCertValidity is invalid,it should be greater than 0",
            ),
            (
                &["--tls-min-version=TLS1.1"],
                "tls-min-version is invalid: unexpected TLS version",
            ),
            (
                &["--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"],
                "min version (TLS1.3) is greater than max version (TLS1.2)",
            ),
            (
                &[
                    "--tls-min-version=TLS1.3",
                    "--listen-cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
                ],
                "cipher suites cannot be configured when only TLS1.3 is enabled",
            ),
            (&["--no-such-flag"], "unexpected argument"),
        ] {
            let Err(error) = parse(arguments) else {
                panic!("{arguments:?} was accepted");
            };
            assert!(error.contains(reason), "{arguments:?}: {error}");
        }
    }
}
