//! The wrapper around liblmdb 0.9.x: the only module with `unsafe`, and the only one that knows the library's rules.
//!
//! Rules of lmdb.h that the types enforce:
//! * one handle per environment and process ([`Environment::open`] keeps a registry);
//! * a write transaction belongs to the thread that began it ([`WriteTxn`] is not `Send`);
//! * `mdb_dbi_open` from one transaction at a time (handles are opened under a mutex, see [`env`]);
//! * `mdb_env_set_mapsize` and closing only without transactions (a `RwLock` that transactions hold for reading);
//! * what a read returned is valid until the next write or the transaction's end (lifetimes of [`ReadCursor`] and [`WriteCursor`]).
#![allow(unsafe_code)]

mod env;
mod order;
mod txn;
mod users;

pub use env::{DbiStat, EnvOptions, Environment, Info, give_way, lock_file, trim_heap, version};
pub use order::KeyOrder;
pub use txn::{Both, CursorPair, Dbi, Lookup, ReadCursor, ReadTxn, WriteCursor, WriteTxn};
pub use users::{Exclusion, exclude, excluded_by, users};

use std::ffi::CStr;

use crate::error::{Code, Error};

/// Persistent DBI flags (lmdb.h, "mdb_dbi_open").
pub mod flags {
    /// Keys are compared from their end.
    pub const REVERSEKEY: u32 = 0x02;
    /// Several sorted values per key.
    pub const DUPSORT: u32 = 0x04;
    /// Keys are native unsigned integers of 4 or 8 bytes.
    pub const INTEGERKEY: u32 = 0x08;
    /// With DUPSORT: all values have one size.
    pub const DUPFIXED: u32 = 0x10;
    /// With DUPFIXED: values are sorted as INTEGERKEY sorts keys.
    pub const INTEGERDUP: u32 = 0x20;
    /// With DUPSORT: values are compared from their end.
    pub const REVERSEDUP: u32 = 0x40;
    /// All of them: REVERSEKEY to REVERSEDUP.
    pub const CREATABLE: u32 = 0x7e;
}

/// Largest key of a default build (`MDB_MAXKEYSIZE`).
pub const MAX_KEY_BYTES: usize = 511;

/// The text liblmdb has for a return code.
fn describe(code: i32) -> String {
    // SAFETY: mdb_strerror accepts any int and returns a static or thread-local NUL-terminated string (lmdb.h).
    let text = unsafe { lmdb_sys::mdb_strerror(code) };
    // SAFETY: non-null, NUL-terminated and valid until the next call on this thread; copied at once.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_string_lossy().into_owned()
}

/// Turns a return code into an error that names the call.
fn check(code: i32, what: &str) -> crate::Result<()> {
    if code == 0 { Ok(()) } else { Err(error(code, what)) }
}

fn error(code: i32, what: &str) -> Error {
    let kind = if code < 0 { Code::Lmdb(code) } else { Code::Os(code) };
    Error::new(kind, format!("{what}: {}", describe(code)))
}

/// `MDB_val` of a slice.
fn val(bytes: &[u8]) -> lmdb_sys::MDB_val {
    lmdb_sys::MDB_val { mv_size: bytes.len(), mv_data: bytes.as_ptr().cast_mut().cast() }
}

/// An empty `MDB_val` for LMDB to fill.
fn empty_val() -> lmdb_sys::MDB_val {
    lmdb_sys::MDB_val { mv_size: 0, mv_data: std::ptr::null_mut() }
}
