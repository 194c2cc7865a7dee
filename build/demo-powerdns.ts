/**
 * `make demo-powerdns`: two PowerDNS servers, each with an LMDB and a daemon, replicate through MinIO, all on loopback. Changes by
 * `pdnsutil` and by the API on either are shown with the other's answers and the time each took; then all stays up until Ctrl-C
 * (or for DEMO_SECONDS), with the commands to play with it. Everything lives in one temporary directory that goes with it.
 */
import { chmod, mkdir, writeFile } from 'node:fs/promises';
import { Resolver } from 'node:dns/promises';
import { join } from 'node:path';
import { styleText } from 'node:util';
import { powerDns, type PowerDns } from '../test/helpers/powerdns.ts';
import { freePort, start, tempDir } from '../test/helpers/process.ts';
import { startMinio, type S3Account } from '../test/helpers/s3-server.ts';
import { toolPath } from '../test/helpers/tools.ts';
import { healthy, measure, perform, say, stay, step, wait, watch } from './demo-stage.ts';

/** A name server, and the daemon beside it. */
interface Site extends AsyncDisposable {
  readonly name: string;
  readonly dns: PowerDns;
  readonly statusAddress: string;
  /** `pdnsutil` with these words, shown as typed. */
  pdnsutil(words: string): Promise<void>;
  /** One change of {@link ZONE} by the API, shown in short. */
  patch(name: string, content: string | undefined): Promise<void>;
  /** Waits for the answer: an A record's data, or the code that c-ares has for none. */
  answers(name: string, expected: string): Promise<void>;
}

const ZONE = 'example.org';
const POLL_MS = 100;
/** Longer than {@link POLL_MS}. */
const QUIET_MS = 400;

await perform(demo);

async function demo(stayMs: number | undefined): Promise<void> {
  await using dir = await tempDir('lightningstream-demo-');
  await using s3 = await startMinio({ dataDir: dir.join('minio') });
  await using ns1 = await site('ns1', dir.path, s3);
  await using ns2 = await site('ns2', dir.path, s3);
  say(
    `Two PowerDNS servers with an LMDB and a daemon each, and MinIO as their storage, asked every ${POLL_MS} ms (default: 1 s).`,
  );
  say(`Times are from the end of the command to the answer of the other server.`);

  await step('1. A zone is made on ns1', QUIET_MS);
  await ns1.pdnsutil(`create-zone ${ZONE} ns1.${ZONE}`);
  await ns1.pdnsutil(`add-record ${ZONE} ns1 A 192.0.2.1`);
  await ns1.pdnsutil(`add-record ${ZONE} www A 60 192.0.2.10`);
  await measure(() => ns2.answers(`www.${ZONE}`, '192.0.2.10'), `ns2 answers: www.${ZONE} A 192.0.2.10`);

  await step('2. A record is changed on ns2', QUIET_MS);
  await ns2.patch(`www.${ZONE}`, '192.0.2.20');
  await measure(() => ns1.answers(`www.${ZONE}`, '192.0.2.20'), `ns1 answers: www.${ZONE} A 192.0.2.20`);

  await step('3. The zone is signed on ns1', QUIET_MS);
  await ns1.pdnsutil(`secure-zone ${ZONE}`);
  const keys = await ns1.dns.dnskeys(ZONE);
  await measure(
    () =>
      wait(
        async () => keys.length > 0 && keys.join() === (await ns2.dns.dnskeys(ZONE)).join(),
        'the keys on ns2',
      ),
    `ns2 has the same key: ${ZONE} DNSKEY ${shortened(keys)}`,
  );
  const validated = await ns2.dns.validate(ZONE, `www.${ZONE}`, 'A', keys);
  say(
    `             delv, which trusts the key of ns1 only, about the answer of ns2: ${validated[0]?.replace('; ', '') ?? ''}`,
  );

  await step('4. A record is deleted on ns2', QUIET_MS);
  await ns2.patch(`ns1.${ZONE}`, '192.0.2.2');
  await ns2.patch(`www.${ZONE}`, undefined);
  await measure(() => ns1.answers(`www.${ZONE}`, 'ENOTFOUND'), `ns1 answers: www.${ZONE} NXDOMAIN`);

  say(`\n${styleText('bold', 'Try it')}         cd ${dir.path}`);
  say(`               ./ns1 pdnsutil add-record ${ZONE} new A 60 192.0.2.30`);
  say(`               ./ns2 dig new.${ZONE}`);
  say(
    `               ./ns2 curl zones/${ZONE}. -X PATCH -d '${JSON.stringify(rrset(`new.${ZONE}`, '192.0.2.31'))}'`,
  );
  say(`               ./ns1 dig new.${ZONE}`);
  for (const { name, dns, statusAddress } of [ns1, ns2])
    say(`${name}            port ${dns.dnsPort}   API ${dns.apiUrl}   status http://${statusAddress}/`);
  say(`Your own       docs/powerdns.md`);
  await stay(stayMs);
}

async function site(name: string, directory: string, s3: S3Account): Promise<Site> {
  const dns = await powerDns(join(directory, `${name}.d`), {
    settings: { 'default-soa-content': 'ns1.@ hostmaster.@ 0 10800 3600 604800 3600' },
  });
  const statusAddress = `127.0.0.1:${await freePort()}`;
  const lmdb = (path: string) => `
    path: ${path}
    schema_tracks_changes: true
    options:
      no_subdir: true
      create: true
      file_mask: 0600
      map_size: 1000MB`;
  const config = `
instance: ${name}
lmdbs:
  main: ${lmdb(dns.lmdbPath)}
  shard: ${lmdb(dns.shardPath)}
lmdb_poll_interval: ${POLL_MS}ms
storage_poll_interval: ${POLL_MS}ms
storage:
  type: s3
  options:
    endpoint_url: ${s3.endpoint}
    bucket: powerdns
    create_bucket: true
    access_key: ${s3.accessKey}
    secret_key: ${s3.secretKey}
spool_dir: ${dns.directory}
http:
  address: ${statusAddress}
`;
  await writeCommand(join(directory, name), dns);
  // Ctrl-C reaches us alone; the daemons are told by SIGTERM, once.
  const daemon = await start({ args: ['sync'], config, cwd: dns.directory, ownProcessGroup: true });
  let ending = false;
  watch(`The daemon of ${name}`, daemon, () => ending);
  const resolver = new Resolver({ timeout: 1000, tries: 1 });
  resolver.setServers([`127.0.0.1:${dns.dnsPort}`]);
  const end = async (): Promise<void> => {
    ending = true;
    await dns.stop();
    if (daemon.child.exitCode === null && daemon.child.signalCode === null) await daemon.stop();
    await daemon[Symbol.asyncDispose]();
  };
  try {
    await healthy(name, statusAddress);
    await dns.start();
  } catch (error) {
    await end();
    throw error;
  }
  return {
    name,
    dns,
    statusAddress,
    async pdnsutil(words) {
      typed(name, `pdnsutil ${words}`);
      await dns.pdnsutil(...words.split(' '));
    },
    async patch(record, content) {
      const what = content === undefined ? `DELETE ${record} A` : `REPLACE ${record} A ${content}`;
      typed(name, `curl -X PATCH …/zones/${ZONE}. (${what})`);
      await dns.api('PATCH', `zones/${ZONE}.`, rrset(record, content));
    },
    answers: (record, expected) =>
      wait(
        async () => (await answer(resolver, record)) === expected,
        `${name} answers ${record}: ${expected}`,
      ),
    [Symbol.asyncDispose]: end,
  };
}

/** Asked in this process: a `dig` takes longer to start than the answer to come. */
async function answer(resolver: Resolver, name: string): Promise<string> {
  try {
    return (await resolver.resolve4(name)).join();
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? '';
  }
}

/** The body of an API call that sets or (without content) deletes an A record. */
function rrset(name: string, content: string | undefined): object {
  const change =
    content === undefined
      ? { changetype: 'DELETE' }
      : { ttl: 60, changetype: 'REPLACE', records: [{ content }] };
  return { rrsets: [{ name: `${name}.`, type: 'A', ...change }] };
}

/** A program that asks and changes this server, for those who play with it. */
async function writeCommand(path: string, dns: PowerDns): Promise<void> {
  const program = `'${join(toolPath('pdns-4.9'), 'run')}'`;
  await mkdir(dns.directory, { recursive: true });
  await writeFile(
    path,
    `#!/bin/sh
tool=$1
shift
case $tool in
  dig) exec ${program} dig -r @127.0.0.1 -p ${dns.dnsPort} "$@" ;;
  pdnsutil) exec ${program} pdnsutil '--config-dir=${dns.directory}' "$@" ;;
  curl) path=$1; shift; exec curl -s -H 'X-API-Key: ${dns.apiKey}' "${dns.apiUrl}$path" "$@" ;;
  *) echo "usage: $0 dig|pdnsutil|curl ARGUMENTS" >&2; exit 2 ;;
esac
`,
  );
  await chmod(path, 0o755);
}

function typed(host: string, command: string): void {
  say(`             ${styleText('dim', `${host}# ${command}`)}`);
}

function shortened(keys: readonly string[]): string {
  return keys.map((key) => (key.length > 40 ? `${key.slice(0, 40)}…` : key)).join(', ');
}
