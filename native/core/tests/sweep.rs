//! The sweeper: what it removes, what it leaves, and how it stands beside others who write.

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::{Random, file, native, open, put_raw, raw_contents, temp_dir};
use lightningstream_core::header::FLAG_DELETED;
use lightningstream_core::lmdb::{Environment, flags};
use lightningstream_core::sweep::{SweepOptions, Swept, sweep};
use lightningstream_core::{Cancel, Code};

/// Deletions from before this are old.
const CUTOFF: u64 = 1000;

const OPTIONS: SweepOptions =
    SweepOptions { cutoff: CUTOFF, lock_duration: None, release_duration: Duration::ZERO, shadow: false };

fn swept(env: &Environment, options: &SweepOptions) -> Swept {
    sweep(env, options, &Cancel::new()).unwrap()
}

fn key(number: u32) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

fn old_deletions(numbers: impl Iterator<Item = u32>) -> Vec<(Vec<u8>, Vec<u8>)> {
    numbers.map(|number| (key(number), native(5, 1, FLAG_DELETED, b""))).collect()
}

#[test]
fn exactly_the_old_deletions_go() {
    let dir = temp_dir();
    let env = open(&file(&dir, "a.mdb"), 4 << 20);
    let kept = [
        (key(1), native(1, 7, 0, b"old, but alive")),
        (key(2), native(CUTOFF, 7, FLAG_DELETED, b"")),
        (key(3), native(u64::MAX, 7, FLAG_DELETED, b"")),
        // Only one of the flags says deleted.
        (key(4), native(1, 7, 0xfe, b"alive")),
    ];
    let gone = [
        (key(0), native(CUTOFF - 1, 7, FLAG_DELETED, b"")),
        (key(5), native(0, 7, 0xff, b"")),
        (key(6), {
            // A deletion with a value behind its header.
            let mut value = native(1, 7, FLAG_DELETED, b"");
            value.extend_from_slice(b"left over");
            value
        }),
    ];
    put_raw(&env, "records", 0, &kept);
    put_raw(&env, "records", 0, &gone);
    put_raw(&env, "empty", 0, &[]);
    let cancel = Cancel::new();
    let out = sweep(&env, &OPTIONS, &cancel).unwrap();
    assert_eq!((out.entries, out.deleted, out.cleaned, out.transactions), (4, 2, 3, 1));
    assert!(out.failed.is_none());
    assert_eq!(cancel.progress(), (7, 3, 7));
    let all = raw_contents(&env);
    assert_eq!(all["records"], BTreeMap::from(kept));
    assert_eq!(all["empty"], BTreeMap::new());
}

#[test]
fn nothing_to_remove_takes_no_write_lock() {
    let dir = temp_dir();
    let env = open(&file(&dir, "a.mdb"), 16 << 20);
    put_raw(&env, "records", 0, &(0..5000).map(|i| (key(i), native(5, 1, 0, b"alive"))).collect::<Vec<_>>());
    let before = env.last_txn_id();
    std::thread::scope(|scope| {
        // A sweep that wanted the lock would wait for ever.
        let held = env.write(false, &Cancel::new()).unwrap();
        let out = scope.spawn(|| swept(&env, &OPTIONS)).join().unwrap();
        assert_eq!((out.entries, out.transactions), (5000, 0));
        drop(held);
    });
    assert_eq!(env.last_txn_id(), before);
}

#[test]
fn only_what_has_headers_of_ours_is_swept() {
    let dir = temp_dir();
    let fill = |name: &str| {
        let env = open(&file(&dir, name), 4 << 20);
        for dbi in ["records", "_sync_shadow_records", "_sync_other"] {
            put_raw(&env, dbi, 0, &old_deletions(0..10));
        }
        put_raw(&env, "duplicates", flags::DUPSORT, &old_deletions(0..10));
        env
    };
    let left = |env: &Environment| -> Vec<_> {
        raw_contents(env).into_iter().filter(|(_, entries)| !entries.is_empty()).map(|(name, _)| name).collect()
    };
    let env = fill("native.mdb");
    assert_eq!(swept(&env, &OPTIONS).cleaned, 10);
    assert_eq!(left(&env), ["_sync_other", "_sync_shadow_records", "duplicates"]);
    let env = fill("shadow.mdb");
    assert_eq!(swept(&env, &SweepOptions { shadow: true, ..OPTIONS }).cleaned, 10);
    assert_eq!(left(&env), ["_sync_other", "duplicates", "records"]);
}

#[test]
fn any_mix_of_entries_in_any_kind_of_dbi_in_slices_of_any_length() {
    let dir = temp_dir();
    for seed in 0..24 {
        let mut random = Random(seed);
        let env = open(&file(&dir, &format!("{seed}.mdb")), 256 << 20);
        let mut expected = BTreeMap::new();
        let mut cleaned = 0;
        for (name, dbi_flags) in
            [("a", 0), ("b", flags::REVERSEKEY), ("c", flags::INTEGERKEY), ("d", flags::INTEGERKEY)]
        {
            let stale_percent = *random.pick(&[0, 1, 50, 99, 100]);
            // Runs of equals: whole pages empty, others stay.
            let run = *random.pick(&[1, 7, 400]);
            let mut entries = BTreeMap::new();
            let mut stale = false;
            for number in 0..random.below(4000) {
                if number.is_multiple_of(run) {
                    stale = random.below(100) < stale_percent;
                }
                let key = match name {
                    "c" => (number as u32).to_ne_bytes().to_vec(),
                    "d" => number.to_ne_bytes().to_vec(),
                    _ => {
                        let mut key = random.next().to_be_bytes().to_vec();
                        key.resize(8 + random.below(100) as usize, b'k');
                        key
                    }
                };
                // Some on overflow pages.
                let bytes = if random.below(50) == 0 { 9000 } else { random.below(60) as usize };
                let value = match stale {
                    true => native(random.below(CUTOFF), 1, FLAG_DELETED, b""),
                    false if random.below(3) == 0 => native(CUTOFF + random.below(9), 1, FLAG_DELETED, b""),
                    false => native(random.next(), 1, 0, &vec![b'v'; bytes]),
                };
                entries.insert(key, (value, stale));
            }
            let all: Vec<_> = entries.iter().map(|(key, (value, _))| (key.clone(), value.clone())).collect();
            put_raw(&env, name, dbi_flags, &all);
            cleaned += entries.values().filter(|(_, stale)| *stale).count() as u64;
            expected.insert(
                name.to_owned(),
                entries
                    .into_iter()
                    .filter(|(_, (_, stale))| !stale)
                    .map(|(key, (value, _))| (key, value))
                    .collect::<BTreeMap<_, _>>(),
            );
        }
        let lock_duration = *random.pick(&[None, Some(Duration::from_nanos(1)), Some(Duration::from_millis(50))]);
        let out = swept(&env, &SweepOptions { lock_duration, ..OPTIONS });
        let left: usize = expected.values().map(BTreeMap::len).sum();
        assert_eq!((out.cleaned, out.entries), (cleaned, left as u64), "seed {seed}");
        assert_eq!(raw_contents(&env), expected, "seed {seed}");
        if lock_duration == Some(Duration::from_nanos(1)) && cleaned > 400 {
            assert!(out.transactions > 4, "seed {seed}: {out:?}");
        }
    }
}

#[test]
fn the_lock_is_let_go_when_its_time_is_over() {
    let dir = temp_dir();
    let env = open(&file(&dir, "a.mdb"), 16 << 20);
    put_raw(&env, "records", 0, &old_deletions(0..1000));
    let out = swept(&env, &SweepOptions { lock_duration: Some(Duration::from_nanos(1)), ..OPTIONS });
    // The clock is looked at every 64 records.
    assert_eq!((out.cleaned, out.transactions), (1000, 16));
    put_raw(&env, "records", 0, &old_deletions(0..9000));
    // What a commit costs is not known before the first one.
    let out = swept(&env, &SweepOptions { lock_duration: Some(Duration::from_secs(3600)), ..OPTIONS });
    assert_eq!((out.cleaned, out.transactions), (9000, 2));
    put_raw(&env, "records", 0, &old_deletions(0..9000));
    assert_eq!(swept(&env, &OPTIONS).transactions, 1);
}

/// Runs `meanwhile` in a write transaction that the sweep has to wait for, after it has seen what is there.
fn sweep_beside(env: &Environment, meanwhile: impl FnOnce(&mut lightningstream_core::lmdb::WriteTxn<'_>)) -> Swept {
    let cancel = Cancel::new();
    std::thread::scope(|scope| {
        let mut txn = env.write(false, &Cancel::new()).unwrap();
        let sweeping = scope.spawn(|| sweep(env, &OPTIONS, &cancel).unwrap());
        while !cancel.is_waiting_for_lock() {
            std::thread::yield_now();
        }
        meanwhile(&mut txn);
        txn.commit().unwrap();
        sweeping.join().unwrap()
    })
}

#[test]
fn what_was_written_since_it_was_seen_stays() {
    let dir = temp_dir();
    let env = open(&file(&dir, "a.mdb"), 4 << 20);
    put_raw(&env, "records", 0, &old_deletions(0..5));
    let alive = native(2000, 3, 0, b"back again");
    let deleted_again = native(2000, 3, FLAG_DELETED, b"");
    let out = sweep_beside(&env, |txn| {
        let dbi = txn.dbi("records").unwrap().unwrap();
        let mut cursor = txn.cursor(dbi).unwrap();
        cursor.put(&key(1), &alive, false).unwrap();
        cursor.put(&key(2), &deleted_again, false).unwrap();
        cursor.delete(&key(3), &[]).unwrap();
    });
    assert_eq!((out.entries, out.deleted, out.cleaned), (2, 1, 2));
    assert!(out.failed.is_none());
    assert_eq!(raw_contents(&env)["records"], BTreeMap::from([(key(1), alive), (key(2), deleted_again)]));
}

#[test]
fn a_dbi_that_was_emptied_meanwhile_is_no_trouble() {
    let dir = temp_dir();
    let env = open(&file(&dir, "a.mdb"), 4 << 20);
    put_raw(&env, "records", 0, &old_deletions(0..5));
    put_raw(&env, "zones", 0, &old_deletions(0..5));
    let out = sweep_beside(&env, |txn| {
        let dbi = txn.dbi("records").unwrap().unwrap();
        let mut cursor = txn.cursor(dbi).unwrap();
        for number in 0..5 {
            cursor.delete(&key(number), &[]).unwrap();
        }
    });
    assert_eq!((out.cleaned, out.failed.is_none()), (5, true));
    assert!(raw_contents(&env).values().all(BTreeMap::is_empty));
}

#[test]
fn an_abort_ends_the_wait_and_keeps_what_is_committed() {
    let dir = temp_dir();
    let env = open(&file(&dir, "a.mdb"), 4 << 20);
    put_raw(&env, "records", 0, &old_deletions(0..1000));
    let options = SweepOptions {
        lock_duration: Some(Duration::from_nanos(1)),
        release_duration: Duration::from_secs(3600),
        ..OPTIONS
    };
    let cancel = Cancel::new();
    let error = std::thread::scope(|scope| {
        let sweeping = scope.spawn(|| sweep(&env, &options, &cancel).unwrap_err());
        while cancel.progress().1 == 0 {
            std::thread::yield_now();
        }
        cancel.cancel();
        sweeping.join().unwrap()
    });
    assert_eq!(error.code, Code::Aborted);
    assert_eq!(raw_contents(&env)["records"].len(), 1000 - 64);
    // Nothing is held, and another sweep does the rest.
    assert_eq!(swept(&env, &OPTIONS).cleaned, 1000 - 64);
}

#[test]
fn a_value_without_header_stops_only_its_own_dbi() {
    let dir = temp_dir();
    let env = open(&file(&dir, "a.mdb"), 4 << 20);
    put_raw(&env, "a", 0, &old_deletions(0..10));
    put_raw(&env, "a", 0, &[(key(5), b"no header".to_vec())]);
    put_raw(&env, "b", 0, &old_deletions(0..10));
    let out = swept(&env, &OPTIONS);
    let error = out.failed.unwrap();
    assert_eq!((error.code, error.dbi.as_deref(), error.key), (Code::HeaderInvalid, Some("a"), Some(key(5))));
    assert_eq!(out.cleaned, 15);
    let all = raw_contents(&env);
    assert_eq!(all["a"].keys().cloned().collect::<Vec<_>>(), (5..10).map(key).collect::<Vec<_>>());
    assert!(all["b"].is_empty());
}

/// Fills a small map to the brim with old deletions among large live values.
fn full_map(env: &Environment) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut alive = BTreeMap::new();
    for number in 0.. {
        let entry = if number % 4 == 0 {
            (key(number), native(5, 1, 0, &[b'v'; 400]))
        } else {
            (key(number), native(5, 1, FLAG_DELETED, b""))
        };
        let mut txn = env.write(true, &Cancel::new()).unwrap();
        let dbi = match txn.dbi("records").unwrap() {
            Some(dbi) => dbi,
            None => txn.create_dbi("records", 0).unwrap(),
        };
        let written = txn.cursor(dbi).and_then(|mut cursor| cursor.put(&entry.0, &entry.1, false));
        if written.and_then(|()| txn.commit()).is_err() {
            break;
        }
        if number % 4 == 0 {
            alive.insert(entry.0, entry.1);
        }
    }
    alive
}

#[test]
fn in_a_full_map_deletions_make_room_for_themselves() {
    let dir = temp_dir();
    let env = open(&file(&dir, "a.mdb"), 1 << 20);
    let alive = full_map(&env);
    let out = swept(&env, &OPTIONS);
    assert!(out.failed.is_none(), "{out:?}");
    assert_eq!(raw_contents(&env)["records"], alive);
}

#[test]
fn a_map_without_room_for_any_deletion_is_a_clear_error_and_a_larger_one_helps() {
    let dir = temp_dir();
    let path = file(&dir, "a.mdb");
    // As many as one transaction gets in: no page is left or free.
    let most = (0..20_000).rev().step_by(20).find(|&count| {
        let _ = std::fs::remove_file(&path);
        let env = open(&path, 256 << 10);
        let mut txn = env.write(true, &Cancel::new()).unwrap();
        let dbi = txn.create_dbi("records", 0).unwrap();
        let mut cursor = txn.cursor(dbi).unwrap();
        let written = old_deletions(0..count).iter().try_for_each(|(key, value)| cursor.put(key, value, true));
        drop(cursor);
        written.and_then(|()| txn.commit()).is_ok()
    });
    let most = most.unwrap() as usize;
    let env = open(&path, 256 << 10);
    let out = swept(&env, &OPTIONS);
    let error = out.failed.unwrap();
    assert_eq!(error.code.name(), "MDB_MAP_FULL");
    assert!(error.to_string().contains("map of 262144 bytes") && error.to_string().contains("map_size"), "{error}");
    assert_eq!((out.cleaned, raw_contents(&env)["records"].len()), (0, most));
    env.close();
    let env = open(&path, 1 << 20);
    let out = swept(&env, &OPTIONS);
    assert_eq!((out.cleaned as usize, out.failed.is_none()), (most, true));
}
