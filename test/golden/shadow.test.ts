// The LMDBs of a PowerDNS 4.7, which knows nothing of headers: the same shadows and the same snapshots as the reference's, at a first
// start and after changes that nobody watched.
import { cpSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { fileURLToPath } from 'node:url';
import { gunzipSync } from 'node:zlib';
import { expect, test } from 'vitest';
import { parseSnapshotName } from '../../src/snapshot/name.ts';
import { type DbiContents, type LmdbContents, readLmdb } from '../helpers/lmdb.ts';
import { run, type TempDir, tempDir } from '../helpers/process.ts';
import { isShadow, isWithin, maskTxnId, parseLog, type Period, readObjects, timed } from './cases.ts';
import { takeApart } from './wire.ts';

const golden = fileURLToPath(new URL('pdns-4.7-shadow/', import.meta.url));
const databases = ['main', 'shard'] as const;

/** Everything in both LMDBs, as another implementation read it. */
type Recorded = Readonly<
  Record<(typeof databases)[number], { readonly lastTxnID: number; readonly dbis: LmdbContents['dbis'] }>
>;

function recorded(state: string): Recorded {
  return JSON.parse(gunzipSync(readFileSync(`${golden}${state}-contents.json.gz`)).toString()) as Recorded;
}

function lmdbPath(dir: TempDir, name: (typeof databases)[number]): string {
  return dir.join(name === 'main' ? 'pdns.lmdb' : 'pdns.lmdb-0');
}

/** The time 1 ns, of what is older than everything. */
const old = '0000000000000001';

/**
 * The DBIs with the headers' transaction ids masked, and times other than 1 ns as `now`; these are returned as well. DBIs of the
 * application are as they are.
 */
function masked(dbis: LmdbContents['dbis']): {
  readonly dbis: LmdbContents['dbis'];
  readonly times: readonly bigint[];
} {
  const times: bigint[] = [];
  const shown = Object.entries(dbis).map(([name, { flags, entries }]): [string, DbiContents] => {
    if (!isShadow(name)) return [name, { flags, entries }];
    const values = entries.map(([key, value]): [string, string] => {
      const time = value.slice(0, 16);
      if (time === old) return [key, maskTxnId(value)];
      times.push(BigInt(`0x${time}`));
      return [key, `now${maskTxnId(value).slice(16)}`];
    });
    return [name, { flags, entries: values }];
  });
  return { dbis: Object.fromEntries(shown), times };
}

/** `sync --only-once`, with the configuration that the reference ran with. */
async function sync(dir: TempDir): Promise<Period> {
  const { result, period } = await timed(() =>
    run({
      args: ['-c', `${golden}ls-config.yaml`, '--log-format', 'json', 'sync', '--only-once'],
      env: { LMDB_DIR: dir.path, STORAGE_PATH: dir.join('storage'), CACHE_DIRECTORY: dir.join('cache') },
    }),
  );
  const complaints = parseLog(result.stderr).filter(({ level }) => level !== 'info');
  expect({ code: result.code, stdout: result.stdout, complaints }).toEqual({
    code: 0,
    stdout: '',
    complaints: [],
  });
  return period;
}

async function expectRound(
  dir: TempDir,
  { after, snapshots, period }: { after: string; snapshots: string; period: Period },
): Promise<number> {
  let changes = 0;
  const known = readdirSync(dir.join('known'));
  const objects = readObjects(dir.join('storage'));
  for (const name of known) {
    expect(objects.get(name)?.equals(readFileSync(dir.join(`known/${name}`)))).toBe(true);
    objects.delete(name);
  }
  expect(objects.size).toBe(databases.length);
  for (const database of databases) {
    const reference = recorded(after)[database];
    const ours = await readLmdb(lmdbPath(dir, database), { noSubdir: true });
    const [shown, wanted] = [masked(ours.dbis), masked(reference.dbis)];
    expect(shown.dbis).toEqual(wanted.dbis);
    expect(shown.times.every((time) => isWithin(time, period))).toBe(true);
    changes += shown.times.length;

    const [name, object] = [...objects].find(([one]) => one.startsWith(`${database}__`)) ?? [];
    const theirs = readdirSync(`${golden}${snapshots}`).find((one) => one.startsWith(`${database}__`));
    if (name === undefined || object === undefined || theirs === undefined) throw new Error('no snapshot');
    const [own, their] = [object, readFileSync(`${golden}${snapshots}/${theirs}`)].map((bytes) =>
      takeApart(bytes, { shadow: true }),
    );
    if (own === undefined || their === undefined) throw new Error('no parts');
    expect(own.rest).toEqual(their.rest);
    expect(own.times).toEqual(shown.times);
    expect(own.hostname).toBe(hostname());
    // The last transaction that wrote anything, as there.
    expect(own.lmdbTxnId).toBe(ours.lastTxnId);
    expect(isWithin(own.timestampNano, period)).toBe(true);
    const { timestampNano, ...parts } = parseSnapshotName(name) ?? {};
    expect(timestampNano).toBe(own.timestampNano);
    expect(parts).toMatchObject({ database, instance: 'golden-a', generation: 'GX', kind: 'snapshot' });
  }
  return changes;
}

test('a first start: everything is older than everything', async () => {
  await using dir = await tempDir('lightningstream-golden-');
  for (const name of databases) {
    writeFileSync(lmdbPath(dir, name), gunzipSync(readFileSync(`${golden}before-${name}.mdb.gz`)));
  }
  mkdirSync(dir.join('storage'));
  mkdirSync(dir.join('known'));
  const period = await sync(dir);
  const changes = await expectRound(dir, { after: 'after1', snapshots: 'snapshots-1', period });
  expect(changes).toBe(0);
  for (const database of databases) {
    const { lastTxnId, dbis } = await readLmdb(lmdbPath(dir, database), { noSubdir: true });
    // With one transaction for all, as the reference; so even its id in the headers is the same.
    expect({ lastTxnID: lastTxnId, dbis }).toEqual(recorded('after1')[database]);
  }
});

test('additions, changes and removals while the daemon was down', async () => {
  await using dir = await tempDir('lightningstream-golden-');
  for (const name of databases) {
    writeFileSync(lmdbPath(dir, name), gunzipSync(readFileSync(`${golden}changed-${name}.mdb.gz`)));
  }
  cpSync(`${golden}snapshots-1`, dir.join('storage'), { recursive: true });
  cpSync(`${golden}snapshots-1`, dir.join('known'), { recursive: true });
  const period = await sync(dir);
  const changes = await expectRound(dir, { after: 'after2', snapshots: 'snapshots-2', period });
  // A changed value is the only thing that cannot have been there before.
  expect(changes).toBeGreaterThan(0);

  // The application's own tables are as it left them: nothing in the storage is newer.
  for (const database of databases) {
    const own = (dbis: LmdbContents['dbis']): unknown =>
      Object.entries(dbis).filter(([name]) => !isShadow(name));
    const { dbis } = await readLmdb(lmdbPath(dir, database), { noSubdir: true });
    expect(own(dbis)).toEqual(own(recorded('changed')[database].dbis));
  }
});
