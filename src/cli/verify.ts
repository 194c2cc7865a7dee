import { formatDbiFlags } from '../config/units.ts';
import type { LmdbConfig } from '../config/types.ts';
import { errorMessage, isAbort, UsageError } from '../errors.ts';
import type { CompareResult, Environment, SyncMode, VerifyResult } from '../native/types.ts';
import { readListing } from '../snapshot/listing.ts';
import { parseSnapshotName, type SnapshotName } from '../snapshot/name.ts';
import { deletedCutoffNano } from '../sync/syncer.ts';
import { withDownload } from './download.ts';
import { print } from './io.ts';
import { eachLmdb, namedLmdb, withEnvironment } from './lmdbs.ts';
import { withProgress } from './progress.ts';
import type { Session } from './session.ts';
import { withStorage } from './storage.ts';

export interface VerifyCommandOptions {
  readonly latest?: true;
  readonly onlyDb: readonly string[];
  /** Deletions that are missing count, too. */
  readonly deletions?: true;
  readonly maxErrors: number;
  readonly json?: true;
}

/** Clocks differ a little. */
const FUTURE_NANO = 60n * 1_000_000_000n;

/** What was found out about one LMDB. */
export interface Report {
  readonly db: string;
  readonly mode: SyncMode;
  readonly found: VerifyResult;
  /** Shadow mode: what of the application's DBIs the shadows do not have. */
  readonly pending: { readonly entries: number; readonly more: boolean } | undefined;
  readonly snapshots: readonly SnapshotReport[];
}

/** The last two hold something that is not here, or may. */
export type Verdict = 'same' | 'same-but-deletions' | 'contained' | 'missing' | 'unreadable';

export interface SnapshotReport {
  readonly name: SnapshotName;
  readonly verdict: Verdict;
  readonly compared: CompareResult | undefined;
  readonly error: string | undefined;
}

/** `verify`: 0 when every record is sound and nothing of the snapshots is missing here. */
export async function verify(
  session: Session,
  names: readonly string[],
  options: VerifyCommandOptions,
): Promise<number> {
  for (const only of options.onlyDb) namedLmdb(session, `--only-db ${only}`, only);
  const parsed = names.map((name) => {
    const parts = parseSnapshotName(name);
    if (parts === undefined) throw new UsageError(`${name} is no name of a snapshot`);
    namedLmdb(session, name, parts.database);
    return parts;
  });
  return eachLmdb(session, options.onlyDb, async (db, lmdb) => {
    const wanted = parsed.filter(({ database }) => database === db);
    // Listed before anything is read: what is stored later cannot be expected to be here.
    if (options.latest === true) wanted.push(...(await latest(session, db)));
    const report = await withEnvironment(lmdb, 'read', (environment) =>
      examine(session, environment, db, lmdb, wanted, options),
    );
    await print(
      session.io.stdout,
      options.json === true ? reportJson(report, options) : reportText(report, options),
    );
    return isSound(report, options);
  });
}

/** Of every instance the newest, our own included. */
async function latest(session: Session, db: string): Promise<readonly SnapshotName[]> {
  const objects = await withStorage(session, (storage) => storage.list(`${db}__`, session));
  const { byInstance } = readListing(objects, db);
  return [...byInstance.values()].flatMap((snapshots) => snapshots.at(-1)?.name ?? []);
}

async function examine(
  session: Session,
  environment: Environment,
  db: string,
  lmdb: LmdbConfig,
  names: readonly SnapshotName[],
  { maxErrors }: VerifyCommandOptions,
): Promise<Report> {
  const { io, signal, config, logger } = session;
  const mode = lmdb.schemaTracksChanges ? 'native' : 'shadow';
  const nowNano = BigInt(Date.now()) * 1_000_000n;
  const found = await withProgress(io, `verify ${db}`, (progress) =>
    environment.verify({ mode, maxErrors, futureAfter: nowNano + FUTURE_NANO, signal, ...progress }),
  );
  const pending =
    mode === 'native'
      ? undefined
      : await withProgress(io, `verify ${db}`, (progress) =>
          environment.pending({ dupsortHack: lmdb.dupsortHack, signal, ...progress }),
        );
  const snapshots: SnapshotReport[] = [];
  const deletedCutoff = deletedCutoffNano(config.sweeper, nowNano);
  for (const name of names) {
    try {
      const compared = await withDownload(session, name.name, (path) =>
        withProgress(io, `compare ${name.name}`, (progress) =>
          environment.compare({ path, mode, deletedCutoffNano: deletedCutoff, signal, ...progress }),
        ),
      );
      snapshots.push({ name, verdict: judge(found, compared), compared, error: undefined });
    } catch (error) {
      if (isAbort(error)) throw error;
      const text = logger.mask(errorMessage(error));
      snapshots.push({ name, verdict: 'unreadable', compared: undefined, error: text });
    }
  }
  return { db, mode, found, pending, snapshots };
}

function judge(found: VerifyResult, { content, dbis }: CompareResult): Verdict {
  if (dbis.some(({ missing }) => missing > 0)) return 'missing';
  if (content.all === found.content.all) return 'same';
  return content.live === found.content.live ? 'same-but-deletions' : 'contained';
}

function isSound({ found, pending, snapshots }: Report, { deletions }: VerifyCommandOptions): boolean {
  return (
    found.dbis.every(({ invalid }) => invalid === 0) &&
    (pending === undefined || pending.entries === 0) &&
    snapshots.every(
      ({ verdict, compared }) =>
        verdict !== 'missing' &&
        verdict !== 'unreadable' &&
        (deletions !== true || total(compared, 'missingDeletions') === 0),
    )
  );
}

function total(compared: CompareResult | undefined, what: 'missing' | 'missingDeletions' | 'newer'): number {
  return compared?.dbis.reduce((sum, dbi) => sum + dbi[what], 0) ?? 0;
}

/** Lines of text, each with the database in front. */
export function reportText(report: Report, options: VerifyCommandOptions): string {
  const { db, mode, found, pending, snapshots } = report;
  const invalid = found.dbis.reduce((sum, dbi) => sum + dbi.invalid, 0);
  const lines = [
    `${counted(found.dbis.length, 'DBI')} at transaction ${found.transactionId}: ${states(found.content)}`,
    ...found.dbis.map(({ name, content, zero, future, invalid: bad }) => {
      const odd = [
        ...(zero > 0 ? [`${zero} with timestamp 0`] : []),
        ...(future > 0 ? [`${future} from the future`] : []),
        ...(bad > 0 ? [`${bad} without a valid header`] : []),
      ];
      return `dbi ${name}: ${[states(content), ...odd].join(', ')}; digest ${content.all} live ${content.live}`;
    }),
    `digest ${found.content.all} live ${found.content.live}`,
    ...found.errors.map((error) => `error: ${errorMessage(error)}`),
    ...(invalid > found.errors.length ? [`error: ${invalid - found.errors.length} more like these`] : []),
    ...(pending === undefined || mode === 'native' ? [] : [pendingText(pending)]),
    ...snapshots.map((snapshot) => `snapshot ${snapshot.name.name}: ${verdictText(snapshot, options)}`),
  ];
  return lines.map((line) => `${db}: ${line}\n`).join('');
}

function pendingText({ entries, more }: { readonly entries: number; readonly more: boolean }): string {
  if (entries === 0) return 'shadow: has all that the application has';
  return `shadow: ${more ? 'more than ' : ''}${counted(entries, 'record')} of the application differ; a running daemon takes them over`;
}

function verdictText(
  { verdict, compared, error }: SnapshotReport,
  { deletions }: VerifyCommandOptions,
): string {
  const newer = total(compared, 'newer');
  const lacking = total(compared, 'missingDeletions');
  const also =
    deletions === true && lacking > 0 ? `; ${counted(lacking, 'deletion')} of it missing here` : '';
  switch (verdict) {
    case 'same':
      return 'same as here';
    case 'same-but-deletions':
      return `same as here, deletions aside${also}`;
    case 'contained':
      return `all of it is here, and ${newer} newer${also}`;
    case 'missing': {
      const missing = (compared?.dbis ?? []).filter((dbi) => dbi.missing > 0);
      const where = missing.map((dbi) => `${dbi.name} ${dbi.missing}`).join(', ');
      return `${total(compared, 'missing')} of its ${compared?.content.entries ?? 0} entries are missing here (${where})${also}`;
    }
    case 'unreadable':
      break;
  }
  return `error: ${error ?? ''}`;
}

function states({ entries, deleted }: { readonly entries: number; readonly deleted: number }): string {
  return `${entries - deleted} live, ${deleted} deleted`;
}

function counted(count: number, what: string): string {
  return `${count} ${what}${count === 1 ? '' : 's'}`;
}

/** One line; see docs/json.md. */
export function reportJson(report: Report, options: VerifyCommandOptions): string {
  const { db, mode, found, pending, snapshots } = report;
  return `${JSON.stringify({
    db,
    ok: isSound(report, options),
    mode,
    txnId: String(found.transactionId),
    ...contentJson(found.content),
    invalid: found.dbis.reduce((sum, dbi) => sum + dbi.invalid, 0),
    dbis: found.dbis.map(({ name, flags, content, zero, future, newest, invalid }) => ({
      dbi: name,
      flags: formatDbiFlags(flags).split('|').filter(Boolean),
      ...contentJson(content),
      invalid,
      zeroTimestamps: zero,
      futureTimestamps: future,
      newestTimestampNano: String(newest),
    })),
    errors: found.errors.map((error) => {
      const { code = '', dbi = null, key = null } = error as { code?: string; dbi?: string; key?: string };
      return { code, dbi, key, message: errorMessage(error) };
    }),
    shadowPending: pending === undefined ? null : { entries: pending.entries, more: pending.more },
    snapshots: snapshots.map(({ name, verdict, compared, error }) => ({
      name: name.name,
      instance: name.instance,
      verdict,
      error: error ?? null,
      ...(compared === undefined
        ? {}
        : {
            ...contentJson(compared.content),
            dbis: compared.dbis.map(({ name: dbi, content, missing, missingDeletions, newer }) => ({
              dbi,
              ...contentJson(content),
              missing,
              missingDeletions,
              newer,
            })),
          }),
    })),
  })}\n`;
}

function contentJson({
  entries,
  deleted,
  all,
  live,
}: VerifyResult['content']): Record<string, number | string> {
  return { entries, live: entries - deleted, deleted, digestAll: all, digestLive: live };
}
