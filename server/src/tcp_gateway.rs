//! `gateway start`: a TCP proxy in front of a cluster, which etcd has as a sub-command too.
//!
//! Connections go to the endpoints in turn. An endpoint that cannot be reached is left out until it
//! takes connections again. What the connections carry is none of the gateway's business.

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use clap::{Parser, Subcommand};
use tokio::net::{TcpListener, TcpStream, lookup_host};

use crate::config::{format_duration, parse_duration};
use crate::discovery::clients::ClientRecords;
use crate::init_daemon;
use crate::listen::sockets::ACCEPT_RETRY_INTERVAL;
use crate::observe::log::{self, LogOptions};
use crate::subcommand;

/// The name of the sub-command.
pub const COMMAND: &str = "gateway";

/// gateway related command
#[derive(Parser)]
#[command(name = COMMAND, disable_help_subcommand = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<GatewayCommand>,
}

#[derive(Subcommand)]
enum GatewayCommand {
    /// start the gateway
    Start(Options),
}

#[derive(clap::Args)]
#[command(args_override_self = true)]
struct Options {
    /// listen address
    #[arg(long, default_value = "127.0.0.1:23790")]
    listen_addr: String,
    /// DNS domain used to bootstrap initial cluster
    #[arg(long, default_value = "")]
    discovery_srv: String,
    /// service name to query when using DNS discovery
    #[arg(long, default_value = "")]
    discovery_srv_name: String,
    /// accept insecure SRV records
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true")]
    insecure_discovery: bool,
    /// path to the client server TLS CA file for verifying the discovered endpoints when discovery-srv is provided.
    #[arg(long, default_value = "")]
    trusted_ca_file: String,
    /// comma separated cluster endpoints
    #[arg(long, value_delimiter = ',', default_value = "127.0.0.1:2379")]
    endpoints: Vec<String>,
    /// duration of delay before retrying failed endpoints
    #[arg(long, default_value = "1m0s", value_parser = parse_delay)]
    retry_delay: Duration,
}

fn parse_delay(text: &str) -> Result<Duration, String> {
    let nanoseconds = u64::try_from(parse_duration(text)?);
    match nanoseconds.map(Duration::from_nanos) {
        Ok(Duration::ZERO) | Err(_) => Err("the delay must be positive".to_owned()),
        Ok(delay) => Ok(delay),
    }
}

/// Runs the sub-command; the arguments begin with its name.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let chosen = |line: CommandLine| line.command.map(|GatewayCommand::Start(options)| options);
    subcommand::run(arguments, chosen, start)
}

fn start(options: Options) -> io::Result<()> {
    log::init(&LogOptions::default())?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(serve(options))
}

async fn serve(options: Options) -> io::Result<()> {
    let found = ClientRecords {
        domain: &options.discovery_srv,
        name: &options.discovery_srv_name,
        accepts_insecure: options.insecure_discovery,
        ca_file: &options.trusted_ca_file,
    }
    .find()
    .await
    .map_err(io::Error::other)?;
    // Without a domain, or where none of its endpoints is to be trusted.
    let endpoints = match found.is_empty() {
        true => &options.endpoints,
        false => &found,
    };
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|endpoint| without_scheme(endpoint).to_owned())
        .collect();
    let listen = resolve(&options.listen_addr, "listen address").await?;
    for endpoint in &endpoints {
        let addresses = resolve(endpoint, "endpoint").await?;
        if addresses.iter().any(|address| listen.contains(address)) {
            return Err(io::Error::other(format!(
                "endpoint {endpoint} should not resolve to the gateway listen addr ({})",
                options.listen_addr
            )));
        }
    }
    let listener = TcpListener::bind(&listen[..]).await?;
    tracing::info!(
        endpoints = endpoints.join(","),
        "ready to proxy client requests"
    );
    init_daemon::notify_ready();
    let gateway = Arc::new(Gateway::new(endpoints, options.retry_delay));
    tokio::spawn(Arc::clone(&gateway).revive());
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                tokio::spawn(Arc::clone(&gateway).serve(client));
            }
            Err(_) => tokio::time::sleep(ACCEPT_RETRY_INTERVAL).await,
        }
    }
}

/// `host:port` of an endpoint that may be a URL.
fn without_scheme(endpoint: &str) -> &str {
    let rest = endpoint
        .split_once("://")
        .map_or(endpoint, |(_, rest)| rest);
    rest.split_once('/').map_or(rest, |(host, _)| host)
}

async fn resolve(host_and_port: &str, what: &str) -> io::Result<Vec<std::net::SocketAddr>> {
    match lookup_host(host_and_port).await {
        Ok(addresses) => Ok(addresses.collect()),
        Err(error) => Err(io::Error::new(
            error.kind(),
            format!("failed to resolve {what} {host_and_port:?}: {error}"),
        )),
    }
}

struct Endpoint {
    address: String,
    is_active: AtomicBool,
}

struct Gateway {
    endpoints: Vec<Endpoint>,
    /// Whose turn it is.
    turn: AtomicUsize,
    retry_delay: Duration,
}

impl Gateway {
    fn new(addresses: Vec<String>, retry_delay: Duration) -> Self {
        let endpoints = addresses
            .into_iter()
            .map(|address| Endpoint {
                address,
                is_active: AtomicBool::new(true),
            })
            .collect();
        Self {
            endpoints,
            turn: AtomicUsize::new(0),
            retry_delay,
        }
    }

    /// The next endpoint that is not left out.
    fn pick(&self) -> Option<&Endpoint> {
        (0..self.endpoints.len())
            .map(|_| {
                let turn = self.turn.fetch_add(1, Ordering::Relaxed);
                &self.endpoints[turn % self.endpoints.len()]
            })
            .find(|endpoint| endpoint.is_active.load(Ordering::Relaxed))
    }

    /// A connection to some endpoint; nothing when none can be reached.
    async fn connect(&self) -> Option<TcpStream> {
        while let Some(endpoint) = self.pick() {
            match TcpStream::connect(&endpoint.address).await {
                Ok(server) => return Some(server),
                Err(error) => {
                    endpoint.is_active.store(false, Ordering::Relaxed);
                    tracing::warn!(
                        address = endpoint.address,
                        interval = self.shown_delay(),
                        %error,
                        "deactivated endpoint"
                    );
                }
            }
        }
        None
    }

    async fn serve(self: Arc<Self>, mut client: TcpStream) {
        let Some(mut server) = self.connect().await else {
            return;
        };
        // A proxy must not hold small messages back; that either fails only on a dead connection.
        let _ = client.set_nodelay(true);
        let _ = server.set_nodelay(true);
        // How a connection ends is for its two ends to know.
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    }

    /// Tries the endpoints that are left out from time to time.
    async fn revive(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.retry_delay).await;
            let left_out = |endpoint: &&Endpoint| !endpoint.is_active.load(Ordering::Relaxed);
            for endpoint in self.endpoints.iter().filter(left_out) {
                match TcpStream::connect(&endpoint.address).await {
                    Ok(_) => {
                        endpoint.is_active.store(true, Ordering::Relaxed);
                        tracing::info!(address = endpoint.address, "activated");
                    }
                    Err(error) => tracing::warn!(
                        address = endpoint.address,
                        interval = self.shown_delay(),
                        %error,
                        "failed to activate endpoint (stay inactive for another interval)"
                    ),
                }
            }
        }
    }

    fn shown_delay(&self) -> String {
        format_duration(i64::try_from(self.retry_delay.as_nanos()).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_may_be_urls() {
        for (endpoint, wanted) in [
            ("127.0.0.1:2379", "127.0.0.1:2379"),
            ("http://127.0.0.1:2379", "127.0.0.1:2379"),
            ("https://[::1]:2379/", "[::1]:2379"),
        ] {
            assert_eq!(without_scheme(endpoint), wanted);
        }
    }

    #[test]
    fn endpoints_take_turns_without_those_that_are_left_out() {
        let addresses = ["a", "b", "c"].map(str::to_owned).to_vec();
        let gateway = Gateway::new(addresses, Duration::from_secs(1));
        gateway.endpoints[1]
            .is_active
            .store(false, Ordering::Relaxed);
        let picked: Vec<_> = (0..4)
            .map(|_| gateway.pick().map(|endpoint| endpoint.address.as_str()))
            .collect();
        assert_eq!(picked, [Some("a"), Some("c"), Some("a"), Some("c")]);
        for endpoint in &gateway.endpoints {
            endpoint.is_active.store(false, Ordering::Relaxed);
        }
        assert!(gateway.pick().is_none());
    }
}
