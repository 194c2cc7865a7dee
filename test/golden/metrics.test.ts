// The reference's pages of one run (test/golden/metrics) against ours with the same events.
import { readFileSync } from 'node:fs';
import { afterEach, describe, expect, test } from 'vitest';
import { startHttpServer, type HttpServer } from '../../src/http/server.ts';
import type { EnvironmentStats } from '../../src/native/types.ts';
import { ACTIVITY, createHealth, type Health } from '../../src/observability/health.ts';
import { createLogger } from '../../src/observability/logger.ts';
import { createMetrics, type LimitName, type Metrics } from '../../src/observability/metrics.ts';
import type { StorageObject } from '../../src/storage/storage.ts';
import { identity, parseExposition, type Family } from './metrics/exposition.ts';

function golden(name: string): string {
  return readFileSync(new URL(`metrics/${name}`, import.meta.url), 'utf8');
}

const DATABASES = ['main', 'shard'];
const OWN = 'golden-a';
const OTHER = 'golden-b';

/** The environments of the run, as its page shows them. */
function goldenStats(database: string, page: ReadonlyMap<string, Family>): EnvironmentStats {
  const value = (name: string, labels: Record<string, string> = {}): number => {
    const wanted = Object.entries({ lmdb: database, ...labels });
    const sample = page
      .get(name)
      ?.samples.find(({ labels: found }) => wanted.every(([key, text]) => found.get(key) === text));
    if (sample === undefined) throw new Error(`golden page lacks ${name}`);
    return sample.value;
  };
  const names = (page.get('lmdb_stat_depth')?.samples ?? [])
    .filter(({ labels }) => labels.get('lmdb') === database)
    .map(({ labels }) => labels.get('db') ?? '');
  return {
    info: {
      mapSizeBytes: value('lmdb_mapsize_bytes'),
      pageSizeBytes: 4096,
      lastPage: 0,
      lastTransactionId: BigInt(value('lmdb_env_last_tnx_id')),
      maxReaders: value('lmdb_env_readers_max'),
      readers: value('lmdb_env_readers_current'),
      fileSizeBytes: value('lmdb_filesize_bytes'),
    },
    usedBytes: value('lmdb_total_usage_bytes'),
    dbis: names.map((db) => ({
      name: db,
      flags: 0,
      depth: value('lmdb_stat_depth', { db }),
      branchPages: value('lmdb_stat_pages', { db, pagetype: 'branch' }),
      leafPages: value('lmdb_stat_pages', { db, pagetype: 'leaf' }),
      overflowPages: value('lmdb_stat_pages', { db, pagetype: 'overflow' }),
      entries: value('lmdb_stat_entries', { db }),
      usedBytes: value('lmdb_db_usage_bytes', { db }),
    })),
  };
}

/** The events of the run, given to ours. */
function replay(metrics: Metrics): void {
  for (const lmdb of DATABASES) {
    metrics.snapshotsGenerated.inc({ lmdb });
    metrics.snapshotsGeneratedLastUnixSeconds.set({ lmdb }, 1795322157.2);
    metrics.snapshotsGeneratedLastSizeBytes.set({ lmdb }, 1010);
    metrics.snapshotsListFailed.inc({ lmdb });
    metrics.snapshotsInStorageCount.set({ lmdb }, 2);
    metrics.snapshotsInStorageBytes.set({ lmdb }, 2018);
    for (const syncer_instance of [OWN, OTHER]) {
      metrics.snapshotsLastReceivedSeconds.set({ lmdb, syncer_instance }, 1795320967.2);
      metrics.snapshotsLastReceivedAgeSeconds.observe({ lmdb, syncer_instance }, 1189.8);
    }
    for (const limit_name of ['download', 'decompress'] satisfies LimitName[]) {
      metrics.limit.set({ lmdb, limit_name }, 2);
      metrics.limitWaiting.set({ lmdb, limit_name }, 0);
      metrics.limitActive.set({ lmdb, limit_name }, 0);
      metrics.limitAcquired.inc({ lmdb, limit_name });
      metrics.limitActiveSeconds.observe({ lmdb, limit_name }, 0.1);
      metrics.limitWaitingSeconds.observe({ lmdb, limit_name }, 0);
    }
  }
  for (const lmdb of DATABASES) {
    metrics.cleanerDelete.inc({ lmdb, reason: 'newer snapshot' });
    metrics.sweeperCleaned.inc({ lmdb }, 0);
    metrics.sweeperStatsAvailable.set({ lmdb }, 1);
    metrics.sweeperStatsTotalEntries.set({ lmdb }, 27);
    metrics.sweeperStatsDeletedEntries.set({ lmdb }, 4);
    metrics.sweeperDurationSeconds.observe({ lmdb }, 0.001);
  }
  metrics.snapshotsStoreFailedAttempts.inc({ lmdb: 'shard' });
  metrics.snapshotsStoreCalls.inc();
  metrics.snapshotsStoreBytes.inc(16495);
  metrics.snapshotsListCalls.inc();
  metrics.snapshotsLoadCalls.inc();
  metrics.snapshotsLoadBytes.inc(17485);
}

function labelSets(family: Family, without: readonly string[] = []): string[] {
  const sets = family.samples
    .filter(({ name }) => !name.endsWith('_sum') && !name.endsWith('_count'))
    .map(({ labels }) =>
      [...labels]
        .filter(([key]) => !without.includes(key))
        .map(([key, value]) => `${key}=${key === 'le' ? Number(value.replace('+Inf', 'Infinity')) : value}`)
        .sort()
        .join(),
    );
  return [...new Set(sets)].sort();
}

/** Families of the reference that our page lacks. */
function excused(name: string): boolean {
  // Of Go's runtime and of its client library's own handler.
  return /^(go|promhttp)_/.test(name);
}

describe('metrics page', () => {
  const reference = parseExposition(golden('metrics.txt'));
  const failing = parseExposition(golden('metrics-failing.txt'));
  const expected = [...new Map([...failing, ...reference]).values()].filter(({ name }) => !excused(name));

  async function ours(): Promise<ReadonlyMap<string, Family>> {
    const metrics = createMetrics({ scrapeSmaps: true });
    await metrics.observeProcess();
    replay(metrics);
    for (const database of DATABASES) {
      // The program itself is a mapped file, as an LMDB is.
      const path = process.execPath;
      metrics.registerEnvironment(database, path, async () => goldenStats(database, reference));
    }
    return parseExposition((await metrics.page()).text);
  }

  test('has the names, types, labels and buckets of the reference', async () => {
    const page = await ours();
    expect(expected.length).toBeGreaterThan(40);
    const shape = (family: Family | undefined): unknown =>
      family && {
        name: family.name,
        type: family.type,
        // Which figures a mapping has depends on the kernel, its path on the machine.
        labels: labelSets(family, family.name === 'lmdb_smaps_bytes' ? ['smap', 'database_path'] : []),
      };
    expect(expected.map(({ name }) => shape(page.get(name)))).toEqual(expected.map(shape));
  });

  test('has nothing of its own among the names of the reference', async () => {
    const known = new Set(expected.map(({ name }) => name));
    const extra = [...(await ours()).keys()].filter(
      (name) => /^(lightningstream|lmdb|storage)_/.test(name) && !known.has(name),
    );
    expect(extra).toEqual([]);
  });

  test('shows the figures of the environments as the reference does', async () => {
    const page = await ours();
    const lmdb = expected.filter(({ name }) => name.startsWith('lmdb_') && name !== 'lmdb_smaps_bytes');
    expect(lmdb).toHaveLength(11);
    const figures = (family: Family | undefined): unknown =>
      new Map(family?.samples.map(({ name, labels, value }) => [identity(name, labels), value]));
    expect(lmdb.map(({ name }) => figures(page.get(name)))).toEqual(lmdb.map(figures));
  });

  test('names the figures of a mapping as the reference does', async () => {
    const names = (page: ReadonlyMap<string, Family>): (string | undefined)[] =>
      (page.get('lmdb_smaps_bytes')?.samples ?? []).map(({ labels }) => labels.get('smap'));
    const found = new Set(names(await ours()));
    for (const name of ['size', 'rss', 'pss', 'private_dirty', 'kernelpagesize', 'swap']) {
      expect(names(reference)).toContain(name);
      expect(found).toContain(name);
    }
  });

  test('shows counters with labels from their first event on, others from the start', async () => {
    const names = [
      ...parseExposition((await createMetrics({ scrapeSmaps: false }).page()).text).keys(),
    ].sort();
    const unlabelled = expected
      .filter(
        ({ name, type, samples }) =>
          name.startsWith('lightningstream_') &&
          type === 'counter' &&
          samples.every(({ labels }) => labels.size === 0),
      )
      .map(({ name }) => name)
      .sort();
    expect(names).toEqual(unlabelled);
  });
});

describe('HTTP', () => {
  interface Recorded {
    readonly path?: string;
    readonly status?: number;
    readonly headers?: Readonly<Record<string, string>>;
    readonly body?: string;
  }
  interface HealthPage {
    readonly runtime: object;
    readonly metadata: Record<string, unknown>;
    readonly failures: Record<string, string>;
    readonly warnings: Record<string, string>;
    readonly [key: string]: unknown;
  }

  const recorded = JSON.parse(golden('http.json')) as Record<string, Recorded>;
  const running = new Set<AbortController>();
  afterEach(() => {
    for (const controller of running) controller.abort();
    running.clear();
  });

  async function start(
    health: Health,
    listStorage: () => Promise<readonly StorageObject[]>,
  ): Promise<HttpServer> {
    const controller = new AbortController();
    running.add(controller);
    const logger = createLogger(
      { level: 'fatal', format: 'json', timestamp: 'full' },
      { write: () => undefined },
    );
    return startHttpServer({
      address: '127.0.0.1:0',
      health,
      metrics: createMetrics({ scrapeSmaps: false }),
      status: async () => ({
        version: '1',
        instance: OWN,
        startedAtMs: 0,
        storage: { type: 'fs', location: '/' },
        databases: [],
      }),
      listStorage,
      logger,
      mask: (text) => logger.mask(text),
      signal: controller.signal,
    });
  }

  function expectAsRecorded(name: string, response: Response): void {
    const plain = (type: string | null | undefined): string | undefined =>
      // "escaping" speaks of names that only newer Prometheus versions allow; a charset for text is no difference.
      type?.replace(/; escaping=\w+/, '').replace(/^text\/plain; charset=utf-8$/, 'text/plain');
    const { status, headers } = recorded[name] ?? {};
    const type = plain(response.headers.get('content-type'));
    expect({ name, status: response.status, type }).toEqual({
      name,
      status,
      type: plain(headers?.['Content-Type']) ?? type,
    });
  }

  test('/healthz tells the same story with the same codes', async () => {
    let nowMs = Date.parse('2026-11-22T04:35:57.094Z');
    const health = createHealth(() => nowMs);
    const { port } = await start(health, async () => []);
    health.setMetadata('hostname', 'vm');
    health.setMetadata('version', 'dev');

    const config = { intervalMs: 1000, warnDurationMs: 2000, errorDurationMs: 5000 };
    const startConfig = { ...config, reportHealthz: false, reportMetadata: true };
    const databases = DATABASES.map((name) => ({
      start: health.startTracker(name, startConfig),
      list: health.failureTracker(`${name}_storage_list`, ACTIVITY.storageList, config),
      load: health.failureTracker(`${name}_storage_load`, ACTIVITY.storageLoad, config),
      store: health.failureTracker(`${name}_storage_store`, ACTIVITY.storageStore, config),
    }));

    async function compare(name: string): Promise<void> {
      const response = await fetch(`http://127.0.0.1:${port}/healthz`);
      const text = await response.text();
      expectAsRecorded(name, response);
      expect(text).not.toMatch(/\n$/);
      const page = JSON.parse(text) as HealthPage;
      const wanted = JSON.parse(golden(name)) as HealthPage;
      expect(Object.keys(page)).toEqual(Object.keys(wanted));
      expect(Object.keys(page.runtime)).toEqual(Object.keys(wanted.runtime));
      // Not compared: times, Go's figures, and facts of how Go built the reference.
      const facts = ({ metadata, ...rest }: HealthPage): unknown => ({
        ...rest,
        time: undefined,
        since: undefined,
        runtime: undefined,
        metadata: Object.entries(metadata).filter(([key]) => !key.startsWith('vcs')),
      });
      expect(facts(page)).toEqual(facts(wanted));
    }

    await compare('healthz-start.json');

    for (const { start, list, store, load } of databases) {
      start.passedInitialListing();
      start.passedInitialStore();
      start.passCompleted();
      list.success();
      load.success();
      store.success();
    }
    nowMs = Date.parse('2026-11-22T04:36:02.287Z');
    await compare('healthz-ok.json');

    // The storage vanished; every attempt fails with the words that the reference recorded.
    const { warnings } = JSON.parse(golden('healthz-warning.json')) as HealthPage;
    const lastError = (check: string): Error =>
      new Error(/last error: '(.*)'$/.exec(warnings[check] ?? '')?.[1] ?? 'not recorded');
    nowMs = Date.parse('2026-11-22T04:36:03.000Z');
    for (let attempt = 0; attempt < 2; attempt += 1) {
      databases[0]?.list.failure(lastError('main_storage_list_failed_duration'));
      databases[1]?.list.failure(lastError('shard_storage_list_failed_duration'));
      databases[1]?.store.failure(lastError('shard_storage_store_failed_duration'));
      nowMs += attempt === 0 ? 200 : 0;
    }
    nowMs = Date.parse('2026-11-22T04:36:06.014Z');
    await compare('healthz-warning.json');
    nowMs = Date.parse('2026-11-22T04:36:10.016Z');
    await compare('healthz-failing.json');

    for (const { list, store } of databases) {
      list.success();
      store.success();
    }
    nowMs = Date.parse('2026-11-22T04:36:13.030Z');
    await compare('healthz-recovered.json');
  });

  test('/storage lists as the reference does', async () => {
    const objects = golden('storage.txt')
      .trimEnd()
      .split('\n')
      .slice(1)
      .map((line) => line.split('\t'))
      .map(([name = '', size]) => ({ name, sizeBytes: Number(size) }));
    expect(objects).toHaveLength(4);
    const { port } = await start(createHealth(Date.now), async () => objects);
    const response = await fetch(`http://127.0.0.1:${port}/storage`);
    expectAsRecorded('storage.txt', response);
    expect(await response.text()).toBe(golden('storage.txt'));
  });

  test('/storage fails as the reference does', async () => {
    const reason = golden('storage-failing.txt').trimEnd().replace('ERROR LISTING STORAGE: ', '');
    const { port } = await start(createHealth(Date.now), () => Promise.reject(new Error(reason)));
    const response = await fetch(`http://127.0.0.1:${port}/storage`);
    expectAsRecorded('storage-failing.txt', response);
    expect(await response.text()).toBe(golden('storage-failing.txt'));
  });

  test('other paths, parameters and types', async () => {
    const { port } = await start(createHealth(Date.now), async () => []);
    const get = (path: string): Promise<Response> => fetch(`http://127.0.0.1:${port}${path}`);
    expectAsRecorded('status.html', await get('/'));
    expectAsRecorded('metrics.txt', await get('/metrics'));
    for (const name of ['(not found)', 'probe /healthz?x=1', 'probe /storage/']) {
      const response = await get(recorded[name]?.path ?? '');
      expectAsRecorded(name, response);
      const start = (body: string | undefined): string | undefined => body?.slice(0, 40);
      expect(start(await response.text())).toBe(start(recorded[name]?.body));
    }
  });
});
