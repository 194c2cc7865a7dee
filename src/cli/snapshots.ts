import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { UsageError } from '../errors.ts';
import { parseSnapshotName } from '../snapshot/name.ts';
import { print } from './io.ts';
import type { Session } from './session.ts';
import { withStorage } from './storage.ts';

/** `snapshots list` */
export async function list(
  session: Session,
  options: { readonly prefix: string; readonly long?: true; readonly time?: true },
): Promise<number> {
  const objects = await withStorage(session, (storage) => storage.list(options.prefix, session));
  const timeOf = (name: string): bigint | undefined => parseSnapshotName(name)?.timestampNano;
  // Sorting is stable: what has the same time, or none, stays sorted by name.
  const sorted =
    options.time === true
      ? objects.toSorted((a, b) => compareTimes(timeOf(a.name), timeOf(b.name)))
      : objects;
  const lines = sorted.map(({ name, sizeBytes }) =>
    options.long === true ? `${String(sizeBytes).padStart(12)}\t${name}\n` : `${name}\n`,
  );
  await print(session.io.stdout, lines.join(''));
  return 0;
}

/** Names without a time come first. */
function compareTimes(a: bigint | undefined, b: bigint | undefined): number {
  if (a === undefined || b === undefined) return Number(b === undefined) - Number(a === undefined);
  return a < b ? -1 : a > b ? 1 : 0;
}

/** `snapshots get` */
export async function get(
  session: Session,
  name: string,
  options: { readonly output?: string },
): Promise<number> {
  const { output = name } = options;
  if (options.output === undefined && name.includes('/')) {
    throw new UsageError(`${name} is no file name: say with -o FILE where to write it`);
  }
  const toStdout = output === '-' || output === '/dev/stdout';
  if (toStdout && session.io.stdout.isTTY === true) {
    throw new UsageError(
      'a snapshot is binary data and not for a terminal: use -o FILE or redirect the output',
    );
  }
  await withStorage(session, async (storage) => {
    if (!toStdout) {
      await storage.load(name, output, session);
      return;
    }
    const { Spool } = await import('../snapshot/spool.ts');
    const { loadNative } = await import('../native/index.ts');
    const spool = Spool.open({
      configured: session.config.spoolDir,
      cacheDirectory: session.io.env['CACHE_DIRECTORY'],
      temporaryDirectory: tmpdir(),
      tryLock: (lockPath) => loadNative().tryLock(lockPath),
      logger: session.logger,
    });
    try {
      const file = spool.pathFor(name);
      await storage.load(name, file, session);
      for await (const chunk of createReadStream(file, { signal: session.signal }))
        await print(session.io.stdout, chunk as Uint8Array);
    } finally {
      await spool.close();
    }
  });
  return 0;
}

/** `snapshots put` */
export async function put(
  session: Session,
  file: string,
  options: { readonly name?: string; readonly force?: true },
): Promise<number> {
  const { name = path.basename(file) } = options;
  if (parseSnapshotName(name) === undefined) {
    if (options.force !== true) {
      throw new UsageError(
        `${name} is no name of a snapshot: give one with -n NAME, or store it all the same with --force`,
      );
    }
    session.logger.warning('This is no name of a snapshot: no instance will load it', { name });
  }
  if (!(await stat(file)).isFile()) throw new UsageError(`${file} is not a regular file`);
  await withStorage(session, (storage) => storage.store(name, file, session));
  return 0;
}

/** `snapshots remove` */
export async function remove(session: Session, name: string): Promise<number> {
  await withStorage(session, (storage) => storage.delete(name, session));
  return 0;
}
