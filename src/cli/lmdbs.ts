import type { LmdbConfig } from '../config/types.ts';
import { errorMessage, isAbort, UsageError } from '../errors.ts';
import type { Environment } from '../native/types.ts';
import { isClosedPipe, print } from './io.ts';
import type { Session } from './session.ts';

/**
 * Works on each configured LMDB, sorted by name; on those of `only`, unless it is empty. What fails is told in a line that names the
 * LMDB, and the next one has its turn. The exit code: 1 when one failed, or when `work` says so by `false`.
 */
export async function eachLmdb(
  { config, io, logger }: Session,
  only: readonly string[],
  work: (db: string, lmdb: LmdbConfig) => Promise<boolean>,
): Promise<number> {
  let exitCode = 0;
  for (const [db, lmdb] of [...config.lmdbs].toSorted(([a], [b]) => (a < b ? -1 : 1))) {
    if (only.length > 0 && !only.includes(db)) continue;
    try {
      if (!(await work(db, lmdb))) exitCode = 1;
    } catch (error) {
      if (isAbort(error) || isClosedPipe(error)) throw error;
      exitCode = 1;
      await print(io.stderr, logger.mask(`lightningstream: lmdbs.${db}: ${errorMessage(error)}\n`));
    }
  }
  return exitCode;
}

/** Has the LMDB open for the time of `body`; neither way brings one into being. @throws NativeError */
export async function withEnvironment<T>(
  lmdb: LmdbConfig,
  access: 'read' | 'write',
  body: (environment: Environment) => Promise<T>,
): Promise<T> {
  const { loadNative } = await import('../native/index.ts');
  const how = access === 'read' ? { readOnly: true } : { create: false };
  const environment = loadNative().openEnvironment(lmdb.path, { ...lmdb.options, ...how });
  try {
    return await body(environment);
  } finally {
    await environment.close();
  }
}

/** The LMDB that the user named; `what` is how. @throws UsageError when there is none of this name */
export function namedLmdb({ config }: Session, what: string, db: string): LmdbConfig {
  const lmdb = config.lmdbs.get(db);
  if (lmdb !== undefined) return lmdb;
  throw new UsageError(`${what}: no such database; lmdbs has ${[...config.lmdbs.keys()].join(', ')}`);
}
