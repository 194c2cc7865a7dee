/**
 * PowerDNS Authoritative Servers with an LMDB each, on loopback, without root (build/pdns-root.sh), for tests and the demo:
 *
 *     await using dns = await powerDns(directory);    // writes DIRECTORY/pdns.conf; nothing runs yet, no LMDB exists
 *     await dns.pdnsutil('create-zone', 'example.org'); // works with or without the server; creates the LMDB, too
 *     await dns.start();                              // resolves when it answers
 *     await dns.api('PATCH', 'zones/example.org.', { rrsets: [] });
 *     await dns.query('www.example.org', 'A');        // ['192.0.2.1']
 *     await dns.validate('www.example.org', 'A', await dns.dnskeys('example.org'));
 *     dns.lmdbPath, dns.shardPath                     // for the daemon's lmdbs `main` and `shard`, both no_subdir
 *     await powerDns(directory, { tool: 'pdns-4.7' }) // schema 4, for shadow mode; 4.9, which writes headers, by default
 *     await dns.stop(); await dns.kill();             // SIGTERM; SIGKILL. `start` again starts it again
 *
 * Files belong to whoever runs this, so a daemon that it starts may write to them.
 */
import { mkdirSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';

import { freePort, run, start, type Running } from './process.ts';
import { toolPath, type ToolName } from './tools.ts';

export interface PowerDnsOptions {
  readonly tool?: ToolName & `pdns-${string}`;
  /** Added to the configuration file, or replacing a line of it; `undefined` takes one out. */
  readonly settings?: Readonly<Record<string, string | undefined>>;
}

/** A name's answer as `dig` shows it. */
export interface DnsAnswer {
  /** `NOERROR`, `NXDOMAIN`, `REFUSED`, … */
  readonly status: string;
  /** Authoritative. */
  readonly aa: boolean;
  /** Lines of the answer section, `NAME TTL CLASS TYPE DATA`, with single blanks. */
  readonly records: readonly string[];
}

/** Key data of a DNSKEY record: `257 3 13 BASE64`. */
export type DnsKey = string;

export interface PowerDns extends AsyncDisposable {
  readonly directory: string;
  /** The configuration file's text. */
  readonly config: string;
  readonly configPath: string;
  /** Domains, keys, metadata, TSIG keys. */
  readonly lmdbPath: string;
  /** Records. */
  readonly shardPath: string;
  /** 127.0.0.1, UDP and TCP. */
  readonly dnsPort: number;
  /** `http://127.0.0.1:PORT/api/v1/servers/localhost/` */
  readonly apiUrl: string;
  readonly apiKey: string;
  /** Of the server. @throws Error while it does not run. */
  readonly pid: number;
  /** What the server has written since it was started. */
  output(): string;
  /** Resolves when it answers queries. */
  start(): Promise<void>;
  /** SIGTERM, and waits for the end. */
  stop(): Promise<void>;
  /** SIGKILL, and waits for the end. */
  kill(): Promise<void>;
  /** Returns its standard output. @throws Error with all output, when it fails. */
  pdnsutil(...args: readonly string[]): Promise<string>;
  /**
   * One call of the HTTP API below {@link apiUrl}; returns the decoded body, undefined when there is none.
   * @throws Error with status and body, when the answer is no success.
   */
  api(method: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE', path: string, body?: unknown): Promise<unknown>;
  /** `dig` with these further arguments: `dig('example.org', 'AXFR', '-y', 'hmac-sha256:name:secret')`. @throws Error without an answer. */
  dig(...args: readonly string[]): Promise<DnsAnswer>;
  /** The data of all records of that name and type, sorted; empty when there are none. */
  query(name: string, type: string): Promise<string[]>;
  /** The zone's DNSKEY records, sorted. */
  dnskeys(zone: string): Promise<DnsKey[]>;
  /**
   * Asks for the name with `delv`, a validating resolver that trusts only these keys of the zone, and returns its lines:
   * `; fully validated` and the records, or `; negative response, fully validated` and the proof.
   * @throws Error with them, when the answer does not validate.
   */
  validate(zone: string, name: string, type: string, trusted: readonly DnsKey[]): Promise<string[]>;
}

/** A server that is ready to start, with its files in `directory`, which is made if need be. */
export async function powerDns(directory: string, options: PowerDnsOptions = {}): Promise<PowerDns> {
  const tool = options.tool ?? 'pdns-4.9';
  const root = toolPath(tool);
  const program = join(root, 'run');
  mkdirSync(directory, { recursive: true });
  const dnsPort = await freePort();
  const apiPort = await freePort();
  const apiKey = 'test-api-key';
  const lmdbPath = join(directory, 'pdns.lmdb');
  const configPath = join(directory, 'pdns.conf');
  const settings = {
    'module-dir': join(root, 'modules'),
    launch: 'lmdb',
    'lmdb-filename': lmdbPath,
    'lmdb-shards': '1',
    // What keeps two servers' new zones apart; 4.9 has more in the same setting.
    [tool === 'pdns-4.7' ? 'lmdb-random-ids' : 'lmdb-lightning-stream']: 'yes',
    'lmdb-map-size': '1000',
    // What another host has changed is answered at once: nothing is remembered.
    'zone-cache-refresh-interval': '0',
    'zone-metadata-cache-ttl': '0',
    'dnssec-key-cache-ttl': '0',
    'cache-ttl': '0',
    'query-cache-ttl': '0',
    'negquery-cache-ttl': '0',
    'local-address': '127.0.0.1',
    'local-port': String(dnsPort),
    api: 'yes',
    'api-key': apiKey,
    'webserver-address': '127.0.0.1',
    'webserver-port': String(apiPort),
    'socket-dir': directory,
    // It asks the network for news otherwise.
    'security-poll-suffix': '',
    'disable-syslog': 'yes',
    ...options.settings,
  };
  const config = Object.entries(settings)
    .filter(([, value]) => value !== undefined)
    .map(([key, value]) => `${key}=${value}\n`)
    .join('');
  await writeFile(configPath, config);

  const called = async (
    name: string,
    args: readonly string[],
  ): Promise<{ readonly code: number | null; readonly stdout: string; readonly all: string }> => {
    const { code, stdout, stderr } = await run({ command: program, args: [name, ...args], cwd: directory });
    return { code, stdout, all: `${name} ${args.join(' ')} ended with ${code}:\n${stdout}${stderr}` };
  };
  let server: Running | undefined;

  const dns: PowerDns = {
    directory,
    config,
    configPath,
    lmdbPath,
    shardPath: `${lmdbPath}-0`,
    dnsPort,
    apiUrl: `http://127.0.0.1:${apiPort}/api/v1/servers/localhost/`,
    apiKey,
    get pid() {
      if (server === undefined) throw new Error(`${directory}: the server does not run`);
      return server.pid;
    },
    output: () => (server === undefined ? '' : server.stdout() + server.stderr()),
    async start() {
      if (server !== undefined) throw new Error(`${directory}: the server runs already`);
      // The kernel ends it with its parent, however that one ends.
      const child = await start({
        command: 'setpriv',
        args: ['--pdeathsig', 'SIGKILL', program, 'pdns_server', `--config-dir=${directory}`],
        cwd: directory,
        // A Ctrl-C at the terminal is for whoever started it.
        ownProcessGroup: true,
      });
      try {
        await child.waitForOutput(/Done launching threads/);
      } catch (error) {
        await child[Symbol.asyncDispose]();
        throw error;
      }
      server = child;
    },
    async stop() {
      const child = server;
      server = undefined;
      await child?.stop();
    },
    async kill() {
      const child = server;
      server = undefined;
      await child?.[Symbol.asyncDispose]();
    },
    async pdnsutil(...args) {
      const { code, stdout, all } = await called('pdnsutil', [`--config-dir=${directory}`, ...args]);
      if (code !== 0) throw new Error(all);
      return stdout;
    },
    async api(method, path, body) {
      const response = await fetch(new URL(path, dns.apiUrl), {
        method,
        headers: { 'X-API-Key': apiKey, 'Content-Type': 'application/json' },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      });
      const text = await response.text();
      if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${text}`);
      return text === '' ? undefined : (JSON.parse(text) as unknown);
    },
    async dig(...args) {
      const how = ['-r', '@127.0.0.1', '-p', String(dnsPort), '+tries=1', '+time=5', '+nocookie', '+nosplit'];
      const { code, stdout, all } = await called('dig', [...how, ...args]);
      const status = /status: ([A-Z]+)/.exec(stdout)?.[1];
      const records = stdout.split('\n').filter((line) => line !== '' && !line.startsWith(';'));
      // A transfer that succeeds has no header in dig's output.
      if (code !== 0 || (status === undefined && (records.length === 0 || /Transfer failed/.test(stdout)))) {
        throw new Error(all);
      }
      const section = /;; ANSWER SECTION:\n([^]*?)\n\n/.exec(stdout)?.[1];
      return {
        status: status ?? 'NOERROR',
        aa: /^;; flags:[^;]* aa/m.test(stdout),
        records: (status === undefined ? records : (section?.split('\n') ?? [])).map((line) =>
          line.split(/\s+/).join(' '),
        ),
      };
    },
    async query(name, type) {
      const { records } = await dns.dig(name, type);
      return records
        .flatMap((line) => {
          const [, , , found, ...data] = line.split(' ');
          return found === type ? [data.join(' ')] : [];
        })
        .sort();
    },
    dnskeys: (zone) => dns.query(zone, 'DNSKEY'),
    async validate(zone, name, type, trusted) {
      const anchors = join(directory, `anchors-${zone}`);
      const lines = trusted.map((key) => {
        const [flags = '', protocol = '', algorithm = '', data = ''] = key.split(' ');
        return `  "${zone}." static-key ${flags} ${protocol} ${algorithm} "${data}";\n`;
      });
      await writeFile(anchors, `trust-anchors {\n${lines.join('')}};\n`);
      const where = ['@127.0.0.1', '-p', String(dnsPort), '-a', anchors, `+root=${zone}`];
      const { stdout, all } = await called('delv', [...where, name, type]);
      if (!/^; (negative response, )?fully validated$/m.test(stdout)) throw new Error(all);
      return stdout.split('\n').filter((line) => line !== '');
    },
    [Symbol.asyncDispose]: () => dns.kill(),
  };
  return dns;
}
