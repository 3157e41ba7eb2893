//! Starts that must fail, with a reason in etcd's words.

use metastore_tests::MemberBuilder;
use metastore_tests::certificates::{Authority, request};
use metastore_tests::programs::subject;

use super::Certificates;

#[tokio::test]
async fn files_that_do_not_fit_end_the_start_with_the_reason() {
    let certificates = Certificates::new();
    let folder = certificates.path();
    let other = Authority::new("other").issue(folder, "other", request("other"));
    let text = folder.join("text.pem");
    std::fs::write(&text, "no certificate").unwrap();
    let cert = certificates.server.cert.display().to_string();
    let key = certificates.server.key.display().to_string();
    let missing = folder.join("missing.pem").display().to_string();
    let open_missing = format!("open {missing}: no such file or directory");
    let text = text.display().to_string();
    let empty = folder.join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let empty = empty.display().to_string();
    let directory = folder.display().to_string();
    let read_directory = format!("read {directory}: is a directory");
    let secure = || MemberBuilder::new(subject()).secure_clients();
    let pair = |cert: &str, key: &str| {
        secure()
            .flag(format!("--cert-file={cert}"))
            .flag(format!("--key-file={key}"))
    };
    let peer_pair = |cert: &str, key: &str| {
        MemberBuilder::new(subject())
            .secure_peers()
            .flag(format!("--peer-cert-file={cert}"))
            .flag(format!("--peer-key-file={key}"))
    };
    for (builder, reason) in [
        (
            secure(),
            "TLS key/cert (--cert-file, --key-file) must be provided for client url https://",
        ),
        (
            MemberBuilder::new(subject()).secure_peers(),
            "KeyFile and CertFile are not presented",
        ),
        (
            MemberBuilder::new(subject()).flag("--listen-metrics-urls=https://127.0.0.1:0"),
            "client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url",
        ),
        (peer_pair(&missing, &key), open_missing.as_str()),
        (peer_pair(&cert, &missing), open_missing.as_str()),
        (
            peer_pair(&cert, &other.key.display().to_string()),
            "tls: private key does not match public key",
        ),
        (
            peer_pair(&text, &key),
            "tls: failed to find any PEM data in certificate input",
        ),
        (
            peer_pair(&cert, &text),
            "tls: failed to find any PEM data in key input",
        ),
        (
            peer_pair(&cert, &key).flag(format!("--peer-trusted-ca-file={missing}")),
            open_missing.as_str(),
        ),
        (
            peer_pair(&cert, "").flag("--peer-client-cert-auth"),
            "KeyFile and CertFile must both be present[key: , cert: ",
        ),
        (
            peer_pair(&cert, &key)
                .flag("--peer-cert-allowed-cn=a")
                .flag("--peer-cert-allowed-hostname=b"),
            "AllowedCNs and AllowedHostnames are mutually exclusive (cns=[\\\"a\\\"], hostnames=[\\\"b\\\"])",
        ),
        (
            peer_pair(&cert, &key).flag("--cipher-suites=TLS_NONE"),
            "unexpected TLS cipher suite \\\"TLS_NONE\\\"",
        ),
        (
            MemberBuilder::new(subject())
                .flag("--peer-auto-tls")
                .flag("--self-signed-cert-validity=0"),
            "selfSignedCertValidity is invalid,it should be greater than 0",
        ),
        (pair(&missing, &key), open_missing.as_str()),
        (peer_pair(&directory, &key), read_directory.as_str()),
        (
            peer_pair(&empty, &key),
            "tls: failed to find any PEM data in certificate input",
        ),
        (
            peer_pair(&cert, &key).flag(format!("--peer-trusted-ca-file={directory}")),
            read_directory.as_str(),
        ),
    ] {
        let (status, log) = builder.run_to_end().await;
        assert!(!status.success(), "{reason}: it started");
        assert!(log.contains(reason), "{reason} is not in\n{log}");
    }
}

/// A small image has no authorities of the system. Where they would be needed, nobody is trusted.
#[tokio::test]
async fn a_system_without_certificate_authorities_is_enough() {
    let nothing = tempfile::tempdir().unwrap();
    let on_bare_system = |builder: MemberBuilder| {
        let folder = nothing.path().display().to_string();
        let file = nothing.path().join("none.pem").display().to_string();
        builder
            .env("SSL_CERT_DIR", &folder)
            .env("SSL_CERT_FILE", &file)
    };
    let member = on_bare_system(MemberBuilder::new(subject())).start().await;
    member.client().put("a", "b").await.unwrap();
    // Client certificates are asked for, and nothing says who may sign them.
    let certificates = Certificates::new();
    let demanding = certificates.member().flag("--client-cert-auth");
    let member = on_bare_system(demanding).spawn();
    super::logged(&member, &["serving client traffic"]).await;
    let client = certificates.client("client");
    let ca = Some(certificates.ca.as_path());
    let refusal = super::etcdctl(&member.endpoint(), ca, Some(&client), "get a");
    assert!(!refusal.status.success(), "{refusal:?}");
    super::logged(&member, &["rejected connection"]).await;
}

#[tokio::test]
async fn generated_certificates_serve_clients_and_are_kept() {
    let mut member = MemberBuilder::new(subject())
        .secure_clients()
        .flag("--auto-tls")
        .start()
        .await;
    let cert = member.data_folder().join("fixtures/client/cert.pem");
    let before = std::fs::read_to_string(&cert).unwrap();
    let ca = Some(cert.as_path());
    super::assert_ok(&super::etcdctl(&member.endpoint(), ca, None, "put a b"));
    member.kill();
    member.respawn();
    member.ready().await;
    assert_eq!(std::fs::read_to_string(&cert).unwrap(), before);
    super::assert_ok(&super::etcdctl(&member.endpoint(), ca, None, "get a"));
}

#[tokio::test]
async fn suites_and_versions_can_be_restricted() {
    let certificates = Certificates::new();
    let member = certificates
        .member()
        .flag("--tls-max-version=TLS1.2")
        .flag("--cipher-suites=TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256")
        .start()
        .await;
    let trusted = [certificates.authority.pem()];
    let limited = |suite| {
        let mut provider = rustls::crypto::ring::default_provider();
        provider.cipher_suites = vec![suite];
        let mut roots = rustls::RootCertStore::empty();
        let pem = rustls::pki_types::pem::PemObject::from_pem_slice(trusted[0].as_bytes());
        roots.add(pem.unwrap()).unwrap();
        let mut config = rustls::ClientConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        std::sync::Arc::new(config)
    };
    use rustls::crypto::ring::cipher_suite as suites;
    for (suite, is_served) in [
        (suites::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, true),
        (suites::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, false),
        (suites::TLS13_AES_128_GCM_SHA256, false),
    ] {
        let client = metastore_tests::Client::secure(&member.address(), limited(suite));
        assert_eq!(client.put("a", "b").await.is_ok(), is_served, "{suite:?}");
    }
}
