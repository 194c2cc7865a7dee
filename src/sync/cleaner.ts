import { errorMessage } from '../errors.ts';
import type { Condition } from '../observability/health.ts';
import type { Logger } from '../observability/logger.ts';
import { type ListedSnapshot, type Listing, readListing } from '../snapshot/listing.ts';
import { databasePrefix, type SnapshotName } from '../snapshot/name.ts';
import type { SyncContext } from './context.ts';
import { Repeats } from './repeats.ts';
import { sleep } from './wait.ts';

/** An interval that is configured shorter is taken for this. */
const minIntervalMs = 1000;
/** The actual interval differs by up to so much from the configured one, so that instances do not clean in step. */
const jitter = 0.2;

/** Why a snapshot is removed; the words are those of the reference's metric. */
type Reason = 'newer snapshot' | 'stale instance';

export interface CleanerOptions extends SyncContext {
  /** Of each instance the newest snapshot that is merged. */
  readonly merged: () => ReadonlyMap<string, SnapshotName>;
  /** Nothing is removed while this says no. */
  readonly mayClean?: () => boolean;
  /** 0 ≤ number < 1; for the jitter. */
  readonly random?: () => number;
}

/**
 * Removes snapshots of one database that nobody needs any more, those of all instances:
 *
 * * Of each instance the newest stays, and everything that was first seen less than `must_keep_interval` ago.
 * * Only a snapshot that was merged here, or stored by us, replaces those before it: what nobody has read may be damaged. And one
 *   that is listed for the first time does so only from the next time on: somebody may have just begun to fetch the one before it.
 * * The newest of another instance goes when it is older than `remove_old_instances_interval`, and what it holds is in a snapshot of
 *   our own that stands in the storage.
 *
 * When things were first seen, which are good, and what ours hold, is not kept across restarts: then it begins anew, and everything stays longer.
 * Only names that parse as snapshots of this database are ever touched.
 */
export class Cleaner {
  readonly #o: CleanerOptions;
  readonly #log: Logger;
  readonly #listTrouble: Repeats;
  readonly #deleteTrouble: Repeats;
  readonly #condition: Condition;
  /** When each listed snapshot was first seen, ms of the clock. */
  #firstSeenMs = new Map<string, number>();
  /** Names of listed snapshots that are known to be good. */
  #good = new Set<string>();
  /** The last snapshot that we have stored, and of each instance the newest that is in it. */
  #stored: { readonly name: SnapshotName; readonly holds: ReadonlyMap<string, SnapshotName> } | undefined;

  constructor(options: CleanerOptions) {
    const { database, logger, health, clock } = options;
    this.#o = options;
    this.#log = logger.child({ component: 'cleaner' });
    this.#listTrouble = new Repeats(clock);
    this.#deleteTrouble = new Repeats(clock);
    this.#condition = health.condition(`${database}_cleanup_failed`);
  }

  /** A snapshot of our own is in the storage, taken after the newest of these of each instance had been merged. */
  noteStored(name: SnapshotName, holds: ReadonlyMap<string, SnapshotName>): void {
    this.#stored = { name, holds };
  }

  /** Cleans now and then every interval until the signal ends it. */
  async run(signal: AbortSignal): Promise<void> {
    const { config, mayClean = () => true, random = Math.random } = this.#o;
    const intervalMs = Math.max(config.storage.cleanup.intervalMs, minIntervalMs);
    try {
      for (;;) {
        if (mayClean()) await this.clean(signal);
        await sleep(intervalMs * (1 - jitter + 2 * jitter * random()), signal);
      }
    } finally {
      this.#condition.clear();
    }
  }

  /** One cleaning. Trouble with the storage is logged and shown in health; only the signal ends it early. */
  async clean(signal: AbortSignal): Promise<void> {
    const { database, storage, metrics } = this.#o;
    metrics.cleanerListCalls.inc();
    let listing: Listing;
    try {
      listing = readListing(await storage.list(databasePrefix(database), { signal }), database);
    } catch (error) {
      signal.throwIfAborted();
      metrics.cleanerListFailed.inc();
      // Health has it from the receiver.
      this.#listTrouble.failed(errorMessage(error), (times) =>
        this.#log.warning('Listing the storage for cleaning failed; trying again', { error, times }),
      );
      return;
    }
    this.#listTrouble.over(() => this.#log.info('Listing the storage for cleaning works again'));
    let removed = 0;
    const failed: { readonly object: string; readonly error: unknown }[] = [];
    for (const [{ name }, reason] of this.#superfluous(listing)) {
      const { name: filename, instance } = name;
      metrics.cleanerDelete.inc({ lmdb: database, reason });
      try {
        await storage.delete(filename, { signal });
        removed++;
        const fields = { filename, snapshot_instance: instance };
        if (reason === 'stale instance')
          this.#log.info('Removed the last snapshot of an instance that is gone', fields);
        else this.#log.debug('Removed a snapshot that a newer one replaces', fields);
      } catch (error) {
        signal.throwIfAborted();
        metrics.cleanerDeleteFailed.inc();
        failed.push({ object: filename, error });
        // The same trouble, though the object is another one.
        this.#deleteTrouble.failed(errorMessage(error).replaceAll(filename, ''), (times) =>
          this.#log.warning('A snapshot cannot be removed; trying again', { filename, error, times }),
        );
      }
    }
    this.#judge(failed);
    const counts = { removed, failed: failed.length, total: listing.snapshots.length };
    if (removed > 0) this.#log.info('Cleaned the storage', counts);
    else this.#log.debug('Nothing was removed from the storage', counts);
  }

  #judge(failed: readonly { readonly object: string; readonly error: unknown }[]): void {
    const [first] = failed;
    if (first === undefined) {
      this.#condition.clear();
      this.#deleteTrouble.over(() => this.#log.info('Removing snapshots works again'));
      return;
    }
    const more = failed.length === 1 ? '' : ` (and ${failed.length - 1} more)`;
    this.#condition.set(
      'warning',
      `old snapshot ${first.object} cannot be removed: ${errorMessage(first.error)}${more}`,
    );
  }

  /** What is to be removed, in the order of names. */
  #superfluous(listing: Listing): (readonly [ListedSnapshot, Reason])[] {
    const { config, clock } = this.#o;
    const { mustKeepIntervalMs } = config.storage.cleanup;
    const now = clock.monotonicMs();
    const before = this.#firstSeenMs;
    this.#firstSeenMs = new Map(
      listing.snapshots.map(({ name: { name } }) => [name, before.get(name) ?? now]),
    );
    const merged = this.#o.merged();
    this.#good = new Set(
      listing.snapshots
        .map(({ name }) => name)
        .filter(
          ({ name, instance }) =>
            [merged.get(instance), this.#stored?.name].some((good) => good?.name === name) ||
            this.#good.has(name),
        )
        .map(({ name }) => name),
    );
    const mayGo = ({ name: { name } }: ListedSnapshot): boolean => {
      const firstSeenMs = before.get(name);
      return firstSeenMs !== undefined && now - firstSeenMs > mustKeepIntervalMs;
    };
    return [...listing.byInstance].flatMap(([instance, snapshots]) => {
      const newest = snapshots.at(-1)!;
      const replacing = snapshots.findLast(({ name: { name } }) => before.has(name) && this.#good.has(name));
      const older = snapshots.filter(
        ({ name }) => replacing !== undefined && name.timestampNano < replacing.name.timestampNano,
      );
      const superfluous = older.filter(mayGo).map((snapshot) => [snapshot, 'newer snapshot'] as const);
      return this.#isStale(instance, newest.name, listing) && mayGo(newest)
        ? [...superfluous, [newest, 'stale instance'] as const]
        : superfluous;
    });
  }

  /** The instance has not stored anything for long, and nobody needs what it stored last. */
  #isStale(instance: string, newest: SnapshotName, listing: Listing): boolean {
    const { config, clock, instance: own } = this.#o;
    const { removeOldInstancesIntervalMs } = config.storage.cleanup;
    const ageMs = Number((clock.wallNano() - newest.timestampNano) / 1_000_000n);
    const held = this.#stored?.holds.get(instance);
    const ours = listing.newest(own)?.name;
    return (
      instance !== own &&
      ageMs > removeOldInstancesIntervalMs &&
      held !== undefined &&
      held.timestampNano >= newest.timestampNano &&
      // Whoever removed ours may not have what was in it.
      ours !== undefined &&
      ours.timestampNano >= this.#stored!.name.timestampNano
    );
  }
}
