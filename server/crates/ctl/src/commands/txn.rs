//! txn: a transaction from the standard input.

use std::io::BufRead;

use metastore_proto::etcdserverpb as pb;
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::request_op::Request;

use super::key_value::{DEL_FLAGS, GET_FLAGS, PUT_FLAGS, del_request, get_request, put_request};
use super::{Command, Context, command};
use crate::failure::{ExitCode, Failure};
use crate::flags::{Arguments, FlagSpec, Kind, flag};
use crate::quote::{split_arguments, unquote};
use crate::terminal::say;

pub(super) const COMMANDS: &[Command] = &[command(
    &["txn"],
    "[options]",
    "Txn processes all the requests in one transaction",
    &[flag(
        "interactive",
        Kind::Boolean,
        "false",
        "Input transaction in interactive mode",
    )
    .short('i')],
    |context| Box::pin(txn(context)),
)];

async fn txn(context: Context) -> Result<(), Failure> {
    if context.argument_count() != 0 {
        return Err(Failure::arguments("txn command does not accept argument"));
    }
    let interactive = context.arguments.boolean("interactive");
    let client = context.client().await?;
    let request = tokio::task::spawn_blocking(move || read_txn(interactive))
        .await
        .map_err(|error| Failure::error(error.to_string()))??;
    let answer = client.kv().txn(request).await?.into_inner();
    context.printer.txn(&answer)
}

fn read_txn(interactive: bool) -> Result<pb::TxnRequest, Failure> {
    let mut input = std::io::stdin().lock();
    let mut section = |title: &str| {
        if interactive {
            say(title);
        }
        read_section(&mut input)
    };
    let compares = section("compares:")?;
    let compare = compares
        .iter()
        .map(|line| parse_compare(line))
        .collect::<Result<_, _>>()?;
    let operations = |lines: Vec<String>| {
        lines
            .iter()
            .map(|line| parse_operation(line))
            .collect::<Result<Vec<_>, _>>()
    };
    let success = operations(section("success requests (get, put, del):")?)?;
    let failure = operations(section("failure requests (get, put, del):")?)?;
    Ok(pb::TxnRequest {
        compare,
        success,
        failure,
    })
}

/// Lines up to an empty one.
fn read_section(input: &mut impl BufRead) -> Result<Vec<String>, Failure> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        let length = input
            .read_line(&mut line)
            .map_err(|error| invalid(error.to_string()))?;
        if length == 0 || !line.ends_with('\n') {
            return Err(invalid("EOF"));
        }
        match line.trim() {
            "" => return Ok(lines),
            line => lines.push(line.to_owned()),
        }
    }
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(ExitCode::InvalidInput, message)
}

fn parse_operation(line: &str) -> Result<pb::RequestOp, Failure> {
    let arguments = split_arguments(line)?;
    if arguments.len() < 2 {
        return Err(invalid(format!("invalid txn compare request: {line}")));
    }
    let wrong = |_| invalid(format!("invalid txn request: {line}"));
    let parse = |flags: &'static [FlagSpec]| {
        Arguments::parse(&arguments[1..], &flags.iter().collect::<Vec<_>>()).map_err(wrong)
    };
    let request = match arguments[0].as_str() {
        "put" => Request::RequestPut(put_request(&parse(PUT_FLAGS)?)?),
        "get" => Request::RequestRange(get_request(&parse(GET_FLAGS)?)?),
        "del" => Request::RequestDeleteRange(del_request(&parse(DEL_FLAGS)?)?),
        _ => return Err(invalid(format!("invalid txn request: {line}"))),
    };
    Ok(pb::RequestOp {
        request: Some(request),
    })
}

/// Reads `target("key") operator "value"`.
fn parse_compare(line: &str) -> Result<pb::Compare, Failure> {
    let malformed = || invalid(format!("malformed comparison: {line}"));
    let (target, rest) = line.split_once('(').ok_or_else(malformed)?;
    let (key, rest) = unquote(rest.trim_start()).ok_or_else(malformed)?;
    let rest = rest.strip_prefix(')').ok_or_else(malformed)?.trim_start();
    let (operator, rest) = rest.split_once(char::is_whitespace).ok_or_else(malformed)?;
    let (value, _) = unquote(rest.trim_start()).ok_or_else(malformed)?;
    let number = || {
        std::str::from_utf8(&value)
            .ok()
            .and_then(|text| text.parse::<i64>().ok())
            .ok_or_else(|| invalid(format!("invalid txn compare request: {line}")))
    };
    let (target, union) = match target {
        "ver" | "version" => (CompareTarget::Version, TargetUnion::Version(number()?)),
        "c" | "create" => (
            CompareTarget::Create,
            TargetUnion::CreateRevision(number()?),
        ),
        "m" | "mod" => (CompareTarget::Mod, TargetUnion::ModRevision(number()?)),
        "val" | "value" => (
            CompareTarget::Value,
            TargetUnion::Value(value.clone().into()),
        ),
        "lease" => (CompareTarget::Lease, TargetUnion::Lease(number()?)),
        target => {
            return Err(invalid(format!(
                "malformed comparison: {line} (unknown target {target})"
            )));
        }
    };
    let result = match operator {
        "=" => CompareResult::Equal,
        "!=" => CompareResult::NotEqual,
        ">" => CompareResult::Greater,
        "<" => CompareResult::Less,
        _ => return Err(malformed()),
    };
    Ok(pb::Compare {
        result: result as i32,
        target: target as i32,
        key: key.into(),
        range_end: Default::default(),
        target_union: Some(union),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparisons_are_read_as_etcdctl_reads_them() {
        let compare = parse_compare("mod(\"key1\") > \"0\"").expect("valid");
        assert_eq!(compare.key, "key1");
        assert_eq!(compare.result, CompareResult::Greater as i32);
        assert_eq!(compare.target_union, Some(TargetUnion::ModRevision(0)));
        for line in [
            "mod key > 0",
            "mod(\"k\") > 0",
            "what(\"k\") = \"1\"",
            "m(\"k\") = \"x\"",
        ] {
            assert!(parse_compare(line).is_err(), "{line}");
        }
    }
}
