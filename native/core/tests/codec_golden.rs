//! The snapshot codec on objects with known contents and verdicts (`test/golden`), observed with PowerDNS Lightning Stream 1.0.

mod oracle;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use lightningstream_core::Code;
use lightningstream_core::snapshot::encode::{InMemory, Writer};
use oracle::{Contents, PbSnapshot, assert_contents, read_all};
use prost::Message;
use serde_json::Value;

fn golden(directory: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../test/golden").join(directory)
}

fn sorted(directory: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.expect("a directory entry").path())
        .collect();
    paths.sort();
    paths
}

fn gunzip(gzip: &[u8]) -> Vec<u8> {
    let mut raw = Vec::new();
    MultiGzDecoder::new(gzip).read_to_end(&mut raw).expect("valid gzip");
    raw
}

/// What decoding alone must say of a case's newest object.
fn expected_verdict(name: &str, verdict: &Value) -> Option<Code> {
    let text = |key| verdict.get(key).and_then(Value::as_str).unwrap_or_default();
    match name {
        // The reference crashes; framing of the DBI and inside of the entry, respectively.
        "bad-dbi-entry-length-huge" => return Some(Code::SnapshotCorrupt),
        "bad-kv-value-length-huge" => return Some(Code::SnapshotRefused),
        // The reference passes these on to LMDB, which refuses an empty key.
        "entry-no-key" | "entry-explicit-empty-key" => return Some(Code::SnapshotRefused),
        // Either outcome is fine; ours is the reference's.
        "unknown-group-snapshot" => return Some(Code::SnapshotCorrupt),
        _ => {}
    }
    if text("should_be").starts_with("merge") {
        None
    } else if !text("marked_corrupt").is_empty() {
        Some(Code::SnapshotCorrupt)
    } else if text("error").starts_with("next: ") {
        // "next" is the reference's step from entry to entry: found inside one while merging.
        Some(Code::SnapshotRefused)
    } else {
        None
    }
}

#[test]
fn every_object_gets_the_known_verdict() {
    let root = golden("snapshot-formats");
    let summary = fs::read(root.join("summary.json")).expect("summary.json");
    let summary: serde_json::Map<String, Value> = serde_json::from_slice(&summary).expect("JSON");
    let (mut good, mut corrupt, mut refused) = (0, 0, 0);
    for (name, verdict) in &summary {
        let objects = sorted(&root.join(name).join("remote"));
        let (newest, older) = objects.split_last().unwrap_or_else(|| panic!("{name} has no object"));
        for path in older {
            let gzip = fs::read(path).expect("an object");
            read_all(&gzip).unwrap_or_else(|error| panic!("{name}, the older object: {error}"));
        }
        let gzip = fs::read(newest).expect("an object");
        match (read_all(&gzip), expected_verdict(name, verdict)) {
            (Ok(contents), None) => {
                good += 1;
                let expected = PbSnapshot::decode(gunzip(&gzip).as_slice())
                    .unwrap_or_else(|error| panic!("{name} is not for prost: {error}"));
                assert_contents(&contents, &expected);
            }
            (Err(error), Some(code)) => {
                assert_eq!(error.code, code, "{name}: {error}");
                if code == Code::SnapshotCorrupt {
                    corrupt += 1;
                } else {
                    refused += 1;
                    assert!(error.dbi.is_some(), "{name}: the DBI is missing in: {error}");
                }
            }
            (Ok(_), Some(code)) => panic!("{name} was read, expected {code:?}"),
            (Err(error), None) => panic!("{name} was not read: {error}"),
        }
    }
    // A directory that lost its cases must not pass for one whose cases are right.
    assert_eq!((good, corrupt, refused), (75, 25, 9));
}

/// Writes contents with our encoder.
fn rewrite(contents: &Contents) -> Vec<u8> {
    let mut writer = Writer::new(InMemory::default(), &contents.meta).expect("a head");
    for (header, entries) in &contents.dbis {
        writer.begin_dbi(&header.name, header.flags, &header.transform).expect("a DBI");
        for entry in entries {
            writer.entry(&entry.key, &entry.value, entry.timestamp_nano, entry.flags).expect("an entry");
        }
    }
    writer.finish().expect("the end").bytes
}

#[test]
fn what_the_reference_wrote_is_written_again_byte_for_byte() {
    let mut entries = 0;
    let mut transforms = 0;
    for directory in ["pdns-4.9-native/snapshots", "pdns-4.7-shadow/snapshots-1"] {
        let objects = sorted(&golden(directory));
        assert_eq!(objects.len(), 2, "{directory}");
        for path in objects {
            let gzip = fs::read(&path).expect("an object");
            let contents = read_all(&gzip).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            entries += contents.dbis.iter().map(|(_, entries)| entries.len()).sum::<usize>();
            transforms += contents.dbis.iter().filter(|(header, _)| !header.transform.is_empty()).count();
            assert!(rewrite(&contents) == gunzip(&gzip), "{} differs", path.display());
        }
    }
    assert!(entries > 500 && transforms > 0, "{entries} entries, {transforms} transforms");
}
