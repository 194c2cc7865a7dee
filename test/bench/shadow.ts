/**
 * `node test/bench/shadow.ts` (after `make build tools`): what shadow mode costs, as whole commands, as `make bench` does for native databases.
 *
 *   BENCH_SIZES=1m,10m        how many records
 *   BENCH_ROUNDS=3            runs of each (the median counts; of memory the most)
 *   BENCH_DIR=/some/dir       where the databases are made (a temporary directory)
 *   LS_REFERENCE=/path        a PowerDNS Lightning Stream to compare with, run in turns with ours
 *   BENCH_WRITE=1             put the result into docs/performance.md
 */
import { execFileSync } from 'node:child_process';
import { copyFileSync, cpSync, mkdirSync, readdirSync, rmSync } from 'node:fs';
import { type TempDir, tempDir } from '../helpers/process.ts';
import { commandOf, execute, figures, type Job, label, middle, sizes, withTestkit } from './job.ts';
import { measure, type Measurement, type Program, programs } from './measure.ts';
import { machine, markdownTable, say, writeReport } from './report.ts';

/** One kind of work; every run starts from a copy of the same state. */
interface Work {
  readonly name: string;
  readonly command: 'sync' | 'receive';
  /** `plain`: never captured; `captured`: with its shadow; `touched`: captured, then 0.1 % changed by the application. */
  readonly database: 'plain' | 'captured' | 'touched' | 'none';
  /** Which snapshot of another instance waits in the storage. */
  readonly storage: 'empty' | 'same' | 'newer';
}

const WORKS: readonly Work[] = [
  { name: 'first capture, publish', command: 'sync', database: 'plain', storage: 'empty' },
  { name: 'publish, nothing to capture', command: 'sync', database: 'captured', storage: 'empty' },
  { name: 'publish, 0.1 % changed', command: 'sync', database: 'touched', storage: 'empty' },
  { name: 'first load', command: 'receive', database: 'none', storage: 'same' },
  { name: 'no-op merge', command: 'receive', database: 'captured', storage: 'same' },
  { name: '0.1 % newer', command: 'receive', database: 'captured', storage: 'newer' },
];
const CHANGED = 0.001;

// Through the exit handler of the helpers, which removes databases and processes.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));

const rows: string[][] = [];
for (const records of sizes('1m,10m')) rows.push(...(await benchSize(records)));
const head = ['records', 'work', 'wall', 'CPU', 'RssAnon'];
if (programs.length > 1) head.push('reference: wall', 'CPU', 'RssAnon', 'faster');
const report = `${machine()}\n\n${markdownTable(head, rows, 2)}`;
process.stdout.write(`\n${report}`);
if (process.env['BENCH_WRITE'] === '1') writeReport('bench-shadow', report);

async function benchSize(records: number): Promise<string[][]> {
  await using dir = await tempDir('lightningstream-bench-', process.env['BENCH_DIR']);
  say(`${label(records)} records: preparing`);
  await withTestkit(dir.join('plain.mdb'), (kit) => kit.fill(records, { plain: true }));
  for (const program of programs) {
    // What another instance stores, and what it stores after a change; its LMDB with the shadow is ours, too.
    const database = dir.join(`captured-${program.name}.mdb`);
    copyFileSync(dir.join('plain.mdb'), database);
    const other = { program, command: 'sync', instance: 'other', native: false } as const;
    await execute(dir.path, { ...other, database, storage: dir.join(`same-${program.name}`) });
    const touched = dir.join(`touched-${program.name}.mdb`);
    copyFileSync(database, touched);
    await withTestkit(touched, (kit) => kit.touch(CHANGED, { plain: true }));
    copyFileSync(touched, dir.join('local.mdb'));
    const newer = dir.join(`newer-${program.name}`);
    await execute(dir.path, { ...other, database: dir.join('local.mdb'), storage: newer });
  }
  const rounds = Number(process.env['BENCH_ROUNDS'] || 3);
  const lines: string[][] = [];
  for (const work of WORKS) {
    const runs = new Map<Program, Measurement[]>(programs.map((program) => [program, []]));
    for (let round = 0; round < rounds; round += 1) {
      for (const program of programs) {
        const job = prepare(dir, work, program);
        runs.get(program)?.push(await measure(commandOf(dir.path, job), dir.join('log')));
        if (round === 0) await verify(dir, work, job, records);
      }
    }
    const [ours, theirs] = programs.map((program) => middle(runs.get(program) ?? []));
    if (ours === undefined) continue;
    const line = [label(records), work.name, ...figures(ours)];
    if (theirs !== undefined) line.push(...figures(theirs), `${(theirs.wallMs / ours.wallMs).toFixed(1)} ×`);
    say(line.join(' | '));
    lines.push(line);
  }
  return lines;
}

/** The state a run starts from. */
function prepare(dir: TempDir, work: Work, program: Program): Job {
  const local = dir.join('local.mdb');
  const storage = dir.join('storage');
  for (const path of [local, `${local}-lock`, storage]) rmSync(path, { recursive: true, force: true });
  if (work.database !== 'none') {
    const from = work.database === 'plain' ? 'plain.mdb' : `${work.database}-${program.name}.mdb`;
    copyFileSync(dir.join(from), local);
  }
  mkdirSync(storage);
  if (work.storage !== 'empty')
    cpSync(dir.join(`${work.storage}-${program.name}`), storage, { recursive: true });
  // What earlier runs wrote goes to the disk now, not while the next one is timed.
  execFileSync('sync');
  return { program, command: work.command, database: local, storage, instance: 'bench', native: false };
}

/** A run that did not do its work would be very fast. The application's records are compared with what the work should lead to. */
async function verify(dir: TempDir, work: Work, job: Job, records: number): Promise<void> {
  const touched = work.database === 'touched' || work.storage === 'newer';
  const wanted = dir.join(touched ? `touched-${job.program.name}.mdb` : 'plain.mdb');
  const [found, expected] = [await plainDigest(job.database), await plainDigest(wanted)];
  if (found !== expected)
    throw new Error(`${job.program.name}: ${work.name} left other records than it should`);
  const published = work.command === 'sync' ? 1 : 0;
  const others = work.storage === 'empty' ? 0 : 1;
  if (readdirSync(job.storage).length !== published + others)
    throw new Error(`${job.program.name}: ${work.name} of ${records} records: not the right snapshots`);
}

async function plainDigest(database: string): Promise<string> {
  return await withTestkit(database, (kit) => kit.digest({ plain: true }));
}
