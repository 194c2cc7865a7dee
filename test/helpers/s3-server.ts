/**
 * Real S3 servers for tests: MinIO and versitygw, on loopback, with data in a temporary directory. `describeWithTools` (tools.ts)
 * skips what needs one where it is not installed.
 */
import { randomBytes } from 'node:crypto';
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import { get as httpGet } from 'node:http';
import { get as httpsGet } from 'node:https';
import { join } from 'node:path';

import { freePort, run, start, tempDir, until, type Running } from './process.ts';
import { toolPath } from './tools.ts';

export interface S3ServerOptions {
  /** PEM texts; the server speaks https then. `ca` is what its clients trust. */
  readonly tls?: { readonly cert: string; readonly key: string; readonly ca: string };
  /** Some free one by default. */
  readonly port?: number;
  /** Where the objects are, and stay; by default a directory that vanishes with the server. */
  readonly dataDir?: string;
  /** Added to the server's environment. */
  readonly env?: Readonly<Record<string, string>>;
}

/** Who asks, and where. */
export interface S3Account {
  /** `http://127.0.0.1:PORT` */
  readonly endpoint: string;
  readonly accessKey: string;
  readonly secretKey: string;
}

/** With the administrator's keys. Leaving its scope kills it. It dies with the test process, too, whatever ends that one. */
export interface S3Server extends S3Account, AsyncDisposable {
  readonly port: number;
  readonly dataDir: string;
  /** Of the running process. @throws Error while it is stopped. */
  readonly pid: number;
  /** Everything the running process has written. */
  output(): string;
  /** SIGTERM, and waits for the end. */
  stop(): Promise<void>;
  /** SIGKILL, and waits for the end. */
  kill(): Promise<void>;
  /** Starts it again after `stop` or `kill`: same port, same data, same keys. */
  start(): Promise<void>;
}

/** MinIO, ready to answer. */
export function startMinio(options: S3ServerOptions = {}): Promise<S3Server> {
  const program = toolPath('minio');
  return startServer(options, {
    healthPath: '/minio/health/cluster',
    async command({ port, dataDir, workDir, accessKey, secretKey }) {
      const certsDir = join(workDir, 'certs');
      await mkdir(certsDir, { recursive: true });
      if (options.tls !== undefined) {
        await writeFile(join(certsDir, 'public.crt'), options.tls.cert);
        await writeFile(join(certsDir, 'private.key'), options.tls.key);
      }
      return {
        args: [
          program,
          'server',
          '--quiet',
          '--json',
          `--certs-dir=${certsDir}`,
          `--address=127.0.0.1:${port}`,
          dataDir,
        ],
        env: {
          HOME: workDir,
          MINIO_ROOT_USER: accessKey,
          MINIO_ROOT_PASSWORD: secretKey,
          MINIO_BROWSER: 'off',
          // Nothing that looks for a newer version, or wants to report anything.
          MINIO_UPDATE: 'off',
          MINIO_CALLHOME_ENABLE: 'off',
        },
      };
    },
  });
}

/**
 * versitygw over a directory, ready to answer. Objects are files, ETags and metadata their extended attributes. It ends every
 * connection after one request, unless `env` has `VGW_KEEP_ALIVE=true`; `VGW_ACCESS_LOG=/path` lists the requests.
 */
export function startVersitygw(options: S3ServerOptions = {}): Promise<S3Server> {
  const program = toolPath('versitygw');
  return startServer(options, {
    healthPath: '/health',
    async command({ port, dataDir, workDir, accessKey, secretKey }) {
      const tls: string[] = [];
      if (options.tls !== undefined) {
        const [cert, key] = [join(workDir, 'server.crt'), join(workDir, 'server.key')];
        await writeFile(cert, options.tls.cert);
        await writeFile(key, options.tls.key);
        tls.push(`--cert=${cert}`, `--key=${key}`);
      }
      return {
        args: [program, `--port=127.0.0.1:${port}`, '--health=/health', '--quiet', ...tls, 'posix', dataDir],
        env: { HOME: workDir, ROOT_ACCESS_KEY: accessKey, ROOT_SECRET_KEY: secretKey },
      };
    },
  });
}

interface Place {
  readonly port: number;
  readonly dataDir: string;
  readonly workDir: string;
  readonly accessKey: string;
  readonly secretKey: string;
}

interface Kind {
  /** Answers 200 when requests are served. */
  readonly healthPath: string;
  command(
    place: Place,
  ): Promise<{ readonly args: readonly string[]; readonly env: Readonly<Record<string, string>> }>;
}

async function startServer(options: S3ServerOptions, kind: Kind): Promise<S3Server> {
  const workDir = await tempDir();
  const dataDir = options.dataDir ?? workDir.join('data');
  await mkdir(dataDir, { recursive: true });
  const port = options.port ?? (await freePort());
  const endpoint = `${options.tls === undefined ? 'http' : 'https'}://127.0.0.1:${port}`;
  const accessKey = 'test-admin';
  const secretKey = randomBytes(16).toString('hex');
  const { args, env } = await kind.command({ port, dataDir, workDir: workDir.path, accessKey, secretKey });
  let running: Running | undefined;

  const server: S3Server = {
    endpoint,
    port,
    accessKey,
    secretKey,
    dataDir,
    get pid() {
      if (running === undefined) throw new Error('the server is stopped');
      return running.pid;
    },
    output: () => (running === undefined ? '' : running.stdout() + running.stderr()),
    async start() {
      if (running !== undefined) throw new Error('the server runs already');
      // It is the kernel that ends it with the test process; what runs at that one's exit, a SIGKILL would leave out.
      const child = await start({
        command: 'setpriv',
        args: ['--pdeathsig', 'SIGKILL', ...args],
        env: { ...env, ...options.env },
        cwd: workDir.path,
        // A Ctrl-C at the terminal is for whoever started it.
        ownProcessGroup: true,
      });
      let ended = false;
      void child.exited.then(() => (ended = true));
      try {
        // Whoever else has the port would answer as well.
        const ready = async () =>
          listens(child.pid, port) && (await answers(`${endpoint}${kind.healthPath}`, options));
        await until(async () => ended || (await ready()), {
          timeoutMs: 60_000,
          what: `${endpoint} answers`,
          intervalMs: 50,
        });
        if (ended) throw new Error('it ended');
      } catch (error) {
        const output = (child.stdout() + child.stderr()).slice(-2000);
        await child[Symbol.asyncDispose]();
        throw new Error(`the S3 server did not start:\n${output}`, { cause: error });
      }
      running = child;
    },
    async stop() {
      const child = running;
      running = undefined;
      await child?.stop();
    },
    async kill() {
      const child = running;
      running = undefined;
      await child?.[Symbol.asyncDispose]();
    },
    async [Symbol.asyncDispose]() {
      await server.kill();
      await workDir[Symbol.asyncDispose]();
    },
  };
  try {
    await server.start();
  } catch (error) {
    await workDir[Symbol.asyncDispose]();
    throw error;
  }
  return server;
}

/** Whether the process has the port open on loopback (proc(5): /proc/net/tcp; state 0A is LISTEN). */
function listens(pid: number, port: number): boolean {
  const address = `0100007F:${port.toString(16).toUpperCase().padStart(4, '0')}`;
  const inodes = readFileSync('/proc/net/tcp', 'utf8')
    .split('\n')
    .map((line) => line.trim().split(/\s+/))
    .filter((fields) => fields[1] === address && fields[3] === '0A')
    .map((fields) => `socket:[${fields[9] ?? ''}]`);
  return readdirSync(`/proc/${pid}/fd`).some((fd) => {
    try {
      return inodes.includes(readlinkSync(`/proc/${pid}/fd/${fd}`));
    } catch {
      return false; // closed meanwhile
    }
  });
}

/** Whether a GET gives 200. */
function answers(url: string, { tls }: S3ServerOptions): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const request =
      tls === undefined
        ? httpGet(url, { timeout: 5000 })
        : httpsGet(url, { timeout: 5000, ca: tls.ca, agent: false });
    request.once('error', reject);
    request.once('timeout', () => request.destroy(new Error('no answer')));
    request.once('response', (response) => {
      response.resume();
      resolve(response.statusCode === 200);
    });
  });
}

/**
 * Runs MinIO's client and returns what it printed; the server is called `s3`: `mc(server, 'mb', 's3/bucket')`.
 * Speaks S3 to any server; `admin` commands are for MinIO only. Needs the tool `mc`.
 *
 * @throws Error with its output, when it fails.
 */
export async function mc(account: S3Account, ...args: readonly string[]): Promise<string> {
  await using dir = await tempDir();
  const url = new URL(account.endpoint);
  url.username = account.accessKey;
  url.password = account.secretKey;
  const { code, stdout, stderr } = await run({
    command: toolPath('mc'),
    // Tests of our own TLS do not need another client's opinion of the certificate.
    args: ['--config-dir', dir.path, '--insecure', '--quiet', '--json', ...args],
    env: { HOME: dir.path, MC_HOST_s3: url.href, MC_UPDATE: 'off' },
    cwd: dir.path,
  });
  if (code !== 0) throw new Error(`mc ${args.join(' ')} ended with ${code}:\n${stdout}${stderr}`);
  return stdout;
}

/** One statement of an IAM policy. */
export interface PolicyStatement {
  readonly Effect: 'Allow' | 'Deny';
  /** `s3:ListBucket`, `s3:GetObject`, `s3:PutObject`, `s3:DeleteObject`, … */
  readonly Action: readonly string[];
  /** `arn:aws:s3:::BUCKET` for the bucket itself, `arn:aws:s3:::BUCKET/*` for its objects. */
  readonly Resource: readonly string[];
}

/** `secretKey` is always the newest. */
export interface MinioUser extends S3Account {
  /** Replaces what the user may do; MinIO refuses a policy without statements. */
  setPolicy(policy: readonly PolicyStatement[]): Promise<void>;
  /** Gives a new secret; the old one is refused from then on. */
  changeSecret(): Promise<void>;
  disable(): Promise<void>;
  enable(): Promise<void>;
  remove(): Promise<void>;
}

let users = 0;

/** A user of a MinIO that may do what the policy (one statement or more) says, and nothing else. Needs the tool `mc`. */
export async function minioUser(server: S3Server, policy: readonly PolicyStatement[]): Promise<MinioUser> {
  users += 1;
  const accessKey = `test-user-${users}`;
  const setSecret = async (): Promise<string> => {
    const secret = randomBytes(16).toString('hex');
    await mc(server, 'admin', 'user', 'add', 's3', accessKey, secret);
    return secret;
  };
  let secretKey = await setSecret();
  const user: MinioUser = {
    endpoint: server.endpoint,
    accessKey,
    get secretKey() {
      return secretKey;
    },
    async setPolicy(statements) {
      await using dir = await tempDir();
      const file = dir.join('policy.json');
      await writeFile(file, JSON.stringify({ Version: '2012-10-17', Statement: statements }));
      await mc(server, 'admin', 'policy', 'create', 's3', accessKey, file);
    },
    async changeSecret() {
      secretKey = await setSecret();
    },
    disable: () => admin('disable'),
    enable: () => admin('enable'),
    remove: () => admin('remove'),
  };
  const admin = async (command: string): Promise<void> => {
    await mc(server, 'admin', 'user', command, 's3', accessKey);
  };
  await user.setPolicy(policy);
  await mc(server, 'admin', 'policy', 'attach', 's3', accessKey, '--user', accessKey);
  return user;
}

/** Statements that allow everything a daemon does in one bucket, but for what is named. */
export function bucketPolicy(bucket: string, without: readonly string[] = []): PolicyStatement[] {
  const allowed = (actions: readonly string[]) => actions.filter((action) => !without.includes(action));
  return [
    {
      Effect: 'Allow' as const,
      Action: allowed(['s3:ListBucket', 's3:GetBucketLocation']),
      Resource: [`arn:aws:s3:::${bucket}`],
    },
    {
      Effect: 'Allow' as const,
      Action: allowed(['s3:GetObject', 's3:PutObject', 's3:DeleteObject']),
      Resource: [`arn:aws:s3:::${bucket}/*`],
    },
  ].filter(({ Action }) => Action.length > 0);
}
