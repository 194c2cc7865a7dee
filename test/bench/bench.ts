/**
 * `make bench`: what publishing and merging cost, as whole commands (start-up included), at several sizes.
 *
 *   BENCH_SIZES=100k,1m,10m   how many records
 *   BENCH_ROUNDS=5            runs of each (the median counts)
 *   BENCH_DIR=/some/dir       where the databases are made (a temporary directory)
 *   BENCH_ONLY=size|latency   one half of it
 *   LS_REFERENCE=/path        a PowerDNS Lightning Stream to compare with, run in turns with ours
 *   BENCH_WRITE=1             put the result into docs/performance.md
 */
import { execFileSync } from 'node:child_process';
import { copyFileSync, mkdirSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { tempDir } from '../helpers/process.ts';
import { commandOf, execute, figures, type Job, label, middle, sizes, withTestkit } from './job.ts';
import { LATENCY_HEAD, latencyCells, Pair } from './latency.ts';
import { measure, median, programs, type Measurement, type Program } from './measure.ts';
import { machine, markdownTable, say, writeReport } from './report.ts';

/** One kind of work; every run starts from the same state. */
interface Work {
  readonly name: string;
  readonly command: 'sync' | 'receive';
  /** The LMDB is a copy of base.mdb, base.mdb itself (nothing is written), or does not exist. */
  readonly database: 'copy' | 'base' | 'none';
  /** Which snapshot waits in the storage. */
  readonly storage: 'empty' | 'same' | 'newer';
  /** What the LMDB must hold afterwards. */
  readonly result: 'base' | 'newer';
}

interface Row {
  readonly records: number;
  readonly work: string;
  readonly ours: Result;
  readonly reference: Result | undefined;
}

interface Result extends Measurement {
  readonly lockWaitMs: number;
}

const WORKS: readonly Work[] = [
  { name: 'publish', command: 'sync', database: 'base', storage: 'empty', result: 'base' },
  { name: 'first load', command: 'receive', database: 'none', storage: 'same', result: 'base' },
  { name: 'no-op merge', command: 'receive', database: 'base', storage: 'same', result: 'base' },
  { name: '0.1 % newer', command: 'receive', database: 'copy', storage: 'newer', result: 'newer' },
];
const NEWER_FRACTION = 0.001;

// Through the exit handler of the helpers, which removes databases and daemons.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));

const only = process.env['BENCH_ONLY'] ?? '';

let report = `${machine()}\n`;
if (only !== 'latency') {
  const rows: Row[] = [];
  for (const records of sizes('100k,1m,10m')) rows.push(...(await benchSize(records)));
  report += `\n${table(rows)}\n${growth(rows)}`;
}
if (only !== 'size') report += `\n${await latency()}`;
process.stdout.write(`\n${report}`);
if (process.env['BENCH_WRITE'] === '1') writeReport('bench', report);

async function benchSize(records: number): Promise<Row[]> {
  await using dir = await tempDir('lightningstream-bench-', process.env['BENCH_DIR']);
  say(`${label(records)} records: preparing`);
  const base = dir.join('base.mdb');
  const newer = dir.join('newer.mdb');
  await withTestkit(base, (kit) => kit.fill(records));
  copyFileSync(base, newer);
  await withTestkit(newer, (kit) => kit.touch(NEWER_FRACTION));
  const digests = { base: await digest(base), newer: await digest(newer) };
  if (digests.base === digests.newer) throw new Error('nothing was changed for "newer"');
  for (const program of programs) {
    for (const [name, database] of Object.entries({ same: base, newer })) {
      const storage = dir.join(`${name}-${program.name}`);
      await execute(dir.path, {
        program,
        command: 'sync',
        database,
        storage,
        instance: 'other',
        native: true,
      });
    }
  }

  const rounds = Number(process.env['BENCH_ROUNDS'] || (records >= 5_000_000 ? 3 : 5));
  const rows: Row[] = [];
  for (const [work, writer] of worksWithWriters()) {
    const name = writer === undefined ? work.name : `${work.name} of a snapshot of the reference`;
    const those = programs.filter((program) => writer === undefined || program.name === 'ours');
    const runs = new Map<Program, Measurement[]>(those.map((program) => [program, []]));
    const lockWaits = new Map<Program, number>();
    for (let round = 0; round < rounds; round += 1) {
      for (const program of those) {
        const job = prepare(dir.path, work, program, writer ?? program);
        const measured = await measure(commandOf(dir.path, job), dir.join('log'));
        runs.get(program)?.push(measured);
        if (round === 0) await verify(work, job, digests);
      }
    }
    for (const program of those) {
      const job = prepare(dir.path, work, program, writer ?? program);
      const typicalMs = median((runs.get(program) ?? []).map((one) => one.wallMs));
      lockWaits.set(program, await longestLockWaitMs(dir.path, job, typicalMs * 1.5 + 500));
    }
    const result = (program: Program): Result => ({
      ...middle(runs.get(program) ?? []),
      lockWaitMs: lockWaits.get(program) ?? Number.NaN,
    });
    const [ours, theirs] = those;
    if (ours === undefined) continue;
    const row = {
      records,
      work: name,
      ours: result(ours),
      reference: theirs === undefined ? undefined : result(theirs),
    };
    rows.push(row);
    say(`${label(records)} records: ${name}: ${cells(row).slice(2).join(' | ')}`);
  }
  return rows;
}

/** Every work with each program's own snapshots; and ours, too, with the snapshots of the reference, as in a mixed cluster. */
function worksWithWriters(): (readonly [Work, Program | undefined])[] {
  const foreign = programs.find((program) => program.name === 'reference');
  return WORKS.flatMap((work): (readonly [Work, Program | undefined])[] =>
    foreign === undefined || work.storage === 'empty'
      ? [[work, undefined]]
      : [
          [work, undefined],
          [work, foreign],
        ],
  );
}

/** The state a run starts from. */
function prepare(dir: string, work: Work, program: Program, writer: Program): Job {
  const local = join(dir, 'local.mdb');
  for (const path of [local, `${local}-lock`, join(dir, 'empty')])
    rmSync(path, { recursive: true, force: true });
  if (work.database === 'copy') copyFileSync(join(dir, 'base.mdb'), local);
  const database = work.database === 'base' ? join(dir, 'base.mdb') : local;
  const storage = join(dir, work.storage === 'empty' ? 'empty' : `${work.storage}-${writer.name}`);
  mkdirSync(storage, { recursive: true });
  // What earlier runs wrote goes to the disk now, not while the next one is timed.
  execFileSync('sync');
  return { program, command: work.command, database, storage, instance: 'bench', native: true };
}

/** A run that did not do its work would be very fast. */
async function verify(work: Work, job: Job, digests: { base: string; newer: string }): Promise<void> {
  if ((await digest(job.database)) !== digests[work.result]) {
    throw new Error(`${job.program.name}: ${work.name} left another content than it should`);
  }
  if (work.storage === 'empty' && readdirSync(job.storage).length !== 1) {
    throw new Error(`${job.program.name}: ${work.name} did not leave one snapshot`);
  }
}

/** A run of its own, as taking the lock all the time costs the command some speed. */
async function longestLockWaitMs(dir: string, job: Job, durationMs: number): Promise<number> {
  return await withTestkit(job.database, async (kit) => {
    const [waitMs] = await Promise.all([kit.longestLockWaitMs(durationMs), execute(dir, job)]);
    return waitMs;
  });
}

async function digest(database: string): Promise<string> {
  return await withTestkit(database, (kit) => kit.digest());
}

async function latency(): Promise<string> {
  const samples = Number(process.env['BENCH_LATENCY_SAMPLES'] || 100);
  const rows: string[][] = [];
  for (const program of programs) {
    await using dir = await tempDir('lightningstream-latency-', process.env['BENCH_DIR']);
    mkdirSync(dir.join('storage'));
    const storage = { type: 'fs', options: { root_path: dir.join('storage') } };
    await using pair = await Pair.start({ program, storage });
    const delaysMs: number[] = [];
    while (delaysMs.length < samples) {
      delaysMs.push(await pair.sample());
      if (delaysMs.length % 25 === 0) say(`latency, ${program.name}: ${delaysMs.length} of ${samples}`);
    }
    rows.push([`${program.name}, ${samples} commits`, ...latencyCells(delaysMs)]);
  }
  const title = 'commit on A → readable on B (fs, 10 k records, default intervals)';
  return markdownTable([title, ...LATENCY_HEAD], rows, 1);
}

function table(rows: readonly Row[]): string {
  const compared = programs.length > 1;
  const head = ['records', 'work', 'wall', 'CPU', 'RssAnon', 'lock wait'];
  if (compared) head.push('reference: wall', 'CPU', 'RssAnon', 'lock wait', 'faster');
  return markdownTable(head, rows.map(cells), 2);
}

function cells(row: Row): string[] {
  const result = (one: Result): string[] => [...figures(one), `${one.lockWaitMs.toFixed(1)} ms`];
  const line = [label(row.records), row.work, ...result(row.ours)];
  if (programs.length === 1) return line;
  if (row.reference === undefined) return [...line, '', '', '', '', ''];
  return [...line, ...result(row.reference), `${(row.reference.wallMs / row.ours.wallMs).toFixed(1)} ×`];
}

/** Cost per record; constant where the cost grows with the size and no faster. */
function growth(rows: readonly Row[]): string {
  const sizes = [...new Set(rows.map((row) => row.records))];
  const works = [...new Set(rows.map((row) => row.work))];
  if (sizes.length < 2) return '';
  const lines = works.map((work) => [
    work,
    ...sizes.map((size) => {
      const row = rows.find((one) => one.records === size && one.work === work);
      return row === undefined ? '' : ((row.ours.wallMs * 1000) / size).toFixed(2);
    }),
  ]);
  return `\n${markdownTable(['µs per record', ...sizes.map(label)], lines, 1)}`;
}
