//! Which version may follow which.

use std::fmt;

/// A semantic version, without what follows the patch number.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Version {
    /// Major number.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
    /// Patch number.
    pub patch: u64,
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl Version {
    /// Reads `1.4.2`, `v1.4.2` and `1.4.2-rc.1`.
    pub fn parse(text: &str) -> Option<Self> {
        let core = text.trim_start_matches('v').split(['-', '+']).next()?;
        let mut numbers = core.split('.').map(|part| part.parse::<u64>().ok());
        let version = Self {
            major: numbers.next()??,
            minor: numbers.next()??,
            patch: numbers.next()??,
        };
        numbers.next().is_none().then_some(version)
    }
}

/// May members that run `running` be started as `wanted`? The same minor version or the next one; an older
/// patch only where downgrades are allowed.
pub fn version_is_reachable(running: Version, wanted: Version, allow_downgrade: bool) -> bool {
    if running.major != wanted.major {
        return false;
    }
    if wanted >= running {
        return wanted.minor <= running.minor + 1;
    }
    allow_downgrade && wanted.minor == running.minor
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_next_minor_version_is_reachable() {
        let reach = |from: &str, to: &str, down| {
            version_is_reachable(
                Version::parse(from).unwrap(),
                Version::parse(to).unwrap(),
                down,
            )
        };
        assert!(reach("1.4.2", "1.4.3", false));
        assert!(reach("1.4.2", "v1.5.0", false));
        assert!(!reach("1.4.2", "1.6.0", false));
        assert!(!reach("1.4.2", "2.0.0", true));
        assert!(!reach("1.4.2", "1.4.1", false));
        assert!(reach("1.4.2", "1.4.1", true));
        assert!(!reach("1.4.2", "1.3.9", true));
    }

    #[test]
    fn texts_that_are_no_versions_are_none() {
        for text in ["", "1", "1.2", "1.2.3.4", "a.b.c"] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
        assert!(Version::parse("1.2.3-rc.1+build").is_some());
    }
}
