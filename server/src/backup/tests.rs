//! What was exported and imported is what was there, on every engine.

use std::path::Path;
use std::sync::Arc;

use metastore_backup_file::BoltFile;
use metastore_consensus::state_machine::LogPosition;
use metastore_proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, PutRequest,
};
use metastore_proto::internal::command::Request;
use metastore_proto::internal::{Command, LeaseRevokeCommand, MemberRecord};
use metastore_store::{Applier, MemoryEngine, Reader, StoreOptions};
use proptest::prelude::*;

use super::etcd_directory::seeds;
use super::export::{FileReceiver, export};
use super::import::{NewMember, Target, import};
use crate::config::Engine;
use crate::identity_file::Identity;
use crate::member_directory::Directory;
use crate::offline;

/// One random command.
#[derive(Clone, Debug)]
enum Step {
    Put {
        key: u8,
        lease: i64,
        bytes: usize,
    },
    Delete {
        from: u8,
        to: u8,
    },
    Grant(i64),
    Revoke(i64),
    /// Compacts to this part of the history, in 255ths.
    Compact(u8),
    /// Deletes at most so many records that are dead.
    Collect(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0u8..12, 0i64..3, 0usize..9000)
            .prop_map(|(key, lease, bytes)| Step::Put { key, lease, bytes }),
        2 => (0u8..12, 0u8..14).prop_map(|(from, to)| Step::Delete { from, to }),
        1 => (1i64..3).prop_map(Step::Grant),
        1 => (1i64..3).prop_map(Step::Revoke),
        1 => any::<u8>().prop_map(Step::Compact),
        1 => (1usize..5).prop_map(Step::Collect),
    ]
}

fn key(number: u8) -> String {
    format!("key-{number:03}")
}

fn execute(applier: &mut Applier, request: Request) {
    let command = Command {
        request: Some(request),
        ..Command::default()
    };
    // Refused commands are part of a random life.
    let _ = applier.execute(&command, 1).expect("the engine works");
    applier.commit().expect("the engine works");
}

fn run(applier: &mut Applier, reader: &Reader, step: &Step) {
    match *step {
        Step::Put {
            key: number,
            lease,
            bytes,
        } => execute(
            applier,
            Request::Put(PutRequest {
                key: key(number).into(),
                value: vec![number; bytes].into(),
                lease,
                ..PutRequest::default()
            }),
        ),
        Step::Delete { from, to } => execute(
            applier,
            Request::DeleteRange(DeleteRangeRequest {
                key: key(from).into(),
                range_end: key(to).into(),
                prev_kv: false,
            }),
        ),
        Step::Grant(id) => execute(
            applier,
            Request::LeaseGrant(LeaseGrantRequest { id, ttl: 60 * id }),
        ),
        Step::Revoke(id) => execute(
            applier,
            Request::LeaseRevoke(LeaseRevokeCommand {
                id,
                expired_in_term: 0,
            }),
        ),
        Step::Compact(part) => execute(
            applier,
            Request::Compaction(CompactionRequest {
                revision: reader.revision() * i64::from(part) / 255,
                physical: false,
            }),
        ),
        Step::Collect(records) => {
            let _ = reader
                .collect_garbage_step(records)
                .expect("the engine works");
        }
    }
}

struct FileWriter(Vec<u8>, u64);

impl FileReceiver for FileWriter {
    fn begin(&mut self, file_bytes: u64) -> std::io::Result<()> {
        self.1 = file_bytes;
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

fn new_member() -> NewMember {
    let mut directory = Directory::default();
    directory.members.insert(
        7,
        MemberRecord {
            id: 7,
            name: "one".to_owned(),
            peer_urls: vec!["http://localhost:1".to_owned()],
            ..MemberRecord::default()
        },
    );
    let position = LogPosition { term: 1, index: 0 };
    NewMember {
        identity: Identity {
            cluster_id: 9,
            member_id: 7,
            forms_cluster: false,
            log_exists: true,
            seeds: seeds(&directory),
        },
        directory,
        position,
        vote: (1, 7),
        entries: Vec::new(),
        committed: position,
        revision_bump: 0,
    }
}

/// What two stores must agree on: the hash at every revision that can be read, leases and keys.
fn facts(reader: &Reader) -> Vec<String> {
    let first = reader.compact_revision().max(1);
    let mut facts: Vec<String> = (first..=reader.revision())
        .map(|revision| format!("{:?}", reader.hash_kv(revision).expect("readable").hash))
        .collect();
    let mut leases = reader.leases().expect("the engine works");
    leases.sort_by_key(|lease| lease.id);
    for lease in leases {
        let keys = reader.lease_keys(lease.id).expect("the engine works");
        facts.push(format!("{lease:?} {keys:?}"));
    }
    facts
}

fn import_into(engine: Engine, file: &Path, folder: &Path) -> Vec<String> {
    let member_directory = folder.join("member");
    std::fs::create_dir_all(&member_directory).expect("own folder");
    let database = BoltFile::open(file).expect("an intact file");
    let target = Target {
        member_directory: &member_directory,
        wal_directory: None,
        engine,
    };
    import(&database, &new_member(), &target, &mut |_| {}).expect("an intact file");
    offline::problems_of(folder).expect("an intact directory")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn an_exported_store_is_imported_unchanged(steps in prop::collection::vec(step(), 1..80)) {
        let engine = Arc::new(MemoryEngine::new());
        let (mut applier, reader) =
            metastore_store::open(engine.clone(), StoreOptions::default()).expect("an empty engine");
        for step in &steps {
            run(&mut applier, &reader, step);
        }
        let mut written = FileWriter(Vec::new(), 0);
        let shared: metastore_store::SharedEngine = engine;
        export(&shared, &mut written).expect("memory takes everything");
        prop_assert_eq!(written.0.len() as u64, written.1);
        let folder = tempfile::tempdir().expect("temporary folder");
        let file = folder.path().join("db");
        std::fs::write(&file, &written.0).expect("own folder");
        let expected = facts(&reader);
        for kind in [Engine::Memory, Engine::RocksDb] {
            let data = folder.path().join(format!("{kind:?}"));
            prop_assert_eq!(import_into(kind, &file, &data), Vec::<String>::new());
            let imported = offline::reader_of(&data).expect("an intact directory");
            prop_assert_eq!(facts(&imported), expected.clone());
            prop_assert_eq!(imported.revision(), reader.revision());
        }
    }
}
