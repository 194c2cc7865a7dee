import { hostname } from 'node:os';
import { resolve } from 'node:path';
import { errorMessage, isAbort } from '../errors.ts';
import type { Config } from '../config/types.ts';
import type { HttpServer } from '../http/server.ts';
import type { Native } from '../native/types.ts';
import { ACTIVITY, type Health, tracked } from '../observability/health.ts';
import type { RootLogger } from '../observability/logger.ts';
import type { Metrics } from '../observability/metrics.ts';
import { instanceName } from '../snapshot/name.ts';
import { Spool, type SpoolPlaces } from '../snapshot/spool.ts';
import { isPaged, SharedListing } from '../storage/shared-listing.ts';
import type { Storage } from '../storage/storage.ts';
import { programVersion } from '../version.ts';
import { Repeats } from './repeats.ts';
import { reportTo, type ServiceManager, type ServiceReport, statusLine } from './service-report.ts';
import { Syncer } from './syncer.ts';
import { type Clock, sleep, systemClock } from './wait.ts';

/** PowerDNS' LMDBs with the records, beside the main one, which has the path in front of the number. */
const shardPattern = /^(.+)-\d+$/;

export interface DaemonOptions {
  readonly config: Config;
  /** `receive` merges and never uploads. */
  readonly mode: 'sync' | 'receive';
  /** Names of the databases to work on, which are configured; none named: all. */
  readonly onlyDbs: readonly string[];
  /** Nothing is done before the storage has an object of this name. */
  readonly waitForMarkerFile?: string | undefined;
  readonly spoolPlaces: SpoolPlaces;
  readonly native: Native;
  /** Opened and closed by the caller. */
  readonly storage: Storage;
  readonly logger: RootLogger;
  readonly metrics: Metrics;
  readonly health: Health;
  /** Whoever started the daemon and wants to know how it is. */
  readonly serviceManager?: ServiceManager | undefined;
  /** Ends everything: what is being written is rolled back, what is being uploaded does not appear. */
  readonly signal: AbortSignal;
  readonly clock?: Clock;
}

/**
 * Runs the syncers of all databases, side by side, until the signal ends them or, with `config.onlyOnce`, until each has
 * completed its first pass. Resolves with the exit code: 1 when only-once could not merge a snapshot (one that is merely
 * corrupt does not count), met a fault of the LMDB or could not upload; else 0.
 * @throws LightningStreamError when the instance has no name (`INSTANCE_UNSET`), the spool cannot be used (`SPOOL_UNUSABLE`)
 * or the HTTP server not be started (`HTTP_ADDRESS`).
 */
export async function runDaemon(options: DaemonOptions): Promise<number> {
  const { config, mode, onlyDbs, waitForMarkerFile, native, logger, health, metrics, signal } = options;
  const clock = options.clock ?? systemClock;
  const instance = instanceName(config.instance, hostname());
  const spool = Spool.open({
    ...options.spoolPlaces,
    tryLock: (path) => native.tryLock(path),
    logger,
  });
  const databaseCount = onlyDbs.length > 0 ? onlyDbs.length : config.lmdbs.size;
  const storage =
    databaseCount > 1 && isPaged(options.storage)
      ? new SharedListing(options.storage, () => clock.monotonicMs())
      : options.storage;
  const { version } = programVersion();
  health.setMetadata('hostname', hostname());
  health.setMetadata('version', version);
  const ended = new AbortController();
  let server: HttpServer | undefined;
  let report: ServiceReport | undefined;
  try {
    const syncers: Syncer[] = [];
    const byPath = new Map<string, Syncer>();
    for (const [database, lmdb] of config.lmdbs) {
      if (onlyDbs.length > 0 && !onlyDbs.includes(database)) {
        logger.warning('Skipping because of --only-db', { db: database });
        continue;
      }
      const shared = {
        config,
        mode,
        instance,
        native,
        storage,
        spool,
        logger,
        metrics,
        health,
        clock,
        signal,
      };
      const path = resolve(lmdb.path);
      const mainPath = shardPattern.exec(path)?.[1];
      const main = mainPath === undefined ? undefined : () => byPath.get(mainPath);
      const syncer = new Syncer({ ...shared, database, lmdb, hostname: hostname(), ...(main && { main }) });
      byPath.set(path, syncer);
      syncers.push(syncer);
    }
    if (config.http.address !== '' && !config.onlyOnce) {
      const startedAtMs = Date.now();
      // Loaded only here: node:http brings a good part of the start-up time with it.
      const { startHttpServer } = await import('../http/server.ts');
      server = await startHttpServer({
        address: config.http.address,
        health,
        metrics,
        logger,
        mask: (text) => logger.mask(text),
        signal: AbortSignal.any([signal, ended.signal]),
        listStorage: (listSignal) => storage.list('', { signal: listSignal }),
        status: async () => ({
          version,
          instance,
          startedAtMs,
          storage: { type: storage.type, location: storage.location },
          databases: await Promise.all(syncers.map((syncer) => syncer.status())),
        }),
      });
    }
    if (options.serviceManager !== undefined) {
      const status = async (): Promise<string> => {
        const databases = await Promise.all(syncers.map((syncer) => syncer.status()));
        return logger.mask(statusLine(health.report(), databases));
      };
      report = reportTo({ manager: options.serviceManager, status, logger, signal });
    }
    if (waitForMarkerFile !== undefined) {
      // That may take days, and somebody may wait for us to be ready.
      report?.ready();
      await waitForMarker(waitForMarkerFile, options, clock);
    }
    const running = syncers.map((syncer) => syncer.run());
    // Each has opened its LMDB by now, and made the files where it may, or has said in health why not. It is ready whatever the storage does:
    // an application that is started after us must not wait for that.
    report?.ready();
    const results = await Promise.all(running);
    return results.every(Boolean) ? 0 : 1;
  } catch (error) {
    if (signal.aborted && (error === signal.reason || isAbort(error))) return 0;
    throw error;
  } finally {
    ended.abort(new Error('all syncers have ended'));
    await server?.closed;
    await spool.close();
    await report?.end();
  }
}

async function waitForMarker(
  name: string,
  { config, storage, logger, health, signal }: DaemonOptions,
  clock: Clock,
): Promise<void> {
  const tracker = health.failureTracker(
    'wait_for_marker_file',
    ACTIVITY.storageList,
    config.health.storageList,
  );
  const trouble = new Repeats(clock);
  logger.info(`Waiting for marker file '${name}' to be present in the storage`);
  for (;;) {
    try {
      const objects = await tracked(tracker, () => storage.list(name, { signal }));
      tracker.success();
      trouble.over(() => logger.info('Listing the storage works'));
      if (objects.some((object) => object.name === name)) break;
      logger.debug(`Marker file '${name}' is not there yet`);
    } catch (error) {
      signal.throwIfAborted();
      tracker.failure(error);
      trouble.failed(errorMessage(error), (times) =>
        logger.error(`Unable to check the storage for marker file '${name}'`, { error, times }),
      );
    }
    await sleep(config.storagePollIntervalMs, signal);
  }
  logger.info(`Marker file '${name}' found, proceeding`);
}
