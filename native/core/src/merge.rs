//! Merging a snapshot: plan without the lock, write only what changes.
//!
//! 1. *Plan*, in a read transaction: walk the snapshot beside the LMDB (both are in key order) and keep the entries that win. Nothing
//!    wins, the usual case among instances that agree: the write lock is never taken.
//! 2. *Apply*, in one write transaction. If nobody committed since the plan it holds as it is; else each candidate is decided again.
//! 3. Candidates beyond the budget (the first load, mostly): the snapshot is streamed a second time, inside the write transaction.
//!
//! Either way one transaction makes all of a snapshot visible, and a snapshot that does not decode to its end leaves nothing.

mod shadow;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::cancel::Cancel;
use crate::dupsort;
use crate::error::{Code, Error, Result};
use crate::header::{self, FLAG_DELETED, Native, SYNCED_FLAGS};
use crate::lmdb::{Dbi, Environment, KeyOrder, MAX_KEY_BYTES, ReadCursor, WriteCursor, WriteTxn, flags};
use crate::schema::{self, Expected, Schema};
use crate::snapshot::Meta;
use crate::snapshot::decode::{DbiHeader, Event, Index, Reader};
use crate::snapshot::wire::FORMAT_VERSION;

/// Names of DBIs that belong to one instance and never travel.
pub const PRIVATE_PREFIX: &str = "_sync";

/// Name of an application's DBI with this in front: the shadow that keeps its headers.
pub const SHADOW_PREFIX: &str = "_sync_shadow_";

pub use shadow::{CaptureOptions, Captured, Counts, Shadow, Stamp, capture, pending};

/// Candidates kept in memory between plan and apply, bytes.
const DEFAULT_BUDGET_BYTES: usize = 16 << 20;

/// Records between two looks at the cancel flag: far below 50 ms of work.
const CHECK_EVERY: u64 = 4096;

/// A write transaction that wrote more than this leaves page buffers worth giving back, bytes.
const RELEASE_ABOVE_BYTES: u64 = 4 << 20;

/// What to merge and how.
#[derive(Clone, Debug)]
pub struct MergeOptions<'a> {
    /// The compressed snapshot.
    pub path: &'a Path,
    /// Deletions older than this (ns) are not added; 0 = all are.
    pub deleted_cutoff: u64,
    /// Flags for DBIs to be created, by name, instead of the snapshot's.
    pub create_flags: BTreeMap<String, u32>,
    /// Write one zero extension block into each header.
    pub padding_block: bool,
    /// Given when the application's DBIs have no headers.
    pub shadow: Option<Shadow>,
    /// The schema that the LMDB must still have when it is written to.
    pub schema: Option<Expected>,
    /// The schema that the snapshot must have, if it tells one.
    pub snapshot_schema: Option<Schema>,
    /// Bytes of candidates to keep before streaming in the write transaction.
    pub budget_bytes: usize,
}

impl<'a> MergeOptions<'a> {
    /// Defaults for a file.
    #[must_use]
    pub fn new(path: &'a Path) -> Self {
        Self {
            path,
            deleted_cutoff: 0,
            create_flags: BTreeMap::new(),
            padding_block: false,
            shadow: None,
            schema: None,
            snapshot_schema: None,
            budget_bytes: DEFAULT_BUDGET_BYTES,
        }
    }
}

/// What a merge did.
#[derive(Clone, Debug, Default)]
pub struct Merged {
    /// LastTxnID that the decision was based on.
    pub base_txn_id: u64,
    /// The transaction that wrote; `None` when nothing had to be written.
    pub txn_id: Option<u64>,
    /// Entries read.
    pub entries: u64,
    /// Keys that were not there.
    pub added: u64,
    /// Values replaced.
    pub updated: u64,
    /// What differed between the application's DBIs and their shadows; shadow mode only.
    pub captured: Counts,
    /// DBIs created.
    pub created: Vec<String>,
    /// Private DBIs of the snapshot, not merged.
    pub ignored: Vec<String>,
    /// Time without the lock.
    pub plan: Duration,
    /// Time blocked until the lock was there.
    pub wait_lock: Duration,
    /// Time the lock was held.
    pub write_lock: Duration,
    /// The snapshot's Meta.
    pub meta: Meta,
    /// Its formatVersion.
    pub format_version: u32,
    /// Its compatVersion.
    pub compat_version: u32,
}

/// Merges one snapshot into the environment.
///
/// # Errors
/// [`Code::SnapshotCorrupt`] and [`Code::SnapshotRefused`] blame the snapshot; [`Code::SchemaMismatch`] and [`Code::SchemaChanged`] nobody; all
/// others the local side. Nothing was written then.
pub fn merge(env: &Environment, options: &MergeOptions<'_>, cancel: &Cancel) -> Result<Merged> {
    persist(env, || merge_any_order(env, options, cancel))
}

/// Runs `work`, which has one write transaction, and explains why it failed.
fn persist<T>(env: &Environment, work: impl Fn() -> Result<T>) -> Result<T> {
    let mut grown = false;
    loop {
        match work() {
            // Another process may have raised the map size meanwhile; LMDB only notices when it must.
            Err(e) if e.code == Code::Lmdb(MDB_MAP_FULL) && !grown && env.adopt_map_size()? => grown = true,
            Err(e) => return Err(explain(env, e)),
            Ok(done) => return Ok(done),
        }
    }
}

const MDB_MAP_FULL: i32 = -30792;
const MDB_DBS_FULL: i32 = -30791;

/// Adds what an operator needs to know to errors that LMDB words tersely.
fn explain(env: &Environment, mut error: Error) -> Error {
    match error.code {
        Code::Lmdb(MDB_MAP_FULL) => {
            let size = env.info().map_or(0, |info| info.map_bytes);
            error.message = format!(
                "the LMDB map of {} bytes is full: raise options.map_size (and the application's own setting) or delete data; \
                 nothing was written",
                size
            );
        }
        Code::Lmdb(MDB_DBS_FULL) => error.message = "too many DBIs: raise options.max_dbs".to_owned(),
        _ => env.heal(&error),
    }
    error
}

/// Fields that come late (versions after DBIs, a name after its entries) are legal and rare: then one more pass finds them first.
fn merge_any_order(env: &Environment, options: &MergeOptions<'_>, cancel: &Cancel) -> Result<Merged> {
    let attempt = |index| {
        let merge = Merge::new(env, options, cancel, index);
        match &options.shadow {
            Some(shadow) => merge.run_shadow(*shadow),
            None => merge.run(),
        }
    };
    match attempt(None) {
        Ok(Some(merged)) => return Ok(merged),
        Err(error) if error.code != Code::SnapshotRefused => return Err(error),
        // A refusal may rest on a field that a later one replaces. And damage further on is worse than what cannot be merged, and is
        // treated otherwise: the scan finds it.
        Ok(None) | Err(_) => {}
    }
    let index = Index::scan(options.path, cancel)?;
    attempt(Some(index))?.ok_or_else(|| Error::refused("the order of the snapshot's fields cannot be understood"))
}

struct Merge<'a> {
    env: &'a Environment,
    options: &'a MergeOptions<'a>,
    cancel: &'a Cancel,
    /// Given when fields of the snapshot come later than what they are about.
    index: Option<Index>,
    out: Merged,
    /// Bytes of keys and values read.
    bytes: u64,
    /// How long the keys of each DBI of integer keys are: LMDB compares them without looking.
    integer_bytes: BTreeMap<String, usize>,
    /// The snapshot's schema needs no further look.
    schema_known: bool,
}

/// What the plan came to.
enum Plan {
    /// Nothing to write.
    Nothing,
    /// These entries win.
    Apply(Candidates),
    /// More than the budget holds: stream the snapshot in the write transaction.
    Stream,
    /// Begin again with an index.
    NeedsIndex,
}

impl<'a> Merge<'a> {
    fn new(env: &'a Environment, options: &'a MergeOptions<'a>, cancel: &'a Cancel, index: Option<Index>) -> Self {
        Self {
            env,
            options,
            cancel,
            index,
            out: Merged::default(),
            bytes: 0,
            integer_bytes: BTreeMap::new(),
            schema_known: options.snapshot_schema.is_none(),
        }
    }

    /// `None`: begin again with an index.
    fn run(mut self) -> Result<Option<Merged>> {
        let started = Instant::now();
        let plan = self.plan()?;
        self.out.plan = started.elapsed();
        match plan {
            Plan::Nothing => {}
            Plan::Apply(candidates) if self.apply(&candidates)? => {}
            Plan::Apply(_) | Plan::Stream => {
                // Without the lock.
                self.look_for_schema()?;
                if !self.stream()? {
                    return Ok(None);
                }
            }
            Plan::NeedsIndex => return Ok(None),
        }
        Ok(Some(self.out))
    }

    fn plan(&mut self) -> Result<Plan> {
        let txn = self.env.read()?;
        self.out.base_txn_id = txn.id();
        let mut reader = Reader::open(self.options.path, self.cancel, self.index.clone())?;
        let mut candidates = Candidates::default();
        let mut seen = BTreeSet::new();
        let mut current: Option<(Target, Option<ReadCursor<'_>>)> = None;
        loop {
            match reader.next()? {
                Event::Dbi(head) => {
                    let head = head.clone();
                    let message_bytes = head.message_len;
                    current = None;
                    let Some(mut target) = self.admit(head, reader.format_version(), reader.compat_version())? else {
                        continue;
                    };
                    let local = txn.dbi(&target.name)?;
                    let entries = local.map_or(Ok(0), |dbi| txn.entries(dbi))?;
                    if entries == 0 && message_bytes > self.options.budget_bytes as u64 {
                        return Ok(Plan::Stream);
                    }
                    target.keys.order = KeyOrder::of(local.map_or(target.create_flags, |dbi| dbi.flags));
                    // A DBI that comes twice meets what its first message wrote, which this transaction does not show.
                    candidates.recheck |= !seen.insert(target.name.clone());
                    candidates.begin_dbi(&target, local.is_none());
                    let mut cursor = local.map(|dbi| txn.cursor(dbi)).transpose()?;
                    if let Some((key, _)) = cursor.as_mut().map_or(Ok(None), ReadCursor::next)? {
                        self.integer_bytes.entry(target.name.clone()).or_insert(key.len());
                    }
                    current = Some((target, cursor));
                }
                Event::Entry { key, value, timestamp, flags } => {
                    let Some((target, cursor)) = &mut current else { continue };
                    self.count_entry(key.len() + value.len())?;
                    if !self.schema_known {
                        self.check_number(&target.name, key, value, flags)?;
                    }
                    let ascending = self.check_key(target, key)?;
                    // Keys may come twice only when they are not in order; then the later meets the earlier.
                    candidates.recheck |= !ascending;
                    let incoming = Incoming::new(key, value, timestamp, flags, target.format_version);
                    let stored = match cursor {
                        Some(cursor) => cursor.find(key, ascending)?,
                        None => None,
                    };
                    let verdict = self.decide(&incoming, stored, target)?;
                    if verdict != Verdict::Keep {
                        candidates.push(&incoming, verdict == Verdict::Add);
                        if candidates.bytes > self.options.budget_bytes {
                            return Ok(Plan::Stream);
                        }
                    }
                }
                Event::NeedsIndex => return Ok(Plan::NeedsIndex),
                Event::End => break,
            }
        }
        self.take_head(&reader);
        self.schema_known = true;
        Ok(if candidates.dbis.iter().all(|dbi| !dbi.create && dbi.entries == 0) {
            Plan::Nothing
        } else {
            Plan::Apply(candidates)
        })
    }

    /// False: the plan does not hold any more, and nothing was written.
    fn apply(&mut self, candidates: &Candidates) -> Result<bool> {
        let may_create = candidates.dbis.iter().any(|dbi| dbi.create);
        let planned_on = self.out.base_txn_id;
        let mut txn = self.begin(may_create)?;
        let locked = Instant::now();
        // The ids of write transactions follow each other: the next one after the plan's means that nobody committed in between.
        let unchanged = txn.id() == planned_on + 1;
        let decide_again = candidates.recheck || !unchanged;
        for planned in candidates.dbis.iter().filter(|planned| !planned.create) {
            // Somebody dropped it since: it gets all that the snapshot has, not only what won against what was there.
            if txn.dbi(&planned.target.name)?.is_none() {
                return Ok(false);
            }
        }
        let mut writer = Writer::new(&txn, self.options.padding_block);
        let mut entries = candidates.entries();
        for planned in &candidates.dbis {
            let dbi = self.open_target(&mut txn, &planned.target)?;
            let mut cursor = txn.cursor(dbi)?;
            for _ in 0..planned.entries {
                let Some((incoming, adds)) = entries.next() else { break };
                let mut verdict = if adds { Verdict::Add } else { Verdict::Replace };
                if decide_again {
                    let stored = cursor.find(incoming.key, false)?;
                    verdict = self.decide(&incoming, stored, &planned.target)?;
                }
                if verdict != Verdict::Keep {
                    writer.put(&mut cursor, &incoming, false).map_err(|e| e.in_dbi(&planned.target.name))?;
                    self.count_write(verdict)?;
                }
            }
        }
        self.finish(txn, locked, writer.bytes)?;
        Ok(true)
    }

    /// False: begin again with an index; nothing was written.
    fn stream(&mut self) -> Result<bool> {
        self.integer_bytes.clear();
        self.out.entries = 0;
        self.out.ignored.clear();
        let mut reader = Reader::open(self.options.path, self.cancel, self.index.clone())?;
        // Which DBIs are missing is only known in the transaction.
        let mut txn = self.begin(true)?;
        let locked = Instant::now();
        let mut writer = Writer::new(&txn, self.options.padding_block);
        let mut event = reader.next()?;
        loop {
            let head = match event {
                Event::End => break,
                Event::NeedsIndex => return Ok(false),
                Event::Entry { .. } => {
                    // Of a private DBI.
                    event = reader.next()?;
                    continue;
                }
                Event::Dbi(head) => head.clone(),
            };
            let Some(mut target) = self.admit(head, reader.format_version(), reader.compat_version())? else {
                event = reader.next()?;
                continue;
            };
            let dbi = self.open_target(&mut txn, &target)?;
            target.keys.order = dbi.order();
            // Into an empty DBI, keys in order are appended without looking; one that is not in order finds what was appended before it.
            let mut append = txn.entries(dbi)? == 0;
            let mut cursor = txn.cursor(dbi)?;
            if let Some(bytes) = cursor.first_key_bytes()? {
                self.integer_bytes.entry(target.name.clone()).or_insert(bytes);
            }
            loop {
                event = reader.next()?;
                let Event::Entry { key, value, timestamp, flags } = event else { break };
                self.count_entry(key.len() + value.len())?;
                let ascending = self.check_key(&mut target, key)?;
                append &= ascending;
                let incoming = Incoming::new(key, value, timestamp, flags, target.format_version);
                let stored = if append { None } else { cursor.find(key, ascending)? };
                let verdict = self.decide(&incoming, stored, &target)?;
                if verdict != Verdict::Keep {
                    writer.put(&mut cursor, &incoming, append).map_err(|e| e.in_dbi(&target.name))?;
                    self.count_write(verdict)?;
                }
            }
        }
        self.take_head(&reader);
        drop(reader);
        self.finish(txn, locked, writer.bytes)?;
        Ok(true)
    }

    /// Names of DBIs tell old schemas from new ones.
    fn check_name(&mut self, name: &str) -> Result<()> {
        match self.options.snapshot_schema {
            Some(wanted) if !self.schema_known && wanted.check(schema::by_name(None, name)).is_err() => {
                // Where old and new names are side by side, one does not tell.
                self.look_into_snapshot(wanted)
            }
            _ => Ok(()),
        }
    }

    /// The number tells the rest.
    #[inline(never)]
    fn check_number(&mut self, dbi: &str, key: &[u8], value: &[u8], flags: u32) -> Result<()> {
        let Some(wanted) = self.options.snapshot_schema else { return Ok(()) };
        let number = schema::of_entry(dbi, key, value, flags);
        self.schema_known = number.is_some();
        wanted.check(number)
    }

    /// Finds out beforehand what can be found out with little effort, unless the schema is known.
    fn look_for_schema(&mut self) -> Result<()> {
        let Some(wanted) = self.options.snapshot_schema.filter(|_| !self.schema_known) else { return Ok(()) };
        let by_name = !wanted.needs_number();
        if by_name && wanted.check(schema::of_snapshot(self.options.path, false, self.cancel)?).is_ok() {
            return Ok(());
        }
        self.look_into_snapshot(wanted)
    }

    fn look_into_snapshot(&mut self, wanted: Schema) -> Result<()> {
        wanted.check(schema::of_snapshot(self.options.path, true, self.cancel)?)?;
        self.schema_known = true;
        Ok(())
    }

    fn begin(&mut self, may_create: bool) -> Result<WriteTxn<'a>> {
        let started = Instant::now();
        let txn = self.env.write(may_create, self.cancel)?;
        if let Some(expected) = self.options.schema {
            expected.check(&txn)?;
        }
        self.out.wait_lock = started.elapsed();
        self.out.base_txn_id = txn.id() - 1;
        Ok(txn)
    }

    fn finish(&mut self, txn: WriteTxn<'_>, locked: Instant, bytes: u64) -> Result<()> {
        let wrote = self.out.added + self.out.updated > 0 || !self.out.created.is_empty();
        self.commit(txn, locked, wrote, bytes)
    }

    fn commit(&mut self, txn: WriteTxn<'_>, locked: Instant, wrote: bool, bytes: u64) -> Result<()> {
        self.cancel.check()?;
        let id = txn.id();
        txn.commit()?;
        self.out.write_lock = locked.elapsed();
        // A transaction that wrote nothing leaves LastTxnID alone, and its id is used again.
        self.out.txn_id = wrote.then_some(id);
        if bytes > RELEASE_ABOVE_BYTES {
            // What is committed is committed; should this fail, the next call says so.
            let _ = self.env.release_memory();
        }
        Ok(())
    }

    /// Checks a DBI's head; `None` for a private one.
    fn admit(&mut self, head: DbiHeader, format_version: u32, compat_version: u32) -> Result<Option<Target>> {
        if head.name.starts_with(PRIVATE_PREFIX) {
            self.out.ignored.push(head.name);
            return Ok(None);
        }
        self.check_name(&head.name)?;
        let refuse = |text: String| Err(Error::refused(text).in_dbi(head.name.as_str()));
        if format_version == 0 {
            return refuse("the snapshot has no formatVersion".into());
        }
        if compat_version > FORMAT_VERSION {
            return refuse(format!(
                "the snapshot needs a newer program: compatVersion {compat_version} > {FORMAT_VERSION} (formatVersion {format_version})"
            ));
        }
        if !head.transform.is_empty() && (head.transform != dupsort::TRANSFORM || self.options.shadow.is_none()) {
            let with = if self.options.shadow.is_none() { " with schema_tracks_changes" } else { "" };
            return refuse(format!(
                "transform '{}' of the snapshot cannot be merged{with}",
                head.transform.escape_debug()
            ));
        }
        let flags = (head.flags & 0xffff) as u32;
        // Before version 3 the field did not exist, and flags were those of the shadow.
        if format_version >= 3 && (flags & flags::DUPSORT != 0) == head.transform.is_empty() {
            return refuse(if head.transform.is_empty() {
                "the snapshot's DBI has MDB_DUPSORT but no transform".into()
            } else {
                format!("the snapshot's DBI has transform '{}' but no MDB_DUPSORT", dupsort::TRANSFORM)
            });
        }
        if head.name.is_empty() || head.name.len() > MAX_KEY_BYTES || head.name.contains('\0') {
            return refuse("LMDB cannot have a DBI of that name".into());
        }
        let create_flags = self.options.create_flags.get(&head.name).copied().unwrap_or(flags);
        let encoded = !head.transform.is_empty();
        Ok(Some(Target { name: head.name, create_flags, format_version, encoded, keys: KeyCheck::default() }))
    }

    /// The DBI to merge into, created when it is missing.
    fn open_target(&mut self, txn: &mut WriteTxn<'_>, target: &Target) -> Result<Dbi> {
        if let Some(dbi) = txn.dbi(&target.name)? {
            return Ok(dbi);
        }
        self.create_target(txn, target)
    }

    fn create_target(&mut self, txn: &mut WriteTxn<'_>, target: &Target) -> Result<Dbi> {
        if target.create_flags & !flags::CREATABLE != 0 {
            let text = format!("LMDB has no DBI flags 0x{:x}", target.create_flags);
            return Err(Error::refused(text).in_dbi(target.name.as_str()));
        }
        self.out.created.push(target.name.clone());
        txn.create_dbi(&target.name, target.create_flags)
    }

    fn decide(&self, incoming: &Incoming<'_>, stored: Option<&[u8]>, target: &Target) -> Result<Verdict> {
        incoming
            .against(stored, self.options.deleted_cutoff)
            .map_err(|e| e.in_dbi(target.name.as_str()).at_key(incoming.key))
    }

    /// True when the key is above the one before; an error when LMDB, or this DBI, cannot have it.
    #[inline]
    fn check_key(&mut self, target: &mut Target, key: &[u8]) -> Result<bool> {
        let keys = &mut target.keys;
        if keys.order == KeyOrder::Integer && keys.previous.is_empty() {
            keys.integer_bytes = *self.integer_bytes.entry(target.name.clone()).or_insert(key.len());
        }
        keys.check(key).map_err(|e| e.in_dbi(target.name.as_str()))
    }

    #[inline]
    fn count_entry(&mut self, bytes: usize) -> Result<()> {
        let out = &mut self.out;
        out.entries += 1;
        self.bytes += bytes as u64;
        if out.entries.is_multiple_of(CHECK_EVERY) {
            self.cancel.check()?;
            self.cancel.report(out.entries, self.bytes, 0);
        }
        Ok(())
    }

    #[inline]
    fn count_write(&mut self, verdict: Verdict) -> Result<()> {
        match verdict {
            Verdict::Keep => {}
            Verdict::Add => self.out.added += 1,
            Verdict::Replace => self.out.updated += 1,
        }
        if (self.out.added + self.out.updated).is_multiple_of(CHECK_EVERY) { self.cancel.check() } else { Ok(()) }
    }

    fn take_head(&mut self, reader: &Reader) {
        self.out.meta = reader.meta().clone();
        self.out.format_version = reader.format_version();
        self.out.compat_version = reader.compat_version();
    }
}

/// A DBI message's head, checked.
#[derive(Clone, Debug)]
struct Target {
    name: String,
    create_flags: u32,
    format_version: u32,
    /// Its keys are those of [`dupsort`], as the snapshot says.
    encoded: bool,
    keys: KeyCheck,
}

/// Checks the keys of one DBI message as they come.
#[derive(Clone, Debug)]
pub(crate) struct KeyCheck {
    order: KeyOrder,
    previous: Vec<u8>,
    /// For integer keys.
    integer_bytes: usize,
}

impl Default for KeyCheck {
    fn default() -> Self {
        Self { order: KeyOrder::Lexical, previous: Vec::new(), integer_bytes: 0 }
    }
}

impl KeyCheck {
    /// For keys of this order; integer keys must have so many bytes, if any are there.
    pub(crate) fn new(order: KeyOrder, integer_bytes: Option<usize>) -> Self {
        Self { order, previous: Vec::new(), integer_bytes: integer_bytes.unwrap_or(0) }
    }

    /// See [`Merge::check_key`].
    #[inline]
    pub(crate) fn check(&mut self, key: &[u8]) -> Result<bool> {
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            return Err(Error::refused(format!("LMDB cannot have a key of {} bytes", key.len())).at_key(key));
        }
        // liblmdb compares integer keys without looking at their length.
        if self.order == KeyOrder::Integer && (!matches!(key.len(), 4 | 8) || key.len() != self.integer_bytes) {
            return Err(Error::refused(format!("a key of {} bytes in a DBI of integer keys", key.len())).at_key(key));
        }
        let ascending = self.previous.is_empty() || self.order.compare(&self.previous, key) == Ordering::Less;
        self.previous.clear();
        self.previous.extend_from_slice(key);
        Ok(ascending)
    }
}

/// What to do with an entry of the snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The local value stays, byte for byte; or there is none and stays none.
    Keep,
    Add,
    Replace,
}

/// An entry of the snapshot, normalised: a deletion has no value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Incoming<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
    pub(crate) timestamp: u64,
    pub(crate) flags: u8,
}

impl<'a> Incoming<'a> {
    #[inline]
    pub(crate) fn new(key: &'a [u8], value: &'a [u8], timestamp: u64, flags: u32, format_version: u32) -> Self {
        let mut flags = (flags & u32::from(SYNCED_FLAGS)) as u8;
        // Version 1 had no flags: an empty value meant deleted.
        if format_version < 2 && value.is_empty() {
            flags |= FLAG_DELETED;
        }
        let value = if flags & FLAG_DELETED == 0 { value } else { &[] };
        Self { key, value, timestamp, flags }
    }

    pub(crate) fn is_deleted(&self) -> bool {
        self.flags & FLAG_DELETED != 0
    }

    /// The merge rule: the later timestamp wins; among equal ones the lower value, and a deletion before a live empty value. Any set of
    /// entries has one winner, whatever the order of merging.
    #[inline]
    pub(crate) fn against(&self, stored: Option<&[u8]>, deleted_cutoff: u64) -> Result<Verdict> {
        // A value of zero bytes counts as none, as for Lightning Stream.
        let local = match stored {
            Some(stored) if !stored.is_empty() => Some(header::parse(stored)?),
            _ => None,
        };
        Ok(self.against_entry(local.as_ref().map(Held::from), deleted_cutoff))
    }

    #[inline]
    fn against_entry(&self, local: Option<Held<'_>>, deleted_cutoff: u64) -> Verdict {
        let Some(local) = local else {
            let stale = self.is_deleted() && self.timestamp < deleted_cutoff;
            return if stale { Verdict::Keep } else { Verdict::Add };
        };
        let wins = match self.timestamp.cmp(&local.timestamp) {
            Ordering::Less => false,
            Ordering::Greater => true,
            Ordering::Equal => (self.value, !self.is_deleted()) < (local.value, !local.deleted),
        };
        if wins { Verdict::Replace } else { Verdict::Keep }
    }
}

/// A local entry, normalised: a deletion has no value.
#[derive(Clone, Copy, Debug)]
struct Held<'a> {
    timestamp: u64,
    deleted: bool,
    value: &'a [u8],
}

impl<'a> From<&Native<'a>> for Held<'a> {
    #[inline]
    fn from(native: &Native<'a>) -> Self {
        let deleted = native.is_deleted();
        Self { timestamp: native.timestamp, deleted, value: if deleted { &[] } else { native.value } }
    }
}

/// Writes entries with fresh headers.
struct Writer {
    txn_id: u64,
    padding_block: bool,
    buffer: Vec<u8>,
    bytes: u64,
}

impl Writer {
    fn new(txn: &WriteTxn<'_>, padding_block: bool) -> Self {
        Self { txn_id: txn.id(), padding_block, buffer: Vec::new(), bytes: 0 }
    }

    #[inline]
    fn put(&mut self, cursor: &mut WriteCursor<'_>, entry: &Incoming<'_>, append: bool) -> Result<()> {
        header::build(&mut self.buffer, entry.timestamp, self.txn_id, entry.flags, entry.value, self.padding_block);
        self.bytes += (entry.key.len() + self.buffer.len()) as u64;
        cursor.put(entry.key, &self.buffer, append).map_err(|e| e.at_key(entry.key))
    }
}

/// Entries that won, in the order they came.
#[derive(Default)]
struct Candidates {
    dbis: Vec<PlannedDbi>,
    /// Whole entries, packed into blocks: a growing single buffer would be twice its size while it moves.
    blocks: Vec<Vec<u8>>,
    bytes: usize,
    /// Some key or DBI came twice or out of order, so each decision depends on the writes before it.
    recheck: bool,
}

struct PlannedDbi {
    target: Target,
    create: bool,
    entries: u64,
}

const BLOCK_BYTES: usize = 256 << 10;
/// Key length (2), value length (4), timestamp (8), flags (1), mark (1).
const ENTRY_HEAD_BYTES: usize = 16;

impl Candidates {
    fn begin_dbi(&mut self, target: &Target, create: bool) {
        self.dbis.push(PlannedDbi { target: target.clone(), create, entries: 0 });
    }

    fn clear(&mut self) {
        // What comes next belongs to the same DBI.
        self.dbis.drain(..self.dbis.len().saturating_sub(1));
        self.dbis.iter_mut().for_each(|dbi| dbi.entries = 0);
        self.blocks.clear();
        self.bytes = 0;
    }

    /// `mark` is for the caller.
    #[inline]
    fn push(&mut self, entry: &Incoming<'_>, mark: bool) {
        let size = ENTRY_HEAD_BYTES + entry.key.len() + entry.value.len();
        if self.blocks.last().is_none_or(|block| block.capacity() - block.len() < size) {
            self.blocks.push(Vec::with_capacity(size.max(BLOCK_BYTES)));
        }
        let (Some(block), Some(dbi)) = (self.blocks.last_mut(), self.dbis.last_mut()) else { return };
        // Keys are at most 511 bytes, values at most snapshot::MAX_ENTRY_BYTES.
        block.extend_from_slice(&(entry.key.len() as u16).to_ne_bytes());
        block.extend_from_slice(&(entry.value.len() as u32).to_ne_bytes());
        block.extend_from_slice(&entry.timestamp.to_ne_bytes());
        block.extend_from_slice(&[entry.flags, u8::from(mark)]);
        block.extend_from_slice(entry.key);
        block.extend_from_slice(entry.value);
        dbi.entries += 1;
        self.bytes += size;
    }

    fn entries(&self) -> impl Iterator<Item = (Incoming<'_>, bool)> {
        self.blocks.iter().flat_map(|block| {
            let mut rest = block.as_slice();
            std::iter::from_fn(move || {
                let (head, tail) = rest.split_first_chunk::<ENTRY_HEAD_BYTES>()?;
                let key_bytes = usize::from(u16::from_ne_bytes([head[0], head[1]]));
                let value_bytes = u32::from_ne_bytes([head[2], head[3], head[4], head[5]]) as usize;
                let mut timestamp = [0; 8];
                timestamp.copy_from_slice(&head[6..14]);
                let (key, tail) = tail.split_at(key_bytes);
                let (value, tail) = tail.split_at(value_bytes);
                rest = tail;
                let entry = Incoming { key, value, timestamp: u64::from_ne_bytes(timestamp), flags: head[14] };
                Some((entry, head[15] == 1))
            })
        })
    }
}
