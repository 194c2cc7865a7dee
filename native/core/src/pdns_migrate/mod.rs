//! Upgrades of PowerDNS's LMDB schema (3, 4 → 5 → 6) that keep what Lightning Stream tracked in shadow DBIs: timestamps and deletions.
//!
//! Schemas 3 and 4 are what PowerDNS 4.7 writes, 5 is that of 4.8 and 4.9, 6 that of 5.0 and 5.1; layouts were seen in databases of these
//! versions.

use std::path::{Path, PathBuf};

use crate::cancel::Cancel;
use crate::error::{Code, Error, Result};
use plan::Plan;

mod backup;
mod convert;
mod layout;
mod plan;
mod run;

/// How often it is begun anew because somebody wrote after it was read.
const ATTEMPTS: u32 = 4;

/// What becomes of entries that changed after Lightning Stream last looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untracked {
    /// They are changes of now, as a running Lightning Stream would have it.
    Now,
    /// They are just newer than what is tracked.
    Old,
    /// The migration is refused.
    Fail,
}

/// Which DBIs count where old and new ones are side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Those of schemas 3 and 4.
    Old,
    /// Those of schemas 5 and 6.
    New,
}

/// What shall be done.
#[derive(Clone, Debug)]
pub struct Request {
    /// The main database; its shards are beside it.
    pub path: PathBuf,
    /// The path is the data file itself.
    pub no_subdir: bool,
    /// Schema to migrate to: 5 or 6.
    pub to: u32,
    /// False: plan only; nothing is written.
    pub write: bool,
    /// Directory for the backup, made if missing; `None` = no backup.
    pub backup_dir: Option<PathBuf>,
    /// Entries that are not tracked.
    pub untracked: Untracked,
    /// All timestamps are 0, whatever was tracked.
    pub ignore_shadow: bool,
    /// Lightning Stream's own DBIs stay.
    pub keep_shadow: bool,
    /// What counts when old and new DBIs are side by side; `None` = that is refused.
    pub side: Option<Side>,
    /// All records go to shard 0.
    pub merge_shards: bool,
    /// Also while others have the files open.
    pub force: bool,
    /// The time, ns since the Unix epoch.
    pub now: u64,
}

/// What one DBI became. Counts are those of the target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DbiReport {
    /// Source; the same as `to` when it is changed in place.
    pub from: String,
    /// Target.
    pub to: String,
    /// Entries in the target, markers of deletions included.
    pub entries: u64,
    /// Entries with a timestamp from the shadow DBI.
    pub carried: u64,
    /// Entries that changed after Lightning Stream last looked.
    pub untracked: u64,
    /// Markers of deletions, tracked or not.
    pub deleted: u64,
}

/// One file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileReport {
    /// Its path.
    pub path: PathBuf,
    /// Schema before, for a shard that of its DBIs (4 or 5); `None` when the file is absent.
    pub schema: Option<u32>,
    /// What it was, in one word or two.
    pub state: String,
    /// DBIs that are, or were, changed.
    pub dbis: Vec<DbiReport>,
}

/// What was, or would be, done.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Schema before.
    pub schema: Option<u32>,
    /// False: there is nothing to do.
    pub changed: bool,
    /// Directory of the backup; `None` when none was made.
    pub backup: Option<PathBuf>,
    /// Map size that the largest file needs, bytes.
    pub map_bytes: u64,
    /// Most that the backup takes, bytes.
    pub backup_bytes: u64,
    /// Free on the disk of the main database, bytes.
    pub disk_free_bytes: u64,
    /// One line each.
    pub warnings: Vec<String>,
    /// The main database first, then its shards.
    pub files: Vec<FileReport>,
}

/// One file of [`Status`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileStatus {
    /// Its path.
    pub path: PathBuf,
    /// It exists.
    pub present: bool,
    /// As in [`FileReport`].
    pub schema: Option<u32>,
    /// It has shadow DBIs.
    pub shadow: bool,
    /// Ids of the processes that have it open; 0 for those of another pid namespace.
    pub users: Vec<i32>,
}

/// What a database is and what can be done with it.
#[derive(Clone, Debug)]
pub struct Status {
    /// It has a DBI `pdns`.
    pub is_main: bool,
    /// Its schema.
    pub schema: Option<u32>,
    /// Shards that it is configured with.
    pub shards: Option<u32>,
    /// The main database first, then its shards.
    pub files: Vec<FileStatus>,
    /// One of `not PowerDNS`, `can be migrated`, `interrupted`, `rescue`, `native`, `mixed`, `unsupported`.
    pub state: &'static str,
    /// The same in a sentence.
    pub text: String,
}

/// Migrates a main database and its shards.
///
/// First everything is read and checked. Then, with the write lock of the main database held to the end, each shard is converted in one
/// transaction, and the main database in the last one: until that is committed the schema is the old one, and whoever comes next, we or
/// the new server, goes on with the shards that are left.
///
/// # Errors
/// [`Code::Refused`]: nothing was changed, and what has to be done first is in the text; [`Code::InUse`]: neither, others have a file open.
/// Anything else: the file it is about was rolled back, and the next run goes on.
pub fn migrate(request: &Request, cancel: &Cancel) -> Result<Report> {
    migrate_within(request, u64::MAX, cancel)
}

/// `map_limit`: bytes that no map is made larger than, for tests.
fn migrate_within(request: &Request, map_limit: u64, cancel: &Cancel) -> Result<Report> {
    if !(layout::FIRST_NATIVE..=*layout::KNOWN.end()).contains(&request.to) {
        return Err(Error::new(Code::InvalidArgument, format!("schema {} cannot be migrated to", request.to)));
    }
    for _ in 0..ATTEMPTS {
        let plan = Plan::make(request, cancel)?;
        if !request.write || !plan.report.changed {
            return Ok(plan.report);
        }
        if let Some(report) = run::run(request, plan, map_limit, cancel)? {
            return Ok(report);
        }
    }
    let text = format!("LMDB {}: somebody writes to it or to a shard again and again", request.path.display());
    Err(Error::new(Code::Refused, text))
}

/// Looks at a database. Nothing is changed.
///
/// # Errors
/// What keeps it from being read.
pub fn status(path: &Path, no_subdir: bool) -> Result<Status> {
    plan::status(path, no_subdir)
}

/// Says which environment an error is about, unless it does.
fn about(path: &Path, mut error: Error) -> Error {
    let path = path.display().to_string();
    if error.code != Code::Aborted && !error.message.contains(&path) {
        error.message = format!("LMDB {path}: {}", error.message);
    }
    error
}

fn refused(path: &Path, text: impl std::fmt::Display) -> Error {
    Error::new(Code::Refused, format!("LMDB {}: {text}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::FLAG_DELETED;
    use crate::lmdb::{EnvOptions, Environment};

    const MDB_MAP_FULL: i32 = -30792;

    fn open(path: &Path) -> Environment {
        Environment::open(path, EnvOptions { no_subdir: true, create: true, ..EnvOptions::default() }).unwrap()
    }

    fn put(env: &Environment, dbi: &str, flags: u32, entries: &[(Vec<u8>, Vec<u8>)]) {
        let mut txn = env.write(true, &Cancel::new()).unwrap();
        let dbi = txn.create_dbi(dbi, flags).unwrap();
        let mut cursor = txn.cursor(dbi).unwrap();
        entries.iter().for_each(|(key, value)| cursor.put_duplicate(key, value).unwrap());
        drop(cursor);
        txn.commit().unwrap();
    }

    /// A main database with that many domains and one shard with that many records.
    fn old(dir: &Path, domains: u32, records: u32) -> Request {
        let path = dir.join("pdns.lmdb");
        let main = open(&path);
        let number = |number: u32| number.to_ne_bytes().to_vec();
        let info =
            [(b"schemaversion".to_vec(), number(4)), (b"shards".to_vec(), number(1)), (b"uuid".to_vec(), vec![7; 16])];
        put(&main, "pdns", 0, &info);
        for table in &layout::MAIN {
            let entry = |id: u32| match table.kind {
                layout::Kind::Index => (format!("test\0domain-{id}\0").into_bytes(), number(id)),
                _ => (number(id), vec![9; 60]),
            };
            let entries: Vec<_> = (1..=domains).map(entry).collect();
            put(&main, table.old, table.old_flags(), &entries);
        }
        let entries: Vec<_> = (0..records).map(|id| (id.to_be_bytes().to_vec(), vec![id as u8; 50])).collect();
        put(&open(&dir.join("pdns.lmdb-0")), "records", 0, &entries);
        Request {
            path,
            no_subdir: true,
            to: 5,
            write: true,
            backup_dir: None,
            untracked: Untracked::Now,
            ignore_shadow: false,
            keep_shadow: false,
            side: None,
            merge_shards: false,
            force: false,
            now: 1000,
        }
    }

    fn names(path: &Path) -> Vec<String> {
        open(path).read().unwrap().dbi_names().map(str::to_owned).collect()
    }

    /// So that the size of the file is that of the map from now on.
    fn shrink(path: &Path) {
        let copy = path.with_extension("copy");
        let source = open(path);
        source.copy_to(&std::fs::File::create(&copy).unwrap(), true).unwrap();
        drop(source);
        let mut bytes = std::fs::read(&copy).unwrap();
        // `mm_mapsize` of both meta pages (mdb.c, MDB_meta: behind the page header, magic, version and address).
        let pages = bytes.len() as u64;
        for page in 0..2 {
            bytes[page * 4096 + 32..page * 4096 + 40].copy_from_slice(&pages.to_ne_bytes());
        }
        std::fs::write(path, bytes).unwrap();
        std::fs::remove_file(copy).unwrap();
    }

    #[test]
    fn a_map_that_is_too_small_grows_and_one_that_cannot_is_rolled_back() {
        // In the shard; then in the main database.
        for (domains, records, full) in [(10, 20_000, "pdns.lmdb-0"), (5000, 10, "pdns.lmdb")] {
            let dir = tempfile::tempdir().unwrap();
            let request = old(dir.path(), domains, records);
            let (main, shard) = (request.path.clone(), dir.path().join("pdns.lmdb-0"));
            shrink(&main);
            shrink(&shard);
            let map_bytes = |path: &Path| open(path).info().unwrap().map_bytes;
            let before = (map_bytes(&main), map_bytes(&shard));
            assert!(before.0 < 4 << 20 && before.1 < 4 << 20, "{before:?}");
            let limit = std::fs::metadata(dir.path().join(full)).unwrap().len() + 200_000;
            let error = migrate_within(&request, limit, &Cancel::new()).unwrap_err();
            assert_eq!(error.code, Code::Lmdb(MDB_MAP_FULL), "{error}");
            assert!(error.message.contains(&format!("{full}: its map is full")), "{error}");
            assert!(names(&main).contains(&"domains".to_owned()));
            assert_eq!(names(&shard), [if full == "pdns.lmdb" { "records_v5" } else { "records" }]);
            let report = migrate(&request, &Cancel::new()).unwrap();
            assert!(report.warnings.iter().any(|text| text.contains("lmdb-map-size")), "{:?}", report.warnings);
            assert_eq!(names(&shard), ["records_v5"]);
            assert!(!names(&main).contains(&"domains".to_owned()));
            assert!(map_bytes(&main).max(map_bytes(&shard)) <= report.map_bytes.next_multiple_of(1 << 20));
            let view = open(&shard);
            let view = view.read().unwrap();
            assert_eq!(view.entries(view.dbi("records_v5").unwrap().unwrap()).unwrap(), u64::from(records));
        }
    }

    #[test]
    fn who_writes_between_reading_and_writing_makes_it_begin_anew() {
        let dir = tempfile::tempdir().unwrap();
        let request = old(dir.path(), 10, 100);
        let shard = dir.path().join("pdns.lmdb-0");
        let plan = Plan::make(&request, &Cancel::new()).unwrap();
        put(
            &open(&shard),
            "_sync_shadow_records",
            0,
            &[(vec![1], [[0; 17].to_vec(), vec![FLAG_DELETED], vec![0; 6]].concat())],
        );
        assert!(run::run(&request, plan, u64::MAX, &Cancel::new()).unwrap().is_none());
        assert!(names(&shard).contains(&"records".to_owned()) && names(&request.path).contains(&"domains".to_owned()));
        let report = migrate(&request, &Cancel::new()).unwrap();
        assert_eq!((report.files[1].dbis[0].deleted, report.files[1].dbis[0].untracked), (1, 100));
    }

    /// `FILE`: this process is a server that opens it; or, with [`ALONE`], one that is at work on it.
    const OPENS: &str = "LS_TEST_OPENS";
    const ALONE: &str = "LS_TEST_ALONE";

    #[test]
    fn server_that_opens_it() {
        let Ok(path) = std::env::var(OPENS) else { return };
        let env = open(path.as_ref());
        let alone = std::env::var_os(ALONE).map(|_| crate::lmdb::exclude(path.as_ref(), true).unwrap());
        println!("\nopen");
        std::io::stdin().read_line(&mut String::new()).unwrap();
        drop((env, alone));
    }

    fn server(path: &Path, alone: bool) -> (std::process::Child, std::sync::mpsc::Receiver<()>) {
        use std::process::{Command, Stdio};
        let mut server = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "pdns_migrate::tests::server_that_opens_it", "--nocapture"])
            .env(OPENS, path)
            .envs(alone.then_some((ALONE, "1")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::io::BufRead::lines(std::io::BufReader::new(server.stdout.take().unwrap()));
        let (sender, is_open) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for _ in lines.map_while(|line| line.ok()).filter(|line| line == "open") {
                let _ = sender.send(());
            }
        });
        (server, is_open)
    }

    #[test]
    fn who_opens_it_after_the_first_look_is_in_the_way_and_who_comes_later_waits() {
        use std::time::Duration;
        for held in ["pdns.lmdb", "pdns.lmdb-0"] {
            let dir = tempfile::tempdir().unwrap();
            let request = old(dir.path(), 10, 100);
            let held = dir.path().join(held);
            let plan = Plan::make(&request, &Cancel::new()).unwrap();
            let (mut first, is_open) = server(&held, false);
            is_open.recv_timeout(Duration::from_secs(60)).unwrap();
            let error = run::run(&request, plan, u64::MAX, &Cancel::new()).unwrap_err();
            assert_eq!(error.code, Code::InUse, "{error}");
            assert!(error.message.contains(&held.display().to_string()), "{error}");
            assert!(error.message.contains(&format!("process {}", first.id())), "{error}");
            assert!(names(&request.path).contains(&"domains".to_owned()));
            assert_eq!(names(&dir.path().join("pdns.lmdb-0")), ["records"]);
            drop(first.stdin.take());
            first.wait().unwrap();

            let plan = Plan::make(&request, &Cancel::new()).unwrap();
            let run = run::Run::open(&request, plan, u64::MAX).unwrap();
            let (mut second, is_open) = server(&held, false);
            is_open.recv_timeout(Duration::from_millis(500)).unwrap_err();
            drop(run);
            is_open.recv_timeout(Duration::from_secs(60)).unwrap();
            drop(second.stdin.take());
            second.wait().unwrap();
            let (mut third, is_open) = server(&held, true);
            is_open.recv_timeout(Duration::from_secs(60)).unwrap();
            for error in [
                status(&request.path, true).unwrap_err(),
                migrate(&Request { write: false, ..request.clone() }, &Cancel::new()).unwrap_err(),
            ] {
                assert_eq!(error.code, Code::InUse, "it does not wait: {error}");
                assert!(error.message.contains(&format!("process {}", third.id())), "{error}");
            }
            drop(third.stdin.take());
            third.wait().unwrap();
            assert!(migrate(&request, &Cancel::new()).unwrap().changed);
        }
    }

    #[test]
    fn an_abort_rolls_back() {
        let dir = tempfile::tempdir().unwrap();
        let request = old(dir.path(), 10, 100_000);
        let cancel = Cancel::new();
        cancel.cancel();
        let error = migrate(&request, &cancel).unwrap_err();
        assert_eq!(error.code, Code::Aborted);
        let watch = Cancel::new();
        let error = std::thread::scope(|scope| {
            let working = scope.spawn(|| migrate(&request, &watch));
            // More than the plan looks at: it is written.
            while watch.progress().0 <= 110_000 && !working.is_finished() {
                std::thread::yield_now();
            }
            watch.cancel();
            working.join().unwrap().unwrap_err()
        });
        assert_eq!(error.code, Code::Aborted);
        assert_eq!(names(&dir.path().join("pdns.lmdb-0")), ["records"]);
        assert!(migrate(&request, &Cancel::new()).unwrap().changed);
    }
}
