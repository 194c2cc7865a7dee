import { appendFile, readFile } from 'node:fs/promises';
import { BlockList, isIP, type Socket } from 'node:net';
import { createSecureContext, getCACertificates, type SecureContext, type TLSSocket } from 'node:tls';
import { Agent, buildConnector, type Dispatcher, Pool, ProxyAgent, Socks5ProxyAgent } from 'undici';
import { errorMessage } from '../../errors.ts';
import type { Logger } from '../../observability/logger.ts';
import { StorageError } from '../storage.ts';
import { attempt } from '../system-error.ts';
import type { S3Options } from './options.ts';

/** Other calls must get a connection while all parts of an upload have one. */
const SPARE_CONNECTIONS = 8;

/** The texts of the certificates and the key that are in use. */
interface TlsTexts {
  readonly ca: string;
  readonly cert: string;
  readonly key: string;
}

/** The connections to a server: TLS, proxy and pool as configured. */
export interface Connections {
  readonly dispatcher: Dispatcher;
  /** The proxy's host and port, undefined without a proxy. */
  readonly proxy: string | undefined;
  /** Calls back with new connections when watched certificate files have changed. */
  watch(onChange: (dispatcher: Dispatcher) => void): () => void;
}

/**
 * @param url scheme, host and port that will be connected to
 * @throws StorageError when a certificate or key cannot be used
 */
export async function openConnections(
  url: URL,
  options: S3Options,
  context: { readonly logger: Logger; readonly env: Readonly<Record<string, string | undefined>> },
): Promise<Connections> {
  const proxy = proxyFor(url, context.env);
  let texts = await readTls(options);
  return {
    dispatcher: build(url, options, texts, proxy, context.logger),
    proxy: proxy?.host,
    watch(onChange) {
      const { tls } = options;
      if (url.protocol !== 'https:' || !tls.watchCerts) return () => undefined;
      let busy = false;
      const check = async (): Promise<void> => {
        const found = await readTls(options);
        if (found.ca === texts.ca && found.cert === texts.cert && found.key === texts.key) return;
        // A certificate and a key that do not match throw here: then they are being replaced at this moment.
        const dispatcher = build(url, options, found, proxy, context.logger);
        texts = found;
        onChange(dispatcher);
        context.logger.info('S3: certificate files have changed, new connections use them');
      };
      const timer = setInterval(() => {
        if (busy) return;
        busy = true;
        check()
          .catch((error: unknown) => {
            context.logger.debug('S3: changed certificate files are not used', { error });
          })
          .finally(() => {
            busy = false;
          });
      }, tls.watchCertsPollIntervalMs);
      timer.unref();
      return () => clearInterval(timer);
    },
  };
}

function build(
  url: URL,
  options: S3Options,
  texts: TlsTexts,
  proxy: URL | undefined,
  logger: Logger,
): Dispatcher {
  const tls =
    url.protocol === 'https:'
      ? { secureContext: secureContext(options, texts), rejectUnauthorized: !options.tls.insecureSkipVerify }
      : {};
  const keepAlive = { keepAlive: true, keepAliveInitialDelay: options.dialKeepAliveMs };
  const pool = {
    // As many idle ones as are allowed; there are never more idle ones than connections.
    connections: Math.max(options.maxIdleConns, options.threads + SPARE_CONNECTIONS),
    pipelining: 1,
    allowH2: false,
    keepAliveTimeout: options.idleConnTimeoutMs,
    keepAliveMaxTimeout: options.idleConnTimeoutMs,
  };
  if (proxy === undefined) {
    // Both times are watched below.
    const connect = buildConnector({ ...tls, ...keepAlive, allowH2: false, timeout: 0 });
    return new Agent({
      ...pool,
      connect: (target, callback) => {
        // It returns the socket; its type does not say so.
        const socket = connect(target, callback) as unknown as Socket | TLSSocket;
        watchConnecting(socket, options, logger);
      },
    });
  }
  const throughProxy = {
    connectTimeout: options.dialTimeoutMs,
    requestTls: { ...tls, allowH2: false, timeout: options.tlsHandshakeTimeoutMs },
  };
  if (proxy.protocol === 'socks5:') return new Socks5ProxyAgent(proxy, throughProxy);
  return new ProxyAgent({
    ...pool,
    ...throughProxy,
    uri: proxy.href,
    // As other programs do: http through the proxy itself, https through a tunnel.
    proxyTunnel: false,
    factory: (origin, given) => new Pool(origin, { ...pool, ...(given as Pool.Options) }),
    proxyTls: keepAlive,
  });
}

/** Ends the attempt when it takes too long, and writes the key log. */
function watchConnecting(socket: Socket | TLSSocket, options: S3Options, logger: Logger): void {
  const fail = (what: string): void => {
    socket.destroy(Object.assign(new Error(what), { code: 'ETIMEDOUT' }));
  };
  let timer = setTimeout(() => fail('connecting took longer than dial_timeout'), options.dialTimeoutMs);
  const stop = (): void => clearTimeout(timer);
  socket.once('close', stop);
  if (!('encrypted' in socket)) {
    socket.once('connect', stop);
    return;
  }
  socket.once('connect', () => {
    stop();
    timer = setTimeout(
      () => fail('the TLS handshake took longer than tls_handshake_timeout'),
      options.tlsHandshakeTimeoutMs,
    );
  });
  socket.once('secureConnect', stop);
  const { insecureKeyLogFile } = options.tls;
  if (insecureKeyLogFile === '') return;
  socket.on('keylog', (line) => {
    appendFile(insecureKeyLogFile, line, { mode: 0o600 }).catch((error: unknown) => {
      logger.warning('S3: the TLS key log cannot be written', {
        path: insecureKeyLogFile,
        reason: errorMessage(error),
      });
    });
  });
}

async function readTls({ tls }: S3Options): Promise<TlsTexts> {
  const read = async (name: string, path: string, text: string): Promise<string> => {
    if (path === '') return text;
    return attempt('open', undefined, `${path} (storage.options.tls.${name})`, () => readFile(path, 'utf8'));
  };
  return {
    ca: await read('ca_file', tls.caFile, tls.ca),
    cert: await read('cert_file', tls.certFile, tls.cert),
    key: await read('key_file', tls.keyFile, tls.key),
  };
}

function secureContext({ tls }: S3Options, { ca, cert, key }: TlsTexts): SecureContext {
  if (ca !== '' && !ca.includes('-----BEGIN')) {
    throw unusable(
      tls.caFile === '' ? 'tls.ca' : 'tls.ca_file',
      'there is no certificate in PEM format in it',
    );
  }
  const authorities = [
    ...(ca === '' || tls.addSystemCaPool ? knownAuthorities() : []),
    ...(ca === '' ? [] : [ca]),
  ];
  try {
    return createSecureContext({
      ca: authorities,
      ...(cert === '' ? {} : { cert, key }),
    });
  } catch (error) {
    throw unusable('tls', `the certificates or the key cannot be used: ${errorMessage(error)}`);
  }
}

/** Those of Node.js (and NODE_EXTRA_CA_CERTS) and those that this host trusts. */
function knownAuthorities(): readonly string[] {
  return [...new Set([...getCACertificates('default'), ...getCACertificates('system')])];
}

function unusable(key: string, text: string): StorageError {
  return new StorageError('CONFIG', 'open', undefined, `storage.options.${key}: ${text}`);
}

/**
 * The proxy for a URL by HTTP_PROXY, HTTPS_PROXY and NO_PROXY, lower case first, as Go programs read them (golang.org/x/net/http/httpproxy):
 * never for this host itself; in NO_PROXY addresses, networks (10.0.0.0/8), domains with their subdomains, `.domain` for those only, each
 * with an optional port, or `*`.
 * @throws StorageError when the proxy's URL cannot be used
 */
export function proxyFor(url: URL, env: Readonly<Record<string, string | undefined>>): URL | undefined {
  const [lower, upper] =
    url.protocol === 'https:' ? ['https_proxy', 'HTTPS_PROXY'] : ['http_proxy', 'HTTP_PROXY'];
  const written = env[lower] || env[upper] || '';
  if (written === '') return undefined;
  const host = url.hostname.replace(/^\[|\]$/g, '').toLowerCase();
  const port = url.port === '' ? (url.protocol === 'https:' ? '443' : '80') : url.port;
  if (host === 'localhost' || isWithin(host, '127.0.0.0/8') || host === '::1') return undefined;
  for (const entry of (env['no_proxy'] || env['NO_PROXY'] || '').split(',')) {
    if (isExcepted(entry.trim().toLowerCase(), host, port)) return undefined;
  }
  const text = /^[a-z0-9]+:\/\//i.test(written) ? written : `http://${written}`;
  const proxy = parseProxy(text);
  if (proxy === undefined) {
    throw new StorageError(
      'CONFIG',
      'open',
      undefined,
      `storage: the proxy in the environment variable ${upper} is no URL like http://proxy.example.org:3128 (a % in a password is written %25)`,
    );
  }
  return proxy;
}

function parseProxy(text: string): URL | undefined {
  try {
    const url = new URL(text);
    decodeURIComponent(url.username + url.password);
    return ['http:', 'https:', 'socks5:'].includes(url.protocol) ? url : undefined;
  } catch {
    return undefined;
  }
}

function isExcepted(entry: string, host: string, port: string): boolean {
  if (entry === '') return false;
  if (entry === '*') return true;
  if (entry.includes('/')) return isWithin(host, entry);
  const [, name = '', wantedPort] = /^(?:\[(?=.*\]))?(.*?)\]?(?::(\d+))?$/.exec(entry) ?? [];
  const plain = isIP(entry) === 6 ? entry : name;
  if (isIP(entry) !== 6 && wantedPort !== undefined && wantedPort !== port) return false;
  if (isIP(plain) !== 0) return plain === host;
  const domain = plain.replace(/^\*?\./, '');
  return host.endsWith(`.${domain}`) || (host === domain && plain === domain);
}

function isWithin(host: string, network: string): boolean {
  const family = isIP(host);
  const [address = '', bits = ''] = network.split('/');
  if (family === 0 || isIP(address) !== family || !/^\d+$/.test(bits)) return false;
  if (Number(bits) > (family === 4 ? 32 : 128)) return false;
  const list = new BlockList();
  const type = family === 4 ? 'ipv4' : 'ipv6';
  list.addSubnet(address, Number(bits), type);
  return list.check(host, type);
}
