/** The few waiting primitives of the sync loop. Each wait ends with its signal's reason and leaves no listener and no timer behind. */

/** Where time comes from; tests give their own. */
export interface Clock {
  /** ms from an arbitrary start, never going back: for intervals. */
  monotonicMs(): number;
  /** ns since the Unix epoch, as the machine believes: for names and records. */
  wallNano(): bigint;
}

export const systemClock: Clock = {
  monotonicMs: () => performance.now(),
  wallNano: () => BigInt(Date.now()) * 1_000_000n,
};

/** Longest delay of a timer (a signed 32-bit count of ms); Node turns longer ones into 1 ms. */
const maxTimerMs = 2 ** 31 - 1;

/**
 * Calls `start` with a function that ends the wait; what `start` returns is undone at the end, whichever way it came.
 * Rejects with the signal's reason, at once when it was aborted before.
 */
function abortable<T>(signal: AbortSignal, start: (done: (value: T) => void) => () => void): Promise<T> {
  return new Promise<T>((resolve, reject) => {
    if (signal.aborted) {
      reject(signal.reason as Error);
      return;
    }
    const onAbort = (): void => {
      undo();
      reject(signal.reason as Error);
    };
    const undo = start((value) => {
      signal.removeEventListener('abort', onAbort);
      undo();
      resolve(value);
    });
    signal.addEventListener('abort', onAbort, { once: true });
  });
}

/** Resolves after `delayMs`. */
export function sleep(delayMs: number, signal: AbortSignal): Promise<void> {
  return abortable<void>(signal, (done) => {
    const timer = setTimeout(done, Math.min(delayMs, maxTimerMs));
    return () => clearTimeout(timer);
  });
}

/**
 * A bell for one waiting loop. A ring while nobody waits is kept for the next wait; several are one. So a loop that looks
 * at its state after each wait never misses a change, and needs no queue.
 */
export class Bell {
  #rung = false;
  #wake: (() => void) | undefined;

  /** May be called from anywhere, at any time, as often as one likes. */
  readonly ring = (): void => {
    this.#rung = true;
    this.#wake?.();
  };

  /** Resolves with true when the bell rings (or rang since the last wait), with false after `timeoutMs`. */
  async wait(timeoutMs: number, signal: AbortSignal): Promise<boolean> {
    if (!this.#rung) {
      try {
        await abortable<void>(signal, (done) => {
          const timer = setTimeout(done, Math.min(timeoutMs, maxTimerMs));
          this.#wake = done;
          return () => clearTimeout(timer);
        });
      } finally {
        this.#wake = undefined;
      }
    }
    signal.throwIfAborted();
    const rung = this.#rung;
    this.#rung = false;
    return rung;
  }
}

/** What a {@link Limit} tells about itself. */
export interface LimitObserver {
  waiting(change: 1 | -1): void;
  acquired(waitedMs: number): void;
  released(heldMs: number): void;
}

/** At most `size` holders at a time, first come, first served. */
export class Limit {
  #free: number;
  readonly #queue: (() => void)[] = [];
  readonly #observer: LimitObserver | undefined;

  constructor(size: number, observer?: LimitObserver) {
    this.#free = size;
    this.#observer = observer;
  }

  /** Resolves with the function that gives the place back; calling it again does nothing. */
  async acquire(signal: AbortSignal): Promise<() => void> {
    const from = performance.now();
    this.#observer?.waiting(1);
    try {
      signal.throwIfAborted();
      if (this.#free > 0) {
        this.#free--;
      } else {
        await abortable<void>(signal, (done) => {
          this.#queue.push(done);
          return () => {
            const at = this.#queue.indexOf(done);
            if (at >= 0) this.#queue.splice(at, 1);
          };
        });
      }
    } finally {
      this.#observer?.waiting(-1);
    }
    const since = performance.now();
    this.#observer?.acquired(since - from);
    let held = true;
    return () => {
      if (!held) return;
      held = false;
      this.#observer?.released(performance.now() - since);
      // A place goes straight to the next in the queue, so that nobody overtakes it.
      const next = this.#queue.shift();
      if (next === undefined) this.#free++;
      else next();
    };
  }
}
