//! Rules about the repository itself, each as a test: the arrows between crates, what may not stand in
//! the sources, links in documents, generated pages.
//!
//! `METASTORE_WRITE_PAGES=1 cargo test -p metastore-tests --test tidy generated` (part of `make fix`)
//! writes the generated pages instead of comparing them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use metastore_proto::error_text::EtcdError;
use metastore_server::config::{self, OPTIONS, Status};

/// The root of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the tests are a folder of the repository")
        .to_owned()
}

/// Every file below a folder, without build products, other people's code and hidden folders, as paths
/// from the root.
fn files_below(folder: &str) -> Vec<PathBuf> {
    const SKIPPED: &[&str] = &["target", "vendor", "node_modules", "bench-results"];
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the repository") {
            let path = entry.expect("a readable entry").path();
            let name = path
                .file_name()
                .expect("entries have names")
                .to_string_lossy()
                .into_owned();
            if path.is_dir() {
                if !name.starts_with('.') && !SKIPPED.contains(&name.as_str()) {
                    folders.push(path);
                }
            } else if name != ".git" {
                // In a second work tree of git `.git` is a file.
                found.push(
                    path.strip_prefix(root())
                        .expect("below the root")
                        .to_owned(),
                );
            }
        }
    }
    found.sort();
    found
}

fn files_with_extension(folder: &str, extension: &str) -> Vec<PathBuf> {
    files_below(folder)
        .into_iter()
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(root().join(path))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Fails with all problems at once: fixing them one run at a time is tedious.
#[track_caller]
fn assert_none(problems: &[String], rule: &str) {
    assert!(problems.is_empty(), "{rule}\n  {}\n", problems.join("\n  "));
}

// ---------------------------------------------------------------------------------------------
// Arrows between crates

/// The crates of this repository that each of them may use. Everything else is a wrong arrow.
///
/// `revision-model ← store ← {store-rocksdb, watch, lease, auth} ← server`, and apart from it
/// `raft-log ← consensus ← server`: consensus does not know keys, and the store does not know consensus.
const ALLOWED_ARROWS: &[(&str, &[&str])] = &[
    ("metastore-proto", &[]),
    ("metastore-proto-codegen", &[]),
    ("metastore-revision-model", &["metastore-proto"]),
    (
        "metastore-store",
        &["metastore-proto", "metastore-revision-model"],
    ),
    (
        "metastore-store-rocksdb",
        &[
            "metastore-proto",
            "metastore-revision-model",
            "metastore-store",
        ],
    ),
    (
        "metastore-watch",
        &[
            "metastore-proto",
            "metastore-revision-model",
            "metastore-store",
        ],
    ),
    (
        "metastore-lease",
        &[
            "metastore-proto",
            "metastore-revision-model",
            "metastore-store",
        ],
    ),
    (
        "metastore-auth",
        &[
            "metastore-proto",
            "metastore-revision-model",
            "metastore-store",
        ],
    ),
    ("metastore-backup-file", &[]),
    ("metastore-service-records", &[]),
    ("metastore-raft-log", &["metastore-proto"]),
    (
        "metastore-consensus",
        &["metastore-proto", "metastore-raft-log"],
    ),
    (
        "metastore-server",
        &[
            "metastore-proto",
            "metastore-revision-model",
            "metastore-store",
            "metastore-store-rocksdb",
            "metastore-watch",
            "metastore-lease",
            "metastore-auth",
            "metastore-backup-file",
            "metastore-service-records",
            "metastore-raft-log",
            "metastore-consensus",
        ],
    ),
    // A client: it knows the API only, and how DNS tells where it is.
    (
        "metastore-ctl",
        &["metastore-proto", "metastore-service-records"],
    ),
    ("metastore-operator-api", &[]),
    ("metastore-operator-core", &["metastore-operator-api"]),
    ("metastore-operator-resources", &["metastore-operator-api"]),
    (
        "metastore-operator",
        &[
            "metastore-proto",
            "metastore-operator-api",
            "metastore-operator-core",
            "metastore-operator-resources",
        ],
    ),
    // The benchmark builds without the server, and measures it from outside.
    ("metastore-bench", &["metastore-proto"]),
];

/// The crate of the tests may use everything.
const TESTS: &str = "metastore-tests";

/// Crates that have no clock, thread, socket or randomness of their own: a simulation drives them.
const PURE_CRATES: &[&str] = &[
    "metastore-revision-model",
    "metastore-store",
    "metastore-watch",
    "metastore-lease",
    "metastore-auth",
    "metastore-operator-core",
    "metastore-operator-resources",
];

/// Dependencies of the crates of this repository by name, without those for tests.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    metadata["packages"]
        .as_array()
        .expect("a list of packages")
        .iter()
        .map(|package| {
            let name = package["name"]
                .as_str()
                .expect("packages have names")
                .to_owned();
            let uses = package["dependencies"]
                .as_array()
                .expect("a list of dependencies")
                .iter()
                .filter(|dependency| dependency["kind"] != "dev")
                .map(|dependency| dependency["name"].as_str().expect("a name").to_owned())
                .collect();
            (name, uses)
        })
        .collect()
}

#[test]
fn arrows_between_crates_point_one_way() {
    let allowed: BTreeMap<_, _> = ALLOWED_ARROWS.iter().copied().collect();
    let mut problems = Vec::new();
    for (name, uses) in dependencies() {
        if name == TESTS {
            continue;
        }
        let Some(allowed) = allowed.get(name.as_str()) else {
            problems.push(format!("{name} has no line in ALLOWED_ARROWS"));
            continue;
        };
        for used in uses.iter().filter(|used| used.starts_with("metastore-")) {
            if !allowed.contains(&used.as_str()) {
                problems.push(format!("{name} uses {used}"));
            }
        }
    }
    assert_none(
        &problems,
        "docs/architecture.md says which crate may use which:",
    );
}

#[test]
fn only_consensus_knows_openraft() {
    let problems: Vec<_> = dependencies()
        .into_iter()
        .filter(|(name, _)| name != "metastore-consensus" && name != TESTS)
        .filter(|(_, uses)| uses.iter().any(|used| used.starts_with("openraft")))
        .map(|(name, _)| name)
        .collect();
    assert_none(
        &problems,
        "openraft is pinned to an alpha and may be replaced: only consensus names it, but so do",
    );
}

#[test]
fn pure_crates_have_no_clock_thread_socket_or_randomness() {
    const FORBIDDEN: &[&str] = &[
        "Instant::now",
        "SystemTime::now",
        "thread::spawn",
        "thread::sleep",
        "thread::Builder",
        "std::net",
        "rand::",
        "tokio::",
        "std::env::var",
    ];
    let mut problems = Vec::new();
    for (name, uses) in dependencies() {
        if !PURE_CRATES.contains(&name.as_str()) {
            continue;
        }
        for used in ["tokio", "rand", "openraft", "tonic", "rocksdb"] {
            if uses.contains(used) {
                problems.push(format!("{name} depends on {used}"));
            }
        }
        let folder = match name.strip_prefix("metastore-operator-") {
            Some(part) => format!("operator/crates/{part}/src"),
            None => format!(
                "server/crates/{}/src",
                name.trim_start_matches("metastore-")
            ),
        };
        for path in files_with_extension(&folder, "rs") {
            let text = read(&path);
            for (number, line) in production_lines(&path, &text) {
                if let Some(found) = FORBIDDEN
                    .iter()
                    .find(|forbidden| line.contains(**forbidden))
                {
                    problems.push(format!("{}:{number} has {found}", path.display()));
                }
            }
        }
    }
    assert_none(
        &problems,
        "time, randomness and I/O arrive as arguments, so that a seed can replay a run:",
    );
}

/// The lines of a source file without its tests and comments.
fn production_lines<'a>(
    path: &Path,
    text: &'a str,
) -> impl Iterator<Item = (usize, &'a str)> + use<'a> {
    let is_test = path.components().any(|part| {
        let part = part.as_os_str().to_string_lossy();
        // The model of the store exists for tests only.
        part == "reference_model"
            || part == "tests"
            || part == "tests.rs"
            || part.ends_with("_tests.rs")
            || part == "benches"
    });
    text.lines()
        .enumerate()
        .map(|(position, line)| (position + 1, line))
        .take_while(move |(_, line)| !is_test && line.trim() != "#[cfg(test)]")
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    let problems: Vec<_> = files_below("")
        .into_iter()
        .filter(|path| path.file_name().is_some_and(|name| name == "Cargo.toml"))
        .filter(|path| path.parent() != Some(Path::new("")))
        // The fuzz targets and the example are no part of the workspace.
        .filter(|path| path.parent() != Some(Path::new("tests/fuzz")))
        .filter(|path| path.parent() != Some(Path::new("examples/rust")))
        .filter(|path| !read(path).contains("[lints]\nworkspace = true"))
        .map(|path| path.display().to_string())
        .collect();
    assert_none(&problems, "`[lints] workspace = true` is missing in:");
}

// ---------------------------------------------------------------------------------------------
// Sources

#[test]
fn every_crate_says_what_it_is() {
    let problems: Vec<_> = files_with_extension("", "rs")
        .into_iter()
        .filter(|path| path.ends_with("src/lib.rs") || path.ends_with("src/main.rs"))
        .filter(|path| !read(path).starts_with("//! "))
        .map(|path| path.display().to_string())
        .collect();
    assert_none(
        &problems,
        "the first line tells the reader where he is; it is missing in:",
    );
}

#[test]
fn nothing_is_left_to_do_in_the_sources() {
    // Put together here, or this file would find itself.
    let forbidden: Vec<String> = ["todo", "unimplemented", "dbg"]
        .iter()
        .map(|name| format!("{name}!("))
        .chain(
            ["FIX", "XX"]
                .iter()
                .map(|half| format!("{half}{}", if *half == "FIX" { "ME" } else { "X" })),
        )
        .collect();
    let mut problems = Vec::new();
    for path in files_with_extension("", "rs") {
        if path
            .components()
            .any(|part| part.as_os_str() == "generated")
        {
            continue;
        }
        for (position, line) in read(&path).lines().enumerate() {
            if let Some(found) = forbidden.iter().find(|forbidden| line.contains(*forbidden)) {
                problems.push(format!("{}:{} has {found}", path.display(), position + 1));
            }
        }
    }
    assert_none(
        &problems,
        "what is missing belongs into docs/limitations.md:",
    );
}

#[test]
fn no_path_of_somebodys_machine_is_in_the_repository() {
    let forbidden = [
        format!("/{}/", "work"),
        format!("/{}/", "root"),
        format!("/{}/runner", "home"),
    ];
    let mut problems = Vec::new();
    for path in files_below("") {
        let Ok(text) = fs::read_to_string(root().join(&path)) else {
            continue;
        };
        for (position, line) in text.lines().enumerate() {
            if forbidden
                .iter()
                .any(|forbidden| line.contains(forbidden.as_str()))
            {
                problems.push(format!("{}:{}", path.display(), position + 1));
            }
        }
    }
    assert_none(&problems, "paths of one machine mean nothing on another:");
}

#[test]
fn shell_scripts_parse() {
    let mut scripts = files_with_extension("", "sh");
    scripts.push(PathBuf::from(".ci/run"));
    let mut problems = Vec::new();
    for script in scripts {
        let output = Command::new("bash")
            .arg("-n")
            .arg(root().join(&script))
            .output()
            .expect("bash runs");
        if !output.status.success() {
            problems.push(String::from_utf8_lossy(&output.stderr).into_owned());
        }
    }
    assert_none(&problems, "bash does not understand:");
}

// ---------------------------------------------------------------------------------------------
// Documents

#[test]
fn links_in_documents_resolve() {
    let mut problems = Vec::new();
    for path in files_with_extension("", "md") {
        let text = without_code(&read(&path));
        for target in link_targets(&text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let linked = match file {
                "" => path.clone(),
                file => path.parent().unwrap_or(Path::new("")).join(file),
            };
            if !root().join(&linked).exists() {
                problems.push(format!("{}: {target}", path.display()));
            } else if !anchor.is_empty() && !anchors(&read(&linked)).contains(anchor) {
                problems.push(format!("{}: no heading for {target}", path.display()));
            }
        }
    }
    assert_none(&problems, "these links lead nowhere:");
}

/// Documents that sources and messages name must exist: a user reads such a message in trouble.
#[test]
fn documents_that_sources_name_exist() {
    let mut problems = BTreeSet::new();
    for path in files_below("") {
        let is_source = path.extension().is_some_and(|extension| {
            ["rs", "sh", "toml", "proto"]
                .iter()
                .any(|known| extension == *known)
        });
        if !is_source || path.ends_with("tests/tidy.rs") {
            continue;
        }
        let text = read(&path);
        for (start, _) in text.match_indices("docs/") {
            let name: String = text[start..]
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || "/-_.".contains(*c))
                .collect();
            if name.ends_with(".md") && !root().join(&name).exists() {
                problems.insert(format!("{} names {name}", path.display()));
            }
        }
    }
    let problems: Vec<_> = problems.into_iter().collect();
    assert_none(&problems, "these documents do not exist:");
}

/// The text without fenced and inline code, which may look like links.
fn without_code(text: &str) -> String {
    let mut result = String::new();
    let mut in_fence = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_fence = !in_fence;
        } else if !in_fence {
            let plain: Vec<_> = line.split('`').step_by(2).collect();
            result.push_str(&plain.join("`"));
        }
        result.push('\n');
    }
    result
}

fn link_targets(text: &str) -> Vec<&str> {
    text.match_indices("](")
        .filter_map(|(start, _)| {
            let target = text[start + 2..].split([')', '\n']).next()?;
            Some(target.split(' ').next().unwrap_or(target))
        })
        .collect()
}

/// The anchors that GitHub gives the headings of a page.
fn anchors(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| Some(line.strip_prefix('#')?.trim_start_matches('#').trim()))
        .map(|heading| {
            heading
                .to_lowercase()
                .chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
        .collect()
}

#[test]
fn limitations_name_everything_that_an_option_lacks() {
    let page = read(Path::new("docs/limitations.md")).to_lowercase();
    let problems: Vec<_> = OPTIONS
        .iter()
        .filter_map(|option| match option.status {
            Status::Unsupported(missing) => Some((option.name, missing)),
            Status::Used | Status::Ignored(_) => None,
        })
        .filter(|(_, missing)| !page.contains(&missing.to_lowercase()))
        .map(|(name, missing)| format!("--{name}: {missing}"))
        .collect();
    assert_none(
        &problems,
        "docs/limitations.md does not say that there is no",
    );
}

#[test]
fn every_error_stands_in_troubleshooting() {
    let page = read(Path::new("docs/troubleshooting.md"));
    let problems: Vec<_> = EtcdError::ALL
        .iter()
        .map(ToString::to_string)
        .filter(|text| !page.contains(&format!("| `{text}` |")))
        .collect();
    assert_none(
        &problems,
        "docs/troubleshooting.md does not say what to do about",
    );
}

/// Options that are called used, and the field of `Config` that carries them where the name is another.
const FIELDS_WITH_OTHER_NAMES: &[(&str, &str)] = &[
    ("initial-cluster", "initial_cluster"),
    ("log-level", "log"),
    ("log-format", "log"),
    ("log-outputs", "log"),
    // Only zap's form exists, so nobody has to read it.
    ("logger", "log"),
    ("enable-log-rotation", "rotation"),
    ("log-rotation-config-json", "rotation"),
    ("enable-distributed-tracing", "traces"),
    ("distributed-tracing-address", "address"),
    ("distributed-tracing-service-name", "service_name"),
    ("distributed-tracing-instance-id", "instance_id"),
    ("distributed-tracing-sampling-rate", "samples_per_million"),
    ("data-dir", "member_dir"),
    // `DiscoverySettings`.
    ("discovery-token", "token"),
    ("discovery-endpoints", "endpoints"),
    ("discovery-dial-timeout", "dial_timeout"),
    ("discovery-request-timeout", "request_timeout"),
    ("discovery-keepalive-time", "keepalive_time"),
    ("discovery-keepalive-timeout", "keepalive_timeout"),
    ("discovery-insecure-transport", "tls"),
    ("discovery-insecure-skip-tls-verify", "skips_verification"),
    ("discovery-cert", "tls"),
    ("discovery-key", "tls"),
    ("discovery-cacert", "tls"),
    ("discovery-user", "user"),
    ("discovery-password", "user"),
    // `TlsSettings`, one for clients and one for members.
    ("client-crl-file", "crl_file"),
    ("client-cert-allowed-cn", "allowed_common_names"),
    ("client-cert-allowed-hostname", "allowed_hostnames"),
    ("auto-tls", "auto"),
    ("peer-cert-file", "peer_tls"),
    ("peer-key-file", "peer_tls"),
    ("peer-client-cert-auth", "peer_tls"),
    ("peer-client-cert-file", "peer_tls"),
    ("peer-client-key-file", "peer_tls"),
    ("peer-trusted-ca-file", "peer_tls"),
    ("peer-cert-allowed-cn", "allowed_common_names"),
    ("peer-cert-allowed-hostname", "allowed_hostnames"),
    ("peer-auto-tls", "auto"),
    ("peer-crl-file", "crl_file"),
    (
        "peer-skip-client-san-verification",
        "skip_client_san_verification",
    ),
    (
        "self-signed-cert-validity",
        "self_signed_cert_validity_years",
    ),
    ("tls-min-version", "min_version"),
    ("auto-compaction-mode", "auto_compaction"),
    ("auto-compaction-retention", "auto_compaction"),
    ("tls-max-version", "max_version"),
];

#[test]
fn options_that_are_called_used_reach_the_server() {
    let server: String = files_with_extension("server/src", "rs")
        .iter()
        .filter(|path| !path.starts_with("server/src/config"))
        .map(|path| read(path))
        .collect();
    let problems: Vec<_> = OPTIONS
        .iter()
        .filter(|option| option.status == Status::Used)
        .filter(|option| {
            let field = FIELDS_WITH_OTHER_NAMES
                .iter()
                .find(|(name, _)| *name == option.name)
                .map_or_else(
                    || option.name.replace('-', "_"),
                    |(_, field)| (*field).to_owned(),
                );
            // Either read where it stands, or taken out by a pattern.
            !server.match_indices(&field).any(|(start, _)| {
                let follows = server[start + field.len()..].chars().next();
                server[..start].ends_with(['.', ' ', '(']) && follows.is_none_or(|c| c != '_')
            })
        })
        .map(|option| format!("--{}", option.name))
        .collect();
    assert_none(
        &problems,
        "the server does not read these; options.rs must say what they do instead:",
    );
}

#[test]
fn generated_page_of_the_options_is_fresh() {
    check_page("docs/reference/configuration.md", &config::reference_page());
}

#[test]
fn generated_page_of_the_errors_is_fresh() {
    check_page("docs/reference/errors.md", &errors_page());
}

#[test]
fn generated_page_of_the_metrics_is_fresh() {
    check_page(
        "docs/reference/metrics.md",
        &metastore_server::observe::metrics::catalog::reference_page(),
    );
}

fn check_page(path: &str, wanted: &str) {
    let path = root().join(path);
    if std::env::var_os("METASTORE_WRITE_PAGES").is_some() {
        fs::write(&path, wanted).expect("the page can be written");
        return;
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    if let Some((line, (found, wanted))) = found
        .lines()
        .chain(std::iter::repeat("(end of the page)"))
        .zip(wanted.lines().chain(std::iter::once("(end of the page)")))
        .enumerate()
        .find(|(_, (found, wanted))| found != wanted)
    {
        panic!(
            "{} is stale from line {}: run `make fix`\n found: {found}\nwanted: {wanted}",
            path.display(),
            line + 1
        );
    }
}

fn errors_page() -> String {
    let mut page = String::from(
        "<!-- Generated from proto/src/error_text.rs by `make fix`; a test fails when it is stale. -->

# Errors

Every error of etcd's gRPC API that MetaStore sends, with its gRPC code and its exact text. Clients such as
clientv3 recognise an error by its text, so the text is part of the API. The number is that of the gRPC
code.

| Code | Text |
|---|---|
",
    );
    for error in EtcdError::ALL {
        let code = error.code();
        writeln!(page, "| {code:?} ({}) | `{}` |", code as i32, error.text())
            .expect("writing to a string never fails");
    }
    page
}

#[test]
fn the_example_of_a_configuration_file_is_valid() {
    let path = root().join("examples/metastore.yml");
    let arguments = [
        "metastore".as_ref(),
        "--config-file".as_ref(),
        path.as_os_str(),
    ]
    .map(ToOwned::to_owned);
    match config::Config::from_process(arguments, []) {
        Ok(config::Parsed::Start { config, notices }) => {
            assert!(
                !notices
                    .iter()
                    .any(|notice| notice.message.contains("unknown key")),
                "{notices:?}"
            );
            config
                .initial_cluster()
                .expect("the member is part of its cluster");
        }
        other => panic!("the example does not start a server: {other:?}"),
    }
}

/// Nobody can build images everywhere; what can be known without doing so: that the Dockerfile has no unknown words,
/// takes its programs from packages of this workspace, puts them where the charts and the operator start them, and makes
/// images that run with the restricted rights of our Pods.
#[test]
fn the_dockerfile_makes_images_that_the_charts_can_start() {
    let text = read(Path::new("Dockerfile"));
    let joined = text.replace("\\\n", " ");
    let lines = joined.lines().map(str::trim);
    let instructions: Vec<(&str, &str)> = lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split_once(' ').unwrap_or((line, "")))
        .collect();
    let known = [
        "FROM",
        "RUN",
        "ENV",
        "WORKDIR",
        "COPY",
        "USER",
        "ENTRYPOINT",
        "EXPOSE",
        "VOLUME",
    ];
    let mut stages: Vec<(&str, Vec<(&str, &str)>)> = Vec::new();
    for (word, rest) in instructions {
        assert!(known.contains(&word), "{word} {rest}");
        if word == "FROM" {
            let (image, stage) = rest.split_once(" AS ").expect("every stage has a name");
            let (_, tag) = image.rsplit_once(':').expect("every base has a tag");
            assert_ne!(tag, "latest", "{image}");
            stages.push((stage, Vec::new()));
        } else {
            let (_, stage) = stages.last_mut().expect("the first word is FROM");
            stage.push((word, rest));
        }
    }
    let names: Vec<_> = stages.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["build", "operator", "server"]);
    let (_, build) = &stages[0];
    let run = build
        .iter()
        .find(|(word, rest)| *word == "RUN" && rest.contains("cargo build"))
        .expect("something is built")
        .1;
    let packages = programs_by_package();
    let built: BTreeSet<_> = run
        .split("--package ")
        .skip(1)
        .filter_map(|rest| rest.split([' ', ';']).next())
        .flat_map(|package| {
            packages
                .get(package)
                .unwrap_or_else(|| panic!("no package {package}"))
        })
        .map(String::as_str)
        .collect();
    let (_, list) = run
        .split_once("for program in ")
        .expect("the programs are copied out");
    let (list, _) = list.split_once(';').expect("a list ends");
    for (stage, wanted, body) in [
        ("operator", "metastore-operator", &stages[1].1),
        ("server", "metastore", &stages[2].1),
    ] {
        let copied = list.split_whitespace().any(|program| program == wanted);
        assert!(
            copied && built.contains(wanted),
            "{stage}: {wanted} is not built"
        );
        let of = |word: &str| {
            body.iter()
                .find(|(own, _)| *own == word)
                .map(|(_, rest)| *rest)
        };
        assert_eq!(of("COPY"), Some("--from=build /programs/ /usr/local/bin/"));
        assert_eq!(
            of("USER"),
            Some("65532:65532"),
            "as `nonroot` of the base, and as our Pods"
        );
        let start = format!("[\"/usr/local/bin/{wanted}\"]");
        assert_eq!(of("ENTRYPOINT"), Some(start.as_str()));
    }
    for program in list.split_whitespace() {
        assert!(built.contains(program), "{program} is copied and not built");
    }
}

/// The programs of each package.
fn programs_by_package() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let packages = metadata["packages"].as_array().expect("a list of packages");
    let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
    packages
        .iter()
        .map(|package| {
            let targets = package["targets"].as_array().expect("a list of targets");
            let programs = targets
                .iter()
                .filter(|target| target["kind"][0] == "bin")
                .map(|target| text(&target["name"]))
                .collect();
            (text(&package["name"]), programs)
        })
        .collect()
}
