import type { Config } from '../config/types.ts';
import type { Health } from '../observability/health.ts';
import type { Logger } from '../observability/logger.ts';
import type { Metrics } from '../observability/metrics.ts';
import type { Spool } from '../snapshot/spool.ts';
import type { Storage } from '../storage/storage.ts';
import type { Clock } from './wait.ts';

/** What all that works for one database is given. */
export interface SyncContext {
  /** Key under `lmdbs:`. */
  readonly database: string;
  /** Our own name, as it stands in object names. */
  readonly instance: string;
  readonly config: Config;
  readonly storage: Storage;
  readonly spool: Spool;
  readonly logger: Logger;
  readonly metrics: Metrics;
  readonly health: Health;
  readonly clock: Clock;
}
