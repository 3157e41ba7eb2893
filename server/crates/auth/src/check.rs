//! Who may do what.

use std::sync::Arc;

use bytes::Bytes;
use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::request_op;
use metastore_proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RequestOp, TxnRequest};
use metastore_proto::internal::command::Request;
use metastore_store::engine::EngineError;
use metastore_store::{Applier, ReadError, Reader};

use crate::key_set::KeySet;
use crate::state::{AuthState, User};

/// On whose behalf a request runs, and the auth revision as of which that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of the user; empty for a certificate without common name.
    pub username: Arc<str>,
    /// Auth revision of the token.
    pub revision: u64,
}

/// The keys that are attached to leases, as of the state in which a request is checked.
pub trait LeaseKeys {
    /// The keys of a lease; none for an unknown one.
    ///
    /// # Errors
    /// The engine's.
    fn keys_of_lease(&self, id: i64) -> Result<Vec<Bytes>, EngineError>;
}

impl LeaseKeys for Applier {
    fn keys_of_lease(&self, id: i64) -> Result<Vec<Bytes>, EngineError> {
        self.lease_keys(id)
    }
}

impl LeaseKeys for Reader {
    fn keys_of_lease(&self, id: i64) -> Result<Vec<Bytes>, EngineError> {
        self.lease_keys(id)
    }
}

#[derive(Clone, Copy)]
enum Access {
    Read,
    Write,
}

impl User {
    fn keys(&self, access: Access) -> &KeySet {
        match access {
            Access::Read => &self.permissions.read,
            Access::Write => &self.permissions.write,
        }
    }
}

/// All checks pass while authentication is off. An identity that is missing is refused with `user
/// name is empty`, one of an older revision with `revision of auth store is old`.
impl AuthState {
    fn check_keys(
        &self,
        identity: Option<&Identity>,
        key: &[u8],
        range_end: &[u8],
        access: Access,
    ) -> Result<(), EtcdError> {
        if !self.enabled {
            return Ok(());
        }
        let identity = identity
            .filter(|identity| identity.revision != 0)
            .ok_or(EtcdError::UserEmpty)?;
        if identity.revision < self.revision {
            return Err(EtcdError::AuthOldRevision);
        }
        match self.user(&identity.username) {
            Some(user) if user.is_root || user.keys(access).covers(key, range_end) => Ok(()),
            _ => Err(EtcdError::PermissionDenied),
        }
    }

    /// Whether a range may be read.
    ///
    /// # Errors
    /// `permission denied` and those of every check.
    pub fn check_range(
        &self,
        identity: Option<&Identity>,
        key: &[u8],
        range_end: &[u8],
    ) -> Result<(), EtcdError> {
        self.check_keys(identity, key, range_end, Access::Read)
    }

    /// Whether a key may be written.
    ///
    /// # Errors
    /// `permission denied` and those of every check.
    pub fn check_write(&self, identity: Option<&Identity>, key: &[u8]) -> Result<(), EtcdError> {
        self.check_keys(identity, key, b"", Access::Write)
    }

    /// Whether the client has the role `root`. The revision of its identity does not matter.
    ///
    /// # Errors
    /// `user name is empty`, `user name not found`, `permission denied`.
    pub fn check_admin(&self, identity: Option<&Identity>) -> Result<(), EtcdError> {
        if !self.enabled {
            return Ok(());
        }
        let identity = identity
            .filter(|identity| !identity.username.is_empty())
            .ok_or(EtcdError::UserEmpty)?;
        match self.user(&identity.username) {
            None => Err(EtcdError::UserNotFound),
            Some(user) if user.is_root => Ok(()),
            Some(_) => Err(EtcdError::PermissionDenied),
        }
    }

    /// Whether the client said who it is.
    ///
    /// # Errors
    /// `user name is empty`.
    pub fn check_identified(&self, identity: Option<&Identity>) -> Result<(), EtcdError> {
        match identity {
            None if self.enabled => Err(EtcdError::UserEmpty),
            _ => Ok(()),
        }
    }

    /// Whether the client may see this user: administrators all, everybody himself.
    ///
    /// # Errors
    /// As [`AuthState::check_admin`].
    pub fn check_user_get(&self, identity: Option<&Identity>, name: &str) -> Result<(), EtcdError> {
        let own = identity.map_or("", |identity| &*identity.username);
        self.check_admin(identity)
            .or_else(|error| if own == name { Ok(()) } else { Err(error) })
    }

    /// Whether the client may see this role: administrators all, everybody his own.
    ///
    /// # Errors
    /// As [`AuthState::check_admin`].
    pub fn check_role_get(&self, identity: Option<&Identity>, role: &str) -> Result<(), EtcdError> {
        self.check_admin(identity).or_else(|error| {
            let user = identity.and_then(|identity| self.user(&identity.username));
            match user {
                Some(user) if user.record.roles.iter().any(|held| held == role) => Ok(()),
                _ => Err(error),
            }
        })
    }

    /// Whether the client may write all keys of a lease, and therefore renew, revoke and attach it.
    ///
    /// # Errors
    /// `permission denied` and those of every check; the engine's.
    pub fn check_lease_write(
        &self,
        identity: Option<&Identity>,
        leases: &impl LeaseKeys,
        id: i64,
    ) -> Result<(), ReadError> {
        // No look at the keys while authentication is off or for an administrator.
        if self.check_admin(identity).is_ok() {
            return Ok(());
        }
        for key in leases.keys_of_lease(id)? {
            self.check_write(identity, &key)?;
        }
        Ok(())
    }

    /// Whether the client may read all keys of a lease, and therefore see them.
    ///
    /// # Errors
    /// `permission denied` and those of every check; the engine's.
    pub fn check_lease_read(
        &self,
        identity: Option<&Identity>,
        leases: &impl LeaseKeys,
        id: i64,
    ) -> Result<(), ReadError> {
        if self.check_admin(identity).is_ok() {
            return Ok(());
        }
        for key in leases.keys_of_lease(id)? {
            self.check_range(identity, &key, b"")?;
        }
        Ok(())
    }

    fn check_put(
        &self,
        identity: Option<&Identity>,
        leases: &impl LeaseKeys,
        put: &PutRequest,
    ) -> Result<(), ReadError> {
        self.check_write(identity, &put.key)?;
        if put.lease != 0 {
            // Somebody who cannot revoke the lease must not make it delete his own keys either.
            self.check_lease_write(identity, leases, put.lease)?;
        }
        if put.prev_kv {
            self.check_range(identity, &put.key, b"")?;
        }
        Ok(())
    }

    fn check_delete(
        &self,
        identity: Option<&Identity>,
        delete: &DeleteRangeRequest,
    ) -> Result<(), EtcdError> {
        self.check_keys(identity, &delete.key, &delete.range_end, Access::Write)?;
        if delete.prev_kv {
            self.check_range(identity, &delete.key, &delete.range_end)?;
        }
        Ok(())
    }

    /// Whether a transaction may run: all its compares and the operations of both branches, those of
    /// nested transactions too, whichever way it would take.
    ///
    /// # Errors
    /// `permission denied` and those of every check; the engine's.
    pub fn check_txn(
        &self,
        identity: Option<&Identity>,
        leases: &impl LeaseKeys,
        txn: &TxnRequest,
    ) -> Result<(), ReadError> {
        for compare in &txn.compare {
            self.check_range(identity, &compare.key, &compare.range_end)?;
        }
        for op in txn.success.iter().chain(&txn.failure) {
            self.check_operation(identity, leases, op)?;
        }
        Ok(())
    }

    fn check_operation(
        &self,
        identity: Option<&Identity>,
        leases: &impl LeaseKeys,
        op: &RequestOp,
    ) -> Result<(), ReadError> {
        match &op.request {
            Some(request_op::Request::RequestRange(range)) => {
                Ok(self.check_range(identity, &range.key, &range.range_end)?)
            }
            Some(request_op::Request::RequestPut(put)) => self.check_put(identity, leases, put),
            Some(request_op::Request::RequestDeleteRange(delete)) => {
                Ok(self.check_delete(identity, delete)?)
            }
            Some(request_op::Request::RequestTxn(nested)) => {
                self.check_txn(identity, leases, nested)
            }
            None => Ok(()),
        }
    }

    /// Whether a committed command may be applied. Commands of the server itself always may.
    ///
    /// The client was known before the proposal, but the state may have changed on the way through
    /// the log, so everything is decided here, on all members alike.
    ///
    /// # Errors
    /// What the client is told; the engine's.
    pub fn check_command(
        &self,
        identity: Option<&Identity>,
        leases: &impl LeaseKeys,
        command: &Request,
    ) -> Result<(), ReadError> {
        if !self.enabled {
            return Ok(());
        }
        match command {
            Request::Put(put) => self.check_put(identity, leases, put),
            Request::DeleteRange(delete) => Ok(self.check_delete(identity, delete)?),
            Request::Txn(txn) => self.check_txn(identity, leases, txn),
            // An expired lease is revoked by the server.
            Request::LeaseRevoke(revoke) if revoke.expired_in_term == 0 => {
                self.check_lease_write(identity, leases, revoke.id)
            }
            request if changes_users(request) => Ok(self.check_admin(identity)?),
            _ => Ok(()),
        }
    }
}

/// Whether a command may change who may do what: only administrators run it, and readers must see it
/// and the keys of before or after it, never a mixture.
pub fn changes_users(request: &Request) -> bool {
    matches!(
        request,
        Request::AuthEnable(_)
            | Request::AuthDisable(_)
            | Request::AuthUserAdd(_)
            | Request::AuthUserDelete(_)
            | Request::AuthUserChangePassword(_)
            | Request::AuthUserGrantRole(_)
            | Request::AuthUserRevokeRole(_)
            | Request::AuthRoleAdd(_)
            | Request::AuthRoleDelete(_)
            | Request::AuthRoleGrantPermission(_)
            | Request::AuthRoleRevokePermission(_)
    )
}
