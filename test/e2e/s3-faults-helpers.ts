/** Two instances on a bucket of a real S3 server that gets into trouble, and what an operator sees of it. */
import { mkdir, rename, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect } from 'vitest';
import { until } from '../helpers/process.ts';
import type { S3Account } from '../helpers/s3-server.ts';
import { type Cluster, cluster, DBI, type Instance, type LogEntry } from './helpers.ts';

/** What the log says of trouble with the storage. */
export const FIRST = 'Waiting for the first listing of the storage';
export const LIST = 'Listing the storage failed; trying again';
export const LOAD = 'Load failed, retrying';
export const STORE = 'Store failed, retrying';

/** A failure shows at once as a warning and half a second later as a failure. */
const quick = { interval: '1s', warn_duration: '0s', error_duration: '500ms' };

/** Keys in files, which can be replaced while the daemon runs: both at one moment, as Kubernetes does it. */
export class KeyFiles {
  readonly options: Readonly<Record<string, string>>;
  /** All that were ever in the files. */
  readonly all: string[] = [];
  readonly #directory: string;
  #version = 0;

  constructor(directory: string) {
    this.#directory = directory;
    this.options = {
      access_key_file: join(directory, 'keys', 'access-key'),
      secret_key_file: join(directory, 'keys', 'secret-key'),
      secrets_refresh_interval: '1s',
    };
  }

  async write({ accessKey, secretKey }: Pick<S3Account, 'accessKey' | 'secretKey'>): Promise<void> {
    this.all.push(accessKey, secretKey);
    const version = join(this.#directory, `keys-${++this.#version}`);
    await mkdir(version);
    await writeFile(join(version, 'access-key'), `${accessKey}\n`);
    await writeFile(join(version, 'secret-key'), `${secretKey}\n`);
    await symlink(version, `${version}.link`);
    await rename(`${version}.link`, join(this.#directory, 'keys'));
  }
}

export interface Net extends Cluster {
  readonly a: Instance;
  readonly b: Instance;
  /** Those of `a`; `b` has its account in the configuration. */
  readonly keys: KeyFiles;
  /** Writes to `a` and waits for `b`, and that both hold the same and complain about nothing. */
  agree(key: string): Promise<void>;
}

/** Instances `a` and `b`; `options` are merged into those of the storage of both. */
export async function net(
  account: S3Account,
  bucket: string,
  options: Readonly<Record<string, unknown>> = {},
): Promise<Net> {
  const { endpoint, accessKey, secretKey } = account;
  const made = await cluster(['a', 'b'], {
    health: { storage_list: quick, storage_load: quick, storage_store: quick },
    storage: {
      type: 's3',
      options: {
        root_path: undefined,
        endpoint_url: endpoint,
        access_key: accessKey,
        secret_key: secretKey,
        bucket,
        ...options,
      },
    },
  });
  const [a, b] = [made.instance('a'), made.instance('b')];
  const keys = new KeyFiles(made.directory);
  await keys.write(account);
  return {
    ...made,
    a,
    b,
    keys,
    async agree(key) {
      await a.app.put(DBI, key, 'value');
      await b.has(key, 'value');
      const same = async () => (await a.app.digest()) === (await b.app.digest());
      await until(same, { what: 'both hold the same', timeoutMs: 15_000 });
      await Promise.all([a.ok(), b.ok()]);
    },
  };
}

/** Options of a run. */
export function withOptions(options: Readonly<Record<string, unknown>>): {
  readonly config: { readonly storage: { readonly options: Readonly<Record<string, unknown>> } };
} {
  return { config: { storage: { options } } };
}

/** Warnings and errors of the log, but for what belongs to every first start. */
export function complaints(instance: Instance, stderr?: string): LogEntry[] {
  return instance
    .log(stderr)
    .filter(({ level }) => !['trace', 'debug', 'info'].includes(level))
    .filter(({ msg }) => !/^(LMDB is empty|Created new DBI)/.test(msg));
}

/** What one line has to hold. */
export interface Line {
  readonly msg: string;
  readonly error?: RegExp;
  readonly [field: string]: unknown;
}

/** The complaints so far, all of them, each told in one line. No stack trace among them. */
export function expectComplaints(instance: Instance, ...lines: readonly Line[]): void {
  const wanted = lines.map(({ error, ...fields }): unknown =>
    expect.objectContaining({
      ...fields,
      ...(error === undefined ? {} : { error: expect.stringMatching(error) as unknown }),
    }),
  );
  expect(complaints(instance)).toEqual(wanted);
  expectPlain(instance.daemon.stderr());
}

/** Nothing that only a programmer understands. */
export function expectPlain(stderr: string): void {
  expect(stderr).not.toMatch(/\\n|^ {4}at |node:internal|node_modules/m);
}

/** Waits until the check has been a failure for a while, so that a trouble told again and again would show. */
export async function unhealthy(instance: Instance, check: string, text: RegExp): Promise<void> {
  const name = `main_storage_${check}_failed_duration`;
  await instance.healthy(
    `${check} failing`,
    ({ httpStatus, failures }) => httpStatus === 503 && text.test(failures[name] ?? ''),
    20_000,
  );
  const failed = {
    list: 'lightningstream_syncer_snapshots_list_failed_total',
    load: 'lightningstream_syncer_snapshots_load_failed_total',
    store: 'lightningstream_syncer_snapshots_store_failed_attempts_total',
  }[check]!;
  const before = await instance.metric(failed);
  await until(async () => (await instance.metric(failed)) >= before + 2, {
    what: `more attempts to ${check}`,
    timeoutMs: 20_000,
  });
}

/** Nothing that the daemon shows holds one of the keys. */
export async function expectNoKeys(instance: Instance, keys: readonly string[]): Promise<void> {
  const pages = await Promise.all(
    ['/healthz', '/metrics', '/', '/storage'].map(async (path) => (await instance.page(path)).body),
  );
  for (const text of [instance.daemon.stderr(), instance.daemon.stdout(), ...pages]) {
    for (const key of keys) expect(text).not.toContain(key);
  }
}
