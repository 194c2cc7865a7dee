import { execFileSync, spawn, spawnSync } from 'node:child_process';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { basename, join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { describe, expect, test } from 'vitest';
import type { Command } from 'commander';
import { ensureMinimumPid } from '../../src/cli/minimum-pid.ts';
import { createProgram } from '../../src/cli/program.ts';
import { EXIT, run } from '../../src/cli/run.ts';
import { member, snapshot, varintField } from '../e2e/snapshot-maker.ts';
import { recordLog } from '../helpers/log-recorder.ts';
import { capture } from '../helpers/output.ts';
import { launcher, tempDir, type TempDir, until } from '../helpers/process.ts';

const main = join(import.meta.dirname, '../../src/main.ts');

async function call(args: readonly string[], ...surroundings: Parameters<typeof capture>) {
  const io = capture(...surroundings);
  const code = await run(args, io);
  return { code, stdout: io.out(), stderr: io.err(), bytes: io.outBytes() };
}

/** A configuration with storage in a directory; `more` is YAML of the top level. */
function configure(
  dir: TempDir,
  more = '',
  storage = `{type: fs, options: {root_path: ${dir.join('storage')}}}`,
): string {
  const file = dir.join('ls.yaml');
  writeFileSync(
    file,
    `lmdbs: {main: {path: ${dir.join('main')}, schema_tracks_changes: true, options: {create: true}}}\n` +
      `spool_dir: ${dir.path}\nstorage: ${storage}\n${more}`,
  );
  return file;
}

describe('wrong arguments', () => {
  test.each([
    [['synk'], "unknown command 'synk' (Did you mean sync?)"],
    [['sync', '--only-onse'], "unknown option '--only-onse' (Did you mean --only-once?)"],
    [['snapshots', 'lst'], "unknown command 'lst' (Did you mean list?)"],
    [['snapshots', 'get'], "missing required argument 'name'"],
    [['stats', 'extra'], 'too many arguments'],
    [['-c'], 'argument missing'],
    [['--log-level', 'loud', 'stats'], "'loud' is invalid. It must be one of: trace, debug"],
    [['stats', '--log-format', 'JSON'], "'JSON' is invalid"],
    [['--log-timestamp', 'none', 'stats'], "'none' is invalid"],
    [['--minimum-pid', '-1', 'stats'], "'-1' is invalid"],
    [['--timeout', '5', 'stats'], 'It must be a duration'],
    [['--timeout', '1000h', 'stats'], 'at most 596h'],
  ])('%j', async (args, message) => {
    const { code, stdout, stderr } = await call(args);
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toMatch(/^lightningstream: .* \(see lightningstream help\)\n$/);
    expect(stderr).toContain(message);
  });
});

describe('without a configuration', () => {
  test.each([[[]], [['help']], [['--help']], [['sync', '--help']], [['help', 'receive']]])(
    '%j shows help',
    async (args) => {
      const { code, stdout, stderr } = await call(args);
      expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
      expect(stdout).toMatch(/^Usage: lightningstream /);
    },
  );

  test('every command has its own description and flags', () => {
    const nothing = () => Promise.resolve();
    const names: string[] = [];
    const walk = (command: Command, path: string): void => {
      for (const child of command.commands) {
        names.push(`${path}${child.name()}`);
        expect(child.description()).not.toBe('');
        for (const option of child.options) expect(option.description).not.toBe('');
        walk(child, `${path}${child.name()} `);
      }
    };
    walk(createProgram({ plain: nothing, configured: nothing }), '');
    expect(names).toEqual([
      'sync',
      'receive',
      'snapshots',
      'snapshots list',
      'snapshots get',
      'snapshots put',
      'snapshots remove',
      'snapshots dump',
      'dump',
      'stats',
      'verify',
      'drop-shadow',
      'migrate',
      'migrate status',
      'migrate plan',
      'migrate run',
      'experimental',
      'experimental migrate-timestamps',
      'experimental pdns-v5-fix-duplicate-domains',
      'config',
      'config check',
      'completion',
      'version',
    ]);
  });

  test('version', async () => {
    const text = await call(['version']);
    const json = JSON.parse((await call(['version', '--json'])).stdout) as Record<string, string>;
    const declared = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as {
      version: string;
    };
    expect(json).toMatchObject({ version: declared.version, node: process.versions.node });
    expect(json['lmdb']).toContain('0.9.24');
    expect(text.stdout.split('\n')).toEqual(
      expect.arrayContaining([declared.version, `node ${process.versions.node}`]),
    );
  });
});

describe('global flags', () => {
  test('stand before or after the command', async () => {
    await using dir = await tempDir();
    const file = configure(dir);
    const flags = ['-c', file, '-i', 'me', '--log-level', 'ERROR', '--log-config'];
    const before = await call([...flags, 'snapshots', 'list']);
    const after = await call(['snapshots', 'list', ...flags]);
    const between = await call(['snapshots', ...flags, 'list', '-l']);
    for (const { code, stdout } of [before, after, between]) {
      expect(code).toBe(0);
      expect(stdout).toContain('instance: me\n');
      expect(stdout).toContain('log:\n  level: error\n');
    }
  });

  test('--debug wins over --log-level, an empty -i is none', async () => {
    await using dir = await tempDir();
    const file = configure(dir, 'instance: file\n');
    const { stdout } = await call(['-c', file, '--debug', '--log-level', 'error', '-i', '', '--log-config']);
    expect(stdout).toContain('level: debug\n');
    expect(stdout).toContain('instance: file\n');
  });

  test('complaints are a line each, with the file', async () => {
    await using dir = await tempDir();
    const file = configure(dir, 'a: 1\nb: 2\n');
    const { code, stderr } = await call(['-c', file, 'stats']);
    expect({ code, stderr }).toEqual({
      code: 1,
      stderr: `lightningstream: ${file}:4:1: a: unknown key\nlightningstream: ${file}:5:1: b: unknown key\n`,
    });
  });

  test('--timeout ends a waiting daemon with 75', async () => {
    await using dir = await tempDir();
    const args = ['-c', configure(dir), 'sync', '--wait-for-marker-file', 'never', '--timeout', '200ms'];
    const started = performance.now();
    const { code, stderr } = await call(args);
    expect({ code, last: stderr.trimEnd().split('\n').at(-1) }).toEqual({
      code: 75,
      last: 'lightningstream: not done after 200ms (--timeout)',
    });
    expect(performance.now() - started).toBeGreaterThan(190);
  });

  test('a command that is done in time does not wait for it', async () => {
    await using dir = await tempDir();
    const { code } = await call(['-c', configure(dir), 'snapshots', 'list', '--timeout', '1h']);
    expect(code).toBe(0);
  });

  test('the signal ends a daemon with 0', async () => {
    await using dir = await tempDir();
    const controller = new AbortController();
    const io = capture({}, { signal: controller.signal });
    const done = run(['-c', configure(dir), 'receive', '--wait-for-marker-file', 'never'], io);
    await until(() => io.err().includes('never'), { what: 'the daemon waits' });
    controller.abort();
    expect(await done).toBe(EXIT.done);
  });

  test('an unknown LMDB is a usage error', async () => {
    await using dir = await tempDir();
    const { code, stderr } = await call(['-c', configure(dir), 'sync', '--only-once', '--only-db', 'man']);
    expect({ code, stderr }).toEqual({
      code: 2,
      stderr: 'lightningstream: --only-db man: no such database; lmdbs has main\n',
    });
  });
});

describe('features that are not built yet', () => {
  const refused = async (args: readonly string[], more: string, storage?: string) => {
    await using dir = await tempDir();
    const file = storage === undefined ? configure(dir, more) : configure(dir, more, storage);
    const { code, stderr } = await call(['-c', file, ...args]);
    expect(existsSync(dir.join('storage'))).toBe(false);
    return {
      code,
      keys: stderr
        .split('\n')
        .flatMap(
          (line) =>
            /^lightningstream: .*\.yaml: ([\w.]+): .* is not built yet in this version: /.exec(line)?.[1] ??
            [],
        ),
    };
  };

  test.each([['', '{type: azure}', ['storage.type']]])('%s %s', async (more, storage, keys) => {
    expect(await refused(['sync'], more, storage)).toEqual({ code: 1, keys });
  });

  test('do not hinder a check of the configuration', async () => {
    await using dir = await tempDir();
    const { code } = await call(['-c', configure(dir, '', '{type: azure}'), '--log-config']);
    expect(code).toBe(0);
  });
});

describe('snapshots', () => {
  const older = 'main__b__20240101-000000-000000000__GX.pb.gz';
  const newer = 'main__a__20250101-000000-000000000__GX.pb.gz';
  const content = member(snapshot('records', [{ key: 'k', value: 'v' }]));

  test('put, list, get, remove', async () => {
    await using dir = await tempDir();
    const file = configure(dir);
    const local = dir.join('local');
    writeFileSync(local, content);
    const snapshots = (...args: string[]) => call(['-c', file, 'snapshots', ...args]);

    expect((await snapshots('put', local, '-n', older)).code).toBe(0);
    expect((await snapshots('put', local, '--name', newer)).code).toBe(0);
    const forced = await snapshots('put', local, '--force');
    expect(forced.code).toBe(0);
    expect(forced.stderr).toContain('no instance will load it');

    expect((await snapshots('list')).stdout).toBe(`local\n${newer}\n${older}\n`);
    expect((await snapshots('list', '-t')).stdout).toBe(`local\n${older}\n${newer}\n`);
    expect((await snapshots('list', '-p', 'main__a')).stdout).toBe(`${newer}\n`);
    expect((await snapshots('list', '-lt', '--prefix', 'main')).stdout).toBe(
      `${String(content.length).padStart(12)}\t${older}\n${String(content.length).padStart(12)}\t${newer}\n`,
    );
    const json = (await snapshots('list', '--json')).stdout.trimEnd().split('\n');
    expect(json.map((line) => JSON.parse(line) as unknown).slice(0, 2)).toEqual([
      { name: 'local', sizeBytes: content.length, snapshot: null },
      {
        name: newer,
        sizeBytes: content.length,
        snapshot: {
          db: 'main',
          instance: 'a',
          timestamp: '2025-01-01T00:00:00.000000000Z',
          timestampNano: '1735689600000000000',
          generation: 'GX',
          extras: [],
        },
      },
    ]);

    expect((await snapshots('get', older, '-o', dir.join('copy'))).code).toBe(0);
    expect(readFileSync(dir.join('copy'))).toEqual(content);
    expect((await snapshots('get', older, '-o', '-')).bytes).toEqual(content);
    expect(readdirSync(dir.path).filter((name) => name.startsWith('lightningstream'))).toEqual([]);
    writeFileSync(
      dir.join('wrong.yaml'),
      readFileSync(file, 'utf8').replace(/^spool_dir: .*/m, `spool_dir: ${local}`),
    );
    const unusable = await call(['-c', dir.join('wrong.yaml'), 'snapshots', 'get', older, '-o', '-']);
    expect(unusable.code).toBe(1);
    expect(unusable.stderr).toMatch(
      /^lightningstream: spool_dir: cannot use .*local for temporary files: .*\n$/,
    );

    expect((await snapshots('remove', older)).code).toBe(0);
    expect((await snapshots('remove', older)).code).toBe(0);
    expect((await snapshots('list')).stdout).toBe(`local\n${newer}\n`);
    const missing = await snapshots('get', older, '-o', dir.join('none'));
    expect(missing.code).toBe(1);
    expect(missing.stderr).toMatch(/^lightningstream: .*\n$/);
    expect(missing.stderr).toContain(older);
    expect(existsSync(dir.join('none'))).toBe(false);
  });

  test('what is refused', async () => {
    await using dir = await tempDir();
    const file = configure(dir);
    writeFileSync(dir.join('local'), content);
    const expectRefused = async (code: number, text: string, args: readonly string[], isTTY = false) => {
      const result = await call(['-c', file, 'snapshots', ...args], {}, { isTTY });
      expect({ code: result.code, stdout: result.stdout }).toEqual({ code, stdout: '' });
      expect(result.stderr).toMatch(/^lightningstream: .*\n$/);
      expect(result.stderr).toContain(text);
    };
    await expectRefused(1, 'not for a terminal', ['get', older, '-o', '-'], true);
    await expectRefused(2, 'say with -o', ['get', 'a/b']);
    await expectRefused(2, 'with -n NAME', ['put', dir.join('local')]);
    await expectRefused(1, 'ENOENT', ['put', dir.join('absent'), '-n', older]);
    await expectRefused(2, 'not a regular file', ['put', dir.path, '-n', older]);
    for (const [what, bytes, text] of [
      ['no gzip', Buffer.from('hello'), 'gzip'],
      ['cut short', content.subarray(0, content.length - 1), 'cut short'],
      ['no version', member(Buffer.alloc(0)), 'no format version'],
      ['too new', member(Buffer.concat([varintField(1, 3n), varintField(4, 4n)])), 'readers of version 4'],
      ['an entry without a key', member(snapshot('records', [{ key: '' }])), 'no key'],
    ] as const) {
      const bad = dir.join(what);
      writeFileSync(bad, bytes);
      await expectRefused(1, text, ['put', bad, '-n', older]);
      await expectRefused(1, `${bad} is no snapshot`, ['put', bad, '-n', older]);
    }
    expect((await call(['-c', file, 'snapshots', 'list'])).stdout).toBe('');
    const forced = ['-c', file, 'snapshots', 'put', '--force', dir.join('no gzip'), '-n', older];
    expect((await call(forced)).code).toBe(0);
    expect((await call(['-c', file, 'snapshots', 'list'])).stdout).toBe(`${older}\n`);
  });
});

test('stats --json', async () => {
  await using dir = await tempDir();
  const file = dir.join('ls.yaml');
  writeFileSync(file, `lmdbs: {main: {path: ${dir.join('main.mdb')}, options: {no_subdir: true}}}\n`);
  const golden = join(import.meta.dirname, '../golden/pdns-4.7-shadow/after1-main.mdb.gz');
  writeFileSync(dir.join('main.mdb'), gunzipSync(readFileSync(golden)));
  const { code, stdout } = await call(['-c', file, 'stats', '--json']);
  expect(code).toBe(0);
  const stats = JSON.parse(stdout) as { dbis: readonly { dbi: string }[] };
  const shape = (object: object) => Object.keys(object).join(' ');
  expect(shape(stats)).toBe(
    'db path mapSizeBytes fileSizeBytes usedBytes pageSizeBytes lastPage lastTxnId maxReaders readers dbis',
  );
  expect(stats).toMatchObject({
    db: 'main',
    path: dir.join('main.mdb'),
    mapSizeBytes: 16_777_216,
    fileSizeBytes: statSync(dir.join('main.mdb')).size,
    usedBytes: 18 * 4096,
    lastPage: 26,
    lastTxnId: '24',
  });
  expect(stats.dbis.find(({ dbi }) => dbi === 'domains_0')).toEqual({
    dbi: 'domains_0',
    flags: ['MDB_DUPSORT', 'MDB_DUPFIXED'],
    depth: 1,
    branchPages: 0,
    leafPages: 1,
    overflowPages: 0,
    entries: 4,
    usedBytes: 4096,
  });
});

test('stats says what it cannot read, and creates nothing', async () => {
  await using dir = await tempDir();
  const { code, stdout, stderr } = await call(['-c', configure(dir), 'stats']);
  expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
  expect(stderr).toMatch(/^lightningstream: lmdbs\.main: .+\n$/);
  expect(existsSync(dir.join('main'))).toBe(false);
});

describe('--minimum-pid', () => {
  const self = (pid: number, script: string, env: Record<string, string> = {}) => ({
    pid,
    execPath: process.execPath,
    args: ['-e', script],
    env: { ...process.env, ...env },
    takeStops: () => () => undefined,
  });

  test('a process with a low id lets another one work', async () => {
    const { logger, text } = recordLog();
    const script = 'process.exit(process.env.LIGHTNINGSTREAM_NO_PID_CHECK === "1" ? 7 : 8)';
    expect(await ensureMinimumPid(5, logger, self(1, script))).toBe(7);
    expect(await ensureMinimumPid(5, logger, self(1, 'process.kill(process.pid, "SIGKILL")'))).toBe(137);
    expect(text()).toContain('Spawning processes');
  });

  test('a process with a high id works itself', async () => {
    const { logger, text } = recordLog();
    expect(await ensureMinimumPid(5, logger, self(5, ''))).toBeUndefined();
    expect(await ensureMinimumPid(1000, logger, self(200, ''))).toBeUndefined();
    expect(text()).toContain('Adjusted minimum PID to limit');
    expect(
      await ensureMinimumPid(5, logger, self(1, '', { LIGHTNINGSTREAM_NO_PID_CHECK: '1' })),
    ).toBeUndefined();
    expect(text()).toContain('does not satisfy minimum');
  });

  const minimumPidModule = JSON.stringify(new URL('../../src/cli/minimum-pid.ts', import.meta.url).href);
  const logger = '{ info() {}, warning() {} }';

  /** The program behind another process, in a process group as in a terminal, waiting for a marker file. */
  const startPair = async (dir: TempDir) => {
    const program = [main, '-c', configure(dir), 'receive', '--wait-for-marker-file', 'never'];
    const script = `
      const { ensureMinimumPid } = await import(${minimumPidModule});
      let times = 0;
      const code = await ensureMinimumPid(2, ${logger}, {
        pid: 1, execPath: process.execPath, args: ${JSON.stringify(program)}, env: process.env,
        takeStops(listener) {
          for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => listener({ signal, times: ++times }));
          return () => undefined;
        },
      });
      process.exit(code);`;
    const parent = spawn(process.execPath, ['--input-type=module', '-e', script], {
      detached: true,
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    const group = -(parent.pid ?? Number.NaN);
    let log = '';
    parent.stderr.setEncoding('utf8').on('data', (text: string) => {
      log += text;
    });
    let ended: number | null | undefined;
    let closed = false;
    parent.once('exit', (code) => {
      ended = code;
    });
    parent.once('close', () => {
      closed = true;
    });
    const spools = () => readdirSync(dir.path).filter((name) => name.startsWith('lightningstream-spool-'));
    await until(() => log.includes('Waiting for marker file'), { what: 'the program works' });
    return {
      parent,
      group,
      spools,
      code: async () => {
        await until(() => ended !== undefined, { what: 'it has ended' });
        return ended;
      },
      /** Nobody writes to its log any more. */
      gone: () => until(() => closed, { what: 'all have ended' }),
      [Symbol.dispose]: () => {
        if (!closed) process.kill(group, 'SIGKILL');
      },
    };
  };

  test('Ctrl-C reaches both processes and counts once', async () => {
    await using dir = await tempDir();
    using pair = await startPair(dir);
    expect(pair.spools()).toHaveLength(1);
    process.kill(pair.group, 'SIGINT');
    expect(await pair.code()).toBe(0);
    expect(pair.spools()).toEqual([]);
  });

  test('a signal for the waiting process alone is passed on', async () => {
    await using dir = await tempDir();
    using pair = await startPair(dir);
    pair.parent.kill('SIGTERM');
    expect(await pair.code()).toBe(0);
    expect(pair.spools()).toEqual([]);
  });

  test('without the waiting process there is nobody to work for', async () => {
    await using dir = await tempDir();
    using pair = await startPair(dir);
    pair.parent.kill('SIGKILL');
    await pair.gone();
    expect(pair.spools()).toEqual([]);
  });

  // A user namespace lets anybody have one, where the system allows that.
  const unshare = [
    '--pid',
    '--fork',
    '--mount-proc',
    ...(process.getuid?.() === 0 ? [] : ['--user', '--map-root-user']),
  ];
  const allowed = spawnSync('unshare', [...unshare, 'true']).status === 0;

  test.skipIf(!allowed)('in a pid namespace of its own', async () => {
    await using dir = await tempDir();
    const inside = `"$0" "$1" -c "$2" --minimum-pid 60 --log-format json snapshots list`;
    const args = [...unshare, 'sh', '-c', `${inside}; exit $?`, process.execPath, main, configure(dir)];
    const output = execFileSync('sh', ['-c', 'unshare "$@" 2>&1', 'sh', ...args], { encoding: 'utf8' });
    expect(output).toMatch(/"minimum_pid":60.*Spawning processes/);
    expect(output).not.toContain('does not satisfy');
  });
});

test('what nobody caught is printed without secrets', async () => {
  await using dir = await tempDir();
  const file = configure(dir, '', '{type: s3, options: {secret_key: hunter22}}');
  // Fails as soon as the configuration has been shown.
  const preload = `
    const write = process.stdout.write;
    process.stdout.write = (...args) => {
      process.nextTick(() => { throw new Error('no access with hunter22'); });
      return write.apply(process.stdout, args);
    };`;
  const flags = ['--import', `data:text/javascript,${encodeURIComponent(preload)}`];
  const { status, stderr, stdout } = spawnSync(
    process.execPath,
    [...flags, main, '-c', file, '--log-config', '--debug'],
    { encoding: 'utf8' },
  );
  expect(status).toBe(1);
  expect(stderr).toMatch(
    /^lightningstream: internal error, please report it: no access with \*\*\*\nError: /,
  );
  expect(stdout + stderr).not.toContain('hunter22');
});

test('an LMDB that cannot be opened is told of without secrets', async () => {
  await using dir = await tempDir();
  const secret = basename(dir.path);
  const file = configure(dir, '', `{type: s3, options: {secret_key: ${secret}}}`);
  const { code, stderr } = await call(['-c', file, 'stats']);
  expect(code).toBe(1);
  expect(stderr).toMatch(/^lightningstream: lmdbs\.main: .*\*\*\*\/main/);
  expect(stderr).not.toContain(secret);
});

describe('launcher', () => {
  const checkout = async () => {
    const dir = await tempDir();
    for (const name of ['bin', 'dist', 'native/addon', 'path'])
      mkdirSync(dir.join(name), { recursive: true });
    copyFileSync(launcher, dir.join('bin/lightningstream'));
    writeFileSync(dir.join('dist/main.js'), 'console.log(JSON.stringify(process.argv.slice(2)))');
    writeFileSync(dir.join('native/addon/lightningstream.node'), '');
    return dir;
  };
  const launch = (program: string, path: string, ...args: string[]) => {
    try {
      const stdout = execFileSync(program, args, {
        encoding: 'utf8',
        stdio: 'pipe',
        env: { PATH: `${path}:/usr/bin:/bin` },
      });
      return { code: 0, stdout, stderr: '' };
    } catch (error) {
      const { status, stdout, stderr } = error as { status: number; stdout: string; stderr: string };
      return { code: status, stdout, stderr };
    }
  };
  const executable = (file: string, script: string): void => {
    writeFileSync(file, `#!/bin/sh\n${script}\n`);
    chmodSync(file, 0o755);
  };

  test('runs through links, with the arguments as they are', async () => {
    await using dir = await checkout();
    executable(dir.join('path/node'), `exec "${process.execPath}" "$@"`);
    symlinkSync('../bin/lightningstream', dir.join('path/relative'));
    symlinkSync(dir.join('path/relative'), dir.join('absolute'));
    const { stdout } = launch(dir.join('absolute'), dir.join('path'), 'a b', '', '$x');
    expect(JSON.parse(stdout)).toEqual(['a b', '', '$x']);
  });

  test('refuses an old Node.js', async () => {
    await using dir = await checkout();
    executable(dir.join('path/node'), 'echo 20');
    const { code, stderr } = launch(dir.join('bin/lightningstream'), dir.join('path'));
    expect(code).toBe(1);
    expect(stderr).toMatch(
      /^lightningstream: .*is Node\.js 20, 24 or later is needed: run 'make build' in .*\n$/,
    );
  });

  test.each(['dist/main.js', 'native/addon/lightningstream.node'])(
    'says what to do without %s',
    async (part) => {
      await using dir = await checkout();
      executable(dir.join('path/node'), `exec "${process.execPath}" "$@"`);
      execFileSync('rm', [dir.join(part)]);
      const { code, stderr } = launch(dir.join('bin/lightningstream'), dir.join('path'));
      expect({ code, stderr }).toEqual({
        code: 1,
        stderr: `lightningstream: ${part} is missing: run 'make build' in ${dir.path}\n`,
      });
    },
  );
});
