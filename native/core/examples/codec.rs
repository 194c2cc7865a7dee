//! Times the snapshot codec on PowerDNS-like entries.
//!
//! `cargo run --release --example codec -- ENTRIES DIRECTORY`: writes a snapshot of ours and the same content as one foreign gzip
//! member into the directory, reads both.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use lightningstream_core::snapshot::Meta;
use lightningstream_core::snapshot::decode::{Event, Index, Reader};
use lightningstream_core::snapshot::encode::{InMemory, Sink, Writer};
use lightningstream_core::snapshot::gzip::MemberWriter;
use lightningstream_core::{Cancel, Result};

/// Peak resident set of the process in KiB.
fn peak_kib() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("VmHWM: ?");
    line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
}

/// Calls `each` with key, value and timestamp of records in key order: a domain number, a name and a type; a record of
/// PowerDNS's serialisation. They compress like real ones, to somewhat less than half.
fn records(count: u32, mut each: impl FnMut(&[u8], &[u8], u64) -> Result<()>) -> Result<()> {
    let mut key = *b"\x00\x00\x00\x2ahost-00000000\x00\x00\x00\x01";
    let mut value = *b"\x0d\x00hhhhhhhhpppp\x58\x02\x00\x00\x01\x00\x00\x01";
    for index in 0..count {
        let noise = u64::from(index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let noise = (noise ^ noise >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        for (place, digit) in key[9..17].iter_mut().rev().zip(0..) {
            *place = b"0123456789abcdef"[(index >> (4 * digit) & 15) as usize];
        }
        value[2..10].copy_from_slice(&noise.to_le_bytes());
        value[10..14].copy_from_slice(&noise.rotate_left(13).to_le_bytes()[..4]);
        each(&key, &value, 1_700_000_000_000_000_000 + (noise >> 20))?;
    }
    Ok(())
}

fn write<S: Sink>(sink: S, count: u32) -> Result<S> {
    let mut writer = Writer::new(sink, &Meta { generation_id: "GX".into(), ..Meta::default() })?;
    writer.begin_dbi("records_v5", 0, "")?;
    records(count, |key, value, timestamp| writer.entry(key, value, timestamp, 0))?;
    writer.finish()
}

fn read(path: &Path) -> Result<u64> {
    let mut reader = Reader::open(path, &Cancel::new(), None)?;
    let mut sum = 0;
    loop {
        match reader.next()? {
            Event::Entry { key, value, timestamp, .. } => {
                sum += key.len() as u64 + value.len() as u64 + (timestamp & 1);
            }
            Event::End => return Ok(sum),
            Event::Dbi(_) | Event::NeedsIndex => {}
        }
    }
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let count: u32 = args.next().and_then(|arg| arg.parse().ok()).unwrap_or(1_000_000);
    let directory = args.next().unwrap_or_else(|| ".".into());
    let ours = Path::new(&directory).join("ours.pb.gz");
    let foreign = Path::new(&directory).join("foreign.pb.gz");
    let io = |error| lightningstream_core::Error::io("benchmark", &error);
    let rounds = if args.next().is_some() { 1 } else { 3 };

    for _ in 0..rounds {
        let file = File::create(&ours).map_err(io)?;
        let start = Instant::now();
        let sink = MemberWriter::new(&file, "ours.pb.gz", &Cancel::new());
        let written = write(sink, count)?.finish()?;
        println!("encode and compress {:.3?}, {written:?}, peak {}", start.elapsed(), peak_kib());
    }
    for _ in 0..rounds {
        let start = Instant::now();
        let sum = read(&ours)?;
        println!("decode ours {:.3?}, sum {sum}, peak {}", start.elapsed(), peak_kib());
    }
    let start = Instant::now();
    let index = Index::scan(&ours, &Cancel::new())?;
    println!("scan ours {:.3?}, {} entries", start.elapsed(), index.entries);

    if !foreign.exists() {
        let plain = write(InMemory::default(), count)?.bytes;
        let file = File::create(&foreign).map_err(io)?;
        let mut encoder = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        encoder.write_all(&plain).map_err(io)?;
        encoder.finish().map_err(io)?;
    }
    for _ in 0..rounds {
        let start = Instant::now();
        let sum = read(&foreign)?;
        println!("decode foreign {:.3?}, sum {sum}, peak {}", start.elapsed(), peak_kib());
    }
    Ok(())
}
