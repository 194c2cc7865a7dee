//! Schemas: what LMDBs and snapshots of each kind tell, and that a merge does not write where the schema has changed meanwhile.

mod common;

use std::path::Path;

use common::{contents, file, native, open, publish_to, put_raw, temp_dir};
use lightningstream_core::lmdb::{Environment, flags};
use lightningstream_core::merge::{MergeOptions, Shadow, Stamp, merge};
use lightningstream_core::publish::publish_shadow;
use lightningstream_core::schema::{Expected, Schema, of_lmdb, of_snapshot};
use lightningstream_core::snapshot::Meta;
use lightningstream_core::{Cancel, Code};

const KEY: &[u8] = b"schemaversion";

fn of(env: &Environment) -> Option<String> {
    of_lmdb(&env.read_latest().unwrap()).unwrap().map(|schema| schema.to_string())
}

fn of_file(path: &Path, exact: bool) -> Option<String> {
    of_snapshot(path, exact, &Cancel::new()).unwrap().map(|schema| schema.to_string())
}

fn said(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn pdns(env: &Environment, value: &[u8]) {
    put_raw(env, "pdns", 0, &[(KEY.to_vec(), value.to_vec())]);
}

#[test]
fn the_number_of_an_lmdb() {
    let long = {
        let mut stored = native(5, 7, 0, &[]);
        stored[23] = 1;
        stored.extend_from_slice(&[0; 8]);
        stored.extend_from_slice(&[0, 0, 0, 6]);
        stored
    };
    for (value, expected) in [
        (&[4, 0, 0, 0][..], said("4")),
        (&[3, 0, 0, 0], said("3")),
        (&[0, 0, 0, 4], said("4")),
        (&native(0, 1, 0, &[0, 0, 0, 5]), said("5")),
        (&native(9, 1, 0, &[0, 0, 0, 6]), said("6")),
        (&long, said("6")),
        // No number of four bytes.
        (&[5], None),
        (&native(0, 1, 0, &[5]), None),
        (&native(0, 1, 1, &[]), None),
        (&[], None),
    ] {
        let dir = temp_dir();
        let env = open(&file(&dir, "a.mdb"), 1 << 20);
        pdns(&env, value);
        assert_eq!(of(&env), expected, "{value:?}");
    }
}

#[test]
fn names_tell_where_there_is_no_number() {
    for (names, expected) in [
        (&["records"][..], said("4 or older")),
        (&["domains", "domains_0"], said("4 or older")),
        (&["records_v5"], said("5 or newer")),
        (&["comments_v7", "records_v5"], said("5 or newer")),
        (&["records", "records_v5"], said("5 or newer")),
        (&["_sync_shadow_records", "data"], None),
        (&["_sync_shadow_records_v5"], None),
        (&["data"], None),
        (&[], None),
    ] {
        let dir = temp_dir();
        let env = open(&file(&dir, "a.mdb"), 1 << 20);
        for name in names {
            put_raw(&env, name, 0, &[(b"k".to_vec(), native(1, 1, 0, b"v"))]);
        }
        assert_eq!(of(&env), expected, "{names:?}");
        put_raw(&env, "pdns", flags::DUPSORT, &[(KEY.to_vec(), native(0, 1, 0, &[0, 0, 0, 6]))]);
        assert_eq!(of(&env), expected, "{names:?} and a table of another kind");
    }
}

#[test]
fn a_snapshot_tells_what_the_lmdb_does() {
    let dir = temp_dir();
    let env = open(&file(&dir, "a.mdb"), 1 << 20);
    let path = file(&dir, "s.pb.gz");
    put_raw(&env, "a_table", 0, &[(b"k".to_vec(), native(1, 1, 0, b"v"))]);
    assert_eq!(publish_to(&env, &path).schema, None);
    assert_eq!((of_file(&path, false), of_file(&path, true)), (None, None));
    put_raw(&env, "records_v5", 0, &[(b"k".to_vec(), native(1, 1, 0, b"v"))]);
    assert_eq!(publish_to(&env, &path).schema, Some(Schema { version: 5, exact: false }));
    assert_eq!((of_file(&path, false), of_file(&path, true)), (said("5 or newer"), said("5 or newer")));
    // The key, in another table, and in the right one but deleted, or no number.
    put_raw(&env, "a_table", 0, &[(KEY.to_vec(), native(1, 1, 0, &[0, 0, 0, 9]))]);
    for stored in [native(1, 1, 1, &[]), native(1, 1, 0, &[6])] {
        pdns(&env, &stored);
        publish_to(&env, &path);
        assert_eq!(of_file(&path, true), said("5 or newer"));
    }
    pdns(&env, &native(1, 1, 0, &[0, 0, 0, 6]));
    assert_eq!(publish_to(&env, &path).schema, Some(Schema { version: 6, exact: true }));
    assert_eq!(of_file(&path, true), said("6"));
}

#[test]
fn a_snapshot_of_shadow_mode() {
    let dir = temp_dir();
    let env = open(&file(&dir, "a.mdb"), 1 << 20);
    let path = file(&dir, "s.pb.gz");
    put_raw(&env, "domains", 0, &[(b"k".to_vec(), b"v".to_vec())]);
    pdns(&env, &[4, 0, 0, 0]);
    let shadow = Shadow { guard: true, stamp: Stamp::Fixed(5), dupsort_hack: true };
    let published = publish_shadow(&env, &path, Meta::default(), 0, shadow, || 5, &Cancel::new()).unwrap().unwrap();
    assert_eq!(published.schema, Some(Schema { version: 4, exact: true }));
    assert_eq!((of_file(&path, false), of_file(&path, true)), (said("4 or older"), said("4")));
}

#[test]
fn a_damaged_snapshot_is_corrupt_once_the_damage_is_met() {
    let dir = temp_dir();
    let env = open(&file(&dir, "a.mdb"), 64 << 20);
    let path = file(&dir, "s.pb.gz");
    let entries: Vec<_> = (0..200_000u32).map(|i| (i.to_be_bytes().to_vec(), native(1, 1, 0, b"value"))).collect();
    put_raw(&env, "domains_v5", 0, &entries);
    publish_to(&env, &path);
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 100]).unwrap();
    assert_eq!(of_file(&path, false), said("5 or newer"));
    assert_eq!(of_snapshot(&path, true, &Cancel::new()).unwrap_err().code, Code::SnapshotCorrupt);
    let cancel = Cancel::new();
    cancel.cancel();
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(of_snapshot(&path, true, &cancel).unwrap_err().code, Code::Aborted);
}

#[test]
fn a_merge_writes_nothing_where_the_schema_is_not_the_expected_one() {
    let dir = temp_dir();
    let source = open(&file(&dir, "source.mdb"), 1 << 20);
    let path = file(&dir, "s.pb.gz");
    put_raw(&source, "records_v5", 0, &[(b"k".to_vec(), native(9, 1, 0, b"new"))]);
    publish_to(&source, &path);
    let env = open(&file(&dir, "a.mdb"), 1 << 20);
    let five = Some(Schema { version: 5, exact: true });
    let attempt = |expected| {
        let options = MergeOptions { schema: Some(Expected(expected)), ..MergeOptions::new(&path) };
        merge(&env, &options, &Cancel::new())
    };
    let error = attempt(five).unwrap_err();
    assert_eq!((error.code, error.code.name()), (Code::SchemaChanged, "SCHEMA_CHANGED".to_owned()));
    assert!(error.message.ends_with("from 5 to none"), "{error}");
    assert!(contents(&env).is_empty());
    pdns(&env, &native(0, 1, 0, &[0, 0, 0, 6]));
    let before = contents(&env);
    for (expected, text) in [(five, "from 5 to 6"), (None, "from none to 6")] {
        let error = attempt(expected).unwrap_err();
        assert!(error.code == Code::SchemaChanged && error.message.ends_with(text), "{error}");
    }
    assert_eq!(contents(&env), before);
    assert_eq!(attempt(Some(Schema { version: 6, exact: true })).unwrap().added, 1);
}

#[test]
fn so_in_shadow_mode() {
    let dir = temp_dir();
    let source = open(&file(&dir, "source.mdb"), 1 << 20);
    let path = file(&dir, "s.pb.gz");
    put_raw(&source, "records", 0, &[(b"k".to_vec(), native(9, 1, 0, b"new"))]);
    publish_to(&source, &path);
    let env = open(&file(&dir, "a.mdb"), 1 << 20);
    pdns(&env, &[4, 0, 0, 0]);
    let shadow = Shadow { guard: true, stamp: Stamp::Fixed(5), dupsort_hack: true };
    let attempt = |version| {
        let schema = Some(Expected(Some(Schema { version, exact: true })));
        merge(&env, &MergeOptions { schema, shadow: Some(shadow), ..MergeOptions::new(&path) }, &Cancel::new())
    };
    assert_eq!(attempt(3).unwrap_err().code, Code::SchemaChanged);
    assert_eq!(attempt(4).unwrap().added, 1);
}

/// A snapshot of these tables, in which `pdns` has this value, if any.
fn snapshot(path: &Path, names: &[&str], number: Option<&[u8]>, entries: u32) {
    let dir = temp_dir();
    let env = open(&file(&dir, "source.mdb"), 64 << 20);
    for name in names {
        let all: Vec<_> = (0..entries).map(|i| (i.to_be_bytes().to_vec(), native(9, 1, 0, b"v"))).collect();
        put_raw(&env, name, 0, &all);
    }
    if let Some(number) = number {
        put_raw(&env, "pdns", 0, &[(KEY.to_vec(), native(9, 1, 0, number))]);
    }
    publish_to(&env, path);
}

#[test]
fn a_merge_refuses_another_schema_without_the_lock() {
    const OLD: Schema = Schema { version: 4, exact: false };
    const NEW: Schema = Schema { version: 5, exact: false };
    let [three, four, five, six] = [3, 4, 5, 6].map(|version| Schema { version, exact: true });
    let shadow = Shadow { guard: true, stamp: Stamp::Fixed(5), dupsort_hack: true };
    // Few entries are kept in memory between plan and apply; many make the merge stream without having seen the number.
    for entries in [1, 20_000] {
        let dir = temp_dir();
        let path = file(&dir, "s.pb.gz");
        for (names, number, same, other) in [
            (&["domains_v5"][..], Some(&[0, 0, 0, 5][..]), &[five, NEW][..], &[three, four, six, OLD][..]),
            (&["domains_v5"], Some(&[0, 0, 0, 6]), &[six, NEW], &[four, five, OLD]),
            (&["domains"], Some(&[4, 0, 0, 0]), &[three, four, OLD], &[five, NEW]),
            (&["records_v5"], None, &[five, six, NEW], &[four, OLD]),
            (&["records"], None, &[three, four, OLD], &[five, NEW]),
            // What was left behind does not count.
            (&["records", "records_v5"], None, &[five, NEW], &[four, OLD]),
            (&["domains", "domains_v5"], Some(&[0, 0, 0, 5]), &[five, NEW], &[four, six, OLD]),
            (&["data"], None, &[four, five, OLD, NEW], &[]),
        ] {
            snapshot(&path, names, number, entries);
            for mode in [None, Some(shadow)] {
                for (wanted, expected) in same.iter().map(|w| (w, true)).chain(other.iter().map(|w| (w, false))) {
                    let env = open(&file(&dir, "a.mdb"), 64 << 20);
                    let outcome = std::thread::scope(|scope| {
                        // Whoever wants the lock for what is refused waits for ever. Only where old names come before new ones is it
                        // not known before.
                        let held = (!expected && names.len() == 1).then(|| env.write(false, &Cancel::new()).unwrap());
                        let outcome = scope.spawn(|| small(&env, &path, *wanted, mode)).join().unwrap();
                        drop(held);
                        outcome
                    });
                    let what =
                        format!("{names:?} {number:?} into {wanted}, {entries} entries, shadow: {}", mode.is_some());
                    assert_eq!(outcome.err(), (!expected).then_some(Code::SchemaMismatch), "{what}");
                    assert_eq!(of(&env).is_none(), !expected || *names == ["data"], "{what}");
                    drop(env);
                    std::fs::remove_file(file(&dir, "a.mdb")).unwrap();
                }
            }
        }
    }
}

fn small(env: &Environment, path: &Path, wanted: Schema, shadow: Option<Shadow>) -> Result<u64, Code> {
    let options =
        MergeOptions { snapshot_schema: Some(wanted), shadow, budget_bytes: 64 << 10, ..MergeOptions::new(path) };
    merge(env, &options, &Cancel::new()).map(|merged| merged.entries).map_err(|error| error.code)
}
