/** docs/powerdns.md, followed to the letter: its files, its commands, and what it says that they print. */
import { chmodSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { freePort, launcher, repositoryRoot, run, start, tempDir, until } from '../helpers/process.ts';
import { startMinio, type S3Account } from '../helpers/s3-server.ts';
import { describeWithTools, toolPath } from '../helpers/tools.ts';

const page = readFileSync(join(repositoryRoot, 'docs/powerdns.md'), 'utf8');

interface Command {
  readonly host: string;
  readonly line: string;
  readonly printed: string;
}

function blocks(language: string): readonly string[] {
  return [...page.matchAll(new RegExp(`^\`\`\`${language}\\n([^]*?)^\`\`\`$`, 'gm'))].map(
    ([, text = '']) => text,
  );
}

function block(language: string, holds: string): string {
  const found = blocks(language).filter((text) => text.includes(holds));
  expect(found).toHaveLength(1);
  return found[0] ?? '';
}

/** `ns1# COMMAND` and the lines that follow it. */
function commands(): readonly Command[] {
  return blocks('console').flatMap((text) =>
    text
      .split(/^(?=ns\d# )/m)
      .map((part) => /^(ns\d)# (.+)\n([^]*)$/.exec(part))
      .map((match) => ({ host: match?.[1] ?? '', line: match?.[2] ?? '', printed: match?.[3] ?? '' })),
  );
}

/** Replaces what the page has exactly so often: the text that the reader sees is the one that is tried. */
function replaced(text: string, changes: readonly (readonly [from: string, to: string, times: number])[]) {
  let result = text;
  for (const [from, to, times] of changes) {
    expect([from, result.split(from).length - 1]).toEqual([from, times]);
    result = result.replaceAll(from, to);
  }
  return result;
}

/** What the page has for a version of PowerDNS. */
interface Version {
  readonly tool: 'pdns-4.9' | 'pdns-4.7';
  /** What only its own configuration files have. */
  readonly setting: string;
  readonly option: string;
}

const V49: Version = {
  tool: 'pdns-4.9',
  setting: 'lmdb-lightning-stream=yes',
  option: 'schema_tracks_changes: true',
};
const V47: Version = {
  tool: 'pdns-4.7',
  setting: 'lmdb-random-ids=yes',
  option: 'schema_tracks_changes: false',
};

/** A host of the page: its files in a directory, its addresses on loopback. */
class Host {
  readonly version: Version;
  readonly name: string;
  readonly directory: string;
  readonly dnsPort: number;
  readonly apiPort: number;
  readonly httpPort: number;

  constructor(version: Version, name: string, directory: string, ports: readonly [number, number, number]) {
    this.version = version;
    this.name = name;
    this.directory = directory;
    [this.dnsPort, this.apiPort, this.httpPort] = ports;
  }

  get database(): string {
    return join(this.directory, 'lmdb');
  }

  get bin(): string {
    return join(this.directory, 'bin');
  }

  get daemonConfig(): string {
    return join(this.directory, 'lightningstream.yaml');
  }

  writeFiles(s3: S3Account): void {
    const pdns = toolPath(this.version.tool);
    for (const directory of [this.database, this.bin, join(this.directory, 'cache')]) {
      mkdirSync(directory, { recursive: true });
    }
    const database = ['/var/lib/powerdns/', `${this.database}/`] as const;
    const settings = replaced(block('ini', this.version.setting), [
      [...database, 1],
      ['local-address=0.0.0.0, ::', `local-address=127.0.0.1\nlocal-port=${this.dnsPort}`, 1],
    ]);
    const here = [`webserver-port=${this.apiPort}`, `socket-dir=${this.directory}`];
    writeFileSync(
      join(this.directory, 'pdns.conf'),
      `${settings}${here.join('\n')}\nmodule-dir=${pdns}/modules\n`,
    );
    const config = replaced(block('yaml', this.version.option), [
      ['instance: ns1', `instance: ${this.name}`, 1],
      [...database, 2],
      ['https://s3.example.net', s3.endpoint, 1],
      ['access_key: change-me', `access_key: ${s3.accessKey}`, 1],
      ['secret_key: change-me', `secret_key: ${s3.secretKey}`, 1],
      ['127.0.0.1:8500', `127.0.0.1:${this.httpPort}`, 1],
    ]);
    writeFileSync(this.daemonConfig, config);
    this.#program('pdnsutil', `exec ${pdns}/run pdnsutil --config-dir=${this.directory} "$@"`);
    this.#program('lightningstream', `exec ${launcher} "$@"`);
    // All files here are this user's.
    this.#program('runuser', '[ "$1 $2 $3" = "-u pdns --" ] && shift 3 && exec "$@"');
  }

  /** Those of the page that lead to another host. */
  writeDig(hosts: readonly Host[]): void {
    const dig = `exec ${toolPath(this.version.tool)}/run dig -r`;
    const where = hosts.map(({ name, dnsPort }) => {
      const address = `@192.0.2.${name.slice('ns'.length)}`;
      return `case " $* " in *" ${address} "*) where="@127.0.0.1 -p ${dnsPort}"; from=${address};; esac`;
    });
    const others = 'for argument do shift; [ "$argument" = "$from" ] || set -- "$@" "$argument"; done';
    this.#program('dig', [...where, others, `${dig} $where "$@"`].join('\n'));
  }

  daemon() {
    return start({ args: ['-c', this.daemonConfig, 'sync'], env: this.#environment, cwd: this.directory });
  }

  server() {
    const command = join(toolPath(this.version.tool), 'run');
    return start({
      command: 'setpriv',
      args: ['--pdeathsig', 'SIGKILL', command, 'pdns_server', `--config-dir=${this.directory}`],
      cwd: this.directory,
    });
  }

  /** What a command of the page prints, its lines sorted: programs buffer their two outputs differently. */
  async prints(line: string): Promise<readonly string[]> {
    const here = line
      .replaceAll('127.0.0.1:8081', `127.0.0.1:${this.apiPort}`)
      .replaceAll('127.0.0.1:8500', `127.0.0.1:${this.httpPort}`)
      .replaceAll('/etc/lightningstream/main.yaml', this.daemonConfig);
    const { stdout, stderr } = await run({
      command: 'bash',
      args: ['-c', here],
      cwd: this.directory,
      env: this.#environment,
    });
    return lines(stdout + stderr);
  }

  get #environment() {
    return {
      PATH: `${this.bin}:${process.env['PATH'] ?? ''}`,
      CACHE_DIRECTORY: join(this.directory, 'cache'),
    };
  }

  #program(name: string, script: string): void {
    const path = join(this.bin, name);
    writeFileSync(path, `#!/bin/sh\n${script}\n`);
    chmodSync(path, 0o755);
  }
}

function lines(text: string): readonly string[] {
  return text.split('\n').filter(Boolean).sort();
}

for (const version of [V49, V47]) {
  describeWithTools(['minio', version.tool], `docs/powerdns.md, ${version.tool}`, () => {
    test('its files and commands make two servers that do what it says', async () => {
      await using dir = await tempDir('lightningstream-docs-');
      await using s3 = await startMinio();
      const hosts: Host[] = [];
      for (const name of ['ns1', 'ns2']) {
        const ports = [await freePort(), await freePort(), await freePort()] as const;
        hosts.push(new Host(version, name, dir.join(name), ports));
      }
      for (const host of hosts) {
        host.writeFiles(s3);
        host.writeDig(hosts);
      }
      const [ns1, ns2] = hosts;
      if (ns1 === undefined || ns2 === undefined) throw new Error('two hosts');
      const check = page.split('\n').filter((line) => line.endsWith(' config check'));
      expect(check).toHaveLength(1);
      const findings = await ns1.prints(check[0]?.trim() ?? '');
      expect(findings).toContainEqual(expect.stringMatching(/^ok +config: /));
      expect(findings.filter((line) => !line.startsWith('ok '))).toEqual([
        expect.stringMatching(/^warning +storage: the bucket does not exist: a start will create it$/),
      ]);

      await using daemon1 = await ns1.daemon();
      await until(() => ['', '-0'].every((end) => statSync(join(ns1.database, `pdns.lmdb${end}`)).isFile()), {
        what: 'the daemon makes both files',
      });
      await using server1 = await ns1.server();
      await server1.waitForOutput(/Done launching threads/);
      await using daemon2 = await ns2.daemon();
      await using server2 = await ns2.server();
      await server2.waitForOutput(/Done launching threads/);

      const all = commands();
      expect(all.length).toBeGreaterThan(8);
      for (const { host: name, line, printed } of all) {
        const host = hosts.find((candidate) => candidate.name === name);
        expect([line, host?.name]).toEqual([line, name]);
        const writes = /^pdnsutil (?!check)|-X PATCH/.test(line);
        if (writes) expect([line, await host?.prints(line)]).toEqual([line, lines(printed)]);
        else {
          await until(
            async () => {
              const found = await host?.prints(line);
              expect(found).toEqual(lines(printed));
              return true;
            },
            { timeoutMs: 30_000, intervalMs: 200, what: `${name}# ${line}` },
          );
        }
      }
      // `same` above would be true of two servers without keys.
      expect(await ns2.prints('dig +short @192.0.2.2 example.org DNSKEY')).toEqual([
        expect.stringMatching(/^257 3 13 /),
      ]);
      for (const host of hosts) {
        for (const file of ['pdns.lmdb', 'pdns.lmdb-lock', 'pdns.lmdb-0', 'pdns.lmdb-0-lock']) {
          expect([file, (statSync(join(host.database, file)).mode & 0o777).toString(8)]).toEqual([
            file,
            '600',
          ]);
        }
      }
      for (const daemon of [daemon1, daemon2]) expect((await daemon.stop()).code).toBe(0);
    });

    test('its defaults are those of PowerDNS', async () => {
      const command = join(toolPath(version.tool), 'run');
      const { stdout } = await run({ command, args: ['pdns_server', '--no-config', '--config'] });
      const rows = [...page.matchAll(/^\| (`[a-z-]+`(?:, `[a-z-]+`)*) \| (\d+) s \|/gm)];
      const documented = rows.flatMap(([, names = '', seconds]) =>
        [...names.matchAll(/`([^`]+)`/g)].map(([, name]) => `${name}=${seconds}`),
      );
      expect(documented).toHaveLength(6);
      const defaults = stdout.split('\n').map((line) => line.replace(/^# /, ''));
      expect(documented.filter((setting) => !defaults.includes(setting))).toEqual([]);
      // And the configuration on the page sets each of them.
      const settings = block('ini', version.setting);
      const names = documented.map((setting) => setting.split('=')[0] ?? '');
      expect(names.filter((name) => !settings.includes(`\n${name}=`))).toEqual([]);
    });
  });
}
