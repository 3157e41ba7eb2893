//! SRV records: where the members of a domain's cluster are.
//!
//! Owns the question and the form of the answer. Which records members and clients ask for is etcd's choice;
//! whether an endpoint is to be trusted is the caller's.

use std::fmt;

use hickory_resolver::TokioResolver;
use hickory_resolver::proto::rr::RData;

/// One SRV record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The lowest is to be tried first.
    pub priority: u16,
    /// The host, without the dot at its end.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(formatter, "[{}]:{}", self.host, self.port),
            false => write!(formatter, "{}:{}", self.host, self.port),
        }
    }
}

/// The records of `_<service>._tcp.<domain>`, by priority.
///
/// # Errors
/// There are none, or nobody answers.
pub async fn lookup(service: &str, domain: &str) -> Result<Vec<Target>, String> {
    let resolver = TokioResolver::builder_tokio()
        .and_then(|builder| builder.build())
        .map_err(|error| error.to_string())?;
    let name = format!("_{service}._tcp.{}.", domain.trim_end_matches('.'));
    let answer = resolver
        .srv_lookup(name.as_str())
        .await
        .map_err(|error| format!("lookup {name}: {error}"))?;
    let mut targets: Vec<Target> = answer
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            RData::SRV(srv) => Some(Target {
                priority: srv.priority,
                host: srv.target.to_utf8().trim_end_matches('.').to_owned(),
                port: srv.port,
            }),
            _ => None,
        })
        .collect();
    targets.sort();
    Ok(targets)
}

/// The service whose records are asked for, with `-<name>` behind it when a name is given.
#[must_use]
pub fn service(service: &str, name: &str) -> String {
    match name {
        "" => service.to_owned(),
        name => format!("{service}-{name}"),
    }
}

/// The URLs at which clients find the cluster of a domain: those of `_etcd-client-ssl` (`https`) and then
/// those of `_etcd-client` (`http`).
///
/// # Errors
/// There is no record of either kind.
pub async fn client_endpoints(domain: &str, name: &str) -> Result<Vec<String>, String> {
    let mut endpoints = Vec::new();
    let mut problems = Vec::new();
    for (scheme, base) in [("https", "etcd-client-ssl"), ("http", "etcd-client")] {
        match lookup(&service(base, name), domain).await {
            Ok(targets) => {
                endpoints.extend(targets.iter().map(|target| format!("{scheme}://{target}")));
            }
            Err(error) => problems.push(error),
        }
    }
    match problems.len() {
        2 => Err(format!("dns lookup errors: {}", problems.join(" and "))),
        _ => Ok(endpoints),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_behind_the_service() {
        assert_eq!(service("etcd-client-ssl", ""), "etcd-client-ssl");
        assert_eq!(service("etcd-client-ssl", "a"), "etcd-client-ssl-a");
    }

    #[test]
    fn addresses_of_ipv6_have_brackets() {
        let target = |host: &str| Target {
            priority: 0,
            host: host.to_owned(),
            port: 2379,
        };
        assert_eq!(target("a.example").to_string(), "a.example:2379");
        assert_eq!(target("::1").to_string(), "[::1]:2379");
    }
}
