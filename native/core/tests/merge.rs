//! The merge beyond the rule itself: what it leaves alone, what it does when others write meanwhile, how it fails.

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{
    contents, drop_records_if_told, file, merge_from, native, open, publish_to, put_raw, raw_contents, temp_dir,
    while_records_is_dropped,
};
use lightningstream_core::header::{self, FLAG_DELETED};
use lightningstream_core::lmdb::{Environment, flags};
use lightningstream_core::merge::{MergeOptions, merge};
use lightningstream_core::publish::publish;
use lightningstream_core::snapshot::Meta;
use lightningstream_core::{Cancel, Code};

fn records(count: u32, timestamp: u64, value: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    (0..count).map(|i| (i.to_be_bytes().to_vec(), native(timestamp, 0, 0, value))).collect()
}

#[test]
fn a_merge_that_changes_nothing_takes_no_write_lock() {
    let dir = temp_dir();
    let env = open(&file(&dir, "a.mdb"), 16 << 20);
    put_raw(&env, "records", 0, &records(5000, 7, b"value"));
    let snapshot = file(&dir, "s.pb.gz");
    publish_to(&env, &snapshot);
    let before = raw_contents(&env);
    std::thread::scope(|scope| {
        // Somebody holds the lock all the while: a merge that wanted it would wait for ever.
        let held = env.write(false, &Cancel::new()).unwrap();
        let merged = scope.spawn(|| merge_from(&env, &snapshot).unwrap()).join().unwrap();
        assert_eq!(merged.txn_id, None);
        assert_eq!((merged.entries, merged.added, merged.updated), (5000, 0, 0));
        assert_eq!(merged.write_lock, Duration::ZERO);
        drop(held);
    });
    assert_eq!(raw_contents(&env), before);
}

#[test]
fn a_plan_made_before_somebody_else_committed_is_decided_again() {
    let dir = temp_dir();
    let source = open(&file(&dir, "source.mdb"), 16 << 20);
    put_raw(&source, "records", 0, &records(2000, 100, b"remote"));
    let snapshot = file(&dir, "s.pb.gz");
    publish_to(&source, &snapshot);
    for round in 0..20 {
        let env = open(&file(&dir, &format!("{round}.mdb")), 512 << 20);
        put_raw(&env, "records", 0, &records(2000, 50, b"old"));
        let done = AtomicBool::new(false);
        let newest = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                // Newer than the snapshot: whatever the merge planned for this key, it must not win.
                let mut timestamp = 1000;
                loop {
                    timestamp += 1;
                    put_raw(&env, "records", 0, &[(1999u32.to_be_bytes().to_vec(), native(timestamp, 0, 0, b"local"))]);
                    if done.load(Ordering::Acquire) {
                        return timestamp;
                    }
                }
            });
            merge_from(&env, &snapshot).unwrap();
            done.store(true, Ordering::Release);
            writer.join().unwrap()
        });
        let all = contents(&env);
        assert_eq!(all["records"][1999u32.to_be_bytes().as_slice()], (newest, 0, b"local".to_vec()), "round {round}");
        assert_eq!(all["records"][5u32.to_be_bytes().as_slice()], (100, 0, b"remote".to_vec()));
    }
}

#[test]
fn application_that_drops_a_dbi() {
    drop_records_if_told();
}

#[test]
fn a_dbi_that_another_process_drops_during_a_merge_gets_all_of_the_snapshot() {
    let dir = temp_dir();
    let source = open(&file(&dir, "source.mdb"), 1 << 20);
    put_raw(&source, "records", 0, &records(5, 50, b"known"));
    put_raw(&source, "records", 0, &records(1, 100, b"newer"));
    let one = file(&dir, "one.pb.gz");
    publish_to(&source, &one);
    put_raw(&source, "unknown", 0, &records(1, 100, b"remote"));
    let two = file(&dir, "two.pb.gz");
    publish_to(&source, &two);
    // Whether or not the plan has something to create, and when it is streamed.
    for (snapshot, budget_bytes) in [(&one, 16 << 20), (&two, 16 << 20), (&one, 0)] {
        let path = file(&dir, "a.mdb");
        let _ = std::fs::remove_file(&path);
        let env = open(&path, 1 << 20);
        put_raw(&env, "records", 0, &records(5, 50, b"known"));
        put_raw(&env, "other", 0, &records(1, 50, b"other"));
        let merged = while_records_is_dropped(&path, |cancel| {
            merge(&env, &MergeOptions { budget_bytes, ..MergeOptions::new(snapshot) }, cancel).unwrap()
        });
        let all = contents(&env);
        assert_eq!(all["records"], contents(&source)["records"]);
        assert_eq!(all["other"].len(), 1);
        let entries = all["records"].len() + all.get("unknown").map_or(0, BTreeMap::len);
        assert_eq!((merged.txn_id, merged.added), (Some(env.last_txn_id()), entries as u64));
        // Seen again, there is nothing to do.
        assert_eq!(merge_from(&env, snapshot).unwrap().txn_id, None);
    }
}

#[test]
fn what_is_written_carries_the_transaction_and_what_stays_keeps_every_byte() {
    let dir = temp_dir();
    let source = open(&file(&dir, "source.mdb"), 1 << 20);
    put_raw(
        &source,
        "records",
        0,
        &[
            (b"kept".to_vec(), native(5, 1, 0, b"same")),
            (b"replaced".to_vec(), native(9, 1, 0, b"new")),
            (b"removed".to_vec(), native(9, 1, FLAG_DELETED, b"")),
        ],
    );
    let snapshot = file(&dir, "s.pb.gz");
    publish_to(&source, &snapshot);
    let env = open(&file(&dir, "a.mdb"), 1 << 20);
    // Reserved bytes and an extension block, as some other program might leave them.
    let mut odd = native(5, 77, 0, b"");
    odd[18..22].fill(0xee);
    odd[23] = 1;
    odd.extend_from_slice(b"EXTBLOCKsame");
    put_raw(
        &env,
        "records",
        0,
        &[(b"kept".to_vec(), odd.clone()), (b"replaced".to_vec(), odd.clone()), (b"removed".to_vec(), odd.clone())],
    );
    let merged = merge_from(&env, &snapshot).unwrap();
    let id = merged.txn_id.unwrap();
    assert_eq!(env.last_txn_id(), id);
    let raw = &raw_contents(&env)["records"];
    assert_eq!(raw[b"kept".as_slice()], odd);
    assert_eq!(raw[b"replaced".as_slice()], native(9, id, 0, b"new"));
    assert_eq!(raw[b"removed".as_slice()], native(9, id, FLAG_DELETED, b""));
}

#[test]
fn a_full_map_rolls_back_and_a_larger_one_is_enough() {
    let dir = temp_dir();
    let source = open(&file(&dir, "source.mdb"), 64 << 20);
    put_raw(&source, "records", 0, &records(20_000, 7, &[1; 100]));
    let snapshot = file(&dir, "s.pb.gz");
    publish_to(&source, &snapshot);
    let path = file(&dir, "a.mdb");
    let env = open(&path, 256 << 10);
    put_raw(&env, "records", 0, &records(3, 9, b"mine"));
    let before = raw_contents(&env);
    let error = merge_from(&env, &snapshot).unwrap_err();
    assert_eq!(error.code.name(), "MDB_MAP_FULL");
    assert!(error.message.contains("map_size"), "{error}");
    assert_eq!(raw_contents(&env), before);
    env.close();
    let env = open(&path, 64 << 20);
    merge_from(&env, &snapshot).unwrap();
    assert_eq!(contents(&env)["records"].len(), 20_000);
}

#[test]
fn a_value_without_header_is_an_error_with_its_place_and_nothing_is_written() {
    let dir = temp_dir();
    let source = open(&file(&dir, "source.mdb"), 1 << 20);
    put_raw(&source, "records", 0, &records(10, 7, b"x"));
    let snapshot = file(&dir, "s.pb.gz");
    publish_to(&source, &snapshot);
    for budget_bytes in [16 << 20, 0] {
        let env = open(&file(&dir, &format!("{budget_bytes}.mdb")), 1 << 20);
        put_raw(&env, "records", 0, &[(8u32.to_be_bytes().to_vec(), b"no header".to_vec())]);
        let before = raw_contents(&env);
        let mut options = MergeOptions::new(&snapshot);
        options.budget_bytes = budget_bytes;
        let error = merge(&env, &options, &Cancel::new()).unwrap_err();
        assert_eq!(error.code, Code::HeaderInvalid);
        assert_eq!(error.to_string().split_once(", DBI").unwrap().1, " records, key 00000008");
        assert_eq!(raw_contents(&env), before);
        let error = publish(&env, &file(&dir, "out"), Meta::default(), 0, || 1, &Cancel::new()).unwrap_err();
        assert_eq!((error.code, error.dbi.as_deref()), (Code::HeaderInvalid, Some("records")));
    }
}

#[test]
fn a_damaged_end_leaves_nothing_of_the_beginning() {
    let dir = temp_dir();
    let source = open(&file(&dir, "source.mdb"), 64 << 20);
    put_raw(&source, "records", 0, &records(60_000, 7, &[7; 100]));
    let snapshot = file(&dir, "s.pb.gz");
    publish_to(&source, &snapshot);
    let whole = std::fs::read(&snapshot).unwrap();
    let mut damaged = whole.clone();
    let last = damaged.len() - 6;
    damaged[last] ^= 1;
    for (what, bytes) in [("truncated", &whole[..whole.len() - 1]), ("checksum", &damaged)] {
        for budget_bytes in [16 << 20, 0, 100_000] {
            std::fs::write(&snapshot, bytes).unwrap();
            let env = open(&file(&dir, &format!("{what}-{budget_bytes}.mdb")), 64 << 20);
            put_raw(&env, "records", 0, &records(1, 1, b"mine"));
            let before = raw_contents(&env);
            let mut options = MergeOptions::new(&snapshot);
            options.budget_bytes = budget_bytes;
            let error = merge(&env, &options, &Cancel::new()).unwrap_err();
            assert_eq!(error.code, Code::SnapshotCorrupt, "{what}: {error}");
            assert_eq!(raw_contents(&env), before, "{what}");
        }
    }
}

#[test]
fn old_deletions_are_only_added_to_what_is_there() {
    let dir = temp_dir();
    let source = open(&file(&dir, "source.mdb"), 1 << 20);
    let deletion = |timestamp| native(timestamp, 0, FLAG_DELETED, b"");
    put_raw(
        &source,
        "records",
        0,
        &[
            (b"known".to_vec(), deletion(10)),
            (b"new-old".to_vec(), deletion(10)),
            (b"new-young".to_vec(), deletion(20)),
        ],
    );
    let snapshot = file(&dir, "s.pb.gz");
    publish_to(&source, &snapshot);
    let env = open(&file(&dir, "a.mdb"), 1 << 20);
    put_raw(&env, "records", 0, &[(b"known".to_vec(), native(5, 0, 0, b"live"))]);
    let mut options = MergeOptions::new(&snapshot);
    options.deleted_cutoff = 20;
    merge(&env, &options, &Cancel::new()).unwrap();
    let keys: Vec<_> = contents(&env)["records"].keys().cloned().collect();
    assert_eq!(keys, [b"known".to_vec(), b"new-young".to_vec()]);
    assert_eq!(contents(&env)["records"][b"known".as_slice()].1, FLAG_DELETED);
}

/// Every pass looks at the flag: an abort ends each of them soon. The bound is that of the interface with room for a busy machine.
#[test]
fn every_pass_can_be_aborted() {
    let dir = temp_dir();
    let source = open(&file(&dir, "source.mdb"), 512 << 20);
    put_raw(&source, "records", 0, &records(400_000, 7, &[7; 40]));
    let snapshot = file(&dir, "s.pb.gz");
    publish_to(&source, &snapshot);
    let started = Instant::now();
    publish_to(&source, &snapshot);
    let whole = started.elapsed();
    let target = open(&file(&dir, "target.mdb"), 512 << 20);
    let copy = open(&file(&dir, "copy.mdb"), 512 << 20);
    merge_from(&copy, &snapshot).unwrap();
    type Job<'a> = &'a (dyn Fn(&Cancel) -> Option<Code> + Sync);
    let jobs: [(&str, Job<'_>); 3] = [
        ("publish", &|cancel| {
            publish(&source, &file(&dir, "out"), Meta::default(), 0, || 1, cancel).err().map(|e| e.code)
        }),
        ("first load", &|cancel| merge(&target, &MergeOptions::new(&snapshot), cancel).err().map(|e| e.code)),
        ("no-op", &|cancel| merge(&copy, &MergeOptions::new(&snapshot), cancel).err().map(|e| e.code)),
    ];
    for (name, job) in jobs {
        // From then on the load is a no-op.
        let mut completed = false;
        for eighth in 0..8 {
            let cancel = Cancel::new();
            let (code, late) = std::thread::scope(|scope| {
                let worker = scope.spawn(|| (job(&cancel), Instant::now()));
                std::thread::sleep(whole * eighth / 8);
                cancel.cancel();
                let cancelled = Instant::now();
                let (code, ended) = worker.join().unwrap();
                (code, ended.saturating_duration_since(cancelled))
            });
            if let Some(code) = code {
                assert_eq!(code, Code::Aborted, "{name}");
                assert!(late < Duration::from_millis(500), "{name} went on for {late:?} after the abort");
            }
            completed |= code.is_none();
            if name == "first load" && !completed {
                assert!(contents(&target).values().all(BTreeMap::is_empty), "rolled back");
            }
        }
    }
}

#[test]
fn integer_keys_of_another_length_are_refused_whichever_way_they_are_merged() {
    let dir = temp_dir();
    let snapshot = file(&dir, "s.pb.gz");
    let source = open(&file(&dir, "source.mdb"), 1 << 20);
    put_raw(&source, "ids", flags::INTEGERKEY, &[(1u64.to_ne_bytes().to_vec(), native(1, 0, 0, b"x"))]);
    publish_to(&source, &snapshot);
    for budget_bytes in [16 << 20, 0] {
        let env = open(&file(&dir, &format!("{budget_bytes}.mdb")), 1 << 20);
        put_raw(&env, "ids", flags::INTEGERKEY, &[(1u32.to_ne_bytes().to_vec(), native(1, 0, 0, b"x"))]);
        let mut options = MergeOptions::new(&snapshot);
        options.budget_bytes = budget_bytes;
        let error = merge(&env, &options, &Cancel::new()).unwrap_err();
        assert_eq!(error.code, Code::SnapshotRefused, "{error}");
        assert_eq!(contents(&env)["ids"].len(), 1);
    }
}

#[test]
fn nothing_newer_is_not_published() {
    let dir = temp_dir();
    let env = open(&file(&dir, "a.mdb"), 1 << 20);
    let id = put_raw(&env, "x", 0, &[(b"k".to_vec(), native(1, 0, 0, b"v"))]);
    let path = file(&dir, "out");
    let newer_than = |id| publish(&env, &path, Meta::default(), id, || 1, &Cancel::new()).unwrap();
    assert!(newer_than(id).is_none());
    assert!(!path.exists());
    assert_eq!(newer_than(id - 1).unwrap().txn_id, id);
}

#[test]
fn what_cannot_travel_has_a_code_of_its_own() {
    let dir = temp_dir();
    let env = open(&file(&dir, "a.mdb"), 256 << 20);
    let out = file(&dir, "out");
    let code = || publish(&env, &out, Meta::default(), 0, || 1, &Cancel::new()).unwrap_err().code.name();
    put_raw(&env, "x", 0, &[(b"k".to_vec(), native(1, 0, 0, &vec![0; 64 << 20]))]);
    assert_eq!(code(), "VALUE_TOO_LARGE");
    put_raw(&env, "dup", flags::DUPSORT, &[(b"k".to_vec(), b"v".to_vec())]);
    assert_eq!(code(), "DBI_UNSUPPORTED");
}

#[test]
fn keys_that_lmdb_cannot_have_are_refused() {
    let dir = temp_dir();
    // Only LMDB itself makes such keys impossible in the source: integer keys of four bytes met by a DBI of eight.
    let source = open(&file(&dir, "source.mdb"), 1 << 20);
    put_raw(&source, "ids", 0, &[(b"seven77".to_vec(), native(1, 0, 0, b"x"))]);
    let snapshot = file(&dir, "s.pb.gz");
    publish_to(&source, &snapshot);
    let env = open(&file(&dir, "a.mdb"), 1 << 20);
    put_raw(&env, "ids", flags::INTEGERKEY, &[(1u32.to_ne_bytes().to_vec(), native(1, 0, 0, b"x"))]);
    let error = merge_from(&env, &snapshot).unwrap_err();
    assert_eq!((error.code, error.dbi.as_deref()), (Code::SnapshotRefused, Some("ids")));
}

#[test]
fn memory_of_a_big_write_is_given_back_and_the_environment_goes_on() {
    let dir = temp_dir();
    let source = open(&file(&dir, "source.mdb"), 256 << 20);
    put_raw(&source, "records", 0, &records(200_000, 7, &[7; 100]));
    let snapshot = file(&dir, "s.pb.gz");
    publish_to(&source, &snapshot);
    let env: Environment = open(&file(&dir, "a.mdb"), 256 << 20);
    merge_from(&env, &snapshot).unwrap();
    // Handles were closed and opened again: reading and writing go on as before.
    assert_eq!(contents(&env)["records"].len(), 200_000);
    put_raw(&env, "other", 0, &[(b"k".to_vec(), native(1, 0, 0, b"v"))]);
    assert_eq!(contents(&env)["other"].len(), 1);
    assert!(header::parse(&raw_contents(&env)["other"][b"k".as_slice()]).is_ok());
}
