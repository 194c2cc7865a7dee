//! A digest of contents that does not depend on the order of the entries, nor on what is local to an instance.
//!
//! Each entry is hashed by itself with XXH3-128 (seed 0), and the hashes, taken as big-endian numbers, are added up modulo 2^128. What is hashed
//! (numbers big endian):
//!
//! | bytes | content |
//! |---|---|
//! | 4 | length of the DBI's name |
//! | | the name |
//! | 4 | length of the key |
//! | | the key |
//! | 8 | timestamp, ns since the epoch |
//! | 1 | flags: 1 = deleted, else 0 |
//! | | the value, without its header; nothing for a deletion |
//!
//! So the digest of an LMDB is the sum of those of its DBIs; an empty DBI counts like one that is not there; and the digest of an LMDB is the
//! digest of its snapshot. It tells whether instances agree. It is no protection against somebody who makes up entries on purpose.
//!
//! Source of the hash: <https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md>.

use std::fmt;
use std::ops::{AddAssign, Sub};

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::header::FLAG_DELETED;

/// Entries up to this size are copied together and hashed in one go, which is several times as fast for small ones; the copies of larger
/// ones would cost memory and time.
const CONTIGUOUS_BYTES: usize = 4096;

/// The sum of the hashes of some entries; nothing: 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest(u128);

impl AddAssign for Digest {
    fn add_assign(&mut self, other: Self) {
        self.0 = self.0.wrapping_add(other.0);
    }
}

impl Sub for Digest {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(self.0.wrapping_sub(other.0))
    }
}

/// 32 hexadecimal digits.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// What was counted of a DBI, or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Entries, deletions included.
    pub entries: u64,
    /// Entries flagged deleted.
    pub deleted: u64,
    /// Of all entries.
    pub all: Digest,
    /// Of those flagged deleted.
    removed: Digest,
}

impl Content {
    /// The digest without deletions, which instances sweep at different times.
    #[must_use]
    pub fn live(&self) -> Digest {
        self.all - self.removed
    }
}

impl AddAssign for Content {
    fn add_assign(&mut self, other: Self) {
        self.entries += other.entries;
        self.deleted += other.deleted;
        self.all += other.all;
        self.removed += other.removed;
    }
}

/// Adds up the entries of one DBI.
pub struct Hasher {
    content: Content,
    /// Name of the DBI as it is hashed, and behind it room for an entry.
    buffer: Vec<u8>,
    name_bytes: usize,
}

impl Hasher {
    /// For the DBI of this name: the application's, in shadow mode, too.
    #[must_use]
    pub fn new(dbi: &str) -> Self {
        let mut buffer = length(dbi.len()).to_vec();
        buffer.extend_from_slice(dbi.as_bytes());
        let name_bytes = buffer.len();
        buffer.resize(name_bytes.max(CONTIGUOUS_BYTES), 0);
        Self { content: Content::default(), name_bytes, buffer }
    }

    /// Adds an entry. Of the flags only [`FLAG_DELETED`] counts, and of a deletion no value.
    #[inline]
    pub fn add(&mut self, key: &[u8], timestamp: u64, flags: u8, value: &[u8]) {
        let deleted = flags & FLAG_DELETED;
        let value = if deleted == 0 { value } else { &[] };
        let value_at = self.name_bytes + FIELDS_BYTES + key.len();
        let length = value_at + value.len();
        let hash = if let Some(entry) = self.buffer.get_mut(..length).filter(|_| length <= CONTIGUOUS_BYTES) {
            put_fields(&mut entry[self.name_bytes..value_at], key, timestamp, deleted);
            entry[value_at..].copy_from_slice(value);
            xxh3_128(entry)
        } else {
            self.large(key, timestamp, deleted, value)
        };
        self.content.entries += 1;
        self.content.all += Digest(hash);
        if deleted != 0 {
            self.content.deleted += 1;
            self.content.removed += Digest(hash);
        }
    }

    #[cold]
    fn large(&self, key: &[u8], timestamp: u64, deleted: u8, value: &[u8]) -> u128 {
        let mut fields = vec![0; FIELDS_BYTES + key.len()];
        put_fields(&mut fields, key, timestamp, deleted);
        let mut state = Xxh3::new();
        state.update(&self.buffer[..self.name_bytes]);
        state.update(&fields);
        state.update(value);
        state.digest128()
    }

    /// What was added so far.
    #[must_use]
    pub fn content(&self) -> Content {
        self.content
    }
}

/// Length of the key, timestamp, flags.
const FIELDS_BYTES: usize = 4 + 8 + 1;

/// Fills `out`, which is exactly as long as the fields and the key.
#[inline]
fn put_fields(out: &mut [u8], key: &[u8], timestamp: u64, deleted: u8) {
    let (key_length, rest) = out.split_at_mut(4);
    key_length.copy_from_slice(&length(key.len()));
    let (to, rest) = rest.split_at_mut(key.len());
    to.copy_from_slice(key);
    rest[..8].copy_from_slice(&timestamp.to_be_bytes());
    rest[8] = deleted;
}

/// The formats know no longer ones: a name has at most 1 KiB, a key 64 MiB.
#[inline]
fn length(bytes: usize) -> [u8; 4] {
    (bytes as u32).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(dbi: &str, entries: &[(&[u8], u64, u8, &[u8])]) -> Content {
        let mut hasher = Hasher::new(dbi);
        for (key, timestamp, flags, value) in entries {
            hasher.add(key, *timestamp, *flags, value);
        }
        hasher.content()
    }

    /// Made with python-xxhash 4.1.0 (the C implementation, 0.8.4), from the definition above.
    #[test]
    fn hashes_are_those_of_the_definition() {
        let long = vec![0x61; 5000];
        let expected = [
            (content("d", &[(b"k", 1, 0, b"v")]), VECTORS[0]),
            (content("", &[(b"", 0, 0, b"")]), VECTORS[1]),
            (content("records", &[(b"key", u64::MAX, 1, b"not hashed")]), VECTORS[2]),
            (content("records", &[(b"key", 1_700_000_000_123_456_789, 0xfe, &long)]), VECTORS[3]),
        ];
        for (content, digest) in expected {
            assert_eq!(content.all.to_string(), digest);
        }
    }

    const VECTORS: [&str; 4] = [
        "7ef5e2ba0a0885342f3f189010f20894",
        "a3d7e4cef35b1f44c2915ca0df7ad4c1",
        "5f8013931771da3319d660cdaa461855",
        "1117d57a2671dab5691369ad85cd3e8b",
    ];

    #[test]
    fn one_go_and_two_steps_agree() {
        // Around the limit, where the hash is computed one way or the other, and around the hash's own limits.
        for length in [0, 1, 16, 17, 128, 129, 240, 241, 4000, 4060, 4070, 4080, 4090, 5000] {
            let value = vec![7; length];
            let mut bytes = vec![0, 0, 0, 1, b'd', 0, 0, 0, 1, b'k'];
            bytes.extend_from_slice(&9u64.to_be_bytes());
            bytes.push(0);
            bytes.extend_from_slice(&value);
            assert_eq!(content("d", &[(b"k", 9, 0, &value)]).all, Digest(xxh3_128(&bytes)), "{length}");
        }
    }

    #[test]
    fn order_does_not_matter_and_every_field_does() {
        type Entry<'a> = (&'a [u8], u64, u8, &'a [u8]);
        let a: Entry<'_> = (b"a", 1, 0, b"x");
        let b: Entry<'_> = (b"b", 2, 1, b"");
        assert_eq!(content("d", &[a, b]), content("d", &[b, a]));
        let whole = content("d", &[a, b]);
        assert_eq!((whole.entries, whole.deleted), (2, 1));
        assert_eq!(whole.live(), content("d", &[a]).all);
        let others: [(&str, Entry<'_>); 6] = [
            ("e", a),
            ("d", (b"A", 1, 0, b"x")),
            ("d", (b"a", 2, 0, b"x")),
            ("d", (b"a", 1, 1, b"x")),
            ("d", (b"a", 1, 0, b"y")),
            ("d", (b"ax", 1, 0, b"")),
        ];
        for (dbi, entry) in others {
            assert_ne!(content(dbi, &[entry]).all, content("d", &[a]).all);
        }
        assert_ne!(content("d", &[a, a]).all, Digest::default());
    }

    #[test]
    fn other_flags_and_the_value_of_a_deletion_do_not_count() {
        assert_eq!(content("d", &[(b"a", 1, 0xfe, b"x")]), content("d", &[(b"a", 1, 0, b"x")]));
        assert_eq!(content("d", &[(b"a", 1, 1, b"x")]), content("d", &[(b"a", 1, 1, b"")]));
        assert_ne!(content("d", &[(b"a", 1, 1, b"")]).all, content("d", &[(b"a", 1, 0, b"")]).all);
        assert_eq!(content("d", &[(b"a", 1, 1, b"")]).live(), Digest::default());
    }
}
