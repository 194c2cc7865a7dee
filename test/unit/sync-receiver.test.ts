import { readdir, readFile } from 'node:fs/promises';
import { basename, dirname } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { createHealth } from '../../src/observability/health.ts';
import { parseSnapshotName, type SnapshotName } from '../../src/snapshot/name.ts';
import { type ReadySnapshot, Receiver } from '../../src/sync/receiver.ts';
import { type CallOptions, StorageError } from '../../src/storage/storage.ts';
import { systemClock } from '../../src/sync/wait.ts';
import { until } from '../helpers/process.ts';
import { adjustableClock, config, name, type Surroundings, surroundings } from './sync-helpers.ts';

const deleted = { signal: new AbortController().signal };
let around: Surroundings;
let running: { receiver: Receiver; ended: Promise<unknown>; foreign: SnapshotName[] } | undefined;

beforeEach(async () => {
  around = await surroundings();
});

afterEach(async () => {
  around.abort.abort(new Error('the test is over'));
  await running?.ended;
  await running?.receiver.close();
  running = undefined;
  await around[Symbol.asyncDispose]();
});

/** A receiver that has listed once and goes on listing. */
async function receive(extra = '', clock = systemClock, database = 'main'): Promise<Receiver> {
  const foreign: SnapshotName[] = [];
  const receiver = new Receiver({
    ...around,
    database,
    instance: 'self',
    config: config(extra),
    logger: around.log.logger,
    clock,
    onChange: () => undefined,
    onForeign: (found) => foreign.push(found),
  });
  await receiver.list(around.abort.signal);
  running = { receiver, foreign, ended: receiver.run(around.abort.signal).catch(() => undefined) };
  return receiver;
}

const next = (receiver: Receiver): Promise<ReadySnapshot> =>
  until(() => receiver.next(), { what: 'a snapshot is ready', intervalMs: 2 });

/** True once the receiver has listed the storage so often since now. */
async function listings(count: number): Promise<void> {
  const seen = around.storage.calls.length;
  await until(
    () => around.storage.calls.slice(seen).filter((call) => call.startsWith('list')).length >= count,
    {
      what: `${count} listings`,
      intervalMs: 2,
    },
  );
}

const loads = (): string[] =>
  around.storage.calls.filter((call) => call.startsWith('load ')).map((call) => call.slice('load '.length));

describe('Receiver', () => {
  it('a call that hangs shows in health', async () => {
    let nowMs = 0;
    around = { ...around, health: createHealth(() => nowMs) };
    const { gate } = around.storage;
    const load = Promise.withResolvers<void>();
    const list = Promise.withResolvers<void>();
    gate.load = load.promise;
    await around.put(name('a', 1), 'a');
    const receiver = await receive();
    await until(() => loads().length === 1, { what: 'it is being loaded' });
    gate.list = list.promise;
    await listings(1);
    nowMs += 300_000;
    const hung = Object.entries(around.health.report().failures);
    expect(hung.map(([check]) => check)).toEqual([
      'main_storage_list_failed_duration',
      'main_storage_load_failed_duration',
    ]);
    for (const [, text] of hung) expect(text).toMatch(/^trying to .* for 5m0s, without an answer$/);
    load.resolve();
    list.resolve();
    await next(receiver);
    await listings(2);
    expect(around.health.report().ok).toBe(true);
  });

  it('is not late with the next listing after one that hung', async () => {
    const clock = adjustableClock();
    await receive('', clock);
    const list = Promise.withResolvers<void>();
    around.storage.gate.list = list.promise;
    await listings(1);
    clock.advance(900_000);
    around.storage.gate.list = undefined;
    list.reject(new Error('no answer'));
    await listings(1);
  });

  it('fetches the newest snapshot of each instance into the spool, and only that', async () => {
    await around.put(name('a', 1), 'old');
    await around.put(name('a', 2), 'new');
    await around.put(name('b', 1), 'of b');
    await around.put(name('c', 1, 'other'), 'of another database');
    await around.put('main__not-a-snapshot', '');
    const receiver = await receive();
    const got = [await next(receiver), await next(receiver)];
    expect(got.map((each) => each.name.name).sort()).toEqual([name('a', 2), name('b', 1)]);
    expect(await Promise.all(got.map((each) => readFile(each.path, 'utf8')))).toEqual(
      got.map((each) => (each.name.instance === 'a' ? 'new' : 'of b')),
    );
    expect(got.map((each) => each.sizeBytes)).toEqual(
      got.map((each) => (each.name.instance === 'a' ? 3 : 4)),
    );
    await listings(2);
    expect(loads().sort()).toEqual([name('a', 2), name('b', 1)]);
    expect([...receiver.instances.keys()].sort()).toEqual(['a', 'b']);
    for (const each of got) await receiver.done(each, 'merged');
    expect(await readdir(got[0]!.path.replace(/\/[^/]*$/, ''))).toEqual(['lock']);
  });

  it('lists at once when the storage hints at a change', async () => {
    const receiver = await receive('storage_poll_interval: 1h');
    await listings(1);
    await around.put(name('a', 1), 'x');
    expect((await next(receiver)).name.name).toBe(name('a', 1));
  });

  it('lists every poll interval without a hint', async () => {
    Object.assign(around.storage, { watch: undefined });
    const receiver = await receive();
    await around.put(name('a', 1), 'x');
    expect((await next(receiver)).name.name).toBe(name('a', 1));
  });

  it('polls at multiples of the interval, so that all databases ask at once', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] });
    try {
      const pass = async (ms: number): Promise<void> => {
        for (let passedMs = 0; passedMs < ms; passedMs += 10) {
          vi.advanceTimersByTime(10);
          for (let turn = 0; turn < 5; turn++) await new Promise(setImmediate);
        }
      };
      const asked: [call: string, atMs: number][] = [];
      const list = around.storage.list.bind(around.storage);
      Object.assign(around.storage, {
        watch: undefined,
        list: (prefix: string, options: CallOptions) => {
          asked.push([prefix, performance.now()]);
          return list(prefix, options);
        },
      });
      await pass(1230);
      await receive('storage_poll_interval: 1s', systemClock, 'main');
      await pass(410);
      await receive('storage_poll_interval: 1s', systemClock, 'shard');
      await pass(2500);
      expect(asked).toEqual([
        ['main__', 1230],
        ['shard__', 1640],
        ['main__', 2000],
        ['shard__', 2000],
        ['main__', 3000],
        ['shard__', 3000],
        ['main__', 4000],
        ['shard__', 4000],
      ]);
    } finally {
      vi.useRealTimers();
    }
  });

  it('skips a snapshot that is superseded before it was fetched', async () => {
    let open = (): void => undefined;
    around.storage.gate.load = new Promise((resolve) => (open = resolve));
    await around.put(name('a', 1), 'first');
    const receiver = await receive();
    await until(() => loads().length === 1, { what: 'the first download' });
    await around.put(name('a', 2), 'second');
    await around.put(name('a', 3), 'third');
    await listings(2);
    open();
    around.storage.gate.load = undefined;
    await until(() => loads().length === 2, { what: 'the second download' });
    const got = await until(
      () => {
        const ready = receiver.next();
        return ready?.name.name === name('a', 3) ? ready : undefined;
      },
      { what: 'the newest is ready' },
    );
    expect(await readFile(got.path, 'utf8')).toBe('third');
    expect(loads()).toEqual([name('a', 1), name('a', 3)]);
  });

  it('replaces a fetched snapshot by a newer one, and removes its file', async () => {
    await around.put(name('a', 1), 'first');
    const receiver = await receive('memory_decompressed_snapshots: 1');
    await until(() => receiver.hasReady, { what: 'the first is ready' });
    await around.put(name('a', 2), 'second');
    await until(() => around.log.text().includes('superseded'), { what: 'the first is superseded' });
    const got = await next(receiver);
    expect(got.name.name).toBe(name('a', 2));
    expect(receiver.next()).toBeUndefined();
    const files = () => readdir(dirname(got.path));
    await until(async () => (await files()).length === 2, { what: 'the file of the first is removed' });
  });

  it('lets a newer snapshot take the place of the one that it supersedes, also in the queue', async () => {
    await around.put(name('busy', 1), 'first');
    const receiver = await receive('memory_decompressed_snapshots: 2');
    await until(() => receiver.hasReady, { what: 'the first is ready' });
    await around.put(name('other', 1), 'of the other');
    const active = 'lightningstream_climit_active{lmdb="main",limit_name="decompress"}';
    await until(async () => (await around.metric(active)) === 2, { what: 'both are ready' });
    await around.put(name('third', 1), 'waits for a place');
    await until(() => loads().includes(name('third', 1)), { what: 'the third is fetched' });
    await around.put(name('busy', 2), 'second');
    await until(() => around.log.text().includes('superseded'), { what: 'the first is superseded' });
    expect(await around.metric(active)).toBe(2);
    const order = [receiver.next()!, receiver.next()!];
    expect(order.map((each) => each.name.name)).toEqual([name('busy', 2), name('other', 1)]);
    for (const each of order) await receiver.done(each, 'merged');
    await receiver.done(await next(receiver), 'merged');
    expect(await around.metric(active)).toBe(0);
  });

  it('holds no more snapshots than configured, and goes on when one is done', async () => {
    for (const instance of ['a', 'b', 'c', 'd', 'e']) await around.put(name(instance, 1), instance);
    const receiver = await receive('memory_downloaded_snapshots: 1\nmemory_decompressed_snapshots: 2');
    const first = await next(receiver);
    await until(() => loads().length === 3, { what: 'two are ready, the third waits for its place' });
    await listings(2);
    expect(loads().length).toBe(3);
    expect(await around.metric('lightningstream_climit_active{lmdb="main",limit_name="decompress"}')).toBe(2);
    expect(await around.metric('lightningstream_climit_waiting{lmdb="main",limit_name="decompress"}')).toBe(
      1,
    );
    expect(await around.metric('lightningstream_climit_waiting{lmdb="main",limit_name="download"}')).toBe(2);
    await receiver.done(first, 'merged');
    for (let rest = 4; rest > 0; rest--) await receiver.done(await next(receiver), 'merged');
    expect(await around.metric('lightningstream_climit_active{lmdb="main",limit_name="decompress"}')).toBe(0);
    expect(
      await around.metric('lightningstream_climit_acquired_total{lmdb="main",limit_name="download"}'),
    ).toBe(5);
  });

  it('tries a failed download again, and looks for what is newest then', async () => {
    await around.put(name('a', 1), 'first');
    around.storage.failure.load = new Error('no route');
    const receiver = await receive();
    await until(() => around.health.report().failures['main_storage_load_failed_duration'] !== undefined, {
      what: 'health shows the failure',
    });
    expect(around.health.report().failures['main_storage_load_failed_duration']).toContain('no route');
    await around.put(name('a', 2), 'second');
    await until(() => receiver.instances.get('a')?.name === name('a', 2), {
      what: 'the newer one is listed',
    });
    around.storage.failure.load = undefined;
    const got = await next(receiver);
    expect(got.name.name).toBe(name('a', 2));
    expect(await readFile(got.path, 'utf8')).toBe('second');
    expect((await readdir(dirname(got.path))).sort()).toEqual([basename(got.path), 'lock'].sort());
    expect(around.health.report().failures).toEqual({});
    const failed = 'lightningstream_syncer_snapshots_load_failed_total{lmdb="main",syncer_instance="a"}';
    expect(await around.metric(failed)).toBeGreaterThanOrEqual(1);
  });

  it('takes the one before in place of one that cannot be used, and does not come back to it', async () => {
    await around.put(name('a', 1), 'good');
    await around.put(name('a', 2), 'bad');
    const receiver = await receive('storage_poll_interval: 1h');
    await receiver.done(await next(receiver), { refused: false, reason: 'broken' });
    expect(around.health.report().has_warnings).toBe(false);
    const got = await next(receiver);
    expect(got.name.name).toBe(name('a', 1));
    await receiver.done(got, 'merged');
    await around.put(name('b', 1), 'hint');
    await next(receiver);
    expect(loads()).toEqual([name('a', 2), name('a', 1), name('b', 1)]);
  });

  it('does not report that an object was removed before it was loaded, nor trouble with one that is gone', async () => {
    around.storage.failure.load = new StorageError('NOT_FOUND', 'load', name('a', 1), 'no such object');
    await around.put(name('a', 1), 'x');
    await receive();
    const failed = (): string | undefined =>
      around.health.report().failures['main_storage_load_failed_duration'];
    await until(() => around.log.text().includes('Snapshot is gone'), { what: 'the first attempt' });
    expect(failed()).toBeUndefined();
    // Listed all the while: that is trouble.
    await until(failed, { what: 'a failure' });
    await around.objects.delete(name('a', 1), deleted);
    await until(() => failed() === undefined, { what: 'nothing is wanted any more' });
  });

  it('says failing loads once, and once that they work again', async () => {
    around.storage.failure.load = new Error('no route');
    await around.put(name('a', 1), 'x');
    const receiver = await receive();
    await until(() => loads().length >= 4, { what: 'four attempts' });
    around.storage.failure.load = undefined;
    await next(receiver);
    expect(around.log.text().match(/Load failed, retrying/g)).toHaveLength(1);
    expect(around.log.text().match(/Loading snapshots works again/g)).toHaveLength(1);
  });

  it('gives up on the older snapshots of an instance after three refused ones, until there is a newer one', async () => {
    for (const second of [1, 2, 3, 4, 5]) await around.put(name('a', second), 'too new');
    const receiver = await receive();
    for (const second of [5, 4, 3]) {
      const got = await next(receiver);
      expect(got.name.name).toBe(name('a', second));
      await receiver.done(got, { refused: true, reason: 'version 9' });
    }
    await until(() => receiver.instances.size === 0, { what: 'the instance is given up' });
    await listings(2);
    expect(loads()).toHaveLength(3);
    expect(around.health.report().warnings).toEqual({
      main_snapshot_set_aside: `snapshot ${name('a', 5)} cannot be merged: version 9 (and 2 older of this instance)`,
    });
    await around.put(name('a', 6), 'fine');
    expect((await next(receiver)).name.name).toBe(name('a', 6));
  });

  it('forgets an instance whose only snapshot cannot be used', async () => {
    await around.put(name('a', 1), 'bad');
    const receiver = await receive();
    await receiver.done(await next(receiver), { refused: false, reason: 'broken' });
    await until(() => receiver.instances.size === 0, { what: 'the instance is gone' });
  });

  it('warns of a refused snapshot until a newer one of that instance is merged', async () => {
    await around.put(name('a', 1), 'too new');
    await around.put(name('b', 1), 'fine');
    const receiver = await receive();
    for (const each of [await next(receiver), await next(receiver)]) {
      await receiver.done(
        each,
        each.name.instance === 'a' ? { refused: true, reason: 'version 9' } : 'merged',
      );
    }
    const warning = `snapshot ${name('a', 1)} cannot be merged: version 9`;
    expect(around.health.report().warnings).toEqual({ main_snapshot_set_aside: warning });
    await around.put(name('a', 2), 'fine again');
    await receiver.done(await next(receiver), 'merged');
    expect(around.health.report().warnings).toEqual({});
  });

  it('stops warning of a refused snapshot that is gone from the storage', async () => {
    await around.put(name('a', 1), 'too new');
    const receiver = await receive();
    await receiver.done(await next(receiver), { refused: true, reason: 'version 9' });
    await around.objects.delete(name('a', 1), deleted);
    await until(() => !around.health.report().has_warnings, { what: 'the warning ends' });
  });

  it('does not fetch an older snapshot because the merged one was removed', async () => {
    await around.put(name('a', 1), 'old');
    await around.put(name('a', 2), 'new');
    const receiver = await receive();
    await receiver.done(await next(receiver), 'merged');
    await around.objects.delete(name('a', 2), deleted);
    await until(() => receiver.instances.get('a')?.name === name('a', 1), {
      what: 'the older one is the newest',
    });
    await listings(1);
    expect(loads()).toEqual([name('a', 2)]);
  });

  it('gives a kept snapshot again, but not in place of a newer one', async () => {
    await around.put(name('a', 1), 'first');
    const receiver = await receive();
    const first = await next(receiver);
    receiver.keep(first);
    expect(receiver.next()).toBeUndefined();
    await receiver.retryKept();
    expect(receiver.next()).toBe(first);
    await around.put(name('a', 2), 'second');
    await until(() => receiver.hasReady, { what: 'the newer one is ready' });
    // It became ready while the first was being merged, which then failed.
    receiver.keep(first);
    await receiver.retryKept();
    expect(receiver.next()?.name.name).toBe(name('a', 2));
    expect(receiver.next()).toBeUndefined();
  });

  it('gives the place of a kept snapshot to others', async () => {
    await around.put(name('a', 1), 'first');
    const receiver = await receive('memory_decompressed_snapshots: 1');
    receiver.keep(await next(receiver));
    await around.put(name('b', 1), 'of b');
    expect((await next(receiver)).name.instance).toBe('b');
  });

  it('fetches our own snapshot at start, before all others, until one is merged', async () => {
    await around.put(name('a', 1), 'of a');
    await around.put(name('self', 1), 'older of ours');
    await around.put(name('self', 2), 'ours');
    const receiver = await receive();
    const active = 'lightningstream_climit_active{lmdb="main",limit_name="decompress"}';
    await until(async () => (await around.metric(active)) === 2, { what: 'both are ready' });
    const own = receiver.next()!;
    expect(own.name.name).toBe(name('self', 2));
    expect(receiver.next()?.name.instance).toBe('a');
    await receiver.done(own, { refused: false, reason: 'broken' });
    const older = await next(receiver);
    expect(older.name.name).toBe(name('self', 1));
    await receiver.done(older, 'merged');
    expect(running?.foreign).toEqual([]);
  });

  it('leaves our own later snapshots alone, and tells of one that we did not store', async () => {
    const receiver = await receive();
    const ours = name('self', 5);
    receiver.noteOwn(parseSnapshotName(ours)!);
    await around.put(ours, 'ours');
    await until(() => receiver.instances.has('self'), { what: 'ours is listed' });
    expect(running?.foreign).toEqual([]);
    await around.put(name('self', 6), "a stranger's");
    const got = await next(receiver);
    expect(got.name.name).toBe(name('self', 6));
    expect(running?.foreign.map((each) => each.name)).toEqual([name('self', 6)]);
    expect(receiver.newestOwn?.name).toBe(name('self', 6));
  });

  it('says a failing listing once, shows it in health, and goes on', async () => {
    const receiver = await receive();
    around.storage.failure.list = new Error('no such bucket');
    await listings(3);
    const report = around.health.report();
    expect(report.failures['main_storage_list_failed_duration']).toContain('no such bucket');
    expect(around.log.text().match(/level=error/g)).toHaveLength(1);
    around.storage.failure.list = undefined;
    await around.put(name('a', 1), 'x');
    expect((await next(receiver)).name.instance).toBe('a');
    expect(around.health.report().ok).toBe(true);
    expect(
      await around.metric('lightningstream_syncer_snapshots_list_failed_total{lmdb="main"}'),
    ).toBeGreaterThanOrEqual(3);
  });

  it('counts what is in the storage', async () => {
    await around.put(name('a', 1), 'abc');
    await around.put(name('b', 1), 'de');
    const receiver = await receive();
    await next(receiver);
    expect(await around.metric('lightningstream_receiver_snapshots_in_storage_count{lmdb="main"}')).toBe(2);
    expect(await around.metric('lightningstream_receiver_snapshots_in_storage_bytes{lmdb="main"}')).toBe(5);
    const seconds =
      'lightningstream_receiver_snapshots_last_received_seconds{lmdb="main",syncer_instance="a"}';
    expect(await around.metric(seconds)).toBe(Date.UTC(2026, 0, 1, 0, 0, 1) / 1000);
  });

  it('ends at once, also in the middle of a download', async () => {
    around.storage.gate.load = new Promise(() => undefined);
    await around.put(name('a', 1), 'x');
    await receive();
    await until(() => loads().length === 1, { what: 'the download' });
    around.abort.abort(new Error('the end'));
    await running?.ended;
    expect(around.log.text()).not.toContain('level=error');
  });
});
