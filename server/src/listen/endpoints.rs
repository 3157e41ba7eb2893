//! Which sockets the client URLs ask for.

use crate::config::{Config, ListenUrl};

use super::sockets::Address;

/// What a client endpoint serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// gRPC and HTTP on one port.
    Both,
    /// gRPC, because HTTP has ports of its own.
    Grpc,
    /// HTTP of `--listen-client-http-urls`.
    Http,
    /// Health and metrics of `--listen-metrics-urls`.
    Metrics,
}

impl Traffic {
    /// Etcd's word in the log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Both => "grpc+http",
            Self::Grpc => "grpc",
            Self::Http => "http",
            Self::Metrics => "metrics",
        }
    }

    /// The protocols to offer by ALPN, the best first.
    #[must_use]
    pub const fn protocols(self) -> &'static [&'static str] {
        match self {
            Self::Grpc => &["h2"],
            Self::Both | Self::Http | Self::Metrics => &["h2", "http/1.1"],
        }
    }
}

/// One socket for clients. Several URLs with one address share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPlan {
    /// Where to bind.
    pub address: Address,
    /// What is served.
    pub traffic: Traffic,
    /// TLS is spoken.
    pub secure: bool,
    /// Plain text is spoken.
    pub insecure: bool,
    /// The URLs, for the log.
    pub urls: Vec<ListenUrl>,
}

/// The sockets for `--listen-client-urls`, `--listen-client-http-urls` and `--listen-metrics-urls`.
///
/// # Errors
/// Etcd's text when one address shall serve HTTP alone and gRPC too, or `https` has no certificate.
pub fn plan(config: &Config) -> Result<Vec<EndpointPlan>, String> {
    let splits = !config.listen_client_http_urls.is_empty();
    let grpc = if splits { Traffic::Grpc } else { Traffic::Both };
    let mut plans = Vec::new();
    for url in config
        .listen_client_urls
        .iter()
        .chain(&config.listen_client_http_urls)
    {
        if url.scheme.is_secure() && config.client_tls.is_empty() {
            return Err(format!(
                "TLS key/cert (--cert-file, --key-file) must be provided for client url {url} with HTTPS scheme"
            ));
        }
    }
    for url in &config.listen_client_urls {
        add(&mut plans, url, grpc)?;
    }
    for url in &config.listen_client_http_urls {
        add(&mut plans, url, Traffic::Http)?;
    }
    for url in &config.listen_metrics_urls {
        if url.scheme.is_secure() && config.client_tls.is_empty() {
            return Err(crate::config::METRICS_NEED_TLS.to_owned());
        }
        add(&mut plans, url, Traffic::Metrics)?;
    }
    Ok(plans)
}

fn add(plans: &mut Vec<EndpointPlan>, url: &ListenUrl, traffic: Traffic) -> Result<(), String> {
    let address = Address::of(url).map_err(|error| error.to_string())?;
    let secure = url.scheme.is_secure();
    let chooses_port = matches!(&address, Address::Tcp(address) if address.port() == 0);
    let known = plans
        .iter_mut()
        .find(|plan| plan.address == address && !chooses_port);
    match known {
        Some(plan) if plan.traffic == traffic => {
            plan.secure |= secure;
            plan.insecure |= !secure;
            plan.urls.push(url.clone());
        }
        Some(_) if traffic == Traffic::Http => {
            return Err(format!(
                "cannot bind both --listen-client-urls and --listen-client-http-urls on the same url {url}"
            ));
        }
        Some(_) => {
            return Err(format!(
                "cannot bind --listen-metrics-urls and other client URLs on the same url {url}"
            ));
        }
        None => plans.push(EndpointPlan {
            address,
            traffic,
            secure,
            insecure: !secure,
            urls: vec![url.clone()],
        }),
    }
    Ok(())
}
