//! Gives the records of one DBI the newer timestamps that another DBI has for the same keys: for an application that moves its
//! records to a new DBI with new headers, while the old one, or its shadow, knows since when they are as they are.

use std::cmp::Ordering;

use crate::cancel::Cancel;
use crate::error::{Code, Error, Result};
use crate::header::{self, FLAG_DELETED};
use crate::lmdb::{Dbi, Environment, KeyOrder, ReadTxn, flags};

/// Records between two looks at the flag that stops the work.
const BATCH: u64 = 4096;
/// Bytes of a timestamp; before Lightning Stream 0.3 it was the whole header.
const TIMESTAMP_BYTES: usize = 8;

/// From where to where.
#[derive(Clone, Debug)]
pub struct Migration<'a> {
    /// DBI that has the timestamps: values with a header, or with only a timestamp before them.
    pub source: &'a str,
    /// DBI that gets them; every value has a header.
    pub destination: &'a str,
    /// Deletions of the source whose key the destination lacks are added to it.
    pub add_deletions: bool,
    /// A source that does not exist is no error.
    pub ignore_missing_source: bool,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Migrated {
    /// There is no source, and that is no error.
    pub source_missing: bool,
    /// Records that got a newer timestamp.
    pub updated: u64,
    /// Deletions added.
    pub added_deletions: u64,
    /// The transaction that wrote; `None` when nothing had to be written.
    pub txn_id: Option<u64>,
}

/// Copies timestamps by key, where the source's is newer; values are not looked at. One transaction does all of it, and none is begun
/// when there is nothing to write.
///
/// # Errors
/// [`Code::InvalidArgument`] for DBIs that are missing, the same, or of kinds whose keys cannot be compared;
/// [`Code::HeaderInvalid`] with DBI and key for a value that is too short. Nothing is written then.
pub fn migrate_timestamps(env: &Environment, migration: &Migration<'_>, cancel: &Cancel) -> Result<Migrated> {
    if migration.source == migration.destination {
        return Err(Error::new(Code::InvalidArgument, "source and destination are the same DBI"));
    }
    let missing = Migrated { source_missing: true, ..Migrated::default() };
    let plan = {
        let view = env.read_latest()?;
        let Some(dbis) = dbis(&view, migration)? else { return Ok(missing) };
        walk(&view, dbis, migration.add_deletions, 0, cancel, |_, _| Ok(()))?
    };
    if plan == Migrated::default() {
        return Ok(plan);
    }
    let mut txn = env.write(false, cancel)?;
    // Begun while we hold the lock: nobody can commit in between, so this is what the transaction changes.
    let view = env.read()?;
    let Some(dbis) = dbis(&view, migration)? else { return Ok(missing) };
    let txn_id = txn.id();
    let target = txn.dbi(migration.destination)?.ok_or_else(|| no_dbi(&view, migration.destination))?;
    let mut cursor = txn.cursor(target)?;
    let mut done = walk(&view, dbis, migration.add_deletions, txn_id, cancel, |key, stored| {
        cursor.put(key, stored, false).map_err(|e| e.in_dbi(migration.destination).at_key(key))
    })?;
    drop(cursor);
    drop(view);
    txn.commit()?;
    if done != Migrated::default() {
        done.txn_id = Some(txn_id);
    }
    Ok(done)
}

/// A DBI and its name.
#[derive(Clone, Copy)]
struct Named<'a> {
    name: &'a str,
    dbi: Dbi,
}

/// Source and destination; `None` when there is no source and that is no error.
fn dbis<'a>(view: &ReadTxn<'_>, migration: &Migration<'a>) -> Result<Option<(Named<'a>, Named<'a>)>> {
    let destination = named(view, migration.destination)?;
    let source = match (view.dbi(migration.source)?, migration.ignore_missing_source) {
        (None, true) => return Ok(None),
        _ => named(view, migration.source)?,
    };
    if source.dbi.order() != destination.dbi.order() {
        let text = format!(
            "the keys of {} and {} are of different kinds (flags 0x{:02x} and 0x{:02x})",
            source.name, destination.name, source.dbi.flags, destination.dbi.flags
        );
        return Err(Error::new(Code::InvalidArgument, text));
    }
    Ok(Some((source, destination)))
}

fn named<'a>(view: &ReadTxn<'_>, name: &'a str) -> Result<Named<'a>> {
    let dbi = view.dbi(name)?.ok_or_else(|| no_dbi(view, name))?;
    if dbi.flags & flags::DUPSORT != 0 {
        return Err(Error::new(Code::DbiUnsupported, "a DBI with MDB_DUPSORT has no timestamps").in_dbi(name));
    }
    Ok(Named { name, dbi })
}

fn no_dbi(view: &ReadTxn<'_>, name: &str) -> Error {
    let names: Vec<_> = view.dbi_names().collect();
    let there =
        if names.is_empty() { "the LMDB is empty".to_owned() } else { format!("there is {}", names.join(", ")) };
    Error::new(Code::InvalidArgument, format!("there is no DBI {name}; {there}"))
}

/// Walks both DBIs side by side and hands each record to be written to `write`, in the order of the keys.
fn walk(
    view: &ReadTxn<'_>,
    (source, destination): (Named<'_>, Named<'_>),
    add_deletions: bool,
    txn_id: u64,
    cancel: &Cancel,
    mut write: impl FnMut(&[u8], &[u8]) -> Result<()>,
) -> Result<Migrated> {
    let order = source.dbi.order();
    let total = view.entries(source.dbi)? + view.entries(destination.dbi)?;
    let mut done = Migrated::default();
    let (mut sources, mut destinations) = (view.cursor(source.dbi)?, view.cursor(destination.dbi)?);
    let (mut from, mut to) = (sources.next()?, destinations.next()?);
    let (mut seen, mut stored) = (0_u64, Vec::new());
    loop {
        let side = match (from, to) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((a, _)), Some((b, _))) if order == KeyOrder::Integer && a.len() != b.len() => {
                let text = format!("the keys of {} and {} differ in size", source.name, destination.name);
                return Err(Error::new(Code::InvalidArgument, text));
            }
            (Some((a, _)), Some((b, _))) => order.compare(a, b),
        };
        let has = (side != Ordering::Greater).then_some(from).flatten();
        let gets = (side != Ordering::Less).then_some(to).flatten();
        let deletion = match has {
            Some((key, value)) if add_deletions => is_deletion(value).map_err(|e| e.in_dbi(source.name).at_key(key))?,
            _ => false,
        };
        let local = match gets {
            Some((key, value)) => {
                Some(header::parse(value).map_err(|e| e.in_dbi(destination.name).at_key(key))?.timestamp)
            }
            None => None,
        };
        match (has, gets, local) {
            (Some((key, value)), Some((_, old)), Some(local)) => {
                let newer = timestamp(value).map_err(|e| e.in_dbi(source.name).at_key(key))?;
                if newer > local {
                    stored.clear();
                    stored.extend_from_slice(&newer.to_be_bytes());
                    stored.extend_from_slice(&txn_id.to_be_bytes());
                    stored.extend_from_slice(&old[stored.len()..]);
                    write(key, &stored)?;
                    done.updated += 1;
                }
            }
            (Some((key, value)), None, _) if deletion => {
                header::build(&mut stored, timestamp(value)?, txn_id, FLAG_DELETED, &[], false);
                write(key, &stored)?;
                done.added_deletions += 1;
            }
            _ => {}
        }
        if has.is_some() {
            from = sources.next()?;
            seen += 1;
        }
        if gets.is_some() {
            to = destinations.next()?;
            seen += 1;
        }
        if seen % BATCH < 2 {
            cancel.check()?;
            cancel.report(seen, seen, total);
        }
    }
    Ok(done)
}

fn timestamp(stored: &[u8]) -> Result<u64> {
    stored.first_chunk::<TIMESTAMP_BYTES>().map(|bytes| u64::from_be_bytes(*bytes)).ok_or_else(|| {
        let text = format!("value of {} bytes is too short for a timestamp of {TIMESTAMP_BYTES}", stored.len());
        Error::new(Code::HeaderInvalid, text)
    })
}

/// Of the old header a deletion was the timestamp alone.
fn is_deletion(stored: &[u8]) -> Result<bool> {
    if stored.len() == TIMESTAMP_BYTES {
        return Ok(true);
    }
    let native = header::parse(stored)?;
    if native.is_deleted() && !native.value.is_empty() {
        return Err(Error::new(Code::HeaderInvalid, "a deleted record has a value"));
    }
    Ok(native.is_deleted())
}
