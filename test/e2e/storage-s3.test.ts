/** The S3 storage on a real MinIO, behind proxies and TLS, and through faults. */
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readFile, stat, unlink, writeFile } from 'node:fs/promises';
import {
  createServer,
  type IncomingMessage,
  request as httpRequest,
  type Server,
  type ServerResponse,
} from 'node:http';
import { type AddressInfo, connect, createServer as createTcpServer, type Socket } from 'node:net';
import { DeleteBucketCommand, HeadObjectCommand } from '@aws-sdk/client-s3';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { StorageError } from '../../src/storage/storage.ts';
import { createCertificateAuthority } from '../helpers/certificates.ts';
import { freePort, type TempDir, tempDir, until } from '../helpers/process.ts';
import { bucketPolicy, minioUser, type S3Server, startMinio } from '../helpers/s3-server.ts';
import { startTcpProxy } from '../helpers/tcp-proxy.ts';
import { describeWithTools } from '../helpers/tools.ts';
import { newBucket, openS3 as open, openUploads, optionsFor, plainClient } from './storage-s3-helpers.ts';

vi.setConfig({ hookTimeout: 90_000, testTimeout: 60_000 });

const { signal } = new AbortController();
const MIB = 1 << 20;

let scratch: TempDir;
beforeEach(async () => {
  scratch = await tempDir();
});
afterEach(() => scratch[Symbol.asyncDispose]());

/** Opened, and asked once: the server is not before the first call. */
async function openS3(...args: Parameters<typeof open>): ReturnType<typeof open> {
  const opened = await open(...args);
  try {
    await opened.storage.list('', { signal });
  } catch (error) {
    await opened.storage.close();
    throw error;
  }
  return opened;
}

async function fileWith(content: Uint8Array | string): Promise<string> {
  const path = scratch.join(randomBytes(6).toString('hex'));
  await writeFile(path, content);
  return path;
}

async function failure(call: Promise<unknown>): Promise<StorageError> {
  const error = await call.then(
    () => expect.fail('the call succeeded'),
    (thrown: unknown) => thrown,
  );
  expect(error).toBeInstanceOf(StorageError);
  expect((error as Error).message).not.toContain('\n');
  return error as StorageError;
}

describeWithTools(['minio', 'mc'], 'S3 storage on MinIO', () => {
  let server: S3Server;
  let bucket: string;
  beforeAll(async () => {
    server = await startMinio();
  });
  afterAll(() => server[Symbol.asyncDispose]());
  beforeEach(async () => {
    bucket = await newBucket(server);
  });

  describe('says in one line what is wrong', () => {
    test('an access key that the server does not know', async () => {
      const error = await failure(openS3({ ...optionsFor(server, bucket), access_key: 'nobody-knows' }));
      expect(error).toMatchObject({ code: 'InvalidAccessKeyId', operation: 'list' });
      expect(error.message).toContain(
        'does not know the access key, or it is disabled; check access_key and secret_key',
      );
      expect(error.message).toContain(
        `(HTTP 403, InvalidAccessKeyId): bucket "${bucket}" at ${server.endpoint}`,
      );
      expect(error.fields).toMatchObject({ http_status: 403, bucket, endpoint: server.endpoint });
      expect(error.fields['request_id']).toMatch(/^[0-9A-F]+$/);
      expect(error.message).not.toContain(String(error.fields['request_id']));
    });

    test('a wrong secret key', async () => {
      const error = await failure(openS3({ ...optionsFor(server, bucket), secret_key: 'not-the-secret' }));
      expect(error.code).toBe('SignatureDoesNotMatch');
      expect(error.message).toContain('the secret key is wrong; check access_key and secret_key');
    });

    test('no bucket, neither at the start nor later', async () => {
      const error = await failure(openS3(optionsFor(server, 'there-is-none')));
      expect(error.code).toBe('NoSuchBucket');
      expect(error.message).toContain(
        'the bucket does not exist; create it, set storage.options.create_bucket',
      );
      await using opened = await openS3(optionsFor(server, bucket));
      const client = plainClient(server);
      await client.send(new DeleteBucketCommand({ Bucket: bucket }));
      client.destroy();
      const path = await fileWith('x');
      const calls = [
        () => opened.storage.list('', { signal }),
        () => opened.storage.load('object', `${path}2`, { signal }),
        () => opened.storage.store('object', path, { signal }),
        () => opened.storage.delete('object', { signal }),
        () => opened.storage.readSmall('object', { signal }),
      ];
      for (const call of calls) expect((await failure(call())).code).toBe('NoSuchBucket');
      expect(opened.calls.slice(1).map(([, error]) => error)).toEqual(calls.map(() => 'NoSuchBucket'));
    });

    test.each([
      ['list', 's3:ListBucket'],
      ['load', 's3:GetObject'],
      ['store', 's3:PutObject'],
      ['delete', 's3:DeleteObject'],
    ] as const)('no permission to %s', async (operation, permission) => {
      const user = await minioUser(server, bucketPolicy(bucket));
      await using opened = await openS3(optionsFor(user, bucket));
      const { storage } = opened;
      const path = await fileWith('x');
      await storage.store('object', path, { signal });
      await user.setPolicy(bucketPolicy(bucket, [permission]));
      const calls = {
        list: () => storage.list('', { signal }),
        load: () => storage.load('object', `${path}2`, { signal }),
        store: () => storage.store('object', path, { signal }),
        delete: () => storage.delete('object', { signal }),
      };
      const error = await failure(calls[operation]());
      expect(error).toMatchObject({ code: 'AccessDenied', operation });
      expect(error.message).toContain(`the keys have no permission for this; they need ${permission}`);
      if (operation === 'load') await expect(stat(`${path}2`)).rejects.toMatchObject({ code: 'ENOENT' });
      await user.setPolicy(bucketPolicy(bucket));
      await calls[operation]();
    });

    test('no permission to store a large object: none of its parts stays', async () => {
      const user = await minioUser(server, bucketPolicy(bucket));
      await using opened = await openS3(optionsFor(user, bucket));
      await user.setPolicy(bucketPolicy(bucket, ['s3:PutObject']));
      const error = await failure(
        opened.storage.store('object', await fileWith(Buffer.alloc(40 * MIB)), { signal }),
      );
      expect(error.code).toBe('AccessDenied');
      expect(await openUploads(server, bucket)).toEqual([]);
    });
  });

  test('a server that is away at the start is found later', async () => {
    const proxy = await startTcpProxy({ targetPort: server.port });
    await using _proxy = proxy;
    await proxy.set({ kind: 'refuse' });
    const options = { ...optionsFor(server, bucket), endpoint_url: `http://127.0.0.1:${proxy.port}` };
    await using opened = await open(options);
    const error = await failure(opened.storage.list('', { signal }));
    expect(error.code).toBe('ECONNREFUSED');
    expect(error.message).toContain('nothing listens there; check storage.options.endpoint_url');
    expect(opened.calls.at(-1)).toEqual(['list', 'URLError']);
    await proxy.set({ kind: 'pass' });
    expect(await opened.storage.list('', { signal })).toEqual([]);
  });

  test('a host name that nobody knows', async () => {
    const options = { ...optionsFor(server, bucket), endpoint_url: 'http://s3.invalid:9000' };
    await using opened = await open(options);
    const error = await failure(opened.storage.list('', { signal }));
    expect(error.message).toContain('the host name is not known; check storage.options.endpoint_url');
    expect(opened.calls.at(-1)).toEqual(['list', 'DNSError']);
  });

  describe('create_bucket', () => {
    test('makes the bucket, and takes one that is there', async () => {
      const options = { ...optionsFor(server, `new-${bucket}`), create_bucket: true };
      for (const methods of [['list', 'create-bucket', 'list'], ['list']]) {
        await using opened = await openS3(options);
        expect(opened.calls.map(([method]) => method)).toEqual(methods);
        expect(await opened.storage.list('', { signal })).toEqual([]);
      }
    });

    test('several instances at once make it together', async () => {
      const options = { ...optionsFor(server, `new-${bucket}`), create_bucket: true };
      const all = await Promise.all(Array.from({ length: 5 }, () => openS3(options)));
      for (const { storage } of all) {
        expect(await storage.list('', { signal })).toEqual([]);
        await storage.close();
      }
    });
  });

  test('global_prefix, hide_folders, prefix_folders', async () => {
    const path = await fileWith('12345');
    {
      await using whole = await openS3(optionsFor(server, bucket));
      for (const name of [
        'a',
        'site/b',
        'site/c',
        'site/sub/d',
        'site/sub/e',
        'sitelong',
        'site/update-marker',
      ])
        await whole.storage.store(name, path, { signal });
      expect((await whole.storage.list('site/', { signal })).map(({ name }) => name)).toContain('site/sub/d');
    }
    const listed = async (more: object, prefix = ''): Promise<readonly string[]> => {
      await using opened = await openS3({ ...optionsFor(server, bucket), global_prefix: 'site/', ...more });
      return (await opened.storage.list(prefix, { signal })).map(
        ({ name, sizeBytes }) => `${name} ${sizeBytes}`,
      );
    };
    expect(await listed({})).toEqual(['b 5', 'c 5', 'sub/d 5', 'sub/e 5']);
    expect(await listed({ hide_folders: true })).toEqual(['b 5', 'c 5']);
    expect(await listed({ hide_folders: true }, 'sub/')).toEqual(['sub/d 5', 'sub/e 5']);
    expect(await listed({ prefix_folders: true })).toEqual(['b 5', 'c 5', 'sub/ 0']);
    expect(await listed({}, 'c')).toEqual(['c 5']);
    await using opened = await openS3({ ...optionsFor(server, bucket), global_prefix: 'site/' });
    expect(await opened.storage.readSmall('b', { signal })).toBe('12345');
    await opened.storage.delete('b', { signal });
    expect(await opened.storage.readSmall('b', { signal })).toBeUndefined();
  });

  test.each(['/begins/', 'a//b/', 'a/./b/', 'a/../b/', './'])(
    'a warning for the global prefix %j, below which nothing may be found',
    async (global_prefix) => {
      await using opened = await open({ ...optionsFor(server, bucket), global_prefix });
      expect(opened.log.text()).toContain('storage.options.global_prefix should not begin with');
      await using aws = await open({ bucket, access_key: 'a', secret_key: 's', global_prefix });
      expect(aws.log.text()).toBe('');
    },
  );

  test('storage_class is stored', async () => {
    await using opened = await openS3({ ...optionsFor(server, bucket), storage_class: 'REDUCED_REDUNDANCY' });
    await opened.storage.store('object', await fileWith('x'), { signal });
    const client = plainClient(server);
    const head = await client.send(new HeadObjectCommand({ Bucket: bucket, Key: 'object' }));
    client.destroy();
    expect(head.StorageClass).toBe('REDUCED_REDUNDANCY');
  });

  test.each([[{}], [{ disable_send_content_md5: true }], [{ num_minio_threads: 1 }]])(
    'objects around the limits of parts come back as they were: %j',
    async (more) => {
      await using opened = await openS3({ ...optionsFor(server, bucket), ...more });
      const all = randomBytes(33 * MIB);
      for (const size of [1, 16 * MIB, 16 * MIB + 1, 32 * MIB, 33 * MIB]) {
        const content = all.subarray(0, size);
        const path = await fileWith(content);
        const etag = await opened.storage.storeTagged('object', path, { signal });
        // What MinIO itself says: of an object in parts, the number of parts is in it.
        const client = plainClient(server);
        const head = await client.send(new HeadObjectCommand({ Bucket: bucket, Key: 'object' }));
        client.destroy();
        expect(`"${etag}"`).toBe(head.ETag);
        expect(Number(/-(\d+)$/.exec(etag)?.[1] ?? 1)).toBe(Math.ceil(size / (16 * MIB)));
        await opened.storage.load('object', path, { signal });
        expect((await readFile(path)).equals(content)).toBe(true);
      }
    },
  );

  test('readSmall and writeSmall', async () => {
    await using opened = await openS3(optionsFor(server, bucket));
    const { storage } = opened;
    const etag = await storage.writeSmall('small', 'tëxt', { signal });
    expect(etag).toMatch(/^[0-9a-f]{32}$/);
    expect(await storage.readSmall('small', { signal })).toBe('tëxt');
    await storage.store('large', await fileWith(Buffer.alloc(65_537)), { signal });
    expect((await failure(storage.readSmall('large', { signal }))).code).toBe('TOO_LARGE');
  });

  describe('through a bad network', () => {
    test('a download that breaks goes on where it was', async () => {
      const content = randomBytes(8 * MIB);
      await using proxy = await startTcpProxy({ targetPort: server.port });
      const options = { ...optionsFor(server, bucket), endpoint_url: `http://127.0.0.1:${proxy.port}` };
      await using opened = await openS3(options);
      const path = await fileWith(content);
      await opened.storage.store('object', path, { signal });
      // No connection carries all of it: a download from the start would never end.
      await proxy.set({ kind: 'cut', afterBytes: 3 * MIB, direction: 'down' });
      expect(await opened.storage.load('object', `${path}2`, { signal })).toBe(content.length);
      expect((await readFile(`${path}2`)).equals(content)).toBe(true);
    });

    test('an object that is replaced while a download is broken comes whole, and new', async () => {
      await using proxy = await startTcpProxy({ targetPort: server.port });
      const options = { ...optionsFor(server, bucket), endpoint_url: `http://127.0.0.1:${proxy.port}` };
      await using behind = await openS3(options);
      await using direct = await openS3(optionsFor(server, bucket));
      await direct.storage.store('object', await fileWith(Buffer.alloc(8 * MIB, 1)), { signal });
      const next = Buffer.alloc(5 * MIB, 2);
      const nextPath = await fileWith(next);
      await proxy.set({ kind: 'cut', afterBytes: 2 * MIB, direction: 'down' });
      const target = scratch.join('target');
      const loading = behind.storage.load('object', target, { signal });
      // Some of the old one has come.
      await until(async () => (await stat(target).catch(() => undefined))?.size, { what: 'the first bytes' });
      await proxy.set({ kind: 'hang' });
      proxy.cutAll();
      await direct.storage.store('object', nextPath, { signal });
      await proxy.set({ kind: 'pass' });
      const size = await loading;
      const got = await readFile(target);
      expect(got.length).toBe(size);
      expect([got[0], got.every((byte) => byte === got[0])]).toEqual([2, true]);
      expect(size).toBe(next.length);
    });

    test('an upload that breaks is done again, and nothing of it stays', async () => {
      const content = randomBytes(40 * MIB);
      await using proxy = await startTcpProxy({ targetPort: server.port });
      const options = { ...optionsFor(server, bucket), endpoint_url: `http://127.0.0.1:${proxy.port}` };
      await using opened = await openS3(options);
      const path = await fileWith(content);
      const storing = opened.storage.store('object', path, { signal });
      await until(() => proxy.counts().bytesUp > 5 * MIB, { what: 'parts are on their way' });
      proxy.cutAll();
      await storing;
      expect(opened.log.text()).toContain('a request is tried again');
      await opened.storage.load('object', path, { signal });
      expect((await readFile(path)).equals(content)).toBe(true);
      expect(await openUploads(server, bucket)).toEqual([]);
    });

    test('an upload that is aborted leaves nothing', async () => {
      await using proxy = await startTcpProxy({ targetPort: server.port });
      const options = { ...optionsFor(server, bucket), endpoint_url: `http://127.0.0.1:${proxy.port}` };
      await using opened = await openS3(options);
      const controller = new AbortController();
      const reason = new Error('enough');
      const path = await fileWith(Buffer.alloc(60 * MIB));
      const storing = opened.storage.store('object', path, { signal: controller.signal });
      await until(() => proxy.counts().bytesUp > 5 * MIB, { what: 'parts are on their way' });
      expect(await openUploads(server, bucket), 'it is one in parts').toEqual(['object']);
      controller.abort(reason);
      await expect(storing).rejects.toBe(reason);
      expect(await openUploads(server, bucket)).toEqual([]);
      expect(await opened.storage.list('', { signal })).toEqual([]);
    });

    test('client_timeout ends a call that hangs', async () => {
      await using proxy = await startTcpProxy({ targetPort: server.port });
      const options = {
        ...optionsFor(server, bucket),
        endpoint_url: `http://127.0.0.1:${proxy.port}`,
        client_timeout: '400ms',
      };
      await using opened = await openS3(options);
      await proxy.set({ kind: 'hang' });
      const error = await failure(opened.storage.list('', { signal }));
      expect(error.code).toBe('TIMEOUT');
      expect(error.message).toContain('no end within 400ms (storage.options.client_timeout)');
      expect(opened.calls.at(-1)).toEqual(['list', 'Timeout']);
    });
  });

  describe('keys in files', () => {
    test('are used anew when they change, a half change included', async () => {
      const first = await minioUser(server, bucketPolicy(bucket));
      const second = await minioUser(server, bucketPolicy(bucket));
      const [access, secret] = [
        await fileWith(`${first.accessKey}\n`),
        await fileWith(`${first.secretKey}\n`),
      ];
      const options = {
        endpoint_url: server.endpoint,
        bucket,
        access_key_file: access,
        secret_key_file: secret,
        // Only what the server refuses makes it look.
        secrets_refresh_interval: '1h',
      };
      await using opened = await openS3(options);
      const { storage, log, secrets } = opened;
      await first.disable();
      // The old ones stay in the files for now: no others can be found.
      expect((await failure(storage.list('', { signal }))).message).toContain(
        'check access_key_file and secret_key_file',
      );
      await writeFile(access, second.accessKey);
      await writeFile(secret, second.secretKey);
      expect(await storage.list('', { signal })).toEqual([]);
      expect(log.text()).toContain('S3 credentials have changed');
      await second.changeSecret();
      await writeFile(secret, second.secretKey);
      expect(await storage.list('', { signal })).toEqual([]);
      for (const { accessKey, secretKey } of [first, second]) {
        expect(secrets).toContain(accessKey);
        expect(secrets).toContain(secretKey);
      }
    });

    test('a half done rotation, an empty file and one that is away keep the old pair', async () => {
      const [access, secret] = [await fileWith(server.accessKey), await fileWith(server.secretKey)];
      const options = {
        endpoint_url: server.endpoint,
        bucket,
        access_key_file: access,
        secret_key_file: secret,
        secrets_refresh_interval: '1s',
      };
      await using opened = await openS3(options);
      const works = async (): Promise<void> => {
        await new Promise((done) => setTimeout(done, 1050));
        expect(await opened.storage.list('', { signal })).toEqual([]);
      };
      await writeFile(access, 'half-a-rotation');
      await works();
      expect(opened.log.text()).not.toContain('have changed');
      await writeFile(access, '');
      await works();
      await works();
      await unlink(access);
      await works();
      await works();
      await works();
      const warnings = opened.log.text().match(/cannot be read anew/g) ?? [];
      expect(warnings, 'once for each cause that stays').toHaveLength(2);
      expect(opened.log.text()).not.toContain(server.secretKey);
    });

    test('that are not there at the start are named', async () => {
      const options = { bucket, access_key_file: '/nonexistent/key', secret_key_file: '/nonexistent/secret' };
      const error = await failure(openS3({ ...options, endpoint_url: server.endpoint }));
      expect(error).toMatchObject({ code: 'ENOENT', operation: 'open' });
      expect(error.message).toContain('/nonexistent/key (storage.options.access_key_file)');
    });
  });

  describe('TLS', () => {
    test('own authorities, client certificates, and what is said about them', async () => {
      await using ca = await createCertificateAuthority();
      await using otherCa = await createCertificateAuthority('another CA');
      const [serverCert, client, elsewhere] = [
        await ca.issue({ name: 'server' }),
        await ca.issue({ name: 'client' }),
        await ca.issue({ name: 'elsewhere', altNames: 'DNS:elsewhere.example.org' }),
      ];
      await using tls = await startTcpProxy({ targetPort: server.port, tls: serverCert });
      await using mutual = await startTcpProxy({
        targetPort: server.port,
        tls: { ...serverCert, clientCa: ca.cert },
      });
      await using misnamed = await startTcpProxy({ targetPort: server.port, tls: elsewhere });
      const at = ({ port }: { readonly port: number }, tlsOptions: object): Parameters<typeof openS3>[0] => ({
        ...optionsFor(server, bucket),
        endpoint_url: `https://127.0.0.1:${port}`,
        tls: tlsOptions,
      });
      const works = async (options: Parameters<typeof openS3>[0]): Promise<void> => {
        await using opened = await openS3(options);
        const content = randomBytes(20 * MIB);
        const path = await fileWith(content);
        await opened.storage.store('object', path, { signal });
        await opened.storage.load('object', `${path}2`, { signal });
        expect((await readFile(`${path}2`)).equals(content)).toBe(true);
      };
      const refused = async (options: Parameters<typeof openS3>[0]): Promise<string> =>
        (await failure(openS3(options))).message;

      await works(at(tls, { ca_file: ca.certFile }));
      await works(at(tls, { ca: ca.cert, add_system_ca_pool: true }));
      await works(at(misnamed, { insecure_skip_verify: true }));
      await works(at(mutual, { ca_file: ca.certFile, cert_file: client.certFile, key_file: client.keyFile }));
      await works(at(mutual, { ca: ca.cert, cert: client.cert, key: client.key }));
      expect(await refused(at(tls, {}))).toContain('name its CA in storage.options.tls.ca_file');
      expect(await refused(at(tls, { ca_file: otherCa.certFile }))).toContain('storage.options.tls.ca_file');
      expect(await refused(at(misnamed, { ca_file: ca.certFile }))).toContain('for another host name');
      expect(await refused(at(server, { ca_file: ca.certFile }))).toContain('the server does not speak TLS');
      expect(await refused(at(tls, { ca_file: '/nonexistent/ca' }))).toContain(
        '(storage.options.tls.ca_file)',
      );
      expect(await refused(at(tls, { ca: 'x' }))).toContain(
        'storage.options.tls.ca: there is no certificate',
      );
      const mixed = { ca_file: ca.certFile, cert: client.cert, key: serverCert.key };
      expect(await refused(at(mutual, mixed))).toContain('the certificates or the key cannot be used');
      await using without = await openS3(at(mutual, { ca_file: ca.certFile })).catch((error: unknown) => {
        expect((error as Error).message).toMatch(/refused our client certificate|the connection broke/);
        return { [Symbol.asyncDispose]: () => Promise.resolve() };
      });
      expect('storage' in without, 'without a certificate').toBe(false);
    });

    test('watched files are used without a restart; the key log is written', async () => {
      await using ca = await createCertificateAuthority();
      await using otherCa = await createCertificateAuthority('another CA');
      const serverCert = await ca.issue({ name: 'server' });
      const caFile = await fileWith(ca.cert);
      const keyLog = scratch.join('keys');
      await using first = await startTcpProxy({ targetPort: server.port, tls: serverCert });
      await using opened = await openS3({
        ...optionsFor(server, bucket),
        endpoint_url: `https://127.0.0.1:${first.port}`,
        tls: {
          ca_file: caFile,
          watch_certs: true,
          watch_certs_poll_interval: '50ms',
          insecure_key_log_file: keyLog,
        },
      });
      await until(async () => (await readFile(keyLog, 'utf8').catch(() => '')).includes('CLIENT_'), {
        what: 'keys are logged',
      });
      await writeFile(caFile, otherCa.cert);
      await until(() => opened.log.text().includes('certificate files have changed'), {
        what: 'it was noticed',
      });
      first.cutAll();
      expect((await failure(opened.storage.list('', { signal }))).message).toContain('tls.ca_file');
      await writeFile(caFile, ca.cert);
      await until(
        () =>
          opened.storage.list('', { signal }).then(
            () => true,
            () => false,
          ),
        { what: 'it works again' },
      );
    });
  });

  describe('proxies', () => {
    test.each(['http', 'https'] as const)('%s by the environment', async (scheme) => {
      await using ca = await createCertificateAuthority();
      const cert = await ca.issue({ name: 'server', altNames: 'DNS:s3.example.test' });
      await using tls = await startTcpProxy({ targetPort: server.port, tls: cert });
      const targetPort = scheme === 'http' ? server.port : tls.port;
      await using proxy = await startHttpProxy(targetPort);
      const port = await freePort();
      const options = {
        ...optionsFor(server, bucket),
        endpoint_url: `${scheme}://s3.example.test:${port}`,
        tls: { ca: ca.cert },
      };
      const url = `http://someone:pass%2Fword@127.0.0.1:${proxy.port}`;
      await using opened = await openS3(options, { [`${scheme}_proxy`]: url });
      const content = randomBytes(20 * MIB);
      const path = await fileWith(content);
      await opened.storage.store('object', path, { signal });
      await opened.storage.load('object', `${path}2`, { signal });
      expect((await readFile(`${path}2`)).equals(content)).toBe(true);
      const method = scheme === 'http' ? 'GET' : 'CONNECT';
      expect(proxy.seen).toContain(`${method} s3.example.test:${port} someone:pass/word`);
      // And what is exempted goes its own way, which leads nowhere here.
      await using direct = await open(options, { [`${scheme}_proxy`]: url, no_proxy: '.example.test' });
      expect((await failure(direct.storage.list('', { signal }))).message).toContain(
        'the host name is not known',
      );
      const seen = proxy.seen.length;
      proxy.refuse();
      await using refused = await open(options, { [`${scheme}_proxy`]: url });
      const { message } = await failure(refused.storage.list('', { signal }));
      expect(message).toContain(`127.0.0.1:${proxy.port}`);
      expect(message).toContain('proxy');
      expect(message).not.toContain('pass');
      expect(proxy.seen.length).toBeGreaterThan(seen);
    });

    test.each(['http', 'https'] as const)('%s through SOCKS5', async (scheme) => {
      await using ca = await createCertificateAuthority();
      const cert = await ca.issue({ name: 'server', altNames: 'DNS:s3.example.test' });
      await using tls = await startTcpProxy({ targetPort: server.port, tls: cert });
      await using proxy = await startSocksProxy(scheme === 'http' ? server.port : tls.port);
      const options = {
        ...optionsFor(server, bucket),
        endpoint_url: `${scheme}://s3.example.test:${await freePort()}`,
        tls: { ca: ca.cert },
      };
      const url = `socks5://someone:pass%2Fword@127.0.0.1:${proxy.port}`;
      await using opened = await openS3(options, { [`${scheme}_proxy`]: url });
      const content = randomBytes(20 * MIB);
      const path = await fileWith(content);
      await opened.storage.store('object', path, { signal });
      await opened.storage.load('object', `${path}2`, { signal });
      expect((await readFile(`${path}2`)).equals(content)).toBe(true);
      expect(proxy.seen).toContain('someone:pass/word');
    });
  });
});

describe('S3 storage and servers that fail', () => {
  /** Answers each request with what `answer` gives. */
  async function startFake(
    answer: (count: number, method: string, url: string, headers: NodeJS.Dict<string | string[]>) => Answer,
  ): Promise<AsyncDisposable & { readonly options: Parameters<typeof openS3>[0]; readonly seen: string[] }> {
    const seen: string[] = [];
    const fake = createServer((request, response) => {
      const { method = '', url = '' } = request;
      seen.push(`${method} ${url}`);
      request.resume();
      request.on('end', () => {
        const { status, headers = {}, body = '' } = answer(seen.length, method, url, request.headers);
        response.writeHead(status, { 'x-amz-request-id': `ID${seen.length}`, ...headers });
        response.end(body);
      });
    });
    fake.listen(0, '127.0.0.1');
    await once(fake, 'listening');
    const endpoint = `http://127.0.0.1:${(fake.address() as AddressInfo).port}`;
    return {
      seen,
      options: { endpoint_url: endpoint, bucket: 'b', access_key: 'ak-fake', secret_key: 'sk-fake' },
      async [Symbol.asyncDispose]() {
        await close(fake);
      },
    };
  }
  interface Answer {
    readonly status: number;
    readonly headers?: Readonly<Record<string, string>>;
    readonly body?: string | Buffer;
  }
  const xml = { 'content-type': 'application/xml' };
  const listing: Answer = {
    status: 200,
    headers: xml,
    body: '<?xml version="1.0"?><ListBucketResult><Name>b</Name><KeyCount>0</KeyCount><IsTruncated>false</IsTruncated></ListBucketResult>',
  };
  const s3Error = (status: number, code: string, more = '', headers = {}): Answer => ({
    status,
    headers: { ...xml, ...headers },
    body: `<?xml version="1.0"?><Error><Code>${code}</Code><Message>${code} happened.</Message>${more}</Error>`,
  });

  test('SlowDown is waited for as the server asks', async () => {
    await using fake = await startFake((count) =>
      count === 2 ? s3Error(503, 'SlowDown', '', { 'retry-after': '1' }) : listing,
    );
    await using opened = await openS3(fake.options);
    expect(await opened.storage.list('', { signal })).toEqual([]);
    expect(fake.seen).toHaveLength(3);
    const again =
      opened.log
        .text()
        .split('\n')
        .find((line) => line.includes('tried again')) ?? '';
    expect(again).toContain('SlowDown');
    const delay = /delay_ms=(\d+)/.exec(again)?.[1];
    expect(Number(delay)).toBeGreaterThanOrEqual(1000);
    expect(opened.calls).toEqual([
      ['list', undefined],
      ['list', undefined],
    ]);
  });

  test('trouble that stays is told after three attempts, in the same words each time', async () => {
    await using fake = await startFake((count) => (count === 1 ? listing : s3Error(500, 'InternalError')));
    await using opened = await openS3(fake.options);
    const errors = [
      await failure(opened.storage.list('', { signal })),
      await failure(opened.storage.list('', { signal })),
    ];
    expect(fake.seen).toHaveLength(7);
    expect(errors[0]?.message).toBe(errors[1]?.message);
    expect(errors.map(({ fields }) => fields['request_id'])).toEqual(['ID4', 'ID7']);
    expect(opened.calls.at(-1)).toEqual(['list', 'InternalError']);
  });

  test('a wait between attempts can be aborted', async () => {
    await using fake = await startFake((count) =>
      count === 1 ? listing : s3Error(503, 'SlowDown', '', { 'retry-after': '3600' }),
    );
    await using opened = await openS3(fake.options);
    const controller = new AbortController();
    const listing_ = opened.storage.list('', { signal: controller.signal });
    await until(() => fake.seen.length === 2, { what: 'it was refused once' });
    controller.abort(new Error('enough'));
    await expect(listing_).rejects.toThrow('enough');
  });

  test.each([
    [
      'a page of a web server',
      { status: 200, headers: { 'content-type': 'text/html' }, body: '<html><body>Welcome</body></html>' },
    ],
    [
      'another page of one',
      { status: 404, headers: { 'content-type': 'text/html' }, body: '<!DOCTYPE html><p>Not found' },
    ],
    ['plain text', { status: 400, body: 'Client sent an HTTP request to an HTTPS server.\n' }],
    ['nothing at all', { status: 200 }],
  ])('%s is no empty bucket', async (_title, page) => {
    await using fake = await startFake(() => page);
    const { message } = await failure(openS3(fake.options));
    expect(message).toContain('this is not the answer of an S3 server; check storage.options.endpoint_url');
  });

  test('an object without an ETag is none', async () => {
    await using fake = await startFake((count) => (count === 1 ? listing : { status: 200, body: '<html>' }));
    await using opened = await openS3(fake.options);
    const path = scratch.join('target');
    const { message } = await failure(opened.storage.load('object', path, { signal }));
    expect(message).toContain('this is not the answer of an S3 server');
    await expect(stat(path)).rejects.toMatchObject({ code: 'ENOENT' });
    expect(
      (await failure(opened.storage.store('object', await fileWith('x'), { signal }))).message,
    ).toContain('this is not the answer of an S3 server');
  });

  test('an object whose length is not told is none: its end cannot be told from a broken connection', async () => {
    const rude = createTcpServer((socket) => {
      socket.on('error', () => undefined);
      socket.once('data', () => socket.end('HTTP/1.1 200 OK\r\nETag: "e"\r\n\r\nhalf of it'));
    });
    rude.listen(0, '127.0.0.1');
    await once(rude, 'listening');
    await using opened = await open({
      endpoint_url: `http://127.0.0.1:${(rude.address() as AddressInfo).port}`,
      bucket: 'b',
      access_key: 'a',
      secret_key: 's',
    });
    const target = scratch.join('target');
    const { message } = await failure(opened.storage.load('object', target, { signal }));
    expect(message).toContain('this is not the answer of an S3 server');
    await expect(stat(target)).rejects.toMatchObject({ code: 'ENOENT' });
    rude.close();
  });

  test('another region is named', async () => {
    await using fake = await startFake(() =>
      s3Error(400, 'AuthorizationHeaderMalformed', '<Region>eu-north-1</Region>'),
    );
    const { message } = await failure(openS3(fake.options));
    expect(message).toContain(
      'the bucket is not in region us-east-1: it is eu-north-1; correct storage.options.region',
    );
    await using moved = await startFake(() =>
      s3Error(301, 'PermanentRedirect', '', { 'x-amz-bucket-region': 'eu-west-3' }),
    );
    expect((await failure(openS3(moved.options))).message).toContain('it is eu-west-3');
    await using web = await startFake(() => ({ status: 301, headers: { location: 'https://127.0.0.1/' } }));
    expect((await failure(openS3(web.options))).message).toContain('the server sends to another address');
  });

  test('a wrong clock is corrected by the server, or told', async () => {
    const hourAhead = (): Date => new Date(Date.now() + 3_600_000);
    const isNear = (amzDate: unknown): boolean => {
      const [, y, mo, d, h, mi, s] = /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z$/.exec(String(amzDate)) ?? [];
      return Math.abs(Date.parse(`${y}-${mo}-${d}T${h}:${mi}:${s}Z`) - hourAhead().getTime()) < 900_000;
    };
    await using fake = await startFake((_count, _method, _url, headers) =>
      isNear(headers['x-amz-date'])
        ? { ...listing, headers: { ...xml, date: hourAhead().toUTCString() } }
        : s3Error(403, 'RequestTimeTooSkewed', '', { date: hourAhead().toUTCString() }),
    );
    await using opened = await openS3(fake.options);
    expect(await opened.storage.list('', { signal })).toEqual([]);
    expect(fake.seen, 'corrected once, for good').toHaveLength(3);
    await using stubborn = await startFake((count) =>
      count === 1 ? listing : s3Error(403, 'RequestTimeTooSkewed'),
    );
    await using other = await openS3(stubborn.options);
    const { message } = await failure(other.storage.list('', { signal }));
    expect(message).toContain('the clock of this host and that of the server differ too much; set the clock');
  });

  test('an upload in parts whose end fails within an answer of 200 is taken back', async () => {
    await using fake = await startFake((count, method, url) => {
      if (count === 1) return listing;
      if (method === 'POST' && url.includes('uploads'))
        return {
          status: 200,
          headers: xml,
          body: '<InitiateMultipartUploadResult><UploadId>up</UploadId></InitiateMultipartUploadResult>',
        };
      if (method === 'PUT') return { status: 200, headers: { etag: '"part"' } };
      if (method === 'POST') return s3Error(200, 'InternalError');
      return { status: 204 };
    });
    await using opened = await openS3(fake.options);
    const error = await failure(
      opened.storage.store('object', await fileWith(Buffer.alloc(17 * MIB)), { signal }),
    );
    expect(error.code).toBe('InternalError');
    expect(fake.seen.at(-1)).toBe('DELETE /b/object?uploadId=up&x-id=AbortMultipartUpload');
  });

  test('keys that are replaced while the parts of an upload are on their way', async () => {
    const [access, secret] = [await fileWith('old'), await fileWith('old-secret')];
    let valid = 'old';
    const held: (() => void)[] = [];
    const answer = ({ method = '', url = '', headers }: IncomingMessage, response: ServerResponse): void => {
      const { status, body = '' } =
        headers.authorization?.includes(`Credential=${valid}/`) !== true
          ? s3Error(403, 'InvalidAccessKeyId')
          : method === 'PUT'
            ? { status: 200 }
            : url.includes('uploads')
              ? {
                  status: 200,
                  body: '<InitiateMultipartUploadResult><UploadId>up</UploadId></InitiateMultipartUploadResult>',
                }
              : {
                  status: 200,
                  body: '<CompleteMultipartUploadResult><ETag>"all"</ETag></CompleteMultipartUploadResult>',
                };
      response.writeHead(status, { ...xml, etag: '"part"' }).end(body);
    };
    const parts = 4;
    const server = createServer((request, response) => {
      request.resume();
      request.on('end', () => {
        if (request.method !== 'PUT' || held.length === parts) return answer(request, response);
        held.push(() => answer(request, response));
        if (held.length < parts) return;
        valid = 'new';
        Promise.all([writeFile(access, 'new'), writeFile(secret, 'new-secret')]).then(() => {
          for (const release of held) release();
        }, expect.fail);
      });
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    await using opened = await open({
      endpoint_url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
      bucket: 'b',
      access_key_file: access,
      secret_key_file: secret,
      num_minio_threads: parts,
      secrets_refresh_interval: '1h',
    });
    const path = await fileWith(Buffer.alloc(parts * 16 * MIB));
    expect(await opened.storage.storeTagged('object', path, { signal })).toBe('all');
    expect(opened.log.text().match(/S3 credentials have changed/g)).toHaveLength(1);
    await close(server);
  });

  test('a small upload does not wait for an answer as long as a large one may take', async () => {
    const silent = createServer((request) => request.resume());
    silent.listen(0, '127.0.0.1');
    await once(silent, 'listening');
    await using opened = await open({
      endpoint_url: `http://127.0.0.1:${(silent.address() as AddressInfo).port}`,
      bucket: 'b',
      access_key: 'a',
      secret_key: 's',
      // That of a server which has never answered.
      init_timeout: '1s',
    });
    const error = await failure(opened.storage.store('object', await fileWith('small'), { signal }));
    expect(error.code).toBe('UND_ERR_HEADERS_TIMEOUT');
    await close(silent);
  });

  test('no permission to create the bucket', async () => {
    await using fake = await startFake((_count, method) =>
      method === 'PUT' ? s3Error(403, 'AccessDenied') : s3Error(404, 'NoSuchBucket'),
    );
    await using opened = await open({ ...fake.options, create_bucket: true });
    expect((await failure(opened.storage.list('', { signal }))).message).toContain(
      'they need s3:CreateBucket',
    );
  });

  test('a range that the server ignores does not spoil the object', async () => {
    const content = randomBytes(100_000);
    const sockets: string[] = [];
    const rude = createServer((request, response) => {
      sockets.push(request.headers.range ?? 'all');
      if (request.url?.includes('list-type') === true) {
        response.writeHead(200, xml).end(listing.body);
        return;
      }
      response.writeHead(200, { etag: '"e"', 'content-length': content.length });
      if (sockets.length === 2) response.write(content.subarray(0, 50_000), () => response.socket?.end());
      else response.end(content);
    });
    rude.listen(0, '127.0.0.1');
    await once(rude, 'listening');
    const endpoint = `http://127.0.0.1:${(rude.address() as AddressInfo).port}`;
    await using opened = await openS3({
      endpoint_url: endpoint,
      bucket: 'b',
      access_key: 'a',
      secret_key: 's',
    });
    const target = scratch.join('target');
    expect(await opened.storage.load('object', target, { signal })).toBe(content.length);
    expect((await readFile(target)).equals(content)).toBe(true);
    expect(sockets).toEqual(['all', 'all', expect.stringMatching(/^bytes=\d+-$/), 'all']);
    await close(rude);
  });
});

/** An HTTP proxy that wants a user and sends everything to one port of this host, whatever it is called. */
async function startHttpProxy(
  targetPort: number,
): Promise<AsyncDisposable & { readonly port: number; readonly seen: string[]; refuse(): void }> {
  const seen: string[] = [];
  let isRefusing = false;
  const note = (method: string, host: string, authorization: string | undefined): void => {
    seen.push(`${method} ${host} ${Buffer.from(authorization?.slice(6) ?? '', 'base64').toString()}`);
  };
  const proxy = createServer((request, response) => {
    const url = new URL(request.url ?? '');
    note(request.method ?? '', url.host, request.headers['proxy-authorization']);
    if (isRefusing) {
      response.writeHead(407).end();
      return;
    }
    const onward = httpRequest(
      {
        host: '127.0.0.1',
        port: targetPort,
        method: request.method,
        path: `${url.pathname}${url.search}`,
        headers: request.headers,
      },
      (answer) => {
        response.writeHead(answer.statusCode ?? 500, answer.headers);
        answer.pipe(response);
      },
    );
    request.pipe(onward);
  });
  proxy.on('connect', (request, socket) => {
    note('CONNECT', request.url ?? '', request.headers['proxy-authorization']);
    if (isRefusing) {
      socket.end('HTTP/1.1 407 Proxy Authentication Required\r\n\r\n');
      return;
    }
    const onward = connect(targetPort, '127.0.0.1', () => {
      socket.write('HTTP/1.1 200 OK\r\n\r\n');
      onward.pipe(socket).pipe(onward);
    });
    for (const each of [socket, onward]) each.on('error', () => undefined);
    socket.on('close', () => onward.destroy());
    onward.on('close', () => socket.destroy());
  });
  proxy.listen(0, '127.0.0.1');
  await once(proxy, 'listening');
  return {
    port: (proxy.address() as AddressInfo).port,
    seen,
    refuse: () => {
      isRefusing = true;
      proxy.closeAllConnections();
    },
    async [Symbol.asyncDispose]() {
      await close(proxy);
    },
  };
}

/** A SOCKS5 proxy that wants a user (RFC 1928, RFC 1929) and connects everybody to one port of this host. */
async function startSocksProxy(
  targetPort: number,
): Promise<AsyncDisposable & { readonly port: number; readonly seen: readonly string[] }> {
  const seen: string[] = [];
  const serve = async (client: Socket): Promise<void> => {
    await once(client, 'data');
    client.write(Buffer.of(5, 2));
    const [user] = (await once(client, 'data')) as [Buffer];
    const nameEnd = 2 + (user[1] ?? 0);
    seen.push(`${user.subarray(2, nameEnd).toString()}:${user.subarray(nameEnd + 1).toString()}`);
    client.write(Buffer.of(1, 0));
    await once(client, 'data');
    const onward = connect(targetPort, '127.0.0.1', () => {
      client.write(Buffer.of(5, 0, 0, 1, 127, 0, 0, 1, 0, 0));
      client.pipe(onward).pipe(client);
    });
    onward.on('error', () => client.destroy());
    client.on('close', () => onward.destroy());
  };
  const clients = new Set<Socket>();
  const proxy = createTcpServer((client) => {
    clients.add(client);
    client.on('error', () => undefined);
    serve(client).catch(() => client.destroy());
  });
  proxy.listen(0, '127.0.0.1');
  await once(proxy, 'listening');
  return {
    port: (proxy.address() as AddressInfo).port,
    seen,
    async [Symbol.asyncDispose]() {
      const closed = once(proxy, 'close');
      proxy.close();
      for (const client of clients) client.destroy();
      await closed;
    },
  };
}

async function close(server: Server): Promise<void> {
  const closed = once(server, 'close');
  server.close();
  server.closeAllConnections();
  await closed;
}
