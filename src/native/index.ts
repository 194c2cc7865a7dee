import type * as Addon from '../../native/addon/index.d.ts';
import { LightningStreamError } from '../errors.ts';
import { loadAddon } from './addon.ts';
import type {
  CaptureOptions,
  CaptureResult,
  CompareOptions,
  CompareResult,
  DropShadowResult,
  DumpOptions,
  DumpResult,
  Environment,
  EnvironmentInfo,
  EnvironmentOptions,
  EnvironmentStats,
  FixDuplicateDomainsOptions,
  FixDuplicateDomainsResult,
  MergeOptions,
  MergeResult,
  MigratePdnsResult,
  MigrateTimestampsOptions,
  MigrateTimestampsResult,
  ModeDoubt,
  Native,
  PdnsStatus,
  Progress,
  PublishOptions,
  PublishResult,
  SchemaVersion,
  SweepOptions,
  SweepResult,
  SyncMode,
  VerifyOptions,
  VerifyResult,
} from './types.ts';

export type * from './types.ts';

/** A failure of the data path; `code` as described at {@link NativeErrorCode}. */
export class NativeError extends LightningStreamError {
  /** DBI it is about, when it is about one. */
  readonly dbi: string | undefined;
  /** Key it is about, hexadecimal. */
  readonly key: string | undefined;

  constructor(code: string, message: string, options: { dbi?: string; key?: string; cause?: unknown } = {}) {
    const { dbi, key, cause } = options;
    super(code, message, {
      cause,
      fields: { ...(dbi === undefined ? {} : { dbi }), ...(key === undefined ? {} : { key }) },
    });
    this.name = 'NativeError';
    this.dbi = dbi;
    this.key = key;
  }
}

/** How often progress is passed on, ms. */
const PROGRESS_INTERVAL_MS = 250;

/** @throws LightningStreamError `ADDON` when the addon cannot be loaded */
export function loadNative(): Native {
  const addon = loadAddon();
  return {
    lmdbVersion: addon.lmdbVersion(),
    addonVersion: addon.addonVersion(),
    openEnvironment: (environmentPath, options) => new NativeEnvironment(addon, environmentPath, options),
    tryLock: (lockPath) => synchronous(() => addon.tryLock(lockPath)) ?? undefined,
    lmdbUsers: (environmentPath, { noSubdir }) =>
      synchronous(() => addon.lmdbUsers(environmentPath, noSubdir)),
    migratePdns: async ({ signal, onProgress, ...request }) => {
      const work = new addon.Work();
      const options = { ...(signal && { signal }), ...(onProgress && { onProgress }) };
      return await abortable<MigratePdnsResult>(work, options, () => addon.migratePdns(request, work));
    },
    migratePdnsStatus: async ({ path, noSubdir }) =>
      unwrap<PdnsStatus>(await addon.migratePdnsStatus(path, noSubdir)),
    notifyServiceManager: async (socket, state) => {
      unwrap(await addon.notifyServiceManager(socket, state));
    },
    inspectSnapshot: async (snapshotPath, options = {}) => {
      const work = new addon.Work();
      const { meta, ...sizes } = await abortable(work, options, () =>
        addon.inspectSnapshot(snapshotPath, work),
      );
      return { ...meta, ...sizes };
    },
    snapshotSchema: async (snapshotPath, { signal }) => {
      const work = new addon.Work();
      return await abortable<SchemaVersion | null>(work, { ...(signal && { signal }) }, () =>
        addon.snapshotSchema(snapshotPath, work),
      );
    },
    dumpSnapshot: async (snapshotPath, options) => {
      const { name, dbi, nowNano } = options;
      const request = { path: snapshotPath, name, dbi, json: options.format === 'json', nowNano };
      const work = new addon.Work();
      return await abortable<DumpResult>(work, options, () => addon.dumpSnapshot(request, work));
    },
  };
}

class NativeEnvironment implements Environment {
  readonly path: string;
  readonly #addon: typeof Addon;
  readonly #handle: Addon.NativeEnvironment;
  /** An aborted call's thread may still wait for another process's write lock. */
  #abandoned = false;

  constructor(addon: typeof Addon, path: string, options: EnvironmentOptions) {
    this.path = path;
    this.#addon = addon;
    this.#handle = synchronous(() => addon.NativeEnvironment.open(path, options));
  }

  get lastTransactionId(): bigint {
    return this.#handle.lastTransactionId;
  }

  info(): EnvironmentInfo {
    return synchronous(() => this.#handle.info());
  }

  async stats(): Promise<EnvironmentStats> {
    return unwrap(await this.#handle.stats());
  }

  checkReaders(): number {
    return this.#handle.checkReaders();
  }

  async checkMode(mode: SyncMode): Promise<ModeDoubt | null> {
    return unwrap<ModeDoubt | null>(
      (await this.#handle.checkMode(mode === 'native')) as Outcome<ModeDoubt | null>,
    );
  }

  async schema(): Promise<SchemaVersion | null> {
    return unwrap<SchemaVersion | null>(await this.#handle.schema());
  }

  async publish({
    spoolPath,
    meta,
    nowNano,
    earliestNano,
    newerThan,
    mode,
    dupsortHack,
    guard = false,
    ...options
  }: PublishOptions): Promise<PublishResult | null> {
    const shadow = mode === 'shadow';
    const request = { spoolPath, ...meta, nowNano, earliestNano, newerThan, shadow, dupsortHack, guard };
    return this.#work<PublishResult | null>(options, (work) => this.#handle.publish(request, work));
  }

  async merge(options: MergeOptions): Promise<MergeResult> {
    const { spoolPath, deletedCutoffNano, createFlags, headerExtraPaddingBlock, dupsortHack, captureNano } =
      options;
    const shadow = options.mode === 'shadow';
    const request = {
      spoolPath,
      deletedCutoffNano,
      createFlags,
      headerExtraPaddingBlock,
      shadow,
      dupsortHack,
      captureNano,
      guard: options.guard ?? false,
      checkSchema: options.schema !== undefined,
      schema: options.schema ?? null,
      snapshotSchema: options.snapshotSchema ?? null,
    };
    return this.#work(options, (work) => this.#handle.merge(request, work));
  }

  async capture({
    timestampNano,
    dupsortHack,
    guard = false,
    ...options
  }: CaptureOptions): Promise<CaptureResult> {
    const request = { timestampNano, dupsortHack, guard };
    return this.#work(options, (work) => this.#handle.capture(request, work));
  }

  async sweep({ mode, onSweep, signal, ...request }: SweepOptions): Promise<SweepResult> {
    const { failed, ...result } = await this.#work<Addon.NativeSweepResult>(
      {
        ...(signal && { signal }),
        ...(onSweep && {
          onProgress: ({ entries, bytes, totalBytes }) =>
            onSweep({ walked: entries, cleaned: bytes, total: totalBytes }),
        }),
      },
      (work) => this.#handle.sweep({ ...request, shadow: mode === 'shadow' }, work),
    );
    return { ...result, failed: failed === null ? undefined : nativeError(failed) };
  }

  async dropShadow(options: { readonly signal?: AbortSignal }): Promise<DropShadowResult> {
    return this.#work(options, (work) => this.#handle.dropShadow(work));
  }

  async migrateTimestamps(options: MigrateTimestampsOptions): Promise<MigrateTimestampsResult> {
    const { source, destination, addDeletions, ignoreMissingSource } = options;
    const request = { source, destination, addDeletions, ignoreMissingSource };
    return this.#work(options, (work) => this.#handle.migrateTimestamps(request, work));
  }

  async fixDuplicateDomains(options: FixDuplicateDomainsOptions): Promise<FixDuplicateDomainsResult> {
    const { rename, nowNano } = options;
    return this.#work(options, (work) => this.#handle.fixDuplicateDomains(rename, nowNano, work));
  }

  async dump(options: DumpOptions): Promise<DumpResult> {
    const { database, hidePrivate, nowNano } = options;
    const native = options.mode === 'native';
    const request = { database, hidePrivate, native, json: options.format === 'json', nowNano };
    return this.#work(options, (work) => this.#addon.dumpEnvironment(this.#handle, request, work));
  }

  async verify({ mode, maxErrors, futureAfter, ...options }: VerifyOptions): Promise<VerifyResult> {
    const request = { shadow: mode === 'shadow', maxErrors, futureAfter };
    const { errors, ...result } = await this.#work<Addon.NativeVerified>(options, (work) =>
      this.#handle.verify(request, work),
    );
    return { ...result, errors: errors.map(nativeError) };
  }

  async pending({
    dupsortHack,
    ...options
  }: Parameters<Environment['pending']>[0]): Promise<{ entries: number; more: boolean }> {
    return this.#work(options, (work) => this.#handle.pending(dupsortHack, work));
  }

  async compare({ path, mode, deletedCutoffNano, ...options }: CompareOptions): Promise<CompareResult> {
    const request = { path, shadow: mode === 'shadow', deletedCutoffNano };
    return this.#work(options, (work) => this.#handle.compare(request, work));
  }

  async close(): Promise<void> {
    unwrap(await this.#handle.close(this.#abandoned));
  }

  async #work<T>(
    options: { signal?: AbortSignal; onProgress?: (progress: Progress) => void },
    start: (work: Addon.Work) => Promise<Outcome<T>>,
  ): Promise<T> {
    const work = new this.#addon.Work();
    try {
      return await abortable(work, options, () => start(work));
    } catch (error) {
      this.#abandoned ||= options.signal?.aborted === true;
      throw error;
    }
  }
}

interface Outcome<T> {
  value: T | null;
  error: Addon.Failure | null;
}

function unwrap<T>(outcome: Outcome<T>): T {
  if (outcome.error !== null) throw nativeError(outcome.error);
  return outcome.value as T;
}

function nativeError({ code, message, dbi, key }: Addon.Failure): NativeError {
  return new NativeError(code, message, {
    ...(dbi === null ? {} : { dbi }),
    ...(key === null ? {} : { key }),
  });
}

/** Runs a synchronous call of the addon; what it throws becomes a {@link NativeError}. */
function synchronous<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    const code = (error as { code?: unknown }).code;
    throw new NativeError(
      typeof code === 'string' ? code : 'PANIC',
      error instanceof Error ? error.message : String(error),
    );
  }
}

async function abortable<T>(
  work: Addon.Work,
  { signal, onProgress }: { signal?: AbortSignal; onProgress?: (progress: Progress) => void },
  start: () => Promise<Outcome<T>>,
): Promise<T> {
  if (signal?.aborted === true) throw new NativeError('ABORTED', 'aborted', { cause: signal.reason });
  const cancel = (): void => work.cancel();
  signal?.addEventListener('abort', cancel, { once: true });
  const timer = onProgress && setInterval(() => onProgress(work.progress()), PROGRESS_INTERVAL_MS);
  try {
    return unwrap(await start());
  } finally {
    clearInterval(timer);
    signal?.removeEventListener('abort', cancel);
  }
}
