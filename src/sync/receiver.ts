import { errorMessage, LightningStreamError } from '../errors.ts';
import { formatDuration } from '../config/units.ts';
import { ACTIVITY, type Condition, type FailureTracker, tracked } from '../observability/health.ts';
import type { Logger } from '../observability/logger.ts';
import type { LimitName } from '../observability/metrics.ts';
import { type Listing, newestUsable, readListing, stillListed } from '../snapshot/listing.ts';
import { databasePrefix, shortHash, type SnapshotName } from '../snapshot/name.ts';
import { compareNames } from '../storage/order.ts';
import type { SyncContext } from './context.ts';
import { Repeats } from './repeats.ts';
import { Bell, Limit, sleep } from './wait.ts';

/** Between listings that hints ask for; hints come in flocks. */
const minListingGapMs = 20;
/** So many refused snapshots of one instance in a row, and its older ones are left alone: they come from the same program. */
const maxRefused = 3;

export interface ReceiverOptions extends SyncContext {
  /** Something that the syncer may look at has changed: a snapshot is ready, or an instance is gone. */
  readonly onChange: () => void;
  /** A snapshot under our own name appeared that we did not write. */
  readonly onForeign: (name: SnapshotName) => void;
}

/** A snapshot in the spool, ready to be merged. Whoever took it from {@link Receiver.next} gives it back by `done` or `keep`. */
export interface ReadySnapshot {
  readonly name: SnapshotName;
  readonly path: string;
  readonly sizeBytes: number;
  /** Gives back its place among the decompressed ones; undefined when it was given back. */
  release: (() => void) | undefined;
}

/**
 * Watches the storage for one database and fetches, of each instance, the newest snapshot only: one that is superseded
 * before it was fetched or merged is skipped.
 *
 * Our own snapshots are fetched until one of them is merged (at start), and when one appears that we did not write.
 */
export class Receiver {
  readonly #o: ReceiverOptions;
  readonly #log: Logger;
  readonly #bell = new Bell();
  readonly #listHealth: FailureTracker;
  readonly #loadHealth: FailureTracker;
  readonly #setAsideCondition: Condition;
  readonly #downloads: Limit;
  readonly #decompressed: Limit;

  /** Of each instance the newest usable snapshot of the last listing. */
  #newest = new Map<string, SnapshotName>();
  /** Of each instance the snapshot last noticed, fetched, merged. */
  readonly #noticed = new Map<string, string>();
  readonly #fetched = new Map<string, string>();
  readonly #merged = new Map<string, SnapshotName>();
  /** Fetched and not merged yet, oldest first; and those that wait for a local fault to go away. */
  readonly #ready = new Map<string, ReadySnapshot>();
  readonly #kept = new Map<string, ReadySnapshot>();
  /** Names that cannot be used, with the reason. */
  readonly #setAside = new Map<string, { name: SnapshotName; refused: boolean; reason: string }>();
  /** Instances with a download under way, and the downloads themselves. */
  readonly #downloading = new Map<string, Promise<void>>();
  readonly #skipped = new Set<string>();
  /** Of each instance the snapshot that was gone when it was to be fetched. */
  readonly #missing = new Map<string, string>();
  readonly #loadTrouble = new Map<string, Repeats>();
  /** Of each instance how many loads in a row have failed. */
  readonly #failedLoads = new Map<string, number>();
  readonly #listTrouble: Repeats;

  /** The newest snapshot under our name that is accounted for: ours, or known as a stranger's. */
  #newestOwn: SnapshotName | undefined;
  #wantsOwn = false;
  #listed = false;

  constructor(options: ReceiverOptions) {
    const { database, config, health } = options;
    this.#o = options;
    this.#log = options.logger.child({ component: 'receiver' });
    this.#listTrouble = new Repeats(options.clock);
    this.#listHealth = health.failureTracker(
      `${database}_storage_list`,
      ACTIVITY.storageList,
      config.health.storageList,
    );
    this.#loadHealth = health.failureTracker(
      `${database}_storage_load`,
      ACTIVITY.storageLoad,
      config.health.storageLoad,
    );
    this.#setAsideCondition = health.condition(`${database}_snapshot_set_aside`);
    this.#downloads = this.#limit('download', config.memoryDownloadedSnapshots);
    this.#decompressed = this.#limit('decompress', config.memoryDecompressedSnapshots);
  }

  /** Instances that have a usable snapshot in the storage, our own included. */
  get instances(): ReadonlyMap<string, SnapshotName> {
    return this.#newest;
  }

  /** What was merged of each instance. */
  get merged(): ReadonlyMap<string, SnapshotName> {
    return this.#merged;
  }

  /** The newest snapshot under our own name that we know of; a new one must be later. */
  get newestOwn(): SnapshotName | undefined {
    return this.#newestOwn;
  }

  /** One of our own snapshots has to be merged before we may store. */
  get wantsOwn(): boolean {
    return this.#wantsOwn;
  }

  /** Snapshots of the instance are in the storage, but none of them can be used. */
  hasSetAside(instance: string): boolean {
    return [...this.#setAside.values()].some(({ name }) => name.instance === instance);
  }

  /** How many loads in a row have failed, of the instance with the most. */
  get failedLoads(): number {
    return Math.max(0, ...this.#failedLoads.values());
  }

  /** The last load of the instance's newest snapshot failed. */
  isFailing(instance: string): boolean {
    return this.#failedLoads.has(instance);
  }

  get hasReady(): boolean {
    return this.#ready.size > 0;
  }

  get hasKept(): boolean {
    return this.#kept.size > 0;
  }

  /** Lists once. Downloads that this starts go on in the background until `signal` ends them; {@link run} waits for that. */
  async list(signal: AbortSignal): Promise<void> {
    const { database, storage, metrics } = this.#o;
    metrics.snapshotsListCalls.inc();
    let listing: Listing;
    try {
      listing = readListing(
        await tracked(this.#listHealth, () => storage.list(databasePrefix(database), { signal })),
        database,
      );
    } catch (error) {
      signal.throwIfAborted();
      metrics.snapshotsListFailed.inc({ lmdb: database });
      this.#listHealth.failure(error);
      throw error;
    }
    this.#listHealth.success();
    metrics.snapshotsInStorageCount.set({ lmdb: database }, listing.snapshots.length);
    metrics.snapshotsInStorageBytes.set({ lmdb: database }, listing.totalBytes);
    this.#forgetAbsent(listing);
    const givenUp = this.#givenUp();
    this.#newest = new Map(
      newestUsable(listing, new Set(this.#setAside.keys()))
        .filter(({ name }) => !isBefore(name, givenUp.get(name.instance)))
        .map(({ name }) => [name.instance, name]),
    );
    this.#lookForOwn(listing);
    this.#listed = true;
    for (const name of this.#newest.values()) this.#notice(name, signal);
    this.#forgetTrouble();
    this.#o.onChange();
  }

  /**
   * Lists every poll interval, and soon after a hint of the storage, until the signal ends it. The times of the polls are
   * multiples of the interval, so that all databases of the process ask at the same moment: a storage can answer them with
   * one request.
   */
  async run(signal: AbortSignal): Promise<void> {
    const { storage, config, clock } = this.#o;
    const unwatch = storage.watch?.(this.#bell.ring);
    try {
      let gapMs = 0;
      let dueMs = nextPollMs(clock.monotonicMs(), config.storagePollIntervalMs);
      // What came between the first listing and the watch gave no hint.
      if (unwatch !== undefined) this.#bell.ring();
      for (;;) {
        await sleep(gapMs, signal);
        const hinted = await this.#bell.wait(Math.max(0, dueMs - clock.monotonicMs()), signal);
        const from = clock.monotonicMs();
        try {
          await this.list(signal);
          this.#listTrouble.over(() => this.#log.info('Listing the storage works again'));
        } catch (error) {
          signal.throwIfAborted();
          // Health has it all the time.
          this.#listTrouble.failed(errorMessage(error), (times) =>
            this.#log.error('Listing the storage failed; trying again', { error, times }),
          );
        }
        // So that hints never keep us listing for more than a third of the time; one that hung must not make the next one late.
        const endMs = clock.monotonicMs();
        dueMs = nextPollMs(endMs, config.storagePollIntervalMs);
        gapMs = Math.min(dueMs - endMs, Math.max(minListingGapMs, 2 * (endMs - from)));
        this.#log.trace('Listed the storage', { hinted });
      }
    } finally {
      unwatch?.();
      await Promise.allSettled(this.#downloading.values());
    }
  }

  /** Takes the snapshot that has been ready for longest; our own go first, because uploads wait for them. */
  next(): ReadySnapshot | undefined {
    const snapshot = this.#ready.get(this.#o.instance) ?? this.#ready.values().next().value;
    if (snapshot !== undefined) this.#ready.delete(snapshot.name.instance);
    return snapshot;
  }

  /** The snapshot is in the LMDB, or can never be: then the one before it takes its place. */
  async done(
    snapshot: ReadySnapshot,
    outcome: 'merged' | { readonly refused: boolean; readonly reason: string },
  ): Promise<void> {
    const { name } = snapshot;
    if (outcome === 'merged') {
      this.#merged.set(name.instance, name);
      this.#settleOwn();
      this.#judge();
    } else {
      this.#setAside.set(name.name, { name, ...outcome });
      this.#judge();
      this.#bell.ring();
    }
    await this.#drop(snapshot);
  }

  /** A fault of our own side prevents the merge: the snapshot is held until {@link retryKept}, or until a newer one is there. */
  keep(snapshot: ReadySnapshot): void {
    // Its place is given back: else a few of these would block the newer snapshots of all others.
    snapshot.release?.();
    snapshot.release = undefined;
    this.#kept.set(snapshot.name.instance, snapshot);
  }

  /** It is not to be merged, though nothing is wrong with it: it is not fetched again until {@link retryHeld}, or until there is a newer one. */
  async hold(snapshot: ReadySnapshot): Promise<void> {
    if (snapshot.name.instance === this.#o.instance) this.#wantsOwn = false;
    await this.#drop(snapshot);
  }

  /** What was held back of the instance is fetched again. */
  retryHeld(instance: string): void {
    this.#fetched.delete(instance);
    if (instance === this.#o.instance) this.#wantsOwn = true;
    this.#bell.ring();
  }

  async retryKept(): Promise<void> {
    const kept = [...this.#kept];
    this.#kept.clear();
    for (const [instance, snapshot] of kept) {
      if (this.#ready.has(instance)) await this.#drop(snapshot);
      else this.#ready.set(instance, snapshot);
    }
  }

  /** To be told before an upload begins, so that its appearance surprises nobody. */
  noteOwn(name: SnapshotName): void {
    if (!isBefore(name, this.#newestOwn)) this.#newestOwn = name;
  }

  /** Removes what is left in the spool; only after {@link run} has ended. */
  async close(): Promise<void> {
    const left = [...this.#ready.values(), ...this.#kept.values()];
    this.#ready.clear();
    this.#kept.clear();
    await Promise.all(left.map((snapshot) => this.#drop(snapshot)));
    this.#setAsideCondition.clear();
  }

  #lookForOwn(listing: Listing): void {
    const newest = listing.newest(this.#o.instance)?.name;
    const known = this.#newestOwn;
    if (newest !== undefined && (known === undefined || isBefore(known, newest))) {
      this.#newestOwn = newest;
      // At start it is our history; later it may hold what our own snapshots, being newer, would hide from everybody else.
      this.#wantsOwn = true;
      if (this.#listed) this.#o.onForeign(newest);
    }
    this.#settleOwn();
  }

  /** What made us want our own snapshots may be merged, unusable or gone, with nothing new in what is left. */
  #settleOwn(): void {
    const usable = this.#newest.get(this.#o.instance);
    const merged = this.#merged.get(this.#o.instance);
    if (usable === undefined || (merged !== undefined && !isBefore(merged, usable))) this.#wantsOwn = false;
  }

  /** Of each instance with too many refused snapshots the newest of these: what is older is not tried any more. */
  #givenUp(): Map<string, SnapshotName> {
    return new Map(
      [...this.#refused()].flatMap(([instance, all]) =>
        all.length < maxRefused ? [] : [[instance, all[0]!.name]],
      ),
    );
  }

  /** Refused snapshots by instance, the newest first. */
  #refused(): Map<string, { name: SnapshotName; reason: string }[]> {
    const refused = [...this.#setAside.values()].filter((each) => each.refused);
    refused.sort((a, b) => compareNames(b.name.name, a.name.name));
    return Map.groupBy(refused, ({ name }) => name.instance);
  }

  /** Failed loads of snapshots that nobody needs any more are over, too. */
  #forgetTrouble(): void {
    const wanted = new Set(
      [...this.#newest.values()].filter((name) => this.#wants(name)).map(({ instance }) => instance),
    );
    if (wanted.size === 0) this.#loadHealth.success();
    for (const memory of [this.#missing, this.#loadTrouble, this.#failedLoads]) {
      for (const instance of memory.keys()) if (!wanted.has(instance)) memory.delete(instance);
    }
  }

  #forgetAbsent(listing: Listing): void {
    const present = stillListed(listing, [...this.#setAside.keys(), ...this.#skipped]);
    for (const name of this.#setAside.keys()) if (!present.has(name)) this.#setAside.delete(name);
    for (const name of this.#skipped) if (!present.has(name)) this.#skipped.delete(name);
    for (const name of listing.unrecognised) {
      if (this.#skipped.has(name)) continue;
      this.#skipped.add(name);
      this.#log.debug('Not a snapshot, left alone', { filename: name });
    }
    this.#judge();
  }

  #notice(name: SnapshotName, signal: AbortSignal): void {
    const { database, metrics, clock } = this.#o;
    const { instance } = name;
    if (!this.#wants(name)) return;
    if (this.#noticed.get(instance) !== name.name) {
      this.#noticed.set(instance, name.name);
      const labels = { lmdb: database, syncer_instance: instance };
      const ageSeconds = Number(clock.wallNano() - name.timestampNano) / 1e9;
      metrics.snapshotsLastReceivedSeconds.set(labels, Number(name.timestampNano) / 1e9);
      metrics.snapshotsLastReceivedAgeSeconds.observe(labels, ageSeconds);
      this.#log.debug('New snapshot detected', { snapshot_instance: instance, timestamp: name.timestamp });
    }
    if (!this.#downloading.has(instance)) this.#downloading.set(instance, this.#download(instance, signal));
  }

  #wants({ instance, name }: SnapshotName): boolean {
    if (instance === this.#o.instance && !this.#wantsOwn) return false;
    if (this.#fetched.get(instance) === name) return false;
    // What is older than something merged came to light because the newer one was removed or set aside: nothing new in it.
    const merged = this.#merged.get(instance);
    return merged === undefined || compareNames(name, merged.name) > 0;
  }

  /** Fetches what is newest of an instance until nothing newer is there. Ends quietly when the signal says so. */
  async #download(instance: string, signal: AbortSignal): Promise<void> {
    try {
      for (;;) {
        const name = this.#newest.get(instance);
        if (name === undefined || !this.#wants(name)) return;
        const fetched = await this.#fetch(name, signal);
        if (!fetched) await sleep(this.#o.config.storageRetryIntervalMs, signal);
      }
    } catch (error) {
      // Everything else is caught where it happens; a bug must not take the process down from here.
      if (!signal.aborted)
        this.#log.error('Download ended unexpectedly', { snapshot_instance: instance, error });
    } finally {
      this.#downloading.delete(instance);
    }
  }

  /** False when it failed. */
  async #fetch(name: SnapshotName, signal: AbortSignal): Promise<boolean> {
    const { database, storage, spool, metrics, clock } = this.#o;
    const { instance } = name;
    const releaseDownload = await this.#downloads.acquire(signal);
    let path: string | undefined;
    try {
      // It took a while to get here.
      if (this.#newest.get(instance)?.name !== name.name) return true;
      const from = clock.monotonicMs();
      metrics.snapshotsLoadCalls.inc();
      let sizeBytes: number;
      try {
        path = spool.pathFor(name.name);
        const to = path;
        sizeBytes = await tracked(this.#loadHealth, () => storage.load(name.name, to, { signal }));
      } catch (error) {
        signal.throwIfAborted();
        metrics.snapshotsLoadFailed.inc({ lmdb: database, syncer_instance: instance });
        this.#loadFailed(name, error, path);
        // It may be gone because there is a newer one.
        this.#bell.ring();
        return false;
      }
      this.#loadHealth.success();
      this.#missing.delete(instance);
      this.#failedLoads.delete(instance);
      this.#loadTrouble
        .get(instance)
        ?.over(() => this.#log.info('Loading snapshots works again', { snapshot_instance: instance }));
      metrics.snapshotsLoadBytes.inc(sizeBytes);
      this.#log.debug('Snapshot downloaded', {
        snapshot_instance: instance,
        timestamp: name.timestamp,
        shorthash: shortHash(instance, name.timestamp),
        time_load_storage: formatDuration(Math.round(clock.monotonicMs() - from)),
      });
      // It takes over the place of the one that it supersedes, also in the queue: else the busiest instance would never get on.
      const release = this.#ready.get(instance)?.release ?? (await this.#decompressed.acquire(signal));
      const superseded = [this.#ready.get(instance), this.#kept.get(instance)];
      this.#fetched.set(instance, name.name);
      this.#ready.set(instance, { name, path, sizeBytes, release });
      this.#kept.delete(instance);
      path = undefined;
      this.#o.onChange();
      for (const older of superseded) {
        if (older === undefined) continue;
        this.#log.debug('Snapshot superseded before it was merged', { filename: older.name.name });
        await spool.remove(older.path);
      }
      return true;
    } finally {
      if (path !== undefined) await spool.remove(path);
      releaseDownload();
    }
  }

  #loadFailed(name: SnapshotName, error: unknown, path = ''): void {
    const { instance } = name;
    const gone = error instanceof LightningStreamError && error.code === 'NOT_FOUND';
    if (gone && this.#missing.get(instance) !== name.name) {
      // Removed since it was listed, most likely; only when it is listed again it is a failure.
      this.#missing.set(instance, name.name);
      this.#log.debug('Snapshot is gone', { filename: name.name });
      return;
    }
    this.#loadHealth.failure(error);
    this.#failedLoads.set(instance, (this.#failedLoads.get(instance) ?? 0) + 1);
    let trouble = this.#loadTrouble.get(instance);
    if (trouble === undefined) this.#loadTrouble.set(instance, (trouble = new Repeats(this.#o.clock)));
    // The same trouble, though the object, or the file for it, is another one.
    trouble.failed(errorMessage(error).replaceAll(path, '').replaceAll(name.name, ''), (times) =>
      this.#log.warning('Load failed, retrying', { filename: name.name, error, times }),
    );
  }

  async #drop(snapshot: ReadySnapshot): Promise<void> {
    snapshot.release?.();
    await this.#o.spool.remove(snapshot.path);
  }

  /** Refused snapshots are a warning until a newer one of the same instance is merged, or they are gone from the storage. */
  #judge(): void {
    const open = [...this.#refused()].filter(([instance, [newest]]) => {
      const stored = instance === this.#o.instance ? this.#newestOwn : undefined;
      return ![this.#merged.get(instance), stored].some((newer) => isBefore(newest!.name, newer));
    });
    if (open.length === 0) this.#setAsideCondition.clear();
    else {
      const text = open
        .map(([, [newest, ...older]]) => {
          const more = older.length === 0 ? '' : ` (and ${older.length} older of this instance)`;
          return `snapshot ${newest!.name.name} cannot be merged: ${newest!.reason}${more}`;
        })
        .join('; ');
      this.#setAsideCondition.set('warning', text);
    }
  }

  #limit(limitName: LimitName, size: number): Limit {
    const { metrics, database } = this.#o;
    const labels = { lmdb: database, limit_name: limitName };
    metrics.limit.set(labels, size);
    return new Limit(size, {
      waiting: (change) => metrics.limitWaiting.inc(labels, change),
      acquired: (waitedMs) => {
        metrics.limitActive.inc(labels);
        metrics.limitAcquired.inc(labels);
        metrics.limitWaitingSeconds.observe(labels, waitedMs / 1000);
      },
      released: (heldMs) => {
        metrics.limitActive.dec(labels);
        metrics.limitActiveSeconds.observe(labels, heldMs / 1000);
      },
    });
  }
}

function isBefore(a: SnapshotName, b: SnapshotName | undefined): boolean {
  return b !== undefined && compareNames(a.name, b.name) < 0;
}

/** The first multiple of the interval that is not too soon after `afterMs`; all in ms of the clock. */
function nextPollMs(afterMs: number, intervalMs: number): number {
  return (Math.floor((afterMs + minListingGapMs) / intervalMs) + 1) * intervalMs;
}
