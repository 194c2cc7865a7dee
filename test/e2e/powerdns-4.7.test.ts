/** PowerDNS 4.7, which knows nothing of headers: `main` with `dupsort_hack` and `shard`, both in shadow mode. */
import { mkdir, rm, writeFile } from 'node:fs/promises';

import { expect, test } from 'vitest';

import { hasNodeLmdb } from '../helpers/lmdb.ts';
import { startMinio } from '../helpers/s3-server.ts';
import { tempDir } from '../helpers/process.ts';
import { describeWithTools } from '../helpers/tools.ts';
import {
  changeAtB,
  comparable,
  daemons,
  expectSnapshots,
  inBucket,
  makeSignedZone,
  seeEachOther,
  site,
  unsigned,
  ZONE,
  zoneText,
} from './powerdns-helpers.ts';

const BUCKET = 'lightningstream-auth47';

const TABLES = {
  main: ['domains', 'domains_0', 'keydata', 'keydata_0', 'metadata', 'metadata_0', 'pdns', 'tsig', 'tsig_0'],
  shard: ['records'],
};

describeWithTools(['pdns-4.7', 'minio'], 'two PowerDNS 4.7 servers and MinIO', () => {
  test.skipIf(!hasNodeLmdb())(
    'what one is told, both answer, through restarts and kills',
    async () => {
      await using dir = await tempDir('lightningstream-powerdns-');
      await using minio = await startMinio();
      const storage = inBucket(minio, BUCKET);
      // Nothing is there: neither bucket nor LMDB.
      await using a = await site('a', dir.path, { tool: 'pdns-4.7', create: true, storage });
      await using b = await site('b', dir.path, { tool: 'pdns-4.7', create: true, storage });
      const both = [a, b] as const;
      await daemons(both, 'start');
      await a.dns.start();

      // A zone with NSEC3, one that will go away, one of another primary; a key that may transfer.
      await makeSignedZone(a.dns);
      await a.dns.pdnsutil('create-zone', 'gone.example', `ns1.${ZONE}`);
      await a.dns.pdnsutil('create-secondary-zone', 'secondary.example', '192.0.2.54', '192.0.2.55:5300');
      const secondary = dir.join('secondary.zone');
      await writeFile(secondary, zoneText(1));
      await a.dns.pdnsutil('load-zone', 'secondary.example', secondary);
      await a.dns.pdnsutil('generate-tsig-key', 'transfer', 'hmac-sha256');
      await a.dns.pdnsutil('activate-tsig-key', ZONE, 'transfer', 'primary');
      // The last in either LMDB: when they have arrived, everything has.
      await a.dns.pdnsutil('set-meta', ZONE, 'X-OWNER', 'team one');
      await a.dns.pdnsutil('add-record', 'gone.example', 'last', 'A', '192.0.2.8');

      // B's server finds an LMDB that the daemon made and filled.
      await b.dns.start();
      await b.answers(`www.${ZONE}`, 'A', ['192.0.2.1']);
      await b.answers('last.gone.example', 'A', ['192.0.2.8']);
      await b.hasMetadata(ZONE, 'X-OWNER', 'team one');
      expect(await b.zone(ZONE)).toEqual(await a.zone(ZONE));
      expect(await b.zone('secondary.example')).toMatchObject({
        kind: 'Slave',
        masters: ['192.0.2.54', '192.0.2.55:5300'],
      });
      const keys = await a.dns.dnskeys(ZONE);
      expect(keys).toHaveLength(1);
      expect(await b.dns.dnskeys(ZONE)).toEqual(keys);
      for (const name of [`www.${ZONE}`, `nobody.${ZONE}`]) await b.dns.validate(ZONE, name, 'A', keys);
      const tsig = await a.tsigKey('transfer');
      expect(await b.tsigKey('transfer')).toBe(tsig);
      const transferred = await b.transfer(ZONE, tsig);
      expect(transferred).toContain(`www.${ZONE}. 60 IN A 192.0.2.1`);
      expect(unsigned(transferred)).toEqual(unsigned(await a.transfer(ZONE, tsig)));

      await changeAtB(b, a);
      await a.dns.validate(ZONE, `new.${ZONE}`, 'A', keys);
      // Metadata lives behind an index with duplicates: changed and removed there.
      await b.dns.pdnsutil('set-meta', ZONE, 'X-OWNER', 'team two');
      await b.dns.pdnsutil('set-meta', ZONE, 'X-NOTE', 'soon gone');
      await a.hasMetadata(ZONE, 'X-OWNER', 'team two');
      await a.hasMetadata(ZONE, 'X-NOTE', 'soon gone');
      await a.dns.pdnsutil('set-meta', ZONE, 'X-NOTE');
      await a.dns.pdnsutil('delete-zone', 'gone.example');
      await b.refuses('last.gone.example');
      await daemons(both, 'ok');
      await b.hasZones(['example.org.', 'made-at-b.example.', 'secondary.example.']);

      // Each program ends and comes back, one after the other; what happens meanwhile is not lost.
      for (const [site, other] of [
        [a, b],
        [b, a],
      ] as const) {
        const { name } = site.daemon;
        await site.dns.stop();
        await other.replace(`server-${name}.${ZONE}`, '192.0.2.20');
        await site.dns.start();
        await site.answers(`server-${name}.${ZONE}`, 'A', ['192.0.2.20']);

        await site.daemon.stop();
        await site.replace(`added-${name}.${ZONE}`, '192.0.2.21');
        await site.replace(`www.${ZONE}`, name === 'a' ? '192.0.2.22' : '192.0.2.23');
        await site.remove(`server-a.${ZONE}`);
        await other.replace(`daemon-${name}.${ZONE}`, '192.0.2.24');
        await site.daemon.start();
        await site.answers(`daemon-${name}.${ZONE}`, 'A', ['192.0.2.24']);
        await other.answers(`added-${name}.${ZONE}`, 'A', ['192.0.2.21']);
        await other.answers(`www.${ZONE}`, 'A', [name === 'a' ? '192.0.2.22' : '192.0.2.23']);
        // Nobody saw when it was removed.
        await site.answers(`server-a.${ZONE}`, 'A', ['192.0.2.20']);
      }

      // Killed at work, with changes on both sides before and while they are dead. Zones that both make then have ids of their own.
      const bigZone = dir.join('big.zone');
      for (const round of [1, 2, 3]) {
        await writeFile(bigZone, zoneText(2000 * round));
        await a.dns.pdnsutil('load-zone', 'big.example', bigZone);
        await b.replace(`before${round}.${ZONE}`, '192.0.2.10');
        await daemons(both, 'kill');
        await a.replace(`dead-a${round}.${ZONE}`, '192.0.2.11');
        await b.replace(`dead-b${round}.${ZONE}`, '192.0.2.12');
        // Added by both while nobody looks: equally old, so the lower one wins.
        await a.replace(`conflict${round}.${ZONE}`, '192.0.2.14');
        await b.replace(`conflict${round}.${ZONE}`, '192.0.2.13');
        for (const { dns, daemon } of both) {
          await dns.pdnsutil('create-zone', `${daemon.name}${round}.example`, `ns1.${ZONE}`);
          await dns.pdnsutil('add-record', `${daemon.name}${round}.example`, 'www', 'A', '192.0.2.30');
        }
        // The servers, too.
        for (const { dns } of both) {
          await dns.kill();
          await dns.start();
        }
        await daemons(both, 'start');
        await a.answers(`dead-b${round}.${ZONE}`, 'A', ['192.0.2.12']);
        await b.answers(`dead-a${round}.${ZONE}`, 'A', ['192.0.2.11']);
      }
      for (const site of both) {
        for (const round of [1, 2, 3]) {
          await site.answers(`before${round}.${ZONE}`, 'A', ['192.0.2.10']);
          await site.answers(`conflict${round}.${ZONE}`, 'A', ['192.0.2.13']);
          for (const name of ['a', 'b'])
            await site.answers(`www.${name}${round}.example`, 'A', ['192.0.2.30']);
        }
        await site.answers('h5999.big.example', 'A', ['192.0.2.100']);
      }
      await seeEachOther(a, b);
      await daemons(both, 'ok');
      const names = [ZONE, 'made-at-b.example', 'secondary.example', 'big.example'];
      for (const round of [1, 2, 3]) names.push(`a${round}.example`, `b${round}.example`);
      for (const site of both) {
        await site.hasZones(names.map((name) => `${name}.`));
        expect(await site.dns.pdnsutil('check-all-zones')).toMatch(/^Checked 10 zones, 0 had errors\.$/m);
        for (const name of [`www.${ZONE}`, `nobody.${ZONE}`]) await site.dns.validate(ZONE, name, 'A', keys);
        expect(await site.dns.pdnsutil('get-meta', ZONE, 'X-NOTE')).not.toContain('soon gone');
      }
      await daemons(both, 'stop');
      for (const { dns } of both) await dns.stop();

      await expectSnapshots(minio, BUCKET);
      const [contentsA, contentsB] = [await a.contents(), await b.contents()];
      const shadows = (names: readonly string[]): string[] => names.map((name) => `_sync_shadow_${name}`);
      expect(contentsA.map(({ dbis }) => Object.keys(dbis).sort())).toEqual([
        [...shadows(TABLES.main), ...TABLES.main].sort(),
        [...shadows(TABLES.shard), ...TABLES.shard],
      ]);
      expect(contentsA[1]?.dbis['records']?.entries.length).toBeGreaterThan(6000);
      expect(comparable(contentsB)).toEqual(comparable(contentsA));
    },
    300_000,
  );
});

describeWithTools(['pdns-4.7', 'pdns-4.9'], 'PowerDNS 4.7 and 4.9', () => {
  test('the upgrade that docs/powerdns.md describes', async () => {
    await using dir = await tempDir('lightningstream-powerdns-');
    {
      await using a = await site('a', dir.path, { tool: 'pdns-4.7', create: true });
      await using b = await site('b', dir.path, { tool: 'pdns-4.7', create: true });
      for (const { daemon, dns } of [a, b]) {
        await daemon.start();
        await dns.start();
      }
      await a.dns.pdnsutil('create-zone', ZONE, `ns1.${ZONE}`);
      await a.dns.pdnsutil('add-record', ZONE, 'www', 'A', '192.0.2.1');
      await a.dns.pdnsutil('create-zone', 'gone.example', `ns1.${ZONE}`);
      await b.answers('gone.example', 'NS', [`ns1.${ZONE}.`]);
      await b.answers(`www.${ZONE}`, 'A', ['192.0.2.1']);
      await b.replace(`www.${ZONE}`, '192.0.2.2');
      await b.dns.pdnsutil('delete-zone', 'gone.example');
      await a.answers(`www.${ZONE}`, 'A', ['192.0.2.2']);
      await a.refuses('gone.example');
      for (const { daemon, dns } of [a, b]) {
        await dns.stop();
        await daemon.stop();
      }
    }
    const storage = { type: 'fs', options: { root_path: dir.join('storage49') } };
    await mkdir(dir.join('storage49'));
    // Their files are where they were, but for those of the one that begins anew.
    await using a = await site('a', dir.path, { storage });
    await a.dns.start();
    await a.daemon.start();
    for (const db of ['main', 'shard']) {
      await a.daemon.logged('Stored snapshot', (entry) => entry['db'] === db);
    }
    await using b = await site('b', dir.path, { create: true, storage });
    for (const path of [b.dns.lmdbPath, b.dns.shardPath]) {
      for (const file of [path, `${path}-lock`]) await rm(file);
    }
    await b.daemon.start();
    await b.dns.start();
    await b.answers(`www.${ZONE}`, 'A', ['192.0.2.2']);
    await b.refuses('gone.example');
    await b.replace(`www.${ZONE}`, '192.0.2.3');
    await a.answers(`www.${ZONE}`, 'A', ['192.0.2.3']);
    await a.remove(`www.${ZONE}`);
    await b.answers(`www.${ZONE}`, 'A', []);
    for (const { daemon, dns } of [a, b]) {
      await daemon.ok();
      expect(await dns.pdnsutil('check-all-zones')).toMatch(/^Checked 1 zones, 0 had errors\.$/m);
    }
  });
});
