import { print } from './io.ts';
import { eachLmdb, withEnvironment } from './lmdbs.ts';
import { formatUser, lmdbUsers } from './lmdb-users.ts';
import type { Session } from './session.ts';

/** `drop-shadow`: in every LMDB; 1 when one of them could not be opened or written. */
export async function dropShadow(session: Session, options: { readonly json?: true }): Promise<number> {
  const { io, logger, signal } = session;
  const { loadNative } = await import('../native/index.ts');
  return eachLmdb(session, [], async (db, lmdb) => {
    for (const user of lmdbUsers(loadNative(), lmdb).filter(({ isDaemon }) => isDaemon)) {
      logger.warning('A daemon has this LMDB open and will make its shadows anew, without what they knew', {
        db,
        process: formatUser(user),
      });
    }
    const { dbis } = await withEnvironment(lmdb, 'write', (environment) =>
      environment.dropShadow({ signal }),
    );
    for (const { name, entries } of dbis) logger.info('Dropped DBI', { db, dbi: name, entries });
    if (dbis.length === 0) logger.info('There is nothing to drop', { db });
    if (options.json === true) {
      const rows = dbis.map(({ name, entries }) => ({ dbi: name, entries }));
      await print(io.stdout, `${JSON.stringify({ db, dropped: rows })}\n`);
    }
    return true;
  });
}
