/** Processes with a limit of memory and processor time, as a container engine or systemd sets one. Control groups of version 1, as root. */
import { spawn } from 'node:child_process';
import { accessSync, constants, readFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';

export interface Limits {
  readonly memoryBytes: number;
  /** Of one core. */
  readonly cpuShare: number;
}

/** What the kernel has counted (Documentation/admin-guide/cgroup-v1/memory.rst). */
export interface GroupUsage {
  /** Highest so far, the page cache counted; never above the limit. */
  readonly peakBytes: number;
  /** How often the limit was reached, and something of the page cache had to go. */
  readonly limitHits: number;
  /** Processes that were killed because nothing could go. */
  readonly killed: number;
  /** Now, anonymous. */
  readonly anonymousBytes: number;
  /** Now, of files. */
  readonly cacheBytes: number;
}

/** Leaving its scope kills what is in it and removes it. So does the end of the test process, whatever ends that. */
export interface ControlGroup extends AsyncDisposable {
  /** Put before a command, it makes this run in the group. */
  readonly enter: readonly string[];
  usage(): Promise<GroupUsage>;
}

/** Why there can be none here; undefined when there can. */
export function missingControlGroups(): string | undefined {
  if (process.getuid?.() !== 0) return 'control groups need root';
  for (const controller of ['memory', 'cpu']) {
    const directory = hierarchy(controller);
    if (directory === undefined) return `no control groups of version 1 with the controller ${controller}`;
    try {
      accessSync(directory, constants.W_OK);
    } catch {
      return `${directory} cannot be written to`;
    }
  }
  return undefined;
}

/** Where a controller's groups are (proc_pid_mounts(5)). */
function hierarchy(controller: string): string | undefined {
  for (const line of readFileSync('/proc/mounts', 'utf8').split('\n')) {
    const [, directory, type, options = ''] = line.split(' ');
    if (type === 'cgroup' && options.split(',').includes(controller)) return directory;
  }
  return undefined;
}

/** Makes both groups, and removes them when its input ends: a process of its own, as the test process might be killed. */
const KEEPER = `
memory=$1 cpu=$2
trap '' INT TERM HUP
clean() {
  for group in "$memory" "$cpu"; do
    while [ -d "$group" ] && ! rmdir "$group" 2>/dev/null; do
      while read -r pid; do kill -9 "$pid" 2>/dev/null || :; done <"$group/cgroup.procs"
      sleep 0.05
    done
  done
}
trap clean EXIT
mkdir "$memory" "$cpu"
echo "$3" >"$memory/memory.limit_in_bytes"
echo 100000 >"$cpu/cpu.cfs_period_us"
echo "$4" >"$cpu/cpu.cfs_quota_us"
echo ready
read -r end || :`;

let groups = 0;

/** @throws Error when the kernel refuses it, see {@link missingControlGroups}. */
export async function controlGroup(limits: Limits): Promise<ControlGroup> {
  groups += 1;
  const name = `lightningstream-test-${process.pid}-${groups}`;
  const memory = join(hierarchy('memory') ?? '', name);
  const cpu = join(hierarchy('cpu') ?? '', name);
  const quotaMicros = Math.round(limits.cpuShare * 100_000);
  const keeper = spawn(
    'sh',
    ['-e', '-c', KEEPER, 'sh', memory, cpu, String(limits.memoryBytes), String(quotaMicros)],
    { stdio: ['pipe', 'pipe', 'inherit'], detached: true },
  );
  const ended = new Promise<void>((resolve) => keeper.once('close', () => resolve()));
  const isReady = await new Promise<boolean>((resolve) => {
    keeper.stdout.once('data', () => resolve(true));
    keeper.once('close', () => resolve(false));
  });
  if (!isReady) throw new Error(`the control group ${name} could not be made`);

  const count = async (file: string, key: string): Promise<number> => {
    const text = await readFile(join(memory, file), 'utf8');
    const value = new RegExp(`^${key}(\\d+)$`, 'm').exec(text)?.[1];
    if (value === undefined) throw new Error(`${file} has no ${key}`);
    return Number(value);
  };
  return {
    enter: [
      'sh',
      '-e',
      '-c',
      'echo $$ >"$1"; echo $$ >"$2"; shift 2; exec "$@"',
      'sh',
      join(memory, 'cgroup.procs'),
      join(cpu, 'cgroup.procs'),
    ],
    async usage() {
      return {
        peakBytes: await count('memory.max_usage_in_bytes', ''),
        limitHits: await count('memory.failcnt', ''),
        killed: await count('memory.oom_control', 'oom_kill '),
        anonymousBytes: await count('memory.stat', 'rss '),
        cacheBytes: await count('memory.stat', 'cache '),
      };
    },
    async [Symbol.asyncDispose]() {
      keeper.stdin.end();
      await ended;
    },
  };
}
