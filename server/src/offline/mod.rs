//! The commands of `metastoreutl`.
//!
//! Where etcdutl has the command, flags, output and exit status are etcdutl's.

mod data_directory;
mod hash_kv;
mod migrate;
mod print;
mod progress;
mod restore;
mod status;
mod verify;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::config::Engine;
use crate::version;
use print::Format;

/// Exit status when a command failed.
const EXIT_ERROR: u8 = 1;
/// Exit status for an output format that a command does not have.
const EXIT_BAD_FEATURE: u8 = 4;
/// Exit status for arguments that contradict each other.
const EXIT_BAD_ARGUMENTS: u8 = 128;

/// Why a command ended.
#[derive(Debug)]
struct Failure {
    text: String,
    status: u8,
}

impl Failure {
    fn bad_arguments(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            status: EXIT_BAD_ARGUMENTS,
        }
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self {
            text: error.to_string(),
            status: EXIT_ERROR,
        }
    }
}

#[derive(Parser)]
#[command(
    name = "metastoreutl",
    about = "Works on snapshot files and data directories of members that do not run",
    disable_version_flag = true,
    // As in etcdutl, of an option that is given twice the last one counts.
    args_override_self = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
struct CommandLine {
    /// Output format (fields, json, simple, table)
    #[arg(short = 'w', long, global = true, default_value = "simple")]
    write_out: String,
    /// Accepted as etcdutl's; nothing here waits for a lock
    #[arg(long, global = true, hide = true)]
    timeout: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Manages snapshots
    Snapshot {
        #[command(subcommand)]
        command: SnapshotCommand,
    },
    /// Gives the space of removed rows in a data directory back to the system
    Defrag {
        /// Data directory of a member that does not run
        #[arg(long)]
        data_dir: PathBuf,
        /// Log directory, when it is not inside
        #[arg(long)]
        wal_dir: Option<PathBuf>,
    },
    /// Prints the hash of the history of a snapshot, a database of etcd, or a data directory
    Hashkv {
        /// Snapshot, database or data directory
        path: PathBuf,
        /// Maximum revision to hash (0: latest)
        #[arg(long, default_value_t = 0)]
        rev: i64,
    },
    /// Prints as JSON who a data directory or snapshot belongs to and where it stands
    Inspect {
        /// Data directory, snapshot or database
        path: PathBuf,
        /// Log directory, when it is not inside
        #[arg(long)]
        wal_dir: Option<PathBuf>,
    },
    /// Checks every checksum and every contradiction that can be found in a data directory or snapshot
    Verify {
        /// Data directory, snapshot or database
        path: PathBuf,
        /// Log directory, when it is not inside
        #[arg(long)]
        wal_dir: Option<PathBuf>,
    },
    /// Makes a data directory of MetaStore from one of etcd, or the other way round
    Migrate(MigrateArguments),
    /// Prints the version
    Version,
    /// Prints a completion script
    Completion {
        /// bash, elvish, fish, powershell or zsh
        shell: Shell,
    },
}

#[derive(Subcommand)]
enum SnapshotCommand {
    /// Prints hash, revision, total keys, total size and version of a snapshot
    Status {
        /// Snapshot file
        filename: PathBuf,
    },
    /// Makes a data directory from a snapshot
    Restore(RestoreArguments),
}

/// Who the restored member is. The defaults are etcdutl's.
#[derive(Args, Clone)]
struct MemberArguments {
    /// Name of this member
    #[arg(long, default_value = "default")]
    name: String,
    /// Members of the restored cluster
    #[arg(long, default_value = "default=http://localhost:2380")]
    initial_cluster: String,
    /// Token of the restored cluster
    #[arg(long, default_value = "etcd-cluster")]
    initial_cluster_token: String,
    /// This member's peer URLs
    #[arg(long, default_value = "http://localhost:2380")]
    initial_advertise_peer_urls: String,
    /// By how much the revision is raised
    #[arg(long, default_value_t = 0)]
    bump_revision: u64,
    /// Mark the raised revision as compacted (required with --bump-revision)
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, require_equals = true, action = clap::ArgAction::Set)]
    mark_compacted: bool,
    /// Do not compare the digest (required for a file that was copied from a data directory)
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, require_equals = true, action = clap::ArgAction::Set)]
    skip_hash_check: bool,
}

#[derive(Args)]
struct RestoreArguments {
    /// Snapshot file
    filename: PathBuf,
    #[command(flatten)]
    member: MemberArguments,
    /// Data directory to make (default: <name>.metastore)
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Log directory (default: in the data directory)
    #[arg(long)]
    wal_dir: Option<PathBuf>,
    /// Engine that the member will be started with (rocksdb, memory)
    #[arg(long, default_value = "rocksdb", value_parser = parse_engine)]
    engine: Engine,
    /// Accepted as etcdutl's; has no effect
    #[arg(long, hide = true)]
    initial_memory_map_size: Option<u64>,
}

#[derive(Args)]
struct MigrateArguments {
    /// Data directory of a stopped member of etcd
    #[arg(
        long,
        conflicts_with = "from_snapshot",
        required_unless_present = "from_snapshot"
    )]
    from_etcd: Option<PathBuf>,
    /// etcd's log directory, when it is not inside --from-etcd
    #[arg(long, requires = "from_etcd")]
    from_wal_dir: Option<PathBuf>,
    /// Snapshot from which a data directory of etcd is made
    #[arg(long)]
    from_snapshot: Option<PathBuf>,
    #[command(flatten)]
    member: MemberArguments,
    /// Data directory to make
    #[arg(long)]
    data_dir: PathBuf,
    /// Log directory (default: in the data directory)
    #[arg(long)]
    wal_dir: Option<PathBuf>,
    /// Engine that the member will be started with (rocksdb, memory)
    #[arg(long, default_value = "rocksdb", value_parser = parse_engine)]
    engine: Engine,
}

fn parse_engine(text: &str) -> Result<Engine, String> {
    match text {
        "rocksdb" => Ok(Engine::RocksDb),
        "memory" => Ok(Engine::Memory),
        _ => Err("neither rocksdb nor memory".to_owned()),
    }
}

/// Runs one command.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let line = match CommandLine::try_parse_from(arguments) {
        Ok(line) => line,
        Err(error) => {
            // A closed output leaves nobody to tell.
            let _ = error.print();
            return ExitCode::from(match error.use_stderr() {
                true => EXIT_ERROR,
                false => 0,
            });
        }
    };
    start_log();
    match execute(line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("Error: {}", failure.text);
            ExitCode::from(failure.status)
        }
    }
}

/// Progress goes to the standard error output, so that the standard output can be parsed.
fn start_log() {
    let subscriber = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .with_max_level(tracing::Level::INFO);
    // Only a second call in one process could fail.
    let _ = subscriber.try_init();
}

fn execute(line: CommandLine) -> Result<(), Failure> {
    let format = || Format::parse(&line.write_out);
    match line.command {
        Command::Snapshot {
            command: SnapshotCommand::Status { filename },
        } => status::run(&filename, format()?),
        Command::Snapshot {
            command: SnapshotCommand::Restore(arguments),
        } => restore::run(&arguments),
        Command::Defrag { data_dir, wal_dir } => defragment(&data_dir, wal_dir.as_deref()),
        Command::Hashkv { path, rev } => hash_kv::run(&path, rev, format()?),
        Command::Inspect { path, wal_dir } => data_directory::inspect(&path, wal_dir.as_deref()),
        Command::Verify { path, wal_dir } => verify::run(&path, wal_dir.as_deref()),
        Command::Migrate(arguments) => migrate::run(&arguments),
        Command::Version => {
            println!("metastoreutl version: {}", version::METASTORE_VERSION);
            println!("etcdutl version: {}", version::ETCD_VERSION);
            println!("API version: 3.7");
            Ok(())
        }
        Command::Completion { shell } => {
            let mut command = CommandLine::command();
            clap_complete::generate(shell, &mut command, "metastoreutl", &mut std::io::stdout());
            Ok(())
        }
    }
}

fn defragment(data_directory: &Path, wal_directory: Option<&Path>) -> Result<(), Failure> {
    let directory = data_directory::OpenDirectory::open(data_directory, wal_directory)?;
    let before = directory.reader.size()?.physical_bytes;
    directory.reader.engine().compact_files()?;
    let after = directory.reader.size()?.physical_bytes;
    tracing::info!(
        "data-dir" = %data_directory.display(),
        "bytes-before" = before,
        "bytes-after" = after,
        "finished defragmentation"
    );
    Ok(())
}

/// What `verify` finds wrong with a data directory, for tests of imports.
#[cfg(test)]
pub(crate) fn problems_of(data_directory: &std::path::Path) -> Result<Vec<String>, String> {
    verify::problems_of(data_directory).map_err(|failure| failure.text)
}

/// A reader of the store in a data directory, for tests of imports.
#[cfg(test)]
pub(crate) fn reader_of(
    data_directory: &std::path::Path,
) -> Result<metastore_store::Reader, String> {
    data_directory::OpenDirectory::open(data_directory, None)
        .map(|directory| directory.reader)
        .map_err(|failure| failure.text)
}
