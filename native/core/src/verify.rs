//! Looking at every record without changing any: is the LMDB sound, and do others have the same?

use std::collections::BTreeMap;
use std::path::Path;

use crate::cancel::Cancel;
use crate::digest::{Content, Hasher};
use crate::error::{Code, Error, Result};
use crate::header::{self, Native};
use crate::lmdb::{Dbi, Environment, ReadCursor, ReadTxn, flags};
use crate::merge::{Incoming, KeyCheck, PRIVATE_PREFIX, SHADOW_PREFIX, Verdict};
use crate::snapshot::Meta;
use crate::snapshot::decode::{Event, Index, Reader};

/// Records between two looks at the cancel flag: far below 50 ms of work.
const CHECK_EVERY: u64 = 4096;

/// How to look at an LMDB.
#[derive(Clone, Copy, Debug)]
pub struct VerifyOptions {
    /// The headers are in shadow DBIs.
    pub shadow: bool,
    /// So many faults are described; all are counted.
    pub max_errors: usize,
    /// Timestamps beyond this are counted as of the future, ns since the epoch.
    pub future_after: u64,
}

/// What was found in one DBI.
#[derive(Clone, Debug)]
pub struct VerifiedDbi {
    /// Its name; in shadow mode that of the application's DBI.
    pub name: String,
    /// Persistent flags of the DBI that was read.
    pub flags: u32,
    /// Entries with a valid header.
    pub content: Content,
    /// Of those, with timestamp 0: older than everything.
    pub zero: u64,
    /// Of those, of the future.
    pub future: u64,
    /// The latest timestamp, ns since the epoch; 0 = there is none.
    pub newest: u64,
    /// Entries without a valid header, and one for a DBI of a kind that cannot be read.
    pub invalid: u64,
}

/// What was found in an LMDB.
#[derive(Clone, Debug, Default)]
pub struct Verified {
    /// The transaction that was looked at.
    pub txn_id: u64,
    /// Sorted by name.
    pub dbis: Vec<VerifiedDbi>,
    /// The first faults, each with DBI and key.
    pub errors: Vec<Error>,
}

/// Reads all that is synchronised, in one read transaction.
///
/// # Errors
/// Errors of LMDB. What is wrong with records is in the result.
pub fn verify(env: &Environment, options: VerifyOptions, cancel: &Cancel) -> Result<Verified> {
    verify_all(env, options, cancel).inspect_err(|error| env.heal(error))
}

fn verify_all(env: &Environment, options: VerifyOptions, cancel: &Cancel) -> Result<Verified> {
    let txn = env.read_latest()?;
    let mut out = Verified { txn_id: txn.id(), ..Verified::default() };
    let mut seen = 0u64;
    for (name, dbi) in synchronised(&txn, options.shadow)? {
        let mut found = VerifiedDbi {
            name: name.to_owned(),
            flags: dbi.flags,
            content: Content::default(),
            zero: 0,
            future: 0,
            newest: 0,
            invalid: 0,
        };
        let mut fault = |error: Error, found: &mut VerifiedDbi| {
            found.invalid += 1;
            if out.errors.len() < options.max_errors {
                out.errors.push(error.in_dbi(name));
            }
        };
        if dbi.flags & flags::DUPSORT != 0 {
            fault(Error::new(Code::DbiUnsupported, "a DBI with MDB_DUPSORT cannot have headers"), &mut found);
            out.dbis.push(found);
            continue;
        }
        let mut hasher = Hasher::new(name);
        let mut cursor = txn.cursor(dbi)?;
        while let Some((key, stored)) = cursor.next().map_err(|e| e.in_dbi(name))? {
            match header::parse(stored) {
                Ok(native) => {
                    hasher.add(key, native.timestamp, native.flags, native.value);
                    found.zero += u64::from(native.timestamp == 0);
                    found.future += u64::from(native.timestamp > options.future_after);
                    found.newest = found.newest.max(native.timestamp);
                }
                Err(error) => fault(error.at_key(key), &mut found),
            }
            seen += 1;
            if seen.is_multiple_of(CHECK_EVERY) {
                cancel.check()?;
                cancel.report(seen, seen, 0);
            }
        }
        found.content = hasher.content();
        out.dbis.push(found);
    }
    env.check_unshared()?;
    Ok(out)
}

/// The DBIs whose values have headers, under the application's names.
fn synchronised<'t>(txn: &'t ReadTxn<'_>, shadow: bool) -> Result<Vec<(&'t str, Dbi)>> {
    let mut dbis = Vec::new();
    for stored in txn.dbi_names() {
        let name = if shadow {
            stored.strip_prefix(SHADOW_PREFIX)
        } else {
            (!stored.starts_with(PRIVATE_PREFIX)).then_some(stored)
        };
        if let (Some(name), Some(dbi)) = (name, txn.dbi(stored)?) {
            dbis.push((name, dbi));
        }
    }
    Ok(dbis)
}

/// How a snapshot is compared.
#[derive(Clone, Copy, Debug, Default)]
pub struct CompareOptions {
    /// The headers are in shadow DBIs.
    pub shadow: bool,
    /// Older deletions are no loss where they are missing, ns; 0 = all are.
    pub deleted_cutoff: u64,
}

/// What of a snapshot's DBI an LMDB has.
#[derive(Clone, Debug)]
pub struct ComparedDbi {
    /// Its name.
    pub name: String,
    /// The snapshot's.
    pub content: Content,
    /// Entries that a merge would write and the application would notice: new ones, later ones, deletions of what is there.
    pub missing: u64,
    /// Deletions that a merge would write, of what is not there anyway.
    pub missing_deletions: u64,
    /// Entries of the LMDB that are later than the snapshot's, or that it does not have.
    pub newer: u64,
}

/// A snapshot beside an LMDB.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// The transaction of the LMDB that was looked at.
    pub txn_id: u64,
    /// The snapshot's Meta.
    pub meta: Meta,
    /// Its formatVersion.
    pub format_version: u32,
    /// Its compatVersion.
    pub compat_version: u32,
    /// DBIs of both, sorted by name.
    pub dbis: Vec<ComparedDbi>,
}

/// Compares a snapshot with the LMDB, in one read transaction.
///
/// # Errors
/// [`Code::SnapshotCorrupt`] and [`Code::SnapshotRefused`] as a merge; errors of LMDB.
pub fn compare(env: &Environment, path: &Path, options: CompareOptions, cancel: &Cancel) -> Result<Comparison> {
    let attempt = |index| Comparer { env, options, cancel, dbis: BTreeMap::new(), seen: 0 }.run(path, index);
    // Fields may come in any order; see the merge.
    let compared = match attempt(None) {
        Ok(None) => attempt(Some(Index::scan(path, cancel)?)),
        other => other,
    };
    compared
        .inspect_err(|error| env.heal(error))?
        .ok_or_else(|| Error::refused("the order of the snapshot's fields cannot be understood"))
}

struct Comparer<'a> {
    env: &'a Environment,
    options: CompareOptions,
    cancel: &'a Cancel,
    dbis: BTreeMap<String, Counts>,
    seen: u64,
}

/// Of one DBI.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    content: Content,
    missing: u64,
    missing_deletions: u64,
    /// Entries of the LMDB that the snapshot has, too, or later.
    not_newer: u64,
}

/// The DBI whose entries come.
struct Current<'t> {
    name: String,
    format_version: u32,
    hasher: Hasher,
    keys: KeyCheck,
    cursor: Option<ReadCursor<'t>>,
    counts: Counts,
}

impl Comparer<'_> {
    /// `None`: begin again with an index.
    fn run(mut self, path: &Path, index: Option<Index>) -> Result<Option<Comparison>> {
        let txn = self.env.read_latest()?;
        let mut reader = Reader::open(path, self.cancel, index)?;
        let mut current: Option<Current<'_>> = None;
        loop {
            match reader.next()? {
                Event::Dbi(head) => {
                    let name = head.name.clone();
                    self.keep(current.take());
                    if !name.starts_with(PRIVATE_PREFIX) {
                        current = Some(self.begin(&txn, name, reader.format_version())?);
                    }
                }
                Event::Entry { key, value, timestamp, flags } => {
                    if let Some(current) = &mut current {
                        let incoming = Incoming::new(key, value, timestamp, flags, current.format_version);
                        current
                            .look(&incoming, self.options.deleted_cutoff)
                            .map_err(|e| e.in_dbi(current.name.as_str()))?;
                    }
                    self.seen += 1;
                    if self.seen.is_multiple_of(CHECK_EVERY) {
                        self.cancel.check()?;
                        self.cancel.report(self.seen, self.seen, 0);
                    }
                }
                Event::NeedsIndex => return Ok(None),
                Event::End => break,
            }
        }
        self.keep(current.take());
        self.finish(&txn, &reader).map(Some)
    }

    fn begin<'t>(&self, txn: &'t ReadTxn<'_>, name: String, format_version: u32) -> Result<Current<'t>> {
        let local = if self.options.shadow { txn.dbi(&format!("{SHADOW_PREFIX}{name}"))? } else { txn.dbi(&name)? };
        let local = local.filter(|dbi| dbi.flags & flags::DUPSORT == 0);
        let mut keys = KeyCheck::default();
        let mut cursor = None;
        if let Some(dbi) = local {
            let mut walk = txn.cursor(dbi)?;
            // Integer keys must be as long as those that are there: LMDB does not look.
            let first = walk.next().map_err(|e| e.in_dbi(name.as_str()))?.map(|(key, _)| key.len());
            keys = KeyCheck::new(dbi.order(), first);
            // An empty DBI has nothing to be found.
            cursor = first.map(|_| walk);
        }
        let counts = Counts::default();
        Ok(Current { hasher: Hasher::new(&name), name, format_version, keys, cursor, counts })
    }

    /// A DBI may come in several messages.
    fn keep(&mut self, current: Option<Current<'_>>) {
        let Some(Current { name, hasher, counts, .. }) = current else { return };
        let sum = self.dbis.entry(name).or_default();
        sum.content += hasher.content();
        sum.missing += counts.missing;
        sum.missing_deletions += counts.missing_deletions;
        sum.not_newer += counts.not_newer;
    }

    fn finish(mut self, txn: &ReadTxn<'_>, reader: &Reader) -> Result<Comparison> {
        let mut local = BTreeMap::new();
        for (name, dbi) in synchronised(txn, self.options.shadow)? {
            local.insert(name, txn.entries(dbi)?);
            self.dbis.entry(name.to_owned()).or_default();
        }
        let dbis = self.dbis.into_iter().map(|(name, counts)| ComparedDbi {
            newer: local.get(name.as_str()).map_or(0, |entries| entries.saturating_sub(counts.not_newer)),
            name,
            content: counts.content,
            missing: counts.missing,
            missing_deletions: counts.missing_deletions,
        });
        self.env.check_unshared()?;
        Ok(Comparison {
            txn_id: txn.id(),
            meta: reader.meta().clone(),
            format_version: reader.format_version(),
            compat_version: reader.compat_version(),
            dbis: dbis.collect(),
        })
    }
}

impl Current<'_> {
    #[inline]
    fn look(&mut self, incoming: &Incoming<'_>, deleted_cutoff: u64) -> Result<()> {
        self.hasher.add(incoming.key, incoming.timestamp, incoming.flags, incoming.value);
        let ascending = self.keys.check(incoming.key)?;
        let stored = match &mut self.cursor {
            Some(cursor) => cursor.find(incoming.key, ascending)?,
            None => None,
        };
        let local = stored.map(header::parse);
        let was_live = match &local {
            // Whoever merges meets an error here; the look at the LMDB itself tells about it.
            Some(Err(_)) => true,
            Some(Ok(native)) => !native.is_deleted(),
            None => false,
        };
        let wins = matches!(local, Some(Err(_))) || incoming.against(stored, deleted_cutoff)? != Verdict::Keep;
        let counts = &mut self.counts;
        if wins {
            if was_live || !incoming.is_deleted() { counts.missing += 1 } else { counts.missing_deletions += 1 }
        }
        counts.not_newer += match local {
            Some(Ok(native)) => u64::from(wins || is_same(incoming, &native)),
            Some(Err(_)) => 1,
            None => 0,
        };
        Ok(())
    }
}

fn is_same(incoming: &Incoming<'_>, local: &Native<'_>) -> bool {
    incoming.timestamp == local.timestamp
        && incoming.flags == local.flags
        && (incoming.is_deleted() || incoming.value == local.value)
}
