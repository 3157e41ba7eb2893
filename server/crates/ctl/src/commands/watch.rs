//! watch.

use std::process::Stdio;

use metastore_proto::etcdserverpb as pb;
use pb::watch_request::RequestUnion;
use tokio::io::AsyncBufReadExt;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::{Command, Context, command};
use crate::client::Client;
use crate::failover::Watch;
use crate::failure::{ExitCode, Failure};
use crate::flags::{Arguments, FlagSpec, Kind, flag};
use crate::keys;
use crate::output::Printer;
use crate::output::decode_pair;
use crate::output::simple::event_type;
use crate::quote::{quote, split_arguments};
use crate::terminal::say;

const FLAGS: &[FlagSpec] = &[
    flag("interactive", Kind::Boolean, "false", "Interactive mode").short('i'),
    flag(
        "prefix",
        Kind::Boolean,
        "false",
        "Watch on a prefix if prefix is set",
    ),
    flag("rev", Kind::Signed, "0", "Revision to start watching"),
    flag(
        "prev-kv",
        Kind::Boolean,
        "false",
        "get the previous key-value pair before the event happens",
    ),
    flag(
        "progress-notify",
        Kind::Boolean,
        "false",
        "get periodic watch progress notification from server",
    ),
];

pub(super) const COMMANDS: &[Command] = &[command(
    &["watch"],
    "[options] [key or prefix] [range_end] [--] [exec-command arg1 arg2 ...]",
    "Watches events stream on keys or prefixes",
    FLAGS,
    |context| Box::pin(watch(context)),
)];

const BAD_ARGUMENT_COUNT: &str = "bad number of arguments";

/// What is watched, and what is run for each event.
#[derive(Debug, PartialEq)]
struct Wanted {
    create: pb::WatchCreateRequest,
    exec: Vec<String>,
}

/// Key and end that the environment gives.
#[derive(Clone, Default)]
struct FromEnvironment {
    key: String,
    range_end: String,
}

impl FromEnvironment {
    fn read() -> Result<Self, Failure> {
        let read = |name| std::env::var(name).unwrap_or_default();
        let found = Self {
            key: read("ETCDCTL_WATCH_KEY"),
            range_end: read("ETCDCTL_WATCH_RANGE_END"),
        };
        if found.key.is_empty() && !found.range_end.is_empty() {
            return Err(Failure::arguments(format!(
                "ETCDCTL_WATCH_KEY is empty but got ETCDCTL_WATCH_RANGE_END={:?}",
                found.range_end
            )));
        }
        Ok(found)
    }
}

/// Understands the arguments of a watch, also of one in interactive mode.
fn parse(arguments: &Arguments, environment: &FromEnvironment) -> Result<Wanted, Failure> {
    let (watched, exec) = match arguments.separator {
        Some(position) => arguments.positional.split_at(position),
        None => (arguments.positional.as_slice(), [].as_slice()),
    };
    if arguments.separator.is_some() && exec.is_empty() {
        return Err(Failure::arguments(
            "bad number of arguments (found separator --, but no commands)",
        ));
    }
    let watched: Vec<String> = match environment.key.as_str() {
        "" => watched.to_vec(),
        _ if !watched.is_empty() => {
            return Err(Failure::arguments(
                "bad number of arguments (found conflicting environment key)",
            ));
        }
        key => [key, &environment.range_end]
            .into_iter()
            .filter(|part| !part.is_empty())
            .map(str::to_owned)
            .collect(),
    };
    let (key, end) = match watched.as_slice() {
        [] => return Err(Failure::arguments(BAD_ARGUMENT_COUNT)),
        [key, end] => (key, Some(end)),
        [key, ..] => (key, None),
    };
    let prefix = arguments.boolean("prefix");
    if prefix && end.is_some() {
        return Err(Failure::arguments(
            "`range_end` and `--prefix` are mutually exclusive",
        ));
    }
    let (key, range_end) =
        keys::range(key.as_bytes(), end.map(|end| end.as_bytes()), prefix, false);
    Ok(Wanted {
        create: pb::WatchCreateRequest {
            key: key.into(),
            range_end: range_end.into(),
            start_revision: arguments.number("rev"),
            progress_notify: arguments.boolean("progress-notify"),
            prev_kv: arguments.boolean("prev-kv"),
            ..Default::default()
        },
        exec: exec.to_vec(),
    })
}

/// The stream of watches of one process: requests in, responses out.
struct Watches {
    requests: mpsc::UnboundedSender<pb::WatchRequest>,
    answers: mpsc::Receiver<Result<pb::WatchResponse, tonic::Status>>,
}

/// Responses that may wait to be shown.
const ANSWERS_WAITING_MAX: usize = 16;

impl Watches {
    /// Opens the stream. A server may answer nothing before the first request, so nobody waits here.
    fn open(client: &Client) -> Self {
        let (requests, receiver) = mpsc::unbounded_channel();
        let (sender, answers) = mpsc::channel(ANSWERS_WAITING_MAX);
        let mut watch = client.watch();
        tokio::spawn(async move {
            let stream = UnboundedReceiverStream::new(receiver);
            let mut stream = match watch.watch(stream).await {
                Ok(answer) => answer.into_inner(),
                Err(status) => {
                    // Whoever would read it has ended.
                    let _ = sender.send(Err(status)).await;
                    return;
                }
            };
            while let Some(answer) = stream.next().await {
                if sender.send(answer).await.is_err() {
                    return;
                }
            }
        });
        Self { requests, answers }
    }
}

fn request(union: RequestUnion) -> pb::WatchRequest {
    pb::WatchRequest {
        request_union: Some(union),
    }
}

async fn watch(context: Context) -> Result<(), Failure> {
    let environment = FromEnvironment::read()?;
    let interactive = context.arguments.boolean("interactive");
    let first = match interactive {
        true => None,
        false => Some(parse(&context.arguments, &environment)?),
    };
    let client = context.client().await?;
    let Some(wanted) = first else {
        return interact(&context, Watches::open(&client), &environment).await;
    };
    let exec_of = [wanted.exec];
    let mut watch = Watch::new(&client, wanted.create);
    while let Some(answer) = watch.next().await? {
        let ended = answer.canceled;
        show(&context.printer, &answer, &exec_of).await?;
        if ended {
            break;
        }
    }
    Err(Failure::new(
        ExitCode::Interrupted,
        "watch is canceled by the server",
    ))
}

/// Reads `watch …` and `progress` from the standard input while events arrive.
async fn interact(
    context: &Context,
    mut watches: Watches,
    environment: &FromEnvironment,
) -> Result<(), Failure> {
    let mut exec_of = Vec::new();
    let mut lines = tokio::io::BufReader::new(tokio::io::stdin()).lines();
    loop {
        let line = tokio::select! {
            answer = watches.answers.recv() => {
                match answer {
                    Some(answer) => show(&context.printer, &answer?, &exec_of).await?,
                    None => {
                        return Err(Failure::new(
                            ExitCode::Interrupted,
                            "watch is canceled by the server",
                        ));
                    }
                }
                continue;
            }
            line = lines.next_line() => line,
        };
        let Ok(Some(line)) = line else {
            return Err(Failure::new(
                ExitCode::InvalidInput,
                "error reading watch request line: EOF",
            ));
        };
        match understand(&line, environment)? {
            Asked::Watch(wanted) => {
                let create = request(RequestUnion::CreateRequest(wanted.create));
                exec_of.push(wanted.exec);
                // The stream's end is noticed when its answers end.
                let _ = watches.requests.send(create);
            }
            Asked::Progress => {
                let progress = RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
                let _ = watches.requests.send(request(progress));
            }
            Asked::Nothing(complaint) => eprintln!("{complaint}"),
        }
    }
}

enum Asked {
    Watch(Wanted),
    Progress,
    Nothing(String),
}

fn understand(line: &str, environment: &FromEnvironment) -> Result<Asked, Failure> {
    let words = split_arguments(line)?;
    match words.first().map(String::as_str) {
        None => Ok(Asked::Nothing(format!(
            "Invalid command: {line} (watch and progress supported)"
        ))),
        Some("progress") => Ok(Asked::Progress),
        Some("watch") if words.len() < 2 && environment.key.is_empty() => Ok(Asked::Nothing(
            format!("Invalid command {line} (command type or key is not provided)"),
        )),
        Some("watch") => {
            let flags: Vec<_> = FLAGS.iter().collect();
            let arguments = Arguments::parse(&words[1..], &flags)
                .map_err(|failure| Failure::arguments(failure.message))?;
            Ok(Asked::Watch(parse(&arguments, environment)?))
        }
        Some(_) => Ok(Asked::Nothing(format!(
            "Invalid command {line} (only support watch)"
        ))),
    }
}

/// Shows a response and runs what is to be run for its events.
async fn show(
    printer: &Printer,
    answer: &pb::WatchResponse,
    exec_of: &[Vec<String>],
) -> Result<(), Failure> {
    if answer.created && !answer.canceled {
        // clientv3 keeps this answer to itself.
        return Ok(());
    }
    if answer.canceled {
        let reason = match (answer.compact_revision, answer.cancel_reason.as_str()) {
            (0, "") => "etcdserver: mvcc: required revision is a future revision",
            (0, reason) => reason,
            _ => "etcdserver: mvcc: required revision has been compacted",
        };
        eprintln!("watch was canceled ({reason})");
    } else if answer.events.is_empty() {
        let revision = answer.header.as_ref().map_or(0, |header| header.revision);
        say(format!("progress notify: {revision}"));
    }
    printer.watch(answer)?;
    // The server numbers watches from 0 on, in the order of their requests.
    let exec = usize::try_from(answer.watch_id)
        .ok()
        .and_then(|position| exec_of.get(position));
    if let Some([program, arguments @ ..]) = exec.map(Vec::as_slice) {
        for event in &answer.events {
            run(program, arguments, answer, event).await?;
        }
    }
    Ok(())
}

async fn run(
    program: &str,
    arguments: &[String],
    answer: &pb::WatchResponse,
    event: &metastore_proto::mvccpb::Event,
) -> Result<(), Failure> {
    let pair = event.kv.as_ref().map(decode_pair).unwrap_or_default();
    let revision = answer.header.as_ref().map_or(0, |header| header.revision);
    let kind = event_type(event.r#type);
    let status = tokio::process::Command::new(program)
        .args(arguments)
        .env("ETCD_WATCH_REVISION", revision.to_string())
        .env("ETCD_WATCH_EVENT_TYPE", quote(kind.as_bytes()))
        .env("ETCD_WATCH_KEY", quote(&pair.key))
        .env("ETCD_WATCH_VALUE", quote(&pair.value))
        .stdin(Stdio::null())
        .status()
        .await;
    let problem = match status {
        Ok(status) if status.success() => return Ok(()),
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    eprintln!(
        "command [{program} {}] error ({problem})",
        arguments.join(" ")
    );
    Err(Failure::silent(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(line: &str, key: &str) -> Result<Wanted, Failure> {
        let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
        let arguments = Arguments::parse(&words, &FLAGS.iter().collect::<Vec<_>>())?;
        let environment = FromEnvironment {
            key: key.to_owned(),
            range_end: String::new(),
        };
        parse(&arguments, &environment)
    }

    #[test]
    fn keys_and_commands_are_told_apart() {
        let found = wanted("foo bar --rev 7 -- echo -n x", "").expect("valid");
        assert_eq!(found.create.key, "foo");
        assert_eq!(found.create.range_end, "bar");
        assert_eq!(found.create.start_revision, 7);
        assert_eq!(found.exec, ["echo", "-n", "x"]);
        let found = wanted("-- echo", "foo").expect("valid");
        assert_eq!((&*found.create.key, found.exec.len()), (&b"foo"[..], 1));
        assert!(wanted("foo", "other").is_err());
        assert!(wanted("foo --", "").is_err());
        assert!(wanted("--prefix", "").is_err());
        assert!(wanted("a b --prefix", "").is_err());
    }
}
