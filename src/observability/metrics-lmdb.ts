import { readFile, realpath } from 'node:fs/promises';
import Gauge from 'prom-client/lib/gauge.js';
import type Registry from 'prom-client/lib/registry.js';
import type { EnvironmentStats } from '../native/types.ts';
import { type Latest, latest } from './latest.ts';

interface Registered {
  readonly name: string;
  readonly dataFilePath: string;
  readonly stats: Latest<EnvironmentStats>;
}

/** Collects the figures of all registered environments; see `Metrics.registerEnvironment`. */
export interface EnvironmentCollector {
  register(name: string, dataFilePath: string, stats: () => Promise<EnvironmentStats>): () => void;
  /** Sets all `lmdb_*` gauges; resolves within the deadline and never rejects. */
  collect(): Promise<void>;
}

export function createEnvironmentCollector(
  registry: Registry,
  options: { readonly scrapeSmaps: boolean; readonly deadlineMs: number },
): EnvironmentCollector {
  const environments = new Map<string, Registered>();
  const smaps = latest(() => readFile('/proc/self/smaps', 'utf8'));

  const gauges: Gauge[] = [];
  function gauge<L extends string>(name: string, help: string, labelNames: readonly L[]): Gauge<L> {
    const created = new Gauge<L>({ name: `lmdb_${name}`, help, labelNames, registers: [registry] });
    gauges.push(created);
    return created;
  }
  const mapSize = gauge('mapsize_bytes', 'Map size', ['lmdb']);
  const readersCurrent = gauge('env_readers_current', 'Reader slots in use', ['lmdb']);
  const readersMax = gauge('env_readers_max', 'Reader slots', ['lmdb']);
  const lastTransaction = gauge('env_last_tnx_id', 'Id of the last committed write transaction', ['lmdb']);
  const fileSize = gauge('filesize_bytes', 'Size of the data file', ['lmdb']);
  const totalUsage = gauge('total_usage_bytes', 'Bytes of all pages of all DBIs', ['lmdb']);
  const totalUsageFraction = gauge(
    'total_usage_fraction',
    'Those bytes as a fraction (0-1) of the map size',
    ['lmdb'],
  );
  const usage = gauge('db_usage_bytes', 'Bytes of all pages of a DBI', ['lmdb', 'db']);
  const entries = gauge('stat_entries', 'Entries of a DBI', ['lmdb', 'db']);
  const depth = gauge('stat_depth', 'Depth of the tree of a DBI', ['lmdb', 'db']);
  const pages = gauge('stat_pages', 'Pages of a DBI by type', ['lmdb', 'db', 'pagetype']);
  const smapsBytes = gauge('smaps_bytes', "Memory of the data file's mapping, from /proc/self/smaps", [
    'lmdb',
    'database_path',
    'smap',
  ]);

  function set(lmdb: string, { info, dbis, usedBytes }: EnvironmentStats): void {
    mapSize.set({ lmdb }, info.mapSizeBytes);
    readersCurrent.set({ lmdb }, info.readers);
    readersMax.set({ lmdb }, info.maxReaders);
    lastTransaction.set({ lmdb }, Number(info.lastTransactionId));
    fileSize.set({ lmdb }, info.fileSizeBytes);
    totalUsage.set({ lmdb }, usedBytes);
    if (info.mapSizeBytes > 0) totalUsageFraction.set({ lmdb }, usedBytes / info.mapSizeBytes);
    for (const dbi of dbis) {
      const labels = { lmdb, db: dbi.name };
      usage.set(labels, dbi.usedBytes);
      entries.set(labels, dbi.entries);
      depth.set(labels, dbi.depth);
      pages.set({ ...labels, pagetype: 'branch' }, dbi.branchPages);
      pages.set({ ...labels, pagetype: 'leaf' }, dbi.leafPages);
      pages.set({ ...labels, pagetype: 'overflow' }, dbi.overflowPages);
    }
  }

  return {
    register(name, dataFilePath, stats) {
      const registered: Registered = { name, dataFilePath, stats: latest(stats) };
      environments.set(name, registered);
      return () => {
        if (environments.get(name) === registered) environments.delete(name);
      };
    },
    async collect() {
      const [smapsText, ...found] = await Promise.all([
        options.scrapeSmaps && environments.size > 0 ? smaps.get(options.deadlineMs) : undefined,
        ...[...environments.values()].map(async (environment) => ({
          environment,
          stats: await environment.stats.get(options.deadlineMs),
          // The kernel names the mapped file by its real path.
          realPath: options.scrapeSmaps
            ? await realpath(environment.dataFilePath).catch(() => undefined)
            : undefined,
        })),
      ]);
      // Without a wait from here on: another scrape sees the old figures or the new ones, never half of them.
      for (const each of gauges) each.reset();
      for (const { environment, stats, realPath } of found) {
        if (stats === undefined || environments.get(environment.name) !== environment) continue;
        set(environment.name, stats);
        if (smapsText === undefined || realPath === undefined) continue;
        for (const [smap, bytes] of mappingBytes(smapsText, realPath)) {
          smapsBytes.set({ lmdb: environment.name, database_path: environment.dataFilePath, smap }, bytes);
        }
      }
    },
  };
}

/**
 * The figures of a file's mapping in the text of `/proc/PID/smaps` (proc_pid_smaps(5)), by lower-case name. A mapping that the
 * kernel keeps in several parts is added up, page sizes apart.
 */
export function mappingBytes(smaps: string, path: string): ReadonlyMap<string, number> {
  const figures = new Map<string, number>();
  const wanted = path.replaceAll('\n', '\\012');
  let inside = false;
  for (const line of smaps.split('\n')) {
    // address range, permissions, offset, device, inode, path
    const head = /^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)$/.exec(line);
    if (head !== null) {
      inside = head[1] === wanted;
      continue;
    }
    const figure = inside ? /^(\w+): +(\d+) kB$/.exec(line) : null;
    if (figure === null) continue;
    const name = (figure[1] ?? '').toLowerCase();
    const bytes = Number(figure[2]) * 1024;
    figures.set(name, name.endsWith('pagesize') ? bytes : (figures.get(name) ?? 0) + bytes);
  }
  return figures;
}
