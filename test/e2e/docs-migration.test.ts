/**
 * docs/migration.md, followed to the letter on two hosts with real servers: its files, and its commands in their order. Between the two, zones are changed on both
 * sides. What would need a root of its own (systemctl, packages) is done here.
 */
import { chmodSync, copyFileSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { powerDns, type PowerDns } from '../helpers/powerdns.ts';
import {
  freePort,
  launcher,
  repositoryRoot,
  run,
  start,
  tempDir,
  until,
  type Running,
} from '../helpers/process.ts';
import { startMinio, type S3Account } from '../helpers/s3-server.ts';
import { describeWithTools } from '../helpers/tools.ts';

const read = (name: string): string => readFileSync(join(repositoryRoot, name), 'utf8');
const page = read('docs/migration.md');

/** The indented lines below a heading. */
function commandsOf(heading: string): readonly string[] {
  const [, section] = new RegExp(`^#+ ${heading}\\n([^]*?)(?=^#+ )`, 'm').exec(page) ?? [];
  if (section === undefined) throw new Error(`there is no heading ${heading}`);
  return section.split('\n').flatMap((line) => (/^ {4}\S/.test(line) ? [line.trim()] : []));
}

/** The fenced block of a page that holds this text. */
function blockOf(text: string, language: string, holds: string): string {
  const found = [...text.matchAll(new RegExp(`^\`\`\`${language}\\n([^]*?)^\`\`\`$`, 'gm'))]
    .map(([, block = '']) => block)
    .filter((block) => block.includes(holds));
  expect(found).toHaveLength(1);
  return found[0] ?? '';
}

interface Way {
  readonly from: 'pdns-4.7' | 'pdns-4.9';
  readonly to: 'pdns-4.9' | 'pdns-5';
  readonly schema: 5 | 6;
  /** Its `main.yaml` on docs/powerdns.md has this. */
  readonly oldOption: string;
}

type Unit = 'pdns' | 'lightningstream@main';

/** A host of the page. */
class Host implements AsyncDisposable {
  readonly name: string;
  readonly #way: Way;
  readonly #directory: string;
  readonly #old: PowerDns;
  readonly #new: PowerDns;
  readonly #httpPort: number;
  readonly #s3: S3Account;
  readonly #masked = new Set<Unit>();
  #isUpgraded = false;
  #server: PowerDns | undefined;
  #daemon: Running | undefined;

  private constructor(
    name: string,
    way: Way,
    directory: string,
    servers: readonly [PowerDns, PowerDns],
    httpPort: number,
    s3: S3Account,
  ) {
    this.name = name;
    this.#way = way;
    this.#directory = directory;
    [this.#old, this.#new] = servers;
    this.#httpPort = httpPort;
    this.#s3 = s3;
  }

  static async create(name: string, way: Way, directory: string, s3: S3Account): Promise<Host> {
    mkdirSync(join(directory, 'lmdb'), { recursive: true });
    const settings = { 'lmdb-filename': join(directory, 'lmdb', 'pdns.lmdb') };
    const added = Object.fromEntries(
      [...blockOf(page, 'ini', 'lmdb-lightning-stream').matchAll(/^([a-z-]+)=(.*)$/gm)].map(
        ([, key = '', value = '']) => [key, value],
      ),
    );
    const before = await powerDns(join(directory, 'old'), { tool: way.from, settings });
    const after = await powerDns(join(directory, 'new'), {
      tool: way.to,
      settings: { ...settings, ...added },
    });
    const host = new Host(name, way, directory, [before, after], await freePort(), s3);
    host.#program('lightningstream', `exec ${launcher} "$@"`);
    // All files here are this user's.
    host.#program('runuser', '[ "$1 $2 $3" = "-u pdns --" ] && shift 3 && exec "$@"');
    host.#configure(blockOf(read('docs/powerdns.md'), 'yaml', way.oldOption));
    return host;
  }

  /** The server that is installed. */
  get dns(): PowerDns {
    return this.#isUpgraded ? this.#new : this.#old;
  }

  get database(): string {
    return join(this.#directory, 'lmdb');
  }

  get config(): string {
    return join(this.#directory, 'main.yaml');
  }

  get oldConfig(): string {
    return join(this.#directory, 'main-v4.yaml');
  }

  /** As the page has it; the old one is kept. */
  configureNew(): void {
    copyFileSync(this.config, this.oldConfig);
    this.#configure(
      blockOf(page, 'yaml', 'global_prefix: v5/').replace(
        'global_prefix: v5/',
        `global_prefix: v${this.#way.schema}/`,
      ),
    );
  }

  configureOld(): void {
    copyFileSync(this.oldConfig, this.config);
    this.#isUpgraded = false;
  }

  #configure(text: string): void {
    let config = text;
    for (const [from, to] of [
      ['instance: ns1', `instance: ${this.name}`],
      ['/var/lib/powerdns/', `${this.database}/`],
      ['https://s3.example.net', this.#s3.endpoint],
      ['access_key: change-me', `access_key: ${this.#s3.accessKey}`],
      ['secret_key: change-me', `secret_key: ${this.#s3.secretKey}`],
      ['127.0.0.1:8500', `127.0.0.1:${this.#httpPort}`],
    ] as const) {
      expect(config).toContain(from);
      config = config.replaceAll(from, to);
    }
    writeFileSync(this.config, config);
  }

  /** All commands below a heading, each with the exit code 0. Returns what they printed. */
  async follow(heading: string): Promise<string> {
    const lines = commandsOf(heading).filter((line) => !line.startsWith('dnf '));
    expect(lines.length).toBeGreaterThan(0);
    let printed = '';
    for (const line of lines) printed += await this.type(line);
    return printed;
  }

  async type(line: string): Promise<string> {
    const systemctl = /^systemctl (mask --now|unmask|start) (.*)$/.exec(line);
    if (systemctl !== null) {
      const [, verb = '', units = ''] = systemctl;
      for (const unit of units.split(' ')) await this.#systemctl(verb, unit as Unit);
      return '';
    }
    if (/^apt-mark (un)?hold /.test(line)) return '';
    if (line === 'apt update && apt install pdns-server pdns-backend-lmdb') {
      // The package starts it, unless it is masked.
      expect([...this.#masked]).toContain('pdns');
      this.#isUpgraded = true;
      return '';
    }
    const backups = readdirSync(this.database).filter((name) => name.startsWith('lightningstream-backup-'));
    const here = line
      .replace(/ +#.*$/, '')
      // Enough here: it looks each second.
      .replace('sleep 10', 'sleep 3')
      .replaceAll('--to 5', `--to ${this.#way.schema}`)
      .replaceAll('/etc/lightningstream/main.yaml', this.config)
      .replaceAll('/root/main-v4.yaml', this.oldConfig)
      .replaceAll('/var/lib/powerdns', this.database)
      .replaceAll('lightningstream-backup-TIME', backups[0] ?? '')
      .replaceAll('-o pdns -g pdns ', '');
    const { code, stdout, stderr } = await run({
      command: 'bash',
      args: ['-c', `set -eo pipefail; ${here}`],
      cwd: this.#directory,
      env: {
        PATH: `${this.#directory}/bin:${process.env['PATH'] ?? ''}`,
        CACHE_DIRECTORY: join(this.#directory, 'cache'),
      },
    });
    if (code !== 0) throw new Error(`${this.name}# ${here}\nended with ${code}:\n${stdout}${stderr}`);
    return stdout;
  }

  async #systemctl(verb: string, unit: Unit): Promise<void> {
    if (verb === 'unmask') this.#masked.delete(unit);
    else if (verb === 'start') {
      expect([...this.#masked]).not.toContain(unit);
      await this.#start(unit);
    } else {
      this.#masked.add(unit);
      await this.#stop(unit);
    }
  }

  async #start(unit: Unit): Promise<void> {
    if (unit === 'pdns') {
      this.#server = this.dns;
      await this.#server.start();
    } else {
      this.#daemon = await start({
        args: ['-c', this.config, 'sync'],
        cwd: this.#directory,
        env: { CACHE_DIRECTORY: join(this.#directory, 'cache') },
      });
    }
  }

  async #stop(unit: Unit): Promise<void> {
    if (unit === 'pdns') {
      await this.#server?.stop();
      this.#server = undefined;
    } else if (this.#daemon !== undefined) {
      expect((await this.#daemon.stop()).code).toBe(0);
      this.#daemon = undefined;
    }
  }

  /** Both programs, in the page's order for a host that runs already. */
  async boot(): Promise<void> {
    await this.#start('lightningstream@main');
    await until(() => readdirSync(this.database).includes('pdns.lmdb-0'), {
      what: 'the daemon makes both files',
    });
    await this.#start('pdns');
  }

  async isHealthy(): Promise<boolean> {
    return (await fetch(`http://127.0.0.1:${this.#httpPort}/healthz`)).status === 200;
  }

  async answers(name: string, type: string, data: readonly string[]): Promise<void> {
    await until(
      async () => {
        expect(await this.dns.query(name, type)).toEqual(data);
        return true;
      },
      {
        what: `${this.name} answers ${name} ${type} with ${data.join(' ')}`,
        timeoutMs: 30_000,
        intervalMs: 200,
      },
    );
  }

  #program(name: string, script: string): void {
    const directory = join(this.#directory, 'bin');
    mkdirSync(directory, { recursive: true });
    writeFileSync(join(directory, name), `#!/bin/sh\n${script}\n`);
    chmodSync(join(directory, name), 0o755);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#daemon?.[Symbol.asyncDispose]();
    await this.#server?.kill();
  }
}

const ways: readonly Way[] = [
  { from: 'pdns-4.7', to: 'pdns-4.9', schema: 5, oldOption: 'schema_tracks_changes: false' },
  { from: 'pdns-4.9', to: 'pdns-5', schema: 6, oldOption: 'schema_tracks_changes: true' },
  { from: 'pdns-4.7', to: 'pdns-5', schema: 6, oldOption: 'schema_tracks_changes: false' },
];

for (const way of ways) {
  describeWithTools(['minio', way.from, way.to], `docs/migration.md, ${way.from} to ${way.to}`, () => {
    test('two servers, one after the other, and one of them back', { timeout: 300_000 }, async () => {
      await using dir = await tempDir('lightningstream-docs-');
      await using s3 = await startMinio();
      await using ns1 = await Host.create('ns1', way, dir.join('ns1'), s3);
      await using ns2 = await Host.create('ns2', way, dir.join('ns2'), s3);
      for (const host of [ns1, ns2]) await host.boot();
      const old = ns1.dns;
      await old.pdnsutil('create-zone', 'example.org', 'ns1.example.org');
      for (const [name, address] of [
        ['kept', '192.0.2.80'],
        ['both', '192.0.2.81'],
        ['gone', '192.0.2.82'],
      ] as const)
        await old.pdnsutil('add-record', 'example.org', name, 'A', '60', address);
      await old.pdnsutil('create-zone', 'example.net', 'ns1.example.org');
      await old.pdnsutil('secure-zone', 'example.org');
      for (const host of [ns1, ns2]) {
        await host.answers('gone.example.org', 'A', ['192.0.2.82']);
        await host.answers('example.net', 'NS', ['ns1.example.org.']);
      }
      await until(async () => (await ns2.dns.dnskeys('example.org')).length === 1, {
        what: 'the key is on ns2',
      });
      const keys = await old.dnskeys('example.org');

      const planned = await ns1.follow('1. All servers: hold and plan');
      expect(planned).toMatch(
        way.from === 'pdns-4.7' ? /: schema 4 can be migrated; 1 shard$/m : /: schema 5.*; 1 shard$/m,
      );
      expect(planned).toContain(` to ${way.schema}\n`);

      const move = async (host: Host): Promise<void> => {
        await host.follow('Stop');
        const idle = await host.type('lightningstream -c /etc/lightningstream/main.yaml migrate status');
        expect(idle).not.toMatch(/\(\d+\)/);
        const done = await host.follow('Migrate');
        expect(done).toMatch(/ 0 untracked, \d+ deletions; backup in \S+lightningstream-backup-/);
        const again = await host.type(
          'runuser -u pdns -- lightningstream -c /etc/lightningstream/main.yaml migrate run --to 5',
        );
        expect(again).toContain('nothing to do');
        host.configureNew();
        const check = await host.type(
          'runuser -u pdns -- lightningstream -c /etc/lightningstream/main.yaml config check',
        );
        // What the page says that may be.
        const warning = /^warning +lmdbs\.shard: options\.map_size is 1000MB, but who wrote last had 16000MB/;
        expect(check.split('\n').filter((line) => !/^(ok .*)?$/.test(line) && !warning.test(line))).toEqual(
          [],
        );
        await host.follow('Install the new PowerDNS');
        await host.follow('Start');
        await until(() => host.isHealthy(), { what: `${host.name} is well`, timeoutMs: 30_000 });
        expect(await host.dns.pdnsutil('check-all-zones')).toMatch(/ 0 had errors/);
        await until(
          async () => {
            const names = await host.type(
              'lightningstream -c /etc/lightningstream/main.yaml snapshots list -lt',
            );
            return ['main', 'shard'].every((db) => names.includes(`${db}__${host.name}__`));
          },
          { what: 'the new prefix has both snapshots', timeoutMs: 30_000 },
        );
      };

      await move(ns1);
      await ns1.answers('kept.example.org', 'A', ['192.0.2.80']);
      expect(await ns1.dns.dnskeys('example.org')).toEqual(keys);
      // Apart: each side changes something, the old side the same record later, and each removes something.
      await ns1.dns.api('PATCH', 'zones/example.org.', {
        rrsets: [
          {
            name: 'both.example.org.',
            type: 'A',
            ttl: 60,
            changetype: 'REPLACE',
            records: [{ content: '192.0.2.91' }],
          },
          { name: 'gone.example.org.', type: 'A', changetype: 'DELETE' },
        ],
      });
      await ns2.dns.pdnsutil('replace-rrset', 'example.org', 'both', 'A', '60', '192.0.2.92');
      await ns2.dns.pdnsutil('delete-zone', 'example.net');
      await ns2.dns.pdnsutil('add-record', 'example.org', 'later', 'A', '60', '192.0.2.93');
      await ns2.answers('later.example.org', 'A', ['192.0.2.93']);

      await move(ns2);
      for (const host of [ns1, ns2]) {
        await host.answers('kept.example.org', 'A', ['192.0.2.80']);
        await host.answers('both.example.org', 'A', ['192.0.2.92']);
        await host.answers('later.example.org', 'A', ['192.0.2.93']);
        await host.answers('gone.example.org', 'A', []);
        await host.answers('example.net', 'NS', []);
        expect(await host.dns.dnskeys('example.org')).toEqual(keys);
        await until(() => host.follow('3. Each other server, one by one'), {
          what: `${host.name} agrees`,
          timeoutMs: 30_000,
        });
      }

      // One of them back, with what it had.
      const back = commandsOf('Back');
      for (const line of back) await ns2.type(line);
      ns2.configureOld();
      for (const verb of ['unmask pdns lightningstream@main', 'start lightningstream@main pdns']) {
        expect(page).toContain(`systemctl ${verb}`);
        await ns2.type(`systemctl ${verb}`);
      }
      await ns2.answers('gone.example.org', 'A', ['192.0.2.82']);
      await ns2.answers('later.example.org', 'A', ['192.0.2.93']);
      await until(() => ns2.isHealthy(), { what: 'ns2 is well', timeoutMs: 30_000 });

      await ns1.follow('4. Clean up');
      const left = await ns1.type('lightningstream -c /root/main-v4.yaml snapshots list');
      expect(left.split('\n').filter((line) => line !== '' && !/\/|__ns2__/.test(line))).toEqual([]);
    });
  });
}
