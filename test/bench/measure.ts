/** Runs a command and measures the whole process: wall time, CPU, and the peak of its anonymous memory. */
import { spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync } from 'node:fs';
import { launcher } from '../helpers/process.ts';

/** What is measured: this program, or the one it is compared with. */
export interface Program {
  readonly name: 'ours' | 'reference';
  readonly file: string;
}

const reference = process.env['LS_REFERENCE'] || undefined;

/** This program, and that of LS_REFERENCE. */
export const programs: readonly Program[] = [
  { name: 'ours', file: launcher },
  ...(reference === undefined ? [] : [{ name: 'reference' as const, file: reference }]),
];

export interface Measurement {
  readonly wallMs: number;
  /** User and system time of all threads; the kernel counts it in ticks of 10 ms. */
  readonly cpuMs: number;
  /** Highest RssAnon seen (a sample every few ms). */
  readonly peakAnonBytes: number;
}

export interface Command {
  readonly file: string;
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string>>;
}

const SAMPLE_EVERY_MS = 4;
const TICK_MS = 10;

/**
 * Blocks this process while the command runs. That is the point: the child is not reaped meanwhile, so that its final CPU time
 * can be read from the zombie, and nothing of ours runs beside it but a short look every few ms.
 */
export async function measure(command: Command, logPath: string): Promise<Measurement> {
  const log = openSync(logPath, 'w');
  const begunMs = performance.now();
  const child = spawn(command.file, command.args, {
    env: { ...process.env, ...command.env },
    stdio: ['ignore', log, log],
  });
  closeSync(log);
  const exited = new Promise<string>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code, signal) => resolve(code === 0 ? '' : `exit ${code ?? signal ?? '?'}`));
  });
  let peakAnonBytes = 0;
  let cpuMs = 0;
  let wallMs = 0;
  if (child.pid !== undefined) {
    const pause = new Int32Array(new SharedArrayBuffer(4));
    for (;;) {
      const stat = processStat(child.pid);
      cpuMs = Math.max(cpuMs, stat.cpuMs);
      if (stat.ended) break;
      peakAnonBytes = Math.max(peakAnonBytes, anonymousBytes(child.pid));
      Atomics.wait(pause, 0, 0, SAMPLE_EVERY_MS);
    }
    wallMs = performance.now() - begunMs;
  }
  const failure = await exited;
  if (failure !== '') {
    const end = readFileSync(logPath, 'utf8').split('\n').slice(-20).join('\n');
    throw new Error(`${command.file} ${command.args.join(' ')}: ${failure}\n${end}`);
  }
  return { wallMs, cpuMs, peakAnonBytes };
}

/** Peaks of a process that goes on running, a sample every few ms. */
export class Watch implements Disposable {
  readonly #pid: number;
  readonly #timer: NodeJS.Timeout;
  #peakAnonBytes = 0;
  #begunCpuMs: number;

  constructor(pid: number) {
    this.#pid = pid;
    this.#begunCpuMs = this.cpuMs();
    this.#timer = setInterval(() => this.#look(), SAMPLE_EVERY_MS);
  }

  /** What it has used since it began, ms. */
  cpuMs(): number {
    return processStat(this.#pid).cpuMs;
  }

  /** Since the last call; begins anew. */
  take(): { readonly peakAnonBytes: number; readonly cpuMs: number } {
    this.#look();
    const cpuMs = this.cpuMs();
    const taken = { peakAnonBytes: this.#peakAnonBytes, cpuMs: cpuMs - this.#begunCpuMs };
    this.#peakAnonBytes = 0;
    this.#begunCpuMs = cpuMs;
    return taken;
  }

  #look(): void {
    this.#peakAnonBytes = Math.max(this.#peakAnonBytes, anonymousBytes(this.#pid));
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
  }
}

function processStat(pid: number): { ended: boolean; cpuMs: number } {
  // Fields after the parenthesised name, which may hold anything: state, …, utime (14th of all), stime (proc_pid_stat(5)).
  const text = readFileSync(`/proc/${pid}/stat`, 'utf8');
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
  return {
    ended: fields[0] === 'Z' || fields[0] === 'X',
    cpuMs: (Number(fields[11]) + Number(fields[12])) * TICK_MS,
  };
}

function anonymousBytes(pid: number): number {
  const match = /^RssAnon:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'));
  return match === null ? 0 : Number(match[1]) * 1024;
}

/** The middle one; the mean of the middle two. */
export function median(values: readonly number[]): number {
  return quantile(values, 0.5);
}

/** Linear between the two neighbours. NaN when there are no values. */
export function quantile(values: readonly number[], q: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  const position = (sorted.length - 1) * q;
  const low = sorted[Math.floor(position)] ?? Number.NaN;
  const high = sorted[Math.ceil(position)] ?? Number.NaN;
  return low + (high - low) * (position - Math.floor(position));
}
