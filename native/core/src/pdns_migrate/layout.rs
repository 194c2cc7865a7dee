//! Names, keys and values of PowerDNS's LMDBs before and since schema 5.
//!
//! | old | new | new key | new value |
//! |---|---|---|---|
//! | `records` | `records_v5` | the same | header + old value |
//! | `domains`, `keydata`, `tsig`, `metadata`: id in host order | `*_v5` | id, big endian | header + old value |
//! | `*_0` (MDB_DUPSORT): value = id | `*_v5_0` | u16 (big endian) length of old key + old key + id, big endian | header |
//!
//! Source: databases that PowerDNS 4.7.3 wrote and 4.9.17 and 5.1.5 upgraded, little-endian machine.

use crate::dupsort;
use crate::error::{Code, Error, Result};
use crate::header;
use crate::lmdb::flags;

/// DBI with the schema's number, the number of shards and the UUID.
pub const INFO: &str = "pdns";
pub const VERSION_KEY: &[u8] = b"schemaversion";
pub const SHARDS_KEY: &[u8] = b"shards";

/// First schema with headers.
pub const FIRST_NATIVE: u32 = 5;
/// Oldest and newest schema that are known.
pub const KNOWN: std::ops::RangeInclusive<u32> = 3..=6;

/// How keys are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any bytes; the same in both.
    Records,
    /// Ids.
    Objects,
    /// Name and id.
    Index,
}

/// A DBI in both forms.
#[derive(Debug)]
pub struct Table {
    pub old: &'static str,
    pub new: &'static str,
    pub kind: Kind,
}

impl Table {
    /// Persistent flags of the old DBI.
    pub fn old_flags(&self) -> u32 {
        match self.kind {
            Kind::Records => 0,
            Kind::Objects => flags::INTEGERKEY,
            Kind::Index => flags::DUPSORT | flags::DUPFIXED,
        }
    }
}

const fn table(old: &'static str, new: &'static str, kind: Kind) -> Table {
    Table { old, new, kind }
}

pub static MAIN: [Table; 8] = [
    table("domains", "domains_v5", Kind::Objects),
    table("domains_0", "domains_v5_0", Kind::Index),
    table("keydata", "keydata_v5", Kind::Objects),
    table("keydata_0", "keydata_v5_0", Kind::Index),
    table("metadata", "metadata_v5", Kind::Objects),
    table("metadata_0", "metadata_v5_0", Kind::Index),
    table("tsig", "tsig_v5", Kind::Objects),
    table("tsig_0", "tsig_v5_0", Kind::Index),
];

pub static SHARD: [Table; 1] = [table("records", "records_v5", Kind::Records)];

pub const ID_BYTES: usize = 4;

/// An id of an old DBI.
pub fn old_id(bytes: &[u8]) -> Result<u32> {
    <[u8; ID_BYTES]>::try_from(bytes).map(u32::from_ne_bytes).map_err(|_| wrong_id(bytes))
}

/// An id of a new DBI.
pub fn new_id(bytes: &[u8]) -> Result<u32> {
    <[u8; ID_BYTES]>::try_from(bytes).map(u32::from_be_bytes).map_err(|_| wrong_id(bytes))
}

#[cold]
fn wrong_id(bytes: &[u8]) -> Error {
    Error::new(Code::InvalidArgument, format!("an id has {ID_BYTES} bytes, this one has {}", bytes.len()))
}

/// Replaces the contents of `out` with the new key of an index.
pub fn index_key(out: &mut Vec<u8>, name: &[u8], id: u32) -> Result<()> {
    let length = u16::try_from(name.len()).map_err(|_| Error::new(Code::InvalidArgument, "the key is too long"))?;
    out.clear();
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(name);
    out.extend_from_slice(&id.to_be_bytes());
    Ok(())
}

/// Name and id of the new key of an index.
pub fn split_index_key(key: &[u8]) -> Result<(&[u8], u32)> {
    let wrong = || Error::new(Code::InvalidArgument, "not a key of an index: length, name and id do not fit together");
    let (length, rest) = key.split_first_chunk::<2>().ok_or_else(wrong)?;
    let (name, id) = rest.split_last_chunk::<ID_BYTES>().ok_or_else(wrong)?;
    if name.len() == usize::from(u16::from_be_bytes(*length)) {
        Ok((name, u32::from_be_bytes(*id)))
    } else {
        Err(wrong())
    }
}

/// Replaces the contents of `out` with the key that the shadow of an old index has. False: it cannot have one.
pub fn index_shadow_key(out: &mut Vec<u8>, name: &[u8], id: u32) -> bool {
    dupsort::encode(out, name, &id.to_ne_bytes()).is_ok()
}

/// Name and id of a key in the shadow of an old index. They are not in the value: a deleted entry has none.
pub fn split_index_shadow_key(key: &[u8]) -> Result<(&[u8], u32)> {
    let decoded = dupsort::decode(key);
    let split = decoded.and_then(|decoded| Some((decoded.key, old_id(decoded.prefix).ok()?)));
    split.ok_or_else(|| {
        Error::new(
            Code::InvalidArgument,
            "not a key of an index's shadow: name, separator, id and length do not fit together",
        )
    })
}

/// The number that a value of `pdns` is: with or without a header, in either byte order. Nobody has counted to 65536 yet.
pub fn number(stored: &[u8]) -> Option<u32> {
    let bytes = <[u8; 4]>::try_from(plain(stored)).ok()?;
    let big = u32::from_be_bytes(bytes);
    Some(if big > 0xffff { u32::from_le_bytes(bytes) } else { big })
}

/// A value of `pdns` without the header that it may have: all of its values are shorter than one.
pub fn plain(stored: &[u8]) -> &[u8] {
    if stored.len() < header::HEADER_BYTES {
        return stored;
    }
    header::parse(stored).map_or(stored, |native| native.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_keys_are_as_documented() {
        let mut out = Vec::new();
        index_key(&mut out, b"test\0", 0x0102_0304).unwrap();
        assert_eq!(out, b"\0\x05test\0\x01\x02\x03\x04");
        assert_eq!(split_index_key(&out).unwrap(), (&b"test\0"[..], 0x0102_0304));
        for wrong in [&b""[..], b"\0\x05test\0\x01\x02\x03", b"\0\x04test\0\x01\x02\x03\x04", b"\0\0\x01\x02\x03"] {
            split_index_key(wrong).unwrap_err();
        }
        assert!(index_shadow_key(&mut out, b"test\0", u32::from_ne_bytes([1, 2, 3, 4])));
        assert_eq!(out, b"test\0\0\0\0\0\x01\x02\x03\x04\x05");
        assert_eq!(split_index_shadow_key(&out).unwrap(), (&b"test\0"[..], u32::from_ne_bytes([1, 2, 3, 4])));
        for wrong in [&b""[..], b"test\0\0\0\0\0\x01\x02\x03\x05", b"test\0\0\0\x01\0\x01\x02\x03\x04\x05"] {
            split_index_shadow_key(wrong).unwrap_err();
        }
    }

    #[test]
    fn numbers_are_read_in_both_forms() {
        let native = |number: u8| [vec![0; 24], vec![0, 0, 0, number]].concat();
        for (stored, expected) in [
            (vec![4, 0, 0, 0], Some(4)),
            (vec![64, 0, 0, 0], Some(64)),
            (vec![0, 0, 0, 5], Some(5)),
            (native(6), Some(6)),
            (vec![1; 3], None),
            (vec![0; 24], None),
            (vec![0; 30], None),
        ] {
            assert_eq!(number(&stored), expected, "{stored:?}");
        }
    }
}
