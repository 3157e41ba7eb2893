//! Databases and logs of etcd: the first byte chooses. Checksums are set right, because hardly any input would
//! pass them, and what is behind them would never be read.
#![no_main]

use std::ops::ControlFlow;

use metastore_backup_file::BoltFile;
use metastore_backup_file::etcd_log::EtcdLog;

/// Where a meta page of bbolt keeps its contents, their checksum, and the second one of them.
const META_OFFSET: usize = 16;
const META_CHECKED_BYTES: usize = 56;
const SECOND_META_OFFSET: usize = 4096;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((kind, content)) = input.split_first() else {
        return;
    };
    let folder = tempfile::tempdir_in("/dev/shm").expect("memory for a file");
    if *kind % 2 == 0 {
        let path = folder.path().join("0000000000000000-0000000000000000.wal");
        std::fs::write(path, log(content)).expect("memory for a file");
        let _ = EtcdLog::read(folder.path(), 0);
        return;
    }
    let path = folder.path().join("db");
    std::fs::write(&path, database(content)).expect("memory for a file");
    let Ok(file) = BoltFile::open(&path) else {
        return;
    };
    let _ = file.check();
    for (_, bucket) in file.buckets() {
        let _ = file.scan(bucket, &mut |key, _| {
            assert!(!key.is_empty(), "a row without a key");
            Ok(ControlFlow::Continue(()))
        });
    }
});

/// A database with right checksums.
fn database(content: &[u8]) -> Vec<u8> {
    let mut bytes = content.to_vec();
    for page in [0, SECOND_META_OFFSET] {
        let meta = page + META_OFFSET;
        let Some(checked) = bytes.get(meta..meta + META_CHECKED_BYTES) else {
            break;
        };
        // FNV-1a.
        let sum = checked.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
            (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let place = meta + META_CHECKED_BYTES;
        if let Some(place) = bytes.get_mut(place..place + 8) {
            place.copy_from_slice(&sum.to_le_bytes());
        }
    }
    bytes
}

/// A log of etcd out of records of the form `kind ‖ length ‖ content`, framed and with right checksums.
fn log(mut content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut sum = 0;
    record(&mut bytes, 4, 0, None);
    while let [kind, length, rest @ ..] = content {
        let length = usize::from(*length).min(rest.len());
        let (data, behind) = rest.split_at(length);
        content = behind;
        sum = crc32c::crc32c_append(sum, data);
        record(&mut bytes, u64::from(*kind), sum, Some(data));
    }
    bytes
}

/// One record: length with its padding, then the message with type, checksum and content.
fn record(bytes: &mut Vec<u8>, kind: u64, sum: u32, data: Option<&[u8]>) {
    let mut message = vec![1 << 3];
    put_varint(&mut message, kind);
    message.push(2 << 3);
    put_varint(&mut message, u64::from(sum));
    if let Some(data) = data {
        message.push((3 << 3) | 2);
        put_varint(&mut message, data.len() as u64);
        message.extend(data);
    }
    let padding = (8 - message.len() % 8) % 8;
    let mut head = message.len() as u64;
    if padding != 0 {
        head |= (0x80 | padding as u64) << 56;
    }
    bytes.extend(head.to_le_bytes());
    bytes.extend(message);
    bytes.extend(vec![0; padding]);
}

fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}
