import { errorMessage } from '../errors.ts';
import type { DatabaseStatus } from '../http/status.ts';
import type { HealthReport } from '../observability/health.ts';
import { escapeControls } from '../observability/log-format.ts';
import type { Logger } from '../observability/logger.ts';

/** What started the daemon and watches it, spoken to as sd_notify(3) describes it: systemd, or what stands in for it. */
export interface ServiceManager {
  /** Sends assignments (`READY=1`), a line each, as one message. Rejects when it cannot be delivered. */
  notify(state: string): Promise<void>;
  /** How long it waits for a sign of life before it ends the daemon, ms; undefined: for ever. */
  readonly watchdogMs: number | undefined;
}

export interface ServiceReportOptions {
  readonly manager: ServiceManager;
  /** One line, for people. */
  readonly status: () => Promise<string>;
  readonly logger: Logger;
  /** The daemon has been asked to end. */
  readonly signal: AbortSignal;
}

export interface ServiceReport {
  /** From now on the daemon does what it is for; repeating it has no effect. */
  ready(): void;
  /** Nothing is sent any more when it resolves. */
  end(): Promise<void>;
}

/** How often the status is looked at; it is sent when it has changed. */
const statusIntervalMs = 2000;

/** Tells the service manager that the daemon is ready, how it is, that it is alive, and that it ends. */
export function reportTo({ manager, status, logger, signal }: ServiceReportOptions): ServiceReport {
  const timers: NodeJS.Timeout[] = [];
  let sent: Promise<void> = Promise.resolve();
  let sending = 0;
  let failed = false;
  let phase: 'starting' | 'ready' | 'stopping' = 'starting';
  let lastStatus = '';

  function send(...lines: readonly string[]): void {
    sending += 1;
    sent = sent
      .then(() => manager.notify(lines.join('\n')))
      .catch((error: unknown) => {
        if (!failed) logger.warning('The service manager cannot be told how the daemon is', { error });
        failed = true;
      })
      .finally(() => {
        sending -= 1;
      });
  }

  async function sendStatus(): Promise<void> {
    const text = await status().catch(errorMessage);
    if (text === lastStatus || phase !== 'ready' || sending > 0) return;
    lastStatus = text;
    send(`STATUS=${text}`);
  }

  function stopping(): void {
    if (phase === 'stopping') return;
    phase = 'stopping';
    for (const timer of timers) clearInterval(timer);
    send('STOPPING=1', 'STATUS=Stopping');
  }
  signal.addEventListener('abort', stopping, { once: true });

  return {
    ready() {
      if (phase !== 'starting') return;
      phase = 'ready';
      send('READY=1');
      const look = (): void => void sendStatus();
      void sent.then(look);
      timers.push(setInterval(look, statusIntervalMs));
      // It says that the event loop turns; whether all is well, /healthz says.
      if (manager.watchdogMs !== undefined) {
        timers.push(setInterval(() => sending === 0 && send('WATCHDOG=1'), manager.watchdogMs / 2));
      }
    },
    async end() {
      signal.removeEventListener('abort', stopping);
      stopping();
      await sent;
    },
  };
}

/** What is wrong, in the words of `/healthz`, and when each database last stored and merged something. */
export function statusLine(health: HealthReport, databases: readonly DatabaseStatus[]): string {
  const complaints = [...Object.entries(health.failures), ...Object.entries(health.warnings)];
  const state = [health.status, complaints.map(([check, text]) => `${check}: ${text}`).join('; ')];
  const all = [state.filter(Boolean).join(': '), ...databases.map(describe)].join('; ');
  return escapeControls(all);
}

function describe({ name, phase, lastStored, instances }: DatabaseStatus): string {
  const merged = instances
    .filter(({ own }) => !own)
    .flatMap(({ instance, lastMerged }) => (lastMerged === undefined ? [] : [{ instance, ...lastMerged }]))
    .sort((a, b) => b.timestampMs - a.timestampMs)[0];
  const parts = [
    lastStored && `stored ${seconds(lastStored.timestampMs)}`,
    merged && `merged ${merged.instance}'s of ${seconds(merged.timestampMs)}`,
  ].filter((part) => part !== undefined);
  return `${name}: ${parts.join(', ') || `nothing stored or merged yet (${phase})`}`;
}

function seconds(timestampMs: number): string {
  return `${new Date(timestampMs).toISOString().slice(0, 19)}Z`;
}
