//! Removes the DBIs that belong to Lightning Stream and not to the application.

use crate::cancel::Cancel;
use crate::error::Result;
use crate::lmdb::Environment;
use crate::merge::PRIVATE_PREFIX;

/// What was removed.
#[derive(Clone, Debug, Default)]
pub struct Dropped {
    /// Each DBI with the number of its records, sorted by name.
    pub dbis: Vec<(String, u64)>,
    /// The transaction that did it; `None` when there was nothing to remove.
    pub txn_id: Option<u64>,
}

/// Removes every DBI whose name begins with [`PRIVATE_PREFIX`], all in one transaction. Without any no lock is taken.
///
/// # Errors
/// [`Code::Aborted`](crate::Code::Aborted), and then nothing is removed; LMDB's own.
pub fn drop_private(env: &Environment, cancel: &Cancel) -> Result<Dropped> {
    let private = |name: &&str| name.starts_with(PRIVATE_PREFIX);
    if env.read_latest()?.dbi_names().find(private).is_none() {
        return Ok(Dropped::default());
    }
    let mut txn = env.write(true, cancel)?;
    let names: Vec<String> = txn.dbi_names().filter(private).map(str::to_owned).collect();
    let mut dbis = Vec::new();
    for name in names {
        cancel.check()?;
        let Some(dbi) = txn.dbi(&name)? else { continue };
        let entries = txn.entries(dbi)?;
        txn.drop_dbi(&name)?;
        dbis.push((name, entries));
    }
    let txn_id = (!dbis.is_empty()).then(|| txn.id());
    txn.commit()?;
    Ok(Dropped { dbis, txn_id })
}
