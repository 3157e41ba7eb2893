//! What commands and reads mean, rule by rule.

mod script;

use script::check;

#[test]
fn a_put_counts_versions_and_a_deletion_starts_again() {
    check(
        r"
        get a                    -> @1 /0
        put a 1                  -> @2
        put a 2                  -> @3
        get a full               -> @3 a=2(2,3,2,0) /1
        del a                    -> @4 del 1
        del a                    -> @4 del 0
        get a                    -> @4 /0
        put a 3                  -> @5
        get a full               -> @5 a=3(5,5,1,0) /1
        get a rev=3 full         -> @5 a=2(2,3,2,0) /1
        get a rev=4              -> @5 /0
        ",
    );
}

#[test]
fn previous_pairs_are_those_before_the_change() {
    check(
        r"
        put a 1 prev             -> @2
        put a 2 prev             -> @3 prev a=1
        put b 3                  -> @4
        del a c prev             -> @5 del 2 prev a=2 prev b=3
        put a 4 prev             -> @6
        ",
    );
}

#[test]
fn ignoring_the_value_or_the_lease_needs_the_key() {
    check(
        r"
        put a ignore_value       -> KeyNotFound
        put a 1 ignore_lease     -> KeyNotFound
        put a 1 ignore_value     -> ValueProvided
        grant 7 10               -> @1 7 10
        put a 1 lease=7          -> @2
        put a 2 lease=7 ignore_lease -> LeaseProvided
        put a 2 ignore_lease     -> @3
        get a full               -> @3 a=2(2,3,2,7) /1
        put a ignore_value       -> @4
        get a full               -> @4 a=2(2,4,3,0) /1
        ",
    );
}

#[test]
fn range_ends_are_exclusive_and_may_be_open_or_the_wrong_way_round() {
    check(
        r"
        txn ? put a 1 , put b 2 , put c 3 -> @2 then [@2] [@2] [@2]
        get a c                  -> @2 a=1 b=2 /2
        get b \0                 -> @2 b=2 c=3 /2
        get \0 \0                -> @2 a=1 b=2 c=3 /3
        get c a                  -> @2 /0
        get b b                  -> @2 /0
        get b                    -> @2 b=2 /1
        ",
    );
}

#[test]
fn the_count_ignores_limit_and_filters_and_more_does_not() {
    check(
        r"
        put a 1
        put b 2
        put c 3
        get a \0 limit=2         -> @4 a=1 b=2 /3 more
        get a \0 limit=3         -> @4 a=1 b=2 c=3 /3
        get a \0 limit=-1        -> @4 a=1 b=2 c=3 /3
        get a \0 count           -> @4 /3
        get a \0 count limit=1   -> @4 /3
        get a \0 minmod=3        -> @4 b=2 c=3 /3
        get a \0 maxcreate=3 limit=1 -> @4 a=1 /3 more
        get a \0 minmod=3 maxmod=3 limit=1 -> @4 b=2 /3
        ",
    );
}

#[test]
fn orders_sort_everything_but_a_target_without_an_order_sorts_the_first_keys() {
    check(
        r"
        put a 9
        put b 5
        put c 7
        put a 9
        get a \0 desc            -> @5 c=7 b=5 a=9 /3
        get a \0 desc limit=1    -> @5 c=7 /3 more
        get a \0 sort=mod asc    -> @5 b=5 c=7 a=9 /3
        get a \0 sort=mod desc limit=1 -> @5 a=9 /3 more
        get a \0 sort=value asc limit=2 -> @5 b=5 c=7 /3 more
        get a \0 sort=version desc -> @5 a=9 b=5 c=7 /3
        get a \0 sort=create desc limit=1 -> @5 c=7 /3 more
        get a \0 sort=mod limit=1 -> @5 b=5 /3 more
        get a \0 sort=value limit=1 minmod=1 -> @5 b=5 /3 more
        ",
    );
}

#[test]
fn keys_only_comes_from_the_index_unless_values_are_sorted() {
    check(
        r"
        grant 7 10
        put a 1 lease=7
        get a keys full          -> @2 a=(2,2,1,0) /1
        get a \0 keys sort=mod desc full -> @2 a=(2,2,1,0) /1
        get a \0 keys sort=value asc full -> @2 a=(2,2,1,7) /1
        ",
    );
}

#[test]
fn revisions_ahead_and_behind_are_refused_and_the_compacted_one_is_readable() {
    check(
        r"
        put a 1
        put a 2
        put a 3
        get a rev=5              -> FutureRev
        compact 5                -> FutureRev
        compact 3                -> @4
        compact 3                -> Compacted
        get a rev=2              -> Compacted
        get a rev=3              -> @4 a=2 /1
        get a rev=-1             -> @4 a=3 /1
        gc
        get a rev=3              -> @4 a=2 /1
        ",
    );
    check(
        r"
        compact 0                -> @1
        compact 0                -> Compacted
        compact 1                -> @1
        ",
    );
}

#[test]
fn what_compaction_collected_reads_as_not_there() {
    check(
        r"
        put a 1
        del a
        put b 1
        put a 2
        compact 4
        get a rev=4              -> @5 /0
        gc
        get a rev=4              -> @5 /0
        get a full               -> @5 a=2(5,5,1,0) /1
        del a                    -> @6 del 1
        put b 2
        compact 7
        gc
        put a 3                  -> @8
        get a full               -> @8 a=3(8,8,1,0) /1
        get a rev=7              -> @8 /0
        ",
    );
}

#[test]
fn compares_see_the_state_before_the_transaction() {
    check(
        r"
        txn v(a)=0 ? put a 1 : get a -> @2 then [@2]
        txn v(a)=0 ? put a 1 : get a -> @2 else [@2 a=1 /1]
        txn val(b)=_ ? : get b   -> @2 else [@2 /0]
        txn c(b)=0 m(b)=0 l(b)=0 ? : -> @2 then
        txn val(a)=1 m(a)=2 ? put a 2 , { txn val(a)=1 ? put b 3 : put c 4 } -> @3 then [@3] [@0 then [@3]]
        txn v(a..z)>0 ? : get a  -> @3 then
        txn v(a..z)>1 ? : get a  -> @3 else [@3 a=2 /1]
        txn v(x..z)=0 ? :        -> @3 then
        txn val(z..a)=_ ? :      -> @3 else
        txn l(a)!0 ? : del z     -> @3 else [@3 del 0]
        ",
    );
}

#[test]
fn a_transaction_takes_one_revision_and_its_reads_see_its_writes() {
    check(
        r"
        put a 1
        txn ? get a , put a 2 , get a , del a b , get a , put b 1 -> DuplicateKey
        txn ? get a , put b 2 , get a c , del a , get a c -> @3 then [@2 a=1 /1] [@3] [@3 a=1 b=2 /2] [@3 del 1] [@3 b=2 /1]
        txn ? get a rev=2 , put c 1 , get a c rev=2 , get a \0 limit=1 -> @4 then [@3 a=1 /1] [@4] [@4 a=1 /1] [@4 b=2 /2 more]
        txn ? get b              -> @4 then [@4 b=2 /1]
        ",
    );
}

#[test]
fn a_transaction_that_fails_writes_nothing() {
    check(
        r"
        put a 1
        txn ? put b 1 , get a rev=9 -> FutureRev
        txn ? put b 1 , put c 1 lease=9 -> LeaseNotFound
        txn ? put b 1 , put c ignore_value -> KeyNotFound
        txn ? put b 1 , { txn ? get a rev=3 : } -> FutureRev
        put a 2
        compact 3
        txn ? put b 1 , get a rev=2 -> Compacted
        txn ? put b 1 , get a rev=-1 -> Compacted
        get a \0                 -> @3 a=2 /1
        txn v(a)=9 ? put x 1 lease=9 : put b 2 -> @4 else [@4]
        ",
    );
}

#[test]
fn a_key_may_be_put_and_deleted_by_siblings() {
    check(
        r"
        put a 0
        txn ? { txn ? put a 1 , put b 1 : } , { txn ? del a c prev : } -> @3 then [@0 then [@3] [@3]] [@0 then [@3 del 2 prev a=1 prev b=1]]
        get a \0                 -> @3 /0
        get a \0 rev=2           -> @3 a=0 /1
        txn ? del a \0 , put b 5 -> @4 then [@3 del 0] [@4]
        txn ? del a \0 , put b 6 -> @5 then [@5 del 1] [@5]
        get b full               -> @5 b=6(5,5,1,0) /1
        get b rev=4              -> @5 b=5 /1
        compact 5
        gc
        get b full               -> @5 b=6(5,5,1,0) /1
        ",
    );
}

#[test]
fn a_read_only_transaction_answers_like_one_that_is_applied() {
    check(
        r"
        put a 1
        put a 2
        compact 3
        read v(a)=2 ? get a , get b -> @3 then [@3 a=2 /1] [@3 /0]
        read v(a)=1 ? get a : get a count -> @3 else [@3 /1]
        read ? get a rev=4       -> FutureRev
        read ? get a rev=2       -> Compacted
        read ? get a rev=-1      -> Compacted
        read ? get a rev=3       -> @3 then [@3 a=2 /1]
        ",
    );
}

#[test]
fn leases_hold_keys_and_take_them_along() {
    check(
        r"
        put a 1 lease=7          -> LeaseNotFound
        grant 7 10               -> @1 7 10
        grant 7 10               -> LeaseExist
        grant 8 9000000001       -> LeaseTTLTooLarge
        grant 8 9000000000       -> @1 8 9000000000
        put b 1 lease=7          -> @2
        put a 1 lease=7          -> @3
        put c 1 lease=7          -> @4
        lease 7                  -> 0/10 a b c
        put a 2                  -> @5
        put b 2 lease=8          -> @6
        del c                    -> @7 del 1
        lease 7                  -> 0/10
        lease 8                  -> 0/9000000000 b
        put a 3 lease=8          -> @8
        checkpoint 8 5           -> @8
        checkpoint 9 5           -> @8
        lease 8                  -> 5/9000000000 a b
        revoke 8                 -> @9
        get a \0                 -> @9 /0
        lease 8                  -> none
        revoke 8                 -> LeaseNotFound
        revoke 7                 -> @9
        ",
    );
}

#[test]
fn only_the_leader_of_the_entrys_term_expires_a_lease() {
    // Issue etcd #15247: a deposed leader revoked leases that its successor had renewed.
    check(
        r"
        grant 7 10
        put a 1 lease=7
        revoke 7 4               -> LeaderChanged
        get a                    -> @2 a=1 /1
        revoke 7 5               -> @3
        ",
    );
}
