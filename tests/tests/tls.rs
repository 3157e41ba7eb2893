//! TLS for clients and members, and the listeners: real processes, etcd's own clients, certificates
//! of test authorities.
//!
//! `METASTORE_TEST_SUBJECT=etcd` asks etcd instead, which shows whether a test is right about it.

#![allow(missing_docs, clippy::unwrap_used)]

#[path = "tls/authentication.rs"]
mod authentication;
#[path = "tls/discovery.rs"]
mod discovery;
#[path = "tls/listeners.rs"]
mod listeners;
#[path = "tls/peers.rs"]
mod peers;
#[path = "tls/start.rs"]
mod start;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use metastore_tests::certificates::{Authority, Pair, client_config, replace, request};
use metastore_tests::member::free_port;
use metastore_tests::programs::{subject, tool};
use metastore_tests::{Client, Member, MemberBuilder, Program, deadline, eventually};
use tempfile::TempDir;

/// Longest wait for something that takes a member milliseconds.
const LIMIT: Duration = Duration::from_secs(20);
/// Longest run of a program beside the members.
const COMMAND_LIMIT: &str = "30";

/// A folder with an authority and a certificate for a server.
struct Certificates {
    folder: TempDir,
    authority: Authority,
    ca: PathBuf,
    server: Pair,
}

impl Certificates {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("test authority");
        let ca = authority.write(&folder.path().join("ca.pem"));
        let server = authority.issue(folder.path(), "server", request("server"));
        Self {
            folder,
            authority,
            ca,
            server,
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A certificate for a client.
    fn client(&self, name: &str) -> Pair {
        self.authority.issue(self.path(), name, request(name))
    }

    /// A member with TLS for clients.
    fn member(&self) -> MemberBuilder {
        MemberBuilder::new(subject())
            .secure_clients()
            .flag(format!("--cert-file={}", self.server.cert.display()))
            .flag(format!("--key-file={}", self.server.key.display()))
    }

    /// A member with TLS that demands certificates of its clients.
    fn demanding_member(&self) -> MemberBuilder {
        self.member()
            .flag("--client-cert-auth")
            .flag(format!("--trusted-ca-file={}", self.ca.display()))
    }
}

/// Runs a program to its end, with a deadline.
fn run(program: &Path, arguments: &[String]) -> Output {
    Command::new("timeout")
        .arg(COMMAND_LIMIT)
        .arg(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn texts(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Runs etcdctl.
fn etcdctl(endpoint: &str, ca: Option<&Path>, own: Option<&Pair>, line: &str) -> Output {
    let mut arguments = vec![
        format!("--endpoints={endpoint}"),
        "--command-timeout=4s".into(),
        "--dial-timeout=4s".into(),
    ];
    if let Some(ca) = ca {
        arguments.push(format!("--cacert={}", ca.display()));
    }
    if let Some(pair) = own {
        arguments.push(format!("--cert={}", pair.cert.display()));
        arguments.push(format!("--key={}", pair.key.display()));
    }
    arguments.extend(line.split(' ').map(str::to_owned));
    run(&tool("etcdctl"), &arguments)
}

#[track_caller]
fn assert_ok(output: &Output) {
    assert!(output.status.success(), "{}", texts(output));
}

/// Waits until a line of the log holds all of these.
async fn logged(member: &Member, wanted: &[&str]) -> String {
    let reason = format!("the log has a line with {wanted:?}");
    eventually(&reason, LIMIT, || async {
        member
            .log()
            .lines()
            .find(|line| wanted.iter().all(|text| line.contains(text)))
            .map(str::to_owned)
            .ok_or_else(|| "not yet".to_owned())
    })
    .await
}

/// One HTTP/1.1 request without a body; the whole answer. With a configuration over TLS.
async fn http_get(address: &str, path: &str, tls: Option<Arc<rustls::ClientConfig>>) -> String {
    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
    async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
        mut stream: S,
        request: &str,
    ) -> std::io::Result<String> {
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        // Some servers close without a farewell of TLS.
        let _ = stream.read_to_end(&mut answer).await;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let work = async {
        let stream = tokio::net::TcpStream::connect(address).await?;
        match tls {
            None => exchange(stream, &request).await,
            Some(config) => {
                let mut config = (*config).clone();
                config.alpn_protocols = vec![b"http/1.1".to_vec()];
                let name = "127.0.0.1".try_into().unwrap();
                let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
                exchange(connector.connect(name, stream).await?, &request).await
            }
        }
    };
    match tokio::time::timeout(deadline(LIMIT), work).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => format!("error: {error}"),
        Err(_) => "error: no answer".to_owned(),
    }
}

#[tokio::test]
async fn clients_with_a_certificate_are_served_and_all_others_refused() {
    let certificates = Certificates::new();
    let folder = certificates.path();
    let crl = folder.join("revoked.crl");
    replace(&crl, &certificates.authority.revocations(&[0x1234]));
    let member = certificates
        .demanding_member()
        .flag(format!("--client-crl-file={}", crl.display()))
        .start()
        .await;
    logged(&member, &["serving client traffic securely", "grpc+http"]).await;
    let endpoint = member.endpoint();
    let ca = certificates.ca.as_path();
    let good = certificates.client("alice");

    assert_ok(&etcdctl(
        &endpoint,
        Some(ca),
        Some(&good),
        "put colour blue",
    ));
    let got = etcdctl(&endpoint, Some(ca), Some(&good), "get colour");
    assert_eq!(texts(&got), "colour\nblue\n");

    let stranger = Authority::new("strange authority");
    let unknown = stranger.issue(folder, "unknown", request("eve"));
    let expired = certificates
        .authority
        .issue(folder, "expired", request("old").expired());
    let revoked = certificates
        .authority
        .issue(folder, "revoked", request("lost").serial(0x1234));
    let wrong_use =
        certificates
            .authority
            .issue(folder, "wrong-use", request("server").servers_only());
    for (own, reason) in [
        (None, "tls: client didn't provide a certificate"),
        (Some(&unknown), "signed by unknown authority"),
        (
            Some(&expired),
            "certificate has expired or is not yet valid",
        ),
        (
            Some(&wrong_use),
            "certificate specifies an incompatible key usage",
        ),
        (Some(&revoked), "transport: certificate serial 1234 revoked"),
    ] {
        let refused = etcdctl(&endpoint, Some(ca), own, "get colour");
        assert!(!refused.status.success(), "{reason}: {}", texts(&refused));
        logged(
            &member,
            &[
                "rejected connection on client endpoint",
                "remote-addr",
                reason,
            ],
        )
        .await;
    }

    // The client refuses a server that its authority does not know.
    let other_ca = stranger.write(&folder.join("other-ca.pem"));
    let refused = etcdctl(&endpoint, Some(&other_ca), Some(&good), "get colour");
    assert!(!refused.status.success());
    // Plain text on a TLS port.
    let plain = format!("http://{}", member.address());
    assert!(!etcdctl(&plain, None, None, "get colour").status.success());
    logged(
        &member,
        &[
            "rejected connection on client endpoint",
            "tls: first record does not look like a TLS handshake",
        ],
    )
    .await;

    // The list is read again: what was revoked, and what was not.
    let serial = 0x77;
    let later = certificates
        .authority
        .issue(folder, "later", request("later").serial(serial));
    assert_ok(&etcdctl(&endpoint, Some(ca), Some(&later), "get colour"));
    replace(&crl, &certificates.authority.revocations(&[serial]));
    let refused = etcdctl(&endpoint, Some(ca), Some(&later), "get colour");
    assert!(!refused.status.success());
    assert_ok(&etcdctl(&endpoint, Some(ca), Some(&revoked), "get colour"));

    // HTTP/1.1 and a trace of the certificate's verification on the same port.
    let tls = client_config(&[certificates.authority.pem()], Some(&good));
    let version = http_get(&member.address(), "/version", Some(tls)).await;
    assert!(version.contains("\"etcdserver\""), "{version}");
}

/// A member that serves only certificates of these names, by the key that etcd's file has too.
/// Why a handshake of TLS 1.3 with this certificate fails, as the client sees it.
async fn refusal(address: &str, config: Arc<rustls::ClientConfig>) -> String {
    use tokio::io::AsyncReadExt;
    let work = async {
        let stream = tokio::net::TcpStream::connect(address).await?;
        let name = "127.0.0.1".try_into().unwrap();
        let mut stream = tokio_rustls::TlsConnector::from(config)
            .connect(name, stream)
            .await?;
        // The server's word about the certificate comes after the client's part of the handshake.
        stream.read_u8().await
    };
    match tokio::time::timeout(deadline(LIMIT), work).await {
        Ok(Ok(byte)) => format!("served, {byte}"),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer".to_owned(),
    }
}

#[tokio::test]
async fn refused_certificates_get_the_alerts_of_etcd() {
    let certificates = Certificates::new();
    let folder = certificates.path();
    let issue = |authority: &Authority, name, request| authority.issue(folder, name, request);
    let own = &certificates.authority;
    let clients = [
        ("none", None),
        (
            "of a stranger",
            Some(issue(
                &Authority::new("a stranger"),
                "unknown",
                request("eve"),
            )),
        ),
        (
            "of a namesake",
            Some(issue(
                &Authority::new("test authority"),
                "namesake",
                request("eve"),
            )),
        ),
        (
            "expired",
            Some(issue(own, "expired", request("old").expired())),
        ),
        (
            "for servers",
            Some(issue(own, "wrong-use", request("server").servers_only())),
        ),
    ];
    let mut refusals = Vec::new();
    for program in [Program::Etcd, subject()] {
        let member = certificates
            .demanding_member()
            .program(program)
            .start()
            .await;
        let mut refused = Vec::new();
        for (name, pair) in &clients {
            let config = client_config(&[own.pem()], pair.as_ref());
            refused.push((name, refusal(&member.address(), config).await));
        }
        refusals.push(refused);
    }
    assert_eq!(refusals[1], refusals[0], "(left: ours, right: etcd)");
    assert!(
        refusals[0].iter().all(|(_, text)| text.contains("alert")),
        "{refusals:?}"
    );
}

/// Whether the answer to a request over HTTP/2 and TLS has a date.
async fn has_date(
    address: &str,
    config: &rustls::ClientConfig,
    request: http::Request<()>,
) -> bool {
    let mut config = config.clone();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = "127.0.0.1".try_into().unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect(name, stream).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let is_get = request.method() == http::Method::GET;
    let (answer, mut body) = client.send_request(request, is_get).unwrap();
    if !is_get {
        // A range of the key `a`, framed.
        let message = [0, 0, 0, 0, 3, 0x0a, 1, b'a'];
        body.send_data(message.to_vec().into(), true).unwrap();
    }
    let answer = tokio::time::timeout(deadline(LIMIT), answer)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer.status(), 200);
    connection.abort();
    answer.headers().contains_key("date")
}

#[tokio::test]
async fn only_answers_that_are_not_of_grpc_have_a_date() {
    let certificates = Certificates::new();
    let config = client_config(&[certificates.authority.pem()], None);
    for program in [Program::Etcd, subject()] {
        let member = certificates.member().program(program).start().await;
        let url = |path: &str| format!("https://{}{path}", member.address());
        let range = http::Request::post(url("/etcdserverpb.KV/Range"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let version = http::Request::get(url("/version"));
        for (request, expected) in [(range, false), (version, true)] {
            let found = has_date(&member.address(), &config, request.body(()).unwrap()).await;
            assert_eq!(found, expected, "{program:?}");
        }
    }
}

#[tokio::test]
async fn only_certificates_of_an_allowed_name_are_served() {
    let certificates = Certificates::new();
    let member = certificates
        .demanding_member()
        .flag("--client-cert-allowed-cn=alice,bob")
        .start()
        .await;
    let ca = Some(certificates.ca.as_path());
    for (name, is_welcome) in [("bob", true), ("carol", false), ("bobby", false)] {
        let certificate = certificates
            .authority
            .issue(certificates.path(), name, request(name));
        // A client whose first write meets the closed connection never reads the alert; the next one does.
        let closed = |answer: &Output| {
            let text = texts(answer);
            text.contains("broken pipe") || text.contains("reset by peer")
        };
        let mut attempts = (0..10)
            .map(|_| etcdctl(&member.endpoint(), ca, Some(&certificate), "get a"))
            .skip_while(closed);
        let answer = attempts.next().expect("one of ten clients reads the alert");
        assert_eq!(answer.status.success(), is_welcome, "{name}");
        let alert = texts(&answer).contains("remote error: tls: bad certificate");
        assert_ne!(alert, is_welcome, "{name}: {}", texts(&answer));
    }
    logged(
        &member,
        &[
            "rejected connection on client endpoint",
            "client certificate authentication failed",
        ],
    )
    .await;
}

#[tokio::test]
async fn only_certificates_for_an_allowed_host_are_served() {
    let certificates = Certificates::new();
    let member = certificates
        .demanding_member()
        .flag("--client-cert-allowed-hostname=a.example,b.example")
        .start()
        .await;
    let issue = |name: &str, hosts: &[&str]| {
        let request = request(name).hosts(hosts);
        certificates
            .authority
            .issue(certificates.path(), name, request)
    };
    let ca = Some(certificates.ca.as_path());
    let welcome = issue("welcome", &["b.example"]);
    assert_ok(&etcdctl(&member.endpoint(), ca, Some(&welcome), "get a"));
    let stranger = issue("stranger", &["c.example"]);
    let refused = etcdctl(&member.endpoint(), ca, Some(&stranger), "get a");
    assert!(!refused.status.success());
    logged(
        &member,
        &[
            "rejected connection on client endpoint",
            "client certificate authentication failed",
        ],
    )
    .await;
}

#[tokio::test]
async fn clientv3_works_over_tls() {
    let certificates = Certificates::new();
    let member = certificates.demanding_member().start().await;
    let pair = certificates.client("checker");
    for command in ["kv", "session"] {
        let output = run(
            &tool("clientv3-check"),
            &[
                format!("-endpoints={}", member.endpoint()),
                format!("-cacert={}", certificates.ca.display()),
                format!("-cert={}", pair.cert.display()),
                format!("-key={}", pair.key.display()),
                command.to_owned(),
            ],
        );
        assert_ok(&output);
    }
}

/// Requests on new connections and on one that stays, until told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Load {
    fn start(
        address: String,
        connect: impl Fn() -> Arc<rustls::ClientConfig> + Send + 'static,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let (stopping, count) = (Arc::clone(&stop), Arc::clone(&done));
        let task = tokio::spawn(async move {
            let steady = Client::secure(&address, connect());
            while !stopping.load(Ordering::Relaxed) {
                let fresh = Client::secure(&address, connect());
                for client in [&fresh, &steady] {
                    client
                        .put("load", count.load(Ordering::Relaxed).to_string())
                        .await
                        .unwrap_or_else(|error| panic!("a request failed: {error:?}"));
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { stop, done, task }
    }

    /// Waits until some requests more were made.
    async fn goes_on(&self) {
        let start = self.done.load(Ordering::Relaxed);
        eventually("requests go on", LIMIT, || async {
            assert!(!self.task.is_finished(), "a request failed");
            if self.done.load(Ordering::Relaxed) > start + 10 {
                Ok(())
            } else {
                Err("not yet".to_owned())
            }
        })
        .await;
    }

    async fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("every request succeeded");
    }
}

#[tokio::test]
async fn certificates_and_authorities_are_replaced_under_load_without_a_failed_request() {
    let certificates = Certificates::new();
    let folder = certificates.path().to_owned();
    let old = &certificates.authority;
    let new = Authority::new("new authority");
    let old_client = certificates.client("old-client");
    let new_client = new.issue(&folder, "new-client", request("new-client"));
    let member = certificates.demanding_member().start().await;

    // Which certificate new connections show.
    let uses_new = Arc::new(AtomicBool::new(false));
    let trusted = [old.pem().to_owned(), new.pem().to_owned()];
    let choose = {
        let uses_new = Arc::clone(&uses_new);
        move || {
            let own = if uses_new.load(Ordering::Relaxed) {
                &new_client
            } else {
                &old_client
            };
            client_config(&[&trusted[0], &trusted[1]], Some(own))
        }
    };
    let load = Load::start(member.address(), choose);
    load.goes_on().await;

    // A new certificate of the same authority, then the usual order of a new authority: trust both,
    // move everybody over, trust the new one alone.
    old.issue(&folder, "server", request("second"));
    load.goes_on().await;
    replace(
        &certificates.ca,
        format!("{}{}", old.pem(), new.pem()).as_bytes(),
    );
    load.goes_on().await;
    new.issue(&folder, "server", request("third"));
    uses_new.store(true, Ordering::Relaxed);
    load.goes_on().await;
    replace(&certificates.ca, new.pem().as_bytes());
    load.goes_on().await;
    // Half of a pair, and no certificate at all: what was read before stays.
    let key = std::fs::read(&certificates.server.key).unwrap();
    replace(&certificates.server.key, b"nonsense");
    load.goes_on().await;
    replace(&certificates.server.key, &key);
    load.goes_on().await;
    load.finish().await;

    // The old authority is really gone.
    let old_client = Pair {
        cert: folder.join("old-client.pem"),
        key: folder.join("old-client-key.pem"),
    };
    let config = client_config(&[new.pem()], Some(&old_client));
    let refused = Client::secure(&member.address(), config)
        .put("a", "b")
        .await;
    assert!(refused.is_err());
}

#[tokio::test]
async fn the_example_runs_as_written() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/tls.sh");
    let output = Command::new("timeout")
        .arg("90")
        .arg("bash")
        .arg(script)
        .env("METASTORE", subject().path())
        .env("ETCDCTL", tool("etcdctl"))
        .env("PORT", two_free_ports().to_string())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_ok(&output);
    let text = texts(&output);
    assert!(
        text.contains("rejected connection on client endpoint"),
        "{text}"
    );
    assert!(text.contains(" and is serial="), "{text}");
}

/// The first of two neighbours that nobody uses.
fn two_free_ports() -> u16 {
    loop {
        let (first, second) = (free_port(), free_port());
        if second == first + 1 {
            return first;
        }
    }
}
