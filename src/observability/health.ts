import { errorMessage } from '../errors.ts';
import type { HealthConfig, TrackerConfig } from '../config/types.ts';

/** Consecutive failures of one kind of operation of one database, and since when. */
export interface FailureTracker {
  success(): void;
  failure(error: unknown): void;
  /**
   * A call starts; the returned function says that it has ended, however. Once it runs for the interval, it counts like failures
   * since then; and when it fails, it has failed since then.
   */
  begin(): () => void;
}

/** Makes a call known to its tracker while it runs: one that hangs never tells of a success or a failure. */
export async function tracked<T>(tracker: FailureTracker, call: () => Promise<T>): Promise<T> {
  const end = tracker.begin();
  try {
    return await call();
  } finally {
    end();
  }
}

/** Phases of one database's start-up; when all three are passed, start-up is over for good. */
export interface StartTracker {
  /** The first listing of the storage succeeded. */
  passedInitialListing(): void;
  /** The first snapshot is stored, or none was needed. */
  passedInitialStore(): void;
  /** Everything that was in the storage at start is merged. Repeating it has no effect. */
  passCompleted(): void;
}

/** A condition that stays until it is cleared (held back, set aside, duplicate instance …). */
export interface Condition {
  set(level: 'warning' | 'failure', text: string): void;
  clear(): void;
}

/** Collects the state of all checks; `/healthz` is its picture. */
export interface Health {
  /**
   * `name` is e.g. `main_storage_list`; the check appears as `main_storage_list_failed_duration`. `what` completes
   * "failed to …"; the reference's words are in {@link ACTIVITY}.
   */
  failureTracker(name: string, what: string, config: TrackerConfig): FailureTracker;
  /** Appears as metadata `startup_<database>` and, if configured, as check `<database>_startup_in_progress`. */
  startTracker(database: string, config: HealthConfig['start']): StartTracker;
  /** `name` is the check's name as it appears, e.g. `main_schema_mismatch`. The same name gives the same condition. */
  condition(name: string): Condition;
  setMetadata(name: string, value: string | number | boolean): void;
  /** The state at this moment. */
  report(): HealthReport;
}

/** The reference's words for what failed, after "failed to". */
export const ACTIVITY = {
  storageList: 'list snapshots on storage backend',
  storageLoad: 'load a snapshot from storage backend',
  storageStore: 'write to storage backend',
} as const;

/** What `/healthz` shows; the keys are those of the reference, in its order. */
export interface HealthReport {
  /** False when a check fails: the answer is then 503. */
  readonly ok: boolean;
  readonly has_warnings: boolean;
  readonly status: 'OK' | 'Warning' | 'Unavailable';
  /** Now, RFC 3339. */
  readonly time: string;
  /** When the program started, RFC 3339. */
  readonly since: string;
  readonly runtime: Readonly<Record<string, string | number>>;
  readonly failures: Readonly<Record<string, string>>;
  readonly warnings: Readonly<Record<string, string>>;
  readonly metadata: Readonly<Record<string, string | number | boolean>>;
}

/** A check's verdict; undefined when all is well. */
type Verdict = { readonly level: 'warning' | 'failure'; readonly text: string } | undefined;

/**
 * `now` gives milliseconds since the epoch.
 *
 * Every verdict is computed when it is asked for, so it is never stale. The configured `interval` is the most a verdict may
 * be behind; nothing has to run at that pace for it, and there is no timer to stop.
 */
export function createHealth(now: () => number): Health {
  const startedAtMs = now();
  const checks = new Map<string, () => Verdict>();
  const metadata = new Map<string, string | number | boolean>();

  function judge(sinceMs: number, config: TrackerConfig, text: (duration: string) => string): Verdict {
    const durationMs = now() - sinceMs;
    const level =
      durationMs >= config.errorDurationMs
        ? 'failure'
        : durationMs >= config.warnDurationMs
          ? 'warning'
          : undefined;
    return level && { level, text: text(formatGoSeconds(durationMs)) };
  }

  return {
    failureTracker(name, what, config) {
      let failing: { readonly sinceMs: number; error: string } | undefined;
      const running = new Set<{ readonly sinceMs: number }>();
      /** When the call began that ended last, unless there was a success since. */
      let lastBeganMs: number | undefined;
      checks.set(`${name}_failed_duration`, () => {
        // Calls are in the order of their starts.
        const [oldest] = running;
        if (
          oldest !== undefined &&
          now() - oldest.sinceMs >= config.intervalMs &&
          (failing === undefined || oldest.sinceMs < failing.sinceMs)
        )
          return judge(oldest.sinceMs, config, (d) => `trying to ${what} for ${d}, without an answer`);
        if (failing === undefined) return undefined;
        const { sinceMs, error } = failing;
        return judge(sinceMs, config, (d) => `failed to ${what} for ${d} - last error: '${error}'`);
      });
      return {
        success() {
          failing = undefined;
          lastBeganMs = undefined;
        },
        failure(error) {
          failing = { sinceMs: failing?.sinceMs ?? lastBeganMs ?? now(), error: errorMessage(error) };
        },
        begin() {
          const call = { sinceMs: now() };
          running.add(call);
          return () => {
            running.delete(call);
            lastBeganMs = call.sinceMs;
          };
        },
      };
    },

    startTracker(database, config) {
      const sinceMs = now();
      const check = `${database}_startup_in_progress`;
      const pending = new Set(['listing', 'store', 'pass']);
      function passed(phase: string): void {
        if (!pending.delete(phase) || pending.size > 0) return;
        checks.delete(check);
        if (config.reportMetadata) metadata.set(`startup_${database}`, true);
      }
      if (config.reportMetadata) metadata.set(`startup_${database}`, false);
      if (config.reportHealthz) {
        checks.set(check, () => judge(sinceMs, config, (d) => `successful startup pending after ${d}`));
      }
      return {
        passedInitialListing: () => passed('listing'),
        passedInitialStore: () => passed('store'),
        passCompleted: () => passed('pass'),
      };
    },

    condition(name) {
      return {
        set(level, text) {
          checks.set(name, () => ({ level, text }));
        },
        clear() {
          checks.delete(name);
        },
      };
    },

    setMetadata(name, value) {
      metadata.set(name, value);
    },

    report() {
      const failures: Record<string, string> = {};
      const warnings: Record<string, string> = {};
      for (const [name, check] of sorted(checks)) {
        const verdict = check();
        if (verdict !== undefined) (verdict.level === 'failure' ? failures : warnings)[name] = verdict.text;
      }
      const ok = Object.keys(failures).length === 0;
      const hasWarnings = Object.keys(warnings).length > 0;
      return {
        ok,
        has_warnings: hasWarnings,
        status: !ok ? 'Unavailable' : hasWarnings ? 'Warning' : 'OK',
        time: new Date(now()).toISOString(),
        since: new Date(startedAtMs).toISOString(),
        runtime: runtimeFacts(),
        failures,
        warnings,
        metadata: Object.fromEntries(sorted(metadata)),
      };
    },
  };
}

function sorted<T>(map: ReadonlyMap<string, T>): [string, T][] {
  return [...map].sort(([a], [b]) => (a < b ? -1 : 1));
}

/** The keys are the reference's; where Go's notion has no equal, the nearest one is given. */
function runtimeFacts(): HealthReport['runtime'] {
  const { heapUsed } = process.memoryUsage();
  return {
    arch: process.arch === 'x64' ? 'amd64' : process.arch,
    os: process.platform,
    version: process.version,
    // What the event loop waits for.
    goroutines_count: process.getActiveResourcesInfo().length,
    // V8 does not count objects.
    heap_objects_count: 0,
    alloc_bytes: heapUsed,
    // V8 does not add up what it ever allocated.
    total_alloc_bytes: heapUsed,
  };
}

/** A duration rounded to seconds as Go prints it: `7s`, `5m0s`, `1h0m0s`. */
export function formatGoSeconds(durationMs: number): string {
  const total = Math.round(durationMs / 1000);
  const hours = Math.floor(total / 3600);
  const minutes = Math.floor(total / 60) % 60;
  const seconds = total % 60;
  if (hours > 0) return `${hours}h${minutes}m${seconds}s`;
  return minutes > 0 ? `${minutes}m${seconds}s` : `${seconds}s`;
}
