// `verify`: digests against another implementation of the hash, over records as another implementation of LMDB read them.
import { cpSync, mkdirSync, readdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gunzipSync } from 'node:zlib';
import { createXXHash128 } from 'hash-wasm';
import { describe, expect, test } from 'vitest';
import { readHeader, writeHeader } from '../../src/lib/index.ts';
import { loadNative } from '../../src/native/index.ts';
import { buildSnapshotName } from '../../src/snapshot/name.ts';
import { type HexEntry, type LmdbContents, type LmdbWrite, writeLmdb } from '../helpers/lmdb.ts';
import { repositoryRoot, run, type TempDir, tempDir } from '../helpers/process.ts';

const golden = fileURLToPath(new URL('pdns-4.9-native/', import.meta.url));
const hasher = await createXXHash128();

interface Entry {
  readonly dbi: string;
  readonly key: Buffer;
  readonly timestampNano: bigint;
  readonly deleted: boolean;
  readonly value: Buffer;
}

/** As docs/verify.md says. */
function digest(entries: readonly Entry[]): string {
  let sum = 0n;
  for (const { dbi, key, timestampNano, deleted, value } of entries) {
    const number = (count: number, bytes: number): Buffer => {
      const buffer = Buffer.alloc(bytes);
      buffer.writeUIntBE(count, 0, bytes);
      return buffer;
    };
    const timestamp = Buffer.alloc(8);
    timestamp.writeBigUInt64BE(timestampNano);
    hasher.init();
    hasher.update(Buffer.concat([number(Buffer.byteLength(dbi), 4), Buffer.from(dbi)]));
    hasher.update(Buffer.concat([number(key.length, 4), key, timestamp, number(deleted ? 1 : 0, 1), value]));
    sum = (sum + BigInt(`0x${hasher.digest('hex')}`)) % 2n ** 128n;
  }
  return sum.toString(16).padStart(32, '0');
}

function entriesOf(dbi: string, entries: readonly HexEntry[]): Entry[] {
  return entries.map(([key, stored]) => ({
    dbi,
    key: Buffer.from(key, 'hex'),
    ...readHeader(Buffer.from(stored, 'hex')),
  }));
}

interface Counts {
  readonly entries: number;
  readonly live: number;
  readonly deleted: number;
  readonly digestAll: string;
  readonly digestLive: string;
}

function expected(entries: readonly Entry[]): Counts {
  const live = entries.filter(({ deleted }) => !deleted);
  return {
    entries: entries.length,
    live: live.length,
    deleted: entries.length - live.length,
    digestAll: digest(entries),
    digestLive: digest(live),
  };
}

interface Printed extends Counts {
  readonly db: string;
  readonly ok: boolean;
  readonly invalid: number;
  readonly dbis: readonly (Counts & { readonly dbi: string; readonly [member: string]: unknown })[];
  readonly errors: readonly { readonly code: string; readonly dbi: string; readonly key: string }[];
  readonly shadowPending: unknown;
  readonly snapshots: readonly (Counts & { readonly verdict: string; readonly error: string | null })[];
}

function parse(stdout: string): Printed[] {
  return stdout
    .split('\n')
    .filter(Boolean)
    .map((line) => JSON.parse(line) as Printed);
}

/** The golden LMDBs and snapshots of a PowerDNS 4.9, where their configuration looks for them. */
async function powerdns(): Promise<{ dir: TempDir; env: Record<string, string>; config: string }> {
  const dir = await tempDir('lightningstream-verify-');
  for (const [name, file] of [
    ['main', 'pdns.lmdb'],
    ['shard', 'pdns.lmdb-0'],
  ] as const) {
    writeFileSync(dir.join(file), gunzipSync(readFileSync(`${golden}${name}.mdb.gz`)));
  }
  cpSync(`${golden}snapshots`, dir.join('storage'), { recursive: true });
  const env = { LMDB_DIR: dir.path, STORAGE_PATH: dir.join('storage'), CACHE_DIRECTORY: dir.join('cache') };
  return { dir, env, config: `${golden}ls-config.yaml` };
}

describe('the digest', () => {
  test('of a PowerDNS, of each of its DBIs, and of the reference’s snapshots', async () => {
    const { dir, env, config } = await powerdns();
    await using _dir = dir;
    const recorded = JSON.parse(gunzipSync(readFileSync(`${golden}contents.json.gz`)).toString()) as Record<
      string,
      Pick<LmdbContents, 'dbis'>
    >;
    const { code, stdout, stderr } = await run({ args: ['-c', config, 'verify', '--latest', '--json'], env });
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    const printed = parse(stdout);
    expect(printed.map(({ db }) => db)).toEqual(['main', 'shard']);
    for (const database of printed) {
      const dbis = Object.entries(recorded[database.db]?.dbis ?? {}).map(
        ([name, { entries }]) => [name, entriesOf(name, entries)] as const,
      );
      expect(database).toMatchObject(expected(dbis.flatMap(([, entries]) => entries)));
      expect(database).toMatchObject({ ok: true, invalid: 0, errors: [], shadowPending: null });
      expect(database.dbis).toMatchObject(
        dbis.map(([dbi, entries]) => ({ dbi, ...expected(entries), invalid: 0 })),
      );
      const { digestAll, digestLive } = database;
      expect(database.snapshots).toMatchObject([{ verdict: 'same', error: null, digestAll, digestLive }]);
      const [snapshot] = database.snapshots as unknown as { dbis: object[] }[];
      expect(snapshot?.dbis).toMatchObject(
        database.dbis.map(({ dbi, digestAll: all }) => ({ dbi, digestAll: all })),
      );
    }
  });

  test('as the document computes and prints it', async () => {
    const page = readFileSync(join(repositoryRoot, 'docs/verify.md'), 'utf8');
    const cell = (text = ''): string => (text === '_(empty)_' ? '' : text.replaceAll('`', ''));
    const vectors = page
      .split('\n')
      .filter((line) => /`[0-9a-f]{32}` *\|$/.test(line))
      .map((line) => line.split('|').map((text) => cell(text.trim())));
    expect(vectors).toHaveLength(3);
    for (const [, dbi = '', key = '', timestamp = '', flag, value = '', sum] of vectors) {
      const entry = { dbi, key: Buffer.from(key), value: Buffer.from(value), deleted: flag === '1' };
      expect(digest([{ ...entry, timestampNano: BigInt(timestamp) }])).toBe(sum);
    }
    const { dir, env, config } = await powerdns();
    await using _dir = dir;
    const { stdout } = await run({ args: ['-c', config, 'verify', '--only-db', 'main'], env });
    for (const line of page.split('\n').filter((text) => /^main: (?!snapshot)/.test(text)))
      expect(stdout.split('\n')).toContain(line);
    expect(stdout).not.toContain('shard');
  });
});

const DBI = 'records';
const T = 1_700_000_000_000_000_000n;

function hexEntry(key: string, timestampNano: bigint, value?: string): HexEntry {
  const stored = writeHeader(
    { timestampNano, deleted: value === undefined },
    value === undefined ? undefined : Buffer.from(value),
  );
  return [Buffer.from(key).toString('hex'), stored.toString('hex')];
}

/** An LMDB `main` beside an empty storage. */
async function place(write: LmdbWrite['dbis'], lmdb: object = { schema_tracks_changes: true }) {
  const dir = await tempDir('lightningstream-verify-');
  mkdirSync(dir.join('storage'));
  await writeLmdb(dir.join('main.mdb'), { dbis: write }, { noSubdir: true });
  const configPath = dir.join('lightningstream.yaml');
  const config = {
    instance: 'a',
    lmdbs: { main: { path: dir.join('main.mdb'), options: { no_subdir: true }, ...lmdb } },
    storage: { type: 'fs', options: { root_path: dir.join('storage') } },
    spool_dir: dir.join('spool'),
  };
  writeFileSync(configPath, JSON.stringify(config));
  const verify = async (...args: string[]) => {
    const finished = await run({ args: ['-c', configPath, 'verify', ...args] });
    expect(readdirSync(dir.path)).not.toContain('main.mdb-lock');
    return finished;
  };
  /** Stores a snapshot of these records. */
  const store = async (instance: string, entries: readonly HexEntry[], number = 1n): Promise<string> => {
    const path = dir.join(`${instance}-${number}.mdb`);
    await writeLmdb(path, { dbis: { [DBI]: { entries } } }, { noSubdir: true });
    const name = buildSnapshotName({ database: 'main', instance, timestamp: T + number });
    const env = loadNative().openEnvironment(path, {
      noSubdir: true,
      create: false,
      dirMask: 0o775,
      fileMask: 0o664,
      mapSizeBytes: 0,
      maxDbs: 8,
    });
    await env.publish({
      spoolPath: join(dir.join('storage'), name),
      meta: { generationId: 'GX', instanceId: instance, hostname: 'host', databaseName: 'main' },
      nowNano: T,
      earliestNano: T,
      newerThan: 0n,
      mode: 'native',
      dupsortHack: false,
    });
    await env.close();
    return name;
  };
  return { dir, verify, store, [Symbol.asyncDispose]: () => dir[Symbol.asyncDispose]() };
}

describe('verify', () => {
  test('describes some values without a header, counts all, and the states of the others', async () => {
    const ahead = BigInt(Date.now() + 600_000) * 1_000_000n;
    const bad = Array.from({ length: 25 }, (_, index): HexEntry => [
      `ff${index.toString(16).padStart(2, '0')}`,
      '00',
    ]);
    const good = [hexEntry('a', T, 'x'), hexEntry('b', 0n, ''), hexEntry('c', ahead, 'y'), hexEntry('d', T)];
    await using here = await place({
      [DBI]: { entries: [...good, ...bad] },
      dup: { flags: 0x04, entries: [['61', '62']] },
      _sync_private: { entries: [['61', '62']] },
    });
    const { code, stdout } = await here.verify('--max-errors', '3', '--json');
    const [printed] = parse(stdout);
    expect(code).toBe(1);
    expect(printed).toMatchObject({ ok: false, invalid: 26, ...expected(entriesOf(DBI, good)) });
    expect(printed?.dbis).toMatchObject([
      { dbi: 'dup', invalid: 1, flags: ['MDB_DUPSORT'] },
      { dbi: DBI, invalid: 25, zeroTimestamps: 1, futureTimestamps: 1, newestTimestampNano: String(ahead) },
    ]);
    expect(printed?.errors).toMatchObject([
      { code: 'DBI_UNSUPPORTED', dbi: 'dup', key: null },
      { code: 'HEADER_INVALID', dbi: DBI, key: 'ff00' },
      { code: 'HEADER_INVALID', dbi: DBI, key: 'ff01' },
    ]);
    const text = await here.verify('--max-errors', '1');
    expect(text.code).toBe(1);
    expect(text.stdout).toMatch(/^main: error: .*MDB_DUPSORT.*, DBI dup\nmain: error: 25 more like these$/m);
    expect(text.stdout).toMatch(
      /dbi records: 3 live, 1 deleted, 1 with timestamp 0, 1 from the future, 25 without a valid header;/,
    );
  });

  test('judges the newest snapshot of each instance', async () => {
    const [a, b, c] = [hexEntry('a', T, '1'), hexEntry('b', T, '2'), hexEntry('c', T)];
    await using here = await place({ [DBI]: { entries: [a, b, c] } });
    const { store, verify, dir } = here;
    await store('same', [a, b, c]);
    await store('swept', [a, b]);
    await store('less', [a]);
    await store('older', [hexEntry('a', T - 1n, '9'), b]);
    await store('more-deletions', [a, b, c, hexEntry('d', T)]);
    // What is superseded does not count.
    await store('less', [hexEntry('x', T, 'x')], 0n);
    const good = await verify('--latest', '--json');
    expect(good.code).toBe(0);
    const verdicts = ({ stdout }: { stdout: string }): unknown =>
      parse(stdout)[0]?.snapshots.map((one) => {
        const { instance, verdict, dbis } = one as unknown as {
          instance: string;
          verdict: string;
          dbis?: { missing: number; missingDeletions: number; newer: number }[];
        };
        const [dbi] = dbis ?? [];
        return [instance, verdict, dbi?.missing, dbi?.missingDeletions, dbi?.newer];
      });
    expect(verdicts(good)).toEqual([
      ['less', 'contained', 0, 0, 2],
      ['more-deletions', 'same-but-deletions', 0, 1, 0],
      ['older', 'contained', 0, 0, 2],
      ['same', 'same', 0, 0, 0],
      ['swept', 'same-but-deletions', 0, 0, 1],
    ]);
    expect((await verify('--latest', '--deletions')).code).toBe(1);

    const names = [
      await store('new-key', [a, hexEntry('e', 0n, '')]),
      await store('later', [hexEntry('a', T + 1n, '1')]),
      await store('lower-value', [hexEntry('a', T, '0')]),
      await store('deletes', [hexEntry('a', T + 1n)]),
      await store('revives', [hexEntry('c', T + 1n, '')]),
      await store('cut', [a, b]),
    ];
    truncateSync(join(dir.join('storage'), names.at(-1) ?? ''), 60);
    for (const name of names) expect((await verify(name)).code).toBe(1);
    const bad = await verify(...names, '--json');
    expect({ code: bad.code, verdicts: verdicts(bad) }).toEqual({
      code: 1,
      verdicts: [
        ['new-key', 'missing', 1, 0, 2],
        ['later', 'missing', 1, 0, 2],
        ['lower-value', 'missing', 1, 0, 2],
        ['deletes', 'missing', 1, 0, 2],
        ['revives', 'missing', 1, 0, 2],
        ['cut', 'unreadable', undefined, undefined, undefined],
      ],
    });
    expect((await verify(names[0] ?? '')).stdout).toMatch(
      /^main: snapshot main__new-key__.*: 1 of its 2 entries are missing here \(records 1\)$/m,
    );
    expect(readdirSync(dir.join('spool'))).toEqual([]);
  });

  test('in shadow mode reads the shadows, and says what they lack', async () => {
    const good = [hexEntry('a', 1n, '1'), hexEntry('b', 5n)];
    await using here = await place(
      {
        [DBI]: { entries: [[Buffer.from('a').toString('hex'), '31']] },
        [`_sync_shadow_${DBI}`]: { entries: good },
      },
      {},
    );
    await here.store('same', good);
    const agreed = await here.verify('--latest', '--json');
    expect(agreed.code).toBe(0);
    expect(parse(agreed.stdout)).toMatchObject([
      {
        ok: true,
        mode: 'shadow',
        ...expected(entriesOf(DBI, good)),
        dbis: [{ dbi: DBI }],
        shadowPending: { entries: 0, more: false },
        snapshots: [{ verdict: 'same' }],
      },
    ]);
    const change = { dbis: { [DBI]: { entries: [['62', '32'] as const] } } };
    await writeLmdb(here.dir.join('main.mdb'), change, { noSubdir: true });
    const changed = await here.verify();
    expect(changed.code).toBe(1);
    expect(changed.stdout).toMatch(/^main: shadow: 1 record of the application differ/m);
  });

  test('wrong names are told', async () => {
    await using here = await place({ [DBI]: { entries: [] } });
    const cases = [
      [['--only-db', 'other'], /--only-db other: no such database; lmdbs has main/],
      [['some.file'], /some\.file is no name of a snapshot/],
      [[buildSnapshotName({ database: 'x', instance: 'a', timestamp: T })], /no such database/],
    ] as const;
    for (const [args, message] of cases) {
      const { code, stderr } = await here.verify(...args);
      expect(code).toBe(2);
      expect(stderr).toMatch(message);
    }
    const missing = await here.verify(buildSnapshotName({ database: 'main', instance: 'a', timestamp: T }));
    expect(missing.code).toBe(1);
    expect(missing.stdout).toMatch(/: error: .*(ENOENT|not found|no such)/i);
  });
});
