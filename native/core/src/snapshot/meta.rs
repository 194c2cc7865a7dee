//! Meta: who made a snapshot, when, and from what.

use super::wire::{self, Fault};

/// The Meta message. It informs; what a snapshot is merged into, its object name decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// `GX` in everything known today.
    pub generation_id: String,
    /// Instance that published it.
    pub instance_id: String,
    /// Host of the instance.
    pub hostname: String,
    /// Configured name of the database.
    pub database_name: String,
    /// Transaction of the publisher's LMDB that the snapshot shows.
    pub lmdb_txn_id: i64,
    /// Transaction it is a difference to; 0 = a full snapshot.
    pub from_lmdb_txn_id: i64,
    /// Time of the snapshot, ns since the epoch.
    pub timestamp_nano: u64,
}

impl Meta {
    /// The message's bytes, fields in the order the reference writes them.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (tag, text) in [
            (wire::META_GENERATION_ID, &self.generation_id),
            (wire::META_INSTANCE_ID, &self.instance_id),
            (wire::META_HOSTNAME, &self.hostname),
            (wire::META_DATABASE_NAME, &self.database_name),
        ] {
            if !text.is_empty() {
                wire::push_varint(&mut out, tag);
                wire::push_varint(&mut out, text.len() as u64);
                out.extend_from_slice(text.as_bytes());
            }
        }
        if self.lmdb_txn_id != 0 {
            wire::push_varint(&mut out, wire::META_LMDB_TXN_ID);
            wire::push_varint(&mut out, self.lmdb_txn_id as u64);
        }
        if self.timestamp_nano != 0 {
            wire::push_varint(&mut out, wire::META_TIMESTAMP_NANO);
            out.extend_from_slice(&self.timestamp_nano.to_le_bytes());
        }
        if self.from_lmdb_txn_id != 0 {
            wire::push_varint(&mut out, wire::META_FROM_LMDB_TXN_ID);
            wire::push_varint(&mut out, self.from_lmdb_txn_id as u64);
        }
        out
    }

    /// Takes the fields of `body` over; what it does not mention stays (protobuf merges a message that is given twice).
    pub(super) fn merge(&mut self, body: &[u8]) -> Result<(), Fault> {
        // Only shown, never used to decide anything: bytes that are not UTF-8 are no reason to refuse a snapshot.
        let text = |range| String::from_utf8_lossy(&body[range]).into_owned();
        let mut at = 0;
        while at < body.len() {
            let tag_at = at;
            match wire::varint(body, &mut at)? {
                wire::META_GENERATION_ID => self.generation_id = text(wire::bytes(body, &mut at)?),
                wire::META_INSTANCE_ID => self.instance_id = text(wire::bytes(body, &mut at)?),
                wire::META_HOSTNAME => self.hostname = text(wire::bytes(body, &mut at)?),
                wire::META_DATABASE_NAME => self.database_name = text(wire::bytes(body, &mut at)?),
                wire::META_LMDB_TXN_ID => self.lmdb_txn_id = wire::varint(body, &mut at)? as i64,
                wire::META_TIMESTAMP_NANO => self.timestamp_nano = wire::fixed64(body, &mut at)?,
                wire::META_FROM_LMDB_TXN_ID => self.from_lmdb_txn_id = wire::varint(body, &mut at)? as i64,
                tag => wire::skip_field(body, &mut at, tag_at, tag, wire::META_FIELDS)?,
            }
        }
        Ok(())
    }
}
