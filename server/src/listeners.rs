//! From the URLs of the options to bound sockets with their certificates.

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use metastore_consensus::BoxedStream;
use tokio::sync::mpsc;

use crate::config::{Config, ListenUrl, TlsSettings};
use crate::http::HttpService;
use crate::listen::sockets::{Address, BoundSocket};
use crate::listen::{ClientEndpoint, ClientThreads, EndpointPlan, Traffic, plan};
use crate::node::Node;
use crate::peer_transport::{PeerSocket, server_tls};
use crate::startup::RunError;
use crate::tls::{self, Endpoint, ServerTls, TlsError};

/// The longest that somebody may take to send the head of an HTTP request to the peer port.
const PEER_HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// Makes the certificates of `--auto-tls` and `--peer-auto-tls` below the data directory, or finds
/// those that were made before.
///
/// # Errors
/// When the data directory cannot be written to.
pub fn generate_certificates(config: &mut Config) -> Result<(), TlsError> {
    let folder = config.data_dir.join("fixtures");
    let years = config.self_signed_cert_validity_years;
    let client_urls = config
        .listen_client_urls
        .iter()
        .chain(&config.listen_client_http_urls);
    let client_hosts = tls::hosts_of(client_urls);
    let peer_hosts = tls::hosts_of(&config.listen_peer_urls);
    for (side, settings, hosts) in [
        ("peer", &mut config.peer_tls, peer_hosts),
        ("client", &mut config.client_tls, client_hosts),
    ] {
        generate(side, settings, &folder.join(side), &hosts, years)?;
    }
    Ok(())
}

fn generate(
    side: &str,
    settings: &mut TlsSettings,
    folder: &Path,
    hosts: &[String],
    years: u64,
) -> Result<(), TlsError> {
    if !settings.auto {
        return Ok(());
    }
    if !settings.is_empty() {
        tracing::warn!("ignoring {side} auto TLS since certs given");
        return Ok(());
    }
    if settings.demands_certificates() {
        tracing::warn!(
            "ignoring the options about {side} certificates: generated certificates cannot be checked"
        );
    }
    let folder = std::path::absolute(folder).map_err(|error| TlsError::from(error.to_string()))?;
    let generated = tls::generate(&folder, hosts, years)?;
    settings.use_generated(&generated.cert_file, &generated.key_file);
    Ok(())
}

/// Says that a plain URL leaves the certificates unused.
fn warn_of_plain(url: &ListenUrl, settings: &TlsSettings, scheme: &str, field: &str) {
    if url.scheme.is_secure() {
        return;
    }
    use crate::observe::log;
    let warn = |message: String| {
        let url = [(field, serde_json::Value::from(url.to_string()))];
        log::record(log::Level::Warn, log::here!(), &message, &url);
    };
    if !settings.is_empty() {
        warn(format!(
            "scheme is {scheme} while key and cert files are present; ignoring key and cert files"
        ));
    }
    if settings.client_cert_auth {
        let option = if field == "peer-url" {
            "--peer-client-cert-auth"
        } else {
            "--client-cert-auth"
        };
        warn(format!(
            "scheme is {scheme} while {option} is enabled; ignoring client cert auth for this URL"
        ));
    }
}

fn say_tls(side: &str, config: &Config, settings: &TlsSettings) {
    if !settings.is_empty() {
        tracing::info!(
            "tls-info" = %settings,
            "cipher-suites" = config.client_tls.cipher_suites.join(","),
            "starting with {side} TLS"
        );
    }
}

/// Binds `--listen-peer-urls`.
///
/// # Errors
/// Certificates that cannot be read, addresses that cannot be bound.
pub fn bind_peers(config: &Config) -> Result<Vec<PeerSocket>, RunError> {
    let settings = &config.peer_tls;
    tracing::info!(
        "listen-peer-urls" = crate::config::join(&config.listen_peer_urls),
        "configuring peer listeners"
    );
    say_tls("peer", config, settings);
    let tls = server_tls(settings)?;
    config
        .listen_peer_urls
        .iter()
        .map(|url| {
            warn_of_plain(url, settings, "HTTP", "peer-url");
            let address = Address::of(url)?;
            if url.scheme.is_secure() && tls.is_none() {
                return Err(TlsError::from(format!(
                    "cannot listen on TLS for {address}: KeyFile and CertFile are not presented"
                ))
                .into());
            }
            let socket = BoundSocket::bind(&address, config.socket_reuse_port)?;
            tracing::info!(address = %socket.address(), "serving peer traffic");
            Ok(PeerSocket {
                socket,
                tls: tls.clone().filter(|_| url.scheme.is_secure()),
            })
        })
        .collect()
}

/// Turns away everybody who comes to the peer port while this is polled, that is, before this member
/// knows who it is: members that start together ask each other for their members.
pub async fn turn_away(sockets: &[PeerSocket]) -> Infallible {
    // Without a file descriptor peers wait instead, which harms nobody.
    let _ = futures::future::join_all(sockets.iter().map(|peer| peer.socket.turn_away())).await;
    std::future::pending().await
}

/// A bound socket for clients, not served yet.
pub struct ClientSocket {
    socket: BoundSocket,
    plan: EndpointPlan,
    /// What its connections have to know.
    pub endpoint: Arc<ClientEndpoint>,
}

/// Binds all URLs for clients and metrics.
///
/// # Errors
/// Certificates that cannot be read, addresses that cannot be bound or clash.
pub fn bind_clients(config: &Config) -> Result<Vec<ClientSocket>, RunError> {
    let settings = &config.client_tls;
    tracing::info!(
        "listen-client-urls" = crate::config::join(&config.listen_client_urls),
        "configuring client listeners"
    );
    for url in config
        .listen_client_urls
        .iter()
        .chain(&config.listen_client_http_urls)
    {
        warn_of_plain(url, settings, "http or unix", "client-url");
    }
    let plans = plan(config).map_err(TlsError::from)?;
    say_tls("client", config, settings);
    plans
        .into_iter()
        .map(|plan| {
            let tls = if plan.secure {
                let tls = ServerTls::open(settings, Endpoint::Client, plan.traffic.protocols())?;
                // Etcd demands it of those who read metrics and not of clients.
                let checks =
                    plan.traffic == Traffic::Metrics && !settings.skip_client_san_verification;
                Some(tls.checking_addresses(checks))
            } else {
                None
            };
            let socket = BoundSocket::bind(&plan.address, config.socket_reuse_port)?;
            Ok(ClientSocket {
                socket,
                endpoint: Arc::new(ClientEndpoint {
                    traffic: plan.traffic,
                    tls,
                    insecure: plan.insecure,
                    identifies_clients: settings.client_cert_auth,
                }),
                plan,
            })
        })
        .collect()
}

impl ClientSocket {
    /// Begins to accept connections.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn serve(self, threads: &Arc<ClientThreads>) -> io::Result<()> {
        let Self {
            socket,
            plan,
            endpoint,
        } = self;
        let address = socket.address().to_string();
        let socket = socket.register()?;
        let threads = Arc::clone(threads);
        tokio::spawn(async move { threads.accept(socket, endpoint).await });
        if plan.traffic == Traffic::Metrics {
            for url in &plan.urls {
                tracing::info!(address = %url, bound = address, "serving metrics");
            }
            return Ok(());
        }
        let traffic = plan.traffic.as_str();
        if plan.insecure {
            tracing::info!(
                traffic,
                address,
                "serving client traffic insecurely; this is strongly discouraged!"
            );
        }
        if plan.secure {
            tracing::info!(traffic, address, "serving client traffic securely");
        }
        Ok(())
    }
}

/// Serves HTTP on the peer port.
pub async fn serve_peer_http(node: Arc<Node>, mut connections: mpsc::Receiver<BoxedStream>) {
    while let Some(stream) = connections.recv().await {
        let service = HttpService::new(Arc::clone(&node));
        tokio::spawn(async move {
            let answer = service_fn(move |request| {
                let service = service.clone();
                async move { Ok::<_, Infallible>(service.call_peer(&request)) }
            });
            // An error is the end of a connection; nobody waits for it.
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PEER_HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        });
    }
}
