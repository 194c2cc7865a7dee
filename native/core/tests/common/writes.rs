//! The functions by which a program changes files, in place of those of the C library: they count, and at the given one kill their process
//! (before it, or when it has done half), stop it, or fail as on a full disk.
// Replacing functions of the C library and calling the kernel in their place cannot be done otherwise.
#![allow(unsafe_code, dead_code)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Only what is done after this counts.
pub static ARMED: AtomicBool = AtomicBool::new(false);
pub static STEPS: AtomicU64 = AtomicU64::new(0);
/// 0: never.
pub static KILL_AT: AtomicU64 = AtomicU64::new(0);
pub static TORN: AtomicBool = AtomicBool::new(false);
/// Not killed, but stopped until somebody lets it go on.
pub static STOP: AtomicBool = AtomicBool::new(false);
/// Not killed: this and all that follow fail, as the disk is full.
pub static FULL: AtomicBool = AtomicBool::new(false);

/// What becomes of a call.
#[derive(PartialEq)]
pub enum Fate {
    Done,
    Half,
    NoSpace,
}

/// Counts a call; does not return when it is the one before which the process is killed.
pub fn fate() -> Fate {
    if !ARMED.load(Ordering::Relaxed) {
        return Fate::Done;
    }
    let step = STEPS.fetch_add(1, Ordering::Relaxed) + 1;
    let at = KILL_AT.load(Ordering::Relaxed);
    if FULL.load(Ordering::Relaxed) {
        return if at != 0 && step >= at { Fate::NoSpace } else { Fate::Done };
    }
    if step != at {
        return Fate::Done;
    }
    if TORN.load(Ordering::Relaxed) {
        return Fate::Half;
    }
    if STOP.load(Ordering::Relaxed) {
        signal(libc::SIGSTOP);
        return Fate::Done;
    }
    die()
}

fn signal(number: libc::c_int) {
    // SAFETY: no arguments.
    let pid = unsafe { libc::getpid() };
    // SAFETY: a signal to this process; numbers only.
    unsafe { libc::kill(pid, number) };
}

pub fn die() -> ! {
    signal(libc::SIGKILL);
    unreachable!("killed")
}

/// Fails as on a full disk.
pub fn no_space() -> libc::ssize_t {
    // SAFETY: no arguments.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: the address of this thread's errno, valid for as long as the thread runs.
    unsafe { *errno = libc::ENOSPC };
    -1
}

/// # Safety
/// As pwrite(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite(
    fd: libc::c_int,
    buffer: *const libc::c_void,
    count: libc::size_t,
    offset: libc::off_t,
) -> libc::ssize_t {
    let fate = fate();
    if fate == Fate::NoSpace {
        return no_space();
    }
    // The kernel stops between pages, if anywhere.
    let half = if fate == Fate::Half && count > 4096 { count / 2 / 4096 * 4096 } else { count };
    // SAFETY: the caller's arguments, of which at most `count` bytes are read.
    let written = unsafe { libc::syscall(libc::SYS_pwrite64, fd, buffer, half, offset) };
    if fate == Fate::Half {
        die();
    }
    written as libc::ssize_t
}

/// # Safety
/// As writev(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn writev(fd: libc::c_int, parts: *const libc::iovec, count: libc::c_int) -> libc::ssize_t {
    let fate = fate();
    if fate == Fate::NoSpace {
        return no_space();
    }
    let half = if fate == Fate::Half { count / 2 } else { count };
    // SAFETY: the caller's arguments, of which at most `count` parts are read.
    let written = unsafe { libc::syscall(libc::SYS_writev, fd, parts, half) };
    if fate == Fate::Half {
        die();
    }
    written as libc::ssize_t
}

/// # Safety
/// As fdatasync(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdatasync(fd: libc::c_int) -> libc::c_int {
    let fate = fate();
    // SAFETY: a number only.
    let synced = unsafe { libc::syscall(libc::SYS_fdatasync, fd) };
    if fate == Fate::Half {
        die();
    }
    synced as libc::c_int
}
