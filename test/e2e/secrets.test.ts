/** Secrets of the configuration show up in no output of the program. */
import { describe, expect, test } from 'vitest';
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
