import { errorMessage } from '../errors.ts';
import type { Logger } from '../observability/logger.ts';
import { SharedCall } from './shared-call.ts';
import {
  type CallOptions,
  type Storage,
  StorageError,
  type StorageObject,
  type TaggedStorage,
  updateMarkerName,
} from './storage.ts';

export interface UpdateMarkerOptions {
  /** What the backend puts before every name; the marker names objects in full. */
  readonly globalPrefix: string;
  /** ms after which the storage is listed although the marker is the same. */
  readonly forceListIntervalMs: number;
  readonly logger: Logger;
  /** ms that never go back; tests give their own. */
  readonly monotonicMs?: () => number;
}

/** How long an end waits for the marker of an object that is in the storage already, ms. */
const endGraceMs = 2000;
/** How long an object may be in the storage before its marker is, ms: a slow request, or one more attempt after the usual 5 s. */
const announceGraceMs = 10_000;

/** All objects, as they were when the marker held this text or later. */
interface Listed {
  readonly marker: string;
  readonly objects: readonly StorageObject[];
  /** When the request was sent, ms. */
  readonly atMs: number;
}

/**
 * Replaces most listings by reads of one small object, which cost a twelfth on AWS: whoever stores or deletes writes
 * `NAME:ETAG:UNIXNANOS:true|false` (the deleted have no ETag and `true`) into `update-marker` afterwards, and as long as this
 * stays the same, the listing made under it is good. Format and order: simpleblob, `backends/s3/marker.go`.
 *
 * The marker is read before the storage is listed: what is stored in between changes the marker afterwards, and so ends the
 * listing's life. While there is no marker, or it cannot be read, nothing is answered from memory. All calls at one time
 * share one request, whatever their prefix.
 *
 * A store whose marker could not be written has failed: else the others would not look for up to the force interval. Tried
 * again, it stores the same object once more. A process that dies between the two leaves the others to that interval; one
 * that is asked to end still writes the marker, if it takes no longer than 2 s.
 */
export class UpdateMarkerStorage implements Storage {
  readonly #inner: TaggedStorage;
  readonly #globalPrefix: string;
  readonly #forceListIntervalMs: number;
  readonly #logger: Logger;
  readonly #monotonicMs: () => number;
  readonly #everything = new SharedCall((signal, isCurrent) => this.#list(signal, isCurrent));
  #listed: Listed | undefined;
  /** The marker under which the storage has changed, what has changed, and when that was seen, ms. */
  #unannounced: { readonly marker: string; readonly object: string; readonly sinceMs: number } | undefined;
  #warned = false;

  constructor(inner: TaggedStorage, options: UpdateMarkerOptions) {
    this.#inner = inner;
    this.#globalPrefix = options.globalPrefix;
    this.#forceListIntervalMs = options.forceListIntervalMs;
    this.#logger = options.logger;
    this.#monotonicMs = options.monotonicMs ?? (() => performance.now());
  }

  get type(): string {
    return this.#inner.type;
  }

  get location(): string {
    return this.#inner.location;
  }

  async list(prefix: string, { signal }: CallOptions): Promise<readonly StorageObject[]> {
    const objects = await this.#everything.join(signal);
    return prefix === '' ? objects : objects.filter(({ name }) => name.startsWith(prefix));
  }

  async load(name: string, toPath: string, options: CallOptions): Promise<number> {
    try {
      return await this.#inner.load(name, toPath, options);
    } catch (error) {
      // Who asked for it had it from a listing.
      if (error instanceof StorageError && error.code === 'NOT_FOUND') this.#forget();
      throw error;
    }
  }

  async store(name: string, fromPath: string, options: CallOptions): Promise<void> {
    try {
      const etag = await this.#inner.storeTagged(name, fromPath, options);
      await this.#announce('store', name, etag, options);
    } finally {
      this.#forget();
    }
  }

  async delete(name: string, options: CallOptions): Promise<void> {
    try {
      await this.#inner.delete(name, options);
      await this.#announce('delete', name, '', options);
    } finally {
      this.#forget();
    }
  }

  close(): Promise<void> {
    this.#forget();
    return this.#inner.close();
  }

  async #announce(
    operation: 'store' | 'delete',
    name: string,
    etag: string,
    { signal }: CallOptions,
  ): Promise<void> {
    const unixNanos = BigInt(Date.now()) * 1_000_000n;
    const text = `${this.#globalPrefix}${name}:${etag}:${unixNanos}:${operation === 'delete'}`;
    try {
      await withGrace(signal, (signal) => this.#inner.writeSmall(updateMarkerName, text, { signal }));
    } catch (cause) {
      if (!(cause instanceof StorageError)) throw cause;
      throw new StorageError(
        cause.code,
        operation,
        name,
        `storage: ${operation} ${JSON.stringify(name)}: done, but other instances are not told of it: ${errorMessage(cause)}`,
        { cause, fields: { ...cause.fields, operation, object: name } },
      );
    }
  }

  /** The next listing is made afresh, and what is under way now is not kept. */
  #forget(): void {
    this.#listed = undefined;
    this.#everything.forget();
  }

  async #list(signal: AbortSignal, isCurrent: () => boolean): Promise<readonly StorageObject[]> {
    const marker = await this.#inner.readSmall(updateMarkerName, { signal });
    const last = this.#listed;
    const atMs = this.#monotonicMs();
    this.#checkAnnounced(marker, atMs);
    const same = last !== undefined && last.marker === marker;
    if (same && atMs - last.atMs < this.#forceListIntervalMs) return last.objects;
    const objects = await this.#inner.list('', { signal });
    if (isCurrent()) {
      if (same) this.#compare(last, objects, atMs);
      this.#listed = marker === undefined ? undefined : { marker, objects, atMs };
    }
    return objects;
  }

  #compare({ marker, objects: before }: Listed, now: readonly StorageObject[], sinceMs: number): void {
    if (this.#warned || this.#unannounced !== undefined) return;
    const missing = (from: readonly StorageObject[], names: ReadonlySet<string>): string | undefined =>
      from.find(({ name }) => !names.has(name))?.name;
    const object =
      missing(now, new Set(before.map(({ name }) => name))) ??
      missing(before, new Set(now.map(({ name }) => name)));
    if (object !== undefined) this.#unannounced = { marker, object, sinceMs };
  }

  /** What a forced listing brought to light may just not have been announced yet: it is warned of when the marker stays as it is. */
  #checkAnnounced(marker: string | undefined, nowMs: number): void {
    const unannounced = this.#unannounced;
    if (unannounced === undefined) return;
    const same = unannounced.marker === marker;
    if (same && nowMs - unannounced.sinceMs < announceGraceMs) return;
    this.#unannounced = undefined;
    if (!same) return;
    this.#warned = true;
    this.#logger.warning(
      'The storage was changed without the update marker: set use_update_marker alike on all instances',
      { filename: unannounced.object },
    );
  }
}

/** Runs with a signal that is aborted {@link endGraceMs} after the given one, for the same reason. */
async function withGrace<T>(signal: AbortSignal, run: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const late = new AbortController();
  let timer: NodeJS.Timeout | undefined;
  const onAbort = (): void => void (timer = setTimeout(() => late.abort(signal.reason), endGraceMs));
  if (signal.aborted) onAbort();
  else signal.addEventListener('abort', onAbort, { once: true });
  try {
    return await run(late.signal);
  } finally {
    signal.removeEventListener('abort', onAbort);
    clearTimeout(timer);
  }
}
