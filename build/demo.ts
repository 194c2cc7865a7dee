/**
 * `make demo`: two LMDBs, each with its daemon, replicate through a directory. Shows a change in both directions, a conflict and a
 * deletion with the time each took, then stays up until Ctrl-C (or for DEMO_SECONDS). Everything lives in one temporary directory
 * that goes with it.
 */
import { mkdir } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { styleText } from 'node:util';
import { freePort, start, tempDir, until } from '../test/helpers/process.ts';
import { Testkit } from '../test/helpers/testkit.ts';

interface Instance extends AsyncDisposable {
  readonly name: string;
  readonly address: string;
  readonly application: Testkit;
}

const DBI = 'records';
const WRITTEN_BEFORE = 'written before the daemon started';
const stopping = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(signal, () => stopping.abort());

try {
  await demo(durationMs());
} catch (error) {
  if (!stopping.signal.aborted) {
    process.stderr.write(
      `\n${styleText('red', 'The demo failed:')} ${error instanceof Error ? error.message : String(error)}\n`,
    );
    process.exitCode = 1;
  }
}

/** undefined = until Ctrl-C. */
function durationMs(): number | undefined {
  const text = process.env['DEMO_SECONDS'];
  if (text === undefined || text === '') return undefined;
  const seconds = Number(text);
  if (!Number.isFinite(seconds) || seconds < 0)
    throw new Error(`DEMO_SECONDS must be a number of seconds, not "${text}"`);
  return seconds * 1000;
}

async function demo(stayMs: number | undefined): Promise<void> {
  await using dir = await tempDir('lightningstream-demo-');
  await mkdir(dir.join('storage'));
  say(`Two LMDBs, a daemon beside each, and one directory as their shared storage.`);
  await using a = await startInstance('A', dir.path);
  await using b = await startInstance('B', dir.path);
  await Promise.all([a, b].map(healthy));
  await Promise.all([
    arrives(a, 'b.example.org TXT', WRITTEN_BEFORE),
    arrives(b, 'a.example.org TXT', WRITTEN_BEFORE),
  ]);
  say(`Both are up and have exchanged what was there before they started.`);

  await step('1. The application beside A adds a record');
  await a.application.put(DBI, 'www.example.org A', '192.0.2.1');
  await measure(
    () => arrives(b, 'www.example.org A', '192.0.2.1'),
    'B has it: www.example.org A = 192.0.2.1',
  );
  await a.application.put(DBI, 'mail.example.org A', '192.0.2.25');
  await measure(
    () => arrives(b, 'mail.example.org A', '192.0.2.25'),
    'and another right behind it: changes in quick succession share a snapshot, at most one a second',
  );

  await step('2. The application beside B changes one of them');
  await b.application.put(DBI, 'www.example.org A', '192.0.2.80');
  await measure(
    () => arrives(a, 'www.example.org A', '192.0.2.80'),
    'A has it: www.example.org A = 192.0.2.80',
  );

  await step('3. A conflict: both change the same record, B a moment later');
  const nowNano = BigInt(Date.now()) * 1_000_000n;
  await Promise.all([
    a.application.put(DBI, 'www.example.org A', '198.51.100.1', { timestampNano: nowNano }),
    b.application.put(DBI, 'www.example.org A', '198.51.100.2', { timestampNano: nowNano + 1_000_000n }),
  ]);
  await measure(
    () => Promise.all([a, b].map((side) => arrives(side, 'www.example.org A', '198.51.100.2'))),
    'the last writer won on both: www.example.org A = 198.51.100.2',
  );

  await step('4. The application beside B deletes a record');
  await b.application.delete(DBI, 'mail.example.org A');
  await measure(
    () =>
      wait(
        async () => (await a.application.get(DBI, 'mail.example.org A'))?.deleted,
        'the deletion reaches A',
      ),
    'it is gone on A as well',
  );

  say(`\n${styleText('bold', 'Status pages')}   A  http://${a.address}/   B  http://${b.address}/`);
  say(`               /healthz and /metrics are there, too`);
  say(`Files          ${dir.path}`);
  if (stayMs === undefined) say(`\nStays up until you press Ctrl-C.`);
  await stay(stayMs);
  if (process.exitCode === undefined) say(`\nStopping; nothing is left behind.`);
}

async function startInstance(name: string, directory: string): Promise<Instance> {
  const address = `127.0.0.1:${await freePort()}`;
  const lower = name.toLowerCase();
  const database = `${directory}/${lower}.mdb`;
  const config = `
instance: ${lower}
lmdbs:
  main:
    path: ${database}
    schema_tracks_changes: true
    options:
      no_subdir: true
storage:
  type: fs
  options:
    root_path: ${directory}/storage
spool_dir: ${directory}
http:
  address: ${address}
`;
  await mkdir(`${directory}/${lower}`);
  // The application comes first, as it usually does: it owns the database.
  const application = new Testkit(database, { noSubdir: true });
  await application.put(DBI, `${lower}.example.org TXT`, WRITTEN_BEFORE);
  // Ctrl-C reaches us alone; the daemons are told by SIGTERM, once.
  const daemon = await start({ args: ['sync'], config, cwd: `${directory}/${lower}`, ownProcessGroup: true });
  let ending = false;
  void daemon.exited.then(() => {
    if (ending || stopping.signal.aborted) return;
    process.stderr.write(`\nThe daemon of ${name} ended by itself:\n${daemon.stderr()}${daemon.stdout()}\n`);
    process.exitCode = 1;
    stopping.abort();
  });
  return {
    name,
    address,
    application,
    async [Symbol.asyncDispose]() {
      ending = true;
      await application[Symbol.asyncDispose]();
      if (daemon.child.exitCode === null && daemon.child.signalCode === null) await daemon.stop();
      await daemon[Symbol.asyncDispose]();
    },
  };
}

async function healthy(instance: Instance): Promise<void> {
  const url = `http://${instance.address}/healthz`;
  await wait(async () => (await fetch(url)).ok, `daemon ${instance.name} is up`);
}

async function arrives(instance: Instance, key: string, value: string): Promise<void> {
  const there = async () => (await instance.application.get(DBI, key))?.value === value;
  await wait(there, `${key} on ${instance.name}`);
}

async function wait(condition: () => Promise<boolean | undefined>, what: string): Promise<void> {
  await until(condition, { what, timeoutMs: 30_000, intervalMs: 2, signal: stopping.signal });
}

/** Until the time is over, a signal comes, or a daemon ends. */
async function stay(stayMs: number | undefined): Promise<void> {
  // A timer's longest time is 24 days; then the demo may end.
  const longest = 2 ** 31 - 1;
  await delay(Math.min(stayMs ?? longest, longest), undefined, { signal: stopping.signal }).catch(
    () => undefined,
  );
}

async function measure(condition: () => Promise<unknown>, text: string): Promise<void> {
  const begunMs = performance.now();
  await condition();
  const elapsed = `${(performance.now() - begunMs).toFixed(0)} ms`.padStart(7);
  say(`  ${styleText('green', '✓')} ${styleText('bold', elapsed)}  ${text}`);
}

/**
 * A daemon publishes the first change after a quiet time at once, and further ones at most once per `lmdb_poll_interval` (1 s). So
 * each step begins in quiet, as single changes in real life do.
 */
async function step(text: string): Promise<void> {
  await delay(1300, undefined, { signal: stopping.signal });
  say(`\n${styleText('bold', text)}`);
}

function say(text: string): void {
  process.stdout.write(`${text}\n`);
}
