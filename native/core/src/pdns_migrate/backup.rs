//! Copies of the files, and room on disks.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::error::{Code, Error, Result};
use crate::lmdb::Environment;

const MDB_INCOMPATIBLE: i32 = -30784;
/// Of the directory: secret keys are in the files.
const DIRECTORY_MODE: u32 = 0o700;

/// Where the copy of an environment goes: under its own name.
pub fn target(directory: &Path, path: &Path, no_subdir: bool) -> PathBuf {
    let copy = directory.join(path.file_name().unwrap_or(path.as_os_str()));
    if no_subdir { copy } else { copy.join("data.mdb") }
}

fn partial(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

/// Copies an environment; what is there under that name is whole and on disk, as what begins in the middle has another one.
pub fn copy(env: &Environment, target: &Path) -> Result<()> {
    let failed = |e: &io::Error| Error::io(format_args!("back up to {}", target.display()), e);
    let directory = target.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory).map_err(|e| failed(&e))?;
    let original = fs::metadata(env.data_file()).map_err(|e| failed(&e))?;
    let partial = partial(target);
    let written = write(env, &partial, &original).and_then(|()| fs::rename(&partial, target).map_err(|e| failed(&e)));
    if let Err(error) = written {
        let _ = fs::remove_file(&partial);
        return Err(error);
    }
    sync_directory(directory).map_err(|e| failed(&e))
}

fn write(env: &Environment, path: &Path, original: &fs::Metadata) -> Result<()> {
    let failed = |e: &io::Error| Error::io(format_args!("back up to {}", path.display()), e);
    let mut compact = true;
    loop {
        let mode = original.permissions().mode();
        // Never through a link that somebody laid there.
        let create = || OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
        let file = match create() {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => fs::remove_file(path).and_then(|()| create()),
            file => file,
        };
        let file = file.map_err(|e| failed(&e))?;
        match env.copy_to(&file, compact) {
            // Whole, then: nothing is wrong with what is in it.
            Err(e) if compact && e.code == Code::Lmdb(MDB_INCOMPATIBLE) => compact = false,
            Err(mut e) => {
                e.message = format!("back up to {}: {}", path.display(), e.message);
                return Err(e);
            }
            Ok(()) => {
                own_as(path, original);
                return file.sync_all().map_err(|e| failed(&e));
            }
        }
    }
}

/// Gives a file that root made to whom the original belongs; others cannot, and need not.
pub fn own_as(path: &Path, original: &fs::Metadata) {
    let _ = chown(path, Some(original.uid()), Some(original.gid()));
}

pub fn sync_directory(path: &Path) -> io::Result<()> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    File::open(path)?.sync_all()
}

/// A disk: its number, and the bytes that are free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    pub device: u64,
    pub free_bytes: u64,
}

/// The disk that `path`, or what will be made under that name, is on.
pub fn disk(path: &Path) -> Result<Disk> {
    let mut place = path;
    loop {
        let shown = if place.as_os_str().is_empty() { Path::new(".") } else { place };
        match fs::metadata(shown) {
            Ok(meta) => {
                let stat = rustix::fs::statvfs(shown)
                    .map_err(|e| Error::io(format_args!("free space of {}", shown.display()), &e.into()))?;
                return Ok(Disk { device: meta.dev(), free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize) });
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound && place.parent().is_some() => {
                place = place.parent().unwrap_or(place);
            }
            Err(e) => return Err(Error::io(format_args!("free space of {}", shown.display()), &e)),
        }
    }
}
