//! Shadow mode without a snapshot.

use std::time::Instant;

use lightningstream_core::merge::{CaptureOptions, Captured, Counts, Shadow, Stamp, capture};
use lightningstream_core::{Error, lmdb};
use napi::Env;
use napi::bindgen_prelude::{BigInt, Object};
use napi_derive::napi;

use crate::{Busy, Failure, NativeEnvironment, Work, nanoseconds, run};

/// Timestamp of what is captured at the start of the program: older than everything, but not 0, which older programs refuse.
const START_UP_NANO: u64 = 1;

/// How to capture.
#[napi(object)]
pub struct CaptureRequest {
    /// 1 = the start of the program, else the time of the call, ns since the epoch.
    pub timestamp_nano: BigInt,
    /// DBIs with MDB_DUPSORT travel.
    pub dupsort_hack: bool,
    /// Values that have headers already are an error.
    pub guard: bool,
}

/// Entries of shadows that were written.
#[napi(object)]
pub struct NativeCounts {
    /// New keys.
    pub added: f64,
    /// Other values.
    pub changed: f64,
    /// Removed keys.
    pub deleted: f64,
}

impl From<Counts> for NativeCounts {
    fn from(counts: Counts) -> Self {
        Self { added: counts.added as f64, changed: counts.changed as f64, deleted: counts.deleted as f64 }
    }
}

/// What a capture did.
#[napi(object, use_nullable = true)]
pub struct NativeCaptureResult {
    /// The shadows have all up to this transaction.
    pub covered_transaction_id: BigInt,
    /// The transaction that wrote; null when nothing had to be written.
    pub transaction_id: Option<BigInt>,
    /// Keys looked at.
    pub entries: f64,
    /// Entries written.
    pub captured: NativeCounts,
    /// Time the lock was held, ns.
    pub write_lock_ns: BigInt,
    /// Time until the lock was there, ns.
    pub wait_lock_ns: BigInt,
    /// Time without the lock, ns.
    pub plan_ns: BigInt,
}

impl From<Captured> for NativeCaptureResult {
    fn from(captured: Captured) -> Self {
        Self {
            covered_transaction_id: captured.covered_txn_id.into(),
            transaction_id: captured.txn_id.map(Into::into),
            entries: captured.entries as f64,
            captured: captured.counts.into(),
            write_lock_ns: nanoseconds(captured.write_lock),
            wait_lock_ns: nanoseconds(captured.wait_lock),
            plan_ns: nanoseconds(captured.plan),
        }
    }
}

outcome!(/** Outcome of `capture`. */ CaptureOutcome, NativeCaptureResult);

/// Options of shadow mode for a call at `called`.
pub(crate) fn shadow(timestamp_nano: u64, called: Instant, dupsort_hack: bool, guard: bool) -> Shadow {
    let stamp = match timestamp_nano {
        START_UP_NANO => Stamp::Fixed(START_UP_NANO),
        nano => Stamp::Clock { nano, at: called },
    };
    Shadow { stamp, dupsort_hack, guard }
}

#[napi]
impl NativeEnvironment {
    /// Brings the shadows up to date.
    #[napi(catch_unwind, ts_return_type = "Promise<CaptureOutcome>")]
    pub fn capture<'env>(&self, env: &'env Env, request: CaptureRequest, work: &Work) -> napi::Result<Object<'env>> {
        let (lmdb, busy) = (self.env.clone(), Busy::new(&self.busy));
        let shadow = shadow(request.timestamp_nano.get_u64().1, Instant::now(), request.dupsort_hack, request.guard);
        run(
            env,
            "ls-capture",
            Some(work),
            move |cancel| {
                let _busy = busy;
                let captured = capture(&lmdb, &CaptureOptions::new(shadow), cancel);
                lmdb::trim_heap();
                captured
            },
            CaptureOutcome::of,
        )
    }
}
