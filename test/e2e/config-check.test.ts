import { writeFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { run } from '../../src/cli/run.ts';
import { capture } from '../helpers/output.ts';
import { tempDir } from '../helpers/process.ts';
import { bucketPolicy, mc, minioUser, startMinio } from '../helpers/s3-server.ts';
import { describeWithTools } from '../helpers/tools.ts';

describeWithTools(['minio', 'mc'], 'config check with S3', () => {
  test('each permission is told apart, and nothing is left, announced or created', async () => {
    await using dir = await tempDir();
    await using minio = await startMinio();
    const bucket = 'checked';
    await mc(minio, 'mb', `s3/${bucket}`);
    const user = await minioUser(minio, bucketPolicy(bucket));
    let code = -1;
    const statuses = async (name = bucket, cleanup = false): Promise<Record<string, string>> => {
      const file = dir.join('ls.yaml');
      writeFileSync(
        file,
        `lmdbs: {main: {path: ${dir.join('main')}, options: {create: true}}}\nstorage:\n  type: s3\n` +
          `  options: {endpoint_url: '${minio.endpoint}', bucket: ${name}, access_key: ${user.accessKey}, secret_key: ${user.secretKey}, ` +
          `create_bucket: true, use_update_marker: true}\n  cleanup: {enabled: ${cleanup}}\n`,
      );
      const io = capture();
      code = await run(['-c', file, 'config', 'check', '--json'], io);
      const stdout = io.out();
      const found = stdout
        .split('\n')
        .filter(Boolean)
        .map((line) => JSON.parse(line) as { check: string; status: string; text: string });
      expect(code).toBe(found.some(({ status }) => status === 'error') ? 1 : 0);
      expect(stdout).not.toContain(user.secretKey);
      return Object.fromEntries(
        found
          .filter(({ check }) => check.startsWith('storage.'))
          .map(({ check, status, text }) => [
            check.slice(8),
            status === 'ok' ? 'ok' : (/s3:\w+/.exec(text)?.[0] ?? text),
          ]),
      );
    };
    const all = { list: 'ok', put: 'ok', get: 'ok', delete: 'ok' };
    expect(await statuses()).toEqual(all);
    expect(await mc(minio, 'ls', `s3/${bucket}`)).toBe('');
    for (const [name, permission] of [
      ['list', 's3:ListBucket'],
      ['put', 's3:PutObject'],
      ['get', 's3:GetObject'],
    ] as const) {
      await user.setPolicy(bucketPolicy(bucket, [permission]));
      expect(await statuses()).toEqual({ ...all, [name]: permission });
      expect(await mc(minio, 'ls', `s3/${bucket}`)).toBe('');
    }
    await user.setPolicy(bucketPolicy(bucket, ['s3:DeleteObject']));
    expect(await statuses()).toMatchObject({ list: 'ok', put: 'ok', get: 'ok' });
    expect(await mc(minio, 'ls', `s3/${bucket}`)).toMatch(/lightningstream-check-[0-9a-f]{12}/);
    // Only the cleaner needs that.
    expect(code).toBe(0);
    await statuses(bucket, true);
    expect(code).toBe(1);
    // The bucket would be created by a start, not by a look.
    await user.setPolicy(bucketPolicy('absent'));
    expect(await statuses('absent')).toEqual({});
    expect(await mc(minio, 'ls', 's3')).not.toContain('absent');
  });
});
