//! Looking at all records: `verify`, and `compare` with a snapshot.

use std::path::PathBuf;

use lightningstream_core::digest::Content;
use lightningstream_core::merge::{CaptureOptions, Shadow, Stamp, pending};
use lightningstream_core::verify::{CompareOptions, Comparison, Verified, VerifiedDbi, VerifyOptions, compare, verify};
use napi::Env;
use napi::bindgen_prelude::{BigInt, Object};
use napi_derive::napi;

use super::{Busy, Error, Failure, NativeEnvironment, NativeSnapshotMeta, Work, run};

/// Entries and their digests.
#[napi(object)]
pub struct NativeContent {
    /// Entries, deletions included.
    pub entries: f64,
    /// Those flagged deleted.
    pub deleted: f64,
    /// Digest of all, 32 hexadecimal digits.
    pub all: String,
    /// Digest without deletions.
    pub live: String,
}

impl From<Content> for NativeContent {
    fn from(content: Content) -> Self {
        Self {
            entries: content.entries as f64,
            deleted: content.deleted as f64,
            all: content.all.to_string(),
            live: content.live().to_string(),
        }
    }
}

/// How to look at an LMDB.
#[napi(object)]
pub struct VerifyRequest {
    /// The headers are in shadow DBIs.
    pub shadow: bool,
    /// So many faults are described.
    pub max_errors: u32,
    /// Later timestamps are of the future, ns since the epoch.
    pub future_after: BigInt,
}

/// What was found in one DBI.
#[napi(object)]
pub struct NativeVerifiedDbi {
    /// The application's name.
    pub name: String,
    /// Persistent flags of the DBI that was read.
    pub flags: u32,
    /// Entries with a valid header.
    pub content: NativeContent,
    /// With timestamp 0.
    pub zero: f64,
    /// Of the future.
    pub future: f64,
    /// The latest timestamp.
    pub newest: BigInt,
    /// Without a valid header.
    pub invalid: f64,
}

impl From<VerifiedDbi> for NativeVerifiedDbi {
    fn from(dbi: VerifiedDbi) -> Self {
        Self {
            name: dbi.name,
            flags: dbi.flags,
            content: dbi.content.into(),
            zero: dbi.zero as f64,
            future: dbi.future as f64,
            newest: dbi.newest.into(),
            invalid: dbi.invalid as f64,
        }
    }
}

/// What was found in an LMDB.
#[napi(object, use_nullable = true)]
pub struct NativeVerified {
    /// The transaction that was looked at.
    pub transaction_id: BigInt,
    /// Sorted by name.
    pub dbis: Vec<NativeVerifiedDbi>,
    /// Of all DBIs together.
    pub content: NativeContent,
    /// The first faults.
    pub errors: Vec<Failure>,
}

impl From<Verified> for NativeVerified {
    fn from(verified: Verified) -> Self {
        let mut content = Content::default();
        for dbi in &verified.dbis {
            content += dbi.content;
        }
        Self {
            transaction_id: verified.txn_id.into(),
            content: content.into(),
            dbis: verified.dbis.into_iter().map(Into::into).collect(),
            errors: verified.errors.into_iter().map(Into::into).collect(),
        }
    }
}

/// What to compare.
#[napi(object)]
pub struct CompareRequest {
    /// The compressed snapshot.
    pub path: String,
    /// The headers are in shadow DBIs.
    pub shadow: bool,
    /// Older deletions are no loss, ns; 0 = all are.
    pub deleted_cutoff_nano: BigInt,
}

/// A DBI of the snapshot, of the LMDB, or of both.
#[napi(object)]
pub struct NativeComparedDbi {
    /// The application's name.
    pub name: String,
    /// The snapshot's.
    pub content: NativeContent,
    /// Entries that are missing here.
    pub missing: f64,
    /// Deletions that are missing here, of what is not there.
    pub missing_deletions: f64,
    /// Entries that the snapshot does not have, or older.
    pub newer: f64,
}

/// A snapshot beside an LMDB.
#[napi(object)]
pub struct NativeComparison {
    /// The LMDB's transaction.
    pub transaction_id: BigInt,
    /// The snapshot's head.
    pub meta: NativeSnapshotMeta,
    /// Sorted by name.
    pub dbis: Vec<NativeComparedDbi>,
    /// The snapshot's, of all DBIs together.
    pub content: NativeContent,
}

impl From<Comparison> for NativeComparison {
    fn from(compared: Comparison) -> Self {
        let mut content = Content::default();
        for dbi in &compared.dbis {
            content += dbi.content;
        }
        let dbis = compared.dbis.into_iter().map(|dbi| NativeComparedDbi {
            name: dbi.name,
            content: dbi.content.into(),
            missing: dbi.missing as f64,
            missing_deletions: dbi.missing_deletions as f64,
            newer: dbi.newer as f64,
        });
        Self {
            transaction_id: compared.txn_id.into(),
            meta: NativeSnapshotMeta::new(compared.meta, compared.format_version, compared.compat_version),
            dbis: dbis.collect(),
            content: content.into(),
        }
    }
}

/// Records of the application's DBIs that are other than in their shadows.
#[napi(object)]
pub struct NativePending {
    /// So many.
    pub entries: f64,
    /// There are more: they were not counted to the end.
    pub more: bool,
}

impl From<(u64, bool)> for NativePending {
    fn from((entries, more): (u64, bool)) -> Self {
        Self { entries: entries as f64, more }
    }
}

outcome!(/** Outcome of `pending`. */ PendingOutcome, NativePending);
outcome!(/** Outcome of `verify`. */ VerifyOutcome, NativeVerified);
outcome!(/** Outcome of `compare`. */ CompareOutcome, NativeComparison);

#[napi]
impl NativeEnvironment {
    /// Reads all records.
    #[napi(catch_unwind, ts_return_type = "Promise<VerifyOutcome>")]
    pub fn verify<'env>(&self, env: &'env Env, request: VerifyRequest, work: &Work) -> napi::Result<Object<'env>> {
        let (lmdb, busy) = (self.env.clone(), Busy::new(&self.busy));
        let options = VerifyOptions {
            shadow: request.shadow,
            max_errors: request.max_errors as usize,
            future_after: request.future_after.get_u64().1,
        };
        run(
            env,
            "ls-verify",
            Some(work),
            move |cancel| {
                let _busy = busy;
                verify(&lmdb, options, cancel)
            },
            VerifyOutcome::of,
        )
    }

    /// Reads a snapshot beside the records.
    #[napi(catch_unwind, ts_return_type = "Promise<CompareOutcome>")]
    pub fn compare<'env>(&self, env: &'env Env, request: CompareRequest, work: &Work) -> napi::Result<Object<'env>> {
        let (lmdb, busy) = (self.env.clone(), Busy::new(&self.busy));
        let options =
            CompareOptions { shadow: request.shadow, deleted_cutoff: request.deleted_cutoff_nano.get_u64().1 };
        let path = PathBuf::from(request.path);
        run(
            env,
            "ls-compare",
            Some(work),
            move |cancel| {
                let _busy = busy;
                compare(&lmdb, &path, options, cancel)
            },
            CompareOutcome::of,
        )
    }

    /// Compares the application's DBIs with their shadows.
    #[napi(catch_unwind, ts_return_type = "Promise<PendingOutcome>")]
    pub fn pending<'env>(&self, env: &'env Env, dupsort_hack: bool, work: &Work) -> napi::Result<Object<'env>> {
        let (lmdb, busy) = (self.env.clone(), Busy::new(&self.busy));
        run(
            env,
            "ls-pending",
            Some(work),
            move |cancel| {
                let _busy = busy;
                // Nothing is written; an earlier time than a shadow's would hide a change.
                let shadow = Shadow { stamp: Stamp::Fixed(u64::MAX), dupsort_hack, guard: false };
                pending(&lmdb, &CaptureOptions::new(shadow), cancel)
            },
            PendingOutcome::of,
        )
    }
}
