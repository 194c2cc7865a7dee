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
