/**
 * Real servers of different schemas, PowerDNS 4.9 (5) and 5.x (6), in one place of the storage. Without the guard the older one would get
 * the newer one's objects, answer SERVFAIL for their zones, and not start again.
 */
import { cp, mkdir, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { readLmdb } from '../helpers/lmdb.ts';
import { powerDns, type PowerDns } from '../helpers/powerdns.ts';
import { type TempDir, tempDir, until } from '../helpers/process.ts';
import { describeWithTools } from '../helpers/tools.ts';
import type { RunOptions } from './helpers.ts';
import { type Site, site, ZONE } from './powerdns-helpers.ts';

const heldLine = 'Snapshots with another schema are held back: use another prefix for each schema';
const databases = ['main', 'shard'];

/** A place in the storage of its own. */
async function place(dir: TempDir, name: string): Promise<{ path: string; options: RunOptions }> {
  const path = dir.join(name);
  await mkdir(path, { recursive: true });
  return { path, options: { config: { storage: { options: { root_path: path } } } } };
}

/** Waits until both LMDBs are in the storage. */
async function storedBoth({ daemon }: Site): Promise<void> {
  for (const db of databases) await daemon.logged('Stored snapshot', (entry) => entry['db'] === db);
}

/** Waits until the daemon says of both LMDBs that it holds the other back, and that it stores nothing. */
async function saysWhy({ daemon }: Site, other: Site, theirs: string, ours: string): Promise<void> {
  const instance = other.daemon.name;
  for (const db of databases) {
    const entry = await daemon.logged(heldLine, (line) => line['db'] === db);
    expect(entry).toMatchObject({ snapshot_instance: instance, snapshot_schema: theirs, schema: ours });
    const check = `${db}_schema_mismatch`;
    const { failures } = await daemon.healthy(check, (health) => check in health.failures);
    expect(failures[check]).toMatch(
      new RegExp(
        `^nothing is uploaded: .*; snapshots of ${instance} have schema ${theirs}, ours is ${ours}: .* use another prefix`,
      ),
    );
  }
  expect(Object.keys((await daemon.health()).failures).sort()).toEqual([
    'main_schema_mismatch',
    'shard_schema_mismatch',
  ]);
  const { body } = await daemon.page('/metrics');
  for (const db of databases) {
    expect(body).toContain(`lightningstream_schema_held_back{lmdb="${db}",syncer_instance="${instance}"} 1`);
  }
  expect((await daemon.page('/')).body).toContain(`held back: schema ${theirs}, ours is ${ours}`);
  expect(daemon.log().filter(({ msg }) => msg === heldLine)).toHaveLength(2);
}

/** Of the LMDB at rest: four bytes at the end of the value. */
async function schema({ lmdbPath }: PowerDns): Promise<number> {
  const { dbis } = await readLmdb(lmdbPath, { noSubdir: true });
  const key = Buffer.from('schemaversion').toString('hex');
  const [, value = ''] = dbis['pdns']?.entries.find(([name]) => name === key) ?? [];
  return Number.parseInt(value.slice(-8), 16);
}

/** By the API, which is the same in all versions; that of pdnsutil is not. */
async function put(dns: PowerDns, zone: string, name: string, address: string): Promise<void> {
  const records = [{ content: address, disabled: false }];
  const rrset = { name: `${name}.${zone}.`, type: 'A', ttl: 60, changetype: 'REPLACE', records };
  await dns.api('PATCH', `zones/${zone}.`, { rrsets: [rrset] });
}

async function makeZone(dns: PowerDns, zone: string, address: string): Promise<void> {
  await dns.api('POST', 'zones', { name: `${zone}.`, kind: 'Native', nameservers: [`ns1.${zone}.`] });
  await put(dns, zone, 'www', address);
}

describeWithTools(['pdns-4.9', 'pdns-5'], 'PowerDNS 4.9 and 5', () => {
  test('one prefix: both go on answering and say why they hold back; after an upgrade they sync', async () => {
    await using dir = await tempDir('lightningstream-powerdns-');
    const shared = await place(dir, 'shared');
    await using a = await site('a', dir.path, { tool: 'pdns-4.9' });
    await using b = await site('b', dir.path, { tool: 'pdns-5' });
    const zones = { a: 'of-a.example', b: 'of-b.example' };
    // What both have stored meets, as when somebody gives them one prefix.
    for (const [each, zone, address] of [
      [a, zones.a, '192.0.2.1'],
      [b, zones.b, '192.0.2.2'],
    ] as const) {
      await each.dns.start();
      await makeZone(each.dns, zone, address);
      const alone = await place(dir, `alone-${each.daemon.name}`);
      await each.daemon.start(alone.options);
      await storedBoth(each);
      await each.daemon.ok();
      await each.daemon.stop();
      await cp(alone.path, shared.path, { recursive: true });
    }
    const before = (await readdir(shared.path)).sort();
    for (const each of [a, b]) await each.daemon.start(shared.options);
    await saysWhy(a, b, '6', '5');
    await saysWhy(b, a, '5', '6');

    await put(a.dns, zones.a, 'later', '192.0.2.11');
    await put(b.dns, zones.b, 'later', '192.0.2.12');
    // All that a change sets off has been done by then: another one of each, and two listings.
    for (const { daemon } of [a, b]) {
      const lists = await daemon.metric('lightningstream_syncer_snapshots_list_calls_total');
      await until(
        async () => (await daemon.metric('lightningstream_syncer_snapshots_list_calls_total')) > lists + 4,
        {
          what: 'more listings',
        },
      );
    }
    expect((await readdir(shared.path)).filter((name) => name.endsWith('.pb.gz')).sort()).toEqual(
      before.filter((name) => name.endsWith('.pb.gz')),
    );
    // The older one starts again, which it would not with schema 6.
    await a.daemon.stop();
    await a.dns.stop();
    expect(await schema(a.dns)).toBe(5);
    await a.dns.start();
    await a.answers(`later.${zones.a}`, 'A', ['192.0.2.11']);
    await b.answers(`later.${zones.b}`, 'A', ['192.0.2.12']);
    await a.refuses(`www.${zones.b}`);
    await b.refuses(`www.${zones.a}`);
    expect(await a.dns.pdnsutil('check-all-zones')).toMatch(/^Checked 1 zones, 0 had errors\.$/m);

    await a.dns.stop();
    const migrated = await a.daemon.run({ ...shared.options, args: ['migrate', 'run', '--to', '6'] });
    expect(migrated).toMatchObject({ code: 0 });
    expect(await schema(a.dns)).toBe(6);
    await using upgraded = await powerDns(a.dns.directory, { tool: 'pdns-5' });
    await upgraded.start();
    await a.daemon.start(shared.options);
    await until(async () => (await upgraded.query(`later.${zones.b}`, 'A')).join() === '192.0.2.12', {
      what: `a answers for ${zones.b}`,
      timeoutMs: 30_000,
    });
    await b.answers(`later.${zones.a}`, 'A', ['192.0.2.11']);
    for (const { daemon } of [a, b]) await daemon.ok();
    for (const { daemon } of [a, b]) expect(await daemon.metric('lightningstream_schema_held_back')).toBe(0);
  });

  test('a server upgraded beside its daemon harms nobody, and its daemon says what to do', async () => {
    await using dir = await tempDir('lightningstream-powerdns-');
    await mkdir(dir.join('storage'));
    await using a = await site('a', dir.path, { create: true });
    await using b = await site('b', dir.path, { create: true });
    for (const { dns, daemon } of [a, b]) {
      await daemon.start();
      await dns.start();
    }
    await makeZone(a.dns, ZONE, '192.0.2.1');
    await b.answers(`www.${ZONE}`, 'A', ['192.0.2.1']);
    await storedBoth(a);
    await b.dns.stop();
    await using upgraded = await powerDns(b.dns.directory, { tool: 'pdns-5' });
    await upgraded.start();
    await put(upgraded, ZONE, 'www', '192.0.2.66');
    const { failures } = await b.daemon.healthy('main_schema_mismatch', ({ failures: found }) =>
      Object.keys(found).some((check) => check === 'main_schema_mismatch'),
    );
    expect(failures['main_schema_mismatch']).toMatch(
      /^nothing is uploaded: the schema of this LMDB changed from 5 to 6 while it was in use: give it a prefix of its own .* and restart; snapshots of a have schema 5, ours is 6/,
    );
    await b.daemon.healthy(
      'shard_schema_mismatch',
      ({ failures: found }) => 'shard_schema_mismatch' in found,
    );
    await put(a.dns, ZONE, 'more', '192.0.2.7');
    await a.answers(`more.${ZONE}`, 'A', ['192.0.2.7']);
    await a.daemon.ok();
    await a.daemon.stop();
    await a.dns.stop();
    expect(await schema(a.dns)).toBe(5);
    await a.dns.start();
    await a.answers(`www.${ZONE}`, 'A', ['192.0.2.1']);

    // What the daemon says to do.
    await b.daemon.stop();
    const own = await place(dir, 'v6');
    await b.daemon.start(own.options);
    await storedBoth(b);
    await b.daemon.ok();
    expect((await readdir(join(own.path))).filter((name) => name.includes('__a__'))).toEqual([]);
    expect(await upgraded.query(`www.${ZONE}`, 'A')).toEqual(['192.0.2.66']);
  });
});
