/** What somebody looks at on a machine with the package. */
import type { Machine } from '../helpers/machine.ts';
import { until } from '../helpers/process.ts';

export const CONFIG = '/etc/lightningstream/main.yaml';
export const patient = { timeoutMs: 30_000, intervalMs: 100 };

/** Units of the package that run, or have failed. */
export async function units(machine: Machine): Promise<readonly string[]> {
  return lines(await machine.run('systemctl', 'list-units', '--plain', '--no-legend', 'lightningstream*'));
}

/** Of a unit's process; `0` when it does not run. */
export async function mainPid(machine: Machine, unit: string): Promise<string> {
  return (await machine.run('systemctl', 'show', '--value', '-p', 'MainPID', unit)).trim();
}

/** Programs of the package that run, whoever has started them. */
export async function processes(machine: Machine): Promise<readonly string[]> {
  return lines(
    await machine.sh(
      `for exe in /proc/[0-9]*/exe; do readlink "$exe" || true; done | grep lightningstream || true`,
    ),
  );
}

/** Waits until /healthz on port 8500 answers 200. */
export function healthy(machine: Machine): Promise<boolean> {
  return until(
    async () => {
      const { status, body } = await machine.get('http://127.0.0.1:8500/healthz');
      if (status !== 200) throw new Error(`${status} ${body}\n${await log(machine)}`);
      return true;
    },
    { ...patient, what: '/healthz answers 200' },
  );
}

/** What the instances have written at last. */
export async function log(machine: Machine): Promise<string> {
  const { stdout } = await machine.try(['journalctl', '--lines=20', '--no-pager', '-u', 'lightningstream*']);
  return stdout;
}

/** All paths but those of what changes by itself, or by any package: logs, the lists of package managers, what systemd keeps. */
export async function files(machine: Machine): Promise<readonly string[]> {
  const without = [
    '/root/.rpmdb',
    '/srv',
    '/tmp',
    '/var/cache/apt',
    '/var/cache/debconf',
    '/var/lib/apt',
    '/var/lib/dpkg',
    '/var/lib/powerdns*',
    '/var/lib/rpm',
    '/var/lib/systemd',
    '/var/log',
    '/var/tmp',
  ];
  const prune = without.map((path) => `-path '${path}' -prune`).join(' -o ');
  return lines(await machine.sh(`find / -xdev \\( ${prune} \\) -o -print | LC_ALL=C sort`));
}

export function lines(text: string): readonly string[] {
  return text.split('\n').filter((line) => line !== '');
}
