//! `checkMode`: whether the values of an LMDB speak against the mode it is used in.

use lightningstream_core::Error;
use lightningstream_core::mode::{Doubt, Finding, doubt_native, doubt_shadow};
use napi::Env;
use napi::bindgen_prelude::Object;
use napi_derive::napi;

use crate::{Busy, Failure, NativeEnvironment, run};

/// A DBI that speaks against the mode.
#[napi(object)]
pub struct NativeModeDoubt {
    /// Its name.
    pub dbi: String,
    /// `headers`, `shadow` or `plain`.
    pub finding: String,
}

impl From<Doubt> for NativeModeDoubt {
    fn from(doubt: Doubt) -> Self {
        let finding = match doubt.finding {
            Finding::Headers => "headers",
            Finding::Shadow => "shadow",
            Finding::Plain => "plain",
        };
        Self { dbi: doubt.dbi, finding: finding.to_owned() }
    }
}

/// Outcome of `checkMode`; both null: nothing speaks against it.
#[napi(object, use_nullable = true)]
pub struct ModeOutcome {
    /// What speaks against it.
    pub value: Option<NativeModeDoubt>,
    /// Why the check failed; null on success.
    pub error: Option<Failure>,
}

#[napi]
impl NativeEnvironment {
    /// Looks at a few values; `native` is the mode.
    #[napi(catch_unwind, ts_return_type = "Promise<ModeOutcome>")]
    pub fn check_mode<'env>(&self, env: &'env Env, native: bool) -> napi::Result<Object<'env>> {
        let (lmdb, busy) = (self.env.clone(), Busy::new(&self.busy));
        run(
            env,
            "ls-mode",
            None,
            move |_| {
                let _busy = busy;
                let txn = lmdb.read_latest()?;
                if native { doubt_native(&txn) } else { doubt_shadow(&txn) }
            },
            |result: Result<Option<Doubt>, Error>| match result {
                Ok(doubt) => ModeOutcome { value: doubt.map(Into::into), error: None },
                Err(error) => ModeOutcome { value: None, error: Some(error.into()) },
            },
        )
    }
}
