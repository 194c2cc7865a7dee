import { writeFileSync } from 'node:fs';
import { constants } from 'node:os';
import { isSea } from 'node:sea';
import {
  ensureMinimumPid,
  isStopRequest,
  isWorkingChild,
  STOP_SIGNALS,
  type StopRequest,
} from './cli/minimum-pid.ts';
import { run } from './cli/run.ts';
import { takeServiceManager } from './cli/service-manager.ts';
import { errorMessage } from './errors.ts';
import { isJournal, journalPrefix } from './observability/journal.ts';

// The only place that touches the process itself: arguments, environment, signals, exit.

const argv = process.argv.slice(2);
try {
  // What ps, top and pgrep show; Node.js calls it MainThread.
  writeFileSync('/proc/self/comm', 'lightningstream');
} catch {
  // A convenience.
}
const controller = new AbortController();

/** The first asks for an orderly end, the second means now. */
function stopHere({ signal, times }: StopRequest): void {
  if (times > 1) process.exit(128 + constants.signals[signal]);
  controller.abort();
}
let stop = stopHere;
let signals = 0;
for (const signal of STOP_SIGNALS) process.on(signal, () => stop({ signal, times: (signals += 1) }));
if (isWorkingChild(process)) {
  process.on('message', (message) => {
    if (isStopRequest(message)) stop(message);
  });
  // Nobody could stop us through the other process any more.
  process.on('disconnect', () => stop({ signal: 'SIGTERM', times: 1 }));
}

const serviceManager = takeServiceManager(process);
const journal = isJournal(process.env, process.stderr.fd);

let mask = (text: string): string => text;
process.on('uncaughtException', (error) => {
  const line = mask(`lightningstream: internal error, please report it: ${errorMessage(error)}\n`);
  process.stderr.write(journal ? `${journalPrefix('fatal')}${line}` : line);
  if (argv.includes('--debug')) process.stderr.write(mask(`${error.stack ?? ''}\n`));
  process.exit(1);
});
// A closed pipe is told to whoever writes; without a listener it would be an uncaught exception as well.
for (const stream of [process.stdout, process.stderr]) stream.on('error', () => undefined);

// Not awaited here: the single binary is made of CommonJS, which cannot.
void run(argv, {
  env: process.env,
  stdout: process.stdout,
  stderr: process.stderr,
  journal,
  signal: controller.signal,
  serviceManager,
  onSecrets: (masking) => {
    mask = masking;
  },
  ensureMinimumPid: (minimum, logger) =>
    ensureMinimumPid(minimum, logger, {
      pid: process.pid,
      execPath: process.execPath,
      // The single binary brings its own flags, and has no script.
      args: isSea() ? argv : [...process.execArgv, ...process.argv.slice(1)],
      env: process.env,
      serviceManager,
      takeStops: (listener) => {
        stop = listener;
        return () => {
          stop = stopHere;
        };
      },
    }),
}).then((exitCode) => {
  // What is still open (watchers, sockets) must not keep the process.
  process.exit(exitCode);
});
