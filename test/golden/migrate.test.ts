/**
 * Databases of PowerDNS 4.7, 4.9 and 5.1, what these servers make of them themselves, and the times that `migrate` has to give them. The result is read
 * back by another implementation of LMDB.
 */
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gunzipSync } from 'node:zlib';
import { describe, expect, test } from 'vitest';
import { type HexEntry, type LmdbContents, readLmdb } from '../helpers/lmdb.ts';
import { type Finished, repositoryRoot, run, type TempDir, tempDir } from '../helpers/process.ts';
import { Testkit } from '../helpers/testkit.ts';
import { isWithin, type Period, timed } from './cases.ts';

const golden = fileURLToPath(new URL('migrate/', import.meta.url));

/** A row of `cases.json`. */
interface Case {
  readonly name: string;
  readonly to: number;
  readonly exit: number;
  readonly files: readonly string[];
  readonly args: readonly string[];
  readonly note: string;
}

const cases = JSON.parse(readFileSync(join(golden, 'cases.json'), 'utf8')) as readonly Case[];

/** `[key, timestamp in ns or "now", flags, value without header]` */
type TimedEntry = readonly [string, string, number, string];
type Dbis<T> = Readonly<Record<string, { readonly flags: number; readonly entries: readonly T[] }>>;

function recorded<T>(name: string, file: string, kind: string): Dbis<T> {
  return JSON.parse(
    gunzipSync(readFileSync(join(golden, name, `${file}.${kind}.json.gz`))).toString(),
  ) as Dbis<T>;
}

/** A directory with the files of a case, and a configuration that names the main one and the first shard. Its storage is none that there is. */
async function lay({
  name,
  files,
}: Pick<Case, 'name' | 'files'>): Promise<TempDir & { readonly config: string }> {
  const dir = await tempDir('lightningstream-golden-');
  for (const file of files)
    writeFileSync(dir.join(file), gunzipSync(readFileSync(join(golden, name, `${file}.gz`))));
  const config = dir.join('ls.yaml');
  // Sorted by name, the shard has its turn first.
  const lmdb = (db: string, file: string): string =>
    `  ${db}: {path: ${dir.join(file)}, options: {no_subdir: true}, schema_tracks_changes: ${name.startsWith('v5')}}\n`;
  writeFileSync(
    config,
    `lmdbs:\n${lmdb('main', 'pdns.lmdb')}${lmdb('a_shard', 'pdns.lmdb-0')}storage: {type: azure}\n`,
  );
  return { ...dir, config };
}

const FILE = /^pdns\.lmdb(-\d+)?$/;

function bytes(dir: TempDir): Readonly<Record<string, string>> {
  return Object.fromEntries(
    readdirSync(dir.path)
      .filter((file) => FILE.test(file))
      .map((file) => [file, readFileSync(dir.join(file)).toString('base64')]),
  );
}

async function contents(dir: string): Promise<Readonly<Record<string, LmdbContents>>> {
  const found: Record<string, LmdbContents> = {};
  for (const file of readdirSync(dir)
    .filter((one) => FILE.test(one))
    .toSorted())
    found[file] = await readLmdb(join(dir, file), { noSubdir: true });
  return found;
}

function migrate(dir: TempDir & { readonly config: string }, ...args: readonly string[]): Promise<Finished> {
  return run({ args: ['-c', dir.config, 'migrate', ...args] });
}

interface Database {
  readonly path: string;
  readonly schema: number;
  readonly to: number;
  readonly result: string;
  readonly carried: number;
  readonly untracked: number;
  readonly deleted: number;
  readonly backup: string | null;
  readonly shards: readonly { readonly path: string }[];
  readonly diskFreeBytes: number;
}

function databases({ stdout }: Finished): readonly Database[] {
  return (JSON.parse(stdout) as { databases: readonly Database[] }).databases;
}

/** The entries in the shape of `*.lsN.json`. */
function timedEntries(
  entries: readonly HexEntry[],
  like: readonly TimedEntry[],
  period: Period,
): readonly TimedEntry[] {
  const isNow = new Set(like.flatMap(([key, time]) => (time === 'now' ? [key] : [])));
  return entries.map(([key, value]) => {
    const header = Buffer.from(value.slice(0, 48), 'hex');
    const time = header.readBigUInt64BE(0);
    return [
      key,
      isNow.has(key) && isWithin(time, period) ? 'now' : String(time),
      header.readUInt8(17),
      value.slice(48),
    ];
  });
}

/** Not deleted, and timestamp and transaction id zeroed, as in `*.pdnsN.json`. */
function live(dbis: Dbis<HexEntry>): unknown {
  return Object.fromEntries(
    Object.entries(dbis).map(([name, { flags, entries }]) => [
      name,
      {
        flags,
        entries: entries
          .filter(([, value]) => (Number.parseInt(value.slice(34, 36), 16) & 1) === 0)
          .map(([key, value]) => [key, '0'.repeat(32) + value.slice(32)]),
      },
    ]),
  );
}

test('there are 16 cases', () => {
  expect(cases).toHaveLength(16);
});

describe.each(cases)('$name: $note', (golden) => {
  const { name, to, exit, files, args } = golden;
  const flags = ['--to', String(to), ...args];

  test('status and plan write nothing', async () => {
    await using dir = await lay(golden);
    const [before, names] = [bytes(dir), readdirSync(dir.path)];
    const status = await migrate(dir, 'status', '--json');
    expect({ code: status.code, stderr: status.stderr }).toEqual({ code: 0, stderr: '' });
    expect(databases(status)).toHaveLength(1);
    const plan = await migrate(dir, 'plan', ...flags, '--json');
    expect([plan.stderr, plan.code]).toEqual([expect.any(String), exit]);
    expect(bytes(dir)).toEqual(before);
    expect(readdirSync(dir.path)).toEqual(names);
  });

  const refused = async (): Promise<void> => {
    await using dir = await lay(golden);
    const [before, names] = [bytes(dir), readdirSync(dir.path)];
    const { code, stdout, stderr } = await migrate(dir, 'run', ...flags, '--json');
    expect({ code, stdout }).toEqual({ code: exit, stdout: '' });
    expect(stderr).toMatch(
      exit === 2 ? /^lightningstream: .*--to.*\n$/ : /^lightningstream: lmdbs\.main: .*pdns\.lmdb.*\n$/,
    );
    expect(bytes(dir)).toEqual(before);
    expect(readdirSync(dir.path).filter((one) => !one.endsWith('-lock'))).toEqual(names);
  };

  const done = async (): Promise<void> => {
    await using dir = await lay(golden);
    const before = await contents(dir.path);
    const plan = databases(await migrate(dir, 'plan', ...flags, '--json'));
    const { result, period } = await timed(() => migrate(dir, 'run', ...flags, '--json'));
    expect([result.stderr, result.code]).toEqual([expect.any(String), 0]);
    const [done, ...others] = databases(result);
    if (done === undefined) throw new Error('no database');
    expect(others).toEqual([]);
    expect(done).toMatchObject({ path: dir.join('pdns.lmdb'), to, result: 'migrated' });

    const after = await contents(dir.path);
    expect(Object.keys(after)).toEqual(files);
    const nows = new Set<string>();
    const counts = { carried: 0, untracked: 0, deleted: 0 };
    for (const file of files) {
      const [{ dbis: was = {}, lastTxnId: last = 0 } = {}, { dbis = {}, lastTxnId = 0 } = {}] = [
        before[file],
        after[file],
      ];
      const wanted = recorded<TimedEntry>(name, file, `ls${to}`);
      const found = Object.fromEntries(
        Object.entries(dbis).map(([dbi, { flags: bits, entries }]) => [
          dbi,
          { flags: bits, entries: timedEntries(entries, wanted[dbi]?.entries ?? [], period) },
        ]),
      );
      expect(found).toEqual(wanted);
      // What the server itself makes of it.
      expect(live(dbis)).toEqual(live(recorded<HexEntry>(name, file, `pdns${to}`)));
      for (const [dbi, { entries }] of Object.entries(dbis)) {
        const old = new Map(was[dbi]?.entries);
        for (const [index, [key, value]] of entries.entries()) {
          const [, time, bits] = wanted[dbi]?.entries[index] ?? [];
          if (time === 'now') nows.add(value.slice(0, 16));
          if (dbi !== 'pdns') {
            if (bits === 1) counts.deleted += 1;
            if (time === 'now') counts.untracked += 1;
            else if (time !== '0') counts.carried += 1;
          }
          // Written by a transaction of this run, or not at all.
          if (old.get(key) === value) continue;
          const txnId = Number.parseInt(value.slice(16, 32), 16);
          expect([dbi, key, txnId > last && txnId <= lastTxnId]).toEqual([dbi, key, true]);
        }
      }
    }
    // One time per run.
    expect(nows.size).toBeLessThanOrEqual(1);
    // Only there is each time one that was carried.
    if (['v4-shadow', 'v4-drift', 'v4-plain'].includes(name)) expect(done).toMatchObject(counts);
    const { diskFreeBytes: _free, ...same } = done;
    expect(plan).toMatchObject([{ ...same, result: 'to be migrated', backup: null }]);

    const backup = done.backup ?? '';
    expect(backup).toMatch(/\/lightningstream-backup-\d{8}T\d{6}Z$/);
    expect(existsSync(join(backup, '..', 'ls.yaml'))).toBe(true);
    const dbisOf = (all: Readonly<Record<string, LmdbContents>>): unknown =>
      Object.entries(all).map(([file, { dbis }]) => [file, dbis]);
    expect(dbisOf(await contents(backup))).toEqual(dbisOf(before));

    // LastTxnID included.
    const [settled, names] = [bytes(dir), readdirSync(dir.path)];
    const again = await migrate(dir, 'run', ...flags, '--json');
    expect([again.stderr, again.code]).toEqual([expect.any(String), 0]);
    expect(databases(again)).toMatchObject([
      { schema: to, to, result: 'nothing to do', carried: 0, untracked: 0, deleted: 0, backup: null },
    ]);
    expect(bytes(dir)).toEqual(settled);
    expect(readdirSync(dir.path)).toEqual(names);
  };

  if (exit === 0) test('run, and run again', done);
  else test('is refused in one line, and nothing is changed', refused);
});

describe('in use by another process', () => {
  const drift = cases.find(({ name }) => name === 'v4-drift') as Case;

  test.each(['pdns.lmdb', 'pdns.lmdb-0'])('%s: refused, unless forced', async (file) => {
    await using dir = await lay(drift);
    await using other = new Testkit(dir.join(file), { noSubdir: true });
    await other.plainDump();
    const before = bytes(dir);
    const refused = await migrate(dir, 'run', '--to', '5', '--no-backup');
    expect({ code: refused.code, stdout: refused.stdout }).toEqual({ code: 3, stdout: '' });
    expect(refused.stderr).toMatch(/^lightningstream: lmdbs\.main: .*\n$/);
    expect(refused.stderr).toContain(dir.join(file));
    const pids = (refused.stderr.match(/\b\d+\b/g) ?? []).filter(
      (number) =>
        existsSync(`/proc/${number}/comm`) &&
        readFileSync(`/proc/${number}/comm`, 'utf8').startsWith('lightningstream'),
    );
    expect(pids).toHaveLength(1);
    const status = await migrate(dir, 'status');
    expect(status.stdout).toMatch(new RegExp(`${file} .*\\(${pids[0] ?? ''}\\)$`, 'm'));
    expect(bytes(dir)).toEqual(before);

    const forced = await migrate(dir, 'run', '--to', '5', '--no-backup', '--force', '--json');
    expect([forced.stderr, forced.code]).toEqual([expect.any(String), 0]);
    expect(databases(forced)).toMatchObject([{ result: 'migrated', backup: null }]);
    expect(readdirSync(dir.path).filter((one) => one.includes('backup'))).toEqual([]);
  });
});

test('docs/json.md shows what is printed', async () => {
  await using dir = await lay(cases.find(({ name }) => name === 'v4-drift') as Case);
  const status = await migrate(dir, 'status', '--json');
  const done = await migrate(dir, 'run', '--to', '5', '--json');
  const page = readFileSync(join(repositoryRoot, 'docs/json.md'), 'utf8');
  const shown = page.split('\n').filter((line) => line.startsWith('{"databases"'));
  // Of the tables the page shows the first.
  const likeThePage = ({ stdout }: Finished): string =>
    stdout
      .trim()
      .replaceAll(dir.path, '/var/lib/powerdns')
      .replace(/backup-\d+T\d+Z/, 'backup-20261122T142545Z')
      .replace(/"diskFreeBytes":\d+/, '"diskFreeBytes":55908737024')
      .replace(/("dbis":\[\{[^}]*\})[^\]]*/g, '$1');
  expect(shown).toEqual([status, done].map(likeThePage));
});

test('--timeout: exit code 75, and nothing is changed', async () => {
  await using dir = await lay(cases.find(({ name }) => name === 'v4-drift') as Case);
  const before = bytes(dir);
  const { code, stderr } = await run({
    args: ['-c', dir.config, '--timeout', '1ms', 'migrate', 'run', '--to', '5'],
  });
  expect({ code, lines: stderr.split('\n').filter((line) => line.startsWith('lightningstream:')) }).toEqual({
    code: 75,
    lines: ['lightningstream: not done after 1ms (--timeout)'],
  });
  expect(bytes(dir)).toEqual(before);
});
