import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import path from 'node:path';
import { errorMessage, LightningStreamError, UsageError } from '../errors.ts';
import { parseSnapshotName } from '../snapshot/name.ts';
import { download, withDownload } from './download.ts';
import { print } from './io.ts';
import { type ProgressOption, withProgress } from './progress.ts';
import type { Session } from './session.ts';
import { withStorage } from './storage.ts';

/** A snapshot that asks for more is refused by every reader known (snapshot format, compatVersion). */
const MAX_COMPAT_VERSION = 3;

/** `snapshots list` */
export async function list(
  session: Session,
  options: {
    readonly prefix: string;
    readonly long?: true;
    readonly time?: true;
    readonly json?: true;
  },
): Promise<number> {
  const objects = await withStorage(session, (storage) => storage.list(options.prefix, session));
  const timeOf = (name: string): bigint | undefined => parseSnapshotName(name)?.timestampNano;
  // Sorting is stable: what has the same time, or none, stays sorted by name.
  const sorted =
    options.time === true
      ? objects.toSorted((a, b) => compareTimes(timeOf(a.name), timeOf(b.name)))
      : objects;
  const lines = sorted.map(({ name, sizeBytes }) =>
    options.json === true
      ? `${JSON.stringify(listedJson(name, sizeBytes))}\n`
      : options.long === true
        ? `${String(sizeBytes).padStart(12)}\t${name}\n`
        : `${name}\n`,
  );
  await print(session.io.stdout, lines.join(''));
  return 0;
}

/** See docs/json.md. */
function listedJson(name: string, sizeBytes: number): Record<string, unknown> {
  const parts = parseSnapshotName(name);
  if (parts === undefined) return { name, sizeBytes, snapshot: null };
  const { database, instance, timestamp, timestampNano, generation, extras } = parts;
  const [, year, month, day, hour, minute, second, nanos] =
    /^(....)(..)(..)-(..)(..)(..)-(.*)$/.exec(timestamp) ?? [];
  return {
    name,
    sizeBytes,
    snapshot: {
      db: database,
      instance,
      timestamp: `${year}-${month}-${day}T${hour}:${minute}:${second}.${nanos}Z`,
      timestampNano: String(timestampNano),
      generation,
      extras,
    },
  };
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
    throw new LightningStreamError(
      'TERMINAL',
      'a snapshot is binary data and not for a terminal: use -o FILE or redirect the output',
    );
  }
  if (!toStdout) {
    await withStorage(session, (storage) => download(session, storage, name, output));
    return 0;
  }
  await withDownload(session, name, async (file) => {
    for await (const chunk of createReadStream(file, { signal: session.signal }))
      await print(session.io.stdout, chunk as Uint8Array);
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
  if (options.force !== true) await checkContent(session, file);
  await withStorage(session, (storage) => storage.store(name, file, session));
  return 0;
}

/** Every instance would load what is stored, and call it corrupt. */
async function checkContent(session: Session, file: string): Promise<void> {
  const { loadNative } = await import('../native/index.ts');
  const refuse = (why: string, cause?: unknown): never => {
    const text = `${file} is no snapshot that an instance could merge: ${why}; --force stores it all the same`;
    throw new LightningStreamError('SNAPSHOT_REFUSED', text, { cause });
  };
  const inspect = (progress: ProgressOption) =>
    loadNative().inspectSnapshot(file, { signal: session.signal, ...progress });
  let inspected;
  try {
    inspected = await withProgress(session.io, 'check', inspect);
  } catch (error) {
    const code = error instanceof LightningStreamError ? error.code : '';
    if (code === 'SNAPSHOT_CORRUPT' || code === 'SNAPSHOT_REFUSED') refuse(errorMessage(error), error);
    throw error;
  }
  const { formatVersion, compatVersion } = inspected;
  if (formatVersion === 0) refuse('it has no format version');
  if (compatVersion > MAX_COMPAT_VERSION) refuse(`it needs readers of version ${compatVersion}`);
}

/** `snapshots remove` */
export async function remove(session: Session, name: string): Promise<number> {
  await withStorage(session, (storage) => storage.delete(name, session));
  return 0;
}
