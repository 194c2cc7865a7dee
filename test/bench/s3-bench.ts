/**
 * `make bench-s3`: running daemons with a MinIO between them, in at most ten minutes. It installs MinIO and PowerDNS for itself.
 *
 *   BENCH_ONLY=latency|memory|powerdns   a part of it
 *   BENCH_LATENCY_SAMPLES=200            commits, each
 *   BENCH_RECORDS=1000000                for memory and PowerDNS
 *   BENCH_SECONDS=45                     of writing, with each program
 *   BENCH_DIR, LS_REFERENCE, BENCH_WRITE as for `make bench`
 */
import { missingTool } from '../helpers/tools.ts';
import { machine, say, writeReport } from './report.ts';
import { benchLatency } from './s3-latency.ts';
import { benchMemory } from './s3-memory.ts';
import { benchPowerDns } from './s3-powerdns.ts';
import { Store } from './s3-store.ts';

// Through the exit handler of the helpers, which removes databases and daemons.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));

const PARTS = { latency: benchLatency, memory: benchMemory, powerdns: benchPowerDns };

const missing = missingTool('minio', 'pdns-4.9');
if (missing !== undefined) {
  say(missing);
  process.exit(1);
}
const only = process.env['BENCH_ONLY'] ?? '';
let report = `${machine()}\n`;
{
  await using store = await Store.start();
  for (const [name, bench] of Object.entries(PARTS)) {
    if (only !== '' && only !== name) continue;
    const part = await bench(store);
    report += `\n${part}`;
    // Now, as a later part may fail.
    say(`\n${part}`);
  }
}
process.stdout.write(report);
if (process.env['BENCH_WRITE'] === '1') writeReport('bench-s3', report);
