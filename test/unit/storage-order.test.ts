import fc from 'fast-check';
import { expect, test } from 'vitest';
import { compareNames } from '../../src/storage/order.ts';

test('names compare as their UTF-8 bytes do', () => {
  // Characters around the surrogates, where UTF-16 order differs, and prefixes of each other.
  const unit = fc.oneof(
    fc.constantFrom('a', '_', '.', '\u{d7ff}', '\u{e000}', '\u{fffd}', '\u{ffff}', '\u{10000}', '\u{10ffff}'),
    fc.string({ unit: 'binary', minLength: 1, maxLength: 1 }),
  );
  const name = fc.array(unit, { maxLength: 6 }).map((units) => units.join(''));
  fc.assert(
    fc.property(name, name, (a, b) => {
      expect(Math.sign(compareNames(a, b))).toBe(Buffer.compare(Buffer.from(a), Buffer.from(b)));
    }),
    { numRuns: 5000 },
  );
});
