import { readFile } from 'node:fs/promises';
import { collectDefaultMetrics, Counter, Gauge, type Registry } from 'prom-client';

/**
 * Adds what a Node.js user expects (`process_*`, `nodejs_*`) and the `process_*` metrics of the reference's client library that
 * prom-client lacks. Values that the system does not tell are left out.
 */
export function registerProcessMetrics(registry: Registry): void {
  // The percentiles of the event loop's delay come from a timer whose own interval is part of each figure. At the usual 10 ms
  // it takes most of what an idle daemon needs; at a cheap pace the figures would show little but the pace. What is measured
  // at each scrape (`nodejs_eventloop_lag_seconds`) stays.
  collectDefaultMetrics({ register: registry, eventLoopMonitoringPrecision: 1000 });
  for (const figure of ['min', 'max', 'mean', 'stddev', 'p50', 'p90', 'p99']) {
    registry.removeSingleMetric(`nodejs_eventloop_lag_${figure}_seconds`);
  }

  const registers = [registry];
  for (const [direction, column] of [
    ['receive', 'InOctets'],
    ['transmit', 'OutOctets'],
  ] as const) {
    new Counter({
      name: `process_network_${direction}_bytes_total`,
      help: `Bytes that the network namespace of the process counted (${direction})`,
      registers,
      async collect() {
        const bytes = ipExtColumn(await readText('/proc/self/net/netstat'), column);
        this.reset();
        if (bytes === undefined) this.remove();
        else this.inc(bytes);
      },
    });
  }
  new Gauge({
    name: 'process_virtual_memory_max_bytes',
    help: 'Limit of the address space; 2^64 when there is none',
    registers,
    async collect() {
      const limit = /^Max address space +(\S+)/m.exec(await readText('/proc/self/limits'))?.[1];
      if (limit === undefined) this.remove();
      else this.set(limit === 'unlimited' ? 2 ** 64 : Number(limit));
    },
  });
}

async function readText(path: string): Promise<string> {
  return readFile(path, 'utf8').catch(() => '');
}

/** A column of the `IpExt` table: a line of names, then a line of values (Linux, net/ipv4/proc.c). */
function ipExtColumn(text: string, column: string): number | undefined {
  const [names, values] = text.split('\n').filter((line) => line.startsWith('IpExt:'));
  const at = names?.split(' ').indexOf(column) ?? -1;
  const value = at < 0 ? undefined : values?.split(' ')[at];
  return value === undefined ? undefined : Number(value);
}
