import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { parseConfig } from '../../src/config/index.ts';
import type { Config } from '../../src/config/types.ts';
import { createHealth, type Health } from '../../src/observability/health.ts';
import { createMetrics, type Metrics } from '../../src/observability/metrics.ts';
import { buildSnapshotName } from '../../src/snapshot/name.ts';
import { Spool } from '../../src/snapshot/spool.ts';
import { MemoryStorage } from '../../src/storage/memory.ts';
import type { CallOptions, Storage, StorageObject } from '../../src/storage/storage.ts';
import { type Clock, systemClock } from '../../src/sync/wait.ts';
import { flock } from '../helpers/flock.ts';
import { recordLog } from '../helpers/log-recorder.ts';
import { type TempDir, tempDir } from '../helpers/process.ts';

/** A point in time with a name; later numbers are later. */
export function at(second: number): bigint {
  return BigInt(Date.UTC(2026, 0, 1)) * 1_000_000n + BigInt(second) * 1_000_000_000n;
}

export function name(instance: string, second: number, database = 'main'): string {
  return buildSnapshotName({ database, instance, timestamp: at(second) });
}

/** The configuration that this YAML gives; intervals are short, so that nothing has to be waited for. */
export function config(extra = '', lmdbs = 'main: {path: /nonexistent}'): Config {
  const text = [
    'instance: self',
    'storage_poll_interval: 100ms',
    'storage_retry_interval: 100ms',
    'lmdb_poll_interval: 100ms',
    'lmdb_scrape_smaps: false',
    'health:',
    '  storage_list: {warn_duration: 0s, error_duration: 0s}',
    '  storage_load: {warn_duration: 0s, error_duration: 0s}',
    '  storage_store: {warn_duration: 0s, error_duration: 0s}',
    `lmdbs: {${lmdbs}}`,
    'storage: {type: memory}',
  ].filter((line) => !extra.split('\n').some((other) => other.startsWith(`${line.split(':')[0] ?? ''}:`)));
  return parseConfig(`${text.join('\n')}\n${extra}\n`, 'test.yaml').config;
}

/** A clock that goes on by itself, and further when told. */
export function adjustableClock(): Clock & { advance(ms: number): void } {
  let extraMs = 0;
  return {
    monotonicMs: () => systemClock.monotonicMs() + extraMs,
    wallNano: () => systemClock.wallNano() + BigInt(extraMs) * 1_000_000n,
    advance: (ms) => (extraMs += ms),
  };
}

/** A storage whose calls can be made to fail or to wait; everything else is what the real one does. */
export class TroubledStorage implements Storage {
  readonly type = 'memory';
  readonly location = 'memory';
  /** Thrown by the calls of this operation, while set; a load has written something by then. */
  readonly failure: { list?: Error | undefined; load?: Error | undefined; store?: Error | undefined } = {};
  /** Awaited before each call, while set. */
  readonly gate: {
    list?: Promise<void> | undefined;
    load?: Promise<void> | undefined;
    store?: Promise<void> | undefined;
  } = {};
  /** Calls, as `load NAME`. */
  readonly calls: string[] = [];
  readonly watch = (onChange: () => void): (() => void) => this.#inner.watch(onChange);
  readonly #inner: MemoryStorage;

  constructor(inner: MemoryStorage) {
    this.#inner = inner;
  }

  async list(prefix: string, options: CallOptions): Promise<readonly StorageObject[]> {
    this.calls.push(`list ${prefix}`);
    await passed(this.gate.list, options.signal);
    if (this.failure.list !== undefined) throw this.failure.list;
    return this.#inner.list(prefix, options);
  }

  async load(object: string, toPath: string, options: CallOptions): Promise<number> {
    this.calls.push(`load ${object}`);
    await passed(this.gate.load, options.signal);
    const failure = this.failure.load;
    if (failure !== undefined) {
      await writeFile(toPath, 'what came before the connection br');
      throw failure;
    }
    return this.#inner.load(object, toPath, options);
  }

  async store(object: string, fromPath: string, options: CallOptions): Promise<void> {
    this.calls.push(`store ${object}`);
    await passed(this.gate.store, options.signal);
    if (this.failure.store !== undefined) throw this.failure.store;
    await this.#inner.store(object, fromPath, options);
  }

  delete(object: string, options: CallOptions): Promise<void> {
    return this.#inner.delete(object, options);
  }

  close(): Promise<void> {
    return this.#inner.close();
  }
}

/** The end of the gate's promise, or of the signal. */
async function passed(gate: Promise<void> | undefined, signal: AbortSignal): Promise<void> {
  if (gate === undefined) return;
  const aborted = new Promise<never>((_, reject) =>
    signal.addEventListener('abort', () => reject(signal.reason as Error), { once: true }),
  );
  await Promise.race([gate, aborted]);
}

/** What a syncer or a receiver needs around it, with a storage in memory. */
export interface Surroundings extends AsyncDisposable {
  readonly dir: TempDir;
  readonly spool: Spool;
  /** What others see and do. */
  readonly objects: MemoryStorage;
  /** What the tested part gets. */
  readonly storage: TroubledStorage;
  readonly health: Health;
  readonly metrics: Metrics;
  readonly log: ReturnType<typeof recordLog>;
  readonly abort: AbortController;
  put(object: string, content: Uint8Array | string): Promise<void>;
  /** Value of a metric with these labels. */
  metric(line: string): Promise<number | undefined>;
}

export async function surroundings(): Promise<Surroundings> {
  const dir = await tempDir();
  const log = recordLog();
  const objects = new MemoryStorage();
  const metrics = createMetrics({ scrapeSmaps: false });
  const spool = Spool.open({
    configured: dir.join('spool'),
    cacheDirectory: undefined,
    temporaryDirectory: dir.path,
    tryLock: flock,
    logger: log.logger,
  });
  return {
    dir,
    spool,
    objects,
    storage: new TroubledStorage(objects),
    health: createHealth(Date.now),
    metrics,
    log,
    abort: new AbortController(),
    async put(object, content) {
      const path = join(dir.path, `put-${object}`);
      await writeFile(path, content);
      await objects.store(object, path, { signal: new AbortController().signal });
      await rm(path);
    },
    async metric(line) {
      const found = (await metrics.page()).text.split('\n').find((each) => each.startsWith(`${line} `));
      return found === undefined ? undefined : Number(found.slice(line.length + 1));
    },
    async [Symbol.asyncDispose]() {
      await spool.close();
      await dir[Symbol.asyncDispose]();
    },
  };
}

/** One record of a snapshot; a time in ns. */
export interface TestEntry {
  readonly key: string;
  readonly value: string;
  readonly timestampNano: bigint;
  readonly deleted?: boolean;
}

/** A snapshot object, encoded by hand after the protobuf schema of Lightning Stream (snapshot.proto). */
export function snapshot(
  dbis: Readonly<Record<string, readonly TestEntry[]>>,
  options: { compatVersion?: number; timestampNano?: bigint } = {},
): Uint8Array {
  const databases = Object.entries(dbis).map(([dbi, entries]) =>
    bytes(3, [
      bytes(1, [Buffer.from(dbi)]),
      ...entries.map((entry) =>
        bytes(2, [
          bytes(1, [Buffer.from(entry.key)]),
          bytes(2, [Buffer.from(entry.value)]),
          fixed64(3, entry.timestampNano),
          entry.deleted === true ? varint(4, 1) : Buffer.alloc(0),
        ]),
      ),
    ]),
  );
  return gzipSync(
    Buffer.concat([
      varint(1, 3),
      varint(4, options.compatVersion ?? 1),
      bytes(2, [bytes(2, [Buffer.from('other')]), fixed64(5, options.timestampNano ?? 0n)]),
      ...databases,
    ]),
  );
}

function varint(field: number, value: number): Buffer {
  return Buffer.from([...leb(field << 3), ...leb(value)]);
}

function fixed64(field: number, value: bigint): Buffer {
  const buffer = Buffer.alloc(8);
  buffer.writeBigUInt64LE(value);
  return Buffer.concat([Buffer.from(leb((field << 3) | 1)), buffer]);
}

function bytes(field: number, parts: readonly Buffer[]): Buffer {
  const content = Buffer.concat(parts);
  return Buffer.concat([Buffer.from([...leb((field << 3) | 2), ...leb(content.length)]), content]);
}

function leb(value: number): number[] {
  const out: number[] = [];
  for (let rest = value; ; rest >>>= 7) {
    if (rest < 0x80) return [...out, rest];
    out.push((rest & 0x7f) | 0x80);
  }
}
