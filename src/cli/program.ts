import { Command, InvalidArgumentError, Option } from 'commander';
import { parseDuration } from '../config/units.ts';
import type { LogFormat, LogLevel, LogTimestamp } from '../config/types.ts';
import type { Io } from './io.ts';
import type { Session } from './session.ts';

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
  /** With the configuration loaded and a logger. */
  configured(body: (session: Session) => Promise<number>): Promise<void>;
}

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
      new Option(
        '--log-level <level>',
        'debug, info, warning, error or fatal; instead of "log.level"',
      ).argParser((text) =>
        oneOf(text.toLowerCase(), ['trace', 'debug', 'info', 'warning', 'error', 'fatal'], {
          warn: 'warning',
          panic: 'fatal',
        }),
      ),
    )
    .addOption(
      new Option('--log-format <format>', 'human, logfmt or json; instead of "log.format"').argParser(
        (text) => oneOf(text, ['human', 'logfmt', 'json']),
      ),
    )
    .addOption(
      new Option('--log-timestamp <form>', 'short, full or disable; instead of "log.timestamp"').argParser(
        (text) => oneOf(text, ['short', 'full', 'disable']),
      ),
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
      new Option('-f, --format <format>', 'debug or text, which are the same')
        .default('debug')
        .argParser((text) => oneOf(text, ['debug', 'text'])),
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
