//! Key order of a DBI, the same as LMDB's own comparison functions, so that a stream can be walked beside a cursor.

use std::cmp::Ordering;

use super::flags;

/// How LMDB sorts the keys of a DBI (mdb.c, `mdb_default_cmp`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyOrder {
    /// Bytewise, a prefix first.
    Lexical,
    /// Bytewise from the end, a suffix first.
    Reverse,
    /// Native unsigned integers of 4 or 8 bytes.
    Integer,
}

impl KeyOrder {
    /// Order of a DBI with these persistent flags. LMDB looks at REVERSEKEY first.
    #[must_use]
    pub fn of(dbi_flags: u32) -> Self {
        if dbi_flags & flags::REVERSEKEY != 0 {
            Self::Reverse
        } else if dbi_flags & flags::INTEGERKEY != 0 {
            Self::Integer
        } else {
            Self::Lexical
        }
    }

    /// Compares two keys.
    #[inline]
    #[must_use]
    pub fn compare(self, a: &[u8], b: &[u8]) -> Ordering {
        match self {
            Self::Lexical => a.cmp(b),
            Self::Reverse => a.iter().rev().cmp(b.iter().rev()),
            Self::Integer => integer(a).cmp(&integer(b)),
        }
    }
}

/// Value of a native integer key; anything but 4 or 8 bytes is no integer key for LMDB either.
fn integer(key: &[u8]) -> u64 {
    if let Ok(eight) = <[u8; 8]>::try_from(key) {
        u64::from_ne_bytes(eight)
    } else if let Ok(four) = <[u8; 4]>::try_from(key) {
        u64::from(u32::from_ne_bytes(four))
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_like_lmdb() {
        assert_eq!(KeyOrder::Lexical.compare(b"a", b"ab"), Ordering::Less);
        assert_eq!(KeyOrder::Reverse.compare(b"ba", b"ab"), Ordering::Less);
        assert_eq!(KeyOrder::Reverse.compare(b"b", b"ab"), Ordering::Less);
        assert_eq!(KeyOrder::Integer.compare(&256u32.to_ne_bytes(), &1u32.to_ne_bytes()), Ordering::Greater);
        assert_eq!(KeyOrder::of(flags::INTEGERKEY | flags::REVERSEKEY), KeyOrder::Reverse);
    }
}
