//! Which schema PowerDNS' data have, as an LMDB or a snapshot tells it.
//!
//! PowerDNS keeps the number in DBI `pdns` under `schemaversion`, as four bytes: in host order without a header up to schema 4, in network
//! order behind a header from 5 on (ext/lmdb-safe and modules/lmdbbackend/lmdbbackend.cc of PowerDNS 4.7 and 4.9). The LMDBs with the
//! records have no such DBI; the names of theirs tell old from new. Anything else has no schema, and nobody asks.

use std::fmt;
use std::path::Path;

use crate::cancel::Cancel;
use crate::error::{Code, Error, Result};
use crate::header;
use crate::lmdb::{ReadTxn, WriteTxn, flags};
use crate::merge::PRIVATE_PREFIX;
use crate::snapshot::decode::{Event, Index, Reader};

const DBI: &str = "pdns";
const KEY: &[u8] = b"schemaversion";
/// DBIs that have been called otherwise since schema 5.
const OLD_NAMES: [&str; 2] = ["domains", "records"];
const NEW_SUFFIX: &str = "_v5";
/// The last schema without headers.
const LAST_OLD: u32 = 4;
/// Records of a snapshot between two looks at the cancel flag.
const CHECK_EVERY: u64 = 4096;

/// A schema of PowerDNS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schema {
    /// Its number.
    pub version: u32,
    /// The number is stored there. Otherwise only names tell: 4 stands for 4 and older, 5 for 5 and newer.
    pub exact: bool,
}

impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let more = match self.exact {
            true => "",
            false if self.version <= LAST_OLD => " or older",
            false => " or newer",
        };
        write!(f, "{}{more}", self.version)
    }
}

impl Schema {
    /// Whether servers of both may share data, as far as is known: 3 and 4 are one format.
    #[must_use]
    pub fn is_same(self, other: Self) -> bool {
        match (self.version <= LAST_OLD, other.version <= LAST_OLD) {
            (false, false) => !self.exact || !other.exact || self.version == other.version,
            (old, other_old) => old == other_old,
        }
    }

    /// Only the number of another one tells whether it is the same; otherwise names are enough.
    #[must_use]
    pub fn needs_number(self) -> bool {
        self.exact && self.version > LAST_OLD
    }

    /// # Errors
    /// [`Code::SchemaMismatch`] when the snapshot's schema is known, and not the same as this one.
    pub fn check(self, snapshot: Option<Self>) -> Result<()> {
        match snapshot {
            Some(found) if !found.is_same(self) => {
                let message = format!("the snapshot has schema {found}, and {self} is wanted");
                Err(Error::new(Code::SchemaMismatch, message))
            }
            _ => Ok(()),
        }
    }
}

/// The number, if this entry of a snapshot is the one that tells it.
pub(crate) fn of_entry(dbi: &str, key: &[u8], value: &[u8], flags: u32) -> Option<Schema> {
    if dbi != DBI || key != KEY || flags & u32::from(header::FLAG_DELETED) != 0 {
        return None;
    }
    number(value).map(|version| Schema { version, exact: true })
}

/// The number in a stored value: with or without a header, in either byte order. Nobody has counted to 65536 yet.
fn number(stored: &[u8]) -> Option<u32> {
    let value = if stored.len() == 4 { stored } else { header::parse(stored).ok()?.value };
    let bytes: [u8; 4] = value.try_into().ok()?;
    let big = u32::from_be_bytes(bytes);
    Some(if big > 0xffff { u32::from_le_bytes(bytes) } else { big })
}

/// What the name of a DBI tells. Where old and new ones are side by side the new ones count: what was left or came from elsewhere is old.
pub(crate) fn by_name(known: Option<Schema>, name: &str) -> Option<Schema> {
    if name.ends_with(NEW_SUFFIX) && !name.starts_with(PRIVATE_PREFIX) {
        Some(Schema { version: LAST_OLD + 1, exact: false })
    } else if known.is_none() && OLD_NAMES.contains(&name) {
        Some(Schema { version: LAST_OLD, exact: false })
    } else {
        known
    }
}

/// A transaction, of either kind.
pub trait View {
    /// Names of all DBIs.
    fn names(&self) -> impl Iterator<Item = &str>;
    /// The value that `pdns` has for the schema's number.
    ///
    /// # Errors
    /// Errors of LMDB.
    fn stored(&self) -> Result<Option<&[u8]>>;
}

/// Implements [`View`].
macro_rules! view {
    ($txn:ident, $cursor:ident) => {
        impl View for $txn<'_> {
            fn names(&self) -> impl Iterator<Item = &str> {
                self.dbi_names()
            }

            fn stored(&self) -> Result<Option<&[u8]>> {
                match self.dbi(DBI)? {
                    Some(dbi) if dbi.flags & (flags::INTEGERKEY | flags::DUPSORT) == 0 => {
                        self.$cursor(dbi)?.find(KEY, false).map_err(|e| e.in_dbi(DBI))
                    }
                    _ => Ok(None),
                }
            }
        }
    };
}

view!(ReadTxn, cursor);
view!(WriteTxn, read_cursor);

/// The schema of an LMDB; `None` when nothing tells one.
///
/// # Errors
/// Errors of LMDB.
pub fn of_lmdb(txn: &impl View) -> Result<Option<Schema>> {
    let stored = txn.stored()?.and_then(number).map(|version| Schema { version, exact: true });
    Ok(stored.or_else(|| txn.names().fold(None, by_name)))
}

/// The schema of a snapshot; `None` when nothing in it tells one. Reads no further than it must: `exact`, to the number (behind the
/// domains, as DBIs are in the order of their names), else to the first DBI whose name tells. What cannot be understood ends the
/// search, too: the merge says what is wrong with it.
///
/// # Errors
/// [`Code::SnapshotCorrupt`]; errors of the file.
pub fn of_snapshot(path: &Path, exact: bool, cancel: &Cancel) -> Result<Option<Schema>> {
    match look(path, exact, None, cancel) {
        Ok(Some(found)) => Ok(found),
        Ok(None) => Ok(look(path, exact, Some(Index::scan(path, cancel)?), cancel)?.flatten()),
        Err(error) => Err(error),
    }
}

/// `None`: begin again with an index.
fn look(path: &Path, exact: bool, index: Option<Index>, cancel: &Cancel) -> Result<Option<Option<Schema>>> {
    let mut reader = Reader::open(path, cancel, index)?;
    let mut found = None;
    let mut current = String::new();
    let mut entries = 0u64;
    loop {
        match reader.next() {
            Ok(Event::Dbi(dbi)) => {
                current.clone_from(&dbi.name);
                found = by_name(found, &dbi.name);
                if !exact && found.is_some() {
                    return Ok(Some(found));
                }
            }
            Ok(Event::Entry { key, value, flags, .. }) => {
                entries += 1;
                if entries.is_multiple_of(CHECK_EVERY) {
                    cancel.check()?;
                }
                if let Some(number) = of_entry(&current, key, value, flags) {
                    return Ok(Some(Some(number)));
                }
            }
            Ok(Event::NeedsIndex) => return Ok(None),
            Ok(Event::End) => return Ok(Some(found)),
            Err(error) if error.code == Code::SnapshotRefused => return Ok(Some(found)),
            Err(error) => return Err(error),
        }
    }
}

/// The schema that an LMDB had when somebody decided what to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected(pub Option<Schema>);

impl Expected {
    /// # Errors
    /// [`Code::SchemaChanged`] when the LMDB has another one by now.
    pub fn check(self, txn: &impl View) -> Result<()> {
        let found = of_lmdb(txn)?;
        if found == self.0 {
            return Ok(());
        }
        let text = |schema: Option<Schema>| schema.map_or_else(|| "none".to_owned(), |schema| schema.to_string());
        let message = format!("the schema of the LMDB has just changed from {} to {}", text(self.0), text(found));
        Err(Error::new(Code::SchemaChanged, message))
    }
}
