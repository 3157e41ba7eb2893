//! The program `metastore`.

use std::process::ExitCode;

use metastore_server::config::{Config, Parsed};
use metastore_server::observe::heap_profile::Sampled;
use metastore_server::observe::log;
use metastore_server::{grpc_proxy, startup, tcp_gateway};

/// The system allocator spends 10 % more of a request's time than this one.
#[global_allocator]
static ALLOCATOR: Sampled<mimalloc::MiMalloc> = Sampled(mimalloc::MiMalloc);

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).peekable();
    let command = arguments
        .peek()
        .map(|first| first.to_string_lossy().into_owned());
    match command.as_deref() {
        Some(tcp_gateway::COMMAND) => return tcp_gateway::run(arguments),
        Some(grpc_proxy::COMMAND) => return grpc_proxy::run(arguments),
        _ => {}
    }
    let (config, notices) = match Config::from_process(std::env::args_os(), std::env::vars_os()) {
        Ok(Parsed::Start { config, notices }) => (*config, notices),
        Ok(Parsed::Print { stdout, stderr }) => {
            eprint!("{stderr}");
            print!("{stdout}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            error.report();
            return ExitCode::from(error.exit_code());
        }
    };
    if let Err(error) = log::init(&config.log) {
        eprintln!("cannot start logging: {error}");
        return ExitCode::FAILURE;
    }
    for notice in notices {
        notice.log();
    }
    config.log_effective();
    match startup::run(config) {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            tracing::error!(%error, "member ended");
            std::process::exit(1)
        }
    }
}
