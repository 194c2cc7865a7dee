/** Time from a commit on one instance until the value can be read on another, both quiet. */
import { mkdirSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { start, tempDir, until, type Running } from '../helpers/process.ts';
import { Testkit } from '../helpers/testkit.ts';
import { quantile, type Program } from './measure.ts';

const RECORDS = 10_000;
const DBI = 'latency';

export interface DaemonOptions {
  readonly program: Program;
  /** The section `storage` of the configuration. */
  readonly storage: object;
  /** Both poll intervals; the defaults when not given. */
  readonly pollIntervalMs?: number;
}

/** Two LMDBs of 10 k records, each with its daemon, on one storage. */
export class Pair implements AsyncDisposable {
  readonly #a: Testkit;
  readonly #b: Testkit;
  readonly #quietMs: number;
  readonly #stack: AsyncDisposableStack;
  #count = 0;

  private constructor(a: Testkit, b: Testkit, quietMs: number, stack: AsyncDisposableStack) {
    this.#a = a;
    this.#b = b;
    this.#quietMs = quietMs;
    this.#stack = stack;
  }

  /** Resolves when both hold the same. */
  static async start(options: DaemonOptions): Promise<Pair> {
    await using stack = new AsyncDisposableStack();
    const dir = stack.use(await tempDir('lightningstream-latency-', process.env['BENCH_DIR']));
    const [databaseA, databaseB] = [dir.join('a.mdb'), dir.join('b.mdb')];
    const a = stack.use(new Testkit(databaseA, { noSubdir: true }));
    const b = stack.use(new Testkit(databaseB, { noSubdir: true }));
    await a.fill(RECORDS);
    await b.put(DBI, 'begin', 'x');
    stack.use(await startDaemon(options, dir.join('a'), databaseA));
    stack.use(await startDaemon(options, dir.join('b'), databaseB));
    await until(async () => (await a.get(DBI, 'begin'))?.value, {
      what: 'A has what B wrote',
      timeoutMs: 60_000,
    });
    const digest = await a.digest();
    await until(async () => (await b.digest()) === digest, {
      what: 'B has all records',
      timeoutMs: 60_000,
    });
    return new Pair(a, b, 1.5 * (options.pollIntervalMs ?? 1000), stack.move());
  }

  /** One commit, after a quiet time that is longer than the poll intervals and in step with nobody's; ms until B has it. */
  async sample(): Promise<number> {
    await delay(this.#quietMs * (1 + Math.random()));
    this.#count += 1;
    const value = `value ${this.#count}`;
    await this.#a.put(DBI, 'probe', value);
    const committedMs = performance.now();
    await until(async () => (await this.#b.get(DBI, 'probe'))?.value === value, {
      what: `B has ${value}`,
      timeoutMs: 60_000,
      intervalMs: 1,
    });
    return performance.now() - committedMs;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync();
  }
}

/** In a directory of its own, which is also the instance's name. */
export async function startDaemon(options: DaemonOptions, dir: string, database: string): Promise<Running> {
  mkdirSync(dir, { recursive: true });
  const config = {
    instance: dir.slice(dir.lastIndexOf('/') + 1),
    ...(options.pollIntervalMs === undefined
      ? {}
      : {
          lmdb_poll_interval: `${options.pollIntervalMs}ms`,
          storage_poll_interval: `${options.pollIntervalMs}ms`,
        }),
    lmdbs: {
      main: {
        path: database,
        schema_tracks_changes: true,
        options: { no_subdir: true, create: true },
      },
    },
    storage: options.storage,
  };
  return await start({
    command: options.program.file,
    args: ['sync'],
    // JSON is YAML.
    config: JSON.stringify(config),
    cwd: dir,
    env: { CACHE_DIRECTORY: dir },
  });
}

export const LATENCY_HEAD: readonly string[] = ['median', 'p99', 'worst'];

/** Below {@link LATENCY_HEAD}. */
export function latencyCells(delaysMs: readonly number[]): string[] {
  return [quantile(delaysMs, 0.5), quantile(delaysMs, 0.99), Math.max(...delaysMs)].map(
    (ms) => `${ms.toFixed(0)} ms`,
  );
}
