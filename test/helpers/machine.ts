/**
 * Machines to install packages on: a minimal Debian with its own processes, mounts, network, host name and cgroups, in which systemd
 * can be booted (machine.sh). Cheap: an overlay in memory over a root that build/debian-root.sh made. Needs root.
 *
 *     await using machine = await startMachine('debian-13', { [repository]: '/srv/apt' });
 *     await machine.run('apt-get', 'install', '-y', 'pdns-server');  // as in a chroot: nothing is started
 *     await machine.boot();
 *     await machine.run('systemctl', 'start', 'pdns');
 */
import { open, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

import { run, start, tempDir, until, type Finished, type Running } from './process.ts';
import { toolPath, type ToolName } from './tools.ts';

export type Debian = ToolName & `debian-${string}`;

export interface CommandOptions {
  /** Added to an environment of PATH, LANG and what keeps apt from asking. */
  readonly env?: Readonly<Record<string, string>>;
  readonly timeoutMs?: number;
}

export interface Machine extends AsyncDisposable {
  /** Of its process 1, as seen from outside. */
  readonly pid: number;
  /** Runs a command in it, as root, without a terminal and without HOME; returns its standard output. @throws Error when it fails. */
  run(...command: readonly string[]): Promise<string>;
  /** The same; failing is a result like any other. */
  try(command: readonly string[], options?: CommandOptions): Promise<Finished>;
  /** A script of `sh`, which ends with the first command that fails. */
  sh(script: string): Promise<string>;
  /** A process that goes on. */
  start(...command: readonly string[]): Promise<Running>;
  /** A command from outside, with the outside's files, in the machine's network. */
  runInNetwork(command: string, ...args: readonly string[]): Promise<Finished>;
  /** GET, in its network; status 0 when nothing answers. */
  get(url: string): Promise<{ readonly status: number; readonly body: string }>;
  /** Where a file is for somebody outside. Absolute symbolic links on the way would lead astray. */
  path(path: string): string;
  write(path: string, text: string): Promise<void>;
  /** Starts systemd, which has to be installed, and waits until it has started what is enabled. */
  boot(): Promise<void>;
}

const ENVIRONMENT = {
  PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
  LANG: 'C.UTF-8',
  DEBIAN_FRONTEND: 'noninteractive',
};

/** `binds` are files and directories from outside, by the path at which they are to be seen, read-only. */
export async function startMachine(
  debian: Debian,
  binds: Readonly<Record<string, string>> = {},
): Promise<Machine> {
  const work = await tempDir('lightningstream-machine-');
  const script = join(import.meta.dirname, 'machine.sh');
  const places = Object.entries(binds).map(([target, source]) => `${source}=${target}`);
  const owner = await start({
    command: 'sh',
    args: [script, toolPath(debian), work.path, ...places],
    // It ends the machine when this end of the pipe is closed, by whatever.
    stdin: 'pipe',
    ownProcessGroup: true,
  });
  const end = async (): Promise<void> => {
    owner.child.stdin?.end();
    await owner.exited;
    await work[Symbol.asyncDispose]();
  };
  let pid: number;
  try {
    const [, found] = await owner.waitForOutput(/^(\d+)\n/);
    pid = Number(found);
  } catch (error) {
    await end();
    throw error;
  }

  const enter = (command: readonly string[], env: CommandOptions['env'] = {}): readonly string[] => [
    `--target=${pid}`,
    '--all',
    '--root',
    '--wd',
    'env',
    '-i',
    ...Object.entries({ ...ENVIRONMENT, ...env }).map(([key, value]) => `${key}=${value}`),
    ...command,
  ];
  const machine: Machine = {
    pid,
    async run(...command) {
      const { code, stdout, stderr } = await machine.try(command);
      if (code !== 0) throw new Error(`${command.join(' ')} ended with ${code}:\n${stdout}${stderr}`);
      return stdout;
    },
    try: (command, { env, timeoutMs = 90_000 } = {}) =>
      run({ command: 'nsenter', args: enter(command, env), timeoutMs }),
    sh: (script) => machine.run('sh', '-euc', script),
    start: (...command) => start({ command: 'nsenter', args: enter(command) }),
    runInNetwork: (command, ...args) =>
      run({ command: 'nsenter', args: [`--net=/proc/${pid}/ns/net`, command, ...args] }),
    async get(url) {
      const program = `
        const response = await fetch(process.argv[1], { signal: AbortSignal.timeout(5000) }).catch(() => undefined);
        const body = (await response?.text()) ?? '';
        process.stdout.write(JSON.stringify({ status: response?.status ?? 0, body }));`;
      const { stdout } = await machine.runInNetwork(
        process.execPath,
        '--input-type=module',
        '-e',
        program,
        url,
      );
      return JSON.parse(stdout) as { status: number; body: string };
    },
    path: (path) => join(`/proc/${pid}/root`, path),
    write: (path, text) => writeFile(machine.path(path), text),
    async boot() {
      await using gate = await open(machine.path('/run/boot'), 'w');
      await gate.write('\n');
      await until(
        async () => {
          const { stdout } = await machine.try(['systemctl', 'is-system-running']);
          // Degraded: it has no kernel modules to load, for one. Tests ask for the units they mean.
          return /^(running|degraded)$/m.test(stdout);
        },
        { what: 'systemd has started', timeoutMs: 60_000, intervalMs: 200 },
      );
    },
    [Symbol.asyncDispose]: end,
  };
  return machine;
}
