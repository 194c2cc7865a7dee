import { readFileSync, realpathSync } from 'node:fs';
import path from 'node:path';
import {
  bool,
  ConfigError,
  dbiFlags,
  type Decoded,
  deprecated,
  duration,
  float,
  int,
  key,
  later,
  map,
  mode,
  object,
  oneOf,
  Place,
  secretsOf,
  size,
  Source,
  str,
  toYaml,
  withOption,
  word,
  zeroIsDefault,
} from './decode.ts';
import { formatDuration } from './units.ts';
import type { Config, LogConfig } from './types.ts';

export { ConfigError } from './decode.ts';
export type * from './types.ts';

const SECOND = 1000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;

/** `panic` and `warn` are Lightning Stream's further names. */
const LOG_LEVELS = ['trace', 'debug', 'info', 'warning', 'error', 'fatal'] as const;
const LOG_LEVEL_ALIASES = { warn: 'warning', panic: 'fatal' } as const;
const LOG_FORMATS = ['human', 'logfmt', 'json'] as const;
const LOG_TIMESTAMPS = ['short', 'disable', 'full'] as const;

const pollInterval = (ms: number) => duration({ default: ms, min: 100 });

/** Health is not looked at more often than once a second. */
const trackerFields = (intervalMs: number, trouble: string) => ({
  intervalMs: key(
    'interval',
    raisedTo(SECOND, duration({ default: intervalMs })),
    'Calls that run for less do not count; 1s if less. Verdicts are made when somebody asks, so they are never old.',
  ),
  warnDurationMs: key('warn_duration', duration({ default: MINUTE }), `${trouble} for so long is a warning.`),
  errorDurationMs: key(
    'error_duration',
    duration({ default: 5 * MINUTE }),
    `${trouble} for so long is a failure.`,
  ),
});

function raisedTo(minimum: number, decoder: ReturnType<typeof duration>): ReturnType<typeof duration> {
  return {
    ...decoder,
    zero: minimum,
    read: (values, place) => Math.max(minimum, decoder.read(values, place)),
  };
}

const lmdb = object(
  {
    path: key('path', str({ required: true }), 'Directory of the LMDB, or its data file with `no_subdir`.'),
    options: key(
      'options',
      object({
        noSubdir: key('no_subdir', bool(), '`path` is the data file itself. PowerDNS needs `true`.'),
        create: key(
          'create',
          bool(),
          'Create the LMDB and its parent directories when they are missing, instead of waiting for the application.',
        ),
        dirMask: key(
          'dir_mask',
          mode({ default: 0o775 }),
          'Mode of created directories, octal with a leading 0, at most 0777; 0 is the default.',
        ),
        fileMask: key('file_mask', mode({ default: 0o664 }), 'Mode of created files, likewise.'),
        mapSizeBytes: key(
          'map_size',
          size(),
          'How large the LMDB may get. 0: as large as the file says, 1GB for a new one.',
        ),
        maxDbs: key(
          'max_dbs',
          zeroIsDefault(int({ default: 64 })),
          'Most tables (DBIs), shadows included; 0 is the default.',
        ),
      }),
    ),
    schemaTracksChanges: key(
      'schema_tracks_changes',
      bool(),
      'The application writes Lightning Stream headers itself (PowerDNS 4.8 or later). `false`: it does not, and they are kept in tables of our own ([shadow mode](shadow-mode.md)). The wrong one is refused.',
    ),
    dupsortHack: key(
      'dupsort_hack',
      bool(),
      'Replicate tables with `MDB_DUPSORT`, too, which are refused otherwise ([limits](shadow-mode.md#limits)). The same on all instances; not together with `schema_tracks_changes`.',
    ),
    schemaGuard: key(
      'schema_guard',
      word<'auto' | 'off' | number>({
        what: 'auto, off or the number of a schema version',
        default: 'auto',
        parse: (text) =>
          text === 'auto' || text === 'off' ? text : /^[1-9]\d{0,8}$/.test(text) ? Number(text) : undefined,
      }),
      'Our own key. `auto`: snapshots of PowerDNS servers with another schema are [held back](powerdns.md#servers-of-different-schemas). A number: likewise, and the LMDB must have this schema, or nothing is uploaded; for one that is still empty. `off`: all are merged, and the LMDB is used although its values speak against `schema_tracks_changes`.',
    ),
    headerExtraPaddingBlock: key(
      'header_extra_padding_block',
      bool(),
      'For tests of applications: merged values get a header that is 8 bytes longer.',
    ),
    dbiOptions: key(
      'dbi_options',
      map(
        object({
          overrideCreateFlags: key(
            'override_create_flags',
            dbiFlags(),
            "Flags to create this DBI with when a snapshot brings it, instead of the snapshot's: names as in lmdb.h (`MDB_DUPSORT`, several joined by a vertical bar) or a number.",
          ),
        }),
        { name: 'DBI' },
      ),
    ),
  },
  {
    check: (value, complain) => {
      if (value.schemaTracksChanges && value.dupsortHack) {
        complain('schema_tracks_changes', 'cannot be used together with dupsort_hack: remove one of them');
      }
    },
  },
);

/** The whole file: one row per key, in the order in which `--log-config` prints them. */
export const configTable = object(
  {
    instance: key(
      'instance',
      str(),
      "Name of this instance in the storage, unique among all that share it. Empty: the host's name. The flag `-i` wins.",
    ),
    lmdbs: key(
      'lmdbs',
      map(lmdb, { required: 'at least one LMDB must be configured', checkKey: databaseNameProblem }),
    ),
    lmdbPollIntervalMs: key(
      'lmdb_poll_interval',
      pollInterval(SECOND),
      'The shortest time between two snapshots of one LMDB. A change is noticed at once, whatever this is.',
    ),
    lmdbLogStatsIntervalMs: key(
      'lmdb_log_stats_interval',
      duration({ default: 30 * MINUTE }),
      'How often figures of each LMDB are logged; 0 or less: never.',
    ),
    lmdbScrapeSmaps: key(
      'lmdb_scrape_smaps',
      bool({ default: true }),
      'Metrics tell how much of each LMDB is in memory. It can take long where an LMDB is very large.',
    ),
    storagePollIntervalMs: key(
      'storage_poll_interval',
      pollInterval(SECOND),
      'How often the storage is listed. An `fs` storage on a local disk tells of changes by itself, too.',
    ),
    storageRetryIntervalMs: key(
      'storage_retry_interval',
      pollInterval(5 * SECOND),
      'The time before what failed is tried again.',
    ),
    storageRetryCount: key(
      'storage_retry_count',
      int({ default: 100, min: 1 }),
      'Attempts to store a snapshot before giving up and starting over with a fresh one.',
    ),
    storageRetryForever: key('storage_retry_forever', bool(), 'Never give up on storing.'),
    storageForceSnapshotIntervalMs: key(
      'storage_force_snapshot_interval',
      duration({
        default: 4 * HOUR,
        check: (ms) =>
          ms !== 0 && ms < MINUTE ? `must be 0 (off) or at least 1m, not ${formatDuration(ms)}` : undefined,
      }),
      'The time after which a snapshot is stored although nothing changed; 0 (never) or at least 1m.',
    ),
    memoryDownloadedSnapshots: key(
      'memory_downloaded_snapshots',
      int({ default: 2, min: 1 }),
      'Snapshots that each LMDB downloads at once.',
    ),
    memoryDecompressedSnapshots: key(
      'memory_decompressed_snapshots',
      int({ default: 3, min: 1 }),
      'Downloaded snapshots of each LMDB that wait in `spool_dir` to be merged.',
    ),
    onlyOnce: key('only_once', bool(), 'End after one pass, as the flag `--only-once`.'),
    spoolDir: key(
      'spool_dir',
      str(),
      "Our own key: where snapshots pass through on their way, created if missing. Empty: `$CACHE_DIRECTORY`, else the system's temporary directory. It needs room for the snapshots under way.",
    ),
    sweeper: key(
      'sweeper',
      object({
        enabled: key('enabled', bool(), 'Run it; with `receive`, too, but not with `--only-once`.'),
        retentionDays: key(
          'retention_days',
          float({ default: 370 }),
          'Days that deletions are kept, parts of days allowed; longer than any instance may be down.',
        ),
        intervalMs: key(
          'interval',
          duration({ default: 6 * HOUR }),
          'The time between two runs, never less than 1s. One that failed is tried again after 5m0s.',
        ),
        firstIntervalMs: key(
          'first_interval',
          duration({ default: 10 * MINUTE }),
          'The time from the start to the first run.',
        ),
        lockDurationMs: key(
          'lock_duration',
          duration({ default: 50 }),
          'How long it holds the write lock at once, about; 0: until it is done.',
        ),
        releaseDurationMs: key(
          'release_duration',
          duration({ default: 50 }),
          'How long others have their turn after that.',
        ),
        retentionLoadCutoffDurationMs: key(
          'retention_load_cutoff_duration',
          duration(),
          'Deletions in snapshots that are nearer than this to the end of the retention are not loaded; 0: a hundredth of the retention.',
        ),
      }),
    ),
    storage: key(
      'storage',
      object({
        type: key(
          'type',
          str(),
          'Required by all commands that use the storage: `fs`, `s3`, or `memory` (for tests: gone with the process). `azure`: _not built yet_.',
        ),
        options: key('options', later(), 'What the type needs, see below.'),
        rootPath: key('root_path', deprecated(str()), 'Deprecated: the same as `storage.options.root_path`.'),
        cleanup: key(
          'cleanup',
          object({
            enabled: key(
              'enabled',
              bool(),
              'Remove snapshots that newer ones replace, of all instances. Not with `receive` and `--only-once`.',
            ),
            intervalMs: key(
              'interval',
              duration({ default: 5 * MINUTE }),
              'The time between two cleanings, ±20 %, never less than 1s.',
            ),
            mustKeepIntervalMs: key(
              'must_keep_interval',
              duration({ default: 10 * MINUTE }),
              'A snapshot stays for so long after this daemon first saw it in the storage.',
            ),
            removeOldInstancesIntervalMs: key(
              'remove_old_instances_interval',
              duration({ default: 168 * HOUR }),
              'The last snapshot of another instance stays until it is older than this, and what it holds is in a snapshot of our own.',
            ),
          }),
        ),
      }),
    ),
    http: key(
      'http',
      object({
        address: key(
          'address',
          str({ check: addressProblem }),
          '`host:port`, `[ipv6]:port` or `:port` for the status page, `/healthz`, `/metrics` and `/storage`. Empty: no server. There is no login, so keep it off public addresses.',
        ),
      }),
    ),
    log: key(
      'log',
      object({
        level: key(
          'level',
          oneOf(LOG_LEVELS, { default: 'info', ignoreCase: true, aliases: LOG_LEVEL_ALIASES }),
          'What is less grave is not logged. The flags `--log-level` and `--debug` win.',
        ),
        format: key('format', oneOf(LOG_FORMATS, { default: 'human' }), 'The flag `--log-format` wins.'),
        timestamp: key(
          'timestamp',
          oneOf(LOG_TIMESTAMPS, { default: 'short', aliases: { '': 'short' } }),
          'How lines begin. The flag `--log-timestamp` wins.',
        ),
      }),
    ),
    health: key(
      'health',
      object({
        storageList: key(
          'storage_list',
          object(trackerFields(5 * SECOND, 'Trouble with listing the storage')),
        ),
        storageLoad: key('storage_load', object(trackerFields(5 * SECOND, 'Trouble with loading snapshots'))),
        storageStore: key(
          'storage_store',
          object(trackerFields(5 * SECOND, 'Trouble with storing snapshots')),
        ),
        start: key(
          'start',
          object({
            ...trackerFields(SECOND, 'A start, until all that was in the storage is merged,'),
            reportHealthz: key('report_healthz', bool(), 'The start is a check of `/healthz`.'),
            reportMetadata: key(
              'report_metadata',
              bool({ default: true }),
              'The metadata of `/healthz` tell whether the start is over (`startup_NAME`).',
            ),
          }),
        ),
      }),
    ),
  },
  {
    check: (value, complain) => {
      const users = new Map<string, string>();
      for (const [name, { path: configured, options }] of value.lmdbs) {
        const file = resolved(options.noSubdir ? configured : path.join(configured, 'data.mdb'));
        const other = users.get(file);
        if (other === undefined) users.set(file, name);
        else
          complain(
            'lmdbs',
            `${other} and ${name} are the same LMDB (${configured}): each needs one of its own`,
          );
      }
    },
  },
);

/** Such a database's snapshots could not be told from others' by their names, or not be stored. */
function databaseNameProblem(name: string): string | undefined {
  if (name === '') return 'the name of an LMDB must not be empty';
  const bad = ['.', '/', '__'].find((part) => name.includes(part));
  if (bad !== undefined)
    return `the name of an LMDB must not contain ${bad}: it is part of the snapshots' names`;
  if (name.endsWith('_'))
    return "the name of an LMDB must not end with _: it is part of the snapshots' names";
  return undefined;
}

/** As Go's net.SplitHostPort takes it; both parts may be empty. */
function addressProblem(address: string): string | undefined {
  return address === '' || /^([^:[\]]*|\[[^[\]]*\]):[^:[\]]*$/.test(address)
    ? undefined
    : `must be host:port, [ipv6]:port or :port, not ${address}`;
}

/** The path with links resolved as far as it exists. */
function resolved(file: string): string {
  const absolute = path.resolve(file);
  try {
    return realpathSync(absolute);
  } catch {
    const parent = path.dirname(absolute);
    return parent === absolute ? absolute : path.join(resolved(parent), path.basename(absolute));
  }
}

/**
 * Replaces `$NAME` and `${NAME}` in the raw text, as Go's os.ExpandEnv: an unset name becomes empty, `$` and one of
 * `*#$@!?-` or a digit are a name too, `${` without its end vanishes, `$` before anything else stays. There is no escape.
 */
export function expandEnvironment(text: string, env: Readonly<Record<string, string | undefined>>): string {
  return text.replace(/\$(?:\{([^}]*)\}|\{|([*#$@!?0-9-]|\w+))/g, (_all, braced?: string, bare?: string) => {
    const name = braced ?? bare;
    return (name === undefined ? undefined : env[name]) ?? '';
  });
}

/** What command-line flags change; the file must be valid without them. */
export interface ConfigOverrides {
  readonly instance?: string;
  readonly log?: Partial<LogConfig>;
}

export interface LoadedConfig {
  readonly config: Config;
  /** One line each: deprecated or doubtful, but accepted. */
  readonly warnings: readonly string[];
  /** Values in the file that must never be shown; for `RootLogger.addSecrets`. */
  readonly secrets: readonly string[];
  /** YAML of all that is in force, with secrets masked; it can be read back. */
  effective(): string;
}

/**
 * Reads, expands, decodes and checks the configuration.
 * @throws {@link ConfigError} with every complaint, or because the file cannot be read
 */
export function loadConfig(from: {
  readonly file: string;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly overrides?: ConfigOverrides;
}): LoadedConfig {
  return parseConfig(expandEnvironment(readText(from.file), from.env), from.file, from.overrides);
}

/** {@link loadConfig} for a text that is already there and expanded; `file` is its name in complaints. */
export function parseConfig(text: string, file: string, overrides: ConfigOverrides = {}): LoadedConfig {
  const source = Source.parse(text, file);
  const values = source.root === null ? [] : [source.root];
  const decoded = configTable.read(values, new Place(source, '', null));
  source.throwComplaints();
  const warnings = [...source.warnings];
  const { storage, log, ...rest } = decoded;
  const { rootPath, ...storageRest } = storage;
  if (rootPath !== '') {
    warnings.push(`${file}: storage.root_path is deprecated: write it as storage.options.root_path`);
  }
  const options = rootPath === '' ? storage.options : withOption(storage.options, 'root_path', rootPath);
  const config = {
    ...rest,
    instance: overrides.instance ?? decoded.instance,
    storage: { ...storageRest, options },
    log: { ...log, ...overrides.log },
  } satisfies Config;
  const shown: Decoded<typeof configTable> = { ...config, storage: { ...config.storage, rootPath: '' } };
  return {
    config,
    warnings,
    secrets: secretsOf(options),
    effective: () => toYaml(configTable.encode(shown)),
  };
}

function readText(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? 'unknown error';
    const reason =
      {
        ENOENT: 'no such file: name your configuration with -c FILE',
        EACCES: 'permission denied',
        EISDIR: 'is a directory',
      }[code] ?? `cannot be read (${code})`;
    throw new ConfigError([`${file}: ${reason}`]);
  }
}
