//! Domains that a PowerDNS database has twice: with schema 5 (PowerDNS 4.8 and 4.9), two instances may add one domain at the same time,
//! each under a number of its own, and some versions then fail to load it.
//!
//! The index `domains_v5_0` has keys of length (2 bytes, big endian), name, number (4 bytes, big endian) and values that are only a
//! header. A name is its labels in reverse order, in lower case, each with a zero byte after it: `example\0www\0`.
//! Seen in databases of PowerDNS 4.9; the schema's number is in DBI `pdns`, key `schemaversion`, 4 bytes, big endian.

use std::collections::BTreeSet;

use crate::cancel::Cancel;
use crate::error::{Code, Error, Result};
use crate::header::{self, FLAG_DELETED};
use crate::lmdb::{Environment, ReadTxn};

const INFO_DBI: &str = "pdns";
const VERSION_KEY: &[u8] = b"schemaversion";
const SCHEMA: u32 = 5;
const INDEX_DBI: &str = "domains_v5_0";
/// Records between two looks at the flag that stops the work.
const BATCH: u64 = 4096;
/// Longest name on the wire, its root label included (RFC 1035, 2.3.4).
const MAX_NAME_BYTES: usize = 255;

/// One of several entries of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duplicate {
    /// The domain, for people.
    pub domain: String,
    /// Number of the oldest entry, which stays.
    pub kept_id: u32,
    /// Its timestamp, ns since the epoch.
    pub kept_timestamp: u64,
    /// Number of this one.
    pub id: u32,
    /// Its timestamp.
    pub timestamp: u64,
    /// What it is, or would be, renamed to; `None` when that would be too long for a domain.
    pub new_name: Option<String>,
}

/// What was found and done.
#[derive(Clone, Debug, Default)]
pub struct Fixed {
    /// In the order of the index.
    pub duplicates: Vec<Duplicate>,
    /// Domains that a run, this one included, has renamed and that are still there; each once.
    pub renamed: Vec<String>,
    /// Live entries of the index.
    pub domains: u64,
    /// The transaction that renamed; `None` when nothing was.
    pub txn_id: Option<u64>,
}

/// Finds duplicates and, with `rename`, marks the index entry of all but the oldest as deleted and adds one under a name of its own
/// (`example` becomes `example.dup-NUMBER.invalid`). Only then, and only if there are any, the lock is taken.
/// `now` is the new entries' timestamp, ns since the epoch.
///
/// # Errors
/// [`Code::InvalidArgument`] when this is not PowerDNS's main database with schema 5; [`Code::HeaderInvalid`] with DBI and key for an
/// entry that is none. Nothing is written then.
pub fn fix_duplicate_domains(env: &Environment, rename: bool, now: u64, cancel: &Cancel) -> Result<Fixed> {
    let found = scan(&env.read_latest()?, cancel)?.0;
    if !rename || found.duplicates.iter().all(|duplicate| duplicate.new_name.is_none()) {
        return Ok(found);
    }
    let mut txn = env.write(false, cancel)?;
    // Begun while we hold the lock: nobody can commit in between, so this is what the transaction changes.
    let view = env.read()?;
    let (mut found, changes) = scan(&view, cancel)?;
    let txn_id = txn.id();
    let index = txn.dbi(INDEX_DBI)?.ok_or_else(|| foreign(&format!("there is no DBI {INDEX_DBI}")))?;
    let mut cursor = txn.cursor(index)?;
    let mut stored = Vec::new();
    let mut renamed = BTreeSet::from_iter(std::mem::take(&mut found.renamed));
    for Change { old_key, timestamp, new_key, new_name } in &changes {
        // Newer than what it marks, whatever the clock says: else other instances would not take it.
        header::build(&mut stored, now.max(timestamp.saturating_add(1)), txn_id, FLAG_DELETED, &[], false);
        cursor.put(old_key, &stored, false).map_err(|e| e.in_dbi(INDEX_DBI).at_key(old_key))?;
        header::build(&mut stored, now, txn_id, 0, &[], false);
        cursor.put(new_key, &stored, false).map_err(|e| e.in_dbi(INDEX_DBI).at_key(new_key))?;
        renamed.insert(new_name.clone());
    }
    drop(cursor);
    drop(view);
    txn.commit()?;
    found.renamed = renamed.into_iter().collect();
    found.txn_id = (!changes.is_empty()).then_some(txn_id);
    Ok(found)
}

/// One index entry to be replaced.
struct Change {
    old_key: Vec<u8>,
    timestamp: u64,
    new_key: Vec<u8>,
    new_name: String,
}

/// A live entry of the index.
#[derive(Clone, Copy)]
struct Entry<'t> {
    key: &'t [u8],
    domain: &'t [u8],
    id: u32,
    timestamp: u64,
}

fn scan(view: &ReadTxn<'_>, cancel: &Cancel) -> Result<(Fixed, Vec<Change>)> {
    check_schema(view)?;
    let index = view.dbi(INDEX_DBI)?.ok_or_else(|| foreign(&format!("there is no DBI {INDEX_DBI}")))?;
    let (mut found, mut changes, mut renamed) = (Fixed::default(), Vec::new(), BTreeSet::new());
    let mut cursor = view.cursor(index)?;
    // All entries of one domain: they follow each other.
    let mut same: Vec<Entry<'_>> = Vec::new();
    let mut seen = 0_u64;
    while let Some((key, stored)) = cursor.next()? {
        seen += 1;
        if seen.is_multiple_of(BATCH) {
            cancel.check()?;
        }
        let Some(entry) = parse(key, stored).map_err(|e| e.in_dbi(INDEX_DBI).at_key(key))? else { continue };
        found.domains += 1;
        let name = display(entry.domain);
        if name.ends_with(".invalid") && name.contains(".dup-") {
            renamed.insert(name);
        }
        if same.first().is_some_and(|first| first.domain != entry.domain) {
            settle(&same, &mut found, &mut changes);
            same.clear();
        }
        same.push(entry);
    }
    settle(&same, &mut found, &mut changes);
    found.renamed = renamed.into_iter().collect();
    Ok((found, changes))
}

/// Of the entries of one domain the oldest stays, of equally old ones the first.
fn settle(same: &[Entry<'_>], found: &mut Fixed, changes: &mut Vec<Change>) {
    let Some(oldest) = same.iter().min_by_key(|entry| entry.timestamp) else { return };
    for entry in same.iter().filter(|entry| entry.id != oldest.id) {
        let mut new_domain = format!("invalid\0dup-{}\0", entry.id).into_bytes();
        new_domain.extend_from_slice(entry.domain);
        // With a length byte for each zero byte, and one for the root.
        let new_name = (new_domain.len() < MAX_NAME_BYTES).then(|| display(&new_domain));
        if let Some(new_name) = &new_name {
            changes.push(Change {
                old_key: entry.key.to_vec(),
                timestamp: entry.timestamp,
                new_key: index_key(&new_domain, entry.id),
                new_name: new_name.clone(),
            });
        }
        found.duplicates.push(Duplicate {
            domain: display(entry.domain),
            kept_id: oldest.id,
            kept_timestamp: oldest.timestamp,
            id: entry.id,
            timestamp: entry.timestamp,
            new_name,
        });
    }
}

fn index_key(domain: &[u8], id: u32) -> Vec<u8> {
    let length = u16::try_from(domain.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes()[..], domain, &id.to_be_bytes()].concat()
}

/// `None` for a deleted entry.
fn parse<'t>(key: &'t [u8], stored: &[u8]) -> Result<Option<Entry<'t>>> {
    let native = header::parse(stored)?;
    if native.is_deleted() {
        return Ok(None);
    }
    let parts = key
        .split_first_chunk::<2>()
        .and_then(|(length, rest)| rest.split_last_chunk::<4>().map(|(domain, id)| (length, domain, id)))
        .filter(|(length, domain, _)| usize::from(u16::from_be_bytes(**length)) == domain.len());
    let Some((_, domain, id)) = parts else {
        return Err(foreign("a key of the index of domains has another length than it says"));
    };
    Ok(Some(Entry { key, domain, id: u32::from_be_bytes(*id), timestamp: native.timestamp }))
}

fn check_schema(view: &ReadTxn<'_>) -> Result<()> {
    let Some(info) = view.dbi(INFO_DBI)? else { return Err(foreign(&format!("there is no DBI {INFO_DBI}"))) };
    let Some(stored) = view.cursor(info)?.find(VERSION_KEY, false)? else {
        return Err(foreign(&format!("DBI {INFO_DBI} has no schemaversion")));
    };
    if stored.len() == 4 {
        return Err(foreign("its schemaversion has no header: the schema is older than 5"));
    }
    let native = header::parse(stored).map_err(|e| e.in_dbi(INFO_DBI).at_key(VERSION_KEY))?;
    match <[u8; 4]>::try_from(native.value).map(u32::from_be_bytes) {
        Ok(SCHEMA) => Ok(()),
        Ok(version) => Err(foreign(&format!("its schema is {version}"))),
        Err(_) => Err(foreign(&format!("its schemaversion has {} bytes", native.value.len()))),
    }
}

fn foreign(why: &str) -> Error {
    let text = format!("this is not the main database of a PowerDNS with schema {SCHEMA} (4.8, 4.9): {why}");
    Error::new(Code::InvalidArgument, text)
}

/// As in a zone file, without the dot at the end.
fn display(domain: &[u8]) -> String {
    let labels = domain.split(|byte| *byte == 0).filter(|label| !label.is_empty());
    let mut text = String::new();
    for label in labels.rev() {
        if !text.is_empty() {
            text.push('.');
        }
        for &byte in label {
            match byte {
                b'.' | b'\\' | b'"' | b'(' | b')' | b';' | b'@' | b'$' => {
                    text.push('\\');
                    text.push(char::from(byte));
                }
                33..=126 => text.push(char::from(byte)),
                _ => text.push_str(&format!("\\{byte:03}")),
            }
        }
    }
    if text.is_empty() { ".".to_owned() } else { text }
}
