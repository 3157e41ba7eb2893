//! The versions that MetaStore announces. Nothing else in the project names one.

/// The version of etcd whose API and behaviour the server offers, without `v`.
///
/// Clients decide by it what they may ask for: kube-apiserver uses progress requests on a watch only
/// from 3.5.13 on. It is the answer of `Status.version`, `/version` and the first line of `--version`.
pub const ETCD_VERSION: &str = "3.7.3";

/// The cluster version (`major.minor.0` of [`ETCD_VERSION`]), as `/version` tells it.
pub const CLUSTER_VERSION: &str = "3.7.0";

/// The storage version that etcd's tools look for, as `/version` and `Status.storage_version` tell it.
pub const STORAGE_VERSION: &str = "3.7.0";

/// The version of MetaStore itself.
pub const METASTORE_VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit of this build, when the build was told it by the variable `METASTORE_GIT_SHA`.
pub const GIT_SHA: &str = match option_env!("METASTORE_GIT_SHA") {
    Some(sha) => sha,
    None => "Not provided",
};

/// The operating system and the processor in Go's words, for example `linux/amd64`.
///
/// Scripts compare them with the output of `uname` tables that know Go's names only.
#[must_use]
pub fn go_platform() -> String {
    let system = match std::env::consts::OS {
        "macos" => "darwin",
        other => other,
    };
    let processor = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    };
    format!("{system}/{processor}")
}

/// The text of `metastore --version`: etcd's four lines, which wrappers parse, and one of our own.
#[must_use]
pub fn text() -> String {
    format!(
        "etcd Version: {ETCD_VERSION}\n\
         Git SHA: {GIT_SHA}\n\
         Go Version: none (written in Rust)\n\
         Go OS/Arch: {}\n\
         MetaStore Version: {METASTORE_VERSION}\n",
        go_platform()
    )
}
