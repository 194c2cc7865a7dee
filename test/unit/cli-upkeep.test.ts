import { existsSync, writeFileSync } from 'node:fs';
import { expect, describe, test } from 'vitest';
import { lmdbUsers } from '../../src/cli/lmdb-users.ts';
import { run } from '../../src/cli/run.ts';
import { loadNative } from '../../src/native/index.ts';
import { capture } from '../helpers/output.ts';
import { start, tempDir, type TempDir, until } from '../helpers/process.ts';
import { Testkit } from '../helpers/testkit.ts';

/** Of an LMDB that is a file. */
const NO_SUBDIR = {
  noSubdir: true,
  create: false,
  dirMask: 0o775,
  fileMask: 0o664,
  mapSizeBytes: 0,
  maxDbs: 64,
};

/** With databases `main` and `shard`; `main` in a file, `shard` in a directory. */
function configure(dir: TempDir): string {
  const file = dir.join('ls.yaml');
  writeFileSync(
    file,
    `lmdbs:\n  main: {path: ${dir.join('main')}, schema_tracks_changes: true, options: {no_subdir: true}}\n` +
      `  shard: {path: ${dir.join('shard')}, schema_tracks_changes: true, options: {create: true}}\n` +
      `instance: test\nspool_dir: ${dir.path}\nstorage: {type: fs, options: {root_path: ${dir.join('storage')}}}\n`,
  );
  return file;
}

async function call(...args: string[]) {
  const io = capture();
  const code = await run(args, io);
  return { code, stdout: io.out(), stderr: io.err() };
}

const objects = (text: string): unknown[] =>
  text
    .split('\n')
    .filter(Boolean)
    .map((line): unknown => JSON.parse(line));

const hex = (...parts: readonly (string | readonly number[])[]): string =>
  Buffer.concat(parts.map((part) => Buffer.from(part as string))).toString('hex');

describe('drop-shadow', () => {
  test('removes what is private, in each LMDB, and says what it cannot open', async () => {
    await using dir = await tempDir();
    const file = configure(dir);
    {
      await using main = new Testkit(dir.join('main'), { noSubdir: true });
      await main.put('x', 'k', 'v');
      await main.put('_sync_shadow_x', 'k', 'v');
      await main.put('_sync_shadow_x', 'l', 'v');
    }
    const { code, stdout, stderr } = await call('-c', file, 'drop-shadow', '--json');
    expect(objects(stdout)).toEqual([{ db: 'main', dropped: [{ dbi: '_sync_shadow_x', entries: 2 }] }]);
    expect(code).toBe(1);
    expect(stderr).toMatch(
      /^lightningstream: lmdbs\.shard: .*\(ENOENT|^lightningstream: lmdbs\.shard: .*No such file/m,
    );
    // To look for what is to be removed must not make an LMDB.
    expect(existsSync(dir.join('shard'))).toBe(false);

    await using main = new Testkit(dir.join('main'), { noSubdir: true });
    expect(Object.keys((await main.call({ op: 'dump' }))['dbis'] as object)).toEqual(['x']);
    {
      await using shard = new Testkit(dir.join('shard'));
      await shard.put('y', 'k', 'v');
    }
    const again = await call('-c', file, 'drop-shadow', '--json');
    expect({ code: again.code, found: objects(again.stdout) }).toEqual({
      code: 0,
      found: [
        { db: 'main', dropped: [] },
        { db: 'shard', dropped: [] },
      ],
    });
    expect(again.stderr).not.toContain('daemon');
  });

  test('warns of a daemon that has the LMDB open', async () => {
    await using dir = await tempDir();
    const file = configure(dir);
    await using main = new Testkit(dir.join('main'), { noSubdir: true });
    await main.put('x', 'k', 'v');
    await using _daemon = await start({ args: ['-c', file, 'receive'] });
    const native = loadNative();
    const lmdb = { path: dir.join('main'), options: NO_SUBDIR } as Parameters<typeof lmdbUsers>[1];
    await until(() => lmdbUsers(native, lmdb).find(({ isDaemon, pid }) => isDaemon && pid > 0), {
      what: 'the daemon has it open',
    });
    const { stderr } = await call('-c', file, 'drop-shadow');
    expect(stderr).toMatch(/A daemon has this LMDB open.*process=/);
  });
});

describe('who has an LMDB open', () => {
  test('nobody, one who reads, and ourselves', async () => {
    await using dir = await tempDir();
    const path = dir.join('main');
    const native = loadNative();
    expect(native.lmdbUsers(path, { noSubdir: true })).toEqual([]);
    {
      await using first = new Testkit(path, { noSubdir: true });
      await first.put('x', 'k', 'v');
      await first.get('x', 'k');
      await using second = new Testkit(path, { noSubdir: true });
      await second.get('x', 'k');
      const users = native.lmdbUsers(path, { noSubdir: true });
      expect(users).toHaveLength(2);
      for (const pid of users) expect(() => process.kill(pid, 0)).not.toThrow();
    }
    expect(native.lmdbUsers(path, { noSubdir: true })).toEqual([]);
    const environment = native.openEnvironment(path, NO_SUBDIR);
    expect(() => native.lmdbUsers(path, { noSubdir: true })).toThrow(/open in this process/);
    await environment.close();
  });
});

describe('experimental migrate-timestamps', () => {
  const flags = ['--src-dbi', 'old', '--dst-dbi', 'new'];

  test('copies what is newer', async () => {
    await using dir = await tempDir();
    const file = configure(dir);
    await using main = new Testkit(dir.join('main'), { noSubdir: true });
    await main.put('old', 'a', 'ignored', { timestampNano: 5n });
    await main.put('old', 'b', 'ignored', { timestampNano: 1n });
    await main.delete('old', 'gone', { timestampNano: 3n });
    await main.put('new', 'a', 'A', { timestampNano: 2n });
    await main.put('new', 'b', 'B', { timestampNano: 2n });
    const migrate = (...more: string[]) =>
      call('-c', file, 'experimental', 'migrate-timestamps', '--database', 'main', ...flags, ...more);
    const first = await migrate('--json');
    expect(objects(first.stdout)).toMatchObject([
      { db: 'main', sourceMissing: false, updated: 1, addedDeletions: 0 },
    ]);
    expect(await main.get('new', 'a')).toEqual({ value: 'A', timestampNano: 5n, deleted: false });
    expect(await main.get('new', 'b')).toEqual({ value: 'B', timestampNano: 2n, deleted: false });
    expect(await main.get('new', 'gone')).toBeUndefined();
    const second = await migrate('--add-delete-entries');
    expect(second).toMatchObject({ code: 0, stdout: '' });
    expect(second.stderr).toContain('Done n_updated=0 n_added_deletes=1');
    expect(await main.get('new', 'gone')).toEqual({ value: '', timestampNano: 3n, deleted: true });
    const third = await migrate('--add-delete-entries', '--json');
    expect(objects(third.stdout)).toEqual([
      { db: 'main', sourceMissing: false, updated: 0, addedDeletions: 0, txnId: null },
    ]);
  });

  test('what is refused', async () => {
    await using dir = await tempDir();
    const file = configure(dir);
    {
      await using main = new Testkit(dir.join('main'), { noSubdir: true });
      await main.put('new', 'a', 'A');
    }
    const migrate = (...args: string[]) => call('-c', file, 'experimental', 'migrate-timestamps', ...args);
    for (const [args, code, text] of [
      [flags, 2, "required option '-d, --database <name>' not specified"],
      [['-d', 'man', ...flags], 2, '--database man: no such database; lmdbs has main, shard'],
      [['-d', 'main', '--src-dbi', 'x', '--dst-dbi', 'x'], 2, 'are the same DBI'],
      [['-d', 'main', ...flags], 1, 'there is no DBI old; there is new'],
      [['-d', 'main', '--src-dbi', 'new', '--dst-dbi', 'none'], 1, 'there is no DBI none; there is new'],
    ] as const) {
      const { stderr, ...rest } = await migrate(...args);
      expect(rest).toEqual({ code, stdout: '' });
      expect(stderr).toMatch(/^lightningstream: .*\n$/);
      expect(stderr).toContain(text);
    }
    const ignored = await migrate('-d', 'main', ...flags, '--ignore-src-dbi-not-present', '--json');
    expect(ignored.code).toBe(0);
    expect(objects(ignored.stdout)).toMatchObject([{ sourceMissing: true, txnId: null }]);
    expect(ignored.stderr).toContain('nothing was migrated');
  });
});

describe('experimental pdns-v5-fix-duplicate-domains', () => {
  /** A key of PowerDNS's index: length, labels in reverse order with a zero byte after each, number. */
  const index = (labels: readonly string[], id: number): string => {
    const name = labels.map((label) => `${label}\0`).join('');
    return hex([0, name.length], name, [0, 0, 0, id]);
  };
  const header = (timestamp: number): string =>
    hex([0, 0, 0, 0, 0, 0, 0, timestamp], Array(16).fill(0) as number[]);

  test('finds, and renames when told to', async () => {
    await using dir = await tempDir();
    const file = configure(dir);
    await using main = new Testkit(dir.join('main'), { noSubdir: true });
    const raw = (dbi: string, key: string, value: string) => main.call({ op: 'raw', dbi, key, value });
    const fix = (...more: string[]) =>
      call('-c', file, 'experimental', 'pdns-v5-fix-duplicate-domains', '-d', 'main', ...more);
    await raw('other', hex('k'), header(1));
    expect(await fix()).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('there is no DBI pdns') as string,
    });
    await raw('pdns', hex('schemaversion'), header(1) + hex([0, 0, 0, 5]));
    await raw('domains_v5_0', index(['example'], 1), header(1));
    const nothing = await fix();
    expect(nothing).toMatchObject({ code: 0, stdout: '' });

    await raw('domains_v5_0', index(['example'], 2), header(2));
    const found = await fix('--json');
    expect(objects(found.stdout)).toEqual([
      {
        db: 'main',
        domains: 2,
        duplicates: [
          {
            domain: 'example',
            keptId: 1,
            keptTimestamp: '1970-01-01T00:00:00.000000001Z',
            keptTimestampNano: '1',
            id: 2,
            timestamp: '1970-01-01T00:00:00.000000002Z',
            timestampNano: '2',
            newName: 'example.dup-2.invalid',
          },
        ],
        renamed: [],
        txnId: null,
      },
    ]);
    expect(found.stderr).toContain('--dangerous-do-rename is not set');

    const before = BigInt(Date.now()) * 1_000_000n;
    const fixed = await fix('--dangerous-do-rename');
    expect(fixed.stdout).toContain('- example.dup-2.invalid\n');
    const { dbis } = (await main.call({ op: 'dump' })) as {
      dbis: Record<string, Record<string, { timestamp: string; deleted: boolean }>>;
    };
    const { domains_v5_0: entries = {} } = dbis;
    const deleted = Object.fromEntries(Object.entries(entries).map(([key, entry]) => [key, entry.deleted]));
    expect(deleted).toEqual({
      [index(['example'], 1)]: false,
      [index(['example'], 2)]: true,
      [index(['invalid', 'dup-2', 'example'], 2)]: false,
    });
    expect(BigInt(entries[index(['example'], 2)]?.timestamp ?? 0)).toBeGreaterThanOrEqual(before);
  });
});
