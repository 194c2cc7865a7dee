//! Databases of real PowerDNS servers, and a look into any.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use lightningstream_core::pdns_migrate::{Report, Request, Untracked, migrate};
use lightningstream_core::{Cancel, Result};
use tempfile::TempDir;

use crate::common::{open, temp_dir};

pub const MAIN: &str = "pdns.lmdb";

pub fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../test/golden/migrate")
}

pub fn unpack(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(fs::File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64
}

pub fn request(dir: &TempDir, to: u32) -> Request {
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

pub fn run(request: &Request) -> Result<Report> {
    migrate(request, &Cancel::new())
}

/// Lays the files of a golden case out.
pub fn lay(name: &str, files: &[String]) -> TempDir {
    let dir = temp_dir();
    for file in files {
        fs::write(dir.path().join(file), unpack(&golden().join(name).join(format!("{file}.gz")))).unwrap();
    }
    dir
}

/// Flags and entries of each DBI.
pub type State = BTreeMap<String, (u32, Vec<(Vec<u8>, Vec<u8>)>)>;

pub fn look(path: &Path) -> (u64, State) {
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

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
