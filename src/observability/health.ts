/** Consecutive failures of one kind of operation of one database, and since when. */
export interface FailureTracker {
  success(): void;
  failure(error: unknown): void;
}

/** Phases of one database's start-up, see spec "health.start". */
export interface StartTracker {
  passedInitialListing(): void;
  passedInitialStore(): void;
  passCompleted(): void;
}

/** A condition that stays until it is cleared (held back, set aside, duplicate instance …). */
export interface Condition {
  set(level: 'warning' | 'failure', text: string): void;
  clear(): void;
}

/** Collects the state of all checks; `/healthz` is its picture. */
export interface Health {
  /** `name` is e.g. `main_storage_list`; the check appears as `main_storage_list_failed_duration`. */
  failureTracker(name: string, what: string, config: { warnDurationMs: number; errorDurationMs: number; intervalMs: number }): FailureTracker;
  startTracker(database: string): StartTracker;
  condition(name: string): Condition;
  setMetadata(name: string, value: string | number | boolean): void;
}
