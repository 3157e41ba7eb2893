//! The program `metastoreutl`: works on files and data directories of members that do not run.

use std::process::ExitCode;

fn main() -> ExitCode {
    metastore_server::offline::run(std::env::args_os())
}
