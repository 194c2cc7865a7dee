/** docs/library.md, followed to the letter: its application is a process of its own beside the daemon, its configuration is the daemon's. */
import { mkdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { isDeleted, newer, readHeader, writeHeader } from '../../src/lib/index.ts';
import { loadNative } from '../../src/native/index.ts';
import { hasNodeLmdb, readLmdb, writeLmdb } from '../helpers/lmdb.ts';
import {
  repositoryRoot,
  run,
  type Running,
  start,
  type TempDir,
  tempDir,
  until,
} from '../helpers/process.ts';
import { newSeed, Random, seeded } from './helpers.ts';

const page = readFileSync(join(repositoryRoot, 'docs/library.md'), 'utf8');

function block(language: string, holds: string): string {
  const found = [...page.matchAll(new RegExp(`^\`\`\`${language}\\n([^]*?)^\`\`\`$`, 'gm'))]
    .map(([, text = '']) => text)
    .filter((text) => text.includes(holds));
  expect(found).toHaveLength(1);
  return found[0] ?? '';
}

function replaced(text: string, from: string, to: string): string {
  expect([from, text.split(from).length - 1]).toEqual([from, 1]);
  return text.replace(from, to);
}

/** A host of the page. */
class Host implements AsyncDisposable {
  readonly #directory: string;
  readonly #app: string;
  readonly lmdbPath: string;
  readonly configPath: string;
  #daemon: Running | undefined;

  constructor(name: string, dir: TempDir, app: string) {
    this.#directory = dir.join(name);
    this.#app = app;
    this.lmdbPath = join(this.#directory, 'data.mdb');
    this.configPath = join(this.#directory, 'lightningstream.yaml');
    mkdirSync(this.#directory);
    let config = block('yaml', 'schema_tracks_changes');
    config = replaced(config, 'instance: host1', `instance: ${name}`);
    config = replaced(config, '/var/lib/app/data.mdb', this.lmdbPath);
    config = replaced(config, '/mnt/shared/app', dir.join('storage'));
    writeFileSync(this.configPath, `${config}storage_poll_interval: 100ms\nlmdb_poll_interval: 100ms\n`);
  }

  async start(): Promise<void> {
    this.#daemon = await start({ args: ['-c', this.configPath, 'sync'], env: this.#env });
    await until(() => statSync(this.lmdbPath, { throwIfNoEntry: false }), {
      what: 'the daemon makes the LMDB',
    });
  }

  async stop(): Promise<void> {
    expect((await this.#daemon?.stop())?.code).toBe(0);
  }

  async app(...args: string[]): Promise<string> {
    const { code, stdout, stderr } = await run({
      command: process.execPath,
      args: [this.#app, this.lmdbPath, ...args],
    });
    expect({ args, code, stderr }).toEqual({ args, code: 0, stderr: '' });
    return stdout;
  }

  async reads(key: string, printed: string): Promise<void> {
    await until(async () => (await this.app('get', key)) === `${printed}\n`, {
      what: `${key} is ${printed}`,
    });
  }

  async verify(): Promise<{ code: number | null; digest: string }> {
    const args = ['-c', this.configPath, 'verify', '--latest', '--json'];
    const { code, stdout } = await run({ args, env: this.#env });
    return { code, digest: (JSON.parse(stdout) as { digestAll: string }).digestAll };
  }

  get #env(): Record<string, string> {
    return { CACHE_DIRECTORY: join(this.#directory, 'cache') };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#daemon?.[Symbol.asyncDispose]();
  }
}

/** The application of the page, with its packages where it finds them. */
function installApp(dir: TempDir): string {
  mkdirSync(dir.join('app', 'node_modules'), { recursive: true });
  mkdirSync(dir.join('storage'));
  symlinkSync(repositoryRoot, dir.join('app', 'node_modules', 'lightningstream-ts'));
  symlinkSync(join(repositoryRoot, 'node_modules', 'lmdb'), dir.join('app', 'node_modules', 'lmdb'));
  const path = dir.join('app', 'app.mjs');
  writeFileSync(path, block('js', "from 'lightningstream-ts'"));
  return path;
}

describe('an application in Node.js', () => {
  test('that has the LMDB open beside the daemon is replicated', async () => {
    await using dir = await tempDir('lightningstream-library-');
    const app = installApp(dir);
    const { version } = JSON.parse(
      readFileSync(join(repositoryRoot, 'node_modules/lmdb/package.json'), 'utf8'),
    ) as { version: string };
    expect(page).toContain(`\`lmdb\` ${version} `);
    await using one = new Host('host1', dir, app);
    await using two = new Host('host2', dir, app);
    await one.start();
    await two.start();

    await one.app('put', 'greeting', 'hello');
    await two.reads('greeting', 'hello');
    await two.app('put', 'greeting', 'good day');
    await one.reads('greeting', 'good day');
    await one.app('delete', 'greeting');
    await two.reads('greeting', 'not there');
    // Both write at once, many times, and nothing is lost.
    const keys = Array.from({ length: 12 }, (_, index) => `key-${index}`);
    await Promise.all(
      [one, two].map(async (host, side) => {
        for (const key of keys.filter((_, index) => index % 2 === side))
          await host.app('put', key, `${key}!`);
      }),
    );
    for (const key of keys) for (const host of [one, two]) await host.reads(key, `${key}!`);

    const [first, second] = [await one.verify(), await two.verify()];
    expect([first.code, second.code]).toEqual([0, 0]);
    expect(first.digest).toBe(second.digest);
    await one.stop();
    await two.stop();
    const { dbis } = await readLmdb(two.lmdbPath, { noSubdir: true });
    const entries = dbis['records']?.entries.map(([, value]) => Buffer.from(value, 'hex')) ?? [];
    expect(entries).toHaveLength(13);
    expect(entries.filter(isDeleted)).toHaveLength(1);
  });

  test('whose record comes from a host with a clock ahead can change it all the same', async () => {
    await using dir = await tempDir('lightningstream-library-');
    const app = installApp(dir);
    await using one = new Host('host1', dir, app);
    await using two = new Host('host2', dir, app);
    await one.start();
    await one.app('put', 'key', 'first');
    await one.stop();
    const timestampNano = BigInt(Date.now() + 3_600_000) * 1_000_000n;
    const entry = [hex('key'), writeHeader({ timestampNano }, Buffer.from('ahead')).toString('hex')] as const;
    await writeLmdb(one.lmdbPath, { dbis: { records: { entries: [entry] } } }, { noSubdir: true });
    await one.start();
    await two.start();
    await two.reads('key', 'ahead');
    await two.app('put', 'key', 'later');
    await one.reads('key', 'later');
  });

  test.skipIf(!hasNodeLmdb())(
    'that writes with node-lmdb while nobody has it open is published',
    async () => {
      await using dir = await tempDir('lightningstream-library-');
      const app = installApp(dir);
      await using one = new Host('host1', dir, app);
      await using two = new Host('host2', dir, app);
      const entry = [hex('key'), writeHeader({}, Buffer.from('value')).toString('hex')] as const;
      await writeLmdb(one.lmdbPath, { dbis: { records: { entries: [entry] } } }, { noSubdir: true });
      await one.start();
      await two.start();
      await two.reads('key', 'value');
    },
  );
});

describe('newer', () => {
  test('decides as a merge does', async () => {
    const seed = newSeed();
    await seeded(seed, async () => {
      const random = new Random(seed);
      await using dir = await tempDir('lightningstream-library-');
      // Few different times and values, so that the rare cases are common.
      const stored = (): Buffer => {
        const deleted = random.below(3) === 0;
        const value = deleted ? undefined : Buffer.from(random.pick(['', 'a', 'ab', 'b', '\u0000']));
        const timestampNano = random.pick([0n, 1n, 2n ** 63n, 2n ** 64n - 1n]);
        return writeHeader({ timestampNano, deleted, transactionId: BigInt(random.below(9)) }, value);
      };
      const pairs = Array.from({ length: 2000 }, (_, index) => ({
        key: hex(`key-${index}`),
        local: random.below(8) === 0 ? undefined : stored(),
        remote: random.below(8) === 0 ? undefined : stored(),
      }));
      const paths = { local: dir.join('local.mdb'), remote: dir.join('remote.mdb') };
      for (const side of ['local', 'remote'] as const) {
        const entries = pairs.flatMap(({ key, [side]: value }) =>
          value === undefined ? [] : [[key, value.toString('hex')] as const],
        );
        await writeLmdb(paths[side], { dbis: { data: { entries } } }, { noSubdir: true });
      }
      const options = {
        noSubdir: true,
        create: false,
        dirMask: 0o775,
        fileMask: 0o664,
        mapSizeBytes: 0,
        maxDbs: 8,
      };
      const native = loadNative();
      const spoolPath = dir.join('snapshot');
      const remote = native.openEnvironment(paths.remote, options);
      await remote.publish({
        spoolPath,
        meta: { generationId: 'GX', instanceId: 'remote', hostname: 'host', databaseName: 'main' },
        nowNano: 1n,
        earliestNano: 1n,
        newerThan: 0n,
        mode: 'native',
        dupsortHack: false,
      });
      await remote.close();
      const local = native.openEnvironment(paths.local, options);
      await local.merge({
        spoolPath,
        mode: 'native',
        dupsortHack: false,
        captureNano: 0n,
        deletedCutoffNano: 0n,
        createFlags: {},
        headerExtraPaddingBlock: false,
      });
      await local.close();
      const { dbis } = await readLmdb(paths.local, { noSubdir: true });
      const merged = new Map(dbis['data']?.entries);
      for (const { key, local: ours, remote: theirs } of pairs) {
        const winner = newer(theirs, ours) ? theirs : ours;
        expect([key, content(merged.get(key))]).toEqual([key, content(winner?.toString('hex'))]);
      }
    });
  });
});

function content(stored: string | undefined): unknown {
  if (stored === undefined) return undefined;
  const { timestampNano, deleted, value } = readHeader(Buffer.from(stored, 'hex'));
  return { timestampNano, deleted, value: value.toString('hex') };
}

function hex(text: string): string {
  return Buffer.from(text).toString('hex');
}
