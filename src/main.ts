import { constants } from 'node:os';
import { ensureMinimumPid } from './cli/minimum-pid.ts';
import { run } from './cli/run.ts';
import { errorMessage } from './errors.ts';

// The only place that touches the process itself: arguments, environment, signals, exit.

const argv = process.argv.slice(2);
const controller = new AbortController();

for (const signal of ['SIGTERM', 'SIGINT'] as const) {
  process.on(signal, () => {
    // The second one means now.
    if (controller.signal.aborted) process.exit(128 + constants.signals[signal]);
    controller.abort();
  });
}

process.on('uncaughtException', (error) => {
  process.stderr.write(`lightningstream: internal error, please report it: ${errorMessage(error)}\n`);
  if (argv.includes('--debug')) process.stderr.write(`${error.stack ?? ''}\n`);
  process.exit(1);
});
// A closed pipe is told to whoever writes; without a listener it would be an uncaught exception as well.
for (const stream of [process.stdout, process.stderr]) stream.on('error', () => undefined);

const exitCode = await run(argv, {
  env: process.env,
  stdout: process.stdout,
  stderr: process.stderr,
  signal: controller.signal,
  ensureMinimumPid: (minimum, logger) =>
    ensureMinimumPid(minimum, logger, {
      pid: process.pid,
      execPath: process.execPath,
      args: [...process.execArgv, ...process.argv.slice(1)],
      env: process.env,
      on: (event, listener) => process.on(event, listener),
      off: (event, listener) => process.off(event, listener),
    }),
});
// What is still open (watchers, sockets) must not keep the process.
process.exit(exitCode);
