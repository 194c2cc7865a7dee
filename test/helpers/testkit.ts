/**
 * The application's side of an LMDB: a process of its own that reads and writes records with headers, as PowerDNS does beside a
 * running daemon. It is built from native/testkit, on the same LMDB 0.9.24, so that it may share the environment.
 */
import { spawn, type ChildProcessByStdio } from 'node:child_process';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import { repositoryRoot } from './process.ts';

export interface TestkitOptions {
  /** The path is the data file itself. */
  readonly noSubdir?: boolean;
  /** 1 GiB when it creates the file. */
  readonly mapSizeBytes?: number;
  /** A command that runs the program given by its further arguments. */
  readonly wrapper?: readonly [string, ...string[]];
  /** Where the program is, as seen by `wrapper`. */
  readonly program?: string;
}

/** One record: application value without its header. */
export interface TestkitRecord {
  readonly value: string;
  readonly timestampNano: bigint;
  readonly deleted: boolean;
}

/** A change without headers; of a DUPSORT DBI, one duplicate. */
export interface PlainChange {
  readonly dbi: string;
  /** To create the DBI with, as in lmdb.h. */
  readonly flags?: number;
  /** Bytes are for keys that are no text. */
  readonly key: string | Buffer;
  readonly value?: string | Buffer;
  readonly remove?: boolean;
}

interface Pending {
  readonly resolve: (answer: Record<string, unknown>) => void;
  readonly reject: (error: Error) => void;
}

/** Keys and values are text here; the process gets them in hex. */
export class Testkit implements AsyncDisposable {
  readonly #child: ChildProcessByStdio<Writable, Readable, Readable>;
  readonly #pending: Pending[] = [];
  readonly #exited: Promise<void>;
  #stderr = '';

  constructor(path: string, options: TestkitOptions = {}) {
    const program = options.program ?? testkitPath();
    const [command, ...args]: [string, ...string[]] =
      options.wrapper === undefined ? [program, path] : [...options.wrapper, program, path];
    if (options.noSubdir === true) args.push('--no-subdir');
    if (options.mapSizeBytes !== undefined) args.push(`--map-size=${options.mapSizeBytes}`);
    this.#child = spawn(command, args, { stdio: ['pipe', 'pipe', 'pipe'], detached: true });
    this.#child.stderr.setEncoding('utf8').on('data', (text: string) => {
      this.#stderr += text;
    });
    createInterface({ input: this.#child.stdout }).on('line', (line) => {
      const pending = this.#pending.shift();
      const answer = JSON.parse(line) as Record<string, unknown>;
      if (typeof answer['error'] === 'string') pending?.reject(new Error(`testkit: ${answer['error']}`));
      else pending?.resolve(answer);
    });
    this.#child.stdin.on('error', () => undefined);
    this.#exited = new Promise((resolve) => {
      const end = (why: string): void => {
        for (const pending of this.#pending.splice(0))
          pending.reject(new Error(`testkit ${why}: ${this.#stderr.trim()}`));
        resolve();
      };
      this.#child.once('error', (error) => end(`not started (run \`make tools\`): ${error.message}`));
      this.#child.once('close', () => end('ended'));
    });
  }

  /** Resolves when the commit is done. `timestampNano` is now by default. */
  async put(
    dbi: string,
    key: string,
    value: string,
    options: { timestampNano?: bigint } = {},
  ): Promise<void> {
    await this.call({ op: 'put', dbi, key: hex(key), value: hex(value), ...timestamp(options) });
  }

  /** Leaves a deletion marker. */
  async delete(dbi: string, key: string, options: { timestampNano?: bigint } = {}): Promise<void> {
    await this.call({ op: 'delete', dbi, key: hex(key), ...timestamp(options) });
  }

  /** Undefined when there is no such key or DBI; a deleted record has an empty value. */
  async get(dbi: string, key: string): Promise<TestkitRecord | undefined> {
    const answer = await this.call({ op: 'get', dbi, key: hex(key) });
    if (answer['found'] !== true) return undefined;
    return {
      value: Buffer.from(String(answer['value']), 'hex').toString(),
      timestampNano: BigInt(String(answer['timestamp'])),
      deleted: answer['deleted'] === true,
    };
  }

  /** One transaction of an application that knows nothing of headers. */
  async plain(...changes: readonly PlainChange[]): Promise<void> {
    const entries = changes.map(({ key, value = '', ...rest }) => ({
      ...rest,
      key: hex(key),
      value: hex(value),
    }));
    await this.call({ op: 'plain', entries });
  }

  /** The DBIs without headers that the application knows, or with `shadows` the others: `key = value` as text, or hexadecimal. */
  async plainDump(
    options: { readonly shadows?: boolean; readonly encoding?: 'utf8' | 'hex' } = {},
  ): Promise<Record<string, readonly string[]>> {
    const { shadows = false, encoding = 'utf8' } = options;
    const { dbis } = (await this.call({ op: 'plaindump' })) as {
      dbis: Record<string, { entries: readonly (readonly [string, string])[] }>;
    };
    return Object.fromEntries(
      Object.entries(dbis)
        .filter(([name]) => name.startsWith('_sync') === shadows)
        .map(([name, { entries }]) => [
          name,
          entries.map((pair) => pair.map((part) => Buffer.from(part, 'hex').toString(encoding)).join(' = ')),
        ]),
    );
  }

  /** Adds records that look like those of PowerDNS' `records_v5`; with `deletedEvery` n, every n-th is a deletion from 1970. */
  async fill(records: number, options: { deletedEvery?: number; plain?: boolean } = {}): Promise<void> {
    await this.call({ op: 'fill', count: records, ...options });
  }

  /** Gives this part of the filled records a newer timestamp and another value; or, with `keepValue`, the same one. */
  async touch(fraction: number, options: { keepValue?: boolean; plain?: boolean } = {}): Promise<void> {
    await this.call({ op: 'touch', fraction, ...options });
  }

  /** Hash of all records, the local transaction ids left out: equal where two databases agree. `plain`: of the application's, without headers. */
  async digest(options: { plain?: boolean } = {}): Promise<string> {
    return String((await this.call({ op: 'digest', ...options }))['digest']);
  }

  /** Keeps taking the write lock for so long; the longest time it had to wait for it. */
  async longestLockWaitMs(durationMs: number): Promise<number> {
    const answer = await this.call({ op: 'lockloop', durationMs: Math.ceil(durationMs) });
    return Number(answer['longestWaitNs']) / 1e6;
  }

  /** One request, one answer. */
  call(request: Readonly<Record<string, unknown>>): Promise<Record<string, unknown>> {
    return new Promise((resolve, reject) => {
      this.#pending.push({ resolve, reject });
      this.#child.stdin.write(`${JSON.stringify(request)}\n`);
    });
  }

  /** Ends the process and waits for that. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.stdin.end();
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), 5000);
    await this.#exited;
    clearTimeout(timer);
  }
}

/** The program. */
export function testkitPath(): string {
  return join(
    process.env['CARGO_TARGET_DIR'] || join(repositoryRoot, 'target'),
    'release',
    'lightningstream-testkit',
  );
}

function hex(text: string | Buffer): string {
  return (typeof text === 'string' ? Buffer.from(text) : text).toString('hex');
}

function timestamp(options: { timestampNano?: bigint }): { timestamp?: string } {
  return options.timestampNano === undefined ? {} : { timestamp: String(options.timestampNano) };
}
