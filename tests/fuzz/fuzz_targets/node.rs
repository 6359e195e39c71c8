#![no_main]

#[allow(dead_code, reason = "of the targets, each binary runs one")]
#[path = "../bodies/mod.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|input: &[u8]| bodies::run("node", input));
