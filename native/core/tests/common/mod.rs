//! What the tests of the data path share: environments in memory-backed directories, direct writes, readable contents.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lightningstream_core::header;
use lightningstream_core::lmdb::{EnvOptions, Environment};
use lightningstream_core::merge::{MergeOptions, Merged, merge};
use lightningstream_core::publish::{Published, publish};
use lightningstream_core::snapshot::Meta;
use lightningstream_core::{Cancel, Result};
use tempfile::TempDir;

/// A directory that syncs fast: the tests look at results, not at the disk.
pub fn temp_dir() -> TempDir {
    let base = Path::new("/dev/shm");
    if base.is_dir() { tempfile::tempdir_in(base).unwrap() } else { tempfile::tempdir().unwrap() }
}

pub fn open(path: &Path, map_bytes: usize) -> Environment {
    Environment::open(path, EnvOptions { no_subdir: true, create: true, map_bytes, ..EnvOptions::default() }).unwrap()
}

/// One value with its header.
pub fn native(timestamp: u64, txn_id: u64, flags: u8, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    header::build(&mut out, timestamp, txn_id, flags, value, false);
    out
}

/// Stores raw values in one transaction, as an application would.
pub fn put_raw(env: &Environment, dbi: &str, flags: u32, entries: &[(Vec<u8>, Vec<u8>)]) -> u64 {
    let mut txn = env.write(true, &Cancel::new()).unwrap();
    let id = txn.id();
    let handle = match txn.dbi(dbi).unwrap() {
        Some(handle) => handle,
        None => txn.create_dbi(dbi, flags).unwrap(),
    };
    let mut cursor = txn.cursor(handle).unwrap();
    for (key, value) in entries {
        cursor.put(key, value, false).unwrap();
    }
    drop(cursor);
    txn.commit().unwrap();
    id
}

/// Key → (timestamp, flags, value) of every DBI.
pub type Contents = BTreeMap<String, BTreeMap<Vec<u8>, (u64, u8, Vec<u8>)>>;

pub fn contents(env: &Environment) -> Contents {
    raw_contents(env)
        .into_iter()
        .map(|(name, entries)| {
            let entries = entries
                .into_iter()
                .map(|(key, stored)| {
                    let native = header::parse(&stored).unwrap();
                    (key, (native.timestamp, native.flags, native.value.to_vec()))
                })
                .collect();
            (name, entries)
        })
        .collect()
}

/// Stored bytes of every DBI.
pub fn raw_contents(env: &Environment) -> BTreeMap<String, BTreeMap<Vec<u8>, Vec<u8>>> {
    let txn = env.read().unwrap();
    let mut all = BTreeMap::new();
    for name in txn.dbi_names() {
        let mut cursor = txn.cursor(txn.dbi(name).unwrap().unwrap()).unwrap();
        let mut entries = BTreeMap::new();
        while let Some((key, value)) = cursor.next().unwrap() {
            entries.insert(key.to_vec(), value.to_vec());
        }
        all.insert(name.to_owned(), entries);
    }
    all
}

/// Stored bytes of every shadow DBI that holds something; the transaction id is left out.
pub fn raw_shadows(env: &Environment) -> BTreeMap<String, BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut all = raw_contents(env);
    all.retain(|name, entries| name.starts_with("_sync_shadow_") && !entries.is_empty());
    all.values_mut().flat_map(BTreeMap::values_mut).for_each(|stored| stored[8..16].fill(0));
    all
}

pub fn publish_to(env: &Environment, path: &Path) -> Published {
    publish(env, path, Meta::default(), 0, || 1, &Cancel::new()).unwrap().unwrap()
}

pub fn merge_from(env: &Environment, path: &Path) -> Result<Merged> {
    merge(env, &MergeOptions::new(path), &Cancel::new())
}

pub fn file(dir: &TempDir, name: &str) -> PathBuf {
    dir.path().join(name)
}

/// `FILE`: this process is the application that drops a DBI.
const DROPS: &str = "LS_TEST_DROPS";

/// To be called by a test named `application_that_drops_a_dbi`: the other process of [`while_records_is_dropped`].
pub fn drop_records_if_told() {
    let Ok(path) = std::env::var(DROPS) else { return };
    let env = open(path.as_ref(), 1 << 20);
    let mut txn = env.write(true, &Cancel::new()).unwrap();
    assert!(txn.drop_dbi("records").unwrap());
    println!("\nlocked");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    txn.commit().unwrap();
}

/// Runs `work` while another process holds the lock, which drops the DBI `records` as soon as `work` waits for it.
pub fn while_records_is_dropped<T: Send>(path: &Path, work: impl FnOnce(&Cancel) -> T + Send) -> T {
    let mut application = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "application_that_drops_a_dbi", "--nocapture"])
        .env(DROPS, path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(application.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "locked"));
    let cancel = Cancel::new();
    std::thread::scope(|scope| {
        let working = scope.spawn(|| work(&cancel));
        while !cancel.is_waiting_for_lock() && !working.is_finished() {
            std::thread::yield_now();
        }
        drop(application.stdin.take());
        lines.for_each(drop);
        assert!(application.wait().unwrap().success());
        working.join().unwrap()
    })
}

/// Small generator of pseudo-random numbers (splitmix64): the seed alone repeats a run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}
