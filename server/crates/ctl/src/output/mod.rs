//! How answers are shown: `--write-out`.

pub mod fields;
pub mod json;
pub mod simple;
pub mod table;

use std::fmt::Write as _;

use metastore_proto::etcdserverpb as pb;
use metastore_proto::{EncodedKeyValue, KeyValue};
use prost::Message;

use self::json::{Object, array, string};
use crate::failure::{ExitCode, Failure};
use crate::terminal::{say, write_stdout};

/// `--write-out`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Simple,
    /// One line for each field.
    Fields,
    /// As Go's JSON of the messages.
    Json,
    /// The encoded message.
    Protobuf,
    /// A table, where there is one.
    Table,
}

/// Shows answers.
#[derive(Clone, Copy, Debug)]
pub struct Printer {
    /// The format.
    pub format: Format,
    /// `--hex`.
    pub hex: bool,
    /// `--print-value-only`.
    pub value_only: bool,
}

/// Health of an endpoint.
pub struct EndpointHealth {
    /// The endpoint.
    pub endpoint: String,
    /// How long the check took, as Go writes durations; empty: no connection.
    pub took: String,
    /// What is wrong; empty: nothing.
    pub error: String,
}

/// What a response is called, for commands whose answer is little more than its header.
pub trait HeaderOnly: Message {
    /// Its header.
    fn header(&self) -> Option<&pb::ResponseHeader>;
}

macro_rules! header_only {
    ($($message:ident),* $(,)?) => {
        $(impl HeaderOnly for pb::$message {
            fn header(&self) -> Option<&pb::ResponseHeader> {
                self.header.as_ref()
            }
        })*
    };
}

header_only!(
    AuthRoleAddResponse,
    AuthRoleDeleteResponse,
    AuthRoleGrantPermissionResponse,
    AuthRoleRevokePermissionResponse,
    AuthUserAddResponse,
    AuthUserChangePasswordResponse,
    AuthUserDeleteResponse,
    AuthUserGrantRoleResponse,
    AuthUserRevokeRoleResponse,
    LeaseRevokeResponse,
);

/// A stored pair, decoded.
pub fn decode_pair(pair: &EncodedKeyValue) -> KeyValue {
    KeyValue::decode(pair.0.clone()).unwrap_or_default()
}

/// An id as Go's `types.ID` writes it.
pub fn hex_id(id: u64) -> String {
    format!("{id:x}")
}

type Shown = Result<(), Failure>;

impl Printer {
    /// The printer of a format's name.
    ///
    /// # Errors
    /// There is no such format.
    pub fn new(format: &str, hex: bool) -> Result<Self, Failure> {
        let format = match format {
            "simple" => Format::Simple,
            "fields" => Format::Fields,
            "json" => Format::Json,
            "protobuf" => Format::Protobuf,
            "table" => Format::Table,
            _ => {
                return Err(Failure::new(
                    ExitCode::BadFeature,
                    "unsupported output format",
                ));
            }
        };
        Ok(Self {
            format,
            hex,
            value_only: false,
        })
    }

    /// There is no such form of this answer.
    fn unsupported<T>(&self) -> Result<T, Failure> {
        let name = match self.format {
            Format::Simple => "simple",
            Format::Fields => "fields",
            Format::Json => "json",
            Format::Protobuf => "protobuf",
            Format::Table => "table",
        };
        Err(Failure::new(
            ExitCode::BadFeature,
            format!("{name} not supported as output format"),
        ))
    }

    /// Shows a message in the form that was asked for.
    fn show(
        &self,
        message: &impl Message,
        simple: impl FnOnce() -> Vec<u8>,
        fields: impl FnOnce() -> String,
        json: impl FnOnce() -> String,
    ) -> Shown {
        match self.format {
            Format::Simple => write_stdout(&simple()),
            Format::Fields => write_stdout(fields().as_bytes()),
            Format::Json => say(json()),
            Format::Protobuf => write_stdout(&message.encode_to_vec()),
            Format::Table => return self.unsupported(),
        }
        Ok(())
    }

    /// Get.
    ///
    /// # Errors
    /// The format has no form for it; so for all others.
    pub fn range(&self, answer: &pb::RangeResponse) -> Shown {
        self.show(
            answer,
            || simple::range(self, answer),
            || fields::range(self, answer),
            || json::range(answer),
        )
    }

    /// Put.
    pub fn put(&self, answer: &pb::PutResponse) -> Shown {
        self.show(
            answer,
            || simple::put(self, answer),
            || fields::put(self, answer),
            || json::put(answer),
        )
    }

    /// Del.
    pub fn delete_range(&self, answer: &pb::DeleteRangeResponse) -> Shown {
        self.show(
            answer,
            || simple::delete_range(self, answer),
            || fields::delete_range(self, answer),
            || json::delete_range(answer),
        )
    }

    /// Txn.
    pub fn txn(&self, answer: &pb::TxnResponse) -> Shown {
        self.show(
            answer,
            || simple::txn(self, answer),
            || fields::txn(self, answer),
            || json::txn(answer),
        )
    }

    /// One response of a watch.
    pub fn watch(&self, answer: &pb::WatchResponse) -> Shown {
        // clientv3 keeps these fields only.
        let kept = pb::WatchResponse {
            watch_id: 0,
            cancel_reason: String::new(),
            fragment: false,
            ..answer.clone()
        };
        self.show(
            &kept,
            || simple::watch(self, answer),
            || fields::watch(self, answer),
            || json::watch(answer),
        )
    }

    /// Lease grant.
    pub fn lease_grant(&self, answer: &pb::LeaseGrantResponse) -> Shown {
        if self.format == Format::Protobuf {
            return Self::header_bytes(answer.header.as_ref());
        }
        self.show(
            answer,
            || {
                format!(
                    "lease {:016x} granted with TTL({}s)\n",
                    answer.id, answer.ttl
                )
                .into_bytes()
            },
            || fields::lease(self, answer.header.as_ref(), answer.id, answer.ttl),
            || {
                json::flat_response(answer.header.as_ref())
                    .raw("ID", &answer.id.to_string())
                    .raw("TTL", &answer.ttl.to_string())
                    .raw("Error", &string(&answer.error))
                    .end()
            },
        )
    }

    /// clientv3's own lease types are no messages: what etcdctl encodes of them is their header.
    fn header_bytes(header: Option<&pb::ResponseHeader>) -> Shown {
        let header = header.copied().unwrap_or_default();
        write_stdout(&header.encode_to_vec());
        Ok(())
    }

    /// Lease revoke. The answer that clientv3 gives etcdctl has lost its form as a message.
    pub fn lease_revoke(&self, sentence: &str, answer: &pb::LeaseRevokeResponse) -> Shown {
        if self.format == Format::Protobuf {
            return Err(Failure::new(
                ExitCode::BadFeature,
                "marshal unsupported for the answer to a revocation",
            ));
        }
        self.sentence(sentence, answer)
    }

    /// One renewal.
    pub fn lease_keep_alive(&self, answer: &pb::LeaseKeepAliveResponse) -> Shown {
        if self.format == Format::Protobuf {
            return Self::header_bytes(answer.header.as_ref());
        }
        self.show(
            answer,
            || {
                format!(
                    "lease {:016x} keepalived with TTL({})\n",
                    answer.id, answer.ttl
                )
                .into_bytes()
            },
            || fields::lease(self, answer.header.as_ref(), answer.id, answer.ttl),
            || {
                json::flat_response(answer.header.as_ref())
                    .raw("ID", &answer.id.to_string())
                    .raw("TTL", &answer.ttl.to_string())
                    .end()
            },
        )
    }

    /// Lease timetolive.
    pub fn lease_time_to_live(&self, answer: &pb::LeaseTimeToLiveResponse, keys: bool) -> Shown {
        if self.format == Format::Protobuf {
            return Self::header_bytes(answer.header.as_ref());
        }
        let listed: Vec<_> = answer
            .keys
            .iter()
            .map(|key| format!("\"{}\"", json::base64(key)))
            .collect();
        let listed = match answer.keys.as_slice() {
            [] => "null".to_owned(),
            _ => array(&listed),
        };
        self.show(
            answer,
            || simple::lease_time_to_live(answer, keys),
            || fields::lease_time_to_live(self, answer),
            || {
                json::flat_response(answer.header.as_ref())
                    .raw("id", &answer.id.to_string())
                    .raw("ttl", &answer.ttl.to_string())
                    .raw("granted-ttl", &answer.granted_ttl.to_string())
                    .raw("keys", &listed)
                    .end()
            },
        )
    }

    /// Lease list.
    pub fn leases(&self, answer: &pb::LeaseLeasesResponse) -> Shown {
        if self.format == Format::Protobuf {
            return Self::header_bytes(answer.header.as_ref());
        }
        let listed: Vec<_> = answer
            .leases
            .iter()
            .map(|lease| Object::new().raw("id", &lease.id.to_string()).end())
            .collect();
        self.show(
            answer,
            || {
                let mut text = format!("found {} leases\n", answer.leases.len());
                for lease in &answer.leases {
                    let _ = writeln!(text, "{:016x}", lease.id);
                }
                text.into_bytes()
            },
            || fields::leases(self, answer),
            || {
                json::flat_response(answer.header.as_ref())
                    .raw("leases", &array(&listed))
                    .end()
            },
        )
    }

    /// Member list.
    pub fn member_list(&self, answer: &pb::MemberListResponse) -> Shown {
        let header = [
            "ID",
            "Status",
            "Name",
            "Peer Addrs",
            "Client Addrs",
            "Is Learner",
        ];
        self.rows(
            &header,
            || simple::member_rows(&answer.members),
            || fields::member_list(self, answer),
            || json::members(answer.header.as_ref(), None, &answer.members, self.hex),
            Some(answer.encode_to_vec()),
        )
    }

    /// What has a table.
    fn rows(
        &self,
        header: &[&str],
        rows: impl FnOnce() -> Vec<Vec<String>>,
        fields: impl FnOnce() -> String,
        json: impl FnOnce() -> String,
        encoded: Option<Vec<u8>>,
    ) -> Shown {
        match self.format {
            Format::Simple => {
                for row in rows() {
                    say(row.join(", "));
                }
            }
            Format::Fields => write_stdout(fields().as_bytes()),
            Format::Json => say(json()),
            Format::Table => write_stdout(table::render(header, &rows()).as_bytes()),
            Format::Protobuf => match encoded {
                Some(encoded) => write_stdout(&encoded),
                None => return self.unsupported(),
            },
        }
        Ok(())
    }

    /// Member add, remove, update and promote, whose answers have a sentence, a header and members.
    pub fn members(
        &self,
        sentence: String,
        header: Option<&pb::ResponseHeader>,
        added: Option<&pb::Member>,
        members: &[pb::Member],
        message: &impl Message,
    ) -> Shown {
        match self.format {
            Format::Simple => say(sentence),
            Format::Json => say(json::members(header, added, members, self.hex)),
            Format::Protobuf => write_stdout(&message.encode_to_vec()),
            Format::Fields | Format::Table => return self.unsupported(),
        }
        Ok(())
    }

    /// Endpoint health.
    pub fn endpoint_health(&self, endpoints: &[EndpointHealth]) -> Shown {
        if self.format == Format::Simple {
            for health in endpoints {
                if health.error.is_empty() {
                    say(format!(
                        "{} is healthy: successfully committed proposal: took = {}",
                        health.endpoint, health.took
                    ));
                } else {
                    eprintln!(
                        "{} is unhealthy: failed to commit proposal: {}",
                        health.endpoint, health.error
                    );
                }
            }
            return Ok(());
        }
        let objects: Vec<_> = endpoints
            .iter()
            .map(|health| {
                Object::new()
                    .raw("endpoint", &string(&health.endpoint))
                    .raw("health", &health.error.is_empty().to_string())
                    .raw("took", &string(&health.took))
                    .text("error", &health.error)
                    .end()
            })
            .collect();
        self.rows(
            &["endpoint", "health", "took", "error"],
            || {
                endpoints
                    .iter()
                    .map(|health| {
                        vec![
                            health.endpoint.clone(),
                            health.error.is_empty().to_string(),
                            health.took.clone(),
                            health.error.clone(),
                        ]
                    })
                    .collect()
            },
            || fields::endpoint_health(endpoints),
            || array(&objects),
            None,
        )
    }

    /// Endpoint status.
    pub fn endpoint_status(&self, endpoints: &[(String, pb::StatusResponse)]) -> Shown {
        let header = [
            "endpoint",
            "ID",
            "version",
            "storage version",
            "db size",
            "in use",
            "percentage not in use",
            "quota",
            "is leader",
            "is learner",
            "raft term",
            "raft index",
            "raft applied index",
            "errors",
            "downgrade target version",
            "downgrade enabled",
        ];
        self.rows(
            &header,
            || simple::status_rows(endpoints),
            || fields::endpoint_status(self, endpoints),
            || json_list("Status", endpoints, json::status),
            None,
        )
    }

    /// Endpoint hashkv.
    pub fn endpoint_hash_kv(&self, endpoints: &[(String, pb::HashKvResponse)]) -> Shown {
        self.rows(
            &["endpoint", "hash", "hash revision"],
            || {
                endpoints
                    .iter()
                    .map(|(endpoint, answer)| {
                        vec![
                            endpoint.clone(),
                            answer.hash.to_string(),
                            answer.hash_revision.to_string(),
                        ]
                    })
                    .collect()
            },
            || fields::endpoint_hash_kv(self, endpoints),
            || json_list("HashKV", endpoints, json::hash_kv),
            None,
        )
    }

    /// Alarm list and disarm.
    pub fn alarms(&self, answer: &pb::AlarmResponse) -> Shown {
        self.show(
            answer,
            || simple::alarms(answer),
            || fields::alarms(self, answer),
            || json::alarms(answer),
        )
    }

    /// An answer that is a sentence, or its header.
    pub fn sentence(&self, sentence: &str, answer: &impl HeaderOnly) -> Shown {
        self.show(
            answer,
            || format!("{sentence}\n").into_bytes(),
            || fields::header(self, answer.header()),
            || json::response(answer.header()).end(),
        )
    }

    /// Move-leader and downgrade, which have a sentence, JSON and protobuf only.
    pub fn plain(&self, sentence: &str, answer: &impl Message, json: String) -> Shown {
        match self.format {
            Format::Simple => say(sentence),
            Format::Json => say(json),
            Format::Protobuf => write_stdout(&answer.encode_to_vec()),
            Format::Fields | Format::Table => return self.unsupported(),
        }
        Ok(())
    }

    /// Role get.
    pub fn role(&self, name: &str, answer: &pb::AuthRoleGetResponse) -> Shown {
        self.show(
            answer,
            || simple::role(name, answer),
            || fields::role(self, answer),
            || json::role(answer),
        )
    }

    /// Role list and user list.
    pub fn names(
        &self,
        name: &'static str,
        names: &[String],
        header: Option<&pb::ResponseHeader>,
        answer: &impl Message,
    ) -> Shown {
        // etcdctl shows users in lines only.
        if self.format == Format::Fields && name == "users" {
            return self.unsupported();
        }
        let texts: Vec<_> = names.iter().map(|name| string(name)).collect();
        self.show(
            answer,
            || simple::lines(names),
            || fields::roles(self, header, names),
            || json::response(header).list(name, &texts).end(),
        )
    }

    /// User get.
    pub fn user(&self, name: &str, answer: &pb::AuthUserGetResponse) -> Shown {
        if self.format == Format::Fields {
            return self.unsupported();
        }
        let texts: Vec<_> = answer.roles.iter().map(|role| string(role)).collect();
        self.show(
            answer,
            || {
                let roles: String = answer.roles.iter().map(|role| format!(" {role}")).collect();
                format!("User: {name}\nRoles:{roles}\n").into_bytes()
            },
            String::new,
            || {
                json::response(answer.header.as_ref())
                    .list("roles", &texts)
                    .end()
            },
        )
    }

    /// Auth status.
    pub fn auth_status(&self, answer: &pb::AuthStatusResponse) -> Shown {
        let sentence = format!(
            "Authentication Status: {}\nAuthRevision: {}",
            answer.enabled, answer.auth_revision
        );
        let json = json::response(answer.header.as_ref())
            .boolean("enabled", answer.enabled)
            .number("authRevision", answer.auth_revision)
            .end();
        self.plain(&sentence, answer, json)
    }
}

fn json_list<T>(name: &str, endpoints: &[(String, T)], json: fn(&T) -> String) -> String {
    let objects: Vec<_> = endpoints
        .iter()
        .map(|(endpoint, answer)| {
            Object::new()
                .raw("Endpoint", &string(endpoint))
                .raw(name, &json(answer))
                .end()
        })
        .collect();
    match objects.as_slice() {
        [] => "null".to_owned(),
        objects => array(objects),
    }
}
