import { type Command, CommanderError } from 'commander';
import { ConfigError } from '../config/error.ts';
import { errorMessage, isAbort, LightningStreamError, UsageError } from '../errors.ts';
import { formatDuration } from '../config/units.ts';
import { journalPrefix } from '../observability/journal.ts';
import { type Io, isClosedPipe, print } from './io.ts';
import { createProgram, type GlobalOptions, type Runner } from './program.ts';

/** Exit codes; a promise to scripts. */
export const EXIT = { done: 0, error: 1, usage: 2, refused: 3, timeout: 75 } as const;

/** How long a command may take to end after its time is up. */
const TIMEOUT_GRACE_MS = 10_000;

/**
 * Runs one command line (without the program's own name) and gives its exit code; never ends the process and never throws.
 * What went wrong is on `io.stderr`, a line each.
 */
export async function run(argv: readonly string[], io: Io): Promise<number> {
  let exitCode: number = EXIT.done;
  let mask = (text: string): string => text;

  const runner: Runner = {
    plain: async (body) => {
      exitCode = await body(io);
    },
    configured: async (body, invalid) => {
      const globals = program.opts<GlobalOptions>();
      const limit = timeLimit(io.signal, globals.timeout);
      try {
        const { openSession } = await import('./session.ts');
        const session = await openSession(io, globals, limit.signal).catch((error: unknown) => {
          if (invalid !== undefined && error instanceof ConfigError) return error;
          throw error;
        });
        if (session instanceof ConfigError) {
          exitCode = (await invalid?.(io, session)) ?? EXIT.error;
          return;
        }
        mask = (text) => session.logger.mask(text);
        const work = async (): Promise<number> => {
          const done = await elsewhere(globals, io, session.logger);
          return done ?? (await body(session));
        };
        if (globals.timeout !== undefined)
          session.logger.info('Setting command timeout', { timeout: formatDuration(globals.timeout) });
        exitCode = await limit.race(work());
        await session.logger.flush();
      } finally {
        limit.end();
      }
    },
  };

  const program = createProgram(runner);
  adopt(program, io);
  try {
    const { operands, unknown } = program.parseOptions([...argv]);
    if (operands.length > 0 || unknown.length > 0) await program.parseAsync([...argv], { from: 'user' });
    else if (program.opts<GlobalOptions>().logConfig === true)
      await runner.configured(() => Promise.resolve(EXIT.done));
    else program.outputHelp();
    return exitCode;
  } catch (error) {
    return await report(error, io, mask, program.opts<GlobalOptions>().debug === true);
  }
}

/** Commander's way of writing and ending becomes ours, in every command. */
function adopt(command: Command, io: Io): void {
  command.exitOverride().configureOutput({
    writeOut: (text) => io.stdout.write(text),
    writeErr: (text) => io.stderr.write(text),
    getOutHasColors: () => false,
    getErrHasColors: () => false,
    outputError: (text, write) => {
      const line = text
        .trimEnd()
        .replace(/^error: /, '')
        .replace(/\n(?=\()/, ' ');
      write(`${errorPrefix(io)}lightningstream: ${line} (see lightningstream help)\n`);
    },
  });
  for (const child of command.commands) adopt(child, io);
}

/** The exit code when another process did the work; undefined when it is still to be done here. */
async function elsewhere(
  globals: GlobalOptions,
  io: Io,
  logger: Parameters<NonNullable<Io['ensureMinimumPid']>>[1],
): Promise<number | undefined> {
  const { minimumPid } = globals;
  return minimumPid === undefined ? undefined : await io.ensureMinimumPid?.(minimumPid, logger);
}

class TimeoutError extends LightningStreamError {
  constructor(timeoutMs: number) {
    super('TIMEOUT', `not done after ${formatDuration(timeoutMs)} (--timeout)`);
    this.name = 'TimeoutError';
  }
}

interface TimeLimit {
  readonly signal: AbortSignal;
  /** The work's result, or a {@link TimeoutError} when the time is up: at once if the work ends then, else after a grace period. */
  race(work: Promise<number>): Promise<number>;
  end(): void;
}

function timeLimit(outer: AbortSignal | undefined, timeoutMs: number | undefined): TimeLimit {
  const never = new AbortController();
  const from = outer ?? never.signal;
  if (timeoutMs === undefined || timeoutMs === 0)
    return { signal: from, race: (work) => work, end: () => undefined };
  const controller = new AbortController();
  const { promise: graceOver, reject } = Promise.withResolvers<never>();
  const timers: NodeJS.Timeout[] = [];
  const error = new TimeoutError(timeoutMs);
  timers.push(
    setTimeout(() => {
      timers.push(setTimeout(() => reject(error), TIMEOUT_GRACE_MS));
      controller.abort();
    }, timeoutMs),
  );
  return {
    signal: AbortSignal.any([from, controller.signal]),
    race: async (work) => {
      try {
        return await Promise.race([
          work.then((code) => {
            if (controller.signal.aborted) throw error;
            return code;
          }),
          graceOver,
        ]);
      } catch (caught) {
        throw controller.signal.aborted ? error : caught;
      }
    },
    end: () => timers.forEach((timer) => clearTimeout(timer)),
  };
}

/** Says what went wrong, a line each, and gives the exit code. */
async function report(
  error: unknown,
  io: Io,
  mask: (text: string) => string,
  debug: boolean,
): Promise<number> {
  // Commander has already said it; asking for help is no error.
  if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.done : EXIT.usage;
  // Whoever read our output has seen enough.
  if (isClosedPipe(error)) return EXIT.error;
  const lines = error instanceof ConfigError ? error.complaints : [oneLine(error)];
  const stack = debug && !isExpected(error) && error instanceof Error ? `${error.stack ?? ''}\n` : '';
  try {
    await print(
      io.stderr,
      `${lines.map((line) => `${errorPrefix(io)}lightningstream: ${mask(line)}\n`).join('')}${mask(stack)}`,
    );
  } catch {
    // Nobody listens.
  }
  if (error instanceof UsageError) return EXIT.usage;
  return error instanceof TimeoutError ? EXIT.timeout : EXIT.error;
}

function errorPrefix(io: Io): string {
  return io.journal === true ? journalPrefix('error') : '';
}

function oneLine(error: unknown): string {
  if (isAbort(error)) return 'interrupted';
  return isExpected(error) ? errorMessage(error) : `internal error, please report it: ${errorMessage(error)}`;
}

/** Not a bug of ours. */
function isExpected(error: unknown): boolean {
  return error instanceof LightningStreamError || isAbort(error) || isSystemError(error);
}

function isSystemError(error: unknown): error is NodeJS.ErrnoException {
  return error instanceof Error && 'syscall' in error && 'code' in error;
}
