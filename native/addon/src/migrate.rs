//! `migratePdns` and `migratePdnsStatus`: schema upgrades of PowerDNS's LMDBs.

use std::path::Path;

use lightningstream_core::error::{Code, Error};
use lightningstream_core::pdns_migrate::{
    self, DbiReport, FileReport, FileStatus, Report, Request, Side, Status, Untracked,
};
use napi::Env;
use napi::bindgen_prelude::{BigInt, Object};
use napi_derive::napi;

use crate::{Failure, Work, run};

/// What `migratePdns` shall do.
#[napi(object, use_nullable = true)]
pub struct MigratePdnsRequest {
    /// The main database.
    pub path: String,
    /// The path is the data file itself.
    pub no_subdir: bool,
    /// Schema to migrate to: 5 or 6.
    pub to: u32,
    /// False: plan only; nothing is written.
    pub write: bool,
    /// Directory for the backup; null = none.
    pub backup_dir: Option<String>,
    /// Entries that changed after Lightning Stream last looked.
    #[napi(ts_type = "'now' | 'old' | 'fail'")]
    pub untracked: String,
    /// All timestamps are 0.
    pub ignore_shadow: bool,
    /// Lightning Stream's own DBIs stay.
    pub keep_shadow: bool,
    /// What counts when old and new DBIs are side by side.
    #[napi(js_name = "use", ts_type = "'old' | 'new' | null")]
    pub side: Option<String>,
    /// All records go to shard 0.
    pub merge_shards: bool,
    /// Also while others have the files open.
    pub force: bool,
    /// The time, ns since the Unix epoch.
    pub now_nano: BigInt,
}

impl TryFrom<MigratePdnsRequest> for Request {
    type Error = Error;

    fn try_from(request: MigratePdnsRequest) -> Result<Self, Error> {
        let unknown =
            |what: &str, value: &str| Error::new(Code::InvalidArgument, format!("{what}: unknown value {value}"));
        Ok(Self {
            path: request.path.into(),
            no_subdir: request.no_subdir,
            to: request.to,
            write: request.write,
            backup_dir: request.backup_dir.map(Into::into),
            untracked: match request.untracked.as_str() {
                "now" => Untracked::Now,
                "old" => Untracked::Old,
                "fail" => Untracked::Fail,
                other => return Err(unknown("untracked", other)),
            },
            ignore_shadow: request.ignore_shadow,
            keep_shadow: request.keep_shadow,
            side: match request.side.as_deref() {
                None => None,
                Some("old") => Some(Side::Old),
                Some("new") => Some(Side::New),
                Some(other) => return Err(unknown("use", other)),
            },
            merge_shards: request.merge_shards,
            force: request.force,
            now: request.now_nano.get_u64().1,
        })
    }
}

/// What one DBI became.
#[napi(object)]
pub struct NativeMigratedDbi {
    /// Source.
    pub from: String,
    /// Target.
    pub to: String,
    /// Entries in the target, markers of deletions included.
    pub entries: f64,
    /// Entries with a timestamp from the shadow DBI.
    pub carried: f64,
    /// Entries that changed after Lightning Stream last looked.
    pub untracked: f64,
    /// Markers of deletions, tracked or not.
    pub deleted: f64,
}

impl From<DbiReport> for NativeMigratedDbi {
    fn from(dbi: DbiReport) -> Self {
        Self {
            from: dbi.from,
            to: dbi.to,
            entries: dbi.entries as f64,
            carried: dbi.carried as f64,
            untracked: dbi.untracked as f64,
            deleted: dbi.deleted as f64,
        }
    }
}

/// What one file became; the sums are those of its DBIs.
#[napi(object, use_nullable = true)]
pub struct NativeMigratedFile {
    /// Its path.
    pub path: String,
    /// Schema before; null when the file is absent.
    pub schema: Option<u32>,
    /// What it was, in one word or two.
    pub state: String,
    /// Entries with a timestamp from the shadow DBI.
    pub carried: f64,
    /// Entries that changed after Lightning Stream last looked.
    pub untracked: f64,
    /// Markers of deletions, tracked or not.
    pub deleted: f64,
    /// DBIs that are, or were, changed.
    pub dbis: Vec<NativeMigratedDbi>,
}

fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn sum(dbis: &[DbiReport], count: fn(&DbiReport) -> u64) -> f64 {
    dbis.iter().map(count).sum::<u64>() as f64
}

impl From<FileReport> for NativeMigratedFile {
    fn from(file: FileReport) -> Self {
        Self {
            path: shown(&file.path),
            schema: file.schema,
            state: file.state,
            carried: sum(&file.dbis, |dbi| dbi.carried),
            untracked: sum(&file.dbis, |dbi| dbi.untracked),
            deleted: sum(&file.dbis, |dbi| dbi.deleted),
            dbis: file.dbis.into_iter().map(Into::into).collect(),
        }
    }
}

/// What `migratePdns` did, or would do.
#[napi(object, use_nullable = true)]
pub struct NativeMigratedPdns {
    /// The main database.
    pub path: String,
    /// Schema before.
    pub schema: Option<u32>,
    /// Schema after.
    pub to: u32,
    /// False: there is nothing to do.
    pub changed: bool,
    /// Entries with a timestamp from a shadow DBI, in all.
    pub carried: f64,
    /// Entries that changed after Lightning Stream last looked, in all.
    pub untracked: f64,
    /// Markers of deletions, in all.
    pub deleted: f64,
    /// Directory of the backup; null when none was made.
    pub backup: Option<String>,
    /// Map size that the largest file needs.
    pub map_bytes: f64,
    /// Most that the backup takes.
    pub backup_bytes: f64,
    /// Free on the disk of the main database.
    pub disk_free_bytes: f64,
    /// One line each.
    pub warnings: Vec<String>,
    /// The main database first, then its shards.
    pub shards: Vec<NativeMigratedFile>,
}

impl From<(Report, String, u32)> for NativeMigratedPdns {
    fn from((report, path, to): (Report, String, u32)) -> Self {
        let total = |count| report.files.iter().map(|file| sum(&file.dbis, count)).sum::<f64>();
        Self {
            path,
            to,
            schema: report.schema,
            changed: report.changed,
            carried: total(|dbi| dbi.carried),
            untracked: total(|dbi| dbi.untracked),
            deleted: total(|dbi| dbi.deleted),
            backup: report.backup.as_deref().map(shown),
            map_bytes: report.map_bytes as f64,
            backup_bytes: report.backup_bytes as f64,
            disk_free_bytes: report.disk_free_bytes as f64,
            warnings: report.warnings,
            shards: report.files.into_iter().map(Into::into).collect(),
        }
    }
}

/// One file of a database.
#[napi(object, use_nullable = true)]
pub struct NativePdnsFile {
    /// Its path.
    pub path: String,
    /// It exists.
    pub present: bool,
    /// Its schema, for a shard that of its DBIs (4 or 5); null when it has none.
    pub schema: Option<u32>,
    /// It has shadow DBIs.
    pub shadow: bool,
    /// Ids of the processes that have it open; 0 for those of another pid namespace.
    pub users: Vec<i32>,
}

impl From<FileStatus> for NativePdnsFile {
    fn from(file: FileStatus) -> Self {
        Self {
            path: shown(&file.path),
            present: file.present,
            schema: file.schema,
            shadow: file.shadow,
            users: file.users,
        }
    }
}

/// What a database is.
#[napi(object, use_nullable = true)]
pub struct NativePdnsStatus {
    /// Its path.
    pub path: String,
    /// It is a main database: it has a DBI `pdns`.
    pub is_main: bool,
    /// Its schema.
    pub schema: Option<u32>,
    /// Shards that it is configured with.
    pub shards: Option<u32>,
    /// The main database first, then its shards.
    pub files: Vec<NativePdnsFile>,
    /// What can be done with it.
    #[napi(
        ts_type = "'not PowerDNS' | 'can be migrated' | 'interrupted' | 'rescue' | 'native' | 'mixed' | 'unsupported'"
    )]
    pub state: String,
    /// The same in a sentence.
    pub text: String,
}

impl From<(Status, String)> for NativePdnsStatus {
    fn from((status, path): (Status, String)) -> Self {
        Self {
            path,
            is_main: status.is_main,
            schema: status.schema,
            shards: status.shards,
            files: status.files.into_iter().map(Into::into).collect(),
            state: status.state.to_owned(),
            text: status.text,
        }
    }
}

outcome!(/** Outcome of `migratePdns`. */ MigratePdnsOutcome, NativeMigratedPdns);
outcome!(/** Outcome of `migratePdnsStatus`. */ MigratePdnsStatusOutcome, NativePdnsStatus);

/// Migrates a main database and its shards to another schema, or plans that.
#[napi(catch_unwind, ts_return_type = "Promise<MigratePdnsOutcome>")]
pub fn migrate_pdns<'env>(env: &'env Env, request: MigratePdnsRequest, work: &Work) -> napi::Result<Object<'env>> {
    let body = move |cancel: &lightningstream_core::Cancel| {
        let (path, to) = (request.path.clone(), request.to);
        pdns_migrate::migrate(&request.try_into()?, cancel).map(|report| (report, path, to))
    };
    run(env, "ls-migrate", Some(work), body, MigratePdnsOutcome::of)
}

/// Looks at a database without changing anything.
#[napi(catch_unwind, ts_return_type = "Promise<MigratePdnsStatusOutcome>")]
pub fn migrate_pdns_status(env: &Env, path: String, no_subdir: bool) -> napi::Result<Object<'_>> {
    let body = move |_: &lightningstream_core::Cancel| {
        pdns_migrate::status(Path::new(&path), no_subdir).map(|status| (status, path))
    };
    run(env, "ls-migrate-status", None, body, MigratePdnsStatusOutcome::of)
}
