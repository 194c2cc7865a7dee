import { existsSync } from 'node:fs';
import { dirname } from 'node:path';
import type { LmdbConfig } from '../config/types.ts';
import { formatDuration, humanSize } from '../config/units.ts';
import { errorMessage, LightningStreamError } from '../errors.ts';
import type { CaptureCounts, Environment, PublishResult, SchemaVersion } from '../native/types.ts';
import { ACTIVITY, type Condition, type FailureTracker, tracked } from '../observability/health.ts';
import {
  buildSnapshotName,
  DEFAULT_GENERATION,
  parseSnapshotName,
  type SnapshotName,
} from '../snapshot/name.ts';
import type { SyncContext } from './context.ts';
import { Repeats } from './repeats.ts';

export interface PublisherOptions extends SyncContext {
  readonly lmdb: LmdbConfig;
  readonly hostname: string;
  /** The newest snapshot under our own name that is known; a new one gets a later time. */
  readonly newestOwn: () => SnapshotName | undefined;
  /** Of each instance the newest snapshot that is merged. */
  readonly merged: () => ReadonlyMap<string, SnapshotName>;
  /** Whether a snapshot of this schema may be stored. */
  readonly accepts: (schema: SchemaVersion | null) => boolean;
  /** Called before a snapshot appears in the storage. */
  readonly beforeStore: (name: SnapshotName) => void;
  /** A snapshot is in the storage, with what had been merged of each instance when it was taken. */
  readonly onStored: (name: SnapshotName, holds: ReadonlyMap<string, SnapshotName>) => void;
  /** The phase has changed by itself. */
  readonly onChange: () => void;
}

/** A snapshot on its way to the storage. */
interface Dumped {
  readonly name: SnapshotName;
  readonly path: string;
  readonly result: PublishResult;
  /** What was merged before, by instance. */
  readonly holds: ReadonlyMap<string, SnapshotName>;
  /** ms of the clock, when the work on it began. */
  readonly fromMs: number;
}

/** A snapshot that is in the storage. */
export interface Stored {
  readonly name: SnapshotName;
  readonly sizeBytes: number;
}

/**
 * Takes snapshots of one LMDB and brings them to the storage, one at a time. The upload goes on in the background, so that a
 * storage in trouble does not keep the loop from merging; the loop decides what happens next by the phase:
 *
 * * `idle`: nothing to bring away.
 * * `storing`: a store call is under way.
 * * `failed`: the last attempt failed; from `retryAtMs` on either {@link retry} or, when the LMDB has changed since, a new
 *   {@link publish}, which supersedes what could not be stored. Attempts are counted on.
 * * `given-up`: all attempts failed. {@link startOver} makes it `idle`; health stays bad until something is stored.
 */
export class Publisher {
  readonly #o: PublisherOptions;
  readonly #health: FailureTracker;
  readonly #givenUp: Condition;
  readonly #trouble: Repeats;
  #phase: 'idle' | 'storing' | 'failed' | 'given-up' = 'idle';
  #retryAtMs = 0;
  #attempts = 0;
  #pending: Dumped | undefined;
  #storing: Promise<void> = Promise.resolve();
  #lastStored: Stored | undefined;

  constructor(options: PublisherOptions) {
    const { database, config, health } = options;
    this.#o = options;
    this.#health = health.failureTracker(
      `${database}_storage_store`,
      ACTIVITY.storageStore,
      config.health.storageStore,
    );
    this.#givenUp = health.condition(`${database}_storage_store_given_up`);
    this.#trouble = new Repeats(options.clock);
  }

  get phase(): 'idle' | 'storing' | 'failed' | 'given-up' {
    return this.#phase;
  }

  /** When the next attempt is due, in the `failed` phase; ms of the clock. */
  get retryAtMs(): number {
    return this.#retryAtMs;
  }

  /** There is a snapshot to try again with, and no later one under our name that would hide it. */
  get canRetry(): boolean {
    const newest = this.#o.newestOwn();
    return (
      this.#pending !== undefined &&
      (newest === undefined || newest.timestampNano <= this.#pending.name.timestampNano)
    );
  }

  get lastStored(): Stored | undefined {
    return this.#lastStored;
  }

  /**
   * Takes a snapshot and begins to store it. Returns the id of the transaction that it shows. Undefined when the storage had
   * no place for it, which is a failed attempt like any other. Throws what is wrong with the LMDB or the spool; `SCHEMA_CHANGED` when its
   * schema is not accepted.
   *
   * Null when there is nothing newer than `newerThan` (0n = take one anyway): LastTxnID counts a commit a moment before readers
   * see it (the meta page is written, then its id in the lock file, where new readers look; a writer killed in between leaves
   * it so).
   */
  async publish(
    env: Environment,
    newerThan: bigint,
    signal: AbortSignal,
  ): Promise<bigint | null | undefined> {
    await this.#discard();
    const dumped = await this.#dump(env, newerThan, signal);
    if (dumped === undefined || dumped === null) return dumped;
    this.#pending = dumped;
    const { database: lmdb, metrics } = this.#o;
    metrics.snapshotsGenerated.inc({ lmdb });
    metrics.snapshotsGeneratedLastUnixSeconds.set({ lmdb }, Number(dumped.result.timestampNano) / 1e9);
    metrics.snapshotsGeneratedLastSizeBytes.set({ lmdb }, dumped.result.compressedBytes);
    this.retry(signal);
    return dumped.result.transactionId;
  }

  /** Begins to store the pending snapshot again. */
  retry(signal: AbortSignal): void {
    if (this.#pending === undefined || this.#phase === 'storing') return;
    this.#phase = 'storing';
    this.#storing = this.#store(this.#pending, signal);
  }

  startOver(): void {
    this.#phase = 'idle';
    this.#attempts = 0;
  }

  /** Resolves when no store call is under way. Never rejects. */
  settled(): Promise<void> {
    return this.#storing;
  }

  /** Waits for a store call that its signal has ended, and removes what was not stored. */
  async close(): Promise<void> {
    await this.#storing;
    await this.#discard();
  }

  async #dump(env: Environment, newerThan: bigint, signal: AbortSignal): Promise<Dumped | null | undefined> {
    const { database, instance, hostname, lmdb, storage, spool, clock } = this.#o;
    const fromMs = clock.monotonicMs();
    const holds = new Map(this.#o.merged());
    const now = clock.wallNano();
    const name = (timestamp: bigint): string => buildSnapshotName({ database, instance, timestamp });
    let path: string | undefined;
    try {
      // Named after about the right time, for people who look; the name that counts is made below.
      if (storage.spoolPathFor !== undefined) {
        try {
          path = storage.spoolPathFor(name(now));
        } catch (error) {
          this.#failed(error, undefined);
          return undefined;
        }
      } else {
        path = spool.pathFor(name(now));
      }
      // Where the clock went back behind our own last snapshot, readers would take that one for the newest.
      const last = this.#o.newestOwn()?.timestampNano;
      const result = await env.publish({
        spoolPath: path,
        meta: { generationId: DEFAULT_GENERATION, instanceId: instance, hostname, databaseName: database },
        newerThan,
        mode: lmdb.schemaTracksChanges ? 'native' : 'shadow',
        dupsortHack: lmdb.dupsortHack,
        guard: lmdb.schemaGuard !== 'off',
        signal,
        nowNano: clock.wallNano(),
        earliestNano: last === undefined ? 0n : last + 1n,
      });
      if (result === null) return null;
      if (!this.#o.accepts(result.schema))
        throw new LightningStreamError('SCHEMA_CHANGED', 'the schema of the LMDB has just changed');
      const parsed = parseSnapshotName(name(result.timestampNano));
      if (parsed === undefined) throw new Error(`snapshot time ${result.timestampNano} makes no name`);
      const dumped = { name: parsed, path, result, holds, fromMs };
      path = undefined;
      return dumped;
    } catch (error) {
      signal.throwIfAborted();
      // With a file of the storage's own, trouble with that file is the storage's trouble.
      if (storage.spoolPathFor === undefined || !isFileTrouble(error)) throw inDirectory(error, path);
      this.#failed(error, undefined);
      return undefined;
    } finally {
      if (path !== undefined) await spool.remove(path);
    }
  }

  async #store(dumped: Dumped, signal: AbortSignal): Promise<void> {
    const { storage, metrics, clock } = this.#o;
    const { name, path, result } = dumped;
    const from = clock.monotonicMs();
    try {
      this.#o.beforeStore(name);
      metrics.snapshotsStoreCalls.inc();
      await tracked(this.#health, () => storage.store(name.name, path, { signal }));
      metrics.snapshotsStoreBytes.inc(result.compressedBytes);
      this.#health.success();
      this.#givenUp.clear();
      this.#trouble.over(() => this.#o.logger.info('Storing snapshots works again'));
      this.#attempts = 0;
      this.#lastStored = { name, sizeBytes: result.compressedBytes };
      this.#o.onStored(name, dumped.holds);
      this.#phase = 'idle';
      this.#showDigest(name, result);
      const end = clock.monotonicMs();
      this.#o.logger.info('Stored snapshot', {
        ...durations({
          time_acquire: result.durations.acquireMs,
          time_dump: result.durations.dumpMs,
          time_compress: result.durations.compressMs,
          time_store: end - from,
          time_total: end - dumped.fromMs,
        }),
        uncompressed_size: humanSize(result.bytes),
        compression_ratio: `1:${(result.bytes / result.compressedBytes).toFixed(2)}`,
        snapshot_size: humanSize(result.compressedBytes),
        snapshot_name: name.name,
        snapshot_kind: name.kind,
        entries: result.entries,
        ...capturedFields(result.captured),
        txnID: result.transactionId,
      });
      await this.#discard();
    } catch (error) {
      if (signal.aborted) return;
      this.#failed(error, name);
      // Without its file (a directory that was unmounted, a storage that tidied up) only a new snapshot can help.
      if (!existsSync(path)) this.#pending = undefined;
    } finally {
      this.#o.onChange();
    }
  }

  /** For whoever compares instances from outside; see docs/verify.md. */
  #showDigest({ name }: SnapshotName, { digestAll, digestLive }: PublishResult): void {
    const { database, health } = this.#o;
    health.setMetadata(`digest_all_${database}`, digestAll);
    health.setMetadata(`digest_live_${database}`, digestLive);
    health.setMetadata(`digest_snapshot_${database}`, name);
  }

  #failed(error: unknown, name: SnapshotName | undefined): void {
    const { database, config, metrics, logger, clock } = this.#o;
    this.#attempts++;
    this.#health.failure(error);
    metrics.snapshotsStoreFailedAttempts.inc({ lmdb: database });
    if (config.storageRetryForever || this.#attempts < config.storageRetryCount) {
      // The same trouble, though the object is another one.
      const text = errorMessage(error).replaceAll(name?.name ?? '', '');
      this.#trouble.failed(text, (times) =>
        logger.warning('Store failed, retrying', { error, attempt: this.#attempts, times }),
      );
      this.#phase = 'failed';
      this.#retryAtMs = clock.monotonicMs() + config.storageRetryIntervalMs;
      return;
    }
    metrics.snapshotsStoreFailedPermanently.inc({ lmdb: database });
    logger.error('Store failed too many times, giving up', { error, attempt: this.#attempts });
    this.#givenUp.set(
      'failure',
      `no snapshot could be stored in ${this.#attempts} attempts; starting over with a fresh one`,
    );
    this.#phase = 'given-up';
  }

  async #discard(): Promise<void> {
    const pending = this.#pending;
    this.#pending = undefined;
    if (pending !== undefined) await this.#o.spool.remove(pending.path);
  }
}

/** An error of a system call, as opposed to one of LMDB or of what is in it. */
function isFileTrouble(error: unknown): boolean {
  const code = error instanceof Error && 'code' in error ? error.code : undefined;
  return typeof code === 'string' && /^(E[A-Z0-9]+|IO)$/.test(code);
}

/** The file is removed now, and the next one has another name; what has to be looked at is the directory. */
function inDirectory(error: unknown, path: string | undefined): unknown {
  if (!(error instanceof LightningStreamError) || path === undefined || !error.message.includes(path))
    return error;
  return new LightningStreamError(error.code, error.message.replaceAll(path, dirname(path)), {
    cause: error,
    fields: error.fields,
  });
}

/** What of the application's changes was captured, as the log shows it; nothing when there was nothing. */
export function capturedFields(captured: CaptureCounts): Record<string, number> {
  const { added, changed, deleted } = captured;
  if (added + changed + deleted === 0) return {};
  return { captured_added: added, captured_changed: changed, captured_deleted: deleted };
}

/** Durations in ms, as the log shows them. */
export function durations<T extends Record<string, number>>(values: T): Record<keyof T, string> {
  const texts = Object.entries(values).map(([name, ms]) => [name, formatDuration(Math.round(ms))]);
  return Object.fromEntries(texts) as Record<keyof T, string>;
}
