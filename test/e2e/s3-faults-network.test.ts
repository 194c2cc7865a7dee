/**
 * An S3 server that is away, hangs, breaks in the middle or shows the wrong certificate: told once, in health at once, and over by itself.
 */
import { randomBytes } from 'node:crypto';
import { copyFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type CertificateAuthority, createCertificateAuthority } from '../helpers/certificates.ts';
import { until } from '../helpers/process.ts';
import { type S3Server, startMinio } from '../helpers/s3-server.ts';
import { startTcpProxy, type TcpProxy } from '../helpers/tcp-proxy.ts';
import { describeWithTools } from '../helpers/tools.ts';
import { DBI, spoolDirectories, spoolFiles } from './helpers.ts';
import {
  complaints,
  expectComplaints,
  expectPlain,
  FIRST,
  LIST,
  LOAD,
  net,
  type Net,
  STORE,
  unhealthy,
  withOptions,
} from './s3-faults-helpers.ts';
import { newBucket, openUploads } from './storage-s3-helpers.ts';
import { canMount, tmpfs } from './tmpfs.ts';

/** Text that does not compress by more than a quarter. */
const noise = (sizeBytes: number): string => randomBytes(sizeBytes).toString('base64').slice(0, sizeBytes);

let minio: S3Server;

describeWithTools(['minio'], 'S3 that cannot be reached', () => {
  beforeAll(async () => {
    minio = await startMinio();
  });
  afterAll(async () => {
    await minio?.[Symbol.asyncDispose]();
  });

  /** `a` reaches the server through a proxy. */
  async function behindProxy(): Promise<
    AsyncDisposable & { readonly all: Net; readonly proxy: TcpProxy; readonly bucket: string }
  > {
    const bucket = await newBucket(minio);
    const proxy = await startTcpProxy({ targetPort: minio.port });
    const all = await net({ ...minio, endpoint: `http://127.0.0.1:${proxy.port}` }, bucket);
    return {
      all,
      proxy,
      bucket,
      async [Symbol.asyncDispose]() {
        await all[Symbol.asyncDispose]();
        await proxy[Symbol.asyncDispose]();
      },
    };
  }
  const direct = () => withOptions({ endpoint_url: minio.endpoint });

  test('at the start, and in the middle: a server that is stopped and started', async () => {
    await using server = await startMinio();
    const bucket = await newBucket(server);
    await using all = await net(server, bucket);
    const { a, b } = all;
    await server.stop();
    await a.app.put(DBI, 'early', 'a');
    await a.start();
    await unhealthy(a, 'list', /ECONNREFUSED/);
    const refused = {
      bucket,
      endpoint: server.endpoint,
      code: 'ECONNREFUSED',
      error:
        /nothing listens there; check storage.options.endpoint_url and the server \(ECONNREFUSED\): bucket/,
    };
    expectComplaints(a, { msg: FIRST, ...refused });
    await server.start();
    await b.start();
    await b.has('early', 'a');
    await all.agree('one');

    await server.stop();
    await unhealthy(a, 'list', /ECONNREFUSED/);
    await a.app.put(DBI, 'meanwhile', 'a');
    await b.app.put(DBI, 'elsewhere', 'b');
    await unhealthy(a, 'store', /ECONNREFUSED/);
    await server.start();
    await b.has('meanwhile', 'a');
    await a.has('elsewhere', 'b');
    await all.agree('two');
    // While it starts, a server may say that it is not ready.
    const said = complaints(a).filter(({ s3_code }) => s3_code === undefined);
    expect(said).toMatchObject([FIRST, LIST, STORE].map((msg) => ({ msg, code: 'ECONNREFUSED' })));
    expect(complaints(a).length).toBeLessThanOrEqual(5);
    await a.stop();
  });

  test('that hangs: health tells of it at once', async () => {
    await using place = await behindProxy();
    const { all, proxy } = place;
    const { a, b } = all;
    await proxy.set({ kind: 'hang' });
    await a.start(withOptions({ init_timeout: '2s' }));
    await a.healthy('hanging', ({ failures }) =>
      /without an answer/.test(failures['main_storage_list_failed_duration'] ?? ''),
    );
    await unhealthy(a, 'list', /did not answer in time/);
    const late = { msg: FIRST, error: /the server did not answer in time/ };
    expectComplaints(a, late);
    await proxy.set({ kind: 'pass' });
    await b.start(direct());
    await all.agree('one');

    await proxy.set({ kind: 'hang' });
    await a.app.put(DBI, 'meanwhile', 'a');
    await a.healthy('hanging', ({ failures }) =>
      /without an answer/.test(failures['main_storage_store_failed_duration'] ?? ''),
    );
    await proxy.set({ kind: 'pass' });
    await b.has('meanwhile', 'a');
    await all.agree('two');
    expectComplaints(a, late);
  });

  test('that breaks in the middle of an upload, and of a download', async () => {
    await using place = await behindProxy();
    const { all, proxy, bucket } = place;
    const { a, b } = all;
    await a.start();
    await b.start(direct());
    await all.agree('one');

    await proxy.set({ kind: 'cut', afterBytes: 200_000, direction: 'up' });
    const value = noise(800_000);
    await a.app.put(DBI, 'big', value);
    await unhealthy(a, 'store', /the connection broke/);
    const object: unknown = expect.stringMatching(/^main__a__/);
    const broken = { msg: STORE, operation: 'store', object, bucket, error: /the connection broke/ };
    expectComplaints(a, broken);
    await proxy.set({ kind: 'pass' });
    await b.has('big', value);

    // What has arrived is kept: the rest is asked for on another connection.
    await proxy.set({ kind: 'cut', afterBytes: 400_000, direction: 'down' });
    await b.app.put(DBI, 'bigger', value);
    await a.has('bigger', value);
    await proxy.set({ kind: 'pass' });
    await all.agree('two');
    expectComplaints(a, broken);
    expect(spoolFiles(a)).toEqual([]);
    await a.stop();
  });

  describe('SIGTERM ends it', () => {
    const soon = { timeoutMs: 8000 };

    test('at the start, while the server hangs', async () => {
      await using place = await behindProxy();
      const { a } = place.all;
      await place.proxy.set({ kind: 'hang' });
      await a.start();
      await until(() => place.proxy.counts().held > 0, { what: 'a request', timeoutMs: 20_000 });
      expect(await a.daemon.stop(soon)).toMatchObject({ code: 0 });
      expectComplaints(a);
    });

    test('while an upload waits for its answer', async () => {
      await using place = await behindProxy();
      const { all, proxy } = place;
      const { a, b } = all;
      await a.start();
      await a.logged('LMDB is empty, waiting for data');
      await proxy.set({ kind: 'hang' });
      await a.app.put(DBI, 'k', 'v');
      await a.healthy('hanging', ({ failures }) => 'main_storage_store_failed_duration' in failures);
      expect(await a.daemon.stop(soon)).toMatchObject({ code: 0 });
      expectComplaints(a);
      expect(spoolDirectories(a)).toEqual([]);
      await proxy.set({ kind: 'pass' });
      await Promise.all([a.start(), b.start(direct())]);
      await b.has('k', 'v');
      await all.agree('after');
    });

    test('in the middle of an upload in parts', async () => {
      await using place = await behindProxy();
      const { all, proxy, bucket } = place;
      const { a, b } = all;
      await a.start();
      await a.logged('LMDB is empty, waiting for data');
      const before = proxy.counts().bytesUp;
      await proxy.set({ kind: 'delay', ms: 20 });
      // One snapshot with all of it.
      a.daemon.kill('SIGSTOP');
      for (let index = 0; index < 24; index++) await a.app.put(DBI, `k${index}`, noise(1_000_000));
      a.daemon.kill('SIGCONT');
      await until(() => proxy.counts().bytesUp > before + 2_000_000, {
        what: 'two megabytes',
        timeoutMs: 60_000,
      });
      await proxy.set({ kind: 'hang' });
      expect(await a.daemon.stop(soon)).toMatchObject({ code: 0 });
      const parts = { msg: 'S3: parts of an unfinished upload stay in the bucket', error: /no answer/ };
      expectComplaints(a, parts);
      expect(await openUploads(minio, bucket)).toHaveLength(1);
      await proxy.set({ kind: 'pass' });
      await Promise.all([a.start(), b.start(direct())]);
      await b.has('k23', (await a.app.get(DBI, 'k23'))?.value ?? '', 60_000);
      await all.agree('after');
    });
  });

  test.skipIf(!canMount)('that works, while there is no room to load into, nor for a snapshot', async () => {
    await using place = await behindProxy();
    const { all } = place;
    const { a, b } = all;
    using _mount = tmpfs(a.spoolPath, '1m');
    await Promise.all([a.start(), b.start(direct())]);
    await all.agree('one');
    const filler = join(a.spoolPath, 'filler');
    await writeFile(filler, Buffer.alloc(700_000));
    const value = noise(600_000);
    await b.app.put(DBI, 'big', value);
    await unhealthy(a, 'load', /no space left/i);
    const object: unknown = expect.stringMatching(/^main__b__/);
    const full = { msg: LOAD, operation: 'load', object, error: /no space left on device .*spool/ };
    expectComplaints(a, full);
    await a.app.put(DBI, 'small', 's');
    await b.has('small', 's');
    const taken = 'lightningstream_syncer_snapshots_generated_total';
    const before = await a.metric(taken);
    await a.app.put(DBI, 'large', value);
    await a.healthy('no room for a snapshot', ({ failures }) => 'main_local_fault' in failures);
    await unhealthy(a, 'load', /no space left/i);
    expect(await a.metric(taken)).toBe(before);
    const none = { msg: 'Local fault, trying again', error: /no space left on device/i };
    expectComplaints(a, full, none);
    await rm(filler);
    await a.has('big', value);
    await b.has('large', value);
    await all.agree('two');
    expectComplaints(a, full, none);
    await a.stop();
  });

  describe('over TLS', () => {
    let ca: CertificateAuthority;
    let other: CertificateAuthority;
    beforeAll(async () => {
      ca = await createCertificateAuthority();
      other = await createCertificateAuthority('another CA');
    });
    afterAll(async () => {
      await ca?.[Symbol.asyncDispose]();
      await other?.[Symbol.asyncDispose]();
    });

    test('because its CA is unknown, until its certificate is put into place', async () => {
      await using proxy = await startTcpProxy({
        targetPort: minio.port,
        tls: await ca.issue({ name: 'server' }),
      });
      const endpoint = `https://127.0.0.1:${proxy.port}`;
      await using all = await net({ ...minio, endpoint }, await newBucket(minio));
      const { a, b } = all;
      await a.start();
      const unknown = {
        msg: FIRST,
        error: /not signed by a known authority; name its CA in storage.options.tls.ca_file/,
      };
      await unhealthy(a, 'list', unknown.error);
      expectComplaints(a, unknown);
      await a.stop();

      const caFile = join(all.directory, 'ca.crt');
      await copyFile(other.certFile, caFile);
      await a.start(
        withOptions({ tls: { ca_file: caFile, watch_certs: true, watch_certs_poll_interval: '200ms' } }),
      );
      await unhealthy(a, 'list', unknown.error);
      await copyFile(ca.certFile, caFile);
      await b.start(withOptions({ tls: { insecure_skip_verify: true } }));
      await all.agree('one');
      expectComplaints(a, unknown);
      expectComplaints(b, { msg: expect.stringContaining('insecure_skip_verify') as string });
    });

    test.each([
      ['has expired', { expired: true }, /certificate has expired, or the clock .* \(CERT_HAS_EXPIRED\)/],
      [
        'is for another host',
        { altNames: 'DNS:other' },
        /certificate is for another host name; correct .*url/,
      ],
    ])('because its certificate %s', async (_what, issue, error) => {
      const certificate = await ca.issue({ name: 'server', ...issue });
      await using proxy = await startTcpProxy({ targetPort: minio.port, tls: certificate });
      const endpoint = `https://127.0.0.1:${proxy.port}`;
      await using all = await net({ ...minio, endpoint }, 'any', { tls: { ca_file: ca.certFile } });
      const { code, stderr } = await all.a.run({ args: ['sync', '--only-once'] });
      expect(code).toBe(1);
      expect(complaints(all.a, stderr)).toEqual([
        expect.objectContaining({ msg: 'Sync failed', error: expect.stringMatching(error) as string }),
      ]);
      expectPlain(stderr);
    });

    test('because it speaks none', async () => {
      const endpoint = `https://127.0.0.1:${minio.port}`;
      await using all = await net({ ...minio, endpoint }, 'any');
      const { code, stderr } = await all.a.run({ args: ['snapshots', 'list'] });
      expect(code).toBe(1);
      expect(stderr.trim().split('\n')).toEqual([
        expect.stringMatching(/does not speak TLS; should storage.options.endpoint_url begin with http:/),
      ]);
    });
  });
});
