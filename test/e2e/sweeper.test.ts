/** Old deletions go from the LMDB of a running daemon, and nothing else. */
import { expect, test } from 'vitest';
import { until } from '../helpers/process.ts';
import { cluster, DBI } from './helpers.ts';

const RECORDS = Number(process.env['E2E_RECORDS'] || 1_000_000);
const retention = { enabled: true, retention_days: 1 };
const sweeper = { ...retention, first_interval: '0s', lock_duration: '10ms', release_duration: '1ms' };

test(`${RECORDS / 2} old deletions of ${RECORDS} records are gone, and all others are as they were`, async () => {
  await using net = await cluster(['a', 'fresh', 'other']);
  const [a, fresh, other] = [net.instance('a'), net.instance('fresh'), net.instance('other')];
  await a.app.fill(RECORDS, { deletedEvery: 2 });
  await a.run({ args: ['sync', '--only-once'] });
  // Loads what is alive only: what has to be left in the end, by another way.
  const loaded = fresh.log(
    (await fresh.run({ args: ['receive', '--only-once'], config: { sweeper: retention } })).stderr,
  );
  expect(loaded.find(({ msg }) => msg === 'Loaded remote update')).toMatchObject({
    entries: RECORDS,
    added: RECORDS / 2,
  });
  // Has all deletions, and no sweeper: they must not come back from it.
  await other.run({ args: ['receive', '--only-once'] });

  await a.start({ config: { sweeper } });
  // The application goes on writing meanwhile.
  const timestampNano = BigInt(Date.now()) * 1_000_000n;
  let written = 0;
  const swept = a.logged('Sweep completed', undefined, 120_000);
  let done = false;
  const ended = swept.finally(() => (done = true));
  while (!done) await a.app.put(DBI, `key-${written++}`, 'value', { timestampNano });
  await ended;
  const line = await swept;
  expect(line).toMatchObject({ cleaned_entries: RECORDS / 2, deleted_entries: 0, deleted_fraction: 0 });
  expect(Number(line['transactions'])).toBeGreaterThan(1);
  expect(await a.metric('lightningstream_sweeper_cleaned_total')).toBe(RECORDS / 2);
  expect(await a.metric('lightningstream_sweeper_stats_deleted_entries')).toBe(0);

  for (let key = 0; key < written; key++) await fresh.app.put(DBI, `key-${key}`, 'value', { timestampNano });
  const alive = await fresh.app.digest();
  expect(await a.app.digest()).toBe(alive);

  // What others still have does not come back; neither does a snapshot of it make us store one.
  await other.app.put(DBI, 'last', 'value', { timestampNano });
  await other.start();
  await a.has('last', 'value');
  await fresh.app.put(DBI, 'last', 'value', { timestampNano });
  expect(await a.app.digest()).toBe(await fresh.app.digest());
  await a.stop();
  const stored = a.log().filter(({ msg }) => msg === 'Stored snapshot');
  expect(stored.at(-1)).toMatchObject({ entries: RECORDS / 2 + written });
}, 300_000);

test('a restart in the middle begins anew, after first_interval, and does the rest', async () => {
  await using net = await cluster(1);
  const a = net.instance('a');
  await a.app.fill(20_000, { deletedEvery: 2 });
  // A single pass is over before a sweep would make sense.
  const once = a.log((await a.run({ args: ['sync', '--only-once'], config: { sweeper } })).stderr);
  expect(once.map(({ msg }) => msg)).toContain('Stored snapshot');
  expect(once.find(({ component }) => component === 'sweeper')).toBeUndefined();
  // One slice, and then hardly ever another.
  const slow = { ...sweeper, lock_duration: '1us', release_duration: '1h' };
  await a.start({ config: { sweeper: slow } });
  const entries = (): Promise<number> => a.metric('lmdb_stat_entries');
  const left = await until(
    async () => {
      const now = await entries();
      return now < 20_000 && now;
    },
    { what: 'something is removed' },
  );
  expect(left).toBeGreaterThan(10_000);
  // It is in the middle of its pause: that is no hindrance.
  await a.stop();
  await a.start({ config: { sweeper } });
  await a.logged('Sweep completed', ({ cleaned_entries }) => cleaned_entries === left - 10_000);
  expect(await entries()).toBe(10_000);
}, 60_000);
