import { readdir, rename } from 'node:fs/promises';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { SweeperConfig } from '../../src/config/types.ts';
import { LightningStreamError } from '../../src/errors.ts';
import { loadNative } from '../../src/native/index.ts';
import type { Environment, Native } from '../../src/native/types.ts';
import { parseSnapshotName } from '../../src/snapshot/name.ts';
import { deletedCutoffNano, Syncer, watchFile } from '../../src/sync/syncer.ts';
import { type Clock, systemClock } from '../../src/sync/wait.ts';
import { until } from '../helpers/process.ts';
import { Testkit } from '../helpers/testkit.ts';
import {
  adjustableClock,
  at,
  config,
  name,
  snapshot,
  type Surroundings,
  surroundings,
  type TestEntry,
} from './sync-helpers.ts';

const native = loadNative();
const { signal } = new AbortController();
let around: Surroundings;
let ended: Promise<boolean> | undefined;
let app: Testkit | undefined;
let lmdbPath: string;

beforeEach(async () => {
  around = await surroundings();
  lmdbPath = around.dir.join('lmdb');
});

afterEach(async () => {
  around.abort.abort(new Error('the test is over'));
  await ended;
  ended = undefined;
  await app?.[Symbol.asyncDispose]();
  app = undefined;
  await around[Symbol.asyncDispose]();
});

/** The application, in a process of its own. */
function application(mapSizeBytes = 1 << 20): Testkit {
  return (app ??= new Testkit(lmdbPath, { mapSizeBytes }));
}

interface Options {
  readonly mode?: 'sync' | 'receive';
  readonly native?: Native;
  readonly clock?: Clock;
  readonly lmdb?: string;
}

function run(extra = '', options: Options = {}): Syncer {
  const lmdb = options.lmdb ?? 'schema_tracks_changes: true, options: {create: true, map_size: 1MB}';
  const parsed = config(extra, `main: {path: ${lmdbPath}, ${lmdb}}`);
  const syncer = new Syncer({
    ...around,
    database: 'main',
    lmdb: parsed.lmdbs.get('main')!,
    config: parsed,
    mode: options.mode ?? 'sync',
    instance: 'self',
    hostname: 'host',
    native: options.native ?? native,
    logger: around.log.logger,
    clock: options.clock ?? systemClock,
    signal: around.abort.signal,
  });
  ended = syncer.run();
  return syncer;
}

/** The real addon, with something before each merge, and the order of calls written down. */
function observed(beforeMerge: () => Promise<void>, calls: string[], ahead = () => 0n): Native {
  return {
    ...native,
    openEnvironment(path, options) {
      const env = native.openEnvironment(path, options);
      return new Proxy(env, {
        get(target, property: keyof Environment) {
          const member = target[property];
          if (typeof member === 'bigint') return member + ahead();
          if (typeof member !== 'function') return member;
          return (...args: never[]) => {
            calls.push(property);
            const call = (): unknown => (member as (...args: never[]) => unknown).apply(target, args);
            return property === 'merge' ? beforeMerge().then(call) : call();
          };
        },
      });
    },
  };
}

/** The real addon, except that this comes of asking for figures. */
function withStats(outcome: () => Promise<never>, calls: string[]): Native {
  return {
    ...native,
    openEnvironment(path, options) {
      return new Proxy(native.openEnvironment(path, options), {
        get(target, property: keyof Environment) {
          const member = target[property];
          if (property === 'stats')
            return () => {
              calls.push(property);
              return outcome();
            };
          return typeof member === 'function' ? (member.bind(target) as unknown) : member;
        },
      });
    },
  };
}

const entry = (key: string, value: string, second = 1): TestEntry => ({
  key,
  value,
  timestampNano: at(second),
});
const remote = (...entries: TestEntry[]): Uint8Array => snapshot({ data: entries });

async function stored(instance = 'self'): Promise<string[]> {
  const objects = await around.objects.list(`main__${instance}__`, { signal });
  return objects.map((object) => object.name);
}

const storedCount = (count: number): Promise<string[]> =>
  until(
    async () => {
      const names = await stored();
      return names.length >= count && names;
    },
    { what: `${count} snapshots of ours`, intervalMs: 5 },
  );

const logged = (text: string): Promise<true> =>
  until(() => (around.log.text().includes(text) ? true : undefined), {
    what: `log line ${text}`,
    intervalMs: 5,
  });

const count = (text: string): number => around.log.text().split(text).length - 1;

const readable = (key: string, value: string): Promise<true> =>
  until(async () => ((await application().get('data', key))?.value === value ? true : undefined), {
    what: `${key} = ${value}`,
    intervalMs: 5,
  });

/** Resolves when the loop has had every opportunity to do what it should not. */
async function rounds(): Promise<void> {
  const lists = (): number => around.storage.calls.filter((call) => call.startsWith('list')).length;
  const seen = lists();
  await until(() => lists() >= seen + 4, { what: 'four more listings' });
}

const failures = (): Readonly<Record<string, string>> => around.health.report().failures;
const warnings = (): Readonly<Record<string, string>> => around.health.report().warnings;

describe('storing', () => {
  it('stores a first snapshot of an LMDB with data, and no further one while nothing changes', async () => {
    await application().put('data', 'k', 'v');
    run();
    const [first = ''] = await storedCount(1);
    await logged('Stored snapshot');
    const line =
      around.log
        .text()
        .split('\n')
        .find((each) => each.includes('Stored snapshot')) ?? '';
    for (const field of ['acquire', 'dump', 'compress', 'store', 'total']) {
      expect(line).toMatch(new RegExp(`time_${field}=\\d[\\d.]*(ms|s)\\b`));
    }
    expect(line).toMatch(/uncompressed_size="\d+ B"/);
    expect(line).toMatch(/compression_ratio="?1:\d+\.\d\d/);
    expect(line).toContain(`snapshot_name=${first}`);
    expect(line).toMatch(/txnID=1\b/);
    expect(around.log.text()).toContain('because there is none yet');
    await rounds();
    expect(await stored()).toEqual([first]);
    const meta = await inspect(first);
    expect(meta).toMatchObject({
      instanceId: 'self',
      hostname: 'host',
      databaseName: 'main',
      generationId: 'GX',
    });
    expect(meta).toMatchObject({
      lmdbTxnId: 1n,
      entries: 1,
      timestampNano: parseSnapshotName(first)!.timestampNano,
    });
    expect(await around.metric('lightningstream_syncer_snapshots_generated_total{lmdb="main"}')).toBe(1);
    expect(await around.metric('lightningstream_syncer_snapshots_store_calls_total')).toBe(1);
  });

  it('never stores an empty LMDB, says so once, and stores its first data', async () => {
    run();
    await logged('LMDB is empty');
    await rounds();
    expect(await stored()).toEqual([]);
    expect(count('LMDB is empty')).toBe(1);
    await application().put('data', 'k', 'v');
    await storedCount(1);
  });

  it('stores the first change after a quiet time at once, and further ones after lmdb_poll_interval', async () => {
    const clock = adjustableClock();
    await application().put('data', 'k', '0');
    run('lmdb_poll_interval: 1h', { clock });
    await storedCount(1);
    clock.advance(3_600_000);
    await application().put('data', 'k', '1');
    await storedCount(2);
    await application().put('data', 'k', '2');
    await rounds();
    expect(await stored()).toHaveLength(2);
    clock.advance(3_600_000);
    await storedCount(3);
  });

  it('gives a snapshot a later name than our last one, also when the clock went back', async () => {
    const future = name('self', 10 * 365 * 86_400);
    await around.put(future, remote(entry('k', 'of ours')));
    await application().put('data', 'x', 'y');
    run();
    const [, second = ''] = await storedCount(2);
    const after = parseSnapshotName(future)!.timestampNano + 1n;
    expect(parseSnapshotName(second)?.timestampNano).toBe(after);
    expect((await inspect(second)).timestampNano).toBe(after);
    expect(failures()).toEqual({});
  });

  it('stores again after storage_force_snapshot_interval without a change', async () => {
    const clock = adjustableClock();
    await application().put('data', 'k', 'v');
    run('storage_force_snapshot_interval: 1h', { clock });
    await storedCount(1);
    await logged('Stored snapshot');
    await rounds();
    expect(await stored()).toHaveLength(1);
    clock.advance(3_600_001);
    await storedCount(2);
    await logged('Snapshot overdue');
    await rounds();
    expect(await stored()).toHaveLength(2);
  });

  it('does not force a snapshot when the interval is 0', async () => {
    const clock = adjustableClock();
    await application().put('data', 'k', 'v');
    run('storage_force_snapshot_interval: 0', { clock });
    await storedCount(1);
    clock.advance(1e9);
    await rounds();
    expect(await stored()).toHaveLength(1);
  });

  it('does not store what it stored before, when LastTxnID counts a commit that is not visible', async () => {
    await application().put('data', 'k', 'v');
    let ahead = 0n;
    const calls: string[] = [];
    run('', {
      native: observed(
        async () => undefined,
        calls,
        () => ahead,
      ),
    });
    await storedCount(1);
    await logged('Stored snapshot');
    ahead = 1n;
    await until(() => calls.filter((call) => call === 'publish').length > 4, { what: 'several looks' });
    expect(await stored()).toHaveLength(1);
    expect(await around.metric('lightningstream_syncer_snapshots_generated_total{lmdb="main"}')).toBe(1);
    ahead = 0n;
    await application().put('data', 'k', 'changed');
    await storedCount(2);
    await readable('k', 'changed');
  });

  it('merges and stores nothing in receive mode', async () => {
    await application().put('data', 'k', 'v');
    await around.put(name('a', 1), remote(entry('x', 'remote')));
    run('', { mode: 'receive' });
    await readable('x', 'remote');
    await application().put('data', 'k', 'changed');
    await rounds();
    expect(await stored()).toEqual([]);
    expect(around.health.report().metadata['startup_main']).toBe(true);
  });
});

describe('storage trouble', () => {
  it('tries an upload again with the same snapshot, counts, and shows it in health', async () => {
    around.storage.failure.store = new Error('no space');
    await application().put('data', 'k', 'v');
    run();
    await until(() => around.storage.calls.filter((call) => call.startsWith('store')).length >= 3, {
      what: 'three attempts',
    });
    expect(failures()['main_storage_store_failed_duration']).toContain('no space');
    expect(count('Store failed, retrying')).toBe(1);
    around.storage.failure.store = undefined;
    const [first = ''] = await storedCount(1);
    const attempts = around.storage.calls.filter((call) => call.startsWith('store'));
    expect(new Set(attempts)).toEqual(new Set([`store ${first}`]));
    await until(() => around.health.report().ok, { what: 'health is good again' });
    expect(await around.metric('lightningstream_syncer_snapshots_generated_total{lmdb="main"}')).toBe(1);
    const failed = 'lightningstream_syncer_snapshots_store_failed_attempts_total{lmdb="main"}';
    expect(await around.metric(failed)).toBe(attempts.length - 1);
    expect(count('Storing snapshots works again')).toBe(1);
  });

  it('stores what is in the LMDB now when an upload failed before, and merges meanwhile', async () => {
    around.storage.failure.store = new Error('no space');
    await application().put('data', 'k', 'first');
    run();
    await logged('Store failed, retrying');
    await application().put('data', 'k', 'second');
    await around.put(name('a', 1), remote(entry('x', 'remote')));
    await readable('x', 'remote');
    await until(() => new Set(around.storage.calls.filter((call) => call.startsWith('store'))).size >= 2, {
      what: 'a fresh snapshot',
    });
    around.storage.failure.store = undefined;
    const [only = ''] = await storedCount(1);
    expect((await inspect(only)).lmdbTxnId).toBeGreaterThanOrEqual(2n);
  });

  it('never stores two snapshots at once; downloads and merges go on, and after it goes what is newest then', async () => {
    let open = (): void => undefined;
    around.storage.gate.store = new Promise((resolve) => (open = resolve));
    await application().put('data', 'k', '0');
    run();
    await until(() => around.storage.calls.some((call) => call.startsWith('store')), { what: 'an upload' });
    await application().put('data', 'k', '1');
    await around.put(name('a', 1), remote(entry('x', 'remote')));
    await readable('x', 'remote');
    await application().put('data', 'k', '2');
    await rounds();
    expect(around.storage.calls.filter((call) => call.startsWith('store'))).toHaveLength(1);
    open();
    const [, second = ''] = await storedCount(2);
    // Three commits of the application and one merge.
    expect((await inspect(second)).lmdbTxnId).toBe(4n);
    await rounds();
    expect(await stored()).toHaveLength(2);
  });

  it('stores while a listing hangs, and while a download does', async () => {
    run();
    await logged('LMDB is empty');
    around.storage.gate.load = new Promise(() => undefined);
    await around.put(name('a', 1), remote(entry('x', 'remote')));
    await until(() => around.storage.calls.includes(`load ${name('a', 1)}`), { what: 'a download' });
    const lists = around.storage.calls.length;
    around.storage.gate.list = new Promise(() => undefined);
    await until(() => around.storage.calls.length > lists, { what: 'a listing' });
    await application().put('data', 'k', '1');
    await storedCount(1);
    await application().put('data', 'k', '2');
    await storedCount(2);
  });

  it('gives up after storage_retry_count attempts, is unhealthy, and starts over with a fresh snapshot', async () => {
    around.storage.failure.store = new Error('no space');
    await application().put('data', 'k', 'v');
    run('storage_retry_count: 2');
    await until(() => new Set(around.storage.calls.filter((call) => call.startsWith('store'))).size >= 2, {
      what: 'a fresh snapshot',
    });
    expect(failures()['main_storage_store_given_up']).toContain('2 attempts');
    const permanently = 'lightningstream_syncer_snapshots_store_failed_permanently_total{lmdb="main"}';
    expect(await around.metric(permanently)).toBeGreaterThanOrEqual(1);
    around.storage.failure.store = undefined;
    await storedCount(1);
    await until(() => around.health.report().ok, { what: 'health is good again' });
    await rounds();
    expect(await stored()).toHaveLength(1);
  });

  it('does not give up with storage_retry_forever', async () => {
    around.storage.failure.store = new Error('no space');
    await application().put('data', 'k', 'v');
    run('storage_retry_count: 1\nstorage_retry_forever: true');
    await until(() => around.storage.calls.filter((call) => call.startsWith('store')).length >= 3, {
      what: 'three attempts',
    });
    expect(failures()['main_storage_store_given_up']).toBeUndefined();
  });

  it('waits for the first listing', async () => {
    around.storage.failure.list = new Error('no route');
    await application().put('data', 'k', 'v');
    run();
    await logged('Waiting for the first listing');
    expect(around.health.report().metadata['startup_main']).toBe(false);
    expect(await stored()).toEqual([]);
    around.storage.failure.list = undefined;
    await storedCount(1);
    await logged('Listing the storage works');
    await until(() => around.health.report().metadata['startup_main'] === true, {
      what: 'the start is over',
    });
  });
});

describe('merging', () => {
  it('merges what others stored, and never uploads because of it', async () => {
    await application().put('data', 'k', 'v');
    await around.put(name('a', 1), remote(entry('x', 'one')));
    run();
    await readable('x', 'one');
    await storedCount(1);
    await logged('Stored snapshot');
    await rounds();
    const before = await stored();
    await around.put(name('a', 2), remote(entry('x', 'two', 2)));
    await readable('x', 'two');
    await around.put(name('b', 3), remote(entry('x', 'three', 3)));
    await readable('x', 'three');
    await rounds();
    expect(await stored()).toEqual(before);
    const line =
      around.log
        .text()
        .split('\n')
        .find((each) => each.includes('Loaded remote update')) ?? '';
    expect(line).toMatch(/ snapshot_instance=a /);
    expect(line).toMatch(/ shorthash=[0-9a-f]{7} /);
    expect(line).toMatch(/ timestamp=20260101-000001-000000000 /);
    expect(line).toMatch(/ time_total=\d\S*s time_write_lock=\d\S*s /);
    expect(line).toMatch(/ added=1 .* entries=1 .* updated=0/);
    expect(line).toMatch(/txnID=\d+/);
  });

  it('uploads a local change that came before a merge', async () => {
    await application().put('data', 'k', 'v');
    let open = (): void => undefined;
    const calls: string[] = [];
    const gate: { merge?: Promise<void> } = {};
    run('', { native: observed(async () => gate.merge, calls) });
    await storedCount(1);
    gate.merge = new Promise((resolve) => (open = resolve));
    await around.put(name('a', 1), remote(entry('x', 'remote')));
    await until(() => calls.includes('merge'), { what: 'the merge begins' });
    await application().put('data', 'k', 'changed');
    open();
    await storedCount(2);
  });

  it('stops after the eleventh merge to let a local change through', async () => {
    const instances = Array.from({ length: 15 }, (_, index) => `i${index}`);
    await application().put('data', 'k', 'v');
    for (const instance of instances) await around.put(name(instance, 1), remote(entry(instance, 'x')));
    // Before ours is merged nothing is stored, so that the change is still waiting when all are ready.
    await around.put(name('self', 1), remote(entry('self', 'x')));
    const all = instances.length + 1;
    const calls: string[] = [];
    const merges = (): number => calls.filter((call) => call === 'merge').length;
    const ready = 'lightningstream_climit_active{lmdb="main",limit_name="decompress"}';
    run('memory_downloaded_snapshots: 20\nmemory_decompressed_snapshots: 20', {
      native: observed(async () => {
        if (merges() > 1) return;
        await until(async () => (await around.metric(ready)) === all, { what: 'all are ready' });
      }, calls),
    });
    await until(() => merges() === all, { what: 'all are merged' });
    await storedCount(2);
    const order = calls.filter((call) => call === 'merge' || call === 'publish');
    expect(order.indexOf('publish')).toBe(11);
  });

  it('ignores a corrupt snapshot, and merges the one before', async () => {
    await around.put(name('a', 1), remote(entry('x', 'older')));
    await around.put(name('a', 2), remote(entry('x', 'newer', 2)).subarray(0, -4));
    run();
    await readable('x', 'older');
    await rounds();
    expect(count('marked as corrupt')).toBe(1);
    expect(around.health.report().status).toBe('OK');
    expect(around.health.report().metadata['startup_main']).toBe(true);
  });

  it('sets a snapshot aside that cannot be merged, and merges the one before and those of others', async () => {
    await around.put(name('a', 1), remote(entry('x', 'older')));
    await around.put(name('a', 2), snapshot({ data: [entry('x', 'newer', 2)] }, { compatVersion: 9 }));
    await around.put(name('b', 1), remote(entry('y', 'of b')));
    run();
    await readable('x', 'older');
    await readable('y', 'of b');
    await until(() => warnings()['main_snapshot_set_aside'] !== undefined, { what: 'a warning' });
    expect(warnings()['main_snapshot_set_aside']).toContain(name('a', 2));
    expect(around.health.report().ok).toBe(true);
    await rounds();
    expect(count('is set aside')).toBe(1);
    await around.put(name('a', 3), remote(entry('x', 'newest', 3)));
    await readable('x', 'newest');
    await until(() => around.health.report().status === 'OK', { what: 'the warning ends' });
  });

  it('is unhealthy while the map is full, and goes on by itself when there is room', async () => {
    const big = 'x'.repeat(600_000);
    await application().put('data', 'mine', big);
    await around.put(name('a', 1), remote(entry('theirs', big)));
    run();
    await until(() => failures()['main_local_fault'] !== undefined, { what: 'unhealthy' });
    expect(failures()['main_local_fault']).toContain('(MDB_MAP_FULL)');
    expect(failures()['main_local_fault']).toContain('map_size');
    expect(around.health.report().metadata['startup_main']).toBe(false);
    await rounds();
    expect(count('level=error')).toBe(1);
    await application().delete('data', 'mine');
    // LMDB takes pages again that were freed by the transaction before the last one.
    await application().put('data', 'other', 'x');
    await readable('theirs', big);
    await until(() => around.health.report().ok, { what: 'health is good again' });
    expect(around.storage.calls.filter((call) => call.startsWith('load'))).toHaveLength(1);
  });

  describe('with a full map', () => {
    let nowMs = 0;
    const clock: Clock = { monotonicMs: () => nowMs, wallNano: () => systemClock.wallNano() };
    const big = 'x'.repeat(600_000);
    const calls: string[] = [];
    const merges = (): number => calls.filter((call) => call === 'merge').length;
    let mergeTakesMs = 0;

    beforeEach(async () => {
      calls.length = 0;
      mergeTakesMs = 0;
      await application().put('data', 'mine', big);
      await around.put(name('a', 1), remote(entry('theirs', big)));
      const slow = async (): Promise<void> => void (nowMs += mergeTakesMs);
      run('', { clock, native: observed(slow, calls) });
      await until(() => failures()['main_local_fault'] !== undefined, { what: 'unhealthy' });
    });

    it('tries again less and less often, however often the application commits and others store', async () => {
      expect(merges()).toBe(1);
      for (const [attempt, waitMs, takesMs] of [
        [2, 1000, 0],
        [3, 2000, 1000],
        [4, 10_000, 0],
      ] as const) {
        nowMs += waitMs - 1;
        await application().put('data', 'other', `${attempt}`);
        const loadedBytes = async (): Promise<number> =>
          (await around.metric('lightningstream_syncer_snapshots_load_bytes_total')) ?? 0;
        const before = await loadedBytes();
        await around.put(name('b', attempt), remote(entry('of b', 'x', attempt)));
        // At hand before the time comes: else it would have to wait for the next attempt.
        await until(async () => (await loadedBytes()) > before, { what: 'the snapshot of b is here' });
        await rounds();
        expect(merges()).toBe(2 * attempt - 3);
        mergeTakesMs = takesMs;
        nowMs += 1;
        // That of a and the one of b, which fits.
        await until(() => merges() === 2 * attempt - 1, { what: `attempt ${attempt}` });
        await readable('of b', 'x');
        await rounds();
      }
    });

    it('tries again at once when the map has become larger', async () => {
      await app?.[Symbol.asyncDispose]();
      app = undefined;
      await application(8 << 20).put('data', 'more', 'y'.repeat(2 << 20));
      nowMs += 100;
      await readable('theirs', big);
      await until(() => around.health.report().ok, { what: 'health is good again' });
    });
  });

  it('begins anew when the environment turns out to be closed', async () => {
    await application().put('data', 'k', 'v');
    let merges = 0;
    const closedOnce = (): Promise<void> =>
      ++merges === 1
        ? Promise.reject(new LightningStreamError('CLOSED', 'the environment is closed'))
        : Promise.resolve();
    run('', { native: observed(closedOnce, []) });
    await storedCount(1);
    await logged('Stored snapshot');
    await around.put(name('a', 1), remote(entry('x', 'remote')));
    await readable('x', 'remote');
    expect(count('Env info')).toBe(2);
    expect(count('Sync failed')).toBe(1);
    await until(() => around.health.report().ok, { what: 'health is good again' });
  });

  it('leaves a snapshot that a local fault prevents for a newer one', async () => {
    const big = 'x'.repeat(600_000);
    await application().put('data', 'mine', big);
    await around.put(name('a', 1), remote(entry('theirs', big)));
    run();
    await until(() => failures()['main_local_fault'] !== undefined, { what: 'unhealthy' });
    await around.put(name('a', 2), remote(entry('theirs', 'small', 2)));
    await readable('theirs', 'small');
    await until(() => around.health.report().ok, { what: 'health is good again' });
  });

  it('is unhealthy while a local value has no header, and stores again when it is gone', async () => {
    // A native database, or the mode would be said to be wrong.
    await application().put('data', 'a', 'v');
    await application().call({ op: 'raw', dbi: 'data', key: hex('k'), value: hex('short') });
    run();
    await until(() => failures()['main_local_fault'] !== undefined, { what: 'unhealthy' });
    expect(failures()['main_local_fault']).toMatch(
      /no snapshot can be taken: .*\bdata\b.*\(HEADER_INVALID\)/,
    );
    await around.put(name('a', 1), remote(entry('x', 'remote')));
    await readable('x', 'remote');
    expect(await stored()).toEqual([]);
    await application().put('data', 'k', 'v');
    await storedCount(1);
    await until(() => around.health.report().ok, { what: 'health is good again' });
  });
});

describe('our own snapshots', () => {
  it('are merged before anything is stored', async () => {
    let open = (): void => undefined;
    around.storage.gate.load = new Promise((resolve) => (open = resolve));
    const own = name('self', 1);
    await around.put(own, remote(entry('x', 'of ours')));
    await application().put('data', 'k', 'v');
    run();
    await logged('Waiting to merge our own older snapshot');
    await application().put('data', 'k', 'changed');
    await rounds();
    expect(await stored()).toEqual([own]);
    open();
    const [, second = ''] = await storedCount(2);
    expect(await inspect(second)).toMatchObject({ entries: 2 });
    await readable('x', 'of ours');
  });

  it('are not waited for when they are corrupt', async () => {
    await around.put(name('self', 1), 'no snapshot');
    await application().put('data', 'k', 'v');
    run();
    await storedCount(2);
    await logged('because none of its snapshots can be used');
  });

  it.each([
    ['corrupt', (late: string) => around.put(late, 'no snapshot'), 'marked as corrupt'],
    [
      'removed before it is loaded',
      async (late: string) => {
        let open = (): void => undefined;
        around.storage.gate.load = new Promise((resolve) => (open = resolve));
        await around.put(late, remote(entry('x', 'late')));
        await until(() => around.storage.calls.includes(`load ${late}`), { what: 'the download' });
        await around.objects.delete(late, { signal });
        open();
      },
      'Snapshot is gone',
    ],
  ])('do not hold uploads up when a late one is %s', async (_, appear, line) => {
    await around.put(name('self', 1), remote(entry('x', 'of ours')));
    run();
    await readable('x', 'of ours');
    await appear(name('self', 2));
    await logged(line);
    await logged('because what is left of its snapshots is merged already');
    await application().put('data', 'k', 'v');
    await until(async () => (await stored()).some((each) => each > name('self', 2)), { what: 'an upload' });
    expect(around.health.report().status).toBe('OK');
  });

  it('are not fetched while we store them', async () => {
    await application().put('data', 'k', '0');
    run();
    await storedCount(1);
    await application().put('data', 'k', '1');
    await storedCount(2);
    await rounds();
    expect(around.storage.calls.filter((call) => call.startsWith('load'))).toEqual([]);
    expect(around.health.report().status).toBe('OK');
  });
});

describe('waiting for others at start', () => {
  it('ends when one of their snapshots is merged, or all are gone', async () => {
    around.storage.failure.load = new Error('no route');
    await around.put(name('a', 1), remote(entry('x', 'of a')));
    await around.put(name('b', 1), remote(entry('y', 'of b')));
    run();
    await until(() => failures()['main_storage_load_failed_duration'] !== undefined, {
      what: 'failed loads',
    });
    await around.objects.delete(name('b', 1), { signal });
    await logged('because its snapshots disappeared');
    await rounds();
    expect(around.health.report().metadata['startup_main']).toBe(false);
    around.storage.failure.load = undefined;
    await readable('x', 'of a');
    await until(() => around.health.report().metadata['startup_main'] === true, {
      what: 'the start is over',
    });
  });

  it('does not keep local changes from being stored', async () => {
    around.storage.failure.load = new Error('no route');
    await around.put(name('a', 1), remote(entry('x', 'of a')));
    await application().put('data', 'k', 'v');
    run();
    await storedCount(1);
    expect(around.health.report().metadata['startup_main']).toBe(false);
  });
});

describe('a second instance of our name', () => {
  const theirs = (): string => name('self', 20 * 365 * 86_400);

  it('is noticed: its snapshot is merged, nothing is uploaded, and health says why', async () => {
    await application().put('data', 'k', 'v');
    const clock = adjustableClock();
    const syncer = run('storage_force_snapshot_interval: 1h', { clock });
    await storedCount(1);
    await around.put(theirs(), remote(entry('x', 'theirs')));
    await readable('x', 'theirs');
    expect(failures()['main_duplicate_instance']).toContain('"self"');
    expect((await syncer.status()).problem).toContain('another running instance');
    await application().put('data', 'k', 'changed');
    await rounds();
    expect(await stored()).toHaveLength(2);
    expect(count('Instance name used twice')).toBe(1);
    // None for a whole force interval.
    clock.advance(3_600_001);
    await storedCount(3);
    expect(around.health.report().ok).toBe(true);
  });

  it('holds uploads up until then, though the LMDB is opened anew', async () => {
    await application().put('data', 'k', 'v');
    const clock = adjustableClock();
    run('storage_force_snapshot_interval: 1h', { clock, lmdb: 'schema_tracks_changes: true' });
    await storedCount(1);
    await around.put(theirs(), remote(entry('x', 'theirs')));
    await readable('x', 'theirs');
    await rename(lmdbPath, around.dir.join('away'));
    await until(() => failures()['main_local_fault'] !== undefined, { what: 'it is missed' });
    await rename(around.dir.join('away'), lmdbPath);
    await until(() => failures()['main_local_fault'] === undefined, { what: 'it is open again' });
    await application().put('data', 'k', 'changed');
    await rounds();
    expect(await stored()).toHaveLength(2);
    expect(Object.keys(failures())).toEqual(['main_duplicate_instance']);
    clock.advance(3_600_001);
    await storedCount(3);
    expect(around.health.report().ok).toBe(true);
  });

  it('does not hold uploads up when ours, older than its, was on its way', async () => {
    around.storage.failure.store = new Error('no space');
    await application().put('data', 'k', 'v');
    const clock = adjustableClock();
    run('storage_force_snapshot_interval: 1h', { clock });
    await logged('Store failed, retrying');
    await around.put(theirs(), remote(entry('x', 'theirs')));
    await readable('x', 'theirs');
    around.storage.failure.store = undefined;
    clock.advance(3_600_001);
    const [, later = ''] = await storedCount(2);
    expect(later > theirs()).toBe(true);
    // Not noticed anew, now that ours is there.
    await application().put('data', 'k', 'changed');
    await storedCount(3);
    await rounds();
    expect(around.health.report().status).toBe('OK');
    expect(count('Instance name used twice')).toBe(1);
  });

  it('is not suspected because a snapshot of an earlier run appears late', async () => {
    await around.put(name('a', 1), remote(entry('y', 'of a')));
    run();
    await readable('y', 'of a');
    await around.put(name('self', 1), remote(entry('x', 'late')));
    await readable('x', 'late');
    await application().put('data', 'k', 'v');
    await storedCount(2);
    expect(around.health.report().ok).toBe(true);
  });
});

describe('an LMDB that cannot be opened', () => {
  it('makes the syncer unhealthy until it can be', async () => {
    run('', { lmdb: 'schema_tracks_changes: true' });
    await until(() => failures()['main_local_fault'] !== undefined, { what: 'unhealthy' });
    expect(failures()['main_local_fault']).toContain(lmdbPath);
    expect(failures()['main_local_fault']).toContain('(ENOENT)');
    await application().put('data', 'k', 'v');
    await storedCount(1);
    expect(around.health.report().ok).toBe(true);
    expect(count('level=error')).toBe(1);
  });

  it('ends only-once with a failure', async () => {
    run('only_once: true', { lmdb: 'schema_tracks_changes: true' });
    expect(await ended).toBe(false);
    expect(count('level=error')).toBe(1);
  });
});

describe('an LMDB whose file is replaced', () => {
  it('is opened anew, and gets back what our snapshots hold', async () => {
    await application().put('data', 'k', 'v');
    run();
    await storedCount(1);
    await logged('Stored snapshot');
    const restored = around.dir.join('restored');
    await using other = new Testkit(restored, { mapSizeBytes: 1 << 20 });
    await other.put('data', 'from the backup', 'b');
    await app?.[Symbol.asyncDispose]();
    app = undefined;
    await rename(join(restored, 'data.mdb'), join(lmdbPath, 'data.mdb'));
    await rename(join(restored, 'lock.mdb'), join(lmdbPath, 'lock.mdb'));
    await logged('was replaced by another file while it was open');
    await readable('k', 'v');
    await readable('from the backup', 'b');
    const [, second = ''] = await storedCount(2);
    expect(await inspect(second)).toMatchObject({ entries: 2 });
    expect(around.health.report().ok).toBe(true);
    expect(count('level=error')).toBe(1);
  });

  it('makes the syncer unhealthy while it is missing', async () => {
    await application().put('data', 'k', 'v');
    run('', { lmdb: 'schema_tracks_changes: true' });
    await storedCount(1);
    await rename(lmdbPath, around.dir.join('away'));
    await until(() => failures()['main_local_fault']?.includes('was removed while it was open'), {
      what: 'unhealthy',
    });
    await rename(around.dir.join('away'), lmdbPath);
    await until(() => around.health.report().ok, { what: 'health is good again' });
  });
});

describe('only-once', () => {
  it('merges what is there, stores what is here, and ends', async () => {
    await application().put('data', 'k', 'v');
    await around.put(name('a', 1), remote(entry('x', 'of a')));
    await around.put(name('b', 1), remote(entry('y', 'of b')));
    run('only_once: true');
    expect(await ended).toBe(true);
    await readable('x', 'of a');
    await readable('y', 'of b');
    expect(await stored()).not.toEqual([]);
    expect(
      (await readdir(join(around.dir.path, 'spool'), { recursive: true })).filter((each) =>
        each.includes('main__'),
      ),
    ).toEqual([]);
  });

  it('ends well with an empty LMDB and an empty storage', async () => {
    run('only_once: true');
    expect(await ended).toBe(true);
    expect(await stored()).toEqual([]);
  });

  it('ends well when a snapshot is merely corrupt', async () => {
    await around.put(name('a', 1), 'no snapshot');
    run('only_once: true');
    expect(await ended).toBe(true);
  });

  it('ends badly when a snapshot cannot be merged, after all others were', async () => {
    await around.put(name('a', 1), snapshot({ data: [entry('x', 'a')] }, { compatVersion: 9 }));
    await around.put(name('b', 1), remote(entry('y', 'of b')));
    run('only_once: true');
    expect(await ended).toBe(false);
    await readable('y', 'of b');
    expect(await application().get('data', 'x')).toBeUndefined();
  });

  it.each([
    ['a local value has no header', hex('short')],
    ['a local value has an unknown header', '00'.repeat(16) + '01' + '00'.repeat(7)],
  ])('ends badly when %s', async (_, value) => {
    await application().call({ op: 'raw', dbi: 'data', key: hex('k'), value });
    run('only_once: true');
    expect(await ended).toBe(false);
    expect(await stored()).toEqual([]);
  });

  it('ends badly when the map is full, and names the LMDB and the snapshot', async () => {
    const big = 'x'.repeat(600_000);
    await application().put('data', 'mine', big);
    await around.put(name('a', 1), remote(entry('theirs', big)));
    run('only_once: true');
    expect(await ended).toBe(false);
    const line = around.log.text().match(/^.*level=error.*$/m)?.[0] ?? '';
    expect(line).toContain(lmdbPath);
    expect(line).toContain(name('a', 1));
    expect(line).toContain('MDB_MAP_FULL');
  });

  it('ends badly when the snapshot could not be stored', async () => {
    around.storage.failure.store = new Error('no space');
    await application().put('data', 'k', 'v');
    run('only_once: true\nstorage_retry_count: 2');
    expect(await ended).toBe(false);
    expect(around.storage.calls.filter((call) => call.startsWith('store'))).toHaveLength(2);
  });

  it('ends, too, when the storage cannot be listed', async () => {
    around.storage.failure.list = new Error('no route');
    await application().put('data', 'k', 'v');
    run('only_once: true');
    expect(await ended).toBe(false);
    expect(count('Sync failed')).toBe(1);
  });

  it('gives up when a snapshot cannot be loaded after storage_retry_count attempts', async () => {
    await around.put(name('a', 1), remote(entry('x', 'one')));
    around.storage.failure.load = new Error('no permission');
    run('only_once: true\nstorage_retry_count: 2');
    expect(await ended).toBe(false);
    const loads = around.storage.calls.filter((call) => call.startsWith('load'));
    expect(loads.length).toBeGreaterThanOrEqual(2);
    expect(count('Load failed, retrying')).toBe(1);
  });

  it('tries a failed upload again', async () => {
    around.storage.failure.store = new Error('no space');
    await application().put('data', 'k', 'v');
    run('only_once: true');
    await logged('Store failed, retrying');
    around.storage.failure.store = undefined;
    expect(await ended).toBe(true);
    expect(await stored()).toHaveLength(1);
  });
});

describe('the end', () => {
  it('comes quietly, also while a merge waits for the write lock', async () => {
    await application().put('data', 'k', 'v');
    await application().call({ op: 'lock' });
    const calls: string[] = [];
    await around.put(name('a', 1), remote(entry('x', 'remote')));
    run('', { native: observed(async () => undefined, calls) });
    await until(() => calls.includes('merge'), { what: 'the merge' });
    around.abort.abort(new Error('the end'));
    expect(await ended).toBe(true);
    await application().call({ op: 'unlock' });
    expect(around.log.text()).not.toContain('level=error');
  });

  it('does not wait for the storage, and leaves nothing in the spool', async () => {
    run();
    await logged('LMDB is empty');
    for (const operation of ['load', 'store', 'list'] as const) {
      around.storage.gate[operation] = new Promise(() => undefined);
      if (operation === 'load') await around.put(name('a', 1), remote(entry('x', 'remote')));
      if (operation === 'store') await application().put('data', 'k', 'v');
      const seen = around.storage.calls.length;
      await until(() => around.storage.calls.slice(seen - 1).some((call) => call.startsWith(operation)), {
        what: operation,
      });
    }
    around.abort.abort(new Error('the end'));
    expect(await ended).toBe(true);
    const [own = ''] = await readdir(around.spool.base);
    expect(await readdir(join(around.spool.base, own))).toEqual(['lock']);
    expect(await stored()).toEqual([]);
    expect(around.log.text()).not.toMatch(/level=(warning|error)\b.*(failed|retrying)/i);
  });

  it('leaves the path free to be opened again', async () => {
    await application().put('data', 'k', 'v');
    run();
    await storedCount(1);
    around.abort.abort(new Error('the end'));
    expect(await ended).toBe(true);
    await native
      .openEnvironment(lmdbPath, {
        noSubdir: false,
        create: false,
        dirMask: 0o775,
        fileMask: 0o664,
        mapSizeBytes: 0,
        maxDbs: 64,
      })
      .close();
  });
});

describe('watchFile', () => {
  it('hints at a commit, again a little later, and no more when it is ended', async () => {
    await application().put('data', 'k', '0');
    const hints: number[] = [];
    const end = watchFile(join(lmdbPath, 'data.mdb'), () => hints.push(performance.now()));
    await application().put('data', 'k', '1');
    await until(() => hints.length > 1 && hints.at(-1)! - hints[0]! >= 4, { what: 'a late hint' });
    end();
    hints.length = 0;
    await application().put('data', 'k', '2');
    await application().put('data', 'k', '3');
    expect(hints).toEqual([]);
  });

  it('does without what cannot be watched', () => {
    watchFile(around.dir.join('nosuch'), () => undefined)();
  });
});

describe('lmdb_log_stats_interval', () => {
  it.each(['0', '-1s'])('%s means off', async (interval) => {
    await application().put('data', 'k', 'v');
    run(`lmdb_log_stats_interval: ${interval}`);
    await storedCount(1);
    await rounds();
    expect(count('LMDB stats')).toBe(0);
  });

  it('is how often the state of the LMDB is logged', async () => {
    const clock = adjustableClock();
    await application().put('data', 'k', 'v');
    run('lmdb_log_stats_interval: 1h', { clock });
    await storedCount(1);
    expect(count('LMDB stats')).toBe(0);
    clock.advance(3_600_001);
    await logged('LMDB stats');
    await rounds();
    expect(count('LMDB stats')).toBe(1);
  });

  it.each<[string, () => Promise<never>]>([
    ['never come', () => new Promise(() => undefined)],
    ['cannot be had', () => Promise.reject(new LightningStreamError('MDB_INCOMPATIBLE', 'of another kind'))],
  ])('does not stop the loop when figures %s', async (_, outcome) => {
    const clock = adjustableClock();
    const calls: string[] = [];
    await application().put('data', 'k', 'v');
    run('lmdb_log_stats_interval: 1h', { clock, native: withStats(outcome, calls) });
    await storedCount(1);
    clock.advance(3_600_001);
    await until(() => calls.includes('stats'), { what: 'asked for figures' });
    await application().put('data', 'k', 'changed');
    await storedCount(2);
    expect(count('Env info')).toBe(1);
    expect(around.health.report().ok).toBe(true);
  });
});

describe('status', () => {
  it('comes without figures when the LMDB is too busy, and asks it once only', async () => {
    const calls: string[] = [];
    const busy = Promise.withResolvers<never>();
    const syncer = run('', { native: withStats(() => busy.promise, calls) });
    await logged('LMDB is empty, waiting for data');
    const [first, second] = await Promise.all([syncer.status(), syncer.status()]);
    expect(first).toMatchObject({ phase: 'waiting', stats: undefined });
    expect(second?.stats).toBeUndefined();
    expect(calls).toEqual(['stats']);
  });

  it('shows what was stored, seen and merged', async () => {
    await application().put('data', 'k', 'v');
    await around.put(name('a', 1), remote(entry('x', 'of a')));
    const syncer = run();
    await readable('x', 'of a');
    const [first = ''] = await storedCount(1);
    const status = await until(
      async () => {
        const now = await syncer.status();
        return now.lastStored !== undefined && now.instances.length === 2 && now;
      },
      { what: 'both instances are known' },
    );
    expect(status).toMatchObject({
      name: 'main',
      path: lmdbPath,
      problem: undefined,
      lastStored: { name: first },
    });
    expect(status.stats?.dbis.map((dbi) => dbi.name)).toEqual(['data']);
    const seen = { name: name('a', 1), timestampMs: Date.UTC(2026, 0, 1, 0, 0, 1) };
    expect(status.instances[0]).toEqual({ instance: 'a', own: false, newestSeen: seen, lastMerged: seen });
    expect(status.instances[1]).toMatchObject({ instance: 'self', own: true, lastMerged: undefined });
    around.abort.abort(new Error('the end'));
    await ended;
    expect((await syncer.status()).phase).toBe('stopped');
  });
});

describe('deletedCutoffNano', () => {
  const sweeper = (changes: Partial<SweeperConfig>): SweeperConfig => ({
    enabled: true,
    retentionDays: 100,
    intervalMs: 1,
    firstIntervalMs: 1,
    lockDurationMs: 1,
    releaseDurationMs: 1,
    retentionLoadCutoffDurationMs: 0,
    ...changes,
  });
  const now = at(0);
  const daysBefore = (days: number): bigint => now - BigInt(days * 86_400) * 1_000_000_000n;

  it.each([
    ['lets all pass while the sweeper is off', { enabled: false }, 0n],
    ['is retention minus one percent', {}, daysBefore(99)],
    [
      'is retention minus the configured margin',
      { retentionLoadCutoffDurationMs: 10 * 86_400_000 },
      daysBefore(90),
    ],
    ['has a margin of 75 % at most', { retentionLoadCutoffDurationMs: 90 * 86_400_000 }, daysBefore(25)],
    [
      'takes parts of days',
      { retentionDays: 0.5, retentionLoadCutoffDurationMs: 6 * 3_600_000 },
      daysBefore(0.25),
    ],
    ['lets all pass when retention begins before 1970', { retentionDays: 40_000 }, 0n],
  ])('%s', (_, changes, expected) => {
    expect(deletedCutoffNano(sweeper(changes), now)).toBe(expected);
  });
});

async function inspect(object: string): ReturnType<Native['inspectSnapshot']> {
  const path = around.dir.join('inspected');
  await around.objects.load(object, path, { signal });
  return native.inspectSnapshot(path);
}

function hex(text: string): string {
  return Buffer.from(text).toString('hex');
}
