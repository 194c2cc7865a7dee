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
    accessKey: key(
      'access_key',
      str({ secret: true }),
      'With `secret_key`: the keys. Without these and without files, the default chain of AWS: environment, `~/.aws`, web identity, container, instance.',
    ),
    secretKey: key('secret_key', str({ secret: true }), 'See `access_key`.'),
    accessKeyFile: key(
      'access_key_file',
      str(),
      'With `secret_key_file`: files that hold one key each (Kubernetes and Docker secrets); they win over keys in the configuration. They may be replaced at any time.',
    ),
    secretKeyFile: key('secret_key_file', str(), 'See `access_key_file`.'),
    secretsRefreshIntervalMs: key(
      'secrets_refresh_interval',
      time(15_000),
      'How often these files are read, at least 1s; also at once when the server refuses the keys. If only one of the two has changed, the new pair is used an interval later, or at once when the old one is refused.',
    ),
    region: key(
      'region',
      zeroIsDefault(str({ default: 'us-east-1', check: regionProblem })),
      '`auto` for Cloudflare R2.',
    ),
    bucket: key('bucket', str({ required: true, check: bucketProblem }), 'Where the snapshots are.'),
    storageClass: key(
      'storage_class',
      str(),
      'The storage class of stored objects, such as `STANDARD_IA`; empty: that of the bucket.',
    ),
    createBucket: key('create_bucket', bool(), 'Create the bucket when it is not there.'),
    globalPrefix: key(
      'global_prefix',
      str(),
      'Put before the name of each object, such as `site-1/`; objects elsewhere in the bucket are not seen. MinIO and others find nothing below one that begins with `/` or has `//`, `./` or `../` in it.',
    ),
    prefixFolders: key(
      'prefix_folders',
      bool(),
      'Deprecated: list what stands before a `/` once, as if it were an object.',
    ),
    hideFolders: key(
      'hide_folders',
      bool(),
      'Do not list objects with a `/` in their name (after `global_prefix`): quicker where the bucket holds many others.',
    ),
    endpointUrl: key(
      'endpoint_url',
      str({ check: endpointProblem }),
      "Scheme, host and port of the server. Empty: AWS, in `region`. With a server that is not AWS's own the bucket is part of the path, not of the host name.",
    ),
    disableContentMd5: key(
      'disable_send_content_md5',
      bool(),
      'Send no MD5 with what is stored. Buckets with object lock demand it.',
    ),
    /** Parts that are uploaded at once. */
    threads: key(
      'num_minio_threads',
      zeroIsDefault(int({ default: 4, min: 0, max: 1000 })),
      'Parts of a large object (more than 16 MiB) that are uploaded at once; 0 is the default.',
    ),
    tls: key(
      'tls',
      object({
        ca: key('ca', str(), 'What would be in `ca_file`. A file wins, here and below.'),
        caFile: key(
          'ca_file',
          str(),
          "File with the certificates (PEM) of the authorities that may have signed the server's; instead of the known ones.",
        ),
        addSystemCaPool: key('add_system_ca_pool', bool(), 'Trust the known authorities, too.'),
        cert: key('cert', str(), 'What would be in `cert_file`.'),
        certFile: key('cert_file', str(), 'With `key_file`: a client certificate (PEM).'),
        key: key('key', str({ secret: true }), 'What would be in `key_file`.'),
        keyFile: key('key_file', str(), 'The key of `cert_file` (PEM).'),
        watchCerts: key(
          'watch_certs',
          bool(),
          'Use changed certificate files, authorities included, without a restart.',
        ),
        watchCertsPollIntervalMs: key('watch_certs_poll_interval', time(5000), 'How often these are read.'),
        /** For servers; a client has nothing to do for it. */
        requireClientCert: key('require_client_cert', bool(), 'For servers; without effect here.'),
        insecureSkipVerify: key('insecure_skip_verify', bool(), 'Accept any certificate: for tests only.'),
        insecureKeyLogFile: key(
          'insecure_key_log_file',
          str(),
          'Append the keys of TLS connections to this file, for debugging with Wireshark. Not for those through a proxy.',
        ),
      }),
    ),
    initTimeoutMs: key(
      'init_timeout',
      time(20_000),
      'The longest that the server may take for its first answer, and for creating the bucket.',
    ),
    idleConnTimeoutMs: key(
      'idle_conn_timeout',
      time(90_000),
      'The time after which an unused connection is closed.',
    ),
    maxIdleConns: key(
      'max_idle_conns',
      zeroIsDefault(int({ default: 100, min: 0 })),
      'The most connections that stay open, and so the most at once; never fewer than `num_minio_threads` and 8 more. 0 is the default.',
    ),
    dialTimeoutMs: key('dial_timeout', time(10_000), 'The longest that connecting may take.'),
    dialKeepAliveMs: key(
      'dial_keep_alive',
      time(10_000),
      'The time after which the kernel begins to probe a silent connection.',
    ),
    tlsHandshakeTimeoutMs: key(
      'tls_handshake_timeout',
      time(10_000),
      'The longest that the TLS handshake may take.',
    ),
    clientTimeoutMs: key(
      'client_timeout',
      time(900_000),
      'The longest that a listing, load, store or deletion may take, with all its requests.',
    ),
    useUpdateMarker: key(
      'use_update_marker',
      bool(),
      "An instance that stores or deletes writes it into a small object, `update-marker`, and lists only when that has changed: cheap reads take the place of expensive listings ([what it saves](performance.md#s3-requests)). All instances must agree, Lightning Stream's own included: what one without it stores, the others see after the next interval only (and warn of it). Not in a bucket that is replicated between sites in both directions.",
    ),
    updateMarkerForceListIntervalMs: key(
      'update_marker_force_list_interval',
      time(300_000),
      'The time after which the storage is listed although the update marker is the same.',
    ),
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
