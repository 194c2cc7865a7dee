/** Name servers of a user, each PowerDNS with an LMDB and a daemon beside it, on one storage. */
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';

import { expect } from 'vitest';

import { readLmdb, type LmdbContents } from '../helpers/lmdb.ts';
import { powerDns, type PowerDns, type PowerDnsOptions } from '../helpers/powerdns.ts';
import { freePort, until } from '../helpers/process.ts';
import type { S3Server } from '../helpers/s3-server.ts';
import { Instance } from './helpers.ts';

export const ZONE = 'example.org';

/** PowerDNS and the daemon beside it. */
export class Site implements AsyncDisposable {
  readonly dns: PowerDns;
  readonly daemon: Instance;

  constructor(dns: PowerDns, daemon: Instance) {
    this.dns = dns;
    this.daemon = daemon;
  }

  /** Waits until the server's answer is exactly that; none for `[]`. */
  async answers(name: string, type: string, data: readonly string[]): Promise<void> {
    await this.#until(`answers ${name} ${type} with ${JSON.stringify(data)}`, async () => {
      const found = await this.dns.query(name, type);
      if (JSON.stringify(found) !== JSON.stringify(data)) throw new Error(`got ${JSON.stringify(found)}`);
    });
  }

  /** Waits until `pdnsutil get-meta` says exactly that. */
  async hasMetadata(zone: string, kind: string, value: string): Promise<void> {
    await this.#until(`has ${kind} = ${value} for ${zone}`, async () => {
      const found = await this.dns.pdnsutil('get-meta', zone, kind);
      if (!found.includes(`${kind} = ${value}\n`)) throw new Error(`got ${found}`);
    });
  }

  /** Waits until it knows nothing of the zone. */
  async refuses(name: string): Promise<void> {
    await this.#until(`refuses ${name}`, async () => {
      const { status } = await this.dns.dig(name, 'A');
      if (status !== 'REFUSED') throw new Error(`got ${status}`);
    });
  }

  /** A deadline that has passed shows what the daemon was doing. */
  async #until(what: string, check: () => Promise<void>): Promise<void> {
    try {
      await until(
        async () => {
          await check();
          return true;
        },
        { what: `${this.daemon.name} ${what}`, timeoutMs: 30_000 },
      );
    } catch (error) {
      const { stderr, child } = this.daemon.daemon;
      const ended = child.exitCode ?? child.signalCode;
      const state = ended === null ? 'runs' : `ended with ${ended}`;
      const log = stderr().split('\n').slice(-20).join('\n');
      throw new Error(`${String(error)}\nthe daemon ${state}:\n${log}`, { cause: error });
    }
  }

  /** As the API shows it. */
  zone(zone: string): Promise<unknown> {
    return this.dns.api('GET', `zones/${zone}.`);
  }

  async zoneNames(): Promise<string[]> {
    const zones = (await this.dns.api('GET', 'zones')) as readonly { readonly name: string }[];
    return zones.map(({ name }) => name).sort();
  }

  /** Waits until these are its zones. Main and shard travel apart: without its records a zone is refused before it is gone. */
  async hasZones(names: readonly string[]): Promise<void> {
    await this.#until(`zones ${names.join(' ')}`, async () => {
      const found = await this.zoneNames();
      if (found.join() !== names.toSorted().join()) throw new Error(`got ${found.join(' ')}`);
    });
  }

  /** As `dig -y` wants it. */
  async tsigKey(name: string): Promise<string> {
    const [, algorithm, secret] =
      /^\S+\. (\S+)\. (\S+)$/m.exec(await this.dns.pdnsutil('list-tsig-keys')) ?? [];
    return `${algorithm}:${name}:${secret}`;
  }

  /** The whole zone, sorted, as somebody with the key gets it. */
  async transfer(zone: string, tsigKey: string): Promise<string[]> {
    const { records } = await this.dns.dig(zone, 'AXFR', '-y', tsigKey);
    return records.filter((line) => !line.includes(' ANY TSIG ')).sort();
  }

  replace(name: string, content: string): Promise<unknown> {
    const records = [{ content, disabled: false }];
    return this.#patch({ name: `${name}.`, type: 'A', ttl: 60, changetype: 'REPLACE', records });
  }

  remove(name: string): Promise<unknown> {
    return this.#patch({ name: `${name}.`, type: 'A', changetype: 'DELETE' });
  }

  #patch(rrset: object): Promise<unknown> {
    return this.dns.api('PATCH', `zones/${ZONE}.`, { rrsets: [rrset] });
  }

  /** Of main and shard; nobody may have them open. */
  async contents(): Promise<LmdbContents[]> {
    const { lmdbPath, shardPath } = this.dns;
    return Promise.all([lmdbPath, shardPath].map((path) => readLmdb(path, { noSubdir: true })));
  }

  /** The UUID that the server gave its LMDB when it made that one, hexadecimal. */
  async identity(): Promise<string | undefined> {
    const [main] = await this.contents();
    const key = Buffer.from('uuid').toString('hex');
    const [, value] = main?.dbis['pdns']?.entries.find(([name]) => name === key) ?? [];
    // Behind the header.
    return value?.slice(48);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.daemon[Symbol.asyncDispose]();
    await this.dns[Symbol.asyncDispose]();
  }
}

export interface SiteOptions {
  /** `pdns-4.9` by default; 4.7 is replicated in shadow mode. */
  readonly tool?: NonNullable<PowerDnsOptions['tool']>;
  /** Instead of a directory that all sites below one directory share. */
  readonly storage?: { readonly type: string; readonly options: object };
  /** The daemon makes the LMDBs, when it comes first. */
  readonly create?: boolean;
  /** Of each LMDB, for the server and for the daemon. */
  readonly mapSizeMib?: number;
  /** Of PowerDNS; see {@link PowerDnsOptions}. */
  readonly settings?: PowerDnsOptions['settings'];
}

export async function site(name: string, directory: string, options: SiteOptions): Promise<Site> {
  const { tool = 'pdns-4.9', storage, create = false, mapSizeMib = 100 } = options;
  const shadow = tool === 'pdns-4.7';
  const settings = {
    'default-soa-content': 'ns1.@ hostmaster.@ 0 10800 3600 604800 3600',
    // Loopback may transfer all zones otherwise.
    'allow-axfr-ips': '',
    'lmdb-map-size': `${mapSizeMib}`,
    ...options.settings,
  };
  const dns = await powerDns(join(directory, name, 'dns'), { tool, settings });
  const lmdb = (path: string, dupsort: boolean): object => ({
    path,
    schema_tracks_changes: !shadow,
    ...(shadow && dupsort ? { dupsort_hack: true } : {}),
    options: { no_subdir: true, create, map_size: `${mapSizeMib}MB` },
  });
  const daemon = new Instance(name, join(directory, name), join(directory, 'storage'), await freePort(), {
    lmdbs: { main: lmdb(dns.lmdbPath, true), shard: lmdb(dns.shardPath, false) },
    ...(storage === undefined
      ? {}
      : { storage: { ...storage, options: { root_path: undefined, ...storage.options } } }),
  });
  return new Site(dns, daemon);
}

/** A bucket that is not there yet. */
export function inBucket(server: S3Server, bucket: string): NonNullable<SiteOptions['storage']> {
  return {
    type: 's3',
    options: {
      endpoint_url: server.endpoint,
      access_key: server.accessKey,
      secret_key: server.secretKey,
      bucket,
      create_bucket: true,
    },
  };
}

/** Both instances have stored both databases. */
export async function expectSnapshots(server: S3Server, bucket: string): Promise<void> {
  const objects = await readdir(join(server.dataDir, bucket));
  for (const prefix of ['main__a__', 'main__b__', 'shard__a__', 'shard__b__']) {
    expect(objects.filter((name) => name.startsWith(prefix))).not.toEqual([]);
  }
}

/** All daemons at once. */
export async function daemons(sites: readonly Site[], what: 'start' | 'kill' | 'ok' | 'stop'): Promise<void> {
  await Promise.all(sites.map(({ daemon }) => daemon[what]()));
}

/** {@link ZONE} with NSEC3, and addresses of ns1, www and old. */
export async function makeSignedZone({ pdnsutil }: Pick<PowerDns, 'pdnsutil'>): Promise<void> {
  await pdnsutil('create-zone', ZONE, `ns1.${ZONE}`);
  for (const [name, address] of Object.entries({ ns1: '192.0.2.53', www: '192.0.2.1', old: '192.0.2.9' })) {
    await pdnsutil('add-record', ZONE, name, 'A', '60', address);
  }
  await pdnsutil('secure-zone', ZONE);
  await pdnsutil('set-nsec3', ZONE, '1 0 0 -');
  await pdnsutil('rectify-zone', ZONE);
}

/** By B's API: changed, added, deleted, a zone made; A answers so. */
export async function changeAtB(b: Site, a: Site): Promise<void> {
  await b.replace(`www.${ZONE}`, '192.0.2.2');
  await b.replace(`new.${ZONE}`, '192.0.2.3');
  await b.remove(`old.${ZONE}`);
  const zone = { name: 'made-at-b.example.', kind: 'Native', nameservers: [`ns1.${ZONE}.`] };
  await b.dns.api('POST', 'zones', zone);
  await a.answers(`www.${ZONE}`, 'A', ['192.0.2.2']);
  await a.answers(`new.${ZONE}`, 'A', ['192.0.2.3']);
  await a.answers(`old.${ZONE}`, 'A', []);
  await a.answers('made-at-b.example', 'NS', [`ns1.${ZONE}.`]);
}

/** Each sees what the other did last in either LMDB, in one transaction each: then it has everything before that, too. */
export async function seeEachOther(a: Site, b: Site): Promise<void> {
  for (const [site, other] of [
    [a, b],
    [b, a],
  ] as const) {
    const { name } = other.daemon;
    await other.dns.pdnsutil('add-record', 'big.example', `last-${name}`, 'A', '192.0.2.15');
    await other.dns.pdnsutil('set-meta', ZONE, 'X-LAST', name);
    await site.answers(`last-${name}.big.example`, 'A', ['192.0.2.15']);
    await site.hasMetadata(ZONE, 'X-LAST', name);
  }
}

/** Everything but the numbers of local transactions, which each LMDB counts for itself. */
export function comparable(contents: readonly LmdbContents[]): unknown {
  return contents.map(({ dbis }) => {
    const isShadow = (name: string): boolean => name.startsWith('_sync_shadow_');
    const shadowed = Object.keys(dbis).some(isShadow);
    const masked = Object.entries(dbis).map(([name, { flags, entries }]) => [
      name,
      {
        flags,
        entries:
          shadowed && !isShadow(name)
            ? entries
            : // Bytes 8 to 15 of the header.
              entries.map(([key, value]) => [key, `${value.slice(0, 16)}${value.slice(32)}`]),
      },
    ]);
    return Object.fromEntries(masked) as unknown;
  });
}

/** A zone file with h0 to h{count - 1}. */
export function zoneText(count: number): string {
  const names = Array.from({ length: count }, (_, index) => `h${index} A 192.0.2.100\n`);
  return `$TTL 60\n@ SOA ns1.${ZONE}. hostmaster.${ZONE}. ${count} 10800 3600 604800 3600\n@ NS ns1.${ZONE}.\n${names.join('')}`;
}

/** Without signatures: ECDSA's are different each time. */
export function unsigned(records: readonly string[]): string[] {
  return records.filter((line) => !/ IN RRSIG /.test(line));
}
