import { Argument, Command, InvalidArgumentError, Option } from 'commander';
import type { ConfigError } from '../config/error.ts';
import { parseDuration } from '../config/units.ts';
import type { LogFormat, LogLevel, LogTimestamp } from '../config/types.ts';
import type { Shell } from './completion.ts';
import type { FixDuplicateDomainsFlags, MigrateTimestampsFlags } from './experimental.ts';
import type { Io } from './io.ts';
import type { MigrateFlags } from './migrate.ts';
import type { Session } from './session.ts';
import type { VerifyCommandOptions } from './verify.ts';

/** Flags that every command takes, before or after its name. */
export interface GlobalOptions {
  readonly config: string;
  readonly instance?: string;
  readonly debug?: true;
  readonly logLevel?: LogLevel;
  readonly logFormat?: LogFormat;
  readonly logTimestamp?: LogTimestamp;
  readonly logConfig?: true;
  readonly minimumPid?: number;
  /** In ms. */
  readonly timeout?: number;
}

/** How the actions of the commands are carried out. A body's result is the exit code. */
export interface Runner {
  /** Without a configuration. */
  plain(body: (io: Io) => Promise<number>): Promise<void>;
  /** With the configuration loaded and a logger. What is wrong with it is an error, unless `invalid` takes it. */
  configured(
    body: (session: Session) => Promise<number>,
    invalid?: (io: Io, error: ConfigError) => Promise<number>,
  ): Promise<void>;
}

const LOG_LEVELS = ['trace', 'debug', 'info', 'warning', 'error', 'fatal'] as const;
const LOG_FORMATS = ['human', 'logfmt', 'json'] as const;
const LOG_TIMESTAMPS = ['short', 'full', 'disable'] as const;

/** setTimeout's longest. */
const MAX_TIMEOUT_MS = 2 ** 31 - 1;

/**
 * The tree of commands with all their flags: what is parsed, and what help, manual and completion are made of. The code
 * behind a command is only loaded when it is called.
 */
export function createProgram(runner: Runner): Command {
  const program = new Command('lightningstream')
    .description('Keeps LMDB databases of several servers in sync through a shared storage.')
    .helpOption('-h, --help', 'show help')
    .helpCommand('help [command]', 'show help for a command')
    .option('-c, --config <file>', 'configuration file', 'lightningstream.yaml')
    .option(
      '-i, --instance <name>',
      'name of this instance, unique among all; instead of "instance" in the configuration',
    )
    .option('--debug', 'log at level debug')
    .addOption(
      new Option('--log-level <level>', 'log what is at least as grave; instead of "log.level"')
        .choices(LOG_LEVELS)
        .argParser((text) => oneOf(text.toLowerCase(), LOG_LEVELS, { warn: 'warning', panic: 'fatal' })),
    )
    .addOption(
      new Option('--log-format <format>', 'how log lines look; instead of "log.format"')
        .choices(LOG_FORMATS)
        .argParser((text) => oneOf(text, LOG_FORMATS)),
    )
    .addOption(
      new Option('--log-timestamp <form>', 'how log lines begin; instead of "log.timestamp"')
        .choices(LOG_TIMESTAMPS)
        .argParser((text) => oneOf(text, LOG_TIMESTAMPS)),
    )
    .option(
      '--log-config',
      'print the configuration in force, without secrets; without a command: check it and end',
    )
    .addOption(
      new Option(
        '--minimum-pid <n>',
        'spawn processes until this program has at least this process id (at most 200), so that containers that share an LMDB do not share ids',
      ).argParser(wholeNumber),
    )
    .addOption(
      new Option('--timeout <duration>', 'end with exit code 75 after this long, e.g. 30s').argParser(
        positiveDuration,
      ),
    );

  program
    .command('sync')
    .description('publish local changes and merge those of all other instances, continuously')
    .option('--only-once', 'one round, then end')
    .addOption(
      new Option('--only-db <name>', 'only this LMDB (repeatable)').default([], 'all').argParser(append),
    )
    .option('--wait-for-marker-file <name>', 'start only when the storage has an object of this name')
    .action((options: { onlyOnce?: true; onlyDb: string[]; waitForMarkerFile?: string }) =>
      runner.configured(async (session) => (await import('./daemon.ts')).daemon(session, 'sync', options)),
    );

  program
    .command('receive')
    .description('merge the changes of all other instances, never publish')
    .option('--only-once', 'one round, then end')
    .option('--wait-for-marker-file <name>', 'start only when the storage has an object of this name')
    .action((options: { onlyOnce?: true; waitForMarkerFile?: string }) =>
      runner.configured(async (session) => (await import('./daemon.ts')).daemon(session, 'receive', options)),
    );

  const snapshots = program
    .command('snapshots')
    .description('list, get, put, remove and show snapshots in the storage');
  snapshots
    .command('list')
    .description('list the names of all snapshots')
    .option('-p, --prefix <text>', 'only names that begin like this', '')
    .option('-l, --long', 'with sizes in bytes')
    .option('-t, --time', 'sort by time instead of name')
    .option('--json', 'as JSON, an object per line')
    .action((options: { prefix: string; long?: true; time?: true; json?: true }) =>
      runner.configured(async (session) => (await import('./snapshots.ts')).list(session, options)),
    );
  snapshots
    .command('get')
    .description('download a snapshot')
    .argument('<name>', 'its name in the storage')
    .option('-o, --output <file>', 'write to this file, - for standard output (default: the snapshot’s name)')
    .action((name: string, options: { output?: string }) =>
      runner.configured(async (session) => (await import('./snapshots.ts')).get(session, name, options)),
    );
  snapshots
    .command('put')
    .description('upload a snapshot')
    .argument('<file>', 'the local file')
    .option('-n, --name <name>', 'name in the storage (default: the file’s name)')
    .option('--force', 'also with a name or content that is no snapshot’s: nobody will load it')
    .action((file: string, options: { name?: string; force?: true }) =>
      runner.configured(async (session) => (await import('./snapshots.ts')).put(session, file, options)),
    );
  snapshots
    .command('remove')
    .description('delete a snapshot')
    .argument('<name>', 'its name in the storage')
    .action((name: string) =>
      runner.configured(async (session) => (await import('./snapshots.ts')).remove(session, name)),
    );

  snapshots
    .command('dump')
    .description('show what is in a snapshot')
    .argument('<name>', 'its name in the storage')
    .option('-d, --dbi <name>', 'only the DBI of this name')
    .addOption(
      new Option('-f, --format <format>', 'both are the same').choices(['debug', 'text']).default('debug'),
    )
    .option('-l, --local', 'the name is that of a local file')
    .addOption(new Option('--json', 'as JSON, an object per line').conflicts('format'))
    .action((name: string, options: { dbi?: string; local?: true; json?: true }) =>
      runner.configured(async (session) => (await import('./dump.ts')).dumpSnapshot(session, name, options)),
    );

  program
    .command('dump')
    .description('show what is in the LMDBs')
    .option('-H, --hide', 'leave out the DBIs that are Lightning Stream’s own')
    .option('-n, --name <name>', 'only this LMDB')
    .option('--json', 'as JSON, an object per line')
    .action((options: { hide?: true; name?: string; json?: true }) =>
      runner.configured(async (session) => (await import('./dump.ts')).dump(session, options)),
    );

  program
    .command('stats')
    .description('show statistics of the LMDBs')
    .option('--json', 'as JSON, an object per line')
    .action((options: { json?: true }) =>
      runner.configured(async (session) => (await import('./stats.ts')).stats(session, options)),
    );

  program
    .command('verify')
    .summary('check every record, and whether snapshots of other instances are all here')
    .description(
      'Reads every record of the LMDBs without changing any, beside a running daemon if there is one: reports values without a valid header, ' +
        'counts live and deleted entries, and prints digests that are the same wherever the contents are.\n\n' +
        'Snapshots that are named, or with --latest the newest of every instance, are loaded and compared. Exit code 1 when a record is not ' +
        'sound, or when something of a snapshot is missing here. That all instances agree is shown by --latest on each of them.',
    )
    .argument('[snapshots...]', 'names in the storage, to compare with')
    .option('--latest', 'compare with the newest snapshot of every instance')
    .addOption(
      new Option('--only-db <name>', 'only this LMDB (repeatable)').default([], 'all').argParser(append),
    )
    .option('--deletions', 'missing deletions of records that are not here anyway count, too')
    .addOption(
      new Option('--max-errors <n>', 'describe so many values without a valid header; all are counted')
        .default(10)
        .argParser(wholeNumber),
    )
    .option('--json', 'as JSON, an object per line')
    .action((names: string[], options: VerifyCommandOptions) =>
      runner.configured(async (session) => (await import('./verify.ts')).verify(session, names, options)),
    );

  program
    .command('drop-shadow')
    .summary('remove the DBIs that are Lightning Stream’s own from the LMDBs')
    .description(
      'Removes the DBIs whose names begin with _sync from all LMDBs: for a database that is no longer used in shadow mode. ' +
        'They know when each record was changed and what was deleted, so what other instances changed or deleted can come ' +
        'back in an older state if this one is used in shadow mode again.\n\n' +
        'Stop the daemon first.',
    )
    .option('--json', 'as JSON, an object per line')
    .action((options: { json?: true }) =>
      runner.configured(async (session) => (await import('./drop-shadow.ts')).dropShadow(session, options)),
    );

  const migrate = program
    .command('migrate')
    .description('upgrade the LMDBs of PowerDNS to a newer schema, with the times of all changes');
  migrate
    .command('status')
    .summary('show schema, shards and users of each PowerDNS database')
    .description(
      'Shows for each PowerDNS database its files, also those that the configuration does not name, their schema, whether they ' +
        'have shadows, who has them open, and what a migration would find. Writes nothing, and may run beside other programs.',
    )
    .option('--json', 'as JSON')
    .action((options: { json?: true }) =>
      runner.configured(async (session) => (await import('./migrate.ts')).status(session, options)),
    );
  for (const [name, write] of [
    ['plan', false],
    ['run', true],
  ] as const) {
    migrate
      .command(name)
      .summary(
        write
          ? 'migrate, after a backup'
          : 'show what "migrate run" would do with the same flags; write nothing',
      )
      .description(
        write
          ? 'Brings the LMDBs of PowerDNS to the schema of a newer version, as PowerDNS itself would, but with the times and the ' +
              'deletions that shadow mode has kept: so servers can be upgraded one after the other without losing a change.\n\n' +
              'Stop PowerDNS and the daemon before, and start the new PowerDNS after it. All is done, or nothing; after a crash, run it ' +
              'again. The storage is not asked.'
          : 'Reads everything that "migrate run" would read, and shows the entries of each table, how many of them have a time, how much ' +
              'room is needed, and what would be refused. Writes nothing.',
      )
      .addOption(
        new Option('--to <version>', 'the schema: 5 for PowerDNS 4.8 and 4.9, 6 for 5.0 and later')
          .choices(['5', '6'])
          .makeOptionMandatory(),
      )
      .option(
        '--backup <directory>',
        'copy the files to this directory first (default: lightningstream-backup-TIME beside them)',
      )
      .option('--no-backup', 'without a copy')
      .addOption(
        new Option(
          '--untracked <how>',
          'what was changed while no daemon looked: is changed now, just after what is known of it, or an error',
        )
          .choices(['now', 'old', 'fail'])
          .default('now'),
      )
      .option('--ignore-shadow', 'leave all times at 0, as PowerDNS does')
      .option('--keep-shadow', 'do not remove what shadow mode keeps in the LMDBs')
      .addOption(
        new Option(
          '--use <which>',
          'where there are old and new tables side by side, take these and remove the others',
        ).choices(['old', 'new']),
      )
      .option('--merge-shards', 'put all records into one shard, as lmdb-lightning-stream=yes wants it')
      .option('--force', 'although another process has the files open')
      .option('--json', 'as JSON')
      .action((options: MigrateFlags) =>
        runner.configured(async (session) =>
          (await import('./migrate.ts')).migrate(session, options, { write }),
        ),
      );
  }

  const experimental = program
    .command('experimental')
    .description('commands for rare cases, which may change or disappear');
  experimental
    .command('migrate-timestamps')
    .summary('copy timestamps from one DBI to another')
    .description(
      'Gives each record of the destination the timestamp that the source has for the same key, if that is newer. Values are ' +
        'neither compared nor copied, so nothing should be written meanwhile. All is done in one transaction, or nothing: a ' +
        'value that is too short ends it.\n\n' +
        'Every value of the destination needs a header. Those of the source have one as well, or only a timestamp of 8 bytes, as in ' +
        'Lightning Stream 0.2. Keys are compared byte for byte. Both may be shadows.\n\n' +
        'When a PowerDNS 4.7 in shadow mode becomes a 4.8, this keeps what was known of its records: migrate-timestamps -d shard ' +
        '--src-dbi _sync_shadow_records --dst-dbi records_v5 --add-delete-entries',
    )
    .requiredOption('-d, --database <name>', 'the LMDB')
    .requiredOption('--src-dbi <name>', 'the DBI that has the timestamps')
    .requiredOption('--dst-dbi <name>', 'the DBI that gets them')
    .option('--add-delete-entries', 'add the deletions of the source that the destination does not know')
    .option('--ignore-src-dbi-not-present', 'do nothing if there is no such source')
    .option('--json', 'as JSON')
    .action((options: MigrateTimestampsFlags) =>
      runner.configured(async (session) =>
        (await import('./experimental.ts')).migrateTimestamps(session, options),
      ),
    );
  experimental
    .command('pdns-v5-fix-duplicate-domains')
    .summary('find, and rename, domains that a PowerDNS database has twice')
    .description(
      'Two instances of PowerDNS 4.8 or 4.9 (schema 5) may add one domain at the same time, each under a number of its own; some ' +
        'versions of PowerDNS then do not load it. This finds such domains.\n\n' +
        'With --dangerous-do-rename the oldest keeps the name, and each other is renamed to NAME.dup-NUMBER.invalid, to be ' +
        'removed with pdnsutil.',
    )
    .requiredOption('-d, --database <name>', 'the main LMDB of PowerDNS')
    .option('--dangerous-do-rename', 'rename all but the oldest')
    .option('--json', 'as JSON')
    .action((options: FixDuplicateDomainsFlags) =>
      runner.configured(async (session) =>
        (await import('./experimental.ts')).fixDuplicateDomains(session, options),
      ),
    );

  program
    .command('config')
    .description('the configuration')
    .command('check')
    .summary('say what is wrong with the configuration and what it names')
    .description(
      'Checks the file; the storage, by listing it and by storing, reading and removing a small object that no instance looks ' +
        'at; the spool directory; the LMDBs, without creating or changing anything: that this user may read and write them, ' +
        'their size and their mode.\n\n' +
        'Run it as the user of the daemon. The exit code is 0 when a start would work, else 1.',
    )
    .option('--json', 'as JSON, an object per line')
    .action((options: { json?: true }) =>
      runner.configured(
        async (session) => (await import('./check.ts')).check(session, options),
        async (io, error) => (await import('./check.ts')).checkFailed(io, options, error),
      ),
    );

  program
    .command('completion')
    .summary('print a script that teaches a shell to complete command lines')
    .description(
      'Prints a script that teaches a shell to complete commands, flags and file names.\n\n' +
        'bash: source <(lightningstream completion bash), or write it to /etc/bash_completion.d/lightningstream. ' +
        'zsh: write it to a file _lightningstream in a directory of fpath. ' +
        'fish: write it to ~/.config/fish/completions/lightningstream.fish.',
    )
    .addArgument(new Argument('<shell>', 'the shell').choices(['bash', 'zsh', 'fish']))
    .option('--no-descriptions', 'without explanations')
    .action((shell: Shell, options: { descriptions: boolean }) =>
      runner.plain(async (io) => {
        const { completionScript } = await import('./completion.ts');
        const { commandDefinitions } = await import('./definitions.ts');
        const { print } = await import('./io.ts');
        await print(io.stdout, completionScript(shell, commandDefinitions(program), options.descriptions));
        return 0;
      }),
    );

  program
    .command('version')
    .description('show the version of this program and of its parts')
    .option('--json', 'as JSON')
    .action((options: { json?: true }) =>
      runner.plain(async (io) => (await import('./version.ts')).version(io, options)),
    );

  return program;
}

function append(value: string, previous: string[]): string[] {
  return [...previous, value];
}

function oneOf<const T extends string>(
  text: string,
  words: readonly T[],
  aliases: Readonly<Record<string, T>> = {},
): T {
  const word = aliases[text] ?? words.find((candidate) => candidate === text);
  if (word === undefined) throw new InvalidArgumentError(`It must be one of: ${words.join(', ')}.`);
  return word;
}

function wholeNumber(text: string): number {
  if (!/^\d{1,9}$/.test(text)) throw new InvalidArgumentError('It must be a whole number.');
  return Number(text);
}

function positiveDuration(text: string): number {
  const ms = parseDuration(text);
  if (ms === undefined || ms < 0)
    throw new InvalidArgumentError('It must be a duration like 500ms, 30s or 1h30m.');
  if (ms > MAX_TIMEOUT_MS) throw new InvalidArgumentError('It must be at most 596h.');
  return ms;
}
