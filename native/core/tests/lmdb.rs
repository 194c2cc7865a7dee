//! The wrapper's promises: one handle per file, clear errors, cursors that find what is there.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{file, open, put_raw, temp_dir};
use lightningstream_core::lmdb::{EnvOptions, Environment, flags};
use lightningstream_core::{Cancel, Code};
use proptest::prelude::*;

fn options() -> EnvOptions {
    EnvOptions { no_subdir: true, ..EnvOptions::default() }
}

fn open_error(path: &Path, options: EnvOptions) -> lightningstream_core::Error {
    match Environment::open(path, options) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(e) => e,
    }
}

#[test]
fn one_handle_per_file_by_whatever_name() {
    let dir = temp_dir();
    let path = file(&dir, "a.mdb");
    let env = open(&path, 1 << 20);
    let link = file(&dir, "link.mdb");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    for name in [path.clone(), link, dir.path().join(".").join("a.mdb")] {
        assert_eq!(open_error(&name, options()).code, Code::AlreadyOpen);
    }
    env.close();
    assert_eq!(env.info().unwrap_err().code, Code::Closed);
    let again = Environment::open(&path, options()).unwrap();
    // A handle that was closed before must not free the file's place a second time.
    drop(env);
    assert_eq!(open_error(&path, options()).code, Code::AlreadyOpen);
    drop(again);
    Environment::open(&path, options()).unwrap();
}

#[test]
fn what_cannot_be_opened_says_why() {
    let dir = temp_dir();
    let missing = open_error(&file(&dir, "none.mdb"), options());
    assert_eq!(missing.code.name(), "ENOENT");
    assert!(missing.message.contains("options.create"), "{missing}");
    assert!(!file(&dir, "none.mdb").exists());

    let text = file(&dir, "text.mdb");
    std::fs::write(&text, "this is no LMDB\n".repeat(1000)).unwrap();
    let invalid = open_error(&text, options());
    assert_eq!(invalid.code.name(), "MDB_INVALID");
    assert!(invalid.message.contains("not an LMDB"), "{invalid}");
}

#[test]
fn a_new_file_has_a_gibibyte_and_an_old_one_what_it_has() {
    let dir = temp_dir();
    let path = file(&dir, "deep/er/a.mdb");
    let create = EnvOptions { create: true, ..options() };
    let env = Environment::open(&path, create.clone()).unwrap();
    assert_eq!(env.info().unwrap().map_bytes, 1 << 30);
    put_raw(&env, "x", 0, &[(b"k".to_vec(), vec![0; 24])]);
    drop(env);
    let small = file(&dir, "small.mdb");
    let env = Environment::open(&small, EnvOptions { map_bytes: 2 << 20, ..create.clone() }).unwrap();
    put_raw(&env, "x", 0, &[(b"k".to_vec(), vec![0; 24])]);
    drop(env);
    assert_eq!(Environment::open(&small, create).unwrap().info().unwrap().map_bytes, 2 << 20);
}

#[test]
fn dbis_are_listed_with_their_statistics() {
    let dir = temp_dir();
    let env = open(&file(&dir, "a.mdb"), 1 << 20);
    put_raw(&env, "b", flags::INTEGERKEY, &[(1u32.to_ne_bytes().to_vec(), vec![0; 24])]);
    put_raw(&env, "a", 0, &[(b"1".to_vec(), vec![0; 24]), (b"2".to_vec(), vec![0; 24])]);
    let stats = env.stats().unwrap();
    let seen: Vec<_> = stats.iter().map(|s| (s.name.as_str(), s.flags, s.entries, s.pages())).collect();
    assert_eq!(seen, [("a", 0, 2, 1), ("b", flags::INTEGERKEY, 1, 1)]);
}

#[test]
fn too_many_dbis_is_an_error_that_leaves_the_others() {
    let dir = temp_dir();
    let path = file(&dir, "a.mdb");
    let env = Environment::open(&path, EnvOptions { create: true, max_dbs: 1, ..options() }).unwrap();
    put_raw(&env, "one", 0, &[(b"1".to_vec(), vec![0; 24])]);
    let mut txn = env.write(true, &Cancel::new()).unwrap();
    assert_eq!(txn.create_dbi("two", 0).unwrap_err().code.name(), "MDB_DBS_FULL");
    drop(txn);
    assert_eq!(env.stats().unwrap().len(), 1);
}

#[test]
fn a_senseless_number_of_dbis_is_refused() {
    let dir = temp_dir();
    for max_dbs in [0, u32::MAX, u32::MAX - 1] {
        let error = open_error(&file(&dir, "a.mdb"), EnvOptions { create: true, max_dbs, ..options() });
        assert_eq!(error.code, Code::InvalidArgument);
        assert!(error.message.contains("max_dbs"), "{error}");
    }
}

#[test]
fn an_abort_while_waiting_for_the_lock_takes_effect_when_it_comes() {
    let dir = temp_dir();
    let env = open(&file(&dir, "a.mdb"), 1 << 20);
    let cancel = Cancel::new();
    std::thread::scope(|scope| {
        let held = env.write(false, &Cancel::new()).unwrap();
        let waiting = scope.spawn(|| env.write(false, &cancel).map(|_| ()).unwrap_err().code);
        while !cancel.is_waiting_for_lock() {
            std::thread::yield_now();
        }
        cancel.cancel();
        drop(held);
        assert_eq!(waiting.join().unwrap(), Code::Aborted);
    });
    assert!(!cancel.is_waiting_for_lock());
}

/// Keys asked for, in any order; small numbers so that many exist and gaps of all sizes occur.
fn wanted() -> impl Strategy<Value = Vec<u16>> {
    proptest::collection::vec(0u16..600, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn cursors_find_what_a_map_finds(present in proptest::collection::btree_set(0u16..600, 0..400), mut asked in wanted(), sorted: bool) {
        let dir = temp_dir();
        let env = open(&file(&dir, "a.mdb"), 4 << 20);
        let entries: Vec<_> = present.iter().map(|n| (n.to_be_bytes().to_vec(), n.to_le_bytes().to_vec())).collect();
        put_raw(&env, "x", 0, &entries);
        if sorted {
            asked.sort_unstable();
            asked.dedup();
        }
        let mut model: BTreeMap<u16, Vec<u8>> = present.iter().map(|n| (*n, n.to_le_bytes().to_vec())).collect();
        {
            let txn = env.read().unwrap();
            let mut cursor = txn.cursor(txn.dbi("x").unwrap().unwrap()).unwrap();
            let mut previous = None;
            for n in &asked {
                let ascending = previous.is_none_or(|p| p < *n);
                let found = cursor.find(&n.to_be_bytes(), ascending).unwrap().map(<[u8]>::to_vec);
                prop_assert_eq!(found.as_ref(), model.get(n));
                previous = Some(*n);
            }
        }
        // Writing in between: every second key that is asked for is written at once.
        let mut txn = env.write(false, &Cancel::new()).unwrap();
        let dbi = txn.dbi("x").unwrap().unwrap();
        let mut cursor = txn.cursor(dbi).unwrap();
        let mut previous = None;
        for (i, n) in asked.iter().enumerate() {
            let ascending = previous.is_none_or(|p| p < *n);
            let found = cursor.find(&n.to_be_bytes(), ascending).unwrap().map(<[u8]>::to_vec);
            prop_assert_eq!(found.as_ref(), model.get(n));
            if i % 2 == 0 {
                cursor.put(&n.to_be_bytes(), b"written", false).unwrap();
                model.insert(*n, b"written".to_vec());
            }
            previous = Some(*n);
        }
    }
}
