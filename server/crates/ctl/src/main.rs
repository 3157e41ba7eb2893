//! metastorectl: the command line client of MetaStore and etcd.
//!
//! Owns the commands, flags and forms of output of etcd's etcdctl 3.7, so that scripts need only another
//! name. Knows nothing of the server but its API.
//!
//! ```text
//! arguments ─► flags ─► commands ─► client ─► server
//!                          └─► output ─► standard output
//! ```
//!
//! `failover` stands between client and server: it knows all endpoints.
//!
//! ```text
//! client ─► failover ─► one member after the other
//! ```

mod client;
mod commands;
mod failover;
mod failure;
mod flags;
mod keys;
mod output;
mod quote;
mod terminal;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    match commands::run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                eprintln!("Error: {}", failure.message);
            }
            ExitCode::from(failure.code)
        }
    }
}
