//! The kinds of tokens, as `--auth-token` names them.

use std::collections::BTreeMap;
use std::time::Duration;

use metastore_auth::SimpleTokens;

use super::jwt::JwtProvider;

/// What makes and reads tokens.
pub enum TokenProvider {
    /// Random letters that stand in the table of each member.
    Simple(SimpleTokens),
    /// Signed statements, which no member keeps.
    Jwt(Box<JwtProvider>),
    /// No tokens at all: an empty `--auth-token`. Only certificates can say who a client is.
    None,
}

/// Why `--auth-token` cannot be used; etcd's words, and what is wrong.
#[derive(Debug)]
pub struct TokenOptionsError {
    text: &'static str,
    detail: String,
}

impl std::fmt::Display for TokenOptionsError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "--auth-token: {}", self.text)?;
        match self.detail.is_empty() {
            true => Ok(()),
            false => write!(formatter, ": {}", self.detail),
        }
    }
}

impl std::error::Error for TokenOptionsError {}

impl TokenOptionsError {
    pub(super) fn new(text: &'static str, detail: impl Into<String>) -> Self {
        Self {
            text,
            detail: detail.into(),
        }
    }

    pub(super) fn invalid(detail: impl Into<String>) -> Self {
        Self::new("auth: invalid auth options", detail)
    }
}

/// The kind of token and its options, of `kind,name=value,…`.
fn decompose(option: &str) -> Result<(&str, BTreeMap<&str, &str>), TokenOptionsError> {
    let mut parts = option.split(',');
    let kind = parts.next().unwrap_or_default();
    let mut options = BTreeMap::new();
    for part in parts {
        let (name, value) = part
            .split_once('=')
            .filter(|(_, value)| !value.contains('='))
            .ok_or_else(|| TokenOptionsError::invalid(format!("{part:?} is not name=value")))?;
        if options.insert(name, value).is_some() {
            return Err(TokenOptionsError::invalid(format!("{name} is given twice")));
        }
    }
    Ok((kind, options))
}

impl TokenProvider {
    /// The provider that `--auth-token` names; reads key files. `ttl` is the life of a simple token
    /// (`--auth-token-ttl`, zero means 300 s).
    ///
    /// # Errors
    /// When the option or a key is wrong; the text says what.
    pub fn from_options(option: &str, ttl: Duration) -> Result<Self, TokenOptionsError> {
        let (kind, options) = decompose(option)?;
        match kind {
            "simple" => {
                tracing::warn!("simple token is not cryptographically signed");
                Ok(Self::Simple(SimpleTokens::new(ttl)))
            }
            "jwt" => Ok(Self::Jwt(Box::new(JwtProvider::from_options(&options)?))),
            "" => Ok(Self::None),
            other => Err(TokenOptionsError::invalid(format!(
                "the kind of token is simple or jwt, not {other:?}"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_tokens_are_checked() {
        let ttl = Duration::ZERO;
        for good in ["simple", "simple,anything=1", ""] {
            assert!(TokenProvider::from_options(good, ttl).is_ok(), "{good}");
        }
        for bad in [
            "other",
            "simple,",
            "simple,a",
            "simple,a=b=c",
            "simple,a=1,a=2",
            "jwt",
            "jwt,sign-method=RS256",
            "jwt,sign-method=none",
            "jwt,sign-method=HS256,priv-key=/does/not/exist",
        ] {
            let error = TokenProvider::from_options(bad, ttl).err().expect(bad);
            assert!(
                error.to_string().starts_with("--auth-token: auth: "),
                "{error}"
            );
        }
    }
}
