import { createHash } from 'node:crypto';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { errorMessage, LightningStreamError } from '../errors.ts';
import type { Health } from '../observability/health.ts';
import { escapeControls } from '../observability/log-format.ts';
import type { Logger } from '../observability/logger.ts';
import type { Metrics } from '../observability/metrics.ts';
import type { StorageObject } from '../storage/storage.ts';
import { parseListenAddress } from './address.ts';
import { renderStatusPage, STATUS_STYLE } from './status-page.ts';
import type { StatusModel } from './status.ts';

export interface HttpServerOptions {
  /** `host:port`; without a host all interfaces, without a port (or 0) the system picks one. */
  readonly address: string;
  readonly health: Health;
  readonly metrics: Metrics;
  /** Asked for each status page; slow answers are given up. */
  readonly status: () => Promise<StatusModel>;
  /** All objects of the storage, by name. */
  readonly listStorage: (signal: AbortSignal) => Promise<readonly StorageObject[]>;
  readonly logger: Logger;
  /** Takes secrets out of every text shown; the root logger's `mask`. */
  readonly mask: (text: string) => string;
  /** Ends the server: running requests get a moment to finish. */
  readonly signal: AbortSignal;
  /** Milliseconds since the epoch. */
  readonly now?: () => number;
  readonly statusDeadlineMs?: number;
  readonly storageDeadlineMs?: number;
}

export interface HttpServer {
  /** `host:port` as listened on, an IPv6 host in brackets. */
  readonly address: string;
  readonly port: number;
  /** Resolves when the server has ended, after the signal. */
  readonly closed: Promise<void>;
}

interface Answer {
  readonly status: number;
  readonly contentType: string;
  readonly body: string;
  readonly headers?: Readonly<Record<string, string>>;
}

const TEXT = 'text/plain; charset=utf-8';
const CLOSE_GRACE_MS = 1000;

/** No script, no other origin, nothing to submit, not to be framed; the page's one style by its hash. */
const SECURITY_HEADERS: Readonly<Record<string, string>> = {
  'Content-Security-Policy': [
    "default-src 'none'",
    `style-src 'sha256-${createHash('sha256').update(STATUS_STYLE).digest('base64')}'`,
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
  ].join('; '),
  'X-Content-Type-Options': 'nosniff',
  'Referrer-Policy': 'no-referrer',
  'Cross-Origin-Resource-Policy': 'same-origin',
  'Cache-Control': 'no-store',
};

/**
 * Starts the server for `/` (status), `/healthz`, `/metrics` and `/storage`. Resolves when it listens; rejects with a
 * {@link LightningStreamError} (`HTTP_ADDRESS`) when it cannot.
 */
export async function startHttpServer(options: HttpServerOptions): Promise<HttpServer> {
  const { health, metrics, logger, mask, signal } = options;
  const now = options.now ?? Date.now;
  const statusDeadlineMs = options.statusDeadlineMs ?? 3000;
  const storageDeadlineMs = options.storageDeadlineMs ?? 30_000;
  const listen = parseListenAddress(options.address);
  signal.throwIfAborted();

  let listing: Promise<readonly StorageObject[]> | undefined;
  /** One listing at a time, whoever asks: a storage that hangs is not asked again and again. */
  function listOnce(): Promise<readonly StorageObject[]> {
    listing ??= options
      .listStorage(AbortSignal.any([signal, AbortSignal.timeout(storageDeadlineMs)]))
      .finally(() => {
        listing = undefined;
      });
    return listing;
  }

  async function statusPage(): Promise<Answer> {
    const model = await within(options.status(), statusDeadlineMs).catch((error: unknown) => ({
      missing: errorMessage(error),
    }));
    const body = renderStatusPage({ model, health: health.report(), nowMs: now(), mask });
    return { status: 200, contentType: 'text/html; charset=utf-8', body };
  }

  function healthz(): Answer {
    const report = health.report();
    const body = JSON.stringify(report, (_key, value: unknown) =>
      typeof value === 'string' ? mask(value) : value,
    );
    return { status: report.ok ? 200 : 503, contentType: 'application/json', body };
  }

  async function metricsPage(): Promise<Answer> {
    const { contentType, text } = await metrics.page();
    return { status: 200, contentType, body: text };
  }

  async function storageListing(): Promise<Answer> {
    try {
      const objects = await within(listOnce(), storageDeadlineMs);
      const lines = objects.map(({ name, sizeBytes }) => `${escapeControls(mask(name))}\t${sizeBytes}\n`);
      return { status: 200, contentType: TEXT, body: `Name\tSize\n${lines.join('')}` };
    } catch (error) {
      const reason = escapeControls(mask(errorMessage(error)));
      return { status: 500, contentType: TEXT, body: `ERROR LISTING STORAGE: ${reason}\n` };
    }
  }

  const pages = new Map<string, () => Answer | Promise<Answer>>([
    ['/', statusPage],
    ['/healthz', healthz],
    ['/metrics', metricsPage],
    ['/storage', storageListing],
  ]);

  async function answer(request: IncomingMessage): Promise<Answer> {
    const path = (request.url ?? '').split('?', 1)[0] ?? '';
    const page = pages.get(path);
    if (page === undefined) return { status: 404, contentType: TEXT, body: '404 page not found\n' };
    if (request.method !== 'GET' && request.method !== 'HEAD') {
      const headers = { Allow: 'GET, HEAD' };
      return { status: 405, contentType: TEXT, body: '405 method not allowed\n', headers };
    }
    try {
      return await page();
    } catch (error) {
      logger.error('HTTP request failed', { path, error });
      return { status: 500, contentType: TEXT, body: '500 internal error\n' };
    }
  }

  async function respond(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { status, contentType, body, headers } = await answer(request);
    const bytes = Buffer.from(body);
    response.writeHead(status, {
      ...SECURITY_HEADERS,
      ...headers,
      'Content-Type': contentType,
      'Content-Length': bytes.length,
    });
    response.end(request.method === 'HEAD' ? undefined : bytes);
  }

  const server = createServer(
    { headersTimeout: 10_000, requestTimeout: 30_000, keepAliveTimeout: 75_000, maxHeaderSize: 16_384 },
    (request, response) => void respond(request, response),
  );
  server.maxConnections = 256;
  // Readers that take nothing do not keep their connection.
  server.timeout = 120_000;

  await metrics.observeProcess();
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error) => reject(listenError(options.address, error)));
    server.listen({ ...listen }, () => resolve());
  });
  server.removeAllListeners('error');
  server.on('error', (error) => logger.warning('HTTP server could not accept a connection', { error }));

  const closed = new Promise<void>((resolve) => {
    server.once('close', () => resolve());
  });
  function close(): void {
    server.close();
    const timer = setTimeout(() => server.closeAllConnections(), CLOSE_GRACE_MS);
    server.once('close', () => clearTimeout(timer));
  }
  if (signal.aborted) close();
  else signal.addEventListener('abort', close, { once: true });

  const bound = server.address() as AddressInfo;
  const address = `${bound.family === 'IPv6' ? `[${bound.address}]` : bound.address}:${bound.port}`;
  logger.info('HTTP server enabled', { address });
  return { address, port: bound.port, closed };
}

/** The work's result, or an error when it takes longer; the work itself goes on. */
async function within<T>(work: Promise<T>, deadlineMs: number): Promise<T> {
  const { promise: expired, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(() => reject(new Error(`no answer within ${deadlineMs / 1000} s`)), deadlineMs);
  try {
    return await Promise.race([work, expired]);
  } finally {
    clearTimeout(timer);
  }
}

const LISTEN_PROBLEMS: Readonly<Record<string, string>> = {
  EADDRINUSE: 'another program uses this address; choose another port or stop that program',
  EACCES: 'not permitted; ports below 1024 need a privilege (CAP_NET_BIND_SERVICE), choose a higher one',
  EADDRNOTAVAIL: 'this machine has no such address',
  ENOTFOUND: 'the host name cannot be resolved',
  EAI_AGAIN: 'the host name cannot be resolved now',
};

function listenError(address: string, error: Error): LightningStreamError {
  const { code } = error as NodeJS.ErrnoException;
  const problem = LISTEN_PROBLEMS[code ?? ''] ?? errorMessage(error);
  return new LightningStreamError('HTTP_ADDRESS', `http.address: cannot listen on "${address}": ${problem}`, {
    cause: error,
    fields: { address },
  });
}
