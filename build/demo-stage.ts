/** What both demos share: how they speak, measure, stay up and end. */
import { setTimeout as delay } from 'node:timers/promises';
import { styleText } from 'node:util';
import { until, type Running } from '../test/helpers/process.ts';

/** Aborts with Ctrl-C and the like, and when a part of the demo ends by itself. */
export const stopping = new AbortController();

/**
 * Runs a demo to its end. It is told how long it stays up (DEMO_SECONDS) in milliseconds; undefined = until Ctrl-C. What goes
 * wrong is said in one line and ends with exit code 1, but not what goes wrong only because it is being stopped.
 */
export async function perform(demo: (stayMs: number | undefined) => Promise<void>): Promise<void> {
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(signal, () => stopping.abort());
  try {
    await demo(durationMs());
  } catch (error) {
    if (stopping.signal.aborted) return;
    process.stderr.write(
      `\n${styleText('red', 'The demo failed:')} ${error instanceof Error ? error.message : String(error)}\n`,
    );
    process.exitCode = 1;
  }
}

function durationMs(): number | undefined {
  const text = process.env['DEMO_SECONDS'];
  if (text === undefined || text === '') return undefined;
  const seconds = Number(text);
  if (!Number.isFinite(seconds) || seconds < 0)
    throw new Error(`DEMO_SECONDS must be a number of seconds, not "${text}"`);
  return seconds * 1000;
}

/** Ends the demo, with its output, should this process end before `ending()`. */
export function watch(name: string, running: Running, ending: () => boolean): void {
  void running.exited.then(() => {
    if (ending() || stopping.signal.aborted) return;
    process.stderr.write(`\n${name} ended by itself:\n${running.stderr()}${running.stdout()}\n`);
    process.exitCode = 1;
    stopping.abort();
  });
}

export async function wait(condition: () => Promise<boolean | undefined>, what: string): Promise<void> {
  await until(condition, { what, timeoutMs: 30_000, intervalMs: 2, signal: stopping.signal });
}

/** Until the daemon's `/healthz` is well. */
export async function healthy(name: string, address: string): Promise<void> {
  await wait(async () => (await fetch(`http://${address}/healthz`)).ok, `daemon ${name} is up`);
}

/** Says that it stays up, and does, until the time is over, a signal comes, or a part of the demo ends. */
export async function stay(stayMs: number | undefined): Promise<void> {
  if (stayMs === undefined) say(`\nStays up until you press Ctrl-C.`);
  // A timer's longest time is 24 days; then the demo may end.
  const longest = 2 ** 31 - 1;
  await delay(Math.min(stayMs ?? longest, longest), undefined, { signal: stopping.signal }).catch(
    () => undefined,
  );
  if (process.exitCode === undefined) say(`\nStopping; nothing is left behind.`);
}

/** How long the condition took to come true. */
export async function measure(condition: () => Promise<unknown>, text: string): Promise<void> {
  const begunMs = performance.now();
  await condition();
  const elapsed = `${(performance.now() - begunMs).toFixed(0)} ms`.padStart(7);
  say(`  ${styleText('green', '✓')} ${styleText('bold', elapsed)}  ${text}`);
}

/**
 * A daemon publishes the first change after a quiet time at once, and further ones at most once per `lmdb_poll_interval`. So
 * each step begins in quiet, as single changes in real life do.
 */
export async function step(text: string, quietMs: number): Promise<void> {
  await delay(quietMs, undefined, { signal: stopping.signal });
  say(`\n${styleText('bold', text)}`);
}

export function say(text: string): void {
  process.stdout.write(`${text}\n`);
}
