/** Time from a commit on one instance until the value can be read on another, both quiet, with the default intervals. */
import { mkdirSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { start, tempDir, until, type Running, type TempDir } from '../helpers/process.ts';
import { Testkit } from '../helpers/testkit.ts';
import { quantile, type Program } from './measure.ts';

export interface Latency {
  readonly samples: number;
  readonly medianMs: number;
  readonly p99Ms: number;
  readonly worstMs: number;
}

const RECORDS = 10_000;
const DBI = 'latency';

/** BENCH_LATENCY_SAMPLES (100) commits, each after a quiet time longer than the poll intervals. */
export async function measureLatency(program: Program, say: (text: string) => void): Promise<Latency> {
  const samples = Number(process.env['BENCH_LATENCY_SAMPLES'] || 100);
  await using dir = await tempDir('lightningstream-latency-', process.env['BENCH_DIR']);
  mkdirSync(dir.join('storage'));
  const databaseA = dir.join('a.mdb');
  const databaseB = dir.join('b.mdb');
  await using a = new Testkit(databaseA, { noSubdir: true });
  await using b = new Testkit(databaseB, { noSubdir: true });
  await a.fill(RECORDS);
  await b.put(DBI, 'begin', 'x');
  await using daemonA = await startDaemon(program, dir, 'a', databaseA);
  await using daemonB = await startDaemon(program, dir, 'b', databaseB);
  await until(async () => (await a.get(DBI, 'begin'))?.value, {
    what: 'A has what B wrote',
    timeoutMs: 60_000,
  });
  const digest = await a.digest();
  await until(async () => (await b.digest()) === digest, { what: 'B has all records', timeoutMs: 60_000 });

  const delaysMs: number[] = [];
  for (let sample = 0; sample < samples; sample += 1) {
    // Quiet, and not in step with anybody's poll.
    await delay(1500 + Math.random() * 1000);
    const value = `value ${sample}`;
    await a.put(DBI, 'probe', value);
    const committedMs = performance.now();
    await until(async () => (await b.get(DBI, 'probe'))?.value === value, {
      what: `B has ${value}`,
      timeoutMs: 60_000,
      intervalMs: 1,
    });
    delaysMs.push(performance.now() - committedMs);
    if ((sample + 1) % 25 === 0) say(`${sample + 1} of ${samples}`);
  }
  await daemonA.stop().catch(() => undefined);
  await daemonB.stop().catch(() => undefined);
  return {
    samples,
    medianMs: quantile(delaysMs, 0.5),
    p99Ms: quantile(delaysMs, 0.99),
    worstMs: Math.max(...delaysMs),
  };
}

async function startDaemon(program: Program, dir: TempDir, name: string, database: string): Promise<Running> {
  mkdirSync(dir.join(name));
  const config = `
instance: ${name}
lmdbs:
  main:
    path: ${database}
    schema_tracks_changes: true
    options:
      no_subdir: true
storage:
  type: fs
  options:
    root_path: ${dir.join('storage')}
`;
  return await start({
    command: program.file,
    args: ['sync'],
    config,
    cwd: dir.join(name),
    env: { CACHE_DIRECTORY: dir.join(name) },
  });
}
