//! The data path: everything that touches records.
//!
//! Coarse operations ([`publish`], [`merge`], statistics) over an [`lmdb::Environment`] and snapshot files. No clock, no network, no
//! Node.js: times and file names are passed in, results are small summaries. Only [`lmdb`] contains `unsafe`.

pub mod cancel;
pub mod digest;
pub mod drop_private;
pub mod dump;
pub mod dupsort;
pub mod error;
pub mod header;
pub mod inspect;
pub mod lmdb;
pub mod merge;
pub mod migrate_timestamps;
pub mod mode;
pub mod pdns_domains;
pub mod pdns_migrate;
pub mod publish;
pub mod schema;
pub mod snapshot;
pub mod sweep;
pub mod verify;

pub use cancel::Cancel;
pub use error::{Code, Error, Result};
