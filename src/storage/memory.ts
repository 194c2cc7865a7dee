import { createHash } from 'node:crypto';
import { open } from 'node:fs/promises';
import { readChunks, saveObject } from './local-file.ts';
import { compareNames } from './order.ts';
import {
  type CallOptions,
  StorageError,
  type StorageObject,
  type TaggedStorage,
  updateMarkerName,
} from './storage.ts';
import { attempt, notFound } from './system-error.ts';

/** Objects in the memory of this process, for tests. They are gone with it. */
export class MemoryStorage implements TaggedStorage {
  readonly type = 'memory';
  readonly location = 'memory';
  readonly #objects = new Map<string, Buffer>();
  readonly #watchers = new Set<() => void>();

  async list(prefix: string, { signal }: CallOptions): Promise<readonly StorageObject[]> {
    await turn(signal);
    return [...this.#objects]
      .filter(([name]) => name.startsWith(prefix) && name !== updateMarkerName)
      .map(([name, content]) => ({ name, sizeBytes: content.length }))
      .sort((a, b) => compareNames(a.name, b.name));
  }

  async load(name: string, toPath: string, { signal }: CallOptions): Promise<number> {
    await turn(signal);
    const content = this.#objects.get(name);
    if (content === undefined) throw notFound(name, this.location);
    return saveObject(name, toPath, [content], signal);
  }

  async store(name: string, fromPath: string, options: CallOptions): Promise<void> {
    await this.storeTagged(name, fromPath, options);
  }

  async storeTagged(name: string, fromPath: string, { signal }: CallOptions): Promise<string> {
    await turn(signal);
    if (name === '') {
      throw new StorageError(
        'NAME_INVALID',
        'store',
        name,
        'storage: cannot store "": a name must not be empty',
      );
    }
    const source = await attempt('store', name, fromPath, () => open(fromPath, 'r'));
    try {
      const context = { operation: 'store', object: name, path: fromPath } as const;
      const chunks: Buffer[] = [];
      for await (const chunk of readChunks(source, context, signal)) chunks.push(Buffer.from(chunk));
      signal.throwIfAborted();
      return this.#put(name, Buffer.concat(chunks));
    } finally {
      await source.close();
    }
  }

  async readSmall(name: string, { signal }: CallOptions): Promise<string | undefined> {
    await turn(signal);
    return this.#objects.get(name)?.toString();
  }

  async writeSmall(name: string, text: string, { signal }: CallOptions): Promise<string> {
    await turn(signal);
    return this.#put(name, Buffer.from(text));
  }

  async delete(name: string, { signal }: CallOptions): Promise<void> {
    await turn(signal);
    if (this.#objects.delete(name)) this.#changed();
  }

  watch(onChange: () => void): () => void {
    // A closure of its own, so that one callback can watch twice.
    const watcher = (): void => onChange();
    this.#watchers.add(watcher);
    return () => void this.#watchers.delete(watcher);
  }

  close(): Promise<void> {
    this.#watchers.clear();
    return Promise.resolve();
  }

  /** Returns what S3 calls the ETag of an object in one part. */
  #put(name: string, content: Buffer): string {
    this.#objects.set(name, content);
    this.#changed();
    return createHash('md5').update(content).digest('hex');
  }

  #changed(): void {
    for (const watcher of this.#watchers) queueMicrotask(watcher);
  }
}

/** Answers never come in the same turn, as with every real storage. */
async function turn(signal: AbortSignal): Promise<void> {
  await new Promise(setImmediate);
  signal.throwIfAborted();
}
