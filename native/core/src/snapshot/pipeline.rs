//! Blocks handed from one thread to others and back: worked on in parallel, delivered in order, a fixed number of them in existence.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crate::error::{Code, Error, Result};

/// More threads than this gain nothing that the rest of the path (LMDB, disk) could keep up with, and each costs two MiB of buffers.
const MAX_WORKERS: usize = 4;

/// How many threads work on the blocks of one snapshot.
pub(super) fn parallelism() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS)
}

/// An ordered queue of blocks; clones share it.
///
/// A block is acquired empty, queued (for a worker or ready at once), taken in the order of queueing, released for reuse. At most
/// `limit` blocks exist at any time, which bounds the memory and makes the faster side wait for the slower.
pub(super) struct Queue<B> {
    shared: Arc<Shared<B>>,
}

struct Shared<B> {
    limit: usize,
    state: Mutex<State<B>>,
    /// One condition for everybody: there are few threads and a change comes once per block, about once per millisecond.
    changed: Condvar,
}

struct State<B> {
    slots: VecDeque<Slot<B>>,
    /// Slots taken so far: the number of the first in `slots`.
    taken: u64,
    idle: Vec<B>,
    /// Blocks in existence, wherever they are.
    blocks: usize,
    /// Nothing will be queued any more.
    ended: bool,
    /// Nobody will take anything any more.
    abandoned: bool,
}

enum Slot<B> {
    Waiting(B),
    Working,
    Ready(Result<B>),
}

impl<B> Clone for Queue<B> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<B: Default + Send + 'static> Queue<B> {
    pub fn new(limit: usize) -> Self {
        let state =
            State { slots: VecDeque::new(), taken: 0, idle: Vec::new(), blocks: 0, ended: false, abandoned: false };
        Self { shared: Arc::new(Shared { limit, state: Mutex::new(state), changed: Condvar::new() }) }
    }

    fn lock(&self) -> MutexGuard<'_, State<B>> {
        // The state is consistent whenever the lock is given up; panics of work on a block happen outside of it.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State<B>>) -> MutexGuard<'a, State<B>> {
        self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State<B>)) {
        change(&mut self.lock());
        self.shared.changed.notify_all();
    }

    /// An unused block if there is one or one more may be made.
    pub fn try_acquire(&self) -> Option<B> {
        self.lock().acquire(self.shared.limit)
    }

    /// Waits for an unused block; `None` once the queue is abandoned.
    pub fn acquire(&self) -> Option<B> {
        let mut state = self.lock();
        loop {
            if state.abandoned {
                return None;
            }
            if let Some(block) = state.acquire(self.shared.limit) {
                return Some(block);
            }
            state = self.wait(state);
        }
    }

    /// Queues a block for a worker.
    pub fn submit(&self, block: B) {
        self.change(|state| state.slots.push_back(Slot::Waiting(block)));
    }

    /// Queues a block that needs no work, or a failure in its place.
    pub fn deliver(&self, result: Result<B>) {
        self.change(|state| state.slots.push_back(Slot::Ready(result)));
    }

    /// Says that nothing more will be queued.
    pub fn end(&self) {
        self.change(|state| state.ended = true);
    }

    /// Says that nothing more will be taken: whoever waits gives up.
    pub fn abandon(&self) {
        self.change(|state| state.abandoned = true);
    }

    /// Waits for the next block in order; `None` when all were taken and no more will come.
    pub fn take(&self) -> Option<Result<B>> {
        let mut state = self.lock();
        loop {
            match state.slots.front() {
                Some(Slot::Ready(_)) => break,
                None if state.ended => return None,
                _ => state = self.wait(state),
            }
        }
        state.taken += 1;
        match state.slots.pop_front() {
            Some(Slot::Ready(result)) => Some(result),
            _ => None,
        }
    }

    /// Gives a block back for reuse.
    pub fn release(&self, block: B) {
        self.change(|state| state.idle.push(block));
    }

    fn has_waiting(&self) -> bool {
        self.lock().slots.iter().any(|slot| matches!(slot, Slot::Waiting(_)))
    }

    /// Works on waiting blocks until the queue has ended or is abandoned.
    fn run(&self, mut work: impl FnMut(&mut B) -> Result<()>) {
        let mut state = self.lock();
        loop {
            if state.abandoned {
                return;
            }
            let Some(index) = state.slots.iter().position(|slot| matches!(slot, Slot::Waiting(_))) else {
                if state.ended {
                    return;
                }
                state = self.wait(state);
                continue;
            };
            let number = state.taken + index as u64;
            let Slot::Waiting(mut block) = std::mem::replace(&mut state.slots[index], Slot::Working) else { return };
            drop(state);
            let result = guarded(|| work(&mut block)).map(|()| block);
            state = self.lock();
            // Slots in front may have been taken meanwhile; this one cannot, it was not ready.
            let index = (number - state.taken) as usize;
            state.slots[index] = Slot::Ready(result);
            self.shared.changed.notify_all();
        }
    }
}

impl<B: Default> State<B> {
    fn acquire(&mut self, limit: usize) -> Option<B> {
        self.idle.pop().or_else(|| {
            (self.blocks < limit).then(|| {
                self.blocks += 1;
                B::default()
            })
        })
    }
}

/// Turns a panic into an error, so that whoever waits for the result gets one.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(Error::new(Code::Panic, "internal error: a thread of the snapshot codec panicked")))
}

/// Starts a named thread.
pub(super) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).spawn(run).map_err(|error| Error::io("cannot start a thread", &error))
}

/// The threads that work on a queue's blocks: started as work comes in, so that a small snapshot does without. Dropping it waits
/// for them; end or abandon the queue first.
pub(super) struct Workers<B> {
    queue: Queue<B>,
    handles: Vec<JoinHandle<()>>,
}

impl<B: Default + Send + 'static> Workers<B> {
    pub fn new(queue: Queue<B>) -> Self {
        Self { queue, handles: Vec::new() }
    }

    /// Queues a block for the workers; `start` makes the work function of one more of them.
    pub fn submit<W>(&mut self, block: B, start: impl FnOnce() -> W) -> Result<()>
    where
        W: FnMut(&mut B) -> Result<()> + Send + 'static,
    {
        // Somebody is behind already: one more helps.
        if self.handles.is_empty() || self.handles.len() < parallelism() && self.queue.has_waiting() {
            let queue = self.queue.clone();
            let work = start();
            match spawn("ls-codec", move || queue.run(work)) {
                Ok(handle) => self.handles.push(handle),
                Err(error) if self.handles.is_empty() => return Err(error),
                // Slower, but it works.
                Err(_) => {}
            }
        }
        self.queue.submit(block);
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.handles.is_empty()
    }
}

impl<B> Drop for Workers<B> {
    fn drop(&mut self) {
        for handle in self.handles.drain(..) {
            // It cannot have panicked: the work is guarded.
            let _ = handle.join();
        }
    }
}
