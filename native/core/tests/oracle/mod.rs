//! The snapshot format by another protobuf implementation, and what our reader must have in common with it.

#![allow(dead_code, missing_docs)]

use std::io::Cursor;

use lightningstream_core::snapshot::Meta;
use lightningstream_core::snapshot::decode::{DbiHeader, Event, Index, Reader};
use lightningstream_core::snapshot::wire::MAX_TEXT_BYTES;
use lightningstream_core::{Cancel, Code, Error, Result};
use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub struct PbSnapshot {
    #[prost(uint32, tag = "1")]
    pub format_version: u32,
    #[prost(message, optional, tag = "2")]
    pub meta: Option<PbMeta>,
    #[prost(message, repeated, tag = "3")]
    pub databases: Vec<PbDbi>,
    #[prost(uint32, tag = "4")]
    pub compat_version: u32,
}

/// Texts as bytes: the reader shows those that are not UTF-8 as well as it can.
#[derive(Clone, PartialEq, Message)]
pub struct PbMeta {
    #[prost(bytes = "vec", tag = "1")]
    pub generation_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub instance_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    pub hostname: Vec<u8>,
    #[prost(int64, tag = "4")]
    pub lmdb_txn_id: i64,
    #[prost(fixed64, tag = "5")]
    pub timestamp_nano: u64,
    #[prost(bytes = "vec", tag = "7")]
    pub database_name: Vec<u8>,
    #[prost(int64, tag = "8")]
    pub from_lmdb_txn_id: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct PbDbi {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, repeated, tag = "2")]
    pub entries: Vec<PbKv>,
    #[prost(uint64, tag = "3")]
    pub flags: u64,
    #[prost(string, tag = "4")]
    pub transform: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct PbKv {
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
    #[prost(fixed64, tag = "3")]
    pub timestamp_nano: u64,
    #[prost(uint32, tag = "4")]
    pub flags: u32,
}

impl PbMeta {
    pub fn to_ours(&self) -> Meta {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Meta {
            generation_id: text(&self.generation_id),
            instance_id: text(&self.instance_id),
            hostname: text(&self.hostname),
            database_name: text(&self.database_name),
            lmdb_txn_id: self.lmdb_txn_id,
            from_lmdb_txn_id: self.from_lmdb_txn_id,
            timestamp_nano: self.timestamp_nano,
        }
    }
}

/// Everything a reader reported.
#[derive(Debug, Default, PartialEq)]
pub struct Contents {
    pub format_version: u32,
    pub compat_version: u32,
    pub meta: Meta,
    pub dbis: Vec<(DbiHeader, Vec<PbKv>)>,
    pub bytes: u64,
}

/// Reads a whole gzip stream; `None` when the reader asked for an index.
pub fn read_with(gzip: &[u8], index: Option<Index>) -> Result<Option<Contents>> {
    let source = Cursor::new(gzip.to_vec());
    let mut reader = Reader::from_source(source, "test".into(), &Cancel::new(), index)?;
    let mut dbis: Vec<(DbiHeader, Vec<PbKv>)> = Vec::new();
    loop {
        match reader.next()? {
            Event::Dbi(header) => dbis.push((header.clone(), Vec::new())),
            Event::Entry { key, value, timestamp, flags } => {
                let entry = PbKv { key: key.to_vec(), value: value.to_vec(), timestamp_nano: timestamp, flags };
                dbis.last_mut().expect("an entry before any DBI").1.push(entry);
            }
            Event::NeedsIndex => return Ok(None),
            Event::End => break,
        }
    }
    Ok(Some(Contents {
        format_version: reader.format_version(),
        compat_version: reader.compat_version(),
        meta: reader.meta().clone(),
        dbis,
        bytes: reader.position(),
    }))
}

pub fn scan(gzip: &[u8]) -> Result<Index> {
    Index::scan_source(Cursor::new(gzip.to_vec()), "test".into(), &Cancel::new())
}

/// Reads a gzip stream the way a caller does: with an index when one is asked for; after a refusal the framing decides. Checks on
/// the way that the ways to read agree with each other.
pub fn read_all(gzip: &[u8]) -> Result<Contents> {
    let streamed = read_with(gzip, None);
    let scanned = scan(gzip);
    match (streamed, scanned) {
        (Ok(Some(contents)), Ok(index)) => {
            assert_eq!(index.format_version, contents.format_version);
            assert_eq!(index.compat_version, contents.compat_version);
            assert_eq!(index.meta, contents.meta);
            assert_eq!(index.bytes, contents.bytes);
            assert_eq!(index.dbis.len(), contents.dbis.len());
            for (indexed, (header, entries)) in index.dbis.iter().zip(&contents.dbis) {
                assert_eq!(&indexed.header, header);
                assert_eq!(indexed.entries, entries.len() as u64);
            }
            assert_eq!(read_with(gzip, Some(index)).expect("readable a moment ago"), Some(contents));
            read_with(gzip, None).map(|contents| contents.expect("no index was needed a moment ago"))
        }
        (Ok(None), Ok(index)) => match read_with(gzip, Some(index)) {
            Ok(Some(contents)) => Ok(contents),
            Ok(None) => panic!("an index was asked for although there is one"),
            Err(error) => {
                assert_eq!(error.code, Code::SnapshotRefused, "the framing was right: {error}");
                Err(error)
            }
        },
        (Err(error), Ok(_)) => {
            assert_eq!(error.code, Code::SnapshotRefused, "the framing is right: {error}");
            Err(error)
        }
        (Ok(Some(_)), Err(error)) => panic!("readable, but the scan says {error}"),
        (_, Err(error)) => Err(error),
    }
}

/// Checks the verdict on protobuf bytes, given as gzip as well, against prost's.
pub fn compare(raw: &[u8], gzip: &[u8]) -> Result<Contents> {
    let ours = read_all(gzip);
    let theirs = PbSnapshot::decode(raw);
    match (&ours, theirs) {
        (Ok(contents), Ok(expected)) => assert_contents(contents, &expected),
        (Ok(_), Err(error)) => panic!("accepted what prost refuses: {error}"),
        (Err(error), Ok(expected)) => {
            assert!(is_stricter(error, &expected), "refused what prost accepts: {error} {expected:?}");
        }
        (Err(_), Err(_)) => {}
    }
    if let Err(error) = &ours {
        assert!(matches!(error.code, Code::SnapshotCorrupt | Code::SnapshotRefused), "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
    ours
}

/// Where we refuse on purpose what protobuf allows.
fn is_stricter(error: &Error, expected: &PbSnapshot) -> bool {
    let message = &error.message;
    let has_empty_key = || expected.databases.iter().any(|dbi| dbi.entries.iter().any(|entry| entry.key.is_empty()));
    // prost skips groups, cuts long numbers, and knows no limits.
    message.contains("unsupported wire type 3")
        || message.contains("is out of range")
        || message.contains(&format!("at most {MAX_TEXT_BYTES} are read"))
        || message.contains("has no key") && error.code == Code::SnapshotRefused && has_empty_key()
}

pub fn assert_contents(contents: &Contents, expected: &PbSnapshot) {
    assert_eq!(contents.format_version, expected.format_version);
    assert_eq!(contents.compat_version, expected.compat_version);
    assert_eq!(contents.meta, expected.meta.clone().unwrap_or_default().to_ours());
    assert_eq!(contents.dbis.len(), expected.databases.len());
    for (index, ((header, entries), dbi)) in contents.dbis.iter().zip(&expected.databases).enumerate() {
        assert_eq!(header.index, index);
        assert_eq!((&header.name, header.flags, &header.transform), (&dbi.name, dbi.flags, &dbi.transform));
        assert_eq!(entries, &dbi.entries);
    }
}

/// One gzip member with the bytes stored, not compressed (RFC 1951, 3.2.4), so that a fuzzer's bytes stay visible.
pub fn stored_gzip(raw: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let mut chunks = raw.chunks(0xffff).peekable();
    if raw.is_empty() {
        out.extend([1, 0, 0, 0xff, 0xff]);
    }
    while let Some(chunk) = chunks.next() {
        let length = chunk.len() as u16;
        out.push(u8::from(chunks.peek().is_none()));
        out.extend(length.to_le_bytes());
        out.extend((!length).to_le_bytes());
        out.extend(chunk);
    }
    let mut crc = flate2::Crc::new();
    crc.update(raw);
    out.extend(crc.sum().to_le_bytes());
    out.extend((raw.len() as u32).to_le_bytes());
    out
}

/// Checks the verdict on a gzip stream against flate2's reader, and on what is in it against prost's.
pub fn compare_gzip(gzip: &[u8]) {
    let mut raw = Vec::new();
    // A bomb would make flate2 take the memory that the reader does not.
    let limit = 16 << 20;
    let unzipped = std::io::Read::read_to_end(
        &mut std::io::Read::take(flate2::bufread::MultiGzDecoder::new(gzip), limit),
        &mut raw,
    );
    if raw.len() as u64 == limit {
        let _ = read_all(gzip);
        return;
    }
    match unzipped {
        Ok(_) if !may_have_options(gzip) => {
            let _ = compare(&raw, gzip);
        }
        // flate2 lets pass what we do not: reserved flags, a size field that lies.
        Ok(_) => {
            if let Ok(contents) = read_all(gzip) {
                assert_contents(&contents, &PbSnapshot::decode(raw.as_slice()).expect("readable for us"));
            }
        }
        Err(error) => {
            if let Ok(contents) = read_all(gzip) {
                panic!("accepted what flate2 refuses ({error}): {contents:?}");
            }
        }
    }
}

/// True when something in it looks like a member with header flags.
fn may_have_options(gzip: &[u8]) -> bool {
    gzip.windows(4).any(|bytes| bytes.starts_with(&[0x1f, 0x8b, 8]) && bytes[3] != 0)
}
