//! What each command does to the state. The same on all members: nothing but the state and the
//! command decides.

use std::sync::Arc;

use bytes::Bytes;
use metastore_proto::authpb;
use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::{
    AuthRoleAddRequest, AuthRoleDeleteRequest, AuthRoleGrantPermissionRequest,
    AuthRoleRevokePermissionRequest, AuthUserDeleteRequest, AuthUserGrantRoleRequest,
    AuthUserRevokeRoleRequest,
};
use metastore_proto::internal::command::Request;
use metastore_proto::internal::{AuthenticateCommand, UserAddCommand, UserChangePasswordCommand};
use prost::Message;

use crate::key_set::is_valid_range;
use crate::rows::{ENABLED_ROW, REVISION_ROW, role_row, user_row};
use crate::state::{AuthState, ROOT};

/// What a command changed.
#[derive(Debug, Default, PartialEq)]
pub struct Change {
    /// Rows of `Table::Auth` in the order in which they are to be written; `None` removes the row.
    pub rows: Vec<(Bytes, Option<Bytes>)>,
    /// What it means for the tokens of this member.
    pub tokens: Option<TokenChange>,
}

/// What a command means for the simple tokens of a member.
#[derive(Debug, PartialEq, Eq)]
pub enum TokenChange {
    /// The user gets a new token.
    Assign {
        /// Name of the user.
        user: String,
        /// Random letters that the token begins with; empty when tokens are of another kind.
        prefix: String,
    },
    /// All tokens of the user end.
    InvalidateUser(String),
    /// All tokens end.
    InvalidateAll,
}

impl Change {
    fn put_user(&mut self, name: &str, user: &authpb::User) {
        self.rows
            .push((user_row(name), Some(user.encode_to_vec().into())));
    }

    fn put_role(&mut self, name: &str, role: &authpb::Role) {
        self.rows
            .push((role_row(name), Some(role.encode_to_vec().into())));
    }
}

type Applied = Result<Change, EtcdError>;

impl AuthState {
    /// Executes a command. `None`: the command is not one of users, roles and tokens. Who asked was
    /// checked before, by [`AuthState::check_command`]. A command that fails changes nothing.
    pub fn apply(&mut self, command: &Request) -> Option<Applied> {
        let applied = match command {
            Request::AuthEnable(_) => self.enable(),
            Request::AuthDisable(_) => Ok(self.disable()),
            Request::Authenticate(request) => self.authenticate(request),
            Request::AuthUserAdd(request) => self.add_user(request),
            Request::AuthUserDelete(request) => self.delete_user(request),
            Request::AuthUserChangePassword(request) => self.change_password(request),
            Request::AuthUserGrantRole(request) => self.grant_role(request),
            Request::AuthUserRevokeRole(request) => self.revoke_role(request),
            Request::AuthRoleAdd(request) => self.add_role(request),
            Request::AuthRoleDelete(request) => self.delete_role(request),
            Request::AuthRoleGrantPermission(request) => self.grant_permission(request),
            Request::AuthRoleRevokePermission(request) => self.revoke_permission(request),
            _ => return None,
        };
        Some(applied)
    }

    fn advance_revision(&mut self, change: &mut Change) {
        self.revision += 1;
        let row = Bytes::copy_from_slice(&self.revision.to_be_bytes());
        change.rows.push((REVISION_ROW, Some(row)));
    }

    fn set_enabled(&mut self, enabled: bool, change: &mut Change) {
        self.enabled = enabled;
        let row = Bytes::copy_from_slice(&[u8::from(enabled)]);
        change.rows.push((ENABLED_ROW, Some(row)));
    }

    /// Does not advance the revision: what was permitted stays permitted.
    fn enable(&mut self) -> Applied {
        let mut change = Change::default();
        if self.enabled {
            return Ok(change);
        }
        let root = self.user(ROOT).ok_or(EtcdError::RootUserNotExist)?;
        if !root.is_root {
            return Err(EtcdError::RootRoleNotExist);
        }
        self.set_enabled(true, &mut change);
        Ok(change)
    }

    fn disable(&mut self) -> Change {
        let mut change = Change::default();
        if self.enabled {
            self.set_enabled(false, &mut change);
            self.advance_revision(&mut change);
            change.tokens = Some(TokenChange::InvalidateAll);
        }
        change
    }

    /// Executes [`Request::Authenticate`], which changes nothing but tokens.
    ///
    /// # Errors
    /// `authentication is not enabled`, `authentication failed, invalid user ID or password`.
    pub fn authenticate(&self, request: &AuthenticateCommand) -> Result<Change, EtcdError> {
        if !self.enabled {
            return Err(EtcdError::AuthNotEnabled);
        }
        // The password was checked before the proposal; whoever proposed sees by the revision
        // whether it still counts.
        match self.user(&request.name) {
            Some(user) if !user.has_no_password() => Ok(Change {
                tokens: Some(TokenChange::Assign {
                    user: request.name.clone(),
                    prefix: request.simple_token_prefix.clone(),
                }),
                ..Change::default()
            }),
            _ => Err(EtcdError::AuthFailed),
        }
    }

    fn add_user(&mut self, request: &UserAddCommand) -> Applied {
        if request.name.is_empty() {
            return Err(EtcdError::UserEmpty);
        }
        if self.users.contains_key(&request.name) {
            return Err(EtcdError::UserAlreadyExist);
        }
        let options = request.options.unwrap_or_default();
        let record = authpb::User {
            name: Bytes::copy_from_slice(request.name.as_bytes()),
            password: match options.no_password {
                true => Bytes::new(),
                false => request.password_hash.clone(),
            },
            roles: Vec::new(),
            options: Some(options),
        };
        let mut change = Change::default();
        change.put_user(&request.name, &record);
        self.set_user(request.name.clone(), record);
        self.advance_revision(&mut change);
        Ok(change)
    }

    fn delete_user(&mut self, request: &AuthUserDeleteRequest) -> Applied {
        if self.enabled && request.name == ROOT {
            return Err(EtcdError::InvalidAuthMgmt);
        }
        if self.users.remove(&request.name).is_none() {
            return Err(EtcdError::UserNotFound);
        }
        let mut change = Change {
            rows: vec![(user_row(&request.name), None)],
            tokens: Some(TokenChange::InvalidateUser(request.name.clone())),
        };
        self.advance_revision(&mut change);
        Ok(change)
    }

    fn change_password(&mut self, request: &UserChangePasswordCommand) -> Applied {
        let user = self.user(&request.name).ok_or(EtcdError::UserNotFound)?;
        let mut record = user.record.clone();
        record.password = match user.has_no_password() {
            true => Bytes::new(),
            false => request.password_hash.clone(),
        };
        let mut change = self.replace_user(&request.name, record);
        change.tokens = Some(TokenChange::InvalidateUser(request.name.clone()));
        Ok(change)
    }

    fn replace_user(&mut self, name: &str, record: authpb::User) -> Change {
        let mut change = Change::default();
        change.put_user(name, &record);
        self.set_user(name.to_owned(), record);
        self.advance_revision(&mut change);
        change
    }

    fn grant_role(&mut self, request: &AuthUserGrantRoleRequest) -> Applied {
        let user = self.user(&request.user).ok_or(EtcdError::UserNotFound)?;
        // The role `root` need not exist.
        if request.role != ROOT && !self.roles.contains_key(&request.role) {
            return Err(EtcdError::RoleNotFound);
        }
        if user.record.roles.contains(&request.role) {
            return Ok(Change::default());
        }
        let mut record = user.record.clone();
        record.roles.push(request.role.clone());
        record.roles.sort();
        Ok(self.replace_user(&request.user, record))
    }

    fn revoke_role(&mut self, request: &AuthUserRevokeRoleRequest) -> Applied {
        if self.enabled && request.name == ROOT && request.role == ROOT {
            return Err(EtcdError::InvalidAuthMgmt);
        }
        let user = self.user(&request.name).ok_or(EtcdError::UserNotFound)?;
        let mut record = user.record.clone();
        record.roles.retain(|role| *role != request.role);
        if record.roles.len() == user.record.roles.len() {
            return Err(EtcdError::RoleNotGranted);
        }
        Ok(self.replace_user(&request.name, record))
    }

    fn add_role(&mut self, request: &AuthRoleAddRequest) -> Applied {
        if request.name.is_empty() {
            return Err(EtcdError::RoleEmpty);
        }
        if self.roles.contains_key(&request.name) {
            return Err(EtcdError::RoleAlreadyExist);
        }
        let role = authpb::Role {
            name: Bytes::copy_from_slice(request.name.as_bytes()),
            key_permission: Vec::new(),
        };
        Ok(self.replace_role(&request.name, role))
    }

    fn replace_role(&mut self, name: &str, role: authpb::Role) -> Change {
        let mut change = Change::default();
        change.put_role(name, &role);
        self.roles.insert(name.to_owned(), Arc::new(role));
        self.refresh_users_of(name);
        self.advance_revision(&mut change);
        change
    }

    fn delete_role(&mut self, request: &AuthRoleDeleteRequest) -> Applied {
        if self.enabled && request.role == ROOT {
            return Err(EtcdError::InvalidAuthMgmt);
        }
        if self.roles.remove(&request.role).is_none() {
            return Err(EtcdError::RoleNotFound);
        }
        let mut change = Change {
            rows: vec![(role_row(&request.role), None)],
            tokens: None,
        };
        let holders: Vec<(String, authpb::User)> = self
            .users
            .iter()
            .filter(|(_, user)| user.record.roles.contains(&request.role))
            .map(|(name, user)| (name.clone(), user.record.clone()))
            .collect();
        for (name, mut record) in holders {
            record.roles.retain(|role| *role != request.role);
            change.put_user(&name, &record);
            self.set_user(name, record);
        }
        self.advance_revision(&mut change);
        Ok(change)
    }

    fn grant_permission(&mut self, request: &AuthRoleGrantPermissionRequest) -> Applied {
        let granted = request.perm.as_ref().ok_or(EtcdError::PermissionNotGiven)?;
        if !is_valid_range(&granted.key, &granted.range_end) {
            return Err(EtcdError::InvalidAuthMgmt);
        }
        let role = self.role(&request.name).ok_or(EtcdError::RoleNotFound)?;
        let mut role = role.clone();
        let permissions = &mut role.key_permission;
        // Permissions are in the order of their keys. As in etcd only the first one of a key can be
        // changed by granting it again; behind it, the same range may stand twice.
        let first = permissions.partition_point(|permission| permission.key < granted.key);
        match permissions.get_mut(first) {
            Some(known) if known.key == granted.key && known.range_end == granted.range_end => {
                known.perm_type = granted.perm_type;
            }
            _ => {
                let after = permissions.partition_point(|known| known.key <= granted.key);
                permissions.insert(after, granted.clone());
            }
        }
        Ok(self.replace_role(&request.name, role))
    }

    fn revoke_permission(&mut self, request: &AuthRoleRevokePermissionRequest) -> Applied {
        let role = self.role(&request.role).ok_or(EtcdError::RoleNotFound)?;
        let mut revoked = role.clone();
        revoked.key_permission.retain(|permission| {
            permission.key != request.key || permission.range_end != request.range_end
        });
        if revoked.key_permission.len() == role.key_permission.len() {
            return Err(EtcdError::PermissionNotGranted);
        }
        Ok(self.replace_role(&request.role, revoked))
    }
}
