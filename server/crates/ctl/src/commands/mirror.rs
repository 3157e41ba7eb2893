//! make-mirror: copies a range of keys into another cluster and follows its changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use metastore_proto::EncodedKeyValue;
use metastore_proto::etcdserverpb as pb;
use pb::request_op::Request;

use super::{Command, Context, command};
use crate::client::{Client, Credentials, TlsOptions};
use crate::failover::Watch;
use crate::failure::Failure;
use crate::flags::{Kind, flag};
use crate::keys::prefix_end;
use crate::output::decode_pair;
use crate::terminal::say;

/// Keys that one request reads; clientv3's mirror reads as many.
const BATCH_KEYS: i64 = 1000;
/// How often the number of copied keys is shown.
const REPORT_INTERVAL: Duration = Duration::from_secs(30);

pub(super) const COMMANDS: &[Command] = &[command(
    &["make-mirror"],
    "[options] <destination>",
    "Makes a mirror at the destination cluster",
    &[
        flag("prefix", Kind::Text, "", "Key-value prefix to mirror"),
        flag(
            "rev",
            Kind::Signed,
            "0",
            "Specify the kv revision to start to mirror",
        ),
        flag(
            "max-txn-ops",
            Kind::Unsigned,
            "128",
            "Maximum number of operations permitted in a transaction during syncing updates.",
        ),
        flag(
            "dest-prefix",
            Kind::Text,
            "",
            "destination prefix to mirror a prefix to a different prefix in the destination cluster",
        ),
        flag(
            "no-dest-prefix",
            Kind::Boolean,
            "false",
            "mirror key-values to the root of the destination cluster",
        ),
        flag(
            "dest-cert",
            Kind::Text,
            "",
            "Identify secure client using this TLS certificate file for the destination cluster",
        ),
        flag(
            "dest-key",
            Kind::Text,
            "",
            "Identify secure client using this TLS key file",
        ),
        flag(
            "dest-cacert",
            Kind::Text,
            "",
            "Verify certificates of TLS enabled secure servers using this CA bundle",
        ),
        flag(
            "dest-insecure-transport",
            Kind::Boolean,
            "true",
            "Disable transport security for client connections",
        ),
        flag(
            "dest-user",
            Kind::Text,
            "",
            "Destination username[:password] for authentication (prompt if password is not supplied)",
        ),
        flag(
            "dest-password",
            Kind::Text,
            "",
            "Destination password for authentication (if this option is used, --user option shouldn't include password)",
        ),
    ],
    |context| Box::pin(make_mirror(context)),
)];

/// Where keys go.
struct Mirror {
    destination: Client,
    prefix: String,
    destination_prefix: String,
    operations_max: usize,
    copied: Arc<AtomicU64>,
}

async fn make_mirror(context: Context) -> Result<(), Failure> {
    let [destination] = context.arguments.positional.as_slice() else {
        return Err(Failure::arguments(
            "make-mirror takes one destination argument",
        ));
    };
    let text = |name: &str| context.arguments.text(name).to_owned();
    let no_prefix = context.arguments.boolean("no-dest-prefix");
    if no_prefix && !text("dest-prefix").is_empty() {
        return Err(Failure::arguments(
            "`--dest-prefix` and `--no-dest-prefix` cannot be set at the same time, choose one",
        ));
    }
    let tls = TlsOptions {
        ca_file: text("dest-cacert"),
        cert_file: text("dest-cert"),
        key_file: text("dest-key"),
        skip_verify: false,
        server_name: String::new(),
        insecure_transport: context.arguments.boolean("dest-insecure-transport"),
    };
    let credentials = Credentials::from_flags(&text("dest-user"), &text("dest-password"), "")?;
    let options = context.options.with(destination, tls, credentials);
    let source = context.client().await?;
    let prefix = text("prefix");
    let mirror = Mirror {
        destination: Client::connect(&options).await?,
        destination_prefix: match (no_prefix, text("dest-prefix").as_str()) {
            (true, _) => String::new(),
            (_, "") => prefix.clone(),
            (_, other) => other.to_owned(),
        },
        prefix,
        operations_max: usize::try_from(context.arguments.number("max-txn-ops"))
            .unwrap_or(1)
            .max(1),
        copied: Arc::default(),
    };
    let copied = Arc::clone(&mirror.copied);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(REPORT_INTERVAL).await;
            say(copied.load(Ordering::Relaxed).to_string());
        }
    });
    let start = match context.arguments.number("rev") {
        // A start that was named means that the keys are there already.
        revision if revision > 1 => revision,
        _ => mirror.copy_all(&source).await? + 1,
    };
    mirror.follow(&source, start).await
}

impl Mirror {
    /// Key and end of everything that is mirrored.
    fn range(&self) -> (Bytes, Bytes) {
        match self.prefix.as_str() {
            "" => (Bytes::from_static(b"\0"), Bytes::from_static(b"\0")),
            prefix => (
                prefix.to_owned().into(),
                prefix_end(prefix.as_bytes()).into(),
            ),
        }
    }

    fn destination_key(&self, key: &Bytes) -> Bytes {
        match key.strip_prefix(self.prefix.as_bytes()) {
            Some(rest) => [self.destination_prefix.as_bytes(), rest].concat().into(),
            None => key.clone(),
        }
    }

    /// Copies every key as of one revision, which it returns.
    async fn copy_all(&self, source: &Client) -> Result<i64, Failure> {
        let (mut key, range_end) = self.range();
        let mut revision = 0;
        loop {
            let request = pb::RangeRequest {
                key: key.clone(),
                range_end: range_end.clone(),
                limit: BATCH_KEYS,
                revision,
                ..Default::default()
            };
            let answer = source.kv().range(request).await?.into_inner();
            if revision == 0 {
                revision = answer.header.as_ref().map_or(0, |header| header.revision);
            }
            for pair in &answer.kvs {
                self.put(pair).await?;
            }
            let last = answer.kvs.last().map(decode_pair);
            match (answer.more, last) {
                (true, Some(last)) => key = [&last.key[..], b"\0"].concat().into(),
                _ => return Ok(revision),
            }
        }
    }

    async fn put(&self, pair: &EncodedKeyValue) -> Result<(), Failure> {
        let pair = decode_pair(pair);
        let request = pb::PutRequest {
            key: self.destination_key(&pair.key),
            value: pair.value,
            ..Default::default()
        };
        self.destination.kv().put(request).await?;
        self.copied.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Follows the changes from a revision on, one transaction for each revision.
    async fn follow(&self, source: &Client, start_revision: i64) -> Result<(), Failure> {
        let (key, range_end) = self.range();
        let create = pb::WatchCreateRequest {
            key,
            range_end,
            start_revision,
            ..Default::default()
        };
        let mut answers = Watch::new(source, create);
        while let Some(answer) = answers.next().await? {
            if answer.compact_revision != 0 {
                return Err(Failure::error(
                    "etcdserver: mvcc: required revision has been compacted",
                ));
            }
            let mut operations = Vec::new();
            let mut last_revision = 0;
            for event in &answer.events {
                let pair = event.kv.as_ref().map(decode_pair).unwrap_or_default();
                let next = last_revision != 0 && pair.mod_revision > last_revision;
                if next || operations.len() == self.operations_max {
                    self.commit(&mut operations).await?;
                }
                last_revision = pair.mod_revision;
                let key = self.destination_key(&pair.key);
                let request = match event.r#type {
                    0 => Request::RequestPut(pb::PutRequest {
                        key,
                        value: pair.value,
                        ..Default::default()
                    }),
                    _ => Request::RequestDeleteRange(pb::DeleteRangeRequest {
                        key,
                        ..Default::default()
                    }),
                };
                operations.push(pb::RequestOp {
                    request: Some(request),
                });
                self.copied.fetch_add(1, Ordering::Relaxed);
            }
            self.commit(&mut operations).await?;
        }
        Err(Failure::error("the source ended the watch"))
    }

    async fn commit(&self, operations: &mut Vec<pb::RequestOp>) -> Result<(), Failure> {
        if operations.is_empty() {
            return Ok(());
        }
        let request = pb::TxnRequest {
            success: std::mem::take(operations),
            ..Default::default()
        };
        self.destination.kv().txn(request).await?;
        Ok(())
    }
}
