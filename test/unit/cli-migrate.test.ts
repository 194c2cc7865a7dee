import { existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { describe, expect, test } from 'vitest';
import { run } from '../../src/cli/run.ts';
import { capture } from '../helpers/output.ts';
import { repositoryRoot, tempDir, type TempDir } from '../helpers/process.ts';
import { Testkit } from '../helpers/testkit.ts';

const MAIN = 'pdns.lmdb';
const SHARD = 'pdns.lmdb-0';

/** The files of a case of test/golden/migrate, in a directory below. */
function lay(dir: TempDir, name: string, golden: string): void {
  mkdirSync(dir.join(name));
  const source = join(repositoryRoot, 'test/golden/migrate', golden);
  for (const file of readdirSync(source).filter((one) => /^pdns\.lmdb(-\d)?\.gz$/.test(one)))
    writeFileSync(dir.join(name, file.slice(0, -3)), gunzipSync(readFileSync(join(source, file))));
}

/** LMDBs by name, all of them files; no storage. */
function configure(dir: TempDir, lmdbs: Readonly<Record<string, string>>): string {
  const file = dir.join('ls.yaml');
  const text = Object.entries(lmdbs)
    .map(([db, path]) => `  ${db}: {path: ${path}, options: {no_subdir: true}}\n`)
    .join('');
  writeFileSync(file, `lmdbs:\n${text}`);
  return file;
}

async function call(config: string, ...args: readonly string[]) {
  const io = capture();
  const code = await run(['-c', config, 'migrate', ...args], io);
  return { code, stdout: io.out(), stderr: io.err() };
}

const found = (stdout: string): readonly Record<string, unknown>[] =>
  (JSON.parse(stdout) as { databases: readonly Record<string, unknown>[] }).databases;

describe('which LMDBs', () => {
  test('each database once, whatever its shards come as', async () => {
    await using dir = await tempDir();
    // Of three shards; the third has no file.
    lay(dir, 'a', 'v4-missing-shard');
    symlinkSync('a', dir.join('link'));
    const config = configure(dir, {
      main: dir.join('a', MAIN),
      a_shard: dir.join('a', `${MAIN}-1`),
      linked_shard: dir.join('link', SHARD),
      absent_shard: dir.join('a', `${MAIN}-2`),
    });
    const { code, stdout, stderr } = await call(config, 'run', '--to', '5', '--json');
    expect([stderr, code]).toEqual([expect.any(String), 0]);
    expect(found(stdout)).toMatchObject([{ result: 'migrated' }]);
    expect(stderr).not.toContain('lightningstream: lmdbs.');
  });

  test('what is not PowerDNS’s is left alone', async () => {
    await using dir = await tempDir();
    lay(dir, 'a', 'v4-plain');
    {
      await using other = new Testkit(dir.join('other'), { noSubdir: true });
      await other.put('x', 'k', 'v');
    }
    const before = readFileSync(dir.join('other'));
    const config = configure(dir, { main: dir.join('a', MAIN), other: dir.join('other') });
    const { code, stdout, stderr } = await call(config, 'run', '--to', '6', '--json');
    expect([stderr, code]).toEqual([
      expect.stringMatching(/Left alone.*db=other|\[other *\].*Left alone/),
      0,
    ]);
    expect(found(stdout)).toMatchObject([{ path: dir.join('a', MAIN), result: 'migrated', to: 6 }]);
    expect(readFileSync(dir.join('other')).equals(before)).toBe(true);

    const alone = await call(configure(dir, { other: dir.join('other') }), 'run', '--to', '5', '--json');
    expect({ code: alone.code, databases: found(alone.stdout) }).toEqual({ code: 0, databases: [] });
    expect(alone.stderr).toContain('There is no PowerDNS database among lmdbs: nothing was migrated');
  });

  test('without the main file nothing is done', async () => {
    await using dir = await tempDir();
    lay(dir, 'a', 'v4-plain');
    for (const lmdbs of [
      { db: dir.join('a', SHARD) },
      { db: dir.join('none', MAIN) },
      { a: dir.join('a', MAIN), db: dir.join('none', MAIN) },
    ]) {
      const before = readFileSync(dir.join('a', MAIN));
      const { code, stdout, stderr } = await call(configure(dir, lmdbs), 'run', '--to', '5', '--json');
      expect({ code, stdout }).toEqual({ code: 3, stdout: '' });
      expect(stderr).toMatch(/^lightningstream: lmdbs\.db: .*\n$/);
      expect(stderr).toContain(lmdbs.db);
      expect(readFileSync(dir.join('a', MAIN)).equals(before)).toBe(true);
      expect(existsSync(dir.join('none'))).toBe(false);
    }
  });

  test('of several, one that is refused keeps the others from being changed', async () => {
    await using dir = await tempDir();
    for (const [name, golden] of [
      ['a', 'v4-plain'],
      ['b', 'bad-mixed'],
      ['c', 'v3'],
    ] as const)
      lay(dir, name, golden);
    const before = readFileSync(dir.join('a', MAIN));
    const [a, b, c] = ['a', 'b', 'c'].map((name) => dir.join(name, MAIN)) as [string, string, string];
    const refused = await call(configure(dir, { a, b, c }), 'run', '--to', '5', '--json');
    expect({ code: refused.code, stdout: refused.stdout }).toEqual({ code: 3, stdout: '' });
    expect(refused.stderr).toMatch(/^lightningstream: lmdbs\.b: .*\n$/);
    expect(readFileSync(a).equals(before)).toBe(true);

    // Both have a pdns.lmdb.
    const { code, stdout } = await call(
      configure(dir, { a, c }),
      'run',
      '--to',
      '5',
      '--backup',
      dir.join('backup'),
      '--json',
    );
    expect({ code, databases: found(stdout) }).toMatchObject({
      code: 0,
      databases: [
        { path: a, schema: 4, backup: dir.join('backup', 'a') },
        { path: c, schema: 3, backup: dir.join('backup', 'c') },
      ],
    });
    for (const name of ['a', 'c']) expect(readdirSync(dir.join('backup', name))).toEqual([MAIN, SHARD]);
  });
});

describe('flags', () => {
  /** `migrate run --to 5` with these flags, on files of a case; then `status`. */
  async function runWith(golden: string, ...flags: readonly string[]) {
    await using dir = await tempDir();
    lay(dir, 'a', golden);
    mkdirSync(dir.join('a', 'taken'));
    writeFileSync(dir.join('a', 'taken', SHARD), '');
    const config = configure(dir, { main: dir.join('a', MAIN) });
    const before = readFileSync(dir.join('a', MAIN));
    const { code, stdout, stderr } = await call(
      config,
      'run',
      '--to',
      '5',
      '--json',
      ...flags.map((flag) => flag.replace('DIR', dir.join('a'))),
    );
    const [status] = found((await call(config, 'status', '--json')).stdout);
    return {
      code,
      stderr,
      done: stdout === '' ? undefined : found(stdout)[0],
      files: status?.['files'] as readonly { readonly schema: number; readonly shadow: boolean }[],
      shards: status?.['shards'],
      names: readdirSync(dir.join('a')).filter((name) => !name.endsWith('-lock')),
      isUnchanged: readFileSync(dir.join('a', MAIN)).equals(before),
    };
  }
  const copy = expect.stringMatching(/^lightningstream-backup-/) as unknown;

  test('--untracked', async () => {
    const now = await runWith('v4-drift');
    expect(now).toMatchObject({ code: 0, done: { untracked: 29 }, names: [copy, MAIN, SHARD, 'taken'] });
    expect(now.stderr).toContain(
      '29 entries changed after Lightning Stream last looked: they get the time of this run',
    );
    const old = await runWith('v4-drift', '--untracked', 'old');
    expect(old).toMatchObject({ code: 0, done: { untracked: 29 } });
    expect(old.stderr).toContain('they get a time just after what was tracked');
    const none = await runWith('v4-drift', '--untracked', 'fail');
    expect(none).toMatchObject({
      code: 3,
      done: undefined,
      isUnchanged: true,
      names: [MAIN, SHARD, 'taken'],
    });
    expect(none.stderr).toMatch(
      /^lightningstream: lmdbs\.main: .*: 29 entries changed .* DBI domains of .*\n$/,
    );
  });

  test('--ignore-shadow, --keep-shadow', async () => {
    const both = await runWith('v4-shadow', '--ignore-shadow', '--keep-shadow', '--no-backup');
    expect(both).toMatchObject({ code: 0, done: { carried: 0, deleted: 0, backup: null } });
    expect(both.files.map(({ shadow }) => shadow)).toEqual([true, true]);
    expect(both.names).toEqual([MAIN, SHARD, 'taken']);
    const neither = await runWith('v4-shadow');
    expect(neither.done?.['carried']).toBeGreaterThan(0);
    expect(neither.files.map(({ shadow }) => shadow)).toEqual([false, false]);
  });

  test('--backup', async () => {
    expect(await runWith('v4-shadow', '--backup', 'DIR/b')).toMatchObject({
      code: 0,
      names: ['b', MAIN, SHARD, 'taken'],
    });
    const taken = await runWith('v4-shadow', '--backup', 'DIR/taken');
    expect(taken).toMatchObject({ code: 3, done: undefined, isUnchanged: true });
    expect(taken.stderr).toMatch(/there is a backup already: .*; name another directory\n$/);
  });

  test('--use', async () => {
    const undecided = await runWith('bad-mixed');
    expect(undecided).toMatchObject({ code: 3, isUnchanged: true });
    expect(undecided.stderr).toContain('Decide which count: --use old or --use new');
    expect(await runWith('bad-mixed', '--use', 'old')).toMatchObject({
      code: 0,
      done: { result: 'migrated' },
      files: [{ schema: 5 }, { schema: 5 }],
    });
    // Its shard has only an old one.
    const missing = await runWith('bad-mixed', '--use', 'new');
    expect(missing).toMatchObject({ code: 3, isUnchanged: true });
    expect(missing.stderr).toMatch(
      /pdns\.lmdb-0: the main database has a new schema, but DBI records_v5 is missing\n$/,
    );
  });

  test('--merge-shards', async () => {
    const apart = await runWith('v4-shards3');
    expect(apart).toMatchObject({
      code: 0,
      shards: 3,
      names: [copy, MAIN, SHARD, `${MAIN}-1`, `${MAIN}-2`, 'taken'],
    });
    const merged = await runWith('v4-shards3', '--merge-shards');
    expect(merged).toMatchObject({ code: 0, shards: 1, names: [copy, MAIN, SHARD, 'taken'] });
  });
});

test('wrong usage', async () => {
  await using dir = await tempDir();
  const config = configure(dir, { main: dir.join('none') });
  for (const [args, text] of [
    [['run'], "required option '--to <version>' not specified"],
    [['plan'], "required option '--to <version>' not specified"],
    [['run', '--to', '4'], '--to'],
    [['run', '--to', '7'], '--to'],
    [['plan', '--to', '5', '--untracked', 'never'], '--untracked'],
    [['plan', '--to', '5', '--use', 'both'], '--use'],
    [['run', '--to', '5', 'main'], 'too many arguments'],
  ] as const) {
    const { code, stdout, stderr } = await call(config, ...args);
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toMatch(/^lightningstream: .*\n$/);
    expect(stderr).toContain(text);
  }
});

test('what people read', async () => {
  await using dir = await tempDir();
  lay(dir, 'a', 'v4-drift');
  const main = dir.join('a', MAIN);
  const config = configure(dir, { main });
  const status = await call(config, 'status');
  expect(status).toMatchObject({ code: 0, stderr: '' });
  const [headline, ...files] = status.stdout.trimEnd().split('\n');
  expect(headline).toBe(`${main}: schema 4 can be migrated; 1 shard`);
  expect(files.map((line) => line.trim().split(/  +/))).toEqual([
    ['FILE', 'SCHEMA', 'SHADOW', 'OPEN IN'],
    [main, '4', 'yes', '-'],
    [dir.join('a', SHARD), '4', 'yes', '-'],
  ]);

  const plan = await call(config, 'plan', '--to', '5');
  expect(plan.code).toBe(0);
  const counts = found((await call(config, 'plan', '--to', '5', '--json')).stdout)[0];
  expect(plan.stdout).toContain(`${main}: schema 4 to 5\n`);
  expect(plan.stdout).toMatch(/^ +FILE +FROM +TO +ENTRIES +WITH TIME +UNTRACKED +DELETIONS$/m);
  expect(plan.stdout).toMatch(/^ +pdns\.lmdb +domains_0 +domains_v5_0( +\d+){4}$/m);
  expect(plan.stdout).toMatch(/^ +pdns\.lmdb-0 +records +records_v5( +\d+){4}$/m);
  expect(/^ +total +\d+ +(\d+) +(\d+) +(\d+)$/m.exec(plan.stdout)?.slice(1).map(Number)).toEqual([
    counts?.['carried'],
    counts?.['untracked'],
    counts?.['deleted'],
  ]);
  expect(plan.stdout).toMatch(/^ +room: map size .* \(lmdb-map-size=\d+\), backup .*, free on the disk .*$/m);

  const done = await call(config, 'run', '--to', '5', '--backup', dir.join('b'));
  expect(done).toMatchObject({
    code: 0,
    stdout:
      `${main}: migrated from schema 4 to schema 5: ${String(counts?.['carried'])} entries with their time, ` +
      `${String(counts?.['untracked'])} untracked, ${String(counts?.['deleted'])} deletions; backup in ${dir.join('b')}\n`,
  });
  expect(await call(config, 'run', '--to', '5')).toMatchObject({
    code: 0,
    stdout: `${main}: schema 5 already, nothing to do\n`,
  });
  expect(await call(config, 'plan', '--to', '5')).toMatchObject({
    code: 0,
    stdout: `${main}: schema 5 to 5: nothing to do\n`,
  });
});
