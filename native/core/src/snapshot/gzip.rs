//! The gzip layer of what is written: a stream of members of one MiB each.
//!
//! A member (RFC 1952) of ours carries its own total size in an extra field, as BGZF does, so that a reader finds the next one
//! without inflating this one and can inflate several at a time. Other readers ignore the field and see an ordinary
//! multi-member stream.

use std::io;

use libdeflater::{CompressionLvl, Compressor};

use crate::cancel::Cancel;
use crate::error::{Code, Error, Result};

use super::encode::Sink;
use super::pipeline::{Queue, Workers, parallelism};

/// Uncompressed bytes of a member of ours, at most; the extra field promises it.
pub const CHUNK_BYTES: usize = 1 << 20;

/// Total bytes of a member of ours, at most. A chunk that does not compress is stored in blocks of at least 10,000 bytes with 5
/// bytes of overhead each (libdeflate's bound); this leaves some room above.
pub const MAX_MEMBER_BYTES: usize = CHUNK_BYTES + (4 << 10);

pub(super) const MAGIC: [u8; 2] = [0x1f, 0x8b];
pub(super) const METHOD_DEFLATE: u8 = 8;
pub(super) const FLAG_HEADER_CRC: u8 = 0x02;
pub(super) const FLAG_EXTRA: u8 = 0x04;
pub(super) const FLAG_NAME: u8 = 0x08;
pub(super) const FLAG_COMMENT: u8 = 0x10;
pub(super) const FLAGS_RESERVED: u8 = 0xe0;
/// Subfield id and length of the extra field that holds a member's total size: `LS`, 4 bytes, little-endian.
pub(super) const SIZE_SUBFIELD: [u8; 4] = [b'L', b'S', 4, 0];

/// A member's header up to the size field: no time, "fastest", system unknown, 8 bytes of extra fields.
const HEADER_START: [u8; 12] = [MAGIC[0], MAGIC[1], METHOD_DEFLATE, FLAG_EXTRA, 0, 0, 0, 0, 4, 255, 8, 0];
/// Bytes of the header of a member of ours.
pub(super) const HEADER_BYTES: usize = HEADER_START.len() + SIZE_SUBFIELD.len() + 4;
/// CRC-32 and length.
pub(super) const TRAILER_BYTES: usize = 8;

/// A piece of the stream in both forms; which is the source depends on the direction.
#[derive(Default)]
pub(super) struct Block {
    /// Uncompressed bytes: `raw[..raw_length]`.
    pub raw: Vec<u8>,
    pub raw_length: usize,
    /// A whole member: `packed[..packed_length]`.
    pub packed: Vec<u8>,
    pub packed_length: usize,
    /// Where the member begins in the file, for messages.
    pub packed_at: u64,
}

/// Makes a buffer at least `length` long. Freshly allocated zeros are not touched, so room that is never used costs no memory.
pub(super) fn ensure_length(buffer: &mut Vec<u8>, length: usize) {
    if buffer.len() < length {
        *buffer = vec![0; length];
    }
}

/// Compresses `raw` into one member in `packed`.
fn pack(compressor: &mut Compressor, block: &mut Block) -> Result<()> {
    let Block { raw, raw_length, packed, packed_length, .. } = block;
    let raw = &raw[..*raw_length];
    ensure_length(packed, MAX_MEMBER_BYTES);
    let end = MAX_MEMBER_BYTES - TRAILER_BYTES;
    let compressed = compressor
        .deflate_compress(raw, &mut packed[HEADER_BYTES..end])
        .map_err(|_| Error::new(Code::Panic, "internal error: a compressed chunk is larger than its bound"))?;
    let trailer_at = HEADER_BYTES + compressed;
    *packed_length = trailer_at + TRAILER_BYTES;
    packed[..12].copy_from_slice(&HEADER_START);
    packed[12..16].copy_from_slice(&SIZE_SUBFIELD);
    packed[16..20].copy_from_slice(&(*packed_length as u32).to_le_bytes());
    packed[trailer_at..trailer_at + 4].copy_from_slice(&libdeflater::crc32(raw).to_le_bytes());
    packed[trailer_at + 4..*packed_length].copy_from_slice(&(raw.len() as u32).to_le_bytes());
    Ok(())
}

fn compressor() -> Compressor {
    // The only level out of libdeflate's range would be one above 12.
    Compressor::new(CompressionLvl::new(1).unwrap_or_default())
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Before compression.
    pub bytes: u64,
    /// In the file.
    pub compressed_bytes: u64,
}

/// Compresses the bytes put into it and writes the members to `out`, in order, from the caller's thread.
///
/// Memory: at most six blocks of two MiB. After an error nothing further may be put in.
pub struct MemberWriter<W: io::Write> {
    out: W,
    name: String,
    cancel: Cancel,
    current: Block,
    queue: Queue<Block>,
    workers: Workers<Block>,
    written: Written,
}

impl<W: io::Write> MemberWriter<W> {
    /// A writer to `out`; `name` is how errors call it (its path).
    pub fn new(out: W, name: impl Into<String>, cancel: &Cancel) -> Self {
        // One block being filled, one per worker, one that waits for a worker or to be written.
        let queue = Queue::<Block>::new(parallelism() + 2);
        let mut current = queue.try_acquire().unwrap_or_default();
        ensure_length(&mut current.raw, CHUNK_BYTES);
        Self {
            out,
            name: name.into(),
            cancel: cancel.clone(),
            current,
            workers: Workers::new(queue.clone()),
            queue,
            written: Written { bytes: 0, compressed_bytes: 0 },
        }
    }

    /// Hands the current block to the workers and gets an empty one, writing finished ones out while there is none.
    fn flush(&mut self) -> Result<()> {
        self.cancel.check()?;
        let mut next = loop {
            if let Some(block) = self.queue.try_acquire() {
                break block;
            }
            self.write_next()?;
        };
        ensure_length(&mut next.raw, CHUNK_BYTES);
        next.raw_length = 0;
        let full = std::mem::replace(&mut self.current, next);
        self.written.bytes += full.raw_length as u64;
        self.workers.submit(full, || {
            let mut compressor = compressor();
            move |block: &mut Block| pack(&mut compressor, block)
        })
    }

    /// Waits for the next compressed block and writes it; false when there is none left.
    fn write_next(&mut self) -> Result<bool> {
        let Some(block) = self.queue.take() else { return Ok(false) };
        let block = block?;
        self.write_out(&block)?;
        self.queue.release(block);
        Ok(true)
    }

    fn write_out(&mut self, block: &Block) -> Result<()> {
        self.cancel.check()?;
        let packed = &block.packed[..block.packed_length];
        self.out.write_all(packed).map_err(|error| Error::io(format_args!("cannot write {}", self.name), &error))?;
        self.written.compressed_bytes += packed.len() as u64;
        Ok(())
    }

    /// Writes what is left and returns the sizes. Making it durable is the caller's business.
    pub fn finish(mut self) -> Result<Written> {
        if self.workers.is_empty() {
            // A stream of less than one chunk, an empty one too: no thread was needed, none is started now.
            let mut only = std::mem::take(&mut self.current);
            self.written.bytes = only.raw_length as u64;
            pack(&mut compressor(), &mut only)?;
            self.write_out(&only)?;
        } else {
            if self.current.raw_length > 0 {
                self.flush()?;
            }
            self.queue.end();
            while self.write_next()? {}
        }
        self.out.flush().map_err(|error| Error::io(format_args!("cannot write {}", self.name), &error))?;
        Ok(self.written)
    }
}

impl<W: io::Write> Drop for MemberWriter<W> {
    fn drop(&mut self) {
        // Lets the workers end; `workers` waits for them when it is dropped after this.
        self.queue.abandon();
    }
}

impl<W: io::Write> Sink for MemberWriter<W> {
    fn put(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.current.raw_length == CHUNK_BYTES {
                self.flush()?;
            }
            let at = self.current.raw_length;
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK_BYTES - at));
            self.current.raw[at..at + now.len()].copy_from_slice(now);
            self.current.raw_length += now.len();
            bytes = later;
        }
        Ok(())
    }

    #[inline]
    fn room(&mut self, length: usize) -> Option<&mut [u8]> {
        let start = self.current.raw_length;
        let out = self.current.raw.get_mut(start..start + length)?;
        // The buffer is exactly one chunk, so this never exceeds it.
        self.current.raw_length = start + length;
        Some(out)
    }
}
