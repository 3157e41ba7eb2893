//! `--write-out=simple`: for people, and for scripts that read one value.

use std::fmt::Write as _;

use metastore_proto::EncodedKeyValue;
use metastore_proto::etcdserverpb as pb;

use super::table::human_bytes;
use super::{Printer, decode_pair, hex_id};
use crate::keys::prefix_end;

/// The role that may do everything.
const ROOT_ROLE: &str = "root";

fn push_bytes(text: &mut Vec<u8>, bytes: &[u8], hex: bool) {
    if hex {
        for byte in bytes {
            text.extend(format!("\\x{byte:02x}").into_bytes());
        }
    } else {
        text.extend_from_slice(bytes);
    }
    text.push(b'\n');
}

fn push_pair(printer: &Printer, text: &mut Vec<u8>, pair: &EncodedKeyValue) {
    let pair = decode_pair(pair);
    if !printer.value_only {
        push_bytes(text, &pair.key, printer.hex);
    }
    push_bytes(text, &pair.value, printer.hex);
}

/// Get.
pub fn range(printer: &Printer, answer: &pb::RangeResponse) -> Vec<u8> {
    let mut text = Vec::new();
    for pair in &answer.kvs {
        push_pair(printer, &mut text, pair);
    }
    text
}

/// Put.
pub fn put(printer: &Printer, answer: &pb::PutResponse) -> Vec<u8> {
    let mut text = b"OK\n".to_vec();
    if let Some(pair) = &answer.prev_kv {
        push_pair(printer, &mut text, pair);
    }
    text
}

/// Del.
pub fn delete_range(printer: &Printer, answer: &pb::DeleteRangeResponse) -> Vec<u8> {
    let mut text = format!("{}\n", answer.deleted).into_bytes();
    for pair in &answer.prev_kvs {
        push_pair(printer, &mut text, pair);
    }
    text
}

/// Txn.
pub fn txn(printer: &Printer, answer: &pb::TxnResponse) -> Vec<u8> {
    use pb::response_op::Response;
    let mut text = match answer.succeeded {
        true => b"SUCCESS\n".to_vec(),
        false => b"FAILURE\n".to_vec(),
    };
    for op in &answer.responses {
        text.push(b'\n');
        text.extend(match &op.response {
            Some(Response::ResponseRange(answer)) => range(printer, answer),
            Some(Response::ResponsePut(answer)) => put(printer, answer),
            Some(Response::ResponseDeleteRange(answer)) => delete_range(printer, answer),
            Some(Response::ResponseTxn(answer)) => txn(printer, answer),
            None => Vec::new(),
        });
    }
    text
}

/// A watch response.
pub fn watch(printer: &Printer, answer: &pb::WatchResponse) -> Vec<u8> {
    let mut text = Vec::new();
    for event in &answer.events {
        text.extend_from_slice(event_type(event.r#type).as_bytes());
        text.push(b'\n');
        if let Some(pair) = &event.prev_kv {
            push_pair(printer, &mut text, pair);
        }
        if let Some(pair) = &event.kv {
            push_pair(printer, &mut text, pair);
        }
    }
    text
}

/// Name of an event's type.
pub const fn event_type(number: i32) -> &'static str {
    match number {
        0 => "PUT",
        _ => "DELETE",
    }
}

/// Lease timetolive.
pub fn lease_time_to_live(answer: &pb::LeaseTimeToLiveResponse, keys: bool) -> Vec<u8> {
    if answer.granted_ttl == 0 && answer.ttl == -1 {
        return format!("lease {:016x} already expired\n", answer.id).into_bytes();
    }
    let mut text = format!(
        "lease {:016x} granted with TTL({}s), remaining({}s)",
        answer.id, answer.granted_ttl, answer.ttl
    );
    if keys {
        let listed: Vec<_> = answer
            .keys
            .iter()
            .map(|key| String::from_utf8_lossy(key).into_owned())
            .collect();
        let _ = write!(text, ", attached keys([{}])", listed.join(" "));
    }
    text.push('\n');
    text.into_bytes()
}

/// Rows of a member list.
pub fn member_rows(members: &[pb::Member]) -> Vec<Vec<String>> {
    members
        .iter()
        .map(|member| {
            let status = match member.name.as_str() {
                "" => "unstarted",
                _ => "started",
            };
            vec![
                hex_id(member.id),
                status.to_owned(),
                member.name.clone(),
                member.peer_ur_ls.join(","),
                member.client_ur_ls.join(","),
                member.is_learner.to_string(),
            ]
        })
        .collect()
}

/// Rows of an endpoint status.
pub fn status_rows(endpoints: &[(String, pb::StatusResponse)]) -> Vec<Vec<String>> {
    let bytes = |bytes: i64| human_bytes(bytes.cast_unsigned());
    endpoints
        .iter()
        .map(|(endpoint, status)| {
            let member = status.header.as_ref().map_or(0, |header| header.member_id);
            let used = match status.db_size {
                0 => 0,
                size => status.db_size_in_use * 100 / size,
            };
            let downgrade = status.downgrade_info.clone().unwrap_or_default();
            vec![
                endpoint.clone(),
                hex_id(member),
                status.version.clone(),
                status.storage_version.clone(),
                bytes(status.db_size),
                bytes(status.db_size_in_use),
                format!("{}%", 100 - used),
                bytes(status.db_size_quota),
                (status.leader == member).to_string(),
                status.is_learner.to_string(),
                status.raft_term.to_string(),
                status.raft_index.to_string(),
                status.raft_applied_index.to_string(),
                status.errors.join(", "),
                downgrade.target_version,
                downgrade.enabled.to_string(),
            ]
        })
        .collect()
}

/// Name of an alarm.
pub const fn alarm_name(number: i32) -> &'static str {
    match number {
        0 => "NONE",
        1 => "NOSPACE",
        _ => "CORRUPT",
    }
}

/// Alarms.
pub fn alarms(answer: &pb::AlarmResponse) -> Vec<u8> {
    let mut text = String::new();
    for alarm in &answer.alarms {
        // Go's text form of the message: what is 0 is left out.
        let mut parts = Vec::new();
        if alarm.member_id != 0 {
            parts.push(format!("memberID:{}", alarm.member_id));
        }
        if alarm.alarm != 0 {
            parts.push(format!("alarm:{}", alarm_name(alarm.alarm)));
        }
        let _ = writeln!(text, "{}", parts.join(" "));
    }
    text.into_bytes()
}

/// Lines.
pub fn lines(lines: &[String]) -> Vec<u8> {
    lines
        .iter()
        .map(|line| format!("{line}\n"))
        .collect::<String>()
        .into_bytes()
}

/// Role get.
pub fn role(name: &str, answer: &pb::AuthRoleGetResponse) -> Vec<u8> {
    const READ: i32 = 0;
    const WRITE: i32 = 1;
    const READ_WRITE: i32 = 2;
    let mut text = format!("Role {name}\n").into_bytes();
    let everything = name == ROOT_ROLE && answer.perm.is_empty();
    for (title, wanted) in [("KV Read:\n", READ), ("KV Write:\n", WRITE)] {
        text.extend_from_slice(title.as_bytes());
        if everything {
            text.extend_from_slice(b"\t[, <open ended>\n");
            continue;
        }
        for permission in &answer.perm {
            if permission.perm_type == wanted || permission.perm_type == READ_WRITE {
                text.push(b'\t');
                push_range(&mut text, &permission.key, &permission.range_end);
                text.push(b'\n');
            }
        }
    }
    text
}

fn push_range(text: &mut Vec<u8>, key: &[u8], end: &[u8]) {
    if end.is_empty() {
        text.extend_from_slice(key);
        return;
    }
    text.push(b'[');
    text.extend_from_slice(key);
    if end == b"\0" {
        text.extend_from_slice(b", <open ended>");
    } else {
        text.extend_from_slice(b", ");
        text.extend_from_slice(end);
        text.push(b')');
    }
    if !key.is_empty() && prefix_end(key) == end {
        text.extend_from_slice(b" (prefix ");
        text.extend_from_slice(key);
        text.push(b')');
    }
}
