/**
 * Random writers beside real daemons, with and without kills; what is left must be what the last writers wrote. Native writers give the
 * times themselves, so a model knows who was last; in shadow mode only the daemons know.
 */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { expect } from 'vitest';
import { loadNative } from '../../src/native/index.ts';
import { cluster, type Cluster, type Instance, Random, seeded, spoolDirectories } from './helpers.ts';
import { until } from '../helpers/process.ts';

export interface ConvergenceOptions {
  readonly seed: number;
  readonly durationMs: number;
  /** Daemons killed and started again, at random moments of the duration. */
  readonly kills: number;
  /** `native` by default; in shadow mode the writers know nothing of headers, and use tables with duplicates and integer keys, too. */
  readonly mode?: 'native' | 'shadow';
}

/** What is written, and what must come of it. */
interface Load {
  readonly config: Settings;
  /** Records that nobody changes: they make snapshots long enough to be killed in. */
  fill(app: App): Promise<void>;
  /** Random transactions until the signal; returns how many. */
  write(instance: Instance, random: Random, signal: AbortSignal): Promise<number>;
  /** Equal where two databases agree. */
  fingerprint(app: App): Promise<string>;
  check(instance: Instance): Promise<void>;
}

type App = Instance['app'];
type Settings = NonNullable<Parameters<typeof cluster>[1]>;

interface Model {
  /** By `dbi/key`. */
  readonly records: Map<string, Version>;
}

interface Version {
  readonly timestampNano: bigint;
  readonly value: string;
  readonly deleted: boolean;
}

const DBIS = ['areas', 'entries'];
const KEYS = 150;
const VALUES = ['', 'a', 'ab', 'b', 'c'.repeat(300), 'é'];
const BALLAST = 5000;
/** Beside the ballast; flags as in lmdb.h. */
const PLAIN_DBIS = { plain: 0, integers: 0x08, index: 0x04 } as const;
const PLAIN_BALLAST = 'ballast';
const KEEP_OBJECTS = 3;

/** Writers commit on all three instances for the duration; then all must equal the model, and nothing may lie about. */
export async function convergence({
  seed,
  durationMs,
  kills,
  mode = 'native',
}: ConvergenceOptions): Promise<void> {
  await seeded(seed, async () => {
    const random = new Random(seed);
    const load = mode === 'native' ? nativeLoad() : shadowLoad({ kills: kills > 0 });
    await using net = await cluster(3, load.config);
    await load.fill(net.instance('a').app);
    await net.start();

    const writing = new AbortController();
    const endsMs = performance.now() + durationMs;
    const writers = net.instances.map((instance) => load.write(instance, random.fork(), writing.signal));
    const keeper = keepHouse(net, writing.signal);
    try {
      const killer = random.fork();
      const pauseMs = durationMs / (kills + 1);
      for (let count = 0; count < kills; count++) {
        await delay(pauseMs * (0.25 + killer.below(1000) / 1000));
        const victim = killer.pick(net.instances);
        await victim.kill();
        expect((await victim.daemon.exited).signal).toBe('SIGKILL');
        await victim.start();
      }
      await delay(Math.max(0, endsMs - performance.now()));
    } finally {
      writing.abort();
      await Promise.all([...writers, keeper]);
    }
    const commits = (await Promise.all(writers)).reduce((sum, count) => sum + count, 0);
    expect(commits).toBeGreaterThan(50);

    await until(
      async () =>
        new Set(await Promise.all(net.instances.map(({ app }) => load.fingerprint(app)))).size === 1,
      { what: 'all three databases are equal', timeoutMs: 30_000, intervalMs: 100 },
    );
    for (const instance of net.instances) await load.check(instance);
    const digests = new Set<string>();
    for (const instance of net.instances) {
      const { code, stdout } = await instance.run({ args: ['verify', '--latest', '--json'] });
      expect({ code, stdout }).toMatchObject({ code: 0 });
      digests.add((JSON.parse(stdout) as { digestAll: string }).digestAll);
    }
    expect(digests.size).toBe(1);
    for (const instance of net.instances) await instance.stop();
    expect(net.instances.flatMap(spoolDirectories)).toEqual([]);
    expect(net.objects().filter((name) => !name.endsWith('.pb.gz'))).toEqual([]);
    for (const name of net.objects()) await decodes(net, name);
  });
}

function nativeLoad(): Load {
  const model: Model = { records: new Map() };
  return {
    config: {},
    fill: (app) => app.fill(BALLAST),
    write: (instance, random, signal) => write(instance, model, random, signal),
    fingerprint: (app) => app.digest(),
    async check({ app, name }) {
      const { ballast, records } = await contents(app);
      expect(records, `${name} against the model`).toEqual(sorted(model.records));
      expect(ballast, `untouched records of ${name}`).toBe(BALLAST);
    },
  };
}

/** What was done to a key, or of a DBI with duplicates to one pair: a value that was put, or `removed`. */
interface History {
  /** By instance. */
  readonly last: Map<string, string>;
  readonly all: Set<string>;
}

const REMOVED = 'removed';

function shadowLoad({ kills }: { readonly kills: boolean }): Load {
  const histories = new Map<string, History>();
  const remember = (place: string, instance: string, what: string): void => {
    let history = histories.get(place);
    if (history === undefined) histories.set(place, (history = { last: new Map(), all: new Set() }));
    history.last.set(instance, what);
    history.all.add(what);
  };
  const shadowsOf = async (app: App): Promise<string> => {
    const shadows = await app.plainDump({ shadows: true, encoding: 'hex' });
    // Without the number of the local transaction, bytes 8 to 15 of the value.
    const masked = Object.entries(shadows).map(([name, entries]) => [
      name,
      entries.map((entry) => entry.replace(/( = .{16}).{16}/, '$1')),
    ]);
    return JSON.stringify(masked);
  };
  return {
    config: { lmdbs: { main: { schema_tracks_changes: false, dupsort_hack: true } } },
    async fill(app) {
      const keys = Array.from({ length: BALLAST }, (_, index) => `ballast-${index}`);
      await app.plain(...keys.map((key) => ({ dbi: PLAIN_BALLAST, key, value: key.repeat(5) })));
    },
    async write({ app, name }, random, signal) {
      let commits = 0;
      while (!signal.aborted) {
        const dbi = random.pick(Object.keys(PLAIN_DBIS) as (keyof typeof PLAIN_DBIS)[]);
        const changes = Array.from({ length: 1 + random.below(5) }, () => plainChange(dbi, random));
        const remove = random.below(4) === 0;
        const done = remove ? changes.slice(0, 1).map((change) => ({ ...change, remove })) : changes;
        try {
          await app.plain(...done);
        } catch (error) {
          // There was nothing to remove.
          if (!String(error).includes('MDB_NOTFOUND')) throw error;
          continue;
        }
        for (const change of done) {
          const value = change.value.toString('hex');
          const pair = dbi === 'index' ? `=${value}` : '';
          remember(`${dbi}/${change.key.toString('hex')}${pair}`, name, remove ? REMOVED : value);
        }
        commits++;
        await delay(random.below(15));
      }
      return commits;
    },
    async fingerprint(app) {
      return `${JSON.stringify(await app.plainDump({ encoding: 'hex' }))}${await shadowsOf(app)}`;
    },
    async check({ app, name }) {
      const { [PLAIN_BALLAST]: ballast, ...dbis } = await app.plainDump({ encoding: 'hex' });
      expect(ballast, `untouched records of ${name}`).toHaveLength(BALLAST);
      expect(Object.keys(dbis).sort()).toEqual(Object.keys(PLAIN_DBIS).sort());
      const found = new Map<string, string>();
      for (const [dbi, entries] of Object.entries(dbis)) {
        for (const entry of entries) {
          const [key = '', value = ''] = entry.split(' = ');
          found.set(`${dbi}/${key}${dbi === 'index' ? `=${value}` : ''}`, value);
        }
      }
      expect([...found.keys()].filter((place) => !histories.has(place))).toEqual([]);
      const wrong = [...histories].flatMap(([place, { last, all }]) => {
        const value = found.get(place) ?? REMOVED;
        // Undisturbed, the winner is what some instance did last. What is done while its daemon is down counts as old when it adds or
        // removes, so that an earlier value comes back.
        const possible = kills ? all : new Set(last.values());
        return possible.has(value) ? [] : [{ place, value, possible: [...possible] }];
      });
      expect(wrong, `${name} against what was done`).toEqual([]);
    },
  };
}

function plainChange(
  dbi: keyof typeof PLAIN_DBIS,
  random: Random,
): { dbi: string; flags: number; key: Buffer; value: Buffer } {
  const flags = PLAIN_DBIS[dbi];
  if (dbi === 'integers') {
    const key = Buffer.alloc(4);
    // Whatever the byte order of the host: the order is not ours to know.
    key.writeUInt32LE(random.below(KEYS) * 7);
    return { dbi, flags, key, value: Buffer.from(`value-${random.below(20)}`) };
  }
  // Few keys have many duplicates.
  const key = Buffer.from(dbi === 'index' ? `key-${random.below(10)}` : `key-${random.below(KEYS)}`);
  // None is empty: in shadow mode that is no value.
  const values = dbi === 'index' ? random.below(200) : random.below(20);
  return { dbi, flags, key, value: Buffer.from(`value-${values}`) };
}

/** Random transactions until the signal; returns how many. The model learns of each once it is committed. */
async function write(instance: Instance, model: Model, random: Random, signal: AbortSignal): Promise<number> {
  let commits = 0;
  const base = 1_700_000_000_000_000_000n;
  while (!signal.aborted) {
    const entries = Array.from({ length: 1 + random.below(5) }, () => {
      const deleted = random.below(4) === 0;
      return {
        dbi: random.pick(DBIS),
        key: `key-${random.below(KEYS)}`,
        value: deleted ? '' : random.pick(VALUES),
        deleted,
        // The counters of the writers run side by side: equal timestamps with different values are common.
        timestampNano: base + BigInt(commits - random.below(Math.min(commits, 4) + 1)),
      };
    });
    await instance.app.call({
      op: 'update',
      entries: entries.map(({ dbi, key, value, deleted, timestampNano }) => ({
        dbi,
        key: hex(key),
        value: hex(value),
        deleted,
        timestamp: String(timestampNano),
      })),
    });
    for (const { dbi, key, ...version } of entries) {
      const place = `${dbi}/${key}`;
      const old = model.records.get(place);
      if (old === undefined || wins(version, old)) model.records.set(place, version);
    }
    commits++;
    await delay(random.below(15));
  }
  return commits;
}

/** The last writer; between equal times the lower value, and a deletion before an empty value. */
function wins(candidate: Version, old: Version): boolean {
  if (candidate.timestampNano !== old.timestampNano) return candidate.timestampNano > old.timestampNano;
  const order = Buffer.compare(Buffer.from(candidate.value), Buffer.from(old.value));
  return order === 0 ? candidate.deleted && !old.deleted : order < 0;
}

async function contents(
  app: Instance['app'],
): Promise<{ ballast: number; records: Record<string, Version> }> {
  const { dbis } = (await app.call({ op: 'dump' })) as {
    dbis: Record<string, Record<string, { value: string; timestamp: string; deleted: boolean }>>;
  };
  const records = new Map<string, Version>();
  for (const dbi of DBIS) {
    for (const [key, { value, timestamp, deleted }] of Object.entries(dbis[dbi] ?? {})) {
      records.set(`${dbi}/${text(key)}`, { timestampNano: BigInt(timestamp), value: text(value), deleted });
    }
  }
  return { ballast: Object.keys(dbis['records_v5'] ?? {}).length, records: sorted(records) };
}

/** Removes all but the newest objects of each instance, as an operator would, and decodes what it removes. */
async function keepHouse(net: Cluster, signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    for (const { name: instance } of net.instances) {
      const old = net.objects(instance).filter((name) => name.endsWith('.pb.gz'));
      for (const name of old.slice(0, -KEEP_OBJECTS)) {
        await decodes(net, name);
        await rm(join(net.storagePath, name));
      }
    }
    await delay(100);
  }
}

async function decodes(net: Cluster, name: string): Promise<void> {
  const { instanceId, entries } = await loadNative().inspectSnapshot(join(net.storagePath, name));
  expect([name, instanceId]).toEqual([name, name.split('__')[1]]);
  expect(entries).toBeGreaterThanOrEqual(0);
}

function sorted(records: ReadonlyMap<string, Version>): Record<string, Version> {
  return Object.fromEntries([...records].sort(([a], [b]) => (a < b ? -1 : 1)));
}

function hex(value: string): string {
  return Buffer.from(value).toString('hex');
}

function text(value: string): string {
  return Buffer.from(value, 'hex').toString();
}
