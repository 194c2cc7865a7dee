import { expect, test } from 'vitest';
import { MemoryStorage } from '../../src/storage/memory.ts';
import { storageConformance } from '../helpers/storage-conformance.ts';

storageConformance(
  'memory',
  () => Promise.resolve({ storage: new MemoryStorage(), [Symbol.asyncDispose]: () => Promise.resolve() }),
  { flatMemory: false, manyObjects: 1000 },
);

test('an object without a name is refused', async () => {
  const { signal } = new AbortController();
  await expect(new MemoryStorage().store('', import.meta.filename, { signal })).rejects.toMatchObject({
    code: 'NAME_INVALID',
  });
});
