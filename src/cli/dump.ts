import { withDownload } from './download.ts';
import { eachLmdb, namedLmdb, withEnvironment } from './lmdbs.ts';
import { withProgress } from './progress.ts';
import type { Session } from './session.ts';

/** `dump`: what can be read; 1 when an LMDB could not be. */
export async function dump(
  session: Session,
  options: { readonly hide?: true; readonly name?: string; readonly json?: true },
): Promise<number> {
  const { io, signal } = session;
  requireOwnStdout(session);
  const { name: only = '' } = options;
  if (only !== '') namedLmdb(session, `--name ${only}`, only);
  return eachLmdb(session, only === '' ? [] : [only], async (name, lmdb) => {
    await withEnvironment(lmdb, 'read', (environment) =>
      withProgress(
        io,
        `dump ${name}`,
        (progress) =>
          environment.dump({
            database: name,
            hidePrivate: options.hide === true,
            mode: lmdb.schemaTracksChanges ? 'native' : 'shadow',
            format: options.json === true ? 'json' : 'text',
            nowNano: nowNano(),
            signal,
            ...progress,
          }),
        { prints: true },
      ),
    );
    return true;
  });
}

/** `snapshots dump` */
export async function dumpSnapshot(
  session: Session,
  name: string,
  options: {
    readonly dbi?: string;
    readonly format?: 'debug' | 'text';
    readonly local?: true;
    readonly json?: true;
  },
): Promise<number> {
  const { io, signal } = session;
  requireOwnStdout(session);
  const { loadNative } = await import('../native/index.ts');
  const native = loadNative();
  // `debug` and `text` look the same, as they do in Lightning Stream.
  const write = (path: string): Promise<unknown> =>
    withProgress(
      io,
      'dump',
      (progress) =>
        native.dumpSnapshot(path, {
          name,
          // As in Lightning Stream an empty name is none.
          dbi: options.dbi === undefined || options.dbi === '' ? null : options.dbi,
          format: options.json === true ? 'json' : 'text',
          nowNano: nowNano(),
          signal,
          ...progress,
        }),
      { prints: true },
    );
  await (options.local === true ? write(name) : withDownload(session, name, write));
  return 0;
}

/** The addon writes to the process's standard output itself: records never come into this program. */
function requireOwnStdout({ io }: Session): void {
  if (io.stdout.fd !== 1) throw new Error('a dump goes to standard output only');
}

function nowNano(): bigint {
  return BigInt(Date.now()) * 1_000_000n;
}
