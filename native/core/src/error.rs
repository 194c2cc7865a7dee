//! The one error type of the crate: a stable code, one line of text, and where it happened.

use std::fmt;
use std::io;

/// What went wrong, as a program should see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The caller asked to stop.
    Aborted,
    /// Reading the snapshot alone shows that it is damaged: gzip, checksum, framing of Snapshot, Meta or DBI messages.
    SnapshotCorrupt,
    /// The snapshot can be read but not merged: malformed entry, unsupported version, transform, flags or key size.
    SnapshotRefused,
    /// A value in the local LMDB has no valid header.
    HeaderInvalid,
    /// The values of the local LMDB speak against the mode it is used in.
    WrongMode,
    /// The schema of the local LMDB is another one than the caller decided on.
    SchemaChanged,
    /// The snapshot's schema is not the one that the caller wants.
    SchemaMismatch,
    /// A DBI of the local LMDB is of a kind that cannot be synchronised.
    DbiUnsupported,
    /// A value is larger than a snapshot can carry.
    ValueTooLarge,
    /// This process has the environment open already; liblmdb forbids a second handle.
    AlreadyOpen,
    /// The environment was closed.
    Closed,
    /// The caller's arguments make no sense.
    InvalidArgument,
    /// The data or the machine are not as the operation needs them; nothing was changed.
    Refused,
    /// Other processes have the files open; nothing was changed.
    InUse,
    /// A thread of ours panicked: a bug.
    Panic,
    /// An error code of liblmdb, e.g. `MDB_MAP_FULL` (-30792).
    Lmdb(i32),
    /// An error number of the operating system.
    Os(i32),
    /// An I/O error without a number.
    Io,
}

impl Code {
    /// The stable name: LMDB's and the system's own names where there are some.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Code::Aborted => "ABORTED".into(),
            Code::SnapshotCorrupt => "SNAPSHOT_CORRUPT".into(),
            Code::SnapshotRefused => "SNAPSHOT_REFUSED".into(),
            Code::HeaderInvalid => "HEADER_INVALID".into(),
            Code::WrongMode => "WRONG_MODE".into(),
            Code::SchemaChanged => "SCHEMA_CHANGED".into(),
            Code::SchemaMismatch => "SCHEMA_MISMATCH".into(),
            Code::DbiUnsupported => "DBI_UNSUPPORTED".into(),
            Code::ValueTooLarge => "VALUE_TOO_LARGE".into(),
            Code::AlreadyOpen => "ALREADY_OPEN".into(),
            Code::Closed => "CLOSED".into(),
            Code::InvalidArgument => "INVALID_ARGUMENT".into(),
            Code::Refused => "REFUSED".into(),
            Code::InUse => "IN_USE".into(),
            Code::Panic => "PANIC".into(),
            Code::Io => "IO".into(),
            Code::Lmdb(code) => lmdb_name(code).map_or_else(|| format!("MDB_{code}"), str::to_owned),
            Code::Os(errno) => errno_name(errno).map_or_else(|| format!("ERRNO_{errno}"), str::to_owned),
        }
    }
}

/// Names of lmdb.h (0.9.24), "Return Codes".
fn lmdb_name(code: i32) -> Option<&'static str> {
    Some(match code {
        -30799 => "MDB_KEYEXIST",
        -30798 => "MDB_NOTFOUND",
        -30797 => "MDB_PAGE_NOTFOUND",
        -30796 => "MDB_CORRUPTED",
        -30795 => "MDB_PANIC",
        -30794 => "MDB_VERSION_MISMATCH",
        -30793 => "MDB_INVALID",
        -30792 => "MDB_MAP_FULL",
        -30791 => "MDB_DBS_FULL",
        -30790 => "MDB_READERS_FULL",
        -30789 => "MDB_TLS_FULL",
        -30788 => "MDB_TXN_FULL",
        -30787 => "MDB_CURSOR_FULL",
        -30786 => "MDB_PAGE_FULL",
        -30785 => "MDB_MAP_RESIZED",
        -30784 => "MDB_INCOMPATIBLE",
        -30783 => "MDB_BAD_RSLOT",
        -30782 => "MDB_BAD_TXN",
        -30781 => "MDB_BAD_VALSIZE",
        -30780 => "MDB_BAD_DBI",
        _ => return None,
    })
}

fn errno_name(errno: i32) -> Option<&'static str> {
    Some(match errno {
        libc::EACCES => "EACCES",
        libc::EAGAIN => "EAGAIN",
        libc::EBUSY => "EBUSY",
        libc::EDQUOT => "EDQUOT",
        libc::EEXIST => "EEXIST",
        libc::EINVAL => "EINVAL",
        libc::EIO => "EIO",
        libc::EISDIR => "EISDIR",
        libc::EMFILE => "EMFILE",
        libc::ENFILE => "ENFILE",
        libc::ENODEV => "ENODEV",
        libc::ENOENT => "ENOENT",
        libc::ENOLCK => "ENOLCK",
        libc::ENOMEM => "ENOMEM",
        libc::ENOSPC => "ENOSPC",
        libc::ENOTDIR => "ENOTDIR",
        libc::EPERM => "EPERM",
        libc::EPIPE => "EPIPE",
        libc::EROFS => "EROFS",
        libc::ESTALE => "ESTALE",
        _ => return None,
    })
}

/// A failure: code, one line for the operator, and the record it is about where there is one.
#[derive(Clone, Debug)]
pub struct Error {
    /// What kind of failure.
    pub code: Code,
    /// One line: what failed and where.
    pub message: String,
    /// Name of the DBI.
    pub dbi: Option<String>,
    /// The key.
    pub key: Option<Vec<u8>>,
}

/// Result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error without a place.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), dbi: None, key: None }
    }

    /// The snapshot's bytes are damaged.
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(Code::SnapshotCorrupt, message)
    }

    /// The snapshot is readable but cannot be merged.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(Code::SnapshotRefused, message)
    }

    /// A failed system call; `what` says on what.
    pub fn io(what: impl fmt::Display, error: &io::Error) -> Self {
        let code = error.raw_os_error().map_or(Code::Io, Code::Os);
        Self::new(code, format!("{what}: {error}"))
    }

    /// Adds the DBI unless one is known already.
    #[must_use]
    pub fn in_dbi(mut self, name: impl Into<String>) -> Self {
        self.dbi.get_or_insert_with(|| name.into());
        self
    }

    /// Adds the key unless one is known already.
    #[must_use]
    pub fn at_key(mut self, key: &[u8]) -> Self {
        self.key.get_or_insert_with(|| key.to_vec());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(dbi) = &self.dbi {
            write!(f, ", DBI {dbi}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ", key ")?;
            for byte in key.iter().take(64) {
                write!(f, "{byte:02x}")?;
            }
            if key.len() > 64 {
                write!(f, "… ({} bytes)", key.len())?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
