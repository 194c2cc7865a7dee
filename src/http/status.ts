import type { EnvironmentStats } from '../native/types.ts';

/** What the status page shows besides health. Times are milliseconds since the epoch. */
export interface StatusModel {
  readonly version: string;
  /** As it appears in object names. */
  readonly instance: string;
  readonly startedAtMs: number;
  /** `location` without credentials, as `Storage.location`. */
  readonly storage: { readonly type: string; readonly location: string };
  /** In the order of the configuration. */
  readonly databases: readonly DatabaseStatus[];
}

export interface DatabaseStatus {
  readonly name: string;
  readonly path: string;
  /** What the syncer does now, in one or two words an operator understands: `starting`, `waiting`, `merging`, … */
  readonly phase: string;
  /** Why this database does not go on, or why there are no figures; undefined when all is well. */
  readonly problem: string | undefined;
  /** Undefined when the environment is not open or too busy to answer. */
  readonly stats: EnvironmentStats | undefined;
  readonly lastStored: StoredSnapshot | undefined;
  /** Every instance a snapshot was seen of, our own included. */
  readonly instances: readonly InstanceStatus[];
}

export interface StoredSnapshot {
  /** Object name. */
  readonly name: string;
  /** The time in its name. */
  readonly timestampMs: number;
  readonly sizeBytes: number;
}

export interface InstanceStatus {
  readonly instance: string;
  /** It is this one. */
  readonly own: boolean;
  /** Why its snapshots are not merged; undefined when they are. */
  readonly heldBack?: string | undefined;
  readonly newestSeen: SeenSnapshot | undefined;
  /** The newest one that is in the LMDB; undefined when none is yet. */
  readonly lastMerged: SeenSnapshot | undefined;
}

export interface SeenSnapshot {
  /** Object name. */
  readonly name: string;
  /** The time in its name. */
  readonly timestampMs: number;
}
