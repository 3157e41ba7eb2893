//! get, put, del, compaction.

use std::time::Duration;

use bytes::Bytes;
use metastore_proto::etcdserverpb as pb;
use tokio_stream::StreamExt;

use super::{Command, Context, command};
use crate::client::Client;
use crate::failure::{ExitCode, Failure};
use crate::flags::{Arguments, FlagSpec, Kind, flag};
use crate::keys;
use crate::output::Format;
use crate::quote::quote;
use crate::terminal::{argument_or_input, say};

/// Time to interrupt a deletion of a range that may be a mistake.
const RANGE_DELETION_DELAY: Duration = Duration::from_secs(2);

pub(super) const GET_FLAGS: &[FlagSpec] = &[
    flag(
        "consistency",
        Kind::Text,
        "l",
        "Linearizable(l) or Serializable(s)",
    ),
    flag(
        "order",
        Kind::Text,
        "",
        "Order of results; ASCEND or DESCEND (ASCEND by default)",
    ),
    flag(
        "sort-by",
        Kind::Text,
        "",
        "Sort target; CREATE, KEY, MODIFY, VALUE, or VERSION",
    ),
    flag("limit", Kind::Signed, "0", "Maximum number of results"),
    flag(
        "prefix",
        Kind::Boolean,
        "false",
        "Get keys with matching prefix",
    ),
    flag(
        "from-key",
        Kind::Boolean,
        "false",
        "Get keys that are greater than or equal to the given key using byte compare",
    ),
    flag("rev", Kind::Signed, "0", "Specify the kv revision"),
    flag("keys-only", Kind::Boolean, "false", "Get only the keys"),
    flag("count-only", Kind::Boolean, "false", "Get only the count"),
    flag(
        "print-value-only",
        Kind::Boolean,
        "false",
        "Only write values when using the \"simple\" output format",
    ),
    flag(
        "min-create-rev",
        Kind::Signed,
        "0",
        "Minimum create revision",
    ),
    flag(
        "max-create-rev",
        Kind::Signed,
        "0",
        "Maximum create revision",
    ),
    flag(
        "min-mod-rev",
        Kind::Signed,
        "0",
        "Minimum modification revision",
    ),
    flag(
        "max-mod-rev",
        Kind::Signed,
        "0",
        "Maximum modification revision",
    ),
    flag("stream", Kind::Boolean, "false", "Use the RangeStream RPC"),
];

pub(super) const PUT_FLAGS: &[FlagSpec] = &[
    flag(
        "lease",
        Kind::Text,
        "0",
        "lease ID (in hexadecimal) to attach to the key",
    ),
    flag(
        "prev-kv",
        Kind::Boolean,
        "false",
        "return the previous key-value pair before modification",
    ),
    flag(
        "ignore-value",
        Kind::Boolean,
        "false",
        "updates the key using its current value",
    ),
    flag(
        "ignore-lease",
        Kind::Boolean,
        "false",
        "updates the key using its current lease",
    ),
];

pub(super) const DEL_FLAGS: &[FlagSpec] = &[
    flag(
        "prefix",
        Kind::Boolean,
        "false",
        "delete keys with matching prefix",
    ),
    flag(
        "prev-kv",
        Kind::Boolean,
        "false",
        "return deleted key-value pairs",
    ),
    flag(
        "from-key",
        Kind::Boolean,
        "false",
        "delete keys that are greater than or equal to the given key using byte compare",
    ),
    flag("range", Kind::Boolean, "false", "delete range of keys"),
];

pub(super) const COMMANDS: &[Command] = &[
    command(
        &["get"],
        "[options] <key> [range_end]",
        "Gets the key or a range of keys",
        GET_FLAGS,
        |context| Box::pin(get(context)),
    ),
    command(
        &["put"],
        "[options] <key> <value> (<value> can also be given from stdin)",
        "Puts the given key into the store",
        PUT_FLAGS,
        |context| Box::pin(put(context)),
    ),
    command(
        &["del"],
        "[options] <key> [range_end]",
        "Removes the specified key or range of keys [key, range_end)",
        DEL_FLAGS,
        |context| Box::pin(del(context)),
    ),
    command(
        &["compaction"],
        "[options] <revision>",
        "Compacts the event history",
        &[flag(
            "physical",
            Kind::Boolean,
            "false",
            "'true' to wait for compaction to physically remove all old revisions",
        )],
        |context| Box::pin(compaction(context)),
    ),
];

/// Whether `s` was asked for.
///
/// # Errors
/// It is neither `l` nor `s`.
pub(super) fn is_serializable(consistency: &str) -> Result<bool, Failure> {
    match consistency {
        "s" => Ok(true),
        "l" => Ok(false),
        other => Err(Failure::new(
            ExitCode::BadFeature,
            format!("unknown consistency flag {other:?}"),
        )),
    }
}

const BOTH_PREFIX_AND_FROM_KEY: &str =
    "`--prefix` and `--from-key` cannot be set at the same time, choose one";
const TOO_MANY_FOR_PREFIX: &str =
    "too many arguments, only accept one argument when `--prefix` or `--from-key` is set";

/// The request of a get, also of one in a transaction.
pub(super) fn get_request(arguments: &Arguments) -> Result<pb::RangeRequest, Failure> {
    let (prefix, from_key) = (arguments.boolean("prefix"), arguments.boolean("from-key"));
    let Some(key) = arguments.positional.first() else {
        return Err(Failure::arguments(
            "get command needs one argument as key and an optional argument as range_end",
        ));
    };
    if prefix && from_key {
        return Err(Failure::arguments(BOTH_PREFIX_AND_FROM_KEY));
    }
    if arguments.boolean("keys-only") && arguments.boolean("count-only") {
        return Err(Failure::arguments(
            "`--keys-only` and `--count-only` cannot be set at the same time, choose one",
        ));
    }
    let serializable = is_serializable(arguments.text("consistency"))?;
    let end = arguments.positional.get(1);
    if end.is_some() && (prefix || from_key) {
        return Err(Failure::arguments(TOO_MANY_FOR_PREFIX));
    }
    let (key, range_end) = keys::range(
        key.as_bytes(),
        end.map(|end| end.as_bytes()),
        prefix,
        from_key,
    );
    let (sort_target, sort_order) = sorting(arguments.text("sort-by"), arguments.text("order"))?;
    let bound = |name: &str| arguments.number(name).max(0);
    for (low, high) in [
        ("min-create-rev", "max-create-rev"),
        ("min-mod-rev", "max-mod-rev"),
    ] {
        if bound(high) > 0 && bound(low) > bound(high) {
            return Err(Failure::new(
                ExitCode::BadFeature,
                format!("{low}(={}) > {high}(={})", bound(low), bound(high)),
            ));
        }
    }
    Ok(pb::RangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        limit: arguments.number("limit"),
        revision: bound("rev"),
        sort_order,
        sort_target,
        serializable,
        keys_only: arguments.boolean("keys-only"),
        count_only: arguments.boolean("count-only"),
        min_mod_revision: bound("min-mod-rev"),
        max_mod_revision: bound("max-mod-rev"),
        min_create_revision: bound("min-create-rev"),
        max_create_revision: bound("max-create-rev"),
    })
}

/// Numbers of target and order.
fn sorting(target: &str, order: &str) -> Result<(i32, i32), Failure> {
    use pb::range_request::{SortOrder, SortTarget};
    let mut sort_order = match order.to_uppercase().as_str() {
        "" => SortOrder::None,
        "ASCEND" => SortOrder::Ascend,
        "DESCEND" => SortOrder::Descend,
        _ => {
            return Err(Failure::new(
                ExitCode::BadFeature,
                format!("bad sort order {order}"),
            ));
        }
    };
    let sort_target = match target.to_uppercase().as_str() {
        "" | "KEY" => SortTarget::Key,
        "CREATE" => SortTarget::Create,
        "MODIFY" => SortTarget::Mod,
        "VALUE" => SortTarget::Value,
        "VERSION" => SortTarget::Version,
        _ => {
            return Err(Failure::new(
                ExitCode::BadFeature,
                format!("bad sort target {target}"),
            ));
        }
    };
    // As clientv3: ascending keys are the order anyway.
    if sort_target == SortTarget::Key && sort_order == SortOrder::Ascend {
        sort_order = SortOrder::None;
    }
    Ok((sort_target as i32, sort_order as i32))
}

async fn get(mut context: Context) -> Result<(), Failure> {
    let request = get_request(&context.arguments)?;
    let client = context.client().await?;
    let answer = if context.arguments.boolean("stream") {
        get_streamed(&client, request).await?
    } else {
        client.within(client.kv().range(request)).await?
    };
    if context.arguments.boolean("count-only") && context.printer.format != Format::Fields {
        return Err(Failure::arguments(
            "--count-only is only for `--write-out=fields`",
        ));
    }
    if context.arguments.boolean("print-value-only") {
        if context.printer.format != Format::Simple {
            return Err(Failure::arguments(
                "print-value-only is only for `--write-out=simple`",
            ));
        }
        context.printer.value_only = true;
    }
    context.printer.range(&answer)
}

/// Puts the chunks of a RangeStream together.
async fn get_streamed(
    client: &Client,
    request: pb::RangeRequest,
) -> Result<pb::RangeResponse, Failure> {
    let collect = async {
        let mut chunks = client.kv().range_stream(request).await?.into_inner();
        let mut whole = pb::RangeResponse::default();
        while let Some(chunk) = chunks.next().await {
            let Some(chunk) = chunk?.range_response else {
                continue;
            };
            whole.kvs.extend(chunk.kvs);
            whole.header = chunk.header.or(whole.header);
            whole.more = chunk.more;
            whole.count = chunk.count;
        }
        Ok(tonic::Response::new(whole))
    };
    client.within(collect).await
}

/// The request of a put, also of one in a transaction.
pub(super) fn put_request(arguments: &Arguments) -> Result<pb::PutRequest, Failure> {
    const NEEDED: &str = "put command needs 1 argument and input from stdin or 2 arguments";
    let Some(key) = arguments.positional.first() else {
        return Err(Failure::arguments(NEEDED));
    };
    let ignore_value = arguments.boolean("ignore-value");
    if ignore_value && arguments.positional.len() > 1 {
        return Err(Failure::arguments(
            "put command needs only 1 argument when 'ignore-value' is set",
        ));
    }
    let value = match ignore_value {
        true => Vec::new(),
        false => {
            argument_or_input(&arguments.positional, 1).map_err(|_| Failure::arguments(NEEDED))?
        }
    };
    let lease = i64::from_str_radix(arguments.text("lease"), 16).map_err(|error| {
        Failure::arguments(format!("bad lease ID ({error}), expecting ID in Hex"))
    })?;
    Ok(pb::PutRequest {
        key: Bytes::from(key.clone()),
        value: value.into(),
        lease,
        prev_kv: arguments.boolean("prev-kv"),
        ignore_value,
        ignore_lease: arguments.boolean("ignore-lease"),
    })
}

async fn put(context: Context) -> Result<(), Failure> {
    let request = put_request(&context.arguments)?;
    let client = context.client().await?;
    let answer = client.within(client.kv().put(request)).await?;
    context.printer.put(&answer)
}

/// The request of a del, also of one in a transaction.
pub(super) fn del_request(arguments: &Arguments) -> Result<pb::DeleteRangeRequest, Failure> {
    let (prefix, from_key) = (arguments.boolean("prefix"), arguments.boolean("from-key"));
    let (key, end) = match arguments.positional.as_slice() {
        [key] => (key, None),
        [key, end] => (key, Some(end)),
        _ => {
            return Err(Failure::arguments(
                "del command needs one argument as key and an optional argument as range_end",
            ));
        }
    };
    if prefix && from_key {
        return Err(Failure::arguments(BOTH_PREFIX_AND_FROM_KEY));
    }
    if end.is_some() && (prefix || from_key) {
        return Err(Failure::arguments(TOO_MANY_FOR_PREFIX));
    }
    let (key, range_end) = keys::range(
        key.as_bytes(),
        end.map(|end| end.as_bytes()),
        prefix,
        from_key,
    );
    Ok(pb::DeleteRangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        prev_kv: arguments.boolean("prev-kv"),
    })
}

async fn del(context: Context) -> Result<(), Failure> {
    let request = del_request(&context.arguments)?;
    if let [key, end] = context.arguments.positional.as_slice()
        && !context.arguments.boolean("range")
    {
        eprintln!(
            "Warning: Keys between {} and {} will be deleted. Please interrupt the command within next 2 seconds to cancel. You can provide `--range` flag to avoid the delay.",
            quote(key.as_bytes()),
            quote(end.as_bytes())
        );
        tokio::time::sleep(RANGE_DELETION_DELAY).await;
    }
    let client = context.client().await?;
    let answer = client.within(client.kv().delete_range(request)).await?;
    context.printer.delete_range(&answer)
}

async fn compaction(context: Context) -> Result<(), Failure> {
    if context.argument_count() != 1 {
        return Err(Failure::arguments("compaction command needs 1 argument"));
    }
    let revision: i64 = context
        .argument(0)
        .parse()
        .map_err(|error| Failure::error(format!("{:?}: {error}", context.argument(0))))?;
    let client = context.client().await?;
    let request = pb::CompactionRequest {
        revision,
        physical: context.arguments.boolean("physical"),
    };
    client.within(client.kv().compact(request)).await?;
    say(format!("compacted revision {revision}"));
    Ok(())
}
