import type { StorageCallObserver } from '../storage/open.ts';
import type { Storage } from '../storage/storage.ts';
import type { Session } from './session.ts';

/** Opens the configured storage for the time of `body`. @throws StorageError, ConfigError */
export async function withStorage<T>(
  session: Session,
  body: (storage: Storage) => Promise<T>,
  onCall?: StorageCallObserver,
): Promise<T> {
  const { openStorage } = await import('../storage/open.ts');
  const { loadNative } = await import('../native/index.ts');
  const storage = await openStorage(session.config.storage, {
    logger: session.logger,
    env: session.io.env,
    addSecrets: (values) => session.logger.addSecrets(values),
    ...(onCall === undefined ? {} : { onCall }),
    // Loaded only when a lock is wanted: most commands want none.
    tryLock: (path) => loadNative().tryLock(path),
  });
  try {
    return await body(storage);
  } finally {
    await storage.close();
  }
}
