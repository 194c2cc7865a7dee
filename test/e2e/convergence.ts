/** Random writers beside real daemons, with and without kills; what is left must be what the last writers wrote. */
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
}

interface Model {
  /** By `dbi/key`. */
  readonly records: Map<string, Version>;
}

interface Version {
  readonly timestampNano: bigint;
  readonly value: string;
  readonly deleted: boolean;
}

const DBIS = ['domains', 'records'];
const KEYS = 150;
const VALUES = ['', 'a', 'ab', 'b', 'c'.repeat(300), 'é'];
/** Records that nobody changes: they make snapshots long enough to be killed in. */
const BALLAST = 5000;
const KEEP_OBJECTS = 3;

/** Writers commit on all three instances for the duration; then all must equal the model, and nothing may lie about. */
export async function convergence({ seed, durationMs, kills }: ConvergenceOptions): Promise<void> {
  await seeded(seed, async () => {
    const random = new Random(seed);
    await using net = await cluster(3);
    const model: Model = { records: new Map() };
    await net.instance('a').app.fill(BALLAST);
    await net.start();

    const writing = new AbortController();
    const endsMs = performance.now() + durationMs;
    const writers = net.instances.map((instance) => write(instance, model, random.fork(), writing.signal));
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
      async () => new Set(await Promise.all(net.instances.map(({ app }) => app.digest()))).size === 1,
      { what: 'all three databases are equal', timeoutMs: 30_000, intervalMs: 100 },
    );
    for (const { app, name } of net.instances) {
      const { ballast, records } = await contents(app);
      expect(records, `${name} against the model`).toEqual(sorted(model.records));
      expect(ballast, `untouched records of ${name}`).toBe(BALLAST);
    }
    for (const instance of net.instances) await instance.stop();
    expect(net.instances.flatMap(spoolDirectories)).toEqual([]);
    expect(net.objects().filter((name) => !name.endsWith('.pb.gz'))).toEqual([]);
    for (const name of net.objects()) await decodes(net, name);
  });
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
