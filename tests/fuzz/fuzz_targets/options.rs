//! Command lines with their environment, and configuration files: the first byte chooses.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    match input.split_first() {
        Some((b'-' | b'E', _)) => metastore_server::config::fuzzing::command_line(input),
        Some(_) => metastore_server::config::fuzzing::file(input),
        None => {}
    }
});
