import { SharedCall } from './shared-call.ts';
import type { CallOptions, Storage, StorageObject } from './storage.ts';

/** For so long the storage is not asked for everything once that did not fit into one answer, ms. */
const tooManyMs = 3_600_000;

/** A storage that can be asked for everything in one request. */
export interface PagedStorage extends Storage {
  readonly listPage: NonNullable<Storage['listPage']>;
}

export function isPaged(storage: Storage): storage is PagedStorage {
  return storage.listPage !== undefined;
}

/**
 * Answers simultaneous listings of several prefixes (the databases of one daemon, which all poll at the same moments) with one
 * request, where requests cost money: for everything, as long as that is a single answer. Else each has its own.
 */
export class SharedListing implements Storage {
  readonly #inner: PagedStorage;
  readonly #page: SharedCall<readonly StorageObject[] | undefined>;
  readonly #monotonicMs: () => number;
  #tooManyUntilMs = 0;

  constructor(inner: PagedStorage, monotonicMs: () => number) {
    this.#inner = inner;
    this.#monotonicMs = monotonicMs;
    this.#page = new SharedCall((signal) => inner.listPage('', { signal }));
  }

  get type(): string {
    return this.#inner.type;
  }

  get location(): string {
    return this.#inner.location;
  }

  async list(prefix: string, options: CallOptions): Promise<readonly StorageObject[]> {
    if (this.#monotonicMs() < this.#tooManyUntilMs) return this.#inner.list(prefix, options);
    const objects = await this.#page.join(options.signal);
    if (objects !== undefined) return objects.filter(({ name }) => name.startsWith(prefix));
    this.#tooManyUntilMs = this.#monotonicMs() + tooManyMs;
    return this.#inner.list(prefix, options);
  }

  load(name: string, toPath: string, options: CallOptions): Promise<number> {
    return this.#inner.load(name, toPath, options);
  }

  async store(name: string, fromPath: string, options: CallOptions): Promise<void> {
    try {
      await this.#inner.store(name, fromPath, options);
    } finally {
      this.#page.forget();
    }
  }

  async delete(name: string, options: CallOptions): Promise<void> {
    try {
      await this.#inner.delete(name, options);
    } finally {
      this.#page.forget();
    }
  }

  close(): Promise<void> {
    return this.#inner.close();
  }
}
