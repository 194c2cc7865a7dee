//! The application beside a daemon: reads and writes a native LMDB through the same liblmdb, from a process of its own.
//!
//! `lightningstream-testkit PATH [--no-subdir] [--map-size=BYTES]`; then one JSON request per line on standard input, one JSON answer per
//! line on standard output, `{"error": "…"}` when it failed. Keys and values are hexadecimal, timestamps decimal strings.
//!
//! | op | fields | answer |
//! |---|---|---|
//! | put | dbi, key, value, timestamp? | transactionId |
//! | delete | dbi, key, timestamp? | transactionId |
//! | update | entries: [{dbi, key, value, deleted?, timestamp}] | transactionId, applied |
//! | raw | dbi, key, value (stored bytes, header included), flags? | transactionId |
//! | plain | entries: [{dbi, flags?, key, value, remove?}] (no headers; of a DUPSORT DBI one duplicate each), one transaction | transactionId |
//! | plaindump | | dbis: {name: {flags, entries: [[key, value]]}} |
//! | get | dbi, key | found, value, timestamp, deleted |
//! | dump | | dbis: {name: {key: {value, timestamp, deleted}}} |
//! | digest | plain? (no headers, our DBIs left out) | digest: hash of all records without transaction ids |
//! | fill | count, valueBytes?, deletedEvery? (that record of so many is a deletion from 1970), plain? (no headers) | transactionId |
//! | touch | fraction, keepValue?, plain? | changed |
//! | lockloop | durationMs | longestWaitNs, rounds |
//! | lock / unlock | | holds the write lock between the two |
//!
//! `lightningstream-testkit --notify-socket=ADDRESS` is a service manager's ear instead (`sd_notify(3)`): it listens on the datagram socket
//! `ADDRESS`, a path or `@` and an abstract name, and prints `{"listening": true}`, then `{"message": "…"}` for each datagram.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, Write as _};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lightningstream_core::header::{self, FLAG_DELETED};
use lightningstream_core::lmdb::{EnvOptions, Environment};
use lightningstream_core::{Cancel, Code, Error, Result};
use serde::Deserialize;
use serde_json::{Value, json};

/// DBI of filled records, named as PowerDNS names its own.
const FILLED_DBI: &str = "records_v5";
/// Records per transaction while filling.
const FILL_BATCH: u64 = 100_000;

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
enum Request {
    Put {
        dbi: String,
        key: String,
        value: String,
        timestamp: Option<String>,
    },
    Delete {
        dbi: String,
        key: String,
        timestamp: Option<String>,
    },
    /// One transaction; like PowerDNS, it never replaces a record by an older one. Of equally old ones the last writer rule decides.
    Update {
        entries: Vec<Update>,
    },
    Raw {
        dbi: String,
        key: String,
        value: String,
        flags: Option<u32>,
    },
    /// One transaction of an application that knows nothing of headers.
    Plain {
        entries: Vec<Plain>,
    },
    Plaindump,
    Get {
        dbi: String,
        key: String,
    },
    Dump,
    Digest {
        #[serde(default)]
        plain: bool,
    },
    Fill {
        count: u64,
        #[serde(rename = "valueBytes")]
        value_bytes: Option<usize>,
        #[serde(rename = "deletedEvery")]
        deleted_every: Option<u64>,
        #[serde(default)]
        plain: bool,
    },
    Touch {
        fraction: f64,
        #[serde(default, rename = "keepValue")]
        keep_value: bool,
        #[serde(default)]
        plain: bool,
    },
    Lockloop {
        #[serde(rename = "durationMs")]
        duration_ms: u64,
    },
    Lock,
    Unlock,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Update {
    dbi: String,
    key: String,
    value: String,
    #[serde(default)]
    deleted: bool,
    timestamp: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plain {
    dbi: String,
    #[serde(default)]
    flags: u32,
    key: String,
    value: String,
    #[serde(default)]
    remove: bool,
}

fn main() {
    let mut options = EnvOptions { create: true, ..EnvOptions::default() };
    let mut path = None;
    for argument in std::env::args().skip(1) {
        if argument == "--no-subdir" {
            options.no_subdir = true;
        } else if let Some(size) = argument.strip_prefix("--map-size=") {
            options.map_bytes = size.parse().unwrap_or_else(|_| usage());
        } else if let Some(address) = argument.strip_prefix("--notify-socket=") {
            listen(address);
        } else if path.is_none() && !argument.starts_with('-') {
            path = Some(argument);
        } else {
            usage();
        }
    }
    let path = path.unwrap_or_else(|| usage());
    let env = match Environment::open(Path::new(&path), options) {
        Ok(env) => env,
        Err(e) => {
            eprintln!("{} {e}", e.code.name());
            std::process::exit(1);
        }
    };
    let lines = &mut std::io::stdin().lock().lines().map_while(std::result::Result::ok);
    while let Some(line) = lines.next() {
        let answer = match serde_json::from_str(&line) {
            Ok(Request::Lock) => hold_lock(&env, lines),
            Ok(request) => serve(&env, request),
            Err(e) => Err(Error::new(Code::InvalidArgument, e.to_string())),
        };
        answer_with(answer);
    }
}

fn usage() -> ! {
    eprintln!("usage: lightningstream-testkit PATH [--no-subdir] [--map-size=BYTES] | --notify-socket=ADDRESS");
    std::process::exit(2);
}

/// Until it is killed.
fn listen(address: &str) -> ! {
    let bound = match address.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(address),
    };
    let socket = bound.and_then(|address| UnixDatagram::bind_addr(&address)).unwrap_or_else(|e| {
        eprintln!("{address}: {e}");
        std::process::exit(1)
    });
    answer_with(Ok(json!({ "listening": true })));
    let mut datagram = vec![0; 1 << 16];
    loop {
        match socket.recv(&mut datagram) {
            Ok(length) => answer_with(Ok(json!({ "message": String::from_utf8_lossy(&datagram[..length]) }))),
            Err(e) => answer_with(Err(Error::io("receive", &e))),
        }
    }
}

fn answer_with(answer: Result<Value>) {
    let answer = answer.unwrap_or_else(|e| json!({ "error": e.to_string(), "code": e.code.name() }));
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{answer}").and_then(|()| out.flush());
    if written.is_err() {
        std::process::exit(1);
    }
}

/// Answers the lock request at once, and the next one (whatever it is) by letting go.
fn hold_lock(env: &Environment, lines: &mut dyn Iterator<Item = String>) -> Result<Value> {
    let txn = env.write(false, &Cancel::new())?;
    answer_with(Ok(json!({ "transactionId": txn.id().to_string() })));
    lines.next();
    drop(txn);
    Ok(json!({}))
}

fn serve(env: &Environment, request: Request) -> Result<Value> {
    match request {
        Request::Put { dbi, key, value, timestamp } => {
            let timestamp = time(timestamp)?;
            write(env, &dbi, 0, &bytes(&key)?, |txn_id, out| {
                header::build(out, timestamp, txn_id, 0, &bytes(&value)?, false);
                Ok(())
            })
        }
        Request::Delete { dbi, key, timestamp } => {
            let timestamp = time(timestamp)?;
            write(env, &dbi, 0, &bytes(&key)?, |txn_id, out| {
                header::build(out, timestamp, txn_id, FLAG_DELETED, &[], false);
                Ok(())
            })
        }
        Request::Update { entries } => update(env, &entries),
        Request::Raw { dbi, key, value, flags } => write(env, &dbi, flags.unwrap_or(0), &bytes(&key)?, |_, out| {
            *out = bytes(&value)?;
            Ok(())
        }),
        Request::Plain { entries } => plain(env, &entries),
        Request::Plaindump => plain_dump(env),
        Request::Get { dbi, key } => get(env, &dbi, &bytes(&key)?),
        Request::Dump => dump(env),
        Request::Digest { plain } => digest(env, plain),
        Request::Fill { count, value_bytes, deleted_every, plain } => {
            fill(env, count, value_bytes.unwrap_or(32), deleted_every, plain)
        }
        Request::Touch { fraction, keep_value, plain } => touch(env, fraction, keep_value, plain),
        Request::Lockloop { duration_ms } => lock_loop(env, Duration::from_millis(duration_ms)),
        Request::Lock | Request::Unlock => Err(Error::new(Code::InvalidArgument, "no lock is held")),
    }
}

fn write(
    env: &Environment,
    dbi: &str,
    dbi_flags: u32,
    key: &[u8],
    value: impl FnOnce(u64, &mut Vec<u8>) -> Result<()>,
) -> Result<Value> {
    let mut txn = env.write(true, &Cancel::new())?;
    let id = txn.id();
    let handle = match txn.dbi(dbi)? {
        Some(handle) => handle,
        None => txn.create_dbi(dbi, dbi_flags)?,
    };
    let mut stored = Vec::new();
    value(id, &mut stored)?;
    txn.cursor(handle)?.put(key, &stored, false)?;
    txn.commit()?;
    Ok(json!({ "transactionId": id.to_string() }))
}

fn update(env: &Environment, entries: &[Update]) -> Result<Value> {
    let mut txn = env.write(true, &Cancel::new())?;
    let id = txn.id();
    let (mut applied, mut stored) = (0, Vec::new());
    for Update { dbi, key, value, deleted, timestamp } in entries {
        let (key, value, timestamp) = (bytes(key)?, bytes(value)?, time(Some(timestamp.clone()))?);
        let handle = match txn.dbi(dbi)? {
            Some(handle) => handle,
            None => txn.create_dbi(dbi, 0)?,
        };
        let mut cursor = txn.cursor(handle)?;
        let wins = match cursor.find(&key, false)? {
            None => true,
            Some(old) => {
                let old = header::parse(old)?;
                // Newest first, then the lower value, then a deletion before an empty value.
                let rank = |timestamp, value, live| (std::cmp::Reverse(timestamp), value, live);
                rank(timestamp, value.as_slice(), !deleted) < rank(old.timestamp, old.value, !old.is_deleted())
            }
        };
        if wins {
            header::build(&mut stored, timestamp, id, if *deleted { FLAG_DELETED } else { 0 }, &value, false);
            cursor.put(&key, &stored, false)?;
            applied += 1;
        }
    }
    txn.commit()?;
    Ok(json!({ "transactionId": id.to_string(), "applied": applied }))
}

fn plain(env: &Environment, entries: &[Plain]) -> Result<Value> {
    let mut txn = env.write(true, &Cancel::new())?;
    let id = txn.id();
    for Plain { dbi, flags, key, value, remove } in entries {
        let (key, value) = (bytes(key)?, bytes(value)?);
        let handle = match txn.dbi(dbi)? {
            Some(handle) => handle,
            None => txn.create_dbi(dbi, *flags)?,
        };
        let mut cursor = txn.cursor(handle)?;
        if *remove {
            cursor.delete(&key, &value)?;
        } else {
            cursor.put(&key, &value, false)?;
        }
    }
    txn.commit()?;
    Ok(json!({ "transactionId": id.to_string() }))
}

fn plain_dump(env: &Environment) -> Result<Value> {
    let txn = env.read()?;
    let mut dbis = serde_json::Map::new();
    for name in txn.dbi_names() {
        let Some(dbi) = txn.dbi(name)? else { continue };
        let mut cursor = txn.cursor(dbi)?;
        let mut entries = Vec::new();
        while let Some((key, value)) = cursor.next()? {
            entries.push(json!([hex(key), hex(value)]));
        }
        dbis.insert(name.to_owned(), json!({ "flags": dbi.flags, "entries": entries }));
    }
    Ok(json!({ "dbis": dbis }))
}

fn get(env: &Environment, dbi: &str, key: &[u8]) -> Result<Value> {
    let txn = env.read()?;
    let Some(handle) = txn.dbi(dbi)? else { return Ok(json!({ "found": false })) };
    let Some(stored) = txn.cursor(handle)?.find(key, false)? else { return Ok(json!({ "found": false })) };
    let mut record = record(stored)?;
    record["found"] = json!(true);
    Ok(record)
}

fn record(stored: &[u8]) -> Result<Value> {
    let native = header::parse(stored)?;
    Ok(json!({
        "value": hex(native.value),
        "timestamp": native.timestamp.to_string(),
        "deleted": native.is_deleted(),
    }))
}

fn each(env: &Environment, mut visit: impl FnMut(&str, &[u8], &[u8]) -> Result<()>) -> Result<()> {
    let txn = env.read()?;
    for name in txn.dbi_names() {
        let Some(dbi) = txn.dbi(name)? else { continue };
        let mut cursor = txn.cursor(dbi)?;
        while let Some((key, stored)) = cursor.next()? {
            visit(name, key, stored)?;
        }
    }
    Ok(())
}

fn dump(env: &Environment) -> Result<Value> {
    let mut dbis: BTreeMap<String, serde_json::Map<String, Value>> = BTreeMap::new();
    each(env, |name, key, stored| {
        dbis.entry(name.to_owned()).or_default().insert(hex(key), record(stored)?);
        Ok(())
    })?;
    Ok(json!({ "dbis": dbis }))
}

/// FNV-1a over everything in order: for telling apart, not for security.
fn digest(env: &Environment, plain: bool) -> Result<Value> {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for byte in (bytes.len() as u64).to_le_bytes().iter().chain(bytes) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    let mut entries = 0_u64;
    each(env, |name, key, stored| {
        if plain {
            if !name.starts_with("_sync") {
                [name.as_bytes(), key, stored].into_iter().for_each(&mut add);
                entries += 1;
            }
            return Ok(());
        }
        let native = header::parse(stored)?;
        add(name.as_bytes());
        add(key);
        add(&native.timestamp.to_le_bytes());
        add(&[native.flags]);
        add(native.value);
        entries += 1;
        Ok(())
    })?;
    Ok(json!({ "digest": format!("{hash:016x}"), "entries": entries }))
}

/// Records like those of a PowerDNS shard: key = domain id, name in reverse label order, type; value = header and a small payload.
fn fill(env: &Environment, count: u64, value_bytes: usize, deleted_every: Option<u64>, plain: bool) -> Result<Value> {
    let cancel = Cancel::new();
    // All in the past, so that whatever is written next is newer.
    let start = now() - count * 1000;
    let mut id = 0;
    let (mut key, mut value, mut stored) = (Vec::new(), Vec::new(), Vec::new());
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for first in (0..count).step_by(FILL_BATCH as usize) {
        let mut txn = env.write(true, &cancel)?;
        id = txn.id();
        let dbi = match txn.dbi(FILLED_DBI)? {
            Some(dbi) => dbi,
            None => txn.create_dbi(FILLED_DBI, 0)?,
        };
        let append = first > 0 || txn.entries(dbi)? == 0;
        let mut cursor = txn.cursor(dbi)?;
        for number in first..count.min(first + FILL_BATCH) {
            key.clear();
            key.extend_from_slice(&1_u32.to_be_bytes());
            key.extend_from_slice(format!("example\0host-{number:09}\0").as_bytes());
            key.extend_from_slice(&[0, 0, 1]);
            value.clear();
            while value.len() < value_bytes {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // Half of each payload is the same everywhere, as TTLs and type names are.
                value.extend_from_slice(&(seed >> 32).to_be_bytes());
            }
            value.truncate(value_bytes);
            if plain {
                stored.clone_from(&value);
            } else if deleted_every.is_some_and(|every| number % every == 0) {
                header::build(&mut stored, number, id, FLAG_DELETED, &[], false);
            } else {
                header::build(&mut stored, start + number * 1000, id, 0, &value, false);
            }
            cursor.put(&key, &stored, append)?;
        }
        drop(cursor);
        txn.commit()?;
    }
    Ok(json!({ "transactionId": id.to_string() }))
}

/// Rewrites every n-th filled record with a new timestamp and a changed payload; with `keep_value` with the payload it has, which the
/// application still has to understand.
fn touch(env: &Environment, fraction: f64, keep_value: bool, plain: bool) -> Result<Value> {
    let step = (1.0 / fraction).round().max(1.0) as u64;
    let mut keys = Vec::new();
    let mut position = 0;
    each(env, |name, key, stored| {
        if name == FILLED_DBI {
            if position % step == 0 {
                let value = if plain { stored } else { header::parse(stored)?.value };
                keys.push((key.to_vec(), value.to_vec()));
            }
            position += 1;
        }
        Ok(())
    })?;
    let mut txn = env.write(false, &Cancel::new())?;
    let id = txn.id();
    let dbi = txn.dbi(FILLED_DBI)?.ok_or_else(|| Error::new(Code::InvalidArgument, "nothing was filled"))?;
    let mut cursor = txn.cursor(dbi)?;
    let (timestamp, mut stored) = (now(), Vec::new());
    for (key, value) in &mut keys {
        if !keep_value {
            value.reverse();
        }
        if plain {
            stored.clone_from(value);
        } else {
            header::build(&mut stored, timestamp, id, 0, value, false);
        }
        cursor.put(key, &stored, false)?;
    }
    drop(cursor);
    txn.commit()?;
    Ok(json!({ "changed": keys.len() }))
}

/// Takes the write lock again and again, as an application does that writes all the time; tells the longest wait.
fn lock_loop(env: &Environment, duration: Duration) -> Result<Value> {
    let cancel = Cancel::new();
    let end = Instant::now() + duration;
    let (mut longest, mut rounds) = (Duration::ZERO, 0_u64);
    while Instant::now() < end {
        let started = Instant::now();
        let txn = env.write(false, &cancel)?;
        longest = longest.max(started.elapsed());
        rounds += 1;
        drop(txn);
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(json!({ "longestWaitNs": longest.as_nanos() as u64, "rounds": rounds }))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
}

fn time(text: Option<String>) -> Result<u64> {
    text.map_or_else(|| Ok(now()), |text| text.parse().map_err(|_| Error::new(Code::InvalidArgument, "bad timestamp")))
}

fn bytes(hex: &str) -> Result<Vec<u8>> {
    let bad = || Error::new(Code::InvalidArgument, "bad hexadecimal text");
    if !hex.is_ascii() || !hex.len().is_multiple_of(2) {
        return Err(bad());
    }
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).map_err(|_| bad())).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
