//! The N-API surface of `lightningstream-core`: converts types and runs the work on threads of its own, nothing else.
//!
//! Internal: `src/native` is its only caller and gives it its public shape. An asynchronous call resolves to an outcome, `{value, error}` with
//! one of them null, because errors carry a code, a DBI and a key; synchronous calls throw with `code` set. Panics become errors of code
//! `PANIC`. Nothing here blocks the JavaScript thread.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lightningstream_core::lmdb::{self, DbiStat, EnvOptions};
use lightningstream_core::merge::{MergeOptions, Merged, merge};
use lightningstream_core::publish::{Published, publish, publish_shadow};
use lightningstream_core::schema::Expected;
use lightningstream_core::snapshot::Meta;
use lightningstream_core::snapshot::decode::Index;
use lightningstream_core::{Cancel, Code, Error, inspect};
use napi::bindgen_prelude::{BigInt, Object, ToNapiValue};
use napi::{Env, JsDeferred};
use napi_derive::napi;

/// Why a call failed.
#[napi(object, use_nullable = true)]
pub struct Failure {
    /// Stable name, e.g. `MDB_MAP_FULL`.
    pub code: String,
    /// One line.
    pub message: String,
    /// DBI it is about.
    pub dbi: Option<String>,
    /// Key it is about, hexadecimal.
    pub key: Option<String>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            code: error.code.name(),
            message: error.to_string(),
            key: error.key.as_deref().map(|key| key.iter().map(|byte| format!("{byte:02x}")).collect()),
            dbi: error.dbi,
        }
    }
}

/// An error of a synchronous call: its `code` becomes the JavaScript error's.
fn thrown(error: Error) -> napi::Error<String> {
    napi::Error::new(error.code.name(), error.to_string())
}

type Thrown = napi::Error<String>;
type Release = Box<dyn FnOnce() + Send>;
type Settle<T> = Box<dyn FnOnce(Result<T, Error>) + Send>;

/// The handle to one piece of work.
#[napi]
pub struct Work {
    cancel: Cancel,
    /// Releases whoever waits, before the thread is done; empty once settled.
    release: Arc<Mutex<Option<Release>>>,
}

/// How far a piece of work is.
#[napi(object)]
pub struct WorkProgress {
    /// Entries done.
    pub entries: f64,
    /// Bytes done.
    pub bytes: f64,
    /// Bytes in all; 0 = unknown.
    pub total_bytes: f64,
}

#[napi]
impl Work {
    /// A handle for one call.
    #[napi(constructor)]
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self { cancel: Cancel::new(), release: Arc::default() }
    }

    /// Stops the work. A thread that is blocked on LMDB's write lock cannot look up; its caller is released at once, and it gives up when it
    /// gets the lock.
    #[napi(catch_unwind)]
    pub fn cancel(&self) {
        self.cancel.cancel();
        if self.cancel.is_waiting_for_lock() {
            let release = self.release.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(release) = release {
                release();
            }
        }
    }

    /// Last reported progress.
    #[napi(catch_unwind)]
    pub fn progress(&self) -> WorkProgress {
        let (entries, bytes, total_bytes) = self.cancel.progress();
        WorkProgress { entries: entries as f64, bytes: bytes as f64, total_bytes: total_bytes as f64 }
    }
}

/// Starts `work` on a thread of its own; the promise resolves to its outcome.
fn run<'env, T, J>(
    env: &'env Env,
    name: &str,
    handle: Option<&Work>,
    work: impl FnOnce(&Cancel) -> Result<T, Error> + Send + 'static,
    convert: impl FnOnce(Result<T, Error>) -> J + Send + 'static,
) -> napi::Result<Object<'env>>
where
    T: Send + 'static,
    J: ToNapiValue + 'static,
{
    type Resolver<J> = Box<dyn FnOnce(Env) -> napi::Result<J>>;
    let (deferred, promise): (JsDeferred<J, Resolver<J>>, _) = env.create_deferred()?;
    let settle: Settle<T> = Box::new(move |result| deferred.resolve(Box::new(move |_| Ok(convert(result)))));
    let settle = Arc::new(Mutex::new(Some(settle)));
    let settle_once = move |result| {
        let settle = settle.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(settle) = settle {
            settle(result);
        }
    };
    let cancel = handle.map_or_else(Cancel::new, |handle| handle.cancel.clone());
    if let Some(handle) = handle {
        let early = settle_once.clone();
        *handle.release.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Box::new(move || early(Err(Error::new(Code::Aborted, "aborted")))));
    }
    let at_failure = settle_once.clone();
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let result = catch_unwind(AssertUnwindSafe(|| work(&cancel))).unwrap_or_else(|panic| Err(panicked(&*panic)));
        settle_once(result);
    });
    if let Err(error) = spawned {
        at_failure(Err(Error::io("start a thread", &error)));
    }
    Ok(promise)
}

fn panicked(panic: &(dyn Any + Send)) -> Error {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    Error::new(Code::Panic, format!("internal error: {text}"))
}

/// Declares the outcome of an asynchronous call.
macro_rules! outcome {
    ($(#[$doc:meta])* $outcome:ident, $value:ty) => {
        $(#[$doc])*
        #[napi(object, use_nullable = true)]
        pub struct $outcome {
            /// The result; null on failure.
            pub value: Option<$value>,
            /// Why it failed; null on success.
            pub error: Option<Failure>,
        }

        impl $outcome {
            fn of<T>(result: Result<T, Error>) -> Self
            where
                $value: From<T>,
            {
                match result {
                    Ok(value) => Self { value: Some(value.into()), error: None },
                    Err(error) => Self { value: None, error: Some(error.into()) },
                }
            }
        }
    };
}

pub mod capture;
pub mod dump;
pub mod migrate;
pub mod mode;
pub mod notify;
pub mod schema;
pub mod sweep;
pub mod upkeep;
pub mod verify;

/// Options of an environment.
#[napi(object)]
pub struct NativeEnvironmentOptions {
    /// The path is the data file itself.
    pub no_subdir: bool,
    /// Create what is missing.
    pub create: bool,
    /// Mode of directories.
    pub dir_mask: u32,
    /// Mode of files.
    pub file_mask: u32,
    /// Bytes; 0 = what the file has.
    pub map_size_bytes: f64,
    /// Most named DBIs.
    pub max_dbs: u32,
    /// Only to look.
    pub read_only: Option<bool>,
}

/// `mdb_env_info` and sizes.
#[napi(object)]
pub struct NativeInfo {
    /// Bytes.
    pub map_size_bytes: f64,
    /// Bytes.
    pub page_size_bytes: u32,
    /// Last used page.
    pub last_page: f64,
    /// LastTxnID.
    pub last_transaction_id: BigInt,
    /// Slots of the reader table.
    pub max_readers: u32,
    /// Slots ever used.
    pub readers: u32,
    /// Bytes.
    pub file_size_bytes: f64,
}

impl From<lmdb::Info> for NativeInfo {
    fn from(info: lmdb::Info) -> Self {
        Self {
            map_size_bytes: info.map_bytes as f64,
            page_size_bytes: info.page_bytes,
            last_page: info.last_page as f64,
            last_transaction_id: info.last_txn_id.into(),
            max_readers: info.max_readers,
            readers: info.readers,
            file_size_bytes: info.file_bytes as f64,
        }
    }
}

/// Statistics of one DBI.
#[napi(object)]
pub struct NativeDbiStat {
    /// Name.
    pub name: String,
    /// Persistent flags.
    pub flags: u32,
    /// Depth of the tree.
    pub depth: u32,
    /// Inner pages.
    pub branch_pages: f64,
    /// Leaf pages.
    pub leaf_pages: f64,
    /// Overflow pages.
    pub overflow_pages: f64,
    /// Records.
    pub entries: f64,
    /// Bytes of all pages.
    pub used_bytes: f64,
}

/// Statistics of an environment.
#[napi(object)]
pub struct NativeStats {
    /// The environment.
    pub info: NativeInfo,
    /// Its DBIs.
    pub dbis: Vec<NativeDbiStat>,
    /// Bytes of all DBIs.
    pub used_bytes: f64,
}

impl From<(lmdb::Info, Vec<DbiStat>)> for NativeStats {
    fn from((info, stats): (lmdb::Info, Vec<DbiStat>)) -> Self {
        let page_bytes = f64::from(info.page_bytes);
        let dbis: Vec<_> = stats
            .into_iter()
            .map(|stat| NativeDbiStat {
                used_bytes: stat.pages() as f64 * page_bytes,
                name: stat.name,
                flags: stat.flags,
                depth: stat.depth,
                branch_pages: stat.branch_pages as f64,
                leaf_pages: stat.leaf_pages as f64,
                overflow_pages: stat.overflow_pages as f64,
                entries: stat.entries as f64,
            })
            .collect();
        Self { used_bytes: dbis.iter().map(|dbi| dbi.used_bytes).sum(), info: info.into(), dbis }
    }
}

/// What to publish.
#[napi(object, use_nullable = true)]
pub struct PublishRequest {
    /// File to write.
    pub spool_path: String,
    /// Meta.generationID.
    pub generation_id: String,
    /// Meta.instanceID.
    pub instance_id: String,
    /// Meta.hostname.
    pub hostname: String,
    /// Meta.databaseName.
    pub database_name: String,
    /// The time of the call, ns since the epoch; what passes until the transaction has begun is added.
    pub now_nano: BigInt,
    /// The snapshot's time is not before this, ns since the epoch.
    pub earliest_nano: BigInt,
    /// Nothing is written unless a later transaction is visible.
    pub newer_than: BigInt,
    /// The application's DBIs have no headers.
    pub shadow: bool,
    /// DBIs with MDB_DUPSORT travel.
    pub dupsort_hack: bool,
    /// Values that have headers already are an error in shadow mode.
    pub guard: bool,
}

/// Milliseconds of the steps of a publish.
#[napi(object)]
pub struct NativePublishDurations {
    /// Until the read transaction was there.
    pub acquire_ms: f64,
    /// The size pass.
    pub dump_ms: f64,
    /// Encoding, compressing, writing.
    pub compress_ms: f64,
}

/// What a publish did.
#[napi(object, use_nullable = true)]
pub struct NativePublishResult {
    /// Transaction that the snapshot shows.
    pub transaction_id: BigInt,
    /// ns since the epoch.
    pub timestamp_nano: BigInt,
    /// Schema of what it shows.
    pub schema: Option<schema::NativeSchema>,
    /// DBIs.
    pub dbis: f64,
    /// Entries.
    pub entries: f64,
    /// Those flagged deleted.
    pub deleted: f64,
    /// Digest of all entries.
    pub digest_all: String,
    /// Digest without deletions.
    pub digest_live: String,
    /// What was captured before.
    pub captured: capture::NativeCounts,
    /// Uncompressed size.
    pub bytes: f64,
    /// Compressed size.
    pub compressed_bytes: f64,
    /// Where the time went.
    pub durations: NativePublishDurations,
}

impl From<Published> for NativePublishResult {
    fn from(published: Published) -> Self {
        Self {
            transaction_id: published.txn_id.into(),
            timestamp_nano: published.timestamp.into(),
            schema: published.schema.map(Into::into),
            dbis: published.dbis as f64,
            entries: published.content.entries as f64,
            deleted: published.content.deleted as f64,
            digest_all: published.content.all.to_string(),
            digest_live: published.content.live().to_string(),
            captured: published.captured.into(),
            bytes: published.bytes as f64,
            compressed_bytes: published.compressed_bytes as f64,
            durations: NativePublishDurations {
                acquire_ms: milliseconds(published.acquire),
                dump_ms: milliseconds(published.dump),
                compress_ms: milliseconds(published.compress),
            },
        }
    }
}

/// What to merge.
#[napi(object, use_nullable = true)]
pub struct MergeRequest {
    /// The compressed snapshot.
    pub spool_path: String,
    /// Older deletions are not added, ns; 0 = all are.
    pub deleted_cutoff_nano: BigInt,
    /// Flags for DBIs to create, by name.
    pub create_flags: HashMap<String, u32>,
    /// Write an extension block.
    pub header_extra_padding_block: bool,
    /// The application's DBIs have no headers.
    pub shadow: bool,
    /// DBIs with MDB_DUPSORT travel.
    pub dupsort_hack: bool,
    /// Values that have headers already are an error in shadow mode.
    pub guard: bool,
    /// The time of the call, ns since the epoch; for what is captured.
    pub capture_nano: BigInt,
    /// Nothing is written unless the LMDB's schema is `schema`.
    pub check_schema: bool,
    /// Null: it has none.
    pub schema: Option<schema::NativeSchema>,
    /// The snapshot's must be the same as this, if it tells one; null: whatever it is.
    pub snapshot_schema: Option<schema::NativeSchema>,
}

/// Head of a snapshot.
#[napi(object)]
pub struct NativeSnapshotMeta {
    /// formatVersion.
    pub format_version: u32,
    /// compatVersion.
    pub compat_version: u32,
    /// Meta.generationID.
    pub generation_id: String,
    /// Meta.instanceID.
    pub instance_id: String,
    /// Meta.hostname.
    pub hostname: String,
    /// Meta.databaseName.
    pub database_name: String,
    /// Meta.lmdbTxnID.
    pub lmdb_txn_id: BigInt,
    /// Meta.timestampNano.
    pub timestamp_nano: BigInt,
}

impl NativeSnapshotMeta {
    fn new(meta: Meta, format_version: u32, compat_version: u32) -> Self {
        Self {
            format_version,
            compat_version,
            generation_id: meta.generation_id,
            instance_id: meta.instance_id,
            hostname: meta.hostname,
            database_name: meta.database_name,
            lmdb_txn_id: meta.lmdb_txn_id.into(),
            timestamp_nano: meta.timestamp_nano.into(),
        }
    }
}

/// What a merge did.
#[napi(object, use_nullable = true)]
pub struct NativeMergeResult {
    /// LastTxnID that the decision was based on.
    pub base_transaction_id: BigInt,
    /// The transaction that wrote; null when nothing had to be written.
    pub transaction_id: Option<BigInt>,
    /// Entries read.
    pub entries: f64,
    /// Keys that were not there.
    pub added: f64,
    /// Values replaced.
    pub updated: f64,
    /// All others.
    pub skipped: f64,
    /// What was captured before.
    pub captured: capture::NativeCounts,
    /// DBIs created.
    pub created_dbis: Vec<String>,
    /// Private DBIs ignored.
    pub ignored_dbis: Vec<String>,
    /// Time the lock was held, ns.
    pub write_lock_ns: BigInt,
    /// Time until the lock was there, ns.
    pub wait_lock_ns: BigInt,
    /// Time without the lock, ns.
    pub plan_ns: BigInt,
    /// The snapshot's head.
    pub meta: NativeSnapshotMeta,
}

impl From<Merged> for NativeMergeResult {
    fn from(merged: Merged) -> Self {
        Self {
            base_transaction_id: merged.base_txn_id.into(),
            transaction_id: merged.txn_id.map(Into::into),
            entries: merged.entries as f64,
            added: merged.added as f64,
            updated: merged.updated as f64,
            skipped: (merged.entries - merged.added - merged.updated) as f64,
            captured: merged.captured.into(),
            created_dbis: merged.created,
            ignored_dbis: merged.ignored,
            write_lock_ns: nanoseconds(merged.write_lock),
            wait_lock_ns: nanoseconds(merged.wait_lock),
            plan_ns: nanoseconds(merged.plan),
            meta: NativeSnapshotMeta::new(merged.meta, merged.format_version, merged.compat_version),
        }
    }
}

/// What a snapshot says apart from its records.
#[napi(object)]
pub struct NativeInspection {
    /// Its head.
    pub meta: NativeSnapshotMeta,
    /// DBI messages.
    pub dbis: f64,
    /// Entries.
    pub entries: f64,
    /// Uncompressed size.
    pub bytes: f64,
}

impl From<Index> for NativeInspection {
    fn from(index: Index) -> Self {
        Self {
            dbis: index.dbis.len() as f64,
            entries: index.entries as f64,
            bytes: index.bytes as f64,
            meta: NativeSnapshotMeta::new(index.meta, index.format_version, index.compat_version),
        }
    }
}

/// Outcome of `publish`; both null: nothing newer was there.
#[napi(object, use_nullable = true)]
pub struct PublishOutcome {
    /// The result.
    pub value: Option<NativePublishResult>,
    /// Why it failed; null on success.
    pub error: Option<Failure>,
}

outcome!(/** Outcome of `merge`. */ MergeOutcome, NativeMergeResult);
outcome!(/** Outcome of `stats`. */ StatsOutcome, NativeStats);
outcome!(/** Outcome of `inspectSnapshot`. */ InspectOutcome, NativeInspection);
outcome!(/** Outcome of `close`. */ CloseOutcome, bool);

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn nanoseconds(duration: Duration) -> BigInt {
    nanos(duration).into()
}

/// One open environment.
#[napi]
pub struct NativeEnvironment {
    env: lmdb::Environment,
    /// Threads that work on it, those included whose caller was released early.
    busy: Arc<AtomicUsize>,
}

/// Counts a thread as busy for as long as it lives.
struct Busy(Arc<AtomicUsize>);

impl Busy {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(count))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[napi]
impl NativeEnvironment {
    /// Opens; throws with `code`.
    #[napi(factory, catch_unwind)]
    pub fn open(path: String, options: NativeEnvironmentOptions) -> Result<Self, Thrown> {
        let options = EnvOptions {
            no_subdir: options.no_subdir,
            create: options.create,
            dir_mode: options.dir_mask,
            file_mode: options.file_mask,
            map_bytes: options.map_size_bytes as usize,
            max_dbs: options.max_dbs,
            read_only: options.read_only.unwrap_or(false),
        };
        let env = lmdb::Environment::open(Path::new(&path), options).map_err(thrown)?;
        Ok(Self { env, busy: Arc::default() })
    }

    /// LastTxnID.
    #[napi(getter, catch_unwind)]
    pub fn last_transaction_id(&self) -> BigInt {
        self.env.last_txn_id().into()
    }

    /// `mdb_env_info`.
    #[napi(catch_unwind)]
    pub fn info(&self) -> Result<NativeInfo, Thrown> {
        self.env.info().map(Into::into).map_err(thrown)
    }

    /// Clears slots of dead readers.
    #[napi(catch_unwind)]
    pub fn check_readers(&self) -> u32 {
        self.env.check_readers()
    }

    /// Statistics of all DBIs.
    #[napi(catch_unwind, ts_return_type = "Promise<StatsOutcome>")]
    pub fn stats<'env>(&self, env: &'env Env) -> napi::Result<Object<'env>> {
        let (lmdb, busy) = (self.env.clone(), Busy::new(&self.busy));
        run(
            env,
            "ls-stats",
            None,
            move |_| {
                let _busy = busy;
                Ok((lmdb.info()?, lmdb.stats()?))
            },
            StatsOutcome::of,
        )
    }

    /// Writes a snapshot file, unless there is nothing newer.
    #[napi(catch_unwind, ts_return_type = "Promise<PublishOutcome>")]
    pub fn publish<'env>(&self, env: &'env Env, request: PublishRequest, work: &Work) -> napi::Result<Object<'env>> {
        let (lmdb, busy) = (self.env.clone(), Busy::new(&self.busy));
        let meta = Meta {
            generation_id: request.generation_id,
            instance_id: request.instance_id,
            hostname: request.hostname,
            database_name: request.database_name,
            ..Meta::default()
        };
        let (called, now, earliest) = (Instant::now(), request.now_nano.get_u64().1, request.earliest_nano.get_u64().1);
        let newer_than = request.newer_than.get_u64().1;
        let path = PathBuf::from(request.spool_path);
        run(
            env,
            "ls-publish",
            Some(work),
            move |cancel| {
                let _busy = busy;
                lmdb::give_way();
                let time = || now.saturating_add(nanos(called.elapsed())).max(earliest);
                let published = if request.shadow {
                    let shadow = capture::shadow(now, called, request.dupsort_hack, request.guard);
                    publish_shadow(&lmdb, &path, meta, newer_than, shadow, time, cancel)
                } else {
                    publish(&lmdb, &path, meta, newer_than, time, cancel)
                };
                lmdb::trim_heap();
                published
            },
            |result| match result {
                Ok(published) => PublishOutcome { value: published.map(Into::into), error: None },
                Err(error) => PublishOutcome { value: None, error: Some(error.into()) },
            },
        )
    }

    /// Merges a snapshot file.
    #[napi(catch_unwind, ts_return_type = "Promise<MergeOutcome>")]
    pub fn merge<'env>(&self, env: &'env Env, request: MergeRequest, work: &Work) -> napi::Result<Object<'env>> {
        let (lmdb, busy, called) = (self.env.clone(), Busy::new(&self.busy), Instant::now());
        run(
            env,
            "ls-merge",
            Some(work),
            move |cancel| {
                let _busy = busy;
                let path = PathBuf::from(request.spool_path);
                let mut options = MergeOptions::new(&path);
                options.deleted_cutoff = request.deleted_cutoff_nano.get_u64().1;
                options.create_flags = request.create_flags.into_iter().collect::<BTreeMap<_, _>>();
                options.padding_block = request.header_extra_padding_block;
                options.schema = request.check_schema.then(|| Expected(request.schema.map(Into::into)));
                options.snapshot_schema = request.snapshot_schema.map(Into::into);
                if request.shadow {
                    let nano = request.capture_nano.get_u64().1;
                    options.shadow = Some(capture::shadow(nano, called, request.dupsort_hack, request.guard));
                }
                let merged = merge(&lmdb, &options, cancel);
                lmdb::trim_heap();
                merged
            },
            MergeOutcome::of,
        )
    }

    /// Closes when the work in progress is done. Work that was released early, waiting for another process's write lock, is not waited
    /// for: its thread closes the environment when it ends.
    #[napi(catch_unwind, ts_return_type = "Promise<CloseOutcome>")]
    pub fn close<'env>(&self, env: &'env Env, abandoned: bool) -> napi::Result<Object<'env>> {
        let lmdb = self.env.clone();
        let close = move |_: &Cancel| {
            lmdb.close();
            Ok(true)
        };
        if abandoned && self.busy.load(Ordering::Acquire) > 0 {
            std::thread::spawn(move || close(&Cancel::new()));
            return run(env, "ls-close", None, |_| Ok(false), CloseOutcome::of);
        }
        run(env, "ls-close", None, close, CloseOutcome::of)
    }
}

/// Decodes a whole snapshot without keeping it.
#[napi(catch_unwind, ts_return_type = "Promise<InspectOutcome>")]
pub fn inspect_snapshot<'env>(env: &'env Env, path: String, work: &Work) -> napi::Result<Object<'env>> {
    run(env, "ls-inspect", Some(work), move |cancel| inspect::inspect(Path::new(&path), cancel), InspectOutcome::of)
}

/// An exclusive lock on a file.
#[napi]
pub struct FileLock {
    file: Option<File>,
}

#[napi]
impl FileLock {
    /// Lets go.
    #[napi(catch_unwind)]
    pub fn release(&mut self) {
        self.file = None;
    }
}

/// flock(2) without waiting; null when somebody else holds the lock.
#[napi(catch_unwind)]
pub fn try_lock(path: String) -> Result<Option<FileLock>, Thrown> {
    let failed = |error: &std::io::Error| thrown(Error::io(format_args!("lock {path}"), error));
    // NFS wants a writable descriptor for an exclusive lock.
    let file =
        File::options().read(true).write(true).open(&path).or_else(|_| File::open(&path)).map_err(|e| failed(&e))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(FileLock { file: Some(file) })),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(e)) => Err(failed(&e)),
    }
}

/// liblmdb's version.
#[napi(catch_unwind)]
pub fn lmdb_version() -> String {
    lmdb::version()
}

/// The addon's version.
#[napi(catch_unwind)]
pub fn addon_version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}

/// Panics, so that a test can see what becomes of it.
#[napi(catch_unwind, ts_return_type = "Promise<CloseOutcome>")]
pub fn panic_for_test<'env>(env: &'env Env) -> napi::Result<Object<'env>> {
    run(env, "ls-panic", None, |_| -> Result<bool, Error> { panic!("on purpose") }, CloseOutcome::of)
}
