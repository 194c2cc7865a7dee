import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type HeaderError, isDeleted, newer, nowNano, readHeader, writeHeader } from '../../src/lib/index.ts';
import { repositoryRoot } from '../helpers/process.ts';

const uint64 = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
const bytes = fc.uint8Array({ maxLength: 40 });
/** What an application can have stored; few different ones, so that equal ones come together. */
const stored = fc
  .record({
    timestampNano: fc.bigInt({ min: 0n, max: 2n }),
    deleted: fc.boolean(),
    value: fc.uint8Array({ max: 1, maxLength: 2 }),
  })
  .map(({ value, ...fields }) => writeHeader(fields, fields.deleted ? undefined : value));

function codeOf(call: () => unknown): string {
  try {
    call();
  } catch (error) {
    return (error as HeaderError).code;
  }
  return 'no error';
}

describe('readHeader and writeHeader', () => {
  test('the bytes are those of the format', () => {
    const header = writeHeader(
      { timestampNano: 0x0102030405060708n, transactionId: 0x1112131415161718n },
      Buffer.from('app'),
    );
    expect(header.toString('hex')).toBe(
      '0102030405060708 1112131415161718 0000000000000000 617070'.replaceAll(' ', ''),
    );
    expect(writeHeader({ timestampNano: 1n, deleted: true }).toString('hex')).toBe(
      '0000000000000001 0000000000000000 0001000000000000'.replaceAll(' ', ''),
    );
  });

  test('what is written is read', () => {
    fc.assert(
      fc.property(uint64, uint64, fc.boolean(), bytes, (timestampNano, transactionId, deleted, value) => {
        const kept = deleted ? new Uint8Array(0) : value;
        const read = readHeader(writeHeader({ timestampNano, transactionId, deleted }, kept));
        expect(read).toEqual({
          timestampNano,
          transactionId,
          deleted,
          version: 0,
          extensionBlocks: 0,
          value: Buffer.from(kept),
        });
      }),
    );
  });

  test('extension blocks and reserved bits are passed over; the value is a view', () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 300 }), bytes, (extensionBlocks, value) => {
        const head = Buffer.alloc(24 + 8 * extensionBlocks, 0xee);
        head.writeBigUInt64BE(5n, 0);
        head[16] = 0;
        head[17] = 0xfe;
        head.writeUInt16BE(extensionBlocks, 22);
        // In the middle of a larger buffer, as LMDB packages return values.
        const memory = Buffer.concat([Buffer.from('before'), head, value, Buffer.from('after')]);
        const read = readHeader(memory.subarray(6, 6 + head.length + value.length));
        expect(read).toMatchObject({ timestampNano: 5n, deleted: false, extensionBlocks });
        expect(read.value.equals(value)).toBe(true);
        expect(read.value.buffer).toBe(memory.buffer);
      }),
    );
  });

  test('a value behind the header of a deletion is none', () => {
    const entry = Buffer.concat([writeHeader({ timestampNano: 1n, deleted: true }), Buffer.from('left')]);
    expect(readHeader(entry)).toMatchObject({ deleted: true, value: Buffer.alloc(0) });
    expect(isDeleted(entry)).toBe(true);
  });

  test('whatever comes, it is read or refused as HEADER_INVALID', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 64 }), (value) => {
        const blocks = value.length < 24 ? 0 : Buffer.from(value).readUInt16BE(22);
        const valid = value.length >= 24 && value[16] === 0 && value.length >= 24 + 8 * blocks;
        expect(codeOf(() => readHeader(value))).toBe(valid ? 'no error' : 'HEADER_INVALID');
      }),
    );
    const short = Buffer.alloc(31);
    short[23] = 1;
    expect(() => readHeader(short)).toThrow(/31 bytes, a header with 1 extension blocks alone 32/);
    expect(() => readHeader(Buffer.alloc(24, 1))).toThrow(/version 1 is not supported/);
    expect(() => readHeader(Buffer.alloc(0))).toThrow(/0 bytes, a header alone 24/);
  });

  test('fields that make no header are refused', () => {
    for (const timestampNano of [-1n, 2n ** 64n]) {
      expect(codeOf(() => writeHeader({ timestampNano }))).toBe('HEADER_FIELDS');
      expect(codeOf(() => writeHeader({ transactionId: timestampNano }))).toBe('HEADER_FIELDS');
    }
    expect(codeOf(() => writeHeader({ deleted: true }, Buffer.from('x')))).toBe('HEADER_FIELDS');
  });

  test('every value of a PowerDNS 4.9 is read, and the same bytes are written', () => {
    const path = join(repositoryRoot, 'test/golden/pdns-4.9-native/contents.json.gz');
    const databases = JSON.parse(gunzipSync(readFileSync(path)).toString()) as Record<
      string,
      { dbis: Record<string, { entries: [string, string][] }> }
    >;
    const values = Object.values(databases).flatMap(({ dbis }) =>
      Object.values(dbis).flatMap(({ entries }) => entries.map(([, value]) => Buffer.from(value, 'hex'))),
    );
    expect(values.length).toBeGreaterThan(300);
    for (const value of values) {
      const read = readHeader(value);
      // PowerDNS writes no reserved bytes and no extension blocks.
      expect(writeHeader(read, read.value).equals(value)).toBe(true);
      expect(read.timestampNano).toBeGreaterThan(1_790_000_000_000_000_000n);
    }
    expect(values.filter(isDeleted)).toHaveLength(9);
  });
});

describe('newer', () => {
  const entry = (timestampNano: bigint, value: string | undefined): Buffer =>
    writeHeader(
      { timestampNano, deleted: value === undefined },
      value === undefined ? undefined : Buffer.from(value),
    );

  test('the merge rule, case by case', () => {
    expect(newer(entry(2n, 'a'), entry(1n, 'z'))).toBe(true);
    expect(newer(entry(1n, 'a'), entry(2n, 'z'))).toBe(false);
    expect(newer(entry(1n, 'a'), entry(1n, 'b'))).toBe(true);
    expect(newer(entry(1n, 'a'), entry(1n, 'ab'))).toBe(true);
    expect(newer(entry(1n, undefined), entry(1n, ''))).toBe(true);
    expect(newer(entry(1n, ''), entry(1n, undefined))).toBe(false);
    expect(newer(entry(1n, undefined), entry(1n, 'a'))).toBe(true);
    expect(newer(entry(2n ** 63n, 'a'), entry(1n, 'a'))).toBe(true);
    expect(newer(entry(0n, 'a'), undefined)).toBe(true);
    expect(newer(entry(0n, 'a'), Buffer.alloc(0))).toBe(true);
    expect(newer(undefined, entry(0n, 'a'))).toBe(false);
    expect(newer(entry(1n, 'a'), entry(1n, 'a'))).toBe(false);
  });

  test('one of two different entries wins, and never both; the best of three does not depend on the order', () => {
    const content = (entry: Buffer): unknown => {
      const { timestampNano, deleted, value } = readHeader(entry);
      return `${timestampNano} ${deleted} ${value.toString('hex')}`;
    };
    fc.assert(
      fc.property(stored, stored, stored, (a, b, c) => {
        expect(Number(newer(a, b)) + Number(newer(b, a))).toBe(content(a) === content(b) ? 0 : 1);
        const best = (...entries: Buffer[]): unknown =>
          content(entries.reduce((one, other) => (newer(other, one) ? other : one)));
        expect(best(a, b, c)).toBe(best(c, a, b));
        expect(best(a, b, c)).toBe(best(b, a, c));
      }),
    );
  });
});

describe('nowNano', () => {
  test('is the time, and never the same twice', () => {
    const from = BigInt(Date.now()) * 1_000_000n;
    const times = Array.from({ length: 5000 }, () => nowNano());
    const to = BigInt(Date.now() + 1) * 1_000_000n;
    expect(times.every((time, index) => index === 0 || time > (times[index - 1] ?? 0n))).toBe(true);
    expect(times[0]).toBeGreaterThanOrEqual(from);
    expect(times.at(-1)).toBeLessThan(to);
  });

  test('is later than what is replaced, and goes back to the time afterwards', () => {
    const ahead = BigInt(Date.now() + 3_600_000) * 1_000_000n;
    expect(nowNano(writeHeader({ timestampNano: ahead }))).toBe(ahead + 1n);
    expect(nowNano()).toBeLessThan(ahead);
    expect(nowNano(writeHeader({ timestampNano: 5n }))).toBeLessThan(ahead);
    expect(nowNano(Buffer.alloc(0))).toBeLessThan(ahead);
  });
});
