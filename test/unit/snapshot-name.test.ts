import { createHash } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  buildSnapshotName,
  databasePrefix,
  formatNameTimestamp,
  instanceName,
  isDatabaseName,
  parseSnapshotName,
  sanitizeInstance,
  shortHash,
} from '../../src/snapshot/name.ts';

/** Years 0000 to 9999 in nanoseconds. */
const nano = fc.bigInt({ min: -62_167_219_200_000_000_000n, max: 253_402_300_799_999_999_999n });
const word = fc.string({ unit: fc.constantFrom('a', 'b', 'Z', '0', '-', '_', 'é'), maxLength: 8 });

describe('timestamps', () => {
  test('are what date(1) prints', () => {
    // `TZ=UTC date -d @1709210096 +%Y%m%d-%H%M%S`, and so on.
    expect(formatNameTimestamp(1_709_210_096_123_456_789n)).toBe('20240229-123456-123456789');
    expect(formatNameTimestamp(0n)).toBe('19700101-000000-000000000');
    expect(formatNameTimestamp(-1n)).toBe('19691231-235959-999999999');
    expect(formatNameTimestamp(1n)).toBe('19700101-000000-000000001');
    expect(formatNameTimestamp(4_107_542_399_000_000_000n)).toBe('21000228-235959-000000000');
  });

  test('read back to the same nanosecond, and sort like the time', () => {
    fc.assert(
      fc.property(nano, nano, (a, b) => {
        const [textA, textB] = [formatNameTimestamp(a), formatNameTimestamp(b)];
        expect(textA).toMatch(/^\d{8}-\d{6}-\d{9}$/);
        expect(parseSnapshotName(`d__i__${textA}__GX.pb.gz`)?.timestampNano).toBe(a);
        expect(textA < textB).toBe(a < b);
      }),
    );
  });

  test('outside four-digit years do not exist', () => {
    expect(() => formatNameTimestamp(253_402_300_800_000_000_000n)).toThrow(RangeError);
    expect(() => formatNameTimestamp(-62_167_219_200_000_000_001n)).toThrow(RangeError);
    expect(() => formatNameTimestamp(2n ** 80n)).toThrow(RangeError);
  });
});

describe('names', () => {
  test('are built of the default parts', () => {
    expect(
      buildSnapshotName({ database: 'main', instance: 'a', timestamp: 1_709_210_096_123_456_789n }),
    ).toBe('main__a__20240229-123456-123456789__GX.pb.gz');
  });

  test('either read back to their parts or are not built', () => {
    let built = 0;
    fc.assert(
      fc.property(
        word,
        word,
        nano,
        fc.array(word, { maxLength: 2 }),
        (database, instance, timestamp, extras) => {
          let name: string;
          try {
            name = buildSnapshotName({ database, instance, timestamp, extras });
          } catch (error) {
            expect(error).toMatchObject({ code: 'NAME_INVALID' });
            // A separator in a part, or made by two parts that meet.
            expect([database, instance, '20', 'GX', ...extras].join('|')).toMatch(/__|_\||\|_|\|$/);
            return;
          }
          built++;
          expect(parseSnapshotName(name)).toMatchObject({
            database,
            instance,
            timestampNano: timestamp,
            extras,
          });
        },
      ),
    );
    expect(built).toBeGreaterThan(20);
  });

  test('of a database that readers would misread are refused', () => {
    for (const database of ['a.b', 'a__b', 'a_', '', 'a/b'])
      expect(isDatabaseName(database), `database ${database}`).toBe(false);
    for (const database of ['main', 'a_b', '_a', 'a-b', 'é']) {
      expect(isDatabaseName(database)).toBe(true);
      expect(parseSnapshotName(buildSnapshotName({ database, instance: 'i', timestamp: 0n }))?.database).toBe(
        database,
      );
    }
    for (const database of ['a.b', 'a__b', 'a_']) {
      expect(() => buildSnapshotName({ database, instance: 'i', timestamp: 0n })).toThrow(
        'not be recognised',
      );
    }
  });

  test('begin with the prefix of their database', () => {
    expect(databasePrefix('main')).toBe('main__');
  });
});

describe('instances', () => {
  test('are the configured name, else the hostname, made fit for names', () => {
    expect(instanceName('a.b', 'host')).toBe('a-b');
    expect(instanceName('', 'host.example')).toBe('host-example');
    expect(() => instanceName('', '')).toThrow(/^instance: not set/);
  });

  test('never break a name', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary', minLength: 1 }), (text) => {
        const instance = sanitizeInstance(text);
        expect(instance).toMatch(/^[a-zA-Z0-9-]+$/);
        expect(instance).toHaveLength(Array.from(text).length);
        expect(
          parseSnapshotName(buildSnapshotName({ database: 'd', instance, timestamp: 0n }))?.instance,
        ).toBe(instance);
      }),
    );
  });
});

test('the short hash is the beginning of a SHA-256', () => {
  const digest = createHash('sha256').update('inst-20240229-123456-123456789').digest('hex');
  expect(shortHash('inst', '20240229-123456-123456789')).toBe(digest.slice(0, 7));
});
