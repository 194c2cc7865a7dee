/** What the benchmarks have in common that make their databases of so many records: one run of a program on an LMDB and a directory. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { run } from '../helpers/process.ts';
import { Testkit } from '../helpers/testkit.ts';
import { type Command, type Measurement, median, type Program } from './measure.ts';

export const MAP_SIZE_BYTES = 8 * 1024 ** 3;

/** Numbers of records, from BENCH_SIZES. */
export function sizes(byDefault: string): number[] {
  return (process.env['BENCH_SIZES'] || byDefault).split(',').map((text) => {
    const match = /^(\d+)([km]?)$/i.exec(text.trim());
    if (match === null) throw new Error(`BENCH_SIZES: "${text}" is no size (100k, 1m)`);
    const unit = { '': 1, k: 1000, m: 1_000_000 }[(match[2] ?? '').toLowerCase()] ?? 1;
    return Number(match[1]) * unit;
  });
}

/** `10 M` */
export function label(records: number): string {
  if (records % 1_000_000 === 0) return `${records / 1_000_000} M`;
  return records % 1000 === 0 ? `${records / 1000} k` : String(records);
}

export interface Job {
  readonly program: Program;
  readonly command: 'sync' | 'receive';
  readonly database: string;
  readonly storage: string;
  readonly instance: string;
  /** The application writes headers itself; else shadow mode. */
  readonly native: boolean;
}

export function commandOf(dir: string, job: Job): Command {
  mkdirSync(job.storage, { recursive: true });
  const config = join(dir, 'lightningstream.yaml');
  writeFileSync(
    config,
    // The shortest intervals: what is measured is work, not waiting for the next look.
    `instance: ${job.instance}
lmdb_poll_interval: 100ms
storage_poll_interval: 100ms
lmdbs:
  main:
    path: ${job.database}
    schema_tracks_changes: ${job.native}
    options:
      no_subdir: true
      create: true
      map_size: ${MAP_SIZE_BYTES}
storage:
  type: fs
  options:
    root_path: ${job.storage}
`,
  );
  return {
    file: job.program.file,
    args: ['-c', config, job.command, '--only-once'],
    env: { CACHE_DIRECTORY: dir },
  };
}

/** Runs it without measuring. */
export async function execute(dir: string, job: Job): Promise<void> {
  const { file, args, env } = commandOf(dir, job);
  const { code, stderr } = await run({ command: file, args, env, timeoutMs: 600_000 });
  if (code !== 0)
    throw new Error(
      `${job.program.name} ${job.command}: exit ${code}\n${stderr.split('\n').slice(-20).join('\n')}`,
    );
}

export async function withTestkit<T>(database: string, work: (kit: Testkit) => Promise<T>): Promise<T> {
  await using kit = new Testkit(database, { noSubdir: true, mapSizeBytes: MAP_SIZE_BYTES });
  return await work(kit);
}

export function middle(runs: readonly Measurement[]): Measurement {
  return {
    wallMs: median(runs.map((one) => one.wallMs)),
    cpuMs: median(runs.map((one) => one.cpuMs)),
    // Memory is a promise: the worst run counts.
    peakAnonBytes: Math.max(...runs.map((one) => one.peakAnonBytes)),
  };
}

/** Wall, CPU, RssAnon. */
export function figures(one: Measurement): string[] {
  return [
    `${(one.wallMs / 1000).toFixed(2)} s`,
    `${(one.cpuMs / 1000).toFixed(2)} s`,
    `${Math.round(one.peakAnonBytes / 1024 ** 2)} MiB`,
  ];
}
