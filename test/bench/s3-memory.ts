/** Memory, CPU and time of running daemons with a million records, through S3. */
import { setTimeout as delay } from 'node:timers/promises';
import { tempDir, until, type Running } from '../helpers/process.ts';
import { Testkit } from '../helpers/testkit.ts';
import { startDaemon } from './latency.ts';
import { programs, Watch, type Program } from './measure.ts';
import { markdownTable, say } from './report.ts';
import type { Store } from './s3-store.ts';

interface Phase {
  readonly name: string;
  readonly wallMs: number;
  readonly cpuMs: number;
  readonly peakAnonBytes: number;
}

const POLL_MS = 100;
const MAP_SIZE_BYTES = 2 * 1024 ** 3;
const NEWER_FRACTION = 0.001;
/** Of those that the testkit fills in; also the first that it touches. */
const FIRST_KEY = '\0\0\0\x01example\0host-000000000\0\0\0\x01';
/** An idle daemon, asking the storage ten times a second, stays below it. */
const IDLE_CPU_SHARE = 0.2;

/** BENCH_RECORDS (1000000) records: A publishes, B loads them, loads the same again, loads 0.1 % newer ones. */
export async function benchMemory(store: Store): Promise<string> {
  const records = Number(process.env['BENCH_RECORDS'] || 1_000_000);
  const results: Phase[][] = [];
  for (const program of programs) results.push(await phases(store, program, records));
  const [ours = [], theirs] = results;
  const cells = ({ wallMs, cpuMs, peakAnonBytes }: Phase): string[] => [
    `${(wallMs / 1000).toFixed(2)} s`,
    `${(cpuMs / 1000).toFixed(2)} s`,
    `${Math.round(peakAnonBytes / 1024 ** 2)} MiB`,
  ];
  const head = [`${records / 1e6} M records`, 'wall', 'CPU', 'RssAnon'];
  if (theirs !== undefined) head.push('reference: wall', 'CPU', 'RssAnon', 'faster');
  const rows = ours.map((phase, index) => {
    const other = theirs?.[index];
    const compared =
      other === undefined ? [] : [...cells(other), `${(other.wallMs / phase.wallMs).toFixed(1)} ×`];
    return [phase.name, ...cells(phase), ...compared];
  });
  return markdownTable(head, rows, 1);
}

async function phases(store: Store, program: Program, records: number): Promise<Phase[]> {
  await using dir = await tempDir('lightningstream-bench-', process.env['BENCH_DIR']);
  const bucket = `memory-${program.name}`;
  const options = { program, storage: store.section(bucket, { marker: false }), pollIntervalMs: POLL_MS };
  const [databaseA, databaseB] = [dir.join('a.mdb'), dir.join('b.mdb')];
  await using a = new Testkit(databaseA, { noSubdir: true, mapSizeBytes: MAP_SIZE_BYTES });
  await using b = new Testkit(databaseB, { noSubdir: true, mapSizeBytes: MAP_SIZE_BYTES });
  await a.fill(records);
  const timestamp = async (kit: Testkit): Promise<bigint> =>
    (await kit.get('records_v5', FIRST_KEY))?.timestampNano ?? 0n;
  const done: Phase[] = [];
  const finish = async (name: string, begunMs: number, watch: Watch, watches: Watch[]): Promise<void> => {
    const wallMs = performance.now() - begunMs;
    await idle(watches);
    done.push({ name, wallMs, ...watch.take() });
    for (const one of watches) one.take();
    const last = done.at(-1);
    say(
      `memory, ${program.name}: ${name}: ${wallMs.toFixed(0)} ms, ${Math.round((last?.peakAnonBytes ?? 0) / 1024 ** 2)} MiB`,
    );
  };

  let begunMs = performance.now();
  await using daemonA = await startDaemon(options, dir.join('a'), databaseA);
  using watchA = new Watch(daemonA.pid);
  const [first = ''] = await until(() => some(store.list(bucket, 'main__a__')), {
    ...patient,
    what: 'A has stored a snapshot',
  });
  await finish('A: publish, upload', begunMs, watchA, [watchA]);

  begunMs = performance.now();
  await using daemonB = await startDaemon(options, dir.join('b'), databaseB);
  using watchB = new Watch(daemonB.pid);
  const both = [watchA, watchB];
  await until(() => timestamp(b), { ...patient, what: 'B has all records' });
  await finish('B: download, first load', begunMs, watchB, both);

  // As if a third instance held the same.
  const merges = loadedUpdates(daemonB);
  begunMs = performance.now();
  await store.copy(bucket, bucket, first, first.replace('__a__', '__c__'));
  await until(() => loadedUpdates(daemonB) > merges, { ...patient, what: 'B has looked at the copy' });
  await finish('B: download, nothing new', begunMs, watchB, both);

  const before = await timestamp(a);
  await a.touch(NEWER_FRACTION);
  begunMs = performance.now();
  await until(async () => (await timestamp(b)) > before, { ...patient, what: 'B has what is newer' });
  const wallMs = performance.now() - begunMs;
  await idle(both);
  done.push({ name: 'A: publish, upload 0.1 % newer', wallMs, ...watchA.take() });
  done.push({ name: 'B: download, load 0.1 % newer', wallMs, ...watchB.take() });
  return done;
}

const patient = { timeoutMs: 120_000, intervalMs: 10 };

/** Both programs log it so. */
export function loadedUpdates(daemon: Running): number {
  return (daemon.stdout() + daemon.stderr()).split('Loaded remote update').length - 1;
}

async function some(names: Promise<string[]>): Promise<string[] | undefined> {
  const found = await names;
  return found.length > 0 ? found : undefined;
}

/** Waits until none of them has done much for a second. */
async function idle(watches: readonly Watch[]): Promise<void> {
  const windowMs = 1000;
  for (;;) {
    const before = watches.map((watch) => watch.cpuMs());
    await delay(windowMs);
    if (watches.every((watch, index) => watch.cpuMs() - (before[index] ?? 0) < windowMs * IDLE_CPU_SHARE))
      return;
  }
}
