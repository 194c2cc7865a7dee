/**
 * Reads and writes LMDBs with a second implementation, node-lmdb (LMDB 0.9.70), so that our own code is not checked by itself.
 *
 * Its lock file has another format than that of LMDB 0.9.24: use it on environments that nobody has open. It works in a child
 * process (one process must not open an environment twice), and the lock file is removed afterwards.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';

/** `[key hex, value hex]`, in LMDB's order. */
export type HexEntry = readonly [key: string, value: string];

export interface DbiContents {
  /** Persistent flags as in lmdb.h: REVERSEKEY 0x02, DUPSORT 0x04, INTEGERKEY 0x08, DUPFIXED 0x10, INTEGERDUP 0x20, REVERSEDUP 0x40. */
  readonly flags: number;
  readonly entries: readonly HexEntry[];
}

export interface LmdbContents {
  readonly lastTxnId: number;
  readonly mapSizeBytes: number;
  readonly dbis: Readonly<Record<string, DbiContents>>;
}

/** One write transaction: DBIs are created with their flags, entries put, keys removed. */
export interface LmdbWrite {
  readonly mapSizeBytes?: number;
  readonly dbis: Readonly<
    Record<
      string,
      { readonly flags?: number; readonly entries?: readonly HexEntry[]; readonly remove?: readonly string[] }
    >
  >;
}

export interface LmdbFileOptions {
  /** `path` is the data file; by default a directory with `data.mdb`. */
  readonly noSubdir?: boolean;
}

/** What the child gets on its standard input. */
export type LmdbRequest = { readonly module: string; readonly path: string; readonly noSubdir: boolean } & (
  { readonly op: 'read' } | ({ readonly op: 'write' } & LmdbWrite)
);

/** Everything in the environment, byte for byte. */
export async function readLmdb(path: string, options: LmdbFileOptions = {}): Promise<LmdbContents> {
  return (await call({
    op: 'read',
    module: nodeLmdb(),
    path,
    noSubdir: options.noSubdir ?? false,
  })) as LmdbContents;
}

/** Writes in one transaction; creates the environment when it does not exist. */
export async function writeLmdb(
  path: string,
  write: LmdbWrite,
  options: LmdbFileOptions = {},
): Promise<void> {
  await call({ op: 'write', module: nodeLmdb(), path, noSubdir: options.noSubdir ?? false, ...write });
}

/**
 * Keeps the environment open, in a child process, until disposed of: to everybody else, who knows only LMDB 0.9.x, its lock file then is
 * that of another version.
 */
export async function holdLmdb(path: string, options: LmdbFileOptions = {}): Promise<AsyncDisposable> {
  const child = spawn(
    process.execPath,
    [join(import.meta.dirname, 'lmdb-hold-child.ts'), nodeLmdb(), path, String(options.noSubdir ?? false)],
    { stdio: ['pipe', 'pipe', 'inherit'] },
  );
  const ended = new Promise<void>((resolve) => child.once('close', () => resolve()));
  const opened = await Promise.race([once(child.stdout, 'data'), ended]);
  if (opened === undefined) throw new Error(`node-lmdb could not open ${path}`);
  return {
    async [Symbol.asyncDispose]() {
      child.stdin.end();
      await ended;
    },
  };
}

/** False where no C++ compiler was there to build it: `describe.skipIf(!hasNodeLmdb())`. */
export function hasNodeLmdb(): boolean {
  return existsSync(join(nodeLmdbDirectory(), 'complete'));
}

function nodeLmdb(): string {
  if (!hasNodeLmdb()) throw new Error('node-lmdb is not built: run `make tools`');
  return join(nodeLmdbDirectory(), 'node_modules', 'node-lmdb');
}

/** As in build/node-lmdb.sh. */
function nodeLmdbDirectory(): string {
  const tool = join(import.meta.dirname, '..', 'tools', 'node-lmdb', 'package.json');
  const { dependencies } = JSON.parse(readFileSync(tool, 'utf8')) as { dependencies: Record<string, string> };
  const cache = process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache');
  const name = `node-lmdb-${dependencies['node-lmdb'] ?? ''}-${process.version}-${process.arch}`;
  return join(cache, 'lightningstream-ts', name);
}

function call(request: LmdbRequest): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [join(import.meta.dirname, 'lmdb-child.ts')], {
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    const stdout: Buffer[] = [];
    const stderr: Buffer[] = [];
    child.stdout.on('data', (chunk: Buffer) => stdout.push(chunk));
    child.stderr.on('data', (chunk: Buffer) => stderr.push(chunk));
    child.once('error', reject);
    child.once('close', (code) => {
      if (code === 0) resolve(JSON.parse(Buffer.concat(stdout).toString()));
      else
        reject(
          new Error(`node-lmdb ${request.op} ${request.path}: ${Buffer.concat(stderr).toString().trim()}`),
        );
    });
    child.stdin.end(JSON.stringify(request));
  });
}
