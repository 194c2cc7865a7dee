import { formatDuration } from '../config/units.ts';
import { errorMessage } from '../errors.ts';
import type { Environment, SweepResult, SyncMode } from '../native/types.ts';
import type { Condition } from '../observability/health.ts';
import type { Logger } from '../observability/logger.ts';
import type { SyncContext } from './context.ts';
import { durations } from './publisher.ts';
import { Repeats } from './repeats.ts';
import { sleep } from './wait.ts';

/** An interval that is configured shorter is taken for this. */
const minIntervalMs = 1000;
/** A sweep that failed is tried again after this, or after the interval when that is shorter. */
const retryIntervalMs = 300_000;
/** How often a long sweep tells how far it is. */
const progressIntervalMs = 10_000;

export interface SweeperOptions extends SyncContext {
  /** As for merging: which DBIs have headers. */
  readonly mode: SyncMode;
}

/**
 * Removes, from one LMDB, the entries of deletions that are older than `retention_days`. One that failed, or did not get to its end
 * before a restart, begins anew: what it has removed is no longer there to be walked over.
 *
 * What it removes is a change of the LMDB like any other, so a snapshot follows.
 */
export class Sweeper {
  readonly #o: SweeperOptions;
  readonly #log: Logger;
  readonly #trouble: Repeats;
  readonly #condition: Condition;
  /** ms of the clock. */
  #dueMs: number;

  constructor(options: SweeperOptions) {
    const { database, config, logger, health, clock } = options;
    this.#o = options;
    this.#log = logger.child({ component: 'sweeper' });
    this.#trouble = new Repeats(clock);
    this.#condition = health.condition(`${database}_sweep_failed`);
    this.#dueMs = clock.monotonicMs() + config.sweeper.firstIntervalMs;
  }

  /** Sweeps the environment whenever it is time, until the signal ends it. The times go on when another environment takes its place. */
  async run(env: Environment, signal: AbortSignal): Promise<void> {
    const { config, clock } = this.#o;
    const intervalMs = Math.max(config.sweeper.intervalMs, minIntervalMs);
    const waitMs = (): number => this.#dueMs - clock.monotonicMs();
    for (;;) {
      while (waitMs() > 0) await sleep(waitMs(), signal);
      const swept = await this.#sweep(env, signal);
      this.#dueMs = clock.monotonicMs() + (swept ? intervalMs : Math.min(intervalMs, retryIntervalMs));
    }
  }

  /** False when it did not get to its end. */
  async #sweep(env: Environment, signal: AbortSignal): Promise<boolean> {
    const { database: lmdb, config, metrics, clock, mode } = this.#o;
    const { retentionDays, lockDurationMs, releaseDurationMs } = config.sweeper;
    const fromMs = clock.monotonicMs();
    let toldMs = fromMs;
    const cutoffNano = clock.wallNano() - BigInt(Math.round(retentionDays * 86_400_000)) * 1_000_000n;
    this.#log.debug('Sweep started', { retention_days: retentionDays });
    let result: SweepResult;
    try {
      result = await env.sweep({
        mode,
        cutoffNano: cutoffNano > 0n ? cutoffNano : 0n,
        lockDurationMs,
        releaseDurationMs,
        signal,
        onSweep: ({ walked, cleaned, total }) => {
          const nowMs = clock.monotonicMs();
          if (nowMs - toldMs < progressIntervalMs) return;
          toldMs = nowMs;
          this.#log.info('Sweep under way', {
            entries: walked,
            cleaned_entries: cleaned,
            total_entries: total,
            time_taken: formatDuration(Math.round(nowMs - fromMs)),
          });
        },
      });
    } catch (error) {
      signal.throwIfAborted();
      this.#failed(error);
      return false;
    }
    const { entries, deleted, cleaned, transactions, longestLockMs, failed } = result;
    metrics.sweeperCleaned.inc({ lmdb }, cleaned);
    if (failed !== undefined) {
      this.#failed(failed);
      return false;
    }
    const takenMs = clock.monotonicMs() - fromMs;
    metrics.sweeperStatsTotalEntries.set({ lmdb }, entries);
    metrics.sweeperStatsDeletedEntries.set({ lmdb }, deleted);
    metrics.sweeperStatsAvailable.set({ lmdb }, 1);
    metrics.sweeperDurationSeconds.observe({ lmdb }, takenMs / 1000);
    this.#condition.clear();
    this.#trouble.over(() => this.#log.info('Sweeping works again'));
    this.#log.info('Sweep completed', {
      total_entries: entries,
      deleted_entries: deleted,
      deleted_fraction: entries === 0 ? 0 : Math.round((deleted / entries) * 1000) / 1000,
      cleaned_entries: cleaned,
      transactions,
      ...durations({ time_taken: takenMs, time_write_lock: longestLockMs }),
    });
    return true;
  }

  #failed(error: unknown): void {
    const text = errorMessage(error);
    this.#condition.set('failure', `old deletions cannot be removed: ${text}`);
    this.#trouble.failed(text, (times) => this.#log.error('Sweep failed, trying again', { error, times }));
  }
}
