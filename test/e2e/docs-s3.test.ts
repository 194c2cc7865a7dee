/** docs/aws.md and docs/minio.md: their policies allow what they say and nothing that is not needed, and MinIO's client takes their commands. */
import { readFileSync, writeFileSync } from 'node:fs';
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { AbortMultipartUploadCommand, CreateMultipartUploadCommand } from '@aws-sdk/client-s3';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { decodeOptions } from '../../src/config/decode.ts';
import { parseConfig } from '../../src/config/index.ts';
import { storageOptions } from '../../src/storage/open.ts';
import { repositoryRoot, run, tempDir, type TempDir } from '../helpers/process.ts';
import {
  mc,
  minioUser,
  type PolicyStatement,
  type S3Account,
  type S3Server,
  startMinio,
} from '../helpers/s3-server.ts';
import { describeWithTools, toolPath } from '../helpers/tools.ts';
import { openS3, type Options, plainClient } from './storage-s3-helpers.ts';

const { signal } = new AbortController();
const read = (page: string): string => readFileSync(join(repositoryRoot, page), 'utf8');

type Policy = { readonly Statement: readonly PolicyStatement[] };

/** The policies of a page in their order. */
function policies(page: string): readonly (readonly PolicyStatement[])[] {
  const texts = [...read(page).matchAll(/^```json\n([^]*?)^```$/gm)].map(
    ([, text = '']) => JSON.parse(text) as Policy,
  );
  return texts.flatMap(({ Statement }) => (Statement === undefined ? [] : [Statement]));
}

/** `storage.options` of the page's configuration, for this server and these keys. */
function optionsOf(page: string, account: S3Account): Options {
  const [, text = ''] = /^```yaml\n([^]*?)^```$/m.exec(read(page)) ?? [];
  const { storage } = parseConfig(`${text}lmdbs: {main: {path: /x}}\n`, page).config;
  const { bucket, region, globalPrefix } = decodeOptions(storage.options, storageOptions.s3);
  return {
    bucket,
    region,
    global_prefix: globalPrefix,
    endpoint_url: account.endpoint,
    access_key: account.accessKey,
    secret_key: account.secretKey,
  };
}

type Ability = 'list' | 'load' | 'store' | 'store large' | 'delete' | 'abort';
const SYNC: readonly Ability[] = ['list', 'load', 'store', 'store large', 'abort'];
const RECEIVE: readonly Ability[] = ['list', 'load'];

describeWithTools(['minio', 'mc'], 'docs/aws.md and docs/minio.md', () => {
  let minio: S3Server;
  let dir: TempDir;
  let small: string;
  let large: string;

  beforeAll(async () => {
    [minio, dir] = await Promise.all([startMinio(), tempDir()]);
    [small, large] = [dir.join('small'), dir.join('large')];
    writeFileSync(small, 'x');
    // More than one part.
    writeFileSync(large, randomBytes(17 << 20));
    for (const bucket of ['powerdns-example', 'powerdns']) await mc(minio, 'mb', `s3/${bucket}`);
  });
  afterAll(async () => {
    await minio?.[Symbol.asyncDispose]();
    await dir?.[Symbol.asyncDispose]();
  });

  /** What these keys are allowed to do with these options. */
  async function abilities(options: Options, account: S3Account): Promise<readonly Ability[]> {
    await using admin = await openS3({
      ...options,
      access_key: minio.accessKey,
      secret_key: minio.secretKey,
    });
    await admin.storage.store('main__there', small, { signal });
    await using opened = await openS3(options);
    const { storage } = opened;
    const Bucket = String(options['bucket']);
    const Key = `${String(options['global_prefix'])}main__part`;
    const client = plainClient(account);
    const adminClient = plainClient(minio);
    const tries: Readonly<Record<Ability, () => Promise<unknown>>> = {
      list: async () => {
        // As the daemon asks, as with the update marker, and as for a marker file.
        for (const prefix of ['main__', '', 'go']) await storage.list(prefix, { signal });
      },
      load: () => storage.load('main__there', dir.join('copy'), { signal }),
      store: () => storage.store('main__small', small, { signal }),
      'store large': () => storage.store('main__large', large, { signal }),
      delete: () => storage.delete('main__there', { signal }),
      abort: async () => {
        const { UploadId } = await adminClient.send(new CreateMultipartUploadCommand({ Bucket, Key }));
        await client.send(new AbortMultipartUploadCommand({ Bucket, Key, UploadId }));
      },
    };
    const able: Ability[] = [];
    for (const [ability, attempt] of Object.entries(tries) as [Ability, () => Promise<unknown>][]) {
      try {
        await attempt();
        able.push(ability);
      } catch (error) {
        expect([ability, String(error)]).toEqual([
          ability,
          expect.stringMatching(/AccessDenied|Access Denied/),
        ]);
      }
    }
    client.destroy();
    adminClient.destroy();
    return able.toSorted();
  }

  test.each([
    ['docs/aws.md', 0, 'sync', SYNC],
    ['docs/aws.md', 1, 'sync with cleanup', [...SYNC, 'delete']],
    ['docs/aws.md', 2, 'receive', RECEIVE],
    ['docs/minio.md', 0, 'sync', SYNC],
    ['docs/minio.md', 1, 'receive', RECEIVE],
  ] as const)(
    '%s, policy %i: %s, and nothing without one of its actions',
    async (page, index, _name, expected) => {
      const policy = policies(page)[index] ?? [];
      const user = await minioUser(minio, policy);
      const options = optionsOf(page, user);
      const able: readonly Ability[] = expected;
      const all = able.toSorted();
      expect(await abilities(options, user)).toEqual(all);
      for (const action of policy.flatMap(({ Action }) => Action)) {
        const less = policy
          .map((statement) => ({
            ...statement,
            Action: [statement.Action].flat().filter((each) => each !== action),
          }))
          .filter(({ Action }) => Action.length > 0);
        await user.setPolicy(less);
        expect([action, await abilities(options, user)]).not.toEqual([action, all]);
      }
      await user.setPolicy(policy);
      if (options['global_prefix'] !== '')
        expect(await abilities({ ...options, global_prefix: 'others/' }, user)).toEqual([]);
    },
  );

  test('there are no other policies', () => {
    expect([policies('docs/aws.md').length, policies('docs/minio.md').length]).toEqual([3, 2]);
  });

  test('the commands of docs/minio.md make a user who can sync', async () => {
    const page = read('docs/minio.md');
    writeFileSync(dir.join('sync.json'), /^```json\n([^]*?)^```$/m.exec(page)?.[1] ?? '');
    await using server = await startMinio();
    const lines = [
      ...page.matchAll(/^ {4}(mc .*)$/gm),
      ...page.matchAll(/`(mc (?:admin config|ilm rule add --noncurrent)[^`]*)`/g),
    ].map(([, line = '']) => line);
    expect(lines.length).toBe(8);
    const outputs = new Map<string, string>();
    for (const line of lines) {
      const args = line
        .replace(
          'http://127.0.0.1:9000 ADMIN ADMIN_SECRET',
          `${server.endpoint} ${server.accessKey} ${server.secretKey}`,
        )
        .split(' ')
        .slice(1);
      const { code, stdout, stderr } = await run({
        command: toolPath('mc'),
        args: ['--config-dir', dir.join('mc'), '--quiet', ...args],
        env: { HOME: dir.path, MC_UPDATE: 'off' },
        cwd: dir.path,
      });
      expect([line, code, stderr]).toEqual([line, 0, '']);
      outputs.set(line, stdout);
    }
    // What the page says of unfinished uploads.
    expect(outputs.get('mc admin config get minio api')).toMatch(/stale_uploads_expiry=24h/);
    const [, name, secret] = /mc admin user add minio (\S+) (\S+)/.exec(page) ?? [];
    const user = { endpoint: server.endpoint, accessKey: name ?? '', secretKey: secret ?? '' };
    await using opened = await openS3(optionsOf('docs/minio.md', user));
    await opened.storage.store('main__small', small, { signal });
    expect(await opened.storage.list('main__', { signal })).toEqual([{ name: 'main__small', sizeBytes: 1 }]);
  });
});
