/** Looking at databases and snapshots: beside those that use them, with readers that go away, and where nothing can be written. */
import { spawn, spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { once } from 'node:events';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { launcher, run, tempDir } from '../helpers/process.ts';
import { cluster, DBI, type Instance } from './helpers.ts';
import { member, snapshot } from './snapshot-maker.ts';
import { canMount, tmpfs } from './tmpfs.ts';

/** More than pipes and buffers hold. */
const MANY = 200_000;
const NAME = 'main__x__20240101-000000-000000000__GX.pb.gz';

test('a database in use is dumped as it is at one moment; the files stay as they are', async () => {
  await using net = await cluster(1);
  const a = net.instance('a');
  await a.app.put(DBI, 'key of a record', 'its value');
  await net.start();
  await a.logged('Stored snapshot');
  const files = readdirSync(a.directory);
  const dump = await a.run({ args: ['dump'] });
  expect(dump.code).toBe(0);
  expect(dump.stdout).toMatch(
    /^\n### main :: entries\n\nkey of a record {2}= {2}.+its value \[[0-9a-f ]+\] \(20.*Z\)\n$/,
  );

  const [name = ''] = net.objects();
  const remote = await a.run({ args: ['snapshots', 'dump', name] });
  expect(remote.stdout).toContain(
    `\n### entries (transform="", flags="")\n\nkey of a record  =  its value  (20`,
  );
  const local = await a.run({ args: ['snapshots', 'dump', '--local', join(net.storagePath, name)] });
  expect(withoutAge(local.stdout)).toBe(withoutAge(remote.stdout));
  const one = await a.run({ args: ['snapshots', 'dump', '-d', DBI, name] });
  expect(withoutAge(one.stdout)).toBe(withoutAge(remote.stdout));

  const lines = await jsonLines(a, ['dump', '--json']);
  const [heading, record] = lines;
  expect(lines).toHaveLength(2);
  expect(heading).toEqual({ type: 'dbi', db: 'main', dbi: DBI, flags: [], entries: 1 });
  expect(record).toMatchObject({ type: 'record', keyText: 'key of a record', valueText: 'its value' });
  const ofSnapshot = await jsonLines(a, ['snapshots', 'dump', '--json', name]);
  expect(ofSnapshot[0]).toMatchObject({ type: 'snapshot', name, formatVersion: 3, instanceId: 'a' });
  expect(ofSnapshot[1]).toEqual({ type: 'dbi', dbi: DBI, transform: '', flags: [], entries: 1 });
  const { timestampNano } = (record as { header: { timestampNano: string } }).header;
  expect(ofSnapshot[2]).toMatchObject({ valueText: 'its value', timestampNano, deleted: false });
  expect(readdirSync(a.directory)).toEqual(files);
});

describe('a reader of the output', () => {
  test.each([
    ['dump', ['dump']],
    ['dump --json', ['dump', '--json']],
    ['snapshots dump', ['snapshots', 'dump', '--local', 'SNAPSHOT']],
  ])('%s: that goes away ends it quietly', async (_, args) => {
    await using dir = await bigPlace();
    const child = dir.spawn(args);
    await once(child.stdout, 'readable');
    expect(child.stdout.read(1)).not.toBeNull();
    child.stdout.destroy();
    const [code, signal] = (await once(child, 'close')) as [number | null, string | null];
    expect({ code, signal, stderr: child.errors() }).toEqual({ code: 1, signal: null, stderr: '' });
  });

  test('that waits does not keep it from ending', async () => {
    await using dir = await bigPlace();
    const child = dir.spawn(['dump']);
    await once(child.stdout, 'readable');
    child.kill('SIGTERM');
    const [code] = (await once(child, 'exit')) as [number | null];
    expect({ code, stderr: child.errors() }).toEqual({ code: 1, stderr: 'lightningstream: interrupted\n' });
  });

  test('that is slow gets everything', async () => {
    await using dir = await bigPlace();
    const child = dir.spawn(['dump']);
    let newlines = 0;
    for await (const chunk of child.stdout) {
      newlines += (chunk as Buffer).toString('latin1').split('\n').length - 1;
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect(newlines).toBe(MANY + 3);
  });
});

test('wrong names are told with those there are, and nothing is printed', async () => {
  await using dir = await tempDir();
  writeFileSync(dir.join('s'), member(snapshot('records', [{ key: 'k', value: 'v' }])));
  const config = `lmdbs: {main: {path: ${dir.join('absent')}}, shard: {path: ${dir.join('absent too')}}}\nstorage: {type: fs, options: {root_path: ${dir.path}}}\n`;
  const refused = async (args: readonly string[]) => {
    const { code, stdout, stderr } = await run({ args, config, cwd: dir.path });
    expect(stdout).toBe('');
    return { code, stderr };
  };
  expect(await refused(['dump', '-n', 'mian'])).toEqual({
    code: 2,
    stderr: 'lightningstream: --name mian: no such database; lmdbs has main, shard\n',
  });
  expect(await refused(['snapshots', 'dump', '-l', '-d', 'record', dir.join('s')])).toEqual({
    code: 1,
    stderr: `lightningstream: no DBI record in ${dir.join('s')}; it has records\n`,
  });
  const { code, stderr } = await refused(['snapshots', 'dump', '-l', '-f', 'xml', dir.join('s')]);
  expect(code).toBe(2);
  expect(stderr).toContain('debug, text');
  // Of two databases that are not there, both are told.
  const absent = await refused(['dump']);
  expect(absent.code).toBe(1);
  expect(absent.stderr.split('\n').map((line) => line.split(':').slice(0, 2).join(':'))).toEqual([
    'lightningstream: lmdbs.main',
    'lightningstream: lmdbs.shard',
    '',
  ]);
});

test('nothing is printed of a damaged snapshot', async () => {
  await using dir = await bigPlace();
  const whole = readFileSync(dir.snapshot);
  writeFileSync(dir.snapshot, whole.subarray(0, whole.length - 1));
  const { code, stdout, stderr } = await dir.run(['snapshots', 'dump', '-l', dir.snapshot]);
  expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
  expect(stderr).toMatch(/^lightningstream: .*cut short.*\n$/);
});

test.skipIf(!canMount)('on read-only media', async () => {
  await using dir = await bigPlace();
  mkdirSync(dir.join('media'));
  using _ = tmpfs(dir.join('media'), '200m');
  copyFileSync(dir.lmdb, dir.join('media', 'main.mdb'));
  expect(spawnSync('mount', ['-o', 'remount,ro', dir.join('media')]).status).toBe(0);
  const there = { lmdb: dir.join('media', 'main.mdb') };
  const dump = await dir.run(['dump'], there);
  expect({ code: dump.code, stderr: dump.stderr }).toEqual({ code: 0, stderr: '' });
  expect(dump.stdout.split('\n')).toHaveLength(MANY + 4);
  expect((await dir.run(['stats'], there)).stdout).toContain(`Entries:${MANY}}`);
});

test.skipIf(spawnSync('script', ['--version']).status !== 0)(
  'a terminal: text, but nothing that is not',
  async () => {
    await using dir = await tempDir();
    mkdirSync(dir.join('storage'));
    writeFileSync(dir.join('storage', NAME), member(snapshot('records', [{ key: 'k', value: 'v' }])));
    const config = dir.join('ls.yaml');
    writeFileSync(
      config,
      `lmdbs: {main: {path: ${dir.join('absent')}}}\nspool_dir: ${dir.path}\nstorage: {type: fs, options: {root_path: ${dir.join('storage')}}}\n`,
    );
    const atTerminal = (args: string) =>
      spawnSync('script', ['-qec', `${launcher} -c ${config} snapshots ${args}`, '/dev/null'], {
        input: '',
        encoding: 'utf8',
      });
    expect(atTerminal(`dump ${NAME}`).stdout).toContain('k [6b]  =  v [76]');
    const binary = atTerminal(`get ${NAME} -o -`);
    expect(binary.status).toBe(1);
    expect(binary.stdout).toMatch(
      /^lightningstream: a snapshot is binary data and not for a terminal: .*\r\n$/,
    );
  },
);

function withoutAge(text: string): string {
  return text.replace(/, -?[0-9hms]+ ago;/g, ', N ago;');
}

async function jsonLines(a: Instance, args: readonly string[]): Promise<readonly unknown[]> {
  const { code, stdout } = await a.run({ args });
  expect(code).toBe(0);
  return stdout
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as unknown);
}

/** An LMDB and a snapshot of it that are too large for a pipe, and nobody that uses them. */
async function bigPlace() {
  const net = await cluster(1);
  const a = net.instance('a');
  await a.app.fill(MANY);
  await a.run({ args: ['sync', '--only-once'] });
  await a.stopApp();
  const dir = await tempDir();
  const lmdb = dir.join('main.mdb');
  const snapshotFile = dir.join(NAME);
  copyFileSync(a.lmdbPath, lmdb);
  copyFileSync(join(net.storagePath, net.objects()[0] ?? ''), snapshotFile);
  await net[Symbol.asyncDispose]();
  rmSync(`${lmdb}-lock`, { force: true });
  const configOf = (path: string): string =>
    `lmdbs: {main: {path: ${path}, schema_tracks_changes: true, options: {no_subdir: true}}}\n` +
    `storage: {type: fs, options: {root_path: ${dir.path}}}\n`;
  return {
    lmdb,
    snapshot: snapshotFile,
    join: dir.join,
    run: (args: readonly string[], there: { readonly lmdb?: string } = {}) =>
      run({ args, config: configOf(there.lmdb ?? lmdb), cwd: dir.path }),
    spawn(args: readonly string[]) {
      writeFileSync(dir.join('ls.yaml'), configOf(lmdb));
      const given = args.map((arg) => (arg === 'SNAPSHOT' ? snapshotFile : arg));
      const child = spawn(launcher, ['-c', dir.join('ls.yaml'), ...given], {
        stdio: ['ignore', 'pipe', 'pipe'],
      });
      let errors = '';
      child.stderr.setEncoding('utf8').on('data', (text: string) => {
        errors += text;
      });
      return Object.assign(child, { errors: () => errors });
    },
    [Symbol.asyncDispose]: () => dir[Symbol.asyncDispose](),
  };
}
