//! Sub-commands that run something else than a member: their command lines, and how they end. etcd's ends with
//! success after a help text, and with 1 after everything that went wrong.

use std::ffi::OsString;
use std::fmt::Display;
use std::process::ExitCode;

use clap::Parser;

/// Reads the arguments, which begin with the name of the sub-command, and runs what they ask for. `chosen`
/// takes the options of the inner command, if there is one; without, the help text is shown.
pub fn run<C: Parser, O, E: Display>(
    arguments: impl IntoIterator<Item = OsString>,
    chosen: impl FnOnce(C) -> Option<O>,
    start: impl FnOnce(O) -> Result<(), E>,
) -> ExitCode {
    let line = match C::try_parse_from(arguments) {
        Ok(line) => line,
        Err(error) => {
            // A closed output leaves nobody to tell.
            let _ = error.print();
            return match error.use_stderr() {
                true => ExitCode::FAILURE,
                false => ExitCode::SUCCESS,
            };
        }
    };
    let Some(options) = chosen(line) else {
        let _ = C::command().print_help();
        return ExitCode::SUCCESS;
    };
    match start(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
