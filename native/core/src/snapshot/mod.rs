//! Snapshot objects: protobuf inside gzip, written and read as streams.
//!
//! ```text
//! Snapshot  1 formatVersion uint32 | 4 compatVersion uint32 | 2 meta Meta | 3 databases repeated DBI
//! Meta      1 generationID string | 2 instanceID string | 3 hostname string | 4 lmdbTxnID int64
//!           5 timestampNano fixed64 | 7 databaseName string | 8 fromLmdbTxnID int64
//! DBI       1 name string | 2 entries repeated KV | 3 flags uint64 | 4 transform string
//! KV        1 key bytes | 2 value bytes | 3 timestampNano fixed64 | 4 flags uint32
//! ```
//!
//! Writing: [`encode::Writer`] into a [`gzip::MemberWriter`]. Reading: [`decode::Reader`]. Memory stays flat in both directions,
//! whatever the snapshot's size.

pub mod decode;
pub mod encode;
pub mod gzip;
pub mod wire;

mod inflate;
mod meta;
mod pipeline;

pub use meta::Meta;
