/**
 * `make bench-binary`: the single binary beside `bin/lightningstream`, in turns.
 *
 *   BENCH_ROUNDS=20      runs of each (the median counts; of memory the most)
 *   BENCH_DIR=/some/dir  where the database is made (a temporary directory)
 *   BENCH_WRITE=1        put the result into docs/performance.md
 */
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { launcher, repositoryRoot, start, type TempDir, tempDir } from '../helpers/process.ts';
import { commandOf, withTestkit } from './job.ts';
import { measure, type Measurement, median, type Program, Watch } from './measure.ts';
import { machine, markdownTable, say, writeReport } from './report.ts';

const RECORDS = 100_000;
const IDLE_MS = 10_000;
const MIB = 1024 ** 2;

/** Nobody listens there: what is loaded, and a request that fails once a second. */
const S3 =
  '{ type: s3, options: { bucket: b, access_key: a, secret_key: s, endpoint_url: "http://127.0.0.1:9" } }';

const binary = join(repositoryRoot, 'dist', 'binary', 'lightningstream');
const compared = [launcher, binary].map((file): Program => ({ name: 'ours', file }));
const rounds = Number(process.env['BENCH_ROUNDS'] || 20);

// Through the exit handler of the helpers, which removes databases and processes.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));

await using dir = await tempDir('lightningstream-bench-', process.env['BENCH_DIR']);
say(`${RECORDS} records: preparing`);
await withTestkit(dir.join('full.mdb'), (kit) => kit.fill(RECORDS));

const rows: string[][] = [];
rows.push(
  await row('`version`', ({ file }) => measure({ file, args: ['version'], env: {} }, dir.join('log'))),
);
rows.push(await row('publish 100 k records', (program, round) => publish(dir, program, `storage-${round}`)));
rows.push(await row('daemon at rest, fs', (program) => rest(dir, program, onFs(dir)), 3));
rows.push(await row('daemon at rest, S3', (program) => rest(dir, program, S3), 3));
const report = `${machine()}

${markdownTable(['work', '`bin/lightningstream`: wall', 'CPU', 'RssAnon', 'binary: wall', 'CPU', 'RssAnon'], rows, 1)}
${markdownTable(['on disk', 'MiB'], onDisk(), 1)}`;
process.stdout.write(`\n${report}`);
if (process.env['BENCH_WRITE'] === '1') writeReport('bench-binary', report);

type Figures = Omit<Measurement, 'wallMs'> & { readonly wallMs?: number };

async function row(
  name: string,
  once: (program: Program, round: string) => Promise<Figures>,
  times = rounds,
): Promise<string[]> {
  say(name);
  const runs = compared.map((): Figures[] => []);
  for (let round = 0; round < times; round += 1) {
    for (const [index, program] of compared.entries())
      runs[index]?.push(await once(program, `${round}-${index}`));
  }
  const cells = runs.flatMap((all) => [
    milliseconds(all.flatMap(({ wallMs }) => wallMs ?? [])),
    milliseconds(all.map(({ cpuMs }) => cpuMs)),
    `${Math.round(Math.max(...all.map(({ peakAnonBytes }) => peakAnonBytes)) / MIB)} MiB`,
  ]);
  return [name, ...cells];
}

function milliseconds(values: readonly number[]): string {
  return values.length === 0 ? '' : `${Math.round(median(values))} ms`;
}

async function publish(at: TempDir, program: Program, storage: string): Promise<Measurement> {
  const job = { program, command: 'sync', instance: 'a', native: true } as const;
  return await measure(
    commandOf(at.path, { ...job, database: at.join('full.mdb'), storage: at.join(storage) }),
    at.join('log'),
  );
}

function onFs(at: TempDir): string {
  return `{ type: fs, options: { root_path: ${at.path} } }`;
}
/** Memory and processor time of a daemon with an empty LMDB, from its start on. */
async function rest(at: TempDir, program: Program, storage: string): Promise<Figures> {
  await using running = await start({
    command: program.file,
    args: ['sync'],
    config: `lmdbs: { main: { path: ${at.join('rest-lmdb')}, schema_tracks_changes: true, options: { create: true } } }
storage: ${storage}
http: { address: "127.0.0.1:0" }
`,
    cwd: at.path,
  });
  using watch = new Watch(running.pid);
  await delay(IDLE_MS);
  const { peakAnonBytes } = watch.take();
  const cpuMs = watch.cpuMs();
  await running.stop();
  return { peakAnonBytes, cpuMs };
}

/** The checkout's Node.js, compiled program, addon and the npm packages that are in the binary, too; what a package installs. */
function onDisk(): string[][] {
  const { inputs } = JSON.parse(readFileSync(join(dirname(binary), 'bundle.json'), 'utf8')) as {
    readonly inputs: Readonly<Record<string, unknown>>;
  };
  const packages = Object.keys(inputs).flatMap(
    (file) => /^(?:.*\/)?node_modules\/(?:@[^/]+\/)?[^/]+/.exec(file)?.[0] ?? [],
  );
  const checkout = [
    `node_modules/node-linux-${process.arch}/bin/node`,
    'dist/main.js',
    ...readdirSync(join(repositoryRoot, 'src'))
      .filter((name) => !name.endsWith('.ts'))
      .map((name) => `dist/${name}`),
    'native/addon/lightningstream.node',
    ...new Set(packages),
  ];
  const installed = ['dist/binary/lightningstream', 'dist/binary/lightningstream.node'];
  return [
    ['what `bin/lightningstream` needs', inMib(checkout)],
    ['the binary, with the addon beside it', inMib(installed)],
  ];
}

function inMib(paths: readonly string[]): string {
  return (paths.reduce((sum, path) => sum + sizeOf(join(repositoryRoot, path)), 0) / MIB).toFixed(0);
}

function sizeOf(path: string): number {
  const status = statSync(path, { throwIfNoEntry: false });
  if (status === undefined) return 0;
  if (!status.isDirectory()) return status.size;
  return readdirSync(path).reduce((sum, name) => sum + sizeOf(join(path, name)), 0);
}
