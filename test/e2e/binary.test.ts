import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  copyFileSync,
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { repositoryRoot, run, start, tempDir, type TempDir, until } from '../helpers/process.ts';
import { isRoot } from './helpers.ts';
import { canMount } from './tmpfs.ts';

// The single binary, beyond what `make test-binary` shows: that it needs nothing but itself. docs/architecture.md says how it is made.

const directory = join(repositoryRoot, 'dist', 'binary');
const binary = join(directory, 'lightningstream');
const addon = join(directory, 'lightningstream.node');

beforeAll(() => {
  if (!existsSync(binary)) throw new Error(`${binary} is missing: run make binary`);
});

interface Versions {
  readonly version: string;
  readonly commit?: string;
  readonly node: string;
  readonly lmdb?: string;
  readonly addon: string;
}

const declared = JSON.parse(readFileSync(join(repositoryRoot, 'package.json'), 'utf8')) as {
  readonly version: string;
  readonly optionalDependencies: Readonly<Record<string, string>>;
};
const addonVersion = /^version = "(.+)"$/m.exec(
  readFileSync(join(repositoryRoot, 'Cargo.toml'), 'utf8'),
)?.[1];

/** The binary without the addon beside it. Below the checkout, not in the system's /tmp, to be linked instead of copied. */
async function alone(): Promise<TempDir & { readonly program: string; readonly beside: string }> {
  const parent = join(repositoryRoot, '.cache');
  mkdirSync(parent, { recursive: true });
  const dir = await tempDir('binary-test-', parent);
  chmodSync(dir.path, 0o755);
  linkSync(binary, dir.join('lightningstream'));
  return { ...dir, program: dir.join('lightningstream'), beside: dir.join('lightningstream.node') };
}

/** A configuration without anything to sync. */
function configure(dir: TempDir): string {
  const file = dir.join('lightningstream.yaml');
  mkdirSync(dir.join('storage'), { recursive: true });
  const config = {
    instance: 'a',
    storage: { type: 'fs', options: { root_path: dir.join('storage') } },
    lmdbs: { main: { path: dir.join('main') } },
  };
  writeFileSync(file, JSON.stringify(config));
  return file;
}

async function versions(program: string, env: Record<string, string | undefined> = {}): Promise<Versions> {
  const { code, stdout, stderr } = await run({ command: program, args: ['version', '--json'], env });
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  return JSON.parse(stdout) as Versions;
}

test('it knows its versions', async () => {
  const found = await versions(binary);
  expect(found).toMatchObject({
    version: declared.version,
    node: declared.optionalDependencies[`node-linux-${process.arch}`],
    addon: addonVersion,
  });
  expect(found.lmdb).toMatch(/^0\.9\.\d+$/);
  if (existsSync(join(repositoryRoot, '.git'))) expect(found.commit).toMatch(/^[0-9a-f]{7,40}(-dirty)?$/);
});

describe('what it needs of the system', () => {
  const libraries = [
    'ld-linux-aarch64.so.1',
    'ld-linux-x86-64.so.2',
    'libc.so.6',
    'libdl.so.2',
    'libgcc_s.so.1',
    'libm.so.6',
    'libpthread.so.0',
    'libstdc++.so.6',
  ];
  /** The newest in each of the oldest systems meant: Debian 12, Ubuntu 22.04, RHEL 9. */
  const newest = { GLIBC: '2.34', GLIBCXX: '3.4.29', CXXABI: '1.3.13', GCC: '11' };

  test.each([
    ['the binary', binary],
    ['the addon', addon],
  ])('%s: libraries of glibc 2.34', (_, file) => {
    const dynamic = spawnSync('objdump', ['-p', file], { encoding: 'utf8' }).stdout;
    const needed = [...dynamic.matchAll(/NEEDED +(\S+)/g)].map(([, name]) => name ?? '');
    expect(needed).toContain('libc.so.6');
    expect(needed.filter((name) => !libraries.includes(name))).toEqual([]);
    const symbols = spawnSync('objdump', ['-T', file], { encoding: 'utf8', maxBuffer: 1 << 26 }).stdout;
    const wanted = [...symbols.matchAll(/\b(GLIBC|GLIBCXX|CXXABI|GCC)_([0-9.]+)/g)];
    expect(wanted.length).toBeGreaterThan(0);
    const tooNew = wanted.filter(([, name, version]) =>
      isNewer(version ?? '', newest[name as keyof typeof newest]),
    );
    expect([...new Set(tooNew.map(([symbol]) => symbol))]).toEqual([]);
  });

  test('it is no larger than 115 MB, the addon beside it included', () => {
    expect(statSync(binary).size + statSync(addon).size).toBeLessThan(115e6);
  });

  test('nothing in it says where it was built', () => {
    for (const file of [binary, addon]) {
      const content = readFileSync(file);
      for (const place of [repositoryRoot, join(homedir(), '.cargo')])
        expect([file, place, content.indexOf(place)]).toEqual([file, place, -1]);
    }
  });
});

function isNewer(version: string, limit: string): boolean {
  const [ours, theirs] = [version, limit].map((text) => text.split('.').map(Number));
  for (const [index, part] of (ours ?? []).entries()) {
    const other = theirs?.[index] ?? 0;
    if (part !== other) return part > other;
  }
  return false;
}

test('no flags reach Node.js from outside', async () => {
  await using dir = await tempDir();
  const trap = dir.join('trap.cjs');
  writeFileSync(trap, `require('node:fs').writeFileSync(${JSON.stringify(dir.join('sprung'))}, '')`);
  // The same Node.js obeys, so that the trap would notice.
  spawnSync(process.execPath, ['-e', ''], { env: { NODE_OPTIONS: `--require ${trap}` } });
  expect(existsSync(dir.join('sprung'))).toBe(true);
  rmSync(dir.join('sprung'));

  expect((await versions(binary, { NODE_OPTIONS: `--require ${trap}` })).addon).toBe(addonVersion);
  expect((await versions(binary, { NODE_OPTIONS: '--no-such-flag' })).addon).toBe(addonVersion);
  for (const args of [['--require', trap], ['--inspect'], ['--version'], ['-e', '0']]) {
    const { code, stdout, stderr } = await run({ command: binary, args });
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toMatch(/^lightningstream: .+\n$/);
  }
  expect(existsSync(dir.join('sprung'))).toBe(false);
});

test('started through a link, by its name, from anywhere', async () => {
  await using dir = await tempDir();
  mkdirSync(dir.join('bin'));
  spawnSync('ln', ['-s', binary, dir.join('bin/lightningstream')]);
  const { code, stdout } = await run({
    command: 'sh',
    args: ['-c', 'exec lightningstream version --json'],
    cwd: '/',
    env: { PATH: dir.join('bin') + ':/usr/bin:/bin', HOME: undefined },
  });
  expect(code).toBe(0);
  expect(JSON.parse(stdout)).toMatchObject({ addon: addonVersion });
});

test('ten at once, and nothing is left behind', async () => {
  await using dir = await alone();
  await using scratch = await tempDir();
  const before = readdirSync(dir.path);
  const all = await Promise.all(
    Array.from({ length: 10 }, () => versions(dir.program, { TMPDIR: scratch.path, HOME: undefined })),
  );
  expect(all.map((found) => found.addon)).toEqual(Array.from({ length: 10 }, () => addonVersion));
  expect(readdirSync(scratch.path)).toEqual([]);
  expect(readdirSync(dir.path)).toEqual(before);
});

describe('the addon beside it', () => {
  test('what does not hold the same is ignored, whatever it is', async () => {
    await using dir = await alone();
    // Says so when it is loaded.
    const source = dir.join('planted.c');
    writeFileSync(
      source,
      `#include <stdio.h>\n__attribute__((constructor)) static void sprung(void) { fputs("sprung", stderr); }\n`,
    );
    const compiled = spawnSync('cc', ['-shared', '-fPIC', '-o', dir.beside, source], { encoding: 'utf8' });
    expect(compiled.stderr).toBe('');
    const load = `process.dlopen({ exports: {} }, ${JSON.stringify(dir.beside)})`;
    expect(spawnSync(process.execPath, ['-e', load], { encoding: 'utf8' }).stderr).toMatch(/^sprung/);
    expect((await versions(dir.program)).addon).toBe(addonVersion);

    // Of the right length.
    const other = readFileSync(addon);
    other.fill(0, other.length - 1);
    other[other.length - 1] = 1;
    writeFileSync(dir.beside, other);
    expect((await versions(dir.program)).addon).toBe(addonVersion);

    rmSync(dir.beside);
    spawnSync('mkfifo', [dir.beside]);
    expect((await versions(dir.program)).addon).toBe(addonVersion);
    rmSync(dir.beside);
    mkdirSync(dir.beside);
    expect((await versions(dir.program)).addon).toBe(addonVersion);
  });

  describe.skipIf(!canMount)('where nothing else can be loaded', () => {
    /** Runs `command` where the program's directory is all that may run code, and nothing is writable but a noexec /tmp. */
    const locked = (dir: TempDir, command: string) =>
      run({ command: 'unshare', args: ['--mount', 'sh', '-ec', `${lockedDown(dir.path)}\n${command}`] });
    const version = 'exec env -i /mnt/lightningstream version --json';

    test('the right one is loaded, and needs no place to write', async () => {
      await using dir = await alone();
      copyFileSync(addon, dir.beside);
      chmodSync(dir.beside, 0o644);
      const { code, stdout } = await locked(dir, `! touch /mnt/x /x 2>/dev/null; ${version}`);
      expect(code).toBe(0);
      expect(JSON.parse(stdout)).toMatchObject({ addon: addonVersion });
    });

    test.each([
      ['of another owner', (file: string) => chownSync(file, 12_345, 0)],
      ['that its group may write', (file: string) => chmodSync(file, 0o664)],
      ['that everybody may write', (file: string) => chmodSync(file, 0o646)],
      ['that is not there', (file: string) => rmSync(file)],
    ])('one %s is not', async (_, spoil) => {
      await using dir = await alone();
      copyFileSync(addon, dir.beside);
      chmodSync(dir.beside, 0o644);
      spoil(dir.beside);
      const { code, stdout } = await locked(dir, version);
      // Whoever reports it must be able to say which version it is.
      expect(code).toBe(0);
      const found = JSON.parse(stdout) as Versions;
      expect(found).toMatchObject({ version: declared.version, node: expect.any(String) as string });
      expect(found.addon).toMatch(/^cannot be loaded \(.*TMPDIR.*\)$/);
    });

    test('without any, one line says what to do', async () => {
      await using dir = await alone();
      configure(dir);
      const { code, stdout, stderr } = await locked(
        dir,
        'exec env -i /mnt/lightningstream -c /mnt/lightningstream.yaml stats',
      );
      expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
      expect(stderr).toMatch(
        /^lightningstream: .*cannot load the native addon: put lightningstream\.node .+ TMPDIR .+\n$/,
      );
      expect(stderr.split('\n')).toHaveLength(2);
    });
  });
});

/** Shell commands that leave, in a mount namespace, `path` as /mnt, everything read-only, and a writable /tmp that runs nothing. */
function lockedDown(path: string): string {
  return [
    'mount --make-rprivate /',
    `mount --bind '${path}' /mnt`,
    'mount -o remount,bind,ro /mnt',
    'mount -o remount,bind,ro /',
    'for place in /tmp /var/tmp /dev/shm; do mount -t tmpfs -o noexec,mode=1777 tmpfs $place; done',
    'cd /',
  ].join('\n');
}

test.skipIf(!canMount)('no HOME, a read-only root, a noexec /tmp: any other place will do', async () => {
  await using dir = await alone();
  const script = `${lockedDown(dir.path)}
    mount -t tmpfs -o exec,mode=1777 tmpfs /dev/shm
    env -i /mnt/lightningstream version --json
    ls -A /tmp /var/tmp /dev/shm`;
  const { code, stdout } = await run({ command: 'unshare', args: ['--mount', 'sh', '-ec', script] });
  expect(code).toBe(0);
  const [json = '', ...listing] = stdout.split('\n');
  expect(JSON.parse(json)).toMatchObject({ addon: addonVersion });
  expect(listing.filter(Boolean)).toEqual(['/dev/shm:', '/tmp:', '/var/tmp:']);
});

const unshare = ['--pid', '--fork', '--mount-proc', '--kill-child'];
const canUnshare = isRoot && spawnSync('unshare', [...unshare, 'true']).status === 0;

test.skipIf(!canUnshare)('--minimum-pid: it starts itself once more, and passes signals on', async () => {
  await using dir = await tempDir();
  const file = configure(dir);
  const script = `set -e
    "$0" -c "$1" --minimum-pid 60 receive --wait-for-marker-file never &
    until grep -q 'Waiting for marker file' "$2"; do kill -0 $!; sleep 0.05; done
    for one in $(ls -d /proc/[0-9]* | sort -V); do
      if [ "$(cat $one/comm)" = lightningstream ]; then echo "$one $(tr '\\0' ' ' < $one/cmdline)"; fi
    done
    kill $!
    wait $! && echo ended`;
  const log = dir.join('log');
  const inside = [...unshare, 'sh', '-c', `${script}; exit $?`, binary, file, log];
  await using running = await start({
    command: 'sh',
    args: ['-c', `log=$1; shift; exec unshare "$@" 2>"$log"`, 'sh', log, ...inside],
    env: { TMPDIR: dir.path },
  });
  const { code, stdout } = await running.exited;
  expect({ code, log: readFileSync(log, 'utf8') }).toMatchObject({ code: 0 });
  const arguments_ = `-c ${file} --minimum-pid 60 receive --wait-for-marker-file never `;
  const [first, second, ended] = stdout.split('\n');
  // Each with the arguments of the first, and no script or flags of Node.js among them.
  expect(first).toMatch(/^\/proc\/[1-5]?\d /);
  expect(second).toMatch(/^\/proc\/([6-9]\d|\d{3}) /);
  for (const line of [first, second]) expect(line).toContain(` ${arguments_}`);
  expect(ended).toBe('ended');
  expect(readdirSync(dir.path).filter((name) => name.includes('spool'))).toEqual([]);
});

test('exit codes', async () => {
  await using dir = await tempDir();
  const file = configure(dir);
  const ends = async (...args: readonly string[]) => {
    const { code, stderr } = await run({ command: binary, args });
    return { code, stderr };
  };
  expect((await ends('help')).code).toBe(0);
  expect((await ends('nonsense')).code).toBe(2);
  expect(await ends('-c', dir.join('none.yaml'), 'stats')).toMatchObject({
    code: 1,
    stderr: expect.stringMatching(/^lightningstream: .*none\.yaml.*\n$/) as string,
  });
  const waiting = ['--timeout', '100ms', 'receive', '--wait-for-marker-file', 'never'];
  expect((await ends('-c', file, ...waiting)).code).toBe(75);
});

test.each(['SIGTERM', 'SIGINT'] as const)('%s ends it orderly', async (signal) => {
  await using dir = await tempDir();
  const file = configure(dir);
  await using running = await start({
    command: binary,
    args: ['-c', file, 'receive', '--wait-for-marker-file', 'never'],
    env: { TMPDIR: dir.path },
  });
  await running.waitForOutput(/Waiting for marker file/);
  expect(readFileSync(`/proc/${running.pid}/comm`, 'utf8')).toBe('lightningstream\n');
  running.kill(signal);
  await until(() => running.child.exitCode !== null || running.child.signalCode !== null, {
    what: 'it has ended',
  });
  expect(await running.exited).toMatchObject({ code: 0, signal: null });
  expect(readdirSync(dir.path).sort()).toEqual(['lightningstream.yaml', 'storage']);
});
