import { realpathSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import type { LmdbConfig } from '../config/types.ts';
import { humanSize } from '../config/units.ts';
import { errorMessage, isAbort } from '../errors.ts';
import type { MigratePdnsOptions, MigratePdnsResult, MigratedDbi, PdnsStatus } from '../native/types.ts';
import { isClosedPipe, print } from './io.ts';
import { formatUser, lmdbUser } from './lmdb-users.ts';
import { withProgress } from './progress.ts';
import type { Session } from './session.ts';

/** Flags of `migrate plan` and `migrate run`. */
export interface MigrateFlags {
  readonly to: '5' | '6';
  /** False: none; undefined: beside the LMDB. */
  readonly backup?: string | false;
  readonly untracked: 'now' | 'old' | 'fail';
  readonly ignoreShadow?: true;
  readonly keepShadow?: true;
  readonly use?: 'old' | 'new';
  readonly mergeShards?: true;
  readonly force?: true;
  readonly json?: true;
}

/** Exit codes of its own, beside 0: something failed and was rolled back; it was refused, and nothing is changed. */
const FAILED = 1;
const REFUSED = 3;
type Trouble = typeof FAILED | typeof REFUSED;

/** A configured LMDB that is no shard of another one. */
interface Candidate {
  readonly db: string;
  readonly lmdb: LmdbConfig;
  readonly found: PdnsStatus;
}

/** `migrate status`: 1 when an LMDB could not be read. */
export async function status(session: Session, options: { readonly json?: true }): Promise<number> {
  const { candidates, trouble } = await findCandidates(session);
  const { stdout } = session.io;
  if (options.json === true) {
    const databases = candidates.map(({ found }) => found);
    await print(stdout, `${JSON.stringify({ databases })}\n`);
  } else {
    for (const { found } of candidates) await print(stdout, statusText(found));
  }
  return trouble === undefined ? 0 : FAILED;
}

/** `migrate plan` and, with `write`, `migrate run`. */
export async function migrate(
  session: Session,
  flags: MigrateFlags,
  { write }: { readonly write: boolean },
): Promise<number> {
  const { io, logger } = session;
  const { candidates, trouble } = await findCandidates(session);
  let refused = trouble;
  for (const { db, lmdb, found } of candidates) {
    const problem = problemOf(found);
    if (problem !== undefined) {
      await complain(session, db, `LMDB ${lmdb.path}: ${problem}`);
      refused ??= REFUSED;
    } else if (!found.isMain) {
      logger.info('Left alone, because this is no database of PowerDNS', { db });
    }
  }
  if (refused !== undefined) return refused;

  const mains = candidates.filter(({ found }) => found.isMain);
  if (mains.length === 0) logger.warning('There is no PowerDNS database among lmdbs: nothing was migrated');
  const nowNano = BigInt(Date.now()) * 1_000_000n;
  const request = (candidate: Candidate): Request => ({
    to: Number(flags.to),
    backupDir: backupDirectory(candidate, flags.backup, nowNano, mains.length > 1),
    untracked: flags.untracked,
    ignoreShadow: flags.ignoreShadow === true,
    keepShadow: flags.keepShadow === true,
    use: flags.use ?? null,
    mergeShards: flags.mergeShards === true,
    force: flags.force === true,
    nowNano,
  });

  // That "refused" means that nothing at all is changed.
  if (write && mains.length > 1) {
    const { code } = await work(session, mains, request, false);
    if (code !== 0) return code;
  }
  const { results, code } = await work(session, mains, request, write);
  for (const { db, result } of results)
    for (const warning of result.warnings) logger.warning(warning, { db });
  if (flags.json === true) {
    const databases = results.map(({ result }) => databaseJson(result, write));
    if (code === 0 || databases.length > 0) await print(io.stdout, `${JSON.stringify({ databases })}\n`);
  } else {
    for (const { result } of results)
      await print(io.stdout, write ? resultText(result) : planText(result, flags.backup !== false));
  }
  return code;
}

/** Why there must be a mistake in the configuration: what is not worked on will be out of reach of the new server. */
function problemOf({ path, isMain, files: [file] }: PdnsStatus): string | undefined {
  if (isMain) return undefined;
  if (file?.present !== true) return 'there is no such LMDB';
  // Its schema is known by the records in it.
  const main = mainOf(path);
  if (main === undefined || file.schema === null) return undefined;
  return `it is a shard, and its main file is not among lmdbs: add ${main}`;
}

/** The path of the main file, of one that could be a shard. */
function mainOf(path: string): string | undefined {
  return /^(.+)-\d+$/.exec(path)?.[1];
}

type Request = Omit<MigratePdnsOptions, 'path' | 'noSubdir' | 'write' | 'signal' | 'onProgress'>;

/** Works on one after the other; what fails is told, and the next one has its turn. */
async function work(
  session: Session,
  mains: readonly Candidate[],
  request: (candidate: Candidate) => Request,
  write: boolean,
): Promise<{ readonly results: { db: string; result: MigratePdnsResult }[]; readonly code: 0 | Trouble }> {
  const { io, signal } = session;
  const { loadNative } = await import('../native/index.ts');
  const native = loadNative();
  const results: { db: string; result: MigratePdnsResult }[] = [];
  let code: 0 | Trouble = 0;
  for (const candidate of mains) {
    const { db, lmdb } = candidate;
    const { path, options } = lmdb;
    try {
      const result = await withProgress(
        io,
        `${write ? 'migrate' : 'read'} ${path}`,
        (progress) =>
          native.migratePdns({
            ...request(candidate),
            path,
            noSubdir: options.noSubdir,
            write,
            signal,
            ...progress,
          }),
        { lines: true },
      );
      results.push({ db, result });
    } catch (error) {
      if (isAbort(error) || isClosedPipe(error)) throw error;
      await complain(session, db, errorMessage(error));
      code = code === FAILED || !isRefusal(error) ? FAILED : REFUSED;
    }
  }
  const changed = write && results.some(({ result }) => result.changed);
  return { results, code: code === REFUSED && changed ? FAILED : code };
}

function isRefusal(error: unknown): boolean {
  const { code } = error as { readonly code?: unknown };
  return code === 'REFUSED' || code === 'IN_USE';
}

async function complain({ io, logger }: Session, db: string, text: string): Promise<void> {
  await print(io.stderr, logger.mask(`lightningstream: lmdbs.${db}: ${text}\n`));
}

/**
 * The configured LMDBs, sorted by name, without those that are a shard of another one. What cannot be read is told, and is not among them.
 */
async function findCandidates(
  session: Session,
): Promise<{ readonly candidates: readonly Candidate[]; readonly trouble: Trouble | undefined }> {
  const { loadNative } = await import('../native/index.ts');
  const native = loadNative();
  const all: Candidate[] = [];
  const failed: { readonly db: string; readonly path: string; readonly error: unknown }[] = [];
  for (const [db, lmdb] of [...session.config.lmdbs].toSorted(([a], [b]) => (a < b ? -1 : 1))) {
    try {
      const { path, options } = lmdb;
      const found = await native.migratePdnsStatus({ path, noSubdir: options.noSubdir });
      all.push({ db, lmdb, found });
    } catch (error) {
      if (isAbort(error)) throw error;
      failed.push({ db, path: lmdb.path, error });
    }
  }
  const mains = all.flatMap(({ found }) => (found.isMain ? [found] : []));
  const shards = new Set(
    mains.flatMap(({ path: main, files }) =>
      files.flatMap(({ path }) => (path === main ? [] : [realPath(path)])),
    ),
  );
  const realMains = new Set(mains.map(({ path }) => realPath(path)));
  // Also one that is not counted, or not there.
  const isShard = (path: string): boolean => shards.has(path) || realMains.has(mainOf(path) ?? '');
  let trouble: Trouble | undefined;
  for (const { db, path, error } of failed) {
    if (isShard(realPath(path))) continue;
    await complain(session, db, errorMessage(error));
    trouble = trouble === FAILED || !isRefusal(error) ? FAILED : REFUSED;
  }
  const candidates = all.filter(({ lmdb }) => !isShard(realPath(lmdb.path)));
  return { candidates, trouble };
}

/** Without links; that of a file that is not there by its directory. */
function realPath(path: string): string {
  const absolute = resolve(path);
  for (const [directory, rest] of [
    [absolute, ''],
    [dirname(absolute), basename(absolute)],
  ] as const) {
    try {
      return join(realpathSync(directory), rest);
    } catch {
      // Its directory, then the path as it is.
    }
  }
  return absolute;
}

/** Where the copies go; of several databases, which may have files of the same name, below the given one. */
function backupDirectory(
  { db, lmdb }: Candidate,
  asked: string | false | undefined,
  nowNano: bigint,
  isOneOfMany: boolean,
): string | null {
  if (asked === false) return null;
  if (asked !== undefined) return isOneOfMany ? join(resolve(asked), db) : resolve(asked);
  const time = new Date(Number(nowNano / 1_000_000n)).toISOString().replace(/[-:]|\.\d+/g, '');
  return join(dirname(resolve(lmdb.path)), `lightningstream-backup-${time}`);
}

// ---- JSON; see docs/json.md ----------------------------------------------------------------------------------------------------

function databaseJson(result: MigratePdnsResult, write: boolean): unknown {
  const { path, schema, to, changed, carried, untracked, deleted, backup, shards, warnings } = result;
  return {
    path,
    schema,
    to,
    result: changed ? (write ? 'migrated' : 'to be migrated') : 'nothing to do',
    carried,
    untracked,
    deleted,
    backup,
    shards,
    warnings,
    mapBytes: result.mapBytes,
    backupBytes: result.backupBytes,
    diskFreeBytes: result.diskFreeBytes,
  };
}

// ---- for people ----------------------------------------------------------------------------------------------------------------

function statusText({ path, isMain, shards, files, text }: PdnsStatus): string {
  const count = shards === null ? '' : `; ${shards} shard${shards === 1 ? '' : 's'}`;
  // What is wrong with a file begins with its path.
  const about = text.startsWith(path) ? text : `${path}: ${text}${count}`;
  if (!isMain) return `${about}\n`;
  const rows = files.map((file) => [
    file.path,
    file.present ? String(file.schema ?? '-') : 'absent',
    file.shadow ? 'yes' : '-',
    file.users.map((pid) => formatUser(lmdbUser(pid))).join(', ') || '-',
  ]);
  return `${about}\n${table([['FILE', 'SCHEMA', 'SHADOW', 'OPEN IN'], ...rows])}`;
}

function planText(result: MigratePdnsResult, withBackup: boolean): string {
  const { path, schema, to, changed, shards, mapBytes, backupBytes, diskFreeBytes } = result;
  const from = `${path}: schema ${schema ?? 'unknown'} to ${to}`;
  if (!changed) return `${from}: nothing to do\n`;
  const count = ({ entries, carried, untracked, deleted }: Omit<MigratedDbi, 'from' | 'to'>): string[] =>
    [entries, carried, untracked, deleted].map(String);
  const dbis = shards.flatMap((shard) => shard.dbis.map((dbi) => ({ file: basename(shard.path), ...dbi })));
  const entries = dbis.reduce((sum, dbi) => sum + dbi.entries, 0);
  const rows = dbis.map((dbi) => [dbi.file, dbi.from, dbi.to, ...count(dbi)]);
  const states = shards.map((shard) => `  ${basename(shard.path)}: ${shard.state}\n`).join('');
  const backup = withBackup ? `, backup ${humanSize(backupBytes)}` : '';
  return (
    `${from}\n${states}` +
    table([
      ['FILE', 'FROM', 'TO', 'ENTRIES', 'WITH TIME', 'UNTRACKED', 'DELETIONS'],
      ...rows,
      ['total', '', '', ...count({ ...result, entries })],
    ]) +
    `  room: map size ${humanSize(mapBytes)} (lmdb-map-size=${Math.ceil(mapBytes / 2 ** 20)})${backup}, ` +
    `free on the disk ${humanSize(diskFreeBytes)}\n`
  );
}

function resultText({ path, schema, to, changed, backup, ...counts }: MigratePdnsResult): string {
  if (!changed) return `${path}: schema ${to} already, nothing to do\n`;
  const from = schema === null || schema === to ? '' : ` from schema ${schema}`;
  return (
    `${path}: migrated${from} to schema ${to}: ${counts.carried} entries with their time, ${counts.untracked} untracked, ` +
    `${counts.deleted} deletions; ${backup === null ? 'no backup' : `backup in ${backup}`}\n`
  );
}

/** Columns, indented; numbers to the right. The first row is their headings. */
function table(rows: readonly (readonly string[])[]): string {
  const [headings = [], ...others] = rows;
  const columns = headings.map((heading, column) => {
    const cells = others.map((row) => row[column] ?? '');
    const width = Math.max(heading.length, ...cells.map((cell) => cell.length));
    return cells.every((cell) => /^\d*$/.test(cell))
      ? (cell: string) => cell.padStart(width)
      : (cell: string) => cell.padEnd(width);
  });
  return rows
    .map(
      (row) => `  ${row.map((cell, column) => columns[column]?.(cell) ?? cell).join('  ')}`.trimEnd() + '\n',
    )
    .join('');
}
