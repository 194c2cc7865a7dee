//! Properties of the snapshot codec, against another protobuf implementation and other gzip framings.

mod oracle;

use std::io::Write;

use flate2::{Compression, GzBuilder};
use lightningstream_core::snapshot::Meta;
use lightningstream_core::snapshot::encode::{self, InMemory, Sink, Writer};
use lightningstream_core::snapshot::gzip::{CHUNK_BYTES, MemberWriter};
use lightningstream_core::{Cancel, Code};
use oracle::{PbDbi, PbKv, PbMeta, PbSnapshot, assert_contents, compare, read_all, stored_gzip};
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;

fn kv() -> impl Strategy<Value = PbKv> {
    let value = prop_oneof![
        20 => vec(any::<u8>(), 0..200),
        1 => (any::<u8>(), 0..3_000_000usize).prop_map(|(byte, length)| vec![byte; length]),
    ];
    let timestamp_nano = prop_oneof![Just(0), any::<u64>()];
    let flags = prop_oneof![Just(0), Just(1), any::<u32>()];
    (vec(any::<u8>(), 1..40), value, timestamp_nano, flags).prop_map(|(key, value, timestamp_nano, flags)| PbKv {
        key,
        value,
        timestamp_nano,
        flags,
    })
}

fn dbi() -> impl Strategy<Value = PbDbi> {
    let flags = prop_oneof![Just(0), 0..64u64, any::<u64>()];
    ("[a-zé_0-9]{1,20}", vec(kv(), 0..50), flags, "[a-z0-9_]{0,16}")
        .prop_map(|(name, entries, flags, transform)| PbDbi { name, entries, flags, transform })
}

fn snapshot() -> impl Strategy<Value = PbSnapshot> {
    let text = || vec(any::<u8>(), 0..12).prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned().into_bytes());
    let meta = (text(), text(), text(), text(), any::<i64>(), any::<u64>(), any::<i64>()).prop_map(
        |(generation_id, instance_id, hostname, database_name, lmdb_txn_id, timestamp_nano, from_lmdb_txn_id)| PbMeta {
            generation_id,
            instance_id,
            hostname,
            lmdb_txn_id,
            timestamp_nano,
            database_name,
            from_lmdb_txn_id,
        },
    );
    (meta, vec(dbi(), 0..5)).prop_map(|(meta, databases)| PbSnapshot {
        format_version: 3,
        meta: Some(meta),
        databases,
        compat_version: 1,
    })
}

/// Writes with our encoder; checks the announced sizes against prost's.
fn encode_into<S: Sink>(sink: S, snapshot: &PbSnapshot) -> S {
    let meta = snapshot.meta.as_ref().map_or_else(Meta::default, PbMeta::to_ours);
    let mut writer = Writer::new(sink, &meta).expect("a head");
    for dbi in &snapshot.databases {
        for entry in &dbi.entries {
            let size = encode::kv_size(&entry.key, &entry.value, entry.timestamp_nano, entry.flags);
            assert_eq!(size, entry.encoded_len() as u64);
        }
        writer.begin_dbi(&dbi.name, dbi.flags, &dbi.transform).expect("a DBI");
        for entry in &dbi.entries {
            writer.entry(&entry.key, &entry.value, entry.timestamp_nano, entry.flags).expect("an entry");
        }
    }
    writer.finish().expect("the end")
}

/// Cuts `raw` at arbitrary places into members made by another library, with names, comments and extra fields.
fn foreign_gzip(raw: &[u8], cuts: &[(usize, u32, u8)]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = raw;
    for &(length, level, headers) in cuts {
        let (now, later) = rest.split_at(length.min(rest.len()));
        rest = later;
        out.extend(member(now, level, headers));
    }
    out.extend(member(rest, 6, 0));
    out
}

fn member(raw: &[u8], level: u32, headers: u8) -> Vec<u8> {
    let mut builder = GzBuilder::new();
    if headers & 1 != 0 {
        builder = builder.filename("a file");
    }
    if headers & 2 != 0 {
        builder = builder.comment("a comment");
    }
    if headers & 4 != 0 {
        builder = builder.extra(b"BC\x02\x00ab".to_vec());
    }
    let mut encoder = builder.write(Vec::new(), Compression::new(level));
    encoder.write_all(raw).expect("memory");
    encoder.finish().expect("memory")
}

fn cuts() -> impl Strategy<Value = Vec<(usize, u32, u8)>> {
    vec((prop_oneof![0..64usize, 0..200_000usize], 0..10u32, 0..8u8), 0..6)
}

/// Changes to bytes: where (as a fraction), what.
#[derive(Clone, Debug)]
enum Mutation {
    Set(f64, u8),
    Truncate(f64),
    Insert(f64, Vec<u8>),
    Remove(f64, usize),
    Repeat(f64, usize),
}

fn mutations() -> impl Strategy<Value = Vec<Mutation>> {
    let place = || 0.0..1.0f64;
    let byte = || prop_oneof![any::<u8>(), Just(0xff), Just(0x80), Just(0), (0..40u8)];
    vec(
        prop_oneof![
            8 => (place(), byte()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
            1 => place().prop_map(Mutation::Truncate),
            2 => (place(), vec(byte(), 1..12)).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
            2 => (place(), 1..20usize).prop_map(|(at, length)| Mutation::Remove(at, length)),
            1 => (place(), 1..60usize).prop_map(|(at, length)| Mutation::Repeat(at, length)),
        ],
        1..4,
    )
}

fn mutate(bytes: &mut Vec<u8>, mutations: &[Mutation]) {
    for mutation in mutations {
        let index = |at: &f64| (bytes.len() as f64 * at) as usize;
        match mutation {
            Mutation::Set(at, byte) => {
                let at = index(at);
                if let Some(place) = bytes.get_mut(at) {
                    *place = *byte;
                }
            }
            Mutation::Truncate(at) => bytes.truncate(index(at)),
            Mutation::Insert(at, new) => {
                let at = index(at);
                bytes.splice(at..at, new.iter().copied());
            }
            Mutation::Remove(at, length) => {
                let at = index(at);
                bytes.drain(at..bytes.len().min(at + length));
            }
            Mutation::Repeat(at, length) => {
                let at = index(at);
                let piece = bytes[at..bytes.len().min(at + length)].to_vec();
                bytes.splice(at..at, piece);
            }
        }
    }
}

fn small_snapshot() -> impl Strategy<Value = PbSnapshot> {
    snapshot().prop_map(|mut snapshot| {
        for entry in snapshot.databases.iter_mut().flat_map(|dbi| &mut dbi.entries) {
            entry.value.truncate(20);
        }
        for dbi in &mut snapshot.databases {
            dbi.entries.truncate(4);
        }
        snapshot
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read_by_us_and_by_others(snapshot in snapshot(), cuts in cuts()) {
        let raw = encode_into(InMemory::default(), &snapshot).bytes;
        prop_assert_eq!(raw.len(), snapshot.encoded_len());
        prop_assert_eq!(&PbSnapshot::decode(raw.as_slice()).expect("prost reads it"), &snapshot);

        // In blocks, entries across their ends included, the bytes are the same.
        let mut gzip = Vec::new();
        let sink = MemberWriter::new(std::io::Cursor::new(&mut gzip), "memory", &Cancel::new());
        let written = encode_into(sink, &snapshot).finish().expect("memory");
        prop_assert_eq!(written.bytes, raw.len() as u64);
        prop_assert_eq!(written.compressed_bytes, gzip.len() as u64);
        let mut unzipped = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(gzip.as_slice()), &mut unzipped)
            .expect("valid gzip");
        prop_assert!(unzipped == raw);

        assert_contents(&read_all(&gzip).expect("our members"), &snapshot);
        assert_contents(&read_all(&foreign_gzip(&raw, &cuts)).expect("foreign members"), &snapshot);
    }

    #[test]
    fn what_another_implementation_writes_is_read(snapshot in small_snapshot()) {
        let raw = snapshot.encode_to_vec();
        assert_contents(&compare(&raw, &stored_gzip(&raw)).expect("valid"), &snapshot);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn damaged_protobuf_gets_the_verdict_of_another_implementation(
        snapshot in small_snapshot(),
        mutations in mutations(),
    ) {
        let mut raw = snapshot.encode_to_vec();
        mutate(&mut raw, &mutations);
        let _ = compare(&raw, &stored_gzip(&raw));
    }

    #[test]
    fn damaged_gzip_is_corrupt_or_unharmed(snapshot in small_snapshot(), mutations in mutations(), ours in any::<bool>()) {
        let raw = snapshot.encode_to_vec();
        let mut gzip = if ours {
            let mut gzip = Vec::new();
            let mut sink = MemberWriter::new(std::io::Cursor::new(&mut gzip), "memory", &Cancel::new());
            sink.put(&raw).expect("memory");
            sink.finish().expect("memory");
            gzip
        } else {
            foreign_gzip(&raw, &[(raw.len() / 2, 6, 3)])
        };
        mutate(&mut gzip, &mutations);
        match read_all(&gzip) {
            // Time, system, names and the like may say anything; a whole member may be repeated.
            Ok(contents) => {
                let mut unzipped = Vec::new();
                std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(gzip.as_slice()), &mut unzipped)
                    .expect("readable for us");
                assert_contents(&contents, &PbSnapshot::decode(unzipped.as_slice()).expect("readable for us"));
            }
            Err(error) => prop_assert_eq!(error.code, Code::SnapshotCorrupt, "{}", error),
        }
    }
}

#[test]
fn chunk_ends_anywhere_in_an_entry() {
    // One filling entry moves the next ones over the end of the first chunk, a byte at a time.
    let small = |index: u8| PbKv { key: vec![index; 3], value: vec![index; 150], timestamp_nano: 1 << 60, flags: 200 };
    for shift in 0..200 {
        let filler = PbKv { key: vec![1], value: vec![7; CHUNK_BYTES - 300 + shift], timestamp_nano: 0, flags: 0 };
        let entries = vec![filler, small(2), small(3)];
        let databases = vec![PbDbi { name: "d".into(), entries, flags: 0, transform: String::new() }];
        let snapshot = PbSnapshot { format_version: 3, compat_version: 1, meta: Some(PbMeta::default()), databases };
        let mut gzip = Vec::new();
        encode_into(MemberWriter::new(std::io::Cursor::new(&mut gzip), "memory", &Cancel::new()), &snapshot)
            .finish()
            .expect("memory");
        assert_contents(&read_all(&gzip).expect("readable"), &snapshot);
    }
}

#[test]
fn an_empty_stream_is_one_empty_member() {
    let mut gzip = Vec::new();
    let written =
        MemberWriter::new(std::io::Cursor::new(&mut gzip), "memory", &Cancel::new()).finish().expect("memory");
    assert_eq!(written.bytes, 0);
    let mut decoder = flate2::read::GzDecoder::new(gzip.as_slice());
    let mut raw = Vec::new();
    std::io::Read::read_to_end(&mut decoder, &mut raw).expect("one valid member");
    assert!(raw.is_empty() && decoder.into_inner().is_empty());
    assert_eq!(read_all(&gzip).expect("an empty message is a snapshot"), oracle::Contents::default());
}

#[test]
fn a_full_disk_and_an_abort_end_the_writing() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or_else(|| std::io::Error::from_raw_os_error(28))?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    impl std::io::Seek for Full {
        fn seek(&mut self, _: std::io::SeekFrom) -> std::io::Result<u64> {
            Ok(0)
        }
    }
    fn fill(mut sink: MemberWriter<Full>) -> lightningstream_core::Error {
        let mut noise = 1u64;
        for _ in 0..4_000_000 {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            if let Err(error) = sink.put(&noise.to_le_bytes()) {
                return error;
            }
        }
        sink.finish().expect_err("there was no room for it")
    }
    let error = fill(MemberWriter::new(Full(3 << 20), "spool/x", &Cancel::new()));
    assert_eq!(error.code.name(), "ENOSPC");
    assert!(error.message.contains("spool/x"), "{error}");

    let cancel = Cancel::new();
    cancel.cancel();
    assert_eq!(fill(MemberWriter::new(Full(usize::MAX), "spool/x", &cancel)).code, Code::Aborted);
}

#[test]
fn an_entry_outside_of_a_dbi_is_an_error() {
    let mut writer = Writer::new(InMemory::default(), &Meta::default()).expect("a head");
    assert_eq!(writer.entry(b"key", b"value", 1, 0).expect_err("no DBI").code, Code::InvalidArgument);
}

#[test]
fn heads_of_dbis_end_up_before_their_entries_wherever_chunks_end() {
    // DBIs that fit into a chunk, that fill it to its last bytes, that go over its end, that take several; at all offsets that matter.
    for size in [0, 1, 1000, CHUNK_BYTES - 4000, CHUNK_BYTES, 3 * CHUNK_BYTES] {
        for shift in 0..60 {
            let dbi = |name: &str, length: usize, flags: u64| PbDbi {
                name: name.into(),
                entries: vec![
                    PbKv { key: vec![1], value: vec![3; length], timestamp_nano: 1, flags: 0 },
                    PbKv { key: vec![2], value: vec![4; 10], timestamp_nano: 2, flags: 1 },
                ],
                flags,
                transform: String::new(),
            };
            let last = PbDbi { name: "last".into(), entries: vec![], flags: 8, transform: "t".into() };
            let databases =
                vec![dbi("first", 3900 + shift, 0), dbi("second", size, 4), dbi("third", size / 2, 0), last];
            let snapshot =
                PbSnapshot { format_version: 3, compat_version: 1, meta: Some(PbMeta::default()), databases };
            let raw = encode_into(InMemory::default(), &snapshot).bytes;
            let mut gzip = Vec::new();
            let sink = MemberWriter::new(std::io::Cursor::new(&mut gzip), "memory", &Cancel::new());
            let written = encode_into(sink, &snapshot).finish().expect("memory");
            assert_eq!((written.bytes, written.compressed_bytes), (raw.len() as u64, gzip.len() as u64));
            let mut unzipped = Vec::new();
            std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(gzip.as_slice()), &mut unzipped)
                .expect("valid gzip");
            assert!(unzipped == raw, "size {size}, shift {shift}");
            assert!(PbSnapshot::decode(raw.as_slice()).expect("prost reads it").databases == snapshot.databases);
            assert_contents(&read_all(&gzip).expect("readable"), &snapshot);
        }
    }
}
