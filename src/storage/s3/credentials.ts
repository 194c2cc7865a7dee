import { readFile } from 'node:fs/promises';
import type { S3ClientConfig } from '@aws-sdk/client-s3';
import { errorMessage } from '../../errors.ts';
import type { Logger } from '../../observability/logger.ts';
import { StorageError } from '../storage.ts';
import { attempt } from '../system-error.ts';
import type { S3Options } from './options.ts';

export type AwsCredentialIdentity = Exclude<
  S3ClientConfig['credentials'],
  undefined | ((...input: never) => unknown)
>;

/** Where the keys come from. */
export interface Credentials {
  /** What requests are signed with now. */
  get(): Promise<AwsCredentialIdentity>;
  /** The server refused these keys: looks for others at once. True when there are others now. */
  refresh(refused: AwsCredentialIdentity): Promise<boolean>;
}

export interface CredentialsContext {
  readonly logger: Logger;
  /** Told of each secret before it is used. */
  readonly addSecrets: (values: Iterable<string>) => void;
}

/** As Lightning Stream, files win over keys; without both it is the default chain of AWS. */
export async function openCredentials(options: S3Options, context: CredentialsContext): Promise<Credentials> {
  if (options.accessKeyFile !== '') {
    const credentials = new FileCredentials(options, context);
    await credentials.open();
    return credentials;
  }
  if (options.accessKey !== '') {
    const keys = { accessKeyId: options.accessKey, secretAccessKey: options.secretKey };
    context.addSecrets(Object.values(keys));
    return { get: () => Promise.resolve(keys), refresh: () => Promise.resolve(false) };
  }
  return chainCredentials(context);
}

/** Environment, profile files, web identity (EKS), containers (ECS), instances (EC2): the order is that of AWS's SDKs. */
async function chainCredentials({ addSecrets }: CredentialsContext): Promise<Credentials> {
  const { defaultProvider } = await import('@aws-sdk/credential-provider-node');
  const provider = defaultProvider();
  let last: AwsCredentialIdentity | undefined;
  const get = async (forceRefresh: boolean): Promise<AwsCredentialIdentity> => {
    const found = await provider({ forceRefresh });
    if (!areSame(found, last))
      addSecrets([found.accessKeyId, found.secretAccessKey, found.sessionToken ?? '']);
    last = found;
    return found;
  };
  return {
    get: () => get(false),
    refresh: async (refused) => !areSame(await get(false), refused) || !areSame(await get(true), refused),
  };
}

/**
 * Keys in two files (Kubernetes and Docker secrets) that somebody may replace at any time. While only one of the two has changed, the
 * old pair stays in use for one more interval, unless the server refuses it: a rotation may be half done. Files that cannot be read, or
 * are empty, change nothing.
 */
class FileCredentials implements Credentials {
  readonly #options: S3Options;
  readonly #context: CredentialsContext;
  #current: AwsCredentialIdentity | undefined;
  /** A pair of which one half is that of the current one. */
  #half: AwsCredentialIdentity | undefined;
  #readAtMs = 0;
  /** Why the last reading failed. */
  #complaint = '';
  #hasComplained = false;
  /** One reading at a time, whoever asks. */
  #reading: Promise<void> | undefined;

  constructor(options: S3Options, context: CredentialsContext) {
    this.#options = options;
    this.#context = context;
  }

  /** @throws StorageError when a file cannot be read or is empty. */
  async open(): Promise<void> {
    this.#take(await this.#readPair());
    this.#readAtMs = performance.now();
  }

  async get(): Promise<AwsCredentialIdentity> {
    if (performance.now() - this.#readAtMs >= this.#options.secretsRefreshIntervalMs) await this.#read(false);
    return this.#current ?? Promise.reject(new Error('credentials are not open'));
  }

  async refresh(refused: AwsCredentialIdentity): Promise<boolean> {
    // Another request may have brought new ones since this one was signed.
    if (areSame(this.#current, refused)) await this.#read(true);
    return !areSame(this.#current, refused);
  }

  async #read(refused: boolean): Promise<void> {
    // A reading that began before a refusal may have found the old files.
    if (refused) await this.#reading;
    this.#reading ??= this.#readNow(refused).finally(() => {
      this.#reading = undefined;
    });
    await this.#reading;
  }

  async #readNow(refused: boolean): Promise<void> {
    const { logger } = this.#context;
    let found: AwsCredentialIdentity;
    try {
      found = await this.#readPair();
    } catch (error) {
      const complaint = errorMessage(error);
      // The first time they may just be being written.
      if (complaint !== this.#complaint) this.#hasComplained = false;
      else if (!this.#hasComplained) {
        this.#hasComplained = true;
        logger.warning('S3 credentials cannot be read anew, the old ones stay in use', { error });
      }
      this.#complaint = complaint;
      return;
    } finally {
      this.#readAtMs = performance.now();
    }
    this.#complaint = '';
    if (areSame(found, this.#current)) {
      this.#half = undefined;
      return;
    }
    const isHalf =
      found.accessKeyId === this.#current?.accessKeyId ||
      found.secretAccessKey === this.#current?.secretAccessKey;
    if (isHalf && !refused && !areSame(found, this.#half)) {
      this.#half = found;
      return;
    }
    this.#take(found);
    logger.info('S3 credentials have changed, the new ones are used');
  }

  #take(pair: AwsCredentialIdentity): void {
    this.#context.addSecrets([pair.accessKeyId, pair.secretAccessKey]);
    this.#current = pair;
    this.#half = undefined;
  }

  /** Both files as they are at one moment, as far as that can be told: read until two readings agree. */
  async #readPair(): Promise<AwsCredentialIdentity> {
    let last = await this.#readOnce();
    for (let left = 3; left > 0; left--) {
      const again = await this.#readOnce();
      if (areSame(last, again)) break;
      last = again;
    }
    return last;
  }

  async #readOnce(): Promise<AwsCredentialIdentity> {
    return {
      accessKeyId: await readSecret('access_key_file', this.#options.accessKeyFile),
      secretAccessKey: await readSecret('secret_key_file', this.#options.secretKeyFile),
    };
  }
}

function areSame(a: AwsCredentialIdentity | undefined, b: AwsCredentialIdentity | undefined): boolean {
  return (
    a?.accessKeyId === b?.accessKeyId &&
    a?.secretAccessKey === b?.secretAccessKey &&
    a?.sessionToken === b?.sessionToken
  );
}

async function readSecret(name: string, path: string): Promise<string> {
  const at = `${path} (storage.options.${name})`;
  const text = (await attempt('open', undefined, at, () => readFile(path, 'utf8'))).trim();
  if (text === '') throw new StorageError('CONFIG', 'open', undefined, `storage: there is no key in ${at}`);
  return text;
}
