import { createHash } from 'node:crypto';
import { open, readFile, stat, writeFile } from 'node:fs/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type Storage, StorageError } from '../../src/storage/storage.ts';
import { type TempDir, tempDir, until } from './process.ts';

/** One opened, empty storage. */
export interface Backend extends AsyncDisposable {
  readonly storage: Storage;
  /** Fails when the backend holds anything that no listing shows (unfinished files, uploads). Called while nothing is running. */
  expectNothingHidden?(): Promise<void>;
}

export interface ConformanceTraits {
  /** Whether objects pass through without being held in memory. */
  readonly flatMemory: boolean;
  /** How many objects the listing test makes; above the page size of the backend, where it has one. */
  readonly manyObjects: number;
  /** Per test; servers need more time. */
  readonly timeoutMs?: number;
}

const BIG_BYTES = 64 << 20;
/** The most that a 64 MiB object may add to the buffers of the process: chunks and what waits for the garbage collector. */
const FLAT_BYTES = 32 << 20;

/** What every storage must do, whatever is behind it. `openBackend` gives a fresh, empty one each time. */
export function storageConformance(
  title: string,
  openBackend: () => Promise<Backend>,
  traits: ConformanceTraits,
): void {
  describe(`storage conformance: ${title}`, { timeout: traits.timeoutMs ?? 30_000 }, () => {
    let backend: Backend;
    let storage: Storage;
    let scratch: TempDir;
    let files = 0;
    const { signal } = new AbortController();

    beforeEach(async () => {
      backend = await openBackend();
      storage = backend.storage;
      scratch = await tempDir();
    });
    afterEach(async () => {
      await backend.expectNothingHidden?.();
      await storage.close();
      await backend[Symbol.asyncDispose]();
      await scratch[Symbol.asyncDispose]();
    });

    const newPath = (): string => scratch.join(`file-${++files}`);
    async function fileWith(content: Uint8Array | string): Promise<string> {
      const path = newPath();
      await writeFile(path, content);
      return path;
    }
    async function put(name: string, content: Uint8Array | string): Promise<void> {
      await storage.store(name, await fileWith(content), { signal });
    }
    async function get(name: string): Promise<Buffer> {
      const path = newPath();
      const sizeBytes = await storage.load(name, path, { signal });
      const content = await readFile(path);
      expect(sizeBytes).toBe(content.length);
      return content;
    }
    async function names(prefix = ''): Promise<readonly string[]> {
      return (await storage.list(prefix, { signal })).map((object) => object.name);
    }
    async function failure(call: Promise<unknown>): Promise<unknown> {
      return call.then(
        () => expect.fail('the call succeeded'),
        (error: unknown) => error,
      );
    }

    test('says what and where it is', () => {
      expect(storage.type).toMatch(/^[a-z0-9]+$/);
      expect(storage.location).not.toBe('');
    });

    test('an empty storage lists nothing', async () => {
      expect(await storage.list('', { signal })).toEqual([]);
    });

    test('gives back what was stored', async () => {
      const content = Buffer.from(Array.from({ length: 1000 }, (_, index) => index % 256));
      const path = await fileWith(content);
      await storage.store('object', path, { signal });
      expect(await get('object')).toEqual(content);
      expect(await storage.list('', { signal })).toEqual([{ name: 'object', sizeBytes: 1000 }]);
      expect(await readFile(path), 'the source stays').toEqual(content);
    });

    test('stores an object without a byte', async () => {
      await put('empty', '');
      expect(await storage.list('', { signal })).toEqual([{ name: 'empty', sizeBytes: 0 }]);
      expect(await get('empty')).toHaveLength(0);
    });

    test('lists in the order of bytes', async () => {
      const all = [
        'b',
        'a',
        'a-',
        'a.x',
        'a0',
        'a_',
        'aa',
        'A',
        'Z',
        'é',
        'z',
        '\u{fffd}',
        '\u{1f600}',
        'main__b',
      ];
      await Promise.all(all.map((name) => put(name, name)));
      const expected = all.toSorted((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
      expect(await names()).toEqual(expected);
    });

    test('lists by prefix, which is plain text', async () => {
      const all = ['main', 'main_', 'main__a', 'main__b', 'main-2__a', 'xmain__a', 'm*', 'm?', 'MAIN__a'];
      await Promise.all(all.map((name) => put(name, '1')));
      expect(await names('main__')).toEqual(['main__a', 'main__b']);
      expect(await names('main__a')).toEqual(['main__a']);
      expect(await names('main__a0')).toEqual([]);
      expect(await names('m*')).toEqual(['m*']);
      expect(await names('m?')).toEqual(['m?']);
      expect(await names('.')).toEqual([]);
      expect(await names('nothing')).toEqual([]);
    });

    test('keeps names apart that differ only at their end', async () => {
      const all = ['a', 'a.pb', 'a.pb.g', 'a.pb.gz', 'a.pb.gz2', 'a.pb.gz.tmp2'];
      await Promise.all(all.map((name) => put(name, `content of ${name}`)));
      await storage.delete('a.pb.gz', { signal });
      expect(await names('a.pb.gz')).toEqual(['a.pb.gz.tmp2', 'a.pb.gz2']);
      expect((await get('a.pb')).toString()).toBe('content of a.pb');
      expect((await get('a')).toString()).toBe('content of a');
    });

    test.each([
      'with space',
      ' lead and trail ',
      'plus+and&more=1',
      '%41%2F%25',
      'what?#fragment',
      'quote"\'`',
      'back\\slash',
      'semi;colon:comma,',
      '<xml>&amp;',
      'ümläut-日本-\u{1f600}',
      'dots..in..it.',
      'x.tmp.pb.gz',
      '-dash',
      '~tilde',
      `main__${'i'.repeat(180)}__20240229-123456-123456789__GX.pb.gz`,
    ])('takes the name %j', async (name) => {
      await put(name, name);
      expect(await names()).toEqual([name]);
      expect(await names(name.slice(0, 3))).toEqual([name]);
      expect((await get(name)).toString()).toBe(name);
      await storage.delete(name, { signal });
      expect(await names()).toEqual([]);
    });

    test('replaces an object, by a shorter one too', async () => {
      await put('object', 'a longer content');
      await put('object', 'short');
      expect((await get('object')).toString()).toBe('short');
      expect(await storage.list('', { signal })).toEqual([{ name: 'object', sizeBytes: 5 }]);
    });

    test('load truncates a longer file', async () => {
      await put('object', 'short');
      const path = await fileWith('something much longer');
      expect(await storage.load('object', path, { signal })).toBe(5);
      expect(await readFile(path, 'utf8')).toBe('short');
    });

    test('an absent object is NOT_FOUND, and the file is left as it was', async () => {
      await put('object2', 'x');
      const path = await fileWith('as it was');
      const error = await failure(storage.load('object', path, { signal }));
      expect(error).toBeInstanceOf(StorageError);
      expect(error).toMatchObject({ code: 'NOT_FOUND', operation: 'load', object: 'object' });
      expect((error as Error).message).toMatch(/^[^\n]*object[^\n]*$/);
      expect(await readFile(path, 'utf8')).toBe('as it was');
      await expect(storage.load('object', newPath(), { signal })).rejects.toMatchObject({
        code: 'NOT_FOUND',
      });
    });

    test('delete removes; an absent object is no error', async () => {
      await put('object', 'x');
      await storage.delete('object', { signal });
      await storage.delete('object', { signal });
      await storage.delete('never', { signal });
      expect(await names()).toEqual([]);
      await expect(storage.load('object', newPath(), { signal })).rejects.toMatchObject({
        code: 'NOT_FOUND',
      });
    });

    test('an object can be stored again after it was deleted', async () => {
      await put('object', 'one');
      await storage.delete('object', { signal });
      await put('object', 'two');
      expect((await get('object')).toString()).toBe('two');
    });

    test('a source that cannot be read changes nothing', async () => {
      await put('object', 'old');
      const error = await failure(storage.store('object', newPath(), { signal }));
      expect(error).toMatchObject({ code: 'ENOENT', operation: 'store', object: 'object' });
      expect((await get('object')).toString()).toBe('old');
    });

    test('a target that cannot be written is a failed load', async () => {
      await put('object', 'x');
      const path = scratch.join('no', 'such', 'directory');
      const error = await failure(storage.load('object', path, { signal }));
      expect(error).toMatchObject({ code: 'ENOENT', operation: 'load', object: 'object' });
      expect((error as Error).message).toContain(path);
    });

    test('streams a big object', async () => {
      const source = newPath();
      const target = newPath();
      const digest = await writeBig(source);
      const peak = await peakOfBuffers(async () => {
        await storage.store('big', source, { signal });
        expect(await storage.load('big', target, { signal })).toBe(BIG_BYTES);
      });
      expect((await storage.list('', { signal })).map((object) => object.sizeBytes)).toEqual([BIG_BYTES]);
      expect(await digestOf(target)).toBe(digest);
      if (traits.flatMemory) expect(peak).toBeLessThan(FLAT_BYTES);
    });

    test('lists many objects', async () => {
      const all = Array.from(
        { length: traits.manyObjects },
        (_, index) => `n${String(index).padStart(5, '0')}`,
      );
      const path = await fileWith('12345');
      const left = all.toReversed().values();
      await Promise.all(
        Array.from({ length: 16 }, async () => {
          for (const name of left) await storage.store(name, path, { signal });
        }),
      );
      const listed = all.map((name) => ({ name, sizeBytes: 5 }));
      expect(await storage.list('n', { signal })).toEqual(listed);
      if (storage.listPage === undefined) return;
      // All or nothing: a first page must not pass for the whole.
      expect(await storage.listPage('', { signal })).toBeUndefined();
      expect(await storage.listPage('n0000', { signal })).toEqual(listed.slice(0, 10));
      expect(await storage.listPage('absent', { signal })).toEqual([]);
    });

    test('serves parallel calls', async () => {
      const all = Array.from({ length: 24 }, (_, index) => `parallel-${index}`);
      await Promise.all(
        all.map(async (name, index) => {
          const content = Buffer.alloc(50_000 + index, index);
          await put(name, content);
          expect(await names(name)).toContain(name);
          expect((await get(name)).equals(content)).toBe(true);
          if (index % 2 === 0) await storage.delete(name, { signal });
        }),
      );
      expect((await names()).length).toBe(12);
    });

    test('a reader sees whole objects only while a writer replaces them', async () => {
      // Version n is n * 100 kB of the byte n.
      const size = (version: number): number => version * 100_000;
      const versions = [1, 2, 3, 4, 5, 6, 7, 8, 9];
      const paths = await Promise.all(
        versions.map((version) => fileWith(Buffer.alloc(size(version), version))),
      );
      await storage.store('object', paths[0] ?? '', { signal });
      const seen = new Set<number>();
      const listed = new Set<number>();
      let done = false;
      const writer = (async () => {
        for (let round = 0; !done; round++) {
          await storage.store('object', paths[round % paths.length] ?? '', { signal });
        }
      })();
      const readers = Array.from({ length: 3 }, async () => {
        while (!done) {
          const content = await get('object');
          const version = content[0] ?? 0;
          expect(content.length).toBe(size(version));
          expect(content.equals(Buffer.alloc(size(version), version))).toBe(true);
          seen.add(version);
          const [object] = await storage.list('obj', { signal });
          expect(versions.map(size)).toContain(object?.sizeBytes);
          listed.add(object?.sizeBytes ?? 0);
        }
      });
      const watched = Promise.all([writer, ...readers]);
      try {
        const enough = until(() => seen.size >= 3 && listed.size >= 3, {
          what: 'three versions were read and listed',
          timeoutMs: traits.timeoutMs ?? 20_000,
        });
        await Promise.race([enough, watched]);
        await enough;
      } finally {
        done = true;
        await watched;
      }
    });

    test('of writers of one name, one wins whole', async () => {
      const contents = Array.from({ length: 8 }, (_, index) => Buffer.alloc(300_000 + index * 1000, index));
      await Promise.all(contents.map((content) => put('object', content)));
      const content = await get('object');
      expect(contents.some((candidate) => candidate.equals(content))).toBe(true);
      expect(await names()).toEqual(['object']);
    });

    test('a signal that is aborted already ends every call with its reason', async () => {
      await put('object', 'old');
      const path = await fileWith('new');
      const target = newPath();
      const reason = new Error('enough');
      const aborted = { signal: AbortSignal.abort(reason) };
      expect(await failure(storage.list('', aborted))).toBe(reason);
      expect(await failure(storage.load('object', target, aborted))).toBe(reason);
      expect(await failure(storage.store('object', path, aborted))).toBe(reason);
      expect(await failure(storage.delete('object', aborted))).toBe(reason);
      expect((await get('object')).toString()).toBe('old');
      await expect(stat(target)).rejects.toMatchObject({ code: 'ENOENT' });
    });

    /** Runs `call` again and again, each time aborted a little later, until one gets through; returns how many did not. */
    async function abortEverywhere(
      call: (signal: AbortSignal) => Promise<unknown>,
      check: (outcome: 'aborted' | 'done') => Promise<void>,
    ): Promise<number> {
      const reason = new Error('enough');
      for (let turns = 0, aborted = 0; ; turns = Math.ceil(turns * 1.2) + 1, aborted++) {
        const controller = new AbortController();
        const call_ = call(controller.signal).then(
          () => undefined,
          (error: unknown) => error,
        );
        for (let turn = 0; turn < turns; turn++) await new Promise(setImmediate);
        controller.abort(reason);
        const error = await call_;
        if (error !== undefined) expect(error).toBe(reason);
        await check(error === undefined ? 'done' : 'aborted');
        if (error === undefined) return aborted;
      }
    }

    test('a store that is aborted at any moment leaves the old object', async () => {
      await put('object', 'old');
      const content = Buffer.alloc(6 << 20, 7);
      const path = await fileWith(content);
      const aborted = await abortEverywhere(
        (each) => storage.store('object', path, { signal: each }),
        async (outcome) => {
          const now = await get('object');
          expect(now.equals(outcome === 'done' ? content : Buffer.from('old'))).toBe(true);
          await backend.expectNothingHidden?.();
        },
      );
      expect(aborted).toBeGreaterThan(0);
      expect(await names()).toEqual(['object']);
    });

    test('a load that is aborted at any moment leaves no file', async () => {
      const content = Buffer.alloc(6 << 20, 7);
      await put('object', content);
      const path = newPath();
      const aborted = await abortEverywhere(
        (each) => storage.load('object', path, { signal: each }),
        async (outcome) => {
          if (outcome === 'done') expect((await readFile(path)).equals(content)).toBe(true);
          else await expect(stat(path)).rejects.toMatchObject({ code: 'ENOENT' });
        },
      );
      expect(aborted).toBeGreaterThan(0);
    });

    test('a listing can be aborted', async () => {
      await Promise.all(Array.from({ length: 50 }, (_, index) => put(`object-${index}`, 'x')));
      const aborted = await abortEverywhere(
        (each) => storage.list('', { signal: each }),
        async () => {},
      );
      expect(aborted).toBeGreaterThan(0);
      expect(await names()).toHaveLength(50);
    });

    test('calls leave no listener on the signal', async () => {
      const controller = new AbortController();
      const own = { signal: controller.signal };
      let listeners = 0;
      const add = controller.signal.addEventListener.bind(controller.signal);
      const remove = controller.signal.removeEventListener.bind(controller.signal);
      controller.signal.addEventListener = (...args: Parameters<typeof add>) => {
        listeners++;
        add(...args);
      };
      controller.signal.removeEventListener = (...args: Parameters<typeof remove>) => {
        listeners--;
        remove(...args);
      };
      await storage.store('object', await fileWith('x'), own);
      await storage.load('object', newPath(), own);
      await storage.list('', own);
      await storage.delete('object', own);
      expect(listeners).toBe(0);
    });

    test('stores a file that was spooled beside its place, where the backend has such a place', async () => {
      if (storage.spoolPathFor === undefined) return;
      await put('object', 'old');
      const path = storage.spoolPathFor('object');
      const other = storage.spoolPathFor('object');
      expect(other).not.toBe(path);
      await writeFile(path, 'spooled');
      expect(await storage.list('', { signal }), 'not visible yet').toEqual([
        { name: 'object', sizeBytes: 3 },
      ]);
      await storage.store('object', path, { signal });
      expect((await get('object')).toString()).toBe('spooled');
      await expect(stat(path), 'moved').rejects.toMatchObject({ code: 'ENOENT' });
      await storage.close();
      await expect(stat(other), 'never stored, gone at the end').rejects.toMatchObject({ code: 'ENOENT' });
    });

    test('a spooled file survives a failed store, for another try', async () => {
      if (storage.spoolPathFor === undefined) return;
      const path = storage.spoolPathFor('object');
      await writeFile(path, 'spooled');
      await expect(
        storage.store('object', path, { signal: AbortSignal.abort(new Error('enough')) }),
      ).rejects.toThrow('enough');
      expect(await names()).toEqual([]);
      await storage.store('object', path, { signal });
      expect((await get('object')).toString()).toBe('spooled');
    });

    test('tells of changes, where the backend can', async () => {
      if (storage.watch === undefined) return;
      let calls = 0;
      let others = 0;
      const stop = storage.watch(() => calls++);
      const stopOther = storage.watch(() => others++);
      await put('object', 'x');
      await until(() => calls > 0 && others > 0, { what: 'both were told of a new object' });
      stopOther();
      const [before, othersBefore] = [calls, others];
      await storage.delete('object', { signal });
      await until(() => calls > before, { what: 'the deletion was told' });
      expect(others, 'an ended watch').toBe(othersBefore);
      stop();
      stop();
    });
  });
}

/** Fills a file without ever holding it, and returns the digest of its content. */
async function writeBig(path: string): Promise<string> {
  const hash = createHash('sha256');
  const chunk = Buffer.alloc(1 << 20);
  await using handle = await open(path, 'w');
  for (let index = 0; index < BIG_BYTES / chunk.length; index++) {
    chunk.fill(index + 1);
    chunk.writeUInt32LE(index, index);
    hash.update(chunk);
    await handle.write(chunk);
  }
  return hash.digest('hex');
}

async function digestOf(path: string): Promise<string> {
  const hash = createHash('sha256');
  await using handle = await open(path, 'r');
  for await (const chunk of handle.createReadStream({ autoClose: false })) hash.update(chunk as Buffer);
  return hash.digest('hex');
}

setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc') as () => void;

/** The most by which the buffers in use in this process grew while `work` ran, in bytes. */
async function peakOfBuffers(work: () => Promise<void>): Promise<number> {
  const start = process.memoryUsage().arrayBuffers;
  let peak = 0;
  const timer = setInterval(() => {
    // What nobody uses any more is not in use, collected or not.
    if (process.memoryUsage().arrayBuffers - start > FLAT_BYTES) collectGarbage();
    peak = Math.max(peak, process.memoryUsage().arrayBuffers - start);
  }, 1);
  try {
    await work();
  } finally {
    clearInterval(timer);
  }
  return peak;
}
