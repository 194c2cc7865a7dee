/** What an administrator does with the .deb, from the first installation to the last trace, on a Debian with its PowerDNS. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { startMachine, type Debian, type Machine } from '../helpers/machine.ts';
import { repositoryRoot, tempDir, until, type Finished, type TempDir } from '../helpers/process.ts';
import { missingTool, toolPath } from '../helpers/tools.ts';
import { CONFIG, files, healthy, lines, log, mainPid, patient, processes, units } from './administrator.ts';
import { describeLayout, layout } from './layout.ts';
import {
  aptRepository,
  builtPackage,
  droppedFile,
  olderDeb,
  olderVersion,
  packageVersion,
  version,
  type AptRepository,
} from './packages.ts';

export interface DebianWithPowerDns {
  readonly debian: Debian;
  /** Of PowerDNS. */
  readonly settings: readonly string[];
  /** Below examples/. */
  readonly example: string;
  /** Whether the older version has another template of the configuration. */
  readonly otherTemplate: boolean;
}

const PACKAGE = 'lightningstream-ts';
const SOURCES = '/etc/apt/sources.list.d/lightningstream-ts.sources';
const KEY = '/etc/apt/keyrings/lightningstream-ts.asc';
const KEYS = { S3_ACCESS_KEY: 'access', S3_SECRET_KEY: 'secret-enough' };

export function testDebian({ debian, settings, example, otherTemplate }: DebianWithPowerDns): void {
  const deb = builtPackage('.deb');
  const missing =
    missingTool(debian, 'minio', 'pdns-4.9') ??
    (deb === undefined ? 'there is no package: run make packages' : undefined);
  const title = `${debian}: the .deb`;
  describe.skipIf(missing !== undefined)(missing === undefined ? title : `${title} [${missing}]`, () => {
    let work: TempDir;
    /** With the newest version only. */
    let current: AptRepository;
    /** With an older one, at first. */
    let growing: AptRepository;
    /** With a Debian as it comes. */
    let machine: Machine;

    const atEnd = new AsyncDisposableStack();
    beforeAll(async () => {
      work = atEnd.use(await tempDir('lightningstream-packages-', '/var/tmp'));
      current = await aptRepository(work.join('current'));
      await current.add(deb ?? '');
      growing = await aptRepository(work.join('growing'));
      await growing.add(await olderDeb(deb ?? '', work.path, otherTemplate));
      machine = atEnd.use(await fresh());
    });
    afterAll(() => atEnd.disposeAsync());

    const fresh = async (): Promise<Machine> => {
      const minio = toolPath('minio');
      const made = await startMachine(debian, {
        '/srv/current': current.directory,
        '/srv/growing': growing.directory,
        '/srv/minio': minio,
      });
      await made.sh(`install -d ${KEY.replace(/[^/]*$/, '')}`);
      return made;
    };
    /** As docs/install.md says. */
    const use = async (
      on: Machine,
      name: 'current' | 'growing',
      keyOf: 'current' | 'growing' = name,
    ): Promise<Finished> => {
      await on.run('cp', `/srv/${keyOf}/lightningstream-ts.asc`, KEY);
      const lines = [`URIs: file:/srv/${name}`, 'Suites: stable', 'Components: main', `Signed-By: ${KEY}`];
      await on.write(SOURCES, `Types: deb\n${lines.join('\n')}\n`);
      return on.try(['apt-get', 'update']);
    };
    const installed = async (on: Machine): Promise<readonly string[]> =>
      lines(await on.sh(`dpkg -L ${PACKAGE} | { ${describeLayout}\n}`));

    describe('on a host with nothing else', () => {
      test('comes only from a repository that is signed by the key', async () => {
        await using machine = await fresh();
        const refused = await use(machine, 'current', 'growing');
        expect(refused.stdout + refused.stderr).toMatch(/NO_PUBKEY|Missing key/);
        const nothing = await machine.try(['apt-get', 'install', '-y', PACKAGE]);
        expect(nothing.stderr).toMatch(/Unable to locate package/);

        const { code, stderr } = await use(machine, 'current');
        // No warning either.
        expect([code, stderr]).toEqual([0, '']);
        const about = await machine.run('apt-cache', 'policy', PACKAGE);
        expect(about).toContain(`Candidate: ${packageVersion}\n`);

        // And not when a file was changed on its way.
        const listed = '/srv/changed/dists/stable/main/binary-amd64/Packages';
        await machine.sh(
          `cp -a /srv/current /srv/changed && sed -i s/^Architecture/X-Architecture/ ${listed} && rm -f ${listed}.*
           sed -i s:/srv/current:/srv/changed: ${SOURCES} && rm -rf /var/lib/apt/lists/*`,
        );
        const changed = await machine.try(['apt-get', 'update']);
        expect([changed.code, changed.stderr]).toEqual([
          100,
          expect.stringMatching(/unexpected size|Hash Sum mismatch/),
        ]);
      });

      test('installs, makes the user, runs, and leaves again', async () => {
        await using machine = await fresh();
        const before = await files(machine);
        await use(machine, 'current');
        await machine.run('apt-get', 'install', '-y', PACKAGE);
        expect(await installed(machine)).toEqual(layout('deb', version));
        expect(await machine.run('getent', 'passwd', 'pdns')).toMatch(
          /^pdns:x:\d+:\d+:[^:]*:\/var\/spool\/powerdns:\/(usr\/sbin\/nologin|bin\/false)\n$/,
        );
        const asNobody = ['setpriv', '--reuid=65534', '--clear-groups', '--no-new-privs', '--'];
        expect(await machine.run(...asNobody, 'lightningstream', 'version')).toContain(version);
        // Nothing is enabled or started.
        expect(await machine.sh(`find /etc/systemd -name '*lightningstream*'`)).toBe('');
        // PowerDNS finds its user, and keeps it.
        const user = await machine.run('id', 'pdns');
        await machine.run('apt-get', 'install', '-y', 'pdns-server', 'pdns-backend-lmdb');
        expect(await machine.run('id', 'pdns')).toBe(user);

        await machine.run('apt-get', 'purge', '-y', PACKAGE);
        const left = (await files(machine)).filter((path) => !before.includes(path));
        expect(left.filter((path) => path.includes('lightningstream'))).toEqual([KEY, SOURCES]);
        expect(await machine.run('id', 'pdns')).toBe(user);
      });
    });

    describe('beside PowerDNS', () => {
      /** Before it was installed. */
      let before: readonly string[];
      /** The configuration as the administrator left it. */
      let edited: string;

      test('the older version installs', async () => {
        await machine.run('apt-get', 'update');
        await machine.run(
          'apt-get',
          'install',
          '-y',
          'systemd',
          'systemd-sysv',
          'pdns-server',
          'pdns-backend-lmdb',
        );
        await machine.write('/etc/powerdns/pdns.conf', powerDnsConfig('', 53));
        await machine.write('/etc/powerdns/pdns-second.conf', powerDnsConfig('-second', 5353));
        await machine.sh(`rm -r /etc/powerdns/pdns.d; install -d -o pdns -g pdns /var/lib/powerdns-second`);
        await machine.boot();
        before = await files(machine);
        const user = await machine.run('getent', 'passwd', 'pdns');

        await use(machine, 'growing');
        await machine.run('apt-get', 'install', '-y', PACKAGE);
        expect(await installedVersion()).toBe(olderVersion);
        expect(await machine.run('getent', 'passwd', 'pdns')).toBe(user);
        // Neither enabled nor started.
        expect(await units(machine)).toEqual([]);
      });

      test('systemctl --root enable makes the links', async () => {
        const links = async (): Promise<readonly string[]> =>
          lines(
            await machine.sh(`
              find /etc/systemd/system -name '*lightningstream*' -type l |
                while read -r link; do echo "$link -> $(readlink -f "$link")"; done | LC_ALL=C sort`),
          );
        const wanted = (unit: string, of: string): readonly string[] =>
          ['lightningstream', 'multi-user'].map(
            (by) =>
              `/etc/systemd/system/${by}.target.wants/${unit}.service -> /usr/lib/systemd/system/${of}.service`,
          );
        const instances = [
          ...wanted('lightningstream@main', 'lightningstream@'),
          ...wanted('lightningstream@second', 'lightningstream@'),
        ];
        const further = 'lightningstream-receive@third';
        await machine.run(
          'systemctl',
          '--root=/',
          'enable',
          'lightningstream@main',
          'lightningstream@second',
        );
        expect(await links()).toEqual(instances.toSorted());
        await machine.run('systemctl', '--root=/', 'enable', further);
        expect(await links()).toEqual(
          [...instances, ...wanted(further, 'lightningstream-receive@')].toSorted(),
        );
        await machine.run('systemctl', '--root=/', 'disable', further);
        expect(await links()).toEqual(instances.toSorted());
      });

      test('with the example, filled in, instances replicate PowerDNS', async () => {
        await startMinio(machine);
        await configure(machine, example);
        edited = await machine.run('cat', CONFIG);
        const second = edited
          .replaceAll('/var/lib/powerdns/', '/var/lib/powerdns-second/')
          .replaceAll('127.0.0.1:8500', '127.0.0.1:8501')
          .replace('instance: ns1', 'instance: ns2');
        await machine.write('/etc/lightningstream/second.yaml', second);
        const dropIn = '/etc/systemd/system/lightningstream@second.service.d';
        await machine.sh(`
          cp -p /etc/lightningstream/main.env /etc/lightningstream/second.env
          chgrp pdns /etc/lightningstream/second.yaml; chmod 640 /etc/lightningstream/second.yaml
          mkdir ${dropIn}
          printf '[Service]\\nReadWritePaths=/var/lib/powerdns-second\\n' >${dropIn}/paths.conf
          systemctl daemon-reload
          systemctl restart pdns pdns@second`);
        // As the template says.
        await machine.sh(
          `(set -a; . /etc/lightningstream/main.env; runuser -u pdns -- lightningstream -c ${CONFIG} config check)`,
        );
        await machine.run('systemctl', 'start', 'lightningstream@main');
        // Started means that it answers, not that it soon will.
        expect((await machine.get('http://127.0.0.1:8500/')).status).toBe(200);
        await machine.run('systemctl', 'start', 'lightningstream@second');
        await healthy(machine);

        const pdnsutil = (...args: readonly string[]): Promise<string> =>
          machine.run('runuser', '-u', 'pdns', '--', 'pdnsutil', ...args);
        await pdnsutil('create-zone', 'example.org', 'ns1.example.org');
        await pdnsutil('add-record', 'example.org', 'www', 'A', '60', '192.0.2.80');
        await answers(53, 'www.example.org', '192.0.2.80');
        await answers(5353, 'www.example.org', '192.0.2.80');
        // And back.
        await pdnsutil('--config-name=second', 'add-record', 'example.org', 'back', 'A', '60', '192.0.2.81');
        await answers(53, 'back.example.org', '192.0.2.81');
        await healthy(machine);
      });

      test('it runs as the unit says', async () => {
        const pid = await mainPid(machine, 'lightningstream@main');
        const status = await machine.run('cat', `/proc/${pid}/status`);
        const field = (name: string): string => new RegExp(`^${name}:\\s+(.*)$`, 'm').exec(status)?.[1] ?? '';
        const uid = (await machine.run('id', '-u', 'pdns')).trim();
        expect(field('Uid').split('\t')).toEqual([uid, uid, uid, uid]);
        expect(['NoNewPrivs', 'Seccomp', 'CapEff', 'CapBnd'].map(field)).toEqual([
          '1',
          '2',
          '0000000000000000',
          '0000000000000000',
        ]);
        // What is on a disk is read-only to it, but for its own directories.
        const disks = lines(await machine.run('cat', `/proc/${pid}/mountinfo`))
          .filter((line) => line.includes(' - overlay '))
          .map((line) => / (\/\S*) (rw|ro)\b/.exec(line)?.slice(1).join(' ') ?? line);
        // Debian 13 has its temporary files in memory.
        expect(disks.filter((disk) => !disk.includes('tmp')).toSorted()).toEqual([
          '/ ro',
          '/var/cache/lightningstream/main rw',
          '/var/lib/powerdns rw',
        ]);
      });

      test('an upgrade keeps the configuration and goes on with the new version', async () => {
        const before = await mainPid(machine, 'lightningstream@main');
        await growing.add(deb ?? '');
        await machine.run('apt-get', 'update');
        // Where both have edited it, dpkg asks; without a terminal it has to be told.
        const keep = ['-o', 'Dpkg::Options::=--force-confdef', '-o', 'Dpkg::Options::=--force-confold'];
        await machine.run('apt-get', 'install', '-y', ...(otherTemplate ? keep : []), PACKAGE);
        expect(await installedVersion()).toBe(packageVersion);
        expect(await machine.run('cat', CONFIG)).toBe(edited);
        const beside = await machine.try(['cat', `${CONFIG}.dpkg-dist`]);
        expect(beside.stdout).toBe(otherTemplate ? packaged('examples/main.yaml') : '');
        expect(await machine.sh(`[ -e ${droppedFile} ] || echo gone`)).toBe('gone\n');
        expect(await installed(machine)).toEqual(layout('deb', version));
        expect(await mainPid(machine, 'lightningstream@main')).not.toBe(before);
        for (const name of ['main', 'second'])
          expect(
            await machine.run('readlink', `/proc/${await mainPid(machine, `lightningstream@${name}`)}/exe`),
          ).toBe('/usr/libexec/lightningstream/lightningstream\n');
        await healthy(machine);
        await answers(53, 'back.example.org', '192.0.2.81');
      });

      test('installing it again changes nothing, and dpkg finds all files as they were', async () => {
        await machine.run('systemctl', 'stop', 'lightningstream@second');
        await machine.run('apt-get', 'install', '-y', '--reinstall', PACKAGE);
        await healthy(machine);
        // What does not run is not started.
        expect(await mainPid(machine, 'lightningstream@second')).toBe('0');
        // Only what the administrator has edited.
        expect(await machine.run('dpkg', '--verify', PACKAGE)).toMatch(
          /^\?\?5\?\?\?\?\?\? c \/etc\/lightningstream\/main\.yaml\n$/,
        );
        expect(await installed(machine)).toEqual(layout('deb', version));
      });

      test('removal stops it and keeps configuration and data', async () => {
        await machine.run('apt-get', 'remove', '-y', PACKAGE);
        expect(await units(machine)).toEqual([]);
        expect(await machine.run('cat', CONFIG)).toBe(edited);
        expect(await processes(machine)).toEqual([]);
        await answers(53, 'back.example.org', '192.0.2.81');

        // What was enabled is so again.
        await machine.run('apt-get', 'install', '-y', PACKAGE);
        expect(await machine.run('systemctl', 'is-enabled', 'lightningstream@main')).toBe('enabled\n');
        await machine.run('systemctl', 'start', 'lightningstream@main');
        await healthy(machine);
      });

      test('purge leaves nothing of it, and everything else', async () => {
        const lmdbs = await machine.sh('cd /var/lib && ls -l powerdns*/*');
        const user = await machine.run('id', 'pdns');
        await machine.run('apt-get', 'purge', '-y', PACKAGE);
        const after = await files(machine);
        expect(before.filter((path) => !after.includes(path))).toEqual([]);
        // The administrator's own.
        expect(after.filter((path) => !before.includes(path))).toEqual([
          KEY,
          SOURCES,
          '/etc/lightningstream',
          '/etc/lightningstream/main.env',
          '/etc/lightningstream/second.env',
          '/etc/lightningstream/second.yaml',
          '/etc/systemd/system/lightningstream@second.service.d',
          '/etc/systemd/system/lightningstream@second.service.d/paths.conf',
        ]);
        expect(await machine.run('id', 'pdns')).toBe(user);
        expect(lmdbs).toMatch(/powerdns\/pdns\.lmdb-0\n/);
        expect(await machine.sh('cd /var/lib && ls -l powerdns*/*')).toBe(lmdbs);
        await answers(53, 'back.example.org', '192.0.2.81');
      });
    });

    const installedVersion = (): Promise<string> =>
      machine.run('dpkg-query', '--show', '--showformat=${Version}', PACKAGE);
    const answers = (port: number, name: string, address: string): Promise<boolean> =>
      until(
        async () => {
          const dig = join(toolPath('pdns-4.9'), 'run');
          const { stdout } = await machine.runInNetwork(
            dig,
            'dig',
            '-r',
            '+short',
            '@127.0.0.1',
            '-p',
            `${port}`,
            name,
          );
          if (stdout !== `${address}\n`) throw new Error(`got ${stdout}\n${await log(machine)}`);
          return true;
        },
        { ...patient, what: `${name} is ${address} on port ${port}` },
      );

    function powerDnsConfig(suffix: string, port: number): string {
      return [
        'launch=lmdb',
        `lmdb-filename=/var/lib/powerdns${suffix}/pdns.lmdb`,
        'lmdb-shards=1',
        'lmdb-map-size=1000',
        'local-address=127.0.0.1',
        `local-port=${port}`,
        'security-poll-suffix=',
        'zone-cache-refresh-interval=0',
        ...[
          'zone-metadata-cache-ttl',
          'dnssec-key-cache-ttl',
          'cache-ttl',
          'query-cache-ttl',
          'negquery-cache-ttl',
        ].map((name) => `${name}=0`),
        ...settings,
        '',
      ].join('\n');
    }
  });
}

function packaged(path: string): string {
  return readFileSync(join(repositoryRoot, path), 'utf8');
}

/** As a user fills in the example. */
async function configure(machine: Machine, example: string): Promise<void> {
  let text = await machine.run('cat', `/usr/share/doc/lightningstream-ts/examples/${example}`);
  for (const [from, to] of [
    ['#instance: ns1', 'instance: ns1'],
    ['https://CHANGE-ME.example.net', 'http://127.0.0.1:9000'],
    ['bucket: CHANGE-ME', 'bucket: powerdns\n    create_bucket: true'],
  ] as const) {
    expect(text.split(from)).toHaveLength(2);
    text = text.replace(from, to);
  }
  await machine.write('/etc/lightningstream/main.yaml', text);
  const keys = Object.entries(KEYS).map(([name, value]) => `${name}=${value}\n`);
  await machine.write('/etc/lightningstream/main.env', keys.join(''));
  await machine.run('chmod', '600', '/etc/lightningstream/main.env');
}

async function startMinio(machine: Machine): Promise<void> {
  const environment = {
    MINIO_ROOT_USER: KEYS.S3_ACCESS_KEY,
    MINIO_ROOT_PASSWORD: KEYS.S3_SECRET_KEY,
    MINIO_BROWSER: 'off',
    MINIO_UPDATE: 'off',
    MINIO_CALLHOME_ENABLE: 'off',
    HOME: '/srv',
  };
  const variables = Object.entries(environment).map(([name, value]) => `${name}=${value}`);
  // Ends with the machine.
  await machine.start(
    'env',
    ...variables,
    '/srv/minio',
    'server',
    '--quiet',
    '--address=127.0.0.1:9000',
    '/run/minio',
  );
  await until(async () => (await machine.get('http://127.0.0.1:9000/minio/health/cluster')).status === 200, {
    what: 'MinIO answers',
    timeoutMs: 60_000,
    intervalMs: 200,
  });
}
