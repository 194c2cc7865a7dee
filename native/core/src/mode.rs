//! In which mode an LMDB was written, as far as its values tell.
//!
//! Natively every value begins with a header that the application wrote. In shadow mode the values are the application's own, and the
//! headers are in a DBI beside each. Working in the wrong mode puts headers where the application expects none, or one header behind
//! another, on this and on every other instance.
//!
//! A few values from the beginning of each DBI are enough, since all are alike; nothing is said where they leave room for doubt.

use std::collections::BTreeSet;

use crate::error::{Code, Error, Result};
use crate::header::{self, Native};
use crate::lmdb::{Dbi, ReadCursor, ReadTxn, flags};
use crate::merge::{PRIVATE_PREFIX, SHADOW_PREFIX};
/// PowerDNS names its DBIs with headers so, and an upgrade to them gives all records the timestamp 0.
const NATIVE_SUFFIX: &str = "_v5";
/// Values looked at in each DBI.
const SAMPLE: usize = 100;
/// 2015-01-01, ns since the epoch: no header is older.
const EARLIEST: u64 = 1_420_070_400_000_000_000;
/// 2100-01-01: nor newer.
const LATEST: u64 = 4_102_444_800_000_000_000;
/// Nobody has written so many transactions.
const MOST_TRANSACTIONS: u64 = 1 << 48;

/// Why the mode is doubtful.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Shadow mode, but the values have headers.
    Headers,
    /// Native mode, but the values are those of shadow mode: its DBI beside this one has the same ones behind its headers.
    Shadow,
    /// Native mode, but no value in the whole LMDB has a header.
    Plain,
}

/// A DBI that speaks against the mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// Its name.
    pub dbi: String,
    /// What is wrong with it.
    pub finding: Finding,
}

/// What speaks against native mode.
///
/// # Errors
/// Errors of LMDB.
pub fn doubt_native(txn: &ReadTxn<'_>) -> Result<Option<Doubt>> {
    for name in txn.dbi_names().filter_map(|name| name.strip_prefix(SHADOW_PREFIX)) {
        if let (Some(main), Some(shadow)) = (txn.dbi(name)?, txn.dbi(&format!("{SHADOW_PREFIX}{name}"))?)
            && same_values(txn, main, shadow).map_err(|e| e.in_dbi(name))?
        {
            return Ok(Some(Doubt { dbi: name.to_owned(), finding: Finding::Shadow }));
        }
    }
    let mut plain = None;
    for (name, dbi) in application_dbis(txn)? {
        for value in sample(&mut txn.cursor(dbi)?).map_err(|e| e.in_dbi(name))? {
            if header::parse(value).is_ok() {
                return Ok(None);
            }
            plain.get_or_insert(name);
        }
    }
    Ok(plain.map(|name| Doubt { dbi: name.to_owned(), finding: Finding::Plain }))
}

/// What speaks against shadow mode. DBIs that have a shadow already are used in this mode for long.
///
/// # Errors
/// Errors of LMDB.
pub fn doubt_shadow(txn: &ReadTxn<'_>) -> Result<Option<Doubt>> {
    let shadows: BTreeSet<_> = txn.dbi_names().filter_map(|name| name.strip_prefix(SHADOW_PREFIX)).collect();
    for (name, dbi) in application_dbis(txn)? {
        if shadows.contains(name) {
            continue;
        }
        if has_headers(name, &mut txn.cursor(dbi)?).map_err(|e| e.in_dbi(name))? {
            return Ok(Some(Doubt { dbi: name.to_owned(), finding: Finding::Headers }));
        }
    }
    Ok(None)
}

/// True when the values of a DBI have headers beyond reasonable doubt.
///
/// # Errors
/// Errors of LMDB.
pub fn has_headers(name: &str, cursor: &mut ReadCursor<'_>) -> Result<bool> {
    let headers: Option<Vec<_>> = sample(cursor)?.into_iter().map(likely_header).collect();
    let Some(headers) = headers else { return Ok(false) };
    Ok(headers.iter().any(|native| native.timestamp > 0) || (!headers.is_empty() && name.ends_with(NATIVE_SUFFIX)))
}

/// DBIs whose values could have headers.
fn application_dbis<'t>(txn: &'t ReadTxn<'_>) -> Result<Vec<(&'t str, Dbi)>> {
    let mut dbis = Vec::new();
    for name in txn.dbi_names().filter(|name| !name.starts_with(PRIVATE_PREFIX)) {
        let dbi = txn.dbi(name)?.ok_or_else(|| Error::new(Code::InvalidArgument, "no such DBI").in_dbi(name))?;
        if dbi.flags & flags::DUPSORT == 0 {
            dbis.push((name, dbi));
        }
    }
    Ok(dbis)
}

/// The first values, without empty ones.
fn sample<'t>(cursor: &mut ReadCursor<'t>) -> Result<Vec<&'t [u8]>> {
    let mut values = Vec::new();
    while values.len() < SAMPLE {
        match cursor.next()? {
            Some((_, value)) if !value.is_empty() => values.push(value),
            Some(_) => {}
            None => break,
        }
    }
    Ok(values)
}

/// True when a value in `main` is that of its shadow, which is there without its header. After a change of the application to native
/// values they differ, if only by the header.
fn same_values(txn: &ReadTxn<'_>, main: Dbi, shadow: Dbi) -> Result<bool> {
    if main.flags & flags::DUPSORT != 0 || main.order() != shadow.order() {
        return Ok(false);
    }
    let mut mains = txn.cursor(main)?;
    let Some((first, _)) = mains.next()? else { return Ok(false) };
    let mut shadows = txn.cursor(shadow)?;
    for _ in 0..SAMPLE {
        let Some((key, stored)) = shadows.next()? else { break };
        // LMDB compares integer keys without looking at how long they are.
        if main.flags & flags::INTEGERKEY != 0 && key.len() != first.len() {
            break;
        }
        if let Ok(Native { value, .. }) = header::parse(stored)
            && !value.is_empty()
            && mains.find(key, false)? == Some(value)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The header, if the value has one beyond reasonable doubt.
fn likely_header(value: &[u8]) -> Option<Native<'_>> {
    let native = header::parse(value).ok()?;
    let time = native.timestamp == 0 || (EARLIEST..LATEST).contains(&native.timestamp);
    // Flags beside the known one, and reserved bytes.
    let clean = value[17] & !header::SYNCED_FLAGS == 0 && value[18..22] == [0; 4];
    (time && clean && native.txn_id < MOST_TRANSACTIONS).then_some(native)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cancel::Cancel;
    use crate::lmdb::{EnvOptions, Environment};

    const NOW: u64 = 1_764_000_000_000_000_000;

    struct Lmdb {
        env: Environment,
        _dir: tempfile::TempDir,
    }

    impl Lmdb {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let options = EnvOptions { create: true, ..EnvOptions::default() };
            Self { env: Environment::open(&dir.path().join("lmdb"), options).unwrap(), _dir: dir }
        }

        fn put(&self, dbi: &str, dbi_flags: u32, entries: &[(&[u8], &[u8])]) {
            let mut txn = self.env.write(true, &Cancel::new()).unwrap();
            let handle = match txn.dbi(dbi).unwrap() {
                Some(handle) => handle,
                None => txn.create_dbi(dbi, dbi_flags).unwrap(),
            };
            let mut cursor = txn.cursor(handle).unwrap();
            for (key, value) in entries {
                cursor.put(key, value, false).unwrap();
            }
            drop(cursor);
            txn.commit().unwrap();
        }

        fn native(&self) -> Option<(String, Finding)> {
            doubt_native(&self.env.read().unwrap()).unwrap().map(|doubt| (doubt.dbi, doubt.finding))
        }

        fn shadow(&self) -> Option<(String, Finding)> {
            doubt_shadow(&self.env.read().unwrap()).unwrap().map(|doubt| (doubt.dbi, doubt.finding))
        }
    }

    fn headed(timestamp: u64, value: &[u8]) -> Vec<u8> {
        let mut stored = Vec::new();
        header::build(&mut stored, timestamp, 7, 0, value, false);
        stored
    }

    fn said(dbi: &str, finding: Finding) -> Option<(String, Finding)> {
        Some((dbi.to_owned(), finding))
    }

    #[test]
    fn nothing_is_said_about_an_lmdb_without_data() {
        let lmdb = Lmdb::new();
        assert_eq!((lmdb.native(), lmdb.shadow()), (None, None));
        lmdb.put("empty", 0, &[]);
        lmdb.put("_sync_other", 0, &[(b"k", &headed(NOW, b"v"))]);
        lmdb.put("values", 0, &[(b"k", b"")]);
        assert_eq!((lmdb.native(), lmdb.shadow()), (None, None));
    }

    #[test]
    fn headers_speak_against_shadow_mode() {
        let lmdb = Lmdb::new();
        lmdb.put("data", 0, &[(b"a", &headed(0, b"v")), (b"b", &headed(NOW, b"v"))]);
        assert_eq!((lmdb.native(), lmdb.shadow()), (None, said("data", Finding::Headers)));
        lmdb.put("_sync_shadow_data", 0, &[(b"a", &headed(1, &headed(0, b"v")))]);
        assert_eq!(lmdb.shadow(), None, "used so for long");
    }

    #[test]
    fn one_value_without_a_likely_header_is_enough_for_shadow_mode() {
        let mut flagged = headed(NOW, b"v");
        flagged[17] = 2;
        let mut reserved = headed(NOW, b"v");
        reserved[21] = 1;
        let mut many = headed(NOW, b"v");
        many[8] = 1;
        let others = [b"short".to_vec(), flagged, reserved, many, headed(EARLIEST - 1, b"v"), headed(LATEST, b"v")];
        for other in others {
            let lmdb = Lmdb::new();
            lmdb.put("data", 0, &[(b"a", &headed(NOW, b"v")), (b"b", &other)]);
            assert_eq!(lmdb.shadow(), None, "{other:?}");
        }
    }

    #[test]
    fn zeroes_are_headers_only_where_powerdns_names_them_so() {
        let lmdb = Lmdb::new();
        lmdb.put("structs", 0, &[(b"a", &[0; 32]), (b"b", &[0; 64])]);
        assert_eq!(lmdb.shadow(), None);
        lmdb.put("records_v5", 0, &[(b"a", &headed(0, b"v"))]);
        // What 4.7 left behind, and what the upgrade made of it.
        lmdb.put("pdns", 0, &[(b"schemaversion", &headed(0, &[0, 0, 0, 5]))]);
        lmdb.put("_sync_shadow_pdns", 0, &[(b"schemaversion", &headed(1, &[4, 0, 0, 0]))]);
        assert_eq!((lmdb.native(), lmdb.shadow()), (None, said("records_v5", Finding::Headers)));
    }

    #[test]
    fn values_without_headers_speak_against_native_mode() {
        let lmdb = Lmdb::new();
        lmdb.put("idx", flags::DUPSORT, &[(b"k", b"v")]);
        assert_eq!(lmdb.native(), None);
        lmdb.put("data", 0, &[(b"a", b"plain"), (b"b", b"also plain, but of more than 24 bytes")]);
        assert_eq!((lmdb.native(), lmdb.shadow()), (said("data", Finding::Plain), None));
        lmdb.put("more", 0, &[(b"a", &headed(5, b""))]);
        assert_eq!(lmdb.native(), None, "some are native: those that are not are told one by one");
    }

    #[test]
    fn shadows_of_the_present_values_speak_against_native_mode() {
        // A value that looks like a header with a value: nothing else tells.
        let value = headed(NOW, b"v");
        for (dbi_flags, key) in [(0, &b"key"[..]), (flags::INTEGERKEY, &[1, 2, 3, 4])] {
            let lmdb = Lmdb::new();
            lmdb.put("data", dbi_flags, &[(key, &value)]);
            assert_eq!(lmdb.native(), None);
            lmdb.put("_sync_shadow_data", dbi_flags, &[(key, &headed(1, b"another"))]);
            assert_eq!(lmdb.native(), None, "a shadow left from before the application became native");
            lmdb.put("_sync_shadow_data", dbi_flags, &[(key, &headed(1, &value))]);
            assert_eq!(lmdb.native(), said("data", Finding::Shadow));
        }
    }
}
