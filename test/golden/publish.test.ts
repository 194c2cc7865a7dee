// The LMDBs of a PowerDNS 4.9, published: the same protobuf as the reference's, and the same LMDB again from either's snapshot.
import { copyFileSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gunzipSync } from 'node:zlib';
import { describe, expect, test } from 'vitest';
import { parseSnapshotName } from '../../src/snapshot/name.ts';
import { type LmdbContents, readLmdb } from '../helpers/lmdb.ts';
import { type Finished, run, type TempDir, tempDir } from '../helpers/process.ts';
import { comparable, expectWrittenByUs, parseLog, readCases, readObjects } from './cases.ts';
import { takeApart } from './wire.ts';

const golden = fileURLToPath(new URL('pdns-4.9-native/', import.meta.url));
const databases = ['main', 'shard'] as const;

interface Published extends AsyncDisposable {
  readonly dir: TempDir;
  readonly env: Readonly<Record<string, string>>;
  readonly configPath: string;
  readonly finished: Finished;
  /** ns since the epoch, just before and just after the run. */
  readonly fromNano: bigint;
  readonly toNano: bigint;
  readonly objects: ReadonlyMap<string, Buffer>;
}

/** `sync --only-once` on copies of the LMDBs, with the configuration that the reference ran with. */
async function publish(): Promise<Published> {
  const dir = await tempDir('lightningstream-golden-');
  for (const name of databases) {
    writeFileSync(lmdbPath(dir, name), gunzipSync(readFileSync(`${golden}${name}.mdb.gz`)));
  }
  mkdirSync(dir.join('storage'));
  const configPath = `${golden}ls-config.yaml`;
  const env = {
    LMDB_DIR: dir.path,
    STORAGE_PATH: dir.join('storage'),
    CACHE_DIRECTORY: dir.join('cache'),
  };
  const fromNano = nowNano();
  const finished = await run({
    args: ['-c', configPath, '--log-format', 'json', 'sync', '--only-once'],
    env,
  });
  return {
    dir,
    env,
    configPath,
    finished,
    fromNano,
    // The clock of this side counts whole milliseconds.
    toNano: nowNano() + 1_000_000n,
    objects: readObjects(dir.join('storage')),
    [Symbol.asyncDispose]: () => dir[Symbol.asyncDispose](),
  };
}

function lmdbPath(dir: TempDir, name: (typeof databases)[number]): string {
  return dir.join(name === 'main' ? 'pdns.lmdb' : 'pdns.lmdb-0');
}

function nowNano(): bigint {
  return BigInt(Date.now()) * 1_000_000n;
}

/** The reference's snapshot of a database. */
function referenceObject(name: string): { readonly name: string; readonly bytes: Buffer } {
  const object = readdirSync(`${golden}snapshots`).find((one) => one.startsWith(`${name}__`));
  if (object === undefined) throw new Error(`no snapshot of ${name}`);
  return { name: object, bytes: readFileSync(`${golden}snapshots/${object}`) };
}

/** Everything in the LMDBs, transaction ids included, as another implementation read them before the reference ran. */
const recorded = JSON.parse(gunzipSync(readFileSync(`${golden}contents.json.gz`)).toString()) as Record<
  (typeof databases)[number],
  { readonly lastTxnID: number; readonly dbis: LmdbContents['dbis'] }
>;

test('a PowerDNS published gives the snapshots of the reference', async () => {
  await using published = await publish();
  const { dir, env, configPath, finished, objects, fromNano, toNano } = published;
  expect({ code: finished.code, stdout: finished.stdout }).toEqual({ code: 0, stdout: '' });
  const complaints = parseLog(finished.stderr).filter(({ level }) => level !== 'info');
  expect(complaints).toEqual([]);
  expect(objects.size).toBe(2);

  for (const database of databases) {
    const [name, object] = [...objects].find(([one]) => one.startsWith(`${database}__`)) ?? [];
    if (name === undefined || object === undefined) throw new Error(`no snapshot of ${database}`);
    const reference = takeApart(referenceObject(database).bytes);
    const ours = takeApart(object);
    expect(ours.rest).toEqual(reference.rest);
    expect(reference.rest.length).toBeGreaterThan(5);
    expect(ours.hostname).toBe(hostname());
    expect(ours.timestampNano).toBeGreaterThanOrEqual(fromNano);
    expect(ours.timestampNano).toBeLessThan(toNano);
    const { timestampNano, ...parts } = parseSnapshotName(name) ?? {};
    expect(timestampNano).toBe(ours.timestampNano);
    expect(parts).toMatchObject({ database, instance: 'golden-a', generation: 'GX', kind: 'snapshot' });

    // Publishing only reads.
    const file = gunzipSync(readFileSync(`${golden}${database}.mdb.gz`));
    expect(readFileSync(lmdbPath(dir, database)).equals(file)).toBe(true);
    const { lastTxnId, dbis } = await readLmdb(lmdbPath(dir, database), { noSubdir: true });
    expect({ lastTxnID: lastTxnId, dbis }).toEqual(recorded[database]);
  }

  // The program's listing of its own objects: the reference's, but for time and size.
  const listed = await run({ args: ['-c', configPath, 'snapshots', 'list', '-l'], env });
  const masked = (text: string): string =>
    text.replace(/^ *\d+\t/gm, 'SIZE\t').replace(/__\d{8}-\d{6}-\d{9}__/g, '__TIME__');
  expect(masked(listed.stdout)).toBe(masked(readFileSync(`${golden}text/snapshots-list-l.txt`, 'utf8')));
  for (const [name, { length }] of objects) expect(listed.stdout).toContain(`${length}\t${name}\n`);

  const stats = await run({ args: ['-c', configPath, 'stats'], env });
  const comparableStats = (text: string): string => text.replace(/NumReaders:\d+/g, 'NumReaders:N');
  expect(comparableStats(stats.stdout)).toBe(
    comparableStats(readFileSync(`${golden}text/stats.txt`, 'utf8')),
  );
});

describe.concurrent('into an LMDB that does not exist', () => {
  // What the reference made of its snapshot; the cases have both databases under the name main.
  const fresh = databases.map((database) => {
    const found = readCases('merge-native').find(({ name }) => name === `pdns-${database}-fresh`);
    if (found === undefined) throw new Error(`pdns-${database}-fresh is missing`);
    return [database, found] as const;
  });

  test.each(fresh)("%s: the reference's snapshot and ours give the same", async (database, freshCase) => {
    await using published = await publish();
    const { dir } = published;
    const ours = [...published.objects.keys()].find((one) => one.startsWith(`${database}__`)) ?? '';
    const theirs = referenceObject(database).name;
    for (const object of [ours, theirs]) {
      const source = object === ours ? dir.join('storage') : `${golden}snapshots`;
      const target = dir.join(`target-${object === ours ? 'ours' : 'theirs'}`);
      mkdirSync(join(target, 'storage'), { recursive: true });
      copyFileSync(
        join(source, object),
        join(target, 'storage', basename(object).replace(`${database}__`, 'main__')),
      );
      const lmdb = join(target, 'local.mdb');
      const { code, stderr } = await run({
        args: ['-c', freshCase.configPath, '--log-format', 'json', 'receive', '--only-once'],
        env: {
          LMDB_PATH: lmdb,
          STORAGE_PATH: join(target, 'storage'),
          CACHE_DIRECTORY: join(target, 'cache'),
        },
      });
      expect({ code, complaints: parseLog(stderr).filter(({ level }) => level === 'error') }).toEqual({
        code: 0,
        complaints: [],
      });
      const after = await readLmdb(lmdb, { noSubdir: true });
      expect(comparable(after, freshCase.expected.dbis)).toEqual(freshCase.expected.dbis);
      expect(expectWrittenByUs({ before: undefined, after })).toBeGreaterThan(0);
    }
  });
});
