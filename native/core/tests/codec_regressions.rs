//! What the fuzzer found, and inputs worth keeping: `fuzz/regressions/{protobuf,gzip}`, one input a file.

mod oracle;

use std::fs;
use std::path::Path;

fn inputs(kind: &str) -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/regressions").join(kind);
    let mut inputs: Vec<_> = fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.expect("a directory entry").path())
        .map(|path| (path.display().to_string(), fs::read(&path).expect("an input")))
        .collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{} is empty", directory.display());
    inputs
}

#[test]
fn protobuf_inputs_get_the_verdict_of_another_implementation() {
    for (name, raw) in inputs("protobuf") {
        println!("{name}");
        let _ = oracle::compare(&raw, &oracle::stored_gzip(&raw));
    }
}

#[test]
fn gzip_inputs_get_the_verdict_of_another_reader() {
    for (name, gzip) in inputs("gzip") {
        println!("{name}");
        oracle::compare_gzip(&gzip);
    }
}
