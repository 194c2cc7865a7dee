import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Socket } from 'node:net';
import { connect as connectTls, type ConnectionOptions, type TLSSocket } from 'node:tls';

import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { createCertificateAuthority, type CertificateAuthority } from '../../helpers/certificates.ts';
import { until } from '../../helpers/process.ts';
import { startTcpProxy } from '../../helpers/tcp-proxy.ts';

const echo = createServer({ allowHalfOpen: true }, (socket) => {
  socket.on('error', () => undefined);
  socket.pipe(socket);
});
let targetPort = 0;

beforeAll(async () => {
  echo.listen(0, '127.0.0.1');
  await once(echo, 'listening');
  targetPort = (echo.address() as AddressInfo).port;
});

afterAll(() => {
  echo.close();
});

/** A client with all it has received, and how it ended. */
async function client(port: number) {
  const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true });
  const seen = watch(socket);
  await once(socket, 'connect');
  return { socket, seen, [Symbol.dispose]: () => void socket.destroy() };
}

function watch(socket: Socket) {
  const seen = { text: '', ended: false, error: '' };
  socket.on('data', (chunk: Buffer) => (seen.text += chunk.toString()));
  socket.on('end', () => (seen.ended = true));
  socket.on('error', (error: NodeJS.ErrnoException) => (seen.error = error.code ?? ''));
  return seen;
}

test('bytes pass both ways, ends too, and all is counted', async () => {
  await using proxy = await startTcpProxy({ targetPort });
  using one = await client(proxy.port);
  one.socket.end('hello');
  await until(() => one.seen.ended, { what: 'the end comes back' });
  expect(one.seen.text).toBe('hello');
  await until(() => proxy.counts().open === 0, { what: 'closed' });
  expect(proxy.counts()).toEqual({ connections: 1, open: 0, bytesUp: 5, bytesDown: 5, held: 0 });
});

test('a refused port takes connections again afterwards', async () => {
  await using proxy = await startTcpProxy({ targetPort });
  using before = await client(proxy.port);
  await proxy.set({ kind: 'refuse' });
  await until(() => before.seen.error === 'ECONNRESET', { what: 'the open connection is reset' });
  await expect(client(proxy.port)).rejects.toThrow('ECONNREFUSED');
  await proxy.set({ kind: 'pass' });
  using after = await client(proxy.port);
  after.socket.write('again');
  await until(() => after.seen.text === 'again', { what: 'echo' });
});

test('what hangs goes on when the fault is over', async () => {
  await using proxy = await startTcpProxy({ targetPort });
  using before = await client(proxy.port);
  before.socket.write('a');
  await until(() => before.seen.text === 'a', { what: 'echo' });
  await proxy.set({ kind: 'hang' });
  using during = await client(proxy.port);
  before.socket.write('b');
  during.socket.write('c');
  await until(() => proxy.counts().held === 2, { what: 'both are held back' });
  expect(proxy.counts()).toMatchObject({ connections: 2, bytesUp: 1 });
  await proxy.set({ kind: 'pass' });
  await until(() => before.seen.text === 'ab' && during.seen.text === 'c', { what: 'both echoes' });
});

test.for(['up', 'down'] as const)('a connection is cut after so many bytes %s', async (direction) => {
  await using proxy = await startTcpProxy({ targetPort });
  using before = await client(proxy.port);
  before.socket.write('1234567');
  await until(() => before.seen.text === '1234567', { what: 'echo' });
  await proxy.set({ kind: 'cut', afterBytes: 10, direction });
  before.socket.write('abcdef');
  await until(() => before.seen.text === '1234567abcdef', { what: 'six more bytes pass' });
  before.socket.write('ghijkl');
  await until(() => before.seen.error === 'ECONNRESET', { what: 'reset' });
  const { bytesUp, bytesDown } = proxy.counts();
  expect(direction === 'up' ? bytesUp : bytesDown).toBe(17);
});

test('open connections are cut once', async () => {
  await using proxy = await startTcpProxy({ targetPort });
  using before = await client(proxy.port);
  await until(() => proxy.counts().open === 1, { what: 'accepted' });
  proxy.cutAll();
  await until(() => before.seen.error === 'ECONNRESET', { what: 'reset' });
  using after = await client(proxy.port);
  after.socket.write('x');
  await until(() => after.seen.text === 'x', { what: 'echo' });
});

test('delayed bytes arrive, at the latest when the fault is over', async () => {
  await using proxy = await startTcpProxy({ targetPort });
  await proxy.set({ kind: 'delay', ms: 30 });
  using one = await client(proxy.port);
  one.socket.write('late');
  await until(() => one.seen.text === 'late', { what: 'echo' });
  await proxy.set({ kind: 'delay', ms: 3_600_000 });
  one.socket.write('r');
  await until(() => proxy.counts().held === 1, { what: 'held back' });
  await proxy.set({ kind: 'pass' });
  await until(() => one.seen.text === 'later', { what: 'echo' });
});

describe('TLS', () => {
  let ca: CertificateAuthority;
  beforeAll(async () => {
    ca = await createCertificateAuthority();
  });
  afterAll(() => ca[Symbol.asyncDispose]());

  async function secure(port: number, options: ConnectionOptions): Promise<TLSSocket> {
    const socket = connectTls({ port, host: '127.0.0.1', servername: 'localhost', ...options });
    await once(socket, 'secureConnect');
    return socket;
  }

  test('a server certificate is trusted through its CA only, and not when it has expired', async () => {
    await using other = await createCertificateAuthority('other CA');
    await using proxy = await startTcpProxy({ targetPort, tls: await ca.issue({ name: 'server' }) });
    const socket = await secure(proxy.port, { ca: ca.cert });
    const seen = watch(socket);
    socket.write('secret');
    await until(() => seen.text === 'secret', { what: 'echo' });
    socket.destroy();
    await expect(secure(proxy.port, { ca: other.cert })).rejects.toThrow('unable to verify');
    await expect(secure(proxy.port, { ca: ca.cert, servername: 'other.example' })).rejects.toThrow(
      'altnames',
    );

    const expired = await ca.issue({ name: 'server', expired: true });
    await using late = await startTcpProxy({ targetPort, tls: expired });
    await expect(secure(late.port, { ca: ca.cert })).rejects.toThrow('certificate has expired');
  });

  test('a client needs a certificate of the client CA', async () => {
    await using other = await createCertificateAuthority('other CA');
    const server = await ca.issue({ name: 'server' });
    await using proxy = await startTcpProxy({ targetPort, tls: { ...server, clientCa: ca.cert } });
    const { cert, key } = await ca.issue({ name: 'client' });
    const socket = await secure(proxy.port, { ca: ca.cert, cert, key });
    const seen = watch(socket);
    socket.write('known');
    await until(() => seen.text === 'known', { what: 'echo' });
    socket.destroy();

    const wrong = await other.issue({ name: 'client' });
    for (const own of [{}, { cert: wrong.cert, key: wrong.key }]) {
      // With TLS 1.3 the client hears of it after its own side is done.
      const refused = await secure(proxy.port, { ca: ca.cert, ...own });
      const heard = watch(refused);
      refused.write('unknown');
      await until(() => refused.destroyed, { what: 'closed' });
      expect(heard.text).toBe('');
    }
  });
});
