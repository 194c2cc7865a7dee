import { expect, test } from 'vitest';
import { latest } from '../../src/observability/latest.ts';

test('a read that hangs is waited for once, and the last known result serves meanwhile', async () => {
  const reads: PromiseWithResolvers<number>[] = [];
  const figures = latest(() => {
    const read = Promise.withResolvers<number>();
    reads.push(read);
    return read.promise;
  });

  expect(await figures.get(1)).toBeUndefined();
  expect(await figures.get(1)).toBeUndefined();
  expect(reads).toHaveLength(1);
  const waiting = figures.get(60_000);
  reads[0]?.resolve(1);
  expect(await waiting).toBe(1);

  expect(await figures.get(1)).toBe(1);
  expect(reads).toHaveLength(2);
  reads[1]?.reject(new Error('closed'));
  expect(await figures.get(60_000)).toBeUndefined();
});

test('a read that throws at once is tried again', async () => {
  let reads = 0;
  const figures = latest((): Promise<number> => {
    reads += 1;
    if (reads === 1) throw new Error('closed');
    return Promise.resolve(reads);
  });
  expect(await figures.get(60_000)).toBeUndefined();
  expect(await figures.get(60_000)).toBe(2);
});
