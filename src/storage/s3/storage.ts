import { createHash } from 'node:crypto';
import { type FileHandle, open } from 'node:fs/promises';
import { Readable } from 'node:stream';
import { setTimeout as wait } from 'node:timers/promises';
import {
  AbortMultipartUploadCommand,
  CompleteMultipartUploadCommand,
  type CompletedPart,
  CreateBucketCommand,
  CreateMultipartUploadCommand,
  DeleteObjectCommand,
  GetObjectCommand,
  type GetObjectCommandOutput,
  ListObjectsV2Command,
  PutObjectCommand,
  S3Client,
  type StorageClass,
  UploadPartCommand,
} from '@aws-sdk/client-s3';
import { UndiciHttpHandler } from '@smithy/undici-http-handler';
import { formatDuration } from '../../config/units.ts';
import type { Logger } from '../../observability/logger.ts';
import { saveObject } from '../local-file.ts';
import { compareNames } from '../order.ts';
import {
  type CallOptions,
  StorageError,
  type StorageObject,
  type TaggedStorage,
  updateMarkerName,
} from '../storage.ts';
import { attempt, notFound } from '../system-error.ts';
import { openConnections } from './connections.ts';
import { type AwsCredentialIdentity, type Credentials, openCredentials } from './credentials.ts';
import {
  areKeysRefused,
  describe,
  errorLabel,
  failedCall,
  type Failure,
  ForeignAnswerError,
  isClockSkewed,
  isThrottled,
  mayPass,
  type Target,
} from './errors.ts';
import type { S3Options } from './options.ts';

/** What S3 storage is opened with besides its options. */
export interface S3Context {
  readonly logger: Logger;
  /** Told of each secret before it is used. */
  readonly addSecrets: (values: Iterable<string>) => void;
  /** Told of each call when it ends; `error` is the value of the metric's label. */
  readonly onCall: (method: S3Method, durationSeconds: number, error: string | undefined) => void;
  /** For the proxy variables. */
  readonly env: Readonly<Record<string, string | undefined>>;
}

/** The labels of `storage_s3_call_*`. */
export type S3Method = 'list' | 'load' | 'store' | 'delete' | 'create-bucket';

const MIB = 1 << 20;
/** Larger objects are stored in parts of this size (as minio-go does), or larger ones where these would be too many. */
const PART_BYTES = 16 * MIB;
/** https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html */
const MAX_PARTS = 10_000;
const CHUNK_BYTES = 128 << 10;
const SMALL_BYTES = 64 << 10;
/** Requests that carry little wait for so long for an answer, or for the next bytes of it. */
const STALL_MS = 60_000;
/** Uploads may be as slow as this, 16 KiB/s each. */
const MIN_BYTES_PER_MS = 16;
/** What was sent completely is waited for so long after an abort: only the answer tells whether it counts. */
const ABORT_GRACE_MS = 2000;
/** Per request; whoever called tries again as configured (`storage_retry_*`). */
const ATTEMPTS = 3;
const BASE_DELAY_MS = 200;
const THROTTLED_BASE_DELAY_MS = 1000;
const MAX_DELAY_MS = 10_000;
/** A server that asks for more is taken by its word up to this. */
const MAX_RETRY_AFTER_MS = 30_000;

/** What one attempt of a request is made with. */
interface Attempt {
  readonly abortSignal: AbortSignal;
  /** How long nothing may come, ms. */
  readonly requestTimeout: number;
}

/** One storage operation under way. */
interface Call {
  readonly operation: StorageError['operation'];
  readonly object: string | undefined;
  /** Aborted by the caller or when `client_timeout` is over. */
  readonly signal: AbortSignal;
}

/** The object was replaced while it was being loaded. */
class ReplacedError extends Error {}

/**
 * Objects of a bucket of S3 or of a server that speaks its protocol (MinIO, Ceph, R2, versitygw, …).
 *
 * Bodies stream between file and socket. What is uploaded is protected by Content-MD5 (which object-lock buckets demand) unless
 * it is switched off, and over plain http by a signed SHA-256: both come from a pass over the file slice before it is sent, since the
 * alternative, chunked signatures with trailing checksums, is refused by R2, older MinIO and Ceph. Over https the payload stays unsigned,
 * as TLS protects it.
 *
 * Object sizes and ETags are checked on the way in: a download that breaks goes on where it was, as long as the object is the same one.
 */
export class S3Storage implements TaggedStorage {
  readonly type = 's3';
  readonly location: string;
  readonly #client: S3Client;
  readonly #options: S3Options;
  readonly #context: S3Context;
  readonly #credentials: Credentials;
  readonly #target: Target;
  readonly #isPlainHttp: boolean;
  readonly #endWatch: () => void;
  /** From then on the server may take longer. */
  #hasAnswered = false;

  /**
   * Reads keys and certificates. The server is not asked for anything before the first call: a daemon that starts while it is away, or
   * while the bucket or the permissions are not there yet, goes on as soon as they are.
   * @throws StorageError for keys or certificates that cannot be used
   */
  static async open(options: S3Options, context: S3Context): Promise<S3Storage> {
    const credentials = await openCredentials(options, context);
    const url = bucketUrl(options);
    if (url.protocol === 'https:' && options.tls.insecureSkipVerify) {
      context.logger.warning(
        'S3: whoever answers is taken for the server, because storage.options.tls.insecure_skip_verify is set',
      );
    }
    // Where the file system's ways show through, what is stored is then found in no listing. AWS and Ceph take names as they are.
    if (!isAws(url) && /^\/|\/\/|(^|\/)\.{1,2}\//.test(options.globalPrefix)) {
      context.logger.warning(
        'S3: storage.options.global_prefix should not begin with "/" nor have "//", "./" or "../" in it: on MinIO and others, nothing is found below it',
        { global_prefix: options.globalPrefix },
      );
    }
    const connections = await openConnections(url, options, context);
    const handler = new UndiciHttpHandler({ dispatcher: connections.dispatcher });
    return new S3Storage(options, context, {
      credentials,
      handler,
      isPlainHttp: url.protocol === 'http:',
      proxy: connections.proxy,
      endWatch: connections.watch((dispatcher) => handler.updateHttpClientConfig('dispatcher', dispatcher)),
    });
  }

  private constructor(
    options: S3Options,
    context: S3Context,
    parts: {
      readonly credentials: Credentials;
      readonly handler: UndiciHttpHandler;
      readonly isPlainHttp: boolean;
      readonly proxy: string | undefined;
      readonly endWatch: () => void;
    },
  ) {
    this.#options = options;
    this.#context = context;
    this.#credentials = parts.credentials;
    this.#isPlainHttp = parts.isPlainHttp;
    this.#endWatch = parts.endWatch;
    const endpoint = customEndpoint(options);
    const { region, bucket, globalPrefix } = options;
    this.location =
      endpoint === undefined
        ? `s3://${bucket}/${globalPrefix} (${region})`
        : `${endpoint.origin}/${bucket}/${globalPrefix}`;
    this.#target = {
      bucket,
      endpoint: endpoint?.origin ?? `AWS, region ${region}`,
      region,
      proxy: parts.proxy,
      keys:
        options.accessKeyFile !== ''
          ? 'access_key_file and secret_key_file'
          : options.accessKey !== ''
            ? 'access_key and secret_key'
            : 'the credentials of the AWS default chain',
    };
    this.#client = new S3Client({
      region,
      ...(endpoint === undefined
        ? { ignoreConfiguredEndpointUrls: true }
        : { endpoint: endpoint.origin, forcePathStyle: !isAws(endpoint) }),
      // Asked for each request: what is given back counts as expired soon, so the SDK keeps nothing.
      credentials: async () => {
        const { accessKeyId, secretAccessKey, sessionToken } = await parts.credentials.get();
        return {
          accessKeyId,
          secretAccessKey,
          ...(sessionToken === undefined ? {} : { sessionToken }),
          expiration: new Date(Date.now() + 1000),
        };
      },
      requestHandler: parts.handler,
      // Newer SDKs would send and demand checksums that R2, older MinIO and Ceph do not know.
      requestChecksumCalculation: 'WHEN_REQUIRED',
      responseChecksumValidation: 'WHEN_REQUIRED',
      customUserAgent: 'lightningstream-ts',
      // Nothing is read from ~/.aws/config, which is not ours.
      // Attempts are counted in #send, where a body can be made anew for each.
      maxAttempts: 1,
      retryMode: 'standard',
      defaultsMode: 'standard',
      useArnRegion: false,
      useDualstackEndpoint: false,
      useFipsEndpoint: false,
      disableS3ExpressSessionAuth: false,
      userAgentAppId: () => Promise.resolve(undefined),
      // The SDK's default one lets it write warnings to the console.
      logger: { trace() {}, debug() {}, info() {}, warn() {}, error() {} },
    });
  }

  async #createBucket(signal: AbortSignal): Promise<void> {
    const { region } = this.#target;
    const { bucket: Bucket } = this.#options;
    const command = {
      Bucket,
      ...(region === 'us-east-1' || region === 'auto'
        ? {}
        : { CreateBucketConfiguration: { LocationConstraint: region as never } }),
    };
    const create = async (call: Call): Promise<void> => {
      await this.#send(call, (each) => this.#client.send(new CreateBucketCommand(command), each)).catch(
        (error: unknown) => {
          // Another instance was faster.
          if (error instanceof StorageError && error.code === 'BucketAlreadyOwnedByYou') return;
          throw error;
        },
      );
    };
    await this.#timed('open', 'create-bucket', undefined, signal, create, {
      timeoutMs: this.#options.initTimeoutMs,
      limit: 'init_timeout',
    });
    this.#context.logger.info('created the S3 bucket', { bucket: Bucket });
  }

  async list(prefix: string, { signal }: CallOptions): Promise<readonly StorageObject[]> {
    return this.#call('list', 'list', undefined, signal, async (call) => {
      const objects: StorageObject[] = [];
      let token: string | undefined;
      do {
        const page = await this.#listPage(call, prefix, { token });
        objects.push(...page.objects);
        token = page.next;
      } while (token !== undefined);
      return objects.sort((a, b) => compareNames(a.name, b.name));
    });
  }

  async listPage(prefix: string, { signal }: CallOptions): Promise<readonly StorageObject[] | undefined> {
    return this.#call('list', 'list', undefined, signal, async (call) => {
      const { objects, next } = await this.#listPage(call, prefix, {});
      return next === undefined ? objects.toSorted((a, b) => compareNames(a.name, b.name)) : undefined;
    });
  }

  async #listPage(
    call: Call,
    prefix: string,
    { token }: { readonly token?: string | undefined },
  ): Promise<{ readonly objects: readonly StorageObject[]; readonly next: string | undefined }> {
    const { globalPrefix, bucket, hideFolders, prefixFolders } = this.#options;
    const wanted = globalPrefix + prefix;
    const output = await this.#send(call, async (each) => {
      const answer = await this.#client.send(
        new ListObjectsV2Command({
          Bucket: bucket,
          // MinIO refuses to list what begins with a dot or two; the rest is left out below.
          Prefix: wanted.replace(/(^|\/)\.{1,2}$/, '$1'),
          ...(hideFolders || prefixFolders ? { Delimiter: '/' } : {}),
          ...(token === undefined ? {} : { ContinuationToken: token }),
        }),
        each,
      );
      // A page of a web server must not pass for an empty bucket.
      if (answer.Name === undefined && answer.KeyCount === undefined) throw new ForeignAnswerError();
      return answer;
    });
    const objects: StorageObject[] = [];
    const add = (key: string | undefined, sizeBytes: number): void => {
      if (key === undefined || !key.startsWith(wanted)) return;
      const name = key.slice(globalPrefix.length);
      if (name === '' || name === updateMarkerName || (hideFolders && name.endsWith('/'))) return;
      objects.push({ name, sizeBytes });
    };
    for (const { Key, Size } of output.Contents ?? []) add(Key, Size ?? 0);
    if (!hideFolders) for (const { Prefix } of output.CommonPrefixes ?? []) add(Prefix, 0);
    const next = output.IsTruncated === true ? output.NextContinuationToken : undefined;
    if (output.IsTruncated === true && (next === undefined || next === token)) {
      throw this.#failed(call, new ForeignAnswerError());
    }
    return { objects, next };
  }

  async load(name: string, toPath: string, { signal }: CallOptions): Promise<number> {
    return this.#call('load', 'load', name, signal, async (call) => {
      for (let left = ATTEMPTS; ; left--) {
        try {
          const first = await this.#get(call, name, undefined);
          try {
            // The outer signal: what an abort rejects with is its reason.
            return await saveObject(name, toPath, this.#content(call, name, first), call.signal);
          } finally {
            first.body.destroy();
          }
        } catch (error) {
          if (!(error instanceof ReplacedError)) throw error;
          if (left === 1) throw this.#failed(call, error);
        }
      }
    });
  }

  /** All bytes of the object that `first` began with; a connection that breaks is replaced. */
  async *#content(call: Call, name: string, first: Download): AsyncGenerator<Uint8Array, void> {
    let download = first;
    let doneBytes = 0;
    for (let left = ATTEMPTS; ; left--) {
      let failure: unknown;
      try {
        for await (const chunk of download.body as AsyncIterable<Uint8Array>) {
          doneBytes += chunk.length;
          left = ATTEMPTS;
          yield chunk;
        }
        if (doneBytes === first.sizeBytes) return;
        failure = Object.assign(new Error('the object ended early'), { code: 'ECONNRESET' });
      } catch (error) {
        failure = error;
      } finally {
        download.body.destroy();
      }
      call.signal.throwIfAborted();
      if (doneBytes > first.sizeBytes || left === 1) throw this.#failed(call, failure);
      await sleep(jitter(BASE_DELAY_MS, ATTEMPTS - left), call.signal);
      download = await this.#get(call, name, { etag: first.etag, fromByte: doneBytes });
    }
  }

  /** @throws ReplacedError when the rest was asked for and the object is another one now */
  async #get(
    call: Call,
    name: string,
    rest: { readonly etag: string; readonly fromByte: number } | undefined,
  ): Promise<Download> {
    let output: GetObjectCommandOutput & { readonly ETag: string; readonly ContentLength: number };
    try {
      output = await this.#send(call, async (each) => {
        const answer = await this.#client.send(
          new GetObjectCommand({
            Bucket: this.#options.bucket,
            Key: this.#key(name),
            ...(rest === undefined ? {} : { Range: `bytes=${rest.fromByte}-`, IfMatch: rest.etag }),
          }),
          each,
        );
        // An abort between two reads must not end the program: whoever reads is told with the next one.
        const answered = answer.Body as Readable | undefined;
        answered?.on('error', () => undefined);
        const { ETag, ContentLength } = answer;
        // Without the length, an answer that was cut off could not be told from a whole one.
        if (ETag !== undefined && ContentLength !== undefined) return { ...answer, ETag, ContentLength };
        answered?.destroy();
        throw new ForeignAnswerError();
      });
    } catch (error) {
      if (!(error instanceof StorageError)) throw error;
      if (error.code === 'NoSuchKey') throw notFound(name, this.location, error.cause);
      const status = describe(error.cause).status;
      if (rest !== undefined && (status === 412 || status === 416))
        throw new ReplacedError('the object is replaced again and again');
      throw error;
    }
    const body = output.Body as Readable;
    if (
      rest !== undefined &&
      (output.ETag !== rest.etag || output.ContentRange?.startsWith(`bytes ${rest.fromByte}-`) !== true)
    ) {
      body.destroy();
      throw new ReplacedError('the server does not give the rest of an object');
    }
    return { body, etag: output.ETag, sizeBytes: output.ContentLength };
  }

  async store(name: string, fromPath: string, options: CallOptions): Promise<void> {
    await this.storeTagged(name, fromPath, options);
  }

  async storeTagged(name: string, fromPath: string, { signal }: CallOptions): Promise<string> {
    if (name === '') {
      throw new StorageError(
        'NAME_INVALID',
        'store',
        name,
        'storage: cannot store "": a name must not be empty',
      );
    }
    return this.#call('store', 'store', name, signal, async (call) => {
      const handle = await attempt('store', name, fromPath, () => open(fromPath, 'r'));
      try {
        const { size } = await attempt('store', name, fromPath, () => handle.stat());
        const file: Source = { handle, path: fromPath };
        return size > PART_BYTES
          ? await this.#storeInParts(call, name, file, size)
          : await this.#storeWhole(call, name, file, size);
      } finally {
        await handle.close();
      }
    });
  }

  async #storeWhole(call: Call, name: string, file: Source, sizeBytes: number): Promise<string> {
    const slice = await this.#slice(call, file, 0, sizeBytes);
    const output = await this.#upload(call, slice, (body, each) =>
      this.#client.send(
        withHash(
          new PutObjectCommand({
            ...this.#objectOf(name),
            ...md5Of(slice),
            ContentLength: sizeBytes,
            Body: body,
          }),
          slice,
        ),
        each,
      ),
    );
    return this.#etag(call, output.ETag);
  }

  async #storeInParts(call: Call, name: string, file: Source, sizeBytes: number): Promise<string> {
    const partBytes = Math.max(PART_BYTES, Math.ceil(sizeBytes / MAX_PARTS / MIB) * MIB);
    const count = Math.ceil(sizeBytes / partBytes);
    const { Bucket, Key } = this.#objectOf(name);
    // Whether an upload is there to be removed again is known only with the answer.
    const { UploadId } = await this.#committed(call, (settled) =>
      this.#send(settled, (each) =>
        this.#client.send(new CreateMultipartUploadCommand(this.#objectOf(name)), each),
      ),
    );
    const upload = { Bucket, Key, UploadId };
    try {
      call.signal.throwIfAborted();
      const parts: CompletedPart[] = [];
      const failed = new AbortController();
      const one: Call = { ...call, signal: AbortSignal.any([call.signal, failed.signal]) };
      let next = 0;
      const worker = async (): Promise<void> => {
        for (let index = next++; index < count; index = next++) {
          const start = index * partBytes;
          const slice = await this.#slice(one, file, start, Math.min(start + partBytes, sizeBytes));
          const PartNumber = index + 1;
          const part = {
            ...upload,
            ...md5Of(slice),
            PartNumber,
            ContentLength: slice.end - slice.start,
          };
          const { ETag } = await this.#upload(one, slice, (body, each) =>
            this.#client.send(withHash(new UploadPartCommand({ ...part, Body: body }), slice), each),
          );
          parts[index] = { PartNumber, ETag: `"${this.#etag(one, ETag)}"` };
        }
      };
      const guarded = async (): Promise<void> => {
        try {
          await worker();
        } catch (error) {
          failed.abort(error);
          throw error;
        }
      };
      const workers = Array.from({ length: Math.min(this.#options.threads, count) }, guarded);
      // None may send a part any more when the upload is given up.
      for (const result of await Promise.allSettled(workers)) {
        if (result.status === 'rejected') throw failed.signal.reason;
      }
      const complete = { ...upload, MultipartUpload: { Parts: parts } };
      const output = await this.#committed(call, (each) =>
        this.#send(each, (one_) =>
          this.#client.send(new CompleteMultipartUploadCommand(complete), {
            ...one_,
            requestTimeout: this.#options.clientTimeoutMs,
          }),
        ),
      );
      return this.#etag(call, output.ETag);
    } catch (error) {
      await this.#abandon(call, upload);
      throw error;
    }
  }

  /** Parts of an upload that is not completed cost money and show in no listing. */
  async #abandon(
    call: Call,
    upload: { readonly Bucket: string; readonly Key: string; readonly UploadId: string | undefined },
  ): Promise<void> {
    try {
      const own = { ...call, signal: AbortSignal.timeout(ABORT_GRACE_MS) };
      await this.#send(own, (each) => this.#client.send(new AbortMultipartUploadCommand(upload), each));
    } catch (error) {
      if (error instanceof StorageError && error.code === 'NoSuchUpload') return;
      this.#context.logger.warning('S3: parts of an unfinished upload stay in the bucket', {
        error:
          error instanceof StorageError
            ? error
            : this.#failed(call, undefined, { ...describe(undefined), code: 'TIMEOUT', text: 'no answer' }),
        object: call.object,
        upload_id: upload.UploadId,
      });
    }
  }

  /** Runs what an abort must not leave undecided: it is given time to end by itself. */
  async #committed<T>(call: Call, step: (call: Call) => Promise<T>): Promise<T> {
    call.signal.throwIfAborted();
    using sealed = sealable(call.signal);
    sealed.seal();
    return await step({ ...call, signal: sealed.signal });
  }

  /** Sends a slice; each attempt reads it anew. */
  async #upload<T>(
    call: Call,
    slice: Slice,
    send: (body: Readable | Uint8Array, each: Attempt) => Promise<T>,
  ): Promise<T> {
    // For the whole request: that it goes on shows nowhere. What is small must not hang as long as what is large may take.
    const sendingMs = (slice.end - slice.start) / MIN_BYTES_PER_MS;
    return this.#send(call, async ({ abortSignal, requestTimeout }) => {
      using sealed = sealable(abortSignal);
      const fault: { error?: unknown } = {};
      const body =
        slice.start === slice.end
          ? new Uint8Array(0)
          : Readable.from(readSlice(slice, call, sealed.seal, fault), { objectMode: true, highWaterMark: 1 });
      if (slice.start === slice.end) sealed.seal();
      try {
        return await send(body, {
          abortSignal: sealed.signal,
          requestTimeout: Math.min(this.#options.clientTimeoutMs, requestTimeout + sendingMs),
        });
      } catch (error) {
        throw fault.error ?? error;
      } finally {
        if (body instanceof Readable) body.destroy();
      }
    });
  }

  /** A pass over a part of the file, for the digests that go into the request's head. */
  async #slice(call: Call, file: Source, start: number, end: number): Promise<Slice> {
    const slice: Slice = { ...file, start, end, md5: undefined, sha256: undefined };
    const md5 = this.#options.disableContentMd5 ? undefined : createHash('md5');
    const sha256 = this.#isPlainHttp ? createHash('sha256') : undefined;
    if (md5 === undefined && sha256 === undefined) return slice;
    for await (const chunk of readSlice(slice, call, () => undefined, {})) {
      call.signal.throwIfAborted();
      md5?.update(chunk);
      sha256?.update(chunk);
    }
    return { ...slice, md5: md5?.digest('base64'), sha256: sha256?.digest('hex') };
  }

  async delete(name: string, { signal }: CallOptions): Promise<void> {
    await this.#call('delete', 'delete', name, signal, async (call) => {
      await this.#send(call, (each) =>
        this.#client.send(
          new DeleteObjectCommand({ Bucket: this.#options.bucket, Key: this.#key(name) }),
          each,
        ),
      ).catch((error: unknown) => {
        // Some servers say so.
        if (!(error instanceof StorageError) || error.code !== 'NoSuchKey') throw error;
      });
    });
  }

  async readSmall(name: string, { signal }: CallOptions): Promise<string | undefined> {
    return this.#call('load', 'load', name, signal, async (call) => {
      let first: Download;
      try {
        first = await this.#get(call, name, undefined);
      } catch (error) {
        if (error instanceof StorageError && error.code === 'NOT_FOUND') return undefined;
        throw error;
      }
      const chunks: Uint8Array[] = [];
      let sizeBytes = 0;
      try {
        for await (const chunk of this.#content(call, name, first)) {
          sizeBytes += chunk.length;
          if (sizeBytes > SMALL_BYTES) throw this.#tooLarge(call, name);
          chunks.push(chunk);
        }
      } catch (error) {
        // Read again, soon, by whoever looks at it again and again.
        throw error instanceof ReplacedError ? this.#failed(call, error) : error;
      } finally {
        first.body.destroy();
      }
      return Buffer.concat(chunks).toString('utf8');
    });
  }

  async writeSmall(name: string, text: string, { signal }: CallOptions): Promise<string> {
    const body = Buffer.from(text);
    return this.#call('store', 'store', name, signal, async (call) => {
      const md5 = this.#options.disableContentMd5
        ? undefined
        : createHash('md5').update(body).digest('base64');
      const { ETag } = await this.#send(call, (each) =>
        this.#client.send(
          new PutObjectCommand({ ...this.#objectOf(name), ...md5Of({ md5 }), Body: body }),
          each,
        ),
      );
      return this.#etag(call, ETag);
    });
  }

  close(): Promise<void> {
    this.#endWatch();
    this.#client.destroy();
    return Promise.resolve();
  }

  #key(name: string): string {
    return this.#options.globalPrefix + name;
  }

  #objectOf(name: string): {
    readonly Bucket: string;
    readonly Key: string;
    readonly StorageClass?: StorageClass;
  } {
    const { bucket, storageClass } = this.#options;
    return {
      Bucket: bucket,
      Key: this.#key(name),
      ...(storageClass === '' ? {} : { StorageClass: storageClass as StorageClass }),
    };
  }

  #etag(call: Call, etag: string | undefined): string {
    if (etag === undefined) throw this.#failed(call, new ForeignAnswerError());
    return etag.replace(/^(W\/)?"(.*)"$/, '$2');
  }

  #tooLarge(call: Call, name: string): StorageError {
    const message = `storage: cannot ${call.operation} ${JSON.stringify(name)}: it is larger than 64 KiB, which it should never be`;
    return new StorageError('TOO_LARGE', call.operation, name, message);
  }

  #failed(call: Call, cause: unknown, failure: Failure = describe(cause)): StorageError {
    return failedCall(call.operation, call.object, failure, this.#target, cause);
  }

  /** Runs one operation; again when the bucket was not there and could be created. */
  async #call<T>(
    operation: StorageError['operation'],
    method: S3Method,
    object: string | undefined,
    signal: AbortSignal,
    body: (call: Call) => Promise<T>,
  ): Promise<T> {
    try {
      return await this.#timed(operation, method, object, signal, body);
    } catch (error) {
      const isAbsent = error instanceof StorageError && error.code === 'NoSuchBucket';
      if (!isAbsent || !this.#options.createBucket) throw error;
    }
    await this.#createBucket(signal);
    return await this.#timed(operation, method, object, signal, body);
  }

  /** Limits an operation's time, and counts it. */
  async #timed<T>(
    operation: StorageError['operation'],
    method: S3Method,
    object: string | undefined,
    signal: AbortSignal,
    body: (call: Call) => Promise<T>,
    { timeoutMs = this.#options.clientTimeoutMs, limit = 'client_timeout' } = {},
  ): Promise<T> {
    signal.throwIfAborted();
    const started = performance.now();
    const late = new AbortController();
    const timer = setTimeout(() => late.abort(new Error('too late')), timeoutMs);
    let label: string | undefined;
    try {
      return await body({ operation, object, signal: AbortSignal.any([signal, late.signal]) });
    } catch (error) {
      if (error instanceof StorageError) {
        // An absent object is an answer.
        if (error.code !== 'NOT_FOUND') label = errorLabel(describe(error.cause ?? error));
        throw error;
      }
      if (signal.aborted) throw signal.reason;
      if (!late.signal.aborted) throw error;
      label = 'Timeout';
      const text = `no end within ${formatDuration(timeoutMs)} (storage.options.${limit})`;
      throw this.#failed({ operation, object, signal }, undefined, {
        ...describe(undefined),
        code: 'TIMEOUT',
        text,
      });
    } finally {
      clearTimeout(timer);
      this.#context.onCall(method, (performance.now() - started) / 1000, label);
    }
  }

  /** Runs one request, several times if that may help; what is thrown is a StorageError or the signal's reason. */
  async #send<T>(call: Call, request: (each: Attempt) => Promise<T>): Promise<T> {
    let keysRenewed = false;
    let clockCorrected = false;
    for (let count = 1; ; count++) {
      call.signal.throwIfAborted();
      let keys: AwsCredentialIdentity | undefined;
      try {
        keys = await this.#credentials.get();
        const requestTimeout = this.#hasAnswered ? STALL_MS : Math.min(STALL_MS, this.#options.initTimeoutMs);
        const answer = await request({ abortSignal: call.signal, requestTimeout });
        this.#hasAnswered = true;
        return answer;
      } catch (error) {
        if (error instanceof StorageError) throw error;
        if (call.signal.aborted) throw call.signal.reason;
        const failure = describe(error);
        if (areKeysRefused(failure) && keys !== undefined && !keysRenewed) {
          keysRenewed = true;
          if (await this.#renewKeys(keys)) continue;
        }
        if (isClockSkewed(failure) && !clockCorrected) {
          clockCorrected = true;
          continue;
        }
        if (count >= ATTEMPTS || !mayPass(failure)) throw this.#failed(call, error, failure);
        const delayMs = Math.max(
          jitter(isThrottled(failure) ? THROTTLED_BASE_DELAY_MS : BASE_DELAY_MS, count - 1),
          Math.min(failure.retryAfterMs ?? 0, MAX_RETRY_AFTER_MS),
        );
        this.#context.logger.debug('S3: a request is tried again', {
          operation: call.operation,
          object: call.object,
          reason: failure.code === '' ? failure.text : failure.code,
          request_id: failure.requestId,
          delay_ms: Math.round(delayMs),
        });
        await sleep(delayMs, call.signal);
      }
    }
  }

  async #renewKeys(refused: AwsCredentialIdentity): Promise<boolean> {
    try {
      return await this.#credentials.refresh(refused);
    } catch {
      return false;
    }
  }
}

/** An object's bytes on their way. */
interface Download {
  readonly body: Readable;
  readonly etag: string;
  /** What there is to come when the answer begins. */
  readonly sizeBytes: number;
}

interface Source {
  readonly handle: FileHandle;
  /** For errors. */
  readonly path: string;
}

/** Bytes `start` to `end` (exclusive) of a file. */
interface Slice extends Source {
  readonly start: number;
  readonly end: number;
  /** In base64; undefined when it is not wanted. */
  readonly md5: string | undefined;
  /** In hex; undefined when it is not wanted. */
  readonly sha256: string | undefined;
}

/** `onLast` is called before the last chunk is given away. A failure is also put into `fault`: it reaches the caller as one of the request. */
async function* readSlice(
  { handle, path, start, end }: Slice,
  { object = '' }: Call,
  onLast: () => void,
  fault: { error?: unknown },
): AsyncGenerator<Uint8Array, void> {
  try {
    for (let position = start; position < end;) {
      const length = Math.min(CHUNK_BYTES, end - position);
      const buffer = Buffer.allocUnsafeSlow(length);
      const at = position;
      const { bytesRead } = await attempt('store', object, path, () => handle.read(buffer, 0, length, at));
      if (bytesRead === 0) {
        throw new StorageError(
          'CHANGED',
          'store',
          object,
          `storage: cannot store ${JSON.stringify(object)}: the file has become shorter meanwhile: ${path}`,
        );
      }
      position += bytesRead;
      if (position >= end) onLast();
      yield buffer.subarray(0, bytesRead);
    }
  } catch (error) {
    fault.error = error;
    throw error;
  }
}

function md5Of({ md5 }: { readonly md5: string | undefined }): { readonly ContentMD5?: string } {
  return md5 === undefined ? {} : { ContentMD5: md5 };
}

/** Signs the digest of the payload; without one the SDK leaves a stream unsigned. */
function withHash<C extends PutObjectCommand | UploadPartCommand>(
  command: C,
  { sha256, start, end }: Slice,
): C {
  if (sha256 === undefined || start === end) return command;
  (command as PutObjectCommand).middlewareStack.add(
    (next) => (args) => {
      const { headers } = args.request as { headers: Record<string, string> };
      headers['x-amz-content-sha256'] = sha256;
      return next(args);
    },
    { step: 'build', name: 'payloadHash' },
  );
  return command;
}

/** A signal that follows another one until it is sealed; from then on it does so only after a grace period. */
function sealable(
  signal: AbortSignal,
): Disposable & { readonly signal: AbortSignal; readonly seal: () => void } {
  const controller = new AbortController();
  let isSealed = false;
  let timer: NodeJS.Timeout | undefined;
  const abort = (): void => controller.abort(signal.reason);
  const onAbort = (): void => {
    if (isSealed) timer ??= setTimeout(abort, ABORT_GRACE_MS);
    else abort();
  };
  signal.addEventListener('abort', onAbort, { once: true });
  if (signal.aborted) onAbort();
  return {
    signal: controller.signal,
    seal: () => {
      isSealed = true;
    },
    [Symbol.dispose]() {
      signal.removeEventListener('abort', onAbort);
      clearTimeout(timer);
    },
  };
}

/** Full jitter: anything up to an exponentially growing bound. */
function jitter(baseMs: number, retries: number): number {
  return Math.random() * Math.min(MAX_DELAY_MS, baseMs * 2 ** retries);
}

async function sleep(delayMs: number, signal: AbortSignal): Promise<void> {
  try {
    await wait(delayMs, undefined, { signal });
  } catch {
    signal.throwIfAborted();
  }
}

function isAws({ hostname }: URL): boolean {
  return /(^|\.)amazonaws\.com(\.cn)?$/.test(hostname);
}

/** Undefined: AWS's own, in the region. The global name leads there only for us-east-1. */
function customEndpoint({ endpointUrl }: S3Options): URL | undefined {
  if (endpointUrl === '') return undefined;
  const url = new URL(endpointUrl);
  return url.protocol === 'https:' && url.host === 's3.amazonaws.com' ? undefined : url;
}

/** What will be connected to: enough to choose a proxy and TLS. */
function bucketUrl(options: S3Options): URL {
  return customEndpoint(options) ?? new URL(`https://s3.${options.region}.amazonaws.com`);
}
