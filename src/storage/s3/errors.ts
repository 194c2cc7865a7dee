import { constants } from 'node:os';
import { getSystemErrorMessage } from 'node:util';
import { errorMessage } from '../../errors.ts';
import { StorageError } from '../storage.ts';

/** What is known about a failed request. */
export interface Failure {
  /** The server's HTTP status, undefined when there was no answer. */
  readonly status: number | undefined;
  /** The code of S3 (`AccessDenied`, …), or that of the network or TLS error (`ECONNREFUSED`, …); `''` when there is none. */
  readonly code: string;
  readonly requestId: string | undefined;
  /** How long the server asks to wait, ms. */
  readonly retryAfterMs: number | undefined;
  /** What the server or the system says. */
  readonly text: string;
  /** The region that the server names. */
  readonly region: string | undefined;
  /** An answer came, but it is none that an S3 server gives. */
  readonly isForeign: boolean;
}

/** Where requests go, for messages. */
export interface Target {
  readonly bucket: string;
  /** `https://s3.example.org`. */
  readonly endpoint: string;
  /** The configured region. */
  readonly region: string;
  /** Host and port of the proxy. */
  readonly proxy: string | undefined;
  /** Where the keys come from. */
  readonly keys: string;
}

/** The answer was that of a web server, proxy or portal: no S3 server sends it. */
export class ForeignAnswerError extends Error {
  override readonly name = 'ForeignAnswerError';
}

interface SdkError extends Error {
  readonly $metadata?: { readonly httpStatusCode?: number; readonly requestId?: string };
  readonly $response?: { readonly headers?: Readonly<Record<string, string>>; readonly body?: unknown };
  readonly Code?: string;
  readonly Region?: string;
  readonly code?: unknown;
}

/** Names that the SDK gives to errors of which it does not know the code. */
const NO_CODES =
  /^(|Unknown|UnknownError|Error|S3ServiceException|SyntaxError|TypeError|ForeignAnswerError|[0-9]+)$/;
/** Codes in place of the ones that a HEAD, which has no body, cannot tell. */
const S3_CODE = /^[A-Za-z][A-Za-z0-9.]*$/;

/** Reads what the SDK, its HTTP handler or Node threw. */
export function describe(error: unknown): Failure {
  if (!(error instanceof Error)) return { ...nothing, text: String(error) };
  const { $metadata, $response, Code, Region } = error as SdkError;
  const status = $metadata?.httpStatusCode;
  if (status === undefined) {
    const root = rootCause(error);
    return {
      ...nothing,
      code: codeOf(root),
      text: errorMessage(root),
      isForeign: error instanceof ForeignAnswerError,
    };
  }
  const name = Code ?? error.name;
  const code = NO_CODES.test(name) || !S3_CODE.test(name) ? '' : name;
  const headers = $response?.headers ?? {};
  return {
    status,
    code,
    requestId: $metadata?.requestId,
    retryAfterMs: retryAfterMs(headers['retry-after']),
    text: code === '' ? '' : oneLine(error.message),
    region: Region ?? headers['x-amz-bucket-region'],
    isForeign: code === '' && typeof $response?.body === 'string' && $response.body.trim() !== '',
  };
}

const nothing: Failure = {
  status: undefined,
  code: '',
  requestId: undefined,
  retryAfterMs: undefined,
  text: '',
  region: undefined,
  isForeign: false,
};

/** The innermost error with a code: sockets' errors come wrapped, and one per address of a name. */
function rootCause(error: Error): Error {
  const inner =
    error instanceof AggregateError ? (error.errors as unknown[])[0] : (error as { cause?: unknown }).cause;
  if (inner instanceof Error && (codeOf(inner) !== '' || codeOf(error) === '')) return rootCause(inner);
  return error;
}

function codeOf(error: Error): string {
  const { code } = error as SdkError;
  return typeof code === 'string' ? code : '';
}

/** Seconds or an HTTP date (RFC 9110, 10.2.3). */
function retryAfterMs(value: string | undefined): number | undefined {
  if (value === undefined) return undefined;
  const ms = /^\s*\d+\s*$/.test(value) ? Number(value) * 1000 : Date.parse(value) - Date.now();
  return Number.isFinite(ms) ? Math.max(0, ms) : undefined;
}

const THROTTLED = new Set([
  'SlowDown',
  'SlowDownRead',
  'SlowDownWrite',
  'ServiceUnavailable',
  'TooManyRequests',
  'Throttling',
  'ThrottlingException',
  'RequestLimitExceeded',
  'BandwidthLimitExceeded',
]);
const PASSING = new Set([
  'InternalError',
  'RequestTimeout',
  'OperationAborted',
  'XMinioServerNotInitialized',
]);
/** The last one is versitygw's. */
const KEY_UNKNOWN = new Set(['InvalidAccessKeyId', 'InvalidAccessKey', 'XAdminUserNotFound']);
const KEYS_REFUSED = new Set([
  ...KEY_UNKNOWN,
  'SignatureDoesNotMatch',
  'ExpiredToken',
  'ExpiredTokenException',
  'InvalidToken',
  'TokenRefreshRequired',
]);
const SKEWED = new Set(['RequestTimeTooSkewed', 'RequestExpired', 'RequestInTheFuture']);
const TOO_LATE = new Set([
  'ETIMEDOUT',
  'UND_ERR_CONNECT_TIMEOUT',
  'UND_ERR_HEADERS_TIMEOUT',
  'UND_ERR_BODY_TIMEOUT',
]);
const NO_SUCH_HOST = new Set(['ENOTFOUND', 'EAI_AGAIN', 'EAI_FAIL', 'EAI_NODATA', 'EAI_NONAME']);
const UNKNOWN_CA = new Set([
  'SELF_SIGNED_CERT_IN_CHAIN',
  'DEPTH_ZERO_SELF_SIGNED_CERT',
  'UNABLE_TO_VERIFY_LEAF_SIGNATURE',
  'UNABLE_TO_GET_ISSUER_CERT',
  'UNABLE_TO_GET_ISSUER_CERT_LOCALLY',
]);
const OTHER_CERTIFICATE_FAULTS = /^(CERT_|ERR_TLS_CERT_|CRL_|HOSTNAME_MISMATCH|INVALID_CA|PATH_LENGTH)/;
const TLS_FAULT = /^(ERR_SSL_|EPROTO$)/;

/** The server asks for fewer requests. */
export function isThrottled({ status, code }: Failure): boolean {
  return status === 429 || status === 503 || THROTTLED.has(code);
}

/** Other keys may help. */
export function areKeysRefused({ code }: Failure): boolean {
  return KEYS_REFUSED.has(code);
}

/** The SDK corrects its clock by the server's with the answer. */
export function isClockSkewed({ code }: Failure): boolean {
  return SKEWED.has(code);
}

/** Trouble that may be over at once: worth another attempt within the same call. */
export function mayPass(failure: Failure): boolean {
  const { status, code, isForeign } = failure;
  if (status !== undefined) {
    return isThrottled(failure) || [500, 502, 504].includes(status) || PASSING.has(code);
  }
  // An attempt that took until its time was up is not repeated within the call.
  return (
    !isForeign &&
    !isTlsFault(failure) &&
    code !== '' &&
    !['ETIMEDOUT', 'UND_ERR_CONNECT_TIMEOUT', 'UND_ERR_HEADERS_TIMEOUT', 'ENOTFOUND'].includes(code)
  );
}

function isTlsFault({ code }: Failure): boolean {
  return UNKNOWN_CA.has(code) || OTHER_CERTIFICATE_FAULTS.test(code) || TLS_FAULT.test(code);
}

/** The value of the label `error` of `storage_s3_call_error_by_type_total`, as simpleblob's S3 backend gives it. */
export function errorLabel(failure: Failure): string {
  if (failure.status !== undefined) return failure.code === '' ? 'Unknown' : failure.code;
  if (TOO_LATE.has(failure.code) || failure.code === 'TIMEOUT') return 'Timeout';
  if (NO_SUCH_HOST.has(failure.code)) return 'DNSError';
  return failure.code === '' ? 'Unknown' : 'URLError';
}

/** The error to throw: one line that says what failed, why, and what to do about it. */
export function failedCall(
  operation: StorageError['operation'],
  object: string | undefined,
  failure: Failure,
  target: Target,
  cause: unknown,
): StorageError {
  const what = object === undefined ? operation : `${operation} ${JSON.stringify(object)}`;
  const facts = [failure.status === undefined ? '' : `HTTP ${failure.status}`, failure.code].filter(
    (text) => text !== '',
  );
  const where = `bucket ${JSON.stringify(target.bucket)} at ${target.endpoint}`;
  const message = `storage: cannot ${what}: ${explain(operation, failure, target)}${facts.length === 0 ? '' : ` (${facts.join(', ')})`}: ${where}`;
  return new StorageError(failure.code === '' ? 'S3' : failure.code, operation, object, message, {
    cause,
    fields: {
      endpoint: target.endpoint,
      bucket: target.bucket,
      ...(failure.status === undefined ? {} : { http_status: failure.status }),
      ...(failure.code === '' ? {} : { [failure.status === undefined ? 'code' : 's3_code']: failure.code }),
      ...(failure.requestId === undefined ? {} : { request_id: failure.requestId }),
    },
  });
}

const PERMISSIONS: Readonly<Record<StorageError['operation'], string>> = {
  // The only request by then.
  open: 's3:CreateBucket',
  list: 's3:ListBucket',
  // Without the latter, an object that is absent counts as forbidden.
  load: 's3:GetObject (and s3:ListBucket)',
  store: 's3:PutObject (and s3:AbortMultipartUpload)',
  delete: 's3:DeleteObject',
};

function explain(operation: StorageError['operation'], failure: Failure, target: Target): string {
  const { status, code, text } = failure;
  if (failure.isForeign) {
    return `this is not the answer of an S3 server; check storage.options.endpoint_url${target.proxy === undefined ? '' : ` and the proxy ${target.proxy}`}`;
  }
  if (status !== undefined) {
    if (code === 'NoSuchBucket') {
      return 'the bucket does not exist; create it, set storage.options.create_bucket, or correct storage.options.bucket';
    }
    if (KEY_UNKNOWN.has(code)) {
      return `the server does not know the access key, or it is disabled; check ${target.keys}`;
    }
    if (code === 'InvalidBucketName') {
      return 'no bucket can have this name; correct storage.options.bucket';
    }
    if (code === 'SignatureDoesNotMatch') return `the secret key is wrong; check ${target.keys}`;
    if (KEYS_REFUSED.has(code)) return `the temporary credentials have expired; check ${target.keys}`;
    if (SKEWED.has(code))
      return 'the clock of this host and that of the server differ too much; set the clock';
    if (
      failure.region !== undefined ||
      code === 'PermanentRedirect' ||
      code === 'AuthorizationHeaderMalformed' ||
      code === 'IllegalLocationConstraintException'
    ) {
      const region = failure.region === undefined ? '' : `: it is ${failure.region}`;
      return `the bucket is not in region ${target.region}${region}; correct storage.options.region or storage.options.endpoint_url`;
    }
    if (status >= 300 && status < 400) {
      return 'the server sends to another address; correct storage.options.endpoint_url (scheme, host, port)';
    }
    if (status === 407) return `the proxy ${target.proxy ?? ''} wants other credentials`;
    if (code === 'AccessDenied' || status === 403) {
      return `the keys have no permission for this; they need ${PERMISSIONS[operation]}`;
    }
    if (code === 'BucketAlreadyExists') {
      return 'a bucket of this name belongs to somebody else; correct storage.options.bucket';
    }
    if (isThrottled(failure)) return 'the server asks for fewer requests or is not ready';
    if (text !== '' && text !== code) return text.replace(/[.\s]+$/, '');
    return status >= 500 ? 'the server failed' : 'the server refused the request';
  }
  if (UNKNOWN_CA.has(code)) {
    return "the server's certificate is not signed by a known authority; name its CA in storage.options.tls.ca_file";
  }
  if (code === 'ERR_TLS_CERT_ALTNAME_INVALID') {
    return "the server's certificate is for another host name; correct storage.options.endpoint_url";
  }
  if (code === 'CERT_HAS_EXPIRED') {
    return "the server's certificate has expired, or the clock of this host is wrong; renew the one or set the other";
  }
  if (/WRONG_VERSION_NUMBER|PACKET_LENGTH|HTTP_REQUEST/.test(code)) {
    return 'the server does not speak TLS; should storage.options.endpoint_url begin with http:// ?';
  }
  if (/CERTIFICATE_REQUIRED|HANDSHAKE_FAILURE|BAD_CERTIFICATE|UNKNOWN_CA/.test(code)) {
    return 'the server refused our client certificate; check storage.options.tls.cert_file and key_file';
  }
  const via = target.proxy === undefined ? '' : `, through the proxy ${target.proxy}`;
  if (NO_SUCH_HOST.has(code))
    return `the host name is not known${via}; check storage.options.endpoint_url and the name server`;
  if (code === 'ECONNREFUSED')
    return `nothing listens there${via}; check storage.options.endpoint_url and the server`;
  if (code === 'UND_ERR_SOCKET' || code === 'ECONNRESET' || code === 'EPIPE')
    return `the connection broke${via}`;
  if (code === 'UND_ERR_CONNECT_TIMEOUT') return `connecting took too long${via}`;
  if (code === 'UND_ERR_HEADERS_TIMEOUT') return `the server did not answer in time${via}`;
  if (code === 'UND_ERR_BODY_TIMEOUT') return `the server stopped sending${via}`;
  if (code !== '' && Object.hasOwn(constants.errno, code) && code !== 'ETIMEDOUT') {
    return `${getSystemErrorMessage(-constants.errno[code as keyof typeof constants.errno])}${via}`;
  }
  if (text === '') return 'the request failed';
  return /credential/i.test(text)
    ? `no credentials: set access_key and secret_key in storage.options (an unset variable leaves them empty), or those of the AWS default chain (${text})`
    : `${text}${via}`;
}

function oneLine(text: string): string {
  return text.replace(/\s*\n[\s\S]*$/, '').trim();
}
