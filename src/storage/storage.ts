import { LightningStreamError } from '../errors.ts';

/** One object of a listing. */
export interface StorageObject {
  readonly name: string;
  readonly sizeBytes: number;
}

/** A running call can be ended by its signal; it then rejects with the signal's reason and leaves nothing half-written. */
export interface CallOptions {
  readonly signal: AbortSignal;
}

/**
 * Where snapshots live. Objects appear whole or not at all. Every failure is a {@link StorageError} that names operation,
 * object and cause and holds no credential. Implementations know nothing of LMDB or of snapshot contents.
 */
export interface Storage {
  /** `fs`, `memory`, `s3`, … */
  readonly type: string;
  /** For logs and the status page: where this is, without credentials. */
  readonly location: string;
  /** All objects whose name begins with `prefix`, sorted by name (bytewise). */
  list(prefix: string, options: CallOptions): Promise<readonly StorageObject[]>;
  /** The same when the storage gives it in one answer, else undefined; for storages that take money for each request. */
  listPage?(prefix: string, options: CallOptions): Promise<readonly StorageObject[] | undefined>;
  /** Writes the object to `toPath` (created or truncated) and returns its size. Code `NOT_FOUND` when it is absent. */
  load(name: string, toPath: string, options: CallOptions): Promise<number>;
  /** Stores the file as object `name`, replacing an older one. The file is left alone, unless it is one that `spoolPathFor` named. */
  store(name: string, fromPath: string, options: CallOptions): Promise<void>;
  /** Deletes; an absent object is no error. */
  delete(name: string, options: CallOptions): Promise<void>;
  /**
   * A path beside the object's final place, for backends that can then store by renaming; undefined otherwise.
   * `store` moves this file; if it is never called, the caller removes it.
   */
  spoolPathFor?(name: string): string;
  /** Calls back when something may have changed; a hint only. Returns the function that ends the watch. */
  watch?(onChange: () => void): () => void;
  close(): Promise<void>;
}

/** The object that instances tell each other by that something was stored or deleted; a fact of Lightning Stream's storages. */
export const updateMarkerName = 'update-marker';

/**
 * A storage that can keep an update marker. Its listings leave {@link updateMarkerName} out, whether a marker is used
 * or not: instances of one place may have different settings while they are changed.
 */
export interface TaggedStorage extends Storage {
  /** As `store`; returns the ETag of the stored object without its quotes. */
  storeTagged(name: string, fromPath: string, options: CallOptions): Promise<string>;
  /** The object as UTF-8 text, undefined when it is absent. For objects of at most 64 KiB; a larger one is an error. */
  readSmall(name: string, options: CallOptions): Promise<string | undefined>;
  /** Stores the text as an object in one request, replacing an older one; returns its ETag without quotes. */
  writeSmall(name: string, text: string, options: CallOptions): Promise<string>;
}

/** A failed storage call. */
export class StorageError extends LightningStreamError {
  readonly operation: 'open' | 'list' | 'load' | 'store' | 'delete';
  readonly object: string | undefined;

  constructor(
    code: string,
    operation: StorageError['operation'],
    object: string | undefined,
    message: string,
    options: { cause?: unknown; fields?: Readonly<Record<string, string | number | boolean>> } = {},
  ) {
    super(code, message, {
      ...options,
      fields: { operation, ...(object === undefined ? {} : { object }), ...options.fields },
    });
    this.name = 'StorageError';
    this.operation = operation;
    this.object = object;
  }
}
