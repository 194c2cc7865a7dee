/** The units at work, with all that they forbid: in a machine with the real systemd as its process 1 (helpers/machine.ts). */
import { readFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { startMachine, type Machine } from '../helpers/machine.ts';
import { launcher, repositoryRoot, until } from '../helpers/process.ts';
import { Testkit, testkitPath } from '../helpers/testkit.ts';
import { describeWithTools, toolPath } from '../helpers/tools.ts';
import { DBI } from './helpers.ts';

const UNITS = '/usr/lib/systemd/system';
const CONFIGS = '/etc/lightningstream';
const patient = { timeoutMs: 30_000, intervalMs: 100 };

/** The fenced block of docs/systemd.md that has this line. */
function documented(line: string): string {
  const page = readFileSync(join(repositoryRoot, 'docs/systemd.md'), 'utf8');
  const blocks = [...page.matchAll(/^```\w+\n([^]*?)^```$/gm)].map(([, text = '']) => text);
  const found = blocks.find((block) => block.split('\n').includes(line));
  if (found === undefined) throw new Error(`no block with ${line}`);
  return found;
}

describeWithTools(['debian-13', 'minio'], 'under systemd', () => {
  let machine: Machine;
  const atEnd = new AsyncDisposableStack();

  beforeAll(async () => {
    const program = process.env['LIGHTNINGSTREAM_PROGRAM'];
    machine = atEnd.use(
      await startMachine('debian-13', {
        '/usr/lib/program': program === undefined ? repositoryRoot : dirname(program),
        '/usr/lib/testkit': testkitPath(),
        '/usr/lib/minio': toolPath('minio'),
        '/usr/lib/units': join(repositoryRoot, 'systemd'),
      }),
    );
    const target = program === undefined ? launcher.slice(repositoryRoot.length) : `/${basename(program)}`;
    await machine.sh(`
      apt-get update -qq
      apt-get install -y -qq systemd systemd-sysv
      cp /usr/lib/units/*.service /usr/lib/units/*.target ${UNITS}/
      cp /usr/lib/units/lightningstream-ts.sysusers /usr/lib/sysusers.d/lightningstream-ts.conf
      systemd-sysusers
      ln -s /usr/lib/program${target} /usr/bin/lightningstream
      install -d -m 750 -g pdns ${CONFIGS}
      install -d -m 750 -o pdns -g pdns /var/lib/powerdns /mnt/shared/lightningstream`);
    // What a filter forbids ends the daemon, instead of being an error that it might get over.
    await dropIn(
      'lightningstream@.service',
      '[Service]\nSystemCallErrorNumber=kill\nRestartSec=100ms\n',
      'test',
    );
    await dropIn('lightningstream@.service', documented('UMask=0022'));
    await configure('main', 8500);
    await configure('other', 8501);
    // Stands for the application: says what it found when it was started.
    await machine.write(
      `${UNITS}/pdns.service`,
      '[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sh -c "ls /var/lib/powerdns >/run/found"\n',
    );
    await machine.run('systemctl', 'enable', 'lightningstream@main', 'lightningstream@other');
    await machine.boot();
    await isState('lightningstream@main', 'active');
  });
  afterAll(() => atEnd.disposeAsync());

  async function dropIn(unit: string, text: string, name = 'override'): Promise<void> {
    const directory = `/etc/systemd/system/${unit}.d`;
    await machine.run('mkdir', '-p', directory);
    await machine.write(`${directory}/${name}.conf`, text);
    if ((await machine.try(['test', '-S', '/run/systemd/private'])).code === 0)
      await machine.run('systemctl', 'daemon-reload');
  }
  const fsStorage = 'storage: {type: fs, options: {root_path: /mnt/shared/lightningstream}}';
  /** Its LMDB is /var/lib/powerdns/NAME.lmdb, unless `path` says otherwise. */
  async function configure(
    name: string,
    port: number,
    { path = `/var/lib/powerdns/${name}.lmdb`, storage = fsStorage } = {},
  ): Promise<void> {
    const config = `
instance: ${name}
lmdbs: {main: {path: ${path}, schema_tracks_changes: true, options: {no_subdir: true, create: true}}}
http: {address: "127.0.0.1:${port}"}
lmdb_poll_interval: 100ms
storage_poll_interval: 100ms
storage_retry_interval: 100ms
${storage}
`;
    await machine.write(`${CONFIGS}/${name}.yaml`, config);
    await machine.sh(`chown root:pdns ${CONFIGS}/${name}.yaml; chmod 640 ${CONFIGS}/${name}.yaml`);
  }
  const show = async (unit: string, property: string): Promise<string> =>
    (await machine.run('systemctl', 'show', '--value', `--property=${property}`, unit)).trim();
  const state = (unit: string): Promise<string> => show(unit, 'ActiveState');
  const isState = (unit: string, wanted: string): Promise<true> =>
    until(async () => (await state(unit)) === wanted || undefined, {
      what: `${unit} is ${wanted}`,
      ...patient,
    }).then(() => true);
  async function startUnit(unit: string): Promise<void> {
    const { code } = await machine.try(['systemctl', 'start', unit]);
    if (code !== 0) throw new Error(`${unit} does not start:\n${await journal(unit)}`);
  }
  const journal = (unit: string): Promise<string> =>
    machine.run('journalctl', '--no-pager', '-o', 'cat', '-u', unit);
  const healthy = (port: number): Promise<unknown> =>
    until(async () => (await machine.get(`http://127.0.0.1:${port}/healthz`)).status === 200, {
      what: `port ${port} is well`,
      ...patient,
    });
  /** The application of an instance, as its user. */
  const application = (name: string): Testkit =>
    new Testkit(`/var/lib/powerdns/${name}.lmdb`, {
      noSubdir: true,
      program: '/usr/lib/testkit',
      wrapper: [
        'nsenter',
        `--target=${machine.pid}`,
        '--all',
        '--root',
        '--wd',
        'setpriv',
        '--reuid=pdns',
        '--regid=pdns',
        '--clear-groups',
      ],
    });
  const has = (app: Testkit, key: string, value: string): Promise<unknown> =>
    until(async () => (await app.get(DBI, key))?.value === value, { what: `${key} = ${value}`, ...patient });

  test('two instances replicate, in the sandbox', async () => {
    await healthy(8500);
    await healthy(8501);
    for (const name of ['main', 'other']) {
      const unit = `lightningstream@${name}`;
      await until(async () => (await show(unit, 'StatusText')).startsWith('OK; main: '), {
        what: 'a status',
        ...patient,
      });
      const pid = await show(unit, 'MainPID');
      const status = await machine.run('cat', `/proc/${pid}/status`);
      expect(status).toMatch(/^NoNewPrivs:\s1$/m);
      expect(status).toMatch(/^CapBnd:\s0{16}$/m);
      expect(status).toMatch(/^Seccomp:\s2$/m);
      expect(
        await machine.run('stat', '-c', '%U %a', `/proc/${pid}`, `/var/lib/powerdns/${name}.lmdb`),
      ).toMatch(/^pdns \d+\npdns 644\n$/);
      // inotify has an eye on the data file.
      const inode = Number(await machine.run('stat', '-c', '%i', `/var/lib/powerdns/${name}.lmdb`)).toString(
        16,
      );
      expect(await machine.sh(`cat /proc/${pid}/fdinfo/*`)).toMatch(
        new RegExp(`^inotify wd:\\d+ ino:${inode} `, 'm'),
      );
      expect(await machine.run('ls', `/var/cache/lightningstream/${name}`)).toMatch(
        /^lightningstream-spool-\S+\n$/,
      );
    }
    await using main = application('main');
    await using other = application('other');
    // More than is merged without a second pass, so that all of the native part has worked.
    await main.fill(300_000);
    await main.put(DBI, 'from', 'main');
    await has(other, 'from', 'main');
    await other.put(DBI, 'back', 'other');
    await has(main, 'back', 'other');
    expect(await other.digest()).toBe(await main.digest());
    for (const name of ['main', 'other'])
      expect(await show(`lightningstream@${name}`, 'NRestarts')).toBe('0');
  });

  test('an application that is killed with the write lock does not keep it', async () => {
    const victim = application('main');
    await victim.put(DBI, 'lock', 'taken');
    await victim.call({ op: 'lock' });
    await machine.sh(
      'for p in /proc/[0-9]*; do case $(readlink $p/exe) in */testkit) kill -9 ${p#/proc/} ;; esac; done',
    );
    await victim[Symbol.asyncDispose]();
    await using main = application('main');
    await using other = application('other');
    await other.put(DBI, 'lock', 'free');
    await has(main, 'lock', 'free');
  });

  test('it may write nowhere else', async () => {
    await machine.run('install', '-d', '-o', 'pdns', '/srv/elsewhere');
    await configure('elsewhere', 8502, { path: '/srv/elsewhere/x.lmdb' });
    await startUnit('lightningstream@elsewhere');
    const { status, body } = await machine.get('http://127.0.0.1:8502/healthz');
    // The unit counts as started.
    expect(await state('lightningstream@elsewhere')).toBe('active');
    expect(body).toContain('EROFS');
    expect(status).toBe(503);
    await until(async () => (await show('lightningstream@elsewhere', 'StatusText')).includes('EROFS'), {
      what: 'the status names it',
      ...patient,
    });
    // As docs/troubleshooting.md has it: trouble, and nothing else.
    const trouble = 'journalctl --no-pager -o cat -u lightningstream@elsewhere -p warning';
    expect(await machine.sh(trouble)).toMatch(/^[^<]* ERROR .*EROFS/m);
    expect(await machine.sh(trouble)).not.toContain('INFO');
    await dropIn(
      'lightningstream@elsewhere.service',
      documented('ReadWritePaths=/srv/lmdb').replace('/srv/lmdb', '/srv/elsewhere'),
    );
    await machine.run('systemctl', 'restart', 'lightningstream@elsewhere');
    await healthy(8502);
    await machine.run('systemctl', 'stop', 'lightningstream@elsewhere');
  });

  test('the keys of a bucket as credentials, with the configuration and the drop-in of the documentation', async () => {
    await machine.sh(`systemd-run --quiet --unit=minio --setenv=HOME=/run --setenv=MINIO_UPDATE=off \
      --setenv=MINIO_ROOT_USER=access-of-root --setenv=MINIO_ROOT_PASSWORD=secret-of-root \
      --setenv=MINIO_BROWSER=off --setenv=MINIO_CALLHOME_ENABLE=off \
      /usr/lib/minio server --quiet --address=127.0.0.1:9000 /run/minio`);
    const options = '    create_bucket: true\n    endpoint_url: http://127.0.0.1:9000\n';
    await configure('bucket', 8503, {
      storage:
        documented('    access_key_file: ${CREDENTIALS_DIRECTORY}/access_key').trimEnd() + `\n${options}`,
    });
    await machine.sh(`
      umask 077
      printf access-of-root >${CONFIGS}/main.access_key
      printf secret-of-root >${CONFIGS}/main.secret_key`);
    await dropIn(
      'lightningstream@bucket.service',
      documented('LoadCredential=access_key:/etc/lightningstream/main.access_key'),
    );
    await startUnit('lightningstream@bucket');
    await using app = application('bucket');
    await app.put(DBI, 'key', 'value');
    await until(async () => (await journal('lightningstream@bucket')).includes('Stored snapshot'), {
      what: 'a snapshot in the bucket',
      ...patient,
    });
    expect(await machine.run('stat', '-c', '%U %a', `${CONFIGS}/main.secret_key`)).toBe('root 600\n');
    expect(await journal('lightningstream@bucket')).not.toContain('secret-of-root');

    const page = readFileSync(join(repositoryRoot, 'docs/systemd.md'), 'utf8');
    const [, command = ''] = /^ {4}(systemd-run .*)$/m.exec(page) ?? [];
    // There is no D-Bus daemon here, which the first two flags need: so the journal has its output.
    const here = command
      .replace('--pipe --wait', '-p Type=oneshot --unit=check')
      .replace('main.yaml', 'bucket.yaml');
    expect(await machine.try(['sh', '-c', here])).toMatchObject({ code: 0 });
    expect(await journal('check')).toContain('main');
    expect(await journal('check')).not.toContain('secret-of-root');
    await machine.run('systemctl', 'stop', 'lightningstream@bucket', 'minio');
  });

  test('a port below 1024, with the drop-in of the documentation', async () => {
    await configure('low', 80);
    await dropIn('lightningstream@low.service', documented('PrivateUsers=no'));
    await startUnit('lightningstream@low');
    await healthy(80);
    await machine.run('systemctl', 'stop', 'lightningstream@low');
    expect(await show('lightningstream@low', 'Result')).toBe('success');
  });

  test('the application starts when the files are there; also when the daemon cannot start', async () => {
    await configure('order', 8504);
    // In one go, as when the host starts.
    await machine.write(`${UNITS}/both.target`, '[Unit]\nWants=pdns.service lightningstream@order.service\n');
    await machine.run('systemctl', 'daemon-reload');
    await machine.run('systemctl', 'start', 'both.target');
    await isState('pdns', 'active');
    expect(await machine.run('cat', '/run/found')).toContain('order.lmdb\n');
    await machine.run('systemctl', 'stop', 'pdns', 'lightningstream@order', 'both.target');
    await machine.run('rm', '/run/found');
    await machine.write(`${CONFIGS}/order.yaml`, 'nonsense: 1\n');
    await machine.run('systemctl', 'start', 'both.target');
    expect(await machine.sh('journalctl --no-pager -o cat -u lightningstream@order -p err')).toContain(
      'nonsense: unknown key',
    );
    await isState('pdns', 'active');
    expect(await machine.run('cat', '/run/found')).toContain('order.lmdb\n');
    // It is tried for ever, and comes up once the mistake is mended.
    await until(async () => Number(await show('lightningstream@order', 'NRestarts')) > 6, {
      what: 'more attempts than systemd allows by default',
      ...patient,
    });
    await configure('order', 8504);
    await isState('lightningstream@order', 'active');
    await machine.run('systemctl', 'stop', 'lightningstream@order');
  });

  test('wrong usage is not tried again', async () => {
    await configure('usage', 8505);
    await dropIn(
      'lightningstream@usage.service',
      '[Service]\nExecStart=\nExecStart=/usr/bin/lightningstream sync --nonsense\n',
    );
    expect((await machine.try(['systemctl', 'start', 'lightningstream@usage'])).code).toBe(1);
    expect(await state('lightningstream@usage')).toBe('failed');
    expect(await show('lightningstream@usage', 'NRestarts')).toBe('0');
  });

  test('without a configuration it says which one', async () => {
    const { code, stderr } = await machine.try(['systemctl', 'start', 'lightningstream@none']);
    expect([code, stderr]).toEqual([1, expect.stringContaining('Assertion failed')]);
  });

  test('with --minimum-pid the process that works is heard through the one that systemd knows', async () => {
    await configure('pid', 8506);
    await dropIn(
      'lightningstream@pid.service',
      `[Service]
SystemCallErrorNumber=EPERM
WatchdogSec=3s
ExecStart=
ExecStart=/usr/bin/lightningstream --minimum-pid 200 --config ${CONFIGS}/pid.yaml sync
# The process ids of this machine are small.
ExecStartPre=+/bin/sh -c 'echo 60 >/proc/sys/kernel/ns_last_pid'
`,
    );
    await startUnit('lightningstream@pid');
    const main = await show('lightningstream@pid', 'MainPID');
    expect(Number(main)).toBeLessThan(200);
    const [child = ''] = (await machine.run('cat', `/proc/${main}/task/${main}/children`)).trim().split(' ');
    expect(Number(child)).toBeGreaterThanOrEqual(200);
    await until(async () => (await show('lightningstream@pid', 'StatusText')).startsWith('OK'), {
      what: 'the status',
      ...patient,
    });
    // A worker that hangs is noticed, and both are replaced.
    await machine.sh(`kill -STOP ${child}`);
    await until(async () => (await show('lightningstream@pid', 'NRestarts')) === '1', {
      what: 'a restart',
      ...patient,
    });
    await isState('lightningstream@pid', 'active');
    await machine.run('systemctl', 'stop', 'lightningstream@pid');
    expect(await show('lightningstream@pid', 'Result')).toBe('success');
  });

  test('a daemon that hangs is killed and started again', async () => {
    await configure('hangs', 8507);
    await dropIn('lightningstream@hangs.service', '[Service]\nWatchdogSec=2s\n');
    await startUnit('lightningstream@hangs');
    const pid = await show('lightningstream@hangs', 'MainPID');
    await machine.sh(`kill -STOP ${pid}`);
    await until(async () => (await show('lightningstream@hangs', 'NRestarts')) === '1', {
      what: 'a restart',
      ...patient,
    });
    expect(await journal('lightningstream@hangs')).toMatch(
      /Watchdog timeout.*[^]*signal KILL|Watchdog timeout[^]*status=9\/KILL/,
    );
    await healthy(8507);
    await machine.run('systemctl', 'stop', 'lightningstream@hangs');
  });

  test('the target stops, starts and restarts all that are enabled', async () => {
    const both = ['lightningstream@main', 'lightningstream@other'];
    await machine.run('systemctl', 'stop', 'lightningstream.target');
    for (const unit of both) {
      await isState(unit, 'inactive');
      expect(await show(unit, 'Result')).toBe('success');
    }
    await machine.run('systemctl', 'start', 'lightningstream.target');
    const pids = [];
    for (const unit of both) {
      await isState(unit, 'active');
      pids.push(await show(unit, 'MainPID'));
    }
    await machine.run('systemctl', 'restart', 'lightningstream.target');
    for (const [index, unit] of both.entries()) {
      await isState(unit, 'active');
      expect(await show(unit, 'MainPID')).not.toBe(pids[index]);
    }
    expect(await state('lightningstream@elsewhere')).toBe('inactive');
  });

  test('of an instance either unit runs, not both', async () => {
    await isState('lightningstream@other', 'active');
    await dropIn('lightningstream-receive@.service', documented('UMask=0022'));
    await machine.run('systemctl', 'start', 'lightningstream-receive@other');
    expect([await state('lightningstream-receive@other'), await state('lightningstream@other')]).toEqual([
      'active',
      'inactive',
    ]);
    await healthy(8501);
    await startUnit('lightningstream@other');
    expect([await state('lightningstream-receive@other'), await state('lightningstream@other')]).toEqual([
      'inactive',
      'active',
    ]);
  });
});
