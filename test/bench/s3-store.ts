/** A MinIO for the benchmarks, and what they do in it themselves. */
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import {
  CopyObjectCommand,
  CreateBucketCommand,
  ListObjectsV2Command,
  PutObjectCommand,
  S3Client,
} from '@aws-sdk/client-s3';
import { tempDir } from '../helpers/process.ts';
import { startMinio, type S3Server } from '../helpers/s3-server.ts';

export class Store implements AsyncDisposable {
  readonly #server: S3Server;
  readonly #client: S3Client;
  readonly #stack: AsyncDisposableStack;

  private constructor(server: S3Server, stack: AsyncDisposableStack) {
    this.#server = server;
    this.#client = new S3Client({
      endpoint: server.endpoint,
      forcePathStyle: true,
      region: 'us-east-1',
      credentials: { accessKeyId: server.accessKey, secretAccessKey: server.secretKey },
    });
    this.#stack = stack;
  }

  /** In memory where the system has such a file system: another host's storage would not share the disk with our LMDBs. */
  static async start(): Promise<Store> {
    await using stack = new AsyncDisposableStack();
    const memory = '/dev/shm';
    const parent = existsSync(memory) ? memory : (process.env['BENCH_DIR'] ?? '');
    const dir = stack.use(await tempDir('lightningstream-minio-', parent));
    const server = stack.use(await startMinio({ dataDir: dir.path }));
    return new Store(server, stack.move());
  }

  /** The section `storage` of a configuration, which both programs read. */
  section(bucket: string, options: { readonly marker: boolean }): object {
    return {
      type: 's3',
      options: {
        endpoint_url: this.#server.endpoint,
        access_key: this.#server.accessKey,
        secret_key: this.#server.secretKey,
        bucket,
        create_bucket: true,
        use_update_marker: options.marker,
      },
    };
  }

  async createBucket(bucket: string): Promise<void> {
    await this.#client.send(new CreateBucketCommand({ Bucket: bucket }));
  }

  /** At most 1000 names with that beginning; none when there is no such bucket yet. */
  async list(bucket: string, prefix: string): Promise<string[]> {
    try {
      const answer = await this.#client.send(new ListObjectsV2Command({ Bucket: bucket, Prefix: prefix }));
      return (answer.Contents ?? []).flatMap(({ Key }) => Key ?? []);
    } catch (error) {
      if (error instanceof Error && error.name === 'NoSuchBucket') return [];
      throw error;
    }
  }

  async put(bucket: string, name: string, path: string): Promise<void> {
    await this.#client.send(new PutObjectCommand({ Bucket: bucket, Key: name, Body: await readFile(path) }));
  }

  /** The server copies by itself. */
  async copy(from: string, to: string, name: string, as = name): Promise<void> {
    await this.#client.send(new CopyObjectCommand({ CopySource: `${from}/${name}`, Bucket: to, Key: as }));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#client.destroy();
    await this.#stack.disposeAsync();
  }
}
