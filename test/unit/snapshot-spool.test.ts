import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { LightningStreamError } from '../../src/errors.ts';
import { Spool, type SpoolPlaces } from '../../src/snapshot/spool.ts';
import type { TryLock } from '../../src/storage/lock.ts';
import { flock } from '../helpers/flock.ts';
import { recordLog } from '../helpers/log-recorder.ts';
import { type TempDir, tempDir } from '../helpers/process.ts';

let scratch: TempDir;
let base: string;
beforeEach(async () => {
  scratch = await tempDir();
  base = scratch.join('spool');
});
afterEach(() => scratch[Symbol.asyncDispose]());

function openSpool(options: Partial<SpoolPlaces> & { tryLock?: TryLock } = {}): Spool {
  return Spool.open({
    configured: base,
    cacheDirectory: undefined,
    temporaryDirectory: scratch.join('temporary'),
    tryLock: flock,
    logger: recordLog().logger,
    ...options,
  });
}

/** What `step` throws, which must be the error for users. */
function refusal(step: () => unknown): LightningStreamError {
  try {
    step();
  } catch (error) {
    expect(error).toBeInstanceOf(LightningStreamError);
    expect((error as LightningStreamError).message).not.toContain('\n');
    return error as LightningStreamError;
  }
  return expect.fail('nothing was thrown');
}

describe('the place', () => {
  test('is spool_dir, else $CACHE_DIRECTORY, else the temporary directory', async () => {
    const cacheDirectory = scratch.join('cache');
    const spools = [
      openSpool({ cacheDirectory }),
      openSpool({ configured: '', cacheDirectory }),
      openSpool({ configured: '', cacheDirectory: `${cacheDirectory}:${scratch.join('second')}` }),
      openSpool({ configured: '', cacheDirectory: '' }),
      openSpool({ configured: '' }),
    ];
    const temporary = scratch.join('temporary');
    expect(spools.map((spool) => spool.base)).toEqual([
      base,
      cacheDirectory,
      cacheDirectory,
      temporary,
      temporary,
    ]);
    for (const spool of spools) {
      expect(dirname(dirname(spool.pathFor('x')))).toBe(spool.base);
      await spool.close();
    }
  });

  test.each([
    [{ configured: 'FILE' }, /^spool_dir: cannot use \S+ for temporary files: .*\((EEXIST|ENOTDIR)\)$/],
    [
      { configured: '', cacheDirectory: 'FILE' },
      /^spool_dir is not set, and \$CACHE_DIRECTORY is used: cannot use /,
    ],
    [
      { configured: '', temporaryDirectory: 'FILE' },
      /^spool_dir is not set, and the temporary directory is used: cannot use /,
    ],
  ])('that cannot be used is refused in one line: %j', (places, message) => {
    const file = scratch.join('file');
    writeFileSync(file, '');
    const error = refusal(() =>
      openSpool(
        Object.fromEntries(Object.entries(places).map(([key, value]) => [key, value.replace('FILE', file)])),
      ),
    );
    expect(error.code).toBe('SPOOL_UNUSABLE');
    expect(error.message).toMatch(message);
    expect(error.message).toContain(file);
  });

  test('that cannot be written to is refused at once', async ({ skip }) => {
    skip(!mountTmpfs(), 'needs root and the permission to mount');
    try {
      execFileSync('mount', ['-o', 'remount,ro', base]);
      expect(refusal(() => openSpool()).message).toBe(
        `spool_dir: cannot use ${base} for temporary files: read-only file system (EROFS)`,
      );
      execFileSync('mount', ['-o', 'remount,rw', base]);
      const spool = openSpool();
      execFileSync('mount', ['-o', 'remount,ro', base]);
      expect(refusal(() => spool.pathFor('x')).code).toBe('SPOOL_UNUSABLE');
      execFileSync('mount', ['-o', 'remount,rw', base]);
      await spool.close();
    } finally {
      execFileSync('umount', ['--lazy', base]);
    }
  });

  test('that is full is refused at once, and keeps no remains', ({ skip }) => {
    skip(!mountTmpfs(), 'needs root and the permission to mount');
    try {
      execFileSync('sh', ['-c', `cat /dev/zero > ${join(base, 'filler')} 2>/dev/null || true`]);
      expect(refusal(() => openSpool()).message).toBe(
        `spool_dir: cannot use ${base} for temporary files: no space left on device (ENOSPC)`,
      );
      expect(readdirSync(base)).toEqual(['filler']);
    } finally {
      execFileSync('umount', ['--lazy', base]);
    }
  });

  test('whose file system knows no locks is refused', () => {
    const noLocks: TryLock = () => {
      throw Object.assign(new Error('ENOLCK'), { code: 'ENOLCK' });
    };
    expect(refusal(() => openSpool({ tryLock: noLocks })).message).toContain('(ENOLCK)');
    expect(readdirSync(base)).toEqual([]);
  });
});

/** Mounts a small file system at `base`; false where that is not possible. */
function mountTmpfs(): boolean {
  mkdirSync(base);
  if (process.geteuid?.() !== 0) return false;
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', base], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

describe('files', () => {
  test('are private, empty, and never two of one path', async () => {
    const umask = process.umask(0);
    try {
      const spool = openSpool();
      const name = `main__a__20240229-123456-123456789__GX.pb.gz`;
      const paths = Array.from({ length: 50 }, () => spool.pathFor(name));
      expect(new Set(paths).size).toBe(50);
      for (const path of paths) {
        expect(statSync(path)).toMatchObject({ size: 0 });
        expect(statSync(path).mode & 0o777).toBe(0o600);
        expect(statSync(dirname(path)).mode & 0o777).toBe(0o700);
      }
      await spool.close();
    } finally {
      process.umask(umask);
    }
  });

  test.each(['../../escape', 'a/b', '..', '', 'é'.repeat(200)])(
    'of an object named %j stay inside',
    async (name) => {
      const spool = openSpool();
      const path = spool.pathFor(name);
      expect(dirname(dirname(path))).toBe(base);
      expect(existsSync(path)).toBe(true);
      await spool.close();
    },
  );

  test('can be removed, twice too', async () => {
    const spool = openSpool();
    const path = spool.pathFor('x');
    await spool.remove(path);
    expect(existsSync(path)).toBe(false);
    await spool.remove(path);
    await spool.close();
  });

  test('vanish with the spool; the place stays', async () => {
    const spool = openSpool();
    writeFileSync(spool.pathFor('x'), 'content');
    await spool.close();
    expect(readdirSync(base)).toEqual([]);
    await spool.close();
    expect(() => spool.pathFor('x')).toThrow('closed');
  });

  test('can be made again after somebody tidied the place up', async () => {
    const spool = openSpool();
    const before = spool.pathFor('x');
    rmSync(base, { recursive: true });
    const after = spool.pathFor('x');
    expect(dirname(after)).not.toBe(dirname(before));
    expect(existsSync(after)).toBe(true);
    // The new directory is locked like the first.
    const other = openSpool();
    expect(existsSync(after)).toBe(true);
    await other.close();
    await spool.close();
    expect(readdirSync(base)).toEqual([]);
  });
});

describe('processes in one place', () => {
  const children: ChildProcess[] = [];
  afterEach(() => {
    for (const child of children.splice(0)) child.kill('SIGKILL');
  });

  async function startChild(wrapper: readonly string[] = []): Promise<{ child: ChildProcess; path: string }> {
    const script = join(import.meta.dirname, '..', 'helpers', 'spool-child.ts');
    const [command, ...args] = [...wrapper, process.execPath, script, base];
    const child = spawn(command ?? '', args, { stdio: ['ignore', 'pipe', 'inherit'] });
    children.push(child);
    const [output] = (await once(child.stdout, 'data')) as [Buffer];
    return { child, path: output.toString().trim() };
  }

  async function kill(child: ChildProcess): Promise<void> {
    const exited = once(child, 'exit');
    child.kill('SIGKILL');
    await exited;
  }

  test('leave each other alone; what a killed one left goes with the next start', async () => {
    const first = await startChild();
    const second = await startChild();
    expect(dirname(first.path)).not.toBe(dirname(second.path));
    expect(existsSync(first.path)).toBe(true);

    const third = openSpool();
    expect([first, second].map(({ path }) => existsSync(path))).toEqual([true, true]);
    await kill(first.child);
    expect(existsSync(first.path), 'nobody has started since').toBe(true);

    const log = recordLog();
    const fourth = Spool.open({
      configured: base,
      cacheDirectory: undefined,
      temporaryDirectory: '/nonexistent',
      tryLock: flock,
      logger: log.logger,
    });
    expect([first, second].map(({ path }) => existsSync(path))).toEqual([false, true]);
    expect(log.text()).toContain(dirname(first.path));
    await third.close();
    await fourth.close();
    await kill(second.child);
    await openSpool().close();
    expect(readdirSync(base)).toEqual([]);
  });

  test('a stopped process is not a dead one', async () => {
    const { child, path } = await startChild();
    child.kill('SIGSTOP');
    await openSpool().close();
    expect(existsSync(path)).toBe(true);
  });

  test('process ids of another container do not confuse anybody', async ({ skip }) => {
    skip(!canUnshare(), 'needs root and the permission to make a pid namespace');
    const { path } = await startChild(['unshare', '--pid', '--fork', '--kill-child', '--mount-proc']);
    // In its own namespace it has a pid that here belongs to another process, or to none.
    expect(readFileSync(join(dirname(path), 'lock'), 'utf8')).toBe('pid 1\n');
    await openSpool().close();
    expect(existsSync(path)).toBe(true);
  });

  function canUnshare(): boolean {
    try {
      execFileSync('unshare', ['--pid', '--fork', '--mount-proc', 'true'], { stdio: 'ignore' });
      return true;
    } catch {
      return false;
    }
  }

  test('many at once all end up with a directory of their own', async () => {
    const found = await Promise.all(Array.from({ length: 6 }, () => startChild()));
    expect(new Set(found.map(({ path }) => dirname(path))).size).toBe(6);
    for (const { path } of found) expect(existsSync(path)).toBe(true);
    await Promise.all(found.map(({ child }) => kill(child)));
    await openSpool().close();
    expect(readdirSync(base)).toEqual([]);
  });

  test('a directory without a lock file has no living process', async () => {
    mkdirSync(base);
    mkdirSync(join(base, 'lightningstream-spool-abcdef'), { mode: 0o700 });
    await openSpool().close();
    expect(readdirSync(base)).toEqual([]);
  });

  test.each(['before it is opened to be locked', 'between opening and locking'])(
    'a start whose directory another one takes for stale, %s, begins anew',
    async (moment) => {
      let intruded = 0;
      const intrude: TryLock = (path) => {
        if (intruded++ > 0) return flock(path);
        if (moment.startsWith('before')) rmSync(dirname(path), { recursive: true });
        const lock = flock(path);
        rmSync(dirname(path), { recursive: true });
        return lock;
      };
      const spool = openSpool({ tryLock: intrude });
      expect(intruded).toBe(2);
      const [own, ...others] = readdirSync(base);
      expect(others).toEqual([]);
      expect(dirname(spool.pathFor('x'))).toBe(join(base, own ?? ''));
      await openSpool().close();
      expect(readdirSync(base), 'it is locked').toEqual([own]);
      await spool.close();
    },
  );

  test('what others planted in a public directory is left alone', async ({ skip }) => {
    mkdirSync(base);
    const valuable = scratch.join('valuable');
    mkdirSync(valuable);
    writeFileSync(join(valuable, 'file'), '');
    symlinkSync(valuable, join(base, 'lightningstream-spool-link00'));
    writeFileSync(join(base, 'lightningstream-spool-file00'), '');
    mkdirSync(join(base, 'unrelated'));
    const open = join(base, 'lightningstream-spool-open00');
    mkdirSync(open);
    chmodSync(open, 0o777);
    const foreign = join(base, 'lightningstream-spool-uid000');
    mkdirSync(foreign, { mode: 0o700 });
    const root = process.geteuid?.() === 0;
    if (root) chownSync(foreign, 65534, 65534);
    else rmSync(foreign, { recursive: true });
    const before = readdirSync(base).sort();
    await openSpool().close();
    expect(readdirSync(base).sort()).toEqual(before);
    expect(readdirSync(valuable)).toEqual(['file']);
    skip(!root, 'all but the directory of another user was checked; that needs root');
  });
});
