//! Writing a snapshot: sizes first (a DBI's length precedes its entries), then the bytes.

use crate::error::{Code, Error, Result};

use super::meta::Meta;
use super::wire;

/// Takes the bytes of a snapshot in order.
pub trait Sink {
    /// Appends bytes.
    fn put(&mut self, bytes: &[u8]) -> Result<()>;

    /// `length` bytes in one piece that the caller will fill completely, already counted as appended; `None` when the sink has no
    /// such piece at hand: use [`Sink::put`] then.
    fn room(&mut self, length: usize) -> Option<&mut [u8]>;
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.extend_from_slice(bytes);
        Ok(())
    }

    fn room(&mut self, length: usize) -> Option<&mut [u8]> {
        let start = self.len();
        self.resize(start + length, 0);
        self.get_mut(start..)
    }
}

/// Bytes of an entry's message, its framing in the DBI excluded. 0: the entry is all zero and is not written.
#[inline]
#[must_use]
pub fn kv_size(key: &[u8], value: &[u8], timestamp: u64, flags: u32) -> u64 {
    bytes_size(key.len()) + bytes_size(value.len()) + flags_size(flags) + if timestamp == 0 { 0 } else { 9 }
}

/// Bytes that an entry adds to its DBI message, given [`kv_size`].
#[inline]
#[must_use]
pub const fn entry_size(kv_size: u64) -> u64 {
    if kv_size == 0 { 0 } else { 1 + wire::varint_size(kv_size) + kv_size }
}

/// Bytes of a DBI message with entries of `entries_bytes` in all, its framing in the snapshot excluded.
#[must_use]
pub fn dbi_size(name: &str, flags: u64, transform: &str, entries_bytes: u64) -> u64 {
    let flags_size = if flags == 0 { 0 } else { 1 + wire::varint_size(flags) };
    bytes_size(name.len()) + flags_size + bytes_size(transform.len()) + entries_bytes
}

#[inline]
const fn bytes_size(length: usize) -> u64 {
    if length == 0 { 0 } else { 1 + wire::varint_size(length as u64) + length as u64 }
}

#[inline]
const fn flags_size(flags: u32) -> u64 {
    if flags == 0 { 0 } else { 1 + wire::varint_size(flags as u64) }
}

/// Adds up the entries of one DBI: the pass before [`Writer::begin_dbi`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SizeCounter {
    bytes: u64,
}

impl SizeCounter {
    /// Counts one entry.
    #[inline]
    pub fn add(&mut self, key: &[u8], value: &[u8], timestamp: u64, flags: u32) {
        self.bytes += entry_size(kv_size(key, value, timestamp, flags));
    }

    /// Bytes of all entries so far, framing included: what [`Writer::begin_dbi`] wants.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Writes one snapshot.
pub struct Writer<S> {
    sink: S,
    /// Bytes of entries that the current DBI message still lacks.
    owed: u64,
}

impl<S: Sink> Writer<S> {
    /// Writes the versions and Meta.
    pub fn new(mut sink: S, meta: &Meta) -> Result<Self> {
        let mut head = Vec::new();
        for (tag, version) in [
            (wire::SNAPSHOT_FORMAT_VERSION, wire::FORMAT_VERSION),
            (wire::SNAPSHOT_COMPAT_VERSION, wire::COMPAT_VERSION),
        ] {
            wire::push_varint(&mut head, tag);
            wire::push_varint(&mut head, u64::from(version));
        }
        let meta = meta.encode();
        if !meta.is_empty() {
            wire::push_varint(&mut head, wire::SNAPSHOT_META);
            wire::push_varint(&mut head, meta.len() as u64);
            head.extend_from_slice(&meta);
        }
        sink.put(&head)?;
        Ok(Self { sink, owed: 0 })
    }

    /// Begins a DBI message whose entries will take exactly `entries_bytes` ([`SizeCounter::bytes`]).
    ///
    /// A DBI that has neither name nor anything else is not written at all.
    pub fn begin_dbi(&mut self, name: &str, flags: u64, transform: &str, entries_bytes: u64) -> Result<()> {
        self.end_dbi()?;
        let size = dbi_size(name, flags, transform, entries_bytes);
        if size == 0 {
            return Ok(());
        }
        let mut head = Vec::new();
        wire::push_varint(&mut head, wire::SNAPSHOT_DATABASES);
        wire::push_varint(&mut head, size);
        if !name.is_empty() {
            wire::push_varint(&mut head, wire::DBI_NAME);
            wire::push_varint(&mut head, name.len() as u64);
            head.extend_from_slice(name.as_bytes());
        }
        if flags != 0 {
            wire::push_varint(&mut head, wire::DBI_FLAGS);
            wire::push_varint(&mut head, flags);
        }
        if !transform.is_empty() {
            wire::push_varint(&mut head, wire::DBI_TRANSFORM);
            wire::push_varint(&mut head, transform.len() as u64);
            head.extend_from_slice(transform.as_bytes());
        }
        self.owed = entries_bytes;
        self.sink.put(&head)
    }

    /// Writes one entry of the current DBI; does not allocate.
    #[inline]
    pub fn entry(&mut self, key: &[u8], value: &[u8], timestamp: u64, flags: u32) -> Result<()> {
        let body = kv_size(key, value, timestamp, flags);
        let size = entry_size(body);
        match self.owed.checked_sub(size) {
            Some(owed) => self.owed = owed,
            None => return Err(size_mismatch()),
        }
        match self.sink.room(size as usize) {
            Some(out) => {
                let rest = put_head(out, body, key.len());
                let rest = put_bytes(rest, key);
                let rest = put_value_head(rest, value.len());
                let rest = put_bytes(rest, value);
                put_tail(rest, timestamp, flags);
                Ok(())
            }
            None => self.split_entry(key, value, timestamp, flags),
        }
    }

    /// An entry that lies across pieces of the sink.
    #[cold]
    fn split_entry(&mut self, key: &[u8], value: &[u8], timestamp: u64, flags: u32) -> Result<()> {
        // Each part has at most two tags and two varints, or a tag and 8 bytes.
        let mut part = [0; 24];
        let mut put = |sink: &mut S, fill: &dyn Fn(&mut [u8]) -> usize| {
            let rest = fill(&mut part);
            sink.put(&part[..part.len() - rest])
        };
        let body = kv_size(key, value, timestamp, flags);
        put(&mut self.sink, &|out| put_head(out, body, key.len()).len())?;
        self.sink.put(key)?;
        put(&mut self.sink, &|out| put_value_head(out, value.len()).len())?;
        self.sink.put(value)?;
        put(&mut self.sink, &|out| put_tail(out, timestamp, flags).len())
    }

    fn end_dbi(&self) -> Result<()> {
        if self.owed == 0 { Ok(()) } else { Err(size_mismatch()) }
    }

    /// Ends the snapshot and gives the sink back.
    pub fn finish(self) -> Result<S> {
        self.end_dbi()?;
        Ok(self.sink)
    }
}

/// Only a mistake of the caller leads here: both passes read one transaction.
#[cold]
fn size_mismatch() -> Error {
    Error::new(Code::InvalidArgument, "the entries of a DBI do not have the size that was announced for them")
}

// The parts of an entry, each written to the start of `out`, which is returned without them. The order is the reference's: key,
// value, flags, timestamp. Fields that are zero are left out.

/// Framing in the DBI; tag and length of the key. Nothing for an entry without content.
#[inline]
fn put_head(out: &mut [u8], body: u64, key_length: usize) -> &mut [u8] {
    if body == 0 {
        return out;
    }
    out[0] = wire::DBI_ENTRIES as u8;
    let at = 1 + wire::put_varint(&mut out[1..], body);
    put_bytes_head(&mut out[at..], wire::KV_KEY as u8, key_length)
}

#[inline]
fn put_value_head(out: &mut [u8], value_length: usize) -> &mut [u8] {
    put_bytes_head(out, wire::KV_VALUE as u8, value_length)
}

#[inline]
fn put_bytes_head(out: &mut [u8], tag: u8, length: usize) -> &mut [u8] {
    if length == 0 {
        return out;
    }
    out[0] = tag;
    let at = 1 + wire::put_varint(&mut out[1..], length as u64);
    &mut out[at..]
}

#[inline]
fn put_bytes<'a>(out: &'a mut [u8], bytes: &[u8]) -> &'a mut [u8] {
    let (to, rest) = out.split_at_mut(bytes.len());
    to.copy_from_slice(bytes);
    rest
}

#[inline]
fn put_tail(mut out: &mut [u8], timestamp: u64, flags: u32) -> &mut [u8] {
    if flags != 0 {
        out[0] = wire::KV_FLAGS as u8;
        let at = 1 + wire::put_varint(&mut out[1..], u64::from(flags));
        out = &mut out[at..];
    }
    if timestamp != 0 {
        out[0] = wire::KV_TIMESTAMP_NANO as u8;
        out[1..9].copy_from_slice(&timestamp.to_le_bytes());
        out = &mut out[9..];
    }
    out
}
