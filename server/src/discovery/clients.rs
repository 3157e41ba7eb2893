//! The endpoints of a cluster by DNS: `--discovery-srv` of `gateway start` and `grpc-proxy start`.

use std::time::Duration;

use metastore_service_records::client_endpoints;
use tokio::net::TcpStream;

use crate::config::TlsSettings;
use crate::tls::ClientTls;

/// How long an endpoint may take to show its certificate; etcd's limit.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// What to ask for, and what to believe.
#[derive(Clone, Copy, Debug)]
pub struct ClientRecords<'a> {
    /// The domain; empty: nobody is asked.
    pub domain: &'a str,
    /// The name behind the services; often empty.
    pub name: &'a str,
    /// Take every endpoint. Otherwise only those that show a certificate for the domain are taken.
    pub accepts_insecure: bool,
    /// The authorities of those certificates; empty: the system's.
    pub ca_file: &'a str,
}

impl ClientRecords<'_> {
    /// The URLs that were found; none without a domain, and none where nobody is to be trusted.
    ///
    /// # Errors
    /// The domain has no records.
    pub async fn find(&self) -> Result<Vec<String>, String> {
        if self.domain.is_empty() {
            return Ok(Vec::new());
        }
        let endpoints = client_endpoints(self.domain, self.name).await?;
        let joined = endpoints.join(",");
        tracing::info!(
            "srv-server" = self.domain,
            endpoints = joined,
            "discovered cluster from SRV"
        );
        if self.accepts_insecure {
            return Ok(endpoints);
        }
        tracing::info!(
            "srv-server" = self.domain,
            endpoints = joined,
            "validating discovered SRV endpoints"
        );
        let mut secure = Vec::new();
        let mut problems = Vec::new();
        for endpoint in endpoints {
            match self.validate(&endpoint).await {
                Ok(()) => secure.push(endpoint),
                Err(problem) => problems.push(problem),
            }
        }
        if problems.is_empty() {
            tracing::info!(
                "srv-server" = self.domain,
                endpoints = secure.join(","),
                "using validated discovered SRV endpoints"
            );
        } else {
            tracing::warn!(
                "srv-server" = self.domain,
                endpoints = secure.join(","),
                error = problems.join(","),
                "failed to validate discovered endpoints"
            );
        }
        Ok(secure)
    }

    async fn validate(&self, endpoint: &str) -> Result<(), String> {
        let Some(address) = endpoint.strip_prefix("https://") else {
            return Err(format!("{endpoint:?} is insecure"));
        };
        let settings = TlsSettings {
            trusted_ca_file: Some(self.ca_file)
                .filter(|path| !path.is_empty())
                .map(Into::into),
            ..TlsSettings::default()
        };
        let dialled = async {
            let tls = ClientTls::open(&settings)
                .map_err(|error| error.to_string())?
                .expecting(Some(self.domain.to_owned()));
            let handshake = async {
                let stream = TcpStream::connect(address).await?;
                tls.connect(stream, self.domain).await
            };
            match tokio::time::timeout(DIAL_TIMEOUT, handshake).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("i/o timeout".to_owned()),
            }
        };
        dialled
            .await
            .map_err(|error: String| format!("{endpoint:?} failed to dial ({error})"))
    }
}
