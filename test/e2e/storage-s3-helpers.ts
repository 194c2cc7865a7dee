/** Opens S3 storages on real servers, each in a bucket of its own. */
import { randomBytes } from 'node:crypto';
import { CreateBucketCommand, ListMultipartUploadsCommand, S3Client } from '@aws-sdk/client-s3';
import { decodeOptions } from '../../src/config/decode.ts';
import { s3Options } from '../../src/storage/s3/options.ts';
import { type S3Method, S3Storage } from '../../src/storage/s3/storage.ts';
import { recordLog } from '../helpers/log-recorder.ts';
import type { S3Account } from '../helpers/s3-server.ts';

/** A client of the SDK without anything of ours. */
export function plainClient({ endpoint, accessKey, secretKey }: S3Account): S3Client {
  return new S3Client({
    endpoint,
    region: 'us-east-1',
    forcePathStyle: true,
    credentials: { accessKeyId: accessKey, secretAccessKey: secretKey },
  });
}

export async function newBucket(account: S3Account): Promise<string> {
  const bucket = `b-${randomBytes(6).toString('hex')}`;
  const client = plainClient(account);
  await client.send(new CreateBucketCommand({ Bucket: bucket }));
  client.destroy();
  return bucket;
}

/** Keys of the uploads that were begun and not ended. */
export async function openUploads(account: S3Account, bucket: string): Promise<readonly string[]> {
  const client = plainClient(account);
  const { Uploads } = await client.send(new ListMultipartUploadsCommand({ Bucket: bucket }));
  client.destroy();
  return (Uploads ?? []).map(({ Key }) => Key ?? '');
}

export interface Opened extends AsyncDisposable {
  readonly storage: S3Storage;
  readonly log: ReturnType<typeof recordLog>;
  readonly secrets: Set<string>;
  readonly calls: (readonly [S3Method, string | undefined])[];
}

/** The options of a configuration file, in its words. */
export type Options = Readonly<Record<string, unknown>>;

export async function openS3(options: Options, env: NodeJS.ProcessEnv = {}): Promise<Opened> {
  const log = recordLog();
  const secrets = new Set<string>();
  const calls: [S3Method, string | undefined][] = [];
  const storage = await S3Storage.open(decodeOptions(options, s3Options), {
    logger: log.logger,
    addSecrets: (values) => {
      for (const value of values) secrets.add(value);
    },
    onCall: (method, _seconds, error) => calls.push([method, error]),
    env,
  });
  return { storage, log, secrets, calls, [Symbol.asyncDispose]: () => storage.close() };
}

export function optionsFor({ endpoint, accessKey, secretKey }: S3Account, bucket: string): Options {
  return { endpoint_url: endpoint, access_key: accessKey, secret_key: secretKey, bucket };
}
