import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  formatDbiFlags,
  formatDuration,
  formatSize,
  humanSize,
  parseDbiFlags,
  parseDuration,
  parseSize,
} from '../../src/config/units.ts';

const NS_PER_UNIT = { ns: 1, us: 1e3, µs: 1e3, ms: 1e6, s: 1e9, m: 6e10, h: 3.6e12 } as const;
type Unit = keyof typeof NS_PER_UNIT;
const units = Object.keys(NS_PER_UNIT) as Unit[];

describe('durations', () => {
  // https://pkg.go.dev/time#ParseDuration
  test.each([
    ['0', 0],
    ['-0', 0],
    ['+5s', 5000],
    ['-1.5h', -5_400_000],
    ['1h20m40.125s', 4_840_125],
    ['1.s', 1000],
    ['.5s', 500],
    ['7.75s', 7750],
    ['0.6666666666666666667h', 2_400_000],
    ['2h7m9.5s', 7_629_500],
    ['9223372036854775807ns', Number(2n ** 63n - 1n) / 1e6],
  ])('%s', (text, ms) => {
    expect(parseDuration(text)).toBeCloseTo(ms, 6);
  });

  test.each([
    '',
    '3',
    '-',
    's',
    '.',
    '-.',
    '.s',
    '+.s',
    '1d',
    '1S',
    '5 s',
    '1h ',
    '1.2.3s',
    '3000000h',
    '9223372036854775808ns',
    '٣s',
    '1e3s',
  ])('not %j', (text) => {
    expect(parseDuration(text)).toBeUndefined();
  });

  test('any sequence of parts is their sum', () => {
    const part = fc.record({ count: fc.integer({ min: 0, max: 99_999 }), unit: fc.constantFrom(...units) });
    fc.assert(
      fc.property(fc.array(part, { minLength: 1, maxLength: 5 }), fc.boolean(), (parts, negative) => {
        const text = (negative ? '-' : '') + parts.map(({ count, unit }) => `${count}${unit}`).join('');
        const ns = parts.reduce(
          (sum, { count, unit }) => sum + BigInt(count) * BigInt(NS_PER_UNIT[unit]),
          0n,
        );
        const parsed = parseDuration(text) ?? NaN;
        expect(BigInt(Math.round(parsed * 1e6)) - (negative ? -ns : ns)).toBeLessThan(1024n);
        expect((negative ? -ns : ns) - BigInt(Math.round(parsed * 1e6))).toBeLessThan(1024n);
      }),
    );
  });

  // https://pkg.go.dev/time#Duration.String
  test.each([
    [0, '0s'],
    [1e-6, '1ns'],
    [1.5e-3, '1.5µs'],
    [7.25, '7.25ms'],
    [300, '300ms'],
    [1000, '1s'],
    [1500, '1.5s'],
    [59_999, '59.999s'],
    [60_000, '1m0s'],
    [190_000, '3m10s'],
    [190_020, '3m10.02s'],
    [7_389_020, '2h3m9.02s'],
    [604_800_000, '168h0m0s'],
    [370 * 86_400_000, '8880h0m0s'],
    [-1000, '-1s'],
    [-90_000, '-1m30s'],
  ])('%d ms is %s', (ms, text) => {
    expect(formatDuration(ms)).toBe(text);
  });

  test('what is printed is read back', () => {
    fc.assert(
      fc.property(
        fc.oneof(
          fc.integer(),
          fc.integer({ min: -999_999, max: 999_999 }).map((ns) => ns / 1e6),
        ),
        (ms) => {
          expect(parseDuration(formatDuration(ms))).toBeCloseTo(ms, 6);
        },
      ),
    );
  });
});

describe('sizes', () => {
  const powers = {
    '': 0,
    b: 0,
    k: 1,
    kb: 1,
    m: 2,
    mb: 2,
    g: 3,
    gb: 3,
    t: 4,
    tb: 4,
    p: 5,
    pb: 5,
    e: 6,
    eb: 6,
  } as const;

  test('a count and a unit', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 15 }),
        fc.constantFrom(...(Object.keys(powers) as (keyof typeof powers)[])),
        fc.boolean(),
        fc.boolean(),
        (count, unit, upper, space) => {
          const text = `${count}${space ? ' ' : ''}${upper ? unit.toUpperCase() : unit}`;
          expect(parseSize(text)).toEqual({ sizeBytes: count * 2 ** (10 * powers[unit]) });
        },
      ),
    );
  });

  test.each(['Kb', 'Mb', 'Gb', 'Tb', 'Pb', 'Eb'])('%s are bits', (unit) => {
    expect(parseSize(`1${unit}`)).toEqual({ problem: 'bits' });
  });

  test.each(['x', '-1', '1.5GB', '1GiB', '0x10', '1e6', 'GB', ' 1GB', '1_000', '1 000', '1bytebyte'])(
    'not %j',
    (text) => {
      expect(parseSize(text)).toEqual({ problem: 'syntax' });
    },
  );

  test('as much as 64 bits hold', () => {
    expect(parseSize('18446744073709551615')).toEqual({ sizeBytes: 2 ** 64 });
    expect(parseSize('18446744073709551616')).toEqual({ problem: 'range' });
    expect(parseSize('15EB')).toEqual({ sizeBytes: 15 * 2 ** 60 });
    expect(parseSize('16EB')).toEqual({ problem: 'range' });
    expect(parseSize('1kilobyte')).toEqual({ sizeBytes: 1024 });
  });

  test('what is printed is read back', () => {
    fc.assert(
      fc.property(fc.maxSafeNat(), fc.integer({ min: 0, max: 10 }), (count, shift) => {
        const size = count * 2 ** shift;
        expect(parseSize(formatSize(size))).toEqual({ sizeBytes: size });
      }),
    );
    expect(formatSize(2 ** 64)).toBe('18446744073709551615B');
  });

  test('for people', () => {
    expect([0, 512, 1024, 1025, 36_864, 16_777_216, 3 * 2 ** 30].map(humanSize)).toEqual([
      '0 B',
      '512 B',
      '1024 B',
      '1.0 KB',
      '36.0 KB',
      '16.0 MB',
      '3.0 GB',
    ]);
  });
});

describe('DBI flags', () => {
  // lmdb.h
  const bits = {
    REVERSEKEY: 0x02,
    DUPSORT: 0x04,
    INTEGERKEY: 0x08,
    DUPFIXED: 0x10,
    INTEGERDUP: 0x20,
    REVERSEDUP: 0x40,
  };

  test('names and numbers in any mixture', () => {
    const written = fc
      .constantFrom(...Object.entries(bits))
      .chain(([name, bit]) =>
        fc
          .constantFrom(name, `MDB_${name}`, name.toLowerCase(), `${bit}`, `0x${bit.toString(16)}`)
          .map((text) => ({ text, bit })),
      );
    fc.assert(
      fc.property(fc.array(written), fc.constantFrom('|', ',', '+', ' ', ' | ', ', '), (flags, separator) => {
        const sum = flags.reduce((all, { bit }) => all | bit, 0);
        expect(parseDbiFlags(flags.map(({ text }) => text).join(separator))).toBe(sum);
        expect(parseDbiFlags(formatDbiFlags(sum))).toBe(sum);
      }),
    );
  });

  test.each(['1', '0x1', '128', '0x40000', '4294967298', 'MDB_CREATE', '-1', 'x', 'DUPSORT|FOO'])(
    'not %s',
    (text) => {
      expect(parseDbiFlags(text)).toBeUndefined();
    },
  );
});
