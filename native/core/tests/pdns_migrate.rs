//! Schema upgrades of PowerDNS's LMDBs: databases of real servers, what these servers make of them themselves, and cases made by hand.

mod common;
#[path = "common/pdns.rs"]
mod pdns;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{file, native, open, put_raw, temp_dir};
use lightningstream_core::header::{self, FLAG_DELETED};
use lightningstream_core::lmdb::{Environment, flags};
use lightningstream_core::pdns_migrate::{Report, Request, Side, Untracked, status};
use lightningstream_core::{Cancel, Code, Error, Result};
use pdns::{MAIN, State, golden, hex, lay, look, now, request, run, unpack};
use serde_json::Value;
use tempfile::TempDir;

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

fn case(name: &str) -> (TempDir, u32) {
    let case = cases().into_iter().find(|case| case.name == name).unwrap();
    (lay(name, &case.files), case.to)
}

fn expected(name: &str, file: &str, kind: &str) -> Value {
    json(&golden().join(name).join(format!("{file}.{kind}.json.gz")))
}

fn assert_refused(result: Result<Report>, words: &[&str]) -> Error {
    let error = result.unwrap_err();
    assert_eq!(error.code, Code::Refused, "{error}");
    let text = error.to_string();
    assert!(words.iter().all(|word| text.contains(word)) && !text.contains('\n'), "{text}");
    error
}

#[test]
fn what_nobody_tracked_is_of_now_or_just_newer_or_refused() {
    let (dir, to) = case("v4-drift");
    let before = all_files(&dir);
    let (_, original) = look(&file(&dir, "pdns.lmdb-0"));
    // Its opening made a lock file.
    fs::remove_file(file(&dir, "pdns.lmdb-0-lock")).unwrap();
    let fail = Request { untracked: Untracked::Fail, ..request(&dir, to) };
    assert_refused(run(&fail), &["pdns.lmdb-0", "records", "changed after"]);
    assert!(all_files(&dir) == before);
    let shadow: BTreeMap<_, _> = original["_sync_shadow_records"].1.iter().cloned().collect();
    let done = run(&Request { untracked: Untracked::Old, ..request(&dir, to) }).unwrap();
    let (_, state) = look(&file(&dir, "pdns.lmdb-0"));
    let all = expected("v4-drift", "pdns.lmdb-0", "ls5");
    let wanted = all["records_v5"]["entries"].as_array().unwrap();
    let mut seen = (0, 0, 0);
    for ((key, stored), wanted) in state["records_v5"].1.iter().zip(wanted) {
        let timestamp = header::parse(stored).unwrap().timestamp;
        if wanted[1] != "now" {
            assert_eq!(timestamp.to_string(), wanted[1].as_str().unwrap());
        } else if let Some(tracked) = shadow.get(key) {
            assert_eq!(timestamp, header::parse(tracked).unwrap().timestamp + 1);
            seen = (seen.0 + 1, seen.1, seen.2 + u64::from(wanted[2] == 1));
        } else {
            assert_eq!(timestamp, 1);
            seen.1 += 1;
        }
    }
    assert!(seen.0 > 0 && seen.1 > 0 && seen.2 > 0, "the case has changed, new and removed entries: {seen:?}");
    let report = &done.files[1].dbis[0];
    assert_eq!((report.untracked, report.entries), (seen.0 + seen.1, wanted.len() as u64));
    assert!(done.warnings.iter().any(|text| text.contains("changed after Lightning Stream last looked")));
}

#[test]
fn without_what_was_tracked_it_is_the_servers_own_upgrade() {
    let (dir, to) = case("v4-drift");
    let done = run(&Request { ignore_shadow: true, keep_shadow: true, ..request(&dir, to) }).unwrap();
    assert!(
        done.files.iter().flat_map(|file| &file.dbis).all(|dbi| (dbi.carried, dbi.untracked, dbi.deleted) == (0, 0, 0))
    );
    for name in [MAIN, "pdns.lmdb-0"] {
        let (_, mut state) = look(&file(&dir, name));
        assert!(state.contains_key("_sync_shadow_records") || name == MAIN, "kept");
        state.retain(|name, _| !name.starts_with("_sync"));
        compare_with_server(name, &state, &expected("v4-drift", name, "pdns5"));
        for (_, entries) in state.values() {
            assert!(entries.iter().all(|(_, stored)| header::parse(stored).unwrap().timestamp == 0));
        }
    }
}

#[test]
fn a_rescue_that_keeps_the_shadow_has_nothing_to_do_the_second_time() {
    for keep_shadow in [false, true] {
        let (dir, to) = case("v5-leftover-used");
        let request = Request { keep_shadow, ..request(&dir, to) };
        assert!(run(&request).unwrap().changed);
        let (id, state) = look(&file(&dir, "pdns.lmdb-0"));
        assert_eq!(state.contains_key("_sync_shadow_records"), keep_shadow);
        assert!(!run(&request).unwrap().changed);
        assert_eq!(look(&file(&dir, "pdns.lmdb-0")).0, id);
    }
}

#[test]
fn of_two_forms_side_by_side_the_chosen_one_counts() {
    for side in [Side::Old, Side::New] {
        let (dir, to) = case("bad-mixed");
        let chosen = Request { side: Some(side), ..request(&dir, to) };
        if side == Side::New {
            // All of the zones would be without records.
            assert_refused(run(&chosen), &["pdns.lmdb-0", "records_v5 is missing"]);
            put_raw(&open(&file(&dir, "pdns.lmdb-0"), 0), "records_v5", 0, &[(b"key".to_vec(), native(7, 1, 0, b"v"))]);
        }
        let before = look(&file(&dir, MAIN)).1;
        let shard_before = look(&file(&dir, "pdns.lmdb-0")).1;
        let names: Vec<_> = before.keys().map(String::as_str).collect();
        assert!(names.contains(&"domains") && names.contains(&"domains_v5"), "{names:?}");
        assert!(shard_before.contains_key("records"));
        let done = run(&chosen).unwrap_or_else(|e| panic!("{side:?}: {e}"));
        let after = look(&file(&dir, MAIN)).1;
        assert!(!after.contains_key("domains") && after.contains_key("domains_v5"));
        let live = |state: &State, dbi: &str| {
            let entries = state[dbi].1.iter().filter(|(_, stored)| stored[17] & FLAG_DELETED == 0);
            entries.map(|(_, stored)| stored[24..].to_vec()).collect::<BTreeSet<_>>()
        };
        let wanted: BTreeSet<_> = match side {
            Side::Old => before["domains"].1.iter().map(|(_, value)| value.clone()).collect(),
            Side::New => live(&before, "domains_v5"),
        };
        assert_eq!(live(&after, "domains_v5"), wanted, "{side:?}");
        let value = |key: &[u8]| {
            let (_, stored) = after["pdns"].1.iter().find(|(found, _)| found == key).unwrap();
            header::parse(stored).unwrap().value.to_vec()
        };
        assert_eq!((value(b"schemaversion"), value(b"shards")), (vec![0, 0, 0, 5], vec![0, 0, 0, 1]));
        let shard = look(&file(&dir, "pdns.lmdb-0")).1;
        assert!(shard.keys().eq(["records_v5"]), "{:?}", shard.keys());
        if side == Side::New {
            assert_eq!(shard["records_v5"].1, [(b"key".to_vec(), native(7, 1, 0, b"v"))]);
        } else {
            let records = shard_before["records"].1.iter().map(|(_, value)| value.clone()).collect();
            assert_eq!(live(&shard, "records_v5"), records);
        }
        assert!(done.changed && !run(&Request { side: None, ..chosen }).unwrap().changed);
    }
}

/// A run was interrupted after a shard, and an old server started by accident wrote to it.
#[test]
fn a_shard_with_entries_of_both_forms_is_nobodys_to_decide_but_the_users() {
    for side in [Side::Old, Side::New] {
        let (dir, to) = case("half-shard-done");
        let shard = file(&dir, "pdns.lmdb-0");
        put_raw(&open(&shard, 0), "records", 0, &[(b"key".to_vec(), b"added".to_vec())]);
        let before = all_files(&dir);
        let count = look(&shard).1["records_v5"].1.len();
        assert!(count > 1);
        assert_refused(run(&request(&dir, to)), &["pdns.lmdb-0", "records 1", &format!("records_v5 {count}"), "--use"]);
        assert_eq!(all_files(&dir), before);
        run(&Request { side: Some(side), ..request(&dir, to) }).unwrap_or_else(|e| panic!("{side:?}: {e}"));
        let after = look(&shard).1;
        assert!(after.keys().eq(["records_v5"]), "{:?}", after.keys());
        assert_eq!(after["records_v5"].1.len(), if side == Side::Old { 1 } else { count });
    }
}

#[test]
fn merged_shards_are_one_and_what_an_interruption_left_goes_with_the_next_run() {
    let (dir, to) = case("v4-shards3");
    let shard_files: Vec<Vec<u8>> = (0..3).map(|n| fs::read(file(&dir, &format!("pdns.lmdb-{n}"))).unwrap()).collect();
    let request = Request { merge_shards: true, ..request(&dir, to) };
    let plan = run(&Request { write: false, ..request.clone() }).unwrap();
    let done = run(&request).unwrap();
    assert_eq!(plan.files, done.files);
    let mut wanted = Vec::new();
    for number in 0..3 {
        let all = expected("v4-shards3", &format!("pdns.lmdb-{number}"), "ls5");
        let entries = all["records_v5"]["entries"].as_array().unwrap().clone();
        assert_eq!(done.files[1 + number].dbis[0].entries, entries.len() as u64);
        wanted.extend(entries);
    }
    wanted.sort_by_key(|entry| entry[0].as_str().unwrap().to_owned());
    let check = || {
        let (_, state) = look(&file(&dir, "pdns.lmdb-0"));
        let merged: Value = serde_json::json!({"records_v5": {"entries": wanted}});
        compare_exactly("merged", &state, &merged, request.now);
        assert!(state.keys().eq(["records_v5"]));
        for number in 1..3 {
            let path = file(&dir, &format!("pdns.lmdb-{number}"));
            assert!(!path.exists() && !path.with_extension(format!("lmdb-{number}-lock")).exists());
        }
        let (_, main) = look(&file(&dir, MAIN));
        let shards = main["pdns"].1.iter().find(|(key, _)| key == b"shards").unwrap();
        assert_eq!(shards.1[24..], [0, 0, 0, 1]);
    };
    check();
    assert!(!run(&request).unwrap().changed);
    // As if it had been killed before the files went.
    fs::write(file(&dir, "pdns.lmdb-2"), &shard_files[2]).unwrap();
    assert!(run(&request).unwrap().changed);
    check();
    // One that has more stays.
    fs::write(file(&dir, "pdns.lmdb-1"), &shard_files[1]).unwrap();
    put_raw(&open(&file(&dir, "pdns.lmdb-1"), 0), "records", 0, &[(b"more".to_vec(), b"x".to_vec())]);
    let left = run(&request).unwrap();
    assert!(!left.changed && left.warnings.iter().any(|text| text.contains("pdns.lmdb-1")), "{:?}", left.warnings);
    assert!(file(&dir, "pdns.lmdb-1").exists());
}

#[test]
fn a_file_that_is_no_shard_stays_unless_all_that_is_in_it_is_in_the_shard() {
    let (dir, to) = case("v4-plain");
    run(&request(&dir, to)).unwrap();
    let key = look(&file(&dir, "pdns.lmdb-0")).1["records_v5"].1[0].0.clone();
    let stray = file(&dir, "pdns.lmdb-1");
    put_raw(&open(&stray, 0), "records", 0, &[(key, b"only here".to_vec())]);
    let done = run(&Request { merge_shards: true, ..request(&dir, to) }).unwrap();
    assert!(!done.changed && stray.exists());
    assert!(done.warnings.iter().any(|text| text.contains("pdns.lmdb-1 is no shard")), "{:?}", done.warnings);
}

#[test]
fn shards_of_which_some_are_done_are_merged() {
    let (dir, to) = case("v4-shards3");
    let main = fs::read(file(&dir, MAIN)).unwrap();
    let second = fs::read(file(&dir, "pdns.lmdb-1")).unwrap();
    run(&request(&dir, to)).unwrap();
    // The main database and one shard as before.
    fs::write(file(&dir, MAIN), main).unwrap();
    fs::write(file(&dir, "pdns.lmdb-1"), second).unwrap();
    assert_eq!(status(&file(&dir, MAIN), true).unwrap().state, "interrupted");
    let request = Request { merge_shards: true, ..request(&dir, to) };
    run(&request).unwrap();
    let (_, state) = look(&file(&dir, "pdns.lmdb-0"));
    let mut keys: Vec<String> = Vec::new();
    for number in 0..3 {
        let all = expected("v4-shards3", &format!("pdns.lmdb-{number}"), "ls5");
        let entries = all["records_v5"]["entries"].as_array().unwrap();
        keys.extend(entries.iter().map(|entry| entry[0].as_str().unwrap().to_owned()));
    }
    keys.sort();
    assert_eq!(state["records_v5"].1.iter().map(|(key, _)| hex(key)).collect::<Vec<_>>(), keys);
}

#[test]
fn a_key_of_two_shards_is_refused() {
    let (dir, to) = case("v4-shards3");
    let (_, state) = look(&file(&dir, "pdns.lmdb-2"));
    let entry = state["records"].1[0].clone();
    put_raw(&open(&file(&dir, "pdns.lmdb-1"), 0), "records", 0, &[entry]);
    let before = all_files(&dir);
    let merging = Request { merge_shards: true, ..request(&dir, to) };
    assert_refused(run(&merging), &["pdns.lmdb-0", "two shards have this key"]);
    assert!(all_files(&dir) == before);
    run(&request(&dir, to)).unwrap();
}

#[test]
fn what_is_not_as_powerdns_and_lightning_stream_make_it_is_refused_by_name() {
    let shadow_name = "_sync_shadow_domains_0";
    type Spoil = fn(&Environment);

    let cases: [(&str, &str, Spoil, &[&str]); 5] = [
        (
            MAIN,
            "a short header",
            |env| {
                put_raw(env, "_sync_shadow_tsig", flags::INTEGERKEY, &[(vec![9; 4], vec![0; 23])]);
            },
            &["_sync_shadow_tsig", "09090909"],
        ),
        (
            MAIN,
            "no separator",
            |env| {
                put_raw(
                    env,
                    "_sync_shadow_domains_0",
                    0,
                    &[(b"x\0\0\0\x01\x01\x02\x03\x04\x01".to_vec(), native(5, 1, 0, &[1, 2, 3, 4]))],
                );
            },
            &["_sync_shadow_domains_0"],
        ),
        (
            MAIN,
            "an id of two bytes",
            |env| {
                put_raw(
                    env,
                    "_sync_shadow_domains_0",
                    0,
                    &[(b"x\0\0\0\0\x01\x02\x01".to_vec(), native(5, 1, 0, &[1, 2]))],
                );
            },
            &["_sync_shadow_domains_0"],
        ),
        (
            "pdns.lmdb-0",
            "a foreign version",
            |env| {
                put_raw(env, "_sync_shadow_records", 0, &[(b"k".to_vec(), [[0; 16].to_vec(), vec![1; 8]].concat())]);
            },
            &["pdns.lmdb-0", "_sync_shadow_records", "version 1"],
        ),
        (
            "pdns.lmdb-0",
            "a missing DBI",
            |env| {
                let mut txn = env.write(true, &Cancel::new()).unwrap();
                assert!(txn.drop_dbi("records").unwrap());
                txn.commit().unwrap();
            },
            &["pdns.lmdb-0", "neither DBI records nor records_v5"],
        ),
    ];
    for (name, what, spoil, words) in cases {
        let (dir, to) = case("v4-shadow");
        spoil(&open(&file(&dir, name), 0));
        let before = all_files(&dir);
        let error =
            assert_refused(run(&Request { backup_dir: Some(file(&dir, "backup")), ..request(&dir, to) }), words);
        assert!(all_files(&dir) == before && !file(&dir, "backup").exists(), "{what}: {error}");
        if what == "no separator" {
            assert_eq!(error.dbi.as_deref(), Some(shadow_name));
        }
    }
    let dir = temp_dir();
    assert_refused(run(&request(&dir, 5)), &[MAIN, "missing"]);
    put_raw(&open(&file(&dir, MAIN), 0), "records", 0, &[(vec![1], vec![1])]);
    assert_refused(run(&request(&dir, 5)), &[MAIN, "no DBI pdns"]);
    assert_eq!(status(&file(&dir, MAIN), true).unwrap().state, "not PowerDNS");
}

/// `FILE`: this process is the server that has it open.
const HOLDS: &str = "LS_TEST_HOLDS";

#[test]
fn server_that_has_it_open() {
    let Ok(path) = std::env::var(HOLDS) else { return };
    let _env = open(path.as_ref(), 0);
    println!("\nopen");
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

#[test]
fn in_use_is_refused_with_the_process_before_anything_is_opened() {
    for held in [MAIN, "pdns.lmdb-0"] {
        let (dir, to) = case("v4-shadow");
        let before = all_files(&dir);
        let mut server = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "server_that_has_it_open", "--nocapture"])
            .env(HOLDS, file(&dir, held))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(server.stdout.take().unwrap()));
        assert!(lines.any(|line| line.unwrap() == "open"));
        let error = run(&request(&dir, to)).unwrap_err();
        assert_eq!(error.code, Code::InUse, "{error}");
        assert!(error.message.contains(held) && error.message.contains(&format!("process {}", server.id())), "{error}");
        assert!(all_files(&dir) == before);
        let plan = run(&Request { write: false, ..request(&dir, to) }).unwrap();
        assert!(
            plan.warnings.iter().any(|text| text.contains(&format!("process {}", server.id()))),
            "{:?}",
            plan.warnings
        );
        let status = status(&file(&dir, MAIN), true).unwrap();
        assert_eq!(status.files.iter().map(|file| file.users.len()).sum::<usize>(), 1);
        assert!(run(&Request { force: true, ..request(&dir, to) }).unwrap().changed);
        drop(server.stdin.take());
        server.wait().unwrap();
    }
}

#[test]
fn a_backup_is_never_written_over() {
    let (dir, to) = case("v4-plain");
    let backup = file(&dir, "backup");
    fs::create_dir(&backup).unwrap();
    fs::write(backup.join("pdns.lmdb-0"), "older").unwrap();
    let before = all_files(&dir);
    let taken = Request { backup_dir: Some(backup.clone()), ..request(&dir, to) };
    assert_refused(run(&taken), &["pdns.lmdb-0", "backup"]);
    assert!(all_files(&dir) == before);
    assert_eq!(fs::read_dir(&backup).unwrap().count(), 1);
    assert_eq!(fs::read(backup.join("pdns.lmdb-0")).unwrap(), b"older");
}

#[test]
fn states_have_names() {
    for (name, wanted) in [
        ("v4-plain", "can be migrated"),
        ("v3", "can be migrated"),
        ("half-shard-done", "interrupted"),
        ("v5-leftover", "rescue"),
        ("v5-native", "native"),
        ("bad-mixed", "mixed"),
        ("bad-v7", "unsupported"),
        ("bad-nodbi", "unsupported"),
    ] {
        let (dir, _) = case(name);
        let status = status(&file(&dir, MAIN), true).unwrap();
        assert_eq!(status.state, wanted, "{name}: {}", status.text);
        assert!(status.is_main && status.shards == Some(1) && status.files.len() == 2);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "{name}: a look leaves something");
    }
}

#[test]
fn lock_files_belong_to_whom_the_data_belong() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    let (dir, to) = case("v4-plain");
    for name in [MAIN, "pdns.lmdb-0"] {
        fs::set_permissions(file(&dir, name), fs::Permissions::from_mode(0o600)).unwrap();
        if chown(file(&dir, name), Some(4242), Some(4243)).is_err() {
            // Only root can.
            return;
        }
    }
    run(&Request { backup_dir: Some(file(&dir, "backup")), ..request(&dir, to) }).unwrap();
    for name in ["pdns.lmdb-lock", "pdns.lmdb-0-lock", "backup/pdns.lmdb"] {
        let meta = fs::metadata(file(&dir, name)).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (4242, 4243, 0o600), "{name}");
    }
}

#[test]
fn a_shard_that_a_merge_makes_belongs_to_whom_the_main_database_belongs() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    let (dir, to) = case("v4-shards3");
    fs::remove_file(file(&dir, "pdns.lmdb-0")).unwrap();
    // Left by a server.
    fs::write(file(&dir, "pdns.lmdb-0-lock"), "").unwrap();
    let main = file(&dir, MAIN);
    fs::set_permissions(&main, fs::Permissions::from_mode(0o600)).unwrap();
    let is_root = chown(&main, Some(4242), Some(4243)).is_ok();
    run(&Request { merge_shards: true, ..request(&dir, to) }).unwrap();
    let meta = fs::metadata(file(&dir, "pdns.lmdb-0")).unwrap();
    assert_eq!(meta.mode() & 0o777, 0o600);
    assert!(!is_root || (meta.uid(), meta.gid()) == (4242, 4243));
}

#[test]
fn a_backup_does_not_follow_links() {
    let (dir, to) = case("v4-plain");
    let (backup, victim) = (file(&dir, "backup"), file(&dir, "victim"));
    fs::create_dir(&backup).unwrap();
    fs::write(&victim, "mine").unwrap();
    std::os::unix::fs::symlink(&victim, backup.join("pdns.lmdb.partial")).unwrap();
    assert!(run(&Request { backup_dir: Some(backup.clone()), ..request(&dir, to) }).unwrap().changed);
    assert_eq!(fs::read(&victim).unwrap(), b"mine");
    assert!(fs::symlink_metadata(backup.join(MAIN)).unwrap().is_file());
}
