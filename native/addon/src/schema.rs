//! `schema` and `snapshotSchema`: which schema PowerDNS' data have.

use std::path::Path;

use lightningstream_core::Error;
use lightningstream_core::schema::{Schema, of_lmdb, of_snapshot};
use napi::Env;
use napi::bindgen_prelude::Object;
use napi_derive::napi;

use crate::{Busy, Failure, NativeEnvironment, Work, run};

/// A schema.
#[napi(object)]
pub struct NativeSchema {
    /// Its number.
    pub version: u32,
    /// False: only names of DBIs tell; 4 is 4 or older, 5 is 5 or newer.
    pub exact: bool,
}

impl From<Schema> for NativeSchema {
    fn from(Schema { version, exact }: Schema) -> Self {
        Self { version, exact }
    }
}

impl From<NativeSchema> for Schema {
    fn from(NativeSchema { version, exact }: NativeSchema) -> Self {
        Self { version, exact }
    }
}

/// Outcome of both calls; both null: nothing tells one.
#[napi(object, use_nullable = true)]
pub struct SchemaOutcome {
    /// The schema.
    pub value: Option<NativeSchema>,
    /// Why it is not known; null on success.
    pub error: Option<Failure>,
}

fn outcome(result: Result<Option<Schema>, Error>) -> SchemaOutcome {
    match result {
        Ok(schema) => SchemaOutcome { value: schema.map(Into::into), error: None },
        Err(error) => SchemaOutcome { value: None, error: Some(error.into()) },
    }
}

#[napi]
impl NativeEnvironment {
    /// The schema of the LMDB.
    #[napi(catch_unwind, ts_return_type = "Promise<SchemaOutcome>")]
    pub fn schema<'env>(&self, env: &'env Env) -> napi::Result<Object<'env>> {
        let (lmdb, busy) = (self.env.clone(), Busy::new(&self.busy));
        run(
            env,
            "ls-schema",
            None,
            move |_| {
                let _busy = busy;
                of_lmdb(&lmdb.read_latest()?)
            },
            outcome,
        )
    }
}

/// The schema of a snapshot.
#[napi(catch_unwind, ts_return_type = "Promise<SchemaOutcome>")]
pub fn snapshot_schema<'env>(env: &'env Env, path: String, work: &Work) -> napi::Result<Object<'env>> {
    run(env, "ls-schema", Some(work), move |cancel| of_snapshot(Path::new(&path), true, cancel), outcome)
}
