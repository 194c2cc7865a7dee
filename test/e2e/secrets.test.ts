/** Secrets of the configuration show up in no output of the program. */
import { createServer } from 'node:http';
import { describe, expect, test } from 'vitest';
import { freePort, until } from '../helpers/process.ts';
import { cluster } from './helpers.ts';

const secrets = {
  access_key: 'AKIAPLANTEDACCESSKEY',
  secret_key: 'planted/secret+key==',
  account_key: 'cGxhbnRlZC1hY2NvdW50LWtleQ==',
  password: 'planted-pass word',
};
const planted = [
  ...Object.values(secrets),
  'planted-url-password',
  ...Object.values(secrets).map(encodeURIComponent),
];

function found(text: string): string[] {
  return planted.filter((secret) => text.includes(secret));
}

describe('secrets in the configuration', () => {
  const s3 = {
    storage: {
      type: 's3',
      options: {
        root_path: undefined,
        access_key: secrets.access_key,
        secret_key: secrets.secret_key,
        bucket: 'b',
        endpoint_url: 'https://user:planted-url-password@s3.example.org',
      },
    },
  };

  test('are masked by --log-config', async () => {
    await using net = await cluster(1, s3);
    const { code, stdout, stderr } = await net.instance('a').run({ args: ['--log-config'] });
    expect(code).toBe(0);
    expect(stdout).toContain('bucket');
    expect(found(stdout + stderr)).toEqual([]);
  });

  test.each([['sync'], ['snapshots', 'list'], ['--debug', 'receive', '--only-once']])(
    'are not in what `%s %s %s` says about a storage it cannot use',
    async (...args) => {
      await using net = await cluster(1, s3);
      const { code, stdout, stderr } = await net.instance('a').run({ args });
      expect(code).toBe(1);
      expect(found(stdout + stderr)).toEqual([]);
    },
  );

  test.each(['ECONNREFUSED', 'InvalidAccessKeyId'])(
    'are not on the pages of a daemon whose S3 storage fails with %s',
    async (kind) => {
      // A server that sends the key back, as AWS does.
      const body = `<Error><Code>InvalidAccessKeyId</Code><Message>No such key.</Message><AWSAccessKeyId>${secrets.access_key}</AWSAccessKeyId></Error>`;
      const server = createServer((request, response) => {
        request.resume();
        response.writeHead(403, { 'content-type': 'application/xml' }).end(body);
      });
      const port = await freePort();
      if (kind !== 'ECONNREFUSED') await new Promise<void>((done) => server.listen(port, '127.0.0.1', done));
      try {
        const options = { ...s3.storage.options, endpoint_url: `http://127.0.0.1:${port}` };
        await using net = await cluster(1, { storage: { ...s3.storage, options } });
        const a = net.instance('a');
        const daemon = await a.start({ args: ['--debug', 'sync'] });
        const page = async (path: string): Promise<string> => (await a.page(path)).body;
        await until(async () => (await page('/storage').catch(() => '')).includes(kind), {
          what: `the page of the storage tells of ${kind}`,
          timeoutMs: 30_000,
        });
        const pages = await Promise.all(['/', '/healthz', '/metrics', '/storage'].map(page));
        expect(pages.join('')).toContain('storage_s3_call_error_total{method="list"}');
        expect(found(pages.join('\n') + daemon.stdout() + daemon.stderr())).toEqual([]);
        await a.stop();
      } finally {
        server.closeAllConnections();
        server.close();
      }
    },
  );

  test('are not in complaints about the configuration', async () => {
    await using net = await cluster(1);
    const a = net.instance('a');
    const options = { ...secrets, root_path: net.storagePath };
    for (const config of [
      { storage: { options } },
      { storage: { ...secrets } },
      { storage: { options: secrets.secret_key } },
    ]) {
      const { code, stdout, stderr } = await a.run({ config });
      expect(code).toBe(1);
      expect(found(stdout + stderr)).toEqual([]);
    }
  });
});
