//! Authentication on this member: the published users and roles, tokens, and who a client is.
//!
//! What the state means is decided in `metastore-auth`; here are clocks, passwords and letters.

mod credentials;
mod es512;
mod jwt;
mod password;
mod requests;
mod token_provider;

pub use credentials::Credentials;
pub use token_provider::{TokenOptionsError, TokenProvider};

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use metastore_auth::{AuthState, Change, Identity, LeaseKeys, TokenChange, changes_users};
use metastore_proto::error_text::EtcdError;
use metastore_proto::internal::Command;
use metastore_proto::internal::command::Request;
use metastore_store::engine::{EngineError, Table};
use metastore_store::{Applier, ReadError, Reader};
use tokio::sync::Semaphore;

use password::BcryptCost;

/// Users, roles and tokens of one member.
pub struct AuthManager {
    /// What the published state says, so that a request costs one load while authentication is off.
    enabled: AtomicBool,
    state: ArcSwap<AuthState>,
    tokens: TokenProvider,
    bcrypt_cost: BcryptCost,
    /// Passwords that may be hashed at one time: one for each core, so that clients that log in do
    /// not take the blocking threads away from those that read.
    hashing: Semaphore,
    /// Last entry of the log when the process started. Up to it, entries may be replayed, and tokens
    /// whose life was over long ago must not live again: a restart forgets all tokens.
    replayed: Option<u64>,
    started: Instant,
}

/// What the credentials of a request are worth now.
enum LookUp {
    /// There are none.
    Nobody,
    Known(Identity),
    Invalid,
    /// The token names a log entry that this member has not applied yet.
    NotYet {
        index: u64,
    },
}

impl AuthManager {
    /// A manager without users; [`AuthManager::load`] gives it the stored ones. `bcrypt_cost` is
    /// `--bcrypt-cost`, `replayed` the last entry of the log at the start of the process.
    pub fn new(tokens: TokenProvider, bcrypt_cost: u64, replayed: Option<u64>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        Self {
            enabled: AtomicBool::new(false),
            state: ArcSwap::from_pointee(AuthState::default()),
            tokens,
            bcrypt_cost: BcryptCost::new(bcrypt_cost),
            hashing: Semaphore::new(cores),
            replayed,
            started: Instant::now(),
        }
    }

    /// Whether authentication is on; one load.
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    /// The published users and roles.
    pub fn state(&self) -> Arc<AuthState> {
        self.state.load_full()
    }

    /// The auth revision.
    pub fn revision(&self) -> u64 {
        self.state.load().revision
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Starts from the stored users and roles, at the start or after a snapshot was installed.
    ///
    /// # Errors
    /// The engine's, and when a row is damaged.
    pub fn load(&self, reader: &Reader) -> Result<(), EngineError> {
        let new = AuthState::load(reader.scan_rows(Table::Auth, b"")?)?;
        if let TokenProvider::Simple(tokens) = &self.tokens {
            // The commands between the two states were not seen: whoever got another password or
            // went away must not keep his tokens.
            let old = self.state();
            tokens.retain_users(|name| {
                let password = |state: &AuthState| {
                    let user = state.user(name)?;
                    Some(user.record.password.clone())
                };
                new.enabled && password(&new).is_some() && password(&new) == password(&old)
            });
        }
        self.publish_state(Arc::new(new));
        Ok(())
    }

    fn publish_state(&self, state: Arc<AuthState>) {
        let enabled = state.enabled;
        self.state.store(state);
        self.enabled.store(enabled, Ordering::Relaxed);
    }

    /// A client's identity, as of now.
    fn look_up(&self, credentials: &Credentials) -> LookUp {
        match credentials {
            Credentials::None => LookUp::Nobody,
            Credentials::CommonName(name) => LookUp::Known(Identity {
                username: Arc::clone(name),
                revision: self.revision(),
            }),
            Credentials::Token(token) => match std::str::from_utf8(token.as_bytes()) {
                Ok(token) => self.look_up_token(token.strip_prefix("Bearer ").unwrap_or(token)),
                Err(_) => LookUp::Invalid,
            },
        }
    }

    /// The user that credentials stand for, if that is known now.
    pub fn known_user(&self, credentials: &Credentials) -> Option<Arc<str>> {
        match self.look_up(credentials) {
            LookUp::Known(identity) if !identity.username.is_empty() => Some(identity.username),
            _ => None,
        }
    }

    fn look_up_token(&self, token: &str) -> LookUp {
        match &self.tokens {
            TokenProvider::Simple(tokens) => {
                let revision = self.revision();
                match tokens.user(token, self.now()) {
                    Some(username) => LookUp::Known(Identity { username, revision }),
                    None => match entry_of_token(token) {
                        Some(index) => LookUp::NotYet { index },
                        None => LookUp::Invalid,
                    },
                }
            }
            TokenProvider::Jwt(provider) => match provider.verify(token) {
                Some(identity) => LookUp::Known(identity),
                None => LookUp::Invalid,
            },
            TokenProvider::None => LookUp::Invalid,
        }
    }

    /// Forgets the tokens whose life is over.
    pub fn remove_expired_tokens(&self) {
        if let TokenProvider::Simple(tokens) = &self.tokens {
            tokens.remove_expired(self.now());
        }
    }

    /// Starts to apply a batch of commands.
    pub fn begin(&self) -> AuthBatch {
        AuthBatch {
            state: self.state(),
            changed: false,
            tokens: Vec::new(),
        }
    }

    /// Publishes what a batch changed, after it was written.
    pub fn publish(&self, batch: AuthBatch) {
        for change in batch.tokens {
            self.change_tokens(change);
        }
        if batch.changed {
            self.publish_state(batch.state);
        }
    }

    fn change_tokens(&self, change: AppliedTokenChange) {
        let TokenProvider::Simple(tokens) = &self.tokens else {
            return;
        };
        match change.change {
            TokenChange::Assign { .. } if Some(change.index) <= self.replayed => {}
            TokenChange::Assign { user, prefix } => {
                let token = simple_token(&prefix, change.index);
                tokens.assign(&token, &user, self.now());
            }
            TokenChange::InvalidateUser(user) => tokens.retain_users(|name| name != user),
            TokenChange::InvalidateAll => tokens.clear(),
        }
    }
}

/// The token of the user for whom the entry at `index` was applied; openraft counts entries from 0,
/// etcd from 1.
fn simple_token(prefix: &str, index: u64) -> String {
    format!("{prefix}.{}", index + 1)
}

/// The entry that a simple token names.
fn entry_of_token(token: &str) -> Option<u64> {
    let (_, index) = token.split_once('.')?;
    // Go's ParseUint knows no sign.
    if index.starts_with('+') {
        return None;
    }
    Some(index.parse::<u64>().ok()?.saturating_sub(1))
}

struct AppliedTokenChange {
    index: u64,
    change: TokenChange,
}

/// The state of authentication while a batch of commands is applied. Seen by nobody until
/// [`AuthManager::publish`].
pub struct AuthBatch {
    state: Arc<AuthState>,
    changed: bool,
    tokens: Vec<AppliedTokenChange>,
}

/// What applying a command of users, roles and tokens gave.
#[derive(Clone, Debug)]
pub struct AuthApplied {
    /// Position of the entry, from which every member makes the simple token.
    pub index: u64,
    /// The auth revision after it.
    pub auth_revision: u64,
    /// The store's revision at it, for the header of the answer.
    pub revision: i64,
}

impl AuthBatch {
    /// Whether the command may be applied on behalf of whom it names; cheap while authentication is
    /// off.
    ///
    /// # Errors
    /// What the client is told; the engine's.
    pub fn check(&self, leases: &impl LeaseKeys, command: &Command) -> Result<(), ReadError> {
        if !self.state.enabled {
            return Ok(());
        }
        let Some(request) = &command.request else {
            return Ok(());
        };
        let is_anonymous = command.username.is_empty() && command.auth_revision == 0;
        let identity = (!is_anonymous).then(|| Identity {
            username: command.username.as_str().into(),
            revision: command.auth_revision,
        });
        self.state.check_command(identity.as_ref(), leases, request)
    }

    /// Executes the command of the entry at `index`. `None`: it is not one of users, roles and
    /// tokens.
    pub fn apply(
        &mut self,
        applier: &mut Applier,
        request: &Request,
        index: u64,
    ) -> Option<Result<AuthApplied, EtcdError>> {
        let applied = match request {
            // Changes nothing, so the state need not be copied.
            Request::Authenticate(request) => self.state.authenticate(request),
            request if changes_users(request) => Arc::make_mut(&mut self.state).apply(request)?,
            _ => return None,
        };
        let Change { rows, tokens } = match applied {
            Ok(change) => change,
            Err(error) => return Some(Err(error)),
        };
        log_change(request);
        for (key, value) in rows {
            self.changed = true;
            match value {
                Some(value) => applier.put_row(Table::Auth, key, value),
                None => applier.delete_row(Table::Auth, key),
            }
        }
        if let Some(change) = tokens {
            self.tokens.push(AppliedTokenChange { index, change });
        }
        Some(Ok(AuthApplied {
            index,
            auth_revision: self.state.revision,
            revision: applier.revision(),
        }))
    }
}

/// One line for each change, with etcd's words. Never a password, a hash or a token.
fn log_change(request: &Request) {
    match request {
        Request::AuthEnable(_) => tracing::info!("enabled authentication"),
        Request::AuthDisable(_) => tracing::info!("disabled authentication"),
        Request::AuthUserAdd(user) => tracing::info!("user-name" = user.name, "added a user"),
        Request::AuthUserDelete(user) => tracing::info!("user-name" = user.name, "deleted a user"),
        Request::AuthUserChangePassword(user) => {
            tracing::info!("user-name" = user.name, "changed a password of a user");
        }
        Request::AuthUserGrantRole(grant) => tracing::info!(
            "user-name" = grant.user,
            "added-role-name" = grant.role,
            "granted a role to a user"
        ),
        Request::AuthUserRevokeRole(revoke) => tracing::info!(
            "user-name" = revoke.name,
            "revoked-role-name" = revoke.role,
            "revoked a role from a user"
        ),
        Request::AuthRoleAdd(role) => tracing::info!("role-name" = role.name, "created a role"),
        Request::AuthRoleDelete(role) => tracing::info!("role-name" = role.role, "deleted a role"),
        Request::AuthRoleGrantPermission(grant) => {
            let permission = grant.perm.clone().unwrap_or_default();
            tracing::info!(
                "role-name" = grant.name,
                "permission-name" = permission.perm_type().as_str_name(),
                key = %String::from_utf8_lossy(&permission.key),
                "range-end" = %String::from_utf8_lossy(&permission.range_end),
                "granted/updated a permission to a user"
            );
        }
        Request::AuthRoleRevokePermission(revoke) => tracing::info!(
            "role-name" = revoke.role,
            key = %String::from_utf8_lossy(&revoke.key),
            "range-end" = %String::from_utf8_lossy(&revoke.range_end),
            "revoked a permission on range"
        ),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_of_a_simple_token_is_what_stands_behind_its_dot() {
        assert_eq!(entry_of_token(&simple_token("abc", 41)), Some(41));
        for bad in ["", "abc", "abc.", "abc.x", "abc.1.2", "abc.+1", "abc.-1"] {
            assert_eq!(entry_of_token(bad), None, "{bad}");
        }
        assert_eq!(entry_of_token("abc.0"), Some(0));
    }
}
