//! The replicated state of authentication.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use metastore_proto::authpb;
use metastore_proto::authpb::permission::Type;
use metastore_store::engine::EngineError;
use prost::Message;

use crate::key_set::KeySet;
use crate::rows::{ENABLED_ROW, REVISION_ROW, ROLE_PREFIX, USER_PREFIX};

/// Name of the user and of the role that may do everything.
pub const ROOT: &str = "root";

/// Auth revision of a store in which nothing was changed, as in etcd.
const FIRST_REVISION: u64 = 1;

/// What a user may read and write, merged over all its roles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permissions {
    /// Keys that it may read.
    pub read: KeySet,
    /// Keys that it may write.
    pub write: KeySet,
}

/// A user.
#[derive(Clone, PartialEq)]
pub struct User {
    /// As stored. `password` is a bcrypt hash; empty: no password fits.
    pub record: authpb::User,
    /// What its roles permit.
    pub permissions: Permissions,
    /// Whether it has the role `root`.
    pub is_root: bool,
}

impl User {
    /// Whether the user was added without password, so that only a certificate can speak for it.
    pub fn has_no_password(&self) -> bool {
        self.record
            .options
            .as_ref()
            .is_some_and(|options| options.no_password)
    }
}

/// The hash of the password stays out of every log.
impl std::fmt::Debug for User {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("User")
            .field("roles", &self.record.roles)
            .field("is_root", &self.is_root)
            .finish_non_exhaustive()
    }
}

/// Users, roles, and whether they count. Cloning shares the users and roles that do not change.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthState {
    /// Whether authentication is on.
    pub enabled: bool,
    /// Number of changes plus one. A token or a request of an older revision is refused.
    pub revision: u64,
    pub(crate) users: BTreeMap<String, Arc<User>>,
    pub(crate) roles: BTreeMap<String, Arc<authpb::Role>>,
}

impl Default for AuthState {
    fn default() -> Self {
        Self {
            enabled: false,
            revision: FIRST_REVISION,
            users: BTreeMap::new(),
            roles: BTreeMap::new(),
        }
    }
}

impl AuthState {
    /// The state that the rows of `Table::Auth` hold.
    ///
    /// # Errors
    /// When a row cannot be decoded: the member must not start.
    pub fn load(rows: impl IntoIterator<Item = (Bytes, Bytes)>) -> Result<Self, EngineError> {
        let mut state = Self::default();
        let mut users = Vec::new();
        for (key, value) in rows {
            if let Some(name) = key.strip_prefix(USER_PREFIX) {
                let record = authpb::User::decode(value).map_err(|_| damaged(&key))?;
                users.push((text(name, &key)?, record));
            } else if let Some(name) = key.strip_prefix(ROLE_PREFIX) {
                let record = authpb::Role::decode(value).map_err(|_| damaged(&key))?;
                state.roles.insert(text(name, &key)?, Arc::new(record));
            } else if key == ENABLED_ROW {
                state.enabled = value[..] == [1];
            } else if key == REVISION_ROW {
                let bytes = value[..].try_into().map_err(|_| damaged(&key))?;
                state.revision = u64::from_be_bytes(bytes);
            } else {
                return Err(damaged(&key));
            }
        }
        for (name, record) in users {
            state.set_user(name, record);
        }
        Ok(state)
    }

    /// The user of this name.
    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name).map(|user| &**user)
    }

    /// Names of all users, in order.
    pub fn user_names(&self) -> impl Iterator<Item = &str> {
        self.users.keys().map(String::as_str)
    }

    /// The role of this name.
    pub fn role(&self, name: &str) -> Option<&authpb::Role> {
        self.roles.get(name).map(|role| &**role)
    }

    /// Names of all roles, in order.
    pub fn role_names(&self) -> impl Iterator<Item = &str> {
        self.roles.keys().map(String::as_str)
    }

    /// The permissions of a role as RoleGet shows them: the role `root` may do everything, whatever
    /// it was granted.
    pub fn shown_permissions(&self, name: &str) -> Option<Vec<authpb::Permission>> {
        let role = self.role(name)?;
        if name == ROOT {
            return Some(vec![authpb::Permission {
                perm_type: Type::Readwrite as i32,
                key: Bytes::new(),
                range_end: Bytes::from_static(b"\0"),
            }]);
        }
        Some(role.key_permission.clone())
    }

    pub(crate) fn set_user(&mut self, name: String, record: authpb::User) {
        let permissions = self.merged_permissions(&record);
        let is_root = record.roles.iter().any(|role| role == ROOT);
        let user = User {
            record,
            permissions,
            is_root,
        };
        self.users.insert(name, Arc::new(user));
    }

    fn merged_permissions(&self, user: &authpb::User) -> Permissions {
        let of_type = |wanted: Type| {
            user.roles
                .iter()
                .filter_map(|role| self.roles.get(role))
                .flat_map(|role| &role.key_permission)
                .filter(move |permission| {
                    permission.perm_type == wanted as i32
                        || permission.perm_type == Type::Readwrite as i32
                })
        };
        Permissions {
            read: KeySet::union(of_type(Type::Read)),
            write: KeySet::union(of_type(Type::Write)),
        }
    }

    /// Merges the permissions of all users of a role anew.
    pub(crate) fn refresh_users_of(&mut self, role: &str) {
        let affected: Vec<(String, authpb::User)> = self
            .users
            .iter()
            .filter(|(_, user)| user.record.roles.iter().any(|held| held == role))
            .map(|(name, user)| (name.clone(), user.record.clone()))
            .collect();
        for (name, record) in affected {
            self.set_user(name, record);
        }
    }
}

fn text(name: &[u8], key: &Bytes) -> Result<String, EngineError> {
    std::str::from_utf8(name)
        .map(str::to_owned)
        .map_err(|_| damaged(key))
}

fn damaged(key: &Bytes) -> EngineError {
    EngineError::Storage(format!(
        "the stored row {:?} of users and roles is damaged: restore this member from a snapshot, or \
         re-add it as a new member",
        String::from_utf8_lossy(key)
    ))
}
