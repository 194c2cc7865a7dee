// The schedule of sweeping, its figures and its troubles; what is removed is the core's business and tested there.
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { loadNative } from '../../src/native/index.ts';
import type { Environment, SweepOptions } from '../../src/native/types.ts';
import { Sweeper } from '../../src/sync/sweeper.ts';
import type { Clock } from '../../src/sync/wait.ts';
import { until } from '../helpers/process.ts';
import { Testkit } from '../helpers/testkit.ts';
import { adjustableClock, at, config, type Surroundings, surroundings } from './sync-helpers.ts';

const native = loadNative();
const DAY = 86_400_000_000_000n;
let around: Surroundings;
let closing: (() => Promise<unknown>)[];

beforeEach(async () => {
  around = await surroundings();
  closing = [];
});

afterEach(async () => {
  around.abort.abort(new Error('the test is over'));
  for (const close of closing) await close();
  await around[Symbol.asyncDispose]();
});

async function environment(mapSizeBytes = 1 << 20): Promise<{ env: Environment; app: Testkit }> {
  const path = around.dir.join('lmdb');
  const app = new Testkit(path, { mapSizeBytes });
  closing.push(() => app[Symbol.asyncDispose]());
  await app.put('data', 'alive', 'value', { timestampNano: at(0) });
  const env = native.openEnvironment(path, {
    noSubdir: false,
    create: false,
    dirMask: 0o775,
    fileMask: 0o664,
    mapSizeBytes: 0,
    maxDbs: 8,
  });
  closing.unshift(() => env.close());
  return { env, app };
}

function sweep(env: Environment, settings: string, clock: Clock): Sweeper {
  const sweeper = new Sweeper({
    ...around,
    database: 'main',
    instance: 'self',
    mode: 'native',
    config: config(`sweeper: {enabled: true, ${settings}}`),
    logger: around.log.logger,
    clock,
  });
  run(sweeper, env);
  return sweeper;
}

function run(sweeper: Sweeper, env: Environment): void {
  const ended = sweeper.run(env, around.abort.signal).catch((error: unknown) => {
    if (!around.abort.signal.aborted) throw error;
  });
  closing.unshift(() => ended);
}

const logged = (text: string, count = 1): Promise<true> =>
  until(() => (around.log.text().split(text).length > count ? true : undefined), {
    what: `log line ${text}`,
    intervalMs: 5,
  });

/** The environment, with each sweep asked for written down, and something instead of it while that is given. */
function observed(env: Environment, calls: SweepOptions[], instead?: () => Promise<never>): Environment {
  return new Proxy(env, {
    get(target, property: keyof Environment) {
      if (property === 'sweep')
        return (options: SweepOptions) => {
          calls.push(options);
          return instead === undefined ? target.sweep(options) : instead();
        };
      const member = target[property];
      return typeof member === 'function' ? (member.bind(target) as unknown) : member;
    },
  });
}

describe('sweeping', () => {
  it('removes what is older than the retention, and tells what it did', async () => {
    const clock = adjustableClock();
    const { env, app } = await environment();
    const now = clock.wallNano();
    await app.delete('data', 'old', { timestampNano: now - (DAY * 3n) / 2n - DAY / 100n });
    await app.delete('data', 'young', { timestampNano: now - (DAY * 3n) / 2n + DAY / 100n });
    sweep(env, 'retention_days: 1.5, first_interval: 10ms', clock);
    await logged('Sweep completed');
    expect(await app.get('data', 'old')).toBeUndefined();
    expect(await app.get('data', 'young')).toMatchObject({ deleted: true });
    expect(await app.get('data', 'alive')).toMatchObject({ value: 'value' });
    expect(around.log.text()).toMatch(
      /level=info msg="Sweep completed" cleaned_entries=1 component=sweeper deleted_entries=1 deleted_fraction=0.5 time_taken=\S+ time_write_lock=\S+ total_entries=2 transactions=1/,
    );
    const page = (await around.metrics.page()).text;
    expect(page.match(/^lightningstream_sweeper_(?!duration_seconds_sum).*/gm)).toEqual([
      'lightningstream_sweeper_cleaned_total{lmdb="main"} 1',
      'lightningstream_sweeper_stats_available{lmdb="main"} 1',
      'lightningstream_sweeper_stats_total_entries{lmdb="main"} 2',
      'lightningstream_sweeper_stats_deleted_entries{lmdb="main"} 1',
      'lightningstream_sweeper_duration_seconds_count{lmdb="main"} 1',
    ]);
  });

  it('asks for what is configured', async () => {
    const { env } = await environment();
    const calls: SweepOptions[] = [];
    const clock: Clock = { monotonicMs: () => 0, wallNano: () => 100n * DAY };
    sweep(
      observed(env, calls),
      'retention_days: 40, first_interval: 0s, lock_duration: 7ms, release_duration: 9ms',
      clock,
    );
    await logged('Sweep completed');
    expect(calls[0]).toMatchObject({
      mode: 'native',
      cutoffNano: 60n * DAY,
      lockDurationMs: 7,
      releaseDurationMs: 9,
    });
  });

  it('removes nothing when the retention begins before 1970', async () => {
    const { env, app } = await environment();
    await app.delete('data', 'old', { timestampNano: 0n });
    sweep(env, 'retention_days: 40000, first_interval: 0s', adjustableClock());
    await logged('Sweep completed');
    expect(await app.get('data', 'old')).toMatchObject({ deleted: true });
  });

  it('begins after first_interval and comes again after interval, whatever becomes of the environment', async () => {
    let ms = 0;
    const clock: Clock = { monotonicMs: () => ms, wallNano: () => at(0) };
    const { env } = await environment();
    const calls: SweepOptions[] = [];
    // The wait is looked at again when it should be over; without the clock's consent nothing begins.
    const sweeper = sweep(observed(env, calls), 'first_interval: 20ms, interval: 1s', clock);
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(calls).toHaveLength(0);
    ms = 20;
    await logged('Sweep completed');
    ms = 21 + 999;
    run(sweeper, observed(env, calls));
    await logged('Sweep completed', 2);
    expect(calls.length).toBeGreaterThan(1);
  });

  it('tells how far it is when it takes long', async () => {
    let ms = 0;
    const clock: Clock = { monotonicMs: () => ms, wallNano: () => at(0) };
    const { env } = await environment();
    const calls: SweepOptions[] = [];
    sweep(
      observed(env, calls, () => new Promise(() => undefined)),
      'first_interval: 0s',
      clock,
    );
    await until(() => calls[0], { what: 'a sweep', intervalMs: 5 });
    const tell = (at: number): void => {
      ms = at;
      calls[0]?.onSweep?.({ walked: 5, cleaned: 2, total: 9 });
    };
    tell(9_999);
    expect(around.log.text()).not.toContain('Sweep under way');
    tell(10_000);
    tell(15_000);
    expect(around.log.text().match(/msg="Sweep under way".*/g)).toEqual([
      'msg="Sweep under way" cleaned_entries=2 component=sweeper entries=5 time_taken=10s total_entries=9',
    ]);
    around.abort.abort();
    closing.shift();
  });
});

describe('trouble', () => {
  it('is logged once, unhealthy, tried again, and over', async () => {
    const clock = adjustableClock();
    const { env, app } = await environment();
    await app.delete('other', 'old', { timestampNano: 0n });
    await app.call({
      op: 'raw',
      dbi: 'data',
      key: Buffer.from('broken').toString('hex'),
      value: Buffer.from('no header').toString('hex'),
    });
    sweep(env, 'first_interval: 0s, interval: 100ms', clock);
    await logged('Sweep failed, trying again');
    // The others were swept all the same.
    expect(await app.get('other', 'old')).toBeUndefined();
    expect(around.health.report().failures['main_sweep_failed']).toMatch(
      /^old deletions cannot be removed: .*no valid header.*DBI data, key 62726f6b656e$/,
    );
    const page = (await around.metrics.page()).text;
    expect(page).toContain('lightningstream_sweeper_cleaned_total{lmdb="main"} 1');
    expect(page).not.toContain('lightningstream_sweeper_stats_available');
    await app.put('data', 'broken', 'mended');
    await logged('Sweeping works again');
    await logged('Sweep completed');
    expect(around.health.report().failures).toEqual({});
    expect(around.log.text().match(/Sweep failed/g)).toHaveLength(1);
  });
});
