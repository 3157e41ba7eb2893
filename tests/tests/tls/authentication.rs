//! Users who are the names in their certificates, for etcd's own clients and for HTTP: beside etcd.

use super::*;

/// One HTTP/1.1 request over TLS: status, and the body of the answer.
async fn ask(
    address: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
    config: &Arc<rustls::ClientConfig>,
) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    request += &format!("\r\n{body}");
    let exchange = async {
        let mut config = (**config).clone();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = tokio::net::TcpStream::connect(address).await?;
        let name = "127.0.0.1".try_into().unwrap();
        let mut stream = connector.connect(name, stream).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = match tokio::time::timeout(deadline(LIMIT), exchange).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return format!("error: {error}"),
        Err(_) => return "error: no answer".to_owned(),
    };
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.lines().next().unwrap_or_default();
    format!("{status}: {body}")
}

/// What differs between two stores for good reasons.
fn normal(answer: &str) -> String {
    // Go's library puts spaces where it likes.
    let mut answer = answer.replace(", \"", ",\"");
    for field in ["cluster_id", "member_id", "raft_term"] {
        let name = format!("\"{field}\":\"");
        if let Some(start) = answer.find(&name).map(|at| at + name.len())
            && let Some(length) = answer[start..].find('"')
        {
            answer.replace_range(start..start + length, "*");
        }
    }
    answer
}

/// A store with users, authentication on: alice reads `r`.
async fn with_users(member: &Member, certificates: &Certificates, root: &Pair) {
    let ca = certificates.ca.as_path();
    for line in [
        "user add root:rootpw",
        "user grant-role root root",
        "user add alice --no-password",
        "user add bob:bobpw",
        "role add reader",
        "role grant-permission reader read r",
        "user grant-role alice reader",
        "put r v",
        "put secret v",
        "auth enable",
    ] {
        assert_ok(&etcdctl(&member.endpoint(), Some(ca), Some(root), line));
    }
}

async fn both(certificates: &Certificates) -> [Member; 2] {
    let builder = certificates.demanding_member().flag("--bcrypt-cost=4");
    let etcd = certificates
        .demanding_member()
        .flag("--bcrypt-cost=4")
        .program(metastore_tests::Program::Etcd);
    [etcd.start().await, builder.start().await]
}

#[tokio::test]
async fn etcdctl_is_whom_its_certificate_names_as_with_etcd() {
    let certificates = Certificates::new();
    let members = both(&certificates).await;
    let people: Vec<(&str, Pair)> = ["root", "alice", "bob", "eve"]
        .into_iter()
        .map(|name| (name, certificates.client(name)))
        .collect();
    for member in &members {
        with_users(member, &certificates, &people[0].1).await;
    }
    let lines = [
        "get r",
        "get secret",
        "put r w",
        "put secret v",
        "user list",
        "user get alice",
        "role get reader",
        "member list",
        "lease list",
        "endpoint health",
        "watch secret --max-events=0",
        "--user=root:rootpw get secret",
        "--user=bob:bobpw get r",
        "--user=bob:wrong get r",
        "compaction 2",
    ];
    let mut differences = String::new();
    for (name, pair) in &people {
        for line in lines {
            // It would wait for events that it may see.
            if line.starts_with("watch") && *name == "root" {
                continue;
            }
            let line = line.trim_end_matches(" --max-events=0");
            let said: Vec<String> = members
                .iter()
                .map(|member| {
                    let ca = Some(certificates.ca.as_path());
                    let output = etcdctl(&member.endpoint(), ca, Some(pair), line);
                    let text = texts(&output)
                        .lines()
                        .filter(|line| !line.starts_with("{\"level\""))
                        .filter(|_| line != "member list" || !output.status.success())
                        .collect::<Vec<_>>()
                        .join("\n")
                        .replace(&member.address(), "ADDRESS");
                    // Times of health checks.
                    let text = match text.split_once("took = ") {
                        Some((before, _)) => before.to_owned(),
                        None => text,
                    };
                    format!("{text} {:?}", output.status.code())
                })
                .collect();
            if said[0] != said[1] {
                differences += &format!("{name}: {line}\netcd: {}\nours: {}\n", said[0], said[1]);
            }
        }
    }
    assert!(differences.is_empty(), "{differences}");
    let alice = Some(&people[1].1);
    let ca = Some(certificates.ca.as_path());
    let got = etcdctl(&members[1].endpoint(), ca, alice, "get r");
    assert_eq!(texts(&got), "r\nw\n");
}

#[tokio::test]
async fn the_gateway_refuses_certificates_that_name_a_user_as_etcd() {
    let certificates = Certificates::new();
    let members = both(&certificates).await;
    let root = certificates.client("root");
    for member in &members {
        with_users(member, &certificates, &root).await;
    }
    let nameless = certificates
        .authority
        .issue(certificates.path(), "nameless", request(""));
    let authority = certificates.authority.pem();
    let named = client_config(&[authority], Some(&certificates.client("alice")));
    let nameless = client_config(&[authority], Some(&nameless));
    let read = r#"{"key":"cg=="}"#;
    let accept = ("Accept", "*/*");
    let mut tokens = Vec::new();
    for member in &members {
        let login = r#"{"name":"root","password":"rootpw"}"#;
        let address = member.address();
        let answer = ask(
            &address,
            "/v3/auth/authenticate",
            &[accept],
            login,
            &nameless,
        )
        .await;
        let token = answer
            .split_once("\"token\":\"")
            .and_then(|(_, rest)| rest.split('"').next())
            .unwrap_or_else(|| panic!("{answer}"));
        tokens.push(token.to_owned());
    }
    let mut seen = Vec::new();
    for (member, token) in members.iter().zip(&tokens) {
        let address = member.address();
        let token = ("Authorization", token.as_str());
        let mut answers = Vec::new();
        for config in [&named, &nameless] {
            for (path, headers, body) in [
                ("/v3/kv/range", &[accept][..], read),
                ("/v3/kv/range", &[accept, token][..], read),
                (
                    "/v3/kv/range",
                    &[accept, ("Authorization", "bad")][..],
                    read,
                ),
                ("/v3beta/kv/range", &[accept, token][..], read),
                ("/v3/auth/status", &[accept][..], "{}"),
                ("/v3/auth/user/list", &[accept, token][..], "{}"),
                ("/v3/auth/user/list", &[accept][..], "{}"),
                ("/v3/nothing", &[accept, token][..], "{}"),
                ("/version", &[accept][..], ""),
                ("/health", &[accept][..], ""),
            ] {
                let answer = ask(&address, path, headers, body, config).await;
                answers.push(format!("{path} {headers:?} -> {}", normal(&answer)));
            }
        }
        seen.push(answers.join("\n").replace(token.1, "TOKEN"));
    }
    assert_eq!(seen[1], seen[0], "ours (left), etcd's (right)");
    assert!(
        seen[1].contains("will be ignored and not used"),
        "{}",
        seen[1]
    );
    assert!(
        seen[1].contains("\"kvs\":[{\"key\":\"cg==\""),
        "{}",
        seen[1]
    );
}

/// The plain HTTP API knows whom a certificate names.
#[tokio::test]
async fn the_plain_http_api_is_used_as_whom_the_certificate_names() {
    if subject() == metastore_tests::Program::Etcd {
        return;
    }
    let certificates = Certificates::new();
    let member = certificates
        .demanding_member()
        .flag("--bcrypt-cost=4")
        .start()
        .await;
    with_users(&member, &certificates, &certificates.client("root")).await;
    let authority = certificates.authority.pem();
    for (name, key, expected) in [
        ("alice", "r", "HTTP/1.1 200"),
        ("alice", "secret", "HTTP/1.1 403"),
        ("bob", "r", "HTTP/1.1 403"),
        ("eve", "r", "HTTP/1.1 403"),
        ("", "r", "HTTP/1.1 403"),
        ("root", "secret", "HTTP/1.1 200"),
    ] {
        let file = format!("http-{name}");
        let pair = certificates
            .authority
            .issue(certificates.path(), &file, request(name));
        let config = client_config(&[authority], Some(&pair));
        let path = format!("/kv/{key}");
        let answer = http_get(&member.address(), &path, Some(config)).await;
        assert!(answer.starts_with(expected), "{name} {path}: {answer}");
    }
}
