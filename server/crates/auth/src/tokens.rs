//! Simple tokens: random letters that stand for a user on every member, until nobody used them for a
//! while.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;

/// Life of a token that nobody uses, when none is set; etcd's.
const DEFAULT_TTL: Duration = Duration::from_secs(300);

/// The simple tokens of one member. Every member fills its own table from the log; how long a token
/// lives after its last use is each member's own matter.
///
/// Times are since any fixed moment.
#[derive(Debug)]
pub struct SimpleTokens {
    ttl: Duration,
    tokens: RwLock<HashMap<Box<str>, Token>>,
}

struct Token {
    user: Arc<str>,
    /// Milliseconds; moved on by each use, which needs no exclusive lock.
    expires_at_ms: AtomicU64,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Token")
    }
}

impl Token {
    fn is_alive(&self, now: Duration) -> bool {
        milliseconds(now) < self.expires_at_ms.load(Ordering::Relaxed)
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl SimpleTokens {
    /// An empty table; `ttl` is how long a token lives after its last use, zero means 300 s.
    pub fn new(ttl: Duration) -> Self {
        Self {
            ttl: if ttl.is_zero() { DEFAULT_TTL } else { ttl },
            tokens: RwLock::default(),
        }
    }

    fn expiry(&self, now: Duration) -> u64 {
        milliseconds(now.saturating_add(self.ttl))
    }

    /// Takes in a new token of a user.
    pub fn assign(&self, token: &str, user: &str, now: Duration) {
        let entry = Token {
            user: user.into(),
            expires_at_ms: AtomicU64::new(self.expiry(now)),
        };
        self.tokens.write().insert(token.into(), entry);
    }

    /// The user for whom a token stands; the token lives on from now. `None`: there is no such
    /// token, or not any more.
    pub fn user(&self, token: &str, now: Duration) -> Option<Arc<str>> {
        let tokens = self.tokens.read();
        let found = tokens.get(token).filter(|found| found.is_alive(now))?;
        found
            .expires_at_ms
            .store(self.expiry(now), Ordering::Relaxed);
        Some(Arc::clone(&found.user))
    }

    /// Ends the tokens of all users for whom `keeps` is false.
    pub fn retain_users(&self, mut keeps: impl FnMut(&str) -> bool) {
        self.tokens.write().retain(|_, token| keeps(&token.user));
    }

    /// Ends all tokens.
    pub fn clear(&self) {
        *self.tokens.write() = HashMap::new();
    }

    /// Forgets the tokens whose life is over.
    pub fn remove_expired(&self, now: Duration) {
        let expired = |token: &Token| !token.is_alive(now);
        if self.tokens.read().values().any(expired) {
            self.tokens.write().retain(|_, token| !expired(token));
        }
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.tokens.read().len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_token_lives_on_while_it_is_used() {
        let tokens = SimpleTokens::new(at(10));
        tokens.assign("a.1", "alice", at(0));
        assert_eq!(tokens.user("a.1", at(9)).as_deref(), Some("alice"));
        assert_eq!(tokens.user("a.1", at(18)).as_deref(), Some("alice"));
        assert_eq!(tokens.user("a.1", at(28)), None);
        assert_eq!(tokens.user("b.1", at(0)), None);
        tokens.remove_expired(at(27));
        assert_eq!(tokens.len(), 1);
        tokens.remove_expired(at(28));
        assert!(tokens.is_empty());
    }

    #[test]
    fn tokens_end_by_user_or_all() {
        let tokens = SimpleTokens::new(Duration::ZERO);
        tokens.assign("a.1", "alice", at(0));
        tokens.assign("a.2", "alice", at(0));
        tokens.assign("b.3", "bob", at(0));
        tokens.retain_users(|user| user != "alice");
        assert_eq!(tokens.user("a.1", at(1)), None);
        assert_eq!(tokens.user("b.3", at(299)).as_deref(), Some("bob"));
        tokens.clear();
        assert_eq!(tokens.user("b.3", at(1)), None);
    }
}
