/** Running daemons keep the storage clean: a directory, and S3 with an update marker. */
import { randomBytes } from 'node:crypto';
import { expect, test } from 'vitest';
import { until } from '../helpers/process.ts';
import { mc, startMinio } from '../helpers/s3-server.ts';
import { describeWithTools } from '../helpers/tools.ts';
import { cluster, type Cluster, DBI } from './helpers.ts';

const cleanup = {
  enabled: true,
  interval: '1s',
  must_keep_interval: '0s',
  remove_old_instances_interval: '1s',
};
const foreign = ['main__notes.txt', 'other__a__20200101-000000-000000000__GX.pb.gz', 'update-marker.old'];

/** What is in the storage, unfinished files left out. */
type List = () => Promise<readonly string[]>;

async function storedBy(list: List, instance: string): Promise<string[]> {
  return (await list()).filter((name) => name.startsWith(`main__${instance}__`));
}

/** One snapshot of each live instance stays; those of one that is gone go when the others have what it held. */
async function scenario(net: Cluster, storage: object, list: List): Promise<void> {
  const [a, b] = [net.instance('a'), net.instance('b')];
  const config = { storage: { ...storage, cleanup } };
  // Receiving only, it cleans nothing.
  const watcher = net.instance('watcher');
  await watcher.start({ args: ['receive'], config });
  await a.start({ config });
  await b.start({ config });
  for (let round = 0; round < 5; round++) {
    await a.app.put(DBI, `a-${round}`, 'value');
    await b.app.put(DBI, `b-${round}`, 'value');
    await Promise.all([a.has(`b-${round}`, 'value'), b.has(`a-${round}`, 'value')]);
  }
  await until(
    // None of one that had nothing to say for a second: with these intervals it counts as gone.
    async () => (await storedBy(list, 'a')).length <= 1 && (await storedBy(list, 'b')).length <= 1,
    { what: 'no older snapshot is left', timeoutMs: 20_000 },
  );

  await b.stop();
  await a.app.put(DBI, 'without-b', 'value');
  await a.logged('Removed the last snapshot of an instance that is gone', undefined, 20_000);
  expect(await storedBy(list, 'b')).toEqual([]);
  expect(await storedBy(list, 'a')).not.toEqual([]);
  expect((await list()).filter((name) => !name.startsWith('main__a__'))).toEqual(foreign);

  // Nothing that it had is lost, for itself or anybody else.
  await b.start({ config });
  await b.has('without-b', 'value');
  await watcher.has('b-4', 'value');
  expect(await watcher.metric('lightningstream_cleaner_list_calls_total')).toBe(0);
  expect((await a.health()).warnings).toEqual({});
}

test('a directory', async () => {
  await using net = await cluster(['a', 'b', 'watcher']);
  for (const name of foreign) await net.upload(name, Buffer.from('x'));
  const list: List = async () =>
    net.objects().filter((name) => !name.endsWith('.tmp') && !name.startsWith('.'));
  await scenario(net, {}, list);
}, 120_000);

describeWithTools(['minio', 'mc'], 'S3', () => {
  test('with an update marker', async () => {
    await using server = await startMinio();
    await using net = await cluster(['a', 'b', 'watcher']);
    const bucket = `b-${randomBytes(4).toString('hex')}`;
    await mc(server, 'mb', `s3/${bucket}`);
    await net.upload('x', Buffer.from('x'));
    for (const name of foreign) await mc(server, 'cp', `${net.storagePath}/x`, `s3/${bucket}/${name}`);
    const storage = {
      type: 's3',
      options: {
        root_path: undefined,
        endpoint_url: server.endpoint,
        access_key: server.accessKey,
        secret_key: server.secretKey,
        bucket,
        use_update_marker: true,
      },
    };
    const list: List = async () =>
      (await mc(server, 'ls', '--json', `s3/${bucket}`))
        .split('\n')
        .filter((line) => line !== '')
        .map((line) => (JSON.parse(line) as { key: string }).key)
        .filter((name) => name !== 'update-marker')
        .sort();
    await scenario(net, storage, list);
  }, 120_000);
});
