//! Members by DNS: `--discovery-srv`.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use metastore_service_records::{Target, lookup, service};

use super::DiscoveryError;
use crate::config::{Config, ListenUrl, join};

/// Finds the members: `_etcd-server-ssl._tcp.<domain>` for `https`, `_etcd-server._tcp.<domain>` for
/// `http`, each with `-<name>` behind the service when `--discovery-srv-name` is set.
///
/// # Errors
/// When neither has a record, or none of them is this member.
pub async fn find(config: &Config, domain: &str) -> Result<String, DiscoveryError> {
    let own = own_addresses(&config.initial_advertise_peer_urls)
        .await
        .map_err(DiscoveryError::Dns)?;
    let mut members = Vec::new();
    let mut problems = Vec::new();
    for (scheme, base) in [("https", "etcd-server-ssl"), ("http", "etcd-server")] {
        let service = service(base, &config.discovery_srv_name);
        let found = lookup(&service, domain)
            .await
            .map_err(|error| format!("error querying DNS SRV records for _{service} {error}"));
        let found = match found {
            Ok(targets) => name_members(&config.name, scheme, &resolve(targets).await, &own),
            Err(error) => Err(error),
        };
        let error = found.as_ref().err().cloned().unwrap_or_default();
        let found = found.unwrap_or_default();
        tracing::info!(
            "service-scheme" = scheme,
            "service-name" = service,
            "server-name" = config.name,
            "discovery-srv" = domain,
            "advertise-peer-urls" = join(&config.initial_advertise_peer_urls),
            "found-cluster" = found.join(","),
            error,
            "get cluster for {service} SRV"
        );
        members.extend(found);
        if !error.is_empty() {
            problems.push(error);
        }
    }
    if members.is_empty() {
        return Err(DiscoveryError::Dns(problems.join("\n")));
    }
    let prefix = format!("{}=", config.name);
    if !members.iter().any(|member| member.starts_with(&prefix)) {
        return Err(DiscoveryError::Dns(format!(
            "cannot find local etcd member {:?} in SRV records",
            config.name
        )));
    }
    Ok(members.join(","))
}

async fn address_of(host: &str, port: u16) -> Result<SocketAddr, String> {
    let mut addresses = tokio::net::lookup_host((host, port))
        .await
        .map_err(|error| format!("lookup {host}: {error}"))?;
    addresses
        .next()
        .ok_or_else(|| format!("lookup {host}: no address"))
}

/// The advertised URLs by the addresses that they stand for.
async fn own_addresses(urls: &[ListenUrl]) -> Result<BTreeMap<SocketAddr, ListenUrl>, String> {
    let mut own = BTreeMap::new();
    for url in urls {
        let host = url.host.trim_matches(['[', ']']);
        own.insert(address_of(host, url.port).await?, url.clone());
    }
    Ok(own)
}

/// The targets whose names have an address.
async fn resolve(targets: Vec<Target>) -> Vec<(Target, SocketAddr)> {
    let mut resolved = Vec::new();
    for target in targets {
        match address_of(&target.host, target.port).await {
            Ok(address) => resolved.push((target, address)),
            Err(error) => tracing::warn!(error, "an SRV record leads nowhere"),
        }
    }
    resolved
}

/// Gives each target a name, as etcd does: this member its own, all others numbers. Names of others
/// mean nothing, because the members' ids come from their URLs.
fn name_members(
    own_name: &str,
    scheme: &str,
    targets: &[(Target, SocketAddr)],
    own: &BTreeMap<SocketAddr, ListenUrl>,
) -> Result<Vec<String>, String> {
    let mut members = Vec::new();
    let mut problem = None;
    let mut next_number = 0;
    for (target, address) in targets {
        let url = format!("{scheme}://{target}");
        let name = match own.get(address) {
            Some(expected) if expected.scheme.as_str() != scheme => {
                problem = Some(format!(
                    "bootstrap at {url} from DNS has scheme mismatch with expected peer {expected}"
                ));
                continue;
            }
            Some(_) => own_name.to_owned(),
            None => {
                next_number += 1;
                (next_number - 1).to_string()
            }
        };
        members.push(format!("{name}={url}"));
    }
    match problem {
        Some(problem) if members.is_empty() => Err(problem),
        _ => Ok(members),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(host: &str, address: &str) -> (Target, SocketAddr) {
        let address: SocketAddr = address.parse().expect("an address");
        let target = Target {
            priority: 0,
            host: host.to_owned(),
            port: address.port(),
        };
        (target, address)
    }

    #[test]
    fn this_member_has_its_name_and_others_have_numbers() {
        let own = ListenUrl::parse("https://b.example:2380").expect("a URL");
        let own = BTreeMap::from([("10.0.0.2:2380".parse().expect("an address"), own)]);
        let targets = [
            target("a.example", "10.0.0.1:2380"),
            target("b.example", "10.0.0.2:2380"),
            target("c.example", "10.0.0.3:2380"),
        ];
        assert_eq!(
            name_members("b", "https", &targets, &own),
            Ok(vec![
                "0=https://a.example:2380".to_owned(),
                "b=https://b.example:2380".to_owned(),
                "1=https://c.example:2380".to_owned(),
            ])
        );
        // The plain records of the same hosts are not this member's.
        let error = name_members("b", "http", &targets[1..2], &own).expect_err("a mismatch");
        assert!(error.contains("scheme mismatch with expected peer https://b.example:2380"));
    }
}
