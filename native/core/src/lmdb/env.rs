//! The environment: opening, the process-wide registry, DBI handles, map size, statistics.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use lmdb_sys as ffi;

use super::check;
use super::txn::{Handles, ReadTxn, WriteTxn};
use crate::cancel::Cancel;
use crate::error::{Code, Error, Result};

/// Map size of an environment that is created and has none configured: 1 GiB, as in Lightning Stream.
const DEFAULT_MAP_BYTES: usize = 1 << 30;

/// Largest `max_dbs`: each costs some memory in every transaction.
const MAX_MAX_DBS: u32 = 65_536;

/// How often, and after which pauses, a reader is begun again that does not see the last commit yet.
const LATEST_ATTEMPTS: u32 = 20;
const LATEST_PAUSE: Duration = Duration::from_millis(1);

/// What an environment is opened with.
#[derive(Clone, Debug)]
pub struct EnvOptions {
    /// The path is the data file itself.
    pub no_subdir: bool,
    /// Create what is missing.
    pub create: bool,
    /// Mode of created directories.
    pub dir_mode: u32,
    /// Mode of created files.
    pub file_mode: u32,
    /// Bytes; 0 = what the file has (1 GiB for a new one).
    pub map_bytes: usize,
    /// Most named DBIs.
    pub max_dbs: u32,
    /// Only to look: nothing is created or written, the lock file included; see [`Environment::check_unshared`]. Goes before `create`.
    pub read_only: bool,
}

impl Default for EnvOptions {
    fn default() -> Self {
        Self {
            no_subdir: false,
            create: false,
            dir_mode: 0o775,
            file_mode: 0o664,
            map_bytes: 0,
            max_dbs: 64,
            read_only: false,
        }
    }
}

/// `mdb_env_info`, page size and file size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Info {
    /// Bytes.
    pub map_bytes: u64,
    /// Bytes.
    pub page_bytes: u32,
    /// Number of the last used page.
    pub last_page: u64,
    /// Id of the last committed transaction.
    pub last_txn_id: u64,
    /// Size of the reader table.
    pub max_readers: u32,
    /// Slots of the reader table ever used.
    pub readers: u32,
    /// Bytes of the data file.
    pub file_bytes: u64,
}

/// `mdb_stat` of one DBI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DbiStat {
    /// Its name.
    pub name: String,
    /// Persistent flags.
    pub flags: u32,
    /// Depth of the tree.
    pub depth: u32,
    /// Inner pages.
    pub branch_pages: u64,
    /// Leaf pages.
    pub leaf_pages: u64,
    /// Overflow pages.
    pub overflow_pages: u64,
    /// Records.
    pub entries: u64,
}

impl DbiStat {
    /// Pages of all kinds.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.branch_pages + self.leaf_pages + self.overflow_pages
    }
}

/// liblmdb's version, e.g. `0.9.24`.
#[must_use]
pub fn version() -> String {
    let (mut major, mut minor, mut patch) = (0, 0, 0);
    // SAFETY: mdb_version writes three ints through valid pointers and returns a static string (lmdb.h).
    unsafe { ffi::mdb_version(&raw mut major, &raw mut minor, &raw mut patch) };
    format!("{major}.{minor}.{patch}")
}

/// Data files this process has open. liblmdb forbids a second handle: closing one drops the locks of the other.
static OPEN_FILES: LazyLock<Mutex<HashSet<PathBuf>>> = LazyLock::new(Mutex::default);

/// A poisoned lock only means that another operation panicked; the data behind ours is valid at every step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `body` while this process cannot open the environment with this data file.
///
/// # Errors
/// [`Code::AlreadyOpen`] when it has it open.
pub(super) fn while_closed<T>(data_file: &Path, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let open_files = lock(&OPEN_FILES);
    if fs::canonicalize(data_file).is_ok_and(|file| open_files.contains(&file)) {
        let text = format!("LMDB {} is open in this process", data_file.display());
        return Err(Error::new(Code::AlreadyOpen, text));
    }
    body()
}

/// One open environment. Clones are the same handle; the last one closes it.
#[derive(Clone)]
pub struct Environment {
    inner: Arc<Inner>,
}

struct Inner {
    /// `None` once closed. Transactions hold it for reading; resizing, reopening and closing hold it for writing.
    raw: RwLock<Option<RawEnv>>,
    path: PathBuf,
    data_file: PathBuf,
    options: EnvOptions,
    /// DBI handles of `raw` by name. Holding the mutex is the right to call `mdb_dbi_open`, which only one transaction at a time may use.
    handles: Mutex<Handles>,
    /// Answers [`Environment::last_txn_id`] and [`Environment::info`] while the lock is held for writing.
    last_info: Mutex<Info>,
}

/// Where liblmdb keeps its locks (lmdb.h, `mdb_env_open`).
#[must_use]
pub fn lock_file(path: &Path, no_subdir: bool) -> PathBuf {
    if no_subdir {
        let mut name = path.as_os_str().to_owned();
        name.push("-lock");
        return name.into();
    }
    path.join("lock.mdb")
}

/// The open handle.
pub(super) struct RawEnv {
    pub(super) ptr: *mut ffi::MDB_env,
    /// The lock file when there was none and none was made.
    absent_lock_file: Option<PathBuf>,
}

// SAFETY: an MDB_env may be used from several threads; what lmdb.h restricts (dbi_open, set_mapsize, close, writers per thread) is
// serialised by `Inner::handles`, by the RwLock around this value, and by WriteTxn not being Send.
unsafe impl Send for RawEnv {}
// SAFETY: as for Send.
unsafe impl Sync for RawEnv {}

impl Drop for RawEnv {
    fn drop(&mut self) {
        // SAFETY: the pointer came from mdb_env_create and is closed once; transactions borrow this value, so none is left.
        unsafe { ffi::mdb_env_close(self.ptr) };
    }
}

impl RawEnv {
    fn open(path: &Path, data_file: &Path, options: &EnvOptions) -> Result<Self> {
        let shown = path.display();
        // liblmdb adds to the number without looking and allocates what comes out.
        if !(1..=MAX_MAX_DBS).contains(&options.max_dbs) {
            let text = format!("open LMDB {shown}: options.max_dbs must be between 1 and {MAX_MAX_DBS}");
            return Err(Error::new(Code::InvalidArgument, text));
        }
        let is_new = fs::metadata(data_file).map_or(true, |meta| meta.len() == 0);
        if options.read_only && is_new {
            // liblmdb would try to begin it.
            return Err(Error::new(Code::Os(libc::ENOENT), format!("open LMDB {shown}: the file is empty")));
        }
        // Without a lock file nobody has it open. One that a look makes could belong to a user whom the application is not.
        let lock_file = lock_file(path, options.no_subdir);
        let absent_lock_file = (options.read_only && !lock_file.exists()).then_some(lock_file);
        let mut ptr = ptr::null_mut();
        // SAFETY: mdb_env_create stores a new handle through the valid pointer.
        check(unsafe { ffi::mdb_env_create(&raw mut ptr) }, "create LMDB environment")?;
        // From here on dropping `raw` closes the handle, also when opening fails, as mdb_env_open's documentation demands.
        let raw = Self { ptr, absent_lock_file };
        // SAFETY: the handle is fresh and not opened yet, when setting this is allowed.
        check(unsafe { ffi::mdb_env_set_maxdbs(ptr, options.max_dbs) }, "set max_dbs")?;
        let map_bytes = if options.map_bytes == 0 && is_new { DEFAULT_MAP_BYTES } else { options.map_bytes };
        if map_bytes != 0 {
            // SAFETY: not opened yet, no transaction.
            check(unsafe { ffi::mdb_env_set_mapsize(ptr, map_bytes) }, "set map_size")?;
        }
        let c_path = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| Error::new(Code::InvalidArgument, "the LMDB path holds a NUL byte"))?;
        // NOTLS: read transactions belong to the operation, not to the thread, so that threads may end.
        let flags = ffi::MDB_NOTLS
            | if options.no_subdir { ffi::MDB_NOSUBDIR } else { 0 }
            | if options.read_only { ffi::MDB_RDONLY } else { 0 }
            | if raw.absent_lock_file.is_some() { ffi::MDB_NOLOCK } else { 0 };
        // SAFETY: a fresh handle and a NUL-terminated path that outlives the call.
        let code = unsafe { ffi::mdb_env_open(ptr, c_path.as_ptr(), flags, options.file_mode) };
        if code == ffi::MDB_VERSION_MISMATCH {
            return Err(Error::new(
                Code::Lmdb(code),
                format!(
                    "open LMDB {shown}: another program uses a different LMDB version (other lock or data format) on these files; \
                     stop it, then remove the lock file if nobody has the LMDB open"
                ),
            ));
        }
        if code == ffi::MDB_INVALID {
            return Err(Error::new(Code::Lmdb(code), format!("open LMDB {shown}: the file is not an LMDB database")));
        }
        check(code, &format!("open LMDB {shown}"))?;
        Ok(raw)
    }

    fn last_txn_id(&self) -> u64 {
        self.info().me_last_txnid as u64
    }

    fn info(&self) -> ffi::MDB_envinfo {
        let mut info = ffi::MDB_envinfo {
            me_mapaddr: ptr::null_mut(),
            me_mapsize: 0,
            me_last_pgno: 0,
            me_last_txnid: 0,
            me_maxreaders: 0,
            me_numreaders: 0,
        };
        // SAFETY: an open handle and a valid pointer; the call cannot fail for these.
        unsafe { ffi::mdb_env_info(self.ptr, &raw mut info) };
        info
    }

    /// Only while this process has no transaction: the caller holds the write guard.
    fn set_map_bytes(&self, bytes: usize) -> Result<()> {
        // SAFETY: an open handle; no transaction, as mdb_env_set_mapsize demands, by the caller's guard.
        check(unsafe { ffi::mdb_env_set_mapsize(self.ptr, bytes) }, "set map size")
    }

    fn check_readers(&self) -> u32 {
        let mut dead = 0;
        // SAFETY: an open handle and a valid pointer.
        unsafe { ffi::mdb_reader_check(self.ptr, &raw mut dead) };
        u32::try_from(dead).unwrap_or(0)
    }
}

impl Environment {
    /// Opens (and with `create` makes) the environment at `path`.
    ///
    /// # Errors
    /// [`Code::AlreadyOpen`] when this process has it open; `ENOENT` when it is missing and may not be created; LMDB's and the
    /// system's own codes.
    pub fn open(path: &Path, options: EnvOptions) -> Result<Self> {
        let data_file = if options.no_subdir { path.to_owned() } else { path.join("data.mdb") };
        let shown = path.display();
        let directory = match data_file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        if options.create && !options.read_only {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(options.dir_mode)
                .create(&directory)
                .map_err(|e| Error::io(format_args!("create directory {}", directory.display()), &e))?;
        } else if let Err(e) = fs::metadata(&data_file) {
            let missing = e.kind() == std::io::ErrorKind::NotFound && !options.read_only;
            let hint = if missing { " (and options.create is not set)" } else { "" };
            return Err(Error::io(format_args!("open LMDB {shown}{hint}"), &e));
        }
        let canonical_directory =
            fs::canonicalize(&directory).map_err(|e| Error::io(format_args!("open LMDB {shown}"), &e))?;
        let data_file = fs::canonicalize(&data_file).unwrap_or_else(|_| {
            data_file.file_name().map_or_else(|| canonical_directory.clone(), |name| canonical_directory.join(name))
        });
        if !lock(&OPEN_FILES).insert(data_file.clone()) {
            return Err(Error::new(Code::AlreadyOpen, format!("LMDB {shown} is already open in this process")));
        }
        match RawEnv::open(path, &data_file, &options) {
            Ok(raw) => {
                raw.check_readers();
                let info = Info { last_txn_id: raw.last_txn_id(), ..Info::default() };
                Ok(Self {
                    inner: Arc::new(Inner {
                        raw: RwLock::new(Some(raw)),
                        path: path.to_owned(),
                        data_file,
                        options,
                        handles: Mutex::default(),
                        last_info: Mutex::new(info),
                    }),
                })
            }
            Err(e) => {
                lock(&OPEN_FILES).remove(&data_file);
                Err(e)
            }
        }
    }

    /// The configured path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The data file, canonical.
    #[must_use]
    pub fn data_file(&self) -> &Path {
        &self.inner.data_file
    }

    /// Waits for running transactions, then closes. Further calls fail with [`Code::Closed`].
    pub fn close(&self) {
        self.inner.close();
    }

    pub(super) fn guard(&self) -> RwLockReadGuard<'_, Option<RawEnv>> {
        self.inner.raw.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn handles(&self) -> MutexGuard<'_, Handles> {
        lock(&self.inner.handles)
    }

    /// LastTxnID. Never blocks: while the environment is being resized or reopened the last known one is returned.
    #[must_use]
    pub fn last_txn_id(&self) -> u64 {
        if let Ok(guard) = self.inner.raw.try_read()
            && let Some(raw) = guard.as_ref()
        {
            return raw.last_txn_id();
        }
        lock(&self.inner.last_info).last_txn_id
    }

    /// Map, pages, readers, file size. Never blocks: while the environment is being resized or reopened the last known values are returned.
    pub fn info(&self) -> Result<Info> {
        let Ok(guard) = self.inner.raw.try_read() else { return Ok(*lock(&self.inner.last_info)) };
        let raw = guard.as_ref().ok_or_else(closed)?;
        let info = raw.info();
        let mut stat = empty_stat();
        // SAFETY: an open handle and a valid pointer.
        check(unsafe { ffi::mdb_env_stat(raw.ptr, &raw mut stat) }, "mdb_env_stat")?;
        let info = Info {
            map_bytes: info.me_mapsize as u64,
            page_bytes: stat.ms_psize,
            last_page: info.me_last_pgno as u64,
            last_txn_id: info.me_last_txnid as u64,
            max_readers: info.me_maxreaders,
            readers: info.me_numreaders,
            file_bytes: fs::metadata(&self.inner.data_file).map_or(0, |meta| meta.size()),
        };
        *lock(&self.inner.last_info) = info;
        Ok(info)
    }

    /// Writes all that is committed to an empty file. With `compact` pages that nothing uses are left out, which liblmdb refuses
    /// (`MDB_INCOMPATIBLE`) when pages were lost. The caller syncs the file.
    pub fn copy_to(&self, file: &fs::File, compact: bool) -> Result<()> {
        let guard = self.guard();
        let raw = guard.as_ref().ok_or_else(closed)?;
        let flags = if compact { ffi::MDB_CP_COMPACT } else { 0 };
        // SAFETY: an open handle, and a descriptor that is open for as long as the call lasts.
        check(unsafe { ffi::mdb_env_copyfd2(raw.ptr, file.as_raw_fd(), flags) }, "copy LMDB")
    }

    /// Clears the slots of readers that died; returns how many. Never blocks.
    pub fn check_readers(&self) -> u32 {
        self.inner.raw.try_read().ok().and_then(|guard| guard.as_ref().map(RawEnv::check_readers)).unwrap_or(0)
    }

    /// Fails once somebody else opened an environment that we read without a lock file: writers do not know of our transaction then and may
    /// use its pages again, at the earliest with their second commit. To be asked while reading, and before what was read is trusted.
    ///
    /// # Errors
    /// `EBUSY`: try again.
    pub fn check_unshared(&self) -> Result<()> {
        match self.guard().as_ref().and_then(|raw| raw.absent_lock_file.as_ref()) {
            Some(lock_file) if lock_file.exists() => {
                let text = "another program opened it while it was read without a lock file; try again";
                Err(Error::new(Code::Os(libc::EBUSY), format!("LMDB {}: {text}", self.path().display())))
            }
            _ => Ok(()),
        }
    }

    /// Statistics of every DBI from one transaction, sorted by name.
    pub fn stats(&self) -> Result<Vec<DbiStat>> {
        self.read_stats().or_else(|error| {
            self.heal(&error);
            self.read_stats()
        })
    }

    fn read_stats(&self) -> Result<Vec<DbiStat>> {
        let txn = self.read()?;
        let stats = txn.dbi_names().map(|name| txn.stat(name)).collect();
        self.check_unshared()?;
        stats
    }

    /// Begins a read transaction.
    pub fn read(&self) -> Result<ReadTxn<'_>> {
        self.begin(|| ReadTxn::begin(self))
    }

    /// Like [`Environment::read`], but never behind [`Environment::last_txn_id`], if it can be helped. A commit writes its meta page, which the
    /// latter looks at, and a moment later its id in the lock file, where new readers look; a writer killed in between leaves it
    /// so until the next commit, therefore the wait is short.
    pub fn read_latest(&self) -> Result<ReadTxn<'_>> {
        let mut attempts = 0;
        loop {
            let txn = self.read()?;
            if txn.id() >= self.last_txn_id() || attempts == LATEST_ATTEMPTS {
                return Ok(txn);
            }
            attempts += 1;
            drop(txn);
            std::thread::sleep(LATEST_PAUSE);
        }
    }

    /// Takes the write lock (blocking as long as another writer holds it) and begins a write transaction. One with `may_create` keeps
    /// other transactions of this process from beginning.
    ///
    /// # Errors
    /// [`Code::Aborted`] when `cancel` was set while waiting for the lock.
    pub fn write(&self, may_create: bool, cancel: &Cancel) -> Result<WriteTxn<'_>> {
        self.begin(|| WriteTxn::begin(self, may_create, cancel))
    }

    /// Runs `attempt` until it gives a transaction. When another process grew the map, adopts the new size first; when the reader table
    /// is full, clears dead slots first.
    fn begin<T>(&self, attempt: impl Fn() -> Result<Option<T>>) -> Result<T> {
        let mut cleared = false;
        loop {
            match attempt() {
                Ok(Some(txn)) => return Ok(txn),
                // A DBI appeared between opening handles and beginning; each round needs one more commit of somebody else.
                Ok(None) => {}
                Err(e) if e.code == Code::Lmdb(ffi::MDB_MAP_RESIZED) => {
                    self.adopt_map_size()?;
                }
                Err(e) if e.code == Code::Lmdb(ffi::MDB_READERS_FULL) && !cleared => {
                    cleared = true;
                    self.check_readers();
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Takes over the map size that the file has now; true when it grew. Waits for this process's transactions.
    pub fn adopt_map_size(&self) -> Result<bool> {
        let mut guard = self.inner.raw.write().unwrap_or_else(PoisonError::into_inner);
        let raw = guard.as_ref().ok_or_else(closed)?;
        let before = raw.info().me_mapsize;
        let resized = raw.set_map_bytes(0).and_then(|()| {
            let after = raw.info().me_mapsize;
            // When the file knows a smaller size than we were configured with, keep ours.
            if after < before { raw.set_map_bytes(before).map(|()| false) } else { Ok(after > before) }
        });
        if resized.is_err() {
            // The old map is gone, and there is no new one: nothing can be done with this handle any more.
            *guard = None;
            lock(&OPEN_FILES).remove(&self.inner.data_file);
        }
        resized
    }

    /// After an error that only a new handle mends (a DBI was dropped and made again with other flags; handles remember the old ones)
    /// makes one, so that the next attempt works.
    pub(crate) fn heal(&self, error: &Error) {
        if error.code == Code::Lmdb(ffi::MDB_INCOMPATIBLE) {
            // Should this fail, the next call says so.
            let _ = self.release_memory();
        }
    }

    /// Gives back the memory that liblmdb keeps after a big write transaction (its list of dirty-page buffers lives as long as the
    /// handle) by closing and opening the handle. Skipped while a transaction is open.
    pub fn release_memory(&self) -> Result<()> {
        let Ok(mut guard) = self.inner.raw.try_write() else { return Ok(()) };
        if let Some(raw) = guard.as_ref() {
            lock(&self.inner.last_info).last_txn_id = raw.last_txn_id();
            self.handles().clear();
            // Closed before it is opened again: the process must never have two handles.
            *guard = None;
            match RawEnv::open(&self.inner.path, &self.inner.data_file, &self.inner.options) {
                Ok(raw) => *guard = Some(raw),
                Err(e) => {
                    lock(&OPEN_FILES).remove(&self.inner.data_file);
                    return Err(e);
                }
            }
        }
        drop(guard);
        trim_heap();
        Ok(())
    }
}

impl Inner {
    fn close(&self) {
        let mut guard = self.raw.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(raw) = guard.take() {
            lock(&self.last_info).last_txn_id = raw.last_txn_id();
            lock(&self.handles).clear();
            drop(raw);
            lock(&OPEN_FILES).remove(&self.data_file);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

pub(super) fn closed() -> Error {
    Error::new(Code::Closed, "the LMDB environment is closed")
}

pub(super) fn empty_stat() -> ffi::MDB_stat {
    ffi::MDB_stat {
        ms_psize: 0,
        ms_depth: 0,
        ms_branch_pages: 0,
        ms_leaf_pages: 0,
        ms_overflow_pages: 0,
        ms_entries: 0,
    }
}

/// Lets others go first on a busy processor, from now on: this thread and those that it starts. For work that nobody waits for: whoever
/// holds the write lock must not give way.
pub fn give_way() {
    // SAFETY: takes no pointers. On Linux it changes the calling thread only (setpriority(2), "C library/kernel differences").
    unsafe {
        libc::nice(10);
    }
}

/// Returns free heap pages to the system: glibc keeps what other threads freed in their arenas otherwise.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim may be called at any time from any thread (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::lmdb::flags;

    const PATH_VARIABLE: &str = "LMDB_OF_THE_OTHER_PROCESS";

    fn open(path: &Path) -> Environment {
        Environment::open(path, EnvOptions { no_subdir: true, create: true, ..EnvOptions::default() }).unwrap()
    }

    fn create(env: &Environment, flags: u32, keys: &[[u8; 4]]) {
        let mut txn = env.write(true, &Cancel::new()).unwrap();
        let dbi = txn.create_dbi("x", flags).unwrap();
        for key in keys {
            txn.cursor(dbi).unwrap().put(key, &[0; 24], false).unwrap();
        }
        txn.commit().unwrap();
    }

    /// Plays two parts: the process that it starts, told by the variable, runs the same test and is the other process.
    #[test]
    fn statistics_follow_a_dbi_that_another_process_makes_anew_with_other_flags() {
        if let Some(path) = std::env::var_os(PATH_VARIABLE) {
            let env = open(Path::new(&path));
            let mut txn = env.write(true, &Cancel::new()).unwrap();
            assert!(txn.drop_dbi("x").unwrap());
            txn.commit().unwrap();
            create(&env, flags::INTEGERKEY, &[[1, 0, 0, 0], [2, 0, 0, 0], [3, 0, 0, 0]]);
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.mdb");
        let env = open(&path);
        create(&env, 0, &[[1; 4]]);
        let seen =
            || -> Vec<_> { env.stats().unwrap().iter().map(|s| (s.flags, s.entries, s.depth, s.pages())).collect() };
        assert_eq!(seen(), [(0, 1, 1, 1)]);
        let other = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "lmdb::env::tests::statistics_follow_a_dbi_that_another_process_makes_anew_with_other_flags",
            ])
            .env(PATH_VARIABLE, &path)
            .output()
            .unwrap();
        assert!(other.status.success(), "{other:?}");
        assert_eq!(seen(), [(flags::INTEGERKEY, 3, 1, 1)]);
    }
}
