import { randomBytes } from 'node:crypto';
import {
  closeSync,
  existsSync,
  type Dirent,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { rm } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import { LightningStreamError } from '../errors.ts';
import type { Logger } from '../observability/logger.ts';
import type { Lock, TryLock } from '../storage/lock.ts';
import { isSystemError, systemCause } from '../storage/system-error.ts';

/** Where a spool can be; the first that is set is used. */
export interface SpoolPlaces {
  /** `spool_dir` of the configuration; `''` when not set. Created if missing. */
  readonly configured: string;
  /** `$CACHE_DIRECTORY`, as systemd sets it: one path, or several with colons between them. */
  readonly cacheDirectory: string | undefined;
  /** The system's temporary directory. */
  readonly temporaryDirectory: string;
}

export interface SpoolOptions extends SpoolPlaces {
  readonly tryLock: TryLock;
  readonly logger: Logger;
}

const DIRECTORY_PREFIX = 'lightningstream-spool-';
const LOCK_NAME = 'lock';
const ATTEMPTS = 10;

/**
 * Files of snapshots on their way between storage and LMDB, in a private directory of this process that vanishes with it.
 *
 * The directory holds a file that stays locked (flock) as long as the process lives, however it ends. Whoever opens a spool in
 * the same place removes the directories whose lock is free. The lock is seen across containers, which process ids and
 * their start times are not, and there is no pid that could be reused.
 *
 * Two steps close the gap between creating a directory and locking it: a stale directory is renamed, while its lock is held,
 * before anything in it is removed; and a new one counts only if its lock file is still in its place once it is locked.
 */
export class Spool {
  readonly #base: string;
  readonly #hint: string;
  readonly #tryLock: TryLock;
  readonly #logger: Logger;
  #own: { readonly directory: string; readonly lock: Lock } | undefined;
  #closed = false;

  private constructor(options: SpoolOptions) {
    const { path, hint } = spoolPlace(options);
    this.#base = resolve(path);
    this.#hint = hint;
    this.#tryLock = options.tryLock;
    this.#logger = options.logger;
  }

  /**
   * Makes the private directory and removes stale ones.
   * @throws LightningStreamError `SPOOL_UNUSABLE` that names the place and where it was configured.
   */
  static open(options: SpoolOptions): Spool {
    const spool = new Spool(options);
    spool.#guard(() => {
      mkdirSync(spool.#base, { recursive: true });
      spool.#own = spool.#enter();
    });
    spool.#removeStale();
    return spool;
  }

  /** The directory that private ones are made in. */
  get base(): string {
    return this.#base;
  }

  /**
   * Creates an empty file (mode 0600) of a name that was never used before; `name` is only there for people who look.
   * It is removed by the caller, by {@link remove} or otherwise, or else by {@link close}.
   * @throws LightningStreamError `SPOOL_UNUSABLE`
   */
  pathFor(name: string): string {
    if (this.#closed) throw new Error('the spool is closed');
    return this.#guard(() => {
      // Programs that tidy up temporary directories do not know that we are alive.
      if (this.#own === undefined || !existsSync(join(this.#own.directory, LOCK_NAME))) {
        this.#own?.lock.release();
        this.#own = undefined;
        mkdirSync(this.#base, { recursive: true });
        this.#own = this.#enter();
      }
      const label = basename(name).slice(0, 50);
      const path = join(this.#own.directory, `${randomBytes(6).toString('hex')}-${label}`);
      closeSync(openSync(path, 'wx', 0o600));
      return path;
    });
  }

  /** Removes a file of the spool; one that is gone is no error. */
  async remove(path: string): Promise<void> {
    await rm(path, { force: true });
  }

  /** Removes the private directory with all that is in it. */
  async close(): Promise<void> {
    this.#closed = true;
    const own = this.#own;
    this.#own = undefined;
    if (own === undefined) return;
    try {
      await rm(own.directory, { recursive: true, force: true });
    } catch (error) {
      this.#logger.warning('spool directory could not be removed', {
        path: own.directory,
        error,
      });
    } finally {
      own.lock.release();
    }
  }

  #enter(): { readonly directory: string; readonly lock: Lock } {
    for (let attempt = 1; ; attempt++) {
      const directory = mkdtempSync(join(this.#base, DIRECTORY_PREFIX));
      const lockPath = join(directory, LOCK_NAME);
      try {
        // The content is for people; writing it shows that there is space.
        writeFileSync(lockPath, `pid ${process.pid}\n`, { flag: 'wx', mode: 0o600 });
        const lock = this.#tryLock(lockPath);
        if (lock !== undefined && existsSync(lockPath)) return { directory, lock };
        lock?.release();
      } catch (error) {
        // Removed by a process that is just starting, see above.
        const lostRace = isSystemError(error) && ['ENOENT', 'EEXIST'].includes(error.code);
        if (lostRace && attempt < ATTEMPTS) continue;
        rmSync(directory, { recursive: true, force: true });
        throw error;
      }
      if (attempt === ATTEMPTS) throw new Error(`${lockPath}: locked by somebody else again and again`);
    }
  }

  #removeStale(): void {
    for (const entry of this.#entries()) {
      const directory = join(this.#base, entry.name);
      if (directory === this.#own?.directory || !isOurs(entry, directory)) continue;
      try {
        const lockPath = join(directory, LOCK_NAME);
        // Without a lock file its process died, or is about to make one and then finds the directory gone.
        closeSync(openSync(lockPath, 'a', 0o600));
        const lock = this.#tryLock(lockPath);
        if (lock === undefined) continue;
        try {
          const aside = join(this.#base, `${DIRECTORY_PREFIX}${randomBytes(6).toString('hex')}`);
          renameSync(directory, aside);
          rmSync(aside, { recursive: true, force: true });
          this.#logger.info('removed the spool directory of a process that is gone', { path: directory });
        } finally {
          lock.release();
        }
      } catch (error) {
        this.#logger.debug('a spool directory stays', { path: directory, error });
      }
    }
  }

  #entries(): readonly Dirent[] {
    try {
      return readdirSync(this.#base, { withFileTypes: true });
    } catch {
      // A directory where one may write but not look; the own one was made.
      return [];
    }
  }

  #guard<T>(step: () => T): T {
    try {
      return step();
    } catch (error) {
      if (!isSystemError(error)) throw error;
      const message = `${this.#hint}: cannot use ${this.#base} for temporary files: ${systemCause(error)}`;
      throw new LightningStreamError('SPOOL_UNUSABLE', message, {
        cause: error,
        fields: { path: this.#base },
      });
    }
  }
}

/** Which place to use, and what to call it in errors. */
export function spoolPlace(places: SpoolPlaces): { readonly path: string; readonly hint: string } {
  if (places.configured !== '') return { path: places.configured, hint: 'spool_dir' };
  const cache = places.cacheDirectory?.split(':').find((path) => path !== '');
  if (cache !== undefined) return { path: cache, hint: 'spool_dir is not set, and $CACHE_DIRECTORY is used' };
  return {
    path: places.temporaryDirectory,
    hint: 'spool_dir is not set, and the temporary directory is used',
  };
}

/** In a directory that everybody may write to, others can put what looks like a spool and is a trap. */
function isOurs(entry: Dirent, path: string): boolean {
  if (!entry.name.startsWith(DIRECTORY_PREFIX) || !entry.isDirectory()) return false;
  const stats = lstatSync(path, { throwIfNoEntry: false });
  return stats?.isDirectory() === true && stats.uid === process.geteuid?.() && (stats.mode & 0o077) === 0;
}
