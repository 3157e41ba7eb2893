//! Arithmetic of majorities.

/// How many of `voters` must agree.
pub fn quorum(voters: usize) -> usize {
    voters / 2 + 1
}

/// May a voter be removed? `healthy_others` are the healthy voters without it: they must be a majority of
/// what remains.
pub(crate) fn removal_keeps_quorum(voters: usize, healthy_others: usize) -> bool {
    voters > 1 && healthy_others >= quorum(voters - 1)
}

/// May a healthy voter be stopped for a while? The others must be a majority of all.
pub(crate) fn stop_keeps_quorum(voters: usize, healthy_others: usize) -> bool {
    healthy_others >= quorum(voters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_is_more_than_half() {
        assert_eq!([1, 2, 3, 4, 5, 7].map(quorum), [1, 2, 2, 3, 3, 4]);
    }

    #[test]
    fn the_last_voter_is_never_removed() {
        assert!(!removal_keeps_quorum(1, 0));
        assert!(removal_keeps_quorum(2, 1));
        assert!(removal_keeps_quorum(3, 2));
        assert!(!removal_keeps_quorum(3, 1));
    }

    #[test]
    fn a_stop_counts_the_stopped_member_as_a_voter() {
        assert!(!stop_keeps_quorum(1, 0));
        assert!(!stop_keeps_quorum(2, 1));
        assert!(stop_keeps_quorum(3, 2));
    }
}
