//! Users, roles and tokens: the same requests to a real etcd 3.7.3 and to ours, as root, as users
//! with and without permission, without token and with a wrong one.
//!
//! `METASTORE_TEST_SUBJECT=etcd` compares etcd with etcd.

#![allow(missing_docs, clippy::unwrap_used)]

#[path = "auth/matrix.rs"]
mod matrix;
#[path = "auth/members.rs"]
mod members;
#[path = "auth/session.rs"]
mod session;
#[path = "auth/watches.rs"]
mod watches;

use std::collections::HashMap;
use std::time::Duration;

use metastore_tests::certificates::{Authority, client_config, request};
use metastore_tests::programs::subject;
use metastore_tests::{Cluster, Member, MemberBuilder, Program, deadline, eventually};
use session::Session;

/// Longest wait for what takes a member a moment.
const LIMIT: Duration = Duration::from_secs(30);
/// A step that takes longer is shown.
const SLOW: Duration = Duration::from_secs(2);
/// Cheap hashes: the tests log in often.
const CHEAP: &str = "--bcrypt-cost=4";

/// The stores that are compared, the oracle first.
struct Stores {
    sessions: Vec<Session>,
    _members: Vec<Member>,
    _folder: Option<tempfile::TempDir>,
}

impl Stores {
    async fn start(flags: &[&str]) -> Self {
        let builders = [Program::Etcd, subject()].map(|program| {
            let builder = MemberBuilder::new(program).flag(CHEAP);
            flags
                .iter()
                .fold(builder, |builder, flag| builder.flag(*flag))
        });
        let members = Self::ready(builders).await;
        Self {
            sessions: members
                .iter()
                .map(|member| Session::new(&member.endpoint()))
                .collect(),
            _members: members,
            _folder: None,
        }
    }

    async fn ready(builders: [MemberBuilder; 2]) -> Vec<Member> {
        let mut members: Vec<Member> = builders.into_iter().map(MemberBuilder::spawn).collect();
        for member in &mut members {
            member.ready().await;
        }
        members
    }

    /// Stores that demand certificates, and clients with one for each of these common names. Whoever
    /// has none of them (`none`, `root`) comes with the first.
    async fn start_with_certificates(names: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("test authority");
        let ca = authority.write(&folder.path().join("ca.pem"));
        let server = authority.issue(folder.path(), "server", request("server"));
        let builders = [Program::Etcd, subject()].map(|program| {
            MemberBuilder::new(program)
                .flag(CHEAP)
                .secure_clients()
                .flag(format!("--cert-file={}", server.cert.display()))
                .flag(format!("--key-file={}", server.key.display()))
                .flag("--client-cert-auth")
                .flag(format!("--trusted-ca-file={}", ca.display()))
        });
        let members = Self::ready(builders).await;
        let configs: HashMap<String, _> = names
            .iter()
            .map(|name| {
                let pair = authority.issue(folder.path(), &format!("cn-{name}"), request(name));
                let config = client_config(&[authority.pem()], Some(&pair));
                ((*name).to_owned(), config)
            })
            .collect();
        let sessions = members.iter().map(|member| {
            let session = |name: &str| Session::secure(&member.address(), configs[name].clone());
            let mut first = session(names[0]);
            first.by_certificate = names
                .iter()
                .map(|name| ((*name).to_owned(), session(name)))
                .collect();
            first
        });
        Self {
            sessions: sessions.collect(),
            _members: members,
            _folder: Some(folder),
        }
    }

    /// Runs each line `who: command` on all stores; every answer must be the same.
    async fn run(&mut self, script: &str) {
        let mut problems = String::new();
        for line in script.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let started = std::time::Instant::now();
            let asked = self.sessions.iter_mut().map(|session| async move {
                let answer = tokio::time::timeout(deadline(LIMIT), session.run(line)).await;
                answer.unwrap_or_else(|_| "no answer".to_owned())
            });
            let answers = futures::future::join_all(asked).await;
            if started.elapsed() > SLOW {
                eprintln!("slow: {line}: {answers:?}");
            }
            if answers.windows(2).any(|pair| pair[0] != pair[1]) {
                problems += &format!("{line}\n   etcd: {}\n   ours: {}\n", answers[0], answers[1]);
            }
        }
        assert!(problems.is_empty(), "answers differ:\n{problems}");
    }
}

/// Root with a password, alice who reads `r`..`s` and writes `w`..`x` and both on `b`..`c`, bob who
/// may do nothing; authentication is on.
const USERS: &str = "
    none: user-add root rootpw
    none: user-grant root root
    none: user-add alice alicepw
    none: user-add bob bobpw
    none: role-add role
    none: permit role read r s
    none: permit role write w x
    none: permit role readwrite b c
    none: user-grant alice role
    none: put r1 v
    none: put b1 v
    none: put secret v
    none: enable
    none: login root rootpw
    none: login alice alicepw
    none: login bob bobpw
";

#[tokio::test(flavor = "multi_thread")]
async fn administration_answers_as_etcd() {
    let mut stores = Stores::start(&[]).await;
    stores
        .run(
            "
            # Nothing there, nothing on.
            none: status
            none: enable
            none: disable
            none: login root rootpw
            none: user-get root
            none: user-list
            none: role-list
            none: user-delete root
            none: user-passwd root x
            none: user-grant root root
            none: user-revoke root root
            none: role-get root
            none: role-delete root
            none: permit role read a b
            none: forbid role a b
            bad: status
            bad: put a b
            # Users.
            none: user-add root rootpw
            none: user-add root rootpw
            none: user-add '' x
            none: user-add empty ''
            none: user-add-without-password certificate
            none: user-add long 0123456789012345678901234567890123456789012345678901234567890123456789012
            none: user-add long 012345678901234567890123456789012345678901234567890123456789012345678901
            none: status
            none: enable
            none: user-list
            none: user-get root
            none: user-grant root nothing
            none: user-grant nobody root
            none: user-grant root root
            none: user-grant root root
            none: user-get root
            none: status
            # Roles.
            none: role-add ''
            none: role-add b
            none: role-add a
            none: role-add a
            none: role-add root
            none: role-list
            none: role-get a
            none: role-get root
            none: permit a none
            none: permit nothing none
            none: permit nothing read k ''
            none: permit a read '' ''
            none: permit a read '' \\0
            none: permit a read k k
            none: permit a read k a
            none: permit a read k m
            none: permit a write c ''
            none: permit a readwrite k m
            none: permit a read k \\0
            none: permit a write k \\0
            none: permit a 7 x y
            none: role-get a
            none: status
            none: forbid a k \\0
            none: forbid a k \\0
            none: forbid a k ''
            none: role-get a
            none: user-add alice alicepw
            none: user-grant alice b
            none: user-grant alice a
            none: user-grant alice root
            none: user-get alice
            none: user-revoke alice root
            none: user-revoke alice root
            none: role-delete b
            none: user-get alice
            none: role-list
            none: status
            # On.
            none: enable
            none: status
            none: enable
            none: user-list
            none: user-add x y
            none: role-list
            none: role-get a
            none: user-get alice
            none: login alice wrong
            none: login nobody wrong
            none: login certificate x
            none: login empty ''
            none: login long 012345678901234567890123456789012345678901234567890123456789012345678901
            none: login long 0123456789012345678901234567890123456789012345678901234567890123456789012
            none: login root rootpw
            none: login alice alicepw
            alice: enable
            alice: disable
            alice: status
            alice: user-list
            alice: role-list
            alice: user-get alice
            alice: user-get root
            alice: user-get nobody
            alice: role-get a
            alice: role-get root
            alice: role-get nothing
            alice: user-add x y
            alice: user-delete alice
            alice: user-passwd alice x
            alice: user-grant alice root
            alice: user-revoke alice a
            alice: role-add x
            alice: role-delete a
            alice: permit a read x y
            alice: forbid a c ''
            bad: user-get alice
            bad: status
            bad: enable
            root: enable
            root: user-delete root
            root: user-revoke root root
            root: role-delete root
            root: role-get root
            root: role-get nothing
            root: user-get nobody
            root: user-list
            root: role-list
            root: status
            root: user-delete nobody
            root: user-passwd nobody x
            root: user-passwd certificate x
            # A new password ends the tokens of the user.
            alice: get c
            root: user-passwd alice new
            alice: get c
            none: login alice alicepw
            none: login alice new
            alice: get k l
            # An empty one shuts the user out.
            root: user-passwd alice ''
            none: login alice ''
            none: login alice new
            root: user-passwd-hash alice !
            root: user-passwd-hash alice JDJhJDA0JDNZTWJ3N1l1T0hJdGFnRzd0VzlzL3VSbmZ3U2QyZVhHRTBaYm5qWGVvWk9oT2x3eFFUaDJx
            none: login alice x
            # Deleting does, too.
            none: login empty ''
            empty: user-get empty
            root: user-delete empty
            empty: user-get empty
            none: login empty ''
            # Off.
            root: disable
            root: status
            none: disable
            none: user-list
            none: login root rootpw
            root: user-list
            none: role-delete root
            none: user-delete root
            none: enable
            none: status
            ",
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_roles_count_at_once() {
    let mut stores = Stores::start(&[]).await;
    stores.run(USERS).await;
    stores
        .run(
            "
            alice: get r1
            root: forbid role r s
            alice: get r1
            root: permit role read r1 r5
            root: permit role read r5 s
            alice: get r1 s
            alice: get r s
            root: role-add more
            root: permit role read r ''
            root: permit more read r\\0 r1
            alice: get r s
            root: user-grant alice more
            alice: get r s
            root: user-revoke alice more
            alice: get r s
            root: role-delete role
            alice: get r1
            alice: put w1 v
            root: user-grant alice root
            alice: get secret
            alice: user-list
            root: user-delete alice
            alice: get r1
            alice: user-list
            root: user-add alice alicepw
            alice: get r1
            none: login alice alicepw
            alice: get r1
            root: status
            ",
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unused_token_ends_and_a_used_one_lives_on() {
    let member = MemberBuilder::new(subject())
        .flag(CHEAP)
        .flag("--auth-token-ttl=3")
        .start()
        .await;
    let mut session = Session::new(&member.endpoint());
    for line in USERS.lines().map(str::trim).filter(|line| !line.is_empty()) {
        session.run(line).await;
    }
    session.run("none: login used@root rootpw").await;
    // Used every moment for longer than its life.
    let started = std::time::Instant::now();
    while started.elapsed() < Duration::from_secs(5) {
        assert_eq!(session.run("used@root: user-get bob").await, "ok roles []");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(
        session.run("alice: get r1").await,
        "Unauthenticated: etcdserver: invalid auth token"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_changes_of_users_count_on_all_members() {
    let mut cluster = Cluster::start_with(subject(), 3, &[CHEAP]).await;
    let mut first = Session::new(&cluster.members[0].endpoint());
    for line in USERS.lines().map(str::trim).filter(|line| !line.is_empty()) {
        first.run(line).await;
    }
    for member in 0..3 {
        // A token of one member counts on all, from the very first moment.
        let mut login = Session::new(&cluster.members[member].endpoint());
        let answer = login.run("none: login alice alicepw").await;
        assert_eq!(answer, "ok token");
        for other in &cluster.members {
            let mut session = Session::new(&other.endpoint());
            session.tokens.clone_from(&login.tokens);
            assert_eq!(session.run("alice: get r1").await, "ok [r1=v] 1");
            assert_eq!(
                session.run("alice: get-serializable secret").await,
                "PermissionDenied: etcdserver: permission denied"
            );
        }
    }
    // What is taken away on one member is gone on the others.
    assert_eq!(first.run("root: forbid role r s").await, "ok");
    let mut last = Session::new(&cluster.members[2].endpoint());
    last.tokens.clone_from(&first.tokens);
    assert_eq!(
        last.run("alice: get r1").await,
        "PermissionDenied: etcdserver: permission denied"
    );
    assert_eq!(first.run("root: permit role read r s").await, "ok");

    // A restart forgets tokens and nothing else.
    cluster.members[1].kill();
    cluster.members[1].restart().await;
    let mut restarted = Session::new(&cluster.members[1].endpoint());
    restarted.tokens.clone_from(&first.tokens);
    assert_eq!(
        restarted.run("alice: get r1").await,
        "Unauthenticated: etcdserver: invalid auth token"
    );
    assert_eq!(restarted.run("none: login alice alicepw").await, "ok token");
    assert_eq!(restarted.run("alice: get r1").await, "ok [r1=v] 1");
    assert_eq!(
        restarted.run("alice: get secret").await,
        "PermissionDenied: etcdserver: permission denied"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_gets_a_snapshot_knows_the_users() {
    let flags = [
        CHEAP,
        "--snapshot-count=50",
        "--snapshot-catchup-entries=10",
    ];
    let mut cluster = Cluster::start_with(subject(), 3, &flags).await;
    let leader = cluster.leader().await;
    let behind = (leader + 1) % 3;
    let mut first = Session::new(&cluster.members[leader].endpoint());
    // The member keeps running while it is cut off, so it holds tokens when the snapshot comes.
    for line in USERS.lines().map(str::trim).filter(|line| !line.is_empty()) {
        first.run(line).await;
    }
    cluster.members[behind].kill();
    first.run("root: user-passwd alice new").await;
    first.run("root: user-add carol carolpw").await;
    first.run("root: user-grant carol role").await;
    for number in 0..200 {
        assert_eq!(first.run(&format!("root: put b{number} v")).await, "ok");
    }
    cluster.members[behind].restart().await;
    let mut session = Session::new(&cluster.members[behind].endpoint());
    let answer = eventually("the member has caught up", LIMIT, || {
        let mut session = session.clone();
        async move {
            match session.run("none: login carol carolpw").await.as_str() {
                "ok token" => Ok(session),
                other => Err(other.to_owned()),
            }
        }
    })
    .await;
    session = answer;
    assert_eq!(session.run("carol: get r1").await, "ok [r1=v] 1");
    assert_eq!(
        session.run("none: login alice alicepw").await,
        "InvalidArgument: etcdserver: authentication failed, invalid user ID or password"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_log_holds_a_password_or_a_token() {
    let member = MemberBuilder::new(subject())
        .flag("--log-level=debug")
        .flag(CHEAP)
        .start()
        .await;
    let mut session = Session::new(&member.endpoint());
    for line in USERS.lines().map(str::trim).filter(|line| !line.is_empty()) {
        session.run(line).await;
    }
    session.run("none: login alice very-wrong-pw").await;
    session.run("bad: get r1").await;
    session.run("root: user-passwd alice very-new-pw").await;
    session.run("alice: get r1").await;
    let log = member.log();
    let mut secrets = vec![
        "rootpw",
        "alicepw",
        "bobpw",
        "very-wrong-pw",
        "very-new-pw",
        "$2a$",
    ];
    let tokens: Vec<String> = session.tokens.values().cloned().collect();
    // etcd logs each request that it applies, and a login has the new token in it.
    if subject() == Program::MetaStore {
        secrets.extend(tokens.iter().map(|token| token.split('.').next().unwrap()));
    }
    for secret in secrets {
        assert!(!log.contains(secret), "the log holds {secret}");
    }
    assert!(log.contains("added a user"), "{log}");
}

/// Writes a private key (or secret) for the method into the folder; returns its path.
fn write_key(folder: &std::path::Path, method: &str) -> String {
    use ed25519_dalek::pkcs8::EncodePrivateKey as _;
    use rsa::pkcs8::LineEnding;
    use rsa::rand_core::OsRng;

    let pem = match method {
        "PS256" | "RS384" => rsa::RsaPrivateKey::new(&mut OsRng, 2048)
            .unwrap()
            .to_pkcs8_pem(LineEnding::LF)
            .unwrap(),
        "ES256" => p256::SecretKey::random(&mut OsRng)
            .to_pkcs8_pem(LineEnding::LF)
            .unwrap(),
        "EdDSA" => ed25519_dalek::SigningKey::from_bytes(&[7; 32])
            .to_pkcs8_pem(LineEnding::LF)
            .unwrap(),
        _ => String::from("secret").into(),
    };
    let path = folder.join(method);
    std::fs::write(&path, pem.as_bytes()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn json_web_tokens_are_those_of_etcd() {
    let folder = tempfile::tempdir().unwrap();
    for method in ["PS256", "RS384", "ES256", "EdDSA", "HS512"] {
        let key = write_key(folder.path(), method);
        let flag = format!("--auth-token=jwt,sign-method={method},priv-key={key},ttl=1h");
        let mut stores = Stores::start(&[&flag]).await;
        stores.run(USERS).await;
        // Each store takes the tokens of the other.
        let tokens: Vec<_> = stores
            .sessions
            .iter()
            .map(|session| session.tokens.clone())
            .collect();
        for (session, tokens) in stores.sessions.iter_mut().zip(tokens.iter().rev()) {
            session.tokens.clone_from(tokens);
        }
        stores
            .run(
                "
                root: user-list
                alice: get r1
                alice: get secret
                alice: put r1 v
                bearer-alice: put w1 v
                authorization-alice: watch r1 ''
                bad: get r1
                old: get r1
                # A change of users makes every token old.
                root: role-add other
                root: user-list
                root: role-add another
                alice: get r1
                root: get r1
                alice: watch r1 ''
                none: login alice alicepw
                alice: get r1
                # A new password does not end tokens of this kind at once.
                root: user-passwd alice new
                none: login alice alicepw
                none: login alice new
                alice: get r1
                root: disable
                alice: get secret
                ",
            )
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_the_public_key_only_checks_tokens() {
    use ed25519_dalek::pkcs8::EncodePublicKey as _;

    let folder = tempfile::tempdir().unwrap();
    let private = write_key(folder.path(), "EdDSA");
    let public = folder.path().join("public");
    let pem = ed25519_dalek::SigningKey::from_bytes(&[7; 32])
        .verifying_key()
        .to_public_key_pem(rsa::pkcs8::LineEnding::LF)
        .unwrap();
    std::fs::write(&public, pem).unwrap();
    let checks = format!(
        "--auth-token=jwt,sign-method=EdDSA,pub-key={}",
        public.display()
    );
    let signs = format!("--auth-token=jwt,sign-method=EdDSA,priv-key={private}");
    let mut signing = Stores::start(&[&signs]).await;
    signing.run(USERS).await;
    let mut checking = Stores::start(&[&checks]).await;
    // Nobody can log in; that is answered alike, too.
    checking.run(USERS).await;
    let tokens = signing.sessions[0].tokens.clone();
    for session in &mut checking.sessions {
        session.tokens.clone_from(&tokens);
    }
    checking
        .run(
            "
            alice: get r1
            alice: get secret
            root: user-list
            ",
        )
        .await;
    assert_eq!(
        checking.sessions[1].run("alice: get r1").await,
        "ok [r1=v] 1"
    );
}
