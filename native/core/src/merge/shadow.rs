//! Shadow mode: the application's DBIs know nothing of headers. For each of them, `x`, the DBI `_sync_shadow_x` has the same keys with headers.
//!
//! One rule decides each key, whatever leads to it ([`settle`]): the shadow first takes over what the application has done (*capture*), then
//! the snapshot's entry if it wins (*merge*); then the application's DBI gets what the shadow says (*project*). A capture alone is a merge of
//! nothing, without the projection.
//!
//! 1. *Plan*, in a read transaction: application's DBI, shadow and snapshot are in the same order and are walked side by side. Keys that
//!    need a write are kept, with the snapshot's entry if there is one. None: the write lock is never taken.
//! 2. *Apply*, in one write transaction: each kept key is decided again by look-ups, so it does not matter what was committed meanwhile. What
//!    changed meanwhile and was not kept is found by the next capture.
//! 3. *Stream*, beyond the budget: the same walk inside the write transaction, writing whenever a small buffer is full.
//!
//! A snapshot whose keys or DBIs come twice or out of order cannot be walked beside anything: then the transaction captures and projects
//! first, and merges the entries one by one.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{
    CHECK_EVERY, Candidates, DEFAULT_BUDGET_BYTES, Held, Incoming, Merge, MergeOptions, Merged, PRIVATE_PREFIX,
    SHADOW_PREFIX, Target, Verdict, persist,
};
use crate::cancel::Cancel;
use crate::dupsort;
use crate::error::{Code, Error, Result};
use crate::header::{self, FLAG_DELETED};
use crate::lmdb::{
    Both, CursorPair, Dbi, Environment, KeyOrder, Lookup, MAX_KEY_BYTES, ReadCursor, ReadTxn, WriteTxn, flags,
};
use crate::mode;
use crate::snapshot::decode::{Event, Reader};

/// Bytes of candidates between two stretches of writing while streaming.
const STREAM_BYTES: usize = 1 << 20;

/// liblmdb's code for a value that a DBI with MDB_DUPSORT cannot have.
const MDB_BAD_VALSIZE: i32 = -30781;

/// Timestamp of captured changes, ns since the epoch.
#[derive(Clone, Copy, Debug)]
pub enum Stamp {
    /// Exactly this.
    Fixed(u64),
    /// The time at a moment; what passes until a transaction has begun is added.
    Clock {
        /// The time.
        nano: u64,
        /// The moment.
        at: Instant,
    },
}

impl Stamp {
    fn now(self) -> u64 {
        match self {
            Self::Fixed(nano) => nano,
            Self::Clock { nano, at } => nano.saturating_add(u64::try_from(at.elapsed().as_nanos()).unwrap_or(u64::MAX)),
        }
    }
}

/// What shadow mode needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Shadow {
    /// Of what the application changed.
    pub stamp: Stamp,
    /// DBIs with MDB_DUPSORT travel, by the encoding of [`dupsort`]; without it they are an error.
    pub dupsort_hack: bool,
    /// A DBI that gets its shadow is an error when its values have headers: the application writes natively.
    pub guard: bool,
}

/// How to capture.
#[derive(Clone, Copy, Debug)]
pub struct CaptureOptions {
    /// The mode's own.
    pub shadow: Shadow,
    /// Bytes of candidates to keep before streaming in the write transaction.
    pub budget_bytes: usize,
}

impl CaptureOptions {
    /// Defaults.
    #[must_use]
    pub fn new(shadow: Shadow) -> Self {
        Self { shadow, budget_bytes: DEFAULT_BUDGET_BYTES }
    }
}

/// Entries of shadows that were written because the application's DBI differed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Keys that the shadow did not have.
    pub added: u64,
    /// Other values, also where there was a deletion.
    pub changed: u64,
    /// Keys that the application removed.
    pub deleted: u64,
}

/// What a capture did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Captured {
    /// All that the application committed up to this transaction is in the shadows.
    pub covered_txn_id: u64,
    /// The transaction that wrote; `None` when nothing had to be written.
    pub txn_id: Option<u64>,
    /// Keys looked at.
    pub entries: u64,
    /// Entries written.
    pub counts: Counts,
    /// Time without the lock.
    pub plan: Duration,
    /// Time blocked until the lock was there.
    pub wait_lock: Duration,
    /// Time the lock was held.
    pub write_lock: Duration,
}

/// Brings the shadows up to date with the application's DBIs, in one transaction; private DBIs (and shadows without a DBI) are left alone.
///
/// # Errors
/// [`Code::DbiUnsupported`] for a DBI that has no shadow in order; [`Code::HeaderInvalid`] for a broken shadow. Nothing was written then.
pub fn capture(env: &Environment, options: &CaptureOptions, cancel: &Cancel) -> Result<Captured> {
    persist(env, || {
        let nothing = MergeOptions { budget_bytes: options.budget_bytes, ..MergeOptions::new(Path::new("")) };
        let mut round = Round::new(Merge::new(env, &nothing, cancel, None), options.shadow, false);
        round.run()?;
        let out = round.merge.out;
        Ok(Captured {
            covered_txn_id: round.covered,
            txn_id: out.txn_id,
            entries: round.visited,
            counts: out.captured,
            plan: out.plan,
            wait_lock: out.wait_lock,
            write_lock: out.write_lock,
        })
    })
}

/// How many records of the application's DBIs a [`capture`] would find to be other than in their shadows, and whether there are more: the
/// counting ends with the budget. Nothing is written.
///
/// # Errors
/// Those of [`capture`].
pub fn pending(env: &Environment, options: &CaptureOptions, cancel: &Cancel) -> Result<(u64, bool)> {
    let nothing = MergeOptions { budget_bytes: options.budget_bytes, ..MergeOptions::new(Path::new("")) };
    let mut round = Round::new(Merge::new(env, &nothing, cancel, None), options.shadow, false);
    let mut batch = Candidates::default();
    let flow = round.walk(&mut Stage::Plan(env.read_latest()?), &mut batch, false).inspect_err(|e| env.heal(e))?;
    Ok((batch.dbis.iter().map(|dbi| dbi.entries).sum(), matches!(flow, Flow::Full)))
}

impl Merge<'_> {
    /// `None`: begin again with an index.
    pub(super) fn run_shadow(mut self, shadow: Shadow) -> Result<Option<Merged>> {
        self.look_for_schema()?;
        let mut round = Round::new(self, shadow, true);
        Ok(round.run()?.then_some(round.merge.out))
    }
}

/// One capture or merge.
struct Round<'a> {
    merge: Merge<'a>,
    shadow: Shadow,
    /// A snapshot is merged, and the application's DBIs follow the shadows.
    merging: bool,
    /// Timestamp of what is captured.
    now: u64,
    covered: u64,
    visited: u64,
    /// Keys written, in either DBI.
    writes: u64,
    /// Something was written, or created.
    wrote: bool,
    bytes_written: u64,
    /// Buffers of [`Round::write`].
    stored: Vec<u8>,
    wanted: Vec<u8>,
    old: Vec<u8>,
}

/// The transaction of a walk.
enum Stage<'e> {
    Plan(ReadTxn<'e>),
    Write(WriteTxn<'e>),
}

impl Stage<'_> {
    fn dbi(&self, name: &str) -> Result<Option<Dbi>> {
        match self {
            Self::Plan(txn) => txn.dbi(name),
            Self::Write(txn) => txn.dbi(name),
        }
    }

    fn entries(&self, dbi: Option<Dbi>) -> Result<u64> {
        match (self, dbi) {
            (_, None) => Ok(0),
            (Self::Plan(txn), Some(dbi)) => txn.entries(dbi),
            (Self::Write(txn), Some(dbi)) => txn.entries(dbi),
        }
    }

    fn cursor(&self, dbi: Dbi) -> Result<ReadCursor<'_>> {
        match self {
            Self::Plan(txn) => txn.cursor(dbi),
            Self::Write(txn) => txn.read_cursor(dbi),
        }
    }

    /// Names of the application's DBIs.
    fn names(&self) -> Vec<String> {
        let public = |name: &&str| !name.starts_with(PRIVATE_PREFIX);
        match self {
            Self::Plan(txn) => txn.dbi_names().filter(public).map(str::to_owned).collect(),
            Self::Write(txn) => txn.dbi_names().filter(public).map(str::to_owned).collect(),
        }
    }
}

/// How a walk ended.
enum Flow {
    Done,
    /// More than the budget holds.
    Full,
    /// Keys or DBIs of the snapshot come twice or out of order.
    Unordered,
    /// Begin again with an index.
    NeedsIndex,
}

/// An application's DBI and its shadow.
struct Pair {
    name: String,
    shadow_name: String,
    /// `None` while planning, when it will be created.
    main: Option<Dbi>,
    shadow: Option<Dbi>,
    main_flags: u32,
    /// Keys of the shadow are those of [`dupsort`].
    encoded: bool,
    /// Order of the shadow, which has to be that of the application's DBI, too.
    order: KeyOrder,
    /// Both DBIs sort in the same way.
    same_order: bool,
    /// The application's DBI existed, so what it holds, or lacks, is the application's doing.
    capture: bool,
    /// Keys are written in order.
    ordered: bool,
    /// Nothing was in the shadow; in the application's DBI.
    append_shadow: bool,
    append_main: bool,
    shadow_entries: u64,
}

impl<'a> Round<'a> {
    fn new(merge: Merge<'a>, shadow: Shadow, merging: bool) -> Self {
        Self {
            merge,
            shadow,
            merging,
            now: shadow.stamp.now(),
            covered: 0,
            visited: 0,
            writes: 0,
            wrote: false,
            bytes_written: 0,
            stored: Vec::new(),
            wanted: Vec::new(),
            old: Vec::new(),
        }
    }

    /// False: begin again with an index.
    fn run(&mut self) -> Result<bool> {
        let started = Instant::now();
        let txn = self.merge.env.read_latest()?;
        self.covered = txn.id();
        self.merge.out.base_txn_id = txn.id();
        let mut stage = Stage::Plan(txn);
        let mut batch = Candidates::default();
        let flow = self.walk(&mut stage, &mut batch, self.merging)?;
        drop(stage);
        self.merge.out.plan = started.elapsed();
        let planned = match flow {
            Flow::Done if batch.dbis.iter().all(|dbi| !dbi.create && dbi.entries == 0) => return Ok(true),
            Flow::Done => {
                if self.apply(&batch)? {
                    return Ok(true);
                }
                Flow::Full
            }
            flow => flow,
        };
        drop(batch);
        match planned {
            Flow::NeedsIndex => Ok(false),
            Flow::Unordered => self.one_by_one(),
            Flow::Done | Flow::Full => match self.stream()? {
                Flow::Unordered => self.one_by_one(),
                flow => Ok(!matches!(flow, Flow::NeedsIndex)),
            },
        }
    }

    /// Walks all DBIs, those of the snapshot beside it. While planning, all that has to be done is in the batch afterwards.
    fn walk(&mut self, stage: &mut Stage<'a>, batch: &mut Candidates, snapshot: bool) -> Result<Flow> {
        let mut seen = BTreeSet::new();
        if snapshot {
            let mut reader = Reader::open(self.merge.options.path, self.merge.cancel, self.merge.index.clone())?;
            let mut event = reader.next()?;
            loop {
                let head = match event {
                    Event::End => break,
                    Event::NeedsIndex => return Ok(Flow::NeedsIndex),
                    Event::Entry { .. } => {
                        // Of a private DBI.
                        event = reader.next()?;
                        continue;
                    }
                    Event::Dbi(head) => head.clone(),
                };
                let message_bytes = head.message_len;
                let versions = (reader.format_version(), reader.compat_version());
                let Some(mut target) = self.merge.admit(head, versions.0, versions.1)? else {
                    event = reader.next()?;
                    continue;
                };
                if !seen.insert(target.name.clone()) {
                    return Ok(Flow::Unordered);
                }
                let pair = self.open(stage, &mut target)?;
                let planning = matches!(stage, Stage::Plan(_));
                if planning && pair.shadow_entries == 0 && message_bytes > self.merge.options.budget_bytes as u64 {
                    return Ok(Flow::Full);
                }
                batch.begin_dbi(&target, pair.main.is_none() || pair.shadow.is_none());
                let mut sides = Sides::open(stage, &pair, None)?;
                loop {
                    event = reader.next()?;
                    let Event::Entry { key, value, timestamp, flags } = event else { break };
                    self.merge.count_entry(key.len() + value.len())?;
                    if !self.merge.check_key(&mut target, key)? {
                        return Ok(Flow::Unordered);
                    }
                    let incoming = Incoming::new(key, value, timestamp, flags, target.format_version);
                    pair.check_incoming(&incoming)?;
                    while !self.below(&mut sides, Some(key), &pair, batch, planning)? {
                        let place = sides.place();
                        drop(sides);
                        if !self.flush(stage, batch, &pair)? {
                            return Ok(Flow::Full);
                        }
                        sides = Sides::open(stage, &pair, Some(place))?;
                    }
                    let (main, shadow) = sides.at(key);
                    self.consider(&pair, &incoming, true, main, shadow, batch)?;
                    sides.pass(main.is_some(), shadow.is_some()).map_err(|e| e.in_dbi(pair.name.as_str()))?;
                }
                let place = sides.place();
                drop(sides);
                if !self.rest(stage, batch, &pair, Some(place))? {
                    return Ok(Flow::Full);
                }
            }
            self.merge.take_head(&reader);
        }
        for name in stage.names() {
            if seen.contains(&name) {
                continue;
            }
            let mut target = Target::local(name);
            let pair = self.open(stage, &mut target)?;
            batch.begin_dbi(&target, pair.shadow.is_none());
            if !self.rest(stage, batch, &pair, None)? {
                return Ok(Flow::Full);
            }
        }
        Ok(Flow::Done)
    }

    /// Both DBIs, checked; created when they are missing, unless this is the plan.
    fn open(&mut self, stage: &mut Stage<'_>, target: &mut Target) -> Result<Pair> {
        let name = target.name.clone();
        self.open_pair(stage, target).map_err(|e| e.in_dbi(name))
    }

    fn open_pair(&mut self, stage: &mut Stage<'_>, target: &mut Target) -> Result<Pair> {
        let shadow_name = format!("{SHADOW_PREFIX}{}", target.name);
        if shadow_name.len() > MAX_KEY_BYTES {
            let text = "LMDB cannot have a shadow DBI of so long a name";
            let local = target.is_local();
            return Err(if local { Error::new(Code::DbiUnsupported, text) } else { Error::refused(text) });
        }
        let (mut main, mut shadow) = (stage.dbi(&target.name)?, stage.dbi(&shadow_name)?);
        if shadow.is_some_and(|dbi| dbi.flags & flags::DUPSORT != 0) {
            return Err(unlike_shadow("the shadow DBI has MDB_DUPSORT, so it was not made by Lightning Stream"));
        }
        let existed = main.is_some();
        let main_flags = main.map_or(target.create_flags, |dbi| dbi.flags);
        if !existed && target.format_version < 3 && !self.merge.options.create_flags.contains_key(&target.name) {
            let text = format!(
                "the DBI does not exist here, and a snapshot of formatVersion {} does not tell the flags to create it with: create it, \
                 or give them as dbi_options.{}.override_create_flags",
                target.format_version, target.name
            );
            return Err(Error::refused(text));
        }
        let encoded = main_flags & flags::DUPSORT != 0;
        if encoded && !self.shadow.dupsort_hack {
            let text = "the DBI has MDB_DUPSORT, which can only be synchronised with dupsort_hack: true";
            return Err(Error::new(Code::DbiUnsupported, text));
        }
        if encoded && main_flags & flags::INTEGERKEY != 0 {
            let text = "the DBI has MDB_DUPSORT and MDB_INTEGERKEY, which dupsort_hack cannot combine";
            return Err(Error::new(Code::DbiUnsupported, text));
        }
        if target.format_version >= 3 && target.encoded != encoded {
            let (theirs, ours) = if encoded { ("no ", "has") } else { ("", "has not") };
            return Err(Error::refused(format!("the DBI has {theirs}MDB_DUPSORT in the snapshot, and here it {ours}")));
        }
        if let (true, false, Some(dbi), None) = (self.shadow.guard, encoded, main, shadow)
            && mode::has_headers(&target.name, &mut stage.cursor(dbi)?)?
        {
            let text = "the values begin with Lightning Stream headers, so the application writes them itself (as PowerDNS does since 4.8), \
                        but schema_tracks_changes is false: set it to true; if they only look so, set schema_guard to off";
            return Err(Error::new(Code::WrongMode, text));
        }
        if let Stage::Write(txn) = stage {
            if main.is_none() {
                main = Some(self.merge.create_target(txn, target)?);
                self.wrote = true;
            }
            if shadow.is_none() {
                // The order of integer keys is all that the shadow shares.
                shadow = Some(txn.create_dbi(&shadow_name, main_flags & flags::INTEGERKEY)?);
                self.wrote = true;
            }
        }
        let order = KeyOrder::of(shadow.map_or(main_flags & flags::INTEGERKEY, |dbi| dbi.flags));
        let same_order = KeyOrder::of(main_flags) == order;
        let shadow_entries = stage.entries(shadow)?;
        target.keys.order = order;
        if order == KeyOrder::Integer {
            for dbi in [shadow, main].into_iter().flatten() {
                if let Some((key, _)) = stage.cursor(dbi)?.next()? {
                    let bytes = *self.merge.integer_bytes.entry(target.name.clone()).or_insert(key.len());
                    // LMDB compares them without looking at how long they are.
                    if bytes != key.len() {
                        let sizes = format!("{} and {bytes} bytes", key.len());
                        return Err(unlike_shadow(&format!("the DBI and its shadow have integer keys of {sizes}")));
                    }
                }
            }
        }
        Ok(Pair {
            append_shadow: shadow_entries == 0,
            append_main: same_order && !encoded && stage.entries(main)? == 0,
            name: target.name.clone(),
            shadow_name,
            main,
            shadow,
            main_flags,
            encoded,
            order,
            same_order,
            capture: existed,
            ordered: true,
            shadow_entries,
        })
    }

    /// Looks at all local keys below `limit`, at all that are left without one. False: the batch is full, and the walk not at its end.
    fn below(
        &mut self,
        sides: &mut Sides<'_>,
        limit: Option<&[u8]>,
        pair: &Pair,
        batch: &mut Candidates,
        planning: bool,
    ) -> Result<bool> {
        let budget = self.merge.options.budget_bytes;
        let most = if planning { budget } else { budget.min(STREAM_BYTES) };
        loop {
            if batch.bytes > most {
                return Ok(false);
            }
            let (main, shadow) = match sides.lowest(limit) {
                Some(lowest) => lowest,
                None => return Ok(true),
            };
            self.visited += 1;
            if self.visited.is_multiple_of(CHECK_EVERY) {
                self.merge.cancel.check()?;
                self.merge.cancel.report(self.visited, self.merge.bytes, 0);
            }
            let key = if main.is_some() { sides.main_key() } else { sides.shadow_key() };
            let Some(key) = key else { return Ok(true) };
            let bare = Incoming { key, value: &[], timestamp: 0, flags: 0 };
            self.consider(pair, &bare, false, main, shadow, batch)?;
            sides.pass(main.is_some(), shadow.is_some()).map_err(|e| e.in_dbi(pair.name.as_str()))?;
        }
    }

    /// Looks at all local keys from `place` on and, outside the plan, writes what is left. False: more than the budget.
    fn rest(
        &mut self,
        stage: &mut Stage<'_>,
        batch: &mut Candidates,
        pair: &Pair,
        mut place: Option<Position>,
    ) -> Result<bool> {
        let planning = matches!(stage, Stage::Plan(_));
        loop {
            let mut sides = Sides::open(stage, pair, place)?;
            let done = self.below(&mut sides, None, pair, batch, planning)?;
            place = Some(sides.place());
            drop(sides);
            if done && planning {
                return Ok(true);
            }
            if !self.flush(stage, batch, pair)? {
                return Ok(false);
            }
            if done {
                return Ok(true);
            }
        }
    }

    /// Keeps a key if something has to be written.
    #[inline]
    fn consider(
        &self,
        pair: &Pair,
        entry: &Incoming<'_>,
        incoming: bool,
        main: Option<&[u8]>,
        shadow: Option<&[u8]>,
        batch: &mut Candidates,
    ) -> Result<()> {
        let outcome = settle(self.rules(pair), main, shadow, incoming.then_some(entry))
            .map_err(|e| e.in_dbi(pair.shadow_name.as_str()).at_key(entry.key))?;
        if outcome.shadow.is_some() || outcome.main != MainWrite::Keep {
            batch.push(entry, incoming);
        }
        Ok(())
    }

    fn rules(&self, pair: &Pair) -> Rules {
        Rules {
            capture: pair.capture.then_some(self.now),
            project: self.merging,
            deleted_cutoff: self.merge.options.deleted_cutoff,
        }
    }

    /// Writes the batch and empties it; false in the plan, which cannot.
    fn flush(&mut self, stage: &mut Stage<'_>, batch: &mut Candidates, pair: &Pair) -> Result<bool> {
        let Stage::Write(txn) = stage else { return Ok(false) };
        self.write(txn, pair, batch.entries())?;
        batch.clear();
        Ok(true)
    }

    /// False: the plan does not hold any more, and nothing was written.
    fn apply(&mut self, batch: &Candidates) -> Result<bool> {
        let may_create = batch.dbis.iter().any(|dbi| dbi.create);
        let planned_on = self.merge.out.base_txn_id;
        let (mut stage, locked) = self.begin(may_create)?;
        // The ids of write transactions follow each other: the next one after the plan's means that nobody committed in between.
        let unchanged = self.merge.out.base_txn_id == planned_on;
        let mut entries = batch.entries();
        for planned in &batch.dbis {
            let mut target = planned.target.clone();
            let own = entries.by_ref().take(planned.entries as usize);
            // The application may have dropped a DBI since.
            if stage.dbi(&target.name)?.is_none() {
                if target.is_local() {
                    own.for_each(drop);
                    continue;
                }
                if !planned.create {
                    // It gets all that its shadow has, not only what had to be written: the rest would be taken for removed.
                    return Ok(false);
                }
            }
            let pair = self.open(&mut stage, &mut target)?;
            if let Stage::Write(txn) = &mut stage {
                self.write(txn, &pair, own)?;
            }
        }
        self.finish(stage, locked)?;
        if !unchanged {
            self.covered = planned_on;
        }
        Ok(true)
    }

    fn stream(&mut self) -> Result<Flow> {
        self.start_over();
        let (mut stage, locked) = self.begin(true)?;
        let flow = self.walk(&mut stage, &mut Candidates::default(), self.merging)?;
        if matches!(flow, Flow::Done) {
            self.finish(stage, locked)?;
        }
        Ok(flow)
    }

    /// Merges a snapshot that is in no order. False: begin again with an index.
    fn one_by_one(&mut self) -> Result<bool> {
        self.start_over();
        let (mut stage, locked) = self.begin(true)?;
        let mut batch = Candidates::default();
        self.walk(&mut stage, &mut batch, false)?;
        let mut reader = Reader::open(self.merge.options.path, self.merge.cancel, self.merge.index.clone())?;
        let mut current: Option<(Target, Pair)> = None;
        loop {
            let event = reader.next()?;
            if !matches!(event, Event::Entry { .. })
                && let Some((_, pair)) = current.take()
            {
                self.flush(&mut stage, &mut batch, &pair)?;
            }
            match event {
                Event::End => break,
                Event::NeedsIndex => return Ok(false),
                Event::Dbi(head) => {
                    let head = head.clone();
                    let versions = (reader.format_version(), reader.compat_version());
                    let Some(mut target) = self.merge.admit(head, versions.0, versions.1)? else { continue };
                    let mut pair = self.open(&mut stage, &mut target)?;
                    batch.begin_dbi(&target, false);
                    let created = !pair.capture;
                    // What the application did was captured above.
                    pair.capture = false;
                    if created {
                        // It gets what the shadow of its predecessor holds.
                        self.rest(&mut stage, &mut batch, &pair, None)?;
                    }
                    pair.ordered = false;
                    pair.append_shadow = false;
                    pair.append_main = false;
                    current = Some((target, pair));
                }
                Event::Entry { key, value, timestamp, flags } => {
                    let Some((target, pair)) = &mut current else { continue };
                    self.merge.count_entry(key.len() + value.len())?;
                    self.merge.check_key(target, key)?;
                    let incoming = Incoming::new(key, value, timestamp, flags, target.format_version);
                    pair.check_incoming(&incoming)?;
                    batch.push(&incoming, true);
                    if batch.bytes > STREAM_BYTES {
                        self.flush(&mut stage, &mut batch, pair)?;
                    }
                }
            }
        }
        self.merge.take_head(&reader);
        drop(reader);
        self.finish(stage, locked)?;
        Ok(true)
    }

    /// What an attempt that gave up has counted does not count.
    fn start_over(&mut self) {
        let out = &mut self.merge.out;
        *out = Merged { plan: out.plan, ..Merged::default() };
        self.merge.integer_bytes.clear();
        self.merge.bytes = 0;
        self.visited = 0;
        self.wrote = false;
        self.bytes_written = 0;
    }

    fn begin(&mut self, may_create: bool) -> Result<(Stage<'a>, Instant)> {
        let txn = self.merge.begin(may_create)?;
        self.now = self.shadow.stamp.now();
        Ok((Stage::Write(txn), Instant::now()))
    }

    fn finish(&mut self, stage: Stage<'_>, locked: Instant) -> Result<()> {
        if let Stage::Write(txn) = stage {
            let id = txn.id();
            self.merge.commit(txn, locked, self.wrote, self.bytes_written)?;
            self.covered = if self.wrote { id } else { id - 1 };
        }
        Ok(())
    }

    /// Decides each key by look-ups and writes it.
    fn write<'k>(
        &mut self,
        txn: &mut WriteTxn<'_>,
        pair: &Pair,
        entries: impl Iterator<Item = (Incoming<'k>, bool)>,
    ) -> Result<()> {
        let (Some(shadow), Some(main)) = (pair.shadow, pair.main) else { return Ok(()) };
        let (rules, txn_id) = (self.rules(pair), txn.id());
        let mut cursors = txn.cursor_pair(shadow, main)?;
        for (entry, incoming) in entries {
            self.write_one(&mut cursors, pair, rules, txn_id, &entry, incoming)
                .map_err(|e| e.in_dbi(pair.name.as_str()).at_key(entry.key))?;
        }
        Ok(())
    }

    #[inline]
    fn write_one(
        &mut self,
        cursors: &mut CursorPair<'_>,
        pair: &Pair,
        rules: Rules,
        txn_id: u64,
        entry: &Incoming<'_>,
        incoming: bool,
    ) -> Result<()> {
        let key = entry.key;
        let decoded = if pair.encoded { Some(dupsort::decode(key).ok_or_else(foreign_key)?) } else { None };
        let in_shadow = if pair.append_shadow { Lookup::Absent } else { Lookup::Key { key, ascending: pair.ordered } };
        let in_main = match decoded {
            _ if pair.append_main => Lookup::Absent,
            None => Lookup::Key { key, ascending: pair.ordered && pair.same_order },
            Some(dupsort::Decoded { key, prefix, cut }) => {
                // Values that are cut are too long for MDB_INTEGERDUP.
                Lookup::Duplicate { key, prefix, cut, sorted: !cut || pair.main_flags & flags::REVERSEDUP == 0 }
            }
        };
        let (shadow, main) = cursors.look_up(in_shadow, in_main)?;
        let outcome =
            settle(rules, main, shadow, incoming.then_some(entry)).map_err(|e| e.in_dbi(pair.shadow_name.as_str()))?;
        let shadow_write = outcome.shadow.map(|write| {
            let Held { timestamp, deleted, value } = write.entry;
            let flags = if deleted { FLAG_DELETED } else { 0 };
            let padding = self.merge.options.padding_block && write.change.is_merged();
            header::build(&mut self.stored, timestamp, txn_id, flags, value, padding);
            write.change
        });
        // What was looked up is gone with the first write.
        copy(&mut self.old, main.unwrap_or_default());
        let had = main.is_some();
        let put = match outcome.main {
            MainWrite::Keep => None,
            MainWrite::Delete => Some(false),
            MainWrite::Put(value) => {
                copy(&mut self.wanted, value);
                Some(true)
            }
        };
        if let Some(change) = shadow_write {
            cursors
                .put_first(key, &self.stored, pair.append_shadow)
                .map_err(|e| e.in_dbi(pair.shadow_name.as_str()))?;
            self.bytes_written += (key.len() + self.stored.len()) as u64;
            self.count(change);
        }
        if let Some(put) = put {
            let main_key = decoded.map_or(key, |decoded| decoded.key);
            // A duplicate is never overwritten in place: liblmdb before 0.9.31 does that wrongly when sizes differ.
            if had && (pair.encoded || !put) {
                cursors.delete_second(main_key, &self.old)?;
            }
            if put && pair.encoded {
                cursors.put_second_duplicate(main_key, &self.wanted).map_err(|e| unfit(e, incoming))?;
            } else if put {
                cursors.put_second(main_key, &self.wanted, pair.append_main)?;
            }
            self.bytes_written += (main_key.len() + self.wanted.len()) as u64;
        }
        if shadow_write.is_some() || put.is_some() {
            self.wrote = true;
            self.writes += 1;
            if self.writes.is_multiple_of(CHECK_EVERY) {
                self.merge.cancel.check()?;
            }
        }
        Ok(())
    }

    fn count(&mut self, change: Change) {
        let out = &mut self.merge.out;
        let count = match change {
            Change::CapturedNew => &mut out.captured.added,
            Change::CapturedOther => &mut out.captured.changed,
            Change::CapturedRemoved => &mut out.captured.deleted,
            Change::Merged(Verdict::Add) => &mut out.added,
            Change::Merged(_) => &mut out.updated,
        };
        *count += 1;
    }
}

fn copy(to: &mut Vec<u8>, from: &[u8]) {
    to.clear();
    to.extend_from_slice(from);
}

#[cold]
fn foreign_key() -> Error {
    Error::new(Code::DbiUnsupported, "the shadow DBI holds a key that dupsort_hack did not make")
}

#[cold]
fn unlike_shadow(why: &str) -> Error {
    Error::new(Code::DbiUnsupported, format!("{why}: stop the daemon and remove the shadows with drop-shadow"))
}

/// The snapshot is to blame for a value that the DBI cannot have.
fn unfit(error: Error, incoming: bool) -> Error {
    if incoming && error.code == Code::Lmdb(MDB_BAD_VALSIZE) {
        return Error::refused(
            "a value of the snapshot does not fit into the DBI with MDB_DUPSORT (too long, or another size)",
        );
    }
    error
}

impl Target {
    /// A DBI that the snapshot does not have.
    fn local(name: String) -> Self {
        Self { name, create_flags: 0, format_version: 0, encoded: false, keys: super::KeyCheck::default() }
    }

    /// No snapshot that is merged has version 0.
    fn is_local(&self) -> bool {
        self.format_version == 0
    }
}

impl Pair {
    /// Checks what only an encoded key can have wrong.
    #[inline]
    fn check_incoming(&self, entry: &Incoming<'_>) -> Result<()> {
        if !self.encoded {
            return Ok(());
        }
        let refuse = |text: &str| Err(Error::refused(text).in_dbi(self.name.as_str()).at_key(entry.key));
        let Some(decoded) = dupsort::decode(entry.key) else {
            return refuse("the snapshot holds a key that dupsort_hack did not make");
        };
        if !entry.value.is_empty() && !decoded.belongs_to(entry.value) {
            return refuse("the snapshot holds a value that is not the one of its dupsort_hack key");
        }
        // liblmdb reads such values without looking at their length.
        if self.main_flags & flags::INTEGERDUP != 0 && !matches!(decoded.prefix.len(), 4 | 8) {
            return refuse("the snapshot holds a value that is no integer for a DBI with MDB_INTEGERDUP");
        }
        Ok(())
    }
}

/// What applies to a key.
#[derive(Clone, Copy)]
struct Rules {
    /// The application's DBI decides first, with this timestamp.
    capture: Option<u64>,
    /// The application's DBI follows.
    project: bool,
    deleted_cutoff: u64,
}

/// Why an entry of a shadow is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    CapturedNew,
    CapturedOther,
    CapturedRemoved,
    Merged(Verdict),
}

impl Change {
    fn is_merged(self) -> bool {
        matches!(self, Self::Merged(_))
    }
}

#[derive(Clone, Copy, Debug)]
struct ShadowWrite<'a> {
    entry: Held<'a>,
    change: Change,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MainWrite<'a> {
    Keep,
    Put(&'a [u8]),
    Delete,
}

#[derive(Clone, Copy, Debug)]
struct Outcome<'a> {
    shadow: Option<ShadowWrite<'a>>,
    main: MainWrite<'a>,
}

/// Decides one key: `main` is the application's value, `shadow` the one with a header, `remote` the snapshot's entry.
#[inline]
fn settle<'a>(
    rules: Rules,
    main: Option<&'a [u8]>,
    shadow: Option<&'a [u8]>,
    remote: Option<&Incoming<'a>>,
) -> Result<Outcome<'a>> {
    let mut entry = match shadow {
        // A value of zero bytes counts as none, unless it has to be marked deleted.
        Some([]) if main.is_some() || rules.capture.is_none() => None,
        Some(stored) => Some(Held::from(&header::parse(stored)?)),
        None => None,
    };
    let mut write = None;
    if let Some(now) = rules.capture {
        let captured = match (main, &entry) {
            (Some(value), None) => Some((Held { timestamp: now, deleted: false, value }, Change::CapturedNew)),
            // The timestamp of a change is as good as any: against a later one it loses, and among equal ones the lower value wins.
            (Some(value), Some(held)) if value != held.value && (now, held.value) > (held.timestamp, value) => {
                Some((Held { timestamp: now, deleted: false, value }, Change::CapturedOther))
            }
            // A removal wins, whenever the entry was written.
            (None, Some(held)) if !held.deleted => {
                Some((Held { timestamp: now, deleted: true, value: &[] }, Change::CapturedRemoved))
            }
            _ => None,
        };
        if let Some((held, change)) = captured {
            entry = Some(held);
            write = Some(ShadowWrite { entry: held, change });
        }
    }
    if let Some(remote) = remote {
        let verdict = remote.against_entry(entry, rules.deleted_cutoff);
        if verdict != Verdict::Keep {
            let held = Held { timestamp: remote.timestamp, deleted: remote.is_deleted(), value: remote.value };
            entry = Some(held);
            write = Some(ShadowWrite { entry: held, change: Change::Merged(verdict) });
        }
    }
    let main = if rules.project {
        // An empty value cannot be told from none, as for Lightning Stream.
        match (entry.filter(|held| !held.deleted && !held.value.is_empty()), main) {
            (Some(held), Some(value)) if held.value == value => MainWrite::Keep,
            (Some(held), _) => MainWrite::Put(held.value),
            (None, Some(_)) => MainWrite::Delete,
            (None, None) => MainWrite::Keep,
        }
    } else {
        MainWrite::Keep
    };
    Ok(Outcome { shadow: write, main })
}

/// Where a walk over both DBIs is; nothing is left of a side without a record.
#[derive(Default)]
struct Position {
    main: Option<(Vec<u8>, Vec<u8>)>,
    shadow: Option<Vec<u8>>,
}

/// Both DBIs, walked in step.
struct Sides<'t> {
    main: Option<MainSide<'t>>,
    shadow: Option<ReadCursor<'t>>,
    shadow_at: Option<(&'t [u8], &'t [u8])>,
    order: KeyOrder,
}

impl<'t> Sides<'t> {
    /// From the beginning, or from `place`: what is there must not have been written since.
    fn open(stage: &'t Stage<'_>, pair: &Pair, place: Option<Position>) -> Result<Self> {
        let mut sides = Self { main: None, shadow: None, shadow_at: None, order: pair.order };
        if let Some(dbi) = pair.shadow {
            let mut cursor = stage.cursor(dbi)?;
            sides.shadow_at = match &place {
                None => cursor.next()?,
                Some(Position { shadow: Some(key), .. }) => cursor.seek(key)?,
                Some(Position { shadow: None, .. }) => None,
            };
            sides.shadow = Some(cursor);
        }
        if let Some(dbi) = pair.main {
            let mut cursor = stage.cursor(dbi)?;
            let at = match &place {
                None => cursor.next()?,
                Some(Position { main: Some((key, value)), .. }) if pair.encoded => cursor.seek_duplicate(key, value)?,
                Some(Position { main: Some((key, _)), .. }) => cursor.seek(key)?,
                Some(Position { main: None, .. }) => None,
            };
            let mut main = MainSide {
                cursor,
                at,
                encoded: pair.encoded,
                checked: pair.encoded || !pair.same_order,
                order: pair.order,
                key: Vec::new(),
                previous: Vec::new(),
            };
            main.encode().map_err(|e| e.in_dbi(pair.name.as_str()))?;
            sides.main = Some(main);
        }
        Ok(sides)
    }

    fn place(&self) -> Position {
        Position {
            main: self.main.as_ref().and_then(|main| main.at).map(|(key, value)| (key.to_vec(), value.to_vec())),
            shadow: self.shadow_at.map(|(key, _)| key.to_vec()),
        }
    }

    #[inline]
    fn main_key(&self) -> Option<&[u8]> {
        self.main.as_ref().and_then(MainSide::key)
    }

    #[inline]
    fn main_value(&self) -> Option<&'t [u8]> {
        self.main.as_ref().and_then(|main| main.at).map(|(_, value)| value)
    }

    #[inline]
    fn shadow_key(&self) -> Option<&[u8]> {
        self.shadow_at.map(|(key, _)| key)
    }

    /// Values of the lowest key, if it is below `limit`.
    #[inline]
    fn lowest(&self, limit: Option<&[u8]>) -> Option<Both<'t>> {
        let (main, shadow) = (self.main_key(), self.shadow_key());
        let (takes_main, takes_shadow) = match (main, shadow) {
            (None, None) => return None,
            (Some(_), None) => (true, false),
            (None, Some(_)) => (false, true),
            (Some(main), Some(shadow)) => {
                let order = self.order.compare(main, shadow);
                (order.is_le(), order.is_ge())
            }
        };
        if let (Some(limit), Some(key)) = (limit, if takes_main { main } else { shadow })
            && self.order.compare(key, limit).is_ge()
        {
            return None;
        }
        Some((
            if takes_main { self.main_value() } else { None },
            if takes_shadow { self.shadow_at.map(|(_, value)| value) } else { None },
        ))
    }

    /// Values of `key`; nothing below it is left.
    #[inline]
    fn at(&self, key: &[u8]) -> Both<'t> {
        let equal = |other: &[u8]| self.order.compare(other, key).is_eq();
        (
            if self.main_key().is_some_and(equal) { self.main_value() } else { None },
            self.shadow_at.filter(|(other, _)| equal(other)).map(|(_, value)| value),
        )
    }

    #[inline]
    fn pass(&mut self, main: bool, shadow: bool) -> Result<()> {
        if main && let Some(side) = &mut self.main {
            side.next()?;
        }
        if shadow && let Some(cursor) = &mut self.shadow {
            self.shadow_at = cursor.next()?;
        }
        Ok(())
    }
}

/// The application's DBI with the keys of its shadow.
struct MainSide<'t> {
    cursor: ReadCursor<'t>,
    at: Option<(&'t [u8], &'t [u8])>,
    encoded: bool,
    /// Keys might not be in the shadow's order.
    checked: bool,
    order: KeyOrder,
    /// The encoded key.
    key: Vec<u8>,
    /// For the check.
    previous: Vec<u8>,
}

impl MainSide<'_> {
    #[inline]
    fn key(&self) -> Option<&[u8]> {
        self.at.map(|(key, _)| if self.encoded { self.key.as_slice() } else { key })
    }

    #[inline]
    fn next(&mut self) -> Result<()> {
        if !self.checked {
            self.at = self.cursor.next()?;
            return Ok(());
        }
        if self.encoded {
            std::mem::swap(&mut self.previous, &mut self.key);
        } else if let Some((key, _)) = self.at {
            copy(&mut self.previous, key);
        }
        self.at = self.cursor.next()?;
        self.encode()?;
        let Some(key) = self.key() else { return Ok(()) };
        match self.order.compare(&self.previous, key) {
            std::cmp::Ordering::Less => Ok(()),
            order => Err(self.out_of_order(order.is_eq()).at_key(key)),
        }
    }

    fn encode(&mut self) -> Result<()> {
        match self.at {
            Some((key, value)) if self.encoded => dupsort::encode(&mut self.key, key, value),
            _ => Ok(()),
        }
    }

    #[cold]
    fn out_of_order(&self, equal: bool) -> Error {
        let text = if !self.encoded {
            "keys not sorted: the DBI (MDB_REVERSEKEY?) has another order than its shadow, so it cannot be synchronised"
        } else if equal {
            "two values of one key begin alike, and dupsort_hack cannot tell them apart"
        } else {
            "dupsort_hack would reverse the order of two values (the key or a value holds four zero bytes, or the DBI has another order)"
        };
        Error::new(Code::DbiUnsupported, text)
    }
}
