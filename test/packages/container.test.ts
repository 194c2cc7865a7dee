/** The container image and the stack around it (build/container, build/stack), as far as that goes without a container engine. */
import { globSync, readFileSync } from 'node:fs';
import { chmod, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import { controlGroup, missingControlGroups, type ControlGroup } from '../helpers/cgroup.ts';
import {
  assembleImage,
  runContainer,
  startContainer,
  startNetwork,
  volume,
  type ContainerOptions,
  type Image,
  type Mount,
} from '../helpers/container.ts';
import { powerDns } from '../helpers/powerdns.ts';
import { launcher, repositoryRoot, run, start, tempDir, until, type TempDir } from '../helpers/process.ts';
import { describeWithTools, missingTool, toolPath } from '../helpers/tools.ts';

const stackDirectory = join(repositoryRoot, 'build', 'stack');
const ADMIN_ADDRESS = '127.0.0.1';

/** What `docker-compose config` prints of a service, as far as it is looked at here. */
interface Service {
  readonly image: string;
  readonly entrypoint?: readonly string[];
  readonly command?: readonly string[];
  readonly environment: Readonly<Record<string, string>>;
  readonly healthcheck: { readonly test: readonly string[] };
  /** As in the file: `[ADDRESS:]PORT:PORT/PROTOCOL`. */
  readonly ports: readonly string[];
  readonly volumes: readonly Mount[];
  readonly labels?: Readonly<Record<string, string>>;
  readonly memoryBytes: number;
  readonly cpus: number;
  readonly pid?: string;
  readonly read_only?: boolean;
  readonly tmpfs?: readonly string[];
  readonly scale?: number;
}

interface Stack {
  readonly authoritative: Service;
  readonly syncer: Service;
  readonly minio: Service;
}

/** @throws Error with what it said, when it refuses. */
async function composed(
  env: Readonly<Record<string, string>> = {},
  files: readonly string[] = ['compose.yaml'],
): Promise<Stack> {
  await using dir = await tempDir();
  // Instead of a .env that somebody has beside the file.
  await writeFile(dir.join('env'), '');
  const { code, stdout, stderr } = await run({
    command: toolPath('docker-compose'),
    args: ['--env-file', dir.join('env'), ...files.flatMap((file) => ['-f', file]), 'config'],
    cwd: stackDirectory,
    env,
  });
  if (code !== 0) throw new Error(stderr);
  const { services } = parse(stdout) as { services: Record<keyof Stack, Printed> };
  return {
    authoritative: serviceOf(services.authoritative),
    syncer: serviceOf(services.syncer),
    minio: serviceOf(services.minio),
  };
}

/** Version 1 of the program leaves some things as they are in the file, version 2 takes them apart. */
type Printed = Omit<Service, 'ports' | 'volumes' | 'memoryBytes'> & {
  readonly ports: readonly (string | Readonly<Record<string, string | number>>)[];
  readonly volumes: readonly (string | (Mount & { readonly read_only?: boolean }))[];
  readonly mem_limit: string;
};

function serviceOf(printed: Printed): Service {
  const [, number = '', unit] = /^(\d+)(m?)$/.exec(printed.mem_limit) ?? [];
  return {
    ...printed,
    memoryBytes: Number(number) * (unit === 'm' ? 1024 ** 2 : 1),
    ports: printed.ports.map((port) => {
      if (typeof port === 'string') return port;
      const { host_ip: address, published, target, protocol } = port;
      return `${address === undefined ? '' : `${address}:`}${published}:${target}/${protocol}`;
    }),
    volumes: printed.volumes.map((mount) => {
      if (typeof mount !== 'string') return { ...mount, readOnly: mount.read_only ?? false };
      const [source = '', target = '', mode = ''] = mount.split(':');
      return { source, target, readOnly: mode.split(',').includes('ro') };
    }),
  };
}

describeWithTools(['docker-compose'], 'the compose file', () => {
  test('has the services, ports and limits that were promised', async () => {
    const { authoritative, syncer, minio } = await composed();
    expect(authoritative.ports).toEqual(['53:53/udp', '53:53/tcp', `${ADMIN_ADDRESS}:8081:8081/tcp`]);
    expect(syncer.ports).toEqual([`${ADMIN_ADDRESS}:8500:8500/tcp`]);
    expect(minio.ports).toEqual([`${ADMIN_ADDRESS}:9000:9000/tcp`, `${ADMIN_ADDRESS}:9001:9001/tcp`]);
    const mib = 1024 ** 2;
    expect([authoritative, syncer, minio].map(({ memoryBytes, cpus }) => [memoryBytes, cpus])).toEqual([
      [128 * mib, 0.25],
      [128 * mib, 0.25],
      [256 * mib, 0.25],
    ]);
    const lmdb = { source: 'lmdb', target: '/var/lib/powerdns', readOnly: false };
    expect(authoritative.volumes).toContainEqual(expect.objectContaining(lmdb));
    expect(syncer.volumes).toContainEqual(expect.objectContaining(lmdb));
    expect([authoritative.pid, syncer.pid]).toEqual(['host', 'host']);
  });

  test('takes its variables', async () => {
    const { authoritative, syncer, minio } = await composed({
      DOMAIN: 'example.net',
      INSTANCE_ID: 'here',
      PDNS_API_KEY: 'key-of-the-api',
      DNS_PORT: '192.0.2.1:5353',
      S3_ENDPOINT: 'http://192.0.2.9:9000',
      S3_BUCKET: 'bucket',
      S3_REGION: 'eu-west-1',
      S3_ACCESS_KEY: 'access',
      S3_SECRET_KEY: 'secret-secret',
      ADMIN_ADDRESS: '192.0.2.1',
    });
    expect(authoritative.environment).toEqual({
      DOMAIN: 'example.net',
      INSTANCE_ID: 'here',
      PDNS_API_KEY: 'key-of-the-api',
    });
    expect(authoritative.ports).toEqual([
      '192.0.2.1:5353:53/udp',
      '192.0.2.1:5353:53/tcp',
      '192.0.2.1:8081:8081/tcp',
    ]);
    expect(syncer.environment).toEqual({
      INSTANCE_ID: 'here',
      S3_ENDPOINT: 'http://192.0.2.9:9000',
      S3_BUCKET: 'bucket',
      S3_REGION: 'eu-west-1',
      S3_ACCESS_KEY: 'access',
      S3_SECRET_KEY: 'secret-secret',
    });
    expect(minio.environment).toMatchObject({
      MINIO_ROOT_USER: 'access',
      MINIO_ROOT_PASSWORD: 'secret-secret',
    });
  });

  test('needs variables alone for R2 and for AWS', async () => {
    const endpoint = 'https://0123456789abcdef.r2.cloudflarestorage.com';
    const r2 = await composed({ S3_ENDPOINT: endpoint, S3_REGION: 'auto', MINIO: '0' });
    expect(r2.syncer.environment).toMatchObject({ S3_ENDPOINT: endpoint, S3_REGION: 'auto' });
    expect(r2.minio.scale).toBe(0);
    const aws = await composed({ S3_ENDPOINT: '', MINIO: '0' });
    expect(aws.syncer.environment['S3_ENDPOINT']).toBe('');
  });

  test('has labels for a reverse proxy in an overlay, which asks for a login', async () => {
    const files = ['compose.yaml', 'compose.traefik.yaml'];
    await expect(composed({}, files)).rejects.toThrow('name and password hash, as htpasswd prints them');
    const { authoritative, syncer, minio } = await composed(
      { DOMAIN: 'example.net', PROXY_USERS: 'admin:hash' },
      files,
    );
    const rules = [authoritative, syncer, minio].flatMap(({ labels = {} }) =>
      Object.entries(labels)
        .filter(([name]) => name.endsWith('.rule'))
        .map(([, rule]) => rule),
    );
    expect(rules.sort()).toEqual([
      'Host(`lightningstream.example.net`)',
      'Host(`minio.example.net`)',
      'Host(`powerdns-api.example.net`)',
      'Host(`s3.example.net`)',
    ]);
    expect(syncer.labels).toMatchObject({
      'traefik.http.routers.lightningstream.middlewares': 'lightningstream-login',
      'traefik.http.middlewares.lightningstream-login.basicauth.users': 'admin:hash',
    });
  });

  test('has its variables and their defaults in .env.example, and in docs/container.md what most need', () => {
    const files = globSync('compose*.yaml', { cwd: stackDirectory });
    expect(files).toHaveLength(2);
    const used = new Map<string, string>();
    for (const file of files) {
      const text = readFileSync(join(stackDirectory, file), 'utf8');
      for (const [, name = '', value = ''] of text.matchAll(/\$\{(\w+)(?::?-([^}]*))?/g)) {
        // One default each.
        expect([name, used.get(name) ?? value]).toEqual([name, value]);
        used.set(name, value);
      }
    }
    const example = readFileSync(join(stackDirectory, '.env.example'), 'utf8');
    const shown = new Map(
      [...example.matchAll(/^(\w+)=(.*)$/gm)].map(([, name = '', value = '']) => [name, value]),
    );
    for (const [, name = '', value = ''] of example.matchAll(/^#(\w+)=(.*)$/gm)) {
      if (!shown.has(name)) shown.set(name, name === 'PROXY_USERS' ? '' : value);
    }
    expect(Object.fromEntries(shown)).toEqual(Object.fromEntries(used));

    const page = readFileSync(join(repositoryRoot, 'docs', 'container.md'), 'utf8');
    const documented = [...page.matchAll(/^\| (`[A-Z][A-Z0-9_]+`(?:, `\w+`)*) \| `([^`]+)` \|/gm)].flatMap(
      ([, names = '', value = '']) => [...names.matchAll(/\w+/g)].map(([name]) => [name, value] as const),
    );
    expect(documented.length).toBeGreaterThan(9);
    expect(documented.map(([name, value]) => [name, used.get(name) === value])).toEqual(
      documented.map(([name]) => [name, true]),
    );
  });
});

const missing =
  missingTool('debian-13', 'docker-compose', 'minio', 'pdns-4.9') ??
  (globSync('dist/packages/lightningstream-ts_*.deb', { cwd: repositoryRoot }).length > 0
    ? undefined
    : 'there is no package: run make packages');

describe.skipIf(missing !== undefined)(missing === undefined ? 'the image' : `the image [${missing}]`, () => {
  let dir: TempDir;
  let image: Image;

  beforeAll(async () => {
    dir = await tempDir('lightningstream-image-');
    image = await assembleImage({
      containerfile: join(repositoryRoot, 'build', 'container', 'Containerfile'),
      context: repositoryRoot,
      base: (suite) => join(toolPath(suite === 'trixie' ? 'debian-13' : 'debian-12'), 'root'),
      root: dir.join('image'),
    });
  });
  afterAll(() => dir?.[Symbol.asyncDispose]());

  test('runs as the user of the images of PowerDNS', async () => {
    const { stdout } = await runContainer({ image, command: ['id'] });
    expect(stdout).toBe('uid=953(pdns) gid=953(pdns) groups=953(pdns)\n');
    const version = await runContainer({ image, command: [...image.entrypoint, 'version'], readOnly: true });
    expect(version).toMatchObject({ code: 0, stdout: expect.stringMatching(/^\d+\.\d+\.\d+/) as string });
    expect(image.ports).toEqual([8500]);
  });

  test('has no more in it than Debian and the package', async () => {
    for (const program of ['node', 'npm', 'systemctl', 'curl']) {
      const { code } = await runContainer({ image, command: ['sh', '-c', `command -v ${program}`] });
      expect([program, code]).toEqual([program, 127]);
    }
  });

  test('has a health check that fails without a daemon, and while one is not well', async () => {
    await using network = await startNetwork();
    await using work = await tempDir('lightningstream-image-');
    const lmdb = await volume(work.join('lmdb'), image.user);
    await writeFile(join(lmdb, 'pdns.lmdb'), 'this is no LMDB'.repeat(1000));
    await chmod(join(lmdb, 'pdns.lmdb'), 0o666);
    const spool = await volume(work.join('spool'), image.user);
    const options = {
      image,
      readOnly: true,
      networkOf: network.pid,
      mounts: [
        { source: lmdb, target: '/var/lib/powerdns' },
        { source: spool, target: '/var/cache/lightningstream' },
      ],
    };
    const check = () => runContainer({ ...options, command: image.healthcheck });
    expect(await check()).toMatchObject({ code: 1, stdout: 'nothing listens on port 8500\n' });
    await using daemon = await startContainer({
      ...options,
      env: { INSTANCE_ID: 'ns1', S3_ENDPOINT: 'http://127.0.0.1:9', S3_BUCKET: 'b' },
      command: [...image.entrypoint, ...image.command],
    });
    const { code, stdout } = await until(
      async () => {
        const result = await check();
        return result.stdout.includes('main_local_fault') ? result : undefined;
      },
      { what: 'the health check tells of the broken LMDB', timeoutMs: 30_000, intervalMs: 200 },
    );
    expect([code, stdout]).toEqual([1, expect.stringContaining('MDB_INVALID')]);
    expect((await daemon.stop()).code).toBe(0);
  });

  test('and PowerDNS and MinIO, as the compose file starts them, replicate in both directions', async () => {
    await using work = await tempDir('lightningstream-stack-');
    const secrets = {
      PDNS_API_KEY: 'key-of-the-api',
      S3_ACCESS_KEY: 'admin',
      S3_SECRET_KEY: 'key of the storage #1',
    };
    const services = await composed({ ...secrets, INSTANCE_ID: 'ns1', DOMAIN: 'example.net' });
    await using network = await startNetwork();
    await using stack = new StackOfContainers(work, services, image, network.pid);
    await stack.startMinio();
    const syncer = await stack.start('syncer', image);
    const pdns = await authoritativeImage(work, image.user);
    const authoritative = await stack.start('authoritative', pdns);
    for (const name of ['syncer', 'authoritative'] as const) {
      await until(async () => (await stack.checkHealth(name)).code === 0, {
        what: `${name} is healthy`,
        timeoutMs: 60_000,
        intervalMs: 500,
      });
    }
    const check = await stack.exec('syncer', [...image.entrypoint, 'config', 'check']);
    expect([check.code, check.stdout + check.stderr]).toEqual([0, expect.not.stringContaining('WARNING')]);

    // Another server, with a daemon beside it that is not in a container.
    await using other = await powerDns(work.join('other'));
    await using daemon = await otherDaemon(work, other.lmdbPath, secrets, network.pid);
    const created = await stack.exec('authoritative', ['pdnsutil', 'create-zone', 'example.org']);
    expect([created.code, created.stderr]).toEqual([0, expect.stringContaining('empty zone')]);
    const patch = {
      rrsets: [
        {
          name: 'www.example.org.',
          type: 'A',
          ttl: 60,
          changetype: 'REPLACE',
          records: [{ content: '192.0.2.80', disabled: false }],
        },
      ],
    };
    expect(await stack.api('PATCH', 'zones/example.org.', patch)).toBe(204);
    await until(() => daemon.stderr().includes('Loaded remote update'), {
      what: 'the other daemon has got something',
      timeoutMs: 60_000,
    });
    await other.start();
    await until(async () => (await other.query('www.example.org', 'A'))[0] === '192.0.2.80', {
      what: 'the other server has the record',
      timeoutMs: 60_000,
    });
    expect((await other.query('example.org', 'SOA'))[0]).toMatch(
      /^ns1\.example\.net\. hostmaster\.example\.org\. /,
    );

    await other.pdnsutil('add-record', 'example.org', 'back', 'A', '60', '192.0.2.81');
    await until(async () => (await stack.dig('back.example.org', 'A')) === '192.0.2.81\n', {
      what: 'the stack has what was changed on the other server',
      timeoutMs: 60_000,
      intervalMs: 200,
    });

    expect(await stack.killed()).toBe(0);
    for (const running of [syncer, authoritative]) {
      const { stdout, stderr } = await running.stop();
      for (const secret of [secrets.PDNS_API_KEY, secrets.S3_SECRET_KEY]) {
        expect(stdout + stderr).not.toContain(secret);
      }
    }
  });
});

/** The services of the compose file as processes, in one network, with its limits where there are control groups. */
class StackOfContainers implements AsyncDisposable {
  readonly #resources = new AsyncDisposableStack();
  readonly #groups = new Map<keyof Stack, ControlGroup>();
  readonly #containers = new Map<keyof Stack, ContainerOptions>();
  readonly #work: TempDir;
  readonly #services: Stack;
  readonly #user: string;
  readonly #network: number;

  constructor(work: TempDir, services: Stack, { user }: Image, network: number) {
    this.#work = work;
    this.#services = services;
    this.#user = user;
    this.#network = network;
  }

  /** The server itself is the one that all tests use. */
  async startMinio(): Promise<void> {
    const { command = [], environment } = this.#services.minio;
    const data = this.#work.join('objects');
    await mkdir(data);
    const program = [toolPath('minio'), ...command.map((word) => (word === '/data' ? data : word))];
    const enter = await this.#enter('minio');
    const network = ['nsenter', `--net=/proc/${this.#network}/ns/net`];
    const [first = '', ...args] = [...enter, ...network, 'setpriv', '--pdeathsig', 'SIGKILL', ...program];
    const env = { ...environment, HOME: this.#work.path };
    this.#resources.use(await start({ command: first, args, env, ownProcessGroup: true }));
    await until(
      async () => (await this.#fetch('http://127.0.0.1:9000/minio/health/cluster')).status === 200,
      {
        what: 'MinIO answers',
        timeoutMs: 90_000,
        intervalMs: 500,
      },
    );
  }

  async start(name: 'authoritative' | 'syncer', image: Image) {
    const { environment, entrypoint, command, volumes, tmpfs = [] } = this.#services[name];
    const { read_only: readOnly = false } = this.#services[name];
    const hosts = this.#work.join('hosts');
    await writeFile(hosts, '127.0.0.1 localhost minio\n');
    const mounts: Mount[] = [{ source: hosts, target: '/etc/hosts', readOnly: true }];
    for (const target of tmpfs) mounts.push({ source: 'tmpfs', target });
    for (const { source, target, readOnly: isReadOnly = false } of volumes) {
      const isFile = source.startsWith('/');
      mounts.push({
        source: isFile ? source : await volume(this.#work.join(source), this.#user),
        target,
        readOnly: isReadOnly,
      });
    }
    const container = {
      image,
      mounts,
      readOnly,
      env: environment,
      networkOf: this.#network,
      enter: await this.#enter(name),
      command: [...(entrypoint ?? image.entrypoint), ...(command ?? image.command)],
    };
    this.#containers.set(name, container);
    return this.#resources.use(await startContainer(container));
  }

  /** In the container, with its limits, as an engine does it. */
  async exec(name: 'authoritative' | 'syncer', command: readonly string[]) {
    const container = this.#containers.get(name);
    if (container === undefined) throw new Error(`${name} is not started`);
    return runContainer({ ...container, command });
  }

  checkHealth(name: 'authoritative' | 'syncer') {
    const [kind, ...command] = this.#services[name].healthcheck.test;
    expect(kind).toBe('CMD');
    return this.exec(name, command);
  }

  /** Status of a call of PowerDNS' API. */
  async api(method: string, path: string, body: unknown): Promise<number> {
    const key = this.#services.authoritative.environment['PDNS_API_KEY'] ?? '';
    const url = `http://127.0.0.1:8081/api/v1/servers/localhost/${path}`;
    return (await this.#fetch(url, { method, headers: { 'X-API-Key': key }, body: JSON.stringify(body) }))
      .status;
  }

  async dig(name: string, type: string): Promise<string> {
    const dig = [join(toolPath('pdns-4.9'), 'run'), 'dig', '-r', '+short', '@127.0.0.1', name, type];
    return (await this.#inNetwork(dig)).stdout;
  }

  /** Processes that had to end because the memory was not enough. Prints how near it was. */
  async killed(): Promise<number> {
    let all = 0;
    for (const [name, group] of this.#groups) {
      const { killed, peakBytes, limitHits } = await group.usage();
      const peak = `peak ${Math.round(peakBytes / 1024 ** 2)} MiB`;
      process.stdout.write(`${name}: ${peak}, ${limitHits} times at the limit, ${killed} killed\n`);
      all += killed;
    }
    return all;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#resources.disposeAsync();
  }

  async #enter(name: keyof Stack): Promise<readonly string[]> {
    if (missingControlGroups() !== undefined) return [];
    const { memoryBytes, cpus } = this.#services[name];
    const group = await controlGroup({ memoryBytes, cpuShare: cpus });
    this.#resources.use(group);
    this.#groups.set(name, group);
    return group.enter;
  }

  async #fetch(url: string, options: RequestInit = {}): Promise<{ readonly status: number }> {
    const program = `
      const response = await fetch(process.argv[1], JSON.parse(process.argv[2])).catch(() => undefined);
      process.stdout.write(String(response?.status ?? 0));`;
    const args = ['--input-type=module', '-e', program, url, JSON.stringify(options)];
    return { status: Number((await this.#inNetwork([process.execPath, ...args])).stdout) };
  }

  #inNetwork(command: readonly string[]) {
    return run({ command: 'nsenter', args: [`--net=/proc/${this.#network}/ns/net`, ...command] });
  }
}

/** What the image of PowerDNS has of what the stack uses: the user, the directories, an own configuration that includes others. */
async function authoritativeImage(work: TempDir, user: string): Promise<Image> {
  const root = work.join('authoritative');
  const { code } = await run({ command: 'cp', args: ['-a', join(toolPath('pdns-4.9'), 'root'), root] });
  expect(code).toBe(0);
  for (const directory of ['etc/powerdns/pdns.d', 'run/pdns', 'var/lib/powerdns']) {
    await volume(join(root, directory), user);
  }
  const settings = [
    'launch=gsqlite3',
    'include-dir=/etc/powerdns/pdns.d',
    'socket-dir=/run/pdns',
    'setuid=',
    'setgid=',
  ];
  await writeFile(join(root, 'etc/powerdns/pdns.conf'), `${settings.join('\n')}\n`);
  await chmod(join(root, 'etc/powerdns/pdns.conf'), 0o644);
  return {
    root,
    user,
    workdir: '/',
    env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin' },
    entrypoint: [],
    command: [],
    healthcheck: [],
    ports: [],
  };
}

async function otherDaemon(
  work: TempDir,
  lmdbPath: string,
  secrets: { readonly S3_ACCESS_KEY: string; readonly S3_SECRET_KEY: string },
  network: number,
) {
  const lmdb = (path: string) => ({
    path,
    schema_tracks_changes: true,
    options: { no_subdir: true, create: true, map_size: '1000MB' },
  });
  const config = work.join('other.yaml');
  await writeFile(
    config,
    JSON.stringify({
      instance: 'ns2',
      lmdbs: { main: lmdb(lmdbPath), shard: lmdb(`${lmdbPath}-0`) },
      storage: {
        type: 's3',
        options: {
          endpoint_url: 'http://127.0.0.1:9000',
          bucket: 'lightningstream',
          access_key: secrets.S3_ACCESS_KEY,
          secret_key: secrets.S3_SECRET_KEY,
        },
      },
      spool_dir: work.join('other-spool'),
    }),
  );
  const args = [
    `--net=/proc/${network}/ns/net`,
    'setpriv',
    '--pdeathsig',
    'SIGKILL',
    launcher,
    '-c',
    config,
    'sync',
  ];
  return start({ command: 'nsenter', args, ownProcessGroup: true });
}
