//! Work done once, by hand: dropping private DBIs, moving timestamps, renaming duplicate domains.

mod common;

use std::collections::BTreeMap;

use common::{file, native, open, put_raw, raw_contents, temp_dir};
use lightningstream_core::drop_private::drop_private;
use lightningstream_core::lmdb::{Environment, flags};
use lightningstream_core::migrate_timestamps::{Migrated, Migration, migrate_timestamps};
use lightningstream_core::pdns_domains::fix_duplicate_domains;
use lightningstream_core::{Cancel, Code};
use proptest::prelude::*;

type Entries = Vec<(Vec<u8>, Vec<u8>)>;

fn entry(key: &[u8], stored: Vec<u8>) -> (Vec<u8>, Vec<u8>) {
    (key.to_vec(), stored)
}

mod dropping {
    use super::*;

    #[test]
    fn only_private_dbis_go() {
        let dir = temp_dir();
        let env = open(&file(&dir, "a.mdb"), 0);
        for name in ["_sync", "_sync_shadow_x", "_syn", "x", "x_sync"] {
            put_raw(&env, name, 0, &[entry(b"k", native(1, 2, 0, b"v")), entry(b"l", native(1, 2, 0, b"w"))]);
        }
        let before = raw_contents(&env);
        let dropped = drop_private(&env, &Cancel::new()).unwrap();
        assert_eq!(dropped.dbis, [("_sync".to_owned(), 2), ("_sync_shadow_x".to_owned(), 2)]);
        assert_eq!(dropped.txn_id, Some(env.last_txn_id()));
        let kept: Vec<_> = raw_contents(&env).into_iter().collect();
        let expected: Vec<_> = before.into_iter().filter(|(name, _)| !name.starts_with("_sync")).collect();
        assert_eq!(kept, expected);

        // The name is free again, with other flags.
        put_raw(&env, "_sync", flags::INTEGERKEY, &[entry(&[1, 0, 0, 0], b"v".to_vec())]);
        assert_eq!(env.stats().unwrap().len(), 4);
    }

    #[test]
    fn without_any_nothing_is_written() {
        let dir = temp_dir();
        let env = open(&file(&dir, "a.mdb"), 0);
        put_raw(&env, "x", 0, &[entry(b"k", b"v".to_vec())]);
        let last = env.last_txn_id();
        let dropped = drop_private(&env, &Cancel::new()).unwrap();
        assert_eq!((dropped.dbis.len(), dropped.txn_id, env.last_txn_id()), (0, None, last));
    }

    #[test]
    fn an_abort_leaves_all_of_them() {
        let dir = temp_dir();
        let env = open(&file(&dir, "a.mdb"), 0);
        put_raw(&env, "_sync_a", 0, &[entry(b"k", b"v".to_vec())]);
        let cancel = Cancel::new();
        cancel.cancel();
        assert_eq!(drop_private(&env, &cancel).unwrap_err().code, Code::Aborted);
        assert_eq!(raw_contents(&env).len(), 1);
    }
}

mod migrating {
    use super::*;

    const MIGRATION: Migration<'_> =
        Migration { source: "old", destination: "new", add_deletions: true, ignore_missing_source: false };

    fn migrate(env: &Environment, migration: &Migration<'_>) -> lightningstream_core::Result<Migrated> {
        migrate_timestamps(env, migration, &Cancel::new())
    }

    #[test]
    fn newer_timestamps_are_taken_and_the_rest_stays_byte_for_byte() {
        let dir = temp_dir();
        let env = open(&file(&dir, "a.mdb"), 0);
        // Reserved bytes, an unknown flag and an extension block stay as they are.
        let mut odd = native(5, 2, 0, b"");
        odd[17] = 0x82;
        odd[18] = 0xee;
        odd[23] = 1;
        odd.extend_from_slice(b"EXTBLOCKvalue");
        put_raw(
            &env,
            "new",
            0,
            &[
                entry(b"equal", native(9, 2, 0, b"e")),
                entry(b"mine", native(9, 2, 0, b"m")),
                entry(b"newer", native(9, 2, 0, b"n")),
                entry(b"odd", odd.clone()),
                entry(b"older", native(9, 2, 1, b"")),
            ],
        );
        put_raw(
            &env,
            "old",
            0,
            &[
                entry(b"deleted", native(7, 1, 1, b"")),
                entry(b"equal", native(9, 1, 0, b"x")),
                entry(b"live", native(8, 1, 0, b"x")),
                entry(b"newer", native(8, 1, 0, b"x")),
                entry(b"odd", native(6, 1, 0, b"x")),
                // Only a timestamp.
                entry(b"older", 10_u64.to_be_bytes().to_vec()),
                entry(b"very old", 3_u64.to_be_bytes().to_vec()),
            ],
        );
        let source = raw_contents(&env)["old"].clone();
        let done = migrate(&env, &MIGRATION).unwrap();
        let id = env.last_txn_id();
        assert_eq!(done, Migrated { updated: 2, added_deletions: 2, txn_id: Some(id), source_missing: false });
        odd[..8].copy_from_slice(&6_u64.to_be_bytes());
        odd[8..16].copy_from_slice(&id.to_be_bytes());
        let expected = BTreeMap::from([
            entry(b"deleted", native(7, id, 1, b"")),
            entry(b"equal", native(9, 2, 0, b"e")),
            entry(b"mine", native(9, 2, 0, b"m")),
            entry(b"newer", native(9, 2, 0, b"n")),
            entry(b"odd", odd),
            entry(b"older", native(10, id, 1, b"")),
            entry(b"very old", native(3, id, 1, b"")),
        ]);
        assert_eq!(raw_contents(&env)["new"], expected);
        assert_eq!(raw_contents(&env)["old"], source);

        // A second time there is nothing to do, and no lock is taken.
        assert_eq!(migrate(&env, &MIGRATION).unwrap(), Migrated::default());
        assert_eq!(env.last_txn_id(), id);
    }

    #[test]
    fn deletions_only_when_asked_for() {
        let dir = temp_dir();
        let env = open(&file(&dir, "a.mdb"), 0);
        put_raw(&env, "new", 0, &[entry(b"a", native(9, 2, 0, b""))]);
        // What is not asked for is not looked at either.
        put_raw(&env, "old", 0, &[entry(b"b", native(7, 1, 1, b"")), entry(b"c", b"bad".to_vec())]);
        let done = migrate(&env, &Migration { add_deletions: false, ..MIGRATION }).unwrap();
        assert_eq!(done, Migrated::default());
        let error = migrate(&env, &MIGRATION).unwrap_err();
        assert_eq!(
            (error.code, error.dbi.as_deref(), error.key.as_deref()),
            (Code::HeaderInvalid, Some("old"), Some(&b"c"[..]))
        );
        assert_eq!(raw_contents(&env)["new"].len(), 1);
    }

    #[test]
    fn bad_values_and_bad_dbis_are_told_and_nothing_is_written() {
        let dir = temp_dir();
        let env = open(&file(&dir, "a.mdb"), 0);
        put_raw(&env, "new", 0, &[entry(b"a", native(1, 2, 0, b"")), entry(b"b", vec![0; 23])]);
        put_raw(&env, "old", 0, &[entry(b"a", native(7, 1, 0, b""))]);
        put_raw(&env, "short", 0, &[entry(b"a", vec![0; 7])]);
        put_raw(&env, "full", 0, &[entry(b"c", [native(7, 1, 1, b""), b"x".to_vec()].concat())]);
        put_raw(&env, "good", 0, &[entry(b"a", native(1, 2, 0, b""))]);
        put_raw(&env, "many", flags::DUPSORT, &[entry(b"a", native(1, 2, 0, b""))]);
        put_raw(&env, "four", flags::INTEGERKEY, &[entry(&[1; 4], native(1, 2, 0, b""))]);
        put_raw(&env, "eight", flags::INTEGERKEY, &[entry(&[1; 8], native(1, 2, 0, b""))]);
        let (before, last) = (raw_contents(&env), env.last_txn_id());
        let failure = |source, destination| {
            let error = migrate(&env, &Migration { source, destination, ..MIGRATION }).unwrap_err();
            (error.code, error.to_string())
        };
        for (source, destination, code, text) in [
            ("old", "new", Code::HeaderInvalid, "too short for a header of 24, DBI new, key 62"),
            ("short", "good", Code::HeaderInvalid, "DBI short, key 61"),
            ("full", "good", Code::HeaderInvalid, "a deleted record has a value, DBI full, key 63"),
            ("good", "good", Code::InvalidArgument, "the same DBI"),
            (
                "none",
                "good",
                Code::InvalidArgument,
                "there is no DBI none; there is eight, four, full, good, many, new, old, short",
            ),
            ("good", "none", Code::InvalidArgument, "there is no DBI none"),
            ("many", "good", Code::DbiUnsupported, "MDB_DUPSORT has no timestamps, DBI many"),
            ("four", "good", Code::InvalidArgument, "of different kinds (flags 0x08 and 0x00)"),
            ("four", "eight", Code::InvalidArgument, "differ in size"),
        ] {
            let (was, message) = failure(source, destination);
            assert_eq!(was, code, "{message}");
            assert!(message.contains(text), "{message}");
        }
        assert_eq!((raw_contents(&env), env.last_txn_id()), (before, last));

        let missing = Migration { source: "none", destination: "good", ignore_missing_source: true, ..MIGRATION };
        assert!(migrate(&env, &missing).unwrap().source_missing);
        let missing = Migration { source: "good", destination: "none", ignore_missing_source: true, ..MIGRATION };
        assert!(migrate(&env, &missing).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Against the rule said once more, key by key.
        #[test]
        fn every_key_has_what_the_rule_says(
            old in prop::collection::btree_map(0_u32..300, (0_u64..5, any::<bool>(), any::<bool>()), 0..200),
            new in prop::collection::btree_map(0_u32..300, (0_u64..5, any::<bool>()), 0..200),
            kind in prop::sample::select(vec![0, flags::INTEGERKEY, flags::REVERSEKEY]),
            add_deletions in any::<bool>(),
        ) {
            let dir = temp_dir();
            let env = open(&file(&dir, "a.mdb"), 0);
            let flags_of = |deleted: bool| u8::from(deleted);
            let old_entries: Entries = old.iter().map(|(key, (time, deleted, bare))| {
                let stored = if *deleted && *bare { time.to_be_bytes().to_vec() } else { native(*time, 1, flags_of(*deleted), b"") };
                entry(&key.to_ne_bytes(), stored)
            }).collect();
            let new_entries: Entries =
                new.iter().map(|(key, (time, deleted))| entry(&key.to_ne_bytes(), native(*time, 1, flags_of(*deleted), b""))).collect();
            put_raw(&env, "old", kind, &old_entries);
            put_raw(&env, "new", kind, &new_entries);
            let done = migrate(&env, &Migration { add_deletions, ..MIGRATION }).unwrap();
            let mut expected = BTreeMap::new();
            for (key, (time, deleted)) in &new {
                let time = old.get(key).map_or(*time, |(other, ..)| *time.max(other));
                expected.insert(key.to_ne_bytes().to_vec(), (time, flags_of(*deleted), Vec::new()));
            }
            for (key, (time, deleted, _)) in &old {
                if *deleted && add_deletions && !new.contains_key(key) {
                    expected.insert(key.to_ne_bytes().to_vec(), (*time, 1, Vec::new()));
                }
            }
            let seen: BTreeMap<_, _> = raw_contents(&env)["new"].iter().map(|(key, stored)| {
                let native = lightningstream_core::header::parse(stored).unwrap();
                (key.clone(), (native.timestamp, native.flags, native.value.to_vec()))
            }).collect();
            prop_assert_eq!(&seen, &expected);
            let changed = done.updated + done.added_deletions;
            prop_assert_eq!(changed > 0, done.txn_id.is_some());
            prop_assert_eq!(done.added_deletions as usize, expected.len() - new.len());
        }
    }
}

mod domains {
    use super::*;

    /// As PowerDNS 4.9 stores them: length, labels in reverse order with a zero byte after each, number.
    fn key(labels: &[&str], id: u32) -> Vec<u8> {
        let name: Vec<u8> = labels.iter().flat_map(|label| [label.as_bytes(), b"\0"].concat()).collect();
        [&u16::try_from(name.len()).unwrap().to_be_bytes()[..], &name, &id.to_be_bytes()].concat()
    }

    fn pdns(version: &[u8], index: &[(Vec<u8>, Vec<u8>)]) -> (tempfile::TempDir, Environment) {
        let dir = temp_dir();
        let env = open(&file(&dir, "pdns.lmdb"), 0);
        put_raw(&env, "pdns", 0, &[entry(b"schemaversion", native(1, 1, 0, version))]);
        put_raw(&env, "domains_v5_0", 0, index);
        (dir, env)
    }

    fn some() -> Entries {
        vec![
            (key(&["example"], 7), native(100, 1, 0, b"")),
            (key(&["example", "a"], 0xffff_fffe), native(300, 1, 0, b"")),
            (key(&["example", "a"], 3), native(200, 1, 0, b"")),
            (key(&["example", "a"], 5), native(200, 1, 0, b"")),
            // Deleted ones do not count.
            (key(&["example", "a"], 4), native(1, 1, 1, b"")),
            (key(&["example", "b"], 8), native(900, 1, 0, b"")),
            (key(&["invalid", "dup-1", "example", "c"], 1), native(1, 1, 0, b"")),
        ]
    }

    #[test]
    fn the_oldest_stays_and_the_others_are_renamed() {
        let (_dir, env) = pdns(&[0, 0, 0, 5], &some());
        let last = env.last_txn_id();
        let found = fix_duplicate_domains(&env, false, 250, &Cancel::new()).unwrap();
        let rows: Vec<_> = found
            .duplicates
            .iter()
            .map(|d| (d.domain.as_str(), d.kept_id, d.id, d.new_name.as_deref().unwrap()))
            .collect();
        let expected = [
            ("a.example", 3, 5, "a.example.dup-5.invalid"),
            ("a.example", 3, 0xffff_fffe, "a.example.dup-4294967294.invalid"),
        ];
        assert_eq!(rows, expected);
        assert_eq!((found.domains, found.txn_id, env.last_txn_id()), (6, None, last));
        assert_eq!(found.renamed, ["c.example.dup-1.invalid"]);

        let fixed = fix_duplicate_domains(&env, true, 250, &Cancel::new()).unwrap();
        let id = env.last_txn_id();
        assert_eq!((fixed.duplicates, fixed.txn_id), (found.duplicates, Some(id)));
        assert_eq!(
            fixed.renamed,
            ["a.example.dup-4294967294.invalid", "a.example.dup-5.invalid", "c.example.dup-1.invalid"]
        );
        let mut index: BTreeMap<_, _> = some().into_iter().collect();
        index.insert(key(&["example", "a"], 5), native(250, id, 1, b""));
        // Newer than what it replaces, although the clock is behind.
        index.insert(key(&["example", "a"], 0xffff_fffe), native(301, id, 1, b""));
        index.insert(key(&["invalid", "dup-5", "example", "a"], 5), native(250, id, 0, b""));
        index.insert(key(&["invalid", "dup-4294967294", "example", "a"], 0xffff_fffe), native(250, id, 0, b""));
        assert_eq!(raw_contents(&env)["domains_v5_0"], index);

        let again = fix_duplicate_domains(&env, true, 260, &Cancel::new()).unwrap();
        assert_eq!((again.duplicates.len(), again.renamed, env.last_txn_id()), (0, fixed.renamed, id));
    }

    #[test]
    fn a_name_that_has_no_room_stays() {
        let label = "x".repeat(60);
        let long = [label.as_str(), &label, &label, &label];
        let index = [(key(&long, 1), native(1, 1, 0, b"")), (key(&long, 2), native(2, 1, 0, b""))];
        let (_dir, env) = pdns(&[0, 0, 0, 5], &index);
        let last = env.last_txn_id();
        let found = fix_duplicate_domains(&env, true, 3, &Cancel::new()).unwrap();
        assert_eq!(found.duplicates[0].new_name, None);
        assert_eq!((found.txn_id, env.last_txn_id()), (None, last));
    }

    #[test]
    fn names_are_shown_as_in_a_zone_file() {
        let index = [
            (key(&["ex\u{e9}", "a.b c"], 1), native(1, 1, 0, b"")),
            (key(&["ex\u{e9}", "a.b c"], 2), native(2, 1, 0, b"")),
        ];
        let (_dir, env) = pdns(&[0, 0, 0, 5], &index);
        let found = fix_duplicate_domains(&env, false, 3, &Cancel::new()).unwrap();
        assert_eq!(found.duplicates[0].domain, "a\\.b\\032c.ex\\195\\169");
    }

    #[test]
    fn other_databases_are_refused() {
        let failure = |env: &Environment| {
            let error = fix_duplicate_domains(env, true, 3, &Cancel::new()).unwrap_err();
            assert_eq!(error.code, Code::InvalidArgument);
            error.message
        };
        assert!(failure(&pdns(&[0, 0, 0, 4], &[]).1).contains("its schema is 4"));
        assert!(failure(&pdns(&[0, 5], &[]).1).contains("2 bytes"));
        let dir = temp_dir();
        let env = open(&file(&dir, "a.mdb"), 0);
        assert!(failure(&env).contains("no DBI pdns"));
        put_raw(&env, "pdns", 0, &[entry(b"x", vec![])]);
        assert!(failure(&env).contains("has no schemaversion"));
        put_raw(&env, "pdns", 0, &[entry(b"schemaversion", vec![4, 0, 0, 0])]);
        assert!(failure(&env).contains("older than 5"));
        put_raw(&env, "pdns", 0, &[entry(b"schemaversion", native(1, 1, 0, &[0, 0, 0, 5]))]);
        assert!(failure(&env).contains("no DBI domains_v5_0"));
    }

    #[test]
    fn keys_that_are_none_are_told() {
        for bad in [vec![0, 1, 2], [vec![0, 9], b"ab\0".to_vec(), vec![0; 4]].concat()] {
            let (_dir, env) = pdns(&[0, 0, 0, 5], &[(bad.clone(), native(1, 1, 0, b""))]);
            let error = fix_duplicate_domains(&env, false, 3, &Cancel::new()).unwrap_err();
            assert_eq!((error.dbi.as_deref(), error.key), (Some("domains_v5_0"), Some(bad)));
        }
    }
}
