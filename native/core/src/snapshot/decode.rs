//! Reading a snapshot: entries one by one out of a stream of blocks.
//!
//! What can be wrong falls into two kinds. Damage that reading alone shows (gzip, framing of Snapshot, Meta and DBI messages) is
//! [`Code::SnapshotCorrupt`](crate::Code::SnapshotCorrupt): an older snapshot may be used instead. A malformed entry message is
//! [`Code::SnapshotRefused`](crate::Code::SnapshotRefused). A file can have both; since the reader stops at the first,
//! whoever cares which it is runs [`Index::scan`] after a refusal: it looks at the framing of the whole file only.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use crate::cancel::Cancel;
use crate::error::{Error, Result};

use super::gzip::Block;
use super::inflate::Blocks;
use super::meta::Meta;
use super::wire::{self, Fault};

/// What is known of a DBI message when its first entry comes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DbiHeader {
    /// Number of the DBI message in the snapshot, from 0. Several may have one name.
    pub index: usize,
    /// May be empty or otherwise unfit for LMDB: not checked here.
    pub name: String,
    /// Flags of the DBI as they are in the snapshot.
    pub flags: u64,
    /// `""`, or what was done to the entries.
    pub transform: String,
    /// Uncompressed bytes of the whole message.
    pub message_len: u64,
}

/// What [`Reader::next`] finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The entries of this DBI follow.
    Dbi(&'a DbiHeader),
    /// An entry of the last DBI. The key is never empty; LMDB may still find it too long.
    Entry {
        /// The key.
        key: &'a [u8],
        /// The application's value, without a header.
        value: &'a [u8],
        /// ns since the epoch.
        timestamp: u64,
        /// All 32 bits as they are in the snapshot.
        flags: u32,
    },
    /// Versions, or the name, flags or transform of a DBI, come later than what they are about (legal, and written by nobody known):
    /// start again with an [`Index`]. What was read so far must not be used. Never comes when an index was given.
    NeedsIndex,
    /// The whole file was read and every checksum was right.
    End,
}

/// One DBI message, as it is in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexedDbi {
    /// The header that a reader will report.
    pub header: DbiHeader,
    /// Number of entries.
    pub entries: u64,
}

/// What a snapshot says apart from its entries, gathered by a pass over the whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// Final formatVersion; 0 = there is none.
    pub format_version: u32,
    /// Final compatVersion; 0 = there is none.
    pub compat_version: u32,
    /// Final Meta.
    pub meta: Meta,
    /// The DBI messages in order.
    pub dbis: Vec<IndexedDbi>,
    /// Entries of all DBIs.
    pub entries: u64,
    /// Uncompressed bytes of the snapshot.
    pub bytes: u64,
}

impl Index {
    /// Reads the whole file and checks everything but the inside of entries.
    pub fn scan(path: &Path, cancel: &Cancel) -> Result<Self> {
        let (file, name) = open(path)?;
        Self::scan_source(file, name, cancel)
    }

    /// Like [`Index::scan`] for any source of gzip bytes; `name` is how errors call it.
    pub fn scan_source(source: impl Read + Send + 'static, name: String, cancel: &Cancel) -> Result<Self> {
        let mut parser = Parser::new(Input::start(source, name, cancel)?, Mode::Scan);
        let mut dbis: Vec<IndexedDbi> = Vec::new();
        let mut entries = 0;
        loop {
            match parser.advance()? {
                Step::Dbi => dbis.push(IndexedDbi { header: parser.dbi.clone(), entries: parser.dbi_entries }),
                Step::End => break,
                Step::Entry { .. } | Step::NeedsIndex => {}
            }
        }
        for dbi in &dbis {
            entries += dbi.entries;
        }
        let Parser { format_version, compat_version, meta, input, .. } = parser;
        Ok(Self { format_version, compat_version, meta, dbis, entries, bytes: input.offset() })
    }
}

/// Reads the entries of a snapshot, in the order of the file.
///
/// Memory is bounded: some blocks of the stream, and one entry of at most [`wire::MAX_ENTRY_BYTES`] when it lies across blocks.
/// Versions, transforms and flags are reported, not judged. Dropping the reader ends its threads.
pub struct Reader {
    parser: Parser,
}

impl Reader {
    /// Opens a snapshot file; `index` is given when an earlier reader reported [`Event::NeedsIndex`].
    pub fn open(path: &Path, cancel: &Cancel, index: Option<Index>) -> Result<Self> {
        let (file, name) = open(path)?;
        Self::from_source(file, name, cancel, index)
    }

    /// Like [`Reader::open`] for any source of gzip bytes; `name` is how errors call it.
    pub fn from_source(
        source: impl Read + Send + 'static,
        name: String,
        cancel: &Cancel,
        index: Option<Index>,
    ) -> Result<Self> {
        let mode = index.map_or(Mode::Stream, |index| Mode::Indexed(Box::new(index)));
        Ok(Self { parser: Parser::new(Input::start(source, name, cancel)?, mode) })
    }

    /// The next thing in the file. Not to be called again after an error, [`Event::NeedsIndex`] or [`Event::End`].
    // An iterator cannot lend.
    #[allow(clippy::should_implement_trait)]
    #[inline]
    pub fn next(&mut self) -> Result<Event<'_>> {
        let step = self.parser.advance()?;
        Ok(match step {
            Step::Entry { key, value, timestamp, flags } => {
                let body = self.parser.input.taken();
                Event::Entry { key: &body[key], value: &body[value], timestamp, flags }
            }
            Step::Dbi => Event::Dbi(&self.parser.dbi),
            Step::NeedsIndex => Event::NeedsIndex,
            Step::End => Event::End,
        })
    }

    /// formatVersion: final with an index or after [`Event::End`], and never 0 at a DBI unless the snapshot has none.
    #[must_use]
    pub fn format_version(&self) -> u32 {
        self.parser.index().map_or(self.parser.format_version, |index| index.format_version)
    }

    /// compatVersion as far as it was seen; 0 = none.
    #[must_use]
    pub fn compat_version(&self) -> u32 {
        self.parser.index().map_or(self.parser.compat_version, |index| index.compat_version)
    }

    /// Meta as far as it was seen.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        self.parser.index().map_or(&self.parser.meta, |index| &index.meta)
    }

    /// Uncompressed bytes read so far.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.parser.input.offset()
    }

    /// Bytes of the buffer for entries that lie across blocks: the only one that grows with the input.
    #[must_use]
    pub fn gather_capacity(&self) -> usize {
        self.parser.input.gathered.capacity()
    }
}

fn open(path: &Path) -> Result<(File, String)> {
    let name = path.display().to_string();
    match File::open(path) {
        Ok(file) => Ok((file, name)),
        Err(error) => Err(Error::io(format_args!("cannot open {name}"), &error)),
    }
}

/// A finding of the parser, without borrowing from it.
enum Step {
    Dbi,
    /// Ranges within [`Input::taken`].
    Entry {
        key: Range<usize>,
        value: Range<usize>,
        timestamp: u64,
        flags: u32,
    },
    NeedsIndex,
    End,
}

enum Mode {
    /// Report what comes as it comes.
    Stream,
    /// Report the final values, known beforehand.
    Indexed(Box<Index>),
    /// Do not look into entries; report each DBI at its end.
    Scan,
}

struct Parser {
    input: Input,
    mode: Mode,
    format_version: u32,
    compat_version: u32,
    meta: Meta,
    /// DBI messages begun so far.
    dbis_begun: usize,
    /// The current or last DBI message.
    dbi: DbiHeader,
    /// Where the current DBI message ends; `None` between them.
    dbi_end: Option<u64>,
    dbi_entries: u64,
    /// Start and length of an entry whose DBI has to be reported first.
    pending: Option<(u64, u64)>,
    /// The current DBI was reported and its first entry is out: name, flags and transform are settled.
    dbi_reported: bool,
    /// Some DBI was reported: the versions are settled.
    any_reported: bool,
}

impl Parser {
    fn new(input: Input, mode: Mode) -> Self {
        Self {
            input,
            mode,
            format_version: 0,
            compat_version: 0,
            meta: Meta::default(),
            dbis_begun: 0,
            dbi: DbiHeader::default(),
            dbi_end: None,
            dbi_entries: 0,
            pending: None,
            dbi_reported: false,
            any_reported: false,
        }
    }

    fn index(&self) -> Option<&Index> {
        match &self.mode {
            Mode::Indexed(index) => Some(index),
            _ => None,
        }
    }

    #[inline]
    fn advance(&mut self) -> Result<Step> {
        if self.dbi_reported
            && let Some(end) = self.dbi_end
            && let Some(at) = self.input.take_entry(end)
        {
            return self.entry(at);
        }
        self.advance_slowly()
    }

    /// Everything but the usual case: one field at a time, wherever blocks end.
    #[inline(never)]
    fn advance_slowly(&mut self) -> Result<Step> {
        if let Some((at, length)) = self.pending.take() {
            self.dbi_reported = true;
            return self.slow_entry(at, length);
        }
        loop {
            let step = match self.dbi_end {
                None => self.snapshot_field()?,
                Some(end) if self.input.offset() == end => self.end_dbi()?,
                Some(end) => self.dbi_field(end)?,
            };
            if let Some(step) = step {
                return Ok(step);
            }
        }
    }

    fn snapshot_field(&mut self) -> Result<Option<Step>> {
        if self.input.at_end()? {
            return Ok(Some(Step::End));
        }
        let at = self.input.offset();
        let within = Within { what: "the snapshot", end: u64::MAX };
        let tag = self.input.varint(within)?;
        match tag {
            wire::SNAPSHOT_FORMAT_VERSION | wire::SNAPSHOT_COMPAT_VERSION => {
                let value = self.input.varint(within)?;
                let Ok(value) = u32::try_from(value) else {
                    return Err(corrupt(at, format!("version {value} is out of range")));
                };
                let field = if tag == wire::SNAPSHOT_FORMAT_VERSION {
                    &mut self.format_version
                } else {
                    &mut self.compat_version
                };
                let changed = *field != value;
                *field = value;
                if changed && self.any_reported && matches!(self.mode, Mode::Stream) {
                    return Ok(Some(Step::NeedsIndex));
                }
            }
            wire::SNAPSHOT_META => {
                let length = self.input.varint(within)?;
                if length > wire::MAX_META_BYTES {
                    return Err(corrupt(
                        at,
                        format!("Meta has {length} bytes, at most {} are read", wire::MAX_META_BYTES),
                    ));
                }
                let start = self.input.offset();
                self.input.take(length, "Meta")?;
                let body = self.input.taken();
                self.meta.merge(body).map_err(|fault| in_message("Meta", start, fault))?;
            }
            wire::SNAPSHOT_DATABASES => {
                let length = self.input.varint(within)?;
                let Some(end) = self.input.offset().checked_add(length) else {
                    return Err(corrupt(at, format!("a DBI message of {length} bytes is impossible")));
                };
                if self.dbis_begun == wire::MAX_DBI_MESSAGES {
                    return Err(corrupt(at, format!("more than {} DBI messages", wire::MAX_DBI_MESSAGES)));
                }
                self.dbi = DbiHeader { index: self.dbis_begun, message_len: length, ..DbiHeader::default() };
                self.dbi_entries = 0;
                self.dbis_begun += 1;
                self.dbi_reported = false;
                self.dbi_end = Some(end);
            }
            _ => self.skip_field(at, tag, within, wire::SNAPSHOT_FIELDS)?,
        }
        Ok(None)
    }

    fn dbi_field(&mut self, end: u64) -> Result<Option<Step>> {
        let at = self.input.offset();
        let within = Within { what: "a DBI message", end };
        let tag = self.input.varint(within)?;
        match tag {
            wire::DBI_ENTRIES => {
                let length = self.input.length(within, at)?;
                self.dbi_entries += 1;
                if matches!(self.mode, Mode::Scan) {
                    self.input.skip(length, within)?;
                } else if self.dbi_reported {
                    return self.slow_entry(at, length).map(Some);
                } else {
                    self.pending = Some((at, length));
                    return self.report_dbi(false).map(Some);
                }
            }
            wire::DBI_NAME => {
                let name = self.input.text(within, at, "name")?;
                return Ok(self.settle(|dbi| &mut dbi.name, name));
            }
            wire::DBI_TRANSFORM => {
                let transform = self.input.text(within, at, "transform")?;
                return Ok(self.settle(|dbi| &mut dbi.transform, transform));
            }
            wire::DBI_FLAGS => {
                let flags = self.input.varint(within)?;
                return Ok(self.settle(|dbi| &mut dbi.flags, flags));
            }
            _ => self.skip_field(at, tag, within, wire::DBI_FIELDS)?,
        }
        Ok(None)
    }

    /// Stores a property of the current DBI. One that changes after the report makes the report wrong.
    fn settle<T: PartialEq>(&mut self, field: impl FnOnce(&mut DbiHeader) -> &mut T, value: T) -> Option<Step> {
        if matches!(self.mode, Mode::Indexed(_)) && self.dbi_reported {
            return None;
        }
        let field = field(&mut self.dbi);
        let changed = *field != value;
        *field = value;
        (changed && self.dbi_reported && matches!(self.mode, Mode::Stream)).then_some(Step::NeedsIndex)
    }

    /// At the first entry of a DBI message or, `at_end`, at the end of one without entries.
    fn report_dbi(&mut self, at_end: bool) -> Result<Step> {
        if let Mode::Indexed(index) = &self.mode {
            match index.dbis.get(self.dbi.index) {
                Some(dbi) => self.dbi.clone_from(&dbi.header),
                None => return Err(Error::corrupt("the file has changed since it was scanned")),
            }
        } else if matches!(self.mode, Mode::Stream) && (self.format_version == 0 || self.dbi.name.is_empty() && !at_end)
        {
            return Ok(Step::NeedsIndex);
        }
        self.any_reported = true;
        Ok(Step::Dbi)
    }

    fn end_dbi(&mut self) -> Result<Option<Step>> {
        self.dbi_end = None;
        if self.dbi_reported { Ok(None) } else { self.report_dbi(true).map(Some) }
    }

    fn skip_field(&mut self, at: u64, tag: u64, within: Within, fields: &[(u64, &str)]) -> Result<()> {
        if let Some(what) = wire::tag_fault(tag, fields) {
            return Err(corrupt(at, format!("{what}, in {}", within.what)));
        }
        let length = match tag & 7 {
            wire::WIRE_VARINT => return self.input.varint(within).map(drop),
            wire::WIRE_BYTES => self.input.length(within, at)?,
            wire::WIRE_FIXED64 => 8,
            _ => 4,
        };
        self.input.skip(length, within)
    }

    /// An entry wherever its bytes are; its framing begins at byte `at`.
    fn slow_entry(&mut self, at: u64, length: u64) -> Result<Step> {
        if length > wire::MAX_ENTRY_BYTES {
            let what = format!("it has {length} bytes, at most {} are read", wire::MAX_ENTRY_BYTES);
            return Err(self.refused(at, &what));
        }
        let start = self.input.offset();
        self.input.take(length, "an entry")?;
        self.entry(start)
    }

    /// Parses the entry that was taken, which begins at byte `at`.
    #[inline]
    fn entry(&self, at: u64) -> Result<Step> {
        match parse_entry(self.input.taken()) {
            Ok(step) => Ok(step),
            Err(fault) => Err(self.refused(at + fault.at as u64, &fault.what)),
        }
    }

    #[cold]
    fn refused(&self, at: u64, what: &str) -> Error {
        Error::refused(format!("malformed entry at byte {at} of the snapshot: {what}")).in_dbi(self.dbi.name.as_str())
    }
}

/// Parses an entry message. Fields may come in any order, the last of each counts.
#[inline]
fn parse_entry(body: &[u8]) -> std::result::Result<Step, Fault> {
    let (mut key, mut value, mut timestamp, mut flags) = (0..0, 0..0, 0, 0);
    let mut at = 0;
    while at < body.len() {
        let tag_at = at;
        match wire::varint(body, &mut at)? {
            wire::KV_KEY => key = wire::bytes(body, &mut at)?,
            wire::KV_VALUE => value = wire::bytes(body, &mut at)?,
            wire::KV_TIMESTAMP_NANO => timestamp = wire::fixed64(body, &mut at)?,
            // The field has 32 bits; protobuf cuts a longer number.
            wire::KV_FLAGS => flags = wire::varint(body, &mut at)? as u32,
            tag => wire::skip_field(body, &mut at, tag_at, tag, wire::KV_FIELDS)?,
        }
    }
    if key.is_empty() {
        return wire::fault(0, "it has no key");
    }
    Ok(Step::Entry { key, value, timestamp, flags })
}

/// The message that is being read, and where it ends.
#[derive(Clone, Copy)]
struct Within {
    what: &'static str,
    end: u64,
}

#[cold]
fn corrupt(at: u64, what: impl AsRef<str>) -> Error {
    Error::corrupt(format!("malformed data at byte {at} of the snapshot: {}", what.as_ref()))
}

#[cold]
fn in_message(message: &str, start: u64, fault: Fault) -> Error {
    corrupt(start + fault.at as u64, format!("{}, in {message}", fault.what))
}

/// A gathering buffer above this is not kept for the next entry.
const KEEP_GATHERED_BYTES: usize = 4 << 20;

/// The uncompressed bytes: a cursor over blocks.
struct Input {
    blocks: Blocks,
    cancel: Cancel,
    /// The current block; without a buffer before the first and after the last.
    block: Block,
    /// Next byte within the block.
    at: usize,
    /// Where in the snapshot the block begins.
    base: u64,
    state: State,
    /// Bytes that were taken and lie across blocks.
    gathered: Vec<u8>,
    /// What was taken last, in `gathered` or in the block.
    taken: Range<usize>,
    taken_is_gathered: bool,
}

#[derive(PartialEq, Eq)]
enum State {
    Open,
    Ended,
    Failed,
}

impl Input {
    fn start(source: impl Read + Send + 'static, name: String, cancel: &Cancel) -> Result<Self> {
        Ok(Self {
            blocks: Blocks::start(source, name, cancel)?,
            cancel: cancel.clone(),
            block: Block::default(),
            at: 0,
            base: 0,
            state: State::Open,
            gathered: Vec::new(),
            taken: 0..0,
            taken_is_gathered: false,
        })
    }

    /// Bytes read so far.
    fn offset(&self) -> u64 {
        self.base + self.at as u64
    }

    /// The rest of the block.
    fn window(&self) -> &[u8] {
        &self.block.raw[self.at..self.block.raw_length]
    }

    /// True at the end of the snapshot; else at least one byte is in the window.
    fn at_end(&mut self) -> Result<bool> {
        while self.at == self.block.raw_length {
            match self.state {
                State::Open => {}
                State::Ended => return Ok(true),
                State::Failed => return Err(Error::corrupt("the snapshot could not be read any further")),
            }
            self.cancel.check()?;
            self.base += self.block.raw_length as u64;
            self.at = 0;
            let old = std::mem::take(&mut self.block);
            if !old.raw.is_empty() {
                self.blocks.release(old);
            }
            match self.blocks.next() {
                Ok(Some(block)) => self.block = block,
                Ok(None) => self.state = State::Ended,
                Err(error) => {
                    self.state = State::Failed;
                    return Err(error);
                }
            }
        }
        Ok(false)
    }

    #[cold]
    fn truncated(&self, what: &str) -> Error {
        corrupt(self.offset(), format!("the data ends inside {what}"))
    }

    fn byte(&mut self, within: Within) -> Result<u8> {
        if self.offset() >= within.end {
            return Err(corrupt(self.offset(), format!("a number runs past the end of {}", within.what)));
        }
        if self.at_end()? {
            return Err(self.truncated(within.what));
        }
        let byte = self.window()[0];
        self.at += 1;
        Ok(byte)
    }

    fn varint(&mut self, within: Within) -> Result<u64> {
        let start = self.offset();
        let mut value = 0;
        for index in 0.. {
            let byte = self.byte(within)?;
            match wire::varint_step(&mut value, index, byte) {
                Some(true) => break,
                Some(false) => {}
                None => return Err(corrupt(start, "a number is longer than 64 bits")),
            }
        }
        Ok(value)
    }

    /// A length that its message has room for; `at` is where the field begins.
    fn length(&mut self, within: Within, at: u64) -> Result<u64> {
        let length = self.varint(within)?;
        if length > within.end - self.offset() {
            return Err(corrupt(at, format!("a field of {length} bytes runs past the end of {}", within.what)));
        }
        Ok(length)
    }

    /// A short text.
    fn text(&mut self, within: Within, at: u64, field: &str) -> Result<String> {
        let length = self.length(within, at)?;
        if length > wire::MAX_TEXT_BYTES {
            let what = format!("the {field} has {length} bytes, at most {} are read", wire::MAX_TEXT_BYTES);
            return Err(corrupt(at, what));
        }
        self.take(length, within.what)?;
        match std::str::from_utf8(self.taken()) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(corrupt(at, format!("the {field} is not UTF-8"))),
        }
    }

    fn skip(&mut self, mut length: u64, within: Within) -> Result<()> {
        if length > within.end - self.offset() {
            return Err(corrupt(self.offset(), format!("a field runs past the end of {}", within.what)));
        }
        while length > 0 {
            if self.at_end()? {
                return Err(self.truncated(within.what));
            }
            let now = length.min(self.window().len() as u64);
            self.at += now as usize;
            length -= now;
        }
        Ok(())
    }

    /// Makes the next `length` bytes (which the caller has bounded) available as [`Input::taken`].
    fn take(&mut self, length: u64, what: &str) -> Result<()> {
        let length = length as usize;
        if length <= self.window().len() {
            self.taken_is_gathered = false;
            self.taken = self.at..self.at + length;
            self.at += length;
            return Ok(());
        }
        self.gathered.clear();
        if self.gathered.capacity() > KEEP_GATHERED_BYTES {
            self.gathered = Vec::new();
        }
        while self.gathered.len() < length {
            if self.at_end()? {
                return Err(self.truncated(what));
            }
            let have = self.gathered.len();
            let missing = length - have;
            let window = &self.block.raw[self.at..self.block.raw_length];
            let now = &window[..window.len().min(missing)];
            // The length is only a claim: room grows with what has come, by doubling, and never beyond the length.
            if self.gathered.capacity() - have < now.len() {
                self.gathered.reserve_exact(now.len().max(missing.min(have)));
            }
            self.gathered.extend_from_slice(now);
            self.at += now.len();
        }
        self.taken_is_gathered = true;
        self.taken = 0..length;
        Ok(())
    }

    /// What was taken last; valid until anything else is read.
    #[inline]
    fn taken(&self) -> &[u8] {
        let buffer = if self.taken_is_gathered { &self.gathered } else { &self.block.raw };
        &buffer[self.taken.clone()]
    }

    /// Takes the next field if it is an entry in its usual form, whole in this block and within its DBI message, which ends at
    /// `end`. Returns where its message begins; `None`, and nothing changed, leaves the matter to the general code.
    #[inline]
    fn take_entry(&mut self, end: u64) -> Option<u64> {
        const TAG: u8 = wire::DBI_ENTRIES as u8;
        let (head, length) = match *self.window() {
            [TAG, length, ..] if length < 0x80 => (2, usize::from(length)),
            [TAG, low, high, ..] if high < 0x80 => (3, usize::from(low & 0x7f) | usize::from(high) << 7),
            _ => return None,
        };
        let start = self.at + head;
        let stop = start + length;
        if stop > self.block.raw_length || self.base + stop as u64 > end {
            return None;
        }
        self.taken_is_gathered = false;
        self.taken = start..stop;
        self.at = stop;
        Some(self.base + start as u64)
    }
}
