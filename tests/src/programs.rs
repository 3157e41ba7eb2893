//! Where the programs under test are.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Which store a fixture starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Real etcd 3.7.3, the oracle.
    Etcd,
    /// The server of this repository.
    MetaStore,
}

impl Program {
    /// Its executable file.
    pub fn path(self) -> PathBuf {
        match self {
            Self::Etcd => tool("etcd"),
            Self::MetaStore => metastore().to_owned(),
        }
    }

    /// What failure messages call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::MetaStore => "metastore",
        }
    }
}

/// The store that the process tests examine: MetaStore, or etcd with `METASTORE_TEST_SUBJECT=etcd`,
/// which shows whether a test is right about etcd.
pub fn subject() -> Program {
    match std::env::var("METASTORE_TEST_SUBJECT").as_deref() {
        Ok("etcd") => Program::Etcd,
        Ok("metastore") | Err(_) => Program::MetaStore,
        Ok(other) => panic!("METASTORE_TEST_SUBJECT={other} is neither etcd nor metastore"),
    }
}

/// A program that `tests/tools/install.sh` builds: etcd, etcdctl, etcdutl, benchmark or
/// clientv3-check. Installs them on first use.
///
/// # Panics
///
/// When they cannot be installed.
pub fn tool(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER
        .get_or_init(|| installed_by("tools/install.sh"))
        .join(name)
}

/// A command that runs a program of `tests/clients` with its libraries: `run-python`, `run-node`
/// or `run-java`. `tests/tools/install-clients.sh` installs them on first use.
///
/// # Panics
///
/// When they cannot be installed.
pub fn client_runner(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER
        .get_or_init(|| installed_by("tools/install-clients.sh"))
        .join(name)
}

/// promtool, which `tests/tools/install-promtool.sh` finds or installs on first use.
///
/// # Panics
///
/// When it cannot be installed.
pub fn promtool() -> PathBuf {
    installed_by("tools/install-promtool.sh").join("promtool")
}

/// Runs an installing script, which prints the folder of what it installed last.
fn installed_by(script: &str) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
    let output = Command::new("bash")
        .arg(&script)
        .stderr(std::process::Stdio::inherit())
        .output()
        .expect("bash is needed to install the test tools");
    assert!(
        output.status.success(),
        "{} failed: run it by hand to see why",
        script.display()
    );
    let text = String::from_utf8(output.stdout).expect("the script prints a path");
    PathBuf::from(
        text.lines()
            .last()
            .expect("the script prints the folder last"),
    )
}

/// `target/<profile>/metastore`, next to the test executable that runs.
///
/// Cargo does not build another package's program for a test, so `make test` runs
/// `cargo build -p metastore-server --bins` first. Without the program the tests fail with this
/// advice; with one that is older than its sources they go on and say so, because a stale program
/// is what one wants when a comparison is under way. `METASTORE_BIN` names another program.
fn metastore() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Ok(path) = std::env::var("METASTORE_BIN") {
            return PathBuf::from(path);
        }
        let test = std::env::current_exe().expect("the running test has a path");
        // target/<profile>/deps/<test>
        let profile = test
            .ancestors()
            .nth(2)
            .expect("test executables live in target/<profile>/deps");
        let program = profile.join("metastore");
        assert!(
            program.is_file(),
            "{} does not exist: run `cargo build -p metastore-server --bins` (or `make test`, \
             which does), or set METASTORE_BIN",
            program.display()
        );
        if let Some(newer) = first_source_newer_than(&program) {
            eprintln!(
                "WARNING: {} is older than {newer}: the tests examine an old program; run \
                 `cargo build -p metastore-server --bins`",
                program.display()
            );
        }
        program
    })
}

/// `target/<profile>/metastorectl`, next to the test executable that runs.
///
/// # Panics
/// When it was not built: `cargo build -p metastore-ctl`, which `make test` does.
pub fn metastorectl() -> PathBuf {
    let program = metastore().with_file_name("metastorectl");
    assert!(
        program.is_file(),
        "{} does not exist: run `cargo build -p metastore-ctl` (or `make test`, which does)",
        program.display()
    );
    program
}

/// Reads cargo's dependency file beside the program.
fn first_source_newer_than(program: &Path) -> Option<String> {
    let built = program.metadata().ok()?.modified().ok()?;
    let sources = std::fs::read_to_string(program.with_extension("d")).ok()?;
    let (_, sources) = sources.split_once(": ")?;
    sources
        .split_whitespace()
        .find(|source| {
            Path::new(source)
                .metadata()
                .and_then(|data| data.modified())
                .is_ok_and(|changed| changed > built)
        })
        .map(str::to_owned)
}
