//! Bodies of requests to the JSON gateway: the first byte chooses the message.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Some((message, body)) = input.split_first() {
        metastore_server::http::fuzzing::gateway_json(usize::from(*message), body);
    }
});
