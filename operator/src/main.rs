//! `metastore-operator`: keeps MetaStore clusters alive on Kubernetes.
//!
//! * `run` (default): the controllers.
//! * `agent …`: what Jobs and init containers run: backup, verify, delete, restore.
//! * `plan`: prints what would be done next for a cluster, and why.

use std::process::ExitCode;

use clap::Parser;
use metastore_operator::settings::{Command, Settings};
use metastore_operator::{agent, program};

fn main() -> ExitCode {
    let settings = Settings::parse();
    // One library for cryptography in the whole program. It fails only when somebody was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    program::init_log(settings.log_format);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no runtime");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        match &settings.command {
            Some(Command::Agent { work }) => agent::run(*work).await,
            Some(Command::Plan {
                namespace,
                name,
                spec,
            }) => program::plan(&settings, namespace, name, spec.as_deref()).await,
            Some(Command::Run) | None => program::run(&settings).await,
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "giving up");
            ExitCode::FAILURE
        }
    }
}
