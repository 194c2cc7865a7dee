import { stat } from 'node:fs/promises';
import type { Storage } from '../storage/storage.ts';
import { withProgress } from './progress.ts';
import type { Session } from './session.ts';
import { spoolPlaces } from './spool.ts';
import { withStorage } from './storage.ts';

/** How often the size of what has come is looked at. */
const LOOK_MS = 250;

/** Loads an object into a file, with its size as progress. @throws StorageError */
export async function download(
  session: Session,
  storage: Storage,
  name: string,
  toPath: string,
): Promise<void> {
  await withProgress(session.io, 'download', async ({ onProgress }) => {
    const look =
      onProgress &&
      setInterval(() => {
        stat(toPath).then(
          ({ size }) => onProgress({ entries: 0, bytes: size, totalBytes: 0 }),
          () => undefined,
        );
      }, LOOK_MS);
    try {
      await storage.load(name, toPath, session);
    } finally {
      clearInterval(look);
    }
  });
}

/** Loads an object into a file that is there for the time of `body`. @throws StorageError, LightningStreamError `SPOOL_UNUSABLE` */
export async function withDownload<T>(
  session: Session,
  name: string,
  body: (path: string) => Promise<T>,
): Promise<T> {
  const [{ Spool }, { loadNative }] = await Promise.all([
    import('../snapshot/spool.ts'),
    import('../native/index.ts'),
  ]);
  return await withStorage(session, async (storage) => {
    const spool = Spool.open({
      ...spoolPlaces(session),
      tryLock: (lockPath) => loadNative().tryLock(lockPath),
      logger: session.logger,
    });
    try {
      const file = spool.pathFor(name);
      await download(session, storage, name, file);
      return await body(file);
    } finally {
      await spool.close();
    }
  });
}
