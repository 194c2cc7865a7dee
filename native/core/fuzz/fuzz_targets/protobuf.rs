//! Any bytes as the protobuf message of a snapshot: no panic, and the verdict and contents of another implementation.
//!
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run protobuf`. What it finds goes to `regressions/protobuf`, which `cargo test` reads.

#![no_main]

#[path = "../../tests/oracle/mod.rs"]
mod oracle;

libfuzzer_sys::fuzz_target!(|raw: &[u8]| {
    let _ = oracle::compare(raw, &oracle::stored_gzip(raw));
});
