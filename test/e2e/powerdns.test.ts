/** Two real PowerDNS servers, each with an LMDB and a daemon of its own, on one storage: what one is told, both answer. */
import { writeFile } from 'node:fs/promises';

import { expect, test } from 'vitest';

import { hasNodeLmdb } from '../helpers/lmdb.ts';
import type { DnsKey } from '../helpers/powerdns.ts';
import { startMinio } from '../helpers/s3-server.ts';
import { tempDir, until } from '../helpers/process.ts';
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

const BUCKET = 'lightningstream';

describeWithTools(['pdns-4.9', 'minio'], 'two PowerDNS servers and MinIO', () => {
  test.skipIf(!hasNodeLmdb())('what one is told, both answer, through kills of the daemons', async () => {
    await using dir = await tempDir('lightningstream-powerdns-');
    await using minio = await startMinio();
    // Nothing is there: neither bucket nor LMDB.
    const storage = inBucket(minio, BUCKET);
    await using a = await site('a', dir.path, { create: true, storage });
    await using b = await site('b', dir.path, { create: true, storage });
    const both = [a, b] as const;
    await daemons(both, 'start');
    await a.dns.start();

    // A zone with NSEC3, and a second that will go away.
    await makeSignedZone(a.dns);
    await a.dns.pdnsutil('create-zone', 'gone.example', `ns1.${ZONE}`);
    await a.dns.pdnsutil('add-record', 'gone.example', 'www', 'A', '192.0.2.8');
    // Who may transfer it.
    await a.dns.pdnsutil('generate-tsig-key', 'transfer', 'hmac-sha256');
    await a.dns.pdnsutil('activate-tsig-key', ZONE, 'transfer', 'primary');
    // What the server itself fetches, and the lists of zones that it offers and follows.
    await a.dns.pdnsutil('create-secondary-zone', 'secondary.example', '192.0.2.54', '192.0.2.55:5300');
    await a.dns.pdnsutil('create-secondary-zone', 'consumer.example', '192.0.2.56');
    await a.dns.pdnsutil('set-kind', 'consumer.example', 'CONSUMER');
    await a.dns.pdnsutil('create-zone', 'producer.example', `ns1.${ZONE}`);
    await a.dns.pdnsutil('set-kind', 'producer.example', 'PRODUCER');
    await a.dns.pdnsutil('activate-tsig-key', 'producer.example', 'transfer', 'primary');
    await a.dns.pdnsutil('set-kind', ZONE, 'PRIMARY');
    await a.dns.pdnsutil('set-catalog', ZONE, 'producer.example');
    await a.dns.pdnsutil('set-option', ZONE, 'producer', 'group', 'signed');

    for (const zone of ['secondary.example', 'consumer.example']) {
      const file = dir.join(zone);
      await writeFile(file, zoneText(1));
      await a.dns.pdnsutil('load-zone', zone, file);
    }
    // The last in either LMDB: when they have arrived, everything has.
    await a.dns.pdnsutil('set-meta', ZONE, 'X-OWNER', 'team one');
    await a.dns.pdnsutil('add-record', 'gone.example', 'last', 'A', '192.0.2.8');

    // B's server finds an LMDB that the daemon made and filled.
    await b.dns.start();
    await b.answers(`www.${ZONE}`, 'A', ['192.0.2.1']);
    await b.answers('last.gone.example', 'A', ['192.0.2.8']);
    await b.hasMetadata(ZONE, 'X-OWNER', 'team one');
    expect(await b.zone(ZONE)).toEqual(await a.zone(ZONE));

    // The keys of A, and signatures by them.
    const keys = await a.dns.dnskeys(ZONE);
    expect(keys).toHaveLength(1);
    expect(await b.dns.dnskeys(ZONE)).toEqual(keys);
    const positive = await b.dns.validate(ZONE, `www.${ZONE}`, 'A', keys);
    expect(positive[0]).toBe('; fully validated');
    const negative = await b.dns.validate(ZONE, `nobody.${ZONE}`, 'A', keys);
    expect(negative[0]).toBe('; negative response, fully validated');
    expect(negative.join('\n')).toMatch(/\bNSEC3 1 0 0 - /);
    // Validation is one that can fail.
    const [flags, protocol, algorithm, key = ''] = keys[0]?.split(' ') ?? [];
    const other = [flags, protocol, algorithm, key.replace(/^./, (first) => (first === 'A' ? 'B' : 'A'))];
    await expect(b.dns.validate(ZONE, `www.${ZONE}`, 'A', [other.join(' ')])).rejects.toThrow(
      'broken trust chain',
    );

    // The transfer key works at B, and is needed.
    const tsig = await a.tsigKey('transfer');
    expect(await b.tsigKey('transfer')).toBe(tsig);
    const transferred = await b.transfer(ZONE, tsig);
    expect(transferred).toContain(`www.${ZONE}. 60 IN A 192.0.2.1`);
    expect(transferred.some((line) => / IN NSEC3 1 0 0 - /.test(line))).toBe(true);
    expect(unsigned(transferred)).toEqual(unsigned(await a.transfer(ZONE, tsig)));
    await expect(b.dns.dig(ZONE, 'AXFR')).rejects.toThrow('Transfer failed');
    const catalog = await b.transfer('producer.example', tsig);
    expect(catalog.some((line) => line.endsWith(` IN PTR ${ZONE}.`))).toBe(true);
    expect(catalog.some((line) => line.endsWith(' IN TXT "signed"'))).toBe(true);
    expect(catalog).toEqual(await a.transfer('producer.example', tsig));
    expect(await b.zone('secondary.example')).toMatchObject({
      kind: 'Slave',
      masters: ['192.0.2.54', '192.0.2.55:5300'],
    });
    expect(await b.zone('consumer.example')).toMatchObject({ kind: 'Consumer', masters: ['192.0.2.56'] });

    await changeAtB(b, a);
    expect((await a.dns.validate(ZONE, `new.${ZONE}`, 'A', keys))[0]).toBe('; fully validated');
    // Not `old`: PowerDNS 4.9 keeps the NSEC3 record of a name that is deleted from an LMDB, with or without Lightning Stream, so that
    // its own denial of that name does not validate.
    expect((await a.dns.validate(ZONE, `nobody.${ZONE}`, 'A', keys))[0]).toMatch(/^; negative response/);
    // A zone goes.
    await a.dns.pdnsutil('delete-zone', 'gone.example');
    await b.refuses('last.gone.example');
    await until(async () => !(await b.zoneNames()).includes('gone.example.'), {
      what: 'gone.example is gone',
    });
    await daemons(both, 'ok');

    // Killed at work, with changes on both sides before, while and after they are dead.
    const bigZone = dir.join('big.zone');
    for (const round of [1, 2, 3]) {
      await writeFile(bigZone, zoneText(2000 * round));
      await a.dns.pdnsutil('load-zone', 'big.example', bigZone);
      await b.replace(`before${round}.${ZONE}`, '192.0.2.10');
      await daemons(both, 'kill');
      await a.replace(`dead-a${round}.${ZONE}`, '192.0.2.11');
      await b.replace(`dead-b${round}.${ZONE}`, '192.0.2.12');
      await a.replace(`conflict${round}.${ZONE}`, '192.0.2.13');
      await b.replace(`conflict${round}.${ZONE}`, '192.0.2.14');
      await b.dns.pdnsutil('set-meta', ZONE, `X-ROUND-${round}`, 'dead');
      if (round === 2) await b.remove(`new.${ZONE}`);
      if (round === 3) await b.dns.api('DELETE', 'zones/made-at-b.example.');
      await daemons(both, 'start');
      await a.answers(`dead-b${round}.${ZONE}`, 'A', ['192.0.2.12']);
      await b.answers(`dead-a${round}.${ZONE}`, 'A', ['192.0.2.11']);
    }
    for (const site of both) {
      for (const round of [1, 2, 3]) {
        await site.answers(`before${round}.${ZONE}`, 'A', ['192.0.2.10']);
        await site.answers(`conflict${round}.${ZONE}`, 'A', ['192.0.2.14']);
        await site.hasMetadata(ZONE, `X-ROUND-${round}`, 'dead');
      }
      await site.answers(`new.${ZONE}`, 'A', []);
      await site.answers('h5999.big.example', 'A', ['192.0.2.100']);
      await site.refuses('made-at-b.example');
    }
    await seeEachOther(a, b);
    await daemons(both, 'ok');
    for (const site of both) {
      expect(await site.dns.pdnsutil('check-all-zones')).toMatch(/^Checked 5 zones, 0 had errors\.$/m);
      for (const name of [`www.${ZONE}`, `nobody.${ZONE}`]) await site.dns.validate(ZONE, name, 'A', keys);
    }
    await daemons(both, 'stop');
    for (const { dns } of both) await dns.stop();
    await expectSnapshots(minio, BUCKET);
    const [contentsA, contentsB] = [await a.contents(), await b.contents()];
    expect(contentsA.map(({ dbis }) => Object.keys(dbis).sort())).toEqual([
      [
        'domains_v5',
        'domains_v5_0',
        'keydata_v5',
        'keydata_v5_0',
        'metadata_v5',
        'metadata_v5_0',
        'pdns',
        'tsig_v5',
        'tsig_v5_0',
      ],
      ['records_v5'],
    ]);
    expect(contentsA[1]?.dbis['records_v5']?.entries.length).toBeGreaterThan(6000);
    expect(comparable(contentsB)).toEqual(comparable(contentsA));
  });
});

describeWithTools(['pdns-4.9'], 'two PowerDNS servers', () => {
  test.skipIf(!hasNodeLmdb())('both with an LMDB and zones of their own before', async () => {
    await using dir = await tempDir('lightningstream-powerdns-');
    await using a = await site('a', dir.path, {});
    await using b = await site('b', dir.path, {});
    const both = [a, b] as const;
    for (const { dns, daemon } of both) {
      const zone = `${daemon.name}.example`;
      await dns.pdnsutil('create-zone', zone, `ns1.${ZONE}`);
      await dns.pdnsutil('secure-zone', zone);
      await dns.pdnsutil('add-record', zone, 'www', 'A', '192.0.2.1');
    }
    // Besides zones, each LMDB has a version, a number of shards and an identity, which its server made up.
    const [identityA, identityB] = [await a.identity(), await b.identity()];
    expect(identityA).not.toBe(identityB);
    for (const { dns } of both) await dns.start();
    const keys = new Map<string, DnsKey[]>();
    for (const { dns, daemon } of both) {
      keys.set(`${daemon.name}.example`, await dns.dnskeys(`${daemon.name}.example`));
    }
    await Promise.all(both.map(({ daemon }) => daemon.start()));
    for (const site of both) {
      for (const [zone, trusted] of keys) {
        await site.answers(`www.${zone}`, 'A', ['192.0.2.1']);
        await site.answers(zone, 'DNSKEY', trusted);
        await site.dns.validate(zone, `www.${zone}`, 'A', trusted);
      }
      // What the other published had everything, and more does not come.
      for (const db of ['main', 'shard']) {
        await site.daemon.logged('Loaded remote update', (entry) => entry['db'] === db);
      }
      await site.daemon.ok();
    }
    // Restarted with what came from the other.
    for (const { dns, daemon } of both) {
      await daemon.stop();
      await dns.stop();
    }
    expect(comparable(await b.contents())).toEqual(comparable(await a.contents()));
    // The last writer's, as with everything.
    expect(await a.identity()).toBe(identityB);
    for (const { dns } of both) {
      await dns.start();
      expect(await dns.pdnsutil('check-all-zones')).toMatch(/^Checked 2 zones, 0 had errors\.$/m);
      for (const zone of keys.keys()) expect(await dns.query(`www.${zone}`, 'A')).toEqual(['192.0.2.1']);
    }
  });

  test('a daemon with the map size of its server never outgrows that one', async () => {
    await using dir = await tempDir('lightningstream-powerdns-');
    await using a = await site('a', dir.path, { create: true });
    const zoneFile = dir.join('big.zone');
    await writeFile(zoneFile, zoneText(20_000));
    {
      await using b = await site('b', dir.path, { create: true, mapSizeMib: 1 });
      await Promise.all([a, b].map(({ daemon }) => daemon.start()));
      await a.dns.start();
      await b.dns.start();
      await a.dns.pdnsutil('create-zone', ZONE, `ns1.${ZONE}`);
      await b.answers(ZONE, 'NS', [`ns1.${ZONE}.`]);
      await a.dns.pdnsutil('load-zone', 'big.example', zoneFile);
      await b.daemon.healthy(
        'full map',
        ({ failures }) => failures['shard_local_fault']?.includes('MDB_MAP_FULL') === true,
      );
      await b.answers(ZONE, 'NS', [`ns1.${ZONE}.`]);
      await b.daemon.stop();
      await b.dns.stop();
    }
    await using b = await site('b', dir.path, { create: true });
    await b.dns.start();
    await b.daemon.start();
    await b.answers('h19999.big.example', 'A', ['192.0.2.100']);
    await b.daemon.ok();
  });
});
