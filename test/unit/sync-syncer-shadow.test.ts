// The loop of one LMDB whose application knows nothing of headers, with the real addon and the application in a process of its own.
import { rename } from 'node:fs/promises';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { LightningStreamError } from '../../src/errors.ts';
import { loadNative } from '../../src/native/index.ts';
import type { Environment, Native } from '../../src/native/types.ts';
import { Syncer } from '../../src/sync/syncer.ts';
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
const DUPSORT = 0x04;
let around: Surroundings;
let running: { readonly ended: Promise<boolean>; readonly abort: AbortController } | undefined;
let app: Testkit | undefined;
let lmdbPath: string;

beforeEach(async () => {
  around = await surroundings();
  lmdbPath = around.dir.join('lmdb');
});

afterEach(async () => {
  await stop();
  await app?.[Symbol.asyncDispose]();
  app = undefined;
  await around[Symbol.asyncDispose]();
});

function application(mapSizeBytes = 1 << 20): Testkit {
  return (app ??= new Testkit(lmdbPath, { mapSizeBytes }));
}

interface Options {
  readonly extra?: string;
  readonly mode?: 'sync' | 'receive';
  readonly lmdb?: string;
  readonly clock?: Clock;
  readonly native?: Native;
}

function run(options: Options = {}): Syncer {
  const { extra = '', mode = 'sync', lmdb = 'schema_tracks_changes: false', clock = systemClock } = options;
  const parsed = config(extra, `main: {path: ${lmdbPath}, options: {create: true, map_size: 1MB}, ${lmdb}}`);
  const abort = new AbortController();
  const syncer = new Syncer({
    ...around,
    database: 'main',
    lmdb: parsed.lmdbs.get('main')!,
    config: parsed,
    mode,
    instance: 'self',
    hostname: 'host',
    native: options.native ?? native,
    logger: around.log.logger,
    clock,
    signal: abort.signal,
  });
  running = { ended: syncer.run(), abort };
  return syncer;
}

/** The real addon, except that this is done instead of the first merge. */
function withFirstMerge(instead: () => Promise<never>): Native {
  let merges = 0;
  return {
    ...native,
    openEnvironment(path, options) {
      return new Proxy(native.openEnvironment(path, options), {
        get(target, property: keyof Environment) {
          if (property === 'merge' && ++merges === 1) return instead;
          const member = target[property];
          return typeof member === 'function' ? (member.bind(target) as unknown) : member;
        },
      });
    },
  };
}

async function stop(): Promise<void> {
  running?.abort.abort(new Error('the test stops it'));
  await running?.ended;
  running = undefined;
}

const entry = (key: string, value: string, timestampNano: bigint): TestEntry => ({
  key,
  value,
  timestampNano,
});

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
  until(() => around.log.text().includes(text) || undefined, { what: `log: ${text}`, intervalMs: 5 });

interface Shadow {
  readonly timestampNano: bigint;
  readonly deleted: boolean;
  readonly value: string;
}

/** What the shadow of a DBI holds, by key. */
async function shadow(dbi: string): Promise<Record<string, Shadow>> {
  const dump = await application().plainDump({ shadows: true, encoding: 'hex' });
  const entries = (dump[`_sync_shadow_${dbi}`] ?? []).map((line): [string, Shadow] => {
    const [key = '', value = ''] = line.split(' = ').map((part) => Buffer.from(part, 'hex'));
    const header = Buffer.from(value);
    return [
      key.toString(),
      {
        timestampNano: header.readBigUInt64BE(),
        deleted: (header.readUInt8(17) & 1) === 1,
        value: header.toString('utf8', 24),
      },
    ];
  });
  return Object.fromEntries(entries);
}

/** What the application sees of a DBI. */
async function seen(dbi = 'data'): Promise<readonly string[]> {
  return (await application().plainDump())[dbi] ?? [];
}

const sees = (...lines: string[]): Promise<true> =>
  until(async () => JSON.stringify(await seen()) === JSON.stringify(lines) || undefined, {
    what: `the application sees ${lines.join(', ')}`,
    intervalMs: 5,
  });

const now = (): bigint => BigInt(Date.now()) * 1_000_000n;
const old = { timestampNano: 1n, deleted: false };

describe('what happened before the start', () => {
  it('is older than everything on a first start, and uploaded', async () => {
    await application().plain({ dbi: 'data', key: 'k', value: 'v' }, { dbi: 'empty', key: 'k', value: '' });
    run();
    await storedCount(1);
    expect(await shadow('data')).toEqual({ k: { ...old, value: 'v' } });
    expect(await shadow('empty')).toEqual({ k: { ...old, value: '' } });
  });

  it('is captured before the storage answers, so that what comes then is newer', async () => {
    await application().plain({ dbi: 'data', key: 'k', value: 'v' });
    const gate = Promise.withResolvers<void>();
    around.storage.gate.list = gate.promise;
    run();
    await until(async () => 'k' in (await shadow('data')), { what: 'the capture' });
    const from = now();
    await application().plain({ dbi: 'data', key: 'new', value: 'v' });
    gate.resolve();
    await storedCount(1);
    const { k, new: added } = await shadow('data');
    expect(k?.timestampNano).toBe(1n);
    expect(added?.timestampNano).toBeGreaterThanOrEqual(from);
  });

  it('added and removed: older than everything; changed: as new as possible', async () => {
    await application().plain(
      { dbi: 'data', key: 'changed', value: 'a' },
      { dbi: 'data', key: 'removed', value: 'v' },
      { dbi: 'data', key: 'same', value: 'v' },
    );
    run();
    await storedCount(1);
    await stop();
    await application().plain(
      { dbi: 'data', key: 'changed', value: 'b' },
      { dbi: 'data', key: 'removed', remove: true },
      { dbi: 'data', key: 'added', value: 'v' },
    );
    const from = now();
    run();
    await storedCount(2);
    const { changed, ...others } = await shadow('data');
    expect(others).toEqual({
      added: { ...old, value: 'v' },
      removed: { timestampNano: 1n, deleted: true, value: '' },
      same: { ...old, value: 'v' },
    });
    expect(changed?.value).toBe('b');
    expect(changed?.timestampNano).toBeGreaterThanOrEqual(from);
  });

  it('an LMDB without data: what is written first is new', async () => {
    application();
    run();
    await logged('LMDB is empty');
    const from = now();
    await application().plain({ dbi: 'data', key: 'k', value: 'v' });
    await storedCount(1);
    expect((await shadow('data'))['k']?.timestampNano).toBeGreaterThanOrEqual(from);
  });

  it('is new when the same LMDB is opened anew after a fault', async () => {
    await application().plain(
      { dbi: 'data', key: 'kept', value: 'v' },
      { dbi: 'data', key: 'removed', value: 'v' },
    );
    const from = now();
    run({
      native: withFirstMerge(async () => {
        await application().plain(
          { dbi: 'data', key: 'removed', remove: true },
          { dbi: 'data', key: 'added', value: 'v' },
        );
        throw new LightningStreamError('CLOSED', 'the environment is closed');
      }),
    });
    await storedCount(1);
    await around.put(name('a', 1), snapshot({ data: [entry('theirs', 'v', at(1))] }));
    // Our own snapshot, in which the key still is, is merged, too.
    await logged('snapshot_instance=self');
    await sees('added = v', 'kept = v', 'theirs = v');
    const { added, removed, kept } = await shadow('data');
    expect(kept).toEqual({ ...old, value: 'v' });
    expect(removed).toMatchObject({ deleted: true });
    expect(removed?.timestampNano).toBeGreaterThanOrEqual(from);
    expect(added?.timestampNano).toBeGreaterThanOrEqual(from);
  });

  it('is old in another file that takes the place of the LMDB', async () => {
    await application().plain({ dbi: 'data', key: 'k', value: 'v' });
    run();
    await storedCount(1);
    const restored = around.dir.join('restored');
    await using other = new Testkit(restored, { mapSizeBytes: 1 << 20 });
    await other.plain({ dbi: 'data', key: 'from the backup', value: 'b' });
    await app?.[Symbol.asyncDispose]();
    app = undefined;
    await rename(join(restored, 'data.mdb'), join(lmdbPath, 'data.mdb'));
    await rename(join(restored, 'lock.mdb'), join(lmdbPath, 'lock.mdb'));
    await sees('from the backup = b', 'k = v');
    expect(await shadow('data')).toEqual({
      'from the backup': { ...old, value: 'b' },
      k: { ...old, value: 'v' },
    });
  });

  it('nothing: writes nothing', async () => {
    await application().plain({ dbi: 'data', key: 'k', value: 'v' });
    run();
    await storedCount(1);
    await stop();
    await application().call({ op: 'lock' });
    run();
    await storedCount(2);
    await application().call({ op: 'unlock' });
  });
});

describe('merging', () => {
  it('gives the application what is newer, and causes no upload', async () => {
    await application().plain({ dbi: 'data', key: 'k', value: 'ours' });
    run();
    await storedCount(1);
    await around.put(
      name('a', 1),
      snapshot({ data: [entry('k', 'theirs', at(1)), entry('more', 'v', at(1))] }),
    );
    await sees('k = theirs', 'more = v');
    await around.put(name('b', 2), snapshot({ data: [{ ...entry('more', '', at(2)), deleted: true }] }));
    await sees('k = theirs');
    await logged('snapshot_instance=b');
    expect(await stored()).toHaveLength(1);
    expect(await shadow('data')).toEqual({
      k: { timestampNano: at(1), deleted: false, value: 'theirs' },
      more: { timestampNano: at(2), deleted: true, value: '' },
    });
  });

  it('captures local changes first: they win over what is older, and are uploaded', async () => {
    await application().plain(
      { dbi: 'data', key: 'k', value: 'v' },
      { dbi: 'data', key: 'removed', value: 'v' },
    );
    const clock = adjustableClock();
    run({ clock });
    await storedCount(1);
    // No snapshot of ours comes between.
    const gate = Promise.withResolvers<void>();
    around.storage.gate.store = gate.promise;
    await application().plain({ dbi: 'other', key: 'k', value: 'v' });
    await until(() => around.storage.calls.filter((call) => call.startsWith('store')).length > 1, {
      what: 'a store call that hangs',
    });
    await application().plain(
      { dbi: 'data', key: 'k', value: 'ours' },
      { dbi: 'data', key: 'removed', remove: true },
    );
    await around.put(
      name('a', 1),
      snapshot({ data: [entry('k', 'theirs', at(1)), entry('removed', 'theirs', at(1))] }),
    );
    await logged('captured_changed=1 captured_deleted=1');
    expect(await seen()).toEqual(['k = ours']);
    gate.resolve();
    around.storage.gate.store = undefined;
    await storedCount(3);
  });

  it('receives only: captures with each merge, uploads nothing', async () => {
    await application().plain({ dbi: 'data', key: 'k', value: 'v' });
    run({ mode: 'receive' });
    await logged('Captured what changed before the start');
    const from = now();
    await application().plain({ dbi: 'data', key: 'k', value: 'ours' });
    await around.put(name('a', 1), snapshot({ data: [entry('k', 'theirs', at(1))] }));
    await logged('Loaded remote update');
    expect(await seen()).toEqual(['k = ours']);
    expect((await shadow('data'))['k']?.timestampNano).toBeGreaterThanOrEqual(from);
    expect(await stored()).toEqual([]);
  });

  it('DBIs with duplicates, by the hack', async () => {
    await application().plain(
      { dbi: 'idx', flags: DUPSORT, key: 'k', value: 'b' },
      { dbi: 'idx', key: 'k', value: 'a' },
    );
    run({ lmdb: 'dupsort_hack: true' });
    await storedCount(1);
    await stop();
    await application().plain(
      { dbi: 'idx', key: 'k', value: 'c' },
      { dbi: 'idx', key: 'k', value: 'a', remove: true },
    );
    run({ lmdb: 'dupsort_hack: true' });
    await storedCount(2);
    expect(await seen('idx')).toEqual(['k = b', 'k = c']);
    const entries = Object.values(await shadow('idx'));
    expect(entries.map(({ value, deleted }) => [value, deleted])).toEqual([
      ['', true],
      ['b', false],
      ['c', false],
    ]);
  });
});

describe('sweeping', () => {
  it('removes old deletions from the shadows, and nothing of what the application has', async () => {
    // As a native deletion from 1970 would be.
    const looks = Buffer.alloc(24);
    looks.writeUInt8(1, 17);
    await application().plain(
      { dbi: 'data', key: 'alive', value: 'v' },
      { dbi: 'data', key: 'looks', value: looks },
      { dbi: 'data', key: 'removed', value: 'v' },
    );
    // Older than the retention: not added where nothing is, but it removes what is there.
    await around.put(name('a', 1), snapshot({ data: [{ ...entry('removed', '', 2n), deleted: true }] }));
    run({ extra: 'sweeper: {enabled: true, retention_days: 1, first_interval: 0s, interval: 1s}' });
    await until(
      async () => {
        const keys = Object.keys(await shadow('data'));
        return keys.length === 2 && keys;
      },
      { what: 'the deletion is gone' },
    );
    await logged('cleaned_entries=1');
    expect(await shadow('data')).toEqual({
      alive: { ...old, value: 'v' },
      looks: { ...old, value: looks.toString() },
    });
    await sees('alive = v', `looks = ${looks.toString()}`);
    expect(around.health.report().failures).toEqual({});
  });
});

describe('faults', () => {
  it('DBIs with duplicates without the hack are named, until they are gone or the hack is there', async () => {
    await application().plain({ dbi: 'idx', flags: DUPSORT, key: 'k', value: 'v' });
    const syncer = run();
    await logged('Sync failed');
    expect((await syncer.status()).problem).toMatch(/idx.*\(DBI_UNSUPPORTED\)$/);
    expect(around.health.report().failures['main_local_fault']).toMatch(/dupsort_hack/);
    expect(await stored()).toEqual([]);
    await stop();
    run({ lmdb: 'dupsort_hack: true' });
    await storedCount(1);
    expect(around.health.report().failures).toEqual({});
  });

  it('only-once ends with an error, and one line', async () => {
    await application().plain({ dbi: 'idx', flags: DUPSORT, key: 'k', value: 'v' });
    run({ extra: 'only_once: true' });
    expect(await running?.ended).toBe(false);
    expect(around.log.text().match(/level=error/g)).toHaveLength(1);
  });
});

describe('the wrong mode', () => {
  /** As PowerDNS 4.9 writes. */
  const headed = (timestampNano: bigint, value: string): Buffer => {
    const header = Buffer.alloc(24);
    header.writeBigUInt64BE(timestampNano);
    header.writeBigUInt64BE(1n, 8);
    return Buffer.concat([header, Buffer.from(value)]);
  };
  const problem = (syncer: Syncer): Promise<string> =>
    until(async () => (await syncer.status()).problem, { what: 'a problem', intervalMs: 5 });

  it('shadow mode on native values is refused before anything is written', async () => {
    await application().put('records', 'k', 'v');
    const syncer = run();
    const text = await problem(syncer);
    expect(text).toMatch(
      /^lmdbs\.main\.schema_tracks_changes is false, .* DBI records .*set it to true.*schema_guard to off \(WRONG_MODE\)$/,
    );
    expect(around.health.report().failures['main_local_fault']).toBe(text);
    await around.put(name('a', 1), snapshot({ records: [entry('k', 'theirs', at(1))] }));
    await until(() => around.log.text().includes('Sync failed'), { what: 'the log' });
    expect(Object.keys(await application().plainDump({ shadows: true }))).toEqual([]);
    expect(await stored()).toEqual([]);
  });

  it('an application that is upgraded while the daemon runs', async () => {
    await application().plain({ dbi: 'records', key: 'k', value: 'v' });
    const syncer = run();
    await storedCount(1);
    // The upgrade gives all the time 0.
    await application().plain(
      { dbi: 'records_v5', key: 'k', value: headed(0n, 'v') },
      { dbi: 'records', key: 'k', remove: true },
    );
    expect(await problem(syncer)).toMatch(/schema_tracks_changes is false.* DBI records_v5 \(WRONG_MODE\)$/);
    expect(await stored()).toHaveLength(1);
    expect(Object.keys(await application().plainDump({ shadows: true }))).toEqual(['_sync_shadow_records']);
  });

  it('values that only look so, by order of the configuration', async () => {
    await application().put('records', 'k', 'v');
    run({ lmdb: 'schema_guard: off' });
    await storedCount(1);
    expect(Object.keys(await shadow('records'))).toEqual(['k']);
  });

  it('native mode on plain values is refused before anything is written', async () => {
    await application().plain({ dbi: 'data', key: 'k', value: 'plain' });
    const syncer = run({ lmdb: 'schema_tracks_changes: true' });
    expect(await problem(syncer)).toMatch(
      /^lmdbs\.main\.schema_tracks_changes is true, .* DBI data\).*set it to false \(WRONG_MODE\)$/,
    );
    await around.put(name('a', 1), snapshot({ data: [entry('new', 'theirs', at(1))] }));
    await until(() => around.log.text().includes('Sync failed'), { what: 'the log' });
    expect(await seen()).toEqual(['k = plain']);
  });

  it('native mode on what was in shadow mode, though the values could be native', async () => {
    const value = headed(at(1), 'v');
    await application().plain({ dbi: 'data', key: 'k', value });
    run({ lmdb: 'schema_guard: off' });
    await storedCount(1);
    await stop();
    const syncer = run({ lmdb: 'schema_tracks_changes: true' });
    expect(await problem(syncer)).toMatch(/DBI data have their headers in _sync_shadow_data.*drop-shadow/);
    expect(await stored()).toHaveLength(1);
  });

  it('native mode after the application became native, with shadows left behind', async () => {
    await application().plain({ dbi: 'data', key: 'k', value: 'v' });
    run();
    await storedCount(1);
    await stop();
    await application().plain({ dbi: 'data', key: 'k', value: headed(0n, 'v') });
    run({ lmdb: 'schema_tracks_changes: true' });
    await storedCount(2);
    expect(around.health.report().failures).toEqual({});
  });
});
