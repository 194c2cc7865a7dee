import { readFile } from 'node:fs/promises';
import { describe, expect, test } from 'vitest';
import type { EnvironmentStats } from '../../src/native/types.ts';
import { mappingBytes } from '../../src/observability/metrics-lmdb.ts';
import { createMetrics, type Metrics } from '../../src/observability/metrics.ts';
import { parseExposition, type Family } from '../golden/metrics/exposition.ts';

function stats(lastTransactionId: bigint, dbi = 'records'): EnvironmentStats {
  return {
    info: {
      mapSizeBytes: 1 << 20,
      pageSizeBytes: 4096,
      lastPage: 9,
      lastTransactionId,
      maxReaders: 126,
      readers: 1,
      fileSizeBytes: 40960,
    },
    usedBytes: 1 << 19,
    dbis: [
      {
        name: dbi,
        flags: 0,
        depth: 1,
        branchPages: 0,
        leafPages: 1,
        overflowPages: 0,
        entries: 5,
        usedBytes: 1 << 19,
      },
    ],
  };
}

async function scrape(metrics: Metrics): Promise<ReadonlyMap<string, Family>> {
  return parseExposition((await metrics.page()).text);
}

function values(page: ReadonlyMap<string, Family>, name: string, label: string): Record<string, number> {
  const samples = page.get(name)?.samples ?? [];
  return Object.fromEntries(samples.map(({ labels, value }) => [labels.get(label) ?? '', value]));
}

/** A call that answers when it is told to. */
function manual() {
  const calls: PromiseWithResolvers<EnvironmentStats>[] = [];
  return {
    calls,
    stats: () => {
      const call = Promise.withResolvers<EnvironmentStats>();
      calls.push(call);
      return call.promise;
    },
  };
}

describe('environments', () => {
  const options = { scrapeSmaps: false, environmentDeadlineMs: 20 };

  test('a busy one shows its last known figures, and is not asked again meanwhile', async () => {
    const metrics = createMetrics(options);
    const busy = manual();
    metrics.registerEnvironment('busy', '/nowhere', busy.stats);
    metrics.registerEnvironment('main', '/nowhere', async () => stats(7n));

    const never = await scrape(metrics);
    expect(values(never, 'lmdb_env_last_tnx_id', 'lmdb')).toEqual({ main: 7 });
    busy.calls[0]?.resolve(stats(1n));
    await expect
      .poll(async () => values(await scrape(metrics), 'lmdb_env_last_tnx_id', 'lmdb'))
      .toEqual({ busy: 1, main: 7 });
    await scrape(metrics);
    expect(busy.calls).toHaveLength(2);
    busy.calls[1]?.resolve(stats(2n));
    await expect
      .poll(async () => values(await scrape(metrics), 'lmdb_env_last_tnx_id', 'lmdb'))
      .toEqual({ busy: 2, main: 7 });
  });

  test('one that fails is absent, and back when it works again', async () => {
    const metrics = createMetrics(options);
    let broken = false;
    metrics.registerEnvironment('main', '/nowhere', async () => {
      if (broken) throw new Error('closed');
      return stats(3n);
    });
    expect(values(await scrape(metrics), 'lmdb_env_last_tnx_id', 'lmdb')).toEqual({ main: 3 });
    broken = true;
    expect((await scrape(metrics)).has('lmdb_env_last_tnx_id')).toBe(false);
    broken = false;
    expect(values(await scrape(metrics), 'lmdb_env_last_tnx_id', 'lmdb')).toEqual({ main: 3 });
  });

  test('a DBI that is gone leaves nothing behind; so does an environment that is taken off', async () => {
    const metrics = createMetrics(options);
    let dbi = 'before';
    const remove = metrics.registerEnvironment('main', '/nowhere', async () => stats(3n, dbi));
    expect(values(await scrape(metrics), 'lmdb_stat_entries', 'db')).toEqual({ before: 5 });
    dbi = 'after';
    expect(values(await scrape(metrics), 'lmdb_stat_entries', 'db')).toEqual({ after: 5 });
    remove();
    expect((await scrape(metrics)).has('lmdb_stat_entries')).toBe(false);
  });

  test('a late removal does not take off the successor of the same name', async () => {
    const metrics = createMetrics(options);
    const remove = metrics.registerEnvironment('main', '/nowhere', async () => stats(1n));
    metrics.registerEnvironment('main', '/nowhere', async () => stats(2n));
    remove();
    expect(values(await scrape(metrics), 'lmdb_env_last_tnx_id', 'lmdb')).toEqual({ main: 2 });
  });

  test('scrapes at the same time each see a whole page', async () => {
    const metrics = createMetrics(options);
    for (const name of ['a', 'b']) {
      metrics.registerEnvironment(name, '/nowhere', async () => stats(1n));
    }
    const pages = await Promise.all(Array.from({ length: 8 }, () => scrape(metrics)));
    for (const page of pages)
      expect(values(page, 'lmdb_total_usage_fraction', 'lmdb')).toEqual({ a: 0.5, b: 0.5 });
  });

  test('any name is a valid label', async () => {
    const metrics = createMetrics(options);
    const name = 'a"b\\c\nd{e="f"} 1 ⚡';
    metrics.registerEnvironment(name, '/nowhere', async () => stats(1n, name));
    metrics.snapshotsLoadFailed.inc({ lmdb: name, syncer_instance: name });
    const page = await scrape(metrics);
    expect(values(page, 'lmdb_stat_entries', 'db')).toEqual({ [name]: 5 });
    expect(values(page, 'lightningstream_syncer_snapshots_load_failed_total', 'syncer_instance')).toEqual({
      [name]: 1,
    });
  });

  test('memory of the mapping is shown only when asked for, and found by the real path', async () => {
    for (const scrapeSmaps of [false, true]) {
      const metrics = createMetrics({ scrapeSmaps });
      // A link to a file that is mapped: this very program.
      metrics.registerEnvironment('main', '/proc/self/exe', async () => stats(1n));
      const page = await scrape(metrics);
      expect(page.has('lmdb_smaps_bytes')).toBe(scrapeSmaps);
      if (!scrapeSmaps) continue;
      expect(values(page, 'lmdb_smaps_bytes', 'database_path')).toHaveProperty(['/proc/self/exe']);
      expect(values(page, 'lmdb_smaps_bytes', 'smap')['rss']).toBeGreaterThan(1 << 20);
    }
  });
});

describe('smaps', () => {
  // As in proc_pid_smaps(5).
  const mapping = (path: string, rss: number, size = 64): string =>
    `7f0000000000-7f0000010000 rw-s 00000000 fe:01 1234   ${path}\nSize: ${size} kB\nKernelPageSize: 4 kB\n` +
    `MMUPageSize: 4 kB\nRss: ${rss} kB\nPrivate_Dirty: 0 kB\nTHPeligible:    0\nVmFlags: rd wr sh\n`;

  test('takes the mapping of the file alone', () => {
    const text =
      mapping('/a/main.mdb-lock', 1) +
      mapping('/a/main.mdb', 8) +
      mapping('', 2) +
      mapping('/b/a/main.mdb', 3);
    expect(Object.fromEntries(mappingBytes(text, '/a/main.mdb'))).toEqual({
      size: 65536,
      kernelpagesize: 4096,
      mmupagesize: 4096,
      rss: 8192,
      private_dirty: 0,
    });
    expect(mappingBytes(text, '/a/main').size).toBe(0);
  });

  test('adds the parts of a split mapping, page sizes apart', () => {
    const figures = mappingBytes(
      mapping('/a b/x', 8) + mapping('/other', 1) + mapping('/a b/x', 4),
      '/a b/x',
    );
    expect(figures.get('rss')).toBe(12288);
    expect(figures.get('size')).toBe(131072);
    expect(figures.get('kernelpagesize')).toBe(4096);
  });
});

describe('process', () => {
  test('is not observed unless asked, and asking twice does no harm', async () => {
    const metrics = createMetrics({ scrapeSmaps: false });
    const names = async (): Promise<string[]> => [...(await scrape(metrics)).keys()];
    expect((await names()).filter((name) => !name.startsWith('lightningstream_'))).toEqual([]);
    await metrics.observeProcess();
    await metrics.observeProcess();
    expect(await names()).toEqual(
      expect.arrayContaining([
        'process_resident_memory_bytes',
        'nodejs_heap_size_used_bytes',
        'nodejs_eventloop_lag_seconds',
      ]),
    );
  });

  test('the figures that we read ourselves are those of the system', async () => {
    const metrics = createMetrics({ scrapeSmaps: false });
    await metrics.observeProcess();
    const before = await networkBytes();
    const page = await scrape(metrics);
    const after = await networkBytes();
    for (const [name, at] of [
      ['receive', 0],
      ['transmit', 1],
    ] as const) {
      const value = page.get(`process_network_${name}_bytes_total`)?.samples[0]?.value;
      expect(value).toBeGreaterThanOrEqual(before[at]);
      expect(value).toBeLessThanOrEqual(after[at]);
    }
    const limits = await readFile('/proc/self/limits', 'utf8');
    const limit = (limits.split('\n').find((line) => line.startsWith('Max address space')) ?? '')
      .slice(26)
      .split(/ +/)[0];
    expect(page.get('process_virtual_memory_max_bytes')?.samples[0]?.value).toBe(
      limit === 'unlimited' ? 18446744073709551616 : Number(limit),
    );
  });

  async function networkBytes(): Promise<readonly [number, number]> {
    const table = await readFile('/proc/self/net/netstat', 'utf8');
    const rows = table
      .split('\n')
      .map((line) => line.split(' '))
      .filter(([name]) => name === 'IpExt:');
    const column = (name: string): number => Number(rows[1]?.[rows[0]?.indexOf(name) ?? -1]);
    return [column('InOctets'), column('OutOctets')];
  }
});

test('two programs share nothing', async () => {
  const [a, b] = [createMetrics({ scrapeSmaps: false }), createMetrics({ scrapeSmaps: false })];
  a.snapshotsGenerated.inc({ lmdb: 'main' });
  await a.observeProcess();
  await b.observeProcess();
  expect((await scrape(a)).has('lightningstream_syncer_snapshots_generated_total')).toBe(true);
  expect((await scrape(b)).has('lightningstream_syncer_snapshots_generated_total')).toBe(false);
});
