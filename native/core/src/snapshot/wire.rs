//! The protobuf wire format, as far as snapshots need it: field numbers, varints, limits.
//!
//! Encoding: <https://protobuf.dev/programming-guides/encoding/>.

use std::ops::Range;

/// Format that is written; what it adds over 1 and 2: flags per entry, the application's DBI flags, transforms.
pub const FORMAT_VERSION: u32 = 3;
/// Oldest reader that copes with what is written.
pub const COMPAT_VERSION: u32 = 1;

/// Longest entry message (key, value and their framing) that is read, in bytes. It bounds the reader's memory, because an entry
/// is handed over in one piece.
pub const MAX_ENTRY_BYTES: u64 = 64 << 20;
/// Longest Meta message that is read, in bytes.
pub const MAX_META_BYTES: u64 = 1 << 20;
/// Longest DBI name and transform that are read, in bytes; liblmdb takes names of up to 511.
pub const MAX_TEXT_BYTES: u64 = 1024;
/// Most DBI messages in one snapshot; bounds the memory of an index.
pub const MAX_DBI_MESSAGES: usize = 16_384;

pub(super) const WIRE_VARINT: u64 = 0;
pub(super) const WIRE_FIXED64: u64 = 1;
pub(super) const WIRE_BYTES: u64 = 2;
pub(super) const WIRE_FIXED32: u64 = 5;

/// A field's tag: number and wire type.
pub(super) const fn tag(field: u64, wire_type: u64) -> u64 {
    field << 3 | wire_type
}

pub(super) const SNAPSHOT_FORMAT_VERSION: u64 = tag(1, WIRE_VARINT);
pub(super) const SNAPSHOT_META: u64 = tag(2, WIRE_BYTES);
pub(super) const SNAPSHOT_DATABASES: u64 = tag(3, WIRE_BYTES);
pub(super) const SNAPSHOT_COMPAT_VERSION: u64 = tag(4, WIRE_VARINT);
pub(super) const SNAPSHOT_FIELDS: &[(u64, &str)] = &[
    (SNAPSHOT_FORMAT_VERSION, "formatVersion"),
    (SNAPSHOT_META, "meta"),
    (SNAPSHOT_DATABASES, "databases"),
    (SNAPSHOT_COMPAT_VERSION, "compatVersion"),
];

pub(super) const META_GENERATION_ID: u64 = tag(1, WIRE_BYTES);
pub(super) const META_INSTANCE_ID: u64 = tag(2, WIRE_BYTES);
pub(super) const META_HOSTNAME: u64 = tag(3, WIRE_BYTES);
pub(super) const META_LMDB_TXN_ID: u64 = tag(4, WIRE_VARINT);
pub(super) const META_TIMESTAMP_NANO: u64 = tag(5, WIRE_FIXED64);
pub(super) const META_DATABASE_NAME: u64 = tag(7, WIRE_BYTES);
pub(super) const META_FROM_LMDB_TXN_ID: u64 = tag(8, WIRE_VARINT);
pub(super) const META_FIELDS: &[(u64, &str)] = &[
    (META_GENERATION_ID, "generationID"),
    (META_INSTANCE_ID, "instanceID"),
    (META_HOSTNAME, "hostname"),
    (META_LMDB_TXN_ID, "lmdbTxnID"),
    (META_TIMESTAMP_NANO, "timestampNano"),
    (META_DATABASE_NAME, "databaseName"),
    (META_FROM_LMDB_TXN_ID, "fromLmdbTxnID"),
];

pub(super) const DBI_NAME: u64 = tag(1, WIRE_BYTES);
pub(super) const DBI_ENTRIES: u64 = tag(2, WIRE_BYTES);
pub(super) const DBI_FLAGS: u64 = tag(3, WIRE_VARINT);
pub(super) const DBI_TRANSFORM: u64 = tag(4, WIRE_BYTES);
pub(super) const DBI_FIELDS: &[(u64, &str)] =
    &[(DBI_NAME, "name"), (DBI_ENTRIES, "entries"), (DBI_FLAGS, "flags"), (DBI_TRANSFORM, "transform")];

pub(super) const KV_KEY: u64 = tag(1, WIRE_BYTES);
pub(super) const KV_VALUE: u64 = tag(2, WIRE_BYTES);
pub(super) const KV_TIMESTAMP_NANO: u64 = tag(3, WIRE_FIXED64);
pub(super) const KV_FLAGS: u64 = tag(4, WIRE_VARINT);
pub(super) const KV_FIELDS: &[(u64, &str)] =
    &[(KV_KEY, "key"), (KV_VALUE, "value"), (KV_TIMESTAMP_NANO, "timestampNano"), (KV_FLAGS, "flags")];

/// Bytes that `value` takes as a varint: 7 bits per byte.
#[inline]
#[must_use]
pub const fn varint_size(value: u64) -> u64 {
    // ceil(bits / 7) without a division, bits being at least 1; exact for 1 to 64 bits.
    let bits = 64 - (value | 1).leading_zeros() as u64;
    (bits * 9 + 64) / 64
}

/// Writes `value` at the start of `out` and returns how many bytes that took. `out` has room for 10 bytes or for what is needed.
#[inline]
pub(super) fn put_varint(out: &mut [u8], mut value: u64) -> usize {
    let mut at = 0;
    while value >= 0x80 {
        out[at] = value as u8 | 0x80;
        value >>= 7;
        at += 1;
    }
    out[at] = value as u8;
    at + 1
}

/// Appends a varint.
pub(super) fn push_varint(out: &mut Vec<u8>, value: u64) {
    let mut bytes = [0; 10];
    let length = put_varint(&mut bytes, value);
    out.extend_from_slice(&bytes[..length]);
}

/// What is wrong with a message held in memory; `at` is relative to its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub at: usize,
    pub what: String,
}

/// Faults are rare and their texts are long: keep both out of the hot loops.
#[cold]
#[inline(never)]
pub(super) fn fault<T>(at: usize, what: impl Into<String>) -> Result<T, Fault> {
    Err(Fault { at, what: what.into() })
}

/// Adds one byte of a varint to `value`; `index` counts from 0. True when it was the last one, `None` when the number has more than 64 bits.
#[inline]
pub(super) fn varint_step(value: &mut u64, index: u32, byte: u8) -> Option<bool> {
    if index == 9 && byte > 1 {
        return None;
    }
    *value |= u64::from(byte & 0x7f) << (7 * index);
    Some(byte < 0x80)
}

/// Reads a varint of `body` at `*at`.
#[inline]
pub(super) fn varint(body: &[u8], at: &mut usize) -> Result<u64, Fault> {
    match body.get(*at) {
        Some(&byte) if byte < 0x80 => {
            *at += 1;
            Ok(u64::from(byte))
        }
        _ => long_varint(body, at),
    }
}

fn long_varint(body: &[u8], at: &mut usize) -> Result<u64, Fault> {
    let start = *at;
    let mut value = 0;
    for index in 0.. {
        let Some(&byte) = body.get(*at) else { return fault(start, "a number is cut short") };
        *at += 1;
        match varint_step(&mut value, index, byte) {
            Some(true) => break,
            Some(false) => {}
            None => return fault(start, "a number is longer than 64 bits"),
        }
    }
    Ok(value)
}

/// Reads the length of a length-delimited field and returns where its bytes are.
#[inline]
pub(super) fn bytes(body: &[u8], at: &mut usize) -> Result<Range<usize>, Fault> {
    let length_at = *at;
    let length = varint(body, at)?;
    let rest = body.len() - *at;
    if length > rest as u64 {
        return fault(length_at, format!("a field of {length} bytes runs past the end of its message"));
    }
    let start = *at;
    *at += length as usize;
    Ok(start..*at)
}

/// Reads 8 little-endian bytes.
#[inline]
pub(super) fn fixed64(body: &[u8], at: &mut usize) -> Result<u64, Fault> {
    match body[*at..].first_chunk() {
        Some(chunk) => {
            *at += 8;
            Ok(u64::from_le_bytes(*chunk))
        }
        None => fault(*at, "a 64-bit number is cut short"),
    }
}

/// Why a tag that is none of the message's known `fields` cannot be skipped over; `None` when it can.
pub(super) fn tag_fault(tag: u64, fields: &[(u64, &str)]) -> Option<String> {
    let (field, wire_type) = (tag >> 3, tag & 7);
    if field == 0 {
        return Some("field number 0".into());
    }
    if tag > u64::from(u32::MAX) {
        return Some(format!("field number {field} is out of range"));
    }
    if let Some((known, name)) = fields.iter().find(|(known, _)| known >> 3 == field) {
        return Some(format!("field {name} has wire type {wire_type}, expected {}", known & 7));
    }
    if !matches!(wire_type, WIRE_VARINT | WIRE_FIXED64 | WIRE_BYTES | WIRE_FIXED32) {
        return Some(format!("field {field} has the unsupported wire type {wire_type}"));
    }
    None
}

/// Skips a field that is none of the known `fields`; `*at` is behind its tag, which began at `tag_at`.
pub(super) fn skip_field(
    body: &[u8],
    at: &mut usize,
    tag_at: usize,
    tag: u64,
    fields: &[(u64, &str)],
) -> Result<(), Fault> {
    if let Some(what) = tag_fault(tag, fields) {
        return fault(tag_at, what);
    }
    let width = match tag & 7 {
        WIRE_VARINT => return varint(body, at).map(drop),
        WIRE_BYTES => return bytes(body, at).map(drop),
        WIRE_FIXED64 => 8,
        _ => 4,
    };
    if body.len() - *at < width {
        return fault(tag_at, "an unknown field is cut short");
    }
    *at += width;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::encoding::{decode_varint, encode_varint, encoded_len_varint};

    fn samples() -> impl Iterator<Item = u64> {
        (0..64).flat_map(|bit| [(1u64 << bit) - 1, 1 << bit, (1 << bit) + 1]).chain([u64::MAX])
    }

    #[test]
    fn varints_equal_those_of_another_implementation() {
        for value in samples() {
            let mut expected = Vec::new();
            encode_varint(value, &mut expected);
            let mut ours = Vec::new();
            push_varint(&mut ours, value);
            assert_eq!(ours, expected, "{value}");
            assert_eq!(varint_size(value), encoded_len_varint(value) as u64, "{value}");
            let mut at = 0;
            assert_eq!(varint(&expected, &mut at), Ok(value));
            assert_eq!(at, expected.len());
        }
    }

    #[test]
    fn malformed_varints_are_faults_where_another_implementation_says_so() {
        let mut all_continued = vec![0xff; 9];
        for last in 0..=0xff {
            all_continued.push(last);
            all_continued.push(0);
            let mut at = 0;
            let ours = varint(&all_continued, &mut at);
            assert_eq!(ours.ok(), decode_varint(&mut all_continued.as_slice()).ok(), "{last:02x}");
            all_continued.truncate(9);
        }
        for length in 0..10 {
            let mut at = 0;
            assert!(varint(&vec![0x80; length], &mut at).is_err());
        }
    }

    #[test]
    fn a_length_never_reaches_past_the_message() {
        for length in [2, 127, 128, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut body = Vec::new();
            push_varint(&mut body, length);
            body.push(b'x');
            assert!(bytes(&body, &mut 0).is_err(), "{length}");
        }
        assert_eq!(bytes(&[1, b'x'], &mut 0), Ok(1..2));
    }
}
