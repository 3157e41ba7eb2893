//! `--write-out=fields`: one line for each field.

use std::fmt::Write as _;

use metastore_proto::EncodedKeyValue;
use metastore_proto::etcdserverpb as pb;

use super::simple::{alarm_name, event_type};
use super::{EndpointHealth, Printer, decode_pair, hex_id};
use crate::quote::quote;

/// Lines of fields.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn field(&mut self, name: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.0, "\"{name}\" : {value}");
    }

    fn text(&mut self, name: &str, value: &str) {
        self.field(name, quote(value.as_bytes()));
    }

    fn bytes(&mut self, name: &str, value: &[u8]) {
        self.field(name, quote(value));
    }

    fn blank(&mut self) {
        self.0.push('\n');
    }

    fn id(&mut self, printer: &Printer, name: &str, id: u64) {
        match printer.hex {
            true => self.field(name, hex_id(id)),
            false => self.field(name, id),
        }
    }

    fn lease_id(&mut self, printer: &Printer, name: &str, id: i64) {
        match printer.hex {
            true => self.field(name, format_args!("{id:016x}")),
            false => self.field(name, id),
        }
    }

    fn header(&mut self, printer: &Printer, header: Option<&pb::ResponseHeader>) {
        let header = header.cloned().unwrap_or_default();
        self.id(printer, "ClusterID", header.cluster_id);
        self.id(printer, "MemberID", header.member_id);
        // Answers that are not about keys have no revision.
        if header.revision > 0 {
            self.field("Revision", header.revision);
        }
        self.field("RaftTerm", header.raft_term);
    }

    fn pair(&mut self, printer: &Printer, prefix: &str, pair: &EncodedKeyValue) {
        let pair = decode_pair(pair);
        let name = |field: &str| format!("{prefix}{field}");
        self.bytes(&name("Key"), &pair.key);
        self.field(&name("CreateRevision"), pair.create_revision);
        self.field(&name("ModRevision"), pair.mod_revision);
        self.field(&name("Version"), pair.version);
        self.bytes(&name("Value"), &pair.value);
        self.lease_id(printer, &name("Lease"), pair.lease);
    }
}

/// A header alone.
pub fn header(printer: &Printer, header: Option<&pb::ResponseHeader>) -> String {
    let mut lines = Lines::default();
    lines.header(printer, header);
    lines.0
}

/// Get.
pub fn range(printer: &Printer, answer: &pb::RangeResponse) -> String {
    let mut lines = Lines::default();
    lines.header(printer, answer.header.as_ref());
    for pair in &answer.kvs {
        lines.pair(printer, "", pair);
    }
    lines.field("More", answer.more);
    lines.field("Count", answer.count);
    lines.0
}

/// Put.
pub fn put(printer: &Printer, answer: &pb::PutResponse) -> String {
    let mut lines = Lines::default();
    lines.header(printer, answer.header.as_ref());
    if let Some(pair) = &answer.prev_kv {
        lines.pair(printer, "Prev", pair);
    }
    lines.0
}

/// Del.
pub fn delete_range(printer: &Printer, answer: &pb::DeleteRangeResponse) -> String {
    let mut lines = Lines::default();
    lines.header(printer, answer.header.as_ref());
    lines.field("Deleted", answer.deleted);
    for pair in &answer.prev_kvs {
        lines.pair(printer, "Prev", pair);
    }
    lines.0
}

/// Txn.
pub fn txn(printer: &Printer, answer: &pb::TxnResponse) -> String {
    use pb::response_op::Response;
    let mut lines = Lines::default();
    lines.header(printer, answer.header.as_ref());
    lines.field("Succeeded", answer.succeeded);
    for op in &answer.responses {
        lines.0.push_str(&match &op.response {
            Some(Response::ResponseRange(answer)) => range(printer, answer),
            Some(Response::ResponsePut(answer)) => put(printer, answer),
            Some(Response::ResponseDeleteRange(answer)) => delete_range(printer, answer),
            Some(Response::ResponseTxn(answer)) => txn(printer, answer),
            None => String::new(),
        });
    }
    lines.0
}

/// A watch response.
pub fn watch(printer: &Printer, answer: &pb::WatchResponse) -> String {
    let mut lines = Lines::default();
    lines.header(printer, answer.header.as_ref());
    for event in &answer.events {
        lines.field("Type", event_type(event.r#type));
        if let Some(pair) = &event.prev_kv {
            lines.pair(printer, "Prev", pair);
        }
        if let Some(pair) = &event.kv {
            lines.pair(printer, "", pair);
        }
    }
    lines.0
}

/// Lease grant and renewals.
pub fn lease(printer: &Printer, header: Option<&pb::ResponseHeader>, id: i64, ttl: i64) -> String {
    let mut lines = Lines::default();
    lines.header(printer, header);
    lines.lease_id(printer, "ID", id);
    lines.field("TTL", ttl);
    lines.0
}

/// Lease timetolive.
pub fn lease_time_to_live(printer: &Printer, answer: &pb::LeaseTimeToLiveResponse) -> String {
    let mut lines = Lines(lease(
        printer,
        answer.header.as_ref(),
        answer.id,
        answer.ttl,
    ));
    lines.field("GrantedTTL", answer.granted_ttl);
    for key in &answer.keys {
        lines.bytes("Key", key);
    }
    lines.0
}

/// Lease list.
pub fn leases(printer: &Printer, answer: &pb::LeaseLeasesResponse) -> String {
    let mut lines = Lines::default();
    lines.header(printer, answer.header.as_ref());
    for lease in &answer.leases {
        lines.lease_id(printer, "ID", lease.id);
    }
    lines.0
}

/// Member list.
pub fn member_list(printer: &Printer, answer: &pb::MemberListResponse) -> String {
    let mut lines = Lines::default();
    lines.header(printer, answer.header.as_ref());
    for member in &answer.members {
        lines.id(printer, "ID", member.id);
        lines.text("Name", &member.name);
        for url in &member.peer_ur_ls {
            lines.text("PeerURL", url);
        }
        for url in &member.client_ur_ls {
            lines.text("ClientURL", url);
        }
        lines.field("IsLearner", member.is_learner);
        lines.blank();
    }
    lines.0
}

/// Endpoint health.
pub fn endpoint_health(endpoints: &[EndpointHealth]) -> String {
    let mut lines = Lines::default();
    for health in endpoints {
        lines.text("Endpoint", &health.endpoint);
        lines.field("Health", health.error.is_empty());
        lines.field("Took", &health.took);
        lines.field("Error", &health.error);
        lines.blank();
    }
    lines.0
}

/// Endpoint status.
pub fn endpoint_status(printer: &Printer, endpoints: &[(String, pb::StatusResponse)]) -> String {
    let mut lines = Lines::default();
    for (endpoint, status) in endpoints {
        lines.header(printer, status.header.as_ref());
        lines.text("Version", &status.version);
        lines.text("StorageVersion", &status.storage_version);
        lines.field("DBSize", status.db_size);
        lines.field("DBSizeInUse", status.db_size_in_use);
        lines.field("DBSizeQuota", status.db_size_quota);
        lines.field("Leader", status.leader);
        lines.field("IsLearner", status.is_learner);
        lines.field("RaftIndex", status.raft_index);
        lines.field("RaftAppliedIndex", status.raft_applied_index);
        lines.field("Errors", format_args!("[{}]", status.errors.join(" ")));
        lines.text("Endpoint", endpoint);
        let downgrade = status.downgrade_info.clone().unwrap_or_default();
        lines.text("DowngradeTargetVersion", &downgrade.target_version);
        lines.field("DowngradeEnabled", downgrade.enabled);
        lines.blank();
    }
    lines.0
}

/// Endpoint hashkv.
pub fn endpoint_hash_kv(printer: &Printer, endpoints: &[(String, pb::HashKvResponse)]) -> String {
    let mut lines = Lines::default();
    for (endpoint, answer) in endpoints {
        lines.header(printer, answer.header.as_ref());
        lines.text("Endpoint", endpoint);
        lines.field("Hash", answer.hash);
        lines.field("HashRevision", answer.hash_revision);
        lines.blank();
    }
    lines.0
}

/// Alarms.
pub fn alarms(printer: &Printer, answer: &pb::AlarmResponse) -> String {
    let mut lines = Lines::default();
    lines.header(printer, answer.header.as_ref());
    for alarm in &answer.alarms {
        lines.id(printer, "MemberID", alarm.member_id);
        lines.field("AlarmType", alarm_name(alarm.alarm));
        lines.blank();
    }
    lines.0
}

/// Role get.
pub fn role(printer: &Printer, answer: &pb::AuthRoleGetResponse) -> String {
    let mut lines = Lines::default();
    lines.header(printer, answer.header.as_ref());
    for permission in &answer.perm {
        let kind = match permission.perm_type {
            0 => "READ",
            1 => "WRITE",
            _ => "READWRITE",
        };
        // With two spaces, as etcdctl has it.
        lines.field("PermType", format_args!(" {kind}"));
        lines.bytes("Key", &permission.key);
        lines.bytes("RangeEnd", &permission.range_end);
    }
    lines.0
}

/// Role list.
pub fn roles(printer: &Printer, header: Option<&pb::ResponseHeader>, names: &[String]) -> String {
    let mut lines = Lines::default();
    lines.header(printer, header);
    lines.0.push_str("\"Roles\" :");
    for name in names {
        let _ = write!(lines.0, " {}", quote(name.as_bytes()));
    }
    lines.blank();
    lines.0
}
