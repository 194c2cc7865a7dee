import { readFile } from 'node:fs/promises';
import { collectDefaultMetrics, Counter, Gauge, type Registry } from 'prom-client';

/**
 * Adds what a Node.js user expects (`process_*`, `nodejs_*`) and the `process_*` metrics of the reference's client library that
 * prom-client lacks. Values that the system does not tell are left out.
 */
export function registerProcessMetrics(registry: Registry): void {
  // The delay of the event loop is sampled by a timer; 100 ms keeps an idle daemon from waking 100 times a second.
  collectDefaultMetrics({ register: registry, eventLoopMonitoringPrecision: 100 });

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
