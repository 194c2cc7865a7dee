//! The native value header: 24 bytes, big endian, in front of every value of a native LMDB.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | timestamp, ns since the Unix epoch |
//! | 8 | 8 | id of the LMDB transaction that wrote it (local, never in a snapshot) |
//! | 16 | 1 | version, 0 |
//! | 17 | 1 | flags |
//! | 18 | 4 | reserved |
//! | 22 | 2 | number of 8-byte extension blocks that follow |
//!
//! Source: the header layout of PowerDNS Lightning Stream 1.0, which PowerDNS Authoritative 4.8+ writes.

use crate::error::{Code, Error, Result};

/// Bytes of a header without extension blocks.
pub const HEADER_BYTES: usize = 24;
/// Bytes of one extension block.
pub const EXTENSION_BLOCK_BYTES: usize = 8;
/// Flag: the entry is deleted and its value empty.
pub const FLAG_DELETED: u8 = 0x01;
/// Flags that are carried by snapshots; all others are ignored and cleared.
pub const SYNCED_FLAGS: u8 = FLAG_DELETED;

/// A value taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Native<'a> {
    /// ns since the Unix epoch, unsigned.
    pub timestamp: u64,
    /// Transaction that wrote it.
    pub txn_id: u64,
    /// The synced flags.
    pub flags: u8,
    /// The application's value.
    pub value: &'a [u8],
}

impl Native<'_> {
    /// True when flagged deleted.
    #[must_use]
    pub fn is_deleted(&self) -> bool {
        self.flags & FLAG_DELETED != 0
    }
}

/// Big-endian number at `offset`; the caller has checked the length.
#[inline]
fn number(bytes: &[u8], offset: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_be_bytes(field)
}

/// Takes a stored value apart.
///
/// # Errors
/// [`Code::HeaderInvalid`] when it is shorter than its header says or has another version.
#[inline]
pub fn parse(stored: &[u8]) -> Result<Native<'_>> {
    if stored.len() < HEADER_BYTES {
        return Err(invalid(format!("value of {} bytes is too short for a header of {HEADER_BYTES}", stored.len())));
    }
    if stored[16] != 0 {
        return Err(invalid(format!("header version {} is not supported", stored[16])));
    }
    let blocks = usize::from(u16::from_be_bytes([stored[22], stored[23]]));
    let header_bytes = HEADER_BYTES + EXTENSION_BLOCK_BYTES * blocks;
    if stored.len() < header_bytes {
        return Err(invalid(format!(
            "value of {} bytes is too short for a header with {blocks} extension blocks",
            stored.len()
        )));
    }
    Ok(Native {
        timestamp: number(stored, 0),
        txn_id: number(stored, 8),
        flags: stored[17] & SYNCED_FLAGS,
        value: &stored[header_bytes..],
    })
}

#[cold]
fn invalid(detail: String) -> Error {
    Error::new(Code::HeaderInvalid, format!("a value in the LMDB has no valid header: {detail}"))
}

/// Replaces the contents of `out` with a stored value. A deleted entry has no value. `padding_block` adds one zero extension block,
/// a test aid for applications.
#[inline]
pub fn build(out: &mut Vec<u8>, timestamp: u64, txn_id: u64, flags: u8, value: &[u8], padding_block: bool) {
    let flags = flags & SYNCED_FLAGS;
    out.clear();
    out.extend_from_slice(&timestamp.to_be_bytes());
    out.extend_from_slice(&txn_id.to_be_bytes());
    out.extend_from_slice(&[0, flags, 0, 0, 0, 0, 0, u8::from(padding_block)]);
    if padding_block {
        out.extend_from_slice(&[0; EXTENSION_BLOCK_BYTES]);
    }
    if flags & FLAG_DELETED == 0 {
        out.extend_from_slice(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_the_documented_one() {
        let mut out = Vec::new();
        build(&mut out, 0x0102_0304_0506_0708, 0x1112_1314_1516_1718, 0xfe, b"app", false);
        let expected: &[u8] = &[
            1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0, 0, 0, 0, 0, 0, 0, 0, b'a', b'p',
            b'p',
        ];
        assert_eq!(out, expected);
        build(&mut out, 1, 2, FLAG_DELETED, b"gone", true);
        assert_eq!(out.len(), 32);
        assert_eq!(out[17], 1);
        assert_eq!(out[23], 1);
    }

    #[test]
    fn extension_blocks_and_reserved_bytes_are_skipped() {
        let mut stored = vec![0; 40];
        stored[7] = 9;
        stored[17] = 0xff;
        stored[18..22].fill(0xee);
        stored[23] = 2;
        stored.extend_from_slice(b"v");
        let native = parse(&stored).unwrap();
        assert_eq!(native, Native { timestamp: 9, txn_id: 0, flags: 1, value: b"v" });
    }

    #[test]
    fn short_and_foreign_values_are_errors() {
        assert_eq!(parse(&[0; 23]).unwrap_err().code, Code::HeaderInvalid);
        let mut stored = vec![0; 31];
        stored[23] = 1;
        assert!(parse(&stored).unwrap_err().message.contains("extension"));
        stored[16] = 1;
        assert!(parse(&stored).unwrap_err().message.contains("version 1"));
    }
}
