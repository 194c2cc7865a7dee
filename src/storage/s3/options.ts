import { bool, type Decoded, duration, int, key, object, str, zeroIsDefault } from '../../config/decode.ts';

/** Node's timers fire at once when they are set for longer. */
const MAX_TIMER_MS = 2 ** 31 - 1;

/** A duration whose zero means the default, and which may not be negative. More than 24 days are as good as 24. */
function time(defaultMs: number): ReturnType<typeof duration> {
  const decoder = zeroIsDefault(duration({ default: defaultMs, min: 0 }));
  return { ...decoder, read: (values, place) => Math.min(MAX_TIMER_MS, decoder.read(values, place)) };
}

/** Names and defaults are those of Lightning Stream 1.0 (simpleblob's S3 options and go-tlsconfig). */
export const s3Options = object(
  {
    accessKey: key('access_key', str({ secret: true })),
    secretKey: key('secret_key', str({ secret: true })),
    accessKeyFile: key('access_key_file', str()),
    secretKeyFile: key('secret_key_file', str()),
    secretsRefreshIntervalMs: key('secrets_refresh_interval', time(15_000)),
    region: key('region', zeroIsDefault(str({ default: 'us-east-1', check: regionProblem }))),
    bucket: key('bucket', str({ required: true, check: bucketProblem })),
    storageClass: key('storage_class', str()),
    createBucket: key('create_bucket', bool()),
    globalPrefix: key('global_prefix', str()),
    prefixFolders: key('prefix_folders', bool()),
    hideFolders: key('hide_folders', bool()),
    endpointUrl: key('endpoint_url', str({ check: endpointProblem })),
    disableContentMd5: key('disable_send_content_md5', bool()),
    /** Parts that are uploaded at once. */
    threads: key('num_minio_threads', zeroIsDefault(int({ default: 4, min: 0, max: 1000 }))),
    tls: key(
      'tls',
      object({
        ca: key('ca', str()),
        caFile: key('ca_file', str()),
        addSystemCaPool: key('add_system_ca_pool', bool()),
        cert: key('cert', str()),
        certFile: key('cert_file', str()),
        key: key('key', str({ secret: true })),
        keyFile: key('key_file', str()),
        watchCerts: key('watch_certs', bool()),
        watchCertsPollIntervalMs: key('watch_certs_poll_interval', time(5000)),
        /** For servers; a client has nothing to do for it. */
        requireClientCert: key('require_client_cert', bool()),
        insecureSkipVerify: key('insecure_skip_verify', bool()),
        insecureKeyLogFile: key('insecure_key_log_file', str()),
      }),
    ),
    initTimeoutMs: key('init_timeout', time(20_000)),
    idleConnTimeoutMs: key('idle_conn_timeout', time(90_000)),
    maxIdleConns: key('max_idle_conns', zeroIsDefault(int({ default: 100, min: 0 }))),
    dialTimeoutMs: key('dial_timeout', time(10_000)),
    dialKeepAliveMs: key('dial_keep_alive', time(10_000)),
    tlsHandshakeTimeoutMs: key('tls_handshake_timeout', time(10_000)),
    clientTimeoutMs: key('client_timeout', time(900_000)),
    useUpdateMarker: key('use_update_marker', bool()),
    updateMarkerForceListIntervalMs: key('update_marker_force_list_interval', time(300_000)),
  },
  {
    check(options, complain) {
      const pairs = [
        ['access_key', options.accessKey, 'secret_key', options.secretKey],
        ['access_key_file', options.accessKeyFile, 'secret_key_file', options.secretKeyFile],
      ] as const;
      for (const [one, oneValue, other, otherValue] of pairs) {
        if ((oneValue === '') === (otherValue === '')) continue;
        const [absent, present] = oneValue === '' ? [one, other] : [other, one];
        complain(absent, `must be set, as ${present} is`);
      }
      if (options.accessKeyFile !== '' && options.secretsRefreshIntervalMs < 1000) {
        complain('secrets_refresh_interval', 'must be at least 1s');
      }
      const { cert, certFile, key: privateKey, keyFile } = options.tls;
      if ((cert === '' && certFile === '') !== (privateKey === '' && keyFile === '')) {
        complain('tls', 'a client certificate needs both cert (or cert_file) and key (or key_file)');
      }
    },
  },
);

/** The decoded `storage.options` of an S3 storage. Durations are milliseconds. */
export type S3Options = Decoded<typeof s3Options>;

/** It becomes a part of host names. */
function regionProblem(text: string): string | undefined {
  return /^[a-z0-9-]*$/i.test(text) ? undefined : 'must be made of letters, digits and -';
}

/** Each server has its own rules; this keeps it from being more than one segment of a path. */
function bucketProblem(text: string): string | undefined {
  return /^(arn:.*|[a-z0-9][a-z0-9._:-]*)$/i.test(text)
    ? undefined
    : 'must be the name of a bucket: letters, digits, ., - and _';
}

function endpointProblem(text: string): string | undefined {
  if (text === '') return undefined;
  if (!/^https?:\/\//.test(text)) return 'must begin with http:// or https://';
  if (!URL.canParse(text)) return 'must be a URL like https://s3.example.org:9000';
  const url = new URL(text);
  if (url.username !== '' || url.password !== '')
    return 'must hold no credentials; use access_key and secret_key';
  if (url.pathname !== '/' || url.search !== '' || url.hash !== '') {
    return 'must be a scheme, a host and a port only; name the bucket in bucket and a path in global_prefix';
  }
  return undefined;
}
