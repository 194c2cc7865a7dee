//! Transactions and cursors.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::marker::PhantomData;
use std::ptr;
use std::sync::{MutexGuard, RwLockReadGuard};

use lmdb_sys as ffi;

use super::env::{DbiStat, Environment, RawEnv, closed, empty_stat};
use super::{KeyOrder, check, empty_val, error, val};
use crate::cancel::Cancel;
use crate::error::{Code, Error, Result};

/// Names with their handles.
pub(super) type Handles = BTreeMap<String, ffi::MDB_dbi>;

/// A DBI that exists in the transaction it was looked up in.
#[derive(Clone, Copy, Debug)]
pub struct Dbi {
    handle: ffi::MDB_dbi,
    /// Persistent flags.
    pub flags: u32,
}

impl Dbi {
    /// How its keys are sorted.
    #[must_use]
    pub fn order(self) -> KeyOrder {
        KeyOrder::of(self.flags)
    }
}

/// A transaction of either kind; ends it when dropped.
struct RawTxn {
    ptr: *mut ffi::MDB_txn,
}

impl RawTxn {
    fn begin(env: &RawEnv, flags: u32) -> Result<Self> {
        let mut ptr = ptr::null_mut();
        // SAFETY: an open environment and a valid out-pointer.
        let code = unsafe { ffi::mdb_txn_begin(env.ptr, ptr::null_mut(), flags, &raw mut ptr) };
        check(code, "begin LMDB transaction")?;
        Ok(Self { ptr })
    }

    fn id(&self) -> u64 {
        // SAFETY: a live transaction.
        unsafe { ffi::mdb_txn_id(self.ptr) as u64 }
    }

    fn commit(self) -> Result<()> {
        let ptr = self.ptr;
        // mdb_txn_commit frees the handle whether it succeeds or not.
        std::mem::forget(self);
        // SAFETY: a live transaction that nothing uses after this; cursors borrow the owner and are gone.
        check(unsafe { ffi::mdb_txn_commit(ptr) }, "commit LMDB transaction")
    }

    fn open_dbi(&self, name: &str, flags: u32) -> Result<ffi::MDB_dbi> {
        let c_name = CString::new(name).map_err(|_| {
            Error::new(Code::InvalidArgument, "DBI name with a NUL byte").in_dbi(name.replace('\0', "\\0"))
        })?;
        let mut handle = 0;
        // SAFETY: a live transaction, a NUL-terminated name that outlives the call; the caller holds the mutex that serialises this call.
        let code = unsafe { ffi::mdb_dbi_open(self.ptr, c_name.as_ptr(), flags, &raw mut handle) };
        check(code, "open DBI").map_err(|e| e.in_dbi(name))?;
        Ok(handle)
    }

    fn flags(&self, handle: ffi::MDB_dbi) -> Result<u32> {
        let mut flags = 0;
        // SAFETY: a live transaction and a valid out-pointer; LMDB checks the handle.
        check(unsafe { ffi::mdb_dbi_flags(self.ptr, handle, &raw mut flags) }, "DBI flags")?;
        Ok(flags & super::flags::CREATABLE)
    }

    fn stat(&self, handle: ffi::MDB_dbi) -> Result<ffi::MDB_stat> {
        let mut stat = empty_stat();
        // SAFETY: a live transaction and a valid out-pointer; LMDB checks the handle.
        check(unsafe { ffi::mdb_stat(self.ptr, handle, &raw mut stat) }, "DBI statistics")?;
        Ok(stat)
    }

    fn cursor(&self, handle: ffi::MDB_dbi) -> Result<RawCursor<'_>> {
        let mut ptr = ptr::null_mut();
        // SAFETY: a live transaction and a valid out-pointer; LMDB checks the handle.
        check(unsafe { ffi::mdb_cursor_open(self.ptr, handle, &raw mut ptr) }, "open cursor")?;
        Ok(RawCursor { ptr, txn: PhantomData })
    }

    /// Keys of the unnamed database: the names of all DBIs.
    fn names(&self) -> Result<Vec<String>> {
        let mut handle = 0;
        // SAFETY: a live transaction; a null name means the unnamed database, which needs no slot.
        check(unsafe { ffi::mdb_dbi_open(self.ptr, ptr::null(), 0, &raw mut handle) }, "open the unnamed database")?;
        let cursor = self.cursor(handle)?;
        let mut names = Vec::new();
        let mut op = ffi::MDB_FIRST;
        while let Some((key, _)) = cursor.get(op, None)? {
            // SAFETY: LMDB returned this range; it stays valid until the transaction's next write, and is copied at once.
            let key = unsafe { key.slice() };
            let name = std::str::from_utf8(key)
                .map_err(|_| Error::new(Code::InvalidArgument, "a DBI name is not UTF-8").at_key(key))?;
            names.push(name.to_owned());
            op = ffi::MDB_NEXT;
        }
        Ok(names)
    }
}

impl Drop for RawTxn {
    fn drop(&mut self) {
        // SAFETY: a live transaction; cursors borrow the owner and are gone.
        unsafe { ffi::mdb_txn_abort(self.ptr) };
    }
}

/// Opens a handle for every DBI that has none, in a transaction of its own. The caller holds the mutex around `handles`.
pub(super) fn open_missing_handles(env: &RawEnv, handles: &mut Handles) -> Result<()> {
    let txn = RawTxn::begin(env, ffi::MDB_RDONLY)?;
    let mut opened = Handles::new();
    for name in txn.names()? {
        if !handles.contains_key(&name) {
            let handle = txn.open_dbi(&name, 0).map_err(|e| {
                if e.code == Code::Lmdb(ffi::MDB_INCOMPATIBLE) {
                    let text = "the LMDB keeps records in its unnamed database, which cannot be synchronised";
                    return Error::new(e.code, text).at_key(name.as_bytes());
                }
                e
            })?;
            opened.insert(name, handle);
        }
    }
    // Committing keeps the handles; aborting would close them (lmdb.h, mdb_dbi_open).
    txn.commit()?;
    handles.extend(opened);
    Ok(())
}

/// Memory range that LMDB returned.
#[derive(Clone, Copy)]
struct Range(ffi::MDB_val);

impl Range {
    /// # Safety
    /// The range must still be valid for `'a`: until the end of a read transaction, or until the next write of a write transaction.
    unsafe fn slice<'a>(self) -> &'a [u8] {
        if self.0.mv_size == 0 {
            return &[];
        }
        // SAFETY: the caller's promise; LMDB returns non-null pointers for non-empty values.
        unsafe { std::slice::from_raw_parts(self.0.mv_data.cast::<u8>(), self.0.mv_size) }
    }
}

/// The lifetime belongs to what is closed on drop: so the compiler refuses to end the transaction before that.
struct RawCursor<'t> {
    ptr: *mut ffi::MDB_cursor,
    txn: PhantomData<&'t RawTxn>,
}

impl RawCursor<'_> {
    #[inline]
    fn get(&self, op: ffi::MDB_cursor_op, key: Option<&[u8]>) -> Result<Option<(Range, Range)>> {
        let mut key = key.map_or_else(empty_val, val);
        let mut data = empty_val();
        // SAFETY: a live cursor of a live transaction; LMDB reads the key range before it overwrites the MDB_vals.
        let code = unsafe { ffi::mdb_cursor_get(self.ptr, &raw mut key, &raw mut data, op) };
        match code {
            0 => Ok(Some((Range(key), Range(data)))),
            ffi::MDB_NOTFOUND => Ok(None),
            // A key of zero or too many bytes is nowhere.
            ffi::MDB_BAD_VALSIZE => Err(error(code, "look up a key")),
            _ => Err(error(code, "read LMDB")),
        }
    }

    /// The first value of `key`, in a DBI with MDB_DUPSORT, that is not below `value`.
    fn get_duplicate(&self, key: &[u8], value: &[u8]) -> Result<Option<Range>> {
        let mut key = val(key);
        // LMDB refuses to search for an empty value, and it would be the first.
        let (mut data, op) =
            if value.is_empty() { (empty_val(), ffi::MDB_SET_KEY) } else { (val(value), ffi::MDB_GET_BOTH_RANGE) };
        // SAFETY: a live cursor of a live transaction; both ranges outlive the call. The key's MDB_val is not looked at afterwards.
        let code = unsafe { ffi::mdb_cursor_get(self.ptr, &raw mut key, &raw mut data, op) };
        match code {
            0 => Ok(Some(Range(data))),
            ffi::MDB_NOTFOUND => Ok(None),
            _ => Err(error(code, "look up a value")),
        }
    }

    /// Transaction and DBI, for the calls that take no cursor.
    fn home(&self) -> (*mut ffi::MDB_txn, ffi::MDB_dbi) {
        // SAFETY: a live cursor.
        let txn = unsafe { ffi::mdb_cursor_txn(self.ptr) };
        // SAFETY: a live cursor.
        let dbi = unsafe { ffi::mdb_cursor_dbi(self.ptr) };
        (txn, dbi)
    }
}

impl Drop for RawCursor<'_> {
    fn drop(&mut self) {
        // SAFETY: opened once, closed once; the owner borrows the transaction, so that is still live (required for write transactions).
        unsafe { ffi::mdb_cursor_close(self.ptr) };
    }
}

/// A consistent view of the environment.
pub struct ReadTxn<'e> {
    // Declared before the guard: the transaction ends before the environment may be resized or closed.
    raw: RawTxn,
    handles: Handles,
    _guard: RwLockReadGuard<'e, Option<RawEnv>>,
}

impl<'e> ReadTxn<'e> {
    /// Begins; `None` when a DBI appeared that has no handle valid in this transaction: begin again.
    pub(super) fn begin(env: &'e Environment) -> Result<Option<Self>> {
        let guard = env.guard();
        let raw_env = guard.as_ref().ok_or_else(closed)?;
        // Handles are copied while nobody can open one, and the transaction begins before anybody can again: all of them are valid in it.
        let mut registry = env.handles();
        open_missing_handles(raw_env, &mut registry)?;
        let raw = RawTxn::begin(raw_env, ffi::MDB_RDONLY)?;
        let known = registry.clone();
        let names = raw.names()?;
        drop(registry);
        Ok(existing(&known, names).map(|handles| Self { raw, handles, _guard: guard }))
    }

    /// LastTxnID of the view.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.raw.id()
    }

    /// All DBIs, sorted by name (bytewise, as LMDB keeps them).
    pub fn dbi_names(&self) -> impl Iterator<Item = &str> {
        self.handles.keys().map(String::as_str)
    }

    /// A DBI by name, when it exists.
    pub fn dbi(&self, name: &str) -> Result<Option<Dbi>> {
        lookup(&self.raw, &self.handles, name)
    }

    /// Number of records.
    pub fn entries(&self, dbi: Dbi) -> Result<u64> {
        Ok(self.raw.stat(dbi.handle)?.ms_entries as u64)
    }

    /// Statistics of a DBI.
    pub fn stat(&self, name: &str) -> Result<DbiStat> {
        let dbi = self.dbi(name)?.ok_or_else(|| Error::new(Code::InvalidArgument, "no such DBI").in_dbi(name))?;
        // mdb_stat does not tell that the handle remembers other flags than the DBI has now, and gives zeros; a look-up does.
        self.cursor(dbi)?.next().map_err(|e| e.in_dbi(name))?;
        let stat = self.raw.stat(dbi.handle)?;
        Ok(DbiStat {
            name: name.to_owned(),
            flags: dbi.flags,
            depth: stat.ms_depth,
            branch_pages: stat.ms_branch_pages as u64,
            leaf_pages: stat.ms_leaf_pages as u64,
            overflow_pages: stat.ms_overflow_pages as u64,
            entries: stat.ms_entries as u64,
        })
    }

    /// A cursor before the first record.
    pub fn cursor(&self, dbi: Dbi) -> Result<ReadCursor<'_>> {
        Ok(ReadCursor::new(self.raw.cursor(dbi.handle)?, dbi))
    }
}

/// Records a cursor walks over before it jumps by a search from the root instead.
const STEPS_BEFORE_SEEK: u32 = 8;

/// Where a cursor stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Start,
    Record,
    End,
    /// Wherever the last write left it.
    Unknown,
}

/// Walks a DBI of a read transaction; what it returns lives as long as the transaction.
pub struct ReadCursor<'t> {
    raw: RawCursor<'t>,
    order: KeyOrder,
    place: Place,
    current: Option<(&'t [u8], &'t [u8])>,
}

impl<'t> ReadCursor<'t> {
    fn new(raw: RawCursor<'t>, dbi: Dbi) -> Self {
        Self { raw, order: dbi.order(), place: Place::Start, current: None }
    }

    /// The next record, the first one at the start. Duplicates are records of their own.
    #[inline]
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<(&'t [u8], &'t [u8])>> {
        let op = match self.place {
            Place::Start => ffi::MDB_FIRST,
            Place::Record | Place::Unknown => ffi::MDB_NEXT,
            Place::End => return Ok(None),
        };
        self.stand(op, None)
    }

    /// The first record whose key is not below `key`.
    pub fn seek(&mut self, key: &[u8]) -> Result<Option<(&'t [u8], &'t [u8])>> {
        self.stand(ffi::MDB_SET_RANGE, Some(key))
    }

    /// Of a DBI with MDB_DUPSORT: the record of `key` whose value is not below `value`.
    pub fn seek_duplicate(&mut self, key: &[u8], value: &[u8]) -> Result<Option<(&'t [u8], &'t [u8])>> {
        if self.raw.get_duplicate(key, value)?.is_some() {
            // LMDB leaves the caller's key in place; what is returned must be its own.
            return self.stand(ffi::MDB_GET_CURRENT, None);
        }
        self.current = None;
        self.place = Place::End;
        Ok(None)
    }

    #[inline]
    fn stand(&mut self, op: ffi::MDB_cursor_op, key: Option<&[u8]>) -> Result<Option<(&'t [u8], &'t [u8])>> {
        self.current = self.raw.get(op, key)?.map(pair);
        self.place = if self.current.is_some() { Place::Record } else { Place::End };
        Ok(self.current)
    }

    /// The value of `key`. Cheap when keys come in order: steps over small gaps, searches over large ones. `ascending` is the caller's
    /// word that this key is above the one asked for before.
    #[inline]
    pub fn find(&mut self, key: &[u8], ascending: bool) -> Result<Option<&'t [u8]>> {
        if !ascending {
            self.seek(key)?;
        } else if self.place == Place::Start {
            self.next()?;
        }
        let mut steps = 0;
        while let Some((local, value)) = self.current {
            match self.order.compare(local, key) {
                Ordering::Equal => return Ok(Some(value)),
                Ordering::Greater => return Ok(None),
                Ordering::Less if steps < STEPS_BEFORE_SEEK => {
                    steps += 1;
                    self.next()?;
                }
                Ordering::Less => {
                    self.seek(key)?;
                }
            }
        }
        Ok(None)
    }
}

#[inline]
fn pair<'a>((key, value): (Range, Range)) -> (&'a [u8], &'a [u8]) {
    // SAFETY: only called where the signature of the caller ties 'a to the read transaction (data stays until its end), or to a borrow of
    // the write cursor that ends before the next write (lmdb.h, mdb_get).
    let key = unsafe { key.slice() };
    // SAFETY: as above.
    let value = unsafe { value.slice() };
    (key, value)
}

/// The write transaction: at most one in the whole machine; rolled back unless committed. Stays on its thread.
pub struct WriteTxn<'e> {
    raw: RawTxn,
    handles: Handles,
    /// Held by a transaction that may create DBIs, from before it begins: `mdb_dbi_open` must not run in two transactions at once.
    registry: Option<MutexGuard<'e, Handles>>,
    _guard: RwLockReadGuard<'e, Option<RawEnv>>,
    _not_send: PhantomData<*mut ()>,
}

impl<'e> WriteTxn<'e> {
    /// Takes the lock and begins; `None`: begin again, as for [`ReadTxn::begin`].
    pub(super) fn begin(env: &'e Environment, may_create: bool, cancel: &Cancel) -> Result<Option<Self>> {
        let guard = env.guard();
        let raw_env = guard.as_ref().ok_or_else(closed)?;
        let mut registry = env.handles();
        open_missing_handles(raw_env, &mut registry)?;
        let mut known = registry.clone();
        // Without the right to create, others may open handles while we wait for the lock.
        let registry = may_create.then_some(registry);
        // The flag before the check: whoever cancels in between sees one of them.
        cancel.set_waiting_for_lock(true);
        let begun = cancel.check().and_then(|()| RawTxn::begin(raw_env, 0));
        cancel.set_waiting_for_lock(false);
        let raw = begun?;
        cancel.check()?;
        let names = raw.names()?;
        if registry.is_some() {
            for name in names.iter().filter(|name| !known.contains_key(*name)).cloned().collect::<Vec<_>>() {
                let handle = raw.open_dbi(&name, 0)?;
                known.insert(name, handle);
            }
        }
        Ok(existing(&known, names).map(|handles| Self {
            raw,
            handles,
            registry,
            _guard: guard,
            _not_send: PhantomData,
        }))
    }

    /// The id this transaction will have when it writes anything.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.raw.id()
    }

    /// A DBI by name, when it exists.
    pub fn dbi(&self, name: &str) -> Result<Option<Dbi>> {
        lookup(&self.raw, &self.handles, name)
    }

    /// Creates a DBI with these persistent flags.
    ///
    /// # Errors
    /// `MDB_DBS_FULL` when `max_dbs` is reached; `MDB_BAD_VALSIZE` for a name that LMDB refuses.
    pub fn create_dbi(&mut self, name: &str, flags: u32) -> Result<Dbi> {
        let Some(registry) = &mut self.registry else {
            return Err(Error::new(Code::InvalidArgument, "this transaction may not create a DBI").in_dbi(name));
        };
        if !self.handles.contains_key(name)
            && let Some(stale) = registry.remove(name)
        {
            // Another process deleted the DBI. A handle that is left of it would be what opening returns, with nothing created, and
            // writing by it goes to no valid page (mdb.c, mdb_dbi_open).
            // SAFETY: a live transaction.
            let env = unsafe { ffi::mdb_txn_env(self.raw.ptr) };
            // SAFETY: this transaction cannot have used the handle, as the DBI was not among its names. No other may begin with it while
            // we hold the registry; readers that have it get an error from it (mdb.c, TXN_DBI_CHANGED).
            unsafe { ffi::mdb_dbi_close(env, stale) };
        }
        let handle = self.raw.open_dbi(name, ffi::MDB_CREATE | flags)?;
        self.handles.insert(name.to_owned(), handle);
        Ok(Dbi { handle, flags: self.raw.flags(handle)? })
    }

    /// All DBIs, sorted by name (bytewise, as LMDB keeps them).
    pub fn dbi_names(&self) -> impl Iterator<Item = &str> {
        self.handles.keys().map(String::as_str)
    }

    /// Number of records.
    pub fn entries(&self, dbi: Dbi) -> Result<u64> {
        Ok(self.raw.stat(dbi.handle)?.ms_entries as u64)
    }

    /// A cursor that only reads, before the first record. As long as it, or what it returned, is in use, nothing can be written.
    pub fn read_cursor(&self, dbi: Dbi) -> Result<ReadCursor<'_>> {
        Ok(ReadCursor::new(self.raw.cursor(dbi.handle)?, dbi))
    }

    /// Cursors over two DBIs. They borrow the transaction, so only they write.
    pub fn cursor_pair(&mut self, first: Dbi, second: Dbi) -> Result<CursorPair<'_>> {
        Ok(CursorPair {
            first: WriteCursor::new(self.raw.cursor(first.handle)?, first),
            second: WriteCursor::new(self.raw.cursor(second.handle)?, second),
        })
    }

    /// A cursor before the first record. It borrows the transaction, so there is only one and only it writes. It must be gone before the
    /// transaction ends, which frees it:
    ///
    /// ```compile_fail,E0505
    /// # use lightningstream_core::lmdb::{Dbi, WriteTxn};
    /// fn commit(mut txn: WriteTxn<'_>, dbi: Dbi) {
    ///     let cursor = txn.cursor(dbi);
    ///     txn.commit();
    /// }
    /// ```
    pub fn cursor(&mut self, dbi: Dbi) -> Result<WriteCursor<'_>> {
        Ok(WriteCursor::new(self.raw.cursor(dbi.handle)?, dbi))
    }

    /// Deletes a DBI with all that is in it; false when there is none. Only in a transaction that may create DBIs: liblmdb closes the handle at
    /// once, so no other transaction may begin with it.
    pub fn drop_dbi(&mut self, name: &str) -> Result<bool> {
        let Some(registry) = &mut self.registry else {
            return Err(Error::new(Code::InvalidArgument, "this transaction may not delete a DBI").in_dbi(name));
        };
        let Some(handle) = self.handles.remove(name) else { return Ok(false) };
        registry.remove(name);
        // SAFETY: a live write transaction and a handle of it; no cursor is open, as each borrows the transaction. Readers that have the
        // handle get an error from it (lmdb.h, mdb_drop; mdb.c, TXN_DBI_CHANGED).
        check(unsafe { ffi::mdb_drop(self.raw.ptr, handle, 1) }, "delete DBI").map_err(|e| e.in_dbi(name))?;
        Ok(true)
    }

    /// Makes everything visible at once and durable. LastTxnID stays where it was when nothing was written.
    pub fn commit(self) -> Result<()> {
        let Self { raw, handles, registry, _guard, .. } = self;
        raw.commit()?;
        if let Some(mut registry) = registry {
            registry.extend(handles);
        }
        Ok(())
    }
}

/// Walks and writes a DBI of the write transaction; what it returns must be let go before the next write.
pub struct WriteCursor<'t> {
    raw: RawCursor<'t>,
    order: KeyOrder,
    place: Place,
}

impl<'t> WriteCursor<'t> {
    fn new(raw: RawCursor<'t>, dbi: Dbi) -> Self {
        Self { raw, order: dbi.order(), place: Place::Start }
    }

    fn look_up(&mut self, lookup: Lookup<'_>) -> Result<Option<&[u8]>> {
        match lookup {
            Lookup::Absent => Ok(None),
            Lookup::Key { key, ascending } => self.find(key, ascending),
            Lookup::Duplicate { key, prefix, cut, sorted } => self.find_duplicate(key, prefix, cut, sorted),
        }
    }

    fn find_duplicate(&mut self, key: &[u8], prefix: &[u8], cut: bool, sorted: bool) -> Result<Option<&[u8]>> {
        self.place = Place::Unknown;
        let mut found = self.raw.get_duplicate(key, if sorted { prefix } else { &[] })?;
        while let Some(range) = found {
            // SAFETY: LMDB returned this range; the borrow of the cursor that ties it ends before the next write (lmdb.h, mdb_get).
            let value: &[u8] = unsafe { range.slice() };
            if if cut { value.starts_with(prefix) } else { value == prefix } {
                return Ok(Some(value));
            }
            if sorted {
                break;
            }
            found = self.raw.get(ffi::MDB_NEXT_DUP, None)?.map(|(_, data)| data);
        }
        Ok(None)
    }

    /// Removes a key; of a DBI with MDB_DUPSORT only `value`. By the call that takes no cursor: liblmdb before 0.9.29 can lose its place when a
    /// cursor deletes duplicates one by one.
    pub fn delete(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let (txn, dbi) = self.raw.home();
        let (mut key, mut data) = (val(key), val(value));
        self.place = Place::Unknown;
        // SAFETY: the live write transaction that this cursor borrows and a handle of it; both ranges outlive the call.
        let code = unsafe { ffi::mdb_del(txn, dbi, &raw mut key, &raw mut data) };
        check(code, "delete from LMDB")
    }

    /// Adds a value to a key of a DBI with MDB_DUPSORT; one that is there already stays.
    ///
    /// # Errors
    /// `MDB_BAD_VALSIZE` for a value that the DBI cannot have (more than 511 bytes, or another size than the others of MDB_DUPFIXED).
    pub fn put_duplicate(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let (txn, dbi) = self.raw.home();
        let (mut key, mut data) = (val(key), val(value));
        self.place = Place::Unknown;
        // SAFETY: the live write transaction that this cursor borrows and a handle of it; both ranges outlive the call, LMDB copies them.
        let code = unsafe { ffi::mdb_put(txn, dbi, &raw mut key, &raw mut data, 0) };
        check(code, "write LMDB")
    }

    /// The value of `key`; see [`ReadCursor::find`].
    pub fn find(&mut self, key: &[u8], ascending: bool) -> Result<Option<&[u8]>> {
        let mut op = match self.place {
            _ if !ascending => ffi::MDB_SET_RANGE,
            Place::Unknown => ffi::MDB_SET_RANGE,
            Place::Start => ffi::MDB_FIRST,
            Place::Record => ffi::MDB_GET_CURRENT,
            Place::End => return Ok(None),
        };
        let mut steps = 0;
        loop {
            let Some((local, value)) = self.raw.get(op, (op == ffi::MDB_SET_RANGE).then_some(key))?.map(pair) else {
                self.place = Place::End;
                return Ok(None);
            };
            self.place = Place::Record;
            match self.order.compare(local, key) {
                Ordering::Equal => return Ok(Some(value)),
                Ordering::Greater => return Ok(None),
                Ordering::Less => {
                    op = if steps < STEPS_BEFORE_SEEK { ffi::MDB_NEXT } else { ffi::MDB_SET_RANGE };
                    steps += 1;
                }
            }
        }
    }

    /// Bytes of the first key; `None` in an empty DBI.
    pub fn first_key_bytes(&mut self) -> Result<Option<usize>> {
        self.place = Place::Start;
        Ok(self.raw.get(ffi::MDB_FIRST, None)?.map(|(key, _)| key.0.mv_size))
    }

    /// Writes a record. With `append` the caller knows that the key is above all others of the DBI.
    ///
    /// # Errors
    /// `MDB_MAP_FULL`; `MDB_BAD_VALSIZE` for a key of zero or more than 511 bytes.
    #[inline]
    pub fn put(&mut self, key: &[u8], value: &[u8], append: bool) -> Result<()> {
        let mut key_val = val(key);
        let mut data = val(value);
        let flags = if append { ffi::MDB_APPEND } else { 0 };
        self.place = Place::Record;
        // SAFETY: a live cursor of a live write transaction; both ranges outlive the call and LMDB copies them.
        let code = unsafe { ffi::mdb_cursor_put(self.raw.ptr, &raw mut key_val, &raw mut data, flags) };
        check(code, "write LMDB")
    }
}

/// What to look for in a DBI.
#[derive(Clone, Copy, Debug)]
pub enum Lookup<'k> {
    /// Nothing: the caller knows that it is not there.
    Absent,
    /// A key; `ascending` as for [`ReadCursor::find`].
    Key {
        /// The key.
        key: &'k [u8],
        /// It is above the one asked for before.
        ascending: bool,
    },
    /// A value of a key in a DBI with MDB_DUPSORT.
    Duplicate {
        /// The key.
        key: &'k [u8],
        /// The value, or what it begins with.
        prefix: &'k [u8],
        /// Which of the two.
        cut: bool,
        /// The DBI keeps values in bytewise order; else all of them are looked at.
        sorted: bool,
    },
}

/// Values of one key in both DBIs of a [`CursorPair`].
pub type Both<'a> = (Option<&'a [u8]>, Option<&'a [u8]>);

/// Two [`WriteCursor`]s of one transaction; what they return must be let go before either writes.
pub struct CursorPair<'t> {
    first: WriteCursor<'t>,
    second: WriteCursor<'t>,
}

impl CursorPair<'_> {
    /// Values of both DBIs.
    pub fn look_up(&mut self, first: Lookup<'_>, second: Lookup<'_>) -> Result<Both<'_>> {
        Ok((self.first.look_up(first)?, self.second.look_up(second)?))
    }

    /// Writes a record into the first DBI; see [`WriteCursor::put`].
    pub fn put_first(&mut self, key: &[u8], value: &[u8], append: bool) -> Result<()> {
        self.first.put(key, value, append)
    }

    /// Writes a record into the second DBI; see [`WriteCursor::put`].
    pub fn put_second(&mut self, key: &[u8], value: &[u8], append: bool) -> Result<()> {
        self.second.put(key, value, append)
    }

    /// See [`WriteCursor::put_duplicate`].
    pub fn put_second_duplicate(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.second.put_duplicate(key, value)
    }

    /// See [`WriteCursor::delete`].
    pub fn delete_second(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.second.delete(key, value)
    }
}

/// Handles of exactly these DBIs; `None` when one is missing.
fn existing(known: &Handles, names: Vec<String>) -> Option<Handles> {
    names.into_iter().map(|name| known.get(&name).map(|handle| (name, *handle))).collect()
}

fn lookup(raw: &RawTxn, handles: &Handles, name: &str) -> Result<Option<Dbi>> {
    match handles.get(name) {
        Some(&handle) => Ok(Some(Dbi { handle, flags: raw.flags(handle)? })),
        None => Ok(None),
    }
}
