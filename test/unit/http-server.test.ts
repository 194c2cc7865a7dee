import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { createServer, request, type IncomingHttpHeaders } from 'node:http';
import { connect, type AddressInfo } from 'node:net';
import { afterEach, describe, expect, test } from 'vitest';
import { LightningStreamError } from '../../src/errors.ts';
import { parseListenAddress } from '../../src/http/address.ts';
import { startHttpServer, type HttpServer, type HttpServerOptions } from '../../src/http/server.ts';
import type { StatusModel } from '../../src/http/status.ts';
import { createHealth } from '../../src/observability/health.ts';
import { createLogger } from '../../src/observability/logger.ts';
import { createMetrics } from '../../src/observability/metrics.ts';

const STATUS: StatusModel = {
  version: '1.2.3',
  instance: 'one',
  startedAtMs: 0,
  storage: { type: 'fs', location: '/srv/snapshots' },
  databases: [],
};

const controllers = new Set<AbortController>();
afterEach(() => {
  for (const controller of controllers) controller.abort();
  controllers.clear();
});

async function start(overrides: Partial<HttpServerOptions> = {}) {
  const controller = new AbortController();
  controllers.add(controller);
  const lines: string[] = [];
  const logger = createLogger(
    { level: 'info', format: 'json', timestamp: 'disable' },
    { write: (line) => lines.push(line) },
  );
  const health = createHealth(Date.now);
  const server = await startHttpServer({
    address: '127.0.0.1:0',
    health,
    metrics: createMetrics({ scrapeSmaps: false }),
    status: async () => STATUS,
    listStorage: async () => [],
    logger,
    mask: (text) => logger.mask(text),
    signal: controller.signal,
    ...overrides,
  });
  return { server, controller, lines, logger, health };
}

interface Answer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly body: string;
}

async function ask(server: HttpServer, path: string, method = 'GET', body?: string): Promise<Answer> {
  const { promise, resolve, reject } = Promise.withResolvers<Answer>();
  const sent = request({ port: server.port, path, method, agent: false }, (response) => {
    let text = '';
    response.setEncoding('utf8');
    response.on('data', (chunk: string) => (text += chunk));
    response.on('end', () =>
      resolve({ status: response.statusCode ?? 0, headers: response.headers, body: text }),
    );
  });
  sent.on('error', reject);
  sent.end(body);
  return promise;
}

const PAGES = ['/', '/healthz', '/metrics', '/storage'];

describe('pages', () => {
  test('HEAD has the headers of GET and no body', async () => {
    const { server } = await start();
    for (const path of PAGES) {
      const get = await ask(server, path);
      const head = await ask(server, path, 'HEAD');
      expect(get.status).toBe(200);
      expect(get.headers['content-length']).toBe(String(Buffer.byteLength(get.body)));
      expect({ ...head, headers: Object.keys(head.headers) }).toEqual({
        ...get,
        headers: Object.keys(get.headers),
        body: '',
      });
      expect(head.headers['content-type']).toBe(get.headers['content-type']);
    }
  });

  test.each(['POST', 'PUT', 'DELETE', 'OPTIONS', 'PATCH', 'TRACE'])('%s is refused', async (method) => {
    const { server } = await start();
    for (const path of PAGES) {
      const { status, headers } = await ask(
        server,
        path,
        method,
        method === 'POST' ? 'x'.repeat(100_000) : undefined,
      );
      expect(status).toBe(405);
      expect(headers.allow).toBe('GET, HEAD');
    }
  });

  test.each([
    '/nosuch',
    '//',
    '/healthz/',
    '/Healthz',
    '/metrics/..',
    '/%2e%2e/healthz',
    '/../healthz',
    '//healthz',
    '*',
    '/storage%00',
  ])('%s is not found', async (path) => {
    const { server } = await start();
    expect((await ask(server, path)).status).toBe(404);
  });

  test('every answer forbids what a page of figures does not need', async () => {
    const { server } = await start();
    for (const path of [...PAGES, '/nosuch']) {
      const { headers } = await ask(server, path);
      expect(headers['x-content-type-options']).toBe('nosniff');
      expect(headers['cache-control']).toBe('no-store');
      expect(headers['content-security-policy']).toMatch(/^default-src 'none';/);
      expect(headers['content-security-policy']).not.toMatch(/unsafe/);
      expect(headers).not.toHaveProperty('x-powered-by');
    }
  });

  test("the policy allows the status page's own style, and it has no other and no script", async () => {
    const { server } = await start();
    const { headers, body } = await ask(server, '/');
    const styles = [...body.matchAll(/<style>([^]*?)<\/style>/g)].map(([, style = '']) => style);
    expect(styles).toHaveLength(1);
    const hash = createHash('sha256')
      .update(styles[0] ?? '')
      .digest('base64');
    expect(headers['content-security-policy']).toContain(`style-src 'sha256-${hash}'`);
    expect(body).not.toMatch(/<script|style=|<link|\bon\w+=/i);
  });

  test('no page shows a secret', async () => {
    const secret = 'planted-secret-77';
    const { server, logger, health } = await start({
      status: async () => ({ ...STATUS, storage: { type: 's3', location: `https://${secret}@host/` } }),
      listStorage: () => Promise.reject(new Error(`wrong key ${secret}`)),
    });
    logger.addSecrets([secret]);
    health.condition('main_storage').set('failure', `signed with ${secret}`);
    health.setMetadata('note', secret);
    for (const path of PAGES) {
      const { body } = await ask(server, path);
      expect(body.length).toBeGreaterThan(20);
      expect(body).not.toContain('planted');
    }
  });

  test('an object name cannot begin a line of its own', async () => {
    const { server } = await start({ listStorage: async () => [{ name: 'a\nb\t9\u0000', sizeBytes: 1 }] });
    expect((await ask(server, '/storage')).body.split('\n')).toHaveLength(3);
  });
});

describe('what hangs', () => {
  const never = (): Promise<never> => new Promise(() => undefined);

  test('a storage that hangs holds up no other page, is asked once, and is given up', async () => {
    let calls = 0;
    const { server } = await start({
      storageDeadlineMs: 300,
      listStorage: () => {
        calls += 1;
        return never();
      },
    });
    const listings = [ask(server, '/storage'), ask(server, '/storage')];
    await expect.poll(() => calls).toBe(1);
    for (const path of ['/', '/healthz', '/metrics']) expect((await ask(server, path)).status).toBe(200);
    for (const { status, body } of await Promise.all(listings)) {
      expect(status).toBe(500);
      expect(body).toBe('ERROR LISTING STORAGE: no answer within 0.3 s\n');
    }
    expect(calls).toBe(1);
  });

  test('the listing is told when its time is up, and is asked again afterwards', async () => {
    const reasons: unknown[] = [];
    const { server } = await start({
      storageDeadlineMs: 50,
      listStorage: (signal) =>
        new Promise((_, reject) => {
          signal.addEventListener('abort', () => {
            reasons.push(signal.reason);
            reject(new Error('ended'));
          });
        }),
    });
    for (const calls of [1, 2]) {
      expect((await ask(server, '/storage')).status).toBe(500);
      await expect.poll(() => reasons.length).toBe(calls);
    }
  });

  test('without figures the status page still shows health', async () => {
    const { server, health } = await start({ status: never, statusDeadlineMs: 50 });
    health.condition('main_x').set('failure', 'the disk is on fire');
    const { status, body } = await ask(server, '/');
    expect(status).toBe(200);
    expect(body).toContain('the disk is on fire');
    expect(body).toContain('no answer within 0.05 s');
    expect((await ask(server, '/healthz')).status).toBe(503);
  });

  test('a bug in a page is one log line and no detail', async () => {
    const { server, lines } = await start({
      status: () => {
        throw new TypeError('x is undefined');
      },
    });
    const { status, body } = await ask(server, '/');
    expect([status, body]).toEqual([500, '500 internal error\n']);
    expect(lines.at(-1)).toContain('x is undefined');
  });
});

describe('address', () => {
  test.each([
    [':8500', { port: 8500 }],
    ['127.0.0.1:8500', { host: '127.0.0.1', port: 8500 }],
    ['localhost:', { host: 'localhost', port: 0 }],
    [':', { port: 0 }],
    ['[::1]:8500', { host: '::1', port: 8500 }],
    ['[::]:0', { host: '::', port: 0 }],
  ])('%s', (address, expected) => {
    expect(parseListenAddress(address)).toEqual(expected);
  });

  test.each([
    '8500',
    'localhost',
    '::1',
    '::1:8500',
    '[::1]',
    '[x]:1',
    ':65536',
    ':-1',
    ':http',
    ':1 ',
    'a:b:1',
  ])('%s is refused in one line', (address) => {
    expect(() => parseListenAddress(address)).toThrow(LightningStreamError);
    expect(() => parseListenAddress(address)).toThrow(/^http\.address: "[^\n]*$/);
  });

  test('the log says which port the system picked', async () => {
    const { server, lines } = await start();
    expect(server.port).toBeGreaterThan(0);
    expect(JSON.parse(lines[0] ?? '')).toMatchObject({ level: 'info', address: `127.0.0.1:${server.port}` });
  });

  test('without a host every interface is served, IPv6 in brackets', async () => {
    const { server } = await start({ address: ':' });
    expect(server.address).toMatch(/^(\[::\]|0\.0\.0\.0):\d+$/);
    expect((await ask(server, '/healthz')).status).toBe(200);
  });

  test('one that is in use is one clear line', async () => {
    const other = createServer().listen(0, '127.0.0.1');
    await once(other, 'listening');
    const address = `127.0.0.1:${(other.address() as AddressInfo).port}`;
    try {
      await expect(start({ address })).rejects.toMatchObject({
        code: 'HTTP_ADDRESS',
        message: `http.address: cannot listen on "${address}": another program uses this address; choose another port or stop that program`,
      });
    } finally {
      other.close();
    }
  });

  test('one of another machine is one clear line', async () => {
    // 192.0.2.0/24 is for documentation (RFC 5737): no machine has it.
    await expect(start({ address: '192.0.2.1:0' })).rejects.toThrow(/this machine has no such address/);
  });
});

describe('the end', () => {
  test('a running request is answered, a silent connection does not hold it up', async () => {
    const asked = Promise.withResolvers<void>();
    const listing = Promise.withResolvers<never[]>();
    const { server, controller } = await start({
      listStorage: () => {
        asked.resolve();
        return listing.promise;
      },
    });
    const silent = connect(server.port, '127.0.0.1');
    await once(silent, 'connect');
    const answer = ask(server, '/storage');
    await asked.promise;
    controller.abort();
    listing.resolve([]);
    expect((await answer).status).toBe(200);
    await server.closed;
    silent.destroy();
    await expect(ask(server, '/')).rejects.toMatchObject({ code: 'ECONNREFUSED' });
  });

  test('a request that does not end is cut off', async () => {
    const asked = Promise.withResolvers<void>();
    const { server, controller } = await start({
      listStorage: () => {
        asked.resolve();
        return new Promise(() => undefined);
      },
    });
    const answer = ask(server, '/storage');
    const outcome = answer.catch((error: unknown) => error);
    await asked.promise;
    controller.abort();
    await server.closed;
    expect(await outcome).toMatchObject({ code: 'ECONNRESET' });
  });

  test('one that was to end before it began does not begin', async () => {
    await expect(start({ signal: AbortSignal.abort() })).rejects.toMatchObject({ name: 'AbortError' });
  });
});
