//! Looking at a snapshot without merging it.

use std::path::Path;

use crate::cancel::Cancel;
use crate::error::Result;
use crate::snapshot::decode::{Event, Index, Reader};

/// Reads a whole snapshot, entries included, and keeps nothing but what the index says.
///
/// # Errors
/// [`SnapshotCorrupt`](crate::Code::SnapshotCorrupt) or [`SnapshotRefused`](crate::Code::SnapshotRefused), as a merge would.
pub fn inspect(path: &Path, cancel: &Cancel) -> Result<Index> {
    let index = Index::scan(path, cancel)?;
    let mut reader = Reader::open(path, cancel, Some(index.clone()))?;
    let mut entries = 0u64;
    loop {
        match reader.next()? {
            Event::Entry { .. } => {
                entries += 1;
                if entries.is_multiple_of(4096) {
                    cancel.check()?;
                    cancel.report(entries, entries, index.entries);
                }
            }
            Event::Dbi(_) | Event::NeedsIndex => {}
            Event::End => return Ok(index),
        }
    }
}
