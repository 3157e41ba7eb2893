//! Paths and queries of HTTP requests.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| metastore_server::http::fuzzing::path(input));
