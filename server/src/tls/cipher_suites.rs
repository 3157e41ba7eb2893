//! Cipher suites by the names of Go, which etcd's option takes.

use rustls::SupportedCipherSuite;
use rustls::crypto::ring::cipher_suite as suites;

use super::TlsError;

/// Go's names of the suites that exist here. Those of TLS 1.3 are always on, as in Go.
const KNOWN: &[(&str, SupportedCipherSuite)] = &[
    ("TLS_AES_128_GCM_SHA256", suites::TLS13_AES_128_GCM_SHA256),
    ("TLS_AES_256_GCM_SHA384", suites::TLS13_AES_256_GCM_SHA384),
    (
        "TLS_CHACHA20_POLY1305_SHA256",
        suites::TLS13_CHACHA20_POLY1305_SHA256,
    ),
    (
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        suites::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    ),
    (
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        suites::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    ),
    (
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        suites::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    ),
    (
        "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
        suites::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    ),
    (
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        suites::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    (
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        suites::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    // Go's older spellings.
    (
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305",
        suites::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    (
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305",
        suites::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
];

/// Suites of Go that exist nowhere in this program: no forward secrecy, or CBC, 3DES and RC4.
const WEAK: &[&str] = &[
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
];

fn find(name: &str) -> Result<SupportedCipherSuite, String> {
    if let Some((_, suite)) = KNOWN.iter().find(|(known, _)| *known == name) {
        return Ok(*suite);
    }
    if WEAK.contains(&name) {
        return Err(format!(
            "TLS cipher suite {name:?} is not supported: it has no forward secrecy or a broken \
             cipher; remove it from --cipher-suites, or leave the option empty for all safe ones"
        ));
    }
    Err(format!("unexpected TLS cipher suite {name:?}"))
}

/// Checks names without using them.
///
/// # Errors
/// Etcd's text for a name that Go does not know; for one that only Go has, what to do.
pub fn check_names(names: &[String]) -> Result<(), String> {
    names.iter().try_for_each(|name| find(name).map(|_| ()))
}

/// The suites of these names; all for an empty list.
pub(super) fn select(names: &[String]) -> Result<Vec<SupportedCipherSuite>, TlsError> {
    if names.is_empty() {
        return Ok(rustls::crypto::ring::ALL_CIPHER_SUITES.to_vec());
    }
    let mut selected: Vec<_> = rustls::crypto::ring::ALL_CIPHER_SUITES
        .iter()
        .filter(|suite| suite.tls13().is_some())
        .copied()
        .collect();
    for name in names {
        let suite = find(name)?;
        if !selected.contains(&suite) {
            selected.push(suite);
        }
    }
    Ok(selected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_go() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            check_names(&names(&["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"])),
            Ok(())
        );
        assert_eq!(
            check_names(&names(&["a"])),
            Err("unexpected TLS cipher suite \"a\"".to_owned())
        );
        let weak = check_names(&names(&["TLS_RSA_WITH_AES_128_CBC_SHA"]));
        assert!(weak.is_err_and(|text| text.contains("remove it")));
    }

    #[test]
    fn a_list_restricts_tls_1_2_only() {
        let all = select(&[]).expect("all");
        let one = select(&["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256".to_owned()]).expect("known");
        let old = |suites: &[SupportedCipherSuite]| {
            suites
                .iter()
                .filter(|suite| suite.tls13().is_none())
                .count()
        };
        assert_eq!(one.len() - old(&one), all.len() - old(&all));
        assert_eq!(old(&one), 1);
    }
}
