import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, statSync } from 'node:fs';
import { mkdir, readdir, readFile, rename, rm, symlink, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { FsStorage } from '../../src/storage/fs.ts';
import type { TryLock } from '../../src/storage/lock.ts';
import { StorageError } from '../../src/storage/storage.ts';
import { flock } from '../helpers/flock.ts';
import { recordLog } from '../helpers/log-recorder.ts';
import { type TempDir, tempDir, until } from '../helpers/process.ts';
import { storageConformance } from '../helpers/storage-conformance.ts';

storageConformance(
  'fs',
  async () => {
    const root = await tempDir();
    const storage = await FsStorage.open({ rootPath: root.path, tryLock: flock, logger: recordLog().logger });
    return {
      storage,
      expectNothingHidden: async () => {
        expect((await readdir(root.path)).filter((name) => name.endsWith('.tmp'))).toEqual([]);
      },
      [Symbol.asyncDispose]: () => root[Symbol.asyncDispose](),
    };
  },
  { flatMemory: true, manyObjects: 300 },
);

const { signal } = new AbortController();
let scratch: TempDir;
let root: string;
beforeEach(async () => {
  scratch = await tempDir();
  root = scratch.join('root');
});
afterEach(() => scratch[Symbol.asyncDispose]());

function openFs(
  options: { rootPath?: string; tryLock?: TryLock; log?: ReturnType<typeof recordLog> } = {},
): Promise<FsStorage> {
  const { rootPath = root, tryLock = flock, log = recordLog() } = options;
  return FsStorage.open({ rootPath, tryLock, logger: log.logger });
}
async function put(storage: FsStorage, name: string, content: string | Uint8Array): Promise<void> {
  const path = scratch.join('source');
  await writeFile(path, content);
  await storage.store(name, path, { signal });
}
async function rejection(call: Promise<unknown>): Promise<StorageError> {
  const error: unknown = await call.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(StorageError);
  return error as StorageError;
}

test('listings leave a thread of the pool to others, however many are asked for', async () => {
  const storage = await openFs();
  for (let index = 0; index < 50; index += 1) await writeFile(join(root, `object-${index}`), '');
  let most = 0;
  let done = false;
  const look = (): void => {
    most = Math.max(most, process.getActiveResourcesInfo().filter((name) => name === 'FSReqPromise').length);
    if (!done) setImmediate(look);
  };
  look();
  const listings = await Promise.all(Array.from({ length: 4 }, () => storage.list('', { signal })));
  done = true;
  for (const objects of listings) expect(objects).toHaveLength(50);
  expect(most).toBeGreaterThan(0);
  expect(most).toBeLessThanOrEqual(3);
});

describe('the directory', () => {
  test('is created, with those above it, mode 0755', async () => {
    const rootPath = scratch.join('a', 'b', 'c');
    const umask = process.umask(0);
    try {
      await openFs({ rootPath });
    } finally {
      process.umask(umask);
    }
    expect(statSync(rootPath).mode & 0o777).toBe(0o755);
    expect(statSync(scratch.join('a')).mode & 0o777).toBe(0o755);
  });

  test('that is a file is refused in one line', async () => {
    await writeFile(root, '');
    const error = await rejection(openFs());
    expect(error).toMatchObject({ code: 'EEXIST', operation: 'open' });
    expect(error.message).toBe(`storage: cannot open: file already exists (EEXIST): ${root}`);
    expect((await rejection(openFs({ rootPath: join(root, 'below') }))).code).toBe('ENOTDIR');
  });

  test('that vanishes makes every call fail, instead of looking empty', async () => {
    const storage = await openFs();
    await put(storage, 'object', 'x');
    await rename(root, scratch.join('away'));
    expect(await rejection(storage.list('', { signal }))).toMatchObject({
      code: 'ENOENT',
      operation: 'list',
    });
    for (const call of [
      () => storage.load('object', scratch.join('target'), { signal }),
      () => storage.delete('object', { signal }),
      () => storage.store('object', scratch.join('source'), { signal }),
    ]) {
      const error = await rejection(call());
      expect(error).toMatchObject({ code: 'ENOENT', object: 'object' });
      expect(error.message).toContain(root);
    }
    expect(() => storage.spoolPathFor('object')).toThrow(StorageError);
    await rename(scratch.join('away'), root);
    expect(await storage.list('', { signal })).toHaveLength(1);
  });
});

describe('names', () => {
  test.each(['', '.', '..', '.hidden', 'a/b', '/a', 'a.tmp', '.tmp', 'nul\0'])(
    '%j is refused',
    async (name) => {
      const storage = await openFs();
      await writeFile(scratch.join('source'), 'x');
      const store = await rejection(storage.store(name, scratch.join('source'), { signal }));
      expect(store).toMatchObject({ code: 'NAME_INVALID', operation: 'store', object: name });
      expect(await rejection(storage.delete(name, { signal }))).toMatchObject({ code: 'NAME_INVALID' });
      expect(await rejection(storage.load(name, scratch.join('t'), { signal }))).toMatchObject({
        code: 'NOT_FOUND',
      });
      expect(() => storage.spoolPathFor(name)).toThrow(StorageError);
      expect(await readdir(scratch.path)).toEqual(['root', 'source']);
      expect(await readdir(root)).toEqual([]);
    },
  );

  test('of 255 bytes can be stored, of more cannot', async () => {
    const storage = await openFs();
    const longest = 'é'.repeat(127) + 'x';
    await put(storage, longest, 'x');
    expect(await readdir(root)).toEqual([longest]);
    expect(await rejection(storage.store(`${longest}x`, scratch.join('source'), { signal }))).toMatchObject({
      code: 'ENAMETOOLONG',
    });
    expect(await readdir(root)).toEqual([longest]);
  });
});

describe('what is no regular file', () => {
  test('is not listed, not loaded, not deleted', async () => {
    const storage = await openFs();
    await mkdir(join(root, 'directory'));
    await writeFile(scratch.join('elsewhere'), 'secret');
    await symlink(scratch.join('elsewhere'), join(root, 'link'));
    await symlink('nowhere', join(root, 'dangling'));
    execFileSync('mkfifo', [join(root, 'pipe')]);
    await writeFile(join(root, '.hidden'), '');
    await writeFile(join(root, 'unfinished.tmp'), '');
    await put(storage, 'object', 'x');
    expect(await storage.list('', { signal })).toEqual([{ name: 'object', sizeBytes: 1 }]);
    for (const name of ['directory', 'link', 'dangling', 'pipe', '.hidden', 'unfinished.tmp']) {
      const error = await rejection(storage.load(name, scratch.join('target'), { signal }));
      expect(error.code, `loading ${name}`).toBe('NOT_FOUND');
    }
    for (const name of ['directory', 'link', 'dangling', 'pipe']) await storage.delete(name, { signal });
    expect((await readdir(root)).sort()).toEqual(
      ['.hidden', 'dangling', 'directory', 'link', 'object', 'pipe', 'unfinished.tmp'].sort(),
    );
  });
});

test('objects can be read by others: their mode is left to the umask', async () => {
  const umask = process.umask(0o022);
  try {
    const storage = await openFs();
    await put(storage, 'copied', 'x');
    const path = storage.spoolPathFor('spooled');
    await writeFile(path, 'x');
    await storage.store('spooled', path, { signal });
  } finally {
    process.umask(umask);
  }
  expect(statSync(join(root, 'copied')).mode & 0o777).toBe(0o644);
  expect(statSync(join(root, 'spooled')).mode & 0o777).toBe(0o644);
});

test('a listing copes with objects that vanish meanwhile', async () => {
  const storage = await openFs();
  await writeFile(join(root, 'stays'), '');
  let done = false;
  const churn = (async () => {
    for (let round = 0; !done; round++) {
      const path = join(root, `comes-and-goes-${round % 50}`);
      await writeFile(path, '');
      await rm(path);
    }
  })();
  for (let round = 0; round < 200; round++) {
    expect((await storage.list('stays', { signal })).length).toBe(1);
    await storage.list('', { signal });
  }
  done = true;
  await churn;
});

test('the spool path is beside the place, and its file is moved, not copied', async () => {
  const storage = await openFs();
  const path = storage.spoolPathFor('main__a__x.pb.gz');
  expect(path).toMatch(new RegExp(`^${root}/main__a__x\\.pb\\.gz\\.[0-9a-f-]+\\.tmp$`));
  await writeFile(path, 'content');
  const { ino } = statSync(path);
  await storage.store('main__a__x.pb.gz', path, { signal });
  expect(statSync(join(root, 'main__a__x.pb.gz')).ino).toBe(ino);
  expect(await readdir(root)).toEqual(['main__a__x.pb.gz']);
});

test('the file is durable before it has its name, and the name after', async ({ skip }) => {
  const strace = await tracedStore();
  skip(strace === undefined, 'needs strace and the permission to trace');
  // Which calls on which files; what they mean is in fsync(2): the data, the entry of the directory, the entry's new name.
  expect(strace).toEqual(['fsync object.tmp', 'fsync directory', 'rename', 'fsync directory']);
});

/** The system calls of a store, in order; undefined when tracing is not possible. */
async function tracedStore(): Promise<readonly string[] | undefined> {
  const log = scratch.join('strace');
  await writeFile(scratch.join('source'), 'x');
  const modules = join(import.meta.dirname, '..', '..', 'src');
  const script = `
    import { FsStorage } from ${JSON.stringify(join(modules, 'storage', 'fs.ts'))};
    const quiet = () => {};
    const logger = { debug: quiet, info: quiet, warning: quiet };
    const storage = await FsStorage.open({ rootPath: ${JSON.stringify(root)}, tryLock: () => ({ release() {} }), logger });
    await storage.store('object', ${JSON.stringify(scratch.join('source'))}, { signal: new AbortController().signal });`;
  const args = ['-f', '-y', '-qq', '-o', log, '-e', 'trace=fsync,rename,renameat,renameat2'];
  const child = spawn('strace', [...args, process.execPath, '--input-type=module-typescript', '-e', script], {
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  let stderr = '';
  child.stderr.on('data', (chunk: Buffer) => (stderr += chunk.toString()));
  const code = await once(child, 'close').then(
    ([exit]) => exit as number,
    () => undefined,
  );
  if (code === undefined || /ptrace.*(not permitted|denied)/i.test(stderr)) return undefined;
  expect(code, `strace said: ${stderr}`).toBe(0);
  return (await readFile(log, 'utf8')).split('\n').flatMap((line) => {
    const path = /fsync\(\d+<([^>]*)>/.exec(line)?.[1];
    if (path !== undefined) return path === root ? 'fsync directory' : `fsync object${path.slice(-4)}`;
    return line.includes('rename') && line.includes(join(root, 'object')) ? 'rename' : [];
  });
}

describe('watch', () => {
  test('is told when another process renames an object into the directory, not of unfinished ones', async () => {
    const storage = await openFs();
    const other = await openFs();
    let calls = 0;
    const stop = storage.watch(() => calls++);
    const path = other.spoolPathFor('object');
    await writeFile(path, 'x'.repeat(100_000));
    await writeFile(join(root, 'marker'), '');
    await until(() => calls > 0, { what: 'the marker, which came after the unfinished file, was told' });
    const marked = calls;
    expect(
      marked,
      'one file was created or changed, whatever happened to the unfinished one',
    ).toBeLessThanOrEqual(2);
    await other.store('object', path, { signal });
    await until(() => calls > marked, { what: 'the object was told' });
    stop();
    await storage.close();
    await other.close();
  });

  test('falls silent when the directory is gone, and goes on nobody’s nerves', async () => {
    const storage = await openFs();
    await rm(root, { recursive: true });
    const stop = storage.watch(() => expect.fail('there is nothing to tell'));
    stop();
    await storage.close();
  });

  test('does not keep the process alive', async () => {
    await openFs();
    const modules = join(import.meta.dirname, '..', '..', 'src');
    const script = `
      import { FsStorage } from ${JSON.stringify(join(modules, 'storage', 'fs.ts'))};
      const storage = await FsStorage.open({ rootPath: ${JSON.stringify(root)}, tryLock: () => undefined, logger: {} });
      storage.watch(() => {});`;
    execFileSync(process.execPath, ['--input-type=module-typescript', '-e', script], { timeout: 8000 });
  });
});

describe('unfinished files', () => {
  const unfinished = async (): Promise<readonly string[]> =>
    (await readdir(root)).filter((name) => name.endsWith('.tmp'));

  test('of a process that lives stay, those of a killed one are removed by the next', async () => {
    const living = await openFs();
    const livingPath = living.spoolPathFor('living');
    const log = recordLog();

    const child = spawn(
      process.execPath,
      [join(import.meta.dirname, '..', 'helpers', 'storage-child.ts'), root, 'killed'],
      { stdio: ['ignore', 'pipe', 'inherit'] },
    );
    const [output] = (await once(child.stdout, 'data')) as [Buffer];
    const killedPath = output.toString().trim();
    expect(existsSync(killedPath)).toBe(true);

    await (await openFs({ log })).close();
    expect(existsSync(killedPath), 'its process lives').toBe(true);
    child.kill('SIGKILL');
    await once(child, 'exit');

    await (await openFs({ log })).close();
    expect(existsSync(killedPath), 'its process is gone').toBe(false);
    expect(log.text()).toContain('removed an unfinished object');
    expect(existsSync(livingPath)).toBe(true);
    await writeFile(livingPath, 'x');
    await living.store('living', livingPath, { signal });
    expect(await readdir(root)).toEqual(['living']);
  });

  test('of other programs are never touched, old as they may be', async () => {
    mkdirSync(root);
    const names = ['object.tmp', 'object.123.tmp', 'x.pb.gz.0123abcd.tmp', '0123abcd-0123456789ab.tmp2'];
    for (const name of names) {
      await writeFile(join(root, name), '');
      await utimes(join(root, name), 0, 0);
    }
    await openFs();
    expect((await readdir(root)).sort()).toEqual(names.sort());
  });

  test('of other hosts, or an earlier boot, go when nobody has written to them for an hour', async () => {
    mkdirSync(root);
    const fresh = join(root, 'object.00000000-0123456789ab.tmp');
    const old = join(root, 'object.00000000-0123456789ac.tmp');
    const oldAndLocked = join(root, 'object.00000000-0123456789ad.tmp');
    const directory = join(root, 'object.00000000-0123456789ae.tmp');
    await mkdir(directory);
    for (const path of [fresh, old, oldAndLocked, directory]) {
      if (path !== directory) await writeFile(path, '');
      const ageMs = path === fresh ? 59 * 60_000 : 61 * 60_000;
      await utimes(path, new Date(), new Date(Date.now() - ageMs));
    }
    const lock = flock(oldAndLocked);
    await openFs();
    lock?.release();
    expect([fresh, old, oldAndLocked, directory].map((path) => existsSync(path))).toEqual([
      true,
      false,
      true,
      true,
    ]);
  });

  test('stay young as long as their store is tried', async () => {
    const storage = await openFs();
    const path = storage.spoolPathFor('object');
    await writeFile(path, 'x');
    await utimes(path, 0, 0);
    // A directory in the object's place: the last step fails.
    await mkdir(join(root, 'object'));
    const error = await rejection(storage.store('object', path, { signal }));
    expect(error).toMatchObject({ code: 'EISDIR', operation: 'store' });
    expect(Date.now() - statSync(path).mtimeMs).toBeLessThan(60_000);
    await storage.close();
    expect(await unfinished()).toEqual([]);
  });

  test('on a file system without locks are judged by their age alone', async () => {
    const noLocks: TryLock = () => {
      throw Object.assign(new Error('ENOLCK: no locks available'), { code: 'ENOLCK' });
    };
    const first = await openFs({ tryLock: noLocks });
    const path = first.spoolPathFor('object');
    const second = await openFs({ tryLock: noLocks });
    expect(existsSync(path)).toBe(true);
    await utimes(path, 0, 0);
    await openFs({ tryLock: noLocks });
    expect(existsSync(path)).toBe(false);
    await put(second, 'object', 'x');
    await first.close();
    await second.close();
    expect(await readdir(root)).toEqual(['object']);
  });

  test('a starting process that comes between creation and lock costs a new file, not a store', async () => {
    let intruded = 0;
    const intrude: TryLock = (path) => {
      // What another process does when it finds the file just created and not locked yet.
      if (intruded++ === 0) execFileSync('rm', [path]);
      return intruded === 1 ? { release: () => undefined } : flock(path);
    };
    const storage = await openFs({ tryLock: intrude });
    const path = storage.spoolPathFor('object');
    expect(intruded).toBe(2);
    await writeFile(path, 'x');
    await storage.store('object', path, { signal });
    expect(await readdir(root)).toEqual(['object']);
  });

  test('a file that the caller gave up keeps no lock', async () => {
    let held = 0;
    const counting: TryLock = (path) => {
      const lock = flock(path);
      if (lock === undefined) return undefined;
      held++;
      return { release: () => (held--, lock.release()) };
    };
    const storage = await openFs({ tryLock: counting });
    for (let round = 0; round < 5; round++) {
      const path = storage.spoolPathFor('object');
      expect(held).toBe(1);
      await rm(path);
    }
    await storage.close();
    expect(held).toBe(0);
  });

  test('a directory that can only be read can be opened', async ({ skip }) => {
    const mounted = mountTmpfs('1m');
    skip(!mounted, 'needs root and the permission to mount');
    await writeFile(join(root, 'object'), 'x');
    await writeFile(join(root, 'object.00000000-0123456789ac.tmp'), '');
    await utimes(join(root, 'object.00000000-0123456789ac.tmp'), 0, 0);
    execFileSync('mount', ['-o', 'remount,ro', root]);
    try {
      const storage = await openFs();
      expect(await storage.list('', { signal })).toHaveLength(1);
      expect(await storage.load('object', scratch.join('target'), { signal })).toBe(1);
      await writeFile(scratch.join('source'), 'x');
      for (const call of [
        () => storage.store('new', scratch.join('source'), { signal }),
        () => storage.delete('object', { signal }),
      ]) {
        const error = await rejection(call());
        expect(error.code).toBe('EROFS');
        expect(error.message).toMatch(
          /^storage: cannot (store "new"|delete "object"): read-only file system \(EROFS\): \//,
        );
      }
      expect(() => storage.spoolPathFor('new')).toThrow('read-only file system (EROFS)');
    } finally {
      execFileSync('umount', ['--lazy', root]);
    }
  });
});

/** Mounts a small file system at `root`; false where that is not possible. */
function mountTmpfs(size: string): boolean {
  mkdirSync(root);
  if (process.geteuid?.() !== 0) return false;
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'tmpfs', root], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

test('a full disk is one clear line, and leaves the old object and nothing else', async ({ skip }) => {
  skip(!mountTmpfs('1m'), 'needs root and the permission to mount');
  try {
    const storage = await openFs();
    await put(storage, 'object', 'old');
    const error = await rejection(put(storage, 'object', Buffer.alloc(2 << 20)));
    expect(error).toMatchObject({ code: 'ENOSPC', operation: 'store', object: 'object' });
    expect(error.message).toMatch(
      new RegExp(
        `^storage: cannot store "object": no space left on device \\(ENOSPC\\): ${root}/object\\.\\S+\\.tmp$`,
      ),
    );
    expect(await readdir(root)).toEqual(['object']);
    expect(await readFile(join(root, 'object'), 'utf8')).toBe('old');
    await put(storage, 'object', Buffer.alloc(900_000));
    expect(statSync(join(root, 'object')).size).toBe(900_000);
  } finally {
    execFileSync('umount', ['--lazy', root]);
  }
});

test('a full spool is a failed load that leaves no file', async ({ skip }) => {
  skip(!mountTmpfs('1m'), 'needs root and the permission to mount');
  try {
    const storage = await openFs({ rootPath: scratch.join('objects') });
    await put(storage, 'object', Buffer.alloc(2 << 20));
    const target = join(root, 'target');
    const error = await rejection(storage.load('object', target, { signal }));
    expect(error).toMatchObject({ code: 'ENOSPC', operation: 'load', object: 'object' });
    expect(error.message).toBe(`storage: cannot load "object": no space left on device (ENOSPC): ${target}`);
    expect(await readdir(root)).toEqual([]);
  } finally {
    execFileSync('umount', ['--lazy', root]);
  }
});

test('load never removes a device that it was to write to', async () => {
  const storage = await openFs();
  await put(storage, 'object', 'x');
  const link = scratch.join('link');
  await symlink('/dev/full', link);
  const error = await rejection(storage.load('object', link, { signal }));
  expect(error.code).toBe('ENOSPC');
  expect(existsSync(link)).toBe(true);
});
