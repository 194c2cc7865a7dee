//! Who has an environment open, asked without opening it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::env::{lock_file, while_closed};
use crate::error::{Error, Result};

/// Ids of the processes that have the environment at `path` open, as the locks on its lock file tell (mdb.c: everybody holds byte 0, shared,
/// and whoever reads holds the byte with the number of his id). Of those that never read only one may be seen. 0 stands for processes of
/// another pid namespace. Empty when there is no lock file. Nothing is created or changed.
///
/// # Errors
/// [`Code::AlreadyOpen`](crate::Code::AlreadyOpen) when this process has it open: closing the file would drop its own locks (fcntl(2));
/// a system error when the lock file may not be read.
pub fn users(path: &Path, no_subdir: bool) -> Result<BTreeSet<i32>> {
    Ok(look(path, no_subdir, holders)?.unwrap_or_default())
}

/// Id of the process that keeps others from opening the environment, which everybody does for a moment when he is the first, and
/// [`exclude`] for longer. Opening it waits for that.
///
/// # Errors
/// As [`users`].
pub fn excluded_by(path: &Path, no_subdir: bool) -> Result<Option<i32>> {
    let held = look(path, no_subdir, |file| holder(file, libc::F_RDLCK, 0, 1))?;
    Ok(held.flatten().map(|(_, pid)| pid.max(0)))
}

/// Asks about the lock file; `None` when there is none.
fn look<T>(path: &Path, no_subdir: bool, ask: impl FnOnce(&File) -> io::Result<T>) -> Result<Option<T>> {
    let data_file = if no_subdir { path.to_owned() } else { path.join("data.mdb") };
    while_closed(&data_file, || {
        let path = lock_file(path, no_subdir);
        let asked = match File::open(&path) {
            Ok(file) => ask(&file),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => Err(e),
        };
        asked.map(Some).map_err(|e| Error::io(format_args!("ask for the locks on {}", path.display()), &e))
    })
}

fn holders(file: &File) -> io::Result<BTreeSet<i32>> {
    let mut found = BTreeSet::new();
    // Ranges that are still to be looked at: an answer names one lock of any place, so each splits its range.
    let mut ranges = vec![(0, 1), (1, libc::off_t::MAX)];
    while let Some((from, to)) = ranges.pop() {
        if from >= to {
            continue;
        }
        let Some((start, pid)) = holder(file, libc::F_WRLCK, from, to)? else { continue };
        found.insert(pid.max(0));
        if from > 0 {
            ranges.extend([(from, start), (start + 1, to)]);
        }
    }
    Ok(found)
}

/// Who was there when an environment was to be had alone. Until this is dropped nobody opens it: they wait, as for one who has it for the
/// first time (mdb.c: he holds byte 0 exclusively). Unless `others` were there already.
#[derive(Debug)]
pub struct Exclusion {
    /// As in [`users`].
    pub others: BTreeSet<i32>,
    /// Closing it drops all locks of this process on the file.
    _lock_file: File,
}

/// To be called while this process has the environment at `path` open to write, and dropped after that was closed.
///
/// # Errors
/// System errors.
pub fn exclude(path: &Path, no_subdir: bool) -> Result<Exclusion> {
    let path = lock_file(path, no_subdir);
    let failed = |e: &io::Error| Error::io(format_args!("lock {}", path.display()), e);
    let file = File::options().read(true).write(true).open(&path).map_err(|e| failed(&e))?;
    let mut lock = byte_range(libc::F_WRLCK, 0, 1);
    // SAFETY: an open descriptor and a valid pointer to a flock, which the call reads (fcntl(2), F_SETLK).
    let others = if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &raw mut lock) } == 0 {
        BTreeSet::new()
    } else {
        match io::Error::last_os_error() {
            e if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
                // Nobody any more: he was there, and may have looked.
                let found = holders(&file).map_err(|e| failed(&e))?;
                if found.is_empty() { BTreeSet::from([0]) } else { found }
            }
            e => return Err(failed(&e)),
        }
    };
    Ok(Exclusion { others, _lock_file: file })
}

/// First byte and owner of a lock that somebody else holds in this range, and that one of this kind would have to wait for.
fn holder(
    file: &File,
    kind: libc::c_int,
    from: libc::off_t,
    to: libc::off_t,
) -> io::Result<Option<(libc::off_t, i32)>> {
    let mut lock = byte_range(kind, from, to);
    // SAFETY: an open descriptor and a valid pointer to a flock, which the call reads and writes (fcntl(2), F_GETLK).
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &raw mut lock) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok((lock.l_type != libc::F_UNLCK as libc::c_short).then_some((lock.l_start.max(from), lock.l_pid)))
}

fn byte_range(kind: libc::c_int, from: libc::off_t, to: libc::off_t) -> libc::flock {
    // SAFETY: flock is plain data, for which zeros are a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = from;
    lock.l_len = to - from;
    lock
}
