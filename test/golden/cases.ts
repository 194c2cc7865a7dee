/**
 * Cases recorded from PowerDNS Lightning Stream 1.0: an LMDB, a storage, a configuration, and what they became. The functions here
 * put our program in its place; the tests judge the result.
 */
import { createHash } from 'node:crypto';
import { cpSync, existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gunzipSync } from 'node:zlib';
import { expect } from 'vitest';
import { type HexEntry, type LmdbContents, readLmdb } from '../helpers/lmdb.ts';
import { run, type TempDir, tempDir } from '../helpers/process.ts';

/** DBIs by name; with `headers`, the transaction ids in the values are zeroed. */
export type ExpectedDbis = Readonly<
  Record<string, { readonly flags: number; readonly headers: boolean; readonly entries: readonly HexEntry[] }>
>;

/** `expected.json` of a case. */
interface Expected {
  readonly description: string;
  readonly command: string;
  /** Exit code of the reference. */
  readonly exit: number;
  /** With this error the reference ended. */
  readonly error?: string;
  /** For this reason the reference ignored the snapshot. */
  readonly marked_corrupt?: string;
  /** The reference crashed. */
  readonly reference_crash?: readonly string[];
  /** The reference is wrong; this is right. */
  readonly should_be?: string;
  readonly nothing_written?: boolean;
  readonly unchanged?: boolean;
  readonly dbis: ExpectedDbis;
  readonly accept_dbis?: ExpectedDbis;
  /** By DBI and key: all values that are right, because timing decides. */
  readonly alternatives?: Readonly<Record<string, Readonly<Record<string, readonly string[]>>>>;
}

export interface GoldenCase {
  readonly name: string;
  /** For the test's title. */
  readonly description: string;
  readonly directory: string;
  readonly configPath: string;
  /** The application writes headers itself (`schema_tracks_changes`). */
  readonly native: boolean;
  readonly expected: Expected;
}

/** The cases of a directory beside this file, sorted by name. */
export function readCases(directoryName: string): readonly GoldenCase[] {
  const root = fileURLToPath(new URL(`${directoryName}/`, import.meta.url));
  return readdirSync(root, { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map(({ name }) => {
      const directory = join(root, name);
      const configPath = join(directory, 'config.yaml');
      const expected = JSON.parse(readFileSync(join(directory, 'expected.json'), 'utf8')) as Expected;
      const native = readFileSync(configPath, 'utf8').includes('schema_tracks_changes: true');
      return { name, description: expected.description, directory, configPath, native, expected };
    })
    .sort((a, b) => (a.name < b.name ? -1 : 1));
}

/** A copy of a case that a program may work on. */
export interface Workplace extends AsyncDisposable {
  readonly lmdbPath: string;
  readonly storagePath: string;
  readonly spoolPath: string;
  /** What the configurations of the cases refer to, and a spool of its own. */
  readonly env: Readonly<Record<string, string>>;
  readonly dir: TempDir;
}

export async function prepare(golden: GoldenCase): Promise<Workplace> {
  const dir = await tempDir('lightningstream-golden-');
  const lmdbPath = dir.join('local.mdb');
  const storagePath = dir.join('storage');
  const spoolPath = dir.join('cache');
  const local = join(golden.directory, 'local.mdb.gz');
  if (existsSync(local)) writeFileSync(lmdbPath, gunzipSync(readFileSync(local)));
  cpSync(join(golden.directory, 'remote'), storagePath, { recursive: true });
  return {
    lmdbPath,
    storagePath,
    spoolPath,
    dir,
    env: { LMDB_PATH: lmdbPath, STORAGE_PATH: storagePath, CACHE_DIRECTORY: spoolPath },
    [Symbol.asyncDispose]: () => dir[Symbol.asyncDispose](),
  };
}

/** A line of the log. */
export interface LogRecord {
  readonly level: string;
  readonly msg: string;
  readonly error?: string;
  readonly [field: string]: unknown;
}

export interface Outcome {
  readonly code: number | null;
  readonly log: readonly LogRecord[];
  /** Records of level warning and error. */
  readonly complaints: readonly LogRecord[];
  /** Undefined when there was no LMDB. */
  readonly before: LmdbContents | undefined;
  readonly after: LmdbContents;
  /** Objects that were not in the storage before. */
  readonly newObjects: ReadonlyMap<string, Buffer>;
  readonly period: Period;
}

/** ns since the epoch, just before and just after a run. */
export interface Period {
  readonly fromNano: bigint;
  readonly toNano: bigint;
}

/** Calls `during` and tells when that was. */
export async function timed<T>(during: () => Promise<T>): Promise<{ result: T; period: Period }> {
  const fromNano = BigInt(Date.now()) * 1_000_000n;
  const result = await during();
  // The clock of this side counts whole milliseconds.
  return { result, period: { fromNano, toNano: BigInt(Date.now() + 1) * 1_000_000n } };
}

export function isWithin(timestampNano: bigint, { fromNano, toNano }: Period): boolean {
  return timestampNano >= fromNano && timestampNano < toNano;
}

/**
 * Gives a function that runs a case's command with our program. What holds in every case is checked here: no object of the storage changes or goes
 * away, nothing is left in the spool, every line of the output is one record without a stack.
 */
export function caseRunner(): (golden: GoldenCase) => Promise<Outcome> {
  // Most cases begin with one and the same LMDB.
  const locals = new Map<string, Promise<LmdbContents>>();
  return async (golden) => {
    await using place = await prepare(golden);
    return await runIn(place, golden, locals);
  };
}

async function runIn(
  place: Workplace,
  golden: GoldenCase,
  locals: Map<string, Promise<LmdbContents>>,
): Promise<Outcome> {
  let before: LmdbContents | undefined;
  if (existsSync(place.lmdbPath)) {
    const digest = createHash('sha256').update(readFileSync(place.lmdbPath)).digest('hex');
    const reading = locals.get(digest) ?? readLmdb(place.lmdbPath, { noSubdir: true });
    locals.set(digest, reading);
    before = await reading;
  }
  const objectsBefore = readObjects(place.storagePath);
  const { result, period } = await timed(() =>
    run({
      args: ['-c', golden.configPath, '--log-format', 'json', ...golden.expected.command.split(' ')],
      env: place.env,
    }),
  );
  const { code, signal, stdout, stderr } = result;
  expect({ signal, stdout }).toEqual({ signal: null, stdout: '' });
  const log = parseLog(stderr);
  const newObjects = readObjects(place.storagePath);
  for (const [name, bytes] of objectsBefore) {
    expect(newObjects.get(name)?.equals(bytes), `${name} is in the storage as it was`).toBe(true);
    newObjects.delete(name);
  }
  expect(filesBelow(place.spoolPath)).toEqual([]);
  return {
    code,
    log,
    complaints: log.filter(({ level }) => level !== 'info'),
    before,
    after: await readLmdb(place.lmdbPath, { noSubdir: true }),
    newObjects,
    period,
  };
}

/** Fails for a line that is no record: a stack trace, a panic, what somebody printed. */
export function parseLog(stderr: string): readonly LogRecord[] {
  expect(stderr).not.toMatch(/^\s*at |\\n\s+at |panicked/m);
  return stderr
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as LogRecord);
}

export function readObjects(path: string): Map<string, Buffer> {
  return new Map(filesBelow(path).map((name) => [name, readFileSync(join(path, name))]));
}

/** Relative names; nothing when the directory is not there. */
function filesBelow(path: string): readonly string[] {
  if (!existsSync(path)) return [];
  return readdirSync(path, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(path.length + 1));
}

/** How a timestamp of the run is written in `expected.json`. */
const NOW = 'n'.repeat(16);

/**
 * Our LMDB in the shape of `expected.json`: a value that is right is shown as the one that is expected, also where it has a time of
 * the run, or is one of several that are right.
 */
export function comparable(
  { dbis }: LmdbContents,
  like: ExpectedDbis,
  { period, alternatives }: { period?: Period; alternatives?: Expected['alternatives'] } = {},
): ExpectedDbis {
  return Object.fromEntries(
    Object.entries(dbis).map(([name, { flags, entries }]) => {
      const { headers = true, entries: expected = [] } = like[name] ?? {};
      const wanted = new Map(expected);
      const shown = entries.map(([key, value]): HexEntry => {
        if (!headers) return [key, value];
        const masked = maskTxnId(value);
        const right = [wanted.get(key), ...(alternatives?.[name]?.[key] ?? [])];
        const isRight = right.some((one) => one !== undefined && isValue(masked, one, period));
        return [key, isRight ? (wanted.get(key) ?? masked) : masked];
      });
      return [name, { flags, headers, entries: shown }];
    }),
  );
}

function isValue(value: string, expected: string, period: Period | undefined): boolean {
  if (!expected.startsWith(NOW) || period === undefined) return value === expected;
  return (
    isWithin(BigInt(`0x${value.slice(0, 16)}`), period) && value.slice(16) === expected.slice(NOW.length)
  );
}

/** Bytes 8 to 16 of a header are the transaction that wrote it: each LMDB has its own. What is shorter is no header. */
export function maskTxnId(value: string): string {
  return value.length < 48 ? value : value.slice(0, 16) + '0'.repeat(16) + value.slice(32);
}

export function isShadow(dbi: string): boolean {
  return dbi.startsWith('_sync_shadow_');
}

/**
 * What is as before was not written again, and what is not bears the id of a transaction of this run. Returns how many were written.
 */
export function expectWrittenByUs({
  before,
  after,
  shadow = false,
}: Pick<Outcome, 'before' | 'after'> & {
  /** Only the shadows have headers; and the capture at the start may write what a merge puts back. */
  readonly shadow?: boolean;
}): number {
  let written = 0;
  const lastBefore = before?.lastTxnId ?? 0;
  for (const [name, { entries }] of Object.entries(after.dbis)) {
    if (shadow && !isShadow(name)) continue;
    const old = new Map(before?.dbis[name]?.entries);
    for (const [key, value] of entries) {
      const oldValue = old.get(key);
      if (oldValue === value) continue;
      if (!shadow && oldValue !== undefined && maskTxnId(oldValue) === maskTxnId(value)) {
        expect(value, `${name} ${key}`).toBe(oldValue);
        continue;
      }
      written++;
      const txnId = BigInt(`0x${value.slice(16, 32)}`);
      expect(txnId, `${name} ${key}`).toBeGreaterThan(BigInt(lastBefore));
      expect(txnId, `${name} ${key}`).toBeLessThanOrEqual(BigInt(after.lastTxnId));
    }
  }
  return written;
}
