/** From a commit on A until the value can be read on B, through S3. */
import { LATENCY_HEAD, latencyCells, Pair } from './latency.ts';
import { programs, type Program } from './measure.ts';
import { markdownTable, say } from './report.ts';
import type { Store } from './s3-store.ts';

interface Series {
  readonly program: Program;
  readonly marker: boolean;
  readonly delaysMs: number[];
}

const POLL_MS = 100;

/**
 * BENCH_LATENCY_SAMPLES (200) commits with polls of 100 ms: one pair of daemons after the other, round and round, so that all see the
 * same machine and each is quiet while the others are measured. Then half as many with the default intervals, where
 * the pairs, which mostly wait, go side by side.
 */
export async function benchLatency(store: Store): Promise<string> {
  const samples = Number(process.env['BENCH_LATENCY_SAMPLES'] || 200);
  const short = series();
  {
    await using stack = new AsyncDisposableStack();
    const pairs = await startPairs(stack, store, short, POLL_MS, 1);
    for (let round = 1; round <= samples; round += 1) {
      for (const { pair, delaysMs } of pairs) delaysMs.push(await pair.sample());
      if (round % 50 === 0) say(`latency, polls of ${POLL_MS} ms: ${round} of ${samples}`);
    }
  }
  const long = series();
  {
    await using stack = new AsyncDisposableStack();
    const pairs = await startPairs(stack, store, long, undefined, 2);
    await Promise.all(
      pairs.map(async ({ pair, delaysMs }) => {
        for (let sample = 0; sample < Math.ceil(samples / 8); sample += 1) delaysMs.push(await pair.sample());
      }),
    );
    say('latency, default intervals: done');
  }
  const head = ['commit on A → readable on B (10 k records)', 'commits', ...LATENCY_HEAD];
  const rows = [...rowsOf(short, `polls of ${POLL_MS} ms`), ...rowsOf(long, 'default intervals')];
  return markdownTable(head, rows, 1);
}

function series(): Series[] {
  return [false, true].flatMap((marker) => programs.map((program) => ({ program, marker, delaysMs: [] })));
}

async function startPairs(
  stack: AsyncDisposableStack,
  store: Store,
  all: readonly Series[],
  pollIntervalMs: number | undefined,
  pairsEach: number,
): Promise<{ readonly pair: Pair; readonly delaysMs: number[] }[]> {
  const pairs: { readonly pair: Pair; readonly delaysMs: number[] }[] = [];
  for (const { program, marker, delaysMs } of all) {
    for (let number = 0; number < pairsEach; number += 1) {
      const bucket = `${program.name}-${marker ? 'marker' : 'plain'}-${pollIntervalMs ?? 'default'}-${number}`;
      const intervals = pollIntervalMs === undefined ? {} : { pollIntervalMs };
      const pair = await Pair.start({ program, storage: store.section(bucket, { marker }), ...intervals });
      pairs.push({ pair: stack.use(pair), delaysMs });
    }
  }
  return pairs;
}

function rowsOf(all: readonly Series[], intervals: string): string[][] {
  return all.map(({ program, marker, delaysMs }) => [
    `${program.name}, ${intervals}${marker ? ', update marker' : ''}`,
    String(delaysMs.length),
    ...latencyCells(delaysMs),
  ]);
}
