import type { ServiceManager } from '../sync/service-report.ts';
import { isWorkingChild, type Relayed } from './minimum-pid.ts';

/** What systemd sets for a service of Type=notify. */
const VARIABLES = ['NOTIFY_SOCKET', 'WATCHDOG_USEC', 'WATCHDOG_PID'] as const;

/** A service manager, and the variables that let another process of ours know of it. */
export interface GivenServiceManager extends ServiceManager {
  readonly env: Readonly<Record<string, string>>;
}

/**
 * What the service manager gave us, taken out of the environment: no program that we start shall speak in our name. Undefined when
 * nobody wants to be told anything.
 */
export function takeServiceManager(
  self: Pick<NodeJS.Process, 'env' | 'pid' | 'send'>,
): GivenServiceManager | undefined {
  const env: Record<string, string> = {};
  for (const name of VARIABLES) {
    const value = self.env[name];
    if (value !== undefined && value !== '') env[name] = value;
    delete self.env[name];
  }
  const { NOTIFY_SOCKET: socket, WATCHDOG_USEC: watchdogUsec, WATCHDOG_PID: watchdogPid } = env;
  if (socket === undefined) return undefined;
  const relayed = isWorkingChild(self);
  const watched = relayed || watchdogPid === undefined || watchdogPid === String(self.pid);
  const watchdogMs = watched ? Number(watchdogUsec ?? NaN) / 1000 : NaN;
  return {
    env,
    watchdogMs: watchdogMs > 0 ? watchdogMs : undefined,
    async notify(state) {
      if (relayed) {
        const message: Relayed = { notify: state };
        return new Promise((resolve, reject) => {
          self.send?.(message, (error: Error | null) => (error === null ? resolve() : reject(error)));
        });
      }
      const { loadNative } = await import('../native/index.ts');
      return loadNative().notifyServiceManager(socket, state);
    },
  };
}
