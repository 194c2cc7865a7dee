import { spawn, spawnSync } from 'node:child_process';
import { constants } from 'node:os';
import type { Logger } from '../observability/logger.ts';

/** More would take too long; Lightning Stream's limit too. */
export const MAX_MINIMUM_PID = 200;
/** Set for the process that was started to have a higher id; Lightning Stream's name for it. */
const SKIP_VARIABLE = 'LIGHTNINGSTREAM_NO_PID_CHECK';

/** What asks for an orderly end, and the second time for an immediate one. */
export const STOP_SIGNALS = ['SIGTERM', 'SIGINT'] as const;

/**
 * What the waiting process passes on to the one that works: that it got a signal, for which time. Not the signal itself: a
 * terminal and most service managers send theirs to both, and one Ctrl-C would count twice.
 */
export interface StopRequest {
  readonly signal: (typeof STOP_SIGNALS)[number];
  readonly times: number;
}

export function isStopRequest(message: unknown): message is StopRequest {
  if (typeof message !== 'object' || message === null) return false;
  const { signal, times } = message as Partial<Record<keyof StopRequest, unknown>>;
  return STOP_SIGNALS.some((known) => known === signal) && typeof times === 'number';
}

/** What the working process has the waiting one say to the service manager, which listens to nobody else. */
export interface Relayed {
  readonly notify: string;
}

function isRelayed(message: unknown): message is Relayed {
  if (typeof message !== 'object' || message === null) return false;
  return typeof (message as Partial<Record<keyof Relayed, unknown>>).notify === 'string';
}

/** This process works for another one that waits for it. */
export function isWorkingChild(process: Pick<NodeJS.Process, 'env' | 'send'>): boolean {
  return process.env[SKIP_VARIABLE] === '1' && process.send !== undefined;
}

/** The process to be started anew. */
export interface OwnProcess {
  readonly pid: number;
  readonly execPath: string;
  /** With Node's own flags and the script. */
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly serviceManager?:
    { readonly env: Readonly<Record<string, string>>; notify(state: string): Promise<void> } | undefined;
  /** From now on the listener is told of stop signals, and they do nothing else here. Returns what ends that. */
  takeStops(listener: (request: StopRequest) => void): () => void;
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
    stdio: ['inherit', 'inherit', 'inherit', 'ipc'],
    env: { ...self.env, ...self.serviceManager?.env, [SKIP_VARIABLE]: '1' },
  });
  child.on('message', (message) => {
    if (!isRelayed(message)) return;
    self.serviceManager?.notify(message.notify).catch((error: unknown) => {
      logger.warning('The service manager cannot be told how the daemon is', { error });
    });
  });
  // It cannot be told any more when it has just ended.
  const giveBackStops = self.takeStops((request) => void child.send(request, () => undefined));
  try {
    return await new Promise<number>((resolve, reject) => {
      child.once('error', reject);
      child.once('exit', (code, signal) =>
        resolve(code ?? 128 + (signal === null ? 0 : constants.signals[signal])),
      );
    });
  } finally {
    giveBackStops();
  }
}
