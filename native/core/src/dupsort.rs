//! The encoding `dupsort_hack_v1`: gives each value of a DBI with MDB_DUPSORT a key of its own in the shadow DBI.
//!
//! key' = key + 00 00 00 00 + value, cut so that key' has at most 511 bytes + one byte with the key's length. The value stays the value.
//!
//! Source: the transform of that name in snapshots of PowerDNS Lightning Stream 1.0.

use crate::error::{Code, Error, Result};
use crate::lmdb::MAX_KEY_BYTES;

/// Name of the encoding in snapshots.
pub const TRANSFORM: &str = "dupsort_hack_v1";

const SEPARATOR: [u8; 4] = [0; 4];

/// Longest key that can be encoded: its length has one byte.
pub const MAX_ENCODED_KEY_BYTES: usize = 255;

/// Replaces the contents of `out` with key'.
///
/// # Errors
/// [`Code::DbiUnsupported`] for a key of more than 255 bytes.
#[inline]
pub fn encode(out: &mut Vec<u8>, key: &[u8], value: &[u8]) -> Result<()> {
    let length = match u8::try_from(key.len()) {
        Ok(length) if length > 0 => length,
        _ => return Err(too_long(key)),
    };
    let room = MAX_KEY_BYTES - key.len() - SEPARATOR.len() - 1;
    out.clear();
    out.extend_from_slice(key);
    out.extend_from_slice(&SEPARATOR);
    out.extend_from_slice(&value[..value.len().min(room)]);
    out.push(length);
    Ok(())
}

#[cold]
fn too_long(key: &[u8]) -> Error {
    let text = format!("dupsort_hack can carry keys of 1 to {MAX_ENCODED_KEY_BYTES} bytes, this one has {}", key.len());
    Error::new(Code::DbiUnsupported, text).at_key(key)
}

/// key' taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded<'a> {
    /// The application's key.
    pub key: &'a [u8],
    /// The value, or its beginning.
    pub prefix: &'a [u8],
    /// `prefix` may be cut.
    pub cut: bool,
}

impl Decoded<'_> {
    /// True when key' may belong to this value.
    #[must_use]
    pub fn belongs_to(&self, value: &[u8]) -> bool {
        if self.cut { value.starts_with(self.prefix) } else { value == self.prefix }
    }
}

/// The opposite of [`encode`]; `None` when `encoded` was not made by it.
#[inline]
#[must_use]
pub fn decode(encoded: &[u8]) -> Option<Decoded<'_>> {
    let (&length, body) = encoded.split_last()?;
    let (key, rest) = body.split_at_checked(usize::from(length))?;
    let prefix = rest.strip_prefix(&SEPARATOR)?;
    (length > 0).then_some(Decoded { key, prefix, cut: encoded.len() == MAX_KEY_BYTES })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_the_documented_one() {
        let mut out = Vec::new();
        encode(&mut out, b"key", b"val").unwrap();
        assert_eq!(out, b"key\0\0\0\0val\x03");
        assert_eq!(decode(&out), Some(Decoded { key: b"key", prefix: b"val", cut: false }));
        encode(&mut out, b"k", b"").unwrap();
        assert_eq!(out, b"k\0\0\0\0\x01");
        assert!(decode(&out).unwrap().belongs_to(b""));
        assert!(!decode(&out).unwrap().belongs_to(b"v"));
    }

    #[test]
    fn long_values_are_cut_to_what_a_key_can_hold() {
        let mut out = Vec::new();
        let (key, value) = ([7; 255], [9; 511]);
        encode(&mut out, &key, &value).unwrap();
        assert_eq!(out.len(), 511);
        let decoded = decode(&out).unwrap();
        assert_eq!((decoded.key, decoded.prefix.len(), decoded.cut), (&key[..], 251, true));
        assert!(decoded.belongs_to(&value) && decoded.belongs_to(&[9; 251]) && !decoded.belongs_to(&[9; 250]));
    }

    #[test]
    fn keys_too_long_are_an_error_and_foreign_bytes_are_recognised() {
        let mut out = Vec::new();
        let error = encode(&mut out, &[1; 256], b"").unwrap_err();
        assert_eq!(error.code, Code::DbiUnsupported);
        assert!(error.message.contains("256"), "{error}");
        for foreign in [&b""[..], b"\x01", b"k\0\0\0\x01", b"k\0\0\x01\0v\x01", b"k\0\0\0\0v\x02", b"\0\0\0\0v\0"] {
            assert_eq!(decode(foreign), None, "{foreign:?}");
        }
    }
}
