// Parts of the package, not its index: that loads clients for HTTP and tracing, too, which cost a short command a fifth of its time.
import Counter from 'prom-client/lib/counter.js';
import Gauge from 'prom-client/lib/gauge.js';
import Histogram from 'prom-client/lib/histogram.js';
import Registry from 'prom-client/lib/registry.js';
import Summary from 'prom-client/lib/summary.js';
import type { EnvironmentStats } from '../native/types.ts';
import { createEnvironmentCollector } from './metrics-lmdb.ts';
import { createStorageCallMetrics, type StorageCallMetrics } from './metrics-storage.ts';

/** What limits parallel work of one database; the two names are those of the reference. */
export type LimitName = 'download' | 'decompress';

type LimitLabels = 'lmdb' | 'limit_name';
type RemoteLabels = 'lmdb' | 'syncer_instance';

/**
 * All metrics of one program. Names, types, labels and buckets are those of PowerDNS Lightning Stream 1.0, so that its
 * dashboards and alerts keep working; `schemaHeldBack` is our own. A metric with labels is on the page from its first event on.
 */
export interface Metrics {
  /** One per snapshot that was generated, stored or not. */
  readonly snapshotsGenerated: Counter<'lmdb'>;
  /** The time in the last generated snapshot's name, seconds since the epoch. */
  readonly snapshotsGeneratedLastUnixSeconds: Gauge<'lmdb'>;
  /** Compressed size of the last generated snapshot. */
  readonly snapshotsGeneratedLastSizeBytes: Gauge<'lmdb'>;
  /** Every store call, failed ones and retries included. */
  readonly snapshotsStoreCalls: Counter;
  /** Bytes of successful store calls. */
  readonly snapshotsStoreBytes: Counter;
  /** Every failed store call. */
  readonly snapshotsStoreFailedAttempts: Counter<'lmdb'>;
  /** One per snapshot that was given up after the configured number of attempts. */
  readonly snapshotsStoreFailedPermanently: Counter<'lmdb'>;

  /** Every list call of a receiver, failed ones included. */
  readonly snapshotsListCalls: Counter;
  readonly snapshotsListFailed: Counter<'lmdb'>;
  /** Every load call, failed ones included. */
  readonly snapshotsLoadCalls: Counter;
  readonly snapshotsLoadFailed: Counter<RemoteLabels>;
  /** Bytes of successful load calls. */
  readonly snapshotsLoadBytes: Counter;
  /** The time in the name of the newest snapshot seen of an instance (our own included), seconds since the epoch. */
  readonly snapshotsLastReceivedSeconds: Gauge<RemoteLabels>;
  /** Now minus that time, observed once per snapshot when it is first seen. */
  readonly snapshotsLastReceivedAgeSeconds: Histogram<RemoteLabels>;
  /** Snapshots of this database in the last successful listing. */
  readonly snapshotsInStorageCount: Gauge<'lmdb'>;
  /** Bytes of those. */
  readonly snapshotsInStorageBytes: Gauge<'lmdb'>;

  /** 1 while snapshots of the instance are held back because of their schema. */
  readonly schemaHeldBack: Gauge<RemoteLabels>;

  /** Every list call of a cleaner, failed ones included. */
  readonly cleanerListCalls: Counter;
  readonly cleanerListFailed: Counter;
  /** Every delete call, failed ones included. */
  readonly cleanerDelete: Counter<'lmdb' | 'reason'>;
  readonly cleanerDeleteFailed: Counter;

  /** Deletions that the sweeper removed. */
  readonly sweeperCleaned: Counter<'lmdb'>;
  /** 1 once a sweep has got to its end: the next two are from the last one. */
  readonly sweeperStatsAvailable: Gauge<'lmdb'>;
  /** Entries left, deletions included. */
  readonly sweeperStatsTotalEntries: Gauge<'lmdb'>;
  /** Deletions left. */
  readonly sweeperStatsDeletedEntries: Gauge<'lmdb'>;
  /** Observed when a sweep has got to its end. */
  readonly sweeperDurationSeconds: Summary<'lmdb'>;

  /** How many of a {@link LimitName} may run at once. */
  readonly limit: Gauge<LimitLabels>;
  readonly limitWaiting: Gauge<LimitLabels>;
  readonly limitActive: Gauge<LimitLabels>;
  readonly limitAcquired: Counter<LimitLabels>;
  /** Observed when the work ends. */
  readonly limitActiveSeconds: Histogram<LimitLabels>;
  /** Observed when the work may begin, also when it did not have to wait. */
  readonly limitWaitingSeconds: Histogram<LimitLabels>;

  /** The calls of an S3 or Azure storage. */
  readonly storageCalls: StorageCallMetrics;

  /**
   * Adds an environment to the page; its figures are read when the page is. `dataFilePath` is the data file itself (with
   * `data.mdb` where LMDB adds it). Returns the function that takes it off again. A later registration of the same name wins.
   */
  registerEnvironment(name: string, dataFilePath: string, stats: () => Promise<EnvironmentStats>): () => void;
  /** Begins to observe this process (garbage collection, event loop, memory, descriptors); repeating it has no effect. */
  observeProcess(): Promise<void>;
  /** The page in Prometheus' text format. Never fails because of an environment and never takes longer than its deadline. */
  page(): Promise<{ readonly contentType: string; readonly text: string }>;
}

export interface MetricsOptions {
  /** Read `/proc/self/smaps` at each scrape, for `lmdb_smaps_bytes`. */
  readonly scrapeSmaps: boolean;
  /** How long a scrape waits for an environment's figures. */
  readonly environmentDeadlineMs?: number;
}

const MINUTE = 60;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;
const AGE_BUCKETS_SECONDS: readonly number[] = [
  0.1,
  0.2,
  0.5,
  1,
  2,
  5,
  10,
  30,
  ...[1, 2, 5, 10, 30].map((n) => n * MINUTE),
  ...[1, 2, 6, 12].map((n) => n * HOUR),
  ...[1, 3, 7, 14, 30].map((n) => n * DAY),
];
const LIMIT_BUCKETS_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];

/** Creates the metrics on a registry of their own: nothing is shared between two calls. */
export function createMetrics(options: MetricsOptions): Metrics {
  const registry = new Registry();
  const registers = [registry];
  const environments = createEnvironmentCollector(registry, {
    scrapeSmaps: options.scrapeSmaps,
    deadlineMs: options.environmentDeadlineMs ?? 2000,
  });
  let observing: Promise<void> | undefined;

  function counter<L extends string = never>(name: string, help: string, labelNames: readonly L[] = []) {
    return new Counter<L>({ name: `lightningstream_${name}`, help, labelNames, registers });
  }
  function gauge<L extends string>(name: string, help: string, labelNames: readonly L[]) {
    return new Gauge<L>({ name: `lightningstream_${name}`, help, labelNames, registers });
  }
  function histogram<L extends string>(
    name: string,
    help: string,
    labelNames: readonly L[],
    buckets: readonly number[],
  ) {
    return new Histogram<L>({
      name: `lightningstream_${name}`,
      help,
      labelNames,
      buckets: [...buckets],
      registers,
    });
  }

  const perDatabase = ['lmdb'] as const;
  const perRemote = ['lmdb', 'syncer_instance'] as const;
  const perLimit = ['lmdb', 'limit_name'] as const;

  return {
    snapshotsGenerated: counter('syncer_snapshots_generated_total', 'Snapshots generated', perDatabase),
    snapshotsGeneratedLastUnixSeconds: gauge(
      'syncer_snapshots_generated_last_unix_seconds',
      'Time of the last generated snapshot, seconds since the epoch',
      perDatabase,
    ),
    snapshotsGeneratedLastSizeBytes: gauge(
      'syncer_snapshots_generated_last_size_bytes',
      'Compressed size of the last generated snapshot',
      perDatabase,
    ),
    snapshotsStoreCalls: counter('syncer_snapshots_store_calls_total', 'Attempts to store a snapshot'),
    snapshotsStoreBytes: counter('syncer_snapshots_store_bytes_total', 'Bytes stored successfully'),
    snapshotsStoreFailedAttempts: counter(
      'syncer_snapshots_store_failed_attempts_total',
      'Failed attempts to store a snapshot',
      perDatabase,
    ),
    snapshotsStoreFailedPermanently: counter(
      'syncer_snapshots_store_failed_permanently_total',
      'Snapshots given up because all attempts to store them failed',
      perDatabase,
    ),

    snapshotsListCalls: counter('syncer_snapshots_list_calls_total', 'Attempts to list the storage'),
    snapshotsListFailed: counter(
      'syncer_snapshots_list_failed_total',
      'Failed attempts to list the storage',
      perDatabase,
    ),
    snapshotsLoadCalls: counter('syncer_snapshots_load_calls_total', 'Attempts to load a snapshot'),
    snapshotsLoadFailed: counter(
      'syncer_snapshots_load_failed_total',
      'Failed attempts to load a snapshot',
      perRemote,
    ),
    snapshotsLoadBytes: counter('syncer_snapshots_load_bytes_total', 'Bytes loaded successfully'),
    snapshotsLastReceivedSeconds: gauge(
      'receiver_snapshots_last_received_seconds',
      'Time of the newest snapshot seen of an instance, seconds since the epoch',
      perRemote,
    ),
    snapshotsLastReceivedAgeSeconds: histogram(
      'receiver_snapshots_last_received_age_seconds',
      'Age of the snapshots of an instance when they were first seen',
      perRemote,
      AGE_BUCKETS_SECONDS,
    ),
    snapshotsInStorageCount: gauge(
      'receiver_snapshots_in_storage_count',
      'Snapshots in the last listing',
      perDatabase,
    ),
    snapshotsInStorageBytes: gauge(
      'receiver_snapshots_in_storage_bytes',
      'Bytes of the snapshots in the last listing',
      perDatabase,
    ),

    schemaHeldBack: gauge(
      'schema_held_back',
      '1 while snapshots of the instance are held back because of their schema',
      perRemote,
    ),

    cleanerListCalls: counter('cleaner_list_calls_total', 'Attempts to list the storage for cleaning'),
    cleanerListFailed: counter(
      'cleaner_list_failed_total',
      'Failed attempts to list the storage for cleaning',
    ),
    cleanerDelete: counter('cleaner_delete_total', 'Attempts to delete a snapshot', [
      'lmdb',
      'reason',
    ] as const),
    cleanerDeleteFailed: counter('cleaner_delete_failed_total', 'Failed attempts to delete a snapshot'),

    sweeperCleaned: counter('sweeper_cleaned_total', 'Old deletions removed', perDatabase),
    sweeperStatsAvailable: gauge(
      'sweeper_stats_available',
      '1 once there are figures of a complete sweep',
      perDatabase,
    ),
    sweeperStatsTotalEntries: gauge(
      'sweeper_stats_total_entries',
      'Entries after the last sweep, deletions included',
      perDatabase,
    ),
    sweeperStatsDeletedEntries: gauge(
      'sweeper_stats_deleted_entries',
      'Deletions after the last sweep',
      perDatabase,
    ),
    sweeperDurationSeconds: new Summary({
      name: 'lightningstream_sweeper_duration_seconds',
      help: 'Time that complete sweeps took',
      labelNames: [...perDatabase],
      // Sum and count only, as the reference has it.
      percentiles: [],
      registers,
    }),

    limit: gauge('climit_limit', 'Most tasks that may be active at once', perLimit),
    limitWaiting: gauge('climit_waiting', 'Tasks that wait to become active', perLimit),
    limitActive: gauge('climit_active', 'Active tasks', perLimit),
    limitAcquired: counter('climit_acquired_total', 'Tasks that became active', perLimit),
    limitActiveSeconds: histogram(
      'climit_active_seconds',
      'Time that tasks were active',
      perLimit,
      LIMIT_BUCKETS_SECONDS,
    ),
    limitWaitingSeconds: histogram(
      'climit_waiting_seconds',
      'Time that tasks waited to become active',
      perLimit,
      LIMIT_BUCKETS_SECONDS,
    ),
    storageCalls: createStorageCallMetrics(registry),

    registerEnvironment: (name, dataFilePath, stats) => environments.register(name, dataFilePath, stats),
    observeProcess() {
      return (observing ??= import('./metrics-process.ts').then(({ registerProcessMetrics }) =>
        registerProcessMetrics(registry),
      ));
    },
    async page() {
      await environments.collect();
      const metrics = await Promise.all(
        registry.getMetricsAsArray().map((metric) => registry.getSingleMetricAsString(metric.name)),
      );
      // Two comment lines and no sample: nothing happened yet.
      const text = metrics.filter((metric) => /^[^#\n]/m.test(metric)).join('\n');
      return { contentType: registry.contentType, text: `${text}\n` };
    },
  };
}
