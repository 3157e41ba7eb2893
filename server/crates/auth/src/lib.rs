//! Users, roles, permissions on ranges of keys, and simple tokens.
//!
//! Owns the replicated state of authentication: which commands change it, which rows of
//! `Table::Auth` it is, and who may do what. It never hashes a password, looks at a clock, makes
//! something up at random or speaks to a client: hashes, times and letters are arguments, so that
//! all members come to the same state.
//!
//! ```text
//! committed command ─► AuthState::apply ─► rows, changes of tokens
//! request of a client ─► AuthState::check_… (with the published state)
//! ```

mod apply;
mod check;
mod key_set;
mod rows;
mod state;
mod tokens;

pub use apply::{Change, TokenChange};
pub use check::{Identity, LeaseKeys, changes_users};
pub use key_set::KeySet;
pub use rows::{ENABLED_ROW, REVISION_ROW, role_row, user_row};
pub use state::{AuthState, Permissions, ROOT, User};
pub use tokens::SimpleTokens;
