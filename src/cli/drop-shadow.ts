import { errorMessage, isAbort } from '../errors.ts';
import { print } from './io.ts';
import { formatUser, lmdbUsers } from './lmdb-users.ts';
import type { Session } from './session.ts';

/** `drop-shadow`: in every LMDB; 1 when one of them could not be opened or written. */
export async function dropShadow(session: Session, options: { readonly json?: true }): Promise<number> {
  const { io, config, logger, signal } = session;
  const { loadNative } = await import('../native/index.ts');
  const native = loadNative();
  let exitCode = 0;
  for (const [db, lmdb] of [...config.lmdbs].toSorted(([a], [b]) => (a < b ? -1 : 1))) {
    try {
      for (const user of lmdbUsers(native, lmdb).filter(({ isDaemon }) => isDaemon)) {
        logger.warning('A daemon has this LMDB open and will make its shadows anew, without what they knew', {
          db,
          process: formatUser(user),
        });
      }
      const environment = native.openEnvironment(lmdb.path, { ...lmdb.options, create: false });
      try {
        const { dbis } = await environment.dropShadow({ signal });
        for (const { name, entries } of dbis) logger.info('Dropped DBI', { db, dbi: name, entries });
        if (dbis.length === 0) logger.info('There is nothing to drop', { db });
        if (options.json === true) {
          const rows = dbis.map(({ name, entries }) => ({ dbi: name, entries }));
          await print(io.stdout, `${JSON.stringify({ db, dropped: rows })}\n`);
        }
      } finally {
        await environment.close();
      }
    } catch (error) {
      if (isAbort(error)) throw error;
      exitCode = 1;
      await print(io.stderr, `lightningstream: lmdbs.${db}: ${errorMessage(error)}\n`);
    }
  }
  return exitCode;
}
