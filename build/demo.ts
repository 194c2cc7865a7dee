/**
 * `make demo`: two LMDBs, each with its daemon, replicate through a directory. Shows a change in both directions, a conflict and a
 * deletion with the time each took, then stays up until Ctrl-C (or for DEMO_SECONDS). Everything lives in one temporary directory
 * that goes with it.
 */
import { mkdir } from 'node:fs/promises';
import { styleText } from 'node:util';
import { freePort, start, tempDir } from '../test/helpers/process.ts';
import { Testkit } from '../test/helpers/testkit.ts';
import { healthy, measure, perform, say, stay, step, wait, watch } from './demo-stage.ts';

interface Instance extends AsyncDisposable {
  readonly name: string;
  readonly address: string;
  readonly application: Testkit;
}

const DBI = 'records';
const WRITTEN_BEFORE = 'written before the daemon started';
/** Longer than the default `lmdb_poll_interval`. */
const QUIET_MS = 1300;

await perform(demo);

async function demo(stayMs: number | undefined): Promise<void> {
  await using dir = await tempDir('lightningstream-demo-');
  await mkdir(dir.join('storage'));
  say(`Two LMDBs, a daemon beside each, and one directory as their shared storage.`);
  await using a = await startInstance('A', dir.path);
  await using b = await startInstance('B', dir.path);
  await Promise.all([a, b].map(({ name, address }) => healthy(name, address)));
  await Promise.all([
    arrives(a, 'b.example.org TXT', WRITTEN_BEFORE),
    arrives(b, 'a.example.org TXT', WRITTEN_BEFORE),
  ]);
  say(`Both are up and have exchanged what was there before they started.`);

  await step('1. The application beside A adds a record', QUIET_MS);
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

  await step('2. The application beside B changes one of them', QUIET_MS);
  await b.application.put(DBI, 'www.example.org A', '192.0.2.80');
  await measure(
    () => arrives(a, 'www.example.org A', '192.0.2.80'),
    'A has it: www.example.org A = 192.0.2.80',
  );

  await step('3. A conflict: both change the same record, B a moment later', QUIET_MS);
  const nowNano = BigInt(Date.now()) * 1_000_000n;
  await Promise.all([
    a.application.put(DBI, 'www.example.org A', '198.51.100.1', { timestampNano: nowNano }),
    b.application.put(DBI, 'www.example.org A', '198.51.100.2', { timestampNano: nowNano + 1_000_000n }),
  ]);
  await measure(
    () => Promise.all([a, b].map((side) => arrives(side, 'www.example.org A', '198.51.100.2'))),
    'the last writer won on both: www.example.org A = 198.51.100.2',
  );

  await step('4. The application beside B deletes a record', QUIET_MS);
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
  await stay(stayMs);
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
  watch(`The daemon of ${name}`, daemon, () => ending);
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

async function arrives(instance: Instance, key: string, value: string): Promise<void> {
  const there = async () => (await instance.application.get(DBI, key))?.value === value;
  await wait(there, `${key} on ${instance.name}`);
}
