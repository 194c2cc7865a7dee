//! Publishing: one read transaction becomes one compressed snapshot file, with flat memory, in one pass; compression runs beside it on
//! all cores.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::cancel::Cancel;
use crate::digest::{Content, Hasher};
use crate::dupsort;
use crate::error::{Code, Error, Result};
use crate::header::{self, Native};
use crate::lmdb::{Dbi, Environment, ReadTxn, flags};
use crate::merge::{CaptureOptions, Counts, PRIVATE_PREFIX, SHADOW_PREFIX, Shadow, capture};
use crate::schema::{self, Schema};
use crate::snapshot::Meta;
use crate::snapshot::encode;
use crate::snapshot::gzip::MemberWriter;
use crate::snapshot::wire::MAX_ENTRY_BYTES;

/// Records between two looks at the cancel flag: far below 50 ms of work.
const CHECK_EVERY: u64 = 4096;

/// What a publish did.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// All that was committed up to this transaction is in the snapshot.
    pub txn_id: u64,
    /// Time of the snapshot, ns since the epoch.
    pub timestamp: u64,
    /// The schema of what is in the snapshot.
    pub schema: Option<Schema>,
    /// DBIs written.
    pub dbis: u64,
    /// Entries written, those flagged deleted, and their digest.
    pub content: Content,
    /// What was captured before; shadow mode only.
    pub captured: Counts,
    /// Uncompressed size.
    pub bytes: u64,
    /// Size of the file.
    pub compressed_bytes: u64,
    /// Time until the read transaction was there.
    pub acquire: Duration,
    /// Time of walking and encoding, with most of the compression beside it.
    pub dump: Duration,
    /// Time after that: the rest of the compression.
    pub compress: Duration,
}

/// Writes the native environment as a snapshot to `path`, which is created or truncated; not synced, as that would keep the application's
/// commits waiting for the disk, and most storages need no durable copy. `None`, and no file, when the
/// environment shows nothing newer than transaction `newer_than`; 0 = always.
///
/// `meta` is completed with the transaction and with the time that `now` (ns since the epoch) gives once the transaction has begun: a
/// snapshot is never older than what it holds. On failure the file is left as it is; the caller removes it.
///
/// # Errors
/// [`Code::HeaderInvalid`], [`Code::DbiUnsupported`], [`Code::ValueTooLarge`] with DBI and key; errors of LMDB and of the file.
pub fn publish(
    env: &Environment,
    path: &Path,
    meta: Meta,
    newer_than: u64,
    now: impl FnOnce() -> u64,
    cancel: &Cancel,
) -> Result<Option<Published>> {
    let native = || {
        let started = Instant::now();
        let txn = env.read_latest()?;
        if newer_than > 0 && txn.id() <= newer_than {
            return Ok(None);
        }
        let out = Published { txn_id: txn.id(), timestamp: now(), acquire: started.elapsed(), ..Published::default() };
        write(&txn, &native_dbis(&txn)?, path, meta, out, cancel).map(Some)
    };
    native().inspect_err(|error| env.heal(error))
}

/// Like [`publish`], in shadow mode: captures first, and writes the shadows under the application's names. What the application commits
/// after the capture is not in the snapshot.
///
/// # Errors
/// Those of [`publish`] and [`capture`].
pub fn publish_shadow(
    env: &Environment,
    path: &Path,
    meta: Meta,
    newer_than: u64,
    shadow: Shadow,
    now: impl FnOnce() -> u64,
    cancel: &Cancel,
) -> Result<Option<Published>> {
    let started = Instant::now();
    if newer_than > 0 && env.read_latest()?.id() <= newer_than {
        return Ok(None);
    }
    let captured = capture(env, &CaptureOptions::new(shadow), cancel)?;
    let dump = || {
        let txn = env.read_latest()?;
        let out = Published {
            txn_id: captured.covered_txn_id,
            timestamp: now(),
            captured: captured.counts,
            acquire: started.elapsed(),
            ..Published::default()
        };
        write(&txn, &shadow_dbis(&txn)?, path, meta, out, cancel).map(Some)
    };
    dump().inspect_err(|error| env.heal(error))
}

/// Where a DBI of the snapshot comes from.
struct Source<'t> {
    name: &'t str,
    /// Its values have headers.
    dbi: Dbi,
    flags: u32,
    transform: &'static str,
}

fn write(
    txn: &ReadTxn<'_>,
    dbis: &[Source<'_>],
    path: &Path,
    mut meta: Meta,
    mut out: Published,
    cancel: &Cancel,
) -> Result<Published> {
    meta.lmdb_txn_id = i64::try_from(out.txn_id).unwrap_or(i64::MAX);
    meta.timestamp_nano = out.timestamp;
    out.schema = schema::of_lmdb(txn)?;

    let writing = Instant::now();
    let mut total = 0;
    for source in dbis {
        total += txn.entries(source.dbi)?;
    }
    let shown = path.display().to_string();
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(path)
        .map_err(|e| Error::io(format_args!("create {shown}"), &e))?;
    let mut writer = encode::Writer::new(MemberWriter::new(&file, shown.as_str(), cancel), &meta)?;
    let mut entries = 0u64;
    for Source { name, dbi, flags, transform } in dbis {
        writer.begin_dbi(name, u64::from(*flags), transform)?;
        let mut hasher = Hasher::new(name);
        let mut cursor = txn.cursor(*dbi)?;
        while let Some((key, stored)) = cursor.next()? {
            let (value, native) = parse(key, stored).map_err(|e| e.in_dbi(*name).at_key(key))?;
            writer.entry(key, value, native.timestamp, u32::from(native.flags))?;
            hasher.add(key, native.timestamp, native.flags, value);
            entries += 1;
            if entries.is_multiple_of(CHECK_EVERY) {
                cancel.check()?;
                cancel.report(entries, entries, total);
            }
        }
        out.content += hasher.content();
    }
    let sink = writer.finish()?;
    out.dump = writing.elapsed();
    let written = sink.finish()?;
    cancel.check()?;
    out.bytes = written.bytes;
    out.compressed_bytes = written.compressed_bytes;
    out.dbis = dbis.len() as u64;
    out.compress = writing.elapsed() - out.dump;
    Ok(out)
}

/// The DBIs to be written, sorted by name.
fn native_dbis<'t>(txn: &'t ReadTxn<'_>) -> Result<Vec<Source<'t>>> {
    let mut dbis = Vec::new();
    for name in txn.dbi_names().filter(|name| !name.starts_with(PRIVATE_PREFIX)) {
        let dbi = txn.dbi(name)?.ok_or_else(|| Error::new(Code::InvalidArgument, "no such DBI").in_dbi(name))?;
        if dbi.flags & flags::DUPSORT != 0 {
            let text = "the DBI has MDB_DUPSORT, which cannot be combined with schema_tracks_changes";
            return Err(Error::new(Code::DbiUnsupported, text).in_dbi(name));
        }
        dbis.push(Source { name, dbi, flags: dbi.flags, transform: "" });
    }
    Ok(dbis)
}

/// The shadows to be written, sorted by name; a DBI that has none yet came after the capture.
fn shadow_dbis<'t>(txn: &'t ReadTxn<'_>) -> Result<Vec<Source<'t>>> {
    let mut dbis = Vec::new();
    for name in txn.dbi_names().filter(|name| !name.starts_with(PRIVATE_PREFIX)) {
        if let (Some(main), Some(dbi)) = (txn.dbi(name)?, txn.dbi(&format!("{SHADOW_PREFIX}{name}"))?) {
            let transform = if main.flags & flags::DUPSORT == 0 { "" } else { dupsort::TRANSFORM };
            dbis.push(Source { name, dbi, flags: main.flags, transform });
        }
    }
    Ok(dbis)
}

/// The value to be written (a deletion has none, whatever is behind its header) and its header.
#[inline]
fn parse<'a>(key: &[u8], stored: &'a [u8]) -> Result<(&'a [u8], Native<'a>)> {
    let native = header::parse(stored)?;
    let value = if native.is_deleted() { &[] } else { native.value };
    // Some room for the framing.
    if key.len() + value.len() > MAX_ENTRY_BYTES as usize - 64 {
        let text = format!("a value of {} bytes is more than a snapshot can carry ({MAX_ENTRY_BYTES})", value.len());
        return Err(Error::new(Code::ValueTooLarge, text));
    }
    Ok((value, native))
}
