/** Snapshots that PowerDNS Lightning Stream made of a PowerDNS 4.9 arrive between ours at running daemons. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { describe, expect, test } from 'vitest';
import { hasNodeLmdb, type HexEntry, readLmdb } from '../helpers/lmdb.ts';
import { repositoryRoot, until } from '../helpers/process.ts';
import { Testkit } from '../helpers/testkit.ts';
import { cluster, DBI, type Instance } from './helpers.ts';

const golden = join(repositoryRoot, 'test/golden/pdns-4.9-native');
const objects = {
  main: 'main__golden-a__20261122-041607-260130474__GX.pb.gz',
  shard: 'shard__golden-a__20261122-041607-260151538__GX.pb.gz',
};
const databases = ['main', 'shard'] as const;

describe.skipIf(!hasNodeLmdb())('snapshots of the reference, mixed with ours', () => {
  test('reach every instance, and are what PowerDNS wrote', async () => {
    await using net = await cluster(2);
    const [a, b] = [net.instance('a'), net.instance('b')];
    for (const instance of [a, b]) {
      const options = { no_subdir: true, create: true };
      await instance.start({
        config: {
          lmdbs: { shard: { path: pathOf(instance, 'shard'), schema_tracks_changes: true, options } },
        },
      });
    }
    await Promise.all([a.ok(), b.ok()]);
    await a.app.put(DBI, 'ours', 'before');
    await b.has('ours', 'before');
    for (const name of Object.values(objects)) {
      await net.upload(name, readFileSync(join(golden, 'snapshots', name)));
    }
    await b.app.put(DBI, 'ours', 'after');
    await a.has('ours', 'after');
    for (const instance of [a, b]) {
      for (const db of databases) {
        await instance.logged(
          'Loaded remote update',
          (entry) => entry['db'] === db && entry['snapshot_instance'] === 'golden-a',
        );
      }
    }

    // A later writer changes one of PowerDNS's records; the other instance gets it from ours.
    const original = await contents(net.directory, 'main');
    const [dbi = '', [[key = '', value = ''] = []] = []] =
      Object.entries(original).find(([, entries]) => entries.length > 0) ?? [];
    const newer = BigInt(`0x${value.slice(0, 16)}`) + 1n;
    await a.app.call({ op: 'put', dbi, key, value: 'ff', timestamp: String(newer) });
    await until(async () => (await b.app.call({ op: 'get', dbi, key }))['value'] === 'ff', {
      what: 'b has the changed record',
    });
    // PowerDNS's own program ran before this change: its snapshot, older, changes nothing when it comes again.
    await net.upload(
      objects.main.replace('20261122-041607-260130474', '20261122-041607-260130475'),
      readFileSync(join(golden, 'snapshots', objects.main)),
    );
    await a.logged('Loaded remote update', ({ timestamp }) => timestamp === '20261122-041607-260130475');

    for (const instance of [a, b]) {
      await instance.stop();
      await instance.stopApp();
      for (const db of databases) {
        const expected = await contents(net.directory, db);
        const { dbis } = await readLmdb(pathOf(instance, db), { noSubdir: true });
        for (const [name, entries] of Object.entries(expected)) {
          const found = (dbis[name]?.entries ?? []).map(comparable);
          const wanted = entries.map(([k, v]): HexEntry =>
            db === 'main' && name === dbi && k === key ? [k, headerOf(newer) + 'ff'] : [k, v],
          );
          expect(found, `${name} in ${db} of ${instance.name}`).toEqual(wanted);
        }
      }
    }
  });

  test('what we publish of them, a third instance has from us alone', async () => {
    await using net = await cluster(['a', 'c']);
    const [a, c] = [net.instance('a'), net.instance('c')];
    writeFileSync(a.lmdbPath, gunzipSync(readFileSync(join(golden, 'main.mdb.gz'))));
    expect(await a.run({ args: ['sync', '--only-once'] })).toMatchObject({ code: 0 });
    expect(net.objects()).toHaveLength(1);
    await c.start();
    await c.logged('Loaded remote update');
    await c.stop();
    const { dbis } = await readLmdb(c.lmdbPath, { noSubdir: true });
    const found = Object.fromEntries(
      Object.entries(dbis).map(([name, { entries }]) => [name, entries.map(comparable)]),
    );
    expect(found).toEqual(await contents(net.directory, 'main'));
    await using app = new Testkit(c.lmdbPath, { noSubdir: true });
    expect(await app.digest()).toBe(await a.app.digest());
  });
});

function pathOf(instance: Instance, database: 'main' | 'shard'): string {
  return database === 'main' ? instance.lmdbPath : join(instance.directory, 'shard.mdb');
}

/** What PowerDNS has in its LMDB, read by node-lmdb, transaction ids left out. */
async function contents(directory: string, database: string): Promise<Record<string, HexEntry[]>> {
  const path = join(directory, `golden-${database}.mdb`);
  writeFileSync(path, gunzipSync(readFileSync(join(golden, `${database}.mdb.gz`))));
  const { dbis } = await readLmdb(path, { noSubdir: true });
  return Object.fromEntries(
    Object.entries(dbis).map(([name, { entries }]) => [name, entries.map(comparable)]),
  );
}

/** Bytes 8 to 16 of a header are the local transaction id. */
function comparable([key, value]: HexEntry): HexEntry {
  return [key, `${value.slice(0, 16)}${'0'.repeat(16)}${value.slice(32)}`];
}

function headerOf(timestampNano: bigint): string {
  return timestampNano.toString(16).padStart(16, '0') + '0'.repeat(32);
}
