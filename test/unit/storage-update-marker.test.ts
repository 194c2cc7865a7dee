import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { writeFile } from 'node:fs/promises';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { MemoryStorage } from '../../src/storage/memory.ts';
import {
  type CallOptions,
  type Storage,
  StorageError,
  type StorageObject,
  type TaggedStorage,
} from '../../src/storage/storage.ts';
import { UpdateMarkerStorage } from '../../src/storage/update-marker.ts';
import { recordLog } from '../helpers/log-recorder.ts';
import { type TempDir, tempDir } from '../helpers/process.ts';
import { storageConformance } from '../helpers/storage-conformance.ts';

/** One instance's way to the shared objects: what it asks for is written down, and answers can be held or replaced. */
class Line implements TaggedStorage {
  readonly type = 'memory';
  readonly location = 'memory';
  readonly calls: string[] = [];
  /** Such calls fail and do not reach the storage. */
  refused = '';
  /** Runs when the answer to a call is there and not delivered yet. */
  beforeAnswer: (call: string, signal: AbortSignal) => Promise<void> = () => Promise.resolve();
  readonly #objects: MemoryStorage;

  constructor(objects: MemoryStorage) {
    this.#objects = objects;
  }

  list(prefix: string, options: CallOptions): Promise<readonly StorageObject[]> {
    return this.#answer(`LIST ${prefix}`, options, () => this.#objects.list(prefix, options));
  }
  load(name: string, toPath: string, options: CallOptions): Promise<number> {
    return this.#answer(`GET ${name}`, options, () => this.#objects.load(name, toPath, options));
  }
  store(): Promise<void> {
    return Promise.reject(new Error('the ETag would be lost'));
  }
  storeTagged(name: string, fromPath: string, options: CallOptions): Promise<string> {
    return this.#answer(`PUT ${name}`, options, () => this.#objects.storeTagged(name, fromPath, options));
  }
  delete(name: string, options: CallOptions): Promise<void> {
    return this.#answer(`DELETE ${name}`, options, () => this.#objects.delete(name, options));
  }
  readSmall(name: string, options: CallOptions): Promise<string | undefined> {
    return this.#answer(`GET ${name}`, options, () => this.#objects.readSmall(name, options));
  }
  writeSmall(name: string, text: string, options: CallOptions): Promise<string> {
    return this.#answer(`PUT ${name}`, options, () => this.#objects.writeSmall(name, text, options));
  }
  close(): Promise<void> {
    return Promise.resolve();
  }
  /** What was asked since the last time. */
  taken(): string[] {
    return this.calls.splice(0);
  }
  async #answer<T>(call: string, { signal }: CallOptions, ask: () => Promise<T>): Promise<T> {
    this.calls.push(call);
    if (call === this.refused) throw refusal(call);
    const value = await ask();
    await this.beforeAnswer(call, signal);
    return value;
  }
}

const refusal = (what: string): StorageError =>
  new StorageError('AccessDenied', 'store', undefined, `${what}: AccessDenied`);

const { logger: quiet } = recordLog();
const options = { globalPrefix: '', forceListIntervalMs: 300_000, logger: quiet };

storageConformance(
  'memory with update marker',
  () =>
    Promise.resolve({
      storage: new UpdateMarkerStorage(new MemoryStorage(), options),
      [Symbol.asyncDispose]: () => Promise.resolve(),
    }),
  { flatMemory: false, manyObjects: 1000 },
);

describe('update marker', () => {
  const { signal } = new AbortController();
  let scratch: TempDir;
  let objects: MemoryStorage;
  let line: Line;
  let nowMs: number;
  let ours: UpdateMarkerStorage;
  let theirs: UpdateMarkerStorage;

  beforeEach(async () => {
    scratch = await tempDir();
    objects = new MemoryStorage();
    line = new Line(objects);
    nowMs = 1_000_000;
    ours = new UpdateMarkerStorage(line, { ...options, monotonicMs: () => nowMs });
    theirs = new UpdateMarkerStorage(objects, options);
  });
  afterEach(async () => {
    vi.useRealTimers();
    await scratch[Symbol.asyncDispose]();
  });

  async function put(storage: Storage, name: string, content = name): Promise<void> {
    const path = scratch.join(`file-${Math.random()}`);
    await writeFile(path, content);
    await storage.store(name, path, { signal });
  }
  async function names(storage: Storage = ours, prefix = ''): Promise<readonly string[]> {
    return (await storage.list(prefix, { signal })).map(({ name }) => name);
  }
  const marker = (): Promise<string | undefined> => objects.readSmall('update-marker', { signal });
  /** Holds the answer to the next such call; `seen` resolves when the storage has given it. */
  function hold(what: string): { seen: Promise<AbortSignal>; release: () => void } {
    const seen = Promise.withResolvers<AbortSignal>();
    const released = Promise.withResolvers<void>();
    line.beforeAnswer = async (call, signal) => {
      if (call !== what) return;
      line.beforeAnswer = () => Promise.resolve();
      seen.resolve(signal);
      await Promise.race([
        released.promise,
        once(signal, 'abort').then(() => Promise.reject(signal.reason as Error)),
      ]);
    };
    return { seen: seen.promise, release: released.resolve };
  }

  describe('what is written', () => {
    test('names the stored object in full, with its ETag and the time, after the object', async () => {
      const prefixed = new UpdateMarkerStorage(line, { ...options, globalPrefix: 'pre/' });
      const before = BigInt(Date.now()) * 1_000_000n;
      await put(prefixed, 'main__a', 'content');
      const after = BigInt(Date.now()) * 1_000_000n;
      expect(line.taken()).toEqual(['PUT main__a', 'PUT update-marker']);
      const [name, etag, nanos, deleted, ...more] = (await marker())!.split(':');
      const md5 = createHash('md5').update('content').digest('hex');
      expect({ name, etag, deleted, more }).toEqual({
        name: 'pre/main__a',
        etag: md5,
        deleted: 'false',
        more: [],
      });
      expect(BigInt(nanos!) >= before && BigInt(nanos!) <= after).toBe(true);
    });

    test('has no ETag and says true for the deleted, absent ones too', async () => {
      await ours.delete('main__a', { signal });
      expect(line.taken()).toEqual(['DELETE main__a', 'PUT update-marker']);
      expect(await marker()).toMatch(/^main__a::\d{19}:true$/);
    });

    test('nothing for what failed', async () => {
      await expect(ours.store('a', scratch.join('absent'), { signal })).rejects.toMatchObject({
        code: 'ENOENT',
      });
      expect(await marker()).toBeUndefined();
    });

    test.each(['store', 'delete'] as const)('a %s that cannot be announced has failed', async (operation) => {
      await put(ours, 'main__a');
      await names();
      line.refused = 'PUT update-marker';
      const call = operation === 'store' ? put(ours, 'main__b') : ours.delete('main__a', { signal });
      await expect(call).rejects.toMatchObject({
        code: 'AccessDenied',
        operation,
        object: operation === 'store' ? 'main__b' : 'main__a',
        message: expect.stringMatching(
          /^storage: (store "main__b"|delete "main__a"): done, but .*: PUT update-marker: AccessDenied$/,
        ) as string,
      });
      // We know better at once.
      expect(await names()).toEqual(operation === 'store' ? ['main__a', 'main__b'] : []);
    });

    test('an end after the object was stored does not hold it back', async () => {
      const end = new AbortController();
      const path = scratch.join('a');
      await writeFile(path, 'a');
      line.beforeAnswer = () => Promise.resolve(end.abort());
      await ours.store('a', path, { signal: end.signal });
      expect(await marker()).toMatch(/^a:[0-9a-f]{32}:\d{19}:false$/);
      await ours.delete('a', { signal });
      expect(await marker()).toMatch(/^a::\d{19}:true$/);
    });

    test('an end does not wait for long', async () => {
      vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
      const end = new AbortController();
      const reason = new Error('enough');
      const { seen } = hold('PUT update-marker');
      const call = ours.delete('a', { signal: end.signal });
      const request = await seen;
      const ended = once(request, 'abort');
      end.abort(reason);
      vi.advanceTimersByTime(1999);
      expect(request.aborted).toBe(false);
      vi.advanceTimersByTime(1);
      await ended;
      await expect(call).rejects.toBe(reason);
    });
  });

  describe('listing', () => {
    test('from memory while the marker is the same, by any prefix', async () => {
      await put(theirs, 'main__a');
      await put(theirs, 'shard__a');
      expect(await names(ours, 'main__')).toEqual(['main__a']);
      expect(line.taken()).toEqual(['GET update-marker', 'LIST ']);
      expect(await names(ours, 'shard__')).toEqual(['shard__a']);
      expect(await names()).toEqual(['main__a', 'shard__a']);
      expect(line.taken()).toEqual(['GET update-marker', 'GET update-marker']);
    });

    test('again after others and after ourselves stored or deleted', async () => {
      await put(theirs, 'a');
      expect(await names()).toEqual(['a']);
      await put(theirs, 'b');
      expect(await names()).toEqual(['a', 'b']);
      await theirs.delete('a', { signal });
      expect(await names()).toEqual(['b']);
      await put(ours, 'c');
      expect(await names()).toEqual(['b', 'c']);
      await ours.delete('b', { signal });
      expect(await names()).toEqual(['c']);
      expect(await names(theirs)).toEqual(['c']);
    });

    test('each time while there is no marker', async () => {
      await put(objects, 'a');
      expect(await names()).toEqual(['a']);
      await put(objects, 'b');
      expect(await names()).toEqual(['a', 'b']);
      expect(line.taken()).toEqual(['GET update-marker', 'LIST ', 'GET update-marker', 'LIST ']);
    });

    test('each time after the marker was removed', async () => {
      await put(theirs, 'a');
      await names();
      await objects.delete('update-marker', { signal });
      await put(objects, 'b');
      expect(await names()).toEqual(['a', 'b']);
      await put(objects, 'c');
      expect(await names()).toEqual(['a', 'b', 'c']);
    });

    test('after the force interval, counted from the request', async () => {
      await put(theirs, 'a');
      const { seen, release } = hold('LIST ');
      const first = names();
      await seen;
      nowMs += 299_999;
      release();
      await first;
      await put(objects, 'b');
      expect(await names()).toEqual(['a']);
      nowMs += 1;
      expect(await names()).toEqual(['a', 'b']);
      nowMs += 299_999;
      line.taken();
      await names();
      expect(line.taken()).toEqual(['GET update-marker']);
    });

    test('fails while the marker cannot be read, and works again', async () => {
      await put(theirs, 'a');
      await names();
      line.refused = 'GET update-marker';
      await expect(names()).rejects.toMatchObject({ code: 'AccessDenied' });
      line.refused = '';
      expect(await names()).toEqual(['a']);
    });

    test('a failed one is not kept', async () => {
      await put(theirs, 'a');
      await names();
      await put(theirs, 'b');
      line.refused = 'LIST ';
      await expect(names()).rejects.toMatchObject({ code: 'AccessDenied' });
      await expect(names()).rejects.toMatchObject({ code: 'AccessDenied' });
      line.refused = '';
      expect(await names()).toEqual(['a', 'b']);
    });

    test('what others store while we list is seen next time', async () => {
      await put(theirs, 'a');
      const { seen, release } = hold('LIST ');
      const first = names();
      await seen;
      await put(theirs, 'b');
      release();
      expect(await first).toEqual(['a']);
      expect(await names()).toEqual(['a', 'b']);
    });

    test('what others store between our look at the marker and the listing is seen, and makes us list again', async () => {
      await put(theirs, 'a');
      const { seen, release } = hold('GET update-marker');
      const first = names();
      await seen;
      await put(theirs, 'b');
      release();
      expect(await first).toEqual(['a', 'b']);
      line.taken();
      await names();
      expect(line.taken()).toEqual(['GET update-marker', 'LIST ']);
    });

    test('what we store while a listing is under way is in the next one, announced or not', async () => {
      await put(theirs, 'a');
      const { seen, release } = hold('LIST ');
      const first = names();
      await seen;
      line.refused = 'PUT update-marker';
      await expect(put(ours, 'b')).rejects.toMatchObject({ code: 'AccessDenied' });
      const second = names();
      release();
      expect(await first).toEqual(['a']);
      expect(await second).toEqual(['a', 'b']);
      expect(await names()).toEqual(['a', 'b']);
    });

    test('an overtaken one is not kept', async () => {
      await put(theirs, 'a');
      const { seen, release } = hold('LIST ');
      const first = names();
      await seen;
      line.refused = 'PUT update-marker';
      await expect(put(ours, 'b')).rejects.toMatchObject({ code: 'AccessDenied' });
      expect(await names()).toEqual(['a', 'b']);
      release();
      expect(await first).toEqual(['a']);
      expect(await names()).toEqual(['a', 'b']);
    });

    test('the marker does not show; what begins like it does', async () => {
      await put(ours, 'update-marker-of-mine');
      await put(ours, 'update-marke');
      expect(await marker()).toBeDefined();
      expect(await names(ours, 'update-mark')).toEqual(['update-marke', 'update-marker-of-mine']);
      // Nor where no marker is used.
      expect(await names(objects, 'update-marker')).toEqual(['update-marker-of-mine']);
    });

    test('is made afresh after a listed object turned out to be gone', async () => {
      await put(theirs, 'a');
      await names();
      await objects.delete('a', { signal });
      await expect(ours.load('a', scratch.join('a'), { signal })).rejects.toMatchObject({
        code: 'NOT_FOUND',
      });
      expect(await names()).toEqual([]);
    });
  });

  describe('several at a time', () => {
    test('share one request', async () => {
      await put(theirs, 'main__a');
      await put(theirs, 'shard__a');
      const both = await Promise.all([names(ours, 'main__'), names(ours, 'shard__')]);
      expect(both).toEqual([['main__a'], ['shard__a']]);
      expect(line.taken()).toEqual(['GET update-marker', 'LIST ']);
    });

    test('one that is ended leaves the others alone', async () => {
      await put(theirs, 'a');
      const { seen, release } = hold('LIST ');
      const end = new AbortController();
      const ended = ours.list('', { signal: end.signal });
      const other = names();
      const request = await seen;
      const reason = new Error('enough');
      end.abort(reason);
      await expect(ended).rejects.toBe(reason);
      expect(request.aborted).toBe(false);
      release();
      expect(await other).toEqual(['a']);
    });

    test('the last one that is ended ends the request, and the next call makes its own', async () => {
      await put(theirs, 'a');
      const { seen } = hold('LIST ');
      const end = new AbortController();
      const all = ['', 'x'].map((prefix) => ours.list(prefix, { signal: end.signal }));
      const request = await seen;
      end.abort(new Error('enough'));
      for (const call of all) await expect(call).rejects.toBe(end.signal.reason);
      expect(request.aborted).toBe(true);
      expect(await names()).toEqual(['a']);
    });
  });

  describe('an instance that goes without', () => {
    const warnings = (text: string): string[] => text.split('\n').filter((each) => each.includes('without'));

    test.each(['store', 'delete'])('its %s is warned of once', async (operation) => {
      const { logger, text } = recordLog();
      ours = new UpdateMarkerStorage(line, { ...options, logger, monotonicMs: () => nowMs });
      await put(theirs, 'a');
      await names();
      for (let round = 0; round < 3; round++) {
        if (operation === 'store') await put(objects, `b${round}`);
        else if (round === 0) await objects.delete('a', { signal });
        nowMs += 300_000;
        await names();
        nowMs += 10_000;
        await names();
      }
      expect(warnings(text())).toEqual([
        expect.stringMatching(/^level=warning .*use_update_marker.* filename=(a|b0)$/),
      ]);
    });

    test('an object that is just being announced is no reason to warn', async () => {
      const { logger, text } = recordLog();
      ours = new UpdateMarkerStorage(line, { ...options, logger, monotonicMs: () => nowMs });
      await put(theirs, 'a');
      await names();
      await put(objects, 'b');
      nowMs += 300_000;
      expect(await names()).toEqual(['a', 'b']);
      // Its marker takes some time, or a second attempt.
      for (let look = 0; look < 3; look++) {
        nowMs += 3000;
        await names();
      }
      await put(theirs, 'b');
      await names();
      nowMs += 10_000;
      await names();
      expect(warnings(text())).toEqual([]);
    });

    test('is warned of where forced listings come faster than announcements', async () => {
      const { logger, text } = recordLog();
      ours = new UpdateMarkerStorage(line, {
        ...options,
        forceListIntervalMs: 1000,
        logger,
        monotonicMs: () => nowMs,
      });
      await put(theirs, 'a');
      await names();
      for (let round = 0; round < 11; round++) {
        await put(objects, `b${round}`);
        expect(warnings(text())).toEqual([]);
        nowMs += 1000;
        await names();
      }
      expect(warnings(text())).toEqual([expect.stringMatching(/ filename=b0$/)]);
    });
  });
});
