//! Readable contents of environments and snapshots: text for people, JSON Lines for programs, streamed to a descriptor with flat memory.
//!
//! The text is that of Lightning Stream 1.0, which its users may have scripts for; times are always UTC. `docs/json.md` describes the JSON.

use std::fmt::{self, Display};
use std::fs::File;
use std::io::{self, ErrorKind, Write as _};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl};

use crate::cancel::Cancel;
use crate::error::{Code, Error, Result};
use crate::header;
use crate::lmdb::{Environment, flags};
use crate::merge::{PRIVATE_PREFIX, SHADOW_PREFIX};
use crate::snapshot::Meta;
use crate::snapshot::decode::{DbiHeader, Event, Index, Reader};
/// Records between two looks at the cancel flag.
const CHECK_EVERY: u64 = 4096;
/// Bytes written at a time.
const FLUSH_BYTES: usize = 128 << 10;
/// What a pipe that can be written to takes without blocking (pipe(7), PIPE_BUF).
const PIPE_BYTES: usize = 4096;
/// Bytes of a value turned into text at a time.
const PIECE_BYTES: usize = 16 << 10;
/// How long to wait for the reader of the output before looking at the cancel flag again.
const POLL: Timespec = Timespec { tv_sec: 0, tv_nsec: 40_000_000 };

const NS_PER_SECOND: u64 = 1_000_000_000;
const SECONDS_PER_DAY: u64 = 86_400;
/// 2022-01-01T00:00:00Z: eight bytes that say a later time are shown as one.
const RECENT_FROM_NS: u64 = 1_640_995_200 * NS_PER_SECOND;
/// So much ahead of now a time may be.
const RECENT_AHEAD_NS: u64 = 30 * SECONDS_PER_DAY * NS_PER_SECOND;

/// How a dump looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Headings and a line for each record.
    Text,
    /// A JSON object for each DBI and each record, one per line.
    Json,
}

/// Which values of an environment begin with a header; only the JSON tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Headers {
    /// Those of every DBI: native mode.
    Everywhere,
    /// Those of the shadow DBIs.
    Shadows,
}

/// What to dump of an environment.
#[derive(Clone, Debug)]
pub struct EnvironmentDump<'a> {
    /// Configured name of the database.
    pub database: &'a str,
    /// Leave out the DBIs that are Lightning Stream's own.
    pub hide_private: bool,
    /// Which values have headers.
    pub headers: Headers,
    /// How.
    pub format: Format,
    /// The time now, ns since the epoch.
    pub now: u64,
}

/// What to dump of a snapshot.
#[derive(Clone, Debug)]
pub struct SnapshotDump<'a> {
    /// Name of the object.
    pub name: &'a str,
    /// Only the DBI of this name.
    pub dbi: Option<&'a str>,
    /// How.
    pub format: Format,
    /// The time now, ns since the epoch.
    pub now: u64,
}

/// What was dumped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dumped {
    /// DBIs.
    pub dbis: u64,
    /// Records.
    pub entries: u64,
}

/// Dumps what one read transaction sees, DBIs sorted by name, records in LMDB's order.
///
/// # Errors
/// `EPIPE` when nobody reads the output any more; those of LMDB.
pub fn dump(env: &Environment, options: &EnvironmentDump<'_>, out: &mut Output) -> Result<Dumped> {
    let txn = env.read_latest()?;
    let mut dbis = Vec::new();
    let mut total = 0;
    for name in txn.dbi_names().filter(|name| !options.hide_private || !name.starts_with(PRIVATE_PREFIX)) {
        let dbi = txn.dbi(name)?.ok_or_else(|| Error::new(Code::InvalidArgument, "no such DBI").in_dbi(name))?;
        let entries = txn.entries(dbi)?;
        total += entries;
        dbis.push((name, dbi, entries));
    }
    let mut dumped = Dumped { dbis: dbis.len() as u64, entries: 0 };
    let now = options.now;
    for (name, dbi, entries) in dbis {
        let has_headers = options.headers == Headers::Everywhere || name.starts_with(SHADOW_PREFIX);
        let record = format!(
            "{{\"type\":\"record\",\"db\":{},\"dbi\":{},\"key\":\"",
            JsonText(options.database),
            JsonText(name)
        );
        match options.format {
            Format::Text => out.format(format_args!("\n### {} :: {name}\n\n", options.database))?,
            Format::Json => out.format(format_args!(
                "{{\"type\":\"dbi\",\"db\":{},\"dbi\":{},\"flags\":{},\"entries\":{entries}}}\n",
                JsonText(options.database),
                JsonText(name),
                JsonFlags(dbi.flags)
            ))?,
        }
        let mut cursor = txn.cursor(dbi)?;
        while let Some((key, value)) = cursor.next().map_err(|e| e.in_dbi(name))? {
            match options.format {
                Format::Text => {
                    out.readable(key, now)?;
                    out.bytes(b"  =  ")?;
                    out.readable(value, now)?;
                    out.bytes(b"\n")?;
                }
                Format::Json => {
                    out.bytes(record.as_bytes())?;
                    out.json_stored(key, value, has_headers)?;
                }
            }
            dumped.entries += 1;
            if dumped.entries.is_multiple_of(CHECK_EVERY) {
                out.cancel.check()?;
                env.check_unshared()?;
                out.cancel.report(dumped.entries, dumped.entries, total);
            }
        }
    }
    env.check_unshared()?;
    out.flush()?;
    Ok(dumped)
}

/// Dumps a snapshot in the order of the file, after a pass over the whole file that finds damage: nothing is written of a corrupt one.
///
/// # Errors
/// [`Code::SnapshotCorrupt`]; [`Code::SnapshotRefused`] for a malformed entry, when those before it are written already;
/// [`Code::InvalidArgument`], listing those there are, when the snapshot has no DBI of the name; `EPIPE` as for [`dump`].
pub fn dump_snapshot(path: &Path, options: &SnapshotDump<'_>, out: &mut Output) -> Result<Dumped> {
    let cancel = out.cancel.clone();
    let index = Index::scan(path, &cancel)?;
    let wanted = |name: &str| options.dbi.is_none_or(|dbi| dbi == name);
    if let Some(dbi) = options.dbi
        && !index.dbis.iter().any(|candidate| wanted(&candidate.header.name))
    {
        let names: Vec<_> = index.dbis.iter().map(|dbi| dbi.header.name.as_str()).collect();
        let text = format!("no DBI {dbi} in {}; it has {}", options.name, list(&names));
        return Err(Error::new(Code::InvalidArgument, text));
    }
    snapshot_head(options, &index, out)?;
    let total = index.entries;
    let counts: Vec<_> = index.dbis.iter().map(|dbi| dbi.entries).collect();
    let mut reader = Reader::open(path, &cancel, Some(index))?;
    let mut dumped = Dumped::default();
    let mut seen = 0u64;
    let mut skip = true;
    let mut record = String::new();
    loop {
        match reader.next()? {
            Event::Dbi(dbi) => {
                skip = !wanted(&dbi.name);
                if !skip {
                    dumped.dbis += 1;
                    record = format!("{{\"type\":\"record\",\"dbi\":{},\"key\":\"", JsonText(&dbi.name));
                    snapshot_dbi(options.format, dbi, counts.get(dbi.index).copied().unwrap_or(0), out)?;
                }
            }
            Event::Entry { key, value, timestamp, flags } => {
                seen += 1;
                if seen.is_multiple_of(CHECK_EVERY) {
                    cancel.check()?;
                    cancel.report(seen, seen, total);
                }
                if skip {
                    continue;
                }
                dumped.entries += 1;
                match options.format {
                    Format::Text => {
                        out.readable(key, options.now)?;
                        out.bytes(b"  =  ")?;
                        out.readable(value, options.now)?;
                        let time = GoTime(timestamp);
                        let ago = GoDuration(seconds_between(timestamp, options.now));
                        out.format(format_args!("  ({time}, {ago} ago; flags={flags:02x})\n"))?;
                    }
                    Format::Json => {
                        out.bytes(record.as_bytes())?;
                        out.json_entry(key, value)?;
                        let deleted = flags & u32::from(header::FLAG_DELETED) != 0;
                        out.format(format_args!(
                            ",{},\"flags\":{flags},\"deleted\":{deleted}}}\n",
                            JsonTime(timestamp)
                        ))?;
                    }
                }
            }
            Event::NeedsIndex => {}
            Event::End => break,
        }
    }
    out.flush()?;
    Ok(dumped)
}

fn snapshot_head(options: &SnapshotDump<'_>, index: &Index, out: &mut Output) -> Result<()> {
    let Meta { generation_id, instance_id, hostname, database_name, lmdb_txn_id, from_lmdb_txn_id, timestamp_nano } =
        &index.meta;
    let (format_version, compat_version) = (index.format_version, index.compat_version);
    let (generation_id, instance_id) = (JsonText(generation_id), JsonText(instance_id));
    let (hostname, database_name) = (JsonText(hostname), JsonText(database_name));
    match options.format {
        Format::Text => out.format(format_args!(
            r#"{{
  "FormatVersion": {format_version},
  "CompatVersion": {compat_version},
  "Meta": {{
    "GenerationID": {generation_id},
    "InstanceID": {instance_id},
    "Hostname": {hostname},
    "LmdbTxnID": {lmdb_txn_id},
    "TimestampNano": {timestamp_nano},
    "DatabaseName": {database_name},
    "FromLmdbTxnID": {from_lmdb_txn_id}
  }}
}}
"#
        )),
        Format::Json => out.format(format_args!(
            "{{\"type\":\"snapshot\",\"name\":{},\"formatVersion\":{format_version},\"compatVersion\":{compat_version},\
             \"generationId\":{generation_id},\"instanceId\":{instance_id},\"hostname\":{hostname},\"databaseName\":{database_name},\
             \"lmdbTxnId\":\"{lmdb_txn_id}\",\"fromLmdbTxnId\":\"{from_lmdb_txn_id}\",{}}}\n",
            JsonText(options.name),
            JsonTime(*timestamp_nano)
        )),
    }
}

fn snapshot_dbi(format: Format, dbi: &DbiHeader, entries: u64, out: &mut Output) -> Result<()> {
    // The flags of a DBI have 16 bits in LMDB; a longer number is cut.
    let dbi_flags = dbi.flags as u32 & 0xffff;
    let transform = JsonText(&dbi.transform);
    match format {
        Format::Text => out.format(format_args!(
            "\n### {} (transform={transform}, flags=\"{}\")\n\n",
            dbi.name,
            flag_names(dbi_flags).join("|")
        )),
        Format::Json => out.format(format_args!(
            "{{\"type\":\"dbi\",\"dbi\":{},\"transform\":{transform},\"flags\":{},\"entries\":{entries}}}\n",
            JsonText(&dbi.name),
            JsonFlags(dbi_flags)
        )),
    }
}

/// Names for a message; the first ones when there are many.
fn list(names: &[&str]) -> String {
    const MOST: usize = 50;
    match names {
        [] => "none".to_owned(),
        names if names.len() > MOST => format!("{} … ({} in all)", names[..MOST].join(", "), names.len()),
        names => names.join(", "),
    }
}

/// Buffered text on its way to a descriptor. A reader that does not read is waited for, but not beyond an abort.
pub struct Output {
    file: File,
    /// Bytes that a write takes at most, so that it does not block.
    at_once: usize,
    buffer: Vec<u8>,
    cancel: Cancel,
}

impl Output {
    /// The process's standard output.
    pub fn stdout(cancel: &Cancel) -> Result<Self> {
        let fd = io::stdout().as_fd().try_clone_to_owned().map_err(|e| Error::io("use standard output", &e))?;
        Ok(Self::new(fd.into(), cancel))
    }

    /// Any descriptor.
    #[must_use]
    pub fn new(file: File, cancel: &Cancel) -> Self {
        let never_blocks = file.metadata().is_ok_and(|meta| meta.is_file())
            || fcntl_getfl(&file).is_ok_and(|flags| flags.contains(OFlags::NONBLOCK));
        let at_once = if never_blocks { usize::MAX } else { PIPE_BYTES };
        Self { file, at_once, buffer: Vec::with_capacity(FLUSH_BYTES + PIECE_BYTES * 4), cancel: cancel.clone() }
    }

    fn flush(&mut self) -> Result<()> {
        let mut done = 0;
        while done < self.buffer.len() {
            self.wait()?;
            let end = self.buffer.len().min(done.saturating_add(self.at_once));
            match self.file.write(&self.buffer[done..end]) {
                Ok(0) => return Err(failed(&ErrorKind::WriteZero.into())),
                Ok(written) => done += written,
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
                Err(e) => return Err(failed(&e)),
            }
        }
        self.buffer.clear();
        Ok(())
    }

    /// Until a write does not block.
    fn wait(&self) -> Result<()> {
        loop {
            self.cancel.check()?;
            match poll(&mut [PollFd::new(&self.file, PollFlags::OUT)], Some(&POLL)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(e) => return Err(failed(&e.into())),
            }
        }
    }

    #[inline]
    fn make_room(&mut self) -> Result<()> {
        if self.buffer.len() >= FLUSH_BYTES { self.flush() } else { Ok(()) }
    }

    #[inline]
    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.buffer.extend_from_slice(bytes);
        self.make_room()
    }

    fn format(&mut self, arguments: fmt::Arguments<'_>) -> Result<()> {
        // Writing to a Vec cannot fail.
        let _ = self.buffer.write_fmt(arguments);
        self.make_room()
    }

    /// A key or value: its printable ASCII, and where that does not say everything the bytes in brackets, and the time that they may be.
    fn readable(&mut self, bytes: &[u8], now: u64) -> Result<()> {
        for piece in bytes.chunks(PIECE_BYTES) {
            self.buffer.extend(piece.iter().map(|&byte| if is_printable(byte) { byte } else { b'.' }));
            self.make_room()?;
        }
        let time = recent_time(bytes, now);
        if time.is_none() && bytes.len() > 8 && bytes.iter().copied().all(is_printable) {
            return Ok(());
        }
        self.bytes(b" [")?;
        for (number, piece) in bytes.chunks(PIECE_BYTES).enumerate() {
            for (index, &byte) in piece.iter().enumerate() {
                if number + index > 0 {
                    self.buffer.push(b' ');
                }
                self.buffer.extend_from_slice(&hex(byte));
            }
            self.make_room()?;
        }
        self.bytes(b"]")?;
        time.map_or(Ok(()), |time| self.format(format_args!(" ({})", Rfc3339 { nanos: time, all_digits: false })))
    }

    fn json_hex(&mut self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(PIECE_BYTES) {
            self.buffer.extend(piece.iter().flat_map(|&byte| hex(byte)));
            self.make_room()?;
        }
        Ok(())
    }

    fn json_readable(&mut self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(PIECE_BYTES) {
            for &byte in piece {
                match byte {
                    b'"' | b'\\' => self.buffer.extend_from_slice(&[b'\\', byte]),
                    byte if is_printable(byte) => self.buffer.push(byte),
                    _ => self.buffer.push(b'.'),
                }
            }
            self.make_room()?;
        }
        Ok(())
    }

    /// From within the text of `"key":"` to the end of the value.
    fn json_entry(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.json_hex(key)?;
        self.bytes(b"\",\"keyText\":\"")?;
        self.json_readable(key)?;
        self.bytes(b"\",\"value\":\"")?;
        self.json_hex(value)?;
        self.bytes(b"\",\"valueText\":\"")?;
        self.json_readable(value)?;
        self.bytes(b"\"")
    }

    /// The rest of a line for a stored value, which may have a header.
    fn json_stored(&mut self, key: &[u8], stored: &[u8], has_header: bool) -> Result<()> {
        if !has_header {
            self.json_entry(key, stored)?;
            return self.bytes(b",\"header\":null}\n");
        }
        match header::parse(stored) {
            Ok(native) => {
                self.json_entry(key, native.value)?;
                let extension_bytes = stored.len() - native.value.len() - header::HEADER_BYTES;
                self.format(format_args!(
                    ",\"header\":{{{},\"txnId\":\"{}\",\"flags\":{},\"deleted\":{},\"extensionBytes\":{extension_bytes}}}}}\n",
                    JsonTime(native.timestamp),
                    native.txn_id,
                    stored[17],
                    native.is_deleted()
                ))
            }
            Err(e) => {
                self.json_entry(key, stored)?;
                self.format(format_args!(",\"header\":null,\"headerError\":{}}}\n", JsonText(&e.message)))
            }
        }
    }
}

fn failed(error: &io::Error) -> Error {
    Error::io("write the output", error)
}

#[inline]
fn is_printable(byte: u8) -> bool {
    matches!(byte, 32..=126)
}

#[inline]
fn hex(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]
}

/// The first eight bytes as ns since the epoch, when that is a time that somebody may have written.
#[inline]
fn recent_time(bytes: &[u8], now: u64) -> Option<u64> {
    let time = u64::from_be_bytes(*bytes.first_chunk()?);
    (time > RECENT_FROM_NS && time < now.saturating_add(RECENT_AHEAD_NS)).then_some(time)
}

/// From `from` to `to`, rounded to whole seconds, half a second away from zero.
fn seconds_between(from: u64, to: u64) -> i64 {
    let nanos = i128::from(to) - i128::from(from);
    let half = i128::from(NS_PER_SECOND / 2);
    ((nanos + if nanos < 0 { -half } else { half }) / i128::from(NS_PER_SECOND)) as i64
}

fn flag_names(dbi_flags: u32) -> Vec<String> {
    const NAMES: [(u32, &str); 6] = [
        (flags::REVERSEKEY, "MDB_REVERSEKEY"),
        (flags::DUPSORT, "MDB_DUPSORT"),
        (flags::INTEGERKEY, "MDB_INTEGERKEY"),
        (flags::DUPFIXED, "MDB_DUPFIXED"),
        (flags::INTEGERDUP, "MDB_INTEGERDUP"),
        (flags::REVERSEDUP, "MDB_REVERSEDUP"),
    ];
    let mut names = Vec::new();
    let mut rest = dbi_flags;
    for (flag, name) in NAMES {
        if dbi_flags & flag != 0 {
            names.push(name.to_owned());
            rest &= !flag;
        }
    }
    if rest != 0 {
        names.push(format!("UNKNOWN:0x{rest:x}"));
    }
    names
}

struct JsonFlags(u32);

impl Display for JsonFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = flag_names(self.0).iter().map(|name| format!("\"{name}\"")).collect();
        write!(f, "[{}]", names.join(","))
    }
}

/// A JSON string. `<`, `>` and `&` are escaped as well, as Lightning Stream does.
struct JsonText<'a>(&'a str);

impl Display for JsonText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        for char in self.0.chars() {
            match char {
                '"' | '\\' => write!(f, "\\{char}")?,
                '\n' => f.write_str("\\n")?,
                '\r' => f.write_str("\\r")?,
                '\t' => f.write_str("\\t")?,
                '<' | '>' | '&' | '\u{0}'..='\u{1f}' | '\u{7f}' | '\u{2028}' | '\u{2029}' => {
                    write!(f, "\\u{:04x}", u32::from(char))?;
                }
                char => write!(f, "{char}")?,
            }
        }
        f.write_str("\"")
    }
}

/// The members of a time: readable, and exact for programs whose numbers have 53 bits.
struct JsonTime(u64);

impl Display for JsonTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = Rfc3339 { nanos: self.0, all_digits: true };
        write!(f, "\"timestamp\":\"{time}\",\"timestampNano\":\"{}\"", self.0)
    }
}

/// Year, month and day of a day since the epoch, by counting eras of 400 years that begin in March.
fn civil(day: u64) -> (u64, u64, u64) {
    let day = day + 719_468;
    let day_of_era = day % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + day / 146_097 * 400 + u64::from(month <= 2), month, day_of_month)
}

/// Date and time of ns since the epoch, in UTC, with what is to stand between them.
fn write_time(f: &mut fmt::Formatter<'_>, nanos: u64, between: char, all_digits: bool) -> fmt::Result {
    let (seconds, fraction) = (nanos / NS_PER_SECOND, nanos % NS_PER_SECOND);
    let (year, month, day) = civil(seconds / SECONDS_PER_DAY);
    let second = seconds % SECONDS_PER_DAY;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    write!(f, "{year:04}-{month:02}-{day:02}{between}{hour:02}:{minute:02}:{second:02}")?;
    if all_digits {
        return write!(f, ".{fraction:09}");
    }
    if fraction == 0 {
        return Ok(());
    }
    let digits = format!("{fraction:09}");
    write!(f, ".{}", digits.trim_end_matches('0'))
}

/// `2024-01-01T00:00:00.123Z`
struct Rfc3339 {
    nanos: u64,
    /// Nine digits instead of as many as there are without zeros at the end.
    all_digits: bool,
}

impl Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_time(f, self.nanos, 'T', self.all_digits)?;
        f.write_str("Z")
    }
}

/// `2024-01-01 00:00:00.123 +0000 UTC`
struct GoTime(u64);

impl Display for GoTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_time(f, self.0, ' ', false)?;
        f.write_str(" +0000 UTC")
    }
}

/// Seconds as Go prints a duration: `0s`, `1m0s`, `-498700h16m38s`.
struct GoDuration(i64);

impl Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 0 {
            f.write_str("-")?;
        }
        let seconds = self.0.unsigned_abs();
        let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if seconds >= 60 {
            write!(f, "{minutes}m")?;
        }
        write!(f, "{}s", seconds % 60)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;
    use crate::lmdb::EnvOptions;

    /// 2024-01-01T00:00:00.123Z
    const NEW_YEAR: u64 = 1_704_067_200_123_000_000;
    const NOW: u64 = NEW_YEAR + 60 * NS_PER_SECOND;

    fn written(write: impl FnOnce(&mut Output)) -> String {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut out = Output::new(file.reopen().unwrap(), &Cancel::new());
        write(&mut out);
        out.flush().unwrap();
        drop(out);
        let mut text = String::new();
        std::io::Read::read_to_string(file.as_file_mut(), &mut text).unwrap();
        text
    }

    fn readable(bytes: &[u8]) -> String {
        written(|out| out.readable(bytes, NOW).unwrap())
    }

    #[test]
    fn keys_and_values_are_readable() {
        assert_eq!(readable(b"printable"), "printable");
        // Eight bytes or fewer always show their bytes.
        assert_eq!(readable(b"key"), "key [6b 65 79]");
        assert_eq!(readable(b"8 bytes!"), "8 bytes! [38 20 62 79 74 65 73 21]");
        assert_eq!(readable(b""), " []");
        assert_eq!(readable(b"~ tilde \x7f"), "~ tilde . [7e 20 74 69 6c 64 65 20 7f]");
        assert_eq!(readable("ü23456789".as_bytes()), "..23456789 [c3 bc 32 33 34 35 36 37 38 39]");
        let stamped = [&NEW_YEAR.to_be_bytes()[..], b"x"].concat();
        assert_eq!(readable(&stamped), "........x [17 a6 10 17 08 b9 d4 c0 78] (2024-01-01T00:00:00.123Z)");
        // The limits themselves are not within.
        for (time, shown) in [
            (RECENT_FROM_NS, false),
            (RECENT_FROM_NS + 1, true),
            (NOW + RECENT_AHEAD_NS, false),
            (NOW + RECENT_AHEAD_NS - 1, true),
            (u64::MAX, false),
        ] {
            assert_eq!(readable(&time.to_be_bytes()).ends_with("Z)"), shown, "{time}");
        }
    }

    #[test]
    fn large_values_are_written_whole() {
        let value: Vec<u8> = (0..3 * FLUSH_BYTES + 5).map(|index| index as u8).collect();
        let text = readable(&value);
        let (shown, bytes) = text.split_once(" [").unwrap();
        assert_eq!(shown.len(), value.len());
        let back: Vec<u8> =
            bytes.trim_end_matches(']').split(' ').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        assert_eq!(back, value);
    }

    #[test]
    fn times_and_durations() {
        assert_eq!(GoTime(0).to_string(), "1970-01-01 00:00:00 +0000 UTC");
        assert_eq!(GoTime(1).to_string(), "1970-01-01 00:00:00.000000001 +0000 UTC");
        assert_eq!(GoTime(951_782_400 * NS_PER_SECOND).to_string(), "2000-02-29 00:00:00 +0000 UTC");
        assert_eq!(GoTime(4_107_542_399 * NS_PER_SECOND).to_string(), "2100-02-28 23:59:59 +0000 UTC");
        assert_eq!(GoTime(4_107_542_400 * NS_PER_SECOND).to_string(), "2100-03-01 00:00:00 +0000 UTC");
        assert_eq!(
            JsonTime(u64::MAX).to_string(),
            "\"timestamp\":\"2554-07-21T23:34:33.709551615Z\",\"timestampNano\":\"18446744073709551615\""
        );
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (60, "1m0s"), (3600, "1h0m0s"), (1_795_320_998, "498700h16m38s"), (-61, "-1m1s")]
        {
            assert_eq!(GoDuration(seconds).to_string(), text);
        }
        let half = NS_PER_SECOND / 2;
        assert_eq!([seconds_between(0, half - 1), seconds_between(0, half)], [0, 1]);
        assert_eq!([seconds_between(half - 1, 0), seconds_between(half, 0)], [0, -1]);
    }

    #[test]
    fn flags_by_name() {
        assert_eq!(flag_names(0), [""; 0]);
        assert_eq!(flag_names(0x28).join("|"), "MDB_INTEGERKEY|MDB_INTEGERDUP");
        assert_eq!(flag_names(0x1004).join("|"), "MDB_DUPSORT|UNKNOWN:0x1000");
    }

    #[test]
    fn json_lines_are_json() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.mdb");
        let env =
            Environment::open(&path, EnvOptions { no_subdir: true, create: true, ..EnvOptions::default() }).unwrap();
        let mut txn = env.write(true, &Cancel::new()).unwrap();
        let dbi = txn.create_dbi("a\"\n<", flags::INTEGERKEY).unwrap();
        let mut value = Vec::new();
        header::build(&mut value, NEW_YEAR, 7, header::FLAG_DELETED, b"", true);
        txn.cursor(dbi).unwrap().put(&[1, 0, 0, 0], &value, false).unwrap();
        header::build(&mut value, 1, 8, 0, b"\"q\\\x00", false);
        txn.cursor(dbi).unwrap().put(&[2, 0, 0, 0], &value, false).unwrap();
        txn.cursor(dbi).unwrap().put(&[3, 0, 0, 0], b"short", false).unwrap();
        txn.commit().unwrap();
        let options = EnvironmentDump {
            database: "d",
            hide_private: false,
            headers: Headers::Everywhere,
            format: Format::Json,
            now: NOW,
        };
        let text = written(|out| assert_eq!(dump(&env, &options, out).unwrap(), Dumped { dbis: 1, entries: 3 }));
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let record = |key: &str, key_text: &str, value: &str, value_text: &str| serde_json::json!({"type": "record", "db": "d", "dbi": "a\"\n<", "key": key, "keyText": key_text, "value": value, "valueText": value_text});
        let with = |mut record: serde_json::Value, more: serde_json::Value| {
            record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            record
        };
        assert_eq!(
            lines,
            [
                serde_json::json!({"type": "dbi", "db": "d", "dbi": "a\"\n<", "flags": ["MDB_INTEGERKEY"], "entries": 3}),
                with(
                    record("01000000", "....", "", ""),
                    serde_json::json!({"header": {"timestamp": "2024-01-01T00:00:00.123000000Z", "timestampNano": "1704067200123000000",
                        "txnId": "7", "flags": 1, "deleted": true, "extensionBytes": 8}}),
                ),
                with(
                    record("02000000", "....", "22715c00", "\"q\\."),
                    serde_json::json!({"header": {"timestamp": "1970-01-01T00:00:00.000000001Z", "timestampNano": "1",
                        "txnId": "8", "flags": 0, "deleted": false, "extensionBytes": 0}}),
                ),
                with(
                    record("03000000", "....", "73686f7274", "short"),
                    serde_json::json!({"header": null, "headerError":
                        "a value in the LMDB has no valid header: value of 5 bytes is too short for a header of 24"}),
                ),
            ]
        );
    }

    #[test]
    fn looking_creates_nothing_and_notices_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.mdb");
        let options = EnvOptions { no_subdir: true, create: true, ..EnvOptions::default() };
        let look = EnvOptions { read_only: true, ..options.clone() };
        assert_eq!(Environment::open(&path, look.clone()).err().unwrap().code, Code::Os(libc::ENOENT));
        fs::write(&path, b"").unwrap();
        assert_eq!(Environment::open(&path, look.clone()).err().unwrap().code, Code::Os(libc::ENOENT));
        fs::remove_file(&path).unwrap();
        let env = Environment::open(&path, options).unwrap();
        let mut txn = env.write(true, &Cancel::new()).unwrap();
        txn.create_dbi("x", 0).unwrap();
        txn.commit().unwrap();
        drop(env);
        let lock_file = dir.path().join("a.mdb-lock");
        fs::remove_file(&lock_file).unwrap();
        let before = fs::read(&path).unwrap();
        let env = Environment::open(&path, look.clone()).unwrap();
        env.stats().unwrap();
        assert!(env.write(false, &Cancel::new()).is_err());
        assert!(!lock_file.exists());
        fs::write(&lock_file, b"").unwrap();
        assert_eq!(env.stats().err().unwrap().code, Code::Os(libc::EBUSY));
        drop(env);
        fs::remove_file(&lock_file).unwrap();
        assert_eq!(fs::read(&path).unwrap(), before);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_reader_that_stops_ends_it_and_one_that_waits_can_be_left() {
        let (reader, writer) = std::io::pipe().unwrap();
        let cancel = Cancel::new();
        let mut out = Output::new(File::from(std::os::fd::OwnedFd::from(writer)), &cancel);
        // More than any pipe holds; nobody reads.
        let waiting = std::thread::spawn(move || {
            let result = out.readable(&vec![0; 4 << 20], NOW);
            (result, out)
        });
        std::thread::sleep(Duration::from_millis(50));
        assert!(!waiting.is_finished());
        cancel.cancel();
        let (result, mut out) = waiting.join().unwrap();
        assert_eq!(result.unwrap_err().code, Code::Aborted);
        out.cancel = Cancel::new();
        drop(reader);
        assert_eq!(out.flush().unwrap_err().code, Code::Os(libc::EPIPE));
    }
}
