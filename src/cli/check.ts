import { randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import { access, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir, userInfo } from 'node:os';
import path from 'node:path';
import { decodeOptions, type Undecoded, withOption } from '../config/decode.ts';
import { ConfigError } from '../config/error.ts';
import type { LmdbConfig } from '../config/types.ts';
import { formatSize } from '../config/units.ts';
import { errorMessage, isAbort, LightningStreamError } from '../errors.ts';
import type { Environment, Native } from '../native/types.ts';
import { parseSnapshotName } from '../snapshot/name.ts';
import { spoolPlace } from '../snapshot/spool.ts';
import { storageOptions } from '../storage/open.ts';
import type { Storage } from '../storage/storage.ts';
import { wrongMode } from '../sync/syncer.ts';
import { type Io, print } from './io.ts';
import { formatUser, lmdbUsers } from './lmdb-users.ts';
import { refuseMissingFeatures } from './not-built.ts';
import type { Session } from './session.ts';
import { spoolPlaces } from './spool.ts';
import { withStorage } from './storage.ts';

/** One line of the result. */
interface Finding {
  /** `config`, `storage`, `storage.list`, `spool_dir`, `lmdbs.NAME`, … */
  readonly check: string;
  readonly status: 'ok' | 'warning' | 'error';
  readonly text: string;
}

/** Tells one finding; says whether it was an error. */
type Tell = (check: string, status: Finding['status'], text: string) => Promise<void>;

interface CheckOptions {
  readonly json?: true;
}

/** The application's map is nearly full above this part of it. */
const NEARLY_FULL = 0.9;

/** `config check` of a file that is well-formed: the storage, the spool directory and the LMDBs. 0 when nothing is wrong. */
export async function check(session: Session, options: CheckOptions): Promise<number> {
  const { config, configFile, warnings } = session;
  let failed = false;
  const tell: Tell = async (...finding) => {
    failed ||= finding[1] === 'error';
    await show(session.io, options, (text) => session.logger.mask(text), ...finding);
  };
  for (const warning of warnings) await tell('config', 'warning', warning);
  const refused = complaints(() => refuseMissingFeatures(config, configFile));
  for (const text of refused) await tell('config', 'error', text);
  if (refused.length === 0) await tell('config', 'ok', `${configFile} is well-formed`);
  await checkStorage(session, tell);
  await checkSpool(spoolPlace(spoolPlaces(session)).path, tell);
  const { loadNative } = await import('../native/index.ts');
  const native = loadNative();
  for (const [name, lmdb] of config.lmdbs) {
    session.signal.throwIfAborted();
    await checkLmdb(native, name, lmdb, (status, text) => tell(`lmdbs.${name}`, status, text));
  }
  return failed ? 1 : 0;
}

/** `config check` of a file that is not. */
export async function checkFailed(io: Io, options: CheckOptions, error: ConfigError): Promise<number> {
  for (const text of error.complaints) await show(io, options, (shown) => shown, 'config', 'error', text);
  return 1;
}

async function show(
  io: Io,
  options: CheckOptions,
  mask: (text: string) => string,
  check: string,
  status: Finding['status'],
  text: string,
): Promise<void> {
  const finding: Finding = { check, status, text: mask(text) };
  const line = `${status.padEnd(7)}  ${check}: ${finding.text}`;
  await print(io.stdout, `${options.json === true ? JSON.stringify(finding) : line}\n`);
}

function complaints(step: () => void): readonly string[] {
  try {
    step();
    return [];
  } catch (error) {
    if (error instanceof ConfigError) return error.complaints;
    throw error;
  }
}

// ---- storage -------------------------------------------------------------------------------------------------------------------

async function checkStorage(session: Session, tell: Tell): Promise<void> {
  const { storage } = session.config;
  try {
    if (storage.type === 'fs' && !(await checkDirectory(session, tell))) return;
    await withStorage(
      { ...session, config: { ...session.config, storage: unobtrusive(storage) } },
      (opened) => checkAccess(session, opened, tell),
    );
  } catch (error) {
    if (isAbort(error)) throw error;
    const lines = error instanceof ConfigError ? error.complaints : [reason(error)];
    for (const line of lines) await tell('storage', 'error', line);
  }
}

/** What belongs to a look is not announced to others, and creates no bucket. */
function unobtrusive(storage: Session['config']['storage']): Session['config']['storage'] {
  if (storage.type !== 's3') return storage;
  const options = storage.options as Undecoded;
  const quiet = withOption(options, 'use_update_marker', 'false');
  return { ...storage, options: withOption(quiet, 'create_bucket', 'false') };
}

/** Opening the storage would create the directory, as whoever runs the check. */
async function checkDirectory({ config }: Session, tell: Tell): Promise<boolean> {
  const { rootPath } = decodeOptions(config.storage.options, storageOptions.fs);
  if (await isThere(rootPath)) return true;
  const problem = await creationProblem(rootPath);
  if (problem === undefined)
    await tell('storage', 'warning', `${rootPath} is missing: a start will create it`);
  else await tell('storage', 'error', `${rootPath} is missing and cannot be created: ${problem}`);
  return false;
}

async function checkAccess(session: Session, storage: Storage, tell: Tell): Promise<void> {
  await tell('storage', 'ok', `${storage.type}, ${storage.location}`);
  if (storage.type === 'memory')
    await tell('storage', 'warning', 'what is stored in memory is gone with the process: for tests only');
  // No snapshot's name, and not below any database's prefix: nobody looks at it.
  const probe = `lightningstream-check-${randomBytes(6).toString('hex')}`;
  const directory = await mkdtemp(path.join(tmpdir(), 'lightningstream-check-'));
  const { config } = session;
  const createsBucket =
    storage.type === 's3' && decodeOptions(config.storage.options, storageOptions.s3).createBucket;
  const step = async (
    name: string,
    body: () => Promise<string>,
    failed: (text: string) => readonly [Finding['status'], string] = (text) => ['error', text],
  ): Promise<boolean> => {
    try {
      await tell(`storage.${name}`, 'ok', await body());
      return true;
    } catch (error) {
      if (isAbort(error)) throw error;
      if (createsBucket && error instanceof LightningStreamError && error.code === 'NoSuchBucket')
        await tell('storage', 'warning', 'the bucket does not exist: a start will create it');
      else await tell(`storage.${name}`, ...failed(reason(error)));
      return false;
    }
  };
  try {
    const file = path.join(directory, 'probe');
    const content = `${probe}\n`;
    await writeFile(file, content);
    let hasBucket = true;
    await step('list', async () => {
      try {
        return await listed(session, storage);
      } catch (error) {
        hasBucket = !(error instanceof LightningStreamError && error.code === 'NoSuchBucket');
        throw error;
      }
    });
    // All else would fail for the same reason.
    if (!hasBucket) return;
    let stored = false;
    const removed = async (): Promise<void> => {
      // Also when the check is broken off: then with a signal of its own.
      const { signal } = session;
      const options = { signal: signal.aborted ? AbortSignal.timeout(10_000) : signal };
      const isGone = await step(
        'delete',
        async () => {
          await storage.delete(probe, options);
          return stored ? 'removed it' : 'allowed';
        },
        (text) =>
          config.storage.cleanup.enabled
            ? ['error', text]
            : ['warning', `${text}; only storage.cleanup and snapshots remove need it`],
      );
      if (stored && !isGone)
        await tell('storage.delete', 'warning', `the object ${probe} is still there: remove it by hand`);
    };
    try {
      stored = await step('put', async () => {
        await storage.store(probe, file, session);
        return `stored the object ${probe}`;
      });
      // A directory does not tell who may remove what is not there.
      if (!stored && storage.type === 'fs') {
        for (const name of ['get', 'delete'])
          await tell(`storage.${name}`, 'warning', 'cannot be told, since nothing can be stored');
        return;
      }
      await step('get', async () => {
        const copy = path.join(directory, 'copy');
        try {
          await storage.load(probe, copy, session);
        } catch (error) {
          // Whoever may not read is told so, whether it is there or not.
          if (!stored && error instanceof LightningStreamError && error.code === 'NOT_FOUND')
            return 'allowed';
          throw error;
        }
        if ((await readFile(copy, 'utf8')) !== content)
          throw new LightningStreamError('CHECK', `the object ${probe} came back with another content`);
        return 'read it back';
      });
    } finally {
      if (stored || storage.type !== 'fs') await removed();
    }
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

async function listed(session: Session, storage: Storage): Promise<string> {
  const counts: string[] = [];
  for (const db of session.config.lmdbs.keys()) {
    const objects = await storage.list(`${db}__`, session);
    const names = objects.flatMap(({ name }) => parseSnapshotName(name) ?? []);
    const instances = new Set(names.map(({ instance }) => instance));
    counts.push(`${db}: ${names.length} snapshots of ${instances.size} instances`);
  }
  return counts.join(', ');
}

// ---- directories ---------------------------------------------------------------------------------------------------------------

async function checkSpool(directory: string, tell: Tell): Promise<void> {
  let problem: string | undefined;
  try {
    problem = (await isThere(directory))
      ? await accessProblem(directory, constants.W_OK | constants.X_OK)
      : await creationProblem(directory);
  } catch (error) {
    // Something on the way to it is no directory, or must not be entered.
    problem = reason(error);
  }
  if (problem === undefined) await tell('spool_dir', 'ok', directory);
  else await tell('spool_dir', 'error', `${directory} cannot be used: ${problem}`);
}

async function isThere(file: string): Promise<boolean> {
  try {
    await stat(file);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
    throw error;
  }
}

/** Why a directory could not be created; undefined when it could. */
async function creationProblem(directory: string): Promise<string | undefined> {
  const parent = path.dirname(path.resolve(directory));
  if (parent !== directory && !(await isThere(parent))) return creationProblem(parent);
  return accessProblem(parent, constants.W_OK | constants.X_OK);
}

/** Why this user may not do that; undefined when he may. */
async function accessProblem(file: string, mode: number): Promise<string | undefined> {
  try {
    await access(file, mode);
    return undefined;
  } catch (error) {
    if (!isSystemError(error)) throw error;
    if (error.code !== 'EACCES') return `${file}: ${error.code ?? error.message}`;
    const facts = await stat(file).catch(() => undefined);
    const whose = facts && `, it belongs to uid ${facts.uid}, mode 0${(facts.mode & 0o777).toString(8)}`;
    return `${file} is not accessible to ${me()}${whose ?? ''}`;
  }
}

function me(): string {
  const { username, uid } = userInfo();
  return `${username} (uid ${uid})`;
}

function isSystemError(error: unknown): error is NodeJS.ErrnoException {
  return error instanceof Error && 'syscall' in error;
}

function reason(error: unknown): string {
  if (error instanceof LightningStreamError || isSystemError(error)) return errorMessage(error);
  throw error;
}

// ---- LMDBs ---------------------------------------------------------------------------------------------------------------------

type TellOne = (status: Finding['status'], text: string) => Promise<void>;

async function checkLmdb(native: Native, name: string, lmdb: LmdbConfig, tell: TellOne): Promise<void> {
  try {
    const dataFile = await checkFiles(lmdb, tell);
    if (dataFile === undefined) return;
    const users = lmdbUsers(native, lmdb);
    const environment = native.openEnvironment(lmdb.path, {
      ...lmdb.options,
      mapSizeBytes: 0,
      readOnly: true,
    });
    try {
      await checkContents(name, lmdb, environment, tell);
    } finally {
      await environment.close();
    }
    const open = users.length === 0 ? '' : `; open in ${users.map(formatUser).join(', ')}`;
    await tell('ok', `${dataFile} can be read and written${open}`);
  } catch (error) {
    if (isAbort(error)) throw error;
    await tell('error', reason(error));
  }
}

/** Places and permissions. The data file when there is one that may be opened. */
async function checkFiles(lmdb: LmdbConfig, tell: TellOne): Promise<string | undefined> {
  const { noSubdir, create } = lmdb.options;
  const dataFile = noSubdir ? lmdb.path : path.join(lmdb.path, 'data.mdb');
  const lockFile = noSubdir ? `${lmdb.path}-lock` : path.join(lmdb.path, 'lock.mdb');
  const reachable = (await isThere(lmdb.path)) ? await stat(lmdb.path) : undefined;
  if (reachable !== undefined && reachable.isDirectory() === noSubdir) {
    const text = noSubdir
      ? `${lmdb.path} is a directory: remove options.no_subdir, or name the data file in it`
      : `${lmdb.path} is no directory: set options.no_subdir to true`;
    await tell('error', text);
    return undefined;
  }
  if (reachable === undefined || !(await isThere(dataFile))) {
    const problem = create
      ? await creationProblem(dataFile)
      : 'the application has to create it (or set options.create)';
    if (problem === undefined) await tell('ok', `${dataFile} is missing: a start will create it`);
    else await tell('error', `${dataFile} is missing: ${problem}`);
    return undefined;
  }
  const readWrite = constants.R_OK | constants.W_OK;
  const problems = [
    await accessProblem(dataFile, readWrite),
    (await isThere(lockFile))
      ? await accessProblem(lockFile, readWrite)
      : await accessProblem(path.dirname(lockFile), constants.W_OK | constants.X_OK),
  ].filter((problem) => problem !== undefined);
  for (const problem of problems) await tell('error', `${problem}: run as the application's user`);
  if (problems.length > 0) return undefined;
  const { size, uid } = await stat(dataFile);
  if (process.getuid?.() === 0 && uid !== 0) {
    await tell(
      'warning',
      `root may do anything, but the data file belongs to uid ${uid}: run this as that user`,
    );
  }
  if (size > 0) return dataFile;
  await tell('warning', `${dataFile} is empty: the application has not written yet`);
  return undefined;
}

async function checkContents(
  name: string,
  lmdb: LmdbConfig,
  environment: Environment,
  tell: TellOne,
): Promise<void> {
  const { info, dbis } = await environment.stats();
  const { mapSizeBytes: configured, maxDbs } = lmdb.options;
  // Whoever wrote last has left his own size in the file.
  if (configured !== 0 && configured !== info.mapSizeBytes) {
    const text = `options.map_size is ${formatSize(configured)}, but who wrote last had ${formatSize(info.mapSizeBytes)}`;
    await tell('warning', `${text}: give it and the application one size, or remove it`);
  }
  const limit = Math.max(configured, info.mapSizeBytes);
  const used = (info.lastPage + 1) * info.pageSizeBytes;
  if (used > limit * NEARLY_FULL) {
    const percent = Math.floor((100 * used) / limit);
    await tell(
      'warning',
      `${percent} % of the map are in use: raise the application's map size and options.map_size`,
    );
  }
  const own = dbis.filter((dbi) => !dbi.name.startsWith('_sync'));
  const needed = lmdb.schemaTracksChanges
    ? dbis.length
    : new Set([...dbis.map((dbi) => dbi.name), ...own.map((dbi) => `_sync_shadow_${dbi.name}`)]).size;
  if (needed > maxDbs)
    await tell('error', `needs ${needed} DBIs, more than options.max_dbs allows (${maxDbs})`);
  const sorted = own.filter(({ flags }) => (flags & DUPSORT) !== 0).map((dbi) => dbi.name);
  if (sorted.length > 0 && !lmdb.dupsortHack) {
    const how = lmdb.schemaTracksChanges ? 'they cannot be replicated natively' : 'set dupsort_hack to true';
    await tell('error', `DBIs with MDB_DUPSORT (${sorted.join(', ')}): ${how}`);
  }
  if (lmdb.schemaGuard === 'off' || info.lastTransactionId === 0n) return;
  const mode = lmdb.schemaTracksChanges ? 'native' : 'shadow';
  const doubt = await environment.checkMode(mode);
  if (doubt !== null) await tell('error', wrongMode(name, doubt));
}

/** MDB_DUPSORT in lmdb.h. */
const DUPSORT = 0x04;
