//! Every call, asked by everybody, with every kind of identity: without authentication, with tokens of
//! passwords, with JSON web tokens, with certificates.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use super::{Stores, USERS, write_key};

/// The calls and the commands that make them.
const CALLS: &[(&str, &[&str])] = &[
    ("Range", &["get", "get-serializable"]),
    ("RangeStream", &["stream"]),
    ("Put", &["put", "put-previous", "put-lease"]),
    ("DeleteRange", &["delete", "delete-previous"]),
    (
        "Txn",
        &[
            "txn-compare",
            "txn-get",
            "txn-put",
            "txn-delete",
            "txn-nested-get",
            "txn-nested-put",
            "txn-nested-compare",
            "txn-read-only-nested",
        ],
    ),
    ("Compact", &["compact"]),
    ("Watch", &["watch", "watch-from"]),
    ("LeaseGrant", &["lease-grant"]),
    ("LeaseRevoke", &["lease-revoke"]),
    ("LeaseKeepAlive", &["lease-keep-alive"]),
    ("LeaseTimeToLive", &["lease-ttl", "lease-ttl-keys"]),
    ("LeaseLeases", &["leases"]),
    ("MemberAdd", &["member-add"]),
    ("MemberRemove", &["member-remove"]),
    ("MemberUpdate", &["member-update"]),
    ("MemberPromote", &["member-promote"]),
    ("MemberList", &["member-list", "member-list-linearizable"]),
    ("Alarm", &["alarm-list", "alarm-clear"]),
    ("Status", &["status-of-member"]),
    ("Defragment", &["defragment"]),
    ("Hash", &["hash"]),
    ("HashKV", &["hash-kv"]),
    ("Snapshot", &["snapshot"]),
    ("MoveLeader", &["move-leader"]),
    ("Downgrade", &["downgrade-cancel"]),
    ("AuthEnable", &["enable"]),
    ("AuthDisable", &["disable"]),
    ("AuthStatus", &["status"]),
    ("Authenticate", &["login"]),
    ("UserAdd", &["user-add", "user-add-without-password"]),
    ("UserGet", &["user-get"]),
    ("UserList", &["user-list"]),
    ("UserDelete", &["user-delete"]),
    ("UserChangePassword", &["user-passwd"]),
    ("UserGrantRole", &["user-grant"]),
    ("UserRevokeRole", &["user-revoke"]),
    ("RoleAdd", &["role-add"]),
    ("RoleGet", &["role-get"]),
    ("RoleList", &["role-list"]),
    ("RoleDelete", &["role-delete"]),
    ("RoleGrantPermission", &["permit"]),
    ("RoleRevokePermission", &["forbid"]),
    ("Lock", &["lock"]),
    ("Unlock", &["unlock"]),
    ("Campaign", &["campaign"]),
    ("Proclaim", &["proclaim"]),
    ("Leader", &["leader"]),
    ("Observe", &["observe"]),
    ("Resign", &["resign"]),
];

/// What everybody asks of keys.
const KEYS: &[&str] = &[
    "get r1",
    "get r s",
    "get r t",
    "get r \\0",
    "get \\0 \\0",
    "get b1",
    "get secret",
    "get s r",
    "get r2 r1",
    "get b w",
    "get-serializable r1",
    "get-serializable secret",
    "stream r1",
    "stream r s",
    "stream secret",
    "stream a z",
    "put w1 v",
    "put b1 v",
    "put r1 v",
    "put '' v",
    "put-previous w1 v",
    "put-previous b1 v",
    "put-lease w1 404",
    "delete w1 ''",
    "delete w x",
    "delete w y",
    "delete w \\0",
    "delete-previous w x",
    "delete-previous b c",
    "delete secret ''",
    "txn-compare r1",
    "txn-compare w1",
    "txn-compare secret",
    "txn-get r1 b1",
    "txn-get r1 secret",
    "txn-get secret r1",
    "txn-put w1 w2",
    "txn-put w1 r1",
    "txn-put r1 w1",
    "txn-delete w x",
    "txn-delete a b",
    "txn-nested-get r1",
    "txn-nested-get secret",
    "txn-nested-put w1",
    "txn-nested-put secret",
    "txn-nested-compare secret",
    "txn-read-only-nested secret",
    "compact 3",
    "watch r1 ''",
    "watch r s",
    "watch r \\0",
    "watch '' ''",
    "watch '' \\0",
    "watch secret ''",
    "watch-from r1 -1",
    "watch-from secret -1",
    "health",
];

/// What everybody asks of members.
const MEMBERS: &[&str] = &[
    "member-list",
    "member-list-linearizable",
    "member-add nonsense",
    "member-remove 404",
    "member-update 404",
    "member-promote 404",
    "status-of-member",
    "alarm-list",
    "alarm-clear",
    "hash",
    "hash-kv",
    "move-leader 404",
    "defragment",
    "snapshot",
    "downgrade-cancel",
];

/// What everybody asks of users and roles; for an administrator it leads back to where it began.
const ADMINISTRATION: &[&str] = &[
    "enable",
    "status",
    "user-add tmp tmppw",
    "user-add-without-password tmp2",
    "user-get tmp",
    "user-get alice",
    "user-get root",
    "user-list",
    "user-passwd tmp x",
    "user-grant tmp role",
    "user-revoke tmp role",
    "user-delete tmp",
    "user-delete tmp2",
    "role-add tmprole",
    "role-get tmprole",
    "role-get role",
    "role-get root",
    "role-list",
    "permit tmprole read a b",
    "forbid tmprole a b",
    "role-delete tmprole",
];

fn keys(everybody: &[&str]) -> String {
    let mut script = String::new();
    for who in everybody {
        for command in KEYS {
            let _ = writeln!(script, "{who}: {command}");
        }
    }
    script
}

fn leases_and_members(everybody: &[&str], root: &str) -> String {
    let mut script = String::new();
    for (number, who) in everybody.iter().enumerate() {
        let id = 1000 + number * 10;
        for (offset, key) in ["w1", "b1", "secret"].into_iter().enumerate() {
            let lease = id + 1 + offset;
            let _ = writeln!(script, "{root}: lease-grant {lease} 100");
            let _ = writeln!(script, "{root}: put-lease {key} {lease}");
        }
        for command in [
            format!("lease-grant {} 100", id + 4),
            format!("lease-grant {} 10000000000", id + 5),
            format!("lease-grant {} 100", id + 1),
        ] {
            let _ = writeln!(script, "{who}: {command}");
        }
        let leases = [id + 1, id + 2, id + 3, id + 4, 404];
        for lease in leases {
            for command in [
                format!("lease-ttl {lease}"),
                format!("lease-ttl-keys {lease}"),
                format!("lease-keep-alive {lease}"),
                format!("put-lease w2 {lease}"),
                format!("put-lease secret2 {lease}"),
            ] {
                let _ = writeln!(script, "{who}: {command}");
            }
        }
        let _ = writeln!(script, "{who}: leases");
        for lease in [leases[2], leases[1], leases[0], leases[3], leases[4]] {
            let _ = writeln!(script, "{who}: lease-revoke {lease}");
        }
        for command in MEMBERS {
            let _ = writeln!(script, "{who}: {command}");
        }
    }
    script
}

/// Locks and elections below names on which alice may do everything (`b…`), write (`w…`), read
/// (`r…`) and nothing (`s…`).
fn locks(everybody: &[&str], root: &str) -> String {
    let mut script = String::new();
    for (number, who) in everybody.iter().enumerate() {
        let id = 2000 + number * 10;
        for (offset, letter) in ["b", "w", "r", "s"].into_iter().enumerate() {
            let lease = id + offset;
            let name = format!("{letter}{number}");
            let _ = writeln!(script, "{root}: lease-grant {lease} 100");
            for command in [
                format!("lock {name}lock {lease}"),
                format!("lock {name}lock {lease}"),
                format!("lock {name}unknown 404"),
                format!("lock {name}own 0"),
                format!("unlock {name}lock/{lease:x}"),
                format!("unlock {name}nothing"),
                format!("leader {name}election"),
                format!("campaign {name}election {lease}"),
                format!("campaign {name}unknown 404"),
                format!("proclaim {name}election"),
                format!("leader {name}election"),
                format!("observe {name}election"),
                format!("resign {name}election"),
                format!("leader {name}election"),
            ] {
                // Whoever is refused as a candidate would wait for ever for somebody else.
                if !command.starts_with("observe") || *who == root {
                    let _ = writeln!(script, "{who}: {command}");
                }
            }
        }
        // The leader is somebody else.
        let _ = writeln!(script, "{root}: lease-grant {} 100", id + 9);
        for name in ["b", "s"] {
            let name = format!("{name}{number}other");
            let _ = writeln!(script, "{root}: campaign {name} {}", id + 9);
            for command in ["leader", "observe", "proclaim"] {
                let _ = writeln!(script, "{who}: {command} {name}");
            }
            let _ = writeln!(script, "{root}: resign {name}");
        }
    }
    script
}

/// `login`: what an administrator does before each command, because changes of users make tokens old.
fn administration(everybody: &[&str], root: &str, login: &str) -> String {
    let mut script = String::new();
    for who in everybody {
        for command in ADMINISTRATION {
            if *who == root {
                let _ = writeln!(script, "{login}");
            }
            let _ = writeln!(script, "{who}: {command}");
        }
        if *who != root {
            let _ = writeln!(script, "{who}: disable");
        }
    }
    for command in ["login root wrong", "login nobody pw", "login '' ''"] {
        let _ = writeln!(script, "{}: {command}", everybody[0]);
    }
    let _ = write!(
        script,
        "{login}\n{root}: disable\nnone: status\nnone: get secret\nbad: get secret\n"
    );
    script
}

#[test]
fn the_matrix_has_every_call() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/etcd");
    let mut wanted = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let calls = text.lines().filter_map(|line| {
            let (name, _) = line.trim().strip_prefix("rpc ")?.split_once('(')?;
            Some(name.to_owned())
        });
        wanted.extend(calls);
    }
    let named: BTreeSet<String> = CALLS.iter().map(|(call, _)| (*call).to_owned()).collect();
    assert_eq!(
        named, wanted,
        "calls of the matrix (left), of the API (right)"
    );
    let script = [
        keys(&["root"]),
        leases_and_members(&["root"], "root"),
        locks(&["root"], "root"),
        administration(&["root", "alice"], "root", "none: login root rootpw"),
    ]
    .concat();
    let commands: BTreeSet<&str> = script
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .collect();
    for (call, own) in CALLS {
        assert!(own.iter().any(|one| commands.contains(one)), "{call}");
    }
}

/// Every call, asked by everybody.
pub async fn everything(stores: &mut Stores, everybody: &[&str], root: &str, login: &str) {
    stores.run(&keys(everybody)).await;
    stores.run(&leases_and_members(everybody, root)).await;
    stores.run(&locks(everybody, root)).await;
    stores.run(&administration(everybody, root, login)).await;
}

/// Root with a password, alice, bob, and carol who is deleted after she has logged in.
async fn add_everybody(stores: &mut Stores) {
    stores
        .run(
            "
            none: user-add carol carolpw
            none: user-grant carol role
            ",
        )
        .await;
    stores.run(USERS).await;
    stores
        .run(
            "
            none: user-grant carol role
            root: user-grant carol role
            none: login root rootpw
            none: login carol carolpw
            root: user-delete carol
            none: login root rootpw
            none: login alice alicepw
            none: login bob bobpw
            ",
        )
        .await;
}

const EVERYBODY: &[&str] = &[
    "root",
    "alice",
    "bob",
    "carol",
    "none",
    "bad",
    "old",
    "bearer-alice",
    "authorization-alice",
];

#[tokio::test(flavor = "multi_thread")]
async fn everybody_may_everything_without_authentication() {
    let mut stores = Stores::start(&[]).await;
    stores
        .run("none: put r1 v\nnone: put b1 v\nnone: put secret v\nnone: role-add role")
        .await;
    let everybody = ["none", "bad", "old"];
    stores.run(&keys(&everybody)).await;
    stores.run(&leases_and_members(&everybody, "none")).await;
    stores.run(&locks(&everybody, "none")).await;
    let script = administration(&everybody, "none", "none: status");
    stores.run(&script).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_passwords_decide_as_in_etcd() {
    let mut stores = Stores::start(&[]).await;
    tokens_of_passwords(&mut stores).await;
}

/// Every call by everybody who may have a token of a password.
pub async fn tokens_of_passwords(stores: &mut Stores) {
    add_everybody(stores).await;
    everything(stores, EVERYBODY, "root", "none: login root rootpw").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn json_web_tokens_decide_as_in_etcd() {
    let folder = tempfile::tempdir().unwrap();
    let key = write_key(folder.path(), "ES256");
    let flag = format!("--auth-token=jwt,sign-method=ES256,priv-key={key},ttl=1h");
    let mut stores = Stores::start(&[&flag]).await;
    add_everybody(&mut stores).await;
    everything(&mut stores, EVERYBODY, "root", "none: login root rootpw").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_decide_as_in_etcd() {
    let mut stores = Stores::start_with_certificates(&["root", "alice", "bob", "eve", ""]).await;
    stores.run(USERS).await;
    let everybody = [
        "cn-root",
        "cn-alice",
        "cn-bob",
        // A user that does not exist, and a certificate without a name.
        "cn-eve",
        "cn-",
        // A token counts more than the certificate, also when it is worth nothing.
        "cn-bob/root",
        "cn-root/bob",
        "cn-root/bad",
        "cn-eve/alice",
    ];
    let login = "cn-eve: status";
    everything(&mut stores, &everybody, "cn-root", login).await;
}
