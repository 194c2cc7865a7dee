import { readdir, writeFile } from 'node:fs/promises';
import { createServer, type AddressInfo } from 'node:net';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { loadNative } from '../../src/native/index.ts';
import { createHealth } from '../../src/observability/health.ts';
import { createLogger } from '../../src/observability/logger.ts';
import { createMetrics } from '../../src/observability/metrics.ts';
import { FsStorage } from '../../src/storage/fs.ts';
import { MemoryStorage } from '../../src/storage/memory.ts';
import type { Storage } from '../../src/storage/storage.ts';
import { type DaemonOptions, runDaemon } from '../../src/sync/daemon.ts';
import { freePort, type TempDir, tempDir, until } from '../helpers/process.ts';
import { Testkit } from '../helpers/testkit.ts';
import { config, TroubledStorage } from './sync-helpers.ts';

const native = loadNative();
let dir: TempDir;
let output: string;
let abort: AbortController;
let ended: Promise<unknown>[];
let closing: AsyncDisposable[];

beforeEach(async () => {
  dir = await tempDir();
  output = '';
  abort = new AbortController();
  ended = [];
  closing = [];
});

afterEach(async () => {
  abort.abort(new Error('the test is over'));
  await Promise.allSettled(ended);
  for (const each of closing) await each[Symbol.asyncDispose]();
  await dir[Symbol.asyncDispose]();
});

function application(lmdb: string): Testkit {
  const app = new Testkit(dir.join(lmdb), { mapSizeBytes: 1 << 20 });
  closing.push(app);
  return app;
}

async function openStorage(): Promise<Storage> {
  const { logger } = log();
  const tryLock = (path: string) => native.tryLock(path);
  const storage = await FsStorage.open({ rootPath: dir.join('storage'), tryLock, logger });
  closing.push({ [Symbol.asyncDispose]: () => storage.close() });
  return storage;
}

function log() {
  const write = (text: string) => (output += text);
  return { logger: createLogger({ level: 'debug', format: 'logfmt', timestamp: 'disable' }, { write }) };
}

const lmdb = (at: string): string =>
  `{path: ${dir.join(at)}, schema_tracks_changes: true, options: {create: true, map_size: 1MB}}`;

/** Runs a daemon with databases `main` (and others given) and its own spool. */
async function run(
  extra: string,
  options: Partial<DaemonOptions> = {},
  lmdbs = `main: ${lmdb('main')}`,
): Promise<number> {
  const running = runDaemon({
    config: config(extra, lmdbs),
    mode: 'sync',
    onlyDbs: [],
    spoolPlaces: { configured: dir.join('spool'), cacheDirectory: undefined, temporaryDirectory: dir.path },
    native,
    storage: await openStorage(),
    metrics: createMetrics({ scrapeSmaps: false }),
    health: createHealth(Date.now),
    signal: abort.signal,
    ...log(),
    ...options,
  });
  ended.push(running);
  return running;
}

const objects = async (): Promise<string[]> =>
  (await readdir(dir.join('storage')).catch(() => [])).filter((each) => !each.endsWith('.tmp')).sort();

async function put(object: string, content: Uint8Array | string): Promise<void> {
  const storage = await openStorage();
  await writeFile(dir.join('source'), content);
  await storage.store(object, dir.join('source'), { signal: abort.signal });
}

describe('runDaemon', () => {
  it('runs one syncer for each LMDB, and leaves nothing in the spool', async () => {
    await application('main').put('data', 'k', 'v');
    await application('other').put('data', 'k', 'v');
    expect(await run('only_once: true', {}, `main: ${lmdb('main')}, other: ${lmdb('other')}`)).toBe(0);
    expect((await objects()).map((each) => each.split('__').slice(0, 2))).toEqual([
      ['main', 'self'],
      ['other', 'self'],
    ]);
    expect(await readdir(dir.join('spool'))).toEqual([]);
    expect((await readdir(dir.join('storage'))).filter((each) => each.endsWith('.tmp'))).toEqual([]);
  });

  it.each([
    ['all databases at once, where that is one request', [], ['page ']],
    ['its only database', ['other'], ['list other__']],
  ])('lists %s', async (_, onlyDbs, expected) => {
    const objects = new MemoryStorage();
    const calls: string[] = [];
    const storage: Storage = {
      type: 'memory',
      location: 'memory',
      list: (prefix, options) => {
        calls.push(`list ${prefix}`);
        return objects.list(prefix, options);
      },
      listPage: (prefix, options) => {
        calls.push(`page ${prefix}`);
        return objects.list(prefix, options);
      },
      load: (...call) => objects.load(...call),
      store: (...call) => objects.store(...call),
      delete: (...call) => objects.delete(...call),
      close: () => objects.close(),
    };
    await application('main').put('data', 'k', 'v');
    await application('other').put('data', 'k', 'v');
    const lmdbs = `main: ${lmdb('main')}, other: ${lmdb('other')}`;
    void run('storage_poll_interval: 100ms', { storage, onlyDbs }, lmdbs);
    await until(() => calls.length > 5, { what: 'some listings' });
    expect([...new Set(calls)]).toEqual(expected);
  });

  it('works on the databases of --only-db alone', async () => {
    await application('main').put('data', 'k', 'v');
    await application('other').put('data', 'k', 'v');
    const lmdbs = `main: ${lmdb('main')}, other: ${lmdb('other')}`;
    expect(await run('only_once: true', { onlyDbs: ['other'] }, lmdbs)).toBe(0);
    expect((await objects()).map((each) => each.split('__')[0])).toEqual(['other']);
  });

  it('goes on with the other databases when one cannot be opened', async () => {
    await application('main').put('data', 'k', 'v');
    const health = createHealth(Date.now);
    const running = run(
      '',
      { health },
      `bad: {path: ${dir.join('nosuch')}, schema_tracks_changes: true}, main: ${lmdb('main')}`,
    );
    await until(async () => (await objects()).length === 1, { what: 'a snapshot of main' });
    expect(Object.keys(health.report().failures)).toEqual(['bad_local_fault']);
    await application('main').put('data', 'k', 'changed');
    await until(async () => (await objects()).length === 2, { what: 'a second snapshot of main' });
    abort.abort(new Error('the end'));
    expect(await running).toBe(0);
  });

  it('gives exit code 1 when only-once failed for one of them', async () => {
    await application('main').put('data', 'k', 'v');
    const lmdbs = `bad: {path: ${dir.join('nosuch')}, schema_tracks_changes: true}, main: ${lmdb('main')}`;
    expect(await run('only_once: true', {}, lmdbs)).toBe(1);
    expect(await objects()).toHaveLength(1);
  });

  it('waits for the marker file before anything else', async () => {
    await application('main').put('data', 'k', 'v');
    const running = run('only_once: true', { waitForMarkerFile: 'go' });
    await until(() => output.includes('is not there yet'), { what: 'it waits' });
    await put('gone', 'a longer name is another object');
    expect(output).not.toContain('Env info');
    await put('go', '');
    expect(await running).toBe(0);
    expect((await objects()).filter((each) => each.startsWith('main__'))).toHaveLength(1);
  });

  it('ends with 0 when the signal comes while it waits for the marker file', async () => {
    const running = run('', { waitForMarkerFile: 'go' });
    await until(() => output.includes('is not there yet'), { what: 'it waits' });
    abort.abort(new Error('the end'));
    expect(await running).toBe(0);
    expect(await readdir(dir.join('spool'))).toEqual([]);
  });

  it('shows in health that the storage cannot be asked for the marker file, says so once, and goes on by itself', async () => {
    let nowMs = 0;
    const health = createHealth(() => nowMs);
    const storage = new TroubledStorage(new MemoryStorage());
    const answer = Promise.withResolvers<void>();
    storage.gate.list = answer.promise;
    const running = run('only_once: true', { waitForMarkerFile: 'go', health, storage });
    await until(() => storage.calls.length === 1, { what: 'a call that hangs' });
    nowMs += 300_000;
    const failure = (): string | undefined =>
      health.report().failures['wait_for_marker_file_failed_duration'];
    expect(failure()).toMatch(/^trying to .* for 5m0s, without an answer$/);
    storage.failure.list = new Error('no route');
    answer.resolve();
    await until(() => storage.calls.length >= 4, { what: 'more attempts' });
    expect(failure()).toMatch(/ for 5m0s - last error: 'no route'$/);
    storage.failure.list = undefined;
    await until(() => output.includes('is not there yet'), { what: 'it waits' });
    expect(failure()).toBeUndefined();
    expect(output.match(/Unable to check the storage/g)).toHaveLength(1);
    await writeFile(dir.join('go'), '');
    await storage.store('go', dir.join('go'), { signal: abort.signal });
    expect(await running).toBe(0);
  });

  it('has its spool in the cache directory when none is configured', async () => {
    const spoolPlaces = {
      configured: '',
      cacheDirectory: dir.join('cache'),
      temporaryDirectory: dir.path,
    };
    const running = run('', { spoolPlaces, waitForMarkerFile: 'go' });
    await until(() => output.includes('is not there yet'), { what: 'it waits' });
    expect(await readdir(dir.join('cache'))).toHaveLength(1);
    abort.abort(new Error('the end'));
    expect(await running).toBe(0);
  });

  it('serves health, metrics and status while it runs', async () => {
    await application('main').put('data', 'k', 'v', { timestampNano: 5n });
    const port = await freePort();
    const running = run(`http: {address: "127.0.0.1:${port}"}`);
    const get = async (path: string) => (await fetch(`http://127.0.0.1:${port}${path}`)).text();
    await until(async () => (await get('/healthz')).includes('"startup_main":true'), {
      what: 'the start is over',
    });
    const health = JSON.parse(await get('/healthz')) as { ok: boolean; metadata: Record<string, unknown> };
    expect(health.ok).toBe(true);
    expect(health.metadata).toMatchObject({
      hostname: expect.any(String) as string,
      version: expect.any(String) as string,
      // By xxhsum of the bytes that docs/verify.md tells.
      digest_all_main: '68da879d1cd984aaf5077fafbe588eb6',
      digest_live_main: '68da879d1cd984aaf5077fafbe588eb6',
      digest_snapshot_main: expect.stringMatching(/^main__self__/) as string,
    });
    expect(await get('/metrics')).toContain('lmdb_env_last_tnx_id{lmdb="main"} 1');
    const page = await get('/');
    expect(page).toContain('main__self__');
    expect(await get('/storage')).toContain('main__self__');
    abort.abort(new Error('the end'));
    expect(await running).toBe(0);
    await expect(get('/healthz')).rejects.toThrow('fetch failed');
  });

  it('serves nothing with only-once', async () => {
    const other = createServer();
    await new Promise<void>((resolve) => other.listen(0, '127.0.0.1', resolve));
    try {
      const { port } = other.address() as AddressInfo;
      // Somebody else has the port: to serve would fail.
      const http = `http: {address: "127.0.0.1:${port}"}`;
      expect(await run(`only_once: true\n${http}`)).toBe(0);
      await expect(run(http)).rejects.toMatchObject({ code: 'HTTP_ADDRESS' });
      expect(await readdir(dir.join('spool'))).toEqual([]);
    } finally {
      other.close();
    }
  });

  it('brings a change from one instance to another without waiting for a poll', async () => {
    const a = application('a');
    const b = application('b');
    await a.put('data', 'k', '0');
    // Only hints can be as fast; the regular looks at the storage come once an hour.
    const slow = 'storage_poll_interval: 1h\nlmdb_poll_interval: 100ms\nstorage_force_snapshot_interval: 0\n';
    void run(`instance: a\n${slow}`, {}, `main: ${lmdb('a')}`);
    void run(`instance: b\n${slow}`, {}, `main: ${lmdb('b')}`);
    const arrives = (where: Testkit, value: string): Promise<unknown> =>
      until(async () => (await where.get('data', 'k'))?.value === value, { what: value, intervalMs: 2 });
    await arrives(b, '0');
    for (const value of ['1', '2', '3']) {
      await a.put('data', 'k', `${value} of a`);
      await arrives(b, `${value} of a`);
      await b.put('data', 'k', `${value} of b`);
      await arrives(a, `${value} of b`);
    }
  });
});
