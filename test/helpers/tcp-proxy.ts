/**
 * A TCP proxy on loopback with faults on demand: what netem cannot do here. It passes bytes, knows no protocol, and what it is told
 * holds for connections that are open as well as for those to come.
 */
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import { createServer as createTlsServer } from 'node:tls';
import { setTimeout as delay } from 'node:timers/promises';

/** What happens to the bytes; `pass` in the beginning. */
export type TcpFault =
  | { readonly kind: 'pass' }
  /** The port is closed: connections are refused, and those that exist reset. */
  | { readonly kind: 'refuse' }
  /** Connections are taken, but nothing passes in either direction; after the fault what was held back goes on its way. */
  | { readonly kind: 'hang' }
  /** Every chunk waits so long, in each direction. */
  | { readonly kind: 'delay'; readonly ms: number }
  /** A connection is reset as soon as so many bytes of it, in that direction, have passed; connections before the fault count from then on. */
  | { readonly kind: 'cut'; readonly afterBytes: number; readonly direction: Direction };

/** `up` goes to the server, `down` comes from it. */
export type Direction = 'up' | 'down';

export interface TcpProxyOptions {
  /** The port on loopback that it forwards to. */
  readonly targetPort: number;
  /** Speaks TLS with the client and plain TCP with the server; PEM texts. With `clientCa` a client has to show a certificate of it. */
  readonly tls?: { readonly cert: string; readonly key: string; readonly clientCa?: string };
}

export interface TcpProxyCounts {
  /** All that were accepted so far. */
  readonly connections: number;
  /** Those open now. */
  readonly open: number;
  /** Bytes passed on to the server. */
  readonly bytesUp: number;
  /** Bytes passed on to the client. */
  readonly bytesDown: number;
  /** Bytes received, in either direction, that `hang` or `delay` holds back now; also of connections that have ended meanwhile. */
  readonly held: number;
}

export interface TcpProxy extends AsyncDisposable {
  readonly port: number;
  counts(): TcpProxyCounts;
  /** Resolves when it is in force. */
  set(fault: TcpFault): Promise<void>;
  /** Resets every open connection, once. */
  cutAll(): void;
}

interface Connection {
  readonly client: Socket;
  readonly server: Socket;
  /** Bytes in each direction since the fault in force was set. */
  readonly passed: Record<Direction, number>;
}

/** Listens on a free port. */
export async function startTcpProxy(options: TcpProxyOptions): Promise<TcpProxy> {
  const connections = new Set<Connection>();
  const counts = { connections: 0, bytesUp: 0, bytesDown: 0, held: 0 };
  let fault: TcpFault = { kind: 'pass' };
  // Replaced with each fault; whatever hangs waits for the end of the one it met.
  let faultOver = Promise.withResolvers<undefined>();

  const accept = (client: Socket): void => {
    counts.connections += 1;
    const server = connect({ host: '127.0.0.1', port: options.targetPort, allowHalfOpen: true });
    const connection: Connection = { client, server, passed: { up: 0, down: 0 } };
    connections.add(connection);
    for (const socket of [client, server]) {
      socket.setNoDelay(true);
      // A reset on one side is one on the other; the error itself is the test's own doing.
      socket.on('error', () => undefined);
      socket.once('close', () => {
        reset(connection);
        connections.delete(connection);
      });
    }
    void pump(connection, 'up');
    void pump(connection, 'down');
  };

  /** Carries one direction until its end. Never rejects. */
  const pump = async (connection: Connection, direction: Direction): Promise<void> => {
    const [from, to] =
      direction === 'up' ? [connection.client, connection.server] : [connection.server, connection.client];
    try {
      for await (const chunk of from.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
        counts.held += chunk.length;
        await held();
        counts.held -= chunk.length;
        let bytes = chunk;
        const cutting = fault.kind === 'cut' && fault.direction === direction ? fault : undefined;
        if (cutting !== undefined)
          bytes = chunk.subarray(0, cutting.afterBytes - connection.passed[direction]);
        connection.passed[direction] += bytes.length;
        counts[direction === 'up' ? 'bytesUp' : 'bytesDown'] += bytes.length;
        const written = new Promise<void>((resolve, reject) => {
          to.write(bytes, (error) => {
            if (error) reject(error);
            else resolve();
          });
        });
        await written;
        if (cutting !== undefined && connection.passed[direction] >= cutting.afterBytes)
          return reset(connection);
      }
      await held();
      to.end();
    } catch {
      reset(connection);
    }
  };

  /** Waits while the fault in force says so. */
  const held = async (): Promise<void> => {
    if (fault.kind === 'delay')
      await Promise.race([delay(fault.ms, undefined, { ref: false }), faultOver.promise]);
    while (fault.kind === 'hang') await faultOver.promise;
  };

  const cutAll = (): void => {
    for (const connection of connections) reset(connection);
  };

  const { tls } = options;
  const newServer = (): Server =>
    tls === undefined
      ? createServer({ allowHalfOpen: true }, accept)
      : createTlsServer(
          {
            cert: tls.cert,
            key: tls.key,
            ...(tls.clientCa === undefined
              ? {}
              : { ca: tls.clientCa, requestCert: true, rejectUnauthorized: true }),
          },
          accept,
        );
  let listener: Server | undefined;
  const listen = async (port: number): Promise<number> => {
    listener = newServer().listen(port, '127.0.0.1');
    await once(listener, 'listening');
    return (listener.address() as AddressInfo).port;
  };
  const close = async (): Promise<void> => {
    if (listener === undefined) return;
    const closed = once(listener, 'close');
    listener.close();
    listener = undefined;
    cutAll();
    await closed;
  };
  const port = await listen(0);

  const proxy: TcpProxy = {
    port,
    counts: () => ({ ...counts, open: connections.size }),
    async set(next) {
      fault = next;
      for (const { passed } of connections) passed.up = passed.down = 0;
      faultOver.resolve(undefined);
      faultOver = Promise.withResolvers();
      if (next.kind === 'refuse') await close();
      else if (listener === undefined) await listen(port);
    },
    cutAll,
    async [Symbol.asyncDispose]() {
      await proxy.set({ kind: 'refuse' });
    },
  };
  return proxy;
}

/** A TCP reset where the socket can do it (TLS ones cannot), so that the peer notices at once. */
function reset({ client, server }: Connection): void {
  for (const socket of [client, server]) {
    if (socket.destroyed) continue;
    if ('encrypted' in socket) socket.destroy();
    else socket.resetAndDestroy();
  }
}
