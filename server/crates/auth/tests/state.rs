//! What the commands do to users and roles, and who may do what then.

use std::collections::BTreeMap;

use bytes::Bytes;
use metastore_auth::{AuthState, Change, Identity, LeaseKeys, TokenChange};
use metastore_proto::authpb::permission::Type::{Read, Readwrite, Write};
use metastore_proto::authpb::{Permission, UserAddOptions, permission};
use metastore_proto::error_text::EtcdError::{self, *};
use metastore_proto::etcdserverpb::compare::CompareTarget;
use metastore_proto::etcdserverpb::request_op::Request as Op;
use metastore_proto::etcdserverpb::*;
use metastore_proto::internal::command::Request;
use metastore_proto::internal::{
    AuthenticateCommand, LeaseRevokeCommand, UserAddCommand, UserChangePasswordCommand,
};
use metastore_store::ReadError;
use metastore_store::engine::EngineError;

/// A state beside the rows that its changes wrote.
#[derive(Default)]
struct Store {
    state: AuthState,
    rows: BTreeMap<Bytes, Bytes>,
}

impl Store {
    fn apply(&mut self, command: Request) -> Result<Option<TokenChange>, EtcdError> {
        let before = self.state.clone();
        let Change { rows, tokens } = match self.state.apply(&command).expect("a command of ours") {
            Ok(change) => change,
            Err(error) => {
                assert_eq!(self.state, before, "a command that fails changes nothing");
                return Err(error);
            }
        };
        assert_eq!(rows.is_empty(), self.state == before);
        for (key, value) in rows {
            match value {
                Some(value) => self.rows.insert(key, value),
                None => self.rows.remove(&key),
            };
        }
        let loaded = AuthState::load(self.rows.clone()).expect("rows that were just written");
        assert_eq!(loaded, self.state, "the rows are the state");
        Ok(tokens)
    }

    #[track_caller]
    fn done(&mut self, commands: impl IntoIterator<Item = Request>) {
        for command in commands {
            let revision = self.state.revision;
            self.apply(command).expect("the command is in order");
            assert!(self.state.revision >= revision);
        }
    }

    #[track_caller]
    fn fails(&mut self, command: Request, expected: EtcdError) {
        assert_eq!(self.apply(command).err(), Some(expected));
    }

    fn identity(&self, name: &str) -> Identity {
        Identity {
            username: name.into(),
            revision: self.state.revision,
        }
    }
}

fn user_add(name: &str) -> Request {
    Request::AuthUserAdd(UserAddCommand {
        name: name.to_owned(),
        password_hash: Bytes::from(format!("hash of {name}")),
        options: None,
    })
}

fn user_delete(name: &str) -> Request {
    Request::AuthUserDelete(AuthUserDeleteRequest {
        name: name.to_owned(),
    })
}

fn change_password(name: &str, hash: &'static [u8]) -> Request {
    Request::AuthUserChangePassword(UserChangePasswordCommand {
        name: name.to_owned(),
        password_hash: Bytes::from_static(hash),
    })
}

fn grant(user: &str, role: &str) -> Request {
    Request::AuthUserGrantRole(AuthUserGrantRoleRequest {
        user: user.to_owned(),
        role: role.to_owned(),
    })
}

fn revoke(name: &str, role: &str) -> Request {
    Request::AuthUserRevokeRole(AuthUserRevokeRoleRequest {
        name: name.to_owned(),
        role: role.to_owned(),
    })
}

fn role_add(name: &str) -> Request {
    Request::AuthRoleAdd(AuthRoleAddRequest {
        name: name.to_owned(),
    })
}

fn role_delete(role: &str) -> Request {
    Request::AuthRoleDelete(AuthRoleDeleteRequest {
        role: role.to_owned(),
    })
}

fn permit(role: &str, kind: permission::Type, key: &str, range_end: &str) -> Request {
    Request::AuthRoleGrantPermission(AuthRoleGrantPermissionRequest {
        name: role.to_owned(),
        perm: Some(Permission {
            perm_type: kind as i32,
            key: Bytes::copy_from_slice(key.as_bytes()),
            range_end: Bytes::copy_from_slice(range_end.as_bytes()),
        }),
    })
}

fn forbid(role: &str, key: &str, range_end: &str) -> Request {
    Request::AuthRoleRevokePermission(AuthRoleRevokePermissionRequest {
        role: role.to_owned(),
        key: Bytes::copy_from_slice(key.as_bytes()),
        range_end: Bytes::copy_from_slice(range_end.as_bytes()),
    })
}

fn authenticate(name: &str) -> Request {
    Request::Authenticate(AuthenticateCommand {
        name: name.to_owned(),
        simple_token_prefix: "letters".to_owned(),
    })
}

fn enable() -> Request {
    Request::AuthEnable(AuthEnableRequest {})
}

fn disable() -> Request {
    Request::AuthDisable(AuthDisableRequest {})
}

/// Root, and `alice` with the role `reader-writer`: reads `r`..`s`, writes `w`..`x`, both on `b`.
fn enabled() -> Store {
    let mut store = Store::default();
    store.done([
        user_add("root"),
        grant("root", "root"),
        user_add("alice"),
        role_add("reader-writer"),
        permit("reader-writer", Read, "r", "s"),
        permit("reader-writer", Write, "w", "x"),
        permit("reader-writer", Readwrite, "b", ""),
        grant("alice", "reader-writer"),
        enable(),
    ]);
    store
}

#[test]
fn users_are_added_changed_and_deleted() {
    let mut store = Store::default();
    assert_eq!(store.state.revision, 1);
    store.fails(user_add(""), UserEmpty);
    store.done([user_add("alice")]);
    assert_eq!(store.state.revision, 2);
    store.fails(user_add("alice"), UserAlreadyExist);
    store.fails(change_password("bob", b"x"), UserNotFound);
    store.fails(user_delete("bob"), UserNotFound);
    let user = store.state.user("alice").expect("added");
    assert_eq!(user.record.password, "hash of alice");

    let tokens = store.apply(change_password("alice", b"new"));
    let ended = Some(TokenChange::InvalidateUser("alice".to_owned()));
    assert_eq!(tokens, Ok(ended));
    assert_eq!(store.state.revision, 3);
    let ended = Some(TokenChange::InvalidateUser("alice".to_owned()));
    assert_eq!(store.apply(user_delete("alice")), Ok(ended));
    assert_eq!(store.state.revision, 4);
    assert_eq!(store.state.user_names().count(), 0);
}

#[test]
fn users_without_password_never_get_one() {
    let mut store = Store::default();
    let add = Request::AuthUserAdd(UserAddCommand {
        name: "certificate".to_owned(),
        password_hash: Bytes::from_static(b"hash"),
        options: Some(UserAddOptions { no_password: true }),
    });
    store.done([add, change_password("certificate", b"hash")]);
    let user = store.state.user("certificate").expect("added");
    assert!(user.has_no_password() && user.record.password.is_empty());
    store.done([user_add("root"), grant("root", "root"), enable()]);
    store.fails(authenticate("certificate"), AuthFailed);
}

#[test]
fn roles_are_granted_and_revoked() {
    let mut store = Store::default();
    store.fails(role_add(""), RoleEmpty);
    store.done([role_add("b"), role_add("a"), user_add("alice")]);
    store.fails(role_add("a"), RoleAlreadyExist);
    store.fails(grant("bob", "a"), UserNotFound);
    store.fails(grant("alice", "c"), RoleNotFound);
    // The role root need not exist.
    store.done([
        grant("alice", "b"),
        grant("alice", "root"),
        grant("alice", "a"),
    ]);
    let roles = &store.state.user("alice").expect("added").record.roles;
    assert_eq!(*roles, ["a", "b", "root"]);
    let revision = store.state.revision;
    store.done([grant("alice", "a")]);
    assert_eq!(
        store.state.revision, revision,
        "granting again is no change"
    );

    store.fails(revoke("bob", "a"), UserNotFound);
    store.fails(revoke("alice", "c"), RoleNotGranted);
    store.done([revoke("alice", "root"), role_delete("b")]);
    assert_eq!(store.state.revision, revision + 2);
    assert_eq!(
        store.state.user("alice").expect("added").record.roles,
        ["a"]
    );
    store.fails(role_delete("b"), RoleNotFound);
    assert_eq!(store.state.role_names().collect::<Vec<_>>(), ["a"]);
}

#[test]
fn permissions_are_granted_replaced_and_revoked() {
    let mut store = Store::default();
    store.done([role_add("a")]);
    let nothing = Request::AuthRoleGrantPermission(AuthRoleGrantPermissionRequest {
        name: "a".to_owned(),
        perm: None,
    });
    store.fails(nothing, PermissionNotGiven);
    store.fails(permit("b", Read, "k", ""), RoleNotFound);
    for (key, end) in [("", ""), ("", "\0"), ("k", "k"), ("k", "a")] {
        store.fails(permit("a", Read, key, end), InvalidAuthMgmt);
    }
    store.fails(forbid("b", "k", ""), RoleNotFound);
    store.fails(forbid("a", "k", ""), PermissionNotGranted);

    store.done([
        permit("a", Read, "k", "m"),
        permit("a", Write, "c", ""),
        permit("a", Readwrite, "k", "m"),
        permit("a", Read, "k", "\0"),
    ]);
    let shown = |store: &Store| -> Vec<(i32, Bytes, Bytes)> {
        let permissions = store.state.shown_permissions("a").expect("added");
        permissions
            .into_iter()
            .map(|one| (one.perm_type, one.key, one.range_end))
            .collect()
    };
    let row = |kind: permission::Type, key: &'static str, end: &'static str| {
        (kind as i32, Bytes::from(key), Bytes::from(end))
    };
    assert_eq!(
        shown(&store),
        [
            row(Write, "c", ""),
            row(Readwrite, "k", "m"),
            row(Read, "k", "\0")
        ]
    );
    // Only the first range of a key is replaced by granting it again: etcd's search stops there.
    store.done([permit("a", Write, "k", "\0")]);
    assert_eq!(shown(&store)[3], row(Write, "k", "\0"));
    store.done([forbid("a", "k", "\0")]);
    assert_eq!(
        shown(&store),
        [row(Write, "c", ""), row(Readwrite, "k", "m")]
    );

    store.done([role_add("root"), permit("root", Read, "x", "")]);
    assert_eq!(
        store.state.shown_permissions("root"),
        Some(vec![Permission {
            perm_type: Readwrite as i32,
            key: Bytes::new(),
            range_end: Bytes::from_static(b"\0"),
        }])
    );
    assert_eq!(store.state.shown_permissions("b"), None);
}

#[test]
fn authentication_needs_a_root_that_stays() {
    let mut store = Store::default();
    store.fails(enable(), RootUserNotExist);
    store.fails(authenticate("root"), AuthNotEnabled);
    store.done([user_add("root")]);
    store.fails(enable(), RootRoleNotExist);
    store.done([grant("root", "root"), role_add("root")]);
    let revision = store.state.revision;
    store.done([enable(), enable()]);
    assert_eq!(store.state.revision, revision, "enabling takes no revision");

    store.fails(user_delete("root"), InvalidAuthMgmt);
    store.fails(role_delete("root"), InvalidAuthMgmt);
    store.fails(revoke("root", "root"), InvalidAuthMgmt);
    store.fails(authenticate("nobody"), AuthFailed);
    assert_eq!(
        store.apply(authenticate("root")),
        Ok(Some(TokenChange::Assign {
            user: "root".to_owned(),
            prefix: "letters".to_owned(),
        }))
    );
    assert_eq!(store.state.revision, revision);

    assert_eq!(store.apply(disable()), Ok(Some(TokenChange::InvalidateAll)));
    assert_eq!(store.state.revision, revision + 1);
    assert_eq!(store.apply(disable()), Ok(None));
    store.done([role_delete("root"), user_delete("root")]);
}

/// Lease 1 has a key that alice writes, lease 2 one that she only reads.
struct Leases;

impl LeaseKeys for Leases {
    fn keys_of_lease(&self, id: i64) -> Result<Vec<Bytes>, EngineError> {
        Ok(match id {
            1 => vec![Bytes::from_static(b"w1")],
            2 => vec![Bytes::from_static(b"w1"), Bytes::from_static(b"r1")],
            _ => Vec::new(),
        })
    }
}

fn put(key: &'static str, lease: i64, prev_kv: bool) -> PutRequest {
    PutRequest {
        key: key.into(),
        lease,
        prev_kv,
        ..PutRequest::default()
    }
}

fn delete(key: &'static str, range_end: &'static str, prev_kv: bool) -> DeleteRangeRequest {
    DeleteRangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        prev_kv,
    }
}

fn range(key: &'static str, range_end: &'static str) -> RangeRequest {
    RangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        ..RangeRequest::default()
    }
}

fn op(request: Op) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}

fn nested(txn: TxnRequest) -> TxnRequest {
    TxnRequest {
        failure: vec![op(Op::RequestTxn(txn))],
        ..TxnRequest::default()
    }
}

fn compare(key: &'static str, range_end: &'static str) -> TxnRequest {
    TxnRequest {
        compare: vec![Compare {
            target: CompareTarget::Version as i32,
            key: key.into(),
            range_end: range_end.into(),
            ..Compare::default()
        }],
        ..TxnRequest::default()
    }
}

fn success(request: Op) -> TxnRequest {
    TxnRequest {
        success: vec![op(request)],
        ..TxnRequest::default()
    }
}

fn failure(request: Op) -> TxnRequest {
    TxnRequest {
        failure: vec![op(request)],
        ..TxnRequest::default()
    }
}

fn denial(checked: Result<(), ReadError>) -> Option<EtcdError> {
    match checked {
        Ok(()) => None,
        Err(ReadError::Etcd(error)) => Some(error),
        Err(ReadError::Engine(error)) => panic!("{error}"),
    }
}

#[test]
fn commands_are_checked_by_the_keys_that_they_touch() {
    let store = enabled();
    let denied = Some(PermissionDenied);
    let lease_revoke = |id, expired_in_term| {
        Request::LeaseRevoke(LeaseRevokeCommand {
            id,
            expired_in_term,
        })
    };
    let cases: Vec<(Request, Option<EtcdError>)> = vec![
        (Request::Put(put("w1", 0, false)), None),
        (Request::Put(put("r1", 0, false)), denied),
        // The pair before is a read.
        (Request::Put(put("w1", 0, true)), denied),
        (Request::Put(put("b", 0, true)), None),
        // A lease that she could not revoke.
        (Request::Put(put("w1", 1, false)), None),
        (Request::Put(put("w1", 2, false)), denied),
        (Request::Put(put("w1", 3, false)), None),
        (Request::DeleteRange(delete("w", "x", false)), None),
        (Request::DeleteRange(delete("w", "x", true)), denied),
        (Request::DeleteRange(delete("w", "\0", false)), denied),
        (Request::DeleteRange(delete("b", "", true)), None),
        (Request::Txn(compare("r", "s")), None),
        (Request::Txn(compare("r", "t")), denied),
        (Request::Txn(compare("w1", "")), denied),
        (
            Request::Txn(success(Op::RequestRange(range("w1", "")))),
            denied,
        ),
        (
            Request::Txn(failure(Op::RequestRange(range("r1", "")))),
            None,
        ),
        // Both branches count, whichever is taken.
        (
            Request::Txn(success(Op::RequestPut(put("r1", 0, false)))),
            denied,
        ),
        (
            Request::Txn(failure(Op::RequestPut(put("r1", 0, false)))),
            denied,
        ),
        (
            Request::Txn(failure(Op::RequestPut(put("w1", 2, false)))),
            denied,
        ),
        (
            Request::Txn(success(Op::RequestDeleteRange(delete("w", "x", true)))),
            denied,
        ),
        // Nested ones too.
        (Request::Txn(nested(compare("w1", ""))), denied),
        (
            Request::Txn(nested(nested(failure(Op::RequestPut(put("r1", 0, false)))))),
            denied,
        ),
        (
            Request::Txn(nested(success(Op::RequestPut(put("w1", 0, false))))),
            None,
        ),
        (
            Request::Txn(success(Op::RequestTxn(TxnRequest::default()))),
            None,
        ),
        (lease_revoke(1, 0), None),
        (lease_revoke(2, 0), denied),
        (lease_revoke(2, 7), None),
        (lease_revoke(3, 0), None),
        (
            Request::LeaseGrant(LeaseGrantRequest { id: 4, ttl: 5 }),
            None,
        ),
        (user_add("bob"), denied),
        (disable(), denied),
        (enable(), denied),
        (grant("alice", "root"), denied),
    ];
    let alice = store.identity("alice");
    let root = store.identity("root");
    let stranger = store.identity("stranger");
    for (command, expected) in cases {
        let check = |identity: Option<&Identity>| {
            denial(store.state.check_command(identity, &Leases, &command))
        };
        assert_eq!(check(Some(&alice)), expected, "{command:?}");
        assert_eq!(check(Some(&root)), None, "{command:?}");
        if expected == denied {
            assert_eq!(check(None), Some(UserEmpty), "{command:?}");
            let expected = match command {
                Request::Put(_) | Request::DeleteRange(_) | Request::Txn(_) => PermissionDenied,
                Request::LeaseRevoke(_) => PermissionDenied,
                _ => UserNotFound,
            };
            assert_eq!(check(Some(&stranger)), Some(expected), "{command:?}");
        }
    }
}

#[test]
fn nobody_is_checked_while_authentication_is_off() {
    let mut store = enabled();
    store.done([disable()]);
    let state = &store.state;
    let command = Request::Put(put("anything", 2, true));
    assert_eq!(denial(state.check_command(None, &Leases, &command)), None);
    assert_eq!(state.check_range(None, b"\0", b"\0"), Ok(()));
    assert_eq!(state.check_admin(None), Ok(()));
    assert_eq!(state.check_identified(None), Ok(()));
}

#[test]
fn an_identity_of_an_older_revision_is_refused_where_keys_are_concerned() {
    let mut store = enabled();
    let alice = store.identity("alice");
    let root = store.identity("root");
    let zero = Identity {
        username: "alice".into(),
        revision: 0,
    };
    store.done([user_add("bob")]);
    let state = &store.state;
    for old in [&alice, &root] {
        assert_eq!(
            state.check_range(Some(old), b"r1", b""),
            Err(AuthOldRevision)
        );
    }
    assert_eq!(state.check_range(Some(&zero), b"r1", b""), Err(UserEmpty));
    // Administration looks at the user as it is now.
    assert_eq!(state.check_admin(Some(&root)), Ok(()));
    assert_eq!(state.check_admin(Some(&alice)), Err(PermissionDenied));
    let lease = LeaseRevokeCommand {
        id: 2,
        expired_in_term: 0,
    };
    let command = Request::LeaseRevoke(lease);
    assert_eq!(
        denial(state.check_command(Some(&root), &Leases, &command)),
        None
    );
    assert_eq!(
        denial(state.check_command(Some(&alice), &Leases, &command)),
        Some(AuthOldRevision)
    );
}

#[test]
fn users_see_themselves_and_their_roles() {
    let mut store = enabled();
    store.done([role_add("other"), user_add("bob")]);
    let state = &store.state;
    let alice = store.identity("alice");
    assert_eq!(state.check_user_get(Some(&alice), "alice"), Ok(()));
    assert_eq!(
        state.check_user_get(Some(&alice), "bob"),
        Err(PermissionDenied)
    );
    assert_eq!(state.check_role_get(Some(&alice), "reader-writer"), Ok(()));
    assert_eq!(
        state.check_role_get(Some(&alice), "other"),
        Err(PermissionDenied)
    );
    assert_eq!(state.check_role_get(None, "other"), Err(UserEmpty));
    let root = store.identity("root");
    assert_eq!(state.check_user_get(Some(&root), "bob"), Ok(()));
    assert_eq!(state.check_role_get(Some(&root), "other"), Ok(()));
    let nameless = store.identity("");
    assert_eq!(state.check_admin(Some(&nameless)), Err(UserEmpty));
    assert_eq!(state.check_identified(Some(&nameless)), Ok(()));
}

#[test]
fn leases_are_renewed_by_who_writes_their_keys_and_seen_by_who_reads_them() {
    let store = enabled();
    let state = &store.state;
    let alice = store.identity("alice");
    assert_eq!(
        denial(state.check_lease_write(Some(&alice), &Leases, 1)),
        None
    );
    assert_eq!(
        denial(state.check_lease_read(Some(&alice), &Leases, 1)),
        Some(PermissionDenied)
    );
    assert_eq!(
        denial(state.check_lease_read(Some(&alice), &Leases, 3)),
        None
    );
}

#[test]
fn damaged_rows_are_an_error() {
    for (key, value) in [
        (&b"user/a"[..], &b"\xff"[..]),
        (b"role/a", b"\x08"),
        (b"user/\xff", b""),
        (b"revision", b"1"),
        (b"unknown", b""),
    ] {
        let row = (Bytes::from_static(key), Bytes::from_static(value));
        assert!(AuthState::load([row]).is_err(), "{key:?}");
    }
}
