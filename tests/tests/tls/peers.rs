//! TLS between members.

use std::time::Duration;

use metastore_tests::certificates::{Authority, request};
use metastore_tests::programs::subject;
use metastore_tests::{Member, MemberBuilder, eventually};

use super::{Certificates, http_get, logged};

const CLUSTER_LIMIT: Duration = Duration::from_secs(40);

/// Starts three members whose peer URLs are `https`, each changed by `with`.
async fn start_three(with: impl Fn(MemberBuilder, usize) -> MemberBuilder) -> Vec<Member> {
    let builders: Vec<_> = (0..3)
        .map(|index| {
            let builder = MemberBuilder::new(subject())
                .name(&format!("m{index}"))
                .secure_peers();
            with(builder, index)
        })
        .collect();
    let all: Vec<_> = builders
        .iter()
        .map(|builder| (builder.member_name().to_owned(), builder.peer_url()))
        .collect();
    let mut members: Vec<_> = builders
        .into_iter()
        .map(|builder| builder.initial_cluster(all.clone()).spawn())
        .collect();
    for member in &mut members {
        member.ready().await;
    }
    members
}

/// Writes by each member and reads it by the next.
async fn assert_replicates(members: &[Member], value: &str) {
    for (index, member) in members.iter().enumerate() {
        let reader = members[(index + 1) % members.len()].client();
        let writer = member.client();
        let key = format!("key-{index}");
        eventually("a write is read elsewhere", CLUSTER_LIMIT, || async {
            writer
                .put(key.clone(), value.to_owned())
                .await
                .map_err(|error| error.to_string())?;
            let (pair, _) = reader
                .get(key.clone())
                .await
                .map_err(|error| error.to_string())?;
            match pair {
                Some(pair) if pair.value == value.as_bytes() => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
}

#[tokio::test]
async fn three_members_speak_tls_and_take_new_certificates() {
    let certificates = Certificates::new();
    let flag = |name: &str, path: &std::path::Path| format!("--peer-{name}={}", path.display());
    let members = start_three(|builder, _| {
        builder
            .flag(flag("cert-file", &certificates.server.cert))
            .flag(flag("key-file", &certificates.server.key))
            .flag(flag("trusted-ca-file", &certificates.ca))
            .flag("--peer-client-cert-auth")
            .flag("--peer-cert-allowed-cn=server,second")
    })
    .await;
    assert_replicates(&members, "first").await;

    // Somebody without a certificate, with a strange one, and with the wrong name.
    let address = members[0].builder().peer_address();
    let plain = http_get(&address, "/version", None).await;
    assert!(!plain.contains("etcdserver"), "{plain}");
    let rejected = "rejected connection on peer endpoint";
    logged(
        &members[0],
        &[
            rejected,
            "remote-addr",
            "first record does not look like a TLS handshake",
        ],
    )
    .await;
    let folder = certificates.path();
    let stranger = Authority::new("stranger").issue(folder, "stranger", request("server"));
    let unnamed = certificates.client("unnamed");
    for (pair, reason) in [
        (&stranger, "certificate signed by unknown authority"),
        (&unnamed, "client certificate authentication failed"),
    ] {
        let config = metastore_tests::certificates::client_config(
            &[certificates.authority.pem()],
            Some(pair),
        );
        let answer = http_get(&address, "/version", Some(config)).await;
        assert!(!answer.contains("etcdserver"), "{answer}");
        logged(&members[0], &[rejected, reason]).await;
    }
    // A member is served.
    let config = metastore_tests::certificates::client_config(
        &[certificates.authority.pem()],
        Some(&certificates.server),
    );
    let answer = http_get(&address, "/version", Some(config)).await;
    assert!(answer.contains("etcdserver"), "{answer}");

    // New certificates are used by new connections, which a restart makes.
    certificates
        .authority
        .issue(folder, "server", request("second"));
    let mut members = members;
    for member in &mut members {
        member.kill();
        member.respawn();
        member.ready().await;
    }
    assert_replicates(&members, "second").await;
}

#[tokio::test]
async fn a_certificate_for_another_address_is_no_peers() {
    let certificates = Certificates::new();
    let flag = |name: &str, path: &std::path::Path| format!("--peer-{name}={}", path.display());
    let member = MemberBuilder::new(subject())
        .secure_peers()
        .flag(flag("cert-file", &certificates.server.cert))
        .flag(flag("key-file", &certificates.server.key))
        .flag(flag("trusted-ca-file", &certificates.ca))
        .start()
        .await;
    let elsewhere = certificates.authority.issue(
        certificates.path(),
        "elsewhere",
        request("elsewhere").hosts(&["192.0.2.7"]),
    );
    let config = metastore_tests::certificates::client_config(
        &[certificates.authority.pem()],
        Some(&elsewhere),
    );
    let address = member.builder().peer_address();
    let answer = http_get(&address, "/version", Some(config)).await;
    assert!(!answer.contains("etcdserver"), "{answer}");
    logged(
        &member,
        &[
            "rejected connection on peer endpoint",
            "x509: certificate is valid for 192.0.2.7, not 127.0.0.1",
            "ip-addresses",
        ],
    )
    .await;
}

#[tokio::test]
async fn three_members_generate_their_certificates_and_keep_them() {
    let mut members = start_three(|builder, _| builder.flag("--peer-auto-tls")).await;
    assert_replicates(&members, "first").await;
    let cert = members[0].data_folder().join("fixtures/peer/cert.pem");
    let before = std::fs::read(&cert).unwrap();
    for member in &mut members {
        member.kill();
    }
    for member in &mut members {
        member.respawn();
    }
    for member in &mut members {
        member.ready().await;
    }
    assert_replicates(&members, "second").await;
    assert_eq!(std::fs::read(&cert).unwrap(), before);
}

/// Of two members that do not accept each other, each logs why it finds nobody.
#[tokio::test]
async fn a_member_whose_certificate_has_the_wrong_name_says_so() {
    let certificates = Certificates::new();
    let other = certificates.authority.issue(
        certificates.path(),
        "other",
        request("other").hosts(&["127.0.0.1"]),
    );
    let flag = |name: &str, path: &std::path::Path| format!("--peer-{name}={}", path.display());
    let builders: Vec<_> = [&certificates.server, &other]
        .into_iter()
        .enumerate()
        .map(|(index, pair)| {
            MemberBuilder::new(subject())
                .name(&format!("m{index}"))
                .secure_peers()
                .flag(flag("cert-file", &pair.cert))
                .flag(flag("key-file", &pair.key))
                .flag(flag("trusted-ca-file", &certificates.ca))
                .flag("--peer-client-cert-auth")
                .flag("--peer-cert-allowed-cn=server")
        })
        .collect();
    let all: Vec<_> = builders
        .iter()
        .map(|builder| (builder.member_name().to_owned(), builder.peer_url()))
        .collect();
    let members: Vec<_> = builders
        .into_iter()
        .map(|builder| builder.initial_cluster(all.clone()).spawn())
        .collect();
    logged(
        &members[1],
        &["\"level\":\"warn\"", "remote error: tls: bad certificate"],
    )
    .await;
}
