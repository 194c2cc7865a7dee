//! Any bytes as a snapshot file: no panic, and what is read is what another gzip reader unpacks.
//!
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run gzip`. What it finds goes to `regressions/gzip`, which `cargo test` reads.

#![no_main]

#[path = "../../tests/oracle/mod.rs"]
mod oracle;

libfuzzer_sys::fuzz_target!(|gzip: &[u8]| oracle::compare_gzip(gzip));
