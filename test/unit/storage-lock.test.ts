import { existsSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { loadNative } from '../../src/native/index.ts';
import { Spool } from '../../src/snapshot/spool.ts';
import { FsStorage } from '../../src/storage/fs.ts';
import type { TryLock } from '../../src/storage/lock.ts';
import { flock } from '../helpers/flock.ts';
import { recordLog } from '../helpers/log-recorder.ts';
import { type TempDir, tempDir } from '../helpers/process.ts';

/** The addon's lock, in the places that were tested with util-linux's. */
const { tryLock } = loadNative();
const { logger } = recordLog();
let scratch: TempDir;
beforeEach(async () => {
  scratch = await tempDir();
});
afterEach(() => scratch[Symbol.asyncDispose]());

const openSpool = (lock: TryLock): Spool =>
  Spool.open({
    configured: scratch.join('spool'),
    cacheDirectory: undefined,
    temporaryDirectory: '/nonexistent',
    tryLock: lock,
    logger,
  });

test.each([
  ['the addon', tryLock, 'flock(1)', flock],
  ['flock(1)', flock, 'the addon', tryLock],
  ['the addon', tryLock, 'the addon', tryLock],
])('a lock of %s keeps %s … %s out until it is released', (_holder, first, _other, second) => {
  const path = scratch.join('file');
  writeFileSync(path, '');
  const held = first(path);
  expect(held).toBeDefined();
  expect(second(path)).toBeUndefined();
  held?.release();
  const next = second(path);
  expect(next).toBeDefined();
  expect(first(path)).toBeUndefined();
  next?.release();
});

describe('with the addon’s lock', () => {
  test('spools respect each other, and leave nothing', async () => {
    const first = openSpool(tryLock);
    const path = first.pathFor('x');
    const second = openSpool(flock);
    const third = openSpool(tryLock);
    expect(existsSync(path)).toBe(true);
    for (const spool of [first, second, third]) await spool.close();
    expect(readdirSync(scratch.join('spool'))).toEqual([]);
  });

  test('a spool whose directory is taken for stale while it starts begins anew', async () => {
    let intruded = 0;
    const spool = openSpool((path) => {
      // The addon then finds no file: its error is one of the kinds that mean a lost race.
      if (intruded++ === 0) rmSync(dirname(path), { recursive: true });
      return tryLock(path);
    });
    expect(intruded).toBe(2);
    await spool.close();
  });

  test('what it cannot lock is the user’s error in one line', () => {
    const open = (): Spool => openSpool(() => tryLock(scratch.join('file', 'below')));
    writeFileSync(scratch.join('file'), '');
    expect(open).toThrow(
      `spool_dir: cannot use ${scratch.join('spool')} for temporary files: not a directory (ENOTDIR)`,
    );
  });

  test('a storage keeps the unfinished files of living writers only', async () => {
    const open = (lock: TryLock): Promise<FsStorage> =>
      FsStorage.open({ rootPath: scratch.join('root'), tryLock: lock, logger });
    const first = await open(tryLock);
    const path = first.spoolPathFor('object');
    for (const lock of [tryLock, flock]) await (await open(lock)).close();
    expect(existsSync(path)).toBe(true);
    // As after a kill: the file is there and its lock is not.
    const abandoned = scratch
      .join('root', 'other.tmp')
      .replace('.tmp', path.slice(path.lastIndexOf('.', path.length - 5)));
    writeFileSync(abandoned, '');
    await (await open(tryLock)).close();
    expect([path, abandoned].map((each) => existsSync(each))).toEqual([true, false]);
    writeFileSync(path, 'x');
    await first.store('object', path, { signal: new AbortController().signal });
    expect(readdirSync(scratch.join('root'))).toEqual(['object']);
    await first.close();
  });
});
