import { expect, test } from 'vitest';
import { decodeOptions } from '../../src/config/decode.ts';
import { createMetrics } from '../../src/observability/metrics.ts';
import { proxyFor } from '../../src/storage/s3/connections.ts';
import { s3Options } from '../../src/storage/s3/options.ts';
import { parseExposition } from '../golden/metrics/exposition.ts';

const keys = { bucket: 'b', access_key: 'a', secret_key: 's' };

test.each([
  [{ ...keys, endpoint_url: 'localhost:9000' }, 'endpoint_url: must begin with http:// or https://'],
  [{ ...keys, endpoint_url: 'ftp://x' }, 'endpoint_url: must begin with http:// or https://'],
  [{ ...keys, endpoint_url: 'http://' }, 'endpoint_url: must be a URL like'],
  [{ ...keys, endpoint_url: 'http://u:pw@h' }, 'endpoint_url: must hold no credentials'],
  [{ ...keys, endpoint_url: 'http://h/bucket' }, 'endpoint_url: must be a scheme, a host and a port only'],
  [{ bucket: 'b', access_key: 'a' }, 'secret_key: must be set, as access_key is'],
  [{ bucket: 'b', secret_key: 's' }, 'access_key: must be set, as secret_key is'],
  [{ ...keys, access_key_file: '/x' }, 'secret_key_file: must be set, as access_key_file is'],
  [{ ...keys, tls: { cert_file: '/x' } }, 'tls: a client certificate needs both'],
  [{ ...keys, tls: { ca_fil: '/x' } }, 'tls.ca_fil: unknown key: did you mean ca_file?'],
  [{ ...keys, region: 'us east/1' }, 'region: must be made of letters, digits and -'],
  [{ ...keys, bucket: '..' }, 'bucket: must be the name of a bucket'],
  [{ ...keys, bucket: 'b/site-1' }, 'bucket: must be the name of a bucket'],
  [{ ...keys, bucket: 'b?x' }, 'bucket: must be the name of a bucket'],
  [{ ...keys, client_timeout: '-1s' }, 'client_timeout: must be at least 0s'],
  [{ access_key: 'a', secret_key: 's' }, 'bucket: must be set'],
])('%j is refused', (options, complaint) => {
  const decode = (): unknown => decodeOptions(options, s3Options);
  expect(decode).toThrow(`storage.options.${complaint}`);
  expect(decode).not.toThrow('pw');
});

test('zero means the default, as there', () => {
  const zeros = {
    init_timeout: 0,
    client_timeout: '0s',
    max_idle_conns: 0,
    num_minio_threads: 0,
    secrets_refresh_interval: 0,
    region: '',
  };
  const options = decodeOptions({ bucket: 'b', ...zeros }, s3Options);
  expect(options).toMatchObject({
    initTimeoutMs: 20_000,
    clientTimeoutMs: 900_000,
    maxIdleConns: 100,
    threads: 4,
    secretsRefreshIntervalMs: 15_000,
    region: 'us-east-1',
  });
});

test('times that no timer can hold are as long as one can', () => {
  const times = {
    dial_timeout: '1000h',
    client_timeout: '1000000h',
    tls: { watch_certs_poll_interval: '600h' },
  };
  const options = decodeOptions({ bucket: 'b', ...times }, s3Options);
  const longestMs = 0x7fffffff;
  expect(options).toMatchObject({
    dialTimeoutMs: longestMs,
    clientTimeoutMs: longestMs,
    tls: { watchCertsPollIntervalMs: longestMs },
  });
});

// From the documentation of golang.org/x/net/http/httpproxy, which says what Lightning Stream does.
test.each([
  ['http://s3.example.org:9000', { HTTP_PROXY: 'http://p:1' }, 'http://p:1/'],
  ['http://s3.example.org', { http_proxy: 'p:1', HTTP_PROXY: 'http://q:1' }, 'http://p:1/'],
  ['http://s3.example.org', { HTTPS_PROXY: 'http://p:1' }, undefined],
  ['https://s3.example.org', { HTTP_PROXY: 'http://p:1' }, undefined],
  ['https://s3.example.org', { HTTPS_PROXY: 'https://p:1' }, 'https://p:1/'],
  ['http://localhost:9000', { HTTP_PROXY: 'http://p:1' }, undefined],
  ['http://127.0.0.2:9000', { HTTP_PROXY: 'http://p:1' }, undefined],
  ['http://[::1]:9000', { HTTP_PROXY: 'http://p:1' }, undefined],
  ['http://s3.example.org', { HTTP_PROXY: 'http://p:1', NO_PROXY: 'example.org' }, undefined],
  ['http://example.org', { HTTP_PROXY: 'http://p:1', NO_PROXY: 'x, example.org' }, undefined],
  ['http://s3.example.org', { HTTP_PROXY: 'http://p:1', NO_PROXY: '.example.org' }, undefined],
  ['http://example.org', { HTTP_PROXY: 'http://p:1', NO_PROXY: '.example.org' }, 'http://p:1/'],
  ['http://notexample.org', { HTTP_PROXY: 'http://p:1', NO_PROXY: 'example.org' }, 'http://p:1/'],
  ['http://s3.example.org:81', { HTTP_PROXY: 'http://p:1', NO_PROXY: 'example.org:80' }, 'http://p:1/'],
  ['http://s3.example.org', { HTTP_PROXY: 'http://p:1', NO_PROXY: 'example.org:80' }, undefined],
  ['http://10.1.2.3', { HTTP_PROXY: 'http://p:1', NO_PROXY: '10.0.0.0/8' }, undefined],
  ['http://11.1.2.3', { HTTP_PROXY: 'http://p:1', NO_PROXY: '10.0.0.0/8' }, 'http://p:1/'],
  ['http://10.1.2.3', { HTTP_PROXY: 'http://p:1', NO_PROXY: '10.1.2.3' }, undefined],
  ['http://[2001:db8::1]', { HTTP_PROXY: 'http://p:1', NO_PROXY: '2001:db8::/32' }, undefined],
  ['http://[2001:db8::1]', { HTTP_PROXY: 'http://p:1', NO_PROXY: '2001:db8::1' }, undefined],
  ['http://[2001:db8::1]:81', { HTTP_PROXY: 'http://p:1', NO_PROXY: '[2001:db8::1]:80' }, 'http://p:1/'],
  ['http://s3.example.org', { HTTP_PROXY: 'http://p:1', NO_PROXY: '*' }, undefined],
])('the proxy for %s with %j', (url, env, proxy) => {
  expect(proxyFor(new URL(url), env)?.href).toBe(proxy);
});

test.each(['ftp://u:pw@p', 'http://u:pw%@p', 'http://u:pw%ff@p'])(
  'the proxy %s is refused without its password',
  (text) => {
    const call = (): unknown => proxyFor(new URL('http://h'), { HTTP_PROXY: text });
    expect(call).toThrow('HTTP_PROXY is no URL like');
    expect(call).not.toThrow('pw');
  },
);

test('calls are counted under the names of simpleblob', async () => {
  const metrics = createMetrics({ scrapeSmaps: false });
  metrics.storageCalls('s3', 'list', 0.02, undefined);
  metrics.storageCalls('s3', 'list', 70, 'Timeout');
  metrics.storageCalls('s3', 'store', 0.02, undefined);
  const page = parseExposition((await metrics.page()).text);
  const value = (name: string, labels: Record<string, string>): number | undefined =>
    page
      .get(`storage_s3_call_${name}`)
      ?.samples.find((sample) =>
        Object.entries(labels).every(([key, text]) => sample.labels.get(key) === text),
      )?.value;
  expect(value('total', { method: 'list' })).toBe(2);
  expect(value('total', { method: 'store' })).toBe(1);
  expect(value('error_total', { method: 'list' })).toBe(1);
  expect(value('error_total', { method: 'store' })).toBeUndefined();
  expect(value('error_by_type_total', { method: 'list', error: 'Timeout' })).toBe(1);
  expect(Math.abs((value('timestamp_seconds', { method: 'list' }) ?? 0) - Date.now() / 1000)).toBeLessThan(
    60,
  );
  const buckets = page
    .get('storage_s3_call_duration_seconds')
    ?.samples.filter(({ labels }) => labels.get('method') === 'list' && labels.has('le'));
  expect(buckets?.map(({ labels, value: count }) => `${labels.get('le')} ${count}`)).toEqual([
    '0.001 0',
    '0.005 0',
    '0.01 0',
    '0.05 1',
    '0.1 1',
    '0.5 1',
    '1 1',
    '5 1',
    '10 1',
    '30 1',
    '60 1',
    '+Inf 2',
  ]);
  expect([...page.keys()].filter((name) => name.startsWith('storage_azure'))).toEqual([]);
});
