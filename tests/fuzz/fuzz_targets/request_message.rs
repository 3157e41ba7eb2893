//! Messages of every request of the API: the first byte chooses which.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Some((message, body)) = input.split_first() {
        metastore_server::rpc::fuzzing::request_message(usize::from(*message), body);
    }
});
