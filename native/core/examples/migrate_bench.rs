//! Time and memory of a schema upgrade, and of a plain rewrite of the same data for comparison: `migrate_bench DIRECTORY [RECORDS]`.
//! Takes about 500 bytes of disk for each record, most of it in DIRECTORY, which is emptied afterwards.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lightningstream_core::header;
use lightningstream_core::lmdb::{EnvOptions, Environment, flags, trim_heap};
use lightningstream_core::pdns_migrate::{Request, Untracked, migrate};
use lightningstream_core::{Cancel, Result};

/// Records of a zone.
const ZONE: u32 = 1000;
const TABLES: [&str; 4] = ["domains", "keydata", "metadata", "tsig"];
const NOW: u64 = 1_800_000_000_000_000_000;

fn open(path: &Path, map_bytes: usize) -> Result<Environment> {
    Environment::open(path, EnvOptions { no_subdir: true, create: true, map_bytes, ..EnvOptions::default() })
}

fn fill(
    env: &Environment,
    dbi: &str,
    dbi_flags: u32,
    mut entries: impl Iterator<Item = (Vec<u8>, Vec<u8>)>,
) -> Result<()> {
    let mut txn = env.write(true, &Cancel::new())?;
    let dbi = txn.create_dbi(dbi, dbi_flags)?;
    let mut cursor = txn.cursor(dbi)?;
    if dbi_flags & flags::DUPSORT == 0 {
        entries.try_for_each(|(key, value)| cursor.put(&key, &value, true))?;
    } else {
        entries.try_for_each(|(key, value)| cursor.put_duplicate(&key, &value))?;
    }
    drop(cursor);
    txn.commit()
}

/// A main database with a domain for each thousand records, in shadow mode for long, and one shard.
fn prepare(path: &Path, shard: &Path, records: u32) -> Result<()> {
    let zones = records.div_ceil(ZONE);
    let main = open(path, 4 << 30)?;
    let number = |number: u32| number.to_ne_bytes().to_vec();
    let info = [("schemaversion", number(4)), ("shards", number(1)), ("uuid", vec![7; 16])];
    fill(&main, "pdns", 0, info.into_iter().map(|(key, value)| (key.as_bytes().to_vec(), value)))?;
    let stored = |value: &[u8]| {
        let mut out = Vec::new();
        header::build(&mut out, NOW - 1, 1, 0, value, false);
        out
    };
    for table in TABLES {
        let used = if table == "domains" { zones } else { zones / 10 };
        let object = |id: u32| (number(id), vec![9; 150]);
        let name = |id: u32| format!("example\0zone-{id:08}\0").into_bytes();
        let shadow = |table: &str| format!("_sync_shadow_{table}");
        fill(&main, table, flags::INTEGERKEY, (1..=used).map(object))?;
        fill(&main, &shadow(table), flags::INTEGERKEY, (1..=used).map(|id| (number(id), stored(&object(id).1))))?;
        let index = format!("{table}_0");
        let dup = flags::DUPSORT | flags::DUPFIXED;
        fill(&main, &index, dup, (1..=used).map(|id| (name(id), number(id))))?;
        let shadow_key = |id: u32| {
            let name = name(id);
            let length = name.len() as u8;
            [name, vec![0; 4], number(id), vec![length]].concat()
        };
        fill(&main, &shadow(&index), 0, (1..=used).map(|id| (shadow_key(id), stored(&number(id)))))?;
    }
    let env = open(shard, 16 << 30)?;
    let key = |record: u32| {
        let name = format!("host-{:04}", record % ZONE);
        [&(1 + record / ZONE).to_be_bytes()[..], name.as_bytes(), b"\0\0\x01"].concat()
    };
    let value = |record: u32| {
        let mut value = vec![5, 0, 4, 127];
        value.extend_from_slice(&record.to_be_bytes());
        value.extend_from_slice(&[0, 0, 14, 16, 0, 0, 0, 1, 0, 1, 0, 0]);
        value
    };
    fill(&env, "records", 0, (0..records).map(|record| (key(record), value(record))))?;
    fill(&env, "_sync_shadow_records", 0, (0..records).map(|record| (key(record), stored(&value(record)))))
}

/// What it does at the least: every record is read and put into a new DBI that is in order, and the old one is deleted.
fn rewrite(path: &Path) -> Result<()> {
    let env = open(path, 16 << 30)?;
    let view = env.read()?;
    let mut txn = env.write(true, &Cancel::new())?;
    for name in ["records", "_sync_shadow_records"] {
        let Some(source) = view.dbi(name)? else { continue };
        let target = txn.create_dbi(&format!("{name}_copy"), 0)?;
        let (mut from, mut to) = (view.cursor(source)?, txn.cursor(target)?);
        while let Some((key, value)) = from.next()? {
            to.put(key, value, true)?;
        }
    }
    drop(view);
    for name in ["records", "_sync_shadow_records"] {
        txn.drop_dbi(name)?;
    }
    txn.commit()
}

fn anonymous_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Seconds, and the most RssAnon, MiB.
fn measured(work: impl FnOnce() -> Result<()>) -> Result<(f64, f64)> {
    trim_heap();
    let (done, most) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                most.fetch_max(anonymous_kib(), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(5));
            }
        });
        let started = Instant::now();
        let result = work();
        let took = started.elapsed().as_secs_f64();
        done.store(true, Ordering::Relaxed);
        result.map(|()| (took, most.load(Ordering::Relaxed) as f64 / 1024.0))
    })
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let Some(directory) = arguments.next() else {
        eprintln!("usage: migrate_bench DIRECTORY [RECORDS]");
        std::process::exit(2);
    };
    let records = arguments.next().and_then(|records| records.parse().ok()).unwrap_or(10_000_000);
    let directory = Path::new(&directory).join("lightningstream-migrate-bench");
    let io = |e: std::io::Error| lightningstream_core::Error::io("benchmark", &e);
    fs::create_dir_all(&directory).map_err(io)?;
    let (path, shard) = (directory.join("pdns.lmdb"), directory.join("pdns.lmdb-0"));
    prepare(&path, &shard, records)?;
    let plain = directory.join("plain");
    fs::copy(&shard, &plain).map_err(io)?;
    println!("{records} records, shard of {} MiB", fs::metadata(&shard).map_err(io)?.len() >> 20);
    let (rewritten, rewrite_mib) = measured(|| rewrite(&plain))?;
    println!("plain rewrite: {rewritten:.1} s, {rewrite_mib:.0} MiB");
    fs::remove_file(&plain).map_err(io)?;
    let request = |write, backup| Request {
        path: path.clone(),
        no_subdir: true,
        to: 5,
        write,
        backup_dir: backup,
        untracked: Untracked::Now,
        ignore_shadow: false,
        keep_shadow: false,
        side: None,
        merge_shards: false,
        force: false,
        now: NOW,
    };
    let (planned, plan_mib) = measured(|| migrate(&request(false, None), &Cancel::new()).map(drop))?;
    println!("plan: {planned:.1} s, {plan_mib:.0} MiB");
    let backup = Some(directory.join("backup"));
    let (migrated, migrate_mib) = measured(|| migrate(&request(true, backup), &Cancel::new()).map(drop))?;
    println!(
        "run, with its plan and the backup: {migrated:.1} s, {migrate_mib:.0} MiB: {:.2} of the rewrite",
        migrated / rewritten
    );
    fs::remove_dir_all(&directory).map_err(io)
}
