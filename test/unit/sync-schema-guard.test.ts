/** Servers of different schemas in one place: what the loop does with their snapshots, and with its own. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { loadNative } from '../../src/native/index.ts';
import type { Environment, MergeOptions, Native, SchemaVersion } from '../../src/native/types.ts';
import { isSame, schemaText } from '../../src/sync/schema-guard.ts';
import { Syncer } from '../../src/sync/syncer.ts';
import { systemClock } from '../../src/sync/wait.ts';
import { until } from '../helpers/process.ts';
import { Testkit } from '../helpers/testkit.ts';
import {
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
let ended: Promise<boolean>[];
let applications: Map<string, Testkit>;

beforeEach(async () => {
  around = await surroundings();
  ended = [];
  applications = new Map();
});

afterEach(async () => {
  around.abort.abort(new Error('the test is over'));
  await Promise.all(ended);
  for (const each of applications.values()) await each[Symbol.asyncDispose]();
  await around[Symbol.asyncDispose]();
});

/** The server, in a process of its own. */
function application(database = 'main'): Testkit {
  let app = applications.get(database);
  if (app === undefined) {
    app = new Testkit(around.dir.join(database), { mapSizeBytes: 1 << 20 });
    applications.set(database, app);
  }
  return app;
}

interface Options {
  readonly lmdb?: string;
  readonly mode?: 'sync' | 'receive';
  readonly native?: Native;
  readonly main?: Syncer;
}

function run(extra = '', options: Options = {}, database = 'main'): Syncer {
  const { lmdb = 'schema_tracks_changes: true', main } = options;
  const path = around.dir.join(database);
  const parsed = config(
    extra,
    `${database}: {path: ${path}, ${lmdb}, options: {create: true, map_size: 1MB}}`,
  );
  const syncer = new Syncer({
    ...around,
    database,
    lmdb: parsed.lmdbs.get(database)!,
    config: parsed,
    mode: options.mode ?? 'sync',
    instance: 'self',
    hostname: 'host',
    native: options.native ?? native,
    logger: around.log.logger,
    clock: systemClock,
    signal: around.abort.signal,
    ...(main && { main: () => main }),
  });
  ended.push(syncer.run());
  return syncer;
}

/** As PowerDNS writes it from schema 5 on; the testkit puts the header in front. */
const networkOrder = (schema: number): string => `\0\0\0${String.fromCharCode(schema)}`;
const hostOrder = (schema: number): string => `${String.fromCharCode(schema)}\0\0\0`;

/** The server opens its LMDB, or upgrades it. */
async function server(schema: number): Promise<void> {
  await application().put('domains_v5', 'id', 'a domain');
  await application().put('pdns', 'schemaversion', networkOrder(schema));
}

const entry = (key: string, value: string, second = 1): TestEntry => ({
  key,
  value,
  timestampNano: at(second),
});

/** A snapshot of another server's main LMDB, with a domain of this key. */
const ofSchema = (schema: number, key: string): Uint8Array =>
  snapshot({
    domains_v5: [entry(key, 'a domain')],
    pdns: [entry('schemaversion', networkOrder(schema))],
  });

const ofShard = (key: string): Uint8Array => snapshot({ records_v5: [entry(key, 'a record')] });

const has = (key: string, dbi = 'domains_v5', database = 'main'): Promise<true> =>
  until(async () => ((await application(database).get(dbi, key)) === undefined ? undefined : true), {
    what: `${key} in ${dbi} of ${database}`,
    intervalMs: 5,
  });

async function stored(database = 'main'): Promise<string[]> {
  const objects = await around.objects.list(`${database}__self__`, { signal });
  return objects.map((object) => object.name);
}

const storedCount = (count: number, database = 'main'): Promise<true> =>
  until(async () => ((await stored(database)).length >= count ? true : undefined), {
    what: `${count} snapshots of ours`,
    intervalMs: 5,
  });

const logged = (text: string): Promise<true> =>
  until(() => (around.log.text().includes(text) ? true : undefined), {
    what: `log line ${text}`,
    intervalMs: 5,
  });

/** Lines of the log with this text. */
const lines = (text: string): string[] =>
  around.log
    .text()
    .split('\n')
    .filter((line) => line.includes(text));

/** Resolves when the loop has had every opportunity to do what it should not. */
async function rounds(): Promise<void> {
  const lists = (): number => around.storage.calls.filter((call) => call.startsWith('list')).length;
  const seen = lists();
  await until(() => lists() >= seen + 6, { what: 'six more listings' });
}

const heldLine = 'Snapshots with another schema are held back';
const gauge = (instance: string, database = 'main'): Promise<number | undefined> =>
  around.metric(`lightningstream_schema_held_back{lmdb="${database}",syncer_instance="${instance}"}`);
const warning = (database = 'main'): string | undefined =>
  around.health.report().warnings[`${database}_schema_mismatch`];
const failure = (database = 'main'): string | undefined =>
  around.health.report().failures[`${database}_schema_mismatch`];
const started = (): unknown => around.health.report().metadata['startup_main'];

const exact = (version: number): SchemaVersion => ({ version, exact: true });
const old = { version: 4, exact: false };
const recent = { version: 5, exact: false };

describe('schemas', () => {
  it.each([
    [exact(5), exact(5), true],
    [exact(5), exact(6), false],
    // One format under two numbers.
    [exact(3), exact(4), true],
    [exact(4), exact(5), false],
    [old, exact(3), true],
    [old, exact(5), false],
    [old, old, true],
    [recent, exact(6), true],
    [recent, exact(4), false],
    [recent, old, false],
    [recent, recent, true],
  ])('%j and %j: %s', (a, b, same) => {
    expect([isSame(a, b), isSame(b, a)]).toEqual([same, same]);
  });

  it('are told so that people understand them', () => {
    expect([exact(6), old, recent].map(schemaText)).toEqual(['6', '4 or older', '5 or newer']);
  });
});

describe('an instance with another schema', () => {
  it('is held back, said once, and not waited for; the others are merged', async () => {
    await server(5);
    await around.put(name('a', 1), ofSchema(5, 'of-a'));
    await around.put(name('b', 1), ofSchema(6, 'of-b'));
    const syncer = run();
    await has('of-a');
    await storedCount(1);
    await until(() => started() === true, { what: 'the end of the start' });
    expect(warning()).toMatch(/snapshots of b have schema 6, ours is 5: .* use another prefix/);
    expect(failure()).toBeUndefined();
    await around.put(name('b', 2), ofSchema(6, 'of-b'));
    await until(() => around.storage.calls.includes(`load ${name('b', 2)}`), {
      what: 'a look at the newer one',
    });
    await rounds();
    expect(await application().get('domains_v5', 'of-b')).toBeUndefined();
    const said = lines(heldLine);
    expect(said).toHaveLength(1);
    expect(said[0]).toMatch(/use another prefix.* schema=5 snapshot_instance=b snapshot_schema=6/);
    expect([await gauge('a'), await gauge('b')]).toEqual([undefined, 1]);
    // Nothing of it stays in the spool, and it is not fetched again and again.
    expect(around.storage.calls.filter((call) => call === `load ${name('b', 2)}`)).toHaveLength(1);
    const { instances } = await syncer.status();
    expect(instances.map(({ instance, heldBack }) => [instance, heldBack])).toEqual([
      ['a', undefined],
      ['b', 'schema 6, ours is 5'],
      ['self', undefined],
    ]);
    expect(around.log.text()).not.toContain('corrupt');
  });

  it('is merged as soon as it has ours', async () => {
    await server(5);
    await around.put(name('a', 1), ofSchema(5, 'of-a'));
    await around.put(name('b', 1), ofSchema(6, 'early'));
    run();
    await logged(heldLine);
    await around.put(name('b', 2), ofSchema(5, 'late'));
    await has('late');
    await until(() => warning() === undefined, { what: 'the end of the warning' });
    expect(await gauge('b')).toBe(0);
    expect(await application().get('domains_v5', 'early')).toBeUndefined();
  });

  it('is forgotten with its last snapshot', async () => {
    await server(5);
    await around.put(name('a', 1), ofSchema(5, 'of-a'));
    await around.put(name('b', 1), ofSchema(6, 'of-b'));
    run();
    await logged(heldLine);
    await around.objects.delete(name('b', 1), { signal });
    await until(() => warning() === undefined, { what: 'the end of the warning' });
    expect(await gauge('b')).toBeUndefined();
  });

  it('is merged when it is we who have changed, without a newer snapshot', async () => {
    await server(5);
    await around.put(name('a', 1), ofSchema(5, 'of-a'));
    await around.put(name('b', 1), ofSchema(6, 'of-b'));
    run('', { mode: 'receive' });
    await has('of-a');
    await logged(heldLine);
    await server(6);
    await has('of-b');
    await until(() => warning()?.includes('of a have schema 5, ours is 6') === true, { what: 'a held back' });
    expect([await gauge('a'), await gauge('b')]).toEqual([1, 0]);
    expect(failure()).toBeUndefined();
  });

  it('is known by the names of its tables when they have no number', async () => {
    await application().put('records_v5', 'k', 'v');
    await around.put(name('a', 1), ofShard('of-a'));
    await around.put(name('b', 1), snapshot({ records: [entry('of-b', 'v')] }));
    run();
    await has('of-a', 'records_v5');
    await logged(heldLine);
    expect(lines(heldLine)[0]).toMatch(
      / schema="5 or newer" snapshot_instance=b snapshot_schema="4 or older"/,
    );
    await storedCount(1);
    expect(await application().get('records', 'of-b')).toBeUndefined();
  });

  it('is held back in shadow mode', async () => {
    const plain = { dbi: 'pdns', key: 'schemaversion', value: hostOrder(4) };
    await application().plain(plain, { dbi: 'domains', key: 'own', value: 'v' });
    await around.put(
      name('a', 1),
      snapshot({ domains: [entry('of-a', 'v')], pdns: [entry('schemaversion', hostOrder(3))] }),
    );
    await around.put(name('b', 1), ofSchema(5, 'of-b'));
    run('', { lmdb: 'schema_tracks_changes: false, dupsort_hack: true' });
    await logged(heldLine);
    expect(lines(heldLine)[0]).toMatch(/ schema=[34] snapshot_instance=b snapshot_schema=5/);
    await until(async () => (await application().plainDump())['domains']?.includes('of-a = v') === true, {
      what: 'schemas 3 and 4 together',
    });
    expect(Object.keys(await application().plainDump())).not.toContain('domains_v5');
  });

  it('makes only-once fail', async () => {
    await server(5);
    await around.put(name('a', 1), ofSchema(5, 'of-a'));
    await around.put(name('b', 1), ofSchema(6, 'of-b'));
    run('only_once: true');
    expect(await ended[0]).toBe(false);
    expect(await application().get('domains_v5', 'of-a')).toBeDefined();
    expect(await stored()).toHaveLength(1);
  });

  it('is merged with schema_guard: off', async () => {
    await server(5);
    await around.put(name('b', 1), ofSchema(6, 'of-b'));
    run('', { lmdb: 'schema_tracks_changes: true, schema_guard: off' });
    await has('of-b');
    await storedCount(1);
    expect(lines(heldLine)).toEqual([]);
  });
});

describe('our own snapshots', () => {
  it('of another schema are history: nobody waits for them', async () => {
    await server(6);
    await around.put(name('self', 1), ofSchema(5, 'before'));
    run();
    await storedCount(2);
    await logged('Stored snapshot');
    expect(await application().get('domains_v5', 'before')).toBeUndefined();
    await until(() => warning() === undefined, { what: 'the end of the warning' });
    expect(await gauge('self')).toBe(0);
  });

  it('are not stored among others that all have another schema', async () => {
    await server(6);
    await around.put(name('a', 1), ofSchema(5, 'of-a'));
    await around.put(name('b', 1), ofSchema(5, 'of-b'));
    run();
    await until(() => failure() !== undefined, { what: 'the failure' });
    expect(failure()).toMatch(
      /^nothing is uploaded: all other instances have another schema than 6: .*prefix.*; snapshots of a have schema 5/,
    );
    await application().put('domains_v5', 'new', 'a domain');
    await rounds();
    expect(await stored()).toEqual([]);
    expect(started()).toBe(true);
    expect(lines('Nothing is uploaded because of its schema')).toHaveLength(1);
    await around.put(name('c', 1), ofSchema(6, 'of-c'));
    await has('of-c');
    await storedCount(1);
    await until(() => failure() === undefined, { what: 'the end of the failure' });
    expect(warning()).toContain('snapshots of a have schema 5');
  });

  it('wait until something is known of the others, but not for one that cannot be loaded', async () => {
    let open = (): void => undefined;
    around.storage.gate.load = new Promise((resolve) => (open = resolve));
    await server(6);
    await around.put(name('a', 1), ofSchema(5, 'of-a'));
    run();
    await until(() => around.storage.calls.includes(`load ${name('a', 1)}`), { what: 'a load' });
    await rounds();
    expect(await stored()).toEqual([]);
    expect(failure()).toBeUndefined();
    around.storage.failure.load = new Error('no permission');
    open();
    await storedCount(1);
  });

  it('are not stored once the schema has changed, and nothing is cleaned, until it is back', async () => {
    await server(5);
    await around.put(name('a', 1), ofSchema(5, 'of-a'));
    await around.put(name('c', 1), ofSchema(5, 'of-c'));
    const cleanup =
      'storage: {type: memory, cleanup: {enabled: true, interval: 1s, must_keep_interval: 0s, remove_old_instances_interval: 999999h}}';
    run(cleanup);
    await storedCount(1);
    await has('of-c');
    await server(6);
    await until(() => failure() !== undefined, { what: 'the failure' });
    expect(failure()).toMatch(/^nothing is uploaded: the schema of this LMDB changed from 5 to 6 .*restart/);
    const before = await stored();
    await around.put(name('a', 2), ofSchema(5, 'of-a'));
    await around.put(name('a', 3), ofSchema(6, 'later'));
    await has('later');
    const cleanings = async (): Promise<number> =>
      (await around.metric('lightningstream_cleaner_list_calls_total')) ?? 0;
    const cleaned = await cleanings();
    await rounds();
    await rounds();
    expect(await stored()).toEqual(before);
    expect(await cleanings()).toBe(cleaned);
    await server(5);
    await storedCount(before.length + 1);
    await until(async () => (await cleanings()) > cleaned, { what: 'cleaning' });
    await until(() => failure() === undefined, { what: 'the end of the failure' });
  });
});

describe('schema_guard with a number', () => {
  const lmdb = 'schema_tracks_changes: true, schema_guard: 6';

  it('is what an empty LMDB takes', async () => {
    await around.put(name('a', 1), ofSchema(5, 'of-a'));
    await around.put(name('b', 1), ofSchema(6, 'of-b'));
    run('', { lmdb });
    await has('of-b');
    await logged(heldLine);
    expect(lines(heldLine)[0]).toMatch(/ schema=6 snapshot_instance=a snapshot_schema=5/);
    expect(await application().get('domains_v5', 'of-a')).toBeUndefined();
  });

  it('is what an LMDB must have for its snapshots to be stored', async () => {
    await server(5);
    run('', { lmdb });
    await until(() => failure() !== undefined, { what: 'the failure' });
    expect(failure()).toMatch(/^nothing is uploaded: schema_guard is 6, but the schema of this LMDB is 5/);
    await rounds();
    expect(await stored()).toEqual([]);
  });

  it('without one, an empty LMDB takes what comes, and then that only', async () => {
    await around.put(name('a', 1), ofSchema(5, 'of-a'));
    run();
    await has('of-a');
    await around.put(name('b', 1), ofSchema(6, 'of-b'));
    await logged(heldLine);
    expect(await application().get('domains_v5', 'of-b')).toBeUndefined();
    await application().put('domains_v5', 'own', 'a domain');
    await storedCount(1);
    expect(failure()).toBeUndefined();
  });
});

describe('a shard', () => {
  it('follows the main LMDB, with what is known of an instance there', async () => {
    await server(5);
    await application('shard').put('records_v5', 'own', 'a record');
    await around.put(name('a', 1), ofSchema(5, 'of-a'));
    await around.put(name('b', 1), ofSchema(6, 'of-b'));
    await around.put(name('a', 1, 'shard'), ofShard('of-a'));
    await around.put(name('b', 1, 'shard'), ofShard('of-b'));
    const main = run();
    run('', { main }, 'shard');
    await has('of-a', 'records_v5', 'shard');
    await until(() => warning('shard') !== undefined, { what: 'the warning' });
    expect(warning('shard')).toMatch(/snapshots of b have schema 6, ours is 5/);
    await storedCount(1, 'shard');
    expect(await application('shard').get('records_v5', 'of-b')).toBeUndefined();
    await around.put(name('b', 2), ofSchema(5, 'of-b'));
    await has('of-b', 'records_v5', 'shard');
    expect(await gauge('b', 'shard')).toBe(0);
  });

  it('waits for what the main LMDB is about to find out', async () => {
    let open = (): void => undefined;
    around.storage.gate.list = new Promise((resolve) => (open = resolve));
    await server(5);
    await application('shard').put('records_v5', 'own', 'a record');
    await around.put(name('b', 1), ofSchema(6, 'of-b'));
    await around.put(name('b', 1, 'shard'), ofShard('of-b'));
    const main = run();
    // The shard sees its snapshot while the main LMDB still asks for its own.
    await until(() => around.storage.calls.includes('list main__'), { what: 'a listing' });
    around.storage.gate.list = undefined;
    run('', { main }, 'shard');
    await until(() => around.storage.calls.includes(`load ${name('b', 1, 'shard')}`), { what: 'a load' });
    await rounds();
    expect(await application('shard').get('records_v5', 'of-b')).toBeUndefined();
    expect(lines(heldLine)).toEqual([]);
    open();
    await until(() => lines(heldLine).length === 2, { what: 'both held back' });
    await until(() => failure() !== undefined && failure('shard') !== undefined, { what: 'no upload' });
    expect([await stored(), await stored('shard')]).toEqual([[], []]);
  });

  it('does not wait for a main LMDB that cannot find out', async () => {
    await server(5);
    await application('shard').put('records_v5', 'own', 'a record');
    await around.put(name('b', 1), 'damaged');
    await around.put(name('b', 1, 'shard'), ofShard('of-b'));
    const main = run();
    run('', { main }, 'shard');
    await has('of-b', 'records_v5', 'shard');
  });

  it('uploads nothing while the main LMDB does not', async () => {
    await server(5);
    await application('shard').put('records_v5', 'own', 'a record');
    const main = run();
    run('', { main }, 'shard');
    await storedCount(1);
    await storedCount(1, 'shard');
    await server(6);
    await until(() => failure('shard') !== undefined, { what: 'the failure' });
    const before = await stored('shard');
    await application('shard').put('records_v5', 'more', 'a record');
    await rounds();
    expect(await stored('shard')).toEqual(before);
  });
});

describe('between the decision and the write', () => {
  /** The real addon, with something before the first merge. */
  function before(work: () => Promise<void>, calls: string[] = []): Native {
    let first = true;
    return {
      ...native,
      snapshotSchema: (...args) => {
        calls.push('snapshotSchema');
        return native.snapshotSchema(...args);
      },
      openEnvironment: (path, options) =>
        new Proxy(native.openEnvironment(path, options), {
          get(target, property: keyof Environment) {
            const member = target[property];
            if (property === 'merge' && first) {
              first = false;
              return (options: MergeOptions) => work().then(() => target.merge(options));
            }
            return typeof member === 'function' ? (member.bind(target) as unknown) : member;
          },
        }),
    };
  }

  it('the server is upgraded: nothing is written, and the snapshot is looked at again', async () => {
    await server(5);
    await around.put(name('a', 1), ofSchema(5, 'of-a'));
    run('', { native: before(() => server(6)) });
    await logged(heldLine);
    expect(lines(heldLine)[0]).toMatch(/ schema=6 snapshot_instance=a snapshot_schema=5/);
    await rounds();
    expect(await application().get('domains_v5', 'of-a')).toBeUndefined();
    expect(around.health.report().failures['main_local_fault']).toBeUndefined();
  });

  it('an LMDB that is not of PowerDNS is asked nothing, and neither are snapshots for it', async () => {
    await application().put('data', 'k', 'v');
    await around.put(name('a', 1), snapshot({ data: [entry('of-a', 'v')] }));
    const calls: string[] = [];
    run('', { native: before(async () => undefined, calls) });
    await has('of-a', 'data');
    await storedCount(1);
    expect(calls).toEqual([]);
    expect(warning()).toBeUndefined();
  });
});
