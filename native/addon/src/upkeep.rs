//! Work that is done once, by hand: `dropShadow`, `migrateTimestamps`, `fixDuplicateDomains`, and who has an LMDB open.

use std::path::Path;

use lightningstream_core::drop_private::{Dropped, drop_private};
use lightningstream_core::migrate_timestamps::{Migrated, Migration, migrate_timestamps};
use lightningstream_core::pdns_domains::{Duplicate, Fixed, fix_duplicate_domains};
use lightningstream_core::{Error, lmdb};
use napi::Env;
use napi::bindgen_prelude::{BigInt, Object};
use napi_derive::napi;

use crate::{Busy, Failure, NativeEnvironment, Thrown, Work, run, thrown};

/// A DBI that was removed.
#[napi(object)]
pub struct NativeDroppedDbi {
    /// Its name.
    pub name: String,
    /// Its records.
    pub entries: f64,
}

/// What `dropShadow` did.
#[napi(object, use_nullable = true)]
pub struct NativeDropped {
    /// DBIs removed.
    pub dbis: Vec<NativeDroppedDbi>,
    /// The transaction that did it; null when there was nothing to remove.
    pub transaction_id: Option<BigInt>,
}

impl From<Dropped> for NativeDropped {
    fn from(dropped: Dropped) -> Self {
        let dbi = |(name, entries): (String, u64)| NativeDroppedDbi { name, entries: entries as f64 };
        Self { dbis: dropped.dbis.into_iter().map(dbi).collect(), transaction_id: dropped.txn_id.map(Into::into) }
    }
}

/// What `migrateTimestamps` shall do.
#[napi(object)]
pub struct MigrateTimestampsRequest {
    /// DBI that has the timestamps.
    pub source: String,
    /// DBI that gets them.
    pub destination: String,
    /// Add the source's deletions.
    pub add_deletions: bool,
    /// A source that does not exist is no error.
    pub ignore_missing_source: bool,
}

/// What `migrateTimestamps` did.
#[napi(object, use_nullable = true)]
pub struct NativeMigrated {
    /// There is no source.
    pub source_missing: bool,
    /// Records with a newer timestamp.
    pub updated: f64,
    /// Deletions added.
    pub added_deletions: f64,
    /// The transaction that wrote; null when nothing had to be written.
    pub transaction_id: Option<BigInt>,
}

impl From<Migrated> for NativeMigrated {
    fn from(migrated: Migrated) -> Self {
        Self {
            source_missing: migrated.source_missing,
            updated: migrated.updated as f64,
            added_deletions: migrated.added_deletions as f64,
            transaction_id: migrated.txn_id.map(Into::into),
        }
    }
}

/// One of several entries of a domain.
#[napi(object, use_nullable = true)]
pub struct NativeDuplicateDomain {
    /// The domain.
    pub domain: String,
    /// Number of the entry that stays.
    pub kept_id: u32,
    /// Its timestamp, ns since the epoch.
    pub kept_timestamp_nano: BigInt,
    /// Number of this one.
    pub id: u32,
    /// Its timestamp.
    pub timestamp_nano: BigInt,
    /// What it is, or would be, renamed to; null when that would be too long.
    pub new_name: Option<String>,
}

impl From<Duplicate> for NativeDuplicateDomain {
    fn from(duplicate: Duplicate) -> Self {
        Self {
            domain: duplicate.domain,
            kept_id: duplicate.kept_id,
            kept_timestamp_nano: duplicate.kept_timestamp.into(),
            id: duplicate.id,
            timestamp_nano: duplicate.timestamp.into(),
            new_name: duplicate.new_name,
        }
    }
}

/// What `fixDuplicateDomains` found and did.
#[napi(object, use_nullable = true)]
pub struct NativeFixedDomains {
    /// Duplicates, in the order of the index.
    pub duplicates: Vec<NativeDuplicateDomain>,
    /// Domains that were renamed, now or before.
    pub renamed: Vec<String>,
    /// Live entries of the index.
    pub domains: f64,
    /// The transaction that renamed; null when nothing was.
    pub transaction_id: Option<BigInt>,
}

impl From<Fixed> for NativeFixedDomains {
    fn from(fixed: Fixed) -> Self {
        Self {
            duplicates: fixed.duplicates.into_iter().map(Into::into).collect(),
            renamed: fixed.renamed,
            domains: fixed.domains as f64,
            transaction_id: fixed.txn_id.map(Into::into),
        }
    }
}

outcome!(/** Outcome of `dropShadow`. */ DropShadowOutcome, NativeDropped);
outcome!(/** Outcome of `migrateTimestamps`. */ MigrateTimestampsOutcome, NativeMigrated);
outcome!(/** Outcome of `fixDuplicateDomains`. */ FixDuplicateDomainsOutcome, NativeFixedDomains);

#[napi]
impl NativeEnvironment {
    /// Removes all DBIs that are private to Lightning Stream.
    #[napi(catch_unwind, ts_return_type = "Promise<DropShadowOutcome>")]
    pub fn drop_shadow<'env>(&self, env: &'env Env, work: &Work) -> napi::Result<Object<'env>> {
        let (lmdb, busy) = (self.env.clone(), Busy::new(&self.busy));
        let body = move |cancel: &lightningstream_core::Cancel| {
            let _busy = busy;
            drop_private(&lmdb, cancel)
        };
        run(env, "ls-drop-shadow", Some(work), body, DropShadowOutcome::of)
    }

    /// Copies newer timestamps from one DBI to another.
    #[napi(catch_unwind, ts_return_type = "Promise<MigrateTimestampsOutcome>")]
    pub fn migrate_timestamps<'env>(
        &self,
        env: &'env Env,
        request: MigrateTimestampsRequest,
        work: &Work,
    ) -> napi::Result<Object<'env>> {
        let (lmdb, busy) = (self.env.clone(), Busy::new(&self.busy));
        let body = move |cancel: &lightningstream_core::Cancel| {
            let _busy = busy;
            let migration = Migration {
                source: &request.source,
                destination: &request.destination,
                add_deletions: request.add_deletions,
                ignore_missing_source: request.ignore_missing_source,
            };
            migrate_timestamps(&lmdb, &migration, cancel)
        };
        run(env, "ls-migrate-timestamps", Some(work), body, MigrateTimestampsOutcome::of)
    }

    /// Finds domains that a PowerDNS has twice and renames them when told to; `now_nano` is the time, ns since the epoch.
    #[napi(catch_unwind, ts_return_type = "Promise<FixDuplicateDomainsOutcome>")]
    pub fn fix_duplicate_domains<'env>(
        &self,
        env: &'env Env,
        rename: bool,
        now_nano: BigInt,
        work: &Work,
    ) -> napi::Result<Object<'env>> {
        let (lmdb, busy) = (self.env.clone(), Busy::new(&self.busy));
        let now = now_nano.get_u64().1;
        let body = move |cancel: &lightningstream_core::Cancel| {
            let _busy = busy;
            fix_duplicate_domains(&lmdb, rename, now, cancel)
        };
        run(env, "ls-fix-domains", Some(work), body, FixDuplicateDomainsOutcome::of)
    }
}

/// Ids of the processes that have the LMDB at `path` open; 0 for those of another pid namespace.
#[napi(catch_unwind)]
pub fn lmdb_users(path: String, no_subdir: bool) -> Result<Vec<i32>, Thrown> {
    lmdb::users(Path::new(&path), no_subdir).map(|pids| pids.into_iter().collect()).map_err(thrown)
}
