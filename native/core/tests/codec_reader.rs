//! How the snapshot reader behaves towards its caller: late fields, aborts, failing files.

mod oracle;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Cursor, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use lightningstream_core::snapshot::decode::{Event, Index, Reader};
use lightningstream_core::snapshot::encode::{Sink, Writer};
use lightningstream_core::snapshot::gzip::MemberWriter;
use lightningstream_core::{Cancel, Code};
use oracle::{read_with, stored_gzip};
use prost::Message;

#[test]
fn an_index_is_asked_for_only_where_something_comes_late() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../test/golden/snapshot-formats");
    let mut asked = BTreeSet::new();
    for case in fs::read_dir(root).expect("golden data") {
        let case = case.expect("a directory entry");
        for object in fs::read_dir(case.path().join("remote")).into_iter().flatten() {
            let gzip = fs::read(object.expect("a directory entry").path()).expect("an object");
            if matches!(read_with(&gzip, None), Ok(None)) {
                asked.insert(case.file_name().into_string().expect("UTF-8"));
            }
        }
    }
    let expected = [
        "dbi-name-last",
        "dbi-name-middle",
        "dbi-new-flags-last",
        "dbi-no-name",
        "format-0",
        "format-0-explicit",
        "snapshot-fields-reversed",
    ];
    assert_eq!(asked, expected.map(str::to_owned).into());
}

/// Fields of length-delimited type, for messages that no encoder would write.
fn field(number: u8, body: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, body.len() as u8], body].concat()
}

#[test]
fn the_last_of_a_repeated_field_counts_wherever_it_comes() {
    let entry = field(2, &field(1, b"k"));
    let name = |name: &[u8]| field(1, name);
    let cases: [(Vec<u8>, bool); 8] = [
        // The same again changes nothing.
        ([vec![8, 3], field(3, &[name(b"a"), entry.clone(), name(b"a")].concat()), vec![8, 3]].concat(), false),
        // Before the first entry everything is in time.
        (
            [vec![8, 2, 8, 3], field(3, &[name(b"a"), name(b"b"), vec![24, 8, 24, 0], entry.clone()].concat())]
                .concat(),
            false,
        ),
        ([vec![8, 3], field(3, &[name(b"a"), entry.clone(), name(b"b"), entry.clone()].concat())].concat(), true),
        ([vec![8, 3], field(3, &[name(b"a"), entry.clone(), vec![24, 8]].concat())].concat(), true),
        ([vec![8, 3], field(3, &[name(b"a"), entry.clone(), field(4, b"t")].concat())].concat(), true),
        ([vec![8, 3], field(3, &[name(b"a"), entry.clone()].concat()), vec![8, 2]].concat(), true),
        ([vec![8, 3], field(3, &name(b"a")), vec![32, 9]].concat(), true),
        ([field(3, &[name(b"a"), entry].concat()), vec![8, 1]].concat(), true),
    ];
    for (raw, late) in cases {
        let gzip = stored_gzip(&raw);
        assert_eq!(read_with(&gzip, None).expect("valid").is_none(), late, "{raw:02x?}");
        let contents = oracle::compare(&raw, &gzip).expect("valid");
        let expected = oracle::PbSnapshot::decode(raw.as_slice()).expect("valid");
        assert_eq!(contents.dbis[0].0.name, expected.databases[0].name);
    }
}

/// A snapshot of `count` entries in our members.
fn large(count: u32) -> Vec<u8> {
    let key = |index: u32| index.wrapping_mul(2_654_435_761).to_be_bytes();
    let mut gzip = Vec::new();
    let sink = MemberWriter::new(std::io::Cursor::new(&mut gzip), "memory", &Cancel::new());
    let mut writer = Writer::new(sink, &Default::default()).expect("a head");
    writer.begin_dbi("d", 0, "").expect("a DBI");
    for index in 0..count {
        writer.entry(&key(index), b"value", 7, 0).expect("an entry");
    }
    writer.finish().expect("the end").finish().expect("memory");
    gzip
}

/// As one member of another program.
fn large_foreign(count: u32) -> Vec<u8> {
    let mut raw = Vec::new();
    flate2::read::MultiGzDecoder::new(large(count).as_slice()).read_to_end(&mut raw).expect("valid gzip");
    let mut gzip = Vec::new();
    flate2::read::GzEncoder::new(raw.as_slice(), flate2::Compression::fast()).read_to_end(&mut gzip).expect("memory");
    gzip
}

#[test]
fn an_abort_ends_the_reading_within_a_block() {
    for gzip in [large(1_000_000), large_foreign(1_000_000)] {
        let cancel = Cancel::new();
        let mut reader = Reader::from_source(Cursor::new(gzip.clone()), "test".into(), &cancel, None).expect("started");
        assert!(matches!(reader.next(), Ok(Event::Dbi(_))));
        cancel.cancel();
        let mut read = 0;
        let error = loop {
            match reader.next() {
                Ok(Event::Entry { .. }) => read += 1,
                Ok(other) => panic!("{other:?}"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.code, Code::Aborted);
        // An entry takes 24 bytes, a block at most a MiB.
        assert!(read <= (1 << 20) / 24 + 1, "{read}");
        assert_eq!(
            Index::scan_source(Cursor::new(gzip), "test".into(), &cancel).expect_err("aborted").code,
            Code::Aborted
        );
    }
}

#[test]
fn a_reader_may_be_dropped_at_any_point() {
    for gzip in [large(500_000), large_foreign(500_000)] {
        for steps in [0, 1, 2, 100, 100_000] {
            let source = Cursor::new(gzip.clone());
            let mut reader = Reader::from_source(source, "test".into(), &Cancel::new(), None).expect("started");
            for _ in 0..steps {
                reader.next().expect("valid");
            }
            let start = Instant::now();
            drop(reader);
            // It waits for blocks in work, not for the rest of the file.
            assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        }
    }
}

#[test]
fn after_an_error_there_is_no_end() {
    let mut gzip = large(10_000);
    let last = gzip.len() - 5;
    gzip[last] ^= 1;
    let mut reader = Reader::from_source(Cursor::new(gzip), "test".into(), &Cancel::new(), None).expect("started");
    let error = loop {
        match reader.next() {
            Ok(Event::End) => panic!("the checksum is wrong"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.code, Code::SnapshotCorrupt);
    assert!(error.message.contains("checksum"), "{error}");
    assert!(reader.next().is_err());
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let missing = directory.path().join("missing.pb.gz");
    let error = Reader::open(&missing, &Cancel::new(), None).err().expect("missing");
    assert_eq!(error.code.name(), "ENOENT");
    assert!(error.message.contains("missing.pb.gz"), "{error}");

    let mut reader = Reader::open(directory.path(), &Cancel::new(), None).expect("a directory opens");
    assert_eq!(reader.next().expect_err("but does not read").code.name(), "EISDIR");

    struct Failing(Cursor<Vec<u8>>);
    impl Read for Failing {
        fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
            match self.0.read(out)? {
                0 => Err(std::io::Error::from_raw_os_error(5)),
                length => Ok(length),
            }
        }
    }
    for mut gzip in [large(200_000), large_foreign(200_000)] {
        gzip.truncate(gzip.len() / 2);
        let source = Failing(Cursor::new(gzip));
        let error = Index::scan_source(source, "spool/x".into(), &Cancel::new()).expect_err("the disk fails");
        assert_eq!(error.code.name(), "EIO");
        assert!(error.message.contains("spool/x"), "{error}");
    }
}

#[test]
fn a_member_of_several_writers_is_still_one_stream() {
    // Ours, foreign and empty members in turn.
    let (head, tail) = (vec![8u8, 3], field(3, &[field(1, b"a"), field(2, &field(1, b"k"))].concat()));
    let ours = |raw: &[u8]| {
        let mut gzip = Vec::new();
        let mut sink = MemberWriter::new(std::io::Cursor::new(&mut gzip), "memory", &Cancel::new());
        sink.put(raw).expect("memory");
        sink.finish().expect("memory");
        gzip
    };
    let expected = read_with(&ours(&[head.clone(), tail.clone()].concat()), None).expect("valid");
    for cut in 0..tail.len() {
        let (left, right) = tail.split_at(cut);
        for gzip in [
            [stored_gzip(&head), ours(left), stored_gzip(b""), stored_gzip(right), ours(b"")].concat(),
            [ours(&head), ours(b""), stored_gzip(left), ours(right), stored_gzip(b"")].concat(),
        ] {
            assert_eq!(read_with(&gzip, None).expect("valid"), expected);
        }
    }
}
