//! Dumps to standard output.

use std::path::Path;

use lightningstream_core::dump::{self, Dumped, EnvironmentDump, Format, Headers, Output, SnapshotDump};
use napi::Env;
use napi::bindgen_prelude::{BigInt, Object};
use napi_derive::napi;

use super::{Busy, Error, Failure, NativeEnvironment, Work, run};

/// What to dump of an environment.
#[napi(object)]
pub struct DumpRequest {
    /// Its configured name.
    pub database: String,
    /// Leave private DBIs out.
    pub hide_private: bool,
    /// The values of all DBIs have headers, not only those of the shadow DBIs.
    pub native: bool,
    /// JSON Lines instead of text.
    pub json: bool,
    /// The time now, ns since the epoch.
    pub now_nano: BigInt,
}

/// What to dump of a snapshot.
#[napi(object, use_nullable = true)]
pub struct SnapshotDumpRequest {
    /// The file.
    pub path: String,
    /// Name of the object.
    pub name: String,
    /// Only this DBI.
    pub dbi: Option<String>,
    /// JSON Lines instead of text.
    pub json: bool,
    /// The time now, ns since the epoch.
    pub now_nano: BigInt,
}

/// What was dumped.
#[napi(object)]
pub struct NativeDumped {
    /// DBIs.
    pub dbis: f64,
    /// Records.
    pub entries: f64,
}

impl From<Dumped> for NativeDumped {
    fn from(dumped: Dumped) -> Self {
        Self { dbis: dumped.dbis as f64, entries: dumped.entries as f64 }
    }
}

outcome!(/** Outcome of a dump. */ DumpOutcome, NativeDumped);

fn format(json: bool) -> Format {
    if json { Format::Json } else { Format::Text }
}

/// Writes the records of an environment to standard output.
#[napi(catch_unwind, ts_return_type = "Promise<DumpOutcome>")]
pub fn dump_environment<'env>(
    env: &'env Env,
    environment: &NativeEnvironment,
    request: DumpRequest,
    work: &Work,
) -> napi::Result<Object<'env>> {
    let (lmdb, busy) = (environment.env.clone(), Busy::new(&environment.busy));
    run(
        env,
        "ls-dump",
        Some(work),
        move |cancel| {
            let _busy = busy;
            let options = EnvironmentDump {
                database: &request.database,
                hide_private: request.hide_private,
                headers: if request.native { Headers::Everywhere } else { Headers::Shadows },
                format: format(request.json),
                now: request.now_nano.get_u64().1,
            };
            dump::dump(&lmdb, &options, &mut Output::stdout(cancel)?)
        },
        DumpOutcome::of,
    )
}

/// Writes the records of a snapshot to standard output.
#[napi(catch_unwind, ts_return_type = "Promise<DumpOutcome>")]
pub fn dump_snapshot<'env>(env: &'env Env, request: SnapshotDumpRequest, work: &Work) -> napi::Result<Object<'env>> {
    run(
        env,
        "ls-dump",
        Some(work),
        move |cancel| {
            let options = SnapshotDump {
                name: &request.name,
                dbi: request.dbi.as_deref(),
                format: format(request.json),
                now: request.now_nano.get_u64().1,
            };
            dump::dump_snapshot(Path::new(&request.path), &options, &mut Output::stdout(cancel)?)
        },
        DumpOutcome::of,
    )
}
