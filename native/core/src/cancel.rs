//! Cooperative cancellation and progress, shared between the thread that works and the one that watches.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::{Code, Error, Result};

/// Handle to one piece of work; clones share the state.
///
/// Workers call [`Cancel::check`] at least once per batch of a few thousand records or one MiB, so that an abort takes effect
/// within 50 ms in every pass.
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    state: Arc<State>,
}

/// The first two are sequentially consistent: whoever sets one and then looks at the other must not miss what the opposite side set first.
#[derive(Debug, Default)]
struct State {
    cancelled: AtomicBool,
    waiting_for_lock: AtomicBool,
    entries: AtomicU64,
    bytes: AtomicU64,
    total_bytes: AtomicU64,
}

impl Cancel {
    /// A handle nobody has cancelled yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the work to stop.
    pub fn cancel(&self) {
        self.state.cancelled.store(true, Ordering::SeqCst);
    }

    /// True once [`Cancel::cancel`] was called.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.state.cancelled.load(Ordering::SeqCst)
    }

    /// `Err` with [`Code::Aborted`] once cancelled.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() {
            return Err(Error::new(Code::Aborted, "aborted"));
        }
        Ok(())
    }

    /// Marks the stretch in which the thread is blocked on LMDB's write lock, where no flag can be looked at.
    pub fn set_waiting_for_lock(&self, waiting: bool) {
        self.state.waiting_for_lock.store(waiting, Ordering::SeqCst);
    }

    /// True while blocked on the write lock: nothing is in progress then, so whoever waits for the result may be released.
    #[must_use]
    pub fn is_waiting_for_lock(&self) -> bool {
        self.state.waiting_for_lock.load(Ordering::SeqCst)
    }

    /// Publishes how far the work is; `total_bytes` is 0 when unknown.
    pub fn report(&self, entries: u64, bytes: u64, total_bytes: u64) {
        self.state.entries.store(entries, Ordering::Relaxed);
        self.state.bytes.store(bytes, Ordering::Relaxed);
        self.state.total_bytes.store(total_bytes, Ordering::Relaxed);
    }

    /// Last reported (entries, bytes, total bytes).
    #[must_use]
    pub fn progress(&self) -> (u64, u64, u64) {
        (
            self.state.entries.load(Ordering::Relaxed),
            self.state.bytes.load(Ordering::Relaxed),
            self.state.total_bytes.load(Ordering::Relaxed),
        )
    }
}
