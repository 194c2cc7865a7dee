/**
 * Processes, ports, directories and waiting for tests, the demo and the benchmark. Everything here cleans up after itself: through
 * `await using`, and, should the test process end first, through its exit handler.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { rmSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';

/** The checkout. */
export const repositoryRoot = join(import.meta.dirname, '..', '..');
/** The program as a user runs it from a checkout; with LIGHTNINGSTREAM_PROGRAM set the one at that path, such as the single binary. */
export const launcher = resolve(
  process.env['LIGHTNINGSTREAM_PROGRAM'] || join(repositoryRoot, 'bin', 'lightningstream'),
);

const children = new Set<ChildProcess>();
const directories = new Set<string>();
process.once('exit', () => {
  for (const child of children) child.kill('SIGKILL');
  for (const directory of directories) rmSync(directory, { recursive: true, force: true });
});

export interface UntilOptions {
  /** Deadline; 10 s by default. */
  readonly timeoutMs?: number;
  /** What is waited for, for the error: "B has the record". */
  readonly what: string;
  /** Time between two looks; 20 ms by default. */
  readonly intervalMs?: number;
  readonly signal?: AbortSignal;
}

/**
 * Waits until `condition` gives something truthy, and returns that. A condition that throws counts as "not yet"; its last error is
 * the cause of the one thrown at the deadline.
 */
export async function until<T>(
  condition: () => T | Promise<T>,
  options: UntilOptions,
): Promise<Exclude<T, false | null | undefined | 0 | ''>> {
  const timeoutMs = options.timeoutMs ?? 10_000;
  const deadlineMs = performance.now() + timeoutMs;
  let cause: unknown;
  for (;;) {
    options.signal?.throwIfAborted();
    try {
      const value = await condition();
      if (value) return value as Exclude<T, false | null | undefined | 0 | ''>;
      cause = undefined;
    } catch (error) {
      cause = error;
    }
    if (performance.now() >= deadlineMs) {
      const why = cause instanceof Error ? `: ${cause.message}` : '';
      throw new Error(`not within ${timeoutMs} ms: ${options.what}${why}`, { cause });
    }
    await delay(
      options.intervalMs ?? 20,
      undefined,
      options.signal === undefined ? {} : { signal: options.signal },
    );
  }
}

/** A fresh directory that vanishes with its scope: `await using dir = await tempDir()`. */
export interface TempDir extends AsyncDisposable {
  readonly path: string;
  /** A path below it. */
  join(...parts: readonly string[]): string;
}

/** Below `parent`, the system's temporary directory when that is not given or empty. */
export async function tempDir(prefix = 'lightningstream-test-', parent = ''): Promise<TempDir> {
  const path = await mkdtemp(join(parent || tmpdir(), prefix));
  directories.add(path);
  return {
    path,
    join: (...parts) => join(path, ...parts),
    async [Symbol.asyncDispose]() {
      await rm(path, { recursive: true, force: true, maxRetries: 3 });
      directories.delete(path);
    },
  };
}

/** A port on loopback that was free a moment ago. */
export function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once('error', reject);
    server.listen(0, '127.0.0.1', () => {
      const address = server.address();
      server.close(() => {
        if (address === null || typeof address === 'string') reject(new Error('no port'));
        else resolve(address.port);
      });
    });
  });
}

export interface StartOptions {
  /** Without `-c`, when `config` is given. */
  readonly args: readonly string[];
  /** Text of the configuration, written to `lightningstream.yaml` in `cwd` and named by `-c`. */
  readonly config?: string;
  /** Added to the environment, which otherwise is empty but for PATH, HOME and TMPDIR; `undefined` removes one. */
  readonly env?: Readonly<Record<string, string | undefined>>;
  /** Working directory; needed with `config`. */
  readonly cwd?: string;
  /** Another program than {@link launcher}. */
  readonly command?: string;
  /** A Ctrl-C at the terminal does not reach it. */
  readonly ownProcessGroup?: boolean;
  /** `pipe`: standard input stays open until `child.stdin` is ended, or this process ends; otherwise it is empty. */
  readonly stdin?: 'pipe';
}

export interface ExitStatus {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

export interface Finished extends ExitStatus {
  readonly stdout: string;
  readonly stderr: string;
}

/** A running child; leaving its scope ends it. */
export interface Running extends AsyncDisposable {
  readonly pid: number;
  readonly child: ChildProcess;
  /** Everything it wrote so far. */
  stdout(): string;
  stderr(): string;
  /** Resolves when it has ended and all its output was read. */
  readonly exited: Promise<Finished>;
  /** Waits for a line on either stream; returns the match. Fails at once when the process ends without one. */
  waitForOutput(pattern: RegExp, options?: { timeoutMs?: number }): Promise<RegExpExecArray>;
  kill(signal: NodeJS.Signals): void;
  /** SIGTERM, then waits; SIGKILL and an error when it does not end in time (10 s by default). */
  stop(options?: { timeoutMs?: number }): Promise<Finished>;
}

/** Starts the program (or `command`) as a child process. */
export async function start(options: StartOptions): Promise<Running> {
  const args = [...options.args];
  if (options.config !== undefined) {
    if (options.cwd === undefined) throw new Error('a config needs a cwd to live in');
    const path = join(options.cwd, 'lightningstream.yaml');
    await writeFile(path, options.config);
    args.unshift('-c', path);
  }
  const child = spawn(options.command ?? launcher, args, {
    cwd: options.cwd ?? tmpdir(),
    env: cleanEnvironment(options.env ?? {}),
    stdio: [options.stdin ?? 'ignore', 'pipe', 'pipe'],
    detached: options.ownProcessGroup ?? false,
  });
  children.add(child);

  const output = { stdout: '', stderr: '' };
  for (const name of ['stdout', 'stderr'] as const) {
    child[name]?.setEncoding('utf8').on('data', (text: string) => {
      output[name] += text;
    });
  }
  let ended = false;
  const exited = new Promise<Finished>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code, signal) => {
      ended = true;
      children.delete(child);
      resolve({ code, signal, ...output });
    });
  });
  // Nobody may be waiting yet; whoever does still gets the error.
  exited.catch(() => children.delete(child));
  if (child.pid === undefined) {
    await exited;
    throw new Error('not started');
  }

  const running: Running = {
    pid: child.pid,
    child,
    stdout: () => output.stdout,
    stderr: () => output.stderr,
    exited,
    async waitForOutput(pattern, { timeoutMs = 20_000 } = {}) {
      const what = `output ${String(pattern)}`;
      try {
        const find = () => pattern.exec(output.stdout) ?? pattern.exec(output.stderr);
        const match = await until(() => find() ?? ended, { timeoutMs, what });
        if (match === true) throw new Error(`it ended without ${what}`);
        return match;
      } catch (error) {
        throw new Error(`${String(error)}\n${tail(output.stderr + output.stdout)}`, { cause: error });
      }
    },
    kill(signal) {
      child.kill(signal);
    },
    async stop({ timeoutMs = 10_000 } = {}) {
      child.kill('SIGTERM');
      const finished = await withDeadline(exited, timeoutMs);
      if (finished !== undefined) return finished;
      child.kill('SIGKILL');
      await exited;
      throw new Error(
        `did not end within ${timeoutMs} ms of SIGTERM:\n${tail(output.stderr + output.stdout)}`,
      );
    },
    async [Symbol.asyncDispose]() {
      if (!ended) child.kill('SIGKILL');
      await exited;
    },
  };
  return running;
}

/** Runs the program to its end. After `timeoutMs` (60 s) it is killed and an error thrown. */
export async function run(options: StartOptions & { readonly timeoutMs?: number }): Promise<Finished> {
  await using running = await start(options);
  const timeoutMs = options.timeoutMs ?? 60_000;
  const finished = await withDeadline(running.exited, timeoutMs);
  if (finished !== undefined) return finished;
  throw new Error(
    `${options.args.join(' ')}: still running after ${timeoutMs} ms:\n${tail(running.stderr() + running.stdout())}`,
  );
}

/** The environment of a child: nothing of the developer's own, so that results do not depend on it. */
function cleanEnvironment(extra: Readonly<Record<string, string | undefined>>): Record<string, string> {
  const env: Record<string, string> = {};
  for (const name of ['PATH', 'HOME', 'TMPDIR', 'LANG']) {
    const value = process.env[name];
    if (value !== undefined) env[name] = value;
  }
  for (const [name, value] of Object.entries(extra)) {
    if (value === undefined) delete env[name];
    else env[name] = value;
  }
  return env;
}

async function withDeadline<T>(promise: Promise<T>, timeoutMs: number): Promise<T | undefined> {
  const timer = new AbortController();
  try {
    return await Promise.race([promise, delay(timeoutMs, undefined, { signal: timer.signal })]);
  } finally {
    timer.abort();
  }
}

function tail(text: string): string {
  return text.split('\n').slice(-30).join('\n');
}
