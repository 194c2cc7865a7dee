//! Walks a DBI beside its shadow and decides what each entry becomes.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use super::layout::{self, Kind, Table};
use super::{DbiReport, Untracked};
use crate::cancel::Cancel;
use crate::error::{Code, Error, Result};
use crate::header::{self, FLAG_DELETED, HEADER_BYTES, Native};
use crate::lmdb::{Dbi, ReadCursor, ReadTxn, WriteCursor, flags};
use crate::merge::SHADOW_PREFIX;

/// Records between two looks at the flag that stops the work.
const BATCH: u64 = 4096;
/// Bytes that LMDB has in front of each entry of a page (mdb.c, `NODESIZE`).
const NODE_BYTES: u64 = 8;

pub fn shadow_of(dbi: &str) -> String {
    format!("{SHADOW_PREFIX}{dbi}")
}

/// How far the work is.
pub struct Progress<'a> {
    pub cancel: &'a Cancel,
    /// Entries that were looked at.
    pub walked: u64,
    /// Entries that will be, in all.
    pub total: u64,
    /// Bytes that these stand for.
    pub total_bytes: u64,
}

impl Progress<'_> {
    fn step(&mut self) -> Result<()> {
        self.walked += 1;
        if self.walked.is_multiple_of(BATCH) {
            self.cancel.check()?;
            self.report();
        }
        Ok(())
    }

    pub fn report(&self) {
        let share = self.walked as f64 / self.total.max(1) as f64;
        let bytes = (self.total_bytes as f64 * share.min(1.0)) as u64;
        self.cancel.report(self.walked, bytes, self.total_bytes);
    }
}

/// Where timestamps come from.
#[derive(Clone, Copy, Debug)]
pub struct Tracking {
    pub untracked: Untracked,
    /// The one time of the run, ns since the Unix epoch.
    pub now: u64,
}

impl Tracking {
    /// The timestamp of a change that nobody tracked.
    fn stamp(&self, shadow: Option<u64>) -> u64 {
        let after = shadow.map_or(1, |timestamp| timestamp.saturating_add(1));
        if self.untracked == Untracked::Old { after } else { self.now.max(after) }
    }

    /// What becomes of an entry: `live` says that the application has it, `same` that it is what the shadow knows.
    fn decide(&self, live: bool, same: bool, shadow: Option<&Native<'_>>) -> Fate {
        let carried = match shadow {
            Some(shadow) if live => same && !shadow.is_deleted(),
            Some(shadow) => shadow.is_deleted(),
            None => false,
        };
        let timestamp = shadow.map(|shadow| shadow.timestamp);
        match timestamp {
            Some(timestamp) if carried => Fate { timestamp, deleted: !live, origin: Origin::Carried },
            _ => Fate { timestamp: self.stamp(timestamp), deleted: !live, origin: Origin::Untracked },
        }
    }
}

/// What an entry's header says, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fate {
    timestamp: u64,
    deleted: bool,
    origin: Origin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// Nothing is tracked.
    None,
    /// The shadow's.
    Carried,
    /// Changed after Lightning Stream last looked.
    Untracked,
    /// A new server's own: it stays.
    Kept,
}

/// A key of records or objects, ordered as in the new DBI; the old ones have the same order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key<'t> {
    Bytes(&'t [u8]),
    Id(u32),
}

impl<'t> Key<'t> {
    /// Of records, for looking it up.
    pub fn bytes(self) -> Option<&'t [u8]> {
        if let Self::Bytes(bytes) = self { Some(bytes) } else { None }
    }

    fn old(kind: Kind, bytes: &'t [u8]) -> Result<Self> {
        if kind == Kind::Records { Ok(Self::Bytes(bytes)) } else { layout::old_id(bytes).map(Self::Id) }
    }

    fn new(kind: Kind, bytes: &'t [u8]) -> Result<Self> {
        if kind == Kind::Records { Ok(Self::Bytes(bytes)) } else { layout::new_id(bytes).map(Self::Id) }
    }

    fn with<T>(self, body: impl FnOnce(&[u8]) -> T) -> T {
        match self {
            Self::Bytes(bytes) => body(bytes),
            Self::Id(id) => body(&id.to_be_bytes()),
        }
    }
}

/// A DBI with its shadow, in whichever form.
pub struct Source<'e, 't> {
    view: &'t ReadTxn<'e>,
    table: &'static Table,
    /// It has the new form.
    native: bool,
    live: Dbi,
    shadow: Option<Dbi>,
    shadow_name: String,
    tracking: Option<Tracking>,
}

impl<'e, 't> Source<'e, 't> {
    /// `native`: what is to be walked is the new DBI. Without `tracking` no shadow is looked at.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] when a DBI is missing or not of the kind that PowerDNS makes.
    pub fn new(view: &'t ReadTxn<'e>, table: &'static Table, native: bool, tracking: Option<Tracking>) -> Result<Self> {
        let (name, expected) = if native { (table.new, 0) } else { (table.old, table.old_flags()) };
        let live = view.dbi(name)?.ok_or_else(|| Error::new(Code::InvalidArgument, "it is missing").in_dbi(name))?;
        if live.flags != expected {
            return Err(unlike(live.flags, expected).in_dbi(name));
        }
        let shadow_name = shadow_of(table.old);
        let shadow = if tracking.is_some() { view.dbi(&shadow_name)? } else { None };
        // In the order of the ids; keys of an index are looked up one by one.
        let expected = if table.kind == Kind::Objects { flags::INTEGERKEY } else { 0 };
        if let Some(shadow) = shadow
            && shadow.flags != expected
        {
            return Err(unlike(shadow.flags, expected).in_dbi(shadow_name));
        }
        Ok(Self { view, table, native, live, shadow, shadow_name, tracking })
    }

    pub fn name(&self) -> &'static str {
        if self.native { self.table.new } else { self.table.old }
    }

    fn cursors(&self) -> Result<(ReadCursor<'_>, Option<ReadCursor<'_>>)> {
        Ok((self.view.cursor(self.live)?, self.shadow.map(|shadow| self.view.cursor(shadow)).transpose()?))
    }

    /// What it becomes, into `out`: an index in any order, all else in the order of the new DBI.
    pub fn convert(&self, out: &mut Out<'_>, progress: &mut Progress<'_>) -> Result<()> {
        if self.table.kind == Kind::Index {
            self.convert_live_index(out, progress)?;
            return self.convert_deleted_index(out, progress);
        }
        let mut walk = self.walk()?;
        while let Some(item) = walk.next(progress)? {
            out.put_item(&item)?;
        }
        Ok(())
    }

    fn convert_live_index(&self, out: &mut Out<'_>, progress: &mut Progress<'_>) -> Result<()> {
        let (mut key, mut shadow_key) = (Vec::new(), Vec::new());
        let (mut live, mut shadow) = self.cursors()?;
        while let Some((stored_key, stored)) = live.next().map_err(|e| e.in_dbi(self.name()))? {
            progress.step()?;
            let here = |e: Error| e.in_dbi(self.name()).at_key(stored_key);
            let (name, id, own) = if self.native {
                let native = header::parse(stored).map_err(here)?;
                let (name, id) = layout::split_index_key(stored_key).map_err(here)?;
                (name, id, Some(native))
            } else {
                (stored_key, layout::old_id(stored).map_err(here)?, None)
            };
            layout::index_key(&mut key, name, id).map_err(here)?;
            let tracked = match &mut shadow {
                Some(shadow) if layout::index_shadow_key(&mut shadow_key, name, id) => {
                    let found = shadow.find(&shadow_key, false).map_err(|e| e.in_dbi(self.shadow_name.as_str()))?;
                    found.map(|stored| self.tracked(&shadow_key, stored)).transpose()?
                }
                _ => None,
            };
            // The id is in both keys, so their values cannot differ.
            let fate = fate(self.tracking.as_ref(), own.as_ref(), true, tracked.as_ref());
            out.put(&key, fate, &[])?;
        }
        Ok(())
    }

    fn convert_deleted_index(&self, out: &mut Out<'_>, progress: &mut Progress<'_>) -> Result<()> {
        let mut key = Vec::new();
        let (mut live, Some(mut shadow)) = self.cursors()? else { return Ok(()) };
        let Some(tracking) = self.tracking else { return Ok(()) };
        while let Some((shadow_key, stored)) = shadow.next().map_err(|e| e.in_dbi(self.shadow_name.as_str()))? {
            progress.step()?;
            let here = |e: Error| e.in_dbi(self.shadow_name.as_str()).at_key(shadow_key);
            let tracked = self.tracked(shadow_key, stored)?;
            let (name, id) = layout::split_index_shadow_key(shadow_key).map_err(here)?;
            layout::index_key(&mut key, name, id).map_err(here)?;
            let there = if self.native {
                live.find(&key, false).map_err(here)?.is_some()
            } else {
                let id = id.to_ne_bytes();
                live.seek_duplicate(name, &id).map_err(here)?.is_some_and(|(_, found)| found == id)
            };
            if !there {
                out.put(&key, tracking.decide(false, false, Some(&tracked)), &[])?;
            }
        }
        Ok(())
    }

    fn tracked<'s>(&self, key: &[u8], stored: &'s [u8]) -> Result<Native<'s>> {
        header::parse(stored).map_err(|e| e.in_dbi(self.shadow_name.as_str()).at_key(key))
    }

    /// Walks records or objects.
    pub fn walk(&self) -> Result<Walk<'_, 'e, 't>> {
        let (live, shadow) = self.cursors()?;
        let mut walk = Walk { source: self, live, shadow, next_live: None, next_shadow: None };
        walk.step_live()?;
        walk.step_shadow()?;
        Ok(walk)
    }
}

#[cold]
fn unlike(found: u32, expected: u32) -> Error {
    let text = format!(
        "its flags are 0x{found:02x} and not 0x{expected:02x}, so it is not what PowerDNS or Lightning Stream makes"
    );
    Error::new(Code::InvalidArgument, text)
}

/// What becomes of an entry that is there; `own` is what a new one has, `same` says that its value is what the shadow knows.
fn fate(tracking: Option<&Tracking>, own: Option<&Native<'_>>, same: bool, shadow: Option<&Native<'_>>) -> Fate {
    let kept = |own: &Native<'_>| Fate { timestamp: own.timestamp, deleted: own.is_deleted(), origin: Origin::Kept };
    match (tracking, own) {
        (None, None) => Fate { timestamp: 0, deleted: false, origin: Origin::None },
        (Some(tracking), None) => tracking.decide(true, same, shadow),
        (None, Some(own)) => kept(own),
        // What a new server wrote stays; and of a deletion that has no time and is not tracked nothing better is known.
        (Some(_), Some(own)) if own.timestamp != 0 || (own.is_deleted() && shadow.is_none()) => kept(own),
        (Some(tracking), Some(own)) => tracking.decide(!own.is_deleted(), same, shadow),
    }
}

/// An entry of records or objects.
#[derive(Clone, Copy, Debug)]
pub struct Item<'t> {
    pub key: Key<'t>,
    pub fate: Fate,
    pub value: &'t [u8],
}

impl Item<'_> {
    /// Both say the same, whenever that was.
    pub fn says(&self, other: &Native<'_>) -> bool {
        self.fate.deleted == other.is_deleted() && (self.fate.deleted || self.value == other.value)
    }
}

/// Records or objects beside their shadow, in the order of the new DBI.
pub struct Walk<'s, 'e, 't> {
    source: &'s Source<'e, 't>,
    live: ReadCursor<'s>,
    shadow: Option<ReadCursor<'s>>,
    next_live: Option<(Key<'s>, &'s [u8])>,
    next_shadow: Option<(Key<'s>, Native<'s>)>,
}

impl<'s> Walk<'s, '_, '_> {
    fn step_live(&mut self) -> Result<()> {
        let source = self.source;
        self.next_live = match self.live.next().map_err(|e| e.in_dbi(source.name()))? {
            Some((key, stored)) => {
                let parsed =
                    if source.native { Key::new(source.table.kind, key) } else { Key::old(source.table.kind, key) };
                Some((parsed.map_err(|e| e.in_dbi(source.name()).at_key(key))?, stored))
            }
            None => None,
        };
        Ok(())
    }

    fn step_shadow(&mut self) -> Result<()> {
        let Some(shadow) = &mut self.shadow else { return Ok(()) };
        let here = |e: Error| e.in_dbi(self.source.shadow_name.as_str());
        self.next_shadow = match shadow.next().map_err(here)? {
            Some((key, stored)) => {
                let parsed = Key::old(self.source.table.kind, key).map_err(|e| here(e).at_key(key))?;
                Some((parsed, self.source.tracked(key, stored)?))
            }
            None => None,
        };
        Ok(())
    }

    pub fn next(&mut self, progress: &mut Progress<'_>) -> Result<Option<Item<'s>>> {
        let side = match (&self.next_live, &self.next_shadow) {
            (None, None) => return Ok(None),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((live, _)), Some((shadow, _))) => live.cmp(shadow),
        };
        let shadow = self.next_shadow.filter(|_| side != Ordering::Less);
        let live = self.next_live.filter(|_| side != Ordering::Greater);
        if shadow.is_some() {
            progress.step()?;
            self.step_shadow()?;
        }
        let tracking = self.source.tracking.as_ref();
        let Some((key, stored)) = live else {
            // Only with tracking there is a shadow.
            let item = shadow.zip(tracking).map(|((key, shadow), tracking)| Item {
                key,
                fate: tracking.decide(false, false, Some(&shadow)),
                value: &[],
            });
            return Ok(item);
        };
        progress.step()?;
        self.step_live()?;
        let own = if self.source.native {
            Some(header::parse(stored).map_err(|e| key.with(|key| e.in_dbi(self.source.name()).at_key(key)))?)
        } else {
            None
        };
        let value = own.map_or(stored, |own| own.value);
        let shadow = shadow.map(|(_, shadow)| shadow);
        let same = shadow.is_some_and(|shadow| shadow.value == value);
        Ok(Some(Item { key, fate: fate(tracking, own.as_ref(), same, shadow.as_ref()), value }))
    }
}

/// Where entries go.
pub struct Out<'w> {
    /// `None`: they are only counted.
    cursor: Option<WriteCursor<'w>>,
    txn_id: u64,
    /// The target is empty, and keys come in its order.
    append: bool,
    /// Entries that stay as they are have to be written, too: the target is another DBI.
    elsewhere: bool,
    pub report: DbiReport,
    /// Entries written, or to be written.
    pub changes: u64,
    /// What they take in pages that are full.
    pub bytes: u64,
    /// Bytes of values without headers.
    pub value_bytes: u64,
    stored: Vec<u8>,
}

impl<'w> Out<'w> {
    pub fn count(report: DbiReport) -> Self {
        Self {
            cursor: None,
            txn_id: 0,
            append: false,
            elsewhere: false,
            report,
            changes: 0,
            bytes: 0,
            value_bytes: 0,
            stored: Vec::new(),
        }
    }

    pub fn write(report: DbiReport, cursor: WriteCursor<'w>, txn_id: u64, append: bool) -> Self {
        Self { cursor: Some(cursor), txn_id, append, ..Self::count(report) }
    }

    /// The target is another DBI than the source.
    pub fn elsewhere(self) -> Self {
        Self { elsewhere: true, ..self }
    }

    pub fn put_item(&mut self, item: &Item<'_>) -> Result<()> {
        item.key.with(|key| self.put(key, item.fate, item.value))
    }

    fn put(&mut self, key: &[u8], fate: Fate, value: &[u8]) -> Result<()> {
        self.report.entries += 1;
        self.report.carried += u64::from(fate.origin == Origin::Carried);
        self.report.untracked += u64::from(fate.origin == Origin::Untracked);
        self.report.deleted += u64::from(fate.deleted);
        if fate.origin == Origin::Kept && !self.elsewhere {
            return Ok(());
        }
        self.changes += 1;
        let value_bytes = if fate.deleted { 0 } else { value.len() as u64 };
        self.value_bytes += value_bytes;
        self.bytes += entry_bytes(key.len() as u64, HEADER_BYTES as u64 + value_bytes);
        if let Some(cursor) = &mut self.cursor {
            let flags = if fate.deleted { FLAG_DELETED } else { 0 };
            header::build(&mut self.stored, fate.timestamp, self.txn_id, flags, value, false);
            let put = cursor.put(key, &self.stored, self.append);
            put.map_err(|e| e.in_dbi(self.report.to.as_str()).at_key(key))?;
        }
        Ok(())
    }
}

/// Smallest page there is; on larger ones less goes to pages of its own.
const PAGE_BYTES: u64 = 4096;
const PAGE_HEADER_BYTES: u64 = 16;

/// What an entry takes in full pages: those of more than half a page have some of their own (mdb.c, `me_nodemax`).
fn entry_bytes(key: u64, value: u64) -> u64 {
    if NODE_BYTES + key + value > PAGE_BYTES / 2 - PAGE_HEADER_BYTES {
        return NODE_BYTES + key + 8 + (value + PAGE_HEADER_BYTES).next_multiple_of(PAGE_BYTES);
    }
    (NODE_BYTES + key + value).next_multiple_of(2) + 2
}

/// Several walks as one, in the order of the keys; each item with the number of its walk.
pub struct Merged<'w, 's, 'e, 't> {
    walks: &'w mut [Walk<'s, 'e, 't>],
    heads: Vec<Option<Item<'s>>>,
    heap: BinaryHeap<Reverse<(Key<'s>, usize)>>,
}

impl<'w, 's, 'e, 't> Merged<'w, 's, 'e, 't> {
    pub fn new(walks: &'w mut [Walk<'s, 'e, 't>], progress: &mut Progress<'_>) -> Result<Self> {
        let mut merged = Self { heads: vec![None; walks.len()], walks, heap: BinaryHeap::new() };
        for number in 0..merged.walks.len() {
            merged.step(number, progress)?;
        }
        Ok(merged)
    }

    fn step(&mut self, number: usize, progress: &mut Progress<'_>) -> Result<()> {
        let head = self.walks[number].next(progress)?;
        self.heap.extend(head.map(|item| Reverse((item.key, number))));
        self.heads[number] = head;
        Ok(())
    }

    /// # Errors
    /// A key that several have.
    pub fn next(&mut self, progress: &mut Progress<'_>) -> Result<Option<(usize, Item<'s>)>> {
        let Some(Reverse((key, number))) = self.heap.pop() else { return Ok(None) };
        if let Some(Reverse((other, _))) = self.heap.peek()
            && *other == key
        {
            return Err(clash(key));
        }
        let item = self.heads[number];
        self.step(number, progress)?;
        Ok(item.map(|item| (number, item)))
    }
}

#[cold]
pub fn clash(key: Key<'_>) -> Error {
    key.with(|key| Error::new(Code::InvalidArgument, "two shards have this key").at_key(key))
}
