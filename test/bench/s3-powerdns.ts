/**
 * How long `pdnsutil` and the API of a PowerDNS take while snapshots of a million records are merged into its LMDB, one after the
 * other: without a daemon, with ours, with the reference.
 */
import { copyFileSync, createWriteStream, mkdirSync, readdirSync } from 'node:fs';
import { once } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';
import { run, start, tempDir, until, type Running, type TempDir } from '../helpers/process.ts';
import { powerDns, type PowerDns } from '../helpers/powerdns.ts';
import { Testkit } from '../helpers/testkit.ts';
import { programs, quantile, type Program } from './measure.ts';
import { markdownTable, say } from './report.ts';
import type { Store } from './s3-store.ts';

const NEWER_FRACTION = 0.001;
const EVERY_MS = 2000;
const STAGE = 'stage';
const WRITER = 'writer';

interface Durations {
  readonly pdnsutilMs: number[];
  readonly apiMs: number[];
}

/**
 * A zone of BENCH_RECORDS (1000000) names, made by PowerDNS, is on B at the start. For BENCH_SECONDS (45), every 2 s a snapshot comes in which
 * 0.1 % of them, all over the LMDB, are newer; beside it, B's own small zone is changed by `pdnsutil` and the API in turns.
 */
export async function benchPowerDns(store: Store): Promise<string> {
  const records = Number(process.env['BENCH_RECORDS'] || 1_000_000);
  const seconds = Number(process.env['BENCH_SECONDS'] || 45);
  await using dir = await tempDir('lightningstream-bench-', process.env['BENCH_DIR']);
  say('PowerDNS: preparing');
  const source = await powerDns(dir.join('source'));
  await loadZone(source, dir, records);
  const base = { main: dir.join('main.mdb'), shard: dir.join('shard.mdb') };
  copyFileSync(source.lmdbPath, base.main);
  copyFileSync(source.shardPath, base.shard);
  const snapshots = await makeSnapshots(store, dir, source, Math.ceil((seconds * 1000) / EVERY_MS) + 1);

  const rows: string[][] = [];
  for (const program of [undefined, ...programs]) {
    const name = program === undefined ? 'no daemon' : program.name;
    const result = await phase(store, dir, base, snapshots, program, seconds * 1000);
    rows.push([
      name,
      program === undefined ? '' : String(result.merges),
      ...cells(result.pdnsutilMs),
      ...cells(result.apiMs),
    ]);
    say(`PowerDNS: ${rows.at(-1)?.join(' | ') ?? ''}`);
  }
  const head = ['beside it', 'merges'];
  for (const kind of ['`pdnsutil`', 'API']) head.push(`${kind}: calls`, 'median', 'p99', 'worst');
  return markdownTable(head, rows, 1);
}

/** The source's zones: a big one, and a small one to change. */
async function loadZone(source: PowerDns, dir: TempDir, records: number): Promise<void> {
  const file = createWriteStream(dir.join('big.zone'));
  file.write('$ORIGIN big.example.\n$TTL 3600\n@ SOA ns1 hostmaster 1 10800 3600 604800 3600\n@ NS ns1\n');
  for (let number = 0; number < records; number += 1) {
    const address = [number >>> 16, number >>> 8, number].map((part) => part & 255).join('.');
    if (!file.write(`host-${number} A 10.${address}\n`)) await once(file, 'drain');
  }
  file.end();
  await once(file, 'close');
  await source.pdnsutil('load-zone', 'big.example', dir.join('big.zone'));
  await source.pdnsutil('create-zone', 'small.example', 'ns1.small.example');
}

/** Puts the sequence of snapshots, with its beginning, into a bucket of its own; returns their names. */
async function makeSnapshots(store: Store, dir: TempDir, source: PowerDns, count: number): Promise<string[]> {
  await store.createBucket(STAGE);
  const [ours] = programs;
  if (ours === undefined) throw new Error('no program');
  const names: string[] = [];
  await using kit = new Testkit(source.shardPath, { noSubdir: true });
  for (let number = 0; number < count; number += 1) {
    if (number > 0) await kit.touch(NEWER_FRACTION, { keepValue: true });
    const storage = dir.join(`storage-${number}`);
    const cwd = dir.join(`source-${number}`);
    mkdirSync(cwd);
    const { code, stderr } = await run({
      command: ours.file,
      args: ['sync', '--only-once'],
      config: config(WRITER, source.lmdbPath, { type: 'fs', options: { root_path: storage } }),
      cwd,
      env: { CACHE_DIRECTORY: cwd },
    });
    if (code !== 0) throw new Error(`making snapshots: exit ${code}\n${stderr}`);
    for (const name of readdirSync(storage).filter((one) => number === 0 || one.startsWith('shard__'))) {
      await store.put(STAGE, name, `${storage}/${name}`);
      names.push(name);
    }
  }
  return names;
}

async function phase(
  store: Store,
  dir: TempDir,
  base: { readonly main: string; readonly shard: string },
  snapshots: readonly string[],
  program: Program | undefined,
  durationMs: number,
): Promise<Durations & { readonly merges: number }> {
  const name = program?.name ?? 'none';
  const bucket = `powerdns-${name}`;
  await store.createBucket(bucket);
  await using dns = await powerDns(dir.join(name));
  copyFileSync(base.main, dns.lmdbPath);
  copyFileSync(base.shard, dns.shardPath);
  await dns.start();
  const waiting = snapshots.slice();
  const feed = async (): Promise<void> => {
    const next = waiting.shift();
    if (next !== undefined) await store.copy(STAGE, bucket, next);
  };
  // Those of the beginning, which hold what B holds.
  await feed();
  await feed();
  await using stack = new AsyncDisposableStack();
  let daemon: Running | undefined;
  if (program !== undefined) {
    daemon = stack.use(
      await start({
        command: program.file,
        args: ['sync'],
        config: config('b', dns.lmdbPath, store.section(bucket, { marker: false })),
        cwd: dns.directory,
        env: { CACHE_DIRECTORY: dns.directory },
      }),
    );
    await until(async () => (await store.list(bucket, 'shard__b__')).length > 0, {
      what: 'B has stored a snapshot',
      timeoutMs: 60_000,
    });
  }
  const merged = (): number => (daemon === undefined ? 0 : shardUpdates(daemon));
  const mergedBefore = merged();
  const timer = setInterval(() => void feed(), EVERY_MS);
  stack.defer(() => clearInterval(timer));

  const result: Durations = { pdnsutilMs: [], apiMs: [] };
  const endMs = performance.now() + durationMs;
  for (let number = 0; performance.now() < endMs; number += 1) {
    const address = `192.0.2.${number % 250}`;
    result.pdnsutilMs.push(
      await timed(() => dns.pdnsutil('replace-rrset', 'small.example', 'util', 'A', '60', address)),
    );
    await delay(Math.random() * 100);
    const rrset = {
      name: 'api.small.example.',
      type: 'A',
      ttl: 60,
      changetype: 'REPLACE',
      records: [{ content: address, disabled: false }],
    };
    result.apiMs.push(await timed(() => dns.api('PATCH', 'zones/small.example.', { rrsets: [rrset] })));
    await delay(Math.random() * 100);
  }
  return { ...result, merges: merged() - mergedBefore };
}

function shardUpdates(daemon: Running): number {
  return (daemon.stdout() + daemon.stderr())
    .split('\n')
    .filter((line) => line.includes('Loaded remote update') && line.includes(WRITER)).length;
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const begunMs = performance.now();
  await work();
  return performance.now() - begunMs;
}

function config(instance: string, database: string, storage: object): string {
  const native = { schema_tracks_changes: true, options: { no_subdir: true } };
  return JSON.stringify({
    instance,
    lmdbs: { main: { path: database, ...native }, shard: { path: `${database}-0`, ...native } },
    storage,
  });
}

function cells(durationsMs: readonly number[]): string[] {
  return [
    String(durationsMs.length),
    ...[quantile(durationsMs, 0.5), quantile(durationsMs, 0.99), Math.max(...durationsMs)].map(
      (ms) => `${ms.toFixed(0)} ms`,
    ),
  ];
}
