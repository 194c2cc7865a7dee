/**
 * `node test/bench/sweeper.ts` (after `make build tools`): how long others wait for the write lock while half of an LMDB is swept away.
 *
 *   BENCH_SIZES=1m            how many records; every second one is an old deletion
 *   BENCH_DIR=/some/dir       where the databases are made (a temporary directory)
 *   LS_REFERENCE=/path        a PowerDNS Lightning Stream to compare with
 */
import { copyFileSync, mkdirSync, rmSync } from 'node:fs';
import { start, tempDir } from '../helpers/process.ts';
import { Testkit } from '../helpers/testkit.ts';
import { label, MAP_SIZE_BYTES, sizes, withTestkit } from './job.ts';
import { programs, type Program, Watch } from './measure.ts';
import { machine, markdownTable, say } from './report.ts';

/** The defaults, both. */
const DURATION_MS = 50;
/** Longer than any sweep; its wait ends with the loop. */
const LONGEST_SWEEP_MS = 600_000;
const LOOP_MS = 1000;

// Through the exit handler of the helpers, which removes databases and daemons.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));

const rows: string[][] = [];
for (const records of sizes('1m')) {
  await using dir = await tempDir('lightningstream-bench-', process.env['BENCH_DIR']);
  const base = dir.join('base.mdb');
  await withTestkit(base, (kit) => kit.fill(records, { deletedEvery: 2 }));
  for (const program of programs) {
    say(`${label(records)} records: ${program.name}`);
    rows.push([label(records), program.name, ...(await sweep(program, base, dir.path))]);
  }
}
process.stdout.write(
  `${machine()}\nlock_duration and release_duration ${DURATION_MS} ms; another process takes the lock every 0.2 ms.\n\n` +
    markdownTable(
      [
        'records',
        'program',
        'removed',
        'transactions',
        'time',
        'CPU',
        'RssAnon',
        'lock wait before',
        'lock wait',
        'lock held',
      ],
      rows,
      2,
    ),
);

async function sweep(program: Program, base: string, dir: string): Promise<string[]> {
  const database = `${dir}/${program.name}.mdb`;
  const storage = `${dir}/storage-${program.name}`;
  copyFileSync(base, database);
  mkdirSync(storage);
  await using kit = new Testkit(database, { noSubdir: true, mapSizeBytes: MAP_SIZE_BYTES });
  const quietMs = await kit.longestLockWaitMs(LOOP_MS);
  await using daemon = await start({
    command: program.file,
    // It never uploads: what is measured is the sweep.
    args: ['receive'],
    cwd: dir,
    env: { CACHE_DIRECTORY: dir },
    config: JSON.stringify({
      instance: 'a',
      lmdbs: {
        main: {
          path: database,
          schema_tracks_changes: true,
          options: { no_subdir: true, map_size: MAP_SIZE_BYTES },
        },
      },
      storage: { type: 'fs', options: { root_path: storage } },
      log: { format: 'logfmt' },
      sweeper: {
        enabled: true,
        retention_days: 1,
        first_interval: '1s',
        lock_duration: `${DURATION_MS}ms`,
        release_duration: `${DURATION_MS}ms`,
      },
    }),
  });
  const watch = new Watch(daemon.pid);
  const completed = daemon.waitForOutput(/^.*cleaned_entries=(\d+).*$/m, { timeoutMs: LONGEST_SWEEP_MS });
  let done = false;
  const until = completed.then(() => (done = true));
  let longestMs = 0;
  while (!done) longestMs = Math.max(longestMs, await kit.longestLockWaitMs(LOOP_MS));
  await until;
  const { cpuMs, peakAnonBytes } = watch.take();
  watch[Symbol.dispose]();
  const [line = '', cleaned = ''] = await completed;
  await daemon.stop();
  const left = Number((await kit.call({ op: 'digest' }))['entries']);
  const field = (name: string): string => new RegExp(` ${name}=(\\S+)`).exec(line)?.[1] ?? '?';
  rmSync(database);
  if (left !== Number(field('total_entries'))) throw new Error(`${left} entries are left: ${line}`);
  return [
    cleaned,
    field('transactions'),
    field('time_taken'),
    `${(cpuMs / 1000).toFixed(2)} s`,
    `${Math.round(peakAnonBytes / 1024 ** 2)} MiB`,
    `${quietMs.toFixed(1)} ms`,
    `${longestMs.toFixed(1)} ms`,
    field('time_write_lock'),
  ];
}
