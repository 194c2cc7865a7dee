//! Shadow mode beyond the rule itself: what takes the lock, what others write meanwhile, what is refused.

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{drop_records_if_told, file, open, put_raw, raw_contents, temp_dir, while_records_is_dropped};
use lightningstream_core::drop_private::drop_private;
use lightningstream_core::lmdb::{Environment, flags};
use lightningstream_core::merge::{
    CaptureOptions, Captured, Counts, MergeOptions, Merged, Shadow, Stamp, capture, merge,
};
use lightningstream_core::publish::publish_shadow;
use lightningstream_core::snapshot::Meta;
use lightningstream_core::{Cancel, Code, Result};

fn shadow(now: u64) -> Shadow {
    Shadow { guard: true, stamp: Stamp::Fixed(now), dupsort_hack: true }
}

fn capture_at(env: &Environment, now: u64) -> Result<Captured> {
    capture(env, &CaptureOptions::new(shadow(now)), &Cancel::new())
}

fn publish_at(env: &Environment, path: &std::path::Path, now: u64) {
    publish_shadow(env, path, Meta::default(), 0, shadow(now), || now, &Cancel::new()).unwrap().unwrap();
}

fn merge_at(env: &Environment, path: &std::path::Path, now: u64) -> Result<Merged> {
    let mut options = MergeOptions::new(path);
    options.shadow = Some(shadow(now));
    merge(env, &options, &Cancel::new())
}

fn records(count: u32, value: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    (0..count).map(|i| (i.to_be_bytes().to_vec(), value.to_vec())).collect()
}

#[test]
fn where_nothing_has_changed_no_write_lock_is_taken() {
    let dir = temp_dir();
    let env = open(&file(&dir, "a.mdb"), 16 << 20);
    put_raw(&env, "records", 0, &records(5000, b"value"));
    let snapshot = file(&dir, "s.pb.gz");
    publish_at(&env, &snapshot, 5);
    let before = raw_contents(&env);
    std::thread::scope(|scope| {
        // Somebody holds the lock all the while: whoever wanted it would wait for ever.
        let held = env.write(false, &Cancel::new()).unwrap();
        let (merged, captured) =
            scope.spawn(|| (merge_at(&env, &snapshot, 9).unwrap(), capture_at(&env, 9).unwrap())).join().unwrap();
        assert_eq!((merged.txn_id, merged.entries, merged.write_lock), (None, 5000, Duration::ZERO));
        assert_eq!((captured.txn_id, captured.entries, captured.covered_txn_id), (None, 5000, env.last_txn_id()));
        drop(held);
    });
    assert_eq!(raw_contents(&env), before);
}

#[test]
fn what_the_application_writes_during_a_merge_is_not_lost() {
    let dir = temp_dir();
    let source = open(&file(&dir, "source.mdb"), 16 << 20);
    put_raw(&source, "records", 0, &records(2000, b"remote"));
    let snapshot = file(&dir, "s.pb.gz");
    publish_at(&source, &snapshot, 100);
    for round in 0..10 {
        let env = open(&file(&dir, &format!("{round}.mdb")), 512 << 20);
        put_raw(&env, "records", 0, &records(2000, b"old"));
        capture_at(&env, 50).unwrap();
        let done = AtomicBool::new(false);
        let key = || 1999u32.to_be_bytes().to_vec();
        let newest = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut number = 0u64;
                loop {
                    number += 1;
                    put_raw(&env, "records", 0, &[(key(), number.to_be_bytes().to_vec())]);
                    if done.load(Ordering::Acquire) {
                        return number;
                    }
                }
            });
            // Its time is after the snapshot's: what the application wrote until the lock was there wins.
            merge_at(&env, &snapshot, 200).unwrap();
            done.store(true, Ordering::Release);
            writer.join().unwrap()
        });
        let captured = capture_at(&env, 300).unwrap();
        let all = raw_contents(&env);
        assert_eq!(all["records"][&key()], newest.to_be_bytes(), "round {round}");
        assert_eq!(all["_sync_shadow_records"][&key()][24..], newest.to_be_bytes(), "round {round}");
        assert_eq!(all["records"][5u32.to_be_bytes().as_slice()], b"remote");
        assert_eq!((captured.counts.added, captured.counts.deleted), (0, 0));
    }
}

#[test]
fn what_cannot_be_synchronised_names_the_dbi_and_the_remedy() {
    let dir = temp_dir();
    let error_of = |name: &str, bits: u32, entries: &[(&[u8], &[u8])]| {
        let env = open(&file(&dir, name), 1 << 20);
        let mut txn = env.write(true, &Cancel::new()).unwrap();
        let dbi = txn.create_dbi("dbi", bits).unwrap();
        let mut cursor = txn.cursor(dbi).unwrap();
        entries.iter().for_each(|(key, value)| cursor.put_duplicate(key, value).unwrap());
        drop(cursor);
        txn.commit().unwrap();
        let before = env.last_txn_id();
        let error = capture_at(&env, 5).unwrap_err();
        assert_eq!((error.dbi.as_deref(), env.last_txn_id()), (Some("dbi"), before), "{error}");
        assert_eq!(error.code, Code::DbiUnsupported, "{error}");
        error.message
    };
    assert!(error_of("reverse", flags::REVERSEKEY, &[(b"za", b""), (b"az", b"")]).contains("not sorted"));
    assert!(error_of("long", flags::DUPSORT, &[(&[b'k'; 256], b"v")]).contains("256"));
    let alike = [[&b"v"[..], &[b'v'; 509]].concat(), [&[b'v'; 510][..], b"w"].concat()];
    assert!(error_of("alike", flags::DUPSORT, &[(b"k", &alike[0]), (b"k", &alike[1])]).contains("alike"));
    let reversed: [(&[u8], &[u8]); 2] = [(b"k", b"\0\0\0\0b"), (b"k\0\0\0\0", b"a")];
    assert!(error_of("order", flags::DUPSORT, &reversed).contains("order"));
    assert!(error_of("integers", flags::DUPSORT | flags::INTEGERKEY, &[(&[1; 4], b"a")]).contains("INTEGERKEY"));

    let env = open(&file(&dir, "name"), 1 << 20);
    put_raw(&env, &"n".repeat(500), 0, &[(b"k".to_vec(), b"v".to_vec())]);
    assert_eq!(capture_at(&env, 5).unwrap_err().code, Code::DbiUnsupported);

    let env = open(&file(&dir, "hack"), 1 << 20);
    put_raw(&env, "dbi", flags::DUPSORT, &[(b"k".to_vec(), b"v".to_vec())]);
    let without = Shadow { dupsort_hack: false, ..shadow(5) };
    let error = capture(&env, &CaptureOptions::new(without), &Cancel::new()).unwrap_err();
    assert_eq!(error.code, Code::DbiUnsupported);
    assert!(error.message.contains("dupsort_hack: true"), "{error}");

    // The other instance has the DBI without duplicates: its keys are not encoded.
    let other = open(&file(&dir, "plain"), 1 << 20);
    put_raw(&other, "dbi", 0, &[(b"k".to_vec(), b"v".to_vec())]);
    let snapshot = file(&dir, "plain.pb.gz");
    publish_at(&other, &snapshot, 5);
    assert_eq!(merge_at(&env, &snapshot, 6).unwrap_err().code, Code::SnapshotRefused);
    publish_at(&env, &snapshot, 5);
    assert_eq!(merge_at(&other, &snapshot, 6).unwrap_err().code, Code::SnapshotRefused);
}

#[test]
fn a_start_up_capture_is_older_than_everything_and_removals_enter_it() {
    let dir = temp_dir();
    let env = open(&file(&dir, "a.mdb"), 1 << 20);
    put_raw(&env, "records", 0, &records(4, b"first"));
    put_raw(&env, "_sync_other", 0, &records(1, b"left alone"));
    capture_at(&env, 1000).unwrap();
    put_raw(&env, "records", 0, &[(b"new".to_vec(), b"new".to_vec())]);
    put_raw(&env, "records", 0, &records(1, b"second"));
    let mut txn = env.write(false, &Cancel::new()).unwrap();
    let dbi = txn.dbi("records").unwrap().unwrap();
    txn.cursor(dbi).unwrap().delete(&1u32.to_be_bytes(), &[]).unwrap();
    txn.commit().unwrap();
    let captured = capture_at(&env, 1).unwrap();
    assert_eq!((captured.counts.added, captured.counts.changed, captured.counts.deleted), (1, 0, 1));
    // The change lost against what the shadow knows, and enters with the next time.
    let captured = capture_at(&env, 2000).unwrap();
    assert_eq!((captured.counts.added, captured.counts.changed, captured.counts.deleted), (0, 1, 0));
    let all = raw_contents(&env);
    let entry = |key: &[u8]| {
        let native = lightningstream_core::header::parse(&all["_sync_shadow_records"][key]).unwrap();
        (native.timestamp, native.is_deleted(), native.value)
    };
    assert_eq!(entry(b"new"), (1, false, &b"new"[..]));
    assert_eq!(entry(&0u32.to_be_bytes()), (2000, false, &b"second"[..]));
    assert_eq!(entry(&1u32.to_be_bytes()), (1, true, &b""[..]));
    assert_eq!(entry(&2u32.to_be_bytes()), (1000, false, &b"first"[..]));
    assert!(!all.contains_key("_sync_shadow__sync_other") && all["_sync_other"].len() == 1);
}

#[test]
fn application_that_drops_a_dbi() {
    drop_records_if_told();
}

#[test]
fn a_dbi_that_is_dropped_during_a_merge_comes_back_whole() {
    let dir = temp_dir();
    let source = open(&file(&dir, "source.mdb"), 1 << 20);
    put_raw(&source, "records", 0, &records(1, b"remote"));
    let one = file(&dir, "one.pb.gz");
    publish_at(&source, &one, 100);
    put_raw(&source, "unknown", 0, &records(1, b"remote"));
    let two = file(&dir, "two.pb.gz");
    publish_at(&source, &two, 100);
    // Whether or not the plan has something else to create.
    for snapshot in [two, one] {
        let path = file(&dir, "a.mdb");
        let _ = std::fs::remove_file(&path);
        let env = open(&path, 1 << 20);
        put_raw(&env, "records", 0, &records(5, b"local"));
        capture_at(&env, 50).unwrap();
        while_records_is_dropped(&path, |cancel| {
            let options = MergeOptions { shadow: Some(shadow(200)), ..MergeOptions::new(&snapshot) };
            merge(&env, &options, cancel)
        })
        .unwrap();
        let mut expected: BTreeMap<_, _> = records(5, b"local").into_iter().collect();
        expected.extend(records(1, b"remote"));
        assert_eq!(raw_contents(&env)["records"], expected);
        assert_eq!(capture_at(&env, 300).unwrap().counts, Counts::default());
    }
}

#[test]
fn a_shadow_of_another_kind_than_its_dbi_is_left_alone() {
    let dir = temp_dir();
    let refused = |env: &Environment, words: &str| {
        let before = raw_contents(env);
        let error = capture_at(env, 6).unwrap_err();
        assert_eq!((error.code, error.dbi.as_deref()), (Code::DbiUnsupported, Some("dbi")), "{error}");
        assert!(error.message.contains(words) && error.message.contains("drop-shadow"), "{error}");
        assert_eq!(raw_contents(env), before);
        drop_private(env, &Cancel::new()).unwrap();
        assert_eq!(capture_at(env, 7).unwrap().counts.added, 1);
    };
    let env = open(&file(&dir, "integers.mdb"), 1 << 20);
    put_raw(&env, "dbi", flags::INTEGERKEY, &[(1u32.to_ne_bytes().to_vec(), b"v".to_vec())]);
    capture_at(&env, 5).unwrap();
    let mut txn = env.write(true, &Cancel::new()).unwrap();
    txn.drop_dbi("dbi").unwrap();
    txn.commit().unwrap();
    put_raw(&env, "dbi", flags::INTEGERKEY, &[(2u64.to_ne_bytes().to_vec(), b"v".to_vec())]);
    refused(&env, "integer keys of 8 and 4 bytes");

    let env = open(&file(&dir, "duplicates.mdb"), 1 << 20);
    put_raw(&env, "dbi", 0, &[(b"k".to_vec(), b"v".to_vec())]);
    put_raw(&env, "_sync_shadow_dbi", flags::DUPSORT, &[]);
    refused(&env, "MDB_DUPSORT");
}

#[test]
fn entries_that_only_together_are_in_an_order_that_the_encoding_reverses_stop_it_until_one_is_gone() {
    let dir = temp_dir();
    let duplicate = |env: &Environment, key: &[u8], value: &[u8], remove: bool| {
        let mut txn = env.write(true, &Cancel::new()).unwrap();
        let dbi = txn.create_dbi("dbi", flags::DUPSORT).unwrap();
        let mut cursor = txn.cursor(dbi).unwrap();
        if remove { cursor.delete(key, value) } else { cursor.put_duplicate(key, value) }.unwrap();
        drop(cursor);
        txn.commit().unwrap();
    };
    let [one, other] = ["one", "other"].map(|name| open(&file(&dir, name), 1 << 20));
    duplicate(&one, b"k", b"\0\0\0\0b", false);
    duplicate(&other, b"k\0\0\0\0", b"a", false);
    let snapshot = file(&dir, "s.pb.gz");
    publish_at(&other, &snapshot, 5);
    merge_at(&one, &snapshot, 5).unwrap();
    let error = capture_at(&one, 6).unwrap_err();
    assert_eq!((error.code, error.dbi.as_deref()), (Code::DbiUnsupported, Some("dbi")));
    assert!(error.key.is_some() && error.message.contains("order"), "{error}");
    duplicate(&one, b"k", b"\0\0\0\0b", true);
    assert_eq!(capture_at(&one, 7).unwrap().counts.deleted, 1);
}
