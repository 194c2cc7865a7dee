//! Writing a snapshot in one pass. The length of a DBI precedes its entries, so its head is a late piece of the stream.

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

    /// Marks the place of a piece of at most `max` bytes (some hundred) that is known only later. One at a time.
    fn begin_late(&mut self, max: usize) -> Result<()>;

    /// Puts the piece there.
    fn end_late(&mut self, piece: &[u8]);
}

/// A stream kept in memory.
#[derive(Default)]
pub struct InMemory {
    /// What was put in.
    pub bytes: Vec<u8>,
    late_at: usize,
}

impl Sink for InMemory {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn room(&mut self, length: usize) -> Option<&mut [u8]> {
        let start = self.bytes.len();
        self.bytes.resize(start + length, 0);
        self.bytes.get_mut(start..)
    }

    fn begin_late(&mut self, _max: usize) -> Result<()> {
        self.late_at = self.bytes.len();
        Ok(())
    }

    fn end_late(&mut self, piece: &[u8]) {
        self.bytes.splice(self.late_at..self.late_at, piece.iter().copied());
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

#[inline]
const fn bytes_size(length: usize) -> u64 {
    if length == 0 { 0 } else { 1 + wire::varint_size(length as u64) + length as u64 }
}

#[inline]
const fn flags_size(flags: u32) -> u64 {
    if flags == 0 { 0 } else { 1 + wire::varint_size(flags as u64) }
}

/// Writes one snapshot.
pub struct Writer<S> {
    sink: S,
    dbi: Option<OpenDbi>,
}

/// The DBI message being written.
struct OpenDbi {
    /// Its fields before the entries.
    fields: Vec<u8>,
    /// Bytes of its entries so far.
    entries_bytes: u64,
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
        Ok(Self { sink, dbi: None })
    }

    /// Begins a DBI message. One that gets neither name nor anything else is not written at all.
    pub fn begin_dbi(&mut self, name: &str, flags: u64, transform: &str) -> Result<()> {
        self.end_dbi();
        let mut fields = Vec::new();
        push_text(&mut fields, wire::DBI_NAME, name);
        if flags != 0 {
            wire::push_varint(&mut fields, wire::DBI_FLAGS);
            wire::push_varint(&mut fields, flags);
        }
        push_text(&mut fields, wire::DBI_TRANSFORM, transform);
        self.sink.begin_late(DBI_HEAD_BYTES + fields.len())?;
        self.dbi = Some(OpenDbi { fields, entries_bytes: 0 });
        Ok(())
    }

    /// Writes one entry of the current DBI; does not allocate.
    #[inline]
    pub fn entry(&mut self, key: &[u8], value: &[u8], timestamp: u64, flags: u32) -> Result<()> {
        let body = kv_size(key, value, timestamp, flags);
        let size = entry_size(body);
        match &mut self.dbi {
            Some(dbi) => dbi.entries_bytes += size,
            None => return Err(Error::new(Code::InvalidArgument, "an entry outside of a DBI")),
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

    fn end_dbi(&mut self) {
        let Some(OpenDbi { fields, entries_bytes }) = self.dbi.take() else { return };
        let size = fields.len() as u64 + entries_bytes;
        let mut head = Vec::new();
        if size > 0 {
            wire::push_varint(&mut head, wire::SNAPSHOT_DATABASES);
            wire::push_varint(&mut head, size);
            head.extend_from_slice(&fields);
        }
        self.sink.end_late(&head);
    }

    /// Ends the snapshot and gives the sink back.
    pub fn finish(mut self) -> Result<S> {
        self.end_dbi();
        Ok(self.sink)
    }
}

fn push_text(out: &mut Vec<u8>, tag: u64, text: &str) {
    if !text.is_empty() {
        wire::push_varint(out, tag);
        wire::push_varint(out, text.len() as u64);
        out.extend_from_slice(text.as_bytes());
    }
}

/// Tag and length of a DBI message, at most.
const DBI_HEAD_BYTES: usize = 1 + 10;

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
