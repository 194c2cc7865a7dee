import { expect, test } from 'vitest';
import { until } from '../helpers/process.ts';
import { cluster, DBI } from './helpers.ts';

// In a file of its own, so that others run meanwhile: a minute is the shortest interval that is allowed.
test('the force interval publishes without a change, once per interval', async () => {
  await using net = await cluster(1, { storage_force_snapshot_interval: '1m' });
  const a = net.instance('a');
  await a.app.put(DBI, 'key', 'value');
  await net.start();
  await a.logged('Stored snapshot');
  const fromMs = performance.now();
  await until(() => net.objects('a').length >= 2, { what: 'a second snapshot', timeoutMs: 75_000 });
  expect((performance.now() - fromMs) / 1000).toBeGreaterThan(58);
  await a.logged('Snapshot overdue, forcing one');
  expect(net.objects('a')).toHaveLength(2);
});
