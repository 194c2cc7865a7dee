import { type BigIntStats, watch } from 'node:fs';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { errorMessage, LightningStreamError } from '../errors.ts';
import type { LmdbConfig, SweeperConfig } from '../config/types.ts';
import { humanSize } from '../config/units.ts';
import type { DatabaseStatus } from '../http/status.ts';
import type {
  Environment,
  EnvironmentStats,
  MergeResult,
  ModeDoubt,
  Native,
  SchemaVersion,
  SyncMode,
} from '../native/types.ts';
import type { Condition, StartTracker } from '../observability/health.ts';
import { type Latest, latest } from '../observability/latest.ts';
import type { Logger } from '../observability/logger.ts';
import { shortHash, type SnapshotName } from '../snapshot/name.ts';
import { Cleaner } from './cleaner.ts';
import type { SyncContext } from './context.ts';
import { capturedFields, durations, Publisher } from './publisher.ts';
import { type ReadySnapshot, Receiver } from './receiver.ts';
import { Repeats } from './repeats.ts';
import { SchemaGuard } from './schema-guard.ts';
import { Sweeper } from './sweeper.ts';
import { Bell, sleep } from './wait.ts';

/** How often the LMDB is looked at when no hint comes. */
const lookIntervalMs = 100;
/** How often reader slots of dead processes are cleared. */
const checkReadersIntervalMs = 60_000;
/** How long the status page and the log wait for new figures, before they show the last ones. */
const statsDeadlineMs = 1000;
/** How often it is made sure that the data file is still the one that is open. */
const checkFileIntervalMs = 1000;
/** Between attempts to merge into a full map, doubled each time. */
const mapFullBackoffMs = { first: 1000, most: 60_000 };
/** Between attempts to merge into a full map there is at least so many times as long as the last one took. */
const mapFullRest = 10;
/** Between attempts to get the first listing, as the reference does. */
const firstListingIntervalMs = 1000;
/** With local changes at hand, so many merges may go before an upload. */
const maxConsecutiveMerges = 10;

export interface SyncerOptions extends SyncContext {
  readonly lmdb: LmdbConfig;
  /** `receive` does everything but uploading. */
  readonly mode: 'sync' | 'receive';
  readonly hostname: string;
  readonly native: Native;
  readonly signal: AbortSignal;
  /** The syncer of PowerDNS' main LMDB, when this one is a shard of it. Asked each time: it may be made later. */
  readonly main?: () => Syncer | undefined;
}

/** What a syncer knows while its environment is open. */
interface State {
  /** The last transaction that is in a snapshot of ours, or that was a merge on top of one. 0 makes the next look upload. */
  lastSyncedTxnId: bigint;
  /** Instances seen in the first listing of which nothing is merged yet; ourselves too: then nothing may be uploaded. */
  readonly waitingFor: Set<string>;
  /** There were data, and they suit the mode. */
  modeChecked: boolean;
  /** LastTxnID when the schema was looked at; undefined: it has to be. */
  schemaTxnId: bigint | undefined;
  /** The storage was listed once. */
  listed: boolean;
  /** The start of the current force interval. */
  lastSnapshotMs: number;
  /** Rate limit: no snapshot is taken before. */
  publishNotBeforeMs: number;
  /** How often in a row a snapshot was taken before the commit that caused it was visible. */
  tooEarly: number;
  mergeFault: Fault | undefined;
  publishFault: Fault | undefined;
  /** Only-once: something ended badly, though the pass went on. */
  failed: boolean;
  readonly said: Set<string>;
  checkReadersAtMs: number;
  checkFileAtMs: number;
  logStatsAtMs: number;
}

/** Something on our side that prevents a merge or a snapshot. */
interface Fault {
  readonly text: string;
  /** Texts already logged. */
  readonly said: Set<string>;
  readonly atMs: number;
  readonly txnId: bigint;
  /** When the map was full: nothing is tried before, unless the map's size changes. */
  readonly full: MapFull | undefined;
}

/**
 * Each attempt to merge into a full map takes the write lock until the map is full and all is rolled back. The application
 * waits meanwhile, and that with every commit if it were tried again after each.
 */
interface MapFull {
  readonly mapSizeBytes: number;
  readonly attempts: number;
  readonly backoffMs: number;
}

/** An open environment and what works on it. */
interface Session {
  readonly env: Environment;
  /** For the status page and the log: whoever asks, one call is under way at most. */
  readonly stats: Latest<EnvironmentStats>;
  readonly dataFile: string;
  /** Which file it is. */
  readonly file: BigIntStats | undefined;
  readonly receiver: Receiver;
  readonly publisher: Publisher;
  readonly state: State;
  readonly signal: AbortSignal;
}

type Phase = 'opening' | 'capturing' | 'listing' | 'merging' | 'publishing' | 'waiting' | 'stopped';

/**
 * The loop of one LMDB: merges what others stored, stores what changed here.
 *
 * Each round does, in this order: merge every snapshot that is ready; see who is still waited for; take a snapshot if the LMDB
 * changed or the force interval has passed; note the end of the first pass. A round begins when the LMDB's file changes, a
 * snapshot is ready or an upload ends, and every 100 ms.
 *
 * In shadow mode (the application's values have no headers), what it changed is found by comparing with the shadow DBIs, which hold
 * them: before the first listing, then within each merge and each snapshot.
 *
 * A second live instance of our name hides our snapshots from the others, and ours hide its: when a snapshot of our name
 * appears that we did not store, it is merged, and nothing is uploaded any more until this process is restarted or none has
 * appeared for a whole `storage_force_snapshot_interval` (a live instance stores one at least that often).
 */
export class Syncer {
  readonly #o: SyncerOptions;
  readonly #log: Logger;
  readonly #bell = new Bell();
  readonly #start: StartTracker;
  readonly #faultCondition: Condition;
  readonly #duplicateCondition: Condition;
  readonly #sweeper: Sweeper | undefined;
  /** Snapshots of our own name from before this are our predecessor's, however late they appear. */
  readonly #startedNano: bigint;
  readonly #mode: SyncMode;
  readonly #guard: SchemaGuard;
  #phase: Phase = 'opening';
  #openFault: string | undefined;
  /** Somebody else uploads under our name; nothing is uploaded until this moment, though the LMDB be opened anew. */
  #duplicateUntilMs: number | undefined;
  /** Shadow mode: the data file in which nothing is left that was changed before we looked at it for the first time. */
  #captured: BigIntStats | undefined;
  /** How long nothing is tried after a failure, ms. */
  #restMs = 0;
  #session: Session | undefined;

  constructor(options: SyncerOptions) {
    const { database, config, health, clock } = options;
    this.#o = options;
    this.#log = options.logger.child({ db: database, instance: options.instance });
    this.#start = health.startTracker(database, config.health.start);
    this.#faultCondition = health.condition(`${database}_local_fault`);
    this.#duplicateCondition = health.condition(`${database}_duplicate_instance`);
    this.#startedNano = clock.wallNano();
    this.#mode = options.lmdb.schemaTracksChanges ? 'native' : 'shadow';
    this.#guard = new SchemaGuard({
      ...options,
      logger: this.#log,
      setting: options.lmdb.schemaGuard,
      main: () => {
        const main = options.main?.();
        return main === undefined ? undefined : main.#guard;
      },
      isComing: (instance) => this.#isComing(instance),
    });
    if (config.sweeper.enabled && !config.onlyOnce)
      this.#sweeper = new Sweeper({ ...options, logger: this.#log, mode: this.#mode });
  }

  /**
   * Runs until the signal ends it or, with only-once, until the first pass is complete. False when only-once could not do its
   * work. Never rejects: what goes wrong is logged, shown in health, and tried again.
   */
  async run(): Promise<boolean> {
    const { config, lmdb, signal } = this.#o;
    try {
      for (;;) {
        try {
          return await this.#runSession();
        } catch (error) {
          if (signal.aborted) return true;
          const text = withCode(error);
          if (this.#openFault !== text) this.#log.error('Sync failed', { path: lmdb.path, error });
          if (config.onlyOnce) return false;
          this.#openFault = text;
          this.#judge();
        }
        await sleep(Math.max(config.storageRetryIntervalMs, this.#restMs), signal);
        this.#restMs = 0;
      }
    } catch {
      // Only the wait can throw, and only because of the signal.
      return true;
    } finally {
      this.#phase = 'stopped';
    }
  }

  /** What the status page shows. */
  async status(): Promise<DatabaseStatus> {
    const { database, lmdb, instance } = this.#o;
    const session = this.#session;
    const stats = await session?.stats.get(statsDeadlineMs);
    const stored = session?.publisher.lastStored;
    const names = new Set([
      ...(session?.receiver.instances.keys() ?? []),
      ...(session?.receiver.merged.keys() ?? []),
    ]);
    return {
      name: database,
      path: lmdb.path,
      phase: this.#phase,
      problem: this.#problem(),
      stats,
      lastStored: stored && { ...seen(stored.name), sizeBytes: stored.sizeBytes },
      instances: [...names].sort().map((name) => ({
        instance: name,
        own: name === instance,
        heldBack: this.#guard.heldBack(name),
        newestSeen: seenOrNot(session?.receiver.instances.get(name)),
        lastMerged: seenOrNot(session?.receiver.merged.get(name)),
      })),
    };
  }

  async #runSession(): Promise<boolean> {
    const { database, lmdb, config, mode, native, metrics, clock } = this.#o;
    this.#phase = 'opening';
    const env = native.openEnvironment(lmdb.path, lmdb.options);
    const ended = new AbortController();
    const signal = AbortSignal.any([this.#o.signal, ended.signal]);
    const dataFile = lmdb.options.noSubdir ? lmdb.path : join(lmdb.path, 'data.mdb');
    const unregister = metrics.registerEnvironment(database, dataFile, () => env.stats());
    const unwatch = watchFile(dataFile, this.#bell.ring);
    const parts = { ...this.#o, logger: this.#log, onChange: this.#bell.ring };
    const receiver: Receiver = new Receiver({ ...parts, onForeign: (name) => this.#foreign(session, name) });
    const guard = this.#guard;
    const cleaner = new Cleaner({
      ...parts,
      merged: () => receiver.merged,
      mayClean: () => guard.mayStore,
    });
    const publisher = new Publisher({
      ...parts,
      newestOwn: () => receiver.newestOwn,
      merged: () => receiver.merged,
      accepts: (schema) => !guard.enabled || isEqual(schema, guard.local),
      beforeStore: (name) => receiver.noteOwn(name),
      onStored: (name, holds) => {
        cleaner.noteStored(name, holds);
        guard.forget(name.instance);
      },
    });
    const now = clock.monotonicMs();
    const state: State = {
      lastSyncedTxnId: 0n,
      modeChecked: false,
      schemaTxnId: undefined,
      listed: false,
      waitingFor: new Set(),
      lastSnapshotMs: now,
      publishNotBeforeMs: now,
      tooEarly: 0,
      mergeFault: undefined,
      publishFault: undefined,
      failed: false,
      said: new Set(),
      checkReadersAtMs: now,
      checkFileAtMs: now + checkFileIntervalMs,
      logStatsAtMs: config.lmdbLogStatsIntervalMs > 0 ? now + config.lmdbLogStatsIntervalMs : Infinity,
    };
    const file = await statFile(dataFile);
    const stats = latest(() => env.stats());
    const session: Session = { env, stats, dataFile, file, receiver, publisher, state, signal };
    this.#session = session;
    const background: Promise<void>[] = [];
    // It ends by the signal only; should it ever fail otherwise, the session ends with its error.
    const begin = (work: Promise<void>): void => {
      background.push(work.catch((error: unknown) => ended.abort(error)));
    };
    try {
      const { mapSizeBytes, lastTransactionId } = env.info();
      this.#log.info('Env info', { MapSize: humanSize(mapSizeBytes), LastTxnID: lastTransactionId });
      await this.#checkMode(session);
      if (this.#mode === 'shadow') await this.#captureAtStart(session);
      this.#openFault = undefined;
      this.#judge();
      if (config.storage.cleanup.enabled && mode === 'sync' && !config.onlyOnce) begin(cleaner.run(signal));
      if (this.#sweeper !== undefined) begin(this.#sweeper.run(env, signal));
      await this.#firstListing(session);
      begin(receiver.run(signal));
      for (;;) {
        const result = await this.#round(session);
        if (result !== undefined) return result;
      }
    } finally {
      ended.abort(new Error('the session has ended'));
      unwatch();
      await Promise.all(background);
      await publisher.close();
      await receiver.close();
      unregister();
      this.#session = undefined;
      await env.close().catch((error: unknown) => this.#log.warning('Closing the LMDB failed', { error }));
    }
  }

  /**
   * Shadow mode: what was added or removed while we were not looking gets the time 1 ns, which is older than everything: it is not
   * known when it happened, so whatever others say wins. Later captures are newer: what was changed enters with them.
   *
   * Not so when the same file is opened anew after a fault: what was changed since is as new as any other change, or a removal would be undone.
   *
   * Done before the storage is asked, so that what happens while the storage does not answer counts as new.
   */
  async #captureAtStart({ env, file, signal }: Session): Promise<void> {
    const { lmdb, clock } = this.#o;
    this.#log.info('Shadow mode: headers are kept beside the tables of the application');
    const known = isSameFile(file, this.#captured);
    if (env.lastTransactionId === 0n) {
      this.#captured = file;
      return;
    }
    this.#phase = 'capturing';
    const fromMs = clock.monotonicMs();
    try {
      const { transactionId, entries, captured, writeLockNs } = await env.capture({
        timestampNano: known ? clock.wallNano() : 1n,
        dupsortHack: lmdb.dupsortHack,
        guard: lmdb.schemaGuard !== 'off',
        signal,
      });
      this.#captured = file;
      if (transactionId === null) return;
      this.#log.info('Captured what changed before the start', {
        ...durations({
          time_total: clock.monotonicMs() - fromMs,
          time_write_lock: Number(writeLockNs) / 1e6,
        }),
        entries,
        ...capturedFields(captured),
        txnID: transactionId,
      });
    } catch (error) {
      signal.throwIfAborted();
      // Each attempt holds the write lock until the map is full.
      if (errorCode(error) === 'MDB_MAP_FULL') this.#restMs = mapFullRest * (clock.monotonicMs() - fromMs);
      throw explained('what changed before the start cannot be captured', error);
    }
  }

  /**
   * In the wrong mode headers would get where the application expects none, or one behind another, here and everywhere. The first look
   * at data is enough: an application that is upgraded later has new DBIs, and those each capture looks at (`guard`).
   */
  async #checkMode({ env, state }: Session): Promise<void> {
    const { database, lmdb } = this.#o;
    if (state.modeChecked || lmdb.schemaGuard === 'off' || env.lastTransactionId === 0n) return;
    const doubt = await env.checkMode(this.#mode);
    if (doubt !== null) throw new LightningStreamError('WRONG_MODE', wrongMode(database, doubt));
    state.modeChecked = true;
  }

  async #firstListing({ env, receiver, state, signal }: Session): Promise<void> {
    const { instance, mode, config } = this.#o;
    this.#phase = 'listing';
    const trouble = new Repeats(this.#o.clock);
    for (;;) {
      try {
        await receiver.list(signal);
        trouble.over(() => this.#log.info('Listing the storage works'));
        break;
      } catch (error) {
        signal.throwIfAborted();
        if (config.onlyOnce) throw error;
        trouble.failed(errorMessage(error), (times) =>
          this.#log.error('Waiting for the first listing of the storage', { error, times }),
        );
        await sleep(firstListingIntervalMs, signal);
      }
    }
    state.listed = true;
    this.#start.passedInitialListing();
    for (const name of receiver.instances.keys()) state.waitingFor.add(name);
    if (state.waitingFor.has(instance)) {
      this.#log.info(
        'This instance has snapshots in the storage, which must be merged before new ones are stored',
      );
    }
    if (mode === 'receive' || env.lastTransactionId === 0n) this.#start.passedInitialStore();
    else if (receiver.instances.size === 0)
      this.#log.info('Storing a first snapshot, because there is none yet');
  }

  /** One round of the loop. Returns only-once's result when it is complete. */
  async #round(session: Session): Promise<boolean | undefined> {
    const { config } = this.#o;
    const { receiver, publisher, state, signal } = session;
    await this.#checkMode(session);
    await this.#lookAtSchema(session);
    await this.#mergeReady(session);
    this.#updateWaitingFor(session);
    this.#updateGuard(session);
    const againInMs = await this.#publishIfDue(session);
    if (state.waitingFor.size === 0) {
      this.#start.passCompleted();
      if (config.onlyOnce && publisher.phase === 'idle') {
        this.#log.info('Stopping, because requested to only do a single pass');
        return !state.failed;
      }
    }
    if (
      config.onlyOnce &&
      !config.storageRetryForever &&
      receiver.failedLoads >= Math.max(1, config.storageRetryCount)
    ) {
      throw new LightningStreamError('GIVEN_UP', 'a snapshot of another instance could not be loaded');
    }
    await this.#chores(session);
    this.#phase = 'waiting';
    const more = receiver.hasReady && this.#mayMerge(session);
    await this.#bell.wait(more ? 0 : Math.min(lookIntervalMs, againInMs), signal);
    return undefined;
  }

  /** Only when something depends on it: what is stored, and whether it may be, comes with the snapshot. */
  async #lookAtSchema(session: Session): Promise<void> {
    const { env, receiver, state } = session;
    const guard = this.#guard;
    const lastTxnId = env.lastTransactionId;
    if (!guard.enabled || state.schemaTxnId === lastTxnId) return;
    if (state.schemaTxnId !== undefined && !receiver.hasReady && !receiver.hasKept && !guard.isHolding)
      return;
    const schema = lastTxnId === 0n ? null : await env.schema();
    state.schemaTxnId = lastTxnId;
    this.#retryHeld(session, guard.noteLocal(schema));
  }

  #updateGuard(session: Session): void {
    const { receiver } = session;
    this.#retryHeld(session, this.#guard.update(receiver.instances.keys(), this.#o.mode === 'sync'));
  }

  #retryHeld({ receiver, state }: Session, instances: readonly string[]): void {
    for (const instance of instances) {
      receiver.retryHeld(instance);
      // Not before it is merged may anything be stored.
      if (instance === this.#o.instance) state.waitingFor.add(instance);
    }
  }

  /** A snapshot of the instance will be looked at as soon as it is here, and nothing is known that would keep it. */
  #isComing(instance: string): boolean {
    if (this.#phase === 'stopped' || this.#openFault !== undefined) return false;
    const session = this.#session;
    if (session === undefined || !session.state.listed) return true;
    const { env, receiver, state } = session;
    // Whatever is in an LMDB that is not PowerDNS', nobody has to wait for it.
    if (this.#guard.expected === null && env.lastTransactionId !== 0n) return false;
    if (state.mergeFault !== undefined || receiver.isFailing(instance)) return false;
    return instance === this.#o.instance ? receiver.wantsOwn : receiver.instances.has(instance);
  }

  /** Step 1: merges every snapshot that is ready; with local changes at most eleven. */
  async #mergeReady(session: Session): Promise<void> {
    const { env, receiver, state, signal } = session;
    const { lmdb, config, clock } = this.#o;
    if (!this.#mayMerge(session)) return;
    const guard = this.#guard;
    const fault = state.mergeFault;
    let failedMs = 0;
    if (receiver.hasKept && this.#mayRetry(fault, env)) await receiver.retryKept();
    for (let merges = 1; ; merges++) {
      const snapshot = receiver.next();
      if (snapshot === undefined) break;
      this.#phase = 'merging';
      const fromMs = clock.monotonicMs();
      let result: MergeResult;
      try {
        await this.#lookAtSchema(session);
        const verdict = guard.enabled ? guard.verdictByMain(snapshot.name.instance) : undefined;
        if (verdict === 'wait') {
          receiver.keep(snapshot);
          continue;
        }
        if (verdict === 'hold') {
          await this.#hold(session, snapshot);
          continue;
        }
        result = await env.merge({
          spoolPath: snapshot.path,
          mode: this.#mode,
          dupsortHack: lmdb.dupsortHack,
          guard: lmdb.schemaGuard !== 'off',
          captureNano: this.#mode === 'shadow' ? clock.wallNano() : 0n,
          deletedCutoffNano: deletedCutoffNano(config.sweeper, clock.wallNano()),
          createFlags: createFlags(lmdb),
          headerExtraPaddingBlock: lmdb.headerExtraPaddingBlock,
          ...(guard.enabled && { schema: guard.local, snapshotSchema: guard.expected }),
          signal,
        });
      } catch (error) {
        failedMs += clock.monotonicMs() - fromMs;
        await this.#mergeFailed(session, snapshot, error, { fault, failedMs });
        continue;
      }
      // What LastTxnID was just before the merge wrote; nobody can commit in between.
      const before = result.transactionId === null ? result.baseTransactionId : result.transactionId - 1n;
      const localChange = before > state.lastSyncedTxnId || Object.values(result.captured).some(Boolean);
      // So that a merge never causes an upload. After a local change the id stays: the change has to be uploaded.
      if (!localChange && result.transactionId !== null) state.lastSyncedTxnId = result.transactionId;
      await receiver.done(snapshot, 'merged');
      if (guard.enabled) {
        // An LMDB without a schema takes what it gets.
        if (guard.expected === null) {
          state.schemaTxnId = undefined;
          await this.#lookAtSchema(session);
        }
        guard.noteRemote(snapshot.name.instance, guard.expected);
      }
      this.#logMerge(snapshot, result, clock.monotonicMs() - fromMs);
      // Of our own a later one may have appeared meanwhile.
      const wantsMore = snapshot.name.instance === this.#o.instance && receiver.wantsOwn;
      if (!wantsMore && state.waitingFor.delete(snapshot.name.instance)) {
        this.#log.info('No longer waiting for instance', { other_instance: snapshot.name.instance });
      }
      if (localChange && merges > maxConsecutiveMerges) break;
    }
    // All merged in the end, or replaced by newer ones that were.
    if (!receiver.hasKept && !receiver.hasReady && state.mergeFault !== undefined) {
      state.mergeFault = undefined;
      this.#log.info('Merging works again');
      this.#judge();
    }
  }

  async #mergeFailed(
    session: Session,
    snapshot: ReadySnapshot,
    error: unknown,
    before: { readonly fault: Fault | undefined; readonly failedMs: number },
  ): Promise<void> {
    const { env, receiver, state, signal } = session;
    const code = errorCode(error);
    const { name } = snapshot;
    if (!signal.aborted && code === 'SCHEMA_MISMATCH') {
      const schema = await this.#o.native.snapshotSchema(snapshot.path, { signal }).catch(() => null);
      if (!this.#guard.noteRemote(name.instance, schema)) return this.#hold(session, snapshot);
    }
    if (!signal.aborted && (code === 'SNAPSHOT_CORRUPT' || code === 'SNAPSHOT_REFUSED')) {
      const refused = code === 'SNAPSHOT_REFUSED';
      const fields = { filename: name.name, snapshot_instance: name.instance, error };
      if (refused)
        this.#log.error('Snapshot cannot be merged and is set aside until there is a newer one', fields);
      else this.#log.warning('Snapshot marked as corrupt and will be ignored', fields);
      state.failed ||= refused;
      await receiver.done(snapshot, { refused, reason: errorMessage(error) });
      return;
    }
    receiver.keep(snapshot);
    signal.throwIfAborted();
    // Looked at again in the next round.
    if (code === 'SCHEMA_CHANGED') {
      state.schemaTxnId = undefined;
      return;
    }
    const what = `snapshot ${name.name} cannot be merged`;
    if (this.#endsSession(error)) throw explained(what, error);
    const fault = this.#fault(env, state.mergeFault, what, error);
    const attempts = (before.fault?.full?.attempts ?? 0) + 1;
    const backoffMs = Math.min(mapFullBackoffMs.most, mapFullBackoffMs.first * 2 ** (attempts - 1));
    const { mapSizeBytes } = env.info();
    state.mergeFault = {
      ...fault,
      full:
        code === 'MDB_MAP_FULL'
          ? { mapSizeBytes, attempts, backoffMs: Math.max(backoffMs, mapFullRest * before.failedMs) }
          : undefined,
    };
    this.#judge();
  }

  #logMerge({ name, sizeBytes }: ReadySnapshot, result: MergeResult, totalMs: number): void {
    for (const dbi of result.ignoredDbis) {
      this.#log.warning('Remote snapshot contains private DBI, ignoring', { dbi, filename: name.name });
    }
    for (const dbi of result.createdDbis) {
      this.#log.warning('Created new DBI from snapshot', { dbi, filename: name.name });
    }
    this.#log.info('Loaded remote update', {
      snapshot_instance: name.instance,
      shorthash: shortHash(name.instance, name.timestamp),
      timestamp: name.timestamp,
      kind: name.kind,
      txnID: result.transactionId ?? result.baseTransactionId,
      ...durations({ time_total: totalMs, time_write_lock: Number(result.writeLockNs) / 1e6 }),
      entries: result.entries,
      added: result.added,
      updated: result.updated,
      ...capturedFields(result.captured),
      compressed_size_bytes: sizeBytes,
    });
  }

  async #hold({ receiver, state }: Session, snapshot: ReadySnapshot): Promise<void> {
    const { instance } = snapshot.name;
    state.failed = true;
    await receiver.hold(snapshot);
    if (!state.waitingFor.delete(instance)) return;
    this.#log.info('No longer waiting for instance, because its snapshots are held back', {
      other_instance: instance,
    });
  }

  /** Step 2: whoever has no usable snapshot in the storage any more, or of ours none with news, is not waited for. */
  #updateWaitingFor({ receiver, state }: Session): void {
    for (const name of state.waitingFor) {
      const listed = receiver.instances.has(name);
      if (listed && (name !== this.#o.instance || receiver.wantsOwn)) continue;
      state.waitingFor.delete(name);
      const why = listed
        ? 'what is left of its snapshots is merged already'
        : receiver.hasSetAside(name)
          ? 'none of its snapshots can be used'
          : 'its snapshots disappeared';
      this.#log.info(`No longer waiting for instance, because ${why}`, { other_instance: name });
    }
  }

  /** Step 3: stores a snapshot if there is something to store. Returns after how many ms it wants to be asked again. */
  async #publishIfDue({ env, publisher, state, signal }: Session): Promise<number> {
    const { config, mode, instance, clock } = this.#o;
    const now = clock.monotonicMs();
    const lastTxnId = env.lastTransactionId;
    if (mode === 'receive') return Infinity;
    if (publisher.phase === 'given-up') {
      if (config.onlyOnce) throw new LightningStreamError('GIVEN_UP', 'the snapshot could not be stored');
      publisher.startOver();
      state.lastSyncedTxnId = 0n;
      state.publishNotBeforeMs = now + config.storageRetryIntervalMs;
    }
    if (publisher.phase === 'idle' && publisher.lastStored !== undefined) this.#start.passedInitialStore();
    if (lastTxnId === 0n) {
      this.#once(state, 'empty', () => this.#log.warning('LMDB is empty, waiting for data'));
      return Infinity;
    }
    const { storageForceSnapshotIntervalMs: forceMs } = config;
    const overdue = forceMs > 0 && now - state.lastSnapshotMs > forceMs;
    const changed = lastTxnId > state.lastSyncedTxnId;
    if (publisher.phase === 'storing' || (publisher.phase === 'idle' && !changed && !overdue))
      return Infinity;
    if (state.waitingFor.has(instance)) {
      this.#once(state, 'own', () =>
        this.#log.info('Waiting to merge our own older snapshot before storing a new one'),
      );
      return Infinity;
    }
    if (this.#heldByDuplicate(now)) {
      if (config.onlyOnce) {
        throw new LightningStreamError(
          'DUPLICATE_INSTANCE',
          'another instance uses this name: nothing was stored',
        );
      }
      return Infinity;
    }
    if (!this.#guard.mayStore) {
      if (this.#guard.withheld === undefined) return Infinity;
      state.failed = true;
      this.#start.passedInitialStore();
      return Infinity;
    }
    // The last round of only-once stores what there is; in all others the rate is limited.
    const last = config.onlyOnce && state.waitingFor.size === 0;
    const notBeforeMs =
      publisher.phase === 'failed' ? publisher.retryAtMs : last ? 0 : state.publishNotBeforeMs;
    if (now < notBeforeMs) return notBeforeMs - now;
    if (publisher.phase === 'failed' && publisher.canRetry && !changed) {
      publisher.retry(signal);
    } else {
      if (!this.#mayRetry(state.publishFault, env)) return Infinity;
      this.#phase = 'publishing';
      if (overdue && !changed) this.#log.info('Snapshot overdue, forcing one');
      let waitMs = config.lmdbPollIntervalMs;
      try {
        const anyway = overdue || publisher.phase === 'failed';
        const txnId = await publisher.publish(env, anyway ? 0n : state.lastSyncedTxnId, signal);
        if (txnId === null) {
          // The commit is not visible yet; it mostly is a few ms later.
          waitMs = Math.min(waitMs, 2 ** ++state.tooEarly);
        } else if (txnId !== undefined) {
          if (state.publishFault !== undefined) this.#log.info('Taking snapshots works again');
          state.publishFault = undefined;
          state.lastSyncedTxnId = txnId;
          state.lastSnapshotMs = clock.monotonicMs();
          state.tooEarly = 0;
        }
      } catch (error) {
        signal.throwIfAborted();
        if (errorCode(error) === 'SCHEMA_CHANGED') {
          state.schemaTxnId = undefined;
          return 0;
        }
        const what = 'no snapshot can be taken';
        if (this.#endsSession(error)) throw explained(what, error);
        state.publishFault = this.#fault(env, state.publishFault, what, error);
      }
      this.#judge();
      state.publishNotBeforeMs = clock.monotonicMs() + waitMs;
    }
    if (config.onlyOnce) await publisher.settled();
    return Infinity;
  }

  async #chores({ env, stats, dataFile, file, state }: Session): Promise<void> {
    const { config, clock } = this.#o;
    const now = clock.monotonicMs();
    if (now >= state.checkFileAtMs) {
      state.checkFileAtMs = now + checkFileIntervalMs;
      const present = await statFile(dataFile);
      if (present === undefined || present.ino !== file?.ino || present.dev !== file.dev) {
        const how = present === undefined ? 'removed' : 'replaced by another file';
        throw new LightningStreamError(
          'LMDB_REPLACED',
          `${dataFile} was ${how} while it was open: opening anew`,
        );
      }
    }
    if (now >= state.checkReadersAtMs) {
      state.checkReadersAtMs = now + checkReadersIntervalMs;
      const cleared = env.checkReaders();
      if (cleared > 0) this.#log.info('Cleared reader slots of processes that are gone', { cleared });
    }
    if (now >= state.logStatsAtMs) {
      state.logStatsAtMs = now + config.lmdbLogStatsIntervalMs;
      // Neither a failure nor a hang of what is only told may stop the loop.
      const figures = await stats.get(statsDeadlineMs);
      if (figures === undefined) return;
      const { info, dbis, usedBytes } = figures;
      this.#log.info('LMDB stats', {
        MapSize: humanSize(info.mapSizeBytes),
        LastTxnID: info.lastTransactionId,
        NumReaders: info.readers,
        MaxReaders: info.maxReaders,
        used: humanSize(usedBytes),
        entries: Object.fromEntries(dbis.map((dbi) => [dbi.name, dbi.entries])),
      });
    }
  }

  #foreign({ state }: Session, name: SnapshotName): void {
    const { config, instance, mode, clock } = this.#o;
    // It is merged like our own at start, and until then hides what only it holds.
    state.waitingFor.add(instance);
    if (name.timestampNano < this.#startedNano) return;
    const { storageForceSnapshotIntervalMs: forceMs } = config;
    const first = this.#duplicateUntilMs === undefined;
    this.#duplicateUntilMs = clock.monotonicMs() + (forceMs || Infinity);
    const text =
      `another running instance stores snapshots under our name ${JSON.stringify(instance)} (${name.name}): ` +
      `give each instance a name of its own, then restart this one; until then nothing is uploaded from here`;
    this.#duplicateCondition.set(mode === 'sync' ? 'failure' : 'warning', text);
    if (first) this.#log.error('Instance name used twice', { filename: name.name, detail: text });
  }

  #heldByDuplicate(now: number): boolean {
    if (this.#duplicateUntilMs === undefined) return false;
    if (now < this.#duplicateUntilMs) return true;
    this.#duplicateUntilMs = undefined;
    this.#duplicateCondition.clear();
    this.#log.info(
      'No snapshot of another instance under our name for a whole force interval: uploading again',
    );
    return false;
  }

  /** While the map is full, no merge is tried at all: the next one would only keep the application waiting as well. */
  #mayMerge({ env, state }: Session): boolean {
    return state.mergeFault?.full === undefined || this.#mayRetry(state.mergeFault, env);
  }

  /** A local fault may be over when the LMDB has changed, and is looked at again after the retry interval anyway. */
  #mayRetry(fault: Fault | undefined, env: Environment): boolean {
    if (fault === undefined) return true;
    const { config, clock } = this.#o;
    const sinceMs = clock.monotonicMs() - fault.atMs;
    if (fault.full !== undefined) {
      if (env.info().mapSizeBytes !== fault.full.mapSizeBytes) return true;
      if (sinceMs < fault.full.backoffMs) return false;
    }
    if (sinceMs >= config.storageRetryIntervalMs) return true;
    return env.lastTransactionId !== fault.txnId && sinceMs >= config.lmdbPollIntervalMs;
  }

  /**
   * What is not put right by trying the same again with this environment: an error without a code is a bug; after `CLOSED`
   * nothing works any more.
   */
  #endsSession(error: unknown): boolean {
    const code = errorCode(error);
    return code === undefined || code === 'CLOSED' || this.#o.config.onlyOnce;
  }

  /** `what` cannot be done. Each text is logged once, until the fault is over. */
  #fault(env: Environment, previous: Fault | undefined, what: string, error: unknown): Fault {
    const said = previous?.said ?? new Set<string>();
    const text = `${what}: ${withCode(error)}`;
    if (!said.has(text)) this.#log.error('Local fault, trying again', { error, detail: what });
    said.add(text);
    return {
      text,
      said,
      atMs: this.#o.clock.monotonicMs(),
      txnId: env.lastTransactionId,
      full: undefined,
    };
  }

  #problem(): string | undefined {
    const state = this.#session?.state;
    const texts = [this.#openFault, state?.mergeFault?.text, state?.publishFault?.text];
    if (this.#duplicateUntilMs !== undefined) texts.push('another running instance uses our name');
    texts.push(this.#guard.withheld);
    return texts.filter((text) => text !== undefined).join('; ') || undefined;
  }

  #judge(): void {
    const state = this.#session?.state;
    const texts = [this.#openFault, state?.mergeFault?.text, state?.publishFault?.text];
    const text = texts.filter((each) => each !== undefined).join('; ');
    if (text === '') this.#faultCondition.clear();
    else this.#faultCondition.set('failure', text);
  }

  #once(state: State, what: string, say: () => void): void {
    if (state.said.has(what)) return;
    state.said.add(what);
    say();
  }
}

/**
 * Deletions older than this (ns since the epoch) are not added by a merge, so that the sweeper's work is not undone: retention
 * minus a margin, by default 1 % of it, never more than 75 %. 0, which lets all pass, while the sweeper is off.
 */
export function deletedCutoffNano(sweeper: SweeperConfig, nowNano: bigint): bigint {
  if (!sweeper.enabled) return 0n;
  const retentionMs = sweeper.retentionDays * 86_400_000;
  const marginMs =
    sweeper.retentionLoadCutoffDurationMs > 0
      ? Math.min(sweeper.retentionLoadCutoffDurationMs, retentionMs * 0.75)
      : retentionMs / 100;
  const cutoff = nowNano - BigInt(Math.round(retentionMs - marginMs)) * 1_000_000n;
  return cutoff > 0n ? cutoff : 0n;
}

/** What to tell about a mode that does not suit the LMDB. */
export function wrongMode(database: string, { dbi, finding }: ModeDoubt): string {
  const key = (name: string): string => `lmdbs.${database}.${name}`;
  const option = key('schema_tracks_changes');
  const texts: Record<ModeDoubt['finding'], string> = {
    headers:
      `${option} is false, but the values in DBI ${dbi} begin with Lightning Stream headers, so the application writes them itself ` +
      `(as PowerDNS does since 4.8): set it to true; if they only look so, set ${key('schema_guard')} to off`,
    shadow:
      `${option} is true, but the values in DBI ${dbi} have their headers in _sync_shadow_${dbi}, as in shadow mode: set it to false; ` +
      `or let the application write headers first, then remove the shadows with drop-shadow`,
    plain:
      `${option} is true, but no value in this LMDB begins with a Lightning Stream header (the first without one is in DBI ${dbi}), ` +
      `so the application does not write them: set it to false`,
  };
  return texts[finding];
}

function createFlags({ dbiOptions }: LmdbConfig): Record<string, number> {
  const flags: Record<string, number> = {};
  for (const [dbi, { overrideCreateFlags }] of dbiOptions) {
    if (overrideCreateFlags !== undefined) flags[dbi] = overrideCreateFlags;
  }
  return flags;
}

/**
 * Calls back when the file was written to, and once more a little later: LMDB writes the pages of data before the one that makes
 * them count, and the first event can come in between. Not on every file system, not for all writers: only a hint.
 */
export function watchFile(path: string, onHint: () => void): () => void {
  const metaPageDelayMs = 5;
  let timer: NodeJS.Timeout | undefined;
  const hint = (): void => {
    onHint();
    timer ??= setTimeout(() => {
      timer = undefined;
      onHint();
    }, metaPageDelayMs);
  };
  try {
    const watcher = watch(path, { persistent: false }, hint);
    watcher.on('error', () => watcher.close());
    return () => {
      watcher.close();
      clearTimeout(timer);
    };
  } catch {
    // No inotify watches left, or the file is gone: there is the regular look.
    return () => undefined;
  }
}

/** The code is what the documentation explains. */
function withCode(error: unknown): string {
  const code = errorCode(error);
  return code === undefined ? errorMessage(error) : `${errorMessage(error)} (${code})`;
}

/** The same error with what was being done in its text. A bug is left as it is. */
function explained(what: string, error: unknown): unknown {
  if (!(error instanceof LightningStreamError)) return error;
  return new LightningStreamError(error.code, `${what}: ${error.message}`, {
    cause: error,
    fields: error.fields,
  });
}

function isEqual(a: SchemaVersion | null, b: SchemaVersion | null): boolean {
  return a?.version === b?.version && a?.exact === b?.exact;
}

/** Undefined when it is not there. */
async function statFile(path: string): Promise<BigIntStats | undefined> {
  try {
    return await stat(path, { bigint: true });
  } catch {
    return undefined;
  }
}

/** A number of a file may be used again as soon as nobody has the file open. */
function isSameFile(a: BigIntStats | undefined, b: BigIntStats | undefined): boolean {
  return (
    a !== undefined &&
    b !== undefined &&
    a.ino === b.ino &&
    a.dev === b.dev &&
    a.birthtimeNs === b.birthtimeNs
  );
}

function errorCode(error: unknown): string | undefined {
  const code = error instanceof Error && 'code' in error ? error.code : undefined;
  return typeof code === 'string' ? code : undefined;
}

function seen({ name, timestampNano }: SnapshotName): { name: string; timestampMs: number } {
  return { name, timestampMs: Number(timestampNano / 1_000_000n) };
}

function seenOrNot(name: SnapshotName | undefined): { name: string; timestampMs: number } | undefined {
  return name && seen(name);
}
