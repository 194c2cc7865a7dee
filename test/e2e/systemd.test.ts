/** The units, as systemd's own tools see them, and what a daemon tells whoever started it. The units at work: systemd-machine.test.ts. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { cp, mkdir, readlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { freePort, repositoryRoot, run, start, type TempDir, tempDir, until } from '../helpers/process.ts';
import { testkitPath } from '../helpers/testkit.ts';
import { describeWithTools } from '../helpers/tools.ts';
import { cluster, DBI, isRoot } from './helpers.ts';

const source = join(repositoryRoot, 'systemd');
const SYNC = 'lightningstream@.service';
const RECEIVE = 'lightningstream-receive@.service';
const units = [SYNC, RECEIVE, 'lightningstream.target'];
const unitText = (unit: string): string => readFileSync(join(source, unit), 'utf8');

/** `Section.Key=value`, one for each directive. */
function directives(text: string): string[] {
  let section = '';
  return text.split('\n').flatMap((line) => {
    if (line === '' || line.startsWith('#')) return [];
    const header = /^\[(\w+)\]$/.exec(line);
    if (header === null) return [`${section}.${line}`];
    section = header[1] ?? '';
    return [];
  });
}

test('the unit that only receives differs in nothing but what it is for', () => {
  const [sync, receive] = [SYNC, RECEIVE].map((unit) => directives(unitText(unit))) as [string[], string[]];
  expect(receive.filter((line) => !sync.includes(line))).toEqual([
    'Unit.Description=LMDB replication through a shared storage, receiving only (%i)',
    'Unit.Conflicts=lightningstream@%i.service',
    'Unit.After=network-online.target nss-lookup.target time-sync.target lightningstream@%i.service',
    'Service.ExecStart=/usr/bin/lightningstream --config /etc/lightningstream/%i.yaml receive',
  ]);
  expect(sync.filter((line) => !receive.includes(line))).toEqual([
    'Unit.Description=LMDB replication through a shared storage (%i)',
    'Unit.After=network-online.target nss-lookup.target time-sync.target',
    'Service.ExecStart=/usr/bin/lightningstream --config /etc/lightningstream/%i.yaml sync',
  ]);
});

describeWithTools(['systemd-analyze'], "systemd's own tools", () => {
  /** A root directory with our units, and those of systemd that they name. */
  async function unitRoot(): Promise<TempDir> {
    const root = await tempDir('lightningstream-units-');
    const system = root.join('usr/lib/systemd/system');
    await cp('/lib/systemd/system', system, { recursive: true, verbatimSymlinks: true });
    for (const unit of units) await cp(join(source, unit), join(system, unit));
    await mkdir(root.join('usr/bin'), { recursive: true });
    await writeFile(root.join('usr/bin/lightningstream'), '#!/bin/sh\n', { mode: 0o755 });
    return root;
  }
  const verify = (root: TempDir) =>
    run({
      command: 'systemd-analyze',
      args: [
        'verify',
        '--man=no',
        `--root=${root.path}`,
        'lightningstream@main.service',
        'lightningstream-receive@main.service',
        'lightningstream.target',
      ],
    });
  const silent = { code: 0, signal: null, stdout: '', stderr: '' };

  test('verify has nothing to say about the units', async () => {
    await using root = await unitRoot();
    expect(await verify(root)).toEqual(silent);
  });

  const page = readFileSync(join(repositoryRoot, 'docs/systemd.md'), 'utf8');
  const dropIns = [...page.matchAll(/^```ini\n([^]*?)^```$/gm)].map(([, text = '']) => text);

  test.each(dropIns)('nor about the drop-in of the documentation: %s', async (text) => {
    await using root = await unitRoot();
    const directory = root.join('etc/systemd/system/lightningstream@main.service.d');
    await mkdir(directory, { recursive: true });
    await writeFile(join(directory, 'override.conf'), text);
    expect(await verify(root)).toEqual(silent);
    // Unless it had a mistake.
    await writeFile(join(directory, 'override.conf'), text.replace('=', 's='));
    expect((await verify(root)).stderr).toMatch(/Unknown (key|lvalue)/);
  });

  test('the documentation has drop-ins', () => expect(dropIns.length).toBeGreaterThan(5));

  test.each([SYNC, RECEIVE])('%s has an exposure of at most 2.0', async (unit) => {
    const { code, stdout } = await run({
      command: 'systemd-analyze',
      args: ['security', '--offline=true', '--threshold=20', '--no-pager', join(source, unit)],
    });
    const [, level] = /Overall exposure level.*: ([\d.]+)/.exec(stdout) ?? [];
    expect([code, Number(level) <= 2]).toEqual([0, true]);
    // What the page says; a later systemd may look at more.
    expect(Number(level)).toBeLessThanOrEqual(1.4);
  });

  test('enable makes an instance start with the host and with all others; disable undoes it', async () => {
    await using root = await unitRoot();
    const systemctl = async (...args: readonly string[]): Promise<void> => {
      const { code, stderr } = await run({ command: 'systemctl', args: [`--root=${root.path}`, ...args] });
      expect([code, stderr]).toEqual([0, expect.any(String)]);
    };
    const etc = root.join('etc/systemd/system');
    const links = async (unit: string): Promise<Record<string, string>> => {
      const found: Record<string, string> = {};
      for (const directory of readdirSync(etc).filter((name) => name.endsWith('.wants'))) {
        for (const name of readdirSync(join(etc, directory)))
          if (name.startsWith(unit))
            found[`${directory}/${name}`] = await readlink(join(etc, directory, name));
      }
      return found;
    };
    await systemctl('enable', 'lightningstream@main', 'lightningstream-receive@other');
    expect(await links('lightningstream')).toEqual({
      'lightningstream.target.wants/lightningstream-receive@other.service': `/usr/lib/systemd/system/${RECEIVE}`,
      'lightningstream.target.wants/lightningstream@main.service': `/usr/lib/systemd/system/${SYNC}`,
      'multi-user.target.wants/lightningstream-receive@other.service': `/usr/lib/systemd/system/${RECEIVE}`,
      'multi-user.target.wants/lightningstream@main.service': `/usr/lib/systemd/system/${SYNC}`,
    });
    await systemctl('disable', 'lightningstream@main', 'lightningstream-receive@other');
    expect(existsSync(join(etc, 'multi-user.target.wants', 'lightningstream@main.service'))).toBe(false);
    expect(existsSync(join(etc, 'lightningstream.target.wants', 'lightningstream@main.service'))).toBe(false);
  });

  // It gives files to root.
  describe.skipIf(!isRoot)('sysusers', () => {
    const sysusers = (root: TempDir) =>
      run({
        command: 'systemd-sysusers',
        args: [`--root=${root.path}`, join(source, 'lightningstream-ts.sysusers')],
      });

    test('makes user and group pdns as the Debian package pdns-server does', async () => {
      await using root = await tempDir();
      await mkdir(root.join('etc'));
      expect((await sysusers(root)).code).toBe(0);
      // Its postinst: adduser --system --home /var/spool/powerdns --shell /bin/false --ingroup pdns --gecos PowerDNS pdns
      expect(readFileSync(root.join('etc/passwd'), 'utf8')).toMatch(
        /^pdns:x:(\d+):(\d+):PowerDNS:\/var\/spool\/powerdns:\/bin\/false\n$/,
      );
      expect(readFileSync(root.join('etc/group'), 'utf8')).toMatch(/^pdns:x:\d+:\n$/);
    });

    test('leaves those alone that are there', async () => {
      await using root = await tempDir();
      await mkdir(root.join('etc'));
      const [passwd, group] = ['pdns:x:105:113:,,,:/home/pdns:/bin/sh\n', 'pdns:x:113:\n'];
      await writeFile(root.join('etc/passwd'), passwd);
      await writeFile(root.join('etc/group'), group);
      expect((await sysusers(root)).code).toBe(0);
      expect(readFileSync(root.join('etc/passwd'), 'utf8')).toBe(passwd);
      expect(readFileSync(root.join('etc/group'), 'utf8')).toBe(group);
    });
  });
});

describe('what the service manager is told', () => {
  /** Stands in for it: a datagram socket of another program. */
  async function listen(address: string) {
    const running = await start({ command: testkitPath(), args: [`--notify-socket=${address}`] });
    await running.waitForOutput(/"listening":true/);
    const messages = (): string[] =>
      running
        .stdout()
        .split('\n')
        .filter((line) => line.startsWith('{"message"'))
        .map((line) => (JSON.parse(line) as { message: string }).message);
    return {
      messages,
      heard: (pattern: RegExp) =>
        until(() => messages().find((message) => pattern.test(message)), {
          what: `a message ${String(pattern)} among ${JSON.stringify(messages())}`,
          timeoutMs: 20_000,
        }),
      [Symbol.asyncDispose]: () => running[Symbol.asyncDispose](),
    };
  }
  const told = (socket: string, ...more: readonly string[]) => ({
    wrapper: ['env', `NOTIFY_SOCKET=${socket}`, ...more],
  });

  test.each([
    ['a path', (directory: string) => join(directory, 'notify')],
    ['an abstract name', (directory: string) => `@lightningstream-test${directory.replaceAll('/', '.')}`],
  ])(
    'at %s: ready when it answers and the LMDB is there, what it does, and that it ends',
    async (_, name) => {
      await using net = await cluster(1);
      const a = net.instance('a');
      const socket = name(net.directory);
      await using ear = await listen(socket);
      await a.start(told(socket));
      await ear.heard(/^READY=1$/);
      expect((await a.page('/healthz')).status).toBe(200);
      expect(existsSync(a.lmdbPath)).toBe(true);
      await ear.heard(/^STATUS=OK; main: nothing stored or merged yet \(/);
      await a.app.put(DBI, 'key', 'value');
      await ear.heard(/^STATUS=OK; main: stored \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/);
      await a.stop();
      expect(ear.messages()[0]).toBe('READY=1');
      expect(ear.messages().at(-1)).toBe('STOPPING=1\nSTATUS=Stopping');
      expect(ear.messages().filter((message) => !message.startsWith('STATUS='))).toHaveLength(2);
    },
  );

  test('nothing, unless it wants to hear', async () => {
    await using net = await cluster(1);
    const a = net.instance('a');
    await using ear = await listen(join(net.directory, 'notify'));
    for (const wrapper of [[], ['env', 'NOTIFY_SOCKET=']]) {
      await a.start({ wrapper: [...wrapper, 'env', 'WATCHDOG_USEC=10000'] });
      await a.ok();
      const { stderr } = await a.stop();
      expect(stderr).not.toContain('service manager');
    }
    expect(ear.messages()).toEqual([]);
  });

  test('that it is ready, though the storage is not there and an LMDB cannot be opened; and then what is wrong', async () => {
    await using net = await cluster(1);
    const a = net.instance('a');
    const socket = join(net.directory, 'notify');
    await using ear = await listen(socket);
    const endpoint = `http://127.0.0.1:${await freePort()}`;
    const bad = { path: join(net.directory, 'none', 'x.mdb'), schema_tracks_changes: true };
    await a.start({
      ...told(socket),
      config: {
        lmdbs: { bad },
        storage: {
          type: 's3',
          options: {
            root_path: undefined,
            endpoint_url: endpoint,
            bucket: 'none',
            access_key: 'test-access-key',
            secret_key: 'test-secret-key',
          },
        },
        health: { storage_list: { interval: '1s', warn_duration: '1s', error_duration: '1s' } },
      },
    });
    await ear.heard(/^READY=1$/);
    await ear.heard(/^STATUS=Unavailable: bad_local_fault: .*ENOENT/);
    await ear.heard(/^STATUS=Unavailable: .*main_storage_list_failed_duration: .*ECONNREFUSED/);
    await a.stop();
    expect(ear.messages().join()).not.toContain('test-secret-key');
  });

  test('that it is ready while it waits for the marker file', async () => {
    await using net = await cluster(1);
    const socket = join(net.directory, 'notify');
    await using ear = await listen(socket);
    await net.instance('a').start({ ...told(socket), args: ['sync', '--wait-for-marker-file', 'never'] });
    await ear.heard(/^READY=1$/);
  });

  test('not that it is ready, when it cannot start', async () => {
    await using net = await cluster(1);
    const a = net.instance('a');
    const socket = join(net.directory, 'notify');
    await using ear = await listen(socket);
    const { code } = await a.run({ ...told(socket), config: { http: { address: 'nonsense' } } });
    expect(code).toBe(1);
    expect(ear.messages().filter((message) => message.startsWith('READY'))).toEqual([]);
  });

  test('that its event loop turns, when it is watched; not in the name of another process', async () => {
    await using net = await cluster(2);
    const sockets = ['a', 'b'].map((name) => join(net.directory, `${name}.notify`)) as [string, string];
    await using watched = await listen(sockets[0]);
    await using other = await listen(sockets[1]);
    await net.instance('a').start(told(sockets[0], 'WATCHDOG_USEC=100000'));
    await net.instance('b').start(told(sockets[1], 'WATCHDOG_USEC=100000', 'WATCHDOG_PID=1'));
    await until(() => watched.messages().filter((message) => message === 'WATCHDOG=1').length > 10, {
      what: 'signs of life',
    });
    await other.heard(/^STATUS=OK/);
    await net.instance('b').stop();
    expect(other.messages()).not.toContain('WATCHDOG=1');
  });

  test('nobody there: it says so once and goes on', async () => {
    await using net = await cluster(1);
    const a = net.instance('a');
    await a.start(told(join(net.directory, 'nobody'), 'WATCHDOG_USEC=10000'));
    await a.logged('The service manager cannot be told how the daemon is', ({ error }) =>
      String(error).includes('ENOENT'),
    );
    await a.app.put(DBI, 'key', 'value');
    await a.logged('Stored snapshot');
    await a.stop();
    expect(a.log().filter(({ msg }) => msg.startsWith('The service manager'))).toHaveLength(1);
  });
});
