/**
 * Real daemons with an application beside each, on one storage directory:
 *
 *     await using net = await cluster(['a', 'b']);
 *     await net.start();
 *     await net.instance('a').app.put(DBI, 'key', 'value');
 *     await net.instance('b').has('key', 'value');
 */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { formatNameTimestamp } from '../../src/snapshot/name.ts';
import type { HealthReport } from '../../src/observability/health.ts';
import {
  type Finished,
  freePort,
  launcher,
  run,
  type Running,
  start,
  type TempDir,
  tempDir,
  until,
} from '../helpers/process.ts';
import { Testkit, type TestkitOptions } from '../helpers/testkit.ts';

/** The DBI that tests write to when it does not matter which. Not a name of PowerDNS: those tell of a schema. */
export const DBI = 'entries';
/** What lets root pass over file modes. Without it, and being the owner, it is like everybody: no other user needs to get at the checkout. */
const OVERRIDES = '-dac_override,-dac_read_search';
export const isRoot = process.geteuid?.() === 0;

type Settings = { readonly [key: string]: unknown };

export interface LogEntry {
  readonly level: string;
  readonly msg: string;
  readonly [field: string]: unknown;
}

export interface RunOptions {
  /** Merged into the instance's configuration for this run. */
  readonly config?: Settings;
  /** `sync` by default; with its flags. */
  readonly args?: readonly string[];
  /** File modes apply to it, even when the tests run as root. */
  readonly unprivileged?: boolean;
  /** A command that runs the program given by its further arguments. */
  readonly wrapper?: readonly string[];
}

/** One daemon, its LMDB, and the application that writes to it. */
export class Instance implements AsyncDisposable {
  readonly name: string;
  readonly directory: string;
  /** The data file. */
  readonly lmdbPath: string;
  readonly spoolPath: string;
  readonly address: string;
  readonly #config: Settings;
  #app: Testkit | undefined;
  #daemon: Running | undefined;

  constructor(name: string, directory: string, storagePath: string, port: number, config: Settings) {
    this.name = name;
    this.directory = directory;
    this.lmdbPath = join(directory, 'main.mdb');
    this.spoolPath = join(directory, 'spool');
    this.address = `127.0.0.1:${port}`;
    mkdirSync(this.spoolPath, { recursive: true });
    const lmdb = {
      path: this.lmdbPath,
      schema_tracks_changes: true,
      options: { no_subdir: true, create: true },
    };
    this.#config = patched(
      {
        instance: name,
        lmdbs: { main: lmdb },
        storage: { type: 'fs', options: { root_path: storagePath } },
        spool_dir: this.spoolPath,
        http: { address: this.address },
        log: { level: 'debug', format: 'json' },
        lmdb_poll_interval: '100ms',
        storage_poll_interval: '100ms',
        storage_retry_interval: '100ms',
      },
      config,
    );
  }

  /** The application; its process starts with the first use. */
  get app(): Testkit {
    this.#app ??= new Testkit(this.lmdbPath, { noSubdir: true });
    return this.#app;
  }

  /** Another application process in the place of the present one. */
  async restartApp(options: TestkitOptions = {}): Promise<Testkit> {
    await this.#app?.[Symbol.asyncDispose]();
    this.#app = new Testkit(this.lmdbPath, { noSubdir: true, ...options });
    return this.#app;
  }

  async stopApp(): Promise<void> {
    await this.#app?.[Symbol.asyncDispose]();
    this.#app = undefined;
  }

  get daemon(): Running {
    if (this.#daemon === undefined) throw new Error(`${this.name} was not started`);
    return this.#daemon;
  }

  async start(options: RunOptions = {}): Promise<Running> {
    await this.#daemon?.[Symbol.asyncDispose]();
    this.#daemon = await start(this.#startOptions(options));
    return this.#daemon;
  }

  /** Runs to the end, as `--only-once` does. */
  async run(options: RunOptions = {}): Promise<Finished> {
    return run(this.#startOptions(options));
  }

  /** SIGTERM; the exit must be clean. */
  async stop(): Promise<Finished> {
    const finished = await this.daemon.stop();
    if (finished.code !== 0) {
      throw new Error(`${this.name} ended with ${finished.code ?? finished.signal}: ${finished.stderr}`);
    }
    return finished;
  }

  /** SIGKILL, and waits for the end. */
  async kill(): Promise<void> {
    this.daemon.kill('SIGKILL');
    await this.daemon.exited;
  }

  /** The daemon's log; of an ended run when `stderr` is given. */
  log(stderr = this.daemon.stderr()): LogEntry[] {
    return stderr
      .split('\n')
      .filter((line) => line.startsWith('{'))
      .map((line) => JSON.parse(line) as LogEntry);
  }

  /** Waits for a log line with this message for which `condition` holds. */
  async logged(
    message: string,
    condition: (entry: LogEntry) => boolean = () => true,
    timeoutMs = 15_000,
  ): Promise<LogEntry> {
    const find = (): LogEntry | undefined =>
      this.log().find((entry) => entry.msg === message && condition(entry));
    try {
      return await until(find, { what: `${this.name} logs ${message}`, timeoutMs });
    } catch (error) {
      throw new Error(`${String(error)}\n${this.daemon.stderr().split('\n').slice(-40).join('\n')}`, {
        cause: error,
      });
    }
  }

  async page(path: string): Promise<{ readonly status: number; readonly body: string }> {
    const response = await fetch(`http://${this.address}${path}`);
    return { status: response.status, body: await response.text() };
  }

  async health(): Promise<HealthReport & { readonly httpStatus: number }> {
    const { status, body } = await this.page('/healthz');
    return { ...(JSON.parse(body) as HealthReport), httpStatus: status };
  }

  /** Waits until `/healthz` answers so that `condition` holds. */
  async healthy(
    what: string,
    condition: (health: HealthReport & { readonly httpStatus: number }) => boolean,
    timeoutMs = 15_000,
  ): Promise<HealthReport> {
    let last: HealthReport | undefined;
    try {
      return await until(
        async () => {
          const health = await this.health();
          last = health;
          return condition(health) ? health : undefined;
        },
        { what: `health of ${this.name}: ${what}`, timeoutMs },
      );
    } catch (error) {
      const seen = JSON.stringify({ failures: last?.failures, warnings: last?.warnings });
      throw new Error(`${String(error)}; last seen ${seen}`, { cause: error });
    }
  }

  /** Waits until the daemon answers and has nothing to complain about. */
  async ok(timeoutMs = 15_000): Promise<void> {
    await this.healthy(
      'all well',
      ({ httpStatus, has_warnings }) => httpStatus === 200 && !has_warnings,
      timeoutMs,
    );
  }

  /** Waits until the application can read the value. */
  async has(key: string, value: string, timeoutMs = 30_000): Promise<void> {
    const what = `${this.name} has ${key} = ${value.slice(0, 40)}`;
    try {
      await until(async () => (await this.app.get(DBI, key))?.value === value, { what, timeoutMs });
    } catch (error) {
      const lines = this.#daemon?.stderr().split('\n').slice(-12).join('\n') ?? 'no daemon';
      throw new Error(`${String(error)}; at ${new Date().toISOString()} its log ended with\n${lines}`, {
        cause: error,
      });
    }
  }

  /** Sum of a metric over its labels. */
  async metric(name: string): Promise<number> {
    const { body } = await this.page('/metrics');
    const lines = body
      .split('\n')
      .filter((line) => line.startsWith(`${name} `) || line.startsWith(`${name}{`));
    return lines.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' ') + 1)), 0);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#daemon?.[Symbol.asyncDispose]();
    await this.#app?.[Symbol.asyncDispose]();
  }

  #startOptions({ config = {}, args = ['sync'], unprivileged = false, wrapper = [] }: RunOptions): {
    args: string[];
    command: string;
    cwd: string;
    env: Record<string, string>;
  } {
    const path = join(this.directory, 'lightningstream.yaml');
    // YAML that needs no library of its own: JSON is a part of it.
    writeConfig(path, patched(this.#config, config));
    const dropped =
      unprivileged && isRoot ? ['setpriv', `--bounding-set=${OVERRIDES}`, `--inh-caps=${OVERRIDES}`] : [];
    const [command = launcher, ...rest] = [...wrapper, ...dropped, launcher, '-c', path, ...args];
    return { command, args: rest, cwd: this.directory, env: { TMPDIR: this.spoolPath } };
  }
}

export interface Cluster extends AsyncDisposable {
  readonly directory: string;
  readonly storagePath: string;
  readonly instances: readonly Instance[];
  instance(name: string): Instance;
  /** Starts all daemons. */
  start(options?: RunOptions): Promise<void>;
  /** Names of all files in the storage, unfinished ones included. */
  objects(instance?: string): string[];
  /** Puts an object into the storage as another program would: it appears whole. */
  upload(name: string, content: Uint8Array): Promise<void>;
}

/** Instances `a`, `b`, … of one storage; `config` is merged into the configuration of all. */
export async function cluster(names: number | readonly string[], config: Settings = {}): Promise<Cluster> {
  const list = typeof names === 'number' ? 'abcdefgh'.slice(0, names).split('') : names;
  const directory: TempDir = await tempDir('lightningstream-e2e-');
  const storagePath = directory.join('storage');
  mkdirSync(storagePath);
  const instances: Instance[] = [];
  for (const name of list) {
    instances.push(new Instance(name, directory.join(name), storagePath, await freePort(), config));
  }
  return {
    directory: directory.path,
    storagePath,
    instances,
    instance(name) {
      const found = instances.find((instance) => instance.name === name);
      if (found === undefined) throw new Error(`no instance ${name}`);
      return found;
    },
    async start(options) {
      await Promise.all(instances.map((instance) => instance.start(options)));
      await Promise.all(instances.map((instance) => instance.ok()));
    },
    objects(instance) {
      const all = readdirSync(storagePath).sort();
      return instance === undefined ? all : all.filter((name) => name.split('__')[1] === instance);
    },
    async upload(name, content) {
      const unfinished = join(storagePath, `${name}.upload.tmp`);
      await writeFile(unfinished, content);
      await rename(unfinished, join(storagePath, name));
    },
    async [Symbol.asyncDispose]() {
      await Promise.all(instances.map((instance) => instance[Symbol.asyncDispose]()));
      await directory[Symbol.asyncDispose]();
    },
  };
}

/** An object name of `instance`; now by default. */
export function objectName(
  instance: string,
  options: { readonly database?: string; readonly timestampNano?: bigint } = {},
): string {
  const { database = 'main', timestampNano = BigInt(Date.now()) * 1_000_000n } = options;
  return `${database}__${instance}__${formatNameTimestamp(timestampNano)}__GX.pb.gz`;
}

/** Files below the spool directory, `lock` files excluded. */
export function spoolFiles(instance: Instance): string[] {
  return readdirSync(instance.spoolPath, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && entry.name !== 'lock')
    .map((entry) => entry.name);
}

/** Private spool directories, whoever they belong to. */
export function spoolDirectories(instance: Instance): string[] {
  return readdirSync(instance.spoolPath).filter((name) => name.startsWith('lightningstream-spool-'));
}

/** Anonymous memory of a process, MiB; the peak of all looks taken until `stop`. */
export function watchMemory(pid: number): { stop(): number } {
  let peakMib = 0;
  const look = (): void => {
    const status = readFileSync(`/proc/${pid}/status`, 'utf8');
    const match = /^RssAnon:\s+(\d+) kB$/m.exec(status);
    peakMib = Math.max(peakMib, Number(match?.[1] ?? 0) / 1024);
  };
  look();
  const timer = setInterval(look, 5);
  return {
    stop() {
      clearInterval(timer);
      look();
      return peakMib;
    },
  };
}

/** A record of the failure with the means to repeat it. */
export async function seeded<T>(seed: number, body: () => Promise<T>): Promise<T> {
  try {
    return await body();
  } catch (error) {
    throw new Error(`seed ${seed} (repeat with E2E_SEED=${seed}): ${String(error)}`, { cause: error });
  }
}

/** The seed of this run: from E2E_SEED, or a new one. */
export function newSeed(): number {
  return Number(process.env['E2E_SEED'] || Math.floor(Math.random() * 2 ** 32));
}

/** Repeatable pseudo-random numbers (mulberry32). */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** 0 ≤ n < bound. */
  below(bound: number): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(this.#state ^ (this.#state >>> 15), this.#state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * bound);
  }

  pick<T>(from: readonly T[]): T {
    return from[this.below(from.length)] as T;
  }

  /** Another generator, whose numbers do not depend on how many are taken here. */
  fork(): Random {
    return new Random(this.below(2 ** 32));
  }
}

function writeConfig(path: string, config: Settings): void {
  writeFileSync(path, `${JSON.stringify(config, null, 2)}\n`, { mode: 0o644 });
}

/** `patch` over `base`, objects within each other; `undefined` removes a key. */
function patched(base: Settings, patch: Settings): Settings {
  const result: Record<string, unknown> = { ...base };
  for (const [key, value] of Object.entries(patch)) {
    const old = result[key];
    if (value === undefined) delete result[key];
    else if (isSettings(value) && isSettings(old)) result[key] = patched(old, value);
    else result[key] = value;
  }
  return result;
}

function isSettings(value: unknown): value is Settings {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
