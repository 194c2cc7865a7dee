import { randomBytes } from 'node:crypto';
import {
  closeSync,
  constants,
  existsSync,
  type FSWatcher,
  openSync,
  readFileSync,
  rmSync,
  watch as watchPath,
} from 'node:fs';
import { type FileHandle, lstat, mkdir, open, readdir, rename, stat, unlink, utimes } from 'node:fs/promises';
import { resolve } from 'node:path';
import type { Logger } from '../observability/logger.ts';
import { readChunks, saveObject, writeChunks } from './local-file.ts';
import type { Lock, TryLock } from './lock.ts';
import { compareNames } from './order.ts';
import { type CallOptions, type Storage, StorageError, type StorageObject } from './storage.ts';
import { attempt, isSystemError, notFound, storageError } from './system-error.ts';

/** What an `fs` storage is opened with. */
export interface FsStorageOptions {
  /** Directory that holds the objects, all in one level; created if missing. */
  readonly rootPath: string;
  readonly tryLock: TryLock;
  readonly logger: Logger;
}

/** Readers skip names that end like this, PowerDNS Lightning Stream included. */
const UNFINISHED_SUFFIX = '.tmp';
/** `<object>.<first digits of the boot id>-<random>.tmp`. */
const UNFINISHED_NAME = /\.([0-9a-f]{8})-[0-9a-f]{12}\.tmp$/;
/** File names are limited to 255 bytes; beyond this the object's name is not repeated in full. */
const LONGEST_REPEATED_NAME_BYTES = 220;
/** How long ago the last write to an unfinished file must be when no lock can tell whether somebody still works on it. */
const ABANDONED_AFTER_MS = 3_600_000;
/** Node.js has four threads for files: a file system that hangs must leave one to all others. */
const STATS_AT_ONCE = 3;
const ATTEMPTS = 10;

/**
 * Objects as files of one directory, on a local disk or a network file system that other hosts mount too.
 *
 * Objects appear whole or not at all: their bytes are collected in an unfinished file beside them, which is made durable
 * and then renamed. Each store has an unfinished file of its own, so two processes that store one name at once do not
 * disturb each other: the later rename wins.
 *
 * What a killed process left is removed by the next one that opens the directory. Somebody may be at work on an
 * unfinished file, on this host, in another container or on another host, so: each is locked (flock) as long as its
 * writer lives. A writer of the same boot of the same kernel is visible through the lock with certainty. For files of another
 * host, or of an earlier boot, the lock is not enough (network file systems can be mounted with local locks): these, too, must not
 * have been written to for an hour, so after a reboot within that hour they stay until a start after it. A writer that keeps its file for longer, since its store fails again and again, touches it with
 * each try. Should a file be removed wrongly after all, its store fails and nothing else happens. Unfinished files of
 * other programs are never touched.
 */
export class FsStorage implements Storage {
  readonly type = 'fs';
  readonly location: string;
  readonly #tryLock: TryLock;
  readonly #logger: Logger;
  readonly #boot = bootDigits();
  /** Unfinished files of ours and their locks, by path. */
  readonly #unfinished = new Map<string, Lock | undefined>();
  readonly #watchers = new Set<FSWatcher>();
  /** Resolves when the listings asked for so far have ended. */
  #listings: Promise<void> = Promise.resolve();

  private constructor(options: FsStorageOptions) {
    this.location = resolve(options.rootPath);
    this.#tryLock = options.tryLock;
    this.#logger = options.logger;
  }

  /** @throws StorageError when the directory is not there and cannot be made. */
  static async open(options: FsStorageOptions): Promise<FsStorage> {
    const storage = new FsStorage(options);
    const root = storage.location;
    await attempt('open', undefined, root, async () => {
      await mkdir(root, { recursive: true, mode: 0o755 });
      // An existing path passes mkdir, whether its content may be listed or not.
      await readdir(root);
    });
    await storage.#removeAbandoned();
    return storage;
  }

  /** One listing after the other, whoever asks: see {@link STATS_AT_ONCE}. */
  async list(prefix: string, { signal }: CallOptions): Promise<readonly StorageObject[]> {
    const before = this.#listings;
    const { promise, resolve: done } = Promise.withResolvers<void>();
    this.#listings = promise;
    await before;
    try {
      return await this.#listNow(prefix, signal);
    } finally {
      done();
    }
  }

  async #listNow(prefix: string, signal: AbortSignal): Promise<readonly StorageObject[]> {
    signal.throwIfAborted();
    const entries = await attempt('list', undefined, this.location, () => readdir(this.location));
    const names = entries.filter((name) => name.startsWith(prefix) && isObjectName(name));
    const objects: StorageObject[] = [];
    for (let index = 0; index < names.length; index += STATS_AT_ONCE) {
      signal.throwIfAborted();
      const found = await Promise.all(
        names.slice(index, index + STATS_AT_ONCE).map((name) => this.#statObject('list', name)),
      );
      objects.push(...found.filter((object) => object !== undefined));
    }
    signal.throwIfAborted();
    return objects.sort((a, b) => compareNames(a.name, b.name));
  }

  async load(name: string, toPath: string, { signal }: CallOptions): Promise<number> {
    signal.throwIfAborted();
    if (!isObjectName(name)) throw notFound(name, this.location);
    const handle = await this.#openObject(name);
    try {
      const context = { operation: 'load', object: name, path: this.#path(name) } as const;
      return await saveObject(name, toPath, readChunks(handle, context, signal), signal);
    } finally {
      await handle.close();
    }
  }

  async store(name: string, fromPath: string, { signal }: CallOptions): Promise<void> {
    signal.throwIfAborted();
    this.#refuseOddName('store', name);
    if (this.#unfinished.has(fromPath)) {
      await this.#finish(name, fromPath, signal);
      return;
    }
    const context = { operation: 'store', object: name } as const;
    const source = await attempt('store', name, fromPath, () => open(fromPath, 'r'));
    try {
      const path = this.#begin(name);
      try {
        const chunks = readChunks(source, { ...context, path: fromPath }, signal);
        const target = await attempt('store', name, path, () => open(path, 'r+'));
        try {
          await writeChunks(target, chunks, { ...context, path }, signal);
        } finally {
          await attempt('store', name, path, () => target.close());
        }
        await this.#finish(name, path, signal);
      } catch (error) {
        this.#discard(path);
        throw error;
      }
    } finally {
      await source.close();
    }
  }

  async delete(name: string, { signal }: CallOptions): Promise<void> {
    signal.throwIfAborted();
    this.#refuseOddName('delete', name);
    if ((await this.#statObject('delete', name)) === undefined) return;
    await attempt('delete', name, this.#path(name), () => unlink(this.#path(name)).catch(unlessAbsent));
  }

  /**
   * Creates an empty, locked file beside the object's place. After a failed `store` it is still there, for another try.
   * Whoever gives up removes it; `close` and the next start do so as well.
   * @throws StorageError when the storage cannot be written to: count it as a failed store.
   */
  spoolPathFor(name: string): string {
    this.#refuseOddName('store', name);
    for (const path of this.#unfinished.keys()) if (!existsSync(path)) this.#discard(path);
    return this.#begin(name);
  }

  watch(onChange: () => void): () => void {
    let watcher: FSWatcher;
    const stop = (): void => {
      this.#watchers.delete(watcher);
      watcher.close();
    };
    try {
      watcher = watchPath(this.location, { persistent: false }, (_event, name) => {
        if (name === null || isObjectName(name)) onChange();
      });
    } catch (error) {
      // Out of inotify watches, most likely. Polling goes on finding everything.
      this.#logger.debug('storage is not watched for changes, only polled', { error });
      return () => undefined;
    }
    watcher.on('error', (error) => {
      this.#logger.debug('storage is no longer watched for changes, only polled', {
        error,
      });
      stop();
    });
    this.#watchers.add(watcher);
    return stop;
  }

  close(): Promise<void> {
    for (const watcher of this.#watchers) watcher.close();
    this.#watchers.clear();
    for (const path of this.#unfinished.keys()) this.#discard(path);
    return Promise.resolve();
  }

  #path(name: string): string {
    return `${this.location}/${name}`;
  }

  #refuseOddName(operation: 'store' | 'delete', name: string): void {
    if (isObjectName(name)) return;
    throw new StorageError(
      'NAME_INVALID',
      operation,
      name,
      `storage: cannot ${operation} ${JSON.stringify(name)}: a name must not be empty, hold a slash, begin with a dot or end in ${UNFINISHED_SUFFIX}`,
    );
  }

  /** Undefined when there is nothing of this name, or something that is no regular file. */
  async #statObject(operation: 'list' | 'delete', name: string): Promise<StorageObject | undefined> {
    const path = this.#path(name);
    const stats = await attempt(operation, name, path, () => lstat(path).catch(unlessAbsent));
    if (stats === undefined && operation === 'delete') await this.#expectRoot(operation, name);
    return stats?.isFile() === true ? { name, sizeBytes: stats.size } : undefined;
  }

  async #openObject(name: string): Promise<FileHandle> {
    const path = this.#path(name);
    // A link, or a pipe that would block, is no object.
    const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
    const handle = await attempt('load', name, path, async () => {
      try {
        return await open(path, flags);
      } catch (error) {
        if (!isSystemError(error) || !['ENOENT', 'ELOOP', 'ENXIO'].includes(error.code)) throw error;
        await this.#expectRoot('load', name);
        throw notFound(name, this.location, error);
      }
    });
    if ((await handle.stat()).isFile()) return handle;
    await handle.close();
    throw notFound(name, this.location);
  }

  /** An unmounted or removed directory is a failure, not a storage without objects. */
  async #expectRoot(operation: 'load' | 'delete', name: string): Promise<void> {
    await attempt(operation, name, this.location, () => stat(this.location));
  }

  /** Creates an unfinished file and locks it. Synchronous: a few system calls, and `spoolPathFor` must name a path at once. */
  #begin(name: string): string {
    const repeated = Buffer.byteLength(name) <= LONGEST_REPEATED_NAME_BYTES ? name : name.slice(0, 50);
    for (let left = ATTEMPTS; left > 0; left--) {
      const path = this.#path(
        `${repeated}.${this.#boot}-${randomBytes(6).toString('hex')}${UNFINISHED_SUFFIX}`,
      );
      try {
        closeSync(openSync(path, 'wx'));
      } catch (error) {
        throw isSystemError(error) ? storageError('store', name, path, error) : error;
      }
      const lock = this.#lock(path);
      // Between creation and lock a starting process may have found the file unlocked: then it has removed it.
      if (lock !== 'busy' && existsSync(path)) {
        this.#unfinished.set(path, lock);
        return path;
      }
      if (lock !== 'busy') lock?.release();
      rmSync(path, { force: true });
    }
    throw new Error(`${this.location}: new files are locked by somebody else again and again`);
  }

  /** Undefined when this file system knows no locks. */
  #lock(path: string): Lock | 'busy' | undefined {
    try {
      return this.#tryLock(path) ?? 'busy';
    } catch (error) {
      this.#logger.debug('storage: a file cannot be locked', { path, error });
      return undefined;
    }
  }

  #discard(path: string): void {
    try {
      rmSync(path, { force: true });
    } catch (error) {
      this.#logger.debug('storage: an unfinished file stays', { path, error });
    }
    this.#release(path);
  }

  #release(path: string): void {
    this.#unfinished.get(path)?.release();
    this.#unfinished.delete(path);
  }

  /** Makes an unfinished file durable and puts it in its place. After an error it is still unfinished. */
  async #finish(name: string, path: string, signal: AbortSignal): Promise<void> {
    await attempt('store', name, path, async () => {
      const now = new Date();
      await utimes(path, now, now);
      await sync(path);
    });
    await attempt('store', name, this.location, () => syncDirectory(this.location));
    signal.throwIfAborted();
    await attempt('store', name, this.#path(name), () => rename(path, this.#path(name)));
    this.#release(path);
    try {
      await syncDirectory(this.location);
    } catch (error) {
      // Readers have the object already, and there is no file left to try again with.
      this.#logger.warning('storage: a stored object may be lost if this host crashes now', {
        object: name,
        error,
      });
    }
  }

  async #removeAbandoned(): Promise<void> {
    for (const name of await readdir(this.location)) {
      const boot = UNFINISHED_NAME.exec(name)?.[1];
      if (boot === undefined) continue;
      const path = this.#path(name);
      try {
        const stats = await lstat(path);
        if (!stats.isFile()) continue;
        const lock = this.#lock(path);
        if (lock === 'busy') continue;
        try {
          const certain = lock !== undefined && boot === this.#boot;
          if (!certain && Date.now() - stats.mtimeMs < ABANDONED_AFTER_MS) continue;
          await unlink(path);
          this.#logger.info('removed an unfinished object of a process that is gone', { file: name });
        } finally {
          lock?.release();
        }
      } catch (error) {
        // Finished or removed meanwhile, or this process may only read here.
        this.#logger.debug('storage: an unfinished file stays', { file: name, error });
      }
    }
  }
}

function isObjectName(name: string): boolean {
  return !/^$|^\.|[/\0]|\.tmp$/.test(name);
}

function unlessAbsent(error: unknown): undefined {
  if (isSystemError(error) && error.code === 'ENOENT') return undefined;
  throw error;
}

async function sync(path: string): Promise<void> {
  const handle = await open(path, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

async function syncDirectory(path: string): Promise<void> {
  try {
    await sync(path);
  } catch (error) {
    // Network and FUSE file systems that cannot do this to a directory write it through anyway.
    if (!isSystemError(error) || !['EINVAL', 'ENOTSUP', 'ENOSYS'].includes(error.code)) throw error;
  }
}

/** Tells this boot of this kernel from others; where it cannot be read, random digits that match no other. */
function bootDigits(): string {
  try {
    return (
      /^[0-9a-f]{8}/.exec(readFileSync('/proc/sys/kernel/random/boot_id', 'utf8'))?.[0] ?? randomDigits()
    );
  } catch {
    return randomDigits();
  }
}

function randomDigits(): string {
  return randomBytes(4).toString('hex');
}
