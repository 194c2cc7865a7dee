/** What `migrate` makes of databases of PowerDNS 4.7: to PowerDNS 4.9 and 5, it is what they make of them themselves. */
import { afterAll, beforeAll, expect, test } from 'vitest';

import {
  hasNodeLmdb,
  readLmdb,
  writeLmdb,
  type HexEntry,
  type LmdbContents,
  type LmdbWrite,
} from '../helpers/lmdb.ts';
import type { DnsKey } from '../helpers/powerdns.ts';
import { tempDir, until } from '../helpers/process.ts';
import { startMinio } from '../helpers/s3-server.ts';
import { describeWithTools } from '../helpers/tools.ts';
import {
  change,
  copyDatabase,
  deleteSome,
  differences,
  liveEntries,
  look,
  makeZones,
  ODD,
  SIGNED,
  transfer,
  validate,
  withoutChance,
  withoutModificationTimes,
  type Seen,
} from './migrate-helpers.ts';
import { comparable, inBucket, site, ZONE, type Site, type SiteOptions } from './powerdns-helpers.ts';

type Upgraded = 'pdns-4.9' | 'pdns-5';
const SCHEMA: Readonly<Record<Upgraded, string>> = { 'pdns-4.9': '5', 'pdns-5': '6' };

/** `migrate run` with the site's own configuration; it must succeed. */
async function migrate({ daemon }: Site, to: string, ...flags: readonly string[]): Promise<string> {
  const { code, stdout, stderr } = await daemon.run({ args: ['migrate', 'run', '--to', to, ...flags] });
  if (code !== 0) throw new Error(`migrate run --to ${to} ended with ${code}:\n${stdout}${stderr}`);
  return stdout;
}

/** The daemon looks at everything once: shadows are brought up to date, and snapshots exchanged. */
async function once({ daemon }: Site): Promise<void> {
  const { code, stderr } = await daemon.run({ args: ['sync', '--only-once'] });
  if (code !== 0) throw new Error(`${daemon.name} ended with ${code}:\n${stderr}`);
}

/** Waits until its daemon has seen each change. */
async function tracked({ daemon }: Site): Promise<void> {
  await until(
    async () => {
      const { stdout } = await daemon.run({ args: ['migrate', 'plan', '--to', '5', '--force', '--json'] });
      const { databases } = JSON.parse(stdout) as {
        readonly databases: readonly { readonly untracked: number }[];
      };
      return databases.length === 1 && databases[0]?.untracked === 0;
    },
    { what: `${daemon.name} has tracked each change` },
  );
}

describeWithTools(['pdns-4.7', 'pdns-4.9', 'pdns-5'], 'a database of PowerDNS 4.7', () => {
  /** What the server shows of a database: at first, and after the same changes everywhere. */
  interface Shown {
    readonly entries: unknown;
    readonly before: Seen;
    readonly after: Seen;
  }

  const settings = { 'allow-axfr-ips': '127.0.0.1' };
  const atEnd = new AsyncDisposableStack();
  let directory: string;
  /** In shadow mode, with deletions, and a change that nobody has tracked yet. */
  let original: Site;
  const keys = new Map<string, readonly DnsKey[]>();
  const transfers: unknown[] = [];
  const upgrades = new Map<Upgraded, Promise<Shown>>();

  beforeAll(async () => {
    directory = atEnd.use(await tempDir('lightningstream-migrate-')).path;
    original = await made('original');
    const { dns } = original;
    await once(original);
    await deleteSome(dns);
    await once(original);
    await dns.pdnsutil('add-record', ZONE, 'late', 'A', '60', '192.0.2.99');
    await dns.pdnsutil('rectify-zone', ZONE);
    await dns.start();
    for (const [zone] of SIGNED) {
      keys.set(zone, await dns.dnskeys(zone));
      transfers.push(await transfer(dns, zone));
    }
    await validate(dns, keys);
    await dns.stop();
  });
  afterAll(() => atEnd.disposeAsync());

  async function made(name: string, more: SiteOptions['settings'] = {}): Promise<Site> {
    const result = await site(name, directory, { tool: 'pdns-4.7', settings: { ...settings, ...more } });
    await makeZones(atEnd.use(result).dns);
    return result;
  }
  async function copyOf(
    { dns }: Site,
    name: string,
    tool: Upgraded,
    more: SiteOptions['settings'] = {},
  ): Promise<Site> {
    const copy = await site(name, directory, { tool, settings: { ...settings, ...more } });
    await copyDatabase(dns, atEnd.use(copy).dns);
    return copy;
  }
  /** Copied, and upgraded by the server. */
  async function upgraded(name: string, tool: Upgraded): Promise<Site> {
    const copy = await copyOf(original, name, tool);
    await copy.dns.pdnsutil('list-all-zones');
    return copy;
  }
  async function show({ dns }: Site): Promise<Shown> {
    const entries = await liveEntries(dns);
    await dns.start();
    const before = await look(dns);
    await validate(dns, keys);
    expect(await Promise.all(SIGNED.map(([zone]) => transfer(dns, zone)))).toEqual(transfers);
    await change(dns);
    const after = withoutChance(await look(dns));
    await dns.stop();
    return { entries, before, after };
  }
  function upgrade(tool: Upgraded): Promise<Shown> {
    const shown = upgrades.get(tool) ?? upgraded(`own-${tool}`, tool).then(show);
    upgrades.set(tool, shown);
    return shown;
  }

  test.skipIf(!hasNodeLmdb())('upgraded twice is the same, and a changed byte is noticed', async () => {
    const first = await upgrade('pdns-4.9');
    const { dns } = await upgraded('changed', 'pdns-4.9');
    expect(await liveEntries(dns)).toEqual(first.entries);
    await dns.start();
    expect(differences(await look(dns), first.before)).toEqual([]);
    await dns.stop();

    const hex = (text: string): string => Buffer.from(text).toString('hex');
    const file = { noSubdir: true };
    const [main, shard] = [await readLmdb(dns.lmdbPath, file), await readLmdb(dns.shardPath, file)];
    const found = ({ dbis }: LmdbContents, dbi: string, where: 0 | 1, text: string): readonly HexEntry[] => {
      const entries = dbis[dbi]?.entries.filter((entry) => entry[where].includes(hex(text))) ?? [];
      if (entries.length === 0) throw new Error(`no ${text} in ${dbi}`);
      return entries;
    };
    const replaced = (contents: LmdbContents, dbi: string, from: string, to: string): LmdbWrite['dbis'] => {
      const entries = found(contents, dbi, 1, from);
      return { [dbi]: { entries: entries.map(([key, value]) => [key, value.replace(hex(from), hex(to))]) } };
    };
    const removed = (dbi: string, name: string): LmdbWrite['dbis'] => ({
      [dbi]: { remove: found(main, dbi, 0, name).map(([key]) => key) },
    });
    const dbis = {
      ...replaced(main, 'domains_v5', 'somebody', 'someb0dy'),
      ...replaced(main, 'metadata_v5', 'team two', 'team too'),
      ...replaced(main, 'tsig_v5', 'transfer', 'tranzfer'),
      ...removed('metadata_v5_0', 'narrow'),
      ...removed('keydata_v5_0', 'odd'),
    };
    await writeLmdb(dns.lmdbPath, { dbis }, file);
    await writeLmdb(dns.shardPath, { dbis: replaced(shard, 'records_v5', 'quotes', 'quotez') }, file);
    expect(differences({ entries: await liveEntries(dns) }, { entries: first.entries })).toEqual(['entries']);
    await dns.start();
    const seen = differences(await look(dns), first.before);
    for (const changed of [
      'API zones',
      `API zones/${ODD}.`,
      `get-meta ${ODD}`,
      'list-tsig-keys',
      'API zones/narrow.example./metadata',
      `API zones/${ODD}./cryptokeys`,
      `list-zone ${ODD}.`,
      `AXFR ${ODD}.`,
    ]) {
      expect(seen).toContain(changed);
    }
    expect(seen).not.toContain(`list-zone ${ZONE}.`);
  });

  test.each(['pdns-4.9', 'pdns-5'] as const)('%s takes the result for its own', async (tool) => {
    const ours = await copyOf(original, `ours-${tool}`, tool);
    const earliest = Math.floor(Date.now() / 1000);
    await migrate(ours, SCHEMA[tool]);
    const latest = Math.ceil(Date.now() / 1000);
    const [shown, own] = await Promise.all([show(ours), upgrade(tool)]);
    expect(shown.entries).toEqual(own.entries);
    // The API shows the time of a record, which the server's own upgrade has forgotten. What was not tracked has that of the migration.
    const late = Number(
      /"late.*?"modified_at":(\d+)/.exec(JSON.stringify(shown.before[`API zones/${ZONE}.`]))?.[1],
    );
    expect(late).toBeGreaterThanOrEqual(earliest);
    expect(late).toBeLessThanOrEqual(latest);
    expect(differences(withoutModificationTimes(shown.before), own.before)).toEqual([]);
    expect(differences(shown.after, own.after)).toEqual([]);
    expect(await migrate(ours, SCHEMA[tool])).toMatch(/nothing to do/);
  });

  test('4.9 opens it, and then 5', async () => {
    const nine = await copyOf(original, 'via-4.9', 'pdns-4.9');
    await migrate(nine, '5');
    await nine.dns.pdnsutil('list-all-zones');
    const own = await upgrade('pdns-5');
    const five = await copyOf(nine, 'via-5', 'pdns-5');
    await five.dns.pdnsutil('list-all-zones');
    expect(await liveEntries(five.dns)).toEqual(own.entries);
    const six = await copyOf(nine, 'via-6', 'pdns-5');
    await migrate(six, '6');
    await six.dns.pdnsutil('list-all-zones');
    expect(await liveEntries(six.dns)).toEqual(own.entries);
    await six.dns.start();
    expect(differences(withoutModificationTimes(await look(six.dns)), own.before)).toEqual([]);
  });

  test('three shards become one', async () => {
    const shards = { 'lmdb-shards': '3' };
    const three = await made('three', shards);
    const own = await copyOf(three, 'own-three', 'pdns-4.9', {
      ...shards,
      'lmdb-lightning-stream': undefined,
    });
    const ours = await copyOf(three, 'ours-three', 'pdns-4.9');
    await migrate(ours, '5', '--merge-shards');
    await Promise.all([own.dns.start(), ours.dns.start()]);
    const [wanted, seen] = await Promise.all([look(own.dns), look(ours.dns)]);
    // Zones are listed in the order of the shards, or of their ids.
    expect(differences(withoutChance(seen), withoutChance(wanted))).toEqual([]);
    expect(wanted['check-all-zones']).toMatch(/^Checked 10 zones, 0 had errors\.$/m);
  });
});

describeWithTools(
  ['pdns-4.7', 'pdns-4.9', 'pdns-5', 'minio'],
  'two PowerDNS 4.7 servers that went apart',
  () => {
    const atEnd = new AsyncDisposableStack();
    let minio: Awaited<ReturnType<typeof startMinio>>;
    beforeAll(async () => {
      minio = atEnd.use(await startMinio());
    });
    afterAll(() => atEnd.disposeAsync());

    test.each([
      { tool: 'pdns-4.9', rescue: false },
      { tool: 'pdns-4.9', rescue: true },
      { tool: 'pdns-5', rescue: true },
    ] as const)(
      'agree with $tool, one after the other; upgraded by the server before: $rescue',
      async ({ tool, rescue }) => {
        await using dir = await tempDir('lightningstream-migrate-');
        const bucket = inBucket(minio, `${tool}-${rescue}`.replace('.', '-'));
        const below = (prefix: string): NonNullable<SiteOptions['storage']> => ({
          ...bucket,
          options: { ...bucket.options, global_prefix: prefix },
        });
        const old = { tool: 'pdns-4.7', create: true, storage: below('v4/') } as const;
        await using oldA = await site('a', dir.join('old'), old);
        await using oldB = await site('b', dir.join('old'), old);
        const put = ({ dns }: Site, name: string, address: string): Promise<string> =>
          dns.pdnsutil('replace-rrset', ZONE, name, 'A', '60', address);
        const drop = ({ dns }: Site, name: string): Promise<string> =>
          dns.pdnsutil('delete-rrset', ZONE, name, 'A');
        const makeZone = async ({ dns }: Site, zone: string): Promise<void> => {
          await dns.pdnsutil('create-zone', zone, `ns1.${ZONE}`);
          await dns.pdnsutil('add-record', zone, 'www', 'A', '60', '192.0.2.1');
        };

        await makeZone(oldA, ZONE);
        for (const zone of ['gone-a.example', 'gone-b.example']) await makeZone(oldA, zone);
        const names = ['a-last', 'b-last', 'a-deleted', 'b-deleted', 'a-deleted-first', 'b-deleted-last'];
        for (const name of names) await put(oldA, name, '192.0.2.1');
        for (const key of ['a', 'b', 'both'])
          await oldA.dns.pdnsutil('generate-tsig-key', key, 'hmac-sha256');
        for (const kind of ['X-A', 'X-B']) await oldA.dns.pdnsutil('set-meta', ZONE, kind, 'both');
        await once(oldA);
        await once(oldB);
        await oldB.dns.start();
        expect(await oldB.dns.query(`b-deleted-last.${ZONE}`, 'A')).toEqual(['192.0.2.1']);
        await oldB.hasZones([`${ZONE}.`, 'gone-a.example.', 'gone-b.example.']);
        await oldB.dns.stop();

        // Each with a storage of its own: what one tracks does not reach the other.
        for (const { daemon } of [oldA, oldB]) {
          const config = { storage: { options: { global_prefix: `apart-${daemon.name}/` } } };
          await daemon.start({ config });
          await daemon.ok();
        }
        await put(oldA, 'b-last', '192.0.2.10');
        await put(oldA, 'b-deleted-last', '192.0.2.10');
        await drop(oldA, 'a-deleted-first');
        await oldA.dns.pdnsutil('set-meta', ZONE, 'X-A');
        await tracked(oldA);

        await put(oldB, 'a-last', '192.0.2.20');
        await put(oldB, 'b-last', '192.0.2.20');
        await put(oldB, 'a-deleted-first', '192.0.2.20');
        await drop(oldB, 'b-deleted');
        await drop(oldB, 'b-deleted-last');
        await makeZone(oldB, 'made-b.example');
        await oldB.dns.pdnsutil('delete-zone', 'gone-b.example');
        await oldB.dns.pdnsutil('delete-tsig-key', 'b');
        await oldB.dns.pdnsutil('set-meta', ZONE, 'X-NEW-B', 'b');
        await oldB.dns.pdnsutil('set-meta', ZONE, 'X-B');
        await tracked(oldB);

        await put(oldA, 'a-last', '192.0.2.30');
        await drop(oldA, 'a-deleted');
        await makeZone(oldA, 'made-a.example');
        await oldA.dns.pdnsutil('delete-zone', 'gone-a.example');
        await oldA.dns.pdnsutil('delete-tsig-key', 'a');
        await oldA.dns.pdnsutil('set-meta', ZONE, 'X-NEW-A', 'a');
        await tracked(oldA);
        await oldA.daemon.stop();
        // Nobody tracks that.
        await put(oldA, 'untracked', '192.0.2.30');

        async function join(from: Site): Promise<Site> {
          const joined = await site(from.daemon.name, dir.join('new'), {
            tool,
            create: true,
            storage: below(`v${SCHEMA[tool]}/`),
          });
          try {
            await copyDatabase(from.dns, joined.dns);
            if (rescue) {
              await joined.dns.start();
              await joined.replace(`upgraded-${joined.daemon.name}.${ZONE}`, '192.0.2.50');
              await joined.dns.stop();
            }
            await migrate(joined, SCHEMA[tool]);
            await joined.dns.start();
            await joined.daemon.start();
            await joined.daemon.ok();
            return joined;
          } catch (error) {
            await joined[Symbol.asyncDispose]();
            throw error;
          }
        }
        await using a = await join(oldA);
        // Meanwhile both go on.
        await a.replace(`new-side.${ZONE}`, '192.0.2.40');
        await put(oldB, 'old-side', '192.0.2.40');
        await tracked(oldB);
        await oldB.daemon.stop();
        await using b = await join(oldB);

        const answers: Readonly<Record<string, readonly string[]>> = {
          'a-last': ['192.0.2.30'],
          'b-last': ['192.0.2.20'],
          'a-deleted': [],
          'b-deleted': [],
          'a-deleted-first': ['192.0.2.20'],
          'b-deleted-last': [],
          untracked: ['192.0.2.30'],
          'new-side': ['192.0.2.40'],
          'old-side': ['192.0.2.40'],
          ...(rescue ? { 'upgraded-a': ['192.0.2.50'], 'upgraded-b': ['192.0.2.50'] } : {}),
        };
        // What each writes last has everything before it.
        for (const [from, to] of [
          [a, b],
          [b, a],
        ] as const) {
          const { name } = from.daemon;
          await from.replace(`last-${name}.${ZONE}`, '192.0.2.60');
          await from.dns.pdnsutil('set-meta', ZONE, `X-LAST-${name}`, name);
          await to.answers(`last-${name}.${ZONE}`, 'A', ['192.0.2.60']);
          await to.hasMetadata(ZONE, `X-LAST-${name}`, name);
        }
        for (const joined of [a, b]) {
          for (const [name, wanted] of Object.entries(answers))
            await joined.answers(`${name}.${ZONE}`, 'A', wanted);
          await joined.hasZones([ZONE, 'made-a.example', 'made-b.example'].map((zone) => `${zone}.`));
          for (const gone of ['gone-a.example', 'gone-b.example']) await joined.refuses(`www.${gone}`);
          await joined.hasMetadata(ZONE, 'X-NEW-A', 'a');
          await joined.hasMetadata(ZONE, 'X-NEW-B', 'b');
          expect(await joined.dns.pdnsutil('get-meta', ZONE)).not.toMatch(/both/);
          // 4.9 lists also those that 4.7 has deleted, but does not find them.
          await joined.dns.api('GET', 'tsigkeys/both.');
          for (const key of ['a', 'b']) {
            await expect(joined.dns.api('GET', `tsigkeys/${key}.`)).rejects.toThrow(/404/);
          }
          expect(await joined.dns.pdnsutil('check-all-zones')).toMatch(/^Checked 3 zones, 0 had errors\.$/m);
        }
        for (const joined of [a, b]) {
          await joined.daemon.stop();
          await joined.dns.stop();
        }
        if (hasNodeLmdb()) expect(comparable(await b.contents())).toEqual(comparable(await a.contents()));
      },
    );
  },
);
