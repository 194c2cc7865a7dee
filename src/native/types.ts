/**
 * The addon's surface as the rest of the program sees it. Records never cross it: every call is one coarse
 * piece of work on a thread of the addon's own and returns a small summary.
 */

/** What an environment is opened with; defaults are those of the configuration. */
export interface EnvironmentOptions {
  /** `path` is the data file itself, not a directory with `data.mdb`. */
  readonly noSubdir: boolean;
  /** Create the file and its parent directories when they do not exist. */
  readonly create: boolean;
  /** Mode of created directories. */
  readonly dirMask: number;
  /** Mode of created files. */
  readonly fileMask: number;
  /** Bytes; 0 = what the file has, 1 GiB for a file that is created. */
  readonly mapSizeBytes: number;
  readonly maxDbs: number;
  /**
   * Only to look: nothing is created or written, whatever `create` says. Without a lock file none is made; should another program open the
   * LMDB meanwhile, reading fails with `EBUSY`.
   */
  readonly readOnly?: boolean;
}

/** `mdb_env_info` and the file's size. */
export interface EnvironmentInfo {
  readonly mapSizeBytes: number;
  readonly pageSizeBytes: number;
  readonly lastPage: number;
  readonly lastTransactionId: bigint;
  readonly maxReaders: number;
  readonly readers: number;
  readonly fileSizeBytes: number;
}

/** `mdb_stat` of one DBI. */
export interface DbiStat {
  readonly name: string;
  /** Persistent flags, see lmdb.h (REVERSEKEY 0x02, DUPSORT 0x04, INTEGERKEY 0x08, …). */
  readonly flags: number;
  readonly depth: number;
  readonly branchPages: number;
  readonly leafPages: number;
  readonly overflowPages: number;
  readonly entries: number;
  /** Bytes of all its pages. */
  readonly usedBytes: number;
}

/** One consistent view of an environment. */
export interface EnvironmentStats {
  readonly info: EnvironmentInfo;
  readonly dbis: readonly DbiStat[];
  /** Bytes of all DBIs together (the free list excluded). */
  readonly usedBytes: number;
}

/** A count that grows while a call works; `total` is 0 when it is not known. */
export interface Progress {
  readonly entries: number;
  readonly bytes: number;
  readonly totalBytes: number;
}

interface Abortable {
  /** Ends the work within 50 ms with an error of code `ABORTED`; what was begun is rolled back. */
  readonly signal?: AbortSignal;
}

/**
 * How the LMDB holds records: `native` = every value has a header; `shadow` = the application's DBIs have none, `_sync_shadow_<dbi>` has
 * the same keys with headers.
 */
export type SyncMode = 'native' | 'shadow';

/** What differed between the application's DBIs and their shadows, and was written to the shadows; all 0 in native mode. */
export interface CaptureCounts {
  readonly added: number;
  readonly changed: number;
  readonly deleted: number;
}

export interface CaptureOptions extends Abortable {
  /**
   * Timestamp of what has changed: 1n at the start of the program, used as it is; otherwise the time now, ns since
   * the epoch, to which is added what passes until the write lock is held.
   */
  readonly timestampNano: bigint;
  /** Replicate DBIs with MDB_DUPSORT, by the encoding `dupsort_hack_v1`; without it they are an error. */
  readonly dupsortHack: boolean;
  /** `WRONG_MODE` instead of making a shadow for a DBI whose values have headers already; false by default. */
  readonly guard?: boolean;
  readonly onProgress?: (progress: Progress) => void;
}

export interface CaptureResult {
  /** All commits of the application up to this transaction are in the shadows. */
  readonly coveredTransactionId: bigint;
  /** The transaction that wrote; null when nothing had to be written (no lock was taken then). */
  readonly transactionId: bigint | null;
  /** Records of the application's DBIs that were looked at. */
  readonly entries: number;
  readonly captured: CaptureCounts;
  readonly writeLockNs: bigint;
  readonly waitLockNs: bigint;
  readonly planNs: bigint;
}

/** A DBI whose values speak against the mode that the LMDB is used in. */
export interface ModeDoubt {
  readonly dbi: string;
  /**
   * `headers`: shadow mode, but its values have headers. `shadow`: native mode, but its values are those of shadow mode.
   * `plain`: native mode, but no value in the whole LMDB has a header.
   */
  readonly finding: 'headers' | 'shadow' | 'plain';
}

/** A schema of PowerDNS' data. */
export interface SchemaVersion {
  readonly version: number;
  /** False: only names of DBIs tell; 4 is 4 or older, 5 is 5 or newer. */
  readonly exact: boolean;
}

export interface PublishOptions extends Abortable {
  /** File that receives the compressed snapshot; created or truncated, not fsynced. */
  readonly spoolPath: string;
  readonly meta: {
    readonly generationId: string;
    readonly instanceId: string;
    readonly hostname: string;
    readonly databaseName: string;
  };
  /** The time now, ns since the epoch. The snapshot's is that of the moment its read transaction began, so not before what it holds (to the clock's resolution). */
  readonly nowNano: bigint;
  /** The snapshot's time is not before this, ns since the epoch. */
  readonly earliestNano: bigint;
  /** Nothing is written unless a transaction later than this is visible to readers; 0n = always. */
  readonly newerThan: bigint;
  /** In shadow mode changes are captured first, with the time of the call plus what passes until the write lock is held. */
  readonly mode: SyncMode;
  /** See {@link CaptureOptions}; false in native mode. */
  readonly dupsortHack: boolean;
  /** See {@link CaptureOptions}; not in native mode. */
  readonly guard?: boolean;
  readonly onProgress?: (progress: Progress) => void;
}

export interface PublishResult {
  /** All commits up to this transaction are in the snapshot (in shadow mode those of the application may have gone on since). */
  readonly transactionId: bigint;
  /** The snapshot's time, ns since the epoch. */
  readonly timestampNano: bigint;
  /** Schema of what is in the snapshot; null when nothing tells one. */
  readonly schema: SchemaVersion | null;
  readonly dbis: number;
  readonly entries: number;
  readonly deleted: number;
  /** See docs/verify.md. */
  readonly digestAll: string;
  readonly digestLive: string;
  readonly captured: CaptureCounts;
  readonly bytes: number;
  readonly compressedBytes: number;
  readonly durations: {
    /** ms until the read transaction was there. */
    readonly acquireMs: number;
    /** ms of walking and encoding, most of the compression beside it. */
    readonly dumpMs: number;
    /** ms of the rest: compression, syncing the file. */
    readonly compressMs: number;
  };
}

export interface MergeOptions extends Abortable {
  readonly spoolPath: string;
  readonly mode: SyncMode;
  /** See {@link CaptureOptions}; false in native mode. */
  readonly dupsortHack: boolean;
  /** See {@link CaptureOptions}; not in native mode. */
  readonly guard?: boolean;
  /** The time now, for local changes that are captured before the merge (see {@link CaptureOptions}); 0n in native mode. */
  readonly captureNano: bigint;
  /** `SCHEMA_CHANGED` instead of writing when the LMDB's schema is another by then; null: it had none. Left out: whatever it is. */
  readonly schema?: SchemaVersion | null;
  /** `SCHEMA_MISMATCH`, before the write lock is taken, when the snapshot has another schema; null: whatever it has. */
  readonly snapshotSchema?: SchemaVersion | null;
  /** Deletions older than this (ns) are not added; 0 = all are. */
  readonly deletedCutoffNano: bigint;
  /** Flags to create a missing DBI with, by name, instead of the snapshot's. */
  readonly createFlags: Readonly<Record<string, number>>;
  /** Write one zero extension block into each header (a test aid). */
  readonly headerExtraPaddingBlock: boolean;
  readonly onProgress?: (progress: Progress) => void;
}

export interface MergeResult {
  /** LastTxnID that the decision was based on: when it is higher than the last synced one, something changed locally. */
  readonly baseTransactionId: bigint;
  /** The transaction that wrote the result; null when nothing had to be written. */
  readonly transactionId: bigint | null;
  readonly entries: number;
  readonly added: number;
  readonly updated: number;
  /** Entries that lost or were equal. */
  readonly skipped: number;
  /** Above 0: there is something local to publish, whatever `baseTransactionId` says. */
  readonly captured: CaptureCounts;
  readonly createdDbis: readonly string[];
  /** DBIs of the snapshot that are private to an instance and were ignored. */
  readonly ignoredDbis: readonly string[];
  readonly writeLockNs: bigint;
  readonly waitLockNs: bigint;
  readonly planNs: bigint;
  readonly meta: SnapshotMeta;
}

export interface SweepOptions extends Abortable {
  /** Deletions older than this (ns since the epoch) are removed. */
  readonly cutoffNano: bigint;
  /** How long the write lock is held at once, about, ms; 0 = no limit. */
  readonly lockDurationMs: number;
  /** How long others have their turn after that, ms; never less than 1. */
  readonly releaseDurationMs: number;
  /** `shadow`: the application's DBIs have no headers, so only `_sync_shadow_*` are swept; `native`: all DBIs but `_sync*`. */
  readonly mode: SyncMode;
  readonly onSweep?: (progress: SweepProgress) => void;
}

/** How far a sweep is; all are counts of entries. */
export interface SweepProgress {
  readonly walked: number;
  /** Deletions removed. */
  readonly cleaned: number;
  readonly total: number;
}

export interface SweepResult {
  /** Entries left, deletions included. */
  readonly entries: number;
  /** Deletions left. */
  readonly deleted: number;
  /** Deletions removed. */
  readonly cleaned: number;
  /** Write transactions that removed something. */
  readonly transactions: number;
  /** The longest that the write lock was held, ms. */
  readonly longestLockMs: number;
  /** Why some DBI was not swept to its end: what was removed by then is counted. Undefined when all is done. */
  readonly failed: Error | undefined;
}

export interface DropShadowResult {
  /** What was removed, sorted by name. */
  readonly dbis: readonly { readonly name: string; readonly entries: number }[];
  /** Null when there was nothing to remove. */
  readonly transactionId: bigint | null;
}

export interface MigrateTimestampsOptions extends Abortable {
  /** DBI that has the timestamps: values with a header, or with only a timestamp of 8 bytes before them. */
  readonly source: string;
  /** DBI that gets them; every value has a header. */
  readonly destination: string;
  /** Deletions of the source whose key the destination lacks are added to it. */
  readonly addDeletions: boolean;
  /** A source that does not exist is no error. */
  readonly ignoreMissingSource: boolean;
  readonly onProgress?: (progress: Progress) => void;
}

export interface MigrateTimestampsResult {
  readonly sourceMissing: boolean;
  readonly updated: number;
  readonly addedDeletions: number;
  /** Null when nothing had to be written. */
  readonly transactionId: bigint | null;
}

export interface FixDuplicateDomainsOptions extends Abortable {
  /** Else they are only found. */
  readonly rename: boolean;
  /** Timestamp of what is written, ns since the epoch. */
  readonly nowNano: bigint;
}

export interface DuplicateDomain {
  readonly domain: string;
  /** Number of the oldest entry, which stays. */
  readonly keptId: number;
  readonly keptTimestampNano: bigint;
  /** Number of this one. */
  readonly id: number;
  readonly timestampNano: bigint;
  /** What it is, or would be, renamed to; null when that would be too long. */
  readonly newName: string | null;
}

export interface FixDuplicateDomainsResult {
  readonly duplicates: readonly DuplicateDomain[];
  /** Domains that were renamed, now or before, and are still there. */
  readonly renamed: readonly string[];
  /** Live entries of the index. */
  readonly domains: number;
  /** Null when nothing was renamed. */
  readonly transactionId: bigint | null;
}

/** Head of a snapshot, read without its records. */
export interface SnapshotMeta {
  readonly formatVersion: number;
  readonly compatVersion: number;
  readonly generationId: string;
  readonly instanceId: string;
  readonly hostname: string;
  readonly databaseName: string;
  readonly lmdbTxnId: bigint;
  readonly timestampNano: bigint;
}

export interface DumpOptions extends Abortable {
  /** Configured name, for the headings. */
  readonly database: string;
  /** Leave out `_sync…`. */
  readonly hidePrivate: boolean;
  /** `native`: every value has a header; `shadow`: those of the shadow DBIs. Only `json` takes them apart. */
  readonly mode: SyncMode;
  readonly format: 'text' | 'json';
  /** The time now, ns since the epoch. */
  readonly nowNano: bigint;
  readonly onProgress?: (progress: Progress) => void;
}

export interface SnapshotDumpOptions extends Abortable {
  /** Name of the object, for people. */
  readonly name: string;
  /** Only the DBI of this name; null = all. */
  readonly dbi: string | null;
  readonly format: 'text' | 'json';
  /** The time now, ns since the epoch. */
  readonly nowNano: bigint;
  readonly onProgress?: (progress: Progress) => void;
}

export interface DumpResult {
  readonly dbis: number;
  readonly entries: number;
}

/** Entries and their digests; see docs/verify.md. */
export interface Content {
  /** Deletions included. */
  readonly entries: number;
  readonly deleted: number;
  /** Digest of all entries, 32 hexadecimal digits. */
  readonly all: string;
  /** Digest of those that are not deletions. */
  readonly live: string;
}

export interface VerifyOptions extends Abortable {
  /** In shadow mode the shadow DBIs are read, under the application's names. */
  readonly mode: SyncMode;
  /** So many faults are described; all are counted. */
  readonly maxErrors: number;
  /** Later timestamps are counted as of the future, ns since the epoch. */
  readonly futureAfter: bigint;
  readonly onProgress?: (progress: Progress) => void;
}

export interface VerifiedDbi {
  readonly name: string;
  /** Persistent flags of the DBI that was read. */
  readonly flags: number;
  /** Entries with a valid header. */
  readonly content: Content;
  /** Of those, with timestamp 0. */
  readonly zero: number;
  readonly future: number;
  /** The latest timestamp; 0n = there is none. */
  readonly newest: bigint;
  /** Entries without a valid header; 1 for a DBI of a kind that cannot be synchronised. */
  readonly invalid: number;
}

export interface VerifyResult {
  readonly transactionId: bigint;
  readonly dbis: readonly VerifiedDbi[];
  /** Of all DBIs together. */
  readonly content: Content;
  /** The first faults, each with DBI and key. */
  readonly errors: readonly Error[];
}

export interface CompareOptions extends Abortable {
  /** The compressed snapshot. */
  readonly path: string;
  readonly mode: SyncMode;
  /** Deletions older than this (ns) are no loss where they are missing; 0n = all are. */
  readonly deletedCutoffNano: bigint;
  readonly onProgress?: (progress: Progress) => void;
}

export interface CompareResult {
  /** The LMDB's. */
  readonly transactionId: bigint;
  readonly meta: SnapshotMeta;
  readonly dbis: readonly {
    readonly name: string;
    /** The snapshot's. */
    readonly content: Content;
    /** Entries that a merge would write, and that the application would notice. */
    readonly missing: number;
    /** Deletions that a merge would write, of what is not there anyway. */
    readonly missingDeletions: number;
    /** Entries of the LMDB that are later than the snapshot's, or that it does not have. */
    readonly newer: number;
  }[];
  /** The snapshot's, of all DBIs together. */
  readonly content: Content;
}

/** What `migratePdns` is asked for; see docs/migration.md. */
export interface MigratePdnsOptions extends Abortable {
  /** The main LMDB of a PowerDNS; its shards are beside it. */
  readonly path: string;
  readonly noSubdir: boolean;
  /** Schema version, 5 or 6. */
  readonly to: number;
  /** False: nothing is written, only counted. */
  readonly write: boolean;
  /** Directory that is made for copies of the files as they were; null = none. */
  readonly backupDir: string | null;
  /** Timestamp of what was changed after the shadows were brought up to date: that of the run, 1 ns after the shadow's, or an error. */
  readonly untracked: 'now' | 'old' | 'fail';
  /** All timestamps become 0. */
  readonly ignoreShadow: boolean;
  /** `_sync*` stay. */
  readonly keepShadow: boolean;
  /** Which DBIs count where old and new ones are side by side; null = an error. */
  readonly use: 'old' | 'new' | null;
  /** All records into the first shard. */
  readonly mergeShards: boolean;
  /** Although another process has the files open. */
  readonly force: boolean;
  /** The time of the run, ns since the epoch. */
  readonly nowNano: bigint;
  readonly onProgress?: (progress: Progress) => void;
}

/** Counts of entries. */
export interface MigratedCounts {
  /** With a timestamp from a shadow, deletions included. */
  readonly carried: number;
  /** Changed after the shadow was brought up to date. */
  readonly untracked: number;
  /** Deletion markers. */
  readonly deleted: number;
}

export interface MigratedDbi extends MigratedCounts {
  readonly from: string;
  readonly to: string;
  /** That are read. */
  readonly entries: number;
}

/** One file of a PowerDNS. */
export interface MigratedShard extends MigratedCounts {
  readonly path: string;
  /** Null where there is none to read. */
  readonly schema: number | null;
  /** In words. */
  readonly state: string;
  readonly dbis: readonly MigratedDbi[];
}

export interface MigratePdnsResult extends MigratedCounts {
  readonly path: string;
  readonly schema: number | null;
  readonly to: number;
  /** False: there was, or would be, nothing to do. */
  readonly changed: boolean;
  /** Directory of the copies; null when none were made. */
  readonly backup: string | null;
  /** Map size that the largest of the files needs. */
  readonly mapBytes: number;
  readonly backupBytes: number;
  readonly diskFreeBytes: number;
  readonly warnings: readonly string[];
  /** The main first. */
  readonly shards: readonly MigratedShard[];
}

/** What an LMDB is to `migratePdns`. */
export interface PdnsStatus {
  readonly path: string;
  /** It has a DBI `pdns`. */
  readonly isMain: boolean;
  readonly schema: number | null;
  /** As the main says. */
  readonly shards: number | null;
  /** The main and its shards. */
  readonly files: readonly {
    readonly path: string;
    readonly present: boolean;
    readonly schema: number | null;
    /** It has `_sync_shadow_*`. */
    readonly shadow: boolean;
    /** Ids of the processes that have it open; 0 for one of another pid namespace. */
    readonly users: readonly number[];
  }[];
  readonly state:
    'not PowerDNS' | 'can be migrated' | 'interrupted' | 'rescue' | 'native' | 'mixed' | 'unsupported';
  /** One line for people. */
  readonly text: string;
}

/** One open LMDB environment; at most one per file and process. */
export interface Environment {
  readonly path: string;
  /** LastTxnID: one memory read. */
  readonly lastTransactionId: bigint;
  info(): EnvironmentInfo;
  stats(): Promise<EnvironmentStats>;
  /** Clears the slots of dead readers; returns how many. */
  checkReaders(): number;
  /** Looks at a few values of each DBI; null when nothing speaks against the mode. */
  checkMode(mode: SyncMode): Promise<ModeDoubt | null>;
  /** The schema of the LMDB, if it is PowerDNS'; null when nothing tells one. */
  schema(): Promise<SchemaVersion | null>;
  /** Null when there is nothing newer than `newerThan`. */
  publish(options: PublishOptions): Promise<PublishResult | null>;
  merge(options: MergeOptions): Promise<MergeResult>;
  /** Shadow mode: brings the shadows up to date with the application's DBIs. Takes the write lock only when something differs. */
  capture(options: CaptureOptions): Promise<CaptureResult>;
  /** Removes old deletions in short write transactions; takes the lock only when there are some. */
  sweep(options: SweepOptions): Promise<SweepResult>;
  /** Removes all DBIs that are private to an instance (`_sync…`), in one transaction. */
  dropShadow(options: { readonly signal?: AbortSignal }): Promise<DropShadowResult>;
  /** Gives records the newer timestamps that another DBI has for the same keys, in one transaction. */
  migrateTimestamps(options: MigrateTimestampsOptions): Promise<MigrateTimestampsResult>;
  /** Finds domains that a PowerDNS database of schema 5 has twice; renames all but the oldest of each, in one transaction. */
  fixDuplicateDomains(options: FixDuplicateDomainsOptions): Promise<FixDuplicateDomainsResult>;
  /** Writes the records to the process's standard output, with flat memory. Code `EPIPE` when nobody reads it any more. */
  dump(options: DumpOptions): Promise<DumpResult>;
  /** Reads all that is synchronised, in one read transaction. What is wrong with records is in the result. */
  verify(options: VerifyOptions): Promise<VerifyResult>;
  /** Shadow mode: how many records a capture would find changed; `more`: and others that were not counted. Writes nothing. */
  pending(options: {
    readonly dupsortHack: boolean;
    readonly signal?: AbortSignal;
    readonly onProgress?: (progress: Progress) => void;
  }): Promise<{ readonly entries: number; readonly more: boolean }>;
  /** Reads a snapshot beside the LMDB, in one read transaction. */
  compare(options: CompareOptions): Promise<CompareResult>;
  /** Waits for work in progress, then closes. */
  close(): Promise<void>;
}

export interface Native {
  readonly lmdbVersion: string;
  readonly addonVersion: string;
  /** Throws a {@link NativeError}; code `ALREADY_OPEN` when this process has the file open. */
  openEnvironment(path: string, options: EnvironmentOptions): Environment;
  /**
   * Exclusive lock on an existing file without waiting: flock(2) with LOCK_EX | LOCK_NB, held by the open file and so until
   * `release` or the end of the process. Undefined when somebody else holds it, in this process too.
   * Throws an error with `code` of the system (`ENOENT`, `ENOLCK`, `EOPNOTSUPP`, …).
   */
  tryLock(path: string): { release(): void } | undefined;
  /**
   * Ids of the processes that have the LMDB open, without opening it; 0 for those of another pid namespace. Of those that
   * never read only one may be seen. Throws a {@link NativeError}; code `ALREADY_OPEN` when this process has it open.
   */
  lmdbUsers(path: string, options: { readonly noSubdir: boolean }): readonly number[];
  /**
   * Brings the LMDBs of a PowerDNS to another schema version, with the timestamps of their shadows. Codes `REFUSED`: nothing was changed; `IN_USE`: the same, because
   * another process has them open. After any other error what was begun is rolled back.
   */
  migratePdns(options: MigratePdnsOptions): Promise<MigratePdnsResult>;
  /** Looks at an LMDB and its shards, beside programs that use them. */
  migratePdnsStatus(lmdb: { readonly path: string; readonly noSubdir: boolean }): Promise<PdnsStatus>;
  /**
   * One datagram to the socket that NOTIFY_SOCKET names, see sd_notify(3): a path, or `@` and an abstract name. Throws an error with
   * the `code` of the system.
   */
  notifyServiceManager(socket: string, state: string): Promise<void>;
  /** Decodes a whole snapshot without keeping it: throws when it is corrupt. */
  inspectSnapshot(
    path: string,
    options?: { signal?: AbortSignal; onProgress?: (progress: Progress) => void },
  ): Promise<SnapshotMeta & { dbis: number; entries: number; bytes: number }>;
  /**
   * The schema of a snapshot; null when nothing in it tells one. Reads no further than to the number, where there is one.
   */
  snapshotSchema(path: string, options: { readonly signal?: AbortSignal }): Promise<SchemaVersion | null>;
  /**
   * Writes a snapshot's records to the process's standard output, with flat memory; nothing of a corrupt one. Codes `INVALID_ARGUMENT`: it
   * has no such DBI; `EPIPE`: nobody reads the output any more.
   */
  dumpSnapshot(path: string, options: SnapshotDumpOptions): Promise<DumpResult>;
}

/**
 * Codes of native errors. `SNAPSHOT_CORRUPT`: framing or checksum, found by reading alone. `SNAPSHOT_REFUSED`: readable, but
 * cannot be merged (version, transform, flags, key size …). `HEADER_INVALID`: a local value has no valid header;
 * `DBI_UNSUPPORTED`, `VALUE_TOO_LARGE`: it cannot travel. `SCHEMA_CHANGED`, `SCHEMA_MISMATCH`: see {@link MergeOptions}.
 * `ABORTED`, `IO`, `ALREADY_OPEN`, `CLOSED`, `PANIC`, `INVALID_ARGUMENT` and LMDB's own names (`MDB_MAP_FULL`, `MDB_VERSION_MISMATCH`,
 * `MDB_INVALID`, `MDB_CORRUPTED`, `MDB_READERS_FULL`, `MDB_DBS_FULL`, …); system errors by name (`ENOSPC`, `EACCES`, `ENOENT`, …).
 */
export type NativeErrorCode = string;
