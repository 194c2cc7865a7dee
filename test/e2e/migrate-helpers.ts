/** Databases of PowerDNS 4.7 that hold what PowerDNS knows, and all that can be seen of a server that has one. */
import { copyFile, mkdir, readdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';

import { readLmdb } from '../helpers/lmdb.ts';
import type { DnsKey, PowerDns } from '../helpers/powerdns.ts';
import { makeSignedZone, unsigned, ZONE, zoneText } from './powerdns-helpers.ts';

/** Has something of everything. */
export const ODD = 'odd.example';
const NARROW = 'narrow.example';
const PRODUCER = 'producer.example';
/** The whole length that a key of LMDB can take: a name of 200 characters. */
const LONG = `${'l'.repeat(60)}.${'m'.repeat(60)}.${'n'.repeat(60)}.${'o'.repeat(9)}.example`;
const BLANK = 'sp\\032ace.\\000.example';
const GONE = 'gone.example';

/** Zones that {@link makeZones} signs, with a name that is there and one that is not. */
export const SIGNED: readonly (readonly [zone: string, name: string])[] = [
  [ZONE, `www.${ZONE}`],
  [ODD, `a\\032space.${ODD}`],
  [NARROW, `www.${NARROW}`],
];

/**
 * NSEC, NSEC3 and narrow NSEC3, several keys, TSIG keys, metadata with one and several values, a catalog with members and one that is
 * followed, a secondary, disabled records, labels with blanks, dots and NUL. Of some things others were there before.
 */
export async function makeZones(dns: PowerDns): Promise<void> {
  await makeSignedZone(dns);
  const odd = join(dns.directory, 'odd.zone');
  await writeFile(
    odd,
    String.raw`$TTL 60
@ SOA ns1 hostmaster 1 10800 3600 604800 3600
@ NS ns1
@ MX 10 ns1
@ CAA 0 issue "ca.example.net"
ns1 A 192.0.2.53
a\.dot A 192.0.2.2
a\032space TXT "with \"quotes\", \\ and \200"
*.wild A 192.0.2.3
UPPER A 192.0.2.4
a.b.c.deep AAAA 2001:db8::1
delegated NS ns.delegated
ns.delegated A 192.0.2.5
delegated DS 1 13 2 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
_sip._tcp SRV 1 2 5060 ns1
long TXT "${'x'.repeat(255)}" "${'y'.repeat(255)}"
`,
  );
  await dns.pdnsutil('load-zone', ODD, odd);
  await dns.pdnsutil('secure-zone', ODD);
  await dns.pdnsutil('add-zone-key', ODD, 'zsk', 'inactive', 'unpublished', 'ed25519');
  for (const zone of [NARROW, LONG, BLANK, PRODUCER, GONE]) {
    await dns.pdnsutil('create-zone', zone, `ns1.${ZONE}`);
    await dns.pdnsutil('add-record', zone, 'www', 'A', '192.0.2.7');
  }
  await dns.pdnsutil('secure-zone', NARROW);
  await dns.pdnsutil('set-nsec3', NARROW, '1 0 0 -', 'narrow');
  await dns.pdnsutil('rectify-zone', NARROW);

  // 4.7 leaves something behind when it deletes a key.
  for (const key of ['spare', 'transfer']) await dns.pdnsutil('generate-tsig-key', key, 'hmac-sha256');
  await dns.pdnsutil('delete-tsig-key', 'spare');
  await dns.pdnsutil('generate-tsig-key', 'spare', 'hmac-sha512');
  await dns.pdnsutil('activate-tsig-key', ZONE, 'transfer', 'primary');
  await dns.pdnsutil('set-meta', ODD, 'ALLOW-AXFR-FROM', '192.0.2.0/24', '2001:db8::/32', 'AUTO-NS');
  await dns.pdnsutil('set-meta', ODD, 'X-OWNER', 'one');
  await dns.pdnsutil('set-meta', ODD, 'X-OWNER', 'team two');

  await dns.pdnsutil(
    'create-secondary-zone',
    'secondary.example',
    '192.0.2.54',
    '192.0.2.55:5300',
    '2001:db8::2',
  );
  await dns.pdnsutil('create-secondary-zone', 'consumer.example', '192.0.2.56');
  await dns.pdnsutil('set-kind', 'consumer.example', 'CONSUMER');
  const transferred = join(dns.directory, 'transferred.zone');
  await writeFile(transferred, zoneText(1));
  for (const zone of ['secondary.example', 'consumer.example'])
    await dns.pdnsutil('load-zone', zone, transferred);
  await dns.pdnsutil('set-kind', PRODUCER, 'PRODUCER');
  for (const member of [ZONE, ODD]) {
    await dns.pdnsutil('set-kind', member, 'PRIMARY');
    await dns.pdnsutil('set-catalog', member, PRODUCER);
  }
  await dns.pdnsutil('set-option', ZONE, 'producer', 'group', 'signed');
  await dns.pdnsutil('set-account', ODD, 'somebody');

  await dns.start();
  await dns.api('POST', 'zones', {
    name: 'api.example.',
    kind: 'Native',
    soa_edit_api: '',
    account: 'customer',
    rrsets: [
      rrset('api.example.', 'NS', `ns1.${ZONE}.`),
      rrset('www.api.example.', 'A', '192.0.2.11', '192.0.2.12'),
      {
        ...rrset('off.api.example.', 'A', '192.0.2.13'),
        records: [{ content: '192.0.2.13', disabled: true }],
      },
    ],
  });
  await dns.stop();
}

/** Makes deletions, and things anew that were deleted. The server must not run. */
export async function deleteSome(dns: PowerDns): Promise<void> {
  await dns.pdnsutil('delete-zone', GONE);
  await dns.pdnsutil('delete-rrset', ZONE, 'old', 'A');
  await dns.pdnsutil('rectify-zone', ZONE);
  await dns.pdnsutil('set-meta', ODD, 'ALLOW-AXFR-FROM');
  await dns.pdnsutil('delete-tsig-key', 'spare');
}

/** What every server must be able to do with its database, so that the result does not depend on chance. */
export async function change(dns: PowerDns): Promise<void> {
  const patch = (zone: string, ...rrsets: readonly object[]): Promise<unknown> =>
    dns.api('PATCH', `zones/${zone}.`, { rrsets });
  await patch(
    ZONE,
    rrset(`www.${ZONE}.`, 'A', '192.0.2.81'),
    rrset(`old.${ZONE}.`, 'A', '192.0.2.82'),
    rrset(`new.${ZONE}.`, 'A', '192.0.2.83'),
    { name: `ns1.${ZONE}.`, type: 'A', changetype: 'DELETE' },
  );
  await dns.pdnsutil('rectify-zone', ZONE);
  // What was deleted before the migration, and what was not.
  for (const zone of [GONE, LONG]) {
    if (zone === LONG) await dns.pdnsutil('delete-zone', zone);
    await dns.pdnsutil('create-zone', zone, `ns2.${ZONE}`);
  }
  await dns.pdnsutil('set-meta', ODD, 'X-OWNER', 'team three');
  await dns.pdnsutil('set-meta', ODD, 'ALLOW-AXFR-FROM', '192.0.2.1');
  await dns.pdnsutil('import-tsig-key', 'spare', 'hmac-sha256', 'c3BhcmU=');
  await dns.pdnsutil('set-catalog', ODD, '');
}

function rrset(name: string, type: string, ...contents: readonly string[]): object {
  const records = contents.map((content) => ({ content, disabled: false }));
  return { name, type, ttl: 60, changetype: 'REPLACE', records };
}

/** Each thing that can be seen, by how it is asked for. */
export type Seen = Readonly<Record<string, unknown>>;

/** Everything that the running server and `pdnsutil` tell, secrets included, but no signature: they differ each time. */
export async function look(dns: PowerDns): Promise<Seen> {
  const seen: Record<string, unknown> = {};
  const pdnsutil = async (...args: readonly string[]): Promise<void> => {
    // 5.x says so when it made a lock file, in the midst of the rest.
    const text = await dns.pdnsutil(...args);
    seen[args.join(' ')] = text.replace(
      /^WARNING: local files have been created[^]*?correctly use them\.\n/m,
      '',
    );
  };
  const api = async <T>(path: string): Promise<T> => {
    const body = await dns.api('GET', path);
    seen[`API ${path}`] = body;
    return body as T;
  };
  const zones = await api<readonly { readonly id: string; readonly name: string }[]>('zones');
  // The server opens a shard when it is asked for something in it. From then on programs may come and go: an LMDB that nobody has open
  // does not bear it that several do.
  for (const { name } of zones) seen[`SOA ${name}`] = await dns.query(name, 'SOA');
  const kinds = ['secondary', 'producer', 'consumer'];
  const commands = ['list-tsig-keys', 'list-keys', 'check-all-zones', `get-meta ${ODD}`, 'list-all-zones'];
  const lists = kinds.map((kind) => `list-all-zones ${kind}`);
  await Promise.all([...commands, ...lists].map((command) => pdnsutil(...command.split(' '))));

  for (const { id } of await api<readonly { readonly id: string }[]>('tsigkeys')) {
    // One that 4.7 deleted is listed still, and not found.
    seen[`API tsigkeys/${id}`] = await dns.api('GET', `tsigkeys/${id}`).catch(String);
  }
  for (const { id, name } of zones) {
    await Promise.all([
      pdnsutil('list-zone', name),
      pdnsutil('show-zone', name),
      api(`zones/${id}`),
      api(`zones/${id}/metadata`),
      (async () => {
        // With their private parts.
        const keys = await api<readonly { readonly id: number }[]>(`zones/${id}/cryptokeys`);
        for (const key of keys) await api(`zones/${id}/cryptokeys/${key.id}`);
      })(),
      (async () => {
        seen[`AXFR ${name}`] = await transfer(dns, name);
      })(),
    ]);
  }
  const [, algorithm, secret] = /^transfer\. (\S+)\. (\S+)$/m.exec(String(seen['list-tsig-keys'])) ?? [];
  seen['AXFR with TSIG'] = await transfer(dns, ZONE, '-y', `${algorithm}:transfer:${secret}`);
  return seen;
}

/** Without the times that PowerDNS 4.9 and 5 show of records: those that they write themselves, and those of headers. */
export function withoutModificationTimes(seen: Seen): Seen {
  return JSON.parse(
    JSON.stringify(seen, (key, value: unknown) => (key === 'modified_at' ? undefined : value)),
  ) as Seen;
}

/** What is seen after changes, which each server makes with random ids: without times, and without the order in which things are listed. */
export function withoutChance(seen: Seen): Seen {
  const text = (value: unknown): string => JSON.stringify(value);
  const sorted = <T>(values: readonly T[]): T[] =>
    values.toSorted((left, right) => (text(left) < text(right) ? -1 : 1));
  return JSON.parse(text(withoutModificationTimes(seen)), (_, value: unknown) => {
    if (typeof value === 'string') return sorted(value.split('\n'));
    return Array.isArray(value) ? sorted(value as readonly unknown[]) : value;
  }) as Seen;
}

/** What differs, by how it is asked for. */
export function differences(left: Seen, right: Seen): string[] {
  return [...new Set([...Object.keys(left), ...Object.keys(right)])]
    .filter((name) => !isDeepStrictEqual(left[name], right[name]))
    .sort();
}

/** Without signatures, sorted; undefined when it is refused. */
export async function transfer(
  dns: PowerDns,
  zone: string,
  ...options: readonly string[]
): Promise<string[] | undefined> {
  try {
    const { records } = await dns.dig(zone, 'AXFR', '+dnssec', ...options);
    return unsigned(records)
      .filter((line) => !line.includes(' ANY TSIG '))
      .sort();
  } catch (error) {
    if (/Transfer failed/.test(String(error))) return undefined;
    throw error;
  }
}

/** Signatures of answers and of denials are those of these keys. */
export async function validate(dns: PowerDns, keys: ReadonlyMap<string, readonly DnsKey[]>): Promise<void> {
  for (const [zone, name] of SIGNED) {
    for (const asked of [name, `nobody.${zone}`]) {
      await dns.validate(zone, asked, asked.includes('space') ? 'TXT' : 'A', keys.get(zone) ?? []);
    }
  }
}

/** The data files of a server into another one's directory, without lock files. */
export async function copyDatabase(from: PowerDns, to: PowerDns): Promise<void> {
  const directory = dirname(from.lmdbPath);
  await mkdir(dirname(to.lmdbPath), { recursive: true });
  for (const name of await readdir(directory)) {
    if (/^pdns\.lmdb(-\d+)?$/.test(name))
      await copyFile(join(directory, name), join(dirname(to.lmdbPath), name));
  }
}

/**
 * The live entries of main and first shard, without the times and transaction numbers of their headers, and the DBIs' flags. Not the shadows,
 * which the server's upgrade leaves, and not the DBIs that 5.x makes for later use. Nobody may have the files open.
 */
export async function liveEntries(dns: PowerDns): Promise<unknown> {
  const files = await Promise.all(
    [dns.lmdbPath, dns.shardPath].map((path) => readLmdb(path, { noSubdir: true })),
  );
  return files.map(({ dbis }) =>
    Object.fromEntries(
      Object.entries(dbis)
        .filter(([name]) => !name.startsWith('_sync'))
        .map(
          ([name, { flags, entries }]) =>
            [
              name,
              {
                flags,
                // A header: time and transaction, 8 bytes each; version; flags, of which 1 is "deleted"; 6 more bytes.
                entries: entries.flatMap(([key, value]) =>
                  (Number.parseInt(value.slice(34, 36), 16) & 1) === 1 ? [] : [[key, value.slice(32)]],
                ),
              },
            ] as const,
        )
        .filter(([name, { entries }]) => entries.length > 0 || !/_v[67]$/.test(name)),
    ),
  );
}
