//! Measures MetaStore and a real etcd in turn, and prints a table of ratios.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::Parser;
use metastore_bench::report::{Results, write_page};
use metastore_bench::rows::{Group, Plan, measure_group, names};
use metastore_bench::servers::Program;
use rustix::fs::statfs;

/// `f_type` of tmpfs, where an fsync costs nothing and a benchmark of a store says nothing.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// How long the bare speed of the disk is measured.
const DISK_PROBE: Duration = Duration::from_secs(1);

/// Size of the writes of this probe: a small group of log records.
const DISK_PROBE_BYTES: usize = 4096;

/// Compares MetaStore with etcd on this machine.
#[derive(Parser)]
#[command(name = "bench")]
struct Arguments {
    /// A subset in three to four minutes.
    #[arg(long)]
    quick: bool,
    /// All rows, with shorter loads, in less than 25 minutes.
    #[arg(long, conflicts_with = "quick")]
    short: bool,
    /// Rows, or families of rows (`put`), comma-separated.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Groups of rows, comma-separated.
    #[arg(long, value_delimiter = ',', default_value = "one,three,large")]
    groups: Vec<Group>,
    /// How often both servers are measured [default: 3; quick: 2 for one member, else 1; short: 1
    /// for the large group, else 3].
    #[arg(long)]
    alternations: Option<usize>,
    /// Seconds of each load [default: 5; quick and short: 2].
    #[arg(long)]
    seconds: Option<f64>,
    /// Keys of the large group [default: 1000000; quick: 200000].
    #[arg(long)]
    keys: Option<u64>,
    /// The etcd to compare with.
    #[arg(long)]
    etcd: PathBuf,
    /// Our server; a second etcd shows what the differences between equal servers are.
    #[arg(long)]
    metastore: PathBuf,
    /// Further arguments of our server, comma-separated.
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true)]
    metastore_arguments: Vec<String>,
    /// Folder for the data of the servers: on a real disk.
    #[arg(long)]
    data: PathBuf,
    /// Folder for the raw results, one JSON line for each row and server.
    #[arg(long, default_value = "bench-results")]
    results: PathBuf,
    /// Also measure with etcd's own load tool, which is this program.
    #[arg(long)]
    second_opinion: Option<PathBuf>,
    /// Print the CPU time of our server by thread.
    #[arg(long)]
    threads: bool,
    /// Write the table into this page.
    #[arg(long)]
    page: Option<PathBuf>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .expect("the signal can be handled");
    // Dropping the measurement ends the servers, so an interruption must come back to here.
    let outcome = tokio::select! {
        outcome = compare(&arguments) => outcome,
        _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
        _ = terminate.recv() => Err("terminated".into()),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn compare(arguments: &Arguments) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let plan = plan(arguments)?;
    fs::create_dir_all(&arguments.data)?;
    if statfs(&arguments.data)?.f_type == TMPFS_MAGIC {
        return Err(format!("{} is not on a disk", arguments.data.display()).into());
    }
    fs::create_dir_all(&arguments.results)?;
    let mut raw = File::create(
        arguments
            .results
            .join(format!("{}.jsonl", utc("%Y%m%dT%H%M%S"))),
    )?;
    let programs = [
        Program {
            name: "etcd".to_owned(),
            path: arguments.etcd.clone(),
            arguments: Vec::new(),
        },
        Program {
            name: "metastore".to_owned(),
            path: arguments.metastore.clone(),
            arguments: arguments.metastore_arguments.clone(),
        },
    ];
    let shape = machine_shape(&arguments.data)?;
    eprintln!("{shape}");

    let mut results = Results::default();
    let mut failures = Vec::new();
    let wanted = arguments
        .groups
        .iter()
        .copied()
        .filter(|group| plan.wants_group(*group));
    for group in wanted {
        for alternation in 0..alternations(arguments, group) {
            results.alternate();
            for (side, program) in programs.iter().enumerate() {
                let started = Instant::now();
                let mut found = |outcome: metastore_bench::rows::Outcome| {
                    let line = serde_json::json!({
                        "program": program.name, "alternation": alternation,
                        "group": format!("{group:?}"), "row": outcome.row, "values": outcome.values,
                    });
                    // The table does not depend on the raw results.
                    let _ = writeln!(raw, "{line}");
                    results.add(side, outcome);
                };
                let measured =
                    measure_group(&plan, group, program, &arguments.data, &mut found).await;
                eprintln!(
                    "{group:?} {alternation} {}: {:.0} s",
                    program.name,
                    started.elapsed().as_secs_f64()
                );
                if let Err(error) = measured {
                    eprintln!("  {error}");
                    failures.push(format!("{}: {error}", program.name));
                }
            }
        }
    }

    let tables = results.tables(["etcd", "MetaStore"]);
    println!("{tables}");
    if arguments.threads {
        println!(
            "CPU of our server by thread, µs per operation:\n{}",
            results.threads(1)
        );
    }
    let (judged, missed) = results.verdict();
    println!("{} of {judged} requirements missed", missed.len());
    missed.iter().for_each(|line| println!("  {line}"));
    if let Some(page) = &arguments.page {
        let verdict = format!("{} of {judged} requirements missed.", missed.len());
        write_page(
            page,
            &format!("{}\n\n{tables}\n{verdict}", heading(arguments, &shape)),
        )?;
    }
    // A missed requirement is a finding, not a failure of the measurement.
    Ok(if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn plan(arguments: &Arguments) -> Result<Plan, String> {
    let known = names();
    for only in &arguments.only {
        let family = format!("{only}-");
        if !known
            .iter()
            .any(|name| name == only || name.starts_with(&family))
        {
            return Err(format!("no row {only}; there are {}", known.join(", ")));
        }
    }
    let seconds = if arguments.quick || arguments.short {
        2.0
    } else {
        5.0
    };
    let keys = if arguments.quick { 200_000 } else { 1_000_000 };
    Ok(Plan {
        only: arguments.only.clone(),
        quick: arguments.quick,
        duration: Duration::from_secs_f64(arguments.seconds.unwrap_or(seconds)),
        large_keys: arguments.keys.unwrap_or(keys),
        benchmark_tool: arguments.second_opinion.clone(),
        benchmark_calls: if arguments.short { 30_000 } else { 100_000 },
    })
}

fn alternations(arguments: &Arguments, group: Group) -> usize {
    let usual = match (arguments.quick, group) {
        (false, Group::Large) if arguments.short => 1,
        (false, _) => 3,
        (true, Group::Three | Group::Large) => 1,
        (true, _) => 2,
    };
    arguments.alternations.unwrap_or(usual)
}

fn heading(arguments: &Arguments, shape: &str) -> String {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.contains('/'))
        .filter(|word| {
            ![
                "--etcd",
                "--metastore",
                "--data",
                "--page",
                "--results",
                "--second-opinion",
            ]
            .contains(&word.as_str())
        })
        .collect();
    let command = match words.as_slice() {
        [] => "make bench".to_owned(),
        words => format!("make bench ARGUMENTS=\"{}\"", words.join(" ")),
    };
    format!(
        "Measured {} with `{}`; {} alternations ({} of the large load). {shape}\n\n\
         A ratio is ours divided by etcd's in the same alternation; the table shows the median and \
         the range of them. CPU is that of all members together, per operation. ⚠ marks rows during \
         which something else used the machine, and how much of it.",
        utc("%Y-%m-%d"),
        command.trim(),
        alternations(arguments, Group::One),
        alternations(arguments, Group::Large),
    )
}

/// What a reader must know about the machine to compare the figures with others.
fn machine_shape(data: &Path) -> Result<String, std::io::Error> {
    let cores = std::thread::available_parallelism()?;
    let cpu = first_value("/proc/cpuinfo", "model name");
    let memory = first_value("/proc/meminfo", "MemTotal");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let sync = sync_time(data)?;
    Ok(format!(
        "Machine: {cores} cores ({cpu}) shared by the servers and the load program, memory \
         {memory}, Linux {}, one disk; write and fdatasync of 4 KiB: median {} µs.",
        kernel.trim(),
        sync.as_micros()
    ))
}

fn first_value(file: &str, name: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text
        .lines()
        .find(|line| line.starts_with(name))
        .unwrap_or_default();
    line.split_once(':')
        .map_or("unknown", |(_, value)| value.trim())
        .to_owned()
}

/// Median time of a small write and its sync: the floor of every put.
fn sync_time(directory: &Path) -> Result<Duration, std::io::Error> {
    let path = directory.join("sync-probe");
    let mut file = File::create(&path)?;
    let started = Instant::now();
    let mut times = Vec::new();
    while started.elapsed() < DISK_PROBE {
        let before = Instant::now();
        file.write_all(&[0; DISK_PROBE_BYTES])?;
        file.sync_data()?;
        times.push(before.elapsed());
    }
    fs::remove_file(path)?;
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

/// The time now, by `date`.
fn utc(format: &str) -> String {
    let output = Command::new("date")
        .arg("-u")
        .arg(format!("+{format}"))
        .output();
    output.map_or_else(
        |_| "at an unknown time".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}
