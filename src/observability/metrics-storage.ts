import Counter from 'prom-client/lib/counter.js';
import Gauge from 'prom-client/lib/gauge.js';
import Histogram from 'prom-client/lib/histogram.js';
import type Registry from 'prom-client/lib/registry.js';

/** Records a call of a remote storage when it has ended; `error` is a label's value, undefined when it succeeded. */
export type StorageCallMetrics = (
  type: 's3' | 'azure',
  method: string,
  durationSeconds: number,
  error: string | undefined,
) => void;

const BUCKETS_SECONDS = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60];

/**
 * `storage_<type>_call_*`: names, labels and buckets of simpleblob's backends. A call is one operation with all its requests
 * and retries.
 */
export function createStorageCallMetrics(registry: Registry): StorageCallMetrics {
  const registers = [registry];
  const create = (type: 's3' | 'azure', title: string) => {
    const name = `storage_${type}_call`;
    const labelNames = ['method'] as const;
    return {
      lastCall: new Gauge({
        name: `${name}_timestamp_seconds`,
        help: `Time of the last ${title} call by method, seconds since the epoch`,
        labelNames,
        registers,
      }),
      calls: new Counter({ name: `${name}_total`, help: `${title} calls by method`, labelNames, registers }),
      errors: new Counter({
        name: `${name}_error_total`,
        help: `Failed ${title} calls by method`,
        labelNames,
        registers,
      }),
      errorsByType: new Counter({
        name: `${name}_error_by_type_total`,
        help: `Failed ${title} calls by method and type of error`,
        labelNames: ['method', 'error'] as const,
        registers,
      }),
      duration: new Histogram({
        name: `${name}_duration_seconds`,
        help: `Time that ${title} calls took by method`,
        labelNames,
        buckets: BUCKETS_SECONDS,
        registers,
      }),
    };
  };
  const metrics = { s3: create('s3', 'S3'), azure: create('azure', 'Azure') };
  return (type, method, durationSeconds, error) => {
    const { lastCall, calls, errors, errorsByType, duration } = metrics[type];
    calls.inc({ method });
    lastCall.setToCurrentTime({ method });
    duration.observe({ method }, durationSeconds);
    if (error === undefined) return;
    errors.inc({ method });
    errorsByType.inc({ method, error });
  };
}
