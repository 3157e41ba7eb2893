//! Hashes of passwords: bcrypt, in the form that etcd stores.

use bytes::Bytes;

use crate::error::RequestError;

/// Least and largest cost that bcrypt knows, and the one that etcd takes instead of a wrong one.
const COST_MIN: u64 = 4;
const COST_MAX: u64 = 31;
const COST_DEFAULT: u32 = 10;
/// bcrypt looks at so many bytes; Go refuses to hash a longer password.
const PASSWORD_BYTES_MAX: usize = 72;

/// `--bcrypt-cost`: each step doubles the work of a hash.
#[derive(Clone, Copy, Debug)]
pub struct BcryptCost(u32);

impl BcryptCost {
    /// The cost of the options; a cost that bcrypt does not know counts as the default.
    pub fn new(cost: u64) -> Self {
        match u32::try_from(cost) {
            Ok(known) if (COST_MIN..=COST_MAX).contains(&cost) => Self(known),
            _ => {
                tracing::warn!(
                    "min-cost" = COST_MIN,
                    "max-cost" = COST_MAX,
                    "default-cost" = COST_DEFAULT,
                    "given-cost" = cost,
                    "use default bcrypt cost instead of the invalid given cost"
                );
                Self(COST_DEFAULT)
            }
        }
    }
}

/// The hash of a password; takes long.
///
/// # Errors
/// Go's words for a password of more than 72 bytes.
pub fn hash(password: &str, cost: BcryptCost) -> Result<Bytes, RequestError> {
    if password.len() > PASSWORD_BYTES_MAX {
        return Err(RequestError::Unknown(
            "bcrypt: password length exceeds 72 bytes".to_owned(),
        ));
    }
    let parts = bcrypt::hash_with_result(password, cost.0)
        .map_err(|error| RequestError::Unknown(format!("bcrypt: {error}")))?;
    // The version that etcd writes; its letter changes nothing.
    Ok(parts.format_for_version(bcrypt::Version::TwoA).into())
}

/// Whether a password fits a stored hash; takes long. Nothing fits a hash that is none.
pub fn verify(password: &str, hash: &[u8]) -> bool {
    std::str::from_utf8(hash).is_ok_and(|hash| bcrypt::verify(password, hash).unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_etcd() {
        let cost = BcryptCost::new(4);
        let hash = hash("secret", cost).unwrap();
        assert!(hash.starts_with(b"$2a$04$"));
        assert!(verify("secret", &hash));
        assert!(!verify("Secret", &hash));
        assert!(!verify("", &hash));
        // Made by golang.org/x/crypto/bcrypt.
        assert!(verify(
            "allmine",
            b"$2a$10$XajjQvNhvvRt5GSeFk1xFeyqRrsxkhBkUiQeg0dt.wU1qD4aFDcga"
        ));
    }

    #[test]
    fn long_and_empty_passwords() {
        let cost = BcryptCost::new(4);
        let long = "x".repeat(72);
        let hash = hash(&long, cost).unwrap();
        assert!(verify(&long, &hash));
        // As in Go, what comes behind the 72nd byte is not looked at.
        assert!(verify(&"x".repeat(80), &hash));
        assert!(super::hash(&"x".repeat(73), cost).is_err());
        let empty = super::hash("", cost).unwrap();
        assert!(verify("", &empty));
        assert!(!verify("", b""));
        assert!(!verify("", b"no hash"));
    }

    #[test]
    fn a_cost_that_does_not_exist_counts_as_the_default() {
        assert_eq!(BcryptCost::new(3).0, 10);
        assert_eq!(BcryptCost::new(32).0, 10);
        assert_eq!(BcryptCost::new(u64::MAX).0, 10);
        assert_eq!(BcryptCost::new(31).0, 31);
    }
}
