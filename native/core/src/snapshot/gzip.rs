//! The gzip layer of what is written: a stream of members of one MiB each.
//!
//! A member (RFC 1952) of ours carries its own total size in an extra field, as BGZF does, so that a reader finds the next one
//! without inflating this one and can inflate several at a time. Other readers ignore the field and see an ordinary
//! multi-member stream.

use std::io::{self, SeekFrom};

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
    /// The member holds the place of a late piece of this number.
    pub late: Option<usize>,
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

/// Bytes of a late member apart from its content and padding: header, end of the comment, head of the stored block, trailer.
const LATE_OVERHEAD_BYTES: usize = 10 + 1 + 5 + TRAILER_BYTES;

/// A member of exactly `LATE_OVERHEAD_BYTES + max` bytes whatever the length of its content: stored, and padded by the comment of its
/// header. Readers see an ordinary member.
fn late_member(content: &[u8], max: usize) -> Vec<u8> {
    let mut member = vec![MAGIC[0], MAGIC[1], METHOD_DEFLATE, FLAG_COMMENT, 0, 0, 0, 0, 4, 255];
    member.resize(member.len() + max - content.len(), b' ');
    // End of the comment; final block, stored.
    member.extend_from_slice(&[0, 1]);
    let length = content.len() as u16;
    member.extend_from_slice(&length.to_le_bytes());
    member.extend_from_slice(&(!length).to_le_bytes());
    member.extend_from_slice(content);
    member.extend_from_slice(&libdeflater::crc32(content).to_le_bytes());
    member.extend_from_slice(&u32::from(length).to_le_bytes());
    member
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Before compression.
    pub bytes: u64,
    /// In the file.
    pub compressed_bytes: u64,
}

/// A late piece that got a member of its own, because the chunk it belongs to was full before it was known.
struct LatePiece {
    /// Where the member is in the file; known when what comes before it is written.
    offset: u64,
    max: usize,
    content: Vec<u8>,
}

/// Where the late piece that is owed belongs.
#[derive(Clone, Copy)]
enum Late {
    None,
    /// Into the current chunk, at this position; room is kept for it.
    InChunk {
        at: usize,
        max: usize,
    },
    /// Into the member of this number.
    InMember(usize),
}

/// Compresses the bytes put into it and writes the members to `out` (from its start, in order, from the caller's thread; late pieces
/// at the end).
///
/// Memory: at most six blocks of two MiB. After an error nothing further may be put in.
pub struct MemberWriter<W: io::Write + io::Seek> {
    out: W,
    name: String,
    cancel: Cancel,
    current: Block,
    /// How far the current chunk may be filled.
    limit: usize,
    late: Late,
    late_pieces: Vec<LatePiece>,
    queue: Queue<Block>,
    workers: Workers<Block>,
    written: Written,
}

impl<W: io::Write + io::Seek> MemberWriter<W> {
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
            limit: CHUNK_BYTES,
            late: Late::None,
            late_pieces: Vec::new(),
            workers: Workers::new(queue.clone()),
            queue,
            written: Written { bytes: 0, compressed_bytes: 0 },
        }
    }

    /// An empty block; finished ones are written out while there is none.
    fn acquire(&mut self) -> Result<Block> {
        loop {
            if let Some(mut block) = self.queue.try_acquire() {
                block.raw_length = 0;
                block.late = None;
                return Ok(block);
            }
            self.write_next()?;
        }
    }

    /// Hands the current block to the workers and goes on with an empty one. If the chunk owes a late piece, what follows its place
    /// becomes the start of the next chunk, and the piece gets a member of its own between the two.
    fn flush(&mut self) -> Result<()> {
        self.cancel.check()?;
        let mut next = self.acquire()?;
        ensure_length(&mut next.raw, CHUNK_BYTES);
        let mut held = None;
        if let Late::InChunk { at, max } = self.late {
            let tail = &self.current.raw[at..self.current.raw_length];
            next.raw[..tail.len()].copy_from_slice(tail);
            next.raw_length = tail.len();
            self.current.raw_length = at;
            let mut place = self.acquire()?;
            place.late = Some(self.late_pieces.len());
            place.packed_length = LATE_OVERHEAD_BYTES + max;
            ensure_length(&mut place.packed, place.packed_length);
            held = Some(place);
            self.late = Late::InMember(self.late_pieces.len());
            self.late_pieces.push(LatePiece { offset: 0, max, content: Vec::new() });
            self.limit = CHUNK_BYTES;
        }
        let full = std::mem::replace(&mut self.current, next);
        if full.raw_length > 0 {
            self.written.bytes += full.raw_length as u64;
            self.workers.submit(full, || {
                let mut compressor = compressor();
                move |block: &mut Block| pack(&mut compressor, block)
            })?;
        } else {
            self.queue.release(full);
        }
        if let Some(place) = held {
            self.queue.deliver(Ok(place));
        }
        Ok(())
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
        if let Some(piece) = block.late.and_then(|number| self.late_pieces.get_mut(number)) {
            piece.offset = self.written.compressed_bytes;
        }
        let packed = &block.packed[..block.packed_length];
        self.out.write_all(packed).map_err(|error| self.failed(&error))?;
        self.written.compressed_bytes += packed.len() as u64;
        Ok(())
    }

    fn failed(&self, error: &io::Error) -> Error {
        Error::io(format_args!("cannot write {}", self.name), error)
    }

    /// Writes what is left and returns the sizes. Making it durable is the caller's business.
    pub fn finish(mut self) -> Result<Written> {
        if self.workers.is_empty() && self.late_pieces.is_empty() {
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
        for piece in std::mem::take(&mut self.late_pieces) {
            let member = late_member(&piece.content, piece.max);
            self.out
                .seek(SeekFrom::Start(piece.offset))
                .and_then(|_| self.out.write_all(&member))
                .map_err(|error| self.failed(&error))?;
        }
        self.out.seek(SeekFrom::End(0)).and_then(|_| self.out.flush()).map_err(|error| self.failed(&error))?;
        Ok(self.written)
    }
}

impl<W: io::Write + io::Seek> Drop for MemberWriter<W> {
    fn drop(&mut self) {
        // Lets the workers end; `workers` waits for them when it is dropped after this.
        self.queue.abandon();
    }
}

impl<W: io::Write + io::Seek> Sink for MemberWriter<W> {
    fn put(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.current.raw_length == self.limit {
                self.flush()?;
            }
            let at = self.current.raw_length;
            let (now, later) = bytes.split_at(bytes.len().min(self.limit - at));
            self.current.raw[at..at + now.len()].copy_from_slice(now);
            self.current.raw_length += now.len();
            bytes = later;
        }
        Ok(())
    }

    #[inline]
    fn room(&mut self, length: usize) -> Option<&mut [u8]> {
        let start = self.current.raw_length;
        let end = start + length;
        if end > self.limit {
            return None;
        }
        self.current.raw_length = end;
        self.current.raw.get_mut(start..end)
    }

    fn begin_late(&mut self, max: usize) -> Result<()> {
        if self.current.raw_length + max >= CHUNK_BYTES {
            self.flush()?;
        }
        self.late = Late::InChunk { at: self.current.raw_length, max };
        self.limit = CHUNK_BYTES - max;
        Ok(())
    }

    fn end_late(&mut self, piece: &[u8]) {
        match std::mem::replace(&mut self.late, Late::None) {
            Late::None => {}
            Late::InChunk { at, .. } => {
                let Block { raw, raw_length, .. } = &mut self.current;
                raw.copy_within(at..*raw_length, at + piece.len());
                raw[at..at + piece.len()].copy_from_slice(piece);
                *raw_length += piece.len();
                self.limit = CHUNK_BYTES;
            }
            Late::InMember(number) => {
                self.late_pieces[number].content = piece.to_vec();
                self.written.bytes += piece.len() as u64;
            }
        }
    }
}
