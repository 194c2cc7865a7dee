//! Hostile snapshots: memory stays bounded whatever a file claims or unpacks to, and the verdict is an error or the truth.
//!
//! One test, because the allocator counts for the whole process.

mod oracle;

use std::io::{Cursor, Read, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use lightningstream_core::snapshot::decode::{Event, Index, Reader};
use lightningstream_core::snapshot::wire::MAX_ENTRY_BYTES;
use lightningstream_core::{Cancel, Code, Result};
use oracle::stored_gzip;
use peak_alloc::PeakAlloc;
use prost::encoding::encode_varint;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const MIB: usize = 1 << 20;
/// Six blocks of two MiB for the widest machine, input buffer, inflater state, and some room.
const ORDINARY: usize = 16 * MIB;

/// Runs `work` and returns its result if it needed no more than `bound` bytes beyond what was there before.
fn within<T>(bound: usize, case: &str, work: impl FnOnce() -> T) -> T {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let result = work();
    let used = ALLOCATOR.peak_usage().saturating_sub(before);
    assert!(used <= bound, "{case}: {used} bytes, at most {bound} expected");
    result
}

fn read<R: Read + Send + 'static>(source: R) -> Result<u64> {
    let mut reader = Reader::from_source(source, "test".into(), &Cancel::new(), None)?;
    let mut entries = 0;
    loop {
        match reader.next()? {
            Event::Entry { .. } => entries += 1,
            Event::End => return Ok(entries),
            Event::Dbi(_) => {}
            Event::NeedsIndex => panic!("nothing comes late here"),
        }
    }
}

fn scan<R: Read + Send + 'static>(source: R) -> Result<Index> {
    Index::scan_source(source, "test".into(), &Cancel::new())
}

fn code<T>(result: Result<T>) -> Option<Code> {
    result.err().map(|error| error.code)
}

fn varint(value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    encode_varint(value, &mut out);
    out
}

/// Tag and length of a length-delimited field.
fn field(number: u8, length: u64) -> Vec<u8> {
    [vec![number << 3 | 2], varint(length)].concat()
}

/// formatVersion 3, then a DBI message of the given length up to behind its name `d`.
fn head(dbi_length: u64) -> Vec<u8> {
    [vec![8, 3], field(3, dbi_length), vec![10, 1, b'd']].concat()
}

fn deflated(raw: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(raw).expect("memory");
    encoder.finish().expect("memory")
}

/// `head`, then zeros (`mib` of them in MiB), then `tail`, as gzip members.
fn bomb(head: &[u8], mib: usize, tail: &[u8]) -> Vec<u8> {
    let zeros = deflated(&vec![0; MIB]);
    let mut out = stored_gzip(head);
    for _ in 0..mib {
        out.extend(&zeros);
    }
    out.extend(stored_gzip(tail));
    out
}

/// A member as our writer makes it, of an empty message.
fn own_member() -> Vec<u8> {
    let mut out = Vec::new();
    let sink = lightningstream_core::snapshot::gzip::MemberWriter::new(Cursor::new(&mut out), "memory", &Cancel::new());
    sink.finish().expect("memory");
    out
}

#[test]
fn memory_is_bounded() {
    // An unknown field of 1 GiB.
    let gzip = bomb(&[vec![8, 3], field(15, 1 << 30)].concat(), 1 << 10, b"");
    within(ORDINARY, "gzip bomb", || assert_eq!(read(Cursor::new(gzip)).expect("valid"), 0));

    // The same as one member of one deflate stream.
    let mut raw = [vec![8, 3], field(15, 256 << 20)].concat();
    raw.resize(raw.len() + (256 << 20), 0);
    let gzip = deflated(&raw);
    drop(raw);
    within(ORDINARY, "one-member gzip bomb", || assert_eq!(read(Cursor::new(gzip)).expect("valid"), 0));

    // A DBI message of more than 4 GiB, with an entry behind the 4 GiB.
    let entry = [field(2, 3), vec![10, 1, b'k']].concat();
    let unknown = field(9, 4200 << 20);
    let length = 3 + (unknown.len() + entry.len()) as u64 + (4200 << 20);
    let gzip = bomb(&[head(length), unknown].concat(), 4200, &entry);
    let index = within(ORDINARY, "long DBI", || scan(Cursor::new(gzip.clone())).expect("valid"));
    assert_eq!((index.entries, index.dbis[0].header.message_len), (1, length));
    assert_eq!(within(ORDINARY, "long DBI", || read(Cursor::new(gzip)).expect("valid")), 1);

    // The largest entry that is read, and one above.
    let content = MAX_ENTRY_BYTES - 3 - 5;
    let entry = |content: u64| [field(2, 3 + 5 + content), vec![10, 1, b'k'], field(2, content)].concat();
    let message = |content: u64| [head(3 + entry(content).len() as u64 + content), entry(content)].concat();
    let tail = |content: u64| vec![0; (content % MIB as u64) as usize];
    let gzip = bomb(&message(content), (content / MIB as u64) as usize, &tail(content));
    // The counting allocator grows by copying: for a moment the half-filled buffer is there too. The system's remaps it.
    let bound = MAX_ENTRY_BYTES as usize * 3 / 2 + ORDINARY;
    assert_eq!(within(bound, "largest entry", || read(Cursor::new(gzip)).expect("valid")), 1);
    let gzip = bomb(&message(content + 1), (content / MIB as u64) as usize, &tail(content + 1));
    let refused = within(ORDINARY, "too large an entry", || read(Cursor::new(gzip.clone())));
    assert_eq!(code(refused), Some(Code::SnapshotRefused));
    assert_eq!(scan(Cursor::new(gzip)).expect("its framing is right").entries, 1);

    // Claims without the bytes.
    for length in [100, 60 << 20, MAX_ENTRY_BYTES, MAX_ENTRY_BYTES + 1, 1 << 31, 1 << 40, 1 << 63, u64::MAX] {
        let case = format!("claim of {length}");
        let entry = [field(2, length), vec![10, 1, b'k']].concat();
        let dbi = head(length.saturating_add(40));
        let messages = [
            [dbi, entry.clone()].concat(),
            [head(3 + entry.len() as u64), entry].concat(),
            [vec![8, 3], field(2, length)].concat(),
            [vec![8, 3], field(3, length)].concat(),
            [vec![8, 3], field(15, length), vec![0; 50]].concat(),
            [head(length), field(1, length)].concat(),
            [head(length), field(4, length)].concat(),
            [head(length), field(15, length)].concat(),
        ];
        for raw in messages {
            let gzip = stored_gzip(&raw);
            let verdict = within(ORDINARY, &case, || oracle::compare(&raw, &gzip));
            assert_eq!(code(verdict), Some(Code::SnapshotCorrupt), "{case}: {raw:02x?}");
        }
        // Inside of an entry.
        for inner in [field(1, length), field(2, length), field(15, length)] {
            let body = [vec![10, 1, b'k'], inner, vec![0; 9]].concat();
            let entry = [field(2, body.len() as u64), body].concat();
            let raw = [head(3 + entry.len() as u64), entry].concat();
            let verdict = within(ORDINARY, &case, || oracle::compare(&raw, &stored_gzip(&raw)));
            assert_eq!(code(verdict), Some(Code::SnapshotRefused), "{case}: {raw:02x?}");
        }
    }

    // Many small things.
    let gzip = deflated(&[vec![8, 3], [26, 0].repeat(1_000_000)].concat());
    let verdict = within(ORDINARY, "a million DBIs", || scan(Cursor::new(gzip)));
    assert_eq!(code(verdict), Some(Code::SnapshotCorrupt));
    let gzip = deflated(&[head(3 + 5_000_000), [18, 3, 10, 1, b'k'].repeat(1_000_000)].concat());
    assert_eq!(within(ORDINARY, "a million entries", || read(Cursor::new(gzip)).expect("valid")), 1_000_000);
    let gzip = deflated(b"").repeat(200_000);
    assert_eq!(within(ORDINARY, "empty foreign members", || read(Cursor::new(gzip)).expect("valid")), 0);
    let gzip = own_member().repeat(20_000);
    assert_eq!(within(ORDINARY, "empty members of ours", || read(Cursor::new(gzip)).expect("valid")), 0);

    // A file name of 256 MiB.
    let header = Cursor::new(vec![0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 255]);
    let endless = header.chain(std::io::repeat(b'x').take(256 << 20));
    assert_eq!(code(within(ORDINARY, "endless name", || read(endless))), Some(Code::SnapshotCorrupt));

    // Groups in groups.
    let verdict = within(ORDINARY, "groups", || read(Cursor::new(deflated(&vec![0x7b; 10 * MIB]))));
    assert_eq!(code(verdict), Some(Code::SnapshotCorrupt));

    // Members of ours that lie about their size, compressed or not.
    let honest = own_member();
    assert_eq!(read(Cursor::new(honest.clone())).expect("honest"), 0);
    let length = honest.len() as u32;
    for size in [0, 19, 20, length - 1, length + 1, length + 8, 2 * length, 1 << 20, u32::MAX] {
        let mut lie = honest.clone();
        lie[16..20].copy_from_slice(&size.to_le_bytes());
        for file in [lie.clone(), [lie.clone(), honest.clone()].concat(), lie.repeat(3)] {
            let verdict = within(ORDINARY, "lying size", || read(Cursor::new(file)));
            assert_eq!(code(verdict), Some(Code::SnapshotCorrupt), "size {size}");
        }
    }
    for inflated in [1, 1 << 20, (1 << 20) + 1, u32::MAX] {
        let mut lie = honest.clone();
        let at = lie.len() - 4;
        lie[at..].copy_from_slice(&inflated.to_le_bytes());
        let verdict = within(ORDINARY, "lying length", || read(Cursor::new(lie)));
        assert_eq!(code(verdict), Some(Code::SnapshotCorrupt), "length {inflated}");
    }
}
