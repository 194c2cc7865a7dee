//! The gzip layer of what is read: the stream's bytes in blocks, in order, inflated on other threads.
//!
//! One thread reads the file. Members that say how long they are (`gzip.rs`) it passes to workers that inflate them whole, several
//! at a time; any other member it inflates itself as a stream. Whichever way, checksum and length are compared, and
//! whatever follows the last member must be a member too.

use std::io::{BufRead, BufReader, Read};
use std::thread::JoinHandle;

use flate2::{Decompress, FlushDecompress, Status};
use libdeflater::Crc;

use crate::cancel::Cancel;
use crate::error::{Error, Result};

use super::gzip::{
    self, Block, CHUNK_BYTES, HEADER_BYTES, MAX_MEMBER_BYTES, SIZE_SUBFIELD, TRAILER_BYTES, ensure_length,
};
use super::pipeline::{Queue, Workers, guarded, parallelism, spawn};

/// Uncompressed bytes per block of a member inflated as a stream.
const STREAM_BLOCK_BYTES: usize = 256 << 10;
/// Compressed bytes read at a time.
const INPUT_BYTES: usize = 128 << 10;
/// The shortest member of ours: an empty deflate stream takes two bytes.
const MIN_MEMBER_BYTES: usize = HEADER_BYTES + 2 + TRAILER_BYTES;

/// The uncompressed stream. Dropping it ends the threads.
pub(super) struct Blocks {
    queue: Queue<Block>,
    feeder: Option<JoinHandle<()>>,
}

impl Blocks {
    /// Starts reading `source`; `name` is how errors call it.
    pub fn start(source: impl Read + Send + 'static, name: String, cancel: &Cancel) -> Result<Self> {
        // One with the consumer, one per worker, one being read or ready.
        let queue = Queue::new(parallelism() + 2);
        let mut feeder = Feeder {
            input: Input { reader: BufReader::with_capacity(INPUT_BYTES, source), offset: 0, name },
            queue: queue.clone(),
            workers: Workers::new(queue.clone()),
            cancel: cancel.clone(),
            stream: None,
        };
        let feeder = spawn("ls-codec-read", move || {
            let result = guarded(|| feeder.run());
            if let Err(error) = result {
                feeder.queue.deliver(Err(error));
            }
            feeder.queue.end();
        })?;
        Ok(Self { queue, feeder: Some(feeder) })
    }

    /// The next block, which may be empty; `None` at the end of a stream that was whole. Not to be called again after an error.
    pub fn next(&mut self) -> Result<Option<Block>> {
        self.queue.take().transpose()
    }

    pub fn release(&mut self, block: Block) {
        self.queue.release(block);
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        self.queue.abandon();
        if let Some(feeder) = self.feeder.take() {
            let _ = feeder.join();
        }
    }
}

/// The compressed file, read forward, with the position for messages.
struct Input<R> {
    reader: BufReader<R>,
    offset: u64,
    name: String,
}

impl<R: Read> Input<R> {
    /// What is buffered, at least one byte unless the file is at its end.
    fn peek(&mut self) -> Result<&[u8]> {
        loop {
            match self.reader.fill_buf() {
                Ok(_) => break,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io(format_args!("cannot read {}", self.name), &error)),
            }
        }
        Ok(self.reader.buffer())
    }

    fn consume(&mut self, length: usize) {
        self.reader.consume(length);
        self.offset += length as u64;
    }

    fn read_exact(&mut self, out: &mut [u8]) -> Result<()> {
        match self.reader.read_exact(out) {
            Ok(()) => {
                self.offset += out.len() as u64;
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(self.truncated()),
            Err(error) => Err(Error::io(format_args!("cannot read {}", self.name), &error)),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        self.read_exact(&mut out)?;
        Ok(out)
    }

    fn truncated(&self) -> Error {
        Error::corrupt(format!("the gzip stream is cut short: it ends inside a member, after byte {}", self.offset))
    }
}

fn corrupt_member(what: &str, at: u64) -> Error {
    Error::corrupt(format!("{what} in the gzip member that begins at byte {at}"))
}

/// State of a member inflated piece by piece; kept for the next such member.
struct Stream {
    inflater: Decompress,
    /// The block being filled.
    block: Option<Block>,
}

struct Feeder<R> {
    input: Input<R>,
    queue: Queue<Block>,
    workers: Workers<Block>,
    cancel: Cancel,
    stream: Option<Stream>,
}

impl<R: Read> Feeder<R> {
    /// Reads the file to its end, or until nobody wants more.
    fn run(&mut self) -> Result<()> {
        if self.input.peek()?.is_empty() {
            return Err(Error::corrupt("the file is empty, expected a gzip stream"));
        }
        while !self.input.peek()?.is_empty() {
            self.cancel.check()?;
            let at = self.input.offset;
            let go_on = match self.header()? {
                Some(size) => self.flush_stream() && self.whole_member(at, size)?,
                None => self.stream_member(at)?,
            };
            if !go_on {
                return Ok(());
            }
        }
        self.flush_stream();
        Ok(())
    }

    /// Reads a member's header (RFC 1952, 2.3); returns the total size if it is a member of ours.
    fn header(&mut self) -> Result<Option<u32>> {
        let at = self.input.offset;
        let not_gzip = || {
            Error::corrupt(if at == 0 {
                "not a gzip stream".to_owned()
            } else {
                format!("something else than a gzip member follows at byte {at} of the file")
            })
        };
        // Whatever is there is looked at first, so that a short tail is called what it is.
        let start = self.input.peek()?;
        if !gzip::MAGIC.starts_with(&start[..start.len().min(2)]) && !start.starts_with(&gzip::MAGIC) {
            return Err(not_gzip());
        }
        let fixed: [u8; 10] = self.input.array()?;
        let flags = fixed[3];
        if fixed[..2] != gzip::MAGIC || fixed[2] != gzip::METHOD_DEFLATE || flags & gzip::FLAGS_RESERVED != 0 {
            return Err(not_gzip());
        }
        let mut crc = Crc::new();
        crc.update(&fixed);
        let mut size = None;
        if flags & gzip::FLAG_EXTRA != 0 {
            let length: [u8; 2] = self.input.array()?;
            let mut extra = vec![0; usize::from(u16::from_le_bytes(length))];
            self.input.read_exact(&mut extra)?;
            crc.update(&length);
            crc.update(&extra);
            if let (gzip::FLAG_EXTRA, [id @ .., a, b, c, d]) = (flags, extra.as_slice())
                && *id == SIZE_SUBFIELD
            {
                size = Some(u32::from_le_bytes([*a, *b, *c, *d]));
            }
        }
        for text in [gzip::FLAG_NAME, gzip::FLAG_COMMENT] {
            if flags & text != 0 {
                self.skip_text(&mut crc)?;
            }
        }
        if flags & gzip::FLAG_HEADER_CRC != 0 && u16::from_le_bytes(self.input.array()?) != crc.sum() as u16 {
            return Err(corrupt_member("the checksum of the header is wrong", at));
        }
        Ok(size)
    }

    /// Skips a text that ends with a zero byte.
    fn skip_text(&mut self, crc: &mut Crc) -> Result<()> {
        loop {
            let buffered = self.input.peek()?;
            let end = buffered.iter().position(|&byte| byte == 0);
            let length = end.map_or(buffered.len(), |end| end + 1);
            crc.update(&buffered[..length]);
            if length == 0 {
                return Err(self.input.truncated());
            }
            self.input.consume(length);
            if end.is_some() {
                return Ok(());
            }
            self.cancel.check()?;
        }
    }

    /// Passes a member of ours on to the workers. False when nobody wants it.
    fn whole_member(&mut self, at: u64, size: u32) -> Result<bool> {
        let size = size as usize;
        if !(MIN_MEMBER_BYTES..=MAX_MEMBER_BYTES).contains(&size) {
            return Err(corrupt_member(&format!("the size {size} is impossible"), at));
        }
        let Some(mut block) = self.queue.acquire() else { return Ok(false) };
        ensure_length(&mut block.packed, MAX_MEMBER_BYTES);
        block.packed_length = size - HEADER_BYTES;
        block.packed_at = at;
        self.input.read_exact(&mut block.packed[..size - HEADER_BYTES])?;
        self.workers.submit(block, || {
            let mut inflater = Decompress::new(false);
            move |block: &mut Block| unpack(&mut inflater, block)
        })?;
        Ok(true)
    }

    /// Inflates a member of unknown size. False when nobody wants the rest.
    fn stream_member(&mut self, at: u64) -> Result<bool> {
        let Self { input, queue, cancel, .. } = self;
        let stream = self.stream.get_or_insert_with(|| Stream { inflater: Decompress::new(false), block: None });
        stream.inflater.reset(false);
        let mut crc = Crc::new();
        loop {
            let block = match &mut stream.block {
                Some(block) => block,
                None => {
                    cancel.check()?;
                    let Some(mut block) = queue.acquire() else { return Ok(false) };
                    ensure_length(&mut block.raw, STREAM_BLOCK_BYTES);
                    block.raw_length = 0;
                    stream.block.insert(block)
                }
            };
            let compressed = input.peek()?;
            let out = &mut block.raw[block.raw_length..STREAM_BLOCK_BYTES];
            let (read_before, written_before) = (stream.inflater.total_in(), stream.inflater.total_out());
            let status = stream.inflater.decompress(compressed, out, FlushDecompress::None);
            let read = (stream.inflater.total_in() - read_before) as usize;
            let written = (stream.inflater.total_out() - written_before) as usize;
            crc.update(&out[..written]);
            block.raw_length += written;
            let at_end = compressed.is_empty();
            input.consume(read);
            match status {
                Ok(Status::StreamEnd) => break,
                Ok(_) if read > 0 || written > 0 => {}
                Ok(_) if at_end => return Err(input.truncated()),
                // No progress with input and room at hand cannot happen; it must not become an endless loop.
                Ok(_) | Err(_) => return Err(corrupt_member("invalid compressed data", at)),
            }
            if block.raw_length == STREAM_BLOCK_BYTES
                && let Some(full) = stream.block.take()
            {
                queue.deliver(Ok(full));
            }
        }
        let trailer: [u8; TRAILER_BYTES] = input.array()?;
        check_trailer(&trailer, crc.sum(), stream.inflater.total_out() as u32, at)?;
        if stream.block.as_ref().is_some_and(|block| block.raw_length == STREAM_BLOCK_BYTES) {
            return Ok(self.flush_stream());
        }
        Ok(true)
    }

    /// Hands over what streamed members left in an unfinished block (many small ones share one). Always true.
    fn flush_stream(&mut self) -> bool {
        if let Some(block) = self.stream.as_mut().and_then(|stream| stream.block.take()) {
            self.queue.deliver(Ok(block));
        }
        true
    }
}

fn check_trailer(trailer: &[u8; TRAILER_BYTES], crc: u32, length: u32, at: u64) -> Result<()> {
    let [a, b, c, d, e, f, g, h] = *trailer;
    if u32::from_le_bytes([a, b, c, d]) != crc {
        return Err(corrupt_member("the checksum is wrong", at));
    }
    if u32::from_le_bytes([e, f, g, h]) != length {
        return Err(corrupt_member("the length is wrong", at));
    }
    Ok(())
}

/// Inflates a member of ours without its header.
///
/// By zlib-rs although libdeflate is a fifth faster: libdeflate's safe interface does not tell how much input it used, and bytes
/// hidden between the compressed data and the trailer would be a stream to other readers and not to us.
fn unpack(inflater: &mut Decompress, block: &mut Block) -> Result<()> {
    let Block { raw, raw_length, packed, packed_length, packed_at, .. } = block;
    let at = *packed_at;
    let Some((deflated, trailer)) = packed[..*packed_length].split_last_chunk::<TRAILER_BYTES>() else {
        return Err(corrupt_member("the size is impossible", at));
    };
    ensure_length(raw, CHUNK_BYTES);
    inflater.reset(false);
    match inflater.decompress(deflated, raw, FlushDecompress::Finish) {
        Ok(Status::StreamEnd) if inflater.total_in() == deflated.len() as u64 => {}
        // Invalid, or shorter or longer than the extra field promises.
        _ => return Err(corrupt_member("invalid compressed data", at)),
    }
    *raw_length = inflater.total_out() as usize;
    check_trailer(trailer, libdeflater::crc32(&raw[..*raw_length]), *raw_length as u32, at)
}
