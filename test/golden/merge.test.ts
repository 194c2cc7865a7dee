// Merging as the reference merges: the same LMDB afterwards, byte for byte, read with another LMDB implementation.
import { describe, expect, test } from 'vitest';
import { caseRunner, comparable, expectWrittenByUs, isShadow, readCases } from './cases.ts';

const all = readCases('merge-native');
const allShadow = readCases('merge-shadow');

test('all cases are there', () => {
  expect(all.filter(({ native }) => native)).toHaveLength(29);
  expect(allShadow.filter(({ native }) => !native)).toHaveLength(29);
});

describe.concurrent('receive --only-once', () => {
  const runCase = caseRunner();
  test.each(all.map((golden) => [golden.name, golden.description, golden] as const))(
    '%s: %s',
    async (...[, , golden]) => {
      const { expected } = golden;
      const { code, complaints, before, after, newObjects } = await runCase(golden);
      expect(comparable(after, expected.dbis)).toEqual(expected.dbis);
      expect({ code, newObjects: newObjects.size }).toEqual({ code: expected.exit, newObjects: 0 });

      // A created DBI is worth a warning, and there is nothing else to say about a good snapshot.
      const created = Object.keys(expected.dbis).filter((name) => before?.dbis[name] === undefined);
      expect(complaints.map(({ level, dbi }) => `${level} ${String(dbi)}`).sort()).toEqual(
        created.map((name) => `warning ${name}`).sort(),
      );

      const written = expectWrittenByUs({ before, after });
      if (expected.nothing_written) {
        expect({ written, lastTxnId: after.lastTxnId }).toEqual({ written: 0, lastTxnId: before?.lastTxnId });
      } else {
        expect(written + created.length).toBeGreaterThan(0);
        expect(after.lastTxnId).toBeGreaterThan(before?.lastTxnId ?? 0);
      }
    },
  );
});

describe.concurrent('receive --only-once, in shadow mode', () => {
  const runCase = caseRunner();
  /** What is wrong with the LMDB or the configuration, in our words. */
  const errors: Readonly<Record<string, RegExp>> = {
    'error-dupsort-key-too-long':
      /dupsort_hack .*keys of 1 to 255 bytes.* 256, DBI idx, key 6b6b.*\(DBI_UNSUPPORTED\)$/,
    'error-dupsort-not-unique':
      /two values of one key .*dupsort_hack .*DBI idx, key 6b6b.*\(DBI_UNSUPPORTED\)$/,
    'error-dupsort-reverse-order':
      /dupsort_hack would reverse the order .*DBI idx, key 6b0000.*\(DBI_UNSUPPORTED\)$/,
    'error-dupsort-snapshot-without-hack':
      /^snapshot main__remote__\S+ .*dupsort_hack: true, DBI idx \(DBI_UNSUPPORTED\)$/,
    'error-dupsort-without-hack': /dupsort_hack: true, DBI idx \(DBI_UNSUPPORTED\)$/,
    'error-reversekey': /MDB_REVERSEKEY.*DBI rev, key 617a \(DBI_UNSUPPORTED\)$/,
    'error-shadow-value-too-short':
      /value of 5 bytes is too short for a header of 24, DBI _sync_shadow_data, key 61 \(HEADER_INVALID\)$/,
  };

  test('what ended the reference ends our run', () => {
    const failed = allShadow.filter(({ expected }) => expected.exit !== 0).map(({ name }) => name);
    expect(Object.keys(errors)).toEqual(failed);
  });

  test.each(allShadow.map((golden) => [golden.name, golden.description, golden] as const))(
    '%s: %s',
    async (...[name, , golden]) => {
      const { expected } = golden;
      const { code, complaints, before, after, newObjects, period } = await runCase(golden);
      const { alternatives = {} } = expected;
      expect(comparable(after, expected.dbis, { period, alternatives })).toEqual(expected.dbis);
      expect({ code, newObjects: newObjects.size }).toEqual({ code: expected.exit, newObjects: 0 });
      const written = expectWrittenByUs({ before, after, shadow: true });

      const error = errors[name];
      if (error !== undefined) {
        expect(complaints).toEqual([
          expect.objectContaining({ level: 'error', error: expect.stringMatching(error) as string }),
        ]);
        if (expected.unchanged) expect(after).toEqual(before);
        return;
      }
      // A table that the application did not have is worth a warning; its shadow is our own matter.
      const created = Object.keys(expected.dbis).filter(
        (dbi) => before?.dbis[dbi] === undefined && !isShadow(dbi),
      );
      expect(complaints.map(({ level, dbi }) => `${level} ${String(dbi)}`).sort()).toEqual(
        created.map((dbi) => `warning ${dbi}`).sort(),
      );
      expect(written + created.length).toBeGreaterThan(0);
    },
  );
});
