/**
 * How many requests the daemons send to S3: each of them asks MinIO through a proxy of its own that counts. Every instance has two
 * LMDBs, as a PowerDNS server has, and the default intervals. Needs `make build tools test-servers`.
 *
 *   node test/bench/requests.ts
 *   BENCH_SECONDS=300   how long each set of idle instances is watched; with an update marker one listing comes every 5 minutes
 *   BENCH_WRITE=1       put the result into docs/performance.md
 */
import { copyFileSync, mkdirSync, readdirSync } from 'node:fs';
import { Agent, createServer, request, type IncomingMessage } from 'node:http';
import { setTimeout as delay } from 'node:timers/promises';
import { Limit } from '../../src/sync/wait.ts';
import { freePort, launcher, run, start, tempDir, until, type TempDir } from '../helpers/process.ts';
import { mc, startMinio, type S3Server } from '../helpers/s3-server.ts';
import { Testkit } from '../helpers/testkit.ts';
import { machine, markdownTable, say, writeReport } from './report.ts';

/** More instances than daemons: the others are there by their snapshots, which is all that a daemon ever sees of them. */
const SETS = [
  { instances: 2, daemons: 2 },
  { instances: 10, daemons: 10 },
  { instances: 100, daemons: 2 },
] as const;
const DATABASES = ['main', 'shard'] as const;
const DBI = 'requests';
const CHANGES = 10;
const BUCKET = 'requests';
/** Hours of a month, and US dollars for 1,000 requests of the two classes (AWS S3 Standard, us-east-1). */
const MONTH_HOURS = 730;
const DOLLARS = { list: 0.005, put: 0.005, get: 0.0004 };

const KINDS = ['list', 'get marker', 'get snapshot', 'put marker', 'put snapshot', 'other'] as const;
type Kind = (typeof KINDS)[number];
type Counts = Record<Kind, number>;

const seconds = Number(process.env['BENCH_SECONDS'] || 300);

for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));

/** All that is not idle is done by one set at a time. */
const turns = new Limit(1);
const { signal: never } = new AbortController();

/** A line of each table. */
interface Result {
  readonly idle: readonly string[];
  readonly change: readonly string[];
}

async function measureSet(set: (typeof SETS)[number], marker: boolean): Promise<Result> {
  const title = `${set.instances} instances, ${marker ? 'with' : 'without'} update marker`;
  await using stack = new AsyncDisposableStack();
  let endTurn = await turns.acquire(never);
  stack.defer(() => endTurn());
  say(`${title}: begins`);
  const dir = stack.use(await tempDir('lightningstream-requests-', process.env['BENCH_DIR']));
  const server = stack.use(await startMinio());
  await mc(server, 'mb', `s3/${BUCKET}`);
  const instances: Instance[] = [];
  for (let number = 1; number <= set.daemons; number += 1) {
    const instance = await Instance.create(dir, server, `i${number}`, marker);
    instances.push(stack.use(instance));
  }
  const [first, ...others] = instances;
  if (first === undefined) throw new Error('no instance');
  await first.runOnce();
  await addInstances(dir, server, set.instances - set.daemons);
  for (const instance of instances) await instance.start();
  await first.change('begin');
  for (const other of others) await other.has('begin');
  // Until nobody has anything left to do.
  await delay(8000);

  endTurn();

  say(`${title}: idle`);
  const idle = await counted(instances, () => delay(seconds * 1000));
  for (const counts of idle)
    if (counts['put snapshot'] > 0 || counts['get snapshot'] > 0 || counts.other > 0)
      throw new Error(`not idle: ${JSON.stringify(counts)}`);
  const mean = average(idle);
  say(`${title}: ${KINDS.map((kind) => `${kind} ${mean[kind].toFixed(2)}`).join(', ')} in ${seconds} s`);
  const perHour = 3600 / seconds;
  const [list, get, put] = [
    mean.list * perHour,
    mean['get marker'] * perHour,
    (mean['put marker'] + mean['put snapshot']) * perHour,
  ];
  const dollars = (list * DOLLARS.list + get * DOLLARS.get + put * DOLLARS.put) * (MONTH_HOURS / 1000);
  const head = [String(set.instances), marker ? 'yes' : 'no'];
  const idleRow = [...head, ...[list, get, put].map((count) => count.toFixed(0)), `$${dollars.toFixed(2)}`];

  endTurn = await turns.acquire(never);
  // What changes cost: idle instances send only lists and reads of the marker.
  const elapsedMs = performance.now();
  const changed = await counted(instances, async () => {
    for (let change = 1; change <= CHANGES; change += 1) {
      await first.change(`change ${change}`);
      for (const other of others) await other.has(`change ${change}`);
      await delay(2500);
    }
  });
  const idleShare = (performance.now() - elapsedMs) / 1000 / seconds;
  const row = [changed.slice(0, 1), changed.slice(1)].flatMap((part) => {
    const each = average(part);
    // Beside what they would have sent anyway, give or take the one at the edge of the time.
    const lists = Math.max(0, each.list - mean.list * idleShare);
    return [each['put marker'] + each['put snapshot'], lists, each['get snapshot']];
  });
  say(`${title}: change: ${JSON.stringify(changed)}`);
  return { idle: idleRow, change: [...head, ...row.map((count) => (count / CHANGES).toFixed(1))] };
}

/** What each instance sends meanwhile. */
async function counted(instances: readonly Instance[], work: () => Promise<void>): Promise<Counts[]> {
  const before = instances.map((instance) => ({ ...instance.counts }));
  await work();
  return instances.map(({ counts }, index) => combine((kind) => counts[kind] - (before[index]?.[kind] ?? 0)));
}

function average(all: readonly Counts[]): Counts {
  return combine((kind) => all.reduce((sum, counts) => sum + counts[kind], 0) / all.length);
}

function combine(value: (kind: Kind) => number): Counts {
  return Object.fromEntries(KINDS.map((kind) => [kind, value(kind)])) as Counts;
}

/** Copies the snapshots of the one instance that there is under other instances' names. */
async function addInstances(dir: TempDir, server: S3Server, count: number): Promise<void> {
  if (count === 0) return;
  const [originals, copies] = [dir.join('originals'), dir.join('copies')];
  mkdirSync(originals);
  mkdirSync(copies);
  await mc(server, 'cp', '--recursive', `s3/${BUCKET}/`, `${originals}/`);
  for (const name of readdirSync(originals)) {
    if (!name.includes('__i1__')) continue;
    for (let number = 1; number <= count; number += 1)
      copyFileSync(`${originals}/${name}`, `${copies}/${name.replace('__i1__', `__other${number}__`)}`);
  }
  await mc(server, 'cp', '--recursive', `${copies}/`, `s3/${BUCKET}/`);
  say(`added ${readdirSync(copies).length} snapshots`);
}

/** A daemon with its LMDBs and its way to the storage. */
class Instance implements AsyncDisposable {
  readonly counts: Counts = combine(() => 0);
  readonly #stack = new AsyncDisposableStack();
  readonly #options: { config: string; cwd: string; command: string; env: { CACHE_DIRECTORY: string } };
  #main: Testkit | undefined;

  private constructor(dir: string, config: object) {
    this.#options = {
      // JSON is YAML.
      config: JSON.stringify(config),
      cwd: dir,
      command: launcher,
      env: { CACHE_DIRECTORY: dir },
    };
  }

  static async create(parent: TempDir, server: S3Server, name: string, marker: boolean): Promise<Instance> {
    const dir = parent.join(name);
    mkdirSync(dir);
    const port = await freePort();
    const instance = new Instance(dir, {
      instance: name,
      lmdbs: Object.fromEntries(
        DATABASES.map((database) => [
          database,
          {
            path: `${dir}/${database}.mdb`,
            schema_tracks_changes: true,
            options: { no_subdir: true, create: true },
          },
        ]),
      ),
      storage: {
        type: 's3',
        options: {
          endpoint_url: `http://127.0.0.1:${port}`,
          access_key: server.accessKey,
          secret_key: server.secretKey,
          bucket: BUCKET,
          use_update_marker: marker,
        },
      },
    });
    for (const database of DATABASES) {
      const kit = instance.#stack.use(new Testkit(`${dir}/${database}.mdb`, { noSubdir: true }));
      await kit.fill(100);
      instance.#main ??= kit;
    }
    instance.#stack.use(await countingProxy(port, server.port, instance.counts));
    return instance;
  }

  async runOnce(): Promise<void> {
    const { code, stderr } = await run({ ...this.#options, args: ['sync', '--only-once'] });
    if (code !== 0) throw new Error(`sync --only-once: exit ${code}\n${stderr}`);
  }

  async start(): Promise<void> {
    this.#stack.use(await start({ ...this.#options, args: ['sync'] }));
  }

  async change(value: string): Promise<void> {
    await this.#main?.put(DBI, 'probe', value);
  }

  async has(value: string): Promise<void> {
    await until(async () => (await this.#main?.get(DBI, 'probe'))?.value === value, {
      what: `${this.#options.cwd} has ${value}`,
      // Of a hundred instances it has a hundred snapshots to merge before.
      timeoutMs: 300_000,
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync();
  }
}

/** Passes everything on as it is: the signatures cover the address that the client believes to speak to. */
async function countingProxy(port: number, toPort: number, counts: Counts): Promise<AsyncDisposable> {
  const agent = new Agent({ keepAlive: true });
  const server = createServer((incoming, outgoing) => {
    counts[kindOf(incoming)] += 1;
    const { method, url: path, headers } = incoming;
    const onward = request({ agent, port: toPort, host: '127.0.0.1', method, path, headers }, (answer) => {
      outgoing.writeHead(answer.statusCode ?? 502, answer.rawHeaders);
      answer.pipe(outgoing);
    });
    onward.once('error', () => outgoing.destroy());
    outgoing.once('close', () => onward.destroy());
    incoming.pipe(onward);
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, '127.0.0.1', resolve);
  });
  return {
    [Symbol.asyncDispose]() {
      server.closeAllConnections();
      agent.destroy();
      return new Promise((resolve) => void server.close(() => resolve()));
    },
  };
}

function kindOf({ method, url = '/' }: IncomingMessage): Kind {
  const [, bucket, ...key] = new URL(url, 'http://s3').pathname.split('/');
  const object = key.join('/');
  if (bucket === '' || (method !== 'GET' && method !== 'PUT')) return 'other';
  if (object === '') return method === 'GET' ? 'list' : 'other';
  const what = object === 'update-marker' ? 'marker' : 'snapshot';
  return method === 'GET' ? `get ${what}` : `put ${what}`;
}

// Idle most of the time, so they are watched side by side.
const results = await Promise.all(
  SETS.flatMap((set) => [false, true].map((marker) => measureSet(set, marker))),
);
const report = [
  `${machine()} Idle instances were watched for ${seconds} s.`,
  '',
  markdownTable(
    ['instances', 'update marker', 'LIST', 'GET', 'PUT', 'AWS, a month'],
    results.map(({ idle }) => idle),
    2,
  ).trimEnd(),
  '',
  markdownTable(
    ['instances', 'update marker', 'sender: PUT', 'LIST', 'GET', 'each receiver: PUT', 'LIST', 'GET'],
    results.map(({ change }) => change),
    2,
  ).trimEnd(),
  '',
].join('\n');
process.stdout.write(`\n${report}`);
if (process.env['BENCH_WRITE'] === '1') writeReport('requests', report);
