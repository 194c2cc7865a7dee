/** A merge that changes nothing never takes the write lock of the LMDB. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { hasNodeLmdb, readLmdb } from '../helpers/lmdb.ts';
import { cluster, DBI, objectName } from './helpers.ts';
import { member, snapshot } from './snapshot-maker.ts';

const RECORDS = Number(process.env['E2E_RECORDS'] || 1_000_000);
const MERGES = 3;

test(`identical snapshots of ${RECORDS} records are merged while the application holds the write lock`, async () => {
  await using net = await cluster(2);
  const [a, b] = [net.instance('a'), net.instance('b')];
  await a.app.fill(RECORDS);
  await a.run({ args: ['sync', '--only-once'] });
  const [stored = ''] = net.objects('a');
  const content = readFileSync(join(net.storagePath, stored));
  await b.start({ args: ['receive'] });
  const first = await b.logged('Loaded remote update', undefined, 60_000);
  expect(first).toMatchObject({ entries: RECORDS, added: RECORDS });

  // Held until the end of this block: a merge that wants the lock waits for ever.
  await b.app.call({ op: 'lock' });
  for (let merge = 0; merge < MERGES; merge++) {
    const name = objectName('a');
    await net.upload(name, content);
    const line = await b.logged(
      'Loaded remote update',
      ({ timestamp }) => name.includes(String(timestamp)),
      60_000,
    );
    expect(line).toMatchObject({
      entries: RECORDS,
      added: 0,
      updated: 0,
      time_write_lock: '0s',
      // The transaction that was read: still that of the first load.
      txnID: first['txnID'],
    });
  }
  await b.app.call({ op: 'unlock' });

  // The lock is wanted for a change: with it held, that one waits.
  await b.app.call({ op: 'lock' });
  await net.upload(objectName('z'), member(snapshot(DBI, [{ key: 'z', value: 'z', timestampNano: 5n }])));
  await b.logged('Snapshot downloaded', ({ snapshot_instance }) => snapshot_instance === 'z');
  expect(
    b.log().filter(({ snapshot_instance, msg }) => snapshot_instance === 'z' && msg.startsWith('Loaded')),
  ).toEqual([]);
  await b.app.call({ op: 'unlock' });
  await b.has('z', 'z');
}, 120_000);

test.skipIf(!hasNodeLmdb())('and leave the LMDB as it is, byte for byte', async () => {
  await using net = await cluster(2);
  const [a, b] = [net.instance('a'), net.instance('b')];
  await a.app.fill(1000);
  await a.run({ args: ['sync', '--only-once'] });
  await b.run({ args: ['receive', '--only-once'] });
  const before = await readLmdb(b.lmdbPath, { noSubdir: true });
  const bytes = readFileSync(b.lmdbPath);
  await net.upload(objectName('other'), readFileSync(join(net.storagePath, net.objects('a')[0] ?? '')));
  const { stderr } = await b.run({ args: ['receive', '--only-once'] });
  expect(b.log(stderr).filter(({ msg }) => msg === 'Loaded remote update')).toHaveLength(2);
  expect(await readLmdb(b.lmdbPath, { noSubdir: true })).toEqual(before);
  expect(readFileSync(b.lmdbPath).equals(bytes)).toBe(true);
});
