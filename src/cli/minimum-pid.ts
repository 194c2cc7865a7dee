import { spawn, spawnSync } from 'node:child_process';
import { constants } from 'node:os';
import type { Logger } from '../observability/logger.ts';

/** More would take too long; Lightning Stream's limit too. */
export const MAX_MINIMUM_PID = 200;
/** Set for the process that was started to have a higher id; Lightning Stream's name for it. */
const SKIP_VARIABLE = 'LIGHTNINGSTREAM_NO_PID_CHECK';

/** The process to be started anew. */
export interface OwnProcess {
  readonly pid: number;
  readonly execPath: string;
  /** With Node's own flags and the script. */
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string | undefined>>;
  on(event: NodeJS.Signals, listener: () => void): unknown;
  off(event: NodeJS.Signals, listener: () => void): unknown;
}

/**
 * LMDB's locks know processes by their ids, so containers with pid namespaces of their own must not use the same small ids on one
 * LMDB. Spawns until the next id is high enough and does all the work in a child; undefined when our own id will do.
 */
export async function ensureMinimumPid(
  minimum: number,
  logger: Logger,
  self: OwnProcess,
): Promise<number | undefined> {
  const wanted = Math.min(minimum, MAX_MINIMUM_PID);
  if (wanted < minimum) logger.warning('Adjusted minimum PID to limit', { minimum_pid: wanted });
  const facts = { pid: self.pid, minimum_pid: wanted };
  if (self.pid >= wanted) return undefined;
  if (self.env[SKIP_VARIABLE] !== undefined && self.env[SKIP_VARIABLE] !== '') {
    logger.warning('PID does not satisfy minimum, but requested to skip check', facts);
    return undefined;
  }
  logger.info('Spawning processes to increase PID', facts);
  // A program that does not exist still costs a process id, and nothing else.
  for (let pid = self.pid; pid < wanted; pid += 1) spawnSync('/nonexistent');
  const child = spawn(self.execPath, self.args, {
    stdio: 'inherit',
    env: { ...self.env, [SKIP_VARIABLE]: '1' },
  });
  const forwards = (['SIGTERM', 'SIGINT', 'SIGHUP'] as const).map((signal) => {
    const listener = (): void => void child.kill(signal);
    self.on(signal, listener);
    return () => self.off(signal, listener);
  });
  try {
    return await new Promise<number>((resolve, reject) => {
      child.once('error', reject);
      child.once('exit', (code, signal) =>
        resolve(code ?? 128 + (signal === null ? 0 : constants.signals[signal])),
      );
    });
  } finally {
    for (const end of forwards) end();
  }
}
