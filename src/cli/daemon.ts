import type { Storage } from '../storage/storage.ts';
import { namedLmdb } from './lmdbs.ts';
import { refuseMissingFeatures } from './not-built.ts';
import type { Session } from './session.ts';
import { spoolPlaces } from './spool.ts';
import { withStorage } from './storage.ts';

/** `sync` and `receive` */
export async function daemon(
  session: Session,
  mode: 'sync' | 'receive',
  options: {
    readonly onlyOnce?: true;
    readonly onlyDb?: readonly string[];
    readonly waitForMarkerFile?: string;
  },
): Promise<number> {
  const { logger, signal } = session;
  const config = options.onlyOnce === true ? { ...session.config, onlyOnce: true } : session.config;
  const { onlyDb: onlyDbs = [] } = options;
  for (const name of onlyDbs) namedLmdb(session, `--only-db ${name}`, name);
  refuseMissingFeatures(config, session.configFile);

  const [{ runDaemon }, { loadNative }, { createMetrics }, { createHealth }] = await Promise.all([
    import('../sync/daemon.ts'),
    import('../native/index.ts'),
    import('../observability/metrics.ts'),
    import('../observability/health.ts'),
  ]);
  const metrics = createMetrics({ scrapeSmaps: config.lmdbScrapeSmaps });
  const run = (storage: Storage): Promise<number> =>
    runDaemon({
      config,
      mode,
      onlyDbs,
      waitForMarkerFile: options.waitForMarkerFile,
      spoolPlaces: spoolPlaces(session),
      native: loadNative(),
      serviceManager: session.io.serviceManager,
      storage,
      logger,
      metrics,
      health: createHealth(Date.now),
      signal,
    });
  return withStorage(session, run, metrics.storageCalls);
}
