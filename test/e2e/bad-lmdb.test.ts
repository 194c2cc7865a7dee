/** An LMDB that cannot be used, wholly or in part: said clearly, the rest goes on, and so does this once it is put right. */
import { chmod, symlink } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { hasNodeLmdb, holdLmdb, writeLmdb } from '../helpers/lmdb.ts';
import { Testkit } from '../helpers/testkit.ts';
import { cluster, DBI, type Instance, objectName } from './helpers.ts';
import { member, snapshot } from './snapshot-maker.ts';

const KIB = 1024;
const MIB = 1024 * KIB;
const NO_HEADER = Buffer.from('no header here').toString('hex');

/** A second database of the same daemon, beside `main`. */
function withOther(instance: Instance): { readonly lmdbs: { readonly other: object } } {
  const path = join(instance.directory, 'other.mdb');
  const options = { no_subdir: true, create: true };
  return { lmdbs: { other: { path, schema_tracks_changes: true, options } } };
}

describe('an LMDB that cannot be opened', () => {
  test.skipIf(!hasNodeLmdb())('another lock version: its database waits, the other one goes on', async () => {
    await using net = await cluster(1);
    const a = net.instance('a');
    await writeLmdb(a.lmdbPath, { dbis: { [DBI]: {} } }, { noSubdir: true });
    const holder = await holdLmdb(a.lmdbPath, { noSubdir: true });
    try {
      await a.start({ config: withOther(a) });
      const { failures } = await a.healthy('unavailable', ({ httpStatus }) => httpStatus === 503);
      expect(Object.keys(failures)).toEqual(['main_local_fault']);
      expect(failures['main_local_fault']).toContain(a.lmdbPath);
      expect(failures['main_local_fault']).toMatch(/another program uses a different LMDB version/);
      await using other = new Testkit(join(a.directory, 'other.mdb'), { noSubdir: true });
      await other.put(DBI, 'key', 'value');
      await a.logged('Stored snapshot', ({ db }) => db === 'other');
      // Said once, in one line, however often it is tried.
      expect(a.log().filter(({ level }) => level === 'error')).toHaveLength(1);
      expect(a.daemon.stderr()).not.toMatch(/\n\s+at /);
    } finally {
      await holder[Symbol.asyncDispose]();
    }
    await a.ok();
    await a.app.put(DBI, 'key', 'value');
    await a.logged('Stored snapshot', ({ db }) => db === 'main');
  });

  test('no permission: its database waits, the other one goes on', async () => {
    await using net = await cluster(1);
    const a = net.instance('a');
    await a.app.put(DBI, 'key', 'value');
    await a.stopApp();
    const locked = [a.lmdbPath, `${a.lmdbPath}-lock`];
    for (const path of locked) await chmod(path, 0);
    await a.start({ unprivileged: true, config: withOther(a) });
    const { failures } = await a.healthy('unavailable', ({ httpStatus }) => httpStatus === 503);
    expect(Object.keys(failures)).toEqual(['main_local_fault']);
    expect(failures['main_local_fault']).toContain(a.lmdbPath);
    expect(failures['main_local_fault']).toMatch(/permission denied/i);
    expect(a.log().filter(({ level }) => level === 'error')).toHaveLength(1);

    for (const path of locked) await chmod(path, 0o600);
    await a.ok();
    await a.logged('Stored snapshot', ({ db }) => db === 'main');
  });

  test('not an LMDB: its database waits, and says what it found', async () => {
    await using net = await cluster(1);
    const a = net.instance('a');
    const path = join(a.directory, 'lightningstream.yaml');
    await a.start({ config: { lmdbs: { main: { path, options: { create: false } } } } });
    const { failures } = await a.healthy('unavailable', ({ httpStatus }) => httpStatus === 503);
    expect(failures['main_local_fault']).toMatch(/not an LMDB database/);
    expect(failures['main_local_fault']).toContain(path);
  });

  test('two databases with one path: refused at start', async () => {
    await using net = await cluster(1);
    const a = net.instance('a');
    await a.app.put(DBI, 'key', 'value');
    const link = join(a.directory, 'link.mdb');
    await symlink(a.lmdbPath, link);
    for (const path of [a.lmdbPath, link]) {
      const lmdbs = { other: { path, schema_tracks_changes: true, options: { no_subdir: true } } };
      const { code, stderr } = await a.run({ config: { lmdbs }, args: ['sync', '--only-once'] });
      expect(code).toBe(1);
      expect(stderr.trim().split('\n')).toEqual([expect.stringMatching(/main and other are the same LMDB/)]);
    }
    expect(net.objects()).toEqual([]);
  });
});

describe('a full map', () => {
  const settings = { lmdbs: { main: { options: { map_size: '256KB' } } } };
  const big = { key: 'big', value: 'x'.repeat(150 * KIB), timestampNano: 10n };

  test('goes on by itself when the application makes room', async () => {
    await using net = await cluster(1, settings);
    const a = net.instance('a');
    await a.restartApp({ mapSizeBytes: 256 * KIB });
    await a.app.put(DBI, 'own', 'y'.repeat(160 * KIB));
    await net.start();
    await net.upload(
      objectName('z'),
      member(snapshot(DBI, [{ key: 'a-small', value: 's', timestampNano: 9n }, big])),
    );
    const { failures } = await a.healthy('unavailable', ({ httpStatus }) => httpStatus === 503);
    expect(failures['main_local_fault']).toMatch(/map of 262144 bytes is full/);
    expect(failures['main_local_fault']).toMatch(/map_size/);
    // Nothing of the snapshot is there: it is one transaction.
    expect(await a.app.get(DBI, 'a-small')).toBeUndefined();

    // LMDB uses the pages that one transaction gives back from the one after the next on.
    await a.app.put(DBI, 'own', 'short');
    await a.app.put(DBI, 'own', 'shorter');
    await a.has('big', big.value);
    await a.has('a-small', 's');
    await a.ok();
    await a.logged('Merging works again');
  });

  test('goes on by itself when the application makes the map larger', async () => {
    await using net = await cluster(1, settings);
    const a = net.instance('a');
    await a.restartApp({ mapSizeBytes: 256 * KIB });
    await a.app.put(DBI, 'own', 'y'.repeat(120 * KIB));
    await net.start();
    await net.upload(objectName('z'), member(snapshot(DBI, [big])));
    await a.healthy('unavailable', ({ failures }) => /is full/.test(failures['main_local_fault'] ?? ''));

    const app = await a.restartApp({ mapSizeBytes: 64 * MIB });
    await app.put(DBI, 'more', 'z'.repeat(MIB));
    await a.has('big', big.value);
    await a.ok();
  });
});

describe('a value without a header', () => {
  test('is named with DBI and key in log and health, and forgotten once it is repaired', async () => {
    await using net = await cluster(2);
    const [a, b] = [net.instance('a'), net.instance('b')];
    await net.start();
    // Where no value at all has a header the mode is doubted instead.
    await a.app.put(DBI, 'fine', 'value');
    await b.has('fine', 'value');
    const stored = net.objects('a');
    await a.app.call({ op: 'raw', dbi: DBI, key: Buffer.from('spoilt').toString('hex'), value: NO_HEADER });
    const { failures } = await a.healthy('unavailable', ({ httpStatus }) => httpStatus === 503);
    expect(Object.keys(failures)).toEqual(['main_local_fault']);
    // The key in hexadecimal: 73706f696c74.
    expect(failures['main_local_fault']).toMatch(new RegExp(`${DBI}.*73706f696c74`));
    const line = await a.logged('Local fault, trying again');
    expect(line).toMatchObject({ dbi: DBI, db: 'main' });
    expect(JSON.stringify(line)).toContain('73706f696c74');
    expect(net.objects('a')).toEqual(stored);

    // What others write still arrives.
    await b.app.put(DBI, 'from-b', 'fine');
    await a.has('from-b', 'fine');

    await a.app.put(DBI, 'spoilt', 'repaired');
    await b.has('spoilt', 'repaired');
    await a.ok();
    await a.logged('Taking snapshots works again');
  });

  test('meets a merge of its key: the snapshot waits, and is merged once the value is repaired', async () => {
    await using net = await cluster(1);
    const a = net.instance('a');
    await a.app.put(DBI, 'fine', 'value');
    await a.app.call({ op: 'raw', dbi: DBI, key: Buffer.from('spoilt').toString('hex'), value: NO_HEADER });
    await a.start({ args: ['receive'] });
    await net.upload(
      objectName('z'),
      member(snapshot(DBI, [{ key: 'spoilt', value: 'remote', timestampNano: 5n }])),
    );
    const { failures } = await a.healthy('unavailable', ({ httpStatus }) => httpStatus === 503);
    expect(failures['main_local_fault']).toMatch(new RegExp(`${DBI}.*73706f696c74`));
    await a.app.put(DBI, 'spoilt', 'old', { timestampNano: 4n });
    await a.has('spoilt', 'remote');
    await a.ok();
  });
});

describe('an instance name that another live instance uses', () => {
  test('is noticed and said, and nothing more is uploaded by who noticed', async () => {
    await using net = await cluster(['a', 'twin']);
    const [a, twin] = [net.instance('a'), net.instance('twin')];
    await a.app.put(DBI, 'from-a', '1');
    await a.start();
    await a.ok();
    await a.logged('Stored snapshot');
    await twin.start({ config: { instance: 'a' } });
    await twin.ok();
    await twin.app.put(DBI, 'from-twin', '2');
    await a.logged('Instance name used twice');
    const { failures } = await a.healthy('unavailable', ({ httpStatus }) => httpStatus === 503);
    expect(failures['main_duplicate_instance']).toMatch(/"a".*give each instance a name of its own/);

    // What the twin wrote is not lost, and what is written here waits.
    await a.has('from-twin', '2');
    const stored = a.log().filter(({ msg }) => msg === 'Stored snapshot').length;
    await a.app.put(DBI, 'held', 'back');
    await twin.app.put(DBI, 'from-twin', '3');
    await a.has('from-twin', '3');
    expect(a.log().filter(({ msg }) => msg === 'Stored snapshot')).toHaveLength(stored);

    // Resolved: the twin gets a name of its own, this one is restarted.
    await twin.stop();
    await a.stop();
    await Promise.all([a.start(), twin.start()]);
    await twin.has('held', 'back');
    await Promise.all([a.ok(), twin.ok()]);
  });
});
