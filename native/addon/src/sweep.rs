//! Sweeping old deletions out of an environment.

use std::time::Duration;

use lightningstream_core::sweep::{SweepOptions, Swept, sweep};
use lightningstream_core::{Error, lmdb};
use napi::Env;
use napi::bindgen_prelude::{BigInt, Object};
use napi_derive::napi;

use super::{Busy, Failure, NativeEnvironment, Work, milliseconds, run};

/// What to sweep.
#[napi(object)]
pub struct SweepRequest {
    /// Older deletions are removed, ns since the epoch.
    pub cutoff_nano: BigInt,
    /// How long the lock is held at once, about; 0 = no limit.
    pub lock_duration_ms: f64,
    /// How long others have their turn after that.
    pub release_duration_ms: f64,
    /// Sweep the shadows instead of the application's DBIs.
    pub shadow: bool,
}

/// What a sweep did.
#[napi(object, use_nullable = true)]
pub struct NativeSweepResult {
    /// Entries left.
    pub entries: f64,
    /// Deletions left.
    pub deleted: f64,
    /// Deletions removed.
    pub cleaned: f64,
    /// Write transactions.
    pub transactions: f64,
    /// The longest that one of them held the lock.
    pub longest_lock_ms: f64,
    /// Why it did not get to the end; null when it did.
    pub failed: Option<Failure>,
}

impl From<Swept> for NativeSweepResult {
    fn from(swept: Swept) -> Self {
        Self {
            entries: swept.entries as f64,
            deleted: swept.deleted as f64,
            cleaned: swept.cleaned as f64,
            transactions: swept.transactions as f64,
            longest_lock_ms: milliseconds(swept.longest_lock),
            failed: swept.failed.map(Into::into),
        }
    }
}

outcome!(/** Outcome of `sweep`. */ SweepOutcome, NativeSweepResult);

#[napi]
impl NativeEnvironment {
    /// Removes old deletions.
    #[napi(catch_unwind, ts_return_type = "Promise<SweepOutcome>")]
    pub fn sweep<'env>(&self, env: &'env Env, request: SweepRequest, work: &Work) -> napi::Result<Object<'env>> {
        let (environment, busy) = (self.env.clone(), Busy::new(&self.busy));
        let options = SweepOptions {
            cutoff: request.cutoff_nano.get_u64().1,
            lock_duration: Some(duration(request.lock_duration_ms)).filter(|limit| !limit.is_zero()),
            release_duration: duration(request.release_duration_ms),
            shadow: request.shadow,
        };
        run(
            env,
            "ls-sweep",
            Some(work),
            move |cancel| {
                let _busy = busy;
                let swept = sweep(&environment, &options, cancel);
                lmdb::trim_heap();
                swept
            },
            SweepOutcome::of,
        )
    }
}

/// Longer ones than a `Duration` holds, negative ones and NaN are none.
fn duration(milliseconds: f64) -> Duration {
    Duration::try_from_secs_f64(milliseconds / 1e3).unwrap_or_default()
}
