//! What the services ask of authentication: who a client is, whether it may, tokens and passwords.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use metastore_auth::{AuthState, Identity};
use metastore_consensus::state_machine::LogPosition;
use metastore_proto::authpb::UserAddOptions;
use metastore_proto::error_text::EtcdError;
use metastore_proto::internal::command::Request;
use metastore_proto::internal::{AuthenticateCommand, UserAddCommand, UserChangePasswordCommand};
use rand::Rng;

use super::jwt::fingerprint;
use super::{AuthApplied, AuthManager, Credentials, LookUp, TokenProvider, password, simple_token};
use crate::application::Response;
use crate::error::RequestError;
use crate::node::Node;

/// Letters of a simple token in front of the dot.
const TOKEN_LETTERS: usize = 16;
const LETTERS: &[u8; 52] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// Etcd's answers that have no code of their own.
const NO_PASSWORD_USER: &str =
    "auth: authentication failed, password was given for no password user";
const VERIFY_ONLY: &str = "auth: token signing attempted with verify-only key";

fn random_letters() -> String {
    let mut random = rand::rng();
    (0..TOKEN_LETTERS)
        .map(|_| LETTERS[random.random_range(0..LETTERS.len())] as char)
        .collect()
}

impl AuthManager {
    /// Hashes or checks a password where it holds up nobody.
    async fn with_password<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, RequestError> {
        let _turn = self
            .hashing
            .acquire()
            .await
            .map_err(|_| EtcdError::Stopped)?;
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|_| EtcdError::Stopped.into())
    }

    async fn hash(&self, password: String) -> Result<Bytes, RequestError> {
        let cost = self.bcrypt_cost;
        self.with_password(move || password::hash(&password, cost))
            .await?
    }

    /// The auth revision at which the password of a user was right.
    async fn check_password(&self, name: &str, password: &str) -> Result<u64, RequestError> {
        let state = self.state();
        if !state.enabled {
            return Err(EtcdError::AuthNotEnabled.into());
        }
        let checked = match state.user(name) {
            None => Err(RequestError::from(EtcdError::AuthFailed)),
            Some(user) if user.has_no_password() => {
                Err(RequestError::Unknown(NO_PASSWORD_USER.to_owned()))
            }
            Some(user) => {
                let hash = user.record.password.clone();
                let password = password.to_owned();
                let fits = self.with_password(move || password::verify(&password, &hash));
                match fits.await? {
                    true => Ok(state.revision),
                    false => {
                        tracing::info!("user-name" = name, "invalid password");
                        Err(EtcdError::AuthFailed.into())
                    }
                }
            }
        };
        if let Err(error) = &checked {
            tracing::warn!(user = name, %error, "invalid authentication was requested");
        }
        checked
    }

    /// The token that the answer to Authenticate carries.
    fn token(
        &self,
        name: &str,
        prefix: &str,
        applied: &AuthApplied,
    ) -> Result<String, RequestError> {
        match &self.tokens {
            TokenProvider::Simple(_) => Ok(simple_token(prefix, applied.index)),
            TokenProvider::Jwt(provider) => provider
                .sign(name, applied.auth_revision)
                .ok_or_else(|| RequestError::Unknown(VERIFY_ONLY.to_owned())),
            TokenProvider::None => Err(EtcdError::AuthFailed.into()),
        }
    }
}

impl Node {
    /// Users, roles and tokens of this member.
    pub fn auth(&self) -> &AuthManager {
        &self.application.auth
    }

    /// Who a client is. Nobody while authentication is off, whatever it sent.
    ///
    /// # Errors
    /// `invalid auth token`.
    pub async fn identify(&self, credentials: &Credentials) -> Result<Option<Identity>, EtcdError> {
        if !self.auth().is_enabled() {
            return Ok(None);
        }
        match self.auth().look_up(credentials) {
            LookUp::Nobody => Ok(None),
            LookUp::Known(identity) => Ok(Some(identity)),
            LookUp::Invalid => Err(refuse(credentials)),
            LookUp::NotYet { index } => Box::pin(self.identify_later(credentials, index)).await,
        }
    }

    /// Waits for the entry that another member has made the token of.
    async fn identify_later(
        &self,
        credentials: &Credentials,
        index: u64,
    ) -> Result<Option<Identity>, EtcdError> {
        let position = LogPosition { term: 0, index };
        let applied = self.consensus.wait_applied(Some(position));
        // A made-up token may name an entry that never comes.
        let waited = tokio::time::timeout(self.request_timeout(), applied).await;
        match self.auth().look_up(credentials) {
            LookUp::Known(identity) if waited.is_ok() => Ok(Some(identity)),
            _ => Err(refuse(credentials)),
        }
    }

    /// Identifies a client and makes one check of the published state; returns who it is. Costs one
    /// load while authentication is off.
    ///
    /// # Errors
    /// `invalid auth token`, and those of the check.
    pub async fn authorize(
        &self,
        credentials: &Credentials,
        check: impl FnOnce(&AuthState, Option<&Identity>) -> Result<(), EtcdError>,
    ) -> Result<Option<Identity>, EtcdError> {
        if !self.auth().is_enabled() {
            return Ok(None);
        }
        let identity = self.identify(credentials).await?;
        check(&self.auth().state.load(), identity.as_ref())?;
        Ok(identity)
    }

    /// Whether a client has the role `root`.
    ///
    /// # Errors
    /// `invalid auth token`, `user name is empty`, `user name not found`, `permission denied`.
    pub async fn check_admin(&self, credentials: &Credentials) -> Result<(), EtcdError> {
        self.authorize(credentials, AuthState::check_admin)
            .await
            .map(|_| ())
    }

    /// Whether a client has said who it is.
    ///
    /// # Errors
    /// `invalid auth token`, `user name is empty`.
    pub async fn check_identified(&self, credentials: &Credentials) -> Result<(), EtcdError> {
        self.authorize(credentials, AuthState::check_identified)
            .await
            .map(|_| ())
    }

    /// Whether what a client was permitted still holds after its read. A change of users or roles
    /// meanwhile makes the client ask again.
    ///
    /// # Errors
    /// `revision of auth store is old`.
    pub fn check_unchanged(&self, identity: Option<&Identity>) -> Result<(), EtcdError> {
        match identity {
            Some(identity)
                if identity.revision != 0 && identity.revision != self.auth().revision() =>
            {
                Err(EtcdError::AuthOldRevision)
            }
            _ => Ok(()),
        }
    }

    /// Proposes a command of users, roles and tokens.
    ///
    /// # Errors
    /// Those of the command and of every proposal.
    pub async fn propose_auth(
        &self,
        request: Request,
        credentials: &Credentials,
    ) -> Result<AuthApplied, RequestError> {
        match self.propose_as(request, credentials).await? {
            Response::Auth(applied) => Ok(applied),
            other => Err(RequestError::Unknown(format!(
                "a command of users and roles was answered by {other:?}"
            ))),
        }
    }

    /// Checks a password and makes a token; the token and the revision for the header.
    ///
    /// # Errors
    /// As etcd's Authenticate.
    pub async fn authenticate(
        &self,
        name: &str,
        password: &str,
    ) -> Result<(String, i64), RequestError> {
        self.linearize().await?;
        loop {
            let checked_revision = self.auth().check_password(name, password).await?;
            let prefix = match &self.auth().tokens {
                TokenProvider::Simple(_) => random_letters(),
                TokenProvider::Jwt(_) | TokenProvider::None => String::new(),
            };
            let command = AuthenticateCommand {
                name: name.to_owned(),
                simple_token_prefix: prefix.clone(),
            };
            let applied = self
                .propose_auth(Request::Authenticate(command), &Credentials::None)
                .await?;
            let token = self.auth().token(name, &prefix, &applied)?;
            // The password may have been changed between its check and the entry.
            if checked_revision == self.auth().revision() {
                return Ok((token, applied.revision));
            }
            tracing::info!("revision when password checked became stale; retrying");
        }
    }

    /// Adds a user; its password is hashed before it goes anywhere.
    ///
    /// # Errors
    /// As etcd's UserAdd.
    pub async fn add_user(
        &self,
        name: String,
        password: String,
        options: Option<UserAddOptions>,
        credentials: &Credentials,
    ) -> Result<AuthApplied, RequestError> {
        let password_hash = match options {
            Some(UserAddOptions { no_password: true }) => Bytes::new(),
            _ => self.auth().hash(password).await?,
        };
        let command = UserAddCommand {
            name,
            password_hash,
            options,
        };
        self.propose_auth(Request::AuthUserAdd(command), credentials)
            .await
    }

    /// Changes a user's password. Without one, a client may give a hash in base64.
    ///
    /// # Errors
    /// As etcd's UserChangePassword.
    pub async fn change_password(
        &self,
        name: String,
        password: String,
        hashed_password: &str,
        credentials: &Credentials,
    ) -> Result<AuthApplied, RequestError> {
        let password_hash = if password.is_empty() {
            STANDARD
                .decode(hashed_password)
                .map_err(|_| RequestError::Unknown(NO_PASSWORD_USER.to_owned()))?
                .into()
        } else {
            self.auth().hash(password).await?
        };
        let command = UserChangePasswordCommand {
            name,
            password_hash,
        };
        self.propose_auth(Request::AuthUserChangePassword(command), credentials)
            .await
    }
}

fn refuse(credentials: &Credentials) -> EtcdError {
    if let Credentials::Token(token) = credentials {
        tracing::warn!(
            "token-fingerprint" = fingerprint(token.as_bytes()),
            "invalid auth token"
        );
    }
    EtcdError::InvalidAuthToken
}
