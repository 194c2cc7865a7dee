/** Starting, stopping, starting again: what is published and merged when, and how single runs end. */
import { readdirSync, readFileSync } from 'node:fs';
import { chmod, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { spawnSync } from 'node:child_process';
import { describe, expect, test } from 'vitest';
import { until } from '../helpers/process.ts';
import { Testkit } from '../helpers/testkit.ts';
import { cluster, DBI, type Instance, isRoot, objectName, spoolDirectories } from './helpers.ts';
import { member, snapshot } from './snapshot-maker.ts';

const ONCE = ['sync', '--only-once'];
const canUnshare = isRoot && spawnSync('unshare', ['--pid', '--fork', '--mount-proc', 'true']).status === 0;

describe('our own snapshots', () => {
  test('an emptied instance gets its data back before it publishes anything', async () => {
    await using net = await cluster(1);
    const a = net.instance('a');
    await a.app.put(DBI, 'precious', 'data');
    await net.start();
    await a.logged('Stored snapshot');
    await a.stop();
    await a.stopApp();
    for (const path of [a.lmdbPath, `${a.lmdbPath}-lock`]) await rm(path);
    const before = net.objects();
    // The application is there first, with something new.
    await a.app.put(DBI, 'new', 'start');
    await a.start();
    await a.has('precious', 'data');
    await a.logged('Stored snapshot');
    const [merged, stored] = ['Loaded remote update', 'Stored snapshot'].map((message) =>
      a.log().findIndex(({ msg }) => msg === message),
    );
    expect(merged).toBeLessThan(stored ?? 0);
    expect(merged).toBeGreaterThanOrEqual(0);
    const added = net.objects().filter((name) => !before.includes(name));
    expect(added.length).toBeGreaterThan(0);
    // What it publishes then has both.
    await using other = new Testkit(join(a.directory, 'other.mdb'), { noSubdir: true });
    const path = join(a.directory, 'other.mdb');
    await a.run({
      args: ['receive', '--only-once'],
      config: { instance: 'reader', lmdbs: { main: { path } } },
    });
    expect(await other.get(DBI, 'precious')).toMatchObject({ value: 'data' });
    expect(await other.get(DBI, 'new')).toMatchObject({ value: 'start' });
  });

  test('while ours cannot be fetched, nothing is published', async () => {
    await using net = await cluster(1);
    const a = net.instance('a');
    const ours = objectName('a', { timestampNano: 5_000_000_000n });
    await net.upload(ours, member(snapshot(DBI, [{ key: 'precious', value: 'data', timestampNano: 5n }])));
    await a.app.put(DBI, 'new', 'start');
    await chmod(join(net.storagePath, ours), 0);
    await a.start({ unprivileged: true });
    await a.logged('Load failed, retrying', ({ filename }) => filename === ours);
    await a.logged('Waiting to merge our own older snapshot before storing a new one');
    await a.app.put(DBI, 'more', 'changes');
    await until(async () => (await a.metric('lightningstream_syncer_snapshots_load_failed_total')) > 3, {
      what: 'it is tried again and again',
    });
    expect(net.objects()).toEqual([ours]);
    await chmod(join(net.storagePath, ours), 0o644);
    await a.has('precious', 'data');
    await a.logged('Stored snapshot');
  });

  test('a corrupt one does not hold us up for ever', async () => {
    await using net = await cluster(1);
    const a = net.instance('a');
    await net.upload(objectName('a', { timestampNano: 5_000_000_000n }), Buffer.from('not a snapshot'));
    await a.app.put(DBI, 'key', 'value');
    await a.start();
    await a.logged('Snapshot marked as corrupt and will be ignored');
    await a.logged('No longer waiting for instance, because none of its snapshots can be used');
    await a.logged('Stored snapshot');
  });
});

describe('publishing', () => {
  test('a change made while the daemon was down is published at the start', async () => {
    await using net = await cluster(2);
    const [a, b] = [net.instance('a'), net.instance('b')];
    await a.app.put(DBI, 'key', 'one');
    await net.start();
    await b.has('key', 'one');
    await a.stop();
    await a.app.put(DBI, 'key', 'two');
    await a.start();
    await b.has('key', 'two');
  });

  test('merging never causes an upload', async () => {
    await using net = await cluster(2);
    const [a, b] = [net.instance('a'), net.instance('b')];
    await a.app.put(DBI, 'key', '0');
    await net.start();
    for (let round = 1; round <= 5; round++) {
      await a.app.put(DBI, 'key', `${round}`);
      await b.has('key', `${round}`);
    }
    await b.app.put(DBI, 'last', 'word');
    await a.has('last', 'word');
    // One of b's own making; before it, at most one at its start.
    expect(net.objects('b').length).toBeLessThanOrEqual(2);
    expect(net.objects('a')).toHaveLength(
      await a.metric('lightningstream_syncer_snapshots_store_calls_total'),
    );
  });

  test('an LMDB without data is never published, and says so once', async () => {
    await using net = await cluster(2);
    await net.start();
    const [a, b] = [net.instance('a'), net.instance('b')];
    await a.app.put(DBI, 'key', 'value');
    await b.has('key', 'value');
    expect(net.objects('b')).toEqual([]);
    expect(b.log().filter(({ msg }) => msg.startsWith('LMDB is empty'))).toHaveLength(1);
  });

  test('receive merges and never uploads', async () => {
    await using net = await cluster(2, { storage_force_snapshot_interval: '1m' });
    const [a, b] = [net.instance('a'), net.instance('b')];
    await b.app.put(DBI, 'local', 'stays');
    await a.app.put(DBI, 'key', 'one');
    await a.start();
    await b.start({ args: ['receive'] });
    await b.has('key', 'one');
    await b.app.put(DBI, 'more', 'local');
    await a.app.put(DBI, 'key', 'two');
    await b.has('key', 'two');
    expect(await b.metric('lightningstream_syncer_snapshots_store_calls_total')).toBe(0);
    expect(net.objects('b')).toEqual([]);
    expect(await a.app.get(DBI, 'local')).toBeUndefined();
  });
});

describe('--only-once', () => {
  test('merges all, publishes, and ends with 0; the HTTP server is not started', async () => {
    await using net = await cluster(3);
    const [a, b, c] = [net.instance('a'), net.instance('b'), net.instance('c')];
    for (const { app, name } of [a, b]) await app.put(DBI, `from-${name}`, name);
    expect(await a.run({ args: ONCE })).toMatchObject({ code: 0 });
    expect(await b.run({ args: ONCE })).toMatchObject({ code: 0 });
    const { code, stderr } = await c.run({ args: ONCE });
    expect(code).toBe(0);
    for (const name of ['a', 'b'])
      expect(await c.app.get(DBI, `from-${name}`)).toMatchObject({ value: name });
    expect(stderr).not.toContain(c.address);
    expect(net.objects('a')).toHaveLength(1);
    // c wrote nothing of its own.
    expect(net.objects('c')).toEqual([]);
    expect([a, b, c].flatMap(spoolDirectories)).toEqual([]);
    // Its address is free: another server may have it.
    await using blocker = await occupied(c);
    expect(await c.run({ args: ONCE })).toMatchObject({ code: 0 });
    expect(blocker.requests).toBe(0);
  });

  test('ends with 1 when a snapshot cannot be merged, and with 0 when one is merely corrupt', async () => {
    await using net = await cluster(1);
    const a = net.instance('a');
    await net.upload(objectName('corrupt'), Buffer.from('nonsense'));
    await net.upload(
      objectName('fine'),
      member(snapshot(DBI, [{ key: 'k', value: 'v', timestampNano: 5n }])),
    );
    expect(await a.run({ args: ['receive', '--only-once'] })).toMatchObject({ code: 0 });
    expect(await a.app.get(DBI, 'k')).toMatchObject({ value: 'v' });
    await net.upload(
      objectName('refused'),
      member(snapshot(DBI, [{ key: '', value: 'v', timestampNano: 5n }])),
    );
    const { code, stderr } = await a.run({ args: ['receive', '--only-once'] });
    expect(code).toBe(1);
    expect(stderr).toContain('set aside');
  });

  test('ends with 1 when the LMDB cannot be opened or the snapshot not be stored', async () => {
    await using net = await cluster(1, { storage_retry_count: 2 });
    const a = net.instance('a');
    const missing = { lmdbs: { main: { options: { create: false } } } };
    const first = await a.run({ args: ONCE, config: missing });
    expect(first.code).toBe(1);
    expect(first.stderr).toMatch(/ENOENT|no such file/i);

    await a.app.put(DBI, 'key', 'value');
    await chmod(net.storagePath, 0o555);
    const second = await a.run({ args: ONCE, unprivileged: true });
    expect(second.code).toBe(1);
    expect(second.stderr).toMatch(/permission denied/i);

    await chmod(net.storagePath, 0o755);
    await a.app.call({ op: 'raw', dbi: DBI, key: '6b', value: '00' });
    const third = await a.run({ args: ONCE });
    expect(third.code).toBe(1);
    expect(third.stderr).toMatch(/header/i);
    expect(net.objects()).toEqual([]);
  });

  test('--only-db leaves the others alone', async () => {
    await using net = await cluster(1);
    const a = net.instance('a');
    const path = join(a.directory, 'other.mdb');
    await using other = new Testkit(path, { noSubdir: true });
    await Promise.all([a.app, other].map((app) => app.put(DBI, 'key', 'value')));
    const lmdbs = { other: { path, schema_tracks_changes: true, options: { no_subdir: true } } };
    const { code } = await a.run({ args: [...ONCE, '--only-db', 'other'], config: { lmdbs } });
    expect(code).toBe(0);
    expect(net.objects().map((name) => name.split('__')[0])).toEqual(['other']);
    const wrong = await a.run({ args: [...ONCE, '--only-db', 'nonesuch'], config: { lmdbs } });
    expect(wrong).toMatchObject({
      code: 2,
      stderr: expect.stringMatching(/nonesuch.*main, other/) as unknown,
    });
  });
});

describe('global flags', () => {
  test('--timeout ends with 75, cleanly', async () => {
    await using net = await cluster(1);
    const a = net.instance('a');
    await a.app.put(DBI, 'key', 'value');
    const { code, stderr } = await a.run({ args: ['--timeout', '1s', 'sync'] });
    expect(code).toBe(75);
    expect(stderr.trim().split('\n').at(-1)).toBe('lightningstream: not done after 1s (--timeout)');
    expect(spoolDirectories(a)).toEqual([]);
    expect(net.objects('a')).toHaveLength(1);
    expect(await a.run({ args: ['--timeout', '1m', ...ONCE] })).toMatchObject({ code: 0 });
  });

  test('--wait-for-marker-file: nothing happens before the object is there', async () => {
    await using net = await cluster(2);
    const [a, b] = [net.instance('a'), net.instance('b')];
    await b.app.put(DBI, 'from-b', '1');
    await b.start();
    await b.logged('Stored snapshot');
    await a.app.put(DBI, 'from-a', '1');
    await a.start({ args: ['sync', '--wait-for-marker-file', 'go'] });
    await a.logged("Waiting for marker file 'go' to be present in the storage");
    await net.upload('go-not', Buffer.from(''));
    // Looked at twice: the second look began after that object was there.
    const looks = (): number =>
      a.log().filter(({ msg }) => msg === "Marker file 'go' is not there yet").length;
    const before = looks();
    await until(() => looks() >= before + 2, { what: 'two more looks for the marker' });
    expect((await a.health()).httpStatus).toBe(200);
    expect(await a.app.get(DBI, 'from-b')).toBeUndefined();
    expect(net.objects('a')).toEqual([]);
    await net.upload('go', Buffer.from(''));
    await a.has('from-b', '1');
    await b.has('from-a', '1');
  });

  test.skipIf(!canUnshare)(
    '--minimum-pid: the work is done by a process whose id is high enough',
    async () => {
      await using net = await cluster(1);
      const a = net.instance('a');
      await a.app.put(DBI, 'key', 'value');
      // A pid namespace of its own, as in a container.
      const wrapper = ['unshare', '--pid', '--fork', '--kill-child', '--mount-proc'];
      await a.start({ args: ['--minimum-pid', '60', 'sync'], wrapper });
      await a.logged('Stored snapshot');
      const [directory = ''] = spoolDirectories(a);
      const pid = Number(/pid (\d+)/.exec(readFileSync(join(a.spoolPath, directory, 'lock'), 'utf8'))?.[1]);
      expect(pid).toBeGreaterThanOrEqual(60);
      expect(pid).toBeLessThan(200);
      // The first process passes the signal on and ends with the code of the one that works.
      const inside = readFileSync(`/proc/${a.daemon.pid}/task/${a.daemon.pid}/children`, 'utf8').trim();
      process.kill(Number(inside), 'SIGTERM');
      expect(await a.daemon.exited).toMatchObject({ code: 0 });
      expect(readdirSync(a.spoolPath)).toEqual([]);
    },
  );

  test.each([
    [{ storage_poll_intervall: '1s' }, /storage_poll_intervall/],
    [{ lmdb_poll_interval: 'soon' }, /lmdb_poll_interval.*soon/],
    [{ memory_downloaded_snapshots: 0 }, /memory_downloaded_snapshots/],
    [{ storage: { type: 'tape' } }, /storage\.type.*tape/],
    [{ instance: '', http: { address: 'nowhere' } }, /http\.address|nowhere/],
  ])('a mistake in the configuration, %j: one line, no start', async (config, expected) => {
    await using net = await cluster(1);
    const a = net.instance('a');
    await a.app.put(DBI, 'key', 'value');
    const { code, stderr } = await a.run({ config });
    expect(code).toBe(1);
    const lines = stderr
      .trim()
      .split('\n')
      .filter((line) => !line.startsWith('{'));
    expect(lines).toEqual([expect.stringMatching(expected)]);
    expect(net.objects()).toEqual([]);
  });
});

/** Somebody else's server on the daemon's address. */
async function occupied(instance: Instance): Promise<AsyncDisposable & { readonly requests: number }> {
  const { createServer } = await import('node:http');
  const counter = { requests: 0 };
  const server = createServer((_request, response) => {
    counter.requests++;
    response.end();
  });
  const [host = '', port] = instance.address.split(':');
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject).listen(Number(port), host, resolve);
  });
  return {
    get requests() {
      return counter.requests;
    },
    async [Symbol.asyncDispose]() {
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
