/** The S3 servers that other tests rely on do what those expect of them; asked with MinIO's client, not with our own code. */
import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';

import { expect, test } from 'vitest';

import { createCertificateAuthority } from '../helpers/certificates.ts';
import { start, tempDir, until } from '../helpers/process.ts';
import {
  bucketPolicy,
  mc,
  minioUser,
  startMinio,
  startVersitygw,
  type S3Account,
  type S3ServerOptions,
} from '../helpers/s3-server.ts';
import { startTcpProxy } from '../helpers/tcp-proxy.ts';
import { describeWithTools } from '../helpers/tools.ts';

const servers = [
  ['minio', startMinio],
  ['versitygw', startVersitygw],
] as const;

for (const [name, startServer] of servers) {
  describeWithTools([name, 'mc'], name, () => {
    test('what it stores outlives a stop and a kill', async () => {
      await using server = await startServer();
      await mc(server, 'mb', 's3/bucket');
      await put(server, 's3/bucket/object', 'content');
      const firstPid = server.pid;
      await server.stop();
      await expect(fetch(server.endpoint)).rejects.toThrow('fetch failed');
      expect(() => server.pid).toThrow('stopped');
      await server.start();
      expect(await mc(server, 'cat', 's3/bucket/object')).toBe('content');
      await server.kill();
      await server.start();
      expect(await mc(server, 'cat', 's3/bucket/object')).toBe('content');
      expect(server.pid).not.toBe(firstPid);
    });

    test('only who has the key gets anything', async () => {
      await using server = await startServer();
      await mc(server, 'mb', 's3/bucket');
      await expect(mc({ ...server, secretKey: 'wrong-secret' }, 'ls', 's3/bucket')).rejects.toThrow(
        /SignatureDoesNotMatch|signature/,
      );
      expect((await fetch(`${server.endpoint}/bucket`)).status).toBe(403);
    });

    test('speaks TLS', async () => {
      await using ca = await createCertificateAuthority();
      const tls = { ...(await ca.issue({ name: 'server' })), ca: ca.cert } satisfies S3ServerOptions['tls'];
      await using server = await startServer({ tls });
      expect(server.endpoint).toMatch(/^https:/);
      await mc(server, 'mb', 's3/bucket');
    });

    test('is reached through the proxy, which may add TLS', async () => {
      await using ca = await createCertificateAuthority();
      await using server = await startServer();
      await mc(server, 'mb', 's3/bucket');
      for (const tls of [undefined, await ca.issue({ name: 'server' })]) {
        await using proxy = await startTcpProxy({
          targetPort: server.port,
          ...(tls === undefined ? {} : { tls }),
        });
        const endpoint = `${tls === undefined ? 'http' : 'https'}://127.0.0.1:${proxy.port}`;
        const object = randomBytes(100_000).toString('hex');
        await put({ ...server, endpoint }, 's3/bucket/object', object);
        expect(proxy.counts().bytesUp).toBeGreaterThan(object.length);
        expect(await mc(server, 'cat', 's3/bucket/object')).toBe(object);
      }
    });

    test('a server that cannot start says why', async () => {
      await using server = await startServer();
      await expect(startServer({ port: server.port })).rejects.toThrow(/in use/);
    });
  });
}

describeWithTools(['minio', 'mc'], 'a user of MinIO', () => {
  const actions = {
    's3:ListBucket': (account: S3Account) => mc(account, 'ls', 's3/bucket'),
    's3:GetObject': (account: S3Account) => mc(account, 'cat', 's3/bucket/object'),
    's3:PutObject': (account: S3Account) => put(account, 's3/bucket/new', 'x'),
    's3:DeleteObject': (account: S3Account) => mc(account, 'rm', 's3/bucket/object'),
  };

  test('may do what the policy says, until it says something else', async () => {
    await using server = await startMinio();
    await mc(server, 'mb', 's3/bucket');
    await put(server, 's3/bucket/object', 'content');
    const user = await minioUser(server, bucketPolicy('bucket'));
    for (const [action, attempt] of Object.entries(actions)) {
      await user.setPolicy(bucketPolicy('bucket', [action]));
      await expect(attempt(user), `without ${action}`).rejects.toThrow(
        /Access Denied|Insufficient permissions/,
      );
    }
    await user.setPolicy(bucketPolicy('bucket'));
    for (const attempt of Object.values(actions)) await attempt(user);
  });

  test('loses access with the secret, and gets it with the next one', async () => {
    await using server = await startMinio();
    await mc(server, 'mb', 's3/bucket');
    const user = await minioUser(server, bucketPolicy('bucket'));
    const list = (account: S3Account) => mc(account, 'ls', 's3/bucket');
    const before = { ...user };
    await list(before);
    await user.changeSecret();
    await expect(list(before)).rejects.toThrow(/signature/);
    await list(user);
    await user.disable();
    await expect(list(user)).rejects.toThrow('disabled');
    await user.enable();
    await list(user);
    await user.remove();
    await expect(list(user)).rejects.toThrow('does not exist');
  });
});

describeWithTools(['minio'], 'the end of the test process', () => {
  test('is that of the server, even if nothing of ours can run any more', async () => {
    await using dir = await tempDir();
    const script = dir.join('child.ts');
    await writeFile(
      script,
      `import { startMinio } from ${JSON.stringify(`${import.meta.dirname}/../helpers/s3-server.ts`)};
       const server = await startMinio({ dataDir: ${JSON.stringify(dir.join('data'))} });
       console.log('pid ' + server.pid);
       setInterval(() => undefined, 1000);`,
    );
    await using child = await start({
      command: process.execPath,
      args: [script],
      env: { XDG_CACHE_HOME: process.env['XDG_CACHE_HOME'], TMPDIR: dir.path },
    });
    const pid = (await child.waitForOutput(/pid (\d+)/))[1] ?? '';
    expect(existsSync(`/proc/${pid}`)).toBe(true);
    child.kill('SIGKILL');
    await until(() => !existsSync(`/proc/${pid}`), { what: 'MinIO ended' });
  });
});

async function put(account: S3Account, target: string, content: string): Promise<void> {
  await using dir = await tempDir();
  const file = dir.join('object');
  await writeFile(file, content);
  await mc(account, 'cp', file, target);
}
