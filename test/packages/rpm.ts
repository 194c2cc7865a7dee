/** What an administrator does with the .rpm, by an rpm of Debian's. Whether others have what it depends on is not tried. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { startMachine, type Debian, type Machine } from '../helpers/machine.ts';
import { tempDir } from '../helpers/process.ts';
import { missingTool } from '../helpers/tools.ts';
import { CONFIG, files, healthy, lines, mainPid, units } from './administrator.ts';
import { describeLayout, layout } from './layout.ts';
import { builtPackage, droppedFile, olderRpm, olderVersion, packageVersion, version } from './packages.ts';

const PACKAGE = 'lightningstream-ts';
const UNIT = 'lightningstream@main';

export function testRpm(debian: Debian): void {
  const rpm = builtPackage('.rpm');
  const missing =
    missingTool(debian) ?? (rpm === undefined ? 'there is no package: run make packages' : undefined);
  const title = `${debian}: the .rpm`;
  describe.skipIf(missing !== undefined)(missing === undefined ? title : `${title} [${missing}]`, () => {
    let machine: Machine;
    let before: readonly string[];
    let edited: string;

    const atEnd = new AsyncDisposableStack();
    beforeAll(async () => {
      const work = atEnd.use(await tempDir('lightningstream-packages-', '/var/tmp'));
      machine = atEnd.use(
        await startMachine(debian, {
          '/srv/older.rpm': await olderRpm(work.path),
          '/srv/current.rpm': rpm ?? '',
        }),
      );
      await machine.run('apt-get', 'update');
      await machine.run('apt-get', 'install', '-y', 'systemd', 'systemd-sysv', 'rpm');
      await machine.boot();
      before = await files(machine);
    });
    afterAll(() => atEnd.disposeAsync());

    /** What it says on standard error. @throws Error when it fails */
    const warnings = async (...args: readonly string[]): Promise<readonly string[]> => {
      const { code, stdout, stderr } = await machine.try(['rpm', ...args]);
      if (code !== 0) throw new Error(`rpm ${args.join(' ')} ended with ${code}:\n${stdout}${stderr}`);
      // Debian's would have users prefer alien; and systemd-sysusers tells what it does.
      return lines(stderr).filter((line) => !/^rpm: |^Creating (user|group) /.test(line));
    };
    const installed = async (): Promise<readonly string[]> =>
      lines(await machine.sh(`rpm -ql ${PACKAGE} | { ${describeLayout}\n}`));
    const installedVersion = (): Promise<string> => machine.run('rpm', '-q', '--qf', '%{VERSION}', PACKAGE);

    test('the older version installs, makes the user, and runs', async () => {
      // Its dependencies are Debian's here, of which rpm knows nothing.
      expect(await warnings('--install', '--nodeps', '/srv/older.rpm')).toEqual([]);
      expect(await installedVersion()).toBe(olderVersion);
      expect(await machine.run('getent', 'passwd', 'pdns')).toMatch(
        /^pdns:x:\d+:\d+:[^:]*:\/var\/spool\/powerdns:\/(usr\/sbin\/nologin|bin\/false)\n$/,
      );
      expect(await units(machine)).toEqual([]);

      await machine.run('install', '-d', '-o', 'pdns', '-g', 'pdns', '/var/lib/powerdns');
      edited = JSON.stringify({
        instance: 'ns1',
        lmdbs: { main: { path: '/var/lib/powerdns/pdns.lmdb', options: { no_subdir: true, create: true } } },
        storage: { type: 'fs', options: { root_path: '/var/lib/powerdns/storage' } },
        http: { address: '127.0.0.1:8500' },
      });
      await machine.write(CONFIG, edited);
      await machine.run('systemctl', 'enable', '--now', UNIT);
      await healthy(machine);
    });

    test('an upgrade keeps the configuration and goes on with the new version', async () => {
      const pid = await mainPid(machine, UNIT);
      expect(await warnings('--upgrade', '--nodeps', '/srv/current.rpm')).toEqual([
        `warning: ${CONFIG} created as ${CONFIG}.rpmnew`,
      ]);
      expect(await installedVersion()).toBe(packageVersion);
      expect(await machine.run('cat', CONFIG)).toBe(edited);
      expect(await installed()).toEqual(layout('rpm', version));
      expect(await machine.sh(`[ -e ${droppedFile} ] || echo gone`)).toBe('gone\n');

      const newPid = await mainPid(machine, UNIT);
      expect(newPid).not.toBe(pid);
      expect(await machine.run('readlink', `/proc/${newPid}/exe`)).toBe(
        '/usr/libexec/lightningstream/lightningstream\n',
      );
      await healthy(machine);
      // Only what was edited differs from what was packed.
      const { stdout } = await machine.try(['rpm', '--verify', '--nodeps', PACKAGE]);
      expect(stdout).toBe(`S.5....T.  c ${CONFIG}\n`);
    });

    test('removal stops it and keeps what was edited, the data, and the user', async () => {
      const user = await machine.run('id', 'pdns');
      expect(await warnings('--erase', PACKAGE)).toEqual([`warning: ${CONFIG} saved as ${CONFIG}.rpmsave`]);
      expect(await units(machine)).toEqual([]);
      expect((await files(machine)).filter((path) => !before.includes(path))).toEqual([
        '/etc/lightningstream',
        `${CONFIG}.rpmnew`,
        `${CONFIG}.rpmsave`,
      ]);
      expect(await machine.run('cat', `${CONFIG}.rpmsave`)).toBe(edited);
      expect(await machine.run('id', 'pdns')).toBe(user);
      expect(await machine.run('ls', '/var/lib/powerdns')).toBe('pdns.lmdb\npdns.lmdb-lock\nstorage\n');
    });

    test('it installs as it is packed', async () => {
      expect(await warnings('--install', '--nodeps', '/srv/current.rpm')).toEqual([]);
      expect(await installed()).toEqual(layout('rpm', version));
      expect(await machine.try(['rpm', '--verify', '--nodeps', PACKAGE])).toMatchObject({
        code: 0,
        stdout: '',
      });
      expect(await warnings('--erase', PACKAGE)).toEqual([]);
    });
  });
}
