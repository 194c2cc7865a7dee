import { writeFile } from 'node:fs/promises';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { MemoryStorage } from '../../src/storage/memory.ts';
import { isPaged, type PagedStorage, SharedListing } from '../../src/storage/shared-listing.ts';
import type { CallOptions, StorageObject } from '../../src/storage/storage.ts';
import { type TempDir, tempDir } from '../helpers/process.ts';
import { storageConformance } from '../helpers/storage-conformance.ts';

/** Objects in memory that come in pages, as those of S3 do. */
class Pages extends MemoryStorage implements PagedStorage {
  readonly calls: string[] = [];
  readonly #pageSize: number;
  /** Awaited before a page is delivered. */
  held: Promise<void> = Promise.resolve();

  constructor(pageSize: number) {
    super();
    this.#pageSize = pageSize;
  }

  override list(prefix: string, options: CallOptions): Promise<readonly StorageObject[]> {
    this.calls.push(`all ${prefix}`);
    return super.list(prefix, options);
  }
  async listPage(prefix: string, options: CallOptions): Promise<readonly StorageObject[] | undefined> {
    this.calls.push(`page ${prefix}`);
    const objects = await super.list(prefix, options);
    await this.held;
    return objects.length > this.#pageSize ? undefined : objects;
  }
  taken(): string[] {
    return this.calls.splice(0);
  }
}

for (const pageSize of [3, 100_000]) {
  storageConformance(
    `shared listing of pages of ${pageSize}`,
    () =>
      Promise.resolve({
        storage: new SharedListing(new Pages(pageSize), () => 0),
        [Symbol.asyncDispose]: () => Promise.resolve(),
      }),
    { flatMemory: false, manyObjects: 1000 },
  );
}

describe('shared listing', () => {
  const { signal } = new AbortController();
  let scratch: TempDir;
  let pages: Pages;
  let nowMs: number;
  let shared: SharedListing;

  beforeEach(async () => {
    scratch = await tempDir();
    nowMs = 12_345;
    pages = new Pages(3);
    shared = new SharedListing(pages, () => nowMs);
  });
  afterEach(() => scratch[Symbol.asyncDispose]());

  async function put(name: string, storage: SharedListing | Pages = pages): Promise<void> {
    await writeFile(scratch.join('file'), name);
    await storage.store(name, scratch.join('file'), { signal });
  }
  const both = (): Promise<string[][]> =>
    Promise.all(
      ['main__', 'shard__'].map(async (prefix) =>
        (await shared.list(prefix, { signal })).map(({ name }) => name),
      ),
    );

  test('is for storages that have pages', () => {
    expect(isPaged(pages)).toBe(true);
    expect(isPaged(new MemoryStorage())).toBe(false);
  });

  test('those who ask at once get their part of one answer', async () => {
    await put('main__a');
    await put('shard__a');
    await put('else');
    expect(await both()).toEqual([['main__a'], ['shard__a']]);
    expect(pages.taken()).toEqual(['page ']);
    await put('main__b', shared);
    await shared.delete('else', { signal });
    expect(await both()).toEqual([['main__a', 'main__b'], ['shard__a']]);
    expect(pages.taken()).toEqual(['page ']);
  });

  test('each has its own while there are more than one answer holds, which is looked at again after an hour', async () => {
    for (const name of ['main__a', 'main__b', 'shard__a', 'shard__b']) await put(name);
    const all = [
      ['main__a', 'main__b'],
      ['shard__a', 'shard__b'],
    ];
    expect(await both()).toEqual(all);
    expect(pages.taken()).toEqual(['page ', 'all main__', 'all shard__']);
    nowMs += 3_599_999;
    expect(await both()).toEqual(all);
    expect(pages.taken()).toEqual(['all main__', 'all shard__']);
    nowMs += 1;
    await pages.delete('main__a', { signal });
    expect(await both()).toEqual([['main__b'], ['shard__a', 'shard__b']]);
    expect(pages.taken()).toEqual(['page ']);
  });

  test.each(['store', 'delete'] as const)(
    'after a %s nobody gets what was asked before',
    async (operation) => {
      await put('main__a');
      const held = Promise.withResolvers<void>();
      pages.held = held.promise;
      const early = both();
      await new Promise(setImmediate);
      if (operation === 'store') await put('main__b', shared);
      else await shared.delete('main__a', { signal });
      const late = both();
      held.resolve();
      expect((await early)[0]).toEqual(['main__a']);
      expect((await late)[0]).toEqual(operation === 'store' ? ['main__a', 'main__b'] : []);
    },
  );
});
