//! Sweeping: removes the entries of deletions that nobody needs to hear of any more.
//!
//! *Plan*, in short read transactions: walk each DBI and collect the keys of old deletions. *Apply*, in short write transactions: each of
//! these keys is looked at again and removed. Where nothing is old enough the write lock is never taken. A slice ends when the lock was
//! held for the given time, its commit included as far as that can be foreseen; then others have their turn.

use std::thread;
use std::time::{Duration, Instant};

use crate::cancel::Cancel;
use crate::error::{Code, Error, Result};
use crate::header::{self, Native};
use crate::lmdb::{Dbi, Environment, KeyOrder, flags};
use crate::merge::{PRIVATE_PREFIX, SHADOW_PREFIX};

/// Keys collected before they are deleted, bytes.
const BATCH_BYTES: usize = 1 << 20;
/// Pages that were freed since a reader began are not used again: none of ours lasts longer than about this.
const PLAN_DURATION: Duration = Duration::from_millis(100);
/// Records read between two looks at the clock and the cancel flag.
const PLAN_CHECK_EVERY: u64 = 1000;
/// The same while the lock is held.
const SLICE_CHECK_EVERY: u64 = 64;
/// So many are deleted whatever the commit may take: else a slow disk would end each slice at once.
const MIN_SLICE: u64 = 1000;
/// The least time between two slices: the lock is not fair, and whoever waits for it has to wake up first.
const MIN_RELEASE: Duration = Duration::from_millis(1);
/// An abort is seen after at most this while waiting.
const PAUSE_STEP: Duration = Duration::from_millis(10);
/// A larger slice leaves page buffers worth giving back (each deletion may have changed another page of 4 KiB).
const RELEASE_ABOVE: u64 = 1024;

const MDB_MAP_FULL: i32 = -30792;

/// What to remove and how.
#[derive(Clone, Copy, Debug)]
pub struct SweepOptions {
    /// Deletions older than this (ns since the epoch) are removed.
    pub cutoff: u64,
    /// How long the lock is held at once, about; `None` = no limit.
    pub lock_duration: Option<Duration>,
    /// How long others have their turn after that, at least.
    pub release_duration: Duration,
    /// The application's DBIs have no headers: only their shadows are swept.
    pub shadow: bool,
}

/// What a sweep did.
#[derive(Clone, Debug, Default)]
pub struct Swept {
    /// Entries left, deletions included.
    pub entries: u64,
    /// Deletions left.
    pub deleted: u64,
    /// Deletions removed.
    pub cleaned: u64,
    /// Write transactions.
    pub transactions: u64,
    /// The longest that one of them held the lock.
    pub longest_lock: Duration,
    /// Why some DBI was not swept to its end; what was removed by then stays removed.
    pub failed: Option<Error>,
}

/// Sweeps all DBIs of the environment, one after the other. A DBI with a value that has no valid header is left at that value, and the
/// next one is swept. Private DBIs of others (`_sync…`) and DBIs with duplicates have no headers of ours and are left alone.
/// Progress: entries walked, deletions removed, entries in all.
///
/// # Errors
/// [`Code::Aborted`]: the slice that was under way is rolled back, those before it stay. Errors of LMDB before anything was done.
/// All later ones are in [`Swept::failed`].
pub fn sweep(env: &Environment, options: &SweepOptions, cancel: &Cancel) -> Result<Swept> {
    let (names, total) = dbis(env, options)?;
    let mut sweep = Sweep {
        env,
        options,
        cancel,
        out: Swept::default(),
        total,
        walked: 0,
        most: u64::MAX,
        last: Slice::default(),
        unlocked: None,
        largest: 0,
    };
    for name in &names {
        let Err(error) = sweep.dbi(name) else { continue };
        if matches!(error.code, Code::Aborted | Code::Closed) {
            return Err(error);
        }
        env.heal(&error);
        // The others are in the same LMDB.
        let goes_on = error.code == Code::HeaderInvalid;
        sweep.out.failed.get_or_insert(error);
        if !goes_on {
            break;
        }
    }
    let Sweep { out, largest, .. } = sweep;
    if largest > RELEASE_ABOVE {
        // What is committed is committed; should this fail, the next call says so.
        let _ = env.release_memory();
    }
    Ok(out)
}

/// Names of the DBIs to sweep and the number of their entries.
fn dbis(env: &Environment, options: &SweepOptions) -> Result<(Vec<String>, u64)> {
    let txn = env.read()?;
    let mut names = Vec::new();
    let mut total = 0;
    for name in txn.dbi_names() {
        let wanted = if options.shadow { name.starts_with(SHADOW_PREFIX) } else { !name.starts_with(PRIVATE_PREFIX) };
        let dbi = if wanted { txn.dbi(name)? } else { None };
        if let Some(dbi) = dbi.filter(|dbi| dbi.flags & flags::DUPSORT == 0) {
            total += txn.entries(dbi)?;
            names.push(name.to_owned());
        }
    }
    Ok((names, total))
}

struct Sweep<'a> {
    env: &'a Environment,
    options: &'a SweepOptions,
    cancel: &'a Cancel,
    out: Swept,
    total: u64,
    walked: u64,
    /// A slice tries no more than this; less than all once the map was full.
    most: u64,
    /// What the last slices came to, to foresee the commit of the next.
    last: Slice,
    /// When the lock was let go.
    unlocked: Option<Instant>,
    /// Deletions removed by the largest slice.
    largest: u64,
}

#[derive(Clone, Copy, Default)]
struct Slice {
    deleted: u64,
    commit: Duration,
}

/// How far a DBI was walked. It may be dropped and made anew meanwhile.
#[derive(Default)]
struct Walk {
    /// The last key that was looked at; empty at the start.
    position: Vec<u8>,
    shape: Option<Shape>,
}

/// What must not change while keys are kept: liblmdb compares integer keys without looking at their length.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Shape {
    order: KeyOrder,
    integer_bytes: usize,
}

impl Shape {
    fn new(dbi: Dbi, first_key_bytes: usize) -> Self {
        let order = dbi.order();
        Self { order, integer_bytes: if order == KeyOrder::Integer { first_key_bytes } else { 0 } }
    }
}

impl Walk {
    /// The DBI is still of the same kind.
    fn fits(&mut self, shape: Shape) -> bool {
        *self.shape.get_or_insert(shape) == shape
    }
}

/// Keys, each after its length in two bytes.
#[derive(Default)]
struct Keys(Vec<u8>);

impl Keys {
    fn push(&mut self, key: &[u8]) {
        // LMDB's keys have at most 511 bytes.
        self.0.extend_from_slice(&(key.len() as u16).to_ne_bytes());
        self.0.extend_from_slice(key);
    }

    /// The first key and what follows it.
    fn split(keys: &[u8]) -> Option<(&[u8], &[u8])> {
        let (bytes, rest) = keys.split_first_chunk::<2>()?;
        rest.split_at_checked(usize::from(u16::from_ne_bytes(*bytes)))
    }
}

impl Sweep<'_> {
    fn dbi(&mut self, name: &str) -> Result<()> {
        let mut walk = Walk::default();
        loop {
            let mut keys = Keys::default();
            let planned = self.plan(name, &mut walk, &mut keys);
            // What was found before an error is as old as the rest.
            self.apply(name, &mut walk, &keys.0)?;
            if planned? {
                return Ok(());
            }
        }
    }

    /// Collects keys from where the walk stopped. True at the end of the DBI.
    fn plan(&mut self, name: &str, walk: &mut Walk, keys: &mut Keys) -> Result<bool> {
        self.cancel.check()?;
        let txn = self.env.read()?;
        let started = Instant::now();
        let Some(dbi) = txn.dbi(name)? else { return Ok(true) };
        let mut cursor = txn.cursor(dbi)?;
        let Some((first, _)) = cursor.next()? else { return Ok(true) };
        if !walk.fits(Shape::new(dbi, first.len())) {
            return Ok(true);
        }
        let mut record = if walk.position.is_empty() {
            cursor.seek(first)?
        } else {
            match cursor.seek(&walk.position)? {
                Some((key, _)) if key == walk.position => cursor.next()?,
                later => later,
            }
        };
        while let Some((key, stored)) = record {
            let native = header::parse(stored).map_err(|e| e.in_dbi(name).at_key(key))?;
            if self.is_stale(&native) {
                keys.push(key);
            } else {
                self.count(&native);
            }
            self.walked += 1;
            let mut enough = keys.0.len() >= BATCH_BYTES;
            if self.walked.is_multiple_of(PLAN_CHECK_EVERY) {
                self.cancel.check()?;
                self.report();
                enough |= started.elapsed() >= PLAN_DURATION;
            }
            if enough {
                walk.position.clear();
                walk.position.extend_from_slice(key);
                return Ok(false);
            }
            record = cursor.next()?;
        }
        self.report();
        Ok(true)
    }

    /// Removes what is still an old deletion, in as many slices as it takes.
    fn apply(&mut self, name: &str, walk: &mut Walk, keys: &[u8]) -> Result<()> {
        let mut rest = keys;
        while !rest.is_empty() {
            self.pause()?;
            let mut tried = 0;
            match self.slice(name, walk, rest, &mut tried) {
                Ok(left) => {
                    rest = left;
                    self.most = self.most.saturating_mul(2);
                }
                Err(e) if e.code == Code::Lmdb(MDB_MAP_FULL) => {
                    // Another process may have raised the map size; LMDB only notices when it must. Else a deletion needs room for its
                    // copies of the pages: fewer at a time need less, and free some.
                    if self.env.adopt_map_size()? {
                        continue;
                    }
                    if tried <= 1 {
                        return Err(self.explain(e).in_dbi(name));
                    }
                    self.most = (tried / 4).max(1);
                }
                Err(e) => return Err(e.in_dbi(name)),
            }
            self.report();
        }
        Ok(())
    }

    /// One write transaction. Returns the keys that it did not get to; `tried` counts those it did.
    fn slice<'k>(&mut self, name: &str, walk: &mut Walk, keys: &'k [u8], tried: &mut u64) -> Result<&'k [u8]> {
        let mut txn = self.env.write(false, self.cancel)?;
        let locked = Instant::now();
        let Some(dbi) = txn.dbi(name)? else { return Ok(&[]) };
        let mut cursor = txn.cursor(dbi)?;
        let Some(first_key_bytes) = cursor.first_key_bytes()? else { return Ok(&[]) };
        if !walk.fits(Shape::new(dbi, first_key_bytes)) {
            return Ok(&[]);
        }
        let mut rest = keys;
        let mut removed = 0;
        // (entries, deleted) that were written since the plan.
        let mut kept = (0, 0);
        while let Some((key, tail)) = Keys::split(rest) {
            rest = tail;
            *tried += 1;
            if let Some(stored) = cursor.find(key, false)? {
                let native = header::parse(stored).map_err(|e| e.at_key(key))?;
                if self.is_stale(&native) {
                    cursor.delete(key, &[])?;
                    removed += 1;
                } else {
                    kept.0 += 1;
                    kept.1 += u64::from(native.is_deleted());
                }
            }
            if tried.is_multiple_of(SLICE_CHECK_EVERY) {
                self.cancel.check()?;
                if self.must_let_go(locked.elapsed(), removed) {
                    break;
                }
            }
            if *tried >= self.most {
                break;
            }
        }
        drop(cursor);
        let committing = Instant::now();
        txn.commit()?;
        self.unlocked = Some(Instant::now());
        let out = &mut self.out;
        out.longest_lock = out.longest_lock.max(locked.elapsed());
        out.entries += kept.0;
        out.deleted += kept.1;
        out.cleaned += removed;
        if removed > 0 {
            out.transactions += 1;
            // A slow one is forgotten slowly: it is seldom alone.
            let commit = committing.elapsed().max(self.last.commit * 3 / 4);
            self.last = Slice { deleted: removed, commit };
            self.largest = self.largest.max(removed);
        }
        Ok(rest)
    }

    /// A commit takes a fixed time and one for each page: taking all of the last one as proportional errs on the safe side.
    fn must_let_go(&self, held: Duration, removed: u64) -> bool {
        let Some(limit) = self.options.lock_duration else { return false };
        // Half is for what cannot be foreseen: a slower commit, a busy processor.
        let limit = limit / 2;
        if held >= limit {
            return true;
        }
        if removed < MIN_SLICE {
            return false;
        }
        if self.last.deleted == 0 {
            return true;
        }
        let growth = (removed as f64 / self.last.deleted as f64).max(1.0);
        held + self.last.commit.mul_f64(growth) >= limit
    }

    /// Lets others have the lock.
    fn pause(&self) -> Result<()> {
        let Some(since) = self.unlocked else { return Ok(()) };
        let pause = self.options.release_duration.max(MIN_RELEASE);
        loop {
            self.cancel.check()?;
            let left = pause.saturating_sub(since.elapsed());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(PAUSE_STEP));
        }
    }

    fn is_stale(&self, native: &Native<'_>) -> bool {
        native.is_deleted() && native.timestamp < self.options.cutoff
    }

    fn count(&mut self, native: &Native<'_>) {
        self.out.entries += 1;
        self.out.deleted += u64::from(native.is_deleted());
    }

    fn report(&self) {
        self.cancel.report(self.walked, self.out.cleaned, self.total);
    }

    fn explain(&self, mut error: Error) -> Error {
        let bytes = self.env.info().map_or(0, |info| info.map_bytes);
        error.message = format!(
            "the LMDB map of {bytes} bytes is so full that nothing can be removed from it: raise options.map_size (and the \
             application's own setting)"
        );
        error
    }
}
