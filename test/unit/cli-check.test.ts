import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { run } from '../../src/cli/run.ts';
import { capture } from '../helpers/output.ts';
import { tempDir, type TempDir } from '../helpers/process.ts';
import { Testkit } from '../helpers/testkit.ts';

interface Finding {
  readonly check: string;
  readonly status: string;
  readonly text: string;
}

async function check(file: string, env: Parameters<typeof capture>[0] = {}) {
  const io = capture(env);
  const code = await run(['-c', file, 'config', 'check', '--json'], io);
  const findings = io
    .out()
    .split('\n')
    .filter(Boolean)
    .map((line) => JSON.parse(line) as Finding);
  return {
    code,
    findings,
    statuses: Object.fromEntries(findings.map(({ check: name, status }) => [name, status])),
    texts: (name: string, status: string) =>
      findings.filter((found) => found.check === name && found.status === status).map(({ text }) => text),
  };
}

function configure(dir: TempDir, lmdb: string, more = ''): string {
  const file = dir.join('ls.yaml');
  writeFileSync(
    file,
    `lmdbs: {main: {path: ${dir.join('lmdb', 'main')}, ${lmdb}}}\nspool_dir: ${dir.path}\n` +
      `storage: {type: fs, options: {root_path: ${dir.join('storage')}}}\n${more}`,
  );
  return file;
}

const NATIVE = 'schema_tracks_changes: true, options: {no_subdir: true}';

/** With one record in it. */
async function withLmdb(dir: TempDir): Promise<string> {
  mkdirSync(dir.join('lmdb'));
  const path = dir.join('lmdb', 'main');
  await using main = new Testkit(path, { noSubdir: true });
  await main.put('x', 'k', 'v');
  return path;
}

describe('config check', () => {
  test('all is well, and nothing is left behind', async () => {
    await using dir = await tempDir();
    const path = await withLmdb(dir);
    mkdirSync(dir.join('storage'));
    writeFileSync(dir.join('storage', 'main__a__20250101-000000-000000000__GX.pb.gz'), '');
    const bytes = readFileSync(path);
    const { code, findings, statuses, texts } = await check(configure(dir, NATIVE));
    expect(findings.filter(({ status }) => status !== 'ok')).toEqual([]);
    expect(code).toBe(0);
    expect(Object.keys(statuses)).toEqual([
      'config',
      'storage',
      'storage.list',
      'storage.put',
      'storage.get',
      'storage.delete',
      'spool_dir',
      'lmdbs.main',
    ]);
    expect(texts('storage.list', 'ok')).toEqual(['main: 1 snapshots of 1 instances']);
    expect(readdirSync(dir.join('storage'))).toEqual(['main__a__20250101-000000-000000000__GX.pb.gz']);
    expect(readdirSync(dir.join('lmdb')).toSorted()).toEqual(['main', 'main-lock']);
    expect(readFileSync(path).equals(bytes)).toBe(true);
  });

  test('as text', async () => {
    await using dir = await tempDir();
    await withLmdb(dir);
    const io = capture();
    expect(await run(['-c', configure(dir, NATIVE), 'config', 'check'], io)).toBe(0);
    expect(io.out()).toMatch(
      /^ok {7}config: .*is well-formed\nwarning {2}storage: .*\nok {7}spool_dir: .*\nok {7}lmdbs.main: .*\n$/,
    );
  });

  test('who has it open is told', async () => {
    await using dir = await tempDir();
    const path = await withLmdb(dir);
    await using main = new Testkit(path, { noSubdir: true });
    await main.get('x', 'k');
    const { texts } = await check(configure(dir, NATIVE));
    expect(texts('lmdbs.main', 'ok')[0]).toMatch(/; open in lightningstream.* \(\d+\)$/);
  });

  test('a file with mistakes', async () => {
    await using dir = await tempDir();
    const { code, findings } = await check(configure(dir, NATIVE, 'storag_type: s3\nonly_once: 5\n'));
    expect(code).toBe(1);
    expect(findings.map(({ check: name, status }) => [name, status])).toEqual([
      ['config', 'error'],
      ['config', 'error'],
    ]);
    expect(findings[0]?.text).toContain('storag_type: unknown key');
  });

  test('what is missing is not created', async () => {
    await using dir = await tempDir();
    const { code, texts } = await check(configure(dir, NATIVE));
    expect(code).toBe(1);
    expect(texts('storage', 'warning')).toEqual([
      `${dir.join('storage')} is missing: a start will create it`,
    ]);
    expect(texts('lmdbs.main', 'error')[0]).toContain('main is missing: the application has to create it');
    expect(existsSync(dir.join('storage'))).toBe(false);
    expect(existsSync(dir.join('lmdb'))).toBe(false);

    const created = await check(configure(dir, 'schema_tracks_changes: true, options: {create: true}'));
    expect(created.texts('lmdbs.main', 'ok')[0]).toContain('data.mdb is missing: a start will create it');
    expect(created.code).toBe(0);
    expect(existsSync(dir.join('lmdb'))).toBe(false);
  });

  test('storages that cannot be', async () => {
    await using dir = await tempDir();
    await withLmdb(dir);
    const file = configure(dir, NATIVE);
    for (const [storage, text] of [
      ['{type: ftp}', 'must be one of'],
      ['{}', 'must be set to one of'],
      ['{type: s3, options: {bucket: b, endpoint: x}}', 'storage.options.endpoint: unknown key'],
      [`{type: fs, options: {root_path: ${file}}}`, 'ls.yaml'],
      [`{type: fs, options: {root_path: ${file}/below}}`, 'ls.yaml'],
    ] as const) {
      writeFileSync(file, readFileSync(file, 'utf8').replace(/^storage: .*$/m, `storage: ${storage}`));
      const { code, texts } = await check(file);
      expect(code).toBe(1);
      expect(texts('storage', 'error').join('\n')).toContain(text);
    }
  });

  test('the spool directory', async () => {
    await using dir = await tempDir();
    await withLmdb(dir);
    const file = configure(dir, NATIVE);
    const text = readFileSync(file, 'utf8');
    const told = async (spoolDir: string, status: string, env = {}) => {
      writeFileSync(file, text.replace(/^spool_dir: .*$/m, `spool_dir: ${spoolDir}`));
      const result = await check(file, env);
      expect(result.code).toBe(status === 'ok' ? 0 : 1);
      // The check goes on, whatever is wrong with it.
      expect(result.statuses).toHaveProperty(['lmdbs.main'], 'ok');
      return result.texts('spool_dir', status);
    };
    const cache = dir.join('cache');
    expect(await told(dir.join('new'), 'ok', { CACHE_DIRECTORY: cache })).toEqual([dir.join('new')]);
    expect(await told('""', 'ok', { CACHE_DIRECTORY: cache })).toEqual([cache]);
    // systemd gives several like this; a start uses the first.
    expect(await told('""', 'ok', { CACHE_DIRECTORY: `${cache}:/nowhere` })).toEqual([cache]);
    expect((await told(`${file}/below`, 'error'))[0]).toMatch(/cannot be used: ENOTDIR/);
    expect(existsSync(cache)).toBe(false);
  });

  test('LMDBs that do not suit their configuration', async () => {
    await using dir = await tempDir();
    const path = await withLmdb(dir);
    {
      await using main = new Testkit(path, { noSubdir: true });
      await main.put('_sync_shadow_y', 'k', 'v');
      await main.call({ op: 'raw', dbi: 'many', key: '61', value: '00'.repeat(24), flags: 4 });
    }
    const told = async (lmdb: string, status: string) => {
      const result = await check(configure(dir, lmdb));
      expect(result.code).toBe(result.findings.some((found) => found.status === 'error') ? 1 : 0);
      return result.texts('lmdbs.main', status).join('\n');
    };
    expect(await told('schema_tracks_changes: true', 'error')).toContain(
      'is no directory: set options.no_subdir',
    );
    expect(await told(NATIVE, 'error')).toContain('MDB_DUPSORT (many): they cannot be replicated natively');
    expect(await told('options: {no_subdir: true}', 'error')).toContain(
      'MDB_DUPSORT (many): set dupsort_hack',
    );
    expect(await told('options: {no_subdir: true}, dupsort_hack: true', 'error')).toContain(
      'schema_tracks_changes is false, but the values in DBI x begin with Lightning Stream headers',
    );
    const small = 'schema_tracks_changes: true, options: {no_subdir: true, map_size: 64KB}';
    expect(await told(small, 'warning')).toContain('options.map_size is 64KB, but who wrote last had 1GB');
    expect(await told('options: {no_subdir: true, max_dbs: 4}', 'error')).toContain(
      'needs 5 DBIs, more than options.max_dbs allows (4)',
    );
    writeFileSync(path, 'no LMDB at all, but long enough '.repeat(1000));
    expect(await told(NATIVE, 'error')).toContain('is not an LMDB database');
    writeFileSync(path, '');
    expect(await told(NATIVE, 'warning')).toContain('is empty');
    await using other = await tempDir();
    mkdirSync(other.join('lmdb', 'main'), { recursive: true });
    const { texts } = await check(configure(other, NATIVE));
    expect(texts('lmdbs.main', 'error')[0]).toContain('is a directory: remove options.no_subdir');
  });

  // Only root can have files that belong to somebody else, and only others are refused access.
  test.skipIf(process.getuid?.() !== 0)('permissions, as another user [root]', async () => {
    await using dir = await tempDir();
    const path = await withLmdb(dir);
    mkdirSync(dir.join('storage'));
    chmodSync(dir.path, 0o777);
    chmodSync(path, 0o644);
    chmodSync(`${path}-lock`, 0o600);
    chownSync(`${path}-lock`, 12, 12);
    const file = configure(dir, NATIVE);
    const main = join(import.meta.dirname, '../../src/main.ts');
    const script = `process.setgroups([]); process.setgid(65534); process.setuid(65534);
      process.argv.splice(1, 0, ${JSON.stringify(main)}); await import(${JSON.stringify(main)});`;
    let output = '';
    try {
      execFileSync(
        process.execPath,
        ['--input-type=module', '-e', script, '--', '-c', file, 'config', 'check'],
        {
          encoding: 'utf8',
          stdio: 'pipe',
        },
      );
    } catch (error) {
      const failed = error as { status: number; stdout: string };
      expect(failed.status).toBe(1);
      output = failed.stdout;
    }
    expect(output).toMatch(
      /error {4}lmdbs\.main: .*\/main is not accessible to nobody \(uid 65534\), it belongs to uid 0, mode 0644: run/,
    );
    expect(output).toMatch(
      /error {4}lmdbs\.main: .*\/main-lock is not accessible to .*, it belongs to uid 12, mode 0600: run/,
    );
    expect(output).toMatch(/^ok {7}storage\.list: /m);
    expect(output).toMatch(/^error {4}storage\.put: .*permission denied/m);
    expect(output).toMatch(/^warning {2}storage\.delete: cannot be told, since nothing can be stored$/m);
    expect(readdirSync(dir.join('storage'))).toEqual([]);

    chownSync(path, 12, 12);
    chmodSync(dir.join('storage'), 0o755);
    const { texts } = await check(file);
    expect(texts('lmdbs.main', 'warning')[0]).toContain(
      'the data file belongs to uid 12: run this as that user',
    );
    expect(statSync(path).uid).toBe(12);
  });
});
