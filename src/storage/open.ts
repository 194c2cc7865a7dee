import { decodeOptions, key, object, str } from '../config/decode.ts';
import type { StorageConfig } from '../config/types.ts';
import type { Logger } from '../observability/logger.ts';
import { FsStorage } from './fs.ts';
import type { TryLock } from './lock.ts';
import { MemoryStorage } from './memory.ts';
import { s3Options } from './s3/options.ts';
import { type Storage, StorageError } from './storage.ts';
import { UpdateMarkerStorage } from './update-marker.ts';

/** What every backend may need besides its options. */
export interface OpenStorageContext {
  readonly logger: Logger;
  readonly tryLock: TryLock;
  /** Told of secrets that a backend reads from elsewhere than the configuration, before it uses them. */
  readonly addSecrets: (values: Iterable<string>) => void;
  /** The environment, for what names a proxy. The AWS default chain looks into the process's own. */
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Told of each call of a remote storage when it ends. */
  readonly onCall?: StorageCallObserver;
}

/** `error` names the failure as the metrics do; undefined when there was none. */
export type StorageCallObserver = (
  type: 's3' | 'azure',
  method: string,
  durationSeconds: number,
  error: string | undefined,
) => void;

type Opener = (options: unknown, context: OpenStorageContext) => Promise<Storage>;

const backends: Readonly<Record<string, Opener>> = {
  fs: async (options, context) => {
    const { rootPath } = decodeOptions(options, fsOptions);
    return FsStorage.open({ rootPath, ...context });
  },
  memory: (options) => {
    decodeOptions(options, object({}));
    return Promise.resolve(new MemoryStorage());
  },
  s3: async (options, { logger, addSecrets, onCall, env }) => {
    const decoded = decodeOptions(options, s3Options);
    // The SDK takes a tenth of a second to load.
    const { S3Storage } = await import('./s3/storage.ts');
    const storage = await S3Storage.open(decoded, {
      logger,
      addSecrets,
      onCall: (...call) => onCall?.('s3', ...call),
      env,
    });
    return decoded.useUpdateMarker
      ? new UpdateMarkerStorage(storage, {
          globalPrefix: decoded.globalPrefix,
          forceListIntervalMs: decoded.updateMarkerForceListIntervalMs,
          logger,
        })
      : storage;
  },
};

const fsOptions = object({
  rootPath: key(
    'root_path',
    str({ required: true }),
    'The directory that holds the snapshots, created if missing; usually a network mount.',
  ),
});

/** What stands under `storage.options`, by type. */
export const storageOptions = { fs: fsOptions, s3: s3Options } as const;

/** Backends of Lightning Stream that configurations may name. */
const notBuilt: readonly string[] = ['azure'];

/**
 * Opens the configured storage.
 * @throws StorageError code `CONFIG` for a type that is missing, unknown or not built; ConfigError for wrong options;
 * StorageError with a system code when the place cannot be used.
 */
export async function openStorage(config: StorageConfig, context: OpenStorageContext): Promise<Storage> {
  const { type } = config;
  const known = Object.keys(backends).join(', ');
  if (type === '') throw refused(`storage.type: must be set to one of: ${known}`);
  if (notBuilt.includes(type))
    throw refused(`storage.type: ${type} is not built into this version; there is ${known}`);
  const opener = Object.hasOwn(backends, type) ? backends[type] : undefined;
  if (opener === undefined) throw refused(`storage.type: must be one of ${known}: ${JSON.stringify(type)}`);
  return opener(config.options, context);
}

function refused(message: string): StorageError {
  return new StorageError('CONFIG', 'open', undefined, message);
}
