/** The validated configuration: what the program works with. Durations are milliseconds, sizes bytes. See docs/configuration.md. */
export interface Config {
  /** As written; `''` when not set. The name in objects comes from `snapshot/name.ts`. */
  readonly instance: string;
  readonly lmdbPollIntervalMs: number;
  /** 0 or less = off. */
  readonly lmdbLogStatsIntervalMs: number;
  readonly lmdbScrapeSmaps: boolean;
  readonly storagePollIntervalMs: number;
  readonly storageRetryIntervalMs: number;
  readonly storageRetryCount: number;
  readonly storageRetryForever: boolean;
  /** 0 = off. */
  readonly storageForceSnapshotIntervalMs: number;
  readonly memoryDownloadedSnapshots: number;
  readonly memoryDecompressedSnapshots: number;
  readonly onlyOnce: boolean;
  /** In the order of the file. */
  readonly lmdbs: ReadonlyMap<string, LmdbConfig>;
  /** `''` = $CACHE_DIRECTORY or the system's temporary directory. */
  readonly spoolDir: string;
  readonly sweeper: SweeperConfig;
  readonly storage: StorageConfig;
  readonly http: { readonly address: string };
  readonly log: LogConfig;
  readonly health: HealthConfig;
}

export interface LmdbConfig {
  readonly path: string;
  readonly options: {
    readonly noSubdir: boolean;
    readonly create: boolean;
    readonly dirMask: number;
    readonly fileMask: number;
    readonly mapSizeBytes: number;
    /** Never 0; may be negative, as Lightning Stream takes that from a file as well. */
    readonly maxDbs: number;
  };
  readonly schemaTracksChanges: boolean;
  readonly dupsortHack: boolean;
  readonly schemaGuard: 'auto' | 'off' | number;
  readonly headerExtraPaddingBlock: boolean;
  readonly dbiOptions: ReadonlyMap<string, { readonly overrideCreateFlags: number | undefined }>;
}

export interface SweeperConfig {
  readonly enabled: boolean;
  readonly retentionDays: number;
  readonly intervalMs: number;
  readonly firstIntervalMs: number;
  readonly lockDurationMs: number;
  readonly releaseDurationMs: number;
  readonly retentionLoadCutoffDurationMs: number;
}

export interface StorageConfig {
  /** `''` when not set; an unknown one is refused when the storage is opened. */
  readonly type: string;
  /** The section as it stands in the file: each backend decodes its own with `decodeOptions`, strictly, when it is opened. */
  readonly options: unknown;
  readonly cleanup: {
    readonly enabled: boolean;
    readonly intervalMs: number;
    readonly mustKeepIntervalMs: number;
    readonly removeOldInstancesIntervalMs: number;
  };
}

export interface LogConfig {
  readonly level: LogLevel;
  readonly format: LogFormat;
  readonly timestamp: LogTimestamp;
}
export type LogLevel = 'trace' | 'debug' | 'info' | 'warning' | 'error' | 'fatal';
export type LogFormat = 'human' | 'logfmt' | 'json';
export type LogTimestamp = 'short' | 'disable' | 'full';

export interface TrackerConfig {
  /** At least 1 s. */
  readonly intervalMs: number;
  readonly warnDurationMs: number;
  readonly errorDurationMs: number;
}

export interface HealthConfig {
  readonly storageList: TrackerConfig;
  readonly storageLoad: TrackerConfig;
  readonly storageStore: TrackerConfig;
  readonly start: TrackerConfig & { readonly reportHealthz: boolean; readonly reportMetadata: boolean };
}
