//! Schema upgrades of PowerDNS's LMDBs: databases of real servers, what these servers make of them themselves, and cases made by hand.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use common::{file, native, open, put_raw, temp_dir};
use lightningstream_core::header::{self, FLAG_DELETED};
use lightningstream_core::lmdb::{Environment, flags};
use lightningstream_core::pdns_migrate::{Report, Request, Side, Untracked, migrate, status};
use lightningstream_core::{Cancel, Code, Error, Result};
use serde_json::Value;
use tempfile::TempDir;

const MAIN: &str = "pdns.lmdb";

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../test/golden/migrate")
}

fn unpack(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(fs::File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64
}

fn request(dir: &TempDir, to: u32) -> Request {
    Request {
        path: dir.path().join(MAIN),
        no_subdir: true,
        to,
        write: true,
        backup_dir: None,
        untracked: Untracked::Now,
        ignore_shadow: false,
        keep_shadow: false,
        side: None,
        merge_shards: false,
        force: false,
        now: now(),
    }
}

fn run(request: &Request) -> Result<Report> {
    migrate(request, &Cancel::new())
}

/// Lays the files of a golden case out.
fn lay(name: &str, files: &[String]) -> TempDir {
    let dir = temp_dir();
    for file in files {
        fs::write(dir.path().join(file), unpack(&golden().join(name).join(format!("{file}.gz")))).unwrap();
    }
    dir
}

/// Flags and entries of each DBI.
type State = BTreeMap<String, (u32, Vec<(Vec<u8>, Vec<u8>)>)>;

fn look(path: &Path) -> (u64, State) {
    let env = open(path, 0);
    let txn = env.read().unwrap();
    let mut all = State::new();
    for name in txn.dbi_names() {
        let dbi = txn.dbi(name).unwrap().unwrap();
        let mut cursor = txn.cursor(dbi).unwrap();
        let mut entries = Vec::new();
        while let Some((key, value)) = cursor.next().unwrap() {
            entries.push((key.to_vec(), value.to_vec()));
        }
        all.insert(name.to_owned(), (dbi.flags, entries));
    }
    (txn.id(), all)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Every data file with what it holds and LastTxnID; lock files are left out.
fn all_files(dir: &TempDir) -> BTreeMap<String, Vec<u8>> {
    let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap());
    let files = names.filter(|entry| entry.file_type().unwrap().is_file());
    files
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .filter(|(name, _)| !name.ends_with("-lock"))
        .collect()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&unpack(path)).unwrap()
}

struct Case {
    name: String,
    to: u32,
    exit: u64,
    files: Vec<String>,
}

fn cases() -> Vec<Case> {
    let all: Value = serde_json::from_slice(&fs::read(golden().join("cases.json")).unwrap()).unwrap();
    let cases = all.as_array().unwrap().iter().map(|case| Case {
        name: case["name"].as_str().unwrap().to_owned(),
        to: case["to"].as_u64().unwrap() as u32,
        exit: case["exit"].as_u64().unwrap(),
        files: case["files"].as_array().unwrap().iter().map(|file| file.as_str().unwrap().to_owned()).collect(),
    });
    cases.collect()
}

/// Live entries as PowerDNS's own upgrade leaves them; headers with timestamp and transaction zeroed.
fn compare_with_server(what: &str, state: &State, expected: &Value) {
    let expected = expected.as_object().unwrap();
    let shown = |name: &str, entries: usize| entries > 0 || !(name.ends_with("_v6") || name.ends_with("_v7"));
    let ours: BTreeSet<&str> =
        state.iter().filter(|(name, (_, entries))| shown(name, entries.len())).map(|(name, _)| name.as_str()).collect();
    assert_eq!(ours, expected.keys().map(String::as_str).collect(), "{what}: DBIs");
    for (name, (dbi_flags, entries)) in state {
        let Some(wanted) = expected.get(name) else { continue };
        assert_eq!(u64::from(*dbi_flags), wanted["flags"].as_u64().unwrap(), "{what}, {name}: flags");
        let live = entries.iter().filter(|(_, stored)| stored[17] & FLAG_DELETED == 0);
        let live: Vec<_> = live.map(|(key, stored)| (hex(key), "00".repeat(16) + &hex(&stored[16..]))).collect();
        let pair = |entry: &Value| (entry[0].as_str().unwrap().to_owned(), entry[1].as_str().unwrap().to_owned());
        let wanted = wanted["entries"].as_array().unwrap().iter().map(pair);
        // Those that the server deleted after its upgrade.
        let wanted: Vec<_> = wanted.filter(|(_, stored)| &stored[34..36] == "00").collect();
        assert!(live == wanted, "{what}, {name}: {live:?}\n instead of {wanted:?}");
    }
}

/// Exact timestamps and markers.
fn compare_exactly(what: &str, state: &State, expected: &Value, now: u64) {
    for (name, wanted) in expected.as_object().unwrap() {
        let wanted = wanted["entries"].as_array().unwrap();
        let (_, entries) = state.get(name).unwrap_or_else(|| panic!("{what}: no {name}"));
        assert_eq!(entries.len(), wanted.len(), "{what}, {name}");
        for ((key, stored), wanted) in entries.iter().zip(wanted) {
            let native = header::parse(stored).unwrap();
            let timestamp = match wanted[1].as_str().unwrap() {
                "now" => now,
                nano => nano.parse().unwrap(),
            };
            let wanted =
                (wanted[0].as_str().unwrap(), timestamp, wanted[2].as_u64().unwrap(), wanted[3].as_str().unwrap());
            let (key, value) = (hex(key), hex(native.value));
            assert_eq!(
                (key.as_str(), native.timestamp, u64::from(native.flags), value.as_str()),
                wanted,
                "{what}, {name}"
            );
            assert_eq!(&stored[18..24], &[0; 6], "{what}, {name}: the rest of the header");
        }
    }
}

#[test]
fn databases_of_real_servers_become_what_the_server_makes_of_them_with_the_timestamps_that_were_tracked() {
    let mut seen = 0;
    for case in cases() {
        let dir = lay(&case.name, &case.files);
        let before = all_files(&dir);
        let request = Request { backup_dir: Some(file(&dir, "backup")), ..request(&dir, case.to) };
        let plan = run(&Request { write: false, ..request.clone() });
        assert!(all_files(&dir) == before, "{}: a plan changes something", case.name);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), before.len(), "{}: a plan leaves something", case.name);
        let done = run(&request);
        seen += 1;
        if case.exit != 0 {
            let code = if case.exit == 2 { Code::InvalidArgument } else { Code::Refused };
            for result in [&plan, &done] {
                let error = result.as_ref().unwrap_err();
                assert_eq!(error.code, code, "{}: {error}", case.name);
                assert!(case.exit == 2 || error.message.contains(MAIN), "{}: {error}", case.name);
            }
            assert!(all_files(&dir) == before, "{}: refused, but changed", case.name);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), before.len(), "{}: refused, but left", case.name);
            continue;
        }
        let (plan, done) = (plan.unwrap(), done.unwrap_or_else(|e| panic!("{}: {e}", case.name)));
        assert_eq!(plan.files, done.files, "{}: planned and done", case.name);
        assert!(done.changed && plan.changed);
        for name in &case.files {
            let what = format!("{}, {name}", case.name);
            let path = file(&dir, name);
            let (_, state) = look(&path);
            let expected =
                |kind: &str| json(&golden().join(&case.name).join(format!("{name}.{kind}{}.json.gz", case.to)));
            compare_with_server(&what, &state, &expected("pdns"));
            compare_exactly(&what, &state, &expected("ls"), request.now);
            let (_, copied) = look(&file(&dir, "backup").join(name));
            fs::write(file(&dir, "original"), &before[name]).unwrap();
            assert!(copied == look(&file(&dir, "original")).1, "{what}: the backup differs");
            fs::remove_file(file(&dir, "original")).unwrap();
            let _ = fs::remove_file(file(&dir, "original-lock"));
        }
        let present: BTreeSet<_> = all_files(&dir).into_keys().collect();
        assert_eq!(present, before.into_keys().collect(), "{}: files", case.name);
        // Again: nothing, not even a transaction.
        let after = all_files(&dir);
        let again = run(&Request { now: now(), ..request }).unwrap();
        assert!(!again.changed && again.backup.is_none(), "{}", case.name);
        assert!(all_files(&dir) == after, "{}: the second run changes something", case.name);
    }
    assert_eq!(seen, 16);
}
